"""Parts of a matte that are nothing but background."""

from __future__ import annotations

import cv2
import numpy as np

from pipelines.vision.plate import Plate

_SAME = 8.0  # levels up to which a pixel is what the plate shows
_SHARE = 0.7  # of a part's pixels that are the same make it background


def without_background(
    frames: np.ndarray, alpha: np.ndarray, plate: Plate
) -> tuple[np.ndarray, bool]:
    """The matte without the connected parts that look like the clean plate, and whether any did.

    ``frames``: uint8 [T, H, W, 3]; ``alpha``: uint8 [T, H, W]; ``plate``: of ``clean_plate`` for
    them. Only pixels that other frames showed say anything: a piece of floor that is taken for the
    subject when it has left the picture is the floor of the frames before.
    """
    cleaned = alpha.copy()
    for t in np.flatnonzero((alpha > 127).any((1, 2))):
        parts = (alpha[t] > 12).astype(np.uint8)
        number, labels, stats, _ = cv2.connectedComponentsWithStats(parts)
        differ = np.abs(frames[t].astype(np.int16) - plate.background[t]).max(-1)
        same = plate.seen[t] & (cv2.blur(differ.astype(np.float32), (3, 3)) < _SAME)
        core = alpha[t] > 127
        size = np.bincount(labels[core], minlength=number)
        equal = np.bincount(labels[core & same], minlength=number)
        background = (equal >= _SHARE * size) & (stats[:, cv2.CC_STAT_AREA] > 0)
        background[0] = False
        cleaned[t][background[labels]] = 0
    return cleaned, bool((cleaned != alpha).any())
