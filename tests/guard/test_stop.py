"""Stopping the holder, and nobody else: real processes, real signals."""

import contextlib
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
from http_capture import guard
from http_capture.guard import interface
from http_capture.guard.pidfile import boot_id, process_state
from http_capture.guard.status import look
from http_capture.guard.stop import stop

pytestmark = pytest.mark.root
NOBODY = 65534
ENVIRONMENT = {
    name: value for name, value in os.environ.items() if not name.startswith(("SUPERVISOR_", "INVOCATION_ID"))
} | {"PYTHONPATH": str(pathlib.Path(guard.__file__).parents[2])}


def ask(pidfile, *nics, timeout=20.0, kill=False, told=lambda holder: None):
    return stop(str(pidfile), nics, timeout_seconds=timeout, kill=kill, told=told)


@pytest.fixture
def program():
    """Starts Python code that prints "held" when it is ready; as another user if told to. Gives the Popen."""
    started = []

    def begin(code, *arguments, before=(), **environment):
        process = subprocess.Popen(
            [*before, sys.executable, "-c", code, *map(str, arguments)],
            stdout=subprocess.PIPE, env=ENVIRONMENT | environment, process_group=0,
        )  # fmt: skip
        started.append(process)
        assert process.stdout.readline() == b"held\n"
        return process

    yield begin
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # a child of it too, which may outlive it and has its pipe
        process.communicate()


AS_NOBODY = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--inh-caps=-all,+dac_read_search",
             "--ambient-caps=-all,+dac_read_search", "--bounding-set=-all,+dac_read_search"]  # fmt: skip
LOCK = """
import fcntl, os, sys, time
fd = os.open(sys.argv[1], os.O_RDWR)
fcntl.lockf(fd, fcntl.LOCK_EX)
print('held', flush=True)
time.sleep(60)
"""
# A clean stop as the program has it: release, then end. "slow": takes its time; "lingers": between the
# two; "deaf": never does.
COPY = """
import os, signal, sys, time
from http_capture import guard
how, pidfile, *nics = sys.argv[1:]
held = guard.acquire(pidfile, nics, instance='i', command=['http-capture'], interface_lock=bool(nics))
def end(number, frame):
    if how == 'deaf':
        return
    if how == 'slow':
        time.sleep(0.7)
    held.release()
    if how == 'lingers':
        time.sleep(2)
    os._exit(0)
signal.signal(signal.SIGTERM, end)
if how == 'fork' and not os.fork():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print('held', flush=True)
    time.sleep(float(os.environ['CHILD_SECONDS']))
    os._exit(0)
if how != 'fork':
    print('held', flush=True)
while True:
    signal.pause()
"""


def test_a_clean_stop(program, pidfile, nic):
    copy = program(COPY, "slow", pidfile, nic)
    inode = pidfile.stat().st_ino
    told = []
    outcome = ask(pidfile, told=told.append)
    assert copy.wait(20) == 0
    assert (outcome.what, outcome.code, outcome.next) == ("stopped", 0, None)
    assert 0.7 <= outcome.seconds < 15
    assert outcome.holder.pid == copy.pid
    assert [holder.pid for holder in told] == [copy.pid]
    assert pidfile.read_bytes() == b""
    assert pidfile.stat().st_ino == inode
    assert ask(pidfile).what == "nothing"
    assert look(str(pidfile), [nic]).code == 3


def test_nothing_to_stop(start, pidfile, nic):
    assert (ask(pidfile).what, ask(pidfile, nic).code) == ("nothing", 0)
    assert not pidfile.exists()
    start(pidfile, nic).wait().kill()
    assert ask(pidfile).what == "nothing"
    assert pidfile.read_bytes() != b""


def test_by_the_nic(program, pidfile, nic, tmp_path):
    copy = program(COPY, "", tmp_path / "other.pid", nic)
    assert ask(pidfile).what == "nothing"
    assert copy.poll() is None
    assert ask(pidfile, nic).what == "stopped"
    assert copy.wait(20) == 0
    assert not pidfile.exists()


def test_by_the_nic_when_the_pidfile_is_gone(program, pidfile, nic):
    copy = program(COPY, "", pidfile, nic)
    pidfile.unlink()
    assert ask(pidfile, nic).what == "stopped"
    assert copy.wait(20) == 0


def test_stale_text_makes_nobody_a_target(start, pidfile, nic, program):
    """Whole and true text about a live process, which has no lock."""
    start(pidfile, nic).wait().kill()
    other = program("print('held', flush=True); import time; time.sleep(60)")
    ticks = process_state(other.pid)[1]
    pidfile.write_text(
        f"{other.pid}\nboot: {boot_id()}\nstart: {ticks}\ninterface: eth1\ninstance: i\nlauncher: by hand\ncommand: c\n"
    )
    assert ask(pidfile).what == "nothing"
    assert ask(pidfile, nic, kill=True, timeout=0.1).what == "nothing"
    assert other.poll() is None


def test_text_that_names_another_while_one_holds(program, pidfile, nic):
    copy = program(COPY, "", pidfile, nic)
    other = program("print('held', flush=True); import time; time.sleep(60)")
    ticks = process_state(other.pid)[1]
    pidfile.write_text(f"{other.pid}\nboot: {boot_id()}\nstart: {ticks}\ninterface: eth1\ninstance: i\n")
    assert ask(pidfile).holder.pid == copy.pid
    assert copy.wait(20) == 0
    assert other.poll() is None


def test_one_that_takes_too_long(program, pidfile, nic):
    copy = program(COPY, "deaf", pidfile, nic)
    outcome = ask(pidfile, timeout=0.3)
    assert (outcome.what, outcome.code) == ("running", 1)
    assert 0.3 <= outcome.seconds < 5
    assert copy.poll() is None
    outcome = ask(pidfile, timeout=0.3, kill=True)
    assert (outcome.what, outcome.code) == ("killed", 0)
    assert copy.wait(20) == -signal.SIGKILL
    assert look(str(pidfile), []).code == 1


def test_a_stopped_one(program, pidfile, nic):
    copy = program(COPY, "", pidfile, nic)
    os.kill(copy.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, copy.pid, os.WSTOPPED | os.WNOWAIT)
    outcome = ask(pidfile)
    assert (outcome.what, outcome.code) == ("frozen", 1)
    with open(f"/proc/{copy.pid}/status") as status:
        assert re.search(r"^(Shd|Sig)Pnd:\s0+$", status.read(), re.M)  # no signal waits for it
    assert ask(pidfile, kill=True).what == "stopped"
    assert copy.wait(20) == 0
    assert pidfile.read_bytes() == b""


@pytest.mark.parametrize("seconds", [0.8, 60])
def test_a_child_that_keeps_the_lock(program, pidfile, nic, seconds):
    copy = program(COPY, "fork", pidfile, nic, CHILD_SECONDS=str(seconds))
    outcome = ask(pidfile, timeout=0.6 if seconds > 1 else 20)
    assert copy.wait(20) == 0
    if seconds < 1:
        assert outcome.what == "stopped"
        return
    assert outcome.what == "running"
    child = outcome.next.pid
    assert child not in (None, copy.pid)
    outcome = ask(pidfile, nic, timeout=0.2, kill=True)
    assert (outcome.what, outcome.holder.pid) == ("killed", child)


def test_one_that_starts_in_its_place(program, pidfile, nic):
    """The hand-over: whoever waits for the lock takes it at once, and is left alone."""
    copy = program(COPY, "lingers", pidfile, nic)
    waits = COPY.replace("held = ", "while True:\n  try:\n    held = ").replace(
        "bool(nics))\n", "bool(nics))\n    break\n  except guard.AlreadyRunning:\n    time.sleep(0.001)\n", 1
    )
    following = []

    def told(holder):
        following.append(
            subprocess.Popen([sys.executable, "-c", waits, "", pidfile, nic], env=ENVIRONMENT, stdout=subprocess.PIPE)
        )

    try:
        outcome = ask(pidfile, told=told)
        assert outcome.what == "stopped"
        assert outcome.next.pid == following[0].pid
        assert following[0].stdout.readline() == b"held\n"
        assert copy.wait(20) == 0
        assert look(str(pidfile), [nic]).holder.pid == following[0].pid
    finally:
        for process in following:
            process.kill()
            process.communicate()


def test_supervised(program, pidfile, nic, tmp_path):
    """By a real supervisord; once that has been killed, nothing looks after the copy, and it is stopped."""
    pytest.importorskip("supervisor", reason="needs supervisor")
    script = tmp_path / "copy.py"
    script.write_text(COPY)
    conf = tmp_path / "supervisord.conf"
    conf.write_text(
        f"[supervisord]\nnodaemon=true\nchildlogdir={tmp_path}\nlogfile=/dev/null\nlogfile_maxbytes=0\npidfile={tmp_path}/supervisord.pid\n"
        f"[program:span]\ncommand={sys.executable} {script} slow {pidfile} {nic}\nautorestart=true\nstartsecs=0\n"
    )
    supervisord = subprocess.Popen(
        [sys.executable, "-m", "supervisor.supervisord", "-c", conf], env=ENVIRONMENT, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    pid = None
    try:
        deadline = time.monotonic() + 30
        # It has the lock before it has written its name, and is no copy to anybody in between.
        while not ((seen := look(str(pidfile), [])).holder and seen.identity.get("pid") == str(seen.holder.pid)):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        pid = seen.holder.pid
        outcome = ask(pidfile, kill=True)
        assert (outcome.what, outcome.code) == ("supervised", 1)
        assert outcome.holder.launcher.command("stop") == "supervisorctl stop span"
        assert look(str(pidfile), []).holder.pid == pid
        supervisord.kill()
        supervisord.wait(20)
        seen = look(str(pidfile), [])
        assert seen.holder.pid == pid
        assert "the supervisord that started it is gone: nothing looks after it" in seen.notes
        assert ask(pidfile).what == "stopped"
        pid = None
    finally:
        supervisord.kill()
        supervisord.wait(20)
        if pid:
            os.kill(pid, signal.SIGKILL)


def test_under_systemd(start, pidfile, nic):
    start(pidfile, nic, env={"INVOCATION_ID": "0"}).wait()
    assert ask(pidfile, kill=True, timeout=0.1).what == "supervised"
    assert look(str(pidfile), []).code == 0


def test_another_program_that_has_locked_the_pidfile(program, pidfile):
    """Not even with text about it that only a former holder could have left."""
    pidfile.write_text(f"1\nboot: {boot_id()}\nstart: 1\ninstance: i\n")
    other = program(LOCK, pidfile)
    outcome = ask(pidfile, kill=True, timeout=0.1)
    assert (outcome.what, outcome.code) == ("foreign", 1)
    assert outcome.holder.pid == other.pid
    assert other.poll() is None


def test_a_copy_without_a_nic_is_known_by_its_text(program, pidfile):
    copy = program(COPY, "", pidfile)
    assert ask(pidfile).what == "stopped"
    assert copy.wait(20) == 0


def test_a_file_of_another_user_makes_nobody_a_target(program, open_folder):
    """With all that a hostile user can write: a lock of his, and text in due form."""
    path = open_folder / "pid"
    path.touch()
    os.chown(path, NOBODY, NOBODY)
    other = program(LOCK, path, before=AS_NOBODY)
    ticks = process_state(other.pid)[1]
    path.write_text(f"{other.pid}\nboot: {boot_id()}\nstart: {ticks}\ninterface: eth1\ninstance: i\n")
    outcome = ask(path, kill=True, timeout=0.1)
    assert (outcome.what, outcome.code) == ("unknown", 4)
    assert other.poll() is None


def test_a_socket_of_another_user_makes_nobody_a_target(program, pidfile, nic):
    name = interface.address(socket.if_nametoindex(nic))
    code = f"import socket, time; s = socket.socket(socket.AF_UNIX); s.bind({name!r}); s.listen(9)\n"
    other = program(f"{code}print('held', flush=True); time.sleep(60)", before=AS_NOBODY)
    outcome = ask(pidfile, nic, kill=True, timeout=0.1)
    assert (outcome.what, outcome.code) == ("unknown", 4)
    assert other.poll() is None


def test_from_another_pid_namespace(start, pidfile, nic):
    start(pidfile, nic).wait()
    code = (
        "from http_capture.guard.stop import stop\n"
        f"o = stop({str(pidfile)!r}, [], timeout_seconds=0.1, kill=True, told=print)\nprint(o.what, o.code)"
    )
    done = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", code],
        env=ENVIRONMENT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.stdout == "unnamed 4\n", done.stderr
    assert look(str(pidfile), [nic]).code == 0


@pytest.mark.parametrize("nics", [[], ["eth1"]])
def test_not_permitted(start, open_folder, nic, nics, as_nobody):
    path = open_folder / "pid"
    start(path, nic).wait()

    def asked():
        outcome = ask(path, *nics, timeout=0.1, kill=True)
        return f"{outcome.what} {outcome.code}"

    assert as_nobody(asked) == "denied 77"
    assert look(str(path), [nic]).code == 0


def test_a_process_that_took_the_number_is_not_signalled(program, pidfile, nic, monkeypatch):
    """The holder is asked for again once the process is pinned: here it is another one by then."""
    from http_capture.guard import stop as module

    copy = program(COPY, "", pidfile, nic)
    seen = look(str(pidfile), [])
    other = program("print('held', flush=True); import time; time.sleep(60)")
    seen.holder.pid = other.pid
    looks = iter([seen])
    real = module.look
    monkeypatch.setattr(module, "look", lambda *arguments: next(looks, None) or real(*arguments))
    outcome = ask(pidfile)
    assert (outcome.what, outcome.holder.pid) == ("stopped", copy.pid)
    assert other.poll() is None
