"""What encode.py writes: redaction, URL, time, Community ID, JSON, ids, keys and Kafka headers."""

import base64
import gzip
import json

import pytest
from golden.captures import Capture
from golden.replay import replay
from http_capture.capture import encode
from http_capture.capture.record import SCHEMA
from traffic import START_NS, Conversation, http_request, http_response

HOST = b"Host: example.test\r\n"
OK = http_response(200)


@pytest.fixture
def sent(tmp_path):
    """What is sent for one exchange: (key, value, headers, timestamp_ms)."""

    def one(request=None, response=OK, *, handshake=True, tables=None, close="client", drop_response=False, **options):
        conversation = Conversation(**options)
        if handshake:
            conversation.handshake()
        conversation.send("client", http_request() if request is None else request)
        if not drop_response:
            conversation.send("server", response)
        conversation.close(close)
        (record,), ledger = replay(Capture(conversation.frames, tables or {}), tmp_path)
        assert ledger.imbalances == []
        return record

    return one


@pytest.fixture
def encoded(sent):
    """The record of one exchange."""
    return lambda *arguments, **options: json.loads(sent(*arguments, **options)[1])


def asked(target, *, method="GET", head=HOST, body=b""):
    """A request with this target, of bytes as they are."""
    length = b"Content-Length: %d\r\n" % len(body) if body else b""
    target = target.encode("latin-1") if isinstance(target, str) else target
    return b"%s %s HTTP/1.1\r\n%s%s\r\n%s" % (method.encode(), target, head, length, body)


def form(body, kind=b"application/x-www-form-urlencoded", more=b""):
    return asked("/", method="POST", head=HOST + b"Content-Type: " + kind + b"\r\n" + more, body=body)


# --- URL (RFC 9112 section 3.2, RFC 3986)


@pytest.mark.parametrize(
    ("request_", "url"),
    [
        (
            asked("/a/b?c=d&e"),
            {
                "full": "http://example.test/a/b?c=d&e",
                "scheme": "http",
                "domain": "example.test",
                "port": 80,
                "path": "/a/b",
                "query": "c=d&e",
            },
        ),
        (
            asked("/", head=b"Host: example.test:8080\r\n"),
            {
                "full": "http://example.test:8080/",
                "scheme": "http",
                "domain": "example.test",
                "port": 8080,
                "path": "/",
            },
        ),
        (asked("/", head=b""), {"scheme": "http", "path": "/"}),
        (asked("/", head=b"Host:\r\n"), {"scheme": "http", "path": "/"}),
        (asked("/", head=b"Host: a b/c\r\n"), {"scheme": "http", "path": "/"}),
        (
            asked("/", head=b"Host: [2001:db8::1]\r\n"),
            {"full": "http://[2001:db8::1]/", "scheme": "http", "domain": "2001:db8::1", "port": 80, "path": "/"},
        ),
        (
            asked("/", head=b"Host: [::1]:8443\r\n"),
            {"full": "http://[::1]:8443/", "scheme": "http", "domain": "::1", "port": 8443, "path": "/"},
        ),
        (
            asked("/", head=b"Host: 192.0.2.1\r\n"),
            {"full": "http://192.0.2.1/", "scheme": "http", "domain": "192.0.2.1", "port": 80, "path": "/"},
        ),
        (
            asked("/", head=b"Host: first.test\r\nHost: second.test\r\n"),
            {"full": "http://first.test/", "scheme": "http", "domain": "first.test", "port": 80, "path": "/"},
        ),
        (
            asked("HTTPS://Secure.test/x"),
            {"full": "https://Secure.test/x", "scheme": "https", "domain": "Secure.test", "path": "/x"},
        ),
        (
            asked("http://origin.test"),
            {"full": "http://origin.test", "scheme": "http", "domain": "origin.test", "port": 80},
        ),
        (
            asked("http://origin.test?q=1"),
            {
                "full": "http://origin.test?q=1",
                "scheme": "http",
                "domain": "origin.test",
                "port": 80,
                "query": "q=1",
            },
        ),
        (
            asked("http://[2001:db8::1]:81/x"),
            {
                "full": "http://[2001:db8::1]:81/x",
                "scheme": "http",
                "domain": "2001:db8::1",
                "port": 81,
                "path": "/x",
            },
        ),
        (
            asked("origin.test:443", method="CONNECT", head=b"Host: other.test\r\n"),
            {"domain": "origin.test", "port": 443},
        ),
        (asked("[::1]:443", method="CONNECT"), {"domain": "::1", "port": 443}),
        (
            asked("*", method="OPTIONS"),
            {"full": "http://example.test", "scheme": "http", "domain": "example.test", "port": 80},
        ),
        (
            asked("//two/slashes"),
            {
                "full": "http://example.test//two/slashes",
                "scheme": "http",
                "domain": "example.test",
                "port": 80,
                "path": "//two/slashes",
            },
        ),
        (
            asked("/a?"),
            {
                "full": "http://example.test/a?",
                "scheme": "http",
                "domain": "example.test",
                "port": 80,
                "path": "/a",
                "query": "",
            },
        ),
        (
            asked("/a?b?c#d?e"),
            {
                "full": "http://example.test/a?b?c",
                "scheme": "http",
                "domain": "example.test",
                "port": 80,
                "path": "/a",
                "query": "b?c",
            },
        ),
        (
            asked("/", head=b"Host: example.test:\r\n"),  # an empty port is the default one (RFC 3986 section 3.2.3)
            {"full": "http://example.test/", "scheme": "http", "domain": "example.test", "port": 80, "path": "/"},
        ),
        (asked("/", head=b"Host: example.test:http\r\n"), {"scheme": "http", "path": "/"}),
    ],
)
def test_url(encoded, request_, url):
    found = encoded(request_, http_response(400, reason="Bad Request"))["url"]
    target = request_.split(b" ", 2)[1].decode("latin-1")
    assert found == {"original": target, **url}


@pytest.mark.parametrize("port", [1, 65535])
def test_a_port_in_the_url(encoded, port):
    assert encoded(asked("/", head=b"Host: example.test:%d\r\n" % port))["url"]["port"] == port


@pytest.mark.parametrize("port", [65536, 99999])
def test_a_port_that_cannot_be_is_left_out(encoded, port):
    assert "port" not in encoded(asked("/", head=b"Host: example.test:%d\r\n" % port))["url"]


def test_a_target_is_kept_as_on_the_wire(encoded):
    target = bytes(c for c in range(33, 127) if c not in b"#?") + "/caf\u00e9".encode()
    url = encoded(asked(b"/" + target))["url"]
    assert url["original"] == url["path"] == "/" + target.decode()
    assert encoded(asked(b"/caf\xe9"))["url"]["path"] == "/caf\u00e9"


# --- redaction


@pytest.mark.parametrize(
    ("target", "clean"),
    [
        ("/?password=x", "/?password=REDACTED"),
        ("/?a=1&password=x&b=2", "/?a=1&password=REDACTED&b=2"),
        ("/?PassWord=x", "/?PassWord=REDACTED"),
        ("/?a=1;token=x;b=2", "/?a=1;token=REDACTED;b=2"),
        ("/?%70assword=x", "/?%70assword=REDACTED"),
        ("/?%50%41SSWORD=x", "/?%50%41SSWORD=REDACTED"),
        ("/?access%5Ftoken=x", "/?access%5Ftoken=REDACTED"),
        ("/?+password=x", "/?+password=REDACTED"),
        ("/?password+=x", "/?password+=REDACTED"),
        ("/?password=x=y=z", "/?password=REDACTED"),
        ("/?password=a%26b&c=d", "/?password=REDACTED&c=d"),
        ("/?password=a?b", "/?password=REDACTED"),
        ("/?password=x&password=y", "/?password=REDACTED&password=REDACTED"),
        ("/?api-key=x&api_key=y&apikey=z", "/?api-key=REDACTED&api_key=REDACTED&apikey=REDACTED"),
        ("/?password=", "/?password="),
        ("/?password", "/?password"),
        ("/?passwords=x&my_password=y", "/?passwords=x&my_password=y"),
        ("/password=x", "/password=x"),
        ("/?&&=x&%=y&%zz=1", "/?&&=x&%=y&%zz=1"),
        ("http://user:x@h.test/?token=x", "http://REDACTED@h.test/?token=REDACTED"),
        ("http://user@h.test/", "http://REDACTED@h.test/"),
        ("HTTP://user:x@h.test/", "HTTP://REDACTED@h.test/"),
        ("http://user:a@b@h.test/", "http://REDACTED@h.test/"),
        ("http://h.test/@x", "http://h.test/@x"),
        ("http://h.test/?to=a@b.test", "http://h.test/?to=a@b.test"),
        ("/a@b", "/a@b"),
        ("/?a=b#access_token=x", "/?a=b#access_token=REDACTED"),
        ("/cb#access_token=x&state=y", "/cb#access_token=REDACTED&state=y"),
    ],
)
@pytest.mark.parametrize("place", ["target", "referer", "location", "content-location"])
def test_secrets_in_urls(encoded, place, target, clean):
    if place == "target":
        record = encoded(asked(target))
        assert record["url"]["original"] == clean
    elif place == "referer":
        record = encoded(asked("/", head=HOST + b"REFERER: " + target.encode() + b"\r\n"))
        assert record["http"]["request"]["headers"]["referer"] == [clean]
        assert record["http"]["request"]["referrer"] == clean
    else:
        record = encoded(response=http_response(302, ((place.title(), target),)))
        assert record["http"]["response"]["headers"][place] == [clean]


def test_no_part_of_the_url_has_the_secret(encoded):
    record = encoded(asked("http://user:hidden@h.test:81/p?token=hidden&a=b"))
    assert "hidden" not in json.dumps(record)
    assert record["url"]["full"] == "http://h.test:81/p?token=REDACTED&a=b"
    assert record["url"]["domain"] == "h.test"
    assert record["url"]["query"] == "token=REDACTED&a=b"


def test_credentials_before_the_host_of_connect(encoded):
    assert "hidden" not in json.dumps(encoded(asked("user:hidden@h.test:443", method="CONNECT")))


@pytest.mark.parametrize(
    "name", ["Authorization", "AUTHORIZATION", "authorization", "Proxy-Authorization", "Cookie", "cOOKIE"]
)
def test_secret_request_headers(encoded, name):
    head = b"%s: hidden\r\n%s: hidden too\r\nX-Other: shown\r\n" % (name.encode(), name.encode())
    headers = encoded(asked("/", head=HOST + head))["http"]["request"]["headers"]
    assert headers[name.lower()] == ["REDACTED", "REDACTED"]
    assert headers["x-other"] == ["shown"]


@pytest.mark.parametrize(
    "head",
    [
        b"Set-Cookie: hidden\r\n",
        b"Set-Cookie :hidden\r\n",
        b"Set-Cookie:\r\n hidden\r\n\thidden\r\n",
        b"Set-Cookie: a\xff=hidden\r\n",
        b"Set-Cookie: hidden\nSet-Cookie: hidden\n",
        b" Set-Cookie: hidden\r\n",  # space before the first field (RFC 9112 section 2.2)
        b"Location: /?a=b&\r\n token=hidden\r\n",
        b"X: 1\r\n" * 80 + b"Set-Cookie: hidden\r\n",
    ],
)
def test_secret_response_headers_however_they_are_written(encoded, head):
    record = encoded(response=b"HTTP/1.1 200 OK\r\n" + head + b"Content-Length: 0\r\n\r\n")
    assert "hidden" not in json.dumps(record)


def test_secrets_in_informational_answers(encoded):
    record = encoded(response=b"HTTP/1.1 103 Early Hints\r\nSet-Cookie: hidden\r\n\r\n" + OK)
    assert record["http"]["response"]["informational"][0]["headers"] == {"set-cookie": ["REDACTED"]}


@pytest.mark.parametrize(
    ("request_", "content"),
    [
        (form(b"a=b&password=hidden&c=d"), "a=b&password=REDACTED&c=d"),
        (form(b"password=hidden", b"Application/X-WWW-Form-Urlencoded; charset=utf-8"), "password=REDACTED"),
        (form(b"PASSWORD=hidden&p%61ss=hidden"), "PASSWORD=REDACTED&p%61ss=REDACTED"),
        (form(b"password=hidden", more=b"Content-Encoding: unheard-of\r\n"), "password=REDACTED"),
        (form(gzip.compress(b"a=b&pin=hidden"), more=b"Content-Encoding: gzip\r\n"), "a=b&pin=REDACTED"),
    ],
)
def test_secrets_in_forms(encoded, request_, content):
    body = encoded(request_)["http"]["request"]["body"]
    assert body["content"] == content
    assert body["encoding"] == "text"
    assert "truncated" not in body


def test_secrets_in_a_form_that_is_not_utf_8(encoded):
    body = encoded(form(b"name=caf\xe9&password=hidden"))["http"]["request"]["body"]
    content = body.get("content", "")
    raw = base64.b64decode(content) if body.get("encoding") == "base64" else content.encode()
    assert b"hidden" not in raw


def test_a_secret_that_the_limit_cuts(encoded):
    body = encoded(form(b"a=b&password=hidden and long"), tables={"body": {"max_kept_bytes": 16}})["http"]["request"][
        "body"
    ]
    assert body == {"bytes": 28, "content": "a=b&password=REDACTED", "encoding": "text", "truncated": True}


def test_nothing_is_redacted_where_that_is_asked_for(encoded):
    head = HOST + b"Authorization: Basic eA==\r\nReferer: http://u:p@h.test/?token=x\r\n"
    record = encoded(asked("/?password=x", head=head), tables={"record": {"redact": False}})
    assert record["url"]["query"] == "password=x"
    assert record["http"]["request"]["headers"]["authorization"] == ["Basic eA=="]
    assert record["http"]["request"]["referrer"] == "http://u:p@h.test/?token=x"


def test_other_names_can_be_redacted(encoded):
    tables = {"record": {"redact_headers": ["X-Mine"], "redact_names": ["Mine"]}}
    record = encoded(asked("/?mine=x&password=y", head=HOST + b"x-mine: x\r\nCookie: y\r\n"), tables=tables)
    assert record["url"]["query"] == "mine=REDACTED&password=y"
    assert record["http"]["request"]["headers"]["x-mine"] == ["REDACTED"]
    assert record["http"]["request"]["headers"]["cookie"] == ["y"]


# --- bodies


def test_what_was_decoded_of_a_cut_body_is_marked(encoded):
    whole = b"".join(b"%d " % number for number in range(2000))
    response = http_response(
        200, (("Content-Type", "text/plain"), ("Content-Encoding", "gzip")), gzip.compress(whole)[:-500]
    )
    body = encoded(response=response)["http"]["response"]["body"]
    assert whole.startswith(body["content"].encode())
    assert body["truncated"] is True


@pytest.mark.parametrize(
    ("data", "content", "encoding"),
    [
        (b"plain", "plain", "text"),
        ("\u00e4 \u20ac \U0001f600".encode(), "\u00e4 \u20ac \U0001f600", "text"),
        (bytes(range(128)), bytes(range(128)).decode(), "text"),
        (b"\xff\xfe", "//4=", "base64"),
        (b"\xed\xa0\x80", "7aCA", "base64"),  # a surrogate is no UTF-8
        (b"cut \xc3", "Y3V0IMM=", "base64"),  # the body ends inside a character: it is not the recorder that cut it
    ],
)
def test_text_and_base64(encoded, data, content, encoding):
    body = encoded(response=http_response(200, (("Content-Type", "text/plain"),), data))["http"]["response"]["body"]
    assert body == {"bytes": len(data), "content": content, "encoding": encoding}


# --- time


@pytest.mark.parametrize("side", ["client", "server"])
def test_what_comes_in_the_wrong_order_does_not_end_before_it_begins(tmp_path, side):
    conversation = Conversation()
    conversation.handshake()
    begin = len(conversation.frames)
    conversation.send("client", asked("/", method="POST", body=b"b" * 100), mss=120)
    if side == "server":
        begin = len(conversation.frames)
    conversation.send("server", http_response(200, (("Content-Type", "text/plain"),), b"a" * 100), mss=120)
    conversation.close()
    frames = conversation.frames
    (first_ns, first), (second_ns, second) = frames[begin : begin + 2]
    frames[begin : begin + 2] = [(first_ns, second), (second_ns, first)]
    ((_, value, _, _),), _ = replay(Capture(frames, {}), tmp_path)
    record = json.loads(value)
    assert record["http_capture"]["complete"] is True
    assert record["event"]["start"] <= record["event"]["end"]
    assert min(record["event"]["duration"], *record["http_capture"]["timing"].values()) >= 0


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (1_700_000_000_000_000_000, "2023-11-14T22:13:20.000000Z"),
        (1_700_000_000_123_456_789, "2023-11-14T22:13:20.123456789Z"),
        (1_700_000_000_123_456_000, "2023-11-14T22:13:20.123456Z"),
        (1_700_000_000_000_000_001, "2023-11-14T22:13:20.000000001Z"),
        (1_700_000_000_999_999_999, "2023-11-14T22:13:20.999999999Z"),
        (1_700_000_000_000_001_000, "2023-11-14T22:13:20.000001Z"),
        (1_709_208_000_000_000_000, "2024-02-29T12:00:00.000000Z"),
        (0, "1970-01-01T00:00:00.000000Z"),
        ((2**32 - 1) * 10**9, "2106-02-07T06:28:15.000000Z"),
    ],
)
def test_time(sent, ns, text):
    _, value, _, timestamp_ms = sent(handshake=False, start_ns=ns, step_ns=0)
    record = json.loads(value)
    assert record["@timestamp"] == record["event"]["start"] == record["event"]["end"] == text
    assert record["event"]["duration"] == 0
    assert timestamp_ms == ns // 1_000_000


@pytest.mark.parametrize(
    ("second", "text"),
    [
        (-62135596800, b"0001-01-01T00:00:00."),
        (-62135596801, b"0001-01-01T00:00:00."),
        (-(2**63), b"0001-01-01T00:00:00."),
        (253402300799, b"9999-12-31T23:59:59."),
        (253402300800, b"9999-12-31T23:59:59."),
        (2**63 - 1, b"9999-12-31T23:59:59."),
        (-1, b"1969-12-31T23:59:59."),
    ],
)
def test_times_outside_the_years_are_the_nearest(second, text):
    assert encode._second(second) == text


# --- Community ID: the published baseline of the specification (community-id-spec, baseline_deterministic)


@pytest.mark.parametrize(
    ("client", "server", "expected"),
    [
        (("128.232.110.120", 34855), ("66.35.250.204", 80), "1:LQU9qZlK+B5F3KDmev6m5PMibrg="),
        (("66.35.250.204", 80), ("128.232.110.120", 34855), "1:LQU9qZlK+B5F3KDmev6m5PMibrg="),
        (
            ("2001:470:e5bf:dead:4957:2174:e82c:4887", 63943),
            ("2607:f8b0:400c:c03::1a", 25),
            "1:/qFaeAR+gFe1KYjMzVDsMv+wgU4=",
        ),
    ],
)
def test_community_id(encoded, client, server, expected):
    assert encoded(client=client, server=server)["network"]["community_id"] == expected


# --- JSON


@pytest.mark.parametrize("c", [c for c in range(256) if c != 10])
def test_every_byte_in_a_header_value(encoded, c):
    value = b"a" + bytes([c]) + b"z"
    response = b"HTTP/1.1 200 OK\r\nX-Byte: " + value + b"\r\nContent-Length: 0\r\n\r\n"
    assert encoded(response=response)["http"]["response"]["headers"]["x-byte"] == [value.decode("latin-1")]


@pytest.mark.parametrize("c", [c for c in range(256) if c not in b"\r\n: \t"])
def test_every_byte_in_a_header_name(encoded, c):
    name = b"x" + bytes([c]) + b"z"
    response = b"HTTP/1.1 200 OK\r\n" + name + b": 1\r\nContent-Length: 0\r\n\r\n"
    assert encoded(response=response)["http"]["response"]["headers"][name.lower().decode("latin-1")] == ["1"]


def test_control_characters_are_escaped_in_the_bytes(sent):
    _, value, _, _ = sent(response=b"HTTP/1.1 200 a\x7f\x1b\tb\r\nContent-Length: 0\r\n\r\n")
    assert b'"reason":"a\\u007f\\u001b\\tb"' in value
    assert min(value) >= 32
    assert 127 not in value


@pytest.mark.parametrize("size", [*range(1, 36), 70])
def test_a_byte_to_be_escaped_anywhere_in_a_text(encoded, size):
    """Plain bytes are copied eight or sixteen at a time."""
    texts = []
    for special in ('"', "\\", "\n", "\x00", "\x1f", "\x7f", "\x80", "\u20ac", "!~ #"):
        texts += ["a" * at + special + "b" * (size - at - 1) for at in range(size)]
    for text in ("|".join(texts), *texts[::7], "".join(texts[: size * 6])):
        body = text.encode()
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n" % len(body)
        assert encoded(response=head + body)["http"]["response"]["body"]["content"] == text


def test_a_value_is_utf_8_as_a_whole_or_latin_1(encoded):
    head = (
        b"HTTP/1.1 200 \xc3\xa9\r\nA: \xc3\xa9\r\nB: \xc3\xa9\xe9\r\nC: \xf0\x9f\x98\x80\r\nContent-Length: 0\r\n\r\n"
    )
    response = encoded(response=head)["http"]["response"]
    assert response["reason"] == "\u00e9"
    assert response["headers"] == {
        "a": ["\u00e9"],
        "b": ["\u00c3\u00a9\u00e9"],
        "c": ["\U0001f600"],
        "content-length": ["0"],
    }


def test_a_record_that_is_much_larger_than_the_first_buffer(encoded):
    value = "\x01" * 60000
    body = b"\x02" * 65536
    response = http_response(200, (("X-Long", value), ("Content-Type", "text/plain")), body)
    record = encoded(response=response)["http"]["response"]
    assert record["headers"]["x-long"] == [value]
    assert record["body"]["content"].encode() == body


def test_more_fields_than_are_compared_by_pairs(encoded):
    names = [f"X-{number % 150}" for number in range(300)]
    response = http_response(200, [(name, str(i)) for i, name in enumerate(names)])
    headers = encoded(response=response)["http"]["response"]["headers"]
    assert [headers[f"x-{number}"] for number in range(150)] == [[str(n), str(n + 150)] for n in range(150)]


# --- event.id


def test_the_same_traffic_has_the_same_id_whoever_saw_it_and_whenever(encoded):
    first = encoded()["event"]["id"]
    assert len(first) == 32
    assert int(first, 16)
    assert encoded(start_ns=START_NS + 86_400_000_000_000)["event"]["id"] == first
    assert encoded(vlan=(7,))["event"]["id"] == first
    assert encoded(handshake=False)["event"]["id"] == first
    assert encoded(mss=7)["event"]["id"] == first
    assert encoded(response=http_response(404))["event"]["id"] == first
    assert encoded(drop_response=True)["event"]["id"] == first
    assert encoded(tables={"record": {"redact": False, "key": "id"}})["event"]["id"] == first


def test_other_traffic_has_another_id(encoded):
    others = [
        encoded(),
        encoded(client_isn=1_001),
        encoded(client=("10.0.0.1", 40001)),
        encoded(client=("10.0.0.3", 40000)),
        encoded(server=("10.0.0.3", 80)),
        encoded(server=("10.0.0.2", 81)),
        encoded(asked("/other")),
    ]
    assert len({record["event"]["id"] for record in others}) == len(others)


# --- key, headers


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        ("connection", b"10.0.0.1:40000-10.0.0.2:80"),
        ("client", b"10.0.0.1"),
        ("host", b"example.test"),
        ("id", None),
    ],
)
def test_keys(sent, kind, key):
    found, value, _, _ = sent(tables={"record": {"key": kind}})
    assert found == (key or json.loads(value)["event"]["id"].encode())


def test_the_key_of_a_connection_over_ipv6(sent):
    key, *_ = sent(client=("2001:db8::1", 40000), server=("2001:db8::2", 80))
    assert key == b"[2001:db8::1]:40000-[2001:db8::2]:80"


def test_the_key_by_host_where_there_is_none(sent):
    key, *_ = sent(asked("/", head=b""), tables={"record": {"key": "host"}})
    assert key == b""


def test_kafka_headers(sent):
    _, value, headers, _ = sent()
    assert headers == [
        ("id", json.loads(value)["event"]["id"].encode()),
        ("instance", b"INSTANCE"),
        ("host", b"HOST"),
        ("iface", b""),
        ("schema", SCHEMA.encode()),
    ]


def test_what_a_record_says_of_its_run(encoded):
    record = encoded()
    assert record["observer"] == {"hostname": "HOST", "version": "VERSION", "product": "http-capture"}
    assert record["http_capture"]["instance"] == "INSTANCE"
    assert record["http_capture"]["schema"] == SCHEMA
