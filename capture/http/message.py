"""One HTTP request or response: its head as it stood on the wire, what the head says, and its body as far as kept.

Header fields are not taken out of the head until somebody asks: `HeaderIndex` says where in it they are.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

import cython

if cython.compiled:
    from cython.cimports.http_capture.capture.octets import line_end, part
else:
    from ..octets import line_end, part

if TYPE_CHECKING:
    from .decoding import ContentDecoder

REQUEST, RESPONSE, EITHER = 0, 1, 2

# Why a message is not whole; 0: it is. The names are those of the record.
REASONS = ("", "gap", "truncated_capture", "closed", "timeout", "evicted", "shutdown", "malformed")
GAP, TRUNCATED, CLOSED, TIMEOUT, EVICTED, SHUTDOWN, MALFORMED = 1, 2, 3, 4, 5, 6, 7

LOWER = cython.declare(bytes, bytes(range(256)).lower())
_FIELDS = cython.declare(cython.int, 5)


def hash_name(name: bytes) -> int:
    """The hash by which HeaderIndex recognises a field name, in any case: a first look, never the proof."""
    value = 0
    for octet in name.lower():
        value = (value * 31 + octet) & 0x3FFFFFF
    return value


@cython.cclass
class HeaderIndex:
    """Where the header fields of a head are (RFC 9112 section 5). One object is used for many heads.

    After scan(): fields 0 to count-1, in wire order. `overflow`: there were more than the capacity. `folded`: at least
    one value goes over several lines (obs-fold). Lines that are no field are passed over.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.count = 0
        self.overflow = self.folded = False
        self.spans = array("i", bytes(4 * 5 * capacity))

    @cython.ccall
    @cython.exceptval(-2)
    def scan(
        self, data: bytes, start: cython.Py_ssize_t, base: cython.Py_ssize_t, framing: cython.bint = False
    ) -> cython.Py_ssize_t:
        """Indexes the field lines from `start` (after the first line); positions count from `base`.

        Returns where the head ends, after the empty line, or -1 where data ends before it. `framing`: the caller wants
        Content- and Transfer- fields only; others may be left out, and `overflow` is still that of all."""
        spans: cython.int[::1] = self.spans
        lower: bytes = LOWER
        end: cython.Py_ssize_t = len(data)
        at: cython.Py_ssize_t = start
        begin: cython.Py_ssize_t
        stop: cython.Py_ssize_t
        name_end: cython.Py_ssize_t
        value: cython.int
        c: cython.uchar
        i: cython.int = 0
        row: cython.int
        lines: cython.int = 0
        self.overflow = False
        self.folded = False
        self.count = 0
        while at < end:
            # Nothing that it could be folded to.
            while i == 0 and lines == 0 and at < end and (data[at] == 32 or data[at] == 9):
                at += 1
            if at == end:
                break
            begin = at
            c = data[at]
            if c == 10:
                self.count = i
                return at + 1
            if c == 13 and at + 1 < end and data[at + 1] == 10:
                self.count = i
                return at + 2
            if framing:
                # A line that is folded, or too many of them: what they belong to takes all fields to tell.
                if lines >= self.capacity or c == 32 or c == 9:
                    return self.scan(data, start, base, False)
                lines += 1
                if c | 32 != 99 and c | 32 != 116:  # c, t
                    at = line_end(data, at, end) + 1
                    continue
            if (c == 32 or c == 9) and i > 0:  # obs-fold
                at = line_end(data, at, end)
                stop = at
                at += 1
                while stop > begin and (data[stop - 1] == 13 or data[stop - 1] == 32 or data[stop - 1] == 9):
                    stop -= 1
                if stop > begin:
                    self.folded = True
                    spans[(i - 1) * _FIELDS + 3] = stop - base
                continue
            value = 0
            while at < end:
                c = data[at]
                if c == 58 or c == 10:
                    break
                value = (value * 31 + lower[c]) & 0x3FFFFFF
                at += 1
            name_end = at
            if at >= end or c == 10 or at == begin:  # no colon, or nothing before it
                at = line_end(data, at, end) + 1
                continue
            if data[name_end - 1] == 32 or data[name_end - 1] == 9:
                while name_end > begin and (data[name_end - 1] == 32 or data[name_end - 1] == 9):
                    name_end -= 1
                value = 0
                for stop in range(begin, name_end):
                    value = (value * 31 + lower[data[stop]]) & 0x3FFFFFF
            at += 1
            while at < end and (data[at] == 32 or data[at] == 9):
                at += 1
            stop = at
            at = line_end(data, at, end)
            if i >= self.capacity:
                self.overflow = True
                at += 1
                continue
            row = i * _FIELDS
            spans[row] = begin - base
            spans[row + 1] = name_end - base
            spans[row + 2] = stop - base
            name_end = at
            while name_end > stop and (data[name_end - 1] == 13 or data[name_end - 1] == 32 or data[name_end - 1] == 9):
                name_end -= 1
            spans[row + 3] = name_end - base
            spans[row + 4] = value
            i += 1
            at += 1
        self.count = i
        return -1

    @cython.ccall
    @cython.exceptval(check=False)
    def named(self, head: bytes, i: cython.int, name: bytes) -> cython.bint:
        """True where field i has this name, which is given in lower case."""
        lower: bytes = LOWER
        start: cython.int = self.spans[i * _FIELDS]
        size: cython.int = self.spans[i * _FIELDS + 1] - start
        k: cython.int
        if size != len(name):
            return False
        for k in range(size):
            if lower[head[start + k]] != name[k]:
                return False
        return True

    @cython.cfunc
    @cython.exceptval(check=False)
    def name_start(self, i: cython.int) -> cython.int:
        return self.spans[i * _FIELDS]

    @cython.cfunc
    @cython.exceptval(check=False)
    def name_end(self, i: cython.int) -> cython.int:
        return self.spans[i * _FIELDS + 1]

    @cython.cfunc
    @cython.exceptval(check=False)
    def value_start(self, i: cython.int) -> cython.int:
        return self.spans[i * _FIELDS + 2]

    @cython.cfunc
    @cython.exceptval(check=False)
    def value_end(self, i: cython.int) -> cython.int:
        return self.spans[i * _FIELDS + 3]

    @cython.cfunc
    @cython.exceptval(check=False)
    def name_hash(self, i: cython.int) -> cython.int:
        return self.spans[i * _FIELDS + 4]

    @cython.ccall
    def name(self, head: bytes, i: cython.int) -> bytes:
        """The name of field i in lower case."""
        return part(head, self.name_start(i), self.name_end(i)).lower()

    @cython.ccall
    def value(self, head: bytes, i: cython.int) -> bytes:
        """The value of field i; the line breaks of a folded one become a space each (RFC 9112 section 5.2)."""
        value: bytes = part(head, self.value_start(i), self.value_end(i))
        if self.folded and b"\n" in value:
            return b" ".join([line.strip(b" \t\r") for line in value.split(b"\n")]).strip()
        return value


@cython.cclass
class Message:
    """A message while it is read and afterwards. `role` is REQUEST or RESPONSE.

    seq, ack: sequence number of its first byte and acknowledgement number of the segment that brought it.
    first_ns, last_ns: frame times of its first and last byte. version: 9, 10, 11, or 0 where it is none of these.
    body_bytes: transfer-decoded length, the true one; wire_bytes: all of the message as sent; gap_bytes: lost of it.
    kept: the first kept_bytes bytes of the body, in pieces; or `decoder` has them, decoded. ended: its last byte came;
    incomplete: why it is not whole, one of REASONS.
    """

    def __init__(self, role: cython.int) -> None:
        self.role = role
        self.head = b""
        self.headers_start = 0
        self.seq = self.ack = self.first_ns = self.last_ns = 0
        self.version = 0
        self.status = 0
        self.method = self.target = self.reason = b""
        self.content_type: bytes = None
        self.content_encoding: bytes = None
        self.chunked = self.keep = self.ended = self.framed_by_close = False
        self.content_length = -1
        self.body_bytes = self.wire_bytes = self.gap_bytes = 0
        self.cut = False
        self.incomplete = 0
        self.kept: list[bytes] = None
        self.decoder: ContentDecoder = None
        self.kept_bytes = 0
