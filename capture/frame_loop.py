"""The frames of one block, one after the other: decode, put fragments together, leave out what the mirror has sent
twice, hand segments to their connection."""

from typing import Any

import cython

if cython.compiled:
    from cython.cimports.http_capture.capture.connection import ConnectionTable
    from cython.cimports.http_capture.capture.decode import Decoder
    from cython.cimports.http_capture.capture.mirror import MirrorCopies
    from cython.cimports.http_capture.capture.source.block import Block
else:
    from .connection import ConnectionTable
    from .decode import Decoder
    from .mirror import MirrorCopies
    from .source.block import Block
from .defrag import Defragmenter


@cython.final
@cython.cclass
class FrameLoop:
    """frames + datagrams put together = filtered + decoder.segments + decoder.fragments + drops of the decoder.

    `matches(frame bytes, wire length, link type) -> bool` is the filter of a replay, or None; a NIC's frames are
    filtered by the kernel.
    """

    def __init__(
        self, decoder: Decoder, defragmenter: Defragmenter, copies: MirrorCopies, connections: ConnectionTable,
        matches: Any = None,
    ) -> None:  # fmt: skip
        self.decoder = decoder
        self.defragmenter = defragmenter
        self.copies = copies
        self.connections = connections
        self.matches = matches
        self.frames = self.frame_bytes = self.filtered = 0

    @cython.ccall
    @cython.exceptval(-1)
    def run(self, block: Block) -> cython.int:
        """Takes all frames of the block."""
        decoder: Decoder = self.decoder
        copies: MirrorCopies = self.copies
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
                if not copies.is_copy(decoder.segment):
                    connections.segment(decoder.segment)
            elif result == 1:
                self._fragment(block.timestamps_ns[i])
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def _fragment(self, timestamp_ns: cython.longlong) -> cython.int:
        """A datagram that is whole now may be a tunnel that carries a fragment of another, as deep as tunnels go."""
        decoder: Decoder = self.decoder
        result: cython.int = 1
        while result == 1:
            whole = self.defragmenter.add(
                decoder.fragment_key(),
                decoder.fragment_offset,
                decoder.fragment_more,
                decoder.fragment_payload(),
                timestamp_ns,
            )
            if whole is None:
                return 0
            result = decoder.decode_datagram(whole)
        if result == 0 and not self.copies.is_copy(decoder.segment):
            self.connections.segment(decoder.segment)
        return 0
