"""Workers: records that do not depend on their number, one ledger, one guard, and what the death of one costs. The real
program, as processes; the NICs are veth pairs in namespaces of the tests' own."""

import contextlib
import gzip
import json
import logging
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest
from command import COMMAND, environment
from confluent_kafka import Consumer, TopicPartition
from http_capture.capture.run import _LogFile
from http_capture.capture.sink.embedded import EmbeddedBroker
from http_capture.capture.sink.lines import Lines, Turns
from http_capture.capture.source.block import INDEX_BYTES, Block, Buffer
from http_capture.capture.source.pcap_file import PcapFiles
from http_capture.capture.workers import divided
from http_capture.config.settings import Settings, TcpSettings, WorkersSettings
from line import DIALOGUES, speak
from network import inside, ip, needs_network, sender, veth
from traffic import Conversation, fragment, http_request, http_response, mix, write_pcap

CORPUS = pathlib.Path(__file__).resolve().parents[2] / "shared" / "corpus"
GENERATE = pathlib.Path(__file__).with_name("bench") / "generate.py"
LIMIT_SECONDS = 60.0  # that anything may take on a busy machine before the test fails
pytestmark = pytest.mark.skipif(not hasattr(os, "eventfd"), reason="needs Linux")


def eventually(what, seconds=LIMIT_SECONDS):
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "this has not come"
        time.sleep(0.01)
    return found


def workers_of(pid):
    """Their pids, in the order of their numbers, which are in their names."""
    found = {}
    with contextlib.suppress(OSError):
        for child in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            with contextlib.suppress(OSError):
                name = pathlib.Path(f"/proc/{child}/comm").read_text().strip()
                if name.startswith("http-capture:"):
                    found[int(name.partition(":")[2])] = int(child)
    return [found[number] for number in sorted(found)]


def alive(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] != b"Z"
    except OSError:
        return False


def by_connection(text):
    """Records without what is of the run, a list for each connection in the order in which they came."""
    found = {}
    for line in text.splitlines():
        record = json.loads(line)
        assert record["http_capture"].pop("instance")
        record["observer"].pop("ingress", None)
        ends = sorted((side["ip"], side["port"]) for side in (record["source"], record["destination"]))
        key = json.dumps([ends, record.get("network"), record["observer"].get("vlan")])
        found.setdefault(key, []).append(record)
    return found


def ledger_of(said, *, balanced=True):
    (line,) = (line for line in said.splitlines() if line.startswith('{"event": "ledger"'))
    ledger = json.loads(line)
    assert ledger["imbalances"] == []
    assert ledger["balanced"] is balanced
    return ledger


def without_workers(ledger):
    return {name: section for name, section in ledger.items() if name != "workers"}


def same_for_any_number(run, paths, *arguments, numbers=(2, 3), code=0):
    """Replays with one process and with several. Returns the records of one."""
    wanted = ledger = None
    for number in (1, *numbers):
        done = run("--read", *paths, "--sink", "stdout", "--json", "--bodies", "all", "--workers", number, *arguments)
        assert done.returncode == code, done.stderr
        found, counted = by_connection(done.stdout), ledger_of(done.stderr)
        if wanted is None:
            wanted, ledger = found, counted
            continue
        assert found == wanted
        assert without_workers(counted) == without_workers(ledger)
        told = counted["workers"]
        assert told["count"] == number
        assert sum(told["segments"].values()) == counted["frames"]["segments"]
        assert (told["died"], told["segments_lost"]) == (0, 0)
    return wanted


# --- The same records for any number


def all_dialogues():
    """Conversations at the same time: in VLANs, over IPv6, in fragments, on the same ports."""
    conversations = []
    for number, dialogue in enumerate(DIALOGUES.values()):
        for vlan in ((), (7,)):
            conversations.append(speak(Conversation(client=(f"10.0.{number}.1", 40000), vlan=vlan), dialogue))
        ends = {"client": (f"2001:db8::{number:x}", 40000), "server": ("2001:db8::ffff", 80)}
        conversations.append(speak(Conversation(**ends), dialogue))
    frames = mix(*conversations)
    fragmented = speak(Conversation(client=("10.9.0.1", 40000)), DIALOGUES["keep-alive"]).frames
    return frames + [(at, piece) for at, frame in fragmented for piece in fragment(frame, 64)]


def test_all_dialogues(run, tmp_path):
    write_pcap(tmp_path / "a.pcap", all_dialogues())
    found = same_for_any_number(run, [tmp_path / "a.pcap"])
    assert len(found) >= 40


@pytest.mark.slow
@pytest.mark.once
@pytest.mark.parametrize(("kind", "frames"), [("mixed", 30000), ("short", 60000)])
def test_generated_captures(run, tmp_path, kind, frames):
    """More than all slots hold."""
    path = tmp_path / "a.pcap"
    subprocess.run([sys.executable, GENERATE, kind, path, "--frames", str(frames)], check=True, capture_output=True)
    same_for_any_number(run, [path], numbers=(2,))


@pytest.mark.once
@pytest.mark.parametrize(
    "name",
    [
        "OISF+suricata-verify/tests/http-connect/http-connect-fragmented/input.pcap",
        "arkime+arkime/tests/pcap/gre-erspan-vxlan.pcap",
        "arkime+arkime/tests/pcap/tcp-reassembly-synthetic.pcap",
        "zeek+zeek/testing/btest/Traces/http/methods.pcap",
        "zeek+zeek/testing/btest/Traces/mixed-vlan-mpls.pcap",
        "zeek+zeek/testing/btest/Traces/tunnels/Teredo.pcap",
        "zeek+zeek/testing/btest/Traces/tunnels/vxlan-encapsulated-http.pcap",
    ],
)
def test_captures_of_the_corpus(run, name):
    if not (CORPUS / name).exists():
        pytest.skip("no ../shared/corpus here")
    same_for_any_number(run, [CORPUS / name], numbers=(3,))


def test_folders_compressed_files_and_a_damaged_one(run, tmp_path):
    folder = tmp_path / "captures"
    folder.mkdir()
    frames = all_dialogues()
    write_pcap(folder / "a.pcap", frames[: len(frames) // 2])
    write_pcap(tmp_path / "b.pcap", frames[len(frames) // 2 :])
    (folder / "b.pcap.gz").write_bytes(gzip.compress((tmp_path / "b.pcap").read_bytes()))
    write_pcap(tmp_path / "cut.pcap", [(at_ns + 3600 * 10**9, frame) for at_ns, frame in frames])
    os.truncate(tmp_path / "cut.pcap", (tmp_path / "cut.pcap").stat().st_size - 5)
    same_for_any_number(run, [folder, tmp_path / "cut.pcap"], numbers=(2,), code=65)


def test_standard_input(run, tmp_path):
    write_pcap(tmp_path / "a.pcap", all_dialogues())
    wanted = same_for_any_number(run, [tmp_path / "a.pcap"], numbers=())
    with open(tmp_path / "a.pcap", "rb") as file:
        done = run("--read", "-", "--workers", 2, "--bodies", "all", "--sink", "stdout", stdin=file)
    assert by_connection(done.stdout) == wanted


def test_a_block_of_pcapng_that_is_larger_than_a_slot(run, tmp_path):
    """It is read into memory of its own, and its frame copied."""

    def block(kind, body):
        body += bytes(-len(body) % 4)
        length = (12 + len(body)).to_bytes(4, "little")
        return kind.to_bytes(4, "little") + length + body + length

    content = block(0x0A0D0D0A, bytes.fromhex("4d3c2b1a01000000ffffffffffffffff"))
    content += block(1, bytes.fromhex("0100000000000400"))
    frames = speak(Conversation(), DIALOGUES["keep-alive"]).frames
    for number, (at_ns, frame) in enumerate(frames):
        option = b"" if number != 8 else b"".join(b"\1\0\xfc\xff" + bytes(0xFFFC) for _ in range(20))
        units = at_ns // 1000
        fields = [0, units >> 32, units & 0xFFFFFFFF, len(frame), len(frame)]
        packed = b"".join(field.to_bytes(4, "little") for field in fields)
        content += block(6, packed + frame + bytes(-len(frame) % 4) + option)
    (tmp_path / "a.pcapng").write_bytes(content)
    found = same_for_any_number(run, [tmp_path / "a.pcapng"], numbers=(2,))
    assert len(next(iter(found.values()))) > 10


def test_a_filter(run, tmp_path):
    write_pcap(tmp_path / "a.pcap", mix(*(speak(Conversation(client=("10.0.0.1", port)), DIALOGUES["1.0"])
                                          for port in range(40000, 40008))))  # fmt: skip
    found = same_for_any_number(run, [tmp_path / "a.pcap"], "--filter", "tcp portrange 40000-40003", numbers=(2,))
    assert len(found) == 4


@pytest.mark.once
def test_kafka_has_all_of_them_once(run, tmp_path):
    write_pcap(tmp_path / "a.pcap", all_dialogues())
    with EmbeddedBroker() as broker:
        done = run("--read", tmp_path / "a.pcap", "--brokers", broker.address, "--workers", 2, "--json")
    assert done.returncode == 0, done.stderr
    records = ledger_of(done.stderr)["records"]
    assert records["delivered"] == records["total"] > 100


# --- Whole lines


@pytest.mark.parametrize("to", ["stdout", "file"])
def test_lines_of_several_workers_are_never_mixed(start, tmp_path, to):
    """Lines longer than a pipe takes at once, and a reader that is slow."""
    conversations = []
    for number in range(60):
        conversation = Conversation(client=("10.0.0.1", 20000 + number), mss=9000)
        conversation.handshake()
        for _ in range(3):
            conversation.send("client", http_request(target=f"/{number}"))
            text = (b"%d " % number * 20000)[: 300 * number + 100]
            conversation.send("server", http_response(headers=(("Content-Type", "text/plain"),), body=text))
        conversation.close()
        conversations.append(conversation)
    write_pcap(tmp_path / "a.pcap", mix(*conversations))
    path = tmp_path / "records"
    path.write_bytes(b'{"url": {"original": "/old"}, "cut": ')
    sink = "stdout" if to == "stdout" else f"file:{path}"
    running = start("--read", tmp_path / "a.pcap", "--workers", 3, "--sink", sink, "--log-level", "error")
    text = b""
    while piece := running.stdout.read1(3000):
        text += piece
        time.sleep(0.001)
    assert running.wait(LIMIT_SECONDS) == 0, running.stderr.read()
    lines = (text if to == "stdout" else path.read_bytes().partition(b"\n")[2]).splitlines()
    assert len([json.loads(line) for line in lines]) == 180


def test_a_file_is_shared_by_the_workers_and_by_nobody_else(start, run, tmp_path):
    write_pcap(tmp_path / "a.pcap", all_dialogues())
    first = start("--read", "-", "--workers", 2, "--sink", f"file:{tmp_path / 'records'}", "--log-level", "error")
    eventually(lambda: len(workers_of(first.pid)) == 2)
    done = run("--read", tmp_path / "a.pcap", "--sink", f"file:{tmp_path / 'records'}")
    assert done.returncode == 64
    assert "is being written by another run" in done.stderr


def test_a_line_that_a_killed_process_left_is_ended(tmp_path):
    path = tmp_path / "records"
    with open(path, "ab+") as file:
        turns = Turns()
        pid = os.fork()
        if pid == 0:
            turns.take(wait=True)
            turns.broken = True
            os.write(file.fileno(), b'{"half": ')
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(pid, 0)
        sink = Lines(file.fileno(), "records", live=False, turns=turns)
        sink.send(b"", b"{}", [], 1)
        sink.flush(1.0)
        assert path.read_bytes() == b'{"half": \n{}\n'
        sink.close()


def test_a_reader_that_goes_away_ends_all_of_them_quietly(start, tmp_path):
    conversations = [speak(Conversation(client=("10.0.0.1", port)), DIALOGUES["keep-alive"]) for port in range(1, 400)]
    write_pcap(tmp_path / "a.pcap", mix(*conversations))
    running = start("--read", tmp_path / "a.pcap", "--workers", 2, "--sink", "stdout", "--log-level", "error")
    json.loads(running.stdout.readline())
    running.stdout.close()
    assert running.wait(LIMIT_SECONDS) == 0
    assert running.stderr.read() == b""


# --- Death of a worker


class Fed:
    """A replay of standard input, to which frames are given as the test goes on; records in a file."""

    def __init__(self, start, folder, *arguments):
        self.path = folder / "fed"
        self.head = write_pcap(folder / "head.pcap", [])
        self.process = start(
            "--read", "-", "--sink", f"file:{self.path}", "--json", "--log-file", folder / "log", *arguments
        )  # fmt: skip
        self.log = folder / "log"
        self.folder = folder
        self.process.stdin.write((folder / "head.pcap").read_bytes())
        self.process.stdin.flush()
        self.count = int(arguments[arguments.index("--workers") + 1])
        self.workers = eventually(lambda: len(found := workers_of(self.process.pid)) == self.count and found)

    def give(self, frames):
        write_pcap(self.folder / "part.pcap", frames)
        self.process.stdin.write((self.folder / "part.pcap").read_bytes()[24:])
        self.process.stdin.flush()

    def text(self):
        return self.path.read_text() if self.path.exists() else ""

    def until(self, records):
        eventually(lambda: len(self.text().splitlines()) >= records)

    def until_said(self, text):
        eventually(lambda: self.log.exists() and text in self.log.read_text())

    def end(self):
        self.process.stdin.close()
        code = self.process.wait(LIMIT_SECONDS)
        return code, self.process.stderr.read().decode()


def one_exchange(number, body=b"hello"):
    """The frames up to the request, and the rest."""
    conversation = Conversation(client=("10.0.0.1", 20000 + number))
    conversation.handshake()
    conversation.send("client", http_request(target=f"/{number}"))
    begun = len(conversation.frames)
    conversation.send("server", http_response(body=body))
    conversation.close()
    return conversation.frames[:begun], conversation.frames[begun:]


def paths_of(text):
    return sorted(
        int(record["url"]["original"][1:]) for record in map(json.loads, text.splitlines())
        if record["http_capture"]["complete"]
    )  # fmt: skip


def offsets(address):
    """How many records the broker has."""
    consumer = Consumer({"bootstrap.servers": address, "group.id": "test"}, logger=logging.getLogger("test"))
    try:
        topic = consumer.list_topics("http-capture", timeout=5).topics["http-capture"]
        parts = [TopicPartition("http-capture", number) for number in topic.partitions]
        return sum(consumer.get_watermark_offsets(part, timeout=5)[1] for part in parts)
    finally:
        consumer.close()


class TestDeath:
    def test_costs_what_it_had_begun_and_no_more(self, start, tmp_path):
        fed = Fed(start, tmp_path, "--workers", "2")
        fed.give([frame for number in range(20) for part in one_exchange(number) for frame in part])
        fed.give([frame for number in range(20, 40) for frame in one_exchange(number)[0]])
        fed.until(20)
        time.sleep(1.2)  # it reports every second, and what it has done since is what is not known
        fed.give([frame for number in range(40, 41) for part in one_exchange(number) for frame in part])
        fed.until(21)
        os.kill(fed.workers[0], signal.SIGKILL)
        fed.until_said("it is restarted")
        fed.give([frame for number in range(20, 40) for frame in one_exchange(number)[1]])
        fed.give([frame for number in range(41, 60) for part in one_exchange(number) for frame in part])
        code, said = fed.end()
        assert code == 70
        assert f"worker 1 (pid {fed.workers[0]}) was ended by SIGKILL" in fed.log.read_text()
        ledger = ledger_of(said, balanced=None)
        told = ledger["workers"]
        assert (told["died"], told["restarted"], told["blocks_lost"]) == (1, 1, 0)
        assert told["frames_lost"]["worker 2"] == 0 < told["frames_lost"]["worker 1"] < 100
        assert told["segments_lost"] <= told["frames_lost"]["worker 1"]
        assert "worker 1 did not count" in ledger["unknown"][0]
        found = paths_of(fed.text())
        assert len(found) == len(set(found))
        assert set(found) >= {*range(20), *range(40, 60)}
        assert 40 < len(found) < 60  # of those that were open, the other worker's

    def test_may_be_the_end_by_policy(self, start, tmp_path):
        fed = Fed(start, tmp_path, "--workers", "2", "--set", "workers.on_death=stop")
        fed.give([frame for part in one_exchange(1) for frame in part])
        fed.until(1)
        os.kill(fed.workers[1], signal.SIGKILL)
        assert fed.process.wait(LIMIT_SECONDS) == 70
        assert "worker 2" in fed.log.read_text()
        assert "the run ends ([workers] on_death is stop)" in fed.log.read_text()
        ledger = ledger_of(fed.process.stderr.read().decode(), balanced=None)
        assert (ledger["workers"]["died"], ledger["workers"]["restarted"]) == (1, 0)

    def test_again_and_again_is_the_end(self, start, tmp_path):
        fed = Fed(start, tmp_path, "--workers", "2")
        fed.give([frame for part in one_exchange(1) for frame in part])
        fed.until(1)  # else they die before the start
        seen = set()
        for _ in range(5):
            victim = eventually(lambda: [pid for pid in workers_of(fed.process.pid) if pid not in seen and alive(pid)])
            seen.add(victim[0])
            os.kill(victim[0], signal.SIGKILL)
        assert fed.process.wait(LIMIT_SECONDS) == 70
        assert "the 5th death within 60 s" in fed.log.read_text()

    def test_of_the_parent_ends_them(self, start, tmp_path):
        fed = Fed(start, tmp_path, "--workers", "3")
        fed.process.kill()
        eventually(lambda: not any(map(alive, fed.workers)))

    def test_while_kafka_is_away_costs_no_more_than_else(self, start, tmp_path):
        """The one in its place does not wait for a broker: its records wait, as those of the others do."""
        with EmbeddedBroker() as broker:
            fed = Fed(
                start, tmp_path, "--workers", "2", "--sink", "kafka", "--brokers", broker.address, "--set",
                "kafka.start_timeout_seconds=1", "--set", "kafka.flush_timeout_seconds=0.5",
            )  # fmt: skip
            fed.give([frame for part in one_exchange(1) for frame in part])
            eventually(lambda: offsets(broker.address))
        os.kill(fed.workers[0], signal.SIGKILL)
        fed.until_said("it is restarted")
        time.sleep(3)
        fed.give([frame for number in range(2, 20) for part in one_exchange(number) for frame in part])
        code, said = fed.end()
        assert code == 74, said
        ledger = ledger_of(said, balanced=None)
        assert (ledger["workers"]["died"], ledger["workers"]["restarted"]) == (1, 1)
        assert ledger["records"]["undelivered"]["closed"] >= 18

    def test_is_seen_where_sigchld_was_ignored(self, run, tmp_path):
        write_pcap(tmp_path / "a.pcap", [frame for part in one_exchange(1) for frame in part])
        done = run(
            "--read", tmp_path / "a.pcap", "--workers", 2, "--sink", "stdout", "--json",
            before=["env", "--ignore-signal=CHLD"],
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert paths_of(done.stdout) == [1]
        ledger_of(done.stderr)

    @pytest.mark.parametrize("number", range(8, 40, 3))
    def test_more_than_there_are_files_for_is_an_error_of_one_line(self, run, tmp_path, number):
        write_pcap(tmp_path / "a.pcap", [])
        done = run(
            "--read", tmp_path / "a.pcap", "--workers", 16, "--sink", "null", before=["prlimit", f"--nofile={number}"]
        )
        assert "Traceback" not in done.stderr
        if done.returncode != 0 and "cannot be started" in done.stderr:
            assert done.returncode == 69
            assert "Too many open files): see the limits" in done.stderr

    def test_before_the_start_is_an_error_of_the_start(self, run, tmp_path):
        write_pcap(tmp_path / "a.pcap", [])
        done = run(
            "--read", tmp_path / "a.pcap", "--workers", 2, "--brokers", "127.0.0.1:1", "--set",
            "kafka.start_timeout_seconds=0.3",
        )  # fmt: skip
        assert done.returncode == 69
        assert "no Kafka broker answered at 127.0.0.1:1" in done.stderr
        assert "Traceback" not in done.stderr


class TestStop:
    @pytest.mark.parametrize(
        ("number", "group"), [(signal.SIGTERM, False), (signal.SIGTERM, True), (signal.SIGINT, True)]
    )
    def test_records_what_was_read(self, start, tmp_path, number, group):
        fed = Fed(start, tmp_path, "--workers", "2")
        fed.give([frame for part in one_exchange(1) for frame in part])
        fed.give(one_exchange(2)[0])
        time.sleep(0.3)
        for pid in (fed.process.pid, *(fed.workers if group else ())):
            os.kill(pid, number)
        assert fed.process.wait(LIMIT_SECONDS) == 0, fed.process.stderr.read()
        ledger = ledger_of(fed.process.stderr.read().decode())
        assert ledger["exchanges"]["total"] == ledger["records"]["delivered"] == 2
        assert paths_of(fed.text()) == [1]

    @pytest.mark.parametrize("workers", [1, 2])
    def test_does_not_wait_for_a_slow_reader_for_ever(self, start, tmp_path, workers):
        conversations = [speak(Conversation(client=("10.0.0.1", n)), DIALOGUES["keep-alive"]) for n in range(1, 300)]
        write_pcap(tmp_path / "a.pcap", mix(*conversations) * 200)
        running = start(
            "--read", tmp_path / "a.pcap", "--workers", workers, "--sink", "stdout", "--json", "--quiet", "--set",
            "kafka.flush_timeout_seconds=0.5",
        )  # fmt: skip
        running.stdout.read(1)  # and no more
        time.sleep(1)
        running.send_signal(signal.SIGTERM)
        assert running.wait(LIMIT_SECONDS) == 74
        records = ledger_of(running.stderr.read().decode())["records"]
        assert records["total"] == records["delivered"] + sum(records["undelivered"].values())
        assert 0 < records["delivered"] < records["total"]

    @pytest.mark.parametrize("workers", [1, 2])
    def test_while_a_broker_is_waited_for(self, start, tmp_path, workers):
        write_pcap(tmp_path / "a.pcap", [])
        began = time.monotonic()
        running = start(
            "--read", tmp_path / "a.pcap", "--workers", workers, "--brokers", "127.0.0.1:1", "--set",
            "kafka.start_timeout_seconds=50",
        )  # fmt: skip
        time.sleep(1.5)
        running.send_signal(signal.SIGTERM)
        assert running.wait(LIMIT_SECONDS) == 0
        assert time.monotonic() - began < 20
        assert running.stderr.read().decode().startswith("http-capture: stopped while ")

    def test_twice_is_the_end_of_all(self, start, tmp_path):
        conversations = [speak(Conversation(client=("10.0.0.1", n)), DIALOGUES["keep-alive"]) for n in range(1, 300)]
        write_pcap(tmp_path / "a.pcap", mix(*conversations))
        running = start("--read", tmp_path / "a.pcap", "--workers", "2", "--sink", "stdout", "--log-level", "error")
        running.stdout.read(1)  # and no more: they wait for the reader
        workers = workers_of(running.pid)
        for _ in range(2):
            time.sleep(0.3)
            running.send_signal(signal.SIGTERM)
        assert running.wait(LIMIT_SECONDS) == 130
        assert b"ended by a second signal: " in running.stderr.read()
        assert not any(map(alive, workers))


# --- Settings, and the parts


@pytest.mark.parametrize("value", ["0", "65", "many"])
def test_a_number_that_is_none(run, tmp_path, value):
    write_pcap(tmp_path / "a.pcap", [])
    done = run("--read", tmp_path / "a.pcap", f"--workers={value}")
    assert done.returncode == 78
    (line,) = done.stderr.splitlines()
    assert "[workers] count" in line
    assert "must be a whole number, at least 1, at most 64" in line


def test_bounds_are_divided():
    part = divided(
        Settings(tcp=TcpSettings(max_connections=10, max_buffered_bytes=1), workers=WorkersSettings(count=4))
    )
    assert (part.tcp.max_connections, part.tcp.max_buffered_bytes) == (2, 1)
    assert part.body.max_decoder_memory_bytes == 64 << 20


def test_a_block_in_shared_memory():
    memory = bytearray(INDEX_BYTES * 3)
    buffer = Buffer(b"abcdef")
    one, two = Block(3, memoryview(memory)), Block(3, memoryview(memory))
    one.lend(buffer)
    one.add(0, 2, 9, 5, 1)
    one.add(2, 4, 4, 6, 101)
    two.lend_filled(buffer, 2)
    assert two.frames() == one.frames() == [(b"ab", 9, 5, 1), (b"cdef", 4, 6, 101)]
    with pytest.raises(ValueError, match="more frames"):
        two.lend_filled(buffer, 4)


def test_what_was_lent_stays_while_a_file_is_read_on(tmp_path):
    frames = [(number, b"%04d" % number * 100) for number in range(3000)]
    write_pcap(tmp_path / "a.pcap", frames)
    source = PcapFiles((str(tmp_path / "a.pcap"),))
    lent = []
    with contextlib.suppress(Exception):
        while True:
            source.into(Block(30000), Buffer(bytearray(50_000)))
            lent.append(source.read(1.0))
    assert [(at, frame) for block in lent for frame, _, at, _ in block.frames()] == frames
    source.close()


def test_the_log_of_a_worker_follows_that_of_the_parent(tmp_path):
    parent, worker = (_LogFile(tmp_path / "log", encoding="utf-8") for _ in range(2))
    worker.follows = True
    record = logging.LogRecord("x", logging.INFO, "", 0, "line", None, None)
    worker.emit(record)
    (tmp_path / "log").rename(tmp_path / "log.1")
    worker.emit(record)
    parent.anew = True
    parent.emit(record)
    worker.emit(record)
    assert (tmp_path / "log.1").read_text() == (tmp_path / "log").read_text() == "line\nline\n"
    parent.close()
    worker.close()


# --- Live


class Live:
    """The program on a NIC with workers, its records on standard output; killed at the end."""

    def __init__(self, folder, pair, *arguments, workers=2, env=None, pidfile="live.pid"):
        self.pair = pair
        self.pidfile = folder / pidfile
        self.errors = folder / f"{time.monotonic_ns()}.err"
        self.output = self.errors.with_suffix(".out")
        words = [*COMMAND, "--iface", pair.far, "--pidfile", self.pidfile, "--sink", "stdout", "--json", "--workers",
                 workers, "--bodies", "all", *arguments]  # fmt: skip
        with open(self.errors, "wb") as err, open(self.output, "wb") as out, inside(pair.namespace):
            self.process = subprocess.Popen(
                [str(word) for word in words], stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                env=environment(**(env or {})),
            )  # fmt: skip

    def __enter__(self):
        self.until("recording far0")
        self.workers = workers_of(self.process.pid)
        assert len(self.workers) == 2
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    @property
    def said(self):
        return self.errors.read_text()

    def until(self, text):
        eventually(lambda: text in self.said or (self.process.poll() is not None and pytest.fail(self.said)))

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(LIMIT_SECONDS)


@pytest.fixture
def cable():
    with veth(mtu=65535) as pair:
        yield pair


def send(pair, path, pps=10000):
    with inside(pair.namespace):
        subprocess.run(
            ["tcpreplay", "--quiet", f"--pps={pps}", "-i", pair.near, str(path)], check=True, capture_output=True,
            timeout=LIMIT_SECONDS,
        )  # fmt: skip


def put(pair, numbers, *, whole=True):
    """Sends such exchanges, or only what comes before the responses."""
    with sender(pair.namespace, pair.near) as out:
        for number in numbers:
            begun, rest = one_exchange(number)
            for _, frame in begun + (rest if whole else []):
                out.send(frame)


def without_times(text):
    found = {}
    for records in by_connection(text).values():
        for record in records:
            del record["@timestamp"], record["http_capture"]["timing"]
            for name in ("start", "end", "duration"):
                del record["event"][name]
            found[record["event"]["id"]] = record
    return found


def command(pair, *arguments):
    with inside(pair.namespace):
        return subprocess.run(
            [*COMMAND, *map(str, arguments)], env=environment(), capture_output=True, text=True, timeout=LIMIT_SECONDS,
            check=False,
        )  # fmt: skip


@pytest.mark.alone
@needs_network
class TestLive:
    @pytest.mark.skipif(shutil.which("tcpreplay") is None, reason="needs tcpreplay")
    @pytest.mark.parametrize("kind", ["af_packet", "scapy"])
    def test_is_the_replay_and_one_copy(self, run, cable, tmp_path, kind):
        path = tmp_path / "a.pcap"
        subprocess.run([sys.executable, GENERATE, "short", path, "--frames", "3000"], check=True, capture_output=True)
        done = run("--read", path, "--sink", "stdout", "--bodies", "all", "--json")
        small = ("--set", "source.ring_block_count=4", "--set", "source.ring_block_bytes=300000")
        with Live(tmp_path, cable, "--source", kind, *(small if kind == "af_packet" else ())) as live:
            send(cable, path, pps=3000)
            verified = command(cable, "verify", "--iface", cable.far, "--pidfile", live.pidfile, "--json")
            report = json.loads(verified.stdout)
            ours = {live.process.pid, *live.workers}
            (copy,) = (copy for copy in report["copies"] if ours & set(copy["processes"]))  # of all of this host
            assert copy["pid"] == live.process.pid
            assert set(copy["processes"]) == ours
            assert not [one for one in report["findings"] if one["kind"] == "fault" and ours & set(one["pids"])]
            assert verified.returncode == 0 or len(report["copies"]) > 1
            status = command(cable, "status", "--pidfile", live.pidfile)
            assert status.returncode == 0, status.stdout
            assert f"workers: 2 (pid {live.workers[0]}, {live.workers[1]})" in status.stdout
            again = Live(tmp_path, cable, pidfile="other.pid")
            assert again.process.wait(LIMIT_SECONDS) == 75
            assert f"pid {live.process.pid}" in again.said
            assert live.stop() == 0, live.said
            assert live.pidfile.read_bytes() == b""
        ledger = ledger_of(live.said)
        assert ledger["frames"]["dropped_by_kernel"] == ledger["frames"]["unread"] == 0
        assert without_times(live.output.read_text()) == without_times(done.stdout)
        assert ledger["records"]["total"] >= 200

    def test_a_nic_without_frames_is_no_clock_that_was_set(self, cable, tmp_path):
        with Live(tmp_path, cable) as live:
            time.sleep(1)
            put(cable, range(3))
            assert live.stop() == 0
        ledger = ledger_of(live.said)
        assert ledger["exchanges"]["complete"] == 3
        assert ledger["connections"]["clock_steps"] == 0

    def test_timeouts_come_on_an_idle_nic(self, cable, tmp_path):
        with Live(tmp_path, cable, "--set", "tcp.idle_timeout_seconds=0.3", "--set", "tcp.reorder_seconds=0.1") as live:
            put(cable, [1], whole=False)
            eventually(lambda: live.output.read_text())
            assert json.loads(live.output.read_text())["http_capture"]["incomplete_reason"] in (
                "timeout",
                "no_response",
            )
            assert live.stop() == 0

    def test_a_nic_that_is_removed_ends_all_of_them(self, cable, tmp_path):
        with Live(tmp_path, cable, "--set", "source.return_timeout_seconds=0.5") as live:
            put(cable, range(3))
            ip("link", "delete", cable.far, namespace=cable.namespace)
            assert live.process.wait(LIMIT_SECONDS) == 69
            assert "was removed while it was captured" in live.said
            assert paths_of(live.output.read_text()) == [0, 1, 2]
            ledger_of(live.said)

    @pytest.mark.once
    def test_a_worker_that_hangs_is_killed_and_named(self, cable, tmp_path):
        with Live(tmp_path, cable) as live:
            os.kill(live.workers[1], signal.SIGSTOP)
            live.until(f"worker 2 (pid {live.workers[1]}) has not finished a block in 10 s: it is killed")
            live.until("it is restarted")
            assert live.stop() == 70
            told = ledger_of(live.said, balanced=None)["workers"]
            assert (told["hung"], told["died"], told["restarted"]) == (1, 1, 1)

    @pytest.mark.root
    def test_a_disk_that_stands_still_holds_no_stop_up(self, cable, tmp_path, frozen):
        """A worker that waits for it cannot end, nor be killed: it is left, and holds the guard until it ends."""
        folder, freeze = frozen
        arguments = ("--sink", f"file:{folder}/a", "--set", "kafka.flush_timeout_seconds=0.5")
        with Live(tmp_path, cable, *arguments) as live:
            put(cable, range(20))
            eventually(lambda: len((folder / "a").read_bytes().splitlines()) == 20)
            freeze()
            put(cable, range(20, 40))
            time.sleep(1)
            began = time.monotonic()
            assert live.stop() == 74
            assert time.monotonic() - began < 20
            ledger = ledger_of(live.said)
            assert ledger["records"]["total"] == 40
            assert ledger["records"]["delivered"] + sum(ledger["records"]["undelivered"].values()) == 40
            second = Live(tmp_path, cable)
            assert second.process.wait(LIMIT_SECONDS) == 75, second.said
            freeze(thaw=True)
            eventually(lambda: not any(map(alive, live.workers)))

    def test_another_user_is_that_of_the_workers_too(self, cable, tmp_path):
        with Live(tmp_path, cable, "--user", "nobody") as live:
            for pid in (live.process.pid, *live.workers):
                status = pathlib.Path(f"/proc/{pid}/status").read_text()
                assert "\nUid:\t65534\t65534\t65534\t65534\n" in status
                assert "\nCapPrm:\t0000000000000000\n" in status
            os.kill(live.workers[0], signal.SIGKILL)
            live.until("it is restarted")
            eventually(lambda: len(workers_of(live.process.pid)) == 2)
            live.process.kill()
            live.process.wait()
            eventually(lambda: not any(map(alive, live.workers)))

    @pytest.mark.once
    @pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
    def test_an_orphan_keeps_a_second_copy_out_while_it_lives(self, cable, tmp_path):
        """An orphan ends with its parent, so one is made that does not: prctl() does nothing there."""
        source = "int prctl(int option, ...) { return 0; }"
        library = tmp_path / "no.so"
        subprocess.run(
            ["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", library], input=source, text=True, check=True
        )  # fmt: skip
        live = Live(tmp_path, cable, env={"LD_PRELOAD": str(library)})
        live.until("recording far0")
        children = [
            int(pid) for pid in
            pathlib.Path(f"/proc/{live.process.pid}/task/{live.process.pid}/children").read_text().split()
        ]  # fmt: skip
        live.__exit__()
        try:
            assert all(map(alive, children))
            for pidfile in ("live.pid", "other.pid"):
                second = Live(tmp_path, cable, pidfile=pidfile)
                assert second.process.wait(LIMIT_SECONDS) == 75, second.said
                assert any(f"pid {pid}" in second.said for pid in children)
        finally:
            for pid in children:
                os.kill(pid, signal.SIGKILL)
        eventually(lambda: not any(map(alive, children)))
        with Live(tmp_path, cable) as third:
            assert third.stop() == 0
