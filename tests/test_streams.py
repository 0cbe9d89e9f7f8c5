"""Standard streams that are closed, full, or that nobody reads any more, and the log: what is said is lost, and neither
the exit code nor a record is."""

import errno
import json
import os
import subprocess

import pytest
from command import COMMAND, environment
from traffic import Conversation, http_request, http_response, write_pcap


@pytest.fixture
def capture(tmp_path):
    conversation = Conversation()
    conversation.handshake()
    conversation.send("client", http_request())
    conversation.send("server", http_response())
    conversation.close()
    path = tmp_path / "one.pcap"
    write_pcap(path, conversation.frames)
    return path


@pytest.fixture
def cut(capture):
    path = capture.with_name("cut.pcap")
    path.write_bytes(capture.read_bytes()[:-5])
    return path


def shell(line, *arguments, **more):
    """A shell's redirections, as an operator writes them; `$@` is the program."""
    return subprocess.run(
        ["sh", "-c", line.replace("$@", '"$@"'), "sh", *COMMAND, *map(str, arguments)], capture_output=True, text=True,
        timeout=60, check=False, env=environment(**more),
    )  # fmt: skip


@pytest.mark.parametrize("closed", ["2>&-", "0<&- 2>&-", "2>/dev/full", "2>&1 >&3 3>&- | true"])
def test_records_need_no_standard_error(capture, closed):
    done = shell(f"exec 3>&1; ($@ {closed}; echo code $? >&3)", "--read", capture)
    lines = done.stdout.splitlines()
    assert "code 0" in lines
    (record,) = (line for line in lines if line != "code 0")
    assert json.loads(record)["url"]["path"]


@pytest.mark.parametrize("gone", ["2>&-", "2>/dev/full", "2>&1 | true"])
def test_the_exit_code_needs_none(cut, gone):
    for arguments, code in (
        (("--read", cut, "--sink", "null"), 65),
        (("--read", cut, "--sink", "null", "--log-file", "/dev/full"), 65),
        (("--read", "absent", "--sink", "null"), 66),
        (("--read", cut, "--sink", "file:/dev/full"), 64),
        (("--iface", "nosuch0", "--no-interface-lock", "--pidfile", cut), 73),
        (("--nonsense",), 64),
    ):
        done = shell(f"exec 3>&1; ($@; echo code $? >&3) {gone} 3>&3", *arguments)
        assert f"code {code}" in done.stdout, arguments


def test_a_refusal_does_not_end_among_the_records(cut):
    done = shell("$@ 2>&-", "--iface", "nosuch0", "--no-interface-lock", "--pidfile", cut)
    assert done.returncode == 73
    assert done.stdout == ""


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(("verb", "code"), [("status", 3), ("stop", 0), ("schema", 0), ("--help", 0)])
def test_an_answer_that_nobody_reads(tmp_path, verb, code, unbuffered):
    pidfile = () if verb in ("schema", "--help") else ("--pidfile", tmp_path / "pid")
    done = shell("exec 3>&1; ($@; echo code $? >&3) | true", verb, *pidfile, PYTHONUNBUFFERED=unbuffered)
    assert done.stdout == f"code {code}\n"
    assert done.stderr == ""


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(("verb", "code"), [("status", 3), ("stop", 0), ("schema", 74), ("--version", 74)])
def test_an_answer_that_cannot_be_written(tmp_path, verb, code, unbuffered):
    pidfile = () if verb in ("schema", "--version") else ("--pidfile", tmp_path / "pid")
    done = shell("$@ >/dev/full", verb, *pidfile, PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == code
    assert done.stderr == "http-capture: cannot write to standard output: No space left on device\n"


def test_a_log_that_is_full_is_told_on_standard_error(cut, run):
    done = run("--read", cut, "--sink", "null", "--log-file", "/dev/full", "--quiet")
    assert done.returncode == 65
    assert "Traceback" not in done.stderr
    told = [line for line in done.stderr.splitlines() if line.endswith(" (/dev/full: No space left on device)")]
    assert told[-1].startswith(f"http-capture: capture file {cut} is damaged")


@pytest.mark.parametrize(
    ("name", "code", "why"),
    [
        (".", 74, os.strerror(errno.EISDIR)),
        ("absent/log", 74, os.strerror(errno.ENOENT)),
        ("fifo", 74, "nothing reads"),
    ],
)
def test_a_log_that_cannot_be_opened(run, capture, tmp_path, name, code, why):
    os.mkfifo(tmp_path / "fifo")
    done = run("--read", capture, "--sink", "null", "--log-file", tmp_path / name)
    assert done.returncode == code
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"http-capture: log file {tmp_path / name} cannot be opened: ")
    assert why in line


def test_quiet_is_not_silent_about_what_is_wrong(run, cut, capture):
    assert "ledger" in run("--read", cut, "--sink", "null", "--quiet").stderr
    assert "ledger" not in run("--read", capture, "--sink", "null", "--quiet").stderr
