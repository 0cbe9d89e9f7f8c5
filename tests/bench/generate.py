"""Two captures of HTTP/1.1 over IPv4 for measuring: the same bytes on every machine, and what must come out of them.

    python tests/bench/generate.py mixed|short PATH [--frames N | --exchanges N]

mixed   keep-alive connections, interleaved; exchanges of mixed size (see KINDS and README.md)
short   one small exchange a connection, 12 frames: handshake, request, response in two segments, both FINs

Classic pcap, little-endian, microseconds, Ethernet, checksums right, no loss, no reordering; the clock runs at 1 Gbit/s
of line rate. `exchanges()` gives what must come out, without writing anything.
"""

import argparse
import random
import struct
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

FRAMES = 1_000_000
MSS = 1460
MIXED_CONNECTIONS = 300
MIXED_ACTIVE = 24  # connections of `mixed` that are in the middle of an exchange at any moment
SHORT_ACTIVE = 64  # connections of `short` that are open at any moment
SHORT_FRAMES = 12
OPEN_FRAMES = 3
CLOSE_FRAMES = 4
CHUNK_BYTES = 4096
START_SECONDS = 1_700_000_000
PCAP_HEADER = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262144, 1)
SEED = 20240229


class Kind(NamedTuple):
    """A kind of response: `weight` of 100, body size lognormal around `median_bytes`, cut to the limits."""

    name: str
    weight: float
    content_type: str
    extension: str
    median_bytes: int
    sigma: float
    least_bytes: int
    most_bytes: int
    chunked: float  # share of responses in chunks


KINDS = (
    Kind("json", 46, "application/json", "", 900, 0.9, 200, 32_000, 0.15),
    Kind("html", 14, "text/html; charset=utf-8", ".html", 5_000, 0.8, 800, 120_000, 0.5),
    Kind("javascript", 9, "application/javascript", ".js", 7_000, 0.9, 400, 250_000, 0.0),
    Kind("css", 5, "text/css", ".css", 4_500, 0.9, 300, 100_000, 0.0),
    Kind("image", 16, "image/jpeg", ".jpg", 15_000, 1.0, 400, 400_000, 0.0),
    Kind("binary", 1.5, "application/octet-stream", ".bin", 70_000, 1.0, 10_000, 600_000, 0.0),
    Kind("empty", 8.5, "", ".html", 0, 0.0, 0, 0, 0.0),  # 304, and 204 after a POST
)
WEIGHTS = tuple(kind.weight for kind in KINDS)
POST_SHARE = 0.25  # of json and empty exchanges
HEAD_SHARE = 0.03  # of html, css, javascript


class Exchange(NamedTuple):
    """What the record of one exchange must say. Body sizes are transfer-decoded, as in the record."""

    number: int  # in the capture, from 0; also in the target, so every target is there once
    client: tuple[str, int]
    server: tuple[str, int]
    position: int  # in its connection, from 0
    method: str
    target: str
    status: int
    kind: str
    content_type: str
    request_body_bytes: int
    response_body_bytes: int
    chunked: bool


def exchanges(
    name: str, *, frames: int | None = None, count: int | None = None, seed: int = SEED
) -> Iterator[Exchange]:
    """The exchanges of the capture in the order of their numbers; bounded by frames (default FRAMES) or by count."""
    if name not in ("mixed", "short"):
        raise ValueError(f"no such capture: {name!r}; there are mixed and short")
    if frames is None and count is None:
        frames = FRAMES
    rng = random.Random(seed)
    if name == "short":
        for number in range(count if count is not None else (frames or 0) // SHORT_FRAMES):
            yield _short(rng, number)
        return
    lengths = [0] * MIXED_CONNECTIONS  # exchanges so far
    planned = 0
    number = 0
    while count is None or number < count:
        connection = rng.randrange(MIXED_CONNECTIONS)
        exchange = _mixed(rng, number, connection, lengths[connection])
        if frames is not None:
            planned += _exchange_frames(exchange) + (0 if exchange.position else OPEN_FRAMES + CLOSE_FRAMES)
            if planned > frames:
                return
        yield exchange
        lengths[connection] += 1
        number += 1


def write(
    name: str,
    path: Path,
    *,
    frames: int | None = None,
    count: int | None = None,
    start_seconds: int = START_SECONDS,
    seed: int = SEED,
) -> tuple[int, int]:
    """Writes the capture, its first frame at `start_seconds` of the epoch. Returns (frames, exchanges)."""
    written = made = 0

    def counted() -> Iterator[Exchange]:
        nonlocal made
        for exchange in exchanges(name, frames=frames, count=count, seed=seed):
            made += 1
            yield exchange

    with Path(path).open("wb") as out:
        out.write(PCAP_HEADER)
        pieces: list[bytes] = []
        clock_ns = start_seconds * 1_000_000_000
        header = struct.Struct("<IIII").pack
        for frame in _interleave(name, counted(), seed):
            size = len(frame)
            clock_ns += (size + 24) * 8  # preamble, checksum and gap of Ethernet take 24 bytes of time
            pieces.append(header(clock_ns // 1_000_000_000, clock_ns // 1000 % 1_000_000, size, size))
            pieces.append(frame)
            written += 1
            if len(pieces) >= 4096:
                out.write(b"".join(pieces))
                pieces.clear()
        out.write(b"".join(pieces))
    return written, made


# The plan: which exchanges there are. Sizes only; the bytes are made when they are written.


def _short(rng: random.Random, number: int) -> Exchange:
    client = (f"10.{64 + (number >> 16)}.{number >> 8 & 255}.{number & 255}", 32768 + number * 7 % 28000)
    server = (f"10.1.0.{number % 20 + 1}", 80)
    return Exchange(
        number, client, server, 0, "GET", f"/api/v1/ping/{number}?n={rng.randrange(10**6):06d}", 200, "json",
        "application/json", 0, rng.randrange(90, 190), False,
    )  # fmt: skip


def _mixed(rng: random.Random, number: int, connection: int, position: int) -> Exchange:
    kind = rng.choices(KINDS, WEIGHTS)[0]
    size = 0
    if kind.median_bytes:
        size = int(rng.lognormvariate(0.0, kind.sigma) * kind.median_bytes)
        size = min(max(size, kind.least_bytes), kind.most_bytes)
    method, status, body = "GET", 200, 0
    if kind.name in ("json", "empty") and rng.random() < POST_SHARE:
        method, body = "POST", rng.randrange(80, 2500)
        status = 201 if size else 204
    elif kind.name == "empty":
        status = 304
    elif kind.name in ("html", "css", "javascript") and rng.random() < HEAD_SHARE:
        method = "HEAD"
    elif kind.name == "json" and rng.random() < 0.04:
        status = rng.choice((400, 404, 404, 404, 500, 503))
    chunked = size > 0 and method != "HEAD" and rng.random() < kind.chunked
    if kind.extension:
        target = f"/static/{kind.name}/{rng.randrange(16**8):08x}/{number}{kind.extension}"
    else:
        target = f"/api/v2/accounts/{rng.randrange(10**6)}/orders/{number}?page={position}&limit=50&sort=created_at"
    client = (f"10.20.{connection >> 8}.{connection & 255}", 40000 + connection * 17)
    server = (f"10.1.0.{connection % 12 + 1}", 8080 if connection % 3 else 80)
    return Exchange(
        number, client, server, position, method, target, status, kind.name, kind.content_type, body,
        0 if method == "HEAD" else size, chunked,
    )  # fmt: skip


def _exchange_frames(exchange: Exchange) -> int:
    """How many frames `_exchange` makes of a `mixed` exchange."""
    request, response = _messages(exchange)
    data = _segments(len(request)), _segments(len(response))
    return data[0] + data[1] + _acks(data[0]) + _acks(data[1])


def _segments(size: int) -> int:
    return -(-size // MSS)


def _acks(segments: int) -> int:
    """An ACK for every second segment and for an odd last one; a single segment is acknowledged by what follows."""
    return -(-segments // 2) if segments > 1 else 0


# The bytes of the messages.

_WORDS = [
    "account", "order", "total", "created", "updated", "customer", "invoice", "shipping", "address",
    "status", "pending", "complete", "quantity", "price", "currency", "warehouse", "reference", "discount",
    "amount", "country", "region", "postal", "code", "phone", "number",
]  # fmt: skip
_AGENTS = (
    "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36",
    "python-requests/2.32.3 (inventory-sync; build 4711; worker pool) CPython/3.11.7 Linux/6.1.0-21-amd64",
)
_POOL_BYTES = 1 << 20


def _pools() -> dict[str, bytes]:
    """A text or noise of 1 MiB for each kind; every body is a slice of one."""
    rng = random.Random(SEED + 1)
    shapes = {  # three words and a number
        "json": '{{"{}": "{} {}", "id": {}}},',
        "html": '<div class="{}"><p>{} of {}</p><span>{}</span></div>\n',
        "javascript": "function {}(a, b) {{ return a.{} + b.{} + {}; }}\n",
        "css": ".{} .{} .{} {{ margin: {}px; color: #333; }}\n",
    }
    pools = {"image": rng.randbytes(_POOL_BYTES), "binary": rng.randbytes(_POOL_BYTES)}
    for name, shape in shapes.items():
        text = "".join(shape.format(*rng.choices(_WORDS, k=3), rng.randrange(1000)) for _ in range(2000))
        pools[name] = (text * (_POOL_BYTES // len(text) + 1))[:_POOL_BYTES].encode()
    return pools


_POOLS = _pools()


def _body(kind: str, number: int, size: int) -> bytes:
    start = number * 7919 % (_POOL_BYTES - size)
    return _POOLS[kind][start : start + size]


def _messages(exchange: Exchange) -> tuple[bytes, bytes]:
    """Request and response as they are on the wire. 10 to 14 headers in the request, about 10 in the response."""
    n = exchange.number
    mark = f"{n * 2654435761 % 2**32:08x}"
    lines = [
        f"{exchange.method} {exchange.target} HTTP/1.1",
        f"Host: app{n % 12}.example.internal:{exchange.server[1]}",
        f"User-Agent: {_AGENTS[n % 3]}",
        "Accept: "
        + ("application/json, text/plain, */*" if exchange.kind == "json" else "text/html,image/webp,*/*;q=0.8"),
        "Accept-Language: en-US,en;q=0.7,de;q=0.3",
        "Accept-Encoding: identity",
        "Connection: keep-alive",
        f"Referer: http://app{n % 12}.example.internal/catalogue/page/{n % 977}",
        f"Cookie: session={mark}{mark}; theme=light; locale=en_GB",
        f"X-Request-ID: {mark}-0000-4000-8000-{n:012x}",
        f"traceparent: 00-{n:032x}-{n:016x}-01",
    ]
    if n % 2:
        lines += ["Cache-Control: no-cache", "Pragma: no-cache"]
    body = b""
    if exchange.request_body_bytes:
        body = _body("json", n + 1, exchange.request_body_bytes)
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    elif exchange.status == 304:
        lines.append(f'If-None-Match: "{mark}"')
    request = ("\r\n".join(lines) + "\r\n\r\n").encode() + body

    content = _body(exchange.kind, n, exchange.response_body_bytes) if exchange.response_body_bytes else b""
    lines = [
        f"HTTP/1.1 {exchange.status} {_REASONS[exchange.status]}",
        "Date: Thu, 29 Feb 2024 12:00:00 GMT",
        "Server: nginx/1.24.0",
        "Connection: keep-alive",
        f"X-Request-ID: {mark}-0000-4000-8000-{n:012x}",
        "Cache-Control: private, max-age=60",
        "Vary: Accept-Encoding, Origin",
        "X-Content-Type-Options: nosniff",
        f'ETag: "{mark}"',
    ]
    if exchange.content_type:
        lines.append(f"Content-Type: {exchange.content_type}")
    if exchange.chunked:
        lines.append("Transfer-Encoding: chunked")
        content = _chunks(content)
    elif exchange.method == "HEAD":
        lines.append(f"Content-Length: {1000 + n % 5000}")
    elif exchange.status not in (204, 304):
        lines.append(f"Content-Length: {len(content)}")
    return request, ("\r\n".join(lines) + "\r\n\r\n").encode() + content


def _short_messages(exchange: Exchange) -> tuple[bytes, bytes, bytes]:
    """Request, head of the response and its body, of an exchange of `short`."""
    number, size = exchange.number, exchange.response_body_bytes
    request = (
        f"GET {exchange.target} HTTP/1.1\r\nHost: ping.example.internal\r\nUser-Agent: {_AGENTS[number % 3]}\r\n"
        f"Accept: application/json\r\nAccept-Encoding: identity\r\nX-Request-ID: {number:032x}\r\n"
        f"traceparent: 00-{number:032x}-{number:016x}-01\r\nConnection: close\r\n\r\n"
    )
    head = (
        "HTTP/1.1 200 OK\r\nDate: Thu, 29 Feb 2024 12:00:00 GMT\r\nServer: nginx/1.24.0\r\n"
        f"Content-Type: application/json\r\nContent-Length: {size}\r\nX-Request-ID: {number:032x}\r\n"
        "Cache-Control: no-store\r\nConnection: close\r\n\r\n"
    )
    return request.encode(), head.encode(), _body("json", number, size)


def messages(name: str, exchange: Exchange) -> tuple[bytes, bytes]:
    """Request and response of an exchange of that capture, as they are on the wire."""
    if name == "short":
        request, head, body = _short_messages(exchange)
        return request, head + body
    return _messages(exchange)


def bodies(exchange: Exchange) -> tuple[bytes, bytes]:
    """Both bodies without their transfer coding."""
    request, response = exchange.request_body_bytes, exchange.response_body_bytes
    return (
        _body("json", exchange.number + 1, request) if request else b"",
        _body(exchange.kind, exchange.number, response) if response else b"",
    )


_REASONS = {
    200: "OK", 201: "Created", 204: "No Content", 304: "Not Modified", 400: "Bad Request", 404: "Not Found",
    500: "Internal Server Error", 503: "Service Unavailable",
}  # fmt: skip


def _chunks(body: bytes) -> bytes:
    pieces = []
    for start in range(0, len(body), CHUNK_BYTES):
        piece = body[start : start + CHUNK_BYTES]
        pieces += [f"{len(piece):x}\r\n".encode(), piece, b"\r\n"]
    return b"".join([*pieces, b"0\r\n\r\n"])


# The frames.

_SYN, _FIN, _PSH, _ACK = 2, 1, 8, 16
_FRAME = struct.Struct(">14sHHHHHH8s4sIIHHHH").pack
_SYN_OPTIONS = struct.pack(">BBHBBBBBBBB", 2, 4, MSS, 4, 2, 1, 1, 1, 3, 3, 7)  # MSS, SACK permitted, window scale
_WINDOW = 502


def _sum16(data: bytes) -> int:
    """The ones' complement sum of big-endian words, modulo 65535; an odd byte counts as the high half of a word."""
    total = int.from_bytes(data, "big") % 65535
    return total * 256 % 65535 if len(data) % 2 else total


class _Half:
    """One direction of a connection: makes its frames. `seq` is of the next byte to be sent."""

    __slots__ = ("addresses", "ethernet", "ident", "ip_sum", "ports", "seq", "tcp_sum")

    def __init__(self, source: tuple[str, int], destination: tuple[str, int], seq: int) -> None:
        self.addresses = _address(source[0]) + _address(destination[0])
        self.ports = struct.pack(">HH", source[1], destination[1])
        self.ethernet = b"\x02\x00" + self.addresses[4:] + b"\x02\x00" + self.addresses[:4] + b"\x08\x00"
        self.seq = seq
        self.ident = seq & 0xFFFF
        addresses = _sum16(self.addresses)
        self.ip_sum = 0x4500 + 0x4000 + 0x4006 + addresses
        self.tcp_sum = 6 + addresses + _sum16(self.ports) + _WINDOW

    def frame(self, ack: int, flags: int, payload: bytes = b"", options: bytes = b"") -> bytes:
        """The next frame of this direction."""
        rest = options + payload if options else payload
        size = 20 + len(rest)
        seq = self.seq
        offset_flags = (5 + len(options) // 4) << 12 | flags
        ident = self.ident
        ip_sum = self.ip_sum + 20 + size + ident
        tcp_sum = (
            self.tcp_sum + size + (seq >> 16) + (seq & 0xFFFF) + (ack >> 16) + (ack & 0xFFFF) + offset_flags
            + (_sum16(rest) if rest else 0)
        )  # fmt: skip
        self.ident = ident + 1 & 0xFFFF
        self.seq = seq + len(payload) + (1 if flags & 3 else 0) & 0xFFFFFFFF
        return (
            _FRAME(
                self.ethernet, 0x4500, 20 + size, ident, 0x4000, 0x4006, -ip_sum % 65535, self.addresses, self.ports,
                seq, ack, offset_flags, _WINDOW, -tcp_sum % 65535, 0,
            )
            + rest
        )  # fmt: skip


def _address(text: str) -> bytes:
    return bytes(int(part) for part in text.split("."))


def _open(client: _Half, server: _Half) -> Iterator[bytes]:
    yield client.frame(0, _SYN, options=_SYN_OPTIONS)
    yield server.frame(client.seq, _SYN | _ACK, options=_SYN_OPTIONS)
    yield client.frame(server.seq, _ACK)


def _close(first: _Half, second: _Half) -> Iterator[bytes]:
    yield first.frame(second.seq, _FIN | _ACK)
    yield second.frame(first.seq, _ACK)
    yield second.frame(first.seq, _FIN | _ACK)
    yield first.frame(second.seq, _ACK)


def _send(sender: _Half, receiver: _Half, message: bytes) -> Iterator[bytes]:
    """One message in segments of MSS, with the ACKs that `_acks` counts."""
    size = len(message)
    for start in range(0, size, MSS):
        last = start + MSS >= size
        yield sender.frame(receiver.seq, _ACK | _PSH if last else _ACK, message[start : start + MSS])
        if size > MSS and (last or start // MSS % 2):
            yield receiver.frame(sender.seq, _ACK)


def _exchange(client: _Half, server: _Half, exchange: Exchange) -> Iterator[bytes]:
    request, response = _messages(exchange)
    yield from _send(client, server, request)
    yield from _send(server, client, response)


def _short_connection(exchange: Exchange) -> Iterator[bytes]:
    client, server = _halves(exchange)
    yield from _open(client, server)
    request, head, body = _short_messages(exchange)
    yield client.frame(server.seq, _ACK | _PSH, request)
    yield server.frame(client.seq, _ACK)
    yield server.frame(client.seq, _ACK | _PSH, head)
    yield server.frame(client.seq, _ACK | _PSH, body)
    yield client.frame(server.seq, _ACK)
    yield from _close(server, client)


def _halves(exchange: Exchange) -> tuple[_Half, _Half]:
    """Both directions. The server's sequence numbers of every 16th connection soon pass 2**32."""
    seed = exchange.number * 2654435761 + 12345
    client = _Half(exchange.client, exchange.server, seed & 0xFFFFFFFF)
    passing = exchange.number % 16 == 0
    server = _Half(exchange.server, exchange.client, -200 & 0xFFFFFFFF if passing else seed * 40503 & 0xFFFFFFFF)
    return client, server


def _interleave(name: str, plan: Iterator[Exchange], seed: int) -> Iterator[bytes]:
    """The frames of all connections, as they mix on a wire. Within a connection the order is kept."""
    rng = random.Random(seed + 2)
    if name == "short":
        yield from _rotate(rng, (_short_connection(exchange) for exchange in plan), SHORT_ACTIVE)
        return
    halves: dict[tuple[str, int], tuple[_Half, _Half]] = {}
    waiting: dict[tuple[str, int], deque[Exchange]] = {}  # exchanges of connections that are in the middle of one

    def run(key: tuple[str, int]) -> Iterator[bytes]:
        """All that waits for this connection."""
        while waiting[key]:
            exchange = waiting[key].popleft()
            if key not in halves:
                halves[key] = _halves(exchange)
                yield from _open(*halves[key])
            yield from _exchange(*halves[key], exchange)
        del waiting[key]

    def runs() -> Iterator[Iterator[bytes]]:
        for exchange in plan:
            if exchange.client in waiting:
                waiting[exchange.client].append(exchange)
            else:
                waiting[exchange.client] = deque([exchange])
                yield run(exchange.client)

    yield from _rotate(rng, runs(), MIXED_ACTIVE)
    yield from _rotate(rng, (_close(*pair) for pair in halves.values()), MIXED_ACTIVE)


def _rotate(rng: random.Random, runs: Iterator[Iterator[bytes]], active: int) -> Iterator[bytes]:
    """Frames of `active` runs at a time, in bursts of 1 to 6; a run that ends makes room for the next."""
    current: list[Iterator[bytes]] = []
    more = True
    while True:
        while more and len(current) < active:
            following = next(runs, None)
            if following is None:
                more = False
            else:
                current.append(following)
        if not current:
            return
        place = int(rng.random() * len(current))
        run = current[place]
        for _ in range(int(rng.random() * 6) + 1):
            frame = next(run, None)
            if frame is None:
                current[place] = current[-1]
                current.pop()
                break
            yield frame


# Many connections.

REQUEST = (
    b"GET /api/v1/items HTTP/1.1\r\nHost: shop.example\r\nUser-Agent: bench/1.0\r\nAccept: application/json\r\n"
    b"Accept-Encoding: identity\r\nConnection: keep-alive\r\n\r\n"
)
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 13\r\n\r\n" + b'{"items": []}'
STRIDE = 1_037_389  # a prime: the next connection is far from the one before


def open_connections(out: BinaryIO, count: int, kind: str, rounds: int = 0) -> None:
    """Writes a capture of so many connections, one after the other and none of them closed, 10 us apart: "idle" (a
    handshake), "half" (and a request) or "active" (and its response). Then each has another exchange, `rounds` times.
    All are copies of one, with the client's address and the checksums changed."""
    client, server = ("10.0.0.0", 40000), ("172.16.0.1", 80)
    halves = _Half(client, server, 1000), _Half(server, client, 5000)
    frames = list(_open(*halves))
    if kind != "idle":
        frames += _send(*halves, REQUEST)
    if kind == "active":
        frames += _send(halves[1], halves[0], RESPONSE)
    out.write(PCAP_HEADER)
    clock_us = START_SECONDS * 1_000_000
    clock_us = _copies(out, frames, range(count), clock_us)
    for _ in range(rounds):
        frames = [*_send(*halves, REQUEST), *_send(halves[1], halves[0], RESPONSE)]
        clock_us = _copies(out, frames, (number * STRIDE % count for number in range(count)), clock_us)


def _copies(out: BinaryIO, frames: list[bytes], numbers: Iterable[int], clock_us: int) -> int:
    """Writes these frames for each client's number. Returns the time behind them."""
    template = bytearray()
    places = []  # of the time, the client's address, the checksums, and the sums that they have at address 0
    for frame in frames:
        at = len(template) + 16
        template += struct.pack("<IIII", 0, 0, len(frame), len(frame)) + frame
        to_server = frame[26] == 10
        sums = struct.unpack_from(">H", frame, 24)[0], struct.unpack_from(">H", frame, 50)[0]
        places.append((at - 16, at + (26 if to_server else 30), at + 24, at + 50, *sums))
    put_time, put_address, put_sum = (struct.Struct(form).pack_into for form in ("<II", ">I", ">H"))
    pieces = []
    for number in numbers:
        added = (number >> 16) + (number & 0xFFFF)
        for time_at, address_at, ip_at, tcp_at, ip_sum, tcp_sum in places:
            put_time(template, time_at, clock_us // 1_000_000, clock_us % 1_000_000)
            put_address(template, address_at, 0x0A000000 + number)
            put_sum(template, ip_at, (ip_sum - added) % 65535)
            put_sum(template, tcp_at, (tcp_sum - added) % 65535)
        clock_us += 10
        pieces.append(bytes(template))
        if len(pieces) == 1000:
            out.write(b"".join(pieces))
            pieces.clear()
    out.write(b"".join(pieces))
    return clock_us


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=("mixed", "short"))
    parser.add_argument("path", type=Path)
    bound = parser.add_mutually_exclusive_group()
    bound.add_argument("--frames", type=int, help=f"at most so many frames (default {FRAMES})")
    bound.add_argument("--exchanges", type=int, help="exactly so many exchanges")
    options = parser.parse_args()
    frames, made = write(options.name, options.path, frames=options.frames, count=options.exchanges)
    size = options.path.stat().st_size
    print(f"{options.path}: {frames} frames, {size / 1e6:.0f} MB, {made} exchanges")


if __name__ == "__main__":
    main()
