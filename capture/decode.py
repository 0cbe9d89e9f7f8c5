"""A frame becomes a TCP segment, an IP fragment, or a drop with its reason.

Total: any bytes give one of the three, never an exception. Links (Ethernet with VLAN tags, Linux cooked, BSD null, raw
IP), then IPv4 or IPv6 with its extension headers, then TCP. Tunnels are taken apart in `_transport`, by IP protocol.

Lengths come from the IP header, never from the frame: Ethernet pads short frames, and a snap length cuts long ones.
"""

import cython

if cython.compiled:
    from cython.cimports.http_capture.capture.source.block import Block, Buffer
else:
    from .source.block import Block, Buffer

# What `decode` returns. From FIRST_DROP on it is a drop, and its reason is DROPS[result].
SEGMENT = 0
FRAGMENT = 1
FIRST_DROP = 2
DROPS = (
    "",
    "",
    "link_unsupported",
    "link_truncated",
    "not_ip",
    "ip_truncated",
    "ip_malformed",
    "not_tcp",
    "tcp_truncated",
    "tcp_malformed",
    "fragment_truncated",
    "fragment_unfinished",  # counted by whoever reassembles: the datagram never became whole
)
_LINK_UNSUPPORTED = cython.declare(cython.int, 2)
_LINK_TRUNCATED = cython.declare(cython.int, 3)
_NOT_IP = cython.declare(cython.int, 4)
_IP_TRUNCATED = cython.declare(cython.int, 5)
_IP_MALFORMED = cython.declare(cython.int, 6)
_NOT_TCP = cython.declare(cython.int, 7)
_TCP_TRUNCATED = cython.declare(cython.int, 8)
_TCP_MALFORMED = cython.declare(cython.int, 9)
_FRAGMENT_TRUNCATED = cython.declare(cython.int, 10)

FIN = 0x01
SYN = 0x02
RST = 0x04
ACK = 0x10

_MAX_VLAN_TAGS = cython.declare(cython.int, 8)
_MAX_EXTENSION_HEADERS = cython.declare(cython.int, 16)


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def _u16(buffer: Buffer, at: cython.Py_ssize_t) -> cython.int:
    return (buffer.octets[at] << 8) | buffer.octets[at + 1]


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def _u32(buffer: Buffer, at: cython.Py_ssize_t) -> cython.longlong:
    high: cython.longlong = (buffer.octets[at] << 8) | buffer.octets[at + 1]
    low: cython.longlong = (buffer.octets[at + 2] << 8) | buffer.octets[at + 3]
    return (high << 16) | low


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def _u64(buffer: Buffer, at: cython.Py_ssize_t) -> cython.ulonglong:
    high: cython.ulonglong = _u32(buffer, at)
    low: cython.ulonglong = _u32(buffer, at + 4)
    return (high << 32) | low


@cython.cclass
class Segment:
    """One TCP segment, as it lies in a buffer. One object is used again for every frame.

    Addresses are 128-bit numbers in two halves (an IPv4 address is the low half). `payload_start:payload_end` are the
    captured bytes in `buffer`; `payload_length` is the length that the headers state, which is more where the frame
    was cut. `vlan` and `inner_vlan` are VLAN ids, or -1.
    """

    def __init__(self) -> None:
        self.buffer = Buffer(b"")
        self.timestamp_ns = 0
        self.ip_version = 4
        self.source_high = self.source_low = self.destination_high = self.destination_low = 0
        self.source_port = self.destination_port = 0
        self.seq = self.ack = 0
        self.flags = 0
        self.payload_start = self.payload_end = 0
        self.payload_length = 0
        self.vlan = self.inner_vlan = -1


@cython.cclass
class Decoder:
    """Takes frames apart; what it found is in `segment`, or in the `fragment_` attributes.

    Counters: segments + fragments + sum(drops) = frames given to decode(); datagram_segments + datagram_drops =
    datagrams given to decode_datagram(). `drops[i]` counts the reason DROPS[i].
    """

    def __init__(self) -> None:
        self.segment = Segment()
        self.drops = [0] * len(DROPS)
        self.segments = self.fragments = self.datagram_segments = self.datagram_drops = 0
        self.protocol = 0
        self.fragment_id = self.fragment_offset = 0
        self.fragment_more = False
        self.fragment_start = self.fragment_end = 0

    @cython.ccall
    @cython.exceptval(-1)
    def decode(self, block: Block, index: cython.Py_ssize_t) -> cython.int:
        """Decodes frame `index` of the block: SEGMENT (`segment` is filled), FRAGMENT, or a drop (index into DROPS)."""
        segment: Segment = self.segment
        buffer: Buffer = block.buffer
        start: cython.Py_ssize_t = block.offsets[index]
        end: cython.Py_ssize_t = start + block.captured[index]
        uncaptured: cython.longlong = block.wire[index] - block.captured[index]
        link: cython.longlong = block.links[index]
        ethertype: cython.int = -1
        tags: cython.int = 0
        result: cython.int
        segment.buffer = buffer
        segment.timestamp_ns = block.timestamps_ns[index]
        segment.vlan = -1
        segment.inner_vlan = -1
        if link == 1:  # Ethernet
            if end - start < 14:
                result = _LINK_TRUNCATED
            else:
                ethertype = _u16(buffer, start + 12)
                start += 14
                result = 0
        elif link == 113:  # LINKTYPE_LINUX_SLL
            if end - start < 16:
                result = _LINK_TRUNCATED
            else:
                ethertype = _u16(buffer, start + 14)
                start += 16
                result = 0
        elif link == 276:  # LINKTYPE_LINUX_SLL2
            if end - start < 20:
                result = _LINK_TRUNCATED
            else:
                ethertype = _u16(buffer, start)
                start += 20
                result = 0
        elif link == 101 or link == 12 or link == 14 or link == 228 or link == 229:  # raw IP
            result = 0
        elif link == 0 or link == 108:  # BSD null (the capturing host's byte order) and loop: address family first
            if end - start < 4:
                result = _LINK_TRUNCATED
            else:
                # 2 is IPv4; IPv6 is 10, 23, 24, 28 or 30, by system. One of the outer bytes has it.
                tags = buffer.octets[start] | buffer.octets[start + 3]
                result = 0 if tags in (2, 10, 23, 24, 28, 30) else _NOT_IP
                tags = 0
                start += 4
        else:
            result = _LINK_UNSUPPORTED
        if result == 0 and ethertype >= 0:
            while ethertype == 0x8100 or ethertype == 0x88A8 or ethertype == 0x9100:  # IEEE 802.1Q, 802.1ad, QinQ
                if end - start < 4:
                    result = _LINK_TRUNCATED
                    break
                if tags == 0:
                    segment.vlan = _u16(buffer, start) & 0x0FFF
                elif tags == 1:
                    segment.inner_vlan = _u16(buffer, start) & 0x0FFF
                ethertype = _u16(buffer, start + 2)
                start += 4
                tags += 1
                if tags > _MAX_VLAN_TAGS:
                    break
            if result == 0 and ethertype != 0x0800 and ethertype != 0x86DD:
                result = _NOT_IP
        if result == 0:
            result = self._network(buffer, start, end, uncaptured)
        if result == 0:
            self.segments += 1
        elif result == 1:
            self.fragments += 1
        else:
            self.drops[result] += 1
        return result

    @cython.ccall
    @cython.exceptval(-1)
    def decode_datagram(self, payload: bytes) -> cython.int:
        """Decodes the payload of a reassembled datagram, whose addresses and protocol are those of the last FRAGMENT.

        SEGMENT, or a drop."""
        buffer: Buffer = Buffer(payload)
        length: cython.Py_ssize_t = len(payload)
        result: cython.int
        self.segment.buffer = buffer
        result = self._transport(buffer, 0, length, length)
        if result == 0:
            self.datagram_segments += 1
        else:
            self.datagram_drops += 1
            self.drops[result] += 1
        return result

    def fragment_key(self) -> tuple[int, ...]:
        """What the last FRAGMENT shares with the others of its datagram; the IP version comes first."""
        segment: Segment = self.segment
        return (
            segment.ip_version, segment.source_high, segment.source_low, segment.destination_high,
            segment.destination_low, self.fragment_id, self.protocol if segment.ip_version == 4 else -1,
            segment.vlan, segment.inner_vlan,
        )  # fmt: skip

    def fragment_payload(self) -> bytes:
        """A copy of the bytes of the last FRAGMENT."""
        return bytes(self.segment.buffer.view[self.fragment_start : self.fragment_end])

    @cython.cfunc
    @cython.exceptval(-1)
    def _network(
        self, buffer: Buffer, start: cython.Py_ssize_t, end: cython.Py_ssize_t,
        uncaptured: cython.longlong,
    ) -> cython.int:  # fmt: skip
        if start >= end:
            return _IP_TRUNCATED
        if buffer.octets[start] >> 4 == 4:
            return self._ipv4(buffer, start, end, uncaptured)
        if buffer.octets[start] >> 4 == 6:
            return self._ipv6(buffer, start, end, uncaptured)
        return _IP_MALFORMED

    @cython.cfunc
    @cython.exceptval(-1)
    def _ipv4(
        self, buffer: Buffer, start: cython.Py_ssize_t, end: cython.Py_ssize_t,
        uncaptured: cython.longlong,
    ) -> cython.int:  # fmt: skip
        """RFC 791."""
        segment: Segment = self.segment
        header: cython.int
        length: cython.longlong
        fragment: cython.int
        if end - start < 20:
            return _IP_TRUNCATED
        header = (buffer.octets[start] & 0x0F) * 4
        length = _u16(buffer, start + 2)
        if length == 0:  # a frame that the NIC will cut (segmentation offload) has no length yet
            length = end - start + uncaptured
        if header < 20 or length < header:
            return _IP_MALFORMED
        if end - start < header:
            return _IP_TRUNCATED
        fragment = _u16(buffer, start + 6)
        segment.ip_version = 4
        segment.source_high = 0
        segment.source_low = _u32(buffer, start + 12)
        segment.destination_high = 0
        segment.destination_low = _u32(buffer, start + 16)
        self.protocol = buffer.octets[start + 9]
        if fragment & 0x3FFF:
            if end - start < length:
                return _FRAGMENT_TRUNCATED
            self.fragment_id = _u16(buffer, start + 4)
            self.fragment_offset = (fragment & 0x1FFF) * 8
            self.fragment_more = fragment & 0x2000 != 0
            self.fragment_start = start + header
            self.fragment_end = start + length
            return 1
        if end > start + length:
            end = start + length
        return self._transport(buffer, start + header, end, length - header)

    @cython.cfunc
    @cython.exceptval(-1)
    def _ipv6(
        self, buffer: Buffer, start: cython.Py_ssize_t, end: cython.Py_ssize_t,
        uncaptured: cython.longlong,
    ) -> cython.int:  # fmt: skip
        """RFC 8200: the fixed header, then extension headers up to the transport."""
        segment: Segment = self.segment
        length: cython.longlong
        following: cython.int
        size: cython.int
        field: cython.int
        headers: cython.int = 0
        if end - start < 40:
            return _IP_TRUNCATED
        length = _u16(buffer, start + 4)
        if length == 0:  # a jumbogram (RFC 2675), or segmentation offload
            length = end - start - 40 + uncaptured
        following = buffer.octets[start + 6]
        segment.ip_version = 6
        segment.source_high = _u64(buffer, start + 8)
        segment.source_low = _u64(buffer, start + 16)
        segment.destination_high = _u64(buffer, start + 24)
        segment.destination_low = _u64(buffer, start + 32)
        start += 40
        while True:
            if following == 44:  # fragment
                if length < 8:
                    return _IP_MALFORMED
                if end - start < 8:
                    return _IP_TRUNCATED
                field = _u16(buffer, start + 2)
                if field & 0xFFF9:  # otherwise an atomic fragment, which is whole (RFC 6946)
                    if end - start < length:
                        return _FRAGMENT_TRUNCATED
                    self.protocol = buffer.octets[start]
                    self.fragment_id = _u32(buffer, start + 4)
                    self.fragment_offset = field & 0xFFF8
                    self.fragment_more = field & 1 != 0
                    self.fragment_start = start + 8
                    self.fragment_end = start + length
                    return 1
                size = 8
            elif following in (0, 43, 60, 135, 139, 140):  # hop-by-hop, routing, destination, mobility, HIP, shim6
                if end - start < 2:
                    return _IP_TRUNCATED
                size = (buffer.octets[start + 1] + 1) * 8
            elif following == 51:  # authentication header (RFC 4302)
                if end - start < 2:
                    return _IP_TRUNCATED
                size = (buffer.octets[start + 1] + 2) * 4
            else:
                break
            if size > length:
                return _IP_MALFORMED
            if end - start < size:
                return _IP_TRUNCATED
            following = buffer.octets[start]
            start += size
            length -= size
            headers += 1
            if headers > _MAX_EXTENSION_HEADERS:
                return _IP_MALFORMED
        self.protocol = following
        if end > start + length:
            end = start + length
        return self._transport(buffer, start, end, length)

    @cython.cfunc
    @cython.exceptval(-1)
    def _transport(
        self, buffer: Buffer, start: cython.Py_ssize_t, end: cython.Py_ssize_t,
        length: cython.longlong,
    ) -> cython.int:  # fmt: skip
        """By IP protocol: TCP (RFC 9293 section 3.1). Tunnels (GRE, IP in IP, UDP ports) would be taken apart here."""
        segment: Segment = self.segment
        header: cython.int
        if self.protocol != 6:
            return _NOT_TCP
        if end - start < 20:
            return _TCP_MALFORMED if length < 20 else _TCP_TRUNCATED
        header = (buffer.octets[start + 12] >> 4) * 4
        if header < 20 or header > length:
            return _TCP_MALFORMED
        segment.source_port = _u16(buffer, start)
        segment.destination_port = _u16(buffer, start + 2)
        segment.seq = _u32(buffer, start + 4)
        segment.ack = _u32(buffer, start + 8)
        segment.flags = buffer.octets[start + 13]
        segment.payload_length = length - header
        segment.payload_start = start + header
        segment.payload_end = end
        if segment.payload_start > end:  # cut inside the options
            segment.payload_start = end
        return 0
