"""Clips whose look and motion are known: textured blobs that drift over coloured noise.

Two families. *Moving*: blue and cyan stripes, a hard matte, 2 to 4 pixels a frame. *Still*: red and
yellow checks, a matte with a soft edge of 4 to 7 pixels, no motion. No colour, texture or edge of
one occurs in the other, so a network that shows still looks in moving clips has combined them.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from layerflow.clip import LayeredClip, composite

F64 = NDArray[np.float64]

SIDE = 32  # pixels
FRAMES = 4


@dataclass(frozen=True)
class Family:
    """How subjects look and move. hues: in 0..1. edge: width of the soft edge, pixels.
    speed: pixels a frame."""

    hues: tuple[float, float]
    checks: bool
    edge: tuple[float, float]
    speed: tuple[float, float]
    frames: int


MOVING = Family((0.62, 0.5), checks=False, edge=(0.0, 0.0), speed=(2.0, 4.0), frames=FRAMES)
STILL = Family((0.0, 0.14), checks=True, edge=(4.0, 7.0), speed=(0.0, 0.0), frames=1)


def draw_clip(family: Family, rng: np.random.Generator) -> LayeredClip:
    """One clip of the family: SIDE x SIDE, exact layers."""
    angle, speed = rng.uniform(0, 2 * np.pi), rng.uniform(*family.speed)
    velocity = speed * np.array([np.sin(angle), np.cos(angle)])
    middle = SIDE * (0.5 + rng.uniform(-0.17, 0.17, 2))
    turn, spin = rng.uniform(0, 2 * np.pi), rng.uniform(-0.12, 0.12) * (speed > 0)
    radius, bumps = SIDE * rng.uniform(0.17, 0.29), rng.uniform(-1, 1, 2)
    edge, period = rng.uniform(*family.edge), rng.uniform(7, 12)
    phase = rng.uniform(0, 2 * np.pi, 2)
    colours = [vivid(hue + rng.uniform(-0.03, 0.03), rng) for hue in family.hues]
    alphas, pictures = [], []
    for t in range(family.frames):
        centre = middle + velocity * (t - (family.frames - 1) / 2)
        y, x = in_object(centre, turn + spin * t)
        around = np.arctan2(y, x)
        reach = radius * (
            1 + 0.22 * bumps[0] * np.cos(2 * around) + 0.18 * bumps[1] * np.cos(3 * around)
        )
        inside = reach - np.hypot(y, x)
        alphas.append(inside > 0 if edge == 0 else np.clip(inside / edge + 0.5, 0, 1))
        wave = np.sin(2 * np.pi * x / period + phase[0])
        if family.checks:
            wave = wave * np.sin(2 * np.pi * y / period + phase[1])
        pictures.append(np.where(wave[..., None] > 0, *colours))
    alpha = np.rint(np.stack(alphas) * 255.0).astype(np.uint8)
    foreground = np.rint(np.stack(pictures) * 255).astype(np.uint8)
    background = draw_background(family.frames, rng)
    blended = composite(foreground, alpha, background)
    return LayeredClip(
        foreground,
        alpha,
        background,
        blended,
        kind="image" if family.frames == 1 else "pasted",
        alpha_kind="binary" if edge == 0 else "soft",
    )


def in_object(centre: F64, turn: float, side: int = SIDE) -> tuple[F64, F64]:
    """Coordinates of every pixel in the frame of an object."""
    y, x = np.indices((side, side)) + 0.5
    y, x = y - centre[0], x - centre[1]
    return y * np.cos(turn) - x * np.sin(turn), y * np.sin(turn) + x * np.cos(turn)


def vivid(hue: float, rng: np.random.Generator) -> F64:
    return np.array(colorsys.hsv_to_rgb(hue % 1, rng.uniform(0.6, 1), rng.uniform(0.7, 1)))


def draw_background(frames: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Two octaves of smooth noise with little colour; half of them pan up to 1.5 px a frame."""
    wide = SIDE + 16
    noise = sum(
        weight
        * cv2.resize(
            rng.uniform(-1, 1, (cells, cells, 3)), (wide, wide), interpolation=cv2.INTER_CUBIC
        )
        for cells, weight in ((4, 0.7), (9, 0.35))
    )
    grey = noise.mean(axis=2, keepdims=True)
    picture = np.clip(0.5 + 0.45 * (grey + 0.4 * (noise - grey)), 0, 1)
    pan = rng.uniform(-1.5, 1.5, 2) * (rng.random() < 0.5)
    out = []
    for t in range(frames):
        y, x = 8 + pan * (t - (frames - 1) / 2)
        centre = (x + SIDE / 2 - 0.5, y + SIDE / 2 - 0.5)
        out.append(cv2.getRectSubPix(picture.astype(np.float32), (SIDE, SIDE), centre))
    return np.rint(np.stack(out) * 255).astype(np.uint8)
