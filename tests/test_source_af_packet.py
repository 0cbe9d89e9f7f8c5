"""The live source: the ring walker on made-up and damaged rings, filters, and a real NIC (veth) in a namespace."""

import contextlib
import errno
import fcntl
import json
import logging
import mmap
import os
import pathlib
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from http_capture.capture.errors import (
    ConfigurationError,
    OperatorError,
    UnavailableError,
    UsageError,
)
from http_capture.capture.source import EndOfInput, af_packet, bpf
from http_capture.capture.source.af_packet import AfPacket
from http_capture.capture.source.block import Block
from http_capture.capture.source.ring import RingWalker
from http_capture.config.settings import SourceSettings
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from network import Pair, inside, ip, needs_network, sender, veth

CORPUS = pathlib.Path(__file__).resolve().parents[2] / "shared" / "corpus"
ADDRESSES = bytes.fromhex("020000000001020000000002")


def ipv4(protocol: int, source_port: int, destination_port: int, size: int = 26) -> bytes:
    """An IPv4 datagram from 10.0.0.1 to 10.0.0.2 with the ports where TCP and UDP have them."""
    payload = struct.pack(">HH", source_port, destination_port) + bytes(size)
    header = struct.pack(
        ">BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), 1, 0, 64, protocol, 0, b"\x0a\0\0\1", b"\x0a\0\0\2"
    )
    return header + payload


def ether(payload: bytes, *tags: tuple[int, int], kind: int = 0x0800) -> bytes:
    """An Ethernet frame, with (TPID, TCI) tags from the outermost in."""
    return ADDRESSES + b"".join(struct.pack(">HH", *tag) for tag in tags) + struct.pack(">H", kind) + payload


TCP80 = ether(ipv4(6, 40000, 80))
TCP81 = ether(ipv4(6, 40000, 81))
UDP80 = ether(ipv4(17, 40000, 80))
TAGGED = ether(ipv4(6, 40000, 80), (0x8100, 0x2005))
TAGGED_OTHER = ether(ipv4(6, 40000, 80), (0x8100, 7))
SERVICE_TAGGED = ether(ipv4(6, 40000, 80), (0x88A8, 5))
QINQ = ether(ipv4(6, 40000, 80), (0x88A8, 6), (0x8100, 5))
ARP = ether(bytes(28), kind=0x0806)
FRAMES = [TCP80, TCP81, UDP80, TAGGED, TAGGED_OTHER, SERVICE_TAGGED, QINQ, ARP]


# --- The ring walker, without a kernel


@dataclass(frozen=True)
class Framed:
    """One frame as the kernel lays it into a ring block."""

    data: bytes
    seconds: int = 1
    ns: int = 2
    wire: int = 0
    status: int = 1
    tci: int = 0
    tpid: int = 0
    kind: int = 0
    mac: int = 86


def ring_block(frames: list[Framed], size: int = 4096) -> bytearray:
    block = bytearray(size)
    struct.pack_into("7I", block, 0, 1, 0, 1, len(frames), 48, size, 0)
    position = 48
    for index, frame in enumerate(frames):
        step = (frame.mac + len(frame.data) + 7) & ~7
        following = step if index + 1 < len(frames) else 0
        struct.pack_into(
            "6IHHIIHH8x", block, position, following, frame.seconds, frame.ns, len(frame.data),
            frame.wire or len(frame.data), frame.status, frame.mac, 100, 0, frame.tci, frame.tpid, 0,
        )  # fmt: skip
        struct.pack_into("HHiHBB8s", block, position + 48, 17, 3, 2, 1, frame.kind, 6, b"")
        block[position + frame.mac : position + frame.mac + len(frame.data)] = frame.data
        position += step
    return block


def walk(ring: bytearray, block_bytes: int = 4096, link: int = 1, skip: bool = False, capacity: int = 1000):  # type: ignore[no-untyped-def]
    """All frames that can be had of the ring, and the walker."""
    walker = RingWalker(ring, block_bytes, link, skip)
    block = Block(capacity)
    frames = []
    for _ in range(len(ring) // 48 + 2):
        walker.release()
        if not walker.ready():
            break
        walker.fill(block)
        frames += block.frames()
    return frames, walker


def test_frames_are_lent_with_their_times_and_lengths() -> None:
    frames, walker = walk(ring_block([Framed(TCP80, 4_000_000_000, 999_999_999, wire=9000), Framed(ARP, 5, 0)]))
    assert frames == [(TCP80, 9000, 4_000_000_000_999_999_999, 1), (ARP, len(ARP), 5_000_000_000, 1)]
    assert (walker.frames, walker.bytes, walker.outgoing, walker.malformed) == (2, len(TCP80) + len(ARP), 0, 0)


@pytest.mark.parametrize(
    ("status", "tci", "tpid", "tag"),
    [
        (1 | 16, 0x2005, 0, b"\x81\x00\x20\x05"),  # a kernel that does not tell the TPID
        (1 | 16 | 64, 0xEFFF, 0x8100, b"\x81\x00\xef\xff"),
        (1 | 16 | 64, 6, 0x88A8, b"\x88\xa8\x00\x06"),
        (1 | 16 | 64, 0, 0x8100, b"\x81\x00\x00\x00"),  # priority tag: VLAN 0
        (1 | 64, 6, 0x88A8, b""),  # not valid
    ],
)
def test_the_vlan_tag_is_put_back(status: int, tci: int, tpid: int, tag: bytes) -> None:
    ring = ring_block([Framed(TCP80, status=status, tci=tci, tpid=tpid), Framed(ARP)])
    frames, _ = walk(ring)
    assert frames[0][:2] == (TCP80[:12] + tag + TCP80[12:], len(TCP80) + len(tag))
    assert frames[1][0] == ARP


def test_no_tag_where_there_is_no_room_or_no_ethernet() -> None:
    tagged = {"status": 1 | 16, "tci": 5}
    assert walk(ring_block([Framed(TCP80, mac=68, **tagged)]))[0][0][0] == TCP80
    assert walk(ring_block([Framed(TCP80[:8], **tagged)]))[0][0][0] == TCP80[:8]
    assert walk(ring_block([Framed(TCP80, **tagged)]), link=101)[0][0][0] == TCP80


def test_outgoing_copies_are_left_out_where_asked() -> None:
    ring = [Framed(TCP80, kind=4), Framed(TCP80, kind=0), Framed(ARP, kind=3)]
    frames, walker = walk(ring_block(ring), skip=True)
    assert [frame[0] for frame in frames] == [TCP80, ARP]
    assert (walker.frames, walker.outgoing) == (2, 1)
    assert len(walk(ring_block(ring))[0]) == 3


def test_a_ring_block_is_given_back_once_it_is_read_and_the_ring_is_a_ring() -> None:
    ring = ring_block([Framed(TCP80), Framed(ARP)]) + ring_block([Framed(UDP80)])
    walker = RingWalker(ring, 4096, 1, False)
    block = Block(1)  # a ring block is lent in parts

    def status() -> tuple[int, int]:
        return struct.unpack_from("I", ring, 8)[0], struct.unpack_from("I", ring, 4096 + 8)[0]

    seen = []
    for after in ((1, 1), (1, 1), (0, 1)):
        assert walker.fill(block) == 1
        assert status() == after
        seen.append(block.frames()[0][0])
    assert seen == [TCP80, ARP, UDP80]
    assert walker.fill(block) == 0
    assert status() == (0, 0)
    ring[0:4096] = ring_block([Framed(TCP81)])
    assert walker.fill(block) == 1
    assert block.frames()[0][0] == TCP81


def test_ring_blocks_that_are_kept_are_given_back_in_their_order() -> None:
    """All of the ring can be lent; a block that is lent is not lent again, though it looks like a new one."""
    ring = bytearray().join(ring_block([Framed(b"%d" % n * 60)] * 2) for n in range(3))
    walker, block, small = RingWalker(ring, 4096, 1, False), Block(8), Block(1)
    status = [8, 4096 + 8, 8192 + 8]

    def lend(into: Block) -> list[bytes]:
        walker.fill(into)
        return [frame[:1] for frame, *_ in into.frames()]

    assert [lend(block), walker.keep(), lend(small), walker.keep(), lend(small), walker.keep()] == [
        [b"0", b"0"], 1, [b"1"], 0, [b"1"], 1,
    ]  # fmt: skip
    assert (lend(block), walker.keep(), walker.kept, walker.ready()) == ([b"2", b"2"], 1, 3, False)
    assert [ring[at] for at in status] == [1, 1, 1]
    walker.give_back(2)
    assert ([ring[at] for at in status], walker.kept, walker.ready()) == ([0, 0, 1], 1, False)
    ring[:4096] = ring_block([Framed(b"3" * 60)])
    assert (walker.ready(), lend(block), walker.keep(), walker.ready()) == (True, [b"3"], 1, False)
    walker.give_back(2)
    assert ([ring[at] for at in status], walker.kept) == ([0, 0, 0], 0)
    with pytest.raises(ValueError, match="more ring blocks"):
        walker.give_back(1)


def test_an_empty_ring_block_lends_nothing_and_is_given_back() -> None:
    ring = ring_block([]) + ring_block([Framed(ARP)])
    frames, _ = walk(ring)
    assert [frame[0] for frame in frames] == [ARP]


@pytest.mark.parametrize(
    ("offset", "form", "value", "frames", "malformed"),
    [
        (16, "I", 52, 0, 3),  # first frame not aligned
        (16, "I", 4032, 0, 3),  # no room for a header
        (16, "I", 0xFFFFFFF8, 0, 3),
        (16, "I", 0, 0, 3),  # inside the block's own header
        (48, "I", 0, 1, 2),  # a chain that stands still
        (48, "I", 0xFFFFFFF8, 1, 2),
        (48, "I", 4, 1, 2),
        (60, "I", 0xFFFFFFFF, 2, 1),  # captured length
        (60, "I", 4096 - 48 - 86 + 1, 2, 1),  # one byte too many
        (60, "I", 4096 - 48 - 86, 3, 0),
        (72, "H", 67, 2, 1),  # frame inside its header
        (72, "H", 0xFFFF, 2, 1),
        (12, "I", 0xFFFFFFFF, 3, 82),  # number of frames: as many as would fit are gone
    ],
)
def test_headers_that_lead_outside_are_counted(offset: int, form: str, value: int, frames: int, malformed: int) -> None:
    ring = ring_block([Framed(ARP), Framed(TCP80), Framed(UDP80)])
    struct.pack_into(form, ring, offset, value)
    got, walker = walk(ring)
    assert (len(got), walker.frames, walker.malformed) == (frames, frames, malformed)


edits = st.lists(
    st.tuples(
        st.one_of(st.integers(0, 8188).map(lambda at: at & ~3), st.sampled_from(range(0, 400, 2))),
        st.one_of(
            st.sampled_from([0, 1, 7, 8, 48, 68, 4048, 4096, 0xFFFF, 0xFFFFFFF8, 0xFFFFFFFF]), st.integers(0, 2**32 - 1)
        ),
    ),
    max_size=12,
)


@hypothesis_settings(max_examples=300, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(0, 300), st.booleans(), st.sampled_from([0, 4])), max_size=10),
    edits=edits,
    capacity=st.integers(1, 12),
    skip=st.booleans(),
)
def test_a_damaged_ring_is_walked_without_harm(
    sizes: list[tuple[int, bool, int]], edits: list[tuple[int, int]], capacity: int, skip: bool
) -> None:
    framed = [Framed(bytes(size), status=17 if tagged else 1, kind=kind) for size, tagged, kind in sizes]
    ring = ring_block(framed) + ring_block(framed)
    for offset, value in edits:
        struct.pack_into("I", ring, offset, value)
    guarded = bytearray(b"\xa5" * 64) + ring + bytearray(b"\xa5" * 64)  # what lies beside the ring stays untouched
    walker = RingWalker(memoryview(guarded)[64:-64], 4096, 1, skip)
    block = Block(capacity)
    lent = 0
    for _ in range(400):
        walker.release()
        if not walker.ready():
            break
        count = walker.fill(block)
        assert count == block.count <= capacity
        lent += count
        for data, wire, _, _ in block.frames():
            assert len(data) <= wire
    else:
        pytest.fail("the walk does not end")
    assert lent == walker.frames
    assert walker.frames + walker.outgoing + walker.malformed <= 2 * (4096 // 48)
    assert guarded[:64] == guarded[-64:] == b"\xa5" * 64


def test_what_is_no_ring_is_refused() -> None:
    for ring, block_bytes in ((bytes(4096), 4096), (bytearray(4096), 4000), (bytearray(0), 4096), (bytearray(64), 64)):
        with pytest.raises(ValueError):
            RingWalker(ring, block_bytes, 1, False)


# --- Filters


@pytest.mark.parametrize(
    ("expression", "matching"),
    [
        ("tcp port 80", [TCP80, TAGGED, TAGGED_OTHER, SERVICE_TAGGED]),
        ("udp", [UDP80]),
        ("not udp", [TCP80, TCP81, TAGGED, TAGGED_OTHER, SERVICE_TAGGED, QINQ, ARP]),
        ("vlan", [TAGGED, TAGGED_OTHER, SERVICE_TAGGED, QINQ]),
        ("vlan 5 and tcp port 80", [TAGGED, SERVICE_TAGGED]),
        ("tcp port 80 or (vlan and tcp port 80)", [TCP80, TAGGED, TAGGED_OTHER, SERVICE_TAGGED]),
        ("less 64", [TCP80, TCP81, UDP80, TAGGED, TAGGED_OTHER, SERVICE_TAGGED, ARP]),
    ],
)
class TestFilter:
    def test_on_frames(self, expression: str, matching: list[bytes]) -> None:
        chosen = bpf.FrameFilter(expression)
        assert [frame for frame in FRAMES if chosen.matches(frame)] == [frame for frame in FRAMES if frame in matching]

    @needs_network
    def test_on_a_nic(self, expression: str, matching: list[bytes], cable: Pair) -> None:
        got, _ = exchange(cable, FRAMES, filter=expression)
        assert got == [frame for frame in FRAMES if frame in matching]


def test_a_filter_matches_no_matter_how_a_frame_is_cut() -> None:
    chosen = bpf.FrameFilter("tcp port 80")
    assert [chosen.matches(TAGGED[:size]) for size in (0, 12, 15, 16, 18, 37, 42)] == [False] * 6 + [True]
    assert bpf.FrameFilter("greater 1000").matches(TCP80, wire_bytes=1000)
    assert not bpf.FrameFilter("greater 1000").matches(TCP80)
    assert not bpf.FrameFilter("greater 1000").matches(TAGGED, wire_bytes=1003)


def test_a_filter_on_raw_ip() -> None:
    chosen = bpf.FrameFilter("tcp port 80", link=101)
    assert chosen.matches(ipv4(6, 80, 1))
    assert not chosen.matches(ipv4(17, 80, 1))


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("tcp port", "syntax error"),
        ("tcp prot 80", "syntax error"),
        ("tcp port 80\nor or", "syntax error"),
        ("port 70000", "70000"),
        ("tcp\0 port 80", "NUL"),
        ("wlan type mgt", "802.11"),
    ],
)
def test_a_bad_filter_is_one_line_with_the_words_of_libpcap(
    expression: str, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        bpf.FrameFilter(expression)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_without_libpcap_a_filter_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    bpf.libpcap.cache_clear()
    monkeypatch.setattr(bpf, "NAMES", ("libnosuch.so.1",))
    monkeypatch.setattr(bpf.ctypes.util, "find_library", lambda name: None)
    try:
        with pytest.raises(ConfigurationError, match=r"libpcap0\.8"):
            bpf.FrameFilter("tcp")
    finally:
        bpf.libpcap.cache_clear()


def test_a_filter_that_is_too_long_for_the_kernel() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        bpf.attach(sock, bpf.accept_all(64) * 100)
        with pytest.raises(ConfigurationError, match="4097 instructions"):
            bpf.attach(sock, bpf.accept_all(64) * 4097)


# --- A real NIC


@pytest.fixture
def cable() -> Iterator[Pair]:
    """A cable; the test runs in its namespace."""
    with veth() as pair, inside(pair.namespace):
        yield pair


def drain(source: AfPacket, count: int, seconds: float = 5.0) -> list[tuple[bytes, int, int, int]]:
    """Reads until there are that many frames, or the time is up."""
    frames: list[tuple[bytes, int, int, int]] = []
    deadline = time.monotonic() + seconds
    while len(frames) < count and time.monotonic() < deadline:
        frames += source.read(0.1).frames()
    return frames


def arrives(cable: Pair, source: AfPacket, frame: bytes) -> bool:
    """Sends a frame until it is read: a cable takes up to a second to carry again after one end was down."""
    with sender(cable.namespace, cable.near) as out:
        for _ in range(50):
            out.send(frame)
            got = drain(source, 1, 0.1)
            if got:
                return {each[0] for each in got} == {frame}
    return False


def exchange(cable: Pair, frames: list[bytes], **settings: object) -> tuple[list[bytes], AfPacket]:
    """Sends the frames through the cable; what a source at its far end read of them, and the closed source."""
    source = AfPacket(SourceSettings(iface=(cable.far,), **settings))  # type: ignore[arg-type]
    try:
        with sender(cable.namespace, cable.near) as out:
            for frame in frames:
                out.send(frame)
        got = drain(source, len(frames), 5.0 if not settings.get("filter") else 0.4)
    finally:
        source.close()
    return [frame[0] for frame in got], source


class Counting:
    """A socket of which the kernel has counted so many frames more, drops among them, since it was asked last."""

    def __init__(self, real: socket.socket) -> None:
        self._real = real
        self.frames = self.drops = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def getsockopt(self, level: int, option: int, *size: int) -> int | bytes:
        got = self._real.getsockopt(level, option, *size)
        if (level, option) != (af_packet.SOL_PACKET, af_packet.PACKET_STATISTICS):
            return got
        assert isinstance(got, bytes)
        frames, drops, freezes = struct.unpack("3I", got)
        got = struct.pack("3I", (frames + self.frames) % 2**32, (drops + self.drops) % 2**32, freezes)
        self.frames = self.drops = 0
        return got


class Further:
    """A ring walker that has walked so many frames more."""

    def __init__(self, real: RingWalker) -> None:
        self._real = real
        self.more = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    @property
    def frames(self) -> int:
        return self._real.frames + self.more


@pytest.mark.alone
@needs_network
class TestNic:
    def test_frames_are_read_byte_for_byte(self, cable: Pair) -> None:
        frames = [*FRAMES, ether(b""), *(ether(os.urandom(size), kind=0x88B5) for size in range(1, 8900, 97))]
        before_ns = time.time_ns()
        source = AfPacket(SourceSettings(iface=(cable.far,)))
        with sender(cable.namespace, cable.near) as out:
            for frame in frames:
                out.send(frame)
        got = drain(source, len(frames))
        assert [frame[0] for frame in got] == frames
        assert [frame[1] for frame in got] == [len(frame) for frame in frames]
        times = [frame[2] for frame in got]
        assert times == sorted(times)
        assert before_ns <= times[0]
        assert times[-1] <= time.time_ns()
        assert {frame[3] for frame in got} == {1}
        block = source.read(0)
        assert (block.count, block.interface) == (0, cable.far)
        stats = source.stats()
        assert (stats.received, stats.dropped, stats.bytes) == (len(frames), 0, sum(map(len, frames)))
        source.close()
        source.close()
        assert source.stats() == stats

    def test_no_frame_that_the_filter_rejects_is_ever_read(self, cable: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
        stop = threading.Event()
        attach = bpf.attach

        def attach_late(sock: socket.socket, instructions: bytes) -> None:
            time.sleep(0.05)  # were the socket bound before, this is when it would take anything
            attach(sock, instructions)

        monkeypatch.setattr(bpf, "attach", attach_late)

        def flood() -> None:
            with sender(cable.namespace, cable.near) as out:
                while not stop.is_set():
                    for frame in (UDP80, ARP, UDP80, TCP80):
                        out.send(frame)
                    time.sleep(0.0001)

        thread = threading.Thread(target=flood)
        thread.start()
        try:
            for _ in range(5):
                source = AfPacket(SourceSettings(iface=(cable.far,), filter="tcp port 80", ring_block_count=4))
                got = drain(source, 20)
                source.close()
                assert {frame[0] for frame in got} == {TCP80}
        finally:
            stop.set()
            thread.join()

    def test_a_frame_is_cut_at_the_snaplen(self, cable: Pair) -> None:
        long, tagged = ether(bytes(1000)), ether(bytes(1000), (0x8100, 5))
        for expression in ("", "ip"):
            source = AfPacket(SourceSettings(iface=(cable.far,), snaplen_bytes=64, filter=expression))
            with sender(cable.namespace, cable.near) as out:
                out.send(long)
                out.send(tagged)
            got = drain(source, 2)
            source.close()
            assert [frame[:2] for frame in got] == [(long[:64], len(long)), (tagged[:68], len(tagged))]

    def test_a_block_with_more_frames_than_are_lent_at_once(self, cable: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(af_packet, "BLOCK_CAPACITY", 7)
        frames = [ether(struct.pack(">I", n) * 20, kind=0x88B5) for n in range(500)]
        assert exchange(cable, frames, ring_block_bytes=16384, snaplen_bytes=2000)[0] == frames

    def test_drops_are_counted(self, cable: Pair) -> None:
        tiny = {"ring_block_bytes": 4096, "ring_block_count": 2, "snaplen_bytes": 1500, "ring_timeout_ms": 10}
        frames = [ether(bytes(1000), kind=0x88B5)] * 1000
        source = AfPacket(SourceSettings(iface=(cable.far,), **tiny))  # type: ignore[arg-type]
        with sender(cable.namespace, cable.near) as out:
            for frame in frames:
                out.send(frame)
        read = len(drain(source, 1000, 0.3))
        stats = source.stats()
        assert 0 < read < 20
        assert (stats.received, stats.received - stats.dropped) == (1000, read)
        assert source.freezes > 0
        with sender(cable.namespace, cable.near) as out:
            for frame in frames:
                out.send(frame)
        source.close()  # what lay unread in the ring is lost too
        stats = source.stats()
        assert (stats.received, stats.received - stats.dropped) == (2000, read)

    @pytest.mark.parametrize("many", [False, True], ids=["one at a time", "for workers"])
    @pytest.mark.parametrize(("count", "drops"), [(3_000_000_000, 1_000_000_000), (5_000_000_000, 4_000_000_000)])
    def test_the_kernel_counts_in_32_bits(
        self, count: int, drops: int, many: bool, cable: Pair, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """In seconds a run has more frames than these hold: a stop waits for the open ring block all the same."""
        source = AfPacket(SourceSettings(iface=(cable.far,), ring_timeout_ms=500))
        if many:
            source.lend_many()
        kernel = source._socket = Counting(source._socket)  # type: ignore[assignment]
        walker = source._walker = Further(source._walker)  # type: ignore[assignment]
        passed = 0.0
        monkeypatch.setattr(af_packet, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + passed))
        for _ in range(6):
            kernel.frames += count
            kernel.drops += drops
            walker.more += count - drops
            passed += 1.5
            assert source.read(0).count == 0
        with sender(cable.namespace, cable.near) as out:
            for _ in range(5):
                out.send(TCP80)
        source.stop()
        got: list[bytes] = []
        with contextlib.suppress(EndOfInput):
            while True:
                got += [frame[0] for frame in source.read(0.1).frames()]
        source.close()
        assert got == [TCP80] * 5
        stats = source.stats()
        assert (stats.received, stats.dropped) == (6 * count + 5, 6 * drops)

    def test_what_is_lent_stays_until_the_next_read(self, cable: Pair) -> None:
        settings = SourceSettings(
            iface=(cable.far,), ring_block_bytes=4096, ring_block_count=2, snaplen_bytes=1500, ring_timeout_ms=10
        )
        source = AfPacket(settings)
        first = [ether(b"\1" * 900, kind=0x88B5)] * 2
        with sender(cable.namespace, cable.near) as out:
            for frame in first:
                out.send(frame)
            time.sleep(0.1)
            block = source.read(1)
            for _ in range(200):
                out.send(ether(b"\2" * 900, kind=0x88B5))
            assert [frame[0] for frame in block.frames()] == first
        source.close()
        assert block.count == 0

    def test_what_this_host_sends_is_kept(self, cable: Pair) -> None:
        source = AfPacket(SourceSettings(iface=(cable.near,)))
        with sender(cable.namespace, cable.near) as out:
            out.send(TCP80)
        assert [frame[0] for frame in drain(source, 1)] == [TCP80]
        source.close()

    @pytest.mark.parametrize("by_kernel", [True, False])
    def test_loopback_frames_are_read_once(self, cable: Pair, by_kernel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        if not by_kernel:
            monkeypatch.setattr(af_packet, "PACKET_IGNORE_OUTGOING", 9999)  # a kernel that has not got it
        source = AfPacket(SourceSettings(iface=("lo",)))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
            receiver.bind(("127.0.0.1", 0))
            for n in range(20):
                receiver.sendto(b"datagram %02d" % n, receiver.getsockname())
            got = drain(source, 40, 0.5)
        source.close()
        assert [frame[0][-11:] for frame in got] == [b"datagram %02d" % n for n in range(20)]
        assert source.stats().received == 20
        assert source.outgoing == (0 if by_kernel else 20)

    def test_promiscuous_mode_while_it_is_open(self, cable: Pair) -> None:
        def promiscuity() -> int:
            shown = subprocess.run(
                ("ip", "-d", "-j", "-n", cable.namespace, "link", "show", cable.far), capture_output=True, check=True
            )
            return int(json.loads(shown.stdout)[0]["promiscuity"])

        for wanted in (True, False):
            source = AfPacket(SourceSettings(iface=(cable.far,), promiscuous=wanted))
            assert promiscuity() == wanted
            source.close()
            assert promiscuity() == 0

    def test_close_ends_the_capture_also_where_frames_are_held(self, cable: Pair) -> None:
        def sockets() -> int:
            return len(pathlib.Path("/proc/thread-self/net/packet").read_text().splitlines()) - 1

        source = AfPacket(SourceSettings(iface=(cable.far,)))
        assert sockets() == 1
        source.close()
        assert sockets() == 0
        source = AfPacket(SourceSettings(iface=(cable.far,)))
        held = source.read(0)
        with sender(cable.namespace, cable.near) as out:
            out.send(TCP80)
            kept = memoryview(b"")
            while not kept:
                held = source.read(1)
                kept = held.buffer.view
            source.close()
            at = bytes(kept)
            out.send(TCP80)
            time.sleep(0.15)
            assert bytes(kept) == at
        del kept
        assert sockets() == 0

    def test_an_idle_read_takes_its_time_and_no_more(self, cable: Pair) -> None:
        source = AfPacket(SourceSettings(iface=(cable.far,)))
        before, cpu = time.monotonic(), time.process_time()
        assert source.read(0.3).count == 0
        assert 0.29 < time.monotonic() - before < 1
        assert time.process_time() - cpu < 0.1
        assert source.read(0).count == 0
        source.close()

    def test_a_nic_that_goes_down_is_waited_for(self, cable: Pair, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.WARNING, "http_capture.source")
        source = AfPacket(SourceSettings(iface=(cable.far,)))
        for outage in (1, 2):
            ip("link", "set", cable.far, "down", namespace=cable.namespace)
            cpu = time.process_time()
            for _ in range(3):
                assert source.read(0.1).count == 0
            assert time.process_time() - cpu < 0.1
            assert source.outages == outage
            ip("link", "set", cable.far, "up", namespace=cable.namespace)
            assert arrives(cable, source, TAGGED)
        source.close()
        assert [record.getMessage() for record in caplog.records] == [
            f"{cable.far} is down: waiting for it to come up",
            f"{cable.far} is up",
        ] * 2

    def test_a_nic_that_is_up_again_is_seen_with_its_first_frame(
        self, cable: Pair, caplog: pytest.LogCaptureFixture
    ) -> None:
        source = AfPacket(SourceSettings(iface=(cable.far,)))
        ip("link", "set", cable.far, "down", namespace=cable.namespace)
        assert source.read(0.1).count == 0
        ip("link", "set", cable.far, "up", namespace=cable.namespace)
        deadline = time.monotonic() + 10
        with sender(cable.namespace, cable.near) as out:
            while source.waiting()[0] == 0:
                assert time.monotonic() < deadline
                out.send(TCP80)
                time.sleep(0.2)  # the ring block is the program's once it retires
        assert source.read(0).count
        assert caplog.messages[-1] == f"{cable.far} is up"
        source.close()

    def test_a_nic_that_is_down_at_the_start_is_waited_for(self, cable: Pair, caplog: pytest.LogCaptureFixture) -> None:
        ip("link", "set", cable.far, "down", namespace=cable.namespace)
        source = AfPacket(SourceSettings(iface=(cable.far,)))
        assert "is down" in caplog.text
        assert source.read(0.05).count == 0
        ip("link", "set", cable.far, "up", namespace=cable.namespace)
        assert arrives(cable, source, TCP80)
        source.close()

    def test_a_nic_that_is_removed_ends_the_run_after_its_last_frame(self, cable: Pair) -> None:
        source = AfPacket(SourceSettings(iface=(cable.far,), ring_timeout_ms=400))
        with sender(cable.namespace, cable.near) as out:
            out.send(TCP80)
            ip("link", "delete", cable.near, namespace=cable.namespace)
        # Another NIC by the same name is not the one that was opened.
        ip("link", "add", cable.near, "type", "veth", "peer", "name", cable.far, namespace=cable.namespace)
        got: list[bytes] = []

        def read_on() -> None:
            while True:
                got.extend(frame[0] for frame in source.read(0.1).frames())

        with pytest.raises(UnavailableError, match=f"^{cable.far} was removed"):
            read_on()
        assert got == [TCP80]
        source.close()
        assert source.stats().received == 1

    def test_a_nic_that_is_removed_while_it_is_down(self, cable: Pair) -> None:
        source = AfPacket(SourceSettings(iface=(cable.far,)))
        ip("link", "set", cable.far, "down", namespace=cable.namespace)
        assert source.read(0.1).count == 0
        ip("link", "delete", cable.far, namespace=cable.namespace)
        with pytest.raises(UnavailableError, match="was removed"):
            drain(source, 1)
        source.close()

    def test_a_renamed_nic_is_still_the_same(self, cable: Pair) -> None:
        source = AfPacket(SourceSettings(iface=(cable.far,)))
        ip("link", "set", cable.far, "down", namespace=cable.namespace)
        ip("link", "set", cable.far, "name", "mirror0", namespace=cable.namespace)
        assert source.read(0.1).count == 0
        ip("link", "set", "mirror0", "up", namespace=cable.namespace)
        assert arrives(cable, source, TCP80)
        source.close()

    def test_raw_ip_of_a_tunnel(self, cable: Pair) -> None:
        if not os.path.exists("/dev/net/tun"):
            pytest.skip("no /dev/net/tun here")
        with open("/dev/net/tun", "r+b", buffering=0) as tunnel:
            fcntl.ioctl(tunnel, 0x400454CA, struct.pack("16sH22x", b"tun0", 0x1001))  # TUNSETIFF, IFF_TUN | IFF_NO_PI
            ip("link", "set", "tun0", "up", namespace=cable.namespace)
            source = AfPacket(SourceSettings(iface=("tun0",), filter="tcp port 80"))
            tunnel.write(ipv4(17, 1, 80))
            tunnel.write(ipv4(6, 1, 80))
            got = drain(source, 1)
            source.close()
        assert [(frame[0], frame[3]) for frame in got] == [(ipv4(6, 1, 80), 101)]

    def test_a_replayed_capture_gives_the_frames_of_the_file(self, cable: Pair) -> None:
        if shutil.which("tcpreplay") is None:
            pytest.skip("tcpreplay is not installed")
        if not CORPUS.is_dir():
            pytest.skip("the shared corpus is not here")
        tried = 0
        for path in sorted(CORPUS.glob("*/**/*.pcap")):
            frames = ethernet_frames(path)
            if not frames or len(frames) > 1000 or not all(18 <= len(frame) <= 9000 for frame in frames):
                continue
            source = AfPacket(SourceSettings(iface=(cable.far,), ring_block_count=16))
            subprocess.run(
                ("tcpreplay", "--topspeed", "-i", cable.near, str(path)), check=True, capture_output=True, timeout=30
            )
            got = drain(source, len(frames))
            source.close()
            assert [frame[0] for frame in got] == frames, path
            assert source.stats().dropped == 0
            tried += 1
            if tried == 12:
                break
        assert tried > 3


def ethernet_frames(path: pathlib.Path) -> list[bytes]:
    """The frames of a classic Ethernet pcap file of which every frame is whole; none of any other file."""
    data = path.read_bytes()
    if len(data) < 24 or data[:4] not in (b"\xd4\xc3\xb2\xa1", b"\xa1\xb2\xc3\xd4"):
        return []
    order = "<" if data[:1] == b"\xd4" else ">"
    if struct.unpack_from(order + "I", data, 20)[0] != 1:
        return []
    frames, at = [], 24
    while at + 16 <= len(data):
        captured, wire = struct.unpack_from(order + "II", data, at + 8)
        if captured != wire or at + 16 + captured > len(data):
            return []
        frames.append(data[at + 16 : at + 16 + captured])
        at += 16 + captured
    return frames


# --- Errors


def opening(**settings: object) -> OperatorError:
    with pytest.raises(OperatorError) as caught:
        AfPacket(SourceSettings(**settings))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return caught.value


@needs_network
def test_errors_of_opening(cable: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    for iface in ("eth9", "a-name-that-is-too-long", "", "lo\0x", "\u00e9th0"):
        error = opening(iface=(iface,))
        assert isinstance(error, UnavailableError)
        assert str(error).startswith("no NIC ")
        assert set(str(error).rsplit(": ", 1)[1].split(", ")) == {"lo", cable.near, cable.far}
    assert isinstance(opening(iface=()), UsageError)
    error = opening(iface=("lo", cable.far))
    assert isinstance(error, UsageError)
    assert "one process for each" in str(error)
    error = opening(iface=("lo",), ring_block_count=65536)
    assert isinstance(error, ConfigurationError)
    assert "at most 4095" in str(error)
    assert isinstance(opening(iface=("lo",), filter="tcp port"), ConfigurationError)
    ip("link", "set", cable.far, "down", namespace=cable.namespace)
    error = opening(iface=(cable.far,), filter="vlan 5")
    assert isinstance(error, UnavailableError)
    assert "to be up" in str(error)

    def no_memory(*arguments: object) -> mmap.mmap:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    with monkeypatch.context() as patch:
        patch.setattr(af_packet.mmap, "mmap", no_memory)
        error = opening(iface=("lo",))
        assert isinstance(error, UnavailableError)
        assert "64 blocks of 1048576 bytes, 64 MiB; lower source.ring_block_count" in str(error)
    monkeypatch.setattr(AfPacket, "_device_type", lambda self: 280)
    error = opening(iface=("lo",))
    assert isinstance(error, UnavailableError)
    assert "280" in str(error)


def test_without_permission_it_says_what_is_missing() -> None:
    script = """
import os
from http_capture.capture.errors import NotPermittedError
from http_capture.capture.source.af_packet import AfPacket
from http_capture.config.settings import SourceSettings
if os.geteuid() == 0:
    os.setresuid(65534, 65534, 65534)
try:
    AfPacket(SourceSettings(iface=("lo",)))
except NotPermittedError as error:
    print(error, end="")
"""
    shown = subprocess.run((sys.executable, "-c", script), capture_output=True, text=True, check=True, timeout=60)
    text = shown.stdout
    for words in ("lo", "CAP_NET_RAW", "root", "AmbientCapabilities", "setcap"):
        assert words in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({}, (1 << 20, 64)),
        ({"ring_block_bytes": 5000, "snaplen_bytes": 1000, "ring_block_count": 2}, (8192, 2)),
        ({"ring_block_bytes": 4096}, (266240, 64)),  # room for a frame of the snaplen
        ({"ring_block_bytes": 4096, "snaplen_bytes": 64}, (4096, 64)),
    ],
)
def test_the_size_of_the_ring(settings: dict[str, int], size: tuple[int, int]) -> None:
    if mmap.PAGESIZE != 4096:
        pytest.skip("for pages of 4096 bytes")
    assert af_packet.ring_size(SourceSettings(**settings)) == size  # type: ignore[arg-type]
