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
    cdef public Py_ssize_t many
    cdef readonly list ring
    cdef Py_ssize_t first, behind

    cpdef int run(self, Block block) except? -1
    cdef int _decode(self, Block block, Py_ssize_t i) except? -1
    cdef int _take(self, Segment segment) except? -1
    cdef int _run_ahead(self, Block block) except? -1
    cdef int _take_first(self) except? -1
    cdef bint _is_left_out(self, Segment segment) except? -1
    cdef int _tell_time(self, long long timestamp_ns) except? -1
    cdef int _fragment(self, long long timestamp_ns) except? -1
