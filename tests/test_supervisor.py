"""http-capture under a real supervisord 4, with the shipped file: who is started, who is not, and who is told of it."""

import contextlib
import fcntl
import os
import pathlib
import shlex
import signal
import stat
import subprocess
import time

import pytest
from command import COMMAND, environment
from network import inside, needs_network, veth
from supervisord import LIMIT_SECONDS, Listener, Supervisord, lines, shipped, syslog_socket, under_syslog, until

# What is shipped takes 15 s to FATAL and 5 s to RUNNING; where a test is not about that, it need not wait for it. At
# startsecs=1 supervisord, which looks once a second, counts a program that has long been refused as RUNNING.
pytestmark = pytest.mark.once
QUICK = {"startretries": "1", "startsecs": "2"}


@pytest.fixture
def pair():
    with veth() as made:
        yield made


@pytest.fixture
def supervised(tmp_path, pair):
    """Starts a supervisord with the shipped file, some values of it replaced."""
    with contextlib.ExitStack() as stack:

        def begin(*, program=None, listener=None, more="", edit=lambda text: text, **options):
            text = edit(shipped(tmp_path, pair.near, program=program, listener=listener)) + more
            return stack.enter_context(Supervisord(tmp_path, pair.namespace, text, **options))

        yield begin


@pytest.fixture
def by_hand(tmp_path, pair):
    """Starts a copy as an operator does, and waits until it records; `stop()` ends it as `kill` does."""
    running = []

    def begin(*, pidfile="http-capture.pid", **more):
        errors = tmp_path / f"by-hand-{len(running)}.err"
        with inside(pair.namespace), open(errors, "wb") as err:
            process = subprocess.Popen(
                [*COMMAND, "--iface", pair.near, "--pidfile", tmp_path / pidfile, "--sink", "null"],
                env={key: value for key, value in environment().items() if not key.startswith("SUPERVISOR_")} | more,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=err,
            )  # fmt: skip
        running.append(process)
        until(lambda: "recording" in errors.read_text() or process.poll() is not None, what=errors.read_text)
        assert process.poll() is None, errors.read_text()
        return process

    yield begin
    for process in running:
        process.kill()
        process.wait()


def end(process):
    process.send_signal(signal.SIGTERM)
    process.wait(LIMIT_SECONDS)


def alive(pid):
    with contextlib.suppress(OSError):
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


@needs_network
def test_what_is_shipped(supervised):
    """supervisord reads the file, and has from it what guard and listener count on."""
    supervisord = supervised()
    wanted = {
        "startsecs": 5, "startretries": 5, "exitcodes": [76], "stopsignal": int(signal.SIGTERM), "stopwaitsecs": 30,
        "killasgroup": True, "autostart": True, "redirect_stderr": False, "stdout_logfile": "none",
    }  # fmt: skip
    listener, program = sorted(supervisord.ask("getAllConfigInfo"), key=lambda info: info["group"] == "http-capture")
    assert {key: program[key] for key in wanted} == wanted
    assert "--die-with-parent" in program["command"]
    assert (listener["name"], listener["redirect_stderr"], listener["stdout_logfile"]) == (
        "http-capture-listener", False, "none",
    )  # fmt: skip
    pid = supervisord.until("RUNNING")
    supervisord.until("RUNNING", "http-capture-listener")
    os.kill(pid, signal.SIGTERM)  # nobody asked supervisord for it: it is started again, and one is told
    alert = supervisord.until_said("alert")[0]
    assert (alert["state"], alert["exit"], alert["holder"]) == ("EXITED", 0, None)
    until(lambda: supervisord.info()["pid"] not in (0, pid), what=supervisord.story)
    stopped = supervisord.control("stop", "http-capture")
    assert "http-capture: stopped" in stopped.stdout
    assert len(supervisord.said("alert")) == 1, "a stop by an operator is no incident"


@needs_network
def test_hand_over(supervised, by_hand, tmp_path):
    """A copy started by hand is in the way: one alert with its name, and when it has gone the supervised one runs."""
    first = by_hand()
    wrong = f"{shlex.join(COMMAND)} supervisor-listener --json --iface lo --program nobody"
    supervisord = supervised(
        program={"startretries": "2"},
        more=f"[eventlistener:wrong]\ncommand={wrong}\nevents=TICK_5\nstderr_logfile={tmp_path}/wrong.log\n",
    )
    alert = supervisord.until_said("alert")[0]
    # What a deployment sees meanwhile, and why it has to end with `http-capture verify`.
    start = supervisord.control("start", "http-capture")
    assert (start.returncode, "already started" in start.stdout) == (0, True)
    assert supervisord.control("update").returncode == 0
    supervisord.until("FATAL")
    assert supervisord.starts() == 3
    assert (alert["program"], alert["state"], alert["exit"]) == ("http-capture", "BACKOFF", 75)
    assert (alert["holder"]["pid"], alert["holder"]["launcher"]) == (first.pid, "by hand")
    assert alert["host"] == os.uname().nodename
    assert alert["type"] == f"http-capture stop --pidfile {tmp_path}/http-capture.pid"
    assert f"pid {first.pid}, " in alert["text"]
    assert "started by hand (user root)" in alert["text"]
    time.sleep(2)  # it looks each second
    assert (supervisord.state(), supervisord.starts(), first.poll()) == ("FATAL", 3, None)
    assert len(supervisord.said("alert")) == 1, "one alert per incident"

    ended = time.monotonic()
    end(first)
    pid = supervisord.until("RUNNING", seconds=10)
    assert time.monotonic() - ended < 10
    assert (tmp_path / "http-capture.pid").read_text().split()[0] == str(pid)
    assert (supervisord.starts(), len(supervisord.said("started"))) == (4, 1)

    assert supervisord.control("stop", "http-capture").returncode == 0
    time.sleep(2)
    assert (supervisord.state(), supervisord.starts()) == ("STOPPED", 4), "an operator's stop is respected"
    assert (len(supervisord.said("alert")), supervisord.said("error")) == (1, [])
    assert [line["text"] for line in lines(tmp_path / "wrong.log")] == [
        "supervisord has no program nobody; it has: http-capture, http-capture-listener, wrong"
    ]


@needs_network
def test_a_listener_that_is_told_nothing(supervised, by_hand):
    """What it got no event of is seen at its next tick; before it starts a program it asks whether that is stopped."""
    first = by_hand()
    supervisord = supervised(program=QUICK, listener={"autostart": "false", "events": "TICK_5"})
    supervisord.until("FATAL")
    supervisord.ask("startProcess", "http-capture-listener")
    alert = supervisord.until_said("alert")[0]
    assert (alert["state"], alert["exit"], alert["holder"]["pid"]) == ("FATAL", 75, first.pid)
    supervisord.ask("startProcess", "http-capture", False)
    supervisord.ask("stopProcess", "http-capture")
    starts = supervisord.starts()
    end(first)
    time.sleep(2)
    assert (supervisord.state(), supervisord.starts()) == ("STOPPED", starts)


@needs_network
def test_configuration_error_is_not_the_guard(supervised, by_hand, tmp_path):
    """A program that cannot read its settings is not started when the guard is free: that would not help."""
    (tmp_path / "broken.toml").write_text("[guard\n")
    first = by_hand()
    supervisord = supervised(
        program=QUICK, edit=lambda text: text.replace("--sink null", f"--sink null --config {tmp_path}/broken.toml"),
        more="[program:other]\ncommand=/bin/false\nstartretries=0\n",
    )  # fmt: skip
    supervisord.until("FATAL")
    supervisord.until("FATAL", "other")
    alert = supervisord.until_said("alert")[0]
    assert (alert["exit"], alert["holder"], alert["held"]) == (78, None, [])
    assert "configuration" in alert["text"]
    assert alert["type"] == "supervisorctl tail http-capture stderr"
    starts = supervisord.starts()
    end(first)
    time.sleep(2)
    assert (supervisord.state(), supervisord.starts()) == ("FATAL", starts)
    assert len(supervisord.said("alert")) == 1, "other programs are none of its business"


@needs_network
def test_several_processes_of_one_program(supervised):
    """numprocs on one NIC: one runs, and the alert names it; when it is stopped the other takes its place."""
    supervisord = supervised(
        program={**QUICK, "numprocs": "2", "process_name": "%(program_name)s_%(process_num)02d"},
        listener={"autostart": "false"},
    )
    names = ["http-capture:http-capture_00", "http-capture:http-capture_01"]
    until(lambda: {supervisord.state(name) for name in names} == {"RUNNING", "FATAL"}, what=supervisord.story)
    runs, waits = sorted(names, key=lambda name: supervisord.state(name) != "RUNNING")
    supervisord.ask("startProcess", "http-capture-listener")
    alert = supervisord.until_said("alert")[0]
    assert (alert["program"], alert["holder"]["pid"]) == (waits, supervisord.info(runs)["pid"])
    assert alert["type"] == f"supervisorctl stop {runs}"
    supervisord.control("stop", runs)
    supervisord.until("RUNNING", waits, seconds=10)
    assert supervisord.state(runs) == "STOPPED"


@needs_network
def test_a_lost_guard_is_left_down(supervised, tmp_path):
    """76: another process has the pidfile of a copy without an interface lock. It ends, and is not started again."""
    supervisord = supervised(
        program=QUICK, edit=lambda text: text.replace("--sink null", "--sink null --no-interface-lock")
    )
    supervisord.until("RUNNING")
    path = tmp_path / "http-capture.pid"
    path.unlink()
    with open(path, "w+") as file:
        os.chmod(path, 0o600)
        fcntl.lockf(file, fcntl.LOCK_EX)
        supervisord.until("EXITED")
        alert = supervisord.until_said("alert")[0]
        assert (alert["state"], alert["exit"]) == ("EXITED", 76)
        assert alert["type"].startswith(f"http-capture verify --pidfile {path}")
    time.sleep(2)  # now the guard is free
    assert (supervisord.state(), supervisord.starts()) == ("EXITED", 1)
    assert len(supervisord.said("alert")) == 1


@needs_network
def test_a_killed_supervisord_leaves_nobody(supervised):
    supervisord = supervised(program=QUICK)
    pid = supervisord.until("RUNNING")
    listener = supervisord.until("RUNNING", "http-capture-listener")
    supervisord.process.kill()
    until(lambda: not alive(pid) and not alive(listener), what=f"{pid} and {listener} to end")


@needs_network
def test_pause_between_starts(supervised, by_hand, tmp_path):
    """A listener that looks at another guard sees it free, and the program is refused each time: no loop."""
    by_hand()
    command = f"{shlex.join(COMMAND)} supervisor-listener --json --iface lo --pidfile {tmp_path}/other.pid"
    supervisord = supervised(program={**QUICK, "startretries": "0"}, listener={"command": command})
    alert = supervisord.until_said("alert")[0]
    assert (alert["exit"], alert["holder"]) == (75, None)
    assert "are not those of the program" in alert["text"]
    until(lambda: len(supervisord.said("started")) == 2, what=supervisord.story)  # at once, and after 5 s
    until(lambda: supervisord.state() == "FATAL", what=supervisord.story)
    time.sleep(6)
    assert supervisord.starts() == 3, "the next pause is twice as long"
    assert len(supervisord.said("alert")) == 1


@needs_network
@pytest.mark.parametrize("password", ["", "secret"])
def test_password(supervised, by_hand, tmp_path, password):
    """A supervisord that wants a password: without it the listener still alerts, and says what it lacks.

    Then a stop between two tries: what an operator has stopped is not started when the guard is free."""
    first = by_hand()
    login = {"environment": f'SUPERVISOR_USERNAME="me",SUPERVISOR_PASSWORD="{password}"'} if password else {}
    supervisord = supervised(
        program={"startsecs": "2"}, listener={**login, "serverurl": "http://127.0.0.1:9001"},
        server=f"[unix_http_server]\nfile={tmp_path}/s\n[inet_http_server]\nport=127.0.0.1:9001\nusername=me\npassword=secret\n",
    )  # fmt: skip
    alert = supervisord.until_said("alert")[0]
    assert alert["holder"]["pid"] == first.pid
    assert alert["exit"] == (75 if password else None)
    refused = [line["text"] for line in supervisord.said("error") if "401" in line["text"]]
    assert any("SUPERVISOR_PASSWORD" in text for text in refused) == (not password)
    assert "stopped" in supervisord.control("stop", "http-capture").stdout
    starts = supervisord.starts()
    end(first)
    time.sleep(2)
    assert (supervisord.state(), supervisord.starts()) == ("STOPPED", starts)


# The listener alone.


def script(folder, text):
    path = folder / "alert.sh"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@needs_network
def test_garbage(tmp_path, pair, by_hand):
    """Whatever comes is answered with OK, and the next true event is understood."""
    first = by_hand()
    with Listener(tmp_path, pair.namespace, "--iface", pair.near, "--json") as listener:
        for octets in (
            b"\n", b"garbage\n", b"\xff\xfe\x00\n", b"len:-1\n", b"len:99999999999\n", b"len:\xc2\xb2\n",
            b"one\ntwo\nver:3.0\n", b"eventname:PROCESS_STATE_FATAL len:9\nno fields", b"eventname:TICK_5 len:0\n",
            b"ver:3.0 server:a:b:c eventname:REMOTE_COMMUNICATION len:6\ntype:x", b"len:5\nhell",
        ):  # fmt: skip
            listener.send(octets)
        listener.state("FATAL", name="other")
        listener.state("FATAL", more="")
        alert, *others = listener.said("alert")
        assert (alert["holder"]["pid"], alert["state"], alert["exit"], others) == (first.pid, "FATAL", None, [])
        errors = [line["text"] for line in listener.said("error")]
        assert sum("no event of supervisord" in text for text in errors) == 8
        assert sum("did not answer getProcessInfo" in text for text in errors) == 1
        assert not any("bug" in text for text in errors), errors


@needs_network
def test_one_alert_per_incident(tmp_path, pair, by_hand):
    first = by_hand()
    with Listener(tmp_path, pair.namespace, "--iface", pair.near, "--json") as listener:

        def holders():
            return [alert["holder"] and alert["holder"]["pid"] for alert in listener.said("alert")]

        for state in ("BACKOFF", "BACKOFF", "FATAL", "STARTING", "BACKOFF", "RUNNING", "BACKOFF"):
            listener.state(state)
            listener.event("TICK_5", "when:1")
        assert holders() == [first.pid]
        end(first)
        second = by_hand(pidfile="other.pid")
        listener.state("BACKOFF")
        assert holders() == [first.pid, second.pid]
        listener.state("STOPPED")
        listener.state("BACKOFF")
        assert holders() == [first.pid, second.pid, second.pid]
        end(second)
        listener.state("BACKOFF")
        assert holders() == [first.pid, second.pid, second.pid], "nobody is no news"


@needs_network
@pytest.mark.parametrize("name", ["http-capture", "another"])
def test_started_again_by_now(tmp_path, pair, by_hand, name):
    """The watched process itself, started again by the listener's supervisord (here: the test), is not in its way."""
    process = by_hand(SUPERVISOR_ENABLED="1", SUPERVISOR_PROCESS_NAME=name, SUPERVISOR_GROUP_NAME=name)
    with Listener(tmp_path, pair.namespace, "--iface", pair.near, "--json") as listener:
        listener.state("EXITED", more="expected:0 pid:1")
        [alert] = listener.said("alert")
        assert alert["exit"] is None
        assert (alert["holder"] and alert["holder"]["pid"]) == (None if name == "http-capture" else process.pid)


@needs_network
@pytest.mark.parametrize("how", ["SIGTERM", "end of input"])
def test_end(tmp_path, pair, how):
    with Listener(tmp_path, pair.namespace, "--iface", pair.near) as listener:
        if how == "SIGTERM":
            listener.process.send_signal(signal.SIGTERM)
        else:
            listener.process.stdin.close()
        assert listener.process.wait(LIMIT_SECONDS) == 0
        assert listener.errors.read_text() == ""


@needs_network
def test_alert_command_and_syslog(tmp_path, pair, by_hand):
    """Each alert goes to standard error, to syslog and to the command, which gets it as JSON."""
    first = by_hand()
    command = script(tmp_path, f"echo to the protocol; cat >>{shlex.quote(str(tmp_path))}/got; exit 3")
    with syslog_socket(tmp_path) as log:
        arguments = ("--iface", pair.near, "--alert-command", command)
        with Listener(tmp_path, pair.namespace, *arguments, before=under_syslog(tmp_path)) as listener:
            listener.state("BACKOFF")
            listener.state("FATAL", more="")
            logged = until(lambda: log.recv(1 << 16), what="a line in syslog")
            while b"ALERT" not in logged:
                logged = log.recv(1 << 16)
            got = until(lambda: lines(tmp_path / "got"), what="the command to have run")
            until(lambda: "failed: exit 3" in listener.errors.read_text(), what=listener.errors.read_text)
            text = listener.errors.read_text()
    assert (len(got), got[0]["event"], got[0]["holder"]["pid"]) == (1, "alert", first.pid)
    assert logged.startswith(b"<26>"), "daemon.crit"
    assert f"held by pid {first.pid}".encode() in logged
    assert (
        text.count(f"ALERT: http-capture on {os.uname().nodename} is BACKOFF: the guard is held by pid {first.pid}")
        == 1
    )
    assert "to the protocol" in text


@needs_network
def test_alert_command_that_hangs(tmp_path, pair):
    """It holds up nothing, and is ended with the listener."""
    command = script(tmp_path, f"echo $$ >{shlex.quote(str(tmp_path))}/pid; sleep 1000 & sleep 1000")
    with Listener(tmp_path, pair.namespace, "--iface", pair.near, "--alert-command", command) as listener:
        began = time.monotonic()
        listener.state("BACKOFF")
        listener.state("UNKNOWN", more="")
        assert time.monotonic() - began < 5
        pid = int(until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), what="its start"))
        listener.process.stdin.close()
        assert listener.process.wait(LIMIT_SECONDS) == 0
        sleeping = subprocess.run(["ip", "netns", "pids", pair.namespace], capture_output=True, text=True, check=True)
        assert (alive(pid), sleeping.stdout) == (False, "")


SUPERVISED = {"SUPERVISOR_ENABLED": "1", "SUPERVISOR_SERVER_URL": "unix:///nowhere"}


@pytest.mark.parametrize(
    ("arguments", "env", "code", "text"),
    [
        ((), SUPERVISED, 64, "--iface"),
        (("--iface", "lo"), {}, 64, "started by supervisord"),
        (("--iface", "lo", "--nonsense"), SUPERVISED, 64, "--nonsense"),
        (("--iface", "lo", "--alert-command", "/nowhere/x"), SUPERVISED, 64, "/nowhere/x"),
        (("--iface", "lo", "--alert-command", "'"), SUPERVISED, 64, "closing quotation"),
        (("--config", "/nowhere/x.toml"), SUPERVISED, 78, "/nowhere/x.toml"),
        (("--iface", "lo"), {"SUPERVISOR_ENABLED": "1"}, 78, "[unix_http_server]"),
        (("--iface", "lo"), {**SUPERVISED, "SUPERVISOR_SERVER_URL": "gopher://x"}, 78, "[unix_http_server]"),
    ],
)
def test_what_an_operator_can_get_wrong(run, arguments, env, code, text):
    """One line before the protocol begins."""
    done = run("supervisor-listener", *arguments, env=env)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith("http-capture: ")
    assert (done.stderr.count("\n"), text in done.stderr) == (1, True), done.stderr


def test_without_the_package(run, tmp_path):
    (tmp_path / "supervisor.py").write_text("raise ImportError")
    path = os.pathsep.join([str(tmp_path), environment().get("PYTHONPATH", "")])
    done = run("supervisor-listener", "--iface", "lo", env={**SUPERVISED, "PYTHONPATH": path})
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (69, "", 1)
    assert "install http-capture[supervisor]" in done.stderr


def test_settings_file(run, tmp_path):
    """The pidfile and the NIC can come from the program's own settings: it then asks for what comes next."""
    (tmp_path / "settings.toml").write_text('[source]\niface = ["lo"]\n')
    done = run("supervisor-listener", "--config", tmp_path / "settings.toml")
    assert (done.returncode, "started by supervisord" in done.stderr) == (64, True)
