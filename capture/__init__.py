"""The pipeline: frames from a NIC or capture files become one record per HTTP exchange.

    source/       where frames come from               lends blocks of frames
    decode        a frame -> segment, fragment or drop (tunnel: what a tunnel's header says)
    defrag        IP fragments -> datagram
    mirror        leaves out what the mirror has sent twice
    connection    the table of TCP connections
    reassembly    one direction: segments -> data, gap, close
    http/parser   data -> messages
    http/exchange messages -> exchanges
    encode        an exchange -> key, value, headers (record: what a record is)
    sink/         where records go

Every container has a bound, a policy at the bound, and a counter in the ledger:

    what                        setting                              at the bound                     counter
    connections                 tcp.max_connections                  finished, unanswered, then idle  connections.closed.evicted
    connections in one slot     64                                   the oldest is evicted            connections.evicted_by_collision
    early bytes, per direction  tcp.max_buffered_bytes_per_direction holes become gaps                segments.holes_given_up_for_memory
    early bytes, all            tcp.max_buffered_bytes               the same                         the same
    datagrams in fragments      defrag.max_datagrams, .max_bytes     the one begun first is evicted   fragments.evicted
    tunnels in tunnels          8; CONNECT and SOCKS 4               the frame is dropped; not read   drops.tunnels_too_deep; http_bytes.tunnel
    links in links              8 headers, 8 VLAN tags, 16 labels    the frame is dropped             drops.link_unsupported
    packets remembered          16,384, tcp.mirror_seconds           forgotten                        segments.retransmitted
    a head                      http.max_head_bytes                  malformed; the next is searched  messages.heads_too_large
    fields of a head            http.max_headers                     the rest is left out             messages.too_many_fields
    unanswered requests         http.max_outstanding                 the oldest is recorded alone     exchanges.outstanding_overflow
    1xx answers of an exchange  16                                   the rest is left out             messages.informational
    exchanges in a second       http.max_exchanges_per_second        counted and not recorded         exchanges.over_rate
    bytes that are not HTTP     http.search_bytes                    the connection is left           connections.not_http
    kept bytes of a body        body.max_kept_bytes                  the rest is counted              body.truncated in the record
    a decoded body              body.max_decoded_bytes, .max_ratio   decoding ends there              messages.decoding_failures
    content codings of a body   4                                    not decoded                      messages.decoding_failures
    decoders, all               body.max_decoder_memory_bytes        the body is given up             messages.decoders_refused
    frames in the ring          source.ring_block_*                  the kernel drops                 frames.dropped_by_kernel
    records not delivered       kafka.librdkafka (queue.buffering.*) a replay waits, a NIC drops them records.undelivered

pipeline.py wires them by hand; frame_loop.py is its inner loop; stats.py is the ledger; cli.py the command line.
"""

VERSION = "0.1.0"
"""Of the program; pyproject.toml has the same (a test compares them)."""
