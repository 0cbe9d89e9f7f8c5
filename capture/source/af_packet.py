"""A NIC, through an AF_PACKET socket and a TPACKET_V3 ring that the kernel writes frames into (packet(7)).

What is decided here:

- Order of opening: a socket that captures nothing (protocol 0), the filter, the ring, promiscuous mode, and only then
  bind to the NIC. So no frame that the filter rejects, and none of another NIC, is ever queued.
- A filter is always attached: where none is asked for, one that accepts everything and cuts at the snaplen.
- A ring block is `ring_block_bytes`, but at least a frame of `snaplen_bytes` with its headers, rounded up to pages.
- The kernel takes the outer VLAN tag off; it is put back (ring.py), so a frame may be 4 bytes longer than the snaplen.
- On loopback every frame passes twice, out and in: the outgoing copy is left out, by the kernel (Linux 4.20) or by the
  walker. On any other NIC what this host sends is kept: a mirror port sends nothing, and a host may record itself.
- A stop first rejects every further frame, then lends what the ring holds: nothing that was taken is lost.
- The kernel counts frames in 32 bits, from 0 again whenever it is asked: it is asked every second, which at 100 Gbit/s
  is 30 times as often as needed.
- The NIC goes down: a warning, then it is waited for.
- The NIC is removed: what the ring holds is lent. Then UnavailableError ends the run, so that the supervisor starts it
  on the NIC that bears the name next; or, where `returned` is set, such a NIC is waited for and the socket is bound to
  it. `returned()` is called before a frame of it is lent: it is another NIC, and the guard has to have it too.
"""

import contextlib
import errno
import fcntl
import logging
import math
import mmap
import os
import select
import socket
import struct
import time
from collections.abc import Callable

from ...config.settings import SourceSettings
from ..errors import ConfigurationError, NotPermittedError, OperatorError, UnavailableError, UsageError
from . import EndOfInput, SourceStats, bpf
from .block import Block, Buffer
from .ring import RingWalker

log = logging.getLogger("http_capture.source")

ETH_P_ALL = 0x0003
SOL_PACKET = 263
PACKET_ADD_MEMBERSHIP = 1
PACKET_RX_RING = 5
PACKET_STATISTICS = 6
PACKET_VERSION = 10
PACKET_RESERVE = 12
PACKET_IGNORE_OUTGOING = 23
PACKET_MR_PROMISC = 1
TPACKET_V3 = 2
SIOCGIFFLAGS = 0x8913
SIOCGIFHWADDR = 0x8927
IFF_UP = 1
MAX_NAME_BYTES = 15

TAG_BYTES = 4
FRAME_OVERHEAD_BYTES = 256  # block and frame headers, the longest link header's alignment, the room for a tag
MAX_RING_BYTES = 0xFFFFFFFF
COUNT_SECONDS = 1.0  # how often the kernel is asked what it has counted
COUNTER = 1 << 32
STOP_RETIREMENTS = 4  # of the ring's timer: how long a stop waits for the open block; two suffice on an idle machine
BLOCK_CAPACITY = 16384  # frames lent at a time; a ring block with more is lent in parts

ARPHRD_LOOPBACK = 772
LINKTYPE_ETHERNET = 1
LINKTYPE_RAW = 101
LINKTYPE_OF_DEVICE = {
    1: LINKTYPE_ETHERNET,  # ARPHRD_ETHER
    ARPHRD_LOOPBACK: LINKTYPE_ETHERNET,
    519: LINKTYPE_RAW,  # ARPHRD_RAWIP
    768: LINKTYPE_RAW,  # ARPHRD_TUNNEL
    769: LINKTYPE_RAW,  # ARPHRD_TUNNEL6
    776: LINKTYPE_RAW,  # ARPHRD_SIT
    0xFFFE: LINKTYPE_RAW,  # ARPHRD_NONE: tun, WireGuard
}


class AfPacket:
    """The source for one NIC.

    `received` is the frames lent and those dropped, `dropped` what the kernel had no room for, what had a malformed
    header and, after `close()`, what lay unread in the ring; `bytes` are the captured bytes of what was lent. So at any
    time received - dropped = frames lent.

    freezes: times that the ring was full. outages: times that the NIC went down. outgoing: loopback copies left out
    here, and so not `received`. returned: called when the name has a NIC again; what it raises ends the run. None: a
    NIC that was removed is not waited for.

    Two ways to lend: as Source says, a ring block until the next `read()`; or, after `lend_many()`, each until it is
    given back, while `read()` goes on into the block that `into()` names. ring_blocks_lent counts those of the second.
    """

    live = True
    returned: Callable[[], object] | None = None

    def __init__(self, settings: SourceSettings) -> None:
        self.iface = one_iface(settings)
        self.outages = 0
        self.freezes = 0
        self.outgoing = 0
        self._taken = 0  # frames that the kernel has put into the ring
        self._kernel_drops = 0
        self._count_at = time.monotonic() + COUNT_SECONDS
        self._unread = 0
        self._down = False
        self._gone_since: float | None = None
        self._stop_by: float | None = None
        self._retire_seconds = settings.ring_timeout_ms / 1000
        self._return_seconds = settings.return_timeout_seconds
        self._promiscuous = settings.promiscuous
        self._block = Block(BLOCK_CAPACITY)
        self._block.interface = self.iface  # type: ignore[assignment]
        self._final: SourceStats | None = None
        self._many: select.epoll | None = None
        self.ring_blocks_lent = 0
        if not hasattr(socket, "AF_PACKET"):
            raise UnavailableError('capturing with AF_PACKET needs Linux: set source.kind = "scapy"')
        try:
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        except OSError as error:
            raise cannot_open(self.iface, error) from None
        try:
            self._open(settings)
        except BaseException:
            self._socket.close()
            raise

    def _open(self, settings: SourceSettings) -> None:
        if len(os.fsencode(self.iface)) > MAX_NAME_BYTES or "\0" in self.iface:
            raise no_such_nic(self.iface)
        try:
            device = self._device = self._device_type()
        except OSError as error:
            raise cannot_open(self.iface, error) from None
        link = LINKTYPE_OF_DEVICE.get(device)
        if link is None:
            raise UnavailableError(
                f"cannot capture on {self.iface}: its device type {device} (ARPHRD) is neither Ethernet nor raw IP"
            )
        if settings.filter:
            program = bpf.compile_filter(settings.filter, link, settings.snaplen_bytes, self.iface)
        else:
            program = bpf.accept_all(settings.snaplen_bytes)
        bpf.attach(self._socket, program)
        skip_outgoing = device == ARPHRD_LOOPBACK
        if skip_outgoing:
            with contextlib.suppress(OSError):
                self._socket.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        block_bytes, block_count = ring_size(settings)
        self._ring = self._map_ring(block_bytes, block_count, settings.ring_timeout_ms)
        self._ring_blocks = block_count
        self._walker = RingWalker(self._ring, block_bytes, link, skip_outgoing)
        try:
            self._bind()
        except OSError as error:
            raise cannot_open(self.iface, error) from None
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)
        self._look_at_link()

    def _device_type(self) -> int:
        return int(struct.unpack_from("H", self._ioctl(SIOCGIFHWADDR, self.iface), 16)[0])

    def _bind(self) -> None:
        """To the NIC that has the name now. From here on the kernel fills the ring."""
        if self._promiscuous:
            member = struct.pack("iHH8s", socket.if_nametoindex(self.iface), PACKET_MR_PROMISC, 0, b"")
            self._socket.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP, member)
        self._socket.bind((self.iface, ETH_P_ALL))

    def _ioctl(self, request: int, iface: str) -> bytes:
        return fcntl.ioctl(self._socket, request, struct.pack("16s24x", os.fsencode(iface)))

    def _map_ring(self, block_bytes: int, block_count: int, retire_ms: int) -> mmap.mmap:
        request = struct.pack("7I", block_bytes, block_count, block_bytes, block_count, retire_ms, 0, 0)
        try:
            self._socket.setsockopt(SOL_PACKET, PACKET_VERSION, TPACKET_V3)
            self._socket.setsockopt(SOL_PACKET, PACKET_RESERVE, TAG_BYTES)
            self._socket.setsockopt(SOL_PACKET, PACKET_RX_RING, request)
            return mmap.mmap(self._socket.fileno(), block_bytes * block_count, mmap.MAP_SHARED)
        except OSError as error:
            if error.errno not in (errno.ENOMEM, errno.ENOBUFS):
                raise UnavailableError(f"cannot set up a capture ring for {self.iface}: {error.strerror}") from None
            raise UnavailableError(
                f"no memory for the capture ring of {self.iface}: {block_count} blocks of {block_bytes} bytes, "
                f"{block_bytes * block_count >> 20} MiB; lower source.ring_block_count"
            ) from None

    def lend_many(self) -> Buffer:
        """From here on ring blocks are lent until `give_back()`. Returns the ring, in which all frames lie."""
        # A ring block that is lent looks to poll() like one that has not been read, so only news count.
        self._many = select.epoll()
        self._many.register(self._socket, select.EPOLLIN | select.EPOLLET)
        return self._walker.buffer

    def into(self, block: Block) -> None:
        """The next `read()` lends this block."""
        self._block = block

    def give_back(self, count: int) -> None:
        """The oldest `count` ring blocks that are lent go back to the kernel."""
        if self._final is None:
            self._walker.give_back(count)

    def forget(self) -> None:
        """In a forked process: closes its copy of the socket, and leaves the capture to its parent."""
        self._socket.close()

    def _go_on(self) -> None:
        """The ring block that was walked to its end is lent, or goes back to the kernel."""
        if self._many is None:
            self._walker.release()
        else:
            self.ring_blocks_lent += self._walker.keep()

    def read(self, timeout_seconds: float) -> Block:
        """Lends the frames of one ring block, which the next call gives back to the kernel."""
        now = time.monotonic()
        deadline = now + timeout_seconds
        if now >= self._count_at:
            self._count()
            self._count_at = now + COUNT_SECONDS
        while True:
            self._go_on()
            while self._walker.ready():
                if self._down:  # on a busy NIC no read waits, so none would see that it is up
                    self._look_at_link()
                if self._walker.fill(self._block):
                    if self._many is not None:
                        self._go_on()
                    return self._block
                self._go_on()
            now = time.monotonic()
            if self._stop_by is not None and (now > self._stop_by or self._in_ring() == 0):
                raise EndOfInput
            if self._gone_since is not None and now > self._gone_since + 2 * self._retire_seconds:
                self._return(now - self._gone_since)
            if self._down:
                self._look_at_link()
            wait_seconds = deadline - now
            if wait_seconds <= 0:
                self._block.lend(Buffer(b""))
                return self._block
            if self._gone_since is not None or self._stop_by is not None:
                wait_seconds = min(wait_seconds, self._retire_seconds)
            if self._many is None:
                found = self._poll.poll(math.ceil(wait_seconds * 1000))
            else:
                found = self._many.poll(wait_seconds)
            for _, events in found:
                if events & ~select.POLLIN:
                    self._look_at_link()

    def _look_at_link(self) -> None:
        """Takes the pending error off the socket, and notes whether the NIC is up, down or gone."""
        self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        name = self._socket.getsockname()[0]  # empty once the NIC that was bound to is gone, whatever has its name now
        try:
            up = bool(struct.unpack_from("H", self._ioctl(SIOCGIFFLAGS, name), 16)[0] & IFF_UP) if name else False
        except OSError:
            up = False
        if not up and not self._down:
            self.outages += 1
        if not name and self._gone_since is None:  # also after it was seen down: the kernel takes it down first
            self._gone_since = time.monotonic()
            waiting = "" if self.returned is None else f": waiting {self._return_seconds:g} s for one of the same name"
            log.warning("%s is gone%s", self.iface, waiting)
        elif not up and not self._down:
            log.warning("%s is down: waiting for it to come up", self.iface)
        elif up and self._down:
            log.warning("%s is up", self.iface)
        self._down = not up

    def _return(self, gone_seconds: float) -> None:
        """Captures on the NIC that has the name now, if there is one yet."""
        if self.returned is None or gone_seconds > self._return_seconds:
            raise UnavailableError(f"{self.iface} was removed while it was captured; start again when it is back")
        try:
            if self._device_type() != self._device:
                raise UnavailableError(f"{self.iface} was removed and is another kind of device now; start again")
            self._bind()
        except OSError as error:
            if error.errno in (errno.ENODEV, errno.ENXIO):
                return
            raise cannot_open(self.iface, error) from None
        self._gone_since = None
        log.warning("%s is back, as another NIC of this name", self.iface)
        self._look_at_link()
        self.returned()

    def waiting(self) -> tuple[int, int]:
        if self._final is not None:
            return 0, 0
        return self._walker.waiting(), self._ring_blocks - 1

    def stop(self) -> None:
        """From here on the kernel takes no frame. It hands over the open ring block when that retires, which `read()`
        waits for."""
        bpf.attach(self._socket, bpf.accept_all(0))
        self._stop_by = time.monotonic() + STOP_RETIREMENTS * self._retire_seconds

    def _in_ring(self) -> int:
        """Frames that the kernel has put into the ring and the walker has not come to."""
        self._count()
        walker = self._walker
        return max(0, self._taken - walker.frames - walker.outgoing - walker.malformed)

    def _count(self) -> None:
        """Adds up what the kernel has counted since it was asked last."""
        frames, drops, freezes = struct.unpack("3I", self._socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 12))
        # `frames` is with the drops, and may have begun again at 0; the difference, what the ring took, is right.
        self._taken += (frames - drops) % COUNTER
        self._kernel_drops += drops
        self.freezes += freezes

    def stats(self) -> SourceStats:
        if self._final is not None:
            return self._final
        self._count()
        self.outgoing = self._walker.outgoing
        dropped = self._kernel_drops + self._walker.malformed + self._unread
        return SourceStats(received=self._walker.frames + dropped, dropped=dropped, bytes=self._walker.bytes)

    def close(self) -> None:
        """Ends the capture. The block that was lent last is empty from here on."""
        if self._final is not None:
            return
        bpf.attach(self._socket, bpf.accept_all(0))  # a mapping that somebody still holds would keep the ring going
        self._unread = self._in_ring()
        self._final = self.stats()
        self._block.lend(Buffer(b""))
        del self._walker
        with contextlib.suppress(BufferError):
            self._ring.close()
        del self._ring
        if self._many is not None:
            self._many.close()
        self._socket.close()


def one_iface(settings: SourceSettings) -> str:
    if len(settings.iface) == 1:
        return settings.iface[0]
    if not settings.iface:
        raise UsageError("no NIC given: name one with --iface")
    raise UsageError(f"{len(settings.iface)} NICs given ({', '.join(settings.iface)}): run one process for each")


def ring_size(settings: SourceSettings) -> tuple[int, int]:
    """Bytes of a ring block, number of blocks."""
    least = max(settings.ring_block_bytes, settings.snaplen_bytes + FRAME_OVERHEAD_BYTES)
    block_bytes = -(-least // mmap.PAGESIZE) * mmap.PAGESIZE
    if block_bytes * settings.ring_block_count > MAX_RING_BYTES:
        raise ConfigurationError(
            f"source.ring_block_count = {settings.ring_block_count}: with blocks of {block_bytes} bytes the ring would "
            f"have 4 GiB or more, which the kernel refuses: at most {MAX_RING_BYTES // block_bytes}"
        )
    return block_bytes, settings.ring_block_count


def nic_names() -> str:
    return ", ".join(name for _, name in socket.if_nameindex()) or "none"


def no_such_nic(iface: str) -> UnavailableError:
    return UnavailableError(f"no NIC {iface!r} here; there are: {nic_names()}")


def not_permitted(iface: str) -> NotPermittedError:
    return NotPermittedError(
        f"not permitted to capture on {iface}: CAP_NET_RAW is missing; run as root, put "
        f"AmbientCapabilities=CAP_NET_RAW in the systemd unit, or `setcap cap_net_raw+ep` the python program"
    )


def cannot_open(iface: str, error: OSError) -> OperatorError:
    if error.errno in (errno.ENODEV, errno.ENXIO):
        return no_such_nic(iface)
    if error.errno in (errno.EPERM, errno.EACCES):
        return not_permitted(iface)
    return UnavailableError(f"cannot capture on {iface}: {error.strerror or error}")
