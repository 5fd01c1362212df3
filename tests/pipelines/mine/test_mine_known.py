"""What a mined clip knows of its background and of its foreground's colour."""

from __future__ import annotations

import numpy as np
import pytest

from layerflow.clip import BACKGROUND, FOREGROUND, composite
from layerflow.media.known import decode_known, known_of
from pipelines.mine.known import known_pixels
from pipelines.mine.record import known_cell
from pipelines.vision.colour import straight_foreground
from pipelines.vision.plate import clean_plate
from tests.support.matting_clips import backdrop_of, moving_disc
from tests.support.mined import with_layers


def test_what_another_frame_shows_is_known_and_what_was_filled_in_is_not() -> None:
    clip = moving_disc(count=8, pan=0.0, speed=4.0, radius=24, noise=0.0)
    window = with_layers(clip.frames, clip.alpha)
    cell = known_cell(window)
    assert cell is not None
    known = known_of(BACKGROUND, decode_known(cell))
    hole = window.plate.hole
    assert known[~hole].all()
    shown = (~hole).sum(0)  # a still camera: frames in which a place is free of the subject
    assert known[hole & (shown >= 3)].all() and not known[hole & (shown < 3)].any()
    error = np.abs(window.plate.background.astype(int) - clip.background).mean(-1)
    assert error[hole & known].mean() < 1 and error[hole & ~known].mean() > 8


def test_nothing_is_stored_where_nothing_was_made_up() -> None:
    clip = moving_disc(count=12, pan=0.0, speed=9.0, radius=12, noise=0.0)
    window = with_layers(clip.frames, clip.alpha)
    assert window.plate.kind == "filled"
    assert known_cell(window) is None


def test_a_backdrop_shows_what_the_window_does_not() -> None:
    clip = moving_disc(count=6, pan=0.0, speed=0.0, radius=20, noise=0.0)
    without = known_cell(with_layers(clip.frames, clip.alpha))
    assert without is not None
    assert not known_of(BACKGROUND, decode_known(without))[clip.alpha > 0].any()
    behind = backdrop_of(clip.background[0], 6)
    assert known_cell(with_layers(clip.frames, clip.alpha, behind)) is None


def test_a_soft_edge_is_known_by_the_background_behind_it_or_the_colour_beside_it() -> None:
    """A red square with a soft rim, half of it blue, on grey that no frame shows behind it."""
    alpha = np.zeros((4, 64, 64), np.uint8)
    alpha[:, 20:44, 20:44] = 128
    alpha[:, 24:40, 24:40] = 255
    colour = np.full((4, 64, 64, 3), (200, 40, 40), np.uint8)
    colour[:, :, 40:] = (40, 40, 200)
    grey = np.full_like(colour, 100)
    frames = composite(colour, alpha, grey)
    behind = backdrop_of(grey[0], 4)
    unseen, seen = clean_plate(frames, alpha), clean_plate(frames, alpha, backdrop=behind)
    assert unseen.unseen_fraction == 1 and seen.unseen_fraction == 0
    solved = straight_foreground(frames, alpha, unseen.background)
    soft = alpha == 128
    red, blue = soft.copy(), soft.copy()
    red[:, :, 40:], blue[:, :, :40] = False, False
    known = known_of(FOREGROUND, known_pixels(frames, solved, alpha, unseen))
    assert known[red].all() and not known[blue].any() and known[~soft].all()
    assert known_of(FOREGROUND, known_pixels(frames, solved, alpha, seen)).all()
    none = np.zeros_like(solved)  # with this colour the layers do not give the picture
    for plate in (unseen, seen):
        found = known_of(FOREGROUND, known_pixels(frames, none, alpha, plate))
        assert not found[soft].any() and found[~soft].all()


def test_parts_of_the_subject_that_the_matte_misses_are_no_known_background() -> None:
    clip = moving_disc(pan=0.0, speed=0.0, noise=0.0)
    upper = clip.alpha.copy()
    upper[:, 80:] = 0
    window = with_layers(clip.frames, upper, backdrop_of(clip.background[0], len(upper)))
    assert window.scores["leftover_fraction"] > 0.4
    cell = known_cell(window)
    assert cell is not None
    known = known_of(BACKGROUND, decode_known(cell))
    missed = (clip.alpha > 0.5) & ~window.plate.hole
    missed[:, 100:] = False  # the traces stop where the disc ends
    assert known[missed].mean() < 0.2
    assert known[clip.alpha == 0].mean() > 0.97


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_an_empty_and_a_full_matte_are_told_apart(value: float) -> None:
    clip = moving_disc(count=4)
    plate = clean_plate(clip.frames, np.full_like(clip.alpha, value))
    alpha = np.full(clip.alpha.shape, round(value * 255), np.uint8)
    known = known_pixels(clip.frames, clip.frames, alpha, plate)
    assert known_of(FOREGROUND, known).all()
    assert known_of(BACKGROUND, known).all() == (value == 0)
