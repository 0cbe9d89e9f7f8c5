"""Requests and responses of one connection become exchanges.

Invariants:
- Every message that the parsers tell of is in exactly one exchange (a 1xx answer joins one, or is counted as orphan).
- Responses pair in order, and never with a request that the server had not yet received when it answered.
- After a loss in either direction, and in a connection that is seen from its middle, the number of outstanding requests
  is `uncertain`. Requests that came before a loss of requests are `sure`: their responses still come in order. Of the
  others one is paired only if the client does not pipeline, it is the last one, and the response begins with the very
  byte that it was waiting for: the request's acknowledgement number equals the response's sequence number. After a loss
  of requests it also begins with the very byte up to which the server had received when it sent the answer before, so
  that nothing in a body is taken for one. Otherwise both are recorded one-sided. Where the start of a request is among
  what was lost, one response is `owed` to it first. A connection that has pipelined stays one-sided.
- What was lost of the requests may have been the only sign of pipelining. So the first pair after it is `doubtful`, and
  kept back: the next request, or the end, confirms it; a response that nobody asked for parts it.

Bounds: `max_outstanding` requests wait for their response; the oldest is then recorded without one. Of a connection at
most `max_per_second` exchanges are recorded in a second of the frames; those beyond are counted and not recorded.
"""

from __future__ import annotations

from collections.abc import Callable

import cython

if cython.compiled:
    from cython.cimports.http_capture.capture.connection import Application, Connection
    from cython.cimports.http_capture.capture.http.message import Message
    from cython.cimports.http_capture.capture.http.parser import Limits, Listener, Parser, new_parser
    from cython.cimports.http_capture.capture.reassembly import Stream
    from cython.cimports.http_capture.capture.seq import difference
else:
    from ..connection import Application, Connection
    from ..reassembly import Stream
    from ..seq import difference
    from .message import Message
    from .parser import Limits, Listener, Parser, new_parser

# Why an exchange is not complete: message.REASONS, then these. 0: it is complete.
REASONS = (
    "", "gap", "truncated_capture", "closed", "timeout", "evicted", "shutdown", "malformed", "shed",
    "no_request", "no_response",
)  # fmt: skip
_NO_REQUEST = cython.declare(cython.int, 9)
_NO_RESPONSE = cython.declare(cython.int, 10)
_GAP = cython.declare(cython.int, 1)
_EVICTED = cython.declare(cython.int, 5)
# Why a connection ended (reassembly.CLOSE_REASONS) -> why a request in it has no response.
_BY_CLOSE = cython.declare(tuple, (10, 10, 4, 5, 6, 8))

_REQUEST = cython.declare(cython.int, 0)
_RESPONSE = cython.declare(cython.int, 1)
_EITHER = cython.declare(cython.int, 2)
_HOLD = cython.declare(cython.int, 7)
_START = cython.declare(cython.int, 0)
_TUNNEL = cython.declare(cython.int, 8)
_SOCKS = cython.declare(cython.int, 12)
_INSIDE = cython.declare(cython.int, 13)
MAX_PROXIES = 4
_MAX_PROXIES = cython.declare(cython.int, MAX_PROXIES)
_AFTER_09 = cython.declare(cython.int, 9)
_LOST = cython.declare(cython.int, 10)
_MIDSTREAM = cython.declare(cython.int, 16)  # a connection seen from its middle is searched this much longer


@cython.final
@cython.freelist(64)
@cython.no_gc  # circles are broken by hand
@cython.cclass
class Exchange:
    """A request with its response, or one of the two. `informational`: the heads of 1xx answers. `reason`: see REASONS.

    pipeline_index: how many requests before it were unanswered when it was sent. uncertain: at its time the number of
    outstanding requests was not certain."""

    @cython.cfunc
    @cython.exceptval(-1)
    def set_up(self, conversation: HttpConnection) -> cython.int:
        """What begins an exchange that new_exchange() has made."""
        self.conversation = conversation
        self.request: Message = None
        self.response: Message = None
        self.informational: list[Message] = None
        self.pipeline_index = self.reason = 0
        self.request_done = self.response_done = self.complete = self.uncertain = False
        self.retransmitted_bytes = self.conflicts = 0
        return 0


@cython.cfunc
def new_exchange(conversation: HttpConnection) -> Exchange:
    """An exchange without messages. Like new_message(), without a call of the type."""
    exchange: Exchange = Exchange.__new__(Exchange)
    exchange.set_up(conversation)
    return exchange


@cython.final
@cython.cclass
class HttpApplication(Application):
    """Opens a HttpConnection for each TCP connection. `deliver(exchange)` is called for each exchange.

    paired + only_request + only_response = complete + sum(reasons) = exchanges delivered + over_rate.
    """

    def __init__(
        self, limits: Limits, deliver: Callable[[Exchange], object], *, max_outstanding: int = 1000,
        max_per_second: int = 100_000,
    ) -> None:  # fmt: skip
        self.limits = limits
        self.deliver = deliver
        self.max_outstanding = max_outstanding
        self.max_per_second = max_per_second
        self.connections = self.paired = self.only_request = self.only_response = self.complete = 0
        self.orphan_informational = self.outstanding_overflow = self.over_rate = 0
        self.reasons = [0] * len(REASONS)

    @cython.ccall
    @cython.exceptval(-1)
    def open(self, connection: Connection) -> cython.int:
        conversation: HttpConnection = HttpConnection.__new__(HttpConnection)
        conversation.set_up(self, connection)
        connection.application = conversation
        connection.forward.consumer = conversation.forward
        connection.backward.consumer = conversation.backward
        return 0

    @cython.ccall
    @cython.exceptval(-1)
    def prefetch(self, connection: Connection) -> cython.int:
        conversation: HttpConnection = connection.application
        if conversation is not None:
            prefetch_shared(conversation)
        return 0

    @cython.ccall
    @cython.exceptval(-1)
    def left(self, connection: Connection) -> cython.int:
        conversation: HttpConnection = connection.application
        if conversation is not None and conversation.forward is not None:
            conversation.forward._skip_pending()
            conversation.backward._skip_pending()
            conversation._forget()
        return 0


@cython.final
@cython.no_gc  # circles are broken by hand
@cython.cclass
class HttpConnection(Listener):
    """Pairs the messages of one connection. `requests` and `responses` are its parsers, once their roles are known.

    identity, key: what all its records share, as ready bytes, from the first of them on; see encode.py. Parts of
    `identity`, each up to the end that is named: hashed: what goes into every id; source, destination: address and
    port; then the Community ID and what else there is of `network`, all three as they stand in the JSON. `key` is
    Kafka's."""

    @cython.cfunc
    @cython.exceptval(-1)
    def set_up(self, application: HttpApplication, connection: Connection) -> cython.int:
        limits: Limits = application.limits
        self.application = application
        self.connection = connection
        self.requests: Parser = None
        self.responses: Parser = None
        self.outstanding: list[Exchange] = None  # none yet
        self.requesting: Exchange = None
        self.responding: Exchange = None
        self.uncertain = self.pipelined = self.owed = self.hidden = False
        self.sure = 0
        self.doubtful: Exchange = None
        self.answer_ack = -1  # what the server had received when it sent its last answer, if that was seen
        self.ended = 0
        self.lost_ack = -2  # what the client had received when bytes of it were lost
        self.identity: bytes = None  # not known yet
        self.key: bytes = None
        self.hashed_end = self.source_end = self.destination_end = 0
        self.second = self.in_second = 0  # that of the last exchange, and how many were in it
        self.timed = False  # a record has told how long the handshake took
        self.target = ""  # HOST:PORT that the last CONNECT or SOCKS handshake asked for
        self.target_kind = ""
        self.proxies: list[tuple[str, str]] | None = None
        if connection.client == 0:
            self.forward = new_parser(limits, self, _EITHER)
            self.backward = new_parser(limits, self, _EITHER)
        elif connection.client == 1:
            self.forward = self.requests = new_parser(limits, self, _REQUEST)
            self.backward = self.responses = new_parser(limits, self, _RESPONSE)
        else:
            self.forward = self.responses = new_parser(limits, self, _RESPONSE)
            self.backward = self.requests = new_parser(limits, self, _REQUEST)
        return 0

    @cython.ccall
    @cython.exceptval(-1)
    def on_start(self, parser: Parser) -> cython.int:
        """The SYN may have come after the first payload, from which the parsers were made."""
        if self.connection.client != 0 and self.requests is None:
            self.requests = self.forward if self.connection.client == 1 else self.backward
            self.responses = self.backward if self.connection.client == 1 else self.forward
            self.requests.role = _REQUEST
            self.responses.role = _RESPONSE
        if self.connection.midstream:
            self.uncertain = self.hidden = True  # as after a loss
        return 0

    @cython.ccall
    @cython.exceptval(-1)
    def on_role(self, parser: Parser) -> cython.int:
        other: Parser = self.backward if parser is self.forward else self.forward
        if parser.role == _REQUEST:
            self.requests = parser
            self.responses = other
            other.role = _RESPONSE
        else:
            self.responses = parser
            self.requests = other
            other.role = _REQUEST
        self.connection.client = 1 if self.requests is self.forward else 2
        return 0

    @cython.cfunc
    @cython.exceptval(check=False)
    def _waiting(self) -> cython.Py_ssize_t:
        """How many requests wait for their response."""
        return 0 if self.outstanding is None else len(self.outstanding)

    @cython.ccall
    @cython.exceptval(-1)
    def on_head(self, parser: Parser, message: Message) -> cython.int:
        exchange: Exchange
        uncertain: cython.bint
        if parser is self.requests:
            if self.doubtful is not None:
                self._settle(True)
            exchange = new_exchange(self)
            exchange.request = message
            exchange.retransmitted_bytes = -self._retransmitted()
            exchange.conflicts = -self._conflicts()
            exchange.pipeline_index = self._waiting()
            exchange.uncertain = self.uncertain
            if self.outstanding and (
                self.responses.state != _LOST
                or self.outstanding[len(self.outstanding) - 1].request.ack == message.ack  # nothing came between them
            ):
                self.pipelined = True
            if self.uncertain and (message.ack == self.lost_ack or message.ack == parser.skipped_ack):
                self.pipelined = True  # it has received nothing since the loss: what was lost may have been requests
            if self.outstanding is None:
                self.outstanding = []
            self.outstanding.append(exchange)
            self.requesting = exchange
            if message.version == 9:
                self.responses.answers_09 = True
            if len(self.outstanding) > self.application.max_outstanding:
                self.application.outstanding_overflow += 1
                self.uncertain = True
                self.sure = 0
                self._emit(self.outstanding.pop(0), _EVICTED)
            return 0
        if 100 <= message.status < 200 and message.status != 101:
            if self.outstanding and (not self.uncertain or self.sure > 0):
                exchange = self.outstanding[0]
                if exchange.informational is None:
                    exchange.informational = []
                if len(exchange.informational) < 16:
                    exchange.informational.append(message)
            else:
                self.application.orphan_informational += 1
            return 0
        uncertain = self.uncertain and self.sure == 0
        exchange = self._match(message)
        self.answer_ack = message.ack
        if exchange is None:
            exchange = new_exchange(self)
            exchange.request_done = True
            exchange.retransmitted_bytes = -self._retransmitted()
            exchange.conflicts = -self._conflicts()
        exchange.response = message
        exchange.uncertain = exchange.uncertain or uncertain
        self.responding = exchange
        if exchange.request is not None:
            if exchange.request.method == b"HEAD":
                return 1
            if exchange.request.method == b"CONNECT":
                return 2
            if exchange is not self.doubtful:
                return 0
        return 4

    @cython.ccall
    @cython.exceptval(-1)
    def on_end(self, parser: Parser, message: Message) -> cython.int:
        exchange: Exchange
        if parser is self.requests:
            exchange = self.requesting
            self.requesting = None
            exchange.request_done = True
            if exchange.response_done:
                self._complete(exchange)
            elif self.uncertain and self.pipelined and exchange.response is None:
                self._emit_unanswered(exchange)
            return 0
        exchange = self.responding
        if exchange is None or exchange.response is not message:
            return 0  # a 1xx answer
        self.responding = None
        exchange.response_done = True
        if exchange.request_done:
            self._complete(exchange)
        if self.requests is not None:
            if message.status == 101 and message.incomplete == 0:
                self.requests.proceed(_TUNNEL)
            elif exchange.request is not None and exchange.request.method == b"CONNECT":
                if 200 <= message.status < 300:
                    self.target_kind = "connect"
                    self.target = exchange.request.target.decode("latin-1")
                    self.requests.proceed(_INSIDE)
                else:
                    self.requests.proceed(_START)
        return 0

    @cython.ccall
    @cython.exceptval(-1)
    def on_socks(self, parser: Parser, version: cython.int) -> cython.int:
        responses: Parser = self.responses
        if version != 0:
            self.target_kind = f"socks{version}"
            if responses.state == _START:
                responses.socks_version = version
                responses.proceed(_SOCKS)
        else:
            for responses in (self.requests, self.responses):
                if responses is not parser and (responses.state == _SOCKS or responses.state == _INSIDE):
                    responses.proceed(_LOST)
        return 0

    @cython.ccall
    @cython.exceptval(-1)
    def on_target(self, parser: Parser, target: str) -> cython.int:
        self.target = target
        return 0

    @cython.ccall
    @cython.exceptval(-1)
    def on_inside(self, parser: Parser, http: cython.bint) -> cython.int:
        """HTTP in a tunnel is this connection's: it goes on in the same parsers, and the record says through what."""
        other: Parser = self.responses if parser is self.requests else self.requests
        if http and (self.proxies is None or len(self.proxies) < _MAX_PROXIES):
            if self.proxies is None:
                self.proxies = []
            self.proxies.append((self.target_kind, self.target))
            self.identity = None
            return 1
        if parser is self.responses and other.state not in (_INSIDE, _SOCKS, _TUNNEL):
            return 1
        if other.state == _INSIDE or other.state == _SOCKS:
            other.proceed(_TUNNEL)
        return 0

    @cython.ccall
    @cython.exceptval(-1)
    def is_answer(self, parser: Parser) -> cython.int:
        if self.uncertain or self.connection.midstream or parser is not self.responses:
            return 0
        return self._waiting() == 1 and self.requesting is None and self.requests.state != _HOLD

    @cython.ccall
    @cython.exceptval(-1)
    def on_lost(self, parser: Parser) -> cython.int:
        stream: Stream
        if parser is self.requests:
            if not self.uncertain:
                self.sure = self._waiting()
            self.hidden = True
            self.owed = self.owed or parser.start_lost
            stream = self.connection.forward if self.responses is self.forward else self.connection.backward
            self.lost_ack = stream.next_seq if stream.started else -2
        else:
            self.sure = 0
            self.answer_ack = -1
        self.uncertain = True
        if not self.forward.recognised and not self.backward.recognised:
            self._leave_unless_http(parser)
        return 0

    @cython.ccall
    @cython.exceptval(-1)
    def on_end_of_stream(self, parser: Parser, reason: cython.int, timestamp_ns: cython.longlong) -> cython.int:
        self.ended += 1
        if parser is self.responses or self.ended == 2:
            self._flush(_BY_CLOSE[reason])
        if self.ended == 2:
            if self.forward.recognised or self.backward.recognised:
                self.application.connections += 1
            self._forget()
        return 0

    @cython.cfunc
    def _match(self, message: Message) -> Exchange:
        """The exchange that this final response belongs to, taken out of `outstanding`; None: to none for certain."""
        exchange: Exchange
        if not self.outstanding:
            if self.doubtful is not None:
                self._settle(False)
            self.owed = False
            return None
        if not self.uncertain or self.sure > 0:
            exchange = self.outstanding[0]
            if message.ack >= 0 and difference(message.ack, exchange.request.seq) <= 0:
                return None
            if len(self.outstanding) == 1:
                self.outstanding = None
            else:
                del self.outstanding[0]
            if self.sure > 0:
                self.sure -= 1
            return exchange
        exchange = self.outstanding[len(self.outstanding) - 1]
        if (
            self.pipelined
            or self.owed
            or exchange.request.ack != message.seq
            or (self.hidden and self.answer_ack >= 0 and exchange.request.seq != self.answer_ack)
        ):
            self.owed = False
            return None
        self.outstanding.pop()
        while self.outstanding:
            self._emit(self.outstanding.pop(0), _GAP)
        self.uncertain = self.requests.state == _LOST
        if self.hidden:
            self.hidden = False
            self.doubtful = exchange
        return exchange

    @cython.cfunc
    @cython.exceptval(-1)
    def _complete(self, exchange: Exchange) -> cython.int:
        """Both messages have ended."""
        if exchange is self.doubtful:
            return 0
        return self._emit(exchange, 0)

    @cython.cfunc
    @cython.exceptval(-1)
    def _settle(self, confirmed: cython.bint) -> cython.int:
        """The doubtful pair is one, or is not: then the client pipelines."""
        exchange: Exchange = self.doubtful
        other: Exchange
        self.doubtful = None
        if confirmed:
            if exchange.request_done and exchange.response_done:
                self._emit(exchange, 0)
            return 0
        self.uncertain = self.pipelined = True
        other = new_exchange(self)
        other.response = exchange.response
        other.request_done = True
        other.retransmitted_bytes = -self._retransmitted()
        other.conflicts = -self._conflicts()
        exchange.response = None
        exchange.response_done = False
        if exchange.request_done:
            self._emit(exchange, _GAP)
        else:
            self.outstanding = [exchange]
        return self._emit(other, 0)

    @cython.cfunc
    @cython.exceptval(-1)
    def _emit_unanswered(self, exchange: Exchange) -> cython.int:
        if self.outstanding is not None and exchange in self.outstanding:
            self.outstanding.remove(exchange)
            self._emit(exchange, _GAP)
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def _flush(self, reason: cython.int) -> cython.int:
        """No response will come any more."""
        exchange: Exchange
        if self.doubtful is not None:
            self._settle(True)
        if self.responding is not None:
            exchange = self.responding
            self.responding = None
            self._emit(exchange, reason)
        while self.outstanding:
            exchange = self.outstanding.pop(0)
            if not exchange.request_done and self.ended < 2:
                self.outstanding.insert(0, exchange)
                break
            self._emit(exchange, reason)
        exchange = self.requesting
        if exchange is not None and exchange.response_done and self.ended == 2:
            self.requesting = None
            self._emit(exchange, reason)
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def _emit(self, exchange: Exchange, reason: cython.int) -> cython.int:
        """Hands the exchange on. `reason`: why there is no response, where there is none."""
        application: HttpApplication = self.application
        last: Message
        second: cython.longlong
        exchange.retransmitted_bytes += self._retransmitted()
        exchange.conflicts += self._conflicts()
        if exchange.request is None:
            application.only_response += 1
            reason = _NO_REQUEST
        elif exchange.response is None:
            application.only_request += 1
            exchange.uncertain = exchange.uncertain or self.uncertain
            if exchange.request.incomplete != 0:
                reason = exchange.request.incomplete
        else:
            application.paired += 1
            reason = exchange.response.incomplete
            if reason == 0:
                reason = exchange.request.incomplete
        exchange.reason = reason
        exchange.complete = reason == 0
        if reason == 0:
            application.complete += 1
        else:
            application.reasons[reason] += 1
        last = exchange.response if exchange.response is not None else exchange.request
        second = last.last_ns // 1_000_000_000
        if second != self.second:
            self.second = second
            self.in_second = 0
        self.in_second += 1
        if self.in_second > application.max_per_second:
            application.over_rate += 1
            return 0
        application.deliver(exchange)
        return 0

    @cython.cfunc
    @cython.exceptval(check=False)
    def _retransmitted(self) -> cython.longlong:
        if self.connection.forward is None:
            return 0
        return self.connection.forward.retransmitted_bytes + self.connection.backward.retransmitted_bytes

    @cython.cfunc
    @cython.exceptval(check=False)
    def _conflicts(self) -> cython.longlong:
        if self.connection.forward is None:
            return 0
        return self.connection.forward.conflicts + self.connection.backward.conflicts

    @cython.cfunc
    @cython.exceptval(-1)
    def _leave_unless_http(self, parser: Parser) -> cython.int:
        """Neither side has sent anything like HTTP: leaves when both have spoken, or one has for long enough."""
        other: Parser = self.backward if parser is self.forward else self.forward
        limit: cython.longlong = self.application.limits.search_bytes
        if self.connection.midstream:
            limit *= _MIDSTREAM
        elif other.position_seq >= 0 and other.state == _LOST:
            limit = -1
        if parser.searched > limit:
            self.connection.leave()
            self.forward.state = self.backward.state = _AFTER_09  # reads nothing of the segment at hand either
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def _forget(self) -> cython.int:
        """Breaks the circles of references."""
        self.forward.listener = None
        self.backward.listener = None
        self.forward = self.backward = self.requests = self.responses = None
        self.connection = None
        self.outstanding = None
        self.requesting = self.responding = self.doubtful = None
        return 0


if not cython.compiled:  # exchange.pxd has the C form

    def prefetch_shared(conversation: HttpConnection) -> None:
        """What all records of the connection share is needed soon."""
