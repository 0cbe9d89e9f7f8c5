"""The command itself, in processes of its own: what it says, what it exits with, what it leaves behind."""

import gzip
import json
import os
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time

import jsonschema
import pytest
from command import environment
from http_capture.capture.cli import VERBS
from traffic import Conversation, http_request, http_response, write_pcap


def frames(exchanges=3, *, end=True):
    conversation = Conversation()
    conversation.handshake()
    for number in range(exchanges):
        conversation.send("client", http_request("GET", f"/{number}"))
        conversation.send("server", http_response(200, (("Content-Type", "text/plain"),), b"answer %d" % number))
    if end:
        conversation.close()
    return conversation.frames


@pytest.fixture
def capture(tmp_path):
    """A capture of three exchanges."""
    path = tmp_path / "three.pcap"
    write_pcap(path, frames())
    return path


@pytest.fixture(scope="module")
def powerless():
    """What is put before a command so that it runs without any privilege: root's come from its capabilities."""
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("needs setpriv (util-linux) to give up privileges")
    return ["setpriv", "--inh-caps=-all", "--bounding-set=-all"]


def refused(done, code, *mentions):
    """One line on standard error, nothing on standard output."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("http-capture: ")
    for text in mentions:
        assert str(text) in line
    return line


def records(done):
    return [json.loads(line) for line in done.stdout.splitlines()]


def ledger(stderr):
    last = json.loads((stderr.decode() if isinstance(stderr, bytes) else stderr).splitlines()[-1])
    assert last["event"] == "ledger"
    return last


def line_within(stream, seconds=20):
    """The next line of a pipe, or what is there of it when the time is over."""
    data = b""
    deadline = time.monotonic() + seconds
    while not data.endswith(b"\n") and (left := deadline - time.monotonic()) > 0:
        if select.select([stream], [], [], left)[0]:
            piece = os.read(stream.fileno(), 1)
            if not piece:
                break
            data += piece
    return data


# --- what cannot be done


def written(name, data):
    def make(folder):
        (folder / name).write_bytes(data)
        return folder / name

    return make


def folder_without_captures(folder):
    (folder / "day").mkdir()
    (folder / "day" / "notes.txt").write_text("no capture")
    return folder / "day"


@pytest.mark.parametrize(
    ("make", "mentions"),
    [
        (written("notes.txt", b"these are notes, no capture"), ["is no capture", "pcap or pcapng"]),
        (written("empty.pcap", b""), ["is empty", "0 bytes"]),
        (written("few.pcap", b"\xd4\xc3"), ["is no capture", "2 bytes"]),
        (written("notes.gz", gzip.compress(b"these are notes")), ["is no capture", "when unpacked"]),
        (written("picture.pcap", b"\x89PNG\r\n\x1a\n" + bytes(50)), ["is"]),
        (folder_without_captures, ["no capture"]),
        (lambda folder: folder / "absent.pcap", ["absent.pcap"]),
        (lambda folder: folder / "a\nb.pcap", []),
        (lambda folder: "/proc/self/mem", []),
    ],
)
def test_what_is_no_capture(run, tmp_path, make, mentions):
    path = make(tmp_path)
    refused(run("--read", path, "--sink", f"file:{tmp_path / 'out'}"), 66, *mentions)
    assert not (tmp_path / "out").exists()


def test_each_input_is_looked_at_before_the_first_is_read(run, capture, tmp_path):
    refused(run("--read", capture, tmp_path / "absent"), 66, "absent")


def test_standard_input_that_is_no_capture(run):
    for data in ("", "x", "these are notes, no capture"):
        done = run("--read", "-", "--quiet", stdin=None, input=data)
        assert done.returncode == 66
        assert done.stdout == ""
        assert any("standard input" in line for line in done.stderr.splitlines())
        assert "Traceback" not in done.stderr


def test_a_file_that_may_not_be_read(run, powerless, capture):
    capture.chmod(0)
    refused(run("--read", capture, before=powerless), 77, capture)


def test_a_nic_that_is_not_there(run, tmp_path):
    done = run("--iface", "nosuch0", "--pidfile", tmp_path / "pid", "--sink", f"file:{tmp_path / 'out'}")
    assert done.returncode == 69
    text, line = done.stderr.splitlines()
    assert "nosuch0" in text
    assert "there are: " in text
    assert json.loads(line)["exit"] == 69  # nobody reads along: the guard says it to a program too
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("source", ["af_packet", "scapy"])
def test_a_nic_without_the_permission(run, powerless, tmp_path, source):
    done = run("--iface", "lo", "--source", source, "--pidfile", tmp_path / "pid", before=powerless)
    refused(done, 77, "not permitted", "lo", "CAP_NET_RAW")


def test_a_wrong_setting_is_told_before_a_broker_is_waited_for(run, capture):
    before = time.monotonic()
    refused(run("--read", capture, "--brokers", "127.0.0.1:1", "--set", "tcp.max_connections=none"), 78)
    assert time.monotonic() - before < 5


@pytest.mark.once
@pytest.mark.parametrize(
    ("arguments", "mentions"),
    [
        (["--set", "tcp.max_conections=1"], ["max_conections", "did you mean", "max_connections"]),
        (["--set", "tpc.max_connections=1"], ["tpc", "did you mean"]),
        (["--set", "tcp.max_connections=-1"], ["[tcp] max_connections", "at least 1"]),
        (["--set", "tcp.max_connections=many"], ["[tcp] max_connections", "'many'", "a whole number"]),
        (["--set", "body.keep=some"], ["[body] keep", "all, none, text"]),
        (["--config", "absent.toml"], ["absent.toml", "No such file"]),
        (["--config", "wrong.toml"], ["wrong.toml", "line 2"]),
        (["--config", "unknown.toml"], ["unknown.toml", "did you mean"]),
        (["--set", "sink.to=@bad@"], ["the command line", "[sink] to", "'@bad@'", "kafka, stdout, null, file:PATH"]),
        (["--brokers", ""], ["[kafka] brokers", "is empty", "HOST:PORT"]),
        (["--set", "tcp.idle_timeout_seconds=9e9"], ["[tcp] idle_timeout_seconds", "at most 1000000"]),
        (["--filter", os.fsdecode(b"\xff")], ["[source] filter", "is not UTF-8"]),
        (["--workers", os.fsdecode(b"\xff")], ["[workers] count", "is not UTF-8"]),
        (["--brokers", os.fsdecode(b"\xff:1")], ["[kafka] brokers", "is not UTF-8"]),
        (["--user", os.fsdecode(b"\xff")], ["[process] user", "is not UTF-8"]),
        (["--brokers", "a:1", "--kafka", os.fsdecode(b"\xff=1")], ["librdkafka", "is not UTF-8"]),
        (["--set", os.fsdecode(b"\xff.a=1")], ["is not a setting"]),
    ],
)
def test_wrong_settings(run, capture, tmp_path, arguments, mentions):
    (tmp_path / "wrong.toml").write_text("[tcp]\nmax_connections = = 1\n")
    (tmp_path / "unknown.toml").write_text("[tcp]\nmax_conns = 1\n")
    refused(run("--read", capture, *arguments), 78, *mentions)


def test_a_password_that_is_not_utf_8_is_not_shown(run, capture):
    name = "HTTP_CAPTURE_KAFKA_LIBRDKAFKA_SASL_PASSWORD"
    line = refused(
        run("--read", capture, "--brokers", "127.0.0.1:1", env={name: os.fsdecode(b"p\xe4ssword")}), 78, name, "UTF-8"
    )
    assert "ssword" not in line


def test_a_setting_of_librdkafka_is_set_as_any_other(run, capture):
    for name in ("socket.timeout.mss", "socket.timeout.ms"):
        done = run("--read", capture, "--brokers", "127.0.0.1:1", "--set", f"kafka.librdkafka.{name}=soon")
        line = refused(done, 78, f'"{name}"')
        assert ("Invalid value" in line) is (name == "socket.timeout.ms")  # librdkafka knows this one


def test_paths_may_have_any_bytes(run, capture, tmp_path):
    odd = os.fsdecode(b"\xff")
    capture.rename(tmp_path / f"{odd}.pcap")
    done = run("--read", f"{odd}.pcap", "--sink", f"file:{odd}.jsonl", "--log-file", f"{odd}.log")
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / f"{odd}.jsonl").read_text().splitlines()) == 3
    assert (tmp_path / f"{odd}.log").exists()


def test_a_settings_file_of_a_host_serves_a_replay(run, capture, tmp_path):
    (tmp_path / "a.toml").write_text("[source]\niface = ['nosuch0']\n[guard]\npidfile = 'pid'\n")
    done = run("--config", "a.toml", "--read", capture)
    assert done.returncode == 0, done.stderr
    assert len(records(done)) == 3
    assert not (tmp_path / "pid").exists()
    assert run("--config", "a.toml").returncode == 69


def test_a_nic_of_the_command_line_is_guarded_whatever_the_file_reads(run, powerless, capture, tmp_path):
    (tmp_path / "a.toml").write_text(f"[source]\nread = ['{capture}']\n")
    done = run("--config", "a.toml", "--iface", "lo", "--pidfile", tmp_path / "pid", before=powerless)
    refused(done, 77, "not permitted", "lo")
    assert (tmp_path / "pid").exists()  # the guard was held


def test_a_wrong_setting_in_the_environment(run, capture):
    refused(
        run("--read", capture, env={"HTTP_CAPTURE_TCP_MAX_CONECTIONS": "1"}), 78, "HTTP_CAPTURE_TCP_MAX_CONNECTIONS"
    )


@pytest.mark.parametrize("expression", ["tcp prot 80", "(", "host", "\x01"])
def test_a_wrong_filter(run, capture, expression):
    line = refused(run("--read", capture, "--filter", expression), 78)
    assert "filter" in line


@pytest.mark.once
@pytest.mark.parametrize(
    ("arguments", "mentions"),
    [
        ([], ["nothing to read", "--iface", "--read"]),
        (["stat"], ["no such command", "'stat'", "--help"]),
        (["--nosuch"], ["--nosuch", "--help"]),
        (["--read", "three.pcap", "--iface", "lo"], ["--iface", "--read", "exclude"]),
        (["--read"], ["--read"]),
        (["--read", "-", "-"], ["standard input", "twice"]),
        (["--read", "three.pcap", "--bodies", "some"], ["--bodies", "none"]),
        (["--read", "three.pcap", "--sink", "nosuch"], ["'nosuch'", "kafka, stdout, null, file:PATH"]),
        (["--read", "three.pcap", "--sink", "kafka"], ["--brokers"]),
        (["--read", "three.pcap", "--sink", "file:"], ["file:PATH"]),
        (["--read", "three.pcap", "--set", "tcp"], ["TABLE.KEY=VALUE", "'tcp'"]),
        (["--read", "three.pcap", "--set", "x=1"], ["TABLE.KEY=VALUE"]),
        (["--read", "three.pcap", "--kafka", "linger.ms"], ["--kafka", "KEY=VALUE"]),
    ],
)
def test_wrong_usage(run, capture, arguments, mentions):
    refused(run(*arguments), 64, *mentions)


def test_a_broker_that_does_not_answer(run, capture, tmp_path):
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # a port where nobody listens
        broker = f"127.0.0.1:{held.getsockname()[1]}"
        before = time.monotonic()
        done = run("--read", capture, "--brokers", broker, "--set", "kafka.start_timeout_seconds=1")
    refused(done, 69, broker)
    assert time.monotonic() - before < 10


def test_an_output_that_cannot_be_made(run, capture, tmp_path):
    done = run("--read", capture, "--sink", f"file:{tmp_path / 'absent' / 'out'}")
    assert done.returncode in (73, 74, 77)
    refused(done, done.returncode, tmp_path / "absent" / "out")


def test_a_log_that_cannot_be_made(run, capture, tmp_path):
    done = run("--read", capture, "--log-file", tmp_path / "absent" / "log")
    refused(done, done.returncode, tmp_path / "absent" / "log")
    assert done.returncode != 0


def test_a_full_disk_is_told_and_the_records_are_counted_as_not_delivered(run, capture):
    with open("/dev/full", "wb") as full:
        done = run("--read", capture, "--json", capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 74
    assert "Traceback" not in done.stderr
    assert "No space left" in done.stderr
    told = ledger(done.stderr)
    assert told["balanced"] is True
    assert sum(told["records"]["undelivered"].values()) == told["records"]["total"] == 3


# --- what it says of itself


def test_help_fits_two_screens(run):
    done = run("--help")
    assert done.returncode == 0
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert len(lines) <= 100
    assert max(map(len, lines)) <= 120
    assert "examples:" in lines
    for option in ("--iface", "--pidfile", "--read", "--brokers", "--topic", "--sink", "--bodies", "--config", "--set"):
        assert option in done.stdout
    for option in ("--no-interface-lock", "--die-with-parent", "--user"):
        assert option in done.stdout
    for verb in VERBS:
        assert any(line.startswith(f"  {verb} ") for line in lines)
    for code in (64, 65, 66, 69, 70, 73, 74, 75, 76, 77, 78, 130):
        assert f"{code} " in done.stdout
    assert "0 running, 1 dead" in done.stdout


def test_the_examples_of_the_help_are_right(run, capture, tmp_path):
    (tmp_path / "day").mkdir()
    shutil.copy(capture, tmp_path / "trace.pcapng")
    shutil.copy(capture, tmp_path / "day" / "one.pcap")
    lines = run("--help").stdout.partition("examples:\n")[2].partition("\n\n")[0].splitlines()
    examples = [shlex.split(line.rpartition("http-capture ")[2].split("   ")[0]) for line in lines]
    assert len(examples) >= 4
    for arguments in examples:
        if "--iface" in arguments:
            arguments = [word.replace("eth1", "nosuch0") for word in arguments]
            arguments += ["--pidfile", str(tmp_path / "pid")]
            assert run(*arguments).returncode == 69
        else:
            done = run(*arguments, stdin=None, input=capture.read_bytes(), text=False)
            assert done.returncode == 0, done.stderr


def test_version(run):
    done = run("--version")
    assert done.returncode == 0
    assert done.stdout.startswith("http-capture ")
    assert done.stderr == ""
    tested = os.environ.get("HTTP_CAPTURE_TESTED")
    if tested:
        assert ("hot modules compiled" in done.stdout) == (tested == "compiled")


def test_schema(run):
    done = run("schema")
    assert done.returncode == 0
    jsonschema.Draft202012Validator.check_schema(json.loads(done.stdout))


# --- replays


def test_records_go_to_standard_output_and_nothing_else_does(run, capture):
    done = run("--read", capture)
    assert done.returncode == 0
    assert [record["url"]["path"] for record in records(done)] == ["/0", "/1", "/2"]
    assert "balanced" in done.stderr


@pytest.mark.parametrize("arguments", [["run"], []])
def test_run_is_the_verb_that_may_be_left_out(run, capture, arguments):
    assert len(records(run(*arguments, "--read", capture))) == 3


def test_quiet(run, capture):
    done = run("--read", capture, "--quiet", "--log-level", "error")
    assert done.returncode == 0
    assert done.stderr == ""


def test_json_ends_with_the_ledger(run, capture):
    told = ledger(run("--read", capture, "--json").stderr)
    assert told["balanced"] is True
    assert told["imbalances"] == []
    assert told["records"]["delivered"] == told["exchanges"]["total"] == 3
    assert told["frames"]["read"] == len(frames())


def test_a_file_of_records(run, capture, tmp_path):
    done = run("--read", capture, "--sink", f"file:{tmp_path / 'out.jsonl'}")
    assert done.returncode == 0
    assert done.stdout == ""
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 3


def test_several_files_and_a_folder(run, tmp_path):
    (tmp_path / "day").mkdir()
    for number in range(3):
        conversation = Conversation(client=("10.0.0.1", 40000 + number), start_ns=(1_700_000_000 - number) * 10**9)
        conversation.handshake()
        conversation.send("client", http_request("GET", f"/{number}"))
        conversation.send("server", http_response())
        conversation.close()
        write_pcap(tmp_path / "day" / f"{number}.pcap", conversation.frames)
    done = run("--read", tmp_path / "day")
    assert [record["url"]["path"] for record in records(done)] == ["/2", "/1", "/0"]
    first, second, third = sorted((tmp_path / "day").iterdir())
    done = run("--read", first, second, "--read", third)
    assert sorted(record["url"]["path"] for record in records(done)) == ["/0", "/1", "/2"]


def test_a_filter(run, tmp_path):
    write_pcap(tmp_path / "a.pcap", frames())
    assert len(records(run("--read", tmp_path / "a.pcap", "--filter", "tcp port 80"))) == 3
    done = run("--read", tmp_path / "a.pcap", "--filter", "tcp port 81", "--json")
    assert records(done) == []
    assert ledger(done.stderr)["frames"]["filtered"] == len(frames())


@pytest.mark.parametrize("cut", [1, 40, 1000])
def test_a_cut_capture_gives_what_is_in_it(run, tmp_path, cut):
    path = tmp_path / "cut.pcap"
    write_pcap(path, frames(20))
    os.truncate(path, path.stat().st_size - cut)
    done = run("--read", path, "--json")
    assert done.returncode == 65
    assert "Traceback" not in done.stderr
    assert any("cut.pcap" in line and "cut off" in line for line in done.stderr.splitlines())
    assert ledger(done.stderr)["balanced"] is True
    whole = [record for record in records(done) if record["http_capture"]["complete"]]
    assert len(whole) >= 14
    assert len(records(done)) <= 20


def test_a_reader_that_goes_away_ends_it_quietly(start, tmp_path):
    path = tmp_path / "many.pcap"
    write_pcap(path, frames(3000))
    process = start("--read", path, "--log-level", "warning")
    assert json.loads(line_within(process.stdout))["url"]["path"] == "/0"
    process.stdout.close()
    assert process.wait(30) == 0
    assert process.stderr.read() == b""


def test_records_come_while_standard_input_is_still_being_written(start, tmp_path):
    path = tmp_path / "a.pcap"
    conversation = Conversation()
    conversation.handshake()
    conversation.send("client", http_request("GET", "/now"))
    conversation.send("server", http_response(200, (("Content-Type", "text/plain"),), b"until the end", length=False))
    conversation.close("server")
    write_pcap(path, conversation.frames)
    process = start("--read", "-")
    process.stdin.write(path.read_bytes())
    process.stdin.flush()
    record = json.loads(line_within(process.stdout))
    assert record["url"]["path"] == "/now"
    assert record["http_capture"]["complete"] is True
    assert process.poll() is None
    process.stdin.close()
    assert process.wait(30) == 0
    assert process.stdout.read() == b""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_a_replay_with_its_ledger(start, tmp_path, number):
    path = tmp_path / "a.pcap"
    conversation = Conversation()
    conversation.handshake()
    conversation.send("client", http_request("GET", "/answered"))
    conversation.send("server", http_response())
    conversation.send("client", http_request("GET", "/waiting"))
    write_pcap(path, conversation.frames)
    process = start("--read", "-", "--json")
    process.stdin.write(path.read_bytes())
    process.stdin.flush()
    first = line_within(process.stdout)
    process.send_signal(number)
    assert process.wait(30) == 0
    found = [json.loads(first), *map(json.loads, process.stdout.read().splitlines())]
    assert [record["url"]["path"] for record in found] == ["/answered", "/waiting"]
    assert found[1]["http_capture"]["incomplete_reason"] == "shutdown"
    told = ledger(process.stderr.read())
    assert told["balanced"] is True
    assert told["records"]["delivered"] == 2


def test_sighup_opens_the_log_anew(start, tmp_path):
    path, log = tmp_path / "a.pcap", tmp_path / "log"
    write_pcap(path, frames())
    process = start("--read", "-", "--log-file", log, "--quiet")
    process.stdin.write(path.read_bytes())
    process.stdin.flush()
    assert line_within(process.stdout)
    log.rename(tmp_path / "log.1")
    process.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    process.stdin.write(b"cut")  # a line for the log
    process.stdin.close()
    assert process.wait(30) == 65
    assert "cut off" in log.read_text()
    assert "cut off" not in (tmp_path / "log.1").read_text()


def test_the_command_is_installed_under_its_name(run, capture):
    command = shutil.which("http-capture", path=os.path.dirname(sys.executable))
    if command is None:
        pytest.skip("this environment has the package on its path only, not installed")
    done = subprocess.run(
        [command, "--read", capture], env=environment(), capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0
    assert len(records(done)) == 3
