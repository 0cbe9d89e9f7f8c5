"""Stops the copy that holds the guard.

    look -> nothing runs
      |---> unknown, unnamed, supervised, foreign, frozen: refused, no signal is sent
      |
    pidfd_open -> look again: the same process? --no--> look, at most 5 times
      |
    SIGTERM -> ended and every lock free: stopped
      |
    time-out --kill--> SIGKILL -> killed
      |
    still running

Invariants:
- A signal goes to a process that the kernel names as the holder of a lock, and to no other: the pidfd is open before
  the holder is asked for the second time. The text of a pidfile alone makes nobody a target.
- A process is ours by its command line, by the NIC's socket, or by text in a pidfile that nobody else could write.
- A supervisor that looks after the holder is told to stop it, by its own command; this one would be undone.
"""

from __future__ import annotations

import os
import select
import signal
import time

from .pidfile import process_state
from .status import look, managed, unfit, verb

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .holder import Holder
    from .status import Status

ATTEMPTS = 5
POLL_SECONDS = 0.05
KILL_SECONDS = 10.0  # what a killed process may need to be gone
CODES = {
    "stopped": 0, "killed": 0, "nothing": 0, "running": 1, "supervised": 1, "foreign": 1, "frozen": 1, "unknown": 4,
    "unnamed": 4, "changing": 4, "denied": 77,
}  # fmt: skip


class Outcome:
    """What became of it.

    what     a key of CODES. stopped, killed; nothing: nothing runs; running: still, after the time-out; supervised: by
             a supervisor that is there; foreign: the lock is another program's; frozen: stopped by a signal; unknown,
             unnamed: whether one runs, or which; changing: another holder each time; denied: the signal is not allowed
    status   what was seen before
    holder   whom it is about, or None
    seconds  that it took from the first signal on
    next     who has the lock after that, or None
    """

    __slots__ = ("holder", "next", "seconds", "status", "what")

    def __init__(self, what: str, status: Status, seconds: float = 0.0, following: Holder | None = None) -> None:
        self.what = what
        self.status = status
        self.holder = status.holder
        self.seconds = seconds
        self.next = following

    @property
    def code(self) -> int:
        return CODES[self.what]


def stop(
    pidfile: str, interfaces: Sequence[str], *, timeout_seconds: float, kill: bool, told: Callable[[Holder], None]
) -> Outcome:
    """Stops the holder of the pidfile, else that of the NICs that were named. `told` is called once the signal is sent.

    `kill`: also one that is stopped by a signal; SIGKILL after the time-out."""
    status = look(pidfile, interfaces)
    for _ in range(ATTEMPTS):
        if status.running is not True or status.holder is None:
            return Outcome("nothing" if status.running is False else "denied" if status.denied else "unknown", status)
        refused = _refused(status, status.holder, kill)
        if refused:
            return Outcome(refused, status)
        pid = status.holder.pid or 0
        started = process_state(pid)
        try:
            process = os.pidfd_open(pid)
        except OSError:
            status = look(pidfile, interfaces)
            continue
        try:
            again = look(pidfile, interfaces)
            if started and again.holder is not None and again.holder.pid == pid and _start(pid) == started[1]:
                return _stop(again, process, timeout_seconds, kill, told)
            status = again
        finally:
            os.close(process)
    return Outcome("changing", status)


def _refused(status: Status, holder: Holder, kill: bool) -> str:
    """Why no signal is sent to this holder, as a key of CODES; "": it may be."""
    if not holder.pid or holder.source not in ("lock", "socket", "fdinfo"):
        return "unnamed"
    if not _ours(status, holder):
        return "foreign"
    if managed(holder.pid, holder.launcher):
        return "supervised"
    return "frozen" if holder.stopped and not kill else ""


def _ours(status: Status, holder: Holder) -> bool:
    pid = holder.pid or 0
    if verb(pid) == "run" or (not status.conflicts and any(held.endswith(" (interface)") for held in status.held)):
        return True
    told = status.identity
    written = told.get("pid") == str(pid) and told.get("start") == str(_start(pid)) and bool(told.get("instance"))
    return written and not unfit(status.path)


def _start(pid: int) -> int:
    state = process_state(pid)
    return state[1] if state else -1


def _stop(status: Status, process: int, timeout_seconds: float, kill: bool, told: Callable[[Holder], None]) -> Outcome:
    holder = status.holder
    assert holder is not None
    began, what, free, following = time.monotonic(), "", False, None
    uptime = int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))
    signals = [(signal.SIGTERM, timeout_seconds, "stopped")]
    if kill:
        signals.append((signal.SIGKILL, KILL_SECONDS, "killed"))
    for number, seconds, what in signals:  # noqa: B007
        try:
            signal.pidfd_send_signal(process, number)
            if number == signal.SIGTERM and holder.stopped:
                signal.pidfd_send_signal(process, signal.SIGCONT)  # the other one is pending until it runs again
        except ProcessLookupError:
            pass  # it has just ended
        except PermissionError:
            return Outcome("denied", status)
        if number == signal.SIGTERM:
            told(holder)
        free, following = _wait(status, process, time.monotonic() + seconds, uptime)
        if free:
            break
    return Outcome(what if free else "running", status, time.monotonic() - began, following)


def _wait(status: Status, process: int, deadline: float, uptime: int) -> tuple[bool, Holder | None]:
    """Until the process has ended and its locks are free, or a copy that was started since has taken them.

    Returns whether that is so by the deadline, and who has the locks now."""
    watched = [] if status.conflicts else status.interfaces
    poll = select.poll()
    poll.register(process, select.POLLIN)
    holder = status.holder
    while poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        now = look(status.path, watched)
        holder = now.holder
        # A child that was forked in the same tick is no copy; it has the locks and has not written the text.
        named = holder is not None and now.identity.get("pid") == str(holder.pid)
        if holder is None or (holder.pid and (_start(holder.pid) > uptime or named)):
            return True, holder
        if time.monotonic() >= deadline:
            break
        time.sleep(POLL_SECONDS)  # a child of it has the locks still
    return False, holder
