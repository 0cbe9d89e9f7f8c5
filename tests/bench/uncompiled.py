"""http-capture without a compiler, against scapy's own session code: TCPSession and the HTTP layer.

    make bench-uncompiled  [ARGS="--frames 50000"]

Both read the same part of `mixed`, pinned to one core, in turns; the starts, measured on an empty capture, are taken
off. Every record of http-capture is compared with what was generated. Scapy makes its HTTP layers and counts requests
and responses; it pairs nothing and writes nothing.
"""

import argparse
import contextlib
import sys
from collections import Counter

import bench
import measure
from measure import fail, median

TARGET = 5.0


def main() -> None:
    if sys.argv[1:2] == ["--scapy"]:  # its own process
        read_with_scapy(sys.argv[2])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--capture", choices=("mixed", "short"), default="mixed")
    parser.add_argument("--frames", type=int, default=20_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--core", type=int, default=measure.default_core())
    options = parser.parse_args()
    measure.ends_by_exception()
    measure.need("taskset", program=measure.UNCOMPILED)
    version = measure.version(measure.UNCOMPILED)
    print(version)
    if "uncompiled" not in version and "not compiled" not in version:
        fail("the package in .venv is compiled: run `make venv` in a tree without .so files")
    print(f"{measure.machine()}; core {options.core}")
    measure.keep_off(options.core)
    capture = measure.capture(options.capture, options.frames)
    record_bytes = bench.compare_records(capture, options.core, measure.UNCOMPILED)
    ours = [str(measure.UNCOMPILED), "--sink", "null", "--json", "--read"]
    scapy = [sys.executable, __file__, "--scapy"]
    spent: dict[str, list[float]] = {}
    for _ in range(options.runs):
        for name, command in (("http-capture, uncompiled", ours), ("scapy", scapy)):
            start = measure.run([*command, str(measure.empty())], options.core)
            result = measure.run([*command, str(capture.path)], options.core)
            if command is ours:
                measure.check_ledger(result, capture.frames, capture.exchanges, record_bytes)
            spent.setdefault(name, []).append(result.seconds - start.seconds)
            note = "" if command is ours else f"; {result.errors.splitlines()[-1]}"
            print(f"  {name:<26} {result.seconds:.2f} s, start {start.seconds:.2f} s{note}", flush=True)
    own, theirs = (median(values) for values in spent.values())
    print(f"{capture.frames:,} frames, {capture.exchanges:,} exchanges of {capture.name}, medians less the starts:")
    print(f"  http-capture, uncompiled {own:.2f} s, {capture.frames / own:,.0f} frames/s")
    print(f"  scapy {theirs:.2f} s, {capture.frames / theirs:,.0f} frames/s")
    print(f"  {theirs / own:.1f} times as fast, target {TARGET:.0f} {'held' if theirs / own >= TARGET else 'MISSED'}")


def read_with_scapy(path: str) -> None:
    from scapy.layers.http import HTTP, HTTPRequest, HTTPResponse
    from scapy.layers.inet import TCP
    from scapy.packet import bind_layers
    from scapy.sendrecv import sniff
    from scapy.sessions import TCPSession

    bind_layers(TCP, HTTP, dport=8080)
    bind_layers(TCP, HTTP, sport=8080)
    found: Counter[str] = Counter()

    def seen(packet: object) -> None:
        for layer in (HTTPRequest, HTTPResponse):
            if layer in packet:  # type: ignore[operator]
                found[layer.__name__] += 1

    with contextlib.suppress(EOFError):  # no frame in it
        sniff(offline=path, session=TCPSession, prn=seen, store=False, quiet=True)
    print(f"{found['HTTPRequest']} requests, {found['HTTPResponse']} responses", file=sys.stderr)


if __name__ == "__main__":
    main()
