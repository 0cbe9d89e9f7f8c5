"""Every setting of every stage, with its default and its unit.

One frozen class per stage; a stage gets only its own. The names are the keys of the TOML file (`[tcp] max_connections`)
and, in capitals, of the environment (`HTTP_CAPTURE_TCP_MAX_CONNECTIONS`). `http-capture.toml` beside this file shows
all of them; a test holds the two together.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

MOST = 1 << 40  # of anything: products of it fit into the 64 bits of the compiled modules
MOST_SECONDS = 1_000_000  # 11 days: as ms it fits into 32 bits, which librdkafka and poll(2) have, in ns many of it do

Positive = Annotated[int, Meta(ge=1, le=MOST)]
Count = Annotated[int, Meta(ge=0, le=MOST)]
Seconds = Annotated[float, Meta(gt=0, le=MOST_SECONDS)]
SecondsOrNone = Annotated[float, Meta(ge=0, le=MOST_SECONDS)]


class Stage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all: frozen, by keyword only, an unknown key is an error."""


class GuardSettings(Stage, frozen=True):
    """The single-instance lock, and whether this instance outlives what started it. Read before anything else is
    imported: see `loading.guard_part` and `loading.dies_with_parent`."""

    pidfile: str = "/run/http-capture.pid"
    interface_lock: bool = True
    die_with_parent: bool = False


class ProcessSettings(Stage, frozen=True):
    """As which user the program runs once the NIC is open. Empty: as the one that started it."""

    user: str = ""  # NAME or UID:GID


class SourceSettings(Stage, frozen=True):
    """Where frames come from: a NIC (`iface`) or capture files (`read`), never both."""

    iface: tuple[str, ...] = ()
    read: tuple[str, ...] = ()
    kind: Literal["af_packet", "scapy"] = "af_packet"
    filter: str = ""  # pcap-filter(7); empty: everything
    promiscuous: bool = True
    snaplen_bytes: Annotated[int, Meta(ge=64, le=262144)] = 262144
    ring_block_bytes: Annotated[int, Meta(ge=4096, le=1 << 28)] = 1 << 20
    ring_block_count: Annotated[int, Meta(ge=2, le=65536)] = 64
    ring_timeout_ms: Annotated[int, Meta(ge=1, le=10000)] = 50
    return_timeout_seconds: Seconds = 10.0  # how long a NIC that was removed is waited for


class WorkersSettings(Stage, frozen=True):
    """Over how many processes the connections are spread, and what the death of one of them means."""

    count: Annotated[int, Meta(ge=1, le=64)] = 1  # 1: no process but this one
    on_death: Literal["restart", "stop"] = "restart"


class OverloadSettings(Stage, frozen=True):
    """What a run on a NIC gives up where there is more than it can hold. A replay waits instead."""

    shed_connections: bool = True
    shed_bodies: bool = True


class DecodeSettings(Stage, frozen=True):
    """What makes two segments with the same addresses and ports belong to one connection. Without VLAN or tunnel in the
    key, directions that a mirror tags differently are put together, and so are networks that use the same addresses."""

    vlan_in_key: bool = True
    tunnel_in_key: bool = True


class DefragSettings(Stage, frozen=True):
    """Bounds of IP fragment reassembly. RFC 791 and RFC 8200 allow a datagram 60 s."""

    max_datagrams: Positive = 4096
    max_bytes: Positive = 16 << 20
    timeout_seconds: Seconds = 30.0


class TcpSettings(Stage, frozen=True):
    """Bounds and timers of TCP reassembly. Timers run on the time of the frames."""

    max_connections: Annotated[int, Meta(ge=1, le=1 << 28)] = 262144  # with those that have ended and are remembered
    max_buffered_bytes_per_direction: Positive = 1 << 20
    max_buffered_bytes: Positive = 64 << 20
    mirror_seconds: SecondsOrNone = 0.05  # the same packet within it is a copy by the mirror
    reorder_seconds: Seconds = 0.2  # how long a hole that the peer has acknowledged is waited for
    handshake_timeout_seconds: Seconds = 30.0
    idle_timeout_seconds: Seconds = 300.0
    closing_timeout_seconds: Seconds = 10.0
    overlap: Literal["first", "last", "linux"] = "first"  # which bytes stay where segments differ
    verify_checksums: bool = False  # a NIC that computes them itself shows wrong ones of its own host


class HttpSettings(Stage, frozen=True):
    """Bounds of the HTTP parser, per connection."""

    max_head_bytes: Annotated[int, Meta(ge=1024, le=1 << 24)] = 65536
    max_headers: Annotated[int, Meta(ge=16, le=65536)] = 1000
    max_outstanding: Annotated[int, Meta(ge=1, le=100000)] = 1000
    max_exchanges_per_second: Positive = 100_000  # of one connection, by the time of the frames
    search_bytes: Count = 65536  # a connection without an HTTP message in its first bytes is left


class BodySettings(Stage, frozen=True):
    """What is kept of bodies. The true length is in the record whatever is kept."""

    keep: Literal["none", "text", "all"] = "text"
    max_kept_bytes: Count = 65536
    max_decoded_bytes: Positive = 64 << 20  # content decoding of one body stops here
    max_ratio: Positive = 1000  # decoded to encoded bytes, once more than 1 MiB is decoded
    # Windows of all bodies being decoded.
    max_decoder_memory_bytes: Annotated[int, Meta(ge=1 << 20, le=MOST)] = 256 << 20


class RecordSettings(Stage, frozen=True):
    """How an exchange becomes a record."""

    key: Literal["connection", "client", "host", "id"] = "connection"
    redact: bool = True
    redact_headers: tuple[str, ...] = ("authorization", "proxy-authorization", "cookie", "set-cookie")
    redact_names: tuple[str, ...] = (
        "password", "passwd", "pwd", "pass", "passphrase", "token", "access_token", "refresh_token", "id_token",
        "auth_token", "csrf_token", "secret", "client_secret", "api_key", "apikey", "api-key", "key", "sig",
        "signature", "session", "sessionid", "sid", "jwt", "pin", "otp", "cvv", "card_number", "ssn",
    )  # fmt: skip


class KafkaSettings(Stage, frozen=True):
    """The Kafka sink. `librdkafka` passes any setting through to the library, over our own."""

    brokers: tuple[str, ...] = ()
    topic: Annotated[str, Meta(min_length=1, max_length=249)] = "http-capture"
    start_timeout_seconds: Seconds = 10.0
    flush_timeout_seconds: Seconds = 30.0
    librdkafka: dict[str, str | int | float | bool] = {}


class SinkSettings(Stage, frozen=True):
    """Where records go. `to` empty: kafka where brokers are set, else stdout."""

    to: str = ""  # kafka, stdout, null, file:PATH


class LogSettings(Stage, frozen=True):
    """What the program says of itself, on standard error or in a file (SIGHUP opens it anew)."""

    file: str = ""
    level: Literal["debug", "info", "warning", "error"] = "info"


class Settings(Stage, frozen=True):
    """All of it."""

    guard: GuardSettings = GuardSettings()
    process: ProcessSettings = ProcessSettings()
    source: SourceSettings = SourceSettings()
    workers: WorkersSettings = WorkersSettings()
    overload: OverloadSettings = OverloadSettings()
    decode: DecodeSettings = DecodeSettings()
    defrag: DefragSettings = DefragSettings()
    tcp: TcpSettings = TcpSettings()
    http: HttpSettings = HttpSettings()
    body: BodySettings = BodySettings()
    record: RecordSettings = RecordSettings()
    kafka: KafkaSettings = KafkaSettings()
    sink: SinkSettings = SinkSettings()
    log: LogSettings = LogSettings()
