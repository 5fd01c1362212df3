"""Measure the matting backends on annotated video: IoU, MAD, dtSSD and seconds a frame.

    python bench/matting.py FOLDER... [--matting NAME] [--weights PATH] [--save DIR]

Every FOLDER holds ``NAME.mp4`` (or another video) beside ``NAME.mask.mkv``, one grey channel. IoU
is at one half, the mean over frames. MAD is 1000 x mean |a - a*|. dtSSD is 100 x sqrt(mean((da -
da*)^2)) over differences of neighbouring frames, the first frame counted as 0.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from layerflow.video import read_frames
from pipelines.matting import MATTERS, make_matter


def measure(alpha: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """IoU, MAD and dtSSD of two float [T, H, W] mattes."""
    a, b = alpha >= 0.5, truth >= 0.5
    both, either = (a & b).sum((1, 2)), (a | b).sum((1, 2))
    change = np.diff(alpha, axis=0) - np.diff(truth, axis=0)
    return {
        "IoU": float(np.where(either > 0, both / np.maximum(either, 1), 1).mean()),
        "MAD": 1000 * float(np.abs(alpha - truth).mean()),
        "dtSSD": 100 * float(np.sqrt((change**2).sum() / max(1, alpha.size))),
    }


def annotated(folder: Path) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Name, frames uint8 [T, H, W, 3] and true alpha float32 [T, H, W] of each clip of a folder."""
    for mask_path in sorted(folder.glob("*.mask.mkv")):
        name = mask_path.name.removesuffix(".mask.mkv")
        video = next(p for p in sorted(folder.glob(f"{name}.*")) if p != mask_path)
        mask = read_frames(mask_path)[0]
        yield name, read_frames(video)[0][..., :3], mask[..., 0].astype(np.float32) / 255


def save_sheet(path: Path, frames: np.ndarray, truth: np.ndarray, alpha: np.ndarray) -> None:
    """Three moments of a clip: the frame, the true matte, ours, ours on green; a PNG."""
    from PIL import Image

    rows = []
    for t in (0, len(frames) // 2, len(frames) - 1):
        a = alpha[t][..., None]
        keyed = a * frames[t] + (1 - a) * np.array([0, 200, 80])
        grey = [np.repeat(m[t][..., None] * 255, 3, axis=-1) for m in (truth, alpha)]
        rows.append(np.concatenate([frames[t], *grey, keyed], axis=1))
    sheet = np.concatenate(rows).astype(np.uint8)
    Image.fromarray(sheet[::2, ::2]).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--matting", choices=MATTERS, default="motion")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--save", type=Path, help="write a contact sheet per clip here")
    options = parser.parse_args()
    matter = make_matter(options.matting, weights=options.weights)
    print(f"{matter.name} {matter.version} ({matter.licence})")
    print(f"{'clip':24} {'IoU':>6} {'MAD':>6} {'dtSSD':>6} {'cpu s/f':>8}  confidence")
    found = []
    for folder in options.folders:
        for name, frames, truth in annotated(folder):
            start = time.process_time()
            matte = matter(frames)
            seconds = (time.process_time() - start) / len(frames)
            score = measure(matte.alpha, truth)
            found.append([*score.values(), seconds])
            confidence = ", ".join(f"{k} {v:.2f}" for k, v in matte.confidence.items())
            numbers = f"{score['IoU']:6.3f} {score['MAD']:6.1f} {score['dtSSD']:6.1f}"
            print(f"{name:24} {numbers} {seconds:8.2f}  {confidence}", flush=True)
            if options.save is not None:
                options.save.mkdir(parents=True, exist_ok=True)
                save_sheet(options.save / f"{name}.png", frames, truth, matte.alpha)
    if not found:
        raise SystemExit("no NAME.mask.mkv with its video found")
    mean = np.mean(found, axis=0)
    print(f"{'mean':24} {mean[0]:6.3f} {mean[1]:6.1f} {mean[2]:6.1f} {mean[3]:8.2f}")


if __name__ == "__main__":
    main()
