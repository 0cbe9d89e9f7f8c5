# C types of frame_loop.py.

from http_capture.capture.connection cimport ConnectionTable
from http_capture.capture.decode cimport Decoder, Segment
from http_capture.capture.mirror cimport MirrorCopies
from http_capture.capture.source.block cimport Block

cdef class FrameLoop:
    cdef public Decoder decoder
    cdef public MirrorCopies copies
    cdef public ConnectionTable connections
    cdef public object defragmenter
    cdef public object matches
    cdef public long long frames, frame_bytes, filtered, elsewhere, shed, shed_bytes, shed_connections
    cdef readonly long long workers
    cdef readonly unsigned long long kept
    cdef unsigned long long number, key
    cdef bint takes_all

    cpdef int run(self, Block block) except? -1
    cdef bint _is_left_out(self, Segment segment) except? -1
    cdef int _fragment(self, long long timestamp_ns) except? -1
