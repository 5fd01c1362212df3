"""Clips of several foregrounds: rectangles of plain colours that walk over one another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from layerflow.clip import BACKGROUND, BLENDED, U8, LayeredClip, from_level
from layerflow.corpus.columns import (
    EXTENDED_SCHEMA,
    SingleObject,
    encode_objects,
    visible_alphas,
)
from layerflow.corpus.table import Corpus, encode_row, origin
from layerflow.corpus.writer import write_table
from layerflow.media.layer_stack import join

COLOURS = ((220, 40, 30), (30, 200, 60), (40, 60, 230), (230, 220, 40))


def boxes(count: int, frames: int = 4, size: tuple[int, int] = (32, 40)) -> list[tuple[U8, U8]]:
    """Colour and alpha of each of some rectangles, back to front; neighbours overlap by half."""
    found = []
    for k in range(count):
        alpha = np.zeros((frames, *size), np.uint8)
        for t in range(frames):
            alpha[t, 6 + 4 * k : 22 + 4 * k, 4 + 8 * k + t : 20 + 8 * k + t] = 255
        colour = np.zeros((frames, *size, 3), np.uint8)
        colour[...] = COLOURS[k]
        found.append((colour, alpha))
    return found


def several(count: int, frames: int = 4) -> tuple[LayeredClip, list[SingleObject]]:
    """A clip whose foreground is made of rectangles, and these; one has no single objects."""
    pairs = boxes(count, frames)
    background = np.full_like(pairs[0][0], 120)
    made = background.astype(float)
    for colour, alpha in pairs:
        share = alpha[..., None] / 255
        made = share * colour + (1 - share) * made
    foreground, alpha = pairs[0] if count == 1 else join(pairs)
    prompts = {"foreground": "boxes", BACKGROUND: "grey", BLENDED: "boxes on grey"}
    clip = LayeredClip(foreground, alpha, background, from_level(made), prompts, 8.0)
    seen = visible_alphas([alpha for _, alpha in pairs])
    source = origin("box.png", "ab" * 32)
    objects = [
        SingleObject(k, f"box {k}", seen[k], pairs[k][1], source, pairs[k][0]) for k in range(count)
    ]
    return clip, objects if count > 1 else []


def several_row(count: int, index: int = 0, **more: Any) -> dict[str, Any]:
    clip, objects = several(count)
    source = origin(f"{index}.mp4", f"{index:064x}")
    row = encode_row(clip, id=f"{index:016x}", origin=source, quality={}, recipe="r", crf=1)
    cells = encode_objects(objects, clip.fps) or None
    return row | {"objects": cells, "shadow": "none", "plate": None, "draw": None} | more


def several_corpus(path: Path, *counts: int) -> Corpus:
    """A corpus with a row of each number of foregrounds."""
    write_table(path, [several_row(n, i) for i, n in enumerate(counts)], EXTENDED_SCHEMA)
    return Corpus.open(path)
