"""These tests themselves: whoever interrupts them finds no process, namespace or NIC of theirs."""

import os
import pathlib
import random
import signal
import subprocess
import sys
import time
import uuid

import pytest
import undertaker
from http_capture import guard

HERE = pathlib.Path(__file__).parent
LEFT_SECONDS = 20  # until the last process of a pid namespace that is killed is gone


@pytest.fixture
def tests_of(tmp_path):
    """Starts these tests in a process of its own: `tests_of("test_stop.py", mark)`. Gives the Popen."""
    (tmp_path / "tmp").mkdir()
    started = []

    def begin(what, mark):
        tests = subprocess.Popen(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'tests'}",
             "-m", "not alone", "-c", str(HERE.parents[1] / "pyproject.toml"), "--rootdir", str(HERE.parents[1]),
             str(HERE / what)],
            env=os.environ | {
                "INTERRUPTED": mark,
                "TMPDIR": str(tmp_path / "tmp"),
                "PYTHONPATH": str(pathlib.Path(guard.__file__).parents[2]),
            },
            cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        started.append(tests)
        return tests

    yield begin
    for tests in started:
        tests.kill()
        tests.wait()


def nothing_is_left(mark):
    deadline = time.monotonic() + LEFT_SECONDS
    while (left := undertaker.marked(f"INTERRUPTED={mark}")) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not left


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("what", ["test_guard.py", "test_stop.py", "test_verify.py"])
def test_nothing_is_left_behind(root, tmp_path, tests_of, number, what):
    mark = str(uuid.uuid4())
    tests = tests_of(what, mark)
    time.sleep(random.uniform(2, 5))
    assert tests.poll() is None, "they were over before they were interrupted"
    tests.send_signal(number)
    tests.wait(60)
    assert nothing_is_left(mark)
    if os.path.isdir("/run/netns"):
        assert not [name for name in os.listdir("/run/netns") if name.startswith(f"hc{tests.pid}-")]
    if number == signal.SIGINT:  # the others leave no time to remove files
        assert not os.listdir(tmp_path / "tmp")


@pytest.mark.root
def test_nobody_waits_for_the_child_of_a_copy(root, tests_of):
    """It has the pipe of the copy, and would keep it for a minute."""
    mark = str(uuid.uuid4())
    tests = tests_of("test_stop.py::test_a_child_that_keeps_the_lock[60]", mark)
    deadline = time.monotonic() + 60
    while not [
        pid
        for pid, command in undertaker.marked(f"INTERRUPTED={mark}").items()
        if " fork " in command and f"\nPPid:\t{tests.pid}\n" not in pathlib.Path(f"/proc/{pid}/status").read_text()
    ]:
        assert time.monotonic() < deadline
        assert tests.poll() is None
        time.sleep(0.01)
    tests.send_signal(signal.SIGINT)
    tests.wait(30)
    assert nothing_is_left(mark)
