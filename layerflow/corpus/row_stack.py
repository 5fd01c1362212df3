"""Corpus rows as layers of any set: which foregrounds a row has, and their frames and prompts.

Of a set with one foreground it is the row's own. Of a set with several they are the row's single
objects where all of them have a colour, back to front; more objects than the set has foregrounds
are joined from behind (``shared``), and a row without such objects has one foreground.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from layerflow.clip import (
    BACKGROUND,
    BLENDED,
    LAYERS,
    PROMPTED,
    U8,
    LayeredClip,
)
from layerflow.corpus.columns import SHADOWS, SingleObject, check_objects, decode_objects
from layerflow.corpus.table import decode_row
from layerflow.layer_set import EFFECTS, LayerSet, layer_set, matte_of
from layerflow.media.cells import Bounds, MediaError, decode_color
from layerflow.media.effects import effects_of
from layerflow.media.isolate import isolated
from layerflow.media.layer_stack import LayerStack, join, joined_prompt, shared

Row = Mapping[str, Any]


def row_prompts(row: Row, layers: LayerSet) -> dict[str, str]:
    """The prompts of a row's layers, by layer in order; nothing is decoded."""
    known = {layer: row[f"{layer}_prompt"] or "" for layer in PROMPTED}
    objects = single_objects(row, layers)
    if not objects:
        return known
    parts = shared(len(objects), len(layers.foregrounds))
    texts = [joined_prompt([objects[i]["prompt"] or "" for i in reversed(part)]) for part in parts]
    own = dict(zip(layers.foregrounds, texts, strict=False))
    return own | {layer: known[layer] for layer in (BACKGROUND, BLENDED)}


def row_cells(row: Row, layers: LayerSet) -> Iterator[bytes]:
    """The media that a row's layers are made of; empty for one that is missing."""
    yield from (row[layer] or b"" for layer in LAYERS)
    for item in single_objects(row, layers):
        yield from (item[name] or b"" for name in ("colour", "amodal_alpha"))
    if EFFECTS in layers.layers:
        yield str(row.get("shadow")).encode()
        yield row.get("plate") or b""


def single_objects(row: Row, layers: LayerSet) -> list[Mapping[str, Any]]:
    """The objects that make the foregrounds of a row; none where its own foreground does."""
    objects = list(row.get("objects") or ())
    whole = all(item is not None and item.get("colour") is not None for item in objects)
    return objects if whole and len(objects) > 1 and len(layers.foregrounds) > 1 else []


def stack_of_row(
    row: Row, clip: LayeredClip, layers: LayerSet, keep: Sequence[int] | None = None
) -> LayerStack:
    """The layers of a row, decoded in this process: for rows that are trusted, and in a child.

    clip: the row's clip, of the frames ``keep`` (None: all). Raises MediaError for damaged cells,
    for objects that do not make the scene, and with effects for a row that does not say who owns
    the shadow.
    """
    objects: list[SingleObject] = []
    if single_objects(row, layers):
        objects = decode_objects(row, keep)
        check_objects(objects, clip)
    plate = None
    if EFFECTS in layers.layers and row.get("shadow") == "background":
        plate = decode_color(row["plate"] or b"", Bounds.of(row), keep)
    return stack_of_parts(row, clip, layers, objects, plate)


def stack_of_parts(
    row: Row,
    clip: LayeredClip,
    layers: LayerSet,
    objects: Sequence[SingleObject] = (),
    plate: U8 | None = None,
) -> LayerStack:
    """The layers of a row whose media are at hand as frames, all of the same ones.

    objects: those that make its foregrounds (``single_objects``). plate: the background without
    what the foreground casts on it, for effects. MediaError with effects for a row that does not
    say who owns the shadow.
    """
    frames = {name: clip.layer(name) for name in LAYERS}
    if objects:
        pairs = [(item.colour, item.amodal) for item in objects if item.colour is not None]
        parts = shared(len(pairs), len(layers.foregrounds))
        for name, part in zip(layers.foregrounds, parts, strict=False):
            made = pairs[part[0]] if len(part) == 1 else join([pairs[i] for i in part])
            frames |= dict(zip((name, matte_of(name)), made, strict=True))
    if EFFECTS in layers.layers:
        frames |= _effects(row, clip, plate)
    about = clip.fps, clip.kind, clip.alpha_kind, clip.background_kind
    return LayerStack(layers, frames, row_prompts(row, layers), *about)


def _effects(row: Row, clip: LayeredClip, plate: U8 | None) -> dict[str, U8]:
    """What lies in the background as effects, and the background without it."""
    if row.get("shadow") not in SHADOWS:
        raise MediaError(f"clip {row['id']} does not say whether a shadow lies in its background")
    if plate is None:
        nothing = np.zeros_like(clip.background), np.zeros(clip.alpha.shape, np.uint8)
        colour, alpha, plate = *nothing, clip.background
    else:
        colour, alpha = effects_of(plate, clip.background)
    return {EFFECTS: colour, matte_of(EFFECTS): alpha, BACKGROUND: plate}


def read_stack(row: Row, layers: LayerSet) -> LayerStack:
    """``stack_of_row`` of a corpus row, decoded in a child process.

    Raises MediaError for cells that do not decode to what the row says, and for a child that
    crashes or hangs.
    """
    return stacks_of(row, [_read_stack(dict(row), layers.name)], layers)[0]


@isolated
def _read_stack(row: dict[str, Any], name: str) -> tuple[dict[str, U8], float, str]:
    return frames_of(stack_of_row(row, decode_row(row), layer_set(name)))


def frames_of(stack: LayerStack) -> tuple[dict[str, U8], float, str]:
    """A stack as an answer of a contained child: its frames, rate and kind; see ``stacks_of``."""
    return dict(stack.frames), float(stack.fps), stack.kind


def stacks_of(row: Row, answer: Any, layers: LayerSet) -> list[LayerStack]:
    """The stacks that a child made of a row, each as ``frames_of`` gives it.

    Raises MediaError when the answer is none.
    """
    prompts, count = row_prompts(row, layers), count_foregrounds(row, layers)
    try:
        made = [
            LayerStack(
                layers,
                dict(frames),
                prompts,
                fps=float(fps),
                kind=kind,
                alpha_kind=row["alpha_kind"],
                background_kind=row["background_kind"],
            )
            for frames, fps, kind in answer
        ]
    except (ValueError, TypeError, AttributeError) as error:
        raise MediaError(f"the decoder gave an answer that is none: {error}") from error
    if any(len(stack.foregrounds) != count for stack in made):
        raise MediaError("the decoder gave another number of foregrounds than the row has")
    return made


def count_foregrounds(row: Row, layers: LayerSet) -> int:
    """How many foregrounds of the set a row has."""
    return min(max(1, len(single_objects(row, layers))), len(layers.foregrounds))
