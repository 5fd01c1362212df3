"""Measure matting and everything behind it on clips whose mattes are known.

    python bench/matting.py SOURCE... [--matting NAME[=WEIGHTS]]... [--limit N] [--save DIR]
                            [--mattes-only]

A SOURCE is a folder with ``NAME.mp4`` (or another video) beside ``NAME.mask.mkv``, or a corpus of
pasted clips. Per clip and backend: IoU at one half, mean over frames; MAD, 1000 x mean |a - a*|;
dtSSD, 100 x sqrt(mean((da - da*)^2)) over neighbouring frames; F, the F-measure of the outline at
one half within 0.8 % of the diagonal, mean over frames; CPU seconds a frame of the matting alone;
the recomposition error before encoding and, where the true background is known, the PSNR of
the clean plate inside the hole (and of what was seen of it). ``chroma`` gets the subjects before a
green screen, ``alpha`` the true mattes. The last columns say which of the gates ``coarse``,
``standard`` and ``strict`` take the clip. ``--mattes-only`` leaves out what follows the matting.
Without ``--matting`` every backend that runs here without further files is tried: ``auto`` takes
the networks of ``layerflow weights list``, and each of these is tried alone as ``onnx``. A table of
the means of all backends ends the output.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path

import cv2
import numpy as np

from layerflow.clip import composite
from layerflow.corpus.table import Corpus
from layerflow.media.decode import Decoder
from layerflow.media.video import read_frames
from layerflow.weights import installed
from manifests.mine import MineOptions
from pipelines.engine.steps import run_steps
from pipelines.gates import judge
from pipelines.matting import ALPHA, BACKENDS, KEY_COLOUR, MattingBackend, make_backend
from pipelines.mine import filters, layers
from pipelines.mine.job import STEPS
from pipelines.mine.plan import VideoSpan
from pipelines.mine.survey import Candidate, Findings
from pipelines.mine.window import Video, Window
from pipelines.vision.numerics import dilate

GATES = ("coarse", "standard", "strict")
SCREEN = (30, 190, 60)  # RGB of the screen that ``chroma`` is tried on


@dataclass(frozen=True)
class Known:
    """A clip with its truth: frames uint8 [T, H, W, 3], alpha float32 [T, H, W]."""

    name: str
    frames: np.ndarray
    alpha: np.ndarray
    background: np.ndarray | None = None
    foreground: np.ndarray | None = None


@dataclass(frozen=True)
class Result:
    """The figures of one clip; psnr in dB, NaN where no true background is known."""

    iou: float
    mad: float
    dtssd: float
    boundary: float
    seconds: float
    recomposition: float = float("nan")
    psnr: float = float("nan")
    psnr_seen: float = float("nan")
    taken: tuple[str, ...] = ()  # by these gates


def known_clips(source: Path, limit: int | None) -> Iterator[Known]:
    if (source / "state.json").is_file():
        corpus = Corpus.open(source)
        for index in range(min(limit or len(corpus), len(corpus))):
            clip = corpus.clip(index)
            alpha = clip.alpha.astype(np.float32) / 255
            yield Known(corpus.ids()[index], clip.blended, alpha, clip.background, clip.foreground)
        return
    for mask_path in sorted(source.glob("*.mask.mkv"))[:limit]:
        name = mask_path.name.removesuffix(".mask.mkv")
        video = next(p for p in sorted(source.glob(f"{name}.*")) if p != mask_path)
        mask = read_frames(mask_path)[0]
        yield Known(name, read_frames(video)[0][..., :3], mask[..., 0].astype(np.float32) / 255)


def levels(alpha: np.ndarray) -> np.ndarray:
    return np.rint(alpha * 255).astype(np.uint8)


def suited(clip: Known, backend: MattingBackend) -> Known | None:
    """The clip as a backend needs it: before a screen for a key colour; None without a subject."""
    if KEY_COLOUR not in backend.needs:
        return clip
    if clip.foreground is None:
        return None
    screen = np.broadcast_to(np.uint8(SCREEN), clip.frames.shape)
    frames = composite(clip.foreground, levels(clip.alpha), screen)
    return replace(clip, frames=frames, background=screen)


def measure(clip: Known, backend: MattingBackend, mattes_only: bool) -> tuple[Result, np.ndarray]:
    """The figures, and the matte float32 [T, H, W]."""
    said = MineOptions(inputs=[clip.name], out="", size=clip.frames.shape[1:3], fps=8.0)
    video = Video(said, "", VideoSpan("", "", clip.name), Findings(), Path(), Decoder())
    video.backend = backend
    window = Window(video, Candidate((0.0,)))
    window.frames = clip.frames
    window.given_matte = levels(clip.alpha) if ALPHA in backend.needs else None
    start = time.process_time()
    layers.matte_frames(window)
    seconds = (time.process_time() - start) / len(clip.frames)
    if mattes_only:
        alpha = window.alpha.astype(np.float32) / 255
        return Result(*of_matte(alpha, clip.alpha), seconds), alpha
    filters.score_frames(window)
    first, end = map(STEPS.index, (layers.make_plate, layers.judge_layers))
    run_steps(STEPS[first:end], window)
    scores, plate = window.scores, window.plate
    alpha = window.alpha.astype(np.float32) / 255
    result = Result(
        *of_matte(alpha, clip.alpha),
        seconds,
        recomposition=scores["recomposition_error"],
        psnr=_psnr(plate.background, clip.background, plate.hole),
        psnr_seen=_psnr(plate.background, clip.background, plate.hole & plate.seen),
        taken=tuple(gate for gate in GATES if judge(scores, gate) is None),
    )
    return result, alpha


def of_matte(alpha: np.ndarray, truth: np.ndarray) -> tuple[float, float, float, float]:
    """IoU, MAD, dtSSD and boundary F of float32 [T, H, W] mattes."""
    a, b = alpha >= 0.5, truth >= 0.5
    both, either = (a & b).sum((1, 2)), (a | b).sum((1, 2))
    change = np.diff(alpha, axis=0) - np.diff(truth, axis=0)
    return (
        float(np.where(either > 0, both / np.maximum(either, 1), 1).mean()),
        1000 * float(np.abs(alpha - truth).mean()),
        100 * float(np.sqrt((change**2).sum() / max(1, truth.size))),
        float(np.mean([boundary_f(*pair) for pair in zip(a, b, strict=True)])),
    )


def boundary_f(mask: np.ndarray, truth: np.ndarray) -> float:
    """F-measure of two outlines, bool [H, W]; a pixel counts within 0.8 % of the diagonal."""
    outlines = [
        m ^ cv2.erode(m.astype(np.uint8), np.ones((3, 3))).astype(bool) for m in (mask, truth)
    ]
    if not all(outline.any() for outline in outlines):
        return float(not any(outline.any() for outline in outlines))
    reach = max(1, round(0.008 * float(np.hypot(*mask.shape))))
    ours, true = outlines
    precision = float(dilate(true, reach)[ours].mean())
    recall = float(dilate(ours, reach)[true].mean())
    return 2 * precision * recall / max(1e-9, precision + recall)


def _psnr(made: np.ndarray, true: np.ndarray | None, where: np.ndarray) -> float:
    if true is None or not where.any():
        return float("nan")
    error = (made[where].astype(np.float64) - true[where]) ** 2
    return float(10 * np.log10(255**2 / max(float(error.mean()), 1e-9)))


def save_sheet(path: Path, clip: Known, alpha: np.ndarray) -> None:
    """Three moments of a clip: the frame, the true matte, ours, ours on green; a PNG."""
    from PIL import Image

    rows = []
    for t in (0, len(clip.frames) // 2, len(clip.frames) - 1):
        a = alpha[t][..., None]
        keyed = a * clip.frames[t] + (1 - a) * np.array([0, 200, 80])
        grey = [np.repeat(m[t][..., None] * 255, 3, axis=-1) for m in (clip.alpha, alpha)]
        rows.append(np.concatenate([clip.frames[t], *grey, keyed], axis=1))
    Image.fromarray(np.concatenate(rows).astype(np.uint8)[::2, ::2]).save(path)


COLUMNS = ("IoU", "MAD", "dtSSD", "F", "s/frame", "recomp.", "plate dB", "seen dB")
DIGITS = (3, 1, 1, 3, 2, 2, 1, 1)


def line(name: str, values: list[float], rest: str = "") -> str:
    numbers = " ".join(
        f"{v:8.{digits}f}" if np.isfinite(v) else f"{'-':>8}"
        for v, digits in zip(values, DIGITS, strict=True)
    )
    return f"{name:24.24} {numbers}  {rest}"


def summary(title: str, results: list[Result]) -> str:
    if not results:
        return f"{title:24} no clip"
    table = [[getattr(r, field.name) for field in fields(r)][: len(COLUMNS)] for r in results]
    columns = [[v for v in column if np.isfinite(v)] for column in zip(*table, strict=True)]
    means = [float(np.mean(c)) if c else float("nan") for c in columns]
    return line(title, means, f"{len(results)} clips, least IoU {min(r.iou for r in results):.3f}")


def runs_here() -> list[str]:
    """Every backend that needs no file of the user's, and each network of the weights folder."""
    networks = [
        f"{backend}={path}"
        for entry, path in installed("auto")
        for backend in entry.backends
        if backend.startswith("onnx:")
    ]
    return ["motion", "auto", *networks]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sources", nargs="+", type=Path)
    parser.add_argument(
        "--matting", action="append", help=f"one of {', '.join(BACKENDS)}[=WEIGHTS]"
    )
    parser.add_argument("--limit", type=int, help="clips of each source")
    parser.add_argument("--save", type=Path, help="write a contact sheet per clip here")
    parser.add_argument("--mattes-only", action="store_true", help="no layers, plates and gates")
    options = parser.parse_args()
    table = []
    for chosen in options.matting or runs_here():
        name, _, weights = chosen.partition("=")
        backend = make_backend(name, weights=weights or None)
        title = name + (f" {Path(weights).stem}" if weights else "")
        print(f"\n{backend.name} {backend.version} ({backend.licence})")
        print(f"{'clip':24} " + " ".join(f"{name:>8}" for name in COLUMNS))
        for source in options.sources:
            results = []
            for found in known_clips(source, options.limit):
                clip = suited(found, backend)
                if clip is None:
                    continue
                result, alpha = measure(clip, backend, options.mattes_only)
                results.append(result)
                values = [getattr(result, f.name) for f in fields(result)][: len(COLUMNS)]
                said = "" if options.mattes_only else " ".join(result.taken) or "rejected"
                print(line(clip.name, values, said), flush=True)
                if options.save is not None:
                    options.save.mkdir(parents=True, exist_ok=True)
                    save_sheet(
                        options.save / f"{title.replace(' ', '-')}-{clip.name}.png", clip, alpha
                    )
            table.append(summary(f"{title}: {source.name}", results))
            print(summary(f"{source.name}, all", results))
            for gate in () if options.mattes_only else GATES:
                print(summary(f"{source.name}, {gate}", [r for r in results if gate in r.taken]))
    print("\n" + "\n".join([f"{'means':24} " + " ".join(f"{n:>8}" for n in COLUMNS), *table]))


if __name__ == "__main__":
    main()
