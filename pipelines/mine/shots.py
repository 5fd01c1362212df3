"""Shots and windows: where a video is cut, and which frames make a clip."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from layerflow.clip import U8
from layerflow.media.video import F64, Box, nearest

MIN_SHOT_FRAMES = 4
SLIDES = 4  # a window may start later by quarters of its length
_STEADY, _PLACED, _SLID = 1.0, 0.25, 1e-6  # worth of a window, and the cost of a quarter

Comes = Callable[[float, float], bool]
"""Whether somebody comes or goes between two times, in seconds."""


@dataclass(frozen=True)
class ClipSpan:
    """Where a clip lies in its video: the times (seconds) of its frames, all inside one shot.

    box: the part of the frame inside black bars; None without bars.
    """

    times: tuple[float, ...]
    box: Box | None = None

    @property
    def start(self) -> float:
        return self.times[0]

    @property
    def end(self) -> float:
        return self.times[-1]


def find_shots(thumbs: U8, fps: float, splices: Sequence[int] = ()) -> list[tuple[int, int]]:
    """Index ranges ``[first, last)`` of shots, by PySceneDetect's content + adaptive detectors.

    thumbs uint8 ``[N, h, w, 3]`` RGB, consecutive frames; fps their average rate; splices: frames
    that are known to start a shot, whatever they show.
    """
    from scenedetect import FrameTimecode
    from scenedetect.detectors import AdaptiveDetector, ContentDetector

    detectors = (
        ContentDetector(min_scene_len=MIN_SHOT_FRAMES),
        AdaptiveDetector(min_scene_len=MIN_SHOT_FRAMES),
    )
    cuts: set[int] = set(splices)
    rate = max(float(fps), 1.0)
    for index, thumb in enumerate(thumbs):
        timecode = FrameTimecode(index, rate)
        picture = np.ascontiguousarray(thumb[..., ::-1])
        for detector in detectors:
            cuts.update(cut.frame_num for cut in detector.process_frame(timecode, picture))
    last = FrameTimecode(max(0, len(thumbs) - 1), rate)
    for detector in detectors:
        cuts.update(cut.frame_num for cut in detector.post_process(last))
    borders = [0, *sorted(cut for cut in cuts if 0 < cut < len(thumbs)), len(thumbs)]
    return [(a, b) for a, b in itertools.pairwise(borders) if b > a]


def cut_windows(
    times: F64,
    shot: tuple[int, int],
    frames: int,
    fps: float,
    box: Box | None = None,
    comes: Comes | None = None,
) -> list[ClipSpan]:
    """Windows of ``frames`` distinct frames at ``fps`` that do not overlap, from a shot's start on.

    Frame k is the one nearest to ``start + k / fps``; a window whose nearest frames are not
    distinct, or lie more than half a period away, is not made. Each starts where the one before
    ends. With ``comes`` some start up to three quarters of a window later: of all such plans the
    one with the most windows in which nobody comes or goes (one in which somebody does counts a
    quarter), then with the fewest delays.
    """
    inside = times[shot[0] : shot[1]]
    reached: dict[int, _Plan] = {0: _Plan()}
    waiting, best = [0], _Plan()
    while waiting:
        first = heapq.heappop(waiting)
        plan = reached.pop(first)
        best = max(best, plan, key=lambda one: one.worth)
        for slides in range(SLIDES if comes else 1):
            start = _after(inside, first, slides * frames / fps / SLIDES, fps) if slides else first
            found = _place(inside, start, frames, fps, box)
            if found is None:
                break
            window, following = found
            longer = plan.then(window, slides, comes)
            if following not in reached:
                heapq.heappush(waiting, following)
            if following not in reached or longer.worth > reached[following].worth:
                reached[following] = longer
    return best.windows()


@dataclass(frozen=True)
class _Plan:
    """Windows up to some frame of a shot, as a chain, and what they are worth."""

    worth: float = 0.0
    last: ClipSpan | None = None
    before: _Plan | None = None

    def then(self, window: ClipSpan | None, slides: int, comes: Comes | None) -> _Plan:
        worth = self.worth - slides * _SLID
        if window is None:
            return _Plan(worth, self.last, self.before)
        steady = comes is None or not comes(window.start, window.end)
        return _Plan(worth + (_STEADY if steady else _PLACED), window, self)

    def windows(self) -> list[ClipSpan]:
        found: list[ClipSpan] = []
        plan: _Plan | None = self
        while plan is not None and plan.last is not None:
            found.append(plan.last)
            plan = plan.before
        return found[::-1]


def _place(
    inside: F64, first: int, frames: int, fps: float, box: Box | None
) -> tuple[ClipSpan | None, int] | None:
    """The window that starts at one frame, None if its frames are not good, and the first frame
    after it. None past the last."""
    if first >= len(inside):
        return None
    ideal = inside[first] + np.arange(frames) / fps
    if ideal[-1] > inside[-1] + 0.5 / fps:
        return None
    places = nearest(inside, ideal)
    near = np.abs(inside[places] - ideal) <= 0.5 / fps + 1e-6
    whole = bool(near.all() and (np.diff(places) > 0).all())
    window = ClipSpan(tuple(float(t) for t in inside[places]), box) if whole else None
    return window, max(int(places[-1]) + 1, _after(inside, first, frames / fps, fps))


def _after(inside: F64, first: int, seconds: float, fps: float) -> int:
    """The frame that lies so many seconds after another, by a quarter of a period less."""
    return int(np.searchsorted(inside, inside[first] + seconds - 0.25 / fps))


def why_no_window(times: F64, shots: list[tuple[int, int]], frames: int, fps: float) -> str:
    """Say what a video lacks for a window."""
    rate = (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else 0.0
    longest = max((b - a) / rate if rate else 0.0 for a, b in shots)
    needed = frames / fps
    if longest + 1e-3 < needed - 0.5 / fps:
        return f"the longest shot lasts {longest:.2f} s; a clip needs {needed:.2f} s"
    return f"{rate:.2f} frames/s in the video give no {frames} distinct frames at {fps:g} frames/s"
