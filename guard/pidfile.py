"""The pidfile: one lock and the text of who holds it. Steps 1-4, 7 and 10 of the guard.

    take(): open -> check -> lock -> in place? --no--> start over, at most 50 times
                       |       |        |
                   GuardError Held   locked, the old text still in it
                                        |
                                     write(): the text is this process's
                                        |
                                     empty(), close(): no text, unlocked

Invariants:
- The file is never truncated before it is locked, and never removed: removing it would let a newcomer lock another one.
- Byte 0 carries the lock: an OFD lock, which closing another descriptor of the file does not drop, and which the POSIX
  lock of an older guard conflicts with. The bytes from 1 on are not locked here: they are the place of a lock that
  names its holder, to be taken after the file is known to be in place.
- New text is written over the old and then cut to length, so a reader never finds a held file empty once it was
  written. A reader stops after the `command` line: what follows it is the rest of an older text.
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

ATTEMPTS = 50
TEXT_BYTES = 8192
FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
ELSEWHERE = "choose another with --pidfile"
REMOTE = frozenset(
    (
        "9p", "afs", "beegfs", "ceph", "cifs", "coda", "fuse", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs",
        "nfs4", "ocfs2", "orangefs", "pvfs2", "smb3", "smbfs", "virtiofs",
    )
)  # fmt: skip


class Held(Exception):
    """Another process has the lock.

    inode     the file as the kernel writes it in lock lines: b"00:1f:1234" (device in hex, inode)
    blocker   pid of the holder where the kernel names it (a POSIX lock); 0: in another pid namespace; -1: not named
    identity  the text of the file, see parse()
    path      of the file
    """

    def __init__(self, path: str, inode: bytes, blocker: int, identity: dict[str, str]) -> None:
        super().__init__(path)
        self.path = path
        self.inode = inode
        self.blocker = blocker
        self.identity = identity


class Pidfile:
    """A locked pidfile: `write()`, `empty()`, then `close()`, which unlocks it. After that none does anything."""

    __slots__ = ("_fd", "inode", "path")

    def __init__(self, path: str, fd: int, inode: bytes) -> None:
        self.path = path
        self.inode = inode
        self._fd = fd

    @classmethod
    def take(cls, path: str) -> Pidfile:
        """Opens, checks and locks the file. Raises Held where another process has it, GuardError where it is unfit."""
        for _ in range(ATTEMPTS):
            fd = _open(path)
            kept = False
            try:
                inode = _check(path, fd)
                if not _lock(path, fd):
                    raise Held(path, inode, _blocker(fd), parse(os.pread(fd, TEXT_BYTES, 0)))
                if _in_place(path, fd):
                    kept = True
                    return cls(path, fd, inode)
            finally:
                if not kept:
                    os.close(fd)
        raise fault(path, "is replaced by another file again and again", f"find out what replaces it, or {ELSEWHERE}")

    def write(self, interface: str, instance: str, launcher: str, command: Sequence[str]) -> None:
        """Makes the text this process's. GuardError where it cannot be written; the file is then empty."""
        text = compose(interface, instance, launcher, command)
        try:
            if os.pwrite(self._fd, text, 0) != len(text):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.ftruncate(self._fd, len(text))
        except OSError as error:
            self.empty()
            raise _failed(self.path, error) from None

    def empty(self) -> None:
        """Takes this process's text out."""
        if self._fd >= 0:
            try:
                os.ftruncate(self._fd, 0)
            except OSError:
                return  # A file system gone read-only: stale text, which every reader has to expect anyway.

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


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
            _kind(path, os.lstat(path).st_mode)
        except OSError:
            pass
        except GuardError as known:
            return known
    if number == errno.ENOENT:
        return fault(path, "its folder does not exist", f"mkdir {quote(folder)}, or {ELSEWHERE}")
    if number == errno.ENOTDIR:
        return fault(path, "its folder is not a folder", ELSEWHERE)
    if number in (errno.EACCES, errno.EPERM):
        return fault(path, f"not permitted for uid {os.geteuid()}", f"start as root, or {ELSEWHERE}")
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
            _kind(path, kind)
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


def _check(path: str, fd: int) -> bytes:
    """Step 2. Returns the file as the kernel writes it in lock lines: fstat tells that on some file systems only."""
    status = os.fstat(fd)
    _kind(path, status.st_mode)
    if status.st_uid not in (0, os.geteuid()):
        raise fault(path, f"belongs to uid {status.st_uid}", f"remove it if it is not in use, or {ELSEWHERE}")
    if status.st_mode & 0o022:
        raise fault(
            path, f"others may write it (mode {stat.S_IMODE(status.st_mode):04o})", f"chmod 600 it, or {ELSEWHERE}"
        )
    if status.st_nlink > 1:
        raise fault(path, f"has {status.st_nlink} names (hard links)", f"remove the others, or {ELSEWHERE}")
    kind, device, inode = _file_system(fd)
    if kind in REMOTE or kind.startswith("fuse."):
        raise fault(path, f"is on a network file system ({kind})", "choose one on this host, in /run, with --pidfile")
    if not kind and os.major(status.st_dev) == 0:
        raise fault(path, "the type of its file system cannot be seen", "mount /proc, or choose one in /run")
    if not device:
        device = f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"
    major, _, minor = device.partition(":")
    return b"%02x:%02x:%d" % (int(major), int(minor), inode or status.st_ino)


def _kind(path: str, mode: int) -> None:
    if stat.S_ISREG(mode):
        return
    names = {
        stat.S_IFLNK: "a symbolic link",
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket",
    }
    raise fault(path, f"is {names.get(stat.S_IFMT(mode), 'a device')}, not a regular file", ELSEWHERE)


def _file_system(fd: int) -> tuple[str, str, int]:
    """Type, device ("major:minor") and inode of an open file as the kernel has them; "", "", 0 where not visible.

    By the mount's number: on btrfs and overlayfs the device of fstat is none that mountinfo lists."""
    mount, inode = b"", 0
    for line in (read_file(f"/proc/self/fdinfo/{fd}") or b"").splitlines():
        key, _, value = line.partition(b":")
        if key == b"mnt_id":
            mount = value.strip()
        elif key == b"ino":
            inode = int(value)
    for line in (read_file("/proc/self/mountinfo", 1 << 24) or b"").splitlines():
        fields = line.split()
        if fields[0] == mount:
            kind = fields[fields.index(b"-") + 1]
            return kind.decode("ascii", "replace"), fields[2].decode("ascii"), inode
    return "", "", inode


def _flock(kind: int) -> bytes:
    """struct flock for byte 0."""
    return struct.pack("@hhqqi4x", kind, os.SEEK_SET, 0, 1, 0)


def _lock(path: str, fd: int) -> bool:
    """Step 3. False where another process has it."""
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _flock(fcntl.F_WRLCK))
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise fault(path, f"cannot be locked ({os.strerror(error.errno or 0)})", ELSEWHERE) from None
    return True


def _blocker(fd: int) -> int:
    """Who has byte 0 by the kernel: a pid for a POSIX lock, 0 for one in another pid namespace, -1 for an OFD lock."""
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _flock(fcntl.F_WRLCK))
    kind, _, _, _, pid = struct.unpack("@hhqqi4x", answer)
    return -1 if kind == fcntl.F_UNLCK else int(pid)


def _in_place(path: str, fd: int) -> bool:
    """Step 4: whether the path still names the locked file."""
    try:
        there = os.stat(path, follow_symlinks=False)
    except OSError:
        return False
    return os.path.samestat(there, os.fstat(fd))
