"""Damage, decided by a seeded random generator alone."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from random import Random
from typing import Any

_NUMBERS = (
    0, 1, -1, 2, 3, 7, 127, 128, 255, 256, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53, 2**62, 2**63 - 1, 2**63,
    2**64 - 1, -(2**31), -(2**63), 10**19, 10**30, 0.5, -0.0, 1e-300, 1e308, 1e400, -1e400,
)  # fmt: skip
_TEXTS = (
    "", " ", "a", "\0", "../x", "/etc/passwd", "..", "nul", "{{", "%s", "\ud800", "é" * 300, "x" * 5000, "1", "true",
    "model.safetensors", "F32", "U8", "int4", "re:(a+)+$", "re:[", "+:.*", "\x1b]0;x\x07",
)  # fmt: skip
_BYTES = (
    b"\0" * 8, b"\xff" * 8, b"{", b"}", b"[", b"]", b'"', b",", b":", b"\n", b"\\u0000", b"null", b"1e999", b"-1",
    b"\xef\xbb\xbf", b"\xff\xfe", b"PK\x03\x04", b"\x80", b"9" * 400, b"[" * 2000, b'{"a":' * 2000,
)  # fmt: skip

Mutation = Callable[[Random, bytes], bytes]


def damaged(random: Random, data: bytes) -> bytes:
    """Some of its bytes changed, cut, doubled or put in."""
    content = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 3, 8))):
        at = random.randrange(len(content) + 1)
        _damage(random, content, at)
    return bytes(content)


def _damage(random: Random, content: bytearray, at: int) -> None:
    match random.randrange(9):
        case 0 | 1:
            if at < len(content):
                content[at] ^= 1 << random.randrange(8)
        case 2:
            if at < len(content):
                content[at] = random.randrange(256)
        case 3:
            del content[at : at + random.choice((1, 2, 8, 64, 1000))]
        case 4:
            del content[at:]
        case 5:
            length = random.choice((1, 8, 100))
            content[at:at] = content[max(0, at - length) : at] * random.choice((1, 2, 50))
        case 6:
            content[at:at] = random.choice(_BYTES)
        case 7:
            form = random.choice(("<I", "<Q", "<H", "<q", "<f", "<d"))
            size = struct.calcsize(form)
            whole = form in ("<I", "<Q", "<H")
            value = (
                random.choice((0, 1, 2, 255, 65535)) if whole or form == "<q" else random.choice((0.0, 1e30, -1.0))
            )
            if whole and random.random() < 0.5:
                value = (1 << 8 * size) - 1 - random.choice((0, 1, 7))
            content[at : at + size] = struct.pack(form, value)
        case _:
            other = random.randrange(len(content) + 1)
            piece = content[other : other + random.choice((4, 32, 200))]
            content[at : at + len(piece)] = piece


def early(random: Random, data: bytes) -> bytes:
    """As `damaged`, in the first part: where headers are."""
    cut = min(len(data), random.choice((64, 1000, 20_000)))
    return damaged(random, data[:cut]) + data[cut:]


def odd_value(random: Random, depth: int = 0) -> Any:
    """A value that a JSON file may have somewhere and should not."""
    match random.randrange(9 if depth < 3 else 6):
        case 0 | 1 | 2:
            return random.choice(_NUMBERS)
        case 3 | 4:
            return random.choice(_TEXTS)
        case 5:
            return random.choice((None, True, False))
        case 6:
            return [odd_value(random, depth + 1) for _ in range(random.choice((0, 1, 2, 5)))]
        case 7:
            return {random.choice(_TEXTS): odd_value(random, depth + 1) for _ in range(random.choice((0, 1, 3)))}
        case _:
            nested: Any = odd_value(random, depth + 1)
            for _ in range(random.choice((1, 3, 60))):
                nested = [nested]
            return nested


def spoilt(random: Random, value: Any) -> Any:
    """A copy of a JSON value with something in it changed, at any depth."""
    value = json.loads(json.dumps(value))
    holder: Any = {"": value}
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        _spoil(random, holder)
    return holder[""]


def _spoil(random: Random, holder: Any) -> None:
    here, key = holder, ""
    while True:
        inner = here[key]
        if not isinstance(inner, dict | list) or not inner or random.random() < 0.12:
            break
        here, key = inner, random.choice(list(inner) if isinstance(inner, dict) else range(len(inner)))
    match random.randrange(6):
        case 0 if here is not holder:
            del here[key]
        case 1 if isinstance(here, dict) and here is not holder:
            here[random.choice((*_TEXTS, *(f"{name}_" for name in here)))] = here.pop(key)
        case 2 if isinstance(here, dict) and len(here) > 1:
            here[key] = here[random.choice(list(here))]
        case 3 if type(here[key]) is int:
            here[key] += random.choice((-1, 1, 2**16, 2**40, -2 * here[key] - 1))
        case _:
            here[key] = odd_value(random)


def spoilt_json(random: Random, data: bytes) -> bytes:
    """JSON with a value changed; now and then its bytes."""
    if random.random() < 0.15:
        return damaged(random, data)
    return json.dumps(spoilt(random, json.loads(data))).encode()


def spoilt_lines(random: Random, data: bytes) -> bytes:
    """The same for one of several lines of JSON."""
    lines = data.split(b"\n")
    at = random.randrange(len(lines))
    lines[at] = spoilt_json(random, lines[at]) if lines[at].strip() else damaged(random, lines[at])
    return b"\n".join(lines)
