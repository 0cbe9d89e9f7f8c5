"""Two commands beside each other: both are run to their end, what they say is not mixed, a failure is named."""

import pathlib
import signal
import subprocess
import sys

import pytest

BESIDE = (sys.executable, pathlib.Path(__file__).with_name("beside.py"))
LIMIT_SECONDS = 60
pytestmark = pytest.mark.once


@pytest.mark.parametrize(
    ("first", "second", "failed"),
    [
        ("echo a", "echo b", []),
        ("echo a; exit 3", "echo b", ["echo a; exit 3"]),
        ("echo a", "echo b; exit 4", ["echo b; exit 4"]),
        ("echo a; kill -9 $$", "echo b; exit 2", ["echo a; kill -9 $$", "echo b; exit 2"]),
    ],
)
def test_each_is_run_to_its_end_and_a_failure_is_named(first, second, failed):
    done = subprocess.run(
        [*BESIDE, first, second], capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False
    )  # fmt: skip
    assert done.returncode == (1 if failed else 0)
    assert [line for line in done.stdout.splitlines() if not line.startswith("== ")] == ["a", "b"]
    assert done.stderr.splitlines() == [f"== FAILED: {command}" for command in failed]


def test_they_run_at_the_same_time(tmp_path):
    """Each waits for what the other does."""
    wait = f"cd {tmp_path}; touch {{}}; while [ ! -e {{}} ]; do sleep 0.05; done"
    commands = [wait.format("one", "two"), wait.format("two", "one")]
    done = subprocess.run([*BESIDE, *commands], timeout=LIMIT_SECONDS, check=False, stdout=subprocess.DEVNULL)
    assert done.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_end_is_an_end_of_both(tmp_path, number):
    running = subprocess.Popen(
        [*BESIDE, *(f"echo $$ >{tmp_path}/{name}; exec sleep 600" for name in ("first", "second"))],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    with running:
        files = [tmp_path / "first", tmp_path / "second"]
        while not all(file.exists() and file.read_text() for file in files):
            assert running.poll() is None
        running.send_signal(number)
        assert running.wait(LIMIT_SECONDS) == 128 + number
    for file in files:
        assert not pathlib.Path(f"/proc/{file.read_text().strip()}").exists()
