"""Shots and windows: where a video is cut, and which frames make a clip."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from layerflow.clip import U8
from layerflow.media.video import F64, Box, nearest

MIN_SHOT_FRAMES = 4


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
    times: F64, shot: tuple[int, int], frames: int, fps: float, box: Box | None = None
) -> list[ClipSpan]:
    """Windows of ``frames`` distinct frames at ``fps`` that start at the shot's first frame.

    They do not overlap. Frame k is the one nearest to ``start + k / fps``; a window whose
    nearest frames are not distinct, or lie more than half a period away, is not made.
    """
    inside = times[shot[0] : shot[1]]
    windows: list[ClipSpan] = []
    first = 0
    while first < len(inside):
        ideal = inside[first] + np.arange(frames) / fps
        if ideal[-1] > inside[-1] + 0.5 / fps:
            break
        places = nearest(inside, ideal)
        near = np.abs(inside[places] - ideal) <= 0.5 / fps + 1e-6
        if near.all() and (np.diff(places) > 0).all():
            windows.append(ClipSpan(tuple(float(t) for t in inside[places]), box))
        following = np.searchsorted(inside, inside[first] + frames / fps - 0.25 / fps)
        first = max(int(places[-1]) + 1, int(following))
    return windows


def why_no_window(times: F64, shots: list[tuple[int, int]], frames: int, fps: float) -> str:
    """Say what a video lacks for a window."""
    rate = (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else 0.0
    longest = max((b - a) / rate if rate else 0.0 for a, b in shots)
    needed = frames / fps
    if longest + 1e-3 < needed - 0.5 / fps:
        return f"the longest shot lasts {longest:.2f} s; a clip needs {needed:.2f} s"
    return f"{rate:.2f} frames/s in the video give no {frames} distinct frames at {fps:g} frames/s"
