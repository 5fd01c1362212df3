"""Clips with one or two movers that cross, whose layers and order are known.

One mover is warm (red to yellow), the other cool (cyan to blue), both striped, on a background of
all colours. Which of them is in front is drawn by a coin, so that neither colour nor size tells it:
what tells it is who hides whom where they cross. The one behind keeps its whole matte.
"""

from __future__ import annotations

import cv2
import numpy as np
from blobs import in_object, vivid
from numpy.typing import NDArray

from layerflow.clip import BACKGROUND, BLENDED
from layerflow.layer_set import LayerSet, compose, layer_set

F64 = NDArray[np.float64]
U8 = NDArray[np.uint8]

MOVERS: LayerSet = layer_set("rgbax2")
SIDE, FRAMES = 24, 3  # pixels
HUES = ((0.0, 0.14), (0.5, 0.64))


def draw_movers(count: int, rng: np.random.Generator) -> dict[str, U8]:
    """Layers of a clip with 1 or 2 movers, by their names: colours ``[FRAMES, SIDE, SIDE, 3]``,
    hard mattes ``[FRAMES, SIDE, SIDE]``."""
    hues = HUES if rng.random() < 0.5 else HUES[::-1]
    around = SIDE * (0.5 + rng.uniform(-1, 1, 2) * (0.2 if count == 1 else 0.14))
    turn = rng.uniform(0, 2 * np.pi)
    apart = SIDE * rng.uniform(0.11, 0.17) * np.array([np.sin(turn), np.cos(turn)])
    layers = {BACKGROUND: draw_colours(rng)}
    names = MOVERS.foregrounds[:count]
    for number, name in enumerate(names):
        middle = around + (apart * (1 - 2 * number) if count == 2 else 0)
        layers[name], layers[MOVERS.mattes[name]] = draw_mover(hues[number], middle, rng)
    shown = {name: frames.astype(np.float32) for name, frames in layers.items()}
    for name in names:
        shown[MOVERS.mattes[name]] /= 255
    layers[BLENDED] = np.rint(compose(shown, names)).astype(np.uint8)
    return layers


def draw_mover(hues: tuple[float, float], middle: F64, rng: np.random.Generator) -> tuple[U8, U8]:
    """Colour and matte of one striped blob that drifts 1 to 2.5 pixels a frame past `middle`."""
    angle, speed = rng.uniform(0, 2 * np.pi), rng.uniform(1.0, 2.5)
    velocity = speed * np.array([np.sin(angle), np.cos(angle)])
    turn, spin = rng.uniform(0, 2 * np.pi), rng.uniform(-0.12, 0.12)
    radius, bump = SIDE * rng.uniform(0.2, 0.3), rng.uniform(-0.15, 0.15)
    period, phase = rng.uniform(7, 12), rng.uniform(0, 2 * np.pi)
    colours = [vivid(hue + rng.uniform(-0.03, 0.03), rng) for hue in hues]
    alphas, pictures = [], []
    for t in range(FRAMES):
        y, x = in_object(middle + velocity * (t - (FRAMES - 1) / 2), turn + spin * t, SIDE)
        reach = radius * (1 + bump * np.cos(2 * np.arctan2(y, x)))
        alphas.append(np.where(np.hypot(y, x) < reach, 255, 0))
        wave = np.sin(2 * np.pi * x / period + phase)
        pictures.append(np.where(wave[..., None] > 0, *colours))
    return np.rint(np.stack(pictures) * 255).astype(np.uint8), np.stack(alphas).astype(np.uint8)


def draw_colours(rng: np.random.Generator) -> U8:
    """Smooth noise of all colours, so that no threshold of one finds the movers; half of the clips
    pan up to 1.5 pixels a frame."""
    wide = SIDE + 16
    noise = sum(
        weight
        * cv2.resize(
            rng.uniform(-1, 1, (cells, cells, 3)), (wide, wide), interpolation=cv2.INTER_CUBIC
        )
        for cells, weight in ((4, 0.7), (7, 0.35))
    )
    grey = noise.mean(axis=2, keepdims=True)
    picture = np.clip(0.5 + 0.36 * grey + 0.6 * (noise - grey), 0, 1).astype(np.float32)
    pan = rng.uniform(-1.5, 1.5, 2) * (rng.random() < 0.5)
    out = []
    for t in range(FRAMES):
        y, x = 8 + pan * (t - (FRAMES - 1) / 2)
        centre = (x + SIDE / 2 - 0.5, y + SIDE / 2 - 0.5)
        out.append(cv2.getRectSubPix(picture, (SIDE, SIDE), centre))
    return np.rint(np.stack(out) * 255).astype(np.uint8)
