"""Procedural test media: source videos with known mattes, RGBA cut-outs, backgrounds.

What the demo mines, pastes and packs, and what tests compare with. Every file is a function of
the seed, the index and the options, so a set can be extended and held-out sets are made with
another seed. The pictures are described in ``pipelines.procedural.art``.

Video families, by name:

- ``moving``: one deforming patterned blob on an eased path over a textured background, net speed
  2-5 pixels a frame at 240 wide (in proportion elsewhere); the camera pans on every other video.
- ``still``: neither the subject nor the camera moves: no motion matting can find it.
- ``cut``: two ``moving`` halves with a hard cut between them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from layerflow.clip import U8
from layerflow.media.cells import encode_alpha, encode_color, encode_png
from layerflow.seeds import numbered
from pipelines.procedural import art
from pipelines.procedural.art import F32, Generator

FAMILIES = ("moving", "still", "cut")
SPEED = (2.0, 5.0)  # pixels a frame, for a picture 240 pixels wide
PAN = (0.4, 1.2)
BACKGROUND_WORD = "soft colours"


def make_videos(
    out: Path,
    *,
    count: int,
    seed: int,
    height: int = 160,
    width: int = 240,
    frames: int = 16,
    fps: float = 8.0,
    families: Sequence[str] = ("moving",),
    truth: Path | None = None,
    look: str = "varied",
) -> list[Path]:
    """Write ``count`` H.264 videos ``out/FAMILY-NNN.mp4`` with prompt sidecars ``.json``.

    Families are taken in turn. The true mattes go to ``truth/FAMILY-NNN.mkv`` (lossless gray
    FFV1; default: the folder ``<out>-truth`` beside ``out``, where a job that reads ``out`` does
    not see them). Returns the videos in order. Raises ValueError for options that cannot be drawn.
    """
    _check(height, width, frames, families)
    truth = truth if truth is not None else out.with_name(out.name + "-truth")
    paths = []
    for index in range(count):
        family = families[index % len(families)]
        rng = numbered(seed, index, 1)
        blended, alpha, prompts = draw_video(
            rng, family, height, width, frames, pan=index % 2 == 1 and family != "still", look=look
        )
        paths.append(_write(out / f"{family}-{index:03d}.mp4", encode_color(blended, fps), prompts))
        _write(truth / f"{paths[-1].stem}.mkv", encode_alpha(alpha, fps))
    return paths


def make_stills(
    out: Path,
    *,
    count: int,
    seed: int,
    size: int = 96,
    look: str = "varied",
    softness: float | None = None,
) -> list[Path]:
    """Write ``count`` RGBA cut-outs ``out/LOOK-NNNN.png``, ``size`` pixels square, with sidecars.

    ``softness`` is the width of the alpha edge as a share of the radius (None: the look's own).
    The colour is straight and defined where alpha is 0 too.
    """
    paths = []
    for index in range(count):
        rng = numbered(seed, index, 2)
        subject = art.draw_subject(rng, look, softness=softness)
        colour, alpha = art.cutout(subject, size, angle=float(rng.uniform(0, 2 * np.pi)))
        rgba = np.dstack([art.to_u8(colour), art.to_u8(alpha)])
        path = out / f"{look}-{index:04d}.png"
        paths.append(_write(path, encode_png(rgba), prompts_of(subject.name)))
    return paths


def make_backgrounds(
    out: Path,
    *,
    count: int,
    seed: int,
    height: int = 96,
    width: int = 96,
    frames: int = 1,
    fps: float = 8.0,
    chroma: float = 0.5,
    detail: float = 0.0,
) -> list[Path]:
    """Write ``count`` backgrounds: stills ``out/back-NNNN.png``, or, for ``frames`` > 1, videos.

    Videos are ``.mp4``; every other one pans slowly. ``chroma`` and ``detail`` as in
    ``pipelines.procedural.art.background``.
    """
    paths = []
    for index in range(count):
        rng = numbered(seed, index, 3)
        if frames == 1:
            picture = art.to_u8(art.background(rng, height, width, chroma=chroma, detail=detail))
            path, data = out / f"back-{index:04d}.png", encode_png(picture)
        else:
            pan = _pan(rng, width) if index % 2 else (0.0, 0.0)
            video = _panned(rng, height, width, frames, pan, chroma=chroma, detail=detail)
            path, data = out / f"back-{index:04d}.mp4", encode_color(art.to_u8(video), fps)
        paths.append(_write(path, data, {"background": BACKGROUND_WORD}))
    return paths


def make_layered_stills(
    out: Path,
    *,
    count: int,
    seed: int,
    size: int = 64,
    look: str = "warm",
    softness: float | None = None,
    chroma: float = 0.5,
) -> list[Path]:
    """Write ``count`` layered stills: RGBA ``out/foreground/NAME.png`` over ``out/background/``.

    Both files of a pair have one name. The subject stands near the middle, as large
    as the subjects of ``make_videos``. Returns the foregrounds.
    """
    paths = []
    for index in range(count):
        rng = numbered(seed, index, 4)
        subject = art.draw_subject(rng, look, softness=softness)
        centre = tuple(size * (0.5 + rng.uniform(-0.17, 0.17, 2)))
        radius = size * rng.uniform(0.42, 0.7) / 2 / subject.reach
        colour, alpha = art.render_subject(
            subject,
            size,
            size,
            centre=centre,
            radius=radius,
            angle=float(rng.uniform(0, 2 * np.pi)),
        )
        name = f"{look}-{index:04d}.png"
        picture = art.to_u8(art.background(rng, size, size, chroma=chroma))
        rgba = np.dstack([art.to_u8(colour), art.to_u8(alpha)])
        _write(out / "background" / name, encode_png(picture))
        path = out / "foreground" / name
        paths.append(_write(path, encode_png(rgba), prompts_of(subject.name)))
    return paths


def prompts_of(name: str) -> dict[str, str]:
    """Prompts of the three captioned layers for a subject's name, such as ``red checks``."""
    return {
        "foreground": name,
        "background": BACKGROUND_WORD,
        "blended": f"{name} on {BACKGROUND_WORD}",
    }


def draw_video(
    rng: Generator,
    family: str,
    height: int,
    width: int,
    frames: int,
    *,
    pan: bool = False,
    look: str = "varied",
) -> tuple[U8, U8, dict[str, str]]:
    """One video: blended uint8 ``[T, H, W, 3]``, true alpha uint8 ``[T, H, W]``, prompts."""
    _check(height, width, frames, (family,))
    if family == "cut":
        first = draw_video(rng, "moving", height, width, frames // 2, pan=pan, look=look)
        second = draw_video(rng, "moving", height, width, frames - frames // 2, pan=pan, look=look)
        joined = [np.concatenate(pair) for pair in zip(first[:2], second[:2], strict=True)]
        return joined[0], joined[1], second[2]
    subject = art.draw_subject(rng, look)
    video = _panned(
        rng, height, width, frames, _pan(rng, width) if pan else (0.0, 0.0), chroma=0.5, detail=1.0
    )
    radius = min(height, width) * rng.uniform(0.38, 0.5) / 2
    speed = rng.uniform(*SPEED) * width / 240 if family == "moving" else 0.0
    path = eased_path(rng, frames, height, width, speed, radius * subject.reach)
    phase, spin = rng.uniform(0, 2 * np.pi), rng.uniform(-0.03, 0.03)
    alphas, pictures = [], []
    for t, (y, x) in enumerate(path):
        moving = family == "moving"
        colour, alpha = art.render_subject(
            subject,
            height,
            width,
            centre=(float(y), float(x)),
            radius=radius,
            angle=phase + spin * t * moving,
            breath=float(np.sin(phase + 0.35 * t)) * moving,
        )
        alphas.append(alpha)
        pictures.append(alpha[..., None] * colour + (1 - alpha[..., None]) * video[t])
    return art.to_u8(np.stack(pictures)), art.to_u8(np.stack(alphas)), prompts_of(subject.name)


def eased_path(
    rng: Generator, frames: int, height: int, width: int, speed: float, margin: float
) -> F32:
    """Centres ``[T, 2]`` (y, x): eased start and stop, a bend, mean speed ``speed`` px/frame.

    The path keeps ``margin`` pixels from the picture's border where the picture is large enough;
    a longer way than the picture has room for is shortened.
    """
    half_y = max(0.0, height / 2 - margin)
    half_x = max(0.0, width / 2 - margin)
    direction = rng.uniform(0, 2 * np.pi)
    reach = np.array([np.sin(direction) * half_y, np.cos(direction) * half_x])
    room = 2 * float(np.hypot(*reach))
    way = min(room, speed * (frames - 1))
    step = reach / max(1e-6, float(np.hypot(*reach))) * way
    s = np.linspace(0, 1, frames) if frames > 1 else np.zeros(1)
    eased = 0.7 * s + 0.3 * (3 * s**2 - 2 * s**3) - 0.5
    bend = rng.uniform(-0.15, 0.15) * way * np.sin(np.pi * s)
    side = np.array([-step[1], step[0]]) / max(1e-6, float(np.hypot(*step)))
    path = np.array([height / 2, width / 2]) + eased[:, None] * step + bend[:, None] * side
    return path.astype(np.float32)


def _pan(rng: Generator, width: int) -> tuple[float, float]:
    """Pixels a frame (y, x), mostly sideways."""
    speed = rng.uniform(*PAN) * width / 240 * (1 if rng.random() < 0.5 else -1)
    return float(0.3 * speed * rng.uniform(-1, 1)), float(speed)


def _panned(
    rng: Generator,
    height: int,
    width: int,
    frames: int,
    pan: tuple[float, float],
    *,
    chroma: float,
    detail: float,
) -> F32:
    """Frames ``[T, H, W, 3]`` of a window that slides over one large background, sub-pixel."""
    way = np.abs(pan) * (frames - 1)
    extra = [int(np.ceil(w)) + 2 for w in way]
    canvas = art.background(rng, height + extra[0], width + extra[1], chroma=chroma, detail=detail)
    start = [w + 1 if p < 0 else 1.0 for w, p in zip(way, pan, strict=True)]
    video = np.empty((frames, height, width, 3), np.float32)
    for t in range(frames):
        shift = np.array(
            [[1, 0, -(start[1] + pan[1] * t)], [0, 1, -(start[0] + pan[0] * t)]], np.float32
        )
        video[t] = cv2.warpAffine(canvas, shift, (width, height), flags=cv2.INTER_LINEAR)
    return video


def _check(height: int, width: int, frames: int, families: Sequence[str]) -> None:
    unknown = [family for family in families if family not in FAMILIES]
    if unknown or not families:
        raise ValueError(f"families must be some of {FAMILIES}, not {list(families)}")
    if min(height, width) < 16 or frames < (2 if "cut" in families else 1):
        raise ValueError(f"cannot draw {frames} frames of {height}x{width}: too small")


def _write(path: Path, data: bytes, prompts: dict[str, str] | None = None) -> Path:
    """A file and, with prompts, its sidecar."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    if prompts is not None:
        text = json.dumps(prompts, indent=1) + "\n"
        path.with_suffix(".json").write_text(text, encoding="utf-8")
    return path
