"""Beside the first remedy (first_remedy.c), compiled: each refuses the other, in both orders."""

import json
import pathlib
import shutil
import subprocess

import pytest

SOURCE = pathlib.Path(__file__).with_name("first_remedy.c")
LIMIT = 60


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler (cc)")
    made = tmp_path_factory.mktemp("first-remedy") / "first_remedy"
    subprocess.run([compiler, "-Wall", "-Werror", "-o", made, SOURCE], check=True, timeout=LIMIT)
    return made


@pytest.fixture
def remedy(program):
    """Starts it: a process that holds the file, or the exit code of one that was refused."""
    running = []

    def begin(path):
        process = subprocess.Popen([program, path], stdout=subprocess.PIPE, text=True)
        running.append(process)
        return process if process.stdout.readline() == "held\n" else process.wait(LIMIT)

    yield begin
    for process in running:
        process.kill()
        process.communicate()


def test_it_is_first(start, pidfile, remedy):
    first = remedy(pidfile)
    pidfile.chmod(0o600)
    before = pidfile.read_bytes()
    second = start(pidfile).wait()
    assert second.exit_code == 75
    assert second.line("holder:").startswith(f"pid {first.pid}, up ")
    assert "an older http-capture, or another program" in second.line("note:")
    assert second.line("to hand over:").startswith(f"kill {first.pid} && ")
    told = json.loads(start(pidfile, "--json").wait().error)
    assert (told["holder"]["pid"], told["holder"]["source"]) == (first.pid, "lock")
    assert "an older http-capture" in told["note"]
    assert pidfile.read_bytes() == before == b"%d\n" % first.pid
    first.kill()
    first.wait(LIMIT)
    assert start(pidfile).wait().held


def test_its_file_as_it_makes_it(start, pidfile, remedy):
    """0644 under the usual umask: fit for a start, which is then refused by the lock."""
    remedy(pidfile)
    assert start(pidfile).wait().exit_code == 75


def test_it_is_second(start, pidfile, remedy):
    """It truncates the file before it is refused: the holder writes its text again."""
    holder = start(pidfile).wait()
    text = pidfile.read_bytes()
    assert remedy(pidfile) == 0
    assert pidfile.read_bytes() == b""
    found = holder.check()
    assert pidfile.read_bytes() == text
    assert (found["repairs"], found["faults"]) == (1, 0)
    assert "its text was changed" in found["lines"][0]
    assert holder.check() == {"lines": [], "checks": 2, "repairs": 1, "faults": 0}
    assert start(pidfile).wait().line("holder:").startswith(f"pid {holder.pid},")


def test_it_is_second_when_byte_0_is_all_that_is_left(start, pidfile, remedy):
    holder = start(pidfile).wait()
    holder.tell("read")
    assert remedy(pidfile) == 0


@pytest.mark.root
def test_it_has_taken_a_pidfile_that_replaced_the_holders(start, pidfile, nic, remedy):
    """It knows no lock of a NIC and runs: one of the two has to end."""
    holder = start(pidfile, nic).wait()
    pidfile.unlink()
    first = remedy(pidfile)
    looks = [holder.check() for _ in range(9)]
    assert all(look.get("lines") == [] for look in looks[:8])
    assert looks[8]["exit"] == 76
    assert f"pid {first.pid} has the lock" in looks[8]["lost"]
    assert pidfile.read_text() == f"{first.pid}\n"
    first.kill()
    first.wait(LIMIT)
    assert holder.check()["repairs"] == 1
    assert pidfile.read_text().startswith(f"{holder.pid}\n")
