# C types of files.py.

from http_capture.capture.source.block cimport Block, Buffer

cdef class PcapWalker:
    cdef readonly object damage
    cdef readonly Py_ssize_t needed
    cdef readonly long long frame_bytes
    cdef bint big
    cdef bint started
    cdef Py_ssize_t header_bytes
    cdef long long unit_ns
    cdef long long link

    cpdef Py_ssize_t walk(self, Buffer buffer, Py_ssize_t start, Py_ssize_t end, Block block) except? -1

cdef class PcapngWalker:
    cdef readonly object damage
    cdef readonly Py_ssize_t needed
    cdef readonly long long frame_bytes
    cdef bint big
    cdef Py_ssize_t interface_count
    cdef Py_ssize_t interface_room
    cdef long long[::1] interfaces
    cdef long long last_ns

    cpdef Py_ssize_t walk(self, Buffer buffer, Py_ssize_t start, Py_ssize_t end, Block block) except? -1
    cdef int section(self, Buffer buffer, Py_ssize_t at, Py_ssize_t total) except -1
    cdef int interface(self, Buffer buffer, Py_ssize_t at, Py_ssize_t total) except -1
    cdef int packet(self, Buffer buffer, Py_ssize_t at, Py_ssize_t total, bint enhanced, Block block) except -1
    cdef int simple_packet(self, Buffer buffer, Py_ssize_t at, Py_ssize_t total, Block block) except -1
    cdef int fits(self, long long captured, long long room) except -1
    cdef long long time_ns(self, Py_ssize_t row, unsigned long long high, unsigned long long low) noexcept
