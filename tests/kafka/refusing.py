"""A proxy before a broker: it refuses the first batch of a producer as a broker does that is no leader just now, and
hands all else on. What the broker says of itself is changed, so that its clients come through here."""

import contextlib
import socket
import struct
import threading
from types import TracebackType

PRODUCE, METADATA = 0, 3
NOT_LEADER = 6
SECOND_SECONDS = 2.0  # that a second batch is waited for


class RefusesFirst:
    """A context manager; `address`: HOST:PORT for one producer. `refused`: how many batches were. The answer comes when
    the next batch is there too, or after a while."""

    def __init__(self, broker: str, topic: str) -> None:
        host, _, port = broker.rpartition(":")
        self._broker = (host, int(port))
        self._topic = topic
        self._server = socket.create_server(("127.0.0.1", 0))
        self._port = self._server.getsockname()[1]
        self.address = f"127.0.0.1:{self._port}"
        self.refused = 0
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> "RefusesFirst":
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for one in self._sockets:
            one.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            broker = socket.create_connection(self._broker)
            self._sockets += [client, broker]
            threading.Thread(target=self._serve, args=(client, broker), daemon=True).start()

    def _serve(self, client: socket.socket, broker: socket.socket) -> None:
        """One request after the other, as a broker takes those of one connection."""
        try:
            while request := _message(client):
                key, version, correlation = struct.unpack_from(">hhi", request, 0)
                if key == PRODUCE and not self.refused:
                    self.refused += 1
                    client.settimeout(SECOND_SECONDS)
                    with contextlib.suppress(TimeoutError):
                        client.recv(1, socket.MSG_PEEK)
                    client.settimeout(None)
                    _send(client, self._refusal(version, correlation))
                    continue
                _send(broker, request)
                answer = _message(broker)
                if key == METADATA:
                    answer = answer.replace(struct.pack(">i", self._broker[1]), struct.pack(">i", self._port))
                _send(client, answer)
        except OSError:
            pass
        finally:
            client.close()
            broker.close()

    def _refusal(self, version: int, correlation: int) -> bytes:
        """ProduceResponse 9 or 10 (flexible versions, KIP-482), of partition 0."""
        assert version in (9, 10), f"the client's ProduceRequest has version {version}"
        name = self._topic.encode()
        partition = struct.pack(">ihqqq", 0, NOT_LEADER, -1, -1, -1) + b"\1" + b"\0" + b"\0"
        topic = bytes((len(name) + 1,)) + name + b"\2" + partition + b"\0"
        return struct.pack(">i", correlation) + b"\0" + b"\2" + topic + struct.pack(">i", 0) + b"\0"


def _send(to: socket.socket, message: bytes) -> None:
    to.sendall(struct.pack(">i", len(message)) + message)


def _message(of: socket.socket) -> bytes:
    """The next request or response, without its length; empty at the end."""
    head = _exactly(of, 4)
    return _exactly(of, struct.unpack(">i", head)[0]) if head else b""


def _exactly(of: socket.socket, size: int) -> bytes:
    parts = b""
    while len(parts) < size:
        part = of.recv(size - len(parts))
        if not part:
            return b""
        parts += part
    return parts
