"""Read stills with alpha: any mode, upright, 8 bits, straight colour; bad ones give a reason.

Everything here returns straight (not premultiplied) uint8 RGBA and raises MediaError otherwise.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageCms, ImageOps

from layerflow.clip import U8
from layerflow.media import MAX_STILL_PIXELS, MediaError

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP")
MAX_STILL_BYTES = 512 << 20
BINARY_SHARE = 0.002  # soft pixels below which a matte counts as binary
LEAST_ALPHA = 8  # a still whose alpha never exceeds it shows nothing
_ALPHA_MODES = ("LA", "La", "PA", "RGBA", "RGBa")


def read_still(path: Path) -> U8:
    """A picture file -> uint8 ``[H, W, 4]``, upright, sRGB; alpha is 255 where it has none.

    Limits are checked before decoding. The colour is as stored: see ``straighten``.
    """
    image = _open(path)
    with image, warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            image.load()
            upright = ImageOps.exif_transpose(image)
            return _to_rgba(upright)
        except MediaError:
            raise
        except Exception as error:  # Pillow's decoders raise nearly everything on damaged files
            raise MediaError(f"cannot be decoded: {type(error).__name__}: {error}") from error


def still_size(path: Path) -> tuple[int, int] | None:
    """Width and height as stored, from the header alone; None for what cannot be read."""
    try:
        with _open(path) as image:
            return image.size
    except MediaError:
        return None


def read_matte(path: Path) -> U8:
    """A matte file -> uint8 ``[H, W]``: its alpha if it has one, else its grey.

    In a picture of coloured labels (a palette, as in DAVIS' annotations) every label but 0 is the
    object.
    """
    with _open(path) as image:
        palette = np.asarray(image.getpalette() or [0], np.uint8) if image.mode == "P" else None
    matte = read_still(path)
    if matte[..., 3].min() < 255:
        return np.ascontiguousarray(matte[..., 3])
    if palette is not None:
        colours = palette[: len(palette) // 3 * 3].reshape(-1, 3)
        if np.ptp(colours.astype(int), axis=1).max(initial=0) > 0:
            return np.where(matte[..., :3].any(axis=2), 255, 0).astype(np.uint8)
    return _grey(matte)


def _open(path: Path) -> Image.Image:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise MediaError(f"cannot be opened: {error.strerror}") from error
    if size == 0:
        raise MediaError("the file is empty (zero bytes)")
    if size > MAX_STILL_BYTES:
        raise MediaError(f"{size} bytes is over the limit of {MAX_STILL_BYTES}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise MediaError(f"over the limit of {MAX_STILL_PIXELS} pixels") from error
    except Exception as error:
        raise MediaError(f"not a readable picture: {type(error).__name__}") from error
    width, height = image.size
    if width * height > MAX_STILL_PIXELS:
        image.close()
        raise MediaError(f"{width}x{height} is over the limit of {MAX_STILL_PIXELS} pixels")
    return image


def _to_rgba(image: Image.Image) -> U8:
    mode = image.mode
    if mode.startswith("I") or mode == "F":
        return _opaque(np.asarray(_deep_grey(image)))
    if mode == "CMYK" or (mode == "RGB" and "icc_profile" in image.info):
        image = _to_srgb(image)
    if mode in _ALPHA_MODES or "transparency" in image.info:
        # RGBa and La are premultiplied by declaration; Pillow undoes it on conversion.
        return np.array(image.convert("LA" if mode == "La" else "RGBA").convert("RGBA"))
    return _opaque(np.asarray(image.convert("RGB")))


def _deep_grey(image: Image.Image) -> U8:
    """16-bit and float grey -> 8 bits; Pillow's own conversion would clip instead of scale."""
    values = np.asarray(image).astype(np.float64)
    peak = float(values.max(initial=0))
    if image.mode == "F":
        top = 1.0 if peak <= 1.0 else 255.0 if peak <= 255 else 65535.0
    else:
        top = 255.0 if image.mode == "I" and peak <= 255 else 65535.0
    return np.clip(np.rint(values * (255.0 / top)), 0, 255).astype(np.uint8)


def _opaque(picture: Any) -> U8:
    if picture.ndim == 2:
        picture = np.repeat(picture[..., None], 3, axis=2)
    alpha = np.full((*picture.shape[:2], 1), 255, np.uint8)
    return np.concatenate([picture, alpha], axis=2)


def _to_srgb(image: Image.Image) -> Image.Image:
    """By the picture's own profile where that works, else by plain conversion."""
    profile = image.info.get("icc_profile")
    if profile:
        with contextlib.suppress(ImageCms.PyCMSError, OSError, ValueError):
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            target = ImageCms.createProfile("sRGB")
            done = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
            if done is not None:
                return done
    return image.convert("RGB")


def load_cutout(path: Path) -> U8:
    """An RGBA still -> straight uint8 ``[H, W, 4]``. MediaError when its alpha says nothing.

    Cut-outs of matting networks are the picture times the matte: undoing that leaves the old
    background in the soft edge. They are known by both marks, and their own colour is solved for.
    """
    rgba = read_still(path)
    check_alpha(rgba[..., 3])
    straight = straighten(rgba)
    clean = tidy(straight)
    if straight is not rgba and clean is not straight:
        from pipelines.stages.fringe import own_colour

        clean[..., :3] = own_colour(np.ascontiguousarray(clean[..., :3]), clean[..., 3])
    return clean


def load_pair(colour: Path, alpha: Path, *, is_foreground: bool) -> U8:
    """Colour and alpha in two files -> straight uint8 ``[H, W, 4]``.

    Where the colour file is the whole picture (not ``is_foreground``), the object's own colour is
    estimated from it.
    """
    picture, grey = read_still(colour), read_matte(alpha)
    if grey.shape != picture.shape[:2]:
        raise MediaError(
            f"{alpha.name} is {grey.shape[1]}x{grey.shape[0]}, "
            f"{colour.name} is {picture.shape[1]}x{picture.shape[0]}"
        )
    check_alpha(grey)
    rgb = picture[..., :3]
    if not is_foreground:
        from pipelines.stages.fringe import own_colour

        rgb = own_colour(rgb, grey)
    return np.dstack([rgb, grey])


def load_opaque(path: Path) -> U8:
    """A still without transparency -> uint8 ``[H, W, 3]``."""
    rgba = read_still(path)
    if rgba[..., 3].min() < 250:
        raise MediaError("has transparent parts: it cannot be a background")
    return np.ascontiguousarray(rgba[..., :3])


def check_alpha(alpha: U8) -> None:
    """MediaError for a matte (any shape) that is empty or full everywhere."""
    if alpha.max(initial=0) < LEAST_ALPHA:
        raise MediaError("is fully transparent")
    if alpha.min(initial=255) > 255 - LEAST_ALPHA:
        raise MediaError("is fully opaque: there is no alpha to cut out by")


def _grey(rgba: U8) -> U8:
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
    """Undo premultiplied colour where it is detected; else the same array."""
    if not is_premultiplied(rgba):
        return rgba
    alpha = np.maximum(rgba[..., 3:], 1).astype(np.float32)
    colour = np.rint(rgba[..., :3] * (255.0 / alpha))
    return np.dstack([np.minimum(colour, 255).astype(np.uint8), rgba[..., 3]])


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
