"""One direction: what is delivered, what becomes a gap, when; and that each byte is counted once."""

from collections.abc import Callable

import pytest
from http_capture.capture.reassembly import Consumer, Reassembly, Stream
from http_capture.capture.source.block import Buffer

ACKNOWLEDGED = 1
ANY = 2
RIPE = 0


class Log(Consumer):
    """What a consumer is told, as text."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def on_data(self, buffer: Buffer, start: int, end: int, seq: int, ack: int, timestamp_ns: int) -> int:
        self.told.append(bytes(buffer.view[start:end]).decode())
        return 0

    def on_gap(self, length: int, timestamp_ns: int, cut: bool) -> int:
        self.told.append(f"{'cut' if cut else 'gap'} {length}")
        return 0

    def on_close(self, reason: int, timestamp_ns: int) -> int:
        self.told.append(f"close {reason}")
        return 0


class Pair:
    """Two streams that wait for each other; `send` takes positions, from 0 on."""

    def __init__(
        self, isn: int = 1000, max_buffered: int = 1 << 20, per_direction: int = 1 << 16, overlap: str = "first"
    ) -> None:
        self.isn = isn
        self.totals = Reassembly(max_buffered, per_direction, overlap)
        self.streams = [Stream(self.totals), Stream(self.totals)]
        self.logs = [Log(), Log()]
        for i in (0, 1):
            self.streams[i].peer = self.streams[1 - i]
            self.streams[i].consumer = self.logs[i]
        self.now_ns = 1

    def send(
        self, at: int, text: str, *, ack: int = -1, fin: bool = False, length: int | None = None, side: int = 0
    ) -> list[str]:
        """Returns what the consumer of this side has been told by then."""
        data = b"??" + text.encode() + b"??"
        size = len(text)
        self.streams[side].segment(
            Buffer(data), 2, 2 + size, size if length is None else length, (self.isn + at) % (1 << 32),
            (self.isn + ack) % (1 << 32) if ack >= 0 else -1, fin, self.now_ns,
        )  # fmt: skip
        self.check()
        return self.logs[side].told

    def check(self) -> None:
        totals = self.totals
        assert totals.payload_bytes == (
            totals.delivered_bytes
            + totals.retransmitted_bytes
            + totals.ignored_bytes
            + totals.discarded_bytes
            + totals.urgent_bytes
            + totals.buffered_bytes
        )
        pieces = [piece for stream in self.streams for piece in stream.pieces or () if not piece.cut]
        assert totals.buffered_bytes == sum(piece.end - piece.start for piece in pieces)
        for stream in self.streams:
            at = stream.position if stream.started else -(1 << 40)
            for piece in stream.pieces or ():
                assert at <= piece.start < piece.end
                at = piece.end
                if not piece.cut:
                    assert len(piece.buffer.view) == piece.end - piece.start  # no more memory than is counted
            kept = sum(piece.end - piece.start + 256 for piece in stream.pieces or ())
            assert stream.buffered_bytes == kept


@pytest.fixture(params=[1000, (1 << 32) - 3, (1 << 32) - 1, 0])
def pair(request: pytest.FixtureRequest) -> Pair:
    """Started at any number: these pass 2^32 at once, soon, or not."""
    pair = Pair(request.param)
    pair.streams[0].start(request.param)
    return pair


def test_in_order(pair: Pair) -> None:
    pair.send(0, "abc")
    pair.send(3, "def")
    assert pair.send(6, "", fin=True) == ["abc", "def", "close 0"]


def test_early_pieces_wait(pair: Pair) -> None:
    assert pair.send(3, "def") == []
    assert pair.send(9, "jkl") == []
    assert pair.send(0, "abc") == ["abc", "def"]
    assert pair.send(6, "ghi") == ["abc", "def", "ghi", "jkl"]


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ([(0, "abc"), (0, "abc")], "abc"),
        ([(0, "abc"), (0, "abcdef")], "abcdef"),
        ([(0, "abc"), (1, "XXd")], "abcd"),
        ([(3, "def"), (3, "XXX"), (0, "abc")], "abcdef"),
        ([(3, "def"), (1, "bXX"), (0, "a")], "abXdef"),
        ([(3, "def"), (1, "bcXXXgh"), (0, "a")], "abcdefgh"),
        ([(2, "c"), (4, "e"), (6, "g"), (0, "abXdXfXh")], "abcdefgh"),
        ([(2, "cdef"), (3, "X"), (0, "ab")], "abcdef"),
        ([(4, "e"), (1, "bcd"), (0, "a"), (0, "XXXXX")], "abcde"),
    ],
)
def test_overlaps_keep_what_came_first(pair: Pair, sent: list[tuple[int, str]], expected: str) -> None:
    for at, text in sent:
        pair.send(at, text)
    assert "".join(pair.logs[0].told) == expected
    assert pair.streams[0].retransmitted_bytes == sum(len(text) for _, text in sent) - len(expected)
    assert pair.totals.buffered_bytes == 0


@pytest.mark.parametrize(
    ("sent", "first", "last", "linux"),
    [
        # at, bytes; the first byte comes last, so that all others lie behind a hole
        ([(3, "def"), (3, "DEF")], "?bcdef", "?bcDEF", "?bcdef"),  # the same place: the original
        ([(3, "def"), (3, "DE")], "?bcdef", "?bcDEf", "?bcdef"),
        ([(3, "def"), (3, "DEFG")], "?bcdefG", "?bcDEFG", "?bcDEFG"),  # begins with it and ends after it
        ([(3, "def"), (2, "CD")], "?bCdef", "?bCDef", "?bCDef"),  # begins before it
        ([(3, "def"), (2, "CDEFG")], "?bCdefG", "?bCDEFG", "?bCDEFG"),
        ([(3, "def"), (4, "E")], "?bcdef", "?bcdEf", "?bcdef"),  # inside it
        ([(3, "def"), (4, "EFG")], "?bcdefG", "?bcdEFG", "?bcdefG"),  # begins in it
        ([(3, "de"), (6, "gh"), (4, "EFGH")], "?bcdeFgh", "?bcdEFGH", "?bcdeFGH"),  # over two: each by its own begin
        ([(4, "ef"), (3, "DE"), (5, "5")], "?bcDef", "?bcDE5", "?bcDEf"),  # what remains still begins where it began
        ([(4, "ef"), (3, "DE"), (4, "45")], "?bcDef", "?bcD45", "?bcDEf"),
    ],
)
@pytest.mark.parametrize("isn", [1000, (1 << 32) - 5])
def test_overlap_policies(isn: int, sent: list[tuple[int, str]], first: str, last: str, linux: str) -> None:
    for overlap, expected in (("first", first), ("last", last), ("linux", linux)):
        pair = Pair(isn, overlap=overlap)
        pair.streams[0].start(isn)
        for at, text in sent:
            pair.send(at, text)
        pair.send(1, "bc"[: min(at for at, _ in sent) - 1] or "b")
        pair.send(0, "?")
        assert "".join(pair.logs[0].told) == expected, overlap
        assert pair.streams[0].conflicts == pair.totals.conflicting_segments > 0


@pytest.mark.parametrize("overlap", ["first", "last", "linux"])
def test_what_was_received_in_order_stays(overlap: str) -> None:
    """The receiver has read it, whether it was delivered or waits for the other direction."""
    pair = Pair(overlap=overlap)
    for stream in pair.streams:
        stream.start(1000)
    pair.send(0, "abc")
    pair.send(0, "ABC")
    pair.send(3, "def", ack=9)  # waits
    pair.send(2, "CDEFG", ack=9)
    pair.send(0, "unrelated", side=1)
    pair.streams[0].drain(False, 1)
    assert "".join(pair.logs[0].told) == "abcdefG"
    assert (pair.streams[0].conflicts, pair.totals.conflicting_bytes) == (2, 7)


@pytest.mark.parametrize(
    ("sent", "segments", "octets"),
    [
        ([(0, "abc"), (0, "abc"), (0, "ab"), (1, "bcd")], 0, 0),
        ([(0, "abc"), (0, "aBc")], 1, 1),
        ([(0, "abc"), (1, "BCd"), (0, "ABCDE")], 2, 6),
        ([(0, "abc"), (3, "def"), (2, "CDef")], 1, 2),
        ([(3, "def"), (3, "DEf"), (0, "abc"), (2, "CDE")], 2, 5),
        ([(0, "abc"), (2, "\0")], 0, 0),  # a keep-alive probe
        ([(0, "abc"), (1, "\0")], 1, 1),  # this is none
        ([(0, "x" * 300), (0, "x" * 256 + "y" * 44)], 0, 0),  # behind the opening of the turn: not remembered
        ([(0, "x" * 300), (0, "x" * 255 + "y" * 45)], 1, 1),
        ([(0, "x" * 100), (100, "x" * 100), (200, "x" * 100), (99, "y" * 201)], 1, 157),
    ],
)
def test_conflicts(pair: Pair, sent: list[tuple[int, str]], segments: int, octets: int) -> None:
    for at, text in sent:
        pair.send(at, text)
    assert pair.streams[0].conflicts == pair.totals.conflicting_segments == segments
    assert pair.totals.conflicting_bytes == octets


def test_each_turn_has_its_opening() -> None:
    pair = both()
    pair.send(0, "x" * 300, ack=0)
    pair.send(0, "answer", ack=300, side=1)
    pair.send(300, "second", ack=6)
    pair.send(300, "SECOND", ack=6)
    pair.send(0, "ANSWER", ack=300, side=1)
    assert [stream.conflicts for stream in pair.streams] == [1, 1]
    pair.send(306, "", ack=6, fin=True)
    pair.send(300, "sEcond", ack=6)
    assert pair.streams[0].conflicts == 2


@pytest.mark.parametrize("overlap", ["first", "last", "linux"])
def test_what_was_cut_is_filled(overlap: str) -> None:
    """A frame that was cut by the snap length, and the whole of it in other segments, behind a hole."""
    pair = Pair(overlap=overlap)
    pair.streams[0].start(1000)
    pair.send(1, "bc", length=8)
    pair.send(4, "ef")
    assert pair.streams[0].conflicts == 0
    pair.send(0, "a")
    assert pair.logs[0].told == ["a", "bc", "cut 1", "ef", "cut 3"]
    assert pair.totals.cut_bytes == 4


@pytest.mark.parametrize(
    ("sent", "urgent", "expected"),
    [
        ([(0, "abc")], [1], "ac"),
        ([(0, "abc")], [0], "bc"),
        ([(0, "abc")], [2], "ab"),
        ([(0, "a")], [0], ""),
        ([(0, "abc"), (3, "def")], [4], "abcdf"),
        ([(3, "def"), (0, "abc")], [4], "abcdf"),
        ([(0, "abc"), (0, "abcd")], [1], "acd"),
        ([(0, "abc")], [1, 2], "ab"),  # the latest, as in Linux
        ([(0, "abc")], [2, 1], "ab"),
        ([(0, "abc")], [7], "abc"),
    ],
)
def test_urgent(pair: Pair, sent: list[tuple[int, str]], urgent: list[int], expected: str) -> None:
    for at in urgent:
        pair.streams[0].urgent((pair.isn + at) % (1 << 32))
    for at, text in sent:
        pair.send(at, text)
    assert "".join(pair.logs[0].told) == expected
    assert pair.totals.urgent_bytes == max(at + len(text) for at, text in sent) - len(expected)
    pair.streams[0].urgent(pair.isn)  # too late
    pair.send(10, "x")
    pair.streams[0].close(2, 1)
    assert pair.logs[0].told[-2:] == ["x", "close 2"]


def test_a_fin_that_was_not_captured(pair: Pair) -> None:
    stream = pair.streams[0]
    pair.send(0, "abc")
    stream.acknowledge((pair.isn + 4) % (1 << 32), 5)
    assert stream.ending()
    assert not stream.skip(ANY, 6)
    stream.close(2, 7)
    assert pair.logs[0].told == ["abc", "close 0"]
    assert pair.totals.gap_bytes == 0


def test_it_was_a_byte(pair: Pair) -> None:
    """What comes behind it shows that the number was no FIN."""
    stream = pair.streams[0]
    pair.send(0, "abc")
    stream.acknowledge((pair.isn + 4) % (1 << 32), 5)
    pair.send(4, "ef")
    assert not stream.ending()
    stream.close(2, 7)
    assert pair.logs[0].told == ["abc", "gap 1", "ef", "close 2"]


def test_a_gap_only_where_it_was_acknowledged_in_time(pair: Pair) -> None:
    stream = pair.streams[0]
    pair.send(3, "def")
    pair.send(9, "jkl")
    assert not stream.skip(RIPE, 2)
    assert not stream.skip(ACKNOWLEDGED, 2)
    pair.streams[0].acknowledge((pair.isn + 6) % (1 << 32), 5)
    assert stream.acked_since_ns == 5
    stream.acknowledge((pair.isn + 12) % (1 << 32), 6)  # waited for from its own time on
    assert stream.skip(RIPE, 7)
    stream.drain(False, 7)
    assert pair.logs[0].told == ["gap 3", "def"]
    assert not stream.skip(RIPE, 7) or stream.acked_since_ns == 7
    assert stream.acked_since_ns == 7


def test_flush_gives_up_all(pair: Pair) -> None:
    pair.send(3, "def")
    pair.send(9, "jkl")
    pair.streams[0].acknowledge((pair.isn + 20) % (1 << 32), 5)
    pair.streams[0].close(2, 9)
    assert pair.logs[0].told == ["gap 3", "def", "gap 3", "jkl", "gap 8", "close 2"]
    assert pair.totals.gap_bytes == pair.streams[0].gap_bytes == 14
    pair.streams[0].close(2, 9)
    assert pair.send(0, "abc")[-1] == "close 2"
    assert pair.totals.retransmitted_bytes == 3


def test_progress_starts_the_wait_anew(pair: Pair) -> None:
    """Acknowledgements that are always ahead, as from a mirror with a slow direction, are no loss."""
    stream = pair.streams[0]
    for i in range(10):
        stream.acknowledge((pair.isn + 3 * i + 6) % (1 << 32), 100 + i)
        pair.now_ns = 100 + i
        pair.send(3 * i, "abc")
        assert stream.acked_since_ns >= 99 + i or stream.position < stream.ripe_position
    assert stream.acked_since_ns >= 108


def test_cut_frames(pair: Pair) -> None:
    """The snap length: the rest of the segment is a gap at once, where it is not sent again in full."""
    pair.send(0, "abc", length=5)
    pair.send(5, "fgh")
    assert pair.send(12, "mn", length=4) == ["abc", "cut 2", "fgh"]
    pair.send(8, "ijkl")
    assert pair.send(16, "", fin=True) == ["abc", "cut 2", "fgh", "ijkl", "mn", "cut 2", "close 0"]
    assert (pair.totals.cut_bytes, pair.totals.gap_bytes) == (4, 0)


def test_the_end(pair: Pair) -> None:
    """The FIN comes early; bytes after it are discarded, and what comes later is a retransmission."""
    pair.send(3, "def", fin=True)
    pair.send(6, "beyond")
    assert pair.send(0, "abc") == ["abc", "def", "close 0"]
    assert pair.totals.discarded_bytes == 6
    pair.send(0, "abc", fin=True)
    assert pair.totals.retransmitted_bytes == 3


@pytest.mark.parametrize("isn", [1000, (1 << 32) - 1, 2])
def test_a_start_that_is_not_known(isn: int) -> None:
    """It begins at the lowest byte when the wait is over, or where the SYN says; then what was before is discarded."""
    pair = Pair(isn)
    pair.send(3, "def")
    pair.send(0, "abc")
    assert pair.logs[0].told == []
    pair.streams[0].begin(5)
    pair.streams[0].drain(False, 5)
    assert pair.logs[0].told == ["abc", "def"]
    assert pair.streams[0].first_seq == isn
    pair = Pair(isn)
    pair.send(0, "abc")
    pair.send(3, "def")
    pair.streams[0].start((isn + 3) % (1 << 32))
    pair.streams[0].drain(False, 5)
    assert pair.logs[0].told == ["def"]
    assert pair.totals.discarded_bytes == 3


def test_a_fin_is_all_there_is() -> None:
    pair = Pair()
    pair.send(0, "", fin=True)
    assert not pair.streams[0].closed
    pair.streams[0].begin(1)
    assert pair.logs[0].told == ["close 0"]


def both(isn: int = 1000) -> Pair:
    pair = Pair(isn)
    pair.streams[0].start(isn)
    pair.streams[1].start(isn)
    return pair


def test_what_was_received_comes_first() -> None:
    """An answer is not delivered before the bytes that its sender had received."""
    pair = both()
    assert pair.send(0, "answer", ack=7, side=1) == []
    assert pair.streams[0].acked_since_ns != 0
    pair.send(0, "request", ack=0)
    assert pair.streams[1].drain(False, 1)
    assert pair.logs[1].told == ["answer"]


def test_first_bytes_tell_where_the_other_side_begins() -> None:
    pair = Pair()
    pair.streams[0].start(1000)
    pair.send(0, "request", ack=500)
    assert pair.logs[0].told == ["request"]
    assert pair.streams[1].expected
    pair.send(7, "second", ack=506)
    assert pair.logs[0].told == ["request"]
    pair.send(500, "answer", ack=7, side=1)
    assert pair.logs[1].told == ["answer"]
    pair.streams[0].drain(False, 1)
    assert pair.logs[0].told == ["request", "second"]


def test_the_other_side_is_not_waited_for_without_end() -> None:
    pair = Pair()
    pair.streams[0].start(1000)
    pair.send(0, "request", ack=500)
    pair.send(7, "second", ack=506)
    pair.streams[1].begin(1)
    pair.streams[0].drain(False, 1)
    assert pair.logs[0].told == ["request", "second"]
    assert not pair.streams[1].started


def test_each_waits_for_the_other() -> None:
    """After retransmissions with new acknowledgements: force delivers one piece, the rest follows."""
    pair = both()
    pair.send(0, "one", ack=3)
    pair.send(0, "two", ack=3, side=1)
    assert pair.logs[0].told == pair.logs[1].told == []
    assert pair.streams[0].drain(True, 1)
    assert pair.streams[1].drain(False, 1)
    assert (pair.logs[0].told, pair.logs[1].told) == (["one"], ["two"])


@pytest.mark.parametrize("far", [(1 << 30) + 4, 1 << 31, (1 << 32) - (1 << 30) - 1])
def test_numbers_that_make_no_sense(pair: Pair, far: int) -> None:
    pair.send(0, "abc")
    pair.send(far, "xyz")
    pair.streams[0].acknowledge((pair.isn + far) % (1 << 32), 5)
    assert pair.send(3, "def") == ["abc", "def"]
    assert pair.totals.discarded_bytes == 3


@pytest.mark.parametrize(
    ("max_buffered", "per_direction", "sent"),
    [(1 << 20, 3000, 3), (2500, 1 << 20, 3), (1 << 20, 1 << 20, 200)],
    ids=["of the direction", "of all", "enough"],
)
def test_memory(max_buffered: int, per_direction: int, sent: int) -> None:
    """Where the bound is passed, all that is kept is delivered, with gaps; small pieces cost more than their bytes."""
    pair = Pair(1000, max_buffered, per_direction)
    pair.streams[0].start(1000)
    for i in range(200):
        pair.send(1001 + 1000 * i, "x" * 1000)
        if pair.logs[0].told:
            break
    assert i + 1 == sent
    assert (pair.totals.holes_given_up_for_memory > 0) == (sent < 200)
    pair = Pair(1000, 1 << 20, 3000)
    pair.streams[0].start(1000)
    for i in range(100):
        pair.send(1 + 2 * i, "x")
    assert pair.totals.holes_given_up_for_memory > 5


def test_nobody_reads(pair: Pair) -> None:
    pair.streams[0].consumer = None
    pair.send(0, "abc")
    pair.send(3, "def")
    assert pair.totals.ignored_bytes == 6
    pair.streams[0].close(0, 1)


@pytest.mark.parametrize(
    "end", [lambda stream: stream.flush(1), lambda stream: stream.close(0, 1)], ids=["flush", "close"]
)
def test_nothing_was_seen(end: Callable[[Stream], int]) -> None:
    pair = Pair()
    end(pair.streams[0])
    assert pair.logs[0].told in ([], ["close 0"])
