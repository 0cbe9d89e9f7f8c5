"""Runs frames through the whole line in this process, without files: what came out is parsed, and the ledger is kept.

    result = run(conv.frames)
    result.records          the records as parsed JSON, in the order in which they came
    result.ledger           must be balanced: `run` has checked it
    comparable(record)      without what the order and time of arrival may change

DIALOGUES are what two HTTP programs say to each other, each in many shapes; `speak` makes frames of one.
"""

import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import msgspec
from http_capture.capture.frame_loop import MANY
from http_capture.capture.pipeline import Pipeline
from http_capture.capture.record import Record
from http_capture.capture.sink import SinkStats
from http_capture.capture.source import EndOfInput, SourceStats
from http_capture.capture.source.block import Block, Buffer
from http_capture.capture.stats import Ledger
from http_capture.config.settings import BodySettings, RecordSettings, Settings, TcpSettings
from traffic import Conversation, Side, chunked, http_request, http_response

Json = dict[str, Any]
Frame = tuple[int, bytes] | tuple[int, bytes, int] | tuple[int, bytes, int, int]
"""(timestamp_ns, bytes), then the link type where it is not that of the source, then the wire length."""

ALL_BODIES = Settings(body=BodySettings(keep="all"), tcp=TcpSettings(max_connections=1000))
"""For tests: bodies are part of what is compared, and the table of connections is quickly made."""
PLAIN = Settings(
    body=BodySettings(keep="all"), record=RecordSettings(redact=False), tcp=TcpSettings(max_connections=1000)
)

_decoder = msgspec.json.Decoder(Record, strict=True)


class Frames:
    """A source of frames in memory."""

    live = False

    def __init__(self, frames: Iterable[Frame], link: int = 1, per_block: int = 512) -> None:
        self.frames = iter(frames)
        self.link = link
        self.per_block = per_block
        self._stats = SourceStats()

    def read(self, timeout_seconds: float) -> Block:
        taken: list[Frame] = []
        for frame in self.frames:
            taken.append(frame)
            if len(taken) == self.per_block:
                break
        if not taken:
            raise EndOfInput
        block = Block(len(taken))
        block.lend(Buffer(b"".join(frame[1] for frame in taken)))
        at = 0
        for frame in taken:
            length = len(frame[1])
            wire = frame[3] if len(frame) > 3 else length
            block.add(at, length, wire, frame[0], frame[2] if len(frame) > 2 else self.link)
            at += length
        self._stats.received += len(taken)
        self._stats.bytes += at
        return block

    def stats(self) -> SourceStats:
        return self._stats

    def close(self) -> None:
        pass


class Kept:
    """A sink that keeps what it gets: (key, value, headers, timestamp_ms)."""

    def __init__(self) -> None:
        self.sent: list[tuple[bytes, bytes, list[tuple[str, bytes]], int]] = []
        self._stats = SinkStats()

    def send(self, key: bytes, value: bytes, headers: list[tuple[str, bytes]], timestamp_ms: int) -> None:
        self.sent.append((key, value, headers, timestamp_ms))
        self._stats.records += 1
        self._stats.bytes += len(value)
        self._stats.delivered += 1

    def poll(self) -> None:
        pass

    def flush(self, timeout_seconds: float) -> int:
        return 0

    def stats(self) -> SinkStats:
        return self._stats

    def close(self) -> None:
        pass


class Result:
    """What came of a run: `values` as bytes, `records` parsed."""

    def __init__(self, pipeline: Pipeline, sink: Kept) -> None:
        self.pipeline = pipeline
        self.sink = sink
        self.ledger: Ledger = pipeline.ledger()

    @property
    def values(self) -> list[bytes]:
        return [value for _, value, _, _ in self.sink.sent]

    @property
    def records(self) -> list[Json]:
        return [json.loads(value) for value in self.values]


def make(source: Any, settings: Settings = ALL_BODIES, sink: Any = None) -> Pipeline:
    return Pipeline(
        settings, source, Kept() if sink is None else sink, hostname="host", version="1", instance="instance"
    )


def run(
    frames: Iterable[Frame],
    settings: Settings = ALL_BODIES,
    *,
    link: int = 1,
    per_block: int = 512,
    each_block: Callable[[], None] = lambda: None,
    shares: Iterator[int] | None = None,
    many: int = MANY,
) -> Result:
    """Everything that the frames give. `shares`: what is kept of the connections, anew after each block. `many`: with
    so many open ones segments are decoded ahead. Asserts that the ledger balances, and that each record is as record.py
    says."""
    sink = Kept()
    pipeline = make(Frames(frames, link, per_block), settings, sink)
    pipeline.loop.many = many

    def after() -> None:
        each_block()
        if shares is not None:
            pipeline.loop.keep(next(shares))

    pipeline.run(lambda: False, after)
    pipeline.finish()
    result = Result(pipeline, sink)
    assert result.ledger.imbalances == []
    for value in result.values:
        strict(value)
    return result


def strict(value: bytes) -> Record:
    """The record, as its schema reads it. Raises where it is not JSON or not a record."""
    return _decoder.decode(value)


def comparable(record: Json, *, without: Sequence[str] = ()) -> Json:
    """The record without times and `retransmitted_bytes`. `without`: more of http_capture that is left out."""
    out = json.loads(json.dumps(record))
    del out["@timestamp"]
    for name in ("start", "end", "duration"):
        del out["event"][name]
    for name in ("timing", "retransmitted_bytes", *without):
        del out["http_capture"][name]
    return dict(out)


def comparables(records: Iterable[Json], *, without: Sequence[str] = ()) -> list[Json]:
    """All of them, in the order of their numbers on the wire rather than in that of their arrival."""
    return sorted((comparable(record, without=without) for record in records), key=lambda record: record["event"]["id"])


Dialogue = list[tuple[Side, bytes]]
"""Turns: who sends what, in order. One side's turn is sent when it has received all turns before it."""


def _marked(number: int, **arguments: Any) -> bytes:
    return http_request(target=f"/m{number}", headers=(("Host", "h"), ("X-M", f"m{number}")), **arguments)


def _answer(number: int, size: int = 20, **arguments: Any) -> bytes:
    return http_response(headers=(("X-M", f"m{number}"),), body=(b"m%d " % number * size)[:size], **arguments)


def _keep_alive() -> Dialogue:
    text = b"\r\n\r\nHTTP/1.1 200 OK\r\n\r\nGET /in/body HTTP/1.1\r\n\r\n"  # a body may look like anything
    chunks = (("Transfer-Encoding", "chunked"),)
    packed = gzip.compress(b"packed " * 40, mtime=0)
    return [
        ("client", http_request("GET", "/one?a=b&password=c", (("Host", "h"), ("Cookie", "a=b"), ("Cookie", "c=d")))),
        ("server", http_response(200, (("Content-Type", "text/plain"), ("Set-Cookie", "x=y")), text)),
        ("client", http_request("POST", "/two", chunks, chunked(text, 7, extension=';a="b"', trailers=(("T", "v"),)))),
        ("server", http_response(200, chunks, chunked(b"answer " * 9, 16, trailers=(("X", "y"), ("Z", ""))))),
        ("client", http_request("HEAD", "/three")),
        ("server", http_response(200, (("Content-Length", "5000"),), length=False)),
        ("client", http_request("DELETE", "/four")),
        ("server", http_response(204, reason="No Content")),
        ("client", http_request("GET", "/five", (("If-None-Match", '"x"'),))),
        ("server", http_response(304, (("Content-Length", "99"),), reason="Not Modified", length=False)),
        ("client", http_request("POST", "/six", (("Expect", "100-continue"), ("Content-Length", "6")))),
        ("server", b"HTTP/1.1 100 Continue\r\n\r\n"),
        ("client", b"sixsix"),
        ("server", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + http_response(201, body=b"made", reason="Made")),
        ("client", b"\r\n\r\nGET /seven HTTP/1.1\r\nHost: h\r\nFolded: a\r\n\tb\r\n  c\r\nX : y\r\n\r\n"),
        ("server", b"HTTP/1.1 200\r\nContent-Length: 3\r\nno field\r\nEmpty:\r\n\r\nabc"),
        ("client", b"GET /eight HTTP/1.1\nHost: h\n\n"),
        ("server", b"HTTP/1.1 200 OK\nContent-Length: 3\n\nabc"),
        ("client", http_request("PUT", "/nine", (("Content-Encoding", "gzip"),), packed)),
        ("server", http_response(200, (("Content-Encoding", "gzip"), *chunks), chunked(packed, 11))),
        (
            "client",
            http_request("POST", "/ten", (("Content-Type", "application/x-www-form-urlencoded"),), b"a=b&pin=1"),
        ),
        ("server", http_response(200, (("Content-Encoding", "deflate"),), zlib.compress(b"ten" * 30))),
        ("client", http_request("OPTIONS", "*", ())),
        ("server", http_response(200, (("Content-Encoding", "br"),), b"this is no brotli")),
        ("client", http_request("GET", "http://u:p@other:8080/absolute?sig=1", (("Host", "h"),), version="1.1")),
        ("server", http_response(404, (("Content-Type", "image/png"),), bytes(range(256)), reason="Not \xe9")),
        ("client", http_request("GET", "/last", (("Connection", "close"),))),
        ("server", http_response(200, (("Connection", "close"),), b"until the end " * 5, length=False)),
    ]


DIALOGUES: dict[str, Dialogue] = {
    "keep-alive": _keep_alive(),
    "pipelined": [
        ("client", _marked(0) + _marked(1, method="HEAD") + _marked(2, method="POST", body=b"m2 body")),
        ("server", _answer(0)),
        ("client", _marked(3)),
        ("server", _answer(1)[:-20] + _answer(2, 100) + http_response(304, (("X-M", "m3"),))),
        ("client", _marked(4) + _marked(5)),
        ("server", _answer(4, 0) + _answer(5)),
    ],
    "connect": [
        ("client", http_request("CONNECT", "h:443", (("Host", "h:443"),))),
        ("server", http_response(407, body=b"who?", reason="Proxy Authentication Required")),
        ("client", http_request("CONNECT", "h:443", (("Host", "h:443"), ("Proxy-Authorization", "Basic eA==")))),
        ("server", http_response(200, reason="Connection established", length=False)),
        ("client", b"\x16\x03\x01GET / HTTP/1.1\r\n\r\n" + bytes(range(256))),
        ("server", b"HTTP/1.1 200 OK\r\n\r\n" + bytes(range(256))),
    ],
    "inside": [
        ("client", http_request("CONNECT", "h:80", (("Host", "h:80"),))),
        ("server", http_response(200, reason="Connection established", length=False)),
        ("client", _marked(0) + _marked(1)),
        ("server", _answer(0) + _answer(1)),
        ("client", http_request("CONNECT", "i:22", (("Host", "i:22"),)) + b"SSH-2.0-OpenSSH_9\r\n"),
        ("server", http_response(200, reason="OK", length=False) + b"SSH-2.0-OpenSSH_9\r\n"),
    ],
    "socks": [
        ("client", b"\5\2\0\2"),
        ("server", b"\5\2"),
        ("client", b"\1\4user\6secret"),
        ("server", b"\1\0"),
        ("client", b"\5\1\0\3\x0borigin.test\0\x50"),
        ("server", b"\5\0\0\1\x0a\0\0\2\x12\x34"),
        ("client", _marked(0)),
        ("server", _answer(0)),
    ],
    "socks 4": [
        ("client", b"\4\1\0\x50\0\0\0\1me\0origin.test\0" + _marked(0)),
        ("server", b"\0\x5a\0\0\0\0\0\0" + _answer(0)),
    ],
    "upgrade": [
        ("client", http_request("GET", "/chat", (("Connection", "Upgrade"), ("Upgrade", "websocket")))),
        ("server", http_response(101, (("Connection", "Upgrade"), ("Upgrade", "websocket")), reason="Switching")),
        ("client", b"\x81\x85GET / HTTP/1.1\r\n\r\n"),
        ("server", b"\x81\x05HTTP/1.1 200 OK\r\n\r\n"),
    ],
    "1.0": [
        ("client", http_request("GET", "/a", (("Connection", "keep-alive"),), version="1.0")),
        ("server", http_response(200, (("Connection", "keep-alive"),), b"ten", "1.0")),
        ("client", http_request("GET", "/b", (), version="1.0")),
        ("server", http_response(200, (), b"until the end\r\n" * 20, "1.0", length=False)),
    ],
    "0.9": [
        ("client", b"GET /old\r\n"),
        ("server", b"<html>HTTP/1.1 200 OK\r\n\r\n</html>"),
    ],
    "early answer": [
        ("client", http_request("POST", "/large", (("Content-Length", "60"),), b"x" * 20)),
        ("server", http_response(413, (("Connection", "close"),), b"too large", reason="Too Large")),
        ("client", b"x" * 40),
    ],
    "not whole": [
        ("client", http_request("POST", "/cut", (("Content-Length", "60"),), b"x" * 20)),
    ],
    "not HTTP": [
        ("client", bytes(range(200)) * 3),
        ("server", bytes(range(100, 256)) * 3),
    ],
    "malformed": [
        ("client", http_request("GET", "/a")),
        ("server", http_response(200, (("Transfer-Encoding", "chunked"),), b"5\r\nhello\r\nxyz\r\nno chunk\r\n\r\n")),
        ("client", http_request("GET", "/b")),
        ("server", http_response(200, body=b"found again")),
        ("client", http_request("POST", "/c", (("Content-Length", "1, 2"),), b"what?\r\n")),
        ("server", http_response(400, body=b"no", reason="Bad Request")),
    ],
}


def speak(conv: Conversation, dialogue: Dialogue, *, cut: Callable[[bytes], list[bytes]] | None = None) -> Conversation:
    """Sends a dialogue, with handshake and end. `cut` says in which pieces each turn is sent."""
    conv.handshake()
    for side, turn in dialogue:
        for piece in [turn] if cut is None else cut(turn):
            conv.send(side, piece)
    conv.close("server")
    return conv
