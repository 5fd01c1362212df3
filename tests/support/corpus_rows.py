"""Rows of a corpus with next to nothing in them."""

from __future__ import annotations

import numpy as np

from layerflow.clip import LayeredClip, composite
from layerflow.corpus.table import (
    clip_id,
    encode_row,
    origin,
)


def make_row(index: int, kind: str = "pasted") -> dict:
    rng = np.random.default_rng(index)
    frames = 1 if kind == "image" else 3
    foreground, background = (
        rng.integers(0, 256, (frames, 24, 32, 3), dtype=np.uint8) for _ in range(2)
    )
    alpha = rng.integers(0, 256, (frames, 24, 32), dtype=np.uint8)
    clip = LayeredClip(
        foreground,
        alpha,
        background,
        composite(foreground, alpha, background),
        {"foreground": "a dog", "background": "a yard", "blended": "a dog in a yard"},
        8.0,
        kind,
    )
    return encode_row(
        clip,
        id=clip_id(kind, ["ab"], [index], "r"),
        origin=origin("clips/a.mp4", "ab", start=0.5, end=1.5, parents=["b.mp4"]),
        quality={"flicker": 0.25},
        recipe="r",
    )
