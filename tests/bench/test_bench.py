"""The measuring scripts themselves: each runs, on a few frames, and sees what is wrong. Speed is not tested here."""

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from network import needs_network
from scapy.layers.inet import IP, TCP  # type: ignore[attr-defined]
from scapy.utils import PcapReader  # type: ignore[attr-defined]

FOLDER = Path(__file__).parent
pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def modules() -> dict[str, ModuleType]:
    """The scripts as modules. They import each other by their bare names."""
    sys.path.insert(0, str(FOLDER))
    try:
        return {name: importlib.import_module(name) for name in ("generate", "measure", "bench", "stages")}
    finally:
        sys.path.remove(str(FOLDER))


def script(name: str, folder: Path, *arguments: str) -> str:
    environment = {**os.environ, "BENCH_FOLDER": str(folder)}
    done = subprocess.run(
        [sys.executable, str(FOLDER / name), *arguments], capture_output=True, text=True, timeout=120,
        check=False, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("name", ["bench", "kafka", "live", "memory", "stages", "uncompiled"])
def test_needs_nothing_that_only_the_tests_need(name: str) -> None:
    """`make bench` and the others run in the environment of an operator."""
    path = FOLDER / f"{name}.py"
    code = (
        "import runpy, sys; sys.modules.update(dict.fromkeys(['pytest', 'hypothesis', 'jsonschema', 'supervisor']));"
        f"sys.argv = [{str(path)!r}, '--help']; sys.path.insert(0, {str(FOLDER)!r});"
        f"runpy.run_path({str(path)!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: ")


@pytest.mark.skipif(shutil.which("tcpdump") is None, reason="tcpdump is not installed")
def test_bench(tmp_path: Path) -> None:
    said = script("bench.py", tmp_path, "--frames", "2000", "--pairs", "1")
    assert "mixed: " in said
    assert "all 166 records are what was generated" in said
    assert said.count("times the floor (") == 2


def test_memory(tmp_path: Path) -> None:
    said = script(
        "memory.py", tmp_path, "--parts", "connections", "many", "growth", "hour", "--connections", "300",
        "--exchanges", "50", "--frames", "1000", "--runs", "1", "--many", "1500", "--turns", "3000",
    )  # fmt: skip
    assert said.count("bytes a connection") == 3
    assert said.count("us an exchange (cpu)") == 3
    assert said.count("short x") == 3


@pytest.mark.alone
@needs_network
@pytest.mark.skipif(shutil.which("tcpreplay") is None, reason="tcpreplay is not installed")
def test_live(tmp_path: Path) -> None:
    said = script("live.py", tmp_path, "--frames", "2000", "--seconds", "0.5", "--rate", "10000", "--over-seconds", "0")
    assert "HELD: no drop, every exchange once" in said


@pytest.mark.parametrize("name", ["mixed", "short"])
def test_copies_are_right_and_have_other_connections(name: str, modules: dict[str, ModuleType], tmp_path: Path) -> None:
    generate, measure = modules["generate"], modules["measure"]
    path = tmp_path / f"{name}.pcap"
    frames, exchanges = generate.write(name, path, frames=400)
    with (tmp_path / "copies.pcap").open("wb") as out:
        measure.Copies(measure.Capture(name, path, frames, exchanges)).write(5, out)
    connections: list[set[frozenset[tuple[str, int]]]] = [set() for _ in range(5)]
    last = 0.0
    with PcapReader(str(tmp_path / "copies.pcap")) as packets:
        for number, packet in enumerate(packets):
            ip, tcp = packet[IP], packet[TCP]
            connections[number // frames].add(frozenset([(ip.src, tcp.sport), (ip.dst, tcp.dport)]))
            found = ip.chksum, tcp.chksum
            del ip.chksum, tcp.chksum
            rebuilt = IP(bytes(ip))
            assert found == (rebuilt.chksum, rebuilt[TCP].chksum)
            assert packet.time >= last
            last = packet.time
    assert number + 1 == 5 * frames
    assert len(set().union(*connections)) == sum(map(len, connections)) == 5 * len(connections[0])


def test_a_wrong_record_is_seen(modules: dict[str, ModuleType]) -> None:
    generate, compare = modules["generate"], modules["bench"].compare_record
    exchange = next(one for one in generate.exchanges("mixed", count=50) if one.kind == "json" and one.status == 200)
    sent = generate.messages("mixed", exchange)
    body = generate.bodies(exchange)[1].decode()
    headers = modules["bench"]._headers

    def record(**response: object) -> dict[str, object]:
        return {
            "source": {"ip": exchange.client[0], "port": exchange.client[1]},
            "destination": {"ip": exchange.server[0], "port": exchange.server[1]},
            "http_capture": {"complete": True},
            "http": {
                "request": {"method": "GET", "headers": headers(sent[0])},
                "response": {
                    "status_code": 200, "headers": headers(sent[1]), "body": {"bytes": len(body), "content": body},
                    **response,
                },
            },
        }  # fmt: skip

    assert compare("mixed", record(), exchange) == ""
    assert "status" in compare("mixed", record(status_code=201), exchange)
    assert "headers" in compare("mixed", record(headers={}), exchange)
    assert "body" in compare("mixed", record(body={"bytes": len(body), "content": body[1:]}), exchange)


CALLGRIND = """\
events: Ir
ob=/site/http_capture/capture/decode.cpython-311-x86_64-linux-gnu.so
fn=decode
1 10
cob=/usr/lib/libc.so.6
cfn=copy
calls=3 0
1 30
ob=/site/http_capture/capture/encode.cpython-311-x86_64-linux-gnu.so
fn=encode
1 100
cob=/usr/lib/libpython.so
cfn=call
calls=1 0
2 70
ob=/usr/lib/libpython.so
fn=call
1 60
cob=/usr/lib/libc.so.6
cfn=copy
calls=1 0
2 10
ob=/usr/lib/libc.so.6
fn=copy
1 40
totals: 210
"""


def test_what_libraries_use_is_charged_to_their_callers(modules: dict[str, ModuleType]) -> None:
    stages = modules["stages"]
    charged, by_library = stages.charge(stages.parse(CALLGRIND))
    assert charged == {
        "decode": {"itself": 10.0, "libraries": 30.0},
        "encode": {"itself": 100.0, "libraries": 70.0},
    }
    assert by_library["/usr/lib/libc.so.6"] == {"decode": 30.0, "encode": 10.0}
    spent = stages.divide({"/elsewhere/libc.so.6": 80.0, "kernel": 5.0}, by_library)
    assert spent == {"decode": 60.0, "encode": 20.0, "kernel": 5.0}
