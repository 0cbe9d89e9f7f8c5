"""One start of a program that takes the guard, for the tests: `start.py PIDFILE [NIC ...] [options]`.

Held: prints "held", then obeys lines on standard input: release, read (opens and closes its own pidfile), exit.
Refused: the refusal on standard error, a report of this process on standard output as JSON, the exit code.
"""

import argparse
import os
import sys

# As the program's own command line does, and nothing else of it.
from http_capture import guard
from http_capture.guard import holder, interface, pidfile  # noqa: F401  (before a change of user hides the sources)

GUARD_MODULES = set(sys.modules)

import json  # noqa: E402  (not one that the guard needs)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("pidfile")
    parser.add_argument("nics", nargs="*")
    parser.add_argument("--uid", type=int)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.uid is not None:
        os.setgroups([])
        os.setgid(options.uid)
        os.setuid(options.uid)
    command = ["http-capture", "--iface", ",".join(options.nics), "--pidfile", options.pidfile]
    try:
        held = guard.acquire(
            options.pidfile, options.nics, instance="i-1", command=command, interface_lock=bool(options.nics)
        )
    except guard.GuardError as error:
        print(guard.refusal_json(error) if options.json else guard.refusal(error), file=sys.stderr)
        fds = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _open(fd)]
        print(json.dumps({"fds": fds, "modules": sorted(GUARD_MODULES)}))
        sys.exit(error.exit_code)
    print("held", flush=True)
    for line in sys.stdin:
        match line.strip():
            case "release":
                held.release()
                held.release()
            case "read":
                with open(options.pidfile) as file:
                    file.read()
            case "exit":
                sys.exit(0)
        print("done", flush=True)


def _open(fd: str) -> bool:
    try:
        os.fstat(int(fd))
    except OSError:
        return False
    return True


main()
