"""The header of each tunnel: which one it is, its id, and what lies behind it. decode.py reads on there.

By IP protocol: GRE with ERSPAN I to III and PPTP, EtherIP. By UDP port: VXLAN, VXLAN-GPE, Geneve, GTP-U, Teredo, AYIYA,
GRE and MPLS over UDP. IP in IP has no header of its own.

On its registered port a tunnel is believed where its header is sound. On any other port what is inside has to fit too:
an IP packet (in an Ethernet frame, where the tunnel carries those) that ends exactly where the datagram does. GRE and
MPLS have no header that could be told from chance, so they are read on their own ports only.

An id is the one that both directions of a tunnel share: a VXLAN or Geneve network, a GRE key, an ERSPAN session. GTP-U
endpoints and PPTP calls are numbered by each end for itself; such an id is told and is no part of a connection's key.
"""

import cython

if cython.compiled:
    from cython.cimports.http_capture.capture.octets import Octets, u16, u32
else:
    from .octets import Octets, u16, u32

KINDS = (
    "ipip", "4in6", "6in4", "6in6", "etherip", "gre", "erspan", "pptp", "mpls", "vxlan", "vxlan-gpe", "geneve", "gtp-u",
    "teredo", "ayiya",
)  # fmt: skip
_ETHERIP = cython.declare(cython.int, 4)
_GRE = cython.declare(cython.int, 5)
_ERSPAN = cython.declare(cython.int, 6)
_PPTP = cython.declare(cython.int, 7)
_MPLS = cython.declare(cython.int, 8)
_VXLAN = cython.declare(cython.int, 9)
_VXLAN_GPE = cython.declare(cython.int, 10)
_GENEVE = cython.declare(cython.int, 11)
_GTP_U = cython.declare(cython.int, 12)
_TEREDO = cython.declare(cython.int, 13)
_AYIYA = cython.declare(cython.int, 14)

# What the functions below return.
FOUND, TRUNCATED, UNSUPPORTED, ABSENT = 0, 1, 2, 3
_FOUND = cython.declare(cython.int, 0)
_TRUNCATED = cython.declare(cython.int, 1)
_UNSUPPORTED = cython.declare(cython.int, 2)
_ABSENT = cython.declare(cython.int, 3)

# What is inside, where it is no ethertype. An Ethernet frame has the ethertype of transparent bridging.
_IP = cython.declare(cython.int, 0)
_PPP = cython.declare(cython.int, 1)
_ETHERNET = cython.declare(cython.int, 0x6558)

_MAX_EXTENSIONS = cython.declare(cython.int, 16)  # headers of GTP-U
_MAX_PADDING = cython.declare(cython.longlong, 64)  # behind the IP packet of a bridged frame: to 60 bytes, a checksum


@cython.cclass
class Outer:
    """One tunnel around a segment. kind: an index into KINDS. id: of the tunnel, or -1; shared: of both directions.

    start, inside: where its payload begins, and what that is: an ethertype, 0 for IP, or 1 for PPP. The addresses are
    those of the packet that carried it; ports are 0 where it was not UDP.
    """

    def __init__(self) -> None:
        self.kind = 0
        self.id = -1
        self.shared = False
        self.start = 0
        self.inside = 0
        self.ip_version = 4
        self.source_high = self.source_low = self.destination_high = self.destination_low = 0
        self.source_port = self.destination_port = 0

    @cython.cfunc
    @cython.exceptval(check=False)
    def found(
        self, kind: cython.int, start: cython.Py_ssize_t, inside: cython.int, number: cython.longlong,
        shared: cython.bint,
    ) -> cython.int:  # fmt: skip
        self.kind = kind
        self.start = start
        self.inside = inside
        self.id = number
        self.shared = shared
        return _FOUND


@cython.cfunc
@cython.exceptval(check=False)
def etherip(outer: Outer, octets: Octets, start: cython.Py_ssize_t, end: cython.Py_ssize_t) -> cython.int:
    """RFC 3378: version 3, twelve reserved bits, an Ethernet frame."""
    if end - start < 2:
        return _TRUNCATED
    if octets[start] >> 4 != 3:
        return _UNSUPPORTED
    return outer.found(_ETHERIP, start + 2, _ETHERNET, -1, False)


@cython.cfunc
@cython.exceptval(check=False)
def gre(outer: Outer, octets: Octets, start: cython.Py_ssize_t, end: cython.Py_ssize_t) -> cython.int:
    """RFC 2784 with the key and sequence number of RFC 2890; version 1 is that of PPTP (RFC 2637 section 4.1).

    Source routing (RFC 1701), which RFC 2784 does away with, is not read."""
    at: cython.Py_ssize_t = start + 4
    flags: cython.int
    protocol: cython.int
    key: cython.longlong = -1
    if end - start < 4:
        return _TRUNCATED
    flags = u16(octets, start)
    protocol = u16(octets, start + 2)
    if flags & 0x4007 > 1:
        return _UNSUPPORTED
    if flags & 0x8000:  # checksum
        at += 4
    if flags & 0x2000:
        if end - at < 4:
            return _TRUNCATED
        key = u32(octets, at)
        at += 4
    if flags & 0x1000:  # sequence number
        at += 4
    if flags & 1:
        if protocol != 0x880B or key < 0:
            return _UNSUPPORTED
        if flags & 0x0080:  # acknowledgement number
            at += 4
        if at > end:
            return _TRUNCATED
        if key >> 16 == 0:  # no payload: only an acknowledgement
            return _ABSENT
        return outer.found(_PPTP, at, _PPP, key & 0xFFFF, False)
    if at > end:
        return _TRUNCATED
    if protocol == 0x88BE:
        return _erspan_2(outer, octets, at, end, flags & 0x1000 != 0)
    if protocol == 0x22EB:
        return _erspan_3(outer, octets, at, end)
    if protocol == 0x880B:
        protocol = _PPP
    elif protocol == 0x883E:  # WCCP: version 2 puts four bytes before the IP header
        protocol = _IP
        if end - at >= 4 and octets[at] >> 4 != 4 and octets[at] >> 4 != 6:
            at += 4
    elif protocol < 1536:  # keep-alive, and what has no ethertype
        return _ABSENT
    return outer.found(_GRE, at, protocol, key, True)


@cython.cfunc
@cython.exceptval(check=False)
def _erspan_2(
    outer: Outer, octets: Octets, start: cython.Py_ssize_t, end: cython.Py_ssize_t, numbered: cython.bint
) -> cython.int:
    """draft-foschiano-erspan section 4: type I has no header, and no sequence number in GRE; type II has 8 bytes."""
    if not numbered:
        return outer.found(_ERSPAN, start, _ETHERNET, -1, False)
    if end - start < 8:
        return _TRUNCATED
    if octets[start] >> 4 != 1:
        return _UNSUPPORTED
    return outer.found(_ERSPAN, start + 8, _ETHERNET, u16(octets, start + 2) & 0x03FF, True)


@cython.cfunc
@cython.exceptval(check=False)
def _erspan_3(outer: Outer, octets: Octets, start: cython.Py_ssize_t, end: cython.Py_ssize_t) -> cython.int:
    """The same draft, section 4.3: 12 bytes, 8 more where the last bit says so; a frame, or an IP packet (type 2)."""
    flags: cython.int
    at: cython.Py_ssize_t = start + 12
    if end - start < 12:
        return _TRUNCATED
    if octets[start] >> 4 != 2:
        return _UNSUPPORTED
    flags = u16(octets, start + 10)
    if flags & 1:
        at += 8
        if at > end:
            return _TRUNCATED
    return outer.found(
        _ERSPAN, at, _IP if (flags >> 10) & 0x1F == 2 else _ETHERNET, u16(octets, start + 2) & 0x03FF, True
    )


@cython.cfunc
@cython.exceptval(check=False)
def mpls(outer: Outer, start: cython.Py_ssize_t) -> cython.int:
    """A label stack directly behind IP (RFC 4023) or UDP (RFC 7510). Labels are each direction's own."""
    return outer.found(_MPLS, start, 0x8847, -1, False)


@cython.cfunc
@cython.exceptval(check=False)
def udp(
    outer: Outer, octets: Octets, start: cython.Py_ssize_t, end: cython.Py_ssize_t, length: cython.longlong,
    source: cython.int, destination: cython.int,
) -> cython.int:  # fmt: skip
    """The tunnel in a UDP datagram whose payload has `length` bytes, captured from start to end; or ABSENT."""
    if end - start < 4:
        return _ABSENT
    if destination == 4789 or destination == 8472 or destination == 4790:
        if _vxlan(outer, octets, start, end, destination == 4790) == _FOUND:
            return _FOUND
    elif destination == 6081:
        if _geneve(outer, octets, start, end) == _FOUND:
            return _FOUND
    elif destination == 2152 or source == 2152:
        if _gtp_u(outer, octets, start, end, length) == _FOUND:
            return _FOUND
    elif destination == 3544 or source == 3544:
        if _teredo(outer, octets, start, end, length) == _FOUND:
            return _FOUND
    elif destination == 5072 or source == 5072:
        if _ayiya(outer, octets, start, end) == _FOUND:
            return _FOUND
    elif destination == 4754:  # 4755 is that with DTLS
        return gre(outer, octets, start, end)
    elif destination == 6635:  # 6636 is that with DTLS
        return mpls(outer, start)
    # Any port: the first that fits, inside and out.
    if _gtp_u(outer, octets, start, end, length) == _FOUND and _fits(outer, octets, start, end, length):
        return _FOUND
    if _vxlan(outer, octets, start, end, False) == _FOUND and _fits(outer, octets, start, end, length):
        return _FOUND
    if _geneve(outer, octets, start, end) == _FOUND and _fits(outer, octets, start, end, length):
        return _FOUND
    if _teredo(outer, octets, start, end, length) == _FOUND and _fits(outer, octets, start, end, length):
        return _FOUND
    if _ayiya(outer, octets, start, end) == _FOUND and _fits(outer, octets, start, end, length):
        return _FOUND
    return _ABSENT


@cython.cfunc
@cython.exceptval(check=False)
def _fits(
    outer: Outer, octets: Octets, start: cython.Py_ssize_t, end: cython.Py_ssize_t, length: cython.longlong
) -> cython.bint:
    """Whether the IP packet inside ends where the datagram does, whose payload is `length` bytes from `start` on."""
    at: cython.Py_ssize_t = outer.start
    left: cython.longlong = length - (at - start)
    inside: cython.int = outer.inside
    size: cython.longlong
    tags: cython.int = 0
    if inside == _ETHERNET:
        if end - at < 14:
            return False
        inside = u16(octets, at + 12)
        at += 14
        left -= 14
        while (inside == 0x8100 or inside == 0x88A8) and tags < 2 and end - at >= 4:
            inside = u16(octets, at + 2)
            at += 4
            left -= 4
            tags += 1
    if end - at < 20:
        return False
    if octets[at] >> 4 == 4 and (inside == _IP or inside == 0x0800):
        if octets[at] & 15 < 5:
            return False
        size = u16(octets, at + 2)
    elif octets[at] >> 4 == 6 and (inside == _IP or inside == 0x86DD):
        size = 40 + u16(octets, at + 4)
    else:
        return False
    if outer.inside == _ETHERNET:
        return 0 <= left - size <= _MAX_PADDING
    return size == left


@cython.cfunc
@cython.exceptval(check=False)
def _vxlan(
    outer: Outer, octets: Octets, start: cython.Py_ssize_t, end: cython.Py_ssize_t, generic: cython.bint
) -> cython.int:
    """RFC 7348 section 5: a flag says that there is a network id. `generic`: VXLAN-GPE (
    draft-ietf-nvo3-vxlan-gpe section 3), whose P flag announces a next protocol: 1 IPv4, 2 IPv6, 3 Ethernet, 5 MPLS."""
    following: cython.int = 3
    flags: cython.int
    if end - start < 8:
        return _TRUNCATED
    flags = octets[start]
    if flags & 0x08 == 0 or octets[start + 7] != 0:
        return _UNSUPPORTED
    if generic and flags & 0x04:
        following = octets[start + 3]
    elif flags & 0x77 != 0:  # 0x80 is that of a group policy
        return _UNSUPPORTED
    if following == 3:
        following = _ETHERNET
    elif following == 1 or following == 2:
        following = _IP
    elif following == 5:
        following = 0x8847
    else:
        return _UNSUPPORTED
    return outer.found(_VXLAN_GPE if generic else _VXLAN, start + 8, following, u32(octets, start + 4) >> 8, True)


@cython.cfunc
@cython.exceptval(check=False)
def _geneve(outer: Outer, octets: Octets, start: cython.Py_ssize_t, end: cython.Py_ssize_t) -> cython.int:
    """RFC 8926 section 3.4: version 0, length of the options in four bytes, protocol, network id."""
    at: cython.Py_ssize_t
    protocol: cython.int
    if end - start < 8:
        return _TRUNCATED
    if octets[start] >> 6 != 0 or octets[start + 1] & 0x3F != 0 or octets[start + 7] != 0:
        return _UNSUPPORTED
    at = start + 8 + (octets[start] & 0x3F) * 4
    if at > end:
        return _TRUNCATED
    protocol = u16(octets, start + 2)
    if protocol < 1536:
        return _UNSUPPORTED
    return outer.found(_GENEVE, at, protocol, u32(octets, start + 4) >> 8, True)


@cython.cfunc
@cython.exceptval(check=False)
def _gtp_u(
    outer: Outer, octets: Octets, start: cython.Py_ssize_t, end: cython.Py_ssize_t, length: cython.longlong
) -> cython.int:
    """3GPP TS 29.281 section 5: version 1, a user packet (type 255), its length, the endpoint; extension headers."""
    at: cython.Py_ssize_t = start + 8
    flags: cython.int
    following: cython.int = 0
    size: cython.int
    extensions: cython.int = 0
    if end - start < 8:
        return _TRUNCATED
    flags = octets[start]
    if flags & 0xF0 != 0x30 or octets[start + 1] != 255 or u16(octets, start + 2) + 8 > length:
        return _UNSUPPORTED
    if flags & 7:
        at += 4
        if at > end:
            return _TRUNCATED
        if flags & 4:
            following = octets[at - 1]
    while following != 0:
        if at >= end:
            return _TRUNCATED
        size = octets[at] * 4
        extensions += 1
        if size == 0 or extensions > _MAX_EXTENSIONS:
            return _UNSUPPORTED
        at += size
        if at > end:
            return _TRUNCATED
        following = octets[at - 1]
    return outer.found(_GTP_U, at, _IP, u32(octets, start + 4), False)


@cython.cfunc
@cython.exceptval(check=False)
def _teredo(
    outer: Outer, octets: Octets, start: cython.Py_ssize_t, end: cython.Py_ssize_t, length: cython.longlong
) -> cython.int:
    """RFC 4380 section 5.1.1: an authentication, an origin indication, both or none, then IPv6, of which one end has a
    Teredo address or a link-local one."""
    at: cython.Py_ssize_t = start
    if u16(octets, at) == 0x0001:  # lengths of client id and authentication value, these two, nonce, confirmation
        at += 4 + octets[start + 2] + octets[start + 3] + 9
    if end - at >= 8 and u16(octets, at) == 0x0000:
        at += 8
    if end - at < 40:
        return _TRUNCATED
    if octets[at] >> 4 != 6 or at - start + 40 + u16(octets, at + 4) > length:
        return _UNSUPPORTED
    if (
        u32(octets, at + 8) != 0x20010000
        and u32(octets, at + 24) != 0x20010000
        and u16(octets, at + 8) & 0xFFC0 != 0xFE80
    ):
        return _UNSUPPORTED
    return outer.found(_TEREDO, at, _IP, -1, False)


@cython.cfunc
@cython.exceptval(check=False)
def _ayiya(outer: Outer, octets: Octets, start: cython.Py_ssize_t, end: cython.Py_ssize_t) -> cython.int:
    """draft-massar-v6ops-ayiya section 3: lengths of identity and signature, operation 1 (forward), protocol, time."""
    at: cython.Py_ssize_t
    following: cython.int
    if end - start < 8:
        return _TRUNCATED
    following = octets[start + 3]
    if octets[start + 2] & 0x0F != 1 or (following != 41 and following != 4):
        return _UNSUPPORTED
    if octets[start] >> 4 > 6:
        return _UNSUPPORTED
    at = start + 8 + (1 << (octets[start] >> 4)) + (octets[start + 1] >> 4) * 4
    if at > end:
        return _TRUNCATED
    return outer.found(_AYIYA, at, _IP, -1, False)
