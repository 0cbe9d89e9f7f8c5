"""Steps of the guard that only a race, an odd system or the whole program shows to be there."""

import contextlib
import ctypes
import fcntl
import json
import os
import resource
import select
import signal
import socket
import stat
import subprocess
import sys
import time

import pytest
from command import COMMAND, environment
from http_capture import guard
from http_capture.guard import GuardError, interface
from http_capture.guard.pidfile import Pidfile, Query, query
from http_capture.guard.stop import stop
from network import ip
from supervisord import syslog_socket, under_syslog

pytestmark = pytest.mark.root
LIMIT = 60  # seconds that a start may take on a busy machine
SOON = 8  # seconds for what takes milliseconds
IN_OPEN = 0x20
CHECKED_OFTEN = """
import sys
from http_capture import guard
guard.CHECK_SECONDS, guard.SUSPECT_SECONDS = 0.5, 0.05
from http_capture.capture.cli import main
sys.exit(main(sys.argv[1:]))
"""
PARENT = "import subprocess, sys; subprocess.Popen(sys.argv[1:]).wait()"
LOOK = """
import json, sys
from http_capture.guard.status import look
events = []
sys.addaudithook(lambda name, values: events.append([name, *map(str, values)]))
code = look(sys.argv[1], ["eth1", "eth2"]).code
told = list(events)
print(json.dumps([code, told]))
"""


def eventually(what):
    deadline = time.monotonic() + SOON
    while not (found := what()):
        assert time.monotonic() < deadline, "this has not come"
        time.sleep(0.01)
    return found


@contextlib.contextmanager
def alarm():
    """What waits in here fails."""

    def ring(number, frame):
        pytest.fail("it waits")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, SOON)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def at_once(one):
    """The start, which may wait for nobody."""
    assert select.select([one.process.stdout], [], [], SOON)[0], "it waits"
    return one.wait()


# --- The pidfile


def test_a_lease_is_not_waited_for(start, pidfile):
    pidfile.touch(0o600)
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    with open(pidfile) as file:
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        refused = at_once(start(pidfile))
    signal.signal(signal.SIGIO, before)
    assert refused.exit_code == 73
    assert "lease" in refused.error


def test_the_lock_is_not_waited_for(start, pidfile):
    holder = start(pidfile).wait()
    holder.tell("read")
    assert at_once(start(pidfile)).exit_code == 75


@pytest.mark.parametrize("look", [Pidfile.take, query])
def test_a_device_is_not_opened(root, pidfile, look):
    os.mknod(pidfile, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    libc = ctypes.CDLL(None, use_errno=True)
    watch = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        assert libc.inotify_add_watch(watch, os.fsencode(pidfile), IN_OPEN) > 0
        with pytest.raises(GuardError, match="is a device"):
            look(str(pidfile))
        with pytest.raises(BlockingIOError):
            os.read(watch, 4096)
        os.close(os.open(pidfile, os.O_RDONLY))
        assert os.read(watch, 4096)
    finally:
        os.close(watch)


@pytest.mark.parametrize("kind", ["fifo", "link"])
def test_a_query_of_what_was_a_file_a_moment_ago(pidfile, monkeypatch, kind):
    def swapped(path):
        status = real(path)
        pidfile.unlink()
        if kind == "fifo":
            os.mkfifo(pidfile)
        else:
            pidfile.with_name("target").touch()
            pidfile.symlink_to("target")
        return status

    pidfile.touch()
    real = os.lstat
    monkeypatch.setattr(os, "lstat", swapped)
    with alarm(), pytest.raises((GuardError, OSError)):
        query(str(pidfile))


def test_no_program_gets_a_lock_that_was_moved_up(start, pidfile, nic):
    """Above a standard stream that was closed: to copy a descriptor does not copy that it is closed by exec."""
    holder = start(pidfile, nic, under=["sh", "-c", 'exec "$@" 2>&-', "sh"]).wait()
    found = {}
    for fd in os.listdir(f"/proc/{holder.pid}/fd"):
        with open(f"/proc/{holder.pid}/fdinfo/{fd}") as info:
            flags = next(int(line.split()[1], 8) for line in info if line.startswith("flags:"))
        found[os.readlink(f"/proc/{holder.pid}/fd/{fd}").partition(":")[0]] = flags
    assert found[str(pidfile)] & os.O_CLOEXEC
    assert found["socket"] & os.O_CLOEXEC


@pytest.mark.parametrize("stale", ["", "1\n" + "x" * 5000], ids=["new", "long"])
def test_a_text_that_is_cut_short(start, pidfile, stale):
    """write(2) may take a part of it and call that a success."""
    pidfile.write_text(stale)
    pidfile.chmod(0o600)
    refused = start(pidfile, under=["prlimit", "--fsize=50"], env={"PYTHONDONTWRITEBYTECODE": "1"}).wait()
    assert refused.exit_code == 73
    assert refused.error.count("\n") == 1
    assert pidfile.read_bytes() == b""


def test_the_nic_is_free_after_a_text_that_was_cut_short(pidfile, nic):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, before[1]))
    try:
        with pytest.raises(GuardError, match="full"):
            guard.acquire(str(pidfile), [nic], instance="i", command=["c"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert interface.probe(socket.if_nametoindex(nic)) is None


def test_a_file_system_that_was_mounted_over(start, pidfile, root):
    """Another file, with the same inode number."""
    folder = pidfile.parent
    mount = f"mount -t tmpfs none {folder}"
    holder = start(pidfile, under=["unshare", "-m", "sh", "-c", f'{mount} && exec "$@"', "sh"]).wait()
    there = f"/proc/{holder.pid}/root{pidfile}"
    locked = os.stat(there)
    over = ["nsenter", "-t", str(holder.pid), "-m", "sh", "-c", f"{mount} && umask 077 && : >{pidfile}"]
    subprocess.run(over, check=True, timeout=LIMIT)
    other = os.stat(there)
    if other.st_ino != locked.st_ino:
        pytest.skip("two tmpfs do not number their files alike here")
    assert other.st_dev != locked.st_dev
    assert holder.check()["repairs"] == 1
    with open(there) as text:
        assert text.readline() == f"{holder.pid}\n"


def test_a_link_to_the_file_that_was_moved(start, pidfile):
    """A start would refuse the link, so it is no name of the locked file."""
    holder = start(pidfile).wait()
    pidfile.rename(pidfile.with_name("moved"))
    pidfile.symlink_to("moved")
    assert holder.check()["faults"] == 1


def test_what_is_locked_is_kept_until_another_is(start, pidfile):
    holder = start(pidfile).wait()
    with open(pidfile) as before:
        pidfile.unlink()
        pidfile.mkdir()
        assert holder.check()["faults"] == 1
        there = Query(str(pidfile), before.fileno())
        assert (there.locked, there.ofd, there.blocker) == (True, True, holder.pid)
        pidfile.rmdir()
        assert holder.check()["repairs"] == 1
        assert not Query(str(pidfile), before.fileno()).locked


def test_text_about_another_process_does_not_name_it(start, pidfile):
    """Not even where the kernel does not name the holder."""
    holder = start(pidfile).wait()
    other = start(pidfile.with_name("other.pid")).wait()
    holder.tell("read")
    pidfile.write_bytes(pidfile.with_name("other.pid").read_bytes())
    assert start(pidfile).wait().line("holder:").startswith(f"pid {holder.pid}, ")
    assert other.held


def test_a_stop_waits_for_whoever_has_the_lock_still(start, pidfile, nic):
    holder = start(pidfile, nic).wait()
    worker = holder.ask("fork")
    time.sleep(0.1)
    try:
        outcome = stop(
            str(pidfile), [nic], timeout_seconds=0.5, kill=False, told=lambda one: holder.process.wait(LIMIT)
        )
        assert (outcome.what, outcome.holder.pid, outcome.next.pid) == ("running", holder.pid, worker)
    finally:
        os.kill(worker, signal.SIGKILL)


def test_a_look_locks_nothing_and_writes_nothing(start, pidfile, nic):
    assert start(pidfile, nic).wait().held
    done = subprocess.run(
        [sys.executable, "-c", LOOK, pidfile], env=environment(), capture_output=True, text=True, timeout=LIMIT
    )
    code, events = json.loads(done.stdout)
    assert code == 0
    assert {command for name, _, command, _ in (each for each in events if each[0] == "fcntl.fcntl")} == {
        str(fcntl.F_OFD_GETLK)
    }
    assert not [each for each in events if each[0] in ("fcntl.flock", "fcntl.lockf", "socket.bind", "socket.listen")]
    flags = {int(each[3]) for each in events if each[:2] == ["open", str(pidfile)]}
    assert flags
    assert not [each for each in flags if each & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)]


# --- The NIC


def test_a_look_at_a_full_queue_does_not_wait(network):
    index = socket.if_nametoindex("eth1")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(interface.address(index))
        bound.listen(0)
        with alarm():
            peers = [interface.probe(index) for _ in range(5)]
    assert all(peers)
    assert peers[-1].pid is None


@pytest.mark.parametrize(("first", "second"), [("eth1", "any"), ("any", "eth1")])
def test_any_and_one_at_the_same_time(network, monkeypatch, first, second):
    """The second starts when the first has looked for it and seen nobody."""
    held = []
    locks = {name: interface.Interfaces() for name in (first, second)}

    def take(name):
        with contextlib.suppress(interface.Held):
            locks[name].take(interface.resolve([name]))
            held.append(name)

    def probe(index):
        peer = real(index)
        monkeypatch.setattr(interface, "probe", real)
        take(second)
        return peer

    real = interface.probe
    monkeypatch.setattr(interface, "probe", probe)
    take(first)
    for each in locks.values():
        each.release()
    assert len(held) == 1


# --- The whole program


class Program:
    """The program on a NIC."""

    def __init__(self, folder, pidfile, *arguments, nic="eth1", command=COMMAND, under=()):
        self.errors = folder / "errors"
        words = [*under, *command, "--iface", nic, "--pidfile", pidfile, "--sink", "null", "--json", *arguments]
        with open(self.errors, "wb") as errors:
            self.process = subprocess.Popen(
                list(map(str, words)), stdin=subprocess.DEVNULL, stderr=errors, env=environment()
            )

    def recording(self):
        deadline = time.monotonic() + LIMIT
        while "recording " not in self.said:
            assert self.process.poll() is None, self.said
            assert time.monotonic() < deadline, self.said
            time.sleep(0.01)

    @property
    def said(self):
        return self.errors.read_text()


@pytest.fixture
def program(tmp_path, pidfile, network):
    running = []

    def begin(*arguments, **options):
        for name in ("eth1", "eth2"):
            ip("link", "set", name, "up")
        running.append(Program(tmp_path, pidfile, *arguments, **options))
        running[-1].recording()
        return running[-1]

    yield begin
    for each in running:
        each.process.kill()
        each.process.wait()


POWERLESS = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]


@pytest.mark.parametrize(
    ("before", "arguments"), [([], []), (POWERLESS, []), ([], ["--sink", "file:/none/records"])]
)  # fmt: skip
def test_a_second_copy_is_refused_before_anything_else(start, run, pidfile, nic, before, arguments):
    """Even one that could open neither the NIC nor its output, and would end with another code."""
    holder = start(pidfile, nic).wait()
    done = run("--iface", nic, "--pidfile", pidfile, *arguments, before=before)
    assert done.returncode == 75, done.stderr
    text = done.stderr.splitlines()
    assert text[0] == "http-capture: REFUSED (exit 75): already running on eth1."
    assert text[1].startswith(f"  holder: pid {holder.pid}, ")
    told = json.loads(text[-1])
    assert (told["event"], told["exit"], told["holder"]["pid"]) == ("refused", 75, holder.pid)


def test_a_refusal_goes_to_syslog(start, run, pidfile, nic, tmp_path):
    holder = start(pidfile, nic).wait()
    with syslog_socket(tmp_path) as log:
        log.settimeout(SOON)
        assert run("--iface", nic, "--pidfile", pidfile, before=under_syslog(tmp_path)).returncode == 75
        logged = log.recv(1 << 16)
    assert b"http-capture: REFUSED (exit 75)" in logged
    assert b"holder: pid %d, " % holder.pid in logged


def test_an_unfit_pidfile_ends_the_program(run, pidfile, nic):
    pidfile.symlink_to("target")
    done = run("--iface", nic, "--pidfile", pidfile)
    assert done.returncode == 73
    assert done.stderr.startswith(f"http-capture: REFUSED (exit 73): pidfile {pidfile}: is a symbolic link, ")


def test_a_run_from_its_start_to_its_end(program, pidfile):
    one = program()
    assert pidfile.read_text().startswith(f"{one.process.pid}\n")
    inode = pidfile.stat().st_ino
    one.process.terminate()
    assert one.process.wait(LIMIT) == 0
    assert (pidfile.read_bytes(), pidfile.stat().st_ino) == (b"", inode)
    ledger = next(json.loads(line) for line in one.said.splitlines() if '"event": "ledger"' in line)
    assert ledger["guard"] == {"checks": 1, "repairs": 0, "faults": 0}  # once the NIC was open


def test_a_run_mends_its_guard(program, pidfile):
    one = program(command=[sys.executable, "-c", CHECKED_OFTEN])
    text = pidfile.read_bytes()
    pidfile.unlink()
    eventually(lambda: pidfile.exists() and pidfile.read_bytes() == text)
    eventually(lambda: "was removed or replaced" in one.said)
    assert one.process.poll() is None


def test_a_run_ends_when_its_guard_is_lost(program, pidfile, child):
    one = program("--no-interface-lock", command=[sys.executable, "-c", CHECKED_OFTEN])
    new = pidfile.with_name("new")
    new.touch(0o600)
    child(lambda: fcntl.lockf(os.open(new, os.O_RDWR), fcntl.LOCK_EX))
    new.rename(pidfile)
    assert one.process.wait(SOON) == 76
    assert "http-capture verify shows who records" in one.said
    assert "Traceback" not in one.said


def test_a_run_does_not_read_a_new_nic_that_another_has(program):
    """By a check at once, and not by the next one, seconds later."""

    def make(*more):
        ip("link", "add", "span1", *more, "type", "veth", "peer", "name", "span2")
        ip("link", "set", "span1", "up")
        ip("link", "set", "span2", "up")

    make()
    try:
        one = program(nic="span1")
        ip("link", "delete", "span1")
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(interface.address(777))
            other.listen(100)
            make("index", "777")
            assert one.process.wait(SOON) == 76
    finally:
        ip("link", "delete", "span1")
    assert f"interface span1: pid {os.getpid()} has its lock now" in one.said


@pytest.mark.parametrize("arguments", [[], ["--user", "65534:65534"]])
def test_a_run_ends_with_its_parent(program, pidfile, arguments):
    one = program("--die-with-parent", *arguments, under=[sys.executable, "-c", PARENT])
    end = os.pidfd_open(int(pidfile.read_text().split()[0]))
    try:
        one.process.kill()
        one.process.wait(LIMIT)
        assert select.select([end], [], [], SOON)[0], "it lives on"
    finally:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(end, signal.SIGKILL)
        os.close(end)
