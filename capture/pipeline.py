"""The only module that knows every stage: makes them, runs the loop, keeps the clock.

source -> decode -> (defrag) -> (mirror) -> connection/reassembly -> http parser -> exchange -> encode -> sink
"""

import time
from collections.abc import Callable

from ..config.settings import Settings
from .connection import ConnectionTable
from .decode import Decoder
from .defrag import Defragmenter
from .encode import Encoder
from .frame_loop import FrameLoop
from .http.exchange import HttpApplication
from .http.parser import Limits
from .mirror import MirrorCopies
from .overload import Shedding
from .reassembly import Reassembly
from .sink import Sink
from .source import EndOfInput, Source
from .stats import Ledger, ledger

READ_SECONDS = 0.1
KEEP = {"none": 0, "text": 1, "all": 2}
NS = 1_000_000_000


def new_decoder(settings: Settings) -> Decoder:
    """Processes that take connections of the same frames need copies of one: it has a secret of its own."""
    return Decoder(
        vlan_in_key=settings.decode.vlan_in_key,
        tunnel_in_key=settings.decode.tunnel_in_key,
        verify_checksums=settings.tcp.verify_checksums,
    )


class Pipeline:
    """All stages of one run. `run()` once, then `finish()` once, then `ledger()`.

    `decoder`: one that is not to be made anew; see `new_decoder`. `clock`: ns since 1970, asked where a NIC is idle."""

    def __init__(
        self, settings: Settings, source: Source, sink: Sink, *, hostname: str, version: str, instance: str,
        decoder: Decoder | None = None, clock: Callable[[], int] = time.time_ns,
    ) -> None:  # fmt: skip
        self.settings = settings
        self.source = source
        self.sink = sink
        self.clock = clock
        self.finished = False
        self.limits = Limits(
            max_head_bytes=settings.http.max_head_bytes,
            max_headers=settings.http.max_headers,
            search_bytes=settings.http.search_bytes,
            keep=KEEP[settings.body.keep],
            max_kept_bytes=settings.body.max_kept_bytes,
            max_decoded_bytes=settings.body.max_decoded_bytes,
            max_ratio=settings.body.max_ratio,
            max_decoder_memory_bytes=settings.body.max_decoder_memory_bytes,
        )
        self.encoder = Encoder(
            hostname=hostname,
            interface=settings.source.iface[0] if source.live else None,
            version=version,
            instance=instance,
            max_headers=settings.http.max_headers,
            key=settings.record.key,
            redact=settings.record.redact,
            redact_headers=settings.record.redact_headers,
            redact_names=settings.record.redact_names,
            keep_unknown=settings.body.keep == "all",
            send=sink.send,
        )
        self.application = HttpApplication(
            self.limits,
            self.encoder.deliver,
            max_outstanding=settings.http.max_outstanding,
            max_per_second=settings.http.max_exchanges_per_second,
        )
        tcp = settings.tcp
        self.connections = ConnectionTable(
            self.application,
            Reassembly(tcp.max_buffered_bytes, tcp.max_buffered_bytes_per_direction, tcp.overlap),
            max_connections=tcp.max_connections,
            reorder_ns=int(tcp.reorder_seconds * NS),
            handshake_timeout_ns=int(tcp.handshake_timeout_seconds * NS),
            idle_timeout_ns=int(tcp.idle_timeout_seconds * NS),
            closing_timeout_ns=int(tcp.closing_timeout_seconds * NS),
            live=source.live,
        )
        self.decoder = decoder or new_decoder(settings)
        self.defragmenter = Defragmenter(settings.defrag)
        matches = None
        if settings.source.filter and not source.live:
            from .source.bpf import ReplayFilter

            matches = ReplayFilter(settings.source.filter).matches
        copies = MirrorCopies(int(tcp.mirror_seconds * NS))
        self.loop = FrameLoop(self.decoder, self.defragmenter, copies, self.connections, matches)
        self.shedding = Shedding(settings.overload, source, sink, self.loop, self.encoder)

    def run(self, stopped: Callable[[], bool], each_block: Callable[[], None] = lambda: None) -> None:
        """Reads until the end of the input or, once `stopped()`, what the source has taken by then. Raises what source
        and sink raise."""
        source, sink, loop = self.source, self.sink, self.loop
        stopping = False
        while True:
            if not stopping and stopped():
                stopping = True
                source.stop()
            try:
                block = source.read(READ_SECONDS)
            except EndOfInput:
                return
            loop.run(block)
            if source.live and not block.count:
                self.connections.tick(self.clock())
            self.defragmenter.tick(self.connections.now_ns)
            sink.poll()
            if source.live:
                self.shedding.after_block()
            each_block()

    def do_not_wait(self) -> None:
        """A reader of the records that is slow is not waited for any more."""
        if hasattr(self.sink, "waits"):
            self.sink.waits = False

    healthy = True
    """Whether the watchdog may be told so: what makes this loop wait shows by its silence."""

    def progress(self) -> tuple[int, int]:
        """Frames and exchanges so far."""
        application = self.application
        return self.loop.frames, application.paired + application.only_request + application.only_response

    def finish(self) -> int:
        """Closes the source, records what is unfinished, flushes the sink within its limit and closes it.

        Returns the number of records that were not delivered. Errors of the sink are in its counters by now."""
        self.source.close()
        self.connections.shutdown()
        self.sink.flush(self.settings.kafka.flush_timeout_seconds)
        self.sink.close()
        self.finished = True
        return self.not_delivered()

    def not_delivered(self) -> int:
        """Records that were not delivered, so far."""
        stats = self.sink.stats()
        return stats.records - stats.delivered

    def undelivered(self) -> dict[str, int]:
        """Records by the reason why they were not delivered."""
        return self.sink.stats().undelivered

    def ledger(self) -> Ledger:
        """What came in and what became of it, at this moment."""
        return ledger(
            live=self.source.live,
            source=self.source.stats(),
            loop=self.loop,
            decoder=self.decoder,
            defragmenter=self.defragmenter,
            connections=self.connections,
            limits=self.limits,
            application=self.application,
            bodies_shed=self.encoder.bodies_shed,
            sink=self.sink.stats(),
            finished=self.finished,
        )
