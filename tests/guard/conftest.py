"""Real processes that take the guard, in a network namespace of the tests' own."""

import ctypes
import json
import os
import pathlib
import select
import signal
import subprocess
import sys
import tempfile
import time

import pytest
from http_capture import guard

CLONE_NEWNET = 0x40000000
SCRIPT = pathlib.Path(__file__).with_name("start.py")
# Where the package that is tested was imported from, so that a start imports the same one.
IMPORT_PATH = str(pathlib.Path(guard.__file__).parents[2])
LAUNCHERS = ("SUPERVISOR_", "INVOCATION_ID")
LIMIT = 60  # seconds that anything may take on a busy machine before the test fails


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """The guard has no compiled module: its tests are run uncompiled only, beside the building of the wheel."""
    folder = pathlib.Path(__file__).parent
    for item in items:
        if folder in item.path.parents:
            item.add_marker(pytest.mark.plain)


class Start:
    """One process that was started: `held`, or ended with `exit_code`, `error` (standard error) and `report`."""

    def __init__(self, process):
        self.process = process
        self.pid = process.pid
        self.began = time.monotonic()
        self._stdout = None

    def wait(self):
        """Until it holds the guard or has ended. Returns itself."""
        line = self.process.stdout.readline()
        self.held = line == "held\n"
        if not self.held:
            rest, self.error = self.process.communicate(timeout=LIMIT)
            self.seconds = time.monotonic() - self.began
            self.report = json.loads(line + rest) if line else {}
        self.exit_code = self.process.returncode
        return self

    def tell(self, word):
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"

    def ask(self, word):
        """What it answers to this line: a value of JSON."""
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()
        assert select.select([self.process.stdout], [], [], LIMIT)[0], "no answer"
        answer = json.loads(self.process.stdout.readline())
        assert self.process.stdout.readline() == "done\n"
        return answer

    def check(self, times=1):
        """The answer of the last of so many self-checks: `lines`, `checks`, `repairs`, `faults`, or `lost`."""
        return [self.ask("check") for _ in range(times)][-1]

    def kill(self):
        self.process.kill()
        self.process.wait(LIMIT)

    def line(self, label):
        """What follows this label in the refusal."""
        return next(line.strip()[len(label) :].strip() for line in self.error.splitlines() if label in line)


@pytest.fixture
def start():
    """Starts a process: `start(pidfile, "eth1", "--json", env={...}, under=["unshare", "-m"]).wait()`."""
    started = []

    def begin(*arguments, env=None, under=(), **popen):
        environment = {key: value for key, value in os.environ.items() if not key.startswith(LAUNCHERS)}
        environment |= {"PYTHONPATH": IMPORT_PATH, **(env or {})}
        process = subprocess.Popen(
            [*under, sys.executable, str(SCRIPT), *map(str, arguments)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, env=environment, **popen,
        )  # fmt: skip
        started.append(process)
        return Start(process)

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def die_with_parent():
    """When the tests are killed, nothing of theirs is left. After a change of user, which undoes it."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


@pytest.fixture
def child():
    """Runs a function in a child, as this user, and keeps what it returns until the end of the test or `kill(pid)`:
    `child(function, uid=0)` gives the pid."""
    pids = []

    def run(function, uid=0):
        ready, tell = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.setgroups([])
                os.setgid(uid)
                os.setuid(uid)
                die_with_parent()
                kept = function()  # noqa: F841  (open files)
                os.write(tell, b"x")
                while True:
                    signal.pause()
            finally:
                os._exit(1)
        pids.append(pid)
        os.close(tell)
        assert os.read(ready, 1) == b"x"
        os.close(ready)
        return pid

    def kill(pid):
        pids.remove(pid)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)

    run.kill = kill
    yield run
    for pid in list(pids):
        kill(pid)


@pytest.fixture
def as_nobody(child):
    """What a function returns, a text, that is called in a child as another user."""

    def call(function):
        ready, tell = os.pipe()
        child.kill(child(lambda: os.write(tell, function().encode()), uid=65534))
        os.close(tell)
        with open(ready) as told:
            return told.read()

    return call


@pytest.fixture(scope="session")
def root():
    if os.geteuid() != 0:
        pytest.skip("needs root")


@pytest.fixture(scope="module")
def network(root):
    """Makes and enters a network namespace with eth1 and eth2; children inherit it. Left at the end of the module."""
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    if libc.unshare(CLONE_NEWNET) != 0:
        os.close(before)
        pytest.skip(f"no network namespace: {os.strerror(ctypes.get_errno())}")
    try:
        subprocess.run(["ip", "link", "add", "eth1", "type", "veth", "peer", "name", "eth2"], check=True)
        yield
    finally:
        libc.setns(before, CLONE_NEWNET)
        os.close(before)


@pytest.fixture
def nic(network):
    return "eth1"


@pytest.fixture
def open_folder():
    """A folder that other users may enter and write, as those of tmp_path may not."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        yield pathlib.Path(folder)


@pytest.fixture
def pidfile(tmp_path):
    return tmp_path / "http-capture.pid"
