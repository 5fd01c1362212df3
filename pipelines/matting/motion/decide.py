"""From evidence to a decision: seeds, the threshold sweep, and the pixel-accurate cut."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from pipelines.matting.motion.graph import Graph
from pipelines.vision.evidence import PlateEvidence

_LEVELS = 35
_BINS = (16, 24, 24)  # of the colour histogram over L, a, b
_UNSURE = (0.25, 0.7)  # a field between these says nothing of colours
_COLOUR = 0.3  # weight of colours, as in the motion backend
_OUTLINE_ITERATIONS = 40


@dataclass(frozen=True)
class Seeds:
    """Evidence per superpixel, weights >= 0, float64 [N]."""

    foreground: np.ndarray
    background: np.ndarray


def seeds(
    graph: Graph,
    motion: np.ndarray,
    texture: np.ndarray,
    plate: PlateEvidence,
    *,
    static: bool,
    trust_plate: bool,
    foreign: np.ndarray,
    ignored: np.ndarray,
) -> Seeds:
    """Foreground and background evidence of every superpixel.

    ``motion``: residual motion over its noise, [T, h, w]; ``texture``: [T, h, w] in [0, 1], how
    much flow can be trusted; ``static``: the camera does not move, so motion counts only where the
    picture really changes; ``trust_plate``: the plate was made without the movers, so equality with
    it speaks for background; ``foreign``: [T, h, w] in [0, 1], how unlikely a pixel's colour is for
    the movers: equality speaks for background there even without structure, and even if the movers
    are part of the plate; ``ignored``: [N] in [0, 1], movers that are not the subject.
    """
    moving = graph.mean(motion)
    textured = graph.mean(texture)
    known = graph.mean((plate.seen * plate.steady).astype(np.float32))
    if static:
        # Flow on blank walls is invented: it counts where the picture changes or has structure.
        evidence = np.clip(graph.mean(plate.difference) - 0.5, 0, 1)
        moving = moving * np.maximum(np.where(known > 0.3, evidence, 0.6), textured)
    high = _high(moving[(ignored < 0.5) & (textured > 0.1)])
    low, full = max(1.0, 0.22 * high), max(3.0, 0.5 * high)
    front = np.clip((moving - low) / (full - low), 0, 1)
    some = np.clip(moving / low, 0, 1)
    back = 0.4 * (1 - some) * (0.2 + 0.8 * textured)
    changed = graph.mean(np.clip((plate.difference - 1.2) / 2.5, 0, 1) * plate.steady)
    front = np.maximum(front, 0.8 * changed if static else 0.7 * changed * some)
    equal = graph.mean(np.clip(1 - plate.difference / 1.2, 0, 1) * plate.steady)
    telling = graph.mean(foreign)
    if trust_plate:
        telling = 0.15 + 0.85 * np.maximum(textured, telling)
    back += 0.8 * equal * telling
    front *= 1 - 0.85 * ignored
    back = np.maximum(back, 0.3 * ignored)
    back += 0.15 * np.clip(graph.border, 0, 2)
    return Seeds(front, back * (1 - front))


def _high(values: np.ndarray) -> float:
    """The mean of the highest 2 %, 0 if there are no values."""
    return float(np.sort(values)[-max(1, len(values) // 50) :].mean()) if len(values) else 0.0


def sweep(graph: Graph, p: np.ndarray, front: np.ndarray) -> tuple[float, float]:
    """The threshold on p that captures the seeds best with the least affine boundary.

    Maximises F - 0.5 x (mean affinity across the boundary), F the F-measure of the share of the
    seed mass inside and its density there. Returns the threshold and its F.
    """
    mass = front * graph.area
    total = mass.sum()
    if total <= 0:
        return 1.0, 0.0
    i, j = graph.first[graph.spatial], graph.second[graph.spatial]
    affinity = graph.weight[graph.spatial]
    affinity = affinity / max(1e-9, float(np.percentile(affinity, 90)))
    best = (-1.0, 1.0, 0.0)
    for level in np.linspace(0.02, 0.98, _LEVELS) * p.max():
        inside = p > level
        area = graph.area[inside].sum()
        if area == 0:
            continue
        captured = mass[inside].sum()
        recall, density = captured / total, captured / area
        f = 2 * recall * density / max(1e-9, recall + density)
        cut = inside[i] != inside[j]
        cost = float(np.clip(affinity[cut], 0, 1).mean()) if cut.any() else 1.0
        value = f - 0.5 * cost
        if value > best[0]:
            best = (value, float(level), float(f))
    return best[1], best[2]


class ColourModel:
    """Log-likelihood ratio of a pixel's colour being the subject's, from Lab histograms."""

    def __init__(self, lab: np.ndarray) -> None:
        """``lab``: uint8 [T, h, w, 3]."""
        index = np.zeros(lab.shape[:3], np.int32)
        for channel, bins in enumerate(_BINS):
            value = lab[..., channel].astype(np.int32)
            if channel:  # chroma fills the middle of its range only
                value = np.clip((value - 128) * 2 + 128, 0, 255)
            index = index * bins + value * bins // 256
        self._index = index

    def ratio(self, mask: np.ndarray, ignore: np.ndarray | None = None) -> np.ndarray:
        """float32 [T, h, w] in [-3, 3]; ``mask`` bool [T, h, w] says what the subject is now."""
        front = self._histogram(mask)
        back = self._histogram(~mask if ignore is None else ~mask & ~ignore)
        table = np.clip(np.log((front + 1e-4) / (back + 1e-4)), -3, 3).astype(np.float32)
        return table.ravel()[self._index]

    def separation(self, mask: np.ndarray) -> float:
        """1 - overlap of the colours inside and outside of a mask, in [-1, 1]."""
        ratio = self.ratio(mask)
        return float((ratio[mask] > 0).mean() - (ratio[~mask] > 0).mean())

    def _histogram(self, mask: np.ndarray) -> np.ndarray:
        number = np.bincount(self._index[mask], minlength=int(np.prod(_BINS)))
        cube = number.reshape(_BINS).astype(np.float32)
        for axis in range(3):
            moved = np.moveaxis(cube, axis, 0)
            padded = np.pad(moved, ((1, 1), (0, 0), (0, 0)))
            moved = 0.25 * padded[:-2] + 0.5 * padded[1:-1] + 0.25 * padded[2:]
            cube = np.moveaxis(moved, 0, axis)
        total = cube.sum()
        return cube / total * np.prod(_BINS) * 0.01 if total > 0 else cube


def contrast_weights(lab: np.ndarray, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """Cost of a boundary between horizontal and vertical neighbours of float32 Lab [h, w, 3].

    Returns float32 [h, w] each; the last column and row are 0.
    """
    horizontal = np.zeros(lab.shape[:2], np.float32)
    vertical = np.zeros(lab.shape[:2], np.float32)
    horizontal[:, :-1] = ((lab[:, 1:] - lab[:, :-1]) ** 2).sum(-1)
    vertical[:-1] = ((lab[1:] - lab[:-1]) ** 2).sum(-1)
    beta = 1 / max(4.0, 2 * float(horizontal.mean() + vertical.mean()) / 2)
    horizontal = strength * (0.1 + 0.9 * np.exp(-beta * horizontal))
    vertical = strength * (0.1 + 0.9 * np.exp(-beta * vertical))
    horizontal[:, -1] = 0
    vertical[-1] = 0
    return horizontal.astype(np.float32), vertical.astype(np.float32)


def cut(
    cost: np.ndarray,
    horizontal: np.ndarray,
    vertical: np.ndarray,
    start: np.ndarray,
    iterations: int,
) -> np.ndarray:
    """The convex relaxation of the minimum cut on the pixel grid.

    Minimises sum cost * u + sum weight * |difference of neighbours of u| over u in [0, 1] (Chan,
    Esedoglu, Nikolova 2006; anisotropic, so thresholding an exact minimiser at any level gives a
    minimum cut) by the primal-dual method of Chambolle and Pock 2011. All arrays float32 [h, w];
    ``cost`` < 0 favours foreground. Returns u.
    """
    if not (cost < 0).any():
        return np.zeros_like(start, np.float32)
    window = _window(cost < 1.5)
    result = np.zeros_like(start, np.float32)
    result[window] = _cut(
        cost[window], horizontal[window], vertical[window], start[window], iterations
    )
    return result


def _window(mask: np.ndarray) -> tuple[slice, slice]:
    """The mask's bounding box with a margin: outside it the cut is background anyway."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return (
        slice(max(0, int(rows[0]) - 4), int(rows[-1]) + 5),
        slice(max(0, int(columns[0]) - 4), int(columns[-1]) + 5),
    )


def _cut(
    cost: np.ndarray,
    horizontal: np.ndarray,
    vertical: np.ndarray,
    start: np.ndarray,
    iterations: int,
) -> np.ndarray:
    step = np.float32(0.35)  # step^2 * 8 <= 1
    u = start.astype(np.float32).copy()
    lead = u.copy()
    qx, qy = np.zeros_like(u), np.zeros_like(u)
    scaled = step * cost
    divergence = np.empty_like(u)
    for _ in range(iterations):
        qx[:, :-1] += step * (lead[:, 1:] - lead[:, :-1])
        qy[:-1] += step * (lead[1:] - lead[:-1])
        np.clip(qx, -horizontal, horizontal, out=qx)
        np.clip(qy, -vertical, vertical, out=qy)
        np.add(qx, qy, out=divergence)
        divergence[:, 1:] -= qx[:, :-1]
        divergence[1:] -= qy[:-1]
        divergence *= step
        divergence -= scaled
        np.negative(u, out=lead)
        u += divergence
        np.clip(u, 0, 1, out=u)
        lead += u
        lead += u
    return u


def fill_holes(mask: np.ndarray, largest: float) -> np.ndarray:
    """Fill background holes of a bool [h, w] mask that are smaller than ``largest`` pixels."""
    number, parts, stats, _ = cv2.connectedComponentsWithStats((~mask).astype(np.uint8), None, 4)
    small = stats[:, cv2.CC_STAT_AREA] < largest
    small[0] = False
    touched = np.unique(np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]]))
    small[touched] = False
    return mask | small[parts] if number > 1 else mask


def outline(
    field: np.ndarray, colours: ColourModel, contrast: list[tuple[np.ndarray, np.ndarray]]
) -> np.ndarray:
    """The mask that follows a field, float32 [T, h, w] in [0, 1], colours and contours, bool.

    ``contrast``: of ``contrast_weights``, a frame each.
    """
    low, high = _UNSURE
    sure = field > high
    if not sure.any():
        sure = field > 0.5
    ratio = colours.ratio(sure, (field > low) & ~sure)
    cost = np.log((1 - field + 1e-3) / (field + 1e-3)) - np.float32(_COLOUR) * ratio
    cost = np.clip(cost, -4, 4).astype(np.float32)
    masks = []
    for one, (horizontal, vertical) in zip(cost, contrast, strict=True):
        u = cut(one, horizontal, vertical, (one < 0).astype(np.float32), _OUTLINE_ITERATIONS)
        masks.append(fill_holes(u > 0.5, 0.01 * one.size))
    return np.stack(masks)
