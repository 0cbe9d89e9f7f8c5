"""Replays a capture through all stages in this process; the fields that tell one run from another are fixed."""

import pathlib

import msgspec
from golden.captures import Capture
from http_capture.capture.pipeline import Pipeline
from http_capture.capture.sink import SinkStats
from http_capture.capture.source import open_source
from http_capture.capture.stats import Ledger
from http_capture.config.settings import Settings
from traffic import write_pcap

Sent = tuple[bytes, bytes, list[tuple[str, bytes]], int]  # key, value, headers, timestamp_ms


class Collected:
    """A sink that keeps what it is given."""

    def __init__(self) -> None:
        self.records: list[Sent] = []

    def send(self, key: bytes, value: bytes, headers: list[tuple[str, bytes]], timestamp_ms: int) -> None:
        self.records.append((key, value, headers, timestamp_ms))

    def poll(self) -> None:
        pass

    def flush(self, timeout_seconds: float) -> int:
        return 0

    def stats(self) -> SinkStats:
        return SinkStats(len(self.records), sum(len(record[1]) for record in self.records), len(self.records))

    def close(self) -> None:
        pass


def replay(capture: Capture, folder: pathlib.Path) -> tuple[list[Sent], Ledger]:
    """The records in the order in which they are sent, and the ledger. Writes a file into the folder."""
    path = folder / "capture.pcap"
    write_pcap(path, capture.frames, snaplen=capture.snaplen, link=capture.link, nanoseconds=capture.nanoseconds)
    return replay_file(path, capture.settings)


def replay_file(path, tables=None):
    """The same for a file that exists."""
    settings = msgspec.convert({"source": {"read": [str(path)]}, **(tables or {})}, Settings)
    sink = Collected()
    source = open_source(settings.source)
    pipeline = Pipeline(settings, source, sink, hostname="HOST", version="VERSION", instance="INSTANCE")
    pipeline.run(lambda: False)
    assert pipeline.finish() == 0
    return sink.records, pipeline.ledger()
