"""The Kafka sink: records go to one topic through librdkafka.

- Every record has a delivery report, and `delivered` counts reports and nothing else. The reports are not thinned out
  (`delivery.report.only.error`): that saves well under 1 us a record, and makes the count an inference.
- A full queue slows a replay down; for a NIC the record is counted as undelivered, `queue_full`; what is given up
  before, overload.py says.
- Idempotent, `acks=all`, one request in flight: librdkafka's own retries neither double nor reorder records, nor lose
  any that it reports as delivered. A second process still doubles.
- Not safe to be carried over a fork: a worker opens its own.

Reasons of undelivered records: queue_full, timed_out, too_large, unknown_topic, broker_down, auth, fenced, other, and
closed (still pending at close; those that were in flight may have reached the broker all the same).
"""

import contextlib
import logging
import re
import time
from collections.abc import Callable, Mapping

import msgspec
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from ...config.settings import KafkaSettings
from ..errors import (
    ConfigurationError,
    NotPermittedError,
    OperatorError,
    StoppedError,
    UnavailableError,
    UndeliveredError,
)
from . import SinkStats

log = logging.getLogger("http_capture.kafka")

OURS: Mapping[str, str | int] = {
    "client.id": "http-capture",
    "enable.idempotence": "true",
    "acks": "all",
    # Of two requests in flight the first can be refused (no leader) and the second accepted, where it is the first that
    # the broker hears of this producer in that partition: librdkafka then reports the records of both as delivered.
    "max.in.flight.requests.per.connection": 1,
    "compression.type": "lz4",  # in every build of librdkafka, and the cheapest
    "linger.ms": 20,  # at 2 a record takes a quarter more CPU: three times the requests and the switches of threads
    # The bound of memory. librdkafka counts keys and values as bytes; headers and its own add about 1 KiB a record.
    "queue.buffering.max.kbytes": 256 << 10,
    "queue.buffering.max.messages": 300_000,
    "partitioner": "murmur2_random",  # that of the Java clients: the same key lies in the same partition as theirs
    "log.connection.close": "false",  # brokers close idle connections as a matter of course
}
"""What is set where `[kafka.librdkafka]` does not say otherwise."""

REASONS = {
    KafkaError._MSG_TIMED_OUT: "timed_out",
    KafkaError._TIMED_OUT: "timed_out",
    KafkaError._TIMED_OUT_QUEUE: "timed_out",
    KafkaError.REQUEST_TIMED_OUT: "timed_out",
    KafkaError._QUEUE_FULL: "queue_full",
    KafkaError.MSG_SIZE_TOO_LARGE: "too_large",
    KafkaError.RECORD_LIST_TOO_LARGE: "too_large",
    KafkaError.INVALID_MSG_SIZE: "too_large",
    KafkaError.UNKNOWN_TOPIC_OR_PART: "unknown_topic",
    KafkaError.TOPIC_EXCEPTION: "unknown_topic",
    KafkaError._UNKNOWN_TOPIC: "unknown_topic",
    KafkaError._UNKNOWN_PARTITION: "unknown_topic",
    KafkaError._TRANSPORT: "broker_down",
    KafkaError._ALL_BROKERS_DOWN: "broker_down",
    KafkaError._RESOLVE: "broker_down",
    KafkaError.NETWORK_EXCEPTION: "broker_down",
    KafkaError.BROKER_NOT_AVAILABLE: "broker_down",
    KafkaError.LEADER_NOT_AVAILABLE: "broker_down",
    KafkaError._SSL: "auth",
    KafkaError._AUTHENTICATION: "auth",
    KafkaError.SASL_AUTHENTICATION_FAILED: "auth",
    KafkaError.UNSUPPORTED_SASL_MECHANISM: "auth",
    KafkaError.ILLEGAL_SASL_STATE: "auth",
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "auth",
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: "auth",
    KafkaError._FENCED: "fenced",
    KafkaError.PRODUCER_FENCED: "fenced",
    KafkaError.INVALID_PRODUCER_EPOCH: "fenced",
    KafkaError._PURGE_QUEUE: "closed",
    KafkaError._PURGE_INFLIGHT: "closed",
}

BROKER = re.compile(r"(?:[A-Za-z_]+://)?(?:\[[0-9A-Fa-f:.]+\]|[^\s:/,\[\]]+)(?::(?P<port>[0-9]{1,5}))?")
TOPIC = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9._-]{1,249}")
CREATION_SECONDS = 3.0  # a topic that a broker creates by itself is unknown for the first answers
REPEAT_SECONDS = 60.0  # one line of log per subject and minute
MAX_SUBJECTS = 1000


class ProducerFencedError(UndeliveredError):
    """Another producer has taken this one's place: do not come back."""

    exit_code = 76


def librdkafka_settings(settings: KafkaSettings) -> dict[str, str]:
    """Ours, under those of the operator. Raises ConfigurationError for what librdkafka would misread silently."""
    if not settings.brokers:
        raise ConfigurationError("[kafka] brokers is empty: name at least one, HOST:PORT")
    for broker in settings.brokers:
        match = BROKER.fullmatch(broker)
        if match is None or not 0 < int(match["port"] or 9092) < 65536:
            raise ConfigurationError(f"[kafka] brokers: {broker!r} is not HOST:PORT")
    if TOPIC.fullmatch(settings.topic) is None:
        raise ConfigurationError(f"[kafka] topic: {settings.topic!r} must be letters, digits, '.', '_' and '-' only")
    for key, instead in (
        ("bootstrap.servers", "use [kafka] brokers"),
        ("metadata.broker.list", "use [kafka] brokers"),
        ("transactional.id", "transactions are not supported"),
    ):
        if key in settings.librdkafka:
            raise ConfigurationError(f"[kafka.librdkafka] {key} cannot be set here: {instead}")
    merged: dict[str, str | int | float | bool] = {**OURS, **settings.librdkafka}
    merged["bootstrap.servers"] = ",".join(settings.brokers)
    return {key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in merged.items()}


def divided(settings: KafkaSettings, processes: int) -> KafkaSettings:
    """What each of several producers has, so that the bounds of their queues together are those of one."""
    merged = {**OURS, **settings.librdkafka}
    bounds: dict[str, str | int | float | bool] = {}
    for key in ("queue.buffering.max.kbytes", "queue.buffering.max.messages"):
        try:
            bounds[key] = max(1, int(merged[key]) // processes)
        except ValueError:
            bounds[key] = merged[key]  # librdkafka says what is wrong with it
    return msgspec.structs.replace(settings, librdkafka={**settings.librdkafka, **bounds})


class KafkaSink:
    """Sends records to Kafka. Opening it waits until a broker has answered for the topic, unless told not to `wait`.

    Raises ConfigurationError (a setting), UnavailableError (no broker, no topic), NotPermittedError (credentials), and
    StoppedError where `stopped()` meanwhile.
    `poll()` raises UndeliveredError, or ProducerFencedError, where the broker refuses this producer for good;
    `flush()`, `stats()` and `close()` are still to be called then.
    """

    def __init__(
        self, settings: KafkaSettings, *, live: bool, wait: bool = True, stopped: Callable[[], bool] = lambda: False
    ) -> None:  # fmt: skip
        self.waits = not live
        """A full queue makes `send()` wait. Set it to False when a replay is asked to stop."""
        self._brokers = ",".join(settings.brokers)
        self._topic = settings.topic
        self._records = 0
        self._bytes = 0
        self._delivered = 0
        self._waiting_bytes = 0  # of values
        self._undelivered: dict[str, int] = {}
        self._logged: dict[str, float] = {}
        self._starting = True
        self._trouble = ""
        self._refused = ""
        self._fatal: OperatorError | None = None
        self._fatal_reason = ""
        configuration = librdkafka_settings(settings)
        self._most_bytes = _bound(configuration["queue.buffering.max.kbytes"]) * 1024
        self._most_records = _bound(configuration["queue.buffering.max.messages"])
        try:
            self._producer: Producer | None = Producer(
                {**configuration, "on_delivery": self._on_delivery, "error_cb": self._on_error}, logger=self
            )
        except (KafkaException, ValueError, TypeError) as error:
            raise ConfigurationError(f"[kafka.librdkafka] {_text(error)}: mend or remove the setting") from None
        self._produce: Callable[..., None] = self._producer.produce
        try:
            if wait:
                self._start(self._producer, settings.start_timeout_seconds, stopped)
        except BaseException:
            self.close()
            raise
        self._starting = False

    def _start(self, producer: Producer, timeout_seconds: float, stopped: Callable[[], bool]) -> None:
        """Waits until a broker has answered and the topic is there."""
        deadline = time.monotonic() + timeout_seconds
        created_by = 0.0
        while True:
            missing = None
            try:
                answer = producer.list_topics(self._topic, timeout=min(1.0, max(0.05, deadline - time.monotonic())))
            except KafkaException as error:
                self._trouble = self._trouble or _text(error)
            else:
                topic = answer.topics.get(self._topic)
                if topic is not None and topic.error is None:
                    return
                missing = topic.error if topic is not None else KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART)
                created_by = created_by or min(deadline, time.monotonic() + CREATION_SECONDS)
                if REASONS.get(missing.code()) == "auth":
                    raise NotPermittedError(
                        f"Kafka at {self._brokers} does not let this client write to topic {self._topic!r}"
                        f" ({missing.str()}): grant it Describe and Write there"
                    )
            self._poll(producer, 0.1)
            if self._refused:
                raise NotPermittedError(
                    f"Kafka at {self._brokers} refused this client ({self._refused}):"
                    " check security.protocol, sasl.* and ssl.* in [kafka.librdkafka]"
                )
            if stopped():
                raise StoppedError(f"stopped while waiting for Kafka at {self._brokers}: nothing was captured")
            now = time.monotonic()
            if missing is not None and now >= created_by:
                raise UnavailableError(
                    f"topic {self._topic!r} is not usable on Kafka at {self._brokers} ({missing.str()}): create it"
                    f" (kafka-topics.sh --bootstrap-server {self._brokers} --create --topic {self._topic})"
                    " or name another with --topic"
                )
            if now >= deadline:
                raise UnavailableError(
                    f"no Kafka broker answered at {self._brokers} within {timeout_seconds:g} s ({self._trouble}):"
                    " check --brokers, the network, the listener"
                )

    def send(self, key: bytes, value: bytes, headers: list[tuple[str, bytes]], timestamp_ms: int) -> None:
        self._records += 1
        self._bytes += len(value)
        try:
            # By place: for what is given by name confluent_kafka makes a str of each name, at 0.9 us a record.
            # Partition: by key; no callbacks of its own. librdkafka takes the time 0 for "now".
            self._produce(self._topic, value, key, -1, None, None, timestamp_ms or 1, headers)
            self._waiting_bytes += len(value)
        except BufferError:
            self._send_when_there_is_room(key, value, headers, timestamp_ms)
        except KafkaException as error:
            self._count(error.args[0])

    def _send_when_there_is_room(
        self, key: bytes, value: bytes, headers: list[tuple[str, bytes]], timestamp_ms: int
    ) -> None:
        producer = self._producer
        assert producer is not None
        while True:
            alone = len(producer) == 0  # and yet no room: the record is larger than the whole queue
            self._poll(producer, 0.1 if self.waits and not alone else 0)
            try:
                self._produce(self._topic, value, key, -1, None, None, timestamp_ms or 1, headers)
            except BufferError:
                if alone:
                    self._count(KafkaError(KafkaError.MSG_SIZE_TOO_LARGE, "the record is larger than the queue"))
                    return
                if not self.waits:
                    self._count(KafkaError(KafkaError._QUEUE_FULL, "the queue is full: Kafka is down or too slow"))
                    return
            except KafkaException as error:
                self._count(error.args[0])
                return
            else:
                self._waiting_bytes += len(value)
                return

    def poll(self) -> None:
        if self._producer is not None:
            self._poll(self._producer, 0)
        if self._fatal is not None:
            raise self._fatal

    def flush(self, timeout_seconds: float) -> int:
        """Returns the records not delivered: those that failed, and those still pending when the time was up."""
        if self._producer is not None and self._pending():
            self._flush(self._producer, timeout_seconds)
        return self._records - self._delivered

    def filled(self) -> float:
        return max(self._pending() / self._most_records, self._waiting_bytes / self._most_bytes)

    def stats(self) -> SinkStats:
        return SinkStats(
            records=self._records,
            bytes=self._bytes,
            delivered=self._delivered,
            pending=self._pending(),
            undelivered=dict(self._undelivered),
        )

    def close(self) -> None:
        producer = self._producer
        if producer is None:
            return
        self._poll(producer, 0)
        self._producer = None
        del self._produce  # it holds the producer, whose callbacks hold this: nothing would ever be freed
        if self._pending():
            self._undelivered["closed"] = self._undelivered.get("closed", 0) + self._pending()

    def log(self, level: int, form: str, *arguments: object) -> None:
        """librdkafka's log (facility, client, text), from poll(). While starting, the last line is the reason."""
        facility, client, *rest = (str(argument) for argument in arguments)
        text = re.sub(r"^(\[thrd:[^\]]*\]: )+", "", " ".join(rest) or client)
        if self._starting:
            self._trouble = text
            if level >= logging.WARNING and ("SSL handshake failed" in text or "SASL" in text):
                self._refused = self._refused or text
            level = logging.DEBUG
        if self._due(f"{facility} {text.partition(' (after ')[0]}"):
            log.log(level, "%s: %s", facility, text)

    def _due(self, subject: str) -> bool:
        """Whether to log this again: it repeats with every attempt to connect, and with every record."""
        now = time.monotonic()
        if now - self._logged.get(subject, -REPEAT_SECONDS) < REPEAT_SECONDS:
            return False
        if len(self._logged) >= MAX_SUBJECTS:
            self._logged.clear()
        self._logged[subject] = now
        return True

    def _pending(self) -> int:
        return self._records - self._delivered - sum(self._undelivered.values())

    def _poll(self, producer: Producer, timeout_seconds: float) -> None:
        try:
            producer.poll(timeout_seconds)
        except (SystemError, KafkaException) as error:
            self._broken(error)

    def _flush(self, producer: Producer, timeout_seconds: float) -> None:
        deadline = time.monotonic() + timeout_seconds
        try:
            producer.flush(timeout_seconds)
        except (SystemError, KafkaException) as error:
            self._broken(error)
            with contextlib.suppress(SystemError, KafkaException):  # the reports that the exception held up
                producer.flush(max(0.0, deadline - time.monotonic()))

    def _on_delivery(self, error: KafkaError | None, message: Message) -> None:
        self._waiting_bytes -= len(message)
        if error is None:
            self._delivered += 1
            return
        try:
            error.code()
        except SystemError as raised:  # a fatal error that came before this report was left pending: see _broken
            self._broken(raised)
        self._count(error)

    def _on_error(self, error: KafkaError) -> None:
        if self._starting:
            self._trouble = error.str()
            if REASONS.get(error.code()) == "auth":
                self._refused = error.str()
        elif error.code() == KafkaError._ALL_BROKERS_DOWN and self._due("down"):
            log.warning("no Kafka broker can be reached at %s: records wait in memory", self._brokers)

    def _broken(self, error: BaseException) -> None:
        """A fatal error of the producer. confluent_kafka raises it out of poll() and flush() instead of giving it to
        `error_cb`; where more callbacks run before they return, it surfaces as the cause of a SystemError."""
        if self._fatal is not None:
            return
        while not isinstance(error, KafkaException) and error.__cause__ is not None:
            error = error.__cause__
        cause = error.args[0] if isinstance(error, KafkaException) else None
        self._fatal_reason = REASONS.get(cause.code(), "other") if cause is not None else "other"
        kind = ProducerFencedError if self._fatal_reason == "fenced" else UndeliveredError
        self._fatal = kind(
            f"Kafka at {self._brokers} takes no more records from this producer ({_text(error)}): start anew"
        )

    def _count(self, error: KafkaError) -> None:
        """One more undelivered record."""
        reason = REASONS.get(error.code(), "other")
        if self._fatal is not None and error.code() in (KafkaError._FATAL, KafkaError._PURGE_QUEUE, KafkaError._STATE):
            reason = self._fatal_reason
        self._undelivered[reason] = self._undelivered.get(reason, 0) + 1
        if reason != "closed" and self._due(reason):
            log.warning("records are not delivered, %d for %s: %s", self._undelivered[reason], reason, error.str())


def _bound(text: str) -> float:
    """0 is none for librdkafka. It also says what is wrong with one that is no number."""
    return int(text) or float("inf") if text.isdecimal() else float("inf")


def _text(error: BaseException) -> str:
    """What librdkafka says, on one line."""
    cause = error.args[0] if error.args else error
    return " ".join((cause.str() if isinstance(cause, KafkaError) else str(cause)).split())
