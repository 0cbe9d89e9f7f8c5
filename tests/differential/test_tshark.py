"""Generated traffic, read by http-capture and by tshark: see compare.py. `make differential` does more of it."""

import os
import pathlib
import shutil
from collections import Counter

import pytest
from differential.compare import RULES, Difference, compare, differences, generate, sent

SEEDS = range(7)
Readings = list[tuple[list[Difference], list[Difference], int]]


@pytest.fixture(scope="module")
def readings(tmp_path_factory: pytest.TempPathFactory) -> Readings:
    if shutil.which("tshark") is None:
        if os.environ.get("CI"):
            pytest.fail("tshark is not installed")
        pytest.skip("tshark is not installed")
    folder: pathlib.Path = tmp_path_factory.mktemp("differential")
    return [differences(seed, folder) for seed in SEEDS]


@pytest.mark.slow
def test_http_capture_reads_what_was_sent(readings: Readings) -> None:
    assert [each for mine, _, _ in readings for each in mine] == []


@pytest.mark.slow
def test_tshark_differs_only_where_a_rule_says_why(readings: Readings) -> None:
    assert [each for _, other, _ in readings for each in other if not each.rule] == []


@pytest.mark.slow
def test_the_two_mostly_agree(readings: Readings) -> None:
    """Else the rules would explain too much, or tshark would not have read it."""
    messages = sum(count for _, _, count in readings)
    differ = {(each.message, seed) for seed, (_, other, _) in enumerate(readings) for each in other}
    assert messages > 1000
    assert len(differ) < messages / 5


@pytest.mark.slow
def test_each_rule_is_needed(readings: Readings) -> None:
    used = Counter(each.rule for _, other, _ in readings for each in other)
    assert set(used) == set(RULES)


def test_the_traffic_has_all_kinds() -> None:
    kinds = {kind for seed in SEEDS for spoken in generate(seed).exchanges.values() for kind in spoken.kinds}
    for kind in ("pipelined", "reordered", "retransmitted", "tiny pieces", "until the end", "informational", "bodiless",
                 "method HEAD", "status 204", "status 304", "version 1.0"):  # fmt: skip
        assert kind in kinds
    for side in ("request", "response"):
        assert {f"{side} {kind}" for kind in ("gzip", "deflate", "br", "chunked", "trailers")} <= kinds


def test_a_message_that_is_read_in_another_way_is_a_difference() -> None:
    """The comparison itself: another body, a wrong pair and a lost message are seen."""
    traffic = generate(0, 4)
    truth = sent(traffic)
    name = next(iter(traffic.exchanges))
    for wrong in ({"body": b"?"}, {"pair": "another"}, {"headers": []}):
        reading = {**truth, f"{name} response": [{**truth[f"{name} response"][0], **wrong}]}
        assert [each.what for each in compare(truth, reading, traffic, use_rules=False)] == list(wrong)
    reading = {message: reads for message, reads in truth.items() if message != f"{name} request"}
    assert [each.what for each in compare(truth, reading, traffic, use_rules=False)] == ["count"]
