"""Speed of the installed http-capture on generated captures, against `tcpdump -r F -w /dev/null`: read and copy.

    make bench  [ARGS="--pairs 9 --peers --captures short"]

Everything is pinned to one core. The two programs take turns, so a slow minute of the machine slows both. A run whose
ledger does not have exactly the exchanges that the generator made fails the benchmark, however fast it was.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import generate

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "bench"
CAPTURES = ("mixed", "short")


@dataclass(frozen=True)
class Run:
    """One process, from start to exit."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    errors: str


@dataclass(frozen=True)
class Capture:
    path: Path
    frames: int
    exchanges: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captures", nargs="+", choices=CAPTURES, default=CAPTURES)
    parser.add_argument("--frames", type=int, default=generate.FRAMES, help="size of the captures")
    parser.add_argument("--pairs", type=int, default=5, help="measured pairs, after a warm-up")
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)))
    parser.add_argument("--sink", default="null", help="where the records go: null, file:PATH")
    parser.add_argument(
        "--peers", action="store_true", help="tshark, tcpflow and httpry too, once each, where installed"
    )
    options = parser.parse_args()
    program = Path(sys.executable).with_name("http-capture")
    if not program.exists():
        sys.exit(f"bench: no {program}: run it by `make bench`")
    if shutil.which("tcpdump") is None:
        sys.exit("bench: tcpdump is not installed: there is nothing to measure against")
    version = subprocess.run([str(program), "--version"], capture_output=True, text=True, check=True).stdout.strip()
    print(version)
    print(f"{_machine()}; core {options.core}; {options.pairs} pairs after a warm-up; sink {options.sink}")
    for name in options.captures:
        capture = _capture(name, options.frames)
        ours = [str(program), "--read", str(capture.path), "--sink", options.sink, "--json"]
        _compare(name, capture, ours, options.core, options.pairs)
        if options.peers:
            _peers(capture, options.core)


def _compare(name: str, capture: Capture, ours: list[str], core: int, pairs: int) -> None:
    floor = ["tcpdump", "-n", "-Z", "root", "-r", str(capture.path), "-w", os.devnull]
    size = capture.path.stat().st_size
    print(f"\n{name}: {capture.frames:,} frames, {size / 1e6:,.0f} MB, {capture.exchanges:,} exchanges", flush=True)
    measured: list[tuple[Run, Run]] = []
    for number in range(pairs + 1):
        pair = run(floor, core), run(ours, core)
        _check(pair[1], capture)
        if number:  # the first is the warm-up
            measured.append(pair)
    rows = ("tcpdump -w /dev/null", [a for a, _ in measured]), ("http-capture", [b for _, b in measured])
    for title, runs in rows:
        seconds = statistics.median(one.seconds for one in runs)
        print(
            f"  {title:<22} {seconds:7.3f} s ({min(r.seconds for r in runs):.3f} to {max(r.seconds for r in runs):.3f})"
            f"  {capture.frames / seconds:>11,.0f} frames/s  {size / seconds / 1e6:>7,.0f} MB/s"
            f"  {max(r.peak_bytes for r in runs) / 1e6:>6,.0f} MB peak"
            f"  {statistics.median(r.cpu_seconds for r in runs):.3f} s cpu"
        )
    seconds = statistics.median(b.seconds for _, b in measured)
    ratios = sorted(b.seconds / a.seconds for a, b in measured)
    print(
        f"  {capture.exchanges / seconds:,.0f} exchanges/s; {statistics.median(ratios):.2f} times the floor"
        f" ({ratios[0]:.2f} to {ratios[-1]:.2f}, paired); every exchange recorded, ledger balanced",
        flush=True,
    )


def _check(result: Run, capture: Capture) -> None:
    ledger = json.loads(result.errors.strip().splitlines()[-1])
    expected = {
        "frames read": (ledger["frames"]["read"], capture.frames),
        "complete exchanges": (ledger["exchanges"]["complete"], capture.exchanges),
        "records": (ledger["records"]["delivered"], capture.exchanges),
        "balanced": (ledger["balanced"], True),
    }
    for what, (found, wanted) in expected.items():
        if found != wanted:
            sys.exit(f"bench: {what}: {found}, must be {wanted}: {capture.path}")


def run(arguments: list[str], core: int) -> Run:
    """Runs a program pinned to the core; it must exit with 0. Time is the whole process, interpreter start included."""
    with tempfile.TemporaryFile() as errors:
        start = time.perf_counter()
        process = subprocess.Popen(
            ["taskset", "-c", str(core), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            cwd=FOLDER,
        )
        peak = _Peak(process.pid)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        peak.stop()
        process.returncode = os.waitstatus_to_exitcode(status)
        errors.seek(0)
        text = errors.read().decode(errors="replace")
    if process.returncode:
        sys.exit(f"bench: exit code {process.returncode}: {' '.join(arguments)}\n{text[-2000:]}")
    return Run(seconds, usage.ru_utime + usage.ru_stime, peak.bytes, text)


class _Peak(threading.Thread):
    """Looks at the resident memory of a process every 20 ms. The ru_maxrss of wait4 would not do: it starts with what
    this program had at the fork."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.bytes = 0
        self._path = Path(f"/proc/{pid}/status")
        self._ended = threading.Event()
        self.start()

    def run(self) -> None:
        while not self._ended.wait(0.02):
            try:
                status = self._path.read_text()
            except OSError:
                return
            for line in status.splitlines():
                if line.startswith("VmHWM:"):
                    self.bytes = int(line.split()[1]) * 1024

    def stop(self) -> None:
        self._ended.set()
        self.join()


def _capture(name: str, frames: int) -> Capture:
    """The capture, made where it is not there yet; its facts are beside it."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{name}-{frames}.pcap"
    facts = path.with_suffix(".json")
    made = {"generator": Path(generate.__file__).stat().st_mtime_ns}
    if path.exists() and facts.exists():
        known = json.loads(facts.read_text())
        if known["generator"] == made["generator"]:
            return Capture(path, known["frames"], known["exchanges"])
    written, exchanges = generate.write(name, path, frames=frames)
    facts.write_text(json.dumps({**made, "frames": written, "exchanges": exchanges}))
    return Capture(path, written, exchanges)


def _peers(capture: Capture, core: int) -> None:
    """Once each. They do different work: see README.md."""
    path = str(capture.path)
    with tempfile.TemporaryDirectory(dir=FOLDER) as streams:
        fields = ["http.request.method", "http.request.uri", "http.response.code", "http.content_type"]
        peers = (
            ["httpry", "-q", "-r", path, "-o", os.devnull],
            ["tcpflow", "-q", "-r", path, "-o", streams],
            ["tshark", "-n", "-r", path, "-Y", "http", "-T", "fields", *(part for f in fields for part in ("-e", f))],
        )
        for arguments in peers:
            if shutil.which(arguments[0]) is None:
                print(f"  {arguments[0]:<22} is not installed")
                continue
            result = run(arguments, core)
            rate = capture.frames / result.seconds
            peak = result.peak_bytes / 1e6
            print(
                f"  {arguments[0]:<22} {result.seconds:7.3f} s  {rate:>11,.0f} frames/s  {peak:>6,.0f} MB peak",
                flush=True,
            )


def _machine() -> str:
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return f"{model}, {os.cpu_count()} cores, Python {sys.version.split()[0]}"


if __name__ == "__main__":
    main()
