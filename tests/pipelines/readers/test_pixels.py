"""Pictures of every mode: transparency is kept, colour comes out in sRGB."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from layerflow.clip import U8
from layerflow.media.cells import MediaError
from pipelines.readers.stills import load_cutout, load_pair, read_matte, read_still
from tests.support.profiles import linear_grey, swapped

COLOUR = (200, 60, 40)
SHOWN = (60, 200, 40)  # what the swapped profile means by it


def soft_disc(size: int = 48) -> U8:
    y, x = np.indices((size, size)) - (size - 1) / 2
    ramp = np.clip((size * 0.33 - np.hypot(y, x)) / 6 + 0.5, 0, 1)
    return np.rint(ramp * 255).astype(np.uint8)


def cutout() -> U8:
    alpha = soft_disc()
    return np.dstack([np.full((*alpha.shape, 3), COLOUR, np.uint8), alpha])


def near(found: Any, wanted: Any, levels: int = 6) -> bool:
    return bool(np.abs(np.asarray(found, int) - np.asarray(wanted, int)).max() <= levels)


def png(path: Path, depth: int, kind: int, rows: np.ndarray, **chunks: bytes) -> Path:
    """A PNG of raw rows, with chunks before the data."""

    def chunk(name: bytes, body: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + body))
        return struct.pack(">I", len(body)) + name + body + check

    wide = rows.shape[1] if rows.ndim == 3 or depth > 4 else rows.shape[1] * 8 // depth
    head = struct.pack(">IIBBBBB", wide, len(rows), depth, kind, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    pieces = [chunk(b"IHDR", head), *(chunk(k.encode(), v) for k, v in chunks.items())]
    pieces += [chunk(b"IDAT", data), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(pieces))
    return path


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tif", "palette.png"])
def test_a_profile_is_applied_to_colour_and_alpha_is_kept(tmp_path: Path, name: str) -> None:
    image = Image.fromarray(cutout())
    if name.startswith("palette"):
        image = image.quantize(64, method=Image.Quantize.FASTOCTREE)
    more = {"lossless": True, "exact": True} if name.endswith("webp") else {}
    image.save(tmp_path / name, icc_profile=swapped(), **more)
    plain = Image.open(tmp_path / name).convert("RGBA")
    loaded = load_cutout(tmp_path / name)
    assert near(loaded[24, 24], (*SHOWN, 255))
    assert np.array_equal(read_still(tmp_path / name)[..., 3], np.asarray(plain)[..., 3])


def test_premultiplied_colour_is_undone_before_its_profile_is_applied(tmp_path: Path) -> None:
    rgba = cutout()
    ink = np.rint(rgba[..., :3] * (rgba[..., 3:] / 255)).astype(np.uint8)
    stored = Image.fromarray(np.dstack([ink, rgba[..., 3]]))
    stored.save(tmp_path / "a.png", icc_profile=swapped())
    loaded = load_cutout(tmp_path / "a.png")
    soft = (rgba[..., 3] > 60) & (rgba[..., 3] < 200)
    assert near(loaded[soft][:, :3], SHOWN, 12)


def test_a_pair_has_the_profile_of_its_picture_and_a_matte_has_none(tmp_path: Path) -> None:
    rgba = cutout()
    Image.fromarray(rgba[..., :3]).save(tmp_path / "x.png", icc_profile=swapped())
    matte = Image.fromarray(rgba[..., 3])
    matte.save(tmp_path / "x_alpha.png", icc_profile=linear_grey())
    assert np.array_equal(read_matte(tmp_path / "x_alpha.png"), rgba[..., 3])
    loaded = load_pair(tmp_path / "x.png", None, tmp_path / "x_alpha.png")
    assert near(loaded[24, 24], (*SHOWN, 255))
    assert np.array_equal(loaded[..., 3], rgba[..., 3])


def test_profiles_of_grey_pictures(tmp_path: Path) -> None:
    grey, alpha = np.full((48, 48), 120, np.uint8), soft_disc()
    Image.fromarray(grey).save(tmp_path / "l.png", icc_profile=linear_grey())
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    deep.save(tmp_path / "deep.png", icc_profile=linear_grey())
    both = Image.merge("LA", (Image.fromarray(grey), Image.fromarray(alpha)))
    both.save(tmp_path / "la.png", icc_profile=linear_grey())
    for name in ("l.png", "deep.png", "la.png"):
        assert near(read_still(tmp_path / name)[24, 24, :3], 182, 2), name
    assert np.array_equal(load_cutout(tmp_path / "la.png")[..., 3], alpha)


@pytest.mark.parametrize("profile", [b"no profile at all" * 9, linear_grey()])
def test_a_profile_that_cannot_be_used_changes_nothing(tmp_path: Path, profile: bytes) -> None:
    Image.fromarray(cutout()).save(tmp_path / "a.png", icc_profile=profile)
    assert np.array_equal(load_cutout(tmp_path / "a.png"), cutout())


def inside() -> np.ndarray:
    return soft_disc() > 127


GREY_DEPTHS = {1: (1, 0), 2: (1, 3), 4: (5, 9), 8: (90, 255), 16: (23000, 65535)}


@pytest.mark.parametrize("depth", GREY_DEPTHS)
@pytest.mark.parametrize("profile", [False, True])
def test_the_transparent_grey_of_a_png_of_any_depth(
    tmp_path: Path, depth: int, profile: bool
) -> None:
    shown, key = GREY_DEPTHS[depth]
    levels = np.where(inside(), shown, key).astype(np.uint16)
    bits = (levels[..., None] >> np.arange(depth - 1, -1, -1)) & 1
    rows = np.packbits(bits.reshape(48, -1).astype(np.uint8), axis=1)
    more = {"iCCP": b"x\0\0" + zlib.compress(linear_grey())} if profile else {}
    path = tmp_path / "a.png"
    with_size = rows.reshape(48, 48, -1) if depth >= 8 else rows
    png(path, depth, 0, with_size, **more, tRNS=struct.pack(">H", key))
    loaded = load_cutout(path)
    assert np.array_equal(loaded[..., 3] == 255, inside())
    assert set(np.unique(loaded[..., 3])) == {0, 255}
    plain = round(shown * 255 / (2**depth - 1))
    wanted = 255 * (plain / 255) ** (1 / 2.2) if profile else plain
    assert near(loaded[24, 24, :3], round(wanted), 4 if profile else 1)


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("profile", [False, True])
def test_the_transparent_colour_of_a_png_with_and_without_a_profile(
    tmp_path: Path, depth: int, profile: bool
) -> None:
    scale = 257 if depth == 16 else 1
    key = np.array((255, 0, 255)) * scale
    colours = np.where(inside()[..., None], np.array(COLOUR) * scale, key)
    if depth == 16:
        colours[0, 0] -= (3, 0, 0)  # the same in its upper byte: another colour all the same
    rows = colours.astype(">u2" if depth == 16 else np.uint8)
    more = {"iCCP": b"x\0\0" + zlib.compress(swapped())} if profile else {}
    path = png(tmp_path / "a.png", depth, 2, rows, **more, tRNS=struct.pack(">HHH", *key))
    loaded = load_cutout(path)
    clear = ~inside()
    clear[0, 0] = depth == 8
    assert np.array_equal(loaded[..., 3] == 0, clear)
    assert near(loaded[24, 24, :3], SHOWN if profile else COLOUR, 6 if profile else 0)


@pytest.mark.parametrize("suffix", ["png", "webp", "tif", "avif"])
def test_cutouts_are_turned_upright_with_their_alpha(tmp_path: Path, suffix: str) -> None:
    tall = cutout()[:, :30]
    exif = Image.Exif()
    exif[0x0112] = 6
    more = {"lossless": True, "exact": True} if suffix == "webp" else {}
    more |= {"quality": 100} if suffix == "avif" else {}
    Image.fromarray(tall).save(tmp_path / f"a.{suffix}", exif=exif, **more)
    loaded = read_still(tmp_path / f"a.{suffix}")
    assert loaded.shape == (30, 48, 4)
    assert near(loaded[..., 3], np.rot90(tall, -1)[..., 3], 2)


def test_four_inks_and_lab_become_srgb(tmp_path: Path) -> None:
    from PIL import ImageCms

    rgb = Image.fromarray(cutout()[..., :3])
    rgb.convert("CMYK").save(tmp_path / "cmyk.tif", icc_profile=swapped())  # not one of inks
    spaces = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    lab = ImageCms.profileToProfile(rgb, *spaces, outputMode="LAB")
    assert lab is not None
    lab.save(tmp_path / "lab.tif")
    for name in ("cmyk.tif", "lab.tif"):
        assert near(read_still(tmp_path / name)[24, 24, :3], COLOUR, 3), name


def test_an_animation_is_no_still(tmp_path: Path) -> None:
    frames = [Image.fromarray(np.roll(cutout(), 3 * k, axis=1)) for k in range(3)]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:])
    with pytest.raises(MediaError, match="animation of 3 frames"):
        read_still(tmp_path / "a.webp")


def test_layered_documents_keep_what_their_profile_means(tmp_path: Path) -> None:
    pytest.importorskip("psd_tools", reason="psd-tools is not installed")
    from psd_tools import PSDImage
    from psd_tools.constants import Resource
    from psd_tools.psd.image_resources import ImageResource

    from pipelines.readers.photoshop import read_document

    below, top = Image.new("RGBA", (48, 48), (*COLOUR, 255)), Image.fromarray(cutout())
    document = PSDImage.new("RGB", (48, 48))
    document.create_pixel_layer(below, name="below")
    document.create_pixel_layer(top, name="top")
    flat = np.asarray(Image.alpha_composite(below, top).convert("RGB"))
    planes = [np.ascontiguousarray(flat[..., k]).tobytes() for k in range(3)]
    document._record.image_data.set_data(planes, document._record.header)
    resource = ImageResource(key=Resource.ICC_PROFILE.value, data=swapped())
    document.image_resources[Resource.ICC_PROFILE] = resource
    document.save(tmp_path / "a.psd")
    foreground, background = read_document(tmp_path / "a.psd")
    assert background is not None
    assert near(foreground[24, 24], (*SHOWN, 255)) and near(background[0, 0], SHOWN)
    assert np.abs(foreground[..., 3].astype(int) - soft_disc()).max() <= 1
