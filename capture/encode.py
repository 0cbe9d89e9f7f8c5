"""An exchange becomes the bytes of its record: key, value (JSON), headers, timestamp. Redaction happens here and only here.

The value is written straight into one buffer: building the types of record.py and encoding them was measured at three
times the cost. A test decodes what is written here into those types, strictly.
"""

from __future__ import annotations

import base64
import hashlib
import re
import socket
from datetime import datetime, timezone
from typing import Any
from urllib.parse import unquote_to_bytes

import cython

if cython.compiled:
    from cython.cimports.http_capture.capture.connection import Connection
    from cython.cimports.http_capture.capture.http.exchange import Exchange
    from cython.cimports.http_capture.capture.http.message import HeaderIndex, Message
else:
    from .connection import Connection
    from .http.exchange import Exchange
    from .http.message import HeaderIndex, Message
from .http.exchange import REASONS
from .http.message import hash_name
from .record import MESSAGES, PRODUCT, REDACTED, SCHEMA

_DIGITS = cython.declare(bytes, b"0123456789abcdef")
# How a byte is written in a JSON string: 0 as it is, 1 as \\u00XX, otherwise after a backslash.
_ESCAPES = cython.declare(
    bytes,
    bytes(
        {34: 34, 92: 92, 8: 98, 9: 116, 10: 110, 12: 102, 13: 114}.get(c, 1 if c < 32 or c == 127 else 0)
        for c in range(256)
    ),
)
_VERSIONS = {9: b'"version":"0.9",', 10: b'"version":"1.0",', 11: b'"version":"1.1",'}
_KEYS = {"connection": 0, "client": 1, "host": 2, "id": 3}
_URL_HEADERS = frozenset((b"referer", b"location", b"content-location"))
_AUTHORITY = re.compile(rb"(?:[^@/]*@)?(\[[0-9A-Fa-f:.]+\]|[^:/\[\]@]*)(?::([0-9]{1,5}))?\Z")
_ABSOLUTE = re.compile(rb"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)(.*)\Z", re.DOTALL)
_USERINFO = re.compile(rb"\A([A-Za-z][A-Za-z0-9+.-]*://)[^/?#@]*@")
_FORM = re.compile(rb"\s*application/x-www-form-urlencoded", re.IGNORECASE)
_SEPARATORS = re.compile(rb"([&;])")
_REASON_JSON = cython.declare(
    list, [b""] + [b'"incomplete_reason":"' + reason.encode() + b'",' for reason in REASONS[1:]]
)
_ERROR_JSON = cython.declare(
    list, [b""] + [b'"error":{"message":"' + MESSAGES[reason].encode() + b'"},' for reason in REASONS[1:]]
)


def address_bytes(version: int, high: int, low: int) -> bytes:
    """4 or 16 bytes in network order."""
    return low.to_bytes(4, "big") if version == 4 else high.to_bytes(8, "big") + low.to_bytes(8, "big")


def community_id(source: bytes, source_port: int, destination: bytes, destination_port: int) -> bytes:
    """Community ID, version 1, seed 0, of a TCP connection: base64 of a SHA-1 over the ordered ends."""
    one = (source, source_port)
    two = (destination, destination_port)
    if two < one:
        one, two = two, one
    data = b"\0\0" + one[0] + two[0] + b"\x06\0" + one[1].to_bytes(2, "big") + two[1].to_bytes(2, "big")
    return b"1:" + base64.b64encode(hashlib.sha1(data, usedforsecurity=False).digest())


@cython.cclass
class Identity:
    """What all records of a connection share, as ready bytes."""

    def __init__(self, connection: Connection) -> None:
        version: int = connection.ip_version
        source = address_bytes(version, connection.a_high, connection.a_low)
        destination = address_bytes(version, connection.b_high, connection.b_low)
        source_port: int = connection.a_port
        destination_port: int = connection.b_port
        if connection.client == 2:
            source, destination = destination, source
            source_port, destination_port = destination_port, source_port
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        client = socket.inet_ntop(family, source)
        server = socket.inet_ntop(family, destination)
        self.used = False
        self.client = client.encode()
        self.source = f'"source":{{"ip":"{client}","port":{source_port},"bytes":'.encode()
        self.destination = f'}},"destination":{{"ip":"{server}","port":{destination_port},"bytes":'.encode()
        name = "%s:%d-%s:%d" if version == 4 else "[%s]:%d-[%s]:%d"
        self.key = (name % (client, source_port, server, destination_port)).encode()
        self.hashed = source + source_port.to_bytes(2, "big") + destination + destination_port.to_bytes(2, "big")
        vlan = f',"vlan":{{"id":"{connection.vlan}"}}' if connection.vlan >= 0 else ""
        if connection.inner_vlan >= 0:
            vlan += f',"inner":{{"vlan":{{"id":"{connection.inner_vlan}"}}}}'
        self.network = b'},"network":{"type":"ipv%d","transport":"tcp","protocol":"http","community_id":"%s"%s},' % (
            version,
            community_id(source, source_port, destination, destination_port),
            vlan.encode(),
        )


@cython.cclass
class Encoder:
    """Writes records. After encode(): `key`, `value`, `headers`, `timestamp_ms`, `event_id` are those of the record."""

    def __init__(
        self, *, hostname: str, interface: str | None, version: str, instance: str, max_headers: int = 1000,
        key: str = "connection", redact: bool = True, redact_headers: Any = (), redact_names: Any = (),
        keep_unknown: bool = False,
    ) -> None:  # fmt: skip
        import json

        self.out = bytearray(1 << 16)
        self.at = 0
        self.room = 1 << 16
        self.index = HeaderIndex(max_headers)
        self.key_kind = _KEYS[key]
        self.redact = redact
        self.keep_unknown = keep_unknown
        self.redact_headers = frozenset(name.lower().encode() for name in redact_headers) if redact else frozenset()
        self.redact_names = frozenset(name.lower().encode() for name in redact_names) if redact else frozenset()
        self.url_headers = _URL_HEADERS if redact else frozenset()
        mask = 0
        for name in self.redact_headers | self.url_headers:
            mask |= 1 << (hash_name(name) & 63)
        self.redact_mask = mask
        self.seconds = {}
        self.mime_types = {}
        ingress = f',"ingress":{{"interface":{{"name":{json.dumps(interface)}}}}}' if interface else ""
        self.observer = (
            f'"observer":{{"hostname":{json.dumps(hostname)},"version":{json.dumps(version)}'
            f',"product":"{PRODUCT}"{ingress}}},"http_capture":{{"complete":'
        ).encode()
        self.tail = f',"instance":{json.dumps(instance)},"schema":"{SCHEMA}"}}}}'.encode()
        self.host = ("host", hostname.encode())
        self.iface = ("iface", (interface or "").encode())
        self.instance = ("instance", instance.encode())
        self.key = self.value = self.event_id = b""
        self.headers = []
        self.timestamp_ms = 0

    @cython.ccall
    def encode(self, exchange: Exchange) -> bytes:
        """The value of the exchange's record."""
        connection: Connection = exchange.conversation.connection
        identity: Identity = exchange.conversation.identity
        request: Message = exchange.request
        response: Message = exchange.response
        first: Message = request if request is not None else response
        last_ns: cython.longlong = first.last_ns
        sent: cython.longlong = 0
        received: cython.longlong = 0
        gap: cython.longlong = 0
        extra: Message
        if identity is None:
            identity = Identity(connection)
            exchange.conversation.identity = identity
        if request is not None:
            sent = request.wire_bytes
            gap = request.gap_bytes
        if response is not None:
            received = response.wire_bytes
            gap += response.gap_bytes
            if response.last_ns > last_ns:
                last_ns = response.last_ns
        self.at = 0
        self._put(b'{"@timestamp":"')
        self._time(first.first_ns)
        self._put(b'","event":{"id":"')
        self.event_id = (
            hashlib.blake2b(identity.hashed + first.seq.to_bytes(4, "big") + first.head, digest_size=16)
            .hexdigest()
            .encode()
        )
        self._put(self.event_id)
        self._put(b'","start":"')
        self._time(first.first_ns)
        self._put(b'","end":"')
        self._time(last_ns)
        self._put(b'","duration":')
        self._integer(last_ns - first.first_ns)
        if response is None or response.status == 0:
            self._put(b',"outcome":"unknown","dataset":"http"},')
        elif response.status < 400:
            self._put(b',"outcome":"success","dataset":"http"},')
        else:
            self._put(b',"outcome":"failure","dataset":"http"},')
        self._put(identity.source)
        self._integer(sent)
        self._put(identity.destination)
        self._integer(received)
        self._put(identity.network)
        if request is not None:
            self._url(request)
        self._put(b'"http":{')
        version = _VERSIONS.get(first.version)
        if version is not None:
            self._put(version)
        if request is not None:
            self._put(b'"request":{"method":"')
            self._text(request.method, 0, len(request.method))
            self._put(b'","headers":')
            self._fields(request.head, request.headers_start)
            if request.referer is not None:
                self._put(b',"referrer":')
                self._string(self._clean(request.referer) if self.redact else request.referer)
            if request.content_type is not None:
                self._put(b',"mime_type":')
                self._string(self._mime_type(request.content_type))
            self._put(b',"body":')
            self._body(request)
            self._put(b"},")
        if response is not None:
            self._put(b'"response":{')
            if response.status != 0:
                self._put(b'"status_code":')
                self._integer(response.status)
                self._put(b',"reason":')
                self._string(response.reason)
                self._put(b",")
            self._put(b'"headers":')
            self._fields(response.head, response.headers_start)
            self._put(b',"body":')
            self._body(response)
            if exchange.informational is not None:
                self._put(b',"informational":[')
                for extra in exchange.informational:
                    self._put(b'{"status_code":')
                    self._integer(extra.status)
                    self._put(b',"reason":')
                    self._string(extra.reason)
                    self._put(b',"headers":')
                    self._fields(extra.head, extra.headers_start)
                    self._put(b"},")
                self.at -= 1
                self._put(b"]")
            self._put(b"},")
        self.at -= 1
        self._put(b"},")
        if request is not None and request.user_agent is not None:
            self._put(b'"user_agent":{"original":')
            self._string(request.user_agent)
            self._put(b"},")
        if exchange.reason != 0:
            self._put(_ERROR_JSON[exchange.reason])
        self._put(self.observer)
        self._put(b"true," if exchange.complete else b"false,")
        if exchange.reason != 0:
            self._put(_REASON_JSON[exchange.reason])
        self._put(b'"gap_bytes":')
        self._integer(gap)
        self._put(b',"retransmitted_bytes":')
        self._integer(exchange.retransmitted_bytes)
        self._put(b',"pipeline_index":')
        self._integer(exchange.pipeline_index)
        self._put(b',"midstream":true' if connection.midstream else b',"midstream":false')
        self._timing(exchange, connection, identity)
        self._put(self.tail)
        self.value = bytes(self.out[: self.at])
        self.timestamp_ms = first.first_ns // 1_000_000
        if self.key_kind == 0:
            self.key = identity.key
        elif self.key_kind == 1:
            self.key = identity.client
        elif self.key_kind == 2:
            self.key = request.host if request is not None and request.host is not None else b""
        else:
            self.key = self.event_id
        self.headers = [("id", self.event_id), self.instance, self.host, self.iface, ("schema", _SCHEMA)]
        return self.value

    # --- parts ---

    @cython.cfunc
    @cython.exceptval(-1)
    def _timing(self, exchange: Exchange, connection: Connection, identity: Identity) -> cython.int:
        request: Message = exchange.request
        response: Message = exchange.response
        begin: cython.Py_ssize_t
        self._put(b',"timing":{')
        begin = self.at
        if not identity.used and connection.syn_ns != 0 and connection.handshake_ns >= connection.syn_ns:
            self._put(b'"connect":')
            self._integer(connection.handshake_ns - connection.syn_ns)
            self._put(b",")
        identity.used = True
        if request is not None:
            self._put(b'"request":')
            self._integer(request.last_ns - request.first_ns)
            self._put(b",")
        if response is not None:
            if request is not None:
                self._put(b'"wait":')
                self._integer(response.first_ns - request.last_ns if response.first_ns > request.last_ns else 0)
                self._put(b",")
            self._put(b'"response":')
            self._integer(response.last_ns - response.first_ns)
            self._put(b",")
        if self.at > begin:
            self.at -= 1
        return self._put(b"}")

    @cython.cfunc
    @cython.exceptval(-1)
    def _fields(self, head: bytes, start: cython.Py_ssize_t) -> cython.int:
        """The header fields as an object: lower-case name -> list of values in wire order."""
        index: HeaderIndex = self.index
        count: cython.int = index.scan(head, start)
        i: cython.int
        j: cython.int
        h: cython.int
        k: cython.int
        out: bytearray
        at: cython.Py_ssize_t
        c: cython.int
        plain: cython.bint
        seen: set = None
        name: bytes
        self._put(b"{")
        if count > 64:  # comparing all pairs would be quadratic
            seen = set()
        for i in range(count):
            h = index.name_hash(i)
            if seen is not None:
                name = index.name(head, i)
                if name in seen:
                    continue
                seen.add(name)
            else:
                plain = True
                for j in range(i):
                    if index.name_hash(j) == h and index.name(head, j) == index.name(head, i):
                        plain = False
                        break
                if not plain:
                    continue
            self._reserve(6 * (index.name_end(i) - index.name_start(i)) + 8)
            out = self.out
            at = self.at
            out[at] = 34
            at += 1
            plain = True
            for k in range(index.name_start(i), index.name_end(i)):
                c = head[k]
                if 65 <= c <= 90:
                    c += 32
                if c > 126 or c < 32 or c == 34 or c == 92:
                    plain = False
                    break
                out[at] = c
                at += 1
            if plain:
                self.at = at
            else:
                self.at += 1
                name = index.name(head, i)
                self._text(name, 0, len(name))
            self._put(b'":[')
            self._field_value(head, i)
            for j in range(i + 1, count):
                if index.name_hash(j) == h and index.name(head, j) == index.name(head, i):
                    self._put(b",")
                    self._field_value(head, j)
            self._put(b"],")
        if count > 0:
            self.at -= 1
        return self._put(b"}")

    @cython.cfunc
    @cython.exceptval(-1)
    def _field_value(self, head: bytes, i: cython.int) -> cython.int:
        index: HeaderIndex = self.index
        start: cython.Py_ssize_t = index.value_start(i)
        end: cython.Py_ssize_t = index.value_end(i)
        one: cython.ulonglong = 1
        name: bytes
        value: bytes
        if self.redact_mask & one << (index.name_hash(i) & 63):
            name = index.name(head, i)
            if name in self.redact_headers:
                return self._string(REDACTED)
            if name in self.url_headers:
                return self._string(self._clean(index.value(head, i)))
        value = None
        if head.find(b"\n", start, end) >= 0:
            value = index.value(head, i)
            return self._string(value)
        self._put(b'"')
        self._text(head, start, end)
        return self._put(b'"')

    @cython.cfunc
    @cython.exceptval(-1)
    def _url(self, request: Message) -> cython.int:
        """The target (RFC 9112 section 3.2): origin, absolute, authority or asterisk form."""
        target: bytes = self._clean(request.target) if self.redact else request.target
        scheme: bytes = b"http"
        authority: bytes = request.host
        rest: bytes = target
        path: bytes
        query: bytes = None
        domain: bytes = None
        port: bytes = None
        mark: cython.Py_ssize_t
        if request.method == b"CONNECT":
            authority = target
            rest = b""
            scheme = None
        elif not target.startswith(b"/"):
            match = _ABSOLUTE.match(target)
            if match is not None:
                scheme, authority, rest = match.groups()
                scheme = scheme.lower()
            else:
                rest = b""
        if authority is not None:
            match = _AUTHORITY.match(authority)
            if match is not None:
                domain, port = match.groups()
        mark = rest.find(b"#")
        if mark >= 0:
            rest = rest[:mark]
        mark = rest.find(b"?")
        path = rest
        if mark >= 0:
            path = rest[:mark]
            query = rest[mark + 1 :]
        self._put(b'"url":{"original":')
        self._string(target)
        if domain:
            if scheme is not None:
                self._put(b',"full":"')
                self._text(scheme, 0, len(scheme))
                self._put(b"://")
                self._text(domain, 0, len(domain))
                if port is not None:
                    self._put(b":")
                    self._put(port)
                self._text(rest, 0, len(rest))
                self._put(b'"')
            self._put(b',"domain":')
            if domain.startswith(b"["):
                domain = domain[1 : len(domain) - 1]
            self._string(domain)
        if scheme is not None:
            self._put(b',"scheme":')
            self._string(scheme)
            if port is None and scheme == b"http" and domain:
                port = b"80"
        if port is not None and int(port) < 65536:
            self._put(b',"port":')
            self._integer(int(port))
        if path:
            self._put(b',"path":')
            self._string(path)
        if query is not None:
            self._put(b',"query":')
            self._string(query)
        return self._put(b"},")

    @cython.cfunc
    @cython.exceptval(-1)
    def _body(self, message: Message) -> cython.int:
        content: bytes = None
        whole: cython.longlong = message.body_bytes
        text: cython.bint = True
        valid: cython.Py_ssize_t
        self._put(b'{"bytes":')
        self._integer(message.body_bytes)
        if message.decoder is not None:
            content = message.decoder.content()
            if message.decoder.decoded:
                whole = message.decoder.decoded_bytes
                self._put(b',"decoded_bytes":')
                self._integer(whole)
        elif message.kept is not None:
            content = bytes(message.kept)
        if content is not None and message.body_bytes > 0:
            if not content.isascii():
                valid = _utf8_length(content, len(content) < whole)
                if valid < 0:
                    text = False
                elif valid < len(content):
                    content = content[:valid]
            if text or self.keep_unknown or message.content_type is not None:
                if text:
                    if self.redact and message.content_type is not None and _FORM.match(message.content_type) is not None:
                        cut = len(content) < whole
                        content = self._clean_pairs(content)
                        if cut:
                            whole = len(content) + 1
                        else:
                            whole = len(content)
                    self._put(b',"content":"')
                    self._utf8(content)
                    self._put(b'","encoding":"text"')
                else:
                    self._put(b',"content":"')
                    self._put(base64.b64encode(content))
                    self._put(b'","encoding":"base64"')
                if len(content) < whole:
                    self._put(b',"truncated":true')
        return self._put(b"}")

    @cython.cfunc
    def _mime_type(self, content_type: bytes) -> bytes:
        known = self.mime_types.get(content_type)
        if known is None:
            known = content_type.partition(b";")[0].strip().lower()
            if len(self.mime_types) < 4096:
                self.mime_types[content_type] = known
        return known

    # --- redaction ---

    @cython.cfunc
    def _clean(self, target: bytes) -> bytes:
        """A request target or URL with the values of secret query fields, and a password before the host, redacted."""
        mark: cython.Py_ssize_t
        if b"@" in target:
            target = _USERINFO.sub(rb"\1REDACTED@", target)
        mark = target.find(b"?")
        if mark < 0:
            return target
        return target[: mark + 1] + self._clean_pairs(target[mark + 1 :])

    @cython.cfunc
    def _clean_pairs(self, pairs: bytes) -> bytes:
        """name=value pairs, between & or ;, with the values of secret names redacted."""
        parts: list = _SEPARATORS.split(pairs)
        i: cython.Py_ssize_t
        changed: cython.bint = False
        for i in range(len(parts)):
            name, equals, value = parts[i].partition(b"=")
            if equals and value:
                if b"%" in name or b"+" in name:
                    name = unquote_to_bytes(name.replace(b"+", b" ")).strip()
                if name.lower() in self.redact_names:
                    parts[i] = parts[i].partition(b"=")[0] + b"=" + REDACTED
                    changed = True
        return b"".join(parts) if changed else pairs

    # --- JSON ---

    @cython.cfunc
    @cython.exceptval(-1)
    def _reserve(self, size: cython.Py_ssize_t) -> cython.int:
        """Makes room for `size` more bytes."""
        if self.at + size > self.room:
            self.room = 2 * (self.at + size)
            self.out = self.out[: self.at] + bytearray(self.room - self.at)
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def _put(self, data: bytes) -> cython.int:
        """These bytes as they are."""
        size: cython.Py_ssize_t = len(data)
        at: cython.Py_ssize_t = self.at
        i: cython.Py_ssize_t
        out: bytearray
        if at + size > self.room:
            self._reserve(size)
        out = self.out
        for i in range(size):
            out[at + i] = data[i]
        self.at = at + size
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def _integer(self, value: cython.longlong) -> cython.int:
        out: bytearray
        at: cython.Py_ssize_t
        end: cython.Py_ssize_t
        rest: cython.longlong
        self._reserve(20)
        out = self.out
        at = self.at
        if value < 0:
            out[at] = 45
            at += 1
            value = -value
        rest = value
        end = at + 1
        while rest >= 10:
            rest //= 10
            end += 1
        self.at = end
        while end > at:
            end -= 1
            out[end] = 48 + value % 10
            value //= 10
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def _time(self, ns: cython.longlong) -> cython.int:
        """RFC 3339 in UTC; nine digits, or six where the time is whole microseconds."""
        second: cython.longlong = ns // 1_000_000_000
        part: cython.longlong = ns - second * 1_000_000_000
        digits: cython.int = 9
        i: cython.int
        out: bytearray
        known = self.seconds.get(second)
        if known is None:
            known = _second(second)
            if len(self.seconds) >= 256:
                self.seconds.clear()
            self.seconds[second] = known
        self._put(known)
        if part % 1000 == 0:
            part //= 1000
            digits = 6
        self._reserve(10)
        out = self.out
        for i in range(digits):
            out[self.at + digits - 1 - i] = 48 + part % 10
            part //= 10
        out[self.at + digits] = 90
        self.at += digits + 1
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def _string(self, data: bytes) -> cython.int:
        self._put(b'"')
        self._text(data, 0, len(data))
        return self._put(b'"')

    @cython.cfunc
    @cython.exceptval(-1)
    def _text(self, data: bytes, start: cython.Py_ssize_t, end: cython.Py_ssize_t) -> cython.int:
        """data[start:end] inside a JSON string. Bytes above 127 are UTF-8 where all of it is valid, else Latin-1."""
        out: bytearray
        escapes: bytes = _ESCAPES
        digits: bytes = _DIGITS
        at: cython.Py_ssize_t
        i: cython.Py_ssize_t
        c: cython.uchar
        e: cython.uchar
        part: bytes
        self._reserve(6 * (end - start))
        out = self.out
        at = self.at
        for i in range(start, end):
            c = data[i]
            if c > 127:
                part = data[start:end]
                if _utf8_length(part, False) < 0:
                    part = part.decode("latin-1").encode()
                return self._utf8(part)
            e = escapes[c]
            if e == 0:
                out[at] = c
                at += 1
            else:
                out[at] = 92
                if e != 1:
                    out[at + 1] = e
                    at += 2
                else:
                    out[at + 1] = 117
                    out[at + 2] = 48
                    out[at + 3] = 48
                    out[at + 4] = digits[c >> 4]
                    out[at + 5] = digits[c & 15]
                    at += 6
        self.at = at
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def _utf8(self, data: bytes) -> cython.int:
        """Valid UTF-8 inside a JSON string."""
        out: bytearray
        escapes: bytes = _ESCAPES
        digits: bytes = _DIGITS
        at: cython.Py_ssize_t
        i: cython.Py_ssize_t
        c: cython.uchar
        e: cython.uchar
        self._reserve(6 * len(data))
        out = self.out
        at = self.at
        for i in range(len(data)):
            c = data[i]
            e = escapes[c]
            if e == 0:
                out[at] = c
                at += 1
            else:
                out[at] = 92
                if e != 1:
                    out[at + 1] = e
                    at += 2
                else:
                    out[at + 1] = 117
                    out[at + 2] = 48
                    out[at + 3] = 48
                    out[at + 4] = digits[c >> 4]
                    out[at + 5] = digits[c & 15]
                    at += 6
        self.at = at
        return 0


_SCHEMA = SCHEMA.encode()


def _second(second: int) -> bytes:
    """`2026-01-31T12:00:00.`; times outside the years 1 to 9999 are those of the nearest end."""
    second = min(max(second, -62135596800), 253402300799)
    return datetime.fromtimestamp(second, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.").encode().rjust(20, b"0")


def _utf8_length(data: bytes, cut: bool) -> int:
    """How many bytes are valid UTF-8 from the start, or -1 where not all are; `cut`: the last character may be cut."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        if cut and error.end == len(data) and len(data) - error.start < 4 and error.reason == "unexpected end of data":
            return error.start
        return -1
    return len(data)
