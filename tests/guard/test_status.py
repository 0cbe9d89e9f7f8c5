"""Whether a copy runs: real holders, looked at from another process, and nothing changed by it."""

import json
import os
import pathlib
import re
import select
import signal
import socket
import subprocess
import sys
import time

import pytest
from http_capture import guard
from http_capture.guard import interface
from http_capture.guard.holder import Launcher
from http_capture.guard.pidfile import boot_id
from http_capture.guard.status import _program, look, managed, may_capture, verb

pytestmark = pytest.mark.root
NOBODY = 65534
# Where the package that is tested was imported from, so that another process imports the same one.
ENVIRONMENT = os.environ | {"PYTHONPATH": str(pathlib.Path(guard.__file__).parents[2])}


def taken(pidfile, *nics, interface_lock=True):
    """A function for child(): the guard, by another way than start.py has."""
    return lambda: guard.acquire(
        str(pidfile), nics, instance="i-2", command=["http-capture"], interface_lock=interface_lock
    )


def locked(path, kind="w"):
    """A function for child(): a POSIX lock on a file, as any program can have it where it may open it."""

    def lock():
        import fcntl

        file = os.open(path, os.O_RDONLY if kind == "r" else os.O_RDWR)
        fcntl.lockf(file, fcntl.LOCK_SH if kind == "r" else fcntl.LOCK_EX)
        return file

    return lock


def test_nothing_runs(pidfile, nic):
    for nics in ([], [nic], ["any"]):
        seen = look(str(pidfile), nics)
        assert (seen.running, seen.stale, seen.code) == (False, False, 3)
        assert (seen.holder, seen.held, seen.reason) == (None, [], "")
    assert not pidfile.exists()
    pidfile.touch(0o600)
    assert look(str(pidfile), [nic]).code == 3
    assert pidfile.read_bytes() == b""


def test_what_is_seen_of_a_copy(start, pidfile, nic):
    holder = start(pidfile, nic).wait()
    for nics in ([], [nic]):
        seen = look(str(pidfile), nics)
        assert (seen.running, seen.stale, seen.code) == (True, False, 0)
        assert seen.held == [f"{pidfile} (lock)", "eth1 (interface)"]
        assert (seen.holder.pid, seen.holder.source, seen.holder.user) == (holder.pid, "lock", "root")
        assert str(seen.holder.launcher) == "by hand"
        assert seen.holder.command == f"http-capture --iface eth1 --pidfile {pidfile}"
        assert (seen.holder.interface, seen.instance, seen.interfaces) == ("eth1", "i-1", ["eth1"])
        assert (seen.conflicts, seen.notes, seen.reason) == ([], [], "")


def test_a_dead_one(start, pidfile, nic):
    holder = start(pidfile, nic).wait()
    holder.kill()
    seen = look(str(pidfile), [])
    assert (seen.running, seen.stale, seen.code) == (False, True, 1)
    assert seen.identity["pid"] == str(holder.pid)
    assert seen.instance == ""


def test_one_that_has_released(start, pidfile, nic):
    start(pidfile, nic).wait().tell("release")
    assert look(str(pidfile), [nic]).code == 3


def test_a_lookup_changes_nothing(start, pidfile, nic, tmp_path):
    start(pidfile, nic).wait()
    before, text = pidfile.stat(), pidfile.read_bytes()
    trace = tmp_path / "trace"
    code = f"from http_capture.guard.status import look; print(look({str(pidfile)!r}, ['eth1', 'eth2']).code)"
    try:
        done = subprocess.run(
            ["strace", "-f", "-e", "trace=%file,%desc,%network,flock", "-o", trace, sys.executable, "-c", code],
            env=ENVIRONMENT, capture_output=True, timeout=60,
        )  # fmt: skip
    except FileNotFoundError:
        pytest.skip("needs strace")
    if done.returncode:
        pytest.fail(done.stderr.decode())
    assert done.stdout == b"0\n"
    calls = trace.read_text()
    opened = [line for line in calls.splitlines() if f'"{pidfile}"' in line and "open" in line]
    assert opened
    assert not [line for line in opened if re.search("O_CREAT|O_TRUNC|O_RDWR|O_WRONLY", line)]
    assert "F_OFD_GETLK" in calls
    assert not re.search(r"SETLK|flock\(|\bbind\(|\blisten\(|unlink|ftruncate\((?!-1)", calls)
    assert not [line for line in calls.splitlines() if "AF_UNIX, SOCK_STREAM" in line and "NONBLOCK" not in line]
    after = pidfile.stat()
    assert (after.st_ino, after.st_mtime_ns, after.st_ctime_ns) == (
        before.st_ino,
        before.st_mtime_ns,
        before.st_ctime_ns,
    )
    assert pidfile.read_bytes() == text


@pytest.mark.parametrize("kind", ["fifo", "symlink", "dangling", "folder", "device", "socket", "no folder", "nul"])
def test_what_is_no_pidfile(pidfile, nic, tmp_path, kind, start):
    path = str(pidfile)
    match kind:
        case "fifo":
            os.mkfifo(pidfile)
        case "symlink":
            start(tmp_path / "real.pid").wait()
            pidfile.symlink_to(tmp_path / "real.pid")
        case "dangling":
            pidfile.symlink_to(tmp_path / "none")
        case "folder":
            pidfile.mkdir()
        case "device":
            os.mknod(pidfile, 0o20600, os.makedev(1, 7))
        case "socket":
            with socket.socket(socket.AF_UNIX) as bound:
                bound.bind(path)
        case "no folder":
            path = str(pidfile / "x" / "y")
            pidfile.touch()
        case "nul":
            path = f"{pidfile}\0x"
    began = time.monotonic()
    seen = look(path, [nic])
    assert time.monotonic() - began < 1
    assert (seen.running, seen.code) == (None, 4)
    assert "\n" not in seen.reason
    assert str(pidfile) in seen.reason
    assert not (tmp_path / "none").exists()


def test_a_writer_at_a_fifo_is_left_waiting(pidfile, child):
    os.mkfifo(pidfile)
    writer = subprocess.Popen(["sh", "-c", "echo x; echo 1 >$0", pidfile], stdout=subprocess.PIPE)
    with writer:
        writer.stdout.readline()
        time.sleep(0.2)
        assert look(str(pidfile), []).code == 4
        time.sleep(0.2)
        assert writer.poll() is None
        writer.kill()


def test_the_nic_tells_where_the_pidfile_is_none(start, pidfile, nic, tmp_path):
    holder = start(tmp_path / "real.pid", nic).wait()
    pidfile.symlink_to(tmp_path / "real.pid")
    seen = look(str(pidfile), [nic])
    assert (seen.code, seen.holder.pid, seen.held) == (0, holder.pid, ["eth1 (interface)"])
    assert "symbolic link" in " ".join(seen.notes)
    assert seen.instance == "i-1"


def test_a_file_of_another_user(pidfile, nic, open_folder, child):
    path = open_folder / "pid"
    path.write_text(f"1\nboot: {boot_id()}\nstart: 1\ninterface: eth1\ninstance: forged\n")
    os.chown(path, NOBODY, NOBODY)
    seen = look(str(path), [])
    assert (seen.code, seen.stale) == (3, False)
    assert "belongs to uid 65534" in " ".join(seen.notes)
    pid = child(locked(path), NOBODY)
    seen = look(str(path), [])
    assert seen.code == 4
    assert f"pid {pid}," in seen.reason
    assert seen.instance == ""


def test_a_file_that_others_can_write(pidfile):
    pidfile.write_text("1\ninstance: forged\n")
    pidfile.chmod(0o666)
    seen = look(str(pidfile), [])
    assert (seen.code, seen.identity) == (3, {})
    assert "mode 0666" in " ".join(seen.notes)


def test_a_file_that_others_can_read_and_so_lock(open_folder, child):
    path = open_folder / "pid"
    path.write_text("text\n")
    path.chmod(0o644)
    pid = child(locked(path, "r"), NOBODY)
    seen = look(str(path), [])
    assert seen.code == 4
    assert f"pid {pid}," in seen.reason


def test_a_service_with_a_user_of_its_own(open_folder, child):
    """Its file belongs to that user: believed where an administrator gave the holder the right to capture."""
    path = open_folder / "pid"
    path.touch(0o600)
    os.chown(path, NOBODY, NOBODY)
    script = open_folder / "http-capture"
    script.write_text(
        "import fcntl, os, sys, time\n"
        "file = open(sys.argv[2], 'r+b')\nfcntl.lockf(file, fcntl.LOCK_EX)\nprint('held', flush=True)\ntime.sleep(60)\n"
    )
    common = [sys.executable, str(script), "--pidfile", str(path)]
    user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    caps = "+net_raw,+dac_read_search"
    for more, code in (
        ([f"--inh-caps=-all,{caps}", f"--ambient-caps=-all,{caps}"], 0),
        (["--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search"], 4),
    ):
        with subprocess.Popen([*user, *more, *common], stdout=subprocess.PIPE) as process:
            assert process.stdout.readline() == b"held\n"
            assert may_capture(process.pid) == (code == 0)
            seen = look(str(path), [])
            process.kill()
        assert seen.code == code


@pytest.mark.parametrize("nics", [[], ["eth1"]])
def test_who_may_not_open_the_pidfile(start, open_folder, nic, nics, as_nobody):
    path = open_folder / "pid"
    holder = start(path, nic).wait()
    assert path.stat().st_mode & 0o777 == 0o600

    def seen():
        found = look(str(path), nics)
        pid = found.holder.pid if found.holder else None
        return json.dumps([found.code, found.denied, pid, found.held, found.reason, found.notes])

    code, denied, seen_pid, held, reason, notes = json.loads(as_nobody(seen))
    assert denied
    if nics:
        assert (code, seen_pid, held) == (0, holder.pid, ["eth1 (interface)"])
        assert f"{path} cannot be looked into by uid 65534" in notes[0]
    else:
        assert (code, seen_pid) == (4, None)
        assert f"{path} cannot be looked into by uid 65534" in reason
        assert f"eth1 is held: pid {holder.pid}," in notes[0]


def test_without_the_interface_lock(pidfile, nic, child):
    pid = child(taken(pidfile, nic, interface_lock=False))
    seen = look(str(pidfile), [])
    assert (seen.code, seen.holder.pid) == (0, pid)
    assert seen.held == [f"{pidfile} (lock)"]
    assert len(seen.conflicts) == 1
    assert seen.conflicts[0].startswith("without the interface lock: eth1 is not held")


def test_the_pidfile_and_the_nic_with_different_processes(start, pidfile, nic, tmp_path, child):
    pid = child(taken(pidfile, nic, interface_lock=False))
    other = start(tmp_path / "other.pid", nic).wait()
    seen = look(str(pidfile), [])
    assert (seen.code, seen.holder.pid) == (0, pid)
    assert [line.partition(", up")[0] for line in seen.conflicts] == [
        f"eth1 is held by another process: pid {other.pid}"
    ]


def test_another_pidfile_of_the_same_nic(start, pidfile, nic, tmp_path):
    holder = start(tmp_path / "other.pid", nic).wait()
    seen = look(str(pidfile), [nic])
    assert (seen.code, seen.holder.pid, seen.instance) == (0, holder.pid, "i-1")
    assert f"the pidfile of this copy is {tmp_path / 'other.pid'}" in seen.notes[0]
    seen = look(str(pidfile), [])
    assert seen.code == 3
    assert seen.notes[0].startswith(f"eth1 is held: pid {holder.pid},")
    assert not pidfile.exists()


def test_all_nics_and_one(start, pidfile, nic, tmp_path):
    holder = start(pidfile, "any").wait()
    seen = look(str(tmp_path / "x"), [nic])
    assert (seen.code, seen.holder.pid, seen.held) == (0, holder.pid, ["any (interface)"])
    assert look(str(pidfile), []).conflicts == []
    holder.kill()
    holder = start(pidfile, nic).wait()
    seen = look(str(tmp_path / "x"), ["any"])
    assert (seen.code, seen.holder.pid, seen.held) == (0, holder.pid, ["eth1 (interface)"])


def test_a_nic_that_is_not_there(start, pidfile, nic):
    seen = look(str(pidfile), ["eth9"])
    assert seen.code == 4
    assert "interface eth9: there is none of this name here" in seen.reason
    start(pidfile, nic).wait()
    assert look(str(pidfile), ["eth9", "nul\0"]).code == 0


def test_a_stopped_one(start, pidfile, nic):
    holder = start(pidfile, nic).wait()
    os.kill(holder.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, holder.pid, os.WSTOPPED | os.WNOWAIT)
    seen = look(str(pidfile), [nic])
    assert (seen.code, seen.holder.pid, seen.holder.stopped) == (0, holder.pid, True)


@pytest.mark.alone
def test_a_squatter_is_no_copy(pidfile, nic, child):
    def squat():
        bound = socket.socket(socket.AF_UNIX)
        bound.bind(interface.address(socket.if_nametoindex("eth1")))
        bound.listen(1)
        return bound

    pid = child(squat, NOBODY)
    seen = look(str(pidfile), [nic])
    assert seen.code == 4
    assert f"eth1: its lock is held by what may be no http-capture: pid {pid}," in seen.reason
    for _ in range(4):
        interface.probe(socket.if_nametoindex("eth1"))
    began = time.monotonic()
    assert look(str(pidfile), [nic]).code == 4  # its queue is full: it is not even named by the socket
    assert time.monotonic() - began < 1


def test_a_full_queue_of_a_copy(start, pidfile, nic):
    holder = start(pidfile, nic).wait()
    index = socket.if_nametoindex("eth1")
    for _ in range(100000):
        if interface.probe(index).pid is None:
            break
    seen = look(f"{pidfile}.other", [nic])
    assert (seen.code, seen.holder.pid) == (0, holder.pid)


def test_from_another_pid_namespace(start, pidfile, nic):
    start(pidfile, nic).wait()
    code = f"from http_capture.guard.status import look; s = look({str(pidfile)!r}, []); print(s.code, s.holder.pid)"
    done = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", code],
        env=ENVIRONMENT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.stdout == "0 None\n", done.stderr


def test_from_another_network_namespace(start, pidfile, nic):
    """Its NIC is not the one that has the name here."""
    start(pidfile, "lo", under=["unshare", "-n"]).wait()
    seen = look(str(pidfile), [])
    assert seen.code == 0
    assert seen.conflicts == []
    assert "network namespace" in seen.notes[0]


@pytest.mark.parametrize(
    ("words", "rest"),
    [
        (["-m", "http_capture.capture", "--iface", "eth1"], ["--iface", "eth1"]),
        (["-u", "-Im", "http_capture.capture", "status"], ["status"]),
        (["-mhttp_capture.capture"], []),
        (["-W", "error", "-Xdev", "/usr/bin/http-capture", "run"], ["run"]),
        (["--check-hash-based-pycs", "never", "http-capture"], []),
        (["/x/http_capture/capture/__main__.py", "-v"], ["-v"]),
        (["-m", "pytest", "http-capture"], None),
        (["-c", "x", "http-capture"], None),
        (["grep.py", "http-capture"], None),
        (["-W", "http-capture"], None),
        (["-m"], None),
        ([], None),
        (["-"], None),
    ],
)
def test_the_program_in_an_interpreter(words, rest):
    assert _program(list(words)) == rest


def test_the_verb_of_real_processes(tmp_path):
    script = tmp_path / "http-capture"
    script.write_text(f"#!{sys.executable}\nprint(flush=True)\nimport time\ntime.sleep(60)\n")
    script.chmod(0o755)
    for command, expected in (
        ([script, "--iface", "eth1"], "run"),
        ([sys.executable, "-u", script, "verify"], "verify"),
        (["sh", "-c", "echo; read x", "http-capture", "--iface", "eth1"], None),
        (["bash", "-c", f"exec -a http-capture sh -c 'echo; read x' --iface eth1 {script}"], None),
    ):
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            assert verb(process.pid) == expected, command
            process.kill()
    assert verb(process.pid) is None
    assert verb(2**22) is None


def test_managed():
    assert not managed(os.getpid(), None)
    assert not managed(os.getpid(), Launcher())
    assert managed(os.getpid(), Launcher("systemd", "x.service"))
    assert not managed(os.getpid(), Launcher("supervisord", "x"))  # as when it has been killed


@pytest.mark.slow
def test_a_thousand_lookups_beside_a_hundred_starts(start, pidfile, nic):
    """A look that tried the lock, or bound the socket, would make some of the starts fail."""
    code = (
        "import select, sys\n"
        "from http_capture.guard.status import look\n"
        "codes = {}\n"
        "count = 0\n"
        "while count < 1000 or not select.select([0], [], [], 0)[0]:\n"
        f"    code = look({str(pidfile)!r}, ['eth1']).code\n"
        "    codes[code] = codes.get(code, 0) + 1\n"
        "    count += 1\n"
        "print(count, codes)\n"
    )
    looking = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=ENVIRONMENT,
    )  # fmt: skip
    with looking:
        failed = []
        for _ in range(100):
            one = start(pidfile, nic).wait()
            if not one.held:
                failed.append(one.error)
            one.kill()
        looking.stdin.close()
        select.select([looking.stdout], [], [], 120)
        told = looking.stdout.read()
    assert failed == []
    count, _, codes = told.partition(" ")
    assert int(count) >= 1000
    assert set(eval(codes)) <= {0, 1, 3}
    assert len(eval(codes)) > 1
