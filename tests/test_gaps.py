"""A gap at every byte offset of a connection of three exchanges: never a wrong pair, and nothing lost that was there.

Each connection of CONNECTIONS is sent once for each offset of each direction (each third, where it runs uncompiled) and
each of GAPS: exactly these bytes are not captured (segments are cut around them), and the other side acknowledges past
them.

A message is touched by the gap if a byte of it is missing, an exchange if one of its messages is. What each message is,
is told by the sequence number of its first byte, not by its content: so a record cannot be right by chance.

What must hold, by the rules of capture/http/exchange.py:
- `pairs`: a request and a response in one record are those that belong together; never a phantom (bytes inside of a
  body that look like a message) with a real one.
- `present`: each message that is not touched is in exactly one record, whole and with its own bytes, paired or not
  (but for the response to a HEAD that is touched: nobody can tell where it ends).
- `certain`: an untouched exchange is one complete record where the pairing is certain:
    - the gap is inside of body bytes whose framing is known (by length, of a chunk, or until the end);
    - or its response was sent before the missing bytes (of the requests), or ends before them (of the responses);
    - or the client does not pipeline and the gap touches one exchange only.
  In all other cases (a pipelining client after a loss in a head or in chunk framing) present means: maybe one-sided.
- Bytes and messages: each byte is in one counter, each message in one exchange.

KNOWN is where this does not hold yet, each with its cause.
"""

import itertools
import os
from dataclasses import dataclass, field
from functools import cache

import pytest
from _pytest.mark import ParameterSet
from http_capture.capture.connection import ConnectionTable
from http_capture.capture.decode import Decoder
from http_capture.capture.http.exchange import Exchange, HttpApplication
from http_capture.capture.http.message import Message
from http_capture.capture.http.parser import Limits
from http_capture.capture.reassembly import Reassembly
from http_capture.capture.source.block import Block, Buffer
from traffic import Conversation, Side, chunked

COMPILED = os.environ.get("HTTP_CAPTURE_TESTED") == "compiled"
MS = 1_000_000
GAPS = ((1, 1460), (7, 1460), (25, 25), (70, 1460))
"""(bytes, segment size): one byte, some, exactly one segment, more than a message."""

Order = tuple[tuple[Side, tuple[int, ...]], ...]
ORDERS: dict[str, Order] = {
    "pipelined": (("client", (1, 2, 3)), ("server", (1, 2, 3))),
    "in turn": tuple((side, (k,)) for k in (1, 2, 3) for side in ("client", "server")),  # type: ignore[misc]
    "overlapping": (("client", (1, 2)), ("server", (1,)), ("client", (3,)), ("server", (2, 3))),
}


@dataclass
class Sent:
    """A message as it is sent: `spans` of its bytes are body bytes whose framing is known."""

    head: bytes
    body: bytes = b""
    wire: bytes = b""
    spans: list[tuple[int, int]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.head) + len(self.wire)


def message(first: str, k: int, body: bytes = b"", *, chunk: int = 0, length: int | None = None) -> Sent:
    """length: what Content-Length says, where it is not that of the body; -1: there is none."""
    framing = f"Content-Length: {len(body) if length is None else length}\r\n"
    wire = body
    if chunk:
        framing = "Transfer-Encoding: chunked\r\n"
        wire = chunked(body, chunk)
    elif length == -1 or (not body and length is None and not first.startswith("HTTP")):
        framing = ""
    sent = Sent(f"{first}\r\nX-M: {k}\r\n{framing}\r\n".encode(), body, wire)
    if wire and not chunk:
        sent.spans.append((len(sent.head), len(sent)))
    for at in range(0, len(body) if chunk else 0, chunk or 1):
        start = len(sent.head) + at // chunk * (chunk + 5) + 3
        sent.spans.append((start, start + len(body[at : at + chunk])))
    return sent


def get(k: int) -> Sent:
    return message(f"GET /{k} HTTP/1.1", k)


def ok(k: int, body: bytes, **arguments: int) -> Sent:
    return message("HTTP/1.1 200 OK", k, body, **arguments)


BODY = {k: b"body %d, " % k * 2 for k in (1, 2, 3)}
FAKE = b"\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nGET /9 HTTP/1.1\r\n\r\n"
CONNECTIONS: dict[str, tuple[list[Sent], list[Sent]]] = {
    "Content-Length": ([get(1), get(2), get(3)], [ok(k, BODY[k]) for k in BODY]),
    "chunked": ([get(1), get(2), get(3)], [ok(k, BODY[k], chunk=7) for k in BODY]),
    "mixed": (
        [get(1), message("POST /2 HTTP/1.1", 2, BODY[2]), get(3)],
        [ok(1, BODY[1], chunk=7), ok(2, b""), ok(3, BODY[3])],
    ),
    "HEAD": (
        [get(1), message("HEAD /2 HTTP/1.1", 2), get(3)],
        [ok(1, BODY[1]), ok(2, b"", length=30), ok(3, BODY[3])],
    ),
    "no content": (
        [get(1), get(2), get(3)],
        [
            message("HTTP/1.1 204 No Content", 1, length=-1),
            message("HTTP/1.1 304 Not Modified", 2, length=50),
            ok(3, BODY[3]),
        ],
    ),
    "POST": (
        [
            message("POST /1 HTTP/1.1", 1, BODY[1]),
            message("PUT /2 HTTP/1.1", 2, BODY[2], chunk=7),
            message("POST /3 HTTP/1.1", 3, BODY[3]),
        ],
        [ok(k, BODY[k]) for k in BODY],
    ),
    "until the end": ([get(1), get(2), get(3)], [ok(1, BODY[1]), ok(2, BODY[2]), ok(3, BODY[3], length=-1)]),
    "bodies like messages": (
        [message(f"POST /{k} HTTP/1.1", k, FAKE) for k in BODY],
        [ok(k, FAKE) for k in BODY],
    ),
}


@dataclass
class Outcome:
    """What a gap at `at` did. wrong: (request, response) numbers of wrong pairs, -1 a phantom; absent: (side, number)
    of untouched messages that are not in exactly one record, whole; uncertain: exchanges that had to be complete."""

    at: int
    size: int
    wrong: list[tuple[int, int]]
    absent: list[tuple[Side, int]]
    uncertain: list[int]


def frames_of(name: str, order: str, side: Side, at: int, size: int, mss: int) -> Conversation:
    """The connection, without bytes at to at + size of this side's stream."""
    conv = Conversation(step_ns=1000)
    conv.handshake()
    here: dict[Side, int] = {"client": 0, "server": 0}
    for who, numbers in ORDERS[order]:
        turn = b"".join(sent.head + sent.wire for sent in (CONNECTIONS[name][who == "server"][k - 1] for k in numbers))
        first, end = here[who], here[who] + len(turn)
        start = stop = end
        if who == side and at < end and at + size > first:
            start, stop = max(at, first), min(at + size, end)
        for low, high, drop in ((first, start, False), (start, stop, True), (stop, end, False)):
            conv.send(who, turn[low - first : high - first], mss=mss, drop=drop)
        here[who] = end
    conv.ack("client")
    conv.close("server")
    return conv


def exchanges_of(conv: Conversation) -> list[Exchange]:
    """The exchanges of these frames, which are one connection. Asserts that all bytes and messages are counted."""
    exchanges: list[Exchange] = []
    limits = Limits(keep=2)
    application = HttpApplication(limits, exchanges.append)
    reassembly = Reassembly(1 << 20, 1 << 20)
    table = ConnectionTable(
        application, reassembly, max_connections=16, reorder_ns=10_000,
        handshake_timeout_ns=MS, idle_timeout_ns=MS, closing_timeout_ns=MS,
    )  # fmt: skip
    decoder = Decoder()
    block = Block(len(conv.frames))
    block.lend(Buffer(b"".join(frame for _, frame in conv.frames)))
    at = 0
    for timestamp_ns, frame in conv.frames:
        block.add(at, len(frame), len(frame), timestamp_ns, 1)
        at += len(frame)
    for i in range(block.count):
        assert decoder.decode(block, i) == 0
        table.segment(decoder.segment)
    table.shutdown()
    counted = limits.head_bytes + limits.body_bytes + limits.framing_bytes + limits.tunnel_bytes + limits.skipped_bytes
    assert counted == reassembly.delivered_bytes
    assert limits.pending_bytes == reassembly.buffered_bytes == 0
    assert limits.requests == application.paired + application.only_request
    assert limits.responses == application.paired + application.only_response
    return exchanges


def touched_by(messages: list[Sent], at: int, size: int) -> tuple[set[int], bool]:
    """The numbers of the messages that lack bytes, and whether all that is missing is body of known framing."""
    touched = set()
    inside = False
    start = 0
    for k, sent in enumerate(messages, 1):
        if at < start + len(sent) and at + size > start:
            touched.add(k)
            inside = inside or any(start + low <= at and at + size <= start + high for low, high in sent.spans)
        start += len(sent)
    return touched, inside


def whole(got: Message, sent: Sent) -> bool:
    body = bytes(got.kept or b"")[: got.kept_bytes]
    return got.incomplete == 0 and got.head == sent.head and body == sent.body and got.gap_bytes == 0


def outcome(name: str, order: str, side: Side, at: int, size: int, mss: int) -> Outcome:
    conv = frames_of(name, order, side, at, size, mss)
    number: dict[Side, dict[int, int]] = {"client": {}, "server": {}}
    for who, messages in zip(number, CONNECTIONS[name], strict=True):
        start = 0
        for k, sent in enumerate(messages, 1):
            number[who][conv.number(who, start)] = k
            start += len(sent)
    touched, inside = touched_by(CONNECTIONS[name][side == "server"], at, size)
    wrong = []
    seen: dict[tuple[Side, int], int] = {}
    complete = set()
    for exchange in exchanges_of(conv):
        pair = []
        sides: tuple[tuple[Side, Message | None], ...] = (("client", exchange.request), ("server", exchange.response))
        for who, got in sides:
            k = 0 if got is None else number[who].get(got.seq, -1)
            pair.append(k)
            if k > 0 and got is not None:
                right = whole(got, CONNECTIONS[name][who == "server"][k - 1])
                seen[who, k] = seen.get((who, k), 0) + (1 if right else 2)
        if all(pair) and (pair[0] != pair[1] or pair[0] < 0):
            wrong.append((pair[0], pair[1]))
        elif all(pair) and exchange.complete:
            complete.add(pair[0])
    untouched = {1, 2, 3} - touched
    absent: list[tuple[Side, int]] = []
    for who, k in ((who, k) for who in number for k in (1, 2, 3)):
        if who == side and k in touched:
            continue
        if who == "server" and k in touched and CONNECTIONS[name][0][k - 1].head.startswith(b"HEAD"):
            continue  # without its request nobody can tell where it ends
        if seen.get((who, k), 0) != 1:
            absent.append((who, k))
    turns = ORDERS[order]
    lost_in = next(i for i, turn in enumerate(turns) if turn[0] == side and min(touched) in turn[1])
    certain = {
        k
        for k in untouched
        if inside
        or (side == "server" and k < min(touched))
        or (side == "client" and any(turn[0] == "server" and k in turn[1] for turn in turns[:lost_in]))
        or (order == "in turn" and len(touched) == 1)
    }
    return Outcome(at, size, wrong, absent, sorted(certain - complete))


@cache
def outcomes(name: str, order: str, side: Side) -> list[Outcome]:
    total = sum(map(len, CONNECTIONS[name][side == "server"]))
    step = 1 if COMPILED else 3
    return [outcome(name, order, side, at, size, mss) for size, mss in GAPS for at in range(0, total - size + 1, step)]


PHANTOM = (
    "a request in a body, whose head the gap hit, looks like one that the next request was pipelined behind: the "
    "client is taken for one that pipelines, and both stay one-sided"
)
KNOWN: dict[tuple[str, str, str, str], str] = {
    ("certain", "bodies like messages", "in turn", "client"): PHANTOM,
}
"""(test, connection, order, side of the gap): why it does not hold. A repair takes its entry out: xfail is strict."""


def cases(kind: str) -> list[ParameterSet]:
    out = []
    for name, order, side in itertools.product(CONNECTIONS, ORDERS, ("client", "server")):
        reason = KNOWN.get((kind, name, order, side))
        marks = [pytest.mark.xfail(strict=True, reason=reason)] if reason else []
        out.append(pytest.param(name, order, side, marks=marks, id=f"{name}, {order}, {side}"))
    return out


@pytest.mark.parametrize(("name", "order", "side"), cases("pairs"))
def test_never_a_wrong_pair(name: str, order: str, side: Side) -> None:
    assert [(o.at, o.size, o.wrong) for o in outcomes(name, order, side) if o.wrong] == []


@pytest.mark.parametrize(("name", "order", "side"), cases("present"))
def test_what_the_gap_does_not_touch_is_present(name: str, order: str, side: Side) -> None:
    assert [(o.at, o.size, o.absent) for o in outcomes(name, order, side) if o.absent] == []


@pytest.mark.parametrize(("name", "order", "side"), cases("certain"))
def test_what_is_certain_is_complete(name: str, order: str, side: Side) -> None:
    assert [(o.at, o.size, o.uncertain) for o in outcomes(name, order, side) if o.uncertain] == []


@pytest.mark.parametrize("name", CONNECTIONS)
@pytest.mark.parametrize("order", ORDERS)
def test_without_a_gap_all_is_complete(name: str, order: str) -> None:
    """The connections are what they say, and so are the spans."""
    exchanges = exchanges_of(frames_of(name, order, "client", 10_000, 0, 1460))
    assert [(e.complete, e.request.head, e.response.head) for e in exchanges] == [
        (True, request.head, response.head) for request, response in zip(*CONNECTIONS[name], strict=True)
    ]
    for messages in CONNECTIONS[name]:
        for sent in messages:
            assert b"".join((sent.head + sent.wire)[low:high] for low, high in sent.spans) == sent.body
