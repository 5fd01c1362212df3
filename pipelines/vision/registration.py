"""Global (camera) motion of a clip: one homography per frame, robust to a large moving subject.

Between neighbouring frames several homographies are fitted to point tracks, one after the other.
The background is the motion that explains the *borders* of the picture, because subjects stand in
the middle; choosing by inlier count would follow a textured subject instead.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import cv2
import numpy as np

_CELL = 24  # features are spread over cells of this size, in pixels
_PER_CELL = 3
_VOTE_CELL = 48  # candidates are compared per cell of this size
_TRACK_ERROR = 0.7  # forward-backward tracking error that a feature may have, in pixels
_INLIER = 1.5  # reprojection error at which a track no longer supports a homography, in pixels
_IDENTITY_BONUS = 1.03  # a still camera is the simplest explanation
_LK: dict[str, Any] = {
    "winSize": (15, 15),
    "maxLevel": 4,
    "criteria": (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 20, 0.03),
}


@dataclass(frozen=True)
class Registration:
    """Camera motion of a clip of T frames.

    ``to_reference``: float64 [T, 3, 3], homographies from pixel coordinates of each frame to those
    of frame ``reference``. ``residual``: median reprojection error of the supporting tracks in
    pixels, mean over pairs. ``survival``: share of features that were tracked consistently.
    ``static``: share of neighbouring pairs for which the identity was chosen.
    """

    to_reference: np.ndarray
    reference: int
    residual: float
    survival: float
    static: float

    def between(self, source: int, target: int) -> np.ndarray:
        """The homography from pixels of frame ``source`` to pixels of frame ``target``."""
        if source == target:
            return np.eye(3)
        matrix = np.linalg.solve(self.to_reference[target], self.to_reference[source])
        return matrix / matrix[2, 2]

    def scaled(self, x_factor: float, y_factor: float) -> Registration:
        """The same motion in an image that is larger by the two factors."""
        # Pixel centres, not corners, are at whole numbers: x' = (x + 0.5) f - 0.5.
        up = np.array(
            [[x_factor, 0, (x_factor - 1) / 2], [0, y_factor, (y_factor - 1) / 2], [0, 0, 1]]
        )
        matrices = up @ self.to_reference @ np.linalg.inv(up)
        matrices = matrices / matrices[:, 2:, 2:]
        factor = float(np.sqrt(x_factor * y_factor))
        return replace(self, to_reference=matrices, residual=self.residual * factor)


@dataclass(frozen=True)
class Tracks:
    """Corners of one frame followed to the next: [N, 2] each, and which survived the check."""

    source: np.ndarray
    target: np.ndarray
    good: np.ndarray


def track(gray: np.ndarray) -> list[Tracks]:
    """Follow corners of uint8 [T, h, w] grey frames from each frame to the next; T - 1 entries."""
    found = []
    for first, second in pairwise(gray):
        points = corners(first)
        if len(points) == 0:
            found.append(Tracks(points, points, np.zeros(0, bool)))
            continue
        forward, ok, _ = cv2.calcOpticalFlowPyrLK(first, second, points, points.copy(), **_LK)
        back, ok_back, _ = cv2.calcOpticalFlowPyrLK(second, first, forward, points.copy(), **_LK)
        error = np.linalg.norm(back - points, axis=-1)
        good = (ok[:, 0] > 0) & (ok_back[:, 0] > 0) & (error < _TRACK_ERROR)
        found.append(Tracks(points, forward, good))
    return found


def register(
    gray: np.ndarray, exclude: np.ndarray | None = None, tracks: list[Tracks] | None = None
) -> Registration:
    """Estimate the camera motion of uint8 [T, H, W] grey frames.

    ``exclude``: bool [T, H, W], pixels of movers whose features are ignored; ``tracks``: what
    ``track`` returned for these frames, to save its time. With fewer than eight usable features a
    pair counts as still. Never raises for picture content.
    """
    count = len(gray)
    reference = count // 2
    steps = [np.eye(3)]
    residuals, survivals, static = [], [], 0
    for t, found in enumerate(track(gray) if tracks is None else tracks):
        use = np.ones(len(found.source), bool)
        if exclude is not None and len(use):
            at = np.rint(found.source).astype(int)
            use = ~exclude[t][at[:, 1], at[:, 0]]
        survivals.append(float(found.good[use].mean()) if use.any() else 1.0)
        use &= found.good
        matrix, residual, identity = _choose(found.source[use], found.target[use], gray.shape[1:])
        steps.append(matrix)
        residuals.append(residual)
        static += identity
    return Registration(
        _chain(steps, reference),
        reference,
        float(np.mean(residuals)) if residuals else 0.0,
        float(np.mean(survivals)) if survivals else 1.0,
        static / len(residuals) if residuals else 1.0,
    )


def warp(
    image: np.ndarray,
    matrix: np.ndarray,
    *,
    size: tuple[int, int] | None = None,
    interpolation: int = cv2.INTER_LINEAR,
    fill: float = 0,
) -> np.ndarray:
    """Move ``image`` by ``matrix`` (its pixels -> target pixels); ``size`` is (width, height)."""
    size = (image.shape[1], image.shape[0]) if size is None else size
    if np.array_equal(matrix, np.eye(3)) and size == (image.shape[1], image.shape[0]):
        return image.copy()
    value = (fill,) * 4
    return cv2.warpPerspective(image, matrix, size, flags=interpolation, borderValue=value)


def visible(matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """bool [H, W]: the target pixels that a source frame of ``size`` (width, height) covers."""
    covered = warp(np.full((size[1], size[0]), 255, np.uint8), matrix)
    return covered == 255


def corners(gray: np.ndarray) -> np.ndarray:
    """At most three corners in each 24-pixel cell of uint8 [H, W], float32 [N, 2] as (x, y)."""
    strength = cv2.cornerMinEigenVal(gray, 5)
    peak = strength == cv2.dilate(strength, np.ones((5, 5), np.uint8))
    floor = max(1e-6, 1e-3 * float(np.percentile(strength, 99)))
    peak &= strength > floor
    peak[:4] = peak[-4:] = False
    peak[:, :4] = peak[:, -4:] = False
    y, x = np.nonzero(peak)
    if len(y) == 0:
        return np.zeros((0, 2), np.float32)
    cell = (y // _CELL) * (gray.shape[1] // _CELL + 1) + x // _CELL
    order = np.lexsort((-strength[y, x], cell))
    cell_sorted = cell[order]
    first = np.searchsorted(cell_sorted, cell_sorted, side="left")
    keep = order[np.arange(len(order)) - first < _PER_CELL]
    return np.stack([x[keep], y[keep]], axis=1).astype(np.float32)


def _choose(
    source: np.ndarray, target: np.ndarray, shape: tuple[int, ...]
) -> tuple[np.ndarray, float, bool]:
    """The candidate that best explains the borders: (matrix, residual in pixels, identity won)."""
    identity = np.eye(3)
    if len(source) < 8:
        return identity, 0.0, True
    candidates = [identity, *_candidates(source, target, shape)]
    errors = [np.linalg.norm(project(m, source) - target, axis=1) for m in candidates]
    votes = [_vote(source, error, shape) for error in errors]
    votes[0] *= _IDENTITY_BONUS
    best = int(np.argmax(votes))
    inlying = errors[best] < _INLIER
    residual = float(np.median(errors[best][inlying])) if inlying.any() else _INLIER
    return candidates[best], residual, best == 0


def _candidates(source: np.ndarray, target: np.ndarray, shape: tuple[int, ...]) -> list[np.ndarray]:
    """Up to three homographies, each fitted to what the ones before left unexplained."""
    found: list[np.ndarray] = []
    left = np.ones(len(source), bool)
    for _ in range(3):
        if left.sum() < 12:
            break
        matrix, inlier = cv2.findHomography(
            source[left], target[left], cv2.USAC_MAGSAC, 1.0, maxIters=2000, confidence=0.999
        )
        if matrix is None:
            break
        if _plausible(matrix, shape):
            found.append(matrix)
        index = np.flatnonzero(left)[inlier[:, 0] > 0]
        if len(index) < 8:
            break
        left[index] = False
    return found


def _plausible(matrix: np.ndarray, shape: tuple[int, ...]) -> bool:
    """Whether no corner of the picture moves by more than a third of it in one frame."""
    height, width = shape
    corner = np.array([[0, 0], [width, 0], [0, height], [width, height]], np.float32)
    if not np.isfinite(matrix).all():
        return False
    moved = project(matrix, corner)
    limit = np.array([width, height]) / 3
    return bool((np.abs(moved - corner) < limit).all())


def _vote(points: np.ndarray, error: np.ndarray, shape: tuple[int, ...]) -> float:
    """Mean support per picture cell; cells near the left, right and top border count most."""
    height, width = shape
    support = np.clip(1.5 - error / _INLIER, 0, 1)
    columns = width // _VOTE_CELL + 1
    cell = (points[:, 1] // _VOTE_CELL).astype(int) * columns
    cell += (points[:, 0] // _VOTE_CELL).astype(int)
    rows = height // _VOTE_CELL + 1
    number = np.bincount(cell, minlength=rows * columns)
    total = np.bincount(cell, support, minlength=rows * columns)
    used = number > 0
    weight = _cell_weights(rows, columns).ravel()
    mean = total[used] / number[used]
    return float((mean * weight[used]).sum() / weight[used].sum())


def _cell_weights(rows: int, columns: int) -> np.ndarray:
    y = (np.arange(rows) + 0.5)[:, None] / rows
    x = (np.arange(columns) + 0.5)[None] / columns
    near = np.maximum(np.abs(x - 0.5) * 2, (0.5 - y) * 2)  # 1 at the left, right and top border
    weight = 0.35 + 0.65 * np.clip((near - 0.4) / 0.3, 0, 1)
    return np.where(y > 0.8, np.minimum(weight, 0.4), weight)


def project(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Apply a homography to [N, 2] points."""
    return cv2.perspectiveTransform(points.reshape(1, -1, 2).astype(np.float64), matrix)[0]


def _chain(steps: list[np.ndarray], reference: int) -> np.ndarray:
    """Step homographies (t - 1 -> t, the first unused) to homographies t -> reference."""
    count = len(steps)
    matrices = np.tile(np.eye(3), (count, 1, 1))
    for t in range(reference - 1, -1, -1):
        matrices[t] = matrices[t + 1] @ steps[t + 1]
    for t in range(reference + 1, count):
        matrices[t] = matrices[t - 1] @ np.linalg.inv(steps[t])
    return matrices / matrices[:, 2:, 2:]
