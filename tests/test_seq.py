"""Arithmetic that wraps. Its C form: test_octets.py, and the stream that uses it."""

import pytest
from http_capture.capture import seq
from line import DIALOGUES, run, speak
from traffic import Conversation

LAST = (1 << 32) - 1


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (0, 0, 0),
        (1, 0, 1),
        (0, 1, -1),
        (0, LAST, 1),
        (LAST, 0, -1),
        (5, LAST - 4, 10),
        (LAST - 4, 5, -10),
        (1 << 31, 0, -(1 << 31)),  # as far ahead as behind: counts as behind
        ((1 << 31) - 1, 0, (1 << 31) - 1),
        (0, (1 << 31) - 1, -((1 << 31) - 1)),
        (0, (1 << 31) + 1, (1 << 31) - 1),
        (LAST, LAST, 0),
    ],
)
def test_difference(a: int, b: int, expected: int) -> None:
    assert seq.difference(a, b) == expected


@pytest.mark.parametrize(
    ("a", "n", "expected"),
    [
        (0, 0, 0),
        (LAST, 1, 0),
        (0, -1, LAST),
        (LAST, LAST, LAST - 1),
        (5, -10, LAST - 4),
        (LAST - 4, 10, 5),
        (7, 1 << 32, 7),
    ],
)
def test_advance(a: int, n: int, expected: int) -> None:
    assert seq.advance(a, n) == expected


@pytest.mark.parametrize("a", [0, 1, (1 << 31) - 1, 1 << 31, LAST - 1, LAST])
@pytest.mark.parametrize("n", [0, 1, 1460, (1 << 31) - 1, -1, -(1 << 31)])
def test_they_undo_each_other(a: int, n: int) -> None:
    assert seq.difference(seq.advance(a, n), a) == n


@pytest.mark.parametrize("isn", [LAST - 2, LAST - 1, LAST, 0, (1 << 31) - 2, (1 << 31) - 1, 1 << 31])
def test_a_stream_over_the_wrap(isn: int) -> None:
    """As compiled: the SYN, the first byte, or the middle is at 2^32-1, 0, 2^31."""
    conv = Conversation(client_isn=isn, server_isn=isn - 30 & LAST, mss=7)
    records = run(speak(conv, DIALOGUES["pipelined"]).frames).records
    assert [record["http_capture"]["complete"] for record in records] == [True] * 6
    assert [record["http_capture"]["gap_bytes"] for record in records] == [0] * 6
