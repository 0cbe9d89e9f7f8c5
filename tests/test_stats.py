"""The ledger's alarm: each equation is there, and whatever breaks one is named and ends in exit code 70."""

import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

import pytest
from http_capture.capture import run as run_module
from http_capture.capture.cli import main
from http_capture.capture.pipeline import Pipeline
from http_capture.capture.sink.null import Null
from http_capture.capture.stats import Share, merged
from line import DIALOGUES, Frames, Kept, make, speak
from traffic import Conversation, fragment, write_pcap


def finished(break_: Callable[[Pipeline], object] = lambda pipeline: None) -> Pipeline:
    conv = speak(Conversation(), DIALOGUES["keep-alive"])
    parts = [(timestamp_ns, part) for timestamp_ns, frame in conv.frames for part in fragment(frame, 512)]
    pipeline = make(Frames(parts))
    pipeline.run(lambda: False)
    pipeline.finish()
    break_(pipeline)
    return pipeline


def test_it_balances() -> None:
    ledger = finished().ledger()
    assert ledger.balanced
    assert ledger.imbalances == []
    assert ledger.as_json()["balanced"] is True
    assert ledger.as_text().endswith("balanced     yes")
    assert "exchanges    total 13, complete 13" in ledger.as_text()
    json.dumps(ledger.as_json())


def test_what_the_guard_found_is_in_the_text_of_a_live_run() -> None:
    ledger = finished().ledger()
    ledger.sections["guard"] = {"checks": 0, "repairs": 0, "faults": 2}
    assert "  guard        checks 0, faults 2\n" in ledger.as_text()


def add(path: str, by: int = 1) -> Callable[[Pipeline], None]:
    def change(pipeline: Pipeline) -> None:
        *way, name = path.split(".")
        at: Any = pipeline
        for part in way:
            at = getattr(at, part)
        if "[" in name:
            name, index = name[:-1].split("[")
            getattr(at, name)[int(index)] += by
        else:
            setattr(at, name, getattr(at, name) + by)

    return change


# What is counted once too often or too rarely, and what the ledger says of it first.
BROKEN = [
    ("loop.frames", "frames + datagrams = filtered + segments + fragments + drops"),
    ("loop.filtered", "frames + datagrams = filtered + segments + fragments + drops"),
    ("decoder.segments", "frames + datagrams = filtered + segments + fragments + drops"),
    ("decoder.drops[3]", "frames + datagrams = filtered + segments + fragments + drops"),
    ("source._stats.received", "frames read = frames of the files"),
    ("defragmenter.fragments", "fragments decoded = fragments reassembled"),
    ("defragmenter.fragments_used", "fragments = used + expired"),
    ("defragmenter.fragments_overlap", "fragments = used + expired"),
    ("defragmenter.datagrams", "datagrams = segments + fragments + drops"),
    ("decoder.datagram_segments", "datagrams = segments + fragments + drops"),
    ("decoder.datagram_fragments", "datagrams = segments + fragments + drops"),
    ("loop.copies.segments", "segments decoded = mirrored + tracked"),
    ("loop.shed", "segments decoded = mirrored + tracked + elsewhere + shed"),
    ("connections.segments", "segments decoded = mirrored + tracked"),
    ("connections.data", "segments = data + control"),
    ("connections.late", "segments = data + control"),
    ("connections.reassembly.payload_bytes", "payload bytes = delivered"),
    ("connections.reassembly.retransmitted_bytes", "payload bytes = delivered"),
    ("connections.reassembly.delivered_bytes", "payload bytes = delivered"),
    ("limits.head_bytes", "delivered bytes = head + body"),
    ("limits.skipped_bytes", "delivered bytes = head + body"),
    ("limits.requests", "requests = paired + only_request"),
    ("limits.responses", "responses = paired + only_response"),
    ("application.complete", "exchanges = complete + incomplete"),
    ("application.paired", "exchanges = complete + incomplete"),
    ("application.only_request", "exchanges = complete + incomplete"),
    ("application.over_rate", "records = exchanges - over_rate"),
    ("sink._stats.records", "records = exchanges - over_rate"),
    ("sink._stats.delivered", "records = delivered + undelivered + pending"),
    ("sink._stats.pending", "records = delivered + undelivered + pending"),
    ("connections.opened", "connections opened = closed"),
    ("connections.active", "nothing in flight"),
]


@pytest.mark.parametrize("by", [1, -1])
@pytest.mark.parametrize(("counter", "equation"), BROKEN, ids=[row[0] for row in BROKEN])
def test_each_counter_is_watched(counter: str, equation: str, by: int) -> None:
    ledger = finished(add(counter, by)).ledger()
    assert not ledger.balanced
    assert ledger.imbalances[0].startswith(equation) or any(line.startswith(equation) for line in ledger.imbalances)
    assert f"({'+' if '+1)' in ledger.as_text() else '-'}1)" in ledger.as_text()
    assert "NO: " in ledger.as_text()
    assert ledger.as_json()["imbalances"] == ledger.imbalances


def test_the_clock_of_workers_is_one() -> None:
    """Each of them counts when it is set: it is not set more often where there are more of them."""
    conv = speak(Conversation(), DIALOGUES["keep-alive"])
    conv.wait(-3600 * 1_000_000_000)
    for _ in range(20):
        conv.ack("client")
        conv.wait(100_000_000)
    shares = []
    for number in range(3):
        pipeline = make(Frames(conv.frames))
        pipeline.loop.share_with(3, number, 0x1234567890ABCDEF)
        pipeline.run(lambda: False)
        pipeline.finish()
        shares.append(Share(f"worker {number}", [pipeline.ledger().as_json()], True))
    source = pipeline.source.stats()
    ledger = merged(live=False, source=source, frames=source.received, shares=shares, workers={"count": 3})
    assert ledger.balanced, ledger.imbalances
    assert "clock_steps 1" in ledger.as_text()


def test_while_it_runs() -> None:
    """In the middle of a connection nothing is missing either, after each block."""
    conv = speak(Conversation(), DIALOGUES["pipelined"])
    seen: list[list[str]] = []
    pipeline = make(Frames(conv.frames, per_block=1))
    pipeline.run(lambda: False, lambda: seen.append(pipeline.ledger().imbalances))
    assert seen == [[]] * len(conv.frames)


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of whoever runs the tests: they have variables of their own."""
    for name in [name for name in os.environ if name.startswith("HTTP_CAPTURE_")]:
        monkeypatch.delenv(name)


class Forgetful(Null):
    """Loses one record, and does not know."""

    def send(self, key: bytes, value: bytes, headers: list[tuple[str, bytes]], timestamp_ms: int) -> None:
        if b"/three" not in value:
            super().send(key, value, headers, timestamp_ms)


class Twice(Kept):
    """Counts each record as delivered, but one twice."""

    def send(self, key: bytes, value: bytes, headers: list[tuple[str, bytes]], timestamp_ms: int) -> None:
        super().send(key, value, headers, timestamp_ms)
        self._stats.delivered += b"/three" in value


@pytest.mark.parametrize(
    ("sink", "named"),
    [
        (Forgetful, "records = exchanges - over_rate: 12 is not 13 (-1)"),
        (Twice, "records = delivered + undelivered + pending: 13 is not 14 (-1)"),
    ],
)
@pytest.mark.parametrize("options", [[], ["--quiet"], ["--json"]])
def test_the_program_says_so(
    sink: type, named: str, options: list[str], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Exit code 70 and one line that names the equation, however quiet the program is asked to be."""
    path = tmp_path / "a.pcap"
    write_pcap(path, speak(Conversation(), DIALOGUES["keep-alive"]).frames)
    monkeypatch.setattr(run_module, "open_sink", lambda *_, **__: sink())
    assert main(["--read", str(path), *options]) == 70
    out, err = capfd.readouterr()
    assert out == ""
    lines = [line for line in err.splitlines() if "does not balance" in line]
    assert len(lines) == 1
    assert named in lines[0]
    if options == ["--json"]:
        assert named in json.loads(err.splitlines()[-1])["imbalances"]


def test_a_sink_that_counts_what_it_loses_is_no_alarm(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    class Honest(Null):
        lost = 0

        def send(self, key: bytes, value: bytes, headers: list[tuple[str, bytes]], timestamp_ms: int) -> None:
            super().send(key, value, headers, timestamp_ms)
            self.lost += b"/three" in value

        def stats(self) -> Any:
            stats = super().stats()
            stats.delivered -= self.lost
            stats.undelivered = {"too_large": self.lost}
            return stats

    path = tmp_path / "a.pcap"
    write_pcap(path, speak(Conversation(), DIALOGUES["keep-alive"]).frames)
    monkeypatch.setattr(run_module, "open_sink", lambda *_, **__: Honest())
    assert main(["--read", str(path)]) == 74
    err = capfd.readouterr().err
    assert "1 records were not delivered: too_large 1" in err
    assert "balanced     yes" in err
