# C types of mirror.py.

from http_capture.capture.decode cimport Segment
from http_capture.capture.source.block cimport Buffer

cdef class MirrorCopies:
    cdef public long long window_ns, segments, payload_bytes
    cdef unsigned long long key
    cdef unsigned long long[::1] fingerprints
    cdef long long[::1] times_ns

    cpdef bint is_copy(self, Segment segment) except? -1
    cdef unsigned long long _mix(self, unsigned long long fingerprint, unsigned long long value) noexcept
    cdef unsigned long long _eight(self, Buffer buffer, Py_ssize_t at) noexcept
