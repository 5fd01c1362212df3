"""Animated pictures (GIF, APNG, WebP, AVIF) as videos: frames with alpha at an even rate.

Every frame is composed by its offset, blending and disposal. Delays that differ become frames
that are shown several times, so that time stays as it was drawn.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from layerflow.clip import U8
from layerflow.media.cells import MediaError
from layerflow.media.isolate import isolated
from layerflow.media.pictures import decoding, open_still
from pipelines.readers import apng
from pipelines.readers.pixels import frames_of, read_pixels, to_srgb

SUFFIXES = frozenset({".gif", ".png", ".apng", ".webp", ".avif"})
MAX_FRAMES = 10_000
UNSAID = 100  # milliseconds that viewers show a frame of which a file says 10 or less
FASTEST = 20  # milliseconds: of uneven delays, the finest step of time


@dataclass(frozen=True)
class Animation:
    """places: of each shown frame, in order at ``fps``, the stored frame (from 0)."""

    path: Path
    places: tuple[int, ...]
    fps: float
    size: tuple[int, int]


def is_animation(path: Path) -> bool:
    """Whether a file is a picture of several frames in time; False for what cannot be read."""
    if path.suffix.lower() not in SUFFIXES:
        return False
    try:
        return _frames(path) > 1
    except MediaError:
        return False


@isolated
def _frames(path: Path) -> int:
    with open_still(path) as image:
        return frames_of(image)


def open_animation(path: Path) -> Animation:
    """The frames of an animated picture and when they are shown. Raises MediaError."""
    return Animation(path, *_timing(path))


@isolated
def _timing(path: Path) -> tuple[tuple[int, ...], float, tuple[int, int]]:
    """What an ``Animation`` says beside its path."""
    with decoding(path) as image:
        count, size = frames_of(image), (image.height, image.width)
        if not 1 < count <= MAX_FRAMES:
            raise MediaError(f"{count} frames: an animation has 2 to {MAX_FRAMES}")
        if image.format == "PNG":
            delays = [part.delay for part in apng.read_parts(path)[2]]
        else:
            delays = [float(frame.info.get("duration") or 0) for frame in _each(image)]
    delays = [delay if delay > 10 else UNSAID for delay in delays]
    common = float(np.gcd.reduce(np.rint(delays).astype(int)))  # all delays are multiples of it
    step = delays[0] if len(set(delays)) == 1 else max(FASTEST, common)
    ends = np.cumsum(delays)
    if ends[-1] / step > MAX_FRAMES:
        raise MediaError(f"{ends[-1] / 1000:.0f} s at {1000 / step:g} frames/s are too many frames")
    shown = np.arange(0.5 * step, ends[-1], step)
    places = np.searchsorted(ends, shown, side="right")
    return tuple(int(place) for place in places), 1000.0 / float(step), size


@isolated
def read_animation(animation: Animation, chosen: Sequence[int]) -> U8:
    """Shown frames by number -> uint8 ``[N, H, W, 4]``, sRGB, colour as stored under alpha."""
    wanted = [animation.places[index] for index in chosen]
    found: dict[int, U8] = {}
    with decoding(animation.path) as image:
        profile = image.info.get("icc_profile")
        frames = (
            apng.composed(animation.path)
            if image.format == "PNG"
            else (read_pixels(frame, frame.copy).rgba for frame in _each(image))
        )
        for place, frame in enumerate(itertools.islice(frames, max(wanted) + 1)):
            if place in wanted:
                found[place] = to_srgb(frame, profile)
    if {frame.shape[:2] for frame in found.values()} != {animation.size}:
        raise MediaError("the frame size changes inside the animation")
    return np.stack([found[place] for place in wanted])


def _each(image: Image.Image) -> Iterator[Image.Image]:
    for place in range(frames_of(image)):
        image.seek(place)
        image.load()  # WebP and AVIF know their delays only then
        yield image
