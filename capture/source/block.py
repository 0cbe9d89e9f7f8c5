"""A block of frames: one buffer, and where each frame lies in it.

Invariants of a block that is lent:
- `0 <= offsets[i]` and `offsets[i] + captured[i] <= len(buffer)` for each `i < count`: readers rely on it unchecked.
- `captured[i] <= wire[i]`.
- The bytes belong to the source and hold until its next `read()`; whoever keeps bytes copies them.
"""

from array import array
from typing import Any

import cython

INDEX_BYTES = 40
"""What a block needs for each frame beside its bytes: five numbers."""


@cython.cclass
class Buffer:
    """Contiguous bytes: `octets[i]` is a C access in compiled modules, `view` a memoryview."""

    def __init__(self, data: object) -> None:
        self.view = memoryview(data)  # type: ignore[arg-type]
        self.octets = self.view


@cython.cclass
class Block:
    """Up to `capacity` frames in one buffer.

    offsets, captured, wire: bytes; timestamps_ns: ns since 1970 UTC; links: the link type (LINKTYPE_ number) of each.
    `interface` is the name of the NIC that they came from, or None.
    """

    def __init__(self, capacity: cython.Py_ssize_t, memory: Any = None) -> None:
        """`memory`: where the arrays lie, INDEX_BYTES for each frame; shared by processes, for example."""
        self.capacity = capacity
        self.count = 0
        self.interface = None
        self.buffer = Buffer(b"")
        numbers: Any = array("q", bytes(INDEX_BYTES * capacity))
        if memory is not None:
            numbers = memoryview(memory).cast("q")
        parts = memoryview(numbers)
        self.offsets = parts[:capacity]
        self.captured = parts[capacity : 2 * capacity]
        self.wire = parts[2 * capacity : 3 * capacity]
        self.timestamps_ns = parts[3 * capacity : 4 * capacity]
        self.links = parts[4 * capacity : 5 * capacity]

    @cython.ccall
    @cython.exceptval(-1)
    def lend(self, buffer: Buffer) -> cython.int:
        """Starts an empty block on this buffer."""
        self.buffer = buffer
        self.count = 0
        return 0

    @cython.ccall
    @cython.exceptval(-1)
    def lend_filled(self, buffer: Buffer, count: cython.Py_ssize_t) -> cython.int:
        """Starts a block of `count` frames that another block has added with the same buffer and the same memory."""
        if count < 0 or count > self.capacity:
            raise ValueError("more frames than a block holds")
        self.buffer = buffer
        self.count = count
        return 0

    @cython.ccall
    @cython.exceptval(check=False)
    def full(self) -> cython.bint:
        return self.count >= self.capacity

    @cython.ccall
    @cython.exceptval(-1)
    def add(
        self, offset: cython.longlong, captured: cython.longlong, wire: cython.longlong,
        timestamp_ns: cython.longlong, link: cython.longlong,
    ) -> cython.int:  # fmt: skip
        """Adds a frame. Raises ValueError where it does not lie inside the buffer or the block is full (our bug)."""
        i: cython.Py_ssize_t = self.count
        if i >= self.capacity or offset < 0 or captured < 0 or offset + captured > self.octets_length():
            raise ValueError("frame outside its block")
        self.offsets[i] = offset
        self.captured[i] = captured
        self.wire[i] = wire if wire > captured else captured
        self.timestamps_ns[i] = timestamp_ns
        self.links[i] = link
        self.count = i + 1
        return 0

    @cython.cfunc
    @cython.exceptval(check=False)
    def octets_length(self) -> cython.Py_ssize_t:
        return self.buffer.octets.shape[0]

    def frames(self) -> list[tuple[bytes, int, int, int]]:
        """Copies of all frames as (bytes, wire length, timestamp, link type): for tests and for people."""
        return [
            (
                bytes(self.buffer.view[self.offsets[i] : self.offsets[i] + self.captured[i]]),
                self.wire[i],
                self.timestamps_ns[i],
                self.links[i],
            )
            for i in range(self.count)
        ]
