"""Near-duplicates among pasted clips: the same object at the same place over the same frames."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np

from layerflow.clip import U8

SIDE = 8  # cells of a signature's picture
WINDOW = 4096  # latest clips that a new one is compared with
MAX_ALPHA = 0.15  # change of alpha, as a share of the alpha itself
MAX_LUMA = 4.0  # mean levels


def signature(alpha: U8, blended: U8) -> str:
    """Hex of alpha and luma of the first and the last frame, as means of 8 x 8 cells.

    alpha uint8 ``[T, H, W]``, blended ``[T, H, W, 3]``.
    """
    parts = [_cells(alpha[t]) for t in (0, -1)]
    parts += [_cells(cv2.cvtColor(blended[t], cv2.COLOR_RGB2GRAY)) for t in (0, -1)]
    return np.stack(parts).tobytes().hex()


def _cells(picture: U8) -> U8:
    return cv2.resize(picture, (SIDE, SIDE), interpolation=cv2.INTER_AREA)


class Repeats:
    """Tells which rows, in the order of the corpus, nearly repeat one of the latest before them.

    Constant memory: ``WINDOW`` signatures. Clips of one foreground follow each other closely.
    """

    def __init__(self) -> None:
        self._seen = np.zeros((WINDOW, 4, SIDE * SIDE), np.int16)
        self._ids = [""] * WINDOW
        self._count = 0

    def __call__(self, row: Mapping[str, Any]) -> str | None:
        """Why a row is refused, or None; a row that is kept is remembered."""
        text = json.loads(row.get("draw") or "{}").get("signature")
        if not text:
            return None
        own = np.frombuffer(bytes.fromhex(text), np.uint8).reshape(4, -1).astype(np.int16)
        held = min(self._count, WINDOW)
        change = np.abs(self._seen[:held] - own)
        alpha = change[:, :2].sum(axis=(1, 2)) / max(1, int(own[:2].sum()))
        luma = change[:, 2:].mean(axis=(1, 2))
        same = np.flatnonzero((alpha < MAX_ALPHA) & (luma < MAX_LUMA))
        if len(same):
            return f"nearly the same as clip {self._ids[int(same[0])]}"
        place = self._count % WINDOW
        self._seen[place], self._ids[place] = own, row["id"]
        self._count += 1
        return None
