"""The backdrop of a shot: what a still camera sees when nothing stands in front of it.

A subject that stands still cannot be found by motion, and a clip of a few seconds does not show
what is behind it. Over the whole shot it comes, goes or moves on, so frames from all of the shot
are compared. Where two of them differ, one shows something in front of the other's scenery: the
one whose edges follow the outline of the difference. This finds the emptiest picture even where
only a few frames show it, which a temporal median does not.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from layerflow.clip import U8
from pipelines.matting import Backdrop
from pipelines.vision.evidence import median_and_spread
from pipelines.vision.numerics import single_thread, work_size
from pipelines.vision.plate import camera_motion
from pipelines.vision.registration import project

MAX_FRAMES, MIN_FRAMES = 24, 6  # of a shot, from which its backdrop is found
FRAME_GAP = 0.25  # seconds between them, at least

_WORK_AREA = 216 * 144
_SAME = 16.0  # levels up to which two frames show the same thing
_SPECK = 20  # pixels at work size from which a difference is judged
_CLEARER = 1.2  # an outline belongs to the frame where its edge is this much stronger
_OPPONENTS = 12  # frames that a candidate is compared with
_ROUNDS = 3
_DOUBTED = 0.3  # share of frames that may speak against a place
_LEAST_KNOWN = 0.5  # share of the picture, and of the frames that agree on its structure
_TRAVEL = 0.02  # of the height
_STRUCTURE = 6.0  # levels of the Laplacian; a blank wall would fit any view
_SAME_VIEW = 0.65  # share of the structure that a frame of the same view shows in its place
_EQUAL = 8.0  # levels
_DARKEST, _HUE = 0.4, 0.15  # of a shadow: what is left of the light, and how far channels differ
_STRIP = 64  # rows at a time: the stack of all frames is large
_SAMPLES, _REWEIGHTED = 4000, 8  # of a tone curve's fit


@dataclass(frozen=True)
class _Sketch:
    """A frame at work size, float32 [h, w, 3], and its gradient [h, w, 3, 2]."""

    picture: np.ndarray
    gradient: np.ndarray


def backdrop_times(times: np.ndarray) -> tuple[float, ...]:
    """Of a shot's frame times (seconds) some, evenly spread; none for a short shot."""
    count = min(MAX_FRAMES, int((times[-1] - times[0]) / FRAME_GAP) + 1) if len(times) else 0
    if count < MIN_FRAMES:
        return ()
    places = np.unique(np.linspace(0, len(times) - 1, count).round().astype(int))
    return tuple(float(t) for t in times[places]) if len(places) >= MIN_FRAMES else ()


def find_backdrop(frames: U8) -> Backdrop | None:
    """The backdrop of one shot's frames uint8 [N, H, W, 3]; None if they do not show one view.

    ``known`` is False where hardly any frame shows what was chosen, or too many speak against it.
    """
    count = len(frames)
    if count < MIN_FRAMES:
        return None
    size = work_size(frames, _WORK_AREA)
    with single_thread():
        small = np.stack([cv2.resize(f, size, interpolation=cv2.INTER_AREA) for f in frames])
        common = _most_common(small.astype(np.float32))
        tones = np.stack([_tone(common, f) for f in small])
        lit = np.stack([cv2.LUT(f, tone[None]) for f, tone in zip(small, tones, strict=True)])
        lit = lit.astype(np.float32)
        sketches = [_sketch(picture) for picture in lit]
        base = _emptiest([_sketch(_most_common(lit)), *sketches], sketches)
        base, doubts = _without_ghosts(base, sketches)
        near = np.abs(lit - base.picture).max(-1) < _SAME
        known = (near.sum(0) >= max(2, 0.08 * count)) & (doubts <= _DOUBTED * count)
        telling = known & (_strength(np.rint(base.picture).astype(np.uint8)) > _STRUCTURE)
        agreed = near[:, telling]
        if known.mean() < _LEAST_KNOWN or (agreed.size and agreed.mean() < _LEAST_KNOWN):
            return None
        return _enlarge(frames, tones, near, known)


def fit_backdrop(backdrop: Backdrop, frames: U8) -> Backdrop | None:
    """The backdrop in the light of each of the frames uint8 [T, H, W, 3]; None for another view."""
    if backdrop.picture.shape != frames.shape[1:]:
        return None
    size = work_size(frames, _WORK_AREA)
    with single_thread():
        picture = cv2.resize(backdrop.picture, size, interpolation=cv2.INTER_AREA)
        known = cv2.resize(backdrop.known.astype(np.float32), size) > 0.99
        telling = known & (_strength(picture) > _STRUCTURE)
        if telling.sum() < _SPECK:
            return None
        tones = []
        for frame in frames:
            small = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
            tone = _tone(small, picture, known)
            apart = np.abs(small.astype(np.int16) - cv2.LUT(picture, tone[None])).max(-1)
            if (apart[telling] < _SAME).mean() < _SAME_VIEW:
                return None
            tones.append(tone)
    return Backdrop(backdrop.picture, backdrop.known, np.stack(tones))


def presence(backdrop: Backdrop, frames: U8) -> tuple[np.ndarray, np.ndarray]:
    """How much of each of the frames uint8 [N, H, W, 3] stands before the backdrop, float64 [N].

    Of what is known of the backdrop the share that differs from it in the frame's own light; and of
    the picture's outermost two pixels the share that does and is no shadow, darker in the same
    colour. ``frames`` have the size of those that it was found in.
    """
    known, shares, contacts = backdrop.known, [], []
    ring = np.ones(known.shape, bool)
    ring[2:-2, 2:-2] = False
    for frame in frames:
        lit = cv2.LUT(backdrop.picture, _tone(frame, backdrop.picture, known)[None])
        apart = np.abs(frame.astype(np.int16) - lit).max(-1).astype(np.float32)
        differs = (cv2.blur(apart, (3, 3)) > _SAME) & known
        ratio = cv2.blur((frame + np.float32(8)) / (lit + np.float32(8)), (3, 3))
        dark = (ratio.mean(-1) > _DARKEST) & (ratio.mean(-1) < 1)
        shadow = dark & (ratio.max(-1) - ratio.min(-1) < _HUE)
        shares.append(float(_opened(differs).sum()) / max(1, int(known.sum())))
        contacts.append(float(_opened(differs & ~shadow)[ring].mean()))
    return np.array(shares), np.array(contacts)


def _opened(mask: np.ndarray) -> np.ndarray:
    return cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))


def shared_with(backdrop: Backdrop, frames: U8, alpha: U8) -> float:
    """How much of a matte's solid part, where the backdrop is known, is just the backdrop.

    A little of it is by chance. Much of it says that the subject hardly left its place in the whole
    shot and became part of the backdrop.
    """
    solid, same = 0, 0
    for t, frame in enumerate(frames):
        core = (alpha[t] > 230) & backdrop.known
        apart = np.abs(frame[core].astype(np.int16) - backdrop.at(t)[core]).max(-1)
        solid += len(apart)
        same += int((apart < _EQUAL).sum())
    return same / solid if solid else 0.0


def is_still(frames: U8) -> bool:
    """Whether the camera ends and begins about where the middle of uint8 [T, H, W, 3] sees it."""
    height, width = frames.shape[1:3]
    corner = np.array([[0, 0], [width, 0], [0, height], [width, height]], np.float64)
    motion = camera_motion(frames).to_reference
    away = [np.abs(project(motion[t], corner) - corner).max() for t in (0, -1)]
    return max(away) < _TRAVEL * height


def _strength(picture: U8) -> np.ndarray:
    gray = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    return np.abs(cv2.Laplacian(gray, cv2.CV_32F))


def _tone(target: np.ndarray, source: np.ndarray, where: np.ndarray | None = None) -> np.ndarray:
    """The curves that bring the source into the target's light, uint8 [256, 3].

    Per channel a parabola through what most pixels say (least absolute deviations, reweighted): a
    camera that adapts to a dark subject lifts the shadows more than the whites.
    """
    a, b = source.reshape(-1, 3).astype(np.float64), target.reshape(-1, 3).astype(np.float64)
    usable = ((a > 2) & (a < 250) & (b > 2) & (b < 250)).all(-1)
    if where is not None:
        usable &= where.ravel()
    levels = np.arange(256, dtype=np.float64)
    curves = np.repeat(levels[:, None], 3, 1)
    chosen = np.flatnonzero(usable)[:: max(1, int(usable.sum()) // _SAMPLES)]
    if len(chosen) >= 50:
        for channel in range(3):
            curve = _parabola(a[chosen, channel], b[chosen, channel], levels)
            if (np.diff(curve) >= 0).all():
                curves[:, channel] = curve
    return np.clip(np.rint(curves), 0, 255).astype(np.uint8)


def _parabola(x: np.ndarray, y: np.ndarray, at: np.ndarray) -> np.ndarray:
    basis = np.stack([np.ones_like(x), x / 128, (x / 128) ** 2], axis=1)
    weight = np.ones_like(x)
    for _ in range(_REWEIGHTED):
        weighted = basis * weight[:, None]
        solution = np.linalg.solve(weighted.T @ basis + 1e-3 * np.eye(3), weighted.T @ y)
        weight = 1 / np.maximum(np.abs(y - basis @ solution), 1) ** 1.5
    return np.stack([np.ones_like(at), at / 128, (at / 128) ** 2], axis=1) @ solution


def _sketch(picture: np.ndarray) -> _Sketch:
    dx = cv2.Sobel(picture, cv2.CV_32F, 1, 0, scale=1 / 4)
    dy = cv2.Sobel(picture, cv2.CV_32F, 0, 1, scale=1 / 4)
    return _Sketch(picture, np.stack([dx, dy], axis=-1))


def _most_common(stack: np.ndarray) -> np.ndarray:
    """Per pixel the mean of the largest group of similar frames, float32 [h, w, 3]."""
    support = np.zeros(stack.shape[:3], np.int16)
    for i in range(len(stack)):
        for j in range(i):
            alike = np.abs(stack[i] - stack[j]).max(-1) < _SAME
            support[i] += alike
            support[j] += alike
    best = support.argmax(0)[None, ..., None]
    chosen = np.take_along_axis(stack, best, 0)
    group = (np.abs(stack - chosen).max(-1, keepdims=True) < _SAME).astype(np.float32)
    return (stack * group).sum(0) / group.sum(0)


def _emptiest(candidates: list[_Sketch], frames: list[_Sketch]) -> _Sketch:
    """The candidate that has the least in front by comparison with the frames."""
    pick = np.unique(np.linspace(0, len(frames) - 1, min(_OPPONENTS, len(frames))).round())
    costs = []
    for base in candidates:
        verdicts = [_compare(frames[int(i)], base) for i in pick]
        costs.append(sum(float((v < 0).sum() + 0.5 * (v == 2).sum()) for v in verdicts))
    return candidates[int(np.argmin(costs))]


def _without_ghosts(base: _Sketch, frames: list[_Sketch]) -> tuple[_Sketch, np.ndarray]:
    """The base without what single frames prove to be in front; how many speak against it still."""
    needed = max(2, 0.1 * len(frames))
    for _ in range(_ROUNDS):
        verdicts = np.stack([_compare(frame, base) for frame in frames])
        freer = verdicts < 0
        ghost = freer.sum(0) >= needed
        if ghost.mean() < 5e-4:
            break
        stack = np.stack([frame.picture for frame in frames])
        shown = np.where(freer[..., None], np.rint(stack), 32767).astype(np.int16)
        better, _, _ = median_and_spread(np.where(ghost[..., None], shown, 32767))
        base = _sketch(np.where(ghost[..., None], better, base.picture).astype(np.float32))
    verdicts = np.stack([_compare(frame, base) for frame in frames])
    return base, ((verdicts < 0) | (verdicts == 2)).sum(0)


def _compare(frame: _Sketch, base: _Sketch) -> np.ndarray:
    """int8 [h, w]: 1 where the frame has something in front, -1 where the base has, 2 where they
    differ but neither is clear, 0 where they are the same."""
    apart = cv2.blur(np.abs(frame.picture - base.picture).max(-1), (3, 3))
    differ = (apart > _SAME).astype(np.uint8)
    differ = cv2.morphologyEx(differ, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    verdict = np.zeros(apart.shape, np.int8)
    number, labels, stats, _ = cv2.connectedComponentsWithStats(differ)
    for i in range(1, number):
        x, y, width, height, area = stats[i]
        if area < _SPECK:
            continue
        rows, columns = slice(max(0, y - 4), y + height + 4), slice(max(0, x - 4), x + width + 4)
        part = labels[rows, columns] == i
        verdict[rows, columns][part] = _whose(part, frame, base, rows, columns)
    return verdict


def _whose(part: np.ndarray, frame: _Sketch, base: _Sketch, rows: slice, columns: slice) -> int:
    """Whose edges follow the outline of a part: 1 the frame's, -1 the base's, 2 unclear."""
    soft = cv2.GaussianBlur(part.astype(np.float32), (0, 0), 1)
    nx, ny = cv2.Sobel(soft, cv2.CV_32F, 1, 0), cv2.Sobel(soft, cv2.CV_32F, 0, 1)
    length = np.hypot(nx, ny)
    inside = np.zeros(frame.picture.shape[:2], bool)
    inside[2:-2, 2:-2] = True
    outline = (length > 0.3 * length.max()) & inside[rows, columns]
    if outline.sum() < 8:
        return 2
    normal = np.stack([nx[outline], ny[outline]], axis=-1) / length[outline][:, None]

    def edge(sketch: _Sketch) -> float:
        along = (sketch.gradient[rows, columns][outline] * normal[:, None]).sum(-1)
        return float(np.abs(along).max(-1).mean())

    of_frame, of_base = edge(frame), edge(base)
    return 1 if of_frame > _CLEARER * of_base else -1 if of_base > _CLEARER * of_frame else 2


def _enlarge(frames: U8, tones: np.ndarray, near: np.ndarray, known: np.ndarray) -> Backdrop:
    """The median of the frames where they show the backdrop, at their own size."""
    height, width = frames.shape[1:3]
    shows = [cv2.resize(n.astype(np.float32), (width, height)) > 0.99 for n in near]
    picture = np.empty((height, width, 3), np.uint8)
    number = np.empty((height, width), np.uint8)
    for top in range(0, height, _STRIP):
        rows = slice(top, top + _STRIP)
        stack = np.full(frames[:, rows].shape, 32767, np.int16)
        for i, frame in enumerate(frames):
            stack[i][shows[i][rows]] = cv2.LUT(frame[rows], tones[i][None])[shows[i][rows]]
        picture[rows], number[rows], _ = median_and_spread(stack)
    sure = cv2.resize(known.astype(np.float32), (width, height)) > 0.99
    same = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, -1)
    return Backdrop(picture, sure & (number >= 2), same)
