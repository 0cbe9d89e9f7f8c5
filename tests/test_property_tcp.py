"""Any order within the reorder window, any duplication, any loss that the sender repairs: the same records.

And a loss that it does not repair (the capture has lost it): no response is ever paired with the wrong request, and
what the gap does not touch is whole.
"""

import os
import random
import re
from collections.abc import Callable

import pytest
from http_capture.capture.pipeline import Pipeline
from http_capture.capture.reassembly import Consumer, Reassembly, Stream
from http_capture.capture.source.block import Buffer
from http_capture.config.settings import BodySettings, Settings, TcpSettings
from hypothesis import given, settings
from hypothesis import strategies as st
from line import DIALOGUES, Dialogue, Frames, Json, Kept, Result, comparables, make, run, speak
from mutation import pieces
from traffic import FIN, Conversation, Side, chunked, fragment, http_request, http_response

COMPILED = os.environ.get("HTTP_CAPTURE_TESTED") == "compiled"
EXAMPLES = settings(max_examples=1000 if COMPILED else 150, derandomize=True, deadline=None, database=None)
MS = 1_000_000
WINDOW_NS = 190 * MS  # the reorder window is 200 ms of the frames' time
SEEDS = st.integers(0, 1 << 32)
NAMES = st.sampled_from(sorted(DIALOGUES))
STEPS = st.sampled_from((10_000, MS, 20 * MS))
ISNS = st.sampled_from((0, 1000, (1 << 31) - 3, (1 << 32) - 60, (1 << 32) - 5, (1 << 32) - 1))
POLICIES = [
    Settings(body=BodySettings(keep="all"), tcp=TcpSettings(max_connections=1000, overlap=overlap))
    for overlap in ("first", "last", "linux")
]
LATE = ("midstream",)  # may be true where the SYN came late


def talk(rng: random.Random, name: str, step_ns: int, client_isn: int = 1000, server_isn: int = 5000) -> Conversation:
    conv = Conversation(client_isn=client_isn, server_isn=server_isn, step_ns=step_ns)
    return speak(conv, DIALOGUES[name], cut=lambda turn: pieces(rng, turn))


def late(rng: random.Random, frames: list[tuple[int, bytes]], window_ns: int) -> list[tuple[int, bytes]]:
    """Each frame is seen up to this much later than it was sent."""
    moved = [(timestamp_ns + rng.randrange(window_ns), frame) for timestamp_ns, frame in frames]
    return sorted(moved, key=lambda frame: frame[0])


def again(rng: random.Random, conv: Conversation, window_ns: int) -> list[tuple[int, bytes]]:
    """Frames that come twice and more, and parts of segments that come again."""
    extra = []
    whole = list(zip(conv.segments, conv.frames, strict=True))
    copy = list(conv.frames)
    for segment, frame in whole:
        while rng.random() < 0.3:
            extra.append((frame[0] + rng.randrange(window_ns), frame[1]))
        if len(segment.payload) > 1 and rng.random() < 0.3:
            start = rng.randrange(len(segment.payload))
            end = rng.randrange(start + 1, len(segment.payload) + 1)
            flags = segment.flags if end == len(segment.payload) else segment.flags & ~FIN
            part = segment.payload[start:end]
            conv.segment(segment.side, flags, part, seq=(segment.seq + start) % (1 << 32), ack=segment.ack)
            extra.append((frame[0] + rng.randrange(window_ns), conv.frames[-1][1]))
    return copy + extra


@EXAMPLES
@given(seed=SEEDS, name=NAMES, step_ns=STEPS, client_isn=ISNS, server_isn=ISNS)
def test_any_order(seed: int, name: str, step_ns: int, client_isn: int, server_isn: int) -> None:
    rng = random.Random(seed)
    conv = talk(rng, name, step_ns, client_isn, server_isn)
    window_ns = rng.choice((MS, 10 * MS, WINDOW_NS))
    expected = comparables(run(conv.frames).records, without=LATE)
    assert comparables(run(late(rng, conv.frames, window_ns)).records, without=LATE) == expected


@EXAMPLES
@given(seed=SEEDS, name=NAMES, step_ns=STEPS, client_isn=ISNS, server_isn=ISNS)
def test_any_order_and_duplication(seed: int, name: str, step_ns: int, client_isn: int, server_isn: int) -> None:
    rng = random.Random(seed)
    conv = talk(rng, name, step_ns, client_isn, server_isn)
    window_ns = rng.choice((MS, 10 * MS, WINDOW_NS))
    expected = comparables(run(conv.frames).records, without=LATE)
    frames = again(rng, conv, window_ns)
    if seed % 3:
        frames = late(rng, frames, window_ns)
    frames.sort(key=lambda frame: frame[0])
    result = run(frames, rng.choice(POLICIES))
    assert comparables(result.records, without=LATE) == expected
    assert result.ledger.sections["segments"]["conflicting"] == 0


def repaired(rng: random.Random, name: str) -> tuple[Conversation, Conversation]:
    """A conversation, and the same one where segments were lost on their way and sent again: until then the other side
    does not acknowledge them, so nothing is sent that depends on them."""
    one = Conversation(step_ns=MS)
    two = Conversation(step_ns=MS)
    for conv in (one, two):
        conv.handshake()
    for side, turn in DIALOGUES[name]:
        parts = pieces(rng, turn)
        lost = []
        for part in parts:
            one.send(side, part)
            (index,) = two.send(side, part, drop=rng.random() < 0.3)
            if not two.segments[index].captured:
                lost.append(index)
        two.wait(rng.choice((10, 250, 1500)) * MS)
        rng.shuffle(lost)
        for index in lost:
            if rng.random() < 0.3:  # the first repair is lost as well
                two.retransmit(index, drop=True)
                two.wait(300 * MS)
            if len(two.segments[index].payload) > 1 and rng.random() < 0.3:  # repaired in other segments
                half = len(two.segments[index].payload) // 2
                two.retransmit(index, start=half)
                two.retransmit(index, end=half)
            else:
                two.retransmit(index)
        two.ack("client" if side == "server" else "server")
    for conv in (one, two):
        conv.close("server")
    return one, two


@EXAMPLES
@given(seed=SEEDS, name=NAMES)
def test_loss_that_the_sender_repairs(seed: int, name: str) -> None:
    rng = random.Random(seed)
    one, two = repaired(rng, name)
    assert comparables(run(two.frames).records) == comparables(run(one.frames).records)


@pytest.mark.parametrize("before", [0, 1, 2, 3, 17, 100, 400])
def test_numbers_wrap(before: int) -> None:
    """The sequence numbers of both sides pass 2^32 in heads, bodies, and between them."""
    expected = run(speak(Conversation(), DIALOGUES["keep-alive"]).frames).records
    conv = Conversation(client_isn=(1 << 32) - before - 1, server_isn=(1 << 32) - 2 * before - 1, mss=50)
    got = run(speak(conv, DIALOGUES["keep-alive"]).frames).records
    for record in [*expected, *got]:
        del record["event"]["id"]  # made of the numbers
    assert comparables_by_target(got) == comparables_by_target(expected)


def comparables_by_target(records: list[Json]) -> list[Json]:
    for record in records:
        record["event"].setdefault("id", record["url"]["original"])
    return comparables(records)


@pytest.mark.parametrize("vlan", [(), (7,), (7, 8)], ids=["untagged", "802.1Q", "QinQ"])
@pytest.mark.parametrize("ends", [("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("size", [None, 8, 64])
def test_addresses_tags_and_fragments(ends: tuple[str, str], vlan: tuple[int, ...], size: int | None) -> None:
    conv = Conversation((ends[0], 40000), (ends[1], 80), vlan=vlan, mss=300)
    speak(conv, DIALOGUES["pipelined"])
    frames = conv.frames
    if size is not None:
        frames = [
            (timestamp_ns, part)
            for i, (timestamp_ns, frame) in enumerate(conv.frames)
            for part in reversed(fragment(frame, size, identification=i, link_bytes=14 + 4 * len(vlan)))
        ]
    records = run(frames).records
    expected = run(speak(Conversation(), DIALOGUES["pipelined"]).frames).records
    assert [record["http"] for record in records] == [record["http"] for record in expected]
    assert {record["source"]["ip"] for record in records} == {ends[0]}
    assert {record["destination"]["ip"] for record in records} == {ends[1]}
    network = records[0]["network"]
    assert network["type"] == ("ipv4" if "." in ends[0] else "ipv6")
    assert network.get("vlan", {}).get("id") == (str(vlan[0]) if vlan else None)
    assert network.get("inner", {}).get("vlan", {}).get("id") == (str(vlan[1]) if len(vlan) > 1 else None)


# What the capture has lost.


def marked(number: int, kind: str) -> Dialogue:
    mark = f"m{number:03}"
    text = f"{mark} ".encode() * 14
    head = (("Host", "h"), ("X-M", mark))
    if kind == "length":
        return [
            ("client", http_request("POST", f"/{mark}", head, text)),
            ("server", http_response(200, (("X-M", mark),), text)),
        ]
    answer = (("X-M", mark), ("Transfer-Encoding", "chunked"))
    return [
        ("client", http_request("GET", f"/{mark}", head)),
        ("server", http_response(200, answer, chunked(text, 9))),
    ]


def marks(record: Json) -> set[str]:
    """The numbers that a record speaks of, in all its parts."""
    found: set[str] = set(re.findall(r"m\d{3}", record.get("url", {}).get("original", "")))
    for message in (record["http"].get("request"), record["http"].get("response")):
        if message is not None:
            found |= set(message["headers"].get("x-m", ()))
            found |= set(re.findall(r"m\d{3}", message["body"].get("content", "")))
    return found


def gapped(
    dialogue: Dialogue, side: Side, start: int, length: int, mss: int, step_ns: int
) -> tuple[Result, list[bool]]:
    """Runs a dialogue of which the capture lacks `length` bytes of one stream; which turns these do not touch."""
    conv = Conversation(mss=100_000, step_ns=step_ns)
    conv.handshake()
    at: dict[Side, int] = {"client": 0, "server": 0}
    untouched = []
    for speaker, turn in dialogue:
        begin = at[speaker]
        at[speaker] += len(turn)
        low, high = max(start - begin, 0), min(start + length - begin, len(turn))
        if speaker != side or low >= high:
            conv.send(speaker, turn, mss=mss)
            untouched.append(True)
            continue
        untouched.append(False)
        for part, lost in ((turn[:low], False), (turn[low:high], True), (turn[high:], False)):
            conv.send(speaker, part, mss=mss, drop=lost)
    conv.close()
    return run(conv.frames), untouched


@pytest.mark.parametrize("side", ["client", "server"])
@pytest.mark.parametrize("kind", ["length", "chunked"])
@pytest.mark.parametrize("step_ns", [10_000, 100 * MS], ids=["fast", "slow"])
def test_gap_at_every_offset(side: Side, kind: str, step_ns: int) -> None:
    """Three exchanges of one connection, however fast they follow each other."""
    dialogue = [turn for number in range(3) for turn in marked(number, kind)]
    total = sum(len(turn) for speaker, turn in dialogue if speaker == side)
    for length in (1, 7, 60, 400):
        for start in range(0, total, 1 if COMPILED or length == 7 else 3):
            result, untouched = gapped(dialogue, side, start, length, 1460 if start % 2 else 40, step_ns)
            assert all(len(marks(record)) <= 1 for record in result.records), (start, length)
            complete = {record["url"]["original"] for record in result.records if record["http_capture"]["complete"]}
            for number in range(3):
                if untouched[2 * number] and untouched[2 * number + 1]:
                    assert f"/m{number:03}" in complete, (start, length)
            assert sum(record["http_capture"]["gap_bytes"] for record in result.records) <= length


@pytest.mark.parametrize("side", ["client", "server"])
@pytest.mark.parametrize("kind", ["length", "chunked"])
def test_gap_at_every_offset_of_a_pipeline(side: Side, kind: str) -> None:
    turns = [turn for number in range(3) for turn in marked(number, kind)]
    dialogue: Dialogue = [
        ("client", b"".join(turn for speaker, turn in turns if speaker == "client")),
        ("server", b"".join(turn for speaker, turn in turns if speaker == "server")),
    ]
    total = sum(len(turn) for speaker, turn in dialogue if speaker == side)
    for length in (1, 7, 60, 400):
        for start in range(0, total, 1 if COMPILED else 3):
            result, _ = gapped(dialogue, side, start, length, 1460 if start % 2 else 40, MS)
            assert all(len(marks(record)) <= 1 for record in result.records), (start, length)


def test_many_gaps_and_many_exchanges() -> None:
    """One frame in fifty is not captured: pairs are right, and most are there, also while the connection is busy."""
    rng = random.Random(5)
    conv = Conversation(step_ns=20_000)
    conv.handshake()
    untouched = 0
    for number in range(300):
        before = len(conv.segments)
        for speaker, turn in marked(number, "length"):
            for at in range(0, len(turn), 60):
                conv.send(speaker, turn[at : at + 60], drop=rng.random() < 0.02)
        untouched += all(segment.captured for segment in conv.segments[before:])
    conv.close()
    records = run(conv.frames).records
    assert all(len(marks(record)) <= 1 for record in records)
    assert sum(record["http_capture"]["complete"] for record in records) == untouched


def test_one_direction_that_is_always_late() -> None:
    """A mirror that delivers one direction 20 ms after the other, for seconds of one transfer: nothing is lost."""
    conv = Conversation(step_ns=100_000, mss=1000)
    conv.handshake()
    conv.send("client", http_request())
    for at in range(0, 300_000, 2000):
        conv.send("server", http_response(200, (("Content-Length", "300000"),), length=False) if at == 0 else b"")
        conv.send("server", b"x" * 2000)
        conv.ack("client")
        conv.wait(10 * MS)
    conv.close()
    frames = []
    for segment, (timestamp_ns, frame) in zip(conv.segments, conv.frames, strict=True):
        frames.append((timestamp_ns + (20 * MS if segment.side == "server" else 0), frame))
    result = run(sorted(frames))
    assert [record["http_capture"]["complete"] for record in result.records] == [True]
    assert result.ledger.sections["bytes"]["gaps"] == 0


# Overlap, on one stream: the rules once more, byte by byte.


def modelled(overlap: str, segments: list[tuple[int, bytes]]) -> tuple[bytes, int]:
    """The stream that these segments give, up to its first hole, and how many of them bring other bytes."""
    kept: dict[int, tuple[int, int, int]] = {}  # position -> byte, and begin and end of the segment that brought it
    received = conflicts = 0
    for begin, data in segments:
        end = begin + len(data)
        probe = len(data) == 1 and end == received
        conflicts += not probe and any(at in kept and kept[at][0] != data[at - begin] for at in range(begin, end))
        for at in range(begin, end):
            if at in kept:
                _, old_begin, old_end = kept[at]
                longer = begin < old_begin or (begin == old_begin and end > old_end)
                if at < received or overlap == "first" or (overlap == "linux" and not longer):
                    continue
            kept[at] = (data[at - begin], begin, end)
        while received in kept:
            received += 1
    return bytes(kept[at][0] for at in range(received)), conflicts


class Delivered(Consumer):
    def __init__(self) -> None:
        self.octets = b""

    def on_data(self, buffer: Buffer, start: int, end: int, seq: int, ack: int, timestamp_ns: int) -> int:
        self.octets += bytes(buffer.view[start:end])
        return 0


def assembled(overlap: str, isn: int, segments: list[tuple[int, bytes]], limit: int = 1 << 20) -> tuple[Stream, bytes]:
    """A stream that has been given these segments; all counters balance all the time."""
    totals = Reassembly(1 << 20, limit, overlap)
    stream = Stream(totals)
    stream.peer = Stream(totals)
    delivered = stream.consumer = Delivered()
    stream.start(isn)
    for at, data in segments:
        seq = (isn + at) % (1 << 32)
        stream.segment(Buffer(b"?" + data), 1, 1 + len(data), len(data), seq, -1, False, 1)
        assert totals.payload_bytes == totals.delivered_bytes + totals.retransmitted_bytes + totals.buffered_bytes
        pieces = stream.pieces or []
        assert totals.buffered_bytes == sum(len(piece.buffer.view) for piece in pieces)
        assert stream.buffered_bytes == sum(256 + len(piece.buffer.view) for piece in pieces) <= limit
    return stream, delivered.octets


SEGMENTS = st.lists(st.tuples(st.integers(0, 40), st.text("aab", min_size=1, max_size=12).map(str.encode)), max_size=14)


@EXAMPLES
@given(overlap=st.sampled_from(("first", "last", "linux")), isn=ISNS, segments=SEGMENTS)
def test_overlap_is_decided_byte_by_byte(overlap: str, isn: int, segments: list[tuple[int, bytes]]) -> None:
    segments.append((0, b"c"))  # behind a hole until then
    if segments[0][0] == 0:
        segments[0] = (1, segments[0][1])
    stream, octets = assembled(overlap, isn, segments)
    assert (octets, stream.conflicts) == modelled(overlap, segments)


@EXAMPLES
@given(overlap=st.sampled_from(("first", "last", "linux")), isn=ISNS, seed=SEEDS)
def test_overlap_with_equal_bytes(overlap: str, isn: int, seed: int) -> None:
    """Any order, any duplication, any cut: the same stream, and no conflict."""
    rng = random.Random(seed)
    data = rng.randbytes(rng.randrange(1, 500))
    segments = []
    for at in range(0, len(data), 20):
        segments.append((at, data[at : at + rng.randrange(20, 60)]))
    for _ in range(rng.randrange(20)):
        at = rng.randrange(len(data))
        segments.append((at, data[at : at + rng.randrange(1, 80)]))
    rng.shuffle(segments)
    stream, octets = assembled(overlap, isn, segments)
    assert octets == data
    assert (stream.conflicts, stream.gap_bytes, stream.pieces) == (0, 0, None)


@pytest.mark.parametrize("overlap", ["first", "last", "linux"])
def test_overlaps_are_bounded(overlap: str) -> None:
    """Segments that cut each other to pieces behind a hole: memory stays under the limit."""
    rng = random.Random(3)
    segments = []
    for _ in range(3000):
        begin = rng.randrange(1, 60_000)
        segments.append((begin, rng.randbytes(rng.choice((1, 2, 100, 1460)))))
    stream, _ = assembled(overlap, 7, segments, 100_000)
    assert stream.totals.holes_given_up_for_memory > 0
    assert stream.conflicts > 50


# Memory.


def watched(
    frames: list[tuple[int, bytes]], bounds: TcpSettings, look: Callable[[Pipeline], int]
) -> tuple[Result, int]:
    """Runs the frames, and returns the largest of what was seen after each few of them."""
    sink = Kept()
    pipeline = make(Frames(frames, per_block=50), Settings(body=BodySettings(keep="all"), tcp=bounds), sink)
    seen: list[int] = []
    pipeline.run(lambda: False, lambda: seen.append(look(pipeline)))
    pipeline.finish()
    result = Result(pipeline, sink)
    assert result.ledger.imbalances == []
    return result, max(seen)


def buffered(pipeline: Pipeline) -> int:
    return pipeline.connections.reassembly.buffered_bytes


def test_a_hole_that_is_never_filled() -> None:
    """10 MB behind a hole that nobody acknowledges: what is kept stays under the limit, all the time."""
    conv = Conversation()
    conv.handshake()
    conv.send("client", http_request())
    conv.send("server", http_response(200, (("Content-Length", "10001460"),), length=False))
    conv.send("server", b"x" * 1460, drop=True)
    conv.send("server", b"y" * 10_000_000)
    limit = 1 << 20
    bounds = TcpSettings(max_connections=1000, max_buffered_bytes_per_direction=limit)
    result, most = watched(conv.frames, bounds, buffered)
    assert limit // 2 < most <= limit + 1460
    assert result.ledger.sections["bytes"]["gaps"] == 1460
    (record,) = result.records
    assert record["http_capture"]["gap_bytes"] == 1460


def test_holes_of_many_connections() -> None:
    """The bound over all connections."""
    frames: list[tuple[int, bytes]] = []
    for port in range(40000, 40100):
        conv = Conversation(("10.0.0.1", port), step_ns=10)
        conv.handshake()
        conv.send("client", http_request("POST", "/", (("Content-Length", "30000"),), b"x" * 1400), mss=1000, drop={0})
        conv.send("client", b"y" * 28_600)
        frames += conv.frames
    bounds = TcpSettings(max_connections=1000, max_buffered_bytes=100_000)
    _, most = watched(sorted(frames), bounds, buffered)
    assert 50_000 < most <= 100_000 + 1460


@pytest.mark.slow
def test_syn_flood() -> None:
    """300,000 SYNs from everywhere, after a request: the table stays at its bound, and all is counted."""
    count = 300_000 if COMPILED else 30_000
    bound = count // 30
    conv = Conversation(("192.0.2.1", 1), step_ns=10_000)
    conv.handshake()
    conv.send("client", http_request())
    template = Conversation(("10.0.0.0", 1000))
    template.handshake()
    syn = bytearray(template.frames[0][1])
    frames: list[tuple[int, bytes]] = list(conv.frames)
    for i in range(count):
        syn[26:30] = (0x0A000000 + i).to_bytes(4, "big")
        frames.append((conv.now_ns + i, bytes(syn)))
    result, most = watched(frames, TcpSettings(max_connections=bound), lambda pipeline: pipeline.connections.active)
    assert most == bound
    assert result.ledger.sections["connections"]["closed"]["evicted"] == count + 1 - bound
    assert len(result.records) == 1
