"""Clips with one or two movers that cross, whose layers and order are known.

One mover is warm (red to yellow), the other cool (cyan to blue), both striped, on coloured noise.
Which of them is in front is drawn by a coin, so that neither colour nor size tells it: what tells
it is who hides whom where they cross. The one behind keeps its whole matte.
"""

from __future__ import annotations

import numpy as np
from blobs import draw_background, in_object, vivid
from numpy.typing import NDArray

from layerflow.layer_set import compose, layer_set

U8 = NDArray[np.uint8]
SIDE = 24  # pixels
WARM, COOL = (0.0, 0.14), (0.5, 0.64)
RADIUS = (0.2, 0.3)
"""Of SIDE."""


def draw_movers(count: int, frames: int, rng: np.random.Generator) -> dict[str, U8]:
    """Layers of a clip with 1 or 2 movers, by their names: colours ``[T, SIDE, SIDE, 3]``, mattes
    ``[T, SIDE, SIDE]``."""
    movers = layer_set("rgbax2")
    looks = [WARM, COOL] if rng.random() < 0.5 else [COOL, WARM]
    meeting = SIDE * (0.5 + rng.uniform(-0.1, 0.1, 2))
    side = rng.uniform(0, 2 * np.pi)
    apart = SIDE * rng.uniform(0.11, 0.17) * np.array([np.sin(side), np.cos(side)])
    layers: dict[str, U8] = {"background": draw_background(frames, rng, SIDE)}
    for number, name in enumerate(movers.foregrounds[:count]):
        middle = meeting + (apart * (1 - 2 * number) if count == 2 else 0)
        colour, alpha = draw_mover(looks[number], middle, frames, rng)
        layers[name], layers[movers.mattes[name]] = colour, alpha
    shown = {name: frames.astype(np.float32) for name, frames in layers.items()}
    for name in movers.foregrounds[:count]:
        shown[movers.mattes[name]] /= 255
    blended = compose(shown, movers.foregrounds[:count])
    layers["blended"] = np.rint(blended).astype(np.uint8)
    return layers


def draw_mover(
    hues: tuple[float, float], middle: NDArray[np.float64], frames: int, rng: np.random.Generator
) -> tuple[U8, U8]:
    """Colour and hard matte of one striped blob on its way."""
    angle, speed = rng.uniform(0, 2 * np.pi), rng.uniform(1.0, 2.5)
    velocity = speed * np.array([np.sin(angle), np.cos(angle)])
    turn, spin = rng.uniform(0, 2 * np.pi), rng.uniform(-0.12, 0.12)
    radius, bump = SIDE * rng.uniform(*RADIUS), rng.uniform(-0.15, 0.15)
    period, phase = rng.uniform(7, 12), rng.uniform(0, 2 * np.pi)
    colours = [vivid(hue + rng.uniform(-0.03, 0.03), rng) for hue in hues]
    alphas, pictures = [], []
    for t in range(frames):
        y, x = in_object(middle + velocity * (t - (frames - 1) / 2), turn + spin * t, SIDE)
        reach = radius * (1 + bump * np.cos(2 * np.arctan2(y, x)))
        alphas.append(np.hypot(y, x) < reach)
        wave = np.sin(2 * np.pi * x / period + phase)
        pictures.append(np.where(wave[..., None] > 0, *colours))
    return np.rint(np.stack(pictures) * 255).astype(np.uint8), np.stack(alphas).astype(
        np.uint8
    ) * 255
