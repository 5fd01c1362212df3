"""Steps for a subject that is chosen by hand: where it is in a window, and that it was found.

A choice holds at one time of a shot. In the window of that time it is used as it is. Later windows
start from the last matte of the shot that the backend was sure of, or from the choice, carried
along the flow over the frames between.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import cv2
import numpy as np

from layerflow.clip import U8, cover_box
from layerflow.media.video import nearest
from manifests.chosen import Choice
from manifests.mine import MineOptions
from pipelines.engine.steps import Refused
from pipelines.matting import CHOSEN, MATTING, SEVERAL, Chosen
from pipelines.mine.window import Video, Window
from pipelines.vision.evidence import grid
from pipelines.vision.numerics import dilate, single_thread, work_size

STEP = "subject"  # of rejected rows
_FARTHEST = 32  # frames between a window and where its subject was last seen
_NEAR = 0.1  # seconds between a choice and the shot that it is for
_MARGIN = 0.02  # of the short side, by which the subject may leave what is carried to a window
_FLOW_AREA = 320 * 212


def check_backend(options: MineOptions, payloads: Iterable[Mapping[str, Any]]) -> None:
    """Raises ValueError where the backend cannot be told which subject is meant."""
    name = options.matting.partition(":")[0]
    needs = MATTING.load(name).needs
    if options.subjects == "each" and SEVERAL not in needs:
        raise ValueError(
            f"matting backend {name!r} mattes one subject: --subjects each works with --matting "
            "auto or motion"
        )
    if CHOSEN not in needs and any(payload.get("choices") for payload in payloads):
        raise ValueError(
            f"matting backend {name!r} cannot be told which subject is meant: box and points work "
            "with --matting auto, motion or sam2"
        )


def find_choice(window: Window) -> None:
    """Say where in the window the subject is, if it was chosen by hand."""
    video, place = window.video, window.place
    choices = choices_for(video, place.shot)
    if not choices:
        return
    due = [(at, choice) for at, choice in choices if at <= place.end]
    if not due:
        raise Refused(STEP, f"before {choices[0][0]:.2f} s, where the subject was chosen by hand")
    at, choice = due[-1]
    if at >= place.start:
        frame = int(np.abs(np.array(place.times) - at).argmin())
        window.chosen = in_picture(window, choice, frame)
        return
    sure = video.sure
    if sure is not None and sure.shot == place.shot and sure.end >= at:
        last = Chosen(0, sure.last.alpha > 127)
        window.chosen = _carried(window, last, sure.end, [sure.last.frame])
    else:
        window.chosen = _carried(window, in_picture(window, choice, 0), at, [])


def require_subject(window: Window) -> None:
    """Refuse a window in which nothing was found where the subject was chosen by hand."""
    if window.chosen is not None and not (window.alpha > 127).any():
        raise Refused(STEP, "nothing was found where the subject was chosen by hand")


def choices_for(video: Video, shot: int) -> list[tuple[float, Choice]]:
    """The choices for a shot, with the seconds from which they hold, in order of time."""
    found = video.findings
    begin = video.span.joined.get(str(shot), found.starts[shot])
    times = [begin if choice.at is None else choice.at for choice in video.choices]
    pairs = zip(times, video.choices, strict=True)
    return [
        (min(max(at, begin), found.ends[shot]), choice)
        for at, choice in pairs
        if choice.at is None or shot_at(video, at) == shot
    ]


def shot_at(video: Video, at: float) -> int | None:
    """The shot with windows that shows a time."""
    found = video.findings
    begins = [video.span.joined.get(str(i), start) for i, start in enumerate(found.starts)]
    away = [max(b - at, at - e, 0.0) for b, e in zip(begins, found.ends, strict=True)]
    return int(np.argmin(away)) if away and min(away) < _NEAR else None


def unused_choices(video: Video) -> list[str]:
    """What to say of choices for times of this span that no shot with windows shows."""
    span = video.span
    own = [c.at for c in video.choices if c.at is not None and span.start <= c.at < span.end]
    return [
        f"the subject was chosen at {at:.2f} s, which no window's shot shows"
        for at in own
        if shot_at(video, at) is None
    ]


def marks(video: Video) -> list[float]:
    """What tells the clips of a choice from those of another one."""
    numbers: list[float] = []
    for choice in video.choices:
        numbers += [-1.0 if choice.at is None else choice.at, *(choice.box or ())]
        numbers += [float(value) for point in choice.points or () for value in point]
    return numbers


def in_picture(window: Window, choice: Choice, frame: int) -> Chosen:
    """A choice on one frame of a window. Refused where black bars or the crop hide all of it."""
    (height, width), (high, wide) = window.video.shape, window.video.options.size
    bars = window.place.box or (0.0, 1.0, 0.0, 1.0)
    top, bottom = round(bars[0] * height), round(bars[1] * height)
    left, right = round(bars[2] * width), round(bars[3] * width)
    scaled_h, scaled_w, y, x = cover_box(bottom - top, right - left, high, wide)

    def at(px: float, py: float) -> tuple[float, float]:
        return (
            (px * width - left) * scaled_w / (right - left) - x,
            (py * height - top) * scaled_h / (bottom - top) - y,
        )

    inside: list[tuple[float, float]] = []
    away: list[tuple[float, float]] = []
    for px, py, on in choice.points or ():
        spot = at(px, py)
        if 0 <= spot[0] < wide and 0 <= spot[1] < high:
            (inside if on else away).append(spot)
    region = None
    if choice.box is not None:
        (x0, y0), (x1, y1) = at(*choice.box[:2]), at(*choice.box[2:])
        rows = slice(max(0, round(y0)), max(0, round(y1)))
        region = np.zeros((high, wide), bool)
        region[rows, max(0, round(x0)) : max(0, round(x1))] = True
    if not inside and (region is None or not region.any()):
        raise Refused(STEP, "where the subject was chosen by hand is outside of the clip's picture")
    return Chosen(frame, region, tuple(inside), tuple(away))


def _carried(window: Window, known: Chosen, since: float, seen: list[U8]) -> Chosen:
    """What was known at a time before a window, along the flow to its first frame.

    seen: the frame of that time, if it is there already.
    """
    video, place = window.video, window.place
    period = 1 / video.options.fps
    wanted = np.arange(since + period * len(seen), place.start - 0.5 * period, period)
    if len(wanted) > _FARTHEST:
        raise Refused(
            STEP, f"the subject was last seen at {since:.2f} s, too long before; choose it again"
        )
    times = video.frame_times[np.unique(nearest(video.frame_times, wanted))] if len(wanted) else ()
    size = video.options.size
    if len(times):
        seen = [*seen, *video.decoder.fetch(video.path, list(times), *size, box=place.box)]
    with single_thread():
        position = _origins([*seen, window.frames[0]])
    height, width = position.shape[:2]
    scale = np.array([width / size[1], height / size[0]])
    region = None
    if known.region is not None:
        small = cv2.resize(known.region.astype(np.float32), (width, height))
        moved = cv2.remap(small, position[..., 0], position[..., 1], cv2.INTER_LINEAR)
        region = cv2.resize(moved, (size[1], size[0])) > 0.5
        if not region.any():
            raise Refused(STEP, f"the subject, last seen at {since:.2f} s, was lost")
        region = dilate(region[None], max(1, round(_MARGIN * min(size))))[0]

    def now(spot: tuple[float, float]) -> tuple[float, float]:
        far = ((position - np.array(spot) * scale) ** 2).sum(-1)
        row, column = np.unravel_index(int(far.argmin()), far.shape)
        return float(column / scale[0]), float(row / scale[1])

    return Chosen(0, region, tuple(map(now, known.points)), tuple(map(now, known.away)))


def _origins(frames: list[U8]) -> np.ndarray:
    """Where each pixel of the last frame was in the first one, float32 [h, w, 2], at work size."""
    size = work_size(np.stack(frames[:1]), _FLOW_AREA)
    gray = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    small = [cv2.resize(g, size, interpolation=cv2.INTER_AREA) for g in gray]
    engine = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    base = grid(size[1], size[0])
    position = base
    for before, after in itertools.pairwise(small):
        there = (base + engine.calc(after, before, None)).astype(np.float32)
        position = cv2.remap(
            position, there[..., 0], there[..., 1], cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )  # fmt: skip
    return np.asarray(position, np.float32)
