"""Numbers, copies of a few bytes, and a look through them. Plain Python here; compiled modules take the forms in
octets.pxd in, without slice objects.

A slice of bytes costs five times as much through Python's slicing (measured: 250 ns against 50 ns), and there are some
twenty of them in each exchange. Bounds are the caller's: 0 <= start <= end <= length.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .source.block import Buffer

_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")
_PLAIN = re.compile(rb"[ !#-\[\]-~]*")


def prefetch(buffer: Buffer, at: int) -> None:
    """The 128 bytes from there on are needed soon. Compiled: asks the processor for them."""


def part(data: bytes, start: int, end: int) -> bytes:
    """data[start:end]."""
    return data[start:end]


def copied(octets: memoryview | bytearray, start: int, end: int) -> bytes:
    """octets[start:end] as bytes of its own; octets: a memoryview or a bytearray."""
    return bytes(octets[start:end])


def put(octets: memoryview | bytearray, at: int, data: bytes, start: int, end: int) -> None:
    """octets[at:] becomes data[start:end]; there is room for it."""
    octets[at : at + end - start] = data[start:end]


def line_end(data: bytes, start: int, end: int) -> int:
    """Where the first line feed of data[start:end] is, or `end`."""
    found = data.find(b"\n", start, end)
    return found if found >= 0 else end


def controls(data: bytes, start: int, end: int) -> int:
    """How many bytes of data[start:end] are control characters (below 32, or DEL)."""
    return len(_CONTROL.findall(data, start, end))


def plain(octets: memoryview | bytearray, at: int, data: bytes, start: int, end: int) -> int:
    """octets[at:] becomes data[start:stop], all of which stands in a JSON string as it is; returns stop.

    data[stop] is a quote, a backslash, a control character, DEL or above 127, or stop == end. There is room for
    end - start bytes; those behind what was copied may be overwritten."""
    match = _PLAIN.match(data, start, end)
    stop = match.end() if match is not None else start
    octets[at : at + stop - start] = data[start:stop]
    return stop


def u16(buffer: Buffer, at: int) -> int:
    """The number in two bytes of the buffer, in network order."""
    return buffer.octets[at] << 8 | buffer.octets[at + 1]


def u32(buffer: Buffer, at: int) -> int:
    """The number in four bytes of the buffer, in network order."""
    return u16(buffer, at) << 16 | u16(buffer, at + 2)
