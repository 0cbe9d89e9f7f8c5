"""Where records go, behind one interface.

kafka.py       Kafka, through librdkafka
lines.py       standard output, a file: JSON lines
background.py  a file, written by a thread, where a NIC is read
null.py        nowhere
embedded.py    librdkafka's mock cluster: a broker inside this process, for the demo and for tests
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from msgspec import Struct, field

from ...config.loading import sink_fault
from ...config.settings import KafkaSettings, SinkSettings
from ..errors import UsageError

if TYPE_CHECKING:
    from .background import Background
    from .lines import Lines


class SinkStats(Struct):
    """`records` accepted by send() = `delivered` + undelivered (by reason) + pending, at any time."""

    records: int = 0
    bytes: int = 0  # of values
    delivered: int = 0
    pending: int = 0
    undelivered: dict[str, int] = field(default_factory=dict)  # reason -> records


class Sink(Protocol):
    """Zero or more `send()` and `poll()`, then `flush()`, then exactly one `close()`."""

    def send(self, key: bytes, value: bytes, headers: list[tuple[str, bytes]], timestamp_ms: int) -> None:
        """Takes one record. May block where the sink was opened for a replay; never for a NIC.
        Never raises for a record that cannot be taken: it is counted as undelivered with its reason."""

    def poll(self) -> None:
        """Serves delivery reports; called at least once a block and at least every 100 ms."""

    def flush(self, timeout_seconds: float) -> int:
        """Waits until all is delivered, but no longer than this. Returns how many records are not (yet) delivered."""

    def filled(self) -> float:
        """How much of the memory for records that wait is taken, 0 to 1."""

    def stats(self) -> SinkStats: ...

    def close(self) -> None:
        """What is still pending becomes undelivered, reason `closed`."""


def open_sink(
    settings: SinkSettings, kafka: KafkaSettings, *, live: bool, stopped: Callable[[], bool] = lambda: False
) -> Sink:  # fmt: skip
    """The sink that the settings name; opening Kafka waits until a broker answers, or `stopped()`.

    Raises UsageError for one that does not exist, and what the sinks raise."""
    name, path = _wanted(settings, kafka)
    if name == "kafka":
        from .kafka import KafkaSink

        return KafkaSink(kafka, live=live, stopped=stopped)
    if name == "null":
        from .null import Null

        return Null()
    return _lines(path, live=live)


class SharedSink(Struct, frozen=True):
    """One output of several processes. `open(again)`, in each of them, gives its sink; `again`: in the place of a
    process that died, so a broker is not waited for. `close()` is for the one that made this, when all have ended."""

    open: Callable[[bool], Sink]
    close: Callable[[], None]


def share_sink(settings: SinkSettings, kafka: KafkaSettings, *, live: bool, processes: int) -> SharedSink:
    """As open_sink, for processes that are forked later. Each has a producer of its own, with its part of the memory;
    of a file or standard output all write whole lines, one after the other."""
    name, path = _wanted(settings, kafka)
    if name == "kafka":
        from .kafka import KafkaSink, divided, librdkafka_settings

        part = divided(kafka, processes)
        librdkafka_settings(part)
        return SharedSink(lambda again: KafkaSink(part, live=live, wait=not again), lambda: None)
    if name == "null":
        from .null import Null

        return SharedSink(lambda again: Null(), lambda: None)
    from .lines import Turns

    first = _lines(path, live=live, start=False)  # a thread is not carried over a fork
    turns = Turns()
    return SharedSink(lambda again: first.shared(turns), first.close)


def _lines(path: str, *, live: bool, start: bool = True) -> "Lines | Background":
    """`start`: the thread, where one writes."""
    from . import lines

    opened = lines.open_file(path, live=live) if path else lines.open_stdout(live=live)
    if not (live and opened.regular):
        return opened
    from .background import Background

    return Background(opened, start=start)


def _wanted(settings: SinkSettings, kafka: KafkaSettings) -> tuple[str, str]:
    """kafka, stdout, null, or file and its path."""
    to = settings.to or ("kafka" if kafka.brokers else "stdout")
    if to == "kafka" and not kafka.brokers:
        raise UsageError("--sink kafka needs brokers: add --brokers HOST:PORT,...")
    if fault := sink_fault(to):
        raise UsageError(f"--sink {to!r} {fault}")
    name, _, path = to.partition(":")
    return name, path
