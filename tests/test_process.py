"""The life of the process: as which user it runs, with whom it ends, what systemd is told, how it stops, and that its
guard is checked. The real program on veth pairs in namespaces of the tests' own."""

import configparser
import contextlib
import itertools
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import brotli
import pytest
from command import COMMAND, environment
from http_capture.capture import process
from http_capture.capture.errors import ConfigurationError, NotPermittedError
from http_capture.capture.notify import Notify
from http_capture.capture.sink.embedded import EmbeddedBroker
from network import inside, ip, needs_network, sender, unprivileged, veth
from traffic import Conversation, http_request, http_response, write_pcap

NOBODY = 65534
LIMIT_SECONDS = 60.0  # that anything may take on a busy machine before the test fails
UNIT = pathlib.Path(__file__).parents[1] / "supervisor" / "systemd" / "http-capture.service"
needs_setpriv = pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv (util-linux)")
needs_root = pytest.mark.root(pytest.mark.skipif(os.geteuid() != 0, reason="needs root"))


def eventually(what, seconds=LIMIT_SECONDS):
    """Waits until this is true, and returns what it gave."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "this has not come"
        time.sleep(0.01)
    return found


class Live:
    """The program on a NIC, its records on standard output, both outputs in files; killed at the end."""

    def __init__(self, folder, pair, *arguments, under=(), env=None, command=COMMAND, sink="stdout"):
        self.pair = pair
        self.pidfile = folder / "live.pid"
        self.errors = folder / f"{time.monotonic_ns()}.err"
        self.output = self.errors.with_suffix(".out")
        words = [*under, *command, "--iface", pair.far, "--pidfile", self.pidfile, "--sink", sink, "--json", *arguments]
        with open(self.errors, "wb") as err, open(self.output, "wb") as out, inside(pair.namespace):
            self.process = subprocess.Popen(
                [str(word) for word in words], stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                env=environment(**(env or {})),
            )  # fmt: skip

    def __enter__(self):
        self.until("recording far0")
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    @property
    def said(self):
        return self.errors.read_text()

    def until(self, text, seconds=LIMIT_SECONDS):
        eventually(lambda: text in self.said or (self.process.poll() is not None and pytest.fail(self.said)), seconds)

    def exchange(self, number=1, headers=(("Content-Type", "text/plain"),), body=b"hello"):
        """One exchange over the cable, to the path /NUMBER."""
        conversation = Conversation(client=("10.0.0.1", 20000 + number))
        conversation.handshake()
        conversation.send("client", http_request(target=f"/{number}"))
        conversation.send("server", http_response(200, headers, body))
        conversation.close()
        with sender(self.pair.namespace, self.pair.near) as out:
            for _, frame in conversation.frames:
                out.send(frame)

    def records(self):
        return [json.loads(line) for line in self.output.read_text().splitlines()]

    def paths(self):
        return [record["url"]["original"] for record in self.records()]

    def ledger(self):
        (line,) = (line for line in self.said.splitlines() if line.startswith('{"event": "ledger"'))
        ledger = json.loads(line)
        assert ledger["balanced"], ledger["imbalances"]
        return ledger

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self):
        return self.process.wait(LIMIT_SECONDS)


@pytest.fixture
def cable():
    with veth() as pair:
        yield pair


@pytest.fixture
def open_folder():
    """A folder that other users may enter and write, as those of tmp_path may not."""
    folder = pathlib.Path("/tmp") / f"http-capture-{os.getpid()}-{time.monotonic_ns()}"
    folder.mkdir()
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def powers():
    """The Uid, Gid, Groups, CapPrm, CapEff, CapAmb, NoNewPrivs of each thread of a process: a list, the same once."""

    def of(pid):
        found = []
        for thread in pathlib.Path(f"/proc/{pid}/task").iterdir():
            lines = dict(line.split(":", 1) for line in (thread / "status").read_text().splitlines())
            names = ("Uid", "Gid", "Groups", "CapPrm", "CapEff", "CapAmb", "NoNewPrivs")
            values = [" ".join(lines[name].split()) for name in names]
            if values not in found:
                found.append(values)
        return found

    return of


def given_up(uid, gid, groups):
    none = "0" * 16
    return [[" ".join([str(uid)] * 4), " ".join([str(gid)] * 4), groups, none, none, none, "1"]]


# --- Another user


@needs_network
class TestUser:
    @needs_setpriv
    @pytest.mark.parametrize(
        ("user", "ids"), [("nobody", (NOBODY, NOBODY, str(NOBODY))), ("1234:5678", (1234, 5678, ""))]
    )
    def test_is_changed_to_for_good_and_all_goes_on(self, user, ids, cable, powers, open_folder):
        with Live(open_folder, cable, "--user", user, under=["setpriv", "--groups=1,2,3"]) as live:
            assert powers(live.process.pid) == given_up(*ids)
            assert f"as user {user}" in live.said.replace("uid 1234, gid 5678", "1234:5678")
            live.exchange(1)
            ip("link", "set", cable.far, "down", namespace=cable.namespace)
            live.until("far0 is down")
            ip("link", "set", cable.far, "up", namespace=cable.namespace)
            live.until("far0 is up")
            live.exchange(2)
            assert live.pidfile.read_text().startswith(f"{live.process.pid}\n")
            assert live.stop() == 0, live.said
            assert live.paths() == ["/1", "/2"]
            assert live.pidfile.read_bytes() == b""
            assert live.ledger()["guard"]["faults"] == 0

    @pytest.mark.once
    def test_is_that_of_each_thread_of_the_kafka_client(self, cable, powers, tmp_path):
        ip("address", "add", "10.99.0.1/32", "dev", "lo", namespace=cable.namespace)
        with inside(cable.namespace):
            broker = EmbeddedBroker().__enter__()
        try:
            with Live(tmp_path, cable, "--user", "nobody", "--brokers", broker.address, sink="kafka") as live:
                assert len(list(pathlib.Path(f"/proc/{live.process.pid}/task").iterdir())) > 2
                assert powers(live.process.pid) == given_up(NOBODY, NOBODY, str(NOBODY))
                live.exchange()
                assert live.stop() == 0, live.said
                assert live.ledger()["records"]["delivered"] == 1
        finally:
            broker.close()

    @pytest.mark.once
    def test_does_not_keep_a_second_copy_from_being_refused(self, cable, tmp_path):
        with Live(tmp_path, cable, "--user", "nobody") as live:
            second = Live(tmp_path, cable)
            assert second.wait() == 75, second.said
            assert f"pid {live.process.pid}" in second.said
            assert "(user nobody)" in second.said
            assert live.process.poll() is None

    @pytest.mark.once
    def test_writes_the_file_of_records_that_was_opened_before(self, cable, tmp_path):
        with Live(tmp_path, cable, "--user", "nobody", sink=f"file:{tmp_path / 'records'}") as live:
            live.exchange()
            assert live.stop() == 0, live.said
        assert json.loads((tmp_path / "records").read_text())["url"]["original"] == "/1"

    @pytest.mark.once
    def test_may_not_reach_the_folder_of_the_log_and_says_so(self, cable, tmp_path):
        (tmp_path / "logs").mkdir(mode=0o700)
        log = tmp_path / "logs" / "log"
        live = Live(tmp_path, cable, "--user", "nobody", "--log-file", log)
        with contextlib.ExitStack() as stack:
            stack.callback(live.__exit__)
            eventually(lambda: log.exists() and "recording far0" in log.read_text())
            log.rename(tmp_path / "logs" / "log.1")
            live.process.send_signal(signal.SIGHUP)
            time.sleep(0.2)
            ip("link", "set", cable.far, "down", namespace=cable.namespace)
            eventually(lambda: "far0 is down" in (tmp_path / "logs" / "log.1").read_text())
            assert live.stop() == 0
        text = (tmp_path / "logs" / "log.1").read_text()
        assert f"ERROR {log} cannot be opened anew (Permission denied): the log goes on in the old file" in text
        assert "Traceback" not in text + live.said

    @pytest.mark.once
    def test_that_may_not_enter_the_folder_of_the_pidfile_is_told_at_once(self, cable, tmp_path):
        (tmp_path / "guard").mkdir(mode=0o700)
        pidfile = tmp_path / "guard" / "pid"
        with Live(tmp_path, cable, "--user", "nobody", "--pidfile", pidfile) as live:
            assert f"pidfile {pidfile}: " in live.said
            assert live.stop() == 0
            assert pidfile.read_bytes() == b""

    def test_needs_nothing_more_from_where_the_program_lies(self, cable, tmp_path):
        """The decoders that the first body with their encoding needs are imported by root: only it may read them."""
        site = tmp_path / "site"
        site.mkdir(mode=0o700)
        told = "import os, sys; print('imported by uid', os.geteuid(), file=sys.stderr)\n"
        (site / "brotli.py").write_text(told + "from _brotli import Decompressor, error\n")
        path = os.pathsep.join((str(site), environment().get("PYTHONPATH", "")))
        with Live(tmp_path, cable, "--user", "nobody", env={"PYTHONPATH": path}) as live:
            assert "imported by uid 0\n" in live.said
            live.exchange(1, (("Content-Type", "text/plain"), ("Content-Encoding", "br")), brotli.compress(b"packed"))
            assert live.stop() == 0, live.said
        assert live.records()[0]["http"]["response"]["body"]["content"] == "packed"

    @pytest.mark.once
    @pytest.mark.parametrize(
        ("user", "code", "says"),
        [
            ("nosuch", 78, "there is no such user"),
            ("root", 78, "is root"),
            ("0:0", 78, "is root"),
            ("1:", 78, "NAME or UID:GID"),
            ("1:-1", 78, "NAME or UID:GID"),
            ("1:4294967295", 78, "NAME or UID:GID"),
            (f"{'1' * 5000}:1", 78, "NAME or UID:GID"),
        ],
    )
    def test_that_cannot_be_is_told_before_anything_is_opened(self, user, code, says, cable, tmp_path):
        live = Live(tmp_path, cable, "--user", user, sink=f"file:{tmp_path / 'records'}")
        assert live.wait() == code
        (line,) = live.said.splitlines()
        assert line.startswith("http-capture: [process] user is ")
        assert says in line
        assert not (tmp_path / "records").exists()
        assert live.pidfile.read_bytes() == b""

    @pytest.mark.once
    @needs_setpriv
    @pytest.mark.parametrize(
        ("under", "says"),
        [
            (["setpriv", "--bounding-set=-setuid"], "CAP_SETUID and CAP_SETGID"),
            (["setpriv", "--bounding-set=-setgid"], "CAP_SETUID and CAP_SETGID"),
            (["setpriv", "--securebits=+no_setuid_fixup"], "privileges are not given up"),
        ],
    )
    def test_that_would_not_give_up_everything_ends_it(self, under, says, cable, tmp_path):
        live = Live(tmp_path, cable, "--user", "nobody", under=under)
        assert live.wait() == 77
        assert says in live.said.splitlines()[-1]
        assert "Traceback" not in live.said
        assert live.output.read_bytes() == live.pidfile.read_bytes() == b""

    @pytest.mark.once
    @needs_setpriv
    def test_is_for_root_to_change(self, cable, tmp_path):
        tmp_path.chmod(0o777)
        live = Live(tmp_path, cable, "--user", "daemon", under=[*unprivileged()])
        assert live.wait() == 77
        assert "only root can change to a user" in live.said

    @pytest.mark.once
    def test_of_a_replay(self, powers, start, tmp_path):
        write_pcap(tmp_path / "a.pcap", Conversation().frames or [(0, bytes(60))])
        running = start("--read", "-", "--user", "nobody", "--log-level", "error")
        running.stdin.write((tmp_path / "a.pcap").read_bytes())
        running.stdin.flush()
        eventually(lambda: powers(running.pid) == given_up(NOBODY, NOBODY, str(NOBODY)))
        running.stdin.close()
        assert running.wait(LIMIT_SECONDS) == 0


@pytest.mark.once
@needs_network
@needs_setpriv
class TestCapabilitiesInsteadOfRoot:
    # The last one only reads the tests' interpreter, which may lie in the home of root.
    AMBIENT = "-all,+net_raw,+dac_read_search"
    UNDER = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", f"--inh-caps={AMBIENT}",
             f"--ambient-caps={AMBIENT}", f"--bounding-set={AMBIENT}")  # fmt: skip

    def test_are_enough(self, cable, powers, open_folder):
        with Live(open_folder, cable, under=self.UNDER) as live:
            ((uid, *_, effective, _, _),) = powers(live.process.pid)
            assert uid == " ".join([str(NOBODY)] * 4)
            assert int(effective, 16) == 1 << 13 | 1 << 2  # CAP_NET_RAW, CAP_DAC_READ_SEARCH
            live.exchange()
            assert live.stop() == 0, live.said
            assert live.paths() == ["/1"]
            assert live.pidfile.read_bytes() == b""

    def test_do_not_open_a_pidfile_in_the_folder_of_root(self, cable, tmp_path):
        live = Live(tmp_path, cable, under=self.UNDER)
        assert live.wait() == 73
        assert "--pidfile" in live.said
        assert str(live.pidfile) in live.said


def test_a_user_by_name_and_by_number(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    nobody = process.find_user("nobody")
    assert (nobody.uid, nobody.name, str(nobody)) == (NOBODY, "nobody", f"nobody (uid {NOBODY})")
    assert str(process.find_user("12:34")) == "uid 12, gid 34"
    monkeypatch.setattr(os, "geteuid", lambda: 12)
    with pytest.raises(NotPermittedError):
        process.find_user("nobody")
    with pytest.raises(ConfigurationError):
        process.find_user("no\0body")


# --- The end of the parent

PARENT = "import subprocess, sys; child = subprocess.Popen(sys.argv[1:]); print(child.pid, flush=True); child.wait()"


@contextlib.contextmanager
def fostered(folder, pair, *arguments, env=None):
    """The program as the child of a process that can be killed. Gives that, and the Live of the child."""
    live = Live(folder, pair, *arguments, under=(sys.executable, "-c", PARENT), env=env)
    try:
        live.until("recording far0")
        yield live, int(live.output.read_text().splitlines()[0])
    finally:
        live.process.kill()
        live.process.wait()


def ended(pid):
    """Whether it has ended, reaped or not."""
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except OSError:
        return True
    return state == b"Z"


@pytest.mark.once
@needs_network
class TestDieWithParent:
    @pytest.mark.parametrize("arguments", [[], ["--user", "nobody"]])
    def test_stops_it_when_the_parent_is_killed(self, arguments, cable, tmp_path):
        with fostered(tmp_path, cable, "--die-with-parent", *arguments) as (live, pid):
            live.exchange()
            live.process.kill()
            live.process.wait()
            eventually(lambda: ended(pid))
            assert live.ledger()["records"]["delivered"] == 1  # a stop as any other: flushed, accounted, guard released
            assert live.pidfile.read_bytes() == b""

    def test_is_a_setting(self, cable, tmp_path):
        with fostered(tmp_path, cable, env={"HTTP_CAPTURE_GUARD_DIE_WITH_PARENT": "yes"}) as (live, pid):
            live.process.kill()
            live.process.wait()
            eventually(lambda: ended(pid))

    def test_is_not_what_happens_otherwise(self, cable, tmp_path):
        with fostered(tmp_path, cable) as (live, pid):
            live.process.kill()
            live.process.wait()
            time.sleep(0.5)
            assert not ended(pid)
            os.kill(pid, signal.SIGTERM)
            eventually(lambda: ended(pid))

    def test_when_it_is_gone_already(self):
        code = (
            "import sys; from http_capture.capture.process import end_with; end_with(int(sys.argv[1])); print('lives')"
        )
        for parent, result in ((os.getpid(), (0, "lives\n")), (os.getppid(), (-signal.SIGTERM, ""))):
            done = subprocess.run(
                [sys.executable, "-c", code, str(parent)],
                env=environment(),
                stdout=subprocess.PIPE,
                text=True,
                check=False,
            )
            assert (done.returncode, done.stdout) == result


# --- systemd


@contextlib.contextmanager
def notified(address):
    """A socket as systemd has it, and a list that what is sent to it comes into, with the time."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(address)
        listening.settimeout(0.1)
        heard, over = [], threading.Event()

        def listen():
            while not over.is_set():
                with contextlib.suppress(TimeoutError):
                    heard.append((time.monotonic(), listening.recv(4096).decode()))

        thread = threading.Thread(target=listen)
        thread.start()
        try:
            yield heard
        finally:
            over.set()
            thread.join()


def packet_sockets(pid):
    return pathlib.Path(f"/proc/{pid}/net/packet").read_text().splitlines()[1:]


@pytest.mark.once
@needs_network
class TestSystemd:
    @pytest.mark.parametrize("abstract", [True, False])
    def test_is_told_ready_alive_and_stopping(self, abstract, cable, powers, tmp_path):
        name = f"\0http-capture-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
        env = {"NOTIFY_SOCKET": "@" + name[1:] if abstract else name, "WATCHDOG_USEC": "400000"}
        # An abstract socket is of a network namespace.
        with inside(cable.namespace), notified(name) as heard:
            if not abstract:
                os.chmod(name, 0o777)
            live = Live(tmp_path, cable, env=env)
            try:
                eventually(lambda: heard)
                assert heard[0][1] == "READY=1\nSTATUS=recording far0"
                assert len(packet_sockets(live.process.pid)) == 1
                eventually(lambda: len(heard) > 6)
                assert live.stop() == 0, live.said
            finally:
                live.__exit__()
        assert {text for _, text in heard[1:-1]} == {"WATCHDOG=1"}
        between = [later[0] - earlier[0] for earlier, later in itertools.pairwise(heard[1:-1])]
        assert sorted(between)[len(between) // 2] == pytest.approx(0.25, abs=0.06)
        assert heard[-1][1].startswith("STOPPING=1\n")

    def test_is_told_ready_as_the_user_that_it_becomes(self, cable, powers, tmp_path):
        name = f"\0http-capture-test-{os.getpid()}"
        with inside(cable.namespace), notified(name) as heard:
            live = Live(tmp_path, cable, "--user", "nobody", env={"NOTIFY_SOCKET": "@" + name[1:]})
            try:
                eventually(lambda: heard)
                assert powers(live.process.pid) == given_up(NOBODY, NOBODY, str(NOBODY))
                assert heard[0][1] == f"READY=1\nSTATUS=recording far0 as user nobody (uid {NOBODY})"
                live.until("recording")
                assert live.stop() == 0
            finally:
                live.__exit__()
        assert [text.partition("=")[0] for _, text in heard] == ["READY", "STOPPING"]  # no watchdog was asked for

    def test_is_told_nothing_by_a_start_that_is_refused(self, cable, tmp_path):
        name = f"\0http-capture-test-{os.getpid()}"
        with inside(cable.namespace), notified(name) as heard, Live(tmp_path, cable):
            env = {"NOTIFY_SOCKET": "@" + name[1:], "WATCHDOG_USEC": "1000"}
            assert Live(tmp_path, cable, env=env).wait() == 75
            assert Live(tmp_path, cable, "--pidfile", str(tmp_path / "o"), "--set", "tcp.x=1", env=env).wait() == 75
            time.sleep(0.2)
        assert heard == []

    def test_that_does_not_listen_changes_nothing(self, cable, tmp_path):
        for address in ("@nobody-listens-here", str(tmp_path / "absent"), "/" + "x" * 300, "vsock:2:1", "\x07"):
            with Live(tmp_path, cable, env={"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "100000"}) as live:
                time.sleep(0.2)
                assert live.stop() == 0, live.said
                assert live.said.count("\n") <= 3


def test_a_loop_that_stalls_does_not_say_that_it_is_alive(start, tmp_path, monkeypatch):
    """Nothing but the loop says it: while nobody reads the records of a replay, it does not turn."""
    conversation = Conversation()
    conversation.handshake()
    for number in range(3000):
        conversation.send("client", http_request(target=f"/{number}"))
        conversation.send("server", http_response())
    write_pcap(tmp_path / "a.pcap", conversation.frames)
    name = f"\0http-capture-test-{os.getpid()}"
    monkeypatch.setenv("NOTIFY_SOCKET", "@" + name[1:])
    monkeypatch.setenv("WATCHDOG_USEC", "50000")
    with notified(name) as heard:
        running = start("--read", tmp_path / "a.pcap", "--json", "--set", "log.level=error")
        eventually(lambda: heard and heard[0][1].startswith("READY=1\nSTATUS=replaying"))
        eventually(lambda: time.monotonic() - heard[-1][0] > 0.5)
        time.sleep(0.5)
        assert time.monotonic() - heard[-1][0] > 1
        stalled = len(heard)
        out, err = running.communicate(timeout=LIMIT_SECONDS)
        assert running.returncode == 0, err
        assert out.count(b"\n") == 3000
    assert len(heard) > stalled
    assert heard[-1][1].startswith("STOPPING=1")


@pytest.mark.parametrize(
    ("variables", "times"),
    [
        ({"WATCHDOG_USEC": "2000000"}, 3),
        ({"WATCHDOG_USEC": "2000000", "WATCHDOG_PID": str(os.getpid())}, 3),
        ({"WATCHDOG_USEC": "2000000", "WATCHDOG_PID": "1"}, 0),
        ({"WATCHDOG_USEC": "0"}, 0),
        ({"WATCHDOG_USEC": "soon"}, 0),
        ({"WATCHDOG_USEC": "9" * 5000}, 0),
        ({}, 0),
    ],
)
def test_the_watchdog_is_told_twice_in_its_period(variables, times):
    name = f"\0http-capture-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(name)
        listening.settimeout(0)
        environ = {"NOTIFY_SOCKET": "@" + name[1:], "PATH": "/bin", **variables}
        notify = Notify(environ)
        assert environ == {"PATH": "/bin"}
        for tenths in range(100, 125):  # 2.4 s
            notify.alive(tenths / 10)
        heard = []
        with contextlib.suppress(BlockingIOError):
            while True:
                heard.append(listening.recv(100))
    assert heard == [b"WATCHDOG=1"] * times


@pytest.mark.alone
def test_a_full_queue_of_systemd_does_not_stop_the_loop():
    name = f"\0http-capture-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(name)
        notify = Notify({"NOTIFY_SOCKET": "@" + name[1:], "WATCHDOG_USEC": "2"})
        before = time.monotonic()
        for number in range(2000):
            notify.alive(float(number))
            assert time.monotonic() - before < 1


@pytest.mark.once
class TestUnit:
    @pytest.fixture
    def unit(self):
        parser = configparser.RawConfigParser(strict=True, comment_prefixes=("#",), delimiters=("=",))
        parser.optionxform = str
        parser.read(UNIT)
        return parser

    def test_says_what_the_guard_needs(self, unit):
        service = unit["Service"]
        assert service["Type"] == "notify"
        assert "PIDFile" not in service
        assert (service["RuntimeDirectory"], service["RuntimeDirectoryPreserve"]) == ("http-capture", "yes")
        assert service["RestartPreventExitStatus"].split() == ["64", "73", "75", "76", "78"]
        assert service["WatchdogSec"] == "30"
        assert "--pidfile /run/http-capture/" in service["ExecStart"]
        for bounds in ("AmbientCapabilities", "CapabilityBoundingSet"):
            assert service[bounds].split() == ["CAP_NET_RAW", "CAP_NET_ADMIN"]
        families = set(service["RestrictAddressFamilies"].split())
        assert families == {"AF_PACKET", "AF_NETLINK", "AF_UNIX", "AF_INET", "AF_INET6"}
        assert (service["PrivateNetwork"], service["PrivateUsers"], service["ProtectProc"]) == ("no", "no", "default")
        assert unit["Unit"]["StartLimitIntervalSec"] == "0"

    def test_is_no_longer_than_its_stop(self, unit):
        from http_capture.config.settings import KafkaSettings

        assert int(unit["Service"]["TimeoutStopSec"]) > KafkaSettings().flush_timeout_seconds + 5

    def test_is_understood_by_systemd(self, tmp_path):
        if shutil.which("systemd-analyze") is None:
            pytest.skip("needs systemd-analyze (systemd)")
        text = UNIT.read_text()
        program = "/opt/http-capture/bin/http-capture"
        assert program in text
        copy = tmp_path / UNIT.name
        copy.write_text(text.replace(program, sys.executable))
        done = subprocess.run(
            ["systemd-analyze", "verify", copy], capture_output=True, text=True, check=False, timeout=60
        )
        assert (done.returncode, [line for line in done.stderr.splitlines() if UNIT.name in line]) == (0, [])

    def test_a_mistake_in_it_would_be_seen(self, tmp_path):
        if shutil.which("systemd-analyze") is None:
            pytest.skip("needs systemd-analyze (systemd)")
        copy = tmp_path / UNIT.name
        copy.write_text(UNIT.read_text().replace("WatchdogSec", "WatchdogSecs"))
        done = subprocess.run(
            ["systemd-analyze", "verify", copy], capture_output=True, text=True, check=False, timeout=60
        )
        assert "WatchdogSecs" in done.stderr


# --- The guard, while it runs


@pytest.mark.once
@needs_network
class TestSelfCheck:
    @pytest.mark.slow
    def test_mends_a_pidfile_that_was_removed(self, cable, tmp_path):
        with Live(tmp_path, cable) as live:
            text = live.pidfile.read_bytes()
            live.pidfile.unlink()
            eventually(lambda: live.pidfile.exists() and live.pidfile.read_bytes() == text, 15)
            second = Live(tmp_path, cable)
            assert second.wait() == 75, second.said
            live.exchange()
            assert live.stop() == 0
            assert live.paths() == ["/1"]
            guard = live.ledger()["guard"]
            assert guard["checks"] >= 2
            assert guard["repairs"] >= 1
            assert guard["faults"] == 0
            assert str(live.pidfile) in live.said

    @pytest.mark.slow
    def test_ends_it_when_the_guard_is_lost(self, cable, tmp_path):
        """Another program locks the file that has the name now, and there is no lock of the NIC to rely on."""
        with Live(tmp_path, cable, "--no-interface-lock") as live:
            live.exchange()
            new = tmp_path / "new"
            new.touch(mode=0o600)
            code = (
                "import fcntl, sys; file = open(sys.argv[1], 'r+'); fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB);"
                "print('locked', flush=True); input()"
            )
            with subprocess.Popen(
                [sys.executable, "-c", code, str(new)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            ) as other:
                assert other.stdout.readline() == b"locked\n"
                new.rename(live.pidfile)
                assert live.wait() == 76, live.said
                other.stdin.close()
            assert live.paths() == ["/1"]
            assert live.ledger()["records"]["delivered"] == 1
            assert "Traceback" not in live.said

    def test_is_told_in_the_ledger_of_a_live_run_only(self, cable, run, tmp_path):
        with Live(tmp_path, cable) as live:
            assert live.stop() == 0
            assert live.ledger()["guard"] == {"checks": 1, "repairs": 0, "faults": 0}
        write_pcap(tmp_path / "a.pcap", [(0, bytes(60))])
        assert '"guard"' not in run("--read", tmp_path / "a.pcap", "--json").stderr

    def test_without_the_lock_of_the_nic_each_run_says_so(self, cable, tmp_path):
        with Live(tmp_path, cable, "--no-interface-lock") as live:
            assert "--no-interface-lock" in live.said
        with Live(tmp_path, cable) as live:
            assert "--no-interface-lock" not in live.said


def again(pair, *options, kind=("type", "veth", "peer", "name", "near0")):
    """Deletes the NIC that is recorded and makes another of the same name."""
    ip("link", "delete", pair.far, namespace=pair.namespace)
    ip("link", "add", pair.far, *options, *kind, namespace=pair.namespace)
    for nic in (pair.far, pair.near):
        ip("link", "set", nic, "up", namespace=pair.namespace)


@needs_network
class TestNicThatIsMadeAgain:
    @pytest.mark.parametrize("arguments", [[], ["--user", "nobody"]])
    def test_is_recorded_and_locked(self, arguments, cable, open_folder):
        with Live(open_folder, cable, *arguments) as live:
            live.exchange(1)
            again(cable)
            live.until("far0 is back")
            live.until("far0 is up")
            live.exchange(2)
            second = Live(open_folder, cable, "--pidfile", str(open_folder / "other.pid"))
            # The lock is taken by the user that it is now: to root that is a stranger, who is refused all the same.
            assert second.wait() == (73 if arguments else 75), second.said
            assert f"pid {live.process.pid}" in second.said
            assert live.stop() == 0, live.said
            assert live.paths() == ["/1", "/2"]
            assert live.ledger()["guard"]["checks"] >= 2

    @pytest.mark.parametrize(("listens", "code"), [(True, 76), (False, 69)])
    def test_is_not_read_where_another_has_its_lock(self, listens, code, cable, tmp_path):
        """A copy, or a program that has taken the name and cannot be judged."""
        with Live(tmp_path, cable) as live:
            live.exchange(1)
            with inside(cable.namespace), socket.socket(socket.AF_UNIX) as other:
                other.bind("\0http-capture/if/777")
                if listens:
                    other.listen(100)
                again(cable, "index", "777")
                for number in range(2, 40):
                    live.exchange(number)
                    if live.process.poll() is not None:
                        break
                    time.sleep(0.1)
                assert live.wait() == code, live.said
            assert live.paths() == ["/1"]
            frames = live.ledger()["frames"]
            assert (frames["read"], frames["received"] > 20) == (
                8,
                True,
            )  # those of the first exchange; the rest unread
            assert "interface far0: " in next(line for line in live.said.splitlines() if "has its lock" in line)
            assert live.pidfile.read_bytes() == b""

    def test_is_waited_for_so_long_and_no_longer(self, cable, tmp_path):
        with Live(tmp_path, cable, "--set", "source.return_timeout_seconds=0.8") as live:
            live.exchange(1)
            before = time.monotonic()
            ip("link", "delete", cable.far, namespace=cable.namespace)
            assert live.wait() == 69
            assert time.monotonic() - before > 0.7
            assert "far0 is gone: waiting 0.8 s for one of the same name" in live.said
            assert "far0 was removed while it was captured; start again when it is back" in live.said
            assert live.paths() == ["/1"]
            live.ledger()

    def test_as_another_kind_of_device_ends_the_run(self, cable, tmp_path):
        if not os.path.exists("/dev/net/tun"):
            pytest.skip("no /dev/net/tun here")
        with Live(tmp_path, cable) as live:
            ip("link", "delete", cable.far, namespace=cable.namespace)
            ip("tuntap", "add", cable.far, "mode", "tun", namespace=cable.namespace)
            assert live.wait() == 69
            assert "another kind of device" in live.said

    def test_is_said_to_be_gone_also_where_it_was_seen_down_before(self, cable, tmp_path):
        with Live(tmp_path, cable) as live:
            ip("link", "set", cable.far, "down", namespace=cable.namespace)
            live.until("far0 is down")
            ip("link", "delete", cable.far, namespace=cable.namespace)
            live.until("far0 is gone")
            assert live.stop() == 0, live.said

    def test_a_stop_meanwhile_is_a_stop(self, cable, tmp_path):
        with Live(tmp_path, cable) as live:
            ip("link", "delete", cable.far, namespace=cable.namespace)
            live.until("far0 is gone")
            assert live.stop() == 0, live.said


# --- The order of a stop

ORDER = """
import sys
from http_capture.capture.cli import main
from http_capture.capture.sink.lines import Lines
from http_capture.capture.source.af_packet import AfPacket
from http_capture.guard import Guard

def told(owner, name):
    function = getattr(owner, name)
    def tell(*arguments):
        print(f"{owner.__name__}.{name}", file=sys.stderr)
        return function(*arguments)
    setattr(owner, name, tell)

for owner, name in ((AfPacket, "close"), (Lines, "flush"), (Lines, "close"), (Guard, "release")):
    told(owner, name)
sys.exit(main(sys.argv[1:]))
"""


@needs_network
class TestOrderOfAStop:
    def order(self, live):
        return [line for line in live.said.splitlines() if line.endswith((".close", ".flush", ".release"))]

    def test_the_nic_first_and_the_guard_last(self, cable, tmp_path):
        with Live(tmp_path, cable, command=(sys.executable, "-c", ORDER)) as live:
            assert live.stop() == 0
        assert self.order(live) == ["AfPacket.close", "Lines.flush", "Lines.close", "Guard.release"]

    def test_a_second_signal_ends_it_without_a_flush_but_in_order(self, cable, tmp_path):
        slow = ("--set", "source.ring_timeout_ms=2000")
        with Live(tmp_path, cable, *slow, command=(sys.executable, "-c", ORDER)) as live:
            live.exchange()
            live.process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
            assert live.process.poll() is None
            assert live.stop() == 130
        assert self.order(live) == ["AfPacket.close", "Guard.release"]
        assert live.paths() == []
        assert live.pidfile.read_bytes() == b""
        assert "Traceback" not in live.said


def test_several_nics_are_refused_before_the_guard(run, tmp_path):
    done = run("--iface", "eth1", "--iface", "eth2", "--pidfile", tmp_path / "pid")
    assert done.returncode == 64
    assert done.stderr == "http-capture: 2 NICs given (eth1, eth2): run one process for each\n"
    assert not (tmp_path / "pid").exists()
