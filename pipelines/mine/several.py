"""Several subjects of a window: each gets a window of its own, and keeps its name over windows."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

import numpy as np

from layerflow.clip import U8
from pipelines.matting import Matte
from pipelines.mine.score import seam
from pipelines.mine.window import Before, Window

OTHERS = "other_subjects"
_SAME = 0.5  # seam from which a matte goes on from one of the window before


def levels(alpha: np.ndarray) -> U8:
    """A soft matte, float32 [T, H, W] in [0, 1], as it is stored: uint8."""
    return np.rint(np.clip(alpha, 0.0, 1.0) * 255.0).astype(np.uint8)


def tell_apart(window: Window, others: Sequence[Matte]) -> None:
    """Give a window that was just matted its name, and each of the other subjects a sibling."""
    alphas = [window.alpha, *(levels(matte.alpha) for matte in others)]
    figures = [window.confidence, *(matte.confidence for matte in others)]
    went_before = _matched(window, alphas)
    scores, siblings = dict(window.scores), []
    for number, alpha in enumerate(alphas):
        one = window if number == 0 else copy(window)
        one.number, one.alpha, one.scores, one.siblings = number, alpha, dict(scores), []
        rest = [other for other in alphas if other is not alpha]
        one.others = np.maximum.reduce(rest) if rest else None
        one.confidence = figures[number] | {OTHERS: float(len(rest))}
        one.before = went_before[number]
        fresh = (round(window.place.start, 3), number)
        one.name = fresh if one.before is None else one.before.name
        siblings += [one] if number else []
    window.siblings = siblings


def _matched(window: Window, alphas: Sequence[U8]) -> list[Before | None]:
    """For each matte the one of the window before that it goes on from, the best pairs first."""
    before = window.just_before
    pairs = [
        (seam(one.last.frame, one.last.alpha, window.frames[0], alpha[0]) or 0.0, -i, -j)
        for i, one in enumerate(before)
        for j, alpha in enumerate(alphas)
    ]
    found: list[Before | None] = [None] * len(alphas)
    left = set(range(len(before)))
    for score, i, j in sorted(pairs, reverse=True):
        if score >= _SAME and -i in left and found[-j] is None:
            left.remove(-i)
            found[-j] = before[-i]
    return found
