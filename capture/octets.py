"""Copies of a few bytes. Plain Python here; compiled modules take the forms in octets.pxd in, without slice objects.

A slice of bytes costs five times as much through Python's slicing (measured: 250 ns against 50 ns), and there are some
twenty of them in each exchange. Bounds are the caller's: 0 <= start <= end <= length.
"""


def part(data: bytes, start: int, end: int) -> bytes:
    """data[start:end]."""
    return data[start:end]


def copied(octets: memoryview | bytearray, start: int, end: int) -> bytes:
    """octets[start:end] as bytes of its own; octets: a memoryview or a bytearray."""
    return bytes(octets[start:end])


def put(octets: memoryview | bytearray, at: int, data: bytes, start: int, end: int) -> None:
    """octets[at:] becomes data[start:end]; there is room for it."""
    octets[at : at + end - start] = data[start:end]
