"""One run of the program, after the guard is held: log, sink, source, privileges, loop, ledger, exit code.

    open the sink -> open the source -> check the guard -> give privileges up -> ready
      -> the loop: read, check the guard when that is due, tell the watchdog
      -> close the source -> record what is unfinished -> flush the sink -> ledger; the caller releases the guard

Nothing is read from a NIC before the guard was checked with that NIC open. The later checks, and what the watchdog is
told, are part of the loop: one that stalls looks like it. However a run ends, the source is closed before the guard is
released.
"""

import errno
import gc
import importlib
import io
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING

from ..config.settings import LogSettings, Settings
from ..guard import SUSPECT_SECONDS, Guard, GuardError
from . import VERSION
from .errors import HttpCaptureError, NotPermittedError, UnavailableError, UndeliveredError
from .notify import Notify
from .pipeline import Pipeline
from .process import become, end_with, find_user, no_new_privileges
from .sink import SharedSink, Sink, open_sink, share_sink
from .source import Source, open_source

if TYPE_CHECKING:
    from .workers import Fanout

log = logging.getLogger("http_capture")

HOT = (
    "source.block", "source.files", "source.ring", "tunnel", "decode", "mirror", "ended", "reassembly", "connection",
    "http.message", "http.parser", "http.exchange", "encode", "sink.null", "frame_loop",
)  # fmt: skip
LATE = ("brotli", "zstandard")  # imported for the first body that needs them: another user may not be able to
PROGRESS_AFTER_SECONDS = 1.0
PROGRESS_EVERY_SECONDS = 0.5


def uncompiled() -> list[str]:
    """The hot modules that run as plain Python."""
    package = __package__ or ""
    return [
        name for name in HOT if not str(importlib.import_module(f"{package}.{name}").__file__).endswith((".so", ".pyd"))
    ]


def describe_version() -> str:
    plain = uncompiled()
    built = "compiled" if not plain else f"uncompiled, slower: {', '.join(plain)}"
    return f"http-capture {VERSION} (Python {sys.version.split()[0]}, hot modules {built})"


class _Signals:
    """SIGTERM and SIGINT ask for a clean stop, the second one for an end without flush; SIGHUP opens the log anew."""

    def __init__(self) -> None:
        self.stopped = False
        self.on_stop: Callable[[], None] = lambda: None
        self._handler: _LogFile | None = None

    def install(self, handler: logging.Handler) -> None:
        if isinstance(handler, _LogFile):
            self._handler = handler
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, self._stop)
        signal.signal(signal.SIGHUP, self._reopen)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self.stopped:
            raise KeyboardInterrupt
        self.stopped = True
        self.on_stop()

    def _reopen(self, number: int, frame: FrameType | None) -> None:
        if self._handler is not None:
            self._handler.anew = True


class _LogFile(logging.FileHandler):
    """A log file that is opened anew for the next line once `anew` is set. Where that fails, the old one is kept.

    `follows`: also once another file has its name, as in a worker, whose parent opens it anew."""

    anew = False
    follows = False

    def _open(self) -> io.TextIOWrapper:
        """Never waits: a FIFO that nobody reads cannot be opened."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
        return open(os.open(self.baseFilename, flags, 0o666), "a", encoding=self.encoding, errors="backslashreplace")

    def handleError(self, record: logging.LogRecord) -> None:
        """What cannot be written there is said on standard error."""
        error = sys.exc_info()[1]
        reason = error.strerror if isinstance(error, OSError) else error
        print(f"http-capture: {record.getMessage()} ({self.baseFilename}: {reason})", file=sys.stderr)

    def emit(self, record: logging.LogRecord) -> None:
        if self.follows and self._has_moved():
            self.anew = True
        if self.anew:
            self.anew = False
            old = self.stream
            try:
                self.stream = self._open()
                if old is not None:
                    old.close()
            except OSError as error:
                self.follows = False
                log.error(
                    "%s cannot be opened anew (%s): the log goes on in the old file", self.baseFilename, error.strerror
                )
        super().emit(record)

    def _has_moved(self) -> bool:
        try:
            return not os.path.samestat(os.stat(self.baseFilename), os.fstat(self.stream.fileno()))  # type: ignore[union-attr]
        except (OSError, ValueError, AttributeError):
            return False


def _open_log(settings: LogSettings) -> logging.Handler:
    handler: logging.Handler
    if settings.file:
        try:
            handler = _LogFile(settings.file, encoding="utf-8")
        except PermissionError as error:
            raise NotPermittedError(
                f"log file {settings.file} cannot be opened ({error.strerror}): make its folder writable"
            ) from None
        except OSError as error:
            what = "nothing reads this FIFO" if error.errno == errno.ENXIO else error.strerror
            raise UndeliveredError(f"log file {settings.file} cannot be opened: {what}") from None
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("http-capture: %(message)s"))
    log.handlers[:] = [handler]
    log.propagate = False
    log.setLevel(settings.level.upper())
    return handler


def run(
    settings: Settings, *, instance: str, guard: Guard | None, parent: int | None, quiet: bool, as_json: bool
) -> int:
    """Runs until the end of the input or a signal. Returns the exit code; raises what could not be opened, and
    GuardLost where the guard went meanwhile.

    `guard`: of a live run, held; it is the caller's to release. `parent`: the process to end with, see end_with()."""
    user = find_user(settings.process.user) if settings.process.user else None
    if user is not None:
        no_new_privileges()
    notify = Notify(os.environ)
    signals = _Signals()
    signals.install(_open_log(settings.log))
    live = not settings.source.read
    several = settings.workers.count > 1
    source = open_source(settings.source) if not live else None  # a wrong file name should not wait for Kafka
    sink: Sink | SharedSink
    if several:
        sink = share_sink(settings.sink, settings.kafka, live=live, processes=settings.workers.count)
    else:
        sink = open_sink(settings.sink, settings.kafka, live=live, stopped=lambda: signals.stopped)
    fanout: Fanout | None = None
    try:
        source = source or open_source(settings.source)
        pipeline: Pipeline | Fanout
        if isinstance(sink, SharedSink):
            from . import workers

            if user is not None:
                _import_late()
            pipeline = fanout = workers.Fanout(settings, source, sink, version=VERSION, instance=instance, user=user)
            fanout.start(lambda: signals.stopped)
        else:
            pipeline = Pipeline(
                settings, source, sink, hostname=os.uname().nodename, version=VERSION, instance=instance
            )  # fmt: skip
        plain = uncompiled()
        if guard is not None:
            _settle(guard)
        if user is not None:
            _import_late()
            become(user)
            if parent is not None:
                end_with(parent)
            if guard is not None:
                _check(guard)  # what this user may not see of it is told now, and not later
    except BaseException:
        if source is not None:
            source.close()
        (fanout or sink).close()
        raise
    if plain:
        log.info("these modules are not compiled, so this is slow: %s", ", ".join(plain))
    if guard is not None and not guard.interface_lock:
        log.warning("the NIC is not locked (--no-interface-lock): a second copy with another --pidfile would start")
    as_user = f" as user {user}" if user is not None else ""
    what = f"recording {','.join(settings.source.iface)}{as_user}" if live else f"replaying{as_user}"
    if live:
        log.info("%s, instance %s", what, instance)
    notify.say(f"READY=1\nSTATUS={what}")
    if not live:
        signals.on_stop = lambda: _wait_no_longer_than(settings.kafka.flush_timeout_seconds, pipeline)
        if signals.stopped:
            signals.on_stop()
    progress = _progress(pipeline, source) if not live and not quiet else lambda: None
    if guard is not None and hasattr(source, "returned"):
        source.returned = lambda: _settle(guard)

    def each_block() -> None:
        now_seconds = time.monotonic()
        if guard is not None and guard.due(now_seconds):
            _check(guard)
        if pipeline.healthy:
            notify.alive(now_seconds)
        progress()

    try:
        failure = _loop(pipeline, signals, each_block)
        notify.say("STOPPING=1\nSTATUS=stopping: delivering what was recorded")
        return _close(pipeline, failure, guard, quiet=quiet, as_json=as_json)
    except KeyboardInterrupt:
        source.close()
        log.error("ended by a second signal: %s records or more were not delivered", f"{pipeline.not_delivered():,}")
        raise
    except BaseException:
        source.close()
        raise
    finally:
        if fanout is not None:
            fanout.close()


def _import_late() -> None:
    for name in LATE:
        importlib.import_module(name)


def _check(guard: Guard) -> int:
    """Checks the guard, and logs what it finds. Returns how many lines that is."""
    lines = guard.check()
    for line in lines:
        log.error("%s", line)
    return len(lines)


def _settle(guard: Guard) -> None:
    """Checks the guard until nothing is suspect any more: the NIC that was just opened is not read before that.

    Raises GuardLost; UnavailableError where something cannot be mended, as no start would begin like that."""
    repairs = guard.repairs
    lines = _check(guard)
    while guard.suspect:
        time.sleep(SUSPECT_SECONDS)
        lines += _check(guard)
    if lines > guard.repairs - repairs:  # the rest are faults
        raise UnavailableError("the guard does not hold for the NIC that was opened, see above: start again")


def _loop(
    pipeline: "Pipeline | Fanout", signals: _Signals, each_block: Callable[[], None]
) -> HttpCaptureError | GuardError | None:
    """The run itself. Returns the error that ended it, if one did."""
    gc.freeze()  # what is there now stays; the caller has disabled the rest, which costs more as connections grow
    try:
        pipeline.run(lambda: signals.stopped, each_block)
    except (HttpCaptureError, GuardError) as error:
        return error
    finally:
        gc.enable()
        signal.setitimer(signal.ITIMER_REAL, 0)
        if signals.stopped:
            pipeline.do_not_wait()
    return None


def _wait_no_longer_than(seconds: float, pipeline: "Pipeline | Fanout") -> None:
    """A slow reader of the records of a replay may hold up the loop, which then cannot see that it is to stop."""
    signal.signal(signal.SIGALRM, lambda number, frame: pipeline.do_not_wait())
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))


def _close(
    pipeline: "Pipeline | Fanout",
    failure: HttpCaptureError | GuardError | None,
    guard: Guard | None,
    *,
    quiet: bool,
    as_json: bool,
) -> int:
    """Finishes, prints warnings and the ledger. The exit code is that of the worst that happened."""
    undelivered = 0
    try:
        undelivered = pipeline.finish()
    except HttpCaptureError as error:
        failure = failure or error
    ledger = pipeline.ledger()
    if guard is not None:
        ledger.sections["guard"] = {"checks": guard.checks, "repairs": guard.repairs, "faults": guard.faults}
    stats = pipeline.source.stats()
    code = 0
    for line in getattr(pipeline.source, "warnings", ()):
        log.warning("%s", line)
    if stats.damaged:
        code = 65
    reader_gone = failure is not None and failure.exit_code == 0
    if undelivered and not reader_gone:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in pipeline.undelivered().items())
        code = UndeliveredError.exit_code
        log.error("%s records were not delivered: %s", f"{undelivered:,}", reasons)
    if failure is not None and not reader_gone:
        code = failure.exit_code
        log.error("%s", failure)
    if ledger.unknown and not code and not reader_gone:
        code = 70
        log.error("records may be missing, a worker died: %s", "; ".join(ledger.unknown))
    if not ledger.balanced:
        code = 70
        log.error("the ledger does not balance, please report it: %s", "; ".join(ledger.imbalances))
    if as_json:
        print(json.dumps({"event": "ledger", **ledger.as_json()}), file=sys.stderr)
    elif (code or not quiet) and not reader_gone:
        print("ledger\n" + ledger.as_text(), file=sys.stderr)
    return code


def _progress(pipeline: "Pipeline | Fanout", source: Source) -> Callable[[], None]:
    """Shows on a terminal how far a long replay is."""
    if not sys.stderr.isatty():
        return lambda: None
    begin = last = time.monotonic()

    def show() -> None:
        nonlocal last
        now = time.monotonic()
        if now - begin < PROGRESS_AFTER_SECONDS or now - last < PROGRESS_EVERY_SECONDS:
            return
        last = now
        total = getattr(source, "bytes_total", None)
        part = f"{100 * getattr(source, 'bytes_read', 0) / total:5.1f} %" if total else ""
        frames, exchanges = pipeline.progress()
        rate = frames / (now - begin)
        print(
            f"\r{part} {frames:,} frames, {exchanges:,} exchanges, {rate:,.0f} frames/s\033[K",
            end="", file=sys.stderr, flush=True,
        )  # fmt: skip

    return show
