"""Media cells of rows decoded in a child process: the way for every corpus that a stranger made.

What comes back are plain pictures of the size and number that the row says.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from layerflow.clip import LAYERS, PROMPTED, U8, LayeredClip
from layerflow.corpus.row_check import check_unread
from layerflow.corpus.table import decode_row
from layerflow.media.cells import Bounds, MediaError, decode_layer
from layerflow.media.isolate import isolated
from layerflow.media.sandbox import Buffer


def read_clip(row: Mapping[str, Any]) -> LayeredClip:
    """The clip of a corpus row, decoded in a child process.

    Raises MediaError for cells that do not decode to what the row says, and for a child that
    crashes or hangs.
    """
    layers, fps, kind = _read_clip(dict(row))
    try:
        return _clip(row, layers, {"fps": fps, "kind": kind})
    except ValueError as error:
        raise MediaError(f"the decoder gave an answer that is none: {error}") from error


def check_stored(row: Mapping[str, Any]) -> None:
    """Raises MediaError for a row that ``check_row`` refuses without decoding it.

    The headers of its cells are read in a child process.
    """
    _check(dict(row))


def read_cells(row: Mapping[str, Any], layers: Sequence[str]) -> dict[str, U8]:
    """Some layers of a corpus row, decoded in a child process: uint8 ``[T, H, W, 3]``, alpha
    ``[T, H, W]``.

    row: with these layers, ``num_frames``, ``height`` and ``width``. Raises MediaError.
    """
    bounds = Bounds.of(row)
    wanted = {name: row[name] for name in (*layers, "num_frames", "height", "width")}
    found = dict(zip(layers, _read_cells(wanted, tuple(layers)), strict=True))
    for layer, frames in found.items():
        shape = (bounds.frames, bounds.height, bounds.width, *(() if layer == "alpha" else (3,)))
        if frames.shape != shape:
            raise MediaError("the decoder gave other pictures than the row says")
    return found


def pack_clips(clips: Sequence[LayeredClip]) -> list[Buffer]:
    """Clips as the answer of a contained child; see ``unpack_clips``."""
    about = [{"shape": clip.alpha.shape, "fps": clip.fps, "kind": clip.kind} for clip in clips]
    layers = [np.ascontiguousarray(clip.layer(name)) for clip in clips for name in LAYERS]
    return [json.dumps(about).encode() + b"\n", *(layer.data for layer in layers)]


def unpack_clips(answer: Buffer, row: Mapping[str, Any]) -> list[LayeredClip]:
    """The clips of ``pack_clips``, which the child made of a row.

    Raises MediaError when the answer is none.
    """
    whole = bytearray(answer) if isinstance(answer, bytes) else answer
    try:
        end = bytes(whole[: 1 << 20]).index(b"\n")
        clips, place = [], end + 1
        for about in json.loads(bytes(whole[:end])):
            layers = {}
            for name in LAYERS:
                shape = (*about["shape"], *(() if name == "alpha" else (3,)))
                layers[name], place = _taken(memoryview(whole), place, shape)
            clips.append(_clip(row, layers, about))
        return clips
    except (ValueError, TypeError, KeyError) as error:
        raise MediaError(f"the decoder gave an answer that is none: {error}") from error


def _clip(row: Mapping[str, Any], layers: dict[str, U8], about: Mapping[str, Any]) -> LayeredClip:
    return LayeredClip(
        **layers,
        prompts={layer: row[f"{layer}_prompt"] or "" for layer in PROMPTED},
        fps=float(about["fps"]),
        kind=about["kind"],
        alpha_kind=row["alpha_kind"],
        background_kind=row["background_kind"],
    )


def _taken(answer: memoryview, place: int, shape: Sequence[int]) -> tuple[U8, int]:
    end = place + int(np.prod(shape, dtype=np.int64))
    if end > len(answer) or min(shape) < 1:
        raise MediaError("the decoder gave fewer pictures than the row says")
    return np.frombuffer(answer[place:end], np.uint8).reshape(shape), end


@isolated
def _read_clip(row: dict[str, Any]) -> tuple[dict[str, U8], float, str]:
    clip = decode_row(row)
    return {name: clip.layer(name) for name in LAYERS}, float(clip.fps), clip.kind


@isolated
def _read_cells(row: dict[str, Any], layers: tuple[str, ...]) -> tuple[U8, ...]:
    bounds = Bounds.of(row)
    return tuple(decode_layer(name, row[name] or b"", bounds) for name in layers)


@isolated
def _check(row: dict[str, Any]) -> None:
    check_unread(row)
