"""One direction of HTTP/1.x: bytes in order become messages (RFC 9112). Knows nothing of TCP.

States:
    START        between messages; empty lines are skipped
    HEAD         some of a head is pending
    BODY         `remaining` bytes of a body of known length, or of a chunk
    UNTIL_CLOSE  a body that ends with the stream
    CHUNK_SIZE, CHUNK_END, TRAILERS   around the chunks
    HOLD         after a CONNECT request: what follows depends on the answer, and waits for it
    TUNNEL       not HTTP any more (CONNECT, 101): counted, not read
    AFTER_09     after an HTTP/0.9 request, which is the only one of its connection
    LOST         not at a message start: searches the next certain one
    MAYBE_BODY   behind the head of a response whose request is not known: its body, or none, as to HEAD
    SOCKS        the handshake of a proxy (socks.py)
    INSIDE       where a proxy's tunnel begins (CONNECT, SOCKS): HTTP again, or TUNNEL

    START -> HEAD -> BODY | UNTIL_CLOSE | CHUNK_SIZE -> ... -> START;  any -> LOST (gap, malformed) -> HEAD

Invariants:
- Any split of the same bytes gives the same messages.
- Every byte is in exactly one of Limits' counters: head, body, framing, skipped, tunnel, pending.
- Each message given to `on_head` is given to `on_end` exactly once.
"""

from __future__ import annotations

import re

import cython

if cython.compiled:
    from cython.cimports.http_capture.capture.http.message import HeaderIndex, Message, new_message
    from cython.cimports.http_capture.capture.octets import (
        Octets,
        controls,
        copied,
        line_end,
        new_room,
        octets_in,
        octets_of,
        part,
        part_as,
    )
    from cython.cimports.http_capture.capture.reassembly import Consumer
    from cython.cimports.http_capture.capture.seq import advance
    from cython.cimports.http_capture.capture.source.block import Buffer
else:
    from ..octets import (
        Octets,
        controls,
        copied,
        line_end,
        new_room,
        octets_in,
        octets_of,
        part,
        part_as,
    )
    from ..reassembly import Consumer
    from ..seq import advance
    from ..source.block import Buffer
    from .message import HeaderIndex, Message, new_message
from . import lenient, socks
from .decoding import ContentDecoder, DecoderMemory, listed_codings
from .message import (
    BODY_NOT_ALLOWED,
    CHUNK_END_MISSING,
    CHUNKED_NOT_APPLIED,
    JUNK_BEFORE_MESSAGE,
    OBS_FOLD,
    OBS_FOLD_TRANSFER_ENCODING,
    REQUEST_LINE_ODD,
    STATUS_LINE_MISSING,
    TRANSFER_ENCODING_AND_LENGTH,
    TRANSFER_ENCODING_VERSION,
    hash_name,
)

(
    START,
    HEAD,
    BODY,
    UNTIL_CLOSE,
    CHUNK_SIZE,
    CHUNK_END,
    TRAILERS,
    HOLD,
    TUNNEL,
    AFTER_09,
    LOST,
    MAYBE_BODY,
    SOCKS,
    INSIDE,
) = range(14)
_START = cython.declare(cython.int, 0)
_HEAD = cython.declare(cython.int, 1)
_BODY = cython.declare(cython.int, 2)
_UNTIL_CLOSE = cython.declare(cython.int, 3)
_CHUNK_SIZE = cython.declare(cython.int, 4)
_CHUNK_END = cython.declare(cython.int, 5)
_TRAILERS = cython.declare(cython.int, 6)
_HOLD = cython.declare(cython.int, 7)
_TUNNEL = cython.declare(cython.int, 8)
_AFTER_09 = cython.declare(cython.int, 9)
_LOST = cython.declare(cython.int, 10)
_MAYBE_BODY = cython.declare(cython.int, 11)
_SOCKS = cython.declare(cython.int, 12)
_INSIDE = cython.declare(cython.int, 13)

_REQUEST = cython.declare(cython.int, 0)
_RESPONSE = cython.declare(cython.int, 1)
_EITHER = cython.declare(cython.int, 2)

# What on_head answers for a response: what its request was.
NORMAL, TO_HEAD, TO_CONNECT, TO_09, TO_UNKNOWN = 0, 1, 2, 3, 4

_GAP = cython.declare(cython.int, 1)
_TRUNCATED = cython.declare(cython.int, 2)
_CLOSED = cython.declare(cython.int, 3)
_MALFORMED = cython.declare(cython.int, 7)
# Why a stream was closed (reassembly.CLOSE_REASONS) -> why a message in it is not whole (message.REASONS).
_BY_CLOSE = cython.declare(tuple, (3, 3, 4, 5, 6, 8))

_CONTENT_LENGTH = cython.declare(cython.int, hash_name(b"content-length"))
_TRANSFER_ENCODING = cython.declare(cython.int, hash_name(b"transfer-encoding"))
_CONTENT_TYPE = cython.declare(cython.int, hash_name(b"content-type"))
_CONTENT_ENCODING = cython.declare(cython.int, hash_name(b"content-encoding"))

_METHODS = (
    b"GET|HEAD|POST|PUT|DELETE|CONNECT|OPTIONS|TRACE|PATCH|PROPFIND|PROPPATCH|MKCOL|COPY|MOVE|LOCK|UNLOCK|REPORT|"
    b"SEARCH|NOTIFY|SUBSCRIBE|UNSUBSCRIBE|M-SEARCH|PURGE|MERGE|CHECKOUT|MKACTIVITY|VERSION-CONTROL"
)
_TOKEN = frozenset(b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
_IS_TOKEN = cython.declare(bytes, bytes(1 if c in _TOKEN else 0 for c in range(256)))
# A message start that nothing else looks like: a whole request line with a registered method, a status line's begin.
_CERTAIN_REQUEST = re.compile(rb"(?<![!-~])(?:" + _METHODS + rb") [!-\xff]{1,8000} HTTP/1\.[01]\r?\n")
_CERTAIN_RESPONSE = re.compile(rb"HTTP/1\.[01] [1-5][0-9][0-9][ \r\n]")
# Directly after a gap less is needed, because a sender starts a message in a segment of its own.
_TARGETS = (b"/", b"http://", b"https://", b"*")
_LIKELY_REQUEST = re.compile(rb"(?:" + _METHODS + rb") (?:/|https?://|\*)")
_LINE_09 = re.compile(rb"GET[ \t]+([!-\xff]+)[ \t]*\r?\Z")
_TEXTUAL = re.compile(
    rb"\s*(?:text/|application/(?:[^;]*[+/])?(?:json|xml|javascript|x-javascript|ecmascript|x-www-form-urlencoded|yaml|"
    rb"x-yaml|graphql|x-ndjson|ndjson|sql)|[^;]*\+(?:json|xml|yaml)|image/svg)",
    re.IGNORECASE,
)
_LINE_TAIL = cython.declare(cython.Py_ssize_t, 8192)  # of an unfinished line, what a search keeps
_RESPONSE_BEGIN = re.compile(
    rb"H(?:T(?:T(?:P(?:/(?:1(?:\.(?:[01](?: (?:[1-5](?:[0-9](?:[0-9])?)?)?)?)?)?)?)?)?)?)?"
)  # of what _CERTAIN_RESPONSE matches
_STATUS_TAIL = cython.declare(cython.Py_ssize_t, 13)  # of a status line's begin, likewise
_LIKELY_BEGINS = cython.declare(
    frozenset,
    frozenset(
        (method + b" " + target)[:size]
        for method in _METHODS.split(b"|")
        for target in _TARGETS
        for size in range(1, len(method) + 1 + len(target))
    ),
)
_LIKELY_BYTES = cython.declare(cython.Py_ssize_t, 32)
_HTTP = cython.declare(bytes, b"HTTP/")
_SPACE_HTTP_1 = cython.declare(bytes, b" HTTP/1.")
_MAX_METHOD = cython.declare(cython.Py_ssize_t, 32)
_MAX_LINE = cython.declare(cython.Py_ssize_t, 8192)  # a first line without an end is no HTTP beyond this
_MAX_BLANKS = cython.declare(cython.int, 64)  # other than line ends, between messages
_BARE_LF = cython.declare(cython.int, 1)  # as in message.ANOMALIES
_MAX_TEXTUAL = cython.declare(cython.Py_ssize_t, 4096)
_FIRST_ROOM = cython.declare(cython.Py_ssize_t, 8192)  # for a body; it grows with what comes, not with what is promised


@cython.final
@cython.cclass
class Limits:
    """The bounds of all parsers, and their counters. keep: 0 no bodies, 1 textual ones, 2 all.

    head + body + framing + skipped + tunnel + pending bytes = bytes given to the parsers, at any time.
    """

    def __init__(
        self, *, max_head_bytes: int = 65536, max_headers: int = 1000, search_bytes: int = 65536, keep: int = 1,
        max_kept_bytes: int = 65536, max_decoded_bytes: int = 1 << 26, max_ratio: int = 1000,
        max_decoder_memory_bytes: int = 1 << 28,
    ) -> None:  # fmt: skip
        self.max_head_bytes = max_head_bytes
        self.search_bytes = search_bytes
        self.keep = keep
        self.max_kept_bytes = max_kept_bytes
        self.max_decoded_bytes = max_decoded_bytes
        self.max_ratio = max_ratio
        self.decoder_memory = DecoderMemory(max_decoder_memory_bytes)
        self.index = HeaderIndex(max_headers)
        self.textual: dict[bytes, bool] = {}
        self.head_bytes = self.body_bytes = self.framing_bytes = 0
        self.skipped_bytes = self.tunnel_bytes = self.pending_bytes = 0
        self.requests = self.responses = self.informational = 0
        self.last_type: bytes = None
        self.last_method: bytes = None
        self.last_reason: bytes = None
        self.last_wanted = False
        self.resyncs = self.heads_too_large = self.headers_overflow = self.decoding_failures = 0

    @cython.cfunc
    def wanted(self, content_type: bytes | None) -> cython.bint:
        """Whether the content of a body of this type is kept; without a type it is, and the record decides."""
        if self.keep != 1:
            return self.keep == 2
        if content_type is None:
            return True
        if content_type == self.last_type:
            return self.last_wanted
        known = self.textual.get(content_type)
        if known is None:
            known = _TEXTUAL.match(content_type) is not None
            if len(self.textual) < _MAX_TEXTUAL:
                self.textual[content_type] = known
        self.last_type = content_type
        self.last_wanted = known
        return self.last_wanted


@cython.cclass
class Listener:
    """Who is told of messages: for each, on_head, then exactly one on_end. Then, once a parser, on_end_of_stream."""

    @cython.ccall
    @cython.exceptval(-1)
    def on_start(self, parser: Parser) -> cython.int:
        """A message may start here, and the parser does not know its role. Who does settles it."""
        return 0

    @cython.ccall
    @cython.exceptval(-1)
    def on_role(self, parser: Parser) -> cython.int:
        """The parser has found out whether it reads requests or responses."""
        return 0

    @cython.ccall
    @cython.exceptval(-1)
    def on_head(self, parser: Parser, message: Message) -> cython.int:
        """A head is there. For a response the answer says to what it answers: NORMAL, TO_HEAD, TO_CONNECT,
        TO_UNKNOWN."""
        return 0

    @cython.ccall
    @cython.exceptval(-1)
    def on_socks(self, parser: Parser, version: cython.int) -> cython.int:
        """The stream begins like a client's SOCKS handshake of this version; 0: it was none."""
        return 0

    @cython.ccall
    @cython.exceptval(-1)
    def on_target(self, parser: Parser, target: str) -> cython.int:
        """The SOCKS handshake is over: it asked for this HOST:PORT."""
        return 0

    @cython.ccall
    @cython.exceptval(-1)
    def on_inside(self, parser: Parser, http: cython.bint) -> cython.int:
        """What a proxy carries looks like a request, or does not. Returns whether it is read as HTTP."""
        return 0

    @cython.ccall
    @cython.exceptval(-1)
    def on_end(self, parser: Parser, message: Message) -> cython.int:
        """The message has ended, or will not get any further (`message.incomplete`)."""
        return 0

    @cython.ccall
    @cython.exceptval(-1)
    def on_lost(self, parser: Parser) -> cython.int:
        """The parser does not know where the next message starts, and how many it has missed."""
        return 0

    @cython.ccall
    @cython.exceptval(-1)
    def is_answer(self, parser: Parser) -> cython.int:
        """Whether the first bytes of this direction answer a request for certain, whatever they look like."""
        return 0

    @cython.ccall
    @cython.exceptval(-1)
    def on_end_of_stream(self, parser: Parser, reason: cython.int, timestamp_ns: cython.longlong) -> cython.int:
        return 0


@cython.final
@cython.no_gc  # circles are broken by hand
@cython.cclass
class Parser(Consumer):
    """Reads one direction; tells `listener`. `role`: REQUEST, RESPONSE, or EITHER until the bytes have told.

    recognised: at least one message start was seen. answers_09: the other side sent an HTTP/0.9 request, so bytes that
    are no status line are its answer. position_seq: sequence number after the last byte read.
    skipped_ack: what this side had received when it sent the last byte that a search has passed over.
    """

    def __init__(self, limits: Limits, listener: Listener, role: cython.int) -> None:
        self.set_up(limits, listener, role)

    @cython.cfunc
    @cython.exceptval(-1)
    def set_up(self, limits: Limits, listener: Listener, role: cython.int) -> cython.int:
        self.limits = limits
        self.listener = listener
        self.role = role
        self.state = _START
        self.message: Message = None
        self.remaining = 0
        self.position_seq = -1
        self.skipped_ack = -2
        self.searched = 0
        self.recognised = False
        self.answers_09 = False
        self.after_gap = False
        self.then = -1  # the state after the message that is read, where it is not START
        self.framing = 0  # that of the response in MAYBE_BODY
        self.socks_version = 0
        self.pending: bytearray = None
        self.scanned = 0
        self.start_lost = False  # on_lost is called because of a gap with the start of a message in it
        self.head_gap = 0  # bytes missing after the head that is now read
        self.before = 0  # anomalies of the message that comes next
        self.blanks = 0
        self.undecided = False  # what is pending may end with a head's end
        self.plain_size = False  # the next chunk size must be a sound one
        self.doubt = False  # where the message ends is one reading of several: the next one is to be searched
        self.length = -1  # Content-Length of a message that says it is chunked
        # of the bytes now read: sequence number of the first; those up to `boundary` came earlier, with old_ack, old_ns
        self.seq = self.boundary = 0
        self.old_ack = self.old_ns = self.ack = self.now_ns = 0
        # those up to `turn` came before the other side was last heard, with older_ack
        self.turn = 0
        self.older_ack = 0
        return 0

    @cython.ccall
    @cython.exceptval(-1)
    def on_data(
        self, buffer: Buffer, start: cython.Py_ssize_t, end: cython.Py_ssize_t, seq: cython.longlong,
        ack: cython.longlong, timestamp_ns: cython.longlong,
    ) -> cython.int:  # fmt: skip
        size: cython.Py_ssize_t = end - start
        self.position_seq = advance(seq, size)
        if self.state == _BODY and size <= self.remaining:
            self.remaining -= size
            self.now_ns = timestamp_ns
            self._body(octets_in(buffer), start, end)
            return self._body_done() if self.remaining == 0 else 0
        if self.state == _UNTIL_CLOSE:
            self.now_ns = timestamp_ns
            return self._body(octets_in(buffer), start, end)
        if self.state == _TUNNEL:
            self.limits.tunnel_bytes += size
            return 0
        return self._feed(copied(octets_in(buffer), start, end), seq, ack, timestamp_ns)

    @cython.ccall
    @cython.exceptval(-1)
    def on_gap(self, length: cython.longlong, timestamp_ns: cython.longlong, cut: cython.bint) -> cython.int:
        """Inside a body of known length the framing goes on; anywhere else the next message start is searched."""
        message: Message
        messages: cython.longlong
        if self.position_seq >= 0:
            self.position_seq = advance(self.position_seq, length)
        if self.state == _TUNNEL or self.state == _AFTER_09:
            return 0
        if self.state == _INSIDE and not self.listener.on_inside(self, False):
            return self.proceed(_TUNNEL)
        if self.state == _SOCKS:
            self.listener.on_socks(self, 0)
        elif self.state == _MAYBE_BODY:
            self._has_body()
        message = self.message  # as it is after that
        if message is not None:
            message.gap_bytes += length
            message.cut = message.cut or cut
            if message.decoder is not None:
                message.decoder.finish()  # what follows the gap cannot be decoded
            message.keep = False
            if self.state == _UNTIL_CLOSE or (self.state == _BODY and length <= self.remaining):
                message.body_bytes += length
                message.wire_bytes += length
                self.remaining -= length
                if self.state == _BODY and self.remaining == 0:
                    self._body_done()
                return 0
            self.doubt = False
            if self.state == _BODY:
                message.body_bytes += self.remaining
                self.start_lost = not message.chunked
            self._end(_TRUNCATED if cut else _GAP)
        else:
            messages = self.limits.requests + self.limits.responses
            if self.pending is not None and self.state == _HEAD:
                self._partial_head(_TRUNCATED if cut else _GAP, length)
            self.start_lost = messages == self.limits.requests + self.limits.responses
        self._lose()
        self.start_lost = False
        self.after_gap = True
        return 0

    @cython.ccall
    @cython.exceptval(-1)
    def on_close(self, reason: cython.int, timestamp_ns: cython.longlong) -> cython.int:
        self.doubt = False
        if self.state == _MAYBE_BODY:
            self._has_body()
        if self.message is not None:
            self._end(0 if reason == 0 and self.state == _UNTIL_CLOSE else _BY_CLOSE[reason])
        elif self.pending is not None and self.state == _HEAD and self._lacks_status():
            self._short_answer(0 if reason == 0 else _BY_CLOSE[reason])
        elif self.pending is not None and self.state == _HEAD:
            self._partial_head(_BY_CLOSE[reason], 0)
        self._skip_pending()
        if self.listener is not None:
            self.listener.on_end_of_stream(self, reason, timestamp_ns)
            self.listener = None
        return 0

    @cython.ccall
    @cython.exceptval(-1)
    def proceed(self, state: cython.int) -> cython.int:
        """What follows the current message is known: TUNNEL, INSIDE, or START: HTTP as before."""
        if self.message is not None:
            self.then = state if state != _START else -1
        elif state != _START or self.state == _HOLD:
            self.state = state
            self._again()
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def _again(self) -> cython.int:
        """Reads what is pending in another state."""
        held: bytes
        if self.pending is not None:
            held = bytes(self.pending)
            self.limits.pending_bytes -= len(held)
            self.pending = None
            self._feed(held, self.seq, self.old_ack, self.old_ns)
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def _has_body(self) -> cython.int:
        self.state = self.framing
        return self._again()

    # --- the states ---

    @cython.cfunc
    @cython.exceptval(-1)
    def _feed(
        self, data: bytes, seq: cython.longlong, ack: cython.longlong, timestamp_ns: cython.longlong
    ) -> cython.int:
        """Reads a copy of the next bytes, after those that are pending; what cannot be read yet becomes pending."""
        at: cython.Py_ssize_t = 0
        to: cython.Py_ssize_t
        end: cython.Py_ssize_t
        state: cython.int
        self.ack = ack
        self.now_ns = timestamp_ns
        if self.pending is None:
            self.seq = seq
            self.boundary = 0
            self.turn = 0
        else:
            to = len(self.pending)
            if ack != self.old_ack:
                self.older_ack = self.old_ack
                self.turn = to
            self.pending += data
            self.limits.pending_bytes += len(data)
            if (
                self.state == _HEAD
                and self.scanned > 0
                and not self.undecided
                and to + len(data) <= self.limits.max_head_bytes
            ):
                if b"\n" not in data:
                    return 0
            data = bytes(self.pending)
            self.limits.pending_bytes -= len(data)
            self.pending = None
            self.boundary = to
        end = len(data)
        while at < end:
            state = self.state
            if state == _START:
                to = at
                if self.role == _EITHER:
                    self.listener.on_start(self)
                while to < end and (data[to] == 13 or data[to] == 10):
                    to += 1
                if to < end and data[to] <= 32 and self.role != _EITHER and not self.answers_09:
                    if data[to] == 4 or data[to] == 5:
                        self._maybe_socks(data[to])
                    else:
                        to = self._blanks(data, to)
                self.limits.framing_bytes += to - at
                if to < end and self.state == _START:
                    self.state = _HEAD
                    self.scanned = 0
            elif state == _HEAD:
                to = self._head(data, at)
            elif state == _BODY:
                to = end if end - at < self.remaining else at + self.remaining
                self.remaining -= to - at
                self._body(octets_of(data), at, to)
                if self.remaining == 0:
                    self._body_done()
            elif state == _UNTIL_CLOSE:
                self._body(octets_of(data), at, end)
                to = end
            elif state == _CHUNK_SIZE:
                to = self._chunk_size(data, at)
            elif state == _CHUNK_END:
                to = self._chunk_end(data, at)
            elif state == _TRAILERS:
                to = self._trailers(data, at)
            elif state == _HOLD:
                to = -1
                if end - at > self.limits.max_head_bytes:
                    self.state = _TUNNEL
                    to = at
            elif state == _TUNNEL:
                self.limits.tunnel_bytes += end - at
                to = end
            elif state == _AFTER_09:
                self.limits.skipped_bytes += end - at
                to = end
            elif state == _MAYBE_BODY:
                to = self._maybe_body(data, at)
            elif state == _SOCKS:
                to = self._socks(data, at)
            elif state == _INSIDE:
                to = self._inside(data, at)
            else:
                to = self._search(data, at)
            if to < 0:  # more is needed
                break
            at = to
        if at < end:
            self.turn = self.turn - at if self.turn > at else 0
            self.pending = bytearray(data[at:])
            self.limits.pending_bytes += end - at
            if at >= self.boundary or self.state == _LOST:
                self.old_ack = ack
                self.old_ns = timestamp_ns
            self.seq = advance(self.seq, at)
        return 0

    @cython.cfunc
    @cython.exceptval(-2)
    def _head(self, data: bytes, at: cython.Py_ssize_t) -> cython.Py_ssize_t:
        """Returns where the head that starts at `at` ends, `at` itself in another state, or -1: more is needed."""
        verdict: cython.int
        stop: cython.Py_ssize_t = -1
        line: cython.Py_ssize_t
        if self.scanned == 0:
            verdict = self._plausible(data, at)
            if verdict == 0:
                return -1
            if verdict < 0:
                self._lose()
                return at
            if verdict == 2:
                return self._take_09(data, at)
            if verdict == 3:
                stop = lenient.status_line_after_junk(data, at)
                self.limits.skipped_bytes += stop
                self.before |= JUNK_BEFORE_MESSAGE
                return at + stop
        if self.scanned == 0 or self.undecided or self._ends(data, at + self.scanned):
            line = line_end(data, at, len(data))
            stop = self.limits.index.scan(data, line + 1, at, True)
            self.undecided = self.limits.index.undecided
        if (len(data) if stop < 0 else stop) - at > self.limits.max_head_bytes:
            self.limits.heads_too_large += 1
            stop = at + self.limits.max_head_bytes
            self._take_head(data[at:stop], at, _MALFORMED)
            return stop
        if stop < 0:
            self.scanned = len(data) - at - 2 if len(data) - at > 3 else 1
            return -1
        if at == 0 and stop == len(data):
            self._take_head(data, 0, 0)
        else:
            self._take_head(part(data, at, stop), at, 0)
        return stop

    @cython.cfunc
    @cython.exceptval(check=False)
    def _ends(self, data: bytes, at: cython.Py_ssize_t) -> cython.bint:
        """Whether there is from `at` on a line that may end the head: an empty one, or one that begins with blanks."""
        last: cython.Py_ssize_t = len(data) - 1
        while at < last:
            if data[at] == 10 and (
                data[at + 1] == 10
                or data[at + 1] == 32
                or data[at + 1] == 9
                or (data[at + 1] == 13 and at + 1 < last and (data[at + 2] == 10 or data[at + 2] == 13))
            ):
                return True
            at += 1
        return False

    @cython.cfunc
    @cython.exceptval(-2)
    def _plausible(self, data: bytes, at: cython.Py_ssize_t) -> cython.int:
        """1: a message starts here; 2: an HTTP/0.9 one; 3: one with junk before it; 0: more bytes are needed to say;
        -1: none. Settles the role."""
        end: cython.Py_ssize_t = len(data)
        i: cython.Py_ssize_t = at
        k: cython.Py_ssize_t = 0
        verdict: cython.int = 1
        if self.role != _REQUEST:
            while k < 5 and at + k < end and data[at + k] == _HTTP[k]:
                k += 1
            if k == 5:
                if self.role == _EITHER:
                    self.role = _RESPONSE
                    self.listener.on_role(self)
                self.recognised = True
                return 1
            if at + k == end:
                return 0
            if self.answers_09:
                return 2
            if self.role == _RESPONSE:
                return self._odd_start(data, at)
        while i < end and _IS_TOKEN[data[i]]:
            i += 1
        if i - at > _MAX_METHOD:
            return -1
        if i == end:
            return 0
        if i == at or (data[i] != 32 and data[i] != 9):
            return -1
        k = i
        i = line_end(data, i, end)
        if i - at > _MAX_LINE:
            return -1
        if i == end:
            return 0
        if not (i - k > 11 and self._version(data, i) >= 0) and not lenient.is_request_line(data, at, i):
            if self.recognised or self.state == _LOST or _LINE_09.match(data, at, i) is None:
                return -1
            verdict = 2
        if self.role == _EITHER:
            self.role = _REQUEST
            self.listener.on_role(self)
        self.recognised = True
        return verdict

    @cython.cfunc
    @cython.exceptval(-2)
    def _odd_start(self, data: bytes, at: cython.Py_ssize_t) -> cython.int:
        """_plausible() of a response that does not begin with `HTTP/`."""
        begin: bytes = data[at : at + 5].lower()
        if begin == b"http/":
            self.recognised = True
            return 1
        if b"http/".startswith(begin):
            return 0
        if self.recognised:
            return -1
        if not self.listener.is_answer(self):
            return -1
        if lenient.status_line_after_junk(data, at) > 0:
            return 3
        if len(data) - at < lenient.MAX_JUNK:
            return 0
        self.before |= STATUS_LINE_MISSING
        return 2

    @cython.cfunc
    @cython.exceptval(-1)
    def _lacks_status(self) -> cython.int:
        """Whether what is pending, all of the stream, is an answer without a status line."""
        if self.role != _RESPONSE or self.recognised or b"http/".startswith(bytes(self.pending[:5]).lower()):
            return 0
        return self.listener.is_answer(self)

    @cython.cfunc
    @cython.exceptval(-1)
    def _short_answer(self, reason: cython.int) -> cython.int:
        """The stream has ended, and all of it is an answer without a status line."""
        held: bytes = bytes(self.pending)
        self.limits.pending_bytes -= len(held)
        self.pending = None
        self.boundary = len(held)
        self.before |= STATUS_LINE_MISSING
        self._take_09(held, 0)
        self._body(octets_of(held), 0, len(held))
        return self._end(reason)

    @cython.cfunc
    @cython.exceptval(-2)
    def _blanks(self, data: bytes, at: cython.Py_ssize_t) -> cython.Py_ssize_t:
        """Blanks of any kind before a message, a few of them, are passed over (RFC 9112 section 2.2)."""
        while at < len(data) and (data[at] == 32 or 9 <= data[at] <= 13 or data[at] == 0):
            if data[at] != 10 and data[at] != 13:
                if self.blanks == _MAX_BLANKS:
                    break
                self.blanks += 1
                self.before |= JUNK_BEFORE_MESSAGE
            at += 1
        return at

    @cython.cfunc
    @cython.exceptval(check=False)
    def _version(self, data: bytes, end: cython.Py_ssize_t) -> cython.int:
        """10 or 11 where the line that ends at `end` ends in ` HTTP/1.0` or ` HTTP/1.1` and a CR, else -1."""
        k: cython.Py_ssize_t
        for k in range(8):
            if data[end - 10 + k] != _SPACE_HTTP_1[k]:
                return -1
        if data[end - 1] != 13:
            return -1
        if data[end - 2] == 49:
            return 11
        return 10 if data[end - 2] == 48 else -1

    @cython.cfunc
    @cython.exceptval(-2)
    def _take_09(self, data: bytes, at: cython.Py_ssize_t) -> cython.Py_ssize_t:
        """An HTTP/0.9 request is one line, its answer all that comes (RFC 1945 section 4.1)."""
        message: Message
        end: cython.Py_ssize_t
        message = self._begin(at)
        message.version = 9
        self.recognised = True
        if self.role == _REQUEST:
            end = data.find(b"\n", at)
            message.head = data[at : end + 1]
            message.headers_start = end + 1 - at
            message.method = b"GET"
            message.target = _LINE_09.match(data, at, end).group(1)
            message.wire_bytes = end + 1 - at
            self.limits.head_bytes += end + 1 - at
            self.limits.requests += 1
            self.listener.on_head(self, message)
            self._end(0)
            self.state = _AFTER_09
            return end + 1
        self.limits.responses += 1
        self.listener.on_head(self, message)
        self._open_body(message)
        self.state = _UNTIL_CLOSE
        return at

    @cython.cfunc
    def _begin(self, at: cython.Py_ssize_t) -> Message:
        """A new message, whose first byte lies at `at` of the bytes now read."""
        message: Message = new_message(self.role)
        message.seq = advance(self.seq, at)
        message.ack = self.old_ack if at < self.boundary else self.ack
        message.first_ns = self.old_ns if at < self.boundary else self.now_ns
        message.last_ns = self.now_ns
        message.gap_bytes = self.head_gap
        message.anomalies = self.before
        self.before = 0
        self.blanks = 0
        self.message = message
        self.searched = 0
        self.after_gap = False
        self.scanned = 0
        return message

    @cython.cfunc
    @cython.exceptval(-1)
    def _take_head(self, head: bytes, at: cython.Py_ssize_t, reason: cython.int) -> cython.int:
        """A head, whole (reason 0: it has just been indexed) or as far as it came: reads it, tells the listener, and
        decides the framing."""
        message: Message = self._begin(at)
        size: cython.Py_ssize_t = len(head)
        end: cython.Py_ssize_t = line_end(head, 0, size)
        hint: cython.int
        sound: cython.bint
        fields: bytes
        index: HeaderIndex = self.limits.index
        message.wire_bytes = size
        self.limits.head_bytes += size
        if reason != 0 and end < size:
            head = head[: head.rfind(b"\n") + 1]  # half a field is none
        message.head = head
        message.headers_start = end + 1
        fields = head
        if reason != 0:
            index.scan(head, message.headers_start, 0, True)
            message.anomalies |= index.anomalies
        elif index.anomalies != 0 or head[end - 1] != 13 or controls(head, 0, size) != 2 * (index.lines + 2):
            message.anomalies |= lenient.head_anomalies(head) | index.anomalies
            if b"\0" in head:
                fields = lenient.without_nul(head)
                if index.scan(fields, line_end(fields, 0, len(fields)) + 1, 0, True) != len(fields):
                    fields = head  # what was between NULs is an empty line without them
                    index.scan(fields, message.headers_start, 0, True)
                message.anomalies |= index.anomalies
        if self.role == _REQUEST:
            self._request_line(message, head, end)
            self.limits.requests += 1
        else:
            self._status_line(message, head, end)
            if 100 <= message.status < 200 and message.status != 101:
                self.limits.informational += 1
            else:
                self.limits.responses += 1
        sound = self._fields(message, fields)
        hint = self.listener.on_head(self, message)
        if reason != 0:
            self.doubt = False
            self._end(reason)
            if reason == _MALFORMED:
                self._lose()
            return 0
        if self.role == _REQUEST:
            if message.chunked:
                self.state = _CHUNK_SIZE
            elif not sound:
                return self._malformed()
            elif message.content_length > 0:
                self.remaining = message.content_length
                self.state = _BODY
            else:
                self._end(0)
                if message.method == b"CONNECT" and self.state == _START:
                    self.state = _HOLD
                return 0
        else:
            if message.status == 101 or (hint == 2 and 200 <= message.status < 300):
                self.doubt = False
                self._end(0)
                self.state = _TUNNEL if message.status == 101 else _INSIDE
                return 0
            if hint == 1 or 0 < message.status < 200 or message.status == 204 or message.status == 304:
                self.doubt = False
                return self._end(0)
            if message.chunked:
                self.state = _CHUNK_SIZE
            elif message.content_length == 0:
                return self._end(0)
            elif message.content_length > 0:
                self.remaining = message.content_length
                self.state = _BODY
            else:
                message.framed_by_close = True
                self.state = _UNTIL_CLOSE
            if hint == 4:
                self.framing = self.state
                self.state = _MAYBE_BODY
        return self._open_body(message)

    @cython.cfunc
    @cython.exceptval(-2)
    def _maybe_body(self, data: bytes, at: cython.Py_ssize_t) -> cython.Py_ssize_t:
        """A status line in the place of a body: the response was to HEAD and has none (RFC 9110 section 9.3.2)."""
        if _CERTAIN_RESPONSE.match(data, at) is not None:
            self.message.keep = False
            self.message.kept = None
            self.message.decoder = None
            self._end(0)
        elif len(data) - at < _STATUS_TAIL and _RESPONSE_BEGIN.fullmatch(data, at) is not None:
            return -1
        else:
            self.state = self.framing
        return at

    @cython.cfunc
    @cython.exceptval(-1)
    def _maybe_socks(self, version: cython.int) -> cython.int:
        """The first byte of a client's stream is a version of SOCKS: see what follows."""
        if self.role == _REQUEST and not self.recognised and self.searched == 0 and self.blanks == 0:
            self.state = _SOCKS
            self.socks_version = version
            self.listener.on_socks(self, version)
        return 0

    @cython.cfunc
    @cython.exceptval(-2)
    def _socks(self, data: bytes, at: cython.Py_ssize_t) -> cython.Py_ssize_t:
        """The handshake, as far as this side takes part in it; behind it the tunnel begins."""
        end: cython.Py_ssize_t
        if self.role == _REQUEST:
            end, _, target = socks.request(data[at:])
        else:
            end, target = socks.reply(data[at:], self.socks_version), ""
        if end == -1:
            return -1
        if end < 0:
            self.state = _HEAD
            self.scanned = 0
            self.listener.on_socks(self, 0)
            return at
        self.limits.framing_bytes += end
        self.state = _INSIDE
        if self.role == _REQUEST:
            self.listener.on_target(self, target)
        return at + end

    @cython.cfunc
    @cython.exceptval(-2)
    def _inside(self, data: bytes, at: cython.Py_ssize_t) -> cython.Py_ssize_t:
        """HTTP in a tunnel begins with a request that nothing else looks like; anything else is not read."""
        looks: cython.bint = False
        if self.role == _REQUEST and _IS_TOKEN[data[at]]:
            if data.find(b"\n", at) < 0 and len(data) - at <= _MAX_LINE:
                return -1
            looks = _CERTAIN_REQUEST.match(data, at) is not None
        self.state = _START if self.listener.on_inside(self, looks) else _TUNNEL
        return at

    @cython.cfunc
    @cython.exceptval(-1)
    def _partial_head(self, reason: cython.int, length: cython.longlong) -> cython.int:
        """The pending begin of a head, which will not get any longer, is a message if it says of what kind it is."""
        head: bytes = bytes(self.pending)
        certain: cython.bint
        if self.role == _RESPONSE:
            certain = _CERTAIN_RESPONSE.match(head) is not None
        else:
            certain = _LIKELY_REQUEST.match(head) is not None or (
                self.role == _REQUEST and self.scanned > 0 and self.recognised
            )
        if not certain:
            return 0
        if self.role == _EITHER:
            self.role = _REQUEST
            self.listener.on_role(self)
        self.recognised = True
        self.limits.pending_bytes -= len(head)
        self.pending = None
        self.boundary = len(head)
        self.head_gap = length
        self._take_head(head, 0, reason)
        self.head_gap = 0
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def _body_done(self) -> cython.int:
        """All of a body of known length, or of a chunk, is there."""
        if self.message.chunked:
            self.state = _CHUNK_END
            return 0
        return self._end(0)

    @cython.cfunc
    @cython.exceptval(-1)
    def _malformed(self) -> cython.int:
        """The message is not to be read any further, nor is it known where the next one starts."""
        self.doubt = False
        self._end(_MALFORMED)
        return self._lose()

    @cython.cfunc
    @cython.exceptval(-2)
    def _chunk_size(self, data: bytes, at: cython.Py_ssize_t) -> cython.Py_ssize_t:
        """A chunk's size line; extensions are skipped (RFC 9112 section 7.1)."""
        end: cython.Py_ssize_t = len(data)
        i: cython.Py_ssize_t = at
        size: cython.longlong = 0
        c: cython.int
        while i < end:
            c = data[i]
            if 48 <= c <= 57:
                c -= 48
            elif 97 <= c <= 102:
                c -= 87
            elif 65 <= c <= 70:
                c -= 55
            else:
                break
            size = size * 16 + c
            i += 1
            if i - at == 15:  # a sixteenth digit may be too much for 63 bits: it is not the end of the line
                break
        if i == at or i + 1 >= end or data[i] != 13 or data[i + 1] != 10:
            return self._odd_chunk_size(data, at)
        return self._open_chunk(at, i + 2, size)

    @cython.cfunc
    @cython.exceptval(-2)
    def _odd_chunk_size(self, data: bytes, at: cython.Py_ssize_t) -> cython.Py_ssize_t:
        """One that is not all there, has an extension, or is not what section 7.1 allows."""
        end, size, found = lenient.chunk_size(data, at, self.plain_size)
        if end == lenient.MORE:
            return -1
        if end == lenient.NO_SIZE and self.message.body_bytes == 0 and self.role == _RESPONSE:
            return self._not_chunked(at)
        self.message.anomalies |= found
        if end < 0:
            self._malformed()
            return at
        return self._open_chunk(at, end, size)

    @cython.cfunc
    @cython.exceptval(-2)
    def _open_chunk(self, at: cython.Py_ssize_t, end: cython.Py_ssize_t, size: cython.longlong) -> cython.Py_ssize_t:
        self.limits.framing_bytes += end - at
        self.message.wire_bytes += end - at
        self.message.last_ns = self.now_ns
        self.remaining = size
        self.state = _BODY if size > 0 else _TRAILERS
        self.scanned = 0
        self.plain_size = False
        return end

    @cython.cfunc
    @cython.exceptval(-2)
    def _not_chunked(self, at: cython.Py_ssize_t) -> cython.Py_ssize_t:
        """A response that says it is chunked, and begins with no chunk size: what it is without the coding."""
        message: Message = self.message
        message.anomalies |= CHUNKED_NOT_APPLIED
        message.chunked = False
        self.plain_size = False
        self.doubt = True
        if self.length == 0:
            self._end(0)
        elif self.length > 0:
            message.content_length = self.remaining = self.length
            self.state = _BODY
        else:
            message.framed_by_close = True
            self.state = _UNTIL_CLOSE
        return at

    @cython.cfunc
    @cython.exceptval(-2)
    def _chunk_end(self, data: bytes, at: cython.Py_ssize_t) -> cython.Py_ssize_t:
        """The line end after a chunk's bytes."""
        size: cython.Py_ssize_t = 1
        if data[at] == 13:
            if at + 1 == len(data):
                return -1
            size = 2
        self.state = _CHUNK_SIZE
        if size == 1 or data[at + 1] != 10:
            if data[at] == 10:
                self.message.anomalies |= _BARE_LF
            else:
                self.message.anomalies |= CHUNK_END_MISSING
                self.plain_size = True
                self.doubt = True
                size -= 1
        self.limits.framing_bytes += size
        self.message.wire_bytes += size
        return at + size

    @cython.cfunc
    @cython.exceptval(-2)
    def _trailers(self, data: bytes, at: cython.Py_ssize_t) -> cython.Py_ssize_t:
        """Field lines up to an empty line: the end of a chunked message."""
        end: cython.Py_ssize_t = data.find(b"\n", at)
        if self.scanned + (len(data) if end < 0 else end) - at > self.limits.max_head_bytes:
            self._malformed()
            return at
        if end < 0:
            return -1
        self.limits.framing_bytes += end + 1 - at
        self.message.wire_bytes += end + 1 - at
        self.message.last_ns = self.now_ns
        self.scanned += end + 1 - at
        if end == at or data[end - 1] != 13:
            self.message.anomalies |= _BARE_LF
        if end == at or (end == at + 1 and data[at] == 13):
            self._end(0)
        return end + 1

    @cython.cfunc
    @cython.exceptval(-2)
    def _search(self, data: bytes, at: cython.Py_ssize_t) -> cython.Py_ssize_t:
        """LOST: returns where the next certain message starts (now HEAD); -1: only an unfinished line is left."""
        found: cython.Py_ssize_t = -1
        keep: cython.Py_ssize_t = len(data)
        line: cython.Py_ssize_t
        likely: cython.bint = False
        if self.after_gap and self.role != _RESPONSE:
            likely = _LIKELY_REQUEST.match(data, at) is not None
            if likely:
                found = at
            elif len(data) - at < _LIKELY_BYTES and data[at:] in _LIKELY_BEGINS:
                return -1
            else:
                self.after_gap = False
        if found < 0 and self.role != _RESPONSE:
            match = _CERTAIN_REQUEST.search(data, at)
            if match is not None:
                found = match.start()
            line = data.rfind(b"\n", at) + 1
            keep = line if line > at else at
            if len(data) - keep > _LINE_TAIL:
                keep = len(data) - _LINE_TAIL
        if not likely and self.role != _REQUEST:
            match = _CERTAIN_RESPONSE.search(data, at)
            if match is not None and (found < 0 or match.start() < found):
                found = match.start()
            line = len(data) - _STATUS_TAIL if len(data) - _STATUS_TAIL > at else at
            if line < keep:
                keep = line
        if (
            found >= 0
            and not self.recognised
            and self.searched <= self.limits.search_bytes < self.searched + found - at
        ):
            found = -1  # too far in: on_lost, below, may leave the connection
            keep = self.limits.search_bytes - self.searched + at + 1
        if found >= 0:
            self.limits.skipped_bytes += found - at
            if found > at:
                self.skipped_ack = self.older_ack if found <= self.turn else self.ack
            self.limits.resyncs += 1
            self.state = _HEAD
            self.scanned = 0
            if likely:
                self.scanned = 1
                self.recognised = True
                if self.role == _EITHER:
                    self.role = _REQUEST
                    self.listener.on_role(self)
            return found
        self.limits.skipped_bytes += keep - at
        self.searched += keep - at
        if keep > at:
            self.skipped_ack = self.older_ack if keep <= self.turn else self.ack
            if not self.recognised and self.searched > self.limits.search_bytes:
                self.listener.on_lost(self)
            return keep
        return -1

    # --- reading heads ---

    @cython.cfunc
    @cython.exceptval(-1)
    def _request_line(self, message: Message, head: bytes, end: cython.Py_ssize_t) -> cython.int:
        """method SP target SP version, as far as they are there."""
        space: cython.Py_ssize_t = 0
        start: cython.Py_ssize_t
        stop: cython.Py_ssize_t = end - 10
        version: cython.int = self._version(head, end) if end > 11 else -1
        if version > 0:
            while space < stop and head[space] != 32:
                space += 1
            start = space
            while start < stop and (head[start] == 32 or head[start] == 9):
                start += 1
            while stop > start and (head[stop - 1] == 32 or head[stop - 1] == 9):
                stop -= 1
            if 0 < space < start < stop:
                message.method = self.limits.last_method = part_as(self.limits.last_method, head, 0, space)
                message.target = part(head, start, stop)
                message.version = version
                if start - space > 1 or end - 10 > stop or b" " in message.target or b"\t" in message.target:
                    message.anomalies |= REQUEST_LINE_ODD
                return 0
        message.method, message.target, message.version, found = lenient.request_line(head, end)
        message.anomalies |= found
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def _status_line(self, message: Message, head: bytes, end: cython.Py_ssize_t) -> cython.int:
        """version SP status SP reason; status 0 where there is none to be had."""
        k: cython.Py_ssize_t
        status: cython.int = 0
        if end > 12 and (head[7] == 49 or head[7] == 48) and (head[12] == 32 or head[12] == 13):
            for k in range(7):
                if head[k] != _SPACE_HTTP_1[k + 1]:
                    break
            else:
                for k in range(9, 12):
                    if head[k] < 48 or head[k] > 57:
                        status = -1000
                    status = status * 10 + head[k] - 48
                if head[8] == 32 and status >= 100:
                    message.status = status
                    message.version = 11 if head[7] == 49 else 10
                    k = end
                    while k > 13 and (head[k - 1] == 13 or head[k - 1] == 32 or head[k - 1] == 9):
                        k -= 1
                    if k < 13:
                        k = 13
                    message.reason = self.limits.last_reason = part_as(self.limits.last_reason, head, 13, k)
                    return 0
        message.version, message.status, message.reason, found = lenient.status_line(head, end)
        message.anomalies |= found
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def _fields(self, message: Message, head: bytes) -> cython.bint:
        """What framing and the record want to know of the fields. False where the framing is not to be trusted."""
        index: HeaderIndex = self.limits.index
        i: cython.int
        h: cython.int
        value: bytes
        lengths: cython.int = 0
        codings: cython.int = 0
        coding: cython.int = 0
        sound: cython.bint = True
        if index.overflow:
            self.limits.headers_overflow += 1
        for i in range(index.count):
            h = index.name_hash(i)
            if h == _CONTENT_LENGTH:
                if index.named(head, i, b"content-length"):
                    lengths += 1
                    message.content_length = self._length(head, i)
            elif h == _CONTENT_TYPE:
                if message.content_type is None and index.named(head, i, b"content-type"):
                    message.content_type = index.value(head, i, self.limits.last_type)
            elif h == _CONTENT_ENCODING:
                if index.named(head, i, b"content-encoding"):
                    value = index.value(head, i).lower()
                    message.content_encoding = (
                        value if message.content_encoding is None else message.content_encoding + b"," + value
                    )
            elif h == _TRANSFER_ENCODING and index.named(head, i, b"transfer-encoding"):
                codings += 1
                coding = i
        self.plain_size = False
        if lengths > 1 or (lengths == 1 and message.content_length < 0):
            message.content_length, sound, found = lenient.content_length(self._values(head, b"content-length"))
            message.anomalies |= found
            self.doubt = not sound
        if (
            codings == 1
            and lengths == 0
            and message.version == 11
            and not index.folded
            and part(head, index.value_start(coding), index.value_end(coding)).lower() == b"chunked"
        ):
            message.chunked = True
        elif codings > 0:
            sound = self._codings(message, head, sound)
        if message.role == _RESPONSE and (0 < message.status < 200 or message.status == 204):
            if codings > 0 or message.content_length > 0:
                message.anomalies |= BODY_NOT_ALLOWED
        return sound

    @cython.cfunc
    @cython.exceptval(-1)
    def _codings(self, message: Message, head: bytes, sound: cython.bint) -> cython.bint:
        """The framing of a head with Transfer-Encoding, which overrides Content-Length (RFC 9112 section 6.3). `sound`:
        whether Content-Length is. False where the framing of a request is not to be trusted."""
        index: HeaderIndex = self.limits.index
        kind: cython.int
        i: cython.int
        kind, found = lenient.transfer_encoding(self._values(head, b"transfer-encoding"))
        message.anomalies |= found
        if index.folded:
            for i in range(index.count):
                if index.named(head, i, b"transfer-encoding") and b"\n" in part(
                    head, index.name_start(i), index.value_end(i)
                ):
                    message.anomalies |= OBS_FOLD | OBS_FOLD_TRANSFER_ENCODING
        if message.content_length >= 0 or self.doubt:
            message.anomalies |= TRANSFER_ENCODING_AND_LENGTH
        if message.version != 11:
            message.anomalies |= TRANSFER_ENCODING_VERSION
            if kind == lenient.CHUNKED:
                kind = lenient.PERHAPS_CHUNKED
        message.chunked = kind == lenient.CHUNKED or kind == lenient.PERHAPS_CHUNKED
        self.doubt = kind != lenient.CHUNKED and (kind != lenient.NO_CODING or self.doubt)
        self.plain_size = kind == lenient.PERHAPS_CHUNKED
        self.length = message.content_length
        if message.chunked:
            message.content_length = -1
            return True
        if message.role == _RESPONSE:
            return True
        message.content_length = -1
        return False

    @cython.cfunc
    def _values(self, head: bytes, name: bytes) -> list:
        """The values of all fields of this name."""
        index: HeaderIndex = self.limits.index
        return [index.value(head, i) for i in range(index.count) if index.named(head, i, name)]

    @cython.cfunc
    @cython.exceptval(-2)
    def _length(self, head: bytes, i: cython.int) -> cython.longlong:
        """The value of a Content-Length field that is a plain number, or -1."""
        index: HeaderIndex = self.limits.index
        start: cython.int = index.value_start(i)
        end: cython.int = index.value_end(i)
        k: cython.int
        length: cython.longlong = 0
        if not 0 < end - start < 19:
            return -1
        for k in range(start, end):
            if head[k] < 48 or head[k] > 57:
                return -1
            length = length * 10 + head[k] - 48
        return length

    @cython.cfunc
    @cython.exceptval(-1)
    def _open_body(self, message: Message) -> cython.int:
        """Decides whether the content is kept, and how it is decoded."""
        limits: Limits = self.limits
        room: cython.Py_ssize_t
        if not limits.wanted(message.content_type):
            return 0
        message.keep = True
        if message.content_encoding is not None:
            codings = listed_codings(message.content_encoding)
            if codings:
                message.decoder = ContentDecoder(
                    codings, max_kept_bytes=limits.max_kept_bytes, max_decoded_bytes=limits.max_decoded_bytes,
                    max_ratio=limits.max_ratio, memory=limits.decoder_memory,
                )  # fmt: skip
                return 0
        room = limits.max_kept_bytes if limits.max_kept_bytes < _FIRST_ROOM else _FIRST_ROOM
        if 0 <= message.content_length < room:
            room = message.content_length
        message.kept = new_room(room)
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def _body(self, octets: Octets, start: cython.Py_ssize_t, end: cython.Py_ssize_t) -> cython.int:
        """Body bytes octets[start:end], transfer-decoded."""
        message: Message = self.message
        size: cython.Py_ssize_t = end - start
        room: cython.Py_ssize_t
        message.body_bytes += size
        message.wire_bytes += size
        message.last_ns = self.now_ns
        self.limits.body_bytes += size
        if message.keep:
            if message.decoder is not None:
                message.decoder.feed(copied(octets, start, end))
            else:
                room = self.limits.max_kept_bytes - message.kept_bytes
                if size > room:
                    size = room
                if size > 0:
                    message.keep_octets(octets, start, start + size)
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def _end(self, reason: cython.int) -> cython.int:
        message: Message = self.message
        self.message = None
        self.state = _START
        if reason == 0 and message.gap_bytes > 0:
            reason = _TRUNCATED if message.cut else _GAP
        message.incomplete = reason
        message.ended = reason == 0
        if message.decoder is not None:
            message.decoder.finish()
            if message.decoder.failure:
                self.limits.decoding_failures += 1
        self.listener.on_end(self, message)
        if self.then >= 0:
            self.state = self.then
            self.then = -1
        if self.doubt:
            self.doubt = False
            self._lose()
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def _lose(self) -> cython.int:
        """Not at a message start any more."""
        self._skip_pending()
        self.before = 0
        self.doubt = self.undecided = False
        if self.state != _TUNNEL:
            self.state = _LOST
            self.listener.on_lost(self)
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def _skip_pending(self) -> cython.int:
        if self.pending is not None:
            self.limits.pending_bytes -= len(self.pending)
            if self.state == _HOLD or self.state == _INSIDE:
                self.limits.tunnel_bytes += len(self.pending)
            else:
                self.limits.skipped_bytes += len(self.pending)
            self.pending = None
        return 0


@cython.cfunc
def new_parser(limits: Limits, listener: Listener, role: cython.int) -> Parser:
    """Parser(limits, listener, role), without a call of the type."""
    parser: Parser = Parser.__new__(Parser)
    parser.set_up(limits, listener, role)
    return parser
