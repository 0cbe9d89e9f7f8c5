"""Builds frames for tests: TCP conversations with right numbers and checksums, in plain Python and fast.

    conv = Conversation(client=("10.0.0.1", 40000), server=("10.0.0.2", 80))
    conv.handshake()
    conv.send("client", http_request("GET", "/"))
    conv.send("server", http_response(200, body=b"x" * 5000), drop={1})   # the second segment is not captured
    conv.ack("client")
    conv.close()
    write_pcap(path, conv.frames)

What is captured is in `conv.frames`, (timestamp_ns, frame bytes) in order of capture. It is a plain list: a test may
shuffle, repeat or cut it. What was sent, captured or not, is in `conv.segments`; the methods that send return the
indexes of their segments there, for `retransmit`. All is deterministic.

Sequence numbers: the SYN of a side has its ISN, the first byte of its stream is always ISN + 1 (so a conversation
without `handshake()` is a midstream one), all modulo 2**32. `conv.number(side, offset)` is the number of the byte at
`offset` of the stream. Each segment acknowledges everything that the other side has sent so far, captured or not.

`mix` puts conversations together by time; `fragment` cuts a frame into IP fragments.
"""

import ipaddress
import os
import struct
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Side = Literal["client", "server"]
Frame = tuple[int, bytes]
Headers = Sequence[tuple[str, str]]

FIN, SYN, RST, PSH, ACK, URG = 1, 2, 4, 8, 16, 32
ETHERNET, RAW = 1, 101  # link types
START_NS = 1_700_000_000_000_000_000
SEQUENCE_MASK = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Segment:
    """One segment as it was sent. `captured` tells whether its frame is among the frames."""

    side: Side
    flags: int
    seq: int
    ack: int
    payload: bytes
    timestamp_ns: int
    captured: bool


class Conversation:
    """One TCP connection between a client and a server, (address, port) each; both IPv4 or both IPv6.

    vlan: the tags, outermost first (two: 802.1ad). mss: bytes of payload per segment, up to 65495 over IPv4.
    start_ns: time of the first segment; each one after it comes step_ns later. link: ETHERNET, or RAW (IP without a
    link header). ttl is the hop limit with IPv6.
    `now_ns` is the time of the next segment and may be set; `wait` adds to it.
    """

    def __init__(
        self,
        client: tuple[str, int] = ("10.0.0.1", 40000),
        server: tuple[str, int] = ("10.0.0.2", 80),
        *,
        client_isn: int = 1_000,
        server_isn: int = 5_000,
        mss: int = 1460,
        vlan: Sequence[int] = (),
        start_ns: int = START_NS,
        step_ns: int = 1_000_000,
        link: int = ETHERNET,
        window: int = 65535,
        ttl: int = 64,
    ) -> None:
        self.frames: list[Frame] = []
        self.segments: list[Segment] = []
        self.now_ns = start_ns
        self.step_ns = step_ns
        self.mss = mss
        self.window = window
        self.isn: dict[Side, int] = {"client": client_isn, "server": server_isn}
        self.sent: dict[Side, int] = {"client": 0, "server": 0}  # bytes of the stream, plus one for the FIN
        self._ttl = ttl
        self._identification = 0
        self._ports: dict[Side, tuple[int, int]] = {
            "client": (client[1], server[1]),
            "server": (server[1], client[1]),
        }
        here, there = ipaddress.ip_address(client[0]), ipaddress.ip_address(server[0])
        if here.version != there.version:
            raise ValueError("client and server must be of one IP version")
        self.version = here.version
        self._addresses: dict[Side, bytes] = {
            "client": here.packed + there.packed,
            "server": there.packed + here.packed,
        }
        tags = b""
        for i, tag in enumerate(vlan):
            tags += struct.pack("!HH", 0x88A8 if i == 0 and len(vlan) > 1 else 0x8100, tag)
        tags += b"\x08\x00" if self.version == 4 else b"\x86\xdd"
        macs = {"client": bytes.fromhex("020000000001"), "server": bytes.fromhex("020000000002")}
        self._link: dict[Side, bytes] = {
            "client": macs["server"] + macs["client"] + tags if link == ETHERNET else b"",
            "server": macs["client"] + macs["server"] + tags if link == ETHERNET else b"",
        }

    def number(self, side: Side, offset: int) -> int:
        """The sequence number of the byte at `offset` of this side's stream."""
        return (self.isn[side] + 1 + offset) & SEQUENCE_MASK

    def next_number(self, side: Side) -> int:
        """The sequence number of the next byte that this side sends."""
        return self.number(side, self.sent[side])

    def wait(self, ns: int) -> None:
        """Nothing is sent for this long."""
        self.now_ns += ns

    def handshake(self, *, mss_option: int | None = 1460, drop: bool | Container[int] = False) -> list[int]:
        """SYN, SYN ACK, ACK. `drop` as in `send`."""
        options = b"" if mss_option is None else struct.pack("!BBH", 2, 4, mss_option)
        return [
            self.segment("client", SYN, seq=self.isn["client"], ack=0, options=options, drop=_dropped(drop, 0)),
            self.segment("server", SYN | ACK, seq=self.isn["server"], options=options, drop=_dropped(drop, 1)),
            self.segment("client", ACK, drop=_dropped(drop, 2)),
        ]

    def send(
        self,
        side: Side,
        payload: bytes,
        *,
        mss: int | None = None,
        drop: bool | Container[int] = False,
        seq: int | None = None,
        ack: int | None = None,
    ) -> list[int]:
        """Sends bytes in segments of at most `mss`; the last one has PSH. Returns the indexes of its segments.

        drop: True, or which of these segments (0 is the first): they are sent, so that the stream goes on behind them,
        but not captured. seq: the number of the first byte instead of the next one; the stream does not go on then.
        ack: the acknowledgment number of all of them.
        """
        size = mss or self.mss
        pieces = [payload[at : at + size] for at in range(0, len(payload), size)]
        indexes = []
        for i, piece in enumerate(pieces):
            number = self.next_number(side) if seq is None else (seq + i * size) & SEQUENCE_MASK
            flags = ACK | PSH if i == len(pieces) - 1 else ACK
            indexes.append(self.segment(side, flags, piece, seq=number, ack=ack, drop=_dropped(drop, i)))
            if seq is None:
                self.sent[side] += len(piece)
        return indexes

    def retransmit(
        self, index: int, *, payload: bytes | None = None, start: int = 0, end: int | None = None, drop: bool = False
    ) -> int:
        """Sends a segment again, now: with other bytes (`payload`), or only its bytes from `start` to `end`."""
        old = self.segments[index]
        data = old.payload if payload is None else payload
        seq = (old.seq + start) & SEQUENCE_MASK
        return self.segment(old.side, old.flags, data[start:end], seq=seq, drop=drop)

    def ack(self, side: Side, number: int | None = None, *, drop: bool = False) -> int:
        """An empty segment that acknowledges everything, or everything before `number`."""
        return self.segment(side, ACK, ack=number, drop=drop)

    def fin(self, side: Side, payload: bytes = b"", *, drop: bool = False) -> int:
        """FIN, with the last bytes of the stream."""
        index = self.segment(side, FIN | ACK | (PSH if payload else 0), payload, drop=drop)
        self.sent[side] += len(payload) + 1
        return index

    def rst(self, side: Side, *, seq: int | None = None, drop: bool = False) -> int:
        return self.segment(side, RST | ACK, seq=seq, drop=drop)

    def close(self, first: Side = "client") -> list[int]:
        """FIN, FIN, ACK: the whole end of a connection."""
        second: Side = "server" if first == "client" else "client"
        return [self.fin(first), self.fin(second), self.ack(first)]

    def segment(
        self,
        side: Side,
        flags: int,
        payload: bytes = b"",
        *,
        seq: int | None = None,
        ack: int | None = None,
        options: bytes = b"",
        drop: bool = False,
    ) -> int:
        """Sends exactly one segment, whatever it is; does not move the stream on. Returns its index in `segments`.

        seq, ack: by default the next number of this side, and of the other one (0 without ACK).
        options: TCP options, filled up with zeros to a multiple of 4 bytes.
        """
        other: Side = "server" if side == "client" else "client"
        if seq is None:
            seq = self.next_number(side)
        if ack is None:
            ack = self.next_number(other) if flags & ACK else 0
        if not drop:
            self.frames.append((self.now_ns, self._frame(side, flags, seq, ack, options, payload)))
        self.segments.append(Segment(side, flags, seq, ack, payload, self.now_ns, not drop))
        self.now_ns += self.step_ns
        return len(self.segments) - 1

    def _frame(self, side: Side, flags: int, seq: int, ack: int, options: bytes, payload: bytes) -> bytes:
        options += bytes(-len(options) % 4)
        length = 20 + len(options) + len(payload)
        source, destination = self._ports[side]
        offset = (5 + len(options) // 4) << 4
        head = struct.pack("!HHIIBBH", source, destination, seq, ack, offset, flags, self.window)
        rest = b"\0\0" + options + payload  # urgent pointer
        addresses = self._addresses[side]
        sum_ = checksum(addresses + struct.pack("!II", length, 6) + head + b"\0\0" + rest)
        tcp = head + sum_.to_bytes(2, "big") + rest
        if self.version == 6:
            ip = struct.pack("!IHBB", 0x60000000, length, 6, self._ttl) + addresses
        else:
            self._identification = (self._identification + 1) & 0xFFFF
            ip = _ipv4_header(20 + length, self._identification, 0x4000, self._ttl, 6, addresses)
        return self._link[side] + ip + tcp


def mix(*sources: Conversation | Iterable[Frame]) -> list[Frame]:
    """The frames of all of them in order of time; of one time, in the order given."""
    frames = [frame for source in sources for frame in (source.frames if isinstance(source, Conversation) else source)]
    return sorted(frames, key=lambda frame: frame[0])


def fragment(frame: bytes, size: int, *, identification: int = 7, link_bytes: int = 14) -> list[bytes]:
    """Cuts the packet in a frame into IP fragments of at most `size` bytes of payload (a multiple of 8), in order.

    link_bytes: the length of what comes before the IP header: 14, 18 with one VLAN tag, 0 for RAW.
    """
    if size <= 0 or size % 8:
        raise ValueError("the size of a fragment is a multiple of 8")
    link, packet = frame[:link_bytes], frame[link_bytes:]
    version = packet[0] >> 4
    payload = packet[40:] if version == 6 else packet[20:]
    frames = []
    for offset in range(0, len(payload), size):
        piece = payload[offset : offset + size]
        more = offset + size < len(payload)
        if version == 6:
            ip = packet[:4] + struct.pack("!HBB", 8 + len(piece), 44, packet[7]) + packet[8:40]
            ip += struct.pack("!BBHI", packet[6], 0, offset | more, identification)
        else:
            ip = _ipv4_header(
                20 + len(piece), identification, more << 13 | offset // 8, packet[8], packet[9], packet[12:20]
            )
        frames.append(link + ip + piece)
    return frames


def write_pcap(
    path: str | os.PathLike[str],
    frames: Iterable[Frame],
    *,
    nanoseconds: bool = True,
    snaplen: int = 262144,
    link: int = ETHERNET,
    big_endian: bool = False,
) -> None:
    """Writes a pcap file. Frames longer than `snaplen` are cut; their true length stays in the record header."""
    order = ">" if big_endian else "<"
    record = struct.Struct(order + "IIII")
    with open(path, "wb") as file:
        magic = 0xA1B23C4D if nanoseconds else 0xA1B2C3D4
        file.write(struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, snaplen, link))
        for timestamp_ns, frame in frames:
            seconds, ns = divmod(timestamp_ns, 1_000_000_000)
            kept = frame[:snaplen]
            file.write(record.pack(seconds, ns if nanoseconds else ns // 1000, len(kept), len(frame)) + kept)


def http_request(
    method: str = "GET",
    target: str = "/",
    headers: Headers = (("Host", "example.test"),),
    body: bytes = b"",
    version: str = "1.1",
    *,
    length: bool = True,
) -> bytes:
    """A request. The headers are exactly these, in order; Content-Length is added where there is a body and neither
    it nor Transfer-Encoding is given, unless `length` is False. The body goes out as it is: see `chunked`."""
    return _message(f"{method} {target} HTTP/{version}", headers, body, length and bool(body))


def http_response(
    status: int = 200,
    headers: Headers = (),
    body: bytes = b"",
    version: str = "1.1",
    *,
    reason: str = "OK",
    length: bool = True,
) -> bytes:
    """A response, as `http_request`; Content-Length is added for an empty body too, except with 1xx, 204 and 304."""
    bodiless = status < 200 or status in (204, 304)
    return _message(f"HTTP/{version} {status} {reason}", headers, body, length and not bodiless)


def chunked(body: bytes, size: int = 1000, *, trailers: Headers = (), extension: str = "") -> bytes:
    """The chunked coding of a body (RFC 9112 7.1), to be sent with `Transfer-Encoding: chunked`."""
    parts = []
    for at in range(0, len(body), size):
        piece = body[at : at + size]
        parts.append(f"{len(piece):x}{extension}\r\n".encode("latin-1") + piece + b"\r\n")
    lines = "".join(f"{name}: {value}\r\n" for name, value in trailers)
    return b"".join(parts) + b"0\r\n" + lines.encode("latin-1") + b"\r\n"


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    number = int.from_bytes(data, "big")
    # 2**16 is 1 modulo 2**16 - 1, so the ones' complement sum of the 16-bit words is the number modulo that.
    return 0xFFFF - (number % 0xFFFF or (0xFFFF if number else 0))


def _message(first: str, headers: Headers, body: bytes, length: bool) -> bytes:
    names = {name.lower() for name, _ in headers}
    lines = [first, *(f"{name}: {value}" for name, value in headers)]
    if length and not names & {"content-length", "transfer-encoding"}:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def _ipv4_header(length: int, identification: int, fragment_word: int, ttl: int, protocol: int, pair: bytes) -> bytes:
    head = struct.pack("!BBHHHBB", 0x45, 0, length, identification, fragment_word, ttl, protocol)
    return head + checksum(head + pair).to_bytes(2, "big") + pair


def _dropped(drop: bool | Container[int], index: int) -> bool:
    return drop if isinstance(drop, bool) else index in drop
