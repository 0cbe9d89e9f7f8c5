"""Fuzzes stages until COUNT inputs each, in one process.

python tests/fuzz/run.py [--stage NAME] [--count N] [--seed S]

Prints inputs per second and memory for each stage. A failure ends with 1, the traceback, and the input in
build/fuzz/STAGE-SEED.txt; the same batch again: `--stage STAGE --seed SEED --count 1`. `make fuzz ARGS=...` runs it on
the compiled wheel, `make fuzz-checked ARGS=...` on a build with bounds checks and sanitizers.

Exceptions that C functions cannot raise (Cython prints and swallows them) are failures too.
"""

import argparse
import pathlib
import resource
import sys
import time
import traceback

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from fuzz.stages import STAGES, last
from http_capture.capture import decode as hot

ROOT = pathlib.Path(__file__).resolve().parents[2]
GROWTH_KB = 100_000
"""How much the memory of the process may grow after the first tenth of a run: all bounds in the stages are far less."""

unraised: list[str] = []


def listen(found: "sys.UnraisableHookArgs") -> None:
    unraised.append(f"{found.err_msg or 'not raised'}: {found.exc_value!r} in {found.object!r}")


def rss_kb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def fuzz_stage(name: str, count: int, seed: int, out: pathlib.Path) -> bool:
    """Whether `count` inputs have passed."""
    began = time.monotonic()
    done = 0
    batch_seed = seed
    first_kb = 0
    while done < count:
        try:
            last.clear()
            done += STAGES[name](batch_seed)
            assert not unraised, unraised
            if not first_kb and done >= count // 10:
                first_kb = rss_kb()
            assert rss_kb() - first_kb < GROWTH_KB or not first_kb, f"memory grew from {first_kb} to {rss_kb()} KiB"
        except BaseException as error:
            out.mkdir(parents=True, exist_ok=True)
            path = out / f"{name}-{batch_seed}.txt"
            path.write_text(f"{last.get('input')!r}\n")
            traceback.print_exc()
            print(f"{name}: FAILED in the batch of seed {batch_seed}: {error!r}; its last input: {path}", flush=True)
            if isinstance(error, KeyboardInterrupt):
                raise
            return False
        batch_seed += 1
    seconds = time.monotonic() - began
    print(
        f"{name:<11} {done:>9,} inputs, seeds {seed} to {batch_seed - 1}, {seconds:7.1f} s, {done / seconds:8,.0f}/s, "
        f"{rss_kb() // 1024} MiB",
        flush=True,
    )
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuzzes the stages of http-capture.")
    parser.add_argument("--stage", choices=(*STAGES, "all"), default="all")
    parser.add_argument("--count", type=int, default=1_000_000, help="inputs for each stage (1,000,000)")
    parser.add_argument("--seed", type=int, default=0, help="of the first batch (0)")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "build" / "fuzz", help="where failing inputs go")
    arguments = parser.parse_args()
    sys.unraisablehook = listen
    compiled = "__reduce_cython__" in vars(hot.Decoder)
    print(f"http_capture from {pathlib.Path(hot.__file__).parents[1]}, {'compiled' if compiled else 'uncompiled'}")
    names = STAGES if arguments.stage == "all" else (arguments.stage,)
    passed = [fuzz_stage(name, arguments.count, arguments.seed, arguments.out) for name in names]
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
