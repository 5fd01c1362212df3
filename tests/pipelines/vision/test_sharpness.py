"""The sharpness match against known truth: widths of edges that are measured another way."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from layerflow.clip import F32, U8
from pipelines.paste.appearance import appearance_change
from pipelines.vision.composite import LENS, Sprite, compose, prefilter, reduced
from pipelines.vision.path import Path
from pipelines.vision.sharpness import SOFTEST, defocus, softness

HEIGHT, WIDTH = 400, 560


def patches(seed: int, height: int = HEIGHT, width: int = WIDTH, side: int = 30) -> U8:
    """Turned squares of flat colour: hard edges in all directions, none of them a line."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(20, 236, (2 + 2 * height // side, 2 + 2 * width // side, 3))
    matrix = cv2.getRotationMatrix2D((10.0, 10.0), 20.0, float(side))
    return cv2.warpAffine(
        coarse.astype(np.uint8), matrix, (width, height),
        flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_REFLECT,
    )  # fmt: skip


def grey(rgb: U8) -> F32:
    return cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY).astype(np.float32)


def blurred(rgb: U8, sigma: float) -> U8:
    return cv2.GaussianBlur(rgb, (0, 0), sigma) if sigma else rgb


def measured(rgb: U8, noise: float = 0.0) -> float:
    found = softness([grey(rgb)], [np.ones(rgb.shape[:2], np.float32)], noise)
    assert found is not None
    return found


def width_10_90(profile: np.ndarray) -> float:
    """Pixels from 10 to 90 % of a rising step: float ``[n]``."""
    low, high = profile[:3].mean(), profile[-3:].mean()
    share = (profile - low) / (high - low)
    x = np.arange(len(profile))
    return float(np.interp(0.9, share, x) - np.interp(0.1, share, x))


def cutout() -> U8:
    """A square of patches, 400 pixels, with one black and white step across its middle rows."""
    rgba = np.zeros((440, 440, 4), np.uint8)
    inner = rgba[20:420, 20:420]
    inner[..., :3] = patches(5, 400, 400, 50)
    inner[150:250, :200, :3], inner[150:250, 200:, :3] = 30, 220
    inner[..., 3] = 255
    return rgba


def pasted(behind: U8) -> tuple[float, float, float]:
    """Blur that was chosen, 10-90 % widths of the step inside the object and of its outline."""
    rgba, scale = cutout(), 0.5
    look = appearance_change(
        rgba, scale, behind, (0, HEIGHT, 0, WIDTH), strength=0.0, blur=True, grain=False
    )
    poses = np.tile([WIDTH / 2 - 0.5, HEIGHT / 2 - 0.5, scale, 0.0], (len(behind), 1))
    small = reduced(rgba, scale)
    ink = prefilter(small, scale * rgba.shape[1] / small.shape[1], look.sigma)
    sprite = Sprite([ink], Path(poses, 0.0, False), rgba.shape[:2])
    _, alpha, blended, _ = compose([sprite], behind)
    rows, half = slice(HEIGHT // 2 - 10, HEIGHT // 2 + 10), WIDTH // 2
    inside = grey(blended[0])[rows, half - 16 : half + 16].mean(axis=0)
    left = half - 100
    outline = alpha[0, rows, left - 16 : left + 16].mean(axis=0)
    return look.sigma, width_10_90(inside), width_10_90(outline)


@pytest.mark.parametrize("sigma", [1.0, 1.5, 2.0, 2.5])
def test_a_sharp_object_gets_the_edges_of_a_blurred_background(sigma: float) -> None:
    behind = np.repeat(blurred(patches(1), sigma)[None], 3, 0)
    _, inside, outline = pasted(behind)
    expected = 2.563 * sigma  # 10-90 % width of a step under a Gaussian
    assert inside == pytest.approx(expected, rel=0.12)
    assert outline == pytest.approx(expected, rel=0.12)


def test_nothing_is_blurred_before_a_sharp_background() -> None:
    chosen, inside, outline = pasted(np.repeat(patches(1)[None], 3, 0))
    assert chosen == 0.0
    assert max(inside, outline) < 2.563 * 0.65


def test_a_sharp_background_with_little_in_it_is_sharp() -> None:
    """A wall in soft light with a picture hanging on it."""
    y, x = np.indices((HEIGHT, WIDTH))
    wall = np.repeat((150 + 40 * np.sin(x / 90) + y / 12)[..., None], 3, 2).astype(np.uint8)
    assert pasted(np.repeat(wall[None], 3, 0))[0] == 0.0  # no edge: nothing is known of it
    wall[40:90, 250:320] = 60
    assert pasted(np.repeat(wall[None], 3, 0))[0] == 0.0
    assert pasted(np.repeat(blurred(wall, 2.0)[None], 3, 0))[0] == pytest.approx(2, rel=0.15)


@pytest.mark.parametrize("sigma", [0.7, 1.0, 1.5, 2.0, 3.0])
def test_softness_is_the_blur_of_a_picture(sigma: float) -> None:
    soft = blurred(patches(2), sigma)
    assert measured(soft) == pytest.approx(sigma, rel=0.12)
    assert measured((soft * 0.5 + 60).astype(np.uint8)) == pytest.approx(sigma, rel=0.12)
    noise = np.random.default_rng(0).normal(0, 3, soft.shape[:2])[..., None]
    noisy = (soft + noise).clip(0, 255).astype(np.uint8)
    assert measured(noisy, 3.0) == pytest.approx(sigma, rel=0.2)


def test_an_enlarged_film_is_soft() -> None:
    """Linear interpolation makes straight pieces with kinks, which fool gradients at two scales."""
    small = cv2.resize(patches(2), (WIDTH // 3, HEIGHT // 3), interpolation=cv2.INTER_AREA)
    large = cv2.resize(small, (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR)
    # A box and a tent of 3 pixels: their variance is 3^2 / 12 + 3^2 / 6.
    assert measured(large) == pytest.approx(np.sqrt(9 / 12 + 9 / 6), rel=0.15)


def test_stripes_do_not_pass_for_sharp_edges() -> None:
    """A blurred stripe is a wave, as steep at any blur: its width is that of the stripe."""
    picture = patches(2)
    picture[60:200, 40:300] = np.where(np.arange(260) // 5 % 2, 230, 20)[None, :, None]
    assert measured(blurred(picture, 2.0)) == pytest.approx(2.0, rel=0.15)


def test_what_is_in_focus_counts_before_a_blurred_scene() -> None:
    scene = blurred(patches(2), 4.0)
    scene[80:170, 100:230] = patches(3)[80:170, 100:230]
    assert measured(scene) < 0.8


def test_a_logo_does_not_make_a_soft_film_sharp() -> None:
    soft = blurred(patches(2, 480, 720), 2.0)
    cv2.putText(soft, "NEWS", (645, 50), cv2.FONT_HERSHEY_SIMPLEX, 0.8, (255, 255, 255), 3)
    assert measured(soft) == pytest.approx(2.0, rel=0.2)


def test_the_crispest_of_picture_and_outline_counts_and_blur_has_a_limit() -> None:
    alpha = np.zeros((HEIGHT, WIDTH), np.float32)
    alpha[40:200, 60:300] = 1.0
    soft, crisp = grey(blurred(patches(4), 1.5)), grey(patches(4))
    outline = cv2.GaussianBlur(alpha, (0, 0), 1.5)
    assert defocus(soft, outline, 1.5, HEIGHT) < 0.5
    for colour, matte in ((soft, alpha), (crisp, outline), (crisp, alpha)):
        missing = defocus(colour, matte, 1.5, HEIGHT)
        assert np.hypot(missing, LENS) == pytest.approx(1.5, rel=0.12)
    assert defocus(soft, outline, 1.0, HEIGHT) == 0.0
    assert defocus(crisp, alpha, 9.0, HEIGHT) == pytest.approx(SOFTEST * HEIGHT)
    flat = np.full((HEIGHT, WIDTH), 90, np.float32)
    assert softness([flat], [np.ones_like(flat)]) is None
