"""The table of TCP connections: finds the connection of a segment, follows its state, forgets it in time.

    (none)      --SYN, SYN+ACK, or payload or FIN (midstream)--> embryonic
    embryonic   --first payload--> open: the application is told, and gets the streams
    open        --the application finds nothing of its own--> ignored: payload is counted, not read
    any         --both streams closed, RST--> forgotten but for what ended.py keeps, so that late segments find that
    any         --a confirmed new SYN, idle too long, evicted, shed, shutdown--> forgotten

A RST ends a connection once the reorder window is over, where it is then still exactly behind its sender's bytes, as
its receiver requires (RFC 9293 section 3.10.7.4, RFC 5961 section 3): one with a hole before it that the peer has not
acknowledged, or with bytes behind it, is forged or late. A FIN that was not captured is known by the acknowledgement of
its number; that stream ends when its peer has ended, or with the connection.

Invariants:
- A connection is in the chain of its slot, in exactly one of the two queues (by age: oldest first), and counted in
  `active`, or in none of them and `done`. Those that have ended and are remembered are counted in `active` too.
- A done connection holds no stream, no buffer and no application.
- segments = data + control + untracked + late + ignored.

Time is that of the frames, also of those that are not TCP: `now_ns` is the latest of theirs. It can be set back: of a
host by NTP, of a replay by the next file. One frame that is STEP_NS behind may only be late (files that were merged, a
ring block that was long in filling: a second or so), or its time is wrong. Where all are that far behind for SURE_NS of
their time, the clock was set back; nothing is given up until that is known. `now_ns` is theirs from then on, and
`back_ns` grows by the difference, so that now_ns + back_ns never goes back. The age of connections and the order of
`waiting` go by that sum: nothing in the table is touched, however large it is and however often a file does that.
Where the clock goes forward by more than STEP_NS at once, it first takes back what it was set back: one that goes back
and forth makes no connection idle. What is more than that is silence in a file, and time that has passed. A NIC
(`live`) is never silent for so long, since its host tells the time then: its clock was set, and no time has passed.

Bounds: `max_connections`, those that have ended among them (these are evicted first, then embryonic, then the longest
idle); timers run on the time of the frames. Slots are chosen by multilinear hashing with secret keys (Dietzfelbinger
1996; a sender cannot aim at one slot), and a chain has at most MAX_CHAIN connections. There are as many slots as there
have been connections at once, so that they stay near the processor.
"""

import os
from collections import deque
from typing import Any

import cython

if cython.compiled:
    from cython.cimports.http_capture.capture.decode import Segment
    from cython.cimports.http_capture.capture.ended import Ended
    from cython.cimports.http_capture.capture.octets import prefetch_item, prefetch_place
    from cython.cimports.http_capture.capture.reassembly import Reassembly, Stream, new_stream, prefetch_reader
    from cython.cimports.http_capture.capture.seq import advance, difference
    from cython.cimports.http_capture.capture.tunnel import Outer
else:
    from .decode import Segment
    from .ended import Ended
    from .octets import prefetch_item, prefetch_place
    from .reassembly import Reassembly, Stream, new_stream, prefetch_reader
    from .seq import advance, difference
    from .tunnel import Outer

UNKNOWN, A, B = 0, 1, 2  # which end is the client

_SYN = cython.declare(cython.int, 0x02)
_RST = cython.declare(cython.int, 0x04)
_FIN = cython.declare(cython.int, 0x01)
_ACK = cython.declare(cython.int, 0x10)
_URG = cython.declare(cython.int, 0x20)

_EMBRYONIC = cython.declare(cython.int, 0)
_OPEN = cython.declare(cython.int, 1)

_RST_REASON = cython.declare(cython.int, 1)
_TIMEOUT_REASON = cython.declare(cython.int, 2)
_EVICTED_REASON = cython.declare(cython.int, 3)
_SHUTDOWN_REASON = cython.declare(cython.int, 4)
_SHED_REASON = cython.declare(cython.int, 5)

FIRST_SLOTS = 1 << 10
_HALF = cython.declare(cython.ulonglong, 0xFFFFFFFF)
_MAX_CHAIN = cython.declare(cython.int, 64)
_TOUCH_NS = cython.declare(cython.longlong, 250_000_000)  # the queues are in order of age to this grain
_TICK_NS = cython.declare(cython.longlong, 50_000_000)
_RST_WINDOW = cython.declare(cython.longlong, 1 << 24)  # how far ahead of the stream a RST is believed
_STEP_NS = cython.declare(cython.longlong, 3_000_000_000)
_SURE_NS = cython.declare(cython.longlong, 1_000_000_000)
_MOST_BACK_NS = cython.declare(cython.longlong, 3 << 60)  # times are below 1 << 62: the sum, and a timeout, fit 64 bits
_ONE_SIDED = cython.declare(cython.longlong, 10)  # reorder windows that a hole is waited for where nobody acknowledges


@cython.final
@cython.freelist(64)
@cython.no_gc  # circles are broken by hand
@cython.cclass
class Connection:
    """Both directions of one TCP conversation. End `a` sent the first segment seen; `forward` carries a's bytes.

    `client` is A or B, or UNKNOWN while neither a handshake nor the application has told. Times are in ns, 0: unknown;
    `touched_ns` is with the table's `back_ns`.
    `path` is that of its segments, `outers` the tunnels that its first segment came through, outermost first, or None.
    `application` belongs to the application.
    """

    @cython.cfunc
    @cython.exceptval(-1)
    def set_up(self) -> cython.int:
        """What begins a connection that has just been made."""
        self.next_in_slot: Connection = None
        self.older: Connection = None
        self.newer: Connection = None
        self.queue = -1
        self.slot = 0
        self.touched_ns = self.reset_ns = 0
        self.syn_ns = self.syn_ack_ns = self.handshake_ns = 0
        self.ip_version = 4
        self.a_port = self.b_port = 0
        self.vlan = self.inner_vlan = -1
        self.path = 0
        self.outers: tuple[Outer, ...] | None = None
        self.a_high = self.a_low = self.b_high = self.b_low = 0
        self.forward: Stream = None
        self.backward: Stream = None
        self.client = 0
        self.midstream = True
        self.opened = self.ignored = self.done = self.waiting = False
        self.pending_syn = self.a_first = self.b_first = -1
        self.pending_ns = self.pending_length = 0
        self.pending_from_a = self.reset_from_a = False
        self.reset_seq = -1
        self.application: Any = None
        return 0

    @cython.ccall
    @cython.exceptval(-1)
    def leave(self) -> cython.int:
        """The application does not want the bytes: from now on they are counted and not read."""
        self.ignored = True
        return 0


if not cython.compiled:  # connection.pxd has the C form

    def prefetch_parts(connection: Connection) -> None:
        """Streams and application are needed soon."""


@cython.cclass
class Application:
    """Who reads connections: `open` is called once for each, before its first byte, and sets the streams' consumers."""

    @cython.ccall
    @cython.exceptval(-1)
    def open(self, connection: Connection) -> cython.int:
        return 0

    @cython.ccall
    @cython.exceptval(-1)
    def prefetch(self, connection: Connection) -> cython.int:
        """Payload of this connection will come: asks the processor for what it will be read with."""
        return 0

    @cython.ccall
    @cython.exceptval(-1)
    def left(self, connection: Connection) -> cython.int:
        """After connection.leave(): the streams' consumers will not be called again, not even on_close."""
        return 0


@cython.final
@cython.cclass
class ConnectionTable:
    """All connections. `closed[reason]` counts connections by why they ended (reassembly.CLOSE_REASONS)."""

    def __init__(
        self, application: Application, reassembly: Reassembly, *, max_connections: int, reorder_ns: int,
        handshake_timeout_ns: int, idle_timeout_ns: int, closing_timeout_ns: int, live: bool = False,
    ) -> None:  # fmt: skip
        self.application = application
        self.reassembly = reassembly
        self.max_connections = max_connections
        self.reorder_ns = reorder_ns
        self.timeouts_ns = [handshake_timeout_ns, idle_timeout_ns]
        self.closing_timeout_ns = closing_timeout_ns
        self.slots: list[Connection] = [None] * FIRST_SLOTS
        self.slot_mask = FIRST_SLOTS - 1
        self.oldest: list[Connection] = [None, None]
        self.newest: list[Connection] = [None, None]
        self.ended = Ended()
        self.waiting: deque[tuple[int, Connection]] = deque()
        self.now_ns = self.next_tick_ns = 0
        self.early_ns = 0  # a frame before this is STEP_NS behind
        self.early_since_ns = -1  # the first of those that came since the last tick, -1: none
        self.back_ns = self.clock_steps = 0
        self.live = live
        self.segments = self.data = self.control = self.untracked = self.late = self.ignored = 0
        self.opened = self.midstream = self.resets_ignored = self.left = self.collisions = 0
        self.ended_evicted = 0  # connections that were no longer remembered as long as they should have been
        self.closed = [0, 0, 0, 0, 0, 0]
        self.active = 0
        self.from_a = False
        keys = [int.from_bytes(os.urandom(8), "little") | 1 for _ in range(11)]
        self.k0, self.k1, self.k2, self.k3, self.k4, self.k5, self.k6, self.k7, self.k8, self.k9, self.k10 = keys

    @cython.ccall
    @cython.exceptval(-1)
    def segment(self, segment: Segment) -> cython.int:
        """Takes one segment. What it completes reaches the consumers before this returns."""
        slot: cython.longlong
        connection: Connection
        from_a: cython.bint
        mine: Stream
        other: Stream
        stream: Stream
        flags: cython.int = segment.flags
        now_ns: cython.longlong = segment.timestamp_ns
        captured: cython.Py_ssize_t = segment.payload_end - segment.payload_start
        self.segments += 1
        if now_ns > self.now_ns:
            self.now_ns = now_ns
            if now_ns >= self.next_tick_ns:
                self.tick(now_ns)
        elif now_ns < self.early_ns:
            self.behind(now_ns)
        slot = segment.slot if segment.slot >= 0 else self._slot(segment)
        connection = self._find(segment, slot)
        from_a = self.from_a
        if connection is None:
            if self.ended.count > 0 and self._is_late(segment):
                self.late += 1
                self.reassembly.payload_bytes += captured
                self.reassembly.retransmitted_bytes += captured
                return 0
            if flags & _RST or not (flags & (_SYN | _FIN) or segment.payload_length > 0):
                self.untracked += 1
                return 0
            connection = self._create(segment, slot)
            from_a = True
        elif connection.pending_syn >= 0 and not flags & _SYN:
            mine = connection.forward if from_a else connection.backward
            if (
                0 < difference(segment.seq, connection.pending_syn) <= 1 + connection.pending_length
                and (mine is None or segment.seq != mine.next_seq)
                and from_a == connection.pending_from_a
            ):
                connection = self._replace(connection, segment, _RST_REASON)
                from_a = True
        if self.now_ns + self.back_ns - connection.touched_ns > _TOUCH_NS:
            connection.touched_ns = self.now_ns + self.back_ns
            self._dequeue(connection)
            self._enqueue(connection, connection.queue)
        if connection.ignored:
            self.ignored += 1
            self.reassembly.payload_bytes += captured
            self.reassembly.ignored_bytes += captured
            if flags & (_SYN | _RST | _FIN):
                if flags & _SYN and not flags & _ACK:
                    if not self._repeats(
                        segment, connection.a_first if from_a else connection.b_first, connection.touched_ns
                    ):
                        self._replace(connection, segment, _RST_REASON)
                else:
                    self._finish(connection, _RST_REASON if flags & _RST else 0, True)
            return 0
        if segment.payload_length > 0:
            self.data += 1
        else:
            self.control += 1
        if flags & _SYN:
            if self._syn(connection, segment, from_a) == 1:  # it was replaced
                if segment.payload_length == 0:
                    return 0
                connection = self._find(segment, slot)
                from_a = self.from_a
            if segment.payload_length > 0 and not flags & _ACK and segment.seq == connection.pending_syn:
                self.reassembly.payload_bytes += captured  # of a connection that is not there yet
                self.reassembly.discarded_bytes += captured
                return 0
            if segment.payload_length == 0:
                if connection.waiting:
                    self._settle(connection)
                return 0
        mine = connection.forward if from_a else connection.backward
        other = mine.peer
        if flags & _ACK:
            if (
                connection.handshake_ns == 0
                and connection.syn_ack_ns != 0
                and not flags & _SYN
                and from_a == (connection.client == 1)
            ):
                connection.handshake_ns = now_ns
            if other.started:
                other.acknowledge(segment.ack, now_ns)
        if segment.payload_length > 0 or flags & _FIN:
            if not connection.opened and segment.payload_length > 0:
                connection.opened = True
                self._dequeue(connection)
                self._enqueue(connection, _OPEN)
                self.application.open(connection)
                for stream in (connection.forward, connection.backward):
                    if stream.closed and stream.consumer is not None:  # a FIN before the first payload
                        stream.consumer.on_close(0, now_ns)
            if flags & _URG:  # the pointer is to the byte after the urgent one; 0 means the first (as in Linux)
                mine.urgent(advance(segment.seq, (1 if flags & _SYN else 0) + max(segment.urgent - 1, 0)))
            mine.segment(
                segment.buffer, segment.payload_start, segment.payload_end, segment.payload_length,
                advance(segment.seq, 1) if flags & _SYN else segment.seq,
                segment.ack if flags & _ACK else -1, flags & _FIN != 0, now_ns,
            )  # fmt: skip
        if flags & _RST:
            self._reset(connection, segment, from_a)
        if connection.waiting or self._unsettled(connection):
            self._settle(connection)
        if connection.done:
            return 0
        if connection.ignored:
            self._leave(connection)
        elif mine.closed and other.closed:
            self._finish(connection, 0, True)
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def _is_late(self, segment: Segment) -> cython.bint:
        """Whether this segment is of a connection that has ended. A SYN that begins the next one has it forgotten."""
        ended: Ended = self.ended
        if not ended.find(segment):
            return False
        if segment.flags & (_SYN | _ACK | _RST) != _SYN or self._repeats(segment, ended.first, ended.ended_ns):
            return True
        ended.forget()
        self.active -= 1
        return False

    @cython.ccall
    @cython.exceptval(-1)
    def prefetch_slot(self, segment: Segment) -> cython.int:
        """The segment will come: finds its slot. This and the next three ask the processor for what segment() reads of
        a connection, in an order in which each step needs only what the one before has asked for."""
        segment.slot = self._slot(segment)
        prefetch_place(self.slots, segment.slot & self.slot_mask)
        return 0

    @cython.ccall
    @cython.exceptval(-1)
    def prefetch_connection(self, segment: Segment) -> cython.int:
        """The first of its slot, which is nearly always the only one."""
        prefetch_item(self.slots, segment.slot & self.slot_mask)
        return 0

    @cython.ccall
    @cython.exceptval(-1)
    def prefetch_streams(self, segment: Segment) -> cython.int:
        connection: Connection = self.slots[segment.slot & self.slot_mask]
        if connection is not None:
            prefetch_parts(connection)
        return 0

    @cython.ccall
    @cython.exceptval(-1)
    def prefetch_consumers(self, segment: Segment) -> cython.int:
        connection: Connection = self.slots[segment.slot & self.slot_mask]
        mine: Stream
        if connection is not None and connection.forward is not None and segment.payload_length > 0:
            mine = connection.forward
            if segment.source_port != connection.a_port or segment.source_low != connection.a_low:
                mine = connection.backward
            prefetch_reader(mine)
            self.application.prefetch(connection)
        return 0

    @cython.ccall
    @cython.exceptval(-1)
    def shed(self, segment: Segment) -> cython.int:
        """The connection of this segment, where there is one, is given up and forgotten, also where it has ended; the
        segment is not counted."""
        connection: Connection = self._find(segment, self._slot(segment))
        if connection is not None:
            self._close(connection, _SHED_REASON, False)
        elif self.ended.count > 0 and self.ended.find(segment):
            self.ended.forget()
            self.active -= 1
        return 0

    @cython.ccall
    @cython.exceptval(-1)
    def tick(self, now_ns: cython.longlong) -> cython.int:
        """The clock, from the frames, or of a NIC without any from the host: gives up holes that were waited for, ends
        what was idle for too long."""
        connection: Connection
        queue: cython.int
        timeout_ns: cython.longlong
        step_ns: cython.longlong
        age_ns: cython.longlong
        if now_ns < self.now_ns:
            if now_ns < self.early_ns:
                self.behind(now_ns)
            return 0
        step_ns = now_ns - self.next_tick_ns
        if step_ns > _STEP_NS and self.next_tick_ns != 0:
            if not self.live and step_ns > self.back_ns:
                step_ns = self.back_ns
            if step_ns > 0:
                self.back_ns -= step_ns
                self.clock_steps += 1
        self.now_ns = now_ns
        self.next_tick_ns = now_ns + _TICK_NS
        self.early_ns = now_ns - _STEP_NS
        self.early_since_ns = -1
        age_ns = now_ns + self.back_ns
        while self.waiting and self.waiting[0][0] <= age_ns:
            connection = self.waiting.popleft()[1]
            connection.waiting = False
            if not connection.done and not connection.ignored:
                self._settle(connection)
        for queue in range(2):
            timeout_ns = self.timeouts_ns[queue]
            while True:
                connection = self.oldest[queue]
                if connection is None or connection.touched_ns + timeout_ns > age_ns:
                    break
                self._close(connection, _TIMEOUT_REASON, False)
        if self.ended.count > 0:
            self.active -= self.ended.drop_before(age_ns - self.closing_timeout_ns)
        return 0

    @cython.ccall
    @cython.exceptval(-1)
    def behind(self, now_ns: cython.longlong) -> cython.int:
        """A frame came with this time, which is before `early_ns`: finds out whether the clock was set back."""
        if self.early_since_ns < 0 or now_ns < self.early_since_ns:
            self.early_since_ns = now_ns
        elif now_ns - self.early_since_ns >= _SURE_NS and self.now_ns - now_ns + self.back_ns <= _MOST_BACK_NS:
            self.back_ns += self.now_ns - now_ns
            self.clock_steps += 1
            self.now_ns = self.next_tick_ns = now_ns
            self.tick(now_ns)
        return 0

    @cython.ccall
    @cython.exceptval(-1)
    def shutdown(self) -> cython.int:
        """Ends all connections, the longest idle first. The table is empty afterwards."""
        connection: Connection
        queue: cython.int
        for queue in range(2):
            while True:
                connection = self.oldest[queue]
                if connection is None:
                    break
                self._close(connection, _SHUTDOWN_REASON, False)
        self.active -= self.ended.count
        self.ended = Ended()
        self.waiting.clear()
        return 0

    @cython.cfunc
    @cython.exceptval(check=False)
    def _slot(self, segment: Segment) -> cython.longlong:
        """The same for both directions: the ends are put in order first. Its last bits choose the slot."""
        ah: cython.ulonglong = segment.source_high
        al: cython.ulonglong = segment.source_low
        ap: cython.ulonglong = segment.source_port
        bh: cython.ulonglong = segment.destination_high
        bl: cython.ulonglong = segment.destination_low
        bp: cython.ulonglong = segment.destination_port
        swap: cython.ulonglong
        total: cython.ulonglong
        if ah > bh or (ah == bh and (al > bl or (al == bl and ap > bp))):
            swap = ah
            ah = bh
            bh = swap
            swap = al
            al = bl
            bl = swap
            swap = ap
            ap = bp
            bp = swap
        total = self.k0 + self.k1 * (al & 0xFFFF) + self.k2 * (al >> 16 & 0xFFFF) + self.k3 * (bl & 0xFFFF)
        total += self.k4 * (bl >> 16 & 0xFFFF) + self.k5 * (ap << 16 | bp)
        if segment.ip_version == 6:
            total += self.k6 * (al >> 32) + self.k7 * (bl >> 32) + self.k8 * (ah >> 32) + self.k9 * (bh >> 32)
            total += self.k10 * ((ah & 0xFFFFFF) ^ (bh & 0xFFFFFF) << 8)
        total += segment.path
        return total >> 32 & _HALF

    @cython.cfunc
    def _find(self, segment: Segment, slot: cython.longlong) -> Connection:
        connection: Connection = self.slots[slot & self.slot_mask]
        while connection is not None:
            if connection.a_low == segment.source_low and connection.b_low == segment.destination_low:
                if (
                    connection.a_port == segment.source_port
                    and connection.b_port == segment.destination_port
                    and connection.a_high == segment.source_high
                    and connection.b_high == segment.destination_high
                    and connection.ip_version == segment.ip_version
                    and connection.path == segment.path
                ):
                    self.from_a = True
                    return connection
            if connection.b_low == segment.source_low and connection.a_low == segment.destination_low:
                if (
                    connection.b_port == segment.source_port
                    and connection.a_port == segment.destination_port
                    and connection.b_high == segment.source_high
                    and connection.a_high == segment.destination_high
                    and connection.ip_version == segment.ip_version
                    and connection.path == segment.path
                ):
                    self.from_a = False
                    return connection
            connection = connection.next_in_slot
        return None

    @cython.cfunc
    def _create(self, segment: Segment, slot: cython.longlong) -> Connection:
        connection: Connection
        length: cython.int = 0
        victim: Connection = None
        if self.active >= self.max_connections:
            if self.ended.drop_oldest():
                self.active -= 1
                self.ended_evicted += 1
            else:
                victim = self.oldest[_EMBRYONIC] if self.oldest[_EMBRYONIC] is not None else self.oldest[_OPEN]
                self._close(victim, _EVICTED_REASON, False)
        if self.active - self.ended.count > self.slot_mask:
            self._more_slots()
        connection = self.slots[slot & self.slot_mask]
        while connection is not None:
            length += 1
            victim = connection
            connection = connection.next_in_slot
        if length >= _MAX_CHAIN:
            self.collisions += 1
            self._close(victim, _EVICTED_REASON, False)
        connection = Connection.__new__(Connection)
        connection.set_up()
        connection.slot = slot
        connection.ip_version = segment.ip_version
        connection.a_high = segment.source_high
        connection.a_low = segment.source_low
        connection.a_port = segment.source_port
        connection.b_high = segment.destination_high
        connection.b_low = segment.destination_low
        connection.b_port = segment.destination_port
        connection.vlan = segment.vlan
        connection.inner_vlan = segment.inner_vlan
        connection.path = segment.path
        if segment.depth > 0:
            connection.outers = self._outers(segment)
        connection.touched_ns = self.now_ns + self.back_ns
        connection.forward = new_stream(self.reassembly)
        connection.backward = new_stream(self.reassembly)
        connection.forward.peer = connection.backward
        connection.backward.peer = connection.forward
        connection.next_in_slot = self.slots[slot & self.slot_mask]
        self.slots[slot & self.slot_mask] = connection
        self.active += 1
        self.opened += 1
        if not segment.flags & _SYN:
            self.midstream += 1
        self._enqueue(connection, _EMBRYONIC)
        return connection

    @cython.cfunc
    def _outers(self, segment: Segment) -> tuple:
        """Copies of the tunnels around the segment, whose own are used again. Their source is the end on a's side."""
        outers: list = []
        i: cython.int
        outer: Outer
        copy: Outer
        for i in range(segment.depth):
            outer = segment.outers[i]
            copy = Outer()
            copy.kind = outer.kind
            copy.id = outer.id
            copy.ip_version = outer.ip_version
            copy.source_high = outer.source_high
            copy.source_low = outer.source_low
            copy.destination_high = outer.destination_high
            copy.destination_low = outer.destination_low
            copy.source_port = outer.source_port
            copy.destination_port = outer.destination_port
            outers.append(copy)
        return tuple(outers)

    @cython.cfunc
    def _replace(self, old: Connection, segment: Segment, reason: cython.int) -> Connection:
        """Ends `old`, whose ports a new connection uses; this segment's sender is its client."""
        slot: cython.longlong = old.slot
        pending: cython.longlong = old.pending_syn
        connection: Connection
        self._close(old, reason, False)
        connection = self._create(segment, slot)
        connection.client = 1
        connection.midstream = False
        connection.syn_ns = segment.timestamp_ns
        if not segment.flags & _SYN or segment.flags & _ACK:
            connection.syn_ns = old.pending_ns
        if not segment.flags & _SYN:
            self.midstream -= 1  # its SYN was seen earlier
        connection.forward.start(advance(segment.seq if segment.flags & _SYN else pending, 1))
        return connection

    @cython.cfunc
    @cython.exceptval(-1)
    def _remove(self, connection: Connection) -> cython.int:
        place: cython.longlong = connection.slot & self.slot_mask
        before: Connection = self.slots[place]
        self._dequeue(connection)
        connection.queue = -1
        if before is connection:
            self.slots[place] = connection.next_in_slot
        else:
            while before.next_in_slot is not connection:
                before = before.next_in_slot
            before.next_in_slot = connection.next_in_slot
        connection.next_in_slot = None
        self.active -= 1
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def _more_slots(self) -> cython.int:
        """Twice as many, with every connection in the chain of its new one."""
        connection: Connection
        queue: cython.int
        place: cython.longlong
        self.slot_mask = 2 * self.slot_mask + 1
        self.slots = [None] * (self.slot_mask + 1)
        for queue in range(2):
            connection = self.oldest[queue]
            while connection is not None:
                place = connection.slot & self.slot_mask
                connection.next_in_slot = self.slots[place]
                self.slots[place] = connection
                connection = connection.newer
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def _enqueue(self, connection: Connection, queue: cython.int) -> cython.int:
        last: Connection = self.newest[queue]
        connection.queue = queue
        connection.older = last
        connection.newer = None
        if last is None:
            self.oldest[queue] = connection
        else:
            last.newer = connection
        self.newest[queue] = connection
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def _dequeue(self, connection: Connection) -> cython.int:
        if connection.older is None:
            self.oldest[connection.queue] = connection.newer
        else:
            connection.older.newer = connection.newer
        if connection.newer is None:
            self.newest[connection.queue] = connection.older
        else:
            connection.newer.older = connection.older
        connection.older = None
        connection.newer = None
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def _syn(self, connection: Connection, segment: Segment, from_a: cython.bint) -> cython.int:
        """A SYN, of either side. Returns 1 where the connection was replaced by a new one on the same ports.

        A SYN that does not fit a live connection replaces it only once the other end has answered it, or its sender
        has gone on with it: a stray or forged one must not end a record (compare RFC 5961 section 4)."""
        mine: Stream = connection.forward if from_a else connection.backward
        other: Stream = mine.peer
        first: cython.longlong = advance(segment.seq, 1)
        ahead: cython.longlong
        new: Connection
        if segment.flags & _ACK:
            if (
                connection.pending_syn >= 0
                and from_a != connection.pending_from_a
                and 0 < difference(segment.ack, connection.pending_syn) <= 1 + connection.pending_length
            ):
                new = self._replace(connection, segment, _RST_REASON)
                new.client = 2
                new.forward = new_stream(self.reassembly)
                new.forward.peer = new.backward
                new.backward.peer = new.forward
                new.syn_ack_ns = segment.timestamp_ns
                new.forward.start(first)
                new.backward.start(advance(connection.pending_syn, 1))
                return 1
            if mine.started:
                return 0
            if other.started:  # it may acknowledge data that came with the SYN (RFC 7413)
                ahead = difference(segment.ack, other.first_seq)
                if ahead < 0 or ahead > difference(other.next_seq, other.first_seq):
                    return 0
            mine.start(first)
            other.start(segment.ack)
            connection.client = 2 if from_a else 1
            connection.midstream = False
            connection.syn_ack_ns = segment.timestamp_ns
            return 0
        if mine.started and mine.first_seq == first:
            return 0  # a retransmission, or late
        if not mine.started and (not mine.seen or -_RST_WINDOW < difference(mine.next_seq, first) < _RST_WINDOW):
            mine.start(first)
            connection.client = 1 if from_a else 2
            connection.midstream = False
            connection.syn_ns = segment.timestamp_ns
            return 0
        if connection.reset_ns != 0 and self._reset_fits(connection):
            self._replace(connection, segment, _RST_REASON)
            return 1
        if connection.pending_syn != segment.seq:
            connection.pending_ns = segment.timestamp_ns
        connection.pending_syn = segment.seq
        connection.pending_length = segment.payload_length
        connection.pending_from_a = from_a
        return 0

    @cython.cfunc
    @cython.exceptval(check=False)
    def _repeats(self, segment: Segment, first: cython.longlong, ended_ns: cython.longlong) -> cython.bint:
        """This SYN is a late copy of the one that began a connection which has just ended, and begins no new one."""
        return advance(segment.seq, 1) == first and self.now_ns + self.back_ns - ended_ns <= self.reorder_ns

    @cython.cfunc
    @cython.exceptval(-1)
    def _reset(self, connection: Connection, segment: Segment, from_a: cython.bint) -> cython.int:
        """A RST ends the connection once the reorder window is over, unless it is then found not to fit. One that lies
        outside the stream is forged or late: counted and ignored (RFC 5961 section 3); so is an answer to a SYN that
        does not acknowledge it (RFC 9293 section 3.10.7.3). Of two that wait, the first that fits counts."""
        mine: Stream = connection.forward if from_a else connection.backward
        other: Stream = mine.peer
        ahead: cython.longlong
        if mine.started and not mine.closed:
            ahead = difference(segment.seq, mine.next_seq)
            if ahead < -1 or ahead > _RST_WINDOW:
                self.resets_ignored += 1
                return 0
        elif not mine.seen and other.from_syn and not connection.opened:
            ahead = difference(segment.ack, other.first_seq)
            if not segment.flags & _ACK or ahead < 0 or ahead > difference(other.next_seq, other.first_seq):
                self.resets_ignored += 1
                return 0
        if connection.reset_ns != 0 and not self._reset_fits(connection):
            connection.reset_ns = 0
            self.resets_ignored += 1
        if connection.reset_ns == 0:
            connection.reset_ns = segment.timestamp_ns
            connection.reset_seq = segment.seq
            connection.reset_from_a = from_a
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def _reset_fits(self, connection: Connection) -> cython.bint:
        """The RST lies where its sender's bytes end: nothing of them is behind it, or missing before it unless the peer
        has acknowledged it (then the capture has lost that)."""
        mine: Stream = connection.forward if connection.reset_from_a else connection.backward
        ahead: cython.longlong
        received: cython.longlong
        if not mine.started or mine.closed:
            return True
        received = mine.received()
        ahead = difference(connection.reset_seq, mine.next_seq) - (received - mine.position)
        return -1 <= ahead <= 0 or (ahead > 0 and received + ahead <= mine.acked_position)

    @cython.cfunc
    @cython.exceptval(check=False)
    def _unsettled(self, connection: Connection) -> cython.bint:
        """Something is waited for: early pieces, acknowledged holes, the start of a stream, the end after a RST."""
        forward: Stream = connection.forward
        backward: Stream = connection.backward
        return (
            forward.pieces is not None
            or backward.pieces is not None
            or forward.acked_since_ns != 0
            or backward.acked_since_ns != 0
            or connection.reset_ns != 0
            or (forward.seen and not forward.started)
            or (backward.seen and not backward.started)
        )

    @cython.cfunc
    @cython.exceptval(check=False)
    def _deadline(self, connection: Connection) -> cython.longlong:
        """When what is waited for is given up, in ns; 0: never, the sender will repair it."""
        deadline: cython.longlong = 0
        at: cython.longlong
        if connection.reset_ns != 0:
            deadline = connection.reset_ns + self.reorder_ns
        at = self._due(connection.forward)
        if at != 0 and (deadline == 0 or at < deadline):
            deadline = at
        at = self._due(connection.backward)
        if at != 0 and (deadline == 0 or at < deadline):
            deadline = at
        return deadline

    @cython.cfunc
    @cython.exceptval(check=False)
    def _due(self, stream: Stream) -> cython.longlong:
        """The same for what one direction waits for."""
        if stream.closed or not (stream.seen or stream.expected):
            return 0
        if not stream.started:
            return stream.hole_since_ns + self.reorder_ns
        if stream.acked_since_ns != 0:
            if not stream.peer.closed and stream.peer.pieces is None and stream.ending():
                return 0
            return stream.acked_since_ns + self.reorder_ns
        if stream.pieces is not None and not stream.peer.seen:
            return stream.hole_since_ns + self.reorder_ns * _ONE_SIDED
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def _settle(self, connection: Connection) -> cython.int:
        """Delivers what has become deliverable in either direction, and gives up what was waited for long enough."""
        forward: Stream = connection.forward
        backward: Stream = connection.backward
        deadline: cython.longlong
        while True:
            while forward.drain(False, self.now_ns) or backward.drain(False, self.now_ns):
                pass
            deadline = self._deadline(connection)
            if deadline == 0 or deadline > self.now_ns or self.early_since_ns >= 0:
                break
            if connection.reset_ns != 0 and connection.reset_ns + self.reorder_ns <= self.now_ns:
                if self._reset_fits(connection):
                    self._close(connection, _RST_REASON, True)
                    return 0
                connection.reset_ns = 0
                self.resets_ignored += 1
                continue
            if not (self._give_up(forward) or self._give_up(backward)):
                if self._due(forward) > self.now_ns or self._due(backward) > self.now_ns or not self._force(connection):
                    break
        if connection.ignored:
            self._leave(connection)
        elif forward.closed and backward.closed:
            self._finish(connection, 0, True)
        elif deadline != 0 and not connection.waiting:
            if self.clock_steps != 0:
                self._wait_from_now(connection)
                deadline = self._deadline(connection)
            connection.waiting = True
            if deadline <= self.now_ns:
                deadline = self.now_ns + 1
            self.waiting.append((deadline + self.back_ns, connection))
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def _wait_from_now(self, connection: Connection) -> cython.int:
        """What is waited for since before the clock was set back is waited for anew: its time is one that will be."""
        stream: Stream
        for stream in (connection.forward, connection.backward):
            stream.hole_since_ns = min(stream.hole_since_ns, self.now_ns)
            stream.acked_since_ns = min(stream.acked_since_ns, self.now_ns)
        connection.reset_ns = min(connection.reset_ns, self.now_ns)
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def _give_up(self, stream: Stream) -> cython.bint:
        """Gives up the start or the hole that this stream has waited for long enough. True where there was one."""
        due_ns: cython.longlong = self._due(stream)
        if due_ns == 0 or due_ns > self.now_ns:
            return False
        if not stream.started:
            stream.begin(self.now_ns)
            return True
        if stream.peer.closed and stream.ending():
            stream.end(self.now_ns)
            return True
        return stream.skip(0 if stream.acked_since_ns != 0 else 2, self.now_ns)

    @cython.cfunc
    @cython.exceptval(-1)
    def _force(self, connection: Connection) -> cython.bint:
        """Each direction waits for the other, as after a retransmission with a new acknowledgement: client first."""
        forward: Stream = connection.forward
        backward: Stream = connection.backward
        if connection.client == 2:
            return backward.drain(True, self.now_ns) or forward.drain(True, self.now_ns)
        return forward.drain(True, self.now_ns) or backward.drain(True, self.now_ns)

    @cython.cfunc
    @cython.exceptval(-1)
    def _close(self, connection: Connection, reason: cython.int, remember: cython.bint) -> cython.int:
        """Ends both streams, in the order in which their bytes were sent as far as that is known."""
        one: Stream = connection.forward
        two: Stream = connection.backward
        if connection.done:
            return 0
        if connection.reset_ns != 0 and (one is None or self._reset_fits(connection)):
            reason = _RST_REASON
        if one is not None:
            if connection.client == 2:
                one = connection.backward
                two = connection.forward
            one.begin(self.now_ns)
            two.begin(self.now_ns)
            while (
                one.drain(False, self.now_ns) or two.drain(False, self.now_ns)
                or one.skip(1, self.now_ns) or two.skip(1, self.now_ns)
                or one.skip(2, self.now_ns) or two.skip(2, self.now_ns)
                or self._force(connection)
            ):  # fmt: skip
                pass
            one.close(reason, self.now_ns)
            two.close(reason, self.now_ns)
        return self._finish(connection, reason, remember)

    @cython.cfunc
    @cython.exceptval(-1)
    def _leave(self, connection: Connection) -> cython.int:
        """The application does not want this connection: its kept bytes are ignored, and all that comes."""
        stream: Stream
        if connection.forward is None:
            return 0
        self.left += 1
        for stream in (connection.forward, connection.backward):
            stream.consumer = None
            stream.close(0, self.now_ns)
        self.application.left(connection)
        return self._release(connection)

    @cython.cfunc
    @cython.exceptval(-1)
    def _release(self, connection: Connection) -> cython.int:
        """Breaks the circles of references; only the addresses and the numbers of the first bytes stay."""
        if connection.forward is not None:
            connection.a_first = connection.forward.first_seq
            connection.b_first = connection.backward.first_seq
            connection.forward.peer = None
            connection.backward.peer = None
            connection.forward.consumer = None
            connection.backward.consumer = None
            connection.forward = None
            connection.backward = None
        connection.application = None
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def _finish(self, connection: Connection, reason: cython.int, remember: cython.bint) -> cython.int:
        """Both streams are closed: forgets the connection, or all but its addresses."""
        ended_ns: cython.longlong = self.now_ns
        if connection.done:
            return 0
        connection.done = True
        self.closed[reason] += 1
        self._release(connection)
        self._remove(connection)
        if not remember:
            return 0
        # A RST ends it when the frame came, though the window after it may have been noticed much later.
        if 0 < connection.reset_ns < ended_ns:
            ended_ns = connection.reset_ns
        self.active += self.ended.remember(
            connection.a_high, connection.a_low, connection.a_port, connection.b_high, connection.b_low,
            connection.b_port, connection.ip_version, connection.path, connection.a_first, connection.b_first,
            ended_ns + self.back_ns,
        )  # fmt: skip
        return 0
