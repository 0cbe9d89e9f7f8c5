"""The lock of a NIC: a listening abstract socket named after its index. Step 6 of the guard.

States of a NIC in one network namespace: free -> held (bound, listening) -> free. The kernel frees it with the last
process that has the descriptor; there is nothing to clean up, no path to remove or to hide in a mount namespace.

Invariants:
- One name, one socket: bind decides, nothing else does.
- Several NICs are taken in the order of their index, so of two starts that want some of the same, one gets them.
- `any` and a named NIC exclude each other: each binds its own name first and then looks for the other's, so at least
  one of two that start at once sees the other.
- Nobody accepts: a look leaves a connection in the queue, and when that is full the holder is held but not named.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import time

from . import GuardError, NoSuchInterface
from .pidfile import above_standard, one_line

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

ANY = "any"
QUEUE = 4096  # the kernel cuts it to net.core.somaxconn


class Peer:
    """Who listens, as the kernel recorded it when it began to. pid None: not known; 0: in another pid namespace."""

    __slots__ = ("pid", "uid")

    def __init__(self, pid: int | None = None, uid: int | None = None) -> None:
        self.pid = pid
        self.uid = uid

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
    """The locks of some NICs: `take()`, then `release()`."""

    __slots__ = ("_fds",)

    def __init__(self) -> None:
        self._fds: list[int] = []

    def take(self, wanted: dict[int, str]) -> None:
        """Takes all of `wanted` (see resolve) or none. Raises Held for the first that another has, else GuardError."""
        try:
            for index in sorted(wanted):
                self._fds.append(_bind(index, wanted[index]))
            if not wanted:
                return
            others = dict(socket.if_nameindex()) if 0 in wanted else {0: ANY}
            for index, name in others.items():
                if index not in wanted and (peer := probe(index)) is not None:
                    raise Held(index, name, peer)
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        while self._fds:
            os.close(self._fds.pop())


def address(index: int) -> str:
    """The abstract name; 0 is `any`."""
    return f"\0http-capture/if/{index}"


def trusted(uid: int) -> bool:
    return uid in (0, os.geteuid())


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


def _bind(index: int, name: str) -> int:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as bound:
        try:
            bound.bind(address(index))
            bound.listen(QUEUE)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise Held(index, name, _listener(index)) from None
            raise GuardError(
                f"interface {one_line(name, 100)}: its lock cannot be taken ({error.strerror}); "
                f"allow abstract Unix sockets, or leave this lock out with --no-interface-lock"
            ) from None
        return above_standard(bound.detach())


def _listener(index: int) -> Peer:
    """Who holds a name that is in use; a holder that has bound it and does not yet listen is given 20 ms."""
    for _ in range(10):
        peer = probe(index)
        if peer is not None:
            return peer
        time.sleep(0.002)
    return Peer()
