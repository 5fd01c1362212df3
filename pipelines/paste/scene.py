"""The steps that render a pasted clip: paths, appearance, shadow, compositing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from layerflow.clip import ALPHA, BACKGROUND, BLENDED, FOREGROUND, U8
from layerflow.corpus.columns import visible_alphas
from layerflow.media.frame_rate import choose_frames
from pipelines.inputs.sources import Foreground
from pipelines.paste.appearance import appearance_change, apply_curve, clipped, make_grain
from pipelines.paste.sample import PlacedObject, Sample
from pipelines.paste.shadow import draw_shadow, shade
from pipelines.vision.composite import Sprite, compose, prefilter, reduced
from pipelines.vision.path import draw_path


def place_objects(sample: Sample) -> None:
    """Draw a path for each object, and which of its frames are shown."""
    sample.placed = [_placed(sample, number, item) for number, item in enumerate(sample.objects)]


def _placed(sample: Sample, number: int, item: Foreground) -> PlacedObject:
    options, rng = sample.options, sample.generator(f"path{number}")
    path = draw_path(rng, item, options, sample.background.camera)
    picked = [0]
    if item.moving:
        picked = choose_frames(len(item.rgba), item.fps, options.frames, options.fps, rng)
    return PlacedObject(item, rng, path, picked)


def match_appearance(sample: Sample) -> None:
    """Match colour, blur and grain of each object to the background around it."""
    for placed in sample.placed:
        _match(placed, sample)


def _match(placed: PlacedObject, sample: Sample) -> None:
    options, item, poses = sample.options, placed.item, placed.path.poses
    middle = item.rgba[placed.picked[len(placed.picked) // 2]]
    scale = float(poses[:, 2].max())
    change = appearance_change(
        middle,
        scale,
        sample.background.frames,
        _around(poses[len(poses) // 2], middle.shape, options.size),
        strength=placed.rng.uniform(*options.harmonise),
        blur=options.match_blur,
        grain=options.match_grain,
    )
    frames = []
    for index in placed.picked:
        rgba = reduced(item.rgba[index], scale)
        if change.curve is not None:
            before = clipped(rgba)
            rgba = apply_curve(rgba, change.curve)
            placed.clipped = max(placed.clipped, clipped(rgba) - before)
        frames.append(prefilter(rgba, scale * middle.shape[1] / rgba.shape[1], change.sigma))
    placed.change, placed.sprite = change, Sprite(frames, placed.path, middle.shape[:2])


def _around(
    pose: np.ndarray, shape: Sequence[int], size: tuple[int, int]
) -> tuple[int, int, int, int]:
    """y0, y1, x0, x1: twice the object's box at a pose, inside the picture, not empty."""
    half = np.array([shape[1], shape[0]]) * pose[2]
    low, high = pose[:2] - half, pose[:2] + half
    x0, y0 = (int(np.clip(low[k], 0, size[1 - k] - 8)) for k in (0, 1))
    x1, y1 = (int(np.clip(high[k], (x0, y0)[k] + 8, size[1 - k])) for k in (0, 1))
    return y0, y1, x0, x1


def cast_shadow(sample: Sample) -> None:
    """Shade the background below standing objects, with ``shadow: background``."""
    sample.shaded = sample.background.frames
    standing = [placed.sprite for placed in sample.placed if placed.standing]
    if sample.options.shadow == "background" and standing:
        sample.plate = sample.background.frames
        sample.shadow = draw_shadow(sample.generator("shadow"), sample.options)
        sample.shaded = shade(sample.plate, standing, sample.shadow)


def compose_layers(sample: Sample) -> None:
    """Warp the objects over the background, with motion blur and grain."""
    frames, options, noise = sample.shaded, sample.options, None
    grain = max(placed.change.grain for placed in sample.placed)
    if grain > 0:
        noise = make_grain(options.seed, sample.index, frames.shape[:3], grain)
    sprites = [placed.sprite for placed in sample.placed]
    own = [np.zeros(frames.shape[:3], np.uint8) for _ in sprites] if len(sprites) > 1 else []
    colours = [np.empty_like(frames) for _ in own] if options.object_colours else []
    foreground, alpha, blended, visible = compose(
        sprites, frames, shutter=options.shutter / 360, grain=noise, own=own, colours=colours
    )
    sample.layers = {FOREGROUND: foreground, ALPHA: alpha, BACKGROUND: frames, BLENDED: blended}
    sample.amodal, sample.visible = own, visible_alphas(own) if own else []
    sample.colours = colours or [None] * len(own)
    sample.least_visible = min([*visible, *map(_least_share, sample.visible, own)])


def _least_share(visible: U8, amodal: U8) -> float:
    """What the objects before it leave of one, in the worst frame."""
    seen, whole = (a.sum(axis=(1, 2), dtype=np.float64) for a in (visible, amodal))
    return float((seen / np.maximum(whole, 1.0)).min())
