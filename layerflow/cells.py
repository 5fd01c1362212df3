"""Media cells of rows decoded in a child process: the way for every corpus that a stranger made.

One child serves this process and is kept for its next rows. What comes back are plain pictures of
the size and number that the row says.
"""

from __future__ import annotations

import json
import os
import pickle
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from av.video.reformatter import VideoReformatter

from layerflow.check import check_unread
from layerflow.clip import LAYERS, PROMPTED, U8, LayeredClip
from layerflow.contained import Buffer, Contained, Work
from layerflow.corpus import decode_row
from layerflow.media import PNG_MAGIC, Bounds, MediaError, decode_alpha, decode_color, frame_array
from layerflow.opening import cell_frames

_lock = threading.Lock()
_children: dict[int, Contained] = {}


def read_clip(row: Mapping[str, Any]) -> LayeredClip:
    """The clip of a corpus row, decoded in a child process.

    Raises MediaError for cells that do not decode to what the row says, and for a child that
    crashes or hangs.
    """
    return unpack_clips(_asked(("clip", dict(row))), row)[0]


def check_stored(row: Mapping[str, Any]) -> None:
    """Raises MediaError for a row that ``check_row`` refuses without decoding it.

    The headers of its cells are read in a child process.
    """
    _asked(("check", dict(row)))


def read_cells(row: Mapping[str, Any], layers: Sequence[str]) -> dict[str, U8]:
    """Some layers of a corpus row, decoded in a child process: uint8 ``[T, H, W, 3]``, alpha
    ``[T, H, W]``.

    row: with these layers, ``num_frames``, ``height`` and ``width``. Raises MediaError.
    """
    bounds = Bounds.of(row)
    wanted = {name: row[name] for name in (*layers, "num_frames", "height", "width")}
    answer = memoryview(_asked(("cells", wanted)))
    assert bounds.height is not None and bounds.width is not None
    found, place = {}, 0
    for layer in layers:
        shape = (bounds.frames, bounds.height, bounds.width, *(() if layer == "alpha" else (3,)))
        found[layer], place = _taken(answer, place, shape)
    return found


def read_cell(data: bytes, keep: Sequence[int] | None, bounds: Bounds, *, grey: bool) -> U8:
    """The frames `keep` (None: all) of a media cell, decoded in this process.

    Returns uint8 ``[T, H, W, 3]``, or ``[T, H, W]`` when grey. Only these frames are converted,
    which is most of the work at small sizes. Raises MediaError.
    """
    pixel_format = "gray" if grey else "rgb24"
    if data[:8] == PNG_MAGIC:
        still = (decode_alpha if grey else decode_color)(data, bounds)
        return still if keep is None else still[list(keep)]
    wanted = None if keep is None else set(keep)
    taken: dict[int, U8] = {}
    converter = VideoReformatter()
    for index, frame in enumerate(cell_frames(data, bounds)):
        if wanted is None or index in wanted:
            taken[index] = frame_array(frame, pixel_format, converter)
    order = range(bounds.frames) if keep is None else keep
    if set(taken) != set(order):
        raise MediaError(f"a media cell has no frame {max(order)}")
    frames = [taken[index] for index in order]
    if any(frame.shape != frames[0].shape for frame in frames):
        raise MediaError("the frame size changes inside the media cell")
    return np.stack(frames)


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


def _asked(request: tuple[str, dict[str, Any]]) -> Buffer:
    with _lock:
        child = _children.get(os.getpid())
        if child is None:
            _children.clear()  # of the process that this one was forked from
            child = _children[os.getpid()] = Contained(cell_reader, Path(), writes=False)
        return child.call(pickle.dumps(request))


def cell_reader(path: Path) -> Work:
    """The handler of this module's child."""
    known: dict[str, Callable[[dict[str, Any]], list[Buffer]]] = {
        "clip": _read_clip,
        "cells": _read_cells,
        "check": _check,
    }

    def answer(request: bytes) -> list[Buffer]:
        name, row = pickle.loads(request)  # from the parent: plain values
        return known[name](row)

    return answer


def _read_clip(row: dict[str, Any]) -> list[Buffer]:
    return pack_clips([decode_row(row)])


def _read_cells(row: dict[str, Any]) -> list[Buffer]:
    bounds = Bounds.of(row)
    found: list[Buffer] = []
    for name in row:
        if name in LAYERS:
            layer = read_cell(row[name] or b"", None, bounds, grey=name == "alpha")
            found.append(np.ascontiguousarray(layer).data)
    return found


def _check(row: dict[str, Any]) -> list[Buffer]:
    check_unread(row)
    return []
