"""Golden captures: the records of each are exactly those of golden/NAME.jsonl, in the order in which they were sent.

HTTP_CAPTURE_GOLDEN=write pytest tests/test_golden.py    writes the files anew; they are to be reviewed with git diff
"""

import json
import os
import pathlib

import jsonschema
import msgspec
import pytest
from golden.captures import CAPTURES
from http_capture.capture.pipeline import Pipeline
from http_capture.capture.record import Record, json_schema_text
from http_capture.capture.sink import SinkStats
from http_capture.capture.source import open_source
from http_capture.config.settings import Settings
from traffic import write_pcap

GOLDEN = pathlib.Path(__file__).parent / "golden"
WRITE = os.environ.get("HTTP_CAPTURE_GOLDEN") == "write"
VALIDATOR = jsonschema.Draft202012Validator(json.loads(json_schema_text()))


class Collected:
    """A sink that keeps what it is given."""

    def __init__(self):
        self.records = []

    def send(self, key, value, headers, timestamp_ms):
        self.records.append((key, value, headers, timestamp_ms))

    def poll(self):
        pass

    def flush(self, timeout_seconds):
        return 0

    def stats(self):
        return SinkStats(len(self.records), sum(len(record[1]) for record in self.records), len(self.records))

    def close(self):
        pass


def replay(capture, folder):
    """The records of a capture as they are sent, and the ledger."""
    path = folder / "capture.pcap"
    write_pcap(path, capture.frames, snaplen=capture.snaplen, link=capture.link, nanoseconds=capture.nanoseconds)
    tables = {"source": {"read": [str(path)]}, **capture.settings}
    chosen = msgspec.convert(tables, Settings)
    sink = Collected()
    pipeline = Pipeline(chosen, open_source(chosen.source), sink, hostname="HOST", version="VERSION", instance="INSTANCE")
    pipeline.run(lambda: False)
    assert pipeline.finish() == 0
    return sink.records, pipeline.ledger()


def as_text(values):
    """The file: each record as an indented JSON document with sorted keys, an empty line between two."""
    documents = [json.dumps(json.loads(value), indent=2, sort_keys=True, ensure_ascii=False) for value in values]
    return "\n\n".join(documents) + "\n" if documents else ""


def counter(ledger, name):
    number = ledger.sections
    for part in name.split("."):
        number = number[part]
    return number


@pytest.mark.parametrize("name", CAPTURES)
def test_records_are_the_expected_ones(name, tmp_path):
    capture = CAPTURES[name]()
    sent, ledger = replay(capture, tmp_path)
    assert ledger.imbalances == []
    assert {wanted: counter(ledger, wanted) for wanted in capture.ledger} == dict(capture.ledger)
    text = as_text([value for _, value, _, _ in sent])
    expected = GOLDEN / f"{name}.jsonl"
    if WRITE:
        expected.write_text(text, encoding="utf-8")
    assert expected.exists(), "no expected records: HTTP_CAPTURE_GOLDEN=write pytest tests/test_golden.py"
    assert text == expected.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", CAPTURES)
def test_records_are_what_the_types_and_the_schema_say(name, tmp_path):
    sent, _ = replay(CAPTURES[name](), tmp_path)
    for _, value, headers, timestamp_ms in sent:
        record = msgspec.json.decode(value, type=Record, strict=True)
        document = json.loads(value)
        VALIDATOR.validate(document)
        assert msgspec.json.decode(msgspec.json.encode(record)) == document
        assert ("id", record.event.id.encode()) in headers
        assert record.http_capture.complete == (record.http_capture.incomplete_reason is None) == (record.error is None)
        assert record.timestamp == record.event.start <= record.event.end
        assert abs(msgspec.convert(record.timestamp, type=__import__("datetime").datetime).timestamp() * 1000 - timestamp_ms) < 1


def test_every_expected_file_has_its_capture():
    assert sorted(path.stem for path in GOLDEN.glob("*.jsonl")) == sorted(CAPTURES)


def test_every_capture_says_what_is_right():
    assert [name for name, capture in CAPTURES.items() if not capture.__doc__] == []


@pytest.mark.parametrize("name", CAPTURES)
def test_a_capture_replayed_twice_gives_the_same_ids(name, tmp_path):
    one, _ = replay(CAPTURES[name](), tmp_path)
    two, _ = replay(CAPTURES[name](), tmp_path)
    assert one == two
    ids = [dict(headers)["id"] for _, _, headers, _ in one]
    assert len(set(ids)) == len(ids)
