"""Whether a copy runs, without touching anything: locks are asked for (F_GETLK), never tried; a connect never waits.

    running True    the kernel has the pidfile's lock, or a NIC's, for a process that may have it
            False   nobody has; stale: the text of one that ended without emptying the pidfile
            None    it cannot be told: not permitted to look, or what is there is no guard of ours

Invariants:
- A file or a socket that an unprivileged user could have put there is no evidence of a running copy: it makes the
  answer unknown, with what was seen, unless other evidence settles it.
- The text of a pidfile is told, and never decides. NICs are taken from it only while its lock is held.
"""

from __future__ import annotations

import os
import socket
import stat

from . import GuardError
from . import holder as holders
from . import interface as nics
from .pidfile import absolute, one_line, process_state, query, quote, read_file, trusted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from .holder import Holder, Launcher
    from .pidfile import Query

CAP_NET_RAW = 13
ATTEMPTS = 3


class Status:
    """What look() saw.

    path       the pidfile, from the root
    interfaces the NICs that were looked at: those that were named, else those of the holder
    running    see above; stale: only where it does not run
    holder     of the pidfile, else of the first NIC; None where it does not run
    identity   the text of the pidfile (see pidfile.parse), of whoever wrote it last; {} where it is not believed
    held       what was seen to be held: "/run/http-capture.pid (lock)", "eth1 (interface)"
    conflicts  what contradicts itself, a line each: two processes, or one without its interface lock
    notes      what else the operator should know, a line each
    reason     why `running` is None, else ""
    denied     something could not be looked at for want of permission
    """

    __slots__ = (
        "conflicts", "denied", "held", "holder", "identity", "interfaces", "notes", "path", "reason", "running",
        "stale",
    )  # fmt: skip

    def __init__(self, path: str) -> None:
        self.path = path
        self.interfaces: list[str] = []
        self.running: bool | None = None
        self.stale = False
        self.holder: Holder | None = None
        self.identity: dict[str, str] = {}
        self.held: list[str] = []
        self.conflicts: list[str] = []
        self.notes: list[str] = []
        self.reason = ""
        self.denied = False

    @property
    def instance(self) -> str:
        """The instance id of the holder, where its text is there and is its own."""
        state = process_state(self.holder.pid) if self.holder is not None and self.holder.pid else None
        other = state is not None and self.identity.get("start") != str(state[1])
        return "" if other or not self.running else self.identity.get("instance", "")

    @property
    def code(self) -> int:
        """Of the Linux Standard Base: 0 running, 1 dead with text in its pidfile, 3 not running, 4 unknown."""
        if self.running is None:
            return 4
        return 0 if self.running else 1 if self.stale else 3


def look(pidfile: str, interfaces: Sequence[str]) -> Status:
    """Looks at a pidfile and at NICs (none: those that its holder has). Raises nothing that an operator can cause."""
    for _ in range(ATTEMPTS):
        seen: list[Holder] = []
        status = _look(pidfile, interfaces, seen)
        if all(holder.pid and process_state(holder.pid) for holder in seen):
            break  # else one has ended since, or is in another pid namespace
    return status


def _look(pidfile: str, interfaces: Sequence[str], seen: list[Holder]) -> Status:
    """Adds to `seen` whoever has a lock."""
    status = Status(pidfile)
    doubts: list[str] = []
    asked, believed = _ask(status, doubts)
    locked = asked is not None and asked.locked
    in_text = [name for name in status.identity.get("interface", "").split(",") if name] if locked else []
    status.interfaces = list(dict.fromkeys(interfaces or in_text))
    peers = _peers([*status.interfaces, *in_text], interfaces, status, doubts)
    taken = {name: (index, peer) for name, (index, peer) in peers.items() if peer is not None}

    if asked is not None and locked:
        holder = holders.of_pidfile(asked, [peer.pid for _, peer in taken.values() if peer.ours()])
        seen.append(holder)
        if _may_hold(holder, believed):
            status.holder, status.identity = holder, asked.identity
            status.held.append(f"{status.path} (lock)")
        else:
            doubts.append(f"{one_line(status.path)} is locked by what may be no http-capture: {holder.describe()}")
        if "network" in holder.namespaces and not interfaces:
            taken = {}  # its NICs are not those that have their names here
            status.notes.append("in another network namespace: its interface lock cannot be seen from here")
            in_text = []
    for name, (index, peer) in taken.items():
        holder = holders.of_interface(index, peer)
        seen.append(holder)
        if not (peer.ours() or (holder.pid and may_capture(holder.pid))):
            doubts.append(f"{name}: its lock is held by what may be no http-capture: {holder.describe()}")
            continue
        status.held.append(f"{name} (interface)")
        if status.holder is None:
            status.holder = holder
            _by_interface(status, holder)
        elif holder.pid != status.holder.pid and holder.pid and status.holder.pid:
            status.conflicts.append(f"{name} is held by another process: {holder.describe()}")
    if status.holder is not None:
        status.running = True
        status.notes += doubts
        free = [name for name in in_text if name in peers and not {name, nics.ANY} & taken.keys()]
        _judge(status, status.holder, free)
    elif doubts:
        status.reason = "; ".join(doubts)
    else:
        status.running = False
        status.stale = bool(status.identity)
    if not status.running and not interfaces:
        status.notes += _elsewhere(peers)
    return status


def verb(pid: int) -> str | None:
    """What a process of this program does: "run", "status", ... None: it is another program, or cannot be looked at.

    By its executable and its command line as the kernel has them: the installed script, or -m http_capture.capture; the
    mere word among the arguments of another program is none."""
    words = [os.fsdecode(word) for word in (read_file(f"/proc/{pid}/cmdline") or b"").split(b"\0")[:-1]]
    if not words:
        return None
    try:
        executable = os.path.basename(os.readlink(f"/proc/{pid}/exe"))
    except OSError:
        executable = os.path.basename(words[0])
    if executable.startswith(("python", "pypy")):
        rest = _program(words[1:])
    else:
        rest = words[1:] if executable == "http-capture" else None
    if rest is None:
        return None
    return rest[0] if rest and not rest[0].startswith("-") else "run"


def may_capture(pid: int) -> bool:
    """Whether an administrator has trusted the process with raw sockets (CAP_NET_RAW) in this user namespace."""
    try:
        if os.readlink(f"/proc/{pid}/ns/user") != os.readlink("/proc/self/ns/user"):
            return False
    except OSError:
        return False
    for line in (read_file(f"/proc/{pid}/status") or b"").splitlines():
        if line.startswith(b"CapPrm:"):
            return bool(int(line.split()[1], 16) >> CAP_NET_RAW & 1)
    return False


def managed(pid: int, launcher: Launcher | None) -> bool:
    """Whether what started the process still looks after it. A supervisord that was killed leaves its children."""
    if launcher is None or launcher.manager != "supervisord":
        return launcher is not None and launcher.manager != ""
    for _ in range(100):
        pid = parent(pid)
        if pid <= 0:
            return False
        command = read_file(f"/proc/{pid}/cmdline")
        if command is None or b"supervisord" in command:
            return True
    return True


def parent(pid: int) -> int:
    """0: none that is visible."""
    fields = (read_file(f"/proc/{pid}/stat") or b"").rpartition(b")")[2].split()
    return int(fields[1]) if len(fields) > 1 else 0


def workers(pid: int) -> list[int]:
    """The processes that do the work of a copy: its children, where the kernel names them, that are of this program."""
    children = read_file(f"/proc/{pid}/task/{pid}/children") or b""
    return [int(child) for child in children.split() if verb(int(child)) == "run"]


def unfit(path: str) -> str:
    """Why nothing that is found in this file is believed, "": it is. Who may write it could have made it up."""
    try:
        found = os.lstat(path)
    except OSError:
        return ""
    if not trusted(found.st_uid):
        return f"{one_line(path)} belongs to uid {found.st_uid}"
    if found.st_mode & 0o022:
        return f"{one_line(path)} can be written by others (mode {stat.S_IMODE(found.st_mode):04o})"
    return ""


def _may_hold(holder: Holder, believed: bool) -> bool:
    """Whether who locked the pidfile is taken for a copy. Who may read a file can lock it against others too."""
    if not holder.pid:
        return believed
    if believed and holder.uid is not None and trusted(holder.uid):
        return True
    return verb(holder.pid) == "run" and (believed or may_capture(holder.pid))


def _ask(status: Status, doubts: list[str]) -> tuple[Query | None, bool]:
    """The kernel about the pidfile, and whether the file is one to believe; its text then goes into `status`."""
    try:
        status.path = absolute(status.path)
        doubt = unfit(status.path)
        asked = query(status.path)
    except GuardError as error:
        doubts.append(str(error).partition(";")[0])  # what follows is advice for a start
        return None, False
    except (OSError, ValueError) as error:
        status.denied = isinstance(error, PermissionError)
        reason = error.strerror if isinstance(error, OSError) else "it holds a NUL"
        hint = ": look as root, or name the NIC with --iface" if status.denied else ""
        doubts.append(f"{one_line(status.path)} cannot be looked into by uid {os.geteuid()} ({reason}){hint}")
        return None, False
    if doubt:
        status.notes.append(f"{doubt}: what it says is not believed")
    elif asked is not None:
        status.identity = asked.identity
    return asked, not doubt


def _peers(
    names: list[str], required: Sequence[str], status: Status, doubts: list[str]
) -> dict[str, tuple[int, nics.Peer | None]]:
    """Who holds these NICs and those that exclude them: name -> index, and holder or None. Those that exist."""
    wanted: dict[str, int] = {}
    for name in names:
        try:
            wanted[name] = 0 if name == nics.ANY else socket.if_nametoindex(name)
        except (OSError, ValueError):
            missing = f"interface {one_line(name, 100)}: there is none of this name here"
            told = doubts if name in required else status.notes
            if missing not in told:
                told.append(missing)
    if 0 in wanted.values():
        wanted |= {name: index for index, name in socket.if_nameindex()}
    elif wanted:
        wanted[nics.ANY] = 0
    return {name: (index, nics.probe(index)) for name, index in wanted.items()}


def _by_interface(status: Status, holder: Holder) -> None:
    """Adds what the pidfile of a holder says that was found by its NIC, with another pidfile or none."""
    if status.denied:
        return
    other = f"is {one_line(holder.pidfile)}" if holder.pidfile else "cannot be seen from here"
    status.notes.append(f"{one_line(status.path)} is not locked: the pidfile of this copy {other}")
    try:
        found = query(holder.pidfile) if holder.pidfile else None
    except (OSError, GuardError):
        return
    if found is not None:
        holder.tell(found.identity)
        status.identity = found.identity


def _judge(status: Status, holder: Holder, free: list[str]) -> None:
    """Adds what is unusual about a copy that runs. `free`: NICs that it has, by its text, and that nobody holds."""
    if free and "network" not in holder.namespaces:
        names = one_line(", ".join(free), 200)
        status.conflicts.append(
            f"without the interface lock: {names} is not held, so another --pidfile is enough for a second copy"
        )
    if holder.pid and holder.launcher and holder.launcher.manager and not managed(holder.pid, holder.launcher):
        status.notes.append(f"the {holder.launcher.manager} that started it is gone: nothing looks after it")


def _elsewhere(peers: dict[str, tuple[int, nics.Peer | None]]) -> list[str]:
    """Copies on NICs that were not asked for: who did not name one should hear of them."""
    lines = []
    for index, name in [(0, nics.ANY), *socket.if_nameindex()]:
        if name not in peers and (peer := nics.probe(index)) is not None:
            more = f"http-capture status --iface {quote(name)}"
            lines.append(f"{name} is held: {holders.of_interface(index, peer).describe()} ({more})")
    return lines


def _program(words: list[str]) -> list[str] | None:
    """The arguments of http-capture among those of a Python interpreter; None: another program runs in it."""
    while words:
        word = words.pop(0)
        if not word.startswith("-") or word == "-":
            ours = os.path.basename(word) == "http-capture" or word.endswith("http_capture/capture/__main__.py")
            return words if ours else None
        if word.startswith("--"):
            if word == "--check-hash-based-pycs" and words:
                words.pop(0)
            continue
        for place, letter in enumerate(word[1:], 2):
            if letter in "cmWX":
                value = word[place:] or (words.pop(0) if words else "")
                if letter in "cm":
                    return words if letter == "m" and value == "http_capture.capture" else None
                break
    return None
