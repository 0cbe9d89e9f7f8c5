"""The real command, as the tests start it: in a process of its own, without the settings of whoever runs the tests."""

import os
import shutil
import subprocess
import time

import pytest
import undertaker
from command import COMMAND, environment

TIMEOUT_SECONDS = 60
MARK = pytest.StashKey[str]()


def pytest_configure(config):
    if not config.option.collectonly and hasattr(os, "pidfd_open"):
        config.stash[MARK] = undertaker.mark()
        undertaker.employ(config.stash[MARK])


def pytest_sessionfinish(session):
    if MARK in session.config.stash and (left := undertaker.left(session.config.stash[MARK])):
        print("\nthe tests have left processes behind:", *left.items(), sep="\n  ")
        session.exitstatus = 1


@pytest.fixture
def run(tmp_path):
    """Runs the command to its end; `before` is put before it. Gives the CompletedProcess, its output as text."""

    def run_it(*arguments, env=None, before=(), **options):
        options = {"capture_output": True, "stdin": subprocess.DEVNULL, "text": True, "cwd": tmp_path} | options
        command = [*before, *COMMAND, *map(str, arguments)]
        return subprocess.run(command, env=environment(**(env or {})), timeout=TIMEOUT_SECONDS, check=False, **options)

    return run_it


@pytest.fixture
def start(tmp_path):
    """Starts the command with pipes (bytes). Gives the Popen; what still runs at the end of the test is killed."""
    running = []

    def start_it(*arguments, **options):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": tmp_path}
        process = subprocess.Popen([*COMMAND, *map(str, arguments)], env=environment(), **(pipes | options))
        running.append(process)
        return process

    yield start_it
    for process in running:
        if process.poll() is None:
            process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe:
                pipe.close()


@pytest.fixture
def frozen(tmp_path):
    """A folder on a file system of its own, and what holds back every write to it until it is called again."""
    if os.getuid() or not all(map(shutil.which, ("mkfs.ext4", "mount", "fsfreeze"))):
        pytest.skip("needs root, mkfs.ext4 (e2fsprogs), mount and fsfreeze (util-linux) for a disk that stands still")
    image, folder = tmp_path / "image", tmp_path / "disk"
    with image.open("wb") as file:
        file.truncate(64 << 20)
    folder.mkdir()
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    if subprocess.run(["mount", "-o", "loop", image, folder], check=False).returncode:
        pytest.skip("needs a loop device for a disk that stands still")
    state = [False]

    def freeze(*, thaw=False):
        subprocess.run(["fsfreeze", "-u" if thaw else "-f", folder], check=True)
        state[0] = not thaw

    try:
        yield folder, freeze
    finally:
        if state[0]:
            freeze(thaw=True)
        for _ in range(100):  # what was held back may be written still
            if not subprocess.run(["umount", folder], check=False, stderr=subprocess.DEVNULL).returncode:
                break
            time.sleep(0.1)
        else:
            pytest.fail(f"{folder} cannot be unmounted: something has a file in it open")
