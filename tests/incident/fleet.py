"""Hosts, each with a mirrored network card, a broker that all of them reach, traffic, and what is in the topic.

    site      one bridge for each host, which sends every frame to every port: the switch with the mirror port. One more
              bridge is the management network, and the broker's port is there.
    clients, servers   the two ends of the traffic, a NIC and a network for each host
    host07    eth1: the mirror, no address. eth0: the management network. A pid, mount and UTS namespace of its own, so
              that it has a name, and sees its own processes only.

Both brokers, the real one and librdkafka's, listen on 127.0.0.1 and tell their clients this address. So on a host
127.0.0.1 is no address of its own: it is routed over eth0 to the site, where the broker is.

Nothing has a name in the system, and everything runs in a pid namespace whose first process dies with the tests: when
they are killed, the kernel removes processes, NICs and namespaces.
"""

import contextlib
import json
import pathlib
import subprocess
import sys
from dataclasses import dataclass

from command import COMMAND, environment
from confluent_kafka import Consumer, TopicPartition
from http_capture.capture.sink.embedded import EmbeddedBroker
from kafka.broker import RealBroker
from network import inside
from supervisord import BIN, Supervisord, lines, shipped, until

LOAD = pathlib.Path(__file__).with_name("load.py")
LAUNCHERS = ("SUPERVISOR_", "INVOCATION_ID")  # a copy that has them was not started by hand
LIMIT_SECONDS = 120  # that anything may take that starts on all hosts at once, on a busy machine with two cores
DIES_WITH_THE_TESTS = ("setpriv", "--pdeathsig", "KILL")
SETUP = """\
echo {name} >/proc/sys/kernel/hostname
for scope in all default; do echo 1 >/proc/sys/net/ipv6/conf/$scope/disable_ipv6; done 2>/dev/null
ip link set lo up && echo 1 >/proc/sys/net/ipv4/conf/all/route_localnet && echo up && exec sleep infinity"""


class Machine:
    """Namespaces (network, pids, mounts, host name) that live, with all that runs in them, to the end of the `with`."""

    def __init__(self, name):
        self.name = name
        self._first = subprocess.Popen(
            [*DIES_WITH_THE_TESTS, "unshare", "--net", "--pid", "--mount", "--uts", "--fork", "--kill-child",
             "--mount-proc", "sh", "-c", SETUP.format(name=name)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        )  # fmt: skip
        self._running = []
        try:
            assert self._first.stdout.readline() == b"up\n", f"no namespaces for {name}"
            children = pathlib.Path(f"/proc/{self._first.pid}/task/{self._first.pid}/children").read_text()
            self.pid = int(children)
        except BaseException:
            self.__exit__()
            raise
        self.namespace = f"/proc/{self.pid}/ns/net"
        self.enter = ["nsenter", "-t", str(self.pid), "--pid", "--net", "--mount", "--uts", "--"]

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._first.kill()
        for process in (self._first, *self._running):
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe:
                    pipe.close()

    def popen(self, *command, **options):
        """Starts a command there. A signal to what this gives ends nsenter, and not the command."""
        env = {name: value for name, value in environment().items() if not name.startswith(LAUNCHERS)}
        options = {"stdin": subprocess.DEVNULL, "text": True, "cwd": "/", "env": env} | options
        process = subprocess.Popen([*self.enter, *map(str, command)], **options)
        self._running.append(process)
        return process

    def ip(self, script):
        """Runs the lines with ip(8), in this network namespace; NICs of other machines are named by their pid."""
        subprocess.run(
            ["nsenter", "-t", str(self.pid), "--net", "--", "ip", "-batch", "-"], input=script, text=True, check=True,
            timeout=LIMIT_SECONDS,
        )  # fmt: skip


class Host(Machine):
    """One of the fleet. `address`: of the server whose traffic its eth1 sees. `folder`: for all that is written on it
    in one test."""

    def __init__(self, name, address):
        super().__init__(name)
        self.address = address
        self.folder = None

    def __str__(self):
        return self.name


class ByHand:
    """A copy as an operator starts it. `pid` as the host sees it."""

    def __init__(self, host, pidfile, broker, topic, *more):
        self.host = host
        self._errors = host.folder / "by-hand.err"
        with open(self._errors, "wb") as err:
            self.process = host.popen(
                "sh", "-c", 'echo $$ && exec "$@"', "sh", *COMMAND, "--iface", "eth1", "--pidfile", pidfile,
                "--brokers", broker, "--topic", topic, *more, stdout=subprocess.PIPE, stderr=err,
            )  # fmt: skip
        self.pid = int(self.process.stdout.readline())

    def kill(self):
        """As kill -9 does."""
        self.host.popen("kill", "-KILL", self.pid).wait()
        self.process.wait()

    def until_it_records(self):
        def recording():
            assert self.process.poll() is None, self.said()
            return _recording(self._errors)

        until(recording, LIMIT_SECONDS, self.said)

    @property
    def instance(self):
        (instance,) = _recording(self._errors)
        return instance

    def said(self):
        return self._errors.read_text()


class Supervised(Supervisord):
    """A host's own supervisord, with the shipped file and all that comes with it."""

    def __init__(self, host, broker, topic, *more):
        self.host = host
        self.errors = host.folder / "http-capture.log"
        arguments = " ".join(("--brokers", broker, "--topic", topic, *more))
        super().__init__(host.folder, host.namespace, shipped(host.folder, "eth1").replace("--sink null", arguments))

    def __enter__(self):
        """Starts it; does not wait for it."""
        with open(self.folder / "supervisord.out", "wb") as out:
            self.process = self.host.popen(
                BIN / "supervisord", "-c", self.configuration, stdout=out, stderr=subprocess.STDOUT
            )
        return self

    def __exit__(self, *error):
        """Asks it to end; `ended()` waits for that."""
        with contextlib.suppress(OSError):
            self.ask("shutdown")

    def answers(self):
        until(self._answers, LIMIT_SECONDS, self.story)

    def ended(self):
        if hasattr(self, "process"):
            assert self.process.wait(LIMIT_SECONDS) == 0, self.story()

    def instances(self):
        """Those that have got so far as to record."""
        return _recording(self.errors)

    def refusals(self):
        """What its copies said when they were refused."""
        return [line for line in lines(self.errors) if line["event"] == "refused"]


def _recording(path):
    mark = "recording eth1, instance "
    text = path.read_text() if path.exists() else ""
    return [line.partition(mark)[2] for line in text.splitlines() if mark in line]


class KilledWithTheTests(RealBroker):
    def _java(self, *arguments):
        return [*DIES_WITH_THE_TESTS, *super()._java(*arguments)]


class Fleet:
    """The hosts and the rest of it; `broker` is its HOST:PORT for all of them."""

    def __init__(self, count):
        with contextlib.ExitStack() as stack:
            self.site, self.clients, self.servers = (
                stack.enter_context(Machine(name)) for name in ("site", "clients", "servers")
            )
            self.hosts = [stack.enter_context(Host(f"host{n:02}", f"10.{n}.0.2")) for n in range(1, count + 1)]
            self._wire()
            self._stack = stack.pop_all()

    def _wire(self):
        clients, servers = self.clients.pid, self.servers.pid
        site = ["link add management type bridge", "address add 10.0.0.1/24 dev management", "link set management up"]
        ends = {self.clients: [], self.servers: []}
        for n, host in enumerate(self.hosts, 1):
            site += [
                f"link add name port{n} type veth peer name eth0 netns {host.pid}",
                f"link set port{n} master management up",
                f"link add wire{n} type bridge ageing_time 0",  # it forgets at once who is where: all ports get all
                f"link set wire{n} up",
            ]
            for end, peer in (
                ("mirror", f"eth1 netns {host.pid}"), ("client", f"net{n} netns {clients}"),
                ("server", f"net{n} netns {servers}"),
            ):  # fmt: skip
                site += [
                    f"link add name {end}{n} type veth peer name {peer}",
                    f"link set {end}{n} master wire{n} up",
                ]
            ends[self.clients] += [f"address add 10.{n}.0.1/24 dev net{n}", f"link set net{n} up"]
            ends[self.servers] += [f"address add {host.address}/24 dev net{n}", f"link set net{n} up"]
        self.site.ip("\n".join(site))
        for machine, script in ends.items():
            machine.ip("\n".join(script))
        for n, host in enumerate(self.hosts, 1):
            host.ip(
                f"address add 10.0.0.{100 + n}/24 dev eth0\nlink set eth0 up\nlink set eth1 up\n"
                "address del 127.0.0.1/8 dev lo\nroute add 127.0.0.1 via 10.0.0.1 dev eth0"
            )

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._stack.close()

    def open_broker(self, *, real):
        """Starts it in the site, until the fleet ends."""
        with inside(self.site.namespace):
            made = KilledWithTheTests() if real else EmbeddedBroker()
            self.broker = self._stack.enter_context(made).address
        self.said_by_broker = lambda: made.log if real else ""

    def connections_to_broker(self):
        """For each host and the site one line of ss(8) or ip(8) for each that waits for something."""
        found = []
        for machine in (self.site, *self.hosts):
            for command in (("ss", "-Hton", "state", "connected"), ("ip", "neigh")):
                said = subprocess.run(
                    ["nsenter", "-t", str(machine.pid), "--net", "--", *command], capture_output=True, text=True
                ).stdout.splitlines()  # fmt: skip
                odd = [
                    " ".join(line.split()) for line in said if "timer:(on" in line or "SYN" in line or "FAIL" in line
                ]
                found += [f"{machine.name}: {line}" for line in odd]
        return found[:12]

    def use(self, folder):
        """The hosts write to folders in this one from now on."""
        for host in self.hosts:
            host.folder = folder / host.name
            host.folder.mkdir()

    def run(self, *arguments, hosts=None):
        """Runs http-capture with these arguments on the hosts, at the same time. Yields each host with the
        CompletedProcess. `{host.…}` in an argument is filled in."""
        hosts = self.hosts if hosts is None else hosts
        started = [
            host.popen(
                *COMMAND, *(argument.format(host=host) for argument in arguments), stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            for host in hosts
        ]  # fmt: skip
        for host, process in zip(hosts, started, strict=True):
            output, errors = process.communicate(timeout=LIMIT_SECONDS)
            yield host, subprocess.CompletedProcess(arguments, process.returncode, output, errors)

    @contextlib.contextmanager
    def supervised(self, topic, *more):
        """Starts supervisord on all hosts. host -> Supervised, which have all ended at the end of the block."""
        with contextlib.ExitStack() as stack:
            found = {host: Supervised(host, self.broker, topic, *more) for host in self.hosts}
            for supervisord in found.values():  # to have all asked to end before the first is waited for
                stack.callback(supervisord.ended)
            for supervisord in found.values():
                stack.enter_context(supervisord)
            for supervisord in found.values():
                supervisord.answers()
            yield found


class Load:
    """The traffic of all hosts, from the start of the `with` to `stop()` or its end."""

    def __init__(self, fleet):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._server = fleet.servers.popen(sys.executable, LOAD, "serve", **pipes)
        assert self._server.stdout.readline() == "ready\n"
        named = [f"{host}={host.address}" for host in fleet.hosts]
        self._client = fleet.clients.popen(sys.executable, LOAD, "ask", *named, **pipes)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for process in (self._client, self._server):
            if process.poll() is None:
                process.communicate(timeout=LIMIT_SECONDS)

    def stop(self):
        """host's name -> when each exchange began, by time.monotonic()"""
        answer, _ = self._client.communicate(timeout=LIMIT_SECONDS)
        assert self._client.returncode == 0
        return json.loads(answer)


@dataclass(frozen=True)
class Record:
    """`number`: of the exchange; `complete`: both sides of it are there."""

    id: str
    host: str
    instance: str
    number: int
    complete: bool


class Topic:
    """What is in a topic; `records` grows with each `read()`."""

    def __init__(self, fleet, name):
        self.records = []
        with inside(fleet.site.namespace):
            self._consumer = Consumer({"bootstrap.servers": fleet.broker, "group.id": "tests"})
        metadata = self._consumer.list_topics(name, timeout=LIMIT_SECONDS).topics[name]
        assert metadata.error is None, metadata.error
        self._next = dict.fromkeys(metadata.partitions, 0)
        self._name = name
        self._consumer.assign([TopicPartition(name, partition, 0) for partition in self._next])

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._consumer.close()

    def read(self):
        """Takes what has been fetched by now, and does not wait for more. Returns all records."""
        while messages := self._consumer.consume(1000, timeout=0):
            for message in messages:
                assert message.error() is None, message.error()
                self._next[message.partition()] = message.offset() + 1
                self.records.append(_record(message))
        return self.records

    def read_to_the_end(self):
        """Reads all that was written before. Returns all records."""
        ends = {
            partition: self._consumer.get_watermark_offsets(TopicPartition(self._name, partition), LIMIT_SECONDS)[1]
            for partition in self._next
        }

        def reached():
            self.read()
            return all(self._next[partition] >= end for partition, end in ends.items())

        until(reached, LIMIT_SECONDS, lambda: f"{self._next} of {ends}")
        return self.records


def _record(message):
    value = json.loads(message.value())
    headers = {name: text.decode() for name, text in message.headers()}
    assert headers["id"] == value["event"]["id"]
    if "url" in value:
        name, number = value["url"]["original"].split("/")[1:]
        assert name == headers["host"], "a host sees its own traffic only"
    else:
        (number,) = value["http"]["response"]["headers"]["x-number"]
    complete = value["http_capture"]["complete"]
    return Record(headers["id"], headers["host"], headers["instance"], int(number), complete)
