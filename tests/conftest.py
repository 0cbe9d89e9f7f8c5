"""The real command, as the tests start it: in a process of its own, without the settings of whoever runs the tests."""

import os
import subprocess

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
