"""Warp foregrounds once, merge them back to front, and make the layers of a pasted clip.

Inside, a foreground is premultiplied float32 RGBA in 0..255. What comes out are straight uint8
layers whose composite is ``blended`` exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from layerflow.clip import F32, U8, composite
from pipelines.vision.numerics import push_pull
from pipelines.vision.path import Path, matrices

F64 = NDArray[np.float64]
Roi = tuple[int, int, int, int]
OVERSAMPLE = 2.0  # prefiltered pixels per clip pixel, so that bilinear warping stays even
LENS = 0.4  # blur in clip pixels that every real picture has
FAINT = 13.0  # alpha (of 255) below which the continued colour is blended in
MAX_BLUR_SAMPLES = 12


@dataclass(frozen=True)
class Sprite:
    """A foreground ready to warp: prefiltered frames (one for a still), its path, full size.

    frames: premultiplied float32 ``[h, w, 4]``, 0..255. shape: height and width before the
    prefilter, in the pixels that the path's scale counts.
    """

    frames: Sequence[F32]
    path: Path
    shape: tuple[int, int]

    def maps(self, poses: F64) -> F64:
        """Affine maps ``[n, 2, 3]`` from pixels of the prefiltered frames to clip pixels."""
        return matrices(poses, self.shape, self.path.mirrored, self.factor)

    @property
    def factor(self) -> tuple[float, float]:
        """(y, x) pixels of the prefiltered frames per pixel at full size."""
        height, width = self.frames[0].shape[:2]
        return height / self.shape[0], width / self.shape[1]


def reduced(rgba: U8, scale: float) -> U8:
    """Straight uint8 ``[h, w, 4]`` at most ``OVERSAMPLE`` times as large as it is pasted."""
    factor = OVERSAMPLE * scale
    return shrink_straight(rgba, factor) if factor < 0.9 else rgba


def prefilter(rgba: U8, scale: float, sigma: float = 0.0) -> F32:
    """Straight uint8 ``[h, w, 4]`` -> premultiplied float32, low-pass for warping by scale.

    rgba: as ``reduced`` gives it. sigma: further blur in clip pixels (defocus).
    """
    ink = premultiplied(rgba)
    blur = float(np.hypot(LENS, sigma)) / scale
    if blur > 0.35:
        margin = int(np.ceil(2 * blur))
        ink = cv2.copyMakeBorder(ink, *(margin,) * 4, cv2.BORDER_REPLICATE)
        ink = cv2.GaussianBlur(ink, (0, 0), blur, borderType=cv2.BORDER_REPLICATE)
        ink = np.ascontiguousarray(ink[margin:-margin, margin:-margin])
    return ink


def premultiplied(rgba: U8) -> F32:
    """Straight uint8 ``[h, w, 4]`` -> premultiplied float32 ``[h, w, 4]`` in 0..255."""
    ink = rgba.astype(np.float32)
    share = cv2.extractChannel(ink, 3) * np.float32(1 / 255)
    factors = cv2.merge([share, share, share, np.ones_like(share)])
    return cv2.multiply(ink, factors, dst=ink)


def straight(ink: F32) -> F32:
    """The colour of premultiplied float32 ``[h, w, 4]``: ``[h, w, 3]`` in 0..255, 0 where empty."""
    share = np.float32(255) / np.maximum(cv2.extractChannel(ink, 3), np.float32(1e-3))
    colour = cv2.cvtColor(ink, cv2.COLOR_RGBA2RGB)
    colour = cv2.multiply(colour, cv2.cvtColor(share, cv2.COLOR_GRAY2RGB), dst=colour)
    return np.minimum(colour, np.float32(255), out=colour)


def shrink_straight(rgba: U8, factor: float) -> U8:
    """Straight uint8 ``[h, w, 4]`` made smaller by an area filter on premultiplied data."""
    size = (max(2, round(rgba.shape[1] * factor)), max(2, round(rgba.shape[0] * factor)))
    ink = cv2.resize(premultiplied(rgba), size, interpolation=cv2.INTER_AREA)
    small = np.dstack([straight(ink), ink[..., 3]])
    return np.clip(np.rint(small), 0, 255).astype(np.uint8)


def compose(
    sprites: Sequence[Sprite],
    background: U8,
    *,
    shutter: float = 0.0,
    grain: F32 | None = None,
    own: Sequence[U8] = (),
    colours: Sequence[U8] = (),
) -> tuple[U8, U8, U8, list[float]]:
    """Layers of a clip: foreground, alpha, blended, and each frame's least visible share.

    sprites: back to front. background: uint8 ``[T, H, W, 3]``. shutter: share of a frame's time
    (0..1) over which motion blurs. grain: float32 ``[T, H, W]``, luma noise that goes into the
    foreground layer, in levels. own: one zeroed uint8 ``[T, H, W]`` a sprite, or none, that its
    alpha alone is written to; colours: as many uint8 ``[T, H, W, 3]``, or none, for its straight
    colour, with the grain and also where others hide it.
    """
    count, height, width = background.shape[:3]
    foreground = np.empty_like(background)
    alpha = np.zeros(background.shape[:3], np.uint8)
    blended = background.copy()
    visible = []
    maps = [_maps(sprite, shutter, count) for sprite in sprites]
    masses = [_masses(sprite, count) for sprite in sprites]
    for t in range(count):
        layers = [
            render(sprite.frames[t if len(sprite.frames) > 1 else 0], found[t], (height, width))
            for sprite, found in zip(sprites, maps, strict=True)
        ]
        seen = zip(layers, maps, masses, strict=True)
        visible.append(min(_visible(layer, found[t], mass[t]) for layer, found, mass in seen))
        noise = grain[t] if grain is not None else None
        for number, (alone, (at, part)) in enumerate(zip(own, layers, strict=bool(own))):
            if colours:
                _fill_layers(colours[number][t], alone[t], at, part, noise)
            else:
                alone[t, at[0] : at[1], at[2] : at[3]] = cv2.convertScaleAbs(part[..., 3])
        roi, ink = merge(layers)
        _fill_layers(foreground[t], alpha[t], roi, ink, noise)
        where = np.s_[roi[0] : roi[1], roi[2] : roi[3]]
        _blend(foreground[t][where], alpha[t][where], blended[t][where])
    return foreground, alpha, blended, visible


def _maps(sprite: Sprite, shutter: float, count: int) -> list[F64]:
    """For each frame the affine maps ``[n, 2, 3]`` whose mean is the blurred picture."""
    first = sprite.frames[0]
    whole = sprite.maps(sprite.path.poses)
    if shutter <= 0 or count < 2:
        return [whole[t : t + 1] for t in range(count)]
    corners = np.array(
        [[x, y, 1] for x in (0, first.shape[1]) for y in (0, first.shape[0])], np.float64
    ).T
    steps = np.abs(np.diff(whole @ corners, axis=0)).max(axis=(1, 2))
    speed = np.append(steps, steps[-1])
    speed[1:] = np.maximum(speed[1:], steps)
    out = []
    for t in range(count):
        samples = int(min(MAX_BLUR_SAMPLES, np.ceil(speed[t] * shutter / 0.8)))
        if samples < 2:
            out.append(whole[t : t + 1])
            continue
        times = t + shutter * ((np.arange(samples) + 0.5) / samples - 0.5)
        out.append(sprite.maps(sprite.path.at(times)))
    return out


def render(ink: F32, maps: F64, size: tuple[int, int]) -> tuple[Roi, F32]:
    """Warp a prefiltered foreground by the mean of affine maps ``[n, 2, 3]``.

    Returns the region (y0, y1, x0, x1) of the clip that it touches and its premultiplied pixels.
    """
    height, width = size
    corners = np.array(
        [[x, y, 1] for x in (-1, ink.shape[1]) for y in (-1, ink.shape[0])], np.float64
    ).T
    points = maps @ corners
    low = np.floor(points.min(axis=(0, 2))).astype(int)
    high = np.ceil(points.max(axis=(0, 2))).astype(int) + 1
    x0, y0 = max(0, low[0]), max(0, low[1])
    x1, y1 = min(width, high[0]), min(height, high[1])
    if x1 <= x0 or y1 <= y0:
        return (0, 0, 0, 0), np.zeros((0, 0, 4), np.float32)
    total: F32 | None = None
    for matrix in maps:
        local = matrix.copy()
        local[:, 2] -= (x0, y0)
        moved = cv2.warpAffine(
            ink, local, (x1 - x0, y1 - y0), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT
        )
        total = moved if total is None else cv2.add(total, moved, dst=total)
    assert total is not None
    if len(maps) > 1:
        total *= np.float32(1 / len(maps))
    return (y0, y1, x0, x1), total


def _masses(sprite: Sprite, count: int) -> list[float]:
    """Sum of alpha of each frame, in prefiltered pixels."""
    masses = [_alpha_sum(ink) for ink in sprite.frames]
    return masses if len(masses) > 1 else masses * count


def _alpha_sum(ink: F32) -> float:
    # Not cv2.sumElems: its last digits depend on where the array lies in memory.
    return float(cv2.extractChannel(ink, 3).sum(dtype=np.float64))


def _visible(layer: tuple[Roi, F32], maps: F64, mass: float) -> float:
    """Share of a sprite's alpha that lies inside the picture."""
    if not layer[1].size:
        return 0.0
    whole = mass * abs(float(np.linalg.det(maps[0, :, :2])))
    return min(1.0, _alpha_sum(layer[1]) / max(whole, 1e-6))


def merge(layers: Sequence[tuple[Roi, F32]]) -> tuple[Roi, F32]:
    """Premultiplied layers, back to front, over one another: one region with all of them."""
    if len(layers) == 1:
        return layers[0]
    held = [roi for roi, ink in layers if ink.size]
    if not held:
        return layers[0]
    corner = np.array(held)
    y0, x0 = corner[:, 0].min(), corner[:, 2].min()
    y1, x1 = corner[:, 1].max(), corner[:, 3].max()
    total = np.zeros((y1 - y0, x1 - x0, 4), np.float32)
    for roi, ink in layers:
        if ink.size:
            part = total[roi[0] - y0 : roi[1] - y0, roi[2] - x0 : roi[3] - x0]
            part *= 1 - ink[..., 3:] * np.float32(1 / 255)
            part += ink
    return (int(y0), int(y1), int(x0), int(x1)), total


def _fill_layers(colour: U8, alpha: U8, roi: Roi, ink: F32, grain: F32 | None) -> None:
    """Write one frame's straight colour (continued smoothly everywhere) and its alpha."""
    small = continuation(ink, roi, colour.shape[:2])
    cv2.resize(small, (colour.shape[1], colour.shape[0]), dst=colour)
    if not ink.size:
        return
    where = np.s_[roi[0] : roi[1], roi[2] : roi[3]]
    inside = straight(ink)
    if grain is not None:
        noise = np.ascontiguousarray(grain[where])
        inside = cv2.add(inside, cv2.cvtColor(noise, cv2.COLOR_GRAY2RGB), dst=inside)
        inside = cv2.max(inside, 0.0, dst=inside)
    matte = cv2.extractChannel(ink, 3)
    rest = colour[where]
    faint = (matte > 0) & (matte < FAINT)
    sure = matte[faint][:, None] * np.float32(1 / FAINT)
    mixed = rest[faint] * (1 - sure) + inside[faint] * sure
    cv2.copyTo(cv2.convertScaleAbs(inside), (matte >= FAINT).view(np.uint8), dst=rest)
    rest[faint] = np.rint(mixed)
    alpha[where] = cv2.convertScaleAbs(matte)


def _blend(colour: U8, alpha: U8, blended: U8) -> None:
    """``composite`` in place over ``blended``, which holds the background; only where it counts."""
    cv2.copyTo(colour, (alpha == 255).view(np.uint8), dst=blended)
    soft = (alpha > 0) & (alpha < 255)
    blended[soft] = composite(colour[soft], alpha[soft], blended[soft])


def continuation(ink: F32, roi: Roi, size: tuple[int, int]) -> U8:
    """The foreground's colour spread smoothly over the whole picture, at a quarter of its size
    (small pictures: at half of it, or all).

    Premultiplied float32 ``[h, w, 4]`` of the region -> uint8 ``[ceil(H/step), ceil(W/step), 3]``.
    """
    step = 4 if min(size) >= 128 else 2 if min(size) >= 64 else 1
    height, width = -(-size[0] // step), -(-size[1] // step)
    if not ink.size:
        return np.full((height, width, 3), 127, np.uint8)
    y0, x0 = roi[0] // step, roi[2] // step
    y1, x1 = -(-roi[1] // step), -(-roi[3] // step)
    framed = cv2.copyMakeBorder(
        ink,
        *(roi[0] - y0 * step, y1 * step - roi[1], roi[2] - x0 * step, x1 * step - roi[3]),
        cv2.BORDER_CONSTANT,
    )
    whole = np.zeros((height, width, 4), np.float32)
    target = (x1 - x0, y1 - y0)
    whole[y0:y1, x0:x1] = (
        cv2.resize(framed, target, interpolation=cv2.INTER_AREA) if step > 1 else framed
    )
    matte = np.ascontiguousarray(whole[..., 3]) * np.float32(1 / 255)
    spread = push_pull(straight(whole), np.where(matte > 0.02, matte, 0.0))
    return np.clip(np.rint(spread), 0, 255).astype(np.uint8)


def continued(colour: U8, alpha: U8) -> U8:
    """Straight colour uint8 ``[H, W, 3]``, continued smoothly where alpha ``[H, W]`` is 0."""
    height, width = alpha.shape
    ink = premultiplied(np.dstack([colour, alpha]))
    small = continuation(ink, (0, height, 0, width), (height, width))
    return np.where(alpha[..., None] > 0, colour, cv2.resize(small, (width, height)))
