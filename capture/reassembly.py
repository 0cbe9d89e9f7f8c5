"""One direction of a TCP connection: segments in any order become the bytes of the stream, once and in order.

A stream is `unstarted` (its first sequence number is not known), then `started`, then `closed`.

    unstarted --SYN of this side, or the SYN that the peer acknowledges--> started
    unstarted --begin(): the reorder window has passed--> started at the lowest byte seen (midstream)
    started   --all bytes up to the FIN delivered, or close()--> closed

Invariants:
- `position` counts the bytes delivered or given up since the first segment seen; `next_seq` is the sequence number of
  that position, `first_seq` that of the first byte (-1 until started).
- `pieces` lie ahead of `position`, sorted, without overlap, and are copies; their bytes are `buffered_bytes`.
- Each payload byte is in exactly one counter of `Reassembly`: delivered, retransmitted, ignored, discarded, buffered.

Overlap: the bytes that came first stay (as Suricata's `first` policy). A hole is waited for until the peer has
acknowledged past it and the reorder window is over (then the capture has lost it: a gap), or the buffer is full. What
was acknowledged when that wait began, up to `ripe_position`, is waited for together, from `acked_since_ns` on.

A segment is not delivered before the bytes of the other direction that it acknowledges: what its sender had seen is
seen first, however the mirror ordered the frames. So a response never comes before its request. Where no segment of the
other direction was seen yet, the first bytes after a SYN tell where it begins (`expected`), for the reorder window.
"""

import cython

if cython.compiled:
    from cython.cimports.http_capture.capture.octets import copied
    from cython.cimports.http_capture.capture.seq import advance, difference
    from cython.cimports.http_capture.capture.source.block import Buffer
else:
    from .octets import copied
    from .seq import advance, difference
    from .source.block import Buffer

# Why a stream was closed.
CLOSE_REASONS = ("fin", "rst", "timeout", "evicted", "shutdown")
CLOSE_FIN = 0
CLOSE_RST = 1
CLOSE_TIMEOUT = 2
CLOSE_EVICTED = 3
CLOSE_SHUTDOWN = 4

# Which holes `skip` gives up: acknowledged before the reorder window, acknowledged, or any.
RIPE, ACKNOWLEDGED, ANY = 0, 1, 2

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


@cython.cclass
class Reassembly:
    """Limits and counters of all streams together. All in bytes, but for what says segments.

    payload_bytes = delivered + retransmitted + ignored + discarded + buffered_bytes, at any time. `gap_bytes` and
    `cut_bytes` (of which the headers speak but which are not in the frames) come on top.
    """

    def __init__(self, max_buffered: int, max_buffered_per_direction: int) -> None:
        self.max_buffered = max_buffered
        self.max_buffered_per_direction = max_buffered_per_direction
        self.payload_bytes = self.delivered_bytes = self.retransmitted_bytes = 0
        self.ignored_bytes = self.discarded_bytes = 0
        self.gap_bytes = self.cut_bytes = self.gaps = 0
        self.buffered_bytes = self.buffered_segments = self.retransmitted_segments = 0
        self.holes_given_up_for_memory = 0


@cython.cclass
class Piece:
    """Bytes that came too early: stream positions start to end; `cut`: bytes after it are missing from its frame."""

    def __init__(self, start: int, end: int, ack: int, timestamp_ns: int, buffer: Buffer) -> None:
        self.start = start
        self.end = end
        self.ack = ack
        self.timestamp_ns = timestamp_ns
        self.buffer = buffer
        self.cut = False


@cython.cclass
class Stream:
    """The bytes of one direction. `peer` is the other direction, `consumer` who reads."""

    def __init__(self, totals: Reassembly) -> None:
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
        """Turns the first hole into a gap: where it is RIPE, ACKNOWLEDGED, or in ANY case. True where there was one."""
        piece: Piece
        target: cython.longlong = self.ripe_position if which == 0 else self.acked_position
        if not self.started or self.closed:
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
        self.position += length
        self.next_seq = advance(seq, length)
        if self.consumer is None:
            self.totals.ignored_bytes += length
            return 0
        self.totals.delivered_bytes += length
        self.consumer.on_data(buffer, start, end, seq, ack, timestamp_ns)
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
        """Copies what is new of a segment into `pieces`; the rest is counted as retransmitted."""
        totals: Reassembly = self.totals
        first: cython.longlong = offset
        last: cython.longlong = offset + (end - start)
        at: cython.Py_ssize_t
        here: cython.longlong
        kept: cython.longlong = 0
        piece: Piece
        whole: Buffer
        if self.started and first < self.position:
            first = self.position
        if last + cut <= first:
            totals.retransmitted_bytes += end - start
            self.retransmitted_bytes += end - start
            totals.retransmitted_segments += 1
            return 0
        whole = Buffer(copied(buffer.octets, start, end))
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
        here = first
        while here < last:
            if at < len(self.pieces):
                piece = self.pieces[at]
                if piece.start <= here:
                    if piece.end > here:
                        here = piece.end
                    at += 1
                    continue
                kept += self._insert(
                    at, here, last if last < piece.start else piece.start, offset, whole, ack, timestamp_ns
                )
            else:
                kept += self._insert(at, here, last, offset, whole, ack, timestamp_ns)
            piece = self.pieces[at]
            here = piece.end
            at += 1
        totals.retransmitted_bytes += (end - start) - kept
        self.retransmitted_bytes += (end - start) - kept
        if cut > 0:
            here = last if last > first else first
            if at >= len(self.pieces) or self._piece_start(at) > here:
                last = offset + (end - start) + cut
                if at < len(self.pieces) and self._piece_start(at) < last:
                    last = self._piece_start(at)
                piece = Piece(here, last, ack, timestamp_ns, whole)
                piece.cut = True
                self.pieces.insert(at, piece)
                self.buffered_bytes += last - here + _PIECE_OVERHEAD
        if self.buffered_bytes > totals.max_buffered_per_direction or totals.buffered_bytes > totals.max_buffered:
            totals.holes_given_up_for_memory += 1
            self.flush(timestamp_ns)
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def _insert(
        self, at: cython.Py_ssize_t, start: cython.longlong, end: cython.longlong, base: cython.longlong,
        whole: Buffer, ack: cython.longlong, timestamp_ns: cython.longlong,
    ) -> cython.int:  # fmt: skip
        buffer: Buffer = whole
        if start != base or end - start != whole.octets.shape[0]:
            buffer = Buffer(bytes(whole.view[start - base : end - base]))
        self.pieces.insert(at, Piece(start, end, ack, timestamp_ns, buffer))
        self.buffered_bytes += end - start + _PIECE_OVERHEAD
        self.totals.buffered_bytes += end - start
        return end - start

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
