# C types of encode.py.

from http_capture.capture.connection cimport Connection
from http_capture.capture.http.exchange cimport Exchange, HttpConnection
from http_capture.capture.http.message cimport HeaderIndex, Message
from http_capture.capture.octets cimport Octets, Room

cdef class Encoder:
    cdef public bytes key, value, event_id
    cdef public list headers
    cdef public long long timestamp_ms
    cdef bytearray out
    cdef Room room
    cdef Py_ssize_t at, size
    cdef HeaderIndex index
    cdef bytes observer, tail
    cdef object host_header, iface_header, instance_header, schema_header, quote, send
    cdef bytes host, agent, referer
    cdef int[::1] seen
    cdef int round
    cdef int key_kind, anomalies
    cdef public bint without_bodies
    cdef public long long bodies_shed
    cdef bint redact, keep_unknown, body_left_out
    cdef frozenset redact_headers, redact_names, url_headers
    cdef bytes header_table, secret_table
    cdef dict mime_types, sites
    cdef list redacted, url_names, recent_sites
    cdef bytes second, last_content_type, last_mime_type
    cdef long long second_ns

    cpdef bytes encode(self, Exchange exchange)
    cpdef object deliver(self, Exchange exchange)
    cdef int _reserve(self, Py_ssize_t size) except? -1
    cdef int _put(self, bytes data) except? -1
    cdef int _integer(self, long long value) except? -1
    cdef int _time(self, long long ns) except? -1
    cdef bint _ascii(self, bytes data, Py_ssize_t start, Py_ssize_t end) except? -1
    cdef bint _content(self, Octets octets, Py_ssize_t size, bint cut) except? -1
    cdef int _text(self, bytes data, Py_ssize_t start, Py_ssize_t end) except? -1
    cdef int _string(self, bytes data) except? -1
    cdef int _fields(self, bytes head, Py_ssize_t start) except? -1
    cdef int _field_value(self, bytes head, int i) except? -1
    cdef int _url(self, Message request, bytes host) except? -1
    cdef int _target(self, bytes target, Py_ssize_t start, Py_ssize_t end, bint same) except? -1
    cdef tuple _site(self, bytes scheme, bytes authority)
    cdef bint _suspicious(self, bytes pairs, Py_ssize_t at) noexcept
    cdef int _body(self, Message message) except? -1
    cdef int _timing(self, Exchange exchange, Connection connection) except? -1
    cdef bytes _clean(self, bytes target)
    cdef bytes _clean_authority(self, bytes target)
    cdef bytes _clean_pairs(self, bytes pairs)
    cdef bytes _mime_type(self, bytes content_type)
    cdef int _identify(self, HttpConnection conversation) except? -1
    cdef int _tunnels(self, tuple outers, bint swapped, list proxies) except? -1
    cdef bytes _cut(self, Py_ssize_t begin)
    cdef int _part(self, bytes data, Py_ssize_t start, Py_ssize_t end) except? -1
    cdef bint _plain_fields(self, bytes head, Py_ssize_t start) except? -1
    cdef int _any_fields(self, bytes head, Py_ssize_t start) except? -1
    cdef int _first_round(self) except? -1
    cdef bint _is_redacted(self, Room room, Py_ssize_t at, Py_ssize_t size, int h) except? -1
    cdef int _special_value(self, bytes name, bytes value) except? -1
    cdef int _again(self, Py_ssize_t begin, Py_ssize_t end) except? -1

cdef Py_ssize_t _address(Room room, Py_ssize_t at, bint v4, unsigned long long high, unsigned long long low) except? -1
cdef Py_ssize_t _packed(Room room, Py_ssize_t at, bint v4, unsigned long long high, unsigned long long low) noexcept

cdef extern from *:
    """
    /* A macro, so that the length of each text is a constant: no call and no loop is left of it. */
    #define hc_literal(encoder, text) \
        (memcpy((encoder)->room + (encoder)->at, text, strlen(text)), (encoder)->at += (Py_ssize_t)strlen(text), 0)
    """
    int literal "hc_literal"(Encoder encoder, const char *text) noexcept
