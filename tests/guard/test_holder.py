"""Who holds it, in words."""

import os
import subprocess

import pytest
from http_capture.guard import AlreadyRunning, GuardError, refusal
from http_capture.guard.holder import DENIED, ELSEWHERE, Holder, Launcher, _alive, _span, own_launcher
from http_capture.guard.pidfile import boot_id, process_state

SUPERVISED = b"HOME=/\0SUPERVISOR_ENABLED=1\0SUPERVISOR_PROCESS_NAME=http-capture\0"

CONTAINER = b"0::/system.slice/docker-0123456789abcdef.scope\n"


@pytest.mark.parametrize(
    ("environment", "group", "text", "stop"),
    [
        (b"", b"", "by hand", None),
        (SUPERVISED, b"", "under supervisord (http-capture)", "supervisorctl stop http-capture"),
        (SUPERVISED, CONTAINER, "under supervisord (http-capture)", "supervisorctl stop http-capture"),
        (b"", CONTAINER, "under docker (0123456789ab)", "docker stop 0123456789ab"),
        (b"", b"12:pids:/docker/" + b"a" * 64, "under docker (aaaaaaaaaaaa)", "docker stop aaaaaaaaaaaa"),
        (b"", b"0::/machine.slice/libpod-" + b"b" * 64 + b".scope/container\n", "under podman (bbbbbbbbbbbb)",
         "podman stop bbbbbbbbbbbb"),
        (b"INVOCATION_ID=x\0", CONTAINER[:-1] + b"/system.slice/hc.service\n", "under systemd (hc.service)",
         "systemctl stop hc.service"),
        (b"", b"0::/docker/$(x)\n", "by hand", None),
        (
            SUPERVISED + b"SUPERVISOR_GROUP_NAME=span\0",
            b"",
            "under supervisord (span:http-capture)",
            "supervisorctl stop span:http-capture",
        ),
        (b"SUPERVISOR_ENABLED=1\0", b"", "under supervisord", None),
        (
            SUPERVISED + b"INVOCATION_ID=x\0",
            b"0::/system.slice/supervisor.service\n",
            "under supervisord (http-capture)",
            "supervisorctl stop http-capture",
        ),
        (
            b"INVOCATION_ID=x\0",
            b"0::/system.slice/http-capture.service\n",
            "under systemd (http-capture.service)",
            "systemctl stop http-capture.service",
        ),
        (b"INVOCATION_ID=x\0", b"0::/\n", "under systemd", None),
        (b"INVOCATION_ID=x\0", b"0::/user.slice/vte-spawn-1.scope\n", "by hand", None),
        (b"SUPERVISOR_ENABLED=1\0SUPERVISOR_PROCESS_NAME=a\n$(x)\xff\0", b"", r"under supervisord (a\n$(x)\udcff)",
         r"supervisorctl stop 'a\n$(x)\udcff'"),
    ],
)  # fmt: skip
def test_launcher(environment, group, text, stop):
    launcher = Launcher.read(environment, group)
    assert str(launcher) == text
    assert launcher.command("stop") == stop
    again = Launcher.parse(text)
    assert (again.manager, again.name) == (launcher.manager, launcher.name)


@pytest.mark.parametrize("text", ["", "under", "under init", "by foot"])
def test_a_launcher_that_is_none(text):
    assert Launcher.parse(text) is None


def test_own_launcher(monkeypatch):
    monkeypatch.setenv("SUPERVISOR_ENABLED", "1")
    monkeypatch.setenv("SUPERVISOR_PROCESS_NAME", "p")
    assert str(own_launcher()) == "under supervisord (p)"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59, "59s"), (725, "12m05s"), (14820, "4h07m"), (86399, "23h59m"), (273600 + 59, "3d04h")],
)
def test_span(seconds, text):
    assert _span(seconds) == text


def test_a_process():
    """One that has said something: before that, its command line may not be there yet."""
    with subprocess.Popen(["sh", "-c", "echo; read x"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        told = Holder(process.pid, "file").describe()
        process.kill()
    assert told.startswith(f"pid {process.pid}, up ")
    assert told.endswith(", sh -c 'echo; read x'")


def test_a_process_that_is_gone():
    process = subprocess.Popen(["true"])
    process.wait()
    told = Holder(process.pid, "socket").describe()
    assert told == (f"pid {process.pid}, up unknown, started in an unknown way (user unknown), command line unknown")


def test_alive():
    mine = {"pid": str(os.getpid()), "boot": boot_id(), "start": str(process_state(os.getpid())[1])}
    assert _alive(mine)
    for wrong in ({"pid": ""}, {"pid": "9" * 30}, {"pid": "1"}, {"boot": "x"}, {"start": "1"}):
        assert not _alive(mine | wrong)


def test_a_refusal_with_nothing_known():
    holder = Holder(None, note=DENIED)
    error = AlreadyRunning(holder, ["eth1 (interface)"], "/run/a.pid", "", ["eth1"], Launcher(), ["http-capture"])
    assert refusal(error).splitlines() == [
        "http-capture: REFUSED (exit 75): already running.",
        f"  holder: {DENIED}",
        "  held:   eth1 (interface)",
        "  this start: by hand. Nothing was captured, nothing was sent.",
        "  to hand over: as root: http-capture verify, which shows it; then: http-capture",
    ]


def test_the_refusal_of_the_specification():
    holder = Holder(None)
    holder.pid, holder.up_seconds, holder.launcher, holder.user = 4242, 3 * 86400 + 4 * 3600, Launcher(), "root"
    holder.command, holder.pidfile = "http-capture --iface eth1", "/run/http-capture.pid"
    error = AlreadyRunning(
        holder, ["/run/http-capture.pid (lock)", "eth1 (interface)"], "/run/http-capture.pid", "eth1", ["eth1"],
        Launcher("supervisord", "http-capture"), ["http-capture", "--iface", "eth1"],
    )  # fmt: skip
    assert (
        refusal(error)
        == """\
http-capture: REFUSED (exit 75): already running on eth1.
  holder: pid 4242, up 3d04h, started by hand (user root), http-capture --iface eth1
  held:   /run/http-capture.pid (lock), eth1 (interface)
  this start: under supervisord (http-capture). Nothing was captured, nothing was sent.
  to hand over: http-capture stop --pidfile /run/http-capture.pid && supervisorctl start http-capture"""
    )


HAND_OVER = [
    # holder: launcher, pid, its pidfile, other namespaces, stopped, uid; this start's uid; why in doubt -> what to type
    (Launcher(), 42, "/run/a b", [], False, 0, 0, "", "http-capture stop --pidfile '/run/a b' && http-capture -x"),
    (None, 42, "", [], False, 0, 0, "", "kill 42 && tail --pid=42 -f /dev/null && http-capture -x"),
    (Launcher(), 42, "/run/a", [], False, 0, 0, "older", "kill 42 && tail --pid=42 -f /dev/null && http-capture -x"),
    (Launcher(), 42, "/run/a", [], True, 0, 0, "",
     "kill -CONT 42 && http-capture stop --pidfile /run/a && http-capture -x"),
    (Launcher(), 42, "/run/a", [], False, 0, 1000, "",
     "as root: http-capture stop --pidfile /run/a && http-capture -x"),
    (Launcher(), 42, "/run/a", [], False, 1000, 1000, "", "http-capture stop --pidfile /run/a && http-capture -x"),
    (Launcher("systemd", "hc.service"), 42, "/run/a", ["mount"], False, 0, 0, "",
     "systemctl stop hc.service && http-capture -x"),
    (Launcher("systemd", "hc.service"), 42, "/run/a", ["pid", "mount"], False, 0, 0, "",
     "nsenter -t 42 -a systemctl stop hc.service && http-capture -x"),
    (Launcher("docker", "0123456789ab"), 42, "", ["pid", "mount"], False, 0, 0, "",
     "docker stop 0123456789ab && http-capture -x"),
    (Launcher("systemd"), 42, "/run/a", [], False, 0, 0, "",
     "stop it with systemctl (systemctl status shows its name), then: http-capture -x"),
    (None, None, "/run/a", [], False, None, 0, "",
     "in its container, or on its host: http-capture stop --pidfile /run/a; then here: http-capture -x"),
    (None, None, "", [], False, None, 0, "",
     "in its container, or on its host: stop it there; then here: http-capture -x"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("launcher", "pid", "path", "namespaces", "stopped", "uid", "mine", "doubt", "text"), HAND_OVER
)
def test_what_to_type(monkeypatch, launcher, pid, path, namespaces, stopped, uid, mine, doubt, text):
    holder = Holder(None, note="" if pid else ELSEWHERE)
    holder.pid, holder.launcher, holder.pidfile, holder.uid = pid, launcher, path, uid
    holder.namespaces, holder.stopped = namespaces, stopped
    monkeypatch.setattr(os, "geteuid", lambda: mine)
    error = AlreadyRunning(holder, ["x"], "/run/a", "eth1", ["eth1"], Launcher(), ["http-capture", "-x"], doubt)
    assert f"  to hand over: {text}" in refusal(error).splitlines()


def test_any_other_error_is_one_line():
    assert refusal(GuardError("pidfile /x: full; free space")) == (
        "http-capture: REFUSED (exit 73): pidfile /x: full; free space"
    )
