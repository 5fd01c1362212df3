"""The clean plate: what the camera would have seen without the subject.

Behind the subject, the background is gathered from the clip's other frames, moved into place by the
camera motion, as a per-pixel median, or taken from the shot's backdrop; what no frame ever showed
is inpainted by OpenCV or a network (``pipelines.vision.inpaint``). Outside the dilated matte the
background is the video itself, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from pipelines.matting import Backdrop
from pipelines.vision.inpaint import Hole, Inpainter, OpenCvInpainter
from pipelines.vision.numerics import dilate, single_thread, sort_first_axis, work_size
from pipelines.vision.registration import Registration, register, visible, warp

_MAX_SOURCES = 24  # frames that one frame's background is gathered from
_WORK_AREA = 432 * 288  # camera motion is estimated at about this many pixels
_DILATION = 0.025  # of the matte, as a share of the short side
_MIN_SAMPLES = 3  # clean frames that a pixel needs to count as seen; fewer in clips of less than 6
_AGREE = 10.0  # levels; frames that differ more from the backdrop may show an unmatted subject


@dataclass(frozen=True)
class Plate:
    """The clean background of a clip.

    ``background``: uint8 [T, H, W, 3]. ``hole``: bool [T, H, W], the dilated matte, outside which
    the background is the video. ``seen``: bool [T, H, W], False where the background had to be
    inpainted. ``unseen_fraction``: share of the hole that was never seen. ``kind``: ``real`` (no
    hole at all), ``filled`` (all from other frames) or ``inpainted``. ``registration``: the camera
    motion at the frames' own scale. ``backdrop``: what it was helped by.
    """

    background: np.ndarray
    hole: np.ndarray
    seen: np.ndarray
    unseen_fraction: float
    kind: str
    registration: Registration
    backdrop: Backdrop | None = None


def clean_plate(
    frames: np.ndarray,
    alpha: np.ndarray,
    *,
    registration: Registration | None = None,
    inpainter: Inpainter | None = None,
    backdrop: Backdrop | None = None,
) -> Plate:
    """Remove the subject from a clip.

    ``frames``: uint8 [T, H, W, 3]; ``alpha``: float32 [T, H, W] in [0, 1] or uint8;
    ``registration``: the camera motion if it is known already; ``inpainter``: fills what was never
    seen, by default ``OpenCvInpainter``; ``backdrop``: of a still camera; it takes the place of
    what the clip does not show or shows otherwise. Raises ValueError for shapes that do not fit.
    """
    if frames.ndim != 4 or alpha.shape != frames.shape[:3]:
        raise ValueError(f"alpha {list(alpha.shape)} does not fit frames {list(frames.shape)}")
    matte = alpha.astype(np.float32) / np.float32(255) if alpha.dtype == np.uint8 else alpha
    support = matte > 0.02
    radius = max(2, round(_DILATION * min(frames.shape[1:3])))
    with single_thread():
        hole = dilate(support, radius)
        if registration is None:
            registration = camera_motion(frames, hole)
        fill = inpainter or OpenCvInpainter()
        background, seen = _fill_all(frames, support, hole, registration, radius, fill, backdrop)
    size = int(hole.sum())
    unseen = float((hole & ~seen).sum()) / size if size else 0.0
    kind = "real" if size == 0 else "inpainted" if unseen > 0 else "filled"
    return Plate(background, hole, seen, unseen, kind, registration, backdrop)


def camera_motion(frames: np.ndarray, exclude: np.ndarray | None = None) -> Registration:
    """Camera motion of uint8 [T, H, W, 3] frames, estimated small and scaled to their size."""
    height, width = frames.shape[1:3]
    size = work_size(frames, _WORK_AREA)
    gray = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    small = np.stack([cv2.resize(g, size, interpolation=cv2.INTER_AREA) for g in gray])
    mask = None
    if exclude is not None:
        nearest = cv2.INTER_NEAREST
        masks = [cv2.resize(m.astype(np.uint8), size, interpolation=nearest) for m in exclude]
        mask = np.stack(masks).astype(bool)
    return register(small, mask).scaled(width / size[0], height / size[1])


def _fill_all(
    frames: np.ndarray,
    support: np.ndarray,
    hole: np.ndarray,
    registration: Registration,
    radius: int,
    fill: Inpainter,
    backdrop: Backdrop | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Background and seen-mask of all frames; the middle frame first, so that others may copy."""
    count = len(frames)
    gains = _gains(frames, hole, registration)
    filled = frames.copy()
    seen = np.ones(hole.shape, bool)
    middle = registration.reference
    needed = max(1, min(_MIN_SAMPLES, count // 2))
    rest: list[int] = []
    todo = np.zeros_like(hole)
    at_once = getattr(fill, "video", False)  # it sees what moves, so nothing is to be copied
    for t in sorted(range(count), key=lambda i: abs(i - middle)):
        if not hole[t].any():
            continue
        window = _window(hole[t])
        gathered, number = _gather(frames, hole, registration, gains, t, window)
        if backdrop is not None:
            gathered, number = _settle(gathered, number, needed, backdrop, t, window)
        inside = hole[t][window]
        unseen = inside & (number < needed)
        patch = np.where(inside[..., None], gathered, frames[t][window])
        left = unseen
        if t != middle and not at_once and not seen[middle].all():
            patch, left = _copy_middle(
                patch, left, filled[middle], ~seen[middle], registration, t, window
            )
        filled[t][window] = patch
        seen[t][window] &= ~unseen
        todo[t][window] = left
        if t == middle and not at_once and left.any():
            (filled[t],) = fill([Hole(filled[t], todo[t], window)])
        elif left.any():
            rest.append(t)
    if rest and at_once:
        everything = slice(0, hole.shape[1]), slice(0, hole.shape[2])
        whole = [Hole(*frame, everything) for frame in zip(filled, todo, strict=True)]
        filled = np.stack(fill(whole))
    elif rest:
        holes = [Hole(filled[t], todo[t], _window(hole[t])) for t in rest]
        filled[rest] = np.stack(fill(holes))
    return _blend_seams(frames, filled, support, hole, radius), seen


def _blend_seams(
    frames: np.ndarray, filled: np.ndarray, support: np.ndarray, hole: np.ndarray, radius: int
) -> np.ndarray:
    """The video with its holes filled, softly at their edges; bit for bit the video elsewhere."""
    background = frames.copy()
    for t in np.flatnonzero(hole.any((1, 2))):
        window = _window(hole[t])
        weight = _seam(hole[t], support[t], radius)[window][..., None]
        patch = filled[t][window].astype(np.float32)
        result = np.rint(weight * patch + (1 - weight) * frames[t][window]).astype(np.uint8)
        inside = hole[t][window][..., None]
        background[t][window] = np.where(inside, result, frames[t][window])
    return background


def _gather(
    frames: np.ndarray,
    hole: np.ndarray,
    registration: Registration,
    gains: np.ndarray,
    t: int,
    window: tuple[slice, slice],
) -> tuple[np.ndarray, np.ndarray]:
    """The median of what other frames show of a window of frame t, and how many do.

    Returns uint8 [h, w, 3] and int [h, w].
    """
    height, width = window[0].stop - window[0].start, window[1].stop - window[1].start
    shift = to_window(window)
    sources = [s for s in range(len(frames)) if s != t]
    if len(sources) > _MAX_SOURCES:
        pick = np.linspace(0, len(sources) - 1, _MAX_SOURCES).round().astype(int)
        sources = [sources[i] for i in pick]
    stack = np.full((len(sources), height, width, 3), 32767, np.int16)
    for i, s in enumerate(sources):
        matrix = registration.between(s, t)
        if np.array_equal(matrix, np.eye(3)):
            seen, clean = frames[s][window], ~hole[s][window]
        else:
            size = (width, height)
            seen = warp(frames[s], shift @ matrix, size=size, interpolation=cv2.INTER_CUBIC)
            clean = warp(~hole[s] * np.uint8(255), shift @ matrix, size=size) == 255
        gain = (gains[t] / gains[s]).astype(np.float32)
        if np.abs(gain - 1).max() > 0.004:
            seen = np.clip(np.rint(seen * gain), 0, 255)
        stack[i][clean] = seen[clean]
    number = (stack[..., 0] != 32767).sum(0)
    return _median(stack, number), number


def to_window(window: tuple[slice, slice]) -> np.ndarray:
    """The translation from pixels of a picture to those of a window of it."""
    return np.array([[1, 0, -window[1].start], [0, 1, -window[0].start], [0, 0, 1.0]])


def _settle(
    gathered: np.ndarray,
    number: np.ndarray,
    needed: int,
    backdrop: Backdrop,
    t: int,
    window: tuple[slice, slice],
) -> tuple[np.ndarray, np.ndarray]:
    """The backdrop where the clip shows too little or something else: whoever stands unmatted."""
    known, picture = backdrop.known[window], backdrop.at(t)[window]
    apart = np.abs(gathered.astype(np.int16) - picture).max(-1)
    use = known & ((number < needed) | (apart > _AGREE))
    return np.where(use[..., None], picture, gathered), np.where(known, needed, number)


def _median(stack: np.ndarray, number: np.ndarray) -> np.ndarray:
    """Median over the first ``number`` sorted entries of int16 [N, h, w, 3] -> uint8 [h, w, 3]."""
    if len(stack) == 0:
        return np.zeros((*stack.shape[1:3], 3), np.uint8)
    ordered = sort_first_axis(stack)
    low = np.maximum((number - 1) // 2, 0)[None, ..., None]
    high = np.minimum(number // 2, len(stack) - 1)[None, ..., None]
    first = np.take_along_axis(ordered, np.broadcast_to(low, (1, *stack.shape[1:])), 0)[0]
    second = np.take_along_axis(ordered, np.broadcast_to(high, (1, *stack.shape[1:])), 0)[0]
    middle = (first.astype(np.int32) + second + 1) // 2
    return np.where(number[..., None] > 0, middle, 0).clip(0, 255).astype(np.uint8)


def _copy_middle(
    patch: np.ndarray,
    todo: np.ndarray,
    invented: np.ndarray,
    unseen: np.ndarray,
    registration: Registration,
    t: int,
    window: tuple[slice, slice],
) -> tuple[np.ndarray, np.ndarray]:
    """Take what was inpainted in the middle frame, so that inventions do not flicker."""
    matrix = to_window(window) @ registration.between(registration.reference, t)
    size = (patch.shape[1], patch.shape[0])
    source = warp(invented, matrix, size=size)
    use = todo & (warp(unseen.astype(np.uint8) * 255, matrix, size=size) == 255)
    return np.where(use[..., None], source, patch), todo & ~use


def _seam(hole: np.ndarray, support: np.ndarray, radius: int) -> np.ndarray:
    """float32 [H, W]: 1 on the matte and near it, falling to 0 at the edge of the hole."""
    distance = cv2.distanceTransform(hole.astype(np.uint8), cv2.DIST_L2, 3)
    weight = np.clip(distance / max(1.0, radius / 2), 0, 1)
    return np.where(support, 1, weight).astype(np.float32)


def _window(mask: np.ndarray) -> tuple[slice, slice]:
    """The mask's bounding box with a margin for inpainting, as rows and columns."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    height, width = mask.shape
    margin = 8
    return (
        slice(max(0, int(rows[0]) - margin), min(height, int(rows[-1]) + 1 + margin)),
        slice(max(0, int(columns[0]) - margin), min(width, int(columns[-1]) + 1 + margin)),
    )


def _gains(frames: np.ndarray, hole: np.ndarray, registration: Registration) -> np.ndarray:
    """Brightness of each frame and channel relative to the reference frame, float64 [T, 3].

    The median ratio over the background that both frames show; 1 where they share too little.
    """
    height, width = frames.shape[1:3]
    step = max(1, round((height * width / 20000) ** 0.5))
    reference = registration.reference
    gains = np.ones((len(frames), 3))
    target = cv2.blur(frames[reference], (5, 5))
    for t in range(len(frames)):
        if t == reference:
            continue
        matrix = registration.between(t, reference)
        moved = warp(cv2.blur(frames[t], (5, 5)), matrix)
        masked = warp(hole[t].astype(np.uint8), matrix, fill=1) > 0
        clean = visible(matrix, (width, height)) & ~masked & ~hole[reference]
        a = moved[::step, ::step][clean[::step, ::step]].astype(np.float64)
        b = target[::step, ::step][clean[::step, ::step]].astype(np.float64)
        usable = ((a > 16) & (a < 240) & (b > 16) & (b < 240)).all(1)
        if usable.sum() >= 50:
            gains[t] = np.median(a[usable] / b[usable], axis=0)
    return np.clip(gains, 0.5, 2)
