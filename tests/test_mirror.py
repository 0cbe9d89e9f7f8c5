"""What the mirror has sent twice is read once; what TCP has sent twice is left to TCP."""

import pytest
from http_capture.capture.decode import SEGMENT, Decoder
from http_capture.capture.mirror import MirrorCopies
from http_capture.capture.source.block import Block, Buffer
from traffic import ACK, FIN, RST, SYN, Conversation

MS = 1_000_000
V6 = {"client": ("fd00::1", 40000), "server": ("fd00::2", 80)}


def copies(frames, window_ns=50 * MS):
    """Which of these (time, frame) are copies, in order."""
    decoder, mirror = Decoder(), MirrorCopies(window_ns)
    found = []
    for timestamp_ns, frame in frames:
        block = Block(1)
        block.lend(Buffer(frame))
        block.add(0, len(frame), len(frame), timestamp_ns, 1)
        assert decoder.decode(block, 0) == SEGMENT
        found.append(bool(mirror.is_copy(decoder.segment)))
    assert mirror.segments == sum(found)
    return found


def one(side="client", flags=ACK, payload=b"some bytes of payload", **options):
    conversation = Conversation(**options)
    conversation.segment(side, flags, payload)
    return conversation.frames[0][1]


def changed(frame, at, value):
    return frame[:at] + bytes(value) + frame[at + len(bytes(value)) :]


@pytest.mark.parametrize("apart_ns", [0, 1, MS, 50 * MS, -1, -50 * MS])
@pytest.mark.parametrize("options", [{}, V6], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("payload", [b"1", b"1234567", b"12345678", b"123456789", bytes(1460)])
def test_the_same_packet_again(payload, options, apart_ns):
    frame = one(payload=payload, **options)
    assert copies([(9000 * MS, frame), (9000 * MS + apart_ns, frame)]) == [False, True]


@pytest.mark.parametrize("apart_ns", [50 * MS + 1, -50 * MS - 1, 3_600_000 * MS])
def test_not_after_the_window(apart_ns):
    frame = one()
    assert copies([(9_000_000 * MS, frame), (9_000_000 * MS + apart_ns, frame)]) == [False, False]


def test_never_with_a_window_of_nothing():
    assert copies([(0, one()), (0, one())], 0) == [False, False]


def test_more_than_two():
    assert copies([(0, one()), (1, one()), (2, one())]) == [False, True, True]


def test_across_a_router():
    """Other link addresses, a smaller TTL with its checksum."""
    frame = one()
    assert copies([(0, frame), (1, bytes(12) + changed(frame, 22, b"\x3f")[12:])]) == [False, True]
    frame = one(**V6)
    assert copies([(0, frame), (1, changed(frame, 21, b"\x3f"))]) == [False, True]


# Offsets in an Ethernet frame with IPv4 without options.
DIFFERENT = [
    ("IP id", 18, b"\x12\x34"), ("source", 26, b"\x09"), ("destination", 33, b"\x09"), ("source port", 34, b"\x09"),
    ("destination port", 37, b"\x09"), ("sequence number", 38, b"\x09"), ("acknowledgement", 45, b"\x09"),
    ("flags", 47, b"\x19"), ("checksum", 50, b"\x12\x34"), ("first byte", 54, b"S"),
]  # fmt: skip


@pytest.mark.parametrize(("at", "value"), [row[1:] for row in DIFFERENT], ids=[row[0] for row in DIFFERENT])
def test_not_where_anything_differs(at, value):
    frame = one()
    other = changed(frame, at, value)
    assert other != frame
    assert copies([(0, frame), (1, other), (2, frame), (3, other)]) == [False, False, True, True]


def test_not_the_other_direction_or_another_way():
    assert copies([(0, one("client")), (1, one("server"))]) == [False, False]
    assert copies([(0, one()), (1, one(vlan=[5])), (2, one(vlan=[6])), (3, one(vlan=[5]))]) == [False] * 3 + [True]


def test_what_tcp_sends_again_has_another_id():
    conversation = Conversation()
    index = conversation.segment("client", ACK, b"x" * 100)
    conversation.retransmit(index)
    assert copies([(0, frame) for _, frame in conversation.frames]) == [False, False]


@pytest.mark.parametrize("options", [{}, V6], ids=["IPv4", "IPv6"])
def test_empty_acknowledgements_are_not_judged(options):
    frame = one(payload=b"", **options)
    assert copies([(0, frame), (0, frame), (0, frame)]) == [False] * 3
    for flags in (SYN, FIN | ACK, RST):
        frame = one(flags=flags, payload=b"", **options)
        assert copies([(0, frame), (0, frame)]) == [False, True]
