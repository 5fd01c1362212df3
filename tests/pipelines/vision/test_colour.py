"""Straight foreground colour: exact where opaque, free of the background where soft."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.vision.colour import estimate_foreground, straight_foreground


def soft_square() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A red square with a 20-pixel soft edge on a blue ramp: image, alpha, background."""
    x = np.arange(100, dtype=np.float32)
    ramp = np.clip(np.minimum(x - 15, 85 - x) / 20, 0, 1)
    alpha = np.minimum.outer(ramp, ramp)
    front = np.float32([200, 40, 30])
    back = np.zeros((100, 100, 3), np.float32)
    back[...] = (20, 60, 220)
    back[..., 1] += x
    image = alpha[..., None] * front + (1 - alpha[..., None]) * back
    return np.rint(image).astype(np.uint8), alpha, back.astype(np.uint8)


@pytest.mark.parametrize("known", [True, False])
def test_soft_pixels_get_the_objects_own_colour(known: bool) -> None:
    image, alpha, back = soft_square()
    colour = estimate_foreground(image, alpha, back if known else None).astype(float)
    soft = (alpha > 0.1) & (alpha < 1)
    error = np.abs(colour - [200, 40, 30])[soft].mean()
    naive = np.abs(image - np.array([200.0, 40, 30]))[soft].mean()
    assert error < (3 if known else 6) < 0.2 * naive
    outside = alpha == 0
    assert np.abs(colour - [200, 40, 30])[outside].mean() < 8


def test_opaque_pixels_are_the_image() -> None:
    image, alpha, back = soft_square()
    noisy = np.random.default_rng(0).integers(0, 256, image.shape).astype(np.uint8)
    for background in (back, None):
        colour = estimate_foreground(noisy, alpha, background)
        assert np.array_equal(colour[alpha == 1], noisy[alpha == 1])


def test_layers_recompose_the_image() -> None:
    image, alpha, back = soft_square()
    colour = estimate_foreground(image, alpha, back)
    a = alpha[..., None]
    mixed = a * colour + (1 - a) * back
    assert np.abs(mixed - image).mean() < 0.6


def test_alpha_may_be_eight_bit_and_empty() -> None:
    image, alpha, _ = soft_square()
    eight = np.rint(alpha * 255).astype(np.uint8)
    same = estimate_foreground(image, eight / np.float32(255))
    assert np.array_equal(estimate_foreground(image, eight), same)
    nothing = estimate_foreground(image, np.zeros_like(eight))
    assert nothing.shape == image.shape and nothing.std() < 1


def test_a_clip_is_its_frames() -> None:
    image, alpha, back = soft_square()
    clip = straight_foreground(
        np.stack([image, image[::-1]]), np.stack([alpha, alpha[::-1]]), np.stack([back, back[::-1]])
    )
    assert np.array_equal(clip[0], estimate_foreground(image, alpha, back))
    assert np.array_equal(clip[1], estimate_foreground(image[::-1], alpha[::-1], back[::-1]))


def test_shapes_are_checked() -> None:
    image, alpha, back = soft_square()
    with pytest.raises(ValueError, match="does not fit"):
        straight_foreground(image[None], alpha[None, :50])
    with pytest.raises(ValueError, match="plate"):
        straight_foreground(image[None], alpha[None], back[None, :50])
    with pytest.raises(ValueError, match="uint8"):
        estimate_foreground(image.astype(np.float32), alpha)
