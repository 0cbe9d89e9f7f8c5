"""`http-capture supervisor-listener`: an event listener of supervisord that watches the processes of one program.

The states of a watched process, as supervisord has them, and what is done:

    STOPPED    an operator's wish: left alone; what was wrong before is over
    STARTING   nothing
    RUNNING    after a minute of it, what was wrong before is over
    BACKOFF    alert; supervisord tries again itself
    FATAL      alert; where the guard was held: waiting, and when it is free it is started
    EXITED     unexpected: alert; supervisord starts it again itself
               expected (76, the guard was lost or the producer fenced): alert; left down

Invariants:
- Standard output is supervisord's: READY, then for each event one RESULT, which is OK whatever happened; another
  answer would bring the same event again for ever.
- One alert per incident. Another exit code or another holder is another incident.
- Only a process that was refused by the guard, and is FATAL or EXITED, is started: when nobody holds the guard (what
  cannot be told is held), one at a time, the second start 5 s after the first, each further one after twice as long,
  up to 5 min, until one is RUNNING for a minute.
- Every tick asks supervisord for all states: events that were missed, before this process started too, change nothing.
- An event is answered within seconds: a look ends within two, a call to supervisord within five, and the alert
  command runs beside.
"""

import contextlib
import dataclasses
import datetime
import http.client
import importlib
import json
import os
import re
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import syslog
import time
import xml.parsers.expat
import xmlrpc.client
from collections.abc import Callable
from typing import Any

from ..config import loading
from ..guard.holder import Holder
from ..guard.pidfile import one_line, quote
from ..guard.status import Status, look, managed, parent
from .arguments import Parser
from .errors import ConfigurationError, UnavailableError, UsageError

LOOK_EVERY_SECONDS = 1.0  # while a process waits for the guard, or an alert command runs
RUNNING_SECONDS = 60.0
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 5.0, 300.0
CALL_SECONDS = 5.0
EVENT_SECONDS = 2.0  # that the rest of an event may take
EVENT_BYTES = 1 << 20
LOG_BYTES = 1 << 16
COMMAND_SECONDS = 30.0
COMMANDS_AT_ONCE = 4
KILLED = -1  # supervisord's exit status of a process that a signal ended

REASONS = {
    KILLED: "a signal ended it",
    0: "it ended as if somebody had asked it to",
    64: "its command line is wrong",
    65: "its capture file is damaged",
    66: "it has no such input",
    69: "its network card, broker or topic is not there",
    70: "a bug of http-capture",
    73: "the guard could not be established",
    74: "records could not be delivered",
    76: "the guard was lost or the producer fenced, so another copy may be running; it is left down",
    77: "it may not do what it has to",
    78: "its configuration is wrong",
}

EPILOG = """\
Started by supervisord as an [eventlistener:...] with events=PROCESS_STATE,TICK_5; an example is in
supervisor/supervisord/http-capture.conf. An alert is one line on standard error and in syslog, for each time that the
program could not start, or ended without being asked to; it names who holds the guard and says what to type. A program
that is FATAL because the guard was held is started when the guard is free.

Name the pidfile and the network cards of the program itself: they say which guard is looked at.
CMD is run without a shell for each alert, gets it as JSON on standard input, and is killed after 30 seconds."""


def main(arguments: list[str]) -> int:
    """Runs until supervisord closes standard input, or SIGTERM. Returns the exit code; raises an HttpCaptureError
    before the protocol begins."""
    parser = Parser(
        "http-capture supervisor-listener",
        "Watches http-capture for supervisord: alerts, and a start when the guard is free again.",
        EPILOG,
    )
    parser.add_argument("--program", metavar="NAME", default="http-capture",
                        help="program, group or group:process that is watched (http-capture)")  # fmt: skip
    parser.add_argument("--pidfile", metavar="FILE", help="its pidfile (/run/http-capture.pid)")
    parser.add_argument("--iface", action="append", metavar="NIC", help="its network card; may be repeated")
    parser.add_argument("--config", metavar="FILE", default="", help="its settings file, in place of these two")
    parser.add_argument("--alert-command", metavar="CMD", default="", help="run for each alert")
    parser.add_argument("--json", action="store_true", help="one JSON object a line on standard error")
    options = parser.parse_args(arguments)
    flags = {"guard": {"pidfile": options.pidfile}, "source": {"iface": options.iface and tuple(options.iface)}}
    pidfile, interfaces, interface_lock = loading.guard_part(*loading.layers(options.config, os.environ, flags))
    if not interfaces and interface_lock:
        raise UsageError("supervisor-listener: name the program's network card (--iface eth1), or its --config")
    _Listener(
        options.program, pidfile, interfaces if interface_lock else (), _command(options.alert_command), options.json
    ).run()
    return 0


def _command(text: str) -> list[str]:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UsageError(f"--alert-command {text!r}: {str(error).lower()}") from None
    if words and shutil.which(words[0]) is None:
        raise UsageError(f"--alert-command {text!r}: there is no program {words[0]}, or it may not be executed")
    return words


@dataclasses.dataclass
class _Process:
    """One process of supervisord that is watched."""

    group: str
    name: str
    state: str = ""
    since: float = 0.0  # when that state was first seen
    alerted: bool = False
    code: int | None = None  # of the last alert
    holder: int | None = None  # pid in the last alert that had one
    held: bool = False  # another was seen to hold the guard since the last good start
    waiting: bool = False  # for the guard to be free
    next_start: float = 0.0
    pause: float = FIRST_PAUSE_SECONDS

    @property
    def full_name(self) -> str:
        return f"{self.group}:{self.name}"

    @property
    def shown(self) -> str:
        """As supervisorctl shows it."""
        return self.name if self.group == self.name else self.full_name

    def over(self) -> None:
        """Nothing is wrong any more."""
        self.alerted = self.held = self.waiting = False
        self.code = self.holder = None
        self.next_start, self.pause = 0.0, FIRST_PAUSE_SECONDS


class _Listener:
    def __init__(
        self, program: str, pidfile: str, interfaces: tuple[str, ...], command: list[str], as_json: bool
    ) -> None:
        try:
            # By its name as a text: in the repository a folder has this name too, and type checkers take that.
            childutils = importlib.import_module("supervisor.childutils")
        except ImportError:
            raise UnavailableError(
                f"supervisor-listener needs the package supervisor in the Python that runs it, {sys.executable}: "
                "install http-capture[supervisor] there"
            ) from None
        if "SUPERVISOR_ENABLED" not in os.environ:
            raise UsageError(
                "supervisor-listener is started by supervisord, as an [eventlistener:...] (see http-capture "
                "supervisor-listener --help)"
            )
        try:
            childutils.getRPCTransport(os.environ)
        except (KeyError, ValueError):
            raise ConfigurationError(
                "supervisor-listener has no way to ask supervisord: it needs the sections [unix_http_server] (or "
                "[inet_http_server]) and [rpcinterface:supervisor], or a SUPERVISOR_SERVER_URL of http:// or unix://"
            ) from None
        self._childutils = childutils
        self._program = program
        self._pidfile = pidfile
        self._interfaces = interfaces
        self._json = as_json
        self._host = socket.gethostname()
        self._processes: dict[str, _Process] = {}
        self._commands = _Commands(command, self._complain)
        self._said: dict[str, str] = {}  # what does not work now -> how that was said
        self._arrived = b""

    # The protocol.

    def run(self) -> None:
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
        socket.setdefaulttimeout(CALL_SECONDS)  # the transport to supervisord has no time limit of its own
        syslog.openlog("http-capture-listener", syslog.LOG_PID, syslog.LOG_DAEMON)
        protocol = self._childutils.listener
        try:
            while True:
                protocol.ready(sys.stdout)
                event = self._event()
                if event is None:
                    return
                self._attempt(self._handle, *event)
                protocol.ok(sys.stdout)
        finally:
            self._commands.end()

    def _event(self) -> tuple[str, str] | None:
        """The next event's name and payload, both "" where it was none. None: supervisord has closed the pipe.

        supervisord sends one, and no other before it has its answer: what is read beyond is nothing of its."""
        self._arrived = b""
        while True:
            busy = self._commands or any(process.waiting for process in self._processes.values())
            limit = EVENT_SECONDS if self._arrived else LOOK_EVERY_SECONDS if busy else None
            if not select.select([0], [], [], limit)[0]:
                if self._arrived:
                    break
                self._attempt(self._turn)
                continue
            octets = os.read(0, 1 << 16)
            if not octets:
                return None
            self._arrived += octets
            head, newline, rest = self._arrived.partition(b"\n")
            if newline:
                headers = _words(head.decode("utf-8", "replace"))
                length = headers.get("len", "")
                if not (length.isdecimal() and len(length) < 8):
                    break
                payload = rest.decode("utf-8", "replace")  # the length is in characters
                if len(payload) >= int(length):
                    return headers.get("eventname", ""), payload[: int(length)]
            if len(self._arrived) > EVENT_BYTES:
                break
        self._complain(f"what came on standard input is no event of supervisord: {self._arrived[:200]!r}")
        return "", ""

    def _attempt(self, action: Callable[..., None], *arguments: str) -> None:
        """A bug must not leave supervisord without its answer."""
        try:
            action(*arguments)
        except Exception as error:
            self._once("bug", f"a bug of http-capture, please report it: {type(error).__name__}: {error}")

    def _handle(self, event: str, payload: str) -> None:
        if event.startswith("PROCESS_STATE_"):
            fields = _words(payload.partition("\n")[0])
            group, name = fields.get("groupname", ""), fields.get("processname", "")
            if name and self._watched(group, name):
                process = self._processes.setdefault(f"{group}:{name}", _Process(group, name))
                self._observe(process, event.removeprefix("PROCESS_STATE_"), expected=fields.get("expected") == "1")
        elif event.startswith("TICK_"):
            self._compare()
        self._turn()

    def _turn(self) -> None:
        """What is due by the clock."""
        self._commands.turn()
        self._start_waiting()

    # The states.

    def _watched(self, group: str, name: str) -> bool:
        return self._program in (name, group, f"{group}:{name}", f"{group}:*")

    def _compare(self) -> None:
        """Takes over the states that supervisord has now."""
        everything = self._ask("getAllProcessInfo")
        if everything is None:
            return
        watched = {f"{info['group']}:{info['name']}": info for info in everything
                   if self._watched(info["group"], info["name"])}  # fmt: skip
        self._processes = {
            name: self._processes.get(name) or _Process(info["group"], info["name"]) for name, info in watched.items()
        }
        for name, process in self._processes.items():
            state = watched[name]["statename"]
            if state != process.state or state == "RUNNING":
                self._observe(process, state, expected=True)
        there = ", ".join(sorted({str(info["group"]) for info in everything}))
        self._once("program", "" if watched else f"supervisord has no program {self._program}; it has: {there}")

    def _observe(self, process: _Process, state: str, *, expected: bool) -> None:
        now = time.monotonic()
        if state != process.state:
            process.state, process.since = state, now
        if state in ("STOPPED", "STOPPING"):
            process.over()
        elif state == "RUNNING":
            process.waiting = process.held = False
            if now - process.since >= RUNNING_SECONDS:
                process.over()
        elif state in ("BACKOFF", "FATAL", "EXITED", "UNKNOWN"):
            self._trouble(process, expected=expected)

    def _trouble(self, process: _Process, *, expected: bool) -> None:
        """It does not run. Looks why, says so, and whether it waits for the guard."""
        info = self._ask("getProcessInfo", process.full_name) or {}
        code, error = self._exit(process, info)
        if process.state == "EXITED" and expected and code == 0:
            return
        status = self._look()
        holder = status.holder if status.running else None
        own = _is(holder, process)  # supervisord has started it again by now
        held = bool(status.running) and not own
        process.held = process.held or held
        if code == 75:
            process.waiting = process.state in ("FATAL", "EXITED")
        elif code == 73:  # held by another user, or the pidfile is unfit: what look() cannot judge
            process.waiting = process.state == "FATAL" and status.running is not False and not own
        else:  # where the exit code cannot be had, a guard that was held at the time of the refusals is the reason
            process.waiting = process.state == "FATAL" and code is None and not error and process.held
        pid = holder.pid if holder and held else None
        if process.alerted and code in (None, process.code) and pid in (None, process.holder):
            return
        process.alerted, process.code, process.holder = True, code, pid or process.holder
        refused = code in (None, 73, 75) and not error
        self._alert(process, code, status if held and refused else None, error or self._reason(code, status, held))

    def _exit(self, process: _Process, info: dict[str, Any]) -> tuple[int | None, str]:
        """The exit code of the last run (None: not known), and why there was no run ("": there was)."""
        if info.get("statename") == "EXITED":
            return info["exitstatus"], ""
        error = str(info.get("spawnerr", ""))
        if error and not error.startswith(("Exited too quickly", "Bad exit code")):
            return None, f"supervisord cannot start it: {one_line(error, 300)}"
        # supervisord keeps no exit code of a process that ended before startsecs or is started again: its log has it.
        runs = re.findall(
            rf"exited: {re.escape(process.name)} \((?:exit status (\d+)|terminated by)",
            self._ask("readLog", -LOG_BYTES, 0) or "",
        )
        return (int(runs[-1]) if runs[-1] else KILLED) if runs else None, ""

    def _reason(self, code: int | None, status: Status, held: bool) -> str:
        if held and code in (None, 73, 75):
            name = status.holder.describe() if status.holder else "somebody"
            return f"the guard is held by {name}; held: {one_line(', '.join(status.held))}"
        if code in (73, 75) and status.running is None:
            first = "the guard was held" if code == 75 else REASONS[code]
            return f"{first}; whether it is held now cannot be told: {one_line(status.reason)}"
        if code == 75:
            return (
                "the guard was held, and is free now; if this comes again, the --pidfile and --iface of this listener "
                "are not those of the program"
            )
        return (REASONS.get(code) if code is not None else None) or "why is not known, its log may say it"

    # The guard, and the start when it is free.

    def _look(self) -> Status:
        status = look(self._pidfile, self._interfaces)
        unknown = f"whether the guard is held cannot be told: {one_line(status.reason)}"
        self._once("guard", unknown if status.running is None else "")
        return status

    def _start_waiting(self) -> None:
        now = time.monotonic()
        due = [process for process in self._processes.values() if process.waiting and now >= process.next_start]
        if not due or self._look().running is not False:
            return
        for process in due:
            info = self._ask("getProcessInfo", process.full_name)
            if info is None:
                return
            if info["statename"] not in ("FATAL", "EXITED"):
                process.waiting = False
                continue
            process.next_start = now + process.pause
            process.pause = min(2 * process.pause, LONGEST_PAUSE_SECONDS)
            if self._ask("startProcess", process.full_name, False):
                process.waiting = False
                process.state = "STARTING"
                self._say(
                    syslog.LOG_NOTICE, f"{process.shown} on {self._host} is started: the guard is free",
                    event="started", program=process.shown,
                )  # fmt: skip
            return

    def _ask(self, method: str, *arguments: object) -> Any:
        """Calls supervisord. None: it could not be asked or did not do it, which is said once."""
        try:
            # Anew each time: a connection that supervisord has closed is not noticed before the next call fails.
            with self._childutils.getRPCInterface(os.environ) as server:
                answer = getattr(server.supervisor, method)(*arguments)
        except xmlrpc.client.Fault as error:
            reason = error.faultString
        except xmlrpc.client.ProtocolError as error:
            reason = f"{error.errcode} {error.errmsg}"
            if error.errcode == 401:
                reason += ": give this listener SUPERVISOR_USERNAME and SUPERVISOR_PASSWORD by environment="
        except (OSError, http.client.HTTPException, xml.parsers.expat.ExpatError, ValueError) as error:
            reason = f"{type(error).__name__} {error}"
        else:
            self._once(method, "")
            return answer
        self._once(
            method, f"supervisord did not answer {method} {one_line(' '.join(map(str, arguments)))}: {one_line(reason)}"
        )
        return None

    # What is said.

    def _alert(self, process: _Process, code: int | None, status: Status | None, reason: str) -> None:
        holder = status.holder if status else None
        if status:
            advice = _stop(holder)
            reason += "; it is started when the guard is free"
        elif code == 76:
            nics = " ".join(f"--iface {quote(name)}" for name in self._interfaces)
            advice = (
                f"http-capture verify --pidfile {quote(self._pidfile)} {nics}".rstrip()
                + f"; then supervisorctl start {quote(process.shown)}"
            )
        else:
            advice = f"supervisorctl tail {quote(process.shown)} stderr"
        record = self._say(
            syslog.LOG_CRIT,
            f"ALERT: {process.shown} on {self._host} is {process.state}"
            f"{f' (exit {code})' if code is not None and code >= 0 else ''}: {reason}; type: {advice}",
            event="alert", program=process.shown, state=process.state, exit=code, reason=reason,
            holder=holder.fields() if holder else None, held=status.held if status else [], type=advice,
        )  # fmt: skip
        self._commands.start(record)

    def _once(self, topic: str, text: str) -> None:
        """Says it when it begins or changes. "": it works."""
        if text and self._said.get(topic) != text:
            self._complain(text)
        self._said[topic] = text

    def _complain(self, text: str) -> None:
        self._say(syslog.LOG_WARNING, text, event="error")

    def _say(self, priority: int, text: str, *, event: str, **fields: object) -> str:
        """One line on standard error and in syslog. Returns it as JSON."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        text = one_line(text, 4000)
        record = json.dumps({"event": event, "time": now, "host": self._host, **fields, "text": text})
        with contextlib.suppress(OSError):  # supervisord, or the disk of its logs, is gone
            print(record if self._json else f"{now} {text}", file=sys.stderr, flush=True)
        syslog.syslog(priority, text)
        return record


class _Commands:
    """The alert commands that run."""

    def __init__(self, command: list[str], complain: Callable[[str], None]) -> None:
        self._command = command
        self._complain = complain
        self._running: list[tuple[subprocess.Popen[bytes], float]] = []

    def __bool__(self) -> bool:
        return bool(self._running)

    def start(self, record: str) -> None:
        if not self._command:
            return
        if len(self._running) >= COMMANDS_AT_ONCE:
            self._complain(f"alert command not run: {COMMANDS_AT_ONCE} are running")
            return
        with open(os.memfd_create("alert"), "w+") as file:  # not a pipe: nothing waits for a command that does not read
            file.write(record + "\n")
            file.flush()
            file.seek(0)
            try:
                process = subprocess.Popen(self._command, stdin=file, stdout=2, start_new_session=True)
            except OSError as error:
                self._complain(f"alert command {self._command[0]} cannot be run: {error.strerror}")
                return
        self._running.append((process, time.monotonic() + COMMAND_SECONDS))

    def turn(self) -> None:
        """Takes note of those that have ended, and ends those that take too long."""
        for process, deadline in list(self._running):
            code = process.poll()
            if code is None and time.monotonic() < deadline:
                continue
            if code is None:
                self._complain(f"alert command {self._command[0]} killed after {COMMAND_SECONDS:.0f} s")
                self._kill(process)
            elif code != 0:
                self._complain(f"alert command {self._command[0]} failed: exit {code}")
            self._running.remove((process, deadline))

    def end(self) -> None:
        """Gives those that run another moment."""
        limit = time.monotonic() + 2
        for process, _ in self._running:
            try:
                process.wait(max(0.0, limit - time.monotonic()))
            except subprocess.TimeoutExpired:
                self._kill(process)

    @staticmethod
    def _kill(process: subprocess.Popen[bytes]) -> None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _words(line: str) -> dict[str, str]:
    """`name:value name:value` as a table; what is written otherwise is left out."""
    pairs = (word.partition(":") for word in line.split())
    return {name: value for name, colon, value in pairs if colon}


def _is(holder: Holder | None, process: _Process) -> bool:
    """Whether it is that process, which this listener's own supervisord has started."""
    if holder is None or not holder.pid or holder.launcher is None:
        return False
    return holder.launcher.name == process.shown and parent(holder.pid) == os.getppid()


def _stop(holder: Holder | None) -> str:
    """The command that stops it."""
    if holder is None or not (holder.pid or holder.pidfile):
        return "stop the holder where it runs"
    stop = f"http-capture stop --pidfile {quote(holder.pidfile)}" if holder.pidfile else f"kill {holder.pid}"
    if holder.pid and holder.launcher and managed(holder.pid, holder.launcher):
        stop = holder.launcher.command("stop") or stop
    return f"kill -CONT {holder.pid} && {stop}" if holder.stopped else stop
