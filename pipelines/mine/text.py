"""Burnt-in text: captions, credits, watermarks. No model: strokes in rows that do not move."""

from __future__ import annotations

import cv2
import numpy as np

from layerflow.clip import U8

LINES = 360  # height at which strokes are searched
STROKE = 9  # pixels: wider marks are no letters
CONTRAST = 40.0  # levels of a stroke against its surroundings
SAMPLED = 5  # frames of a clip
STEADY = 10.0  # levels by which a burnt-in pixel may change
GAP = 13  # pixels between letters that join into a line
MIN_HEIGHT, MAX_HEIGHT = 6, 60
MIN_ASPECT = 2.0
MIN_LETTERS = 4
STROKE_SHARE = (0.12, 0.75)  # of a line's box


def text_share(frames: U8) -> float:
    """Share of the picture, 0..1, inside boxes of what looks like burnt-in text.

    frames uint8 ``[T >= 1, H, W, 3]``. Text is thin marks lighter or darker than their
    surroundings, that stay where they are with their brightness for the whole clip, at least
    four of them in a row of one height. Signs in a static scene look the same and count too.
    """
    height, width = frames.shape[1:3]
    factor = LINES / height
    size = (max(16, round(width * factor)), LINES)
    places = np.unique(np.linspace(0, len(frames) - 1, SAMPLED).round().astype(int))
    gray = [
        cv2.resize(cv2.cvtColor(frames[t], cv2.COLOR_RGB2GRAY), size, interpolation=cv2.INTER_AREA)
        for t in places
    ]
    kernel = cv2.getStructuringElement(cv2.MORPH_RECT, (STROKE, STROKE))
    steady = np.ptp(np.stack(gray), axis=0) <= STEADY
    covered = np.zeros(size[::-1], bool)
    for operation in (cv2.MORPH_TOPHAT, cv2.MORPH_BLACKHAT):
        strokes = np.min([cv2.morphologyEx(g, operation, kernel) for g in gray], axis=0)
        _add_lines((strokes >= CONTRAST) & steady, covered)
    return float(covered.mean())


def _add_lines(marks: np.ndarray, covered: np.ndarray) -> None:
    """Mark the boxes of the lines of text among the marks bool ``[h, w]``."""
    letters = marks.astype(np.uint8)
    gap = cv2.getStructuringElement(cv2.MORPH_RECT, (GAP, 3))
    joined = cv2.morphologyEx(letters, cv2.MORPH_CLOSE, gap)
    count, labels, boxes, _ = cv2.connectedComponentsWithStats(joined)
    for index in range(1, count):
        x, y, w, h = (int(v) for v in boxes[index, :4])
        if not MIN_HEIGHT <= h <= MAX_HEIGHT or w < MIN_ASPECT * h:
            continue
        inside = letters[y : y + h, x : x + w] * (labels[y : y + h, x : x + w] == index)
        if not STROKE_SHARE[0] <= inside.mean() <= STROKE_SHARE[1]:
            continue
        if _letters(inside) >= MIN_LETTERS:
            covered[y : y + h, x : x + w] = True


def _letters(inside: np.ndarray) -> int:
    """Marks of about the height of the line."""
    count, _, boxes, _ = cv2.connectedComponentsWithStats(inside)
    tall = boxes[1:count, cv2.CC_STAT_HEIGHT] >= 0.45 * len(inside)
    return int(tall.sum())
