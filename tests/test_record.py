"""The types of the record and its JSON Schema: the schema is sound, strict, and says what the types say."""

import copy
import json

import jsonschema
import msgspec
import pytest
from golden.captures import CAPTURES
from golden.replay import replay
from http_capture.capture import record
from http_capture.capture.http.exchange import REASONS

SCHEMA = json.loads(record.json_schema_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


@pytest.fixture(scope="module")
def document(tmp_path_factory):
    """A record with as many fields as one can have."""
    sent, _ = replay(CAPTURES["redaction"](), tmp_path_factory.mktemp("record"))
    return json.loads(sent[0][1])


def changed(document, path, value):
    other = copy.deepcopy(document)
    place = other
    for name in path[:-1]:
        place = place[name]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return other


def test_the_schema_is_a_schema():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert SCHEMA["$id"].endswith(f":{record.SCHEMA}")


def test_every_type_of_the_schema_is_closed_and_used():
    text = json.dumps(SCHEMA)
    for name, kind in SCHEMA["$defs"].items():
        assert kind["additionalProperties"] is False, name
        assert f'"#/$defs/{name}"' in text, name


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("surprise",), 1),
        (("http", "surprise"), 1),
        (("http", "request", "surprise"), 1),
        (("http", "response", "body", "surprise"), 1),
        (("http_capture", "timing", "surprise"), 1),
        (("event", "id"), None),
        (("event", "id"), 1),
        (("event", "outcome"), "perhaps"),
        (("event", "duration"), "1"),
        (("event", "duration"), 1.5),
        (("@timestamp",), None),
        (("http",), None),
        (("http", "version"), "3"),
        (("http", "request", "headers", "x"), "no list"),
        (("http", "request", "headers", "x"), [1]),
        (("http", "request", "body", "bytes"), None),
        (("http", "request", "body", "encoding"), "hex"),
        (("http", "response", "status_code"), "200"),
        (("network", "transport"), "udp"),
        (("http_capture", "incomplete_reason"), "bored"),
        (("http_capture", "complete"), None),
        (("observer", "product"), "other"),
        (("url", "port"), "80"),
    ],
)
def test_what_is_no_record_is_refused_by_types_and_schema(document, path, value):
    VALIDATOR.validate(document)
    other = changed(document, path, value)
    with pytest.raises(jsonschema.ValidationError):
        VALIDATOR.validate(other)
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(json.dumps(other), type=record.Record, strict=True)


@pytest.mark.parametrize("path", [("url",), ("user_agent",), ("error",), ("http", "request"), ("http", "response")])
def test_parts_that_may_be_absent(document, path):
    other = copy.deepcopy(document)
    place = other
    for name in path[:-1]:
        place = place[name]
    place.pop(path[-1], None)
    VALIDATOR.validate(other)
    msgspec.json.decode(json.dumps(other), type=record.Record, strict=True)


def test_each_reason_of_the_pipeline_is_in_the_schema_and_has_its_words():
    reasons = set(REASONS) - {""}
    assert reasons == set(record.MESSAGES)
    assert reasons == set(record.IncompleteReason.__args__)
