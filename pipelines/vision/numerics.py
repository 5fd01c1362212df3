"""Small image filters that several backends and stages share. All are deterministic."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import cv2
import numpy as np


@contextmanager
def single_thread() -> Iterator[None]:
    """Run OpenCV, with a fixed seed, and torch, if it is loaded, on one thread; restore the counts.

    Parallelism is across clips, and results must not depend on the number of cores.
    """
    torch: Any = sys.modules.get("torch")
    before, torch_before = cv2.getNumThreads(), torch.get_num_threads() if torch else 0
    cv2.setNumThreads(1)
    cv2.setRNGSeed(0)
    if torch:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)
        if torch:
            torch.set_num_threads(torch_before)


def box(image: np.ndarray, radius: int) -> np.ndarray:
    """Mean over a (2 radius + 1) square, reflected at the border; float32 in and out."""
    size = (2 * radius + 1, 2 * radius + 1)
    return cv2.blur(image, size, borderType=cv2.BORDER_REFLECT)


def disc(radius: int) -> np.ndarray:
    """An elliptic structuring element of the given radius."""
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))


def dilate(mask: np.ndarray, radius: int) -> np.ndarray:
    """Dilate a bool [H, W] mask, or every frame of a [T, H, W] one, by a disc."""
    if radius <= 0:
        return mask.astype(bool)
    if mask.ndim == 3:
        return np.stack([dilate(m, radius) for m in mask])
    return cv2.dilate(mask.astype(np.uint8), disc(radius)).astype(bool)


def guided_affine(
    guide: np.ndarray, image: np.ndarray, radius: int, eps: float
) -> tuple[np.ndarray, np.ndarray]:
    """Colour guided filter (He, Sun, Tang 2013): ``image`` as a local affine function of ``guide``.

    ``guide``: float32 [H, W, 3] in [0, 1]; ``image``: float32 [H, W]; ``eps``: the regulariser of
    the guide's 3 x 3 covariance, in squared guide units. Returns the averaged local model: slope
    [H, W, 3] and offset [H, W]. Enlarged and applied to a larger guide, it gives a result with
    that guide's detail (the "fast guided filter", He and Sun 2015).
    """
    mean_g = box(guide, radius)
    mean_p = box(image, radius)
    covariance = box(guide * image[..., None], radius) - mean_g * mean_p[..., None]
    g0, g1, g2 = (guide[..., i] for i in range(3))
    m0, m1, m2 = (mean_g[..., i] for i in range(3))
    products = cv2.merge([g0 * g0, g0 * g1, g0 * g2, g1 * g1])
    s = box(products, radius)
    s00, s01, s02 = s[..., 0] - m0 * m0 + eps, s[..., 1] - m0 * m1, s[..., 2] - m0 * m2
    s11 = s[..., 3] - m1 * m1 + eps
    s12 = box(g1 * g2, radius) - m1 * m2
    s22 = box(g2 * g2, radius) - m2 * m2 + eps
    # The inverse of the symmetric 3 x 3 covariance by cofactors.
    c00, c01, c02 = s11 * s22 - s12 * s12, s02 * s12 - s01 * s22, s01 * s12 - s02 * s11
    c11, c12, c22 = s00 * s22 - s02 * s02, s01 * s02 - s00 * s12, s00 * s11 - s01 * s01
    determinant = np.maximum(s00 * c00 + s01 * c01 + s02 * c02, 1e-12)
    v0, v1, v2 = (covariance[..., i] for i in range(3))
    slope = cv2.merge(
        [
            (c00 * v0 + c01 * v1 + c02 * v2) / determinant,
            (c01 * v0 + c11 * v1 + c12 * v2) / determinant,
            (c02 * v0 + c12 * v1 + c22 * v2) / determinant,
        ]
    )
    offset = mean_p - (slope * mean_g).sum(-1)
    return box(slope, radius), box(offset, radius)


def push_pull(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Continue ``values`` smoothly into the places where ``weight`` is 0.

    ``values``: float32 [H, W, C]; ``weight``: float32 [H, W] in [0, 1]. A pyramid of weighted means
    is built down to one pixel, then coarse values fill what finer levels lack (Gortler et al. 1996,
    "push-pull"). Where weight is 1 the values come back unchanged; where all of it is 0 the result
    is 0.
    """
    height, width = weight.shape
    if height == 1 and width == 1:
        return values * (weight[..., None] > 0)
    half = ((width + 1) // 2, (height + 1) // 2)
    small_w = cv2.resize(weight, half, interpolation=cv2.INTER_AREA)
    small_v = cv2.resize(values * weight[..., None], half, interpolation=cv2.INTER_AREA)
    small_v = _channels(small_v) / np.maximum(small_w, 1e-12)[..., None]
    # One quarter of a block's pixels is enough to trust the block.
    coarse = push_pull(small_v, np.minimum(small_w * 4, 1))
    coarse = _channels(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR))
    return coarse + weight[..., None] * (values - coarse)


def _channels(image: np.ndarray) -> np.ndarray:
    return image[..., None] if image.ndim == 2 else image


def sort_first_axis(stack: np.ndarray) -> np.ndarray:
    """Sort [N, ...] along its first axis, in place, and return it.

    Batcher's odd-even merge network (Knuth 5.2.2 M): whole slices are compared at once, several
    times faster than ``np.sort`` for the short, strided columns of an image stack.
    """
    count = len(stack)
    low = np.empty_like(stack[:1])[0] if count else stack
    for i, j in _network(count):
        np.minimum(stack[i], stack[j], out=low)
        np.maximum(stack[i], stack[j], out=stack[j])
        stack[i] = low
    return stack


@cache
def _network(count: int) -> tuple[tuple[int, int], ...]:
    pairs = []
    block = 1
    while block < count:
        gap = block
        while gap >= 1:
            for start in range(gap % block, count - gap, 2 * gap):
                for i in range(start, min(start + gap, count - gap)):
                    if i // (2 * block) == (i + gap) // (2 * block):
                        pairs.append((i, i + gap))
            gap //= 2
        block *= 2
    return tuple(pairs)


def smoothstep(low: float, high: float, value: np.ndarray) -> np.ndarray:
    """0 below ``low``, 1 above ``high``, a cubic in between."""
    ramp = np.clip((value - low) / (high - low), 0, 1)
    return ramp * ramp * (3 - 2 * ramp)


def work_size(frames: np.ndarray, area: int, enlarge: float = 1.0) -> tuple[int, int]:
    """Width and height, at least 16, at which frames [T, H, W, ...] have about ``area`` pixels.

    They are enlarged at most this many times.
    """
    height, width = frames.shape[1:3]
    factor = min(enlarge, (area / (height * width)) ** 0.5)
    return max(16, round(width * factor)), max(16, round(height * factor))
