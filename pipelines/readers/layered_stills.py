"""Layered stills: the layers that files of known roles give."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from layerflow.clip import ALPHA, BACKGROUND, BLENDED, FOREGROUND, U8, resize_cover
from layerflow.media.cells import MediaError
from pipelines.readers.photoshop import SUFFIXES as DOCUMENT_SUFFIXES
from pipelines.readers.photoshop import read_document
from pipelines.readers.stills import (
    NO_CUTOUT,
    check_alpha,
    load_cutout,
    load_opaque,
    load_pair,
    read_matte,
    read_still,
)
from pipelines.vision.colour import estimate_foreground
from pipelines.vision.numerics import push_pull

ASPECT_TOLERANCE = 0.02


@dataclass(frozen=True)
class StillLayers:
    """What was read of a still: straight uint8 ``[H, W, 4]``; background ``[H, W, 3]`` if known.

    behind: what ``background`` is (real | filled | inpainted), None when there is none yet.
    objects: single objects of the foreground, back to front, each with its caption. prompts: those
    that came with the layers.
    """

    rgba: U8
    background: U8 | None = None
    behind: str | None = None
    objects: tuple[tuple[str, U8], ...] = ()
    prompts: Mapping[str, str] = field(default_factory=dict)


def read_layers(roles: Mapping[str, Path]) -> StillLayers:
    """The layers that files give by their roles. Raises MediaError.

    A whole picture with a matte shows the background around the object: what the object hides
    is filled smoothly. With its own background file the object's colour follows from both.
    """
    if "file" in roles and roles["file"].suffix.lower() in DOCUMENT_SUFFIXES:
        rgba, below = read_document(roles["file"])
        check_alpha(rgba[..., 3])
        return StillLayers(rgba, below, None if below is None else "real")
    own = load_opaque(roles[BACKGROUND]) if BACKGROUND in roles else None
    colour = roles.get(FOREGROUND, roles.get(BLENDED))
    alone = roles.get("file", colour)
    if ALPHA in roles and colour is not None:
        if FOREGROUND in roles:
            rgba = load_pair(roles[FOREGROUND], roles.get(BLENDED), roles[ALPHA])
        elif own is not None:
            rgba = _against(colour, roles[ALPHA], own)
        else:
            rgba = load_pair(None, colour, roles[ALPHA])
            picture = read_still(colour)[..., :3]
            return StillLayers(rgba, fill_behind(picture, rgba[..., 3]), "filled")
    elif alone is not None:
        rgba = load_cutout(alone)
    else:
        raise MediaError(NO_CUTOUT)
    if own is None:
        return StillLayers(rgba)
    return StillLayers(rgba, fitted(own, rgba.shape[:2]), "real")


def _against(picture: Path, matte: Path, background: U8) -> U8:
    """Colour from the whole picture, its matte and its own background."""
    shown, alpha = read_still(picture)[..., :3], read_matte(matte)
    check_alpha(alpha)
    if alpha.shape != shown.shape[:2]:
        raise MediaError(f"{matte.name} and {picture.name} differ in size")
    behind = fitted(background, alpha.shape)
    return np.dstack([estimate_foreground(shown, alpha, behind), alpha])


def fitted(picture: U8, size: tuple[int, int]) -> U8:
    """A picture at the size of its foreground; MediaError when its shape is another one."""
    height, width = picture.shape[:2]
    if abs(width / height / (size[1] / size[0]) - 1) > ASPECT_TOLERANCE:
        raise MediaError(
            f"the background is HxW {height}x{width}, the foreground {size[0]}x{size[1]}: "
            "another aspect ratio"
        )
    return resize_cover(picture[None], *size)[0]


def fill_behind(picture: U8, alpha: U8) -> U8:
    """The picture uint8 ``[H, W, 3]`` with its object painted over from around it."""
    reach = max(2, round(max(alpha.shape) / 150))
    hidden = cv2.dilate((alpha > 0).astype(np.uint8), np.ones((2 * reach + 1,) * 2, np.uint8))
    if hidden.all():
        raise MediaError("the matte leaves nothing of the background to see")
    spread = push_pull(picture.astype(np.float32), (1 - hidden).astype(np.float32))
    soft = cv2.GaussianBlur(spread, (0, 0), reach)
    share = cv2.GaussianBlur(hidden.astype(np.float32), (0, 0), reach / 2)[..., None]
    mixed = np.where(alpha[..., None] > 0, soft, picture + share * (soft - picture))
    return np.clip(np.rint(mixed), 0, 255).astype(np.uint8)
