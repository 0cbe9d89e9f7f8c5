"""The guard: one instance per pidfile and per NIC, or none.

    acquire() -> Guard (held) -> release() (released)
       |            |    ^ |
       |            |    +-+ check(): still held, or made so again; what cannot be is told, and tried again
       |            +-> GuardLost 76     another process may run beside this one: end
       |
       +-> AlreadyRunning 75    another process holds the pidfile or a NIC
       +-> NoSuchInterface 69   a NIC that does not exist; nothing was touched
       +-> GuardError 73        the guard could not be established

Invariants:
- The pidfile's lock comes first, then the NICs', then the identity is written: a refused start changes no byte of the
  holder's file. Release goes the other way.
- Whatever acquire() raises, it has kept nothing open.
- While it is held, no lock is given up before the one in its place is had. Who may not run an http-capture of this
  user cannot make check() raise: a file or a socket put in the way is a fault, and the locks that there were are kept.
- Only locks of the kernel decide. Who the holder is (holder.py) is for the eyes of the operator.
- A lock that cannot be had or judged is a refusal; there is no weaker check to fall back to.

pidfile.py    the file: its locks and the text in it
interface.py  the lock of a NIC, without a path
holder.py     who holds them
status.py     whether a copy runs; stop.py ends it; verify.py looks for copies that no guard knows of

Standard library only and light to import: a refused start has imported nothing else of this program.
"""

from __future__ import annotations

import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from .holder import Holder, Launcher
    from .interface import Interfaces
    from .pidfile import Pidfile


CHECK_SECONDS = 10.0
SUSPECT_SECONDS = 0.25
LOOKS = 8
# One that has just taken the lock lights its beacon in an instant, unless a hundred others want the processor too.
NAME_SECONDS = 0.002
NAME_LOOKS = 25
OTHER_LOCK = "its lock is of another kind than this version's: an older http-capture, or another program"
SILENT = "it has the name of the interface's lock, but does not listen there as an http-capture does"


class GuardError(Exception):
    """The guard could not be established. Its text is one line: what, where, what to do."""

    exit_code = 73


class NoSuchInterface(GuardError, LookupError):
    """A NIC that was named does not exist. Nothing was opened or locked."""

    exit_code = 69


class AlreadyRunning(GuardError):
    """Another process holds the pidfile or a NIC.

    holder      who it is, as far as it can be seen from here
    held        what it was seen to hold, a text each: "/run/http-capture.pid (lock)", "eth1 (interface)"
    path        the pidfile of this start
    interface   the NICs that the holder runs on, where known: "eth1", "eth1,eth2", ""
    interfaces  the NICs of this start
    launcher    how this start was started
    command     the command line of this start
    doubt       why the holder may be no http-capture; "": it is one
    """

    exit_code = 75

    def __init__(
        self, holder: Holder, held: list[str], path: str, interface: str, interfaces: Sequence[str],
        launcher: Launcher, command: Sequence[str], doubt: str = "",
    ) -> None:  # fmt: skip
        what = "already running" if not doubt else "already running, or blocked by another program,"
        super().__init__(f"{what} on {interface}" if interface else what.rstrip(","))
        self.holder = holder
        self.held = held
        self.path = path
        self.interface = interface
        self.interfaces = interfaces
        self.launcher = launcher
        self.command = command
        self.doubt = doubt


class GuardLost(GuardError):
    """The guard was held and is not any more: another process may run beside this one."""

    exit_code = 76


class Findings:
    """What one check finds, a line each."""

    __slots__ = ("faults", "repairs", "rivals")

    def __init__(self) -> None:
        self.repairs: list[str] = []
        self.faults: list[str] = []
        self.rivals: list[tuple[str, bool]] = []

    def repaired(self, line: str) -> None:
        """It was not as it must be, and is again."""
        self.repairs.append(line)

    def fault(self, line: str) -> None:
        """It is not as it must be, cannot be mended now, and nobody else runs because of it."""
        self.faults.append(line)

    def rival(self, line: str, *, lost: bool) -> None:
        """Another process has what this one must have. `lost`: should it last, that one runs too."""
        self.rivals.append((line, lost))


class Guard:
    """What acquire() gives: held until `release()` or the end of the process, however it ends.

    Nothing is released by garbage collection. A forked child has the locks too, but for the pidfile's beacon.
    checks, repairs, faults: how many checks there were, what they found and mended, and found and could not.
    """

    __slots__ = (
        "_file", "_interfaces", "_looks", "_owner", "_said", "_since", "checks", "faults", "interface_lock", "repairs",
    )  # fmt: skip

    def __init__(self, file: Pidfile, interfaces: Interfaces, *, interface_lock: bool) -> None:
        self._file = file
        self._interfaces = interfaces
        self._owner = os.getpid()
        self._since = time.monotonic()
        self._looks = 0
        self._said: list[str] = []
        self.interface_lock = interface_lock
        self.checks = 0
        self.repairs = 0
        self.faults = 0

    @property
    def path(self) -> str:
        return self._file.path

    @property
    def suspect(self) -> bool:
        """Whether the last check saw another process where only this one may be, and more looks have to tell."""
        return 0 < self._looks <= LOOKS

    def due(self, now_seconds: float) -> bool:
        """Whether it is time for the next check(), by time.monotonic(): asked once for each that is then made."""
        if now_seconds - self._since < (SUSPECT_SECONDS if self.suspect else CHECK_SECONDS):
            return False
        self._since = now_seconds
        return True

    def check(self) -> list[str]:
        """Looks whether all is still held, and mends what can be mended. Returns lines for the error log: each repair,
        and each fault when it is new. Takes some 40 us when all is well, and waits for nobody.

        Raises GuardLost where another process may run beside this one. That is not believed at the first look: a start
        that is about to be refused has the pidfile for milliseconds. Does nothing in a forked child, nor after
        release()."""
        if os.getpid() != self._owner:
            return []
        self.checks += 1
        found = Findings()
        self._file.check(found, alone=not self.interface_lock)
        self._interfaces.check(found)
        self._looks = self._looks + 1 if found.rivals else 0
        if self._looks > LOOKS:
            for line, lost in found.rivals:
                if lost:
                    raise GuardLost(line)
                found.fault(line)
        self.repairs += len(found.repairs)
        self.faults += len(found.faults)
        new = [line for line in found.faults if line not in self._said]
        self._said = found.faults
        return found.repairs + new

    def release(self) -> None:
        """Empties the pidfile and gives up every lock; the file stays. Does nothing the second time.

        In a forked child it only closes the child's copies: the locks stay with the process that acquired them."""
        if os.getpid() == self._owner:
            self._file.empty()
            self._owner = 0
        self._interfaces.release()
        self._file.close()


def acquire(
    pidfile: str, interfaces: Sequence[str], *, instance: str, command: Sequence[str], interface_lock: bool = True
) -> Guard:
    """Takes the pidfile and every NIC, or raises a GuardError and keeps nothing.

    `interfaces`: names, or `any`, which excludes all others. `instance` and `command` are written into the pidfile.
    `interface_lock=False` leaves out the locks of the NICs: another pidfile is then enough to run twice.
    """
    try:
        return _acquire(pidfile, interfaces, instance, command, interface_lock)
    except OSError as error:
        raise GuardError(f"the guard cannot be set up: {error.strerror}; see the limits of this process") from None


def _acquire(
    pidfile: str, interfaces: Sequence[str], instance: str, command: Sequence[str], interface_lock: bool
) -> Guard:
    from . import holder as holders
    from . import interface as nics
    from .pidfile import Held, Pidfile, absolute, query, trusted

    path = absolute(pidfile)
    wanted = nics.resolve(interfaces) if interface_lock else {}
    launcher = holders.own_launcher()

    def refused(holder: Holder, held: list[str], running_on: str, doubt: str) -> AlreadyRunning:
        return AlreadyRunning(holder, held, path, running_on, interfaces, launcher, command, doubt)

    try:
        file = Pidfile.take(path)
    except Held as blocked:
        there = blocked.query
        for _ in range(NAME_LOOKS):
            if there.blocker >= 0 or not there.ofd:
                break
            time.sleep(NAME_SECONDS)
            there = query(path) or there
        peers = {name: peer for index, name in wanted.items() if (peer := nics.probe(index)) is not None}
        known = [peer.pid for peer in peers.values() if peer.ours()]
        holder = holders.of_pidfile(there, known)
        if not holder.pid and (again := query(path)) is not None and again.blocker > 0:
            holder = holders.of_pidfile(again, known)
        evidence = [f"{path} (lock)", *(f"{name} (interface)" for name in peers)]
        doubt = "" if there.ofd or not there.locked else OTHER_LOCK
        raise refused(holder, evidence, holder.interface or ",".join(peers), doubt) from None
    locks = nics.Interfaces()
    try:
        locks.take(wanted)
        file.write(",".join(interfaces), instance, str(launcher), command)
    except BaseException as error:
        locks.release()
        file.close()
        if not isinstance(error, nics.Held):
            raise
        holder = holders.of_interface(error.index, error.peer)
        # Who listens may have dropped privileges since: what counts is who it was when it began to.
        uid = error.peer.uid if error.peer.listening else holder.uid
        if uid is not None and not trusted(uid):
            raise GuardError(
                f"interface {error.name}: another user's process has its lock ({holder.describe()}); "
                f"end it if it is no http-capture, else stop it or start this one as the same user"
            ) from None
        doubt = "" if error.peer.listening else SILENT
        raise refused(holder, [f"{error.name} (interface)"], error.name, doubt) from None
    return Guard(file, locks, interface_lock=bool(wanted))


def refusal(error: GuardError) -> str:
    """What standard error and syslog get: lines without an end of line. One line for all but AlreadyRunning."""
    if not isinstance(error, AlreadyRunning):
        return f"http-capture: REFUSED (exit {error.exit_code}): {error}"
    from .pidfile import one_line

    lines = [
        f"http-capture: REFUSED (exit {error.exit_code}): {one_line(str(error))}.",
        f"  holder: {error.holder.describe()}",
        f"  held:   {one_line(', '.join(error.held))}{_other_pidfile(error)}",
        f"  this start: {error.launcher}. Nothing was captured, nothing was sent.",
        f"  to hand over: {_hand_over(error)}",
    ]
    if error.doubt:
        look = f"ps -fp {error.holder.pid}" if error.holder.pid else "ss -xap, as root"
        lines.append(f"  note:   {error.doubt}; look before you end it: {look}")
    if _apart(error):
        lines.append("  to run both: give this start a --pidfile of its own; they are on different NICs")
    return "\n".join(lines)


def refusal_json(error: GuardError) -> str:
    """The same as one line of JSON, for a standard error that is no terminal."""
    fields: dict[str, object] = {"event": "refused", "exit": error.exit_code, "error": str(error)}
    if isinstance(error, AlreadyRunning):
        fields |= {
            "holder": error.holder.fields(),
            "held": error.held,
            "this_start": str(error.launcher),
            "hand_over": _hand_over(error),
            "note": error.doubt or None,
        }
    return _json(fields)


def _other_pidfile(error: AlreadyRunning) -> str:
    from .pidfile import one_line

    path = error.holder.pidfile
    return f"; its pidfile is {one_line(path)}" if path and path != error.path else ""


def _apart(error: AlreadyRunning) -> bool:
    """Whether the two only share a pidfile, by what can be seen."""
    if any(held.endswith("(interface)") for held in error.held):
        return False
    theirs = {name for name in error.interface.split(",") if name}
    disjoint = bool(theirs) and "any" not in theirs.union(error.interfaces) and theirs.isdisjoint(error.interfaces)
    return disjoint or "network" in error.holder.namespaces


def _hand_over(error: AlreadyRunning) -> str:
    """What to type to stop the holder and start this one in its place."""
    from .holder import ELSEWHERE
    from .pidfile import one_line, quote
    from .status import managed

    holder = error.holder
    start = error.launcher.command("start") or " ".join(quote(word) for word in error.command)
    stop_it = f"http-capture stop --pidfile {quote(holder.pidfile)}" if holder.pidfile and not error.doubt else ""
    if not holder.pid:
        if holder.note == ELSEWHERE:
            stop = f"in its container, or on its host: {stop_it or 'stop it there'}; then here: "
        else:
            stop = f"as root: {stop_it or 'http-capture verify, which shows it'}; then: "
        return one_line(stop + start)
    how = holder.launcher
    if how is None or not managed(holder.pid, how):
        stop = stop_it or f"kill {holder.pid} && tail --pid={holder.pid} -f /dev/null"
    elif not how.name:
        return one_line(f"stop it with {how.tool} ({how.tool} status shows its name), then: {start}")
    else:
        # The manager of a process in a container is in there with it, unless it manages containers.
        within = "pid" in holder.namespaces and how.manager in ("supervisord", "systemd")
        stop = f"{f'nsenter -t {holder.pid} -a ' if within else ''}{how.command('stop')}"
    if holder.stopped:
        stop = f"kill -CONT {holder.pid} && {stop}"
    as_root = "" if os.geteuid() in (0, holder.uid) else "as root: "
    return one_line(f"{as_root}{stop} && {start}")


def _json(value: object) -> str:
    """ASCII JSON of plain values; the json module would cost a refused start 9 ms of imports."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, list):
        return f"[{', '.join(map(_json, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_json(key)}: {_json(item)}' for key, item in value.items())}}}"
    units = str(value).encode("utf-16-be", "surrogatepass")
    codes = [units[i] << 8 | units[i + 1] for i in range(0, len(units), 2)]
    return '"' + "".join(chr(c) if 32 <= c < 127 and c not in b'"\\' else f"\\u{c:04x}" for c in codes) + '"'
