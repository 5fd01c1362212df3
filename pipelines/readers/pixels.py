"""Pixels of a picture of any mode: 8 bits, alpha as it is meant, colour in sRGB.

Colour and alpha are taken apart before any profile is applied, so that no transparency is lost on
the way: a profile speaks of colour alone, and a transparent colour (a PNG's tRNS chunk) is one of
the stored numbers.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps

from layerflow.clip import U8

_ALPHA_MODES = ("LA", "La", "PA", "RGBA", "RGBa")
_SPACES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # of profiles -> mode of a picture
_ANIMATED = ("GIF", "PNG", "WEBP", "AVIF")  # the pages of a TIFF are no frames
_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Pixels:
    """A picture as stored: uint8 ``[H, W, 4]`` in its own colour space.

    profile: of that space, None for sRGB and for what is not known.
    """

    rgba: U8
    profile: bytes | None = None


def frames_of(image: Image.Image) -> int:
    """How many frames in time an opened picture has; 1 for a still."""
    if image.format not in _ANIMATED:
        return 1
    unseen = int(bool(getattr(image, "default_image", False)))
    return max(1, int(getattr(image, "n_frames", 1)) - unseen)


def read_pixels(image: Image.Image, again: Callable[[], Image.Image]) -> Pixels:
    """An opened picture, upright by its EXIF; alpha is 255 where it has none.

    What is premultiplied by declaration (Pillow's RGBa, La) is undone; else colour is as stored.
    again: opens the same file a second time. Raises what Pillow raises on damaged files.
    """
    key = None
    if "transparency" in image.info and image.mode in ("1", "L", "RGB", "I;16", "I"):
        key = _keyed(image, image.info["transparency"], again)
    image.load()
    found = _stored(image)
    if key is not None:
        found.rgba[..., 3] = np.where(key, 0, 255)
    orientation = image.getexif().get(_ORIENTATION, 1)
    if orientation == 1:
        return found
    turned = Image.fromarray(found.rgba)
    turned.getexif()[_ORIENTATION] = orientation
    ImageOps.exif_transpose(turned, in_place=True)
    return Pixels(np.array(turned), found.profile)


def _stored(image: Image.Image) -> Pixels:
    profile = image.info.get("icc_profile")
    profile = profile if isinstance(profile, bytes) else None
    mode = image.mode
    if mode == "CMYK":
        # Of four inks only the profile knows the colour: there is nothing to keep for later.
        done = _applied(profile, image) if profile else None
        return Pixels(_opaque(np.asarray(done or image.convert("RGB"))))
    if mode == "LAB":
        return Pixels(_opaque(np.asarray(_converted(image, ImageCms.createProfile("LAB")))))
    if mode in _ALPHA_MODES or (mode == "P" and "transparency" in image.info):
        plain = image.convert("LA" if mode == "La" else "RGBA")
        return Pixels(np.array(plain.convert("RGBA")), profile)
    if mode.startswith("I") or mode == "F":
        return Pixels(_opaque(_deep_grey(image)), profile)
    return Pixels(_opaque(np.asarray(image.convert("RGB"))), profile)


def _keyed(
    image: Image.Image, key: Any, again: Callable[[], Image.Image]
) -> NDArray[np.bool_] | None:
    """bool ``[H, W]``: where a picture has its transparent colour; None for what no format has.

    PNG counts that colour in the file's own depth and Pillow hands it on as it is, while samples
    come in 8 bits: scaled up from 2 and 4, and of 16 the upper ones; here the lower are read too.
    """
    tile = next(iter(getattr(image, "tile", ())), None)
    raw = str(tile.args if isinstance(tile.args, str) else tile.args[0]) if tile else image.mode
    image.load()
    values = np.asarray(image)
    if values.shape[2:] != np.shape(key):
        return None
    wanted = np.asarray(key, np.int64)
    if image.mode == "1":
        wanted = np.asarray(bool(key))
    elif raw in ("L;2", "L;4"):
        wanted = wanted * (85 if raw == "L;2" else 17)
    elif tile is not None and raw == "RGB;16B":
        with again() as twin:
            vars(twin)["tile"] = [tile._replace(args="RGB;16L")]
            twin.load()
            values = values.astype(np.int64) << 8 | np.asarray(twin)
    same = np.asarray(np.equal(values, wanted), np.bool_)
    return np.asarray(same.all(axis=2)) if same.ndim == 3 else same


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


def to_srgb(rgba: U8, profile: bytes | None) -> U8:
    """Colour of uint8 ``[H, W, 3 or 4]`` from the space of an ICC profile to sRGB.

    The same array where there is no profile, or one that cannot be used: a damaged one, or one of
    another kind of picture. A profile of grey is applied to a picture whose colour is grey.
    """
    if not profile:
        return rgba
    colour = np.ascontiguousarray(rgba[..., :3])
    done = _applied(profile, Image.fromarray(colour))
    if done is None and (colour == colour[..., :1]).all():
        done = _applied(profile, Image.fromarray(np.ascontiguousarray(colour[..., 0])))
    return rgba if done is None else np.dstack([np.asarray(done), rgba[..., 3:]])


def _applied(profile: bytes, image: Image.Image) -> Image.Image | None:
    """The picture in sRGB; None by a profile that is damaged, or of another kind of picture."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        fits = _SPACES.get(source.profile.xcolor_space) == image.mode
        return _converted(image, source) if fits else None
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None


def _converted(image: Image.Image, source: Any) -> Image.Image:
    target = ImageCms.createProfile("sRGB")
    done = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
    assert done is not None
    return done
