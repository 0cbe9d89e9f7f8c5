"""The lock of a NIC: a listening abstract socket named after its index. Steps 6 and 8 of the guard.

States of a NIC in one network namespace: free -> held (bound, listening) -> free. The kernel frees it with the last
process that has the descriptor; there is nothing to clean up, no path to remove or to hide in a mount namespace.

Invariants:
- One name, one socket: bind decides, nothing else does.
- Several NICs are taken in the order of their index, so of two starts that want some of the same, one gets them.
- `any` and a named NIC exclude each other: each binds its own name first and then looks for the other's, so at least
  one of two that start at once sees the other.
- Nobody is answered: a look leaves a connection in the queue, and while that is full the holder is held but not named.
  check() empties it.
- A lock is of a NIC, not of its name: while the NIC is there, its lock is kept, whatever it is called. When it is gone
  and another has its name, check() takes the lock of that one before it gives up the old.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import time

from . import GuardError, NoSuchInterface
from .pidfile import above_standard, one_line, trusted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from . import Findings

ANY = "any"
QUEUE = 4096  # the kernel cuts it to net.core.somaxconn


class Peer:
    """Who has a name, as the kernel recorded it when it began to listen. pid None: not known; 0: in another pid
    namespace. Not `listening`: the name is only bound, as an http-capture has it for an instant."""

    __slots__ = ("listening", "pid", "uid")

    def __init__(self, pid: int | None = None, uid: int | None = None, *, listening: bool = True) -> None:
        self.pid = pid
        self.uid = uid
        self.listening = listening

    def ours(self) -> bool:
        """Whether it is known, and root or this user."""
        return self.pid is not None and self.uid is not None and trusted(self.uid)


class Held(Exception):
    """Another process has the NIC."""

    def __init__(self, index: int, name: str, peer: Peer) -> None:
        super().__init__(name)
        self.index = index
        self.name = name
        self.peer = peer


class Interfaces:
    """The locks of some NICs: `take()`, any number of `check()`, then `release()`."""

    __slots__ = ("_locks",)

    def __init__(self) -> None:
        self._locks: list[_Lock] = []

    def take(self, wanted: dict[int, str]) -> None:
        """Takes all of `wanted` (see resolve) or none. Raises Held for the first that another has, else GuardError."""
        try:
            for index in sorted(wanted):
                self._locks.append(_Lock.take(index, wanted[index]))
            if not wanted:
                return
            others = dict(socket.if_nameindex()) if 0 in wanted else {0: ANY}
            for index, name in others.items():
                if index not in wanted and (peer := probe(index)) is not None:
                    raise Held(index, name, peer)
        except BaseException as error:
            self.release()
            if isinstance(error, Held) and not error.peer.listening:
                error.peer = _listener(error.index)
            raise

    def check(self, findings: Findings) -> None:
        """Step 8: each lock is this process's, or is made so again. Raises nothing."""
        for lock in list(self._locks):
            index = lock.index if not lock.index or _name(lock.index) else _index(lock.name) or lock.index
            if lock.is_open() and (index == lock.index or any(index == other.index for other in self._locks)):
                lock.empty_queue()
                continue
            try:
                self._again(lock, index, findings)
            except Held as held:
                self._rival(held, findings)
            except GuardError as error:
                findings.fault(str(error))
            except OSError as error:
                findings.fault(f"interface {one_line(lock.name, 100)}: its lock cannot be seen to ({error.strerror})")

    def release(self) -> None:
        while self._locks:
            self._locks.pop().close()

    def _again(self, lock: _Lock, index: int, findings: Findings) -> None:
        new = _Lock.take(index, lock.name)
        if index and all(other.index for other in self._locks) and (peer := probe(0)) is not None:
            new.close()
            raise Held(0, ANY, peer)
        what = "is a new one" if lock.is_open() else "lost its lock inside this process"
        lock.close()
        self._locks[self._locks.index(lock)] = new
        findings.repaired(f"interface {one_line(lock.name, 100)}: {what}, it is locked again")

    def _rival(self, held: Held, findings: Findings) -> None:
        """It runs beside this copy if it may have been started by who may run one, and listens as one does."""
        name = one_line(held.name, 100)
        if held.peer.ours():
            findings.rival(
                f"interface {name}: pid {held.peer.pid or 'unknown'} has its lock now and may record it too; this copy "
                f"ends so that one is left; http-capture verify shows who records",
                lost=True,
            )
        else:
            who = "a process" if held.peer.uid is None else f"a process of uid {held.peer.uid}"
            findings.rival(
                f"interface {name}: {who} has its lock now, no http-capture by what can be seen; end it, this copy "
                f"goes on and tries again",
                lost=False,
            )


class _Lock:
    """The lock of one NIC: a descriptor, and what must still be behind it."""

    __slots__ = ("_fd", "_file", "index", "name")

    def __init__(self, index: int, name: str, fd: int) -> None:
        self.index = index
        self.name = name
        self._fd = fd
        self._file = os.fstat(fd)

    @classmethod
    def take(cls, index: int, name: str) -> _Lock:
        """Raises Held, at once and with what is known at once; GuardError where no process could have it."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as bound:
            try:
                bound.bind(address(index))
                bound.listen(QUEUE)
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    raise Held(index, name, probe(index) or Peer(listening=False)) from None
                raise GuardError(
                    f"interface {one_line(name, 100)}: its lock cannot be taken ({error.strerror}); "
                    f"allow abstract Unix sockets, or leave this lock out with --no-interface-lock"
                ) from None
            return cls(index, name, above_standard(bound.detach()))

    def is_open(self) -> bool:
        """Whether the descriptor is still that socket, and not closed, or another one's by now."""
        try:
            return os.path.samestat(os.fstat(self._fd), self._file)
        except OSError:
            return False

    def empty_queue(self) -> None:
        """Closes every connection that waits."""
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, self._fd)
        try:
            for _ in range(QUEUE):
                listening.accept()[0].close()
        except OSError:
            pass  # empty; or no descriptor is free, then it is for the next time
        finally:
            listening.detach()

    def close(self) -> None:
        if self.is_open():
            os.close(self._fd)


def address(index: int) -> str:
    """The abstract name; 0 is `any`."""
    return f"\0http-capture/if/{index}"


def resolve(names: Sequence[str]) -> dict[int, str]:
    """Index -> name; the same NIC under two names is one. `any` is 0. Raises NoSuchInterface."""
    found: dict[int, str] = {}
    for name in names:
        try:
            found.setdefault(0 if name == ANY else socket.if_nametoindex(name), name)
        except (OSError, ValueError):
            there = ", ".join(sorted(known for _, known in socket.if_nameindex()))
            raise NoSuchInterface(
                f"interface {one_line(name, 100)}: there is none of this name; there are: {one_line(there, 400)}"
            ) from None
    return found


def probe(index: int) -> Peer | None:
    """Who holds this NIC, without waiting and without taking it. None: nobody."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as looking:
        try:
            looking.connect(address(index))
            size = struct.calcsize("=iII")
            pid, uid, _ = struct.unpack("=iII", looking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
        except ConnectionRefusedError:
            return None
        except OSError:
            return Peer()  # a full queue (EAGAIN), or not permitted: there is somebody
        return Peer(pid, uid)


def _listener(index: int) -> Peer:
    """Who holds a name that is in use; a holder that has bound it and does not yet listen is given 100 ms."""
    for _ in range(50):
        peer = probe(index)
        if peer is not None:
            return peer
        time.sleep(0.002)
    return Peer(listening=False)


def _name(index: int) -> str:
    """Of a NIC that is there, else ""."""
    try:
        return socket.if_indextoname(index)
    except OSError:
        return ""


def _index(name: str) -> int:
    """Of a NIC that is there, else 0."""
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return 0
