"""Speed of the installed http-capture on generated captures, beside tcpdump and other programs.

    make bench  [ARGS="--pairs 9 --captures short"]
    make bench ARGS=--peers                           the slow ones too: tshark, tcpflow, GoReplay, Packetbeat

Everything is pinned to one core and takes turns, so a slow minute of the machine slows all. The floor is
`tcpdump -r F -w /dev/null`: read and copy. The ratio is (http-capture less its start) / (tcpdump less its start); the
starts are measured on an empty capture in the same turns.

Before the turns, every record of the capture is compared with what the generator put into it: addresses, first lines,
headers, bodies, one each and no id twice. A measured run whose ledger has not every frame, every exchange, and as many
bytes of records as that comparison read, ends the benchmark, however fast it was.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import generate
import measure
import msgspec
import peers
from measure import Capture, Run, check_ledger, fail, median

CAPTURES = ("mixed", "short")
TARGETS = {"mixed": 1.6, "short": 4.0}  # times the floor, both less their starts
NOTHING_LEFT = 1e-6  # seconds
MOST_MB = 200
KEPT_BYTES = 65536
TEXTUAL = ("json", "html", "javascript", "css")


@dataclass
class Row:
    """The runs of one program on one capture."""

    title: str
    frames: int
    exchanges: int
    runs: list[Run] = field(default_factory=list)
    starts: list[Run] = field(default_factory=list)
    note: str = ""
    failed: bool = False

    @property
    def start(self) -> float:
        return median(run.seconds for run in self.starts) if self.starts else 0.0

    @property
    def net(self) -> list[float]:
        """Less the start; where nothing is left there is no rate."""
        return [max(run.seconds - self.start, NOTHING_LEFT) for run in self.runs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captures", nargs="+", choices=CAPTURES, default=CAPTURES)
    parser.add_argument("--frames", type=int, default=generate.FRAMES, help="size of the captures")
    parser.add_argument("--pairs", type=int, default=5, help="measured turns, after a warm-up")
    parser.add_argument("--core", type=int, default=measure.default_core())
    parser.add_argument("--sink", default="null", help="where the records go: null, file:PATH")
    names = [peer.name for peer in peers.ALL if peer.slow]
    parser.add_argument("--peers", nargs="*", choices=names, help="slow ones too: all, or these", metavar="NAME")
    parser.add_argument("--peer-runs", type=int, default=1, help="turns that the slow ones take part in (1)")
    parser.add_argument("--peer-frames", type=int, help="a smaller capture for the slow ones, with its rates")
    parser.add_argument("--peer-limit", type=float, default=300.0, metavar="SECONDS", help="for one such run (300)")
    parser.add_argument("--workers", type=int, help="http-capture with so many workers too, on all cores")
    parser.add_argument("--strict", action="store_true", help="exit code 1 where a target is missed")
    options = parser.parse_args()
    measure.ends_by_exception()
    measure.need("tcpdump", "taskset")
    print(measure.version())
    print(f"{measure.machine()}; core {options.core}; {options.pairs} turns after a warm-up; sink {options.sink}")
    wanted = [] if options.peers is None else options.peers or names
    taking_part = []
    for peer in peers.ALL:
        if peer.slow and peer.name not in wanted:
            continue
        if why := peer.missing():
            print(f"left out: {why}")
        else:
            taking_part.append(peer)
    options.cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    measure.keep_off(options.core)
    missed = []
    for name in options.captures:
        with measure.Pauses() as pauses:
            missed += _compare(name, taking_part, options)
        print(f"  {pauses}", flush=True)
    if missed:
        print("\n" + "\n".join(f"missed: {text}" for text in missed))
    if missed and options.strict:
        fail(f"{len(missed)} targets missed")


def _compare(name: str, taking_part: Sequence[peers.Peer], options: argparse.Namespace) -> list[str]:
    """One capture, its table. Returns which targets were missed."""
    capture = measure.capture(name, options.frames)
    empty = measure.empty()
    print(
        f"\n{name}: {capture.frames:,} frames, {capture.bytes / 1e6:,.0f} MB, {capture.exchanges:,} exchanges",
        flush=True,
    )
    record_bytes = compare_records(capture, options.core)
    workers = ["--workers", str(options.workers)] if options.workers else []
    if workers and compare_records(capture, options.cores, arguments=workers) != record_bytes:
        fail("with workers the records are others")
    print(f"  all {capture.exchanges:,} records are what was generated, {record_bytes / 1e6:,.0f} MB", flush=True)

    def tcpdump(path: Path) -> list[str]:
        return ["tcpdump", "-n", *(["-Z", "root"] if os.geteuid() == 0 else []), "-r", str(path), "-w", os.devnull]

    def ours(path: Path, *arguments: str) -> list[str]:
        return [str(measure.PROGRAM), "--read", str(path), "--sink", options.sink, "--json", *arguments]

    floor = Row("tcpdump -w /dev/null", capture.frames, 0)
    own = Row("http-capture", capture.frames, capture.exchanges)
    many = Row(f"with {options.workers} workers", capture.frames, capture.exchanges)
    rows, inputs = {}, {}
    for peer in taking_part:
        most = [options.frames, *([options.peer_frames] if peer.slow and options.peer_frames else [])]
        read = measure.capture(name, min(*most, peer.most_frames or options.frames))
        inputs[peer.name] = read
        rows[peer.name] = Row(peer.name, read.frames, read.exchanges)
    for turn in range(options.pairs + 1):  # the first is the warm-up
        results = [
            (floor.starts, measure.run(tcpdump(empty), options.core)),
            (own.starts, measure.run(ours(empty), options.core)),
            (floor.runs, measure.run(tcpdump(capture.path), options.core)),
            (own.runs, measure.run(ours(capture.path), options.core)),
        ]
        check_ledger(results[-1][1], capture.frames, capture.exchanges, record_bytes)
        if workers:
            results.append((many.starts, measure.run(ours(empty, *workers), options.cores)))
            results.append((many.runs, measure.run(ours(capture.path, *workers), options.cores)))
            check_ledger(results[-1][1], capture.frames, capture.exchanges, record_bytes)
        if turn:
            for runs, result in results:
                runs.append(result)
        for peer in taking_part:
            if not peer.slow or 1 <= turn <= options.peer_runs:
                result = _peer(peer, rows[peer.name], inputs[peer.name], options)
                if turn:
                    rows[peer.name].runs.append(result)
        print(f"  turn {turn} of {options.pairs}", end="\r", file=sys.stderr, flush=True)
    _print(floor, own, [many] if workers else [], [row for row in rows.values() if row.runs], capture)
    if workers:
        ratio = median(a / b for a, b in zip(many.net, own.net, strict=True))
        print(f"  {options.workers} workers: {ratio:.2f} times the time of one, less the starts; the same records")
    return _verdict(name, floor, own, list(rows.values()), full=options.frames == generate.FRAMES)


def _peer(peer: peers.Peer, row: Row, capture: Capture, options: argparse.Namespace) -> Run:
    if not row.starts:
        with peers.folder() as folder:
            row.starts.append(
                measure.run(peer.command(measure.empty(), folder), options.core, until=peer.until, allowed=range(256))
            )
    with peers.folder() as folder, tempfile.TemporaryFile(dir=measure.FOLDER) as nothing:
        output = (folder / "output").open("wb") if peer.exchanges else nothing
        with output:
            result = measure.run(
                peer.command(capture.path, folder), options.core, output=output, until=peer.until,
                limit_seconds=options.peer_limit if peer.slow else None, allowed=range(-64, 256),
            )  # fmt: skip
        row.note = peer.does
        if result.timed_out or result.code:
            row.failed = True
        if result.timed_out:
            row.note += f"; ended after {options.peer_limit:.0f} s, unfinished"
        elif result.code:
            row.note += f"; FAILED with exit code {result.code}: {_reason(result.errors)}"
        elif peer.exchanges is not None:
            row.note += f"; {peer.exchanges(folder / 'output'):,} of {capture.exchanges:,} exchanges"
    return result


def _reason(errors: str) -> str:
    """The line that says why."""
    lines = errors.strip().splitlines() or ["it said nothing"]
    return next((line for line in lines if "panic" in line or "rror" in line), lines[-1])[:120]


def _print(floor: Row, own: Row, more: list[Row], others: list[Row], capture: Capture) -> None:
    print(
        f"\n  {'':<21} {'runs':>4} {'s, whole process':>22} {'start':>6} {'less it':>8} {'x floor':>8} {'frames/s':>11}"
        f" {'exch./s':>8} {'peak MB':>8} {'cpu s':>7}"
    )
    base = median(floor.net) / floor.frames
    for row in (floor, own, *more, *others):
        net = median(row.net)
        rate = f"{row.exchanges / net:,.0f}" if row.exchanges else ""
        less = f"{net:>8.3f} {net / row.frames / base:>8.2f} {row.frames / net:>11,.0f} {rate:>8}"
        if net <= NOTHING_LEFT:  # the start, which is measured once for a peer, took longer than the runs
            less = f"{'none':>8} {'':>8} {'':>11} {'':>8}"
        peak = max(run.peak_bytes for run in row.runs) / 1e6
        cpu = median(run.cpu_seconds for run in row.runs)
        print(
            f"  {row.title:<21} {len(row.runs):>4} {measure.spread([run.seconds for run in row.runs]):>22}"
            f" {row.start:>6.3f} {less}"
            f" {peak:>8,.0f} {cpu:>7.3f}"
        )
    for row in others:
        smaller = "" if row.frames == capture.frames else f" (on {row.frames:,} frames)"
        print(f"  {row.title}{smaller}: {row.note}")


def _verdict(name: str, floor: Row, own: Row, others: list[Row], *, full: bool) -> list[str]:
    ratios = sorted(a / b for a, b in zip(own.net, floor.net, strict=True))
    ratio = median(ratios)
    print(f"  {ratio:.2f} times the floor ({ratios[0]:.2f} to {ratios[-1]:.2f}, turn by turn), target {TARGETS[name]}")
    base = median(run.cpu_seconds for run in floor.runs) - median(run.cpu_seconds for run in floor.starts)
    cpu = median(run.cpu_seconds for run in own.runs) - median(run.cpu_seconds for run in own.starts)
    if base > 0:
        print(f"  {cpu / base:.2f} times by CPU time, which other load on the machine changes less")
    missed = []
    if not full:
        print("  no target counts on a capture of another size")
        return []
    if ratio > TARGETS[name]:
        missed.append(f"{name}: {ratio:.2f} times the floor, target {TARGETS[name]}")
    peak = max(run.peak_bytes for run in own.runs) / 1e6
    if peak > MOST_MB:
        missed.append(f"{name}: {peak:.0f} MB, target {MOST_MB}")
    for row in others:
        # Raw time on both sides, by the frame: the start of an interpreter is no advantage here.
        theirs, mine = (median(run.seconds for run in one.runs) / one.frames for one in (row, own))
        if row.runs and not row.failed and theirs < mine:
            missed.append(f"{name}: {row.title} takes {theirs * 1e9:.0f} ns a frame, http-capture {mine * 1e9:.0f}")
    return missed


# What is in the records.


def compare_records(
    capture: Capture, core: int | str, program: Path = measure.PROGRAM, arguments: Sequence[str] = ()
) -> int:
    """Replays the capture and compares every record with what the generator put into it. Returns the bytes of the
    records, without the ends of the lines."""
    expected = {
        exchange.target: exchange for exchange in generate.exchanges(capture.name, frames=_frames_asked(capture.path))
    }
    decode = msgspec.json.Decoder().decode
    ids = set()
    size = 0
    process = subprocess.Popen(
        measure.pinned(core, [str(program), "--read", str(capture.path), "--sink", "stdout", "--quiet", *arguments]),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=measure.environment(),
    )  # fmt: skip
    assert process.stdout is not None
    try:
        for line in process.stdout:
            record = decode(line)
            size += len(line) - 1
            ids.add(record["event"]["id"])
            target = record["url"]["original"]
            exchange = expected.pop(target, None)
            if exchange is None:
                fail(f"a record that must not be: {target}")
            if difference := compare_record(capture.name, record, exchange):
                fail(f"{capture.path.name}, {target}: {difference}")
    except BaseException:
        process.kill()
        raise
    finally:
        process.wait()
    if process.returncode or expected or len(ids) != capture.exchanges:
        fail(f"exit code {process.returncode}, {len(expected):,} exchanges without a record, {len(ids):,} ids")
    return size


def _frames_asked(path: Path) -> int:
    return int(path.stem.rpartition("-")[2])


def compare_record(name: str, record: measure.Json, exchange: generate.Exchange) -> str:
    """What of the record is not what was generated; empty when all is."""
    http = record["http"]
    request, response = http["request"], http["response"]
    sent = generate.messages(name, exchange)
    found = {
        "complete": record["http_capture"]["complete"],
        "client": (record["source"]["ip"], record["source"]["port"]),
        "server": (record["destination"]["ip"], record["destination"]["port"]),
        "method": request["method"],
        "status": response["status_code"],
        "request headers": request["headers"],
        "response headers": response["headers"],
    }
    wanted = {
        "complete": True,
        "client": exchange.client,
        "server": exchange.server,
        "method": exchange.method,
        "status": exchange.status,
        "request headers": _headers(sent[0]),
        "response headers": _headers(sent[1]),
    }
    request_body, response_body = generate.bodies(exchange)
    for side, message, kind, body in (
        ("request", request, "json", request_body),
        ("response", response, exchange.kind, response_body),
    ):
        found[f"bytes of the {side}"] = message.get("body", {}).get("bytes", 0)
        wanted[f"bytes of the {side}"] = len(body)
        if body and kind in TEXTUAL:
            found[f"body of the {side}"] = message["body"].get("content")
            wanted[f"body of the {side}"] = body[:KEPT_BYTES].decode()
    for what, value in wanted.items():
        if found[what] != value:
            return f"{what}: {found[what]!r}, must be {value!r}"
    return ""


def _headers(message: bytes) -> dict[str, list[str]]:
    """As the record has them: names in small letters, the cookie redacted."""
    fields: dict[str, list[str]] = {}
    for line in message.partition(b"\r\n\r\n")[0].decode().split("\r\n")[1:]:
        name, _, value = line.partition(": ")
        fields.setdefault(name.lower(), []).append("REDACTED" if name == "Cookie" else value)
    return fields


if __name__ == "__main__":
    main()
