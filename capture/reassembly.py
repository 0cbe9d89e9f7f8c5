"""One direction of a TCP connection: segments in any order become the bytes of the stream, once and in order.

A stream is `unstarted` (its first sequence number is not known), then `started`, then `closed`.

    unstarted --SYN of this side, or the SYN that the peer acknowledges--> started
    unstarted --begin(): the reorder window has passed--> started at the lowest byte seen (midstream)
    started   --all bytes up to the FIN delivered, or close()--> closed

Invariants:
- `position` counts the bytes delivered or given up since the first segment seen; `next_seq` is the sequence number of
  that position, `first_seq` that of the first byte (-1 until started).
- `pieces` lie ahead of `position`, sorted, without overlap, and are copies; their bytes are `buffered_bytes`.
- Each payload byte is in exactly one counter of `Reassembly`: delivered, retransmitted, ignored, discarded, urgent,
  buffered.

A hole is waited for until the peer has acknowledged past it and the reorder window is over (then the capture has lost
it: a gap), or the buffer is full. What was acknowledged when that wait began, up to `ripe_position`, is waited for
together, from `acked_since_ns` on. One acknowledged number behind all that was seen is the FIN rather than a lost byte
(`ending`): it becomes a gap only where bytes behind it come, or the peer goes on.

Overlap: which bytes stay where two segments bring the same numbers, by `tcp.overlap` (Novak and Sturges, "Target-Based
TCP Stream Reassembly", 2007): `first`: those that came first; `last`: those that came later; `linux`: those that came
first, unless the later segment begins before theirs, or begins with theirs and ends after it. Only bytes behind a hole
can change: what came in order has been read by the receiver. Bytes that a snap length cut off are filled by any policy.

A retransmission with other bytes is a conflict (`conflicts`), whichever stay: a sender repeats what it sent (RFC 9293
section 3.8.1). Kept bytes are all compared. Of delivered ones only the opening of each turn is remembered, up to
`OPENING` bytes from where a side speaks after it has received something: a request line, a status line, what an
injected answer has to forge. More would cost a copy of the stream. A keep-alive probe, one byte of any value before the
next (RFC 9293 section 3.8.4), is no conflict.

Urgent data: the byte before the urgent pointer is taken out of the stream, as servers read it (without SO_OOBINLINE;
RFC 6093 sections 2 and 3.1; so do Linux and Suricata's `oob`). One at a time, the latest, as in Linux.

A segment is not delivered before the bytes of the other direction that it acknowledges: what its sender had seen is
seen first, however the mirror ordered the frames. So a response never comes before its request. Where no segment of the
other direction was seen yet, the first bytes after a SYN tell where it begins (`expected`), for the reorder window.
"""

import cython

if cython.compiled:
    from cython.cimports.http_capture.capture.octets import Octets, copied, joined, octets_in, octets_of
    from cython.cimports.http_capture.capture.seq import advance, difference
    from cython.cimports.http_capture.capture.source.block import Buffer
else:
    from .octets import Octets, copied, joined, octets_in, octets_of
    from .seq import advance, difference
    from .source.block import Buffer

# Why a stream was closed.
CLOSE_REASONS = ("fin", "rst", "timeout", "evicted", "shutdown", "shed")
CLOSE_FIN = 0
CLOSE_RST = 1
CLOSE_TIMEOUT = 2
CLOSE_EVICTED = 3
CLOSE_SHUTDOWN = 4
CLOSE_SHED = 5

# Which holes `skip` gives up: acknowledged before the reorder window, acknowledged, or any.
RIPE, ACKNOWLEDGED, ANY = 0, 1, 2

OVERLAPS = ("first", "last", "linux")
_FIRST = cython.declare(cython.int, 0)
_LAST = cython.declare(cython.int, 1)
_LINUX = cython.declare(cython.int, 2)

OPENING = 256  # bytes of each turn that are remembered
_OPENING = cython.declare(cython.Py_ssize_t, OPENING)
_FAR = cython.declare(cython.longlong, 1 << 30)  # a segment or acknowledgement further away than this is nonsense
_PIECE_OVERHEAD = cython.declare(cython.longlong, 256)  # what a kept piece costs beside its bytes


@cython.cclass
class Consumer:
    """Who reads a stream: zero or more on_data and on_gap, then exactly one on_close. The bytes are lent."""

    @cython.ccall
    @cython.exceptval(-1)
    def on_data(
        self, buffer: Buffer, start: cython.Py_ssize_t, end: cython.Py_ssize_t, seq: cython.longlong,
        ack: cython.longlong, timestamp_ns: cython.longlong,
    ) -> cython.int:  # fmt: skip
        """The next bytes, `buffer.view[start:end]`. `seq` is the sequence number of the first, `ack` the
        acknowledgement number of the segment that brought them."""
        return 0

    @cython.ccall
    @cython.exceptval(-1)
    def on_gap(self, length: cython.longlong, timestamp_ns: cython.longlong, cut: cython.bint) -> cython.int:
        """`length` bytes will never come; `cut`: because the capture kept only the start of the frame."""
        return 0

    @cython.ccall
    @cython.exceptval(-1)
    def on_close(self, reason: cython.int, timestamp_ns: cython.longlong) -> cython.int:
        """No more bytes; `reason` is one of CLOSE_."""
        return 0


@cython.final
@cython.cclass
class Reassembly:
    """Limits and counters of all streams together. All in bytes, but for what says segments.

    payload_bytes = delivered + retransmitted + ignored + discarded + urgent + buffered_bytes, at any time. `gap_bytes`
    and `cut_bytes` (of which the headers speak but which are not in the frames) come on top. Of the retransmitted,
    `conflicting_segments` had `conflicting_bytes` that differ from what came before. `overlap`: one of OVERLAPS.
    """

    def __init__(self, max_buffered: int, max_buffered_per_direction: int, overlap: str = "first") -> None:
        self.overlap = OVERLAPS.index(overlap)
        self.max_buffered = max_buffered
        self.max_buffered_per_direction = max_buffered_per_direction
        self.payload_bytes = self.delivered_bytes = self.retransmitted_bytes = 0
        self.ignored_bytes = self.discarded_bytes = self.urgent_bytes = 0
        self.conflicting_segments = self.conflicting_bytes = 0
        self.gap_bytes = self.cut_bytes = self.gaps = 0
        self.buffered_bytes = self.buffered_segments = self.retransmitted_segments = 0
        self.holes_given_up_for_memory = 0


@cython.cclass
class Piece:
    """Bytes that came too early: stream positions start to end; `cut`: these are missing from their frame.

    `begin` and `finish`: the positions of the whole segment that brought them."""

    def __init__(
        self, start: int, end: int, ack: int, timestamp_ns: int, buffer: Buffer, begin: int, finish: int
    ) -> None:
        self.start = start
        self.end = end
        self.ack = ack
        self.timestamp_ns = timestamp_ns
        self.buffer = buffer
        self.begin = begin
        self.finish = finish
        self.cut = False


@cython.final
@cython.freelist(64)
@cython.no_gc  # circles are broken by hand
@cython.cclass
class Stream:
    """The bytes of one direction. `peer` is the other direction, `consumer` who reads.

    conflicts: segments that brought other bytes than those before them. turn_ack: what the sender had received when its
    turn began, at `opening_position`; `opening`: its first bytes; opening_left: how many more are remembered."""

    def __init__(self, totals: Reassembly) -> None:
        self.set_up(totals)

    @cython.cfunc
    @cython.exceptval(-1)
    def set_up(self, totals: Reassembly) -> cython.int:
        self.totals = totals
        self.consumer: Consumer = None
        self.peer: Stream = None
        self.seen = self.started = self.closed = False
        self.expected = self.from_syn = False
        self.next_seq = self.position = 0
        self.first_seq = -1
        self.fin_position = -1
        self.acked_position = self.ripe_position = 0
        self.hole_since_ns = self.acked_since_ns = 0
        self.pieces: list[Piece] = None
        self.buffered_bytes = self.retransmitted_bytes = self.gap_bytes = 0
        self.conflicts = self.differing = 0
        self.urgent_seq = -1
        self.turn_ack = -2
        self.opening_position = self.opening_left = 0
        self.opening = b""
        return 0

    @cython.ccall
    @cython.exceptval(-1)
    def start(self, seq: cython.longlong) -> cython.int:
        """The first byte of the stream has this sequence number (a SYN came, or the answer to it)."""
        if self.started or self.closed:
            return 0
        if self.seen:
            self.position += difference(seq, self.next_seq)
        self.next_seq = self.first_seq = seq
        self.seen = self.started = self.from_syn = True
        if self.pieces is not None:
            self._drop_before()
        return 0

    @cython.ccall
    @cython.exceptval(-1)
    def segment(
        self, buffer: Buffer, start: cython.Py_ssize_t, end: cython.Py_ssize_t, length: cython.longlong,
        seq: cython.longlong, ack: cython.longlong, fin: cython.bint, timestamp_ns: cython.longlong,
    ) -> cython.int:  # fmt: skip
        """Takes a segment's payload: captured bytes start to end of `length` stated ones; `ack`: -1 without one.

        Delivers what is in order. Whoever calls it then drains the peer, which may have waited for these bytes."""
        totals: Reassembly = self.totals
        captured: cython.longlong = end - start
        offset: cython.longlong
        ahead: cython.longlong
        totals.payload_bytes += captured
        if self.closed:
            totals.retransmitted_bytes += captured
            self._compare(buffer, start, end, self.position + difference(seq, advance(self.next_seq, -1)))
            if self.differing:
                self._conflict()
            return 0
        if not self.seen:
            self.seen = True
            if self.expected:
                self.first_seq = self.next_seq
                self.started = True
            else:
                self.next_seq = seq
            self.hole_since_ns = timestamp_ns
        ahead = difference(seq, self.next_seq)
        if ahead > _FAR or ahead < -_FAR:
            totals.discarded_bytes += captured
            return 0
        offset = self.position + ahead
        if fin and self.fin_position < 0 and (not self.started or offset + length >= self.position):
            self.fin_position = offset + length
        if self.fin_position >= 0 and offset + captured > self.fin_position:  # bytes after the FIN
            ahead = offset + captured - self.fin_position
            if ahead > captured:
                ahead = captured
            totals.discarded_bytes += ahead
            captured -= ahead
            end -= ahead
            length = captured
        if length > 0 or captured > 0:
            if (
                self.started
                and self.pieces is None
                and offset == self.position
                and not self._early(seq, ack, timestamp_ns)
            ):
                if captured:
                    self._deliver(buffer, start, end, ack, timestamp_ns)
                if length > captured:
                    self._gap(length - captured, timestamp_ns, True)
                if self.acked_since_ns != 0:
                    self._advanced(timestamp_ns)
            else:
                self._keep(buffer, start, end, length - captured, offset, ack, timestamp_ns)
                self.drain(False, timestamp_ns)
        if self.fin_position >= 0 and self.started and self.position >= self.fin_position:
            self._finish(timestamp_ns)
        return 0

    @cython.ccall
    @cython.exceptval(-1)
    def urgent(self, seq: cython.longlong) -> cython.int:
        """The byte with this sequence number is urgent: it is taken out, where it has not been delivered."""
        if self.closed or (self.seen and difference(seq, self.next_seq) < 0):
            return 0
        if self.urgent_seq < 0 or difference(seq, self.urgent_seq) > 0:
            self.urgent_seq = seq
        return 0

    @cython.ccall
    @cython.exceptval(check=False)
    def ending(self) -> cython.bint:
        """All that lacks is one number that the peer has acknowledged: the FIN, as far as is known."""
        return (
            self.started
            and not self.closed
            and self.fin_position < 0
            and self.pieces is None
            and self.acked_position == self.position + 1
        )

    @cython.ccall
    @cython.exceptval(-1)
    def end(self, timestamp_ns: cython.longlong) -> cython.int:
        """There was a FIN that was not captured: the stream ends here."""
        self.fin_position = self.position
        self.acked_since_ns = 0
        return self._finish(timestamp_ns)

    @cython.ccall
    @cython.exceptval(-1)
    def received(self) -> cython.longlong:
        """The position of the first byte that lacks: those before it are delivered, or kept without a hole."""
        piece: Piece
        position: cython.longlong = self.position
        if self.pieces is not None and self.started:
            for piece in self.pieces:
                if piece.start > position:
                    break
                position = piece.end
        return position

    @cython.ccall
    @cython.exceptval(check=False)
    def behind(self, ack: cython.longlong) -> cython.bint:
        """True where this stream still lacks bytes that `ack` acknowledges, or may lack them: it has not started."""
        ahead: cython.longlong
        if self.closed:
            return False
        if not self.started and not self.expected:
            return self.seen
        ahead = difference(ack, self.next_seq)
        return 0 < ahead <= _FAR and not (self.fin_position >= 0 and self.position >= self.fin_position)

    @cython.cfunc
    @cython.exceptval(-1)
    def _early(self, seq: cython.longlong, ack: cython.longlong, timestamp_ns: cython.longlong) -> cython.bint:
        """True where the next bytes, numbered `seq`, have to wait for the peer."""
        peer: Stream = self.peer
        if ack < 0:
            return False
        if not peer.started and self.from_syn and seq == self.first_seq:  # whoever speaks first has received nothing
            if peer.seen:
                peer.start(ack)
            elif not peer.expected and not peer.closed:
                peer.expected = True
                peer.next_seq = ack
                peer.hole_since_ns = timestamp_ns
        if peer.behind(ack):
            peer.acknowledge(ack, timestamp_ns)
            return True
        return False

    @cython.ccall
    @cython.exceptval(-1)
    def acknowledge(self, ack: cython.longlong, timestamp_ns: cython.longlong) -> cython.int:
        """The peer has acknowledged up to `ack`: holes before it will not be filled by a retransmission."""
        ahead: cython.longlong
        if self.started and not self.closed:
            ahead = difference(ack, self.next_seq)
            if 0 < ahead <= _FAR:
                if self.fin_position >= 0 and self.position + ahead > self.fin_position:
                    ahead = self.fin_position - self.position  # the FIN itself takes a number
                if self.position + ahead > self.acked_position:
                    self.acked_position = self.position + ahead
                if self.acked_since_ns == 0 and ahead > 0:
                    self.acked_since_ns = timestamp_ns
                    self.ripe_position = self.acked_position
        return 0

    @cython.ccall
    @cython.exceptval(-1)
    def drain(self, force: cython.bint, timestamp_ns: cython.longlong) -> cython.bint:
        """Delivers pieces that have come in order. `force`: the first even if the peer lacks what it acknowledges.

        True where anything was delivered."""
        piece: Piece
        any_delivered: cython.bint = False
        if not self.started or self.closed:
            return False
        while self.pieces:
            piece = self.pieces[0]
            if piece.start > self.position:
                break
            if not force and self._early(self.next_seq, piece.ack, timestamp_ns):
                break
            force = False
            del self.pieces[0]
            self.buffered_bytes -= piece.end - piece.start + _PIECE_OVERHEAD
            any_delivered = True
            if piece.cut:
                self._gap(piece.end - piece.start, piece.timestamp_ns, True)
            else:
                self.totals.buffered_bytes -= piece.end - piece.start
                self._deliver(piece.buffer, 0, piece.end - piece.start, piece.ack, piece.timestamp_ns)
            if self.closed:
                return True
        if any_delivered:
            self._advanced(timestamp_ns)
        elif self.fin_position >= 0 and self.position >= self.fin_position:
            self._finish(timestamp_ns)
        return any_delivered

    @cython.ccall
    @cython.exceptval(-1)
    def begin(self, timestamp_ns: cython.longlong) -> cython.int:
        """Waits no longer for the start of an unstarted stream: it starts at the lowest byte seen, if any was."""
        piece: Piece
        if self.started or self.closed:
            return 0
        self.expected = False
        if self.seen:
            if self.pieces is not None:
                piece = self.pieces[0]
                self.next_seq = advance(self.next_seq, piece.start - self.position)
                self.position = piece.start
            self.first_seq = self.next_seq
            self.started = True
            self._advanced(timestamp_ns)
        return 0

    @cython.ccall
    @cython.exceptval(-1)
    def skip(self, which: cython.int, timestamp_ns: cython.longlong) -> cython.bint:
        """Turns the first hole into a gap: where it is RIPE, ACKNOWLEDGED, or in ANY case. True where there was one.

        The hole of an `ending` stream is no gap, unless RIPE: then the peer has gone on."""
        piece: Piece
        target: cython.longlong = self.ripe_position if which == 0 else self.acked_position
        if not self.started or self.closed:
            return False
        if which != 0 and self.ending():
            return False
        if self.pieces is not None:
            piece = self.pieces[0]
            if piece.start < target or (which == 2 and target <= self.position):
                target = piece.start
        if target <= self.position:
            return False
        self._gap(target - self.position, timestamp_ns, False)
        self._advanced(timestamp_ns)
        return True

    @cython.ccall
    @cython.exceptval(-1)
    def flush(self, timestamp_ns: cython.longlong) -> cython.int:
        """Delivers all that is kept, with gaps where there are holes."""
        self.begin(timestamp_ns)
        while self.skip(2, timestamp_ns) or self.drain(True, timestamp_ns):
            pass
        return 0

    @cython.ccall
    @cython.exceptval(-1)
    def close(self, reason: cython.int, timestamp_ns: cython.longlong) -> cython.int:
        """Ends the stream: delivers what is kept, then on_close. Nothing where it is closed."""
        self.flush(timestamp_ns)
        if self.ending():
            self.end(timestamp_ns)
        if not self.closed:
            self.closed = True
            if self.consumer is not None:
                self.consumer.on_close(reason, timestamp_ns)
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def _advanced(self, timestamp_ns: cython.longlong) -> cython.int:
        """The position has moved on: what was waited for may be there, or the end; what is missing now is new."""
        if self.position >= self.ripe_position:
            self.acked_since_ns = timestamp_ns if self.acked_position > self.position else 0
            self.ripe_position = self.acked_position
        if self.pieces is not None:
            if not self.pieces:
                self.pieces = None
            self.hole_since_ns = timestamp_ns
        if self.fin_position >= 0 and self.position >= self.fin_position:
            self._finish(timestamp_ns)
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def _finish(self, timestamp_ns: cython.longlong) -> cython.int:
        if not self.closed:
            self.closed = True
            self.next_seq = advance(self.next_seq, 1)  # the FIN
            self._forget()
            if self.consumer is not None:
                self.consumer.on_close(0, timestamp_ns)
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def _deliver(
        self, buffer: Buffer, start: cython.Py_ssize_t, end: cython.Py_ssize_t, ack: cython.longlong,
        timestamp_ns: cython.longlong,
    ) -> cython.int:  # fmt: skip
        length: cython.Py_ssize_t = end - start
        seq: cython.longlong = self.next_seq
        if self.consumer is None:
            self.position += length
            self.next_seq = advance(seq, length)
            self.totals.ignored_bytes += length
            return 0
        if ack != self.turn_ack or self.opening_left > 0:
            self._remember(buffer, start, end, ack)
        self.position += length
        self.next_seq = advance(seq, length)
        if self.urgent_seq >= 0:
            return self._deliver_urgent(buffer, start, end, seq, ack, timestamp_ns)
        self.totals.delivered_bytes += length
        self.consumer.on_data(buffer, start, end, seq, ack, timestamp_ns)
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def _deliver_urgent(
        self, buffer: Buffer, start: cython.Py_ssize_t, end: cython.Py_ssize_t, seq: cython.longlong,
        ack: cython.longlong, timestamp_ns: cython.longlong,
    ) -> cython.int:  # fmt: skip
        """Delivers these bytes, which begin at `seq`, without the urgent one where it is among them."""
        totals: Reassembly = self.totals
        at: cython.longlong = difference(self.urgent_seq, seq)
        length: cython.Py_ssize_t = end - start
        if at >= length:
            at = length
        else:
            self.urgent_seq = -1
        if at > 0:
            totals.delivered_bytes += at
            self.consumer.on_data(buffer, start, start + at, seq, ack, timestamp_ns)
        if 0 <= at < length:
            totals.urgent_bytes += 1
        if at < 0:
            at = -1
        if at + 1 < length:
            if self.consumer is None:  # it has left meanwhile
                totals.ignored_bytes += length - at - 1
            else:
                totals.delivered_bytes += length - at - 1
                self.consumer.on_data(
                    buffer, start + at + 1, end, advance(seq, at + 1), ack, timestamp_ns
                )  # fmt: skip
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def _remember(
        self, buffer: Buffer, start: cython.Py_ssize_t, end: cython.Py_ssize_t, ack: cython.longlong
    ) -> cython.int:
        """Copies the next bytes into the opening of this turn, or of a new one."""
        size: cython.Py_ssize_t = end - start
        if ack != self.turn_ack or self.opening_position + len(self.opening) != self.position:
            self.turn_ack = ack
            self.opening_position = self.position
            self.opening_left = _OPENING
            self.opening = b""
        if size > self.opening_left:
            size = self.opening_left
        self.opening_left -= size
        self.opening = joined(self.opening, octets_in(buffer), start, start + size)
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def _compare(
        self, buffer: Buffer, start: cython.Py_ssize_t, end: cython.Py_ssize_t, offset: cython.longlong
    ) -> cython.int:
        """Counts the bytes that come again, at position `offset`, and are not those of the opening."""
        opening: Octets = octets_of(self.opening)
        octets: Octets = octets_in(buffer)
        low: cython.longlong = self.opening_position
        high: cython.longlong = low + len(self.opening)
        at: cython.longlong
        if end - start == 1 and offset == self.position - 1:  # a keep-alive probe
            return 0
        if low < offset:
            low = offset
        if high > offset + (end - start):
            high = offset + (end - start)
        for at in range(low, high):
            if opening[at - self.opening_position] != octets[start + (at - offset)]:
                self.differing += 1
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def _conflict(self) -> cython.int:
        """The segment at hand differed from what came before it."""
        self.conflicts += 1
        self.totals.conflicting_segments += 1
        self.totals.conflicting_bytes += self.differing
        self.differing = 0
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def _gap(self, length: cython.longlong, timestamp_ns: cython.longlong, cut: cython.bint) -> cython.int:
        self.position += length
        self.next_seq = advance(self.next_seq, length)
        self.gap_bytes += length
        if cut:
            self.totals.cut_bytes += length
        else:
            self.totals.gap_bytes += length
            self.totals.gaps += 1
        if self.consumer is not None:
            self.consumer.on_gap(length, timestamp_ns, cut)
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def _keep(
        self, buffer: Buffer, start: cython.Py_ssize_t, end: cython.Py_ssize_t, cut: cython.longlong,
        offset: cython.longlong, ack: cython.longlong, timestamp_ns: cython.longlong,
    ) -> cython.int:  # fmt: skip
        """Copies what is new of a segment into `pieces`, or also what is not, by the overlap policy; as many bytes as
        were there already are counted as retransmitted."""
        totals: Reassembly = self.totals
        first: cython.longlong = offset
        last: cython.longlong = offset + (end - start)
        finish: cython.longlong = last + cut
        at: cython.Py_ssize_t
        here: cython.longlong
        upto: cython.longlong
        kept: cython.longlong = 0
        settled: cython.longlong = 0
        piece: Piece
        whole: Buffer
        if self.started and first < self.position:
            self._compare(buffer, start, end, offset)
            first = self.position
        if finish <= first:
            totals.retransmitted_bytes += end - start
            self.retransmitted_bytes += end - start
            totals.retransmitted_segments += 1
            if self.differing:
                self._conflict()
            return 0
        whole = Buffer(copied(octets_in(buffer), start, end))
        totals.buffered_segments += 1
        if self.pieces is None:
            self.pieces = []
            self.hole_since_ns = timestamp_ns
        at = len(self.pieces)
        while at > 0:  # most pieces belong at the end
            piece = self.pieces[at - 1]
            if piece.end <= first:
                break
            at -= 1
        if totals.overlap != _FIRST:
            settled = self.received()
        here = first
        while here < last:
            upto = last
            if at < len(self.pieces):
                piece = self.pieces[at]
                if piece.start <= here:
                    if piece.end > here:
                        if upto > piece.end:
                            upto = piece.end
                        kept += self._overlap(at, here, upto, offset, finish, whole, settled)
                        here = upto
                    at += 1
                    continue
                if piece.start < last:
                    upto = piece.start
            self._insert(at, here, upto, offset, finish, whole, ack, timestamp_ns)
            kept += upto - here
            here = upto
            at += 1
        if self.differing:
            self._conflict()
        totals.retransmitted_bytes += (end - start) - kept
        self.retransmitted_bytes += (end - start) - kept
        if cut > 0:
            here = last if last > first else first
            at = len(self.pieces)
            while at > 0 and self._piece_end(at - 1) > here:
                at -= 1
            upto = finish
            if at < len(self.pieces) and self._piece_start(at) < upto:
                upto = self._piece_start(at)
            if here < upto:
                piece = Piece(here, upto, ack, timestamp_ns, Buffer(b""), offset, finish)
                piece.cut = True
                self.pieces.insert(at, piece)
                self.buffered_bytes += upto - here + _PIECE_OVERHEAD
        if self.buffered_bytes > totals.max_buffered_per_direction or totals.buffered_bytes > totals.max_buffered:
            totals.holes_given_up_for_memory += 1
            self.flush(timestamp_ns)
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def _insert(
        self, at: cython.Py_ssize_t, start: cython.longlong, end: cython.longlong, begin: cython.longlong,
        finish: cython.longlong, whole: Buffer, ack: cython.longlong, timestamp_ns: cython.longlong,
    ) -> cython.int:  # fmt: skip
        """A new piece from `whole`, whose first byte is at `begin`."""
        buffer: Buffer = whole
        if start != begin or end - start != whole.octets.shape[0]:
            buffer = Buffer(copied(octets_in(whole), start - begin, end - begin))
        self.pieces.insert(at, Piece(start, end, ack, timestamp_ns, buffer, begin, finish))
        self.buffered_bytes += end - start + _PIECE_OVERHEAD
        self.totals.buffered_bytes += end - start
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def _overlap(
        self, at: cython.Py_ssize_t, start: cython.longlong, end: cython.longlong, begin: cython.longlong,
        finish: cython.longlong, whole: Buffer, settled: cython.longlong,
    ) -> cython.int:  # fmt: skip
        """Bytes start to end lie in piece `at`, and are in `whole` too, a segment from `begin` to `finish`. Those
        before `settled` cannot change any more.

        Returns how many are kept that were not captured before. New bytes have the place of the old ones in all else:
        what their sender had received, and when they came."""
        old: Piece = self.pieces[at]
        new: Piece
        policy: cython.int = self.totals.overlap
        i: cython.longlong
        differing: cython.longlong = 0
        if not old.cut:
            for i in range(end - start):
                if old.buffer.octets[start - old.start + i] != whole.octets[start - begin + i]:
                    differing += 1
            self.differing += differing
            if policy == _FIRST or (policy == _LAST and differing == 0) or old.end <= settled:
                return 0
            if policy == _LINUX and (begin > old.begin or (begin == old.begin and finish <= old.finish)):
                return 0
        new = Piece(
            start, end, old.ack, old.timestamp_ns, Buffer(copied(octets_in(whole), start - begin, end - begin)),
            begin, finish,
        )  # fmt: skip
        if end < old.end:
            self.pieces.insert(at + 1, self._part(old, end, old.end))
            self.buffered_bytes += _PIECE_OVERHEAD
        self.pieces[at] = new
        if start > old.start:
            self.pieces.insert(at, self._part(old, old.start, start))
            self.buffered_bytes += _PIECE_OVERHEAD
        if not old.cut:
            return 0
        self.totals.buffered_bytes += end - start
        return end - start

    @cython.cfunc
    def _part(self, old: Piece, start: cython.longlong, end: cython.longlong) -> Piece:
        """Bytes start to end of a piece, as a piece."""
        new: Piece = Piece(start, end, old.ack, old.timestamp_ns, old.buffer, old.begin, old.finish)
        new.cut = old.cut
        if not old.cut:
            new.buffer = Buffer(copied(octets_in(old.buffer), start - old.start, end - old.start))
        return new

    @cython.cfunc
    @cython.exceptval(-1)
    def _piece_end(self, at: cython.Py_ssize_t) -> cython.longlong:
        piece: Piece = self.pieces[at]
        return piece.end

    @cython.cfunc
    @cython.exceptval(-1)
    def _piece_start(self, at: cython.Py_ssize_t) -> cython.longlong:
        piece: Piece = self.pieces[at]
        return piece.start

    @cython.cfunc
    @cython.exceptval(-1)
    def _drop_before(self) -> cython.int:
        """Drops kept bytes that lie before the start of the stream: an old connection's, or forged."""
        piece: Piece
        kept: list = []
        for piece in self.pieces:
            if piece.start < self.position:
                self.buffered_bytes -= piece.end - piece.start + _PIECE_OVERHEAD
                if not piece.cut:
                    self.totals.buffered_bytes -= piece.end - piece.start
                    self.totals.discarded_bytes += piece.end - piece.start
            else:
                kept.append(piece)
        self.pieces = kept if kept else None
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def _forget(self) -> cython.int:
        """Gives up the kept pieces beyond the end of the stream."""
        piece: Piece
        if self.pieces is not None:
            for piece in self.pieces:
                if not piece.cut:
                    self.totals.buffered_bytes -= piece.end - piece.start
                    self.totals.discarded_bytes += piece.end - piece.start
            self.pieces = None
            self.buffered_bytes = 0
        return 0


@cython.cfunc
def new_stream(totals: Reassembly) -> Stream:
    """Stream(totals), without a call of the type."""
    stream: Stream = Stream.__new__(Stream)
    stream.set_up(totals)
    return stream


if not cython.compiled:  # reassembly.pxd has the C form

    def prefetch_reader(stream: Stream) -> None:
        """What payload is read with is needed soon."""
