"""Make a foreground look as if one camera had seen it and its background.

All changes go into the foreground layer before compositing, so that the stored layers still give
``blended`` exactly. Colours are changed by one curve per clip, constant in time.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from layerflow.clip import F32, U8
from layerflow.seeds import generator
from pipelines.vision.composite import premultiplied, straight
from pipelines.vision.sharpness import defocus, softness

MAX_SHIFT = (18.0, 10.0, 10.0)  # of L, a, b means (CIE Lab units)
MAX_GAIN = 1.35
GRAIN_SHAPE = 0.7  # sigma of the noise's correlation, pixels
MAX_GRAIN = 6.0  # levels
GRAIN_SLACK = 64  # pixels by which the field of noise is larger than a frame
GRAIN_BLOCK = 8  # coefficients, so 16 pixels
SMOOTHEST = 0.05  # share of the blocks that show noise rather than texture
SMOOTHEST_BIAS = 1.15  # such a quantile of white noise is that much too low


@dataclass(frozen=True)
class Curve:
    """Lab curve of a clip: ``x -> (x - mean) * gain + mean + shift`` for each of L, a, b."""

    mean: NDArray[np.float32]
    gain: NDArray[np.float32]
    shift: NDArray[np.float32]


def lab_statistics(rgb: U8, weight: F32) -> tuple[NDArray, NDArray]:
    """Weighted mean and standard deviation of L, a, b: uint8 ``[h, w, 3]``, float ``[h, w]``."""
    lab = cv2.cvtColor(rgb.astype(np.float32) / np.float32(255), cv2.COLOR_RGB2Lab)
    flat, w = lab.reshape(-1, 3), weight.reshape(-1, 1).astype(np.float32)
    total = max(float(w.sum()), 1e-6)
    mean = (flat * w).sum(0) / total
    spread = np.sqrt((w * (flat - mean) ** 2).sum(0) / total)
    return mean, spread


def match_curve(
    foreground: tuple[NDArray, NDArray], background: tuple[NDArray, NDArray], strength: float
) -> Curve:
    """A partial match of mean and spread (Reinhard et al. 2001), capped, by strength 0..1.

    Only part of a lightness or chroma difference is a matter of illumination, so shifts are
    limited to ``MAX_SHIFT`` and gains to ``MAX_GAIN``.
    """
    (mean_f, std_f), (mean_b, std_b) = foreground, background
    limit = np.asarray(MAX_SHIFT, np.float32)
    shift = np.clip(strength * (mean_b - mean_f), -limit, limit)
    ratio = (std_b + 2.0) / (std_f + 2.0)
    gain = np.clip(ratio ** (strength * 0.6), 1 / MAX_GAIN, MAX_GAIN)
    return Curve(*(np.asarray(v, np.float32) for v in (mean_f, gain, shift)))


def apply_curve(rgba: U8, curve: Curve) -> U8:
    """The curve on the colour of straight uint8 ``[h, w, 4]``."""
    lab = cv2.cvtColor(rgba[..., :3].astype(np.float32) / np.float32(255), cv2.COLOR_RGB2Lab)
    lab = (lab - curve.mean) * curve.gain + (curve.mean + curve.shift)
    rgb = cv2.cvtColor(lab.astype(np.float32), cv2.COLOR_Lab2RGB)
    return np.dstack([np.clip(np.rint(rgb * 255), 0, 255).astype(np.uint8), rgba[..., 3]])


def clipped(rgba: U8) -> float:
    """Share of an object's opaque pixels with a channel at 0 or 255 (every other pixel)."""
    rgba = rgba[::2, ::2]
    solid = rgba[..., 3] >= 128
    if not solid.any():
        return 0.0
    colour = rgba[..., :3][solid]
    return float(((colour == 0) | (colour == 255)).any(axis=1).mean())


def grain_level(grey: F32, weight: F32) -> float:
    """Standard deviation of the noise in float32 grey levels ``[h, w]``.

    Median absolute diagonal Haar coefficient / 0.6745 (Donoho 1994) of blocks of 16 x 16 pixels,
    of the smoothest blocks: in the others texture counts as noise. Only where ``weight`` is above
    0.9 and the picture is neither black nor white.
    """
    a, b = grey[:-1:2, :-1:2], grey[:-1:2, 1::2]
    c, d = grey[1::2, :-1:2], grey[1::2, 1::2]
    h, w = (min(a.shape[k], d.shape[k]) // GRAIN_BLOCK * GRAIN_BLOCK for k in (0, 1))
    if h == 0 or w == 0:
        return 0.0
    diagonal = np.abs(a[:h, :w] - b[:h, :w] - c[:h, :w] + d[:h, :w]) / 2
    use = (weight[:-1:2, :-1:2][:h, :w] > 0.9) & (a[:h, :w] > 8) & (a[:h, :w] < 247)
    whole = _blocks(use).all(axis=1)
    if whole.sum() < 4:
        return 0.0
    medians = np.median(_blocks(diagonal)[whole], axis=1) / 0.6745
    return float(np.quantile(medians, SMOOTHEST) * SMOOTHEST_BIAS)


def _blocks(values: NDArray) -> NDArray:
    """``[h, w]`` -> ``[blocks, values of one]``."""
    h, w = (side // GRAIN_BLOCK for side in values.shape)
    cut = values.reshape(h, GRAIN_BLOCK, w, GRAIN_BLOCK)
    return cut.swapaxes(1, 2).reshape(h * w, -1)


def make_grain(seed: int, index: int, shape: tuple[int, int, int], level: float) -> F32:
    """Luma noise float32 ``[T, H, W]``: Gaussian, a little correlated, ``level`` strong.

    One larger field, cut out at another place and mirrored another way for every frame.
    """
    rng = generator(seed, index, "grain")
    count, height, width = shape
    field = rng.standard_normal((height + GRAIN_SLACK, width + GRAIN_SLACK), np.float32)
    field = cv2.GaussianBlur(field, (0, 0), GRAIN_SHAPE)
    # A Gaussian of GRAIN_SHAPE leaves 1 / (2 sqrt(pi) sigma) of white noise's deviation.
    field *= np.float32(min(level, MAX_GRAIN) * 2 * np.sqrt(np.pi) * GRAIN_SHAPE)
    corners = rng.integers(GRAIN_SLACK + 1, size=(count, 2))
    noise = np.empty(shape, np.float32)
    for t, (y, x) in enumerate(corners):
        cut = field[y : y + height, x : x + width]
        noise[t] = cut[:: 1 - 2 * (t % 2), :: 1 - 2 * (t // 2 % 2)]
    return noise


@dataclass(frozen=True)
class AppearanceChange:
    """What is done to a foreground to match its background: stored with the clip.

    sigma: of the blur, pixels; grain: standard deviation of the noise, levels.
    """

    curve: Curve | None
    strength: float
    sigma: float
    grain: float


def _noise_and_softness(background: U8) -> tuple[float, float]:
    """Noise of the middle frame and softness of the edges of three frames of ``[T, H, W, 3]``."""
    count = len(background)
    greys = {
        t: cv2.cvtColor(background[t], cv2.COLOR_RGB2GRAY).astype(np.float32)
        for t in (0, count // 2, count - 1)
    }
    ones = np.ones(background.shape[1:3], np.float32)
    noise = grain_level(greys[count // 2], ones)
    return noise, softness(list(greys.values()), [ones] * len(greys), noise) or 0.0


def appearance_change(
    rgba: U8,
    scale: float,
    background: U8,
    near: tuple[int, int, int, int],
    *,
    strength: float,
    blur: bool,
    grain: bool,
) -> AppearanceChange:
    """What to do to a foreground (straight uint8 ``[h, w, 4]``, pasted at ``scale``).

    background: uint8 ``[T, H, W, 3]``; near: y0, y1, x0, x1 around the object at mid-clip.
    """
    size = (max(4, round(rgba.shape[1] * scale)), max(4, round(rgba.shape[0] * scale)))
    ink = premultiplied(rgba)
    ink = cv2.resize(ink, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    weight = np.ascontiguousarray(ink[..., 3]) * np.float32(1 / 255)
    colour = straight(ink)
    middle = background[len(background) // 2]
    y0, y1, x0, x1 = near
    curve = None
    if strength > 0:
        shown = np.clip(np.rint(colour), 0, 255).astype(np.uint8)
        ring = np.ascontiguousarray(middle[y0:y1:2, x0:x1:2])
        around = lab_statistics(ring, np.ones(ring.shape[:2], np.float32))
        curve = match_curve(lab_statistics(shown, weight), around, strength)
    sigma = level = 0.0
    if blur or grain:
        noise, soft = _noise_and_softness(background)
        mean = (colour * weight[..., None]).sum((0, 1)) / max(float(weight.sum()), 1e-6)
        filled = colour * weight[..., None] + mean * (1 - weight[..., None])
        grey = cv2.cvtColor(filled.astype(np.float32), cv2.COLOR_RGB2GRAY)
        if blur:
            sigma = defocus(grey, weight, soft, background.shape[1])
        if grain:
            own = 0.0 if sigma > 0.5 else grain_level(grey, weight)
            level = float(np.sqrt(max(0.0, min(noise, MAX_GRAIN) ** 2 - own**2)))
    return AppearanceChange(curve, strength, sigma, level if level >= 0.5 else 0.0)
