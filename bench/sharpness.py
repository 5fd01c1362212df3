"""How well softness is measured on real frames that were blurred by a known amount.

Run: ``python bench/sharpness.py VIDEO ... --cutout STILL``. The middle frame of each video, at
480x720, is blurred, or made small, coded and enlarged; an object pasted before the same treatment
tells the truth: the blur that gives it the energy of gradients that it has afterwards.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from layerflow.clip import U8, resize_cover
from layerflow.media.cells import decode_color, encode_color
from layerflow.media.video import read_frames
from pipelines.paste.appearance import grain_level
from pipelines.vision.sharpness import softness

SIZE = (480, 720)
Treatment = Callable[[U8], U8]


def gaussian(rgb: U8, sigma: float, noise: float = 0.0) -> U8:
    soft = cv2.GaussianBlur(rgb.astype(np.float32), (0, 0), sigma) if sigma else rgb
    grain = np.random.default_rng(0).normal(0, noise, (*rgb.shape[:2], 1))
    return np.clip(np.rint(soft + grain), 0, 255).astype(np.uint8)


def enlarged(rgb: U8, factor: int, crf: int) -> U8:
    """Made ``factor`` times smaller, coded as four equal frames, made large again."""
    size = tuple(side // factor // 2 * 2 for side in (rgb.shape[1], rgb.shape[0]))
    small = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
    video = decode_color(encode_color(np.repeat(small[None], 4, 0), 8, crf=crf, pix_fmt="yuv420p"))
    return cv2.resize(video[2], (rgb.shape[1], rgb.shape[0]), interpolation=cv2.INTER_LINEAR)


TREATMENTS: dict[str, Treatment] = {
    "nothing": partial(gaussian, sigma=0.0),
    **{f"Gaussian {s:g}": partial(gaussian, sigma=s) for s in (1.0, 1.5, 2.0, 3.0)},
    "Gaussian 1.5, noise 4": partial(gaussian, sigma=1.5, noise=4.0),
    "half size, crf 23": partial(enlarged, factor=2, crf=23),
    "third of the size, crf 28": partial(enlarged, factor=3, crf=28),
}


def grey(rgb: U8) -> np.ndarray:
    return cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY).astype(np.float32)


def energy(rgb: U8, inside: np.ndarray) -> float:
    x, y = (cv2.Sobel(grey(rgb), cv2.CV_32F, *axis) for axis in ((1, 0), (0, 1)))
    return float((x**2 + y**2)[inside].sum())


def truth(frame: U8, cutout: U8, treatment: Treatment) -> float:
    """Blur that does to the edges of an object what a treatment does."""
    alpha = np.zeros(SIZE, np.float32)
    pasted = frame.copy()
    side = 360
    small = cv2.resize(cutout, (side, side), interpolation=cv2.INTER_AREA)
    alpha[60 : 60 + side, 180 : 180 + side] = small[..., 3] / 255
    where = alpha > 0
    pasted[where] = small[..., :3][where[60 : 60 + side, 180 : 180 + side]]
    inside = cv2.erode(alpha, np.ones((25, 25), np.uint8)) > 0.95
    sigmas = np.arange(0.0, 4.0, 0.1)
    left = [energy(gaussian(pasted, s), inside) for s in sigmas]
    return float(np.interp(-energy(treatment(pasted), inside), -np.asarray(left), sigmas))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("videos", nargs="+", type=Path)
    parser.add_argument("--cutout", type=Path, required=True, help="an RGBA still with fine detail")
    said = parser.parse_args()
    with Image.open(said.cutout) as image:
        cutout = np.asarray(image.convert("RGBA"))
    for path in said.videos:
        video, _ = read_frames(path, max_frames=100_000)
        frame = resize_cover(video[len(video) // 2][None, ..., :3], *SIZE)[0]
        print(path.name)
        for name, treatment in TREATMENTS.items():
            rgb = treatment(frame)
            ones = np.ones(SIZE, np.float32)
            found = softness([grey(rgb)], [ones], grain_level(grey(rgb), ones))
            print(f"  {name:28s} truth {truth(frame, cutout, treatment):.2f} measured {found:.2f}")


if __name__ == "__main__":
    main()
