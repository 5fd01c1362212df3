"""What a subject leaves in the background beside itself: its shadow, its reflection, missed parts.

A mined background is the video itself outside the dilated matte, so a shadow on the floor stays in
it and moves there without its owner. It is found where the camera motion is known and other frames
show the same place without it: a change of the registered picture that touches the subject. Darker
in the same colour is a shadow. Anything else is a leftover: a reflection or, more often, an arm or
a foot that the matte misses. Where the shot has a backdrop, parts that stand still are found too.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from pipelines.matting import Backdrop
from pipelines.vision.evidence import median_and_spread
from pipelines.vision.numerics import dilate, single_thread, work_size
from pipelines.vision.plate import Plate, to_window
from pipelines.vision.registration import Registration, warp

FOUND = 0.05  # share of the matte's area from which there is something

_WORK_AREA = 216 * 144
_SOURCES = 12  # frames that show a place without the shadow
_LEAST_SHOWN = 3  # frames that must show a place without the subject
_LEAST_CHANGE = 7.0  # levels
_DARKEST, _LIGHTEST = 0.3, 0.96  # of a shadow, times the background
_ROUGH = 5.0  # levels of structure that a shadow may add
_REACH = 1.5  # a shadow is at most this many times as far away as its owner is large


@dataclass(frozen=True)
class Traces:
    """``mask``: bool [T, H, W], shadow and leftovers outside the hole; ``leftovers``: those of them
    that are no shadow. ``shadow_fraction`` and ``leftover_fraction``: areas of the two / the
    matte's, mean over frames. ``bystander_fraction``: the same of what else is in front of the
    backdrop and does not touch the subject; None without one.
    """

    mask: np.ndarray
    leftovers: np.ndarray
    shadow_fraction: float
    leftover_fraction: float
    bystander_fraction: float | None = None

    @property
    def found(self) -> bool:
        return self.shadow_fraction + self.leftover_fraction >= FOUND


def find_traces(
    frames: np.ndarray, alpha: np.ndarray, plate: Plate, others: np.ndarray | None = None
) -> Traces:
    """The shadow of a clip's subject, and what else of it is left outside the matte.

    ``frames``: uint8 [T, H, W, 3]; ``alpha``: uint8 [T, H, W]; ``plate``: of ``clean_plate`` for
    them; ``others``: uint8 [T, H, W], subjects that have clips of their own and are no bystanders.
    What neither other frames nor the backdrop show free of the subject is not judged.
    """
    count, height, width = alpha.shape
    size = work_size(frames, _WORK_AREA)
    with single_thread():
        small = np.stack([cv2.resize(f, size, interpolation=cv2.INTER_AREA) for f in frames])
        hole = np.stack([_shrunk(m, size) for m in plate.hole])
        registration = plate.registration.scaled(size[0] / width, size[1] / height)
        masks, leftovers = np.zeros((2, count, height, width), bool)
        shares = np.zeros((count, 3))
        for t in range(count):
            area = float((alpha[t] > 127).sum()) * size[0] * size[1] / (height * width)
            if area < 4:
                continue
            behind = None if plate.backdrop is None else _of_backdrop(plate.backdrop, size, t)
            shadow, other = _traces_of(small, hole, registration, t, area, behind)
            apart = hole[t] if others is None else hole[t] | _shrunk(others[t] > 12, size)
            strangers = 0 if behind is None else _bystanders(small[t], apart, *behind[:2], area)
            shares[t] = shadow.sum() / area, other.sum() / area, strangers / area
            if (shadow | other).any():
                masks[t] = _enlarged(shadow | other, (width, height)) & ~plate.hole[t]
                leftovers[t] = _enlarged(other, (width, height)) & ~plate.hole[t]
    used = (alpha > 127).any((1, 2))
    mean = shares[used].mean(0) if used.any() else np.zeros(3)
    bystanders = None if plate.backdrop is None else float(mean[2])
    return Traces(masks, leftovers, float(mean[0]), float(mean[1]), bystanders)


def _enlarged(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return cv2.resize(mask.astype(np.float32), size) > 0.3


def _shrunk(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0


def _traces_of(
    frames: np.ndarray,
    hole: np.ndarray,
    registration: Registration,
    t: int,
    area: float,
    behind: tuple[np.ndarray, np.ndarray, np.ndarray] | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Shadow and leftovers of frame t at work size, bool [h, w] each.

    ``behind``: the backdrop, which takes the place of what other frames show.
    """
    shadow, other = np.zeros((2, *hole.shape[1:]), bool)
    window = _around(hole[t], area)
    clear, shown, spread = _without_subject(frames, hole, registration, t, window)
    if behind is not None:
        known = behind[1][window] > 0
        clear = np.where(known[..., None], behind[0][window], clear)
        shown = np.where(known, behind[1][window], shown)
        spread = np.where(known, 0, spread)
    now = frames[t][window].astype(np.float32)
    darker = _darker(now, clear)
    changed = _changed(now, hole[t][window], clear, shown, spread)
    for part in _components(changed, dilate(hole[t][window], 2), area, touching=True):
        layer = shadow if darker[part].mean() > 0.6 else other
        layer[window] |= part
    return shadow, other


def _darker(now: np.ndarray, clear: np.ndarray) -> np.ndarray:
    """Where the picture is the clear one in less light, bool [h, w].

    A shadow has no structure of its own.
    """
    light = now.mean(-1) / np.maximum(clear.mean(-1), 1)
    tint = np.abs(now - light[..., None] * clear).max(-1)
    change = np.abs(now - clear).max(-1)
    smooth = _roughness(now) < light * _roughness(clear) + _ROUGH
    return (light > _DARKEST) & (light < _LIGHTEST) & (tint < 0.35 * change + 4) & smooth


def _roughness(image: np.ndarray) -> np.ndarray:
    """Standard deviation of float32 [h, w, 3] in a small window, mean of channels, [h, w]."""
    mean, square = cv2.blur(image, (3, 3)), cv2.blur(image**2, (3, 3))
    return np.sqrt(np.maximum(square - mean**2, 0)).mean(-1)


def _bystanders(
    frame: np.ndarray, hole: np.ndarray, clear: np.ndarray, shown: np.ndarray, area: float
) -> int:
    """Pixels of what stands before the backdrop, away from the subject and no shadow."""
    now = frame.astype(np.float32)
    darker = _darker(now, clear)
    changed = _changed(now, hole, clear, shown, np.zeros(hole.shape, np.float32))
    apart = _components(changed, dilate(hole, 2), area, touching=False)
    return sum(int(part.sum()) for part in apart if darker[part].mean() <= 0.6)


def _around(hole: np.ndarray, area: float) -> tuple[slice, slice]:
    """The bounding box of a subject's surroundings."""
    radius = max(1, round(_REACH * area**0.5))
    x, y, width, height = cv2.boundingRect(hole.astype(np.uint8))
    rows = slice(max(0, y - radius), min(hole.shape[0], y + height + radius))
    return rows, slice(max(0, x - radius), min(hole.shape[1], x + width + radius))


def _of_backdrop(
    backdrop: Backdrop, size: tuple[int, int], t: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The backdrop at work size: picture float32 [h, w, 3], number and spread [h, w]."""
    picture = cv2.resize(backdrop.at(t), size, interpolation=cv2.INTER_AREA).astype(np.float32)
    known = ~_shrunk(~backdrop.known, size)
    return picture, np.where(known, _LEAST_SHOWN, 0), np.zeros(known.shape, np.float32)


def _changed(
    now: np.ndarray, hole: np.ndarray, clear: np.ndarray, shown: np.ndarray, spread: np.ndarray
) -> np.ndarray:
    change = np.abs(now - clear).max(-1)
    known = (shown >= _LEAST_SHOWN) & ~hole
    usual = float(np.median(change[known])) if known.any() else 0.0
    limit = max(_LEAST_CHANGE, 4.5 * usual) + spread
    return (cv2.blur(change, (3, 3)) > limit) & known


def _without_subject(
    frames: np.ndarray,
    hole: np.ndarray,
    registration: Registration,
    t: int,
    window: tuple[slice, slice],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A window of frame t as others show it: median float32 [h, w, 3], number and spread [h, w]."""
    rows, columns = window
    size = (columns.stop - columns.start, rows.stop - rows.start)
    others = [s for s in range(len(frames)) if s != t]
    pick = np.unique(np.linspace(0, len(others) - 1, min(_SOURCES, len(others))).round())
    stack = np.full((len(pick), size[1], size[0], 3), 32767, np.int16)
    for i, s in enumerate(others[int(k)] for k in pick):
        matrix = to_window(window) @ registration.between(s, t)
        moved = warp(frames[s], matrix, size=size)
        clean = warp(~hole[s] * np.uint8(255), matrix, size=size) == 255
        stack[i][clean] = moved[clean]
    clear, shown, spread = median_and_spread(stack)
    return clear.astype(np.float32), shown, spread


def _components(
    mask: np.ndarray, edge: np.ndarray, area: float, *, touching: bool
) -> list[np.ndarray]:
    """The parts of a mask that touch ``edge`` (or do not) and are no specks, bool [h, w] each."""
    opened = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    number, labels, stats, _ = cv2.connectedComponentsWithStats(opened)
    contact = np.bincount(labels[edge], minlength=number)
    large = stats[:, cv2.CC_STAT_AREA] >= max(6.0, 0.01 * area)
    return [labels == i for i in range(1, number) if large[i] and (contact[i] >= 3) == touching]
