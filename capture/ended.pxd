# C types of ended.py.

from http_capture.capture.decode cimport Segment

cdef class Ended:
    cdef public Py_ssize_t count
    cdef public long long ended_ns, first
    cdef Py_ssize_t size, oldest, queued, place
    cdef long long mark
    cdef bint swapped
    cdef unsigned long long k0, k1, k2, k3, k4, k5, k6, k7, k8, k9
    cdef long long[::1] index, order

    cpdef bint find(self, Segment segment) except? -1
    cpdef int forget(self) except? -1
    cpdef bint remember(self, unsigned long long a_high, unsigned long long a_low, int a_port, unsigned long long b_high, unsigned long long b_low, int b_port, int ip_version, unsigned long long path, long long a_first, long long b_first, long long ended_ns) except? -1
    cpdef Py_ssize_t drop_before(self, long long time_ns) except? -1
    cpdef bint drop_oldest(self) except? -1
    cdef int _drop(self) except? -1
    cdef bint _is_known(self) except? -1
    cdef int _make_room(self) except? -1
    cdef bint _look(self) except? -1
    cdef Py_ssize_t _home(self, long long mark) noexcept
    cdef void _mark(self, unsigned long long a_high, unsigned long long a_low, unsigned long long a_port, unsigned long long b_high, unsigned long long b_low, unsigned long long b_port, unsigned long long ip_version, unsigned long long path) noexcept
