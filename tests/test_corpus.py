"""Captures of other projects (../shared/corpus): what their suites assert, and that none upsets the ledger."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from command import COMMAND, environment
from golden.replay import replay_file

CORPUS = pathlib.Path(__file__).resolve().parents[2] / "shared" / "corpus"
EXPECTED = CORPUS / "expected.jsonl"
CASES = [json.loads(line) for line in EXPECTED.read_text().splitlines()] if EXPECTED.exists() else []

pytestmark = pytest.mark.skipif(not CASES, reason="needs the captures in ../shared/corpus")

NOT_YET = {
    "http2-range.pcap": "HTTP/2",
}
"""What the line does not read yet, by the captures that show it."""


@pytest.mark.slow
def test_what_other_projects_assert_of_their_captures():
    """All but those that need what is not read yet; one that passes all the same is to be taken off the list."""
    options = ["--only", "real", "--", *COMMAND, "--read", "{pcap}", "--bodies", "all", "--quiet"]
    done = subprocess.run(
        [sys.executable, CORPUS / "check.py", EXPECTED, CORPUS, *options],
        capture_output=True, text=True, env=environment(), timeout=300, check=False,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    failed = [line.removeprefix("FAIL ").partition(": ")[0] for line in lines if line.startswith("FAIL ")]
    assert sorted(map(os.path.basename, failed)) == sorted(NOT_YET), done.stdout + done.stderr
    assert lines[-1] == f"{40 - len(NOT_YET)} captures passed, {len(NOT_YET)} failed"


@pytest.mark.slow
@pytest.mark.once
@pytest.mark.parametrize(("group", "number"), [("evader-simple", 44), ("evader-hard", 207)])
def test_http_as_it_is_sent(group, number):
    options = ["--only", group, "--", *COMMAND, "--read", "{pcap}", "--bodies", "all", "--quiet"]
    done = subprocess.run(
        [sys.executable, CORPUS / "check.py", EXPECTED, CORPUS, *options],
        capture_output=True, text=True, env=environment(), timeout=900, check=False,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == f"{number} captures passed, 0 failed", done.stdout + done.stderr


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["pcap"].replace("/", " "))
def test_every_capture_is_read_to_its_end_and_every_byte_accounted_for(case):
    sent, ledger = replay_file(CORPUS / case["pcap"])
    assert ledger.imbalances == []
    assert len(sent) == ledger.sections["records"]["delivered"]
    for _, value, headers, _ in sent:
        assert json.loads(value)["event"]["id"].encode() == dict(headers)["id"]


@pytest.mark.slow
def test_every_capture_ends_with_the_exit_code_of_its_file(run):
    """All of them in one run: some are cut off, and the rest is read all the same."""
    done = run("--read", *(CORPUS / case["pcap"] for case in CASES), "--sink", "null", "--json")
    assert done.returncode in (0, 65), done.stderr[-2000:]
    assert json.loads(done.stderr.splitlines()[-1])["balanced"] is True
