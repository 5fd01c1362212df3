"""Stills with alpha: every mode, premultiplied colour, bad files; groups of files that belong."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from layerflow.clip import U8
from layerflow.media.cells import MediaError, encode_png
from pipelines.inputs.layouts import group_files, words_of
from pipelines.readers.stills import (
    is_premultiplied,
    load_cutout,
    load_opaque,
    load_pair,
    read_still,
    straighten,
    tidy,
)


def disc(size: int = 48, colour: tuple[int, int, int] = (200, 60, 30), soft: float = 6.0) -> U8:
    """A soft disc of one straight colour that fills the whole array."""
    y, x = np.indices((size, size)) - (size - 1) / 2
    ramp = np.clip((size * 0.35 - np.hypot(y, x)) / soft + 0.5, 0, 1)
    rgba = np.empty((size, size, 4), np.uint8)
    rgba[..., :3] = colour
    rgba[..., 3] = np.rint(ramp * 255)
    return rgba


def premultiply(rgba: U8) -> U8:
    colour = np.rint(rgba[..., :3].astype(float) * rgba[..., 3:] / 255).astype(np.uint8)
    return np.dstack([colour, rgba[..., 3]])


def write(path: Path, rgba: U8) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_png(rgba))
    return path


def test_straight_colour_is_kept(tmp_path: Path) -> None:
    rgba = disc()
    assert not is_premultiplied(rgba)
    assert np.array_equal(load_cutout(write(tmp_path / "a.png", rgba)), rgba)


def test_premultiplied_colour_is_detected_and_undone(tmp_path: Path) -> None:
    rgba = disc()
    stored = premultiply(rgba)
    assert is_premultiplied(stored)
    loaded = load_cutout(write(tmp_path / "a.png", stored))
    sure = rgba[..., 3] > 60
    assert np.abs(loaded[..., :3][sure].astype(int) - rgba[..., :3][sure]).max() <= 3


@pytest.mark.parametrize("colour", [(0, 0, 0), (9, 7, 5)])
def test_dark_straight_colour_is_not_taken_for_premultiplied(colour: tuple[int, int, int]) -> None:
    rgba = disc(colour=colour)
    rgba[..., :3] *= rgba[..., 3:] > 0  # black where nothing is, as many tools write it
    assert np.abs(straighten(rgba).astype(int) - rgba).max() <= 1


def test_tidy_only_touches_mattes_that_never_become_opaque() -> None:
    clean = disc()
    assert tidy(clean) is clean
    pale = clean.copy()
    pale[..., 3] = np.where(pale[..., 3] == 255, 251, np.maximum(pale[..., 3], 3))
    assert tidy(pale)[..., 3].max() == 255
    assert tidy(pale)[0, 0, 3] == 0


def test_modes_give_the_picture_that_they_show(tmp_path: Path) -> None:
    rgba = disc(soft=1.0)
    image = Image.fromarray(rgba)
    image.convert("LA").save(tmp_path / "grey_alpha.png")
    image.quantize(16, method=Image.Quantize.FASTOCTREE).save(tmp_path / "palette.png")
    image.convert("RGB").convert("CMYK").save(tmp_path / "cmyk.tif")
    Image.fromarray(rgba[..., 3].astype(np.uint16) * 257).save(tmp_path / "deep.png")
    grey = read_still(tmp_path / "grey_alpha.png")
    assert np.array_equal(grey[..., 3], rgba[..., 3])
    assert np.ptp(grey[20:28, 20:28, :3].astype(int), axis=2).max() == 0
    palette = load_cutout(tmp_path / "palette.png")
    assert np.abs(palette[24, 24].astype(int) - rgba[24, 24]).max() <= 8
    assert (
        np.abs(read_still(tmp_path / "cmyk.tif")[24, 24, :3].astype(int) - rgba[24, 24, :3]).max()
        < 5
    )
    assert np.abs(read_still(tmp_path / "deep.png")[..., 0].astype(int) - rgba[..., 3]).max() <= 1


def test_sixteen_bit_rgba_keeps_colour_and_alpha(tmp_path: Path) -> None:
    rgba = disc()
    rows = b"".join(b"\0" + (row.astype(">u2") * 257).tobytes() for row in rgba)
    data = png(48, 48, rows, depth=16, colour=6)
    (tmp_path / "a.png").write_bytes(data)
    assert np.abs(load_cutout(tmp_path / "a.png").astype(int) - rgba).max() <= 1


def noise_png() -> bytes:
    return encode_png(np.random.default_rng(0).integers(0, 255, (64, 64, 4), np.uint8))


def png(width: int, height: int, rows: bytes, *, depth: int = 8, colour: int = 6) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + check

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    picture = Image.fromarray(disc()[:, :24, :3])
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "a.jpg", exif=exif)
    assert read_still(tmp_path / "a.jpg").shape[:2] == (24, 48)


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("empty.png", b"", "zero bytes"),
        ("text.png", b"hello world", "not a readable picture"),
        ("bomb.png", png(60000, 60000, b"\0" * 99), "over the limit"),
        ("gigantic.png", png(2**31 - 1, 2**31 - 1, b"\0"), "over the limit|not a readable"),
        ("cut.png", noise_png()[:900], "decoded"),
    ],
)
def test_bad_files_say_why(tmp_path: Path, name: str, data: bytes, reason: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(MediaError, match=reason):
        load_cutout(path)


def test_empty_and_full_alpha_are_refused(tmp_path: Path) -> None:
    rgba = disc()
    rgba[..., 3] = 0
    with pytest.raises(MediaError, match="fully transparent"):
        load_cutout(write(tmp_path / "a.png", rgba))
    rgba[..., 3] = 255
    with pytest.raises(MediaError, match="fully opaque"):
        load_cutout(write(tmp_path / "b.png", rgba))
    with pytest.raises(MediaError, match="cannot be a background"):
        load_opaque(write(tmp_path / "c.png", disc()))


def test_a_pair_of_other_sizes_is_refused(tmp_path: Path) -> None:
    colour = write(tmp_path / "a.png", disc()[..., :3])
    alpha = write(tmp_path / "a_alpha.png", disc(40)[..., 3])
    with pytest.raises(MediaError, match="40x40"):
        load_pair(colour, None, alpha)


def test_the_foreground_colour_of_a_pair_is_estimated(tmp_path: Path) -> None:
    """A disc over white: its soft edge must not stay white."""
    rgba = disc()
    a = rgba[..., 3:] / 255.0
    picture = np.rint(rgba[..., :3] * a + 255 * (1 - a)).astype(np.uint8)
    colour = write(tmp_path / "image/a.png", picture)
    alpha = write(tmp_path / "alpha/a.png", rgba[..., 3])
    loaded = load_pair(None, colour, alpha)
    soft = (rgba[..., 3] > 100) & (rgba[..., 3] < 200)
    error = np.abs(loaded[..., :3][soft].astype(int) - rgba[..., :3][soft]).mean()
    naive = np.abs(picture[soft].astype(int) - rgba[..., :3][soft]).mean()
    assert error < 12 < 40 < naive


def test_fringe_of_a_real_pair(shared: Path) -> None:
    """Pasted on green, against the reference foreground, in the soft band."""
    folder = shared / "media" / "stills" / "lemur"
    loaded = load_pair(None, folder / "lemur.png", folder / "lemur_alpha.png")
    truth = read_still(folder / "lemur_foreground.png")[..., :3]
    picture = read_still(folder / "lemur.png")[..., :3]
    a = loaded[..., 3:] / 255.0
    soft = (a[..., 0] > 0.05) & (a[..., 0] < 0.95)
    green = np.array([0, 255, 0])

    def error(colour: np.ndarray) -> float:
        pasted = colour * a + green * (1 - a)
        return float(np.abs(pasted - (truth * a + green * (1 - a)))[soft].mean())

    assert error(loaded[..., :3]) <= 2.0 < error(picture)


def files(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def found(root: Path) -> dict[str, dict[str, str]]:
    return {
        group.uri: {r: p.relative_to(root).as_posix() for r, p in group.files}
        for group in group_files(root)
    }


def test_groups_by_folder_names(tmp_path: Path) -> None:
    files(tmp_path, "train/image/a.jpg", "train/alpha/a.png", "train/trimap/a.png")
    files(tmp_path, "train/image/b.jpg", "test/fgr/c/0001.png", "test/pha/c/0001.png")
    assert found(tmp_path) == {
        "train/image/a.jpg": {"blended": "train/image/a.jpg", "alpha": "train/alpha/a.png"},
        "train/image/b.jpg": {"file": "train/image/b.jpg"},
        "test/fgr/c/0001.png": {
            "foreground": "test/fgr/c/0001.png",
            "alpha": "test/pha/c/0001.png",
        },
    }


def test_groups_by_name_endings(tmp_path: Path) -> None:
    files(tmp_path, "x.png", "x_alpha.png", "x.bg.png", "y.png", "y.mask.png", "lone_mask.png")
    files(tmp_path, "backgrounds/hill.jpg", "x_trimap.png", "full.png")
    assert found(tmp_path) == {
        "x.png": {"blended": "x.png", "alpha": "x_alpha.png", "background": "x.bg.png"},
        "y.png": {"blended": "y.png", "alpha": "y.mask.png"},
        "lone_mask.png": {"file": "lone_mask.png"},
        "full.png": {"file": "full.png"},
        "backgrounds/hill.jpg": {"background": "backgrounds/hill.jpg"},
    }


def test_links_out_of_the_folder_are_left_out(tmp_path: Path) -> None:
    files(tmp_path, "secret.png", "root/a.png")
    (tmp_path / "root/b.png").symlink_to(tmp_path / "secret.png")
    assert set(found(tmp_path / "root")) == {"a.png"}


def test_words_of_file_names() -> None:
    assert words_of("animal-1.out") == "animal"
    assert words_of("sprite_running-alice-queen") == "running alice queen"
    assert words_of("redCar2_RGBA") == "red car"
    assert words_of("00012") == ""


def test_a_huge_picture_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    """64 million pixels of one bit are a few kilobytes of file."""
    image = Image.new("1", (10_000, 7_000))
    ImageDraw.Draw(image).rectangle((10, 10, 99, 99), fill=1)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    with pytest.raises(MediaError, match="HxW 7000x10000 is over the limit"):
        read_still(tmp_path / "a.png")
