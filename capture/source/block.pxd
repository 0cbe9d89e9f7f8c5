# C types of block.py, for the modules that read a block frame by frame.

cdef class Buffer:
    cdef readonly object view
    cdef const unsigned char[::1] octets

cdef class Block:
    cdef readonly Buffer buffer
    cdef readonly Py_ssize_t count
    cdef readonly Py_ssize_t capacity
    cdef public object interface
    cdef long long[::1] offsets
    cdef long long[::1] captured
    cdef long long[::1] wire
    cdef long long[::1] timestamps_ns
    cdef long long[::1] links

    cpdef int lend(self, Buffer buffer) except? -1
    cpdef int lend_filled(self, Buffer buffer, Py_ssize_t count) except? -1
    cpdef bint full(self) noexcept
    cdef Py_ssize_t octets_length(self) noexcept
    cpdef int add(self, long long offset, long long captured, long long wire, long long timestamp_ns, long long link) except? -1
