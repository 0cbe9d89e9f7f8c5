"""The lock of a NIC."""

import os
import socket

import pytest
from http_capture import guard
from http_capture.guard import NoSuchInterface, interface
from http_capture.guard.interface import Held, Interfaces, address, probe, resolve

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("network")]


@pytest.fixture
def locks():
    """Makes locks that are gone after the test."""
    made = []

    def make(*names):
        made.append(Interfaces())
        made[-1].take(resolve(names))
        return made[-1]

    yield make
    for each in made:
        each.release()


def test_resolve():
    assert resolve(["eth1", "any"]) == {socket.if_nametoindex("eth1"): "eth1", 0: "any"}
    assert resolve(["eth1", "eth1"]) == {socket.if_nametoindex("eth1"): "eth1"}


@pytest.mark.parametrize("name", ["eth9", "", "a\nb", "nul\0", "x" * 100])
def test_a_nic_that_does_not_exist(name, tmp_path):
    with pytest.raises(NoSuchInterface, match=r"there are: eth1, eth2, lo") as caught:
        guard.acquire(str(tmp_path / "pid"), ["eth1", name], instance="i", command=["c"])
    assert caught.value.exit_code == 69
    assert isinstance(caught.value, LookupError)
    assert str(caught.value).isprintable()
    assert not (tmp_path / "pid").exists()
    assert probe(socket.if_nametoindex("eth1")) is None


def test_one_holds_it(locks):
    index = socket.if_nametoindex("eth1")
    assert probe(index) is None
    first = locks("eth1")
    peer = probe(index)
    assert (peer.pid, peer.uid) == (os.getpid(), os.geteuid())
    assert peer.ours()
    with pytest.raises(Held) as held:
        locks("eth1")
    assert (held.value.index, held.value.name, held.value.peer.pid) == (index, "eth1", os.getpid())
    first.release()
    first.release()
    assert probe(index) is None
    locks("eth1")


def test_several_or_none(locks):
    locks("eth2")
    with pytest.raises(Held):
        locks("eth1", "lo", "eth2")
    locks("eth1", "lo")


def test_they_are_taken_in_the_order_of_their_index(locks):
    first, second = sorted(("eth1", "eth2"), key=socket.if_nametoindex)
    locks(first, second)
    with pytest.raises(Held) as held:
        locks(second, first)
    assert held.value.name == first


def test_any_excludes_all(locks):
    whole = locks("any")
    with pytest.raises(Held) as held:
        locks("eth1")
    assert (held.value.index, held.value.name) == (0, "any")
    whole.release()
    locks("eth1")
    with pytest.raises(Held) as held:
        locks("any")
    assert held.value.name == "eth1"


def test_a_renamed_nic_is_the_same(locks):
    locks("eth1")
    os.system("ip link set eth1 name span0")
    try:
        with pytest.raises(Held):
            locks("span0")
    finally:
        os.system("ip link set span0 name eth1")


def test_a_full_queue_neither_hangs_nor_frees(start, tmp_path):
    holder = start(tmp_path / "a.pid", "eth1").wait()
    index = socket.if_nametoindex("eth1")
    with open("/proc/sys/net/core/somaxconn") as file:
        queue = min(interface.QUEUE, int(file.read()))
    for _ in range(queue + 2):
        assert probe(index) is not None
    assert probe(index).pid is None
    second = start(tmp_path / "b.pid", "eth1").wait()
    assert second.exit_code == 75
    assert second.line("holder:").startswith(f"pid {holder.pid},")


@pytest.fixture
def squatter(child):
    """Binds the name of eth1 as this user, and listens if told to: `squatter(uid, listening)` gives its pid."""

    def squat(uid, listening):
        def bind():
            bound = socket.socket(socket.AF_UNIX)
            bound.bind(address(socket.if_nametoindex("eth1")))
            if listening:
                bound.listen(1)
            return bound

        return child(bind, uid)

    return squat


@pytest.mark.parametrize("listening", [True, False])
def test_a_squatter_of_another_user(start, tmp_path, squatter, listening):
    pid = squatter(65534, listening)
    second = start(tmp_path / "pid", "eth1").wait()
    assert second.exit_code == 73
    assert f"pid {pid}," in second.error
    assert "another user's process has its lock" in second.error
    assert second.error.count("\n") == 1
    assert (tmp_path / "pid").read_bytes() == b""


def test_a_squatter_that_does_not_listen_is_not_taken_for_a_copy(start, tmp_path, squatter):
    pid = squatter(0, False)
    second = start(tmp_path / "pid", "eth1").wait()
    assert second.exit_code == 75
    assert "already running, or blocked by another program, on eth1." in second.error
    assert second.line("holder:").startswith(f"pid {pid},")
    assert "does not listen there as an http-capture does" in second.line("note:")
    assert second.line("note:").endswith(f"ps -fp {pid}")
    assert second.line("to hand over:").startswith(f"kill {pid} && ")


def test_a_squatter_that_cannot_be_looked_into(start, open_folder, squatter):
    squatter(0, False)
    second = start(open_folder / "pid", "eth1", "--uid", 65534).wait()
    assert second.exit_code == 75
    assert "may not be looked into" in second.line("holder:")
    assert second.line("note:").endswith("ss -xap, as root")
    assert second.line("to hand over:").startswith("as root: http-capture verify")
