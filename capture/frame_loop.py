"""The frames of one block, one after the other: decode, put fragments together, hand segments to their connection."""

from typing import Any

import cython

if cython.compiled:
    from cython.cimports.http_capture.capture.connection import ConnectionTable
    from cython.cimports.http_capture.capture.decode import Decoder
    from cython.cimports.http_capture.capture.source.block import Block
else:
    from .connection import ConnectionTable
    from .decode import Decoder
    from .source.block import Block
from .defrag import Defragmenter


@cython.cclass
class FrameLoop:
    """frames = filtered + decoder.segments + decoder.fragments + drops of the decoder, at any time.

    `matches(frame bytes, wire length, link type) -> bool` is the filter of a replay, or None; a NIC's frames are
    filtered by the kernel.
    """

    def __init__(
        self, decoder: Decoder, defragmenter: Defragmenter, connections: ConnectionTable, matches: Any = None
    ) -> None:
        self.decoder = decoder
        self.defragmenter = defragmenter
        self.connections = connections
        self.matches = matches
        self.frames = self.frame_bytes = self.filtered = 0

    @cython.ccall
    @cython.exceptval(-1)
    def run(self, block: Block) -> cython.int:
        """Takes all frames of the block."""
        decoder: Decoder = self.decoder
        connections: ConnectionTable = self.connections
        i: cython.Py_ssize_t
        result: cython.int
        for i in range(block.count):
            self.frames += 1
            self.frame_bytes += block.captured[i]
            if self.matches is not None and not self.matches(
                bytes(block.buffer.view[block.offsets[i] : block.offsets[i] + block.captured[i]]),
                block.wire[i],
                block.links[i],
            ):
                self.filtered += 1
                continue
            result = decoder.decode(block, i)
            if result == 0:
                connections.segment(decoder.segment)
            elif result == 1:
                self._fragment(block.timestamps_ns[i])
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def _fragment(self, timestamp_ns: cython.longlong) -> cython.int:
        decoder: Decoder = self.decoder
        whole = self.defragmenter.add(
            decoder.fragment_key(),
            decoder.fragment_offset,
            decoder.fragment_more,
            decoder.fragment_payload(),
            timestamp_ns,
        )
        if whole is not None and decoder.decode_datagram(whole) == 0:
            self.connections.segment(decoder.segment)
        return 0
