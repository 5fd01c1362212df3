"""Colour that was put on black or another flat colour: when it is recognised, and undone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from layerflow.clip import U8
from layerflow.media.cells import encode_png
from pipelines.readers.ground import find_ground, flat_colour, lift
from pipelines.readers.stills import load_cutout, load_pair, read_still

Colour = tuple[int, int, int]
GREEN = (120, 255, 155)
GROUNDS = [(0, 0, 0), GREEN, (0, 0, 255), (255, 0, 255), (127, 127, 127), (255, 255, 255)]


def levels(values: np.ndarray) -> U8:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def striped(frames: int = 5, soft: float = 8.0, colour: Colour = (220, 180, 60)) -> U8:
    """A moving disc with stripes: straight uint8 [T, 96, 128, 4]."""
    y, x = np.mgrid[:96, :128]
    out = np.empty((frames, 96, 128, 4), np.uint8)
    for t in range(frames):
        out[t, ..., :3] = colour
        out[t, ::8, :, :3] = (180, 90, 40) if max(colour) > 60 else (30, 22, 20)
        out[t, ..., 3] = levels(255 * np.clip((28 - np.hypot(y - 48, x - 50 - 3 * t)) / soft, 0, 1))
    return out


def put_on(straight: U8, ground: Colour, noise: float = 0.0) -> U8:
    """Its colour on a ground, with the noise of a coded film."""
    share = straight[..., 3:] / 255
    grain = np.random.default_rng(0).normal(0, noise, straight[..., :3].shape)
    return levels(straight[..., :3] * share + (1 - share) * np.array(ground) + grain)


def off(colour: U8, straight: U8, low: int = 20, high: int = 250) -> float:
    soft = (straight[..., 3] >= low) & (straight[..., 3] < high)
    return float(np.abs(colour[soft].astype(int) - straight[..., :3][soft]).mean())


@pytest.mark.parametrize("ground", GROUNDS)
@pytest.mark.parametrize("soft", [3.0, 16.0])
def test_any_flat_ground_is_found_and_undone(ground: Colour, soft: float) -> None:
    straight = striped(soft=soft)
    stored = put_on(straight, ground, noise=2.0)
    found = find_ground(stored, straight[..., 3])
    assert found is not None
    assert np.abs(np.subtract(found.colour, ground)).max() <= 3
    assert off(lift(stored, straight[..., 3], found), straight) < 9
    assert off(stored, straight) > 25


@pytest.mark.parametrize("colour", [(220, 180, 60), (18, 14, 12), (0, 0, 0), (250, 250, 250)])
@pytest.mark.parametrize("outside", [None, *GROUNDS])
def test_straight_colour_is_left_alone_whatever_lies_outside(
    colour: Colour, outside: Colour | None
) -> None:
    straight = striped(colour=colour)
    stored = straight[..., :3].copy()
    if outside is not None:
        stored[straight[..., 3] == 0] = outside
    noisy = levels(stored + np.random.default_rng(1).normal(0, 2, stored.shape))
    assert find_ground(noisy, straight[..., 3]) is None


def test_a_black_outline_is_not_taken_for_a_ground() -> None:
    """The sprite's own edge is black, and so is what lies outside."""
    straight = striped(soft=2.0)
    y, x = np.mgrid[:96, :128]
    for t, frame in enumerate(straight):
        frame[np.hypot(y - 48, x - 50 - 3 * t) > 22, :3] = 0
    assert find_ground(straight[..., :3], straight[..., 3]) is None


def test_a_whole_picture_is_not_on_a_ground() -> None:
    straight = striped()
    noise = np.random.default_rng(2).integers(0, 255, (6, 8, 3), np.uint8)
    scene = np.asarray(Image.fromarray(noise).resize((128, 96), Image.Resampling.BICUBIC))
    share = straight[..., 3:] / 255
    picture = levels(straight[..., :3] * share + (1 - share) * scene)
    assert flat_colour(picture, straight[..., 3]) is None
    assert find_ground(picture, straight[..., 3]) is None


def test_smoke_that_is_never_opaque_and_never_absent_may_be_premultiplied() -> None:
    y, x = np.mgrid[:96, :128]
    alpha = levels(90 + 80 * np.sin(x / 9) * np.cos(y / 11))[None]
    grey = np.full((*alpha.shape, 3), 220, np.uint8)
    assert find_ground(levels(grey * (alpha[..., None] / 255)), alpha) is not None
    assert find_ground(grey, alpha) is None


def test_what_a_matting_network_left_of_the_background_is_taken_out_too() -> None:
    """The network's cut-out on green is the picture, not the object, times the matte."""
    straight = striped(soft=16.0)
    share = straight[..., 3:] / 255
    picture = straight[..., :3] * share + (1 - share) * np.array((70, 70, 120))
    mixed = np.concatenate([levels(picture), straight[..., 3:]], axis=3)
    stored = put_on(mixed, GREEN)
    ground = find_ground(stored, straight[..., 3])
    assert ground is not None and ground.leftover
    clean = lift(stored, straight[..., 3], ground)
    assert off(clean, straight) < 0.4 * off(mixed[..., :3], straight) < off(stored, straight)
    plain = find_ground(put_on(straight, GREEN), straight[..., 3])
    assert plain is not None and not plain.leftover


def write(path: Path, picture: U8) -> Path:
    path.write_bytes(encode_png(picture))
    return path


@pytest.mark.parametrize("ground", GROUNDS[1:])
def test_stills_on_a_flat_colour_are_straightened(tmp_path: Path, ground: Colour) -> None:
    straight = striped(1)[0]
    stored = put_on(straight, ground)
    both = write(tmp_path / "a.png", np.dstack([stored, straight[..., 3]]))
    assert off(load_cutout(both)[..., :3], straight) < 8
    colour, matte = write(tmp_path / "b.png", stored), write(tmp_path / "c.png", straight[..., 3])
    assert off(load_pair(colour, None, matte)[..., :3], straight) < 8


@pytest.mark.parametrize("ground", GROUNDS)
@pytest.mark.parametrize("coded", [{"lossless": True}, {"quality": 90}], ids=str)
def test_a_ground_that_the_coder_took_from_clear_pixels_is_found_by_soft_ones(
    tmp_path: Path, ground: Colour, coded: dict[str, object]
) -> None:
    straight = striped(1)[0]
    path, rgba = tmp_path / "a.webp", np.dstack([put_on(straight, ground), straight[..., 3]])
    Image.fromarray(rgba).save(path, **coded)  # exact is off, as by default
    clear = read_still(path)[straight[..., 3] == 0]
    assert np.abs(clear[..., :3] - np.int16(ground)).max() > 20 or ground == (0, 0, 0)
    assert off(load_cutout(path)[..., :3], straight) < 20 < off(put_on(straight, ground), straight)
    Image.fromarray(straight).save(path, **coded)
    assert np.array_equal(load_cutout(path), read_still(path))


def test_the_source_beside_a_cutout_on_green_gives_its_colour(tmp_path: Path) -> None:
    straight = striped(1, soft=12.0)[0]
    share = straight[..., 3:] / 255
    picture = levels(straight[..., :3] * share + (1 - share) * np.array((70, 70, 120)))
    on_green = put_on(np.dstack([picture, straight[..., 3]]), GREEN)
    green, source = write(tmp_path / "g.png", on_green), write(tmp_path / "s.png", picture)
    matte = write(tmp_path / "m.png", straight[..., 3])
    assert off(load_pair(green, source, matte)[..., :3], straight) < 12
    straight_too = write(tmp_path / "f.png", np.ascontiguousarray(straight[..., :3]))
    kept = load_pair(straight_too, source, matte)
    assert np.array_equal(kept[..., :3], straight[..., :3])


def test_real_cutouts_are_judged_alike_with_any_ground(shared: Path) -> None:
    """Straight colour of real cut-outs, put on grounds, and left as it is."""
    folder = shared / "media/stills"
    colour = read_still(folder / "lemur/lemur_foreground.png")[..., :3]
    alpha = read_still(folder / "lemur/lemur_alpha.png")[..., 0]
    films = [np.dstack([colour, alpha])]
    films += [read_still(folder / "cutouts" / name) for name in ("cat_sprite.png", "palm3.png")]
    for rgba in films:
        straight = np.ascontiguousarray(rgba[None, ::2, ::2])
        matte = straight[..., 3]
        assert find_ground(straight[..., :3], matte) is None
        for ground in ((0, 0, 0), GREEN, (255, 255, 255)):
            found = find_ground(put_on(straight, ground), matte)
            assert found is not None and found.colour == ground
            outside = np.where(matte[..., None] > 0, straight[..., :3], np.uint8(ground))
            assert find_ground(outside.astype(np.uint8), matte) is None
