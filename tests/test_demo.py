"""`http-capture demo`, as a user runs it: what it shows, how it ends, and that nothing is left of it."""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import pytest
from http_capture import guard
from network import inside, namespace, needs_network, unprivileged

IMPORT_PATH = str(pathlib.Path(guard.__file__).parents[2])
LIMIT_SECONDS = 60
DEMO = (sys.executable, "-P", "-m", "http_capture.capture", "demo")
AFTER = ("broker", "capture", "client", "refused", "ledger")  # a line that the demo prints
PASSWORD = "correct-horse"


@pytest.fixture
def folder() -> Iterator[pathlib.Path]:
    """For the temporary files of the demo; other users may write there."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o777)
        yield pathlib.Path(name)


def environment(folder: pathlib.Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HTTP_CAPTURE_")}
    return {**kept, "PYTHONPATH": IMPORT_PATH, "TMPDIR": str(folder), **more}


def demo(
    folder: pathlib.Path, *arguments: str, under: tuple[str, ...] = (), **more: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*under, *DEMO, *arguments], env=environment(folder, **more), capture_output=True, text=True, check=False,
        stdin=subprocess.DEVNULL, timeout=LIMIT_SECONDS,
    )  # fmt: skip


def left_of(folder: pathlib.Path) -> list[str]:
    """Files in its temporary folder, and processes that were started for it: its folder is in their command line."""
    files = [str(path) for path in folder.iterdir()]
    processes = []
    for path in pathlib.Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"TMPDIR={folder}".encode() in path.read_bytes().split(b"\0"):
                processes.append(path.parent.name)
        except OSError:
            continue
    return files + processes


def check(run: subprocess.CompletedProcess[str], folder: pathlib.Path) -> None:
    """What every demo must show, and that nothing is left of it."""
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stderr == ""
    rows = re.findall(
        r"^\d\d:\d\d:\d\d\.\d{3} +127\.0\.0\.1:\d+ +([A-Z]+) +(http://\S+) +(\d{3}) +(\d+) ", run.stdout, re.M
    )
    assert len(rows) == 11
    assert {row[0] for row in rows} == {"GET", "POST", "HEAD", "PUT", "DELETE"}
    assert {row[2] for row in rows} == {"200", "201", "204", "303", "304", "404"}
    assert "user=anna&password=REDACTED" in run.stdout
    assert "access_token=REDACTED" in run.stdout
    assert PASSWORD not in run.stdout
    assert "REFUSED (exit 75): already running on lo." in run.stdout
    assert re.search(r"^ +holder: pid \d+, up ", run.stdout, re.M)
    assert re.search(r"^ +records +total 11, .*delivered 11$", run.stdout, re.M)
    assert re.search(r"^ +balanced +yes$", run.stdout, re.M)
    assert "11 exchanges made, 11 delivered by the ledger, 11 in Kafka with 11 different ids" in run.stdout
    assert left_of(folder) == []


@needs_network
def test_live(folder: pathlib.Path) -> None:
    with namespace() as name, inside(name):
        run = demo(folder)
    check(run, folder)
    assert "LIVE on lo: http-capture --iface lo" in run.stdout
    assert "REPLAY" not in run.stdout


def test_replay_where_it_is_asked_for(folder: pathlib.Path) -> None:
    run = demo(folder, "--replay")
    check(run, folder)
    assert "REPLAY of a capture file, not live: --replay was given" in run.stdout


@needs_network
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv (util-linux)")
def test_replay_where_capturing_is_not_permitted(folder: pathlib.Path) -> None:
    with namespace() as name, inside(name):
        run = demo(folder, under=tuple(unprivileged()), HOME=str(folder))
    check(run, folder)
    assert "REPLAY of a capture file, not live: not permitted to capture on lo: CAP_NET_RAW is missing" in run.stdout


@needs_network
def test_replay_where_another_copy_holds_the_nic(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    arguments = ["--iface", "lo", "--pidfile", str(tmp_path / "other.pid"), "--sink", "null"]
    with namespace() as name, inside(name):
        other = subprocess.Popen([*DEMO[:-1], *arguments], env=environment(tmp_path), stderr=subprocess.PIPE, text=True)
        try:
            assert other.stderr is not None
            while "recording lo" not in other.stderr.readline():
                assert other.poll() is None
            run = demo(folder)
        finally:
            other.kill()
            other.communicate()
    check(run, folder)
    assert f"not live: REFUSED (exit 75): already running on lo. holder: pid {other.pid}, up " in run.stdout


def test_settings_of_the_environment_do_not_change_it(folder: pathlib.Path) -> None:
    check(demo(folder, "--replay", HTTP_CAPTURE_RECORD_REDACT="false", HTTP_CAPTURE_SINK_TO="null"), folder)


def test_a_wrong_argument_is_one_line(folder: pathlib.Path) -> None:
    run = demo(folder, "--fast")
    assert run.returncode == 64
    assert run.stderr == "http-capture: demo takes --replay or nothing, not '--fast'\n"


def test_help(folder: pathlib.Path) -> None:
    run = demo(folder, "--help")
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.startswith("usage: http-capture demo")


def test_a_reader_that_goes_away_leaves_nothing_behind(folder: pathlib.Path) -> None:
    process = subprocess.Popen(
        [*DEMO, "--replay"], env=environment(folder), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert "Traceback" not in process.stderr.read()
    process.stderr.close()
    process.wait(LIMIT_SECONDS)
    assert left_of(folder) == []


SIGNALS = [(after, mode, signal.SIGINT) for after in AFTER for mode in ("live", "--replay")] + [
    ("capture", "live", signal.SIGTERM),
    ("client", "live", signal.SIGHUP),
]


@pytest.mark.once
@pytest.mark.slow
@pytest.mark.parametrize(("after", "mode", "number"), SIGNALS)
def test_a_signal_leaves_nothing_behind(after: str, mode: str, number: signal.Signals, folder: pathlib.Path) -> None:
    """It is interrupted right behind that line; where capturing is not permitted, both modes are one."""
    process = subprocess.Popen(
        [*DEMO, *([mode] if mode != "live" else [])], env=environment(folder, PYTHONUNBUFFERED="1"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if after in line.lower():
            break
    begin = time.monotonic()
    process.send_signal(number)
    _, errors = process.communicate(timeout=LIMIT_SECONDS)
    assert time.monotonic() - begin < 15
    # Behind its last lines the demo may have ended, or the interpreter may be leaving without its handlers.
    assert process.returncode in (128 + number, -number, 0)
    if process.returncode == 128 + number:
        assert errors == "\nhttp-capture: demo interrupted; nothing of it is left\n"
    assert left_of(folder) == []


def test_two_signals_leave_nothing_behind(folder: pathlib.Path) -> None:
    process = subprocess.Popen(
        DEMO, env=environment(folder), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.2)
    for _ in range(3):
        process.send_signal(signal.SIGINT)
        time.sleep(0.02)
    process.communicate(timeout=LIMIT_SECONDS)
    assert process.returncode == 130
    assert left_of(folder) == []
