"""`http-capture status`, `stop`, `verify` as they are typed: arguments, words, exit codes."""

import json
import os
import subprocess
import sys
import time

import pytest
from command import COMMAND, environment
from network import inside, needs_network, veth

VERBS = ("status", "stop", "verify")
pytestmark = pytest.mark.once


@pytest.fixture
def copy(tmp_path):
    """A running copy in a namespace of its own: its pid, its pidfile and the namespace."""
    with veth() as pair:
        pidfile = tmp_path / "pid"
        with inside(pair.namespace):
            process = subprocess.Popen(
                [*COMMAND, "--iface", pair.near, "--pidfile", pidfile, "--sink", "null"], env=environment(),
                stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
        try:
            while "recording" not in (line := process.stderr.readline()):
                assert line, "it has ended"
            yield process, pidfile, pair
        finally:
            process.kill()
            process.communicate()


@pytest.mark.parametrize("verb", VERBS)
def test_help_teaches(run, verb):
    done = run(verb, "--help")
    assert done.returncode == 0
    assert done.stderr == ""
    assert "exit codes" in done.stdout
    assert "examples:" in done.stdout
    for option in ("--pidfile", "--iface", "--config", "--json"):
        assert option in done.stdout
    assert all(len(line) <= 120 for line in done.stdout.splitlines())


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("wrong", [["--what"], ["x"], ["--pidfile"], ["--pid", "x"]])
def test_usage(run, verb, wrong):
    done = run(verb, *wrong)
    assert (done.returncode, done.stdout) == (64, "")
    assert done.stderr.count("\n") == 1
    assert done.stderr.endswith(f"(see http-capture {verb} --help)\n")


@pytest.mark.parametrize("seconds", ["-1", "nan", "inf", "1e9", "x", ""])
def test_a_timeout_that_is_none(run, seconds):
    done = run("stop", f"--timeout={seconds}")
    assert done.returncode == 64
    assert done.stderr.count("\n") == 1
    assert "--timeout" in done.stderr
    assert "must be 0 to " in done.stderr


@pytest.mark.parametrize("verb", VERBS)
def test_settings_that_cannot_be_read(run, verb, tmp_path):
    broken = tmp_path / "broken.toml"
    broken.write_text("[guard\n")
    done = run(verb, "--config", broken)
    assert done.returncode == 78
    assert done.stderr.count("\n") == 1
    assert str(broken) in done.stderr
    assert run(verb, env={"HTTP_CAPTURE_GUARD_PIDFILE": ""}).returncode == 78


def test_where_the_pidfile_is_from(run, tmp_path):
    settings = tmp_path / "x.toml"
    settings.write_text('[guard]\npidfile = "/from/file"\n[source]\niface = ["eth-file"]\n')

    def seen(*arguments, **env):
        return json.loads(run("status", "--json", *arguments, env=env).stdout)

    assert seen()["pidfile"] == "/run/http-capture.pid"
    from_file = seen("--config", settings)
    assert (from_file["pidfile"], from_file["interfaces"]) == ("/from/file", ["eth-file"])
    both = {"HTTP_CAPTURE_GUARD_PIDFILE": "/from/env", "HTTP_CAPTURE_CONFIG": str(settings)}
    assert seen(**both)["pidfile"] == "/from/env"
    flags = seen("--pidfile", "flag", "--iface", "a", "--iface", "b", **both)
    assert (flags["pidfile"], flags["interfaces"]) == (str(tmp_path / "flag"), ["a", "b"])
    assert not (tmp_path / "flag").exists()


def test_only_the_standard_library(tmp_path):
    code = (
        "import sys\nfrom http_capture.capture.cli import main\n"
        f"main(['status', '--pidfile', {str(tmp_path / 'x')!r}])\n"
        "print([name for name in ('msgspec', 'confluent_kafka', 'logging', 'asyncio') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_nothing_runs(run, tmp_path):
    path = tmp_path / "x"
    done = run("status", "--pidfile", path)
    assert (done.returncode, done.stderr) == (3, "")
    assert done.stdout.splitlines()[0] == f"http-capture: not running, {path} is free"
    done = run("stop", "--pidfile", path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"http-capture: nothing to stop: {path} is free")
    assert not path.exists()


def test_text_of_one_that_is_dead(run, tmp_path):
    path = tmp_path / "x"
    path.write_text("4711\nboot: x\n")
    done = run("status", "--pidfile", path)
    assert done.returncode == 1
    assert f"dead, {path} still has the text of pid 4711, which is gone" in done.stdout
    assert path.read_text() == "4711\nboot: x\n"


@pytest.mark.parametrize("verb", VERBS)
def test_what_is_printed_is_printable(run, tmp_path, verb):
    path = tmp_path / "a\nb\x1b[31m"
    path.mkdir()
    done = run(verb, "--pidfile", path, "--iface", "x\ny\x1b")
    assert done.stderr == ""
    assert all(line.isprintable() for line in done.stdout.splitlines())
    assert "b\\x1b[31m" in done.stdout
    json.loads(run(verb, "--pidfile", path, "--json").stdout)
    assert "Traceback" not in run(verb, "--pidfile", "nul", "--iface", os.fsdecode(b"\xff\xfe")).stderr


@needs_network
def test_status_of_a_copy(run, copy):
    process, pidfile, pair = copy
    with inside(pair.namespace):
        done = run("status", "--pidfile", pidfile)
        told = json.loads(run("status", "--iface", pair.near, "--json").stdout)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == f"http-capture: running on {pair.near}"
    assert lines[1].startswith(f"  holder: pid {process.pid}, up ")
    assert "started by hand (user root), http-capture --iface" in lines[1]
    assert lines[2] == f"  held:   {pidfile} (lock), {pair.near} (interface)"
    assert lines[3].startswith("  instance: ")
    assert len(lines) == 4
    assert (told["command"], told["exit"], told["running"]) == ("status", 0, True)
    assert told["holder"]["pid"] == process.pid
    assert told["instance"] == lines[3].split()[1]


@needs_network
def test_stop_of_a_copy(run, copy):
    process, pidfile, pair = copy
    inode = pidfile.stat().st_ino
    with inside(pair.namespace):
        done = run("stop", "--pidfile", pidfile)
        assert done.returncode == 0
        assert done.stderr == f"http-capture: asked pid {process.pid} to stop, waiting up to 30 s\n"
        assert done.stdout.startswith(f"http-capture: pid {process.pid} has stopped after ")
        assert process.wait(20) == 0
        assert (pidfile.read_bytes(), pidfile.stat().st_ino) == (b"", inode)
        assert run("status", "--pidfile", pidfile, "--iface", pair.near).returncode == 3
        told = run("stop", "--pidfile", pidfile, "--json").stdout
    assert told.count("\n") == 1
    assert {"exit": 0, "what": "nothing", "pid": None}.items() <= json.loads(told).items()


@needs_network
def test_a_stopped_copy_is_not_stopped_politely(run, copy):
    process, pidfile, pair = copy
    process.send_signal(19)
    with inside(pair.namespace):
        done = run("stop", "--pidfile", pidfile)
        assert done.returncode == 1
        assert f"kill -CONT {process.pid} && http-capture stop --pidfile {pidfile}, or --kill" in done.stdout
        status = run("status", "--pidfile", pidfile)
        assert "stopped by a signal or a debugger" in status.stdout
        assert run("stop", "--pidfile", pidfile, "--kill").returncode == 0
    assert process.wait(20) == 0


@needs_network
def test_a_supervised_copy_is_left_alone(run, tmp_path):
    pytest.importorskip("supervisor", reason="needs supervisor")
    pidfile, conf = tmp_path / "pid", tmp_path / "supervisord.conf"
    with veth() as pair, inside(pair.namespace):
        command = " ".join([*COMMAND, "--iface", pair.near, "--pidfile", str(pidfile), "--sink", "null"])
        conf.write_text(
            f"[supervisord]\nnodaemon=true\nlogfile={tmp_path}/log\npidfile={tmp_path}/supervisord.pid\n"
            f"[program:http-capture]\ncommand={command}\nstderr_logfile={tmp_path}/stderr\n"
        )
        supervisord = subprocess.Popen(
            [sys.executable, "-m", "supervisor.supervisord", "-c", conf], env=environment(), stdout=subprocess.DEVNULL
        )
        try:
            deadline = time.monotonic() + 40
            while run("status", "--pidfile", pidfile).returncode != 0:
                assert time.monotonic() < deadline
            done = run("stop", "--pidfile", pidfile, "--kill")
            assert done.returncode == 1
            assert "supervisord looks after it: stop it there: supervisorctl stop http-capture" in done.stdout
            assert run("status", "--pidfile", pidfile).returncode == 0
        finally:
            supervisord.terminate()
            supervisord.wait(40)
