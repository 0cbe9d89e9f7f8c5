"""The pipeline: frames from a NIC or capture files become one record per HTTP exchange.

    source/       where frames come from               lends blocks of frames
    decode        a frame -> segment, fragment or drop (tunnel: what a tunnel's header says)
    defrag        IP fragments -> datagram
    mirror        leaves out what the mirror has sent twice
    connection    the table of TCP connections (ended: those that have ended, for late segments)
    reassembly    one direction: segments -> data, gap, close
    http/parser   data -> messages
    http/exchange messages -> exchanges
    encode        an exchange -> key, value, headers (record: what a record is)
    sink/         where records go

Every container has a bound, a policy at the bound and a counter: README.md beside this file has the table.

pipeline.py wires them by hand; frame_loop.py is its inner loop; workers.py spreads it over processes; overload.py says
what is given up where more comes than can be held; stats.py is the ledger; cli.py the command line.
"""

VERSION = "0.1.0"
"""Of the program; pyproject.toml has the same (a test compares them)."""
