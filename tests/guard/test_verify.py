"""What the guard should have kept out, is found: the real program on a real NIC.

Everything runs in a pid, network and mount namespace of the test's own, so that nothing else that runs here is seen.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

import pytest
from http_capture import guard
from http_capture.guard.verify import Report

pytestmark = pytest.mark.root
LIMIT = 60
ENVIRONMENT = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("SUPERVISOR_", "INVOCATION_ID", "HTTP_CAPTURE_"))
} | {"PYTHONPATH": str(pathlib.Path(guard.__file__).parents[2])}
PROGRAM = [sys.executable, "-m", "http_capture.capture"]
START = str(pathlib.Path(__file__).with_name("start.py"))


class World:
    """A host of its own: eth1, eth2 and eth3. Pids are as they are seen in it."""

    def __init__(self, folder):
        self.folder = folder
        self.started = []
        self.root = subprocess.Popen(
            ["unshare", "--pid", "--net", "--mount", "--fork", "--mount-proc", "--kill-child", "sh", "-c",
             "ip link add eth1 type veth peer name eth2 && ip link add eth3 type veth peer name eth4 && "
             "ip link set eth1 up && ip link set eth2 up && ip link set eth3 up && echo up && exec sleep 3600"],
            stdout=subprocess.PIPE,
        )  # fmt: skip
        assert self.root.stdout.readline() == b"up\n"
        with open(f"/proc/{self.root.pid}/task/{self.root.pid}/children") as children:
            self.enter = ["nsenter", "-t", children.read().split()[0], "-p", "-n", "-m", f"--wd={folder}"]

    def close(self):
        self.root.kill()  # and with the first process of its pid namespace, all
        self.root.communicate()
        for process in self.started:
            process.kill()  # an nsenter is stopped with the process that it started
            process.communicate()

    def run(self, *command, env=None, **options):
        return subprocess.run(
            [*self.enter, *command], env=ENVIRONMENT | (env or {}), capture_output=True, text=True, timeout=LIMIT,
            check=False, **options,
        )  # fmt: skip

    def start(self, *command, until, env=None):
        """Starts a command, and waits until its standard error or output says so. Gives its pid."""
        log = self.folder / f"log{len(os.listdir(self.folder))}"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [*self.enter, "sh", "-c", 'echo pid $$; exec "$@"', "sh", *map(str, command)],
                env=ENVIRONMENT | (env or {}), stdin=subprocess.PIPE, stdout=file, stderr=file,
            )  # fmt: skip
        self.started.append(process)
        deadline = time.monotonic() + LIMIT
        while until not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        return int(log.read_text().split()[1])

    def copy(self, pidfile, *more, nic="eth1", env=None):
        return self.start(
            *PROGRAM, "--iface", nic, "--pidfile", pidfile, "--sink", "null", *more, until="recording", env=env
        )

    def kill(self, number, *pids):
        assert self.run("kill", f"-{number}", *map(str, pids)).returncode == 0

    def verify(self, *arguments, before=()):
        """The exit code, the findings of each kind, and the whole answer."""
        done = self.run(*before, *PROGRAM, "verify", "--json", *map(str, arguments))
        assert done.stdout.count("\n") == 1, done.stderr
        answer = json.loads(done.stdout)
        assert answer["exit"] == done.returncode
        kinds = {}
        for finding in answer["findings"]:
            kinds.setdefault(finding["kind"], []).append(finding["text"])
        return done.returncode, kinds, answer


@pytest.fixture
def world(root, tmp_path):
    for tool in ("unshare", "nsenter", "ip"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}")
    one = World(tmp_path)
    yield one
    one.close()


@pytest.fixture
def a(tmp_path):
    return tmp_path / "a.pid"


@pytest.fixture
def b(tmp_path):
    return tmp_path / "b.pid"


def test_nothing_runs(world, a):
    code, kinds, answer = world.verify("--pidfile", a, "--iface", "eth1")
    assert (code, kinds) == (3, {})
    assert answer["verdict"] == "not running"
    assert not a.exists()


def test_one_whole_copy(world, a):
    pid = world.copy(a)
    for arguments in (["--pidfile", a], ["--pidfile", a, "--iface", "eth1"], ["--pidfile", a, "--iface", "any"]):
        code, kinds, answer = world.verify(*arguments)
        assert code == 0, kinds
        assert list(kinds) == ["copy"]
        (copy,) = answer["copies"]
        assert (copy["pid"], copy["processes"], copy["pidfiles"]) == (pid, [pid], [str(a)])
        assert (copy["captures"], copy["interface_locks"]) == (["eth1"], ["eth1"])


def test_the_accident(world, a, b):
    """Two copies, two pidfiles, the lock of the NIC left out: each is named, with how it was started and since when."""
    first = world.copy(a, "--no-interface-lock")
    env = {"SUPERVISOR_ENABLED": "1", "SUPERVISOR_PROCESS_NAME": "span", "SUPERVISOR_GROUP_NAME": "span"}
    second = world.copy(b, "--no-interface-lock", env=env)
    for path in (a, b, f"{a}.other"):
        code, kinds, answer = world.verify("--pidfile", path)
        assert code == 1
        assert [copy["pid"] for copy in answer["copies"]] == [first, second]
        for text, pid, how, file in zip(
            kinds["copy"], (first, second), ("by hand", "under supervisord (span)"), (a, b), strict=True
        ):
            assert text.startswith(f"pid {pid}, up ")
            assert f"started {how} (user root)" in text
            assert text.endswith(f"; pidfile {file}; captures eth1")
        assert (
            f"eth1 is captured by 2 copies, every record is sent 2 times: pid {first} (by hand), "
            f"pid {second} (under supervisord (span))"
        ) in kinds["fault"]
    text = world.run(*PROGRAM, "verify", "--pidfile", a)
    assert text.returncode == 1
    assert text.stdout.splitlines()[-1].startswith("http-capture: NOT AS IT SHOULD BE, faults: ")
    assert f"fault: eth1 is captured by 2 copies, every record is sent 2 times: pid {first}" in text.stdout
    world.kill("TERM", second)
    deadline = time.monotonic() + LIMIT
    while b.read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    code, kinds, _ = world.verify("--pidfile", a)
    assert code == 0
    assert "captures eth1 without its lock" in kinds["information"][0]
    code, kinds, _ = world.verify("--pidfile", b)
    assert code == 1
    assert f"pid {first} (by hand) captures eth1 without its lock" in kinds["fault"][0]


def test_two_nics_are_no_duplicate(world, a, b):
    world.copy(a)
    world.copy(b, nic="eth2")
    for path in (a, b):
        code, kinds, answer = world.verify("--pidfile", path)
        assert code == 0, kinds
        assert len(answer["copies"]) == 2
    code, kinds, _ = world.verify("--pidfile", a, "--iface", "eth2")
    assert code == 1
    assert f"{a} is held by pid" in kinds["fault"][0]
    assert world.verify("--pidfile", f"{a}.other")[0] == 3
    assert world.verify("--pidfile", a, "--iface", "eth3")[0] == 0


def test_the_same_nic_in_another_network_namespace(world, a, b):
    world.copy(a)
    setup = 'ip link add eth1 type veth peer name eth2 && ip link set eth1 up && exec "$@"'
    world.start(
        "unshare", "-n", "sh", "-c", setup, "sh", *PROGRAM, "--iface", "eth1", "--pidfile", b, "--sink", "null",
        until="recording",
    )  # fmt: skip
    code, kinds, answer = world.verify("--pidfile", a)
    assert code == 0, kinds
    assert [copy["captures"][0].partition(" of network namespace ")[0] for copy in answer["copies"]] == ["eth1", "eth1"]
    assert "in another network namespace" in kinds["copy"][1]
    # A second one there is found from here.
    world.run("cp", "/dev/null", f"{b}2")
    there = world.verify("--pidfile", b)[2]["copies"][1]["pid"]
    world.start(
        "nsenter", "-t", there, "-n", *PROGRAM, "--iface", "eth1", "--pidfile", f"{b}2", "--sink", "null",
        "--no-interface-lock", until="recording",
    )  # fmt: skip
    code, kinds, _ = world.verify("--pidfile", a)
    assert code == 1
    assert any("of network namespace" in text and "by 2 copies" in text for text in kinds["fault"])


def test_a_private_mount_namespace_hides_nothing(world, a, b):
    first = world.copy(a, "--no-interface-lock")
    world.start(
        "unshare", "-m", "sh", "-c", f'mount -t tmpfs none {a.parent} && exec "$@"', "sh", *PROGRAM, "--iface",
        "eth1", "--pidfile", a, "--sink", "null", "--no-interface-lock", until="recording",
    )  # fmt: skip
    code, kinds, answer = world.verify("--pidfile", a)
    assert code == 1
    assert f"2 times: pid {first} " in " ".join(kinds["fault"])
    assert not any("removed or replaced" in text for text in kinds["fault"])
    assert len(answer["copies"]) == 2


def test_a_copy_with_workers_is_one(world, a):
    pid = world.start(
        sys.executable, "-c",
        "import os, signal, socket, sys\n"
        "from http_capture import guard\n"
        "held = guard.acquire(sys.argv[1], ['eth1'], instance='i', command=['c'])\n"
        "for _ in range(3):\n"
        "    if not os.fork():\n"
        "        break\n"
        "s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)\n"
        "s.bind(('eth1', 3))\n"
        "os.write(1, b'open\\n')\n"
        "signal.pause()\n",
        a, until="open\nopen\nopen\nopen\n",
    )  # fmt: skip
    code, kinds, answer = world.verify("--pidfile", a, "--iface", "eth1")
    assert code == 0, kinds
    (copy,) = answer["copies"]
    assert copy["pid"] == pid
    assert len(copy["processes"]) == 4
    assert kinds["copy"][0].endswith("; workers: 3")
    world.kill("KILL", pid)
    code, kinds, answer = world.verify("--pidfile", a)
    assert code == 1
    assert len(answer["copies"]) == 1
    assert "names" in " ".join(kinds["fault"])


def test_another_program_on_the_nic_is_no_fault(world, a):
    world.copy(a)
    code = (
        "import socket, time\ns = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)\ns.bind(('eth1', 3))\n"
        "print('open', flush=True)\ntime.sleep(60)"
    )
    other = world.start(sys.executable, "-c", code, "http-capture", until="open")
    world.start(sys.executable, "-c", code.replace("eth1", "eth3"), until="open")
    world.start(sys.executable, "-c", code.replace("('eth1', 3)", "('eth1', 0)"), until="open")  # only sends
    code, kinds, _ = world.verify("--pidfile", a)
    assert code == 0
    assert len(kinds["information"]) == 1
    assert "eth1 is captured by another program too" in kinds["information"][0]
    assert f"pid {other}," in kinds["information"][0]


def test_an_old_version_without_a_guard(world, a, tmp_path):
    """As it was on the day of the accident: the command, a packet socket, nothing locked."""
    script = tmp_path / "http-capture"
    script.write_text(
        f"#!{sys.executable}\nimport socket, time\ns = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)\n"
        "s.bind(('eth1', 3))\nprint('open', flush=True)\ntime.sleep(60)"
    )
    script.chmod(0o755)
    old = world.start(script, "--iface", "eth1", until="open")
    code, kinds, _ = world.verify("--pidfile", a)
    assert code == 1
    assert f"pid {old} (by hand) runs without a guard" in kinds["fault"][0]
    new = world.copy(a)
    code, kinds, _ = world.verify("--pidfile", a)
    assert code == 1
    assert f"eth1 is captured by 2 copies, every record is sent 2 times: pid {old} (by hand), pid {new}" in " ".join(
        kinds["fault"]
    )


def test_a_word_on_a_command_line_makes_no_copy(world, a, tmp_path):
    world.copy(a)
    shutil.copy("/bin/sleep", tmp_path / "http-capture")
    world.start("sh", "-c", "echo go; sleep 60", "http-capture", "--iface", "eth1", until="go")
    world.start("sh", "-c", f"echo go; exec {tmp_path}/http-capture 60", until="go")
    code, _, answer = world.verify("--pidfile", a)
    assert (code, len(answer["copies"])) == (0, 1)


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_a_pidfile_that_is_gone(world, a, how):
    pid = world.copy(a)
    world.kill("STOP", pid)  # or it repairs it
    a.unlink()
    if how == "replaced":
        a.write_text("1\n")
    code, kinds, _ = world.verify("--pidfile", a, "--iface", "eth1")
    assert code == 1
    assert f"pid {pid} (by hand): its pidfile {a}" in kinds["fault"][0]
    assert "removed or replaced" in kinds["fault"][0]


@pytest.mark.parametrize(
    ("number", "line", "told"),
    [(0, "1", "names 1"), (1, "boot: x", "another boot"), (2, "start: 5", "names "), (0, "", "names nobody")],
)
def test_a_text_that_is_not_true(world, a, number, line, told):
    pid = world.copy(a)
    world.kill("STOP", pid)
    lines = a.read_text().splitlines()
    lines[number] = line
    a.write_text("\n".join(lines))
    code, kinds, _ = world.verify("--pidfile", a)
    assert code == 1
    assert len(kinds["fault"]) == 1
    assert told in kinds["fault"][0]


def test_a_beacon_that_is_lost(world, a):
    """The copy closes another descriptor of its own pidfile."""
    code = (
        "import sys, time\nfrom http_capture import guard\n"
        "held = guard.acquire(sys.argv[1], ['eth1'], instance='i', command=['c'])\n"
        "if sys.argv[2:]: open(sys.argv[1]).close()\nprint('open', flush=True)\ntime.sleep(60)"
    )
    world.start(sys.executable, "-c", code, a, "lose", until="open")
    code, kinds, _ = world.verify("--pidfile", a)
    assert code == 1
    assert "has lost the lock that names its holder" in kinds["fault"][0]


def test_a_guard_without_a_capture(world, a):
    """As while it starts: no fault."""
    world.start(sys.executable, START, a, "eth1", until="held")
    code, kinds, answer = world.verify("--pidfile", a, "--iface", "eth1")
    assert code == 0, kinds
    assert answer["copies"][0]["captures"] == []


def test_another_program_has_locked_the_pidfile(world, a):
    a.touch(0o600)
    lock = "import fcntl, sys; f = open(sys.argv[1], 'r+'); fcntl.lockf(f, 2); print('held', flush=True); input()"
    pid = world.start(sys.executable, "-c", lock, a, until="held")
    code, kinds, _ = world.verify("--pidfile", a)
    assert code == 1
    assert f"{a} is locked by one that captures nothing: pid {pid}," in kinds["fault"][0]


def test_a_pidfile_that_is_no_file(world, a, b):
    a.symlink_to(b)
    code, kinds, _ = world.verify("--pidfile", a)
    assert code == 1
    assert "symbolic link" in kinds["fault"][0]


@pytest.mark.parametrize("listening", [True, False])
def test_a_squatter(world, a, listening):
    code = (
        "import os, socket, time\nos.setgid(65534)\nos.setuid(65534)\ns = socket.socket(socket.AF_UNIX)\n"
        "s.bind(f'\\0http-capture/if/{socket.if_nametoindex(\"eth1\")}')\n"
        f"{'s.listen(1)' if listening else ''}\nprint('open', flush=True)\ntime.sleep(60)"
    )
    pid = world.start(sys.executable, "-c", code, until="open")
    code, kinds, _ = world.verify("--pidfile", a, "--iface", "eth1")
    assert code == 1
    assert f"pid {pid} (by hand) keeps the lock of eth1, captures nothing and may not" in kinds["fault"][0]


def test_a_user_in_namespaces_of_his_own_raises_no_alarm(world, a, tmp_path):
    world.copy(a)
    script = tmp_path / "http-capture"
    script.write_text(
        f"#!{sys.executable}\nimport socket, time\ns = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)\n"
        "s.bind(('lo', 3))\nprint('open', flush=True)\ntime.sleep(60)"
    )
    script.chmod(0o755)
    probe = world.run("unshare", "-Urn", "true")
    if probe.returncode:
        pytest.skip(f"no user namespaces here: {probe.stderr}")
    world.start("unshare", "-Urn", script, "--iface", "lo", until="open")
    code, kinds, _ = world.verify("--pidfile", a)
    assert code == 0, kinds
    assert "in a user namespace of its own, not judged" in kinds["information"][0]


def test_supervised_or_not(world, a, b):
    world.copy(a)
    assert world.verify("--pidfile", a)[0] == 0
    code, kinds, _ = world.verify("--pidfile", a, "--expect-supervised")
    assert code == 1
    assert "it is not looked after by supervisord or systemd" in kinds["fault"][0]
    code, kinds, _ = world.verify("--pidfile", b, "--expect-supervised")
    assert code == 3


def test_by_a_real_supervisord(world, a, tmp_path):
    pytest.importorskip("supervisor", reason="needs supervisor")
    conf = tmp_path / "supervisord.conf"
    command = " ".join([*PROGRAM, "--iface", "eth1", "--pidfile", str(a), "--sink", "null"])
    conf.write_text(
        f"[supervisord]\nnodaemon=true\nchildlogdir={tmp_path}\nlogfile={tmp_path}/log\npidfile={tmp_path}/supervisord.pid\n"
        f"[program:span]\ncommand={command}\nstartsecs=1\nstderr_logfile={tmp_path}/stderr\n"
    )
    supervisord = world.start(sys.executable, "-m", "supervisor.supervisord", "-c", conf, until="entered RUNNING")
    deadline = time.monotonic() + LIMIT
    while world.verify("--pidfile", a, "--expect-supervised")[0] != 0:
        assert time.monotonic() < deadline
    world.kill("KILL", supervisord)
    code, kinds, _ = world.verify("--pidfile", a, "--expect-supervised")
    assert code == 1
    assert "(under supervisord (span)), which is gone: it is not looked after" in kinds["fault"][0]


def test_who_cannot_see_others(world, a, tmp_path):
    world.copy(a)
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all,+dac_read_search",
              "--ambient-caps=-all,+dac_read_search", "--bounding-set=-all,+dac_read_search"]  # fmt: skip
    code, kinds, _ = world.verify("--pidfile", a, before=nobody)
    assert code == 4
    assert "run verify as root" in kinds["unknown"][0]


def test_a_root_that_may_not_look_into_all(world, a):
    """As in a container: a process that cannot be a copy changes nothing, one that may be one is not overlooked."""
    weak = ["setpriv", "--inh-caps=-sys_ptrace", "--bounding-set=-sys_ptrace"]
    code, kinds, _ = world.verify("--pidfile", a, before=weak)
    assert code == 3
    assert "none is known to capture" in kinds["information"][0]
    world.copy(a)
    code, kinds, _ = world.verify("--pidfile", a, before=weak)
    assert code == 4
    assert "may not look into every process" in kinds["unknown"][0]


def test_from_a_pid_namespace_that_sees_nothing(world, a):
    world.copy(a)
    code, kinds, _ = world.verify(
        "--pidfile", a, "--iface", "eth1", before=["unshare", "--pid", "--fork", "--mount-proc"]
    )
    assert code == 4
    assert f"{a} is locked by a process that cannot be seen from here" in kinds["unknown"]
    assert "eth1 has a capture or a lock of a process that cannot be seen from here" in kinds["unknown"]


def test_what_is_bad_for_a_moment_only(world, a):
    """A text that is mended between the two looks."""
    world.kill("STOP", world.copy(a))
    text = a.read_text()
    a.write_text("1\n")
    assert world.verify("--pidfile", a, "--iface", "eth1")[0] == 1
    code = (
        "import sys\nfrom http_capture.guard import verify\nname = sys.argv[1]\n"
        f"verify.time.sleep = lambda seconds: open(name, 'w').write({text!r})\n"
        "print(verify.verify(name, ['eth1'], expect_supervised=False).code)"
    )
    done = world.run(sys.executable, "-c", code, str(a))
    assert done.stdout == "0\n", done.stderr


def test_the_verdict():
    assert (Report([], [], False).code, Report([], [], True).code) == (3, 0)
