"""The programs that http-capture is compared with: how each is had, and how it reads a capture.

    python tests/bench/peers.py        builds GoReplay and Packetbeat under build/bench/peers, by the Go module proxy

Nothing of theirs is part of the repository. What each does and does not do: README.md.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import measure

PEERS = measure.FOLDER / "peers"
SHOWN = os.path.relpath(PEERS)
GOREPLAY = "github.com/buger/goreplay@v1.3.2"
GOREPLAY_FRAMES = (
    50_000  # a capture that takes it more than a second ends it: it asks for statistics that a file has not
)
BEATS = "github.com/elastic/beats/v7"
BEATS_VERSION = "v7.17.9"
PACKETBEAT_MAIN = f"""\
package main

import (
	"os"

	"{BEATS}/packetbeat/cmd"
)

func main() {{
	if cmd.RootCmd.Execute() != nil {{
		os.Exit(1)
	}}
}}
"""
PACKETBEAT_SETTINGS = """\
packetbeat.interfaces.device: any
packetbeat.flows.enabled: false
packetbeat.protocols:
  - type: http
    ports: [80, 8080]
    send_all_headers: true
    include_body_for: ["text/", "application/json", "application/javascript"]
    max_message_size: 10485760
packetbeat.shutdown_timeout: 5s
queue.mem:
  events: 4096
  flush.timeout: 0s
output.console.codec.json.pretty: false
logging.level: info
setup.ilm.enabled: false
setup.template.enabled: false
"""
GOFLAGS = "-mod=mod -buildvcs=false"
LINKING = (
    "-ldflags=-checklinkname=0"  # an old golang.org/x/net of its refers to what newer Go versions have made private
)
CONSOLE_LINE = b'{"@timestamp"'


@dataclass(frozen=True)
class Peer:
    """`command(capture, folder)` is what is run; it may write into the folder, which is removed afterwards."""

    name: str
    does: str
    slow: bool
    command: Callable[[Path, Path], list[str]]
    until: str = ""  # it does not end by itself: what it says when it has read everything
    missing: Callable[[], str] = lambda: ""
    exchanges: Callable[[Path], int] | None = None  # from its standard output
    most_frames: int | None = None  # that it can read


def _installed(tool: str) -> Callable[[], str]:
    return lambda: "" if shutil.which(tool) else f"{tool} is not installed (Debian: apt install {tool})"


def _httpry(capture: Path, folder: Path) -> list[str]:
    return ["httpry", "-q", "-r", str(capture), "-o", os.devnull]


def _tcpflow(capture: Path, folder: Path) -> list[str]:
    return ["tcpflow", "-q", "-r", str(capture), "-o", str(folder / "streams")]


def _tshark(capture: Path, folder: Path) -> list[str]:
    fields = ("http.request.method", "http.request.uri", "http.response.code", "http.content_type")
    return [
        "tshark", "-n", "-r", str(capture), "-d", "tcp.port==8080,http", "-Y", "http", "-T", "fields",
        *(part for field in fields for part in ("-e", field)),
    ]  # fmt: skip


def _responses(output: Path) -> int:
    """Lines of tshark that have a status."""
    with output.open("rb") as lines:
        return sum(1 for line in lines if line.split(b"\t")[2:3] not in ([], [b""]))


def _goreplay(capture: Path, folder: Path) -> list[str]:
    return [
        str(PEERS / "goreplay"), "--input-raw", f"{capture}:80,8080", "--input-raw-engine", "pcap_file",
        "--input-raw-track-response", "--output-null",
    ]  # fmt: skip


def _packetbeat(capture: Path, folder: Path) -> list[str]:
    settings = folder / "packetbeat.yml"
    settings.write_text(PACKETBEAT_SETTINGS)
    settings.chmod(0o600)
    return [str(PEERS / "packetbeat"), "-c", str(settings), "--path.home", str(folder), "-I", str(capture), "-t", "-e"]


def _events(output: Path) -> int:
    with output.open("rb") as lines:
        return sum(1 for line in lines if line.startswith(CONSOLE_LINE) and b'"type":"http"' in line)


ALL = (
    Peer("httpry", "first line of each frame, no reassembly, no records", False, _httpry, missing=_installed("httpry")),
    Peer("tcpflow", "writes the streams to files, parses nothing", True, _tcpflow, missing=_installed("tcpflow")),
    Peer(
        "tshark", "reassembles, parses, prints four fields", True, _tshark, missing=_installed("tshark"),
        exchanges=_responses,
    ),
    Peer(
        "goreplay", "reassembles requests and responses, hands them to a null output", True, _goreplay,
        until="stopped reading from", most_frames=GOREPLAY_FRAMES, missing=lambda: build("goreplay"),
    ),
    Peer(
        "packetbeat", "a JSON record an exchange, to standard output", True, _packetbeat,
        until="packetbeat start running", missing=lambda: build("packetbeat"), exchanges=_events,
    ),
)  # fmt: skip


@contextmanager
def folder() -> Iterator[Path]:
    """Where a peer may write."""
    with tempfile.TemporaryDirectory(dir=measure.FOLDER) as name:
        (Path(name) / "streams").mkdir()
        yield Path(name)


def build(name: str) -> str:
    """Builds goreplay or packetbeat where it is not there yet. Returns why it is not there; nothing when it is."""
    target = PEERS / name
    if target.exists():
        return ""
    if (PEERS / f"{name}.failed").exists():
        return (
            f"{name} could not be built before: see {PEERS.relative_to(measure.ROOT)}/{name}.log, remove {name}.failed"
        )
    if shutil.which("go") is None:
        return f"{name} is built with Go, which is not installed"
    if shutil.which("cc") is None or not _compiles("#include <pcap.h>\n"):
        return f"{name} needs a C compiler and pcap.h (Debian: apt install gcc libpcap-dev)"
    PEERS.mkdir(parents=True, exist_ok=True)
    print(f"building {name} (minutes; log: {SHOWN}/{name}.log) ...", file=sys.stderr, flush=True)
    with (PEERS / f"{name}.log").open("wb") as log:
        built = (_build_goreplay if name == "goreplay" else _build_packetbeat)(log)
    if built and target.exists():
        return ""
    last = (PEERS / f"{name}.log").read_text(errors="replace").strip().splitlines()[-1:] or ["no output"]
    (PEERS / f"{name}.failed").touch()
    return f"{name} could not be built: {last[0]}"


def _compiles(source: str) -> bool:
    return not subprocess.run(
        ["cc", "-E", "-x", "c", "-", "-o", os.devnull], input=source.encode(), capture_output=True, check=False
    ).returncode


def _go(log: object, *arguments: str, where: Path = PEERS, **variables: str) -> bool:
    command = ["nice", "-n", "10", "go", *arguments]
    return not subprocess.run(
        command, cwd=where, stdout=log, stderr=log, env={**os.environ, "GOFLAGS": GOFLAGS, **variables}, check=False
    ).returncode  # type: ignore[call-overload]


def _build_goreplay(log: object) -> bool:
    return _go(log, "install", GOREPLAY, GOBIN=str(PEERS))


def _build_packetbeat(log: object) -> bool:
    """A module of our own around its command. Its go.mod replaces modules by forks, which counts for the main module
    only: so ours begins as a copy of it."""
    where = PEERS / "packetbeat-module"
    where.mkdir(exist_ok=True)
    (where / "main.go").write_text(PACKETBEAT_MAIN)
    found = subprocess.run(
        ["go", "mod", "download", "-json", f"{BEATS}@{BEATS_VERSION}"],
        cwd=where, stdout=subprocess.PIPE, stderr=log, check=False, env={**os.environ, "GOFLAGS": GOFLAGS},
    )  # type: ignore[call-overload]  # fmt: skip
    if found.returncode:
        log.write(found.stdout)  # type: ignore[attr-defined]
        return False
    shutil.copyfile(json.loads(found.stdout)["GoMod"], where / "go.mod")
    (where / "go.mod").chmod(0o644)
    return _go(
        log, "mod", "edit", "-module=bench/packetbeat", f"-require={BEATS}@{BEATS_VERSION}", where=where
    ) and _go(log, "build", LINKING, "-o", str(PEERS / "packetbeat"), ".", where=where)


if __name__ == "__main__":
    problems = [problem for name in ("goreplay", "packetbeat") if (problem := build(name))]
    print("\n".join(problems) or f"built: {SHOWN}/goreplay, packetbeat")
    sys.exit(bool(problems))
