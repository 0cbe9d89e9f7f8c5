"""Whatever ends the tests, nothing that they started outlives them.

Every process started by a test run has its mark in its environment. At the end of the run a process of its own, in a
session of its own, ends what still has the mark and deletes the network namespaces of that run: after Ctrl-C, SIGTERM
and SIGKILL too. A run that leaves something behind by itself has failed.
"""

import os
import pathlib
import select
import signal
import subprocess
import sys
import time
import uuid

NAME = "TESTS_OF_HTTP_CAPTURE"
GRACE_SECONDS = 3.0  # for those that have been told to end, and those that lose their parent


def mark() -> str:
    """Marks what this process starts from now on. Returns the mark."""
    os.environ[NAME] = str(uuid.uuid4())
    return f"{NAME}={os.environ[NAME]}"


def marked(its_mark: str) -> dict[int, str]:
    """The processes that have the mark: pid and command line."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            try:
                variables = pathlib.Path(f"/proc/{name}/environ").read_bytes().split(b"\0")
                if its_mark.encode() in variables:
                    command = pathlib.Path(f"/proc/{name}/cmdline").read_bytes()
                    found[int(name)] = command.replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue  # ended, or another user's
    return found


def employ(its_mark: str) -> None:
    """Starts the process that waits for the end of this one. It has no mark itself."""
    environment = {name: value for name, value in os.environ.items() if name != NAME}
    silent = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in (0, 1, 2)]
    os.posix_spawn(
        sys.executable, [sys.executable, "-S", __file__, its_mark, str(os.getpid())], environment,
        file_actions=silent, setsid=True,
    )  # fmt: skip


def left(its_mark: str) -> dict[int, str]:
    """What is still there after a moment of grace."""
    deadline = time.monotonic() + GRACE_SECONDS
    while (found := marked(its_mark)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def bury(its_mark: str, pid: int) -> None:
    """Ends all that has the mark, then deletes the network namespaces that network.py has named after that run."""
    while found := marked(its_mark):
        for other in found:
            try:
                os.kill(other, signal.SIGKILL)
            except OSError:
                continue
        time.sleep(0.05)
    if os.path.isdir("/run/netns"):
        for name in os.listdir("/run/netns"):
            if name.startswith(f"hc{pid}-"):
                subprocess.run(["ip", "netns", "delete", name], check=False, timeout=30)


def main() -> None:
    its_mark, pid = sys.argv[1], int(sys.argv[2])
    try:
        waiting = select.poll()
        waiting.register(os.pidfd_open(pid), select.POLLIN)
        waiting.poll()
    except ProcessLookupError:
        pass  # it has ended already
    bury(its_mark, pid)


if __name__ == "__main__":
    main()
