"""A real supervisord with the shipped file, in a network namespace of the test's own.

    with veth() as pair, Supervisord(folder, pair.namespace, shipped(folder, pair.near)) as supervisord: ...

Whatever it has started is ended on the way out, also what was started by a supervisord that was killed: the namespace
ends what is in it.
"""

import contextlib
import json
import os
import pathlib
import shlex
import socket
import subprocess
import sys
import time
import xmlrpc.client

import supervisor.xmlrpc
from command import COMMAND, environment
from network import inside

ROOT = pathlib.Path(__file__).parents[1]
CONFIGURATION = ROOT / "supervisor" / "supervisord" / "http-capture.conf"
BIN = pathlib.Path(sys.executable).parent
LIMIT_SECONDS = 40  # that anything may take on a busy machine before the test fails
HEAD = """\
[supervisord]
nodaemon=true
user=root
logfile={folder}/supervisord.log
pidfile={folder}/supervisord.pid
childlogdir={folder}

{server}
[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface

[supervisorctl]
serverurl=unix://{folder}/s

"""
UNIX_SERVER = """\
[unix_http_server]
file={folder}/s
"""


def until(condition, seconds=LIMIT_SECONDS, what=""):
    """Waits until the condition gives something true, and returns it."""
    deadline = time.monotonic() + seconds
    while True:
        if found := condition():
            return found
        assert time.monotonic() < deadline, f"not within {seconds} s: {what() if callable(what) else what}"
        time.sleep(0.05)


def lines(path):
    """The JSON lines of a file; none where it is not there."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def shipped(folder, nic, *, program=None, listener=None):
    """The shipped file with the paths of this test, records to nowhere, and the listener's lines as JSON.

    `program`, `listener`: key -> value that replaces the file's."""
    text = CONFIGURATION.read_text()
    for old, new in (
        ("/usr/local/bin/http-capture", shlex.join(COMMAND)),
        ("--brokers kafka1:9092", "--sink null"),
        ("eth1", nic),
        ("/run/http-capture.pid", f"{folder}/http-capture.pid"),
        ("/var/log/supervisor/", f"{folder}/"),
        ("supervisor-listener ", "supervisor-listener --json "),
    ):
        assert old in text, f"{CONFIGURATION} has no {old} any more"
        text = text.replace(old, new)
    first, mark, second = text.partition("[eventlistener:")
    return _replaced(first, program or {}) + mark + _replaced(second, listener or {})


def _replaced(section, values):
    kept = [line for line in section.splitlines() if line.partition("=")[0] not in values]
    return "\n".join([*kept, *(f"{key}={value}" for key, value in values.items()), "", ""])


class Supervisord:
    """Runs from the start of the `with` to its end."""

    def __init__(self, folder, namespace, text, server=UNIX_SERVER):
        self.folder = folder
        self.namespace = namespace
        self.configuration = folder / "supervisord.conf"
        self.configuration.write_text((HEAD + text).replace("{server}", server).replace("{folder}", str(folder)))
        self.log = folder / "supervisord.log"

    def __enter__(self):
        with inside(self.namespace), open(self.folder / "supervisord.out", "wb") as out:
            self.process = subprocess.Popen(
                [BIN / "supervisord", "-c", self.configuration], env=environment(), cwd="/", stdin=subprocess.DEVNULL,
                stdout=out, stderr=subprocess.STDOUT,
            )  # fmt: skip
        until(self._answers, what=(self.folder / "supervisord.out").read_text)
        return self

    def _answers(self):
        assert self.process.poll() is None, (self.folder / "supervisord.out").read_text()
        with contextlib.suppress(OSError):
            return self.ask("getState")

    def __exit__(self, *error):
        self.process.kill()  # it would take seconds to end by itself; the namespace ends its children
        self.process.wait()

    def ask(self, method, *arguments):
        transport = supervisor.xmlrpc.SupervisorTransport("", "", f"unix://{self.folder}/s")
        with xmlrpc.client.ServerProxy("http://127.0.0.1", transport) as server:
            return getattr(server.supervisor, method)(*arguments)

    def info(self, name="http-capture"):
        return self.ask("getProcessInfo", name)

    def state(self, name="http-capture"):
        return self.info(name)["statename"]

    def until(self, state, name="http-capture", seconds=LIMIT_SECONDS):
        """Waits for this state of a process; returns its pid."""
        until(lambda: self.state(name) == state, seconds, self.story)
        return self.info(name)["pid"]

    def control(self, *arguments):
        """supervisorctl. Gives the CompletedProcess."""
        return subprocess.run(
            [BIN / "supervisorctl", "-c", self.configuration, *arguments], env=environment(), capture_output=True,
            text=True, timeout=LIMIT_SECONDS, check=False,
        )  # fmt: skip

    def said(self, event):
        """What the listener said: its lines of this event."""
        return [line for line in lines(self.folder / "http-capture-listener.log") if line["event"] == event]

    def until_said(self, event, number=1):
        return until(lambda: len(found := self.said(event)) >= number and found, what=self.story)

    def starts(self, name="http-capture"):
        """How often supervisord has started it."""
        return self.log.read_text().count(f"spawned: '{name}' ")

    def story(self):
        """All logs, for the message of a test that fails."""
        return "\n".join(f"== {path.name}\n{path.read_text()}" for path in sorted(self.folder.glob("*.log")))


class Listener:
    """`http-capture supervisor-listener` alone: the test is its supervisord, and has no RPC server."""

    def __init__(self, folder, namespace, *arguments, before=(), **more):
        self.errors = folder / "listener.err"
        environ = environment(SUPERVISOR_ENABLED="1", SUPERVISOR_SERVER_URL=f"unix://{folder}/nobody", **more)
        with inside(namespace), open(self.errors, "wb") as err:
            self.process = subprocess.Popen(
                [*before, *COMMAND, "supervisor-listener", "--pidfile", folder / "http-capture.pid", *arguments],
                env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=err,
            )  # fmt: skip
        self.pid = self.process.pid

    def __enter__(self):
        self.ready()
        return self

    def __exit__(self, *error):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()

    def ready(self):
        assert self.process.stdout.readline() == b"READY\n", self.errors.read_text()

    def send(self, octets):
        """Sends it as an event; returns after the answer to it."""
        self.process.stdin.write(octets)
        self.process.stdin.flush()
        assert self.process.stdout.read(11) == b"RESULT 2\nOK", self.errors.read_text()
        self.ready()

    def state(self, state, *, name="http-capture", group=None, more="tries:1"):
        """An event as supervisord 4 sends it."""
        payload = f"processname:{name} groupname:{group or name} from_state:STARTING {more}"
        self.event(f"PROCESS_STATE_{state}", payload)

    def event(self, name, payload):
        head = f"ver:3.0 server:supervisor serial:21 pool:listener poolserial:10 eventname:{name} len:{len(payload)}\n"
        self.send(f"{head}{payload}".encode())

    def said(self, event):
        return [line for line in lines(self.errors) if line["event"] == event]


def syslog_socket(folder):
    """A socket that stands where /dev/log is for a process that is started with `under_syslog`."""
    device = folder / "dev"
    device.mkdir()
    for name in ("null", "urandom"):
        (device / name).touch()
    found = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    found.bind(os.fspath(device / "log"))
    found.settimeout(LIMIT_SECONDS)
    return found


def under_syslog(folder):
    """The beginning of a command: the rest runs where /dev/log is that socket, in a mount namespace of its own."""
    device = shlex.quote(str(folder / "dev"))
    mounts = [f"mount --bind /dev/{name} {device}/{name}" for name in ("null", "urandom")]
    script = " && ".join([*mounts, f"mount --bind {device} /dev", 'exec "$@"'])
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh"]
