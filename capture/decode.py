"""A frame becomes a TCP segment, an IP fragment, or a drop with its reason.

Total: any bytes give one of the three, never an exception. Links, then IPv4 or IPv6 with its extension headers, then
TCP; or a tunnel (tunnel.py), and all of that again inside of it.

A connection is what has the same addresses and ports on the same way: VLAN ids and tunnels are folded into
`Segment.path`, which is part of its key. So what is seen inside and outside a tunnel is one connection each.

Links: Ethernet (VLAN tags, ISL, LLC/SNAP, MPLS with IP or an Ethernet pseudowire, PPPoE), Linux cooked, BSD null, raw
IP, PPP, Cisco HDLC, NFLOG, and 802.11 data frames, plain or behind radiotap, Prism or AVS. Of 802.11, what needs a key
(`encrypted`) or more than one frame or segment at a time (fragments, A-MSDU: `link_unsupported`) is a drop. Plain
Ethernet with IP is read in `decode` itself; all else starts in `_link` or `_ethernet`.

Lengths come from the IP header, never from the frame: Ethernet pads short frames, and a snap length cuts long ones.
"""

import os

import cython

if cython.compiled:
    from cython.cimports.http_capture.capture import tunnel
    from cython.cimports.http_capture.capture.octets import Octets, octets_in, u16, u32, u64
    from cython.cimports.http_capture.capture.source.block import Block, Buffer
    from cython.cimports.http_capture.capture.tunnel import Outer
else:
    from . import tunnel
    from .octets import Octets, octets_in, u16, u32, u64
    from .source.block import Block, Buffer
    from .tunnel import Outer

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
    "link_malformed",
    "encrypted",
    "tunnel_truncated",
    "tunnel_unsupported",
    "tunnels_too_deep",
    "bad_checksum",
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
_LINK_MALFORMED = cython.declare(cython.int, 12)
_ENCRYPTED = cython.declare(cython.int, 13)
_TUNNEL_TRUNCATED = cython.declare(cython.int, 14)
_TUNNEL_UNSUPPORTED = cython.declare(cython.int, 15)
_TUNNELS_TOO_DEEP = cython.declare(cython.int, 16)
_BAD_CHECKSUM = cython.declare(cython.int, 17)

FIN = 0x01
SYN = 0x02
RST = 0x04
ACK = 0x10

_MAX_VLAN_TAGS = cython.declare(cython.int, 8)
_MAX_LABELS = cython.declare(cython.int, 16)
_MAX_LAYERS = cython.declare(cython.int, 8)  # frames inside frames: Ethernet headers and ethertypes
_MAX_ATTRIBUTES = cython.declare(cython.int, 64)  # of NFLOG
_MAX_EXTENSION_HEADERS = cython.declare(cython.int, 16)
MAX_TUNNELS = 8
_MAX_TUNNELS = cython.declare(cython.int, MAX_TUNNELS)
_MASK_64 = cython.declare(cython.ulonglong, 0xFFFFFFFFFFFFFFFF)
_VLAN = cython.declare(cython.int, 15)  # the kind of a step on the path that is no tunnel: behind tunnel.KINDS


@cython.cfunc
@cython.exceptval(check=False)
def _carried(ethertype: cython.int) -> cython.bint:
    """Whether it is one that `_by_ethertype` reads on."""
    return ethertype in (0x0800, 0x86DD, 0x8100, 0x88A8, 0x9100, 0x8847, 0x8848, 0x8864)


@cython.cfunc
@cython.exceptval(check=False)
def _is_ip(
    octets: Octets, start: cython.Py_ssize_t, end: cython.Py_ssize_t, uncaptured: cython.longlong
) -> cython.bint:
    """Whether IP begins here: by the first nibble (RFC 4928), which an Ethernet address may have too (RFC 8469).

    Where an ethertype is in its place, the IP length decides: it is not more than what was on the wire."""
    version: cython.int
    if start >= end:
        return False
    version = octets[start] >> 4
    if version != 4 and version != 6:
        return False
    if end - start < 14 or not _carried(u16(octets, start + 12)):
        return True
    if version == 4:
        return octets[start] & 0x0F >= 5 and u16(octets, start + 2) <= end - start + uncaptured
    return 40 + u16(octets, start + 4) <= end - start + uncaptured


@cython.cfunc
@cython.exceptval(check=False)
def _damaged(octets: Octets, start: cython.Py_ssize_t, size: cython.Py_ssize_t) -> cython.bint:
    """Whether a radiotap header says that the frame's check sequence is wrong: nobody takes it, it is sent again."""
    at: cython.Py_ssize_t = 4
    if not octets[start + 4] & 2:  # no flags
        return False
    while octets[start + at + 3] & 0x80 and at + 8 <= size:  # another word of presence bits
        at += 4
    at += 4
    if octets[start + 4] & 1:  # a time, aligned like all fields
        at = ((at + 7) & ~7) + 8
    return at < size and octets[start + at] & 0x40 != 0


@cython.cfunc
@cython.exceptval(check=False)
def _sum(octets: Octets, start: cython.Py_ssize_t, end: cython.Py_ssize_t) -> cython.longlong:
    """The ones' complement sum of the 16-bit words (RFC 1071), not inverted: 0xFFFF over what has a right checksum."""
    total: cython.longlong = 0
    at: cython.Py_ssize_t = start
    while at + 1 < end:
        total += u16(octets, at)
        at += 2
    if at < end:
        total += octets[at] << 8
    return _folded(total)


@cython.cfunc
@cython.exceptval(check=False)
def _folded(total: cython.longlong) -> cython.longlong:
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


@cython.cfunc
@cython.exceptval(check=False)
def _words(value: cython.ulonglong) -> cython.longlong:
    """The sum of the four 16-bit words of a number."""
    return (value >> 48) + (value >> 32 & 0xFFFF) + (value >> 16 & 0xFFFF) + (value & 0xFFFF)


@cython.final
@cython.cclass
class Segment:
    """One TCP segment, as it lies in a buffer. A few objects are used again for all frames.

    Addresses are 128-bit numbers in two halves (an IPv4 address is the low half). `payload_start:payload_end` are the
    captured bytes in `buffer`; `payload_length` is the length that the headers state, which is more where the frame
    was cut. `vlan` and `inner_vlan` are the two outermost VLAN ids, or -1. The first `depth` of `outers` are the
    tunnels around it, outermost first. `path` is 0 without VLAN and tunnel, else a number that only the same ones have.
    `ip_id` is that of the IPv4 header, 0 for IPv6; `checksum` is that of the TCP header, not verified.
    `urgent`: the urgent pointer, with URG only.
    `slot` is the number whose last bits are its place in the connection table, `mark` that by which the mirror's copies
    are known, -1 where nobody has asked for it yet: they are found ahead of their use, see frame_loop.py.
    """

    def __init__(self) -> None:
        self.buffer = Buffer(b"")
        self.timestamp_ns = 0
        self.ip_version = 4
        self.source_high = self.source_low = self.destination_high = self.destination_low = 0
        self.source_port = self.destination_port = 0
        self.seq = self.ack = 0
        self.flags = self.urgent = 0
        self.payload_start = self.payload_end = 0
        self.payload_length = 0
        self.vlan = self.inner_vlan = -1
        self.depth = 0
        self.outers: list[Outer] = [Outer() for _ in range(MAX_TUNNELS)]
        self.path = 0
        self.ip_id = self.checksum = 0
        self.slot = self.mark = -1


@cython.final
@cython.cclass
class Decoder:
    """Takes frames apart; what it found is in `segment`, or in the `fragment_` attributes.

    vlan_in_key, tunnel_in_key: whether the path has them. Counters: segments + fragments + sum(drops) = frames given to
    decode() + datagrams given to decode_datagram(); datagram_segments, datagram_fragments and datagram_drops are those
    of the datagrams. `drops[i]` counts the reason DROPS[i].
    verify_checksums: those of the IPv4 header and of TCP (RFC 9293 section 3.1), where all of it was captured. An IPv4
    option or IPv6 header that names another final destination than the one at hand makes the latter wrong.
    """

    def __init__(self, *, vlan_in_key: bool = True, tunnel_in_key: bool = True, verify_checksums: bool = False) -> None:
        self.verify_checksums = verify_checksums
        self.segment = Segment()
        self.vlan_in_key = vlan_in_key
        self.tunnel_in_key = tunnel_in_key
        self.path_key = int.from_bytes(os.urandom(8), "little") | 1
        self.drops = [0] * len(DROPS)
        self.segments = self.fragments = 0
        self.datagram_segments = self.datagram_fragments = self.datagram_drops = 0
        self.protocol = 0
        self.fragment_id = self.fragment_offset = 0
        self.fragment_more = False
        self.fragment_start = self.fragment_end = 0
        self.layers = 0

    @cython.ccall
    @cython.exceptval(-1)
    def decode(self, block: Block, index: cython.Py_ssize_t) -> cython.int:
        """Decodes frame `index` of the block: SEGMENT (`segment` is filled), FRAGMENT, or a drop (index into DROPS)."""
        octets: Octets = octets_in(block.buffer)
        start: cython.Py_ssize_t = block.offsets[index]
        end: cython.Py_ssize_t = start + block.captured[index]
        uncaptured: cython.longlong = block.wire[index] - block.captured[index]
        link: cython.longlong = block.links[index]
        ethertype: cython.int
        result: cython.int
        segment: Segment = self.segment
        if segment.buffer is not block.buffer:
            segment.buffer = block.buffer
        segment.timestamp_ns = block.timestamps_ns[index]
        segment.vlan = -1
        segment.inner_vlan = -1
        segment.depth = 0
        segment.path = 0
        segment.slot = -1
        segment.mark = -1
        if link == 1 and end - start >= 14:
            ethertype = u16(octets, start + 12)
            if ethertype == 0x0800 or ethertype == 0x86DD:
                result = self._network(octets, start + 14, end, uncaptured)
            else:
                self.layers = 0
                result = self._ethernet(octets, start, end, uncaptured)
        else:
            self.layers = 0
            result = self._link(octets, start, end, uncaptured, link)
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
        """Decodes the payload of a reassembled datagram. Its addresses, protocol, VLAN ids and tunnels are those of the
        last FRAGMENT.

        SEGMENT, a drop, or FRAGMENT again: a tunnel may carry one."""
        buffer: Buffer = Buffer(payload)
        length: cython.Py_ssize_t = len(payload)
        result: cython.int
        self.segment.buffer = buffer
        self.segment.slot = -1
        self.segment.mark = -1
        result = self._transport(octets_in(buffer), 0, length, length)
        if result == 0:
            self.segments += 1
            self.datagram_segments += 1
        elif result == 1:
            self.fragments += 1
            self.datagram_fragments += 1
        else:
            self.drops[result] += 1
            self.datagram_drops += 1
        return result

    def fragment_key(self) -> tuple[int, ...]:
        """What the last FRAGMENT shares with the others of its datagram; the IP version comes first."""
        segment: Segment = self.segment
        return (
            segment.ip_version, segment.source_high, segment.source_low, segment.destination_high,
            segment.destination_low, self.fragment_id, self.protocol if segment.ip_version == 4 else -1,
            segment.path,
        )  # fmt: skip

    def fragment_payload(self) -> bytes:
        """A copy of the bytes of the last FRAGMENT."""
        return bytes(self.segment.buffer.view[self.fragment_start : self.fragment_end])

    @cython.cfunc
    @cython.exceptval(-1)
    def _link(
        self, octets: Octets, start: cython.Py_ssize_t, end: cython.Py_ssize_t,
        uncaptured: cython.longlong, link: cython.longlong,
    ) -> cython.int:  # fmt: skip
        """By link type: the LINKTYPE_ registry of IANA."""
        family: cython.int
        if link == 1:
            return self._ethernet(octets, start, end, uncaptured)
        if link == 101 or link == 12 or link == 14 or link == 228 or link == 229:  # raw IP
            return self._network(octets, start, end, uncaptured)
        if link == 113:  # LINUX_SLL
            if end - start < 16:
                return _LINK_TRUNCATED
            return self._cooked(octets, start + 16, end, uncaptured, u16(octets, start + 2), u16(octets, start + 14))
        if link == 276:  # LINUX_SLL2
            if end - start < 20:
                return _LINK_TRUNCATED
            return self._cooked(octets, start + 20, end, uncaptured, u16(octets, start + 8), u16(octets, start))
        if link == 0 or link == 108:  # BSD null (the capturing host's byte order) and loop: address family first
            if end - start < 4:
                return _LINK_TRUNCATED
            # 2 is IPv4; IPv6 is 10, 23, 24, 28 or 30, by system. One of the outer bytes has it.
            family = octets[start] | octets[start + 3]
            if family not in (2, 10, 23, 24, 28, 30):
                return _NOT_IP
            return self._network(octets, start + 4, end, uncaptured)
        if link == 105:  # IEEE802_11
            return self._wifi(octets, start, end, uncaptured)
        if link == 127 or link == 119 or link == 163:  # IEEE802_11_RADIOTAP, _PRISM, _AVS
            return self._radio(octets, start, end, uncaptured, link)
        if link == 9 or link == 50:  # PPP, PPP_HDLC
            if link == 50 and end > start and octets[start] & 0x7F == 0x0F:
                return self._cisco_hdlc(octets, start, end, uncaptured)
            return self._ppp(octets, start, end, uncaptured)
        if link == 51:  # PPP_ETHER
            return self._pppoe(octets, start, end, uncaptured)
        if link == 104:  # C_HDLC
            return self._cisco_hdlc(octets, start, end, uncaptured)
        if link == 239:  # NFLOG
            return self._nflog(octets, start, end)
        return _LINK_UNSUPPORTED

    @cython.cfunc
    @cython.exceptval(-1)
    def _ethernet(
        self, octets: Octets, start: cython.Py_ssize_t, end: cython.Py_ssize_t,
        uncaptured: cython.longlong,
    ) -> cython.int:  # fmt: skip
        """IEEE 802.3 section 3.2, and ISL (Cisco), which puts 26 bytes before a whole frame."""
        self.layers += 1
        if self.layers > _MAX_LAYERS:
            return _LINK_UNSUPPORTED
        if end - start < 14:
            return _LINK_TRUNCATED
        # ISL is known by the first 40 bits of the destination: 01-00-0c-00-00 or 03-00-0c-00-00.
        if (octets[start] | 2) == 3 and u32(octets, start + 1) == 0x000C0000:
            if end - start < 26:
                return _LINK_TRUNCATED
            if octets[start + 5] >> 4:  # token ring, FDDI or ATM
                return _LINK_UNSUPPORTED
            self._tag((u16(octets, start + 20) >> 1) & 0x0FFF)
            return self._ethernet(octets, start + 26, end, uncaptured)
        return self._by_ethertype(octets, start + 14, end, uncaptured, u16(octets, start + 12))

    @cython.cfunc
    @cython.exceptval(-1)
    def _by_ethertype(
        self, octets: Octets, start: cython.Py_ssize_t, end: cython.Py_ssize_t,
        uncaptured: cython.longlong, ethertype: cython.int,
    ) -> cython.int:  # fmt: skip
        tags: cython.int = 0
        self.layers += 1
        if self.layers > _MAX_LAYERS:
            return _LINK_UNSUPPORTED
        while ethertype == 0x8100 or ethertype == 0x88A8 or ethertype == 0x9100:  # IEEE 802.1Q, 802.1ad, QinQ
            if end - start < 4:
                return _LINK_TRUNCATED
            self._tag(u16(octets, start) & 0x0FFF)
            ethertype = u16(octets, start + 2)
            start += 4
            tags += 1
            if tags > _MAX_VLAN_TAGS:
                break
        if ethertype == 0x0800 or ethertype == 0x86DD:
            return self._network(octets, start, end, uncaptured)
        if ethertype < 1536:  # a length: IEEE 802.3 section 3.2.6
            return self._llc(octets, start, end, uncaptured)
        if ethertype == 0x8847 or ethertype == 0x8848:
            return self._mpls(octets, start, end, uncaptured)
        if ethertype == 0x8864:
            return self._pppoe(octets, start, end, uncaptured)
        return _NOT_IP

    @cython.cfunc
    @cython.exceptval(-1)
    def _tag(self, vlan: cython.int) -> cython.int:
        """Keeps the two outermost VLAN ids. Id 0 is a priority and no VLAN (IEEE 802.1Q section 9.6)."""
        segment: Segment = self.segment
        if vlan != 0 and self.vlan_in_key:
            self._step(_VLAN, vlan)
        if segment.vlan < 0:
            segment.vlan = vlan
        elif segment.inner_vlan < 0:
            segment.inner_vlan = vlan
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def _llc(
        self, octets: Octets, start: cython.Py_ssize_t, end: cython.Py_ssize_t,
        uncaptured: cython.longlong,
    ) -> cython.int:  # fmt: skip
        """IEEE 802.2: SNAP (RFC 1042; 00-00-F8 is IEEE 802.1H), or the service access point of IP."""
        if end - start < 3:
            return _LINK_TRUNCATED
        if octets[start + 2] != 3:  # unnumbered information
            return _NOT_IP
        if u16(octets, start) == 0x0606:
            return self._network(octets, start + 3, end, uncaptured)
        if u16(octets, start) != 0xAAAA:
            return _NOT_IP
        if end - start < 8:
            return _LINK_TRUNCATED
        if u16(octets, start + 3) == 0 and (octets[start + 5] == 0 or octets[start + 5] == 0xF8):
            return self._by_ethertype(octets, start + 8, end, uncaptured, u16(octets, start + 6))
        return _NOT_IP

    @cython.cfunc
    @cython.exceptval(-1)
    def _mpls(
        self, octets: Octets, start: cython.Py_ssize_t, end: cython.Py_ssize_t,
        uncaptured: cython.longlong,
    ) -> cython.int:  # fmt: skip
        """RFC 3032. Nothing says what the labels carry: IP, or else an Ethernet pseudowire (RFC 4448)."""
        labels: cython.int = 0
        while True:
            if end - start < 4:
                return _LINK_TRUNCATED
            start += 4
            if octets[start - 2] & 1:  # bottom of the stack
                break
            labels += 1
            if labels >= _MAX_LABELS:
                return _LINK_UNSUPPORTED
        if _is_ip(octets, start, end, uncaptured):
            return self._network(octets, start, end, uncaptured)
        # A control word begins with 16 zero bits (RFC 4448 section 4.6). So does many an address: see what follows it.
        if end - start >= 18 and u16(octets, start) == 0:
            if _carried(u16(octets, start + 16)) or not _carried(u16(octets, start + 12)):
                start += 4
        return self._ethernet(octets, start, end, uncaptured)

    @cython.cfunc
    @cython.exceptval(-1)
    def _pppoe(
        self, octets: Octets, start: cython.Py_ssize_t, end: cython.Py_ssize_t,
        uncaptured: cython.longlong,
    ) -> cython.int:  # fmt: skip
        """RFC 2516 section 4: a session frame has version 1, type 1 and code 0."""
        if end - start < 6:
            return _LINK_TRUNCATED
        if u16(octets, start) != 0x1100:
            return _NOT_IP
        return self._ppp(octets, start + 6, end, uncaptured)

    @cython.cfunc
    @cython.exceptval(-1)
    def _ppp(
        self, octets: Octets, start: cython.Py_ssize_t, end: cython.Py_ssize_t,
        uncaptured: cython.longlong,
    ) -> cython.int:  # fmt: skip
        """The address and control fields (RFC 1662 section 3.1), where present; then the protocol (RFC 1661 section 2).

        An odd first octet is a protocol of one octet (RFC 1661 section 6.5)."""
        protocol: cython.int
        if end - start >= 2 and u16(octets, start) == 0xFF03:
            start += 2
        if end - start < 1:
            return _LINK_TRUNCATED
        protocol = octets[start]
        start += 1
        if not protocol & 1:
            if end - start < 1:
                return _LINK_TRUNCATED
            protocol = (protocol << 8) | octets[start]
            start += 1
        if protocol == 0x0021 or protocol == 0x0057:
            return self._network(octets, start, end, uncaptured)
        if protocol == 0x0281 or protocol == 0x0283:  # RFC 3032 section 4.3
            return self._mpls(octets, start, end, uncaptured)
        return _NOT_IP

    @cython.cfunc
    @cython.exceptval(-1)
    def _cisco_hdlc(
        self, octets: Octets, start: cython.Py_ssize_t, end: cython.Py_ssize_t,
        uncaptured: cython.longlong,
    ) -> cython.int:  # fmt: skip
        """RFC 1547 section 4.3.1: address, control, ethertype."""
        if end - start < 4:
            return _LINK_TRUNCATED
        return self._by_ethertype(octets, start + 4, end, uncaptured, u16(octets, start + 2))

    @cython.cfunc
    @cython.exceptval(-1)
    def _cooked(
        self, octets: Octets, start: cython.Py_ssize_t, end: cython.Py_ssize_t,
        uncaptured: cython.longlong, device: cython.int, protocol: cython.int,
    ) -> cython.int:  # fmt: skip
        """What follows a Linux cooked header: by the device (ARPHRD_), then by the protocol (ETH_P_)."""
        if device == 803:  # ARPHRD_IEEE80211_RADIOTAP
            return self._radio(octets, start, end, uncaptured, 127)
        if protocol < 1536 and protocol != 4:  # not an ethertype; 4 is ETH_P_802_2
            return _NOT_IP
        return self._by_ethertype(octets, start, end, uncaptured, protocol)

    @cython.cfunc
    @cython.exceptval(-1)
    def _radio(
        self, octets: Octets, start: cython.Py_ssize_t, end: cython.Py_ssize_t,
        uncaptured: cython.longlong, link: cython.longlong,
    ) -> cython.int:  # fmt: skip
        """What a radio says of a frame, which is passed over by its length; then the 802.11 frame."""
        size: cython.longlong
        if end - start < 8:
            return _LINK_TRUNCATED
        if link == 127:  # radiotap: version, padding, length (little endian), presence bits
            if octets[start]:
                return _LINK_UNSUPPORTED
            size = octets[start + 2] | (octets[start + 3] << 8)
        else:  # Prism and AVS: four bytes, then the length in four, in either byte order
            size = u32(octets, start + 4)
            if size > 0xFFFF:
                size = octets[start + 4] | (octets[start + 5] << 8)
        if size < 8:
            return _LINK_MALFORMED
        if end - start < size:
            return _LINK_TRUNCATED
        if link == 127 and _damaged(octets, start, size):
            return _LINK_MALFORMED
        return self._wifi(octets, start + size, end, uncaptured)

    @cython.cfunc
    @cython.exceptval(-1)
    def _wifi(
        self, octets: Octets, start: cython.Py_ssize_t, end: cython.Py_ssize_t,
        uncaptured: cython.longlong,
    ) -> cython.int:  # fmt: skip
        """IEEE 802.11-2020 section 9.3.2.1: data frames, whose header is 24 to 36 bytes."""
        kind: cython.int
        flags: cython.int
        size: cython.int = 24
        if end - start < 2:
            return _LINK_TRUNCATED
        kind = octets[start]
        flags = octets[start + 1]
        if kind & 0x4F != 0x08:  # version 0, type data, subtype with data
            return _NOT_IP
        if flags & 0x40:
            return _ENCRYPTED
        if flags & 0x03 == 0x03:  # from and to a distribution system: a fourth address
            size += 6
        if kind & 0x80:  # QoS
            size += 2
        if end - start < size:
            return _LINK_TRUNCATED
        if flags & 0x04 or octets[start + 22] & 0x0F:  # more fragments follow, or this is not the first
            return _LINK_UNSUPPORTED
        if kind & 0x80:
            if octets[start + size - 2] & 0x80:  # several packets in one frame: A-MSDU
                return _LINK_UNSUPPORTED
            if flags & 0x80:  # the HT control field
                size += 4
        start += size
        # Some radios fill the header up to a multiple of four, which not every capture says.
        if size & 3 and end - start >= 5:
            if u16(octets, start) != 0xAAAA and u16(octets, start + 2) == 0xAAAA and octets[start + 4] == 3:
                start += 2
        return self._llc(octets, start, end, uncaptured)

    @cython.cfunc
    @cython.exceptval(-1)
    def _nflog(self, octets: Octets, start: cython.Py_ssize_t, end: cython.Py_ssize_t) -> cython.int:
        """LINKTYPE_NFLOG: family, version, resource; then attributes, of which type 9 is the packet.

        An attribute is length (with these four bytes), type, value, padding to a multiple of four. Both numbers are in
        the file's byte order; the first type tells it, as types are below 256."""
        size: cython.Py_ssize_t
        kind: cython.int
        big: cython.bint
        attributes: cython.int = 0
        if end - start < 8:
            return _LINK_TRUNCATED
        if octets[start + 1]:
            return _LINK_UNSUPPORTED
        start += 4
        big = octets[start + 2] == 0
        while end - start >= 4:
            if big:
                size = u16(octets, start)
                kind = u16(octets, start + 2)
            else:
                size = octets[start] | (octets[start + 1] << 8)
                kind = octets[start + 2] | (octets[start + 3] << 8)
            if size < 4:
                return _LINK_MALFORMED
            if kind == 9:
                size -= 4
                start += 4
                if size == 0 or start >= end:
                    return _IP_TRUNCATED
                if octets[start] >> 4 not in (4, 6):
                    return _NOT_IP
                if end - start >= size:
                    return self._network(octets, start, start + size, 0)
                return self._network(octets, start, end, size - (end - start))
            start += (size + 3) & ~3
            attributes += 1
            if attributes >= _MAX_ATTRIBUTES:
                return _LINK_UNSUPPORTED
        return _LINK_TRUNCATED

    @cython.cfunc
    @cython.exceptval(-1)
    def _network(
        self, octets: Octets, start: cython.Py_ssize_t, end: cython.Py_ssize_t,
        uncaptured: cython.longlong,
    ) -> cython.int:  # fmt: skip
        if start >= end:
            return _IP_TRUNCATED
        if octets[start] >> 4 == 4:
            return self._ipv4(octets, start, end, uncaptured)
        if octets[start] >> 4 == 6:
            return self._ipv6(octets, start, end, uncaptured)
        return _IP_MALFORMED

    @cython.cfunc
    @cython.exceptval(-1)
    def _ipv4(
        self, octets: Octets, start: cython.Py_ssize_t, end: cython.Py_ssize_t,
        uncaptured: cython.longlong,
    ) -> cython.int:  # fmt: skip
        """RFC 791."""
        header: cython.int
        length: cython.longlong
        fragment: cython.int
        if end - start < 20:
            return _IP_TRUNCATED
        header = (octets[start] & 0x0F) * 4
        length = u16(octets, start + 2)
        if length == 0:  # a frame that the NIC will cut (segmentation offload) has no length yet
            length = end - start + uncaptured
        if header < 20 or length < header:
            return _IP_MALFORMED
        if end - start < header:
            return _IP_TRUNCATED
        if self.verify_checksums and _sum(octets, start, start + header) != 0xFFFF:
            return _BAD_CHECKSUM
        fragment = u16(octets, start + 6)
        self.segment.ip_version = 4
        self.segment.source_high = 0
        self.segment.source_low = u32(octets, start + 12)
        self.segment.destination_high = 0
        self.segment.destination_low = u32(octets, start + 16)
        self.segment.ip_id = u16(octets, start + 4)
        self.protocol = octets[start + 9]
        if fragment & 0x3FFF:
            if end - start < length:
                return _FRAGMENT_TRUNCATED
            self.fragment_id = self.segment.ip_id
            self.fragment_offset = (fragment & 0x1FFF) * 8
            self.fragment_more = fragment & 0x2000 != 0
            self.fragment_start = start + header
            self.fragment_end = start + length
            return 1
        if end > start + length:
            end = start + length
        return self._transport(octets, start + header, end, length - header)

    @cython.cfunc
    @cython.exceptval(-1)
    def _ipv6(
        self, octets: Octets, start: cython.Py_ssize_t, end: cython.Py_ssize_t,
        uncaptured: cython.longlong,
    ) -> cython.int:  # fmt: skip
        """RFC 8200: the fixed header, then extension headers up to the transport."""
        length: cython.longlong
        following: cython.int
        size: cython.int
        field: cython.int
        headers: cython.int = 0
        if end - start < 40:
            return _IP_TRUNCATED
        length = u16(octets, start + 4)
        if length == 0:  # a jumbogram (RFC 2675), or segmentation offload
            length = end - start - 40 + uncaptured
        following = octets[start + 6]
        self.segment.ip_version = 6
        self.segment.ip_id = 0
        self.segment.source_high = u64(octets, start + 8)
        self.segment.source_low = u64(octets, start + 16)
        self.segment.destination_high = u64(octets, start + 24)
        self.segment.destination_low = u64(octets, start + 32)
        start += 40
        while True:
            if following == 44:  # fragment
                if length < 8:
                    return _IP_MALFORMED
                if end - start < 8:
                    return _IP_TRUNCATED
                field = u16(octets, start + 2)
                if field & 0xFFF9:  # otherwise an atomic fragment, which is whole (RFC 6946)
                    if end - start < length:
                        return _FRAGMENT_TRUNCATED
                    self.protocol = octets[start]
                    self.fragment_id = u32(octets, start + 4)
                    self.fragment_offset = field & 0xFFF8
                    self.fragment_more = field & 1 != 0
                    self.fragment_start = start + 8
                    self.fragment_end = start + length
                    return 1
                size = 8
            elif following in (0, 43, 60, 135, 139, 140):  # hop-by-hop, routing, destination, mobility, HIP, shim6
                if end - start < 2:
                    return _IP_TRUNCATED
                size = (octets[start + 1] + 1) * 8
            elif following == 51:  # authentication header (RFC 4302)
                if end - start < 2:
                    return _IP_TRUNCATED
                size = (octets[start + 1] + 2) * 4
            else:
                break
            if size > length:
                return _IP_MALFORMED
            if end - start < size:
                return _IP_TRUNCATED
            following = octets[start]
            start += size
            length -= size
            headers += 1
            if headers > _MAX_EXTENSION_HEADERS:
                return _IP_MALFORMED
        self.protocol = following
        if end > start + length:
            end = start + length
        return self._transport(octets, start, end, length)

    @cython.cfunc
    @cython.exceptval(-1)
    def _transport(
        self, octets: Octets, start: cython.Py_ssize_t, end: cython.Py_ssize_t,
        length: cython.longlong,
    ) -> cython.int:  # fmt: skip
        """By IP protocol: TCP (RFC 9293 section 3.1), or what may be a tunnel."""
        header: cython.int
        if self.protocol != 6:
            return self._tunnel(octets, start, end, length)
        if end - start < 20:
            return _TCP_MALFORMED if length < 20 else _TCP_TRUNCATED
        header = (octets[start + 12] >> 4) * 4
        if header < 20 or header > length:
            return _TCP_MALFORMED
        if self.verify_checksums and end - start == length and not self._sound(octets, start, end):
            return _BAD_CHECKSUM
        self.segment.source_port = u16(octets, start)
        self.segment.destination_port = u16(octets, start + 2)
        self.segment.seq = u32(octets, start + 4)
        self.segment.ack = u32(octets, start + 8)
        self.segment.flags = octets[start + 13]
        self.segment.checksum = u16(octets, start + 16)
        self.segment.payload_length = length - header
        self.segment.payload_start = start + header
        self.segment.payload_end = end
        if self.segment.payload_start > end:  # cut inside the options
            self.segment.payload_start = end
        if self.segment.flags & 0x20:
            self.segment.urgent = u16(octets, start + 18)
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def _tunnel(
        self, octets: Octets, start: cython.Py_ssize_t, end: cython.Py_ssize_t,
        length: cython.longlong,
    ) -> cython.int:  # fmt: skip
        """Whatever is not TCP, `length` bytes of which start to end are captured: goes on inside, if it is a tunnel."""
        segment: Segment = self.segment
        outer: Outer
        protocol: cython.int = self.protocol
        found: cython.int = 0
        size: cython.longlong
        source: cython.int = 0
        destination: cython.int = 0
        if protocol != 17 and protocol not in (4, 41, 47, 97, 137):
            return _NOT_TCP
        if segment.depth >= _MAX_TUNNELS:
            return _TUNNELS_TOO_DEEP
        outer = segment.outers[segment.depth]
        if protocol == 17:  # RFC 768
            if end - start < 8:
                return _NOT_TCP
            source = u16(octets, start)
            destination = u16(octets, start + 2)
            size = u16(octets, start + 4)
            if size == 0:
                size = length
            if size < 8 or size > length:
                return _NOT_TCP
            length = size
            if end > start + length:
                end = start + length
            found = tunnel.udp(outer, octets, start + 8, end, length - 8, source, destination)
        elif protocol == 47:
            found = tunnel.gre(outer, octets, start, end)
        elif protocol == 97:
            found = tunnel.etherip(outer, octets, start, end)
        elif protocol == 137:
            tunnel.mpls(outer, start)
        else:  # RFC 2003, RFC 2473, RFC 4213
            outer.found((0 if protocol == 4 else 2) + (0 if segment.ip_version == 4 else 1), start, 0, -1, False)
        if found != 0:
            if found == 1:
                return _TUNNEL_TRUNCATED
            return _TUNNEL_UNSUPPORTED if found == 2 else _NOT_TCP
        outer.ip_version = segment.ip_version
        outer.source_high = segment.source_high
        outer.source_low = segment.source_low
        outer.destination_high = segment.destination_high
        outer.destination_low = segment.destination_low
        outer.source_port = source
        outer.destination_port = destination
        segment.depth += 1
        if self.tunnel_in_key:
            self._step(outer.kind, outer.id if outer.shared else -1)
        self.layers = 0
        length -= outer.start - start  # of the inside
        return self._inside(octets, outer.start, end, length - (end - outer.start), outer.inside)

    @cython.cfunc
    @cython.exceptval(-1)
    def _inside(
        self, octets: Octets, start: cython.Py_ssize_t, end: cython.Py_ssize_t,
        uncaptured: cython.longlong, inside: cython.int,
    ) -> cython.int:  # fmt: skip
        """What a tunnel carries: see Outer."""
        if inside == 0:
            return self._network(octets, start, end, uncaptured)
        if inside == 1:
            return self._ppp(octets, start, end, uncaptured)
        if inside == 0x6558:
            return self._ethernet(octets, start, end, uncaptured)
        return self._by_ethertype(octets, start, end, uncaptured, inside)

    @cython.cfunc
    @cython.exceptval(-1)
    def _step(self, kind: cython.int, number: cython.longlong) -> cython.int:
        """Folds a VLAN or a tunnel into the path. Another sequence of steps does not come to the same number, except by
        a chance that nobody can aim at: the key is secret."""
        path: cython.ulonglong = self.segment.path
        value: cython.longlong = (number + 1) << 5 | (kind + 1)
        path = ((path ^ value) * self.path_key) & _MASK_64
        self.segment.path = path ^ path >> 29
        return 0

    @cython.cfunc
    @cython.exceptval(check=False)
    def _sound(self, octets: Octets, start: cython.Py_ssize_t, end: cython.Py_ssize_t) -> cython.bint:
        """Whether the checksum of this TCP segment is right, with the pseudo header of its addresses."""
        segment: Segment = self.segment
        total: cython.longlong = 6 + (end - start) + _sum(octets, start, end)
        total += _words(segment.source_high) + _words(segment.source_low)
        total += _words(segment.destination_high) + _words(segment.destination_low)
        return _folded(total) == 0xFFFF
