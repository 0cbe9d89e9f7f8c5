"""What runs through a tunnel is found in it; what is no tunnel is not taken for one; nothing makes the decoder fail."""

import ipaddress
import random
import struct
from collections.abc import Callable

import pytest
from http_capture.capture.decode import DROPS, FIRST_DROP, MAX_TUNNELS, SEGMENT, Decoder
from http_capture.capture.source.block import Block, Buffer
from http_capture.capture.tunnel import KINDS
from traffic import ACK, Conversation

PAYLOAD = b"payload of the segment"
MACS = bytes(12)
Wrap = Callable[[bytes, int], bytes]  # an IP packet and its version -> the tunnel's IP packet


def packet(version: int = 4) -> bytes:
    ends = (("10.1.2.3", 1234), ("10.4.5.6", 80)) if version == 4 else (("2001::1:2", 1234), ("fd00::3", 80))
    conversation = Conversation(*ends, client_isn=99, server_isn=199, link=101)
    conversation.segment("client", ACK, PAYLOAD)
    return conversation.frames[0][1]


def ether(inner: bytes, version: int, *tags: int) -> bytes:
    words = b"".join(struct.pack("!HH", 0x8100, tag) for tag in tags)
    return MACS + words + (b"\x08\0" if version == 4 else b"\x86\xdd") + inner


def ip4(protocol: int, payload: bytes, source: str = "192.0.2.1", destination: str = "192.0.2.2") -> bytes:
    ends = ipaddress.ip_address(source).packed + ipaddress.ip_address(destination).packed
    return struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 7, 0, 64, protocol, 0) + ends + payload


def ip6(protocol: int, payload: bytes) -> bytes:
    ends = ipaddress.ip_address("2001:db8::1").packed + ipaddress.ip_address("2001:db8::2").packed
    return struct.pack("!IHBB", 6 << 28, len(payload), protocol, 64) + ends + payload


def udp(payload: bytes, destination: int, source: int = 50000) -> bytes:
    return ip4(17, struct.pack("!HHHH", source, destination, 8 + len(payload), 0) + payload)


def gre(flags: int, protocol: int, rest: bytes) -> bytes:
    return ip4(47, struct.pack("!HH", flags, protocol) + rest)


def ethertype(version: int) -> int:
    return 0x0800 if version == 4 else 0x86DD


def vxlan(inner: bytes, version: int, number: int = 0x123456, port: int = 4789, *tags: int) -> bytes:
    return udp(struct.pack("!II", 0x08000000, number << 8) + ether(inner, version, *tags), port)


def geneve(inner: bytes, version: int, port: int = 6081) -> bytes:
    return udp(struct.pack("!BBHI", 2, 0x40, 0x6558, 77 << 8) + b"OPTIONS!" + ether(inner, version), port)


def gtp(inner: bytes, flags: int = 0x30, extra: bytes = b"", port: int = 2152) -> bytes:
    return udp(struct.pack("!BBHI", flags, 255, len(extra) + len(inner), 0xCAFE) + extra + inner, port, port)


def ayiya(inner: bytes, version: int, port: int = 5072) -> bytes:
    head = struct.pack("!BBBBI", 0x41, 0x51, 0x21, 41 if version == 6 else 4, 1_700_000_000)
    return udp(head + bytes(16) + bytes(20) + inner, port)


def erspan(version: int, session: int) -> bytes:
    return struct.pack("!HH", version << 12 | 5, session)


# name, the packet around an inner one, the kind, the id, whether both directions share it.
TUNNELS: list[tuple[str, Wrap, str, int, bool]] = [
    ("IP in IPv4", lambda p, v: ip4(4 if v == 4 else 41, p), "", -1, False),
    ("IP in IPv6", lambda p, v: ip6(4 if v == 4 else 41, p), "", -1, False),
    ("EtherIP", lambda p, v: ip4(97, b"\x30\0" + ether(p, v)), "etherip", -1, False),
    ("GRE", lambda p, v: gre(0, ethertype(v), p), "gre", -1, True),
    ("GRE, IPv6 outside", lambda p, v: ip6(47, struct.pack("!HH", 0, ethertype(v)) + p), "gre", -1, True),
    ("GRE with checksum", lambda p, v: gre(0x8000, ethertype(v), bytes(4) + p), "gre", -1, True),
    ("GRE with key", lambda p, v: gre(0x2000, ethertype(v), b"\0\0\1\2" + p), "gre", 258, True),
    ("GRE with all", lambda p, v: gre(0xB000, ethertype(v), bytes(4) + b"\0\0\1\2\0\0\0\x09" + p), "gre", 258, True),
    ("GRE, Ethernet", lambda p, v: gre(0, 0x6558, ether(p, v)), "gre", -1, True),
    ("GRE, VLAN", lambda p, v: gre(0, 0x8100, struct.pack("!HH", 9, ethertype(v)) + p), "gre", -1, True),
    ("GRE, MPLS", lambda p, v: gre(0, 0x8847, b"\0\1\1\x40" + p), "gre", -1, True),
    ("GRE, PPP", lambda p, v: gre(0, 0x880B, b"\xff\3\0\x21" + p), "gre", -1, True),
    ("WCCP 1", lambda p, v: gre(0, 0x883E, p), "gre", -1, True),
    ("WCCP 2", lambda p, v: gre(0, 0x883E, b"\0\0\0\1" + p), "gre", -1, True),
    ("PPTP", lambda p, v: gre(0x3081, 0x880B, struct.pack("!HHII", 9, 4, 1, 1) + b"\0\x21" + p), "pptp", 4, False),
    ("ERSPAN I", lambda p, v: gre(0, 0x88BE, ether(p, v)), "erspan", -1, False),
    ("ERSPAN II", lambda p, v: gre(0x1000, 0x88BE, bytes(4) + erspan(1, 1023) + bytes(4) + ether(p, v)), "erspan", 1023,
     True),
    ("ERSPAN III", lambda p, v: gre(0x1000, 0x22EB, bytes(4) + erspan(2, 0xFC03) + bytes(8) + ether(p, v)), "erspan", 3,
     True),
    ("ERSPAN III, platform", lambda p, v: gre(
        0x1000, 0x22EB, bytes(4) + erspan(2, 3) + bytes(6) + b"\0\1" + bytes(8) + ether(p, v)), "erspan", 3, True),
    ("ERSPAN III, IP", lambda p, v: gre(
        0x1000, 0x22EB, bytes(4) + erspan(2, 3) + bytes(6) + b"\x08\0" + p), "erspan", 3, True),
    ("MPLS in IP", lambda p, v: ip4(137, b"\0\1\0\x40\0\2\1\x40" + p), "mpls", -1, False),
    ("MPLS over UDP", lambda p, v: udp(b"\0\1\1\x40" + p, 6635), "mpls", -1, False),
    ("GRE over UDP", lambda p, v: udp(struct.pack("!HHI", 0x2000, ethertype(v), 5) + p, 4754), "gre", 5, True),
    ("VXLAN", lambda p, v: vxlan(p, v), "vxlan", 0x123456, True),
    ("VXLAN of Linux", lambda p, v: vxlan(p, v, 9, 8472), "vxlan", 9, True),
    ("VXLAN, tagged", lambda p, v: vxlan(p, v, 9, 4789, 44), "vxlan", 9, True),
    ("VXLAN, group policy", lambda p, v: udp(b"\x88\0\0\x07\0\0\x09\0" + ether(p, v), 4789), "vxlan", 9, True),
    ("VXLAN, any port", lambda p, v: vxlan(p, v, 9, 12345, 44), "vxlan", 9, True),
    ("VXLAN-GPE, IP", lambda p, v: udp(bytes((12, 0, 0, 1 if v == 4 else 2)) + b"\0\0\x09\0" + p, 4790), "vxlan-gpe", 9,
     True),
    ("VXLAN-GPE, Ethernet", lambda p, v: udp(b"\x0c\0\0\3\0\0\x09\0" + ether(p, v), 4790), "vxlan-gpe", 9, True),
    ("VXLAN-GPE, MPLS", lambda p, v: udp(b"\x0c\0\0\5\0\0\x09\0" + b"\0\1\1\x40" + p, 4790), "vxlan-gpe", 9, True),
    ("Geneve", geneve, "geneve", 77, True),
    ("Geneve, IP", lambda p, v: udp(struct.pack("!BBHI", 0, 0, ethertype(v), 77 << 8) + p, 6081), "geneve", 77, True),
    ("Geneve, any port", lambda p, v: geneve(p, v, 7000), "geneve", 77, True),
    ("GTP-U", lambda p, v: gtp(p), "gtp-u", 0xCAFE, False),
    ("GTP-U, sequence", lambda p, v: gtp(p, 0x32, bytes(4)), "gtp-u", 0xCAFE, False),
    ("GTP-U, extensions", lambda p, v: gtp(
        p, 0x34, b"\0\0\0\x85\1\0\0\xc0\2\0\0\0\0\0\0\0"), "gtp-u", 0xCAFE, False),
    ("GTP-U, any port", lambda p, v: gtp(p, port=40000), "gtp-u", 0xCAFE, False),
    ("AYIYA", ayiya, "ayiya", -1, False),
    ("AYIYA, any port", lambda p, v: ayiya(p, v, 777), "ayiya", -1, False),
]  # fmt: skip
TEREDO: list[tuple[str, Wrap, str, int, bool]] = [
    ("Teredo", lambda p, v: udp(p, 3544), "teredo", -1, False),
    ("Teredo, origin", lambda p, v: udp(bytes(8) + p, 40001, 3544), "teredo", -1, False),
    ("Teredo, authentication", lambda p, v: udp(b"\0\1\2\3" + bytes(14) + p, 3544), "teredo", -1, False),
    ("Teredo, both", lambda p, v: udp(b"\0\1\0\0" + bytes(9) + bytes(8) + p, 3544), "teredo", -1, False),
    ("Teredo, any port", lambda p, v: udp(p, 40001), "teredo", -1, False),
]
CASES = [(row, version) for row in TUNNELS for version in (4, 6)] + [(row, 6) for row in TEREDO]
IDS = [f"{row[0]}, IPv{version} inside" for row, version in CASES]


def decode(
    frame: bytes, wire: int | None = None, decoder: Decoder | None = None, link: int = 1
) -> tuple[Decoder, str | int]:
    block = Block(1)
    block.lend(Buffer(b"xx" + frame + b"\xff" * 100))
    block.add(2, len(frame), len(frame) if wire is None else wire, 7, link)
    decoder = decoder or Decoder()
    result = decoder.decode(block, 0)
    return decoder, DROPS[result] or result


def payload(decoder: Decoder) -> bytes:
    segment = decoder.segment
    return bytes(segment.buffer.view[segment.payload_start : segment.payload_end])


@pytest.mark.parametrize(("row", "version"), CASES, ids=IDS)
def test_what_is_inside_is_found(row, version):
    _, wrap, kind, number, shared = row
    around = wrap(packet(version), version)
    outside = around[0] >> 4
    decoder, result = decode(ether(around, outside))
    assert result == SEGMENT
    assert payload(decoder) == PAYLOAD
    segment = decoder.segment
    assert (segment.ip_version, segment.source_port, segment.destination_port) == (version, 1234, 80)
    assert segment.payload_length == len(PAYLOAD)
    assert segment.depth == 1
    outer = segment.outers[0]
    by_versions = {(4, 4): "ipip", (4, 6): "4in6", (6, 4): "6in4", (6, 6): "6in6"}
    assert KINDS[outer.kind] == (kind or by_versions[version, outside])
    assert (outer.id, outer.shared or number < 0) == (number, shared or number < 0)
    assert outer.ip_version == outside
    assert (outer.source_low, outer.destination_low) == ((0xC0000201, 0xC0000202) if outside == 4 else (1, 2))
    assert segment.path != 0


@pytest.mark.parametrize(("row", "version"), CASES, ids=IDS)
def test_a_frame_cut_anywhere_is_a_drop_or_a_cut_segment(row, version):
    """What is there of the payload is read, and the true length is known from the headers."""
    around = row[1](packet(version), version)
    whole = ether(around, around[0] >> 4)
    for length in range(len(whole)):
        decoder, result = decode(whole[:length], len(whole))
        if result == SEGMENT:
            assert PAYLOAD.startswith(payload(decoder))
            assert decoder.segment.payload_length == len(PAYLOAD)
        else:
            assert DROPS.index(result) >= FIRST_DROP


def test_a_sound_frame_with_any_byte_changed_is_taken():
    """Nothing raises, and what is called a segment lies in the frame."""
    rng = random.Random(5)
    decoder = Decoder()
    for (_, wrap, *_), version in CASES:
        whole = bytearray(ether(wrap(packet(version), version), 4))
        whole[12:14] = b"\x08\0" if whole[14] >> 4 == 4 else b"\x86\xdd"
        for at in range(12, len(whole)):
            old = whole[at]
            for value in (0, 255, old ^ 1 << rng.randrange(8)):
                whole[at] = value
                _, result = decode(bytes(whole), decoder=decoder)
                if result == SEGMENT:
                    segment = decoder.segment
                    assert 2 <= segment.payload_start <= segment.payload_end <= 2 + len(whole)
            whole[at] = old
    assert decoder.segments > 1000


@pytest.mark.parametrize(("inner", "version"), CASES, ids=IDS)
def test_any_in_any(inner, version):
    for (_, wrap, kind, number, _), outer_version in CASES[::3]:
        through = inner[1](packet(version), version)
        if through[0] >> 4 != outer_version or kind == "teredo":  # that carries Teredo addresses only
            continue
        decoder, result = decode(wrap(through, outer_version), link=101)
        assert result == SEGMENT
        assert payload(decoder) == PAYLOAD
        assert decoder.segment.depth == 2
        assert (decoder.segment.outers[0].id, decoder.segment.outers[1].id) == (number, inner[3])


def test_the_depth_is_bounded():
    whole = packet()
    for depth in range(1, MAX_TUNNELS + 2):
        whole = vxlan(whole, 4, depth)
        decoder, result = decode(ether(whole, 4))
        if depth <= MAX_TUNNELS:
            assert (result, payload(decoder), decoder.segment.depth) == (SEGMENT, PAYLOAD, depth)
            assert [outer.id for outer in decoder.segment.outers[:depth]] == list(range(depth, 0, -1))
        else:
            assert result == "tunnels_too_deep"


NOT_ONE = [
    ("UDP of something else", udp(b"\x12\x34\1\0\0\1\0\0\0\0\0\0\7example\3com\0\0\1\0\1", 53), "not_tcp"),
    ("UDP without payload", udp(b"", 4789), "not_tcp"),
    ("UDP whose length is too small", ip4(17, b"\0\1\x12\xb5\0\7\0\0" + bytes(60)), "not_tcp"),
    ("UDP whose length is too large", ip4(17, b"\0\1\x12\xb5\1\0\0\0" + bytes(60)), "not_tcp"),
    ("something else on the port of VXLAN", udp(bytes(60), 4789), "not_tcp"),
    ("VXLAN without a network", udp(bytes(8) + ether(packet(), 4), 4789), "not_tcp"),
    ("VXLAN on any port, bytes behind it", udp(b"\x08\0\0\0\0\0\1\0" + ether(packet(), 4) + bytes(65), 7), "not_tcp"),
    ("VXLAN on any port, too short", udp(b"\x08\0\0\0\0\0\1\0" + ether(packet(), 4)[:-1], 7), "not_tcp"),
    ("GTP-U signalling", udp(b"\x32\x01\0\4\0\0\0\0\0\0\0\0", 2152), "not_tcp"),
    ("GTP-U on any port, a byte behind it", udp(struct.pack("!BBHI", 48, 255, 63, 1) + packet() + b"x", 7), "not_tcp"),
    ("GTP-U, an extension of no length", gtp(packet(), 0x34, b"\0\0\0\x85\0\0\0\0"), "not_tcp"),
    ("Teredo without a Teredo address", udp(packet(6).replace(b"\x20\1", b"\x20\2"), 3544), "not_tcp"),
    ("AYIYA, another operation", udp(ayiya(packet(6), 6)[28:30] + b"\2" + ayiya(packet(6), 6)[31:], 5072), "not_tcp"),
    ("a TCP segment in UDP without a header", udp(packet(), 4444), "not_tcp"),
    ("GRE keep-alive", gre(0, 0, b""), "not_tcp"),
    ("PPTP acknowledgement", gre(0x2081, 0x880B, struct.pack("!HHI", 0, 4, 1)), "not_tcp"),
    ("GRE with source routing", gre(0x4000, 0x0800, bytes(8) + packet()), "tunnel_unsupported"),
    ("GRE version 2", gre(2, 0x0800, packet()), "tunnel_unsupported"),
    ("GRE of PPTP without a key", gre(1, 0x880B, packet()), "tunnel_unsupported"),
    ("ERSPAN, unknown version", gre(0x1000, 0x88BE, bytes(12) + ether(packet(), 4)), "tunnel_unsupported"),
    ("EtherIP 2", ip4(97, b"\x20\0" + ether(packet(), 4)), "tunnel_unsupported"),
    ("GRE cut", gre(0x2000, 0x0800, b""), "tunnel_truncated"),
    ("GRE with an ethertype that is not IP", gre(0, 0x0806, bytes(28)), "not_ip"),
    ("IP in IP that is no IP", ip4(4, bytes(40)), "ip_malformed"),
    ("ICMP", ip4(1, bytes(40)), "not_tcp"),
    ("ESP", ip4(50, bytes(40)), "not_tcp"),
]


@pytest.mark.parametrize(("whole", "reason"), [row[1:] for row in NOT_ONE], ids=[row[0] for row in NOT_ONE])
def test_what_is_no_tunnel(whole, reason):
    assert decode(ether(whole, 4))[1] == reason


def test_random_datagrams_are_no_tunnels():
    rng = random.Random(6)
    decoder = Decoder()
    for _ in range(20_000):
        decode(ether(udp(rng.randbytes(rng.randrange(200)), rng.randrange(65536)), 4), decoder=decoder)
    assert decoder.segments == decoder.fragments == 0


class TestPath:
    def path(self, whole: bytes, decoder: Decoder, link: int = 1) -> int:
        assert decode(whole, decoder=decoder, link=link)[1] == SEGMENT
        return decoder.segment.path

    def test_of_what_has_no_tag_and_no_tunnel(self):
        assert self.path(ether(packet(), 4), Decoder()) == 0

    def test_each_way_is_another(self):
        decoder = Decoder()
        ways = [
            ether(packet(), 4), ether(packet(), 4, 5), ether(packet(), 4, 6), ether(packet(), 4, 5, 6),
            ether(packet(), 4, 6, 5), ether(packet(), 4, 5, 6, 7), ether(vxlan(packet(), 4, 5), 4),
            ether(vxlan(packet(), 4, 6), 4), ether(vxlan(packet(), 4, 5), 4, 5), ether(geneve(packet(), 4), 4),
            ether(vxlan(vxlan(packet(), 4, 5), 4, 5), 4), ether(vxlan(packet(), 4, 5, 4789, 5), 4),
            ether(gre(0, 0x0800, packet()), 4), ether(gre(0x2000, 0x0800, bytes(4) + packet()), 4),
        ]  # fmt: skip
        paths = [self.path(way, decoder) for way in ways]
        assert len(set(paths)) == len(ways)
        assert paths == [self.path(way, decoder) for way in ways]

    def test_does_not_depend_on_what_each_direction_has_for_itself(self):
        decoder = Decoder()
        one = gtp(packet())
        two = ip4(17, gtp(packet())[20:].replace(b"\xca\xfe", b"\xba\xbe"), "192.0.2.9", "192.0.2.8")
        assert one[28:] != two[28:]
        assert self.path(ether(one, 4), decoder) == self.path(ether(two, 4), decoder)

    def test_a_priority_tag_is_no_vlan(self):
        assert self.path(ether(packet(), 4, 0), Decoder()) == 0

    def test_settings(self):
        both = ether(vxlan(packet(), 4), 4, 5)
        assert self.path(both, Decoder(vlan_in_key=False, tunnel_in_key=False)) == 0
        decoder = Decoder(vlan_in_key=False)
        assert self.path(both, decoder) == self.path(ether(vxlan(packet(), 4), 4), decoder) != 0
        decoder = Decoder(tunnel_in_key=False)
        assert self.path(both, decoder) == self.path(ether(packet(), 4, 5), decoder) != 0

    def test_is_not_to_be_foreseen(self):
        assert self.path(ether(packet(), 4, 5), Decoder()) != self.path(ether(packet(), 4, 5), Decoder())


def test_frames_of_scapy():
    """The same tunnels as another implementation writes them."""
    from scapy.contrib.erspan import ERSPAN_II, ERSPAN_III
    from scapy.contrib.geneve import GENEVE
    from scapy.contrib.gtp import GTP_U_Header
    from scapy.contrib.mpls import MPLS
    from scapy.layers.inet import IP, TCP, UDP
    from scapy.layers.inet6 import IPv6
    from scapy.layers.l2 import GRE, Ether
    from scapy.layers.vxlan import VXLAN

    inside = IP(src="10.1.2.3", dst="10.4.5.6") / TCP(sport=1234, dport=80, flags="A") / PAYLOAD
    out = Ether(dst="02:00:00:00:00:02", src="02:00:00:00:00:01") / IP(src="192.0.2.1", dst="192.0.2.2")
    bridged = Ether(dst="02:00:00:00:00:04", src="02:00:00:00:00:03") / inside
    cases = [
        ("ipip", -1, out / inside),
        ("6in4", -1, out / (IPv6(src="fd00::1", dst="fd00::2") / TCP(sport=1234, dport=80, flags="A") / PAYLOAD)),
        ("gre", 7, out / GRE(key_present=1, key=7) / inside),
        ("gre", -1, out / GRE(proto=0x6558) / bridged),
        ("gre", -1, out / GRE(proto=0x8847) / MPLS(label=9, s=1) / inside),
        ("erspan", 100, out / GRE(seqnum_present=1) / ERSPAN_II(session_id=100) / bridged),
        ("erspan", 100, out / GRE(seqnum_present=1) / ERSPAN_III(session_id=100) / bridged),
        ("vxlan", 42, out / UDP(sport=5, dport=4789) / VXLAN(vni=42, flags=8) / bridged),
        ("geneve", 42, out / UDP(sport=5, dport=6081) / GENEVE(vni=42) / bridged),
        ("gtp-u", 42, out / UDP(sport=2152, dport=2152) / GTP_U_Header(teid=42, gtp_type=255) / inside),
    ]
    for kind, number, frame in cases:
        decoder, result = decode(bytes(frame))
        assert result == SEGMENT, kind
        assert payload(decoder) == PAYLOAD
        outer = decoder.segment.outers[0]
        assert (KINDS[outer.kind], outer.id, decoder.segment.depth) == (kind, number, 1)
