# C types of ring.py.

from http_capture.capture.source.block cimport Block, Buffer

cdef extern from *:
    """
    static void http_capture_ring_fence(void) { __atomic_thread_fence(__ATOMIC_ACQ_REL); }
    """
    void fence "http_capture_ring_fence" () noexcept

cdef class RingWalker:
    cdef readonly Buffer buffer
    cdef unsigned char[::1] octets
    cdef unsigned short[::1] halves
    cdef unsigned int[::1] words
    cdef long long block_bytes
    cdef long long ring_bytes
    cdef long long link
    cdef bint skip_outgoing
    cdef long long start
    cdef long long position
    cdef long long left
    cdef bint consumed
    cdef long long oldest
    cdef readonly long long kept
    cdef readonly long long frames
    cdef readonly long long bytes
    cdef readonly long long outgoing
    cdef readonly long long malformed

    cpdef bint ready(self) except? -1
    cpdef long long waiting(self) except? -1
    cpdef int release(self) except? -1
    cpdef int keep(self) except? -1
    cpdef int give_back(self, long long count) except? -1
    cpdef long long fill(self, Block block) except? -1
    cdef bint put_tag_back(self, long long position, long long offset) noexcept
