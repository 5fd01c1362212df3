"""How soft a picture's edges are, in pixels, and how much blur makes a foreground as soft.

A picture is as sharp as where it is in focus: what counts is not its average but its sharpest
places, found without being misled by texture, which has no edges, only ups and downs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from layerflow.clip import F32
from pipelines.vision.composite import LENS

SOFTEST = 1 / 160  # of the height: blur beyond is the scene rather than the video
UNKNOWN = 0.5  # pixels: softness of a foreground without edges to tell
EDGE_BLUR = 0.7  # pixels, against noise
MEASURING = EDGE_BLUR**2 + 0.6**2  # variance that this, the Sobel operator and the pixels add
MIN_GRADIENT = 3.0  # levels per pixel
MIN_STEP = 16.0  # levels from one side of an edge to the other
MAX_EDGES = 4000  # of a picture that are looked at
REACH = 12.0  # pixels to each side of an edge
SPACING = 0.5  # pixels between samples across an edge
END = 0.1  # an edge ends where its slope is below this share of the steepest
WITHIN = 0.968  # share of a Gaussian edge's step between these ends
RETURN = 0.15  # share of the step by which an edge may come back: more is a line or texture
TILE = 80  # pixels
TILE_EDGES = 12
HEAVIEST = 8.0  # a tile weighs at most so many times the median tile
IN_FOCUS = 0.15  # share of the weight of all tiles that is sharper than the answer


@dataclass(frozen=True)
class Edges:
    """Single edges of a picture, one value an edge.

    y, x: int pixels. sigma: pixels, of the Gaussian that blurs a step to this edge, what measuring
    adds included. slope: levels per pixel at the steepest.
    """

    y: NDArray[np.int64]
    x: NDArray[np.int64]
    sigma: F32
    slope: F32


def softness(pictures: Sequence[F32], weights: Sequence[F32], noise: float = 0.0) -> float | None:
    """Sigma in pixels of the Gaussian that blurred steps to the edges of pictures' sharpest tiles.

    A tile's answer is the median of the steeper half of its edges. Tiles count by the energy of
    these edges, so that a small thing in focus before a wide soft scene is heard, though with a
    limit, so that a logo in one corner is not; the ``IN_FOCUS`` quantile of all is the answer.

    pictures: float32 grey levels ``[h, w]``, used where the weight of the same shape is near 1.
    noise: their standard deviation, levels. None with too few edges to tell.
    """
    sigmas: list[float] = []
    masses: list[float] = []
    for grey, weight in zip(pictures, weights, strict=True):
        edges = find_edges(grey, weight, noise)
        place = (edges.y // TILE) * (grey.shape[1] // TILE + 1) + edges.x // TILE
        for tile in np.unique(place):
            sigma, slope = edges.sigma[place == tile], edges.slope[place == tile]
            if len(sigma) >= TILE_EDGES:
                steep = slope >= np.median(slope)
                sigmas.append(float(np.median(sigma[steep])))
                masses.append(float(np.square(slope[steep]).sum(dtype=np.float64)))
    if not sigmas:
        return None
    order = np.argsort(sigmas, kind="stable")
    mass = np.minimum(masses, HEAVIEST * np.median(masses))[order]
    part = (np.cumsum(mass) - mass / 2) / mass.sum()
    answer = float(np.interp(IN_FOCUS, part, np.asarray(sigmas)[order]))
    return float(np.sqrt(max(0.0, answer**2 - MEASURING)))


def find_edges(grey: F32, weight: F32, noise: float = 0.0) -> Edges:
    """Edges between two calm sides; no lines, stripes or texture, whose width says less of blur.

    Across each edge the step A between its ends and the steepest slope g give the sigma of a
    Gaussian edge, ``A / (g sqrt(2 pi))``: exact for a blurred step, and unlike the ratio of
    gradients at two scales (Zhuo and Sim 2011) little changed by what lies beyond the ends.
    """
    smooth = cv2.GaussianBlur(grey, (0, 0), EDGE_BLUR)
    dx, dy = (cv2.Sobel(smooth, cv2.CV_32F, *axis, scale=1 / 8) for axis in ((1, 0), (0, 1)))
    size = cv2.magnitude(dx, dy)
    y, x = _ridges(size, np.abs(dx) >= np.abs(dy), weight, max(MIN_GRADIENT, 2 * noise))
    slope = size[y, x]
    along = np.arange(-REACH, REACH + SPACING, SPACING, dtype=np.float32)
    half = len(along) // 2
    if not len(y):
        return Edges(y, x, slope, slope)
    at_x, at_y = (
        (place[:, None] + (rise[y, x] / slope)[:, None] * along).astype(np.float32)
        for place, rise in ((x, dx), (y, dy))
    )
    profile = cv2.remap(smooth, at_x, at_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    flat = np.diff(profile, axis=1) < (END * SPACING) * slope[:, None]
    right = half + _first(flat[:, half:])
    left = half - _first(flat[:, half - 1 :: -1])
    each = np.arange(len(y))
    high, low = profile[each, right], profile[each, left]
    step = high - low
    back = np.maximum(
        np.abs(profile[each, np.minimum(2 * right - half, 2 * half)] - high),
        np.abs(profile[each, np.maximum(2 * left - half, 0)] - low),
    )
    single = (step >= MIN_STEP) & (back < RETURN * step)
    sigma = step / (WITHIN * np.sqrt(2 * np.pi) * slope)
    return Edges(y[single], x[single], sigma[single].astype(np.float32), slope[single])


def _first(flags: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Index of each row's first True, or its length."""
    return np.where(flags.any(axis=1), flags.argmax(axis=1), flags.shape[1])


def _ridges(
    size: F32, sideways: NDArray[np.bool_], weight: F32, least: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """y, x of the largest gradients across their edges, at most ``MAX_EDGES``, evenly chosen."""
    ridge = np.zeros(size.shape, bool)
    core = size[1:-1, 1:-1]
    across = (core >= size[1:-1, :-2]) & (core > size[1:-1, 2:])
    down = (core >= size[:-2, 1:-1]) & (core > size[2:, 1:-1])
    ridge[1:-1, 1:-1] = np.where(sideways[1:-1, 1:-1], across, down) & (core > least)
    ridge &= cv2.erode(weight, np.ones((5, 5), np.uint8)) > 0.9
    y, x = np.nonzero(ridge)
    if len(y) > MAX_EDGES:
        chosen = np.linspace(0, len(y) - 1, MAX_EDGES).astype(int)
        y, x = y[chosen], x[chosen]
    return y, x


def defocus(colour: F32, alpha: F32, target: float, height: int) -> float:
    """Sigma (pixels) of the Gaussian that makes a foreground's edges as soft as ``target``.

    0 for one that is as soft already, at most ``SOFTEST`` of the clip's ``height``. What is crisper
    counts, the picture or its outline. colour: float32 grey levels ``[h, w]``; alpha: float32
    ``[h, w]`` in 0..1. Rendering adds ``LENS`` in any case.
    """
    inside = softness([colour], [alpha])
    outline = softness([alpha * np.float32(255)], [np.ones_like(alpha)])
    own = min((s for s in (inside, outline) if s is not None), default=UNKNOWN)
    missing = target**2 - own**2 - LENS**2
    return min(SOFTEST * height, float(np.sqrt(missing))) if missing > 0.05 else 0.0
