# The C forms of octets.py.

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.string cimport memcpy

cdef inline bytes part(bytes data, Py_ssize_t start, Py_ssize_t end):
    return PyBytes_FromStringAndSize(PyBytes_AS_STRING(data) + start, end - start)

cdef inline bytes copied(const unsigned char[::1] octets, Py_ssize_t start, Py_ssize_t end):
    if end <= start:
        return b""
    return PyBytes_FromStringAndSize(<const char *>&octets[start], end - start)

cdef inline void put(unsigned char[::1] octets, Py_ssize_t at, bytes data, Py_ssize_t start, Py_ssize_t end) noexcept:
    if end > start:
        memcpy(&octets[at], PyBytes_AS_STRING(data) + start, end - start)
