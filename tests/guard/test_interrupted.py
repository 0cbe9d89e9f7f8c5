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


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.once
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("what", ["test_guard.py", "test_stop.py", "test_verify.py"])
def test_nothing_is_left_behind(root, tmp_path, number, what):
    mark = str(uuid.uuid4())
    files = tmp_path / "tmp"
    files.mkdir()
    package = str(pathlib.Path(guard.__file__).parents[2])
    tests = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'tests'}",
         "-c", str(HERE.parents[1] / "pyproject.toml"), "--rootdir", str(HERE.parents[1]), str(HERE / what)],
        env=os.environ | {"INTERRUPTED": mark, "TMPDIR": str(files), "PYTHONPATH": package},
        cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        time.sleep(random.uniform(2, 5))
        assert tests.poll() is None, "they were over before they were interrupted"
        tests.send_signal(number)
        tests.wait(60)
        deadline = time.monotonic() + LEFT_SECONDS
        while (left := undertaker.marked(f"INTERRUPTED={mark}")) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not left
        if os.path.isdir("/run/netns"):
            assert not [name for name in os.listdir("/run/netns") if name.startswith(f"hc{tests.pid}-")]
        if number == signal.SIGINT:  # the others leave no time to remove files
            assert not os.listdir(files)
    finally:
        tests.kill()
        tests.wait()
