"""What a foreground casts on the background, as a layer of its own."""

from __future__ import annotations

import numpy as np
import pytest

from layerflow.clip import composite
from layerflow.media.effects import effects_of


@pytest.mark.parametrize(
    ("plate", "background", "colour", "alpha"),
    [
        ((200, 100, 60), (150, 75, 45), (0, 0, 0), 64),  # a quarter of the light is gone
        ((200, 100, 60), (203, 98, 62), (0, 0, 0), 0),  # what coding changes
        ((100, 100, 100), (140, 90, 100), (255, 61, 100), 66),  # 40 of 155 up: ceil(65.8)
        ((100, 100, 0), (100, 50, 0), (100, 0, 0), 128),  # green goes: half of it is room enough
        ((0, 0, 0), (255, 0, 0), (255, 0, 0), 255),
    ],
)
def test_effects_are_solved_as_by_hand(
    plate: tuple[int, ...], background: tuple[int, ...], colour: tuple[int, ...], alpha: int
) -> None:
    frames = (np.array(c, np.uint8).reshape(1, 1, 1, 3) for c in (plate, background))
    found, matte = effects_of(*frames)
    assert matte.item() == alpha
    assert np.abs(found.ravel().astype(int) - colour).max() <= 1


def test_effects_over_the_plate_give_the_background() -> None:
    rng = np.random.default_rng(3)
    plate, background = rng.integers(0, 256, (2, 2, 64, 64, 3), dtype=np.uint8)
    near = np.clip(plate[1:].astype(int) + rng.integers(-30, 31, (64, 64, 3)), 0, 255)
    shade = np.rint(plate[:1] * rng.uniform(0.3, 1, (64, 64, 1)))
    background = np.concatenate([background, near, shade]).astype(np.uint8)
    plate = np.concatenate([plate, plate[1:], plate[:1]])
    colour, alpha = effects_of(plate, background)
    apart = np.abs(composite(colour, alpha, plate).astype(int) - background)
    assert apart.max() <= 4
    assert apart.mean() < 0.7
    assert (colour[3] == 0).all()  # shade alone is black
