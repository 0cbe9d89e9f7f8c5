"""The package as it is built and installed: nothing forgotten, the hot modules compiled or not, a light start."""

import importlib
import json
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
import time
import tomllib

import http_capture.capture
import pytest
from command import COMMAND, environment
from http_capture.capture import run

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = "http_capture"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
TESTED = os.environ.get("HTTP_CAPTURE_TESTED", "")
INSTALLED = pathlib.Path(http_capture.capture.__file__).parents[1]
HOT = [f"{PACKAGE}.capture.{name}" for name in run.HOT]


def folders():
    """Top-level folders that are packages on disk."""
    return sorted(path.parent.name for path in ROOT.glob("*/__init__.py"))


def classes(module):
    """The classes that a hot module defines and compiles: those that are marked so in its source."""
    source = (ROOT / module.__name__.removeprefix(f"{PACKAGE}.").replace(".", "/")).with_suffix(".py").read_text()
    return re.findall(r"^@cython\.cclass\nclass (\w+)", source, re.MULTILINE)


# --- how it is built


def build(folder, compiler, **settings):
    """Compiles two of the hot modules into folder/out, without optimisation: nothing of it is run."""
    parts = [f"capture/{name}.{kind}" for name in ("source/block", "sink/null") for kind in ("py", "pxd")]
    for name in ("setup.py", *parts):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    cc = folder / "cc"
    cc.write_text(f'#!/bin/sh\n{compiler} "$@" -O0\n')
    cc.chmod(0o755)
    return subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", "out"], cwd=folder, text=True, timeout=300,
        env=environment(CC=str(cc), **settings), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


@pytest.mark.once
@pytest.mark.parametrize(
    ("mode", "compiler", "ends_well", "compiled"),
    [
        ("auto", "exec cc", True, True),
        ("auto", "exit 1 ;", True, False),
        ("auto", "case $* in *block.c*) exit 1 ;; esac; exec cc", True, False),
        ("require", "exit 1 ;", False, False),
        ("skip", "exec cc", True, False),
    ],
)
def test_hot_modules_are_compiled_all_or_none(tmp_path, mode, compiler, ends_well, compiled):
    done = build(tmp_path, compiler, HTTP_CAPTURE_EXTENSIONS=mode)
    assert (done.returncode == 0) == ends_well, done.stdout
    assert len(list(tmp_path.glob("out/**/*.so"))) == (2 if compiled else 0)
    assert ("plain Python, which is slower" in done.stdout) == (mode == "auto" and not compiled)


@pytest.mark.once
@pytest.mark.parametrize(
    ("mode", "compiler", "training", "ends_well", "said"),
    [
        ("require", "case $* in *--version*) exit ;; esac; exec cc", "true", True, "the compiler is not gcc"),
        ("require", "exec cc", "false", False, "no profile, as the training failed"),
        ("require", "exec cc", "true", False, "the training did not run all"),
        ("auto", "exec cc", "false", True, "no profile, as the training failed"),
    ],
)
def test_without_a_profile_it_is_compiled_plainly_or_not_at_all(tmp_path, mode, compiler, training, ends_well, said):
    """`make wheel` is the build that has one."""
    done = build(tmp_path, compiler, HTTP_CAPTURE_EXTENSIONS=mode, HTTP_CAPTURE_PROFILE=training)
    assert (done.returncode == 0) == ends_well, done.stdout
    assert said in done.stdout
    made = [path.read_bytes() for path in tmp_path.glob("out/**/*.so")]
    assert len(made) == (2 if ends_well else 0)
    assert not any(b"-fprofile" in content or b"gcov" in content for content in made)


# --- what is in the package


def test_every_package_on_disk_is_named_and_the_other_way_round():
    on_disk = {
        ".".join((PACKAGE, *path.parent.relative_to(ROOT).parts))
        for top in folders()
        for path in (ROOT / top).rglob("__init__.py")
    }
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == on_disk


def test_every_module_on_disk_lies_in_a_package():
    for top in folders():
        for path in (ROOT / top).rglob("*.py"):
            assert (path.parent / "__init__.py").exists(), path


def test_each_top_level_package_has_its_folder_and_is_typed():
    packages = PROJECT["tool"]["setuptools"]["package-dir"]
    assert packages == {f"{PACKAGE}.{top}": top for top in folders()}
    for name, top in packages.items():
        assert (ROOT / top / "py.typed").exists()
        assert "py.typed" in PROJECT["tool"]["setuptools"]["package-data"][name]
        assert (INSTALLED / top / "py.typed").exists()


def test_data_files_are_installed():
    for name, files in PROJECT["tool"]["setuptools"]["package-data"].items():
        for file in files:
            assert (INSTALLED / name.removeprefix(f"{PACKAGE}.") / file).is_file()


def test_the_root_and_the_supervisor_folder_are_no_packages():
    """The root is a namespace; a package `supervisor` would hide the one of that name that the tests use."""
    assert not (ROOT / "__init__.py").exists()
    assert not (ROOT / "supervisor" / "__init__.py").exists()
    assert importlib.import_module(PACKAGE).__file__ is None


def test_what_is_imported_is_a_dependency():
    """Each import of another project's package, by the name under which it is installed."""
    names = {"confluent_kafka": "confluent-kafka", "prometheus_client": "prometheus-client", "cython": "cython"}
    declared = {re.match(r"[\w-]+", entry)[0].lower() for entry in PROJECT["project"]["dependencies"]}
    imported = set()
    for top in folders():
        for path in (ROOT / top).rglob("*.py"):
            imported |= set(re.findall(r"^\s*(?:import|from) (\w+)", path.read_text(), re.MULTILINE))
    others = {names.get(name, name).lower() for name in imported - set(sys.stdlib_module_names) - {"__future__"}}
    assert others <= declared


# --- the hot modules


def test_the_lists_of_hot_modules_agree():
    text = (ROOT / "setup.py").read_text()
    built = re.findall(r'"([\w.]+)"', text[text.index("HOT = [") : text.index("]", text.index("HOT = ["))])
    assert [f"{PACKAGE}.{name}" for name in built] == HOT


def test_every_module_with_compiled_classes_is_hot():
    for top in folders():
        for path in (ROOT / top).rglob("*.py"):
            if "\n@cython." in path.read_text():
                assert ".".join((PACKAGE, *path.relative_to(ROOT).with_suffix("").parts)) in HOT


def test_every_hot_module_has_its_declarations():
    """Without its .pxd a module is compiled into something as slow as plain Python, silently."""
    declared = {
        ".".join((PACKAGE, *path.relative_to(ROOT).with_suffix("").parts))
        for top in folders()
        for path in (ROOT / top).rglob("*.pxd")
    }
    inline = {f"{PACKAGE}.capture.{name}" for name in ("digest", "octets", "seq")}  # part of whoever takes them in
    assert declared == {*HOT, *inline}


@pytest.mark.skipif(not TESTED, reason="HTTP_CAPTURE_TESTED does not say which package is tested")
@pytest.mark.parametrize("name", HOT)
def test_hot_modules_are_what_is_said_to_be_tested(name):
    module = importlib.import_module(name)
    assert module.__file__.endswith(".so" if TESTED == "compiled" else ".py")


@pytest.mark.skipif(TESTED != "compiled", reason="not the compiled package")
@pytest.mark.parametrize("name", HOT)
def test_compiled_classes_have_c_attributes(name):
    """`cython.compiled` proves nothing. A class that Cython made has C attributes, and those that its .pxd does not
    call public or readonly cannot be seen from Python: so the .pxd was found."""
    module = importlib.import_module(name)
    declarations = (ROOT / name.removeprefix(f"{PACKAGE}.").replace(".", "/")).with_suffix(".pxd").read_text()
    for kind in classes(module):
        made = getattr(module, kind)
        assert "__reduce_cython__" in vars(made) or "__setstate_cython__" in vars(made), kind
        body = re.search(rf"cdef class {kind}\b[^\n]*\n((?:    [^\n]*\n|\n)*)", declarations)
        assert body is not None, f"{kind} is not in the .pxd"
        for line in body[1].splitlines():
            if line.startswith("    cdef ") and "(" not in line:
                field = line.removeprefix("    cdef ")
                seen = field.startswith(("public ", "readonly "))
                for name in (part.split()[-1] for part in field.split(",")):
                    assert hasattr(made, name) == seen, f"{kind}.{name}"


@pytest.mark.skipif(TESTED != "compiled", reason="not the compiled package")
@pytest.mark.parametrize("name", HOT)
def test_compiled_modules_have_a_profile(name):
    """Of `make wheel`: gcc leaves its switches in the module, see setup.py. Another compiler cannot use one."""
    content = pathlib.Path(importlib.import_module(name).__file__).read_bytes()
    assert b"-fprofile-use" in content or b"clang version" in content
    if platform.machine() == "x86_64":
        assert b"-mmemcpy-strategy=libcall" in content or b"clang version" in content


@pytest.mark.skipif(TESTED == "compiled", reason="the compiled package")
def test_the_plain_package_has_no_extensions():
    assert [path.name for top in folders() for path in (INSTALLED / top).rglob("*.so")] == []
    assert len(run.uncompiled()) == len(HOT)


# --- the start


HEAVY = ["msgspec", "confluent_kafka", "scapy", "rich", "prometheus_client", "brotli", "zstandard", "Cython", "cython"]


@pytest.mark.parametrize("module", [f"{PACKAGE}.guard", f"{PACKAGE}.capture.cli", f"{PACKAGE}.config.loading"])
def test_nothing_heavy_is_imported_before_the_guard_is_held(module):
    code = f"import json, sys, {module}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True)
    assert set(HEAVY) & set(json.loads(done.stdout)) == set()


def test_a_replay_does_not_import_what_it_does_not_need(tmp_path):
    code = (
        "import sys\nfrom http_capture.capture.cli import main\n"
        "assert main(['--read', sys.argv[1]]) == 66\n"
        "print(*[name for name in sys.modules if name in ('confluent_kafka', 'scapy', 'rich')])"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "absent")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=True)
    assert done.stdout.split() == []


def best_seconds(arguments, code, times=5):
    """The shortest of some runs: the machine may have other things to do."""
    best = float("inf")
    for _ in range(times):
        before = time.perf_counter()
        done = subprocess.run([*COMMAND, *arguments], capture_output=True, env=environment(), check=False)
        best = min(best, time.perf_counter() - before)
        assert done.returncode == code
    return best


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.parametrize(("arguments", "code"), [(["--help"], 0), (["--nosuch"], 64), (["nosuch"], 64)])
def test_help_and_refusals_are_quick(arguments, code):
    assert best_seconds(arguments, code) < 0.3
