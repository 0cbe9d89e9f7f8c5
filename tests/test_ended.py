"""Connections that have ended are found by what comes late of them while they are remembered, and no others are."""

import pytest
from http_capture.capture.decode import Segment
from http_capture.capture.ended import FIRST_SIZE, Ended
from hypothesis import given
from hypothesis import strategies as st

V4, V6 = 4, 6
ENDS = [
    (0, 0x0A000001, 40000), (0, 0x0A000001, 40001), (0, 0x0A000002, 40000), (0, 0xFFFFFFFF, 65535),
    (0xFD00 << 48, 1, 40000), (0xFD00 << 48, 2, 40000), (0xFD00 << 48 | 1, 1, 40000),
    ((1 << 64) - 1, (1 << 64) - 1, 80),
]  # fmt: skip


def key(number):
    """Addresses, ports, version and path of a connection; each differs from any other in one of them at least."""
    return (0, 0x0A000000 + number // 60000), 1 + number % 60000, (0, 0xC0A80001), 80, V4, 0


def remember(ended, key, ended_ns, firsts=(1, 2)):
    (a_high, a_low), a_port, (b_high, b_low), b_port, version, path = key
    return ended.remember(a_high, a_low, a_port, b_high, b_low, b_port, version, path, *firsts, ended_ns)


def segment_of(key, backward=False):
    one, one_port, two, two_port, version, path = key
    if backward:
        one, one_port, two, two_port = two, two_port, one, one_port
    segment = Segment()
    segment.source_high, segment.source_low = one
    segment.destination_high, segment.destination_low = two
    segment.source_port, segment.destination_port = one_port, two_port
    segment.ip_version, segment.path = version, path
    return segment


def all_of(keys, found):
    """Whether all of them, or none of them, are found; with what each way says of a wrong one."""
    return all(found(segment_of(key, backward)) for key in keys for backward in (False, True))


@pytest.mark.parametrize("a", ENDS)
@pytest.mark.parametrize("b", ENDS)
def test_both_directions(a, b):
    """The sender's first byte is that of its own end, whichever way it was remembered."""
    key = (a[:2], a[2], b[:2], b[2], V4 if a[0] == b[0] == 0 else V6, 0)
    ended = Ended()
    assert remember(ended, key, 5, (11, 22))
    assert ended.find(segment_of(key))
    assert ended.ended_ns == 5
    assert ended.first == 11
    assert ended.find(segment_of(key, backward=True))
    assert ended.first == (22 if a != b else 11)


@pytest.mark.parametrize("at", range(6))
def test_each_part_of_the_key_counts(at):
    """Of IPv4 and of IPv6: both addresses in all their bits, both ports, the version, the path."""
    for version, widths in ((V4, (0, 32)), (V6, (64, 64))):
        key = [(0, 0x0A000001), 40000, (0, 0x0A000002), 80, version, 0]
        ended = Ended()
        remember(ended, key, 1)
        others = []
        if at in (0, 2):
            for half in (0, 1):
                for bit in range(widths[half]):
                    parts = list(key[at])
                    parts[half] ^= 1 << bit
                    others.append([*key[:at], tuple(parts), *key[at + 1 :]])
        elif at in (1, 3):
            others = [[*key[:at], key[at] ^ 1 << bit, *key[at + 1 :]] for bit in range(16)]
        elif at == 4:
            others = [[*key[:4], V4 + V6 - version, 0]]
        else:
            others = [[*key[:5], 1 << bit] for bit in range(64)]
        assert all_of(others, lambda segment: not ended.find(segment))  # noqa: B023
        assert all_of([key], ended.find)


def test_the_last_end_counts():
    """Ports that are used again: what has ended last is known, for as long as that is remembered."""
    ended = Ended()
    assert remember(ended, key(1), 10, (1, 2))
    assert remember(ended, key(2), 20)
    assert not remember(ended, key(1), 30, (3, 4))
    assert ended.count == 2
    assert ended.drop_before(29) == 1  # what the first one left behind is not the second
    assert ended.find(segment_of(key(1)))
    assert (ended.first, ended.ended_ns) == (3, 30)
    assert not ended.find(segment_of(key(2)))
    assert ended.drop_before(30) == 1
    assert ended.count == 0
    assert not ended.drop_oldest()


@pytest.mark.parametrize("again", [True, False])
def test_what_was_left_behind_holds_nothing_up(again):
    """A RST that was noticed late makes a connection older than one that was remembered before it."""
    ended = Ended()
    remember(ended, key(1), 30)
    remember(ended, key(2), 10)
    if again:
        remember(ended, key(1), 40)
    else:
        assert ended.find(segment_of(key(1)))
        ended.forget()
    assert ended.drop_before(20) == 1
    assert not ended.find(segment_of(key(2)))
    assert ended.count == again


@pytest.mark.parametrize("count", [FIRST_SIZE - 1, FIRST_SIZE, FIRST_SIZE + 1, 5 * FIRST_SIZE])
def test_many(count):
    """More than it has room for at first, and after they have gone, more again."""
    ended = Ended()
    for turn in range(3):
        keys = [key(turn * count + number) for number in range(count)]
        for at, each in enumerate(keys):
            assert remember(ended, each, at)
        assert ended.count == count
        assert all_of(keys, ended.find)
        assert not ended.find(segment_of(key((turn + 1) * count)))
        assert ended.drop_before(count // 2) == count // 2 + 1
        assert all_of(keys[count // 2 + 1 :], ended.find)
        assert all_of(keys[: count // 2 + 1], lambda segment: not ended.find(segment))
        while ended.drop_oldest():
            pass
        assert ended.count == 0


@pytest.mark.parametrize("ended_ns", [0, 7])
def test_one_that_ends_again_and_again_takes_no_room(ended_ns):
    """Also where its times are all the same, as in a capture without them."""
    ended = Ended()
    remember(ended, key(0), ended_ns)
    for number in range(20 * FIRST_SIZE):
        if number % 3 == 0:
            assert ended.find(segment_of(key(1))) == (number > 0)
            if number:
                ended.forget()
        remember(ended, key(1), ended_ns)
    assert ended.count == 2
    assert all_of([key(0), key(1)], ended.find)
    assert ended.room() == FIRST_SIZE


@given(
    st.lists(
        st.tuples(st.sampled_from("RRRRFXOB"), st.integers(0, 40), st.booleans(), st.integers(0, 3)), max_size=300
    ),
)
def test_as_a_dict_would_do_it(steps):
    ended, known, now_ns = Ended(), {}, 0
    for number in range(FIRST_SIZE - 8):  # so that the ring is full after a few steps
        remember(ended, key(number % 41), 0)
        known.pop(number % 41, None)
        known[number % 41] = (0, (1, 2))
    for what, number, backward, more_ns in steps:
        now_ns += more_ns
        if what == "R":
            firsts = (now_ns, now_ns + 1)
            assert remember(ended, key(number), now_ns, firsts) == (number not in known)
            known.pop(number, None)
            known[number] = (now_ns, firsts)
        elif what in "FX":
            assert ended.find(segment_of(key(number), backward)) == (number in known)
            if number in known:
                assert (ended.ended_ns, ended.first) == (known[number][0], known[number][1][backward])
                if what == "X":
                    ended.forget()
                    del known[number]
        elif what == "O":
            assert ended.drop_oldest() == bool(known)
            if known:
                del known[next(iter(known))]
        else:
            gone = [number for number, (ended_ns, _) in known.items() if ended_ns <= now_ns - 5]
            assert ended.drop_before(now_ns - 5) == len(gone)
            for number in gone:
                del known[number]
        assert ended.count == len(known)
    for number in range(41):
        assert ended.find(segment_of(key(number))) == (number in known)
