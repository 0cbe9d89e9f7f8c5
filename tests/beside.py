"""Runs two commands beside each other, each to its end: `beside.py FIRST SECOND`, each one line for a shell.

What the first says comes as it says it, what the second says comes in one piece when both have ended. The exit code is
0 when both gave 0; else 1, and the last line says which failed.
"""

import contextlib
import signal
import subprocess
import sys
import tempfile
import time

TOLD_SECONDS = 60
END_SECONDS = 20


def main(first: str, second: str) -> int:
    began = time.monotonic()
    asked: list[int] = []
    both_run = False

    def end(number: int, frame: object) -> None:
        asked.append(number)
        if both_run:  # one that was just started, and that nothing here knows yet, would be left behind
            sys.exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGINT):  # also where whoever started this ignores them
        signal.signal(number, end)
    print(f"== beside each other: {first} | {second}", flush=True)
    with tempfile.TemporaryFile() as said:
        try:
            with ended(second, stdout=said, stderr=subprocess.STDOUT) as behind, ended(first) as before:
                both_run = True
                if asked:
                    sys.exit(128 + asked[0])
                before.wait()
                while behind.poll() is None:
                    print(f"== {time.monotonic() - began:.0f} s; still running: {second}", flush=True)
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        behind.wait(TOLD_SECONDS)
        finally:
            print(f"== {time.monotonic() - began:.0f} s; what the other said: {second}", flush=True)
            said.seek(0)
            sys.stdout.write(said.read().decode(errors="replace"))
    failed = [command for command, done in ((first, before), (second, behind)) if done.returncode != 0]
    for command in failed:
        print(f"== FAILED: {command}", file=sys.stderr)
    return 1 if failed else 0


@contextlib.contextmanager
def ended(command, **options):  # type: ignore[no-untyped-def]
    """A process that has ended when this is left, whatever happens."""
    process = subprocess.Popen(command, shell=True, stdin=subprocess.DEVNULL, **options)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
