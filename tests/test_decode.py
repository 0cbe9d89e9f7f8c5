"""Any frame becomes a segment, a fragment or a drop with its reason, and is counted once."""

import random
import struct
from collections.abc import Callable

import pytest
from http_capture.capture.decode import DROPS, FRAGMENT, SEGMENT, Decoder
from http_capture.capture.source.block import Block, Buffer
from traffic import ACK, Conversation, fragment, http_request

PAYLOAD = b"payload of the segment"
MACS = bytes(12)


def packet(version: int = 4) -> bytes:
    """An IP packet with one segment, without a link."""
    ends = (("10.1.2.3", 1234), ("10.4.5.6", 80)) if version == 4 else (("fd00::1:2", 1234), ("fd00::3", 80))
    conv = Conversation(*ends, client_isn=99, server_isn=199, link=101)
    conv.segment("client", ACK, PAYLOAD)
    return conv.frames[0][1]


def decode(
    frame: bytes,
    link: int = 1,
    wire: int | None = None,
    before: bytes = b"xx",
    after: bytes = b"\xff" * 100,
    *,
    verify_checksums: bool = False,
) -> tuple[Decoder, str | int]:
    """The decoder after this frame, which lies in a buffer between other bytes; and SEGMENT, FRAGMENT or the reason."""
    block = Block(1)
    block.lend(Buffer(before + frame + after))
    block.add(len(before), len(frame), len(frame) if wire is None else wire, 7, link)
    decoder = Decoder(verify_checksums=verify_checksums)
    result = decoder.decode(block, 0)
    assert decoder.segments + decoder.fragments + sum(decoder.drops) == 1
    return decoder, DROPS[result] or result


def payload(decoder: Decoder) -> bytes:
    segment = decoder.segment
    return bytes(segment.buffer.view[segment.payload_start : segment.payload_end])


LINKS = [
    ("Ethernet", 1, MACS, b""),
    ("802.1Q", 1, MACS + b"\x81\0\x60\x05", b""),
    ("802.1ad", 1, MACS + b"\x88\xa8\0\x05\x81\0\0\x06", b""),
    ("QinQ", 1, MACS + b"\x91\0\0\x05\x81\0\0\x06", b""),
    ("cooked", 113, bytes(14), b""),
    ("null, little endian", 0, None, b"\x02\0\0\0"),
    ("null, big endian", 0, None, b"\0\0\0\x02"),
    ("loop", 108, None, b"\0\0\0\x02"),
    ("raw", 101, None, b""),
    ("raw of BSD", 12, None, b""),
    ("raw of OpenBSD", 14, None, b""),
    ("IPv4 or IPv6", 228, None, b""),
    ("IPv6 or IPv4", 229, None, b""),
]


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(("link", "head", "rest"), [row[1:] for row in LINKS], ids=[row[0] for row in LINKS])
def test_links(link: int, head: bytes | None, rest: bytes, version: int) -> None:
    if head is not None:
        head += b"\x08\0" if version == 4 else b"\x86\xdd"
    elif version == 6:
        rest = rest.replace(b"\x02", b"\x1e")
    decoder, result = decode((head or b"") + rest + packet(version), link)
    assert result == SEGMENT
    assert payload(decoder) == PAYLOAD
    segment = decoder.segment
    assert (segment.ip_version, segment.source_port, segment.destination_port) == (version, 1234, 80)
    assert (segment.seq, segment.ack, segment.flags) == (100, 200, ACK)
    if version == 4:
        assert (segment.source_high, segment.source_low) == (0, 0x0A010203)
        assert (segment.destination_high, segment.destination_low) == (0, 0x0A040506)
    else:
        assert (segment.source_high, segment.source_low) == (0xFD00 << 48, 0x10002)
    tags = (head or b"").count(b"\x81\0") + (head or b"").count(b"\x88\xa8") + (head or b"").count(b"\x91\0")
    assert (segment.vlan, segment.inner_vlan) == [(-1, -1), (5, -1), (5, 6)][tags]


def test_cooked_2() -> None:
    decoder, result = decode(b"\x08\0" + bytes(18) + packet(), 276)
    assert (result, payload(decoder)) == (SEGMENT, PAYLOAD)


def change(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


ETHERNET = MACS + b"\x08\0"
IPV6 = MACS + b"\x86\xdd"
DROPPED = [
    ("link_unsupported", packet(), 187),
    ("link_unsupported", packet(), 147),
    ("link_truncated", ETHERNET[:13], 1),
    ("link_truncated", MACS + b"\x81\0\0", 1),
    ("link_truncated", bytes(15), 113),
    ("link_truncated", bytes(19), 276),
    ("link_truncated", bytes(3), 0),
    ("not_ip", MACS + b"\x08\x06" + bytes(28), 1),
    ("not_ip", MACS + b"\0\x20" + bytes(50), 1),
    ("not_ip", MACS + b"\x81\0\0\x01" * 10 + b"\x08\0" + packet(), 1),
    ("not_ip", b"\x07\0\0\0" + packet(), 0),
    ("ip_truncated", ETHERNET, 1),
    ("ip_truncated", b"", 101),
    ("ip_truncated", packet()[:19], 101),
    ("ip_truncated", change(packet(), 0, b"\x46")[:23], 101),
    ("ip_truncated", packet(6)[:39], 101),
    ("ip_malformed", change(packet(), 0, b"\x55"), 101),
    ("ip_malformed", change(packet(), 0, b"\x44"), 101),
    ("ip_malformed", change(packet(), 2, b"\0\x13"), 101),
    ("not_tcp", change(packet(), 9, b"\x11"), 101),
    ("not_tcp", change(packet(6), 6, b"\x3a"), 101),
    ("tcp_truncated", packet()[:39], 101),
    ("tcp_malformed", change(packet(), 2, b"\0\x27"), 101),  # the length says that there are 19 bytes of TCP
    ("tcp_malformed", change(packet(), 32, b"\x40"), 101),
    ("tcp_malformed", change(packet(), 32, b"\xf0"), 101),
    ("fragment_truncated", change(packet(), 6, b"\x20\0")[:-1], 101),
]


@pytest.mark.parametrize(("reason", "frame", "link"), DROPPED, ids=[f"{i} {row[0]}" for i, row in enumerate(DROPPED)])
def test_drops(reason: str, frame: bytes, link: int) -> None:
    decoder, result = decode(frame, link)
    assert result == reason
    assert decoder.drops[DROPS.index(reason)] == 1


IPV4_TYPE = b"\x08\0"
IPV6_TYPE = b"\x86\xdd"
SNAP = b"\xaa\xaa\x03\0\0\0"
ISL = b"\x01\0\x0c\0\0\0" + bytes(6) + b"\0\x40\xaa\xaa\x03" + bytes(3) + b"\0\x0e" + bytes(4)  # VLAN 7
FIRST_LABEL = b"\0\x01\0\x40"
LAST_LABEL = b"\0\x02\x01\x40"
MPLS = MACS + b"\x88\x47" + LAST_LABEL
PPPOE = b"\x11\0\0\x07\0\0"
WIFI = b"\x08\x01" + bytes(22)
QOS = b"\x88\x01" + bytes(22) + b"\x05\0"
RADIOTAP = b"\0\0\x12\0\x03\0\0\0" + bytes(8) + b"\x10\0"  # a time, and flags
NFLOG = b"\x02\0\0\x2a" + b"\x08\0\x01\0\x08\0\0\0" + b"\x05\0\x0a\0\0\0\0\0"


def ppp(ethertype: bytes) -> bytes:
    return b"\0\x21" if ethertype == IPV4_TYPE else b"\0\x57"


def attribute(ethertype: bytes, order: str) -> bytes:
    """The head of NFLOG's attribute with the packet."""
    return struct.pack(order + "HH", 4 + len(packet(4 if ethertype == IPV4_TYPE else 6)), 9)


Head = Callable[[bytes], bytes]
RARE_LINKS: list[tuple[str, int, Head, tuple[int, int]]] = [
    ("three tags", 1, lambda e: MACS + b"\x88\xa8\0\x05\x81\0\0\x06\x81\0\0\x08" + e, (5, 6)),
    ("LLC with SNAP", 1, lambda e: MACS + b"\0\x50" + SNAP + e, (-1, -1)),
    ("LLC with SNAP of bridges", 1, lambda e: MACS + b"\0\x50\xaa\xaa\x03\0\0\xf8" + e, (-1, -1)),
    ("LLC of IP", 1, lambda e: MACS + b"\0\x50\x06\x06\x03", (-1, -1)),
    ("LLC in a VLAN", 1, lambda e: MACS + b"\x81\0\0\x05\0\x50" + SNAP + e, (5, -1)),
    ("VLAN in SNAP", 1, lambda e: MACS + b"\0\x50" + SNAP + b"\x81\0\0\x05" + e, (5, -1)),
    ("ISL", 1, lambda e: ISL + MACS + e, (7, -1)),
    ("ISL, other address", 1, lambda e: b"\x03" + ISL[1:] + MACS + e, (7, -1)),
    ("ISL with a tag", 1, lambda e: ISL + MACS + b"\x81\0\0\x05" + e, (7, 5)),
    ("MPLS", 1, lambda e: MPLS, (-1, -1)),
    ("MPLS, upstream", 1, lambda e: MACS + b"\x88\x48" + FIRST_LABEL + LAST_LABEL, (-1, -1)),
    ("MPLS in a VLAN", 1, lambda e: MACS + b"\x81\0\0\x05\x88\x47" + LAST_LABEL, (5, -1)),
    ("16 labels", 1, lambda e: MACS + b"\x88\x47" + FIRST_LABEL * 15 + LAST_LABEL, (-1, -1)),
    ("pseudowire", 1, lambda e: MPLS + b"\x02" + MACS[1:] + e, (-1, -1)),
    ("pseudowire with a control word", 1, lambda e: MPLS + bytes(4) + b"\x02" + MACS[1:] + e, (-1, -1)),
    ("pseudowire with numbers", 1, lambda e: MPLS + b"\0\0\x12\x34" + b"\x02" + MACS[1:] + e, (-1, -1)),
    ("pseudowire to an address 00-00", 1, lambda e: MPLS + b"\0\0\x0c\x07\xac\x01" + MACS[:6] + e, (-1, -1)),
    ("pseudowire to an address 44", 1, lambda e: MPLS + b"\x44" + bytes(11) + e, (-1, -1)),
    ("pseudowire to an address 45", 1, lambda e: MPLS + b"\x45" + b"\xff" * 11 + e, (-1, -1)),
    ("pseudowire to an address 66", 1, lambda e: MPLS + b"\x66" + b"\xff" * 11 + e, (-1, -1)),
    ("pseudowire with a tag", 1, lambda e: MPLS + bytes(4) + MACS + b"\x81\0\0\x05" + e, (5, -1)),
    ("MPLS in a pseudowire", 1, lambda e: MPLS + bytes(4) + MPLS, (-1, -1)),
    ("PPPoE", 1, lambda e: MACS + b"\x88\x64" + PPPOE + ppp(e), (-1, -1)),
    ("PPPoE, protocol of one octet", 1, lambda e: MACS + b"\x88\x64" + PPPOE + ppp(e)[1:], (-1, -1)),
    ("PPPoE in two VLANs", 1, lambda e: MACS + b"\x81\0\0\x05" * 2 + b"\x88\x64" + PPPOE + ppp(e), (5, 5)),
    ("MPLS in PPPoE", 1, lambda e: MACS + b"\x88\x64" + PPPOE + b"\x02\x81" + LAST_LABEL, (-1, -1)),
    ("PPP", 9, ppp, (-1, -1)),
    ("PPP, framed", 9, lambda e: b"\xff\x03" + ppp(e), (-1, -1)),
    ("PPP, one octet", 9, lambda e: ppp(e)[1:], (-1, -1)),
    ("PPP with MPLS", 9, lambda e: b"\x02\x83" + LAST_LABEL, (-1, -1)),
    ("PPP in HDLC", 50, lambda e: b"\xff\x03" + ppp(e), (-1, -1)),
    ("PPP in HDLC of Cisco", 50, lambda e: b"\x8f\0" + e, (-1, -1)),
    ("PPPoE without Ethernet", 51, lambda e: PPPOE + ppp(e), (-1, -1)),
    ("HDLC of Cisco", 104, lambda e: b"\x0f\0" + e, (-1, -1)),
    ("HDLC of Cisco, MPLS", 104, lambda e: b"\x0f\0\x88\x47" + LAST_LABEL, (-1, -1)),
    ("cooked, LLC", 113, lambda e: bytes(14) + b"\0\x04" + SNAP + e, (-1, -1)),
    ("cooked, VLAN", 113, lambda e: bytes(14) + b"\x81\0\0\x05" + e, (5, -1)),
    ("cooked, PPPoE", 113, lambda e: bytes(14) + b"\x88\x64" + PPPOE + ppp(e), (-1, -1)),
    ("cooked, radio", 113, lambda e: b"\0\x03\x03\x23" + bytes(12) + RADIOTAP + WIFI + SNAP + e, (-1, -1)),
    ("cooked 2, LLC", 276, lambda e: b"\0\x04" + bytes(18) + SNAP + e, (-1, -1)),
    ("cooked 2, radio", 276, lambda e: bytes(8) + b"\x03\x23" + bytes(10) + RADIOTAP + WIFI + SNAP + e, (-1, -1)),
    ("802.11", 105, lambda e: WIFI + SNAP + e, (-1, -1)),
    ("802.11, four addresses", 105, lambda e: b"\x08\x03" + bytes(28) + SNAP + e, (-1, -1)),
    ("802.11, order", 105, lambda e: b"\x08\x81" + bytes(22) + SNAP + e, (-1, -1)),
    ("802.11, data with acknowledgement", 105, lambda e: b"\x18\x02" + bytes(22) + SNAP + e, (-1, -1)),
    ("802.11 QoS", 105, lambda e: QOS + SNAP + e, (-1, -1)),
    ("802.11 QoS, four addresses", 105, lambda e: b"\x88\x03" + bytes(30) + SNAP + e, (-1, -1)),
    ("802.11 QoS, HT control", 105, lambda e: b"\x88\x81" + bytes(28) + SNAP + e, (-1, -1)),
    ("802.11 QoS, all", 105, lambda e: b"\x88\x83" + bytes(34) + SNAP + e, (-1, -1)),
    ("802.11 QoS, filled up", 105, lambda e: QOS + bytes(2) + SNAP + e, (-1, -1)),
    ("radiotap", 127, lambda e: RADIOTAP + QOS + SNAP + e, (-1, -1)),
    ("radiotap, nothing in it", 127, lambda e: b"\0\0\x08\0\0\0\0\0" + WIFI + SNAP + e, (-1, -1)),
    ("Prism", 119, lambda e: b"\x44\0\0\0\x90\0\0\0" + bytes(136) + WIFI + SNAP + e, (-1, -1)),
    ("Prism, big endian", 119, lambda e: b"\0\0\0\x44\0\0\0\x90" + bytes(136) + WIFI + SNAP + e, (-1, -1)),
    ("AVS", 163, lambda e: b"\x80\x21\x10\x01\0\0\0\x40" + bytes(56) + WIFI + SNAP + e, (-1, -1)),
    ("NFLOG", 239, lambda e: NFLOG + attribute(e, "<"), (-1, -1)),
    ("NFLOG, big endian", 239, lambda e: b"\x02\0\0\0\0\x05\0\x01\x01\0\0\0" + attribute(e, ">"), (-1, -1)),
]
rare_links = pytest.mark.parametrize(
    ("link", "head", "vlans"), [row[1:] for row in RARE_LINKS], ids=[row[0] for row in RARE_LINKS]
)


@pytest.mark.parametrize("version", [4, 6])
@rare_links
def test_rare_links_cut_at_every_length(link: int, head: Head, vlans: tuple[int, int], version: int) -> None:
    """Whole, and as a snap length leaves it: nothing behind the captured bytes is read, for there is nothing."""
    before = head(IPV4_TYPE if version == 4 else IPV6_TYPE)
    frame = before + packet(version)
    headers = len(frame) - len(PAYLOAD)
    for length in range(len(frame) + 1):
        decoder, result = decode(frame[:length], link, wire=len(frame), after=b"")
        if length <= len(before):  # below labels, the first bytes tell whether it is IP
            assert result in ("link_truncated", "ip_truncated", "not_ip"), length
        elif length < headers:
            assert result in ("ip_truncated", "tcp_truncated"), length
        else:
            assert result == SEGMENT
            segment = decoder.segment
            assert payload(decoder) == PAYLOAD[: length - headers]
            assert (segment.payload_length, segment.ip_version) == (len(PAYLOAD), version)
            assert (segment.vlan, segment.inner_vlan) == vlans
    assert payload(decode(frame + b"trailer", link)[0]) == PAYLOAD


RARE_DROPPED = [
    ("encrypted", b"\x08\x41" + bytes(50), 105),
    ("encrypted", RADIOTAP + b"\x88\x41" + bytes(50), 127),
    ("not_ip", b"\x80\0" + bytes(50), 105),  # a beacon
    ("not_ip", b"\xd4\0" + bytes(8), 105),  # an acknowledgement
    ("not_ip", b"\x48\x01" + bytes(22), 105),  # no data
    ("not_ip", b"\xc8\x41" + bytes(24), 105),  # QoS, no data
    ("not_ip", b"\x09\x01" + bytes(22) + SNAP + IPV4_TYPE + packet(), 105),  # another version of 802.11
    ("not_ip", WIFI + SNAP + b"\x88\x8e" + bytes(50), 105),
    ("not_ip", WIFI + bytes(2) + SNAP + IPV4_TYPE + packet(), 105),  # a header of 24 bytes needs no filling up
    ("link_unsupported", b"\x08\x05" + bytes(22) + SNAP + IPV4_TYPE + packet(), 105),  # the first of two fragments
    ("link_unsupported", b"\x08\x01" + bytes(20) + b"\x01\0" + SNAP + IPV4_TYPE + packet(), 105),  # the second
    ("link_unsupported", b"\x88\x01" + bytes(22) + b"\x85\0" + bytes(50), 105),  # A-MSDU
    ("link_unsupported", b"\x01" + RADIOTAP[1:] + WIFI + SNAP + IPV4_TYPE + packet(), 127),
    ("link_malformed", RADIOTAP[:16] + b"\x50\0" + WIFI + SNAP + IPV4_TYPE + packet(), 127),  # the check sequence
    ("link_malformed", b"\0\0\x0d\0\x02\0\0\x80\0\0\0\0\x40" + WIFI + SNAP + IPV4_TYPE + packet(), 127),
    ("link_malformed", change(RADIOTAP, 2, b"\x07") + WIFI, 127),
    ("link_malformed", b"\x44\0\0\0\0\0\0\0" + bytes(200), 119),
    ("link_truncated", change(RADIOTAP, 2, b"\xff\xff") + WIFI, 127),
    ("link_truncated", b"\x44\0\0\0\xff\xff\0\0" + bytes(200), 119),
    ("not_ip", MACS + b"\0\x26\x42\x42\x03" + bytes(40), 1),  # spanning tree
    ("not_ip", MACS + b"\0\x50\xaa\xaa\x03\0\0\x0c\x20\0" + bytes(40), 1),  # of Cisco
    ("not_ip", MACS + b"\0\x50\xaa\xaa\x04\0\0\0\x08\0" + packet(), 1),
    ("not_ip", MACS + b"\0\x50\xff\xff" + bytes(40), 1),  # IPX without LLC
    ("not_ip", bytes(14) + b"\0\x01" + packet(), 113),
    ("not_ip", MACS + b"\x88\x63\x11\x09" + bytes(40), 1),  # discovery
    ("not_ip", MACS + b"\x88\x64\x11\xa7" + bytes(40), 1),
    ("not_ip", MACS + b"\x88\x64" + PPPOE + b"\xc0\x21" + bytes(40), 1),  # LCP
    ("not_ip", b"\xff\x03\xc0\x21" + bytes(40), 9),
    ("not_ip", b"\x8f\0\x80\x35" + bytes(40), 104),  # SLARP
    ("not_ip", MPLS + bytes(4) + MACS + b"\x08\x06" + bytes(40), 1),
    ("not_ip", MPLS + b"\x10\0\0\x07" + bytes(40), 1),  # an associated channel
    ("link_unsupported", MACS + b"\x88\x47" + FIRST_LABEL * 16 + LAST_LABEL + packet(), 1),
    ("link_unsupported", change(ISL, 5, b"\x10") + MACS + IPV4_TYPE + packet(), 1),  # token ring
    ("link_unsupported", ISL * 7 + MACS + IPV4_TYPE + packet(), 1),
    ("link_unsupported", MACS + (b"\0\x50" + SNAP) * 1000 + IPV4_TYPE + packet(), 1),
    ("link_unsupported", (MPLS + bytes(4)) * 100 + MACS + IPV4_TYPE + packet(), 1),
    ("link_unsupported", b"\x02\x01" + NFLOG[2:], 239),
    ("link_unsupported", b"\x02\0\0\0" + b"\x04\0\x01\0" * 64 + struct.pack("<HH", 64, 9) + packet(), 239),
    ("link_malformed", b"\x02\0\0\0" + b"\x03\0\x01\0" * 10, 239),
    ("link_truncated", NFLOG, 239),
    ("link_truncated", NFLOG + b"\xff\xff\x0a\0", 239),
    ("ip_truncated", NFLOG + b"\x04\0\x09\0", 239),
    ("ip_truncated", NFLOG + b"\x08\0\x09\0" + packet(), 239),
    ("not_ip", NFLOG + b"\x20\0\x09\0" + b"\0\x01\x08\0" + bytes(24), 239),
]


@pytest.mark.parametrize(
    ("reason", "frame", "link"), RARE_DROPPED, ids=[f"{i} {row[0]}" for i, row in enumerate(RARE_DROPPED)]
)
def test_drops_of_rare_links(reason: str, frame: bytes, link: int) -> None:
    assert decode(frame, link, after=b"")[1] == reason


def test_labels_before_a_packet_that_is_cut_unsaid() -> None:
    """The wire length is that of what was kept; the first nibble is enough where nothing speaks against it."""
    decoder, result = decode(MPLS + packet()[:-5])
    assert (result, payload(decoder), decoder.segment.payload_length) == (SEGMENT, PAYLOAD[:-5], len(PAYLOAD))


@pytest.mark.parametrize("version", [4, 6])
def test_labels_before_a_packet_with_an_ethertype_inside(version: int) -> None:
    """A packet whose source address has the ethertype of IPv4 where an Ethernet frame would have it."""
    frame = MPLS + change(packet(version), 12, IPV4_TYPE)
    for kept in range(len(frame) - len(PAYLOAD), len(frame) + 1):
        decoder, result = decode(frame[:kept], wire=len(frame))
        assert (result, payload(decoder)) == (SEGMENT, PAYLOAD[: kept - len(frame) + len(PAYLOAD)])


def test_nesting_up_to_the_bound() -> None:
    attributes = b"\x04\0\x01\0" * 63 + struct.pack("<HH", 4 + len(packet()), 9)
    for frame, link in ((ISL * 6 + ETHERNET, 1), (b"\x02\0\0\0" + attributes, 239)):
        decoder, result = decode(frame + packet(), link)
        assert (result, payload(decoder)) == (SEGMENT, PAYLOAD)


def test_links_as_scapy_makes_them() -> None:
    """The headers above are by the hand that wrote the decoder; these are not."""
    pytest.importorskip("scapy")
    from scapy.contrib.mpls import MPLS as Label
    from scapy.contrib.mpls import EoMCW
    from scapy.layers.dot11 import Dot11, Dot11QoS, RadioTap
    from scapy.layers.l2 import LLC, CookedLinux, Dot1Q, Dot3, Ether
    from scapy.layers.l2 import SNAP as Snap
    from scapy.layers.ppp import HDLC, PPP, PPPoE
    from scapy.packet import Raw

    inside = Raw(packet())
    frames = [
        (1, Dot3() / LLC(ssap=0xAA, dsap=0xAA, ctrl=3) / Snap(code=0x0800) / inside),
        (1, Ether() / Dot1Q(vlan=5) / Dot1Q(vlan=6) / Dot1Q(vlan=7, type=0x0800) / inside),
        (1, Ether(type=0x8847) / Label(s=0) / Label(s=1) / inside),
        (1, Ether(type=0x8847) / Label(s=1) / EoMCW(seq=77) / Ether(type=0x0800) / inside),
        (1, Ether() / PPPoE(sessionid=3) / PPP(proto=0x0021) / inside),
        (50, HDLC() / PPP(proto=0x0021) / inside),
        (113, CookedLinux(proto=0x0800) / inside),
    ]
    for wifi in (Dot11(type=2, FCfield=1), Dot11(type=2, FCfield=3), Dot11(type=2) / Dot11QoS()):
        logical = LLC(ssap=0xAA, dsap=0xAA, ctrl=3) / Snap(code=0x0800) / inside
        if wifi.haslayer(Dot11QoS):
            wifi[Dot11].subtype = 8
        frames += [(105, wifi / logical), (127, RadioTap(present="TSFT+Flags+Rate") / wifi / logical)]
    for link, frame in frames:
        decoder, result = decode(bytes(frame), link)
        assert (result, payload(decoder)) == (SEGMENT, PAYLOAD), frame.summary()


def test_lengths_are_those_of_ip() -> None:
    """Ethernet fills short frames up; and a frame whose length a NIC has not yet set has that of its bytes."""
    decoder, _ = decode(packet() + b"padding", 101)
    assert (payload(decoder), decoder.segment.payload_length) == (PAYLOAD, len(PAYLOAD))
    decoder, _ = decode(change(packet(), 2, b"\0\0"), 101)
    assert (payload(decoder), decoder.segment.payload_length) == (PAYLOAD, len(PAYLOAD))
    decoder, _ = decode(change(packet(6), 4, b"\0\0"), 101)
    assert (payload(decoder), decoder.segment.payload_length) == (PAYLOAD, len(PAYLOAD))


@pytest.mark.parametrize("version", [4, 6])
def test_frames_cut_at_every_length(version: int) -> None:
    """What a snap length leaves: the stated length stays, nothing behind the captured bytes is read."""
    whole = packet(version)
    header = len(whole) - len(PAYLOAD)
    for length in range(len(whole)):
        decoder, result = decode(whole[:length], 101, wire=len(whole))
        if length < header:
            assert result in ("ip_truncated", "tcp_truncated"), length
        else:
            assert result == SEGMENT
            assert payload(decoder) == PAYLOAD[: length - header]
            assert decoder.segment.payload_length == len(PAYLOAD)


def test_tcp_options() -> None:
    conv = Conversation(link=101)
    conv.segment("client", ACK, PAYLOAD, options=bytes(range(1, 37)))
    decoder, result = decode(conv.frames[0][1], 101)
    assert (result, payload(decoder)) == (SEGMENT, PAYLOAD)
    decoder, result = decode(conv.frames[0][1][:60], 101, wire=2000)  # cut inside the options
    assert (result, payload(decoder), decoder.segment.payload_length) == (SEGMENT, b"", len(PAYLOAD))


EXTENSIONS = [
    ("hop-by-hop", 0, b"\x06\0" + bytes(6)),
    ("routing", 43, b"\x06\x01" + bytes(14)),
    ("destination", 60, b"\x06\0" + bytes(6)),
    ("authentication", 51, b"\x06\x04" + bytes(22)),
    ("mobility", 135, b"\x06\0" + bytes(6)),
    ("atomic fragment", 44, b"\x06\0\0\0" + b"\0\0\0\x09"),
    ("two", 0, b"\x3c\0" + bytes(6) + b"\x06\0" + bytes(6)),
]


@pytest.mark.parametrize(("kind", "extra"), [row[1:] for row in EXTENSIONS], ids=[row[0] for row in EXTENSIONS])
def test_extension_headers(kind: int, extra: bytes) -> None:
    whole = packet(6)
    frame = whole[:4] + struct.pack("!HB", len(whole) - 40 + len(extra), kind) + whole[7:40] + extra + whole[40:]
    decoder, result = decode(frame, 101)
    assert (result, payload(decoder)) == (SEGMENT, PAYLOAD)
    assert decode(frame[: 40 + len(extra) - 1], 101, wire=len(frame))[1] in ("ip_truncated", "tcp_truncated")


def test_extension_headers_without_end() -> None:
    whole = packet(6)
    extra = (b"\0\0" + bytes(6)) * 20
    frame = whole[:4] + struct.pack("!HB", len(extra), 0) + whole[7:40] + extra
    assert decode(frame, 101)[1] == "ip_malformed"


@pytest.mark.parametrize("version", [4, 6])
def test_fragments(version: int) -> None:
    """A fragment is handed on with all that its datagram is known by; the whole is decoded like a packet."""
    whole = packet(version)
    parts = fragment(whole, 16, identification=0x1234, link_bytes=0)
    keys = set()
    data = {}
    for part in parts:
        decoder, result = decode(part, 101)
        assert result == FRAGMENT
        keys.add(decoder.fragment_key())
        data[decoder.fragment_offset] = decoder.fragment_payload()
        assert decoder.fragment_more == (part is not parts[-1])
    (key,) = keys
    assert key[0] == version
    assert 0x1234 in key
    joined = b"".join(data[offset] for offset in sorted(data))
    assert decoder.decode_datagram(joined) == SEGMENT
    assert payload(decoder) == PAYLOAD
    assert DROPS[decoder.decode_datagram(joined[:10])] == "tcp_malformed"
    assert (decoder.datagram_segments, decoder.datagram_drops) == (1, 1)


def test_random_bytes() -> None:
    rng = random.Random(1)
    frames = [ETHERNET + packet(), IPV6 + packet(6), http_request()]
    rare = [(head(IPV4_TYPE) + packet(), link) for _, link, head, _ in RARE_LINKS]
    for i in range(10_000):
        link = rng.choice((0, 1, 12, 14, 101, 108, 113, 228, 229, 276, 1000))
        data = bytearray(rng.choice(frames))
        if i % 2:
            chosen, link = rng.choice(rare)
            data = bytearray(chosen)
        for _ in range(rng.randint(0, 6)):
            data[rng.randrange(len(data))] = rng.getrandbits(8)
        frame = bytes(data[: rng.randrange(len(data) + 1)])
        decoder, result = decode(frame, link, after=b"")
        if result == SEGMENT:
            segment = decoder.segment
            assert 2 <= segment.payload_start <= segment.payload_end <= 2 + len(frame)
            assert segment.payload_end - segment.payload_start <= segment.payload_length


def flipped(frame: bytes, at: int) -> bytes:
    return frame[:at] + bytes([frame[at] ^ 0x10]) + frame[at + 1 :]


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("size", [0, 1, 2, 21, 1460])
def test_checksums(version: int, size: int) -> None:
    """Off, all are believed. On, one wrong bit is a drop; a cut frame cannot be verified."""
    ends = (("10.1.2.3", 1234), ("10.4.5.6", 80)) if version == 4 else (("fd00::1:2", 1234), ("fd00::3", 80))
    conv = Conversation(*ends, link=101)
    conv.segment("client", ACK, b"\xff" * size)
    frame = conv.frames[0][1]
    tcp = 20 if version == 4 else 40
    for at in (*((8, 13) if version == 4 else (9, 25)), tcp + 1, tcp + 5, tcp + 16, *((tcp + 20,) if size else ())):
        assert decode(flipped(frame, at), 101)[1] == SEGMENT
        assert decode(flipped(frame, at), 101, verify_checksums=True)[1] == "bad_checksum"
    assert decode(frame, 101, verify_checksums=True)[1] == SEGMENT
    assert decode(MACS + (b"\x08\0" if version == 4 else b"\x86\xdd") + frame + bytes(6), verify_checksums=True)[1] == (
        SEGMENT
    )
    if size:
        assert decode(flipped(frame, tcp + 16)[:-1], 101, len(frame), verify_checksums=True)[1] == SEGMENT


def test_checksum_of_a_datagram() -> None:
    decoder = Decoder(verify_checksums=True)
    for frame, expected in ((packet(), SEGMENT), (flipped(packet(), 41), "bad_checksum")):
        block = Block(3)
        parts = fragment(frame, 24, link_bytes=0)
        block.lend(Buffer(b"".join(parts)))
        at = 0
        for i, part in enumerate(parts):
            block.add(at, len(part), len(part), 7, 101)
            at += len(part)
            assert decoder.decode(block, i) == FRAGMENT
        result = decoder.decode_datagram(frame[20:])
        assert (DROPS[result] or result) == expected
