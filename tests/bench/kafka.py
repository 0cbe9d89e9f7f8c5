"""Records a second into a real Apache Kafka broker: http-capture on one core, the broker on another.

    make bench-kafka  [ARGS="--copies 8"]

http-capture replays the short connections, again and again with other addresses, into the broker. Beside it, as
controls on the same core, a loop that does nothing but give the same records (key, value, headers, timestamp; read back
from the topic) to a producer with the same settings: with a delivery report for each record, as http-capture has;
without; and without, with values cut to 700 bytes. What http-capture cannot do because the client or the broker cannot,
shows there, and the CPU of both cores shows which of the two it is. Needs Java, and the jars of `make kafka-jars`.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import generate
import measure
from measure import Capture, fail, median

sys.path.insert(0, str(measure.ROOT / "tests" / "kafka"))
import broker as real

LIMIT_SECONDS = 120.0
CONTROLS = {
    "reports": "a loop with delivery reports",
    "bare": "a loop without",
    "small": "a loop without, values of 700 bytes",
}
SMALL_BYTES = 700
FULL = 0.85  # of a core: more than that, and the broker is taken to be what limits


@dataclass(frozen=True)
class Rate:
    title: str
    records: int
    seconds: float
    cpu: float  # of its own core
    broker_cpu: float

    def __str__(self) -> str:
        return (
            f"  {self.title:<36} {self.records:>9,} records {self.seconds:>7.2f} s"
            f" {self.records / self.seconds:>9,.0f}/s   own core {self.cpu:>4.0%}, broker {self.broker_cpu:>4.0%}"
        )


def main() -> None:
    if sys.argv[1:2] == ["--control"]:  # the control's own process
        control(sys.argv[2], sys.argv[3], Path(sys.argv[4]), int(sys.argv[5]), sys.argv[6])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=generate.FRAMES, help="size of the capture that is copied")
    parser.add_argument("--copies", type=int, default=4, help="of the capture, one run (4)")
    parser.add_argument("--runs", type=int, default=3, help="of each, in turns (3)")
    parser.add_argument(
        "--core", type=int, default=measure.default_core(), help="of http-capture; the broker has another"
    )
    options = parser.parse_args()
    measure.ends_by_exception()
    measure.need("taskset", "java")
    if why := real.missing():
        fail(why)
    print(measure.version())
    print(f"{measure.machine()}; http-capture on core {options.core}")
    other = measure.keep_off(options.core)
    one = measure.capture("short", options.frames)
    capture = measure.repeated(one, options.copies)
    with real.RealBroker(partitions=4, cpu=other) as kafka:
        records = measure.FOLDER / "kafka-records"
        try:
            _measure(kafka, one, capture, records, options)
        finally:
            records.unlink(missing_ok=True)


def _measure(kafka: real.RealBroker, one: Capture, capture: Capture, path: Path, options: argparse.Namespace) -> None:
    core = options.core
    topic = _topic(kafka, "warm")
    ours(kafka, one, topic, core, 0.0)  # the broker's code is compiled by its machine while it runs
    values, keys = _read_back(kafka, topic, one.exchanges, path)
    print(
        f"{capture.exchanges:,} records of {values:,.0f} bytes, key of {keys:,.0f}; broker on another core", flush=True
    )
    start = min(_start(kafka, topic, core) for _ in range(3))
    print(f"start and end of http-capture: {start:.2f} s, taken off")
    rates: dict[str, list[Rate]] = {}
    for number in range(options.runs):
        turn = [ours(kafka, capture, _topic(kafka, f"ours{number}"), core, start)]
        for kind in CONTROLS:
            turn.append(_control(kafka, _topic(kafka, f"{kind}{number}"), path, core, options.copies, kind))
        for rate in turn:
            print(rate, flush=True)
            rates.setdefault(rate.title, []).append(rate)
    print("medians:")
    per_second = {}
    for title, found in rates.items():
        per_second[title] = median(rate.records / rate.seconds for rate in found)
        cpu, brokers = (median(getattr(rate, name) for rate in found) for name in ("cpu", "broker_cpu"))
        limit = ": the broker is the limit" if brokers > FULL else ": the producing core is" if cpu > FULL else ""
        print(
            f"  {title:<36} {per_second[title]:>9,.0f} records/s   own core {cpu:>4.0%}, broker {brokers:>4.0%}{limit}"
        )
    own, reports, bare, _ = per_second.values()
    print(f"  http-capture has {own / reports:.0%} of the loop with delivery reports, {own / bare:.0%} of that without")


def ours(kafka: real.RealBroker, capture: Capture, topic: str, core: int, start: float) -> Rate:
    """http-capture replays into the topic; all records must be delivered, and be there."""
    before = measure.cpu_seconds(kafka.pid)
    result = measure.run(_command(kafka, capture.path, topic), core, limit_seconds=LIMIT_SECONDS)
    used = measure.cpu_seconds(kafka.pid) - before
    if result.timed_out:
        fail(f"http-capture was not done in {LIMIT_SECONDS:.0f} s")
    measure.check_ledger(result, capture.frames, capture.exchanges)
    _check_topic(kafka, topic, capture.exchanges)
    return Rate(
        "http-capture", capture.exchanges, result.seconds - start, result.cpu_seconds / result.seconds,
        used / result.seconds,
    )  # fmt: skip


def _command(kafka: real.RealBroker, path: Path, topic: str) -> list[str]:
    return [
        str(measure.PROGRAM), "--read", str(path), "--brokers", kafka.address, "--topic", topic, "--json",
        "--set", f"kafka.flush_timeout_seconds={LIMIT_SECONDS}",
    ]  # fmt: skip


def _start(kafka: real.RealBroker, topic: str, core: int) -> float:
    return measure.run(_command(kafka, measure.empty(), topic), core).seconds


def _topic(kafka: real.RealBroker, name: str) -> str:
    """A new topic that keeps records of any age: those of a capture are old."""
    from confluent_kafka.admin import AdminClient, NewTopic

    topic = NewTopic(name, num_partitions=4, replication_factor=1, config={"retention.ms": "-1"})
    admin = AdminClient({"bootstrap.servers": kafka.address, "log_level": 3})
    admin.create_topics([topic])[name].result(30)
    return name


def _check_topic(kafka: real.RealBroker, topic: str, records: int) -> None:
    """All are there; then the topic is deleted, as it has a gigabyte."""
    from confluent_kafka.admin import AdminClient

    if (found := kafka.records(topic)) != records:
        fail(f"{found:,} records in the topic, must be {records:,}")
    if topic != "warm":
        admin = AdminClient({"bootstrap.servers": kafka.address, "log_level": 3})
        admin.delete_topics([topic])[topic].result(30)


def _read_back(kafka: real.RealBroker, topic: str, count: int, path: Path) -> tuple[float, float]:
    """Writes the records of the topic into a file for the controls. Returns the mean sizes of values and keys."""
    from confluent_kafka import Consumer

    consumer = Consumer(
        {"bootstrap.servers": kafka.address, "group.id": "bench", "auto.offset.reset": "earliest"}, logger=None
    )
    consumer.subscribe([topic])
    values = keys = found = 0
    deadline = time.monotonic() + LIMIT_SECONDS
    with path.open("w") as out:
        while found < count and time.monotonic() < deadline:
            for message in consumer.consume(10_000, 1.0):
                value, key = message.value(), message.key()
                headers = [[name, content.decode()] for name, content in message.headers()]
                out.write(json.dumps([key.decode(), value.decode(), headers, message.timestamp()[1]]) + "\n")
                values += len(value)
                keys += len(key)
                found += 1
    consumer.close()
    if found != count:
        fail(f"{found:,} of {count:,} records could be read back")
    return values / count, keys / count


def _control(kafka: real.RealBroker, topic: str, path: Path, core: int, copies: int, kind: str) -> Rate:
    before = measure.cpu_seconds(kafka.pid)
    command = [sys.executable, __file__, "--control", kafka.address, topic, str(path), str(copies), kind]
    done = subprocess.run(
        measure.pinned(core, command),
        capture_output=True, text=True, check=False, env=measure.environment(),
    )  # fmt: skip
    used = measure.cpu_seconds(kafka.pid) - before
    if done.returncode:
        fail(f"the control: exit code {done.returncode}\n{done.stderr[-2000:]}")
    count, seconds, cpu = json.loads(done.stdout)
    _check_topic(kafka, topic, count)
    return Rate(CONTROLS[kind], count, seconds, cpu / seconds, used / seconds)


def control(address: str, topic: str, path: Path, copies: int, kind: str) -> None:
    """Produces the records of the file, again and again. Prints how many, in how many seconds, of CPU too; reading the
    file and connecting are not in them."""
    from confluent_kafka import Producer
    from http_capture.capture.sink.kafka import OURS

    with path.open() as lines:
        rows = [json.loads(line) for line in lines]
    records = [
        (
            key.encode(),
            value.encode()[: SMALL_BYTES if kind == "small" else None],
            [(name, content.encode()) for name, content in headers],
            timestamp,
        )
        for key, value, headers, timestamp in rows
    ]
    del rows
    reports = kind == "reports"
    delivered = 0

    def on_delivery(error: object, message: object) -> None:
        nonlocal delivered
        if error is None:
            delivered += 1

    settings = {**OURS, "bootstrap.servers": address}
    producer = Producer({**settings, "on_delivery": on_delivery} if reports else settings)
    producer.list_topics(topic, timeout=10)
    gc.disable()
    gc.freeze()
    produce, poll = producer.produce, producer.poll
    begin, cpu = time.perf_counter(), time.process_time()
    for _ in range(copies):
        for number, (key, value, headers, timestamp) in enumerate(records):
            try:
                produce(topic, value, key, timestamp=timestamp, headers=headers)
            except BufferError:
                while True:
                    poll(0.1)
                    try:
                        produce(topic, value, key, timestamp=timestamp, headers=headers)
                        break
                    except BufferError:
                        continue
            if not number % 1000:
                poll(0)
    left = producer.flush(LIMIT_SECONDS)
    seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
    count = len(records) * copies
    if left or (reports and delivered != count):
        sys.exit(f"{left} records left, {delivered} of {count} delivered")
    print(json.dumps([count, seconds, cpu]))
    sys.stdout.flush()
    os._exit(0)  # taking the records apart again takes seconds


if __name__ == "__main__":
    main()
