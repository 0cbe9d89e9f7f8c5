"""Against a real Apache Kafka: every record arrives, once, as it should be, also when the broker does not behave."""

import http.client
import http.server
import json
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from confluent_kafka import TIMESTAMP_CREATE_TIME, Consumer, Message, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from http_capture.capture.sink.kafka import KafkaSink
from http_capture.config.settings import KafkaSettings

pytestmark = [pytest.mark.broker, pytest.mark.slow]

MANY = 100_000  # records of the tests in which something happens in the middle
LIMIT_SECONDS = 20.0


def command() -> list[str]:
    """The installed program; where only the tree is on the path, the module."""
    script = Path(sys.executable).with_name("http-capture")
    return [str(script)] if script.exists() else [sys.executable, "-m", "http_capture.capture"]


def replay(capture: Path, *arguments: str) -> subprocess.Popen[str]:
    """Starts a replay of the capture on the first core, without the settings of whoever runs the tests; its ledger is
    the last line of its standard error."""
    return subprocess.Popen(
        ["taskset", "-c", "0", *command(), "--read", str(capture), "--json", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=capture.parent,
        env={name: value for name, value in os.environ.items() if not name.startswith("HTTP_CAPTURE_")},
    )


@dataclass
class Ended:
    code: int
    ledger: dict[str, Any]
    errors: str


def write(generate: ModuleType, capture: Path, count: int) -> None:
    """Of the last minutes: a broker deletes records by their timestamps, and forgets by them what a producer sent last
    (README.md)."""
    generate.write("mixed", capture, count=count, start_seconds=int(time.time()) - 120)


def ended(process: subprocess.Popen[str], timeout_seconds: float = 120.0) -> Ended:
    try:
        _, errors = process.communicate(timeout=timeout_seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    lines = errors.strip().splitlines()
    assert lines, "no ledger on standard error"
    return Ended(process.returncode, json.loads(lines[-1]), errors)


def to_kafka(broker: Any, topic: str) -> list[str]:
    return ["--sink", "kafka", "--brokers", broker.address, "--topic", topic]


def consume(broker: Any, topic: str) -> Iterator[Message]:
    """Every record of the topic, from the beginning to the end that there is now; in order within a partition."""
    consumer = Consumer(
        {"bootstrap.servers": broker.address, "group.id": "test", "isolation.level": "read_uncommitted"}
    )
    try:
        ends: dict[int, int] = {}
        starts: list[TopicPartition] = []
        for number in consumer.list_topics(topic, timeout=20).topics[topic].partitions:
            low, high = consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=20)
            if low < high:
                ends[number] = high
                starts.append(TopicPartition(topic, number, low))
        consumer.assign(starts)
        deadline = time.monotonic() + 60
        while ends:
            assert time.monotonic() < deadline, f"could not be read to the end: {ends}"
            for message in consumer.consume(1000, timeout=0.2):
                assert message.error() is None
                yield message
                if message.offset() == ends[message.partition()] - 1:
                    del ends[message.partition()]
    finally:
        consumer.close()


def header_ids(broker: Any, topic: str) -> Counter[bytes]:
    return Counter(dict(message.headers())["id"] for message in consume(broker, topic))


def milliseconds(timestamp: str) -> int:
    """Of an RFC 3339 time in UTC with up to nine decimals, cut and not rounded."""
    assert timestamp.endswith("Z")
    whole, _, decimals = timestamp[:-1].partition(".")
    seconds = int(datetime.fromisoformat(whole).replace(tzinfo=UTC).timestamp())
    return seconds * 1000 + int(decimals.ljust(3, "0")[:3])


@dataclass
class Replayed:
    """One capture of 10,000 exchanges, as a file of JSON lines and as the records of a topic."""

    topic: str
    lines: list[dict[str, Any]]
    messages: list[Message]


@pytest.fixture(scope="module")
def replayed(broker: Any, generate: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Replayed:
    folder = tmp_path_factory.mktemp("replayed")
    capture = folder / "mixed.pcap"
    write(generate, capture, 10_000)
    lines = folder / "records.jsonl"
    assert ended(replay(capture, "--sink", f"file:{lines}")).code == 0
    end = ended(replay(capture, *to_kafka(broker, "ten-thousand")))
    assert end.code == 0, end.errors
    assert end.ledger["records"]["delivered"] == 10_000
    capture.unlink()
    return Replayed(
        "ten-thousand",
        [json.loads(line) for line in lines.read_bytes().splitlines()],
        list(consume(broker, "ten-thousand")),
    )


def test_every_record_arrives_once(replayed: Replayed, generate: ModuleType) -> None:
    ids = Counter(json.loads(message.value())["event"]["id"] for message in replayed.messages)
    assert len(ids) == 10_000
    assert max(ids.values()) == 1
    assert ids == Counter(line["event"]["id"] for line in replayed.lines)
    targets = Counter(line["url"]["original"] for line in replayed.lines)
    assert targets == Counter(exchange.target for exchange in generate.exchanges("mixed", count=10_000))


def test_values_are_those_of_the_file(replayed: Replayed) -> None:
    expected = {line["event"]["id"]: line for line in replayed.lines}
    for line in expected.values():
        del line["http_capture"]["instance"]  # another run
    for message in replayed.messages:
        value = json.loads(message.value())
        del value["http_capture"]["instance"]
        assert value == expected[value["event"]["id"]]


def test_headers_and_timestamp_agree_with_the_value(replayed: Replayed) -> None:
    for message in replayed.messages:
        value = json.loads(message.value())
        headers = dict(message.headers())
        assert len(headers) == len(message.headers())
        assert set(headers) == {"id", "instance", "host", "iface", "schema"}
        assert headers["id"].decode() == value["event"]["id"]
        assert headers["instance"].decode() == value["http_capture"]["instance"]
        assert headers["host"].decode() == value["observer"]["hostname"]
        assert headers["schema"].decode() == str(value["http_capture"]["schema"])
        assert message.timestamp() == (TIMESTAMP_CREATE_TIME, milliseconds(value["@timestamp"]))


def test_a_connection_has_one_key_one_partition_and_its_order(replayed: Replayed) -> None:
    keys: dict[bytes, set[tuple[str, int]]] = defaultdict(set)
    partitions: dict[bytes, set[int]] = defaultdict(set)
    order: dict[bytes, list[int]] = defaultdict(list)
    for message in replayed.messages:
        value = json.loads(message.value())
        keys[message.key()].add((value["source"]["ip"], value["source"]["port"]))
        partitions[message.key()].add(message.partition())
        order[message.key()].append(value["http_capture"]["pipeline_index"])
    assert len(keys) == 300
    assert {len(clients) for clients in keys.values()} == {1}
    assert {len(numbers) for numbers in partitions.values()} == {1}
    assert len(set().union(*partitions.values())) > 1
    for indexes in order.values():
        assert indexes == sorted(indexes)


def test_kcat_reads_the_same(broker: Any, replayed: Replayed) -> None:
    if shutil.which("kcat") is None:
        pytest.skip("kcat is not installed")
    out = subprocess.run(
        ["kcat", "-C", "-q", "-b", broker.address, "-t", replayed.topic, "-o", "beginning", "-e", "-J"],
        check=True, capture_output=True, timeout=60,
    ).stdout  # fmt: skip
    seen = Counter()
    for line in out.splitlines():
        record = json.loads(line)
        pairs = record["headers"]
        headers = dict(zip(pairs[::2], pairs[1::2], strict=True))
        value = json.loads(record["payload"])
        assert headers["id"] == value["event"]["id"]
        assert record["ts"] == milliseconds(value["@timestamp"])
        seen[headers["id"], record["key"]] += 1
    ours = Counter((dict(m.headers())["id"].decode(), m.key().decode()) for m in replayed.messages)
    assert seen == ours


@pytest.fixture(scope="module")
def many(generate: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A capture of MANY exchanges of mixed size."""
    capture = tmp_path_factory.mktemp("many") / "mixed.pcap"
    write(generate, capture, MANY)
    yield capture
    capture.unlink()


def test_a_hundred_thousand_records_on_one_core(broker: Any, many: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core for the program and one for the broker are two")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.monotonic()
    end = ended(replay(many, *to_kafka(broker, "rate")))
    seconds = time.monotonic() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert end.code == 0, end.errors
    assert end.ledger["records"]["delivered"] == MANY
    assert broker.records("rate") == MANY
    with capsys.disabled():
        megabytes = many.stat().st_size / 1e6
        print(f"\n{MANY} records ({megabytes:.0f} MB captured) in {seconds:.1f} s, {busy:.1f} s of one core")
    assert seconds < LIMIT_SECONDS


def in_the_middle(broker: Any, topic: str, process: subprocess.Popen[str]) -> None:
    """Waits until some records are in the topic and the replay is still running."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise AssertionError(f"the replay was over before anything could happen to the broker: {ended(process)}")
        if broker.records(topic) > 2000:
            return
        time.sleep(0.02)
    process.kill()
    raise AssertionError("no records in the topic after 60 s")


def frozen(broker: Any) -> None:
    broker.pause()
    time.sleep(6)
    broker.resume()


def killed_and_restarted(broker: Any) -> None:
    broker.kill()
    broker.start()


@pytest.mark.parametrize("happens", [frozen, killed_and_restarted], ids=lambda happens: happens.__name__)
def test_nothing_is_lost_or_doubled(broker: Any, many: Path, happens: Callable[[Any], None]) -> None:
    topic = f"middle-{happens.__name__}"
    with replay(many, *to_kafka(broker, topic)) as process:
        in_the_middle(broker, topic, process)
        happens(broker)
        end = ended(process)
    assert end.code == 0, end.errors
    assert end.ledger["records"]["delivered"] == MANY
    ids = header_ids(broker, topic)
    assert len(ids) == MANY
    assert broker.records(topic) == MANY
    assert max(ids.values()) == 1


def test_the_first_batch_is_refused(broker: Any, refusing: ModuleType) -> None:
    """A broker takes any batch as the first that it hears of from a producer, and librdkafka takes that for the
    delivery of those before. Where the true first one was just refused, the next must not be on its way already."""
    topic = "refused-first"
    admin = AdminClient({"bootstrap.servers": broker.address})
    admin.create_topics([NewTopic(topic, num_partitions=1, replication_factor=1)])[topic].result(20)
    with refusing.RefusesFirst(broker.address, topic) as proxy:
        sink = KafkaSink(KafkaSettings(brokers=(proxy.address,), topic=topic), live=True)
        time.sleep(1)  # for its number: else all records wait for that, and go into one batch
        for number in range(100):
            sink.send(b"key", b"%d" % number, [("id", b"%d" % number)], int(time.time() * 1000))
            sink.poll()
            time.sleep(0.03)
        assert sink.flush(20) == 0
        assert sink.stats().delivered == 100
        sink.close()
    assert proxy.refused == 1
    assert header_ids(broker, topic) == Counter(b"%d" % number for number in range(100))


def test_a_broker_that_does_not_come_back(broker: Any, many: Path) -> None:
    settings = many.with_name("impatient.toml")
    settings.write_text('[kafka]\nflush_timeout_seconds = 15\n[kafka.librdkafka]\n"message.timeout.ms" = 4000\n')
    with replay(many, "--config", str(settings), *to_kafka(broker, "gone")) as process:
        in_the_middle(broker, "gone", process)
        broker.kill()
        try:
            end = ended(process)
        finally:
            broker.start()
    assert end.code == 74, end.errors
    records = end.ledger["records"]
    undelivered = records["undelivered"]
    assert records["delivered"] + sum(undelivered.values()) == MANY
    assert sum(undelivered.values()) > 0
    assert set(undelivered) <= {"timed_out", "broker_down", "closed"}
    said = end.errors.rsplit("\n", 2)[0]
    assert f"{sum(undelivered.values()):,} records were not delivered" in said
    assert "Traceback" not in end.errors
    # What was reported as delivered is there, once. Of what was in flight, some may be there too.
    ids = header_ids(broker, "gone")
    assert max(ids.values()) == 1
    assert records["delivered"] <= len(ids) <= MANY


class Site(http.server.BaseHTTPRequestHandler):
    """Answers with so many bytes of text as the path says."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        body = b"text " * (int(self.path[1:].partition("/")[0]) // 5)
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to capture on the loopback interface")
def test_a_broker_that_is_too_slow_costs_bodies_then_the_newest_and_no_frame(broker: Any, tmp_path: Path) -> None:
    settings = tmp_path / "small.toml"
    settings.write_text('[kafka.librdkafka]\n"queue.buffering.max.kbytes" = 2000\n')
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site)
    port = server.server_address[1]
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    said = tmp_path / "said"
    with said.open("wb") as errors:
        process = subprocess.Popen(
            [*command(), "--iface", "lo", "--filter", f"tcp port {port}", "--pidfile", str(tmp_path / "pid"), "--json",
             "--config", str(settings), *to_kafka(broker, "slow")],
            stdin=subprocess.DEVNULL, stderr=errors, cwd=tmp_path,
            env={name: value for name, value in os.environ.items() if not name.startswith("HTTP_CAPTURE_")},
        )  # fmt: skip

    def get(first: int, last: int, size: int) -> None:
        for number in range(first, last):
            client.request("GET", f"/{size}/{number}")
            assert len(client.getresponse().read()) == size

    def until(text: str) -> None:
        deadline = time.monotonic() + 60
        while text not in said.read_text():
            assert process.poll() is None, said.read_text()
            assert time.monotonic() < deadline, said.read_text()
            time.sleep(0.02)

    try:
        until("recording lo")
        get(0, 50, 20_000)
        broker.pause()
        try:
            get(50, 150, 20_000)  # 2 MB of bodies
            until("bodies are left out of the records")
            get(150, 1500, 20_000)
            until("queue_full")
        finally:
            broker.resume()
        until("records are taken in time again")
        get(1500, 1550, 20_000)
        process.terminate()
        assert process.wait(60) == 74  # some were not delivered
    finally:
        process.kill()
        process.wait()
        client.close()
        server.shutdown()
        server.server_close()
    ledger = json.loads(said.read_text().strip().splitlines()[-1])
    assert ledger["balanced"], ledger["imbalances"]
    frames, records = ledger["frames"], ledger["records"]
    assert frames["dropped_by_kernel"] == frames["unread"] == ledger["segments"]["shed"] == 0
    assert ledger["exchanges"]["complete"] == records["total"] == 1550
    lost = records["undelivered"]["queue_full"]
    assert records["undelivered"] == {"queue_full": lost}
    assert 0 < lost < 1000
    found = {}
    for message in consume(broker, "slow"):
        record = json.loads(message.value() or b"")
        found[int(record["url"]["path"].rpartition("/")[2])] = record
        body = record["http"]["response"]["body"]
        left_out = record["http_capture"].get("bodies_shed", False)
        assert body["bytes"] == 20_000
        assert (body.get("content") is None) == body.get("truncated", False) == left_out
    assert len(found) == records["delivered"] == 1550 - lost
    left_out = [number for number, record in found.items() if record["http_capture"].get("bodies_shed")]
    assert 0 < len(left_out) <= records["bodies_shed"]
    assert not set(left_out) & {*range(50), *range(1500, 1550)}
    assert set(range(50)) | set(range(1500, 1550)) <= set(found)
