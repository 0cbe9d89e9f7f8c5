"""The command line: arguments -> settings -> guard -> run. Standard library only until the guard is held."""

from __future__ import annotations

import argparse
import io
import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from .arguments import Parser, say
from .errors import HttpCaptureError, UndeliveredError, UsageError

if TYPE_CHECKING:
    from ..config.loading import Flags

# Verb -> its function(arguments) -> exit code; its module is imported when it is asked for.
VERBS = {
    "run": "", "status": "control:status", "stop": "control:stop", "verify": "control:verify",
    "supervisor-listener": "supervisor_listener:main", "demo": "demo:main", "schema": "",
}  # fmt: skip

USAGE = """\
http-capture --iface NIC --pidfile FILE [options]     record a mirrored network card
       http-capture --read FILE... [options]                 replay capture files
       http-capture COMMAND [options]                        COMMAND --help says more"""

EPILOG = """\
commands:
  run                  what is done without a command
  status               whether a copy runs, and who holds the guard (0 running, 1 dead, its text is left, 3 not running,
                       4 unknown)
  stop                 ends the running copy cleanly and waits for it
  verify               looks for second copies and a damaged guard, whatever the guard itself says
  supervisor-listener  under supervisord: an alert that names the holder when a start is refused, a start once it ended
  demo                 shows all of it working, on this host
  schema               prints the record's JSON Schema

examples:
  http-capture --read trace.pcapng                            records as JSON lines on standard output
  http-capture --read day/ --sink file:day.jsonl              a folder of captures, in the order of time
  tcpdump -i eth1 -w - | http-capture --read -                while it is being written
  http-capture --iface eth1 --pidfile /run/http-capture.pid --brokers kafka1:9092,kafka2:9092
  http-capture --iface eth1 --filter 'tcp port 80' --bodies none --sink null --json

Every setting has a name in the TOML file (see http-capture.toml in the package), and can be given as
--set TABLE.KEY=VALUE or as HTTP_CAPTURE_TABLE_KEY: defaults < --config < environment < command line.

A NIC is guarded: a second copy on it, or with the same pidfile, is refused before it opens anything.
exit codes: 0 done or stopped as asked, 64 usage, 65 damaged capture file, 66 no such input, 69 no such NIC, broker or
topic, 70 the ledger does not balance or a worker died (a bug), 73 no guard, 74 records not delivered, 75 already
running, 76 guard lost or producer fenced, 77 not permitted, 78 configuration, 130 a second signal: no flush"""


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        "http-capture",
        "Takes frames apart, reassembles TCP, rebuilds HTTP exchanges, sends one record each to Kafka.",
        EPILOG,
        usage=USAGE,
    )
    source = parser.add_argument_group("where frames come from")
    source.add_argument("--iface", action="append", metavar="NIC", help="network card to read")
    source.add_argument(
        "--read", action="extend", nargs="+", metavar="FILE", help="pcap or pcapng files, .gz, .zst, folders, - (stdin)"
    )
    source.add_argument("--filter", metavar="EXPR", help="pcap-filter(7) expression, such as 'tcp port 80'")
    source.add_argument("--source", choices=("af_packet", "scapy"), help="how to read the NIC (af_packet)")
    guard = parser.add_argument_group("guard (with --iface)")
    guard.add_argument("--pidfile", metavar="FILE", help="locked before the NIC is opened (/run/http-capture.pid)")
    guard.add_argument("--no-interface-lock", action="store_true", help="lock the pidfile only: not recommended")
    process = parser.add_argument_group("process")
    process.add_argument(
        "--die-with-parent", action="store_true", help="stop when the parent ends, also a supervisord that is killed"
    )
    process.add_argument("--user", metavar="NAME", help="become this user (NAME or UID:GID) once the NIC is open")
    process.add_argument(
        "--workers", metavar="N", help="spread the connections over N more processes, 2 to 64 (1: over none)"
    )
    sink = parser.add_argument_group("where records go")
    sink.add_argument("--sink", metavar="TO", help="kafka, stdout, null, file:PATH (kafka with --brokers, else stdout)")
    sink.add_argument("--brokers", metavar="HOST:PORT,...", help="Kafka bootstrap servers")
    sink.add_argument("--topic", metavar="NAME", help="Kafka topic (http-capture)")
    sink.add_argument("--kafka", action="append", metavar="KEY=VALUE", help="any librdkafka setting")
    record = parser.add_argument_group("what is recorded")
    record.add_argument("--bodies", choices=("none", "text", "all"), help="which bodies are kept, up to 64 KiB (text)")
    record.add_argument("--key", choices=("connection", "client", "host", "id"), help="Kafka key (connection)")
    record.add_argument("--no-redact", action="store_true", help="keep credentials, cookies and secret query values")
    other = parser.add_argument_group("other")
    other.add_argument("--config", metavar="FILE", default="", help="settings file (TOML)")
    other.add_argument(
        "--set", action="append", metavar="T.K=V", help="any setting, such as tcp.max_connections=100000"
    )
    other.add_argument("--json", action="store_true", help="the ledger as one JSON line at the end of standard error")
    other.add_argument("--quiet", action="store_true", help="no progress and no ledger, unless something is wrong")
    other.add_argument("--log-level", choices=("debug", "info", "warning", "error"), help="(info)")
    other.add_argument("--log-file", metavar="FILE", help="log there; SIGHUP opens it anew")
    other.add_argument("--version", action="store_true", help="print the version and which modules are compiled")
    return parser


def _pair(text: str, option: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UsageError(f"{option} {text!r}: must be KEY=VALUE")
    return key, value


def flags(options: argparse.Namespace) -> Flags:
    """The settings that were given on the command line, by table."""
    from ..config.loading import sink_fault

    if options.sink is not None and (fault := sink_fault(options.sink)):
        raise UsageError(f"--sink {options.sink!r} {fault}")
    given: dict[str, dict[str, Any]] = {
        "guard": {
            "pidfile": options.pidfile,
            "interface_lock": False if options.no_interface_lock else None,
            "die_with_parent": True if options.die_with_parent else None,
        },
        "process": {"user": options.user},
        "source": {
            "iface": tuple(options.iface) if options.iface else None,
            "read": tuple(options.read) if options.read else None,
            "filter": options.filter,
            "kind": options.source,
        },
        "workers": {"count": options.workers},
        "sink": {"to": options.sink},
        "kafka": {
            "brokers": options.brokers,
            "topic": options.topic,
            "librdkafka": dict(_pair(text, "--kafka") for text in options.kafka) if options.kafka else None,
        },
        "body": {"keep": options.bodies},
        "record": {"key": options.key, "redact": False if options.no_redact else None},
        "log": {"level": options.log_level, "file": options.log_file},
    }
    for text in options.set or ():
        name, equals, value = text.partition("=")
        table, _, key = name.partition(".")
        if not (table and key and equals):
            raise UsageError(f"--set {text!r}: must be TABLE.KEY=VALUE")
        keys = given.setdefault(table, {})
        if name.startswith("kafka.librdkafka.") and (part := key.partition(".")[2]):
            before = keys.get("librdkafka")
            keys["librdkafka"] = {**(before if isinstance(before, dict) else {}), part: value}
        else:
            keys[key] = value
    return given


class _Stderr(io.FileIO):
    """Standard error, which can be gone or full without an error: what a run comes to is in its exit code."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or len(data)
        except OSError:
            return len(data)


def main(arguments: list[str] | None = None) -> int:
    """Runs the program. Returns the exit code; every error that an operator can cause is one line on standard error."""
    _standard_streams()
    try:
        code = _main(sys.argv[1:] if arguments is None else arguments)
    except SystemExit as end:  # of --help
        code = int(end.code or 0)
    return code if say() else code or UndeliveredError.exit_code


def _standard_streams() -> None:
    """One that is closed is /dev/null: nothing that is opened later gets its number, and what is meant for standard
    error does not end among the records on standard output."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stderr is sys.__stderr__:
        file = io.BufferedWriter(_Stderr(2, "w", closefd=False))
        sys.stderr = io.TextIOWrapper(file, errors="backslashreplace", line_buffering=True)


def _main(arguments: list[str]) -> int:
    try:
        if arguments and not arguments[0].startswith("-"):
            if arguments[0] not in VERBS:
                raise UsageError(f"no such command: {arguments[0]!r}; it is one of {', '.join(VERBS)} (see --help)")
            verb, arguments = arguments[0], arguments[1:]
        else:
            verb = "run"
        if verb == "schema":
            Parser("http-capture schema", "Prints the record's JSON Schema.", "").parse_args(arguments)
            from .record import json_schema_text

            return 0 if say(json_schema_text()) else UndeliveredError.exit_code
        module, _, name = VERBS[verb].partition(":")
        if module:
            return int(getattr(import_module(f".{module}", __package__), name)(arguments))
        return _run(_parser().parse_args(arguments))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except HttpCaptureError as error:
        if str(error):
            print(f"http-capture: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


def _run(options: argparse.Namespace) -> int:
    parent = os.getppid()  # before it can have ended unnoticed
    from ..config import loading
    from ..guard import GuardError, acquire

    if options.version:
        from .run import describe_version

        return 0 if say(describe_version()) else UndeliveredError.exit_code
    values, origins = loading.layers(options.config, os.environ, flags(options))
    pidfile, interfaces, interface_lock = loading.guard_part(values, origins)
    if not loading.reads(values, origins) and not interfaces:
        raise UsageError(
            "nothing to read: name a network card (--iface eth1) or capture files (--read FILE); see --help"
        )
    if len(interfaces) > 1:
        raise UsageError(f"{len(interfaces)} NICs given ({', '.join(interfaces)}): run one process for each")
    dies_with_parent = loading.dies_with_parent(values, origins)
    if dies_with_parent:
        from .process import end_with

        end_with(parent)
    instance = os.urandom(16).hex()
    guard = None
    if interfaces:
        try:
            guard = acquire(
                pidfile, interfaces, instance=instance, command=["http-capture", *sys.argv[1:]],
                interface_lock=interface_lock,
            )  # fmt: skip
        except GuardError as error:
            return _refuse(error)
    import gc

    gc.disable()  # nothing in the pipeline leaves circles behind; at the imports alone it saves a tenth of the time
    try:
        from . import run

        return run.run(
            loading.convert(values, origins), instance=instance, guard=guard,
            parent=parent if dies_with_parent else None, quiet=options.quiet, as_json=options.json,
        )  # fmt: skip
    except GuardError as error:
        print(f"http-capture: {error}", file=sys.stderr)
        return error.exit_code
    finally:
        if guard is not None:
            guard.release()


def _refuse(error: Any) -> int:
    """Says why the guard was not had: on standard error, in syslog, and as a JSON line where nobody reads along."""
    import syslog

    from ..guard import refusal, refusal_json

    text = refusal(error)
    print(text, file=sys.stderr)
    if not sys.stderr.isatty():
        print(refusal_json(error), file=sys.stderr)
    syslog.openlog("http-capture", 0, syslog.LOG_DAEMON)
    syslog.syslog(syslog.LOG_ERR, text)
    return int(error.exit_code)
