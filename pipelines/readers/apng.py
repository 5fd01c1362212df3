"""Animated PNG: its frames composed as the specification says.

Every frame is a picture of a part of the canvas. They are taken out of the file as PNGs of their
own, which Pillow reads; Pillow's own composition multiplies alpha by itself where a soft frame is
blended over an empty canvas.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from layerflow.clip import U8
from layerflow.media.cells import MediaError
from pipelines.readers.pixels import read_pixels

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_SHARED = (b"PLTE", b"tRNS")  # chunks that every frame needs
_TO_BACKGROUND, _TO_PREVIOUS = 1, 2  # disposal
_OVER = 1  # blending


@dataclass
class StoredFrame:
    """One stored frame: where it lies on the canvas, what happens then, its compressed data."""

    width: int
    height: int
    x: int
    y: int
    delay: float  # milliseconds
    disposal: int
    blending: int
    data: list[bytes] = field(default_factory=list)


def read_parts(path: Path) -> tuple[bytes, tuple[bytes, ...], list[StoredFrame]]:
    """Header (IHDR), shared chunks and frames of an APNG. MediaError for a file that is damaged.

    A default picture that is no frame of the animation is left out.
    """
    header, shared, parts = b"", [], []
    for kind, body in _chunks(path.read_bytes()):
        if kind == b"IHDR":
            header = body
        elif kind in _SHARED:
            shared.append(_chunk(kind, body))
        elif kind == b"fcTL" and len(body) == 26:
            parts.append(_part(body, header))
        elif kind == b"IDAT" and parts:
            parts[-1].data.append(body)
        elif kind == b"fdAT" and parts:
            parts[-1].data.append(body[4:])
    parts = [part for part in parts if part.data]
    if not header or not parts:
        raise MediaError("no frame of the animation could be read")
    return header, tuple(shared), parts


def composed(path: Path) -> Iterator[U8]:
    """Every frame as it is shown: uint8 ``[H, W, 4]``, straight, in the file's colour space."""
    header, shared, parts = read_parts(path)
    width, height = struct.unpack(">II", header[:8])
    canvas = np.zeros((height, width, 4), np.uint8)
    for number, part in enumerate(parts):
        area = slice(part.y, part.y + part.height), slice(part.x, part.x + part.width)
        before = canvas[area].copy()
        picture = _decoded(header, shared, part)
        canvas[area] = _over(picture, before) if part.blending == _OVER else picture
        yield canvas.copy()
        if part.disposal == _TO_BACKGROUND or (part.disposal == _TO_PREVIOUS and number == 0):
            canvas[area] = 0
        elif part.disposal == _TO_PREVIOUS:
            canvas[area] = before


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    place = len(_SIGNATURE)
    while data[:place] and place + 12 <= len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        if place + 12 + length > len(data):
            return  # cut off: what came before the cut is kept
        yield data[place + 4 : place + 8], data[place + 8 : place + 8 + length]
        place += 12 + length


def _part(body: bytes, header: bytes) -> StoredFrame:
    _, width, height, x, y, top, bottom, disposal, blending = struct.unpack(">IIIIIHHBB", body)
    whole = struct.unpack(">II", header[:8]) if len(header) >= 8 else (0, 0)
    if not (0 < width <= whole[0] - x and 0 < height <= whole[1] - y):
        raise MediaError("a frame of the animation lies outside its canvas")
    return StoredFrame(width, height, x, y, 1000 * top / (bottom or 100), disposal, blending)


def _decoded(header: bytes, shared: tuple[bytes, ...], part: StoredFrame) -> U8:
    own = struct.pack(">II", part.width, part.height) + header[8:]
    pieces = [_chunk(b"IHDR", own), *shared, _chunk(b"IDAT", b"".join(part.data))]
    data = _SIGNATURE + b"".join(pieces) + _chunk(b"IEND", b"")

    def opened() -> Image.Image:
        return Image.open(io.BytesIO(data), formats=("PNG",))

    with opened() as image:
        return read_pixels(image, opened).rgba


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _over(front: U8, back: U8) -> U8:
    """Straight uint8 ``[H, W, 4]`` over another."""
    if front[..., 3].min(initial=255) == 255:
        return front
    a, b = (layer[..., 3:].astype(np.float32) / 255 for layer in (front, back))
    alpha = a + b * (1 - a)
    ink = front[..., :3] * a + back[..., :3] * (b * (1 - a))
    colour = np.where(alpha > 0, ink / np.maximum(alpha, 1e-6), front[..., :3])
    return np.clip(np.rint(np.dstack([colour, alpha * 255])), 0, 255).astype(np.uint8)
