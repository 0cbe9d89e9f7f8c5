"""A Kafka broker inside this process: librdkafka's mock cluster, for the demo and for tests.

Any Kafka client can write to it and read from it, also from another process on this host.
"""

import logging
from types import TracebackType

from confluent_kafka import KafkaException, Producer

from ..errors import UnavailableError

log = logging.getLogger("http_capture.kafka")


class EmbeddedBroker:
    """A broker on a free port of 127.0.0.1 from `with` to the end of it; `address` is HOST:PORT.

    A topic is created when it is first asked for, with 4 partitions; neither can be set. It keeps the last 5 MiB of
    each partition, as compressed by the producer, and drops what is older without a word: a run of more than about
    20 MiB of compressed records cannot be read back from the start. It keeps all of it in memory, takes any
    credentials for none (plain text only), and knows no transactions that fence.
    """

    def __init__(self) -> None:
        self.address = ""
        self._cluster: Producer | None = None

    def __enter__(self) -> "EmbeddedBroker":
        try:
            self._cluster = Producer({"test.mock.num.brokers": "1"}, logger=log)
            brokers = self._cluster.list_topics(timeout=10.0).brokers.values()
        except KafkaException as error:
            self._cluster = None
            raise UnavailableError(
                f"the embedded broker did not start ({error.args[0].str()}): use --brokers"
            ) from None
        self.address = ",".join(f"{broker.host}:{broker.port}" for broker in brokers)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes its port; what it kept is gone."""
        self._cluster = None
