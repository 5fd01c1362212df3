"""Refining the edge of a matte by a network: a trimap of the matte, an answer inside its band.

The backend says what the subject is, the network where exactly its edge runs and how soft it is.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Protocol, cast

import numpy as np

from layerflow.plugins import Plugins
from layerflow.weights import with_content
from pipelines.matting.stabilise import stabilise
from pipelines.vision.numerics import dilate, single_thread

REFINERS = Plugins(
    "layerflow.refiners",
    "refiner",
    {"vitmatte": "pipelines.matting.vitmatte:VitMatteRefiner"},
    ("name", "licence", "__call__"),
)
"""Classes of ``Refiner``: ours, and those of installed packages."""

REFINE = "refine"  # the step whose actors may hold one
INSIDE, BAND, OUTSIDE = 255, 128, 0  # levels of a trimap
_EMPTY, _FULL = 13, 242  # levels of alpha, 5 and 95 %: what lies between is soft
_SHARE, _LARGEST = 0.02, 0.1  # of the root of the subject's area
_LEAST = 2  # pixels
_MARGIN = 32  # pixels around the band that the network sees


class Refiner(Protocol):
    """Finds alpha where a trimap does not know it. ``licence`` is that of the weights."""

    name: str
    licence: str

    def __call__(self, frames: np.ndarray, trimap: np.ndarray) -> np.ndarray:
        """uint8 [T, H, W, 3] and uint8 [T, H, W] of ``INSIDE``, ``BAND`` and ``OUTSIDE`` -> alpha
        float32 [T, H, W], of which only what lies in the band is used."""
        ...


@lru_cache(maxsize=1)
def make_refiner(told: str, weights: str | None = None, device: str = "cpu") -> Refiner:
    """A refiner of ``REFINERS``, one a process. told: its name, perhaps with the content that its
    weights must have (``with_content``). ValueError if it cannot start."""
    name, content, _ = told.partition("@")
    asked = {} if weights is None else {"weights": weights}
    if content and weights is not None:
        with_content(told, weights)
    return cast(Refiner, REFINERS.make(name, {"device": device}, asked))


def refined(frames: np.ndarray, alpha: np.ndarray, refiner: Refiner) -> np.ndarray:
    """The matte with its band as the refiner sees it; bit for bit the same elsewhere.

    ``frames``: uint8 [T, H, W, 3]; ``alpha`` and result: uint8 [T, H, W]. What it says frame by
    frame is averaged along the flow, as the answers of backends are. Raises ValueError for an
    answer of another shape, or of no numbers.
    """
    trimap = trimap_of(alpha)
    band = trimap == BAND
    if not band.any():
        return alpha
    box = (slice(None), *_around(band.any(0)))
    found = refiner(np.ascontiguousarray(frames[box]), np.ascontiguousarray(trimap[box]))
    if found.shape != trimap[box].shape or not np.isfinite(found).all():
        raise ValueError(
            f"the refiner gave {list(found.shape)} for a trimap of {list(trimap[box].shape)}, "
            f"{int(np.isfinite(found).sum())} of its values finite"
        )
    soft = alpha.astype(np.float32) / np.float32(255)
    soft[box][band[box]] = np.clip(found, 0, 1)[band[box]]
    with single_thread():
        steady = stabilise(frames, soft)
    return np.where(band, np.rint(steady * 255).astype(np.uint8), alpha)


def trimap_of(alpha: np.ndarray) -> np.ndarray:
    """What of a matte is sure: uint8 [T, H, W] -> uint8 [T, H, W] of the levels of a trimap.

    The band is every soft pixel and the outline at one half, and what lies within ``band_radius``
    of these.
    """
    trimap = np.where(alpha > 127, np.uint8(INSIDE), np.uint8(OUTSIDE))
    trimap[dilate(_soft(alpha) | _outline(alpha), band_radius(alpha))] = BAND
    return trimap


def band_radius(alpha: np.ndarray) -> int:
    """How far beyond the soft pixels of a matte, uint8 [T, H, W], its edge may be wrong: pixels.

    Half the mean width of its soft edge (soft pixels / length of the outline) and 2 % of the root
    of the subject's mean area; at least 2, at most a tenth of that root. It is one for the clip, so
    that the band does not flicker.
    """
    sizes = (alpha > 127).sum((1, 2))
    size = float(np.sqrt(sizes[sizes > 0].mean())) if sizes.any() else 0.0
    length = _outline(alpha).sum() / 2  # a pixel on either side
    width = float(_soft(alpha).sum() / max(1.0, length))
    return max(_LEAST, round(min(width / 2 + _SHARE * size, _LARGEST * size)))


def _soft(alpha: np.ndarray) -> np.ndarray:
    return cast(np.ndarray, (alpha > _EMPTY) & (alpha < _FULL))


def _outline(alpha: np.ndarray) -> np.ndarray:
    """bool [T, H, W]: pixels on either side of the contour at one half."""
    inside = alpha > 127
    return dilate(inside, 1) & dilate(~inside, 1)


def _around(mask: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns of a bool [H, W] mask with what the network sees around it."""
    places = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    rows, columns = (slice(max(0, int(p[0]) - _MARGIN), int(p[-1]) + 1 + _MARGIN) for p in places)
    return rows, columns
