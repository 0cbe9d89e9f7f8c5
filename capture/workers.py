"""Fan-out over processes: one reads, N workers take the connections apart. Linux.

    parent    guard, source, log, ledger     source -> slots of shared memory -> published, one after the other
    worker    stages and sink of its own     every block: decode, defrag; then the segments of its share

Every worker sees every frame, and a share is a hash of both ends of the innermost segment (frame_loop.py): tunnels,
VLANs and fragments need nothing of their own, and N changes no record. Frames of a NIC stay where the kernel put them,
in the ring, which the workers have mapped as the parent has; those of a file are read into the slots.

States of a slot:    free -> filled -> published -> free again once all workers are done with it
States of a worker:  forked -> ready -> (failed) -> ended: its last report is that of the end
                                     -> died: at any time; a restarted one has the same number

Invariants:
- Blocks have numbers, from 0. Each is published once, in order; the slot of a block is its number modulo their count.
- A worker is done with blocks in order. What it is told, and tells, goes through eventfd counters: one for each block.
- The last block says that it is the end, and has no frame.
- A ring block goes back to the kernel when all workers are done with the blocks that were made of it, in order.
- A worker that died had begun the first block that it was not done with: that one is lost to its share, and the next
  process goes on behind it. The connections that it had are lost too, and what it has counted since its last report.
- Workers have the parent's locks of the guard, and end with the parent, however that ends (SIGKILL).

Bounds: SLOTS blocks are lent at a time, of a NIC RING_SLOTS. Memory bounds of the settings are divided by N, but for
[defrag].
"""

import contextlib
import gc
import json
import logging
import mmap
import os
import select
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import msgspec

from ..config.settings import Settings
from .errors import HttpCaptureError, StoppedError, UnavailableError, WorkerDiedError, WorkerFailedError
from .pipeline import READ_SECONDS, Pipeline, new_decoder
from .process import User, become, call_itself, end_with
from .sink import SharedSink
from .source import EndOfInput, Source, SourceStats
from .source.af_packet import BLOCK_CAPACITY, AfPacket
from .source.block import INDEX_BYTES, Block, Buffer
from .source.pcap_file import PcapFiles
from .stats import Ledger, Share, merged

log = logging.getLogger("http_capture")

RING_SLOTS = 64
SLOTS = 8
SLOT_BYTES = 1 << 20  # more than one process reads at a time: each block costs all of them some waking
SLOT_FRAMES = 16384  # of 64 bytes, with their headers
HEADER_BYTES = 64  # of a slot; a cache line
REPORT_BYTES = 64 << 10
REPORT_SECONDS = 1.0
STALL_SECONDS = 10.0  # that a worker of a NIC may take for one block, or to start in the place of another
LEAVE_SECONDS = 3.0  # that one which has ended, or was killed, is waited for: a disk that stands still may hold it
END_SECONDS = 30.0  # beside the time to flush, or to reach a broker
MAX_DEATHS = 5
DEATHS_SECONDS = 60.0

FRAMES, END, END_NOW = 0, 1, 2  # kinds of blocks; END_NOW: a slow reader of the records is not to be waited for
STARTING, RUNNING, ENDED = "starting", "running", "ended"

Report = dict[str, Any]


class _Slot:
    """A block in shared memory. The header: kind, frames, ns since 1970 at which it was published idle (0: it has
    frames), blocks that waited in the source then. `buffer`: its own memory, or the ring."""

    __slots__ = ("block", "buffer", "header")

    def __init__(self, memory: memoryview, capacity: int, ring: Buffer | None, interface: str | None) -> None:
        self.header = memory[:HEADER_BYTES].cast("q")
        index = HEADER_BYTES + INDEX_BYTES * capacity
        self.block = Block(capacity, memory[HEADER_BYTES:index])
        self.block.interface = interface  # type: ignore[assignment]
        self.buffer = ring if ring is not None else Buffer(memory[index:])


class _Reports:
    """The last report of one worker, in shared memory: a number that counts them, and two places in turn."""

    __slots__ = ("_count", "_places")

    def __init__(self, memory: memoryview) -> None:
        self._count = memory[:8].cast("Q")
        self._places = [memory[8 + place * REPORT_BYTES :][:REPORT_BYTES] for place in (0, 1)]

    def write(self, report: Report) -> None:
        data = json.dumps(report).encode()
        place = self._places[(self._count[0] + 1) % 2]
        place[: len(data) + 8] = len(data).to_bytes(8, "little") + data
        self._count[0] += 1

    def read(self) -> Report | None:
        """None: there is none yet, or it is being replaced again and again."""
        for _ in range(10):
            count = self._count[0]
            place = self._places[count % 2]
            data = bytes(place[8 : 8 + int.from_bytes(place[:8], "little")])
            if count and count == self._count[0]:
                report: Report = json.loads(data)
                return report
        return None

    def clear(self) -> None:
        self._count[0] = 0


class _Worker:
    """A worker as the parent sees it.

    told, done: eventfd counters of blocks. finished: blocks that its number is done with or that are lost to it.
    ledgers: of its processes that died. over: nothing more is expected of it; whole: and it came to the end, alone.
    leave_by: when it is not waited for any more (monotonic).
    """

    __slots__ = (
        "done", "failed", "finished", "killed", "leave_by", "ledgers", "name", "number", "over", "pid", "pidfd",
        "ready", "reports", "stalled_seconds", "told", "whole",
    )  # fmt: skip

    def __init__(self, number: int, memory: memoryview) -> None:
        self.number = number
        self.name = f"worker {number}"
        self.reports = _Reports(memory)
        self.told = self.done = self.pidfd = -1
        self.pid = 0
        self.finished = 0
        self.ledgers: list[Report] = []
        self.over = False
        self.ready = False
        self.failed = False
        self.killed = False
        self.whole = True
        self.stalled_seconds = 0.0
        self.leave_by = float("inf")


class _Shared:
    """The source of a worker: what the parent publishes, from the block `first` on."""

    def __init__(self, slots: list[_Slot], first: int, told: int, done: int, source: Source) -> None:
        self.live = source.live
        self.now_ns = time.time_ns()  # the last time at which the NIC was idle, or nothing had come yet
        room = source.waiting()[1]
        self._room = max(len(slots) - 1, room) if room else 0
        self._in_ring = 0  # ring blocks that the parent had not come to
        self.hurried = False
        self._source = source
        self._slots = slots
        self._next = first
        self._told = told
        self._done = done
        self._there = 0
        self._lent = False
        self._empty = Block(0)
        self._stats = SourceStats()
        self._poll = select.poll()
        self._poll.register(told, select.POLLIN)

    def read(self, timeout_seconds: float) -> Block:
        if self._lent:
            self._lent = False
            os.eventfd_write(self._done, 1)
        if not self._there:
            if not self._poll.poll(timeout_seconds * 1000):
                return self._empty
            self._there = os.eventfd_read(self._told)
        slot = self._slots[self._next % len(self._slots)]
        kind, count, now_ns, self._in_ring = slot.header[:4]
        self._there -= 1
        self._next += 1
        if kind != FRAMES:
            self.hurried = kind == END_NOW
            os.eventfd_write(self._done, 1)
            raise EndOfInput
        slot.block.lend_filled(slot.buffer, count)
        self._lent = True
        self._stats.received += count
        if now_ns:
            self.now_ns = now_ns
        return slot.block

    def waiting(self) -> tuple[int, int]:
        """Also what waits in the ring for a slot."""
        if self._poll.poll(0):
            self._there += os.eventfd_read(self._told)
        return self._there + self._in_ring, self._room

    def stop(self) -> None:
        """It is the parent that stops."""

    def stats(self) -> SourceStats:
        return self._stats

    def close(self) -> None:
        if isinstance(self._source, AfPacket):
            self._source.forget()


class Fanout:
    """In place of a Pipeline: `start()`, then as that: `run()`, `finish()`, `ledger()`; at the end `close()`."""

    def __init__(
        self, settings: Settings, source: Source, sinks: SharedSink, *, version: str, instance: str, user: User | None
    ) -> None:
        if not hasattr(os, "eventfd") or not hasattr(os, "pidfd_open"):
            raise UnavailableError("--workers needs Linux 5.3 or newer: leave it out here")
        self.settings = settings
        self.source = source
        self._sinks = sinks
        self._version = version
        self._instance = instance
        self._hostname = socket.gethostname()
        self._user = user
        self._parent = os.getpid()
        self._decoder = new_decoder(settings)
        self._key = int.from_bytes(os.urandom(8), "little") | 1
        self._mask: set[signal.Signals] = set()
        count = settings.workers.count
        ring = source.lend_many() if isinstance(source, AfPacket) else None
        slots = min(RING_SLOTS, settings.source.ring_block_count) if ring is not None else SLOTS
        capacity = BLOCK_CAPACITY if ring is not None else SLOT_FRAMES
        slot_bytes = HEADER_BYTES + INDEX_BYTES * capacity + (SLOT_BYTES if ring is None else 0)
        report_bytes = 8 + 2 * REPORT_BYTES
        memory = memoryview(mmap.mmap(-1, count * report_bytes + slots * slot_bytes))
        self._workers = [_Worker(1 + i, memory[i * report_bytes :][:report_bytes]) for i in range(count)]
        memory = memory[count * report_bytes :]
        interface = settings.source.iface[0] if source.live else None
        self._slots = [_Slot(memory[i * slot_bytes :][:slot_bytes], capacity, ring, interface) for i in range(slots)]
        self._ring = ring is not None
        # How many ring blocks had been lent when a block was published: for those lent now, and the one before them.
        self._ring_blocks = [0] * (slots + 1)
        self._given_back = 0
        self._published = 0
        self._frames = 0
        self._poll = select.poll()
        try:
            self._news = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        except OSError as error:
            raise UnavailableError(f"workers cannot be started ({error.strerror}): see the limits") from None
        self._poll.register(self._news, select.POLLIN)
        self._looked = time.monotonic()
        self._each_block: Callable[[], None] = lambda: None
        self._trouble: HttpCaptureError | None = None
        self._stopping = False
        self._started = False
        self._ending = False
        self._raised = False
        self._end = -1  # the number of the last block
        self._hurried = False
        self._ended_by = float("inf")
        self._deaths: deque[float] = deque(maxlen=MAX_DEATHS)
        self.died = self.restarted = self.hung = self.blocks_lost = 0

    # The parent

    def start(self, stopped: Callable[[], bool]) -> None:
        """Forks the workers and waits until all of them have their sink. Raises what one of them raised, and
        StoppedError where `stopped()` meanwhile."""
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # inherited as ignored, nobody could tell how a worker ended
        try:
            for worker in self._workers:
                self._fork(worker)
        except HttpCaptureError:
            self.close()
            raise
        until = time.monotonic() + self.settings.kafka.start_timeout_seconds + END_SECONDS
        while not all(worker.ready for worker in self._workers):
            self._gather(READ_SECONDS)
            if stopped():
                self._trouble = self._trouble or StoppedError("stopped while the workers started: nothing was captured")
            if time.monotonic() > until:
                late = [worker.name for worker in self._workers if not worker.ready]
                self._trouble = self._trouble or UnavailableError(f"{', '.join(late)} did not start: is it stopped?")
            if self._trouble is not None:
                self.close()
                raise self._trouble
        self._started = True

    def run(self, stopped: Callable[[], bool], each_block: Callable[[], None] = lambda: None) -> None:
        """As Pipeline.run. Raises what ended a worker, and WorkerDiedError."""
        source = self.source
        self._each_block = each_block
        while True:
            if not self._stopping and stopped():
                self._stop()
            slot = self._free()
            try:
                block = self._read(slot)
            except EndOfInput:
                return
            if block is not slot.block or (block.count and block.buffer is not slot.buffer):
                self._copy(block, slot)
            elif block.count:
                self._publish(slot, FRAMES, block.count)
            if source.live and not block.count:
                self._publish(slot, FRAMES, 0, time.time_ns())
            each_block()

    def _stop(self) -> None:
        self._stopping = True
        self.source.stop()

    def _read(self, slot: _Slot) -> Block:
        if isinstance(self.source, PcapFiles):
            self.source.into(slot.block, slot.buffer)
        elif isinstance(self.source, AfPacket):
            self.source.into(slot.block)
        return self.source.read(READ_SECONDS)

    def _copy(self, block: Block, slot: _Slot) -> None:
        """What the source has in memory of its own."""
        used = 0
        frames = block.frames()  # it may be the block of the slot, on another buffer
        slot.block.lend(slot.buffer)
        for frame, wire, timestamp_ns, link in frames:
            if used + len(frame) > len(slot.buffer.view) or slot.block.full():
                self._publish(slot, FRAMES, slot.block.count)
                slot = self._free()
                slot.block.lend(slot.buffer)
                used = 0
            slot.buffer.view[used : used + len(frame)] = frame
            slot.block.add(used, len(frame), wire, timestamp_ns, link)
            used += len(frame)
        if slot.block.count:
            self._publish(slot, FRAMES, slot.block.count)

    def _free(self) -> _Slot:
        """The slot of the next block, once all are done with it."""
        self._look(0.0)
        while self._published - self._low() >= len(self._slots):
            self._look(READ_SECONDS)
            if not self._ending:
                self._each_block()
        return self._slots[self._published % len(self._slots)]

    def _look(self, timeout_seconds: float) -> None:
        self._gather(timeout_seconds)
        if self._trouble is not None and not self._ending:
            self._raised = True
            raise self._trouble

    def _low(self) -> int:
        """How many blocks all workers are done with."""
        return min((worker.finished for worker in self._workers if not worker.over), default=self._published)

    def _publish(self, slot: _Slot, kind: int, count: int, now_ns: int = 0) -> None:
        slot.header[0] = kind
        slot.header[1] = count
        slot.header[2] = now_ns
        slot.header[3] = self.source.waiting()[0]
        if isinstance(self.source, AfPacket):
            self._ring_blocks[self._published % len(self._ring_blocks)] = self.source.ring_blocks_lent
        self._published += 1
        self._frames += count
        for worker in self._workers:
            if not worker.over:
                os.eventfd_write(worker.told, 1)

    def _gather(self, timeout_seconds: float) -> None:
        """Waits for workers to tell something, and takes note of all that they tell."""
        for descriptor, _ in self._poll.poll(timeout_seconds * 1000):
            if descriptor == self._news:
                os.eventfd_read(self._news)
                for worker in self._workers:
                    self._hear(worker)
                continue
            for worker in self._workers:
                if descriptor == worker.done:
                    with contextlib.suppress(BlockingIOError):  # it is another one since, of the same number
                        worker.finished += os.eventfd_read(worker.done)
                    worker.stalled_seconds = 0.0
                elif descriptor == worker.pidfd:
                    self._reap(worker)
        if isinstance(self.source, AfPacket) and (low := self._low()):
            lent = self._ring_blocks[(low - 1) % len(self._ring_blocks)]
            if lent > self._given_back:
                self.source.give_back(lent - self._given_back)
                self._given_back = lent
        self._watch()

    def _watch(self) -> None:
        """Ends a worker that does not go on: of a NIC, where nothing makes it wait, and after a stop was asked for."""
        now = time.monotonic()
        # A pause of this process, too, is no worker's fault.
        passed = min(now - self._looked, 1.0)
        self._looked = now
        for worker in self._workers:
            if not worker.over and now > worker.leave_by:
                self._leave(worker)
        if not self._started or (not self.source.live and not self._hurried):
            return
        for worker in self._workers:
            if worker.over:
                continue
            behind = self.source.live and (worker.finished < self._published or not worker.ready)
            worker.stalled_seconds = worker.stalled_seconds + passed if behind else 0.0
            if not worker.killed and ((behind and worker.stalled_seconds > STALL_SECONDS) or now > self._ended_by):
                worker.killed = True
                worker.leave_by = now + LEAVE_SECONDS
                self.hung += 1
                what = f"has not {'finished a block' if worker.ready else 'started'} in {STALL_SECONDS:g} s"
                if not behind:
                    what = "does not come to its end"
                log.error("%s (pid %d) %s: it is killed", worker.name, worker.pid, what)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker.pid, signal.SIGKILL)

    @property
    def healthy(self) -> bool:
        """False while a worker that was killed for its silence has not ended: then the watchdog should know."""
        return not any(worker.killed for worker in self._workers)

    def _hear(self, worker: _Worker) -> None:
        report = worker.reports.read()
        if report is None:
            return
        worker.ready = worker.ready or report["state"] != STARTING
        if report["state"] == ENDED:
            worker.leave_by = min(worker.leave_by, time.monotonic() + LEAVE_SECONDS)
        # A process that cannot begin in the place of one that died is another one that died.
        if report["failure"] is not None and not worker.failed and (report["state"] != STARTING or not self._started):
            worker.failed = True
            self._trouble = self._trouble or WorkerFailedError(*report["failure"])

    def _reap(self, worker: _Worker) -> None:
        """It has ended: as it should, or not."""
        pid, status = os.waitpid(worker.pid, os.WNOHANG)
        if not pid:
            return
        how = os.waitstatus_to_exitcode(status)
        self._without(worker, f"was ended by {_signal(-how)}" if how < 0 else f"ended with exit code {how}")

    def _leave(self, worker: _Worker) -> None:
        """It cannot end, as one that writes to a disk which stands still. It holds the guard until it does."""
        self._without(worker, "cannot end, it waits for a device: it is left")

    def _without(self, worker: _Worker, told: str) -> None:
        """It does nothing any more. `told`: why, where it should have."""
        worker.leave_by = float("inf")
        worker.killed = False
        with contextlib.suppress(BlockingIOError):
            worker.finished += os.eventfd_read(worker.done)
        for descriptor in (worker.pidfd, worker.done):
            self._poll.unregister(descriptor)
        for descriptor in (worker.pidfd, worker.done, worker.told):
            os.close(descriptor)
        worker.pidfd = worker.done = worker.told = -1
        self._hear(worker)
        report = worker.reports.read() or {"state": STARTING, "failure": None, "ledger": None}
        if report["ledger"] is not None:
            worker.ledgers.append(report["ledger"])
        worker.reports.clear()
        if report["state"] == ENDED or worker.failed:
            worker.over = True
            worker.whole = worker.whole and not worker.failed
            return
        worker.whole = False
        self.died += 1
        if report["failure"] is not None:
            told += f" ({report['failure'][0]})"
        self._deaths.append(time.monotonic())
        at_end = self._end >= 0 and worker.finished >= self._end
        begun = worker.finished < self._published and not at_end and report["state"] != STARTING
        if begun:
            self.blocks_lost += 1
            worker.finished += 1
        often = len(self._deaths) == MAX_DEATHS and self._deaths[-1] - self._deaths[0] < DEATHS_SECONDS
        stops = often or self.settings.workers.on_death == "stop" or not self._started
        if stops or at_end or self._trouble is not None:
            worker.over = True
            why = f"the {MAX_DEATHS}th death within {DEATHS_SECONDS:g} s" if often else "[workers] on_death is stop"
            line = f"{worker.name} (pid {worker.pid}) {told}"
            if at_end or self._trouble is not None:
                log.error("%s", line)
            else:
                self._trouble = WorkerDiedError(f"{line}: the run ends ({why})" if self._started else line)
            return
        lost = "the block that it had begun and " if begun else ""
        log.error(
            "%s (pid %d) %s: %swhat it had of connections is lost; it is restarted", worker.name, worker.pid, told, lost
        )
        try:
            self._fork(worker)
        except UnavailableError as error:
            self._trouble = self._trouble or error
        else:
            self.restarted += 1

    def do_not_wait(self) -> None:
        """As Pipeline.do_not_wait. May be called by a handler of a signal, at any moment."""
        self._hurried = True
        for worker in self._workers:
            if worker.pidfd >= 0:
                with contextlib.suppress(OSError):
                    signal.pidfd_send_signal(worker.pidfd, signal.SIGUSR1)

    def progress(self) -> tuple[int, int]:
        """As Pipeline.progress; exchanges of about a second ago."""
        return self._frames, sum(ledger["exchanges"]["total"] for ledger in self._ledgers())

    def not_delivered(self) -> int:
        """As Pipeline.not_delivered, of about a second ago."""
        return sum(ledger["records"]["total"] - ledger["records"]["delivered"] for ledger in self._ledgers())

    def _ledgers(self) -> list[Report]:
        """The last ones of those that run."""
        reports = [worker.reports.read() for worker in self._workers]
        return [report["ledger"] for report in reports if report and report["ledger"]]

    def finish(self) -> int:
        """As Pipeline.finish: what was published is recorded, all workers flush, and end."""
        if not self._stopping and self.source.live:
            self._stop()
        self._ending = True
        if self.source.live or self._hurried:
            self._ended_by = time.monotonic() + self.settings.kafka.flush_timeout_seconds + END_SECONDS
        slot = self._free()
        self._end = self._published
        self._publish(slot, END_NOW if self._hurried else END, 0)
        while not all(worker.over for worker in self._workers):
            self._gather(READ_SECONDS)
        self.source.close()
        self._sinks.close()
        if self._trouble is not None and not self._raised:
            raise self._trouble
        records = self.ledger().sections["records"]
        return int(records["total"] - records["delivered"])

    def undelivered(self) -> dict[str, int]:
        """As Pipeline.undelivered."""
        return dict(self.ledger().sections["records"]["undelivered"])

    def ledger(self) -> Ledger:
        """Of all workers together, when they have ended."""
        return merged(
            live=self.source.live,
            source=self.source.stats(),
            frames=self._frames,
            shares=[Share(worker.name, worker.ledgers, worker.whole and worker.over) for worker in self._workers],
            workers={
                "count": len(self._workers),
                "died": self.died,
                "hung": self.hung,
                "restarted": self.restarted,
                "blocks_lost": self.blocks_lost,
            },
        )

    def close(self) -> None:
        """Ends, at once, what still runs, and closes what the workers share. Not the source."""
        for worker in self._workers:
            if worker.pidfd >= 0:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker.pid, signal.SIGKILL)
                if select.select([worker.pidfd], [], [], LEAVE_SECONDS)[0]:
                    with contextlib.suppress(ChildProcessError):
                        os.waitpid(worker.pid, 0)
                os.close(worker.pidfd)
                worker.pidfd = -1
                worker.over = True
                worker.whole = False
        self._sinks.close()

    # A worker

    def _fork(self, worker: _Worker) -> None:
        worker.ready = worker.killed = False
        worker.stalled_seconds = 0.0
        worker.pid = 0
        try:
            worker.told = os.eventfd(self._published - worker.finished, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            worker.done = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            with _signals_held() as mask:
                worker.pid = os.fork()
                if worker.pid == 0:
                    _end_as(lambda: self._work(worker, mask))
            worker.pidfd = os.pidfd_open(worker.pid)
        except OSError as error:
            worker.over = True
            if worker.pid:
                os.kill(worker.pid, signal.SIGKILL)
                os.waitpid(worker.pid, 0)
            for descriptor in (worker.told, worker.done):
                if descriptor >= 0:
                    os.close(descriptor)
            worker.told = worker.done = -1
            raise UnavailableError(f"{worker.name} cannot be started ({error.strerror}): see the limits") from None
        self._poll.register(worker.pidfd, select.POLLIN)
        self._poll.register(worker.done, select.POLLIN)

    def _work(self, worker: _Worker, mask: set[signal.Signals]) -> None:
        """The life of a worker."""
        pipeline: Pipeline | None = None

        def do_not_wait(number: int, frame: FrameType | None) -> None:
            self._hurried = True
            if pipeline is not None:
                pipeline.do_not_wait()

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGUSR1, do_not_wait)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        end_with(self._parent, signal.SIGKILL)
        call_itself(f"http-capture:{worker.number}")
        for handler in log.handlers:
            handler.setFormatter(_Named(worker.name, handler.formatter))
            if hasattr(handler, "follows"):
                handler.follows = True

        def report(state: str, failure: HttpCaptureError | None, ledger: Report | None) -> None:
            told = [str(failure), failure.exit_code] if failure is not None else None
            worker.reports.write({"state": state, "failure": told, "ledger": ledger})
            os.eventfd_write(self._news, 1)

        settings = divided(self.settings)
        try:
            sink = self._sinks.open(self._started)
            if self._user is not None and os.geteuid() == 0:
                become(self._user)
                end_with(self._parent, signal.SIGKILL)
        except HttpCaptureError as error:
            report(STARTING, error, None)
            return
        source = _Shared(self._slots, worker.finished, worker.told, worker.done, self.source)
        pipeline = Pipeline(
            settings, source, sink, hostname=self._hostname, version=self._version, instance=self._instance,
            decoder=self._decoder, clock=lambda: source.now_ns,
        )  # fmt: skip
        pipeline.loop.share_with(settings.workers.count, worker.number - 1, self._key)
        if self._hurried:
            pipeline.do_not_wait()
        report(RUNNING, None, pipeline.ledger().as_json())
        gc.freeze()
        due = time.monotonic() + REPORT_SECONDS

        def each_block() -> None:
            nonlocal due
            now = time.monotonic()
            if now >= due:
                due = now + REPORT_SECONDS
                worker.reports.write({"state": RUNNING, "failure": None, "ledger": pipeline.ledger().as_json()})

        failure: HttpCaptureError | None = None
        try:
            pipeline.run(lambda: False, each_block)
        except HttpCaptureError as error:
            failure = error
            report(RUNNING, failure, pipeline.ledger().as_json())
        if source.hurried or failure is not None:
            pipeline.do_not_wait()
        try:
            pipeline.finish()
        except HttpCaptureError as error:
            failure = failure or error
        report(ENDED, failure, pipeline.ledger().as_json())


def divided(settings: Settings) -> Settings:
    """What one worker has: the bounds of memory that are of the whole, divided by the number of workers."""
    count = settings.workers.count

    def part(number: int) -> int:
        return max(1, number // count)

    replace = msgspec.structs.replace
    tcp, body = settings.tcp, settings.body
    return replace(
        settings,
        tcp=replace(tcp, max_connections=part(tcp.max_connections), max_buffered_bytes=part(tcp.max_buffered_bytes)),
        body=replace(body, max_decoder_memory_bytes=part(body.max_decoder_memory_bytes)),
    )


class _Named(logging.Formatter):
    """The lines of a handler with the name of the worker before the message."""

    def __init__(self, name: str, formatter: logging.Formatter | None) -> None:
        super().__init__()
        self._name = name
        self._formatter = formatter or logging.Formatter()

    def format(self, record: logging.LogRecord) -> str:
        text = logging.makeLogRecord({**record.__dict__, "msg": f"{self._name}: {record.getMessage()}", "args": None})
        return self._formatter.format(text)


@contextlib.contextmanager
def _signals_held() -> Iterator[set[signal.Signals]]:
    """No handler of this process runs in a child before that has set its own. Gives the mask as it was."""
    held = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, held)
    try:
        yield {signal.Signals(number) for number in before}
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_as(what: Callable[[], None]) -> None:
    """Does it, and ends this process: nothing that the parent has begun is ended here."""
    code = 1
    try:
        what()
        code = 0
    except BaseException:
        log.exception("ended by an error of its own, please report it")
    finally:
        os._exit(code)


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
