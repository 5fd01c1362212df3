"""Small ICC profiles whose effect is known without a colour engine."""

from __future__ import annotations

import struct
from collections.abc import Mapping

RED, GREEN, BLUE = (0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7139)
WHITE = (0.9642, 1.0, 0.8249)


def swapped() -> bytes:
    """Close to sRGB, but what is called red shows green, and green red."""
    curve = _curve(2.2)
    tags = {b"rXYZ": _xyz(GREEN), b"gXYZ": _xyz(RED), b"bXYZ": _xyz(BLUE)}
    return _profile(b"RGB ", tags | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve))


def linear_grey() -> bytes:
    """Grey levels that are proportional to light: 120 of 255 is sRGB's 182."""
    return _profile(b"GRAY", {b"kTRC": _curve(1.0)})


def _xyz(colour: tuple[float, float, float]) -> bytes:
    return b"XYZ " + bytes(4) + b"".join(struct.pack(">i", round(v * 65536)) for v in colour)


def _curve(gamma: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256))


def _profile(space: bytes, tags: Mapping[bytes, bytes]) -> bytes:
    name = b"desc" + bytes(4) + struct.pack(">I", 2) + b"x\0" + bytes(78)
    entries = {b"desc": name, b"wtpt": _xyz(WHITE), **tags}
    table, body = b"", b""
    for tag, value in entries.items():
        padded = value + bytes(-len(value) % 4)
        place = 132 + 12 * len(entries) + len(body)
        table += tag + struct.pack(">II", place, len(value))
        body += padded
    head = bytes(4) + b"\x02\x10\0\0mntr" + space + b"XYZ " + bytes(12) + b"acsp" + bytes(28)
    head += _xyz(WHITE)[8:]
    size = 128 + 4 + len(table) + len(body)
    head = (struct.pack(">I", size) + head).ljust(128, b"\0")
    return head + struct.pack(">I", len(entries)) + table + body
