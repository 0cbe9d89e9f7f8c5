"""What the hot modules of the wheel are laid out for: setup.py runs this, where it is asked for a profile, on a package
that counts how often each branch is taken.

    python tests/bench/training.py      http_capture is that package

Traffic like that which is measured (other exchanges, in another order), so the common ways are the fast ones, few
connections and many at a time; then that of tests: reordered, retransmitted, pipelined, compressed, IPv6, VLANs,
tunnels, and each golden capture once. Those are few frames, and their ways are not taken for ones that are never gone.
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import generate
from differential.compare import generate as generate_odd
from golden.captures import CAPTURES
from golden.replay import replay
from http_capture.capture.cli import main
from traffic import write_pcap

SEED = 7
FRAMES = {"mixed": 30_000, "short": 20_000}
MANY, ROUNDS = 2000, 4  # connections, and how often each has another exchange
ODD = 2  # of 40 connections each

with tempfile.TemporaryDirectory() as folder:
    paths = []
    for name, frames in FRAMES.items():
        paths.append(Path(folder) / f"{name}.pcap")
        generate.write(name, paths[-1], frames=frames, seed=SEED)
    paths.append(Path(folder) / "many.pcap")
    with paths[-1].open("wb") as out:
        generate.open_connections(out, MANY, "active", ROUNDS)
    for seed in range(ODD):
        paths.append(Path(folder) / f"odd-{seed}.pcap")
        write_pcap(paths[-1], generate_odd(seed).frames)
    for path in paths:
        if code := main(["--read", str(path), "--sink", "null", "--quiet"]):
            sys.exit(code)
    for capture in CAPTURES.values():
        replay(capture(), Path(folder))
