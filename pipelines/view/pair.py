"""Two sources side by side: the clips of one, each with that of the same id in the other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np

from layerflow.clip import ALPHA, BACKGROUND, BLENDED, FOREGROUND, U8, LayeredClip
from layerflow.media.layer_stack import LayerStack
from pipelines.view.clips import ClipSource, difference

OTHER = "B"
APART = "difference of A and B"


class PairSource:
    """Clips that both have. Their rows are those of A, with the scores of B as ``NAME (B)``.

    Raises ValueError when they share no id.
    """

    def __init__(self, one: ClipSource, other: ClipSource) -> None:
        self._one, self._other = one, other
        self.name, self.against = one.name, other.name
        others = {row["id"]: row for row in other.rows()}
        self._rows: list[dict[str, Any]] = []
        self._places: list[tuple[int, int]] = []
        for row in one.rows():
            if (match := others.get(row["id"])) is not None:
                self._places.append((row["index"], match["index"]))
                scores = {f"{name} ({OTHER})": value for name, value in match["scores"].items()}
                index = len(self._rows)
                self._rows.append({**row, "index": index, "scores": row["scores"] | scores})
        if not self._rows:
            raise ValueError(f"{one.name} and {other.name} have no clip with the same id")
        alone = f"{len(one) - len(self._rows)} only in A, {len(others) - len(self._rows)} only in B"
        self.note = f"clips of the same ids; {alone}"

    def __len__(self) -> int:
        return len(self._rows)

    def rows(self) -> Iterator[dict[str, Any]]:
        return iter(self._rows)

    def rejected(self) -> Iterator[dict[str, Any]]:
        return self._one.rejected()

    def clip(self, index: int) -> LayeredClip:
        return self._one.clip(self._places[index][0])

    def stack(self, index: int) -> LayerStack | None:
        return None

    def panels(self, index: int) -> dict[str, U8]:
        """The layers of B in the number of frames of A, and how far the blended layers differ."""
        one, other = self.clip(index), self._other.clip(self._places[index][1])
        moments = np.rint(np.linspace(0, other.num_frames - 1, one.num_frames)).astype(int)
        few = other.take([int(moment) for moment in moments])
        size = one.size[::-1]
        same = np.stack([cv2.resize(f, size, interpolation=cv2.INTER_AREA) for f in few.blended])
        foreground = f"{OTHER} {FOREGROUND}"
        return {
            f"{OTHER} {BLENDED}": few.blended,
            foreground: few.foreground,
            f"{ALPHA} of {foreground}": few.alpha,
            f"{OTHER} {BACKGROUND}": few.background,
            APART: difference(one.blended, same),
        }
