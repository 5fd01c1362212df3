"""Measures of several foregrounds: each matte against its own, and who stands in front.

``a_k`` and ``g_k`` are the predicted and the true matte of foreground k, back to front.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from layerflow.clip import BLENDED, U8
from layerflow.evaluation.metrics import Alpha, alpha_iou, alpha_mad, as_unit
from layerflow.layer_set import matte_of
from layerflow.media.layer_stack import LayerStack


def foreground_scores(
    predicted: LayerStack, truth: LayerStack, given: Sequence[str]
) -> dict[str, float]:
    """Measures of each foreground that was not given, in the order as given, of one clip.

    - ``iou_foreground``, ``mad_foreground``, ``iou_foreground.2``, ...: of its matte against the
      true one of the same place; a foreground that was not made has an empty matte.
    - ``iou_each``, ``mad_each``: their means.
    - ``order``: ``order_score`` of all foregrounds.

    Nothing where blended was not given: only then is there one right answer.
    """
    if BLENDED not in given:
        return {}
    true = [truth.layer(matte_of(name)) for name in truth.foregrounds]
    made = [predicted.layer(matte_of(name)) for name in predicted.foregrounds]
    made += [np.zeros_like(true[0])] * (len(true) - len(made))
    scores: dict[str, float] = {}
    for name, alpha, right in zip(truth.foregrounds, made, true, strict=False):
        if matte_of(name) not in given:
            scores[f"iou_{name}"] = alpha_iou(alpha, right)
            scores[f"mad_{name}"] = alpha_mad(alpha, right)
    if scores:
        for measure in ("iou", "mad"):
            own = [value for name, value in scores.items() if name.startswith(f"{measure}_")]
            scores[f"{measure}_each"] = float(np.mean(own))
        scores["order"] = order_score(made, true)
    return scores


def matching(predicted: Sequence[Alpha], truth: Sequence[Alpha]) -> list[int]:
    """For each true matte the number of the predicted one that is it: no two share one, and the sum
    of their IoU is the greatest (of equal ones the first in order). At least as many predicted."""
    table = np.array([[alpha_iou(a, g) for a in predicted] for g in truth])
    rows = np.arange(len(truth))
    choices = np.array(list(itertools.permutations(range(len(predicted)), len(truth))))
    sums = table[rows, choices].sum(axis=1)
    return [int(which) for which in choices[int(np.argmax(sums > sums.max() - 1e-9))]]


def order_score(predicted: Sequence[Alpha], truth: Sequence[Alpha]) -> float:
    """Share of the pixels at which true foregrounds overlap where the right one is in front.

    A pixel counts where two or more ``g_k > 1/2``. In front is the foremost with a matte above one
    half, of the predicted ones as ``matching`` tells which is which, so that right mattes in the
    wrong order score 0 and a foreground in a wrong place is no wrong order elsewhere. NaN where
    nothing overlaps.
    """
    true, made = ([as_unit(alpha) > 0.5 for alpha in alphas] for alphas in (truth, predicted))
    overlap = np.sum(true, axis=0) > 1
    if not overlap.any():
        return float("nan")
    is_true = {which: number for number, which in enumerate(matching(predicted, truth))}
    right = _foremost(true, range(len(true)))[overlap]
    found = _foremost(made, [is_true.get(number, -1) for number in range(len(made))])[overlap]
    return float((right == found).mean())


def _foremost(masks: Sequence[NDArray[np.bool_]], numbers: Sequence[int]) -> NDArray[np.int64]:
    """The number of the last of the masks, back to front, that holds each pixel; -1 for none."""
    out = np.full(masks[0].shape, -1, np.int64)
    for mask, number in zip(masks, numbers, strict=True):
        out[mask] = number
    return out


def recomposition_error(stack: LayerStack) -> float:
    """``mean |layers over the background - blended|`` in levels of 0..255, by the over operator."""
    return float(np.abs(stack.recomposed().astype(np.int16) - stack.layer(BLENDED)).mean())


def split_mask(mask: NDArray[np.bool_], count: int) -> list[U8]:
    """The ``count`` largest pieces of a mask ``[T, H, W]`` that hang together in space and time,
    largest first, as mattes uint8 (0 or 255); empty ones where there are fewer."""
    from scipy import ndimage

    labels, found = ndimage.label(mask)
    sizes = np.bincount(labels.ravel(), minlength=found + 1)[1:]
    largest = np.argsort(-sizes, kind="stable")[:count] + 1
    pieces = [(labels == which).astype(np.uint8) * 255 for which in largest]
    return pieces + [np.zeros(mask.shape, np.uint8)] * (count - len(pieces))
