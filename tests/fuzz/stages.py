"""Each stage on its own, fed with damaged inputs: STAGES[name](seed) runs one batch and returns how many inputs it was.

A batch is made of its seed alone, from valid inputs that are made here and then damaged with their structure in view. A
stage raises AssertionError, or what the program raised, where
- an exception comes out of it, or the result of a C function with a check that nobody hears of (`fuzz.py` listens);
- a byte, segment, fragment or message is not in exactly one counter;
- something is over its bound;
- the result depends on what must not matter: bytes outside of the frame, how a stream is split.

`last` keeps what a stage was given last, so that a failure can be written to a file.
"""

import gzip
import lzma
import os
import pathlib
import random
import struct
import tempfile
import zlib
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import brotli
import zstandard
from fuzz.test_fuzz import CORPUS, batch, corpus_frames, damaged, fuzz, pcapng
from http_capture.capture.connection import Application, Connection, ConnectionTable
from http_capture.capture.decode import DROPS, MAX_TUNNELS, Decoder
from http_capture.capture.defrag import DATAGRAM_OVERHEAD_BYTES, MAX_PAYLOAD_BYTES, Defragmenter
from http_capture.capture.errors import HttpCaptureError
from http_capture.capture.http.decoding import ContentDecoder, DecoderMemory
from http_capture.capture.http.message import Message
from http_capture.capture.http.parser import Limits, Listener, Parser
from http_capture.capture.reassembly import Consumer, Reassembly
from http_capture.capture.source import EndOfInput
from http_capture.capture.source.block import Block, Buffer
from http_capture.capture.source.files import PCAP, PCAPNG, PcapngWalker, PcapWalker
from http_capture.capture.source.pcap_file import PcapFiles
from http_capture.config.settings import DefragSettings
from line import DIALOGUES
from mutation import TOKENS, damage, pieces
from test_tunnel import CASES, ether, packet, vxlan
from traffic import Conversation, write_pcap

last: dict[str, object] = {}
MS = 1_000_000
MASK = 0xFFFFFFFF


@cache
def _tunnelled() -> list[tuple[int, bytes, int, int]]:
    """A segment in each tunnel, by itself and in another one."""
    frames = []
    for (_, wrap, *_), version in CASES:
        one = wrap(packet(version), version)
        for around in (one, vxlan(one, one[0] >> 4)):
            frame = ether(around, around[0] >> 4)
            frames.append((0, frame, 1, len(frame)))
    return frames


@cache
def _real() -> list[tuple[int, bytes, int, int]]:
    return corpus_frames()


# --- decode ---


def _decoded(decoder: Decoder, data: bytes, frame: tuple[int, bytes, int, int], at: int) -> tuple[Any, ...]:
    """What a frame is, that lies at `at` of the data: without what depends on where it lies."""
    timestamp_ns, octets, link, wire = frame
    block = Block(1)
    block.lend(Buffer(data))
    block.add(at, len(octets), wire, timestamp_ns, link)
    result = decoder.decode(block, 0)
    if result > 1:
        return (result,)
    s = decoder.segment
    addresses = (s.ip_version, s.source_high, s.source_low, s.destination_high, s.destination_low)
    if result == 1:
        start, end = decoder.fragment_start - at, decoder.fragment_end - at
        assert 0 <= start <= end <= len(octets)
        assert decoder.fragment_payload() == octets[start:end]
        assert decoder.fragment_offset % 8 == 0
        *key, path = decoder.fragment_key()  # the path is a number of this decoder's own
        return (result, *addresses, start, end, *key, path != 0, s.depth, decoder.fragment_offset)
    start, end = s.payload_start - at, s.payload_end - at
    assert 0 <= start <= end <= len(octets)
    assert end - start <= s.payload_length <= max(MAX_PAYLOAD_BYTES + 40, wire)  # an IP length of 0: offloading
    assert 0 <= s.source_port < 65536
    assert 0 <= s.destination_port < 65536
    assert 0 <= s.seq <= MASK
    assert 0 <= s.ack <= MASK
    assert -1 <= s.vlan < 4096
    assert -1 <= s.inner_vlan < 4096
    assert 0 <= s.depth <= MAX_TUNNELS
    ports = (s.source_port, s.destination_port, s.seq, s.ack, s.flags, s.vlan, s.inner_vlan, s.path != 0, s.depth)
    return (result, *addresses, *ports, start, end, s.payload_length)


def decode(seed: int) -> int:
    """A frame by itself, then the same between other bytes; then as the payload of a datagram."""
    rng = random.Random(seed)
    frames = batch(seed, _real())
    decoder, other = Decoder(), Decoder()
    datagrams = 0
    for number in range(5 * len(frames)):
        frame = frames[number % len(frames)]
        if number % 5 == 4:
            frame = rng.choice(_tunnelled())
        if number >= len(frames) or rng.random() < 0.5:
            frame = damaged(rng, frame, frames[rng.randrange(len(frames))])
        last["input"] = frame
        before, after = rng.randbytes(rng.randrange(40)), rng.randbytes(40)
        alone = _decoded(decoder, frame[1], frame, 0)
        assert alone == _decoded(other, before + frame[1] + after, frame, len(before)), "bytes around it are read"
        result = alone[0]
        while result == 1:
            datagrams += 1
            result = decoder.decode_datagram(decoder.fragment_payload())
    assert decoder.segments + decoder.fragments + sum(decoder.drops) == 5 * len(frames) + datagrams
    assert decoder.datagram_segments + decoder.datagram_fragments + decoder.datagram_drops == datagrams
    assert len(decoder.drops) == len(DROPS)
    return 5 * len(frames)


# --- defrag ---


def defrag(seed: int) -> int:
    """Fragments of some datagrams at once: in any order, repeated, overlapping, with wrong flags, late, under limits.

    Those of a datagram that is left alone come out as what went in."""
    rng = random.Random(seed)
    limits = DefragSettings(max_datagrams=rng.choice((2, 5, 100)), max_bytes=rng.choice((3000, 1 << 20)))
    limits_hold = limits.max_datagrams >= 100 and limits.max_bytes > 10000
    defragmenter = Defragmenter(limits)
    now, count, handed = 0, 0, 0
    for number in range(100):
        key = (rng.choice((4, 6)), number, rng.randrange(3))
        size = rng.choice((0, 5, 40, 200, 1480))
        step = rng.choice((8, 16, 64))
        whole = rng.randbytes(size)
        parts = [(at, at + step < size, whole[at : at + step]) for at in range(0, size, step)] or [(0, False, b"")]
        rng.shuffle(parts)
        alone = rng.random() < 0.5
        if not alone:
            kept = [part for part in parts if rng.random() < 0.9]
            parts = [each for part in kept for each in _damaged_fragment(rng, part, step)]
        out = None
        for offset, more, data in parts:
            now += 0 if alone else rng.choice((0, 0, MS, 40_000 * MS))
            last["input"] = (key, offset, more, data, now)
            got = defragmenter.add(key, offset, more, data, now)
            count += 1
            if got is not None:
                handed += 1
                assert len(got) <= MAX_PAYLOAD_BYTES
                out = got
            if rng.random() < 0.02:
                defragmenter.tick(now)
            d = defragmenter
            assert 0 <= d.bytes_held <= limits.max_bytes + DATAGRAM_OVERHEAD_BYTES
            assert d.fragments == count == (
                d.fragments_used + d.fragments_expired + d.fragments_evicted + d.fragments_duplicate
                + d.fragments_overlap + d.fragments_invalid + d.pending
            )  # fmt: skip
        if alone and size and limits_hold:
            assert out == whole
    defragmenter.tick(now + (1 << 50))
    assert defragmenter.pending == defragmenter.bytes_held == 0
    assert defragmenter.datagrams == handed
    return count


def _damaged_fragment(rng: random.Random, part: tuple[int, bool, bytes], step: int) -> list[tuple[int, bool, bytes]]:
    offset, more, data = part
    kind = rng.randrange(8)
    if kind == 0:
        return [part, part]
    if kind == 1:
        return [part, (offset, more, damage(rng, data))]
    if kind == 2:
        return [(rng.choice((0, offset + 8, offset + 4, 65528, 65535, -8, offset + step * 3)), more, data)]
    if kind == 3:
        return [(offset, not more, data)]
    if kind == 4:
        return [(max(0, offset - 8), more, data + data[:16])]
    return [part]


# --- connection, reassembly ---


class _Reader(Consumer):  # type: ignore[misc]
    """Bytes in order, gaps, then one close; what the bytes are is told by their number, where nobody lied."""

    def __init__(self, key: int, honest: bool) -> None:
        self.key, self.honest = key, honest
        self.at = -1
        self.closed = 0
        self.bytes = self.gap_bytes = self.urgent = 0

    def on_data(self, buffer: Buffer, start: int, end: int, seq: int, ack: int, timestamp_ns: int) -> int:
        assert not self.closed
        assert start < end
        assert -1 <= ack <= MASK
        if self.at >= 0:
            assert seq == self.at or seq == (self.at + 1) & MASK, (seq, self.at)
            self.urgent += seq != self.at  # a byte that was taken out
        if self.honest:
            assert bytes(buffer.view[start:end]) == _stream(self.key, seq, end - start)
        self.at = (seq + end - start) & MASK
        self.bytes += end - start
        return 0

    def on_gap(self, length: int, timestamp_ns: int, cut: bool) -> int:
        assert not self.closed
        assert length > 0
        if self.at >= 0:
            self.at = (self.at + length) & MASK
        self.gap_bytes += length
        return 0

    def on_close(self, reason: int, timestamp_ns: int) -> int:
        assert not self.closed
        assert 0 <= reason <= 4
        self.closed = 1
        return 0


_NOISE = random.Random(0).randbytes(8192 + 1500)


def _stream(key: int, seq: int, size: int) -> bytes:
    """The bytes that a sender has from this sequence number on; one octet of 8192 is a function of its number."""
    at = (seq + key * 977) % 8192
    return _NOISE[at : at + size] if at + size <= 8192 else (_NOISE[at:8192] + _NOISE[:1500])[:size]


class _Readers(Application):  # type: ignore[misc]
    def __init__(self, rng: random.Random, honest: bool) -> None:
        self.rng, self.honest = rng, honest
        self.readers: list[tuple[Connection, _Reader, _Reader]] = []
        self.left_count = 0

    def open(self, connection: Connection) -> int:
        forward = _Reader(connection.a_port, self.honest)
        backward = _Reader(connection.b_port, self.honest)
        connection.forward.consumer = forward
        connection.backward.consumer = backward
        self.readers.append((connection, forward, backward))
        if self.rng.random() < 0.03:
            connection.leave()
        return 0

    def left(self, connection: Connection) -> int:
        for known, forward, backward in self.readers:
            if known is connection:
                forward.closed = backward.closed = 1
        self.left_count += 1
        return 0


def connection(seed: int) -> int:
    """Segments of a few connections: in any order, overlapping, beyond windows, with any flags; ports used again."""
    rng = random.Random(seed)
    cuts = rng.random() < 0.3
    honest = rng.random() < 0.8
    application = _Readers(rng, honest)
    per_direction = rng.choice((2000, 20_000, 1 << 20))
    reassembly = Reassembly(rng.choice((3000, 1 << 20)), per_direction)
    most = rng.choice((2, 5, 100))
    table = ConnectionTable(
        application, reassembly, max_connections=most, reorder_ns=10 * MS,
        handshake_timeout_ns=100 * MS, idle_timeout_ns=500 * MS, closing_timeout_ns=50 * MS,
    )  # fmt: skip
    decoder = Decoder()
    now = 1000
    bases = [rng.choice((0, MASK - 700, rng.getrandbits(32))) for _ in range(8)]
    positions = [[0, 0] for _ in bases]
    given = 0
    payload_bytes = 0
    for _ in range(2000):
        number = rng.randrange(len(bases))
        side = rng.randrange(2)
        position = positions[number]
        kind = rng.randrange(20)
        size = rng.choice((0, 1, 20, 300, 1400)) if kind else 0
        offset = position[side]
        if kind < 8:
            position[side] += size
        elif kind < 12:
            offset = max(0, offset + rng.choice((-1400, -300, -20, -1, 1, 20, 300)))
        elif kind == 12:
            offset += rng.choice((1 << 20, 1 << 29, 1 << 31, -(1 << 31)))
        elif kind == 13:
            position[side] += size
            continue  # lost
        flags = 0x10
        if kind == 0:
            flags = rng.choice((2, 2, 0x12, 1, 0x11, 0x11, 4, 0x14, 0, 0x3F, rng.getrandbits(8)))
            if rng.random() < 0.2:
                position[:] = [0, 0]
                bases[number] = rng.getrandbits(32)
                offset = 0
        client, server = 1000 + number, 80
        ports = (client, server) if side == 0 else (server, client)
        base = bases[number] + (0 if side == 0 else 12345)
        seq = (base + offset - (1 if flags & 2 else 0)) & MASK
        ack = (
            bases[number] + (12345 if side == 0 else 0) + position[1 - side] + rng.choice((0,) * 8 + (1, 500, -9))
        ) & MASK
        payload = _stream(ports[0], (seq + 1) & MASK if flags & 2 else seq, size)
        if not honest and rng.random() < 0.3:
            payload = damage(rng, payload)
        claimed = len(payload) + (rng.choice((1, 100)) if cuts and rng.random() < 0.1 else 0)
        head = struct.pack("!BBHHHBBH", 0x45, 0, 40 + claimed, 1, 0, 64, 6, 0)
        ip = b"\x0a\0\0\1\x0a\0\0\2" if side == 0 else b"\x0a\0\0\2\x0a\0\0\1"
        tcp = struct.pack("!HHIIBBHHH", *ports, seq, ack, 0x50, flags & 0xFF, 1, 0, 0)
        frame = head + ip + tcp + payload
        now += rng.choice((0, 1000, 1000, MS, 15 * MS, 200 * MS))
        last["input"] = (seed, given, frame, now)
        block = Block(1)
        block.lend(Buffer(frame))
        block.add(0, len(frame), 40 + claimed, now + rng.choice((0, 0, 0, -30 * MS)), 101)
        assert decoder.decode(block, 0) == 0
        given += 1
        untracked = table.untracked
        table.segment(decoder.segment)
        payload_bytes += len(payload) if table.untracked == untracked else 0
        r = reassembly
        assert r.payload_bytes == payload_bytes
        assert r.payload_bytes == (
            r.delivered_bytes
            + r.retransmitted_bytes
            + r.ignored_bytes
            + r.discarded_bytes
            + r.urgent_bytes
            + r.buffered_bytes
        )
        assert 0 <= r.buffered_bytes <= r.max_buffered
        assert table.active <= most
    table.shutdown()
    assert reassembly.buffered_bytes == table.active == 0
    assert table.segments == given == table.data + table.control + table.untracked + table.late + table.ignored
    assert table.opened == sum(table.closed)
    assert application.left_count == table.left
    assert all(reader.closed for _, forward, backward in application.readers for reader in (forward, backward))
    taken = sum(reader.bytes for _, forward, backward in application.readers for reader in (forward, backward))
    assert taken == reassembly.delivered_bytes
    urgent = sum(reader.urgent for _, forward, backward in application.readers for reader in (forward, backward))
    assert urgent <= reassembly.urgent_bytes
    return given


# --- http parser ---


class _Messages(Listener):  # type: ignore[misc]
    """What a parser tells, as plain values. A response's request is told by its number: the same in every split."""

    def __init__(self) -> None:
        self.told: list[tuple[object, ...]] = []
        self.open: dict[int, Message] = {}
        self.heads = self.ends = 0

    def on_head(self, parser: Parser, message: Message) -> int:
        self.heads += 1
        assert id(message) not in self.open
        self.open[id(message)] = message
        return (0, 0, 0, 0, 1, 2, 4)[message.seq % 7]

    def on_end(self, parser: Parser, message: Message) -> int:
        self.ends += 1
        del self.open[id(message)]
        m = message
        assert m.kept_bytes <= parser.limits.max_kept_bytes
        assert len(m.head) <= parser.limits.max_head_bytes
        kept = bytes(m.kept or b"")[: m.kept_bytes]
        content = None if m.decoder is None else (m.decoder.content(), m.decoder.failure, m.decoder.decoded_bytes)
        self.told.append((m.seq, m.head, m.version, m.status, m.method, m.target, m.body_bytes, m.wire_bytes,
                          m.gap_bytes, m.incomplete, m.chunked, m.content_length, kept, content))  # fmt: skip
        return 0


def _limits(tight: bool) -> Limits:
    if tight:
        return Limits(max_head_bytes=300, max_headers=16, search_bytes=100, keep=2, max_kept_bytes=30,
                      max_decoded_bytes=500, max_ratio=10)  # fmt: skip
    return Limits(keep=2)


def parsed(segments: Sequence[bytes | int], role: int, tight: bool, reason: int) -> list[tuple[object, ...]]:
    """The messages of these bytes; a number is a gap of that length."""
    limits = _limits(tight)
    listener = _Messages()
    parser = Parser(limits, listener, role)
    seq, given = 0xFFFFFFFF - 200, 0
    for piece in segments:
        if isinstance(piece, int):
            parser.on_gap(piece, 0, False)
            seq += piece
            continue
        parser.on_data(Buffer(piece), 0, len(piece), seq & MASK, 0, 0)
        seq += len(piece)
        given += len(piece)
        assert limits.pending_bytes <= limits.max_head_bytes + 8192 + 4096 + len(piece)
        counted = limits.head_bytes + limits.body_bytes + limits.framing_bytes + limits.skipped_bytes
        assert counted + limits.tunnel_bytes + limits.pending_bytes == given
    parser.on_close(reason, 0)
    assert limits.pending_bytes == 0
    assert not listener.open
    assert listener.heads == listener.ends == limits.requests + limits.responses + limits.informational
    return listener.told


def parser(seed: int) -> int:
    """The bytes of one direction, damaged, with gaps or not: in one piece and in many."""
    rng = random.Random(seed)
    names = sorted(DIALOGUES)
    for number in range(200):
        side = rng.choice(("client", "server"))
        dialogue = DIALOGUES[rng.choice(names)]
        turns = [turn for who, turn in dialogue if who == side]
        first = rng.randrange(len(turns)) if turns else 0
        data = b"".join(turns[first : first + rng.randint(1, 4)])
        for _ in range(rng.choice((0, 1, 2, 5, 20))):
            data = damage(rng, data, rng.choice(TOKENS))
        parts: list[bytes | int] = [data]
        for _ in range(rng.choice((0, 0, 1, 3))):
            at, size = rng.randrange(len(data) + 1), rng.choice((1, 10, 500))
            parts = [*(part for part in (data[:at], size) if part), data[at + size :]]
            data = data[at + size :]
        parts = [part for part in parts if part]
        role = rng.choice((2, 0 if side == "client" else 1))
        tight, reason = rng.random() < 0.3, rng.randrange(5)
        cut = [piece for part in parts for piece in ([part] if isinstance(part, int) else pieces(rng, part))]
        last["input"] = (seed, number, role, tight, reason, parts, cut)
        assert parsed(parts, role, tight, reason) == parsed(cut, role, tight, reason), "the split matters"
    return 200


# --- content decoding ---

_ENCODERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, mtime=0),
    "x-gzip": lambda data: gzip.compress(data[:50], mtime=0) + gzip.compress(data[50:], 1, mtime=0),
    "deflate": zlib.compress,
    "br": lambda data: brotli.compress(data, quality=3),
    "zstd": lambda data: zstandard.ZstdCompressor().compress(data),
    "xz": lambda data: lzma.compress(data, preset=0),
    "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE, preset=0),
    "identity": lambda data: data,
}


def _content(codings: list[str], data: Sequence[bytes], kept: int, most: int, ratio: int) -> tuple[object, ...]:
    memory = DecoderMemory(1 << 28)
    decoder = ContentDecoder(codings, max_kept_bytes=kept, max_decoded_bytes=most, max_ratio=ratio, memory=memory)
    for piece in data:
        decoder.feed(piece)
    decoder.finish()
    content = decoder.content()
    assert len(content) <= kept
    assert memory.used_bytes == 0
    if decoder.decoded and any(coding != "identity" for coding in codings):
        assert decoder.decoded_bytes <= most + (1 << 17)
    assert decoder.encoded_bytes == sum(map(len, data))
    return (content, decoder.failure, decoder.decoded, decoder.decoded_bytes, decoder.truncated)


def content(seed: int) -> int:
    """Bodies in any codings, true or claimed, damaged, cut, with the wrong limits."""
    rng = random.Random(seed)
    for number in range(200):
        plain = rng.choice((b"", rng.randbytes(60), b"text " * rng.randrange(100), b"text " * rng.randrange(100)))
        if rng.random() < 0.03:
            plain = rng.choice((bytes(rng.randrange(500_000)), rng.randbytes(20_000), b"text " * 5000))
        codings = [rng.choice(sorted(_ENCODERS)) for _ in range(rng.choice((1, 1, 1, 2, 3, 5)))]
        data = plain
        for coding in codings:
            data = _ENCODERS[coding](data)
        claimed = codings if rng.random() < 0.9 else [rng.choice((*_ENCODERS, "compress", "", "exi"))]
        hurt = rng.choice((0, 0, 1, 3, 10))
        for _ in range(hurt):
            data = damage(rng, data, data)
        if rng.random() < 0.2:
            data = data[: rng.randrange(len(data) + 1)]
            hurt = 1
        kept, most, ratio = rng.choice(((10, 100, 2), (1000, 100_000, 1000), (1 << 16, 1 << 26, 1000)))
        last["input"] = (seed, number, claimed, data, kept, most, ratio)
        one = _content(claimed, [data], kept, most, ratio)
        some = [data[at : at + 997] for at in range(0, len(data), 997)] if len(data) > 5000 else pieces(rng, data)
        assert one == _content(claimed, some, kept, most, ratio), "the split matters"
        if claimed is codings and not hurt and len(codings) < 5 and most == 1 << 26 and not one[1]:
            assert one[0] == plain[:kept]
    return 200


# --- capture files ---


def source(seed: int) -> int:
    """Capture files with damage anywhere: walked in one piece and in many; some of them read as files, packed ones too.

    A file is refused with one line, or read as far as it goes."""
    rng = random.Random(seed)
    conv = Conversation(mss=60, link=101)
    conv.handshake()
    conv.send("client", bytes(rng.randrange(400)))
    frames = conv.frames
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        path = pathlib.Path(folder, "a")
        seeds = [_pcap(path, frames, nanoseconds, big) for nanoseconds in (True, False) for big in (True, False)]
        seeds += [pcapng(frames), pcapng(frames) + pcapng(frames[:2])]
        seeds += rng.sample(_small_files(), min(3, len(_small_files())))
        for number in range(400):
            data = rng.choice(seeds)
            for _ in range(rng.choice((1, 1, 2, 6))):
                at = rng.choice((rng.randrange(len(data)), rng.randrange(min(len(data), 60)))) if data else 0
                word = rng.choice((b"\0\0\0\0", b"\xff" * 4, b"\x7f\xff\xff\xff", b"\0\0\1\0", rng.randbytes(4)))
                data = damage(rng, data, data) if rng.random() < 0.5 else data[:at] + word + data[at + 4 :]
            last["input"] = (seed, number, data)
            cuts = [rng.choice((1, 3, 16, 100, 1000)) for _ in range(20)]
            assert _walked(data, [len(data)]) == _walked(data, cuts), "the split matters"
            if number % 20:
                continue
            if rng.random() < 0.3:
                data = gzip.compress(data, 1) if rng.random() < 0.5 else zstandard.ZstdCompressor().compress(data)
                data = damage(rng, data, data)
            path.write_bytes(data)
            refused = ""
            try:
                files = PcapFiles((str(path),))
                try:
                    _all_frames(files)
                finally:
                    files.close()
            except HttpCaptureError as error:
                refused = str(error)
            assert "\n" not in refused
    return 400


@cache
def _small_files() -> list[bytes]:
    """Real captures of a few KiB, where there are any."""
    paths = sorted(path for path in CORPUS.rglob("*.pcap*") if path.stat().st_size < 5000)
    return [path.read_bytes() for path in paths[:200]]


_BLOCK = Block(8)


def _walked(data: bytes, cuts: Sequence[int]) -> tuple[str, list[tuple[bytes, int, int, int]]]:
    """The frames of a file that comes in pieces of these sizes, again and again, and how it ends."""
    buffer, out = Buffer(data), []
    walker: PcapWalker | PcapngWalker
    if data[:4] in PCAP:
        walker = PcapWalker(data[:4])
    elif data[:4] == PCAPNG:
        walker = PcapngWalker()
    else:
        return "refused", []
    at = end = number = 0
    while not walker.damage:
        _BLOCK.lend(buffer)
        walked = walker.walk(buffer, at, end, _BLOCK)
        assert 0 <= walked <= end - at
        out += _BLOCK.frames()
        at += walked
        if _BLOCK.full():
            continue
        if end == len(data):
            break
        end = min(len(data), end + cuts[number % len(cuts)])
        number += 1
    return walker.damage, out


def _pcap(path: pathlib.Path, frames: Sequence[tuple[int, bytes]], nanoseconds: bool, big_endian: bool) -> bytes:
    write_pcap(path, frames, nanoseconds=nanoseconds, big_endian=big_endian)
    return path.read_bytes()


def _all_frames(files: PcapFiles) -> None:
    count = size = 0
    while True:
        try:
            block = files.read(0)
        except EndOfInput:
            break
        count += block.count
        for octets, wire, _, _ in block.frames():
            size += len(octets)
            assert len(octets) <= wire
    stats = files.stats()
    assert (stats.received, stats.bytes) == (count, size)
    assert not [text for text in files.warnings if "\n" in text]


# --- all of it ---


def pipeline(seed: int) -> int:
    """test_fuzz.py: frames through the whole line, with the ledger."""
    last["input"] = f"python tests/fuzz/test_fuzz.py {seed}"
    fuzz(seed, _real())
    return 2000


STAGES: dict[str, Callable[[int], int]] = {
    "decode": decode,
    "defrag": defrag,
    "connection": connection,
    "parser": parser,
    "content": content,
    "source": source,
    "pipeline": pipeline,
}
