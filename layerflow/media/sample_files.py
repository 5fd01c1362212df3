"""The files of one sample: written by ``layerflow sample``, read to show and to score it.

A folder holds the clip with one foreground, all of them joined. What a model with several
foregrounds or effects made of it lies in ``objects/``: each layer over the background with its
matte, and the background without the effects.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from layerflow.clip import ALPHA, BACKGROUND, BLENDED, U8
from layerflow.files import write_bytes
from layerflow.layer_set import EFFECTS, MAX_FOREGROUNDS, layer_set, matte_of
from layerflow.media.cells import (
    encode_alpha,
    encode_png,
    encode_preview,
    write_prores4444,
    write_vp9_alpha,
)
from layerflow.media.contact_sheet import save_sheet
from layerflow.media.layer_stack import LayerStack, sampled_stack

OBJECTS = "objects"
OVER = layer_set(f"rgbax{MAX_FOREGROUNDS}+{EFFECTS}").over


def write_layers(
    folder: Path,
    layers: Mapping[str, U8 | None],
    prompts: Mapping[str, str],
    fps: float,
    about: Mapping[str, Any],
    *,
    png: bool = False,
) -> LayerStack:
    """Write one sample's files; returns it as a stack.

    layers: by name, uint8: foregrounds ``[T, H, W, 3 or 4]`` (of straight RGBA the colour counts),
    mattes ``[T, H, W]`` or None, background and blended ``[T, H, W, 3]``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stack = sampled_stack(layers, prompts, fps)
    clip = stack.joined()
    if not stack.layers.mattes:
        (folder / "foreground.mp4").write_bytes(encode_preview(clip.foreground, fps, crf=12))
    else:
        rgba = _rgba(clip.foreground, clip.alpha)
        write_prores4444(folder / "foreground.mov", rgba, fps)
        write_vp9_alpha(folder / "foreground.webm", rgba, fps)
        (folder / "alpha.mkv").write_bytes(encode_alpha(clip.alpha, fps))
    for name in (BACKGROUND, BLENDED):
        (folder / f"{name}.mp4").write_bytes(encode_preview(clip.layer(name), fps, crf=12))
    if len(stack.over) > 1:
        _write_objects(folder / OBJECTS, stack)
    if png:
        for name, frames in layers.items():
            for t, frame in enumerate(frames if frames is not None else ()):
                place = folder / "frames" / name / f"{t:05d}.png"
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(encode_png(np.ascontiguousarray(frame)))
    (folder / "sample.json").write_text(json.dumps(about, indent=2, sort_keys=True) + "\n")
    save_sheet(folder / "contact.png", [stack])
    return stack


def _write_objects(folder: Path, stack: LayerStack) -> None:
    folder.mkdir(exist_ok=True)
    for name in stack.over:
        colour, alpha = stack.layer(name), stack.layer(matte_of(name))
        write_prores4444(folder / f"{name}.mov", _rgba(colour, alpha), stack.fps)
        write_bytes(folder / f"{matte_of(name)}.mkv", encode_alpha(alpha, stack.fps))
    if EFFECTS in stack.over:
        media = encode_preview(stack.layer(BACKGROUND), stack.fps, crf=12)
        write_bytes(folder / f"{BACKGROUND}.mp4", media)


def _rgba(colour: U8, alpha: U8) -> U8:
    return np.concatenate([colour, alpha[..., None]], axis=-1)


def read_objects(folder: Path, read: Callable[[Path], U8]) -> dict[str, U8]:
    """The layers in ``objects/`` of a sample, by name; none where it has none.

    read: a video file -> uint8 ``[T, H, W, C]``, C 4 of colour with alpha; alpha ``[T, H, W]``.
    """
    found: dict[str, U8] = {}
    for name in OVER:
        if not (folder / OBJECTS / f"{name}.mov").is_file():
            continue
        found[name] = read(folder / OBJECTS / f"{name}.mov")[..., :3]
        matte = folder / OBJECTS / f"{matte_of(name)}.mkv"
        if matte.is_file():
            alpha = read(matte)
            found[matte_of(name)] = alpha if alpha.ndim == 3 else alpha[..., 0]
    background = folder / OBJECTS / f"{BACKGROUND}.mp4"
    if EFFECTS in found and background.is_file():
        found[BACKGROUND] = read(background)
    return found


def with_objects(layers: Mapping[str, U8], objects: Mapping[str, U8], fps: float) -> LayerStack:
    """The layers of a sample with what ``read_objects`` found in place of the joined foreground.

    Colour files of odd sizes are one pixel larger; all are cut to the alpha's size. ValueError for
    layers that do not fit together.
    """
    height, width = layers[ALPHA].shape[1:]
    every = {**layers, **objects}
    cut = {name: np.ascontiguousarray(f[:, :height, :width]) for name, f in every.items()}
    return sampled_stack(cut, {}, fps)
