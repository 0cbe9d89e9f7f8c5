"""The frames of one block, one after the other: decode, put fragments together, leave out what the mirror has sent
twice, hand segments to their connection. One of several workers takes the segments of its share of the connections;
above what can be held, a part of them is shed.

Where many connections are open, a segment finds its own no longer in the processor's cache, and half of the time goes
into waiting for memory. Then segments are decoded some way ahead of the one that is taken, and what they will need is
asked for step by step meanwhile (measured with 20,000 connections: a third of all time less). With few it would only
cost.
"""

import os
from typing import Any

import cython

if cython.compiled:
    from cython.cimports.http_capture.capture.connection import ConnectionTable
    from cython.cimports.http_capture.capture.decode import Decoder, Segment
    from cython.cimports.http_capture.capture.mirror import MirrorCopies
    from cython.cimports.http_capture.capture.octets import octets_in, prefetch
    from cython.cimports.http_capture.capture.source.block import Block, Buffer
else:
    from .connection import ConnectionTable
    from .decode import Decoder, Segment
    from .mirror import MirrorCopies
    from .octets import octets_in, prefetch
    from .source.block import Block, Buffer
from .defrag import Defragmenter

ALL = 1 << 32
"""The share of all connections, see FrameLoop.keep()."""

_SYN = cython.declare(cython.int, 0x02)
_ACK = cython.declare(cython.int, 0x10)
_AHEAD = cython.declare(cython.Py_ssize_t, 6)  # frames
MANY = 1024  # connections
RING = 16  # segments, a power of two
_RING = cython.declare(cython.Py_ssize_t, RING)
_TO_CONNECTION = cython.declare(cython.Py_ssize_t, 4)  # how far behind the last one these are asked for
_TO_STREAMS = cython.declare(cython.Py_ssize_t, 8)
_TO_CONSUMERS = cython.declare(cython.Py_ssize_t, 12)
_FILTERED = cython.declare(cython.int, 1 << 30)  # none of the decoder's results
_NOTHING = cython.declare(Buffer, Buffer(b""))
_MASK = cython.declare(cython.ulonglong, 0xFFFFFFFFFFFFFFFF)
_HALF = cython.declare(cython.ulonglong, 0xFFFFFFFF)


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def _mixed(
    high: cython.ulonglong, low: cython.ulonglong, port: cython.ulonglong, key: cython.ulonglong
) -> cython.ulonglong:
    """One end of a connection as a number. `key` is odd."""
    number: cython.ulonglong = (((low ^ port << 40) * key & _MASK) ^ high) & _MASK
    number = (number ^ number >> 29) * key & _MASK
    return (number ^ number >> 32) * key & _MASK


@cython.final
@cython.cclass
class FrameLoop:
    """frames + datagrams put together = filtered + decoder.segments + decoder.fragments + drops of the decoder.
    decoder.segments = copies.segments + connections.segments + elsewhere + shed.

    elsewhere: segments of connections that another worker has, see share_with(). shed: of those that nobody has, see
    keep(); shed_bytes: their payload; shed_connections: how many of them were a SYN, which begins a connection.

    `matches(frame bytes, wire length, link type) -> bool` is the filter of a replay, or None; a NIC's frames are
    filtered by the kernel. `many`: with so many open connections segments are decoded ahead.
    """

    def __init__(
        self, decoder: Decoder, defragmenter: Defragmenter, copies: MirrorCopies, connections: ConnectionTable,
        matches: Any = None,
    ) -> None:  # fmt: skip
        self.decoder = decoder
        self.defragmenter = defragmenter
        self.copies = copies
        self.connections = connections
        self.matches = matches
        self.frames = self.frame_bytes = self.filtered = self.elsewhere = 0
        self.shed = self.shed_bytes = self.shed_connections = 0
        self.workers = 1
        self.number = 0
        self.kept = ALL
        self.takes_all = True
        self.key = int.from_bytes(os.urandom(8), "little") | 1
        self.many = MANY
        self.ring = [Segment() for _ in range(RING)]
        self.first = self.behind = 0

    def share_with(self, workers: int, number: int, key: int) -> None:
        """From here on takes the connections of which the share is this number, 0 to workers - 1: all segments of a
        connection, in both directions, have the same one. `key`: an odd secret of 64 bits, the same in all workers,
        whose decoders are copies of one. The clock is that of all frames, whoever has their connections."""
        self.workers = workers
        self.number = number
        self.key = key
        self.takes_all = workers == 1 and self.kept == ALL

    def keep(self, share: int) -> None:
        """From here on takes only this share of its connections, 0 to ALL: those with the lower hashes, so that one
        which is kept with a smaller share is kept with a larger. An open one that is no longer kept is closed, `shed`,
        when its next segment comes; one that is kept again is taken from its middle."""
        self.kept = share
        self.takes_all = self.workers == 1 and share == ALL

    @cython.ccall
    @cython.exceptval(-1)
    def run(self, block: Block) -> cython.int:
        """Takes all frames of the block. What it raises ends the run: sinks say what they have to say in poll()."""
        connections: ConnectionTable = self.connections
        i: cython.Py_ssize_t
        result: cython.int
        if connections.active - connections.ended.count < self.many:
            for i in range(block.count):
                result = self._decode(block, i)
                if result == 0:
                    self._take(self.decoder.segment)
                elif result == 1:
                    self._fragment(block.timestamps_ns[i])
                elif result != _FILTERED:
                    self._tell_time(block.timestamps_ns[i])
            return 0
        return self._run_ahead(block)

    @cython.cfunc
    @cython.exceptval(-1)
    def _run_ahead(self, block: Block) -> cython.int:
        """ring[first:behind], modulo its size, are the segments that were decoded and not taken yet."""
        connections: ConnectionTable = self.connections
        segment: Segment
        i: cython.Py_ssize_t
        result: cython.int
        for i in range(block.count):
            segment = self.ring[self.behind & (_RING - 1)]
            self.decoder.segment = segment
            result = self._decode(block, i)
            if result == 0:
                self.behind += 1
                self.copies.prefetch(segment)
                connections.prefetch_slot(segment)
                if self.behind - self.first == _RING:
                    connections.prefetch_connection(self.ring[(self.behind - _TO_CONNECTION) & (_RING - 1)])
                    connections.prefetch_streams(self.ring[(self.behind - _TO_STREAMS) & (_RING - 1)])
                    connections.prefetch_consumers(self.ring[(self.behind - _TO_CONSUMERS) & (_RING - 1)])
                    self._take_first()
            elif result == 1:
                while self.first < self.behind:
                    self._take_first()
                self._fragment(block.timestamps_ns[i])
            elif result != _FILTERED:
                self._tell_time(block.timestamps_ns[i])
        while self.first < self.behind:
            self._take_first()
        for segment in self.ring:  # the bytes belong to the source, which may want to be rid of them
            segment.buffer = _NOTHING
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def _take_first(self) -> cython.int:
        segment: Segment = self.ring[self.first & (_RING - 1)]
        self.first += 1
        return self._take(segment)

    @cython.cfunc
    @cython.exceptval(-1)
    def _tell_time(self, timestamp_ns: cython.longlong) -> cython.int:
        """A frame without a segment has come: the connections are as old as it is."""
        connections: ConnectionTable = self.connections
        if connections.early_ns <= timestamp_ns < connections.next_tick_ns:
            return 0
        while self.first < self.behind:  # they tell the time too
            self._take_first()
        if timestamp_ns < connections.early_ns or timestamp_ns >= connections.next_tick_ns:
            connections.tick(timestamp_ns)
        return 0

    @cython.cfunc
    @cython.inline
    @cython.exceptval(-1)
    def _decode(self, block: Block, i: cython.Py_ssize_t) -> cython.int:
        """Counts frame i and decodes it: 0 where it has a segment, 1 a fragment, else neither or _FILTERED."""
        if self.workers > 1 and i + _AHEAD < block.count:  # another core has read them
            prefetch(octets_in(block.buffer), block.offsets[i + _AHEAD])
        self.frames += 1
        self.frame_bytes += block.captured[i]
        if self.matches is not None and not self.matches(
            bytes(block.buffer.view[block.offsets[i] : block.offsets[i] + block.captured[i]]),
            block.wire[i],
            block.links[i],
        ):
            self.filtered += 1
            return _FILTERED
        return self.decoder.decode(block, i)

    @cython.cfunc
    @cython.inline
    @cython.exceptval(-1)
    def _take(self, segment: Segment) -> cython.int:
        if not self.takes_all and self._is_left_out(segment):
            return 0
        if not self.copies.is_copy(segment):
            self.connections.segment(segment)
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def _fragment(self, timestamp_ns: cython.longlong) -> cython.int:
        """A datagram that is whole now may be a tunnel that carries a fragment of another, as deep as tunnels go."""
        decoder: Decoder = self.decoder
        result: cython.int = 1
        while result == 1:
            whole = self.defragmenter.add(
                decoder.fragment_key(),
                decoder.fragment_offset,
                decoder.fragment_more,
                decoder.fragment_payload(),
                timestamp_ns,
            )
            if whole is None:
                return self._tell_time(timestamp_ns)
            result = decoder.decode_datagram(whole)
        return self._take(decoder.segment) if result == 0 else 0

    @cython.cfunc
    @cython.exceptval(-1)
    def _is_left_out(self, segment: Segment) -> cython.bint:
        """Whether another worker has its connection, or nobody. Tells the connections the time."""
        connections: ConnectionTable = self.connections
        number: cython.ulonglong
        if segment.timestamp_ns > connections.now_ns:
            connections.now_ns = segment.timestamp_ns
            if segment.timestamp_ns >= connections.next_tick_ns:
                connections.tick(segment.timestamp_ns)
        elif segment.timestamp_ns < connections.early_ns:
            connections.behind(segment.timestamp_ns)
        number = _mixed(segment.source_high, segment.source_low, segment.source_port, self.key)
        number += _mixed(segment.destination_high, segment.destination_low, segment.destination_port, self.key)
        number = (((number ^ segment.path) * self.key & _MASK) >> 32) * self.workers
        if number >> 32 != self.number:
            self.elsewhere += 1
            return True
        if number & _HALF < self.kept:
            return False
        self.shed += 1
        self.shed_bytes += segment.payload_end - segment.payload_start
        if segment.flags & _SYN and not segment.flags & _ACK:
            self.shed_connections += 1
        connections.shed(segment)
        return True
