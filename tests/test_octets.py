"""The C forms of octets.py, digest.py and seq.py do what their Python forms do. They have no Python name: a module that
gives them one is compiled here."""

import importlib.util
import os
import pathlib
import random
import string
import subprocess
import sys

import pytest
from http_capture.capture import digest, octets, seq
from http_capture.capture.source import block

ROOT = pathlib.Path(__file__).resolve().parents[1]
FORMS = """
from http_capture.capture cimport digest, octets, seq

def find(bytes data, int octet, Py_ssize_t start, Py_ssize_t end):
    return octets.find(octets.octets_of(data), octet, start, end)

def controls(bytes data, Py_ssize_t start, Py_ssize_t end):
    return octets.controls(data, start, end)

def mark(bytes data, Py_ssize_t start, Py_ssize_t end):
    return octets.mark(octets.octets_of(data), start, end)

def plain(bytearray room, Py_ssize_t at, bytes data, Py_ssize_t start, Py_ssize_t end):
    return octets.plain(octets.room_of(room), at, octets.octets_of(data), start, end)

def text(bytearray room, Py_ssize_t at, bytes data, Py_ssize_t start, Py_ssize_t end):
    return octets.text(octets.room_of(room), at, octets.octets_of(data), start, end)

def field_name(bytearray room, Py_ssize_t at, bytes data, Py_ssize_t start, Py_ssize_t end):
    return octets.field_name(octets.room_of(room), at, octets.octets_of(data), start, end)

def decimal(bytearray room, Py_ssize_t at, unsigned long long value):
    return octets.decimal(octets.room_of(room), at, value)

def joined(bytes head, bytes data, Py_ssize_t start, Py_ssize_t end):
    return octets.joined(head, octets.octets_of(data), start, end)

def numbers(bytes data, Py_ssize_t at):
    cdef octets.Octets raw = octets.octets_of(data)
    return octets.u16(raw, at), octets.u32(raw, at), octets.u64(raw, at)

def blake2b_128(bytearray room, Py_ssize_t at, Py_ssize_t start, Py_ssize_t end):
    digest.blake2b_128(octets.room_of(room), at, start, end)

def sha1_base64(bytearray room, Py_ssize_t at, Py_ssize_t start, Py_ssize_t end):
    digest.sha1_base64(octets.room_of(room), at, start, end)

def difference(long long a, long long b):
    return seq.difference(a, b)

def advance(long long a, long long n):
    return seq.advance(a, n)
"""
BUILD = """
import sys
from Cython.Build import cythonize
from setuptools import Extension, setup

setup(
    name="forms",
    ext_modules=cythonize(
        [Extension("forms", ["forms.pyx"], extra_compile_args=["-O3", "-w"])],
        include_path=[sys.argv.pop()], language_level="3", quiet=True,
    ),
)
"""
pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(block.__file__.endswith(".py"), reason="not the compiled package: there are no C forms"),
]


@pytest.fixture(scope="module")
def forms(tmp_path_factory):
    """The module."""
    folder = tmp_path_factory.mktemp("forms")
    (folder / "forms.pyx").write_text(FORMS)
    (folder / "build.py").write_text(BUILD)
    named = folder / "named"
    named.mkdir()
    (named / "http_capture").symlink_to(ROOT, target_is_directory=True)
    built = subprocess.run(
        [sys.executable, "build.py", "-q", "build_ext", "--inplace", str(named)], cwd=folder, text=True, timeout=300,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, "PYTHONPATH": ""},
    )  # fmt: skip
    assert built.returncode == 0, built.stdout
    (path,) = folder.glob("forms*.so")
    spec = importlib.util.spec_from_file_location("forms", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def samples():
    """Texts of all lengths around the sizes of a step, with what is special at every place."""
    rng = random.Random(7)
    plain = (string.ascii_letters + string.digits + " -_/.").encode()
    special = b'"\\\n\r\t\b\f\x00\x1f\x7f:\x80\xff'
    found = [bytes(rng.choices(plain, k=size)) for size in range(100)]
    for size in (1, 7, 8, 15, 16, 17, 31, 32, 33, 48, 64, 65):
        for at in range(size):
            text = bytearray(rng.choices(plain, k=size))
            text[at] = rng.choice(special)
            found.append(bytes(text))
    for _ in range(400):
        found.append(bytes(rng.choices(plain + special[:-2] * 3, k=rng.randrange(200))))
    found += [bytes(rng.randbytes(rng.randrange(200))) for _ in range(200)]
    found += [bytes(range(256)), b'"' * 100, b"\x00" * 100]
    return found


def both(forms, module, name, data, room_bytes, *arguments):
    """What either form returns, and what it has written up to there."""
    results = []
    for form in (getattr(module, name), getattr(forms, name)):
        room = bytearray(room_bytes)
        end = form(room, 3, data, *arguments)
        results.append((end, room))
    return results


@pytest.mark.parametrize("name", ["plain", "field_name"])
def test_what_is_copied_up_to_where_it_cannot_be(forms, samples, name):
    for data in samples:
        for start in (0, 1, len(data) // 2):
            if start <= len(data):
                size = len(data) - start
                (stop, room), (c_stop, c_room) = both(forms, octets, name, data, size + 3, start, len(data))
                assert c_stop == stop, data
                assert c_room[3 : 3 + stop - start] == room[3 : 3 + stop - start], data


def test_text(forms, samples):
    for data in samples:
        (end, room), (c_end, c_room) = both(forms, octets, "text", data, 6 * len(data) + 19, 0, len(data))
        assert c_end == end, data
        assert end < 0 or c_room[3:end] == room[3:end], data


@pytest.mark.parametrize("name", ["mark", "controls"])
def test_what_is_counted(forms, samples, name):
    for data in samples:
        for start, end in ((0, len(data)), (len(data) // 3, len(data)), (0, len(data) // 2)):
            assert getattr(forms, name)(data, start, end) == getattr(octets, name)(data, start, end), data


def test_a_mark_does_not_depend_on_case(forms, samples):
    for data in samples:
        assert forms.mark(data.lower(), 0, len(data)) == forms.mark(data.upper(), 0, len(data))


def test_find_and_join(forms, samples):
    for data in samples:
        for octet in (10, 58, 255):
            assert forms.find(data, octet, 0, len(data)) == octets.find(data, octet, 0, len(data))
        assert forms.joined(b"head", data, 0, len(data)) == b"head" + data
    assert forms.find(b"abc", 97, 3, 3) == 3


def test_decimal(forms):
    values = {10**power + less for power in range(20) for less in (-1, 0, 1)} | {2**64 - 1, 4_294_967_296, 65_535}
    for value in values:
        if not 0 <= value < 2**64:
            continue
        room = bytearray(23)
        end = forms.decimal(room, 3, value)
        assert room[3:end] == b"%d" % value


def test_numbers(forms):
    for data in (bytes(range(240, 250)), b"\xff" * 10, bytes(10)):
        assert forms.numbers(data, 1) == (octets.u16(data, 1), octets.u32(data, 1), octets.u64(data, 1))


@pytest.mark.parametrize(("name", "written", "most"), [("blake2b_128", 32, 600), ("sha1_base64", 28, 55)])
def test_digests(forms, name, written, most):
    rng = random.Random(3)
    for size in range(most + 1):
        data = rng.randbytes(size)
        rooms = []
        for form in (getattr(digest, name), getattr(forms, name)):
            room = bytearray(data + bytes(written))
            form(room, size, 0, size)
            rooms.append(room)
        assert rooms[0] == rooms[1], size


def test_sequence_numbers(forms):
    edges = [0, 1, 2, (1 << 31) - 1, 1 << 31, (1 << 31) + 1, (1 << 32) - 2, (1 << 32) - 1]
    for a in edges:
        for b in edges:
            assert forms.difference(a, b) == seq.difference(a, b)
            assert forms.advance(a, b) == seq.advance(a, b)
            assert forms.advance(a, -b) == seq.advance(a, -b)
