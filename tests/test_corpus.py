"""Captures of other projects (../shared/corpus): what their suites assert, and that none upsets the ledger."""

import importlib.util
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


@pytest.fixture(scope="module")
def check():
    """check.py of the corpus as a module."""
    spec = importlib.util.spec_from_file_location("check", CORPUS / "check.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(20000)  # as it does itself where it is a program
    yield module
    sys.setrecursionlimit(before)


@pytest.mark.parametrize(("group", "number"), [("real", 40), ("evader-simple", 44), ("evader-hard", 207)])
def test_what_other_projects_assert_of_their_captures(check, group, number):
    """All but those that need what is not read yet; one that passes all the same is to be taken off the list."""
    cases = check.load(EXPECTED, set(), group)
    assert len(cases) == number
    failed = {}
    for case in cases:
        sent, _ = replay_file(CORPUS / case["pcap"], {"body": {"keep": "all"}})
        _, faults = check.compare(case, [json.loads(value) for _, value, _, _ in sent])
        if faults:
            failed[case["pcap"]] = faults
    assert sorted(map(os.path.basename, failed)) == (sorted(NOT_YET) if group == "real" else []), failed


@pytest.mark.slow
@pytest.mark.once
def test_the_program_gives_the_same():
    options = ["--only", "real", "--", *COMMAND, "--read", "{pcap}", "--bodies", "all", "--quiet"]
    done = subprocess.run(
        [sys.executable, CORPUS / "check.py", EXPECTED, CORPUS, *options],
        capture_output=True, text=True, env=environment(), timeout=300, check=False,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    failed = [line.removeprefix("FAIL ").partition(": ")[0] for line in lines if line.startswith("FAIL ")]
    assert sorted(map(os.path.basename, failed)) == sorted(NOT_YET), done.stdout + done.stderr
    assert lines[-1] == f"{40 - len(NOT_YET)} captures passed, {len(NOT_YET)} failed"


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
