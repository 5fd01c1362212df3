"""One draw of a pasted clip, rendered: paths, appearance, shadow, warping, compositing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from layerflow.clip import LAYERS, U8
from layerflow.corpus.columns import visible_alphas
from layerflow.seeds import choose_frames, generator
from pipelines.inputs.sources import Background, Foreground
from pipelines.paste.appearance import Look, apply_curve, clipped, make_grain, match_look
from pipelines.paste.repeats import signature
from pipelines.paste.scores import Facts, exposure
from pipelines.paste.shadow import draw_shadow, shade
from pipelines.vision.composite import Sprite, compose, prefilter, reduced
from pipelines.vision.path import draw_path, mean_step

if TYPE_CHECKING:
    from manifests.paste import PasteOptions


@dataclass(frozen=True)
class Draw:
    """Sources and pictures of one attempt at one clip. flipped: the background was mirrored."""

    index: int
    attempt: int
    objects: tuple[Foreground, ...]
    background: Background
    flipped: bool = False


@dataclass(frozen=True)
class Scene:
    """A rendered draw.

    layers: LayeredClip's fields. plate: uint8 ``[T, H, W, 3]`` without the shadow, None without a
    shadow. visible, amodal: alphas uint8 ``[T, H, W]`` of the single objects, back to front, when
    there are several. notes: all draws and matches, plain values. scores, facts: for the rules.
    """

    layers: dict[str, U8]
    plate: U8 | None
    visible: Sequence[U8]
    amodal: Sequence[U8]
    notes: dict[str, Any]
    scores: dict[str, float]
    facts: Facts


@dataclass(frozen=True)
class _Built:
    sprite: Sprite
    look: Look
    added: float  # clipping that the colour match added
    frames: list[int]
    standing: bool


def mirrored(background: Background) -> Background:
    """Left and right swapped, the camera's motion too."""
    width = background.frames.shape[2]
    flip = np.array([[-1.0, 0, width - 1], [0, 1, 0], [0, 0, 1]])
    frames = np.ascontiguousarray(background.frames[:, :, ::-1])
    return replace(background, frames=frames, camera=flip @ background.camera @ flip)


def render_scene(draw: Draw, options: PasteOptions) -> Scene:
    """The compositor.

    Scores of the draw itself: least ``visible_fraction`` of any object in any frame (inside the
    picture, not behind others), ``path_speed`` (share of the width per frame, without the camera),
    ``motion`` (pixels a frame, with it), ``scale`` (clip pixels per source pixel),
    ``harmonise_strength``, and of the background ``camera_static`` and ``registration_residual``.
    """
    background = draw.background
    built = [_build(draw, place, options) for place in range(len(draw.objects))]
    frames, shadow = background.frames, None
    standing = [item.sprite for item in built if item.standing]
    if options.shadow == "background" and standing:
        rng = generator(options.seed, draw.index, "shadow", draw.attempt)
        shadow = draw_shadow(rng, options)
        frames = shade(frames, standing, shadow)
    grain, noise = max(item.look.grain for item in built), None
    if grain > 0:
        noise = make_grain(options.seed, draw.index, frames.shape[:3], grain)
    several = len(built) > 1
    own = [np.zeros(frames.shape[:3], np.uint8) for _ in built] if several else []
    sprites = [item.sprite for item in built]
    foreground, alpha, blended, visible = compose(
        sprites, frames, shutter=options.shutter / 360, grain=noise, own=own
    )
    layers = dict(zip(LAYERS, (foreground, alpha, frames, blended), strict=True))
    seen = visible_alphas(own) if several else []
    shares = [*visible, *map(_least_share, seen, own)]
    moving = any(item.moving for item in draw.objects) or background.static < 1
    return Scene(
        layers=layers,
        plate=background.frames if shadow is not None else None,
        visible=seen,
        amodal=own,
        notes=_notes(draw, built) | {
            "shadow": asdict(shadow) if shadow is not None else None,
            "signature": signature(alpha, blended),
        },
        scores=_scores(draw, built, min(shares), options),
        facts=Facts(moving, max(item.added for item in built), exposure(frames)),
    )  # fmt: skip


def _least_share(visible: U8, amodal: U8) -> float:
    """What the objects before it leave of one, in the worst frame."""
    seen, whole = (a.sum(axis=(1, 2), dtype=np.float64) for a in (visible, amodal))
    return float((seen / np.maximum(whole, 1.0)).min())


def _scores(
    draw: Draw, built: Sequence[_Built], visible: float, options: PasteOptions
) -> dict[str, float]:
    main = built[-1].sprite.path
    return {
        "visible_fraction": visible,
        "path_speed": main.way / options.size[1],
        "motion": mean_step(main),
        "scale": float(main.poses[:, 2].mean()) * draw.objects[-1].scale,
        "harmonise_strength": max(item.look.strength for item in built),
        "camera_static": draw.background.static,
        "registration_residual": draw.background.residual,
    }


def _notes(draw: Draw, built: Sequence[_Built]) -> dict[str, Any]:
    """What was drawn and measured: enough to say why a clip looks as it does."""
    objects = []
    for item, made in zip(draw.objects, built, strict=True):
        path, look = made.sprite.path, made.look
        curve = {k: v.tolist() for k, v in vars(look.curve).items()} if look.curve else None
        objects.append(
            {
                "uri": item.record["uri"],
                "placement": path.mode,
                "mirrored": path.mirrored,
                "frames": made.frames,
                "poses": path.poses.tolist(),
                "harmonise": look.strength,
                "curve": curve,
                "blur": look.sigma,
                "grain": look.grain,
            }
        )
    return {
        "index": draw.index,
        "attempt": draw.attempt,
        "background_mirrored": draw.flipped,
        "objects": objects,
    }


def notes_text(notes: Mapping[str, Any]) -> str:
    """Compact JSON with numbers of five significant digits."""

    def short(value: Any) -> Any:
        if isinstance(value, float):
            return float(f"{value:.5g}")
        if isinstance(value, Mapping):
            return {name: short(item) for name, item in value.items()}
        return [short(item) for item in value] if isinstance(value, list) else value

    return json.dumps(short(notes), separators=(",", ":"))


def _build(draw: Draw, place: int, options: PasteOptions) -> _Built:
    """One object on its path, with the look of its background."""
    item, background = draw.objects[place], draw.background
    rng = generator(options.seed, draw.index, f"path{place}", draw.attempt)
    path = draw_path(rng, item, options, background.camera)
    picked = [0]
    if item.moving:
        picked = choose_frames(len(item.rgba), item.fps, options.frames, options.fps, rng)
    middle = item.rgba[picked[len(picked) // 2]]
    scale = float(path.poses[:, 2].max())
    look = match_look(
        middle,
        scale,
        background.frames,
        _around(path.poses[len(path.poses) // 2], middle.shape, options.size),
        strength=rng.uniform(*options.harmonise),
        blur=options.match_blur,
        grain=options.match_grain,
    )
    frames, added = [], 0.0
    for index in picked:
        rgba = reduced(item.rgba[index], scale)
        if look.curve is not None:
            before = clipped(rgba)
            rgba = apply_curve(rgba, look.curve)
            added = max(added, clipped(rgba) - before)
        frames.append(prefilter(rgba, scale * middle.shape[1] / rgba.shape[1], look.sigma))
    standing = path.mode in ("ground", "source") and not item.cut & {"bottom"}
    numbers = [item.numbers[index] for index in picked] if item.numbers else picked
    return _Built(Sprite(frames, path, middle.shape[:2]), look, added, numbers, standing)


def _around(
    pose: np.ndarray, shape: Sequence[int], size: tuple[int, int]
) -> tuple[int, int, int, int]:
    """y0, y1, x0, x1: twice the object's box at a pose, inside the picture, not empty."""
    half = np.array([shape[1], shape[0]]) * pose[2]
    low, high = pose[:2] - half, pose[:2] + half
    x0, y0 = (int(np.clip(low[k], 0, size[1 - k] - 8)) for k in (0, 1))
    x1, y1 = (int(np.clip(high[k], (x0, y0)[k] + 8, size[1 - k])) for k in (0, 1))
    return y0, y1, x0, x1
