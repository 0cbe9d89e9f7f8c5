"""Arithmetic on TCP sequence numbers: integers from 0 to 2^32-1 that wrap (RFC 9293 section 3.4).

Nothing else in the program adds, subtracts or compares sequence numbers.
"""

import cython

_MASK = cython.declare(cython.longlong, 0xFFFFFFFF)
_HALF = cython.declare(cython.longlong, 0x80000000)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def difference(a: cython.longlong, b: cython.longlong) -> cython.longlong:
    """How far a is ahead of b, from -2^31 to 2^31-1: negative where a comes before b."""
    return (((a - b) + _HALF) & _MASK) - _HALF


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def advance(a: cython.longlong, n: cython.longlong) -> cython.longlong:
    """The sequence number n bytes after a; n may be negative."""
    return (a + n) & _MASK
