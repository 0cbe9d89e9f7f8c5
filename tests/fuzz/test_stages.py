"""Each stage on its own, fed with damaged inputs: the short form of `make fuzz`.

HTTP_CAPTURE_FUZZ_SECONDS is how long each stage is fuzzed (3 compiled, else 1); HTTP_CAPTURE_FUZZ_SEED where it begins.
"""

import os
import sys
import time

import pytest
from fuzz import run
from fuzz.stages import STAGES, parsed
from fuzz.test_fuzz import COMPILED, SEED
from line import Frame
from line import run as run_line
from traffic import Conversation, http_request, http_response

SECONDS = float(os.environ.get("HTTP_CAPTURE_FUZZ_SECONDS", "3" if COMPILED else "1"))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in STAGES if name != "pipeline"])
def test_stage(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "unraisablehook", run.listen)
    end = time.monotonic() + SECONDS
    seed = SEED
    while time.monotonic() < end:
        try:
            STAGES[name](seed)
            assert run.unraised == []
        except BaseException as error:
            again = f"python tests/fuzz/run.py --stage {name} --seed {seed} --count 1"
            raise AssertionError(f"{again}: {type(error).__name__}: {error}") from error
        seed += 1
    assert seed > SEED


def test_a_cut_copy_of_bytes_that_are_kept() -> None:
    """What the fuzzing of connections has found: nothing is missing, so there is no gap."""
    conv = Conversation(mss=50)
    conv.handshake()
    indexes = conv.send("client", http_request("POST", "/a", body=b"0123456789" * 20), drop={0})
    conv.retransmit(indexes[2], start=10, end=20)
    timestamp_ns, frame = conv.frames.pop()
    cut_at = len(conv.frames)
    conv.retransmit(indexes[0])
    conv.send("server", http_response(204))
    conv.close()
    frames: list[Frame] = [*conv.frames]
    frames.insert(cut_at, (timestamp_ns, frame[:-5], 1, len(frame)))
    (record,) = run_line(frames).records
    assert record["http"]["request"]["body"]["content"] == "0123456789" * 20
    assert record["http_capture"]["gap_bytes"] == 0


def test_what_nobody_raises_is_a_failure(tmp_path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:  # type: ignore[no-untyped-def]
    """A C function that cannot raise has its exceptions printed and swallowed: the fuzzer must hear of them."""

    class Falls:
        def __del__(self) -> None:
            raise IndexError("out of bounds")

    def stage(seed: int) -> int:
        Falls()
        return 1

    monkeypatch.setattr(sys, "unraisablehook", run.listen)
    monkeypatch.setitem(STAGES, "falls", stage)
    assert not run.fuzz_stage("falls", 1, 7, tmp_path)
    assert (tmp_path / "falls-7.txt").exists()
    assert "out of bounds" in capsys.readouterr().out
    run.unraised.clear()


FOUND: dict[str, tuple[int, list[bytes | int], list[bytes | int]]] = {
    "a gap before the role is known": (
        2,
        [b"GConte", 10, b"GET /x\r\nHost: a\r\n"],
        [b"GConte", 10, b"GE", b"T /x\r\nHost: a\r\n"],
    ),
    "a blank line before the first field": (
        0,
        [b"GET /a HTTP/1.1\r\n \r\nGET /b HTTP/1.1\r\nHost: b\r\n"],
        [b"GET /a HTTP/1.1\r\n", b" \r\nGET /b HTTP/1.1\r\nHost: b\r\n"],
    ),
}


@pytest.mark.parametrize("name", FOUND)
def test_found(name: str) -> None:
    """What the fuzzing of the parser has found: (role, pieces, the same bytes in other pieces)."""
    role, one, other = FOUND[name]
    assert parsed(one, role, False, 0) == parsed(other, role, False, 0)
