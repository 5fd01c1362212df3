"""Refining a matte's edge: the trimap, what may change, and a tiny random ViTMatte."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.matting.refine import (
    BAND,
    INSIDE,
    OUTSIDE,
    band_radius,
    make_refiner,
    refined,
    trimap_of,
)
from pipelines.matting.vitmatte import VitMatteRefiner
from tests.support.tiny_vitmatte import write_vitmatte


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vitmatte(tmp_path_factory.mktemp("vitmatte"))


def disc(count: int, radius: float, width: float, size: int = 160) -> np.ndarray:
    """A disc whose alpha falls from 1 to 0 over ``width`` pixels, uint8 [T, size, size]."""
    y, x = np.mgrid[:size, :size]
    off = np.hypot(x - size / 2, y - size / 2) - radius
    alpha = np.clip(0.5 - off / width, 0, 1)
    return np.rint(np.repeat(alpha[None], count, 0) * 255).astype(np.uint8)


def frames(count: int, size: int = 160) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


class Says:
    """Answers one value anywhere, and keeps what it was shown."""

    name, licence = "says", "MIT"

    def __init__(self, value: float) -> None:
        self.value, self.shown = value, (0, 0, 0)

    def __call__(self, frames: np.ndarray, trimap: np.ndarray) -> np.ndarray:
        self.shown = trimap.shape
        return np.full(trimap.shape, self.value, np.float32)


@pytest.mark.parametrize(("radius", "width"), [(50, 2.0), (50, 12.0), (20, 4.0)])
def test_the_band_is_as_wide_as_softness_and_size_say(radius: float, width: float) -> None:
    """Of a disc: 90 % of the ramp are soft, and half of that and 2 % of the root of its area on
    top, at most a tenth of that root."""
    alpha = disc(3, radius, width)
    root = np.sqrt(np.pi) * radius
    more = min(0.9 * width / 2 + 0.02 * root, 0.1 * root)
    assert band_radius(alpha) == pytest.approx(max(2, more), abs=1)
    trimap = trimap_of(alpha)[0]
    reach = 0.45 * width + band_radius(alpha)
    across = trimap[80, 80:]
    assert set(np.unique(trimap)) == {INSIDE, BAND, OUTSIDE}
    assert np.flatnonzero(across == BAND)[0] == pytest.approx(radius - reach, abs=2)
    assert np.flatnonzero(across == BAND)[-1] == pytest.approx(radius + reach, abs=2)
    assert (across[: int(radius - reach) - 2] == INSIDE).all()
    assert (across[int(radius + reach) + 3 :] == OUTSIDE).all()


def test_what_has_no_edge_is_asked_nothing() -> None:
    for level in (0, 255):
        alpha = np.full((2, 40, 40), level, np.uint8)
        refiner = Says(0.5)
        assert refined(frames(2, 40), alpha, refiner) is alpha and refiner.shown == (0, 0, 0)


def test_only_the_band_changes_and_it_alone_is_shown() -> None:
    alpha = disc(2, 20, 3.0)
    alpha[0, 5, 5] = 3  # next to nothing, outside the band
    refiner = Says(0.25)
    found = refined(frames(2), alpha, refiner)
    band = trimap_of(alpha) == BAND
    assert np.array_equal(found[~band], alpha[~band])
    deep = band & (trimap_of(np.where(band, np.uint8(0), alpha)) != BAND)
    assert (found[band] != alpha[band]).mean() > 0.9
    assert np.median(found[deep]) == 64  # a quarter of 255
    reach = round(20 + 0.45 * 3 + band_radius(alpha)) + 32
    assert refiner.shown == pytest.approx((2, 2 * reach, 2 * reach), abs=3)


def test_what_flickers_in_the_band_is_averaged_along_the_flow() -> None:
    """Of a still scene: its own frame counts once, each neighbour half, so .3, .7, .3, .7 becomes
    (.3 + .35) / 1.5, .5, .5, (.7 + .15) / 1.5."""
    alpha = disc(4, 20, 3.0)

    class Flickers(Says):
        def __call__(self, frames: np.ndarray, trimap: np.ndarray) -> np.ndarray:
            even = np.arange(len(trimap))[:, None, None] % 2 == 0
            return np.broadcast_to(np.where(even, 0.3, 0.7), trimap.shape).astype(np.float32)

    found = refined(np.repeat(frames(1), 4, 0), alpha, Flickers(0.0))
    band = trimap_of(alpha) == BAND
    for t, expected in enumerate((0.65 / 1.5, 0.5, 0.5, 0.85 / 1.5)):
        assert np.abs(found[t][band[t]] / 255.0 - expected).max() < 0.01


def test_an_answer_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="the refiner gave"):
        refined(frames(1), disc(1, 20, 3.0), Says(float("nan")))


def test_the_network_answers_as_transformers_own_way_of_asking_it(folder: Path) -> None:
    """Sides that are no multiples of 32; a batch of two and a rest; a frame without band is 0."""
    from transformers import VitMatteForImageMatting, VitMatteImageProcessor

    shown, trimap = frames(4, 72)[:, :50], np.zeros((4, 50, 72), np.uint8)
    trimap[[0, 1, 3], 10:40, 20:50] = BAND
    trimap[[0, 1, 3], 20:30, 30:40] = INSIDE
    refiner = VitMatteRefiner(folder)
    refiner._batch = 2 * 50 * 72
    found = refiner(shown, trimap)
    assert found.shape == trimap.shape and found.dtype == np.float32 and not found[2].any()
    network = VitMatteForImageMatting.from_pretrained(folder)
    asked = VitMatteImageProcessor.from_pretrained(folder)(
        images=Image.fromarray(shown[3]), trimaps=Image.fromarray(trimap[3]), return_tensors="pt"
    )
    expected = network(**asked).alphas.detach().numpy()[0, 0, :50, :72]
    assert np.ptp(expected) > 0.05  # it says something
    assert np.abs(found[3] - expected).max() < 1e-5


def test_other_weights_are_refused_with_what_is_wrong(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="refiner 'vitmatte' needs weights"):
        make_refiner("vitmatte")
    with pytest.raises(ValueError, match="not found"):
        make_refiner("vitmatte", str(tmp_path / "none"))
    with pytest.raises(ValueError, match="unknown refiner 'vitmate'; did you mean"):
        make_refiner("vitmate", str(folder))
    with pytest.raises(ValueError, match="are others"):
        make_refiner("vitmatte@" + 64 * "0", str(folder))
    pickled = tmp_path / "pickled"
    shutil.copytree(folder, pickled, ignore=shutil.ignore_patterns("*.safetensors"))
    (pickled / "pytorch_model.bin").write_bytes(b"a pickle would be opened here")
    with pytest.raises(ValueError, match="does not load as vitmatte"):
        make_refiner("vitmatte", str(pickled))
    wider = tmp_path / "wider"
    shutil.copytree(folder, wider)
    config = json.loads((wider / "config.json").read_text())
    (wider / "config.json").write_text(json.dumps(config | {"fusion_hidden_sizes": [8, 8, 4, 6]}))
    with pytest.raises(ValueError, match="does not load as vitmatte"):
        make_refiner("vitmatte", str(wider))
    (wider / "config.json").write_text(json.dumps(config | {"model_type": "t5"}))
    with pytest.raises(ValueError, match="holds a 't5'"):
        make_refiner("vitmatte", str(wider))
