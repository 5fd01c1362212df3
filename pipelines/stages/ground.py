"""Cut-outs that were put on one flat colour: is there such a ground, and the colour without it.

A stored colour C = a F + (1 - a) K is not the object's own F. With K black it is premultiplied, as
editing programs export films with alpha; matting networks write their foregrounds on green. The
ground is seen where alpha is 0, but a flat colour there says little (straight colour has one too):
in addition soft pixels must lean towards it as alpha falls, by as much as the equation says.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from layerflow.clip import U8
from pipelines.stages.colour import estimate_foreground, nearby_colour

F64 = NDArray[np.float64]
Colour = tuple[int, int, int]

CLEAR, SURE = 2, 250  # alpha up to which nothing is there, from which nothing shines through
BANDS = (16, 60, 100, 140)  # of alpha, in which a ground shows most and can still be measured
FLAT = 14  # levels by which coded films stray from a flat colour
LEAST_FLAT = 0.97  # of the clear pixels
LEAST_CLEAR, LEAST_SOFT = 100, 32  # pixels
LEAST_GAIN = 0.8  # of the distance from the opaque colour beside, that mixing must leave less of
LEAST_GROWTH = 0.5  # power of alpha: 1 for mixed colour, 0 for straight colour
NOISE = 2.0  # levels
APART = 30.0  # levels between ground and object, below which there is nothing to tell or to undo
SLACK = 24.0  # levels by which coded colour may leave the range that a ground allows
LOOKED_AT = 9  # frames of a film
PIXELS = 250_000  # of each


def flat_colour(colour: U8, alpha: U8) -> Colour | None:
    """The one colour of uint8 ``[T, H, W, 3]`` where alpha ``[T, H, W]`` is 0; None if there is
    none, or hardly a clear pixel."""
    outside = _clear(colour, alpha)
    if len(outside) < LEAST_CLEAR:
        return None
    middle = np.median(outside, axis=0)
    near = (np.abs(outside - middle) <= FLAT).all(axis=1)
    if near.mean() < LEAST_FLAT:
        return None
    red, green, blue = (int(level) for level in np.rint(middle))
    return red, green, blue


def find_ground(colour: U8, alpha: U8) -> Colour | None:
    """The flat colour that uint8 ``[T, H, W, 3]`` was put on by alpha ``[T, H, W]``; None for
    straight colour, and for what cannot be told from it.

    Some frames are looked at; black may also be the ground of a film without any clear pixel.
    """
    colour, alpha = _sample(colour, alpha)
    ground = flat_colour(colour, alpha)
    if ground is None and len(_clear(colour, alpha)) < LEAST_CLEAR:
        ground = (0, 0, 0)
    if ground is None:
        return None
    if max(ground) <= FLAT:
        ground = (0, 0, 0)
    return ground if _leans(colour, alpha, np.asarray(ground, np.float64)) else None


def lift(colour: U8, alpha: U8, ground: Colour) -> U8:
    """Straight colour uint8 ``[T, H, W, 3]`` of frames that were put on a ground.

    Where alpha is so small that levels and coding noise would be blown up, the object's colour
    nearby counts instead.
    """
    plate = np.broadcast_to(np.asarray(ground, np.uint8), colour.shape[1:])
    pairs = zip(colour, alpha, strict=True)
    return np.stack([estimate_foreground(frame, matte, plate) for frame, matte in pairs])


def _sample(colour: U8, alpha: U8) -> tuple[U8, U8]:
    """Frames spread over a film, of large ones every n-th pixel (a mean would blend edges)."""
    count, height, width = alpha.shape
    frames = np.unique(np.linspace(0, count - 1, min(count, LOOKED_AT)).round().astype(int))
    step = max(1, int(np.ceil(np.sqrt(height * width / PIXELS))))
    return (
        np.ascontiguousarray(colour[frames, ::step, ::step]),
        np.ascontiguousarray(alpha[frames, ::step, ::step]),
    )


def _clear(colour: U8, alpha: U8) -> NDArray[np.float32]:
    return colour[alpha <= CLEAR].astype(np.float32)


def _leans(colour: U8, alpha: U8, ground: F64) -> bool:
    """Whether soft pixels are mixed with the ground as the equation says, in each band of alpha.

    Straight colour stays the one of the opaque pixels beside it; mixed colour moves from there by
    ``(1 - a) (K - F)``, and from the ground by ``a (F - K)``: it grows with alpha. An outline that
    has the colour of the ground by nature does not.
    """
    bands = [
        found
        for low, high in itertools.pairwise(BANDS)
        if (found := _band(colour, alpha, ground, low, high)) is not None
    ]
    if len(bands) < 2 or not all(band.fits for band in bands):
        return False
    first, last = bands[0], bands[-1]
    grown = np.log(max(last.off, NOISE) / max(first.off, NOISE))
    return bool(grown / np.log(last.share / first.share) > LEAST_GROWTH)


@dataclass(frozen=True)
class _Band:
    """Soft pixels of nearly one alpha: whether mixing explains them, their mean alpha (0..1), and
    how far they are from the ground, in levels."""

    fits: bool
    share: float
    off: float


def _band(colour: U8, alpha: U8, ground: F64, low: int, high: int) -> _Band | None:
    """None without enough pixels whose nearest opaque colour is apart from the ground."""
    soft = (alpha >= low) & (alpha < high)
    if np.count_nonzero(soft) < LEAST_SOFT:
        return None
    frames = [k for k in range(len(alpha)) if soft[k].any()]
    own = np.concatenate([nearby_colour(colour[k], alpha[k])[soft[k]] for k in frames])
    away = ground - own.astype(np.float64)
    telling = np.linalg.norm(away, axis=1) >= APART
    if np.count_nonzero(telling) < LEAST_SOFT:
        return None
    away, own = away[telling], own[telling].astype(np.float64)
    seen = colour[soft][telling].astype(np.float64)
    share = alpha[soft][telling][:, None] / 255.0
    floor = (1 - share) * ground
    inside = (seen >= floor - SLACK) & (seen <= floor + 255 * share + SLACK)
    expected, moved = (1 - share) * away, seen - own
    slope = float((expected * moved).sum() / (expected**2).sum())
    better = np.abs(moved - expected).mean() < LEAST_GAIN * np.abs(moved).mean()
    fits = inside.all(axis=1).mean() >= 0.98 and 0.5 <= slope <= 1.8 and better
    off = float(np.linalg.norm(seen - ground, axis=1).mean())
    return _Band(bool(fits), float(share.mean()), off)
