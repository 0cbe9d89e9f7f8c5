# C types of message.py.

cdef class HeaderIndex:
    cdef public int count, capacity
    cdef public bint overflow
    cdef public long long malformed
    cdef int[::1] spans

    cpdef int scan(self, bytes head, Py_ssize_t start) except? -1
    cdef int name_start(self, int i) noexcept
    cdef int name_end(self, int i) noexcept
    cdef int value_start(self, int i) noexcept
    cdef int value_end(self, int i) noexcept
    cdef int name_hash(self, int i) noexcept
    cpdef bytes name(self, bytes head, int i)
    cpdef bytes value(self, bytes head, int i)

cdef class Message:
    cdef public int role
    cdef public bytes head
    cdef public Py_ssize_t headers_start
    cdef public long long seq, ack, first_ns, last_ns
    cdef public int version, status
    cdef public bytes method, target, reason
    cdef public bytes host, content_type, content_encoding, user_agent, referer
    cdef public bint chunked, close, upgrade, keep, ended, framed_by_close
    cdef public long long content_length
    cdef public long long body_bytes, wire_bytes, gap_bytes
    cdef public bint cut
    cdef public int incomplete
    cdef public bytearray kept
    cdef public object decoder
    cdef public Py_ssize_t kept_limit
