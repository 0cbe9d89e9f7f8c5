"""An exchange becomes the bytes of its record: key, value (JSON), headers, timestamp. Redaction is done here and
nowhere else.

The value is written straight into one buffer. Filling the types of record.py and encoding them was measured at 12 us a
record before ids, times, addresses and URL are made. A test decodes what is written here into those types, strictly.
"""

from __future__ import annotations

import base64
import json
import re
from array import array
from datetime import UTC, datetime
from typing import Any

import cython
import msgspec

if cython.compiled:
    from cython.cimports.http_capture.capture.connection import Connection
    from cython.cimports.http_capture.capture.digest import blake2b_128, sha1_base64
    from cython.cimports.http_capture.capture.http.exchange import Exchange, HttpConnection
    from cython.cimports.http_capture.capture.http.message import HeaderIndex, Message
    from cython.cimports.http_capture.capture.octets import (
        Octets,
        Room,
        again,
        copied,
        decimal,
        digits,
        field_name,
        find,
        ipv4,
        mark,
        number,
        octets_of,
        part,
        plain,
        put,
        room_of,
        same,
        text,
    )
    from cython.cimports.http_capture.capture.tunnel import Outer
else:
    from .connection import Connection
    from .digest import blake2b_128, sha1_base64
    from .http.exchange import Exchange, HttpConnection
    from .http.message import HeaderIndex, Message
    from .octets import (
        Octets,
        Room,
        again,
        copied,
        decimal,
        digits,
        field_name,
        find,
        ipv4,
        mark,
        number,
        octets_of,
        part,
        plain,
        put,
        room_of,
        same,
        text,
    )
    from .tunnel import Outer
from .http.exchange import REASONS
from .http.message import ANOMALIES, CONFLICTING_RETRANSMISSION, hash_name
from .record import MESSAGES, PRODUCT, REDACTED, SCHEMA
from .tunnel import KINDS

_KEYS = {"connection": 0, "client": 1, "host": 2, "id": 3}
_URL_HEADERS = frozenset((b"referer", b"location", b"content-location"))
_HOST = cython.declare(cython.int, hash_name(b"host"))
_USER_AGENT = cython.declare(cython.int, hash_name(b"user-agent"))
_MAX_CACHED = cython.declare(cython.int, 4096)
_AUTHORITY = re.compile(rb"(?:[^@/]*@)?(\[[0-9A-Fa-f:.]+\]|[^:/\[\]@]*)(?::([0-9]{0,5}))?\Z")
_ABSOLUTE = re.compile(rb"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)(.*)\Z", re.DOTALL)
_USERINFO = re.compile(rb"\A([A-Za-z][A-Za-z0-9+.-]*://)[^/?#]*@")
_CONNECT_USERINFO = re.compile(rb"\A[^/?#]*@")
_CONFLICTING = cython.declare(cython.int, CONFLICTING_RETRANSMISSION)
_FORM = cython.declare(bytes, b"application/x-www-form-urlencoded")
_SEPARATORS = re.compile(rb"([&;#])")
_REASON_JSON = cython.declare(
    list, [b""] + [b'"incomplete_reason":"' + reason.encode() + b'",' for reason in REASONS[1:]]
)
_ERROR_JSON = cython.declare(
    list, [b""] + [b'"error":{"message":"' + MESSAGES[reason].encode() + b'"},' for reason in REASONS[1:]]
)


# Bytes that _reserve() leaves beyond what it is asked for. All else that puts something calls it, so that this is how
# many bytes of literals may follow each other; there are never more than a few hundred.
_LITERALS = cython.declare(cython.Py_ssize_t, 1024)

if not cython.compiled:  # encode.pxd has the C form

    def literal(encoder: Encoder, text: bytes) -> int:
        """Puts these bytes, which stand in the source: their number is known to the compiler, and not many."""
        encoder._put(text)
        return 0


def name_table(names: frozenset[bytes]) -> bytes:
    """1 at the place of each name's hash: a first look that most names do not pass."""
    table = bytearray(4096)
    for name in names:
        table[hash_name(name) & 4095] = 1
    return bytes(table)


@cython.final
@cython.cclass
class Encoder:
    """Writes records. While `without_bodies`, no content of a body is in them; `bodies_shed` counts those that have
    one less for it. After encode(): `key`, `value`, `headers`, `timestamp_ms`, `event_id` are those of the record."""

    def __init__(
        self, *, hostname: str, interface: str | None, version: str, instance: str, max_headers: int = 1000,
        key: str = "connection", redact: bool = True, redact_headers: Any = (), redact_names: Any = (),
        keep_unknown: bool = False,
        send: Any = None,
    ) -> None:  # fmt: skip
        self.out = bytearray(1 << 16)
        self.room = room_of(self.out)
        self.at = 0
        self.size = 1 << 16
        self.index = HeaderIndex(max_headers)
        self.key_kind = _KEYS[key]
        self.anomalies = 0
        self.without_bodies = self.body_left_out = False
        self.bodies_shed = 0
        self.redact = redact
        self.keep_unknown = keep_unknown
        self.redact_headers = frozenset(name.lower().encode() for name in redact_headers) if redact else frozenset()
        self.redact_names = frozenset(name.lower().encode() for name in redact_names) if redact else frozenset()
        self.url_headers = _URL_HEADERS
        self.header_table = name_table(self.redact_headers | self.url_headers)
        self.secret_table = name_table(self.redact_names)
        self.redacted: list[bytes | None] = [None] * 4096  # one name for each mark
        self.url_names: list[bytes | None] = [None] * 4096
        for name in self.redact_headers:
            self.redacted[hash_name(name) & 4095] = name
        for name in self.url_headers:
            self.url_names[hash_name(name) & 4095] = name
        self.send = send
        self.quote = msgspec.json.Encoder().encode
        self.last_content_type: bytes = None
        self.last_mime_type: bytes = None
        self.second_ns = -1
        self.second = b""
        self.mime_types: dict[bytes, bytes] = {}
        self.sites: dict[tuple[bytes, bytes], tuple[bytes, bytes, bytes, bytes]] = {}
        self.recent_sites: list[tuple | None] = [None] * 256  # one for each mark
        self.host: bytes = None
        self.agent: bytes = None
        self.referer: bytes = None
        self.seen = array("i", bytes(4 * 1024))
        self.round = 0
        ingress = f',"ingress":{{"interface":{{"name":{json.dumps(interface)}}}}}' if interface else ""
        self.observer = (
            f'"observer":{{"hostname":{json.dumps(hostname)},"version":{json.dumps(version)}'
            f',"product":"{PRODUCT}"{ingress}}},"http_capture":{{"complete":'
        ).encode()
        self.tail = f',"instance":{json.dumps(instance)},"schema":"{SCHEMA}"}}}}'.encode()
        self.host_header = ("host", hostname.encode())
        self.iface_header = ("iface", (interface or "").encode())
        self.instance_header = ("instance", instance.encode())
        self.schema_header = ("schema", SCHEMA.encode())
        self.key = self.value = self.event_id = b""
        self.headers: list[tuple[str, bytes]] = []
        self.timestamp_ms = 0

    @cython.ccall
    def encode(self, exchange: Exchange) -> bytes:
        """The value of the exchange's record."""
        conversation: HttpConnection = exchange.conversation
        connection: Connection = conversation.connection
        identity: bytes
        request: Message = exchange.request
        response: Message = exchange.response
        first: Message = request if request is not None else response
        last_ns: cython.longlong = first.first_ns
        sent: cython.longlong = 0
        received: cython.longlong = 0
        gap: cython.longlong = 0
        extra: Message
        domain: bytes = None
        agent: bytes = None
        begin: cython.Py_ssize_t
        end: cython.Py_ssize_t
        self.anomalies = 0
        if conversation.identity is None:
            self._identify(conversation)
        identity = conversation.identity
        if request is not None:
            sent = request.wire_bytes
            gap = request.gap_bytes
            if request.last_ns < request.first_ns:  # its segments came in another order, or the clock was set back
                request.last_ns = request.first_ns
            last_ns = request.last_ns
        if response is not None:
            received = response.wire_bytes
            gap += response.gap_bytes
            if response.last_ns < response.first_ns:
                response.last_ns = response.first_ns
            if response.last_ns > last_ns:
                last_ns = response.last_ns
        self.at = 0
        self._part(identity, 0, conversation.hashed_end)
        self._reserve(4)
        self.at = number(self.room, self.at, first.seq, 4)
        self._put(first.head)
        self._reserve(64)
        blake2b_128(self.room, self.at, 0, self.at)
        self.event_id = copied(self.room, self.at, self.at + 32)
        self.at = 0
        literal(self, b'{"event":{"id":"')
        self._put(self.event_id)
        literal(self, b'","start":"')
        begin = self.at
        self._time(first.first_ns)
        end = self.at
        literal(self, b'","end":"')
        self._time(last_ns)
        literal(self, b'","duration":')
        self._integer(last_ns - first.first_ns)
        if response is None or response.status == 0:
            literal(self, b',"outcome":"unknown","dataset":"http"},"@timestamp":"')
        elif response.status < 400:
            literal(self, b',"outcome":"success","dataset":"http"},"@timestamp":"')
        else:
            literal(self, b',"outcome":"failure","dataset":"http"},"@timestamp":"')
        self._again(begin, end)
        literal(self, b'","source":{"ip":"')
        self._part(identity, conversation.hashed_end, conversation.source_end)
        literal(self, b',"bytes":')
        self._integer(sent)
        literal(self, b'},"destination":{"ip":"')
        self._part(identity, conversation.source_end, conversation.destination_end)
        literal(self, b',"bytes":')
        self._integer(received)
        if connection.ip_version == 4:
            literal(self, b'},"network":{"type":"ipv4"')
        else:
            literal(self, b'},"network":{"type":"ipv6"')
        literal(self, b',"transport":"tcp","protocol":"http","community_id":"1:')
        self._part(identity, conversation.destination_end, len(identity))
        literal(self, b'},"http":{')
        if first.version == 11:
            literal(self, b'"version":"1.1",')
        elif first.version == 10:
            literal(self, b'"version":"1.0",')
        elif first.version == 9:
            literal(self, b'"version":"0.9",')
        if request is not None:
            literal(self, b'"request":{"method":"')
            self._text(request.method, 0, len(request.method))
            literal(self, b'","headers":')
            self.referer = None
            self._fields(request.head, request.headers_start)
            domain = self.host
            agent = self.agent
            if self.referer is not None:
                literal(self, b',"referrer":')
                self._string(self.referer)
            if request.content_type is not None:
                literal(self, b',"mime_type":')
                self._string(self._mime_type(request.content_type))
            literal(self, b',"body":')
            self._body(request)
            literal(self, b"},")
        if response is not None:
            literal(self, b'"response":{')
            if response.status != 0:
                literal(self, b'"status_code":')
                self._integer(response.status)
                literal(self, b',"reason":')
                self._string(response.reason)
                literal(self, b",")
            literal(self, b'"headers":')
            self._fields(response.head, response.headers_start)
            literal(self, b',"body":')
            self._body(response)
            if exchange.informational is not None:
                literal(self, b',"informational":[')
                for extra in exchange.informational:
                    self.anomalies |= extra.anomalies
                    literal(self, b'{"status_code":')
                    self._integer(extra.status)
                    literal(self, b',"reason":')
                    self._string(extra.reason)
                    literal(self, b',"headers":')
                    self._fields(extra.head, extra.headers_start)
                    literal(self, b"},")
                self.at -= 1
                literal(self, b"]")
            literal(self, b"},")
        self.at -= 1
        literal(self, b"},")
        if request is not None:
            self._url(request, domain)
            if agent is not None:
                literal(self, b'"user_agent":{"original":')
                self._string(agent)
                literal(self, b"},")
        if exchange.reason != 0:
            self._put(_ERROR_JSON[exchange.reason])
        self._put(self.observer)
        if exchange.complete:
            literal(self, b"true,")
        else:
            literal(self, b"false,")
        if exchange.reason != 0:
            self._put(_REASON_JSON[exchange.reason])
        literal(self, b'"gap_bytes":')
        self._integer(gap)
        literal(self, b',"retransmitted_bytes":')
        self._integer(exchange.retransmitted_bytes)
        literal(self, b',"pipeline_index":')
        self._integer(exchange.pipeline_index)
        if connection.midstream:
            literal(self, b',"midstream":true')
        else:
            literal(self, b',"midstream":false')
        if exchange.uncertain:
            self._put(b',"uncertain":true')
        if self.body_left_out:
            self.body_left_out = False
            self.bodies_shed += 1
            self._put(b',"bodies_shed":true')
        if request is not None:
            self.anomalies |= request.anomalies
        if response is not None:
            self.anomalies |= response.anomalies
        if exchange.conflicts > 0:
            self.anomalies |= _CONFLICTING
        if self.anomalies != 0:
            literal(self, b',"anomalies":[')
            self._put(
                b",".join([b'"%b"' % name.encode() for k, name in enumerate(ANOMALIES) if self.anomalies >> k & 1])
            )
            literal(self, b"]")
        self._timing(exchange, connection)
        self._put(self.tail)
        self.value = copied(self.room, 0, self.at)
        self.timestamp_ms = first.first_ns // 1_000_000
        if self.key_kind <= 1:
            self.key = conversation.key
        elif self.key_kind == 2:
            self.key = domain if domain is not None else b""
        else:
            self.key = self.event_id
        self.headers = [
            ("id", self.event_id),
            self.instance_header,
            self.host_header,
            self.iface_header,
            self.schema_header,
        ]
        return self.value

    @cython.ccall
    def deliver(self, exchange: Exchange) -> object:
        """Encodes the exchange and hands its record to `send`."""
        self.encode(exchange)
        return self.send(self.key, self.value, self.headers, self.timestamp_ms)

    # --- parts ---

    @cython.cfunc
    @cython.exceptval(-1)
    def _identify(self, conversation: HttpConnection) -> cython.int:
        """What all records of the connection share."""
        connection: Connection = conversation.connection
        swapped: cython.bint = connection.client == 2
        v4: cython.bint = connection.ip_version == 4
        source_high: cython.ulonglong = connection.b_high if swapped else connection.a_high
        source_low: cython.ulonglong = connection.b_low if swapped else connection.a_low
        source_port: cython.int = connection.b_port if swapped else connection.a_port
        destination_high: cython.ulonglong = connection.a_high if swapped else connection.b_high
        destination_low: cython.ulonglong = connection.a_low if swapped else connection.b_low
        destination_port: cython.int = connection.a_port if swapped else connection.b_port
        room: Room
        at: cython.Py_ssize_t
        source: cython.Py_ssize_t
        source_end: cython.Py_ssize_t
        destination: cython.Py_ssize_t
        destination_end: cython.Py_ssize_t
        begin: cython.Py_ssize_t
        self.at = 0
        self._reserve(512)  # what is hashed at 0, the Community ID at 64, from 96 on the key and what is kept: less
        room = self.room
        # Community ID version 1: a SHA-1 over seed, addresses, protocol, padding and ports, the smaller end first.
        at = number(room, 0, 0, 2)
        if source_high > destination_high or (
            source_high == destination_high
            and (source_low > destination_low or (source_low == destination_low and source_port > destination_port))
        ):
            at = _packed(room, at, v4, destination_high, destination_low)
            at = _packed(room, at, v4, source_high, source_low)
            at = number(room, at, 0x0600, 2)
            at = number(room, at, destination_port, 2)
            at = number(room, at, source_port, 2)
        else:
            at = _packed(room, at, v4, source_high, source_low)
            at = _packed(room, at, v4, destination_high, destination_low)
            at = number(room, at, 0x0600, 2)
            at = number(room, at, source_port, 2)
            at = number(room, at, destination_port, 2)
        sha1_base64(room, 64, 0, at)
        # The key has both addresses as text, also where it is not the key that is wanted: they are put again from it.
        source = 96 if v4 else 97
        source_end = _address(room, source, v4, source_high, source_low)
        at = source_end if v4 else source_end + 1
        room[at] = 58
        at = decimal(room, at + 1, source_port)
        room[at] = 45
        destination = at + 1 if v4 else at + 2
        destination_end = _address(room, destination, v4, destination_high, destination_low)
        at = destination_end if v4 else destination_end + 1
        room[at] = 58
        at = decimal(room, at + 1, destination_port)
        if not v4:
            room[source - 1] = room[destination - 1] = 91
            room[source_end] = room[destination_end] = 93
        conversation.key = copied(room, source, source_end) if self.key_kind == 1 else copied(room, 96, at)
        begin = at
        at = _packed(room, at, v4, source_high, source_low)
        at = number(room, at, source_port, 2)
        at = _packed(room, at, v4, destination_high, destination_low)
        at = number(room, at, destination_port, 2)
        conversation.hashed_end = at - begin
        again(room, at, source, source_end)
        self.at = at + source_end - source
        literal(self, b'","port":')
        self.at = at = decimal(room, self.at, source_port)
        conversation.source_end = at - begin
        again(room, at, destination, destination_end)
        self.at = at + destination_end - destination
        literal(self, b'","port":')
        self.at = at = decimal(room, self.at, destination_port)
        conversation.destination_end = at - begin
        again(room, at, 64, 92)
        self.at = at + 28
        literal(self, b'"')
        if connection.vlan >= 0:
            literal(self, b',"vlan":{"id":"')
            self._integer(connection.vlan)
            literal(self, b'"}')
        if connection.inner_vlan >= 0:
            literal(self, b',"inner":{"vlan":{"id":"')
            self._integer(connection.inner_vlan)
            literal(self, b'"}}')
        if connection.outers is not None or conversation.proxies is not None:
            self._tunnels(connection.outers, swapped, conversation.proxies)
        conversation.identity = self._cut(begin)
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def _tunnels(self, outers: tuple | None, swapped: cython.bint, proxies: list | None) -> cython.int:
        """The tunnels around a connection, then those in it. `swapped`: the first segment was the server's."""
        outer: Outer
        v4: cython.bint
        literal(self, b',"tunnel":[')
        for outer in outers if outers is not None else ():
            v4 = outer.ip_version == 4
            literal(self, b'{"type":"')
            self._put(KINDS[outer.kind].encode())
            self._put(b'","destination":{"ip":"' if swapped else b'","source":{"ip":"')
            self._reserve(48)
            self.at = _address(self.room, self.at, v4, outer.source_high, outer.source_low)
            literal(self, b'"')
            if outer.source_port or outer.destination_port:
                literal(self, b',"port":')
                self._integer(outer.source_port)
            self._put(b'},"source":{"ip":"' if swapped else b'},"destination":{"ip":"')
            self._reserve(48)
            self.at = _address(self.room, self.at, v4, outer.destination_high, outer.destination_low)
            literal(self, b'"')
            if outer.source_port or outer.destination_port:
                literal(self, b',"port":')
                self._integer(outer.destination_port)
            literal(self, b"}")
            if outer.id >= 0:
                literal(self, b',"id":"')
                self._integer(outer.id)
                literal(self, b'"')
            literal(self, b"},")
        for kind, target in proxies if proxies is not None else ():
            literal(self, b'{"type":"')
            self._put(kind.encode())
            literal(self, b'","target":')
            self._string(self._clean_authority(target.encode("latin-1")))
            literal(self, b"},")
        self.at -= 1
        return literal(self, b"]")

    @cython.cfunc
    def _cut(self, begin: cython.Py_ssize_t) -> bytes:
        """Takes what was put since `begin` out again."""
        data: bytes = copied(self.room, begin, self.at)
        self.at = begin
        return data

    @cython.cfunc
    @cython.exceptval(-1)
    def _timing(self, exchange: Exchange, connection: Connection) -> cython.int:
        request: Message = exchange.request
        response: Message = exchange.response
        begin: cython.Py_ssize_t
        literal(self, b',"timing":{')
        begin = self.at
        if not exchange.conversation.timed and connection.syn_ns != 0 and connection.handshake_ns >= connection.syn_ns:
            literal(self, b'"connect":')
            self._integer(connection.handshake_ns - connection.syn_ns)
            literal(self, b",")
        exchange.conversation.timed = True
        if request is not None:
            literal(self, b'"request":')
            self._integer(request.last_ns - request.first_ns)
            literal(self, b",")
        if response is not None:
            if request is not None:
                literal(self, b'"wait":')
                self._integer(response.first_ns - request.last_ns if response.first_ns > request.last_ns else 0)
                literal(self, b",")
            literal(self, b'"response":')
            self._integer(response.last_ns - response.first_ns)
            literal(self, b",")
        if self.at > begin:
            self.at -= 1
        return literal(self, b"}")

    @cython.cfunc
    @cython.exceptval(-1)
    def _fields(self, head: bytes, start: cython.Py_ssize_t) -> cython.int:
        """The header fields as an object: lower-case name -> list of values in wire order.

        Leaves the first Host and User-Agent in `host` and `agent`, and the Referer, redacted, in `referer`."""
        begin: cython.Py_ssize_t = self.at
        self.host = self.agent = None
        if not self._plain_fields(head, start):
            self.at = begin
            self.host = self.agent = None
            self._any_fields(head, start)
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def _plain_fields(self, head: bytes, start: cython.Py_ssize_t) -> cython.bint:
        """_fields in one pass, for heads as nearly all are: ASCII, no name twice, nothing folded. False: another."""
        special: Octets = octets_of(self.header_table)
        octets: Octets = octets_of(head)
        out: Room
        end: cython.Py_ssize_t = len(head)
        at: cython.Py_ssize_t = start
        to: cython.Py_ssize_t
        field: cython.Py_ssize_t
        line: cython.Py_ssize_t
        value: cython.Py_ssize_t
        stop: cython.Py_ssize_t
        last: cython.Py_ssize_t
        run: cython.Py_ssize_t
        h: cython.int
        fields: cython.int = 0
        c: cython.int
        name: bytes
        self._reserve(6 * (end - start) + 64)
        out = self.room
        to = self.at
        out[to] = 123
        to += 1
        self.round += 1
        if self.round > 1 << 30:
            self._first_round()
        while at < end:
            c = octets[at]
            if c == 10 or (c == 13 and at + 1 < end and octets[at + 1] == 10):
                break
            line = at
            out[to] = 34
            to += 1
            at = field_name(out, to, octets, at, end)
            if at >= end or octets[at] != 58 or at == line:
                return False
            h = mark(octets, line, at)
            if self.seen[h & 1023] == self.round:
                return False
            self.seen[h & 1023] = self.round
            fields += 1
            if fields > self.index.capacity:
                return False
            stop = at
            to += at - line
            at += 1
            out[to] = 34
            out[to + 1] = 58
            out[to + 2] = 91
            out[to + 3] = 34
            to += 4
            while at < end and (octets[at] == 32 or octets[at] == 9):
                at += 1
            value = at
            field = to
            while True:
                run = at
                at = plain(out, to, octets, at, end)
                to += at - run
                if at == end or octets[at] == 10:
                    break
                c = octets[at]
                if c == 13 and at + 1 < end and octets[at + 1] == 10:
                    at += 1
                    break
                if c != 34 and c != 92:
                    return False
                out[to] = 92
                out[to + 1] = c
                to += 2
                at += 1
            if at + 1 < end and (octets[at + 1] == 32 or octets[at + 1] == 9):  # folded
                return False
            while to > field and out[to - 1] == 32:
                to -= 1
            if special[h & 4095]:
                if self._is_redacted(out, field - 4 - (stop - line), stop - line, h):
                    put(out, field, REDACTED, 0, len(REDACTED))
                    to = field + len(REDACTED)
                else:
                    last = at
                    while last > value and (octets[last - 1] == 13 or octets[last - 1] == 32):
                        last -= 1
                    self.at = field
                    name = self.url_names[h & 4095]
                    if name is None or len(name) != stop - line or not same(out, field - 4 - (stop - line), name):
                        name = part(head, line, stop).lower()
                    self._special_value(name, part(head, value, last))
                    self._reserve(6 * (end - at) + 64)
                    out = self.room
                    to = self.at
            elif h == _HOST or h == _USER_AGENT:  # noqa: SIM109
                last = at
                while last > value and (octets[last - 1] == 13 or octets[last - 1] == 32):
                    last -= 1
                if h == _HOST and stop - line == 4:
                    self.host = part(head, value, last)
                elif h == _USER_AGENT and stop - line == 10:
                    self.agent = part(head, value, last)
            out[to] = 34
            out[to + 1] = 93
            out[to + 2] = 44
            to += 3
            at += 1
        if out[to - 1] == 44:
            to -= 1
        out[to] = 125
        self.at = to + 1
        return True

    @cython.cfunc
    @cython.exceptval(-1)
    def _first_round(self) -> cython.int:
        """No name has been seen."""
        self.round = 1
        self.seen = array("i", bytes(4 * 1024))
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def _is_redacted(self, room: Room, at: cython.Py_ssize_t, size: cython.Py_ssize_t, h: cython.int) -> cython.bint:
        """Whether the field whose name is room[at : at + size], of mark h, is one of `redact_headers`. False also where
        it takes a closer look to know."""
        name: bytes = self.redacted[h & 4095]
        return name is not None and len(name) == size and same(room, at, name)

    @cython.cfunc
    @cython.exceptval(-1)
    def _special_value(self, name: bytes, value: bytes) -> cython.int:
        """A value that may have to be redacted, without its quotes."""
        if name in self.redact_headers:
            return self._put(REDACTED)
        if name in self.url_headers:
            value = self._clean(value)
            if name == b"referer":
                self.referer = value
        return self._text(value, 0, len(value))

    @cython.cfunc
    @cython.exceptval(-1)
    def _any_fields(self, head: bytes, start: cython.Py_ssize_t) -> cython.int:
        """_fields of any head."""
        index: HeaderIndex = self.index
        count: cython.int
        i: cython.int
        j: cython.int
        h: cython.int
        k: cython.int
        out: Room
        at: cython.Py_ssize_t
        c: cython.int
        simple: cython.bint
        seen: set = None
        name: bytes
        index.scan(head, start, 0)
        self.anomalies |= index.anomalies
        count = index.count
        literal(self, b"{")
        if count > 64:  # comparing all pairs would be quadratic
            seen = set()
        for i in range(count):
            h = index.name_hash(i)
            if h == _HOST:
                if self.host is None and index.named(head, i, b"host"):
                    self.host = index.value(head, i)
            elif h == _USER_AGENT:
                if self.agent is None and index.named(head, i, b"user-agent"):
                    self.agent = index.value(head, i)
            if seen is not None:
                name = index.name(head, i)
                if name in seen:
                    continue
                seen.add(name)
            else:
                simple = True
                for j in range(i):
                    if index.name_hash(j) == h and index.name(head, j) == index.name(head, i):
                        simple = False
                        break
                if not simple:
                    continue
            self._reserve(6 * (index.name_end(i) - index.name_start(i)) + 8)
            out = self.room
            at = self.at
            out[at] = 34
            at += 1
            simple = True
            for k in range(index.name_start(i), index.name_end(i)):
                c = head[k]
                if 65 <= c <= 90:
                    c += 32
                if c > 126 or c < 32 or c == 34 or c == 92:
                    simple = False
                    break
                out[at] = c
                at += 1
            if simple:
                self.at = at
            else:
                self.at += 1
                name = index.name(head, i)
                self._text(name, 0, len(name))
            literal(self, b'":[')
            self._field_value(head, i)
            for j in range(i + 1, count):
                if index.name_hash(j) == h and index.name(head, j) == index.name(head, i):
                    literal(self, b",")
                    self._field_value(head, j)
            literal(self, b"],")
        if count > 0:
            self.at -= 1
        return literal(self, b"}")

    @cython.cfunc
    @cython.exceptval(-1)
    def _field_value(self, head: bytes, i: cython.int) -> cython.int:
        index: HeaderIndex = self.index
        literal(self, b'"')
        if self.header_table[index.name_hash(i) & 4095]:
            self._special_value(index.name(head, i), index.value(head, i))
        elif index.folded:
            value = index.value(head, i)
            self._text(value, 0, len(value))
        else:
            self._text(head, index.value_start(i), index.value_end(i))
        return literal(self, b'"')

    @cython.cfunc
    @cython.exceptval(-1)
    def _url(self, request: Message, host: bytes | None) -> cython.int:
        """The target (RFC 9112 section 3.2): origin, absolute, authority or asterisk form."""
        target: bytes = self._clean(request.target)
        octets: Octets = octets_of(target)
        authority: bytes = host
        scheme: bytes = b"http"
        begin: cython.Py_ssize_t = 0  # of the path
        end: cython.Py_ssize_t = len(target)
        mark: cython.Py_ssize_t
        original: cython.Py_ssize_t
        same: cython.bint  # the target stands in JSON as it is
        site: tuple = None
        if request.method == b"CONNECT":
            target = self._clean_authority(target)
            octets = octets_of(target)
            end = len(target)
            authority = target
            scheme = None
            begin = end
        elif end == 0 or octets[0] != 47:
            match = _ABSOLUTE.match(target)
            if match is not None:
                scheme = match.group(1).lower()
                authority = match.group(2)
                begin = match.start(3)
            else:
                begin = end
        literal(self, b'"url":{"original":"')
        original = self.at
        self._text(target, 0, end)
        same = self.at - original == end
        literal(self, b'"')
        end = find(octets, 35, begin, end)  # without the fragment
        if authority is not None:
            site = self._site(scheme, authority)
            if scheme is not None and site[2]:
                self._put(site[2])
                self._target(target, begin, end, same)
            self._put(site[3])
        elif scheme is not None:
            literal(self, b',"scheme":')
            self._string(scheme)
        mark = find(octets, 63, begin, end)
        if mark > begin:
            literal(self, b',"path":"')
            self._target(target, begin, mark, same)
        if mark < end:
            literal(self, b',"query":"')
            self._target(target, mark + 1, end, same)
        return literal(self, b"},")

    @cython.cfunc
    @cython.exceptval(-1)
    def _target(self, target: bytes, start: cython.Py_ssize_t, end: cython.Py_ssize_t, same: cython.bint) -> cython.int:
        """target[start:end] and a quote; `same`: it stands in JSON as it is."""
        if same:
            self._part(target, start, end)
        else:
            self._text(target, start, end)
        return literal(self, b'"')

    @cython.cfunc
    def _site(self, scheme: bytes | None, authority: bytes) -> tuple:
        """Scheme and authority, and what they say as JSON: the begin of `full`, and domain, scheme and port."""
        place: cython.Py_ssize_t = mark(octets_of(authority), 0, len(authority)) & 255
        known: tuple = self.recent_sites[place]
        full: bytes = b""
        rest: bytes = b""
        if known is not None and known[1] == authority and known[0] == scheme:
            return known
        known = self.sites.get((scheme, authority))
        if known is not None:
            self.recent_sites[place] = known
            return known
        match = _AUTHORITY.match(authority)
        domain, port = match.groups() if match is not None else (b"", None)
        port = port or None
        if domain:
            if scheme is not None:
                full = b',"full":"' + _escaped(scheme + b"://" + domain + (b":" + port if port is not None else b""))
            rest = b',"domain":"' + _escaped(domain.strip(b"[]")) + b'"'
        if scheme is not None:
            rest += b',"scheme":"' + _escaped(scheme) + b'"'
            if port is None and scheme == b"http" and domain:
                port = b"80"
        if port is not None and int(port) < 65536:
            rest += b',"port":%d' % int(port)
        if len(self.sites) >= _MAX_CACHED:
            self.sites.clear()
        known = (scheme, authority, full, rest)
        self.sites[(scheme, authority)] = self.recent_sites[place] = known
        return known

    @cython.cfunc
    @cython.exceptval(-1)
    def _body(self, message: Message) -> cython.int:
        content: bytes
        octets: Octets = octets_of(b"")
        size: cython.Py_ssize_t = 0
        truncated: cython.bint = False
        self._put(b'{"bytes":')
        self._integer(message.body_bytes)
        if message.decoder is not None:
            content = message.decoder.content() if not self.without_bodies else b""
            octets = octets_of(content)
            size = len(content)
            truncated = message.decoder.truncated
            if message.decoder.decoded:
                self._put(b',"decoded_bytes":')
                self._integer(message.decoder.decoded_bytes)
            if message.decoder.failure:
                self._put(b',"decoding_error":"')
                self._put(message.decoder.failure.encode())
                self._put(b'"')
        elif message.kept is not None:
            octets = room_of(message.kept)  # type: ignore[assignment]
            size = message.kept_bytes
            truncated = message.kept_bytes < message.body_bytes
        if self.without_bodies and (size > 0 or message.decoder is not None):
            self.body_left_out = True
            self._put(b',"truncated":true')
        elif (message.decoder is not None or message.kept is not None) and message.body_bytes > 0:
            if self.redact and message.content_type is not None and self._mime_type(message.content_type) == _FORM:
                content = copied(octets, 0, size)
                if message.decoder is not None and not message.decoder.decoded and _as_text(content, truncated) is None:
                    content = b""  # still encoded: what is secret in it cannot be found
                    truncated = True
                content = self._clean_pairs(content)
                octets = octets_of(content)
                size = len(content)
            if self._content(octets, size, truncated):
                self._put(b',"encoding":"text"')
            elif self.keep_unknown or message.content_type is not None:
                self._put(b',"content":"')
                self._put(base64.b64encode(copied(octets, 0, size)))
                self._put(b'","encoding":"base64"')
            else:
                truncated = False  # nothing is kept: of no stated type, and no text
            if truncated:
                self._put(b',"truncated":true')
        return self._put(b"}")

    @cython.cfunc
    @cython.exceptval(-1)
    def _content(self, octets: Octets, size: cython.Py_ssize_t, cut: cython.bint) -> cython.bint:
        """The content, octets[:size], as text. False, with nothing put, where it is none."""
        begin: cython.Py_ssize_t = self.at
        at: cython.Py_ssize_t
        self._put(b',"content":"')
        self._reserve(6 * size + 16)
        at = text(self.room, self.at, octets, 0, size)
        if at >= 0:
            self.at = at
            return self._put(b'"') == 0
        self.at = begin
        content = _as_text(copied(octets, 0, size), cut)
        if content is None:
            return False
        self._put(b',"content":')
        self._put(self.quote(content))
        return True

    @cython.cfunc
    def _mime_type(self, content_type: bytes) -> bytes:
        known: bytes
        if content_type == self.last_content_type:
            return self.last_mime_type
        known = self.mime_types.get(content_type)
        if known is None:
            known = content_type.partition(b";")[0].strip().lower()
            if len(self.mime_types) < _MAX_CACHED:
                self.mime_types[content_type] = known
        self.last_content_type = content_type
        self.last_mime_type = known
        return known

    # --- redaction ---

    @cython.cfunc
    def _clean(self, target: bytes) -> bytes:
        """A request target or URL, with the values of secret query fields and a password before the host redacted."""
        octets: Octets = octets_of(target)
        end: cython.Py_ssize_t = len(target)
        mark: cython.Py_ssize_t = find(octets, 35, 0, find(octets, 63, 0, end))
        if not self.redact:
            return target
        if find(octets, 64, 0, mark) < mark:
            target = _USERINFO.sub(rb"\1REDACTED@", target)
            octets = octets_of(target)
            end = len(target)
            mark = find(octets, 35, 0, find(octets, 63, 0, end))
        if mark == end:
            return target
        if not self._suspicious(target, mark + 1):
            return target
        target = target[: mark + 1] + self._clean_pairs(target[mark + 1 :])
        return target  # noqa: RET504 - its type is known to mypy this way

    @cython.cfunc
    @cython.exceptval(check=False)
    def _suspicious(self, pairs: bytes, at: cython.Py_ssize_t) -> cython.bint:
        """False where none of the names from `at` on can be a secret one: a first look."""
        octets: Octets = octets_of(pairs)
        secret: Octets = octets_of(self.secret_table)
        end: cython.Py_ssize_t = len(pairs)
        begin: cython.Py_ssize_t
        c: cython.int
        while at < end:
            begin = at
            while at < end:
                c = octets[at]
                if c == 61 or c == 38 or c == 59 or c == 35:
                    break
                if c == 63:
                    begin = at + 1
                elif c == 37 or c == 43 or c <= 32:
                    return True
                at += 1
            if secret[mark(octets, begin, at) & 4095]:
                return True
            while at < end and octets[at] != 38 and octets[at] != 59 and octets[at] != 35:
                at += 1
            at += 1
        return False

    @cython.cfunc
    def _clean_authority(self, target: bytes) -> bytes:
        """The HOST:PORT that a proxy is asked for, with a password before it redacted."""
        return _CONNECT_USERINFO.sub(b"REDACTED@", target) if self.redact else target

    @cython.cfunc
    def _clean_pairs(self, pairs: bytes) -> bytes:
        """name=value pairs, between any of & ; #, with the values of secret names redacted."""
        parts: list = _SEPARATORS.split(pairs)
        i: cython.Py_ssize_t
        changed: cython.bint = False
        for i in range(len(parts)):
            name, equals, value = parts[i].partition(b"=")
            if equals and value:
                if b"%" in name or b"+" in name:
                    from urllib.parse import unquote_to_bytes  # one that sees no such name starts without it

                    name = unquote_to_bytes(name.replace(b"+", b" "))
                if name.rpartition(b"?")[2].strip().lower() in self.redact_names:
                    parts[i] = parts[i].partition(b"=")[0] + b"=" + REDACTED
                    changed = True
        return b"".join(parts) if changed else pairs

    # --- JSON ---

    @cython.cfunc
    @cython.exceptval(-1)
    def _reserve(self, size: cython.Py_ssize_t) -> cython.int:
        """Makes room for `size` more bytes, and for the literals that follow them."""
        size += _LITERALS
        if self.at + size > self.size:
            self.size = 2 * (self.at + size)
            self.out = self.out[: self.at] + bytearray(self.size - self.at)
            self.room = room_of(self.out)
        return 0

    @cython.cfunc
    @cython.inline
    @cython.exceptval(-1)
    def _put(self, data: bytes) -> cython.int:
        """These bytes as they are."""
        size: cython.Py_ssize_t = len(data)
        if self.at + size + _LITERALS > self.size:
            self._reserve(size)
        put(self.room, self.at, data, 0, size)
        self.at += size
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def _part(self, data: bytes, start: cython.Py_ssize_t, end: cython.Py_ssize_t) -> cython.int:
        """data[start:end] as it is."""
        self._reserve(end - start)
        put(self.room, self.at, data, start, end)
        self.at += end - start
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def _again(self, begin: cython.Py_ssize_t, end: cython.Py_ssize_t) -> cython.int:
        """What was put from begin to end, once more."""
        self._reserve(end - begin)
        again(self.room, self.at, begin, end)
        self.at += end - begin
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def _integer(self, value: cython.longlong) -> cython.int:
        if self.at + 24 + _LITERALS > self.size:
            self._reserve(24)
        if 0 <= value < 10:  # as a third of them are
            self.room[self.at] = 48 + value
            self.at += 1
            return 0
        if value < 0:
            self.room[self.at] = 45
            self.at += 1
            value = -value
        self.at = decimal(self.room, self.at, value)
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def _time(self, ns: cython.longlong) -> cython.int:
        """RFC 3339 in UTC; nine digits, or six where the time is whole microseconds."""
        rest: cython.longlong = ns - self.second_ns
        count: cython.int = 9
        if rest < 0 or rest >= 1_000_000_000 or self.second_ns < 0:
            self.second_ns = ns // 1_000_000_000 * 1_000_000_000
            self.second = _second(ns // 1_000_000_000)
            rest = ns - self.second_ns
        self._put(self.second)
        if rest % 1000 == 0:
            rest //= 1000
            count = 6
        self._reserve(10)
        digits(self.room, self.at, rest, count)
        self.room[self.at + count] = 90
        self.at += count + 1
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def _string(self, data: bytes) -> cython.int:
        literal(self, b'"')
        self._text(data, 0, len(data))
        return literal(self, b'"')

    @cython.cfunc
    @cython.exceptval(-1)
    def _text(self, data: bytes, start: cython.Py_ssize_t, end: cython.Py_ssize_t) -> cython.int:
        """data[start:end] inside a JSON string. Bytes above 127 are UTF-8 where all of it is valid, else Latin-1."""
        if not self._ascii(data, start, end):
            quoted = self.quote(_decoded(part(data, start, end)))
            return self._part(quoted, 1, len(quoted) - 1)
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def _ascii(self, data: bytes, start: cython.Py_ssize_t, end: cython.Py_ssize_t) -> cython.bint:
        """_text of ASCII. False, with nothing put, where there is a byte above 127."""
        at: cython.Py_ssize_t
        self._reserve(6 * (end - start) + 16)
        at = text(self.room, self.at, octets_of(data), start, end)
        if at < 0:
            return False
        self.at = at
        return True


@cython.cfunc
@cython.exceptval(-1)
def _address(
    room: Room, at: cython.Py_ssize_t, v4: cython.bint, high: cython.ulonglong, low: cython.ulonglong
) -> cython.Py_ssize_t:
    """room[at:] becomes an address as text (RFC 5952 for IPv6); returns where that ends. There is room for 46 bytes."""
    if v4:
        return ipv4(room, at, low)
    import socket  # one that sees no IPv6 starts without it

    text: bytes = socket.inet_ntop(socket.AF_INET6, copied(room, at, _packed(room, at, v4, high, low))).encode()
    put(room, at, text, 0, len(text))
    return at + len(text)


@cython.cfunc
@cython.exceptval(check=False)
def _packed(
    room: Room, at: cython.Py_ssize_t, v4: cython.bint, high: cython.ulonglong, low: cython.ulonglong
) -> cython.Py_ssize_t:
    """room[at:] becomes an address in network order, 4 or 16 bytes; returns where that ends."""
    if v4:
        return number(room, at, low, 4)
    return number(room, number(room, at, high, 8), low, 8)


def _decoded(text: bytes) -> str:
    """UTF-8 where all of it is valid, else Latin-1."""
    try:
        return text.decode()
    except UnicodeDecodeError:
        return text.decode("latin-1")


def _escaped(text: bytes) -> bytes:
    """The text inside a JSON string, for what is made once and used often."""
    quoted = json.dumps(_decoded(text), ensure_ascii=False)
    return quoted[1 : len(quoted) - 1].encode()


def _second(second: int) -> bytes:
    """`2026-01-31T12:00:00.`; times outside the years 1 to 9999 are those of the nearest end."""
    second = min(max(second, -62135596800), 253402300799)
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S.").encode().rjust(20, b"0")


def _as_text(content: bytes, cut: bool) -> str | None:
    """The text, where all of it is valid UTF-8; `cut`: the last character may be cut, and is left out."""
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        if cut and error.end == len(content) and error.reason == "unexpected end of data":
            return content[: error.start].decode()
        return None
