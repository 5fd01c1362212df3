"""Foregrounds cropped to what is visible of them, at the size that is of use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layerflow.clip import U8
from layerflow.media.cells import MediaError
from pipelines.inputs.sources import Foreground
from pipelines.readers.frame_reader import parts_of
from pipelines.readers.stills import alpha_kind
from pipelines.readers.videos import LayeredVideoReader
from pipelines.vision.composite import shrink_straight

SIDES = ("top", "left", "bottom", "right")
VISIBLE = 12  # alpha from which a pixel counts for the crop
ENOUGH = 2.4  # times the clip's longer side: nothing is ever drawn larger than the clip
SEARCH_SIDE = 480  # pixels, the longer side at which the object is found in a long video


@dataclass(frozen=True)
class Box:
    """Where an object is in its picture, with room around it; it may reach over the border.

    corners: top, left, bottom, right. cut: the sides at which the border cuts the object off.
    """

    corners: NDArray[np.int64]
    cut: frozenset[str]

    def held(self, size: Sequence[int]) -> Box:
        """The box, ending at the picture's border where that cuts the object off."""
        border = np.array([0, 0, *size])
        return Box(np.where([side in self.cut for side in SIDES], border, self.corners), self.cut)


def cropped(rgba: U8, fps: float, longest: int, prompt: str, record: dict[str, Any]) -> Foreground:
    """Straight uint8 ``[T, H, W, 4]`` cropped and reduced. MediaError where nothing is visible.

    longest: the longer side of the clips that it is for.
    """
    box = box_of(rgba[..., 3])
    if box is None:
        raise MediaError("nothing of it is visible")
    crop, factor = _reduced(_inside(rgba, box), longest)
    return _placed(crop, box, rgba.shape[1:3], factor, fps, prompt, record)


def cropped_window(
    reader: LayeredVideoReader,
    chosen: Sequence[int],
    fps: float,
    longest: int,
    prompt: str,
    record: dict[str, Any],
) -> Foreground | None:
    """Frames of a long video by number as ``cropped`` gives them; None where nothing is visible.

    fps: of the chosen frames. The object is looked for in small mattes, and cut out part by part.
    """
    shrink = min(1.0, SEARCH_SIDE / max(reader.size))
    small = (max(2, round(reader.size[0] * shrink)), max(2, round(reader.size[1] * shrink)))
    found = box_of(reader.mattes(chosen, small))
    if found is None:
        return None
    box = _enlarged(found, small, reader.size)
    crops, factor = [], 1.0
    for part in parts_of(chosen, reader.size):
        crop, factor = _reduced(_inside(reader.cutout(part), box), longest)
        crops.append(crop)
    rgba = np.concatenate(crops)
    return _placed(rgba, box, reader.size, factor, fps, prompt, record, chosen)


def box_of(alpha: U8) -> Box | None:
    """Where the object is in uint8 ``[T, H, W]``; None where nothing of it is visible."""
    seen = alpha.max(axis=0) >= VISIBLE
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    if len(rows) < 2 or len(columns) < 2:
        return None
    # Room for blur all around, but not where the picture's border cuts the object off.
    low, high = np.array([rows[0], columns[0]]), np.array([rows[-1], columns[-1]])
    room = 2 + round(0.04 * max(high - low))
    return Box(np.array([*(low - room), *(high + 1 + room)]), cut_sides(alpha)).held(
        alpha.shape[1:3]
    )


def _enlarged(box: Box, small: Sequence[int], size: Sequence[int]) -> Box:
    factor = np.array(size) / np.array(small)
    low = np.floor((box.corners[:2] - 1) * factor)
    high = np.ceil((box.corners[2:] + 1) * factor)
    return Box(np.concatenate([low, high]).astype(np.int64), box.cut).held(size)


def _inside(rgba: U8, box: Box) -> U8:
    """A crop that may reach over the border, where it is transparent."""
    size = np.array(rgba.shape[1:3])
    low, high = box.corners[:2], box.corners[2:]
    (top, left), (bottom, right) = np.maximum(low, 0), np.minimum(high, size)
    rows, columns = np.stack([np.maximum(-low, 0), np.maximum(high - size, 0)], axis=1)
    inner = rgba[:, top:bottom, left:right]
    return np.ascontiguousarray(np.pad(inner, ((0, 0), rows, columns, (0, 0))))


def _reduced(crop: U8, longest: int) -> tuple[U8, float]:
    """At most ``ENOUGH`` times as large as the clip, and by how much it was reduced."""
    factor = min(1.0, ENOUGH * longest / max(crop.shape[1:3]))
    if factor >= 0.8:
        return crop, 1.0
    return np.stack([shrink_straight(frame, factor) for frame in crop]), factor


def _placed(
    crop: U8,
    box: Box,
    size: Sequence[int],
    factor: float,
    fps: float,
    prompt: str,
    record: dict[str, Any],
    numbers: Sequence[int] = (),
) -> Foreground:
    return Foreground(
        rgba=crop,
        frame=(size[0] * factor, size[1] * factor),
        corner=(float(box.corners[0]) * factor, float(box.corners[1]) * factor),
        scale=factor,
        cut=box.cut,
        fps=fps,
        prompt=prompt,
        record=record,
        alpha_kind=alpha_kind(crop[..., 3]),
        numbers=tuple(numbers),
    )


def cut_sides(alpha: U8, share: float = 0.15) -> frozenset[str]:
    """Sides of uint8 ``[T, H, W]`` frames at which the picture's border cuts the object off.

    A side counts when opaque pixels touch it along ``share`` of the object's length there; two
    opposite sides cancel out: such an object fills its picture by nature.
    """
    solid = alpha >= 128
    wide = max(1, int(solid.any(axis=(0, 1)).sum()))
    tall = max(1, int(solid.any(axis=(0, 2)).sum()))
    contact = {
        "top": solid[:, 0].sum(1).mean() / wide,
        "bottom": solid[:, -1].sum(1).mean() / wide,
        "left": solid[:, :, 0].sum(1).mean() / tall,
        "right": solid[:, :, -1].sum(1).mean() / tall,
    }
    cut = {side for side, value in contact.items() if value >= share}
    for pair in ({"top", "bottom"}, {"left", "right"}):
        if pair <= cut:
            cut -= pair
    return frozenset(cut)
