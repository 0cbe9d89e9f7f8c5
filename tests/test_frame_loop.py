"""Where many connections are open, segments are decoded ahead of the one that is taken: that changes nothing."""

import itertools
import json
import os
import random

import pytest
from differential.compare import generate
from golden.captures import CAPTURES
from http_capture.capture.frame_loop import ALL, MANY
from http_capture.config.settings import DecodeSettings, DefragSettings, Settings, TcpSettings
from line import ALL_BODIES, Frames, Kept, make, run
from msgspec import convert
from traffic import Conversation, fragment, http_request, http_response

NEVER = 1 << 60
SHARES = (ALL, ALL // 2, ALL // 5, 0, ALL // 3)
SMALL = Settings(tcp=TcpSettings(max_connections=8), defrag=DefragSettings(max_datagrams=2))
ONE_WAY = Settings(tcp=TcpSettings(max_connections=1000), decode=DecodeSettings(vlan_in_key=False))
KEY = 0x1234567890ABCDEF


def outcome(frames, many, settings=ALL_BODIES, *, link=1, per_block=512, worker=None, shares=()):
    """What was sent, and the ledger, where `many` open connections are many."""
    sink = Kept()
    with pytest.MonkeyPatch.context() as patch:  # the secret keys: what falls into the same place is the same
        patch.setattr(os, "urandom", random.Random(1).randbytes)
        pipeline = make(Frames(frames, link, per_block), settings, sink)
    pipeline.loop.many = many
    if worker is not None or shares:
        pipeline.loop.share_with(*(worker or (1, 0)), KEY)
    shares = itertools.cycle(shares or (ALL,))
    pipeline.run(lambda: False, lambda: pipeline.loop.keep(next(shares)))
    pipeline.finish()
    held = [segment for segment in pipeline.loop.ring if segment.buffer.view.nbytes]
    assert held in ([], [pipeline.decoder.segment])  # what a source has lent before is not held on to
    ledger = pipeline.ledger()
    assert ledger.balanced, ledger.imbalances
    return sink.sent, ledger.as_json()


def assert_same(frames, settings=ALL_BODIES, **how):
    """Ahead always, ahead sometimes, and never. Returns the records."""
    frames = list(frames)
    records, ledger = outcome(frames, NEVER, settings, **how)
    assert (records, ledger) == outcome(frames, 0, settings, **how)
    assert (records, ledger) == outcome(frames, 3, settings, **how)
    return records


def odd(seed):
    """Frames of odd traffic: some in fragments, some twice, some damaged or not for us."""
    rng = random.Random(seed)
    for timestamp_ns, frame in generate(seed).frames:
        kind = rng.random()
        if kind < 0.1 and frame[12:14] == b"\x08\x00":
            pieces = fragment(frame, rng.choice((8, 64, 512)), identification=rng.randrange(65536))
            if rng.random() < 0.2:
                rng.shuffle(pieces)
            yield from ((timestamp_ns, piece) for piece in pieces)
            continue
        yield timestamp_ns, frame
        if kind > 0.9:
            yield timestamp_ns + 1000, frame  # by the mirror
        elif kind > 0.85:
            yield timestamp_ns, frame[: rng.randrange(len(frame))]
        elif kind > 0.8:
            yield timestamp_ns, rng.randbytes(60)


@pytest.mark.parametrize("per_block", [1, 7, 16, 17, 512])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_odd_traffic(seed, per_block):
    assert len(assert_same(odd(seed), per_block=per_block)) > 100


@pytest.mark.parametrize("settings", [SMALL, ONE_WAY], ids=["evicted", "one way"])
def test_bounds_and_keys(settings):
    assert assert_same(odd(4), settings)


@pytest.mark.parametrize("number", [0, 1])
def test_one_of_two_workers(number):
    assert assert_same(odd(5), worker=(2, number))


def test_whole_connections_are_shed():
    assert assert_same(odd(6), per_block=64, shares=SHARES)


@pytest.mark.parametrize("name", CAPTURES)
def test_golden_captures(name):
    capture = CAPTURES[name]()
    frames = [(at, frame[: capture.snaplen], capture.link, len(frame)) for at, frame in capture.frames]
    assert_same(frames, convert(dict(capture.settings), Settings), link=capture.link, per_block=9)


def test_many_connections_and_then_few():
    """The program itself changes from one way to the other and back."""
    talks = []
    for number in range(MANY + 200):
        talk = Conversation(client=(f"10.1.{number >> 8}.{number & 255}", 40000), server=("10.0.0.2", 80))
        talk.handshake()
        talk.send("client", http_request(target=f"/{number}"))
        talk.send("server", http_response(200, body=b"%d" % number))
        talks.append(talk)
    opened = [frame for talk in talks for frame in talk.frames]
    before = [len(talk.frames) for talk in talks]
    for talk in talks:
        talk.close()
    closed = [frame for talk, at in zip(talks, before, strict=True) for frame in talk.frames[at:]]
    last = Conversation(client=("10.9.9.9", 40000), server=("10.0.0.2", 80))
    last.handshake()
    last.send("client", http_request(target="/last"))
    last.send("server", http_response(200))
    result = run(opened + closed + last.frames, Settings(tcp=TcpSettings(max_connections=10_000)))
    table = result.pipeline.connections
    assert (table.active, table.ended.count) == (0, 0)
    paths = [record["url"]["path"] for record in result.records]
    assert paths == [f"/{number}" for number in range(MANY + 200)] + ["/last"]


def test_ports_in_use_again_while_connections_are_shed():
    """What was shed is forgotten, also one that had ended: the next one on its ports is taken from its middle."""
    one = Conversation(client_isn=1000, server_isn=2000)
    one.handshake()
    one.send("client", http_request(target="/1"))
    one.send("server", http_response(200))
    one.close()
    two = Conversation(client_isn=500_000, server_isn=600_000)
    two.now_ns = one.now_ns + 1_000_000_000
    two.handshake()
    shed = len(two.frames)
    two.send("client", http_request(target="/2"))
    two.send("server", http_response(200))
    frames = one.frames + two.frames
    source = Frames(frames, per_block=1)
    sink = Kept()
    pipeline = make(source, Settings(), sink)
    for at in range(len(frames)):
        pipeline.loop.keep(0 if len(one.frames) <= at < len(one.frames) + shed else ALL)
        pipeline.loop.run(source.read(0))
    pipeline.finish()
    table = pipeline.connections
    assert (table.opened, table.midstream, pipeline.loop.shed) == (2, 1, shed)
    assert [json.loads(value)["url"]["path"] for _, value, _, _ in sink.sent] == ["/1", "/2"]
