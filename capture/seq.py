"""Arithmetic on TCP sequence numbers: integers from 0 to 2^32-1 that wrap (RFC 9293 section 3.4).

Nothing else in the program adds, subtracts or compares sequence numbers. Plain Python here; compiled modules take the
forms in seq.pxd in.
"""

_MASK = 0xFFFFFFFF
_HALF = 0x80000000


def difference(a: int, b: int) -> int:
    """How far a is ahead of b, from -2^31 to 2^31-1: negative where a comes before b."""
    return (((a - b) + _HALF) & _MASK) - _HALF


def advance(a: int, n: int) -> int:
    """The sequence number n bytes after a; n may be negative."""
    return (a + n) & _MASK
