"""The portable live source, on a real NIC (veth) in a namespace."""

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from http_capture.capture.errors import ConfigurationError, NotPermittedError, UnavailableError, UsageError
from http_capture.capture.source import scapy_sniff
from http_capture.capture.source.scapy_sniff import ScapySniff
from http_capture.config.settings import SourceSettings
from network import Pair, inside, ip, needs_network, sender, veth

ADDRESSES = bytes.fromhex("020000000001020000000002")
PLAIN = ADDRESSES + b"\x88\xb5" + b"plain" * 20
TAGGED = ADDRESSES + b"\x81\x00\x20\x05\x88\xb5" + b"tagged" * 20
QINQ = ADDRESSES + b"\x88\xa8\x00\x06\x81\x00\x00\x05\x88\xb5" + b"twice" * 20
ARP = ADDRESSES + b"\x08\x06" + bytes(28)


@pytest.fixture
def cable() -> Iterator[Pair]:
    """A cable; the test runs in its namespace."""
    with veth() as pair, inside(pair.namespace):
        yield pair


def drain(source: ScapySniff, count: int, seconds: float = 5.0) -> list[tuple[bytes, int, int, int]]:
    """Reads until there are that many frames, or the time is up."""
    frames: list[tuple[bytes, int, int, int]] = []
    deadline = time.monotonic() + seconds
    while len(frames) < count and time.monotonic() < deadline:
        frames += source.read(0.1).frames()
    return frames


@pytest.mark.alone
@needs_network
class TestNic:
    def test_frames_are_read_byte_for_byte(self, cable: Pair) -> None:
        frames = [PLAIN, TAGGED, QINQ, ARP, *(ADDRESSES + b"\x88\xb5" + os.urandom(n) for n in range(0, 8900, 211))]
        before_ns = time.time_ns()
        source = ScapySniff(SourceSettings(iface=(cable.far,)))
        with sender(cable.namespace, cable.near) as out:
            for frame in frames:
                out.send(frame)
        got = drain(source, len(frames))
        assert [frame[0] for frame in got] == frames
        assert [frame[1] for frame in got] == [len(frame) for frame in frames]
        assert all(before_ns - 1000 <= frame[2] <= time.time_ns() + 1000 for frame in got)
        assert {frame[3] for frame in got} == {1}
        block = source.read(0)
        assert (block.count, block.interface) == (0, cable.far)
        stats = source.stats()
        assert (stats.received, stats.dropped, stats.bytes) == (len(frames), 0, sum(map(len, frames)))
        source.close()
        source.close()
        assert source.stats() == stats

    def test_more_frames_than_a_block_takes(self, cable: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(scapy_sniff, "BLOCK_CAPACITY", 7)
        monkeypatch.setattr(scapy_sniff, "MEMORY_BYTES", 65535 + 8000)
        source = ScapySniff(SourceSettings(iface=(cable.far,), snaplen_bytes=3000))
        frames = [ADDRESSES + b"\x88\xb5" + bytes([n]) * 4000 for n in range(100)]
        with sender(cable.namespace, cable.near) as out:
            for frame in frames:
                out.send(frame)
        assert [frame[:2] for frame in drain(source, 100)] == [(frame[:3000], 4014) for frame in frames]
        source.close()

    def test_a_filter(self, cable: Pair) -> None:
        source = ScapySniff(SourceSettings(iface=(cable.far,), filter="arp"))
        with sender(cable.namespace, cable.near) as out:
            for frame in (PLAIN, ARP, TAGGED, ARP):
                out.send(frame)
        assert [frame[0] for frame in drain(source, 3, 0.3)] == [ARP, ARP]
        source.close()

    def test_loopback_frames_are_read_once(self, cable: Pair) -> None:
        source = ScapySniff(SourceSettings(iface=("lo",)))
        with sender(cable.namespace, "lo") as out:
            for _ in range(5):
                out.send(PLAIN)
        assert [frame[0] for frame in drain(source, 6, 0.3)] == [PLAIN] * 5
        source.close()

    def test_an_idle_read_takes_its_time(self, cable: Pair) -> None:
        source = ScapySniff(SourceSettings(iface=(cable.far,)))
        before = time.monotonic()
        assert source.read(0.2).count == 0
        assert 0.19 < time.monotonic() - before < 1
        source.close()

    def test_drops_are_counted(self, cable: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(scapy_sniff, "RECEIVE_BYTES", 20000)
        source = ScapySniff(SourceSettings(iface=(cable.far,)))
        with sender(cable.namespace, cable.near) as out:
            for _ in range(500):
                out.send(PLAIN)
        read = len(drain(source, 500, 0.3))
        stats = source.stats()
        assert stats.dropped > 0
        assert (stats.received, stats.received - stats.dropped) == (500, read)
        source.close()

    def test_a_nic_that_goes_down_is_waited_for(self, cable: Pair, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.WARNING, "http_capture.source")
        source = ScapySniff(SourceSettings(iface=(cable.far,)))
        ip("link", "set", cable.far, "down", namespace=cable.namespace)
        for _ in range(3):
            assert source.read(0.1).count == 0
        ip("link", "set", cable.far, "up", namespace=cable.namespace)
        got: list[tuple[bytes, int, int, int]] = []
        with sender(cable.namespace, cable.near) as out:
            for _ in range(50):  # a cable takes up to a second to carry again
                out.send(PLAIN)
                got += drain(source, 1, 0.1)
                if got:
                    break
        assert {frame[0] for frame in got} == {PLAIN}
        assert source.outages == 1
        assert [record.getMessage() for record in caplog.records] == [
            f"{cable.far} is down: waiting for it to come up",
            f"{cable.far} is up",
        ]
        source.close()

    def test_a_nic_that_is_removed_ends_the_run_after_its_last_frame(self, cable: Pair) -> None:
        source = ScapySniff(SourceSettings(iface=(cable.far,)))
        with sender(cable.namespace, cable.near) as out:
            out.send(PLAIN)
            ip("link", "delete", cable.near, namespace=cable.namespace)
        got: list[bytes] = []

        def read_on() -> None:
            while True:
                got.extend(frame[0] for frame in source.read(0.1).frames())

        with pytest.raises(UnavailableError, match=f"^{cable.far} was removed"):
            read_on()
        assert got == [PLAIN]
        source.close()

    def test_errors_of_opening(self, cable: Pair, capfd: pytest.CaptureFixture[str]) -> None:
        for wanted, settings in (
            (UnavailableError, {"iface": ("eth9",)}),
            (UsageError, {"iface": ()}),
            (UsageError, {"iface": ("lo", cable.far)}),
            (ConfigurationError, {"iface": ("lo",), "filter": "tcp port"}),
        ):
            with pytest.raises(wanted) as caught:
                ScapySniff(SourceSettings(**settings))  # type: ignore[arg-type]
            assert "\n" not in str(caught.value)
        assert capfd.readouterr() == ("", "")


def test_without_permission_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **more: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    import scapy.arch  # noqa: F401
    from scapy.config import conf

    monkeypatch.setattr(conf, "L2listen", refuse)
    with pytest.raises(NotPermittedError, match="CAP_NET_RAW"):
        ScapySniff(SourceSettings(iface=("lo",)))


def test_scapy_is_loaded_only_when_a_source_is_opened() -> None:
    script = (
        "import json, sys; import http_capture.capture.source.scapy_sniff, http_capture.capture.source.af_packet;"
        "print(json.dumps(sorted(name for name in sys.modules if name.startswith('scapy'))))"
    )
    shown = subprocess.run((sys.executable, "-c", script), capture_output=True, check=True, timeout=60)
    assert json.loads(shown.stdout) == []
