"""`http-capture demo`: the real program on real traffic, on this host alone: no mirrored NIC, no Kafka, no root needed.

    client --HTTP--> server            both here, on 127.0.0.1
              |
        http-capture --iface lo        a process of its own; without the permission to capture: --read FILE
              |
        embedded broker                in this process
              |
        consumer                       a process of its own, which knows nothing of what was sent

Without the permission, the bytes pass through a tap between client and server, and a capture file is made of them.

Everything that is started or written is ended or removed on every way out, also by SIGINT, SIGTERM and SIGHUP. The
demo is a test too: it fails where a record is missing, doubled or tells a secret, or where the ledger does not balance.
"""

import base64
import collections
import contextlib
import gzip
import http.client
import http.server
import json
import os
import pathlib
import selectors
import shlex
import signal
import socket
import socketserver
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import FrameType, TracebackType
from typing import Any, TypeVar

from .errors import HttpCaptureError, UnavailableError

HOST = "127.0.0.1"
TOPIC = "http-capture-demo"
STEP_SECONDS = 15.0  # any one step that takes longer has failed
END_SECONDS = 3.0  # what a process has to end in before it is killed
PLAIN_WIDTH = 120  # columns where standard output is no terminal
USAGE = """\
usage: http-capture demo [--replay]

Records a small web site on this host, live on the loopback NIC, into a Kafka broker of its own, and shows what a
consumer reads there; then it all goes away again. Needs no network card, no Kafka and no root: without the permission
to capture, it replays a capture file of the same traffic.

  --replay   replay, even where capturing is permitted"""

TOKEN, PASSWORD, SESSION = "tok-4711-hidden", "correct-horse-battery", "c0ffee-session"
BASIC = base64.b64encode(f"anna:{PASSWORD}".encode()).decode()
SECRETS = (TOKEN, PASSWORD, SESSION, BASIC)

Json = dict[str, Any]
Server = TypeVar("Server", bound=socketserver.BaseServer)


def main(arguments: list[str]) -> int:
    """Runs the demo. Returns the exit code; raises an HttpCaptureError, whose text is one line, where it fails."""
    if arguments in (["--help"], ["-h"]):
        print(USAGE)
        return 0
    if arguments not in ([], ["--replay"]):
        print(f"http-capture: demo takes --replay or nothing, not {shlex.join(arguments)!r}", file=sys.stderr)
        return 64
    with _Interrupts() as interrupts:
        try:
            with contextlib.ExitStack() as stack:
                try:
                    _Demo(stack, interrupts).run(replay=bool(arguments))
                finally:
                    interrupts.held = True
        except KeyboardInterrupt:
            print("\nhttp-capture: demo interrupted; nothing of it is left", file=sys.stderr)
            return 128 + interrupts.number
        except BrokenPipeError:
            raise
        except (OSError, http.client.HTTPException) as error:
            raise UnavailableError(f"the demo cannot run here: {error or type(error).__name__}") from None
    return 0


class _Interrupts:
    """A signal to end raises KeyboardInterrupt, once; while `held`, it waits until it is no more. After that one, the
    process is ending, and further ones change nothing."""

    def __init__(self) -> None:
        self.held = False
        self.number = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "_Interrupts":
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, signal.SIG_IGN if self.number else before)

    def _signal(self, number: int, frame: FrameType | None) -> None:
        self.number = self.number or number
        if not self.held:
            self.held = True
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """What is begun in here also gets to the point where it will be ended."""
        before, self.held = self.held, True
        try:
            yield
        finally:
            self.held = before
            if self.number and not before:
                self.held = True
                raise KeyboardInterrupt


@dataclass
class _Child:
    """A process of ours. What it says goes to files, so that it never waits for a reader."""

    process: subprocess.Popen[bytes]
    name: str
    output: pathlib.Path
    errors: pathlib.Path

    def said(self) -> str:
        """Its standard error."""
        return self.errors.read_text(errors="replace")

    def lines(self) -> list[str]:
        """What it said to a person: without its lines of JSON."""
        return [line for line in self.said().splitlines() if not line.startswith("{")]

    def why(self) -> str:
        """Why it ended, in one line; of a refusal also the line that names the holder."""
        refusal = [line.strip().removeprefix("http-capture: ") for line in self.lines()[:2] if "REFUSED" in self.said()]
        return " ".join(refusal) or self.last_line()

    def last_line(self) -> str:
        line = (self.lines() or [f"it ended with {self.process.poll()} and said nothing"])[-1]
        return line.removeprefix("http-capture: ")

    def wait(self) -> int:
        """Waits for its end. Returns its exit code."""
        try:
            return self.process.wait(STEP_SECONDS)
        except subprocess.TimeoutExpired:
            raise HttpCaptureError(f"{self.name} did not end within {STEP_SECONDS:g} s") from None

    def end(self) -> None:
        """Ends it, if it still runs."""
        for stop in (self.process.terminate, self.process.kill):
            if self.process.poll() is None:
                stop()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(END_SECONDS)


@dataclass
class _Demo:
    stack: contextlib.ExitStack
    interrupts: _Interrupts
    children: int = 0
    made: list[tuple[str, str, int]] = field(default_factory=list)  # method, path, status, as the client saw them

    def run(self, *, replay: bool) -> None:
        from rich.console import Console

        from .sink.embedded import EmbeddedBroker

        console = Console(highlight=False, markup=False, emoji=False)
        if not console.is_terminal:
            console.width = PLAIN_WIDTH
        self.say: Callable[[str], None] = lambda text: console.print(text, soft_wrap=True)
        with self.interrupts.hold():
            folder = tempfile.TemporaryDirectory(prefix="http-capture-demo-")
            self.folder = pathlib.Path(self.stack.enter_context(folder))
            broker = self.stack.enter_context(EmbeddedBroker())
            site = self._serve(_Server((HOST, 0), _Site))
        self.kafka = ["--brokers", broker.address, "--topic", TOPIC, "--json"]
        self.pidfile = str(self.folder / "demo.pid")
        self.say(f"broker     embedded in this process, {broker.address}, topic {TOPIC}")
        self.say(f"server     http://{HOST}:{site.server_address[1]}, a small web site in this process")
        why = "--replay was given" if replay else self._live(site)
        if why:
            self._replay(site, why)
        self.say("\nWhat another process, an ordinary Kafka consumer, reads from the topic:\n")
        messages = self._read_back(broker.address)
        console.print(_table(messages))
        self._check(messages)

    # Live, or as near to it as is permitted

    def _live(self, site: "_Server") -> str:
        """Records the client live. Returns why that is not possible, in one line; empty where it was done."""
        loopback = _loopback()
        port = site.server_address[1]
        arguments = ["--iface", loopback, "--filter", f"tcp port {port}", "--pidfile", self.pidfile, *self.kafka]
        capture = self._start(arguments)
        deadline = time.monotonic() + STEP_SECONDS
        while f"recording {loopback}" not in capture.said():
            if capture.process.poll() is not None:
                return capture.why()
            if time.monotonic() > deadline:
                capture.end()
                return f"the capture was not ready within {STEP_SECONDS:g} s"
            time.sleep(0.02)
        self.say(f"capture    LIVE on {loopback}: http-capture {shlex.join(arguments)}")
        self._browse(port)
        self._refusal("while it records")
        capture.process.send_signal(signal.SIGTERM)
        self._end_of(capture, "stopped with SIGTERM")
        return ""

    def _replay(self, site: "_Server", why: str) -> None:
        """Makes a capture file of what passes between client and server, and replays it."""
        from ..guard import acquire

        self.say(f"capture    REPLAY of a capture file, not live: {why}")
        self.say("           The client's real bytes pass through a tap; TCP segments are made up around them.")
        with self.interrupts.hold():
            tap = self._serve(_Tap((HOST, 0), _TapHandler))
        tap.site = site.server_address[1]
        self._browse(tap.server_address[1])
        deadline = time.monotonic() + STEP_SECONDS
        while any(not conversation.ended for conversation in tap.conversations):
            if time.monotonic() > deadline:
                raise HttpCaptureError("the connections through the tap did not end")
            time.sleep(0.01)
        path = self.folder / "demo.pcap"
        _write_pcap(path, [frame for conversation in tap.conversations for frame in _frames(conversation)])
        arguments = ["--read", str(path), *self.kafka]
        self.say(f"           http-capture {shlex.join(arguments)}")
        self._end_of(self._start(arguments), "at the end of the file")
        with self.interrupts.hold():
            # The pidfile only: this process opens no NIC, and must keep nobody from doing so.
            guard = acquire(
                self.pidfile, [_loopback()], instance=os.urandom(16).hex(), command=["http-capture", "demo"],
                interface_lock=False,
            )  # fmt: skip
            self.stack.callback(guard.release)
        self._refusal("while the demo itself holds the pidfile, as nothing records")

    def _refusal(self, when: str) -> None:
        """Starts a second copy, which must be refused."""
        second = self._start(["--iface", _loopback(), "--pidfile", self.pidfile, *self.kafka])
        code = second.wait()
        self.say(f"\nA second copy with the same pidfile, {when}:\n")
        for line in second.lines():
            self.say(f"  {line}")
        if code != 75:
            raise HttpCaptureError(f"the second copy ended with {code}, not with 75: the guard did not refuse it")

    def _end_of(self, capture: _Child, how: str) -> None:
        """Waits for the capture to end and shows its ledger."""
        from .stats import Ledger

        code = capture.wait()
        found = [line for line in capture.said().splitlines() if line.startswith('{"event": "ledger"')]
        if not found:
            raise HttpCaptureError(f"the capture ended with {code}: {capture.last_line()}")
        numbers: Json = json.loads(found[-1])
        numbers.pop("event")
        balanced: bool = numbers.pop("balanced")
        self.ledger = Ledger(imbalances=numbers.pop("imbalances"), sections=numbers)
        self.say(f"\nThe ledger of the capture, {how}, exit code {code}:\n")
        self.say(self.ledger.as_text())
        if code != 0 or not balanced:
            raise HttpCaptureError(f"the capture ended with {code}: {capture.last_line()}")

    # Pieces

    def _serve(self, server: Server) -> Server:
        """Runs a server until the end of the demo."""
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        self.stack.callback(server.server_close)
        self.stack.callback(server.shutdown)
        return server

    def _start(self, arguments: list[str]) -> _Child:
        """Starts http-capture."""
        return self._spawn(["http_capture.capture", *arguments])

    def _spawn(self, module: list[str]) -> _Child:
        """Starts a module of this installation; settings of the environment are not for the demo."""
        self.children += 1
        output, errors = (self.folder / f"{self.children}.{stream}" for stream in ("out", "err"))
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HTTP_CAPTURE_")}
        with self.interrupts.hold(), open(output, "wb") as out, open(errors, "wb") as err:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", *module], stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment
            )
            child = _Child(process, " ".join(module), output, errors)
            self.stack.callback(child.end)
        return child

    def _browse(self, port: int) -> None:
        """Two clients, one after the other, each with one connection."""
        for visit in VISITS:
            connection = http.client.HTTPConnection(HOST, port, timeout=STEP_SECONDS)
            with contextlib.closing(connection):
                for method, target, headers, body in visit:
                    status = _request(connection, method, target, headers, body)
                    self.made.append((method, target.partition("?")[0], status))
        self.say(f"client     {len(self.made)} requests on {len(VISITS)} connections, with Python's http.client")

    def _read_back(self, brokers: str) -> list[Json]:
        """The messages of the topic, as a consumer in another process prints them."""
        reader = self._spawn([__name__, brokers, TOPIC])
        if reader.wait() != 0:
            raise HttpCaptureError(f"the consumer could not read the topic: {reader.last_line()}")
        return [json.loads(line) for line in reader.output.read_text().splitlines()]

    def _check(self, messages: list[Json]) -> None:
        """Compares what the client did, what the ledger says and what the topic holds."""
        records = [json.loads(message["value"]) for message in messages]
        told = [secret for secret in SECRETS if any(secret in json.dumps(message) for message in messages)]
        if told:
            raise HttpCaptureError(f"{len(told)} of {len(SECRETS)} secrets are in the records: redaction failed")
        form = next((r["http"]["request"]["body"].get("content") for r in records if r["url"]["path"] == "/login"), "")
        self.say(
            f"\nSecrets are REDACTED before a record leaves: the form of /login reads {form!r}. So are access_token"
        )
        self.say(
            "in the URL and the headers Authorization, Cookie and Set-Cookie; none of the real values is in the topic."
        )
        seen = [
            (r["http"]["request"]["method"], r["url"]["path"], r["http"]["response"]["status_code"]) for r in records
        ]
        missing = collections.Counter(self.made) - collections.Counter(seen)
        more = collections.Counter(seen) - collections.Counter(self.made)
        delivered = self.ledger.sections["records"]["delivered"]
        ids = {r["event"]["id"] for r in records}
        self.say(
            f"\n{len(self.made)} exchanges made, {delivered} delivered by the ledger, {len(records)} in Kafka with"
            f" {len(ids)} different ids: {'NOT the same' if missing or more else 'all the same'}."
        )
        if missing or more or delivered != len(records) or len(ids) != len(records):
            raise HttpCaptureError(
                f"the records are not what the client did: missing {dict(missing)}, more {dict(more)}"
            )


def _loopback() -> str:
    return next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "lo")


def _table(messages: list[Json]) -> Any:
    """The records as a table for a terminal, in the order of time."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for title, right in (
        ("time", False), ("client", False), ("method", False), ("URL", False), ("status", True), ("bytes", True),
        ("ms", True), ("id", False),
    ):  # fmt: skip
        fold = title == "URL"
        table.add_column(title, justify="right" if right else "left", overflow="fold", no_wrap=not fold)
    for record in sorted(
        (json.loads(message["value"]) for message in messages), key=lambda each: str(each["@timestamp"])
    ):
        response = record["http"]["response"]
        row = (
            record["@timestamp"][11:23],
            f"{record['source']['ip']}:{record['source']['port']}",
            record["http"]["request"]["method"],
            record["url"].get("full") or record["url"]["original"],
            str(response["status_code"]),
            str(response["body"]["bytes"]),
            f"{record['event']['duration'] / 1e6:.1f}",
            record["event"]["id"][:8],
        )
        table.add_row(*map(Text, row))
    return table


# The web site and its visitors

PAGE = b"<!doctype html>\n<title>Shop</title>\n<h1>Welcome</h1>\n" + b"<p>Everything here is made up.</p>\n" * 20
ETAG = '"demo-1"'
ORDERS = json.dumps([{"id": n, "item": f"lamp {n}", "price_cents": 100 * n} for n in range(1, 40)]).encode()


class _Server(http.server.ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A visitor that goes away in the middle is none of the demo's business."""


class _Site(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = STEP_SECONDS

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def _answer(self, status: int, kind: str = "", body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if kind:
            self.send_header("Content-Type", kind)
        if status not in (204, 304):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/" and self.headers["If-None-Match"] == ETAG:
            self._answer(304, ETag=ETAG)
        elif path == "/":
            self._answer(200, "text/html; charset=utf-8", PAGE, ETag=ETAG)
        elif path == "/api/orders":
            self._answer(200, "application/json", gzip.compress(ORDERS), Content_Encoding="gzip")
        elif path == "/slow":
            time.sleep(0.1)
            self._answer(200, "text/plain", b"sorry for the wait\n")
        elif path == "/stream":
            self.send_response(200)
            self.send_header("Content-Type", "text/plain")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for part in (b"one chunk, ", b"another chunk, ", b"the last chunk\n", b""):
                self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
        else:
            self._answer(404, "text/plain", b"no such page\n")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/login":
            self._answer(303, Location="/", Set_Cookie=f"session={SESSION}; HttpOnly")
        else:
            self._answer(201, "application/json", b'{"id": 40}', Location="/api/orders/40")

    do_PUT = do_POST

    def do_DELETE(self) -> None:
        self._answer(204)


Step = tuple[str, str, dict[str, str], bytes | None]
VISITS: tuple[tuple[Step, ...], ...] = (
    (
        ("GET", "/", {}, None),
        ("GET", f"/api/orders?page=2&access_token={TOKEN}", {"Accept-Encoding": "gzip"}, None),
        ("POST", "/api/orders", {"Content-Type": "application/json"}, b'{"item": "lamp 40", "price_cents": 4000}'),
        (
            "POST",
            "/login",
            {"Content-Type": "application/x-www-form-urlencoded"},
            urllib.parse.urlencode({"user": "anna", "password": PASSWORD}).encode(),
        ),
        ("HEAD", "/", {"Cookie": f"session={SESSION}"}, None),
        ("GET", "/", {"If-None-Match": ETAG}, None),
        ("GET", "/missing", {}, None),
    ),
    (
        ("GET", "/stream", {}, None),
        ("PUT", "/api/orders", {"Content-Type": "application/json", "Expect": "100-continue"}, ORDERS),
        ("DELETE", "/api/orders/17", {"Authorization": f"Basic {BASIC}"}, None),
        ("GET", "/slow", {"Connection": "close"}, None),
    ),
)


def _request(
    connection: http.client.HTTPConnection, method: str, target: str, headers: dict[str, str], body: bytes | None
) -> int:
    """Sends a request, reads the response to its end and returns its status."""
    connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
    for name, value in {"Host": "shop.test", "User-Agent": "http-capture-demo", **headers}.items():
        connection.putheader(name, value)
    if body is not None:
        connection.putheader("Content-Length", str(len(body)))
    connection.endheaders()
    if "Expect" in headers:
        connection.sock.recv(1, socket.MSG_PEEK)  # the server says 100 Continue; getresponse() skips it
    if body is not None:
        connection.send(body)
    response = connection.getresponse()
    response.read()
    return response.status


# Where capturing is not permitted: a tap that takes down what passes, and a capture file of it


@dataclass
class _Conversation:
    """What passed through one connection: (time in ns, sent by the client, bytes; none for the end of a side)."""

    client: tuple[str, int]
    server: tuple[str, int]
    opened_ns: int
    passed: list[tuple[int, bool, bytes]] = field(default_factory=list)
    ended: bool = False


class _Tap(socketserver.ThreadingTCPServer):
    daemon_threads = True
    site = 0  # the port that everything is passed on to

    def __init__(self, address: tuple[str, int], handler: type[socketserver.BaseRequestHandler]) -> None:
        super().__init__(address, handler)
        self.conversations: list[_Conversation] = []

    def handle_error(self, request: Any, client_address: Any) -> None:
        """As with _Server."""


class _TapHandler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        tap = self.server
        assert isinstance(tap, _Tap)
        conversation = _Conversation(self.client_address, (HOST, tap.server_address[1]), time.time_ns())
        tap.conversations.append(conversation)
        try:
            with socket.create_connection((HOST, tap.site), STEP_SECONDS) as site:
                self._pass(conversation, {self.request: site, site: self.request})
        finally:
            conversation.ended = True

    def _pass(self, conversation: _Conversation, other: dict[socket.socket, socket.socket]) -> None:
        with selectors.DefaultSelector() as selector:
            for side in other:
                side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                selector.register(side, selectors.EVENT_READ, side)
            while selector.get_map():
                for key, _ in selector.select():
                    side = key.data
                    data = side.recv(65536)
                    conversation.passed.append((time.time_ns(), side is self.request, data))
                    if data:
                        other[side].sendall(data)
                    else:
                        selector.unregister(side)
                        with contextlib.suppress(OSError):
                            other[side].shutdown(socket.SHUT_WR)


FIN, SYN, PSH, ACK = 1, 2, 8, 16
SEGMENT_BYTES = 1460


def _frames(conversation: _Conversation) -> list[tuple[int, bytes]]:
    """Ethernet frames (time in ns, bytes) that would have carried the conversation."""
    frames: list[tuple[int, bytes]] = []
    ends = {True: conversation.client, False: conversation.server}
    sent = {True: 1000, False: 2000}  # sequence numbers

    def frame(ns: int, client: bool, flags: int, payload: bytes = b"") -> None:
        source, destination = ends[client], ends[not client]
        addresses = socket.inet_aton(source[0]) + socket.inet_aton(destination[0])
        acknowledged = sent[not client] if flags & ACK else 0
        tcp = struct.pack("!HHIIBBHI", source[1], destination[1], sent[client], acknowledged, 0x50, flags, 65535, 0)
        pseudo = addresses + struct.pack("!HH", 6, len(tcp) + len(payload))
        tcp = tcp[:16] + _checksum(pseudo + tcp + payload) + tcp[18:]
        ip = struct.pack("!BBHIBBH", 0x45, 0, 20 + len(tcp) + len(payload), 0x4000, 64, 6, 0) + addresses
        ip = ip[:10] + _checksum(ip) + ip[12:]
        frames.append((max(ns, frames[-1][0] + 1000 if frames else 0), bytes(12) + b"\x08\0" + ip + tcp + payload))
        sent[client] += len(payload) + bool(flags & (SYN | FIN))

    frame(conversation.opened_ns, True, SYN)
    frame(conversation.opened_ns, False, SYN | ACK)
    frame(conversation.opened_ns, True, ACK)
    for ns, client, data in conversation.passed:
        for at in range(0, len(data), SEGMENT_BYTES):
            frame(ns, client, PSH | ACK, data[at : at + SEGMENT_BYTES])
        if not data:
            frame(ns, client, FIN | ACK)
        frame(ns, not client, ACK)
    return frames


def _checksum(data: bytes) -> bytes:
    """The Internet checksum (RFC 1071)."""
    total = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", 0xFFFF - total)


def _write_pcap(path: pathlib.Path, frames: list[tuple[int, bytes]]) -> None:
    with open(path, "wb") as file:
        file.write(struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 262144, 1))
        for ns, frame in sorted(frames):
            file.write(struct.pack("<IIII", ns // 10**9, ns % 10**9, len(frame), len(frame)) + frame)


# The consumer: a process of its own (`python -m http_capture.capture.demo BROKERS TOPIC`)


def _consume(brokers: str, topic: str) -> None:
    """Prints every message of a topic as a line of JSON, to the end of each partition."""
    from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, TopicPartition

    consumer = Consumer({"bootstrap.servers": brokers, "group.id": "http-capture-demo", "enable.partition.eof": True})
    partitions = set(consumer.list_topics(topic, timeout=STEP_SECONDS).topics[topic].partitions)
    consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in partitions])
    deadline = time.monotonic() + STEP_SECONDS
    while partitions:
        if time.monotonic() > deadline:
            sys.exit(f"no end of {len(partitions)} partitions within {STEP_SECONDS:g} s")
        message: Any = consumer.poll(0.1)
        if message is None:
            continue
        if message.error() is None:
            fields = {
                "partition": message.partition(),
                "offset": message.offset(),
                "key": message.key().decode(),
                "headers": {name: value.decode() for name, value in message.headers() or ()},
                "value": message.value().decode(),
            }
            print(json.dumps(fields))
        elif message.error().code() == KafkaError._PARTITION_EOF:
            partitions.discard(message.partition())
        else:
            sys.exit(message.error().str())
    consumer.close()


if __name__ == "__main__":
    _consume(*sys.argv[1:])
