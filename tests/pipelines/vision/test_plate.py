"""The clean plate: original pixels outside the hole, the true background inside it."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.mine.prune import without_background
from pipelines.vision.plate import clean_plate
from tests.support.matting_clips import backdrop_of, moving_disc


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(1e-9, ((a.astype(float) - b) ** 2).mean())))


@pytest.mark.parametrize("pan", [0.0, 3.0])
def test_the_background_behind_a_mover_is_recovered(pan: float) -> None:
    clip = moving_disc(count=12, pan=pan, speed=9.0, radius=22)
    plate = clean_plate(clip.frames, clip.alpha)
    outside = ~plate.hole
    assert np.array_equal(plate.background[outside], clip.frames[outside])
    inside = (clip.alpha > 0.5) & plate.seen
    assert inside.sum() > 0.9 * (clip.alpha > 0.5).sum()
    assert psnr(plate.background[inside], clip.background[inside]) > 34
    assert plate.kind == ("filled" if plate.unseen_fraction == 0 else "inpainted")


def test_what_was_never_seen_is_inpainted_alike_in_all_frames() -> None:
    clip = moving_disc(count=6, pan=0.0, speed=0.0, radius=20, noise=0.0)
    plate = clean_plate(clip.frames, clip.alpha)
    assert plate.kind == "inpainted" and plate.unseen_fraction == 1.0
    assert not plate.seen[plate.hole].any() and plate.seen[~plate.hole].all()
    still = np.ptp(plate.background.astype(int), axis=0)
    assert still.max() <= 1
    hole = plate.hole[0]
    naive = np.abs(clip.frames[0].astype(float) - clip.background[0])[hole].mean()
    filled = np.abs(plate.background[0].astype(float) - clip.background[0])[hole].mean()
    assert filled < 0.6 * naive


def test_brightness_drift_leaves_no_patch() -> None:
    clip = moving_disc(count=10, pan=0.0, speed=9.0, radius=20, noise=0.0)
    drift = np.linspace(0.8, 1.1, 10)[:, None, None, None]
    frames = np.clip(np.rint(clip.frames * drift), 0, 255).astype(np.uint8)
    truth = np.clip(np.rint(clip.background * drift), 0, 255)
    plate = clean_plate(frames, clip.alpha)
    inside = (clip.alpha > 0.5) & plate.seen
    assert np.abs(plate.background.astype(float) - truth)[inside].mean() < 2.5


def test_an_empty_matte_changes_nothing() -> None:
    clip = moving_disc(count=3)
    plate = clean_plate(clip.frames, np.zeros_like(clip.alpha))
    assert np.array_equal(plate.background, clip.frames)
    assert plate.kind == "real" and plate.unseen_fraction == 0 and plate.seen.all()


def test_a_full_matte_and_a_single_frame_do_not_fail() -> None:
    clip = moving_disc(count=3)
    full = clean_plate(clip.frames, np.full(clip.alpha.shape, 255, np.uint8))
    assert full.unseen_fraction == 1.0 and full.background.shape == clip.frames.shape
    one = clean_plate(clip.frames[:1], clip.alpha[:1])
    assert one.kind == "inpainted"
    assert np.array_equal(one.background[~one.hole], clip.frames[:1][~one.hole])


def test_shapes_are_checked() -> None:
    clip = moving_disc(count=2)
    with pytest.raises(ValueError, match="does not fit"):
        clean_plate(clip.frames, clip.alpha[:1])


def test_what_the_backdrop_shows_is_not_invented() -> None:
    clip = moving_disc(count=6, pan=0.0, speed=0.0, radius=20)
    behind = backdrop_of(clip.background[0], 6)
    plate = clean_plate(clip.frames, clip.alpha, backdrop=behind)
    assert plate.kind == "filled" and plate.unseen_fraction == 0
    assert psnr(plate.background[plate.hole], clip.background[plate.hole]) > 34
    assert np.array_equal(plate.background[~plate.hole], clip.frames[~plate.hole])
    behind.known[:] = False
    assert clean_plate(clip.frames, clip.alpha, backdrop=behind).unseen_fraction == 1


def test_the_backdrop_overrules_what_the_clip_shows_of_an_unmatted_subject() -> None:
    clip = moving_disc(count=8, pan=0.0, speed=6.0, radius=20)
    matte = clip.alpha.copy()
    matte[::2] = 0  # it is missed in every other frame
    behind = backdrop_of(clip.background[0], 8)
    plates = [clean_plate(clip.frames, matte, backdrop=b) for b in (None, behind)]
    hole = plates[1].hole
    error = [np.abs(p.background[hole].astype(int) - clip.background[hole]).mean() for p in plates]
    assert error[1] < 3 and error[1] < 0.3 * error[0]


def test_a_piece_of_background_is_taken_out_of_the_matte() -> None:
    clip = moving_disc(count=8, pan=0.0, speed=9.0, radius=16)
    true = np.rint(clip.alpha * 255).astype(np.uint8)
    wrong = true.copy()
    wrong[5:7, 5:35, 10:50] = 255
    cleaned, changed = without_background(clip.frames, wrong, clean_plate(clip.frames, wrong))
    assert changed and np.array_equal(cleaned, true)
    again, changed = without_background(clip.frames, true, clean_plate(clip.frames, true))
    assert not changed and np.array_equal(again, true)
