"""The C forms of octets.py, digest.py and seq.py do what their Python forms do. They have no Python name: a module that
gives them one is compiled here, with what this processor can do, and without."""

import ctypes
import importlib.util
import ipaddress
import mmap
import os
import pathlib
import platform
import random
import string
import subprocess
import sys

import pytest
from http_capture.capture import digest, octets, seq
from http_capture.capture.source import block

ROOT = pathlib.Path(__file__).resolve().parents[1]
PROT_NONE = 0  # the module mmap has no name for it
FORMS = '''
from http_capture.capture cimport digest, octets, seq

cdef extern from *:
    """
    #if defined(HC_WIDE)
    static int forms_wide(void) { return HC_IS_WIDE(); }
    #else
    static int forms_wide(void) { return 0; }
    #endif
    """
    bint forms_wide()

def wide():
    return forms_wide()

def plain_at(size_t room, size_t data, Py_ssize_t size):
    return octets.plain(<octets.Room>room, 0, <octets.Octets>data, 0, size)

def field_name_at(size_t room, size_t data, Py_ssize_t size):
    return octets.field_name(<octets.Room>room, 0, <octets.Octets>data, 0, size)

def text_at(size_t room, size_t data, Py_ssize_t size):
    return octets.text(<octets.Room>room, 0, <octets.Octets>data, 0, size)

def controls_at(size_t data, Py_ssize_t size):
    return octets.hc_controls(<octets.Octets>data, size)

def blake2b_128_at(size_t room, size_t data, Py_ssize_t size):
    digest.hc_blake2b_128(<octets.Room>room, <octets.Octets>data, size)

def sha1_base64_at(size_t room, size_t data, Py_ssize_t size):
    digest.hc_sha1_base64(<octets.Room>room, <octets.Octets>data, size)

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

def digits(bytearray room, Py_ssize_t at, unsigned long long value, Py_ssize_t count):
    octets.digits(octets.room_of(room), at, value, count)

def number(bytearray room, Py_ssize_t at, unsigned long long value, Py_ssize_t size):
    return octets.number(octets.room_of(room), at, value, size)

def ipv4(bytearray room, Py_ssize_t at, unsigned long long value):
    return octets.ipv4(octets.room_of(room), at, value)

def joined(bytes head, bytes data, Py_ssize_t start, Py_ssize_t end):
    return octets.joined(head, octets.octets_of(data), start, end)

def part_as(bytes last, bytes data, Py_ssize_t start, Py_ssize_t end):
    return octets.part_as(last, data, start, end)

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
'''
BUILD = """
import sys
from Cython.Build import cythonize
from setuptools import Extension, setup

setup(
    name="forms",
    ext_modules=cythonize(
        [
            Extension("forms", ["forms.pyx"], extra_compile_args=["-O3", "-w"]),
            Extension("narrow", ["narrow.pyx"], extra_compile_args=["-O3", "-w", "-DHC_NARROW"]),
        ],
        include_path=[sys.argv.pop()], language_level="3", quiet=True,
    ),
)
"""
pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(block.__file__.endswith(".py"), reason="not the compiled package: there are no C forms"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the modules are."""
    folder = tmp_path_factory.mktemp("forms")
    (folder / "forms.pyx").write_text(FORMS)
    (folder / "narrow.pyx").write_text(FORMS)
    (folder / "build.py").write_text(BUILD)
    named = folder / "named"
    named.mkdir()
    (named / "http_capture").symlink_to(ROOT, target_is_directory=True)
    built = subprocess.run(
        [sys.executable, "build.py", "-q", "build_ext", "--inplace", str(named)], cwd=folder, text=True, timeout=600,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, "PYTHONPATH": ""},
    )  # fmt: skip
    assert built.returncode == 0, built.stdout
    return folder


@pytest.fixture(scope="module", params=["forms", "narrow"])
def forms(request, folder):
    """The module; `narrow` does without what not every processor has."""
    (path,) = folder.glob(f"{request.param}.*.so")
    spec = importlib.util.spec_from_file_location(request.param, path)
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
    for size in (66, 95, 96, 97, 128, 160, 192):
        for at in range(size):
            for places in ([at], [at, size - 1], rng.sample(range(size), 3)):
                text = bytearray(rng.choices(plain, k=size))
                for place in places:
                    text[place] = rng.choice(special[:4] if rng.random() < 0.7 else special)
                found.append(bytes(text))
    for size in range(100, 301):
        found.append(bytes(rng.choices(plain, k=size)))
        found.append(bytes(rng.choices(plain + special[:4] * 4, k=size)))
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
        for start in (0, 1, len(data) // 3):
            if start <= len(data):
                room_bytes = 6 * (len(data) - start) + 19
                (end, room), (c_end, c_room) = both(forms, octets, "text", data, room_bytes, start, len(data))
                assert c_end == end, data
                assert end < 0 or c_room[3:end] == room[3:end], data


def test_each_byte_at_each_place(forms):
    for octet in range(256):
        for at in range(96):
            data = bytearray(b"x" * 96)
            data[at] = octet
            for more in (-1, 95 - at):
                if more >= 0:
                    data[more] = 34
                (end, room), (c_end, c_room) = both(forms, octets, "text", bytes(data), 6 * 96 + 19, 0, 96)
                assert c_end == end, data
                assert end < 0 or c_room[3:end] == room[3:end], data


class Guarded:
    """A page of memory between two that may not be touched."""

    def __init__(self):
        page = mmap.PAGESIZE
        self.memory = mmap.mmap(-1, 3 * page)
        self.bytes = memoryview(self.memory)[page : 2 * page]
        self.begin = ctypes.addressof(ctypes.c_char.from_buffer(self.memory)) + page
        for begin in (self.begin - page, self.begin + page):
            assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(begin), ctypes.c_size_t(page), PROT_NONE) == 0

    def at(self, size, last):
        """Where so many bytes begin, from the page's begin and in memory: at its begin, or up to its end."""
        place = len(self.bytes) - size if last else 0
        return place, self.begin + place

    def put(self, data, last):
        place, address = self.at(len(data), last)
        self.bytes[place : place + len(data)] = data
        return address


@pytest.mark.parametrize("last", [False, True])
def test_nothing_else_is_touched(forms, last):
    """Neither read nor written: one byte before or behind would end the process."""
    rng = random.Random(11)
    source, target = Guarded(), Guarded()
    plain = (string.ascii_letters + " -_/.").encode()
    for size in range(301):
        texts = [
            bytes(rng.choices(plain, k=size)), bytes(rng.choices(plain + b'"\n' * 4, k=size)), b'"' * size, bytes(size),
            bytes(rng.choices(plain, k=max(0, size - 1))) + b'"' * min(1, size), rng.randbytes(size),
            b"x" * max(0, size - 1) + b"\xff" * min(1, size), b"\x7f" * size,
        ]  # fmt: skip
        for data in texts:
            address = source.put(data, last)
            for name, room_bytes in (("plain", size), ("field_name", size), ("text", 6 * size + 16)):
                room = bytearray(room_bytes)
                end = getattr(octets, name)(room, 0, data, 0, size)
                place, at = target.at(room_bytes, last)
                assert getattr(forms, f"{name}_at")(at, address, size) == end, data
                assert target.bytes[place : place + max(0, end)] == room[: max(0, end)], data
            assert forms.controls_at(address, size) == octets.controls(data, 0, size), data
            for name, room_bytes in (("blake2b_128", 32), ("sha1_base64", 28)):
                if name == "blake2b_128" or size <= digest.MAX_SHA1_BYTES:
                    place, at = target.at(room_bytes, last)
                    getattr(forms, f"{name}_at")(at, address, size)
                    room = bytearray(data + bytes(room_bytes))
                    getattr(digest, name)(room, size, 0, size)
                    assert target.bytes[place : place + room_bytes] == room[size:], data


def test_the_wide_forms_are_used_where_they_can_be(forms):
    if forms.__name__ == "narrow":
        assert not forms.wide()
    elif platform.machine() == "x86_64" and sys.platform == "linux":
        assert forms.wide() == (" avx2 " in pathlib.Path("/proc/cpuinfo").read_text())


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


@pytest.mark.parametrize("last", [None, b"", b"GET", b"GE", b"GETS", b"PUT"])
def test_the_same_part_again(forms, last):
    for module in (forms, octets):
        for start, end in ((0, 3), (1, 4), (3, 3), (0, 5)):
            found = module.part_as(last, b"GETxy", start, end)
            assert found == b"GETxy"[start:end]
            assert (found is last) == (found == last)


def test_decimal(forms):
    values = {10**power + less for power in range(20) for less in (-1, 0, 1)} | {2**64 - 1, 4_294_967_296, 65_535}
    for value in values:
        if not 0 <= value < 2**64:
            continue
        for form in (octets, forms):
            room = bytearray(b"." * 24)
            end = form.decimal(room, 3, value)
            assert room == (b"...%d" % value).ljust(24, b"."), value
            assert end == 3 + len(b"%d" % value)


def test_digits(forms):
    for value in (0, 1, 9, 10, 99, 100, 123_456, 999_999, 1_000_000, 123_456_789, 2**64 - 1):
        for count in range(1, 21):
            for form in (octets, forms):
                room = bytearray(b"." * 24)
                form.digits(room, 2, value, count)
                assert room == (b".." + (b"%020d" % value)[-count:]).ljust(24, b"."), (value, count)


def test_number(forms):
    for size in (2, 4, 8):
        for value in (0, 1, 255, 256, 0x0102, 2 ** (8 * size) - 1, 0x0102030405060708 % 2 ** (8 * size)):
            for form in (octets, forms):
                room = bytearray(b"." * 12)
                assert form.number(room, 2, value, size) == 2 + size
                assert room == (b".." + value.to_bytes(size, "big")).ljust(12, b"."), (value, size)


def test_ipv4(forms):
    edges = (0, 1, 9, 10, 19, 99, 100, 109, 199, 200, 255)
    addresses = [bytes(random.Random(n).choices(edges, k=4)) for n in range(500)]
    for address in addresses + [bytes((n, n, n, n)) for n in range(256)]:
        text = str(ipaddress.IPv4Address(address)).encode()
        for form in (octets, forms):
            room = bytearray(b"+" * 24)
            end = form.ipv4(room, 3, int.from_bytes(address, "big"))
            assert bytes(room[:end]) == b"+++" + text
            assert room[19:] == b"+++++"


def test_numbers(forms):
    for data in (bytes(range(240, 250)), b"\xff" * 10, bytes(10)):
        assert forms.numbers(data, 1) == (octets.u16(data, 1), octets.u32(data, 1), octets.u64(data, 1))


@pytest.mark.parametrize(("name", "written", "most"), [("blake2b_128", 32, 900), ("sha1_base64", 28, 55)])
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
