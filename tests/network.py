"""Network namespaces and veth pairs for tests that need real NICs. Everything made here is removed on the way out.

    with veth() as pair, inside(pair.namespace): ...

Namespaces have loopback up, and no IPv6, so nothing but the test itself puts frames on a link.
"""

import contextlib
import ctypes
import functools
import itertools
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

CLONE_NEWNET = 0x40000000
ETH_P_ALL = 3
_numbers = itertools.count()


@dataclass(frozen=True)
class Pair:
    """Two ends of one cable in one namespace: what goes into `near` comes out of `far`, and the other way round."""

    namespace: str
    near: str
    far: str


@dataclass(frozen=True)
class Hosts:
    """Two namespaces, joined by a cable. Each has one NIC of that name and address; a /24 on it."""

    client: str
    client_nic: str
    client_address: str
    server: str
    server_nic: str
    server_address: str


@functools.cache
def why_not() -> str:
    """Why no network namespace can be made here; empty where it can."""
    if os.geteuid() != 0:
        return "needs root for network namespaces"
    if shutil.which("ip") is None:
        return "needs ip (iproute2)"
    try:
        with veth():
            return ""
    except (OSError, subprocess.CalledProcessError) as error:
        return f"no network namespaces here: {error}"


def needs_network(test):  # type: ignore[no-untyped-def]
    """Marks a test as `root`, and skips it with the reason where it cannot run."""
    import pytest  # the benchmarks, which use the rest, run where there is none

    return pytest.mark.root(pytest.mark.skipif(bool(why_not()), reason=why_not())(test))


def unprivileged() -> list[str]:
    """The beginning of a command that runs the rest as another user, without any capability; setpriv(1).

    It may read everything, as the interpreter of the tests may lie in the home of root."""
    return ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all,+dac_read_search",
            "--ambient-caps=-all,+dac_read_search", "--bounding-set=-all,+dac_read_search"]  # fmt: skip


def ip(*arguments: str, namespace: str = "") -> None:
    """Runs ip(8); CalledProcessError with its message where it fails."""
    prefix = ("-n", namespace) if namespace else ()
    subprocess.run(("ip", *prefix, *arguments), check=True, capture_output=True, text=True, timeout=30)


@contextlib.contextmanager
def namespace() -> Iterator[str]:
    """A new network namespace; yields its name. Ends what still runs in it, then deletes it."""
    name = f"hc{os.getpid()}-{next(_numbers)}"
    ip("netns", "add", name)
    try:
        with inside(name):
            for scope in ("all", "default"):
                with contextlib.suppress(OSError), open(f"/proc/sys/net/ipv6/conf/{scope}/disable_ipv6", "w") as file:
                    file.write("1")
        ip("link", "set", "lo", "up", namespace=name)
        yield name
    finally:
        # A namespace lives on, with its NICs, while a process is in it.
        found = subprocess.run(("ip", "netns", "pids", name), capture_output=True, text=True, timeout=30, check=False)
        for pid in found.stdout.split():
            if int(pid) != os.getpid():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), 9)
        ip("netns", "delete", name)


@contextlib.contextmanager
def inside(name: str) -> Iterator[None]:
    """This thread is in that namespace, by name or path; sockets opened and processes started here stay in it."""
    libc = ctypes.CDLL(None, use_errno=True)

    def enter(descriptor: int) -> None:
        if libc.setns(descriptor, CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        there = os.open(os.path.join("/run/netns", name), os.O_RDONLY)
        try:
            enter(there)
        finally:
            os.close(there)
        try:
            yield
        finally:
            enter(before)
    finally:
        os.close(before)


@contextlib.contextmanager
def veth(mtu: int = 9000) -> Iterator[Pair]:
    """A namespace with the two ends of a cable, up."""
    with namespace() as name:
        pair = Pair(name, "near0", "far0")
        ip("link", "add", pair.near, "mtu", str(mtu), "type", "veth", "peer", "name", pair.far, "mtu", str(mtu),
           namespace=name)  # fmt: skip
        for end in (pair.near, pair.far):
            ip("link", "set", end, "up", namespace=name)
        yield pair


@contextlib.contextmanager
def hosts(mtu: int = 1500) -> Iterator[Hosts]:
    """A client and a server that can reach each other over IPv4."""
    with namespace() as client, namespace() as server:
        two = Hosts(client, "cli0", "10.77.0.1", server, "srv0", "10.77.0.2")
        ip("link", "add", two.client_nic, "mtu", str(mtu), "type", "veth", "peer", "name", two.server_nic, "mtu",
           str(mtu), "netns", server, namespace=client)  # fmt: skip
        for host, nic, address in (
            (client, two.client_nic, two.client_address),
            (server, two.server_nic, two.server_address),
        ):
            ip("address", "add", f"{address}/24", "dev", nic, namespace=host)
            ip("link", "set", nic, "up", namespace=host)
        yield two


@contextlib.contextmanager
def sender(name: str, nic: str) -> Iterator[socket.socket]:
    """A socket that sends whole frames on a NIC of that namespace: `.send(frame)`. It receives nothing."""
    with inside(name):
        raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    with raw:
        with inside(name):
            raw.bind((nic, 0))
        yield raw
