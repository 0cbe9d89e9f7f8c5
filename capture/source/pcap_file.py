"""Capture files as a source: pcap and pcapng, plain or in gzip or zstd, one after the other.

A path is a file, a folder (the captures directly in it, in the order of their first frames), a FIFO, or `-` for
standard input; the last two are read while they are still being written. What a file is, its first bytes say, not its
name.

All that can be checked before the first frame is checked when the source is made. A file that turns out to be cut off
or damaged later on gives the frames before the damage, counts as damaged, and the next file follows.

Memory is the same for any size of file: one buffer of 384 KiB (up to 16 MiB while a pcapng block that large is read).
"""

import errno
import math
import os
import select
import stat
import time
import zlib
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from msgspec import Struct

from ..errors import NoInputError, NotPermittedError, UsageError
from . import EndOfInput, SourceStats
from .block import Block, Buffer
from .files import PCAP, PCAPNG, PcapngWalker, PcapWalker

MAX_WARNINGS = 100
BLOCK_FRAMES = 16384
BUFFER_BYTES = 384 << 10  # more than a frame, and less than the second-level cache of one core
PROBE_BYTES = 1 << 16  # of the buffer with which files are looked into at the start
PROBE_READS = 64  # a file without a frame in that many buffers is put at the front of its folder
PACKED_BYTES = 1 << 16  # read at a time of compressed data
UNPACKED_BYTES = 1 << 18  # at most what they become at a time

_OTHER_FORMATS = (
    (b"BZh", "packed with bzip2: unpack it first"),
    (b"\xfd7zX", "packed with xz: unpack it first"),
    (b"\x04\x22\x4d\x18", "packed with lz4: unpack it first"),
    (b"PK\x03\x04", "packed with zip: unpack it first"),
    (b"snoo", "a snoop file: convert it with editcap"),
)


class _Damage(Exception):
    """The rest of this file cannot be read. The text says why."""


class _NotACapture(Exception):
    """The text says what it is instead, and what to do: it goes on from the name of the file."""


class _Unpacker(Protocol):
    """`feed()` only after `take()` has returned nothing."""

    name: str

    def feed(self, packed: bytes) -> None: ...

    def take(self, limit_bytes: int) -> bytes:
        """The next unpacked bytes, 1 to `limit_bytes` of them; none where more input is needed. Raises _Damage."""

    def whole(self) -> bool:
        """Whether the input could end here."""


class _Gunzip:
    """gzip, RFC 1952: members one after the other, and zeros behind them, as tapes and block devices leave them."""

    name = "gzip"

    def __init__(self) -> None:
        self._packed = b""
        self._member: Any = None
        self._more = False  # the last piece was as long as allowed: zlib may hold more

    def feed(self, packed: bytes) -> None:
        self._packed = packed

    def take(self, limit_bytes: int) -> bytes:
        while self._packed or self._more:
            if self._member is None:
                self._packed = self._packed.lstrip(b"\0")
                if not self._packed:
                    break
                self._member = zlib.decompressobj(31)
            piece = self._inflate(limit_bytes)
            self._more = len(piece) == limit_bytes
            if self._member.eof:
                self._member = None
                self._more = False
            if piece:
                return piece
        return b""

    def _inflate(self, limit_bytes: int) -> bytes:
        """zlib forgets what it has unpacked before an error in the same call: so it is asked again for less."""
        size = len(self._packed)
        while True:
            before = self._member.copy()
            try:
                piece: bytes = self._member.decompress(self._packed[:size], limit_bytes)
            except zlib.error as error:
                if size > 1:
                    size //= 2
                elif limit_bytes > 1:
                    limit_bytes //= 2
                else:
                    raise _Damage(f"gzip data is damaged ({_reason(error)})") from None
                self._member = before
            else:
                left = self._member.unused_data if self._member.eof else self._member.unconsumed_tail
                self._packed = left + self._packed[size:]
                return piece

    def whole(self) -> bool:
        return self._member is None


class _Unzstd:
    """zstd, RFC 8878 section 3.1: frames one after the other.

    The library is given one block at a time, which becomes 128 KiB at most: so memory is bounded whatever the data
    claims, nothing is waited for that is not needed, and a cut shows.
    """

    name = "zstd"

    def __init__(self) -> None:
        try:
            import zstandard
        except ImportError:
            raise _NotACapture("is packed with zstd: install the Python package zstandard, or unpack it") from None
        self._zstandard = zstandard
        self._packed = b""
        self._at = 0
        self._piece = b""
        self._piece_at = 0
        self._frame: Any = None
        self._head = b""  # what is there of a header that is not yet whole
        self._left = 0  # bytes of this block, or of a frame to skip, that are still to come
        self._last = False  # it is the last block of its frame
        self._checksum = False

    def feed(self, packed: bytes) -> None:
        self._packed = packed
        self._at = 0

    def take(self, limit_bytes: int) -> bytes:
        while True:
            if self._piece_at < len(self._piece):
                out = self._piece[self._piece_at : self._piece_at + limit_bytes]
                self._piece_at += len(out)
                return out
            if self._at >= len(self._packed):
                return b""
            self._piece = self._step()
            self._piece_at = 0

    def _step(self) -> bytes:
        """Takes the next header, or what is there of a block. Returns what comes of it."""
        if self._left:
            part = self._packed[self._at : self._at + self._left]
            self._at += len(part)
            self._left -= len(part)
            self._end_block()
            return self._decompress(part) if self._frame is not None else b""
        if self._frame is None:
            head = self._header(5)
            if head is None:
                return b""
            magic = int.from_bytes(head[:4], "little")
            if magic & 0xFFFFFFF0 == 0x184D2A50:
                head = self._header(8)
                if head is not None:
                    self._left = int.from_bytes(head[4:], "little")
                    self._head = b""
                return b""
            if magic != 0xFD2FB528:
                raise _Damage("zstd data is damaged (no frame where one should begin)")
            descriptor = head[4]
            single = descriptor >> 5 & 1
            head = self._header(
                6 - single + (0, 1, 2, 4)[descriptor & 3] + (single, 2, 4, 8)[descriptor >> 6]
            )  # magic, descriptor, window, dictionary, size
            if head is None:
                return b""
            self._checksum = bool(descriptor >> 2 & 1)
            self._frame = self._zstandard.ZstdDecompressor().decompressobj()
        else:
            head = self._header(3)
            if head is None:
                return b""
            block = int.from_bytes(head, "little")
            self._left = 1 if block >> 1 & 3 == 1 else block >> 3  # one byte, repeated; or as many as it says
            self._last = bool(block & 1)
            self._end_block()
        self._head = b""
        return self._decompress(head)

    def _end_block(self) -> None:
        """A checksum behind the last block is taken by itself: the block counts even where the checksum is wrong."""
        if self._last and not self._left:
            self._last = False
            self._left = 4 if self._checksum else 0

    def _header(self, length: int) -> bytes | None:
        """The header that began here, once that many bytes of it are there."""
        part = self._packed[self._at : self._at + max(0, length - len(self._head))]
        self._at += len(part)
        self._head += part
        return self._head if len(self._head) >= length else None

    def _decompress(self, part: bytes) -> bytes:
        try:
            out: bytes = self._frame.decompress(part)
        except self._zstandard.ZstdError as error:
            raise _Damage(f"zstd data is damaged ({_reason(error)})") from None
        if self._frame.eof:
            self._frame = None
            self._left = 0
        return out

    def whole(self) -> bool:
        return self._frame is None and not self._head and not self._left


class _Capture:
    """One open capture: descriptor -> (unpacked) bytes in the buffer -> frames.

    buffer[start:end] are the bytes not yet walked; `base` is the place of buffer[0] in the (unpacked) file.
    """

    def __init__(self, fd: int, buffer: Buffer, waits: bool) -> None:
        """`waits`: the descriptor may have nothing to give for now (a pipe)."""
        self.fd = fd
        self.buffer = buffer
        self.start = 0
        self.end = 0
        self.base = 0
        self.raw_bytes = 0
        self.frames = 0
        self.frame_bytes = 0
        self.walker: PcapWalker | PcapngWalker | None = None
        self.unpacker: _Unpacker | None = None
        self._poll: select.poll | None = None
        if waits:
            self._poll = select.poll()
            self._poll.register(fd, select.POLLIN)

    def go_on_in(self, buffer: Buffer) -> None:
        """Takes what is not yet walked there, and reads on there; not where that is too small."""
        left = self.end - self.start
        if buffer is self.buffer or left > len(buffer.view):
            return
        buffer.view[:left] = self.buffer.view[self.start : self.end]
        self.buffer = buffer
        self.base += self.start
        self.start = 0
        self.end = left

    def fill(self, block: Block, deadline: float) -> bool:
        """Fills `block`: with no frame where none came until the `deadline` of the monotonic clock. False: end of file.

        A file of which something is left is read at least once, whatever the deadline.
        Raises _Damage, when all frames before it were given, and _NotACapture."""
        waited = False
        while True:
            self._walk(block)
            if block.count:
                return True
            if waited and time.monotonic() >= deadline:
                return True
            got = self._read(deadline)
            if got is None:
                return True
            if got == 0:
                self._check_end()
                return False
            self.end += got
            waited = True

    def _walk(self, block: Block) -> None:
        block.lend(self.buffer)
        if self.walker is None and not self._recognise():
            return
        assert self.walker is not None
        self.start += self.walker.walk(self.buffer, self.start, self.end, block)
        self.frames += block.count
        self.frame_bytes = self.walker.frame_bytes
        if not block.count and self.walker.damage:
            raise _Damage(self.walker.damage)

    def _recognise(self) -> bool:
        """Chooses the walker, or first the unpacker, by the first four bytes."""
        if self.end - self.start < 4:
            return False
        magic = bytes(self.buffer.view[self.start : self.start + 4])
        if magic in PCAP:
            self.walker = PcapWalker(magic)
        elif magic == PCAPNG:
            self.walker = PcapngWalker()
        elif self.unpacker is None and magic[:2] == b"\x1f\x8b":
            self._unpack(_Gunzip())
        elif self.unpacker is None and (
            magic == b"\x28\xb5\x2f\xfd" or (magic[0] & 0xF0 == 0x50 and magic[1:] == b"\x2a\x4d\x18")
        ):
            self._unpack(_Unzstd())
        else:
            for other, name in _OTHER_FORMATS:
                if magic.startswith(other):
                    raise _NotACapture(f"is {name}")
            begin = magic.hex(" ") + (" when unpacked" if self.unpacker else "")
            raise _NotACapture(f"is no capture (begins with {begin}): give pcap or pcapng, plain or in gzip or zstd")
        return self.walker is not None

    def _unpack(self, unpacker: _Unpacker) -> None:
        unpacker.feed(bytes(self.buffer.view[self.start : self.end]))
        self.unpacker = unpacker
        self.start = self.end = 0

    def _read(self, deadline: float) -> int | None:
        """Reads behind `end`. Returns how many bytes; 0 at the end of the file; None where there are none for now."""
        left = self.end - self.start
        needed = self.walker.needed if self.walker is not None else 0
        room = self.buffer
        if needed > len(room.view):
            room = Buffer(bytearray(needed))
        if self.start or room is not self.buffer:
            room.view[:left] = self.buffer.view[self.start : self.end]
            self.buffer = room
            self.base += self.start
            self.start = 0
            self.end = left
        if self.unpacker is None:
            return self._read_raw(room.view[left:], deadline)
        while True:
            out = self.unpacker.take(min(len(room.view) - left, UNPACKED_BYTES))
            if out:
                room.view[left : left + len(out)] = out
                return len(out)
            packed = bytearray(PACKED_BYTES)
            got = self._read_raw(memoryview(packed), deadline)
            if got is None:
                return None
            if got == 0:
                if not self.unpacker.whole():
                    raise _Damage(f"{self.unpacker.name} data ends before its end")
                return 0
            self.unpacker.feed(bytes(packed[:got]))

    def _read_raw(self, room: memoryview, deadline: float) -> int | None:
        if self._poll is not None:
            wait_ms = max(0, math.ceil((deadline - time.monotonic()) * 1000))
            if not self._poll.poll(wait_ms):
                return None
        try:
            got = os.readv(self.fd, [room])
        except BlockingIOError:
            return None
        except OSError as error:
            raise _Damage(f"cannot be read on ({_reason(error)})") from None
        self.raw_bytes += got
        return got

    def _check_end(self) -> None:
        """At the end of the file: whether it may end here."""
        left = self.end - self.start
        if self.walker is None:
            unpacked = " when unpacked" if self.unpacker else ""
            if left == 0:
                raise _NotACapture(f"is empty (0 bytes{unpacked}): nothing to replay")
            raise _NotACapture(f"is no capture ({left} bytes{unpacked}): give a pcap or pcapng file")
        if left:
            raise _Damage(f"cut off: {self.walker.needed} bytes should follow, {left} are there")


class _Input(Struct, frozen=True):
    """One input of a run. `path` is as given, `shown` as it stands in messages; `fd` is set for standard input."""

    path: str
    shown: str
    waits: bool
    size: int = 0
    fd: int = -1


class PcapFiles:
    """Capture files as a Source.

    warnings: a line for each file that was cut off or damaged (the first 100), and what was left out of a folder.
    bytes_read, bytes_total: of the files as they lie on disk, for progress; the total is None where it cannot be known.
    """

    live = False

    def __init__(self, paths: tuple[str, ...], stdin_fd: int = 0) -> None:
        """Looks into every file, and opens none for long.

        Raises NoInputError, NotPermittedError and UsageError where a path is not what can be replayed."""
        self.warnings: list[str] = []
        self._done = SourceStats()  # of the files before the open one
        self._block = Block(BLOCK_FRAMES)
        self._buffer = Buffer(bytearray(BUFFER_BYTES))
        self._capture: _Capture | None = None
        self._input: _Input | None = None
        self._bytes_done = 0
        inputs: list[_Input] = []
        if not paths:
            raise UsageError("no capture file is named: name a file, a folder, or - for standard input")
        if paths.count("-") > 1:
            raise UsageError("standard input (-) is named twice: it can be read only once")
        buffer = Buffer(bytearray(PROBE_BYTES))
        for path in paths:
            inputs += [_standard_input(stdin_fd)] if path == "-" else self._inputs(path, buffer)
        self.bytes_total = None if any(each.waits for each in inputs) else sum(each.size for each in inputs)
        self._inputs_left = deque(inputs)

    @property
    def bytes_read(self) -> int:
        return self._bytes_done + (self._capture.raw_bytes if self._capture else 0)

    def into(self, block: Block, buffer: Buffer) -> None:
        """The next `read()` lends this block, of this buffer: what was lent before stays as it is. It is another
        buffer where the file needs a larger one."""
        self._block = block
        self._buffer = buffer
        if self._capture is not None:
            self._capture.go_on_in(buffer)

    def read(self, timeout_seconds: float) -> Block:
        """As Source.read. Raises NoInputError where standard input or a FIFO turns out to hold no capture."""
        deadline = time.monotonic() + timeout_seconds
        block = self._block
        while True:
            block.lend(self._buffer)
            try:
                capture = self._capture or self._next()
                more = capture.fill(block, deadline)
            except _Damage as damage:
                self._damaged(str(damage))
                more = False
            except _NotACapture as error:
                assert self._input is not None
                if self._input.waits:
                    raise NoInputError(f"{self._input.shown} {error}") from None
                self._damaged(f"it has changed since the start: it {error}")
                more = False
            if block.count:
                return block
            if not more:
                self._end_file()
            if more or time.monotonic() >= deadline:
                return block

    def waiting(self) -> tuple[int, int]:
        return 0, 0

    def stop(self) -> None:
        self.close()  # what is in the file stays there

    def stats(self) -> SourceStats:
        done, capture = self._done, self._capture
        if capture is None:
            return SourceStats(done.received, 0, done.bytes, done.damaged)
        return SourceStats(done.received + capture.frames, 0, done.bytes + capture.frame_bytes, done.damaged)

    def close(self) -> None:
        self._end_file()
        self._inputs_left.clear()

    def _next(self) -> _Capture:
        """Opens the next file. Raises EndOfInput after the last one, _Damage where it cannot be opened any more."""
        if not self._inputs_left:
            raise EndOfInput
        self._input = self._inputs_left.popleft()
        fd = self._input.fd
        if fd < 0:
            try:
                fd = _open(self._input.path)
            except OSError as error:
                raise _Damage(f"it cannot be opened any more ({_reason(error)})") from None
        self._capture = _Capture(fd, self._buffer, self._input.waits)
        return self._capture

    def _end_file(self) -> None:
        if self._capture is not None:
            self._done.received += self._capture.frames
            self._done.bytes += self._capture.frame_bytes
            self._bytes_done += self._capture.raw_bytes
            if self._input is not None and self._input.fd < 0:
                os.close(self._capture.fd)
            self._capture = None

    def _damaged(self, what: str) -> None:
        assert self._input is not None
        self._done.damaged += 1
        place = ""
        if self._capture is not None:
            unpacked = " of the unpacked data" if self._capture.unpacker is not None else ""
            place = f" at byte {self._capture.base + self._capture.start}{unpacked}"
            what += f"; the {self._capture.frames} frames before it were read"
        self._warn(f"{self._input.shown} is damaged{place}: {what}")

    def _warn(self, line: str) -> None:
        if len(self.warnings) < MAX_WARNINGS:
            self.warnings.append(line)
        elif len(self.warnings) == MAX_WARNINGS:
            self.warnings.append("there are more damaged files than are named here")

    def _inputs(self, path: str, buffer: Buffer) -> list[_Input]:
        """What is at this path: a file, a FIFO, or the captures of a folder in the order of their first frames."""
        shown = f"capture file {_printable(path)}"
        with _operator_errors(shown):
            try:
                status = os.stat(path)
            except ValueError:  # a NUL byte, or what no file system can name
                raise NoInputError(f"{shown} cannot be opened (no such name is possible): check the path") from None
            if stat.S_ISDIR(status.st_mode):
                return self._folder(path, buffer)
            if stat.S_ISFIFO(status.st_mode):
                if not os.access(path, os.R_OK):
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
                return [_Input(path, shown, True)]
            if not stat.S_ISREG(status.st_mode):
                raise _NotACapture("is a device or a socket: give a file, a folder, a FIFO or - for standard input")
            _first_frame_ns(path, buffer)
        return [_Input(path, shown, False, status.st_size)]

    def _folder(self, path: str, buffer: Buffer) -> list[_Input]:
        found: list[tuple[int, str, int]] = []
        others: list[str] = []
        with os.scandir(path) as entries:
            files = sorted((each.path, each.name) for each in entries if each.is_file())
        for file, name in files:
            try:
                with _operator_errors(f"capture file {_printable(file)}"):
                    found.append((_first_frame_ns(file, buffer), file, os.stat(file).st_size))
            except NoInputError:
                others.append(name)
        folder = f"folder {_printable(path)}"
        if not found:
            raise NoInputError(f"{folder} has no capture file directly in it: give a folder with pcap or pcapng files")
        if others:
            self._warn(f"{folder}: left out what is no capture ({len(others)} files, first {_printable(others[0])})")
        found.sort()
        return [_Input(file, f"capture file {_printable(file)}", False, size) for _, file, size in found]


def _standard_input(fd: int) -> _Input:
    try:
        os.fstat(fd)
    except OSError:
        raise NoInputError("standard input is closed: pipe a capture into it, or name a file") from None
    if os.isatty(fd):
        raise NoInputError("standard input is a terminal: pipe a capture into it, or name a file")
    return _Input("-", "standard input", True, fd=fd)


def _open(path: str) -> int:
    """Never waits: a FIFO is opened whether or not somebody writes into it."""
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)


def _first_frame_ns(path: str, buffer: Buffer) -> int:
    """The time of the first frame of this file; -1 where it has none, or none near its beginning.

    Raises _NotACapture, OSError, and _Damage where damage hides even what kind of file it is."""
    fd = _open(path)
    try:
        capture = _Capture(fd, buffer, False)
        block = Block(1)
        for _ in range(PROBE_READS):
            try:
                more = capture.fill(block, 0.0)
            except _Damage:
                if capture.walker is None:
                    raise
                break
            if block.count:
                return block.frames()[0][2]
            if not more:
                break
        return -1
    finally:
        os.close(fd)


@contextmanager
def _operator_errors(shown: str) -> Iterator[None]:
    """What goes wrong with one path, as a line for the operator."""
    try:
        yield
    except PermissionError:
        raise NotPermittedError(f"{shown} may not be read: run as a user who may, or change its permissions") from None
    except FileNotFoundError:
        raise NoInputError(f"{shown} does not exist: check the path") from None
    except OSError as error:
        raise NoInputError(f"{shown} cannot be opened ({_reason(error)}): check the path") from None
    except _Damage as damage:
        raise NoInputError(f"{shown} cannot be unpacked: {damage}: take another copy of it") from None
    except _NotACapture as error:
        raise NoInputError(f"{shown} {error}") from None


def _printable(path: str) -> str:
    """A path as it can stand in a line of text."""
    return path if path.isprintable() and path else ascii(path)


def _reason(error: Exception) -> str:
    """The error's own words, in one line."""
    words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(words.split())
