"""Any frame becomes a segment, a fragment or a drop with its reason, and is counted once."""

import random
import struct

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


def decode(frame: bytes, link: int = 1, wire: int | None = None, before: bytes = b"xx") -> tuple[Decoder, str | int]:
    """The decoder after this frame, which lies in a buffer between other bytes; and SEGMENT, FRAGMENT or the reason."""
    block = Block(1)
    block.lend(Buffer(before + frame + b"\xff" * 100))
    block.add(len(before), len(frame), len(frame) if wire is None else wire, 7, link)
    decoder = Decoder()
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
    ("link_unsupported", packet(), 105),
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
    for _ in range(5000):
        data = bytearray(rng.choice(frames))
        for _ in range(rng.randint(0, 6)):
            data[rng.randrange(len(data))] = rng.getrandbits(8)
        frame = bytes(data[: rng.randrange(len(data) + 1)])
        decoder, result = decode(frame, rng.choice((0, 1, 12, 14, 101, 108, 113, 228, 229, 276, 1000)))
        if result == SEGMENT:
            segment = decoder.segment
            assert 2 <= segment.payload_start <= segment.payload_end <= 2 + len(frame)
            assert segment.payload_end - segment.payload_start <= segment.payload_length
