"""The golden captures: one function per behaviour, named for it; its docstring says what is right, and by which rule.

Every function without a leading underscore is a capture. test_golden.py replays each and compares the records with
NAME.jsonl beside this file.
"""

import gzip
import inspect
import lzma
import struct
import sys
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import brotli
import zstandard
from traffic import (
    ACK,
    ETHERNET,
    PSH,
    RAW,
    RST,
    SYN,
    URG,
    Conversation,
    Frame,
    chunked,
    fragment,
    http_request,
    http_response,
    mix,
)

TEXT = (("Content-Type", "text/plain"),)
CHUNKED = (*TEXT, ("Transfer-Encoding", "chunked"))
SECOND_NS = 1_000_000_000
OTHER = ("10.0.0.1", 40001)
BETWEEN = {"start_ns": 1_700_000_000_123_456_789, "step_ns": 1_000_001}


@dataclass(frozen=True)
class Capture:
    """What is written to the file. settings: table -> key -> value. ledger: `stage.counter[.reason]` -> number."""

    frames: Iterable[Frame]
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    ledger: Mapping[str, int] = field(default_factory=dict)
    snaplen: int = 262144
    link: int = ETHERNET
    nanoseconds: bool = True


def _opened(**options: Any) -> Conversation:
    conversation = Conversation(**options)
    conversation.handshake()
    return conversation


def _exchange(request: bytes, response: bytes, **options: Any) -> Conversation:
    """A connection with one exchange, from its SYN to its last ACK."""
    conversation = _opened(**options)
    conversation.send("client", request)
    conversation.send("server", response)
    conversation.close()
    return conversation


def _answer(response: bytes, request: bytes | None = None, **options: Any) -> Capture:
    return Capture(_exchange(request or http_request(), response, **options).frames)


def _get(number: int, *headers: tuple[str, str]) -> bytes:
    return http_request("GET", f"/{number}", (("Host", "example.test"), *headers))


def _text(body: str | bytes, *headers: tuple[str, str], **options: Any) -> bytes:
    body = body.encode() if isinstance(body, str) else body
    return http_response(options.pop("status", 200), (*TEXT, *headers), body, **options)


# --- exchanges of one connection


def keep_alive() -> Capture:
    """Three exchanges of one connection (RFC 9112 section 9.3): the handshake's time is in the first one only."""
    conversation = _opened()
    for number in range(3):
        conversation.send("client", _get(number))
        conversation.send("server", _text(f"answer {number}"))
    conversation.close()
    return Capture(conversation.frames)


def pipelined() -> Capture:
    """Three requests in one segment, answered in order (RFC 9112 section 9.3.2)."""
    conversation = _opened()
    conversation.send("client", b"".join(_get(number) for number in range(3)))
    conversation.send("server", b"".join(_text(f"answer {number}") for number in range(3)))
    conversation.close()
    return Capture(conversation.frames)


def pipelined_unanswered() -> Capture:
    """Of three pipelined requests the server answers one and closes: two have no response."""
    conversation = _opened()
    conversation.send("client", b"".join(_get(number) for number in range(3)))
    conversation.send("server", _text("answer 0", ("Connection", "close")))
    conversation.close("server")
    return Capture(conversation.frames)


def early_response() -> Capture:
    """The answer is there before the request's body has ended: one exchange, and it waited for nothing."""
    conversation = _opened()
    body = b"x" * 3000
    request = http_request("POST", "/upload", (("Host", "example.test"), *TEXT), body)
    conversation.send("client", request[:1500])
    conversation.send("server", _text("too much", status=413, reason="Content Too Large"))
    conversation.send("client", request[1500:])
    conversation.close()
    return Capture(conversation.frames)


def empty_lines_between_messages() -> Capture:
    """Empty lines before a request are skipped (RFC 9112 section 2.2)."""
    conversation = _opened()
    conversation.send("client", b"\r\n" + _get(0) + b"\r\n\r\n")
    conversation.send("server", _text("answer 0"))
    conversation.send("client", _get(1))
    conversation.send("server", _text("answer 1"))
    conversation.close()
    return Capture(conversation.frames)


def two_connections() -> Capture:
    """Frames of two connections in turn: two exchanges, in the order in which they end."""
    one = _exchange(_get(1), _text("one"), client=OTHER)
    two = _exchange(_get(2), _text("two"), client=("10.0.0.1", 40002), start_ns=one.frames[0][0] + 500_000)
    return Capture(mix(one, two))


def server_name_in_target() -> Capture:
    """Absolute form to a proxy, asterisk form (RFC 9112 section 3.2); an absolute target wins over Host."""
    conversation = _opened(server=("10.0.0.2", 3128))
    host = (("Host", "proxy.test"),)
    conversation.send("client", http_request("GET", "http://Origin.test:8080/a?b=c#d", host))
    conversation.send("server", _text("absolute"))
    conversation.send("client", http_request("OPTIONS", "*", host))
    conversation.send("server", http_response(204, reason="No Content"))
    conversation.close()
    return Capture(conversation.frames)


# --- how long a body is (RFC 9112 section 6.3)


def chunked_with_trailers() -> Capture:
    """Length without framing, extensions and trailers (RFC 9112 section 7.1); in both directions."""
    conversation = _opened()
    headers = (("Host", "example.test"), *CHUNKED)
    conversation.send("client", http_request("POST", "/", headers, chunked(b"a" * 25, 10)))
    body = chunked(b"0123456789" * 5, 20, trailers=(("Digest", "none"),), extension=';name="value"')
    conversation.send("server", http_response(200, (*CHUNKED, ("Trailer", "Digest")), body))
    conversation.send("client", _get(1))
    conversation.send("server", _text("after the trailers"))
    conversation.close()
    return Capture(conversation.frames)


def chunked_in_small_segments() -> Capture:
    """The same message whatever the segments: here seven bytes each."""
    response = http_response(200, CHUNKED, chunked(b"0123456789" * 5, 20))
    return _answer(response, mss=7)


def chunked_malformed() -> Capture:
    """A chunk size that is none: the message is malformed, the next one is found again."""
    conversation = _opened()
    conversation.send("client", _get(0))
    conversation.send("server", http_response(200, CHUNKED, b"5\r\nhello\r\nxyz\r\n0\r\n\r\n"))
    conversation.send("client", _get(1))
    conversation.send("server", _text("found again"))
    conversation.close()
    return Capture(conversation.frames)


def head_response() -> Capture:
    """A response to HEAD has no body, whatever it says (section 6.3 rule 1); the next one follows at once."""
    conversation = _opened()
    conversation.send("client", http_request("HEAD", "/big") + _get(1))
    conversation.send("server", http_response(200, (*TEXT, ("Content-Length", "100000"))) + _text("body"))
    conversation.close()
    return Capture(conversation.frames)


def not_modified() -> Capture:
    """304 has no body, whatever it says (section 6.3 rule 1)."""
    conversation = _opened()
    conversation.send("client", _get(0, ("If-None-Match", '"a"')) + _get(1))
    conversation.send(
        "server", http_response(304, (("ETag", '"a"'), ("Content-Length", "5")), reason="Not Modified") + _text("body")
    )
    conversation.close()
    return Capture(conversation.frames)


def no_content() -> Capture:
    """204 has no body, even without a length; the connection goes on."""
    conversation = _opened()
    conversation.send("client", http_request("DELETE", "/0") + _get(1))
    conversation.send("server", http_response(204, reason="No Content") + _text("body"))
    conversation.close()
    return Capture(conversation.frames)


def close_delimited() -> Capture:
    """Neither length nor coding: the body ends with the connection, and is whole (section 6.3 rule 8)."""
    conversation = _opened()
    conversation.send("client", http_request())
    conversation.send("server", http_response(200, TEXT, b"until the end", length=False))
    conversation.close("server")
    return Capture(conversation.frames)


def close_delimited_reset() -> Capture:
    """The same, ended by RST: not known to be whole (RFC 9112 section 8)."""
    conversation = _opened()
    conversation.send("client", http_request())
    conversation.send("server", http_response(200, TEXT, b"until the reset", length=False))
    conversation.rst("server")
    return Capture(conversation.frames)


def te_and_cl() -> Capture:
    """Transfer-Encoding overrides Content-Length (section 6.3 rule 3)."""
    headers = (*TEXT, ("Content-Length", "3"), ("Transfer-Encoding", "chunked"))
    return _answer(http_response(200, headers, chunked(b"0123456789")))


def conflicting_lengths() -> Capture:
    """Equal lengths are one; different ones make a request malformed (section 6.3 rule 5)."""
    conversation = _opened()
    same = (("Host", "example.test"), *TEXT, ("Content-Length", "5"), ("Content-Length", "5"))
    conversation.send("client", http_request("POST", "/same", same, b"hello"))
    conversation.send("server", _text("same"))
    conversation.close()
    other = _opened(client=OTHER, start_ns=conversation.now_ns)
    different = (("Host", "example.test"), *TEXT, ("Content-Length", "5"), ("Content-Length", "7"))
    other.send("client", http_request("POST", "/different", different, b"hello"))
    other.send("server", _text("bad", ("Connection", "close"), status=400, reason="Bad Request"))
    other.close("server")
    return Capture(mix(conversation, other))


def transfer_coding_in_request() -> Capture:
    """A request whose last transfer coding is not chunked has no known length: malformed (section 6.3 rule 4)."""
    conversation = _opened()
    headers = (("Host", "example.test"), *TEXT, ("Transfer-Encoding", "gzip"))
    conversation.send("client", http_request("POST", "/", headers, gzip.compress(b"hello", mtime=0)))
    conversation.send("server", _text("no", ("Connection", "close"), status=501, reason="Not Implemented"))
    conversation.close("server")
    return Capture(conversation.frames)


# --- 1xx, CONNECT, Upgrade, old versions


def continue_100() -> Capture:
    """100 joins the exchange and is not its response (RFC 9110 section 15.2); so does 103."""
    conversation = _opened()
    headers = (("Host", "example.test"), *TEXT, ("Content-Length", "5"), ("Expect", "100-continue"))
    conversation.send("client", http_request("POST", "/", headers))
    conversation.send("server", http_response(100, reason="Continue"))
    conversation.send("client", b"hello")
    conversation.send("server", http_response(103, (("Link", "</a.css>; rel=preload"),), reason="Early Hints"))
    conversation.send("server", _text("created", status=201, reason="Created"))
    conversation.close()
    return Capture(conversation.frames)


def expectation_failed() -> Capture:
    """The client waits for 100 and gets 417: it never sends the body (RFC 9110 section 10.1.1)."""
    conversation = _opened()
    headers = (("Host", "example.test"), *TEXT, ("Content-Length", "5"), ("Expect", "100-continue"))
    conversation.send("client", http_request("POST", "/", headers))
    conversation.send("server", _text("no", ("Connection", "close"), status=417, reason="Expectation Failed"))
    conversation.close("server")
    return Capture(conversation.frames)


def connect_tunnel() -> Capture:
    """After 200 to CONNECT anything may follow (RFC 9110 section 9.3.6): here HTTP, which is read."""
    conversation = _opened(server=("10.0.0.2", 3128))
    conversation.send("client", http_request("CONNECT", "origin.test:80", (("Host", "origin.test:80"),)))
    conversation.send("server", http_response(200, reason="Connection established", length=False))
    for number in range(2):
        conversation.send("client", _get(number))
        conversation.send("server", _text(f"inside {number}"))
    conversation.close()
    return Capture(conversation.frames, ledger={"http_bytes.tunnel": 0})


def connect_with_a_password() -> Capture:
    """A password before the host of CONNECT is redacted wherever the target stands, also in what is recorded inside."""
    conversation = _opened(server=("10.0.0.2", 3128))
    conversation.send("client", http_request("CONNECT", "anna:secret@origin.test:80", (("Host", "origin.test:80"),)))
    conversation.send("server", http_response(200, reason="Connection established", length=False))
    conversation.send("client", _get(1))
    conversation.send("server", _text("inside"))
    conversation.close()
    return Capture(conversation.frames)


def connect_tunnel_tls() -> Capture:
    """The usual case: what is in the tunnel is encrypted, and counted."""
    conversation = _opened(server=("10.0.0.2", 3128))
    conversation.send("client", http_request("CONNECT", "origin.test:443", (("Host", "origin.test:443"),)))
    conversation.send("server", http_response(200, reason="Connection established", length=False))
    conversation.send("client", b"\x16\3\1\0\5hello")
    conversation.send("server", b"\x16\3\3\0\5HTTP/1.1 200 OK\r\n")
    conversation.close()
    return Capture(conversation.frames, ledger={"http_bytes.tunnel": 32})


def connect_pipelined() -> Capture:
    """The client does not wait for the answer to CONNECT before it speaks in the tunnel."""
    conversation = _opened(server=("10.0.0.2", 3128))
    conversation.send("client", http_request("CONNECT", "origin.test:80", (("Host", "origin.test:80"),)) + _get(1))
    conversation.send("server", http_response(200, reason="OK", length=False) + _text("inside"))
    conversation.close()
    return Capture(conversation.frames, ledger={"http_bytes.tunnel": 0})


def socks5() -> Capture:
    """HTTP through a SOCKS proxy with a password (RFC 1928, RFC 1929)."""
    conversation = _opened(server=("10.0.0.2", 1080))
    conversation.send("client", b"\5\2\0\2")
    conversation.send("server", b"\5\2")
    conversation.send("client", b"\1\4user\6secret")
    conversation.send("server", b"\1\0")
    conversation.send("client", b"\5\1\0\3\x0borigin.test\0\x50")
    conversation.send("server", b"\5\0\0\1\x0a\0\0\2\x12\x34")
    conversation.send("client", _get(1))
    conversation.send("server", _text("inside"))
    conversation.close()
    return Capture(conversation.frames, ledger={"http_bytes.skipped": 0, "http_bytes.tunnel": 0})


def socks4() -> Capture:
    """SOCKS 4 with a name (4a); the client does not wait for the answer."""
    conversation = _opened(server=("10.0.0.2", 1080))
    conversation.send("client", b"\4\1\0\x50\0\0\0\1me\0origin.test\0" + _get(1))
    conversation.send("server", b"\0\x5a\0\0\0\0\0\0" + _text("inside"))
    conversation.close()
    return Capture(conversation.frames, ledger={"http_bytes.skipped": 0, "http_bytes.tunnel": 0})


def socks_refused() -> Capture:
    """The proxy refuses, and closes: no exchange."""
    conversation = _opened(server=("10.0.0.2", 1080))
    conversation.send("client", b"\4\1\0\x50\x0a\0\0\2\0")
    conversation.send("server", b"\0\x5b\0\0\0\0\0\0")
    conversation.close("server")
    return Capture(conversation.frames, ledger={"exchanges.total": 0})


def connect_refused() -> Capture:
    """After 407 to CONNECT the connection is HTTP as before."""
    conversation = _opened(server=("10.0.0.2", 3128))
    connect = http_request("CONNECT", "origin.test:443", (("Host", "origin.test:443"),))
    conversation.send("client", connect)
    conversation.send("server", _text("who?", status=407, reason="Proxy Authentication Required"))
    conversation.send("client", _get(1))
    conversation.send("server", _text("still HTTP"))
    conversation.close()
    return Capture(conversation.frames)


def upgrade_websocket() -> Capture:
    """101 is the response, and what follows is not HTTP (RFC 9110 section 7.8, RFC 6455)."""
    conversation = _opened()
    upgrade = (("Upgrade", "websocket"), ("Connection", "Upgrade"))
    conversation.send("client", _get(1, *upgrade, ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")))
    conversation.send("server", http_response(101, upgrade, reason="Switching Protocols"))
    conversation.send("client", bytes.fromhex("818537fa213d7f9f4d5158"))
    conversation.send("server", bytes.fromhex("810548656c6c6f"))
    conversation.close()
    return Capture(conversation.frames, ledger={"http_bytes.tunnel": 18})


def http_10() -> Capture:
    """HTTP/1.0 without keep-alive: the body ends with the connection; no Host, so no domain."""
    conversation = _opened()
    conversation.send("client", http_request("GET", "/old", (), version="1.0"))
    conversation.send("server", http_response(200, TEXT, b"old", "1.0", length=False))
    conversation.close("server")
    return Capture(conversation.frames)


def http_09() -> Capture:
    """One line, and the answer is all that comes (RFC 1945 section 4.1): no status, no fields."""
    conversation = _opened()
    conversation.send("client", b"GET /ancient\r\n")
    conversation.send("server", b"<html>all of it</html>\n")
    conversation.close("server")
    return Capture(conversation.frames)


# --- content codings and what is kept


def gzip_text() -> Capture:
    """bytes: as sent; decoded_bytes and content: without the coding."""
    body = gzip.compress(b"compressed " * 20, mtime=0)
    return _answer(_text(body, ("Content-Encoding", "gzip")))


def brotli_text() -> Capture:
    """Content-Encoding: br (RFC 7932)."""
    return _answer(_text(brotli.compress(b"compressed " * 20), ("Content-Encoding", "br")))


def zstd_json() -> Capture:
    """Content-Encoding: zstd (RFC 8878) of JSON."""
    body = zstandard.ZstdCompressor().compress(b'{"name": ["value"]}')
    return _answer(http_response(200, (("Content-Type", "application/json"), ("Content-Encoding", "zstd")), body))


def deflate() -> Capture:
    """Content-Encoding: deflate is zlib (RFC 9110 section 8.4.1.2); without the zlib head it is understood too."""
    conversation = _opened()
    raw = zlib.compressobj(wbits=-15)
    for number, body in enumerate((zlib.compress(b"with zlib head"), raw.compress(b"without") + raw.flush())):
        conversation.send("client", _get(number))
        conversation.send("server", _text(body, ("Content-Encoding", "deflate")))
    conversation.close()
    return Capture(conversation.frames)


def unknown_coding() -> Capture:
    """A coding that nobody knows: the content is what was sent, and there is no decoded length."""
    return _answer(_text("as it is", ("Content-Encoding", "rot13")))


def xz_and_lzma() -> Capture:
    """Neither name is registered; some tools send them, in the xz format or the older one."""
    conversation = _opened()
    bodies = lzma.compress(b"in the xz format"), lzma.compress(b"the older one", lzma.FORMAT_ALONE)
    for number, (coding, body) in enumerate(zip((" x-XZ", "lzma"), bodies, strict=True)):
        conversation.send("client", _get(number))
        conversation.send("server", _text(body, ("Content-Encoding", coding)))
    conversation.close()
    return Capture(conversation.frames)


def codings_in_odd_spelling() -> Capture:
    """Of each member of the list the first token counts (RFC 9110 section 5.6.2), whatever stands around it."""
    conversation = _opened()
    body = gzip.compress(b"in odd spelling", mtime=0)
    for number, coding in enumerate(('"gzip"', "x-GZip", "gzip;q=1", "gzip, identity", "none,\tgzip x,")):
        conversation.send("client", _get(number))
        conversation.send("server", _text(body, ("Content-Encoding", coding)))
    conversation.close()
    return Capture(conversation.frames)


def coding_not_as_listed() -> Capture:
    """Plain text called gzip and deflate, gzip called br, gzip once and listed twice: what is there counts, as for
    browsers, and the record says so. A body that is compressed without a coding is left as it is."""
    conversation = _opened()
    packed = gzip.compress(b"compressed once", mtime=0)
    cases = (
        ("gzip", b"not compressed"), ("deflate", b'{"not": "compressed"}'), ("br", packed), ("gzip, gzip", packed),
        ("identity", packed),
    )  # fmt: skip
    for number, (coding, body) in enumerate(cases):
        conversation.send("client", _get(number))
        conversation.send("server", _text(body, ("Content-Encoding", coding)))
    conversation.close()
    return Capture(conversation.frames, ledger={"messages.decoding_failures": 4})


def gzip_damaged() -> Capture:
    """A wrong checksum: all is there. Reserved flags: as if they were not. Broken data: what came before."""
    conversation = _opened()
    text = bytes(range(32, 127)) * 2
    body = gzip.compress(text, mtime=0)
    flags = body[:3] + b"\xe0" + body[4:]
    broken = body[:10] + struct.pack("<BHH", 0, 80, 0xFFFF ^ 80) + text[:80] + b"\x07" * 8  # no such kind of block
    for number, damaged in enumerate((body[:-8] + bytes(8), flags, broken)):
        conversation.send("client", _get(number))
        conversation.send("server", _text(damaged, ("Content-Encoding", "gzip")))
    conversation.close()
    return Capture(conversation.frames, ledger={"messages.decoding_failures": 2})


def gzip_bomb() -> Capture:
    """Decoding ends at the limits; what came before is kept."""
    body = gzip.compress(bytes(b" " * (2 << 20)), mtime=0)
    settings = {"body": {"max_kept_bytes": 10, "max_ratio": 100}}
    return Capture(
        _exchange(http_request(), _text(body, ("Content-Encoding", "gzip"))).frames,
        settings,
        {"messages.decoding_failures": 1},
    )


def form_not_decoded() -> Capture:
    """A form that cannot be decoded cannot be searched for secrets: it is left out where secrets are redacted."""
    form = (("Host", "example.test"), ("Content-Type", "application/x-www-form-urlencoded"))
    body = gzip.compress(b"user=anna&password=secret", mtime=0)
    conversation = _opened()
    for coding, sent in (("gzip", body), ("rot13", b"user=anna&password=secret"), ("gzip,gzip,gzip,gzip,gzip", body)):
        conversation.send("client", http_request("POST", "/", (*form, ("Content-Encoding", coding)), sent))
        conversation.send("server", _text("done"))
    conversation.close()
    return Capture(conversation.frames, ledger={"messages.decoding_failures": 2})


def gzip_cut() -> Capture:
    """The response is whole, its gzip is not: what could be decoded is there, and marked as truncated."""
    body = gzip.compress(bytes(range(32, 127)) * 40, mtime=0)
    return Capture(
        _exchange(http_request(), _text(body[:-40], ("Content-Encoding", "gzip"))).frames,
        ledger={"messages.decoding_failures": 1},
    )


def binary_body_base64() -> Capture:
    """All bodies are kept: text as text, other bytes in base64, by what they are and not by what they are called."""
    conversation = _opened()
    for number, (kind, body) in enumerate((("image/png", b"\x89PNG\r\n\x1a\n\0\xff"), ("image/png", b"plain"))):
        conversation.send("client", _get(number))
        conversation.send("server", http_response(200, (("Content-Type", kind),), body))
    conversation.close()
    return Capture(conversation.frames, {"body": {"keep": "all"}})


def binary_body_left() -> Capture:
    """Only textual types are kept: of the others the length alone; without a type, what is text."""
    conversation = _opened()
    bodies = ((("Content-Type", "image/png"),), b"\x89PNG\r\n\x1a\n"), ((), b"\x89PNG\r\n\x1a\n"), ((), b"text")
    for number, (headers, body) in enumerate(bodies):
        conversation.send("client", _get(number))
        conversation.send("server", http_response(200, headers, body))
    conversation.close()
    return Capture(conversation.frames)


def bodies_none() -> Capture:
    """No content at all, and the true lengths."""
    body = gzip.compress(b"compressed " * 20, mtime=0)
    conversation = _exchange(
        http_request("POST", "/", (("Host", "example.test"), *TEXT), b"hello"),
        _text(body, ("Content-Encoding", "gzip")),
    )
    return Capture(conversation.frames, {"body": {"keep": "none"}})


def body_over_the_limit() -> Capture:
    """The kept part ends between two characters, never inside one; `bytes` is the whole length."""
    return Capture(_exchange(http_request(), _text("äöü" * 10, status=200)).frames, {"body": {"max_kept_bytes": 15}})


# --- heads


def duplicate_headers() -> Capture:
    """Fields of one name, in any case: one list, in the order on the wire (RFC 9110 section 5.3)."""
    headers = (("Via", "a"), ("VIA", "b"), ("X-Empty", ""), ("Warning", "one, two"), ("via", "c"))
    return _answer(_text("body", *headers), _get(1, ("Accept", "a"), ("accept", "b")))


def obs_fold() -> Capture:
    """A folded line goes on with the value before it, one space for the break (RFC 9112 section 5.2)."""
    return _answer(b"HTTP/1.1 200 OK\r\nX-Folded: one\r\n  two\r\n\tthree\r\nContent-Length: 0\r\n\r\n")


def bare_lf() -> Capture:
    """LF alone ends a line (RFC 9112 section 2.2)."""
    return _answer(
        b"HTTP/1.1 200 OK\nContent-Type: text/plain\nContent-Length: 4\n\nbody",
        b"GET /lf HTTP/1.1\nHost: example.test\n\n",
    )


def no_reason_phrase() -> Capture:
    """The reason may be empty, with and without the space before it (RFC 9112 section 4)."""
    conversation = _opened()
    for number, line in enumerate((b"HTTP/1.1 200 ", b"HTTP/1.1 200")):
        conversation.send("client", _get(number))
        conversation.send("server", line + b"\r\nContent-Length: 0\r\n\r\n")
    conversation.close()
    return Capture(conversation.frames)


def space_before_colon() -> Capture:
    """Not allowed, and seen: the name is without it, so Content-Length and redaction work (RFC 9112 section 5.1)."""
    return _answer(
        b"HTTP/1.1 200 OK\r\nContent-Type : text/plain\r\nContent-Length : 4\r\nSet-Cookie\t: a=b\r\n\r\nbody",
        b"GET / HTTP/1.1\r\nHost: example.test\r\nAuthorization : Basic c2VjcmV0\r\n\r\n",
    )


def smuggling_shapes() -> Capture:
    """Requests of which two servers can make different ones: each is flagged (RFC 9112 sections 5.2, 6.1 and 6.3)."""
    conversation = _opened()
    chunks = b"4\r\nbody\r\n0\r\n\r\n"
    for number, fields in enumerate(
        (
            b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
            b"Transfer-Encoding:\r\n chunked\r\n",
            b"Transfer-Encoding\r\n : xchunked\r\n",
        )
    ):
        conversation.send("client", b"POST /%d HTTP/1.1\r\nHost: h\r\n%b\r\n" % (number, fields) + chunks)
        conversation.send("server", _text(f"answer {number}"))
    conversation.close()
    return Capture(conversation.frames)


def smuggled_request_in_a_doubtful_body() -> Capture:
    """A request behind a body whose framing is one reading of two: it is a record, and no response is paired."""
    conversation = _opened()
    smuggling = b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: xchunked\r\nContent-Length: 40\r\n\r\n0\r\n\r\n"
    conversation.send("client", smuggling + http_request("GET", "/smuggled"))
    conversation.send("server", _text("to which?"))
    conversation.close()
    return Capture(conversation.frames)


def transfer_encoding_odd() -> Capture:
    """An odd spelling of chunked means it where a chunk size follows; the next pair is judged by sequence numbers."""
    conversation = _opened()
    for number, (spelling, body) in enumerate(((b"xchunked", b"4\r\nbody\r\n0\r\n\r\n"), (b"chunked;x", b"plain"))):
        length = b"Content-Length: %d\r\n" % len(body) if body == b"plain" else b""
        conversation.send("client", _get(number))
        conversation.send("server", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: %b\r\n%b\r\n%b" % (spelling, length, body))
    conversation.send("client", _get(2))
    conversation.send("server", _text("sound"))
    conversation.close()
    return Capture(conversation.frames)


def chunk_sizes_odd() -> Capture:
    """Blanks, empty lines, a sign and junk around chunk sizes, and no line end after a chunk (section 7.1)."""
    return _answer(http_response(200, CHUNKED, b" 3\r\none\r\n\r\n+3 x\r\ntwo\r\n5\r\nthree0\r\n\r\n"))


def status_line_odd() -> Capture:
    """Lower case, a version that there is not, no status of three digits: read like a 200 (section 4)."""
    conversation = _opened()
    for number, line in enumerate((b"http/1.1 200 OK", b"HTTP/1.10 200 OK", b"HTTP/1.1 20x OK", b"HTTP/1.1")):
        conversation.send("client", _get(number))
        conversation.send("server", line + b"\r\nContent-Length: 4\r\n\r\nbody")
    conversation.close()
    return Capture(conversation.frames)


def junk_before_status_line() -> Capture:
    """What stands before the first status line is passed over, and the answer is that to the request."""
    return _answer(b"SIP/2.0 200 OK\r\n" + _text("body"))


def status_line_missing() -> Capture:
    """The first answer is no HTTP: it is a body without a head, up to the close."""
    return _answer(b"<html>not found</html>\n")


def latin1_header() -> Capture:
    """Values that are UTF-8 are read as it, others as Latin-1; JSON has what they mean (RFC 9110 section 5.5)."""
    headers = (("X-Latin-1", "caf\xe9"), ("X-UTF-8", "café \u20ac".encode().decode("latin-1")), ("X-Quote", '"\\\t"'))
    return _answer(_text("body", *headers))


def custom_method() -> Capture:
    """Any token is a method, and its case counts (RFC 9110 section 9.1)."""
    return _answer(_text("body"), http_request("Brew-It", "/pot?cup=1"))


def huge_head() -> Capture:
    """A head over the limit is a malformed message, with the fields that were there; the next one is found again."""
    conversation = _opened()
    conversation.send("client", _get(0, *((f"X-{i}", "x" * 100) for i in range(20))))
    conversation.send("server", _text("answer 0"))
    conversation.send("client", _get(1))
    conversation.send("server", _text("answer 1"))
    conversation.close()
    return Capture(conversation.frames, {"http": {"max_head_bytes": 1024}}, {"messages.heads_too_large": 1})


def too_many_fields() -> Capture:
    """Fields beyond the limit are counted and left out; the exchange is whole."""
    headers = [(f"X-{i}", "x") for i in range(30)]
    return Capture(
        _exchange(http_request(), _text("body", *headers[:10])).frames
        + _exchange(_get(1, *headers), _text("body"), client=OTHER, start_ns=1_700_000_001 * SECOND_NS).frames,
        {"http": {"max_headers": 16}},
        {"messages.too_many_fields": 1},
    )


# --- what TCP does


def out_of_order() -> Capture:
    """Segments in the wrong order are put in order; each is told the time at which it was seen."""
    conversation = _opened()
    conversation.send("client", http_request())
    conversation.send("server", _text("0123456789" * 10), mss=50)
    conversation.close()
    frames = conversation.frames
    frames[4], frames[6] = (frames[4][0], frames[6][1]), (frames[6][0], frames[4][1])
    return Capture(frames)


def retransmission() -> Capture:
    """Bytes seen twice count once in the message, and once as retransmitted; the copy that came first is kept."""
    conversation = _opened()
    conversation.send("client", http_request())
    response = _text("0123456789")
    (first,) = conversation.send("server", response[:70])
    conversation.retransmit(first, payload=b"X" * 70)
    conversation.send("server", response[70:])
    conversation.close()
    return Capture(conversation.frames)


def _behind_a_hole(later: int) -> list[Frame]:
    """The request line twice, with other bytes: the second time it begins `later` bytes later, and ends later too."""
    conversation = _opened()
    request = _get(1)
    (hole,) = conversation.send("client", request[:1], drop=True)
    conversation.send("client", request[1:])
    other = request.replace(b" /1", b" /X").replace(b"HTTP/1.1", b"HTTP/1.0")
    conversation.send("client", other[1 + later :], seq=conversation.number("client", 1 + later))
    conversation.sent["client"] = len(request)
    conversation.retransmit(hole)
    conversation.send("server", _text("answer"))
    conversation.close()
    return conversation.frames


def overlap_first() -> Capture:
    """Of two versions of kept bytes the first stays (tcp.overlap = "first"), and the second is a conflict."""
    ledger = {"segments.conflicting": 1, "bytes.conflicting": 2}
    return Capture(_behind_a_hole(0), ledger=ledger)


def overlap_last() -> Capture:
    """The later one stays (tcp.overlap = "last")."""
    ledger = {"segments.conflicting": 1, "bytes.conflicting": 2}
    return Capture(_behind_a_hole(1), {"tcp": {"overlap": "last"}}, ledger)


def overlap_linux() -> Capture:
    """The first stays, as the later one begins after it (tcp.overlap = "linux")."""
    ledger = {"segments.conflicting": 1, "bytes.conflicting": 2}
    return Capture(_behind_a_hole(1), {"tcp": {"overlap": "linux"}}, ledger)


def conflicting_retransmission() -> Capture:
    """An answer that was injected before the true one: the first is read, and the other is a conflict."""
    conversation = _opened()
    conversation.send("client", _get(1))
    injected = _text("this is not what was asked for")
    conversation.send("server", injected, seq=conversation.next_number("server"))
    conversation.send("server", _text("this is the answer that was meant"))
    conversation.close()
    return Capture(conversation.frames, ledger={"segments.conflicting": 1})


def fin_lost() -> Capture:
    """The server's FIN was not captured, the acknowledgement of its number was: the body that it ends is whole."""
    conversation = _opened()
    conversation.send("client", _get(1))
    conversation.send("server", http_response(200, TEXT, b"until the end", length=False))
    conversation.fin("server", drop=True)
    conversation.ack("client")
    conversation.fin("client")
    conversation.ack("server")
    return Capture(conversation.frames)


def reset_forged() -> Capture:
    """Two RST in the window: one ahead of the stream, one before bytes that its sender goes on to send. Their receiver
    may believe neither (RFC 5961 section 3), and the connection goes on."""
    conversation = _opened()
    conversation.send("client", _get(0))
    conversation.segment("server", RST, seq=conversation.next_number("server") + 1000)
    conversation.send("server", _text("answer 0"))
    conversation.wait(SECOND_NS)
    conversation.segment("client", RST)
    conversation.send("client", _get(1))
    conversation.send("server", _text("answer 1"))
    conversation.wait(SECOND_NS)
    conversation.close()
    return Capture(conversation.frames, ledger={"segments.resets_ignored": 2})


def urgent_data() -> Capture:
    """An urgent byte is not read by the server, so it is no part of the target (RFC 6093 section 3.1)."""
    conversation = _opened()
    conversation.segment("client", ACK | PSH | URG, _get(1).replace(b" /1", b" /1!"))
    conversation.sent["client"] = len(_get(1)) + 1
    timestamp_ns, frame = conversation.frames[-1]
    conversation.frames[-1] = (timestamp_ns, frame[:52] + b"\0\x07" + frame[54:])  # the pointer: byte 7 is urgent
    conversation.send("server", _text("answer"))
    conversation.close()
    return Capture(conversation.frames, ledger={"bytes.urgent": 1})


def keep_alive_probes() -> Capture:
    """A byte of any value before the next one (RFC 9293 section 3.8.4): no data, and no conflict."""
    conversation = _opened()
    for number in range(2):
        conversation.send("client", _get(number))
        conversation.send("server", _text(f"answer {number}"))
        for side in ("client", "server"):
            conversation.wait(SECOND_NS)
            conversation.segment(side, ACK, b"\0", seq=conversation.next_number(side) - 1)
    conversation.close()
    return Capture(conversation.frames, ledger={"segments.retransmitted": 4})


def zero_window() -> Capture:
    """A closed window is probed with the next byte (RFC 9293 section 3.8.6.1), which comes again when it opens."""
    conversation = _opened()
    conversation.send("client", _get(1))
    answer = _text("0123456789" * 5)
    conversation.send("server", answer[:80])
    conversation.window = 0
    conversation.ack("client")
    for _ in range(3):
        conversation.wait(SECOND_NS)
        conversation.segment("server", ACK, answer[80:81])
        conversation.ack("client")
    conversation.window = 65535
    conversation.ack("client")
    conversation.send("server", answer[80:])
    conversation.close()
    return Capture(conversation.frames, ledger={"bytes.retransmitted": 3})


def bad_checksum() -> Capture:
    """With tcp.verify_checksums, what its receiver drops is dropped: a request that never reached the server."""
    conversation = _opened()
    conversation.send("client", _get(1))
    timestamp_ns, frame = conversation.frames[-1]
    conversation.frames.insert(-1, (timestamp_ns - 1000, frame.replace(b" /1", b" /X")))
    conversation.send("server", _text("answer"))
    conversation.close()
    return Capture(conversation.frames, {"tcp": {"verify_checksums": True}}, {"frames.drops.bad_checksum": 1})


def sequence_wraparound() -> Capture:
    """Both numbers pass 2**32 inside the messages."""
    conversation = _exchange(http_request(), _text("0" * 500), client_isn=2**32 - 20, server_isn=2**32 - 100, mss=64)
    return Capture(conversation.frames)


def gap_in_body() -> Capture:
    """A lost segment inside a body of known length: length and framing stay right, content ends before the gap."""
    conversation = _opened()
    conversation.send("client", _get(0))
    conversation.send("server", _text("0123456789" * 30), mss=100, drop={2})
    conversation.ack("client")
    conversation.send("client", _get(1))
    conversation.send("server", _text("after the gap"))
    conversation.close()
    return Capture(conversation.frames, ledger={"bytes.gaps": 100})


def gap_in_chunked_body() -> Capture:
    """The same in a chunked body: where the next chunk begins is not known, and the next message is found again."""
    conversation = _opened()
    conversation.send("client", _get(0))
    conversation.send("server", http_response(200, CHUNKED, chunked(b"0123456789" * 30, 50)), mss=100, drop={2})
    conversation.ack("client")
    conversation.send("client", _get(1))
    conversation.send("server", _text("after the gap"))
    conversation.close()
    return Capture(conversation.frames)


def gap_in_head() -> Capture:
    """Lost: the middle of a response's head. What was seen before it is recorded. The client does not pipeline, so it
    is certain which response belongs to the next request, and to those after it."""
    conversation = _opened()
    conversation.send("client", _get(0))
    conversation.send("server", _text("body", ("X-Long", "x" * 200)), mss=100, drop={1})
    conversation.ack("client")
    for number in range(1, 3):
        conversation.send("client", _get(number))
        conversation.send("server", _text(f"after the gap {number}"))
        conversation.wait(SECOND_NS)
    conversation.close()
    return Capture(conversation.frames)


def gap_over_messages() -> Capture:
    """Lost: the end of the first response, all of the second and the begin of the third, of three pipelined requests.
    How many are missing cannot be known, so nothing is paired by guessing."""
    conversation = _opened()
    conversation.send("client", b"".join(_get(number) for number in range(3)))
    answers = b"".join(_text(f"answer {number} " * 5) for number in range(3))
    conversation.send("server", answers, mss=100, drop={1, 2})
    conversation.ack("client")
    conversation.send("client", _get(3))
    conversation.send("server", _text("answer 3"))
    conversation.close()
    return Capture(conversation.frames)


def request_lost() -> Capture:
    """A request that was not captured: its response stands alone, and the next pair is a pair."""
    conversation = _opened()
    conversation.send("client", _get(0), drop=True)
    conversation.send("server", _text("answer 0"))
    conversation.send("client", _get(1))
    conversation.send("server", _text("answer 1"))
    conversation.close()
    return Capture(conversation.frames)


def snaplen() -> Capture:
    """Frames that were captured in part: lengths are true, and the reason says what it was."""
    conversation = _exchange(http_request(), _text("0123456789" * 50))
    return Capture(conversation.frames, snaplen=200)


def midstream() -> Capture:
    """The capture begins between two exchanges of a connection: the handshake was not seen, all else is as always."""
    conversation = Conversation()
    for number in range(1, 3):
        conversation.send("client", _get(number))
        conversation.send("server", _text(f"answer {number}"))
    conversation.close()
    return Capture(conversation.frames, ledger={"connections.midstream": 1})


def midstream_response() -> Capture:
    """The capture begins inside a response, which is not recorded. The exchanges after it are, as midstream."""
    conversation = Conversation()
    conversation.send("server", b"the end of a body that began earlier")
    for number in range(1, 3):
        conversation.send("client", _get(number))
        conversation.send("server", _text(f"answer {number}"))
        conversation.wait(SECOND_NS)
    conversation.close()
    return Capture(conversation.frames)


def body_like_a_status_line() -> Capture:
    """Of a one-sided response it is not known whether it has a body: these bytes could have begun the next response."""
    conversation = Conversation()
    for number in range(3):
        conversation.send("client", _get(number), drop=True)
        conversation.send("server", http_response(200, TEXT, b"HTTP/1.")[:-2])
        conversation.send("server", b"1.", drop=number == 1)
        conversation.wait(SECOND_NS)
    conversation.send("server", http_response(200, (*TEXT, ("Content-Length", "5000")), length=False))  # to HEAD
    conversation.send("server", http_response(204, reason="No Content"))
    return Capture(conversation.frames)


def one_sided_request() -> Capture:
    """Only the client's direction is captured."""
    conversation = _exchange(_get(1), _text("not captured"))
    return Capture([frame for frame in conversation.frames if frame[1][6:12] == bytes.fromhex("020000000001")])


def one_sided_response() -> Capture:
    """Only the server's direction is captured: source and destination are client and server all the same."""
    conversation = _exchange(_get(1), _text("captured"))
    return Capture([frame for frame in conversation.frames if frame[1][6:12] == bytes.fromhex("020000000002")])


def syn_reuse() -> Capture:
    """A new SYN on the same ports before the old connection ended, and its answer: two connections."""
    one = _opened()
    one.send("client", _get(1))
    two = _exchange(
        _get(2), _text("answer 2"), client_isn=900_000, server_isn=800_000, start_ns=one.now_ns + 5 * SECOND_NS
    )
    return Capture(mix(one, two), ledger={"connections.opened": 2})


def reset_mid_body() -> Capture:
    """RST inside a body of known length."""
    conversation = _opened()
    conversation.send("client", http_request())
    conversation.send("server", _text("0123456789" * 10)[:100])
    conversation.rst("client")
    return Capture(conversation.frames)


def closed_mid_body() -> Capture:
    """FIN before the announced length (RFC 9112 section 8): incomplete."""
    conversation = _opened()
    conversation.send("client", http_request())
    conversation.send("server", _text("0123456789" * 10)[:100])
    conversation.close("server")
    return Capture(conversation.frames)


def capture_ends() -> Capture:
    """The capture ends inside a response, and before another one."""
    conversation = _opened()
    conversation.send("client", http_request())
    conversation.send("server", _text("0123456789" * 10)[:100])
    other = _opened(client=OTHER, start_ns=conversation.now_ns)
    other.send("client", _get(1))
    return Capture(mix(conversation, other))


def timeouts() -> Capture:
    """Nothing more is seen for longer than the limit: the waiting request is recorded, before the next exchange."""
    conversation = _opened()
    conversation.send("client", _get(1))
    other = _exchange(_get(2), _text("later"), client=OTHER, start_ns=conversation.now_ns + 400 * SECOND_NS)
    return Capture(mix(conversation, other), ledger={"connections.closed.timeout": 1})


def evicted() -> Capture:
    """No room for another connection: the oldest is given up, and its request recorded."""
    conversation = _opened()
    conversation.send("client", _get(1))
    other = _exchange(_get(2), _text("later"), client=OTHER, start_ns=conversation.now_ns)
    return Capture(mix(conversation, other), {"tcp": {"max_connections": 1}}, {"connections.closed.evicted": 1})


# --- below TCP


def ipv6() -> Capture:
    """Addresses in their shortest form; the host of a target in brackets, its domain without."""
    return _answer(
        _text("six"),
        http_request("GET", "/", (("Host", "[2001:db8::2]:8080"),)),
        client=("2001:db8:0:0::1", 40000),
        server=("2001:db8::2", 8080),
    )


def vlan() -> Capture:
    """IEEE 802.1Q."""
    return _answer(_text("tagged"), vlan=(42,))


def qinq() -> Capture:
    """IEEE 802.1ad: outer and inner tag."""
    return _answer(_text("tagged twice"), vlan=(100, 42))


def ip_fragments() -> Capture:
    """A response in three IP fragments, the last one first (RFC 791)."""
    conversation = _exchange(http_request(), _text("0123456789" * 10))
    frames: list[Frame] = []
    for timestamp_ns, frame in conversation.frames:
        if len(frame) > 150:
            pieces = fragment(frame, 64)
            frames += [(timestamp_ns + i, piece) for i, piece in enumerate(reversed(pieces))]
        else:
            frames.append((timestamp_ns, frame))
    return Capture(frames, ledger={"fragments.used": 3, "fragments.datagrams": 1})


def _vxlan(frames: Iterable[Frame], number: int) -> list[Frame]:
    """These frames in a VXLAN, between 192.0.2.1, where the client is, and 192.0.2.2."""
    through = []
    for timestamp_ns, frame in frames:
        to_server = frame[:6] == bytes.fromhex("020000000002")
        ends = bytes((192, 0, 2, 1, 192, 0, 2, 2)) if to_server else bytes((192, 0, 2, 2, 192, 0, 2, 1))
        size = 16 + len(frame)
        head = struct.pack("!HHHHII", 50000 + to_server, 4789, size, 0, 8 << 24, number << 8)
        ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + size, timestamp_ns >> 8 & 0xFFFF, 0, 64, 17, 0) + ends
        through.append((timestamp_ns, bytes(12) + b"\x08\0" + ip + head + frame))
    return through


def tunnel_vxlan() -> Capture:
    """The addresses are those inside; the tunnel, its id and its ends are told (RFC 7348)."""
    return Capture(_vxlan(_exchange(http_request(), _text("through")).frames, 42))


def tunnel_from_the_server() -> Capture:
    """The first frame seen is the server's: the tunnel's source is all the same the end on the client's side."""
    frames = _vxlan(_exchange(http_request(), _text("through")).frames, 42)
    return Capture([frames[1], *frames[3:]])


def inside_and_outside() -> Capture:
    """The same connection bare, tagged, and in two networks: one each, with the same event.id."""
    bare = _exchange(http_request(), _text("four times")).frames
    tagged = _exchange(http_request(), _text("four times"), vlan=(7,)).frames
    ways = (bare, tagged, _vxlan(bare, 1), _vxlan(bare, 2))
    frames = [(at + i, frame) for i, way in enumerate(ways) for at, frame in way]
    return Capture(sorted(frames), ledger={"connections.opened": 4, "segments.mirrored": 0})


def tunnel_in_fragments() -> Capture:
    """What the tunnel carries is in fragments, and so is what carries it."""
    frames: list[Frame] = []
    for timestamp_ns, frame in _exchange(http_request(), _text("0123456789" * 10)).frames:
        for i, inner in enumerate(fragment(frame, 64) if len(frame) > 150 else [frame]):
            ((_, outer),) = _vxlan([(timestamp_ns + (i << 8), inner)], 42)
            identification = (timestamp_ns >> 8) + i & 0xFFFF
            frames += [(timestamp_ns + i, piece) for piece in fragment(outer, 48, identification=identification)]
    return Capture(frames, ledger={"fragments.pending": 0, "frames.drops.not_tcp": 0})


def vlans_of_each_direction() -> Capture:
    """A mirror that tags by direction: one connection where the VLAN is left out of its key."""
    conversation = _exchange(http_request(), _text("both"), vlan=(5,))
    frames = [
        (at, frame if frame[:6] == bytes.fromhex("020000000002") else frame[:14] + b"\0\6" + frame[16:])
        for at, frame in conversation.frames
    ]
    return Capture(frames, {"decode": {"vlan_in_key": False}}, ledger={"connections.opened": 1})


def over_the_rate() -> Capture:
    """More exchanges in a second than one connection may have: counted, not recorded."""
    conversation = _opened()
    for number in range(3):
        conversation.send("client", _get(number))
        conversation.send("server", _text(str(number)))
    conversation.wait(SECOND_NS)
    conversation.send("client", _get(3))
    conversation.send("server", _text("3"))
    conversation.close()
    settings = {"http": {"max_exchanges_per_second": 2}}
    return Capture(conversation.frames, settings, {"exchanges.over_rate": 1, "exchanges.total": 4, "records.total": 3})


def mirrored_twice() -> Capture:
    """Each frame comes a second time from behind a router: left out, and no retransmission. But for acknowledgements
    with nothing in them, of which a second one changes nothing."""
    conversation = _exchange(http_request(), _text("once"))
    frames = [
        (at + i, bytes(i * 12) + frame[i * 12 : 22] + bytes((64 - i,)) + frame[23:])
        for at, frame in conversation.frames
        for i in range(2)
    ]
    number = len(conversation.frames)
    empty = sum(segment.flags == ACK and not segment.payload for segment in conversation.segments)
    counted = {"segments.mirrored": number - empty, "segments.total": number + empty, "bytes.retransmitted": 0}
    return Capture(frames, ledger=counted)


def raw_ip() -> Capture:
    """A capture without a link layer (LINKTYPE_RAW)."""
    return Capture(_exchange(http_request(), _text("raw"), link=RAW).frames, link=RAW)


def microseconds() -> Capture:
    """A capture in whole microseconds has six digits; an exchange between its frames too."""
    conversation = _exchange(http_request(), _text("six digits"), **BETWEEN)
    return Capture(conversation.frames, nanoseconds=False)


def nanoseconds() -> Capture:
    """Nine digits where the capture has them."""
    conversation = _exchange(http_request(), _text("nine digits"), **BETWEEN)
    return Capture(conversation.frames)


# --- what is not HTTP


def non_http() -> Capture:
    """No record for a connection that never spoke HTTP, nor for frames that are no TCP: counted, all of them."""
    conversation = _opened(server=("10.0.0.2", 22))
    conversation.send("server", b"SSH-2.0-OpenSSH_9.2p1\r\n")
    conversation.send("client", b"SSH-2.0-OpenSSH_9.2p1\r\n")
    for _ in range(3):
        conversation.send("client", bytes(range(256)))
        conversation.send("server", bytes(range(255, -1, -1)))
    conversation.close()
    arp = bytes.fromhex("ffffffffffff020000000001080600010800060400010200000000010a0000010000000000000a000002")
    udp = conversation.frames[0][1]
    udp = udp[:23] + b"\x11" + udp[24:34] + struct.pack("!HHHH", 53, 53, 12, 0) + b"data"
    return Capture(
        [*conversation.frames, (conversation.now_ns, arp), (conversation.now_ns, udp), (conversation.now_ns, b"")]
    )


def tls() -> Capture:
    """A TLS connection: no record."""
    conversation = _opened(server=("10.0.0.2", 443))
    conversation.send("client", bytes.fromhex("160301003a010000360303") + bytes(51))
    conversation.send("server", bytes.fromhex("160303003a020000360303") + bytes(51))
    conversation.send("client", bytes.fromhex("1703030020") + b"GET / HTTP/1.1\0" + bytes(17))
    conversation.close()
    return Capture(conversation.frames)


def data_in_syn() -> Capture:
    """TCP Fast Open: the request comes with the SYN (RFC 7413)."""
    conversation = Conversation()
    request = http_request()
    conversation.segment("client", SYN, request, seq=conversation.isn["client"], ack=0)
    conversation.sent["client"] = len(request)
    conversation.segment("server", SYN | ACK, seq=conversation.isn["server"])
    conversation.send("server", _text("fast"))
    conversation.segment("client", ACK | PSH)
    conversation.close()
    return Capture(conversation.frames)


# --- redaction


def redaction() -> Capture:
    """Credentials, cookies, and values of secret names in query and form: only names stay."""
    headers = (
        ("Host", "example.test"),
        ("Authorization", "Basic c2VjcmV0"),
        ("Proxy-Authorization", "Bearer secret"),
        ("Cookie", "sid=secret; theme=dark"),
        ("Referer", "http://user:secret@example.test/from?token=secret&page=2"),
        ("Content-Type", "application/x-www-form-urlencoded"),
    )
    request = http_request("POST", "/login?user=a&Password=secret&p=1", headers, b"user=a&%70assword=secret&note=hello")
    answer = (
        ("Set-Cookie", "sid=secret; Path=/"),
        ("set-cookie", "b=secret"),
        ("Location", "/home?session=secret&x=1"),
    )
    return _answer(_text("see there", *answer, status=303, reason="See Other"), request)


def redaction_off() -> Capture:
    """The same kind of exchange as it is, where the operator asks for it."""
    headers = (("Host", "example.test"), ("Authorization", "Basic c2VjcmV0"))
    request = http_request("GET", "/login?password=secret", headers)
    conversation = _exchange(request, _text("see there", ("Set-Cookie", "sid=secret")))
    return Capture(conversation.frames, {"record": {"redact": False}})


CAPTURES: dict[str, Callable[[], Capture]] = {
    name: function
    for name, function in inspect.getmembers(sys.modules[__name__], inspect.isfunction)
    if function.__module__ == __name__ and not name.startswith("_")
}
