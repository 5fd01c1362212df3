"""Layered stills to pack."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from layerflow.clip import U8, composite
from layerflow.corpus.table import Corpus
from layerflow.media.cells import encode_png
from manifests.pack import PackOptions
from pipelines.pack.job import run_pack


def disc(size: int = 48, colour: tuple[int, int, int] = (210, 70, 40), soft: float = 6.0) -> U8:
    y, x = np.indices((size, size)) - (size - 1) / 2
    ramp = np.clip((size * 0.3 - np.hypot(y, x)) / soft + 0.5, 0, 1)
    rgba = np.full((size, size, 4), 255, np.uint8)
    rgba[..., :3] = colour
    rgba[..., 3] = np.rint(ramp * 255)
    return rgba


def slope(height: int = 48, width: int = 48, level: int = 90) -> U8:
    ramp = np.linspace(level, level + 60, width).astype(np.uint8)
    return np.repeat(np.repeat(ramp[None, :, None], height, 0), 3, 2)


def write(path: Path, picture: U8) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_png(picture))
    return path


def run(tmp: Path, *inputs: Path, **more: Any) -> Corpus:
    out = tmp / more.pop("out", "out")
    options = PackOptions(inputs=[str(path) for path in inputs], out=str(out), **more)
    run_pack(options, workers=0, quiet=True)
    return Corpus.open(out)


def only(corpus: Corpus) -> Any:
    assert len(corpus) == 1, corpus.rejected()
    clip = corpus.clip(0)
    assert np.array_equal(clip.blended, composite(clip.foreground, clip.alpha, clip.background))
    assert corpus.row(0, ["quality"])["quality"]["equation_error"] <= 0.5 + 1e-4
    return clip
