"""A network that has learnt by heart what it sees in a clip."""

from __future__ import annotations

import cv2
import numpy as np


class Salient:
    """Says of each known frame, and of any part of it, what it was told: ``answer`` [T, H, W].

    ``shown``: the sizes (H, W) of all that it was asked about.
    """

    def __init__(self, frames: np.ndarray, answer: np.ndarray, name: str = "u2netp") -> None:
        self.name = name
        self.shown: list[tuple[int, int]] = []
        soft = [cv2.GaussianBlur(a.astype(np.float32), (0, 0), 2) for a in answer]
        self._known = list(zip(frames, soft, strict=True))

    def predict(self, frames: np.ndarray) -> np.ndarray:
        self.shown += [frame.shape[:2] for frame in frames]
        return np.stack([self._of(frame) for frame in frames])

    def _of(self, part: np.ndarray) -> np.ndarray:
        height, width = part.shape[:2]
        for frame, answer in self._known:
            miss = cv2.matchTemplate(frame, part, cv2.TM_SQDIFF)
            y, x = np.unravel_index(miss.argmin(), miss.shape)
            here = (slice(y, y + height), slice(x, x + width))
            if np.array_equal(frame[here], part):
                return answer[here]
        raise AssertionError("this is no part of a known frame")
