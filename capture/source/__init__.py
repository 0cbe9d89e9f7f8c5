"""Where frames come from: a NIC or capture files, behind one interface.

af_packet.py    a NIC, through a TPACKET_V3 ring
pcap_file.py    capture files: pcap, pcapng, compressed, folders, standard input
scapy_sniff.py  a NIC, through scapy: slow, but anywhere
"""

from typing import TYPE_CHECKING, Protocol

from msgspec import Struct

from .block import Block

if TYPE_CHECKING:
    from ...config.settings import SourceSettings


class EndOfInput(Exception):
    """The last frame of the last file, or the last one before `stop()`, has been read. Not an error."""


class SourceStats(Struct):
    """What the source saw since it was opened. For a NIC, `received` is what the kernel offered: frames read and
    `dropped` ones both. `warnings` are lines that the operator should see at the end (a cut file: which, where)."""

    received: int = 0
    dropped: int = 0
    bytes: int = 0
    damaged: int = 0  # capture files that were cut off or damaged


class Source(Protocol):
    """Zero or more `read()`, at most one `stop()` among them, then exactly one `close()`."""

    live: bool
    """True for a NIC: an empty block is an idle moment, and frames come whether or not they are read."""

    def read(self, timeout_seconds: float) -> Block:
        """Lends a block of frames until the next `read()`. Empty where none came within the time.

        Raises EndOfInput after the last one; an OperatorError where the source cannot go on."""

    def waiting(self) -> tuple[int, int]:
        """How many blocks wait to be read, and how many can before frames are lost; 0, 0 where that is not known, or
        nothing is lost."""

    def stop(self) -> None:
        """Takes no more frames. `read()` still lends those that were taken, then raises EndOfInput."""

    def stats(self) -> SourceStats: ...

    def close(self) -> None: ...


def open_source(settings: "SourceSettings") -> Source:
    """The source that the settings name: capture files where there are any, else the NIC.

    Raises an OperatorError where it cannot be opened."""
    if settings.read:
        from .pcap_file import PcapFiles

        return PcapFiles(settings.read)
    if settings.kind == "scapy":
        from .scapy_sniff import ScapySniff

        return ScapySniff(settings)
    from .af_packet import AfPacket

    return AfPacket(settings)
