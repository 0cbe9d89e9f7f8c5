"""Damages bytes, dialogues and captures at random, and always in the same way for the same seed."""

import random

from line import Dialogue

TOKENS = (
    b"\r\n", b"\n", b"\r", b" ", b":", b"\t", b"\0", b"\xff", b"\r\n\r\n", b"0\r\n\r\n", b"5\r\n", b"f" * 17 + b"\r\n",
    b"HTTP/", b"HTTP/1.", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 100 \r\n\r\n", b"HTTP/1.1 101 x\r\n\r\n", b"POST ",
    b"GET / HTTP/1.1\r\n", b"GET /x\r\n", b"HEAD / HTTP/1.0\n\n", b"CONNECT a:1 HTTP/1.1\r\n\r\n",
    b"Content-Length: 5\r\n", b"Content-Length: 99999999999999999999\r\n", b"Transfer-Encoding: chunked\r\n",
)  # fmt: skip


def damage(rng: random.Random, data: bytes, other: bytes = b"") -> bytes:
    """One damage: a bit, a byte or some lost, a token put in or over what was there, a part of `other` put in."""
    out = bytearray(data)
    at = rng.randrange(len(out)) if out else 0
    kind = rng.randrange(6)
    if kind == 0 and out:
        out[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del out[at : at + rng.choice((1, 2, 5, 30))]
    elif kind == 2:
        out[at:at] = rng.choice(TOKENS)
    elif kind == 3:
        token = rng.choice(TOKENS)
        out[at : at + len(token)] = token
    elif kind == 4:
        start = rng.randrange(len(other) + 1)
        out[at:at] = other[start : start + rng.choice((10, 60, 300))]
    elif out:
        out[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))
    return bytes(out)


def damage_dialogue(rng: random.Random, dialogue: Dialogue) -> Dialogue:
    """Some damages to what is said, or turns in another order."""
    turns = list(dialogue)
    for _ in range(rng.randint(1, 4)):
        i, j = rng.randrange(len(turns)), rng.randrange(len(turns))
        if rng.random() < 0.15:
            turns[i], turns[j] = turns[j], turns[i]
        else:
            side, turn = turns[i]
            turns[i] = (side, damage(rng, turn, turns[j][1]))
    return [(side, turn) for side, turn in turns if turn]


def pieces(rng: random.Random, data: bytes) -> list[bytes]:
    """The data in pieces of random length."""
    out = []
    at = 0
    while at < len(data):
        size = rng.choice((1, 1, 2, 3, 5, 10, 20, 50, len(data)))
        out.append(data[at : at + size])
        at += size
    return out
