"""Undoes the content codings of one body while it streams (RFC 9110 8.4): gzip, deflate, br, zstd, up to four stacked.

Memory is flat: only the first `max_kept_bytes` of a body are kept, raw and decoded; the rest is counted. A coding holds
its window (32 KiB for gzip and deflate, at most 16 MiB for br and 8 MiB for zstd, RFC 9659) and hands on pieces of at
most 64 KiB; the zstd library may make 4 MiB at once of hostile input.

Work is bounded: the output of each coding, not only of the last one, is held to `max_decoded_bytes` and `max_ratio`,
and so is the number of gzip members and zstd frames.

The result depends on the bytes only, not on how they were split: the codings are always given blocks of BLOCK_BYTES.
"""

import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal, Protocol

Failure = Literal["", "unknown_coding", "too_many_codings", "corrupt", "cut", "too_large", "ratio"]

MAX_CODINGS = 4
MAX_MEMBERS = 1024  # gzip members or zstd frames of one body: 64 MiB in the 64 KiB members of bgzip
MAX_GZIP_HEAD_BYTES = 1 << 17
BLOCK_BYTES = 4096
PIECE_BYTES = 1 << 16
RATIO_FROM_BYTES = 1 << 20
ZSTD_WINDOW_BYTES = 8 << 20
ZSTD_STEP_BYTES = 128  # the library has no limit on output; a block of 128 KiB takes at least 4 bytes of input
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
ZSTD_SKIPPABLE = b"\x2a\x4d\x18"  # after a byte 0x50 to 0x5f


class ContentDecoder:
    """One body. Zero or more `feed()`, then `finish()`; neither raises, whatever the bytes.

    codings: lower-case tokens in the order in which they were applied, as Content-Encoding lists them; `identity` is
    dropped. Bytes fed after a failure or after `finish()` are counted in `encoded_bytes` and not decoded: where bytes
    of the body are missing, call `finish()` at the gap and the rest cannot spoil what came before it.

    encoded_bytes: bytes fed. failure: "" or
      unknown_coding, too_many_codings   nothing is decoded
      corrupt    not what the coding says it is; where only a checksum is wrong, the body is still decoded to its end
      cut        the body ends inside a coding (known after finish())
      too_large  more than max_decoded_bytes, a zstd window over 8 MiB, or too many members
      ratio      more than max_ratio times the bytes it came from, with more than 1 MiB decoded
    An empty body is no failure.
    """

    def __init__(self, codings: Sequence[str], *, max_kept_bytes: int, max_decoded_bytes: int, max_ratio: int) -> None:
        self.encoded_bytes = 0
        self.failure: Failure = ""
        self._codings = [coding for coding in codings if coding != "identity"]
        self._max_kept_bytes = max_kept_bytes
        self._max_decoded_bytes = max_decoded_bytes
        self._max_ratio = max_ratio
        self._layers: list[_Coding] = []
        self._made = [0] * len(self._codings)  # bytes that each layer has put out
        self._stopped = False
        self._mismatch = False  # the failure is a wrong checksum and nothing else
        self._taken = 0  # bytes given to the first layer
        self._block = bytearray()
        self._raw = bytearray()
        self._decoded = bytearray()
        if len(self._codings) > MAX_CODINGS:
            self._stop("too_many_codings")
        elif not all(coding in _CODINGS for coding in self._codings):
            self._stop("unknown_coding")

    def feed(self, data: bytes | memoryview) -> None:
        """The next bytes of the body, transfer-decoded. They are copied."""
        self.encoded_bytes += len(data)
        room = self._max_kept_bytes - len(self._raw)
        if room > 0:
            self._raw += data[:room]
        if self._stopped or not self._codings:
            return
        if len(self._block) + len(data) < BLOCK_BYTES:
            self._block += data
            return
        view = memoryview(data)
        at = 0
        while not self._stopped and len(self._block) + len(view) - at >= BLOCK_BYTES:
            end = at + BLOCK_BYTES - len(self._block)
            block = bytes(self._block) + view[at:end]
            self._block.clear()
            self._decode(block)
            at = end
        if not self._stopped:
            self._block += view[at:]

    def finish(self) -> None:
        """The end of the body. Frees the codings; further calls do nothing."""
        if self._stopped:
            return
        if self._block:
            self._decode(bytes(self._block))
        if not self._stopped:
            self._stop("" if all(layer.whole() for layer in self._layers) else "cut")

    @property
    def decoded(self) -> bool:
        """Whether `content()` is decoded; else it is raw. True where there was nothing to decode."""
        if self.failure in ("cut", "too_large", "ratio"):
            return self._made[-1] > 0
        return not self.failure or self._mismatch

    @property
    def decoded_bytes(self) -> int:
        """The length of the decoded body, as far as it was decoded, whether kept or not; 0 where not `decoded`."""
        if not self._codings:
            return self.encoded_bytes
        return self._made[-1] if self.decoded else 0

    @property
    def truncated(self) -> bool:
        """Whether `content()` is shorter than the body, or the body's true length is not known after a failure."""
        if not self.decoded or not self._codings:
            return self.encoded_bytes > len(self._raw)
        return self._made[-1] > len(self._decoded) or self.failure in ("cut", "too_large", "ratio")

    def content(self) -> bytes:
        """The first `max_kept_bytes` of the body: decoded, or raw where `decoded` is False."""
        return bytes(self._decoded if self._codings and self.decoded else self._raw)

    def _stop(self, failure: Failure) -> None:
        self._stopped = True
        if failure:
            self.failure = failure
            self._mismatch = False
        self._layers = []
        self._block = bytearray()

    def _decode(self, block: bytes) -> None:
        if not self._layers:
            self._layers = [_CODINGS[coding]() for coding in reversed(self._codings)]
        self._taken += len(block)
        try:
            self._push(0, block)
        except _Failed as error:
            self._stop(error.failure)
            return
        if not self.failure and any(layer.mismatch for layer in self._layers):
            self.failure = "corrupt"
            self._mismatch = True

    def _push(self, depth: int, data: bytes) -> None:
        """Gives data to the layer at this depth and what comes out to the next one; out of the last one it is kept."""
        if depth == len(self._layers):
            room = self._max_kept_bytes - len(self._decoded)
            if room > 0:
                self._decoded += data[:room]
            return
        for piece in self._layers[depth].decode(data):
            self._made[depth] += len(piece)
            self._push(depth + 1, piece)
            if self._made[depth] > self._max_decoded_bytes:
                raise _Failed("too_large")
            if self._made[depth] > max(RATIO_FROM_BYTES, self._max_ratio * self._taken):
                raise _Failed("ratio")


class _Failed(Exception):
    """Decoding cannot go on."""

    def __init__(self, failure: Failure) -> None:
        self.failure = failure


class _Coding(Protocol):
    """One coding of one body, being undone."""

    mismatch: bool
    """A checksum was wrong. Decoding goes on."""

    def decode(self, data: bytes) -> Iterator[bytes]:
        """What the next bytes decode to, in pieces of at most PIECE_BYTES, none empty. Raises _Failed."""

    def whole(self) -> bool:
        """Whether the body may end here."""


class _Gzip:
    """gzip (RFC 1952): one or more members; what follows them and is none is ignored, as browsers do."""

    def __init__(self) -> None:
        self.mismatch = False
        self._stream: Any = None  # of the member; None between members
        self._held = b""  # the start of a header or trailer
        self._members = 0
        self._done = False
        self._crc = 0
        self._length = 0

    def decode(self, data: bytes) -> Iterator[bytes]:
        data = self._held + data
        self._held = b""
        while data and not self._done:
            if self._stream is None:
                size = _gzip_head_bytes(data)
                if size == 0 and len(data) <= MAX_GZIP_HEAD_BYTES:
                    self._held = data
                    return
                if size <= 0 and self._members == 0:
                    raise _Failed("corrupt")
                if size <= 0:
                    self._done = True
                    return
                if self._members == MAX_MEMBERS:
                    raise _Failed("too_large")
                self._members += 1
                self._stream = zlib.decompressobj(-zlib.MAX_WBITS)
                self._crc = self._length = 0
                data = data[size:]
            elif not self._stream.eof:
                for piece in _inflate(self._stream, data):
                    self._crc = zlib.crc32(piece, self._crc)
                    self._length += len(piece)
                    yield piece
                data = self._stream.unused_data
            elif len(data) < 8:
                self._held = data
                return
            else:
                if struct.unpack_from("<II", data) != (self._crc, self._length & 0xFFFFFFFF):
                    self.mismatch = True
                self._stream = None
                data = data[8:]

    def whole(self) -> bool:
        return self._stream is None and (self._members > 0 or not self._held)


class _Deflate:
    """deflate (RFC 9110 8.4.1.2): the zlib format, and what some servers send instead: raw deflate. The first two bytes
    tell; where they look like zlib but the input at hand does not decode, it is raw after all. What follows the end is
    ignored.
    """

    def __init__(self) -> None:
        self.mismatch = False
        self._stream: Any = None
        self._held = b""  # the first byte; later the trailer
        self._adler: int | None = None  # None: raw

    def decode(self, data: bytes) -> Iterator[bytes]:
        if self._stream is None:
            data = self._held + data
            self._held = b""
            if len(data) < 2:
                self._held = data
                return
            self._stream = zlib.decompressobj(-zlib.MAX_WBITS)
            if data[0] & 0x0F == 8 and data[0] >> 4 <= 7 and not data[1] & 0x20 and (data[0] << 8 | data[1]) % 31 == 0:
                self._adler = 1
                made = False
                try:
                    for piece in self._body(data[2:]):
                        made = True
                        yield piece
                    return
                except _Failed:
                    if made:
                        raise
                self._adler = None
                self._stream = zlib.decompressobj(-zlib.MAX_WBITS)
        yield from self._body(data)

    def _body(self, data: bytes) -> Iterator[bytes]:
        if not self._stream.eof:
            for piece in _inflate(self._stream, data):
                if self._adler is not None:
                    self._adler = zlib.adler32(piece, self._adler)
                yield piece
            data = self._stream.unused_data
        if self._stream.eof and self._adler is not None and len(self._held) < 4:
            self._held += data[: 4 - len(self._held)]
            self.mismatch = len(self._held) == 4 and int.from_bytes(self._held, "big") != self._adler

    def whole(self) -> bool:
        if self._stream is None:
            return not self._held
        return bool(self._stream.eof) and (self._adler is None or len(self._held) == 4)


class _Brotli:
    """br (RFC 7932). Bytes after the end make it corrupt: the library does not tell where the end was."""

    mismatch = False  # the format has no checksum

    def __init__(self) -> None:
        import brotli

        self._error = brotli.error
        self._stream = brotli.Decompressor()
        self._begun = False

    def decode(self, data: bytes) -> Iterator[bytes]:
        self._begun = True
        while True:
            try:
                # The library goes over the limit, up to about twice; with this one it returns 32 KiB.
                piece = self._stream.process(data, output_buffer_limit=PIECE_BYTES // 4)
            except self._error:
                raise _Failed("corrupt") from None
            if not piece:
                return
            yield piece
            data = b""

    def whole(self) -> bool:
        return not self._begun or bool(self._stream.is_finished())


class _Zstd:
    """zstd (RFC 8878, with the window of RFC 9659): frames and skippable frames; what follows them is ignored."""

    mismatch = False  # the library gives nothing of a frame's last block where its checksum is wrong: corrupt

    def __init__(self) -> None:
        import zstandard

        self._error = zstandard.ZstdError
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES)
        self._frame: Any = None  # None between frames
        self._frames = 0
        self._held = b""  # the start of a magic number
        self._done = False

    def decode(self, data: bytes) -> Iterator[bytes]:
        data = self._held + data
        self._held = b""
        at = 0
        while at < len(data) and not self._done:
            if self._frame is None:
                magic = data[at : at + 4]
                if len(magic) < 4:
                    self._held = magic
                    return
                if magic != ZSTD_MAGIC and not (magic[0] & 0xF0 == 0x50 and magic[1:] == ZSTD_SKIPPABLE):
                    if self._frames == 0:
                        raise _Failed("corrupt")
                    self._done = True
                    return
                if self._frames == MAX_MEMBERS:
                    raise _Failed("too_large")
                self._frames += 1
                self._frame = self._decompressor.decompressobj(write_size=PIECE_BYTES)
            step = data[at : at + ZSTD_STEP_BYTES]
            try:
                made = self._frame.decompress(step)
            except self._error as error:
                raise _Failed("too_large" if "too much memory" in str(error) else "corrupt") from None
            at += len(step)
            if self._frame.eof:
                at -= len(self._frame.unused_data)
                self._frame = None
            for start in range(0, len(made), PIECE_BYTES):
                yield made[start : start + PIECE_BYTES]

    def whole(self) -> bool:
        return self._frame is None and (self._frames > 0 or not self._held)


_CODINGS: dict[str, type[_Coding]] = {
    "gzip": _Gzip,
    "x-gzip": _Gzip,
    "deflate": _Deflate,
    "br": _Brotli,
    "zstd": _Zstd,
}


def _inflate(stream: Any, data: bytes) -> Iterator[bytes]:
    """All that a zlib decompressor makes of this input, in pieces. Raises _Failed."""
    while True:
        try:
            piece = stream.decompress(data, PIECE_BYTES)
        except zlib.error:
            raise _Failed("corrupt") from None
        if piece:
            yield piece
        data = stream.unconsumed_tail
        if stream.eof or (not data and len(piece) < PIECE_BYTES):
            return


def _gzip_head_bytes(data: bytes) -> int:
    """The length of the member header that this starts with; 0 where it is not all there, -1 where it is none."""
    if not b"\x1f\x8b\x08".startswith(data[:3]):
        return -1
    if len(data) < 10:
        return 0
    flags = data[3]
    if flags & 0xE0:  # reserved
        return -1
    at = 10
    if flags & 4:  # FEXTRA
        if len(data) < 12:
            return 0
        at = 12 + int.from_bytes(data[10:12], "little")
    for flag in (8, 16):  # FNAME, FCOMMENT: each ends with a zero
        if flags & flag:
            end = data.find(b"\0", at)
            if end < 0:
                return 0
            at = end + 1
    if flags & 2:  # FHCRC
        at += 2
    return at if len(data) >= at else 0
