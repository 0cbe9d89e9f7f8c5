"""More than can be held: whole connections are left out; of records first the bodies. What is kept is exact."""

import itertools
import json
import logging
import random
import time
import zlib

import pytest
from http_capture.capture.frame_loop import ALL
from http_capture.capture.overload import LEAST, LONGEST_PAUSE_NS, NS, Overload, Shedding
from http_capture.capture.sink import SinkStats
from http_capture.capture.source.block import Block
from http_capture.capture.source.ring import RingWalker
from http_capture.config.settings import OverloadSettings
from line import ALL_BODIES, DIALOGUES, Frames, Kept, comparable, make, speak, strict
from traffic import Conversation, fragment, http_request, http_response, mix

ROOM = 63
SHEDDING_COSTS = 0.05  # of what keeping costs


class Ring:
    """A model: blocks of 4 ms of traffic at `load` times what can be taken when all is kept."""

    def __init__(self, room=ROOM):
        self.room = room
        self.overload = Overload()
        self.now = 0.0  # seconds
        self.waiting = 0.0
        self.dropped = 0.0
        self.shares = []

    def run(self, seconds, load, pauses=()):
        """`pauses`: seconds from now at which the process does not run for 150 ms."""
        end = self.now + seconds
        due = [self.now + at for at in pauses]
        begin_dropped = self.dropped
        while self.now < end:
            share = self.overload.share / ALL
            took = 0.004 * (share + SHEDDING_COSTS * (1 - share))
            if due and self.now >= due[0]:
                due.pop(0)
                took += 0.15
            if self.waiting < 1:  # it waits for the next block
                took = max(took, 0.004 / load)
            came = took / 0.004 * load
            self.waiting = max(0.0, self.waiting + came - 1)
            self.dropped += max(0.0, self.waiting - self.room)
            self.waiting = min(self.waiting, float(self.room))
            self.now += took
            self.overload.step(int(self.waiting), self.room, int(self.now * NS))
            self.shares.append(self.overload.share / ALL)
        return self.dropped - begin_dropped

    @property
    def share(self):
        return self.overload.share / ALL


@pytest.mark.parametrize("load", [1.05, 1.2, 1.5, 2.0, 3.0, 5.0, 8.0])
def test_an_overload_costs_connections_and_hardly_a_frame(load):
    ring = Ring()
    begun = ring.run(3, load)
    assert begun < ROOM, "no more than another ring is lost before the share is found"
    assert ring.run(120, load) == 0
    late = ring.shares[len(ring.shares) // 2 :]
    fits = (1 / load - SHEDDING_COSTS) / (1 - SHEDDING_COSTS)
    assert sum(late) / len(late) > 0.93 * fits, "nearly all of what fits is kept"
    assert max(late) < 1.2 * fits + 0.01


@pytest.mark.parametrize("load", [1.3, 4.0])
def test_all_are_kept_again_when_it_is_over(load):
    ring = Ring()
    ring.run(10, load)
    assert ring.share < 1 / load
    assert ring.run(240, 0.7) == 0
    assert ring.share == 1


def test_a_pause_of_the_machine_is_no_overload():
    ring = Ring()
    assert ring.run(30, 0.7, pauses=range(1, 30, 2)) == 0
    assert set(ring.shares) == {1.0}
    assert max(ring.run(5, 0.9, pauses=(1,)) for _ in range(3)) == 0
    assert set(ring.shares) == {1.0}


@pytest.mark.parametrize("load", [1.04, 1.5])
def test_a_share_that_is_too_much_is_tried_less_and_less_often(load):
    ring = Ring()
    ring.run(3600, load)
    cuts = [later < earlier for earlier, later in itertools.pairwise(ring.shares)]
    assert sum(cuts[-len(cuts) // 2 :]) < 2 * 1800 * NS / LONGEST_PAUSE_NS


def test_the_share_never_becomes_nothing():
    ring = Ring()
    ring.run(20, 1000.0)
    assert ring.overload.share == LEAST


def test_a_ring_that_is_too_short_is_no_measure():
    ring = Ring(room=3)
    ring.run(10, 3.0)
    assert ring.share == 1


@pytest.mark.parametrize("kept", [0, 1, 3])
def test_what_waits_in_the_ring_is_counted(kept):
    count = 8
    for start, waiting in itertools.product(range(count), range(count - kept)):
        ring = bytearray(4096 * count)
        for number in range(-kept, 1 + waiting):
            at = 4096 * ((start + number) % count)
            ring[at + 8] = 1
        walker = RingWalker(ring, 4096, 1, False)
        for number in range(count):  # walks to the place, block by block
            if number == (start - kept) % count:
                break
            at = 4096 * number
            before, ring[at + 8] = ring[at + 8], 1
            walker.fill(Block(4))
            walker.release()
            ring[at + 8] = before
        for _ in range(kept):
            walker.fill(Block(4))
            assert walker.keep() == 1
        assert walker.waiting() == min(waiting, count - kept - 1), (start, waiting)


# --- Connections that are left out


def traffic(count=60, seed=1):
    """Frames of so many connections of all kinds, mixed, some fragmented; the names of the dialogues in their order."""
    chooser = random.Random(seed)
    conversations = []
    for number in range(count):
        conv = Conversation(
            (f"10.0.{number}.1", 30000 + number), ("10.1.0.2", 80), client_isn=1000 * number, server_isn=77 * number,
            mss=chooser.choice((100, 536, 1460)), step_ns=chooser.randrange(1, 4) * 1_000_000,
        )  # fmt: skip
        speak(conv, DIALOGUES[chooser.choice(("keep-alive", "pipelined", "1.0", "connect", "inside", "early answer"))])
        conversations.append(conv)
    frames = []
    for timestamp_ns, frame in mix(*conversations):
        whole = chooser.random() < 0.9
        frames += [(timestamp_ns, part) for part in ([frame] if whole else fragment(frame, 256))]
    return frames


def shared(frames, shares, per_block=20, workers=1, number=0):
    """The result of a run which keeps the shares, one after each block, again and again."""
    sink = Kept()
    pipeline = make(Frames(frames, per_block=per_block), ALL_BODIES, sink)
    pipeline.loop.share_with(workers, number, 0x1234567890ABCDEF)
    turns = itertools.cycle(shares)
    pipeline.loop.keep(next(turns))
    pipeline.run(lambda: False, lambda: pipeline.loop.keep(next(turns)))
    pipeline.finish()
    ledger = pipeline.ledger()
    assert ledger.imbalances == []
    records = [strict(value) and value for _, value, _, _ in sink.sent]
    return records, ledger.sections


def exact(values):
    """Whole exchanges by id, without what a connection that was taken from its middle rightly changes."""
    found = {}
    for value in values:
        record = comparable(json.loads(value), without=("midstream",))
        record["http_capture"].pop("uncertain", None)
        del record["http_capture"]["pipeline_index"]  # what came before was not seen
        record["network"].pop("tunnel", None)  # the CONNECT was not seen
        if record["http_capture"]["complete"]:
            assert record["event"]["id"] not in found
            found[record["event"]["id"]] = record
    return found


def ends(values):
    return {(record["source"]["ip"], record["source"]["port"]) for record in map(json.loads, values)}


FRAMES = traffic()


@pytest.fixture(scope="module")
def whole():
    records, sections = shared(FRAMES, [ALL])
    assert sections["segments"]["shed"] == sections["connections"]["shed"] == 0
    return records


class TestConnections:
    @pytest.mark.parametrize("part", [0.001, 0.1, 0.3, 0.5, 0.9])
    def test_are_left_out_whole(self, whole, part):
        records, sections = shared(FRAMES, [int(ALL * part)])
        kept = ends(records)
        assert records == [value for value in whole if ends([value]) <= kept]
        left = len(ends(whole)) - len(kept)
        assert abs(left / len(ends(whole)) - (1 - part)) < 0.25
        assert sections["connections"]["shed"] == left
        assert sections["connections"]["opened"] == len(kept)
        assert sections["segments"]["shed"] + sections["segments"]["total"] == sections["frames"]["segments"]
        assert (sections["bytes"]["shed"] > 0) == (left > 0)
        assert sections["connections"]["closed"]["shed"] == 0

    def test_with_a_larger_share_are_those_of_a_smaller_and_more(self):
        kept = [ends(shared(FRAMES, [ALL * part // 10])[0]) for part in range(1, 11)]
        assert all(less <= more for less, more in itertools.pairwise(kept))

    @pytest.mark.parametrize("seed", range(30))
    def test_whatever_share_is_kept_when(self, whole, seed):
        """Those with the lowest hashes are untouched, and of the others each whole exchange is as it was."""
        chooser = random.Random(seed)
        least = chooser.choice((0.05, 0.2, 0.5))
        shares = [int(ALL * chooser.uniform(least, 1.0)) for _ in range(50)]
        records, sections = shared(FRAMES, [*shares, int(ALL * least)], per_block=chooser.choice((1, 7, 40)))
        untouched = ends(shared(FRAMES, [int(ALL * least)])[0])
        assert [v for v in records if ends([v]) <= untouched] == [v for v in whole if ends([v]) <= untouched]
        everything = exact(whole)
        for identity, record in exact(records).items():
            assert record == everything[identity]
        assert sections["connections"]["closed"]["shed"] > 0

    def test_of_each_worker_are_left_out_for_themselves(self):
        found = []
        for number in range(3):
            records, sections = shared(FRAMES, [ALL // 2], workers=3, number=number)
            assert sections["segments"]["shed"] > 0
            found.append(ends(records))
        assert sum(map(len, found)) == len(found[0] | found[1] | found[2])
        assert ends(shared(FRAMES, [ALL])[0]) > found[0] | found[1] | found[2]

    def test_one_that_is_open_is_recorded_as_far_as_it_came_and_taken_again_from_its_middle(self):
        conv = Conversation(mss=30)
        conv.handshake()
        for number in range(3):
            conv.send("client", http_request("GET", f"/{number}"))
            conv.send("server", http_response(200, body=b"a body of some length"))
        conv.close()
        sent = [segment.payload for segment in conv.segments]
        cut = next(i for i, payload in enumerate(sent) if b"/1 " in payload) + 2
        back = next(i for i, payload in enumerate(sent) if b"/2 " in payload)
        shares = [ALL] * cut + [1] * (back - cut) + [ALL] * (len(sent) - back)
        records, sections = shared(conv.frames, shares, per_block=1)
        first, second, third = map(strict, records)
        assert (first.url.path, second.url.path, third.url.path) == ("/0", "/1", "/2")
        assert [record.http_capture.complete for record in (first, second, third)] == [True, False, True]
        assert second.http_capture.incomplete_reason == "shed"
        assert second.error.message == "given up because more traffic came than could be held"
        assert [record.http_capture.midstream for record in (first, second, third)] == [False, False, True]
        assert sections["connections"]["closed"]["shed"] == 1
        assert sections["exchanges"]["incomplete"]["shed"] == 1
        assert sections["segments"]["shed"] == back - cut


# --- Bodies that are left out


BODIES = [
    ("client", http_request("POST", "/", (("Content-Type", "text/plain"),), b"sent")),
    ("server", http_response(200, (("Content-Type", "text/plain"),), b"text" * 100)),
    ("client", http_request("GET", "/z")),
    ("server", http_response(200, (("Content-Type", "text/plain"), ("Content-Encoding", "deflate")),
                             zlib.compress(b"packed" * 50))),
    ("client", http_request("GET", "/none")),
    ("server", http_response(204)),
]  # fmt: skip


def with_bodies(shed):
    sink = Kept()
    pipeline = make(Frames(speak(Conversation(), BODIES).frames), ALL_BODIES, sink)
    pipeline.encoder.without_bodies = shed
    pipeline.run(lambda: False)
    pipeline.finish()
    ledger = pipeline.ledger()
    assert ledger.imbalances == []
    return [strict(value) for _, value, _, _ in sink.sent], ledger.sections["records"]["bodies_shed"]


def test_a_record_without_its_bodies_says_so_and_keeps_all_else():
    whole, none = with_bodies(False)
    left, two = with_bodies(True)
    assert (none, two) == (0, 2)
    assert [record.event.id for record in left] == [record.event.id for record in whole]
    assert [record.http_capture.bodies_shed for record in left] == [True, True, False]
    assert not any(record.http_capture.bodies_shed for record in whole)
    for one, other in zip(left, whole, strict=True):
        for name in ("request", "response"):
            body, before = getattr(one.http, name).body, getattr(other.http, name).body
            assert (body.bytes, body.decoded_bytes, body.decoding_error) == (
                before.bytes, before.decoded_bytes, before.decoding_error,
            )  # fmt: skip
            assert (body.content, body.encoding) == (None, None)
            assert body.truncated == (before.content is not None)
    assert whole[1].http.response.body.content == "packed" * 50


class Told:
    """A source and a sink of which the test says how full they are."""

    live = True
    waits = False

    def __init__(self):
        self.blocks = (0, ROOM)
        self.part = 0.0
        self.now_ns = 5 * NS  # since the host was started

    def waiting(self):
        return self.blocks

    def filled(self):
        return self.part

    def stats(self):
        return SinkStats()


@pytest.fixture
def told(caplog):
    caplog.set_level(logging.WARNING, "http_capture")
    logging.getLogger("http_capture").propagate = True
    return Told()


def shedding_of(told, **settings):
    pipeline = make(Frames([]), ALL_BODIES, Kept())
    parts = (told, told, pipeline.loop, pipeline.encoder)
    return Shedding(OverloadSettings(**settings), *parts, clock=lambda: told.now_ns), pipeline


def test_bodies_are_left_out_from_a_half_until_a_quarter(told, caplog):
    shedding, pipeline = shedding_of(told)
    seen = []
    for number, told.part in enumerate((0.4, 0.51, 0.9, 0.3, 0.26, 0.24, 0.4, 0.6, 0.2)):
        told.now_ns = number * NS + 100 * NS
        shedding.after_block()
        seen.append(pipeline.encoder.without_bodies)
    assert seen == [False, True, True, True, True, False, False, True, False]
    first, second = caplog.messages  # the second time came too soon after to be told again
    assert "bodies are left out of the records" in first
    assert "0 went without their bodies" in second


def test_by_policy_neither_is_left_out(told, caplog):
    shedding, pipeline = shedding_of(told, shed_bodies=False, shed_connections=False)
    told.part = 1.0
    for number in range(100):
        told.blocks = (ROOM, ROOM)
        told.now_ns = number * NS
        shedding.after_block()
    assert (pipeline.loop.kept, pipeline.encoder.without_bodies) == (ALL, False)
    assert caplog.messages == []


def test_an_overload_is_told_at_its_begin_now_and_then_and_at_its_end(told, caplog):
    shedding, pipeline = shedding_of(told)
    for waiting in (*range(20, 64, 4), *[63] * 50):
        told.blocks = (waiting, ROOM)
        told.now_ns += NS // 100
        shedding.after_block()
    assert pipeline.loop.kept < ALL // 4
    (line,) = caplog.messages
    assert "% of the connections are recorded, whole; the rest is shed" in line
    told.blocks = (0, ROOM)
    while pipeline.loop.kept < ALL:
        told.now_ns += NS
        shedding.after_block()
    assert 2 < len(caplog.messages) < 12
    assert caplog.messages[-1] == "all connections are recorded again; 0 segments were shed"


def test_the_share_rises_again_where_the_clock_of_the_frames_stands_still(told):
    """As it does when it was set back: nothing here goes by it."""
    shedding, pipeline = shedding_of(told)
    for told.blocks, share in (((ROOM, ROOM), LEAST), ((0, ROOM), ALL)):
        for _ in range(300):
            told.now_ns += NS
            shedding.after_block()
        assert pipeline.loop.kept == share


def test_the_clock_is_one_that_cannot_be_set(told):
    pipeline = make(Frames([]), ALL_BODIES, Kept())
    assert Shedding(OverloadSettings(), told, told, pipeline.loop, pipeline.encoder)._clock is time.monotonic_ns
