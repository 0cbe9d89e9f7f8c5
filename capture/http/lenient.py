"""How lines are read that RFC 9112 does not allow, and that browsers and servers read all the same.

The parser comes here only where its own, strict look at a line has failed. Each function returns what was read and a
mask of message.ANOMALIES. Where readers differ, the reading is the one that most browsers share; whether an oddly
spelled `chunked` was meant is told by what follows: a chunk size, or none.
"""

import re

from .message import (
    BARE_LF,
    CHUNK_SIZE_ODD,
    CONTROL_IN_HEAD,
    LENGTH_MALFORMED,
    LENGTHS_DIFFER,
    LENGTHS_REPEATED,
    NUL_IN_HEAD,
    REQUEST_LINE_ODD,
    STATUS_ODD,
    TRANSFER_ENCODING_ODD,
    VERSION_ODD,
)

NOT_CHUNKED, CHUNKED, PERHAPS_CHUNKED, NO_CODING = range(4)
"""What transfer_encoding() says: other codings; chunked; chunked if a chunk size follows; as if it was not there."""

MORE, NO_SIZE, BAD_SIZE = -1, -2, -3
"""What chunk_size() says instead of where the line ends."""

MAX_CHUNK_LINE = 4096
MAX_JUNK = 256
"""Within so many bytes a status line may follow what is none."""

_BARE_LF = re.compile(rb"(?<!\r)\n")
_NUL = re.compile(rb"\0+")
_CONTROL = re.compile(rb"[\x01-\x08\x0b\x0c\x0e-\x1f\x7f]|\r(?!\n)")
_METHOD = re.compile(rb"(?!PRI )[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,32}(?=[ \t])")
_VERSION = re.compile(rb"(?i:http)/[0-9]{0,4}(?:\.[0-9]{0,4})?\Z")
_STATUS_LINE = re.compile(rb"([^ \t\v\f]*)[ \t\v\f]*([^ \t\v\f\r\n]*)[ \t\v\f]*([^\r\n]*)", re.IGNORECASE)
_STATUS_LINE_AFTER_JUNK = re.compile(rb"(?:\A[^\n]{1,4}|\n[ \t]*)(HTTP/1\.[01] [1-5][0-9][0-9][ \r\n])")
_LENGTH = re.compile(rb"[0-9]{1,18}\Z")
_NOT_TEXT = re.compile(rb"[\x00-\x20\x7f-\xff]")
_SIZE_BLANK = b" \t\n\v\f\r"
_HEX = b"0123456789abcdefABCDEF"
_SIZE = re.compile(rb"\+?(?:0[xX](?=[0-9a-fA-F]))?0*([0-9a-fA-F]+)([^\n]*)\Z")
_PLAIN_SIZE = re.compile(rb"[0-9a-fA-F]+[ \t]*(?:;[^\n]*|\r?)\Z")
_CODINGS = frozenset((b"gzip", b"x-gzip", b"deflate", b"compress", b"x-compress", b"br", b"zstd"))


def head_anomalies(head: bytes) -> int:
    """What of a head is odd in any line of it."""
    found = BARE_LF if _BARE_LF.search(head) is not None else 0
    if b"\0" in head:
        found |= NUL_IN_HEAD
    if _CONTROL.search(head) is not None:
        found |= CONTROL_IN_HEAD
    return found


def without_nul(head: bytes) -> bytes:
    """The head without NULs, but for those that have no other byte of their line beside them."""
    return _NUL.sub(_nul, head)


def _nul(run: re.Match[bytes]) -> bytes:
    around = run.string[run.start() - 1 : run.start()] + run.string[run.end() : run.end() + 1]
    return b"" if any(33 <= octet <= 126 for octet in around) else run.group()


def is_request_line(data: bytes, start: int, end: int) -> bool:
    """Whether data[start:end] is a request line: method, target, version, with any blanks between them."""
    return _request_parts(data[start:end]) is not None


def _request_parts(line: bytes) -> tuple[bytes, bytes, bytes] | None:
    """(method, target, version) of a whole request line. Not by one expression: three of `any blanks, anything` in a
    row take the third power of the length of a hostile line."""
    line = line.removesuffix(b"\r").rstrip(b" \t")
    match = _METHOD.match(line)
    if match is None or b"\r" in line:
        return None
    method = match.group()
    blank = max(line.rfind(b" "), line.rfind(b"\t"))
    if blank == len(method) or _VERSION.match(line, blank + 1) is None:
        return None
    return method, line[len(method) : blank].strip(b" \t"), line[blank + 1 :]


def request_line(head: bytes, end: int) -> tuple[bytes, bytes, int, int]:
    """(method, target, version, anomalies) of head[:end], as far as they are there (RFC 9112 section 3)."""
    found = _request_parts(head[:end])
    if found is None:  # cut short
        parts = head[:end].split(None, 2)
        return (parts[0] if parts else b""), (parts[1] if len(parts) > 1 else b""), 0, 0
    method, target, text = found
    number, anomalies = _version(text)
    if head[:end].rstrip(b"\r") != b"%b %b %b" % found or b" " in target or b"\t" in target:
        anomalies |= REQUEST_LINE_ODD
    return method, target, number, anomalies


def status_line(head: bytes, end: int) -> tuple[int, int, bytes, int]:
    """(version, status, reason, anomalies) of head[:end], which begins with `HTTP/` in any case (section 4)."""
    match = _STATUS_LINE.match(head[:end].replace(b"\0", b""))
    text, code, reason = match.groups() if match is not None else (b"", b"", b"")
    number, found = _version(text.rstrip(b"\r\n"))
    status = 0
    if len(code) == 3 and code.isdigit() and code[0] != 48:
        status = int(code)
    else:
        found |= STATUS_ODD
    return number, status, reason.rstrip(), found


def _version(text: bytes) -> tuple[int, int]:
    """(10, 11 or 0, anomalies) of a version (section 2.3)."""
    number = {b"HTTP/1.1": 11, b"HTTP/1.0": 10}.get(text.upper(), 0)
    return number, 0 if number and text.startswith(b"HTTP") else VERSION_ODD


def status_line_after_junk(data: bytes, at: int) -> int:
    """How many bytes of data[at:] stand before a status line: up to four, or lines of their own. 0: there is none."""
    match = _STATUS_LINE_AFTER_JUNK.search(data[at : at + MAX_JUNK])
    return match.start(1) if match is not None else 0


def content_length(values: list[bytes]) -> tuple[int, bool, int]:
    """(length or -1, whether it is sound, anomalies) of all Content-Length fields (section 6.3 rule 5).

    Members that are equal are one. Else the first that is a number, which is not sound.
    """
    members = [member.strip(b" \t") for value in values for member in value.split(b",")]
    found = 0
    length = -1
    numbers = set()
    for member in members:
        if _LENGTH.match(member) is None:
            found |= LENGTH_MALFORMED
            continue
        numbers.add(int(member))
        if length < 0:
            length = int(member)
    if len(members) > 1:
        found |= LENGTHS_DIFFER if len(numbers) > 1 else LENGTHS_REPEATED
    return length, found == 0 or found == LENGTHS_REPEATED, found


def transfer_encoding(values: list[bytes]) -> tuple[int, int]:
    """(NOT_CHUNKED, CHUNKED, PERHAPS_CHUNKED or NO_CODING, anomalies) of all Transfer-Encoding fields (section 6.1).

    Empty members are none (RFC 9110 section 5.6.1).
    """
    members = [member.strip(b" \t").lower() for value in values for member in value.split(b",")]
    members = [member for member in members if member]
    if members and members[-1] == b"chunked" and all(member in _CODINGS for member in members[:-1]):
        return CHUNKED, 0
    if b"chunked" in _NOT_TEXT.sub(b"", b",".join(members)):
        return PERHAPS_CHUNKED, TRANSFER_ENCODING_ODD
    if all(member == b"identity" for member in members):
        return NO_CODING, TRANSFER_ENCODING_ODD
    return NOT_CHUNKED, 0 if all(member in _CODINGS for member in members) else TRANSFER_ENCODING_ODD


def chunk_size(data: bytes, at: int, plain: bool) -> tuple[int, int, int]:
    """(end, size, anomalies) of the chunk size line at data[at:] (section 7.1).

    end: after it; MORE bytes are needed; NO_SIZE: there is no number; BAD_SIZE: too large a one, or too long a line.

    Like strtoul(): blanks and line ends before the number, a plus sign and `0x` are passed over, and so is all that
    stands behind it. plain: only what section 7.1 allows is a size. A part of the line has the answer of all of it, or
    MORE.
    """
    start = at
    if not plain:
        while start < len(data) and data[start] in _SIZE_BLANK:
            start += 1
    end = data.find(b"\n", start)
    if (end if end >= 0 else len(data)) - at > MAX_CHUNK_LINE:
        return BAD_SIZE, 0, CHUNK_SIZE_ODD
    if start == len(data):
        return MORE, 0, 0
    if data[start] not in _HEX and (plain or data[start] != 43):
        return NO_SIZE, 0, CHUNK_SIZE_ODD
    line = data[start : end if end >= 0 else len(data)]
    if plain and _PLAIN_SIZE.match(line) is None:
        return NO_SIZE, 0, CHUNK_SIZE_ODD
    if end < 0:
        return MORE, 0, 0
    match = _SIZE.match(line)
    if match is None or len(match.group(1)) > 15:
        return BAD_SIZE, 0, CHUNK_SIZE_ODD
    found = 0 if line.endswith(b"\r") else BARE_LF
    rest = match.group(2).removesuffix(b"\r")
    if start > at or line[:2] in (b"0x", b"0X") or line[0] == 43 or (rest and rest.lstrip(b" \t")[:1] != b";"):
        found |= CHUNK_SIZE_ODD
    return end + 1, int(match.group(1), 16), found
