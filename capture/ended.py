"""Connections that have ended, remembered for a while: what comes late of one must not be taken for a new one.

Of each there is a mark (62 bits of its addresses, ports and path, by multilinear hashing with secret odd keys, so that
no sender can aim at the mark of another), when it ended, and the number of each end's first byte. Two of the same mark,
by chance one pair in 2^32 or fewer, are one here: the rest of a new connection that is seen from its middle may then
count as late.

`order` is a ring of them in the order in which they ended; places in it are counted on and on. `index` is probed
linearly and at most half full: of each it has half of the mark and half of the place. What is looked for is mostly not
there, and the eight bytes that are fetched to know it are near the processor more often than more would be. What is
forgotten, or ends once more, leaves its place in `order` behind, which goes with the oldest, or when the ring is full.

Bound: the caller's, who has drop_oldest(). 48 to 96 bytes each, in place of 300 for a Connection, for as many as there
have been at once; up to 192 where ports are used again and again.
"""

import os
from array import array

import cython

if cython.compiled:
    from cython.cimports.http_capture.capture.decode import Segment
else:
    from .decode import Segment

FIRST_SIZE = 1 << 10
_ENTRY = cython.declare(cython.Py_ssize_t, 4)  # mark, time in ns, first byte of the lower end, of the higher
_TAG = cython.declare(cython.longlong, -1 << 32)  # the half of a mark that is in the index
_NOT_0 = cython.declare(cython.ulonglong, 1 << 62)
_MASK = cython.declare(cython.ulonglong, 0xFFFFFFFFFFFFFFFF)
_LOW = cython.declare(cython.ulonglong, 0xFFFFFFFF)


@cython.final
@cython.cclass
class Ended:
    """`count`: how many are remembered. After find() was true: `ended_ns`, and `first`, the number of the first byte
    that the segment's sender sent, -1: unknown."""

    def __init__(self) -> None:
        keys = [int.from_bytes(os.urandom(8), "little") | 1 for _ in range(10)]
        self.k0, self.k1, self.k2, self.k3, self.k4, self.k5, self.k6, self.k7, self.k8, self.k9 = keys
        self.count = self.oldest = self.queued = self.place = 0
        self.ended_ns = self.mark = 0
        self.first = -1
        self.swapped = False
        self.size = FIRST_SIZE
        self.index = array("q", (0,)) * (2 * FIRST_SIZE)
        self.order = array("q", (0,)) * (_ENTRY * FIRST_SIZE)

    @cython.ccall
    @cython.exceptval(-1)
    def find(self, segment: Segment) -> cython.bint:
        """Whether the connection of this segment is one of them."""
        at: cython.Py_ssize_t
        self._mark(
            segment.source_high, segment.source_low, segment.source_port,
            segment.destination_high, segment.destination_low, segment.destination_port,
            segment.ip_version, segment.path,
        )  # fmt: skip
        if not self._look():
            return False
        at = _ENTRY * (self.index[self.place] & (self.size - 1))
        self.ended_ns = self.order[at + 1]
        self.first = self.order[at + (3 if self.swapped else 2)]
        return True

    @cython.ccall
    @cython.exceptval(-1)
    def forget(self) -> cython.int:
        """Forgets the one that find() has found just now."""
        mask: cython.Py_ssize_t = 2 * self.size - 1
        gap: cython.Py_ssize_t = self.place
        at: cython.Py_ssize_t = gap
        self.count -= 1
        while True:  # what follows moves up, unless it would come to stand before its own place
            at = (at + 1) & mask
            if self.index[at] == 0:
                break
            if (at - self._home(self.index[at])) & mask >= (at - gap) & mask:
                self.index[gap] = self.index[at]
                gap = at
        self.index[gap] = 0
        return 0

    @cython.ccall
    @cython.exceptval(-1)
    def remember(
        self, a_high: cython.ulonglong, a_low: cython.ulonglong, a_port: cython.int,
        b_high: cython.ulonglong, b_low: cython.ulonglong, b_port: cython.int,
        ip_version: cython.int, path: cython.ulonglong,
        a_first: cython.longlong, b_first: cython.longlong, ended_ns: cython.longlong,
    ) -> cython.bint:  # fmt: skip
        """The connection between a and b has ended. False where the last one between them is remembered already: this
        one takes its place."""
        new: cython.bint
        at: cython.Py_ssize_t
        if self.queued == self.size:
            self._make_room()
        self._mark(a_high, a_low, a_port, b_high, b_low, b_port, ip_version, path)
        new = not self._look()
        if new:
            self.count += 1
        self.index[self.place] = (self.mark & _TAG) | ((self.oldest + self.queued) & _LOW)
        at = _ENTRY * ((self.oldest + self.queued) & (self.size - 1))
        self.order[at] = self.mark
        self.order[at + 1] = ended_ns
        self.order[at + 2] = b_first if self.swapped else a_first
        self.order[at + 3] = a_first if self.swapped else b_first
        self.queued += 1
        return new

    @cython.ccall
    @cython.exceptval(-1)
    def drop_before(self, time_ns: cython.longlong) -> cython.Py_ssize_t:
        """Forgets those that ended at this time or before, from the oldest on to one that did not; returns how many."""
        before: cython.Py_ssize_t = self.count
        while self.queued > 0:
            if self.order[_ENTRY * (self.oldest & (self.size - 1)) + 1] > time_ns and self._is_known():
                break
            self._drop()
        return before - self.count

    @cython.ccall
    @cython.exceptval(-1)
    def drop_oldest(self) -> cython.bint:
        """Forgets one. False where there is none."""
        before: cython.Py_ssize_t = self.count
        while self.queued > 0 and self.count == before:
            self._drop()
        return self.count < before

    def room(self) -> int:
        """How many there is memory for."""
        return self.size

    @cython.cfunc
    @cython.exceptval(-1)
    def _drop(self) -> cython.int:
        """Takes the oldest out of the ring, and forgets it where it is not what has been left behind."""
        if self._is_known():
            self.forget()
        self.oldest += 1
        self.queued -= 1
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def _is_known(self) -> cython.bint:
        """Finds the oldest of the ring in the index. False: it is what has been left behind."""
        self.mark = self.order[_ENTRY * (self.oldest & (self.size - 1))]
        return self._look() and self.index[self.place] & _LOW == self.oldest & _LOW

    @cython.cfunc
    @cython.exceptval(-1)
    def _make_room(self) -> cython.int:
        """Twice the size where half of it is in use, and nothing in `order` that has been left behind."""
        order: cython.longlong[::1] = self.order
        mask: cython.Py_ssize_t = self.size - 1
        bigger: cython.Py_ssize_t = 2 * self.size if 2 * self.count > self.size else self.size
        kept = array("q", (0,)) * (_ENTRY * bigger)
        fresh: cython.longlong[::1] = kept
        all_kept: cython.bint = self.count == self.queued  # nothing was left behind: no need to look for each
        number: cython.Py_ssize_t
        count: cython.Py_ssize_t = 0
        at: cython.Py_ssize_t
        k: cython.int
        for number in range(self.oldest, self.oldest + self.queued):
            at = _ENTRY * (number & mask)
            self.mark = order[at]
            if all_kept or (self._look() and self.index[self.place] & _LOW == number & _LOW):
                for k in range(_ENTRY):
                    fresh[_ENTRY * count + k] = order[at + k]
                count += 1
        self.index = array("q", (0,)) * (2 * bigger)  # before what says how large it is: there may be no memory
        self.size = bigger
        self.order = kept
        self.oldest = 0
        self.queued = count
        for number in range(count):
            self.mark = fresh[_ENTRY * number]
            self._look()
            self.index[self.place] = (self.mark & _TAG) | number
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def _look(self) -> cython.bint:
        """Finds the place of `mark` in the index, or where it would be."""
        mask: cython.Py_ssize_t = 2 * self.size - 1
        at: cython.Py_ssize_t = self._home(self.mark)
        found: cython.longlong
        while True:
            self.place = at
            found = self.index[at]
            if found == 0:
                return False
            if (found ^ self.mark) & _TAG == 0 and self.order[_ENTRY * (found & (self.size - 1))] == self.mark:
                return True
            at = (at + 1) & mask

    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def _home(self, mark: cython.longlong) -> cython.Py_ssize_t:
        """Where in the index it is looked for first; by the bits that are in the index."""
        return mark >> 32 & (2 * self.size - 1)

    @cython.cfunc
    @cython.exceptval(check=False)
    def _mark(
        self, a_high: cython.ulonglong, a_low: cython.ulonglong, a_port: cython.ulonglong,
        b_high: cython.ulonglong, b_low: cython.ulonglong, b_port: cython.ulonglong,
        ip_version: cython.ulonglong, path: cython.ulonglong,
    ) -> cython.void:  # fmt: skip
        """`mark`, the same for both directions; `swapped`: a is the higher end."""
        total: cython.ulonglong
        swap: cython.ulonglong
        self.swapped = a_high > b_high or (a_high == b_high and (a_low > b_low or (a_low == b_low and a_port > b_port)))
        if self.swapped:
            swap = a_high
            a_high = b_high
            b_high = swap
            swap = a_low
            a_low = b_low
            b_low = swap
            swap = a_port
            a_port = b_port
            b_port = swap
        total = (a_low & _LOW) * self.k0 + (b_low & _LOW) * self.k1 + (a_port << 16 | b_port) * self.k2
        total += (ip_version ^ path) * self.k3
        if ip_version == 6:
            total += (a_low >> 32) * self.k4 + (b_low >> 32) * self.k5
            total += (a_high & _LOW) * self.k6 + (b_high & _LOW) * self.k7
            total += (a_high >> 32) * self.k8 + (b_high >> 32) * self.k9
        total &= _MASK
        total = ((total ^ total >> 32) * self.k0) & _MASK
        self.mark = total >> 2 | _NOT_0  # for a signed number; the half in the index is not 0
