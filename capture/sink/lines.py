"""Records as JSON lines, to standard output or a file.

A line is a value and a newline; key, headers and timestamp are in the value already. Lines are collected and written in
blocks, at the latest at the first `poll()` after 100 ms.

Standard output
- For a replay, a slow reader slows the run down, without a limit. For a NIC, up to 64 MiB wait for the reader and
  what exceeds them is undelivered, `queue_full`.
- A reader that has gone (`| head -1`) is a request to stop, as for other filters: `poll()` and `flush()` raise
  ReaderGone, whose exit code is 0 and which is not to be printed. What it did not read is undelivered, `reader_gone`.

A file
- Appended to, created with mode 0600, in a folder that exists; locked, so that two runs do not mix their lines. One
  that begins like no record is something else, such as a capture file, and left as it is.
- It holds whole lines only: where a write fails half-way the file is cut back to its last whole line. A partial line
  that something else left at its end is ended with a newline first.
- For a NIC a thread writes it, also where it is standard output, see background.py.
- A write that fails counts its records as undelivered: no_space, too_large (the limit of a file's size) or io_error.
  A replay then ends: `poll()` raises UndeliveredError. For a NIC the next block is tried again.

Several processes can write one output: each has a turn, which ends with a whole line, see Turns. Where a turn cannot be
had at all, as the kernel refuses the lock, that is a write that fails, io_error: nothing is written out of turn.
"""

import contextlib
import errno
import fcntl
import logging
import mmap
import os
import select
import stat
import sys
import time
from collections import deque

from ..errors import NotPermittedError, UndeliveredError, UsageError
from . import SinkStats

log = logging.getLogger("http_capture.sink")

BLOCK_BYTES = 256 << 10
WAITING_BYTES = 64 << 20
DELAY_SECONDS = 0.1
REPEAT_SECONDS = 60.0
TURN_SECONDS = 0.002
BEGINS_BYTES = 4096
BEGINS = (b"", b"{")  # of a file that may be appended to, after empty lines
REASONS = {
    errno.EPIPE: "reader_gone",
    errno.ECONNRESET: "reader_gone",
    errno.ENOSPC: "no_space",
    errno.EDQUOT: "no_space",
    errno.EFBIG: "too_large",
}


class ReaderGone(UndeliveredError):
    """Whoever read standard output has closed it: stop, say nothing."""

    exit_code = 0


class Turns:
    """Whose turn it is to write what several processes share. Made before they are forked.

    The lock is of the process and ends with it, however that ends. Where one was killed with a line half written, or
    might have been, the next one is told to end that line."""

    def __init__(self) -> None:
        self._file = os.memfd_create("http-capture turns")
        os.ftruncate(self._file, 1)
        self._open = mmap.mmap(self._file, 1)

    def take(self, *, wait: bool) -> bool:
        """True once it is this process's turn. Raises OSError where that cannot be had or waited for."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        return True

    @property
    def broken(self) -> bool:
        """Whether the line that was written last may have no end."""
        return self._open[0] != 0

    @broken.setter
    def broken(self, value: bool) -> None:
        self._open[0] = value

    def give(self) -> None:
        fcntl.lockf(self._file, fcntl.LOCK_UN)


class Lines:
    """Writes values, one a line, to a file descriptor; `delivered` counts what the kernel has taken, whole lines only.

    `name` is for messages. `owned`: close() closes the descriptor. `turns`: where other processes write to it too.
    """

    def __init__(
        self, descriptor: int, name: str, *, live: bool, owned: bool = False, turns: Turns | None = None
    ) -> None:
        self.waits = not live
        """A slow reader makes `send()`, `poll()` and `flush()` wait, without a limit of time, as `| less` needs it.
        Set it to False when a replay is asked to stop."""
        self._descriptor = descriptor
        self.name = name
        self._live = live
        self._owned = owned
        self._turns = turns
        self._mine = turns is None
        self._left = False  # what is there may end with a part of a line of another process
        self.regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
        self._poller = select.poll()
        if not self.regular:
            self._poller.register(descriptor, select.POLLOUT)
        self._buffer = bytearray()
        self._ends: deque[int] = deque()  # where each record in the buffer ends, plus `_taken`
        self._taken = 0  # bytes of the records that were written and removed from the buffer
        self._written = 0  # bytes of the first record in the buffer that the kernel has taken
        self.unsynced = 0  # records written to a file since it was last made durable
        self._due = 0.0
        self._records = 0
        self._bytes = 0
        self._delivered = 0
        self._undelivered: dict[str, int] = {}
        self._failure: UndeliveredError | None = None
        self._reason = ""
        self._logged = -REPEAT_SECONDS

    def send(self, key: bytes, value: bytes, headers: list[tuple[str, bytes]], timestamp_ms: int) -> None:
        self._records += 1
        self._bytes += len(value)
        if self._failure is not None:
            self._lose(1, self._reason)
            return
        buffer = self._buffer
        if buffer and len(buffer) + len(value) >= WAITING_BYTES:
            self._write(0.0)
            if self._failure is not None or len(buffer) + len(value) >= WAITING_BYTES:
                self._lose(1, self._reason if self._failure is not None else "queue_full")
                return
        buffer += value
        buffer += b"\n"
        self._ends.append(self._taken + len(buffer))
        if len(buffer) >= BLOCK_BYTES and (self.regular or self.waits):
            self._write(0.0)

    def poll(self) -> None:
        if self._ends:
            now = time.monotonic()
            if now >= self._due or len(self._buffer) >= BLOCK_BYTES:
                self._due = now + DELAY_SECONDS
                self._write(0.0)
        if self._failure is not None:
            raise self._failure

    def flush(self, timeout_seconds: float) -> int:
        """Returns the records that were not written; for a file, or not made durable. Raises ReaderGone."""
        self._write(time.monotonic() + timeout_seconds)
        if self.regular and self.unsynced:
            try:
                os.fsync(self._descriptor)
            except OSError as error:  # the kernel does not say which of them are lost
                self._delivered -= self.unsynced
                self._fail(error, self.unsynced)
            self.unsynced = 0
        if isinstance(self._failure, ReaderGone):
            raise self._failure
        return self._records - self._delivered

    def write(self, buffer: bytearray, ends: deque[int]) -> None:
        """Writes lines that were collected elsewhere, and keeps the buffer; `ends`: where each of them ends. Instead of
        send() and poll(), for a regular file: they are written or undelivered when this returns."""
        self._buffer, self._ends, self._taken = buffer, ends, 0
        self._write(0.0)

    def filled(self) -> float:
        return len(self._buffer) / WAITING_BYTES

    def stats(self) -> SinkStats:
        return SinkStats(self._records, self._bytes, self._delivered, len(self._ends), dict(self._undelivered))

    def shared(self, turns: Turns) -> "Lines":
        """Another one, for the same descriptor, in a process that was forked from this one's."""
        return Lines(self._descriptor, self.name, live=self._live, turns=turns)

    def close(self) -> None:
        self._lose(len(self._ends), "closed")
        self._clear()
        if self._turns is not None and self._mine:
            self._mine = False
            self._turns.give()
        if self._owned:
            self._owned = False
            with contextlib.suppress(OSError):  # what was not written or made durable is counted
                os.close(self._descriptor)

    def _write(self, until: float) -> None:
        """Writes the buffer; where the sink does not wait for its reader, what that takes until then (monotonic)."""
        if not self._ends:
            return
        try:
            if not self._in_turn(until):
                return
        except OSError as error:
            self._give_up(error)
            return
        try:
            self._write_it(until)
        finally:
            if self._turns is not None and not self._written:  # else the rest of the line has to follow
                self._turns.broken = self._left
                self._mine = False
                self._turns.give()

    def _in_turn(self, until: float) -> bool:
        """Whether this process may write now. Raises OSError where that cannot be known."""
        if self._turns is None or self._mine:
            return True
        while not self._turns.take(wait=self.regular):  # a wait for a reader may have to end, see `waits`
            if not self.waits and time.monotonic() >= until:
                return False
            time.sleep(TURN_SECONDS)
        self._mine = True
        self._left = self._turns.broken
        self._turns.broken = True
        return True

    def _end_left(self, until: float) -> bool:
        """Ends the line that another process may have left. False: the reader leaves no room for that."""
        if not self.regular and not self._writable(until):
            return False
        if not self._ends_whole():
            os.write(self._descriptor, b"\n")
        self._left = False
        return True

    def _ends_whole(self) -> bool:
        """Whether what is there ends with a whole line, where that can be seen."""
        if not self.regular:
            return False
        try:
            end = os.fstat(self._descriptor).st_size
            return end == 0 or os.pread(self._descriptor, 1, end - 1) == b"\n"
        except OSError:  # it may be open for writing only
            return False

    def _write_it(self, until: float) -> None:
        buffer = self._buffer
        start = 0
        try:
            if self._left and not self._end_left(until):
                return
            if self.regular:
                start = self._position()
            with memoryview(buffer) as view:
                while self._written < len(buffer):
                    if self.regular:
                        self._written += os.write(self._descriptor, view[self._written :])
                    elif self._writable(until):
                        # A pipe that polls as writable takes this many bytes without blocking; O_NONBLOCK would
                        # change the descriptor for every process that shares it.
                        self._written += os.write(self._descriptor, view[self._written :][: select.PIPE_BUF])
                    else:
                        break
        except BlockingIOError:  # another process did set O_NONBLOCK, and took the room
            self._take_whole()
        except OSError as error:
            end = start + self._written
            self._take_whole()
            if self.regular and self._written:
                self._cut(end, self._written)
            self._give_up(error)
        else:
            self._take_whole()

    def _position(self) -> int:
        """Where the next write to a regular file goes."""
        if fcntl.fcntl(self._descriptor, fcntl.F_GETFL) & os.O_APPEND:
            return os.fstat(self._descriptor).st_size
        return os.lseek(self._descriptor, 0, os.SEEK_CUR)

    def _cut(self, end: int, partial: int) -> None:
        """Takes the partial line at the end of a regular file away, if the end is still ours."""
        try:
            if os.fstat(self._descriptor).st_size == end:
                os.ftruncate(self._descriptor, end - partial)
                os.lseek(self._descriptor, end - partial, os.SEEK_SET)
        except OSError as error:
            log.error("cannot cut %s back to its last whole line: %s", self.name, error.strerror)

    def _take_whole(self) -> None:
        """Counts the records that are written whole and removes them from the buffer."""
        ends = self._ends
        taken = self._taken
        count = 0
        while ends and ends[0] <= taken + self._written:
            self._taken = ends.popleft()
            count += 1
        del self._buffer[: self._taken - taken]
        self._written -= self._taken - taken
        self._delivered += count
        self.unsynced += count

    def _clear(self) -> None:
        self._buffer.clear()
        self._ends.clear()
        self._written = self._taken = 0

    def _writable(self, until: float) -> bool:
        """True once something can be written, or the reader has gone, which the write then says."""
        while not self._poller.poll(0):
            left = until - time.monotonic()
            if left <= 0 and not self.waits:
                return False
            self._poller.poll(100.0 if self.waits else min(100.0, left * 1000 + 1))
        return True

    def _give_up(self, error: OSError) -> None:
        """What is in the buffer cannot be written."""
        lost = len(self._ends)
        self._clear()
        self._fail(error, lost)

    def _fail(self, error: OSError, records: int) -> None:
        self._reason = REASONS.get(error.errno or 0, "io_error")
        self._lose(records, self._reason)
        by = " by this process" if self._turns is not None else ""
        text = f"cannot write {self.name}: {error.strerror}: {self._delivered} records were written{by}"
        if self._reason == "reader_gone":
            self._failure = ReaderGone(text)
        elif not self._live:
            self._failure = UndeliveredError(text)
        elif time.monotonic() - self._logged >= REPEAT_SECONDS:
            self._logged = time.monotonic()
            log.error("%s", text)

    def _lose(self, records: int, reason: str) -> None:
        if records:
            self._undelivered[reason] = self._undelivered.get(reason, 0) + records


def open_stdout(*, live: bool) -> Lines:
    """Raises UsageError where standard output is closed."""
    if sys.stdout is None:
        raise UsageError("standard output is closed: open it, or name another --sink")
    return Lines(1, "standard output", live=live)


def open_file(path: str, *, live: bool) -> Lines:
    """Raises UsageError for what is no regular file, holds something else or is written to by another run,
    NotPermittedError, and UndeliveredError where it cannot be opened for another reason."""
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags, 0o600)
    except PermissionError as error:
        raise NotPermittedError(f"cannot open {path} for writing: {error.strerror}") from None
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise UndeliveredError(f"cannot open {path} for writing: {reason}") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise UsageError(f"{path} is not a regular file: use --sink stdout and redirect it")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"{path} is being written by another run: name another file") from None
        except OSError as error:
            log.warning("cannot lock %s (%s): see that no other run writes it", path, error.strerror)
        if os.pread(descriptor, BEGINS_BYTES, 0).lstrip(b"\n")[:1] not in BEGINS:  # pcapng begins with b"\n\r"
            raise UsageError(f"{path} holds something that is no record, and is left as it is: name another file")
        if status.st_size and os.pread(descriptor, 1, status.st_size - 1) != b"\n":
            log.warning("%s ends in a partial line: it is ended with a newline and left", path)
            os.write(descriptor, b"\n")
    except OSError as error:
        os.close(descriptor)
        raise UndeliveredError(f"cannot write {path}: {error.strerror}") from None
    except BaseException:
        os.close(descriptor)
        raise
    return Lines(descriptor, path, live=live, owned=True)
