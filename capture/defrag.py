"""IP fragments -> datagram payload (RFC 791, RFC 8200 4.5).

States of a datagram: collecting -> whole (handed out, forgotten)
                                 -> discarded (IPv6 only: it had an overlap; holds nothing, swallows what still comes)
                      and each of them -> expired (by the time of the frames) or evicted (for memory).

Where fragments overlap:
- IPv4: what came first stays. A fragment is cut to the bytes that are new; one that brings none is a duplicate where
  its bytes are the same, an overlap where they differ.
- IPv6: an overlap discards the whole datagram (RFC 5722); an exact copy of a fragment is a duplicate and does no harm.
- The first fragment without MF sets the end. One that contradicts it (goes beyond it, sets another one, or sets one
  that lies before bytes already there) is an overlap.

Each fragment is in exactly one counter at any time:
  fragments == fragments_used + fragments_expired + fragments_evicted + fragments_duplicate + fragments_overlap
               + fragments_invalid + pending
"""

from bisect import bisect_right
from collections import OrderedDict

from ..config.settings import DefragSettings

MAX_PAYLOAD_BYTES = 65535
# What a piece and a datagram cost beside their payload, about: 8-byte fragments would else hold ten times max_bytes.
PIECE_OVERHEAD_BYTES = 96
DATAGRAM_OVERHEAD_BYTES = 512


class _Datagram:
    """The pieces of one datagram, in order, without overlap."""

    __slots__ = ("discarded", "end", "first_ns", "fragments", "have", "held", "pieces", "reach", "starts")

    def __init__(self, first_ns: int) -> None:
        self.first_ns = first_ns
        self.starts: list[int] = []
        self.pieces: list[bytes] = []
        self.have = 0  # bytes of payload
        self.reach = 0  # the end of the last piece
        self.end = -1  # the length of the whole, once known
        self.fragments = 0  # that the pieces are of
        self.held = DATAGRAM_OVERHEAD_BYTES
        self.discarded = False

    def between(self, start: int, stop: int) -> bytes:
        """The bytes from start to stop, all of which are there."""
        i = bisect_right(self.starts, start) - 1
        first = self.starts[i]
        parts = []
        while i < len(self.starts) and self.starts[i] < stop:
            parts.append(self.pieces[i])
            i += 1
        return b"".join(parts)[start - first : stop - first]

    def missing(self, start: int, stop: int) -> tuple[int, int, list[tuple[int, int]]]:
        """What is not there between start and stop, as (from, to); and which pieces (first, last + 1) lie between."""
        first = last = bisect_right(self.starts, start)
        at = start
        if first and self.starts[first - 1] + len(self.pieces[first - 1]) > start:
            at = self.starts[first - 1] + len(self.pieces[first - 1])
        holes = []
        while last < len(self.starts) and self.starts[last] < stop:
            if self.starts[last] > at:
                holes.append((at, self.starts[last]))
            at = self.starts[last] + len(self.pieces[last])
            last += 1
        if at < stop:
            holes.append((at, stop))
        return first, last, holes


class Defragmenter:
    """Any number of `add()` and `tick()`, in any order.

    Bounds: `max_datagrams`, and `max_bytes` of memory as estimated in `bytes_held`; over them the datagram begun first
    is evicted. A datagram has at most 65535 bytes, so at most 8192 pieces.
    """

    def __init__(self, settings: DefragSettings) -> None:
        self.fragments = 0
        self.datagrams = 0  # handed out
        self.fragments_used = 0  # in datagrams handed out
        self.fragments_expired = 0
        self.fragments_evicted = 0
        self.fragments_duplicate = 0
        self.fragments_overlap = 0
        self.fragments_invalid = 0  # no payload, beyond 65535, or not of 8-byte units
        self.pending = 0  # fragments held now
        self.bytes_held = 0  # memory, with overhead
        self.fragments_trimmed = 0  # of the used, expired, evicted and pending: those cut to what was new (IPv4)
        self._max_datagrams = settings.max_datagrams
        self._max_bytes = settings.max_bytes
        self._timeout_ns = int(settings.timeout_seconds * 1_000_000_000)
        self._datagrams: OrderedDict[str, _Datagram] = OrderedDict()  # the one begun first is first

    def add(
        self, key: tuple[int, ...], offset: int, more: bool, payload: bytes | memoryview, timestamp_ns: int
    ) -> bytes | None:
        """Takes one fragment; returns the payload of the whole datagram where this completes it.

        key: whatever identifies the datagram; its first element is the IP version. offset: bytes. more: the MF flag.
        payload: copied. For IPv6 it begins behind the fragment header.
        """
        self.fragments += 1
        stop = offset + len(payload)
        if not len(payload) or offset < 0 or offset % 8 or stop > MAX_PAYLOAD_BYTES or (more and len(payload) % 8):
            self.fragments_invalid += 1
            return None
        data = bytes(payload)
        if offset == 0 and not more:  # whole by itself; it has nothing to do with others of its key (RFC 6946)
            self.fragments_used += 1
            self.datagrams += 1
            return data
        name = repr(key)  # Python's hash of integers is no secret: a sender could choose keys that collide
        datagram = self._datagrams.get(name)
        if datagram is not None and self._is_over(datagram, timestamp_ns):
            self._expire(name)
            datagram = None
        if datagram is None:
            if len(self._datagrams) >= self._max_datagrams:
                self._evict()
            datagram = self._datagrams[name] = _Datagram(timestamp_ns)
            self.bytes_held += datagram.held
        if datagram.discarded:
            self.fragments_overlap += 1
        elif self._place(name, key[0] == 6, offset, more, data) and datagram.have == datagram.end:
            return self._hand_out(name)
        while self.bytes_held > self._max_bytes:
            self._evict()
        return None

    def tick(self, now_ns: int) -> None:
        """Expires what was begun too long before this time, which is that of the frames."""
        while self._datagrams:
            name, datagram = next(iter(self._datagrams.items()))
            if not self._is_over(datagram, now_ns):
                return
            self._expire(name)

    def _place(self, name: str, strict: bool, offset: int, more: bool, data: bytes) -> bool:
        """Puts the bytes of a fragment where they belong; False where it went to another counter than pending."""
        datagram = self._datagrams[name]
        stop = offset + len(data)
        first, last, holes = datagram.missing(offset, stop)
        there = stop - offset - sum(to - start for start, to in holes)
        if there == stop - offset and datagram.between(offset, stop) == data:
            exact = offset in datagram.starts[first - 1 : first] and len(datagram.pieces[first - 1]) == len(data)
            if (exact or not strict) and (more or stop == datagram.end):
                self.fragments_duplicate += 1
                return False
        if datagram.end >= 0:
            contradicts = stop > datagram.end or (not more and stop != datagram.end)
        else:
            contradicts = not more and stop < datagram.reach
        if strict and (there or contradicts):
            self._discard(name)
            return False
        if contradicts or not holes:
            self.fragments_overlap += 1
            return False
        starts = datagram.starts[first:last]
        pieces = datagram.pieces[first:last]
        new = [(start, data[start - offset : to - offset]) for start, to in holes]
        merged = sorted([*zip(starts, pieces, strict=True), *new])
        datagram.starts[first:last] = [start for start, _ in merged]
        datagram.pieces[first:last] = [piece for _, piece in merged]
        if there:
            self.fragments_trimmed += 1
        if not more:
            datagram.end = stop
        datagram.reach = max(datagram.reach, stop)
        datagram.have += len(data) - there
        cost = len(data) - there + PIECE_OVERHEAD_BYTES * len(new)
        datagram.held += cost
        self.bytes_held += cost
        datagram.fragments += 1
        self.pending += 1
        return True

    def _hand_out(self, name: str) -> bytes:
        datagram = self._forget(name)
        self.fragments_used += datagram.fragments
        self.datagrams += 1
        return b"".join(datagram.pieces)

    def _discard(self, name: str) -> None:
        """Counts the fragment at hand and those held as overlap; an empty datagram stays, to swallow later ones."""
        datagram = self._datagrams[name]
        self.fragments_overlap += 1 + datagram.fragments
        self.pending -= datagram.fragments
        discarded = self._datagrams[name] = _Datagram(datagram.first_ns)  # keeps its place in the order
        discarded.discarded = True
        self.bytes_held += discarded.held - datagram.held

    def _is_over(self, datagram: _Datagram, now_ns: int) -> bool:
        # Time that goes backwards as far means another capture file: the datagram will not be completed either.
        return abs(now_ns - datagram.first_ns) > self._timeout_ns

    def _expire(self, name: str) -> None:
        self.fragments_expired += self._forget(name).fragments

    def _evict(self) -> None:
        self.fragments_evicted += self._forget(next(iter(self._datagrams))).fragments

    def _forget(self, name: str) -> _Datagram:
        datagram = self._datagrams.pop(name)
        self.pending -= datagram.fragments
        self.bytes_held -= datagram.held
        return datagram
