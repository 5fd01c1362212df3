"""Which frames of a source a clip of another frame rate takes."""

from __future__ import annotations

import numpy as np

from layerflow.media.opening import MediaError


def evenly(count: int, limit: int) -> list[int]:
    """At most ``limit`` indices of ``count``, evenly spread, the first and last included."""
    if count <= limit:
        return list(range(count))
    return sorted({round(i) for i in np.linspace(0, count - 1, max(1, limit))})


def frames_needed(available: int, source_fps: float, frames: int, fps: float) -> int:
    """How many frames of a source a clip spans. MediaError when they are not there, or not
    distinct.
    """
    step = source_fps / fps
    if step < 0.98:
        raise MediaError(f"{source_fps:g} frames/s gives no distinct frames at {fps:g} frames/s")
    needed = round((frames - 1) * step) + 1
    if needed > available:
        raise MediaError(f"has {available} frames; a clip needs {needed}")
    return needed


def choose_frames(
    available: int, source_fps: float, frames: int, fps: float, rng: np.random.Generator
) -> list[int]:
    """Indices of ``frames`` distinct frames at ``fps`` out of a source, from a drawn start.

    Raises MediaError as ``frames_needed``.
    """
    needed = frames_needed(available, source_fps, frames, fps)
    start = int(rng.integers(available - needed + 1))
    return [start + round(k * source_fps / fps) for k in range(frames)]
