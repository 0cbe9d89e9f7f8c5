"""The handshakes of SOCKS 4, 4a and 5 (RFC 1928, RFC 1929), which come before the bytes that the proxy carries.

Each side's handshake can be read by itself: what the other side chose shows in what follows. `request` and `reply` are
given the stream from its first byte on and say where the carried bytes begin.
"""

MORE, NOT_SOCKS = -1, -2
MAX_BYTES = 2048  # no handshake has as many
_CONNECT = 1
_PASSWORD = 2  # of authentication methods
_GRANTED_4 = 0x5A
_MAX_NAME = 255  # of a user and a host in version 4, which end with a zero byte


def _ip(packed: bytes) -> str:
    import ipaddress  # one that sees no such proxy starts without it

    return str(ipaddress.ip_address(packed))


def _until_zero(data: bytes, at: int) -> int:
    """Behind the next zero byte."""
    end = data.find(b"\0", at, at + _MAX_NAME + 1)
    if end >= 0:
        return end + 1
    return MORE if len(data) - at <= _MAX_NAME else NOT_SOCKS


def _address(data: bytes, at: int) -> tuple[int, str]:
    """Behind address type, address and port of version 5; and HOST:PORT."""
    if at >= len(data):
        return MORE, ""
    kind = data[at]
    if kind == 3:
        if at + 1 >= len(data):
            return MORE, ""
        begin, size = at + 2, data[at + 1]
    elif kind == 1 or kind == 4:
        begin, size = at + 1, 4 if kind == 1 else 16
    else:
        return NOT_SOCKS, ""
    end = begin + size
    if end + 2 > len(data):
        return MORE, ""
    host = data[begin:end]
    text = host.decode("latin-1") if kind == 3 else _ip(host)
    return end + 2, f"[{text}]:{_port(data, end)}" if kind == 4 else f"{text}:{_port(data, end)}"


def _port(data: bytes, at: int) -> int:
    return data[at] << 8 | data[at + 1]


def request(data: bytes) -> tuple[int, int, str]:
    """A client's handshake: (where it ends, version, HOST:PORT that it asks for). The first is MORE where data ends too
    early, NOT_SOCKS where it is something else, which a request of HTTP always is."""
    if data[0] == 4:
        return _request_4(data)
    if data[0] != 5:
        return NOT_SOCKS, 0, ""
    if len(data) < 2:
        return MORE, 0, ""
    at = 2 + data[1]
    if data[1] == 0:
        return NOT_SOCKS, 0, ""
    if at >= len(data):
        return MORE, 0, ""
    if data[at] == 1 and _PASSWORD in data[2:at]:
        at = _password(data, at)
        if at < 0 or at >= len(data):
            return MORE, 0, ""
    if data[at] != 5:
        return NOT_SOCKS, 0, ""
    if at + 3 > len(data):
        return MORE, 0, ""
    if data[at + 1] != _CONNECT or data[at + 2] != 0:
        return NOT_SOCKS, 0, ""
    end, target = _address(data, at + 3)
    return end, 5, target


def reply(data: bytes, version: int) -> int:
    """A server's handshake in this version: where it ends, MORE, or NOT_SOCKS where it refuses or is something else."""
    at = 0
    if version == 4:
        if len(data) < 8:
            return MORE
        return 8 if data[0] == 0 and data[1] == _GRANTED_4 else NOT_SOCKS
    if len(data) < 3:
        return MORE
    if data[0] != 5 or data[1] == 0xFF:
        return NOT_SOCKS
    at = 2
    if data[1] == _PASSWORD:
        if len(data) < 5:
            return MORE
        if data[2] != 1 or data[3] != 0:
            return NOT_SOCKS
        at = 4
    if len(data) < at + 3:
        return MORE
    if data[at] != 5 or data[at + 1] != 0 or data[at + 2] != 0:
        return NOT_SOCKS
    return _address(data, at + 3)[0]


def _request_4(data: bytes) -> tuple[int, int, str]:
    """Version, command, port, address, user; an address 0.0.0.x asks for a name, which follows (4a)."""
    if len(data) < 8:
        return MORE, 0, ""
    if data[1] != _CONNECT:
        return NOT_SOCKS, 0, ""
    end = _until_zero(data, 8)
    host = _ip(data[4:8])
    if end > 0 and data[4:7] == bytes(3) and data[7] != 0:
        begin = end
        end = _until_zero(data, begin)
        host = data[begin : end - 1].decode("latin-1")
    return end, 4, f"{host}:{_port(data, 2)}"


def _password(data: bytes, at: int) -> int:
    """Behind user and password, or MORE."""
    if at + 1 >= len(data):
        return MORE
    at += 2 + data[at + 1]
    if at >= len(data):
        return MORE
    return at + 1 + data[at]
