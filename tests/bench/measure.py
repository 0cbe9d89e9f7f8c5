"""What the scripts of this folder share: captures, copies of them, programs pinned to a core, the ledger, the machine.

Time is that of a whole process, from start to exit; `Run.seconds` minus that of a run on an empty capture is what the
frames cost. The script itself keeps off the core that it measures on.
"""

import fcntl
import hashlib
import json
import os
import shutil
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import generate

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(os.environ.get("BENCH_FOLDER") or ROOT / "build" / "bench").resolve()  # gigabytes
PROGRAM = Path(sys.executable).with_name("http-capture")
UNCOMPILED = ROOT / ".venv" / "bin" / "http-capture"
PCAP_HEADER = generate.PCAP_HEADER

IDLE_SECONDS = 0.3
Json = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One process, from start to exit, or up to the line that was waited for."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    errors: str
    timed_out: bool = False  # it was ended, as its time was up
    code: int = 0
    threads: tuple[tuple[str, float, float], ...] = ()  # where asked for: name, user and system time; the first is main


@dataclass(frozen=True)
class Capture:
    name: str
    path: Path
    frames: int
    exchanges: int

    @property
    def bytes(self) -> int:
        return self.path.stat().st_size


class Pauses:
    """Within `with`: how long the machine stood still. The host of a virtual machine can stop all its cores at once,
    for most of each 100 ms where they use more than is allowed to them; inside, no counter shows it. Here a thread
    sleeps for 2 ms again and again, and is woken too late."""

    LATE_SECONDS = 0.02

    def __init__(self) -> None:
        self.seconds = self.longest = self._total = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Pauses":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        begin = last = time.monotonic()
        while not self._over.wait(0.002):
            now = time.monotonic()
            if now - last > self.LATE_SECONDS:
                self.seconds += now - last
                self.longest = max(self.longest, now - last)
            last = now
        self._total = time.monotonic() - begin

    def __str__(self) -> str:
        share = self.seconds / max(self._total, 1e-9)
        return f"the machine stood still for {share:.1%} of the time, {self.longest * 1e3:.0f} ms at most"


def fail(text: str) -> NoReturn:
    """Ends the script: one line, exit code 1."""
    sys.exit(f"{Path(sys.argv[0]).stem}: {text}")


def need(*tools: str, program: Path = PROGRAM) -> None:
    """Ends the script where one of these, or the program itself, is not installed."""
    packages = {"taskset": "util-linux", "ip": "iproute2", "valgrind": "valgrind", "java": "default-jre-headless"}
    for tool in tools:
        if shutil.which(tool) is None:
            fail(f"{tool} is not installed (Debian: apt install {packages.get(tool, tool)})")
    if not program.exists():
        fail(f"no {program.relative_to(ROOT) if program.is_relative_to(ROOT) else program}: run it by make")


def environment() -> dict[str, str]:
    """This one's, without settings of http-capture."""
    return {name: value for name, value in os.environ.items() if not name.startswith("HTTP_CAPTURE_")}


def ends_by_exception() -> None:
    """Ctrl-C, SIGTERM and SIGHUP end the script by an exception, so that what it made is removed."""

    def stop(number: int, _: object) -> None:
        sys.exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)


def keep_off(core: int) -> int:
    """This process and all that it does not pin leave the core alone, where there is another. Returns that one."""
    others = sorted(os.sched_getaffinity(0) - {core})
    if not others:
        print("one core only: what measures runs on the core that is measured")
        return core
    os.sched_setaffinity(0, others)
    return others[0]


def default_core() -> int:
    return max(os.sched_getaffinity(0))


def pinned(core: int | str, arguments: Iterable[str]) -> list[str]:
    return ["taskset", "-c", str(core), *arguments]


def run(
    arguments: Sequence[str],
    core: int | str,
    *,
    feed: Callable[[BinaryIO, Callable[[], float]], None] | None = None,
    output: int | BinaryIO = subprocess.DEVNULL,
    limit_seconds: float | None = None,
    until: str = "",
    allowed: Sequence[int] = (0,),
    program_environment: dict[str, str] | None = None,
    threads: bool = False,
) -> Run:
    """Runs a program pinned to the core. Its exit code must be one of `allowed`, unless it was ended for its time.

    `feed` writes its standard input; it is also given what tells the CPU time that the program has used so far.
    `until`: it does not end by itself; once this text is on its standard error, and it uses no more CPU, it is asked to
    end, and the time is up to when it last used some."""
    with tempfile.TemporaryFile() as errors:
        start = time.perf_counter()
        process = subprocess.Popen(
            pinned(core, arguments),
            stdin=subprocess.PIPE if feed else subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            cwd=FOLDER,
            env=program_environment or environment(),
        )
        peak = _Peak(process.pid, threads)
        watch = _Watch(process.pid, start, errors.fileno(), until, limit_seconds)
        try:
            if feed is not None:
                assert process.stdin is not None
                fcntl.fcntl(process.stdin, fcntl.F_SETPIPE_SZ, 1 << 20)  # fewer turns between writer and reader
                try:
                    with process.stdin:
                        feed(process.stdin, lambda: _cpu_seconds(process.pid))
                except BrokenPipeError:
                    pass  # it has ended: its exit code says why
            _, status, usage = os.wait4(process.pid, 0)
            ended = time.perf_counter()
        except BaseException:
            process.kill()
            process.wait()
            raise
        finally:
            watch.stop()
            peak.stop()
        seconds = (watch.seen_at or ended) - start
        process.returncode = os.waitstatus_to_exitcode(status)
        errors.seek(0)
        text = errors.read().decode(errors="replace")
    if process.returncode not in allowed and not watch.timed_out and not watch.seen_at:
        fail(f"exit code {process.returncode}: {' '.join(arguments)}\n{text[-2000:]}")
    cpu = usage.ru_utime + usage.ru_stime
    code = 0 if watch.seen_at else process.returncode
    return Run(seconds, cpu, peak.bytes, text, watch.timed_out, code, tuple(peak.threads.values()))


def _cpu_seconds(pid: int) -> float:
    """Of its main thread."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


class _Peak(threading.Thread):
    """Looks at the resident memory of a process every 20 ms, and where wanted at the CPU time of its threads. The
    ru_maxrss of wait4 would not do: it starts with what this program had at the fork."""

    def __init__(self, pid: int, threads: bool) -> None:
        super().__init__(daemon=True)
        self.bytes = 0
        self.threads: dict[int, tuple[str, float, float]] = {}
        self._tasks = Path(f"/proc/{pid}/task") if threads else None
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
            if self._tasks is not None:
                self._look_at(self._tasks)

    def _look_at(self, tasks: Path) -> None:
        tick = os.sysconf("SC_CLK_TCK")
        try:
            for task in sorted(map(int, os.listdir(tasks))):
                name, _, rest = (tasks / f"{task}/stat").read_text().partition("(")[2].rpartition(")")
                fields = rest.split()
                self.threads[task] = name, int(fields[11]) / tick, int(fields[12]) / tick
        except OSError:
            pass  # one has ended

    def stop(self) -> None:
        self._ended.set()
        self.join()


class _Watch(threading.Thread):
    """Ends a process that has said what it was to say and is idle since, or whose time is up."""

    MOST_SECONDS = 60.0  # after what it said

    def __init__(self, pid: int, start: float, errors: int, until: str, limit_seconds: float | None) -> None:
        super().__init__(daemon=True)
        self.seen_at = 0.0
        self.timed_out = False
        self._pid = pid
        self._start = start
        self._errors = errors
        self._until = until.encode()
        self._limit = limit_seconds
        self._ended = threading.Event()
        if until or limit_seconds is not None:
            self.start()

    def run(self) -> None:
        asked = said = used = used_at = 0.0
        while not self._ended.wait(0.01):
            now = time.perf_counter()
            if asked:
                if now - asked > 10:
                    os.kill(self._pid, signal.SIGKILL)
                    return
                continue
            if said:
                ticks = cpu_seconds(self._pid)
                if ticks != used:
                    used, used_at = ticks, now
                if now - used_at < IDLE_SECONDS and now - said < self.MOST_SECONDS:
                    continue
                self.seen_at = used_at
            elif self._until and self._until in os.pread(self._errors, 1 << 20, 0):
                said = used_at = now
                continue
            elif self._limit is not None and now - self._start > self._limit:
                self.timed_out = True
            else:
                continue
            asked = now
            os.kill(self._pid, signal.SIGTERM)

    def stop(self) -> None:
        self._ended.set()
        if self.is_alive():
            self.join()


def cpu_seconds(pid: int) -> float:
    """User and system time of a running process so far; 0 when it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def ledger_of(result: Run) -> Json:
    """The ledger that `--json` printed."""
    for line in reversed(result.errors.splitlines()):
        if line.startswith('{"event": "ledger"'):
            found: Json = json.loads(line)
            return found
    fail(f"no ledger in:\n{result.errors[-2000:]}")


def check_ledger(result: Run, frames: int, exchanges: int, record_bytes: int | None = None) -> Json:
    """Every frame read, every exchange complete and a record, the sums right; the records as long as they should be.
    A wrong run ends the script, however fast it was."""
    ledger = ledger_of(result)
    expected = {
        "frames read": (ledger["frames"]["read"], frames),
        "complete exchanges": (ledger["exchanges"]["complete"], exchanges),
        "records": (ledger["records"]["delivered"], exchanges),
        "balanced": (ledger["balanced"], True),
    }
    if record_bytes is not None:
        expected["bytes of records"] = (ledger["records"]["bytes"], record_bytes)
    for what, (found, wanted) in expected.items():
        if found != wanted:
            fail(f"{what}: {found}, must be {wanted}")
    return ledger


def median(values: Iterable[float]) -> float:
    return statistics.median(values)


def spread(values: Sequence[float], form: str = ".3f") -> str:
    """`median (least-most)`."""
    return f"{median(values):{form}} ({min(values):{form}}-{max(values):{form}})"


def machine() -> str:
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    load = os.getloadavg()[0]
    return f"{model}, {os.cpu_count()} cores, Python {sys.version.split()[0]}; load average at the start {load:.1f}"


def version(program: Path = PROGRAM) -> str:
    return subprocess.run(
        [str(program), "--version"], capture_output=True, text=True, check=True, env=environment()
    ).stdout.strip()


# Captures.


def capture(name: str, frames: int) -> Capture:
    """The capture, made where it is not there yet; its facts are beside it."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{name}-{frames}.pcap"
    facts = path.with_suffix(".json")
    made = hashlib.sha256(Path(generate.__file__).read_bytes()).hexdigest()
    if path.exists() and facts.exists():
        known = json.loads(facts.read_text())
        if known["generator"] == made and known["bytes"] == path.stat().st_size:
            return Capture(name, path, known["frames"], known["exchanges"])
    print(f"making {path.name} ...", file=sys.stderr, flush=True)
    new = path.with_suffix(".new")
    written, exchanges = generate.write(name, new, frames=frames)
    new.replace(path)
    facts.write_text(
        json.dumps({"generator": made, "bytes": path.stat().st_size, "frames": written, "exchanges": exchanges})
    )
    return Capture(name, path, written, exchanges)


def empty() -> Path:
    """A capture without a frame: what a run on it takes is the start and the end of a program."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / "empty.pcap"
    path.write_bytes(PCAP_HEADER)
    return path


class Copies:
    """A generated capture again and again, each time later and between other addresses, so that all connections and all
    ids differ. The checksums stay right: what the second byte of the client's address loses, the server's gains.

    At most 20 copies of `mixed` and 60 of `short`."""

    MOST = {"mixed": 20, "short": 60}

    def __init__(self, original: Capture) -> None:
        self._content = bytearray(original.path.read_bytes())
        self._most = self.MOST[original.name]
        self._number = 0
        self._clients: dict[int, array[int]] = {}  # second byte of the address -> where it is
        self._servers = array("q")
        self._seconds: dict[int, array[int]] = {}  # -> where it is
        content = self._content
        header = struct.Struct("<IIII").unpack_from
        at = len(PCAP_HEADER)
        seconds = 0
        while at < len(content):
            seconds, _, size, _ = header(content, at)
            self._seconds.setdefault(seconds, array("q")).append(at)
            source, destination = at + 16 + 27, at + 16 + 31
            server, client = (source, destination) if content[source] == 1 else (destination, source)
            self._servers.append(server)
            self._clients.setdefault(content[client], array("q")).append(client)
            at += 16 + size
        self._span = seconds - min(self._seconds) + 1

    def __iter__(self) -> Iterator[memoryview]:
        """The frames of the next copy, until the limit; valid until the one after it is asked for."""
        content = self._content
        while self._number < self._most:
            for place in self._servers:
                content[place] = 1 + self._number
            for octet, places in self._clients.items():
                shifted = octet - self._number
                for place in places:
                    content[place] = shifted
            for seconds, places in self._seconds.items():
                raw = (seconds + self._number * self._span).to_bytes(4, "little")
                for place in places:
                    content[place : place + 4] = raw
            self._number += 1
            with memoryview(content)[len(PCAP_HEADER) :] as view:
                yield view

    def write(self, count: int, out: BinaryIO, each: Callable[[], None] = lambda: None) -> None:
        """That many copies, as one capture; after each of them, `each()`."""
        if count > self._most:
            fail(f"no more than {self._most} copies can be made")
        self._number = 0
        out.write(PCAP_HEADER)
        for view in self:
            out.write(view)
            each()
            if self._number == count:
                return


def repeated(original: Capture, count: int) -> Capture:
    """A file of that many copies, made where it is not there yet."""
    if count == 1:
        return original
    path = original.path.with_name(f"{original.path.stem}-x{count}.pcap")
    size = len(PCAP_HEADER) + (original.bytes - len(PCAP_HEADER)) * count
    facts = path.with_suffix(".json")
    made = {"of": hashlib.sha256(original.path.with_suffix(".json").read_bytes()).hexdigest()}
    if not (path.exists() and path.stat().st_size == size and facts.exists() and json.loads(facts.read_text()) == made):
        free = shutil.disk_usage(FOLDER).free
        if free < size * 1.2:
            fail(f"{size / 1e9:.0f} GB are needed in {FOLDER}, {free / 1e9:.0f} GB are free")
        print(f"making {path.name} ({size / 1e9:.1f} GB) ...", file=sys.stderr, flush=True)
        with path.with_suffix(".new").open("wb") as out:
            Copies(original).write(count, out)
        path.with_suffix(".new").replace(path)
        facts.write_text(json.dumps(made))
    return Capture(original.name, path, original.frames * count, original.exchanges * count)
