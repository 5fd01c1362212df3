"""A small corpus of each kind keeps its bytes from one version of the code to the next.

A change that is meant to alter them alters the digests here, in a commit that says why. Frames
are equal on CPUs with AVX2 and the pinned packages (docs/reproducibility.md); else this is skipped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from layerflow.clip import LAYERS, U8
from layerflow.corpus.table import Corpus
from layerflow.media.cells import encode_alpha, encode_color
from manifests.mine import MineOptions
from pipelines.mine.job import run_mine
from tests.support import ROOT, packed, pasted

MEDIA = (*LAYERS, "plate")
TEXTS = ("kind", "alpha_kind", "background_kind", "shadow", "draw")
AVX2 = 11  # OpenCV's CV_CPU_AVX2, which Python does not name
PINNED = ("numpy", "opencv-python-headless", "av", "scikit-image", "scipy")

pytestmark = [
    pytest.mark.skipif(not cv2.checkHardwareSupport(AVX2), reason="frames are equal from AVX2 on"),
    pytest.mark.skipif(
        not {f"{name}=={version(name)}" for name in PINNED}
        <= set((ROOT / "constraints.txt").read_text().split()),
        reason="other packages than constraints.txt names",
    ),
]


def cells(row: dict[str, Any]) -> Iterable[bytes]:
    """Media and texts of a row; scores may differ in the seventh digit from CPU to CPU."""
    yield from (row.get(name) or b"" for name in MEDIA)
    yield from (str(row.get(name)).encode() for name in TEXTS)
    yield from (str(row[name]).encode() for name in row if name.endswith("_prompt"))
    yield " ".join(sorted(name for name, score in row["quality"].items() if score)).encode()
    for single in row.get("objects") or ():
        yield from (single["visible_alpha"], single["amodal_alpha"], single["prompt"].encode())
        if single.get("colour") is not None:
            yield single["colour"]


def digest(corpus: Corpus) -> str:
    found = hashlib.sha256()
    for index in range(len(corpus)):
        for cell in cells(corpus.row(index)):
            found.update(hashlib.sha256(cell).digest())
    return found.hexdigest()[:16]


def moving_disc(frames: int = 16) -> tuple[U8, U8]:
    """A striped disc that walks over scenery: pictures and its matte."""
    picture = pasted.scenery(4, height=96, width=128)
    y, x = np.mgrid[0:96, 0:128]
    pictures, mattes = [], []
    for t in range(frames):
        inside = (x - 40 - 3 * t) ** 2 + (y - 48) ** 2 < 18**2
        stripes = np.where((x - 3 * t) // 6 % 2, 220, 20)
        disc = np.stack([stripes, np.full_like(stripes, 40), 255 - stripes], axis=-1)
        pictures.append(np.where(inside[..., None], disc, picture).astype(np.uint8))
        mattes.append(np.where(inside, 255, 0).astype(np.uint8))
    return np.stack(pictures), np.stack(mattes)


def mined(folder: Path, matting: str) -> Corpus:
    pictures, mattes = moving_disc()
    pasted.write(folder / "films/walk.mp4", encode_color(pictures, 8.0, crf=8))
    if matting == "alpha":
        pasted.write(folder / "films/walk.mask.mkv", encode_alpha(mattes, 8.0))
    said = {"size": "96x128", "frames": 8, "fps": 8, "gate": "off", "matting": matting}
    films, out = folder / "films", folder / "out"
    run_mine(MineOptions(inputs=[str(films)], out=str(out), **said), workers=0, quiet=True)
    return Corpus.open(out)


@pytest.mark.parametrize(
    ("matting", "expected"), [("motion", "59d19c7cb2127f29"), ("alpha", "ac0178e23fc6cb94")]
)
def test_mined_clips_keep_their_bytes(tmp_path: Path, matting: str, expected: str) -> None:
    corpus = mined(tmp_path, matting)
    assert len(corpus) == 2
    assert digest(corpus) == expected


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, "e73bfdc434f20d0d"),
        ({"objects": [2, 2], "shadow": "background", "flip": True}, "6d169e1c2536c2cc"),
        (
            {"objects": [2, 2], "shadow": "background", "flip": True, "object_colours": False},
            "508da9c0a0816b38",
        ),
    ],
)
def test_pasted_clips_keep_their_bytes(tmp_path: Path, more: dict[str, Any], expected: str) -> None:
    fg, bg = pasted.stills(tmp_path / "fg"), pasted.backdrops(tmp_path / "bg")
    corpus = pasted.run(tmp_path, fg, bg, count=4, **more)
    assert len(corpus) == 4
    assert digest(corpus) == expected


def test_packed_stills_keep_their_bytes(tmp_path: Path) -> None:
    for level in (60, 90):
        packed.write(tmp_path / f"in/{level}.png", packed.disc(soft=level / 15))
        packed.write(tmp_path / f"in/{level}.bg.png", packed.slope(level=level))
    packed.write(tmp_path / "in/filled.png", packed.disc(colour=(20, 90, 200)))
    corpus = packed.run(tmp_path, tmp_path / "in", size="48x48")
    assert len(corpus) == 3
    assert digest(corpus) == "3f6e2073eff931d5"
