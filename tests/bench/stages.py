"""Where the time goes, by stage: instructions by callgrind, nanoseconds by sampling.

    make profile  [ARGS="--captures mixed --functions 10"]

Instructions are those of the loop over frames, on a small capture: exact, and the same in every run. What libraries
(libpython, libc, hashing) use is charged to the stage that called them, through any number of calls, in the proportion
of the calls. A stage is a compiled module; interpreted Python, such as a sink, counts for the stage that calls it.

Nanoseconds are samples of the CPU clock on a large capture, less those of a start, by library; sampling itself takes
time, so they are scaled to the CPU time of runs that are not sampled, in the same turns. The samples in libraries are
divided among the stages as the instructions in them are; the kernel (reading the file, memory) and the source are
outside the loop and stand for themselves.

Needs valgrind; without perf the second half is left out.
"""

import argparse
import re
import shutil
import subprocess
import tempfile
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import generate
import measure
from measure import Capture, fail

TOGGLE = "__pyx_pw*FrameLoop_*run"  # called from Python; gcc may take the function itself into it
PERIOD_NS = 200_000
SAMPLED_RUNS = 3
ROUNDS = 300  # of passing costs on to the callers; what is left then goes round in circles
OURS = re.compile(r"/http_capture/capture/(.+?)\.(?:cpython|abi3)[^/]*\.so$")

Function = tuple[str, str]  # object, name


@dataclass
class Profile:
    """What callgrind wrote: instructions in each function itself, and in what it called."""

    own: dict[Function, int] = field(default_factory=lambda: defaultdict(int))
    calls: dict[Function, dict[Function, int]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(int)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captures", nargs="+", choices=("mixed", "short"), default=("mixed", "short"))
    parser.add_argument("--frames", type=int, default=20_000, help="for callgrind")
    parser.add_argument("--sampled-frames", type=int, default=generate.FRAMES, help="for perf")
    parser.add_argument("--toggle", default=TOGGLE, help="the function that is the loop")
    parser.add_argument("--functions", type=int, default=0, metavar="N", help="the N dearest functions too")
    parser.add_argument("--core", type=int, default=measure.default_core())
    options = parser.parse_args()
    measure.ends_by_exception()
    measure.need("valgrind", "taskset")
    print(measure.version())
    print(f"{measure.machine()}; core {options.core}")
    sampling = shutil.which("perf") is not None
    if not sampling:
        print("no nanoseconds: perf is not installed (Debian: apt install linux-perf)")
    measure.keep_off(options.core)
    for name in options.captures:
        capture = measure.capture(name, options.frames)
        profile = callgrind(capture, options.toggle, options.core)
        charged, by_library = charge(profile)
        sampled = {}
        large = measure.capture(name, options.sampled_frames)
        if sampling:
            sampled = samples(large, options.core)
        report(capture, charged, divide(sampled, by_library), large)
        functions = sorted(profile.own.items(), key=lambda item: -item[1])[: options.functions]
        for (library, function), cost in functions:
            print(f"    {cost / capture.exchanges:>9,.0f} instructions an exchange  {_short(library)}: {function}")


def stage(library: str) -> str:
    """The module that this is; empty for a library."""
    found = OURS.search(library)
    return found[1] if found else ""


def _short(library: str) -> str:
    return stage(library) or Path(library).name


def callgrind(capture: Capture, toggle: str, core: int) -> Profile:
    with tempfile.TemporaryDirectory(dir=measure.FOLDER) as folder:
        out = Path(folder) / "callgrind"
        result = measure.run(
            [
                "valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", "--collect-atstart=no",
                f"--toggle-collect={toggle}", "--compress-strings=no", "--compress-pos=no",
                str(measure.PROGRAM), "--read", str(capture.path), "--sink", "null", "--json",
            ],
            core,
        )  # fmt: skip
        measure.check_ledger(result, capture.frames, capture.exchanges)
        profile = parse(out.read_text(errors="replace"))
    if not profile.own:
        fail(f"no function is named {toggle!r}, or it was not called: name the loop with --toggle")
    return profile


def parse(text: str) -> Profile:
    """The profile that callgrind wrote with plain names and positions. A `calls=` line is followed by the cost of the
    calls; every other line of numbers is the cost of the function itself."""
    profile = Profile()
    library = called_library = name = called = ""
    calling = False
    for line in text.splitlines():
        key, is_setting, value = line.partition("=")
        if line[:1].isdigit():
            cost = int(line.split()[1]) if " " in line else 0
            if calling:
                profile.calls[library, name][called_library or library, called] += cost
                calling, called_library = False, ""
            else:
                profile.own[library, name] += cost
        elif not is_setting:
            continue
        elif key == "ob":
            library = value
        elif key == "fn":
            name = value
        elif key == "cob":
            called_library = value
        elif key == "cfn":
            called = value
        elif key == "calls":
            calling = True
    return profile


def charge(profile: Profile) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """Instructions by stage, and of each library by stage: {stage: {"itself": n, "libraries": m}} and
    {library: {stage: n}}. What no stage called is of the stage "" ."""
    callers: dict[Function, list[tuple[Function, float]]] = {}
    incoming: dict[Function, dict[Function, int]] = defaultdict(dict)
    for caller, targets in profile.calls.items():
        for target, cost in targets.items():
            if cost and caller != target:
                incoming[target][caller] = cost
    for target, found in incoming.items():
        total = sum(found.values())
        callers[target] = [(caller, cost / total) for caller, cost in found.items()]
    charged: dict[str, dict[str, float]] = defaultdict(lambda: {"itself": 0.0, "libraries": 0.0})
    by_library: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    waiting: dict[str, dict[Function, float]] = defaultdict(lambda: defaultdict(float))  # library -> where its cost is
    for function, cost in profile.own.items():
        if own := stage(function[0]):
            charged[own]["itself"] += cost
        else:
            waiting[function[0]][function] += cost
    for library, costs in waiting.items():
        for _ in range(ROUNDS):
            passed: dict[Function, float] = defaultdict(float)
            for function, cost in costs.items():
                if function not in callers:
                    charged[""]["libraries"] += cost
                    by_library[library][""] += cost
                for caller, share in callers.get(function, ()):
                    if own := stage(caller[0]):
                        charged[own]["libraries"] += cost * share
                        by_library[library][own] += cost * share
                    elif cost * share >= 0.5:
                        passed[caller] += cost * share
            costs = passed
            if not costs:
                break
    return charged, by_library


def samples(capture: Capture, core: int) -> dict[str, float]:
    """Nanoseconds by library, less those of a start; their sum is the CPU time of a run that is not sampled."""
    spent: dict[str, float] = defaultdict(float)
    cpu = []
    for _ in range(SAMPLED_RUNS):
        both = []
        for path, sign in ((capture.path, 1), (measure.empty(), -1)):
            command = [str(measure.PROGRAM), "--read", str(path), "--sink", "null", "--quiet"]
            both.append(measure.run(command, core).cpu_seconds)
            for library, number in _sampled(command, core).items():
                spent[library] += sign * number
        cpu.append(both[0] - both[1])
    scale = measure.median(cpu) * 1e9 / sum(spent.values())
    return {library: number * scale for library, number in spent.items()}


def _sampled(command: list[str], core: int) -> Counter[str]:
    """How many samples were in each library, or in the kernel."""
    with tempfile.TemporaryDirectory(dir=measure.FOLDER) as folder:
        data = Path(folder) / "perf"
        measure.run(["perf", "record", "-q", "-e", "cpu-clock", "-c", str(PERIOD_NS), "-o", str(data), *command], core)
        text = subprocess.run(
            ["perf", "script", "-i", str(data), "-F", "ip,dso"], capture_output=True, text=True, check=True
        ).stdout
    found: Counter[str] = Counter()
    for line in text.splitlines():
        if match := re.search(r"\(([^()]*)\)\s*$", line):
            found["kernel" if "[" in match[1] and "vdso" not in match[1] else match[1]] += 1
    return found


def divide(sampled: dict[str, float], by_library: dict[str, dict[str, float]]) -> dict[str, float]:
    """Nanoseconds by stage: those of libraries as their instructions are divided."""
    shares = {Path(library).name: stages for library, stages in by_library.items()}
    spent: dict[str, float] = defaultdict(float)
    for library, time_ns in sampled.items():
        if own := stage(library):
            spent[own] += time_ns
            continue
        stages = shares.get(Path(library).name, {})
        total = sum(stages.values())
        if library == "kernel" or not total:
            spent["kernel" if library == "kernel" else "libraries outside the loop"] += time_ns
            continue
        for own, cost in stages.items():
            spent[own or "libraries outside the loop"] += time_ns * cost / total
    return spent


def report(capture: Capture, charged: dict[str, dict[str, float]], spent: dict[str, float], sampled: Capture) -> None:
    print(f"\n{capture.name}: {capture.frames:,} frames, {capture.exchanges:,} exchanges", end="")
    print(f"; sampled: {sampled.frames:,} frames" if spent else "")
    print("| stage | instructions a frame | an exchange | of them in libraries | ns a frame | ns an exchange |")
    print("|---|---|---|---|---|---|")
    names = sorted(
        {*charged, *spent}, key=lambda name: -sum(charged.get(name, {"": 0.0}).values()) - spent.get(name, 0) / 1e9
    )
    total = {"itself": 0.0, "libraries": 0.0}
    for name in names:
        cost = charged.get(name, {"itself": 0.0, "libraries": 0.0})
        for part in total:
            total[part] += cost[part]
        if not sum(cost.values()) and abs(spent.get(name, 0.0)) < sampled.frames:  # less than a nanosecond a frame
            continue
        _row(name or "not charged", cost, spent.get(name, 0.0), capture, sampled, bool(spent))
    _row("**all**", total, sum(spent.values()), capture, sampled, bool(spent))


def _row(name: str, cost: dict[str, float], ns: float, capture: Capture, sampled: Capture, timed: bool) -> None:
    whole = cost["itself"] + cost["libraries"]
    times = f"{ns / sampled.frames:,.0f} | {ns / sampled.exchanges:,.0f}" if timed else "|"
    print(
        f"| {name} | {whole / capture.frames:,.0f} | {whole / capture.exchanges:,.0f} |"
        f" {cost['libraries'] / capture.exchanges:,.0f} | {times} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
