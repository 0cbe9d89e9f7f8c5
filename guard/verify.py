"""Finds what the guard should have kept out, without asking the guard.

What is looked at: every packet socket of every network namespace in which a process is visible, and the processes that
have it open; the sockets and file locks of the guard in the same way; the files that are locked, and the text in them.

A copy is an http-capture that captures, or any program that has the guard's lock of a NIC; its workers are the same
copy. Each finding is one of
    copy         one that runs, and how it was started
    fault        two copies on one NIC, or a copy whose guard is missing or damaged: exit 1
    unknown      something that cannot be seen from here and could be a fault: exit 4
    information  what is no fault

Invariants:
- Nothing is locked, connected to or changed, and no process is asked anything.
- Names and command lines alone make no copy: it has a socket or a lock that the kernel shows.
- What is seen is no single moment: what is bad counts when it is there at a second look.
"""

from __future__ import annotations

import os
import socket
import time

from . import GuardError
from . import interface as nics
from .holder import Holder, packet_sockets
from .pidfile import absolute, boot_id, one_line, parse, process_state, process_uid, query, read_file, trusted
from .status import managed, may_capture, parent, unfit, verb

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .pidfile import Query

    Nic = tuple[str, int]  # network namespace, and the index in it; 0: all of them

SECOND_LOOK_SECONDS = 0.5
NAME = b"@http-capture/if/"


class Finding:
    """One line: `kind` (see above), `text`, and the processes that it is about."""

    __slots__ = ("kind", "pids", "text")

    def __init__(self, kind: str, text: str, pids: Iterable[int] = ()) -> None:
        self.kind = kind
        self.text = one_line(text)
        self.pids = sorted(pids)


class Lock:
    """A file of which a process has byte 0 locked.

    fd; inode: as the kernel writes it in lock lines; path: as the process sees it; ofd: a lock of this guard's kind (an
    older guard has a POSIX lock); beacon: the lock that names the process is there too."""

    __slots__ = ("beacon", "fd", "inode", "ofd", "path")

    def __init__(self, fd: str, inode: bytes, path: str, ofd: bool) -> None:
        self.fd = fd
        self.inode = inode
        self.path = path
        self.ofd = ofd
        self.beacon = False


class Process:
    """One that has such a socket, or is an http-capture: the NICs that it captures, those whose lock it has (by the
    name of the socket), and the files that it has locked."""

    __slots__ = ("guards", "locks", "packets", "pid", "start", "verb")

    def __init__(self, pid: int, start: int, sockets: Sockets, names: Iterable[str]) -> None:
        self.pid = pid
        self.start = start
        self.verb = verb(pid)
        self.packets = {sockets.packets[name] for name in names if name in sockets.packets}
        self.guards = {name: sockets.guards[name] for name in names if name in sockets.guards}
        self.locks = _locks(pid)


class Copy:
    """One copy: `main` is the oldest of its `processes`, the others are its workers. Of the locks those of `main`."""

    __slots__ = ("guards", "holder", "locks", "main", "packets", "processes")

    def __init__(self, processes: list[Process]) -> None:
        self.processes = sorted(processes, key=lambda process: (process.start, process.pid))
        self.main = self.processes[0]
        self.packets = {nic for process in processes for nic in process.packets}
        self.guards = {nic for process in processes for nic in process.guards.values()}
        self.locks = self.main.locks
        self.holder = Holder(self.main.pid)

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self.processes]

    def short(self) -> str:
        return f"pid {self.main.pid} ({self.holder.launcher or 'started in an unknown way'})"

    def fields(self, scan: Scan) -> dict[str, object]:
        """For JSON."""
        return {
            **self.holder.fields(),
            "processes": self.pids,
            "pidfiles": [one_line(lock.path) for lock in self.locks],
            "captures": scan.names(self.packets),
            "interface_locks": scan.names(self.guards),
        }


class Report:
    """The copies, the findings, the exit code and the verdict in words."""

    __slots__ = ("code", "copies", "findings", "verdict")

    def __init__(self, copies: list[dict[str, object]], findings: list[Finding], running: bool) -> None:
        self.copies = copies
        self.findings = findings
        kinds = [finding.kind for finding in findings]
        if "fault" in kinds:
            self.code, self.verdict = 1, f"NOT AS IT SHOULD BE, faults: {kinds.count('fault')}"
        elif "unknown" in kinds:
            self.code, self.verdict = 4, "unknown: not everything can be seen from here"
        elif not running:
            self.code, self.verdict = 3, "not running"
        else:
            self.code, self.verdict = 0, "fine: one copy, and its guard is whole"


class Sockets:
    """The packet sockets that receive, and those of the guard, by their name in /proc/PID/fd; the names of NICs."""

    __slots__ = ("guards", "names", "packets")

    def __init__(self) -> None:
        self.packets: dict[str, Nic] = {}
        self.guards: dict[str, Nic] = {}
        self.names: dict[Nic, str] = {}

    def add(self, space: str, pid: int) -> bool:
        """Those of the network namespace in which this process is. False: it has ended."""
        packets = packet_sockets(pid)
        listening = read_file(f"/proc/{pid}/net/unix", 1 << 26)
        if packets is None or listening is None:
            return False
        self.packets.update({name: (space, index) for name, index in packets.items()})
        for line in listening.splitlines():
            fields = line.split()
            index = fields[7].removeprefix(NAME) if len(fields) == 8 and fields[7].startswith(NAME) else b""
            if index.isdigit() and len(index) < 10 and fields[6] != b"0":  # a connection has the name too, and inode 0
                self.guards[f"socket:[{int(fields[6])}]"] = (space, int(index))
        for line in (read_file(f"/proc/{pid}/net/dev_mcast") or b"").splitlines():
            fields = line.split()
            if len(fields) > 1:
                self.names[space, int(fields[0])] = one_line(os.fsdecode(fields[1]), 20)
        return True


class Scan:
    """All that is seen at one look, and where it is looked from (`home`, a network namespace).

    copies; others: processes of other programs that capture; unowned: NICs with a socket whose process is not visible;
    denied: processes that may not be looked into."""

    __slots__ = ("copies", "denied", "home", "others", "sockets", "unowned")

    def __init__(self) -> None:
        self.home = _link("/proc/self/ns/net") or ""
        self.sockets = Sockets()
        self.denied: set[int] = set()
        pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
        spaces: set[str] = set()
        for pid in pids:
            space = _link(f"/proc/{pid}/ns/net")
            if space and space not in spaces and self.sockets.add(space, pid):
                spaces.add(space)
        for index, name in socket.if_nameindex():
            self.sockets.names[self.home, index] = one_line(name, 20)
        owned: set[str] = set()
        processes = [process for pid in pids if (process := self._process(pid, owned)) is not None]
        members = [
            process for process in processes
            if process.guards or (process.verb == "run" and (process.packets or process.locks))
        ]  # fmt: skip
        self.copies = _copies(members)
        self.others = [process for process in processes if process.packets and process not in members]
        self.unowned = {
            nic for name, nic in (self.sockets.packets | self.sockets.guards).items() if name not in owned
        }  # fmt: skip

    def _process(self, pid: int, owned: set[str]) -> Process | None:
        """The process where it is of interest. Adds its sockets to `owned`."""
        state = process_state(pid)
        if state is None or state[0] in "ZX":
            return None
        try:
            links = [_link(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
            os.readlink(f"/proc/{pid}/ns/net")  # listing them may be allowed where reading them is not
        except PermissionError:
            self.denied.add(pid)
            return None
        except OSError:
            return None
        names = [link for link in links if link and (link in self.sockets.packets or link in self.sockets.guards)]
        owned.update(names)
        return Process(pid, state[1], self.sockets, names) if names or verb(pid) == "run" else None

    def names(self, those: Iterable[Nic]) -> list[str]:
        return [self.name(nic) for nic in sorted(those)]

    def name(self, nic: Nic) -> str:
        space, index = nic
        known = "any" if index == 0 else self.sockets.names.get(nic, f"interface number {index}")
        if index < 0:
            known = "a NIC that is gone"
        return known if space == self.home else f"{known} of network namespace {space.strip('net:[]')}"


def verify(pidfile: str, interfaces: Sequence[str], *, expect_supervised: bool) -> Report:
    """Looks at everything that is visible, and tells whether the copy of this pidfile or these NICs is fine.

    Takes half a second longer where something is not. Raises nothing that an operator can cause."""
    report = _verify(pidfile, interfaces, expect_supervised)
    if report.code in (1, 4):
        time.sleep(SECOND_LOOK_SECONDS)
        report = _verify(pidfile, interfaces, expect_supervised)
    return report


def _verify(pidfile: str, interfaces: Sequence[str], expect_supervised: bool) -> Report:
    findings: list[Finding] = []
    path, asked = _ask(pidfile, findings)
    wanted: set[Nic] = set()
    absent: list[str] = []
    scan = Scan()
    for name in interfaces:
        try:
            wanted.add((scan.home, 0 if name == nics.ANY else socket.if_nametoindex(name)))
        except (OSError, ValueError):
            absent.append(f"interface {one_line(name, 100)}: there is none of this name here")
    findings += _unseen(scan)
    judged = []
    for copy in scan.copies:
        captures = ", ".join(scan.names(copy.packets)) or "nothing at this moment"
        files = ", ".join(lock.path for lock in copy.locks) or "none"
        workers = f"; workers: {len(copy.processes) - 1}" if len(copy.processes) > 1 else ""
        text = f"{copy.holder.describe()}; pidfile {files}; captures {captures}{workers}"
        # Whoever has a namespace of his own may call himself anything in it, and can capture nothing of this host.
        if _elsewhere(copy, scan):
            findings.append(Finding("information", f"{text}; in a user namespace of its own, not judged", copy.pids))
            continue
        findings.append(Finding("copy", text, copy.pids))
        findings += _of_copy(copy, scan, asked.inode if asked is not None else b"")
        judged.append(copy)
    findings += _duplicates(judged, scan)
    mine = _asked(judged, path, asked, wanted, scan, findings)
    for text in absent:
        findings.append(Finding("fault", f"{text}: nothing captures it") if mine else Finding("information", text))
    if expect_supervised:
        for copy in mine:
            manager = copy.holder.launcher.manager if copy.holder.launcher else ""
            if manager not in ("supervisord", "systemd") or not managed(copy.main.pid, copy.holder.launcher):
                gone = ", which is gone" if manager == "supervisord" else ""
                text = f"{copy.short()}{gone}: it is not looked after by supervisord or systemd"
                findings.append(Finding("fault", text, copy.pids))
    watched = wanted | {nic for copy in judged for nic in copy.packets | copy.guards}
    findings += _others(scan, watched)
    return Report([copy.fields(scan) for copy in judged], findings, bool(mine))


def _unseen(scan: Scan) -> list[Finding]:
    """What could not be looked into, and whether a copy may be in it: one has a socket that belongs to nobody else."""
    uid = os.geteuid()
    hidden = sorted(scan.denied)
    if uid != 0 or (hidden and (scan.unowned or any(verb(pid) == "run" for pid in hidden))):
        text = f"uid {uid} may not look into every process: run verify as root, where the copies run"
        return [Finding("unknown", text)]
    if hidden:
        pids = ", ".join(map(str, hidden[:5])) + (", ..." if len(hidden) > 5 else "")
        text = f"processes that may not be looked into even by this root: pid {pids}; none is known to capture"
        return [Finding("information", text)]
    return []


def _ask(pidfile: str, findings: list[Finding]) -> tuple[str, Query | None]:
    """The pidfile that was asked for: its path, and what the kernel says."""
    try:
        path = absolute(pidfile)
        return path, query(path)
    except GuardError as error:
        findings.append(Finding("fault", str(error)))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it holds a NUL"
        findings.append(Finding("unknown", f"pidfile {pidfile} cannot be looked into ({reason})"))
    return pidfile, None


def _of_copy(copy: Copy, scan: Scan, asked: bytes) -> list[Finding]:
    """What is wrong with the guard of one copy. `asked`: the file that was asked for."""
    found: list[Finding] = []
    pid, who = copy.main.pid, copy.short()

    def fault(text: str) -> None:
        found.append(Finding("fault", text, copy.pids))

    uid = process_uid(pid)
    if not copy.packets and uid is not None and not trusted(uid) and not may_capture(pid):
        if any(space == scan.home for space, _ in copy.guards):
            fault(f"{who} keeps the lock of {', '.join(scan.names(copy.guards))}, captures nothing and may not: end it")
        return found
    if not copy.locks:
        fault(f"{who} runs without a guard: it has no pidfile locked; an older version, or none of this program")
    for lock in copy.locks:
        path = lock.path
        if not _in_place(pid, lock):
            fault(f"{who}: its pidfile {path} was removed or replaced; another start could lock the new one")
            continue
        if not lock.ofd:
            fault(f"{who}: the lock of {path} is that of an older version, which loses it easily")
            continue
        told = parse(read_file(f"/proc/{pid}/fd/{lock.fd}", 8192) or b"")
        if told.get("pid") not in _pids(pid) or told.get("start") != str(copy.main.start):
            named = told.get("pid", "nobody")
            fault(f"{who}: the text in {path} names {named}, not it: overwritten, or its parent has died")
        elif told.get("boot") != boot_id():
            fault(f"{who}: the text in {path} has the boot id of another boot")
        if not lock.beacon:
            fault(f"{who}: {path} has lost the lock that names its holder")
    for nic in sorted(copy.packets):
        if nic[1] < 0 or nic in copy.guards or (nic[0], 0) in copy.guards:
            continue
        text = f"{who} captures {scan.name(nic)} without its lock: another pidfile is enough for a second copy"
        chosen = any(lock.ofd and lock.inode == asked for lock in copy.locks)
        found.append(Finding("information" if chosen else "fault", text, copy.pids))
    return found


def _duplicates(copies: list[Copy], scan: Scan) -> list[Finding]:
    """Two copies on one NIC, or one on all NICs beside another."""
    shared: dict[Nic, list[Copy]] = {}
    for nic in {nic for copy in copies for nic in copy.packets if nic[1] >= 0}:
        there = [copy for copy in copies if nic in copy.packets or (nic[0], 0) in copy.packets]
        if len(there) > 1:
            shared[nic] = there
    return [
        Finding(
            "fault",
            f"{scan.name(nic)} is captured by {len(there)} copies, every record is sent {len(there)} times: "
            + ", ".join(copy.short() for copy in there),
            [copy.main.pid for copy in there],
        )
        for nic, there in sorted(shared.items())
    ]


def _asked(
    copies: list[Copy], path: str, asked: Query | None, wanted: set[Nic], scan: Scan, findings: list[Finding]
) -> list[Copy]:
    """The copies of the pidfile and the NICs that were asked for. They should be one."""
    by_file = [copy for copy in copies if asked and any(lock.inode == asked.inode for lock in copy.locks)]
    if 0 in {index for _, index in wanted}:
        by_nic = [copy for copy in copies if any(nic[0] == scan.home for nic in copy.packets | copy.guards)]
    else:
        by_nic = (
            [copy for copy in copies if (wanted | {(scan.home, 0)}) & (copy.packets | copy.guards)] if wanted else []
        )
    mine = [copy for copy in copies if copy in by_file or copy in by_nic]
    if asked is not None and asked.locked and not by_file:
        if asked.blocker > 0 and asked.blocker not in scan.denied:
            text = f"{path} is locked by one that captures nothing: {Holder(asked.blocker).describe()}"
            findings.append(Finding("fault", text, [asked.blocker]))
        else:
            findings.append(Finding("unknown", f"{path} is locked by a process that cannot be seen from here"))
    elif asked is not None and not asked.locked and (doubt := unfit(path)):
        findings.append(Finding("information", f"{doubt}: a start as this user will be refused"))
    if by_file and by_nic and not set(map(id, by_file)) & set(map(id, by_nic)):
        text = f"{path} is held by {by_file[0].short()}, and the NIC by {by_nic[0].short()}"
        findings.append(Finding("fault", text, [by_file[0].main.pid, by_nic[0].main.pid]))
    elif by_nic and not by_file and not (asked and asked.locked):
        findings.append(Finding("information", f"{path} is not locked by {by_nic[0].short()}", by_nic[0].pids))
    return mine


def _others(scan: Scan, watched: set[Nic]) -> list[Finding]:
    """Other programs on the NICs that matter, and sockets whose process is not visible."""

    def overlaps(nic: Nic) -> bool:
        return nic in watched or (nic[0], 0) in watched or (nic[1] == 0 and any(nic[0] == one[0] for one in watched))

    found = []
    for process in scan.others:
        if there := [nic for nic in process.packets if overlaps(nic)]:
            who = Holder(process.pid).describe()
            text = f"{', '.join(scan.names(there))} is captured by another program too, which is no fault: {who}"
            found.append(Finding("information", text, [process.pid]))
    for nic in sorted(scan.unowned):
        if overlaps(nic):
            text = f"{scan.name(nic)} has a capture or a lock of a process that cannot be seen from here"
            found.append(Finding("unknown", text))
    return found


def _copies(members: list[Process]) -> list[Copy]:
    """The processes by copy: a worker has its parent's socket of the guard, or is at least its child."""
    by_pid = {process.pid: process for process in members}
    groups: dict[object, list[Process]] = {}
    for process in members:
        first = process
        while (above := parent(first.pid)) in by_pid and above != first.pid:
            first = by_pid[above]
        groups.setdefault(min(first.guards, default=first.pid), []).append(process)
    return sorted(map(Copy, groups.values()), key=lambda copy: (copy.main.start, copy.main.pid))


def _elsewhere(copy: Copy, scan: Scan) -> bool:
    own = _link(f"/proc/{copy.main.pid}/ns/user") == _link("/proc/self/ns/user")
    return not own and all(space != scan.home for space, _ in copy.packets | copy.guards)


def _locks(pid: int) -> list[Lock]:
    """The files of which the process has byte 0 locked: those of this guard, else those of an older one."""
    found: dict[bytes, Lock] = {}
    beacons = set()
    try:
        fds = sorted(os.listdir(f"/proc/{pid}/fdinfo"), key=int)
    except OSError:
        return []
    for fd in fds:
        for line in (read_file(f"/proc/{pid}/fdinfo/{fd}") or b"").splitlines():
            words = line.split()  # lock: 1: OFDLCK ADVISORY WRITE pid device:inode first last
            if len(words) < 9 or words[0] != b"lock:" or words[4] != b"WRITE":
                continue
            kind, inode, first, last = words[2], words[6], words[7], words[8]
            ofd = kind == b"OFDLCK" and (first, last) == (b"0", b"0")
            if ofd or (kind == b"POSIX" and (first, last) == (b"0", b"EOF")):
                found.setdefault(inode, Lock(fd, inode, _link(f"/proc/{pid}/fd/{fd}") or "", ofd))
            elif kind == b"POSIX" and (first, last) == (b"1", b"EOF"):
                beacons.add(inode)
    for inode in beacons & found.keys():
        found[inode].beacon = True
    locks = list(found.values())
    return [lock for lock in locks if lock.ofd] or locks


def _in_place(pid: int, lock: Lock) -> bool:
    """Whether the path still leads to the locked file, here or where the process lives."""
    for path in (f"/proc/{pid}/root{lock.path}", lock.path):
        try:
            if os.path.samestat(os.stat(path), os.stat(f"/proc/{pid}/fd/{lock.fd}")):
                return True
        except OSError:
            continue
    return False


def _pids(pid: int) -> list[str]:
    """The process's number here and in its own pid namespace."""
    for line in (read_file(f"/proc/{pid}/status") or b"").splitlines():
        if line.startswith(b"NSpid:"):
            return line.decode("ascii", "replace").split()[1:]
    return [str(pid)]


def _link(path: str) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None
