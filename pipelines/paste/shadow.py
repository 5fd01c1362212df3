"""The shadow that a standing object throws on its background: soft, squashed, dark at the feet.

It belongs to the background (``shadow: background``): the stored background carries it, so that
the layers still give ``blended`` exactly, and the plate without it is kept beside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from layerflow.clip import F32, U8
from pipelines.vision.composite import Sprite

if TYPE_CHECKING:
    from manifests.paste import PasteOptions

F64 = NDArray[np.float64]
CONTACT_SQUASH, CONTACT_BLUR = 0.04, 0.010  # of the object's height
CAST_BLUR = 0.03


@dataclass(frozen=True)
class Shadow:
    """strength: share of light that the cast shadow takes; contact: that at the feet. squash:
    height of the cast shadow per height of the object; shear: its slant to the side."""

    strength: float
    contact: float
    squash: float
    shear: float


def draw_shadow(rng: np.random.Generator, options: PasteOptions) -> Shadow:
    """One direction of light for all objects of a clip, constant in time."""
    strength = rng.uniform(*options.shadow_strength)
    side = 1.0 if rng.random() < 0.5 else -1.0
    return Shadow(
        strength=strength,
        contact=min(0.9, strength * rng.uniform(1.2, 1.6)),
        squash=rng.uniform(0.12, 0.3),
        shear=side * rng.uniform(0.2, 0.9),
    )


def shade(background: U8, sprites: Sequence[Sprite], shadow: Shadow) -> U8:
    """uint8 ``[T, H, W, 3]`` with the shadows of sprites that stand in it.

    sprites: back to front; what they throw on one another is left out, it is not the background's.
    """
    count, height, width = background.shape[:3]
    step = 4 if min(height, width) >= 128 else 2 if min(height, width) >= 64 else 1
    small = -(-height // step), -(-width // step)
    maps = [sprite.maps(sprite.path.poses) for sprite in sprites]
    inks = [[_thin(frame, step, s) for frame in s.frames] for s in sprites]
    out = np.empty_like(background)
    for t in range(count):
        light = np.ones(small, np.float32)
        for sprite, found, ink in zip(sprites, maps, inks, strict=True):
            alpha, factor = ink[t if len(ink) > 1 else 0]
            tall = sprite.shape[0] * float(sprite.path.poses[t, 2])
            light *= _light(alpha, found[t] @ factor, tall, step, small, shadow)
        full = cv2.resize(light, (small[1] * step, small[0] * step))[:height, :width]
        lit = cv2.multiply(background[t].astype(np.float32), cv2.merge([full] * 3))
        out[t] = cv2.convertScaleAbs(lit)
    return out


def _thin(ink: F32, step: int, sprite: Sprite) -> tuple[F32, F64]:
    """Alpha 0..1 at about the size at which it is needed, and the map from it to the ink."""
    alpha = cv2.extractChannel(ink, 3) * np.float32(1 / 255)
    share = min(1.0, 2.0 * float(sprite.path.poses[:, 2].max()) / sprite.factor[0] / step)
    size = max(2, round(ink.shape[1] * share)), max(2, round(ink.shape[0] * share))
    small: F32 = cv2.resize(alpha, size, interpolation=cv2.INTER_AREA)
    fx, fy = ink.shape[1] / size[0], ink.shape[0] / size[1]
    back = np.array([[fx, 0, fx / 2 - 0.5], [0, fy, fy / 2 - 0.5], [0, 0, 1]])
    return small, back


def _light(
    alpha: F32, place: F64, tall: float, step: int, size: tuple[int, int], shadow: Shadow
) -> F32:
    """Light that is left, float32 ``size``. place: ``[2, 3]``, alpha's pixels -> clip pixels."""
    whole = np.vstack([place, [0, 0, 1]])
    feet = float((place @ [alpha.shape[1] / 2, alpha.shape[0] - 1, 1])[1])
    fit = np.array([[1 / step, 0, 0.5 / step - 0.5], [0, 1 / step, 0.5 / step - 0.5], [0, 0, 1]])
    light = np.ones(size, np.float32)
    for squash, shear, blur, strength in (
        (shadow.squash, shadow.shear, CAST_BLUR, shadow.strength),
        (CONTACT_SQUASH, 0.0, CONTACT_BLUR, shadow.contact),
    ):
        lay = np.array([[1, -shear, shear * feet], [0, squash, feet * (1 - squash)], [0, 0, 1]])
        flat = cv2.warpAffine(alpha, (fit @ lay @ whole)[:2], (size[1], size[0]))
        soft = cv2.GaussianBlur(flat, (0, 0), max(0.6, blur * tall / step))
        light *= 1 - np.float32(strength) * soft
    return light
