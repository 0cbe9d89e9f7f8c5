# C types of connection.py.
# A flag is a char: a bint takes four bytes, and there may be a million of each object.

from http_capture.capture.decode cimport Segment
from http_capture.capture.ended cimport Ended
from http_capture.capture.octets cimport prefetch_object
from http_capture.capture.reassembly cimport Reassembly, Stream

cdef class Connection:
    cdef public Connection next_in_slot, older, newer
    cdef public int queue
    cdef public long long slot
    cdef public long long touched_ns, reset_ns, syn_ns, syn_ack_ns, handshake_ns
    cdef public int ip_version, a_port, b_port, vlan, inner_vlan
    cdef public unsigned long long a_high, a_low, b_high, b_low, path
    cdef public tuple outers
    cdef public Stream forward, backward
    cdef public int client
    cdef public unsigned char midstream, opened, ignored, done, waiting
    cdef public long long pending_syn, pending_ns, pending_length, a_first, b_first, reset_seq
    cdef public unsigned char pending_from_a, reset_from_a
    cdef public object application

    cdef int set_up(self) except? -1
    cpdef int leave(self) except? -1

cdef inline void prefetch_parts(Connection connection) noexcept:
    prefetch_object(<void *>connection.forward)
    prefetch_object(<void *>connection.backward)
    prefetch_object(<void *>connection.application)

cdef class Application:
    cpdef int open(self, Connection connection) except? -1
    cpdef int prefetch(self, Connection connection) except? -1
    cpdef int left(self, Connection connection) except? -1

cdef class ConnectionTable:
    cdef public Reassembly reassembly
    cdef public Application application
    cdef public long long now_ns, next_tick_ns, early_ns, back_ns, early_since_ns, clock_steps
    cdef public bint live
    cdef public long long segments, data, control, untracked, late, ignored
    cdef public long long opened, midstream, resets_ignored, left, collisions, ended_evicted
    cdef public list closed
    cdef public Py_ssize_t active, max_connections
    cdef public Ended ended
    cdef long long reorder_ns, closing_timeout_ns
    cdef list timeouts_ns
    cdef list slots, oldest, newest
    cdef object waiting
    cdef long long slot_mask
    cdef unsigned long long k0, k1, k2, k3, k4, k5, k6, k7, k8, k9, k10
    cdef bint from_a

    cpdef int segment(self, Segment segment) except? -1
    cpdef int prefetch_slot(self, Segment segment) except? -1
    cpdef int prefetch_connection(self, Segment segment) except? -1
    cpdef int prefetch_streams(self, Segment segment) except? -1
    cpdef int prefetch_consumers(self, Segment segment) except? -1
    cpdef int shed(self, Segment segment) except? -1
    cpdef int tick(self, long long now_ns) except? -1
    cpdef int behind(self, long long now_ns) except? -1
    cpdef int shutdown(self) except? -1
    cdef long long _slot(self, Segment segment) noexcept
    cdef Connection _find(self, Segment segment, long long slot)
    cdef Connection _create(self, Segment segment, long long slot)
    cdef tuple _outers(self, Segment segment)
    cdef Connection _replace(self, Connection old, Segment segment, int reason)
    cdef int _remove(self, Connection connection) except? -1
    cdef int _more_slots(self) except? -1
    cdef int _enqueue(self, Connection connection, int queue) except? -1
    cdef int _dequeue(self, Connection connection) except? -1
    cdef int _syn(self, Connection connection, Segment segment, bint from_a) except? -1
    cdef bint _is_late(self, Segment segment) except? -1
    cdef bint _repeats(self, Segment segment, long long first, long long ended_ns) noexcept
    cdef int _reset(self, Connection connection, Segment segment, bint from_a) except? -1
    cdef bint _reset_fits(self, Connection connection) except? -1
    cdef int _settle(self, Connection connection) except? -1
    cdef int _wait_from_now(self, Connection connection) except? -1
    cdef bint _give_up(self, Stream stream) except? -1
    cdef bint _force(self, Connection connection) except? -1
    cdef int _close(self, Connection connection, int reason, bint remember) except? -1
    cdef int _leave(self, Connection connection) except? -1
    cdef int _release(self, Connection connection) except? -1
    cdef int _finish(self, Connection connection, int reason, bint remember) except? -1
    cdef bint _unsettled(self, Connection connection) noexcept
    cdef long long _deadline(self, Connection connection) noexcept
    cdef long long _due(self, Stream stream) noexcept
