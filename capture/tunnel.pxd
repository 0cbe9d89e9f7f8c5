# C types of tunnel.py.

from http_capture.capture.octets cimport Octets

cdef class Outer:
    cdef public int kind, inside, ip_version, source_port, destination_port
    cdef public long long id
    cdef public bint shared
    cdef public Py_ssize_t start
    cdef public unsigned long long source_high, source_low, destination_high, destination_low

    cdef int found(self, int kind, Py_ssize_t start, int inside, long long number, bint shared) noexcept

cdef int etherip(Outer outer, Octets octets, Py_ssize_t start, Py_ssize_t end) noexcept
cdef int gre(Outer outer, Octets octets, Py_ssize_t start, Py_ssize_t end) noexcept
cdef int mpls(Outer outer, Py_ssize_t start) noexcept
cdef int udp(Outer outer, Octets octets, Py_ssize_t start, Py_ssize_t end, long long length, int source, int destination) noexcept
cdef int _erspan_2(Outer outer, Octets octets, Py_ssize_t start, Py_ssize_t end, bint numbered) noexcept
cdef int _erspan_3(Outer outer, Octets octets, Py_ssize_t start, Py_ssize_t end) noexcept
cdef bint _fits(Outer outer, Octets octets, Py_ssize_t start, Py_ssize_t end, long long length) noexcept
cdef int _vxlan(Outer outer, Octets octets, Py_ssize_t start, Py_ssize_t end, bint generic) noexcept
cdef int _geneve(Outer outer, Octets octets, Py_ssize_t start, Py_ssize_t end) noexcept
cdef int _gtp_u(Outer outer, Octets octets, Py_ssize_t start, Py_ssize_t end, long long length) noexcept
cdef int _teredo(Outer outer, Octets octets, Py_ssize_t start, Py_ssize_t end, long long length) noexcept
cdef int _ayiya(Outer outer, Octets octets, Py_ssize_t start, Py_ssize_t end) noexcept
