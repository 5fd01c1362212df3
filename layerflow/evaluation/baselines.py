"""Mattes that need no learning: what a trained decomposition must beat.

Each baseline is one number per pixel of the blended video, cut at one threshold. Feature and
threshold are chosen on training clips and scored on held-out ones, by ``metrics.alpha_iou``
averaged over clips. Also here: the empty matte, and the mean training matte, which knows only
where subjects tend to be. For clips of several foregrounds see ``several_baselines``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from layerflow.clip import U8
from layerflow.evaluation.foregrounds import matching, split_mask
from layerflow.evaluation.metrics import alpha_iou, as_unit

F32 = NDArray[np.float32]
Pair = tuple[U8, U8]
"""Blended uint8 ``[T, H, W, 3]`` and true alpha uint8 ``[T, H, W]`` of one clip."""

COLOUR = (
    "red",
    "green",
    "blue",
    "luma",
    "value",
    "saturation",
    "chroma",
    "hue",
    "red-blue",
    "green-magenta",
    "distance from mean colour",
)
MOTION = "difference from temporal median"
QUANTILES = 49


@dataclass(frozen=True)
class Cut:
    """``feature > threshold``, or, for sign -1, its opposite."""

    feature: str
    threshold: float
    sign: int

    def __call__(self, features: Mapping[str, F32]) -> NDArray[np.bool_]:
        above = features[self.feature] > self.threshold
        return above if self.sign > 0 else ~above


def pixel_features(blended: U8) -> dict[str, F32]:
    """Every feature of one clip, float32 ``[T, H, W]``, colours on a 0..1 scale."""
    x = blended.astype(np.float32) / 255.0
    red, green, blue = x[..., 0], x[..., 1], x[..., 2]
    high, low = x.max(-1), x.min(-1)
    hue = np.arctan2(np.sqrt(3.0) * (green - blue), 2 * red - green - blue) / (2 * np.pi)
    mean = x.mean((0, 1, 2))
    return {
        "red": red,
        "green": green,
        "blue": blue,
        "luma": 0.299 * red + 0.587 * green + 0.114 * blue,
        "value": high,
        "saturation": (high - low) / np.maximum(high, 1e-3),
        "chroma": high - low,
        "hue": (hue % 1.0).astype(np.float32),
        "red-blue": red - blue,
        "green-magenta": green - (red + blue) / 2,
        "distance from mean colour": np.abs(x - mean).mean(-1),
        MOTION: np.abs(x - np.median(x, axis=0, keepdims=True)).mean(-1),
    }


def _mean_iou(masks: NDArray[np.bool_], truths: NDArray[np.bool_]) -> float:
    """Mean over clips of the clip's IoU; ``[N, ...]``. An empty union counts as 1."""
    axes = tuple(range(1, truths.ndim))
    union = (masks | truths).sum(axes)
    both = (masks & truths).sum(axes)
    return float(np.where(union > 0, both / np.maximum(union, 1), 1.0).mean())


def best_cut(values: F32, truths: NDArray[np.bool_], feature: str) -> Cut:
    """The threshold and direction of the greatest mean IoU on ``[N, T, H, W]`` clips.

    Thresholds are quantiles of the values. All are scored at once from each clip's histogram.
    """
    grid = np.unique(np.quantile(values, np.linspace(0.01, 0.99, QUANTILES)).astype(np.float32))
    bins = np.searchsorted(grid, values.reshape(len(values), -1), side="left")
    slots = bins + (len(grid) + 1) * np.arange(len(values))[:, None]
    shape = (len(values), len(grid) + 1)
    every, true = (
        np.bincount(chosen.ravel(), minlength=shape[0] * shape[1]).reshape(shape)
        for chosen in (slots, slots[truths.reshape(len(truths), -1)])
    )
    best = (-1.0, Cut(feature, 0.0, 1))
    for sign in (1, -1):
        masked, both = (_beyond(counts, sign) for counts in (every, true))
        union = masked + true.sum(1, keepdims=True) - both
        scores = np.where(union > 0, both / np.maximum(union, 1), 1.0).mean(0)
        index = int(np.argmax(scores))
        if scores[index] > best[0]:
            best = float(scores[index]), Cut(feature, float(grid[index]), sign)
    return best[1]


def _beyond(counts: NDArray[np.int64], sign: int) -> NDArray[np.int64]:
    """Counts ``[N, Q+1]`` of bins -> of pixels above (+1) or not above (-1) each threshold."""
    below = counts.cumsum(1)
    return below[:, -1:] - below[:, :-1] if sign > 0 else below[:, :-1]


def _stack(pairs: Sequence[Pair]) -> tuple[dict[str, F32], NDArray[np.bool_]]:
    if not pairs:
        raise ValueError("baselines need at least one training and one held-out clip")
    shapes = {blended.shape for blended, _ in pairs}
    if len(shapes) > 1:
        raise ValueError(f"baselines need clips of one size and length, not {sorted(shapes)}")
    each = [pixel_features(blended) for blended, _ in pairs]
    features = {name: np.stack([f[name] for f in each]) for name in each[0]}
    return features, np.stack([as_unit(alpha) > 0.5 for _, alpha in pairs])


def trivial_baselines(training: Sequence[Pair], held_out: Sequence[Pair]) -> dict[str, float]:
    """Mean alpha IoU on the held-out clips of every baseline, tuned on the training clips.

    Keys: ``empty matte``, ``mean training matte``, ``MOTION`` and each name of ``COLOUR``. All
    clips must have one size and length. Raises ValueError otherwise.
    """
    tune, tune_truth = _stack(training)
    test, truth = _stack(held_out)
    scores = {"empty matte": _mean_iou(np.zeros_like(truth), truth)}
    mean = np.broadcast_to(tune_truth.mean((0, 1), dtype=np.float32), tune_truth.shape)
    cut = best_cut(np.ascontiguousarray(mean), tune_truth, "mean training matte")
    place = np.broadcast_to(cut({"mean training matte": mean[0, 0]}), truth.shape)
    scores["mean training matte"] = _mean_iou(place, truth)
    for name in (MOTION, *COLOUR):
        scores[name] = _mean_iou(best_cut(tune[name], tune_truth, name)(test), truth)
    return scores


Several = tuple[U8, Sequence[U8]]
"""Blended of one clip, and the true alpha of each of its foregrounds, back to front."""


def several_baselines(training: Sequence[Several], held_out: Sequence[Several]) -> dict[str, float]:
    """Mean alpha IoU of baselines for several foregrounds, over foregrounds and held-out clips.

    Keys: those of ``trivial_baselines``, tuned and scored for each place in the order on its own;
    and ``FEATURE, split`` of each feature: one threshold, tuned on all foregrounds together, of
    which the largest pieces are the foregrounds, each taken for the one that it fits best. That
    assignment uses the truth, so what beats these beats more than a baseline can do. All clips must
    have one size, length and number of foregrounds. Raises ValueError otherwise.
    """
    counts = {len(alphas) for _, alphas in (*training, *held_out)}
    if len(counts) != 1:
        raise ValueError(f"baselines need clips of one number of foregrounds, not {sorted(counts)}")
    places = range(counts.pop())
    each = [
        trivial_baselines(
            *([(b, alphas[k]) for b, alphas in part] for part in (training, held_out))
        )
        for k in places
    ]
    scores = {name: float(np.mean([one[name] for one in each])) for name in each[0]}
    whole = [(blended, np.maximum.reduce(list(alphas))) for blended, alphas in training]
    tune, tune_truth = _stack(whole)
    for name in (MOTION, *COLOUR):
        cut = best_cut(tune[name], tune_truth, name)
        found = [_split_iou(cut(pixel_features(blended)), alphas) for blended, alphas in held_out]
        scores[f"{name}, split"] = float(np.mean(found))
    return scores


def _split_iou(mask: NDArray[np.bool_], alphas: Sequence[U8]) -> float:
    """Mean IoU of the pieces of a mask with the foregrounds, in the best assignment."""
    pieces = split_mask(mask, len(alphas))
    fits = zip(matching(pieces, alphas), alphas, strict=True)
    return float(np.mean([alpha_iou(pieces[which], alpha) for which, alpha in fits]))


def best_colour(scores: Mapping[str, float]) -> tuple[str, float]:
    """The colour threshold that does best on the held-out clips: name and IoU."""
    name = max(COLOUR, key=lambda feature: scores[feature])
    return name, scores[name]
