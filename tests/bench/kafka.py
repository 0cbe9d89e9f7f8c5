"""Records a second into a real Apache Kafka broker: http-capture on one core, the broker on another.

    make bench-kafka  [ARGS="--copies 8"]

http-capture replays the short connections, again and again with other addresses, into the broker; once more with
`--bodies none`, whose records are smaller; and without Kafka (`--sink null`): what capturing and writing records takes.
Beside it, as controls on the same core, loops that do nothing but give the same records (key, value, headers,
timestamp; read back from the topic) to a producer with the same settings: through confluent_kafka with a delivery
report for each record, as http-capture has; without; without, with values cut to 700 bytes; and through librdkafka's
own C interface, with reports that are only counted: what no client of librdkafka can be faster than.

What http-capture cannot do because the client or the broker cannot, shows there. The time that a record takes on the
core is CPU time, which other load on the machine lengthens less than the time on the clock; its threads' shares say
where it goes. Needs Java, and the jars of `make kafka-jars`.
"""

import argparse
import ctypes
import gc
import json
import os
import struct
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
    "library": "a loop of librdkafka's C interface",
    "library-small": "the same, values of 700 bytes",
}
PROGRAM, NONE, NULL = "http-capture", "http-capture --bodies none", "http-capture --sink null"
SMALL_BYTES = 700
POLL_RECORDS = 500  # about as many as http-capture has in a block
FULL = 0.85  # of a core: more than that, and the broker is taken to be what limits


@dataclass(frozen=True)
class Rate:
    title: str
    records: int
    seconds: float
    cpu: float  # of its own core
    broker_cpu: float
    us: float  # of CPU a record
    threads: tuple[float, float, float] = (0, 0, 0)  # of us: the main thread, the others, the kernel for all of them

    def __str__(self) -> str:
        return (
            f"  {self.title:<36} {self.records:>9,} records {self.seconds:>7.2f} s"
            f" {self.records / self.seconds:>9,.0f}/s {self.us:>6.2f} us"
            f"   own core {self.cpu:>4.0%}, broker {self.broker_cpu:>4.0%}"
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
    ours(kafka, one, PROGRAM, topic, core, None)  # the broker's code is compiled by its machine while it runs
    values, keys = _read_back(kafka, topic, one.exchanges, path)
    print(
        f"{capture.exchanges:,} records of {values:,.0f} bytes, key of {keys:,.0f}; broker on another core", flush=True
    )
    starts = {
        title: min((_run(kafka, measure.empty(), title, topic, core) for _ in range(3)), key=lambda run: run.seconds)
        for title in (PROGRAM, NONE, NULL)
    }
    print(
        f"start and end of http-capture: {starts[PROGRAM].seconds:.2f} s, {starts[PROGRAM].cpu_seconds:.2f} s of CPU;"
        f" with --sink null {starts[NULL].seconds:.2f} s, {starts[NULL].cpu_seconds:.2f} s: taken off"
    )
    rates: dict[str, list[Rate]] = {}

    def note(rate: Rate) -> None:
        print(rate, flush=True)
        rates.setdefault(rate.title, []).append(rate)

    for number in range(options.runs):
        for place, (title, start) in enumerate(starts.items()):
            note(ours(kafka, capture, title, _topic(kafka, f"ours{place}-{number}"), core, start))
        for kind in CONTROLS:
            note(_control(kafka, _topic(kafka, f"{kind}{number}"), path, core, options.copies, kind))
    print("medians:")
    for title, found in rates.items():
        cpu, brokers = (median(getattr(rate, name) for rate in found) for name in ("cpu", "broker_cpu"))
        limit = ": the broker is the limit" if brokers > FULL else ": the producing core is" if cpu > FULL else ""
        print(
            f"  {title:<36} {median(rate.records / rate.seconds for rate in found):>9,.0f} records/s"
            f" {median(rate.us for rate in found):>6.2f} us   own core {cpu:>4.0%}, broker {brokers:>4.0%}{limit}"
        )
    _conclude({title: median(rate.us for rate in found) for title, found in rates.items()}, rates)


def _conclude(us: dict[str, float], rates: dict[str, list[Rate]]) -> None:
    """Where the time of a record goes, and what one core could do at best."""
    main, others, kernel = (median(rate.threads[part] for rate in rates[PROGRAM]) for part in range(3))
    capture = median(rate.threads[0] for rate in rates[NULL])
    print(
        f"of {us[PROGRAM]:.1f} us a record: capture and record {capture:.1f} (as without Kafka), the client on the same"
        f" thread {main - capture:.1f}, librdkafka's threads {others:.1f}, the kernel {kernel:.1f}"
    )
    for text, client in (
        ("confluent_kafka", CONTROLS["reports"]),
        ("librdkafka alone", CONTROLS["library"]),
        ("librdkafka alone, 700 bytes", CONTROLS["library-small"]),
    ):
        both = us[NULL] + us[client]
        print(
            f"  capture and record {us[NULL]:.1f} us, then {text} {us[client]:.1f} us: one core can do"
            f" {1e6 / both:,.0f} records/s; http-capture takes {us[PROGRAM] / both:.0%} of that time"
        )


def ours(
    kafka: real.RealBroker, capture: Capture, title: str, topic: str, core: int, start: measure.Run | None
) -> Rate:
    """http-capture replays into the topic; all records must be delivered, and be there. What a start takes is taken
    off: of the threads' shares, all of it off the main thread's."""
    before = measure.cpu_seconds(kafka.pid)
    result = _run(kafka, capture.path, title, topic, core)
    used = measure.cpu_seconds(kafka.pid) - before
    if result.timed_out:
        fail(f"http-capture was not done in {LIMIT_SECONDS:.0f} s")
    measure.check_ledger(result, capture.frames, capture.exchanges)
    _check_topic(kafka, topic, 0 if title == NULL else capture.exchanges)
    main, *others = result.threads
    unit = 1e6 / capture.exchanges
    start_seconds, start_cpu = (start.seconds, start.cpu_seconds) if start is not None else (0.0, 0.0)
    return Rate(
        title, capture.exchanges, result.seconds - start_seconds, result.cpu_seconds / result.seconds,
        used / result.seconds, (result.cpu_seconds - start_cpu) * unit,
        (
            (main[1] - start_cpu) * unit,
            sum(user for _, user, _ in others) * unit,
            sum(system for _, _, system in result.threads) * unit,
        ),
    )  # fmt: skip


def _run(kafka: real.RealBroker, path: Path, title: str, topic: str, core: int) -> measure.Run:
    command = [str(measure.PROGRAM), "--read", str(path), "--json"]
    if title == NULL:
        command += ["--sink", "null"]
    else:
        command += ["--brokers", kafka.address, "--topic", topic]
        command += ["--set", f"kafka.flush_timeout_seconds={LIMIT_SECONDS}"]
    command += ["--bodies", "none"] if title == NONE else []
    return measure.run(command, core, limit_seconds=LIMIT_SECONDS, threads=True)


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
    return Rate(CONTROLS[kind], count, seconds, cpu / seconds, used / seconds, cpu / count * 1e6)


def control(address: str, topic: str, path: Path, copies: int, kind: str) -> None:
    """Produces the records of the file, again and again. Prints how many, in how many seconds, of CPU too; reading the
    file and connecting are not in them."""
    from http_capture.capture.sink.kafka import OURS

    with path.open() as lines:
        rows = [json.loads(line) for line in lines]
    records = [
        (
            key.encode(),
            value.encode()[: SMALL_BYTES if kind.endswith("small") else None],
            [(name, content.encode()) for name, content in headers],
            timestamp,
        )
        for key, value, headers, timestamp in rows
    ]
    del rows
    settings = {**OURS, "bootstrap.servers": address}
    run = _library if kind.startswith("library") else _loop
    seconds, cpu, left, delivered = run(settings, topic, records, copies, kind)
    count = len(records) * copies
    if left or (delivered is not None and delivered != count):
        sys.exit(f"{left} records left, {delivered} of {count} delivered")
    print(json.dumps([count, seconds, cpu]))
    sys.stdout.flush()
    os._exit(0)  # taking the records apart again takes seconds


Records = list[tuple[bytes, bytes, list[tuple[str, bytes]], int]]


def _loop(
    settings: dict[str, str | int], topic: str, records: Records, copies: int, kind: str
) -> tuple[float, float, int, int | None]:
    """Seconds, of CPU, records left, delivered where it is known."""
    from confluent_kafka import Producer

    reports = kind == "reports"
    delivered = 0

    def on_delivery(error: object, message: object) -> None:
        nonlocal delivered
        if error is None:
            delivered += 1

    producer = Producer({**settings, "on_delivery": on_delivery} if reports else settings)
    producer.list_topics(topic, timeout=10)
    gc.disable()
    gc.freeze()
    produce, poll = producer.produce, producer.poll
    begin, cpu = time.perf_counter(), time.process_time()
    for _ in range(copies):
        for number, (key, value, headers, timestamp) in enumerate(records):
            try:
                produce(topic, value, key, -1, None, None, timestamp, headers)
            except BufferError:
                while True:
                    poll(0.1)
                    try:
                        produce(topic, value, key, -1, None, None, timestamp, headers)
                        break
                    except BufferError:
                        continue
            if not number % POLL_RECORDS:
                poll(0)
    left = producer.flush(LIMIT_SECONDS)
    return time.perf_counter() - begin, time.process_time() - cpu, left, delivered if reports else None


def _library(
    settings: dict[str, str | int], topic: str, records: Records, copies: int, kind: str
) -> tuple[float, float, int, int | None]:
    """As _loop, without confluent_kafka: the arguments of all calls lie ready, so that a record is one call into C, and
    the reports of a batch are one event, of which only the number is asked."""
    # the numbers and the layout of rdkafka.h
    topic_, value_, key_, flags_, timestamp_, header_ = 1, 4, 5, 7, 8, 9
    argument = struct.Struct("=i4xQQQ40x")  # rd_kafka_vu_t
    copy, reports, fields = 2, 1, 5
    import confluent_kafka.cimpl  # noqa: F401  it brings the library

    paths = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "librdkafka" in line}
    if not paths:
        sys.exit("librdkafka is linked in, its C interface cannot be reached")
    lib = ctypes.PyDLL(paths.pop())  # the lock of the interpreter is kept: no other thread wants it
    pointer, text = ctypes.c_void_p, ctypes.c_char_p
    for name, result, *arguments in (
        ("rd_kafka_conf_new", pointer),
        ("rd_kafka_conf_set", ctypes.c_int, pointer, text, text, text, ctypes.c_size_t),
        ("rd_kafka_conf_set_events", None, pointer, ctypes.c_int),
        ("rd_kafka_new", pointer, ctypes.c_int, pointer, text, ctypes.c_size_t),
        ("rd_kafka_topic_new", pointer, pointer, text, pointer),
        ("rd_kafka_metadata", ctypes.c_int, pointer, ctypes.c_int, pointer, pointer, ctypes.c_int),
        ("rd_kafka_queue_get_main", pointer, pointer),
        ("rd_kafka_queue_poll", pointer, pointer, ctypes.c_int),
        ("rd_kafka_event_type", ctypes.c_int, pointer),
        ("rd_kafka_event_message_count", ctypes.c_size_t, pointer),
        ("rd_kafka_event_destroy", None, pointer),
        ("rd_kafka_outq_len", ctypes.c_int, pointer),
        ("rd_kafka_produceva", pointer, pointer, ctypes.c_size_t, ctypes.c_size_t),
        ("rd_kafka_error_destroy", None, pointer),
    ):  # fmt: skip
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    why = ctypes.create_string_buffer(512)
    configuration = lib.rd_kafka_conf_new()
    for name, setting in settings.items():
        if lib.rd_kafka_conf_set(configuration, name.encode(), str(setting).encode(), why, 512):
            sys.exit(why.value.decode())
    lib.rd_kafka_conf_set_events(configuration, reports)
    producer = lib.rd_kafka_new(0, configuration, why, 512) or sys.exit(why.value.decode())
    metadata = pointer()
    local = lib.rd_kafka_topic_new(producer, topic.encode(), None)
    if lib.rd_kafka_metadata(producer, 0, local, ctypes.byref(metadata), 10_000):
        sys.exit("no metadata")
    queue = lib.rd_kafka_queue_get_main(producer)

    kept: dict[bytes, tuple[bytes, int]] = {}

    def address(content: bytes) -> int:
        """Where the bytes lie, for good. Those of values and ids are all different."""
        found = kept.get(content)
        if found is None:
            found = kept[content] = content, ctypes.cast(content, pointer).value or 0
        return found[1]

    calls = bytearray()
    for key, value, headers, timestamp in records:
        calls += argument.pack(topic_, address(topic.encode()), 0, 0)
        calls += argument.pack(value_, address(value), len(value), 0)
        calls += argument.pack(key_, address(key), len(key), 0)
        calls += argument.pack(timestamp_, timestamp, 0, 0)
        calls += argument.pack(flags_, copy, 0, 0)
        for name, content in headers:
            calls += argument.pack(header_, address(name.encode()), address(content), len(content))
    start = ctypes.addressof(ctypes.c_char.from_buffer(calls))
    count = 5 + fields
    step = argument.size * count
    if len(calls) != step * len(records):
        sys.exit(f"not {fields} headers in every record")
    delivered = 0

    def poll(milliseconds: int) -> None:
        nonlocal delivered
        while event := lib.rd_kafka_queue_poll(queue, milliseconds):
            milliseconds = 0
            if lib.rd_kafka_event_type(event) == reports:
                delivered += lib.rd_kafka_event_message_count(event)
            lib.rd_kafka_event_destroy(event)

    gc.disable()
    gc.freeze()
    produce = lib.rd_kafka_produceva
    begin, cpu = time.perf_counter(), time.process_time()
    for _ in range(copies):
        for number, at in enumerate(range(start, start + len(calls), step)):
            while error := produce(producer, at, count):
                lib.rd_kafka_error_destroy(error)
                poll(100)
            if not number % POLL_RECORDS:
                poll(0)
    until = time.monotonic() + LIMIT_SECONDS
    while (left := lib.rd_kafka_outq_len(producer)) and time.monotonic() < until:
        poll(100)
    return time.perf_counter() - begin, time.process_time() - cpu, left, delivered


if __name__ == "__main__":
    main()
