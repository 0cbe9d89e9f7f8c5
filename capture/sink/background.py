"""A file, for a NIC: a thread writes it, so a disk that is slow, full of other work or gone makes nobody wait.

What is collected while a block is written is the next block. Up to 64 MiB wait for the disk, and what exceeds them is
undelivered, `queue_full`; what is given up before, overload.py says. Records that are still being written at close(),
or are not known to be durable, count as undelivered, `closed`, and may be in the file all the same.

The thread is started with the sink: before the privileges are given up, since the limits of another user may allow no
more; but after the fork in a process that is forked, which has no thread of its parent.
"""

import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue

from ..errors import UnavailableError
from . import SinkStats, lines


class Background:
    """As `sink`, which is of a regular file and is not to be used by anybody else any more. Without `start` it is for
    `shared()` in processes that are forked, and nothing can be sent.

    Raises UnavailableError where the thread cannot be started; `sink` is closed then."""

    def __init__(self, sink: lines.Lines, *, start: bool = True) -> None:
        self._sink = sink  # of the thread, while one of its tasks is not done
        self._done = (sink.stats(), 0)  # as of the last task, with how many of `delivered` are not durable
        self._buffer = bytearray()
        self._ends: deque[int] = deque()  # where each record in the buffer ends
        self._given = 0  # bytes that the thread has
        self._tasks: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._idle = threading.Event()
        self._idle.set()
        self._error: BaseException | None = None
        self._due = 0.0
        self._records = 0
        self._bytes = 0
        self._full = 0
        self._closed: SinkStats | None = None
        if start:
            self._start()

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, name="writer", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            self._sink.close()
            raise UnavailableError(
                f"the thread that writes {self._sink.name} cannot be started: see the limits (ulimit -u, TasksMax)"
            ) from None

    def send(self, key: bytes, value: bytes, headers: list[tuple[str, bytes]], timestamp_ms: int) -> None:
        self._records += 1
        self._bytes += len(value)
        buffer = self._buffer
        if len(buffer) + len(value) >= lines.BLOCK_BYTES:
            waiting = len(buffer) + (0 if self._idle.is_set() else self._given)
            if waiting and waiting + len(value) >= lines.WAITING_BYTES:
                self._full += 1
                return
        buffer += value
        buffer += b"\n"
        self._ends.append(len(buffer))
        if len(buffer) >= lines.BLOCK_BYTES:
            self._give()

    def poll(self) -> None:
        if self._ends:
            now = time.monotonic()
            if now >= self._due or len(self._buffer) >= lines.BLOCK_BYTES:
                self._due = now + lines.DELAY_SECONDS
                self._give()
        if self._error is not None:
            raise self._error

    def flush(self, timeout_seconds: float) -> int:
        """Returns the records that were not written and made durable."""
        until = time.monotonic() + timeout_seconds
        if self._wait(until) and self._give() and self._wait(until):
            self._do(lambda: self._sink.flush(0.0))
            self._wait(until)
        if self._error is not None:
            raise self._error
        written, unsynced = self._done
        return self._records - (written.delivered - unsynced)

    def filled(self) -> float:
        return (len(self._buffer) + (0 if self._idle.is_set() else self._given)) / lines.WAITING_BYTES

    def stats(self) -> SinkStats:
        if self._closed is not None:
            return self._closed
        return self._stats(self._done[0], 0)

    def _stats(self, written: SinkStats, unsynced: int) -> SinkStats:
        """`unsynced` of what was written are still pending."""
        delivered = written.delivered - unsynced
        lost = dict(written.undelivered)
        if self._full:
            lost["queue_full"] = self._full
        return SinkStats(self._records, self._bytes, delivered, self._records - delivered - sum(lost.values()), lost)

    def shared(self, turns: lines.Turns) -> "Background":
        """Another one, with a thread, for the same file, in a process that was forked from this one's."""
        return Background(self._sink.shared(turns))

    def close(self) -> None:
        """Does not wait for the thread."""
        if self._closed is not None:
            return
        last = self._stats(*self._done)
        if last.pending:
            last.undelivered["closed"] = last.pending
            last.pending = 0
        self._closed = last
        if self._idle.is_set():
            self._sink.close()
        else:  # the thread still writes to its descriptor
            self._tasks.put(self._sink.close)
        self._tasks.put(None)

    def _give(self) -> bool:
        """Hands what was collected to the thread. False where that is still busy with what it got before."""
        if not self._idle.is_set():
            return False
        if self._ends:
            buffer, ends = self._buffer, self._ends
            self._given = len(buffer)
            self._buffer, self._ends = bytearray(), deque()
            self._do(lambda: self._sink.write(buffer, ends))
        return True

    def _do(self, task: Callable[[], object]) -> None:
        self._idle.clear()
        self._tasks.put(task)

    def _wait(self, until: float) -> bool:
        return self._idle.wait(max(0.0, until - time.monotonic()))

    def _run(self) -> None:
        # A signal is to end the wait of the thread that reads the NIC, so it must not come here.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while (task := self._tasks.get()) is not None:
            try:
                task()
            except BaseException as error:  # raised again where the sink is used
                self._error = error
            self._done = (self._sink.stats(), self._sink.unsynced)
            self._idle.set()
