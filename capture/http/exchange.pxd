# C types of exchange.py.
# A flag is a char: a bint takes four bytes, and there may be a million of each object.

from http_capture.capture.connection cimport Application, Connection
from http_capture.capture.http.message cimport Message
from http_capture.capture.octets cimport prefetch_object
from http_capture.capture.http.parser cimport Limits, Listener, Parser

cdef class HttpApplication(Application)
cdef class HttpConnection(Listener)

cdef class Exchange:
    cdef public HttpConnection conversation
    cdef public Message request, response
    cdef public list informational
    cdef public int pipeline_index, reason
    cdef public unsigned char request_done, response_done, complete, uncertain
    cdef public long long retransmitted_bytes, conflicts

    cdef int set_up(self, HttpConnection conversation) except? -1

cdef Exchange new_exchange(HttpConnection conversation)

cdef class HttpConnection(Listener):
    cdef public HttpApplication application
    cdef public Connection connection
    cdef public Parser forward, backward, requests, responses
    cdef public list outstanding
    cdef public Exchange requesting, responding
    cdef public unsigned char uncertain, pipelined, owed, hidden
    cdef public Py_ssize_t sure
    cdef public Exchange doubtful
    cdef public int ended
    cdef public long long lost_ack, answer_ack
    cdef public bytes identity, key
    cdef public int hashed_end, source_end, destination_end
    cdef public unsigned char timed
    cdef long long second, in_second
    cdef public str target, target_kind
    cdef public list proxies

    cdef int set_up(self, HttpApplication application, Connection connection) except? -1
    cdef Py_ssize_t _waiting(self) noexcept
    cdef Exchange _match(self, Message message)
    cdef int _complete(self, Exchange exchange) except? -1
    cdef int _settle(self, bint confirmed) except? -1
    cdef int _emit(self, Exchange exchange, int reason) except? -1
    cdef int _emit_unanswered(self, Exchange exchange) except? -1
    cdef long long _retransmitted(self) noexcept
    cdef long long _conflicts(self) noexcept
    cdef int _flush(self, int reason) except? -1
    cdef int _leave_unless_http(self, Parser parser) except? -1
    cdef int _forget(self) except? -1

cdef inline void prefetch_shared(HttpConnection conversation) noexcept:
    prefetch_object(<void *>conversation.identity)
    prefetch_object(<void *>conversation.key)

cdef class HttpApplication(Application):
    cdef public Limits limits
    cdef public object deliver
    cdef public Py_ssize_t max_outstanding, max_per_second
    cdef public long long connections, paired, only_request, only_response, complete, orphan_informational, outstanding_overflow, over_rate
    cdef public list reasons
