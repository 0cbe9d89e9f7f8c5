"""The record: one JSON document per exchange. These types are the authority; encode.py writes the bytes.

Names are those of the Elastic Common Schema; what it lacks is under `http_capture`. A test reads every golden record
back into these types, strictly, and validates it against the JSON Schema that `http-capture schema` prints.
"""

import json
from typing import Any, Literal

import msgspec

SCHEMA = "1.0"
"""Version of the schema. A change that breaks a reader changes the part before the dot."""

PRODUCT = "http-capture"
REDACTED = b"REDACTED"

IncompleteReason = Literal[
    "no_request", "no_response", "gap", "truncated_capture", "closed", "timeout", "evicted", "shutdown", "malformed",
    "shed",
]  # fmt: skip
TunnelType = Literal[
    "ipip", "4in6", "6in4", "6in6", "etherip", "gre", "erspan", "pptp", "mpls", "vxlan", "vxlan-gpe", "geneve", "gtp-u",
    "teredo", "ayiya", "connect", "socks4", "socks5",
]  # fmt: skip
Anomaly = Literal[
    "bare_lf",
    "control_in_head",
    "nul_in_head",
    "obs_fold",
    "obs_fold_transfer_encoding",
    "space_before_colon",
    "blank_before_field",
    "field_malformed",
    "head_end_odd",
    "junk_before_message",
    "request_line_odd",
    "version_odd",
    "status_odd",
    "status_line_missing",
    "lengths_repeated",
    "lengths_differ",
    "length_malformed",
    "transfer_encoding_and_length",
    "transfer_encoding_odd",
    "transfer_encoding_version",
    "chunked_not_applied",
    "chunk_size_odd",
    "chunk_end_missing",
    "body_not_allowed",
    "conflicting_retransmission",
]
"""What of the messages is not as RFC 9112 wants it; http/message.py says of each which reading was taken."""

DecodingError = Literal[
    "unknown_coding", "too_many_codings", "not_as_listed", "corrupt", "cut", "too_large", "ratio", "memory"
]
"""Why a body is not what Content-Encoding says, or not whole (http/decoding.py):
unknown_coding: a listed coding is not known; not_as_listed: one was not applied, or another one in its place; corrupt:
damaged, where only a checksum is wrong the content is whole; cut: it ends inside a coding; too_large, ratio, memory:
given up at a limit; too_many_codings: more than four are listed."""
Headers = dict[str, list[str]]
"""Lower-case field name -> its values in the order on the wire."""


class _Part(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Base of all parts of a record: an unknown field is an error, an absent one is left out."""


class Event(_Part):
    """`id` is the same in every copy of a record: a hash of addresses, ports, sequence number and head."""

    id: str
    start: str
    end: str
    duration: int
    outcome: Literal["success", "failure", "unknown"]
    dataset: Literal["http"]


class Endpoint(_Part):
    """One end of the connection; `bytes`: of the message that it sent, as on the wire."""

    ip: str
    port: int
    bytes: int


class Vlan(_Part):
    id: str


class InnerNetwork(_Part):
    vlan: Vlan


class Outer(_Part):
    """One end of a tunnel; `port` where that runs over UDP."""

    ip: str
    port: int | None = None


class Tunnel(_Part):
    """A tunnel that the exchange came through. `id`: network, key, session or endpoint, as the kind has it; the source
    is the end on the client's side. Of a proxy (connect, socks) the ends are those of the record, and `target` is the
    HOST:PORT that it was asked for."""

    type: TunnelType
    source: Outer | None = None
    destination: Outer | None = None
    id: str | None = None
    target: str | None = None


class Network(_Part):
    """`vlan` and `inner.vlan` are the two outermost; `tunnel` lists the tunnels, outermost first."""

    type: Literal["ipv4", "ipv6"]
    transport: Literal["tcp"]
    protocol: Literal["http"]
    community_id: str
    vlan: Vlan | None = None
    inner: InnerNetwork | None = None
    tunnel: list[Tunnel] | None = None


class Url(_Part):
    """`original` is the request target as on the wire; the other parts are there as far as it and Host tell them."""

    original: str
    full: str | None = None
    scheme: str | None = None
    domain: str | None = None
    port: int | None = None
    path: str | None = None
    query: str | None = None


class Body(_Part):
    """bytes: length without chunk framing, still content-encoded: true also where less is kept. decoded_bytes: after
    content decoding, as far as that came; absent where no coding was undone, and the content is the raw body.
    decoding_error: what is wrong with the codings; where something was decoded before, that is the content. content:
    as the settings allow, `text` (UTF-8) or `base64`; truncated: it is shorter than the body."""

    bytes: int
    decoded_bytes: int | None = None
    decoding_error: DecodingError | None = None
    content: str | None = None
    encoding: Literal["text", "base64"] | None = None
    truncated: bool = False


class Request(_Part):
    method: str
    headers: Headers
    body: Body
    referrer: str | None = None
    mime_type: str | None = None


class Informational(_Part):
    """A 1xx answer that came before the response."""

    status_code: int
    reason: str
    headers: Headers


class Response(_Part):
    """An HTTP/0.9 response has neither status_code nor reason."""

    headers: Headers
    body: Body
    status_code: int | None = None
    reason: str | None = None
    informational: list[Informational] | None = None


class Http(_Part):
    version: Literal["0.9", "1.0", "1.1", "2"] | None = None
    request: Request | None = None
    response: Response | None = None


class UserAgent(_Part):
    original: str


class Interface(_Part):
    name: str


class Ingress(_Part):
    interface: Interface


class Observer(_Part):
    hostname: str
    version: str
    product: Literal["http-capture"]
    ingress: Ingress | None = None


class Error(_Part):
    message: str


class Timing(_Part):
    """In ns. connect: the TCP handshake, in the first record of a connection only; request: its first to its last
    byte; wait: from then to the first byte of the response; response: its first to its last byte."""

    connect: int | None = None
    request: int | None = None
    wait: int | None = None
    response: int | None = None


class HttpCapture(_Part):
    """anomalies: in the order of Anomaly. uncertain: at the time of the exchange the number of outstanding requests was
    not certain, and the response was paired by sequence numbers, or not at all. bodies_shed: the sink was behind, and
    the content of the bodies was left out so that more records fit."""

    complete: bool
    gap_bytes: int
    retransmitted_bytes: int
    pipeline_index: int
    midstream: bool
    timing: Timing
    instance: str
    schema: str
    incomplete_reason: IncompleteReason | None = None
    anomalies: list[Anomaly] | None = None
    uncertain: bool = False
    bodies_shed: bool = False


class Record(_Part):
    timestamp: str = msgspec.field(name="@timestamp")
    event: Event
    source: Endpoint
    destination: Endpoint
    network: Network
    http: Http
    observer: Observer
    http_capture: HttpCapture
    url: Url | None = None
    user_agent: UserAgent | None = None
    error: Error | None = None


MESSAGES = {
    "no_request": "the request was not seen",
    "no_response": "no response was seen",
    "gap": "bytes are missing from the capture",
    "truncated_capture": "the frames were captured in part only (snap length)",
    "closed": "the connection was closed before the end of the message",
    "timeout": "nothing more was seen for too long",
    "evicted": "given up to keep within the limits on memory",
    "shutdown": "the capture ended before the end of the exchange",
    "malformed": "the message does not follow HTTP/1.x",
    "shed": "given up because more traffic came than could be held",
}
"""incomplete_reason -> `error.message`."""


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a record."""
    (schema,), components = msgspec.json.schema_components([Record], ref_template="#/$defs/{name}")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:http-capture:record:{SCHEMA}",
        "title": "http-capture record",
        **schema,
        "$defs": components,
    }


def json_schema_text() -> str:
    return json.dumps(json_schema(), indent=2)
