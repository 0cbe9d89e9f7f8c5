"""The whole program on a NIC: what it records live is what it records from the file; guard, signals, ledger, exit code.

The NICs are veth pairs in namespaces of the tests' own; tcpreplay sends. See network.py.
"""

import contextlib
import http.client
import http.server
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pytest
from http_capture import guard
from network import Pair, hosts, inside, ip, needs_network, sender, unprivileged, veth
from traffic import Conversation, http_request, http_response, mix, write_pcap

Json = dict[str, Any]

CORPUS = pathlib.Path(__file__).resolve().parents[2] / "shared" / "corpus"
GENERATE = pathlib.Path(__file__).with_name("bench") / "generate.py"
# Where the package that is tested was imported from, so that the program that is started is the same one.
IMPORT_PATH = str(pathlib.Path(guard.__file__).parents[2])
LIMIT_SECONDS = 60.0  # that anything may take on a busy machine before the test fails
PROGRAM = (sys.executable, "-P", "-m", "http_capture.capture")
pytestmark = pytest.mark.alone


class Run:
    """The program as a process, with what it says in files."""

    def __init__(self, folder: pathlib.Path, *arguments: str, under: Sequence[str] = ()) -> None:
        self.errors = folder / f"{time.monotonic_ns()}.err"
        self.output = self.errors.with_suffix(".out")
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HTTP_CAPTURE_")}
        with open(self.errors, "wb") as err, open(self.output, "wb") as out:
            self.process = subprocess.Popen(
                [*under, *PROGRAM, *arguments], stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                env={**environment, "PYTHONPATH": IMPORT_PATH},
            )  # fmt: skip

    @property
    def said(self) -> str:
        return self.errors.read_text()

    def until(self, text: str) -> None:
        """Waits until it has said this."""
        deadline = time.monotonic() + LIMIT_SECONDS
        while text not in self.said:
            assert self.process.poll() is None, self.said
            assert time.monotonic() < deadline, f"no {text!r} in: {self.said}"
            time.sleep(0.01)

    def wait(self) -> int:
        return self.process.wait(LIMIT_SECONDS)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def records(self) -> list[Json]:
        return [json.loads(line) for line in self.output.read_text().splitlines()]

    def ledger(self) -> Json:
        """What --json printed; the frames of the kernel and the equations are checked."""
        (line,) = (line for line in self.said.splitlines() if line.startswith('{"event": "ledger"'))
        ledger: Json = json.loads(line)
        assert ledger["balanced"], ledger["imbalances"]
        frames = ledger["frames"]
        if "received" in frames:
            assert frames["received"] == frames["read"] + frames["dropped_by_kernel"] + frames["unread"]
        return ledger


@contextlib.contextmanager
def recording(folder: pathlib.Path, namespace: str, nic: str, *arguments: str) -> Iterator[Run]:
    """The program, recording that NIC to its standard output; killed at the end, if it still runs."""
    with inside(namespace):
        run = Run(
            folder, "--iface", nic, "--pidfile", str(folder / "live.pid"), "--sink", "stdout", "--json", *arguments
        )
    try:
        run.until(f"recording {nic}")
        yield run
    finally:
        run.process.kill()
        run.process.wait()


def replayed(folder: pathlib.Path, path: pathlib.Path) -> tuple[list[Json], Json]:
    run = Run(folder, "--read", str(path), "--sink", "stdout", "--json", "--bodies", "all")
    assert run.wait() == 0, run.said
    return run.records(), run.ledger()


def send(namespace: str, nic: str, path: pathlib.Path, pps: int = 5000) -> None:
    """Sends a capture with its frames in their order, but not at their times."""
    with inside(namespace):
        subprocess.run(
            ["tcpreplay", "--quiet", f"--pps={pps}", "-i", nic, str(path)],
            check=True, capture_output=True, timeout=LIMIT_SECONDS,
        )  # fmt: skip


def comparable(record: Json) -> Json:
    """A record without what is of the run: when, on which NIC, by which instance."""
    copy: Json = json.loads(json.dumps(record))
    del copy["@timestamp"]
    for name in ("start", "end", "duration"):
        del copy["event"][name]
    del copy["http_capture"]["timing"]
    del copy["http_capture"]["instance"]
    copy["observer"].pop("ingress", None)
    return copy


def by_id(records: list[Json]) -> dict[str, Json]:
    found = {record["event"]["id"]: comparable(record) for record in records}
    assert len(found) == len(records)
    return found


@pytest.fixture
def open_folder() -> Iterator[pathlib.Path]:
    """A folder that other users may enter and write, as those of tmp_path may not."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        yield pathlib.Path(folder)


@pytest.fixture(scope="module")
def cable() -> Iterator[Pair]:
    with veth(mtu=65535) as pair:
        yield pair


def same_live(folder: pathlib.Path, cable: Pair, path: pathlib.Path, pps: int = 5000) -> list[Json]:
    """Replays a capture, records it live, and compares record by record. Returns the records."""
    want, replay = replayed(folder, path)
    with recording(folder, cable.namespace, cable.far, "--bodies", "all") as run:
        send(cable.namespace, cable.near, path, pps)
        assert run.stop() == 0, run.said
        got, live = run.records(), run.ledger()
    assert live["frames"]["dropped_by_kernel"] == live["frames"]["unread"] == 0
    assert live["frames"]["read"] == replay["frames"]["read"]
    assert by_id(got) == by_id(want)
    assert {record["observer"]["ingress"]["interface"]["name"] for record in got} <= {cable.far}
    assert len({record["http_capture"]["instance"] for record in got}) <= 1
    return want


# --- The same capture from a file and from a NIC

CAPTURES = {
    "OISF+suricata-verify/tests/http-brotli-ce/input.pcap": 3,
    "OISF+suricata-verify/tests/http-multiple100/input.pcap": 1,
    "andrewf+pcap2har/tests/github.pcap": 2,
    "andrewf+pcap2har/tests/missing_response.pcap": 2,
    "arkime+arkime/tests/pcap/http-500-head.pcap": 1,
    "arkime+arkime/tests/pcap/tcp-reassembly-synthetic.pcap": 11,
    "rixed+junkie/tests/pcap/http/http_multiline.pcap": 6,
    "zeek+zeek/testing/btest/Traces/http-qinq-0.pcap": 1,
    "zeek+zeek/testing/btest/Traces/http/docker-http-upgrade.pcap": 6,
    "zeek+zeek/testing/btest/Traces/http/methods.pcap": 49,
    "zeek+zeek/testing/btest/Traces/http/pipelined-requests.pcap": 5,
    "zeek+zeek/testing/btest/Traces/http/vnd.ms-cab-compressed-multi-conn.pcap": 5,
    "zeek+zeek/testing/btest/Traces/mixed-vlan-mpls.pcap": 1,
}
"""Ethernet captures, which tcpreplay can send, and how many records they give at least: lost segments, retransmissions,
one-sided and pipelined exchanges, VLAN tags that the kernel takes off, frames cut by a snaplen."""


@needs_network
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("tcpreplay") is None, reason="needs tcpreplay")
class TestReplayAndLiveAgree:
    @pytest.mark.parametrize(("name", "records"), CAPTURES.items(), ids=list(CAPTURES))
    def test_on_a_capture_of_the_corpus(self, name: str, records: int, cable: Pair, tmp_path: pathlib.Path) -> None:
        if not (CORPUS / name).exists():
            pytest.skip("no ../shared/corpus here")
        assert len(same_live(tmp_path, cable, CORPUS / name)) >= records

    @pytest.mark.parametrize(("kind", "least"), [("mixed", 1000), ("short", 1600)])
    def test_on_generated_frames(self, kind: str, least: int, cable: Pair, tmp_path: pathlib.Path) -> None:
        path = tmp_path / f"{kind}.pcap"
        subprocess.run([sys.executable, GENERATE, kind, path, "--frames", "20000"], check=True, capture_output=True)
        records = same_live(tmp_path, cable, path, pps=10000)
        assert len(records) >= least
        assert all(record["http_capture"]["complete"] for record in records)

    def test_it_would_show_a_difference(self, cable: Pair, tmp_path: pathlib.Path) -> None:
        """The comparison itself: one frame less on the cable is seen."""
        path, less = tmp_path / "short.pcap", tmp_path / "less.pcap"
        subprocess.run([sys.executable, GENERATE, "short", path, "--exchanges", "3"], check=True, capture_output=True)
        content = path.read_bytes()
        frames, at = [], 24
        while at < len(content):
            end = at + 16 + int.from_bytes(content[at + 8 : at + 12], "little")
            frames.append(content[at:end])
            at = end
        frames.remove(max(frames, key=len))
        less.write_bytes(content[:24] + b"".join(frames))
        want, _ = replayed(tmp_path, path)
        with recording(tmp_path, cable.namespace, cable.far, "--bodies", "all") as run:
            send(cable.namespace, cable.near, less)
            run.stop()
            assert by_id(run.records()) != by_id(want)


# --- Real TCP between two hosts


class Site(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    body = os.urandom(3_000_000)

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)


@needs_network
def test_a_real_client_and_server(tmp_path: pathlib.Path) -> None:
    with hosts() as two:
        with inside(two.server):
            server = http.server.ThreadingHTTPServer((two.server_address, 8080), Site)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            with recording(tmp_path, two.server, two.server_nic) as run:
                with inside(two.client):
                    client = http.client.HTTPConnection(two.server_address, 8080, timeout=LIMIT_SECONDS)
                    client.connect()
                for number in range(3):
                    client.request("GET", f"/{number}")
                    assert client.getresponse().read() == Site.body
                client.close()
                assert run.stop() == 0, run.said
        finally:
            server.shutdown()
            server.server_close()
    records = run.records()
    assert [record["url"]["original"] for record in records] == ["/0", "/1", "/2"]
    assert all(record["http_capture"]["complete"] for record in records)
    assert all(record["http"]["response"]["body"]["bytes"] == len(Site.body) for record in records)
    assert records[0]["destination"] | {"bytes": 0} == {"ip": two.server_address, "port": 8080, "bytes": 0}
    assert run.ledger()["frames"]["dropped_by_kernel"] == 0


# --- Guard


def packet_sockets(pid: int) -> set[str]:
    """The capture sockets in the network namespace of a process, by inode."""
    lines = pathlib.Path(f"/proc/{pid}/net/packet").read_text().splitlines()[1:]
    return {line.split()[8] for line in lines}


@needs_network
class TestSecondCopy:
    @pytest.mark.parametrize("pidfile", ["live.pid", "other.pid"])
    def test_is_refused_before_it_opens_anything(self, pidfile: str, cable: Pair, tmp_path: pathlib.Path) -> None:
        with recording(tmp_path, cable.namespace, cable.far) as holder:
            before = packet_sockets(holder.process.pid)
            text = (tmp_path / "live.pid").read_bytes()
            assert len(before) == 1
            took = []
            for _ in range(5):
                with inside(cable.namespace):
                    begin = time.monotonic()
                    second = Run(tmp_path, "--iface", cable.far, "--pidfile", str(tmp_path / pidfile))
                    while second.process.poll() is None:
                        assert packet_sockets(holder.process.pid) == before
                        time.sleep(0.002)
                took.append(time.monotonic() - begin)
                assert second.process.returncode == 75, second.said
                assert "REFUSED (exit 75)" in second.said
                assert f"pid {holder.process.pid}" in second.said
            assert min(took) < 0.5  # 0.1 s on an idle machine
            assert (tmp_path / "live.pid").read_bytes() == text
            assert holder.stop() == 0
            assert not holder.records()

    def test_runs_on_another_nic_with_a_pidfile_of_its_own(self, cable: Pair, tmp_path: pathlib.Path) -> None:
        with recording(tmp_path, cable.namespace, cable.far) as first, inside(cable.namespace):
            second = Run(tmp_path, "--iface", cable.near, "--pidfile", str(tmp_path / "near.pid"))
            second.until(f"recording {cable.near}")
            assert (second.stop(), first.stop()) == (0, 0)

    def test_starts_once_the_first_has_been_killed(self, cable: Pair, tmp_path: pathlib.Path) -> None:
        with recording(tmp_path, cable.namespace, cable.far) as first:
            first.process.kill()
            first.wait()
            with recording(tmp_path, cable.namespace, cable.far) as second:
                assert second.stop() == 0


# --- Stop, ledger, a NIC that goes


def exchange_frames(number: int) -> list[bytes]:
    """The frames of a connection with one exchange."""
    conversation = Conversation(client=("10.0.0.1", 20000 + number))
    conversation.handshake()
    conversation.send("client", http_request(target=f"/{number}"))
    conversation.send("server", http_response(body=b"hello"))
    conversation.close()
    return [frame for _, frame in conversation.frames]


def put(cable: Pair, numbers: Iterable[int]) -> int:
    """Sends such connections. Returns how many frames that was."""
    frames = [frame for number in numbers for frame in exchange_frames(number)]
    with sender(cable.namespace, cable.near) as out:
        for frame in frames:
            out.send(frame)
    return len(frames)


@needs_network
class TestStop:
    @pytest.mark.parametrize("kind", ["af_packet", "scapy"])
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_loses_nothing_that_came_before_it(
        self, number: int, kind: str, cable: Pair, tmp_path: pathlib.Path
    ) -> None:
        """The signal comes right behind the frames, which lie in a ring block that is still open."""
        with recording(tmp_path, cable.namespace, cable.far, "--source", kind) as run:
            sent = put(cable, range(20))
            run.process.send_signal(number)
            assert run.wait() == 0, run.said
        assert [record["url"]["original"] for record in run.records()] == [f"/{n}" for n in range(20)]
        frames = run.ledger()["frames"]
        assert (frames["received"], frames["read"], frames["dropped_by_kernel"], frames["unread"]) == (sent, sent, 0, 0)

    def test_waits_for_a_long_block_timeout(self, cable: Pair, tmp_path: pathlib.Path) -> None:
        with recording(tmp_path, cable.namespace, cable.far, "--set", "source.ring_timeout_ms=1000") as run:
            sent = put(cable, range(5))
            assert run.stop() == 0
        assert run.ledger()["frames"]["read"] == sent

    def test_under_load_ends_and_balances(self, cable: Pair, tmp_path: pathlib.Path) -> None:
        ended = threading.Event()

        def flood() -> None:
            number = 0
            while not ended.is_set():
                put(cable, range(number, number + 20))
                number = (number + 20) % 40000
                time.sleep(0.005)

        with recording(tmp_path, cable.namespace, cable.far) as run:
            thread = threading.Thread(target=flood)
            thread.start()
            try:
                time.sleep(1)
                begin = time.monotonic()
                assert run.stop() == 0, run.said
                took = time.monotonic() - begin
            finally:
                ended.set()
                thread.join()
        ledger = run.ledger()
        assert ledger["exchanges"]["total"] > 0
        assert ledger["frames"]["unread"] == ledger["frames"]["dropped_by_kernel"] == 0
        assert took < 5

    def test_in_the_middle_of_an_exchange_records_what_there_is(self, cable: Pair, tmp_path: pathlib.Path) -> None:
        with recording(tmp_path, cable.namespace, cable.far) as run:
            with sender(cable.namespace, cable.near) as out:
                for frame in exchange_frames(1)[:4]:
                    out.send(frame)
            assert run.stop() == 0
        (record,) = run.records()
        assert record["http_capture"]["complete"] is False
        assert record["http_capture"]["incomplete_reason"] in ("shutdown", "no_response")


@needs_network
class TestNic:
    def test_that_goes_down_and_comes_up_is_recorded_again(self, tmp_path: pathlib.Path) -> None:
        with veth() as pair, recording(tmp_path, pair.namespace, pair.far) as run:
            put(pair, range(3))
            time.sleep(0.2)
            ip("link", "set", pair.far, "down", namespace=pair.namespace)
            run.until(f"{pair.far} is down")
            ip("link", "set", pair.far, "up", namespace=pair.namespace)
            run.until(f"{pair.far} is up")
            put(pair, range(10, 13))
            assert run.stop() == 0, run.said
            assert [r["url"]["original"] for r in run.records()] == ["/0", "/1", "/2", "/10", "/11", "/12"]
            run.ledger()

    def test_that_is_removed_ends_the_run(self, tmp_path: pathlib.Path) -> None:
        soon = ("--set", "source.return_timeout_seconds=1")
        with veth() as pair, recording(tmp_path, pair.namespace, pair.far, *soon) as run:
            put(pair, range(3))
            ip("link", "delete", pair.far, namespace=pair.namespace)
            assert run.wait() == 69
            assert "was removed while it was captured" in run.said
            assert len(run.records()) == 3
            run.ledger()

    def test_that_does_not_exist(self, cable: Pair, tmp_path: pathlib.Path) -> None:
        with inside(cable.namespace):
            run = Run(tmp_path, "--iface", "eth77", "--pidfile", str(tmp_path / "live.pid"))
            assert run.wait() == 69
        assert "eth77" in run.said
        assert cable.far in run.said  # what there is instead
        assert "Traceback" not in run.said

    def test_two_of_them_need_two_processes(self, cable: Pair, tmp_path: pathlib.Path) -> None:
        with inside(cable.namespace):
            run = Run(
                tmp_path, "--iface", cable.near, "--iface", cable.far, "--pidfile", str(tmp_path / "live.pid")
            )  # fmt: skip
            assert run.wait() == 64
        assert "2 NICs given (near0, far0): run one process for each" in run.said


@needs_network
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv (util-linux)")
def test_a_user_without_the_permission_is_told_what_is_missing(cable: Pair, open_folder: pathlib.Path) -> None:
    with inside(cable.namespace):
        run = Run(
            open_folder, "--iface", cable.far, "--pidfile", str(open_folder / "live.pid"), under=unprivileged()
        )  # fmt: skip
        assert run.wait() == 77
    (line,) = (line for line in run.said.splitlines() if "not compiled" not in line)
    assert f"not permitted to capture on {cable.far}: CAP_NET_RAW is missing" in line


HEAVY_SECONDS = 0.015


def inflating(body: bytes) -> float:
    """Seconds of CPU time that it takes, in pieces as http-capture does it."""
    begin = time.process_time()
    inflater = zlib.decompressobj()
    while body:
        inflater.decompress(body, 1 << 16)
        body = inflater.unconsumed_tail
    return time.process_time() - begin


def heavy(count: int) -> list[tuple[int, bytes]]:
    """Exchanges of a connection each, with bodies of which decompression takes far longer than their frames to send: on
    a processor of any speed, so a fast one gets larger ones."""
    text = b"".join(b"%d lines that say nothing at all\n" % number + b"-" * 10_000 for number in range(10))
    seconds = min(inflating(zlib.compress(text * 10, 9)) for _ in range(20))
    body = zlib.compress(text * min(10 * int(HEAVY_SECONDS / seconds), 400), 9)  # 10 to 55 KB
    assert len(body) < 60_000
    headers = (("Content-Type", "text/plain"), ("Content-Encoding", "deflate"))
    conversations = []
    for number in range(count):
        conv = Conversation(
            (f"10.1.{number >> 8}.{number & 255}", 40000), mss=60000, client_isn=1000 * number, step_ns=1000
        )
        conv.now_ns += number * 20_000
        conv.handshake()
        conv.send("client", http_request("GET", f"/{number}"))
        conv.send("server", http_response(200, headers, body))
        conv.close()
        conversations.append(conv)
    return mix(*conversations)


@needs_network
@pytest.mark.skipif(shutil.which("tcpreplay") is None, reason="needs tcpreplay")
@pytest.mark.parametrize("workers", [1, 2])
def test_more_than_can_be_held_costs_whole_connections(cable: Pair, tmp_path: pathlib.Path, workers: int) -> None:
    """Some times as much as one can take, and more than two can, also where cores are twice as fast. The ring is so
    short that the kernel may have to drop at first."""
    frames = heavy(1200)
    path = tmp_path / "heavy.pcap"
    write_pcap(path, frames)
    with recording(
        tmp_path, cable.namespace, cable.far, "--workers", str(workers), "--set", "source.snaplen_bytes=65536",
        "--set", "source.ring_block_bytes=69632", "--set", "source.ring_block_count=48",
    ) as run:  # fmt: skip
        send(cable.namespace, cable.near, path, pps=1600)
        assert run.stop() == 0, run.said
    ledger = run.ledger()
    assert ledger["frames"]["received"] == len(frames)
    shed, dropped = ledger["segments"]["shed"], ledger["frames"]["dropped_by_kernel"]
    assert shed > dropped
    assert ledger["connections"]["shed"] > 100
    assert "% of the connections are recorded, whole; the rest is shed, by a hash, and counted" in run.said
    whole = [record for record in run.records() if record["http_capture"]["complete"]]
    assert len(whole) > 10
    few = tmp_path / "few.pcap"  # a replay of all would take long
    targets = {int(record["url"]["original"][1:]) for record in whole}
    clients = {(10 << 24 | 1 << 16 | number).to_bytes(4, "big") for number in targets}
    write_pcap(few, [frame for frame in frames if frame[1][26:30] in clients or frame[1][30:34] in clients])
    wanted, _ = replayed(tmp_path, few)
    everything = by_id(wanted)
    assert len(everything) == len(targets)
    for identity, record in by_id(whole).items():
        assert record == everything[identity]
