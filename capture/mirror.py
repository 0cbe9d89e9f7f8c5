"""Frames that the mirror itself has sent twice: both directions of a port, or two ports on the way of a packet.

The second one is the same packet: the same addresses, ports and path, IP id, sequence and acknowledgement number,
flags, length, TCP checksum and first eight bytes of payload, within `window_ns`. What TCP sends again has another IP
id, or another timestamp and so another checksum. It is not read, and counted apart from retransmissions; TTL and link
header may differ, as they do behind a router. The rest of the payload is not looked at: fetching it from memory would
cost more than all else here.

An acknowledgement without payload, SYN, FIN and RST is not judged: a second one changes nothing.

Bound: the last segment of each of SLOTS places, chosen by a fingerprint with a secret key. A copy that comes later than
another segment of its place is not recognised; TCP then takes it as a retransmission.
"""

import os
from array import array

import cython

if cython.compiled:
    from cython.cimports.http_capture.capture.decode import Segment
    from cython.cimports.http_capture.capture.octets import Octets, octets_in, prefetch_number, u64
else:
    from .decode import Segment
    from .octets import Octets, octets_in, prefetch_number, u64

SLOTS = 1 << 12
_SLOT_MASK = cython.declare(cython.ulonglong, SLOTS - 1)
_MASK = cython.declare(cython.ulonglong, 0xFFFFFFFFFFFFFFFF)


@cython.final
@cython.cclass
class MirrorCopies:
    """`segments` and `payload_bytes` count the copies. window_ns = 0: nothing is one."""

    def __init__(self, window_ns: int) -> None:
        self.window_ns = window_ns
        self.segments = self.payload_bytes = 0
        keys = [int.from_bytes(os.urandom(8), "little") | 1 for _ in range(7)]
        self.k0, self.k1, self.k2, self.k3, self.k4, self.k5, self.k6 = keys
        self.slots = array("q", bytes(16 * SLOTS))  # fingerprint and time of each, side by side

    @cython.ccall
    @cython.exceptval(-1)
    def is_copy(self, segment: Segment) -> cython.bint:
        """True where this segment has been seen just before. Remembers it."""
        place: cython.Py_ssize_t
        apart_ns: cython.longlong
        if self.window_ns == 0 or (segment.payload_length == 0 and not segment.flags & 0x07):
            return False
        if segment.mark < 0:
            self.prefetch(segment)
        place = (segment.mark >> 39 & _SLOT_MASK) * 2
        if self.slots[place] == segment.mark:
            apart_ns = segment.timestamp_ns - self.slots[place + 1]
            if -self.window_ns <= apart_ns <= self.window_ns:
                self.segments += 1
                self.payload_bytes += segment.payload_end - segment.payload_start
                return True
        self.slots[place] = segment.mark
        self.slots[place + 1] = segment.timestamp_ns
        return False

    @cython.ccall
    @cython.exceptval(-1)
    def prefetch(self, segment: Segment) -> cython.int:
        """The segment will be asked about soon: finds its mark, and asks the processor for its place."""
        fingerprint: cython.ulonglong
        one: cython.ulonglong
        start: cython.Py_ssize_t = segment.payload_start
        end: cython.Py_ssize_t = segment.payload_end
        octets: Octets
        if self.window_ns == 0 or (segment.payload_length == 0 and not segment.flags & 0x07):
            return 0
        octets = octets_in(segment.buffer)
        # Multilinear hashing with secret odd keys (Dietzfelbinger 1996): one word that differs always tells.
        # Each word is put together in 64 bits without a sign: a C int has 32 of them with one.
        one = segment.seq
        fingerprint = (one << 32 | segment.ack) * self.k0
        one = segment.ip_id
        one = one << 16 | segment.checksum
        fingerprint += (one << 16 | segment.flags) * self.k1
        one = segment.source_low
        fingerprint += ((one << 32 & _MASK) ^ segment.destination_low) * self.k2
        one = segment.payload_length
        one = one << 16 | segment.source_port
        fingerprint += (one << 16 | segment.destination_port) * self.k3
        if segment.path != 0 or segment.ip_version == 6:
            fingerprint += (segment.path ^ segment.source_low) * self.k4
            fingerprint += (segment.source_high + 3 * segment.destination_high & _MASK) * self.k5
        if end - start >= 8:
            fingerprint += u64(octets, start) * self.k6
        else:
            one = 1
            while start < end:
                one = one << 8 | octets[start]
                start += 1
            fingerprint += one * self.k6
        fingerprint &= _MASK
        fingerprint = ((fingerprint ^ fingerprint >> 32) * self.k1) & _MASK
        segment.mark = fingerprint >> 1  # 63 bits, which a signed number holds
        prefetch_number(self.slots, (segment.mark >> 39 & _SLOT_MASK) * 2)
        return 0
