"""The broker of the session, and the modules beside the tests (which are no packages)."""

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HERE = Path(__file__).parent


def load(path: Path) -> ModuleType:
    name = f"http_capture_tests_{path.stem}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def generate() -> ModuleType:
    """tests/bench/generate.py"""
    return load(HERE.parent / "bench" / "generate.py")


@pytest.fixture(scope="session")
def refusing() -> ModuleType:
    """refusing.py"""
    return load(HERE / "refusing.py")


@pytest.fixture(scope="session")
def broker() -> Iterator[Any]:
    """A RealBroker on the last core. Skipped where there can be none, unless HTTP_CAPTURE_REQUIRE_BROKER=1."""
    module = load(HERE / "broker.py")
    reason = module.missing()
    if reason and os.environ.get("HTTP_CAPTURE_REQUIRE_BROKER") == "1":
        pytest.fail(f"the real broker is required here: {reason}")
    if reason:
        pytest.skip(reason)
    with module.RealBroker(cpu=(os.cpu_count() or 1) - 1) as running:
        yield running
