"""The table: which connection a segment belongs to, what opens and ends one, and the bounds."""

import json
import random

import pytest
from http_capture.config.settings import BodySettings, Settings, TcpSettings
from line import Frames, Result, comparables, make, run, strict
from traffic import (
    ACK,
    FIN,
    PSH,
    RST,
    START_NS,
    SYN,
    URG,
    Conversation,
    Frame,
    fragment,
    http_request,
    http_response,
    mix,
)

MS = 1_000_000
SECOND = 1000 * MS


def exchange(conv: Conversation, target: str = "/") -> None:
    conv.send("client", http_request("GET", target))
    conv.send("server", http_response(200, body=target.encode()))
    conv.ack("client")


def seen(result: Result) -> list[str]:
    """Target and status, or why not, of each record."""
    return [
        f"{record.get('url', {}).get('original')} {record['http_capture'].get('incomplete_reason', 'complete')}"
        for record in result.records
    ]


def connections(result: Result) -> dict[str, int]:
    closed: dict[str, int] = result.ledger.sections["connections"]["closed"]
    return {reason: count for reason, count in closed.items() if count}


def bounded(**bounds: float) -> Settings:
    return Settings(body=BodySettings(keep="all"), tcp=TcpSettings(**bounds))  # type: ignore[arg-type]


def test_ports_in_use_again() -> None:
    """A new SYN on the ports of a connection that has ended, been reset, or is half closed."""
    frames: list[Frame] = []
    now_ns = None
    for isn, end in ((1000, "close"), (50_000, "rst"), (90_000, "fin"), (200_000, "none"), (7_000_000, "close")):
        conv = Conversation(client_isn=isn, server_isn=isn + 7)
        if now_ns is not None:
            conv.now_ns = now_ns + 10 * MS
        conv.handshake()
        exchange(conv, f"/{isn}")
        if end == "close":
            conv.close()
        elif end == "rst":
            conv.rst("client")
        elif end == "fin":
            conv.fin("client")
        frames += conv.frames
        now_ns = conv.now_ns
    result = run(frames)
    assert sorted(seen(result)) == sorted(f"/{isn} complete" for isn in (1000, 50_000, 90_000, 200_000, 7_000_000))
    assert result.ledger.sections["connections"]["opened"] == 5


def test_a_stray_syn_does_not_end_a_connection() -> None:
    """Forged, or of an old connection: nobody answers it (RFC 5961 section 4)."""
    conv = Conversation()
    conv.handshake()
    conv.send("client", http_request())
    conv.segment("client", SYN, seq=123_456_789)
    conv.segment("server", SYN | ACK, seq=987_654_321, ack=5)
    conv.send("server", http_response(200, body=b"x"))
    exchange(conv, "/next")
    conv.close()
    assert seen(run(conv.frames)) == ["/ complete", "/next complete"]


@pytest.mark.parametrize("after_ms", [0, 1, 100])
def test_copies_of_the_beginning_after_the_end(after_ms: int) -> None:
    """A mirror that sends frames twice, late: no new connection, no second record."""
    conv = Conversation(step_ns=1000)
    conv.handshake()
    exchange(conv)
    conv.close()
    again = [(timestamp_ns + after_ms * MS + 50_000, frame) for timestamp_ns, frame in conv.frames]
    result = run(mix(conv, again))
    assert seen(result) == ["/ complete"]
    assert result.ledger.sections["connections"]["opened"] == 1


@pytest.mark.parametrize("lost", ["", "SYN", "SYN ACK", "both"])
@pytest.mark.parametrize("first", ["client", "server"])
def test_midstream(lost: str, first: str) -> None:
    """Any part of the handshake is missing, and the first frame is of either side."""
    conv = Conversation()
    conv.handshake(drop={"": set(), "SYN": {0}, "SYN ACK": {1}, "both": {0, 1}}[lost])
    exchange(conv, "/a")
    exchange(conv, "/b")
    conv.close()
    frames = list(conv.frames)
    if first == "server":  # the mirror has put an answer before its request
        at = [i for i, (_, frame) in enumerate(frames) if b"GET /a" in frame or b"200 OK" in frame]
        early, late = frames[at[0]], frames[at[1]]
        frames[at[0]], frames[at[1]] = (early[0], late[1]), (late[0], early[1])
    result = run(frames)
    assert seen(result) == ["/a complete", "/b complete"]
    assert {record["source"]["port"] for record in result.records} == {40000}
    assert {record["http_capture"]["midstream"] for record in result.records} == {lost == "both"}


def test_midstream_begins_with_an_answer() -> None:
    conv = Conversation()
    conv.send("server", http_response(200, body=b"of what was asked before"))
    conv.wait(SECOND)
    exchange(conv, "/a")
    conv.close()
    result = run(conv.frames)
    assert seen(result) == ["None no_request", "/a complete"]
    assert {record["destination"]["port"] for record in result.records} == {80}


@pytest.mark.parametrize(
    ("side", "flags", "seq"),
    [("client", RST, 1 << 31), ("server", RST | ACK, 1 << 30), ("client", RST, 12), ("server", RST | ACK, 4000)],
)
def test_resets_outside_the_stream(side: str, flags: int, seq: int) -> None:
    """Forged or late: ignored, and counted (RFC 5961 section 3)."""
    conv = Conversation()
    conv.handshake()
    exchange(conv, "/a")
    conv.segment(side, flags, seq=seq)  # type: ignore[arg-type]
    exchange(conv, "/b")
    conv.close()
    result = run(conv.frames)
    assert seen(result) == ["/a complete", "/b complete"]
    assert result.ledger.sections["segments"]["resets_ignored"] == 1


@pytest.mark.parametrize("side", ["client", "server"])
def test_a_reset_ends_a_connection(side: str) -> None:
    conv = Conversation()
    conv.handshake()
    conv.send("client", http_request())
    conv.send("server", http_response(200, (("Content-Length", "99"),), b"half"))
    conv.rst(side)  # type: ignore[arg-type]
    other = Conversation(("10.0.0.9", 1), start_ns=conv.now_ns + SECOND)
    other.handshake()
    result = run(mix(conv, other))
    assert seen(result) == ["/ closed"]
    assert connections(result) == {"rst": 1, "shutdown": 1}


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_fin_before_all_else(order: tuple[int, int]) -> None:
    conv = Conversation()
    conv.handshake()
    exchange(conv)
    conv.fin("server")
    conv.fin("client")
    conv.ack("server")
    frames = list(conv.frames)
    fins = [frames.pop(-3), frames.pop(-2)]
    early = [(frames[0][0] - 2 * MS + i, fins[j][1]) for i, j in enumerate(order)]
    result = run([*early, *frames])
    assert comparables(result.records, without=["midstream"]) == comparables(
        run(conv.frames).records, without=["midstream"]
    )
    assert connections(result) == {"fin": 1}


def test_what_is_not_tracked() -> None:
    """Bare acknowledgements and resets open nothing; late ones of an ended connection are late."""
    conv = Conversation()
    conv.ack("client")
    conv.rst("server")
    result = run(conv.frames)
    assert result.ledger.sections["segments"]["untracked"] == 2
    assert result.ledger.sections["connections"]["opened"] == 0
    conv = Conversation()
    conv.handshake()
    exchange(conv)
    conv.close()
    conv.rst("client")
    conv.retransmit(3)
    result = run(conv.frames)
    assert result.ledger.sections["segments"]["late"] == 3
    assert seen(result) == ["/ complete"]


@pytest.mark.parametrize(
    ("idle_seconds", "open_", "expected"),
    [
        (0.9, True, {"shutdown": 2}),
        (1.2, True, {"timeout": 1, "shutdown": 1}),
        (0.3, False, {"timeout": 1, "shutdown": 1}),
    ],
    ids=["not yet", "idle", "handshake"],
)
def test_timeouts(idle_seconds: float, open_: bool, expected: dict[str, int]) -> None:
    conv = Conversation()
    conv.handshake()
    if open_:
        conv.send("client", http_request())
    other = Conversation(("10.0.0.9", 1), start_ns=conv.now_ns + int(idle_seconds * SECOND))
    other.handshake()
    tcp = bounded(idle_timeout_seconds=1.0, handshake_timeout_seconds=0.2, max_connections=10)
    result = run(mix(conv, other), tcp)
    assert connections(result) == expected
    assert seen(result) == ((["/ timeout"] if "timeout" in expected else ["/ shutdown"]) if open_ else [])


def test_who_is_evicted() -> None:
    """The ended ones first, then those without payload, then the longest idle."""
    frames: list[Frame] = []
    for i, kind in enumerate(("busy", "ended", "handshake", "idle")):
        conv = Conversation((f"10.0.0.{i}", 1), start_ns=1_700_000_000_000_000_000 + i * MS, step_ns=1000)
        conv.handshake()
        if kind != "handshake":
            conv.send("client", http_request("GET", f"/{kind}"))
        if kind == "ended":
            conv.send("server", http_response(204))
            conv.close()
        if kind == "busy":
            conv.wait(SECOND)
            conv.send("server", http_response(204))
        frames += conv.frames
    for i in range(3):
        conv = Conversation((f"10.0.1.{i}", 1), start_ns=1_700_000_002_000_000_000 + i * SECOND)
        conv.handshake()
        conv.send("client", http_request("GET", f"/new{i}"))
        frames += conv.frames
    result = run(sorted(frames), bounded(max_connections=4))
    assert connections(result) == {"fin": 1, "evicted": 2, "shutdown": 4}
    assert result.ledger.sections["connections"]["ended_evicted"] == 1
    assert sorted(seen(result)) == [
        "/busy complete", "/ended complete", "/idle evicted", "/new0 shutdown", "/new1 shutdown", "/new2 shutdown"
    ]  # fmt: skip


def test_connections_side_by_side() -> None:
    """The same numbers and ports, other addresses, both versions; and both directions find the same connection."""
    convs = []
    for i in range(60):
        ends = (f"10.0.0.{i}", "10.1.0.1") if i % 2 else (f"fd00::{i:x}", "fd00:1::1")
        if i % 3 == 0:
            ends = (ends[1], ends[0])
        conv = Conversation((ends[0], 40000), (ends[1], 80), start_ns=1_700_000_000_000_000_000 + i)
        conv.handshake()
        exchange(conv, f"/{i}")
        conv.close()
        convs.append(conv)
    result = run(mix(*convs))
    assert sorted(seen(result)) == sorted(f"/{i} complete" for i in range(60))
    clients = {record["url"]["original"]: record["source"]["ip"] for record in result.records}
    assert (clients["/0"], clients["/1"], clients["/2"], clients["/3"]) == (
        "fd00:1::1",
        "10.0.0.1",
        "fd00::2",
        "10.1.0.1",
    )


def test_not_http_is_left() -> None:
    conv = Conversation()
    conv.handshake()
    conv.send("client", b"\x16\x03\x01 not HTTP")
    conv.send("server", b"\x16\x03\x03 not HTTP")
    for _ in range(20):
        conv.send("client", http_request())
        conv.send("server", http_response())
    conv.close()
    result = run(conv.frames)
    assert seen(result) == []
    assert result.ledger.sections["connections"]["not_http"] == 1
    assert result.ledger.sections["segments"]["ignored"] > 40


def test_it_keeps_nothing() -> None:
    """Many connections, one after the other: what is known of them is gone when their time is over."""
    active: list[int] = []
    frames: list[Frame] = []
    for i in range(2000):
        conv = Conversation(("10.0.0.1", 1024 + i), start_ns=1_700_000_000_000_000_000 + i * 50 * MS, step_ns=10_000)
        conv.handshake()
        exchange(conv)
        conv.close()
        frames += conv.frames
    pipeline = make(Frames(frames, per_block=100))
    pipeline.run(lambda: False, lambda: active.append(pipeline.connections.active))
    assert 100 < max(active) < 10 * 20 + 20  # the closing timeout is 10 s, in which 200 of them end
    pipeline.finish()
    assert pipeline.ledger().imbalances == []


@pytest.mark.parametrize("step_ns", [-5 * MS, 0])
def test_time_that_does_not_go_on(step_ns: int) -> None:
    conv = Conversation(step_ns=step_ns)
    conv.handshake()
    exchange(conv)
    conv.send("client", b"", drop=True)
    conv.segment("server", FIN | ACK)
    result = run(conv.frames)
    assert seen(result) == ["/ complete"]


# TCP under loss.


def later(conv: Conversation, seconds: float = 1.0) -> Conversation:
    """Another connection, so that the time of the frames goes on."""
    other = Conversation(("10.9.9.9", 9), start_ns=conv.now_ns + int(seconds * SECOND))
    other.handshake()
    return other


@pytest.mark.parametrize("body_ms", [1, 500])
@pytest.mark.parametrize("lost", [("server",), ("client",), ("client", "server")])
def test_fin_lost(lost: tuple[str, ...], body_ms: int) -> None:
    """The acknowledgement of its number tells of a FIN that was not captured: the body that it ends is whole."""
    conv = Conversation()
    conv.handshake()
    conv.send("client", http_request())
    conv.send("server", http_response(200, (), b"until the end", length=False))
    conv.wait(body_ms * MS)
    conv.fin("server", drop="server" in lost)
    conv.ack("client")
    conv.wait(body_ms * MS)
    conv.fin("client", drop="client" in lost)
    conv.ack("server")
    result = run(mix(conv, later(conv)))
    assert seen(result) == ["/ complete"]
    assert result.ledger.sections["bytes"]["gaps"] == 0
    closed = connections(result)
    assert closed == ({"shutdown": 2} if len(lost) == 2 else {"fin": 1, "shutdown": 1})


def test_one_lost_byte_is_no_fin() -> None:
    """The connection goes on after the acknowledgement: what lacks is a byte."""
    conv = Conversation()
    conv.handshake()
    conv.send("client", http_request("GET", "/a"))
    answer = http_response(200, (), b"0123456789")
    conv.send("server", answer[:-1])
    conv.send("server", answer[-1:], drop=True)
    conv.ack("client")
    conv.wait(SECOND)
    exchange(conv, "/b")
    conv.close()
    result = run(conv.frames)
    assert seen(result) == ["/a gap", "/b complete"]
    assert result.ledger.sections["bytes"]["gaps"] == 1


@pytest.mark.parametrize(
    ("side", "ahead"), [("client", 1000), ("server", 1), ("client", 60_000)], ids=["ahead", "next but one", "window"]
)
def test_resets_in_the_window(side: str, ahead: int) -> None:
    """In the window, and not where the stream is: its receiver ignores it (RFC 5961 section 3), and so do we."""
    conv = Conversation()
    conv.handshake()
    exchange(conv, "/a")
    conv.segment(side, RST, seq=conv.next_number(side) + ahead)  # type: ignore[arg-type]
    conv.wait(SECOND)
    exchange(conv, "/b")
    conv.close()
    result = run(conv.frames)
    assert seen(result) == ["/a complete", "/b complete"]
    assert result.ledger.sections["segments"]["resets_ignored"] == 1
    assert connections(result) == {"fin": 1}


@pytest.mark.parametrize("side", ["client", "server"])
def test_a_reset_that_its_sender_does_not_know_of(side: str) -> None:
    """Exactly where the stream is, but bytes of that side follow: who resets a connection sends no more."""
    conv = Conversation()
    conv.handshake()
    exchange(conv, "/a")
    conv.segment(side, RST, seq=conv.next_number(side))  # type: ignore[arg-type]
    exchange(conv, "/b")
    conv.close()
    result = run(mix(conv, later(conv)))
    assert seen(result) == ["/a complete", "/b complete"]


@pytest.mark.parametrize(("ack", "ended"), [(1001, True), (1000, False), (1002, False), (None, False)])
def test_a_reset_that_answers_a_syn(ack: int | None, ended: bool) -> None:
    """Its number is 0; it ends the attempt only where it acknowledges the SYN (RFC 9293 section 3.10.7.3)."""
    conv = Conversation()
    conv.segment("client", SYN, seq=conv.isn["client"])
    conv.segment("server", RST if ack is None else RST | ACK, seq=0, ack=ack)
    conv.wait(SECOND)
    if not ended:
        conv.segment("server", SYN | ACK, seq=conv.isn["server"])
        exchange(conv)
    result = run(mix(conv, later(conv)))
    assert seen(result) == ([] if ended else ["/ complete"])
    assert connections(result) == ({"rst": 1, "shutdown": 1} if ended else {"shutdown": 2})


def test_a_true_reset_after_a_forged_one() -> None:
    conv = Conversation()
    conv.handshake()
    conv.send("client", http_request())
    conv.segment("server", RST, seq=conv.next_number("server") + 500)
    conv.rst("server")
    result = run(mix(conv, later(conv)))
    assert seen(result) == ["/ no_response"]
    assert connections(result) == {"rst": 1, "shutdown": 1}
    assert result.ledger.sections["segments"]["resets_ignored"] == 1


def test_a_forged_reset_at_the_end_of_the_capture() -> None:
    conv = Conversation()
    conv.handshake()
    conv.send("client", http_request())
    conv.segment("server", RST, seq=conv.next_number("server") + 500)
    assert seen(run(conv.frames)) == ["/ shutdown"]


def test_a_reset_after_what_the_capture_has_lost() -> None:
    """There is a hole before it that the other side has acknowledged."""
    conv = Conversation()
    conv.handshake()
    conv.send("client", http_request())
    conv.send("server", http_response(200, (("Content-Length", "1000"),), b"x" * 400), mss=200, drop={1})
    conv.ack("client")
    conv.rst("server")
    result = run(mix(conv, later(conv)))
    assert seen(result) == ["/ closed"]
    assert result.records[0]["http_capture"]["gap_bytes"] == 200
    assert connections(result) == {"rst": 1, "shutdown": 1}


@pytest.mark.parametrize("probe", [b"", b"\0", b"x"])
def test_probes(probe: bytes) -> None:
    """Keep-alive (RFC 9293 section 3.8.4): the byte before the next one, or none of it, of any value. A zero window is
    probed with the next byte (section 3.8.6.1), or as a keep-alive; it comes again when the window opens."""
    conv = Conversation()
    conv.handshake()
    exchange(conv, "/a")
    for side in ("client", "server", "client"):
        conv.wait(SECOND)
        conv.segment(side, ACK, probe, seq=conv.next_number(side) - 1)  # type: ignore[arg-type]
    answer = http_response(200, body=b"0123456789" * 10)
    conv.send("client", http_request("GET", "/b"))
    conv.send("server", answer[:60])
    conv.window = 0
    conv.ack("client")
    for _ in range(3):
        conv.wait(SECOND)
        conv.segment("server", ACK, answer[60:61])
        conv.segment("client", ACK, ack=conv.next_number("server"))
        conv.segment("server", ACK, seq=conv.next_number("server") - 1)
    conv.window = 65535
    conv.ack("client")
    conv.send("server", answer[60:])
    conv.close()
    result = run(conv.frames)
    assert seen(result) == ["/a complete", "/b complete"]
    assert result.records[1]["http"]["response"]["body"]["content"] == "0123456789" * 10
    assert result.ledger.sections["segments"]["conflicting"] == 0
    assert result.ledger.sections["bytes"]["gaps"] == 0


@pytest.mark.parametrize(
    ("pointer", "taken"), [(0, 0), (1, 0), (5, 4), (1000, None), (15, 14)], ids=["0", "1", "inside", "beyond", "end"]
)
@pytest.mark.parametrize("early", [False, True])
def test_urgent_data(pointer: int, taken: int | None, early: bool) -> None:
    """One byte is not read by the server, so it is no part of the request (RFC 6093 section 3.1)."""
    request = http_request("GET", "/0123456789")
    conv = Conversation()
    conv.handshake()
    conv.segment("client", ACK | PSH | URG, request[:15])
    conv.sent["client"] = 15
    timestamp_ns, frame = conv.frames[-1]
    conv.frames[-1] = (timestamp_ns, frame[:52] + pointer.to_bytes(2, "big") + frame[54:])
    conv.send("client", request[15:])
    conv.send("server", http_response(204))
    conv.close()
    if early:
        conv.frames[-6:-4] = [conv.frames[-5], conv.frames[-6]]
    result = run(conv.frames)
    read = request if taken is None else request[:taken] + request[taken + 1 :]
    line = read.split(b"\r\n")[0].decode()
    (record,) = result.records
    assert f"{record['http']['request']['method']} {record['url']['original']} HTTP/1.1" == line
    assert result.ledger.sections["bytes"]["urgent"] == (taken is not None)


@pytest.mark.parametrize("side", ["client", "server"])
@pytest.mark.parametrize("lost", [False, True])
def test_one_direction_is_captured(side: str, lost: bool) -> None:
    """Asymmetric routing: the other direction is never seen. A loss is a gap after ten reorder windows."""
    conv = Conversation(mss=100)
    conv.handshake()
    for number in range(3):
        drop = {3} if lost and number == 1 else ()
        conv.send("client", http_request("POST", f"/{number}", body=b"x" * 400), drop=drop)
        conv.send("server", http_response(200, body=b"y" * 400), drop=drop)
        conv.wait(5 * SECOND)
    conv.close()
    frames = [
        frame
        for segment, frame in zip([s for s in conv.segments if s.captured], conv.frames, strict=True)
        if segment.side == side
    ]
    result = run(frames)
    reasons = ["shutdown" if side == "client" else "no_request"] * 3
    if lost and side == "client":
        reasons[1] = "gap"
    assert [record["http_capture"]["incomplete_reason"] for record in result.records] == reasons
    kind = "request" if side == "client" else "response"
    assert [record["http"][kind]["body"]["bytes"] for record in result.records] == [400] * 3
    assert [record["http_capture"]["gap_bytes"] for record in result.records] == [0, 100 * lost, 0]
    assert {record["source"]["port"] for record in result.records} == {40000}


@pytest.mark.parametrize("end", ["fin", "rst", "none"])
@pytest.mark.parametrize("wait_ms", [1, 300, 900])
@pytest.mark.parametrize("data", [b"", http_request("GET", "/2")], ids=["plain", "fast open"])
def test_a_port_pair_again_within_a_second(end: str, wait_ms: int, data: bytes) -> None:
    """Each exchange is of its own connection, with the time of its own handshake."""
    one = Conversation()
    one.handshake()
    exchange(one, "/1")
    if end == "fin":
        one.close()
    elif end == "rst":
        one.rst("client")
    two = Conversation(client_isn=70_000, server_isn=90_000, start_ns=one.now_ns + wait_ms * MS)
    two.segment("client", SYN, data, ack=0, seq=70_000)
    two.sent["client"] = len(data)
    two.wait(4 * MS)
    two.segment("server", SYN | ACK, seq=90_000)
    two.ack("client")
    if not data:
        two.send("client", http_request("GET", "/2"))
    two.send("server", http_response(204))
    two.close()
    result = run(mix(one, two))
    if data and end == "none":  # which connection the SYN's data belongs to was not known when it came
        assert seen(result)[0] == "/1 complete"
    else:
        assert seen(result) == ["/1 complete", "/2 complete"]
        assert [record["http_capture"]["timing"]["connect"] for record in result.records] == [2 * MS, 6 * MS]
    sections = result.ledger.sections
    assert (sections["connections"]["opened"], sections["connections"]["midstream"]) == (2, 0)


@pytest.mark.parametrize("accepted", [True, False])
def test_data_on_syn(accepted: bool) -> None:
    """TCP Fast Open (RFC 7413): what the server does not acknowledge with its SYN is sent again."""
    request = http_request("POST", "/", body=b"fast")
    conv = Conversation()
    conv.segment("client", SYN, request, seq=conv.isn["client"], ack=0)
    if accepted:
        conv.sent["client"] = len(request)
    conv.segment("server", SYN | ACK, seq=conv.isn["server"])
    conv.ack("client")
    if not accepted:
        conv.send("client", request)
    conv.send("server", http_response(204))
    conv.close()
    result = run(conv.frames)
    assert seen(result) == ["/ complete"]
    assert result.records[0]["http_capture"]["timing"]["connect"] == 2 * MS
    assert not result.records[0]["http_capture"]["midstream"]
    assert result.ledger.sections["segments"]["conflicting"] == 0


def test_window_scale_is_not_needed() -> None:
    """Bytes far beyond an unscaled window are bytes: the option was not captured."""
    conv = Conversation(window=10)
    conv.handshake(drop={0, 1})
    conv.send("client", http_request())
    conv.send("server", http_response(200, body=b"x" * 400_000))
    conv.frames[5], conv.frames[-1] = (conv.frames[5][0], conv.frames[-1][1]), (conv.frames[-1][0], conv.frames[5][1])
    conv.close()
    assert seen(run(conv.frames)) == ["/ complete"]


@pytest.mark.parametrize("overlap", ["first", "last", "linux"])
def test_overlap_policy_of_the_settings(overlap: str) -> None:
    conv = Conversation()
    conv.handshake()
    (at,) = conv.send("client", b"G", drop=True)
    conv.send("client", b"ET /one HTTP/1.1\r\n\r\n")
    conv.segment("client", ACK, b"ET /two HTTP/1.1\r\n\r\nlonger", seq=conv.number("client", 1))
    conv.retransmit(at)
    conv.send("server", http_response(204))
    result = run(conv.frames, bounded(overlap=overlap, max_connections=10))  # type: ignore[arg-type]
    assert result.records[0]["url"]["original"] == ("/one" if overlap == "first" else "/two")
    assert result.ledger.sections["segments"]["conflicting"] == 1
    assert result.ledger.sections["bytes"]["conflicting"] == 3


def test_checksums_of_the_settings() -> None:
    conv = Conversation()
    conv.handshake()
    conv.send("client", http_request("GET", "/good"))
    timestamp_ns, frame = conv.frames[-1]
    conv.frames.insert(-1, (timestamp_ns - 1, frame.replace(b"/good", b"/evil")))
    conv.send("server", http_response(204))
    conv.close()
    result = run(conv.frames)
    assert seen(result) == ["/evil complete"]
    assert result.ledger.sections["segments"]["conflicting"] == 1
    result = run(conv.frames, bounded(verify_checksums=True, max_connections=10))
    assert seen(result) == ["/good complete"]
    assert result.ledger.sections["frames"]["drops"]["bad_checksum"] == 1


def test_cut_frames_sent_again_in_full() -> None:
    """A frame that was cut behind a hole; its retransmission is whole, and fills it."""
    conv = Conversation()
    conv.handshake()
    conv.send("client", http_request())
    answer = http_response(200, body=b"0123456789" * 20)
    (hole,) = conv.send("server", answer[:30], drop=True)
    (cut,) = conv.send("server", answer[30:])
    timestamp_ns, frame = conv.frames[-1]
    conv.retransmit(cut)
    conv.retransmit(hole)
    conv.close()
    frames: list[tuple[int, bytes] | tuple[int, bytes, int, int]] = list(conv.frames)
    frames[frames.index((timestamp_ns, frame))] = (timestamp_ns, frame[:100], 1, len(frame))
    assert seen(run(frames)) == ["/ complete"]
    frames = [(ns, data[:100], 1, len(data)) for ns, data in conv.frames]
    assert seen(run(frames)) == ["/ truncated_capture"]


# The clock of the host is set, or a file has times of two clocks.

HOUR = 3600 * SECOND


def talk(start_ns: int, seconds: float, port: int = 7000, conv: Conversation | None = None) -> Conversation:
    """An exchange every 100 ms; of a connection that is open already, or a new one."""
    if conv is None:
        conv = Conversation(("10.8.0.1", port))
    new = not conv.frames
    conv.now_ns = start_ns
    if new:
        conv.handshake()
    while conv.now_ns < start_ns + int(seconds * SECOND):
        exchange(conv, f"/{len(conv.frames)}")
        conv.wait(100 * MS - 3 * conv.step_ns)
    return conv


def reordered(start_ns: int) -> Conversation:
    """The mirror shows a segment only when its receiver has acknowledged it."""
    conv = Conversation(("10.8.0.2", 1), start_ns=start_ns)
    conv.handshake()
    conv.send("client", http_request("GET", "/reordered"))
    conv.send("server", http_response(200, body=b"x" * 5000))
    conv.ack("client")
    late = conv.frames.pop(5)
    conv.frames.append((conv.now_ns, late[1]))
    return conv


def steps(result: Result) -> int:
    number: int = result.ledger.sections["connections"]["clock_steps"]
    return number


@pytest.mark.parametrize("back_seconds", [5, 3600, 50 * 365 * 86400], ids=["seconds", "hour", "years"])
@pytest.mark.parametrize("known", [False, True], ids=["before it is known", "when it is known"])
def test_reordering_after_the_clock_was_set_back(back_seconds: int, known: bool) -> None:
    """What comes out of order is no gap; and once it is known, a fragment waits for the others."""
    now = talk(START_NS - back_seconds * SECOND, 1.5 if known else 0.5, 7001)
    conv = reordered(now.now_ns)
    parts = [(timestamp_ns, part) for timestamp_ns, frame in conv.frames for part in fragment(frame, 512)]
    last = parts if known else conv.frames
    result = run([*talk(START_NS, 0.5).frames, *now.frames, *last], per_block=1)
    assert {line.split()[1] for line in seen(result)} == {"complete"}
    assert result.ledger.sections["bytes"]["gaps"] == 0
    assert steps(result) == known
    assert (result.pipeline.connections.now_ns == parts[-1][0]) == known


def test_timeouts_after_the_clock_was_set_back() -> None:
    """Also while frames come all the time: each has its own time to be idle, and no more."""
    frames = list(talk(START_NS, 0.5).frames)
    active: list[int] = []
    for second in range(60):
        frames += talk(START_NS - HOUR + second * SECOND, 0.9, 8000 + second).frames
    pipeline = make(Frames(frames, per_block=1), bounded(idle_timeout_seconds=10.0, max_connections=1000))
    pipeline.run(lambda: False, lambda: active.append(pipeline.connections.active))
    assert max(active) <= 12
    assert pipeline.connections.active == 10
    pipeline.finish()
    closed = pipeline.ledger().sections["connections"]["closed"]
    assert (closed["timeout"], closed["shutdown"], closed["evicted"]) == (51, 10, 0)


@pytest.mark.parametrize("waits_for", ["the hole", "the end", "the start"])
@pytest.mark.parametrize("back_ns", [5 * SECOND, HOUR])
def test_what_is_waited_for_when_the_clock_is_set_back(waits_for: str, back_ns: int) -> None:
    """No longer than two reorder windows after it is known that the clock was set."""
    conv = Conversation(mss=200)
    if waits_for != "the start":
        conv.handshake()
    conv.send("client", http_request("GET", "/a"))
    if waits_for == "the hole":
        conv.send("server", http_response(200, body=b"x" * 600), drop={1})
        conv.ack("client")
    if waits_for == "the end":
        conv.rst("client")
    after = Conversation(("10.8.0.1", 1), start_ns=conv.now_ns - back_ns, step_ns=10 * MS)
    after.handshake()
    for _ in range(300):
        after.ack("client")
    known_ns = after.frames[0][0] + SECOND
    pipeline = make(Frames([*conv.frames, *after.frames], per_block=1))
    table = pipeline.connections
    before = (0, 0, 0) if waits_for == "the start" else (0, 0, 1)
    times: list[int] = []

    def look() -> None:
        if (table.reassembly.gaps, table.closed[1], pipeline.limits.requests) != before and table.now_ns < START_NS:
            times.append(table.now_ns)

    pipeline.run(lambda: False, look)
    assert known_ns < times[0] < known_ns + 500 * MS


def test_one_frame_with_a_wrong_time() -> None:
    """Far behind, it changes nothing; far ahead, the clock comes back in a second."""
    for wrong_ns, times in ((-HOUR, 0), (HOUR, 1)):
        conv = talk(START_NS, 5.0)
        at = len(conv.frames) // 2
        conv.frames[at] = (conv.frames[at][0] + wrong_ns, conv.frames[at][1])
        result = run(conv.frames)
        assert steps(result) == times
        assert result.pipeline.connections.now_ns == conv.frames[-1][0]
        assert result.ledger.sections["bytes"]["gaps"] == 0


def test_files_of_two_clocks_are_merged() -> None:
    """Frame by frame: the clock is the later one, and neither side is idle by it."""
    one, two = talk(START_NS, 10.0), talk(START_NS - 60 * SECOND, 10.0, 7001)
    frames = [frame for pair in zip(one.frames, two.frames, strict=True) for frame in pair]
    result = run(frames, bounded(idle_timeout_seconds=20.0, max_connections=10))
    assert connections(result) == {"shutdown": 2}
    assert steps(result) == 0


@pytest.mark.parametrize("apart_ns", [15 * SECOND, HOUR])
def test_the_clock_goes_back_and_forth(apart_ns: int) -> None:
    """Every few seconds: what it was set back it may go forward again, and no connection is idle by it."""
    frames: list[Frame] = []
    one, two = Conversation(), Conversation(("10.8.0.1", 1))
    for second in range(0, 60, 2):
        for conv, start_ns in ((one, START_NS), (two, START_NS - apart_ns)):
            known = len(conv.frames)
            frames += talk(start_ns + second * SECOND, 2.0, conv=conv).frames[known:]
    result = run(frames, bounded(idle_timeout_seconds=20.0, max_connections=10))
    assert connections(result) == {"shutdown": 2}
    assert {line.split()[1] for line in seen(result)} == {"complete"}
    assert steps(result) == 59


def test_silence_in_a_file_is_time_also_after_the_clock_was_set_back() -> None:
    """But for what it was set back."""
    frames = [*talk(START_NS, 0.5).frames, *talk(START_NS - 30 * SECOND, 1.5, 7001).frames]
    settings = bounded(idle_timeout_seconds=20.0, max_connections=10)
    silent = talk(START_NS + 60 * SECOND, 0.5, 7002)
    assert connections(run([*frames, *silent.frames], settings)) == {"timeout": 2, "shutdown": 1}
    silent = talk(START_NS, 0.5, 7002)
    assert connections(run([*frames, *silent.frames], settings)) == {"shutdown": 3}


def test_the_clock_is_set_while_the_nic_is_idle() -> None:
    """The host's clock is the time then."""
    conv = talk(START_NS, 0.5)
    pipeline = make(Frames(conv.frames))
    pipeline.run(lambda: False)
    table = pipeline.connections
    for _ in range(100):
        table.tick(START_NS - HOUR)  # one and the same: nobody's clock
    assert table.now_ns == conv.frames[-1][0]
    for tenth in range(11):
        assert table.now_ns == conv.frames[-1][0]
        table.tick(START_NS - HOUR + tenth * 100 * MS)
    assert table.now_ns == START_NS - HOUR + SECOND
    for second in range(1, 305):
        assert table.active == (second < 302)
        table.tick(START_NS - HOUR + second * SECOND)


@pytest.mark.parametrize("live", [True, False])
def test_the_clock_is_set_forward(live: bool) -> None:
    """Of a NIC, which is never silent for so long, it is no time that has passed. Of a file it is."""
    conv = talk(START_NS, 2.0)
    talk(conv.now_ns + HOUR, 2.0, conv=conv)
    pipeline = make(Frames(conv.frames))
    pipeline.connections.live = live
    pipeline.run(lambda: False)
    assert pipeline.connections.closed[2] == (not live)
    assert pipeline.connections.clock_steps == live
    for second in range(299):
        pipeline.connections.tick(conv.now_ns + second * SECOND)
    assert pipeline.connections.active == 1
    pipeline.connections.tick(conv.now_ns + 301 * SECOND)
    assert pipeline.connections.active == 0


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize("many", [1024, 0], ids=["few", "many"])
@pytest.mark.parametrize("back_ns", [0, HOUR], ids=["", "set back"])
@pytest.mark.parametrize("kind", ["arp", "udp", "fragment"])
def test_frames_that_are_not_tcp_tell_the_time(kind: str, back_ns: int, many: int, live: bool) -> None:
    """A NIC with traffic, but none of TCP for a while, has not been silent, and its clock was not set."""
    conv = talk(START_NS, 0.5)
    conv.send("client", http_request("GET", "/asked"))
    template = conv.frames[-1][1]
    other = {
        "arp": template[:12] + b"\x08\x06" + template[14:],
        "udp": template[:23] + b"\x11" + template[24:],
        "fragment": fragment(template, 8)[0],
    }[kind]
    others = [(conv.now_ns + second * SECOND - back_ns, other) for second in range(1, 304)]
    pipeline = make(Frames([*conv.frames, *others], per_block=7))
    pipeline.connections.live = live
    pipeline.loop.many = many
    pipeline.run(lambda: False)
    assert pipeline.connections.closed[2] == 1
    assert pipeline.connections.active == 0
    assert (pipeline.connections.now_ns, pipeline.connections.clock_steps) == (others[-1][0], back_ns // HOUR)


def test_frames_that_the_filter_leaves_out_do_not_tell_the_time() -> None:
    """A NIC's filter is the kernel's: it does not show them."""
    conv = talk(START_NS, 0.5)
    arp = (conv.now_ns + HOUR, conv.frames[0][1][:12] + b"\x08\x06" + conv.frames[0][1][14:])
    pipeline = make(Frames([*conv.frames, arp]))
    pipeline.loop.matches = lambda frame, wire, link: frame[12:14] != b"\x08\x06"
    pipeline.run(lambda: False)
    assert (pipeline.loop.filtered, pipeline.connections.active) == (1, 1)


def test_a_worker_without_a_connection_knows_the_time() -> None:
    frames = [*talk(START_NS, 0.5).frames, *talk(START_NS - HOUR, 2.0, 7001).frames]
    for number in range(3):
        pipeline = make(Frames(frames))
        pipeline.loop.share_with(3, number, 12345)
        pipeline.run(lambda: False)
        assert (pipeline.connections.now_ns, pipeline.connections.clock_steps) == (frames[-1][0], 1)


@pytest.mark.parametrize("seed", range(20))
def test_whatever_the_clock_does(seed: int) -> None:
    """On a NIC each exchange is what it is with a clock that goes on, and the ledger balances."""
    chooser = random.Random(seed)
    convs = []
    for number in range(20):
        conv = Conversation(("10.0.0.1", 1000 + number), start_ns=START_NS + chooser.randrange(20 * SECOND))
        conv.handshake()
        for _ in range(chooser.randrange(1, 30)):
            exchange(conv, f"/{len(conv.frames)}")
            conv.wait(chooser.randrange(SECOND))
        if chooser.random() < 0.5:
            conv.close()
        convs.append(conv)
    frames = mix(*convs)
    wrong_ns = 0
    wrong: list[Frame] = []
    for timestamp_ns, frame in frames:
        if chooser.random() < 0.01:
            wrong_ns = chooser.choice((0, 1, -1)) * int(10 ** chooser.uniform(6, 17))
        wrong.append((timestamp_ns + wrong_ns, frame))
    pipeline = make(Frames(wrong, per_block=10))
    pipeline.connections.live = True
    pipeline.run(lambda: False)
    pipeline.finish()
    assert pipeline.ledger().imbalances == []
    assert pipeline.connections.closed[2] == 0
    records = [json.loads(value) for _, value, _, _ in pipeline.sink.sent if strict(value)]
    assert comparables(records) == comparables(run(frames).records)


def test_ports_in_use_again_after_the_connection_was_left():
    """Its new SYN was announced before nobody wanted what it carried."""
    talk = Conversation()
    talk.handshake()
    talk.send("client", b"\x16\x03\x01\x00\x05hello")
    talk.segment("client", SYN, seq=123_456_789)
    talk.send("server", b"\x16\x03\x01\x00\x05hello")
    talk.segment("client", ACK, seq=123_456_790, ack=1)
    result = run(talk.frames)
    counted = result.ledger.sections["connections"]
    assert counted["not_http"] == 1
    assert counted["opened"] == 2
    assert counted["active"] == 0
