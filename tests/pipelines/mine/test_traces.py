"""Shadows and leftovers of a subject in the background beside it."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from layerflow.media.cells import decode_color
from pipelines.mine.record import shadow_cells
from pipelines.mine.traces import find_traces
from pipelines.vision.plate import clean_plate
from tests.support.matting_clips import Truth, backdrop_of, moving_disc
from tests.support.mined import with_layers


def beside(clip: Truth, *, shade: float | None, glow: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The clip with an ellipse below the disc that darkens or tints: frames, mask [T, H, W]."""
    frames, masks = [], []
    for frame, alpha in zip(clip.frames, clip.alpha, strict=True):
        rows, columns = np.nonzero(alpha > 0.5)
        mask = np.zeros(alpha.shape, np.uint8)
        centre = (round(columns.mean()), int(rows.max()) + 4)
        cv2.ellipse(mask, centre, (26, 12), 0, 0, 360, 1, -1)
        inside = ((mask > 0) & (alpha == 0))[..., None]
        changed = frame.astype(np.float32) * (1 if shade is None else shade)
        changed += np.float32([0, 0, glow])
        frames.append(np.where(inside, np.clip(changed, 0, 255), frame).astype(np.uint8))
        masks.append(inside[..., 0])
    return np.stack(frames), np.stack(masks)


def levels(clip: Truth) -> np.ndarray:
    return np.rint(clip.alpha * 255).astype(np.uint8)


@pytest.mark.parametrize("pan", [0.0, 2.0])
def test_a_shadow_is_found_where_it_is(pan: float) -> None:
    clip = moving_disc(pan=pan, speed=7.0)
    frames, shadow = beside(clip, shade=0.6)
    plate = clean_plate(frames, levels(clip))
    found = find_traces(frames, levels(clip), plate)
    assert found.found and found.shadow_fraction > 0.1
    assert found.leftover_fraction < 0.02
    visible = shadow & ~plate.hole
    assert (found.mask & visible).sum() > 0.7 * visible.sum()
    assert (found.mask & ~shadow).sum() < 0.35 * found.mask.sum()

    cover = np.where(found.mask, np.uint8(255), levels(clip))
    clean = clean_plate(frames, cover, registration=plate.registration)
    error = [np.abs(b.background[visible].astype(int) - clip.background[visible]).mean()
             for b in (plate, clean)]  # fmt: skip
    assert error[1] < 0.35 * error[0]


def test_a_tinted_patch_is_a_leftover() -> None:
    clip = moving_disc(pan=0.0, speed=7.0)
    frames, _ = beside(clip, shade=None, glow=60)
    found = find_traces(frames, levels(clip), clean_plate(frames, levels(clip)))
    assert found.leftover_fraction > 0.1 and found.shadow_fraction < 0.02


@pytest.mark.parametrize("pan", [0.0, 2.0])
def test_without_one_nothing_is_found(pan: float) -> None:
    clip = moving_disc(pan=pan, speed=7.0)
    found = find_traces(clip.frames, levels(clip), clean_plate(clip.frames, levels(clip)))
    assert not found.found and found.shadow_fraction + found.leftover_fraction < 0.01


def test_what_stands_still_beside_the_matte_shows_before_the_backdrop() -> None:
    clip = moving_disc(pan=0.0, speed=0.0)
    upper = levels(clip)
    upper[:, 80:] = 0  # the lower half of the disc is missed, and never moves
    assert not find_traces(clip.frames, upper, clean_plate(clip.frames, upper)).found
    behind = backdrop_of(clip.background[0], len(upper))
    found = find_traces(clip.frames, upper, clean_plate(clip.frames, upper, backdrop=behind))
    assert found.leftover_fraction > 0.4 and found.bystander_fraction == 0
    whole = find_traces(
        clip.frames, levels(clip), clean_plate(clip.frames, levels(clip), backdrop=behind)
    )
    assert not whole.found


def test_who_else_stands_before_the_backdrop_is_a_bystander() -> None:
    clip = moving_disc(pan=0.0, speed=3.0, radius=24)
    frames = clip.frames.copy()
    frames[:, 120:150, 200:225] = (30, 60, 200)
    behind = backdrop_of(clip.background[0], len(frames))
    plate = clean_plate(frames, levels(clip), backdrop=behind)
    found = find_traces(frames, levels(clip), plate)
    assert found.bystander_fraction == pytest.approx(750 / (np.pi * 24**2), abs=0.15)
    assert found.leftover_fraction < 0.02
    other = np.zeros(levels(clip).shape, np.uint8)
    other[:, 120:150, 200:225] = 255  # it has a clip of its own
    assert find_traces(frames, levels(clip), plate, other).bystander_fraction == 0
    alone = find_traces(clip.frames, levels(clip), plate)
    assert alone.bystander_fraction == 0
    unknown = find_traces(frames, levels(clip), clean_plate(frames, levels(clip)))
    assert unknown.bystander_fraction is None


def test_an_empty_or_full_matte_has_no_traces() -> None:
    clip = moving_disc(count=4)
    for value in (0, 255):
        alpha = np.full_like(levels(clip), value)
        found = find_traces(clip.frames, alpha, clean_plate(clip.frames, alpha))
        assert not found.mask.any() and not found.found


def test_a_mined_row_says_who_owns_the_shadow_and_has_the_background_without_it() -> None:
    clip = moving_disc(pan=0.0, speed=7.0)
    frames, shadow = beside(clip, shade=0.6)
    for video, owner in ((frames, "background"), (clip.frames, "none")):
        window = with_layers(video, clip.alpha)
        cells = shadow_cells(window)
        assert cells["shadow"] == owner and (cells["plate"] is None) == (owner == "none")
        if owner == "background":
            plate = decode_color(cells["plate"]).astype(int)
            visible = shadow & ~window.plate.hole
            error = np.abs(plate[visible] - clip.background[visible]).mean()
            kept = np.abs(video[visible].astype(int) - clip.background[visible]).mean()
            assert error < 0.4 * kept
