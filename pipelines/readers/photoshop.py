"""Layered documents (PSD, PSB) as stills: background and foreground by normal blending only.

Needs the package psd-tools. What it cannot express exactly as two layers (other blend modes,
clipping, effects, adjustments) is refused with the reason, and so is a document whose layers do not
give its own flattened picture.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layerflow.clip import U8
from layerflow.media.cells import MAX_STILL_PIXELS, MediaError
from layerflow.media.isolate import isolated
from pipelines.readers.pixels import to_srgb

SUFFIXES = frozenset({".psd", ".psb"})
MAX_BYTES = 1 << 30
TOLERANCE = 2.5  # levels between the layers' composite and the flattened picture, rounding included
F32 = NDArray[np.float32]


@isolated
def read_document(path: Path) -> tuple[U8, U8 | None]:
    """Foreground, straight uint8 ``[H, W, 4]`` in sRGB, and background ``[H, W, 3]`` or None.

    The background is the lowest visible layer if it covers everything; all others are merged into
    the foreground. Raises MediaError with what stands in the way.
    """
    _check_header(path)
    try:
        from psd_tools import PSDImage
    except ImportError as error:
        raise MediaError("layered documents need psd-tools: the extra 'psd'") from error
    try:
        document = PSDImage.open(path)
        return _layers_of(document)
    except MediaError:
        raise
    except Exception as error:  # a parser of a large format, on damaged files
        raise MediaError(f"cannot be read: {type(error).__name__}: {error}") from error


def _check_header(path: Path) -> None:
    """Size limits from the first 26 bytes, before anything is parsed."""
    with path.open("rb") as file:
        head = file.read(26)
    if len(head) < 26 or head[:4] != b"8BPS":
        raise MediaError("is no PSD or PSB document")
    height, width = (int.from_bytes(head[i : i + 4], "big") for i in (14, 18))
    if height * width > MAX_STILL_PIXELS or path.stat().st_size > MAX_BYTES:
        raise MediaError(f"HxW {height}x{width} is over the limit of {MAX_STILL_PIXELS} pixels")


def _layers_of(document: Any) -> tuple[U8, U8 | None]:
    from psd_tools.constants import Resource

    mode = document.color_mode.name
    if mode not in ("RGB", "GRAYSCALE") or document.depth not in (8, 16):
        raise MediaError(f"{document.depth} bit {mode}: only 8 and 16 bit RGB and grey are exact")
    size = document.height, document.width
    layers = list(_visible(document, size))
    if not layers:
        raise MediaError("has no visible layer")
    background = layers[0] if layers[0][..., 3].min() >= 1 else None
    merged = _merge(layers if background is None else layers[1:], size)
    if merged[..., 3].max() < 0.03:
        raise MediaError("has nothing over its background")
    _compare(document, merged if background is None else _merge([background, merged], size))
    stored = document.image_resources.get_data(Resource.ICC_PROFILE)
    profile = bytes(stored) if stored else None
    foreground = to_srgb(_straight(merged), profile)
    if background is None:
        return foreground, None
    return foreground, np.ascontiguousarray(to_srgb(_straight(background), profile)[..., :3])


def _visible(parent: Any, size: tuple[int, int]) -> Iterable[F32]:
    """Visible layers back to front, premultiplied float32 ``[H, W, 4]`` in 0..1."""
    for layer in parent:
        if not layer.visible:
            continue
        name, blend = layer.name, layer.blend_mode.name
        if layer.clipping:
            raise MediaError(f"layer {name!r} is clipped to another one")
        if layer.has_effects():
            raise MediaError(f"layer {name!r} has effects")
        if layer.is_group():
            if blend not in ("NORMAL", "PASS_THROUGH") or layer.mask is not None:
                raise MediaError(f"group {name!r} has blend mode {blend} or a mask")
            inner = list(_visible(layer, size))
            if layer.opacity < 255 and inner:
                yield _merge(inner, size) * np.float32(layer.opacity / 255)
            else:
                yield from inner
            continue
        if blend != "NORMAL":
            raise MediaError(f"layer {name!r} has blend mode {blend}")
        if not layer.has_pixels():
            raise MediaError(f"layer {name!r} is a {layer.kind}, not pixels")
        yield _placed(layer, size)


def _placed(layer: Any, size: tuple[int, int]) -> F32:
    """One layer's pixels on the document's canvas, mask and opacity applied."""
    colour, shape = layer.numpy("color"), layer.numpy("shape")
    alpha = np.ones(colour.shape[:2], np.float32) if shape is None else shape[..., 0]
    if colour.shape[2] == 1:
        colour = np.repeat(colour, 3, axis=2)
    whole = np.zeros((*size, 4), np.float32)
    _put(whole, np.dstack([colour[..., :3] * alpha[..., None], alpha]), layer.left, layer.top)
    if layer.mask is not None and not layer.mask.disabled:
        outside = layer.mask.background_color / 255
        mask = np.full((*size, 1), outside, np.float32)
        values = layer.numpy("mask")
        if values is not None:
            _put(mask, values, layer.mask.left, layer.mask.top)
        whole *= mask
    fill = layer.tagged_blocks.get_data("BLEND_FILL_OPACITY")
    return whole * np.float32(layer.opacity / 255 * (1.0 if fill is None else float(fill) / 255))


def _put(canvas: F32, picture: F32, left: int, top: int) -> None:
    """Copy a picture onto a canvas; what lies outside is cut off."""
    y0, x0 = max(0, top), max(0, left)
    y1 = min(canvas.shape[0], top + picture.shape[0])
    x1 = min(canvas.shape[1], left + picture.shape[1])
    if y1 > y0 and x1 > x0:
        canvas[y0:y1, x0:x1] = picture[y0 - top : y1 - top, x0 - left : x1 - left]


def _merge(layers: Iterable[F32], size: tuple[int, int]) -> F32:
    total = np.zeros((*size, 4), np.float32)
    for layer in layers:
        total = layer + total * (1 - layer[..., 3:])
    return total


def _compare(document: Any, merged: F32) -> None:
    """The layers against the document's flattened picture, on white where it is transparent."""
    if not document.has_preview():
        raise MediaError("has no flattened picture to check the layers against")
    flat, shape = document.numpy("color"), document.numpy("shape")
    if flat.shape[2] == 1:
        flat = np.repeat(flat, 3, axis=2)
    alpha = merged[..., 3:]
    seen = np.ones_like(alpha) if shape is None else shape[..., :1]
    ours = merged[..., :3] + (1 - alpha)
    theirs = flat[..., :3] * seen + (1 - seen)
    error = float(np.abs(ours - theirs).max()) * 255
    if error > TOLERANCE:
        raise MediaError(
            f"its layers give another picture than the flattened one ({error:.0f} levels)"
        )


def _straight(ink: F32) -> U8:
    """Premultiplied float32 ``[H, W, 4]`` in 0..1 -> straight uint8."""
    colour = ink[..., :3] / np.maximum(ink[..., 3:], 1e-4)
    return np.clip(np.rint(np.dstack([colour, ink[..., 3]]) * 255), 0, 255).astype(np.uint8)
