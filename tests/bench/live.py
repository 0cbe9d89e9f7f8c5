"""Live on a NIC: frames from tcpreplay over a veth pair, no drop and every exchange; then more than can be held.

    make bench-live  [ARGS="--seconds 10 --capture mixed --rate 200000"]

tcpreplay runs on one core, http-capture on another, in a network namespace of this script's own, which is removed also
when it is interrupted. Needs root. What is sent is one capture again and again, each time between other addresses (see
measure.Copies), so that every exchange must be recorded exactly once and no id twice.

1. held: at full speed, or at --rate, for --seconds. Every frame sent must be read, none dropped by the kernel; every
   exchange sent must be a complete record, and all ids must differ.
2. over: at full speed with a handicap. With a ring of 128 KiB the kernel must drop; uncompiled, whole connections are
   shed, and the kernel drops only until the share is found. All must be counted, and each exchange that was kept whole
   must be, by its id and by its value, that of a replay of the same frames. Left out of the comparison are the times,
   as tcpreplay makes them, what is of the run (instance, interface), and what a dropped handshake or ACK rightly
   changes: `midstream`, `uncertain`.
"""

import argparse
import contextlib
import hashlib
import math
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import generate
import measure
import msgspec
from measure import Capture, Json, fail

sys.path.insert(0, str(measure.ROOT / "tests"))
import network

START_SECONDS = 30.0
SMALL_RING = ("--set", "source.ring_block_count=2", "--set", "source.ring_block_bytes=65536")


@dataclass(frozen=True)
class Sent:
    frames: int
    seconds: float
    cpu_seconds: float  # of http-capture, meanwhile
    ledger: Json
    pauses: measure.Pauses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--capture", choices=("mixed", "short"), default="short")
    parser.add_argument("--frames", type=int, default=generate.FRAMES, help="size of the capture that is copied")
    parser.add_argument("--seconds", type=float, default=60.0, help="of the first part (60)")
    parser.add_argument("--over-seconds", type=float, default=5.0, help="of each of the second; 0: none (5)")
    parser.add_argument("--rate", type=int, help="frames a second of the first part; else as fast as it goes")
    parser.add_argument("--sink", default="", help="of the first part: null, or file:PATH; else a file that is removed")
    parser.add_argument("--core", type=int, default=measure.default_core(), help="of http-capture")
    options = parser.parse_args()
    measure.ends_by_exception()
    measure.need("tcpreplay", "taskset", "ip")
    if why := network.why_not():
        fail(why)
    print(measure.version())
    print(f"{measure.machine()}; http-capture on core {options.core}")
    other = measure.keep_off(options.core)
    capture = measure.capture(options.capture, options.frames)
    with network.veth(mtu=65535) as pair:
        bench = Bench(pair, options.core, other)
        warm = bench.send(capture, "null", pps=options.rate)
        rate = warm.frames / warm.seconds
        print(f"warm-up: {capture.frames:,} frames of {capture.name} at {rate:,.0f} frames/s", flush=True)
        # The rate of a long run is higher than that of the warm-up.
        held(bench, copies(capture, options.seconds * rate * (1 if options.rate else 1.2)), options.rate, options.sink)
        if options.over_seconds:
            over(bench, copies(capture, options.over_seconds * rate))


def copies(capture: Capture, frames: float) -> Capture:
    """As many copies as make so many frames, at least one."""
    wanted = max(1, math.ceil(frames / capture.frames))
    most = measure.Copies.MOST[capture.name]
    if wanted > most:
        print(f"{wanted} copies would be needed, {most} can be made: it is shorter")
    return measure.repeated(capture, min(wanted, most))


class Bench:
    """tcpreplay on `other`, http-capture on `core`, a cable between them."""

    def __init__(self, pair: network.Pair, core: int, other: int) -> None:
        self._pair = pair
        self._core = core
        self._other = other

    def send(
        self, capture: Capture, sink: str, *arguments: str, pps: int | None = None, program: Path = measure.PROGRAM
    ) -> Sent:
        """Sends the capture while http-capture records it. Its ledger must balance."""
        pair = self._pair
        said = measure.FOLDER / "live.err"
        before = _received(pair)
        with contextlib.ExitStack() as stack:
            stack.enter_context(network.inside(pair.namespace))
            errors = stack.enter_context(said.open("wb"))
            process = subprocess.Popen(
                measure.pinned(self._core, [
                    str(program), "--iface", pair.far, "--pidfile", str(measure.FOLDER / "live.pid"),
                    "--sink", sink, "--json", *arguments,
                ]),
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors, env=measure.environment(),
            )  # fmt: skip
            stack.callback(process.wait)
            stack.callback(process.kill)
            deadline = time.monotonic() + START_SECONDS
            while "recording " not in said.read_text():
                if process.poll() is not None or time.monotonic() > deadline:
                    fail(f"http-capture does not record:\n{said.read_text()[-2000:]}")
                time.sleep(0.01)
            cpu = measure.cpu_seconds(process.pid)
            with measure.Pauses() as pauses:
                frames, seconds = self._replay(capture, pps)
            cpu = measure.cpu_seconds(process.pid) - cpu
            process.terminate()
            code = process.wait()
        text = said.read_text()
        if code:
            fail(f"http-capture: exit code {code}:\n{text[-2000:]}")
        ledger = measure.ledger_of(measure.Run(seconds, cpu, 0, text))
        found = ledger["frames"]
        arrived = _received(pair) - before
        if not ledger["balanced"]:
            fail(f"the ledger does not balance: {ledger['imbalances']}")
        if not frames == arrived == found["received"] == found["read"] + found["dropped_by_kernel"] + found["unread"]:
            fail(f"{frames:,} frames sent, {arrived:,} on the NIC, but {found}")
        return Sent(frames, seconds, cpu, ledger, pauses)

    def _replay(self, capture: Capture, pps: int | None) -> tuple[int, float]:
        """Returns how many frames tcpreplay sent, in what time."""
        speed = "--topspeed" if pps is None else f"--pps={pps}"
        command = ["tcpreplay", "--no-flow-stats", speed, "-i", self._pair.near, str(capture.path)]
        done = subprocess.run(
            measure.pinned(self._other, command),
            stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        )  # fmt: skip
        found = re.search(r"Actual: (\d+) packets \(\d+ bytes\) sent in ([\d.]+) seconds", done.stdout)
        if done.returncode or found is None or int(found[1]) != capture.frames:
            fail(f"tcpreplay: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return int(found[1]), float(found[2])


def _received(pair: network.Pair) -> int:
    """Frames that have come in on the far end of the cable."""
    out = subprocess.run(
        ["ip", "-n", pair.namespace, "-j", "-s", "link", "show", pair.far], capture_output=True, check=True
    ).stdout
    received: int = msgspec.json.decode(out)[0]["stats64"]["rx"]["packets"]
    return received


@contextlib.contextmanager
def records_file() -> Iterator[Path]:
    path = measure.FOLDER / "live.jsonl"
    path.unlink(missing_ok=True)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def held(bench: Bench, capture: Capture, rate: int | None, sink: str) -> None:
    print(
        f"\nheld: {capture.frames:,} frames, {capture.bytes / 1e6:,.0f} MB, {capture.exchanges:,} exchanges", flush=True
    )
    with records_file() as path:
        sent = bench.send(capture, sink or f"file:{path}", pps=rate)
        ids = set()
        if not sink:
            decode = msgspec.json.Decoder(_Record).decode
            with path.open("rb") as lines:
                ids = {bytes.fromhex(decode(line).event.id) for line in lines}
    _print(sent)
    exchanges, frames = sent.ledger["exchanges"], sent.ledger["frames"]
    print(f"  exchanges sent {capture.exchanges:,}, recorded complete {exchanges['complete']:,}"
          + ("" if sink else f", different ids {len(ids):,}"))  # fmt: skip
    wrong = []
    if frames["dropped_by_kernel"] or frames["unread"]:
        wrong.append(f"{frames['dropped_by_kernel'] + frames['unread']:,} frames were lost")
    if not exchanges["complete"] == exchanges["total"] == sent.ledger["records"]["delivered"] == capture.exchanges:
        wrong.append("not every exchange is a complete record")
    if not sink and len(ids) != capture.exchanges:
        wrong.append("an id is there twice, or not at all")
    print("  HELD: no drop, every exchange once" if not wrong else f"  NOT HELD: {'; '.join(wrong)}", flush=True)


def over(bench: Bench, capture: Capture) -> None:
    with records_file() as path:
        replay = subprocess.run(
            [str(measure.PROGRAM), "--read", str(capture.path), "--sink", f"file:{path}", "--quiet"],
            env=measure.environment(), check=False,
        )  # fmt: skip
        if replay.returncode:
            fail(f"the replay: exit code {replay.returncode}")
        wanted = {record["event"]["id"]: _digest(record) for record in _records(path)}
    if len(wanted) != capture.exchanges:
        fail(f"the replay has {len(wanted):,} ids, must be {capture.exchanges:,}")
    handicaps = [("a ring of 128 KiB", measure.PROGRAM, SMALL_RING)]
    if measure.UNCOMPILED.exists():
        handicaps.append(("uncompiled", measure.UNCOMPILED, ()))
    for name, program, arguments in handicaps:
        print(f"\nover, {name}: {capture.frames:,} frames, {capture.exchanges:,} exchanges", flush=True)
        with records_file() as path:
            sent = bench.send(capture, f"file:{path}", *arguments, program=program)
            _print(sent)
            whole = equal = others = 0
            ids = set()
            first = ""
            for record in _records(path):
                identity = record["event"]["id"]
                ids.add(identity)
                if not record["http_capture"]["complete"]:
                    others += 1
                    continue
                whole += 1
                if wanted.get(identity) == _digest(record):
                    equal += 1
                elif not first:
                    first = msgspec.json.encode(record).decode()
        dropped = sent.ledger["frames"]["dropped_by_kernel"] + sent.ledger["segments"]["shed"]
        print(f"  whole exchanges {whole:,} of {capture.exchanges:,}, equal to the replay's {equal:,};"
              f" parts of exchanges {others:,}, marked so")  # fmt: skip
        if not dropped:
            print("  NOTHING WAS LOST: this shows nothing")
        elif equal != whole or len(ids) != whole + others:
            print(f"  NOT EXACT: {whole - equal:,} differ, {whole + others - len(ids):,} ids twice; the first: {first}")
        else:
            print("  EXACT: what was lost is counted, what was kept is what the replay has", flush=True)


def _print(sent: Sent) -> None:
    frames = sent.ledger["frames"]
    print(f"  sent {sent.frames:,} in {sent.seconds:.1f} s, {sent.frames / sent.seconds:,.0f} frames/s; dropped by the"
          f" kernel {frames['dropped_by_kernel']:,}, unread {frames['unread']:,}, shed"
          f" {sent.ledger['segments']['shed']:,}; http-capture used"
          f" {sent.cpu_seconds / sent.seconds:.0%} of its core; {sent.pauses}")  # fmt: skip


class _Event(msgspec.Struct):
    id: str


class _Record(msgspec.Struct):
    event: _Event


def _records(path: Path) -> Iterator[Json]:
    decode = msgspec.json.Decoder().decode
    with path.open("rb") as lines:
        for line in lines:
            yield decode(line)


def _digest(record: Json) -> bytes:
    """Of what must be equal; the record is changed."""
    del record["@timestamp"]
    for name in ("start", "end", "duration"):
        record["event"].pop(name, None)
    for name in ("timing", "instance", "midstream", "uncertain"):
        record["http_capture"].pop(name, None)
    record["observer"].pop("ingress", None)
    return hashlib.blake2b(msgspec.json.encode(record, order="sorted"), digest_size=16).digest()


if __name__ == "__main__":
    main()
