"""The media of the study: subjects and films by their part, some of them made coarse or recoloured.

A subject is a cut-out (RGBA), a picture with its matte beside it, or a film with its matte film.
Subjects of the moving clips lose what a coarse matte does not have: hair, fur, soft edges.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from layerflow.clip import U8, resize_matted
from layerflow.media.cells import encode_png
from layerflow.seeds import numbered
from pipelines.inputs.listing import STILL_SUFFIXES
from pipelines.readers.stills import LEAST_ALPHA, read_still

COARSE = 0.01  # radius of what a coarse matte cannot show, as a share of the subject's size
LARGEST = 320  # pixels of a cut-out's longer side: clips are far smaller


def gather(media: Path, name: str, wanted: Sequence[str], out: Path, recoloured: int = 0) -> Path:
    """The folder ``out/NAME`` of the files ``wanted`` below ``media``.

    Cut-outs are cropped, reduced and, with ``recoloured``, repeated in other colours; what is not
    a cut-out comes with the files beside it that bear its name. ValueError for a file that is not
    there.
    """
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    for number, path in enumerate(found(media, wanted)):
        rgba = read_cutout(path)
        if rgba is None:
            for beside in sorted(path.parent.glob(f"{path.stem}[._]*")):
                shutil.copy(beside, folder / beside.name)
            continue
        for copy in range(recoloured + 1):
            rng = numbered(number, copy, 0)
            shown = recolour(rgba, rng) if copy else rgba
            stem = path.name.partition(".")[0].rstrip("0123456789-_")
            (folder / f"{stem}-{number}-{copy}.png").write_bytes(encode_png(shown))
    return folder


def found(media: Path, wanted: Sequence[str]) -> list[Path]:
    """The files that names mean: a file itself, or all in a folder."""
    paths: list[Path] = []
    for name in wanted:
        path = media / name
        if path.is_dir():
            paths += sorted(p for p in path.iterdir() if p.is_file())
        elif path.is_file():
            paths.append(path)
        else:
            raise ValueError(f"{path} is not there; study.yaml says which files play which part")
    return paths


def read_cutout(path: Path) -> U8 | None:
    """RGBA uint8 [H, W, 4] around the subject; None for a film, a picture with a matte, a plate."""
    if path.suffix.lower() not in STILL_SUFFIXES:
        return None
    rgba = read_still(path)
    if rgba[..., 3].min() == 255:
        return None
    rows, columns = (np.flatnonzero((rgba[..., 3] > LEAST_ALPHA).any(axis)) for axis in (1, 0))
    rgba = rgba[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = LARGEST / max(rgba.shape[:2])
    if scale >= 1:
        return rgba
    height, width = (max(1, round(side * scale)) for side in rgba.shape[:2])
    colour, alpha = resize_matted(rgba[None, ..., :3], rgba[None, ..., 3], height, width)
    return np.dstack([colour[0], alpha[0]])


def recolour(rgba: U8, rng: np.random.Generator) -> U8:
    """The cut-out with its hue turned, and its saturation and brightness changed."""
    hsv = cv2.cvtColor(np.ascontiguousarray(rgba[..., :3]), cv2.COLOR_RGB2HSV).astype(np.float32)
    hsv[..., 0] = (hsv[..., 0] + rng.uniform(0, 180)) % 180
    hsv[..., 1] = (hsv[..., 1] * rng.uniform(0.6, 1.6)).clip(0, 255)
    hsv[..., 2] = 255 * (hsv[..., 2] / 255) ** rng.uniform(0.6, 1.6)
    turned = cv2.cvtColor(np.rint(hsv).astype(np.uint8), cv2.COLOR_HSV2RGB)
    return np.dstack([turned, rgba[..., 3]])


def coarse(folder: Path) -> Path:
    """The folder beside ``folder`` with the same subjects, cut out coarsely."""
    out = folder.with_name(folder.name + "-coarse")
    out.mkdir(exist_ok=True)
    for path in sorted(folder.iterdir()):
        rgba = read_cutout(path)
        if rgba is None:
            shutil.copy(path, out / path.name)  # films have outlines drawn by hand: coarse already
            continue
        radius = max(1, round(COARSE * max(rgba.shape[:2])))
        disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
        padded = cv2.copyMakeBorder(rgba[..., 3], *[radius] * 4, cv2.BORDER_CONSTANT, value=0)
        mask = (padded > 127).astype(np.uint8)
        mask = cv2.morphologyEx(mask, cv2.MORPH_OPEN, disk)[radius:-radius, radius:-radius]
        if not mask.any():
            mask = (rgba[..., 3] > 127).astype(np.uint8)
        shown = np.dstack([rgba[..., :3], mask * 255])
        (out / path.name).write_bytes(encode_png(shown))
    return out
