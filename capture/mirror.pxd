# C types of mirror.py.

from http_capture.capture.decode cimport Segment

cdef class MirrorCopies:
    cdef public long long window_ns, segments, payload_bytes
    cdef unsigned long long k0, k1, k2, k3, k4, k5, k6
    cdef long long[::1] slots

    cpdef bint is_copy(self, Segment segment) except? -1
    cpdef int prefetch(self, Segment segment) except? -1
