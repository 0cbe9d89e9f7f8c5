"""Numbers, copies of a few bytes, and looks through them. Plain Python here; compiled modules take the forms in
octets.pxd in, without slice objects and without a Python object for a byte.

A slice of bytes costs five times as much through Python's slicing (measured: 250 ns against 50 ns), and there are some
twenty of them in each exchange. Bounds are the caller's: 0 <= start <= end <= length.

`Octets` are bytes that are read, `Room` those that are written: pointers in compiled modules, which hold as long as
the object that they came from and, for a bytearray, its size. Those that write say how much room there must be.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .source.block import Buffer

Octets = bytes
Room = bytearray

_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")
_PLAIN = re.compile(rb"[ !#-\[\]-~]*")
_SPECIAL = re.compile(rb'[\x00-\x1f"\\\x7f]')
_NAME = re.compile(rb"[!#-9;-\[\]-~]*")
_ESCAPES = {8: b"\\b", 9: b"\\t", 10: b"\\n", 12: b"\\f", 13: b"\\r", 34: b'\\"', 92: b"\\\\"}
_FOLD = 0x2020202020202020
_MASK = 0xFFFFFFFFFFFFFFFF


def octets_of(data: bytes) -> Octets:
    """The bytes, to be read one by one."""
    return data


def room_of(data: bytearray) -> Room:
    """The bytes, to be written one by one."""
    return data


def prefetch(octets: Octets, at: int) -> None:
    """The 128 bytes from there on are needed soon. Compiled: asks the processor for them."""


def prefetch_place(items: list[Any], at: int) -> None:
    """The item at this place is needed soon. Compiled: asks the processor for the place."""


def prefetch_item(items: list[Any], at: int) -> None:
    """The same for the item itself, the first 256 bytes of it."""


def prefetch_number(numbers: Any, at: int) -> None:
    """The same for a number of an array."""


def part(data: bytes, start: int, end: int) -> bytes:
    """data[start:end]."""
    return data[start:end]


def part_as(last: bytes | None, data: bytes, start: int, end: int) -> bytes:
    """data[start:end], as the same object where it is what `last` is: for what is nearly always the same."""
    found = data[start:end]
    return last if found == last else found  # type: ignore[return-value]


def copied(octets: Octets | Room, start: int, end: int) -> bytes:
    """octets[start:end] as bytes of its own."""
    return bytes(octets[start:end])


def joined(head: bytes, octets: Octets, start: int, end: int) -> bytes:
    """head + octets[start:end]."""
    return head + bytes(octets[start:end])


def new_room(size: int) -> bytearray:
    """So many bytes of any value."""
    return bytearray(size)


def resize(data: bytearray, size: int) -> None:
    """Makes it longer or shorter; new bytes have any value. A Room of it is none any more."""
    data[size:] = bytes(max(0, size - len(data)))


def put(room: Room, at: int, data: bytes, start: int, end: int) -> None:
    """room[at:] becomes data[start:end]; there is room for it."""
    room[at : at + end - start] = data[start:end]


def put_octets(room: Room, at: int, octets: Octets, start: int, end: int) -> None:
    """room[at:] becomes octets[start:end]; there is room for it."""
    room[at : at + end - start] = octets[start:end]


def again(room: Room, at: int, start: int, end: int) -> None:
    """room[at:] becomes room[start:end]; there is room for it."""
    room[at : at + end - start] = room[start:end]


def same(room: Room, at: int, data: bytes) -> bool:
    """Whether room[at:] begins with this."""
    return room[at : at + len(data)] == data


def find(octets: Octets, octet: int, start: int, end: int) -> int:
    """Where the first such byte of octets[start:end] is, or `end`."""
    found = octets.find(octet, start, end)
    return found if found >= 0 else end


def line_end(data: bytes, start: int, end: int) -> int:
    """Where the first line feed of data[start:end] is, or `end`."""
    return find(data, 10, start, end)


def controls(data: bytes, start: int, end: int) -> int:
    """How many bytes of data[start:end] are control characters (below 32, or DEL)."""
    return len(_CONTROL.findall(data, start, end))


def plain(room: Room, at: int, octets: Octets, start: int, end: int) -> int:
    """room[at:] becomes octets[start:stop], all of which stands in a JSON string as it is; returns stop.

    octets[stop] is a quote, a backslash, a control character, DEL or above 127, or stop == end. There is room for
    end - start bytes; those behind what was copied may be overwritten."""
    match = _PLAIN.match(octets, start, end)
    stop = match.end() if match is not None else start
    room[at : at + stop - start] = octets[start:stop]
    return stop


def text(room: Room, at: int, octets: Octets, start: int, end: int) -> int:
    """room[at:] becomes octets[start:end] as it stands in a JSON string; returns where that ends, or -1 where there is
    a byte above 127. There is room for 6 * (end - start) + 16 bytes, all of which may be overwritten."""
    data = octets[start:end]
    if not data.isascii():
        return -1
    data = _SPECIAL.sub(_escape, data)
    room[at : at + len(data)] = data
    return at + len(data)


def _escape(match: re.Match[bytes]) -> bytes:
    octet = match[0][0]
    return _ESCAPES.get(octet) or b"\\u%04x" % octet


def field_name(room: Room, at: int, octets: Octets, start: int, end: int) -> int:
    """room[at:] becomes octets[start:stop] in lower case; returns stop: where a colon, a quote, a backslash, a blank or
    anything else that is not visible ASCII is, or the end. Room as for plain()."""
    match = _NAME.match(octets, start, end)
    stop = match.end() if match is not None else start
    room[at : at + stop - start] = octets[start:stop].lower()
    return stop


def mark(octets: Octets, start: int, end: int) -> int:
    """A number of 31 bits, the same for names that differ in case only: a first look, never the proof."""
    name = octets[start:end]
    size = end - start
    first = last = middle = 0
    if size >= 8:
        first = int.from_bytes(name[:8], "little") | _FOLD
        last = int.from_bytes(name[-8:], "little") | _FOLD
        if size > 16:
            middle = int.from_bytes(name[size // 2 - 4 : size // 2 + 4], "little") | _FOLD
    elif size >= 4:
        first = int.from_bytes(name[:4], "little") | 0x20202020
        last = int.from_bytes(name[-4:], "little") | 0x20202020
    elif size > 0:
        first = name[0] | name[size // 2] << 8 | name[size - 1] << 16 | 0x202020
    mixed = first * 0x9E3779B97F4A7C15 ^ last * 0xC2B2AE3D27D4EB4F
    mixed = (mixed ^ middle * 0xFF51AFD7ED558CCD ^ size * 0x165667B19E3779F9) & _MASK
    return (mixed ^ mixed >> 32) & 0x7FFFFFFF


def decimal(room: Room, at: int, value: int) -> int:
    """room[at:] becomes the digits of a number from 0 to 2^64-1; returns where they end."""
    text = b"%d" % value
    room[at : at + len(text)] = text
    return at + len(text)


def digits(room: Room, at: int, value: int, count: int) -> None:
    """room[at : at + count] becomes the last `count` digits of a number from 0 to 2^64-1, with zeros in front."""
    room[at : at + count] = (b"%0*d" % (count, value))[-count:]


def number(room: Room, at: int, value: int, size: int) -> int:
    """room[at:] becomes a number of 2, 4 or 8 bytes in network order; returns where it ends."""
    room[at : at + size] = value.to_bytes(size, "big")
    return at + size


def ipv4(room: Room, at: int, value: int) -> int:
    """room[at:] becomes an IPv4 address as text; returns where that ends. There is room for 16 bytes, all of which may
    be overwritten."""
    text = b"%d.%d.%d.%d" % (value >> 24, value >> 16 & 255, value >> 8 & 255, value & 255)
    room[at : at + len(text)] = text
    return at + len(text)


def octets_in(buffer: Buffer) -> Octets:
    """The bytes of a buffer, to be read one by one."""
    return buffer.octets  # type: ignore[return-value]


def u16(octets: Octets, at: int) -> int:
    """The number in two bytes, in network order."""
    return octets[at] << 8 | octets[at + 1]


def u32(octets: Octets, at: int) -> int:
    """The number in four bytes, in network order."""
    return u16(octets, at) << 16 | u16(octets, at + 2)


def u64(octets: Octets, at: int) -> int:
    """The number in eight bytes, in network order."""
    return u32(octets, at) << 32 | u32(octets, at + 4)
