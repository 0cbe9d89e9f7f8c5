"""The guard: one instance per pidfile and per NIC, or none.

    acquire() -> Guard (held) -> release() (released)
       |
       +-> AlreadyRunning 75    another process holds the pidfile or a NIC
       +-> NoSuchInterface 69   a NIC that does not exist; nothing was touched
       +-> GuardError 73        the guard could not be established

Invariants:
- The pidfile's lock comes first, then the NICs', then the identity is written: a refused start changes no byte of the
  holder's file. Release goes the other way.
- Whatever acquire() raises, it has kept nothing open.
- Only locks of the kernel decide. Who the holder is (holder.py) is for the eyes of the operator.
- A lock that cannot be had or judged is a refusal; there is no weaker check to fall back to.

pidfile.py    the file: its lock and the text in it
interface.py  the lock of a NIC, without a path
holder.py     who holds them

Standard library only and light to import: a refused start has imported nothing else of this program.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from .holder import Holder, Launcher
    from .interface import Interfaces
    from .pidfile import Pidfile


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
    """

    exit_code = 75

    def __init__(
        self, holder: Holder, held: list[str], path: str, interface: str, interfaces: Sequence[str],
        launcher: Launcher, command: Sequence[str],
    ) -> None:  # fmt: skip
        super().__init__(f"already running on {interface}" if interface else "already running")
        self.holder = holder
        self.held = held
        self.path = path
        self.interface = interface
        self.interfaces = interfaces
        self.launcher = launcher
        self.command = command


class GuardLost(GuardError):
    """The guard was held and is not any more: another process may run beside this one."""

    exit_code = 76


class Guard:
    """What acquire() gives: held until `release()` or the end of the process, however it ends.

    Nothing is released by garbage collection. A forked child has the locks too.
    """

    __slots__ = ("_file", "_interfaces", "_owner")

    def __init__(self, file: Pidfile, interfaces: Interfaces) -> None:
        self._file = file
        self._interfaces = interfaces
        self._owner = os.getpid()

    @property
    def path(self) -> str:
        return self._file.path

    def release(self) -> None:
        """Empties the pidfile and gives up every lock; the file stays. Does nothing the second time.

        In a forked child it only closes the child's copies: the locks stay with the process that acquired them."""
        if os.getpid() == self._owner:
            self._file.empty()
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
    from .pidfile import Held, Pidfile, absolute

    path = absolute(pidfile)
    wanted = nics.resolve(interfaces) if interface_lock else {}
    launcher = holders.own_launcher()

    def refused(holder: Holder, held: list[str], running_on: str) -> AlreadyRunning:
        return AlreadyRunning(holder, held, path, running_on, interfaces, launcher, command)

    try:
        file = Pidfile.take(path)
    except Held as blocked:
        peers = {name: peer for index, name in wanted.items() if (peer := nics.probe(index)) is not None}
        holder = holders.of_pidfile(blocked, [peer.pid for peer in peers.values() if peer.ours()])
        evidence = [f"{path} (lock)", *(f"{name} (interface)" for name in peers)]
        raise refused(holder, evidence, holder.interface or ",".join(peers)) from None
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
        if error.peer.uid is not None and not nics.trusted(error.peer.uid):
            raise GuardError(
                f"interface {error.name}: another user's process has its lock ({holder.describe()}); "
                f"end it if it is no http-capture, else stop it or start this one as the same user"
            ) from None
        raise refused(holder, [f"{error.name} (interface)"], error.name) from None
    return Guard(file, locks)


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
    """The command that stops the holder and starts this one in its place."""
    from .pidfile import one_line, quote

    holder = error.holder
    stop = holder.launcher.command("stop") if holder.launcher else None
    if stop is None:
        if holder.pidfile:
            stop = f"http-capture stop --pidfile {quote(holder.pidfile)}"
        elif holder.pid:
            stop = f"kill {holder.pid}"
        else:
            return "stop the holder where it runs, then start this one again"
    if holder.stopped:
        stop = f"kill -CONT {holder.pid} && {stop}"
    start = error.launcher.command("start") or " ".join(quote(word) for word in error.command)
    return one_line(f"{stop} && {start}")


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
