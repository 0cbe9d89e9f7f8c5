"""The Kafka sink against librdkafka's mock cluster: exact counts whatever fails, and what an operator is told."""

import ctypes
import logging
import re
import shutil
import socket
import subprocess
import sys
import threading
import time

import pytest
from confluent_kafka import Consumer, KafkaError, TopicPartition
from http_capture.capture.errors import ConfigurationError, NotPermittedError, UnavailableError, UndeliveredError
from http_capture.capture.sink import embedded, kafka, open_sink
from http_capture.config.settings import KafkaSettings, SinkSettings

HEADERS = [("id", b"0af7"), ("instance", b"i1"), ("host", b"h"), ("iface", b"eth0"), ("schema", b"1.0")]
NOBODY = "127.0.0.1:1"  # nothing listens there
QUICK = {"linger.ms": 1}
pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def broker():
    with embedded.EmbeddedBroker() as running:
        yield running.address


class Cluster:
    """A mock cluster with faults to order: the same library, the part that Python does not reach."""

    def __init__(self):
        with open("/proc/self/maps") as maps:
            paths = {line.split()[-1] for line in maps if "librdkafka" in line}
        if not paths:
            pytest.skip("librdkafka is linked in, its mock interface cannot be reached")
        self.lib = lib = ctypes.CDLL(paths.pop())
        pointer = ctypes.c_void_p
        lib.rd_kafka_conf_new.restype = pointer
        lib.rd_kafka_conf_set_log_cb.argtypes = [pointer, pointer]
        lib.rd_kafka_new.restype = lib.rd_kafka_mock_cluster_new.restype = pointer
        lib.rd_kafka_new.argtypes = [ctypes.c_int, pointer, ctypes.c_char_p, ctypes.c_size_t]
        lib.rd_kafka_mock_cluster_new.argtypes = [pointer, ctypes.c_int]
        lib.rd_kafka_mock_cluster_bootstraps.restype = ctypes.c_char_p
        lib.rd_kafka_mock_cluster_bootstraps.argtypes = [pointer]
        lib.rd_kafka_mock_push_request_errors_array.argtypes = [pointer, ctypes.c_int16, ctypes.c_size_t, pointer]
        lib.rd_kafka_mock_topic_set_error.argtypes = [pointer, ctypes.c_char_p, ctypes.c_int]
        lib.rd_kafka_mock_broker_set_down.argtypes = [pointer, ctypes.c_int32]
        lib.rd_kafka_mock_broker_set_up.argtypes = [pointer, ctypes.c_int32]
        lib.rd_kafka_mock_cluster_destroy.argtypes = [pointer]
        lib.rd_kafka_destroy.argtypes = [pointer]
        configuration = lib.rd_kafka_conf_new()
        lib.rd_kafka_conf_set_log_cb(configuration, None)
        self.client = lib.rd_kafka_new(0, configuration, ctypes.create_string_buffer(512), 512)
        self.cluster = lib.rd_kafka_mock_cluster_new(self.client, 1)
        self.address = lib.rd_kafka_mock_cluster_bootstraps(self.cluster).decode()

    def refuse_produce(self, code):
        """The next produce request is answered with this error."""
        self.lib.rd_kafka_mock_push_request_errors_array(self.cluster, 0, 1, (ctypes.c_int * 1)(code))

    def refuse_topic(self, topic, code):
        self.lib.rd_kafka_mock_topic_set_error(self.cluster, topic.encode(), code)

    def down(self):
        self.lib.rd_kafka_mock_broker_set_down(self.cluster, 1)

    def up(self):
        self.lib.rd_kafka_mock_broker_set_up(self.cluster, 1)

    def close(self):
        self.lib.rd_kafka_mock_cluster_destroy(self.cluster)
        self.lib.rd_kafka_destroy(self.client)


@pytest.fixture
def cluster():
    running = Cluster()
    yield running
    running.close()


def opened(address, topic, *, live=False, start=5.0, **librdkafka):
    settings = {key.replace("_", "."): value for key, value in librdkafka.items()}
    return kafka.KafkaSink(
        KafkaSettings(brokers=(address,), topic=topic, start_timeout_seconds=start, librdkafka={**QUICK, **settings}),
        live=live,
    )


def send(sink, number=0, size=10):
    sink.send(b"k%d" % number, b"%010d" % number + b"x" * (size - 10), HEADERS, 1_700_000_000_000 + number)


def balanced(sink):
    stats = sink.stats()
    assert stats.records == stats.delivered + stats.pending + sum(stats.undelivered.values())
    assert min(stats.delivered, stats.pending, *stats.undelivered.values(), 0) == 0
    return stats


def polled(sink, seconds):
    """Polls for so long, or until nothing is pending."""
    until = time.monotonic() + seconds
    while balanced(sink).pending and time.monotonic() < until:
        sink.poll()
        time.sleep(0.01)


def consumed(address, topic):
    """All values in the topic."""
    consumer = Consumer({"bootstrap.servers": address, "group.id": "test"}, logger=logging.getLogger("test"))
    try:
        partitions = [TopicPartition(topic, p) for p in consumer.list_topics(topic, timeout=5).topics[topic].partitions]
        wanted = 0
        for partition in partitions:
            low, high = consumer.get_watermark_offsets(partition, timeout=5)
            partition.offset = low
            wanted += high - low
        consumer.assign(partitions)
        values = []
        until = time.monotonic() + 10
        while len(values) < wanted and time.monotonic() < until:
            values += [message.value() for message in consumer.consume(10000, 0.2) if message.error() is None]
        return values
    finally:
        consumer.close()


# --- the way of a record

READER = """
import sys
from confluent_kafka import Consumer, TopicPartition
consumer = Consumer({"bootstrap.servers": sys.argv[1], "group.id": "g"})
consumer.assign([TopicPartition("intact", partition, 0) for partition in range(4)])
found = []
for _ in range(100):
    found += [message for message in consumer.consume(10, 0.1) if message.error() is None]
    if len(found) == 3:
        break
for message in sorted(found, key=lambda message: message.timestamp()):
    print((message.key(), message.value(), message.headers(), message.timestamp()))
consumer.close()
"""


def test_another_process_reads_the_records_as_they_were_sent(broker):
    sink = opened(broker, "intact")
    values = [b"{}", "ü\n".encode(), bytes(range(256))]
    for number, value in enumerate(values):
        sink.send(b"key\0%d" % number, value, HEADERS, 1_700_000_000_000 + number)
    assert sink.flush(10) == 0
    sink.close()
    run = subprocess.run([sys.executable, "-c", READER, broker], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == [
        repr((b"key\0%d" % number, value, HEADERS, (1, 1_700_000_000_000 + number)))
        for number, value in enumerate(values)
    ]


@pytest.mark.skipif(not shutil.which("kcat"), reason="kcat is not installed")
def test_kcat_reads_the_records(broker):
    sink = opened(broker, "kcat")
    send(sink, 7)
    assert sink.flush(10) == 0
    sink.close()
    run = subprocess.run(
        ["kcat", "-C", "-q", "-e", "-b", broker, "-t", "kcat", "-o", "beginning", "-f", "%k|%s|%h|%T\n"],
        capture_output=True, text=True, check=True, timeout=20,
    )  # fmt: skip
    assert run.stdout == "k7|0000000007|id=0af7,instance=i1,host=h,iface=eth0,schema=1.0|1700000000007\n"


def test_every_record_is_in_the_topic_once_and_counted(broker):
    sink = opened(broker, "count", linger_ms=20)
    for number in range(20000):
        send(sink, number, 200)
        if not number % 256:
            sink.poll()
            balanced(sink)
    assert sink.flush(20) == 0
    stats = balanced(sink)
    assert (stats.records, stats.bytes, stats.delivered, stats.pending) == (20000, 4_000_000, 20000, 0)
    sink.close()
    assert sink.stats() == stats
    values = consumed(broker, "count")
    assert sorted(values) == [b"%010d" % number + b"x" * 190 for number in range(20000)]


def test_same_key_same_partition_in_order(broker):
    sink = opened(broker, "order")
    for number in range(2000):
        sink.send(b"k%d" % (number % 50), b"%d" % number, HEADERS, 1)
    assert sink.flush(10) == 0
    sink.close()
    consumer = Consumer({"bootstrap.servers": broker, "group.id": "g"}, logger=logging.getLogger("test"))
    consumer.assign([TopicPartition("order", partition, 0) for partition in range(4)])
    last, partitions, seen = {}, {}, 0
    while seen < 2000:
        for message in consumer.consume(2000, 5):
            assert last.get(message.key(), -1) < int(message.value())
            assert partitions.setdefault(message.key(), message.partition()) == message.partition()
            last[message.key()] = int(message.value())
            seen += 1
    assert len(set(partitions.values())) == 4
    consumer.close()


def test_the_time_zero_is_not_taken_for_now(broker):
    sink = opened(broker, "zero")
    sink.send(b"", b"v", [], 0)
    assert sink.flush(10) == 0
    sink.close()
    consumer = Consumer({"bootstrap.servers": broker, "group.id": "g"}, logger=logging.getLogger("test"))
    consumer.assign([TopicPartition("zero", partition, 0) for partition in range(4)])
    assert consumer.poll(5).timestamp() == (1, 1)
    consumer.close()


def test_open_sink_opens_kafka_where_brokers_are_set(broker):
    sink = open_sink(SinkSettings(), KafkaSettings(brokers=(broker,)), live=True)
    assert isinstance(sink, kafka.KafkaSink)
    assert not sink.waits
    sink.close()


# --- a full queue

FULL = {"queue_buffering_max_messages": 100, "message_timeout_ms": 60000}


@pytest.mark.alone
def test_a_nic_never_waits_for_a_full_queue(cluster, caplog):
    sink = opened(cluster.address, "full", live=True, **FULL)
    cluster.down()
    began = time.monotonic()
    for number in range(5000):
        send(sink, number)
    assert time.monotonic() - began < 1
    stats = balanced(sink)
    assert (stats.pending, stats.undelivered) == (100, {"queue_full": 4900})
    assert caplog.text.count("queue_full") == 1
    cluster.up()
    assert sink.flush(20) == 4900
    assert balanced(sink).delivered == 100
    sink.close()
    assert sorted(consumed(cluster.address, "full")) == [b"%010d" % number for number in range(100)]


@pytest.mark.parametrize(
    ("bound", "part"),
    [
        ({"queue_buffering_max_messages": 100}, 0.5),
        ({"queue_buffering_max_kbytes": 100}, 0.49),  # 50 times 1,000 bytes
        ({"queue_buffering_max_messages": 0, "queue_buffering_max_kbytes": 1000}, 0.049),  # 0: no bound
    ],
)
def test_how_full_the_queue_is(cluster, bound, part):
    sink = opened(cluster.address, "filled", live=True, **bound)
    cluster.down()
    assert sink.filled() == 0
    for number in range(50):
        send(sink, number, size=1000)
    assert sink.filled() == pytest.approx(part, rel=0.01)
    cluster.up()
    polled(sink, 20)
    assert balanced(sink).delivered == 50
    assert sink.filled() == 0
    sink.close()


def test_a_replay_waits_until_there_is_room(cluster):
    sink = opened(cluster.address, "wait", **FULL)
    cluster.down()
    threading.Timer(0.7, cluster.up).start()
    began = time.monotonic()
    for number in range(1000):
        send(sink, number)
        assert balanced(sink).pending <= 100
    assert time.monotonic() - began > 0.5
    assert sink.flush(20) == 0
    assert balanced(sink).delivered == 1000
    sink.close()
    assert sorted(consumed(cluster.address, "wait")) == [b"%010d" % number for number in range(1000)]


@pytest.mark.alone
def test_a_replay_asked_to_stop_waits_no_longer(cluster):
    sink = opened(cluster.address, "stop", **FULL)
    cluster.down()
    threading.Timer(0.5, setattr, (sink, "waits", False)).start()
    began = time.monotonic()
    for number in range(1000):
        send(sink, number)
    assert 0.3 < time.monotonic() - began < 3
    assert balanced(sink).undelivered == {"queue_full": 900}
    sink.close()
    assert balanced(sink).undelivered == {"queue_full": 900, "closed": 100}


@pytest.mark.parametrize("live", [False, True])
def test_a_record_larger_than_the_whole_queue_does_not_hang(broker, live):
    sink = opened(broker, "huge", live=live, queue_buffering_max_kbytes=100, message_max_bytes=1_000_000)
    send(sink, 0, 200_000)
    assert balanced(sink).undelivered == {"too_large": 1}
    send(sink, 1)
    assert sink.flush(10) == 1
    assert balanced(sink).delivered == 1
    sink.close()


# --- records that are not delivered


def test_a_record_too_large_is_counted_and_the_others_go_on(broker):
    sink = opened(broker, "large")
    for number, size in enumerate((10, 2_000_000, 10)):
        send(sink, number, size)
    assert sink.flush(10) == 1
    stats = balanced(sink)
    assert (stats.delivered, stats.undelivered) == (2, {"too_large": 1})
    sink.close()


def test_records_time_out_when_the_broker_has_gone():
    with embedded.EmbeddedBroker() as running:
        sink = opened(
            running.address, "gone", message_timeout_ms=3000
        )  # the first one waits for a number, a second at times
        send(sink, 0)
        assert sink.flush(10) == 0
    for number in range(1, 101):
        send(sink, number)
        sink.poll()
        balanced(sink)
    began = time.monotonic()
    polled(sink, 10)
    assert 0.5 < time.monotonic() - began < 8
    stats = balanced(sink)
    assert (stats.delivered, stats.undelivered) == (1, {"timed_out": 100})
    sink.close()


def test_a_broker_that_comes_back_gets_everything_once(cluster):
    sink = opened(cluster.address, "back", reconnect_backoff_ms=50, reconnect_backoff_max_ms=100)
    for number in range(4000):
        send(sink, number)
        if number in (1000, 3000):
            cluster.down()
        if number == 2000:
            cluster.up()
        if not number % 100:
            sink.poll()
            balanced(sink)
            time.sleep(0.005)
    cluster.up()
    assert sink.flush(20) == 0
    assert balanced(sink).delivered == 4000
    sink.close()
    assert sorted(consumed(cluster.address, "back")) == [b"%010d" % number for number in range(4000)]


@pytest.mark.alone
def test_flush_keeps_its_limit_and_close_counts_what_is_left(cluster):
    sink = opened(cluster.address, "limit")
    for number in range(10):
        send(sink, number)
    assert sink.flush(10) == 0
    cluster.down()
    for number in range(50):
        send(sink, number)
    began = time.monotonic()
    assert sink.flush(0.5) == 50
    assert sink.flush(0) == 50
    assert time.monotonic() - began < 1.5
    assert balanced(sink).pending == 50
    sink.close()
    assert time.monotonic() - began < 4
    stats = balanced(sink)
    assert (stats.delivered, stats.pending, stats.undelivered) == (10, 0, {"closed": 50})
    sink.close()
    assert sink.stats() == stats


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (KafkaError.MSG_SIZE_TOO_LARGE, "too_large"),
        (KafkaError.TOPIC_AUTHORIZATION_FAILED, "auth"),
        (KafkaError.CLUSTER_AUTHORIZATION_FAILED, "auth"),
        (KafkaError.TOPIC_EXCEPTION, "unknown_topic"),
        (KafkaError.INVALID_PRODUCER_EPOCH, "fenced"),
        (KafkaError.INVALID_TIMESTAMP, "other"),
    ],
)
def test_what_the_broker_refuses_is_counted_by_reason(cluster, caplog, code, reason):
    sink = opened(cluster.address, "refused")
    cluster.refuse_produce(code)
    for _ in range(5):
        sink.send(b"one key", b"v", HEADERS, 1)
    assert sink.flush(10) == 5
    assert balanced(sink).undelivered == {reason: 5}
    assert caplog.text.count("records are not delivered") == 1
    sink.close()


def test_a_fatal_error_is_raised_by_poll_and_every_record_counted(cluster):
    sink = opened(cluster.address, "fatal")
    cluster.refuse_produce(KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER)
    for _ in range(5):
        sink.send(b"one key", b"v", HEADERS, 1)
    assert sink.flush(10) == 5
    with pytest.raises(UndeliveredError, match="takes no more records from this producer"):
        sink.poll()
    send(sink)
    assert sink.flush(1) == 6
    assert balanced(sink).undelivered == {"other": 6}
    sink.close()
    assert balanced(sink).undelivered == {"other": 6}


def test_being_fenced_ends_with_76(broker):
    sink = opened(broker, "fenced")
    sink._broken(kafka.KafkaException(KafkaError(KafkaError._FENCED, "a newer producer has this id", True)))
    with pytest.raises(kafka.ProducerFencedError) as caught:
        sink.poll()
    assert caught.value.exit_code == 76
    sink.close()


def test_a_fatal_error_left_pending_loses_no_report(broker):
    """confluent_kafka may call on_delivery with an exception set: the first call in there raises SystemError."""

    class Pending:
        raised = False

        def code(self):
            if not self.raised:
                self.raised = True
                raise SystemError("returned a result with an exception set") from kafka.KafkaException(
                    KafkaError(KafkaError.CLUSTER_AUTHORIZATION_FAILED, "no", True)
                )
            return KafkaError._FATAL

        def str(self):
            return "fatal"

    sink = opened(broker, "pending")
    sink._records += 1
    sink._on_delivery(Pending(), b"the value")
    assert balanced(sink).undelivered == {"auth": 1}
    with pytest.raises(UndeliveredError, match=r"\(no\)"):
        sink.poll()
    sink.close()


# --- the start


def failure(kind, address, topic="start", **settings):
    with pytest.raises(kind) as caught:
        opened(address, topic, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.alone
def test_no_broker(capfd):
    began = time.monotonic()
    text = failure(UnavailableError, NOBODY, start=1.0)
    assert 0.9 < time.monotonic() - began < 3
    assert text.startswith(f"no Kafka broker answered at {NOBODY} within 1 s (")
    assert "Connection refused" in text
    assert text.endswith("check --brokers, the network, the listener")
    assert capfd.readouterr() == ("", "")


def test_a_host_that_accepts_and_says_nothing():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        text = failure(UnavailableError, f"127.0.0.1:{silent.getsockname()[1]}", start=1.0)
    assert text.startswith("no Kafka broker answered at")


def test_one_broker_of_two_is_enough(broker):
    sink = kafka.KafkaSink(KafkaSettings(brokers=(NOBODY, broker)), live=True)
    sink.close()


def test_a_broker_that_comes_within_the_time(cluster):
    cluster.down()
    threading.Timer(0.5, cluster.up).start()
    opened(cluster.address, "late", start=10.0).close()


def test_a_topic_that_nobody_creates(broker, monkeypatch):
    monkeypatch.setattr(kafka, "CREATION_SECONDS", 0.5)
    text = failure(UnavailableError, broker, "absent", allow_auto_create_topics=False)
    assert text.startswith(f"topic 'absent' is not usable on Kafka at {broker} (")
    assert f"kafka-topics.sh --bootstrap-server {broker} --create --topic absent" in text


def test_a_topic_that_is_created_while_it_is_asked_for(cluster):
    cluster.refuse_topic("slow", KafkaError.UNKNOWN_TOPIC_OR_PART)
    threading.Timer(0.5, cluster.refuse_topic, ("slow", KafkaError.NO_ERROR)).start()
    opened(cluster.address, "slow").close()


def test_a_topic_that_may_not_be_written(cluster):
    cluster.refuse_topic("private", KafkaError.TOPIC_AUTHORIZATION_FAILED)
    text = failure(NotPermittedError, cluster.address, "private")
    assert "does not let this client write to topic 'private'" in text


@pytest.mark.alone
@pytest.mark.parametrize(
    "settings",
    [
        {"security_protocol": "ssl"},
        {
            "security_protocol": "sasl_plaintext",
            "sasl_mechanism": "PLAIN",
            "sasl_username": "u",
            "sasl_password": "hunter2",
        },
    ],
)
def test_a_broker_that_refuses_the_client_says_so_before_the_limit(broker, capfd, settings):
    began = time.monotonic()
    text = failure(NotPermittedError, broker, start=10.0, **settings)
    assert time.monotonic() - began < 4
    assert "refused this client (" in text
    assert "security.protocol, sasl.* and ssl.* in [kafka.librdkafka]" in text
    assert "hunter2" not in text
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"no_such": 1}, 'No such configuration property: "no.such"'),
        ({"batch_size": "many"}, 'Invalid value for configuration property "batch.size"'),
        ({"linger_ms": 10**9}, "outside allowed range"),
        ({"acks": 1}, "`acks` must be set to `all` when `enable.idempotence` is true"),
        ({"ssl_ca_location": "/nonexistent", "security_protocol": "ssl"}, "ssl.ca.location failed"),
        ({"error_cb": "x"}, "error.cb"),
        ({"transactional_id": "x"}, "transactional.id cannot be set here: transactions are not supported"),
        ({"bootstrap_servers": "x"}, "bootstrap.servers cannot be set here: use [kafka] brokers"),
    ],
)
def test_a_librdkafka_setting_that_is_wrong(settings, says):
    text = failure(ConfigurationError, NOBODY, **settings)
    assert text.startswith("[kafka.librdkafka] ")
    assert says in text


@pytest.mark.parametrize(
    "address", ["", "a b", "a:0", "a:65536", "a:b", "a:99999999", ":9092", "http://a:1/x", "::1:9092"]
)
def test_an_address_that_librdkafka_would_misread(address):
    assert "is not HOST:PORT" in failure(ConfigurationError, address)


@pytest.mark.parametrize("address", ["a", "a:1", "a.b-c:65535", "10.0.0.1:9092", "[::1]:9092", "SASL_SSL://a:1"])
def test_an_address_that_is_one(address):
    settings = kafka.librdkafka_settings(KafkaSettings(brokers=(address, "b:2")))
    assert settings["bootstrap.servers"] == f"{address},b:2"


@pytest.mark.parametrize("topic", ["a b", "a/b", "ä", ".", "..", "a\n"])
def test_a_topic_name_that_kafka_refuses(topic):
    assert "[kafka] topic" in failure(ConfigurationError, NOBODY, topic)


def test_the_table_lies_over_our_own():
    ours = kafka.librdkafka_settings(KafkaSettings(brokers=("a:1",)))
    assert ours["enable.idempotence"] == "true"
    assert ours["acks"] == "all"
    given = {"enable.idempotence": False, "acks": 1, "linger.ms": 2.5}
    theirs = kafka.librdkafka_settings(KafkaSettings(brokers=("a:1",), librdkafka=given))
    assert (theirs["enable.idempotence"], theirs["acks"], theirs["linger.ms"]) == ("false", "1", "2.5")


def test_our_settings_stand_in_the_sample_file():
    from pathlib import Path

    import http_capture.config as config

    text = (Path(config.__file__).parent / "http-capture.toml").read_text()
    for key, value in kafka.OURS.items():
        assert re.search(rf"\b{re.escape(key)}\s*=\s*{value}\b", text), key


def test_nothing_of_librdkafka_reaches_standard_error(cluster, capfd, caplog):
    sink = opened(cluster.address, "quiet", reconnect_backoff_ms=10, reconnect_backoff_max_ms=20)
    cluster.down()
    send(sink)
    polled(sink, 0.5)
    sink.close()
    assert capfd.readouterr() == ("", "")
    assert "http_capture.kafka" in {record.name for record in caplog.records}
    assert not any("[thrd:" in record.getMessage() for record in caplog.records)
    assert len(caplog.records) < 10


# --- the embedded broker


def test_the_embedded_broker_is_gone_after_its_block():
    with embedded.EmbeddedBroker() as running:
        address = running.address
        host, port = address.split(":")
        socket.create_connection((host, int(port)), 5).close()
    with pytest.raises(OSError):
        socket.create_connection((host, int(port)), 5)


def test_the_embedded_broker_keeps_5_mib_of_a_partition(broker):
    sink = opened(broker, "kept", compression_type="none", partitioner="consistent")
    for _ in range(700):
        sink.send(b"one key", b"x" * 10000, [], 1)
    assert sink.flush(20) == 0
    sink.close()
    kept = len(consumed(broker, "kept"))
    assert 300 < kept < 5 * (1 << 20) // 10000
