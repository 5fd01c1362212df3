"""A film before a green screen, and options to mine it."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np

from layerflow.clip import U8
from manifests.mine import MineOptions


def green_screen(path: Path, seed: int, frames: int = 20, fps: int = 10) -> U8:
    """A textured disc over plain green; returns the true matte uint8 [T, 96, 128]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:96, 0:128]
    start, step = rng.uniform(30, 50), rng.uniform(1.0, 2.0)
    mattes, pictures = [], []
    for t in range(frames):
        inside = (x - start - step * t) ** 2 + (y - 48) ** 2 < 20**2
        stripes = np.where((x - round(step * t)) // 6 % 2, 200, 120)
        disc = np.stack([stripes, np.full_like(stripes, 40), 255 - stripes], axis=-1)
        pictures.append(np.where(inside[..., None], disc, (20, 200, 40)).astype(np.uint8))
        mattes.append(np.where(inside, 255, 0).astype(np.uint8))
    film(path, pictures, fps, crf=8)
    return np.stack(mattes)


def options(folder: Path, out: Path, **more: object) -> MineOptions:
    content = {
        "inputs": [str(folder)],
        "out": str(out),
        "size": "96x128",
        "frames": 8,
        "fps": 10,
        "matting": "chroma",
        "gate": "off",
        **more,
    }
    return MineOptions.model_validate(content)


def film(path: Path, pictures: list[U8], fps: int = 10, crf: int = 18) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": str(crf)})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
