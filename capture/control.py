"""`http-capture status`, `stop` and `verify`: arguments and words. What is done is done in guard/.

Standard library only. The answer is on standard output, as text or, with --json, as one line of JSON; an error, and
what happens meanwhile, on standard error.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from typing import TYPE_CHECKING, Any

from ..config import loading
from .arguments import Parser, say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..guard.holder import Holder
    from ..guard.status import Status
    from ..guard.stop import Outcome

MAX_TIMEOUT_SECONDS = 86400.0

STATUS = """\
Tells whether a copy runs, which one, and how it was started. Looks only: no file is made, no lock is tried, nothing
waits. The pidfile's lock tells, and the NIC's: that of --iface, else of the NICs that the running copy has."""
STATUS_MORE = """\
exit codes (LSB): 0 running, 1 dead and its text is still in the pidfile, 3 not running, 4 unknown, 64 usage,
78 configuration

examples:
  http-capture status                                    the copy of /run/http-capture.pid
  http-capture status --iface eth1                       whoever has eth1, whatever its pidfile; no root needed
  http-capture status --config /etc/http-capture.toml --json"""

STOP = """\
Stops the copy that holds the pidfile, else the one that has the NIC (--iface), and waits until a new one could start.
The kernel names the process; the text in the pidfile alone never makes one a target. A copy that supervisord or systemd
looks after is not touched: the command that stops it is printed."""
STOP_MORE = """\
exit codes: 0 stopped, or nothing was running; 1 still runs (the text says why); 4 it cannot be named, or runs in
another pid namespace; 64 usage; 77 not permitted; 78 configuration

examples:
  http-capture stop                                      and wait up to 30 s for what is still to be delivered
  http-capture stop --iface eth1 --timeout 120
  http-capture stop --kill --timeout 10                  SIGKILL after 10 s: what was not yet delivered is lost"""

VERIFY = """\
Finds what should not be, without asking the guard: two copies on one NIC, a copy without a guard, a pidfile that was
removed or says something else, in every network namespace. A deployment should end with it. As root."""
VERIFY_MORE = """\
exit codes: 0 fine, 1 two copies or a damaged guard, 3 not running, 4 unknown (not root: others cannot be seen),
64 usage, 78 configuration

examples:
  http-capture verify --iface eth1                       exactly one copy on eth1, and its guard is whole
  http-capture verify --expect-supervised                and it is under supervisord or systemd"""


def status(arguments: list[str]) -> int:
    """`http-capture status`. Returns the exit code."""
    from ..guard import status as statuses

    options = _parser("status", STATUS, STATUS_MORE).parse_args(arguments)
    pidfile, interfaces = _guard(options)
    seen = statuses.look(pidfile, interfaces)
    if options.json:
        _print_json({"command": "status", "exit": seen.code, **_fields(seen)})
    else:
        say(_status_text(seen))
    return seen.code


def stop(arguments: list[str]) -> int:
    """`http-capture stop`. Returns the exit code."""
    from ..guard import stop as stops

    parser = _parser("stop", STOP, STOP_MORE)
    parser.add_argument("--timeout", type=_seconds, default=30.0, metavar="SECONDS", help="how long to wait (30)")
    parser.add_argument("--kill", action="store_true", help="SIGKILL after that time, and a stopped one is continued")
    options = parser.parse_args(arguments)
    pidfile, interfaces = _guard(options)

    def told(holder: Holder) -> None:
        print(f"http-capture: asked pid {holder.pid} to stop, waiting up to {options.timeout:g} s", file=sys.stderr)

    outcome = stops.stop(pidfile, interfaces, timeout_seconds=options.timeout, kill=options.kill, told=told)
    text = _stop_text(outcome)
    if options.json:
        _print_json(
            {
                "command": "stop", "exit": outcome.code, "what": outcome.what, "text": text,
                "pid": outcome.holder.pid if outcome.holder else None, "seconds": round(outcome.seconds, 3),
                "next": outcome.next.fields() if outcome.next else None, "status": _fields(outcome.status),
            }
        )  # fmt: skip
    else:
        say(f"http-capture: {text}")
    return outcome.code


def verify(arguments: list[str]) -> int:
    """`http-capture verify`. Returns the exit code."""
    from ..guard import verify as verifies

    parser = _parser("verify", VERIFY, VERIFY_MORE)
    parser.add_argument("--expect-supervised", action="store_true", help="a copy that was started by hand is a fault")
    options = parser.parse_args(arguments)
    pidfile, interfaces = _guard(options)
    report = verifies.verify(pidfile, interfaces, expect_supervised=options.expect_supervised)
    if options.json:
        findings = [{"kind": one.kind, "text": one.text, "pids": one.pids} for one in report.findings]
        _print_json(
            {
                "command": "verify", "exit": report.code, "verdict": report.verdict, "copies": report.copies,
                "findings": findings,
            }
        )  # fmt: skip
    else:
        lines = [f"{one.kind}: {one.text}" for one in report.findings]
        say("\n".join([*lines, f"http-capture: {report.verdict}"]))
    return report.code


def _parser(verb: str, description: str, epilog: str) -> argparse.ArgumentParser:
    parser = Parser(f"http-capture {verb}", description, epilog)
    parser.add_argument("--pidfile", metavar="FILE", help="(/run/http-capture.pid)")
    parser.add_argument("--iface", action="append", metavar="NIC", help="network card; may be given again")
    parser.add_argument("--config", metavar="FILE", default="", help="settings file (TOML) that the copy is run with")
    parser.add_argument("--json", action="store_true", help="one line of JSON instead of text")
    return parser


def _guard(options: argparse.Namespace) -> tuple[str, Sequence[str]]:
    """The pidfile and the NICs, as a run with the same settings has them."""
    flags = {
        "guard": {"pidfile": options.pidfile},
        "source": {"iface": tuple(options.iface) if options.iface else None},
    }
    pidfile, interfaces, _ = loading.guard_part(*loading.layers(options.config, os.environ, flags))
    return pidfile, interfaces


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= MAX_TIMEOUT_SECONDS:
        raise argparse.ArgumentTypeError(f"must be 0 to {MAX_TIMEOUT_SECONDS:g} seconds: {text!r}")
    return seconds


def _status_text(seen: Status) -> str:
    from ..guard.pidfile import one_line

    path = one_line(seen.path)
    if seen.running is None:
        lines = [f"http-capture: unknown: {seen.reason}"]
    elif seen.holder is None:
        text = f"dead, {path} still has the text of {_dead(seen)}" if seen.stale else f"not running, {path} is free"
        lines = [f"http-capture: {text}"]
    else:
        lines = [
            f"http-capture: running{' on ' + one_line(seen.holder.interface) if seen.holder.interface else ''}",
            f"  holder: {seen.holder.describe()}",
            f"  held:   {one_line(', '.join(seen.held))}",
        ]
        if seen.instance:
            lines.append(f"  instance: {seen.instance}")
        if workers := _workers(seen):
            lines.append(f"  workers: {len(workers)} (pid {', '.join(map(str, workers))})")
    lines += [f"  problem: {line}" for line in seen.conflicts]
    lines += [f"  note: {line}" for line in seen.notes]
    return "\n".join(lines)


def _workers(seen: Status) -> list[int]:
    from ..guard import status as statuses

    return statuses.workers(seen.holder.pid) if seen.holder is not None and seen.holder.pid else []


def _dead(seen: Status) -> str:
    pid = seen.identity.get("pid")
    return f"pid {pid}, which is gone; the next start writes over it" if pid else "what is no pidfile of this program"


def _stop_text(outcome: Outcome) -> str:
    from ..guard.pidfile import one_line, quote

    path, holder = one_line(outcome.status.path), outcome.holder
    after = f" after {outcome.seconds:.1f} s"
    now = f"; pid {outcome.next.pid or 'unknown'} has started since" if outcome.next else ""
    hints = "".join(f"; {line}" for line in outcome.status.notes)
    if holder is None:
        if outcome.what == "nothing":
            return f"nothing to stop: {path} is free{hints}"
        return f"not stopped, it cannot be told what runs: {outcome.status.reason}"
    about = holder.describe()
    command = holder.launcher.command("stop") if holder.launcher else None
    match outcome.what:
        case "stopped":
            return f"pid {holder.pid} has stopped{after}{now}"
        case "killed":
            return f"pid {holder.pid} had to be killed{after}, what it had not delivered is lost{now}"
        case "running":
            if outcome.next is not None and outcome.next.pid != holder.pid:
                return f"pid {holder.pid} has ended, but its lock is still held{after}: {outcome.next.describe()}"
            return f"still running{after}, give it more time with --timeout, or end it with --kill: {about}"
        case "supervised":
            manager = holder.launcher.manager if holder.launcher else ""
            how = f"stop it there: {command}" if command else "stop it there; its name there is not known"
            return f"not stopped, {manager} looks after it: {how} ({about})"
        case "frozen":
            stop = f"kill -CONT {holder.pid} && http-capture stop --pidfile {quote(outcome.status.path)}"
            return f"not stopped, it is stopped by a signal or a debugger: {one_line(stop)}, or --kill ({about})"
        case "foreign":
            return f"not stopped, another program has the lock of {path}; if it may end: kill {holder.pid} ({about})"
        case "denied":
            return f"not permitted for uid {os.geteuid()}: stop it as root or as its user ({about})"
        case "changing":
            return f"not stopped, another process holds {path} each time: try again"
        case _:
            return f"not stopped, its process cannot be named from here: stop it where it runs ({about})"


def _fields(seen: Status) -> dict[str, Any]:
    return {
        "running": seen.running,
        "stale": seen.stale,
        "pidfile": seen.path,
        "interfaces": seen.interfaces,
        "holder": seen.holder.fields() if seen.holder else None,
        "instance": seen.instance or None,
        "workers": _workers(seen),
        "held": seen.held,
        "problems": seen.conflicts,
        "notes": seen.notes,
        "reason": seen.reason or None,
    }


def _print_json(value: dict[str, Any]) -> None:
    import json

    say(json.dumps(value))
