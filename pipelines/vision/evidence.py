"""What in a clip moves on its own: residual optical flow and difference to a registered plate.

All fields are at the work size of the motion backend, float32 unless said otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from pipelines.matting import Backdrop
from pipelines.vision.numerics import smoothstep, sort_first_axis
from pipelines.vision.registration import Registration, project, warp

_CANVAS_LIMIT = 3.0  # the plate's canvas is at most this many frames wide and high
_BACKDROP_NOISE = 5.0  # Lab difference at which a pixel begins to differ from the backdrop
_SHADE_WINDOW = 7  # pixels over which a change of light is even
_BLANK = 3.0  # levels of standard deviation in it, less is no structure
_FIT_STEP = 8  # the background's smooth motion is fitted on every eighth pixel


@dataclass(frozen=True)
class Matches:
    """Dense correspondences: pixel (x, y) of frame ``source`` is at ``position`` in ``target``."""

    source: int
    target: int
    position: np.ndarray  # [h, w, 2]


@dataclass(frozen=True)
class PlateEvidence:
    """How the frames differ from the clip's own background.

    ``difference``: [T, h, w], Lab difference over noise; ``seen``: bool [T, h, w], at least three
    clean frames; ``steady``: [T, h, w] in [0, 1], how little those vary.
    """

    difference: np.ndarray
    seen: np.ndarray
    steady: np.ndarray


def grid(height: int, width: int) -> np.ndarray:
    """Pixel coordinates (x, y), float32 [height, width, 2]."""
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    return np.stack([x, y], axis=-1)


def match(gray: np.ndarray, registration: Registration, step: int) -> list[Matches]:
    """Dense flow from every frame to the ones ``step`` before and after it.

    The target is first moved by the camera motion, so the flow only has to find the residual.
    """
    engine = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    count, height, width = gray.shape
    base = grid(height, width)
    found = []
    for source in range(count):
        for target in (source - step, source + step):
            if not 0 <= target < count:
                continue
            to_source = registration.between(target, source)
            moved = warp(gray[target], to_source)
            flow = engine.calc(gray[source], moved, None)
            position = project(np.linalg.inv(to_source), (base + flow).reshape(-1, 2))
            position = position.reshape(height, width, 2).astype(np.float32)
            found.append(Matches(source, target, position))
    return found


def residual_motion(
    matches: list[Matches],
    registration: Registration,
    shape: tuple[int, int, int],
    exclude: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Motion that the camera does not explain, per frame.

    Returns ``length`` [T, h, w] in pixels (mean of the smallest and the average over the frame's
    matches) and ``noise`` [T], the median length over the background of each frame.
    """
    count, height, width = shape
    base = grid(height, width)
    lengths: list[list[np.ndarray]] = [[] for _ in range(count)]
    for m in matches:
        back = registration.between(m.target, m.source)
        moved = project(back, m.position.reshape(-1, 2)).reshape(height, width, 2)
        residual = (moved - base).astype(np.float32)
        inside = _inside(m.position, height, width)
        residual -= _smooth_motion(residual, inside, None if exclude is None else exclude[m.source])
        length = np.hypot(residual[..., 0], residual[..., 1])
        lengths[m.source].append(np.where(inside, length, np.nan))
    out = np.zeros(shape, np.float32)
    noise = np.zeros(count, np.float32)
    for t, found in enumerate(lengths):
        if not found:
            continue
        stack = np.stack(found)
        known = np.isfinite(stack)
        smallest = np.where(known, stack, np.inf).min(0)
        mean = np.where(known, stack, 0).sum(0) / np.maximum(known.sum(0), 1)
        out[t] = np.where(known.any(0), (smallest + mean) / 2, 0)
        free = out[t] if exclude is None or exclude[t].mean() > 0.9 else out[t][~exclude[t]]
        noise[t] = np.median(free)
    return out, noise


def _inside(position: np.ndarray, height: int, width: int) -> np.ndarray:
    x, y = position[..., 0], position[..., 1]
    return (x >= 0) & (y >= 0) & (x <= width - 1) & (y <= height - 1)


def _smooth_motion(
    residual: np.ndarray, inside: np.ndarray, exclude: np.ndarray | None
) -> np.ndarray:
    """The affine motion field that most of the picture follows, by reweighted least squares."""
    height, width = inside.shape
    use = inside[::_FIT_STEP, ::_FIT_STEP]
    if exclude is not None:
        use = use & ~exclude[::_FIT_STEP, ::_FIT_STEP]
    if use.sum() < 30:
        return np.zeros_like(residual)
    x, y = np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height))
    basis = np.stack([np.ones_like(x), x, y], axis=-1).astype(np.float32)
    a = basis[::_FIT_STEP, ::_FIT_STEP][use]
    b = residual[::_FIT_STEP, ::_FIT_STEP][use]
    weight = np.ones(len(a), np.float32)
    solution = np.zeros((3, 2), np.float32)
    for _ in range(6):
        aw = a * weight[:, None]
        solution = np.linalg.solve(aw.T @ a + 1e-3 * np.eye(3, dtype=np.float32), aw.T @ b)
        error = np.linalg.norm(b - a @ solution, axis=1)
        scale = max(0.1, 1.5 * float(np.median(error)))
        weight = 1 / (1 + (error / scale) ** 2) ** 2
    return basis @ solution


def plate_evidence(
    lab: np.ndarray, registration: Registration, exclude: np.ndarray | None = None
) -> PlateEvidence:
    """Compare every frame with the masked temporal median of all, on a common canvas.

    ``lab``: uint8 [T, h, w, 3] (8-bit Lab); ``exclude``: bool [T, h, w], movers left out.
    """
    count, height, width = lab.shape[:3]
    shift, size = _canvas(registration, height, width)
    stack = np.full((count, size[1], size[0], 3), 32767, np.int16)
    for t in range(count):
        matrix = shift @ registration.to_reference[t]
        moved = warp(lab[t], matrix, size=size)
        clean = warp(np.full((height, width), 255, np.uint8), matrix, size=size) == 255
        if exclude is not None:
            clean &= warp(exclude[t].astype(np.uint8), matrix, size=size) == 0
        stack[t][clean] = moved[clean]
    median, number, spread = median_and_spread(stack)
    difference = np.zeros((count, height, width), np.float32)
    seen = np.zeros((count, height, width), bool)
    steady = np.zeros((count, height, width), np.float32)
    for t in range(count):
        back = np.linalg.inv(shift @ registration.to_reference[t])
        expected = warp(median, back, size=(width, height))
        counted = warp(number, back, size=(width, height), interpolation=cv2.INTER_NEAREST)
        varied = warp(spread, back, size=(width, height))
        seen[t] = counted >= min(3, count // 2 + 1)
        steady[t] = np.clip(1.5 - varied / 12, 0, 1) * seen[t]
        error = _tolerant_difference(lab[t], expected)
        difference[t] = np.where(counted > 0, error / (4 + 0.6 * varied), 0)
    return PlateEvidence(difference, seen, steady)


def backdrop_evidence(rgb: np.ndarray, lab: np.ndarray, backdrop: Backdrop) -> PlateEvidence:
    """Compare frames, uint8 [T, h, w, 3] RGB and Lab, with the backdrop of a still camera.

    A change of light, such as the subject's shadow, is no difference.
    """
    count, height, width = lab.shape[:3]
    size = (width, height)
    known = cv2.resize(backdrop.known.astype(np.float32), size, interpolation=cv2.INTER_AREA) == 1
    difference = np.zeros((count, height, width), np.float32)
    for t in range(count):
        small = cv2.resize(backdrop.at(t), size, interpolation=cv2.INTER_AREA)
        error = _tolerant_difference(lab[t], cv2.cvtColor(small, cv2.COLOR_RGB2LAB))
        error *= 1 - _shading(rgb[t], small)
        difference[t] = np.where(known, error / _BACKDROP_NOISE, 0)
    seen = np.repeat(known[None], count, 0)
    return PlateEvidence(difference, seen, seen.astype(np.float32))


def _shading(frame: np.ndarray, picture: np.ndarray) -> np.ndarray:
    """How surely a frame is the picture in another light, both uint8 [h, w, 3]; [h, w] in [0, 1].

    The tint stays, and so does the structure, seen through a moving window. On a blank wall only a
    small change is taken for one of light: a grey coat looks like a deep shadow there.
    """
    size = (_SHADE_WINDOW, _SHADE_WINDOW)
    a, b = cv2.blur(frame, size).astype(np.float32), cv2.blur(picture, size).astype(np.float32)
    gray = [
        cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32) for image in (frame, picture)
    ]
    mean = [cv2.blur(image, size) for image in gray]
    spread = [
        np.sqrt(np.maximum(cv2.blur(image**2, size) - m**2, 0))
        for image, m in zip(gray, mean, strict=True)
    ]
    both = cv2.blur(gray[0] * gray[1], size) - mean[0] * mean[1]
    alike = smoothstep(0.5, 0.8, both / np.maximum(spread[0] * spread[1], 1))
    light = (mean[0] + 1) / (mean[1] + 1)
    alike *= (spread[1] > _BLANK) & (light > 0.3) & (light < 1.15)
    slight = (spread[1] <= _BLANK) & (spread[0] <= _BLANK)
    slight = slight * (1 - smoothstep(0.06, 0.12, np.abs(light - 1)))
    tint = np.abs(a - light[..., None] * b).max(-1)
    return (1 - smoothstep(6, 14, tint)) * np.maximum(alike, slight)


def prefer(sure: PlateEvidence, other: PlateEvidence) -> PlateEvidence:
    """The first evidence where it has seen the background, else the other."""
    return PlateEvidence(
        np.where(sure.seen, sure.difference, other.difference),
        sure.seen | other.seen,
        np.where(sure.seen, sure.steady, other.steady),
    )


def _canvas(
    registration: Registration, height: int, width: int
) -> tuple[np.ndarray, tuple[int, int]]:
    """A translation and a (width, height) such that all frames fit, within the limit."""
    corner = np.array([[0, 0], [width, 0], [0, height], [width, height]], np.float64)
    points = np.concatenate([project(m, corner) for m in registration.to_reference])
    low = np.floor(points.min(0))
    high = np.ceil(points.max(0))
    span = np.array([width, height])
    margin = (_CANVAS_LIMIT - 1) / 2 * span
    low = np.clip(low, -margin, 0)
    high = np.clip(high, span, span + margin)
    shift = np.array([[1, 0, -low[0]], [0, 1, -low[1]], [0, 0, 1.0]])
    return shift, (int(high[0] - low[0]), int(high[1] - low[1]))


def median_and_spread(stack: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Masked median u8 [h, w, 3], its number of frames u8 [h, w] and spread [h, w] (robust sd)."""
    number = (stack[..., 0] != 32767).sum(0)
    ordered = sort_first_axis(stack)
    last = np.maximum(number - 1, 0)

    def at(fraction: float) -> np.ndarray:
        index = np.rint(last * fraction).astype(np.intp)[None, ..., None]
        return np.take_along_axis(ordered, np.repeat(index, 3, -1), 0)[0]

    plate = np.where(number[..., None] > 0, at(0.5), 0).astype(np.uint8)
    spread = (at(0.84) - at(0.16)).astype(np.float32).mean(-1) / 2
    spread = np.where(number > 1, spread, 0).astype(np.float32)
    return plate, np.minimum(number, 255).astype(np.uint8), spread


def _tolerant_difference(frame: np.ndarray, plate: np.ndarray) -> np.ndarray:
    """Lab distance to the nearest of the plate's pixels within one pixel, [h, w]."""
    low = cv2.erode(plate, np.ones((3, 3), np.uint8)).astype(np.int16)
    high = cv2.dilate(plate, np.ones((3, 3), np.uint8)).astype(np.int16)
    value = frame.astype(np.int16)
    outside = np.maximum(np.maximum(low - value, value - high), 0).astype(np.float32)
    return np.sqrt((outside**2).sum(-1))
