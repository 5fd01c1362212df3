"""Cut-outs that were put on one flat colour: is there such a ground, and the colour without it.

A stored colour C = a F + (1 - a) K is not the object's own F. With K black it is premultiplied, as
editing programs export videos with alpha; matting networks write their foregrounds on green. The
ground is seen where alpha is 0, but a flat colour there says little (straight colour has one too):
in addition soft pixels must lean towards it as alpha falls, by as much as the equation says.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from layerflow.clip import U8
from pipelines.vision.colour import estimate_foreground, nearby_colour

F64 = NDArray[np.float64]
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Ground:
    """What cut-outs were put on. leftover: they were cut out of a picture whose own background is
    still in their soft edges, as matting networks do it: (a F + (1 - a) B) is on the ground."""

    colour: Colour
    leftover: bool = False


CLEAR, SURE = 2, 250  # alpha up to which nothing is there, from which nothing shines through
BANDS = (16, 60, 100, 140)  # of alpha, in which a ground shows most and can still be measured
FLAT = 14  # levels by which coded videos stray from a flat colour
LEAST_FLAT = 0.97  # of the clear pixels
LEAST_HINTED = 0.9  # of the faint pixels
LEAST_CLEAR, LEAST_SOFT = 100, 32  # pixels
LEAST_GAIN = 0.8  # of the distance from the opaque colour beside, that mixing must leave less of
LEAST_GROWTH = 0.5  # power of alpha: 1 for mixed colour, 0 for straight colour
NOISE = 2.0  # levels
FAINT_AND_STRONG = ((20, 60), (140, 200))  # alpha, where a background is left over most and least
LEFT, LEAST_LEFT = 1.6, 25.0  # times as far from the object's colour; levels
HOLD = 0.1
APART = 30.0  # levels between ground and object, below which there is nothing to tell or to undo
SLACK = 24.0  # levels by which coded colour may leave the range that a ground allows
PIXELS = 250_000  # of a frame that are looked at


def flat_colour(colour: U8, alpha: U8, tolerance: float = FLAT) -> Colour | None:
    """The one colour of uint8 ``[T, H, W, 3]`` where alpha ``[T, H, W]`` is 0; None if there is
    none, or hardly a clear pixel. tolerance: levels by which it may stray."""
    outside = _clear(colour, alpha)
    if len(outside) < LEAST_CLEAR:
        return None
    middle = np.median(outside, axis=0)
    near = (np.abs(outside - middle) <= tolerance).all(axis=1)
    if near.mean() < LEAST_FLAT:
        return None
    red, green, blue = (int(level) for level in np.rint(middle))
    return red, green, blue


def find_ground(colour: U8, alpha: U8) -> Ground | None:
    """The ground that uint8 ``[T, H, W, 3]`` was put on by alpha ``[T, H, W]``; None for straight
    colour, and for what cannot be told from it.

    Of large frames every n-th pixel is looked at.
    """
    colour, alpha = thinned(colour), thinned(alpha[..., None])[..., 0]
    for flat in _candidates(colour, alpha):
        if _leans(colour, alpha, np.asarray(flat, np.float64)):
            return understood(flat, colour, alpha)
    return None


def _candidates(colour: U8, alpha: U8) -> Iterator[Colour]:
    """Colours that a picture may have been put on: the flat one that is seen around the object;
    where none is, or black, which coders of pictures leave there, what soft pixels hint at."""
    flat = flat_colour(colour, alpha)
    if flat is not None and max(flat) > FLAT:
        yield flat
        return
    if flat is not None or len(_clear(colour, alpha)) < LEAST_CLEAR:
        yield 0, 0, 0
    hinted = _hinted(colour, alpha)
    if hinted is not None:
        yield hinted


def _hinted(colour: U8, alpha: U8) -> Colour | None:
    """The one colour that explains faint pixels by the opaque ones beside them; None if many do."""
    faint = (alpha >= BANDS[0]) & (alpha < BANDS[2])
    frames = [k for k in range(len(alpha)) if faint[k].any() and (alpha[k] >= SURE).any()]
    if not frames:
        return None
    own = np.concatenate([nearby_colour(colour[k], alpha[k])[faint[k]] for k in frames])
    seen = np.concatenate([colour[k][faint[k]] for k in frames]).astype(np.float32)
    share = np.concatenate([alpha[k][faint[k]] for k in frames])[:, None] / np.float32(255)
    behind = (seen - share * own) / (1 - share)
    middle = np.median(behind, axis=0)
    if (np.abs(behind - middle) <= 2 * FLAT).all(axis=1).mean() < LEAST_HINTED:
        return None
    red, green, blue = (int(level) for level in np.clip(np.rint(middle), 0, 255))
    return (red, green, blue) if max(red, green, blue) > FLAT else (0, 0, 0)


def understood(flat: Colour, colour: U8, alpha: U8) -> Ground:
    """The ground of a known colour under uint8 ``[T, H, W, 3]`` by alpha ``[T, H, W]``.

    Texture differs from the opaque colour beside it alike at any alpha, a background that is left
    over the more the less is opaque. Black is taken for plain premultiplication.
    """
    if flat == (0, 0, 0):
        return Ground(flat)
    lifted = lift(colour, alpha, Ground(flat))
    off = [0.0, 0.0]
    for place, (low, high) in enumerate(FAINT_AND_STRONG):
        band = (alpha >= low) & (alpha < high)
        if np.count_nonzero(band) < LEAST_SOFT:
            return Ground(flat)
        frames = [k for k in range(len(alpha)) if band[k].any()]
        own = np.concatenate([nearby_colour(lifted[k], alpha[k])[band[k]] for k in frames])
        off[place] = float(np.linalg.norm(lifted[band] - own, axis=1).mean())
    return Ground(flat, off[0] > max(LEAST_LEFT, LEFT * off[1]))


def lift(colour: U8, alpha: U8, ground: Ground) -> U8:
    """Straight colour uint8 ``[T, H, W, 3]`` of frames that were put on a ground.

    Where alpha is so small that levels and coding noise would be blown up, the object's colour
    nearby counts instead; and so it does, the more the softer, where a background is left over.
    """
    plate = np.broadcast_to(np.asarray(ground.colour, np.uint8), colour.shape[1:])
    out = np.empty_like(colour)
    for place, (frame, matte) in enumerate(zip(colour, alpha, strict=True)):
        out[place] = estimate_foreground(frame, matte, plate)
        if ground.leftover:
            out[place] = _without_leftover(out[place], matte)
    return out


def _without_leftover(mixed: U8, matte: U8) -> U8:
    """The object's colour of a picture that is known only where the matte is not empty.

    The background is what the object's colour nearby leaves unexplained, spread over its
    surroundings. It is a guess: the colour nearby holds the result with the weight ``HOLD``.
    """
    a = matte.astype(np.float32)[..., None] / 255
    own = nearby_colour(mixed, matte)
    behind = (mixed - a * own) / np.maximum(1 - a, 0.05)
    weight = np.where((a > 0.08) & (a < 0.92), (1 - a) ** 2 * a, 0)
    reach = max(2.0, min(matte.shape) / 40)
    mass = cv2.GaussianBlur(weight, (0, 0), reach)[..., None]
    spread = cv2.GaussianBlur(behind * weight, (0, 0), reach) / np.maximum(mass, 1e-6)
    guess = own + a * (mixed - a * own - (1 - a) * np.clip(spread, 0, 255)) / (a * a + HOLD)
    clean: U8 = np.clip(np.rint(guess), 0, 255).astype(np.uint8)
    return np.where(a >= 1, mixed, clean)


def thinned(frames: U8) -> U8:
    """Every n-th pixel of large frames ``[T, H, W, C]``: a mean would blend the edges away."""
    step = max(1, int(np.ceil(np.sqrt(frames.shape[1] * frames.shape[2] / PIXELS))))
    return np.ascontiguousarray(frames[:, ::step, ::step])


def _clear(colour: U8, alpha: U8) -> NDArray[np.float32]:
    return colour[alpha <= CLEAR].astype(np.float32)


def _leans(colour: U8, alpha: U8, ground: F64) -> bool:
    """Whether soft pixels are mixed with the ground as the equation says, in each band of alpha.

    Straight colour stays the one of the opaque pixels beside it; mixed colour moves from there by
    ``(1 - a) (K - F)``, and from the ground by ``a (F - K)``: it grows with alpha. An outline that
    has the colour of the ground by nature does not. Where nothing is opaque (smoke), only that and
    the range of mixed colour can be told.
    """
    opaque = bool((alpha >= SURE).any())
    bands = [
        found
        for low, high in itertools.pairwise(BANDS if opaque else (*BANDS, SURE))
        if (found := _band(colour, alpha, ground, (low, high), opaque)) is not None
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


def _band(colour: U8, alpha: U8, ground: F64, band: tuple[int, int], opaque: bool) -> _Band | None:
    """None without enough pixels whose nearest opaque colour, if any is, is apart from the
    ground."""
    soft = (alpha >= band[0]) & (alpha < band[1])
    if np.count_nonzero(soft) < LEAST_SOFT:
        return None
    seen, share = colour[soft].astype(np.float64), alpha[soft][:, None] / 255.0
    fits = True
    if opaque:
        frames = [k for k in range(len(alpha)) if soft[k].any()]
        own = np.concatenate([nearby_colour(colour[k], alpha[k])[soft[k]] for k in frames])
        away = ground - own.astype(np.float64)
        telling = np.linalg.norm(away, axis=1) >= APART
        if np.count_nonzero(telling) < LEAST_SOFT:
            return None
        seen, share, away = seen[telling], share[telling], away[telling]
        expected, moved = (1 - share) * away, seen - own[telling]
        slope = float((expected * moved).sum() / (expected**2).sum())
        better = np.abs(moved - expected).mean() < LEAST_GAIN * np.abs(moved).mean()
        fits = 0.5 <= slope <= 1.8 and bool(better)
    floor = (1 - share) * ground
    inside = (seen >= floor - SLACK) & (seen <= floor + 255 * share + SLACK)
    fits = fits and bool(inside.all(axis=1).mean() >= 0.98)
    off = float(np.linalg.norm(seen - ground, axis=1).mean())
    return _Band(fits, float(share.mean()), off)
