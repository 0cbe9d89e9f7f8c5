"""Who holds the guard, for the eyes of the operator. Nothing here decides whether a start is refused.

The holder's pid, best first:
  lock    the kernel named it (the pidfile's beacon, or another POSIX lock)
  socket  the kernel named it as the peer of the NIC's socket
  fdinfo  /proc shows the lock or the socket among its descriptors
  file    the text of the pidfile names it, and a process of that boot and start time lives

A pid of the socket or the file is confirmed by its descriptors where those can be read: after the parent has died, or
with another instance on the NIC, it is not the holder of the lock that refused. What cannot be read is None, and is
said to be unknown. Nothing raises, nothing waits, and the search through /proc ends after a second.
"""

from __future__ import annotations

import os
import time

from .interface import address
from .pidfile import boot_id, one_line, process_state, process_uid, quote, read_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .interface import Peer
    from .pidfile import Query

SEARCH_SECONDS = 1.0
TOOLS = {"supervisord": "supervisorctl", "systemd": "systemctl", "docker": "docker", "podman": "podman"}


class Launcher:
    """How a process was started: `by hand`, or by a `manager` (of TOOLS) as `name` ("": unknown)."""

    __slots__ = ("manager", "name")

    def __init__(self, manager: str = "", name: str = "") -> None:
        self.manager = manager
        self.name = one_line(name, 150)

    def __str__(self) -> str:
        if not self.manager:
            return "by hand"
        return f"under {self.manager} ({self.name})" if self.name else f"under {self.manager}"

    def command(self, verb: str) -> str | None:
        """The manager's command to `start` or `stop` it. None: by hand, or by a manager under an unknown name."""
        return f"{self.tool} {verb} {quote(self.name)}" if self.name else None

    @property
    def tool(self) -> str:
        """The manager's command."""
        return TOOLS.get(self.manager, "")

    @classmethod
    def read(cls, environment: bytes, control_group: bytes) -> Launcher:
        """From the contents of /proc/PID/environ and /proc/PID/cgroup."""
        pairs = (item.partition(b"=") for item in environment.split(b"\0"))
        values = {
            key: os.fsdecode(value) for key, _, value in pairs if key.startswith((b"SUPERVISOR_", b"INVOCATION_"))
        }
        # Programs of a supervisord that systemd started have both: the nearer one counts.
        if values.get(b"SUPERVISOR_ENABLED"):
            name = values.get(b"SUPERVISOR_PROCESS_NAME", "")
            group = values.get(b"SUPERVISOR_GROUP_NAME", name)
            return cls("supervisord", name if group == name else f"{group}:{name}")
        unit = os.fsdecode(control_group.strip().rpartition(b"/")[2])
        if values.get(b"INVOCATION_ID") and unit.endswith(".service"):
            return cls("systemd", unit)
        for word in os.fsdecode(control_group).replace("/docker/", "/docker-").split("/"):
            manager = {"docker": "docker", "libpod": "podman"}.get(word.partition("-")[0])
            name = word.partition("-")[2][:12]
            if manager and len(name) == 12 and name.isalnum():
                return cls(manager, name)
        # A terminal of a desktop session, a scope, has an invocation id too.
        return cls("systemd" if values.get(b"INVOCATION_ID") and not unit.endswith(".scope") else "")

    @classmethod
    def parse(cls, text: str) -> Launcher | None:
        """From what str() gave, as the pidfile has it."""
        if text == "by hand":
            return cls()
        word, _, rest = text.partition(" ")
        manager, _, name = rest.partition(" ")
        if word != "under" or manager not in TOOLS:
            return None
        return cls(manager, name[1:-1])


class Holder:
    """A process that holds the guard; None and "" are unknown.

    pid, source (see above); uid and user; up_seconds; launcher; command; stopped: by a signal or a debugger;
    pidfile: its path, where it is the same file from here; interface: "eth1,eth2"; namespaces: which of pid, network
    and mount are not ours; said: what the file tells where the pid is unknown; note: why it is.
    """

    __slots__ = (
        "command", "interface", "launcher", "namespaces", "note", "pid", "pidfile", "said", "source", "stopped",
        "uid", "up_seconds", "user",
    )  # fmt: skip

    def __init__(self, pid: int | None, source: str = "", note: str = "") -> None:
        self.pid = pid
        self.source = source
        self.note = note
        self.uid: int | None = None
        self.user: str | None = None
        self.up_seconds: int | None = None
        self.launcher: Launcher | None = None
        self.command = ""
        self.stopped = False
        self.pidfile = ""
        self.interface = ""
        self.namespaces: list[str] = []
        self.said = ""
        if pid:
            self._look(pid)

    def _look(self, pid: int) -> None:
        state = process_state(pid)
        uptime = read_file("/proc/uptime")
        if state is not None:
            self.stopped = state[0] in "Tt"
            if uptime:
                self.up_seconds = max(0, int(float(uptime.split()[0]) - state[1] / os.sysconf("SC_CLK_TCK")))
        self.uid = process_uid(pid)
        if self.uid is not None:
            self.user = _user(self.uid)
        environment = read_file(f"/proc/{pid}/environ", 1 << 22)
        if environment:
            self.launcher = Launcher.read(environment, read_file(f"/proc/{pid}/cgroup") or b"")
        words = (read_file(f"/proc/{pid}/cmdline") or b"").rstrip(b"\0").split(b"\0")
        self.command = one_line(" ".join(quote(os.fsdecode(word)) for word in words if word), 300)
        self.pidfile = _pidfile(pid)
        for kind, name in (("pid", "pid"), ("net", "network"), ("mnt", "mount")):
            try:
                if os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}"):
                    self.namespaces.append(name)
            except OSError:
                pass

    def tell(self, identity: dict[str, str]) -> None:
        """Adds what the text of the pidfile says where it is this process's."""
        if self.pid and identity.get("pid") == str(self.pid) and _alive(identity):
            self.interface = identity.get("interface", "")
            self.command = one_line(identity.get("command", ""), 300) or self.command
            if self.launcher is None:
                self.launcher = Launcher.parse(identity.get("launcher", ""))
        elif not self.pid and identity.get("boot") == boot_id():
            words = [f"pid {identity.get('pid', 'unknown')}", identity.get("launcher", ""), identity.get("command", "")]
            self.said = one_line(", ".join(word for word in words if word), 400)

    def describe(self) -> str:
        """On one line."""
        if not self.pid:
            return self.note + (f"; its pidfile says {self.said}" if self.said else "")
        parts = [f"pid {self.pid}"]
        if self.stopped:
            parts.append("stopped by a signal or a debugger (not ended)")
        if self.namespaces:
            parts.append(f"in another {' and '.join(self.namespaces)} namespace")
        parts.append(f"up {_span(self.up_seconds)}" if self.up_seconds is not None else "up unknown")
        how = f"started {self.launcher}" if self.launcher else "started in an unknown way"
        parts.append(f"{how} (user {self.user or 'unknown'})")
        parts.append(self.command or "command line unknown")
        return ", ".join(parts)

    def fields(self) -> dict[str, object]:
        """The same by name, for JSON."""
        return {
            "pid": self.pid or None,
            "source": self.source or None,
            "up_seconds": self.up_seconds,
            "launcher": str(self.launcher) if self.launcher else None,
            "user": self.user,
            "command": self.command or None,
            "stopped": self.stopped,
            "pidfile": one_line(self.pidfile) or None,
            "interface": self.interface or None,
            "other_namespaces": list(self.namespaces),
            "text": self.describe(),
        }


def own_launcher() -> Launcher:
    environment = b"\0".join(b"%s=%s" % pair for pair in os.environb.items())
    return Launcher.read(environment, read_file("/proc/self/cgroup") or b"")


def of_pidfile(held: Query, peers: Iterable[int | None]) -> Holder:
    """Who has the lock of a pidfile. `peers`: the processes on the NICs of this start; 0: one that is elsewhere."""
    peers = list(peers)
    hints = {pid: "socket" for pid in peers if pid}
    if _alive(held.identity):
        hints.setdefault(int(held.identity["pid"]), "file")
    if held.blocker > 0:
        holder = Holder(held.blocker, "lock")
    elif held.blocker == 0:
        holder = Holder(None, note=ELSEWHERE)
    else:
        holder = _search(lambda pid: _has_lock(pid, held.inode), hints, elsewhere=0 in peers)
    holder.tell(held.identity)
    holder.pidfile = held.path  # whatever it is called where the holder lives, this path leads to it
    return holder


def of_interface(index: int, peer: Peer) -> Holder:
    """Who has the socket of a NIC."""
    socket = _socket(index)
    hints = {peer.pid: "socket"} if peer.pid else {}
    if socket is None:
        return Holder(peer.pid, "socket") if peer.pid else Holder(None, note=ELSEWHERE if peer.pid == 0 else UNSEEN)
    return _search(lambda pid: _has_socket(pid, socket), hints, elsewhere=peer.pid == 0)


ELSEWHERE = "in another pid namespace (a container, or its host), its pid is not visible from here"
UNSEEN = "unknown, no process that is visible from here has it: in another pid namespace, or it has just ended"
DENIED = "unknown, other users' processes may not be looked into: start as root to see it"


def _search(holds: Callable[[int], bool | None], hints: dict[int, str], *, elsewhere: bool) -> Holder:
    """The process for which `holds` says True (None: cannot be told), the hints first."""
    unsure = []
    for pid, source in hints.items():
        answer = holds(pid)
        if answer:
            return Holder(pid, source)
        if answer is None:
            unsure.append(pid)
    if unsure:
        return Holder(unsure[0], hints[unsure[0]])
    if elsewhere:
        return Holder(None, note=ELSEWHERE)
    found, denied = [], False
    deadline = time.monotonic() + SEARCH_SECONDS
    try:
        pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return Holder(None, note=DENIED)
    for pid in pids:
        if time.monotonic() > deadline:
            break
        answer = holds(pid)
        if answer and (state := process_state(pid)):
            found.append((state[1], pid))
        denied = denied or answer is None
    if found:
        return Holder(min(found)[1], "fdinfo")  # of a parent and its workers, the parent
    return Holder(None, note=DENIED if denied else UNSEEN)


def _alive(identity: dict[str, str]) -> bool:
    """Whether the process that a pidfile names lives, and is not another one under the same pid."""
    pid, start = identity.get("pid", ""), identity.get("start", "")
    if not (pid and len(pid) < 10 and identity.get("boot") == boot_id()):
        return False
    state = process_state(int(pid))
    return state is not None and str(state[1]) == start


def _descriptors(pid: int, folder: str) -> list[str] | None:
    """None: not allowed. Empty: none, or the process is not there."""
    try:
        return os.listdir(f"/proc/{pid}/{folder}")
    except PermissionError:
        return None
    except OSError:
        return []


def _locks(pid: int, fd: str) -> list[list[bytes]] | None:
    """The locks of an open file, each a list of b"OFDLCK", b"ADVISORY", b"WRITE", pid, inode, first byte, last byte."""
    text = read_file(f"/proc/{pid}/fdinfo/{fd}")
    if text is None:
        return None
    lines = (line.split() for line in text.splitlines() if line.startswith(b"lock:"))
    return [words[2:] for words in lines if len(words) >= 9]


def _has_lock(pid: int, inode: bytes) -> bool | None:
    names = _descriptors(pid, "fdinfo")
    unreadable = 0
    for fd in names or ():
        locks = _locks(pid, fd)
        if locks is None:
            unreadable += 1
        elif any(words[2] == b"WRITE" and words[4] == inode and words[5] == b"0" for words in locks):
            return True
    if names is None:
        return None
    # A descriptor may be closed while they are read; all of them unreadable is a process that may not be looked into.
    return None if unreadable and unreadable == len(names) and process_state(pid) else False


def _socket(index: int) -> bytes | None:
    """The socket of a NIC as /proc/PID/fd shows it, the listening one before one only bound. None: not visible."""
    found = []
    name = b"@" + address(index)[1:].encode("ascii")
    for line in (read_file("/proc/net/unix", 1 << 26) or b"").splitlines():
        fields = line.split()
        if len(fields) == 8 and fields[7] == name and fields[6] != b"0":
            found.append((fields[3] != b"00010000", b"socket:[%s]" % fields[6]))
    return min(found)[1] if found else None


def _has_socket(pid: int, socket: bytes) -> bool | None:
    names = _descriptors(pid, "fd")
    if names is None:
        return None
    for fd in names:
        try:
            if os.fsencode(os.readlink(f"/proc/{pid}/fd/{fd}")) == socket:
                return True
        except OSError:
            continue
    return False


def packet_sockets(pid: int) -> dict[str, int] | None:
    """Those that receive in the network namespace of this process, as /proc/PID/fd shows them, and the index of the NIC
    of each. None: not visible."""
    text = read_file(f"/proc/{pid}/net/packet", 1 << 26)
    if text is None:
        return None
    # sk RefCnt Type Proto Iface R Rmem User Inode; one without a protocol only sends
    lines = (line.split() for line in text.splitlines()[1:])
    return {f"socket:[{int(f[8])}]": int(f[4]) for f in lines if len(f) == 9 and int(f[3], 16)}


def captures(pid: int) -> bool:
    """Whether the process has a packet socket of this network namespace that receives. True where it may not be
    looked into."""
    sockets = packet_sockets(os.getpid()) or {}
    names = _descriptors(pid, "fd")
    for fd in names or ():
        try:
            if os.readlink(f"/proc/{pid}/fd/{fd}") in sockets:
                return True
        except PermissionError:
            return True
        except OSError:
            continue
    return names is None


def _pidfile(pid: int) -> str:
    """The path of the file of which this process has byte 0 locked. "": none to be seen, or another file from here."""
    for fd in _descriptors(pid, "fdinfo") or ():
        for words in _locks(pid, fd) or ():
            if words[0] == b"OFDLCK" and words[5:7] == [b"0", b"0"]:
                try:
                    path = os.readlink(f"/proc/{pid}/fd/{fd}")
                    if os.path.samestat(os.stat(path), os.stat(f"/proc/{pid}/fd/{fd}")):
                        return path
                except OSError:
                    pass
    return ""


def _user(uid: int) -> str:
    """By /etc/passwd alone: a directory service may make one wait."""
    for line in (read_file("/etc/passwd", 1 << 22) or b"").splitlines():
        fields = line.split(b":")
        if len(fields) > 2 and fields[2] == b"%d" % uid:
            return one_line(os.fsdecode(fields[0]), 64)
    return f"uid {uid}"


def _span(seconds: int) -> str:
    """3d04h, 4h07m, 12m05s, 42s."""
    minutes, second = divmod(seconds, 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d{hour:02}h"
    if hours:
        return f"{hours}h{minute:02}m"
    return f"{minutes}m{second:02}s" if minutes else f"{second}s"
