# C types of message.py.

from http_capture.capture.octets cimport Octets

cdef class HeaderIndex:
    cdef public int count, capacity
    cdef public bint overflow, folded, undecided
    cdef public int anomalies, lines
    cdef int[::1] spans

    cpdef Py_ssize_t scan(self, bytes data, Py_ssize_t start, Py_ssize_t base, bint framing=*) except? -2
    cpdef bint named(self, bytes head, int i, bytes name) noexcept
    cdef Py_ssize_t _scanned(self, int count, int lines, int anomalies, Py_ssize_t end) noexcept
    cdef int name_start(self, int i) noexcept
    cdef int name_end(self, int i) noexcept
    cdef int value_start(self, int i) noexcept
    cdef int value_end(self, int i) noexcept
    cdef int name_hash(self, int i) noexcept
    cpdef bytes name(self, bytes head, int i)
    cpdef bytes value(self, bytes head, int i, bytes last=*)

cdef int _goes_on(bytes data, Py_ssize_t at, Py_ssize_t end) noexcept
cdef Py_ssize_t _folded_colon(bytes data, Py_ssize_t at, Py_ssize_t end) noexcept

cdef class Message:
    cdef public int role
    cdef public bytes head
    cdef public Py_ssize_t headers_start
    cdef public long long seq, ack, first_ns, last_ns
    cdef public int version, status
    cdef public bytes method, target, reason
    cdef public bytes content_type, content_encoding
    cdef public bint chunked, keep, ended, framed_by_close
    cdef public long long content_length
    cdef public long long body_bytes, wire_bytes, gap_bytes
    cdef public bint cut
    cdef public int incomplete, anomalies
    cdef public bytearray kept
    cdef public object decoder
    cdef public Py_ssize_t kept_bytes

    cdef int set_up(self, int role) except? -1
    cdef int keep_octets(self, Octets octets, Py_ssize_t start, Py_ssize_t end) except? -1

cdef Message new_message(int role)
