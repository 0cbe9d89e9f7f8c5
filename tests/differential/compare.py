"""Generated traffic as tshark reads it, against the records of http-capture and against what was sent.

    traffic = generate(seed)            connections of all kinds, their frames, and what was sent
    differences(seed, folder)           what the two readings do not have in common, each with the rule that explains it

http-capture has to read exactly what was sent: the traffic is right and nothing is lost. So a difference between the
two readings is one between tshark and what was sent, and no rule can hide a fault of http-capture. tshark (4.0 in
Debian 12) may differ where RULES explains it; each rule says what it is about, and who is right by which section of the
RFC. What no rule explains is a failure.

Messages are known by their X-M field, which is in each head, the number of its exchange. More than the tests do:
`python tests/differential/compare.py --seeds 0 100`.
"""

import argparse
import base64
import gzip
import itertools
import pathlib
import random
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import brotli
from line import PLAIN, Json, run
from mutation import pieces
from traffic import Conversation, Frame, Headers, Side, chunked, http_request, http_response, mix, write_pcap

Read = dict[str, object]
"""A message: what both readings must have in common."""


@dataclass
class Spoken:
    """An exchange as it was sent. kinds: what is special about it, for the rules."""

    number: str
    request: Read
    response: Read
    informational: list[int]
    kinds: set[str] = field(default_factory=set)


@dataclass
class Traffic:
    frames: list[Frame]
    exchanges: dict[str, Spoken]


# --- generating ---

METHODS = ("GET", "GET", "GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "HEAD", "PROPFIND")
STATUSES = ((200, "OK"), (200, "OK"), (201, "Created"), (404, "Not Found"), (500, "Oh no"), (204, "No Content"),
            (304, "Not Modified"), (206, "Partial"))  # fmt: skip
CODINGS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, mtime=0),
    "deflate": zlib.compress,
    "br": lambda data: brotli.compress(data, quality=4),
}


CHUNKED = ("request chunked", "response chunked")


def _body(rng: random.Random) -> bytes:
    size = rng.choice((0, 1, 20, 300, 3000, 20_000))
    text = b"HTTP/1.1 200 OK\r\n\r\nGET / HTTP/1.1\r\n\r\n" if rng.random() < 0.1 else b"some text, "
    return (text * (size // len(text) + 1))[:size] if rng.random() < 0.7 else rng.randbytes(size)


def _message(
    rng: random.Random, number: str, body: bytes, kinds: set[str], side: str
) -> tuple[list[tuple[str, str]], bytes]:
    """The header fields of a message and its body as it is sent."""
    headers = [("X-M", number)]
    if rng.random() < 0.3:
        headers.append(("Cookie" if side == "request" else "Set-Cookie", f"a={rng.getrandbits(30)}"))
        headers.append(("X-Twice", "1"))
        headers.append(("X-Twice", " two "))
    if not body:
        return headers, body
    headers.append(("Content-Type", rng.choice(("text/plain", "application/octet-stream"))))
    if rng.random() < 0.3:
        coding = rng.choice(sorted(CODINGS))
        kinds.add(f"{side} {coding}")
        headers.append(("Content-Encoding", coding))
        body = CODINGS[coding](body)
    if rng.random() < 0.3:
        kinds.add(f"{side} chunked")
        trailers = (("X-T", "v"),) if rng.random() < 0.3 else ()
        if trailers:
            kinds.add(f"{side} trailers")
        headers.append(("Transfer-Encoding", "chunked"))
        extension = ';a="b"' if rng.random() < 0.2 else ""
        size = rng.choice((1 + len(body) // 3, 7 + len(body) // 9, 5000))
        body = chunked(body, size, trailers=trailers, extension=extension)
    return headers, body


def _read(headers: Headers, wire: bytes, body: bytes, **first: object) -> Read:
    fields = [(name.lower(), value.strip()) for name, value in headers]
    if not any(name == "transfer-encoding" for name, _ in fields) and first.pop("sized"):
        fields.append(("content-length", str(len(wire))))
    first.pop("sized", None)
    return {**first, "headers": sorted(fields), "body": body}


def _exchange(rng: random.Random, number: str, last: bool) -> tuple[bytes, bytes, Spoken]:
    kinds: set[str] = set()
    method = rng.choice(METHODS)
    version = "1.0" if last and rng.random() < 0.2 else "1.1"
    target = rng.choice(("/%s", "/%s?a=b&c=%%20d", "http://h.example/%s", "/%s;p/\xfc?", "/%s#x")) % number
    body = _body(rng) if method in ("POST", "PUT", "PATCH", "PROPFIND") else b""
    fields, wire = _message(rng, number, body, kinds, "request")
    headers: list[tuple[str, str]] = [("Host", "h.example"), *fields]
    request = http_request(method, target, headers, wire, version)
    asked = _read(headers, wire, body, method=method, target=target, version=version, sized=bool(wire))
    status, reason = rng.choice(STATUSES)
    bodiless = status in (204, 304)
    body = b"" if bodiless or method == "HEAD" else _body(rng)
    fields, wire = _message(rng, number, body, kinds, "response")
    closes = last and not bodiless and method != "HEAD" and "response chunked" not in kinds and rng.random() < 0.5
    if method == "HEAD" or status == 304:
        kinds.add("bodiless")
        fields.append(("Content-Length", "777"))
    response = http_response(status, fields, wire, version, reason=reason, length=not closes)
    if closes:
        kinds.add("until the end")
    sized = not closes and not bodiless and method != "HEAD"
    answered = _read(fields, wire, body, status=status, reason=reason, version=version, sized=sized)
    informational = []
    if version == "1.1" and rng.random() < 0.15:
        informational = [rng.choice((100, 102, 103))]
        kinds.add("informational")
        response = f"HTTP/1.1 {informational[0]} Wait\r\nX-M: {number}\r\n\r\n".encode() + response
    kinds |= {f"method {method}", f"status {status}", f"version {version}"}
    return request, response, Spoken(number, asked, answered, informational, kinds)


def generate(seed: int, connections: int = 40) -> Traffic:
    """Connections of 1 to 6 exchanges: in turn or pipelined, in segments of any size, reordered, some sent twice."""
    rng = random.Random(seed)
    exchanges: dict[str, Spoken] = {}
    sources: list[list[Frame]] = []
    for c in range(connections):
        version6 = rng.random() < 0.3
        conv = Conversation(
            ("fd00::1" if version6 else "10.0.0.1", 20_000 + c),
            ("fd00::2" if version6 else "10.0.0.2", rng.choice((80, 8080))),
            client_isn=rng.choice((1000, 0xFFFFFFFF - 50, rng.getrandbits(32))),
            server_isn=rng.getrandbits(32),
            mss=rng.choice((100, 536, 1460)),
            vlan=rng.choice(((), (), (7,), (8, 9))),
            start_ns=1_700_000_000_000_000_000 + rng.randrange(1_000_000_000),
        )
        conv.handshake()
        count = rng.randint(1, 6)
        said = [_exchange(rng, f"s{seed}c{c}n{n}", n == count - 1) for n in range(count)]
        pipelined = rng.random() < 0.3
        turns: list[tuple[Side, bytes]] = []
        if pipelined:
            turns = [("client", b"".join(one[0] for one in said)), ("server", b"".join(one[1] for one in said))]
        else:
            for request, response, _ in said:
                turns += [("client", request), ("server", response)]
        tiny = rng.random() < 0.1
        for side, turn in turns:
            for piece in pieces(rng, turn) if tiny and len(turn) < 2000 else [turn]:
                conv.send(side, piece)
            conv.ack("server" if side == "client" else "client")
        conv.close("server")
        special = {f"segments of {conv.mss}"}
        if pipelined and count > 1:
            special.add("pipelined")
        if tiny:
            special.add("tiny pieces")
        frames = list(conv.frames)
        if rng.random() < 0.2:
            special.add("reordered")
            _reorder(rng, conv, frames)
        if rng.random() < 0.2:
            special.add("retransmitted")
            _repeat(rng, frames)
        if any("method HEAD" in spoken.kinds for _, _, spoken in said):
            special.add("HEAD in it")
        behind: set[str] = set()
        for _, _, spoken in said:
            behind |= {f"behind {kind}" for kind in ("bodiless", *CHUNKED) if kind in spoken.kinds}
            spoken.kinds |= behind
            spoken.kinds |= special | ({"last"} if spoken is said[-1][2] else set())
            exchanges[spoken.number] = spoken
        sources.append(frames)
    return Traffic(mix(*sources), exchanges)


def _reorder(rng: random.Random, conv: Conversation, frames: list[Frame]) -> None:
    """Swaps neighbours of one side that carry data: within a turn, so nobody has answered yet."""
    data = [i for i, segment in enumerate(conv.segments) if segment.payload]
    for a, b in itertools.pairwise(data):
        if b == a + 1 and conv.segments[a].side == conv.segments[b].side and rng.random() < 0.3:
            frames[a], frames[b] = (frames[a][0], frames[b][1]), (frames[b][0], frames[a][1])


def _repeat(rng: random.Random, frames: list[Frame]) -> None:
    """Sends some segments again, a little later; none of the handshake or the end."""
    again = [(ns + 2_500_000, frame) for ns, frame in frames[3:-3] if rng.random() < 0.1]
    frames[:] = sorted([*frames, *again], key=lambda frame: frame[0])


# --- the two readings ---


def ours(traffic: Traffic) -> dict[str, list[Read]]:
    """X-M and side -> the messages that http-capture has recorded for it."""
    out: dict[str, list[Read]] = {}
    for record in run(traffic.frames, PLAIN).records:
        http = record["http"]
        tags = {side: http[side]["headers"]["x-m"][0] for side in ("request", "response") if side in http}
        for side, tag in tags.items():
            read: Read = {"headers": _flat(http[side]["headers"]), "body": _content(http[side])}
            read["version"] = http["version"]
            if side == "request":
                read |= {"method": http[side]["method"], "target": record["url"]["original"]}
            else:
                read |= {"status": http[side]["status_code"], "reason": http[side].get("reason", "")}
                read |= {"pair": tags.get("request"), "complete": record["http_capture"]["complete"]}
                for each in http[side].get("informational", ()):
                    out.setdefault(f"{tag} informational", []).append({"status": each["status_code"]})
            out.setdefault(f"{tag} {side}", []).append(read)
    return out


def _flat(headers: Json) -> list[tuple[str, str]]:
    return sorted((name, value) for name, values in headers.items() for value in values)


def _content(message: Json) -> bytes:
    body = message.get("body", {})
    text = body.get("content", "")
    return base64.b64decode(text) if body.get("encoding") == "base64" else text.encode()


def theirs(path: pathlib.Path) -> dict[str, list[Read]]:
    """X-M and side -> the messages that tshark shows for it."""
    options = ["-o", "tcp.reassemble_out_of_order:TRUE", "-o", "http.tls.port:", "-Y", "http", "-T", "pdml"]
    done = subprocess.run(["tshark", "-n", "-r", path, *options], check=True, capture_output=True, timeout=120)
    out: dict[str, list[Read]] = {}
    for layer in ElementTree.fromstring(done.stdout).iter("proto"):
        if layer.get("name") != "http":
            continue
        fields = [(each.get("name", ""), each) for each in layer.iter("field")]
        shown = {name: each.get("show", "") for name, each in reversed(fields)}
        side = "request" if "http.request.method" in shown else "response"
        if "http.request.method" not in shown and "http.response.code" not in shown:
            out.setdefault("none", []).append({"shown": [name for name, _ in fields][:5]})
            continue
        lines = [bytes.fromhex(each.get("value", "")) for name, each in fields if name == f"http.{side}.line"]
        pairs = [line.decode("latin-1").partition(":") for line in lines]
        headers = sorted((name.lower().strip(), value.strip()) for name, _, value in pairs)
        data = next((each.get("value", "") for name, each in fields if name == "http.file_data"), "")
        read: Read = {"headers": headers, "body": bytes.fromhex(data)}
        read["version"] = shown.get(f"http.{side}.version", "").removeprefix("HTTP/")
        if side == "request":
            target = next(each.get("value", "") for name, each in fields if name == "http.request.uri")
            read |= {"method": shown["http.request.method"], "target": bytes.fromhex(target).decode("latin-1")}
        else:
            uri = shown.get("http.response_for.uri", "")
            read |= {"status": int(shown["http.response.code"]), "reason": shown.get("http.response.phrase", "")}
            read["pair"] = next((word for word in _numbers(uri)), None)
        tag = dict(headers).get("x-m", "?")
        if side == "response" and 100 <= int(shown["http.response.code"]) < 200:
            side = "informational"
            read = {"status": read["status"]}
        out.setdefault(f"{tag} {side}", []).append(read)
    return out


def _numbers(uri: str) -> list[str]:
    return re.findall(r"s\d+c\d+n\d+", uri)


def sent(traffic: Traffic) -> dict[str, list[Read]]:
    """X-M and side -> what was sent."""
    out: dict[str, list[Read]] = {}
    for number, spoken in traffic.exchanges.items():
        out[f"{number} request"] = [spoken.request]
        out[f"{number} response"] = [{**spoken.response, "pair": number, "complete": True}]
        if spoken.informational:
            out[f"{number} informational"] = [{"status": status} for status in spoken.informational]
    return out


# --- differences ---


@dataclass(frozen=True)
class Difference:
    """Of one message, in one thing. `rule` names the entry of RULES that explains it; "" is nobody's."""

    message: str
    what: str
    kinds: frozenset[str]
    rule: str
    one: object
    other: object


@dataclass(frozen=True)
class Rule:
    """applies(what, kinds): whether it explains a difference in this. right: who is, and by what."""

    about: str
    right: str
    applies: Callable[[str, set[str]], bool]


LOST = ("response body", "response count", "informational count")
RULES: dict[str, Rule] = {
    "last request": Rule(
        "a response in a pipeline belongs to the first request that has none yet; tshark takes the last that it saw",
        "http-capture; RFC 9112 section 9.3.2",
        lambda what, kinds: what == "response pair" and "pipelined" in kinds,
    ),
    "body of none": Rule(
        "the response to HEAD, and 304, have no body whatever Content-Length says; tshark looks at the last request, "
        "and in a pipeline that is another one: it takes the responses behind it for the body, or waits for it in vain",
        "http-capture; RFC 9112 section 6.3, item 1",
        lambda what, kinds: what in LOST and {"pipelined", "behind bodiless"} <= kinds,
    ),
    "HEAD is the last request": Rule(
        "the same the other way round: in a pipeline that has a HEAD tshark takes other responses for those to HEAD, "
        "shows no body for them and reads the body as messages",
        "http-capture; RFC 9112 section 6.3, item 1, and section 9.3.2",
        lambda what, kinds: what in LOST and {"pipelined", "HEAD in it"} <= kinds,
    ),
    "chunks in segments": Rule(
        "a chunked body ends with its last chunk, wherever the segments end; tshark loses some that go over segments, "
        "and what comes behind them in this direction",
        "http-capture; RFC 9112 section 7.1",
        lambda what, kinds: (
            (what in LOST and "behind response chunked" in kinds)
            or (what in ("request body", "request count", "response pair") and "behind request chunked" in kinds)
        ),
    ),
    "inside of a body": Rule(
        "what tshark shows as messages, or as HTTP that is none, where it has lost its place by one of the rules above",
        "http-capture, which has all messages of these bytes; RFC 9112 section 6",
        lambda what, kinds: what in ("count", "request count", "response count") and not kinds,
    ),
}
"""In the order in which they are tried."""


def differences(seed: int, folder: pathlib.Path) -> tuple[list[Difference], list[Difference], int]:
    """(http-capture against what was sent, tshark against it and so against http-capture, messages compared)."""
    traffic = generate(seed)
    path = folder / f"{seed}.pcap"
    write_pcap(path, traffic.frames)
    truth = sent(traffic)
    mine = compare(truth, ours(traffic), traffic, use_rules=False)
    other = compare(truth, theirs(path), traffic, use_rules=True)
    return mine, other, len(truth)


def compare(
    truth: dict[str, list[Read]], reading: dict[str, list[Read]], traffic: Traffic, *, use_rules: bool
) -> list[Difference]:
    out = []
    for message in sorted({*truth, *reading}):
        spoken = traffic.exchanges.get(message.partition(" ")[0])
        kinds = spoken.kinds if spoken else set()
        want, got = truth.get(message, []), reading.get(message, [])
        found: list[tuple[str, object, object]] = []
        if len(want) != len(got):
            found.append(("count", len(want), len(got)))
        for one, two in zip(want, got, strict=False):
            found += [(what, one[what], two[what]) for what in one if what in two and one[what] != two[what]]
        for what, one, two in found:
            rule = ""
            for name, each in RULES.items() if use_rules else ():
                if each.applies(f"{message.partition(' ')[2]} {what}".strip(), kinds):
                    rule = name
                    break
            out.append(Difference(message, what, frozenset(kinds), rule, one, two))
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description="Generated traffic: tshark and http-capture.")
    parser.add_argument("--seeds", type=int, nargs=2, default=(0, 20), metavar=("FROM", "TO"))
    arguments = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(*arguments.seeds):
            mine, other, messages = differences(seed, pathlib.Path(folder))
            unexplained = [each for each in other if not each.rule]
            failed += len(mine) + len(unexplained)
            print(f"seed {seed}: {messages} messages, tshark {len(other)} differences, {len(unexplained)} unexplained, "
                  f"http-capture {len(mine)}")  # fmt: skip
            for each in (*mine, *unexplained):
                name = "http-capture" if each in mine else "tshark"
                print(f"  {name}: {each.message} {each.what}, {sorted(each.kinds)}:")
                print(f"    sent {str(each.one)[:200]}, read {str(each.other)[:200]}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
