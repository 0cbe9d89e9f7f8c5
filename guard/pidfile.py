"""The pidfile: its locks and the text of who holds it. Steps 1-5, 7, 8 and 10 of the guard.

    take(): open -> check -> lock -> in place? --no--> start over, at most 50 times
                       |       |        |
                   GuardError Held   beacon -> Held
                                        |
                                     locked, the old text still in it
                                        |
                                     write(): the text is this process's
                                        |
                                     check(), now and then: still so, or made so again
                                        |
                                     empty(), close(): no text, unlocked

Invariants:
- The file is never truncated before it is locked, and never removed: removing it would let a newcomer lock another one.
- Byte 0 carries the lock: an OFD lock, which closing another descriptor of the file does not drop, which forked
  children share, and which the POSIX lock of the first remedy conflicts with. It decides.
- The bytes from 1 on carry the beacon: a POSIX lock, by which the kernel names the holder. It is taken only by who has
  byte 0, and conflicts with the first remedy too. Closing any descriptor of the file in the holder's process drops it,
  and a forked child does not have it: check() takes it again.
- New text is written over the old and then cut to length, so a reader never finds a held file empty once it was
  written. A reader stops after the `command` line: what follows it is the rest of an older text.
- check() gives up the file that was locked only after another one at the path is locked, judged as at a start.
- The descriptor is 3 or above: a start with standard error closed must not print into the file.

The text: the bare pid, then `boot`, `start` (ticks since boot), `interface`, `instance`, `launcher`, `command`, one
line each, `key: value`, printable.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct

from . import GuardError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from . import Findings

ATTEMPTS = 50
TEXT_BYTES = 8192
LOOK = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
ELSEWHERE = "choose another with --pidfile"
REMOTE = frozenset(
    (
        "9p", "afs", "beegfs", "ceph", "cifs", "coda", "fuse", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs",
        "nfs4", "ocfs2", "orangefs", "pvfs2", "smb3", "smbfs", "virtiofs",
    )
)  # fmt: skip


class Query:
    """Who has locked a pidfile, by the kernel.

    path      of the file
    inode     the file as the kernel writes it in lock lines: b"00:1f:1234" (device in hex, inode)
    locked    whether a start is refused by a lock: on byte 0, or on the beacon
    first     whether byte 0 is locked: by who runs, or is about to be refused
    ofd       whether that lock is of this guard's kind; the first remedy and other programs have POSIX locks
    blocker   pid of the holder where the kernel names it (a POSIX lock); 0: in another pid namespace; -1: not named
    identity  the text of the file, see parse(); of whoever wrote it last, alive or not
    """

    __slots__ = ("blocker", "first", "identity", "inode", "locked", "ofd", "path")

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self.inode = _file_system(fd, os.fstat(fd))[1]
        first = _blocker(fd, LOCK)
        beacon = _blocker(fd, BEACON) if first is None or first < 0 else None
        self.first = first is not None
        self.locked = self.first or beacon is not None
        self.ofd = first == -1
        self.blocker = next((pid for pid in (first, beacon) if pid is not None and pid >= 0), -1)
        self.identity = parse(os.pread(fd, TEXT_BYTES, 0))


class Held(Exception):
    """Another process has the lock."""

    def __init__(self, query: Query) -> None:
        super().__init__(query.path)
        self.query = query


class Pidfile:
    """A locked pidfile: `write()`, any number of `check()`, `empty()`, then `close()`, which unlocks it.

    After close() empty() and close() do nothing, and check() is not to be called."""

    __slots__ = ("_fd", "_file", "_text", "_uid", "path")

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self._fd = fd
        self._file = os.fstat(fd)
        self._uid = os.geteuid()
        self._text = b""

    @classmethod
    def take(cls, path: str) -> Pidfile:
        """Opens, checks and locks the file. Raises Held where another process has it, GuardError where it is unfit."""
        for _ in range(ATTEMPTS):
            fd = _open(path)
            kept = False
            try:
                _check(path, fd)
                if not _lock(path, fd, fcntl.F_OFD_SETLK, LOCK):
                    raise Held(Query(path, fd))
                if _in_place(path, os.fstat(fd)):
                    if not _lock(path, fd, fcntl.F_SETLK, BEACON):
                        raise Held(Query(path, fd))
                    kept = True
                    return cls(path, fd)
            finally:
                if not kept:
                    os.close(fd)
        raise fault(path, "is replaced by another file again and again", f"find out what replaces it, or {ELSEWHERE}")

    def write(self, interface: str, instance: str, launcher: str, command: Sequence[str]) -> None:
        """Makes the text this process's. GuardError where it cannot be written; the file is then empty. Or as it was,
        where its text is that of something else: a file that was named by mistake."""
        _empty_or_ours(self.path, self._fd)
        self._text = compose(interface, instance, launcher, command)
        try:
            self._put()
        except OSError as error:
            self.empty()
            raise _failed(self.path, error) from None

    def check(self, findings: Findings, *, alone: bool) -> None:
        """Step 8: the locks, the path and the text are this process's, or are made so again. Raises nothing.

        `alone`: there is no lock of a NIC beside this one, so that one who locks another file at the path does run."""
        try:
            if not self._is_open():
                self._again(findings, "was closed inside this process", alone)
            elif not _lock(self.path, self._fd, fcntl.F_OFD_SETLK, LOCK):
                self._rival(findings, Query(self.path, self._fd), alone)
            else:
                if not _lock(self.path, self._fd, fcntl.F_SETLK, BEACON):
                    who = _process(_blocker(self._fd, BEACON))
                    findings.fault(f"pidfile {self.path}: {who} has locked a part of it, so this copy is not named")
                if _in_place(self.path, self._file):
                    self._mend_text(findings)
                else:
                    self._again(findings, "was removed or replaced", alone)
        except GuardError as error:
            findings.fault(str(error))
        except OSError as error:
            findings.fault(str(_failed(self.path, error)))

    def empty(self) -> None:
        """Takes this process's text out."""
        if self._is_open():
            try:
                os.ftruncate(self._fd, 0)
            except OSError:
                return  # A file system gone read-only: stale text, which every reader has to expect anyway.

    def close(self) -> None:
        if self._is_open():
            os.close(self._fd)
        self._fd = -1

    def _is_open(self) -> bool:
        """Whether the descriptor is still that of the locked file, and not closed, or another one's by now."""
        try:
            return self._fd >= 0 and os.path.samestat(os.fstat(self._fd), self._file)
        except OSError:
            return False

    def _put(self) -> None:
        if os.fstat(self._fd).st_mode & 0o077:  # who can read it could lock it too, and so block each start
            os.fchmod(self._fd, 0o600)
        if os.pwrite(self._fd, self._text, 0) != len(self._text):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.ftruncate(self._fd, len(self._text))

    def _mend_text(self, findings: Findings) -> None:
        if os.pread(self._fd, len(self._text) + 1, 0) != self._text:
            self._put()
            findings.repaired(f"pidfile {self.path}: its text was changed, it is written again; find out who does that")

    def _again(self, findings: Findings, what: str, alone: bool) -> None:
        """Takes the file that the path names now, made anew where there is none, in place of the one that was."""
        if os.geteuid() != self._uid:
            # A later start, as the first user, would refuse a file of this one: better none than that.
            problem = f"pidfile {self.path}: {what}; privileges were dropped, so only a new start makes it again"
        else:
            try:
                new = Pidfile.take(self.path)
            except Held as held:
                self._rival(findings, held.query, alone)
                return
            except GuardError as error:
                problem = f"{error} (it {what}, this copy keeps the one that it had)"
            else:
                self.close()
                self._fd, self._file = new._fd, new._file
                findings.repaired(f"pidfile {self.path}: {what}, it is there and locked again; find out who does that")
                self._put()
                return
        try:
            there = query(self.path)
        except (GuardError, OSError):
            there = None
        if there is not None and there.locked:
            self._rival(findings, there, alone, fit=False)
        else:
            findings.fault(problem)

    def _rival(self, findings: Findings, there: Query, alone: bool, *, fit: bool = True) -> None:
        """Another process has locked the file at the path. `fit`: a start would have taken it.

        It runs beside this copy if it is the first remedy, which knows no lock of a NIC, or if there is none; not by
        what another user's process did, nor with a file that a start refuses. Beside the lock of a
        NIC, the first remedy is known by its capture: who can move files into the folder could otherwise end this copy
        with the pidfile of any other program."""
        from .holder import captures

        uid = process_uid(there.blocker) if there.blocker > 0 else None
        if there.ofd:
            runs = alone and fit
        else:
            runs = there.first and (fit if uid is None else trusted(uid) and (alone or captures(there.blocker)))
        has = f"pidfile {self.path}: {_process(there.blocker)} has the lock of the file that is there now"
        if runs:
            line = f"{has} and may run too; this copy ends so that one is left; http-capture verify shows who records"
        else:
            line = f"{has}; this copy keeps the one that it had; end that process, or remove the file"
        findings.rival(line, lost=runs)


def query(path: str) -> Query | None:
    """Who has locked this file, without touching it. None: there is no file. GuardError: it is no regular file.

    An OSError passes through: not permitted, above all. Not for the holder's own process: closing a descriptor of the
    file there drops the beacon."""
    try:
        _regular(path, os.lstat(path).st_mode)  # opening a device can do something
        fd = os.open(path, LOOK)
    except FileNotFoundError:
        return None
    try:
        _regular(path, os.fstat(fd).st_mode)
        return Query(path, fd)
    finally:
        os.close(fd)


def absolute(path: str) -> str:
    """The path from the root, nothing else changed: the operator who reads it may be in another folder."""
    try:
        return path if path.startswith("/") else os.path.join(os.getcwd(), path)
    except OSError:
        raise fault(path, "the current folder does not exist", "give the path from the root") from None


def compose(interface: str, instance: str, launcher: str, command: Sequence[str]) -> bytes:
    """The text of this process, in at most TEXT_BYTES."""
    process = process_state(os.getpid())
    boot = boot_id()
    if process is None or not boot:
        raise GuardError("/proc cannot be read: mount it; the guard needs it to name this process")
    lines = (
        str(os.getpid()),
        f"boot: {boot}",
        f"start: {process[1]}",
        f"interface: {one_line(interface, 400)}",
        f"instance: {one_line(instance, 200)}",
        f"launcher: {one_line(launcher, 200)}",
        f"command: {one_line(' '.join(quote(word) for word in command))}",
    )
    return "".join(f"{line}\n" for line in lines).encode("utf-8")


def parse(text: bytes) -> dict[str, str]:
    """The lines of a pidfile by key, the bare pid as `pid`. Total: what is no such text gives what could be read."""
    found: dict[str, str] = {}
    for number, line in enumerate(text.decode("utf-8", "replace").split("\n")):
        key, separator, value = line.partition(": ")
        if number == 0 and line.strip().isascii() and line.strip().isdigit():
            found["pid"] = line.strip()
        elif separator:
            found.setdefault(key, value)
            if key == "command":
                break
    return found


def boot_id() -> str:
    return (read_file("/proc/sys/kernel/random/boot_id") or b"").decode("ascii", "replace").strip()


def process_state(pid: int) -> tuple[str, int] | None:
    """State letter and start time in ticks since boot: /proc/PID/stat fields 3 and 22. None: not there."""
    # The name in field 2 may hold anything, spaces and parentheses too: count from the last one.
    fields = (read_file(f"/proc/{pid}/stat") or b"").rpartition(b")")[2].split()
    return (fields[0].decode("ascii", "replace"), int(fields[19])) if len(fields) > 19 else None


def process_uid(pid: int) -> int | None:
    """The effective user. None: not there, or not visible."""
    for line in (read_file(f"/proc/{pid}/status") or b"").splitlines():
        if line.startswith(b"Uid:"):
            return int(line.split()[2])
    return None


def trusted(uid: int) -> bool:
    """Root and this user: others may get in the way of a start, but not of who runs."""
    return uid in (0, os.geteuid())


def read_file(path: str, limit: int = 65536) -> bytes | None:
    """The first bytes of a file of /proc. None: not there, or not allowed."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return None
    parts = []
    try:
        while limit > 0 and (part := os.read(fd, limit)):
            parts.append(part)
            limit -= len(part)
    except OSError:
        return None
    finally:
        os.close(fd)
    return b"".join(parts)


def one_line(text: str, limit: int = 2000) -> str:
    """The text on one line of at most `limit` bytes, with what does not print escaped."""
    shown = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text[:limit])
    octets = shown.encode("utf-8")
    return shown if len(octets) <= limit else octets[: limit - 3].decode("utf-8", "ignore") + "..."


def quote(word: str) -> str:
    """The word as a shell takes it."""
    if word and all(char.isalnum() or char in "%+,-./:=@_" for char in word):
        return word
    return "'" + word.replace("'", "'\"'\"'") + "'"


def above_standard(fd: int) -> int:
    """The same descriptor as 3 or above, where a closed standard stream left its number free."""
    if fd > 2:
        return fd
    moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    os.close(fd)
    return moved


def fault(path: str, reason: str, remedy: str) -> GuardError:
    return GuardError(one_line(f"pidfile {path}: {reason}; {remedy}"))


def _failed(path: str, error: OSError) -> GuardError:
    """A failed system call on the file as an operator's error."""
    number = error.errno
    folder = os.path.dirname(path) or "."
    if number in (errno.ELOOP, errno.ENXIO, errno.EISDIR, errno.ENOENT):
        try:
            _regular(path, os.lstat(path).st_mode)
        except OSError:
            pass
        except GuardError as known:
            return known
    if number == errno.ENOENT:
        return fault(path, "its folder does not exist", f"mkdir {quote(folder)}, or {ELSEWHERE}")
    if number == errno.ENOTDIR:
        return fault(path, "its folder is not a folder", ELSEWHERE)
    if number in (errno.EACCES, errno.EPERM):
        remedy = f"start as root, or make a folder for this user in /run, and {ELSEWHERE}"
        return fault(path, f"not permitted for uid {os.geteuid()}", remedy)
    if number == errno.EROFS:
        return fault(path, "its file system is read-only", ELSEWHERE)
    if number == errno.EAGAIN:
        return fault(path, "another process has a lease on it", f"find out which (/proc/locks), or {ELSEWHERE}")
    if number in (errno.ENOSPC, errno.EDQUOT):
        return fault(path, "its file system is full", f"free space there (df, df -i), or {ELSEWHERE}")
    return fault(path, os.strerror(number) if number else str(error), ELSEWHERE)


def _open(path: str) -> int:
    """Step 1."""
    try:
        # Opening a device can do something (rewind a tape, arm a watchdog): look first. The check that counts is later.
        kind = os.lstat(path).st_mode
        if stat.S_ISCHR(kind) or stat.S_ISBLK(kind):
            _regular(path, kind)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise _failed(path, error) from None
    except ValueError:
        raise fault(path, "holds a NUL", ELSEWHERE) from None
    try:
        return above_standard(os.open(path, FLAGS, 0o600))
    except OSError as error:
        raise _failed(path, error) from None


def _check(path: str, fd: int) -> None:
    """Step 2."""
    status = os.fstat(fd)
    _regular(path, status.st_mode)
    if not trusted(status.st_uid):
        raise fault(path, f"belongs to uid {status.st_uid}", f"remove it if it is not in use, or {ELSEWHERE}")
    if status.st_mode & 0o022:
        raise fault(
            path, f"others may write it (mode {stat.S_IMODE(status.st_mode):04o})", f"chmod 600 it, or {ELSEWHERE}"
        )
    if status.st_nlink > 1:
        raise fault(path, f"has {status.st_nlink} names (hard links)", f"remove the others, or {ELSEWHERE}")
    kind, _ = _file_system(fd, status)
    if kind in REMOTE or kind.startswith("fuse."):
        raise fault(path, f"is on a network file system ({kind})", "choose one on this host, in /run, with --pidfile")
    if not kind and os.major(status.st_dev) == 0:
        raise fault(path, "the type of its file system cannot be seen", "mount /proc, or choose one in /run")


def _empty_or_ours(path: str, fd: int) -> None:
    """What begins with a pid was a pidfile; NULs are what is left of one after a loss of power."""
    text = os.pread(fd, TEXT_BYTES, 0).strip(b"\0\t\n\r ")
    first = text.split(b"\n")[0].strip()
    if text and not first.isdigit():
        shown = one_line(first.decode("utf-8", "replace"), 60)
        raise fault(
            path, f"has a text that is no pidfile's ({shown}), and is left as it is",
            f"remove it if it is not in use, or {ELSEWHERE}",
        )  # fmt: skip


def _regular(path: str, mode: int) -> None:
    if stat.S_ISREG(mode):
        return
    names = {
        stat.S_IFLNK: "a symbolic link",
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket",
    }
    raise fault(path, f"is {names.get(stat.S_IFMT(mode), 'a device')}, not a regular file", ELSEWHERE)


def _file_system(fd: int, status: os.stat_result) -> tuple[str, bytes]:
    """Type of an open file's file system ("": not visible), and the file as the kernel writes it in lock lines.

    By the mount's number: on btrfs and overlayfs the device of fstat is none that mountinfo lists."""
    mount, inode = b"", status.st_ino
    kind, device = "", f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"
    for line in (read_file(f"/proc/self/fdinfo/{fd}") or b"").splitlines():
        key, _, value = line.partition(b":")
        if key == b"mnt_id":
            mount = value.strip()
        elif key == b"ino":
            inode = int(value)
    for line in (read_file("/proc/self/mountinfo", 1 << 24) or b"").splitlines():
        fields = line.split()
        if fields[0] == mount:
            kind = fields[fields.index(b"-") + 1].decode("ascii", "replace")
            device = fields[2].decode("ascii")
            break
    major, _, minor = device.partition(":")
    return kind, b"%02x:%02x:%d" % (int(major), int(minor), inode)


def _flock(first: int, length: int) -> bytes:
    """struct flock: a write lock on some bytes; length 0 is to infinity."""
    return struct.pack("@hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, first, length, 0)


LOCK = _flock(0, 1)
BEACON = _flock(1, 0)


def _lock(path: str, fd: int, command: int, flock: bytes) -> bool:
    """Steps 3 and 5. Nothing changes where it is held already. False where another process has it."""
    try:
        fcntl.fcntl(fd, command, flock)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise fault(path, f"cannot be locked ({os.strerror(error.errno or 0)})", ELSEWHERE) from None
    return True


def _blocker(fd: int, flock: bytes) -> int | None:
    """Who else has locked these bytes: a pid for a POSIX lock, 0 for one in another pid namespace, -1 for an OFD lock.
    None: nobody."""
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, flock)
    kind, _, _, _, pid = struct.unpack("@hhqqi4x", answer)
    return None if kind == fcntl.F_UNLCK else int(pid)


def _process(blocker: int | None) -> str:
    """Who that is, in words."""
    return f"pid {blocker}" if blocker and blocker > 0 else "another process"


def _in_place(path: str, file: os.stat_result) -> bool:
    """Step 4: whether the path still names this file."""
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), file)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise _failed(path, error) from None
