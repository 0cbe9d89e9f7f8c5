"""Golden captures: the records of each are exactly those of golden/NAME.jsonl, in the order in which they were sent.

HTTP_CAPTURE_GOLDEN=write pytest tests/test_golden.py    writes the files anew; they are to be reviewed with git diff
"""

import functools
import json
import os
import pathlib
import tempfile
from datetime import datetime

import jsonschema
import msgspec
import pytest
from golden.captures import CAPTURES
from golden.replay import replay
from http_capture.capture.record import Record, json_schema_text

GOLDEN = pathlib.Path(__file__).parent / "golden"
WRITE = os.environ.get("HTTP_CAPTURE_GOLDEN") == "write"
VALIDATOR = jsonschema.Draft202012Validator(json.loads(json_schema_text()))


@functools.cache
def replayed(name):
    with tempfile.TemporaryDirectory() as folder:
        return replay(CAPTURES[name](), pathlib.Path(folder))


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
def test_the_records_are_the_expected_ones(name):
    sent, _ = replayed(name)
    text = as_text([value for _, value, _, _ in sent])
    expected = GOLDEN / f"{name}.jsonl"
    if WRITE:
        expected.write_text(text, encoding="utf-8")
    assert expected.exists(), "no expected records: HTTP_CAPTURE_GOLDEN=write pytest tests/test_golden.py"
    assert text == expected.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", CAPTURES)
def test_the_ledger_balances_and_counts_what_happened(name):
    _, ledger = replayed(name)
    wanted = CAPTURES[name]().ledger
    assert ledger.imbalances == []
    assert {key: counter(ledger, key) for key in wanted} == wanted


@pytest.mark.parametrize("name", CAPTURES)
def test_the_records_are_what_the_types_and_the_schema_say(name):
    for _, value, headers, timestamp_ms in replayed(name)[0]:
        record = msgspec.json.decode(value, type=Record, strict=True)
        document = json.loads(value)
        VALIDATOR.validate(document)
        assert json.loads(msgspec.json.encode(record)) == document
        assert record.event.id.encode() == dict(headers)["id"]
        assert record.http_capture.complete == (record.http_capture.incomplete_reason is None) == (record.error is None)
        assert record.timestamp == record.event.start
        start, end = datetime.fromisoformat(record.event.start), datetime.fromisoformat(record.event.end)
        assert int(start.timestamp() * 1000) == timestamp_ms
        assert abs((end - start).total_seconds() * 1e9 - record.event.duration) < 1000


@pytest.mark.parametrize("name", CAPTURES)
def test_a_capture_replayed_twice_gives_the_same_bytes(name, tmp_path):
    again, _ = replay(CAPTURES[name](), tmp_path)
    assert again == replayed(name)[0]


def test_no_two_exchanges_of_a_capture_have_one_id():
    for name in CAPTURES:
        if name == "inside_and_outside":  # the same exchange, seen on several ways
            continue
        ids = [dict(headers)["id"] for _, _, headers, _ in replayed(name)[0]]
        assert len(set(ids)) == len(ids), name


def test_every_expected_file_has_its_capture():
    assert sorted(path.stem for path in GOLDEN.glob("*.jsonl")) == sorted(CAPTURES)


def test_every_capture_says_what_is_right():
    assert [name for name, capture in CAPTURES.items() if not capture.__doc__] == []
