"""One real Apache Kafka broker for tests: KRaft, broker and controller in one Java process, on the loopback.

Needs Java 17 and the jars in target/lib (`make kafka-jars`). Everything it writes is in one temporary folder.
"""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from base64 import urlsafe_b64encode
from pathlib import Path
from types import TracebackType

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

JARS = Path(__file__).parent / "target" / "lib"
HEAP = "1g"
START_SECONDS = 60.0
STOP_SECONDS = 20.0

_PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller_port}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
log.dirs={data}
num.partitions={partitions}
auto.create.topics.enable=true
default.replication.factor=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
num.network.threads=2
num.io.threads=2
background.threads=2
log.cleaner.enable=false
controlled.shutdown.enable=false
broker.session.timeout.ms=2000
broker.heartbeat.interval.ms=500
"""

_LOG4J = """\
<Configuration status="error">
  <Appenders><File name="F" fileName="{log}"><PatternLayout pattern="%d %p %c{{1}}: %m%n"/></File></Appenders>
  <Loggers><Root level="info"><AppenderRef ref="F"/></Root></Loggers>
</Configuration>
"""


def missing() -> str:
    """Why there can be no broker here; empty when there can."""
    if shutil.which("java") is None:
        return "java is not installed"
    if not any(JARS.glob("kafka_2.13-*.jar")):
        return "no Kafka jars in tests/kafka/target/lib: run `make kafka-jars`"
    return ""


class RealBroker:
    """A context manager: the broker answers inside of it. `start` after `kill` goes on with the same data and ports.

    `cpu` pins the Java process to one core. `pause` and `resume` stop and continue it without its noticing."""

    def __init__(self, *, partitions: int = 4, cpu: int | None = None) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="http-capture-kafka-"))
        self._cpu = cpu
        self._process: subprocess.Popen[bytes] | None = None
        self._port, controller_port = _free_ports(2)
        self._properties = self._folder / "server.properties"
        self._properties.write_text(
            _PROPERTIES.format(
                port=self._port, controller_port=controller_port, data=self._folder / "data", partitions=partitions
            )
        )
        self._log4j = self._folder / "log4j2.xml"
        self._log4j.write_text(_LOG4J.format(log=self._folder / "server.log"))

    @property
    def address(self) -> str:
        """HOST:PORT for clients."""
        return f"127.0.0.1:{self._port}"

    @property
    def pid(self) -> int:
        """Of the Java process."""
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        """The broker's own log so far."""
        path = self._folder / "server.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def __enter__(self) -> "RealBroker":
        try:
            cluster = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
            cluster_id = f"--cluster-id={cluster}"  # one in 64 begins with a hyphen
            formatted = subprocess.run(
                self._java("256m", "kafka.tools.StorageTool", "format", cluster_id, "-c", str(self._properties)),
                capture_output=True,
                text=True,
                timeout=START_SECONDS,
            )
            if formatted.returncode:
                raise RuntimeError(
                    f"the broker's storage could not be formatted:\n{formatted.stdout}{formatted.stderr}"
                )
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Starts the process and waits until it answers."""
        with (self._folder / "output").open("ab") as output:
            self._process = subprocess.Popen(
                self._java(HEAP, "kafka.Kafka", str(self._properties)),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # a Ctrl-C of pytest is not for it
            )
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            if self._answers():
                return
            time.sleep(0.2)
        output_text = (self._folder / "output").read_text(errors="replace")
        raise RuntimeError(f"the broker did not come up in {START_SECONDS:.0f} s:\n{output_text}{self.log[-4000:]}")

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """As a power cut to the process: SIGKILL. What it has written stays."""
        self._signal(signal.SIGKILL)
        self._wait(STOP_SECONDS)

    def close(self) -> None:
        """Stops the process, politely first, and removes its folder. May be called again."""
        if self._process is not None and self._process.poll() is None:
            self._signal(signal.SIGCONT)
            self._signal(signal.SIGTERM)
            if not self._wait(STOP_SECONDS):
                self.kill()
        self._process = None
        shutil.rmtree(self._folder, ignore_errors=True)

    def records(self, topic: str) -> int:
        """The sum of the topic's end offsets: how many records were ever written (control records too)."""
        from confluent_kafka import Consumer, TopicPartition

        consumer = Consumer({"bootstrap.servers": self.address, "group.id": "watermarks"})
        try:
            found = consumer.list_topics(topic, timeout=10).topics[topic]
            if found.error is not None:
                return 0
            ends = [consumer.get_watermark_offsets(TopicPartition(topic, n), timeout=10)[1] for n in found.partitions]
        except KafkaException:
            return 0
        finally:
            consumer.close()
        return sum(ends)

    def _java(self, heap: str, main: str, *arguments: str) -> list[str]:
        pinned = ["taskset", "-c", str(self._cpu)] if self._cpu is not None else []
        return [
            *pinned, "java", f"-Xmx{heap}", f"-Xms{heap}", "-XX:+UseSerialGC",
            f"-Dlog4j2.configurationFile={self._log4j}", "-cp", f"{JARS}/*", main, *arguments,
        ]  # fmt: skip

    def _answers(self) -> bool:
        try:
            metadata = AdminClient({"bootstrap.servers": self.address, "log_level": 0}).list_topics(timeout=2)
        except KafkaException:
            return False
        return bool(metadata.brokers)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is None or self._process.poll() is not None:
            return
        os.kill(self._process.pid, number)

    def _wait(self, seconds: float) -> bool:
        assert self._process is not None
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True


def _free_ports(count: int) -> list[int]:
    """Ports of the loopback that were free a moment ago."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports: list[int] = [open_socket.getsockname()[1] for open_socket in sockets]
    for open_socket in sockets:
        open_socket.close()
    return ports
