"""Procedural pictures with exact layers: backgrounds, patterned blobs, cut-outs.

Everything is a function of a ``numpy.random.Generator``; nothing here touches the disk. Colours
are float32 RGB in [0, 1], alpha is float32 in [0, 1].

A *look* is what a subject's colours and edge are drawn from:

- ``cool``: teal to blue with a pale or dark second colour, crisp edge. The backgrounds have every
  hue, these too, so that no colour threshold cuts such a subject out; its hard pattern and its
  motion do.
- ``varied``: the same with any hue.
- ``warm``: checks of red to orange with a pale or dark second colour and a soft edge: an appearance
  that ``cool`` never shows, and as hard to cut out by colour alone.
- ``neutral``: greys and browns with a soft edge: moving clips that do not fight another look.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
Generator = np.random.Generator

LOOKS = ("cool", "varied", "warm", "neutral")
PATTERNS = ("stripes", "checks", "rings")
HUE_RANGES = {"cool": (0.5, 0.68), "varied": (0.0, 1.0), "warm": (-0.04, 0.12)}
"""Of a subject's vivid colour, as a share of the colour circle. ``neutral`` has none."""
HUES = ("red", "orange", "yellow", "green", "teal", "blue", "violet", "pink")


@dataclass(frozen=True)
class Subject:
    """One patterned blob: its outline, pattern and colours, independent of place and size.

    The outline is ``r(a) = R * (1 + bend2*cos(2(a-turn2)) + bend3*cos(3(a-turn3)))``.
    """

    pattern: str
    colours: tuple[tuple[float, float, float], tuple[float, float, float]]
    period: float  # of the pattern, as a share of the radius
    bend2: float
    bend3: float
    turn2: float
    turn3: float
    softness: float  # width of the alpha ramp as a share of the radius; 0 is one pixel
    name: str

    @property
    def reach(self) -> float:
        """The largest distance of the outline from the centre, in radii."""
        return 1.0 + abs(self.bend2) + abs(self.bend3) + self.softness / 2


def smooth_noise(rng: Generator, height: int, width: int, cell: float, channels: int) -> F32:
    """Cubic-interpolated white noise of about unit variance, ``[H, W, channels]``."""
    rows, columns = int(height / cell) + 4, int(width / cell) + 4
    coarse = rng.standard_normal((rows, columns, channels)).astype(np.float32)
    size = (max(width, round(columns * cell)), max(height, round(rows * cell)))
    fine = cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC)
    fine = fine.reshape(size[1], size[0], channels)
    y = int(rng.integers(0, fine.shape[0] - height + 1))
    x = int(rng.integers(0, fine.shape[1] - width + 1))
    return fine[y : y + height, x : x + width]


def background(
    rng: Generator, height: int, width: int, *, chroma: float = 0.5, detail: float = 0.0
) -> F32:
    """Two octaves of smooth colour noise around a random colour, ``[H, W, 3]`` in [0, 1].

    ``chroma`` scales the colour part against the brightness part; ``detail`` adds two fine
    octaves of brightness, which registration of a moving camera needs.
    """
    side = min(height, width)
    layers = 0.7 * smooth_noise(rng, height, width, 0.5 * side, 3)
    layers = layers + 0.45 * smooth_noise(rng, height, width, 0.2 * side, 3)
    base = 0.8 * rng.standard_normal(3).astype(np.float32)
    mixed = layers + base
    brightness = 0.5 + 0.14 * mixed[..., :1]
    if detail:
        fine = smooth_noise(rng, height, width, side / 20, 1)
        finer = smooth_noise(rng, height, width, side / 60, 1)
        brightness = brightness + detail * (0.08 * fine + 0.08 * finer)
    colour = 0.24 * chroma * mixed[..., 1:]
    red, blue = colour[..., :1], colour[..., 1:]
    return np.clip(
        np.concatenate([brightness + red, brightness - 0.5 * (red + blue), brightness + blue], 2),
        0,
        1,
    ).astype(np.float32)


def _hsv(hue: float, saturation: float, value: float) -> tuple[float, float, float]:
    return colorsys.hsv_to_rgb(hue % 1.0, saturation, value)


def _hue_name(hue: float) -> str:
    edges = (0.03, 0.11, 0.2, 0.42, 0.55, 0.7, 0.83, 0.95)
    return next((n for n, edge in zip(HUES, edges, strict=True) if hue % 1.0 < edge), HUES[0])


def draw_subject(rng: Generator, look: str, *, softness: float | None = None) -> Subject:
    """A random subject of a look. ``softness`` replaces the look's own edge width."""
    if look not in LOOKS:
        raise ValueError(f"look must be one of {LOOKS}, not {look!r}")
    pattern = PATTERNS[int(rng.integers(len(PATTERNS)))]
    soft = 0.0
    if look in HUE_RANGES:
        hue = float(rng.uniform(*HUE_RANGES[look]))
        vivid = _hsv(hue, rng.uniform(0.6, 1.0), rng.uniform(0.6, 1.0))
        dark = rng.random() < 0.5
        other = _hsv(rng.random(), rng.uniform(0.0, 0.35), rng.uniform(0.02, 0.2) if dark else 1.0)
        name = _hue_name(hue)
        if look == "warm":
            pattern, name, soft = "checks", "warm", rng.uniform(0.2, 0.35)
    else:
        vivid = _hsv(rng.uniform(0.05, 0.12), rng.uniform(0.0, 0.25), rng.uniform(0.65, 0.95))
        other = _hsv(rng.uniform(0.05, 0.12), rng.uniform(0.0, 0.25), rng.uniform(0.1, 0.3))
        name, soft = "grey", rng.uniform(0.2, 0.35)
    colours = (vivid, other) if rng.random() < 0.5 else (other, vivid)
    return Subject(
        pattern=pattern,
        colours=colours,
        period=float(rng.uniform(0.7, 1.1)),
        bend2=float(rng.uniform(0.0, 0.2)),
        bend3=float(rng.uniform(0.0, 0.16)),
        turn2=float(rng.uniform(0, np.pi)),
        turn3=float(rng.uniform(0, np.pi)),
        softness=float(soft if softness is None else softness),
        name=f"{name} {pattern}",
    )


_WAVES: dict[str, Callable[[F32, F32, F32], F32]] = {
    "stripes": lambda u, v, radius: np.sin(u),
    "checks": lambda u, v, radius: np.sin(u) * np.sin(v),
    "rings": lambda u, v, radius: np.sin(radius),
}


def render_subject(
    subject: Subject,
    height: int,
    width: int,
    *,
    centre: tuple[float, float],
    radius: float,
    angle: float = 0.0,
    breath: float = 0.0,
) -> tuple[F32, F32]:
    """The subject's colour ``[H, W, 3]`` (defined everywhere) and alpha ``[H, W]``.

    ``centre`` is (y, x) and ``radius`` is in pixels, ``angle`` in radians; ``breath`` (about
    -1..1) deforms the outline.
    """
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    y, x = y + 0.5 - centre[0], x + 0.5 - centre[1]
    cos, sin = np.cos(angle), np.sin(angle)
    u, v = (cos * x + sin * y) / radius, (-sin * x + cos * y) / radius
    distance, azimuth = np.hypot(u, v), np.arctan2(v, u)
    outline = 1.0 + (subject.bend2 * (1 + 0.5 * breath)) * np.cos(
        2 * (azimuth - subject.turn2 - 0.3 * breath)
    )
    outline = outline + subject.bend3 * np.cos(3 * (azimuth - subject.turn3 + 0.3 * breath))
    ramp = max(subject.softness, 1.0 / radius)
    alpha = np.clip(0.5 + (outline - distance) / ramp, 0, 1)
    step = 2 * np.pi / subject.period
    wave = _WAVES[subject.pattern](u * step, v * step, distance * step)
    mix = (0.5 + 0.5 * np.tanh(4.0 * wave))[..., None]
    first, second = (np.asarray(c, np.float32) for c in subject.colours)
    colour = mix * first + (1 - mix) * second
    return colour.astype(np.float32), alpha.astype(np.float32)


def cutout(subject: Subject, size: int, angle: float = 0.0) -> tuple[F32, F32]:
    """The subject alone, as large as fits ``size x size``: colour and alpha."""
    radius, middle = 0.48 * size / subject.reach, (size / 2, size / 2)
    return render_subject(subject, size, size, centre=middle, radius=radius, angle=angle)


def to_u8(image: F32) -> NDArray[np.uint8]:
    """Float in [0, 1] -> uint8, rounded to nearest."""
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
