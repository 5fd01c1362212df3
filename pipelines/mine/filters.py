"""Steps before matting, from the cheapest on: duplicates, the frames and what they show."""

from __future__ import annotations

from pipelines.engine.steps import Refused
from pipelines.gates import judge
from pipelines.mine import score
from pipelines.mine.window import Window


def refuse_duplicate(window: Window) -> None:
    """Refuse a window that nearly repeats one of an earlier input, or a clip of a corpus."""
    if window.twin is None:
        return
    twin, distance = window.twin
    window.scores["duplicate_distance"] = distance
    if judge(window.scores, window.video.gate) is not None:
        raise Refused("duplicates", f"nearly the same as {twin}")


def read_frames(window: Window) -> None:
    """Decode the frames at the clip's size, without black bars."""
    window.frames = window.fetch(window.video.path)


def score_frames(window: Window) -> None:
    """Score what needs no matte: motion, blur, exposure, burnt-in text."""
    window.flows = score.neighbour_flows(window.frames)
    window.scores |= score.score_frames(window.frames, window.flows)


def filter_frames(window: Window) -> None:
    """Refuse what cannot pass the quality gate by these scores alone."""
    window.refuse_by_gate("filters")
