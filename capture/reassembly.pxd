# C types of reassembly.py.
# A flag is a char: a bint takes four bytes, and there may be a million of each object.

from http_capture.capture.octets cimport prefetch_object
from http_capture.capture.source.block cimport Buffer

cdef class Consumer:
    cpdef int on_data(self, Buffer buffer, Py_ssize_t start, Py_ssize_t end, long long seq, long long ack, long long timestamp_ns) except? -1
    cpdef int on_gap(self, long long length, long long timestamp_ns, bint cut) except? -1
    cpdef int on_close(self, int reason, long long timestamp_ns) except? -1

cdef class Reassembly:
    cdef public long long payload_bytes, delivered_bytes, retransmitted_bytes, ignored_bytes, discarded_bytes
    cdef public long long gap_bytes, cut_bytes, gaps, buffered_bytes
    cdef public long long buffered_segments, retransmitted_segments, holes_given_up_for_memory
    cdef public long long urgent_bytes, conflicting_segments, conflicting_bytes
    cdef public int overlap
    cdef public long long max_buffered, max_buffered_per_direction

cdef class Piece:
    cdef public long long start, end, ack, timestamp_ns, begin, finish
    cdef public Buffer buffer
    cdef public bint cut

cdef class Stream:
    cdef public Reassembly totals
    cdef public Consumer consumer
    cdef public Stream peer
    cdef public unsigned char seen, started, closed, expected, from_syn
    cdef public long long next_seq, first_seq, position, fin_position, acked_position, ripe_position
    cdef public long long hole_since_ns, acked_since_ns
    cdef public list pieces
    cdef public long long buffered_bytes, retransmitted_bytes, gap_bytes, conflicts
    cdef long long differing, urgent_seq, turn_ack, opening_position
    cdef Py_ssize_t opening_left
    cdef bytes opening

    cdef int set_up(self, Reassembly totals) except? -1
    cpdef int start(self, long long seq) except? -1
    cpdef int segment(self, Buffer buffer, Py_ssize_t start, Py_ssize_t end, long long length, long long seq, long long ack, bint fin, long long timestamp_ns) except? -1
    cpdef int urgent(self, long long seq) except? -1
    cpdef bint ending(self) noexcept
    cpdef int end(self, long long timestamp_ns) except? -1
    cpdef long long received(self) except? -1
    cpdef bint behind(self, long long ack) noexcept
    cpdef int acknowledge(self, long long ack, long long timestamp_ns) except? -1
    cpdef bint drain(self, bint force, long long timestamp_ns) except? -1
    cpdef int begin(self, long long timestamp_ns) except? -1
    cpdef bint skip(self, int which, long long timestamp_ns) except? -1
    cpdef int flush(self, long long timestamp_ns) except? -1
    cpdef int close(self, int reason, long long timestamp_ns) except? -1
    cdef int _advanced(self, long long timestamp_ns) except? -1
    cdef bint _early(self, long long seq, long long ack, long long timestamp_ns) except? -1
    cdef int _deliver(self, Buffer buffer, Py_ssize_t start, Py_ssize_t end, long long ack, long long timestamp_ns) except? -1
    cdef int _gap(self, long long length, long long timestamp_ns, bint cut) except? -1
    cdef int _keep(self, Buffer buffer, Py_ssize_t start, Py_ssize_t end, long long cut, long long offset, long long ack, long long timestamp_ns) except? -1
    cdef int _deliver_urgent(self, Buffer buffer, Py_ssize_t start, Py_ssize_t end, long long seq, long long ack, long long timestamp_ns) except? -1
    cdef int _remember(self, Buffer buffer, Py_ssize_t start, Py_ssize_t end, long long ack) except? -1
    cdef int _compare(self, Buffer buffer, Py_ssize_t start, Py_ssize_t end, long long offset) except? -1
    cdef int _conflict(self) except? -1
    cdef int _insert(self, Py_ssize_t at, long long start, long long end, long long begin, long long finish, Buffer whole, long long ack, long long timestamp_ns) except? -1
    cdef int _overlap(self, Py_ssize_t at, long long start, long long end, long long begin, long long finish, Buffer whole, long long settled) except? -1
    cdef Piece _part(self, Piece old, long long start, long long end)
    cdef long long _piece_end(self, Py_ssize_t at) except? -1
    cdef int _finish(self, long long timestamp_ns) except? -1
    cdef long long _piece_start(self, Py_ssize_t at) except? -1
    cdef int _drop_before(self) except? -1
    cdef int _forget(self) except? -1

cdef Stream new_stream(Reassembly totals)

cdef inline void prefetch_reader(Stream stream) noexcept:
    prefetch_object(<void *>stream.consumer)
    prefetch_object(<void *>stream.opening)
