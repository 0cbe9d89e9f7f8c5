"""Walks the blocks of a TPACKET_V3 ring: the frames in a ring block become entries of a Block, without a copy.

The ring is `ring_bytes / block_bytes` blocks that kernel and reader fill and empty in turn. Who owns a block is in its
`block_status`: 0 the kernel, bit 0 the reader. States of the walker, for the ring block at `start`:

    waiting    left == 0, not consumed    the kernel may still own it
    walking    left > 0                   `left` frames from `position` on have not been lent
    consumed   left == 0, consumed        all of it is lent; it goes back to the kernel at `release()`
    kept       behind `start`             lent, and `keep()` has gone on; back to the kernel at `give_back()`

Invariants:
- Ring blocks go back to the kernel in their order. `release()` is for a reader that lends one at a time, `keep()` and
  `give_back()` for one that lends many: a reader uses one of the two.
- A frame that is lent lies inside its own ring block, whatever the headers say; a header that would lead outside is
  counted in `malformed`.
- Each frame of a ring block is in exactly one of `frames`, `outgoing`, `malformed`.
- One ring block costs at most `block_bytes / 48` steps.

Layout (linux/if_packet.h; integers in the order of the machine): tpacket_block_desc has block_status at 8, num_pkts at
12, offset_to_first_pkt at 16. tpacket3_hdr, 8-aligned, has tp_next_offset at 0, tp_sec 4, tp_nsec 8, tp_snaplen 12,
tp_len 16, tp_status 20, tp_mac (16 bits) 24, tp_vlan_tci 32, tp_vlan_tpid (16 bits) 36; at 48 follows a sockaddr_ll of
20 bytes with the packet type at 10.
"""

import cython

if cython.compiled:
    from cython.cimports.http_capture.capture.source.block import Block, Buffer
else:
    from .block import Block, Buffer

    def fence() -> None:
        """Compiled: orders the reads and writes of a block against those of its status. Here the interpreter does."""


BLOCK_DESC_BYTES = cython.declare(cython.longlong, 48)
FRAME_DESC_BYTES = cython.declare(cython.longlong, 48)
HEADER_BYTES = cython.declare(cython.longlong, 68)  # tpacket3_hdr and sockaddr_ll
STATUS_USER = cython.declare(cython.longlong, 1)
STATUS_VLAN_VALID = cython.declare(cython.longlong, 1 << 4)
STATUS_VLAN_TPID_VALID = cython.declare(cython.longlong, 1 << 6)
PACKET_OUTGOING = cython.declare(cython.longlong, 4)
ADDRESS_BYTES = cython.declare(cython.longlong, 12)
TAG_BYTES = cython.declare(cython.longlong, 4)
TPID_8021Q = cython.declare(cython.longlong, 0x8100)
LINKTYPE_ETHERNET = cython.declare(cython.longlong, 1)
NS_PER_SECOND = cython.declare(cython.longlong, 1000000000)


@cython.cclass
class RingWalker:
    """One reader of one ring.

    `ring` is the mapping: writable, its length a multiple of `block_bytes`, which is a multiple of 8. Every frame gets
    the link type `link`. With `skip_outgoing` the frames that the kernel marks as sent by this host are left out.

    frames, bytes: lent, and their captured bytes. outgoing: left out. malformed: not lent for their header.
    """

    def __init__(self, ring: object, block_bytes: int, link: int, skip_outgoing: bool) -> None:
        view = memoryview(ring)  # type: ignore[arg-type]
        if view.readonly or block_bytes < 128 or block_bytes % 8 or len(view) < block_bytes or len(view) % block_bytes:
            raise ValueError("not a ring of whole, writable blocks")
        self.buffer = Buffer(view)
        self.octets = view
        self.halves = view.cast("H")
        self.words = view.cast("I")
        self.block_bytes = block_bytes
        self.ring_bytes = len(view)
        self.link = link
        self.skip_outgoing = skip_outgoing
        self.start = 0
        self.position = 0
        self.left = 0
        self.consumed = False
        self.oldest = 0
        self.kept = 0
        self.frames = 0
        self.bytes = 0
        self.outgoing = 0
        self.malformed = 0

    @cython.ccall
    @cython.exceptval(-1)
    def ready(self) -> cython.bint:
        """True where `fill()` has frames to lend without the kernel doing anything (after `release()` or `keep()`)."""
        if self.left > 0:
            return True
        if self.consumed or self.kept * self.block_bytes >= self.ring_bytes:  # all of it is lent
            return False
        return (self.words[(self.start >> 2) + 2] & STATUS_USER) != 0

    @cython.ccall
    @cython.exceptval(-1)
    def waiting(self) -> cython.longlong:
        """Ring blocks that the kernel has handed over, but for the one at hand and those kept. It fills them in their
        order, so the first that it has not is searched by halves."""
        low: cython.longlong = 1
        high: cython.longlong = self.ring_bytes // self.block_bytes - self.kept
        middle: cython.longlong
        at: cython.longlong
        while low < high:
            middle = (low + high) >> 1
            at = self.start + middle * self.block_bytes
            if at >= self.ring_bytes:
                at -= self.ring_bytes
            if (self.words[(at >> 2) + 2] & STATUS_USER) != 0:
                low = middle + 1
            else:
                high = middle
        return low - 1

    @cython.ccall
    @cython.exceptval(-1)
    def keep(self) -> cython.int:
        """Goes on from a consumed ring block, which stays lent. Returns how many that were: 0 or 1."""
        if not self.consumed:
            return 0
        self.start += self.block_bytes
        if self.start >= self.ring_bytes:
            self.start = 0
        self.consumed = False
        self.kept += 1
        return 1

    @cython.ccall
    @cython.exceptval(-1)
    def give_back(self, count: cython.longlong) -> cython.int:
        """Gives the oldest `count` kept ring blocks back to the kernel."""
        if count > self.kept:
            raise ValueError("more ring blocks than are lent")
        fence()
        while count > 0:
            self.words[(self.oldest >> 2) + 2] = 0
            self.oldest += self.block_bytes
            if self.oldest >= self.ring_bytes:
                self.oldest = 0
            self.kept -= 1
            count -= 1
        return 0

    @cython.ccall
    @cython.exceptval(-1)
    def release(self) -> cython.int:
        """Gives a consumed ring block back to the kernel: what `fill()` lent of it is no longer valid."""
        if self.consumed:
            fence()
            self.words[(self.start >> 2) + 2] = 0
            self.start += self.block_bytes
            if self.start >= self.ring_bytes:
                self.start = 0
            self.consumed = False
        return 0

    @cython.ccall
    @cython.exceptval(-1)
    def fill(self, block: Block) -> cython.longlong:
        """Releases what was lent, then lends the frames of one ring block, or as many as `block` takes; the rest of
        them at the next call. Offsets are from the start of the ring. Returns the number of frames: 0 where the kernel
        has not closed the ring block yet, or nothing in it is to be lent."""
        end: cython.longlong
        position: cython.longlong
        word: cython.longlong
        next_offset: cython.longlong
        captured: cython.longlong
        wire: cython.longlong
        mac: cython.longlong
        offset: cython.longlong
        seconds: cython.longlong
        self.release()
        block.lend(self.buffer)
        if self.left == 0:
            if not self.ready():
                return 0
            fence()
            word = self.start >> 2
            self.left = self.words[word + 3]
            if self.left > self.block_bytes // FRAME_DESC_BYTES:
                self.left = self.block_bytes // FRAME_DESC_BYTES
            next_offset = self.words[word + 4]
            self.position = self.start + next_offset
        end = self.start + self.block_bytes
        while self.left > 0 and not block.full():
            position = self.position
            if (position & 7) != 0 or position < self.start + BLOCK_DESC_BYTES or position > end - HEADER_BYTES:
                self.malformed += self.left
                self.left = 0
                break
            word = position >> 2
            next_offset = self.words[word]
            captured = self.words[word + 3]
            wire = self.words[word + 4]
            mac = self.halves[(position >> 1) + 12]
            offset = position + mac
            if mac < HEADER_BYTES or captured > end - offset:
                self.malformed += 1
            elif self.skip_outgoing and self.octets[position + 58] == PACKET_OUTGOING:
                self.outgoing += 1
            else:
                if (
                    (self.words[word + 5] & STATUS_VLAN_VALID) != 0
                    and self.link == LINKTYPE_ETHERNET
                    and mac >= HEADER_BYTES + TAG_BYTES
                    and captured >= ADDRESS_BYTES
                ):
                    self.put_tag_back(position, offset)
                    offset -= TAG_BYTES
                    captured += TAG_BYTES
                    wire += TAG_BYTES
                seconds = self.words[word + 1]
                block.add(offset, captured, wire, seconds * NS_PER_SECOND + self.words[word + 2], self.link)
                self.frames += 1
                self.bytes += captured
            self.left -= 1
            if self.left > 0 and next_offset < FRAME_DESC_BYTES:
                self.malformed += self.left
                self.left = 0
            self.position = position + next_offset
        self.consumed = self.left == 0
        return block.count

    @cython.cfunc
    @cython.exceptval(check=False)
    def put_tag_back(self, position: cython.longlong, offset: cython.longlong) -> cython.bint:
        """The kernel took the outer VLAN tag off into the header at `position`: moves the addresses of the frame at
        `offset` down by 4 bytes and writes the tag behind them. The 4 bytes before the frame must be free."""
        i: cython.longlong
        tpid: cython.longlong = TPID_8021Q
        tci: cython.longlong = self.words[(position >> 2) + 8]
        if (self.words[(position >> 2) + 5] & STATUS_VLAN_TPID_VALID) != 0:
            tpid = self.halves[(position >> 1) + 18]
        offset -= TAG_BYTES
        for i in range(ADDRESS_BYTES):
            self.octets[offset + i] = self.octets[offset + TAG_BYTES + i]
        self.octets[offset + 12] = (tpid >> 8) & 255
        self.octets[offset + 13] = tpid & 255
        self.octets[offset + 14] = (tci >> 8) & 255
        self.octets[offset + 15] = tci & 255
        return True
