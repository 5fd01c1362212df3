"""When and where networks look at a clip: few frames of a calm one, more of a fast one, and once
the subject is found only at what is around it.

A network scales what it is shown to its own input. A small subject of a whole frame has few pixels
there, and other things compete with it; a box around it has neither fault.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np

from pipelines.matting.auto.carry import carry
from pipelines.matting.stabilise import over_the_clip
from pipelines.vision.evidence import Matches

KEY_STEP = 4  # frames between two looks at a calm clip
WIDE_STEP = 8  # the same where motion already says where the subject is
SAME = 0.7  # what overlaps by less (IoU) is not the same thing
_MARGIN = 0.35  # around the subject, of the root of its box's area
_GRADES = 1.1  # boxes have sizes of these steps, so that few calls hold them all
_LARGE = 0.7  # of the frame: a box of more is the frame
_FITS = 0.9  # boxes that overlap by this much (IoU) show the same


class Network(Protocol):
    """A saliency network: ``name`` is also that of its vote."""

    name: str

    def predict(self, frames: np.ndarray) -> np.ndarray:
        """Probabilities float32 [T, H, W] of uint8 [T, H, W, 3]."""
        ...


@dataclass(frozen=True)
class Box:
    """A part of a frame in pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def part(self) -> tuple[slice, slice]:
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)

    def fits(self, other: Box) -> bool:
        """Whether this one may stand for the other: they overlap by most of both (IoU)."""
        down = min(self.top + self.height, other.top + other.height) - max(self.top, other.top)
        along = min(self.left + self.width, other.left + other.width) - max(self.left, other.left)
        both = max(0, down) * max(0, along)
        return both >= _FITS * (self.height * self.width + other.height * other.width - both)


class Looks:
    """What a network says of boxes of some frames, uint8 [T, H, W, 3], at ``size`` (h, w).

    The same look is not taken twice.
    """

    def __init__(self, network: Network, frames: np.ndarray, size: tuple[int, int]) -> None:
        self.name, self.frames, self.size = network.name, frames, size
        self._network = network
        self._said: dict[tuple[int, Box], np.ndarray] = {}

    def ask(self, boxes: Sequence[Box], wanted: Sequence[int]) -> np.ndarray:
        """Probabilities float32 [K, h, w] of the box of each wanted frame, 0 outside of it.

        ``boxes``: one of each frame of the clip. Those of one size are asked for together.
        """
        looks = [(t, boxes[t]) for t in wanted]
        new = [one for one in looks if one not in self._said]
        whole = np.zeros(self.frames.shape[1:3], np.float32)
        for extent in dict.fromkeys((box.height, box.width) for _, box in new):
            these = [(t, box) for t, box in new if (box.height, box.width) == extent]
            shown = np.stack([self.frames[t][box.part] for t, box in these])
            for (t, box), answer in zip(these, self._network.predict(shown), strict=True):
                whole[:] = 0
                whole[box.part] = answer
                small = cv2.resize(whole, self.size[::-1], interpolation=cv2.INTER_AREA)
                self._said[t, box] = small
        return np.stack([self._said[one] for one in looks])


def key_frames(count: int, step: int = KEY_STEP) -> list[int]:
    """The frames that a network sees first: the middle of every ``step``."""
    return list(range(min(step // 2, count - 1), count, step))


def boxes_around(
    mask: np.ndarray, size: tuple[int, int], earlier: Sequence[Box] | None = None
) -> list[Box]:
    """A box of each frame of ``size`` (H, W) around the subject, bool [T, h, w], not all empty.

    A frame without it has the box of the nearest one that has it. Sizes are of few grades. Of
    ``earlier`` boxes, one of each frame, those that fit are kept.
    """
    height, width = size
    scale = np.array([height / mask.shape[1], width / mask.shape[2]])
    here = np.flatnonzero(mask.any((1, 2)))
    made = {int(t): _box(mask[t], scale, np.array(size)) for t in here}
    boxes = [made[int(here[np.abs(here - t).argmin()])] for t in range(len(mask))]
    if earlier is None:
        return boxes
    return [old if old.fits(new) else new for old, new in zip(earlier, boxes, strict=True)]


def _box(mask: np.ndarray, scale: np.ndarray, size: np.ndarray) -> Box:
    places = [np.flatnonzero(mask.any(axis)) for axis in (1, 0)]
    low = np.array([p[0] for p in places]) * scale
    high = np.array([p[-1] + 1 for p in places]) * scale
    wanted = high - low + 2 * _MARGIN * np.sqrt(np.prod(high - low))
    wanted = _GRADES ** np.ceil(np.log(wanted) / np.log(_GRADES))
    extent = np.minimum(np.ceil(wanted), size).astype(int)
    if np.prod(extent) > _LARGE * np.prod(size):
        extent = size
    corner = np.clip(np.rint((low + high - extent) / 2), 0, size - extent).astype(int)
    return Box(*corner.tolist(), *extent.tolist())


@dataclass(frozen=True)
class Seen:
    """``field``: float32 [T, h, w] in [0, 1], what a network says of a clip; ``steady``: how much
    neighbouring looks are the same thing, seen along the flow, in [0, 1]; ``frames``: those it
    looked at."""

    field: np.ndarray
    steady: float
    frames: list[int]


def look(
    ask: Callable[[list[int]], np.ndarray],
    first: list[int],
    more: int,
    count: int,
    matches: list[Matches],
) -> Seen:
    """What a network says of all ``count`` frames, from looks at some.

    ``ask`` gives its probabilities of some frames, float32 [K, h, w]. Where neighbouring looks are
    not the same thing the frames half way between them are looked at too, ``more`` times. A frame
    on which nothing is sure says nothing where others do.
    """
    said: dict[int, np.ndarray] = {}
    wanted = first
    for left in range(more, -1, -1):
        said |= dict(zip(wanted, ask(wanted), strict=True))
        frames = sorted(said)
        fields = over_the_clip(np.stack([said[t] for t in frames]))
        sure = [place for place, field in enumerate(fields) if field.any()] or [*range(len(fields))]
        field, same = carry(fields[sure], [frames[place] for place in sure], count, matches)
        speaks = {frames[place] for place in sure}
        wanted = _between(frames, speaks, same, count)
        if not (left and wanted):
            break
    return Seen(field, float(np.mean([*same.values()])) if same else 1.0, frames)


def _between(
    frames: list[int], speaks: set[int], same: dict[tuple[int, int], float], count: int
) -> list[int]:
    """Frames half way between looks that are not the same thing or say nothing, in order.

    None where fewer than two say anything.
    """
    if not same:
        return []
    pairs, low, high = list(same), frames[0], frames[-1]
    apart = {pair for pair, much in same.items() if much < SAME}
    found = {
        (a + b) // 2
        for a, b in itertools.pairwise(frames)
        if not {a, b} <= speaks or any(one <= a and b <= other for one, other in apart)
    }
    if pairs[0] in apart:
        found.add(low // 2)
    if pairs[-1] in apart:
        found.add((high + count) // 2)
    return sorted(found - set(frames))
