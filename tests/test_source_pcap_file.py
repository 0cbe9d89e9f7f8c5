"""Capture files: every file here is built byte by byte, so that nothing but the formats' own texts is relied on."""

import contextlib
import gzip
import os
import pathlib
import random
import shutil
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator

import pytest
import zstandard
from http_capture.capture.errors import NoInputError, NotPermittedError, OperatorError, UsageError
from http_capture.capture.source import EndOfInput, Source, pcap_file
from http_capture.capture.source.block import Block, Buffer
from http_capture.capture.source.files import MAX_FRAME, PCAP, PcapngWalker, PcapWalker
from http_capture.capture.source.pcap_file import PcapFiles

Frame = tuple[bytes, int, int, int]
CORPUS = pathlib.Path(__file__).resolve().parent.parent.parent / "shared" / "corpus"
SECOND = 1_700_000_000
NS = 10**9


# --- building files ---


def pcap_header(order: str = "<", magic: int = 0xA1B2C3D4, link: int = 1, major: int = 2) -> bytes:
    return struct.pack(order + "IHHiIII", magic, major, 4, 0, 0, 262144, link)


def pcap_record(
    data: bytes, wire: int | None = None, order: str = "<", second: int = SECOND, fraction: int = 0, extra: bytes = b""
) -> bytes:
    wire = len(data) if wire is None else wire
    return struct.pack(order + "IIII", second, fraction, len(data), wire) + extra + data


def pcap(frames: list[bytes], order: str = "<", magic: int = 0xA1B2C3D4) -> bytes:
    return pcap_header(order, magic) + b"".join(
        pcap_record(frame, order=order, fraction=i) for i, frame in enumerate(frames)
    )


def block(kind: int, body: bytes, order: str = "<") -> bytes:
    body += bytes(-len(body) % 4)
    length = struct.pack(order + "I", len(body) + 12)
    return struct.pack(order + "I", kind) + length + body + length


def option(code: int, value: bytes, order: str = "<") -> bytes:
    return struct.pack(order + "HH", code, len(value)) + value + bytes(-len(value) % 4)


def section(order: str = "<", major: int = 1, options: bytes = b"") -> bytes:
    return block(0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, major, 0, -1) + options, order)


def interface(link: int = 1, snaplen: int = 0, options: bytes = b"", order: str = "<") -> bytes:
    return block(1, struct.pack(order + "HHI", link, 0, snaplen) + options, order)


def enhanced(
    data: bytes, units: int = 0, number: int = 0, wire: int | None = None, order: str = "<", options: bytes = b""
) -> bytes:
    wire = len(data) if wire is None else wire
    head = struct.pack(order + "IIIII", number, units >> 32, units & 0xFFFFFFFF, len(data), wire)
    return block(6, head + data + bytes(-len(data) % 4) + options, order)


def simple(data: bytes, wire: int | None = None, order: str = "<") -> bytes:
    return block(3, struct.pack(order + "I", len(data) if wire is None else wire) + data, order)


def obsolete(data: bytes, units: int = 0, number: int = 0, order: str = "<") -> bytes:
    head = struct.pack(order + "HHIIII", number, 7, units >> 32, units & 0xFFFFFFFF, len(data), len(data))
    return block(2, head + data, order)


def frames_of(count: int, seed: int = 1) -> list[bytes]:
    chance = random.Random(seed)
    return [chance.randbytes(chance.randrange(1, 90)) for _ in range(count)]


# --- reading them ---


def blocks(source: Source) -> Iterator[Block]:
    with contextlib.suppress(EndOfInput):
        while True:
            yield source.read(0.2)


def drain(source: PcapFiles) -> list[Frame]:
    found: list[Frame] = []
    captured = 0
    for each in blocks(source):
        for data, wire, timestamp_ns, link in each.frames():
            assert len(data) <= wire
            found.append((data, wire, timestamp_ns, link))
            captured += len(data)
        assert source.stats().received == len(found)
        assert source.stats().bytes == captured
    assert source.stats().dropped == 0
    source.close()
    assert source.stats().received == len(found)
    return found


class Scratch:
    """A file in memory, for the tests that write thousands of files."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("scratch")
        self.path = f"/proc/self/fd/{self.fd}"

    def write(self, content: bytes) -> None:
        os.ftruncate(self.fd, 0)
        os.pwrite(self.fd, content, 0)


@pytest.fixture
def scratch() -> Iterator[Scratch]:
    made = Scratch()
    yield made
    os.close(made.fd)


def replay(folder: pathlib.Path, content: bytes, name: str = "some.file") -> tuple[list[Frame], PcapFiles]:
    path = folder / name
    path.write_bytes(content)
    source = PcapFiles((str(path),))
    found = drain(source)
    assert len(source.warnings) == source.stats().damaged
    return found, source


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buffers and blocks so small that every edge of them is met."""
    monkeypatch.setattr(pcap_file, "BUFFER_BYTES", 256)
    monkeypatch.setattr(pcap_file, "PROBE_BYTES", 128)
    monkeypatch.setattr(pcap_file, "BLOCK_FRAMES", 3)
    monkeypatch.setattr(pcap_file, "PACKED_BYTES", 50)
    monkeypatch.setattr(pcap_file, "UNPACKED_BYTES", 70)


def zstd_blocks(pieces: list[bytes]) -> bytes:
    packer = zstandard.ZstdCompressor(write_checksum=True).compressobj()
    flush = zstandard.COMPRESSOBJ_FLUSH_BLOCK
    return b"".join(packer.compress(piece) + packer.flush(flush) for piece in pieces) + packer.flush()


PACKINGS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": gzip.compress,
    "gzip members": lambda data: gzip.compress(data[:50]) + gzip.compress(b"") + gzip.compress(data[50:]),
    "gzip padded": lambda data: gzip.compress(data[:9]) + bytes(700) + gzip.compress(data[9:]) + bytes(3000),
    "zstd": zstandard.ZstdCompressor(write_checksum=True).compress,
    "zstd stored": zstandard.ZstdCompressor(level=1, write_content_size=False, write_checksum=False).compress,
    "zstd blocks": lambda data: zstd_blocks([data[at : at + 40] for at in range(0, len(data), 40)]),
    "zstd frames": lambda data: (
        b"\x51\x2a\x4d\x18\x05\0\0\0hello"
        + zstandard.compress(data[:30])
        + b"\x50\x2a\x4d\x18\0\0\0\0"
        + zstandard.compress(b"")
        + zstandard.compress(data[30:])
    ),
}


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("magic", "unit_ns", "extra"), [
    (0xA1B2C3D4, 1000, b""), (0xA1B23C4D, 1, b""), (0xA1B2CD34, 1000, b"\1\0\0\0\0\x08\0\0"),
])  # fmt: skip
def test_pcap(tmp_path: pathlib.Path, order: str, magic: int, unit_ns: int, extra: bytes) -> None:
    content = pcap_header(order, magic, 113)
    content += pcap_record(b"abc", None, order, 5, 999_999, extra)
    content += pcap_record(b"", 60, order, 4_294_967_295, 1, extra)
    content += pcap_record(b"defg", 4_294_967_295, order, 0, 0, extra)
    found, source = replay(tmp_path, content)
    assert found == [
        (b"abc", 3, 5 * NS + 999_999 * unit_ns, 113),
        (b"", 60, 4_294_967_295 * NS + unit_ns, 113),
        (b"defg", 4_294_967_295, 0, 113),
    ]
    assert source.stats().damaged == 0
    assert source.bytes_read == source.bytes_total == len(content)


@pytest.mark.parametrize(("field", "link"), [
    (1, 1), (101, 101), (12, 12), (14, 14), (276, 276), (0x50000001, 1), (0xF4000071, 113), (0x04000001, 1),
])  # fmt: skip
def test_link_type_without_the_bits_above_it(tmp_path: pathlib.Path, field: int, link: int) -> None:
    found, _ = replay(tmp_path, pcap_header(link=field) + pcap_record(b"x"))
    assert found == [(b"x", 1, SECOND * NS, link)]


@pytest.mark.parametrize("order", ["<", ">"])
def test_pcapng(tmp_path: pathlib.Path, order: str) -> None:
    content = section(order, options=option(2, b"some hardware", order) + option(0, b"", order))
    content += block(0x0BAD, b"what nobody knows", order)
    content += interface(1, 0, option(2, b"eth0", order) + option(9, b"\x09", order), order)
    content += enhanced(b"abc", 7, 0, 100, order, option(1, b"a comment", order))
    content += interface(101, 5, option(9, b"\x03", order) + option(0, b"", order) + b"\xff\xff\xff", order)
    content += interface(113, 0, b"", order)
    content += enhanced(b"second", 1_000, 1, None, order) + obsolete(b"third", 3, 2, order)
    content += simple(b"fourth", None, order)
    content += block(5, bytes(20), order)
    found, source = replay(tmp_path, content)
    assert found == [
        (b"abc", 100, 7, 1),
        (b"second", 6, NS, 101),
        (b"third", 5, 3_000, 113),
        (b"fourth", 6, 3_000, 1),
    ]
    assert source.warnings == []


def test_pcapng_sections_have_their_own_byte_order_and_interfaces(tmp_path: pathlib.Path) -> None:
    content = b""
    for order, link in (("<", 1), (">", 101), (">", 113), ("<", 276)):
        content += section(order) + interface(link, order=order) + enhanced(b"data", link, order=order)
    found, source = replay(tmp_path, content)
    assert found == [(b"data", 4, link * 1000, link) for link in (1, 101, 113, 276)]
    assert source.stats().damaged == 0
    found, source = replay(tmp_path, section() + interface() + section() + enhanced(b"of no interface"))
    assert (found, source.stats().damaged) == ([], 1)
    assert "interface 0, which is not described" in source.warnings[0]


@pytest.mark.parametrize(("snaplen", "wire", "data", "expected"), [
    (0, 6, b"abcdef", (b"abcdef", 6)), (4, 6, b"abcd", (b"abcd", 6)), (9, 6, b"abcdef", (b"abcdef", 6)),
])  # fmt: skip
def test_simple_packet_before_any_time(
    tmp_path: pathlib.Path, snaplen: int, wire: int, data: bytes, expected: tuple[bytes, int]
) -> None:
    found, _ = replay(tmp_path, section() + interface(1, snaplen) + simple(data, wire))
    assert found == [(*expected, 0, 1)]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("resolution", "offset", "units", "ns"), [
    (None, 0, 1_700_000_000_123_456, 1_700_000_000_123_456_000),
    (None, 0, 0, 0),
    (0, 0, SECOND, SECOND * NS),
    (3, 0, 1_700_000_000_123, 1_700_000_000_123_000_000),
    (9, 0, 1_700_000_000_123_456_789, 1_700_000_000_123_456_789),
    (9, 0, 1 << 62, 1 << 62),
    (9, 0, (1 << 62) + 1, None),
    (6, 0, 4_611_686_018_427_387, 4_611_686_018_427_387_000),
    (6, 0, 4_611_686_018_427_388, None),
    (0, 0, (1 << 64) - 1, None),
    (12, 0, 1_700_000_123_456_789_999, 1_700_000_123_456_789),
    (18, 0, (1 << 64) - 1, 18_446_744_073),
    (28, 0, (1 << 64) - 1, 1),
    (29, 0, (1 << 64) - 1, 0),
    (127, 0, (1 << 64) - 1, 0),
    (0x80, 0, SECOND, SECOND * NS),
    (0x80 + 10, 0, 1024 + 1, NS + NS // 1024),
    (0x80 + 20, 0, (SECOND << 20) + 3, SECOND * NS + 3 * NS // (1 << 20)),
    (0x80 + 31, 0, (4_611_686_018 << 31) + 1, 4_611_686_018 * NS),
    (0x80 + 32, 0, (SECOND << 32) + 0xFFFFFFFF, SECOND * NS + 999_999_999),
    (0x80 + 33, 0, (1 << 33) - 1, 999_999_999),
    (0x80 + 40, 0, (1 << 64) - 1, ((1 << 64) - 1) * NS >> 40),
    (0x80 + 63, 0, (1 << 64) - 1, ((1 << 64) - 1) * NS >> 63),
    (0x80 + 64, 0, 1 << 63, NS // 2),
    (0x80 + 95, 0, (1 << 64) - 1, ((1 << 64) - 1) * NS >> 95),
    (0x80 + 96, 0, (1 << 64) - 1, 0),
    (0x80 + 127, 0, (1 << 64) - 1, 0),
    (6, 1_700_000_000, 5, SECOND * NS + 5_000),
    (6, -1_000, 1_000_000_001, 1_000),
    (6, -1_000, 999_999_999, None),
    (9, -SECOND, SECOND * NS, 0),
    (9, 4_611_686_018, 1, 4_611_686_018 * NS + 1),
    (9, 4_611_686_018, NS, None),
    (9, 4_611_686_019, 0, None),
    (9, -(1 << 63), 0, None),
    (9, (1 << 63) - 1, 0, None),
])  # fmt: skip
def test_pcapng_time_is_exact(
    tmp_path: pathlib.Path, order: str, resolution: int | None, offset: int, units: int, ns: int | None
) -> None:
    options = b"" if resolution is None else option(9, bytes([resolution]), order)
    options += option(14, struct.pack(order + "q", offset), order) if offset else b""
    content = section(order) + interface(options=options, order=order) + enhanced(b"x", units, order=order)
    found, source = replay(tmp_path, content)
    if ns is None:
        assert (found, source.stats().damaged) == ([], 1)
        assert "time" in source.warnings[0]
    else:
        assert found == [(b"x", 1, ns, 1)]


def test_pcapng_time_against_arithmetic_of_any_length(tmp_path: pathlib.Path) -> None:
    chance = random.Random(7)
    for _ in range(60):
        resolution = chance.randrange(256)
        units = [chance.getrandbits(chance.randrange(1, 65)) for _ in range(20)]
        content = section() + interface(options=option(9, bytes([resolution])))
        expected = []
        for each in units:
            base, exponent = (2, resolution - 128) if resolution > 127 else (10, resolution)
            ns = each * NS // base**exponent
            if ns <= 1 << 62:
                content += enhanced(b"x", each)
                expected.append(ns)
        assert [frame[2] for frame in replay(tmp_path, content)[0]] == expected


def test_many_interfaces(tmp_path: pathlib.Path) -> None:
    content = section() + b"".join(interface(link) for link in range(1, 300))
    content += b"".join(enhanced(b"x", number=number) for number in range(299))
    found, _ = replay(tmp_path, content)
    assert [frame[3] for frame in found] == list(range(1, 300))
    content = section() + interface(9) * 65536 + enhanced(b"x", number=65535) + interface(9) + enhanced(b"lost")
    found, source = replay(tmp_path, content)
    assert found == [(b"x", 1, 0, 9)]
    assert "more than 65536 interfaces" in source.warnings[0]


GOOD_PCAP = pcap_header() + pcap_record(b"good")
GOOD_PCAPNG = section() + interface() + enhanced(b"good", SECOND * 10**6)


@pytest.mark.parametrize(("good", "bad", "words"), [
    (GOOD_PCAP, pcap_record(b"abcd", 3), "captured length 4 is more than wire length 3"),
    (GOOD_PCAP, struct.pack("<IIII", 1, 1, MAX_FRAME + 1, MAX_FRAME + 1), "captured length 262145"),
    (GOOD_PCAP, bytes(4096), "zeros"),
    (GOOD_PCAP, b"\xff" * 16, "captured length"),
    (GOOD_PCAPNG, enhanced(b"abcd", 0, 0, 3), "captured length 4 is more than wire length 3"),
    (GOOD_PCAPNG, enhanced(bytes(MAX_FRAME + 1)), "captured length 262145"),
    (GOOD_PCAPNG, enhanced(b"x", number=1), "interface 1, which"),
    (GOOD_PCAPNG, obsolete(b"x", number=9), "interface 9, which"),
    (GOOD_PCAPNG, block(6, struct.pack("<IIIII", 0, 0, 0, 5, 5) + bytes(4)), "captured length 5 in a block"),
    (GOOD_PCAPNG, block(6, bytes(16)), "packet block of 28 bytes"),
    (GOOD_PCAPNG, block(2, bytes(16)), "packet block of 28 bytes"),
    (GOOD_PCAPNG, block(3, b""), "packet block of 12 bytes"),
    (GOOD_PCAPNG, simple(b"abcd", 5), "captured length 5 in a block"),
    (GOOD_PCAPNG, simple(bytes(MAX_FRAME + 1)), "captured length 262145"),
    (GOOD_PCAPNG, block(1, bytes(4)), "interface block of 16 bytes"),
    (GOOD_PCAPNG, interface(options=struct.pack("<HH", 2, 100)), "option of 100 bytes"),
    (GOOD_PCAPNG, block(0x0A0D0D0A, struct.pack("<I", 0x1A2B3C4D)), "section header of 16 bytes"),
    (GOOD_PCAPNG, block(0x0A0D0D0A, bytes(16)), "byte-order magic"),
    (GOOD_PCAPNG, section(major=2), "version 2"),
    (GOOD_PCAPNG, struct.pack("<III", 9, 8, 0), "block length 8 is not"),
    (GOOD_PCAPNG, struct.pack("<III", 9, 14, 0), "block length 14 is not"),
    (GOOD_PCAPNG, struct.pack("<III", 9, (16 << 20) + 4, 0), "block length 16777220 is not"),
    (GOOD_PCAPNG, struct.pack("<IIII", 9, 16, 0, 12), "block length 16 at its start, 12 at its end"),
    (GOOD_PCAPNG, bytes(4096), "block length 0 is not"),
])  # fmt: skip
@pytest.mark.parametrize("packing", ["plain", "gzip", "zstd"])
def test_damage_ends_the_file_but_not_the_run(
    tmp_path: pathlib.Path, good: bytes, bad: bytes, words: str, packing: str
) -> None:
    damaged = tmp_path / "damaged"
    damaged.write_bytes(PACKINGS[packing](good + bad + good))
    (tmp_path / "next").write_bytes(pcap([b"next"]))
    source = PcapFiles((str(damaged), str(tmp_path / "next")))
    assert [frame[0] for frame in drain(source)] == [b"good", b"next"]
    assert source.stats().damaged == 1
    (line,) = source.warnings
    assert words in line
    assert f"{damaged} is damaged at byte {len(good)}" in line
    assert "the 1 frames before it were read" in line
    assert ("unpacked" in line) == (packing != "plain")


@pytest.mark.parametrize("content", [pcap_header(major=3), section(major=0), section()[:8] + bytes(20)])
def test_damage_in_the_file_header(tmp_path: pathlib.Path, content: bytes) -> None:
    found, source = replay(tmp_path, content)
    assert (found, source.stats().damaged) == ([], 1)
    assert "damaged at byte 0" in source.warnings[0]


@pytest.mark.parametrize("content", [pcap_header(), pcap_header(">"), section(), section(">") + interface(order=">")])
@pytest.mark.parametrize("packing", PACKINGS)
def test_a_header_without_frames_is_fine(tmp_path: pathlib.Path, content: bytes, packing: str) -> None:
    found, source = replay(tmp_path, PACKINGS[packing](content))
    assert (found, source.stats().damaged) == ([], 0)


@pytest.mark.parametrize("buffers", ["small", "full"])
@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("kind", ["pcap", "pcapng"])
def test_packings_and_buffers_change_nothing(
    tmp_path: pathlib.Path, request: pytest.FixtureRequest, packing: str, kind: str, buffers: str
) -> None:
    if buffers == "small":
        request.getfixturevalue("small")
    frames = [*frames_of(200), b"long" * 500]
    content = pcap(frames)
    if kind == "pcapng":
        content = section() + interface() + block(99, bytes(5000))
        content += b"".join(enhanced(frame, i) for i, frame in enumerate(frames))
    packed = PACKINGS[packing](content)
    found, source = replay(tmp_path, packed)
    assert [frame[0] for frame in found] == frames
    assert [frame[2] % 10**6 for frame in found] == [i * 1000 for i in range(201)]
    assert source.stats().damaged == 0
    assert source.bytes_read == source.bytes_total == len(packed)


@pytest.mark.parametrize("kind", ["pcap", "pcapng"])
def test_cut_at_every_byte(scratch: Scratch, small: None, kind: str) -> None:
    frames = frames_of(6)
    if kind == "pcap":
        units = [pcap_header()] + [pcap_record(frame) for frame in frames]
        firsts = 1
    else:
        units = [section(), interface()] + [enhanced(frame, options=option(1, b"hi")) for frame in frames]
        firsts = 2
    content = b"".join(units)
    ends = [sum(map(len, units[: i + 1])) for i in range(len(units))]
    for cut in range(len(content)):
        scratch.write(content[:cut])
        if cut < 4:
            with pytest.raises(NoInputError):
                PcapFiles((scratch.path,))
            continue
        source = PcapFiles((scratch.path,))
        found = drain(source)
        whole = sum(end <= cut for end in ends)
        assert [frame[0] for frame in found] == frames[: max(0, whole - firsts)]
        assert source.stats().damaged == (cut not in ends), cut
        if source.warnings:
            assert f" is damaged at byte {ends[whole - 1] if whole else 0}: cut off: " in source.warnings[0]


@pytest.mark.parametrize("packing", ["gzip", "gzip members", "zstd blocks"])
def test_packed_data_cut_at_every_byte(scratch: Scratch, small: None, packing: str) -> None:
    frames = frames_of(12)
    packed = PACKINGS[packing](pcap(frames))
    most = 0
    for cut in range(4, len(packed)):
        scratch.write(packed[:cut])
        try:
            source = PcapFiles((scratch.path,))
        except NoInputError:
            assert cut < 120
            continue
        found = [frame[0] for frame in drain(source)]
        assert found == frames[: len(found)]
        assert len(found) >= most
        most = len(found)
        assert source.stats().damaged == 1
    assert most == 12  # only the checksum at the end is cut


def test_gzip_data_before_corruption_is_delivered(tmp_path: pathlib.Path) -> None:
    frames = [random.Random(i).randbytes(100) for i in range(3000)]
    packer = zlib.compressobj(6, zlib.DEFLATED, 31)
    packed = packer.compress(pcap(frames)) + packer.flush(zlib.Z_FULL_FLUSH)
    packed += b"\x07" + bytes(1000)  # a block of a type that does not exist
    found, source = replay(tmp_path, packed)
    assert [frame[0] for frame in found] == frames
    assert "gzip data is damaged" in source.warnings[0]
    packed = bytearray(gzip.compress(pcap(frames)))
    packed[-8] ^= 1
    found, source = replay(tmp_path, bytes(packed))
    assert [frame[0] for frame in found] == frames
    assert "incorrect data check" in source.warnings[0]


def test_zstd_data_before_corruption_is_delivered(tmp_path: pathlib.Path) -> None:
    frames = frames_of(3000)
    packed = bytearray(PACKINGS["zstd"](pcap(frames)))
    packed[-1] ^= 1
    found, source = replay(tmp_path, bytes(packed))
    assert [frame[0] for frame in found] == frames
    assert "zstd data is damaged" in source.warnings[0]
    for tail in (b"garbage behind", b"\x1f\x8b", b"\x28\xb5"):
        found, source = replay(tmp_path, zstandard.compress(pcap(frames)) + tail)
        assert ([frame[0] for frame in found], source.stats().damaged) == (frames, 1)
        found, source = replay(tmp_path, gzip.compress(pcap(frames)) + tail)
        assert ([frame[0] for frame in found], source.stats().damaged) == (frames, 1)


# --- what cannot be replayed ---


def refusal(*paths: object) -> str:
    with pytest.raises(NoInputError) as raised:
        PcapFiles(tuple(str(path) for path in paths))
    text = str(raised.value)
    assert text.isprintable()
    assert raised.value.exit_code == 66
    return text


@pytest.mark.parametrize(("content", "words"), [
    (b"", "is empty (0 bytes): nothing to replay"),
    (b"GET", "is no capture (3 bytes): give a pcap"),
    (b"GET / HTTP/1.1", "is no capture (begins with 47 45 54 20): give pcap"),
    (b"BZh91AY", "is packed with bzip2: unpack it first"),
    (gzip.compress(b""), "is empty (0 bytes when unpacked): nothing"),
    (gzip.compress(b"ab"), "is no capture (2 bytes when unpacked)"),
    (gzip.compress(b"GET / HTTP/1.1"), "(begins with 47 45 54 20 when unpacked)"),
    (gzip.compress(gzip.compress(pcap([]))), "(begins with 1f 8b 08 00 when unpacked)"),
    (gzip.compress(pcap([]))[:8], "cannot be unpacked: gzip data ends before its end"),
    (b"\x1f\x8b\x07\x07", "cannot be unpacked: gzip data is damaged"),
    (zstandard.compress(b""), "is empty (0 bytes when unpacked)"),
    (zstandard.compress(pcap([]))[:8], "cannot be unpacked: zstd data ends before its end"),
    (b"\x28\xb5\x2f\xfd" + b"\xff" * 20, "cannot be unpacked: zstd data is damaged"),
])  # fmt: skip
def test_a_file_that_is_no_capture(tmp_path: pathlib.Path, content: bytes, words: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    good = tmp_path / "good"
    good.write_bytes(pcap([b"x"]))
    text = refusal(good, path)
    assert words in text
    assert text.startswith(f"capture file {path} ")


def test_paths_that_are_none(tmp_path: pathlib.Path) -> None:
    assert refusal(tmp_path / "absent") == f"capture file {tmp_path}/absent does not exist: check the path"
    assert "capture file '' does not exist" in refusal("")
    assert "no such name is possible" in refusal("a\0b")
    assert "no such name is possible" in refusal("a\ud912b")
    assert "a\\nb' does not exist" in refusal(tmp_path / "a\nb")
    assert "cannot be opened (File name too long)" in refusal("a" * 5000)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert "cannot be opened (Too many levels" in refusal(tmp_path / "loop")
    assert "is a device or a socket" in refusal("/dev/null")
    with pytest.raises(UsageError):
        PcapFiles(())
    with pytest.raises(UsageError, match="named twice"):
        PcapFiles(("-", "-"))


def test_a_file_that_may_not_be_read(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(pcap([b"x"]))
    path.chmod(0)
    os.mkfifo(tmp_path / "fifo", 0)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        for each in (path, tmp_path / "fifo"):
            with pytest.raises(NotPermittedError, match=f"{each} may not be read: ") as raised:
                PcapFiles((str(each),))
            assert raised.value.exit_code == 77
    finally:
        if root:
            os.seteuid(0)


def test_a_file_that_goes_away_after_the_start(tmp_path: pathlib.Path) -> None:
    for name in "abc":
        (tmp_path / name).write_bytes(pcap([name.encode()]))
    source = PcapFiles(tuple(str(tmp_path / name) for name in "abc"))
    (tmp_path / "a").unlink()
    (tmp_path / "b").write_bytes(b"something else")
    assert [frame[0] for frame in drain(source)] == [b"c"]
    assert source.stats().damaged == 2
    assert "cannot be opened any more (No such file" in source.warnings[0]
    assert "has changed since the start" in source.warnings[1]


def test_warnings_are_bounded(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "cut"
    path.write_bytes(GOOD_PCAP[:-1])
    source = PcapFiles((str(path),) * 150)
    assert drain(source) == []
    assert source.stats().damaged == 150
    assert len(source.warnings) == 101
    assert source.warnings[-1] == "there are more damaged files than are named here"


# --- folders ---


def test_folder_in_the_order_of_first_frames(tmp_path: pathlib.Path) -> None:
    def one(second: int) -> bytes:
        return pcap_header() + pcap_record(b"%d" % second, second=second)

    (tmp_path / "z.txt").write_bytes(one(1))
    (tmp_path / "a.pcap").write_bytes(one(5))
    (tmp_path / "m.gz").write_bytes(gzip.compress(one(3)))
    (tmp_path / "b").write_bytes(zstandard.compress(one(4)))
    (tmp_path / "n").write_bytes(section() + interface() + block(77, bytes(200_000)) + enhanced(b"2", 2 * 10**6))
    (tmp_path / "h").write_bytes(pcap_header())
    (tmp_path / "README").write_bytes(b"not a capture")
    (tmp_path / "empty.pcap").write_bytes(b"")
    (tmp_path / "notes.gz").write_bytes(gzip.compress(b"not a capture either"))
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "c.pcap").write_bytes(one(9))
    source = PcapFiles((str(tmp_path),))
    assert [frame[0] for frame in drain(source)] == [b"1", b"2", b"3", b"4", b"5"]
    assert source.stats().damaged == 0
    assert source.warnings == [f"folder {tmp_path}: left out what is no capture (3 files, first README)"]
    source = PcapFiles((str(tmp_path / "a.pcap"), str(tmp_path / "below"), str(tmp_path / "z.txt")))
    assert [frame[0] for frame in drain(source)] == [b"5", b"9", b"1"]


def test_folder_without_captures(tmp_path: pathlib.Path) -> None:
    assert refusal(tmp_path) == (
        f"folder {tmp_path} has no capture file directly in it: give a folder with pcap or pcapng files"
    )


def test_folder_of_many_files_keeps_one_open(tmp_path: pathlib.Path) -> None:
    for i in range(300):
        (tmp_path / f"{i:03}").write_bytes(pcap_header() + pcap_record(b"x", second=i))
    before = len(os.listdir("/proc/self/fd"))
    source = PcapFiles((str(tmp_path),))
    assert len(os.listdir("/proc/self/fd")) == before
    for i, each in enumerate(blocks(source)):
        if each.count:
            assert each.frames()[0][2] == i * NS
            assert len(os.listdir("/proc/self/fd")) == before + 1
    source.close()
    assert len(os.listdir("/proc/self/fd")) == before
    assert source.stats().received == 300


# --- standard input and FIFOs ---


def piped(content: bytes, step: int, pause: float = 0.0) -> PcapFiles:
    """A source on a pipe that a thread writes into, `step` bytes at a time."""
    ours, theirs = os.pipe()

    def write() -> None:
        for at in range(0, len(content), step):
            os.write(theirs, content[at : at + step])
            time.sleep(pause)
        os.close(theirs)

    threading.Thread(target=write, daemon=True).start()
    return PcapFiles(("-",), stdin_fd=ours)


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("step", [1, 7, 100_000])
def test_standard_input(packing: str, step: int) -> None:
    frames = frames_of(40)
    source = piped(PACKINGS[packing](pcap(frames)), step)
    assert source.bytes_total is None
    assert [frame[0] for frame in drain(source)] == frames
    assert source.stats().damaged == 0


@pytest.mark.alone
def test_standard_input_gives_what_is_there_and_keeps_to_the_time() -> None:
    ours, theirs = os.pipe()
    source = PcapFiles(("-",), stdin_fd=ours)

    def idle(seconds: float) -> None:
        started = time.monotonic()
        assert source.read(seconds).count == 0
        assert seconds <= time.monotonic() - started < seconds + 0.5

    idle(0.0)
    idle(0.05)
    record = pcap_record(b"frame")
    os.write(theirs, pcap_header() + record + record[:10])
    assert [frame[0] for frame in source.read(5.0).frames()] == [b"frame"]
    idle(0.05)
    os.write(theirs, record[10:] + record)
    assert source.read(5.0).count == 2
    os.write(theirs, record[:5])
    idle(0.05)
    os.close(theirs)
    assert drain_more(source) == []
    with pytest.raises(EndOfInput):
        source.read(0.0)
    assert source.stats().damaged == 1
    assert "standard input is damaged at byte 87: cut off" in source.warnings[0]
    source.close()
    os.close(ours)  # ours to close: standard input stays open


@pytest.mark.parametrize(("content", "words"), [
    (b"", "standard input is empty (0 bytes): nothing to replay"), (b"GET / HTTP", "standard input is no capture"),
])  # fmt: skip
def test_standard_input_that_is_no_capture(content: bytes, words: str) -> None:
    source = piped(content, 3)
    with pytest.raises(NoInputError) as raised:
        drain(source)
    assert words in str(raised.value)


def test_standard_input_of_a_process(tmp_path: pathlib.Path) -> None:
    script = (
        "from http_capture.capture.source import EndOfInput\n"
        "from http_capture.capture.source.pcap_file import PcapFiles\n"
        "source = PcapFiles(('-',))\n"
        "try:\n"
        "    while True: source.read(1.0)\n"
        "except EndOfInput: print(source.stats().received)\n"
    )
    content = pcap(frames_of(500))
    command = [sys.executable, "-c", script]
    assert subprocess.run(command, input=content, capture_output=True, check=True).stdout == b"500\n"
    path = tmp_path / "file"
    path.write_bytes(gzip.compress(content))
    with path.open("rb") as file:
        assert subprocess.run(command, stdin=file, capture_output=True, check=True).stdout == b"500\n"
    closed = subprocess.run(["sh", "-c", '"$@" <&-', "sh", *command], capture_output=True, check=False)
    assert b"NoInputError: standard input is closed" in closed.stderr.replace(b"http_capture.capture.errors.", b"")


def test_standard_input_that_is_a_terminal() -> None:
    ours, theirs = os.openpty()
    try:
        with pytest.raises(NoInputError, match="is a terminal"):
            PcapFiles(("-",), stdin_fd=theirs)
    finally:
        os.close(ours)
        os.close(theirs)


def test_fifo(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    source = PcapFiles((str(path),))
    assert source.bytes_total is None
    for _ in range(3):
        assert source.read(0.01).count == 0  # nobody writes yet: that is no end
    with path.open("wb", buffering=0) as writer:
        writer.write(pcap([b"one"]))
        assert [frame[0] for frame in source.read(5.0).frames()] == [b"one"]
        assert source.read(0.01).count == 0
        writer.write(pcap_record(b"two"))
        assert [frame[0] for frame in source.read(5.0).frames()] == [b"two"]
    assert drain_more(source) == []
    assert source.stats().damaged == 0


def drain_more(source: PcapFiles) -> list[Frame]:
    return [frame for each in blocks(source) for frame in each.frames()]


# --- hostile files, large files, other people's files ---


def test_mutations(scratch: Scratch, small: None) -> None:
    chance = random.Random(42)
    frames = frames_of(5)
    whole = [
        pcap(frames),
        pcap(frames, ">", 0xA1B23C4D),
        section() + interface(options=option(9, b"\x09")) + b"".join(map(enhanced, frames)) + simple(b"abc"),
        section(">") + interface(order=">") + obsolete(b"abcd", order=">") + section() + interface() + enhanced(b"xyz"),
    ]
    whole += [packing(whole[i % 4]) for i, packing in enumerate(PACKINGS.values()) if i]
    refused = damaged = 0
    slowest = 0.0
    for i in range(20_000):
        content = bytearray(whole[i % len(whole)])
        for _ in range(chance.randrange(1, 5)):
            at = chance.randrange(len(content))
            kind = chance.randrange(5)
            if kind == 0:
                content[at] = chance.randrange(256)
            elif kind == 1:
                content[at] ^= 1 << chance.randrange(8)
            elif kind == 2:
                content[at : at + 4] = chance.choice((b"\xff" * 4, bytes(4), b"\x80\0\0\0", b"\0\0\0\x80"))
            elif kind == 3:
                del content[at : at + chance.randrange(1, 9)]
            else:
                content[at:at] = content[: chance.randrange(40)]
        scratch.write(content)
        started = time.monotonic()
        try:
            source = PcapFiles((scratch.path,))
        except OperatorError:
            refused += 1
            continue
        drain(source)
        damaged += source.stats().damaged
        slowest = max(slowest, time.monotonic() - started)
    assert refused > 100
    assert damaged > 5_000
    assert slowest < 2.0


def test_unpacking_a_bomb_is_bounded(tmp_path: pathlib.Path) -> None:
    """A zstd frame of a few KiB that becomes 1 GiB: read in steps of a block, and given up at the first nonsense."""
    head = pcap([b"good"])
    size = struct.pack("<I", len(head) << 3)[:3]
    bomb = b"\x28\xb5\x2f\xfd\x00\x58" + size + head + (struct.pack("<I", (128 << 10) << 3 | 2)[:3] + b"\0") * 8192
    unzstd = pcap_file._Unzstd()
    unzstd.feed(bomb)
    assert unzstd.take(1 << 30) == head
    for _ in range(20):
        assert len(unzstd.take(1 << 30)) == 128 << 10
    found, source = replay(tmp_path, bomb)
    assert [frame[0] for frame in found] == [b"good"]
    assert "zeros" in source.warnings[0]
    assert source.bytes_read < 100_000


@pytest.mark.parametrize("kind", ["pcap", "pcapng"])
def test_walkers_take_whole_units_only(kind: str) -> None:
    frames = frames_of(20)
    content = pcap(frames)
    if kind == "pcapng":
        content = section() + interface() + b"".join(enhanced(frame, i) for i, frame in enumerate(frames))
    chance = random.Random(3)
    for _ in range(50):
        walker = PcapWalker(content[:4]) if content[:4] in PCAP else PcapngWalker()
        lent = Block(chance.randrange(1, 5))
        found: list[bytes] = []
        start = end = 0
        while start < len(content):
            lent.lend(Buffer(content))
            taken = walker.walk(Buffer(content), start, end, lent)
            for data, *_ in lent.frames():
                found.append(data)
            assert not walker.damage
            assert lent.count <= lent.capacity
            assert (walker.needed == 0) == lent.full()
            assert walker.needed == 0 or walker.needed > end - start - taken
            start += taken
            end = min(len(content), end + chance.randrange(60))
        assert found == frames
        assert walker.frame_bytes == sum(map(len, frames))
        for outside in ((-1, 5), (0, len(content) + 1), (9, 8)):
            with pytest.raises(ValueError, match="outside the buffer"):
                walker.walk(Buffer(content), *outside, lent)


MEASURE = """
import re, sys
from http_capture.capture.source import EndOfInput
from http_capture.capture.source.pcap_file import PcapFiles
source = PcapFiles((sys.argv[1],))
try:
    while True: source.read(1.0)
except EndOfInput:
    # not ru_maxrss: a process begins with that of the one it was forked from
    peak_kib = re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1]
    print(source.stats().received, source.stats().damaged, peak_kib)
"""


@pytest.mark.slow
@pytest.mark.parametrize("packing", ["plain", "gzip", "zstd"])
def test_memory_is_flat(tmp_path: pathlib.Path, packing: str) -> None:
    def peak_kib(frames: int) -> int:
        path = tmp_path / "file"
        with path.open("wb") as file:
            file.write(pcap_header())
            for _ in range(frames):
                file.write(struct.pack("<IIII", SECOND, 0, 65536, 65536))
                file.seek(65536, os.SEEK_CUR)
            file.truncate()
        if packing == "gzip":
            path.write_bytes(gzip.compress(path.read_bytes(), 1))
        elif packing == "zstd":
            path.write_bytes(zstandard.compress(path.read_bytes(), 1))
        command = [sys.executable, "-c", MEASURE, str(path)]
        received, damaged, kib = subprocess.run(command, capture_output=True, check=True, text=True).stdout.split()
        assert (int(received), int(damaged)) == (frames, 0)
        return int(kib)

    few = peak_kib(48)
    many = peak_kib(3200)  # 200 MiB
    assert many - few < 4096


def corpus() -> list[pathlib.Path]:
    return sorted(path for path in CORPUS.rglob("*.pcap*") if path.is_file())


def known_counts(paths: list[pathlib.Path]) -> dict[str, tuple[int, int]]:
    """Frames and sum of wire lengths of each file, by somebody else."""
    if shutil.which("capinfos"):
        command = ["capinfos", "-T", "-r", "-M", "-c", "-d", *map(str, paths)]
        lines = subprocess.run(command, capture_output=True, check=False, text=True).stdout.splitlines()
        return {name: (int(count), int(size)) for name, count, size in (line.split("\t") for line in lines)}
    from scapy.utils import RawPcapReader

    counts = {}
    for path in paths:
        with RawPcapReader(str(path)) as reader:
            lengths = [meta.wirelen for _, meta in reader]
        counts[str(path)] = (len(lengths), sum(lengths))
    return counts


def test_corpus() -> None:
    paths = corpus()
    if not paths:
        pytest.skip(f"no captures of other projects at {CORPUS}")
    known = known_counts(paths)
    assert len(known) == len(paths)
    for path in paths:
        source = PcapFiles((str(path),))
        found = drain(source)
        assert (len(found), sum(frame[1] for frame in found)) == known[str(path)], path
        assert source.warnings == []
        assert source.bytes_read == source.bytes_total
