"""Undoes the content codings of one body while it streams (RFC 9110 8.4): gzip, deflate, br, zstd, lzma, up to four
stacked.

What is listed is tried, what is there counts. Each listed coding is a layer, which looks at the first BLOCK_BYTES of
its input. Named rules:
    as listed      the input begins with the sign (magic number) of the listed coding; for deflate, br and LZMA-alone,
                   which have none, it decodes as such
    not as listed  else it is undone as the coding whose sign it has; with no sign it is handed on as it is
    unknown        the same for a coding that is not known: `compress` too, which no library has and browsers gave up
    text is text   printable text without a sign is handed on as it is where it breaks, or ends before its coding does,
                   or decodes to nothing but a part of itself

Memory is flat: only the first `max_kept_bytes` of a body are kept, raw and decoded; the rest is counted. A coding holds
its window (32 KiB for gzip and deflate, at most 16 MiB for br and lzma and 8 MiB for zstd, RFC 9659) and hands on
pieces of at most 64 KiB; the zstd library may make 4 MiB at once of hostile input. DecoderMemory bounds all open
bodies together.

Work is bounded: the output of each layer, not only of the last one, is held to `max_decoded_bytes` and `max_ratio`,
and so is the number of gzip members, zstd frames and xz streams.

The result depends on the bytes only, not on how they were split: the layers are always given blocks of BLOCK_BYTES.
"""

import re
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, Protocol

Failure = Literal[
    "", "unknown_coding", "too_many_codings", "not_as_listed", "corrupt", "cut", "too_large", "ratio", "memory"
]

MAX_CODINGS = 4
MAX_MEMBERS = 1024  # gzip members, zstd frames or xz streams of one body: 64 MiB in the 64 KiB members of bgzip
MAX_GZIP_HEAD_BYTES = 1 << 17
BLOCK_BYTES = 4096
PIECE_BYTES = 1 << 16
RATIO_FROM_BYTES = 1 << 20
CERTAIN_BYTES = 1 << 14  # what decodes to this much is of the coding
ACCIDENT_BYTES = 64  # what is not of the coding breaks before it has decoded to this much
ZSTD_WINDOW_BYTES = 8 << 20
ZSTD_STEP_BYTES = 128  # the library has no limit on output; a block of 128 KiB takes at least 4 bytes of input
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
ZSTD_SKIPPABLE = tuple(bytes([first]) + b"\x2a\x4d\x18" for first in range(0x50, 0x60))
GZIP_MAGIC = b"\x1f\x8b\x08"
XZ_MAGIC = b"\xfd7zXZ\0"
LZMA_MEMORY_BYTES = 17 << 20  # a dictionary of 16 MiB and what liblzma needs beside it

_BLANKS = bytes(0x20 if octet in b"\t\r\n" else octet for octet in range(256))
_CONTROLS = bytes(octet for octet in (*range(0x20), *range(0x7F, 0x100)) if octet not in b"\t\r\n")
_TOKEN = re.compile(rb"[!#$%&*+\-.^_`|~0-9A-Za-z]+")
_NO_TEXT = bytes(octet for octet in (*range(0x20), 0x7F) if octet not in b"\t\r\n")
_MIN_TEXT_BYTES = 4


def listed_codings(value: bytes) -> list[str]:
    """The codings of a Content-Encoding value in its order, in lower case; `identity` and `none` are no coding.

    Of each member of the list the first token counts (RFC 9110 5.6.2), whatever stands around it: quotes, colons,
    parameters. Control characters and bytes above 126 are passed over. An `x-` before the name means nothing (RFC 9110
    8.4.1.1, 8.4.1.3).
    """
    names = []
    for member in value.translate(_BLANKS, _CONTROLS).split(b","):
        token = _TOKEN.search(member)
        if token is not None:
            name = token[0].decode().lower().removeprefix("x-")
            if name not in ("identity", "none"):
                names.append(name)
    return names


class DecoderMemory:
    """What the windows of all open bodies may hold together. Looked at after each block of a body: one body may be over
    it for that long.

    used_bytes: an estimate, by the coding and by what it has made so far. refused: bodies that were given up for it.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.used_bytes = 0
        self.refused = 0


class ContentDecoder:
    """One body. Zero or more `feed()`, then `finish()`; neither raises, whatever the bytes.

    codings: as `listed_codings()` gives them. Bytes fed after a failure or after `finish()` are counted in
    `encoded_bytes` and not decoded: where bytes of the body are missing, call `finish()` at the gap and the rest cannot
    spoil what came before it.

    One rule for what is kept: what was decoded before a failure, and the raw body where nothing was.

    encoded_bytes: bytes fed. failure (known after finish()): "" or
      unknown_coding    a coding is listed that is not known; it was taken for not applied
      not_as_listed     a listed coding was not applied, or another one in its place
      corrupt           not what the coding says it is; where only a checksum is wrong, the body is decoded to its end
      cut               the body, or what was captured of it before a gap, ends inside a coding
      too_large         more than max_decoded_bytes, or too many members
      ratio             more than max_ratio times the bytes it came from, with more than 1 MiB decoded
      memory            a window over the limit of its coding, or all open bodies together over theirs
      too_many_codings  nothing is decoded
    The first three let decoding go on; if one of the others comes after them, that one is said. An empty body is no
    failure.
    """

    def __init__(
        self, codings: Sequence[str], *, max_kept_bytes: int, max_decoded_bytes: int, max_ratio: int,
        memory: DecoderMemory,
    ) -> None:  # fmt: skip
        self.encoded_bytes = 0
        self.failure: Failure = ""
        self._codings = codings
        self._max_kept_bytes = max_kept_bytes
        self._max_decoded_bytes = max_decoded_bytes
        self._max_ratio = max_ratio
        self._memory = memory
        self._charged_bytes = 0  # of memory.used_bytes
        self._layers: list[_Layer] = []
        self._made = [0] * len(codings)  # bytes that each layer has put out
        self._stopped = False
        self._broken = False  # the failure ended decoding
        self._undone = False  # at least one coding was found and is being undone
        self._taken = 0  # bytes given to the first layer
        self._block = bytearray()
        self._raw = bytearray()
        self._decoded = bytearray()

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
            self._decode(block, False)
            at = end
        if not self._stopped:
            self._block += view[at:]

    def finish(self) -> None:
        """The end of the body. Frees the codings; further calls do nothing."""
        if self._stopped:
            return
        if self.encoded_bytes and self._codings:
            self._decode(bytes(self._block), True)
        if not self._stopped:
            self._stop("" if all(layer.whole() for layer in self._layers) else "cut")

    @property
    def decoded(self) -> bool:
        """Whether `content()` is decoded; else it is raw. True where there was nothing to decode."""
        if not self._codings or not self.encoded_bytes:
            return True
        return self._undone and (not self._broken or self._made[-1] > 0)

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
        return self._made[-1] > len(self._decoded) or self._broken

    def content(self) -> bytes:
        """The first `max_kept_bytes` of the body: decoded, or raw where `decoded` is False."""
        return bytes(self._decoded if self._codings and self.decoded else self._raw)

    def _stop(self, failure: Failure) -> None:
        self._stopped = True
        if failure:
            self.failure = failure
            self._broken = True
        self._layers = []
        self._block = bytearray()
        self._memory.used_bytes -= self._charged_bytes
        self._charged_bytes = 0

    def _decode(self, block: bytes, end: bool) -> None:
        """The next block, the last one where `end`."""
        if not self._layers:
            if len(self._codings) > MAX_CODINGS:
                self._stop("too_many_codings")
                return
            last = len(self._codings) - 1
            self._layers = [_Layer(name, i == last) for i, name in enumerate(reversed(self._codings))]
        self._taken += len(block)
        failure: Failure = ""
        try:
            if block:
                self._push(0, block)
        except _Failed as error:
            failure = error.failure
        if end or failure:
            for depth, layer in enumerate(self._layers):
                try:
                    self._hand_on(depth, layer.finish())
                except _Failed as error:
                    failure = failure or error.failure
        for layer in self._layers:
            self._undone = self._undone or layer.coding is not None
            self.failure = self.failure or layer.note()
        if not failure and not end:
            failure = self._charge()
        if failure:
            self._stop(failure)

    def _charge(self) -> Failure:
        memory = self._memory
        held = sum(layer.memory_bytes(made) for layer, made in zip(self._layers, self._made, strict=True))
        memory.used_bytes += held - self._charged_bytes
        self._charged_bytes = held
        if memory.used_bytes <= memory.max_bytes:
            return ""
        memory.refused += 1
        return "memory"

    def _push(self, depth: int, data: bytes) -> None:
        """Gives data to the layer at this depth and what comes out to the next one; out of the last one it is kept."""
        if depth == len(self._layers):
            room = self._max_kept_bytes - len(self._decoded)
            if room > 0:
                self._decoded += data[:room]
            return
        self._hand_on(depth, self._layers[depth].decode(data))

    def _hand_on(self, depth: int, pieces: Iterable[bytes]) -> None:
        """What the layer at this depth puts out."""
        for piece in pieces:
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

    magics: tuple[bytes, ...]
    """The signs, one of which its data begins with."""
    unsigned: bool
    """Its data may begin with none of them."""
    base_bytes: int
    window_bytes: int
    """What it holds in memory: at once, and at most besides, as its output grows."""
    mismatch: bool
    """A checksum was wrong. Decoding goes on."""

    def decode(self, data: bytes) -> Iterator[bytes]:
        """What the next bytes decode to, in pieces of at most PIECE_BYTES, none empty. Raises _Failed."""

    def whole(self) -> bool:
        """Whether the body may end here."""


class _Layer:
    """One listed coding and what became of it.

    coding: what is being undone; None while that is not decided, and where the data is handed on as it is.
    """

    def __init__(self, name: str, last: bool) -> None:
        self.coding: _Coding | None = None
        self._listed = _CODINGS.get(name)
        self._last = last  # what it puts out is the body
        self._decided = False
        self._held = bytearray()  # the input so far, while not decided

    def decode(self, data: bytes) -> Iterator[bytes]:
        """The next bytes of its input. Raises _Failed."""
        if not self._decided:
            self._held += data
            return self._decide(False) if len(self._held) >= BLOCK_BYTES else iter(())
        return iter((data,)) if self.coding is None else self.coding.decode(data)

    def finish(self) -> Iterator[bytes]:
        """The end of its input. Raises _Failed."""
        return self._decide(True) if self._held else iter(())

    def whole(self) -> bool:
        return self.coding is None or self.coding.whole()

    def note(self) -> Failure:
        """What is to be said of it, though decoding goes on."""
        if not self._decided or (self.coding is not None and type(self.coding) is self._listed):
            return "corrupt" if self.coding is not None and self.coding.mismatch else ""
        return "unknown_coding" if self._listed is None else "not_as_listed"

    def memory_bytes(self, made: int) -> int:
        return 0 if self.coding is None else self.coding.base_bytes + min(made, self.coding.window_bytes)

    def _decide(self, end: bool) -> Iterator[bytes]:
        """Finds out what its input is, and gives what the start of it decodes to."""
        start = bytes(self._held)
        self._held = bytearray()
        self._decided = True
        listed = self._listed
        if listed is not None and _is_signed(start, listed.magics):
            self.coding = listed()
            yield from self.coding.decode(start)
            return
        if listed is not None and listed.unsigned:
            coding = listed()
            stream = coding.decode(start)
            pieces: list[bytes] = []
            made = 0
            failed: _Failed | None = None
            try:
                for piece in stream:
                    pieces.append(piece)
                    made += len(piece)
                    if made >= CERTAIN_BYTES:
                        break
            except _Failed as error:
                failed = error
            if self._is_listed(start, coding, failed, b"".join(pieces), end):
                self.coding = coding
                yield from pieces
                if failed is not None:
                    raise failed
                yield from stream
                return
        for other in _CODINGS.values():
            if start.startswith(other.magics):
                self.coding = other()
                yield from self.coding.decode(start)
                return
        yield from _cut(start)

    def _is_listed(self, start: bytes, coding: _Coding, failed: "_Failed | None", made: bytes, end: bool) -> bool:
        """Whether this input without a sign is of the listed coding, which made this of it."""
        if len(made) >= CERTAIN_BYTES or (failed is not None and failed.failure != "corrupt"):
            return True
        if failed is None and (coding.whole() if end else made not in start):
            return True
        if _is_text(start) or any(start.startswith(other.magics) for other in _CODINGS.values()):
            return False
        # Broken, it may be of a coding that is listed before; where there is none, what came out of it is kept.
        return failed is None or (self._last and len(made) >= ACCIDENT_BYTES)


class _Gzip:
    """gzip (RFC 1952): one or more members; what follows them and is none is ignored, as browsers do, and so are the
    reserved flags and the CRC of the header.
    """

    magics: tuple[bytes, ...] = (GZIP_MAGIC,)
    unsigned = False
    base_bytes = 48 << 10
    window_bytes = 0

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
        fresh = False
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
                self._stream = _raw_inflater()
                self._crc = self._length = 0
                data = data[size:]
                fresh = True
            elif not self._stream.eof:
                try:
                    for piece in _inflate(self._stream, data):
                        self._crc = zlib.crc32(piece, self._crc)
                        self._length += len(piece)
                        yield piece
                except _Failed:
                    if fresh and self._length <= RATIO_FROM_BYTES:
                        yield from _cut(_sound(_raw_inflater, _inflate, data)[1][self._length :])
                    raise
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
        return self._stream is None and self._members > 0


class _Deflate:
    """deflate (RFC 9110 8.4.1.2): the zlib format, and what some servers send instead: raw deflate. The first two bytes
    tell; where they look like zlib but what follows does not decode, it is raw after all. What follows the end is
    ignored.
    """

    magics: tuple[bytes, ...] = ()
    unsigned = True
    base_bytes = 48 << 10
    window_bytes = 0

    def __init__(self) -> None:
        self.mismatch = False
        self._stream: Any = None
        self._held = b""  # the trailer
        self._adler: int | None = None  # None: raw

    def decode(self, data: bytes) -> Iterator[bytes]:
        if self._stream is not None:
            yield from self._body(data)
            return
        zlib_head = data[0] & 0x0F == 8 and data[0] >> 4 <= 7
        if len(data) > 1:
            zlib_head = zlib_head and not data[1] & 0x20 and (data[0] << 8 | data[1]) % 31 == 0
        for start in (2, 0) if zlib_head else (0,):
            self._stream = _raw_inflater()
            self._adler = 1 if start else None
            made = False
            try:
                for piece in self._body(data[start:]):
                    made = True
                    yield piece
                return
            except _Failed:
                if made:
                    raise
        yield from _cut(_sound(_raw_inflater, _inflate, data[2 if zlib_head else 0 :])[1])
        raise _Failed("corrupt")

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
        return bool(self._stream.eof) and (self._adler is None or len(self._held) == 4)


class _Brotli:
    """br (RFC 7932). What follows the end is ignored where that is in the first block: the library does not tell where
    the end was, and takes what follows for an error.
    """

    magics: tuple[bytes, ...] = ()
    unsigned = True
    base_bytes = 64 << 10
    window_bytes = 16 << 20
    mismatch = False  # the format has no checksum

    def __init__(self) -> None:
        import brotli

        self._error = brotli.error
        self._new = brotli.Decompressor
        self._stream: Any = None
        self._done = False

    def decode(self, data: bytes) -> Iterator[bytes]:
        if self._done:
            return
        if self._stream is not None:
            yield from self._pieces(self._stream, data)
            return
        self._stream = self._new()
        made = 0
        try:
            for piece in self._pieces(self._stream, data):
                made += len(piece)
                yield piece
            return
        except _Failed:
            if made > RATIO_FROM_BYTES:
                raise
        self._stream, rest = _sound(self._new, self._pieces, data)
        yield from _cut(rest[made:])
        if not self._stream.is_finished():
            raise _Failed("corrupt")
        self._done = True

    def _pieces(self, stream: Any, data: bytes) -> Iterator[bytes]:
        while True:
            try:
                # The library goes over the limit, up to about twice; with this one it returns 32 KiB.
                piece = stream.process(data, output_buffer_limit=PIECE_BYTES // 4)
            except self._error:
                raise _Failed("corrupt") from None
            if not piece:
                return
            yield piece
            data = b""

    def whole(self) -> bool:
        return bool(self._stream.is_finished())


class _Zstd:
    """zstd (RFC 8878, with the window of RFC 9659): frames and skippable frames; what follows them is ignored."""

    magics: tuple[bytes, ...] = (ZSTD_MAGIC, *ZSTD_SKIPPABLE)
    unsigned = False
    base_bytes = 128 << 10
    window_bytes = ZSTD_WINDOW_BYTES
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
                if magic not in self.magics:
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
                raise _Failed("memory" if "too much memory" in str(error) else "corrupt") from None
            at += len(step)
            if self._frame.eof:
                at -= len(self._frame.unused_data)
                self._frame = None
            yield from _cut(made)

    def whole(self) -> bool:
        return self._frame is None and self._frames > 0


class _Lzma:
    """lzma, as the xz format (streams, with zeros between them) or the older one, LZMA-alone. What follows is ignored.

    Neither name is registered; some tools send them.
    """

    magics: tuple[bytes, ...] = (XZ_MAGIC,)
    unsigned = True
    base_bytes = 128 << 10
    window_bytes = 16 << 20
    mismatch = False  # the library stops at a wrong checksum

    def __init__(self) -> None:
        try:
            import lzma
        except ImportError:  # a Python that was built without it
            raise _Failed("unknown_coding") from None
        self._lzma = lzma
        self._stream: Any = lzma.LZMADecompressor(lzma.FORMAT_AUTO, LZMA_MEMORY_BYTES)  # None between streams
        self._streams = 1
        self._xz = False
        self._held = b""  # the start of a magic number
        self._done = False

    def decode(self, data: bytes) -> Iterator[bytes]:
        if self._streams == 1 and not self._xz and self._stream is not None:
            self._xz = data.startswith(XZ_MAGIC)
        data = self._held + data
        self._held = b""
        while data and not self._done:
            if self._stream is None:
                data = data.lstrip(b"\0")
                if len(data) < len(XZ_MAGIC) and XZ_MAGIC.startswith(data):
                    self._held = data
                    return
                if not self._xz or not data.startswith(XZ_MAGIC):
                    self._done = True
                    return
                if self._streams == MAX_MEMBERS:
                    raise _Failed("too_large")
                self._streams += 1
                self._stream = self._lzma.LZMADecompressor(self._lzma.FORMAT_XZ, LZMA_MEMORY_BYTES)
            while True:
                try:
                    piece = self._stream.decompress(data, PIECE_BYTES)
                except self._lzma.LZMAError as error:
                    raise _Failed("memory" if "emory" in str(error) else "corrupt") from None
                if piece:
                    yield piece
                if self._stream.eof:
                    data = self._stream.unused_data
                    self._stream = None
                    break
                if not piece:
                    return
                data = b""

    def whole(self) -> bool:
        return self._stream is None


_CODINGS: dict[str, type[_Coding]] = {
    "gzip": _Gzip,
    "deflate": _Deflate,
    "br": _Brotli,
    "zstd": _Zstd,
    "lzma": _Lzma,
    "xz": _Lzma,
}


def _is_signed(start: bytes, magics: tuple[bytes, ...]) -> bool:
    """Whether this begins with one of the signs, or is the begin of one."""
    return start.startswith(magics) or (len(start) < 6 and any(magic.startswith(start) for magic in magics))


def _is_text(data: bytes) -> bool:
    """Printable UTF-8, of which the last character may be cut."""
    if len(data) < _MIN_TEXT_BYTES or data.translate(None, _NO_TEXT) != data:
        return False
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return error.end == len(data) and error.reason == "unexpected end of data"
    return True


def _cut(data: bytes) -> Iterator[bytes]:
    for at in range(0, len(data), PIECE_BYTES):
        yield data[at : at + PIECE_BYTES]


def _sound(new: Callable[[], Any], decode: Callable[[Any, bytes], Iterator[bytes]], data: bytes) -> tuple[Any, bytes]:
    """Of data in which a new decompressor finds an error, what comes before it: a decompressor after that, and what it
    made. The libraries give nothing of the input that they find the error in. Costs three times the decoding."""
    at = 0
    for step in (64, 1):
        stream = new()
        try:
            for _ in decode(stream, data[:at]):
                pass
            while at < len(data):
                for _ in decode(stream, data[at : at + step]):
                    pass
                at += step
        except _Failed:
            pass
    stream = new()
    return stream, b"".join(decode(stream, data[:at]))


def _raw_inflater() -> Any:
    return zlib.decompressobj(-zlib.MAX_WBITS)


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
    if not GZIP_MAGIC.startswith(data[:3]):
        return -1
    if len(data) < 10:
        return 0
    flags = data[3]
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
