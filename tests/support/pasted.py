"""Cut-outs and backdrops to paste."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np

from layerflow.clip import U8
from layerflow.corpus.table import Corpus
from layerflow.media.cells import (
    encode_png,
)
from manifests.paste import PasteOptions
from pipelines.paste.job import run_paste

SIZE = (48, 64)


FRAMES = 4


def disc(size: int = 80, colour: tuple[int, int, int] = (210, 70, 40), at: float = 0.0) -> U8:
    y, x = np.indices((size, size)) - (size - 1) / 2
    ramp = np.clip((size * 0.3 - np.hypot(y, x - at)) / 6 + 0.5, 0, 1)
    rgba = np.full((size, size, 4), 255, np.uint8)
    rgba[..., :3] = colour
    rgba[..., 3] = np.rint(ramp * 255)
    return rgba


def scenery(seed: int, frames: int | None = None, height: int = 72, width: int = 96) -> U8:
    rng = np.random.default_rng(seed)
    low = rng.uniform(40, 200, (6, 8, 3)).astype(np.float32)
    still = cv2.resize(low, (width, height), interpolation=cv2.INTER_CUBIC).clip(0, 255)
    picture = still.astype(np.uint8)
    if frames is None:
        return picture
    return np.stack([np.roll(picture, 2 * t, axis=1) for t in range(frames)])


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def stills(root: Path, count: int = 3) -> Path:
    for i in range(count):
        write(root / f"disc-{i}.png", encode_png(disc(colour=(210, 60 * i, 40))))
    return root


def backdrops(root: Path, count: int = 3) -> Path:
    for i in range(count):
        write(root / f"hill-{i}.png", encode_png(scenery(i)))
    return root


def options(tmp: Path, fg: Path, bg: Path, **more: Any) -> PasteOptions:
    said: dict[str, Any] = {
        "foregrounds": [str(fg)],
        "backgrounds": [str(bg)],
        "out": str(tmp / "out"),
        "count": 6,
        "seed": 3,
        "size": SIZE,
        "frames": FRAMES,
        "fps": 8.0,
    }
    return PasteOptions(**(said | more))


def run(tmp: Path, fg: Path, bg: Path, **more: Any) -> Corpus:
    said = options(tmp, fg, bg, **more)
    run_paste(said, workers=0, quiet=True)
    return Corpus.open(said.out)
