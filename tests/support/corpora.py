"""Small corpora that tests of validation, pages and publishing work on."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from layerflow.clip import LayeredClip, composite
from layerflow.corpus.table import REJECTED_SCHEMA, SCHEMA, encode_row, origin, rejected_row
from layerflow.corpus.writer import write_table

KINDS = ("pasted", "mined", "image")
LICENCES = ("CC-BY-4.0", "CC0-1.0", None)


def moving_clip(seed: int, kind: str = "pasted", height: int = 32, width: int = 48) -> LayeredClip:
    """A disc that crosses a smooth coloured background; 5 frames, or 1 for an image clip."""
    frames = 1 if kind == "image" else 5
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin(x / 9 + phase) + np.cos(y / 7) for phase in rng.random(3) * 6], -1)
    background = np.repeat((127 + 50 * waves).astype(np.uint8)[None], frames, axis=0)
    foreground = np.full_like(background, rng.integers(30, 255, 3))
    centre = width * (0.3 + 0.1 * np.arange(frames))[:, None, None]
    alpha = np.clip((height / 4 - np.hypot(x - centre, y - height / 2)) * 90 + 128, 0, 255)
    alpha = alpha.astype(np.uint8)
    prompts = {
        "foreground": f"disc {seed}",
        "background": "waves",
        "blended": f"disc {seed}, waves",
    }
    blended = composite(foreground, alpha, background)
    return LayeredClip(foreground, alpha, background, blended, prompts, kind=kind)


def make_rows(count: int, **changes: Any) -> list[dict[str, Any]]:
    """Rows of all kinds in turn; sources ``video-0.mp4`` to ``video-3.mp4``; every third row has
    no licence. Pasted rows have the parents (foreground, background)."""
    rows = []
    for index in range(count):
        kind = KINDS[index % 3]
        source = f"video-{index % 4}.mp4"
        parents = [f"{index % 4:064x}", f"{100 + index % 5:064x}"] if kind == "pasted" else []
        rows.append(
            encode_row(
                replace(moving_clip(index, kind), **changes),
                id=f"{index:016x}",
                origin=origin(
                    source,
                    f"{index % 4:064x}",
                    start=float(index),
                    end=index + 0.625,
                    licence=LICENCES[index % 3],
                    attribution="a maker" if index % 3 == 0 else None,
                    parents=parents,
                ),
                quality={"flicker": index / 100, "ghost": float(index)} if index % 2 else {},
                recipe="0123456789abcdef",
            )
        )
    return rows


def make_rejected() -> list[dict[str, Any]]:
    return [
        rejected_row("bad/a.mp4", "decode", "not a readable video", kind="mined", recipe="r"),
        rejected_row(
            *("b.mp4", "gate", "flicker 0.31 over 0.02"),
            kind="mined",
            recipe="r",
            start=1.0,
            end=3.0,
            quality={"flicker": 0.31},
        ),
        rejected_row("c.mp4", "gate", "flicker 0.44 over 0.02", kind="mined", recipe="r"),
    ]


def write_corpus(
    path: Path, rows: Iterable[dict[str, Any]], rejected: Iterable[dict[str, Any]] = ()
) -> Path:
    """A finished corpus on disk with the given rows."""
    refused = list(rejected)
    count = write_table(path, rows, SCHEMA)
    write_table(path / "rejected", refused, REJECTED_SCHEMA)
    info = {"kind": "mined", "recipe": "0123456789abcdef", "options": {"frames": 5, "gate": "off"}}
    info |= {"state": "complete", "rows": count, "rejected": len(refused), "reasons": {}}
    (path / "corpus.json").write_text(json.dumps(info))
    return path
