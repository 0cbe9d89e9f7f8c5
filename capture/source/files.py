"""Walks the bytes of a capture file, pcap or pcapng, frame by frame into a block.

A walker is fed a buffer that holds a part of the file, again and again: it takes whole units (the file header, a frame,
a pcapng block) and says how many bytes they were. It keeps no bytes. Times are exact, in ns; of a finer resolution the
rest is cut off.

What a walker cannot make sense of is damage: it stops in front of it, for good.

Formats: pcap as libpcap writes it (draft-ietf-opsawg-pcap) in both byte orders, with micro- or nanoseconds, and the
24-byte frame headers of the modified format (magic a1b2cd34); pcapng (draft-ietf-opsawg-pcapng).
"""

from array import array

import cython

if cython.compiled:
    from cython.cimports.http_capture.capture.source.block import Block, Buffer
else:
    from .block import Block, Buffer

MAX_FRAME = 262144  # bytes captured of one frame; libpcap's own limit
MAX_BLOCK = 16 << 20  # bytes of one pcapng block
MAX_INTERFACES = 65536  # of one pcapng section

MAX_FRAME_BYTES = cython.declare(cython.longlong, MAX_FRAME)
MAX_BLOCK_BYTES = cython.declare(cython.longlong, MAX_BLOCK)
MAX_TIME_NS = cython.declare(cython.longlong, 1 << 62)  # the year 2116: the sum of two such still fits 64 bits
MAX_TIME = cython.declare(cython.ulonglong, 1 << 62)  # the same, to compare with unsigned numbers
MAX_OFFSET_SECONDS = cython.declare(cython.longlong, (1 << 62) // 1000000000)
TWO_TO_31 = cython.declare(cython.longlong, 1 << 31)
TWO_TO_32 = cython.declare(cython.longlong, 1 << 32)

PCAP = {  # the first four bytes -> big-endian, ns per unit of the fraction, bytes of a frame's header
    b"\xa1\xb2\xc3\xd4": (True, 1000, 16),
    b"\xd4\xc3\xb2\xa1": (False, 1000, 16),
    b"\xa1\xb2\x3c\x4d": (True, 1, 16),
    b"\x4d\x3c\xb2\xa1": (False, 1, 16),
    b"\xa1\xb2\xcd\x34": (True, 1000, 24),
    b"\x34\xcd\xb2\xa1": (False, 1000, 24),
}
PCAPNG = b"\x0a\x0d\x0d\x0a"

SECTION_HEADER = cython.declare(cython.longlong, 0x0A0D0D0A)
BYTE_ORDER_MAGIC = cython.declare(cython.longlong, 0x1A2B3C4D)
INTERFACE = cython.declare(cython.longlong, 1)
OBSOLETE_PACKET = cython.declare(cython.longlong, 2)
SIMPLE_PACKET = cython.declare(cython.longlong, 3)
ENHANCED_PACKET = cython.declare(cython.longlong, 6)
IF_TSRESOL = cython.declare(cython.longlong, 9)
IF_TSOFFSET = cython.declare(cython.longlong, 14)

# A row of the table of interfaces.
ROW = cython.declare(cython.Py_ssize_t, 6)
LINK = cython.declare(cython.Py_ssize_t, 0)
SNAPLEN = cython.declare(cython.Py_ssize_t, 1)
RESOLUTION = cython.declare(cython.Py_ssize_t, 2)  # if_tsresol as it is in the file
UNIT_NS = cython.declare(cython.Py_ssize_t, 3)  # ns per unit; 0 where a unit is not a whole number of ns
MAX_UNITS = cython.declare(cython.Py_ssize_t, 4)  # where there is a unit_ns: more would be after MAX_TIME_NS
OFFSET_NS = cython.declare(cython.Py_ssize_t, 5)


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def _u16(buffer: Buffer, at: cython.Py_ssize_t, big: cython.bint) -> cython.longlong:
    a: cython.uint = buffer.octets[at]
    b: cython.uint = buffer.octets[at + 1]
    if big:
        return a << 8 | b
    return b << 8 | a


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def _u32(buffer: Buffer, at: cython.Py_ssize_t, big: cython.bint) -> cython.longlong:
    a: cython.uint = buffer.octets[at]
    b: cython.uint = buffer.octets[at + 1]
    c: cython.uint = buffer.octets[at + 2]
    d: cython.uint = buffer.octets[at + 3]
    if big:
        return a << 24 | b << 16 | c << 8 | d
    return d << 24 | c << 16 | b << 8 | a


@cython.cclass
class PcapWalker:
    """A pcap file.

    damage: in a few words what makes no sense at the place where the last walk stopped; empty where all is well.
    needed: bytes that the unit at which the last walk stopped needs, as far as is known; 0 where the block is full.
    frame_bytes: captured bytes of all frames so far.
    """

    def __init__(self, magic: bytes) -> None:
        """`magic`: the first four bytes of the file, a key of PCAP."""
        self.damage = ""
        self.needed = 0
        self.frame_bytes = 0
        self.big, self.unit_ns, self.header_bytes = PCAP[magic]
        self.started = False
        self.link = 0

    @cython.ccall
    @cython.exceptval(-1)
    def walk(self, buffer: Buffer, start: cython.Py_ssize_t, end: cython.Py_ssize_t, block: Block) -> cython.Py_ssize_t:
        """Adds frames to `block`, which is lent on `buffer`, until it is full, or buffer[start:end] holds no further
        whole unit, or there is damage. Returns how many bytes were walked: the next walk begins behind them."""
        at: cython.Py_ssize_t = start
        header: cython.Py_ssize_t = self.header_bytes
        big: cython.bint = self.big
        unit_ns: cython.longlong = self.unit_ns
        seconds: cython.longlong
        fraction: cython.longlong
        captured: cython.longlong
        wire: cython.longlong
        if start < 0 or end < start or end > len(buffer.octets):
            raise ValueError("walk outside the buffer")
        self.damage = ""
        self.needed = 0
        if not self.started:
            if end - at < 24:
                self.needed = 24
                return 0
            if _u16(buffer, at + 4, big) != 2:
                self.damage = f"version {_u16(buffer, at + 4, big)} of pcap is not known"
                return 0
            self.link = _u32(buffer, at + 20, big) & 0xFFFF  # above: the length of the frame check sequence
            self.started = True
            at += 24
        while block.count < block.capacity:
            if end - at < header:
                self.needed = header
                break
            seconds = _u32(buffer, at, big)
            fraction = _u32(buffer, at + 4, big)
            captured = _u32(buffer, at + 8, big)
            wire = _u32(buffer, at + 12, big)
            if captured > wire:
                self.damage = f"captured length {captured} is more than wire length {wire}"
                break
            if captured > MAX_FRAME_BYTES:
                self.damage = f"captured length {captured} is more than {MAX_FRAME_BYTES}"
                break
            if wire == 0 and seconds == 0 and fraction == 0:
                self.damage = "a frame header of zeros"
                break
            if end - at < header + captured:
                self.needed = header + captured
                break
            block.add(at + header, captured, wire, seconds * 1000000000 + fraction * unit_ns, self.link)
            self.frame_bytes += captured
            at += header + captured
        return at - start


@cython.cclass
class PcapngWalker:
    """A pcapng file: sections, each with its byte order and its interfaces, each with its link type and its time.

    damage, needed, frame_bytes: as of PcapWalker.
    """

    def __init__(self) -> None:
        self.damage = ""
        self.needed = 0
        self.frame_bytes = 0
        self.big = False
        self.interface_count = 0
        self.interface_room = 4 * ROW
        self.interfaces = array("q", [0] * self.interface_room)
        self.last_ns = 0

    @cython.ccall
    @cython.exceptval(-1)
    def walk(self, buffer: Buffer, start: cython.Py_ssize_t, end: cython.Py_ssize_t, block: Block) -> cython.Py_ssize_t:
        """As PcapWalker.walk. Blocks that hold no frame are skipped."""
        at: cython.Py_ssize_t = start
        kind: cython.longlong
        total: cython.longlong
        fine: cython.int = 1
        if start < 0 or end < start or end > len(buffer.octets):
            raise ValueError("walk outside the buffer")
        self.damage = ""
        self.needed = 0
        while block.count < block.capacity:
            if end - at < 12:
                self.needed = 12
                break
            kind = _u32(buffer, at, self.big)
            if kind == SECTION_HEADER:  # the same in both byte orders
                self.big = _u32(buffer, at + 8, True) == BYTE_ORDER_MAGIC
                if _u32(buffer, at + 8, self.big) != BYTE_ORDER_MAGIC:
                    self.damage = "a section header without byte-order magic"
                    break
            total = _u32(buffer, at + 4, self.big)
            if total < 12 or total & 3 or total > MAX_BLOCK_BYTES:
                self.damage = f"block length {total} is not a multiple of 4 from 12 to {MAX_BLOCK_BYTES}"
                break
            if end - at < total:
                self.needed = total
                break
            if _u32(buffer, at + total - 4, self.big) != total:
                self.damage = f"block length {total} at its start, {_u32(buffer, at + total - 4, self.big)} at its end"
                break
            if kind == ENHANCED_PACKET:
                fine = self.packet(buffer, at, total, True, block)
            elif kind == SIMPLE_PACKET:
                fine = self.simple_packet(buffer, at, total, block)
            elif kind == OBSOLETE_PACKET:
                fine = self.packet(buffer, at, total, False, block)
            elif kind == INTERFACE:
                fine = self.interface(buffer, at, total)
            elif kind == SECTION_HEADER:
                fine = self.section(buffer, at, total)
            if not fine:
                break
            at += total
        return at - start

    # Each of the following takes one block; it returns 1, or 0 with `damage` set.

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def section(self, buffer: Buffer, at: cython.Py_ssize_t, total: cython.Py_ssize_t) -> cython.int:
        self.interface_count = 0
        if total < 28:
            self.damage = f"a section header of {total} bytes"
            return 0
        if _u16(buffer, at + 12, self.big) != 1:
            self.damage = f"version {_u16(buffer, at + 12, self.big)} of pcapng is not known"
            return 0
        return 1

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def interface(self, buffer: Buffer, at: cython.Py_ssize_t, total: cython.Py_ssize_t) -> cython.int:
        """Adds a row to the table of interfaces."""
        option: cython.Py_ssize_t = at + 16
        end: cython.Py_ssize_t = at + total - 4
        code: cython.longlong
        length: cython.longlong
        seconds: cython.longlong
        resolution: cython.longlong = 6
        offset_seconds: cython.longlong = 0
        unit_ns: cython.longlong = 0
        row: cython.Py_ssize_t = self.interface_count * ROW
        if total < 20:
            self.damage = f"an interface block of {total} bytes"
            return 0
        if self.interface_count >= MAX_INTERFACES:
            self.damage = f"more than {MAX_INTERFACES} interfaces"
            return 0
        while end - option >= 4:
            code = _u16(buffer, option, self.big)
            length = _u16(buffer, option + 2, self.big)
            option += 4
            if code == 0:
                break
            if length > end - option:
                self.damage = f"an option of {length} bytes, longer than its interface block"
                return 0
            if code == IF_TSRESOL and length == 1:
                resolution = buffer.octets[option]
            elif code == IF_TSOFFSET and length == 8:
                seconds = _u32(buffer, option if self.big else option + 4, self.big)
                if seconds >= TWO_TO_31:
                    seconds -= TWO_TO_32
                offset_seconds = seconds * TWO_TO_32 + _u32(buffer, option + 4 if self.big else option, self.big)
                if offset_seconds > MAX_OFFSET_SECONDS or offset_seconds < -MAX_OFFSET_SECONDS:
                    self.damage = f"a time offset of {offset_seconds} seconds"
                    return 0
            option += (length + 3) & ~3
        if row + ROW > self.interface_room:
            self.interfaces = array("q", list(self.interfaces) + [0] * self.interface_room)
            self.interface_room *= 2
        if resolution <= 9:
            unit_ns = 1
            for _ in range(9 - resolution):
                unit_ns *= 10
        self.interfaces[row + LINK] = _u16(buffer, at + 8, self.big)
        self.interfaces[row + SNAPLEN] = _u32(buffer, at + 12, self.big)
        self.interfaces[row + RESOLUTION] = resolution
        self.interfaces[row + UNIT_NS] = unit_ns
        self.interfaces[row + MAX_UNITS] = MAX_TIME_NS // unit_ns if unit_ns else 0
        self.interfaces[row + OFFSET_NS] = offset_seconds * 1000000000
        self.interface_count += 1
        return 1

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def packet(
        self, buffer: Buffer, at: cython.Py_ssize_t, total: cython.Py_ssize_t, enhanced: cython.bint, block: Block
    ) -> cython.int:
        """Adds the frame of an enhanced or an obsolete packet block: they differ only in the interface's number."""
        number: cython.Py_ssize_t
        captured: cython.longlong
        wire: cython.longlong
        timestamp_ns: cython.longlong
        if total < 32:
            self.damage = f"a packet block of {total} bytes"
            return 0
        number = _u32(buffer, at + 8, self.big) if enhanced else _u16(buffer, at + 8, self.big)
        captured = _u32(buffer, at + 20, self.big)
        wire = _u32(buffer, at + 24, self.big)
        if number >= self.interface_count:
            self.damage = f"a frame of interface {number}, which is not described"
            return 0
        if captured > wire:
            self.damage = f"captured length {captured} is more than wire length {wire}"
            return 0
        if not self.fits(captured, total - 32):
            return 0
        timestamp_ns = self.time_ns(number * ROW, _u32(buffer, at + 12, self.big), _u32(buffer, at + 16, self.big))
        if timestamp_ns < 0:
            self.damage = "a time before 1970 or after 2115"
            return 0
        self.last_ns = timestamp_ns
        self.frame_bytes += captured
        block.add(at + 28, captured, wire, timestamp_ns, self.interfaces[number * ROW + LINK])
        return 1

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def simple_packet(
        self, buffer: Buffer, at: cython.Py_ssize_t, total: cython.Py_ssize_t, block: Block
    ) -> cython.int:
        """Adds the frame of a simple packet block: of interface 0, with the time of the frame before it."""
        wire: cython.longlong
        captured: cython.longlong
        if total < 16:
            self.damage = f"a simple packet block of {total} bytes"
            return 0
        if self.interface_count == 0:
            self.damage = "a frame of interface 0, which is not described"
            return 0
        wire = _u32(buffer, at + 8, self.big)
        captured = wire
        if self.interfaces[SNAPLEN] and captured > self.interfaces[SNAPLEN]:
            captured = self.interfaces[SNAPLEN]
        if not self.fits(captured, total - 16):
            return 0
        self.frame_bytes += captured
        block.add(at + 12, captured, wire, self.last_ns, self.interfaces[LINK])
        return 1

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def fits(self, captured: cython.longlong, room: cython.longlong) -> cython.int:
        if captured > MAX_FRAME_BYTES:
            self.damage = f"captured length {captured} is more than {MAX_FRAME_BYTES}"
            return 0
        if captured > room:
            self.damage = f"captured length {captured} in a block that has room for {room}"
            return 0
        return 1

    @cython.cfunc
    @cython.exceptval(check=False)
    def time_ns(self, row: cython.Py_ssize_t, high: cython.ulonglong, low: cython.ulonglong) -> cython.longlong:
        """ns since 1970 of a time of two 32-bit halves, in the unit of the interface in this row; -1 out of range."""
        units: cython.ulonglong = high << 32 | low
        unit_ns: cython.ulonglong = self.interfaces[row + UNIT_NS]
        limit: cython.ulonglong
        resolution: cython.longlong = self.interfaces[row + RESOLUTION]
        seconds: cython.ulonglong
        ns: cython.ulonglong
        shift: cython.longlong
        result: cython.longlong
        if unit_ns:
            limit = self.interfaces[row + MAX_UNITS]
            if units > limit:
                return -1
            ns = units * unit_ns
        elif resolution < 128:  # 10^-resolution seconds, finer than ns
            for _ in range(resolution - 9):
                units //= 10
            ns = units
        else:  # 2^-shift seconds; C has no shift by 64 or more
            shift = resolution - 128
            if shift < 32:
                seconds = units >> shift
                if seconds > MAX_TIME // 1000000000:
                    return -1
                ns = seconds * 1000000000 + ((units - (seconds << shift)) * 1000000000 >> shift)
            elif shift < 96:
                # units * 10^9 / 2^32 fits, and what it cuts off is below what the second shift cuts off
                ns = (high * 1000000000 + (low * 1000000000 >> 32)) >> (shift - 32)
            else:
                ns = 0
        if ns > MAX_TIME:
            return -1
        result = ns
        result += self.interfaces[row + OFFSET_NS]
        return result if 0 <= result <= MAX_TIME_NS else -1
