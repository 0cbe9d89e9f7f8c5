# C types of parser.py.
# A flag is a char: a bint takes four bytes, and there may be a million of each object.

from http_capture.capture.source.block cimport Buffer
from http_capture.capture.reassembly cimport Consumer
from http_capture.capture.http.message cimport HeaderIndex, Message
from http_capture.capture.octets cimport Octets

cdef class Limits:
    cdef public long long max_head_bytes, search_bytes, max_decoded_bytes, max_ratio
    cdef public Py_ssize_t max_kept_bytes
    cdef public int keep
    cdef public HeaderIndex index
    cdef public dict textual
    cdef public object decoder_memory
    cdef public long long head_bytes, body_bytes, framing_bytes, skipped_bytes, tunnel_bytes, pending_bytes
    cdef public long long requests, responses, informational, resyncs, heads_too_large, headers_overflow, decoding_failures
    cdef bytes last_type, last_method, last_reason
    cdef bint last_wanted

    cdef bint wanted(self, bytes content_type)

cdef class Listener:
    cpdef int on_start(self, Parser parser) except? -1
    cpdef int on_role(self, Parser parser) except? -1
    cpdef int on_head(self, Parser parser, Message message) except? -1
    cpdef int on_end(self, Parser parser, Message message) except? -1
    cpdef int on_lost(self, Parser parser) except? -1
    cpdef int on_socks(self, Parser parser, int version) except? -1
    cpdef int on_target(self, Parser parser, str target) except? -1
    cpdef int on_inside(self, Parser parser, bint http) except? -1
    cpdef int is_answer(self, Parser parser) except? -1
    cpdef int on_end_of_stream(self, Parser parser, int reason, long long timestamp_ns) except? -1

cdef class Parser(Consumer):
    cdef public Limits limits
    cdef public Listener listener
    cdef public int role, state
    cdef public Message message
    cdef public long long remaining, position_seq, searched, skipped_ack
    cdef public unsigned char recognised, answers_09, start_lost
    cdef int then, framing
    cdef public int socks_version
    cdef unsigned char after_gap, undecided, plain_size, doubt
    cdef int before, blanks
    cdef bytearray pending
    cdef Py_ssize_t scanned, boundary, turn
    cdef long long head_gap, length
    cdef long long seq, older_ack, old_ack, old_ns, ack, now_ns

    cdef int set_up(self, Limits limits, Listener listener, int role) except? -1
    cpdef int proceed(self, int state) except? -1
    cdef int _again(self) except? -1
    cdef int _has_body(self) except? -1
    cdef Py_ssize_t _maybe_body(self, bytes data, Py_ssize_t at) except? -2
    cdef int _maybe_socks(self, int version) except? -1
    cdef Py_ssize_t _socks(self, bytes data, Py_ssize_t at) except? -2
    cdef Py_ssize_t _inside(self, bytes data, Py_ssize_t at) except? -2
    cdef int _feed(self, bytes data, long long seq, long long ack, long long timestamp_ns) except? -1
    cdef Py_ssize_t _head(self, bytes data, Py_ssize_t at) except? -2
    cdef bint _ends(self, bytes data, Py_ssize_t at) noexcept
    cdef int _version(self, bytes data, Py_ssize_t end) noexcept
    cdef long long _length(self, bytes head, int i) except? -2
    cdef int _odd_start(self, bytes data, Py_ssize_t at) except? -2
    cdef int _lacks_status(self) except? -1
    cdef int _short_answer(self, int reason) except? -1
    cdef Py_ssize_t _blanks(self, bytes data, Py_ssize_t at) except? -2
    cdef int _plausible(self, bytes data, Py_ssize_t at) except? -2
    cdef Py_ssize_t _take_09(self, bytes data, Py_ssize_t at) except? -2
    cdef Message _begin(self, Py_ssize_t at)
    cdef int _take_head(self, bytes head, Py_ssize_t at, int reason) except? -1
    cdef int _partial_head(self, int reason, long long length) except? -1
    cdef int _body_done(self) except? -1
    cdef int _malformed(self) except? -1
    cdef Py_ssize_t _odd_chunk_size(self, bytes data, Py_ssize_t at) except? -2
    cdef Py_ssize_t _open_chunk(self, Py_ssize_t at, Py_ssize_t end, long long size) except? -2
    cdef Py_ssize_t _not_chunked(self, Py_ssize_t at) except? -2
    cdef Py_ssize_t _chunk_size(self, bytes data, Py_ssize_t at) except? -2
    cdef Py_ssize_t _chunk_end(self, bytes data, Py_ssize_t at) except? -2
    cdef Py_ssize_t _trailers(self, bytes data, Py_ssize_t at) except? -2
    cdef Py_ssize_t _search(self, bytes data, Py_ssize_t at) except? -2
    cdef int _request_line(self, Message message, bytes head, Py_ssize_t end) except? -1
    cdef int _status_line(self, Message message, bytes head, Py_ssize_t end) except? -1
    cdef bint _fields(self, Message message, bytes head) except? -1
    cdef bint _codings(self, Message message, bytes head, bint sound) except? -1
    cdef list _values(self, bytes head, bytes name)
    cdef int _open_body(self, Message message) except? -1
    cdef int _body(self, Octets octets, Py_ssize_t start, Py_ssize_t end) except? -1
    cdef int _end(self, int reason) except? -1
    cdef int _lose(self) except? -1
    cdef int _skip_pending(self) except? -1

cdef Parser new_parser(Limits limits, Listener listener, int role)
