"""Counter-based draws: every random number is a function of (seed, index, purpose, attempt)."""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from layerflow.media.cells import MediaError


def generator(seed: int, index: int, purpose: str, attempt: int = 0) -> np.random.Generator:
    """A generator of its own for one purpose; no state is carried between calls."""
    digest = hashlib.sha256(f"{seed}/{index}/{purpose}/{attempt}".encode()).digest()
    key = np.frombuffer(digest[:16], "<u8")
    return np.random.Generator(np.random.Philox(key=key))


@lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, purpose: str, size: int) -> NDArray[np.int64]:
    """A permutation of ``range(size)``, cached."""
    return generator(seed, epoch, purpose).permutation(size)


def in_blocks(seed: int, index: int, count: int, size: int) -> int:
    """Which of ``size`` things draw ``index`` of ``count`` takes: equal shares, in blocks.

    Neighbouring draws share a thing, so that it is loaded once a block; uses differ by at most 1.
    """
    order = permutation(seed, 0, "blocks", size)
    return int(order[index * size // count if count >= size else index])


def first_of_block(index: int, count: int, size: int) -> bool:
    """Whether draw ``index`` is the first that takes its thing under ``in_blocks``."""
    if count <= size or index == 0:
        return True
    return index * size // count != (index - 1) * size // count


def in_turns(seed: int, index: int, size: int) -> int:
    """Which of ``size`` things draw ``index`` takes: a new permutation every ``size`` draws."""
    epoch, place = divmod(index, size)
    return int(permutation(seed, epoch, "turns", size)[place])


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """Between low and high, both positive, even on a log scale."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


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
