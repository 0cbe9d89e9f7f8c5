"""A NIC, through scapy's listening socket: slow (a copy and several Python objects for each frame), but anywhere.

The filter, the VLAN tag, loopback copies and a NIC that goes down or away are treated as in af_packet.py, but a NIC
that is down at the start is refused. Less exact: timestamps are floating-point seconds in scapy (some 0.2 us), the wire
length is known up to 64 KiB, and drops are known on Linux only.
"""

import contextlib
import errno
import logging
import socket
import struct
import sys
import time
from typing import Any

from ...config.settings import SourceSettings
from ..errors import ConfigurationError, UnavailableError
from . import EndOfInput, SourceStats, bpf
from .af_packet import (
    LINKTYPE_ETHERNET,
    LINKTYPE_RAW,
    PACKET_IGNORE_OUTGOING,
    PACKET_STATISTICS,
    SOL_PACKET,
    cannot_open,
    no_such_nic,
    one_iface,
)
from .block import Block, Buffer

log = logging.getLogger("http_capture.source")

LINKTYPE_NULL = 0
LINKTYPE_LINUX_SLL = 113
MAX_FRAME_BYTES = 65535
MEMORY_BYTES = 1 << 20
BLOCK_CAPACITY = 4096
SO_RCVBUFFORCE = 33
RECEIVE_BYTES = 8 << 20
STOP_SECONDS = 1.0  # where the socket cannot be told to take no more frames, a stop must end all the same


class ScapySniff:
    """The source for one NIC. `received` and `dropped` as in AfPacket; what is unread at `close()` is not known.

    outages: times that the NIC went down."""

    live = True

    def __init__(self, settings: SourceSettings) -> None:
        self.iface = one_iface(settings)
        self.outages = 0
        self._down = False
        self._snaplen_bytes = settings.snaplen_bytes
        self._block = Block(BLOCK_CAPACITY)
        self._block.interface = self.iface  # type: ignore[assignment]
        self._memory = memoryview(bytearray(MEMORY_BYTES))
        self._buffer = Buffer(self._memory)
        self._frames = 0
        self._bytes = 0
        self._dropped = 0
        self._closed = False
        self._stop_by: float | None = None
        self._links: dict[Any, int] = {}
        self._index = nic_index(self.iface)
        if self._index == 0 and sys.platform == "linux":
            raise no_such_nic(self.iface)
        self._socket = self._open(settings)
        self._kernel = self._socket.ins if isinstance(getattr(self._socket, "ins", None), socket.socket) else None
        if self._kernel is not None and sys.platform == "linux":
            with contextlib.suppress(OSError):
                self._kernel.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BYTES)
            if self.iface == "lo":
                with contextlib.suppress(OSError):
                    self._kernel.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)

    def _open(self, settings: SourceSettings) -> Any:
        for name in ("scapy.loading", "scapy.runtime"):
            logging.getLogger(name).setLevel(logging.ERROR)
        import scapy.arch  # noqa: F401  it is what sets conf.L2listen
        from scapy.config import conf
        from scapy.error import Scapy_Exception
        from scapy.layers.inet import IP
        from scapy.layers.inet6 import IPv6
        from scapy.layers.l2 import CookedLinux, Ether, Loopback

        self._links = {
            Ether: LINKTYPE_ETHERNET,
            IP: LINKTYPE_RAW,
            IPv6: LINKTYPE_RAW,
            Loopback: LINKTYPE_NULL,
            CookedLinux: LINKTYPE_LINUX_SLL,
        }
        try:
            return conf.L2listen(iface=self.iface, promisc=settings.promiscuous, filter=settings.filter or None)
        except OSError as error:
            raise cannot_open(self.iface, error) from None
        except (Scapy_Exception, ImportError, ValueError) as error:
            if settings.filter:
                bpf.compile_filter(settings.filter, LINKTYPE_ETHERNET, settings.snaplen_bytes)
                raise ConfigurationError(f"filter {settings.filter!r}: {' '.join(str(error).split())}") from None
            raise UnavailableError(f"cannot capture on {self.iface}: {' '.join(str(error).split())}") from None

    def read(self, timeout_seconds: float) -> Block:
        if self._stop_by is not None and time.monotonic() > self._stop_by:
            raise EndOfInput
        block = self._block
        block.lend(self._buffer)
        used = 0
        deadline = time.monotonic() + (timeout_seconds if self._stop_by is None else 0.0)
        while not block.full() and used + MAX_FRAME_BYTES <= MEMORY_BYTES:
            wait_seconds = 0.0 if block.count else max(0.0, deadline - time.monotonic())
            if not self._socket.select([self._socket], wait_seconds):
                if block.count == 0 and nic_index(self.iface) != self._index:
                    raise UnavailableError(
                        f"{self.iface} was removed while it was captured; start again when it is back"
                    )
                break
            try:
                layer, frame, seconds = self._socket.recv_raw(MAX_FRAME_BYTES)
            except OSError as error:
                self._lost(error)
                break
            if frame:
                used += self._keep(used, layer, frame, seconds)
        if self._down and block.count and nic_index(self.iface) == self._index:
            self._down = False
            log.warning("%s is up", self.iface)
        if self._stop_by is not None and block.count == 0:
            raise EndOfInput
        return block

    def _keep(self, used: int, layer: Any, frame: bytes, seconds: Any) -> int:
        """Copies a frame behind what is used of the memory. Returns how many bytes it takes."""
        link = self._links.get(layer)
        if link is None:
            raise UnavailableError(f"cannot capture on {self.iface}: scapy takes its frames for {layer}")
        captured = min(len(frame), self._snaplen_bytes, MEMORY_BYTES - used)
        self._memory[used : used + captured] = frame[:captured]
        timestamp_ns = time.time_ns() if seconds is None else round(float(seconds) * 1e9)
        self._block.add(used, captured, len(frame), timestamp_ns, link)
        self._frames += 1
        self._bytes += captured
        return captured

    def _lost(self, error: OSError) -> None:
        """The socket reports an error, once, before its frames: a NIC that is down is waited for."""
        if error.errno != errno.ENETDOWN:
            raise cannot_open(self.iface, error)
        if not self._down:
            self._down = True
            self.outages += 1
            log.warning("%s is down: waiting for it to come up", self.iface)

    def waiting(self) -> tuple[int, int]:
        return 0, 0  # the kernel does not tell

    def stop(self) -> None:
        if self._kernel is not None and sys.platform == "linux":
            bpf.attach(self._kernel, bpf.accept_all(0))
        self._stop_by = time.monotonic() + STOP_SECONDS

    def stats(self) -> SourceStats:
        if self._kernel is not None and sys.platform == "linux" and not self._closed:
            with contextlib.suppress(OSError):
                self._dropped += struct.unpack("2I", self._kernel.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))[1]
        return SourceStats(received=self._frames + self._dropped, dropped=self._dropped, bytes=self._bytes)

    def close(self) -> None:
        if not self._closed:
            self.stats()
            self._closed = True
            self._block.lend(Buffer(b""))
            self._socket.close()


def nic_index(iface: str) -> int:
    """The index of the NIC that has this name now; 0 where none has, or the platform names them otherwise."""
    try:
        return socket.if_nametoindex(iface)
    except OSError:
        return 0
