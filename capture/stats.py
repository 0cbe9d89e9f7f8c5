"""The ledger: what came in, what became of it, and whether the two are equal.

Every frame, segment, byte, message, exchange and record is in exactly one counter of its stage; each stage's input is
the output of the one before it. `Ledger.imbalances` names every equation that does not hold: a bug of ours, and loss.
"""

from collections.abc import Sequence
from typing import Any

from msgspec import Struct, field

from .connection import ConnectionTable
from .decode import DROPS, Decoder
from .defrag import Defragmenter
from .frame_loop import FrameLoop
from .http.exchange import REASONS, HttpApplication
from .http.parser import Limits
from .reassembly import CLOSE_REASONS
from .sink import SinkStats
from .source import SourceStats

Numbers = dict[str, Any]


class Ledger(Struct):
    """`sections`: stage -> counter -> number (or reason -> number). `imbalances`: empty where all balances. `unknown`:
    what cannot be known any more, because a worker died."""

    sections: dict[str, Numbers]
    imbalances: list[str]
    unknown: list[str] = field(default_factory=list)

    @property
    def balanced(self) -> bool:
        return not self.imbalances

    def as_json(self) -> Numbers:
        """`balanced` is null where what is known balances, and something is not known."""
        balanced = None if self.unknown and self.balanced else self.balanced
        told: Numbers = {**self.sections, "balanced": balanced, "imbalances": self.imbalances}
        return {**told, "unknown": self.unknown} if self.unknown else told

    def as_text(self) -> str:
        """Lines for a person: a stage each, counters that are not zero."""
        lines = []
        for stage, numbers in self.sections.items():
            shown = [
                f"{name} {_grouped(value)}"
                for name, value in numbers.items()
                if (any(value.values()) if isinstance(value, dict) else value) or name in _ALWAYS.get(stage, ())
            ]
            lines.append(f"  {stage:<12} {', '.join(shown) if shown else 'none'}")
        balanced = "as far as is known" if self.unknown else "yes"
        lines.append("  balanced     " + (balanced if self.balanced else "NO: " + "; ".join(self.imbalances)))
        lines += [f"  unknown      {line}" for line in self.unknown]
        return "\n".join(lines)


_ALWAYS = {
    "workers": ("count",),
    "guard": ("checks",),
    "frames": ("read",),
    "exchanges": ("total",),
    "records": ("total", "delivered"),
}


def _grouped(value: object) -> str:
    if isinstance(value, dict):
        return "(" + ", ".join(f"{name} {_grouped(number)}" for name, number in value.items() if number) + ")"
    return f"{value:,}" if isinstance(value, int) else str(value)


def ledger(
    *, live: bool, source: SourceStats, loop: FrameLoop, decoder: Decoder, defragmenter: Defragmenter,
    connections: ConnectionTable, limits: Limits, application: HttpApplication, bodies_shed: int,
    sink: SinkStats, finished: bool = True,
) -> Ledger:  # fmt: skip
    """Adds everything up. `finished`: nothing is in flight any more, so what is begun must also be ended."""
    imbalances: list[str] = []

    def equal(what: str, left: int, right: int) -> None:
        if left != right:
            imbalances.append(f"{what}: {left:,} is not {right:,} ({left - right:+,})")

    tcp = connections.reassembly
    drops = {reason: count for reason, count in zip(DROPS, decoder.drops, strict=True) if reason}
    frames: Numbers = {
        "read": loop.frames,
        "bytes": loop.frame_bytes,
        "filtered": loop.filtered,
        "segments": decoder.segments,
        "fragments": decoder.fragments,
        "drops": drops,
    }
    if live:
        frames = {"received": source.received, "dropped_by_kernel": source.dropped, **frames}
        frames["unread"] = max(0, source.received - source.dropped - loop.frames)
    equal(
        "frames + datagrams = filtered + segments + fragments + drops",
        loop.frames + defragmenter.datagrams,
        loop.filtered + decoder.segments + decoder.fragments + sum(drops.values()),
    )
    if not live:
        equal("frames read = frames of the files", loop.frames, source.received)
    fragments: Numbers = {
        "total": defragmenter.fragments,
        "used": defragmenter.fragments_used,
        "expired": defragmenter.fragments_expired,
        "evicted": defragmenter.fragments_evicted,
        "duplicate": defragmenter.fragments_duplicate,
        "overlap": defragmenter.fragments_overlap,
        "invalid": defragmenter.fragments_invalid,
        "pending": defragmenter.pending,
        "datagrams": defragmenter.datagrams,
    }
    equal("fragments decoded = fragments reassembled", decoder.fragments, defragmenter.fragments)
    equal(
        "fragments = used + expired + evicted + duplicate + overlap + invalid + pending",
        defragmenter.fragments,
        sum(
            int(fragments[name])
            for name in ("used", "expired", "evicted", "duplicate", "overlap", "invalid", "pending")
        ),
    )
    equal(
        "datagrams = segments + fragments + drops",
        defragmenter.datagrams,
        decoder.datagram_segments + decoder.datagram_fragments + decoder.datagram_drops,
    )
    segments: Numbers = {
        "shed": loop.shed,
        "mirrored": loop.copies.segments,
        "total": connections.segments,
        "data": connections.data,
        "control": connections.control,
        "untracked": connections.untracked,
        "late": connections.late,
        "ignored": connections.ignored,
        "resets_ignored": connections.resets_ignored,
        "early": tcp.buffered_segments,
        "retransmitted": tcp.retransmitted_segments,
        "conflicting": tcp.conflicting_segments,
        "gaps": tcp.gaps,
        "holes_given_up_for_memory": tcp.holes_given_up_for_memory,
    }
    if loop.workers > 1:
        segments["elsewhere"] = loop.elsewhere
    equal(
        "segments decoded = mirrored + tracked + elsewhere + shed",
        decoder.segments,
        loop.copies.segments + connections.segments + loop.elsewhere + loop.shed,
    )
    equal(
        "segments = data + control + untracked + late + ignored",
        connections.segments,
        connections.data + connections.control + connections.untracked + connections.late + connections.ignored,
    )
    stream: Numbers = {
        "shed": loop.shed_bytes,
        "mirrored": loop.copies.payload_bytes,
        "payload": tcp.payload_bytes,
        "delivered": tcp.delivered_bytes,
        "retransmitted": tcp.retransmitted_bytes,
        "ignored": tcp.ignored_bytes,
        "discarded": tcp.discarded_bytes,
        "urgent": tcp.urgent_bytes,
        "buffered": tcp.buffered_bytes,
        "gaps": tcp.gap_bytes,
        "cut_by_snaplen": tcp.cut_bytes,
        "conflicting": tcp.conflicting_bytes,
    }
    equal(
        "payload bytes = delivered + retransmitted + ignored + discarded + urgent + buffered",
        tcp.payload_bytes,
        sum(int(stream[name]) for name in ("delivered", "retransmitted", "ignored", "discarded", "urgent", "buffered")),
    )
    http: Numbers = {
        "head": limits.head_bytes,
        "body": limits.body_bytes,
        "framing": limits.framing_bytes,
        "tunnel": limits.tunnel_bytes,
        "skipped": limits.skipped_bytes,
        "pending": limits.pending_bytes,
    }
    equal(
        "delivered bytes = head + body + framing + tunnel + skipped + pending", tcp.delivered_bytes, sum(http.values())
    )
    ended = dict(zip(CLOSE_REASONS, connections.closed, strict=True))
    table: Numbers = {
        "opened": connections.opened,
        "http": application.connections,
        "not_http": connections.left,
        "midstream": connections.midstream,
        "closed": ended,
        "shed": loop.shed_connections,
        "evicted_by_collision": connections.collisions,
        "ended_evicted": connections.ended_evicted,
        "active": connections.active,
        "clock_steps": connections.clock_steps,
    }
    messages: Numbers = {
        "requests": limits.requests,
        "responses": limits.responses,
        "informational": limits.informational,
        "resynchronised": limits.resyncs,
        "heads_too_large": limits.heads_too_large,
        "too_many_fields": limits.headers_overflow,
        "decoding_failures": limits.decoding_failures,
        "decoders_refused": limits.decoder_memory.refused,
        "orphan_informational": application.orphan_informational,
    }
    total = application.paired + application.only_request + application.only_response
    reasons = {reason: count for reason, count in zip(REASONS, application.reasons, strict=True) if reason}
    exchanges: Numbers = {
        "total": total,
        "complete": application.complete,
        "paired": application.paired,
        "only_request": application.only_request,
        "only_response": application.only_response,
        "outstanding_overflow": application.outstanding_overflow,
        "over_rate": application.over_rate,
        "incomplete": reasons,
    }
    equal("exchanges = complete + incomplete", total, application.complete + sum(reasons.values()))
    records: Numbers = {
        "total": sink.records,
        "bytes": sink.bytes,
        "bodies_shed": bodies_shed,
        "delivered": sink.delivered,
        "undelivered": dict(sink.undelivered),
        "pending": sink.pending,
    }
    equal("records = exchanges - over_rate", sink.records, total - application.over_rate)
    equal(
        "records = delivered + undelivered + pending",
        sink.records,
        sink.delivered + sum(sink.undelivered.values()) + sink.pending,
    )
    if finished:
        equal("connections opened = closed", connections.opened, sum(ended.values()))
        equal("requests = paired + only_request", limits.requests, application.paired + application.only_request)
        equal("responses = paired + only_response", limits.responses, application.paired + application.only_response)
        equal("nothing in flight", 0, tcp.buffered_bytes + limits.pending_bytes + connections.active + sink.pending)
    return Ledger(
        {
            "frames": frames,
            "fragments": fragments,
            "segments": segments,
            "bytes": stream,
            "http_bytes": http,
            "connections": table,
            "messages": messages,
            "exchanges": exchanges,
            "records": records,
        },
        imbalances,
    )


class Share(Struct):
    """What one worker has counted: `ledgers`, as_json() of each process that had its number, in their order; the last
    ones of those that died are from some time before. `whole`: none died, and the last one came to the end."""

    name: str
    ledgers: list[Numbers]
    whole: bool


def merged(*, live: bool, source: SourceStats, frames: int, shares: Sequence[Share], workers: Numbers) -> Ledger:
    """The ledger of all workers. `frames`: how many were given to each of them. `workers`: counters about them.

    All frames were seen by each worker, and each segment belongs to one: what comes before the segments is the same in
    all of them and is counted once, as is what becomes of their clock; the rest is summed."""
    imbalances = [f"{share.name}: {line}" for share in shares for one in share.ledgers for line in one["imbalances"]]
    sums = [_sum(share.ledgers) for share in shares]
    known = [number for number, share in enumerate(shares) if share.whole] or sorted(
        range(len(shares)), key=lambda number: -sums[number].get("frames", {}).get("read", 0)
    )
    first = sums[known[0]] if sums else {}
    sections = _sum(sums)
    if "connections" in sections:  # the clock is the same for all of them
        sections["connections"]["clock_steps"] = max(one.get("connections", {}).get("clock_steps", 0) for one in sums)
    for stage in ("frames", "fragments"):
        sections[stage] = dict(first.get(stage, {}))
        for number in known[1:]:
            if shares[number].whole and sums[number][stage] != first[stage]:
                imbalances.append(f"{stage}: {shares[number].name} counted others than {shares[known[0]].name}")
    seen = sections["frames"]
    for name in ("received", "dropped_by_kernel", "unread"):
        seen.pop(name, None)
    segments = sections.setdefault("segments", {})
    segments.pop("elsewhere", None)
    decoded = seen.get("segments", 0)
    taken = [one.get("segments", {}) for one in sums]
    mine = [sum(one.get(name, 0) for name in ("shed", "mirrored", "total")) for one in taken]
    unknown = [
        f"{share.name} did not count {frames - one.get('frames', {}).get('read', 0):,} of {frames:,} frames: what it "
        "had begun when it ended is lost, and what it recorded since its last report is not counted"
        for share, one in zip(shares, sums, strict=True)
        if not share.whole
    ]
    workers = {
        **workers,
        "segments": {share.name: number for share, number in zip(shares, mine, strict=True)},
        "segments_lost": decoded - sum(mine),
        "frames_lost": {
            share.name: frames - one.get("frames", {}).get("read", 0) for share, one in zip(shares, sums, strict=True)
        },
    }
    for share, one in zip(shares, sums, strict=True):
        read = one.get("frames", {}).get("read", 0)
        if read > frames or (share.whole and read != frames):
            imbalances.append(f"frames of {share.name}: {read:,} is not {frames:,} ({read - frames:+,})")
    if not unknown and decoded != sum(mine):
        imbalances.append(f"each segment in one worker: {decoded:,} is not {sum(mine):,} ({decoded - sum(mine):+,})")
    if live:
        received = {"received": source.received, "dropped_by_kernel": source.dropped}
        unread = max(0, source.received - source.dropped - frames)
        sections["frames"] = {**received, **seen, "read": frames, "unread": unread}
    else:
        sections["frames"] = {**seen, "read": frames}
        if frames != source.received:
            imbalances.append(
                f"frames read = frames of the files: {frames:,} is not {source.received:,}"
                f" ({frames - source.received:+,})"
            )
    sections["workers"] = workers
    return Ledger(sections, imbalances, unknown)


def _sum(ledgers: Sequence[Numbers]) -> Numbers:
    """Section by section, number by number."""
    total: Numbers = {}
    for one in ledgers:
        for name, value in one.items():
            if isinstance(value, dict):
                total[name] = _sum([total.get(name, {}), value])
            elif isinstance(value, int) and not isinstance(value, bool):
                total[name] = total.get(name, 0) + value
    return total
