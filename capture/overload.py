"""What a live run gives up when there is more than it can hold, so that what it keeps is exact; and says so.

More traffic than the cores take apart: whole connections are left out, which frame_loop.py chooses by a hash. A ring
that overflows loses frames at random instead, and with them a part of nearly every connection.
The sink takes records more slowly than they come: first the content of bodies is left out, which is most of a record.
Where that is not enough, the sink gives the newest records up (`queue_full`).

The time here is that of a clock which cannot be set: the frames have that of the host, which can be set back.
"""

import logging
import time
from collections.abc import Callable

from ..config.settings import OverloadSettings
from .encode import Encoder
from .frame_loop import ALL, FrameLoop
from .sink import Sink
from .source import Source

log = logging.getLogger("http_capture.overload")

NS = 1_000_000_000
LEAST_ROOM = 7  # blocks; a shorter ring is full and empty again too fast to be a measure
MOST_READ = 8
MARGIN = 0.9
KNOWN = 0.95  # of a share that was too much is held as far as is known
LEAST = ALL >> 5  # of the share: below it most of the time goes into frames of which nothing is kept
PAUSE_NS = NS
LONGEST_PAUSE_NS = 60 * NS
SAY_NS = 10 * NS
BEHIND, CAUGHT_UP = 0.5, 0.25  # of the memory for records that wait


class Overload:
    """Which share of the connections is kept, by how many blocks wait to be read.

    While they are more than half of what can wait: whenever MOST_READ of them were read, or twice as many have come,
    the share is cut to what was read of what came, less a margin, at most to a quarter at once. Where fewer wait than
    before nothing is cut: a pause of the machine is no overload.
    When less than a quarter has waited for a second, the share rises by a tenth, up to nearly the one that was too
    much. From there on it waits for longer: where a rise has to be taken back, twice as long as before, up to a minute,
    since a connection that is shed and taken again costs the exchange that it is in; while the share that was too much
    is held, half as long."""

    def __init__(self) -> None:
        self.share = ALL
        self._read = 0  # blocks since `_waited` of them waited
        self._waited = -1  # -1: that is not looked at
        self._pause_ns = PAUSE_NS
        self._quiet_since_ns = 0
        self._raised = False  # the last change was one
        self._too_much = ALL  # the share at the last cut

    def step(self, waiting: int, room: int, now_ns: int) -> int:
        """One block was read, and now so many wait, of so many that can. Returns the share, LEAST to ALL."""
        if room >= LEAST_ROOM and 2 * waiting > room:
            self._cut(waiting, room)
            self._quiet_since_ns = now_ns
            return self.share
        self._waited = -1
        if 4 * waiting > room:
            self._quiet_since_ns = now_ns
        else:
            known = int(KNOWN * self._too_much)
            if now_ns - self._quiet_since_ns >= (PAUSE_NS if self.share < known else self._pause_ns):
                self._quiet_since_ns = now_ns
                if self.share >= self._too_much:
                    self._pause_ns = max(PAUSE_NS, self._pause_ns // 2)
                if self.share < ALL:
                    raised = self.share + self.share // 10 + 1
                    self.share = min(raised, known if self.share < known else ALL)
                    self._raised = True
        return self.share

    def _cut(self, waiting: int, room: int) -> None:
        if self._waited < 0:
            self._waited = waiting
            self._read = 0
            return
        self._read += 1
        came = self._read + waiting - self._waited
        if self._read < MOST_READ and came < 2 * MOST_READ and waiting < room:
            return
        if waiting >= room and came <= self._read:  # what else came was dropped
            came = 2 * self._read
        if came > self._read:
            self._too_much = self.share
            self.share = max(LEAST, int(self.share * max(0.25, MARGIN * self._read / came)))
            if self._raised:
                self._raised = False
                self._pause_ns = min(2 * self._pause_ns, LONGEST_PAUSE_NS)
        self._waited = waiting
        self._read = 0


class Shedding:
    """Of a run on a NIC: `after_block()` after each block. `clock`: ns, from any time on."""

    def __init__(
        self, settings: OverloadSettings, source: Source, sink: Sink, loop: FrameLoop, encoder: Encoder,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:  # fmt: skip
        self._settings = settings
        self._source = source
        self._sink = sink
        self._loop = loop
        self._encoder = encoder
        self._clock = clock
        self._overload = Overload()
        self._said_share = ALL
        self._said_ns = -SAY_NS  # the host may have been started just now
        self._said_behind = False
        self._said_behind_ns = -SAY_NS

    def after_block(self) -> None:
        now_ns = self._clock()
        if self._settings.shed_connections:
            waiting, room = self._source.waiting()
            share = self._overload.step(waiting, room, now_ns)
            if share != self._loop.kept:
                self._loop.keep(share)
            if share != self._said_share and (share == ALL or now_ns - self._said_ns >= SAY_NS):
                self._say_share(share, now_ns)
        if self._settings.shed_bodies:
            filled = self._sink.filled()
            behind = filled > (CAUGHT_UP if self._encoder.without_bodies else BEHIND)
            if behind != self._encoder.without_bodies:
                self._encoder.without_bodies = behind
                self._say_behind(behind, now_ns)

    def _say_share(self, share: int, now_ns: int) -> None:
        self._said_share = share
        self._said_ns = now_ns
        if share == ALL:
            log.warning("all connections are recorded again; %s segments were shed", f"{self._loop.shed:,}")
        else:
            log.warning(
                "more traffic than can be held: %.1f %% of the connections are recorded, whole; the rest is shed, by a"
                " hash, and counted; more --workers or a --filter would help", 100 * share / ALL,
            )  # fmt: skip

    def _say_behind(self, behind: bool, now_ns: int) -> None:
        if behind and now_ns - self._said_behind_ns >= SAY_NS:
            self._said_behind = True
            self._said_behind_ns = now_ns
            log.warning(
                "records are taken more slowly than they come, half of the memory for those that wait is taken:"
                " bodies are left out of the records (bodies_shed)"
            )
        elif not behind and self._said_behind:
            self._said_behind = False
            log.warning(
                "records are taken in time again; %s went without their bodies", f"{self._encoder.bodies_shed:,}"
            )
