"""capture/http/decoding.py: content codings, undone while the body streams."""

import gzip
import itertools
import random
import struct
import subprocess
import sys
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterable, Sequence

import brotli
import pytest
import zstandard
from http_capture.capture.http.decoding import MAX_MEMBERS, ContentDecoder
from hypothesis import given, settings
from hypothesis import strategies as st

TEXT = b"".join(b"line %d of a body that repeats itself; " % i for i in range(300))
KEPT = 65536
MIB = 1 << 20


def raw_deflate(data: bytes, level: int = 6) -> bytes:
    stream = zlib.compressobj(level, zlib.DEFLATED, -15)
    return stream.compress(data) + stream.flush()


def zstd(data: bytes, **options: object) -> bytes:
    return zstandard.ZstdCompressor(**options).compress(data)


def gzip_with(flags: int, fields: bytes, data: bytes) -> bytes:
    head = b"\x1f\x8b\x08" + bytes([flags]) + b"\0\0\0\0\x02\xff"
    return head + fields + raw_deflate(data) + struct.pack("<II", zlib.crc32(data), len(data) & 0xFFFFFFFF)


ENCODE: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, mtime=0),
    "x-gzip": lambda data: gzip.compress(data, mtime=0),
    "deflate": zlib.compress,
    "br": lambda data: brotli.compress(data, quality=5),
    "zstd": zstd,
}


def encode(data: bytes, codings: Iterable[str]) -> bytes:
    for coding in codings:
        data = ENCODE[coding](data)
    return data


def decode(
    codings: Sequence[str],
    *parts: bytes | memoryview,
    max_kept_bytes: int = KEPT,
    max_decoded_bytes: int = 64 * MIB,
    max_ratio: int = 1000,
) -> ContentDecoder:
    decoder = ContentDecoder(
        codings, max_kept_bytes=max_kept_bytes, max_decoded_bytes=max_decoded_bytes, max_ratio=max_ratio
    )
    for part in parts:
        decoder.feed(part)
    decoder.finish()
    return decoder


def result(decoder: ContentDecoder) -> tuple[object, ...]:
    return (
        decoder.failure,
        decoder.decoded,
        decoder.truncated,
        decoder.decoded_bytes,
        decoder.encoded_bytes,
        decoder.content(),
    )


def pieces_of(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    points = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[a:b] for a, b in itertools.pairwise(points)]


WHOLE = [
    pytest.param([], TEXT, TEXT, id="no coding"),
    pytest.param(["identity", "identity"], TEXT, TEXT, id="identity"),
    *(pytest.param([coding], function(TEXT), TEXT, id=coding) for coding, function in ENCODE.items()),
    *(pytest.param([coding], function(b""), b"", id=f"{coding} of nothing") for coding, function in ENCODE.items()),
    *(pytest.param([coding], b"", b"", id=f"{coding}, empty body") for coding in ENCODE),
    pytest.param(
        ["gzip"], gzip.compress(TEXT) + gzip.compress(b"two") + gzip.compress(b""), TEXT + b"two", id="members"
    ),
    pytest.param(["gzip"], gzip.compress(TEXT) + b"garbage", TEXT, id="gzip, then garbage"),
    pytest.param(["gzip"], gzip.compress(TEXT) + bytes(20), TEXT, id="gzip, then zeros"),
    pytest.param(["gzip"], gzip.compress(TEXT) + b"\x1f\x8b\x07" + bytes(20), TEXT, id="gzip, then no member"),
    pytest.param(["gzip"], gzip.compress(TEXT) + b"\x1f", TEXT, id="gzip, then one byte of a magic"),
    pytest.param(["gzip"], gzip_with(4, b"\x05\0extra", TEXT), TEXT, id="gzip FEXTRA"),
    pytest.param(["gzip"], gzip_with(4, b"\x00\0", TEXT), TEXT, id="gzip FEXTRA of nothing"),
    pytest.param(["gzip"], gzip_with(8, b"name\0", TEXT), TEXT, id="gzip FNAME"),
    pytest.param(["gzip"], gzip_with(16, b"comment\0", TEXT), TEXT, id="gzip FCOMMENT"),
    pytest.param(["gzip"], gzip_with(2, b"\x12\x34", TEXT), TEXT, id="gzip FHCRC"),
    pytest.param(["gzip"], gzip_with(31, b"\x02\0xyn\0c\0\x12\x34", TEXT), TEXT, id="gzip all flags"),
    pytest.param(["gzip"], gzip_with(8, b"n" * 100_000 + b"\0", TEXT), TEXT, id="gzip long name"),
    pytest.param(["deflate"], raw_deflate(TEXT), TEXT, id="raw deflate"),
    pytest.param(["deflate"], raw_deflate(TEXT, 0), TEXT, id="raw deflate, stored"),
    pytest.param(["deflate"], zlib.compress(TEXT) + b"garbage", TEXT, id="deflate, then garbage"),
    pytest.param(["zstd"], zstd(TEXT) + zstd(b"two") + zstd(b""), TEXT + b"two", id="zstd frames"),
    pytest.param(["zstd"], b"\x5a\x2a\x4d\x18\3\0\0\0abc" + zstd(TEXT), TEXT, id="zstd skippable frame"),
    pytest.param(["zstd"], zstd(TEXT) + b"garbage", TEXT, id="zstd, then garbage"),
    pytest.param(["zstd"], zstd(TEXT) + b"\x28\xb5", TEXT, id="zstd, then half a magic"),
    pytest.param(["zstd"], zstd(TEXT, write_checksum=True, level=19), TEXT, id="zstd checksum"),
    pytest.param(["br", "gzip"], encode(TEXT, ["br", "gzip"]), TEXT, id="br, gzip"),
    pytest.param(
        ["gzip", "identity", "br", "zstd", "deflate"],
        encode(TEXT, ["gzip", "br", "zstd", "deflate"]),
        TEXT,
        id="four stacked",
    ),
]


@pytest.mark.parametrize(("codings", "body", "expected"), WHOLE)
@pytest.mark.parametrize("step", [1, 4095, 1 << 20])
def test_whole(codings: list[str], body: bytes, expected: bytes, step: int) -> None:
    decoder = decode(codings, *(body[at : at + step] for at in range(0, len(body), step)))
    assert result(decoder) == ("", True, False, len(expected), len(body), expected)


def test_raw_deflate_that_looks_like_zlib() -> None:
    # A stored block, not the last one, with padding bits so that the first byte is 0x78; LEN then begins with 0x01.
    # 0x78 0x01 is a good zlib header.
    block = b"\x78" + struct.pack("<HH", 1, 0xFFFE) + b"A"
    body = block + raw_deflate(b"BC")
    assert zlib.decompressobj(-15).decompress(body) == b"ABC"
    assert result(decode(["deflate"], body)) == ("", True, False, 3, len(body), b"ABC")


@pytest.mark.parametrize("coding", ENCODE)
def test_only_the_first_bytes_are_kept(coding: str) -> None:
    body = ENCODE[coding](TEXT)
    decoder = decode([coding], body, max_kept_bytes=100)
    assert result(decoder) == ("", True, True, len(TEXT), len(body), TEXT[:100])
    assert result(decode([coding], body, max_kept_bytes=0)) == ("", True, True, len(TEXT), len(body), b"")
    assert not decode([coding], body, max_kept_bytes=len(TEXT)).truncated


def test_no_coding_keeps_the_first_bytes() -> None:
    assert result(decode([], TEXT, max_kept_bytes=10)) == ("", True, True, len(TEXT), len(TEXT), TEXT[:10])


RAW = [
    pytest.param(["compress"], TEXT, "unknown_coding", id="unknown"),
    pytest.param(["gzip", "sdch"], gzip.compress(TEXT), "unknown_coding", id="unknown on top"),
    pytest.param(["GZIP"], gzip.compress(TEXT), "unknown_coding", id="not lower-case"),
    pytest.param(["gzip"] * 5, TEXT, "too_many_codings", id="five"),
    pytest.param(["gzip"], TEXT, "corrupt", id="plain text as gzip"),
    pytest.param(["deflate"], b"\xff" + TEXT, "corrupt", id="garbage as deflate"),
    pytest.param(["br"], b"\xff" * 100, "corrupt", id="garbage as br"),
    pytest.param(["zstd"], TEXT, "corrupt", id="plain text as zstd"),
    pytest.param(["gzip"], gzip_with(0x20, b"", TEXT), "corrupt", id="gzip reserved flag"),
    pytest.param(["gzip"], gzip_with(8, b"n" * 200_000 + b"\0", TEXT), "corrupt", id="gzip endless name"),
    pytest.param(["gzip"], gzip.compress(TEXT)[:40] + b"\xff" * 100, "corrupt", id="gzip broken in the middle"),
    pytest.param(["br"], brotli.compress(TEXT) + b"garbage", "corrupt", id="br, then garbage"),
    pytest.param(["br"], ENCODE["br"](TEXT * 50) + bytes(5000), "corrupt", id="br, then a block of garbage"),
    pytest.param(["zstd"], zstd(TEXT, write_checksum=True)[:-1] + b"\0", "corrupt", id="zstd checksum"),
    pytest.param(["gzip"], b"\x1f", "cut", id="one byte of gzip"),
    pytest.param(["deflate"], b"\x78", "cut", id="one byte of deflate"),
    pytest.param(["zstd"], b"\x28", "cut", id="one byte of zstd"),
    pytest.param(["br", "gzip"], gzip.compress(b"\xff" * 100), "corrupt", id="inner corrupt"),
]


@pytest.mark.parametrize(("codings", "body", "failure"), RAW)
def test_raw_where_it_cannot_be_decoded(codings: list[str], body: bytes, failure: str) -> None:
    assert result(decode(codings, body)) == (failure, False, len(body) > KEPT, 0, len(body), body[:KEPT])
    short = decode(codings, body, max_kept_bytes=0)
    assert (short.content(), short.truncated) == (b"", True)


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        pytest.param("gzip", gzip.compress(TEXT)[:-8] + b"\0" * 8, id="gzip CRC"),
        pytest.param("gzip", gzip.compress(TEXT)[:-4] + b"\0" * 4, id="gzip length"),
        pytest.param("deflate", zlib.compress(TEXT)[:-4] + b"\0" * 4, id="zlib Adler-32"),
    ],
)
def test_wrong_checksum_is_decoded_all_the_same(coding: str, body: bytes) -> None:
    assert result(decode([coding], body)) == ("corrupt", True, False, len(TEXT), len(body), TEXT)


def test_members_after_a_wrong_checksum_are_decoded() -> None:
    body = gzip.compress(TEXT)[:-8] + b"\0" * 8 + gzip.compress(b"more")
    assert result(decode(["gzip"], body)) == ("corrupt", True, False, len(TEXT) + 4, len(body), TEXT + b"more")


@pytest.mark.parametrize("codings", [["gzip"], ["deflate"], ["br"], ["zstd"], ["br", "gzip"]])
def test_cut_at_every_byte(codings: list[str]) -> None:
    plain = random.Random(1).randbytes(300) + TEXT[:3000]
    body = encode(plain, codings)
    for length in range(1, len(body)):
        decoder = decode(codings, body[:length])
        assert decoder.failure == "cut", length
        assert decoder.truncated or not decoder.decoded, length
        if decoder.decoded:
            assert decoder.decoded_bytes > 0
            assert decoder.content() == plain[: decoder.decoded_bytes]
        else:
            assert decoder.content() == body[:length]


def test_cut_raw_deflate() -> None:
    body = raw_deflate(TEXT)
    decoder = decode(["deflate"], body[:-10])
    assert decoder.failure == "cut"
    assert decoder.decoded
    assert TEXT.startswith(decoder.content())


def test_bytes_after_the_end_are_only_counted() -> None:
    body = gzip.compress(TEXT)
    decoder = decode(["gzip"], body[:200])
    before = decoder.content()
    decoder.feed(body[200:])
    decoder.finish()
    assert decoder.content() == before
    assert (decoder.failure, decoder.encoded_bytes) == ("cut", len(body))


@settings(max_examples=300, deadline=None)
@given(
    plain=st.one_of(st.binary(max_size=200), st.binary(max_size=40).map(lambda part: part * 3000)),
    codings=st.lists(st.sampled_from(sorted(ENCODE)), max_size=4),
    damage=st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), max_size=2),
    length=st.one_of(st.none(), st.integers(0, 1 << 20)),
    cuts=st.lists(st.integers(0, 1 << 20), max_size=20),
    tail=st.binary(max_size=10),
)
def test_any_split_gives_the_same(
    plain: bytes,
    codings: list[str],
    damage: list[tuple[int, int]],
    length: int | None,
    cuts: list[int],
    tail: bytes,
) -> None:
    body = bytearray(encode(plain, codings) + tail)
    for place, value in damage:
        if body:
            body[place % len(body)] = value
    sent = bytes(body if length is None else body[: length % (len(body) + 1)])
    limits = {"max_kept_bytes": 500, "max_decoded_bytes": 100_000, "max_ratio": 50}
    whole = decode(codings, sent, **limits)
    assert result(decode(codings, *pieces_of(sent, cuts), **limits)) == result(whole)
    assert whole.encoded_bytes == len(sent)
    assert len(whole.content()) <= 500
    if not damage and length is None and not tail and len(plain) <= 100_000:
        assert (whole.failure, whole.content(), whole.decoded_bytes) == ("", plain[:500], len(plain))
    if not whole.decoded:
        assert whole.content() == sent[:500]


@pytest.mark.parametrize("codings", [["gzip"], ["deflate"], ["br"], ["zstd"], ["zstd", "br"]])
def test_bytes_at_a_time_over_many_blocks(codings: list[str]) -> None:
    plain = random.Random(2).randbytes(30_000) + TEXT
    body = encode(plain, codings)
    expected = ("", True, False, len(plain), len(body), plain)
    assert result(decode(codings, *(body[i : i + 1] for i in range(len(body))))) == expected
    assert result(decode(codings, body)) == expected
    assert result(decode(codings, *(memoryview(body)[at : at + 999] for at in range(0, len(body), 999)))) == expected


ZEROS = bytes(10 * MIB)
BOMBS = {coding: encode(ZEROS, [coding]) for coding in ("gzip", "deflate", "br", "zstd")}
# The head of a zstd frame and RLE blocks: each 4 bytes make 128 KiB.
ZSTD_BLOCKS = b"\x28\xb5\x2f\xfd\x00\x38" + (struct.pack("<I", 1 << 20 | 2)[:3] + b"A") * 4000


@pytest.mark.parametrize(
    ("codings", "body"),
    [
        *(pytest.param([coding], body, id=coding) for coding, body in BOMBS.items()),
        pytest.param(["zstd"], ZSTD_BLOCKS, id="zstd RLE blocks"),
        pytest.param(["gzip", "gzip"], encode(bytes(100 * MIB), ["gzip", "gzip"]), id="gzip twice"),
    ],
)
def test_bombs(codings: list[str], body: bytes) -> None:
    decode(codings, b"")
    decode(codings, encode(b"x", codings))  # imports are not measured
    begun = time.perf_counter()
    limited = decode(codings, body, max_decoded_bytes=64 * MIB, max_ratio=100)
    taken = time.perf_counter() - begun
    assert limited.failure == "ratio"
    assert limited.decoded
    assert limited.truncated
    assert len(limited.content()) == KEPT
    assert limited.decoded_bytes <= 5 * MIB
    assert taken < 1.0
    tracemalloc.start()
    decode(codings, body, max_decoded_bytes=8 * MIB, max_ratio=1 << 40)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < (10 * MIB if "zstd" in codings else MIB)


@pytest.mark.parametrize("coding", BOMBS)
def test_too_large(coding: str) -> None:
    decoder = decode([coding], BOMBS[coding], max_decoded_bytes=3 * MIB, max_ratio=1 << 40)
    assert decoder.failure == "too_large"
    assert decoder.decoded
    assert decoder.content() == bytes(KEPT)
    assert 3 * MIB < decoder.decoded_bytes <= 3 * MIB + 65536
    whole = decode([coding], BOMBS[coding], max_decoded_bytes=10 * MIB, max_ratio=1 << 40)
    assert (whole.failure, whole.decoded_bytes) == ("", 10 * MIB)


def test_ratio_is_not_checked_below_a_mebibyte() -> None:
    body = zstd(bytes(MIB))
    assert decode(["zstd"], body, max_ratio=1).failure == ""
    assert decode(["zstd"], zstd(bytes(MIB + 1)), max_ratio=1).failure == "ratio"


def test_an_inner_coding_is_limited_too() -> None:
    # A megabyte of empty gzip members: the outer coding makes much, the inner one nothing.
    body = gzip.compress(gzip.compress(b"", mtime=0) * 50_000)
    begun = time.perf_counter()
    decoder = decode(["gzip", "gzip"], body)
    assert (decoder.failure, decoder.decoded) == ("too_large", False)
    assert decoder.content() == body[:KEPT]
    assert time.perf_counter() - begun < 1.0
    padding = b"\x50\x2a\x4d\x18" + struct.pack("<I", 10 * MIB) + bytes(10 * MIB)
    body = gzip.compress(padding)
    assert decode(["zstd", "gzip"], body, max_ratio=100).failure == "ratio"
    assert decode(["zstd", "gzip"], body, max_decoded_bytes=5 * MIB, max_ratio=10000).failure == "too_large"


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
def test_members_are_bounded(coding: str) -> None:
    member = ENCODE[coding](b"x")
    assert result(decode([coding], member * MAX_MEMBERS))[:4] == ("", True, False, MAX_MEMBERS)
    assert result(decode([coding], member * (MAX_MEMBERS + 1)))[:4] == ("too_large", True, True, MAX_MEMBERS)


def test_zstd_window_is_bounded() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=24)
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    body = stream.compress(TEXT) + stream.flush()
    decoder = decode(["zstd"], body)
    assert (decoder.failure, decoder.decoded, decoder.content()) == ("too_large", False, body)
    parameters = zstandard.ZstdCompressionParameters(window_log=23)
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    assert decode(["zstd"], stream.compress(TEXT) + stream.flush()).content() == TEXT


def test_fuzz_never_raises() -> None:
    choose = random.Random(3)
    bodies = [(coding, function(TEXT[:2000])) for coding, function in ENCODE.items()]
    bodies += [("deflate", raw_deflate(TEXT[:2000])), ("gzip", gzip.compress(b"a") * 5), ("zstd", zstd(b"a") * 5)]
    failures = set()
    for _ in range(20_000):
        coding, body = choose.choice(bodies)
        damaged = bytearray(body)
        for _ in range(choose.randint(1, 4)):
            action, at = choose.randrange(4), choose.randrange(len(damaged))
            if action == 0:
                damaged[at] ^= 1 << choose.randrange(8)
            elif action == 1:
                damaged[at : at + choose.randint(1, 20)] = b"\0"
            elif action == 2:
                damaged[at:at] = choose.randbytes(choose.randint(1, 20))
            else:
                damaged[at] = choose.randrange(256)
        sent = bytes(damaged)
        half = choose.randrange(len(sent) + 1)
        decoder = decode([coding], sent[:half], sent[half:], max_decoded_bytes=MIB)
        failures.add(decoder.failure)
        assert decoder.encoded_bytes == len(sent)
        if not decoder.decoded:
            assert decoder.content() == sent
    assert {"", "corrupt", "cut"} <= failures


def test_libraries_are_imported_only_where_used() -> None:
    program = (
        "import sys\n"
        "from http_capture.capture.http.decoding import ContentDecoder\n"
        "for coding in ('gzip', 'deflate', 'br', 'zstd'):\n"
        "    decoder = ContentDecoder([coding], max_kept_bytes=9, max_decoded_bytes=9, max_ratio=9)\n"
        "    if coding in ('gzip', 'deflate'): decoder.feed(b'x' * 5000)\n"
        "    decoder.finish()\n"
        "print([name for name in ('brotli', 'zstandard') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
