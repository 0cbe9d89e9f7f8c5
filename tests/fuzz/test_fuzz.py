"""Damaged frames and files through the whole line: no exception, the ledger balances, every record is a record.

HTTP_CAPTURE_FUZZ is how many frames (200,000 compiled, else 20,000); HTTP_CAPTURE_FUZZ_SEED where they begin (0). A
failure names the seed of its batch: `python tests/fuzz/test_fuzz.py SEED` does it again.
"""

import itertools
import os
import pathlib
import random
import struct
import sys
from collections.abc import Iterator

import pytest
from http_capture.capture.errors import HttpCaptureError
from http_capture.capture.frame_loop import ALL, MANY
from http_capture.capture.source.pcap_file import PcapFiles
from http_capture.config.settings import BodySettings, DefragSettings, HttpSettings, Settings, TcpSettings
from line import ALL_BODIES, DIALOGUES, Kept, make, run, speak, strict
from mutation import damage, damage_dialogue, pieces
from traffic import RST, Conversation, fragment, write_pcap

COMPILED = os.environ.get("HTTP_CAPTURE_TESTED") == "compiled"
COUNT = int(os.environ.get("HTTP_CAPTURE_FUZZ", "200000" if COMPILED else "20000"))
SEED = int(os.environ.get("HTTP_CAPTURE_FUZZ_SEED", "0"))
BATCH = 2000
FILES = 400 if COMPILED else 60
CORPUS = pathlib.Path(__file__).resolve().parents[3] / "shared" / "corpus"

Full = tuple[int, bytes, int, int]
"""timestamp_ns, bytes, link type, wire length."""

SNAP = b"\xaa\xaa\x03\0\0\0"
# Link types: what stands before the IP header, for IPv4 and IPv6.
LINKS = {
    1: (b"\x02\0\0\0\0\x01\x02\0\0\0\0\x02\x08\0", b"\x02\0\0\0\0\x01\x02\0\0\0\0\x02\x86\xdd"),
    113: (b"\0\0\0\x01\0\x06\x02\0\0\0\0\x01\0\0\x08\0", b"\0\0\0\x01\0\x06\x02\0\0\0\0\x01\0\0\x86\xdd"),
    276: (b"\x08\0" + bytes(18), b"\x86\xdd" + bytes(18)),
    0: (b"\x02\0\0\0", b"\x1e\0\0\0"),
    108: (b"\0\0\0\x02", b"\0\0\0\x1c"),
    101: (b"", b""),
    9: (b"\xff\x03\0\x21", b"\x57"),
    50: (b"\x21", b"\xff\x03\0\x57"),
    51: (b"\x11\0\0\x01\0\0\0\x21", b"\x11\0\0\x01\0\0\0\x57"),
    104: (b"\x0f\0\x08\0", b"\x8f\0\x86\xdd"),
    105: (b"\x08\x01" + bytes(22) + SNAP + b"\x08\0", b"\x88\x02" + bytes(24) + SNAP + b"\x86\xdd"),
    127: (
        b"\0\0\x08\0\0\0\0\0\x08\x01" + bytes(22) + SNAP + b"\x08\0",
        b"\0\0\x08\0\0\0\0\0\x08\x01" + bytes(22) + SNAP + b"\x86\xdd",
    ),
    228: (b"", b""),
    229: (b"", b""),
    12: (b"", b""),
    147: (b"whatever", b"whatever"),
}
TIGHT = Settings(
    body=BodySettings(keep="all", max_kept_bytes=50, max_decoded_bytes=500),
    http=HttpSettings(max_head_bytes=1024, max_headers=16, max_outstanding=2, search_bytes=100),
    tcp=TcpSettings(
        overlap="linux",
        max_connections=4,
        max_buffered_bytes=3000,
        max_buffered_bytes_per_direction=2000,
        reorder_seconds=0.01,
        handshake_timeout_seconds=0.1,
        idle_timeout_seconds=0.3,
        closing_timeout_seconds=0.05,
    ),
    defrag=DefragSettings(max_datagrams=3, max_bytes=5000, timeout_seconds=0.1),
)


def conversation(rng: random.Random, number: int) -> list[Full]:
    """Frames of a dialogue, damaged or not, on some link, fragmented, reordered, cut or not; some are lost."""
    version6 = rng.random() < 0.3
    vlan = rng.choice(((), (), (5,), (5, 6)))
    link = rng.choice((1, 1, 1, *LINKS))
    client, server = ("fd00::%d", "fd00::ffff:%d") if version6 else ("10.0.0.%d", "10.9.0.%d")
    conv = Conversation(
        (client % (number % 250), 1024 + rng.randrange(3)),
        (server % (number % 3), 80),
        client_isn=rng.getrandbits(32),
        server_isn=rng.getrandbits(32),
        mss=rng.choice((60, 400, 1460)),
        vlan=vlan if link == 1 else (),
        step_ns=rng.choice((1000, 100_000, 5_000_000, 50_000_000)),
        link=1 if link == 1 else 101,
    )
    dialogue = DIALOGUES[rng.choice(sorted(DIALOGUES))]
    if rng.random() < 0.5:
        dialogue = damage_dialogue(rng, dialogue)
    if rng.random() < 0.2:
        speak(conv, dialogue, cut=lambda turn: pieces(rng, turn))
    elif rng.random() < 0.2:  # from its middle, and without an end
        for side, turn in dialogue:
            conv.send(side, turn)
    else:
        speak(conv, dialogue)
    if rng.random() < 0.1:
        conv.rst(rng.choice(("client", "server")), seq=rng.choice((None, rng.getrandbits(32))))
    frames: list[Full] = []
    loss = rng.choice((0, 0, 0, 0.05, 0.3))
    before = LINKS[link][version6]
    link_bytes = len(before) if link != 1 else 14 + 4 * len(vlan)
    for timestamp_ns, frame in conv.frames:
        if rng.random() < loss:
            continue
        data = frame if link == 1 else before + frame
        parts = [data]
        if rng.random() < 0.05 and link != 147:
            parts = fragment(data, rng.choice((8, 64, 512)), identification=rng.randrange(4), link_bytes=link_bytes)
            rng.shuffle(parts)
        for part in parts:
            moved = timestamp_ns + (rng.randrange(300_000_000) if rng.random() < 0.1 else 0)
            kept = part[: rng.randrange(len(part) + 1)] if rng.random() < 0.02 else part
            frames.append((moved, kept, link, len(part)))
            if rng.random() < 0.05:
                frames.append((moved + rng.randrange(1_000_000_000), kept, link, len(part)))
    return frames


def damaged(rng: random.Random, frame: Full, other: Full) -> Full:
    """A frame with bits turned, cut, or with parts of another one; sometimes of another time, link or length."""
    timestamp_ns, data, link, wire = frame
    for _ in range(rng.randint(1, 3)):
        kind = rng.randrange(8)
        if kind < 4:
            headers = bytearray(data)
            for _ in range(rng.randint(1, 4)):
                if headers:  # mostly in the headers: there it matters
                    headers[rng.randrange(min(len(headers), 74))] = rng.choice(
                        (0, 1, 0x45, 0x60, 0x7F, 0xFF, rng.getrandbits(8))
                    )
            data = bytes(headers)
        elif kind == 4:
            data = data[: rng.randrange(len(data) + 1)]
        elif kind == 5:
            at = rng.randrange(len(data) + 1)
            data = data[:at] + other[1][rng.randrange(len(other[1]) + 1) :]
        else:
            data = damage(rng, data, other[1])
    if rng.random() < 0.02:
        timestamp_ns = rng.choice((0, -1, 1 << 62, timestamp_ns + 400_000_000_000, timestamp_ns - 10_000_000_000))
    if rng.random() < 0.02:
        link = rng.choice((*LINKS, 119, 163, 239, 1 << 31, -1))
    if rng.random() < 0.1:
        wire = rng.choice((0, len(data), len(data) + 1, 65535, 1 << 31))
    return timestamp_ns, data, link, max(wire, len(data))


def corpus_frames() -> list[Full]:
    """Some frames of real captures, where there are any."""
    frames: list[Full] = []
    for path in sorted(CORPUS.rglob("*.pcap"))[:40]:
        if path.stat().st_size > 200_000:
            continue
        try:
            source = PcapFiles((str(path),))
        except HttpCaptureError:
            continue
        try:
            frames += [(t, data, link, wire) for data, wire, t, link in source.read(0).frames()[:60]]
        finally:
            source.close()
    return frames


def batch(seed: int, real: list[Full]) -> list[Full]:
    """BATCH frames: some conversations at once, in which a part of the frames is damaged."""
    rng = random.Random(seed)
    frames: list[Full] = []
    while len(frames) < BATCH:
        some = conversation(rng, len(frames))
        if real and rng.random() < 0.2:
            at = rng.randrange(len(real))
            some = real[at : at + 50]
        frames += some
    frames.sort(key=lambda frame: frame[0])
    rate = rng.choice((0.02, 0.2, 1.0))
    return [
        damaged(rng, frame, frames[rng.randrange(len(frames))]) if rng.random() < rate else frame
        for frame in frames[:BATCH]
    ]


def fuzz(seed: int, real: list[Full]) -> int:
    """One batch, with the settings that its seed says. Returns how many records it gave."""
    settings = TIGHT if seed % 2 else ALL_BODIES
    rng = random.Random(seed)
    shares = (rng.choice((ALL, ALL, ALL // 2, ALL // 50)) for _ in itertools.count()) if seed % 3 == 0 else None
    many = 0 if seed % 5 < 2 else MANY
    return len(run(batch(seed, real), settings, per_block=1 + seed % 700, shares=shares, many=many).values)


@pytest.mark.slow
def test_damaged_frames() -> None:
    real = corpus_frames()
    records = 0
    for seed in range(SEED, SEED + COUNT // BATCH):
        try:
            records += fuzz(seed, real)
        except BaseException as error:
            raise AssertionError(f"batch {seed}: {type(error).__name__}: {error}") from error
    assert records > COUNT // 200  # it is not all thrown away at the door


def damaged_files(folder: pathlib.Path, seed: int) -> pathlib.Path:
    """A capture file of a conversation, in which bytes of the file are damaged."""
    rng = random.Random(seed)
    frames = [(frame[0], frame[1]) for frame in conversation(rng, seed) if frame[0] >= 0]
    path = folder / f"{seed}.pcap"
    write_pcap(path, frames[:100], nanoseconds=rng.random() < 0.5, big_endian=rng.random() < 0.5)
    data = path.read_bytes()
    if rng.random() < 0.5:
        data = pcapng(frames[:100])
    for _ in range(rng.randint(1, 6)):
        data = damage(rng, data, data)
    path.write_bytes(data)
    return path


def pcapng(frames: list[tuple[int, bytes]]) -> bytes:
    """A section, an interface, and enhanced packet blocks."""

    def block(kind: int, body: bytes) -> bytes:
        body += bytes(-len(body) % 4)
        return struct.pack("<II", kind, len(body) + 12) + body + struct.pack("<I", len(body) + 12)

    out = block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1)) + block(1, struct.pack("<HHI", 1, 0, 0))
    for timestamp_ns, data in frames:
        high, low = divmod(timestamp_ns // 1000, 1 << 32)
        out += block(6, struct.pack("<IIIII", 0, high, low, len(data), len(data)) + data)
    return out


@pytest.mark.slow
def test_damaged_files(tmp_path: pathlib.Path) -> None:
    """What is no capture any more is refused with one line; all others are read as far as they go."""
    read = 0
    refusals: list[str] = []
    for seed in range(SEED, SEED + FILES):
        path = damaged_files(tmp_path, seed)
        try:
            source = PcapFiles((str(path),))
        except HttpCaptureError as error:
            refusals.append(str(error))
            continue
        read += 1
        sink = Kept()
        pipeline = make(source, ALL_BODIES, sink)
        try:
            pipeline.run(lambda: False)
        except HttpCaptureError as error:
            refusals.append(str(error))
        pipeline.finish()
        assert pipeline.ledger().imbalances == [], seed
        for _, value, _, _ in sink.sent:
            strict(value)
        path.unlink()
    assert read > FILES // 3
    assert not [text for text in refusals if "\n" in text]


def found() -> Iterator[tuple[str, list[tuple[int, bytes]]]]:
    """What damage has found, each cut down to what matters."""
    conv = Conversation()
    conv.fin("server")
    conv.segment("client", 2, seq=1000)
    conv.send("client", b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\nx")
    yield "a FIN before the first payload", list(conv.frames)
    conv = Conversation()
    conv.handshake()
    conv.send("client", b"\0\1\2", drop=True)
    conv.send("client", b"\0\1\2")
    conv.send("server", b"\0\1\2")
    conv.wait(1_000_000_000)
    other = Conversation(("10.0.0.9", 9), start_ns=conv.now_ns)
    other.handshake()
    yield "a connection is left by the clock", [*conv.frames, *other.frames]
    conv = Conversation()
    conv.handshake()
    conv.send("client", b"GET / HTTP/1.1\r\n\r\n")
    conv.segment("client", RST, seq=1 << 31)
    conv.segment("server", RST | 16)
    conv.segment("client", 2, seq=77)
    conv.send("server", b"HTTP/1.1 204 \r\n\r\n")
    yield "a RST, and a new connection at once", list(conv.frames)


@pytest.mark.parametrize(("name", "frames"), list(found()), ids=[name for name, _ in found()])
def test_found(name: str, frames: list[tuple[int, bytes]]) -> None:
    run(frames)
    run(frames, TIGHT)


if __name__ == "__main__":
    for number in sys.argv[1:]:
        print(number, fuzz(int(number), corpus_frames()))
