"""The handshakes of SOCKS are told from everything else, at any length of what is there of them."""

import random

import pytest
from http_capture.capture.http.socks import MAX_BYTES, MORE, NOT_SOCKS, reply, request

REQUESTS = [
    ("5, address", b"\5\1\0" + b"\5\1\0\1\x0a\0\0\1\0\x50", 5, "10.0.0.1:80"),
    ("5, name", b"\5\1\0" + b"\5\1\0\3\x0borigin.test\x1f\x90", 5, "origin.test:8080"),
    ("5, IPv6", b"\5\1\0" + b"\5\1\0\4" + bytes(15) + b"\1\0\x50", 5, "[::1]:80"),
    ("5, several methods", b"\5\3\0\1\2" + b"\5\1\0\1\x0a\0\0\1\0\x50", 5, "10.0.0.1:80"),
    ("5, password", b"\5\2\0\2" + b"\1\4user\6secret" + b"\5\1\0\1\x0a\0\0\1\0\x50", 5, "10.0.0.1:80"),
    ("5, empty password", b"\5\1\2" + b"\1\0\0" + b"\5\1\0\1\x0a\0\0\1\0\x50", 5, "10.0.0.1:80"),
    ("4", b"\4\1\0\x50\x0a\0\0\1me\0", 4, "10.0.0.1:80"),
    ("4, no user", b"\4\1\0\x50\x0a\0\0\1\0", 4, "10.0.0.1:80"),
    ("4a", b"\4\1\0\x50\0\0\0\1me\0origin.test\0", 4, "origin.test:80"),
]
REPLIES = [
    ("5, address", 5, b"\5\0" + b"\5\0\0\1\x0a\0\0\1\0\x50"),
    ("5, name", 5, b"\5\0" + b"\5\0\0\3\1x\0\x50"),
    ("5, IPv6", 5, b"\5\0" + b"\5\0\0\4" + bytes(18)),
    ("5, password", 5, b"\5\2" + b"\1\0" + b"\5\0\0\1\x0a\0\0\1\0\x50"),
    ("4", 4, b"\0\x5a\0\x50\x0a\0\0\1"),
]


@pytest.mark.parametrize(("data", "version", "target"), [row[1:] for row in REQUESTS], ids=[row[0] for row in REQUESTS])
def test_requests(data, version, target):
    assert request(data) == (len(data), version, target)
    assert request(data + b"GET / HTTP/1.1\r\n") == (len(data), version, target)
    for length in range(1, len(data)):
        assert request(data[:length])[0] == MORE


@pytest.mark.parametrize(("version", "data"), [row[1:] for row in REPLIES], ids=[row[0] for row in REPLIES])
def test_replies(version, data):
    assert reply(data, version) == len(data)
    assert reply(data + b"HTTP/1.1 200 OK\r\n", version) == len(data)
    for length in range(1, len(data)):
        assert reply(data[:length], version) == MORE


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n", b"\r\n", b"\0", b"\x16\3\1", b"\5\0", b"\5\1\0\4", b"\5\1\0\1\0\0", b"\5\1\0\5\2\0\1",
        b"\5\1\0\5\3\0\1", b"\5\1\0\5\1\1\1", b"\5\1\0\5\1\0\2", b"\4\2\0\x50\x0a\0\0\1\0", b"\4\1\0\x50" + b"\1" * 300,
    ],
)  # fmt: skip
def test_what_is_no_request(data):
    assert request(data)[0] == NOT_SOCKS


@pytest.mark.parametrize(
    ("version", "data"),
    [
        (4, b"\0\x5b" + bytes(6)),
        (4, b"HTTP/1.1"),
        (5, b"HTT"),
        (5, b"\5\xff\5"),
        (5, b"\5\2\1\1\5"),
        (5, b"\5\0\5\1\0"),
    ],
)
def test_what_is_no_reply(version, data):
    assert reply(data, version) == NOT_SOCKS


def test_any_bytes():
    """An answer for all, and MORE never for as many as a handshake can have."""
    rng = random.Random(8)
    for _ in range(20_000):
        data = bytes((rng.choice((4, 5)),)) + rng.randbytes(rng.randrange(60))
        assert -2 <= request(data)[0] <= len(data)
        assert -2 <= reply(data, data[0]) <= len(data)
    for _ in range(200):
        data = bytes((rng.choice((4, 5)),)) + rng.choice((rng.randbytes(MAX_BYTES), b"\xff" * MAX_BYTES))
        assert request(data)[0] != MORE
        assert reply(data, data[0]) != MORE
