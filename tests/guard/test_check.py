"""The self-check of a holder: what it mends, what it only tells, and when it gives up."""

import fcntl
import os
import pathlib
import select
import signal
import socket
import statistics
import subprocess
import time

import pytest
from http_capture import guard
from http_capture.guard.interface import address, probe
from http_capture.guard.pidfile import query

pytestmark = pytest.mark.root

LIMIT = 60
FINE = {"lines": [], "repairs": 0, "faults": 0}


def told(answer):
    return {key: value for key, value in answer.items() if key != "checks"}


def named(pidfile):
    """Whom the kernel names as the holder."""
    there = query(str(pidfile))
    assert there.locked
    assert there.ofd
    return there.blocker


@pytest.fixture
def holder(start, pidfile, nic):
    return start(pidfile, nic).wait()


def opened(path, posix, flags=os.O_RDWR | os.O_CREAT):
    """The file with byte 0 locked: by a POSIX lock, or by one of the guard's kind."""
    fd = os.open(path, flags, 0o600)
    if posix:
        fcntl.lockf(fd, fcntl.LOCK_EX, 1, 0)
    else:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, guard.pidfile.LOCK)
    return fd


def recording(path):
    """As the first remedy does it: the lock, then the capture."""
    eth_p_all = 3
    return opened(path, posix=True), socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(eth_p_all))


def test_all_is_well(holder, pidfile):
    before = pidfile.read_bytes(), pidfile.stat().st_mtime_ns
    for number in range(1, 4):
        assert holder.check() == {"lines": [], "checks": number, "repairs": 0, "faults": 0}
    assert (pidfile.read_bytes(), pidfile.stat().st_mtime_ns) == before


@pytest.mark.alone
def test_it_takes_microseconds(pidfile, nic, record_property):
    held = guard.acquire(str(pidfile), [nic], instance="i", command=["c"])
    took = []
    for _ in range(2000):
        began = time.perf_counter()
        assert held.check() == []
        took.append(time.perf_counter() - began)
    held.release()
    record_property("median_us", round(statistics.median(took) * 1e6, 1))
    assert statistics.median(took) < 0.001


def test_when_it_is_due(pidfile):
    held = guard.acquire(str(pidfile), [], instance="i", command=["c"])
    now = time.monotonic()
    assert not held.due(now)
    assert not held.due(now + 9.9)
    assert held.due(now + 10)
    assert not held.due(now + 19.9)
    assert held.due(now + 20.1)
    held.release()


def test_after_release_it_does_nothing(holder, pidfile):
    holder.tell("release")
    assert told(holder.check()) == FINE
    assert pidfile.read_bytes() == b""
    assert not query(str(pidfile)).locked


def test_the_beacon_is_lit_again(holder, start, pidfile, nic):
    """Closing any descriptor of its file drops it: the file stays locked, and the holder is found in another way."""
    assert named(pidfile) == holder.pid
    holder.tell("read")
    assert named(pidfile) == -1
    second = start(pidfile, nic).wait()
    assert second.exit_code == 75
    assert second.line("holder:").startswith(f"pid {holder.pid},")
    assert told(holder.check()) == FINE
    assert named(pidfile) == holder.pid


def test_somebody_took_the_beacon(holder, pidfile, child):
    holder.tell("read")

    def steal():
        fd = os.open(pidfile, os.O_RDWR)
        fcntl.lockf(fd, fcntl.LOCK_EX, 0, 1)

    pid = child(steal)
    found = holder.check()
    assert f"pid {pid} has locked a part of it" in found["lines"][0]
    assert told(holder.check()) == {"lines": [], "repairs": 0, "faults": 2}


@pytest.mark.parametrize("made", [None, "", "1\n", "x" * 20000])
def test_the_file_was_removed_or_replaced(holder, start, pidfile, nic, made):
    text, inode = pidfile.read_bytes(), pidfile.stat().st_ino
    keep = os.open(pidfile, os.O_RDONLY)  # so that its inode is not used again
    pidfile.unlink()
    if made is not None:
        pidfile.write_text(made)
    assert start(pidfile, nic).wait().exit_code == 75
    found = holder.check()
    assert found["repairs"] == 1
    assert "was removed or replaced" in found["lines"][0]
    assert pidfile.read_bytes() == text
    assert pidfile.stat().st_ino != inode
    assert named(pidfile) == holder.pid
    assert holder.check()["lines"] == []
    assert start(pidfile).wait().exit_code == 75
    links = [os.readlink(f"/proc/{holder.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{holder.pid}/fd")]
    assert [link for link in links if "http-capture" in link] == [str(pidfile)]
    os.close(keep)
    holder.tell("release")
    assert pidfile.read_bytes() == b""


def test_the_folder_was_cleaned(holder, pidfile):
    """As systemd-tmpfiles may: the folder goes too. While it is gone there is nothing that can be locked."""
    pidfile.unlink()
    pidfile.parent.rmdir()
    found = holder.check()
    assert found["faults"] == 1
    assert "its folder does not exist" in found["lines"][0]
    assert told(holder.check()) == {"lines": [], "repairs": 0, "faults": 2}
    pidfile.parent.mkdir()
    assert holder.check()["repairs"] == 1
    assert named(pidfile) == holder.pid


@pytest.mark.parametrize("damage", ["", "1\n", "append", "grow"])
def test_the_text_was_changed(holder, pidfile, damage):
    text = pidfile.read_bytes()
    with open(pidfile, "a" if damage in ("append", "grow") else "w") as file:
        file.write({"append": "x", "grow": "x" * 100000}.get(damage, damage))
    found = holder.check()
    assert found["repairs"] == 1
    assert "its text was changed" in found["lines"][0]
    assert pidfile.read_bytes() == text


def unfit_mode(path):
    path.touch()
    path.chmod(0o666)


def foreign(path):
    path.touch(0o600)
    os.chown(path, 65534, 65534)


def link(path):
    path.with_name("target").write_text("kept")
    path.symlink_to(path.with_name("target"))


UNFIT = [link, os.mkfifo, os.mkdir, unfit_mode, foreign]


@pytest.mark.parametrize("make", UNFIT, ids=lambda make: make.__name__)
def test_what_is_no_pidfile_is_in_its_place(holder, start, pidfile, nic, make):
    """Whoever may write to the folder gets neither the holder to end, nor a second copy, nor a file written."""
    pidfile.unlink()
    make(pidfile)
    first = holder.check()
    assert (first["repairs"], first["faults"]) == (0, 1)
    assert first["lines"][0].startswith(f"pidfile {pidfile}: ")
    assert told(holder.check(20)) == {"lines": [], "repairs": 0, "faults": 21}
    assert start(pidfile, nic).wait().exit_code == 73
    if make is link:
        assert pidfile.with_name("target").read_text() == "kept"
    pidfile.rmdir() if pidfile.is_dir() else pidfile.unlink()
    assert holder.check()["repairs"] == 1
    assert start(pidfile, nic).wait().exit_code == 75


@pytest.mark.parametrize("posix", [True, False])
@pytest.mark.parametrize("nics", [["eth1"], []])
def test_another_users_lock_does_not_end_the_holder(start, open_folder, network, child, nics, posix):
    pidfile = open_folder / "http-capture.pid"
    holder = start(pidfile, *nics).wait()
    pidfile.unlink()
    pid = child(lambda: opened(pidfile, posix), uid=65534)
    assert holder.check(20)["faults"] > 0
    child.kill(pid)
    pidfile.unlink()
    assert holder.check()["repairs"] == 1


def test_the_disk_is_full(start, pidfile, nic):
    folder = pidfile.parent
    holder = start(pidfile, nic, under=[
        "unshare", "-m", "sh", "-c", f'mount -t tmpfs -o size=64k none {folder} && exec "$@"', "sh",
    ]).wait()  # fmt: skip
    there = pathlib.Path(f"/proc/{holder.pid}/root{pidfile}")
    text = there.read_bytes()
    there.write_bytes(b"")
    filler = there.with_name("filler")
    with pytest.raises(OSError, match="No space"):
        filler.write_bytes(bytes(1 << 20))
    found = holder.check()
    assert (found["repairs"], found["faults"]) == (0, 1)
    assert "its file system is full; free space" in found["lines"][0]
    filler.unlink()
    assert holder.check()["repairs"] == 1
    assert there.read_bytes() == text


def test_the_pidfile_of_another_daemon_moved_over_it_does_not_end_the_holder(holder, pidfile, child):
    """By who can write to the folder: it has its lock, and captures nothing."""
    other = pidfile.with_name("other.pid")
    pid = child(lambda: opened(other, posix=True))
    os.replace(other, pidfile)
    found = holder.check(9)
    assert found["faults"] == 1
    assert f"pid {pid} has the lock" in found["lines"][0]
    assert holder.check(20)["faults"] == 21
    child.kill(pid)
    assert holder.check()["repairs"] == 1


def test_a_newcomer_that_has_the_file_for_a_moment_is_waited_for(holder, pidfile, child):
    pidfile.unlink()
    pid = child(lambda: opened(pidfile, posix=False))
    assert told(holder.check(8)) == FINE
    child.kill(pid)
    assert holder.check()["repairs"] == 1
    assert named(pidfile) == holder.pid
    pidfile.unlink()
    child(lambda: recording(pidfile))
    assert "lost" not in holder.check(8)
    assert "lost" in holder.check()


def test_one_of_this_kind_that_keeps_the_file_is_a_fault_as_it_cannot_have_the_nic(holder, pidfile, child):
    pidfile.unlink()
    child(lambda: opened(pidfile, posix=False))
    assert told(holder.check(8)) == FINE
    found = holder.check()
    assert found["faults"] == 1
    assert "another process has the lock" in found["lines"][0]
    assert told(holder.check(20)) == {"lines": [], "repairs": 0, "faults": 21}


def test_it_is_lost_without_the_lock_of_a_nic(start, pidfile):
    holder = start(pidfile).wait()
    pidfile.unlink()
    second = start(pidfile).wait()
    assert second.held
    lost = holder.check(9)
    assert lost["exit"] == 76
    assert f"pidfile {pidfile}: pid {second.pid} has the lock" in lost["lost"]
    assert told(second.check()) == FINE


def test_suspicion_shortens_the_wait(pidfile, child):
    held = guard.acquire(str(pidfile), [], instance="i", command=["c"])
    try:
        pidfile.unlink()
        child(lambda: recording(pidfile))
        now = time.monotonic()
        assert held.due(now + 10)
        for number in range(8):
            assert held.check() == []
            assert not held.due(now + 10 + 0.25 * number + 0.2)
            assert held.due(now + 10 + 0.25 * number + 0.25)
        with pytest.raises(guard.GuardLost):
            held.check()
    finally:
        held.release()


def test_a_suspicion_that_lasts_is_looked_at_as_seldom_as_all(pidfile, nic, child):
    held = guard.acquire(str(pidfile), [nic], instance="i", command=["c"])
    try:
        pidfile.unlink()
        child(lambda: opened(pidfile, posix=False))
        assert [len(held.check()) for _ in range(9)] == [0] * 8 + [1]
        now = time.monotonic()
        assert not held.due(now + 9.5)
        assert held.due(now + 10)
    finally:
        held.release()


def test_a_file_that_a_start_refuses_but_the_first_remedy_takes(holder, pidfile, child):
    """Another user put it there; root's older copy is none the wiser, and runs."""
    pidfile.unlink()
    foreign(pidfile)
    pid = child(lambda: recording(pidfile))
    lost = holder.check(9)
    assert lost["exit"] == 76
    assert f"pid {pid} has the lock" in lost["lost"]


def test_the_lock_was_taken_off(holder, start, pidfile):
    """A worker can do that: they share it."""
    holder.tell("unlock")
    assert not query(str(pidfile)).first
    assert told(holder.check()) == FINE
    assert named(pidfile) == holder.pid


def test_the_lock_was_taken_off_and_another_has_it(start, pidfile, child):
    holder = start(pidfile).wait()
    holder.tell("unlock")
    child(lambda: opened(pidfile, posix=False))
    assert told(holder.check(8)) == FINE
    assert holder.check()["exit"] == 76


def places(holder):
    """What is behind the holder's descriptors, but for the guard's own."""
    links = [os.readlink(f"/proc/{holder.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{holder.pid}/fd")]
    return sorted(link for link in links if "http-capture" not in link and "socket" not in link)


def test_the_descriptor_of_the_file_was_closed(holder, start, pidfile):
    holder.tell("lose pidfile")
    others = places(holder)
    assert not query(str(pidfile)).locked
    found = holder.check()
    assert found["repairs"] == 1
    assert "was closed inside this process" in found["lines"][0]
    assert places(holder) == others
    assert named(pidfile) == holder.pid
    assert holder.check()["lines"] == []
    assert start(pidfile).wait().exit_code == 75


def test_the_descriptor_of_the_nic_was_closed(holder, start, tmp_path, nic):
    index = socket.if_nametoindex(nic)
    holder.tell("lose nic")
    others = places(holder)
    assert probe(index) is None
    found = holder.check()
    assert found["repairs"] == 1
    assert "interface eth1: lost its lock inside this process" in found["lines"][0]
    assert places(holder) == others
    assert start(tmp_path / "other.pid", nic).wait().exit_code == 75
    holder.tell("lose nic")
    second = start(tmp_path / "other.pid", nic).wait()
    assert second.held
    lost = holder.check(9)
    assert lost["exit"] == 76
    assert f"interface eth1: pid {second.pid} has its lock" in lost["lost"]


@pytest.fixture
def cable(network):
    """A NIC that may be deleted and made again: span1."""

    def make(*more):
        subprocess.run(["ip", "link", "add", "span1", *more, "type", "veth", "peer", "name", "span2"], check=True)

    def delete():
        subprocess.run(["ip", "link", "delete", "span1"], check=False, stderr=subprocess.DEVNULL)

    make()
    make.delete = delete
    yield make
    delete()


def test_a_nic_that_was_made_again(start, pidfile, tmp_path, cable):
    holder = start(pidfile, "span1").wait()
    before = socket.if_nametoindex("span1")
    cable.delete()
    assert told(holder.check()) == FINE
    cable()
    assert socket.if_nametoindex("span1") != before
    found = holder.check()
    assert found["repairs"] == 1
    assert found["lines"] == ["interface span1: is a new one, it is locked again"]
    assert probe(before) is None
    assert probe(socket.if_nametoindex("span1")).pid == holder.pid
    assert start(tmp_path / "other.pid", "span1").wait().exit_code == 75


def test_a_nic_that_was_made_again_and_taken(start, pidfile, tmp_path, cable):
    holder = start(pidfile, "span1").wait()
    cable.delete()
    cable()
    second = start(tmp_path / "other.pid", "span1").wait()
    assert second.held
    lost = holder.check(9)
    assert lost["exit"] == 76
    assert f"pid {second.pid} has its lock" in lost["lost"]


def test_a_nic_that_was_made_again_while_another_has_all(start, pidfile, tmp_path, cable):
    """`any` does not exclude what is on a NIC that is gone; of the two, the one that reads all goes on."""
    holder = start(pidfile, "span1").wait()
    cable.delete()
    whole = start(tmp_path / "any.pid", "any").wait()
    assert whole.held
    cable()
    assert holder.check(9)["exit"] == 76


@pytest.mark.parametrize("listening", [True, False])
def test_a_nic_that_was_made_again_and_squatted(start, pidfile, cable, child, listening):
    """Indexes are easy to guess."""
    holder = start(pidfile, "span1").wait()
    cable.delete()
    cable()

    def squat():
        bound = socket.socket(socket.AF_UNIX)
        bound.bind(address(socket.if_nametoindex("span1")))
        if listening:
            bound.listen(1)
        return bound

    child(squat, uid=65534)
    assert told(holder.check(8)) == FINE
    found = holder.check()
    assert found["faults"] == 1
    assert "no http-capture by what can be seen" in found["lines"][0]
    assert told(holder.check(20)) == {"lines": [], "repairs": 0, "faults": 21}


def test_a_nic_that_got_another_name_is_kept(start, pidfile, tmp_path, cable):
    """The holder reads the same one; what has its name now is another's to read."""
    holder = start(pidfile, "span1").wait()
    subprocess.run(["ip", "link", "set", "span1", "name", "span3"], check=True)
    subprocess.run(["ip", "link", "set", "span2", "name", "span1"], check=True)
    try:
        assert told(holder.check()) == FINE
        assert start(tmp_path / "a.pid", "span3").wait().exit_code == 75
        assert start(tmp_path / "b.pid", "span1").wait().held
        assert told(holder.check()) == FINE
    finally:
        subprocess.run(["ip", "link", "delete", "span3"], check=True)


def test_the_queue_is_emptied(holder, nic):
    """Otherwise whoever fills it hides the holder's name for ever."""
    index = socket.if_nametoindex(nic)
    with open("/proc/sys/net/core/somaxconn") as file:
        queue = min(guard.interface.QUEUE, int(file.read()))
    for _ in range(queue + 2):
        probe(index)
    assert probe(index).pid is None
    assert told(holder.check()) == FINE
    assert probe(index).pid == holder.pid


def test_after_privileges_were_dropped(start, open_folder, nic):
    """Neither /proc/self, nor the folder, may then be at its disposal."""
    open_folder.chmod(0o755)
    pidfile = open_folder / "http-capture.pid"
    holder = start(pidfile, nic).wait()
    text = pidfile.read_bytes()
    holder.tell("drop")
    assert told(holder.check()) == FINE
    pidfile.write_bytes(b"")
    assert holder.check()["repairs"] == 1
    assert pidfile.read_bytes() == text
    pidfile.unlink()
    found = holder.check()
    assert "privileges were dropped, so only a new start makes it again" in found["lines"][0]
    assert told(holder.check(20)) == {"lines": [], "repairs": 1, "faults": 21}
    second = start(pidfile, nic).wait()
    assert second.exit_code == 75
    assert second.line("holder:").startswith(f"pid {holder.pid},")
    open_folder.chmod(0o700)
    assert "not permitted for uid 65534" in holder.check()["lines"][0]
    holder.kill()
    assert start(pidfile, nic).wait().held


def test_after_privileges_were_dropped_in_a_folder_of_his(start, open_folder, nic):
    """A file that he made would be refused by a later start of root."""
    pidfile = open_folder / "http-capture.pid"
    holder = start(pidfile, nic).wait()
    holder.tell("drop")
    pidfile.unlink()
    assert holder.check()["faults"] == 1
    assert not pidfile.exists()
    holder.kill()
    assert start(pidfile, nic).wait().held


def test_a_worker_that_outlives_its_parent_blocks_a_start(holder, start, pidfile, nic, tmp_path):
    worker = holder.ask("fork")
    try:
        holder.kill()
        assert named(pidfile) == -1
        for path, nics in ((pidfile, []), (pidfile, [nic]), (tmp_path / "other.pid", [nic])):
            second = start(path, *nics).wait()
            assert second.exit_code == 75
            assert second.line("holder:").startswith(f"pid {worker},")
    finally:
        end = os.pidfd_open(worker)
        os.kill(worker, signal.SIGKILL)
        select.select([end], [], [], LIMIT)
        os.close(end)
    assert start(pidfile, nic).wait().held
