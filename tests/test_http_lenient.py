"""HTTP as it is sent: what is read of messages that RFC 9112 does not allow, and that the record says so.

Each row: the bytes, and what the record says: (status, body, why it is not complete, anomalies).
"""

import os
import random
import time
from typing import get_args

import pytest
from http_capture.capture.http.message import ANOMALIES
from http_capture.capture.octets import controls
from http_capture.capture.record import Anomaly
from hypothesis import given, settings
from hypothesis import strategies as st
from line import Dialogue, Json, comparables, run, speak
from mutation import damage_dialogue, pieces
from traffic import Conversation, http_request, http_response

COMPILED = os.environ.get("HTTP_CAPTURE_TESTED") == "compiled"
Row = tuple[bytes, int | None, str, str | None, str]

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKS = b"4\r\nbody\r\n0\r\n\r\n"
TE = b"Transfer-Encoding: chunked\r\n"


def with_coding(line: bytes, body: bytes = CHUNKS) -> bytes:
    return OK + line + b"\r\n\r\n" + body


def with_chunks(body: bytes) -> bytes:
    return OK + TE + b"\r\n" + body


def with_length(*values: bytes, body: bytes = b"body") -> bytes:
    return OK + b"".join(b"Content-Length: " + value + b"\r\n" for value in values) + b"\r\n" + body


RESPONSES: dict[str, Row] = {
    "sound": (with_length(b"4"), 200, "body", None, ""),
    "sound chunks": (with_chunks(CHUNKS), 200, "body", None, ""),
    "tab, UTF-8, no blank": (
        OK + b"X:\ta\tb\r\nContent-Length:4\r\nY: \xc3\xa9\r\n\r\nbody", 200, "body", None, ""),
    # lines of the head
    "bare LF": (b"HTTP/1.1 200 OK\nContent-Length: 4\n\nbody", 200, "body", None, "bare_lf"),
    "one bare LF and a tab": (OK + b"X:\ta\nContent-Length: 4\r\n\r\nbody", 200, "body", None, "bare_lf"),
    "one bare LF and a CR": (OK + b"X: a\rb\nContent-Length: 4\r\n\r\nbody", 200, "body", None,
                             "bare_lf control_in_head"),
    "the empty line is a bare LF": (OK + b"Content-Length: 4\r\n\nbody", 200, "body", None, "bare_lf"),
    "NUL": (OK + b"X: a\0b\r\nContent-Length: 4\r\n\r\nbody", 200, "body", None, "nul_in_head"),
    "NUL in names and values": (
        with_coding(b"Trans\0fer-Encoding: chu\0nked"), 200, "body", None, "nul_in_head"),
    "a line of NUL hides no field": (OK + b"X: a\r\n\0\r\nContent-Length: 4\r\n\r\nbody", 200, "body", None,
                                     "nul_in_head field_malformed"),
    "VT, DEL": (OK + b"X: \x0b\x7f\r\nContent-Length: 4\r\n\r\nbody", 200, "body", None, "control_in_head"),
    "fold": (OK + b"X: a\r\n b\r\nContent-Length: 4\r\n\r\nbody", 200, "body", None, "obs_fold"),
    "fold of nothing": (OK + b"X: a\r\n \r\nContent-Length: 4\r\n\r\nbody", 200, "body", None, "obs_fold"),
    "fold of nothing at the end": (OK + b"Content-Length: 4\r\n \r\n\r\nbody", 200, "body", None, "obs_fold"),
    "folded length": (OK + b"Content-Length:\r\n\t4\r\n\r\nbody", 200, "body", None, "obs_fold"),
    "folded coding": (with_coding(b"Transfer-Encoding:\r\n chunked"), 200, "body", None,
                      "obs_fold obs_fold_transfer_encoding"),
    "colon on the next line": (with_coding(b"Transfer-Encoding\r\n :chunked"), 200, "body", None,
                               "obs_fold obs_fold_transfer_encoding space_before_colon"),
    "colon two lines on": (with_coding(b"Transfer-Encoding\r\n \r\n :\r\n chunked"), 200, "body", None,
                           "obs_fold obs_fold_transfer_encoding space_before_colon"),
    "blank before the colon": (OK + b"Content-Length : 4\r\n\r\nbody", 200, "body", None, "space_before_colon"),
    "of another field": (OK + b"X : a\r\nContent-Length: 4\r\n\r\nbody", 200, "body", None, "space_before_colon"),
    "VT before the colon": (with_coding(b"Transfer-Encoding\x0b: chunked"), 200, "body", None,
                            "control_in_head space_before_colon"),
    "blank before the first field": (OK + b" Content-Length: 4\r\n\r\nbody", 200, "body", None, "blank_before_field"),
    "no colon": (OK + b"no field\r\nContent-Length: 4\r\n\r\nbody", 200, "body", None, "field_malformed"),
    "no name": (OK + b": x\r\nContent-Length: 4\r\n\r\nbody", 200, "body", None, "field_malformed"),
    "a line of CR ends the head": (OK + b"Content-Length: 4\n\r\r\n{ody", 200, "{ody", None,
                                   "bare_lf control_in_head head_end_odd"),
    "a line of CR before a field": (OK + b"X: a\r\n\r\r\nContent-Length: 4\r\n\r\nbody", 200, "body", None,
                                    "control_in_head field_malformed"),
    "a blank line ends the head": (OK + b"Content-Length: 4\n \n{ody", 200, "{ody", None, "bare_lf head_end_odd"),
    "the same, with chunks": (OK + TE + b"\t\r\n" + CHUNKS, 200, "body", None, "head_end_odd"),
    # before the head
    "empty lines": (b"\r\n\n" + with_length(b"4"), 200, "body", None, ""),
    "blanks": (b" \t\r\n" + with_length(b"4"), 200, "body", None, "junk_before_message"),
    "a NUL": (b"\0" + with_length(b"4"), 200, "body", None, "junk_before_message"),
    "too many blanks": (b" " * 65 + with_length(b"4"), 200, "body", None, "junk_before_message"),
    "another protocol's line": (b"SIP/2.0 200 ok\r\n" + with_length(b"4"), 200, "body", None, "junk_before_message"),
    "a few bytes": (b"xyz" + with_length(b"4"), 200, "body", None, "junk_before_message"),
    "no status line": (b"body", None, "body", None, "status_line_missing"),
    "no status line, and long": (b"body" * 100, None, "body" * 100, None, "status_line_missing"),
    # the status line
    "lower case": (b"http/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody", 200, "body", None, "version_odd"),
    "HTTP/1.10": (b"HTTP/1.10 200 OK\r\nContent-Length: 4\r\n\r\nbody", 200, "body", None, "version_odd"),
    "HTTP/2.1": (b"HTTP/2.1 200 OK\r\nContent-Length: 4\r\n\r\nbody", 200, "body", None, "version_odd"),
    "HTTP/1": (b"HTTP/1 200 OK\r\nContent-Length: 4\r\n\r\nbody", 200, "body", None, "version_odd"),
    "HTTP/01.1": (b"HTTP/01.1 200 OK\r\nContent-Length: 4\r\n\r\nbody", 200, "body", None, "version_odd"),
    "NUL in the version": (b"HTTP/1.1\0 200 OK\r\nContent-Length: 4\r\n\r\nbody", 200, "body", None, "nul_in_head"),
    "VT for blanks": (b"HTTP/1.1\x0b200\x0bOK\r\nContent-Length: 4\r\n\r\nbody", 200, "body", None, "control_in_head"),
    "no status": (b"HTTP/1.1\r\nContent-Length: 4\r\n\r\nbody", None, "body", None, "status_odd"),
    "status on the next line": (b"HTTP/1.1\n 200 OK\r\nContent-Length: 4\r\n\r\nbody", None, "body", None,
                                "bare_lf blank_before_field field_malformed status_odd"),
    "two digits": (b"HTTP/1.1 20 OK\r\nContent-Length: 4\r\n\r\nbody", None, "body", None, "status_odd"),
    "four digits": (b"HTTP/1.1 2040 OK\r\nContent-Length: 4\r\n\r\nbody", None, "body", None, "status_odd"),
    "000": (b"HTTP/1.1 000 OK\r\nContent-Length: 4\r\n\r\nbody", None, "body", None, "status_odd"),
    "20x": (b"HTTP/1.1 20x OK\r\nContent-Length: 4\r\n\r\nbody", None, "body", None, "status_odd"),
    # lengths
    "equal lengths": (with_length(b"4", b"4"), 200, "body", None, "lengths_repeated"),
    "a list of them": (with_length(b"4, 4,4"), 200, "body", None, "lengths_repeated"),
    "different lengths": (with_length(b"4", b"9"), 200, "body", None, "lengths_differ"),
    "a list of different ones": (with_length(b"4,3"), 200, "body", None, "lengths_differ"),
    "plus sign": (with_length(b"+2"), 200, "body", None, "length_malformed"),
    "minus sign": (with_length(b"-2"), 200, "body", None, "length_malformed"),
    "a folded pair": (with_length(b"2\r\n 4"), 200, "body", None, "obs_fold length_malformed"),
    "overflow": (with_length(b"18446744073709551620"), 200, "body", None, "length_malformed"),
    "one of two is none": (with_length(b"x", b"4"), 200, "body", None, "lengths_repeated length_malformed"),
    # Transfer-Encoding
    "coding and length": (with_coding(b"Content-Length: 3\r\nTransfer-Encoding: chunked"), 200, "body", None,
                          "transfer_encoding_and_length"),
    "empty members": (with_coding(b"Transfer-Encoding: ,chunked,"), 200, "body", None, ""),
    "upper case": (with_coding(b"Transfer-Encoding: CHUNKED"), 200, "body", None, ""),
    "after gzip": (with_coding(b"Transfer-Encoding: gzip, chunked"), 200, "body", None, ""),
    "xchunked": (with_coding(b"Transfer-Encoding: xchunked"), 200, "body", None, "transfer_encoding_odd"),
    "xchunked, which it is not": (
        with_coding(b"Content-Length: 4\r\nTransfer-Encoding: xchunked", b"body"), 200, "body", None,
        "transfer_encoding_and_length transfer_encoding_odd chunked_not_applied"),
    "chunked;x": (with_coding(b"Transfer-Encoding: chunked;x"), 200, "body", None, "transfer_encoding_odd"),
    "quoted": (with_coding(b'Transfer-Encoding: "chunked"'), 200, "body", None, "transfer_encoding_odd"),
    "twice": (with_coding(b"Transfer-Encoding: chunked, chunked"), 200, "body", None, "transfer_encoding_odd"),
    "double colon": (with_coding(b"Transfer-Encoding:: chunked"), 200, "body", None, "transfer_encoding_odd"),
    "high byte": (with_coding(b"Transfer-Encoding: \xa0chunked"), 200, "body", None, "transfer_encoding_odd"),
    "not the last": (with_coding(b"Transfer-Encoding: chunked, x"), 200, "body", None, "transfer_encoding_odd"),
    "identity": (with_coding(b"Transfer-Encoding: identity\r\nContent-Length: 4", b"body"), 200, "body", None,
                 "transfer_encoding_and_length transfer_encoding_odd"),
    "another coding": (with_coding(b"Transfer-Encoding: lalala\r\nContent-Length: 4", b"body"), 200, "body", None,
                       "transfer_encoding_and_length transfer_encoding_odd"),
    "HTTP/1.0, chunked": (b"HTTP/1.0 200 OK\r\n" + TE + b"\r\n" + CHUNKS, 200, "body", None,
                          "transfer_encoding_version"),
    "HTTP/1.0, not chunked": (b"HTTP/1.0 200 OK\r\n" + TE + b"\r\nx body", 200, "x body", None,
                              "transfer_encoding_version chunked_not_applied"),
    "not chunked at all": (with_chunks(b"x body"), 200, "x body", None, "chunked_not_applied"),
    # chunks
    "leading zeros": (with_chunks(b"00000000000000000000004\r\nbody\r\n0000\r\n\r\n"), 200, "body", None, ""),
    "extensions": (with_chunks(b"4;a=b\r\nbody\r\n0 ; c\r\n\r\n"), 200, "body", None, ""),
    "LF": (with_chunks(b"4\nbody\n0\n\n"), 200, "body", None, "bare_lf"),
    "blank after": (with_chunks(b"4 \r\nbody\r\n0\r\n\r\n"), 200, "body", None, "chunk_size_odd"),
    "blank before": (with_chunks(b" \t4\r\nbody\r\n0\r\n\r\n"), 200, "body", None, "chunk_size_odd"),
    "empty lines before": (with_chunks(b"\r\n\r\n4\r\nbody\r\n\n0\r\n\r\n"), 200, "body", None, "chunk_size_odd"),
    "CR before": (with_chunks(b"\r4\r\nbody\r\n0\r\n\r\n"), 200, "body", None, "chunk_size_odd"),
    "junk after": (with_chunks(b"4,\r\nbody\r\n0 x\r\n\r\n"), 200, "body", None, "chunk_size_odd"),
    "plus": (with_chunks(b"+4\r\nbody\r\n0\r\n\r\n"), 200, "body", None, "chunk_size_odd"),
    "0x": (with_chunks(b"0x4\r\nbody\r\n0\r\n\r\n"), 200, "body", None, "chunk_size_odd"),
    "minus": (with_chunks(b"4\r\nbody\r\n-4\r\n\r\n"), 200, "body", "malformed", "chunk_size_odd"),
    "size overflow": (with_chunks(b"4\r\nbody\r\n10000000000000000\r\n\r\n"), 200, "body", "malformed",
                      "chunk_size_odd"),
    "no line end after a chunk": (with_chunks(b"2\r\nbo2\r\ndy0\r\n\r\n"), 200, "body", None, "chunk_end_missing"),
    "a CR after a chunk": (with_chunks(b"2\r\nbo\r2\r\ndy\r\n0\r\n\r\n"), 200, "body", None, "chunk_end_missing"),
    "a chunk that is longer": (with_chunks(b"4\r\nbody!\r\n0\r\n\r\n"), 200, "body", "malformed",
                               "chunk_size_odd chunk_end_missing"),
    "no last chunk": (with_chunks(b"4\r\nbody\r\n"), 200, "body", "closed", ""),
    # bodies that are not there
    "204 with a length": (b"HTTP/1.1 204 None\r\nContent-Length: 4\r\n\r\nbody", 204, None, None, "body_not_allowed"),
    "204 with a coding": (b"HTTP/1.1 204 None\r\n" + TE + b"\r\n" + CHUNKS, 204, None, None, "body_not_allowed"),
    "304 with a length": (b"HTTP/1.1 304 Same\r\nContent-Length: 4\r\n\r\n", 304, None, None, ""),
    "1xx with a length": (b"HTTP/1.1 103 Hints\r\nContent-Length: 4\r\n\r\n" + with_length(b"4"), 200, "body", None,
                          "body_not_allowed"),
}  # fmt: skip

POST = b"POST / HTTP/1.1\r\nHost: h\r\n"
REQUESTS: dict[str, Row] = {
    "sound": (POST + b"Content-Length: 4\r\n\r\nbody", 200, "body", None, ""),
    "asterisk": (b"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n", 200, None, None, ""),
    "absolute": (b"GET http://h/a HTTP/1.1\r\nHost: h\r\n\r\n", 200, None, None, ""),
    "any method": (b"FROB /a HTTP/1.1\r\nHost: h\r\n\r\n", 200, None, None, ""),
    "bare LF": (POST + b"Content-Length: 4\n\r\nbody", 200, "body", None, "bare_lf"),
    "NUL": (POST + b"Content\0-Length: 4\r\n\r\nbody", 200, "body", None, "nul_in_head"),
    "blanks before": (b" \r\n" + POST + b"Content-Length: 4\r\n\r\nbody", 200, "body", None, "junk_before_message"),
    "tabs": (b"GET\t/a\tHTTP/1.1\r\nHost: h\r\n\r\n", 200, None, None, "request_line_odd"),
    "two blanks": (b"GET  /a HTTP/1.1\r\nHost: h\r\n\r\n", 200, None, None, "request_line_odd"),
    "blank in the target": (b"GET /a b HTTP/1.1\r\nHost: h\r\n\r\n", 200, None, None, "request_line_odd"),
    "control in the target": (b"GET /a\x01 HTTP/1.1\r\nHost: h\r\n\r\n", 200, None, None, "control_in_head"),
    "lower case": (b"GET /a http/1.1\r\nHost: h\r\n\r\n", 200, None, None, "version_odd"),
    "HTTP/1.10": (b"GET /a HTTP/1.10\r\nHost: h\r\n\r\n", 200, None, None, "version_odd"),
    "HTTP/2.1": (b"GET /a HTTP/2.1\r\nHost: h\r\n\r\n", 200, None, None, "version_odd"),
    "HTTP/": (b"GET /a HTTP/\r\nHost: h\r\n\r\n", 200, None, None, "version_odd"),
    "equal lengths": (POST + b"Content-Length: 4\r\nContent-Length: 4\r\n\r\nbody", 200, "body", None,
                      "lengths_repeated"),
    "different lengths": (POST + b"Content-Length: 4\r\nContent-Length: 0\r\n\r\nbody", 200, None, "malformed",
                          "lengths_differ"),
    "plus sign": (POST + b"Content-Length: +4\r\n\r\nbody", 200, None, "malformed", "length_malformed"),
    "coding and length": (POST + b"Content-Length: 3\r\n" + TE + b"\r\n" + CHUNKS, 200, "body", None,
                          "transfer_encoding_and_length"),
    "xchunked": (POST + b"Transfer-Encoding: xchunked\r\n\r\n" + CHUNKS, 200, "body", None, "transfer_encoding_odd"),
    "xchunked, which it is not": (POST + b"Transfer-Encoding: xchunked\r\n\r\nx body", 200, None, "malformed",
                                  "transfer_encoding_odd chunk_size_odd"),
    "gzip": (POST + b"Transfer-Encoding: gzip\r\n\r\nbody", 200, None, "malformed", ""),
    "folded coding": (POST + b"Transfer-Encoding:\r\n chunked\r\n\r\n" + CHUNKS, 200, "body", None,
                      "obs_fold obs_fold_transfer_encoding"),
    "HTTP/1.0, chunked": (b"POST / HTTP/1.0\r\n" + TE + b"\r\n" + CHUNKS, 200, "body", None,
                          "transfer_encoding_version"),
    "junk after a size": (POST + TE + b"\r\n4 x\r\nbody\r\n0\r\n\r\n", 200, "body", None, "chunk_size_odd"),
    "no line end after a chunk": (POST + TE + b"\r\n4\r\nbody0\r\n\r\n", 200, "body", None, "chunk_end_missing"),
}  # fmt: skip


def asked(response: bytes) -> Dialogue:
    return [("client", http_request("GET", "/odd")), ("server", response)]


def answered(request: bytes) -> Dialogue:
    return [("client", request), ("server", http_response(200, (("Connection", "close"),), b"fine"))]


ODD: dict[str, Dialogue] = {
    **{f"response: {name}": asked(row[0]) for name, row in RESPONSES.items()},
    **{f"request: {name}": answered(row[0]) for name, row in REQUESTS.items()},
}


def records(dialogue: Dialogue, mss: int = 65000) -> list[Json]:
    return comparables(run(speak(Conversation(mss=mss), dialogue).frames).records)


def seen(record: Json, side: str) -> tuple[int | None, str | None, str | None, str]:
    capture = record["http_capture"]
    return (
        record["http"]["response"].get("status_code"),
        record["http"][side]["body"].get("content"),
        capture.get("incomplete_reason"),
        " ".join(capture.get("anomalies", [])),
    )


@pytest.mark.parametrize("name", RESPONSES)
def test_a_response_as_it_is_sent(name: str) -> None:
    (record,) = records(asked(RESPONSES[name][0]))
    assert seen(record, "response") == RESPONSES[name][1:]


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_as_it_is_sent(name: str) -> None:
    (record,) = records(answered(REQUESTS[name][0]))
    assert seen(record, "request") == REQUESTS[name][1:]


@pytest.mark.parametrize("name", ODD)
def test_each_turn_cut_at_every_offset(name: str) -> None:
    dialogue = ODD[name]
    whole = records(dialogue)
    for at in range(1, max(len(turn) for _, turn in dialogue)):
        frames = speak(Conversation(), dialogue, cut=lambda turn: [p for p in (turn[:at], turn[at:]) if p]).frames  # noqa: B023
        assert comparables(run(frames).records) == whole, at
    for mss in (1, 2, 3):
        assert records(dialogue, mss) == whole, mss


@settings(max_examples=400 if COMPILED else 80, derandomize=True, deadline=None, database=None)
@given(name=st.sampled_from(sorted(ODD)), seed=st.integers(0, 1 << 32))
def test_any_cuts_of_damaged_bytes(name: str, seed: int) -> None:
    rng = random.Random(seed)
    dialogue = damage_dialogue(rng, ODD[name])
    cut = speak(Conversation(), dialogue, cut=lambda turn: pieces(rng, turn)).frames
    assert comparables(run(cut).records) == records(dialogue)


@pytest.mark.parametrize("name", ODD)
def test_the_next_response_is_never_the_answer_to_another_request(name: str) -> None:
    """Two more exchanges on the same connection, one after the other or pipelined: each response is that of its request
    or of none."""
    turns: list[Dialogue] = []
    for number in (1, 2):
        turns.append(
            [
                ("client", http_request("GET", f"/{number}")),
                ("server", http_response(200, (), f"answer {number}".encode())),
            ]
        )
    in_turn = ODD[name] + turns[0] + turns[1]
    pipelined = ODD[name] + [turns[0][0], turns[1][0], turns[0][1], turns[1][1]]
    for dialogue in (in_turn, pipelined):
        for record in records(dialogue):
            content = record["http"].get("response", {}).get("body", {}).get("content", "")
            target = record.get("url", {}).get("original")
            if target in ("/1", "/2"):
                assert content in ("", f"answer {target[1:]}")
            elif "answer" in content and target is not None:
                assert "answer 1" in content  # read until the close
                assert record["http_capture"]["anomalies"]


def test_the_names_are_those_of_the_record() -> None:
    assert get_args(Anomaly) == ANOMALIES


@pytest.mark.parametrize("name", RESPONSES)
def test_what_is_uncertain_says_so(name: str) -> None:
    """After a response whose end is one reading of several, the next pair is judged by sequence numbers."""
    response, _, _, reason, anomalies = RESPONSES[name]
    if (reason is None and "chunk_end" in anomalies) or anomalies == "lengths_differ":
        dialogue = [*asked(response), ("client", http_request("GET", "/1")), ("server", http_response(200, (), b"1"))]
        (second,) = [r for r in records(dialogue) if r["url"]["original"] == "/1"]
        assert second["http_capture"]["uncertain"] is True
        assert second["http"]["response"]["body"]["content"] == "1"


@pytest.mark.parametrize("size", [0, 1, 31, 63, 64, 65, 200])
def test_control_characters_are_counted(size: int) -> None:
    data = bytes(random.Random(size).choices(range(256), k=size))
    assert controls(data, 0, size) == sum(c < 32 or c == 127 for c in data)


HOSTILE = [
    b"GET" + b" " * 60_000 + b"\r\n",
    b"GET" + b" \t" * 30_000 + b"x\r\n\r\n",
    b"GET " + b"a " * 30_000 + b"\r\n\r\n",
    b"GET" + b" " * 8000 + b"\n" + b"GET" + b" " * 8000 + b"\n",
    b"GET / HTTP/1.1\r\nA: " + b"\0" * 60_000 + b"\r\n\r\n",
    b"GET / HTTP/1.1\r\nA: " + b"\0 " * 30_000 + b"\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b" \r\n" * 20_000 + b"\r\n",
    b"GET / HTTP/1.1\r\n" + b"\r" * 60_000 + b"\r\n\r\n",
    b"GET / HTTP/1.1\r\nA" + b" " * 60_000 + b": b\r\n\r\n",
    b"GET / HTTP/1.1\r\nA: b\r\n" + b"\tc\r\n" * 15_000 + b"\r\n",
    b"POST / HTTP/1.1\r\nContent-Length: " + b"1," * 30_000 + b"1\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length: " + b" " * 60_000 + b"1\r\n\r\nx",
    b"POST / HTTP/1.1\r\nContent-Length: " + b"0" * 60_000 + b"1\r\n\r\nx",
    b"POST / HTTP/1.1\r\nTransfer-Encoding: " + b"gzip," * 12_000 + b"chunked\r\n\r\n0\r\n\r\n",
    b"POST / HTTP/1.1\r\nTransfer-Encoding: " + b"c h u n k e d " * 4_000 + b"\r\n\r\n0\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Encoding: " + b"gzip , " * 8_000 + b"\r\nContent-Length: 1\r\n\r\nx",
    b"POST / HTTP/1.1\r\nContent-Type: " + b"text/" * 12_000 + b"\r\nContent-Length: 1\r\n\r\nx",
    b"POST / HTTP/1.1\r\nContent-Type: application/" + b"+" * 60_000 + b"\r\nContent-Length: 1\r\n\r\nx",
    b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + b" " * 60_000 + b"1\r\nx\r\n0\r\n\r\n",
    b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + b"0" * 60_000 + b"1\r\nx\r\n0\r\n\r\n",
    b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;" + b"a=b;" * 900 + b"\r\nx\r\n0\r\n\r\n",
    b"GET /" + b"?&;=%" * 12_000 + b" HTTP/1.1\r\nHost: " + b"a:@[" * 900 + b"\r\n\r\n",
    b"GET http://" + b"@:" * 20_000 + b" HTTP/1.1\r\nHost: " + b":" * 20_000 + b"\r\n\r\n",
    b"OPTIONS " + b"GET / HTTP/1." * 4_000,
    b"\n".join([b"GET /" + b"x" * 40] * 1400),
    b"HTTP/1.1 " * 7_000 + b"\r\n\r\n",
    b"HTTP/1.1" + b" " * 60_000 + b"200\r\n\r\n",
    b"HTTP/1.1 200 " + b"\v\f" * 30_000 + b"\r\n\r\n",
    b"x" * 200 + b"\n HTTP/1.1 20" * 5_000,
]


@pytest.mark.parametrize("hostile", HOSTILE, ids=lambda hostile: repr(hostile[:40]) + f"{len(hostile)}")
def test_no_bytes_take_long(hostile: bytes) -> None:
    """A few milliseconds each: nothing in the reading of 64 KiB takes time by the square of them."""
    for side in ("client", "server"):
        conversation = Conversation(mss=1460)
        conversation.handshake()
        if side == "server":
            conversation.send("client", b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        conversation.send(side, hostile)
        conversation.close()
        before = time.process_time()
        run(conversation.frames)
        assert time.process_time() - before < 1.5
