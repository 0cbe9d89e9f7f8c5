"""One HTTP request or response: its head as it stood on the wire, what the head says, and its body as far as kept.

Header fields are not taken out of the head until somebody asks: `HeaderIndex` says where in it they are.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

import cython

if cython.compiled:
    from cython.cimports.http_capture.capture.octets import (
        Octets,
        find,
        mark,
        octets_of,
        part,
        part_as,
        put_octets,
        resize,
        room_of,
    )
else:
    from ..octets import Octets, find, mark, octets_of, part, part_as, put_octets, resize, room_of

if TYPE_CHECKING:
    from .decoding import ContentDecoder

REQUEST, RESPONSE, EITHER = 0, 1, 2

# Why a message is not whole; 0: it is. The names are those of the record.
REASONS = ("", "gap", "truncated_capture", "closed", "timeout", "evicted", "shutdown", "malformed", "shed")
GAP, TRUNCATED, CLOSED, TIMEOUT, EVICTED, SHUTDOWN, MALFORMED, SHED = 1, 2, 3, 4, 5, 6, 7, 8

# What of a message is not as RFC 9112 wants it, and which reading was taken: ANOMALIES[k] is bit k of a mask.
ANOMALIES = (
    "bare_lf",  # a line of a head or of chunk framing ends in LF alone: a line end (RFC 9112 section 2.2)
    "control_in_head",  # a control character other than tab, also a CR that ends no line: stays where it is
    "nul_in_head",  # a NUL: framing reads the head without it
    "obs_fold",  # a field, or its name, goes over several lines: one line (section 5.2)
    "obs_fold_transfer_encoding",  # Transfer-Encoding does: the same
    "space_before_colon",  # blanks or control characters between a field name and its colon: not of the name (5.1)
    "blank_before_field",  # the first field line begins with a blank: the blank is passed over (2.2)
    "field_malformed",  # a field line without a colon or a name: passed over
    "head_end_odd",  # a line of nothing but CRs or blanks, and no field line behind it: the end of the head
    "junk_before_message",  # bytes between messages, or lines before the first status line: passed over
    "request_line_odd",  # tabs or several blanks between its parts, or blanks in the target: target as it stands
    "version_odd",  # not `HTTP/1.0` or `HTTP/1.1` to the letter: no version, unless only the case differs
    "status_odd",  # no status of three digits from 100 on: no status, read like a 200
    "status_line_missing",  # the answer has no status line: all of it is the body, up to the close (RFC 1945 section 4)
    "lengths_repeated",  # Content-Length several times, the same: that length (RFC 9112 section 6.3)
    "lengths_differ",  # several, different: a request is malformed, a response read by the first
    "length_malformed",  # not a number: a request is malformed, a response read as if the field was not there
    "transfer_encoding_and_length",  # both: Transfer-Encoding counts (6.3)
    "transfer_encoding_odd",  # not `chunked` after known codings: chunked where it says so and a chunk size follows
    "transfer_encoding_version",  # Transfer-Encoding in a message that is no HTTP/1.1 (6.1): the same
    "chunked_not_applied",  # said to be chunked, and no chunk size follows: read by length, or until the close
    "chunk_size_odd",  # blanks, a sign, `0x` or junk around a chunk size, or one too large: the number, if any (7.1)
    "chunk_end_missing",  # no line end after a chunk: the next size is read there (7.1)
    "body_not_allowed",  # a 1xx or 204 response announces a body: it has none (6.3)
    "conflicting_retransmission",  # bytes were sent again and were others: those of the overlap policy (reassembly.py)
)
(
    BARE_LF, CONTROL_IN_HEAD, NUL_IN_HEAD, OBS_FOLD, OBS_FOLD_TRANSFER_ENCODING, SPACE_BEFORE_COLON, BLANK_BEFORE_FIELD,
    FIELD_MALFORMED, HEAD_END_ODD, JUNK_BEFORE_MESSAGE, REQUEST_LINE_ODD, VERSION_ODD, STATUS_ODD, STATUS_LINE_MISSING,
    LENGTHS_REPEATED, LENGTHS_DIFFER, LENGTH_MALFORMED, TRANSFER_ENCODING_AND_LENGTH, TRANSFER_ENCODING_ODD,
    TRANSFER_ENCODING_VERSION, CHUNKED_NOT_APPLIED, CHUNK_SIZE_ODD, CHUNK_END_MISSING, BODY_NOT_ALLOWED,
    CONFLICTING_RETRANSMISSION,
) = (1 << bit for bit in range(len(ANOMALIES)))  # fmt: skip
_BARE_LF = cython.declare(cython.int, BARE_LF)
_OBS_FOLD = cython.declare(cython.int, OBS_FOLD)
_SPACE_BEFORE_COLON = cython.declare(cython.int, SPACE_BEFORE_COLON)
_BLANK_BEFORE_FIELD = cython.declare(cython.int, BLANK_BEFORE_FIELD)
_FIELD_MALFORMED = cython.declare(cython.int, FIELD_MALFORMED)
_HEAD_END_ODD = cython.declare(cython.int, HEAD_END_ODD)

# 1 for each byte that a token has (RFC 9110 section 5.6.2).
TOKEN = cython.declare(
    bytes, bytes(chr(c).isascii() and (chr(c).isalnum() or chr(c) in "!#$%&'*+-.^_`|~") for c in range(256))
)
_FIELDS = cython.declare(cython.int, 5)


def hash_name(name: bytes) -> int:
    """The number by which HeaderIndex recognises a field name, in any case: a first look, never the proof."""
    return mark(octets_of(name), 0, len(name))


@cython.final
@cython.cclass
class HeaderIndex:
    """Where the header fields of a head are (RFC 9112 section 5). One object is used for many heads.

    After scan(): fields 0 to count-1, in wire order. `overflow`: there were more than the capacity. `folded`: at least
    one field goes over several lines (obs-fold). Lines that are no field are passed over. `anomalies`: what of
    ANOMALIES was seen; `lines`: how many field lines. `undecided`: the end of the data may be the end of the head.

    A line of nothing but CRs or blanks ends the head where what follows it is no field line. Readers differ, and nobody
    sends one without the intention to make them differ.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.count = 0
        self.overflow = self.folded = self.undecided = False
        self.anomalies = self.lines = 0
        self.spans = array("i", bytes(4 * 5 * capacity))

    @cython.ccall
    @cython.exceptval(-2)
    def scan(
        self, data: bytes, start: cython.Py_ssize_t, base: cython.Py_ssize_t, framing: cython.bint = False
    ) -> cython.Py_ssize_t:
        """Indexes the field lines from `start` (after the first line); positions count from `base`.

        Returns where the head ends, after the empty line, or -1 where data ends before it. `framing`: the caller wants
        Content- and Transfer- fields only; others may be left out, and `overflow` is still that of all."""
        octets: Octets = octets_of(data)
        end: cython.Py_ssize_t = len(data)
        at: cython.Py_ssize_t = start
        begin: cython.Py_ssize_t
        stop: cython.Py_ssize_t
        name_end: cython.Py_ssize_t
        line: cython.Py_ssize_t
        c: cython.uchar
        i: cython.int = 0
        row: cython.int
        lines: cython.int = 0
        anomalies: cython.int = 0
        self.overflow = False
        self.folded = False
        self.undecided = False
        while at < end:
            if lines == 0:  # there is nothing that a blank could fold the line to
                while at < end and (octets[at] == 32 or octets[at] == 9):
                    at += 1
                    anomalies |= _BLANK_BEFORE_FIELD
                if at == end:
                    break
            begin = at
            c = octets[at]
            if c == 10:
                return self._scanned(i, lines, anomalies | _BARE_LF, at + 1)
            if c == 13:
                if at + 1 < end and octets[at + 1] == 10:
                    return self._scanned(i, lines, anomalies, at + 2)
                while at < end and octets[at] == 13:
                    at += 1
                if at == end:
                    self.undecided = True
                    break
                if octets[at] == 10:
                    at += 1
                    row = _goes_on(data, at, end)
                    if row < 0:
                        self.undecided = True
                        break
                    if row == 0:
                        return self._scanned(i, lines, anomalies | _HEAD_END_ODD, at)
                    anomalies |= _FIELD_MALFORMED
                    lines += 1
                    continue
                at = begin
            if framing:
                # A line that is folded, or too many of them: what they belong to takes all fields to tell.
                if lines >= self.capacity or c == 32 or c == 9:
                    return self.scan(data, start, base, False)
                if c | 32 != 99 and c | 32 != 116:  # c, t
                    at = find(octets, 10, at, end) + 1
                    if at <= end and octets[at - 2] != 13:
                        anomalies |= _BARE_LF
                    lines += 1
                    continue
            lines += 1
            if c == 32 or c == 9:  # obs-fold
                at = find(octets, 10, at, end)
                stop = at
                at += 1
                if at <= end and octets[at - 2] != 13:
                    anomalies |= _BARE_LF
                while stop > begin and (octets[stop - 1] == 13 or octets[stop - 1] == 32 or octets[stop - 1] == 9):
                    stop -= 1
                if stop > begin:
                    anomalies |= _OBS_FOLD
                    if i == 0:  # to a line that was passed over
                        continue
                    self.folded = True
                    self.spans[(i - 1) * _FIELDS + 3] = stop - base
                    continue
                row = _goes_on(data, at, end) if at <= end else -1
                if row < 0:
                    self.undecided = True
                    break
                if row == 0:
                    return self._scanned(i, lines, anomalies | _HEAD_END_ODD, at)
                anomalies |= _OBS_FOLD
                continue
            line = find(octets, 10, at, end)
            at = find(octets, 58, at, line)
            if at == line and at > begin and at + 1 < end and (octets[at + 1] == 32 or octets[at + 1] == 9):
                if framing:
                    return self.scan(data, start, base, False)
                name_end = _folded_colon(data, at, end)
                if name_end > 0:
                    self.folded = True
                    anomalies |= _OBS_FOLD
                    at = name_end
                    line = find(octets, 10, at, end)
            name_end = at
            if at == line or at == begin:  # noqa: SIM109 - no colon, or nothing before it
                at = line + 1
                if at <= end:
                    anomalies |= _FIELD_MALFORMED
                    if octets[at - 2] != 13:
                        anomalies |= _BARE_LF
                continue
            if octets[name_end - 1] <= 32:
                while name_end > begin and octets[name_end - 1] <= 32:
                    name_end -= 1
                anomalies |= _SPACE_BEFORE_COLON
            at += 1
            while at < end and (octets[at] == 32 or octets[at] == 9):
                at += 1
            stop = at
            at = line
            if at < end and octets[at - 1] != 13:
                anomalies |= _BARE_LF
            if i >= self.capacity:
                self.overflow = True
                at += 1
                continue
            row = i * _FIELDS
            self.spans[row] = begin - base
            self.spans[row + 1] = name_end - base
            self.spans[row + 2] = stop - base
            self.spans[row + 4] = mark(octets, begin, name_end)
            name_end = at
            while name_end > stop and (
                octets[name_end - 1] == 13 or octets[name_end - 1] == 32 or octets[name_end - 1] == 9
            ):
                name_end -= 1
            self.spans[row + 3] = name_end - base
            i += 1
            at += 1
        return self._scanned(i, lines, anomalies, -1)

    @cython.cfunc
    @cython.exceptval(check=False)
    def _scanned(
        self, count: cython.int, lines: cython.int, anomalies: cython.int, end: cython.Py_ssize_t
    ) -> cython.Py_ssize_t:
        self.count = count
        self.lines = lines
        self.anomalies = anomalies
        return end

    @cython.ccall
    @cython.exceptval(check=False)
    def named(self, head: bytes, i: cython.int, name: bytes) -> cython.bint:
        """True where field i has this name, which is given in lower case."""
        octets: Octets = octets_of(head)
        wanted: Octets = octets_of(name)
        start: cython.int = self.spans[i * _FIELDS]
        size: cython.int = self.spans[i * _FIELDS + 1] - start
        k: cython.int
        c: cython.int
        if size != len(name):
            return False
        for k in range(size):
            c = octets[start + k]
            if c != wanted[k] and (c < 65 or c > 90 or c + 32 != wanted[k]):
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
    def value(self, head: bytes, i: cython.int, last: bytes | None = None) -> bytes:
        """The value of field i; the line breaks of a folded one become a space each (RFC 9112 section 5.2). `last`:
        what it nearly always is."""
        value: bytes = part_as(last, head, self.value_start(i), self.value_end(i))
        if self.folded and b"\n" in value:
            return b" ".join([line.strip(b" \t\r") for line in value.split(b"\n")]).strip()
        return value


@cython.cfunc
@cython.exceptval(check=False)
def _goes_on(data: bytes, at: cython.Py_ssize_t, end: cython.Py_ssize_t) -> cython.int:
    """Whether the head goes on at `at`, after a line of blanks: 1: with a field, a fold, its end; 0: no; -1: maybe."""
    token: bytes = TOKEN
    begin: cython.Py_ssize_t = at
    if at < end and (data[at] == 10 or data[at] == 32 or data[at] == 9):
        return 1
    if at < end and data[at] == 13:
        return -1 if at + 1 == end else data[at + 1] == 10
    while at < end and token[data[at]]:
        at += 1
    if at > begin:
        while at < end and (data[at] == 32 or data[at] == 9):
            at += 1
    if at == end:
        return -1
    return at > begin and data[at] == 58


@cython.cfunc
@cython.exceptval(check=False)
def _folded_colon(data: bytes, at: cython.Py_ssize_t, end: cython.Py_ssize_t) -> cython.Py_ssize_t:
    """Where the colon is of a field name that ends with the line; all between is blank. 0: nowhere."""
    while at < end and (data[at] == 32 or data[at] == 9 or data[at] == 13 or data[at] == 10):
        if data[at] == 10 and at + 1 < end and data[at + 1] != 32 and data[at + 1] != 9:
            return 0
        at += 1
    return at if at < end and data[at] == 58 else 0


@cython.final
@cython.freelist(64)
@cython.no_gc  # circles are broken by hand
@cython.cclass
class Message:
    """A message while it is read and afterwards. `role` is REQUEST or RESPONSE.

    seq, ack: sequence number of its first byte and acknowledgement number of the segment that brought it.
    first_ns, last_ns: frame times of its first and last byte. version: 9, 10, 11, or 0 where it is none of these.
    body_bytes: transfer-decoded length, the true one; wire_bytes: all of the message as sent; gap_bytes: lost of it.
    kept: its first kept_bytes bytes are those of the body; or `decoder` has them, decoded. ended: its last byte came;
    incomplete: why it is not whole, one of REASONS. anomalies: a mask of ANOMALIES.
    """

    @cython.cfunc
    @cython.exceptval(-1)
    def set_up(self, role: cython.int) -> cython.int:
        """What begins a message that new_message() has made."""
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
        self.incomplete = self.anomalies = 0
        self.kept: bytearray = None
        self.decoder: ContentDecoder = None
        self.kept_bytes = 0
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def keep_octets(self, octets: Octets, start: cython.Py_ssize_t, end: cython.Py_ssize_t) -> cython.int:
        """Appends octets[start:end] to what is kept of the body."""
        size: cython.Py_ssize_t = self.kept_bytes + end - start
        if size > len(self.kept):
            resize(self.kept, 2 * size)
        put_octets(room_of(self.kept), self.kept_bytes, octets, start, end)
        self.kept_bytes = size
        return 0


@cython.cfunc
def new_message(role: cython.int) -> Message:
    """A message of which nothing is known yet. Made without a call of the type, which would cost as much as the rest of
    what a message costs."""
    message: Message = Message.__new__(Message)
    message.set_up(role)
    return message
