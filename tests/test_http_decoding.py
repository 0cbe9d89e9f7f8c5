"""capture/http/decoding.py: content codings, undone while the body streams."""

import gzip
import itertools
import lzma
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
from http_capture.capture.http.decoding import MAX_MEMBERS, ContentDecoder, DecoderMemory, listed_codings
from hypothesis import given, settings
from hypothesis import strategies as st

TEXT = b"".join(b"line %d of a body that repeats itself; " % i for i in range(300))
KEPT = 65536
MIB = 1 << 20
pytestmark = pytest.mark.once


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
    "deflate": zlib.compress,
    "br": lambda data: brotli.compress(data, quality=5),
    "zstd": zstd,
    "lzma": lambda data: lzma.compress(data, format=lzma.FORMAT_ALONE),
    "xz": lzma.compress,
}
MAGICS = {"gzip": b"\x1f\x8b\x08", "zstd": b"\x28\xb5\x2f\xfd", "xz": b"\xfd7zXZ\0"}


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
    max_memory_bytes: int = 256 * MIB,
) -> ContentDecoder:
    memory = DecoderMemory(max_memory_bytes)
    decoder = ContentDecoder(
        codings,
        max_kept_bytes=max_kept_bytes,
        max_decoded_bytes=max_decoded_bytes,
        max_ratio=max_ratio,
        memory=memory,
    )
    for part in parts:
        decoder.feed(part)
    decoder.finish()
    assert memory.used_bytes == 0
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
    pytest.param(["gzip"], gzip_with(0xE0, b"", TEXT), TEXT, id="gzip reserved flags"),
    pytest.param(["br"], brotli.compress(TEXT) + b"garbage", TEXT, id="br, then garbage"),
    pytest.param(["br"], ENCODE["br"](TEXT * 5) + bytes(5000), TEXT * 5, id="br, then a block of garbage"),
    pytest.param(["xz"], lzma.compress(TEXT) + bytes(8) + lzma.compress(b"two"), TEXT + b"two", id="xz streams"),
    pytest.param(["xz"], lzma.compress(TEXT) + b"garbage", TEXT, id="xz, then garbage"),
    pytest.param(["lzma"], ENCODE["lzma"](TEXT) + b"garbage", TEXT, id="LZMA-alone, then garbage"),
    pytest.param(["xz"], ENCODE["lzma"](TEXT), TEXT, id="LZMA-alone as xz"),
    pytest.param(["lzma"], lzma.compress(TEXT), TEXT, id="xz as lzma"),
    pytest.param(["br", "gzip"], encode(TEXT, ["br", "gzip"]), TEXT, id="br, gzip"),
    pytest.param(
        ["gzip", "br", "zstd", "deflate"],
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


BINARY = b"\x89PNG\r\n\x1a\n" + random.Random(4).randbytes(5000)
BAD_ZSTD_CHECKSUM = bytearray(zstd(TEXT, write_checksum=True))
BAD_ZSTD_CHECKSUM[-1] ^= 1

# codings, body, failure
RAW = [
    pytest.param(["compress"], TEXT, "unknown_coding", id="unknown"),
    pytest.param(["compress"], b"\x1f\x9d\x90" + BINARY, "unknown_coding", id="compress"),
    pytest.param(["utf-8", "aws-chunked"], TEXT, "unknown_coding", id="two unknown"),
    pytest.param(["gzip"] * 5, TEXT, "too_many_codings", id="five"),
    *(pytest.param([coding], TEXT, "not_as_listed", id=f"plain text as {coding}") for coding in ENCODE),
    *(pytest.param([coding], b'{"ok":1}', "not_as_listed", id=f"short JSON as {coding}") for coding in ENCODE),
    *(pytest.param([coding], BINARY, "not_as_listed", id=f"a picture as {coding}") for coding in ENCODE),
    pytest.param(["gzip", "br", "zstd"], TEXT, "not_as_listed", id="plain text as three"),
    pytest.param(["gzip"], b"\x1f\x8b\x07" + BINARY, "not_as_listed", id="gzip of no known method"),
    pytest.param(["gzip"], gzip_with(8, b"n" * 200_000 + b"\0", TEXT), "corrupt", id="gzip endless name"),
    pytest.param(["zstd"], bytes(BAD_ZSTD_CHECKSUM), "corrupt", id="zstd checksum"),
    pytest.param(["lzma"], b"\xfd7zXZ\0" + BINARY, "corrupt", id="broken xz"),
    pytest.param(["br", "gzip"], gzip.compress(zstd(TEXT)[:9]), "cut", id="inner cut"),
    *(pytest.param([coding], magic[:1], "cut", id=f"one byte of {coding}") for coding, magic in MAGICS.items()),
    pytest.param(["deflate"], b"\x78", "cut", id="one byte of deflate"),
]


@pytest.mark.parametrize(("codings", "body", "failure"), RAW)
def test_raw_where_nothing_was_decoded(codings: list[str], body: bytes, failure: str) -> None:
    assert result(decode(codings, body)) == (failure, False, len(body) > KEPT, 0, len(body), body[:KEPT])
    short = decode(codings, body, max_kept_bytes=0)
    assert (short.content(), short.truncated) == (b"", True)


# codings, body, failure: decoded to TEXT
NOT_AS_LISTED = [
    *(
        pytest.param([listed], ENCODE[real](TEXT), "not_as_listed", id=f"{real} as {listed}")
        for listed in ENCODE
        for real in MAGICS
        if listed != real and {listed, real} != {"lzma", "xz"}
    ),
    *(pytest.param(["utf-8"], ENCODE[real](TEXT), "unknown_coding", id=f"{real} as unknown") for real in MAGICS),
    *(
        pytest.param([listed, real], ENCODE[real](TEXT), "not_as_listed", id=f"{listed} not applied, {real}")
        for listed in ENCODE
        for real in ENCODE
    ),
    *(
        pytest.param([real, listed], ENCODE[real](TEXT), "not_as_listed", id=f"{real}, {listed} not applied")
        for listed in ENCODE
        for real in ENCODE
        if real != listed and {listed, real} != {"lzma", "xz"}
    ),
    pytest.param(["deflate", "deflate"], raw_deflate(TEXT), "not_as_listed", id="raw deflate once of two"),
    pytest.param(["deflate", "gzip"], raw_deflate(TEXT), "not_as_listed", id="raw deflate, gzip not applied"),
    pytest.param(["gzip", "gzip", "gzip", "gzip"], gzip.compress(TEXT), "not_as_listed", id="one of four"),
    pytest.param(["utf-8", "gzip"], gzip.compress(TEXT), "unknown_coding", id="unknown inside"),
    pytest.param(["gzip", "sdch"], gzip.compress(TEXT), "unknown_coding", id="unknown outside"),
]


@pytest.mark.parametrize(("codings", "body", "failure"), NOT_AS_LISTED)
def test_what_is_there_counts(codings: list[str], body: bytes, failure: str) -> None:
    assert result(decode(codings, body)) == (failure, True, False, len(TEXT), len(body), TEXT)


@pytest.mark.parametrize("coding", ENCODE)
def test_what_is_listed_is_undone_once(coding: str) -> None:
    inner = gzip.compress(TEXT)
    body = ENCODE[coding](inner)
    assert result(decode([coding], body)) == ("", True, False, len(inner), len(body), inner)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"gzip", ["gzip"]),
        (b"", []),
        (b" , ,", []),
        (b"identity", []),
        (b"none,identity", []),
        (b"GZip", ["gzip"]),
        (b"x-gzip,X-XZ", ["gzip", "xz"]),
        (b"x-deflate", ["deflate"]),
        (b"deflate, gzip", ["deflate", "gzip"]),
        (b"gzip,identity,,\tbr ,", ["gzip", "br"]),
        (b'"gzip"', ["gzip"]),
        (b"'gzip'", ["gzip"]),
        (b": gzip", ["gzip"]),
        (b"gzip x", ["gzip"]),
        (b"gzip;q=1.0, br;q=0.5", ["gzip", "br"]),
        (b"gzip\0", ["gzip"]),
        (b"def\0late", ["deflate"]),
        (b"\x0bgzip\x0c", ["gzip"]),
        (b"\xa0gzip\xa0", ["gzip"]),
        (b"\rgzip\tx", ["gzip"]),
        (b"\xff\xfe", []),
        (b"aws-chunked", ["aws-chunked"]),
    ],
)
def test_listed_codings(value: bytes, expected: list[str]) -> None:
    assert listed_codings(value) == expected


@given(st.binary())
def test_any_value_lists_clean_names(value: bytes) -> None:
    for name in listed_codings(value):
        assert name.isascii()
        assert name.isprintable()
        assert name == name.lower()


def broken(coding: str) -> tuple[bytes, bytes]:
    """Random bytes, encoded, with the last eighth of it spoilt; what the encoder was given."""
    plain = random.Random(5).randbytes(1000).hex().encode()
    body = ENCODE[coding](plain)
    return body[: len(body) * 7 // 8] + random.Random(7).randbytes(900), plain


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br"])
def test_what_was_decoded_before_an_error_is_kept(coding: str) -> None:
    body, plain = broken(coding)
    decoder = decode([coding], body)
    assert (decoder.failure, decoder.decoded, decoder.truncated) == ("corrupt", True, True)
    assert decoder.decoded_bytes > 1500
    assert decoder.content()[:1500] == plain[:1500]
    assert result(decode([coding, "zstd"], body))[5] == decoder.content()


def test_what_was_decoded_before_an_error_in_a_later_block_is_kept() -> None:
    plain = random.Random(6).randbytes(20_000).hex().encode()
    for coding in ("gzip", "deflate", "br", "lzma", "xz"):  # zstd has no check of literals
        body = bytearray(ENCODE[coding](plain))
        body[15_000:16_000] = random.Random(7).randbytes(1000)
        decoder = decode([coding], bytes(body))
        assert (decoder.failure, decoder.decoded, decoder.truncated) == ("corrupt", True, True), coding
        assert decoder.content()[:10_000] == plain[:10_000]


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


@pytest.mark.parametrize("codings", [*([coding] for coding in ENCODE), ["br", "gzip"]])
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


@pytest.mark.parametrize("codings", [*([coding] for coding in ENCODE), ["zstd", "br"]])
def test_bytes_at_a_time_over_many_blocks(codings: list[str]) -> None:
    plain = random.Random(2).randbytes(30_000) + TEXT
    body = encode(plain, codings)
    expected = ("", True, False, len(plain), len(body), plain)
    assert result(decode(codings, *(body[i : i + 1] for i in range(len(body))))) == expected
    assert result(decode(codings, body)) == expected
    assert result(decode(codings, *(memoryview(body)[at : at + 999] for at in range(0, len(body), 999)))) == expected


ZEROS = bytes(10 * MIB)
BOMBS = {coding: encode(ZEROS, [coding]) for coding in ENCODE}
# The head of a zstd frame and RLE blocks: each 4 bytes make 128 KiB.
ZSTD_BLOCKS = b"\x28\xb5\x2f\xfd\x00\x38" + (struct.pack("<I", 1 << 20 | 2)[:3] + b"A") * 4000


@pytest.mark.alone
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
    assert peak < (MIB if {"gzip", "deflate", "br"}.issuperset(codings) else 10 * MIB)


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


@pytest.mark.alone
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


@pytest.mark.parametrize("coding", ["gzip", "zstd", "xz"])
def test_members_are_bounded(coding: str) -> None:
    member = ENCODE[coding](b"x")
    assert result(decode([coding], member * MAX_MEMBERS))[:4] == ("", True, False, MAX_MEMBERS)
    assert result(decode([coding], member * (MAX_MEMBERS + 1)))[:4] == ("too_large", True, True, MAX_MEMBERS)


def test_zstd_window_is_bounded() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=24)
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    body = stream.compress(TEXT) + stream.flush()
    decoder = decode(["zstd"], body)
    assert (decoder.failure, decoder.decoded, decoder.content()) == ("memory", False, body)
    parameters = zstandard.ZstdCompressionParameters(window_log=23)
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    assert decode(["zstd"], stream.compress(TEXT) + stream.flush()).content() == TEXT


@pytest.mark.parametrize(
    ("form", "kind"), [(lzma.FORMAT_XZ, lzma.FILTER_LZMA2), (lzma.FORMAT_ALONE, lzma.FILTER_LZMA1)]
)
def test_lzma_dictionary_is_bounded(form: int, kind: int) -> None:
    for megabytes, failure in ((16, ""), (32, "memory")):
        body = lzma.compress(TEXT, form, filters=[{"id": kind, "dict_size": megabytes * MIB}])
        decoder = decode(["lzma"], body)
        assert (decoder.failure, decoder.content()) == (failure, body if failure else TEXT)


PEAK = """
import sys
from http_capture.capture.http.decoding import ContentDecoder, DecoderMemory
def kilobytes():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
coding, size, step = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
body = sys.stdin.buffer.read()
memory = DecoderMemory(1 << 40)
decoders = [
    ContentDecoder([coding], max_kept_bytes=0, max_decoded_bytes=1 << 40, max_ratio=1 << 40, memory=memory)
    for _ in range(size)
]
decoders[0].feed(body[:9000])
begun, used = kilobytes(), memory.used_bytes
for at in range(0, len(body), step):
    for decoder in decoders[1:]:
        decoder.feed(body[at : at + step])
print(kilobytes() - begun, (memory.used_bytes - used) >> 10)
"""


@pytest.mark.parametrize("coding", ENCODE)
def test_estimate_of_memory(coding: str) -> None:
    """Resident memory of ten open bodies with large windows, against the estimate."""
    plain = random.Random(8).randbytes(6 * MIB)
    if coding == "br":
        body = brotli.compress(plain, quality=1, lgwin=24)
    elif coding == "zstd":
        body = zstd(plain, compression_params=zstandard.ZstdCompressionParameters(window_log=23))
    elif coding in ("lzma", "xz"):
        form, kind = (lzma.FORMAT_XZ, lzma.FILTER_LZMA2) if coding == "xz" else (lzma.FORMAT_ALONE, lzma.FILTER_LZMA1)
        plain = plain[: 2 * MIB]
        body = lzma.compress(plain, form, filters=[{"id": kind, "dict_size": 16 << 20, "mode": lzma.MODE_FAST}])
    else:
        body = ENCODE[coding](plain[: 2 * MIB])
    body = body[: len(body) * 9 // 10]
    done = subprocess.run(
        [sys.executable, "-c", PEAK, coding, "11", "500000"], input=body, capture_output=True, check=True
    )
    resident, estimated = (int(word) << 10 for word in done.stdout.split())
    assert resident < estimated * 1.3 + 8 * MIB


def test_open_bodies_share_a_bound() -> None:
    memory = DecoderMemory(MIB)
    limits = {"max_kept_bytes": KEPT, "max_decoded_bytes": 64 * MIB, "max_ratio": 1000, "memory": memory}
    plain = random.Random(9).randbytes(20_000).hex().encode()
    body = gzip.compress(plain)
    decoders = [ContentDecoder(["gzip"], **limits) for _ in range(100)]
    for decoder in decoders:
        decoder.feed(body[:5000])
    given_up = [decoder for decoder in decoders if decoder.failure == "memory"]
    assert len(given_up) == memory.refused == 100 - 21
    assert memory.used_bytes <= MIB
    for decoder in decoders:
        decoder.feed(body[5000:])
        decoder.finish()
        if decoder in given_up:
            assert (decoder.failure, decoder.truncated) == ("memory", True)
            assert plain.startswith(decoder.content())
            assert decoder.encoded_bytes == len(body)
        else:
            assert (decoder.failure, decoder.content()) == ("", plain)
    assert memory.used_bytes == 0


def test_a_body_of_one_block_takes_no_memory() -> None:
    assert decode(["br"], ENCODE["br"](TEXT), max_memory_bytes=0).failure == ""
    assert decode(["br"], ENCODE["br"](random.Random(1).randbytes(9000)), max_memory_bytes=0).failure == "memory"


@pytest.mark.parametrize("coding", ENCODE)
def test_any_byte_flipped(coding: str) -> None:
    plain = TEXT[:600]
    body = ENCODE[coding](plain)
    choose = random.Random(10)
    for at in range(len(body)):
        flipped = bytearray(body)
        flipped[at] ^= choose.randint(1, 255)
        sent = bytes(flipped)
        limits = {"max_decoded_bytes": 100_000, "max_kept_bytes": 500}
        decoder = decode([coding], sent, **limits)
        assert result(decoder) == result(decode([coding], *pieces_of(sent, [at, at + 1]), **limits))
        assert decoder.decoded_bytes <= 100_000 + 65536
        assert len(decoder.content()) <= 500
        if not decoder.decoded:
            assert decoder.content() == sent[:500]


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
        "from http_capture.capture.http.decoding import DecoderMemory\n"
        "memory = DecoderMemory(1 << 20)\n"
        "for coding in ('gzip', 'deflate', 'br', 'zstd', 'xz'):\n"
        "    decoder = ContentDecoder([coding], max_kept_bytes=9, max_decoded_bytes=9, max_ratio=9, memory=memory)\n"
        "    if coding in ('gzip', 'deflate'): decoder.feed(b'x' * 5000)\n"
        "    decoder.finish()\n"
        "print([name for name in ('brotli', 'zstandard', 'lzma') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
