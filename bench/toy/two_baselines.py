"""Mattes of two movers that need no learning: a threshold, cut in two, sorted."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from two_movers import MOVERS

from layerflow.evaluation.baselines import COLOUR, MOTION, best_cut, pixel_features

Mask = NDArray[np.bool_]
Clip = Mapping[str, NDArray[np.uint8]]
BACK, FRONT = MOVERS.foregrounds


def mean_iou(masks: Sequence[Mask], truths: Sequence[Mask]) -> float:
    """Mean over clips of the clip's IoU."""
    pairs = zip(masks, truths, strict=True)
    return float(np.mean([(m & t).sum() / max(1, (m | t).sum()) for m, t in pairs]))


def by_components(mask: Mask, features: Mapping[str, NDArray[np.float32]]) -> tuple[Mask, Mask]:
    """The two largest connected parts of the video."""
    labels, _ = ndimage.label(mask)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    first, *rest = np.argsort(-sizes)
    second = labels == rest[0] if rest and sizes[rest[0]] else np.zeros_like(mask)
    return labels == first if sizes[first] else np.zeros_like(mask), second


def by_hue(mask: Mask, features: Mapping[str, NDArray[np.float32]]) -> tuple[Mask, Mask]:
    """The warm and the cool part."""
    warm = features["red-blue"] > 0
    return mask & warm, mask & ~warm


def lowest(mask: Mask) -> float:
    return float(np.nonzero(mask)[1].mean()) if mask.any() else 0.0


SPLITS = {"components": by_components, "hue": by_hue}
SORTS: dict[str, Callable[[Mask], float]] = {
    "larger in front": lambda mask: float(mask.sum()),
    "smaller in front": lambda mask: -float(mask.sum()),
    "lower in front": lowest,
}


def baselines(training: Sequence[Clip], held_out: Sequence[Clip]) -> dict[str, dict[str, float]]:
    """Alpha IoU of the foreground behind and of the one in front, by baseline, on held-out clips.

    Thresholds are chosen on the training clips, for the two mattes together.
    """
    tune, test = (
        [pixel_features(clip["blended"]) for clip in clips] for clips in (training, held_out)
    )
    truths = {
        layer: [[c[MOVERS.mattes[layer]] > 127 for c in clips] for clips in (training, held_out)]
        for layer in (BACK, FRONT)
    }
    union = np.stack([a | b for a, b in zip(truths[BACK][0], truths[FRONT][0], strict=True)])
    found: dict[str, dict[str, float]] = {}
    places = {}
    for layer in (BACK, FRONT):
        mean = np.stack(truths[layer][0]).mean((0, 1), dtype=np.float32)
        wide = np.ascontiguousarray(np.broadcast_to(mean, union.shape))
        cut = best_cut(wide, np.stack(truths[layer][0]), "mean")
        place = np.broadcast_to(cut({"mean": mean}), union.shape[1:])
        places[layer] = mean_iou([place] * len(held_out), truths[layer][1])
    found["mean training matte"] = places
    for name in (MOTION, *COLOUR):
        cut = best_cut(np.stack([f[name] for f in tune]), union, name)
        masks = [cut(features) for features in test]
        for (how, split), (by, key) in itertools.product(SPLITS.items(), SORTS.items()):
            pairs = [sorted(split(m, f), key=key) for m, f in zip(masks, test, strict=True)]
            found[f"{name}, {how}, {by}"] = {
                layer: mean_iou([pair[i] for pair in pairs], truths[layer][1])
                for i, layer in enumerate((BACK, FRONT))
            }
    best = {layer: max(scores[layer] for scores in found.values()) for layer in (BACK, FRONT)}
    return {"best of each": best, **found}
