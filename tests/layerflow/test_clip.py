"""Compositing and resizing of layers."""

from __future__ import annotations

import numpy as np
import pytest

from layerflow import clip as c


def random_clip(frames: int = 3, height: int = 24, width: int = 36) -> c.LayeredClip:
    rng = np.random.default_rng(0)
    shape = (frames, height, width)
    foreground, background = (rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for _ in range(2))
    alpha = rng.integers(0, 256, shape, dtype=np.uint8)
    return c.LayeredClip(foreground, alpha, background, c.composite(foreground, alpha, background))


def test_composite_rounds_the_exact_equation() -> None:
    clip = random_clip()
    a = clip.alpha[..., None] / 255.0
    exact = a * clip.foreground + (1 - a) * clip.background
    assert np.abs(clip.blended - exact).max() <= 0.5 + 1e-6


def test_composite_ends_are_exact() -> None:
    clip = random_clip()
    opaque, clear = np.full_like(clip.alpha, 255), np.zeros_like(clip.alpha)
    assert np.array_equal(c.composite(clip.foreground, opaque, clip.background), clip.foreground)
    assert np.array_equal(c.composite(clip.foreground, clear, clip.background), clip.background)


def test_on_grey_is_zero_where_transparent_and_colour_where_opaque() -> None:
    clip = random_clip()
    alpha = np.zeros_like(clip.alpha)
    alpha[:, :12] = 255
    grey = c.on_grey(clip.foreground, alpha)
    assert np.all(grey[:, 12:] == 0)
    assert np.allclose(grey[:, :12], clip.foreground[:, :12] / 127.5 - 1, atol=1e-6)


def test_float_round_trip_is_exact() -> None:
    values = np.arange(256, dtype=np.uint8)
    assert np.array_equal(c.from_float(c.to_float(values)), values)


def test_resizing_does_not_pull_hidden_colour_into_the_edge() -> None:
    height = width = 64
    foreground = np.zeros((1, height, width, 3), np.uint8)
    foreground[:, :, :30] = (200, 100, 50)
    foreground[:, :, 30:] = (0, 255, 0)  # hidden: alpha is 0 there
    alpha = np.zeros((1, height, width), np.uint8)
    alpha[:, :, :30] = 255
    background = np.zeros_like(foreground)
    blended = c.composite(foreground, alpha, background)
    small = c.resize_clip(c.LayeredClip(foreground, alpha, background, blended), 24, 24)
    edge = (small.alpha > 20) & (small.alpha < 235)
    assert edge.any()
    assert np.abs(small.foreground[edge].astype(int) - (200, 100, 50)).max() <= 2
    assert np.abs(small.recomposed().astype(int) - small.blended).max() <= 2


@pytest.mark.parametrize("size", [(48, 48), (30, 90), (120, 50)])
def test_cover_keeps_the_middle(size: tuple[int, int]) -> None:
    frames = np.zeros((1, 60, 80, 3), np.uint8)
    frames[:, 28:32, 38:42] = 255
    out = c.resize_cover(frames, *size)
    assert out.shape == (1, *size, 3)
    rows, columns = np.nonzero(out[0, ..., 0] > 100)
    assert abs(rows.mean() - (size[0] - 1) / 2) < 1.5
    assert abs(columns.mean() - (size[1] - 1) / 2) < 1.5


def test_wrong_clips_are_refused_with_the_reason() -> None:
    clip = random_clip()
    with pytest.raises(ValueError, match="background must be uint8"):
        c.LayeredClip(clip.foreground, clip.alpha, clip.background[:1], clip.blended)
    with pytest.raises(ValueError, match="unknown prompt"):
        c.LayeredClip(clip.foreground, clip.alpha, clip.background, clip.blended, {"alpha": "x"})
    with pytest.raises(ValueError, match="exactly 1 frame"):
        c.LayeredClip(clip.foreground, clip.alpha, clip.background, clip.blended, kind="image")
    with pytest.raises(ValueError, match="no layer"):
        clip.layer("shadow")
