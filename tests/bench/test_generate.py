"""The generator of the measuring captures: what it says is in them, is, by the reading of others (scapy, tshark)."""

import importlib.util
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
from scapy.layers.inet import IP, TCP  # type: ignore[attr-defined]
from scapy.utils import PcapReader  # type: ignore[attr-defined]

PROGRAM = Path(__file__).with_name("generate.py")
pytestmark = pytest.mark.once


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_generate", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


generate = load()


@pytest.mark.parametrize("name", ["mixed", "short"])
def test_checksums_and_sequence_are_right(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.pcap"
    frames, _ = generate.write(name, path, frames=1800)
    following: dict[tuple[str, int, str, int], int] = {}
    last_time = 0.0
    read = 0
    with PcapReader(str(path)) as packets:
        for packet in packets:
            read += 1
            assert packet.time >= last_time
            last_time = packet.time
            ip, tcp = packet[IP], packet[TCP]
            found = ip.chksum, tcp.chksum
            del ip.chksum, tcp.chksum
            rebuilt = IP(bytes(ip))
            assert found == (rebuilt.chksum, rebuilt[TCP].chksum)
            flow = (ip.src, tcp.sport, ip.dst, tcp.dport)
            back = (ip.dst, tcp.dport, ip.src, tcp.sport)
            if tcp.flags.S:
                assert flow not in following
            else:
                assert tcp.seq == following[flow]
            if tcp.flags.A:
                assert tcp.ack == following[back]
            size = len(bytes(tcp.payload)) + bool(tcp.flags.S) + bool(tcp.flags.F)
            following[flow] = (tcp.seq + size) % 2**32
    assert read == frames
    assert frames <= 1800


@pytest.mark.parametrize("name", ["mixed", "short"])
def test_same_bytes_every_time(name: str, tmp_path: Path) -> None:
    generate.write(name, tmp_path / "a.pcap", frames=3000)
    generate.write(name, tmp_path / "b.pcap", frames=3000)
    assert (tmp_path / "a.pcap").read_bytes() == (tmp_path / "b.pcap").read_bytes()


@pytest.mark.parametrize(("name", "frames"), [("mixed", 100), ("mixed", 5001), ("short", 12), ("short", 5000)])
def test_bounds(name: str, frames: int, tmp_path: Path) -> None:
    written, made = generate.write(name, tmp_path / "a.pcap", frames=frames)
    assert frames - 700 < written <= frames
    assert made == sum(1 for _ in generate.exchanges(name, frames=frames))
    _, made = generate.write(name, tmp_path / "a.pcap", count=77)
    assert made == 77


@pytest.mark.parametrize("name", ["mixed", "short"])
def test_tshark_sees_the_same_exchanges(name: str, tmp_path: Path) -> None:
    if shutil.which("tshark") is None:
        pytest.skip("tshark is not installed")
    path = tmp_path / "a.pcap"
    generate.write(name, path, frames=6000)
    fields = ["ip.src", "tcp.srcport", "http.request.method", "http.request.uri", "http.response.code"]
    arguments = [part for field in fields for part in ("-e", field)]
    out = subprocess.run(
        ["tshark", "-r", str(path), "-o", "http.decompress_body:FALSE", "-Y", "http", "-T", "fields", *arguments],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    rows = [line.split("\t") for line in out.splitlines()]
    requests = Counter(tuple(row[:4]) for row in rows if row[2])
    statuses = Counter(row[4] for row in rows if row[4])
    expected = list(generate.exchanges(name, frames=6000))
    assert requests == Counter((e.client[0], str(e.client[1]), e.method, e.target) for e in expected)
    assert statuses == Counter(str(e.status) for e in expected)


def test_shares_are_as_written_down() -> None:
    sample = list(generate.exchanges("mixed", count=5000))
    shares = Counter(exchange.kind for exchange in sample)
    for kind in generate.KINDS:
        assert abs(shares[kind.name] / 50 - kind.weight) < 2.5
    assert len({exchange.target for exchange in sample}) == 5000
    assert {exchange.method for exchange in sample} == {"GET", "POST", "HEAD"}
