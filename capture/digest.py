"""Two hashes, for ids. The standard library's here; compiled modules take the forms in digest.pxd in, because making a
hash object costs more than hashing a head (measured: 6,500 of 13,500 instructions an id, 3,500 of 4,500 a connection).
A test holds both to the standard library.
"""

from __future__ import annotations

from base64 import b64encode
from hashlib import blake2b, sha1

from .octets import Room

MAX_SHA1_BYTES = 55  # what fits into one block


def blake2b_128(room: Room, at: int, start: int, end: int) -> None:
    """room[at : at + 32] becomes the BLAKE2b digest of 16 bytes (RFC 7693) of room[start:end], in hexadecimal."""
    room[at : at + 32] = blake2b(bytes(room[start:end]), digest_size=16).hexdigest().encode()


def sha1_base64(room: Room, at: int, start: int, end: int) -> None:
    """room[at : at + 28] becomes the SHA-1 digest (RFC 3174) of room[start:end], at most MAX_SHA1_BYTES, in base64.
    For the Community ID, which is defined with it; nothing is kept secret by it."""
    room[at : at + 28] = b64encode(sha1(bytes(room[start:end]), usedforsecurity=False).digest())
