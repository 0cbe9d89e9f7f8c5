"""pcap-filter(7) expressions: to a socket, or frame by frame, through libpcap.

One expression means the same on a NIC and on files. The kernel takes the outer VLAN tag off a frame before a filter
sees it, so on a NIC `tcp port 80` matches tagged frames too; `FrameFilter` takes the tag off likewise. An expression
with the word `vlan` asks about the tag: on a NIC it is compiled so that it looks where the kernel put the tag, on files
it sees the frame as it is, so that there its part `tcp port 80` does not match tagged frames. What means the same on
both: `tcp port 80 or (vlan and tcp port 80)`.

libpcap itself is called, not scapy's binding to it: that one takes `pcap_offline_filter` for a C bool, which makes no
match of every accepted length that is a multiple of 256, and costs more time to import than all of this.
"""

import ctypes
import ctypes.util
import errno
import functools
import re
import socket
import struct

from ..errors import ConfigurationError, UnavailableError

LINKTYPE_ETHERNET = 1
SO_ATTACH_FILTER = 26
MAX_INSTRUCTIONS = 4096  # BPF_MAXINSNS
MAX_SNAPLEN_BYTES = 262144
INSTRUCTION_BYTES = 8
NETMASK_UNKNOWN = 0xFFFFFFFF
ERROR_BYTES = 256
RETURN_CONSTANT = 0x06
TAG_TYPES = (b"\x81\x00", b"\x88\xa8")
DLT_OF_LINKTYPE = {100: 11, 101: 12}  # pcap_open_dead takes a DLT; on Linux only these two differ from the LINKTYPE
NAMES = ("libpcap.so.0.8", "libpcap.so.1")  # Debian's name, everybody else's


class Program(ctypes.Structure):
    """struct bpf_program."""

    _fields_ = (("length", ctypes.c_uint), ("instructions", ctypes.c_void_p))


@functools.cache
def libpcap() -> ctypes.CDLL:
    """The library, with the prototypes of what is used of it. Raises ConfigurationError where there is none."""
    library = None
    for name in NAMES:
        try:
            library = ctypes.CDLL(name)
            break
        except OSError:
            continue
    if library is None:
        found = ctypes.util.find_library("pcap")
        if found is None:
            raise ConfigurationError("a filter needs libpcap, which is not here: install it (Debian: libpcap0.8)")
        library = ctypes.CDLL(found)
    handle, text = ctypes.c_void_p, ctypes.c_char_p
    library.pcap_open_dead.restype = handle
    library.pcap_open_dead.argtypes = (ctypes.c_int, ctypes.c_int)
    library.pcap_open_live.restype = handle
    library.pcap_open_live.argtypes = (text, ctypes.c_int, ctypes.c_int, ctypes.c_int, text)
    library.pcap_compile.restype = ctypes.c_int
    library.pcap_compile.argtypes = (handle, ctypes.POINTER(Program), text, ctypes.c_int, ctypes.c_uint)
    library.pcap_geterr.restype = text
    library.pcap_geterr.argtypes = (handle,)
    library.pcap_freecode.restype = None
    library.pcap_freecode.argtypes = (ctypes.POINTER(Program),)
    library.pcap_close.restype = None
    library.pcap_close.argtypes = (handle,)
    library.bpf_filter.restype = ctypes.c_uint
    library.bpf_filter.argtypes = (text, text, ctypes.c_uint, ctypes.c_uint)
    return library


def asks_for_tag(expression: str) -> bool:
    return re.search(r"\bvlan\b", expression) is not None


def accept_all(snaplen_bytes: int) -> bytes:
    """The program that accepts every frame and keeps this much of each; 0: none at all."""
    return struct.pack("HBBI", RETURN_CONSTANT, 0, 0, snaplen_bytes)


def compile_filter(expression: str, link: int, snaplen_bytes: int, iface: str = "") -> bytes:
    """The program, 8 bytes an instruction, for frames of this link type. With `iface` it is for a socket on that NIC.

    Raises ConfigurationError with libpcap's own words; UnavailableError where libpcap needs the NIC (`vlan` in the
    expression) and cannot open it.
    """
    library = libpcap()
    if "\0" in expression:
        raise ConfigurationError("filter has a NUL character in it")
    if iface and asks_for_tag(expression):
        reason = ctypes.create_string_buffer(ERROR_BYTES)
        handle = library.pcap_open_live(iface.encode(), snaplen_bytes, 0, 1, reason)
        if not handle:
            raise UnavailableError(
                f"a filter with `vlan` needs {iface} to be up at the start: {one_line(reason.value)}; "
                f"bring it up, or filter without `vlan` (that matches tagged frames too)"
            )
    else:
        handle = library.pcap_open_dead(DLT_OF_LINKTYPE.get(link, link), snaplen_bytes)
        if not handle:
            raise MemoryError
    program = Program()
    try:
        if library.pcap_compile(handle, ctypes.byref(program), expression.encode(), 1, NETMASK_UNKNOWN) != 0:
            raise ConfigurationError(
                f"filter {expression!r} is not a pcap-filter(7) expression for link type {link}: "
                f"{one_line(library.pcap_geterr(handle))}"
            )
        try:
            return ctypes.string_at(program.instructions or 0, program.length * INSTRUCTION_BYTES)
        finally:
            library.pcap_freecode(ctypes.byref(program))
    finally:
        library.pcap_close(handle)


def one_line(text: bytes) -> str:
    return " ".join(text.decode(errors="replace").split())


def attach(sock: socket.socket, instructions: bytes) -> None:
    """Sets the filter of a socket, in place of the one that it has."""
    count = len(instructions) // INSTRUCTION_BYTES
    if count > MAX_INSTRUCTIONS:
        raise ConfigurationError(f"filter has {count} instructions; the kernel takes {MAX_INSTRUCTIONS}: simplify it")
    memory = ctypes.create_string_buffer(instructions, len(instructions))
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", count, ctypes.addressof(memory)))
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOMEM):
            raise
        raise ConfigurationError(
            f"the kernel refuses the filter ({error.strerror}): simplify it, or raise net.core.optmem_max"
        ) from None


class FrameFilter:
    """A filter over frames of one link type in memory, for capture files. Raises as `compile_filter` does."""

    def __init__(self, expression: str, link: int = LINKTYPE_ETHERNET) -> None:
        self._instructions = compile_filter(expression, link, MAX_SNAPLEN_BYTES)
        self._run = libpcap().bpf_filter
        self._untag = link == LINKTYPE_ETHERNET and not asks_for_tag(expression)

    def matches(self, frame: bytes, wire_bytes: int = 0) -> bool:
        """`wire_bytes`: the length on the wire (`len`, `greater`) where it is more than what was captured."""
        wire_bytes = max(wire_bytes, len(frame))
        if self._untag and frame[12:14] in TAG_TYPES and len(frame) >= 16:
            frame = frame[:12] + frame[16:]
            wire_bytes -= 4
        return bool(self._run(self._instructions, frame, wire_bytes, len(frame)))


class ReplayFilter:
    """The filter of a replay, whose files may have several link types: compiled for each when it is first seen."""

    def __init__(self, expression: str) -> None:
        self._expression = expression
        self._filters = {LINKTYPE_ETHERNET: FrameFilter(expression)}

    def matches(self, frame: bytes, wire_bytes: int, link: int) -> bool:
        """Raises ConfigurationError where the expression makes no sense for the link type."""
        known = self._filters.get(link)
        if known is None:
            known = self._filters[link] = FrameFilter(self._expression, link)
        return known.matches(frame, wire_bytes)
