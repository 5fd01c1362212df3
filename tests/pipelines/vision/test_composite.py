"""Warping and compositing of pasted layers, and the match of their appearance."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from layerflow.clip import U8, composite
from pipelines.paste.appearance import (
    appearance_change,
    apply_curve,
    clipped,
    grain_level,
    lab_statistics,
    make_grain,
    match_curve,
)
from pipelines.vision.composite import (
    Sprite,
    compose,
    merge,
    prefilter,
    reduced,
    render,
    shrink_straight,
)
from pipelines.vision.path import Path

ONES = np.ones((96, 96), np.float32)


def disc(size: int = 64, colour: tuple[int, int, int] = (220, 40, 20), soft: float = 5.0) -> U8:
    """A soft disc; black where it is empty, as a premultiplying tool would leave it."""
    y, x = np.indices((size, size)) - (size - 1) / 2
    ramp = np.clip((size * 0.35 - np.hypot(y, x)) / soft + 0.5, 0, 1)
    rgba = np.zeros((size, size, 4), np.uint8)
    rgba[ramp > 0, :3] = colour
    rgba[..., 3] = np.rint(ramp * 255)
    return rgba


def background(frames: int = 4, height: int = 80, width: int = 100) -> U8:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def straight_path(frames: int, start: tuple[float, float], step: float, scale: float = 0.5) -> Path:
    poses = np.zeros((frames, 4))
    poses[:, 0] = start[0] + step * np.arange(frames)
    poses[:, 1], poses[:, 2] = start[1], scale
    return Path(poses, step, False)


def sprite(rgba: U8, path: Path, sigma: float = 0.0) -> Sprite:
    scale = float(path.poses[:, 2].max())
    small = reduced(rgba, scale)
    scale *= rgba.shape[1] / small.shape[1]
    return Sprite([prefilter(small, scale, sigma)], path, rgba.shape[:2])


def centroid(alpha: np.ndarray) -> np.ndarray:
    y, x = np.indices(alpha.shape)
    return np.array([(x * alpha).sum(), (y * alpha).sum()]) / alpha.sum()


def test_the_equation_holds_exactly_and_the_rest_is_the_background() -> None:
    behind = background()
    built = sprite(disc(), straight_path(4, (40.3, 38.7), 3.4))
    foreground, alpha, blended, visible = compose([built], behind, shutter=0.5)
    assert np.array_equal(blended, composite(foreground, alpha, behind))
    a = alpha[..., None] / 255.0
    exact = a * foreground + (1 - a) * behind
    assert np.abs(exact - blended).max() <= 0.5 + 1e-6
    assert np.array_equal(blended[alpha == 0], behind[alpha == 0])
    assert min(visible) > 0.99


def test_the_object_is_where_its_path_says_to_a_twentieth_of_a_pixel() -> None:
    path = straight_path(5, (38.25, 40.6), 1.37)
    _, alpha, _, _ = compose([sprite(disc(), path)], background(5))
    for t in range(5):
        assert np.abs(centroid(alpha[t].astype(float)) - path.poses[t, :2]).max() < 0.05


def test_size_and_mass_follow_the_scale() -> None:
    rgba = disc(200)
    mass = rgba[..., 3].sum() / 255
    for scale in (0.07, 0.2, 0.35):
        _, alpha, _, _ = compose(
            [sprite(rgba, straight_path(2, (50, 40), 0, scale))], background(2)
        )
        assert alpha[0].sum() / 255 == pytest.approx(mass * scale**2, rel=0.02)


def test_sub_pixel_motion_does_not_pulse() -> None:
    """Sharpness must not depend on the fraction of a pixel at which an object stands."""
    rng = np.random.default_rng(2)
    rgba = disc(240)
    fine = cv2.resize(rng.uniform(0, 255, (24, 24, 3)).astype(np.float32), (240, 240))
    rgba[..., :3] = fine.clip(0, 255)
    path = straight_path(8, (50.0, 40.0), 0.125, 0.25)
    foreground, alpha, _, _ = compose([sprite(rgba, path)], background(8))
    inner = alpha.min(axis=0) == 255
    energy = [cv2.Laplacian(f.astype(np.float32), cv2.CV_32F)[inner].std() for f in foreground]
    assert np.ptp(energy) / np.mean(energy) < 0.06


def test_no_dark_rim_from_the_black_around_a_cutout() -> None:
    foreground, alpha, _, _ = compose([sprite(disc(), straight_path(4, (45, 40), 2))], background())
    soft = (alpha > 20) & (alpha < 235)
    assert soft.sum() > 50
    assert np.abs(foreground[soft].astype(int) - (220, 40, 20)).max() <= 3


def test_the_colour_goes_on_smoothly_where_there_is_no_object() -> None:
    foreground, alpha, _, _ = compose([sprite(disc(), straight_path(4, (45, 40), 2))], background())
    assert np.abs(foreground[alpha == 0].astype(int) - (220, 40, 20)).max() <= 6


def test_motion_blur_widens_along_the_path_and_keeps_the_mass() -> None:
    path = straight_path(4, (40.0, 40.0), 8.0)
    built = sprite(disc(soft=1.0), path)
    crisp = compose([built], background())[1].astype(float)
    blurred = compose([built], background(), shutter=0.5)[1].astype(float)
    for t in (1, 2):
        assert blurred[t].sum() == pytest.approx(crisp[t].sum(), rel=0.01)
        assert np.abs(centroid(blurred[t]) - centroid(crisp[t])).max() < 0.1
    soft = [((a > 10) & (a < 245)).sum(axis=(1, 2)).mean() for a in (crisp, blurred)]
    assert soft[1] > 1.4 * soft[0]
    assert np.array_equal(compose([built], background())[1], crisp)


def test_what_leaves_the_picture_is_counted() -> None:
    _, _, _, visible = compose([sprite(disc(), straight_path(3, (-0.5, 40.0), 0.0))], background(3))
    assert min(visible) == pytest.approx(0.5, abs=0.02)
    gone = compose([sprite(disc(), straight_path(2, (-500.0, 40.0), 0.0))], background(2))
    assert gone[3] == [0.0, 0.0]
    assert not gone[1].any()


def test_objects_cover_each_other_back_to_front() -> None:
    red, blue = disc(soft=1.0), disc(colour=(10, 20, 230), soft=1.0)
    front = sprite(blue, straight_path(2, (52, 40), 0))
    back = sprite(red, straight_path(2, (44, 40), 0))
    foreground, alpha, blended, _ = compose([back, front], background(2))
    assert foreground[0, 40, 50].tolist() == [10, 20, 230]
    assert foreground[0, 40, 36].tolist() == [220, 40, 20]
    assert alpha[0, 40, 50] == 255
    assert np.array_equal(blended, composite(foreground, alpha, background(2)))


def test_merging_equals_the_over_operator() -> None:
    rng = np.random.default_rng(0)
    layers = []
    for _ in range(3):
        alpha = rng.uniform(0, 255, (9, 9, 1)).astype(np.float32)
        colour = rng.uniform(0, 255, (9, 9, 3)).astype(np.float32)
        layers.append(np.concatenate([colour * alpha / 255, alpha], axis=2))
    roi, merged = merge([((0, 9, 0, 9), layer) for layer in layers])
    expected = layers[0]
    for layer in layers[1:]:
        expected = layer + expected * (1 - layer[..., 3:] / 255)
    assert roi == (0, 9, 0, 9)
    assert np.abs(merged - expected).max() < 1e-3


def test_render_keeps_to_the_region_that_it_reports() -> None:
    ink = prefilter(disc(), 0.5)
    matrix = np.array([[[0.5, 0, 90.0], [0, 0.5, 70.0]]])
    (y0, y1, x0, x1), pixels = render(ink, matrix, (80, 100))
    assert (y1, x1) == (80, 100)
    assert pixels.shape == (y1 - y0, x1 - x0, 4)


def test_shrinking_keeps_colour_straight() -> None:
    small = shrink_straight(disc(200), 0.25)
    soft = small[..., 3] > 20
    assert np.abs(small[soft][:, :3].astype(int) - (220, 40, 20)).max() <= 2


def test_a_colour_match_goes_towards_the_background_as_far_as_told() -> None:
    rng = np.random.default_rng(0)
    warm = np.dstack([rng.normal(m, 12, (64, 64)) for m in (170, 120, 90)]).clip(0, 255)
    cold = np.dstack([rng.normal(m, 25, (64, 64)) for m in (60, 80, 120)]).clip(0, 255)
    ours, theirs = (
        lab_statistics(v.astype(np.uint8), np.ones((64, 64), np.float32)) for v in (warm, cold)
    )
    rgba = np.dstack([warm, np.full((64, 64), 255)]).astype(np.uint8)
    distances = []
    for strength in (0.0, 0.2, 0.4):
        changed = apply_curve(rgba, match_curve(ours, theirs, strength))
        mean, _ = lab_statistics(changed[..., :3], np.ones((64, 64), np.float32))
        distances.append(float(np.abs(mean - theirs[0]).sum()))
    assert distances[0] > distances[1] > distances[2] > 0.3 * distances[0]
    assert np.abs(apply_curve(rgba, match_curve(ours, theirs, 0.0)).astype(int) - rgba).max() <= 1


def test_clipping_is_counted_on_opaque_pixels() -> None:
    rgba = disc()
    assert clipped(rgba) == 0.0
    rgba[:32, :, 0] = 255
    assert clipped(rgba) == pytest.approx(0.5, abs=0.05)


def test_grain_is_measured_and_made_at_the_same_strength() -> None:
    rng = np.random.default_rng(0)
    flat = 120 + rng.normal(0, 4, (96, 96)).astype(np.float32)
    assert grain_level(flat, ONES) == pytest.approx(4, rel=0.1)
    assert grain_level(np.full((96, 96), 120, np.float32), ONES) == 0
    noise = make_grain(1, 2, (3, 200, 200), 4.0)
    assert noise.std() == pytest.approx(4, rel=0.05)
    assert np.array_equal(noise, make_grain(1, 2, (3, 200, 200), 4.0))
    assert not np.array_equal(noise[0], noise[1])


def picture(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(40, 220, (24, 24)).astype(np.float32)
    return cv2.resize(coarse, (96, 96), interpolation=cv2.INTER_NEAREST)


def test_texture_is_not_taken_for_grain() -> None:
    rng = np.random.default_rng(0)
    grass = np.full((192, 192), 100, np.float32)
    grass[:128] += rng.normal(0, 20, (128, 192)).astype(np.float32)
    grass[128:] += rng.normal(0, 1.5, (64, 192)).astype(np.float32)
    assert grain_level(grass, np.ones_like(grass)) == pytest.approx(1.5, rel=0.2)


def test_looks_say_what_they_do() -> None:
    rng = np.random.default_rng(0)
    film = (np.repeat(picture(3)[None, ..., None], 3, 3) + rng.normal(0, 4, (2, 96, 96, 3))).clip(
        0, 255
    )
    rgba = disc(96)
    rgba[..., :3] = picture(4)[..., None]
    near = (0, 96, 0, 96)
    film8 = film.astype(np.uint8)
    look = appearance_change(rgba, 1.0, film8, near, strength=0.5, blur=True, grain=True)
    assert look.curve is not None and look.strength == 0.5
    assert 1.0 < look.grain < 6.0
    off = appearance_change(rgba, 1.0, film8, near, strength=0.0, blur=False, grain=False)
    assert off.curve is None and off.sigma == 0.0 and off.grain == 0.0
