"""capture/defrag.py: IP fragments to datagrams."""

import random
import time

import pytest
from http_capture.capture.defrag import DATAGRAM_OVERHEAD_BYTES, PIECE_OVERHEAD_BYTES, Defragmenter
from http_capture.config.settings import DefragSettings
from hypothesis import given, settings
from hypothesis import strategies as st

V4 = (4, 0x0A000001, 0x0A000002, 6, 7, 0)
V6 = (6, 1 << 64 | 1, 1 << 64 | 2, 6, 7, 0)
SECOND = 1_000_000_000
pytestmark = pytest.mark.once

Fragment = tuple[int, bool, bytes]


def defragmenter(**limits: float) -> Defragmenter:
    return Defragmenter(DefragSettings(**limits))  # type: ignore[arg-type]


def counters(defrag: Defragmenter) -> dict[str, int]:
    """Those that are not 0."""
    names = ("used", "expired", "evicted", "duplicate", "overlap", "invalid")
    found = {name: getattr(defrag, f"fragments_{name}") for name in names} | {"pending": defrag.pending}
    assert defrag.fragments == sum(found.values())
    assert (defrag.bytes_held == 0) == (not defrag._datagrams)
    return {name: value for name, value in found.items() if value}


def cut(data: bytes, sizes: list[int]) -> list[Fragment]:
    """Fragments of these sizes in units of 8 bytes; the last one takes the rest."""
    fragments = []
    at = 0
    for size in sizes:
        if at + 8 * size >= len(data):
            break
        fragments.append((at, True, data[at : at + 8 * size]))
        at += 8 * size
    return [*fragments, (at, False, data[at:])]


def units(text: str) -> bytes:
    """Eight bytes for each letter."""
    return b"".join(letter.encode() * 8 for letter in text)


@pytest.mark.parametrize("key", [V4, V6])
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_order_any_duplication(key: tuple[int, ...], data: st.DataObject) -> None:
    payload = data.draw(st.binary(min_size=9, max_size=200))
    fragments = cut(payload, data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=25)))
    extra = data.draw(st.lists(st.sampled_from(fragments), max_size=10))
    order = data.draw(st.permutations(fragments + extra))
    defrag = defragmenter()
    whole = []
    for i, (offset, more, piece) in enumerate(order):
        got = defrag.add(key, offset, more, memoryview(piece), i)
        counters(defrag)
        if got is not None:
            whole.append(got)
    assert whole
    assert set(whole) == {payload}
    assert defrag.datagrams == len(whole)
    assert defrag.fragments_used == len(fragments) * len(whole)
    assert defrag.fragments_overlap == defrag.fragments_invalid == defrag.fragments_trimmed == 0


@settings(max_examples=500, deadline=None)
@given(
    fragments=st.lists(
        st.tuples(st.integers(0, 9), st.integers(1, 8), st.sampled_from([True, True, False]), st.sampled_from("abc")),
        max_size=40,
    )
)
def test_overlap_ipv4_against_a_model_byte_by_byte(fragments: list[tuple[int, int, bool, str]]) -> None:
    defrag = defragmenter()
    have: dict[int, int] = {}
    end: int | None = None
    for start, size, more, letter in fragments:
        offset, data = 8 * start, units(letter * size)
        stop = offset + len(data)
        expected = None
        if offset == 0 and not more:
            expected = data
        elif (end is None and (more or stop > max(have, default=-1))) or (end is not None and stop <= end):
            new = {at: data[at - offset] for at in range(offset, stop) if at not in have}
            if new and (more or end in (None, stop)):
                have |= new
                end = end if more else stop
            if len(have) == end:
                expected = bytes(have[at] for at in range(end))
                have, end = {}, None
        assert defrag.add(V4, offset, more, data, 0) == expected
        counters(defrag)


def test_interleaved_datagrams() -> None:
    defrag = defragmenter()
    first, second = units("abc"), units("xyz")
    assert defrag.add(V4, 0, True, first[:8], 0) is None
    assert defrag.add((*V4[:4], 8, 0), 0, True, second[:8], 0) is None
    assert defrag.add(V4, 8, False, first[8:], 0) == first
    assert defrag.add((*V4[:4], 8, 0), 8, False, second[8:], 0) == second
    assert counters(defrag) == {"used": 4}


def test_the_payload_is_copied() -> None:
    defrag = defragmenter()
    buffer = bytearray(units("a"))
    defrag.add(V4, 0, True, memoryview(buffer), 0)
    buffer[:] = units("z")
    assert defrag.add(V4, 8, False, b"b", 0) == units("a") + b"b"


def test_a_fragment_that_is_a_whole_datagram_leaves_others_alone() -> None:
    defrag = defragmenter()
    defrag.add(V6, 0, True, units("a"), 0)
    assert defrag.add(V6, 0, False, b"atomic", 0) == b"atomic"
    assert counters(defrag) == {"used": 1, "pending": 1}
    assert defrag.add(V6, 8, False, b"b", 0) == units("a") + b"b"


A, B, BC, E = (0, 1, "a"), (1, 1, "b"), (1, 1, "bc"), (4, 0, "e")
AB, ABC, C_LAST = (0, 1, "ab"), (0, 1, "abc"), (2, 0, "c")

# Fragments as (offset in units, MF, letters), the datagram, the counters.
OVERLAPS_V4 = [
    pytest.param([AB, AB, C_LAST], "abc", {"used": 2, "duplicate": 1}, id="copy"),
    pytest.param([(0, 1, "abcd"), BC, E], "abcde", {"used": 2, "duplicate": 1}, id="part of one, same"),
    pytest.param([AB, (2, 1, "cd"), BC, E], "abcde", {"used": 3, "duplicate": 1}, id="part of two, same"),
    pytest.param([AB, (0, 1, "xy"), C_LAST], "abc", {"used": 2, "overlap": 1}, id="covered, differs"),
    pytest.param([ABC, (1, 1, "x"), (3, 0, "d")], "abcd", {"used": 2, "overlap": 1}, id="part of one, differs"),
    pytest.param([AB, (1, 0, "xc")], "abc", {"used": 2}, id="cut in front"),
    pytest.param([(1, 0, "bc"), (0, 1, "ax")], "abc", {"used": 2}, id="cut behind"),
    pytest.param([AB, (4, 0, "ef"), (1, 1, "xcdx")], "abcdef", {"used": 3}, id="cut on both sides"),
    pytest.param([B, (3, 1, "d"), (0, 1, "axcxe"), (5, 0, "f")], "abcdef", {"used": 4}, id="around"),
    pytest.param([B, (3, 0, "d"), (0, 1, "axcx")], "abcd", {"used": 3}, id="around, to the end"),
    pytest.param([C_LAST, (2, 1, "xy"), AB], "abc", {"used": 2, "overlap": 1}, id="beyond the end"),
    pytest.param([C_LAST, (1, 0, "x"), (3, 0, "x"), AB], "abc", {"used": 2, "overlap": 2}, id="other ends"),
    pytest.param([(3, 1, "d"), (1, 0, "b"), ABC, E], "abcde", {"used": 3, "overlap": 1}, id="end before what is there"),
    pytest.param([C_LAST, C_LAST, AB], "abc", {"used": 2, "duplicate": 1}, id="end, copy"),
]


@pytest.mark.parametrize(("fragments", "whole", "expected"), OVERLAPS_V4)
def test_overlap_ipv4_what_came_first_stays(
    fragments: list[tuple[int, int, str]], whole: str, expected: dict[str, int]
) -> None:
    defrag = defragmenter()
    got = None
    for offset, more, letters in fragments:
        assert got is None
        got = defrag.add(V4, 8 * offset, bool(more), units(letters), 0)
        counters(defrag)
    assert got == units(whole)
    assert counters(defrag) == expected


def test_trimmed_is_counted_beside() -> None:
    defrag = defragmenter()
    defrag.add(V4, 0, True, units("ab"), 0)
    defrag.add(V4, 8, True, units("xc"), 0)
    assert (defrag.fragments_trimmed, counters(defrag)) == (1, {"pending": 2})


OVERLAPS_V6 = [
    pytest.param([AB, (0, 1, "xy")], id="covered, differs"),
    pytest.param([ABC, B], id="part of one, same"),
    pytest.param([AB, BC], id="in front"),
    pytest.param([BC, AB], id="behind"),
    pytest.param([B, ABC], id="around"),
    pytest.param([A, B, AB], id="two, exactly"),
    pytest.param([C_LAST, (3, 1, "d")], id="beyond the end"),
    pytest.param([C_LAST, (3, 0, "d")], id="second end"),
    pytest.param([(3, 1, "d"), (1, 0, "b")], id="end before what is there"),
    pytest.param([AB, (0, 1, "xb")], id="copy, but for one unit"),
    pytest.param([BC, (1, 0, "bc")], id="copy, but the last one"),
]


@pytest.mark.parametrize("fragments", OVERLAPS_V6)
def test_overlap_ipv6_discards_the_datagram(fragments: list[tuple[int, int, str]]) -> None:
    defrag = defragmenter()
    for offset, more, letters in fragments:
        assert defrag.add(V6, 8 * offset, bool(more), units(letters), 0) is None
    assert counters(defrag) == {"overlap": len(fragments)}
    for offset, more, letters in [(0, 1, "abc"), (3, 1, "d"), (4, 0, "e")]:  # later ones, until the time-out
        assert defrag.add(V6, 8 * offset, bool(more), units(letters), 30 * SECOND) is None
    assert counters(defrag) == {"overlap": len(fragments) + 3}
    assert defrag.bytes_held == DATAGRAM_OVERHEAD_BYTES
    defrag.add(V6, 0, True, units("a"), 31 * SECOND)
    assert defrag.add(V6, 8, False, units("b"), 31 * SECOND) == units("ab")
    assert counters(defrag) == {"overlap": len(fragments) + 3, "used": 2}


def test_copy_in_ipv6_does_no_harm() -> None:
    defrag = defragmenter()
    for _ in range(3):
        assert defrag.add(V6, 8, False, units("b"), 0) is None
    assert defrag.add(V6, 0, True, units("a"), 0) == units("ab")
    assert counters(defrag) == {"used": 2, "duplicate": 2}


@pytest.mark.parametrize(
    ("offset", "more", "size"),
    [
        pytest.param(0, True, 0, id="empty"),
        pytest.param(8, False, 0, id="empty and last"),
        pytest.param(0, True, 12, id="not units of 8 bytes"),
        pytest.param(4, True, 8, id="offset not in units"),
        pytest.param(-8, True, 8, id="before the start"),
        pytest.param(65528, True, 8, id="beyond 65535"),
        pytest.param(65528, False, 8, id="beyond 65535, last"),
        pytest.param(65520, False, 1000, id="far beyond 65535"),
    ],
)
@pytest.mark.parametrize("key", [V4, V6])
def test_invalid(key: tuple[int, ...], offset: int, more: bool, size: int) -> None:
    defrag = defragmenter()
    assert defrag.add(key, offset, more, bytes(size), 0) is None
    assert counters(defrag) == {"invalid": 1}


def test_the_longest_datagram() -> None:
    defrag = defragmenter()
    assert defrag.add(V4, 65528, False, bytes(7), 0) is None
    assert defrag.add(V4, 0, True, bytes(65528), 0) == bytes(65535)


def test_expiry_by_the_time_of_the_frames() -> None:
    defrag = defragmenter(timeout_seconds=10)
    defrag.add(V4, 0, True, units("a"), 100 * SECOND)
    defrag.add((*V4, 1), 0, True, units("a"), 105 * SECOND)
    defrag.add(V4, 8, True, units("b"), 109 * SECOND)  # does not lengthen it
    defrag.tick(110 * SECOND)
    assert counters(defrag) == {"pending": 3}
    defrag.tick(110 * SECOND + 1)
    assert counters(defrag) == {"expired": 2, "pending": 1}
    defrag.tick(1000 * SECOND)
    assert counters(defrag) == {"expired": 3}


def test_an_old_datagram_is_not_completed_even_without_tick() -> None:
    defrag = defragmenter(timeout_seconds=10)
    defrag.add(V4, 0, True, units("a"), 0)
    assert defrag.add(V4, 8, False, units("b"), 11 * SECOND) is None
    assert counters(defrag) == {"expired": 1, "pending": 1}


def test_time_that_jumps_back_expires_too() -> None:
    defrag = defragmenter(timeout_seconds=10)
    defrag.add(V4, 0, True, units("a"), 1000 * SECOND)
    defrag.tick(995 * SECOND)
    assert counters(defrag) == {"pending": 1}
    defrag.tick(0)
    assert counters(defrag) == {"expired": 1}


def test_the_oldest_datagram_is_evicted_over_the_number() -> None:
    defrag = defragmenter(max_datagrams=2)
    for number in range(3):
        defrag.add((*V4, number), 0, True, units("a"), number)
    assert counters(defrag) == {"evicted": 1, "pending": 2}
    assert defrag.add((*V4, 1), 8, False, b"b", 5) == units("a") + b"b"
    assert defrag.add((*V4, 0), 8, False, b"b", 5) is None


def test_the_oldest_datagram_is_evicted_over_the_memory() -> None:
    one = 800 + PIECE_OVERHEAD_BYTES + DATAGRAM_OVERHEAD_BYTES
    defrag = defragmenter(max_bytes=3 * one)
    for number in range(3):
        defrag.add((*V4, number), 0, True, bytes(800), number)
    assert (defrag.bytes_held, counters(defrag)) == (3 * one, {"pending": 3})
    defrag.add((*V4, 2), 800, True, bytes(8), 3)
    assert counters(defrag) == {"evicted": 1, "pending": 3}
    assert defrag.bytes_held <= 3 * one
    assert defrag.add((*V4, 2), 808, False, b"z", 4) == bytes(808) + b"z"


def test_a_datagram_larger_than_the_memory_is_evicted_itself() -> None:
    defrag = defragmenter(max_bytes=1000)
    defrag.add(V4, 0, True, bytes(2000), 0)
    assert (defrag.bytes_held, counters(defrag)) == (0, {"evicted": 1})


@pytest.mark.alone
@pytest.mark.parametrize("key", [V4, V6])
def test_as_many_tiny_fragments_as_there_can_be_in_reverse(key: tuple[int, ...]) -> None:
    payload = random.Random(4).randbytes(65535)
    fragments = cut(payload, [1] * 8192)
    assert len(fragments) == 8192
    defrag = defragmenter()
    begun = time.perf_counter()
    for offset, more, piece in fragments[:0:-1]:
        assert defrag.add(key, offset, more, piece, 0) is None
    assert defrag.bytes_held < 1 << 20
    assert defrag.add(key, *fragments[0], 0) == payload
    assert time.perf_counter() - begun < 1.0
    assert counters(defrag) == {"used": 8192}


@pytest.mark.alone
def test_a_comb_and_fragments_over_it() -> None:
    defrag = defragmenter()
    begun = time.perf_counter()
    for offset in range(0, 65520, 16):
        defrag.add(V4, offset, True, b"12345678", 0)
    for offset in range(0, 60000, 8):
        defrag.add(V4, offset, True, bytes(1480), 0)
    assert time.perf_counter() - begun < 3.0
    assert counters(defrag)["overlap"] > 3000


@pytest.mark.parametrize("seed", range(4))
def test_the_sum_is_right_under_random_adds(seed: int) -> None:
    choose = random.Random(seed)
    defrag = defragmenter(max_datagrams=20, max_bytes=40_000, timeout_seconds=2)
    now = 0
    whole = 0
    for _ in range(5_000):
        now += choose.randrange(-SECOND // 100, SECOND // 10)
        key = (choose.choice((4, 6)), choose.randrange(30))
        size = choose.choice((0, 5, 8, 8, 8, 16, 16, 24, 1480))
        offset = choose.choice((0, 8, 16, 24, 32, 40, 1480, 65528, 3))
        letter = choose.choice((b"a", b"a", b"b"))
        whole += defrag.add(key, offset, choose.random() < 0.7, letter * size, now) is not None
        if choose.random() < 0.1:
            defrag.tick(now)
        counters(defrag)
        assert len(defrag._datagrams) <= 20
        assert defrag.bytes_held <= 40_000
        assert defrag.bytes_held == sum(one.held for one in defrag._datagrams.values())
        assert defrag.pending == sum(one.fragments for one in defrag._datagrams.values())
    assert whole == defrag.datagrams > 0
    assert min(counters(defrag).get(name, 0) for name in ("used", "expired", "evicted", "duplicate", "overlap")) > 0
