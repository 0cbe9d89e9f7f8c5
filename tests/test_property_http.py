"""Any split of the same bytes gives the same records: whole lines are run, as the parser sees them."""

import os
import random

import pytest
from http_capture.capture.http.message import HeaderIndex
from http_capture.config.settings import BodySettings, HttpSettings, Settings, TcpSettings
from hypothesis import given, settings
from hypothesis import strategies as st
from line import ALL_BODIES, DIALOGUES, Dialogue, Json, comparables, run, speak
from mutation import damage_dialogue, pieces
from traffic import Conversation, chunked, http_request, http_response

COMPILED = os.environ.get("HTTP_CAPTURE_TESTED") == "compiled"
SMALL = Settings(
    body=BodySettings(keep="all"),
    tcp=TcpSettings(max_connections=1000),
    http=HttpSettings(max_head_bytes=1024, max_headers=16, search_bytes=1000),
)
CHUNKED = (("Transfer-Encoding", "chunked"),)


def records(dialogue: Dialogue, mss: int = 65000, with_settings: Settings = ALL_BODIES) -> list[Json]:
    """What a dialogue gives whose turns are sent in segments of this size."""
    return comparables(run(speak(Conversation(mss=mss), dialogue).frames, with_settings).records)


def cut_records(dialogue: Dialogue, cuts: list[int]) -> list[Json]:
    """The same, in segments of these sizes, again and again."""

    def cut(turn: bytes) -> list[bytes]:
        out = []
        while turn:
            size = cuts[len(out) % len(cuts)]
            out.append(turn[:size])
            turn = turn[size:]
        return out

    return comparables(run(speak(Conversation(), dialogue, cut=cut).frames).records)


LINES = st.sampled_from(
    (b"Content-Length: 5", b"content-type : a/b", b"Host: a", b"Transfer-Encoding:", b"Cookie", b"X", b"x:", b": y",
     b" folded", b"\t", b"", b"Trailer: \xff", b"\rT: 1", b"C", b"Accept: */*")
)  # fmt: skip


@settings(deadline=None, max_examples=2000)
@given(st.lists(st.tuples(LINES, st.sampled_from((b"\r\n", b"\n", b"\r", b""))), max_size=12))
def test_the_fields_of_framing_are_found_without_the_others(lines: list[tuple[bytes, bytes]]) -> None:
    head = b"".join(line + end for line, end in lines)
    found = []
    for framing in (False, True):
        index = HeaderIndex(6)
        end = index.scan(head, 0, 0, framing)
        fields = [(index.name(head, i), index.value(head, i)) for i in range(index.count)]
        found.append((end, index.overflow, [field for field in fields if field[0][:1] in (b"c", b"t")]))
    assert found[0] == found[1]


@pytest.fixture(scope="module")
def whole() -> dict[str, list[Json]]:
    return {name: records(dialogue) for name, dialogue in DIALOGUES.items()}


def test_the_dialogues_are_what_they_say() -> None:
    """(method, target, status, why it is not complete) of each: what the other tests compare is right."""
    seen = {}
    for name, dialogue in DIALOGUES.items():
        result = run(speak(Conversation(), dialogue).frames)
        seen[name] = [
            " ".join(
                str(part)
                for part in (
                    record["http"].get("request", {}).get("method"),
                    record.get("url", {}).get("original"),
                    record["http"].get("response", {}).get("status_code"),
                    record["http_capture"].get("incomplete_reason", "complete"),
                )
            )
            for record in result.records
        ]
    assert seen == {
        "keep-alive": [
            "GET /one?a=b&password=REDACTED 200 complete",
            "POST /two 200 complete",
            "HEAD /three 200 complete",
            "DELETE /four 204 complete",
            "GET /five 304 complete",
            "POST /six 201 complete",
            "GET /seven 200 complete",
            "GET /eight 200 complete",
            "PUT /nine 200 complete",
            "POST /ten 200 complete",
            "OPTIONS * 200 complete",
            "GET http://REDACTED@other:8080/absolute?sig=REDACTED 404 complete",
            "GET /last 200 complete",
        ],
        "pipelined": [
            "GET /m0 200 complete",
            "HEAD /m1 200 complete",
            "POST /m2 200 complete",
            "GET /m3 304 complete",
            "GET /m4 200 complete",
            "GET /m5 200 complete",
        ],
        "connect": ["CONNECT h:443 407 complete", "CONNECT h:443 200 complete"],
        "inside": [
            "CONNECT h:80 200 complete",
            "GET /m0 200 complete",
            "GET /m1 200 complete",
            "CONNECT i:22 200 complete",
        ],
        "socks": ["GET /m0 200 complete"],
        "socks 4": ["GET /m0 200 complete"],
        "upgrade": ["GET /chat 101 complete"],
        "1.0": ["GET /a 200 complete", "GET /b 200 complete"],
        "0.9": ["GET /old None complete"],
        "early answer": ["POST /large 413 complete"],
        "not whole": ["POST /cut None closed"],
        "not HTTP": [],
        "malformed": ["GET /a 200 malformed", "GET /b 200 complete", "POST /c 400 malformed"],
    }


@pytest.mark.parametrize("name", DIALOGUES)
def test_each_turn_cut_at_every_offset(name: str, whole: dict[str, list[Json]]) -> None:
    dialogue = DIALOGUES[name]
    for at in range(1, max(len(turn) for _, turn in dialogue)):
        frames = speak(Conversation(), dialogue, cut=lambda turn: [p for p in (turn[:at], turn[at:]) if p]).frames  # noqa: B023
        assert comparables(run(frames).records) == whole[name], at


@pytest.mark.parametrize("name", DIALOGUES)
@pytest.mark.parametrize("mss", [1, 2, 3, 7])
def test_segments_of_few_bytes(name: str, mss: int, whole: dict[str, list[Json]]) -> None:
    assert records(DIALOGUES[name], mss) == whole[name]


@settings(max_examples=400 if COMPILED else 80, derandomize=True, deadline=None, database=None)
@given(name=st.sampled_from(sorted(DIALOGUES)), cuts=st.lists(st.integers(1, 80), min_size=1, max_size=12))
def test_any_cuts(name: str, cuts: list[int]) -> None:
    assert cut_records(DIALOGUES[name], cuts) == records(DIALOGUES[name])


def damaged(seed: int) -> tuple[list[Json], list[Json]]:
    """The records of a damaged dialogue, whole and in pieces."""
    rng = random.Random(seed)
    dialogue = damage_dialogue(rng, DIALOGUES[rng.choice(sorted(DIALOGUES))])
    cut = speak(Conversation(), dialogue, cut=lambda turn: pieces(rng, turn))
    return records(dialogue), comparables(run(cut.frames).records)


def test_any_cuts_of_damaged_bytes() -> None:
    """Hostile bytes too: what the parser makes of them must not depend on how they come."""
    different = []
    for seed in range(10_000 if COMPILED else 1_000):
        one, two = damaged(seed)
        if one != two:
            different.append(seed)
    assert different == []


# What random damage has found, each cut down to what matters. (dialogue, in segments of)
FOUND: dict[str, tuple[Dialogue, int]] = {
    "a head that ends with LF CRLF after an LF": (
        [
            ("client", http_request()),
            ("server", b"HTTP/1.1 304 \r\nContent-Length: 5\r\n\n\r\n" + http_response()),
        ],
        1,
    ),
    "a connection is left in the middle of a segment": (
        [("client", b"GT old\r\n"), ("server", b"<html>HTTP/1.1 200 OK\r\n\r\n</html>")],
        3,
    ),
    "a status line in answer to what looks like HTTP/0.9": (
        [("client", b"GET /old\r\n"), ("server", b"HTTP/1.0 200 OK\r\n\r\nbody")],
        1,
    ),
    "an HTTP/0.9 answer that begins like a status line": (
        [("client", b"GET /old\r\n"), ("server", b"HTML is not HTTP/1.1")],
        1,
    ),
    "a request in two segments after bytes that are none": (
        [
            ("client", http_request("GET", "/a")),
            ("server", http_response(200, body=b"a")),
            ("client", b"\x1f\x8b\x08\0\0"),
            ("server", http_response(400, body=b"b")),
            ("client", http_request("GET", "/c")),
            ("server", http_response(200, body=b"c")),
        ],
        9,
    ),
}


@pytest.mark.parametrize("name", FOUND)
def test_found(name: str) -> None:
    dialogue, mss = FOUND[name]
    assert records(dialogue, mss) == records(dialogue)


# The bounds are bounds of the message, not of what has come of it so far.
BOUNDS: dict[str, Dialogue] = {
    "head": [("client", http_request(headers=(("A", "x" * 1500),))), ("server", http_response())],
    "first line": [("client", http_request(target="/" + "x" * 9000)), ("server", http_response())],
    "chunk extension": [
        ("client", http_request()),
        ("server", http_response(200, CHUNKED, chunked(b"abc", extension=";a=" + "x" * 5000))),
    ],
    "trailer": [
        ("client", http_request()),
        ("server", http_response(200, CHUNKED, chunked(b"abc", trailers=(("a", "x" * 3000),)))),
        ("client", http_request("GET", "/next")),
        ("server", http_response(204)),
    ],
    "trailers": [
        ("client", http_request()),
        ("server", http_response(200, CHUNKED, chunked(b"abc", trailers=(("a", "x" * 300),) * 5))),
        ("client", http_request("GET", "/next")),
        ("server", http_response(204)),
    ],
    "search": [
        ("client", b"\0" * 700 + b"\n" + b"y" * 600 + b"\n" + http_request()),
        ("server", http_response(204)),
    ],
    "held after CONNECT": [
        ("client", http_request("CONNECT", "a:1") + b"x" * 1500),
        ("server", http_response(403)),
        ("client", http_request()),
        ("server", http_response(204)),
    ],
    "header fields": [
        ("client", http_request(headers=[(f"A{i}", "b") for i in range(40)])),
        ("server", http_response()),
    ],
}


@pytest.mark.parametrize("name", BOUNDS)
def test_bounds_do_not_depend_on_the_split(name: str) -> None:
    for mss in (1000, 100, 9):
        assert records(BOUNDS[name], mss, SMALL) == records(BOUNDS[name], 65000, SMALL), mss
