"""One instance per pidfile and NIC: real processes that start beside a holder."""

import contextlib
import fcntl
import json
import os
import pathlib
import re
import resource
import signal
import statistics
import subprocess
import threading
import time

import pytest
from command import COMMAND, environment
from http_capture import guard

pytestmark = pytest.mark.root


def acquire(pidfile, *nics):
    return guard.acquire(str(pidfile), nics, instance="i-1", command=["http-capture"], interface_lock=bool(nics))


def descriptors():
    links = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the one of this listing itself
            links.append(os.readlink(f"/proc/self/fd/{fd}"))
    return sorted(links)


def test_the_text_of_the_holder(start, pidfile, nic):
    holder = start(pidfile, nic, env={"SUPERVISOR_ENABLED": "1", "SUPERVISOR_PROCESS_NAME": "http-capture"}).wait()
    lines = pidfile.read_text().splitlines()
    assert lines[0] == str(holder.pid)
    assert [line.split(": ")[0] for line in lines[1:]] == [
        "boot", "start", "interface", "instance", "launcher", "command",
    ]  # fmt: skip
    assert lines[3:] == [
        "interface: eth1",
        "instance: i-1",
        "launcher: under supervisord (http-capture)",
        f"command: http-capture --iface eth1 --pidfile {pidfile}",
    ]
    assert pidfile.stat().st_mode & 0o777 == 0o600


def test_a_second_start_is_refused(start, pidfile, nic):
    holder = start(pidfile, nic).wait()
    assert holder.held
    before, status = pidfile.read_bytes(), pidfile.stat()
    second = start(pidfile, nic).wait()
    assert second.exit_code == 75
    assert pidfile.read_bytes() == before
    after = pidfile.stat()
    assert (after.st_mtime_ns, after.st_ino, after.st_size) == (status.st_mtime_ns, status.st_ino, status.st_size)
    command = f"http-capture --iface eth1 --pidfile {pidfile}"
    lines = second.error.splitlines()
    assert lines[0] == "http-capture: REFUSED (exit 75): already running on eth1."
    assert re.fullmatch(
        rf"  holder: pid {holder.pid}, up \d+s, started by hand \(user root\), {re.escape(command)}", lines[1]
    )
    assert lines[2:] == [
        f"  held:   {pidfile} (lock), eth1 (interface)",
        "  this start: by hand. Nothing was captured, nothing was sent.",
        f"  to hand over: http-capture stop --pidfile {pidfile} && {command}",
    ]


def test_a_refused_start_keeps_nothing_open_and_imports_little(start, pidfile, nic):
    assert start(pidfile, nic).wait().held
    report = start(pidfile, nic).wait().report
    assert not [fd for fd in report["fds"] if "socket" in fd or "packet" in fd or str(pidfile) in fd]
    heavy = {"msgspec", "confluent_kafka", "scapy", "logging", "dataclasses", "typing", "subprocess", "json"}
    # argparse, which the test's own script needs, is not of the guard; what the guard adds is standard library only.
    assert not heavy & set(report["modules"])
    assert {name for name in report["modules"] if name.startswith("http_capture.")} == {
        "http_capture.guard", "http_capture.guard.holder", "http_capture.guard.interface", "http_capture.guard.pidfile",
        "http_capture.guard.status",
    }  # fmt: skip


def test_a_refusal_opens_no_packet_socket_and_no_connection(start, pidfile, nic, tmp_path):
    """The program itself, with a broker to connect to."""
    assert start(pidfile, nic).wait().held
    trace = tmp_path / "trace"
    program = [*COMMAND, "--iface", nic, "--pidfile", str(pidfile), "--brokers", "127.0.0.1:9092"]
    try:
        refused = subprocess.run(
            ["strace", "-f", "-e", "trace=socket,connect,execve", "-o", str(trace), *program],
            env=environment(PYTHONPATH=str(pathlib.Path(guard.__file__).parents[2])), capture_output=True, timeout=60,
            check=False,
        )  # fmt: skip
    except FileNotFoundError:
        pytest.skip("needs strace")
    assert refused.returncode == 75, refused.stderr
    calls = trace.read_text()
    assert "AF_UNIX" in calls
    assert "AF_PACKET" not in calls
    assert "AF_INET" not in calls


SUPERVISED = {"SUPERVISOR_ENABLED": "1", "SUPERVISOR_PROCESS_NAME": "a", "SUPERVISOR_GROUP_NAME": "span"}


def test_both_supervised(start, pidfile, nic):
    assert start(pidfile, nic, env=SUPERVISED, under=["sh", "-c", '"$@"; exit', "supervisord"]).wait().held
    second = start(pidfile, nic, env={"INVOCATION_ID": "0"}).wait()
    assert "started under supervisord (span:a) (user root)" in second.line("holder:")
    assert second.line("to hand over:").startswith("supervisorctl stop span:a && ")
    third = start(pidfile, nic, env=SUPERVISED).wait()
    assert third.line("this start:").startswith("under supervisord (span:a).")
    assert third.line("to hand over:") == "supervisorctl stop span:a && supervisorctl start span:a"


def test_a_holder_that_its_supervisord_has_left_behind(start, pidfile, nic):
    """supervisorctl knows nothing of it."""
    assert start(pidfile, nic, env=SUPERVISED).wait().held
    second = start(pidfile, nic, env=SUPERVISED).wait()
    assert second.line("to hand over:") == f"http-capture stop --pidfile {pidfile} && supervisorctl start span:a"


def test_json(start, pidfile, nic):
    holder = start(pidfile, nic).wait()
    second = start(pidfile, nic, "--json").wait()
    assert second.error.count("\n") == 1
    told = json.loads(second.error)
    assert told["event"] == "refused"
    assert told["exit"] == 75
    assert told["holder"]["pid"] == holder.pid
    assert told["holder"]["user"] == "root"
    assert told["holder"]["stopped"] is False
    assert told["held"] == [f"{pidfile} (lock)", "eth1 (interface)"]


def test_json_of_anything():
    texts = ["plain", 'a "quoted" \\ \n\t\x1b', "žluťoučký 😀", os.fsdecode(b"\xff")]
    value = {"texts": texts, "none": None, "true": True, "number": 3, "empty": {}, "list": []}
    line = guard._json(value)
    assert line.isascii()
    assert "\n" not in line
    assert json.loads(line) == value


@pytest.mark.alone
@pytest.mark.slow
def test_refusal_is_fast(start, pidfile, nic, record_property):
    assert start(pidfile, nic).wait().held
    took = []
    for _ in range(15):
        refused = start(pidfile, nic).wait()
        assert refused.exit_code == 75
        took.append(refused.seconds)
    record_property("median_ms", round(statistics.median(took) * 1000, 1))
    assert statistics.median(took) < 0.4  # 0.15 on a machine that does nothing else


def test_a_killed_holder_is_followed_at_once(start, pidfile, nic):
    holder = start(pidfile, nic).wait()
    holder.kill()
    assert pidfile.read_text().startswith(f"{holder.pid}\n")
    following = start(pidfile, nic).wait()
    assert following.held
    assert pidfile.read_text().startswith(f"{following.pid}\n")


def test_stale_text_that_names_another_process(start, pidfile, nic):
    holder = start(pidfile, nic).wait()
    holder.kill()
    other = subprocess.Popen(["sleep", "60"])
    try:
        stale = pidfile.read_text().replace(str(holder.pid), str(other.pid), 1)
        pidfile.write_text(stale + "command: what is left of a longer text\n" * 50)
        following = start(pidfile, nic).wait()
        assert following.held
        assert pidfile.read_text().startswith(f"{following.pid}\n")
        assert "longer text" not in pidfile.read_text()
        refused = start(pidfile, nic).wait()
        assert refused.line("holder:").startswith(f"pid {following.pid},")
    finally:
        other.kill()
        other.wait()


def test_text_that_names_another_live_process_is_not_believed(start, pidfile):
    holder = start(pidfile).wait()
    other = subprocess.Popen(["sleep", "60"])
    try:
        with open(f"/proc/{other.pid}/stat") as stat:
            ticks = stat.read().rpartition(")")[2].split()[19]
        text = pidfile.read_text().splitlines()
        pidfile.write_text("\n".join([str(other.pid), text[1], f"start: {ticks}", *text[3:]]))
        assert start(pidfile).wait().line("holder:").startswith(f"pid {holder.pid},")
    finally:
        other.kill()
        other.wait()


def test_the_holder_reads_its_own_pidfile(start, pidfile):
    holder = start(pidfile).wait()
    holder.tell("read")
    assert start(pidfile).wait().exit_code == 75


@pytest.mark.parametrize("replacement", [None, "", "1\n"])
def test_a_removed_or_replaced_pidfile(start, pidfile, nic, replacement):
    holder = start(pidfile, nic).wait()
    pidfile.unlink()
    if replacement is not None:
        pidfile.write_text(replacement)
    second = start(pidfile, nic).wait()
    assert second.exit_code == 75
    assert second.line("holder:").startswith(f"pid {holder.pid},")
    assert second.line("held:") == "eth1 (interface)"
    assert pidfile.read_text() == (replacement or "")


def test_another_pidfile_on_the_same_nic(start, pidfile, nic, tmp_path):
    holder = start(pidfile, nic).wait()
    second = start(tmp_path / "other.pid", nic).wait()
    assert second.exit_code == 75
    assert second.line("holder:").startswith(f"pid {holder.pid},")
    assert second.line("held:") == f"eth1 (interface); its pidfile is {pidfile}"
    assert second.line("to hand over:").startswith(f"http-capture stop --pidfile {pidfile} && ")
    assert (tmp_path / "other.pid").read_bytes() == b""


def test_another_nic_with_another_pidfile_runs(start, pidfile, nic, tmp_path):
    assert start(pidfile, nic).wait().held
    assert start(tmp_path / "other.pid", "eth2").wait().held


def test_another_nic_with_the_same_pidfile_is_told_how(start, pidfile, nic):
    holder = start(pidfile, nic).wait()
    second = start(pidfile, "eth2").wait()
    assert second.exit_code == 75
    assert "already running on eth1." in second.error
    assert second.line("holder:").startswith(f"pid {holder.pid},")
    assert second.line("held:") == f"{pidfile} (lock)"
    assert "--pidfile of its own" in second.line("to run both:")


def test_the_holder_of_the_pidfile_is_named_and_not_the_one_on_the_nic(start, pidfile, nic, tmp_path):
    holder = start(pidfile, nic).wait()
    assert start(tmp_path / "other.pid", "eth2").wait().held
    assert start(pidfile, "eth2").wait().line("holder:").startswith(f"pid {holder.pid},")


def test_a_stopped_holder_is_refused_and_said_to_be_stopped(start, pidfile, nic):
    holder = start(pidfile, nic).wait()
    os.kill(holder.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, holder.pid, os.WSTOPPED | os.WNOWAIT)
    second = start(pidfile, nic).wait()
    assert second.exit_code == 75
    assert "stopped by a signal" in second.line("holder:")
    assert second.line("to hand over:").startswith(f"kill -CONT {holder.pid} && ")


def test_release_empties_and_keeps_the_file(start, pidfile, nic):
    holder = start(pidfile, nic).wait()
    inode = pidfile.stat().st_ino
    holder.tell("release")
    assert pidfile.read_bytes() == b""
    assert pidfile.stat().st_ino == inode
    following = start(pidfile, nic).wait()
    assert following.held
    assert pidfile.stat().st_ino == inode


def test_release_in_a_forked_child_leaves_the_guard(pidfile, nic):
    held = acquire(pidfile, nic)
    child = os.fork()
    if child == 0:
        held.release()
        os._exit(0)
    os.waitpid(child, 0)
    assert pidfile.read_text().startswith(f"{os.getpid()}\n")
    with pytest.raises(guard.AlreadyRunning):
        acquire(pidfile, nic)
    held.release()
    acquire(pidfile, nic).release()


def test_a_refusal_leaves_no_descriptor(pidfile, nic, tmp_path):
    held = acquire(pidfile, nic)
    before = descriptors()
    for path, nics in ((pidfile, [nic]), (tmp_path / "b.pid", ["eth2", nic]), (tmp_path, [nic]), (pidfile, ["eth9"])):
        with pytest.raises(guard.GuardError):
            acquire(path, *nics)
    assert descriptors() == before
    held.release()
    assert len(descriptors()) < len(before)


def test_a_program_that_the_holder_starts_has_no_lock(start, pidfile, nic):
    held = acquire(pidfile, nic)
    helper = subprocess.Popen(["sh", "-c", "echo; read x"], stdin=-1, stdout=-1, close_fds=False)
    with helper:
        helper.stdout.readline()
        held.release()
        assert start(pidfile, nic).wait().held
        helper.kill()


@pytest.mark.parametrize("more", range(6))
def test_without_descriptors(pidfile, nic, more):
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + more, limits[1]))
    try:
        if more > 2:
            acquire(pidfile, nic).release()
        else:
            with pytest.raises(guard.GuardError) as caught:
                acquire(pidfile, nic)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert more > 2 or caught.value.exit_code == 73


def test_standard_streams_that_are_closed_are_not_taken(start, pidfile, nic):
    holder = start(pidfile, nic, under=["sh", "-c", 'exec "$@" 2>&-', "sh"]).wait()
    assert holder.held
    links = {fd: os.readlink(f"/proc/{holder.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{holder.pid}/fd")}
    assert all(int(fd) > 2 for fd, link in links.items() if link == str(pidfile) or link.startswith("socket:"))


def test_a_relative_path_is_told_from_the_root(start, pidfile):
    assert start(pidfile).wait().held
    assert start(pidfile.name, cwd=pidfile.parent).wait().line("held:") == f"{pidfile} (lock)"


def test_without_the_lock_of_the_nic(pidfile, nic, tmp_path):
    options = {"instance": "i-1", "command": ["http-capture"], "interface_lock": False}
    first = guard.acquire(str(pidfile), [nic], **options)
    second = guard.acquire(str(tmp_path / "other.pid"), [nic], **options)
    assert "interface: eth1\n" in pidfile.read_text()
    first.release()
    second.release()


def test_the_holder_of_another_user_cannot_be_looked_into(start, pidfile, nic, open_folder):
    holder = start(pidfile, nic).wait()
    second = start(open_folder / "other.pid", nic, "--uid", 65534).wait()
    assert second.exit_code == 75
    assert second.line("holder:").startswith(f"pid {holder.pid}, up ")
    assert "started in an unknown way (user root)" in second.line("holder:")


def test_a_holder_in_another_pid_namespace(start, pidfile, nic, tmp_path):
    """Seen from inside, the holder has no pid; seen from outside, the one inside has."""
    holder = start(pidfile, nic).wait()
    inside = ["unshare", "--pid", "--fork", "--mount-proc"]
    try:
        second = start(pidfile, nic, under=inside).wait()
    except FileNotFoundError:
        pytest.skip("needs unshare")
    assert second.exit_code == 75
    assert second.line("holder:").startswith("in another pid namespace")
    assert f"its pidfile says pid {holder.pid}, by hand, http-capture --iface eth1" in second.line("holder:")
    by_nic = start(tmp_path / "other.pid", nic, under=inside).wait()
    assert by_nic.exit_code == 75
    assert by_nic.line("holder:").startswith("in another pid namespace")
    holder.kill()
    assert start(pidfile, nic, under=inside).wait().held
    outside = start(pidfile, nic).wait()
    assert outside.exit_code == 75
    assert re.match(r"pid \d+, in another pid and mount namespace, up \d+s", outside.line("holder:"))


def test_a_private_mount_namespace_does_not_hide_the_nic(start, pidfile, nic):
    holder = start(pidfile, nic).wait()
    hidden = ["unshare", "-m", "sh", "-c", f'mount -t tmpfs none {pidfile.parent} && exec "$@"', "sh"]
    second = start(pidfile, nic, under=hidden).wait()
    assert second.exit_code == 75
    assert second.line("holder:").startswith(f"pid {holder.pid}, in another mount namespace")
    assert second.line("to hand over:").startswith(f"kill {holder.pid} && ")


def test_another_network_namespace_with_the_same_pidfile(start, pidfile, nic):
    assert start(pidfile, nic).wait().held
    second = start(pidfile, "lo", under=["unshare", "-n"]).wait()
    assert second.exit_code == 75
    assert "in another network namespace" in second.line("holder:")
    assert "--pidfile of its own" in second.line("to run both:")


@pytest.mark.parametrize("text", ["", "not one of ours\n"])
def test_the_kernel_names_a_holder_that_may_not_be_looked_into(start, open_folder, text):
    """After a change of user /proc hides a process from others of that user, and the text may say anything."""
    path = open_folder / "http-capture.pid"
    holder = start(path, "--uid", 65534).wait()
    assert holder.held
    path.write_text(text)
    second = start(path, "--json", "--uid", 65534).wait()
    assert second.exit_code == 75
    told = json.loads(second.error)["holder"]
    assert (told["pid"], told["source"]) == (holder.pid, "lock")


def test_a_holder_that_has_not_lit_its_beacon_yet_is_waited_for(pidfile, child, root):
    def lock():
        fd = os.open(pidfile, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, guard.pidfile.LOCK)
        threading.Timer(0.02, fcntl.fcntl, (fd, fcntl.F_SETLK, guard.pidfile.BEACON)).start()

    pid = child(lock)
    with pytest.raises(guard.AlreadyRunning) as refused:
        acquire(pidfile)
    assert (refused.value.holder.pid, refused.value.holder.source) == (pid, "lock")


def test_another_program_that_has_locked_the_file(start, pidfile, nic):
    pidfile.touch(0o600)
    program = "import fcntl, sys; f = open(sys.argv[1], 'r+'); fcntl.lockf(f, 2); print(flush=True); input()"
    with subprocess.Popen(["python3", "-c", program, str(pidfile)], stdin=-1, stdout=-1) as other:
        other.stdout.readline()
        second = start(pidfile, nic).wait()
        other.kill()
    assert second.exit_code == 75
    assert "already running, or blocked by another program." in second.error
    assert second.line("holder:").startswith(f"pid {other.pid},")
    assert "an older http-capture, or another program" in second.line("note:")
    assert second.line("to hand over:").startswith(f"kill {other.pid} && ")


def test_a_lock_on_the_rest_of_the_file_refuses_too(start, pidfile, nic):
    pidfile.touch(0o600)
    program = "import fcntl, sys; f = open(sys.argv[1], 'r+'); fcntl.lockf(f, 2, 0, 1); print(flush=True); input()"
    with subprocess.Popen(["python3", "-c", program, str(pidfile)], stdin=-1, stdout=-1) as other:
        other.stdout.readline()
        second = start(pidfile, nic).wait()
        other.kill()
    assert second.exit_code == 75
    assert second.line("holder:").startswith(f"pid {other.pid},")
    assert start(pidfile, nic).wait().held


@pytest.mark.slow
@pytest.mark.parametrize("shared", ["pidfile", "nic"])
def test_of_a_hundred_at_once_one_runs(start, pidfile, nic, tmp_path, shared):
    """20 times, each after kill -9 of the one before. On the pidfile alone, or on the NIC alone."""
    crowd = start(pidfile, *([nic] if shared == "nic" else ()), "--many", 100).wait()
    for number in range(20):
        path = pidfile if shared == "pidfile" else tmp_path / f"{number}-{{}}.pid"
        told = crowd.ask(f"go {path}")
        running = [pid for pid, code, _ in told if code is None]
        assert len(running) == 1
        assert [each for each in told if each[1:] not in ([None, None], [75, running[0]])] == []
        crowd.ask("kill")


@pytest.mark.slow
def test_of_a_hundred_programs_at_once_one_runs(start, pidfile, nic, tmp_path):
    """The same with what is started by exec: first on the pidfile, then, after kill -9, on the NIC."""
    for paths in ([pidfile] * 100, [tmp_path / f"{each}.pid" for each in range(100)]):
        starts = [start(path, nic) for path in paths]
        for each in starts:
            each.wait()
        running = [each for each in starts if each.held]
        assert len(running) == 1
        refused = [each for each in starts if not each.held]
        assert [each.error for each in refused if each.exit_code != 75] == []
        named = f"pid {running[0].pid},"
        assert [each.line("holder:") for each in refused if not each.line("holder:").startswith(named)] == []
        running[0].kill()


def test_time_does_not_steal(start, pidfile, nic):
    """However old the file is, the lock counts."""
    assert start(pidfile, nic).wait().held
    os.utime(pidfile, (0, 0))
    assert start(pidfile, nic).wait().exit_code == 75
    assert time.time() - pidfile.stat().st_mtime > 1e9
