"""From a per-frame network's predictions to the matte of a clip.

Such networks, or the packages around them, stretch every frame's prediction to the full range: a
frame without a subject gets a full matte, and the level flickers. Here the range is that of the
whole clip, frames in which nothing is sure stay empty, and neighbours are averaged along the flow.
"""

from __future__ import annotations

import cv2
import numpy as np

from pipelines.matting import Matte
from pipelines.vision.evidence import Matches, match
from pipelines.vision.numerics import single_thread, work_size
from pipelines.vision.registration import Registration

_SURE = 0.5  # a frame in which no pixel is at least this foreground has no subject
_LOW, _HIGH = 0.2, 0.8  # the clip's range is stretched at most from these to 0 and 1
_FLOW_AREA = 320 * 240


def unstretch(mask: np.ndarray, low: float, high: float) -> np.ndarray:
    """Undo a min-max stretch: uint8 [H, W] of the range low..high -> float32 probabilities.

    A level below 255 was truncated from somewhere up to the next one, so its middle is taken.
    """
    if not (np.isfinite(low) and np.isfinite(high)) or high - low < 1e-6:
        return np.full(mask.shape, low if np.isfinite(low) else 0.0, np.float32)
    middle = np.minimum(mask.astype(np.float32) + np.float32(0.5), np.float32(255))
    return middle * np.float32((high - low) / 255) + np.float32(low)


def matte_from_predictions(frames: np.ndarray, probability: np.ndarray) -> Matte:
    """Normalise a network's predictions over the clip and stabilise them.

    ``frames``: uint8 [T, H, W, 3]; ``probability``: float32 [T, H, W], unstretched. Its
    ``matte_confidence`` is the mean probability inside the matte minus that outside, 0 if the matte
    is empty.
    """
    low = min(float(probability.min()), _LOW)
    high = max(float(probability.max()), _HIGH)
    alpha = np.clip((probability - low) / (high - low), 0, 1).astype(np.float32)
    sure = probability.max((1, 2)) >= _SURE
    alpha[~sure] = 0
    inside = alpha >= 0.5
    confidence = 0.0
    if inside.any() and not inside.all():
        confidence = float(probability[inside].mean() - probability[~inside].mean())
    with single_thread():
        stable = stabilise(frames, alpha)
    stable[~sure] = 0
    return Matte(stable, {"matte_confidence": confidence})


def stabilise(frames: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Average a matte with its neighbours along the flow, only where the flow can be believed.

    ``frames``: uint8 [T, H, W, 3]; ``alpha``: float32 [T, H, W]. The correction is found at a
    reduced size and added at full size, so edges keep their sharpness. Returns float32 [T, H, W].
    """
    count, height, width = alpha.shape
    if count < 2 or not alpha.any():
        return alpha.copy()
    size = work_size(frames, _FLOW_AREA)
    gray = np.stack(
        [
            cv2.resize(cv2.cvtColor(f, cv2.COLOR_RGB2GRAY), size, interpolation=cv2.INTER_AREA)
            for f in frames
        ]
    )
    small = np.stack([cv2.resize(a, size, interpolation=cv2.INTER_AREA) for a in alpha])
    still = Registration(np.tile(np.eye(3), (count, 1, 1)), 0, 0.0, 1.0, 1.0)
    change = average_along_flow(small, gray, match(gray, still, 1)) - small
    grown = [cv2.resize(c, (width, height), interpolation=cv2.INTER_LINEAR) for c in change]
    return np.clip(alpha + np.stack(grown), 0, 1)


def average_along_flow(
    alpha: np.ndarray, gray: np.ndarray, matches: list[Matches], weight: float = 0.5
) -> np.ndarray:
    """Mean of each frame's matte and its neighbours' carried along the flow.

    ``alpha``: float32 [T, h, w]; ``gray``: uint8 [T, h, w]. A neighbour counts ``weight`` x
    exp(-(difference / 8 levels)^2 / 2) x exp(-(flow there and back)^2 / 2), so what is occluded or
    changed leaves no ghost.
    """
    table = {(m.source, m.target): m.position for m in matches}
    total = alpha.copy()
    mass = np.ones_like(alpha)
    height, width = alpha.shape[1:]
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    light = gray.astype(np.float32)
    for (source, target), position in table.items():
        to_x, to_y = position[..., 0], position[..., 1]
        stacked = cv2.merge([light[target], alpha[target], *cv2.split(table[target, source])])
        carried = cv2.remap(stacked, to_x, to_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        miss = (carried[..., 2] - x) ** 2 + (carried[..., 3] - y) ** 2
        differ = (cv2.blur(np.abs(carried[..., 0] - light[source]), (3, 3)) / 8) ** 2
        share = weight * np.exp(-(miss + differ) / 2)
        total[source] += share * carried[..., 1]
        mass[source] += share
    return total / mass
