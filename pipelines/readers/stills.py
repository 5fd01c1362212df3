"""Read stills with alpha: any mode, upright, 8 bits, straight colour; bad ones give a reason.

Everything here returns straight (not premultiplied) uint8 RGBA and raises MediaError otherwise.
What takes a path decodes in a contained child (``layerflow.media.isolate``).
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from layerflow.clip import U8
from layerflow.media.cells import MediaError
from layerflow.media.isolate import isolated
from layerflow.media.pictures import decoding, open_still
from pipelines.readers.pixels import Pixels, frames_of, read_pixels, to_srgb

BINARY_SHARE = 0.002  # soft pixels below which a matte counts as binary
OPAQUE = 250  # alpha from which a pixel hides what is behind it
NO_CUTOUT = "has no picture with an alpha channel and no pair of picture and matte"
LEAST_ALPHA = 8  # a still whose alpha never exceeds it shows nothing


@isolated
def read_still(path: Path) -> U8:
    """A picture file -> uint8 ``[H, W, 4]``, upright, sRGB; alpha is 255 where it has none.

    Limits are checked before decoding. Premultiplied colour is as stored: see ``straighten``.
    """
    stored = _pixels(path)
    return to_srgb(stored.rgba, stored.profile)


def _pixels(path: Path) -> Pixels:
    with decoding(path) as image:
        if (count := frames_of(image)) > 1:
            raise MediaError(f"is an animation of {count} frames, not a still")
        return read_pixels(image, lambda: open_still(path))


def still_size(path: Path) -> tuple[int, int] | None:
    """Width and height as stored, from the header alone; None for what cannot be read."""
    try:
        return _size(path)
    except MediaError:
        return None


@isolated
def _size(path: Path) -> tuple[int, int]:
    with open_still(path) as image:
        return image.size


@isolated
def read_matte(path: Path) -> U8:
    """A matte file -> uint8 ``[H, W]``: its alpha if that is used, else its grey, both as stored.

    In a picture of coloured labels (a palette, as in DAVIS' annotations) every label but 0 is the
    object.
    """
    with open_still(path) as image:
        palette = np.asarray(image.getpalette() or [0], np.uint8) if image.mode == "P" else None
    matte = _pixels(path).rgba  # of numbers, not of colours: a profile says nothing about them
    if matte[..., 3].min() < 255:
        return np.ascontiguousarray(matte[..., 3])
    if palette is not None:
        colours = palette[: len(palette) // 3 * 3].reshape(-1, 3)
        if np.ptp(colours.astype(int), axis=1).max(initial=0) > 0:
            return np.where(matte[..., :3].any(axis=2), 255, 0).astype(np.uint8)
    return grey_of(matte)


@isolated
def load_cutout(path: Path) -> U8:
    """An RGBA still -> straight uint8 ``[H, W, 4]``. MediaError when its alpha says nothing.

    Cut-outs of matting networks are the picture times the matte: undoing that leaves the old
    background in the soft edge. They are known by both marks, and their own colour is solved for.
    """
    stored = _pixels(path)
    rgba = stored.rgba
    check_alpha(rgba[..., 3])
    straight = straighten(rgba)
    clean = tidy(straight)
    if straight is not rgba and clean is not straight:
        from pipelines.vision.fringe import own_colour

        clean[..., :3] = own_colour(np.ascontiguousarray(clean[..., :3]), clean[..., 3])
    return to_srgb(clean, stored.profile)


@isolated
def load_pair(foreground: Path | None, picture: Path | None, alpha: Path) -> U8:
    """Colour and alpha in two files -> straight uint8 ``[H, W, 4]``.

    foreground: the object's colour, straight or put on one flat colour, which is undone. Where it
    is on one, or is None, the colour is solved for from the whole picture, if there is one.
    Raises MediaError, and ValueError without any colour.
    """
    matte = read_matte(alpha)
    check_alpha(matte)
    if foreground is not None:
        stored = _matching(foreground, matte, alpha)
        rgba = np.dstack([stored.rgba[..., :3], matte])
        straight = _lifted(rgba)
        if straight is rgba or picture is None:
            return to_srgb(straight, stored.profile)
    if picture is None:
        raise ValueError("a pair of stills needs a foreground or a picture")
    from pipelines.vision.fringe import own_colour

    stored = _matching(picture, matte, alpha)
    colour = own_colour(np.ascontiguousarray(stored.rgba[..., :3]), matte)
    return to_srgb(np.dstack([colour, matte]), stored.profile)


def _matching(colour: Path, matte: U8, alpha: Path) -> Pixels:
    stored = _pixels(colour)
    height, width = stored.rgba.shape[:2]
    if matte.shape != (height, width):
        raise MediaError(
            f"{alpha.name} is {matte.shape[0]}x{matte.shape[1]}, {colour.name} is {height}x{width}"
        )
    return stored


@isolated
def load_opaque(path: Path) -> U8:
    """A still without transparency -> uint8 ``[H, W, 3]``."""
    rgba = read_still(path)
    if rgba[..., 3].min() < OPAQUE:
        raise MediaError("has transparent parts: it cannot be a background")
    return np.ascontiguousarray(rgba[..., :3])


def check_alpha(alpha: U8) -> None:
    """MediaError for a matte (any shape) that is empty or full everywhere."""
    if alpha.max(initial=0) < LEAST_ALPHA:
        raise MediaError("is fully transparent")
    if alpha.min(initial=255) > 255 - LEAST_ALPHA:
        raise MediaError("is fully opaque: there is no alpha to cut out by")


def alpha_kind(alpha: U8) -> str:
    """``binary`` for a matte (any shape) of 0 and 255 alone, else ``soft``."""
    return "binary" if np.isin(alpha, (0, 255)).all() else "soft"


def grey_of(rgba: U8) -> U8:
    """uint8 ``[H, W, 3 or 4]`` -> brightness ``[H, W]``, exact where colour is grey."""
    if (rgba[..., 0] == rgba[..., 1]).all() and (rgba[..., 1] == rgba[..., 2]).all():
        return np.ascontiguousarray(rgba[..., 0])
    grey: U8 = cv2.cvtColor(np.ascontiguousarray(rgba[..., :3]), cv2.COLOR_RGB2GRAY)
    return grey


def is_premultiplied(rgba: U8) -> bool:
    """Whether the colours of uint8 ``[H, W, 4]`` are multiplied by alpha already.

    Premultiplied colour never exceeds alpha. Dark straight colour may not exceed it either, so
    that in addition colour must grow with alpha among the soft pixels; where there are too few to
    tell, they must resemble the opaque ones more after undoing than before.
    """
    alpha = rgba[..., 3]
    peak = rgba[..., :3].max(axis=2)
    if (peak > alpha).mean() > 1e-4:
        return False
    soft = (alpha > 25) & (alpha < 230)
    sure = alpha >= 250
    if soft.sum() < 16:
        return False  # nothing to undo
    if not sure.any():
        return True
    growth = _growth(alpha, peak)
    if growth is not None:
        return growth > 0.5
    size = (31, 31)
    weight = cv2.blur(sure.astype(np.float32), size)[..., None]
    near = cv2.blur(rgba[..., :3].astype(np.float32) * sure[..., None], size)
    known = soft & (weight[..., 0] > 0.01)
    if not known.any():
        return True
    inside = (near / np.maximum(weight, 1e-6))[known]
    stored = rgba[..., :3][known].astype(np.float32)
    undone = stored * (255.0 / alpha[known].astype(np.float32))[:, None]
    return bool(np.abs(undone - inside).mean() <= np.abs(stored - inside).mean())


def _growth(alpha: U8, peak: U8) -> float | None:
    """The power of alpha with which colour grows from faint to nearly opaque pixels: 0 for straight
    colour, 1 for premultiplied; None without enough of both."""
    faint, strong = (alpha > 15) & (alpha < 97), (alpha > 150) & (alpha < 241)
    if min(int(faint.sum()), int(strong.sum())) < 32:
        return None
    (a0, c0), (a1, c1) = (
        (float(alpha[part].mean()), float(peak[part].mean())) for part in (faint, strong)
    )
    if c1 < 2:
        return None
    return float(np.log(max(c1, 0.5) / max(c0, 0.5)) / np.log(a1 / a0))


def smooth_outline(rgba: U8) -> U8:
    """A matte of two values gets an edge of a pixel or so, inside its outline; else the same array.

    Such an outline is a staircase, and its pixels are mixed with what was behind the object.
    """
    alpha = rgba[..., 3]
    touched = alpha > 12
    if np.count_nonzero(touched & (alpha < 243)) > BINARY_SHARE * np.count_nonzero(touched):
        return rgba
    wide = cv2.GaussianBlur(touched.astype(np.float32), (0, 0), 1.2)
    edge = np.clip((wide - 0.5) * 2.0, 0, 1)
    inner = np.minimum(np.rint(edge * 255), alpha).astype(np.uint8)
    return np.dstack([rgba[..., :3], inner]) if inner.max() >= 250 else rgba


def straighten(rgba: U8) -> U8:
    """Undo premultiplied colour, or another flat ground, where it is detected; else the same
    array."""
    if not is_premultiplied(rgba):
        return _lifted(rgba)
    alpha = np.maximum(rgba[..., 3:], 1).astype(np.float32)
    colour = np.rint(rgba[..., :3] * (255.0 / alpha))
    return np.dstack([np.minimum(colour, 255).astype(np.uint8), rgba[..., 3]])


def _lifted(rgba: U8) -> U8:
    """Colour without the flat colour that it was put on; else the same array."""
    from pipelines.readers.ground import find_ground, lift

    colour, alpha = rgba[None, ..., :3], rgba[None, ..., 3]
    ground = find_ground(colour, alpha)
    return rgba if ground is None else np.dstack([lift(colour, alpha, ground)[0], alpha[0]])


def tidy(rgba: U8) -> U8:
    """Stretch alpha when its inside stays just below opaque (network mattes): 250 becomes 255.

    Only then is faint haze (alpha of 5 and less) dropped too; a clean matte is not touched.
    """
    alpha = rgba[..., 3]
    high = alpha >= 245
    if (alpha[high] < 255).mean() < 0.3 if high.any() else True:
        return rgba
    levels = np.clip((np.arange(256) - 5) * (255.0 / 245.0), 0, 255)
    return np.dstack([rgba[..., :3], np.rint(levels).astype(np.uint8)[alpha]])
