# C types of decode.py.

from http_capture.capture.octets cimport Octets
from http_capture.capture.source.block cimport Block, Buffer
from http_capture.capture.tunnel cimport Outer

cdef class Segment:
    cdef public Buffer buffer
    cdef public long long timestamp_ns
    cdef public int ip_version
    cdef public unsigned long long source_high, source_low, destination_high, destination_low
    cdef public int source_port, destination_port
    cdef public long long seq, ack
    cdef public int flags, urgent
    cdef public Py_ssize_t payload_start, payload_end
    cdef public long long payload_length
    cdef public int vlan, inner_vlan
    cdef public int depth, ip_id, checksum
    cdef public list outers
    cdef public unsigned long long path
    cdef public long long slot, mark

cdef class Decoder:
    cdef public Segment segment
    cdef public list drops
    cdef public long long segments, fragments, datagram_segments, datagram_fragments, datagram_drops
    cdef bint vlan_in_key, tunnel_in_key
    cdef unsigned long long path_key
    cdef public int protocol
    cdef public long long fragment_id, fragment_offset
    cdef public bint fragment_more
    cdef public Py_ssize_t fragment_start, fragment_end
    cdef int layers
    cdef public bint verify_checksums

    cpdef int decode(self, Block block, Py_ssize_t index) except? -1
    cpdef int decode_datagram(self, bytes payload) except? -1
    cdef int _link(self, Octets octets, Py_ssize_t start, Py_ssize_t end, long long uncaptured, long long link) except? -1
    cdef int _ethernet(self, Octets octets, Py_ssize_t start, Py_ssize_t end, long long uncaptured) except? -1
    cdef int _by_ethertype(self, Octets octets, Py_ssize_t start, Py_ssize_t end, long long uncaptured, int ethertype) except? -1
    cdef int _tag(self, int vlan) except? -1
    cdef int _llc(self, Octets octets, Py_ssize_t start, Py_ssize_t end, long long uncaptured) except? -1
    cdef int _mpls(self, Octets octets, Py_ssize_t start, Py_ssize_t end, long long uncaptured) except? -1
    cdef int _pppoe(self, Octets octets, Py_ssize_t start, Py_ssize_t end, long long uncaptured) except? -1
    cdef int _ppp(self, Octets octets, Py_ssize_t start, Py_ssize_t end, long long uncaptured) except? -1
    cdef int _cisco_hdlc(self, Octets octets, Py_ssize_t start, Py_ssize_t end, long long uncaptured) except? -1
    cdef int _cooked(self, Octets octets, Py_ssize_t start, Py_ssize_t end, long long uncaptured, int device, int protocol) except? -1
    cdef int _radio(self, Octets octets, Py_ssize_t start, Py_ssize_t end, long long uncaptured, long long link) except? -1
    cdef int _wifi(self, Octets octets, Py_ssize_t start, Py_ssize_t end, long long uncaptured) except? -1
    cdef int _nflog(self, Octets octets, Py_ssize_t start, Py_ssize_t end) except? -1
    cdef int _network(self, Octets octets, Py_ssize_t start, Py_ssize_t end, long long uncaptured) except? -1
    cdef int _ipv4(self, Octets octets, Py_ssize_t start, Py_ssize_t end, long long uncaptured) except? -1
    cdef int _ipv6(self, Octets octets, Py_ssize_t start, Py_ssize_t end, long long uncaptured) except? -1
    cdef int _transport(self, Octets octets, Py_ssize_t start, Py_ssize_t end, long long length) except? -1
    cdef int _tunnel(self, Octets octets, Py_ssize_t start, Py_ssize_t end, long long length) except? -1
    cdef int _inside(self, Octets octets, Py_ssize_t start, Py_ssize_t end, long long uncaptured, int inside) except? -1
    cdef int _step(self, int kind, long long number) except? -1
    cdef bint _sound(self, Octets octets, Py_ssize_t start, Py_ssize_t end) noexcept
