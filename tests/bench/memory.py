"""Memory with many connections, growth of time with the input, long connections, starts.

    make bench-memory  [ARGS="--parts starts hour --connections 250000"]

connections   1,000,000 connections that stay open: idle (handshake only), active (an exchange done, keep-alive), half
              (a request without its response). Peak memory, and bytes a connection: peak less that of a single one.
many          the same exchange again and again on 300 connections, on 20,000 and on 300,000 that are open, in an order
              that no cache foresees: the CPU time of one exchange, that of opening them taken off.
growth        16 times 1,000,000 frames of each capture, through standard input (nothing is written to disk; the copies
              are between other addresses). CPU time, as the reader may wait for the writer, of each copy within one
              process: a frame of the first 1, 4 and 16 copies is to take the same within 10 %, and the last four copies
              what the first four take; memory is not to grow.
hour          one keep-alive connection: 100,000, 200,000 and 400,000 exchanges over an hour. The CPU time of one is to
              be the same in each stretch.
starts        start to the first record, `--help`, a start that is refused.
"""

import argparse
import contextlib
import itertools
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import BinaryIO

import generate
import measure
from measure import Run, fail, median

sys.path.insert(0, str(measure.ROOT / "tests"))
import network

PARTS = ("connections", "many", "growth", "hour", "starts")
COPIES = 16
SIZES = (1, 4, COPIES)
MOST_BYTES = 2_000_000_000
SECONDS = {"first record": 0.4, "--help": 0.1, "refused start": 0.15}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--connections", type=int, default=1_000_000)
    parser.add_argument("--many", type=int, default=300_000, help="connections of the last stretch of many")
    parser.add_argument("--turns", type=int, default=600_000, help="exchanges of each stretch of many")
    parser.add_argument("--frames", type=int, default=generate.FRAMES, help="size of the captures that are copied")
    parser.add_argument(
        "--captures", nargs="+", choices=("mixed", "short"), default=("mixed", "short"), help="for growth"
    )
    parser.add_argument("--exchanges", type=int, default=100_000, help="of the shortest hour")
    parser.add_argument("--runs", type=int, default=5, help="of many, growth and each hour; medians count")
    parser.add_argument("--core", type=int, default=measure.default_core())
    options = parser.parse_args()
    measure.ends_by_exception()
    measure.need("taskset")
    measure.FOLDER.mkdir(parents=True, exist_ok=True)
    print(measure.version())
    print(f"{measure.machine()}; core {options.core}")
    measure.keep_off(options.core)
    for part in options.parts:
        print(f"\n{part}", flush=True)
        PARTS_RUN[part](options)


def replay(core: int, feed: Callable[[BinaryIO, Callable[[], float]], None], *arguments: str) -> Run:
    """What the program makes of a capture on its standard input. Its exit code must be 0, so its ledger balances."""
    return measure.run([str(measure.PROGRAM), "--read", "-", "--sink", "null", "--json", *arguments], core, feed=feed)


def start_seconds(core: int) -> float:
    """CPU time of a run on nothing."""
    return median(replay(core, lambda out, _: _write(out, measure.PCAP_HEADER)).cpu_seconds for _ in range(3))


def _write(out: BinaryIO, content: bytes) -> None:
    out.write(content)


# Many connections.


def connections(options: argparse.Namespace) -> None:
    count = options.connections
    for kind, what in (("idle", "handshake only"), ("active", "an exchange done"), ("half", "a request waits")):
        peaks = {}
        for number in (1, count):
            result = replay(options.core, lambda out, _, n=number, k=kind: generate.open_connections(out, n, k),
                            "--set", f"tcp.max_connections={count}")  # fmt: skip
            ledger = measure.ledger_of(result)
            opened, evicted = ledger["connections"]["opened"], ledger["connections"]["closed"]["evicted"]
            records = ledger["exchanges"]["total"]
            if opened != number or evicted or records != (0 if kind == "idle" else number):
                fail(f"{kind}: {opened:,} connections opened, {evicted:,} evicted, {records:,} exchanges")
            peaks[number] = result.peak_bytes
        each = (peaks[count] - peaks[1]) / count
        verdict = "held" if peaks[count] < MOST_BYTES else "MISSED"
        print(
            f"  {count:,} {kind} ({what}): peak {peaks[count] / 1e6:,.0f} MB, {each:,.0f} bytes a connection;"
            f" target {MOST_BYTES / 1e9:.0f} GB {verdict}; {result.cpu_seconds:.1f} s cpu",
            flush=True,
        )


# What a connection costs where many others are open.


def many(options: argparse.Namespace) -> None:
    first = 0.0
    for count in (options.many // 1000, options.many // 15, options.many):
        rounds = -(-options.turns // count)
        spent: dict[int, list[float]] = {0: [], rounds: []}
        for _ in range(options.runs):
            for number, seconds in spent.items():
                result = replay(
                    options.core,
                    lambda out, _, n=count, more=number: generate.open_connections(out, n, "active", more),
                    "--set", f"tcp.max_connections={2 * options.many}",
                )  # fmt: skip
                ledger = measure.ledger_of(result)
                found = ledger["connections"]["opened"], ledger["exchanges"]["complete"]
                if found != (count, count * (number + 1)):
                    fail(f"{count:,} connections, {number + 1} exchanges each: {found}")
                seconds.append(result.cpu_seconds)
        each = (median(spent[rounds]) - median(spent[0])) / (count * rounds) * 1e6
        first = first or each
        print(
            f"  {count:>9,} connections: {each:.2f} us an exchange (cpu), {each / first:.2f} of the first", flush=True
        )


# Growth with the input.


def growth(options: argparse.Namespace) -> None:
    """Within one process: one of a second beside one of twenty would tell how the machine's speed changes."""
    start = start_seconds(options.core)
    for name in options.captures:
        capture = measure.capture(name, options.frames)
        copies = measure.Copies(capture)
        runs, peak = [], 0
        for _ in range(options.runs):
            marks = [start]
            result = replay(
                options.core,
                lambda out, cpu, made=copies, to=marks: made.write(COPIES, out, lambda: to.append(cpu())),
            )
            measure.check_ledger(result, capture.frames * COPIES, capture.exchanges * COPIES)
            runs.append([after - before for before, after in itertools.pairwise(marks)])
            peak = max(peak, result.peak_bytes)
        each = [median(copy) for copy in zip(*runs, strict=True)]
        means = {size: sum(each[:size]) / size for size in SIZES}
        for size, mean in means.items():
            print(
                f"  {name} x {size:>2}: {mean * 1e9 / capture.frames:,.0f} ns a frame (cpu, less the start),"
                f" {mean / means[SIZES[0]]:.3f} of the smallest's"
            )
        last = sum(each[-4:]) / sum(each[:4])
        worst = max(abs(ratio - 1) for ratio in (last, *(mean / means[SIZES[0]] for mean in means.values())))
        print(
            f"  {name}: the last four copies take {last:.3f} of the first four; {worst:.1%} from linear, target 10 %"
            f" {'held' if worst <= 0.1 else 'MISSED'}; single copies {min(map(min, runs)):.2f} to"
            f" {max(map(max, runs)):.2f} s; peak {peak / 1e6:,.0f} MB",
            flush=True,
        )


# One connection for an hour.


def hour(options: argparse.Namespace) -> None:
    sizes = [options.exchanges * factor for factor in (1, 2, 4)]
    start = start_seconds(options.core)
    spent: dict[int, list[float]] = {size: [] for size in sizes}
    peaks = {}
    for _ in range(options.runs):
        for size in sizes:
            result = replay(options.core, lambda out, _, n=size: keep_alive(out, n))
            measure.check_ledger(result, 3 + 2 * size, size)
            spent[size].append(result.cpu_seconds - start)
            peaks[size] = result.peak_bytes
    cpu = {0: 0.0, **{size: median(values) for size, values in spent.items()}}
    stretches = []
    for before, size in zip([0, *sizes], sizes, strict=False):
        each = (cpu[size] - cpu[before]) / (size - before)
        stretches.append(each)
        print(
            f"  exchanges {before:>9,} to {size:>9,}: {each * 1e6:.2f} us each (cpu), peak {peaks[size] / 1e6:,.0f} MB"
        )
    print(f"  the last over the first: {stretches[-1] / stretches[0]:.3f}", flush=True)


def keep_alive(out: BinaryIO, count: int) -> None:
    """One connection with so many exchanges, spread over an hour. Its sequence numbers pass 2**32."""
    client, server = ("10.0.0.1", 40000), ("172.16.0.1", 80)
    halves = generate._Half(client, server, 1000), generate._Half(server, client, 2**32 - 500_000)
    out.write(measure.PCAP_HEADER)
    header = struct.Struct("<IIII").pack
    clock_us = generate.START_SECONDS * 1_000_000
    step_us = 3_600_000_000 // (2 * count)
    pieces: list[bytes] = []

    def put(frames: Iterator[bytes]) -> None:
        nonlocal clock_us
        for frame in frames:
            pieces.append(header(clock_us // 1_000_000, clock_us % 1_000_000, len(frame), len(frame)) + frame)
            clock_us += step_us

    put(generate._open(*halves))
    for _ in range(count):
        put(generate._send(*halves, generate.REQUEST))
        put(generate._send(halves[1], halves[0], generate.RESPONSE))
        if len(pieces) > 4096:
            out.write(b"".join(pieces))
            pieces.clear()
    out.write(b"".join(pieces))


# Starts.


def starts(options: argparse.Namespace) -> None:
    repeats = 15
    path = measure.FOLDER / "one.pcap"
    generate.write("short", path, count=1)
    content = path.read_bytes()
    path.unlink()
    found = {
        "first record": [first_record(options.core, content) for _ in range(repeats)],
        "--help": [measure.run([str(measure.PROGRAM), "--help"], options.core).seconds for _ in range(repeats)],
    }
    if why := network.why_not():
        print(f"  refused start: {why}")
    else:
        found["refused start"] = refused(options.core, repeats)
    for what, seconds in found.items():
        verdict = "held" if median(seconds) < SECONDS[what] else "MISSED"
        print(f"  {what}: {measure.spread(seconds)} s, target {SECONDS[what]} {verdict}", flush=True)


def first_record(core: int, content: bytes) -> float:
    """Seconds until the record of a capture is on standard output, while its standard input stays open."""
    begin = time.perf_counter()
    process = subprocess.Popen(
        measure.pinned(core, [str(measure.PROGRAM), "--read", "-", "--sink", "stdout", "--quiet"]),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=measure.environment(),
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(content)
        process.stdin.flush()
        line = process.stdout.readline()
        seconds = time.perf_counter() - begin
        process.stdin.close()
        if not line.startswith(b"{") or process.stdout.read() or process.wait():
            fail(f"not one record: {line[:200]!r}")
    finally:
        process.kill()
        process.wait()
    return seconds


def refused(core: int, repeats: int) -> list[float]:
    """Seconds that a start takes which finds the NIC held by another."""
    seconds = []
    with contextlib.ExitStack() as stack:
        pair = stack.enter_context(network.veth())
        stack.enter_context(network.inside(pair.namespace))
        said = measure.FOLDER / "holder.err"
        pidfile = measure.FOLDER / "holder.pid"
        command = [str(measure.PROGRAM), "--iface", pair.far, "--sink", "null", "--pidfile"]
        errors = stack.enter_context(said.open("wb"))
        holder = subprocess.Popen([*command, str(pidfile)], stdin=subprocess.DEVNULL, stderr=errors,
                                  env=measure.environment())  # fmt: skip
        stack.callback(holder.wait)
        stack.callback(holder.kill)
        deadline = time.monotonic() + 30
        while "recording " not in said.read_text():
            if holder.poll() is not None or time.monotonic() > deadline:
                fail(f"http-capture does not record:\n{said.read_text()[-2000:]}")
            time.sleep(0.01)
        for _ in range(repeats):
            result = measure.run([*command, str(pidfile)], core, allowed=[75])
            if "REFUSED" not in result.errors:
                fail(f"not refused: {result.errors}")
            seconds.append(result.seconds)
    return seconds


PARTS_RUN = {"connections": connections, "many": many, "growth": growth, "hour": hour, "starts": starts}


if __name__ == "__main__":
    main()
