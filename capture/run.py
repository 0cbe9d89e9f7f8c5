"""One run of the program, after the guard is held: log, sink, source, signals, loop, ledger, exit code."""

import gc
import importlib
import json
import logging
import signal
import socket
import sys
import time
from collections.abc import Callable
from types import FrameType

from ..config.settings import LogSettings, Settings
from . import VERSION
from .errors import HttpCaptureError, NotPermittedError, UndeliveredError
from .pipeline import Pipeline
from .sink import open_sink
from .source import Source, open_source

log = logging.getLogger("http_capture")

HOT = (
    "source.block", "source.files", "source.ring", "seq", "decode", "reassembly", "connection", "http.message",
    "http.parser", "http.exchange", "encode", "frame_loop",
)  # fmt: skip
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
        self._handler: logging.FileHandler | None = None

    def install(self, handler: logging.Handler) -> None:
        if isinstance(handler, logging.FileHandler):
            self._handler = handler
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, self._stop)
        signal.signal(signal.SIGHUP, self._reopen)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self.stopped:
            raise KeyboardInterrupt
        self.stopped = True

    def _reopen(self, number: int, frame: FrameType | None) -> None:
        if self._handler is not None:
            self._handler.close()  # the next line opens it


def _open_log(settings: LogSettings) -> logging.Handler:
    handler: logging.Handler
    if settings.file:
        try:
            handler = logging.FileHandler(settings.file, encoding="utf-8")
        except OSError as error:
            raise NotPermittedError(
                f"log file {settings.file} cannot be opened ({error.strerror}): make its folder writable"
            ) from None
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("http-capture: %(message)s"))
    log.handlers[:] = [handler]
    log.propagate = False
    log.setLevel(settings.level.upper())
    return handler


def run(settings: Settings, *, instance: str, quiet: bool, as_json: bool) -> int:
    """Runs until the end of the input or a signal. Returns the exit code; raises what could not be opened."""
    signals = _Signals()
    signals.install(_open_log(settings.log))
    live = not settings.source.read
    source = open_source(settings.source) if not live else None  # a wrong file name should not wait for Kafka
    sink = open_sink(settings.sink, settings.kafka, live=live)
    try:
        source = source or open_source(settings.source)
        pipeline = Pipeline(settings, source, sink, hostname=socket.gethostname(), version=VERSION, instance=instance)
    except BaseException:
        sink.close()
        raise
    plain = uncompiled()
    if plain:
        log.info("these modules are not compiled, so this is slow: %s", ", ".join(plain))
    if live:
        log.info("recording %s, instance %s", ",".join(settings.source.iface), instance)
    failure = _loop(pipeline, signals, _progress(pipeline, source) if not live and not quiet else lambda: None)
    return _close(pipeline, failure, quiet=quiet, as_json=as_json)


def _loop(pipeline: Pipeline, signals: _Signals, each_block: Callable[[], None]) -> HttpCaptureError | None:
    """The run itself. Returns the error that ended it, if one did."""
    gc.collect()
    gc.freeze()
    gc.disable()  # nothing in the pipeline leaves circles behind, and looking for them costs more as connections grow
    try:
        pipeline.run(lambda: signals.stopped, each_block)
    except HttpCaptureError as error:
        return error
    finally:
        gc.enable()
        if signals.stopped and hasattr(pipeline.sink, "waits"):
            pipeline.sink.waits = False
    return None


def _close(pipeline: Pipeline, failure: HttpCaptureError | None, *, quiet: bool, as_json: bool) -> int:
    """Finishes, prints warnings and the ledger. The exit code is that of the worst that happened."""
    undelivered = 0
    try:
        undelivered = pipeline.finish()
    except HttpCaptureError as error:
        failure = failure or error
    ledger = pipeline.ledger()
    stats = pipeline.source.stats()
    code = 0
    for line in getattr(pipeline.source, "warnings", ()):
        log.warning("%s", line)
    if stats.damaged:
        code = 65
    reader_gone = failure is not None and failure.exit_code == 0
    if undelivered and not reader_gone:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in pipeline.sink.stats().undelivered.items())
        code = UndeliveredError.exit_code
        log.error("%s records were not delivered: %s", f"{undelivered:,}", reasons)
    if failure is not None and not reader_gone:
        code = failure.exit_code
        log.error("%s", failure)
    if not ledger.balanced:
        code = 70
        log.error("the ledger does not balance, please report it: %s", "; ".join(ledger.imbalances))
    if as_json:
        print(json.dumps({"event": "ledger", **ledger.as_json()}), file=sys.stderr)
    elif not quiet and not reader_gone:
        print("ledger\n" + ledger.as_text(), file=sys.stderr)
    return code


def _progress(pipeline: Pipeline, source: Source) -> Callable[[], None]:
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
        rate = pipeline.loop.frames / (now - begin)
        exchanges = pipeline.application.paired + pipeline.application.only_request + pipeline.application.only_response
        print(
            f"\r{part} {pipeline.loop.frames:,} frames, {exchanges:,} exchanges, {rate:,.0f} frames/s\033[K",
            end="", file=sys.stderr, flush=True,
        )  # fmt: skip

    return show
