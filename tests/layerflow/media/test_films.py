"""Films of layers: windows of long ones, premultiplied and keyed ones, animations, opaque alpha."""

from __future__ import annotations

import zlib
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from layerflow.clip import U8
from layerflow.corpus.table import Corpus
from layerflow.media.cells import MediaError, encode_color
from layerflow.media.decode import Decoder
from layerflow.media.video import read_frames
from manifests.pack import PackOptions
from pipelines.inputs.sources import list_backgrounds, list_foregrounds
from pipelines.pack.job import run_pack
from pipelines.paste import load
from pipelines.paste.load import Loader
from pipelines.readers import frame_reader, videos
from pipelines.readers.animations import is_animation, open_animation, read_animation
from pipelines.readers.videos import LayeredVideoReader

SIZE = (48, 64)
FPS = 8


class Local(Decoder):
    """Decodes in this process, and notes how much is asked for at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def read_frames(self, path: Path, **more: Any) -> tuple[U8, float]:
        frames, fps = read_frames(path, **more)
        self.largest = max(self.largest, len(frames))
        return frames, fps


@pytest.fixture(scope="module")
def decoder() -> Any:
    with Local() as opened:
        yield opened


def ball(frames: int = 12, soft: float = 8.0, step: float = 2.0) -> U8:
    """A moving disc: straight uint8 [T, 48, 64, 4]."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    out = np.empty((frames, *SIZE, 4), np.uint8)
    out[..., :3] = (220, 170, 60)
    for t in range(frames):
        edge = np.clip((14 - np.hypot(y - 24, x - 18 - step * t)) / soft + 0.5, 0, 1)
        out[t, ..., 3] = np.rint(255 * edge)
    return out


def premultiplied(straight: U8) -> U8:
    ink = np.rint(straight[..., :3] * (straight[..., 3:] / 255)).astype(np.uint8)
    return np.concatenate([ink, straight[..., 3:]], axis=3)


def film(path: Path, frames: U8, codec: str, pixels: str, **options: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=Fraction(FPS), options=options)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pixels
        for frame in frames:
            shape = "rgba" if frame.shape[-1] == 4 else "rgb24"
            shown = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format=shape)
            container.mux(stream.encode(shown))
        container.mux(stream.encode(None))
    return path


KINDS = {
    "prores.mov": ("prores_ks", "yuva444p10le", {"profile": "4"}),
    "png.mov": ("png", "rgba", {}),
    "vp9.webm": ("libvpx-vp9", "yuva420p", {"crf": "12", "b": "0"}),
    "ffv1.mkv": ("ffv1", "yuva444p", {}),
}


def soft_error(found: U8, straight: U8) -> float:
    soft = (straight[..., 3] > 30) & (straight[..., 3] < 240)
    return float(np.abs(found[..., :3][soft].astype(int) - straight[..., :3][soft]).mean())


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("straight", [False, True])
def test_premultiplied_films_are_undone_and_straight_ones_left_alone(
    tmp_path: Path, decoder: Local, name: str, straight: bool
) -> None:
    codec, pixels, options = KINDS[name]
    rgba = ball()
    stored = rgba if straight else premultiplied(rgba)
    path = film(tmp_path / name, stored, codec, pixels, **options)
    found = LayeredVideoReader({"file": [path]}, decoder).cutout(range(len(rgba)))
    assert soft_error(found, rgba) < 10
    assert soft_error(premultiplied(rgba), rgba) > 50


def frames_to(folder: Path, frames: U8) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{t:04d}.png" for t in range(len(frames))]
    for path, frame in zip(paths, frames, strict=True):
        Image.fromarray(frame).save(path)
    return paths


@pytest.mark.parametrize("straight", [False, True])
def test_premultiplied_numbered_frames(tmp_path: Path, decoder: Local, straight: bool) -> None:
    rgba = ball(8)
    paths = frames_to(tmp_path, rgba if straight else premultiplied(rgba))
    found = LayeredVideoReader({"file": paths}, decoder).cutout(range(8))
    assert soft_error(found, rgba) < 4


def test_a_reel_gives_the_same_layers_at_a_smaller_size(tmp_path: Path, decoder: Local) -> None:
    """Straight and premultiplied colour are averaged as each has to be."""
    rgba = ball(8)
    small = 24, 32
    for name, stored in (("straight", rgba), ("ink", premultiplied(rgba))):
        reel = LayeredVideoReader({"file": frames_to(tmp_path / name, stored)}, decoder)
        found = reel.read([0, 5], small)
        assert found.foreground is not None and found.alpha.shape == (2, *small)
        soft = (found.alpha > 30) & (found.alpha < 240)
        assert np.abs(found.foreground[soft].astype(int) - rgba[0, 0, 0, :3]).mean() < 6


def keyed(folder: Path, *, source: bool = False, flat: bool = False) -> dict[str, list[Path]]:
    """What a matting network writes: the subject on green, its matte, and maybe the source."""
    rgba = ball()
    share = rgba[..., 3:] / 255
    scene = np.full((*SIZE, 3), (60, 60, 110))
    if not flat:
        scene[:, ::16] += 40
    picture = np.rint(rgba[..., :3] * share + (1 - share) * scene)
    green = np.rint(picture * share + (1 - share) * np.array((120, 255, 155)))
    parts = {"foreground": green, "alpha": np.repeat(rgba[..., 3:], 3, 3)}
    parts |= {"blended": picture} if source else {}
    folder.mkdir()
    roles = {}
    for role, layer in parts.items():
        path = folder / f"{role}.mp4"
        path.write_bytes(encode_color(layer.astype(np.uint8), FPS, crf=6))
        roles[role] = [path]
    return roles


def test_a_subject_on_green_gets_its_own_colour(tmp_path: Path, decoder: Local) -> None:
    alone = LayeredVideoReader(keyed(tmp_path / "alone"), decoder)
    beside = LayeredVideoReader(keyed(tmp_path / "beside", source=True), decoder)
    assert soft_error(alone.cutout(range(12)), ball()) < 20
    assert soft_error(beside.cutout(range(12)), ball()) < 12
    assert not alone.shows_scene and beside.shows_scene
    assert beside.read([0]).foreground is None  # the plate will give it, from the source
    plain = LayeredVideoReader(keyed(tmp_path / "plain", source=True, flat=True), decoder)
    assert soft_error(plain.cutout(range(12)), ball()) < 12


def test_a_composite_on_one_colour_shows_no_scene(tmp_path: Path, decoder: Local) -> None:
    roles = keyed(tmp_path / "com")
    reel = LayeredVideoReader({"blended": roles["foreground"], "alpha": roles["alpha"]}, decoder)
    assert not reel.shows_scene
    assert soft_error(reel.cutout(range(12)), ball()) < 20


def test_a_long_film_is_read_by_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither packing nor pasting asks for more frames at once than a clip has."""
    for module in (frame_reader, videos):
        monkeypatch.setattr(module, "WHOLE_BYTES", 10_000)
    rgba = ball(40, step=0.5)
    root = tmp_path / "in"
    for role, layer in (("fgr", rgba[..., :3]), ("pha", np.repeat(rgba[..., 3:], 3, 3))):
        (root / role).mkdir(parents=True)
        (root / role / "0001.mp4").write_bytes(encode_color(layer, FPS, crf=4))
    decoder = Local()
    folders = (("foreground", "fgr"), ("alpha", "pha"))
    layers = {role: [root / folder / "0001.mp4"] for role, folder in folders}
    reel = LayeredVideoReader(layers, decoder)
    assert reel.count == 40 and decoder.largest <= frame_reader.PROBES
    found = reel.read([30, 31, 33], (24, 32))
    whole = rgba[[30, 31, 33], ..., 3].reshape(3, 24, 2, 32, 2).mean(axis=(2, 4))
    assert np.abs(found.alpha - whole).mean() < 2
    assert decoder.largest <= frame_reader.PROBES

    out = tmp_path / "out"
    options = PackOptions(inputs=[str(root)], out=str(out), frames=8, fps=FPS, size=(24, 32))
    run_pack(options, workers=0, quiet=True)
    corpus = Corpus.open(out)
    assert [row["origin"]["start"] for row in corpus.rows(["origin"])] == [0, 1, 2, 3, 4]
    middle = corpus.clip(3)
    assert middle.size == (24, 32)
    centre = [np.average(np.arange(32), weights=a.sum(axis=0) + 1e-9) for a in middle.alpha]
    assert np.abs(np.array(centre) - (18 + 0.5 * np.arange(24, 32)) / 2).max() < 0.6


def test_a_foreground_of_a_long_film_is_a_drawn_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rgba = ball(40, step=0.5)
    film(tmp_path / "in/a.mov", rgba, "png", "rgba")
    (source,) = list_foregrounds([str(tmp_path / "in")], "off")
    loader = Loader(SIZE, 8, FPS, 60.0)
    whole = loader.foreground(source, np.random.default_rng(0))
    monkeypatch.setattr(videos, "WHOLE_BYTES", 10_000)
    monkeypatch.setattr(frame_reader, "WHOLE_BYTES", 10_000)
    fresh = Loader(SIZE, 8, FPS, 60.0)
    windows = [fresh.foreground(source, np.random.default_rng(seed)) for seed in range(4)]
    assert len({window.numbers[0] for window in windows}) > 1
    for window in windows:
        assert window.numbers == tuple(range(window.numbers[0], window.numbers[0] + 8))
        assert len(window.rgba) == 8 and window.frame == whole.frame
        at = [round(c) for c in window.corner]
        alpha = rgba[list(window.numbers), max(0, at[0]) :, max(0, at[1]) :, 3]
        tall, wide = window.rgba.shape[1] + min(0, at[0]), window.rgba.shape[2] + min(0, at[1])
        crop = window.rgba[:, max(0, -at[0]) :, max(0, -at[1]) :, 3]
        assert np.array_equal(crop[:, :tall, :wide], alpha[:, :tall, :wide])
        assert crop.sum() == rgba[list(window.numbers), ..., 3].sum()
        start = window.numbers[0] / FPS
        assert (window.record["start"], window.record["end"]) == (start, start + 1)
    loader.close()
    fresh.close()


def animation(path: Path, frames: U8, **more: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    first, *others = (Image.fromarray(frame) for frame in frames)
    more = {"duration": 125, "loop": 0} | more
    first.save(path, save_all=True, append_images=others, **more)
    return path


ANIMATIONS: dict[str, dict[str, Any]] = {
    "walk.webp": {"lossless": True},
    "walk.png": {},
    "walk.apng": {"format": "PNG", "blend": 1, "disposal": 1},
    "back.png": {"blend": 0, "disposal": 2},
    "walk.avif": {"quality": 100},
}


@pytest.mark.parametrize("name", ANIMATIONS)
def test_animated_pictures_are_films_with_alpha(tmp_path: Path, name: str) -> None:
    rgba = ball(6)
    path = animation(tmp_path / name, rgba, **ANIMATIONS[name])
    assert is_animation(path)
    opened = open_animation(path)
    assert (opened.fps, len(opened.places), opened.size) == (8.0, 6, SIZE)
    found = read_animation(opened, [4, 0, 4])
    wanted = rgba[[4, 0, 4]]
    assert np.abs(found[..., 3].astype(int) - wanted[..., 3]).max() <= 2
    seen = wanted[..., 3] > 100
    assert np.abs(found[seen].astype(int) - wanted[seen]).max() <= 4


def test_parts_of_an_apng_lie_where_they_belong(tmp_path: Path) -> None:
    """A still part of the picture is stored once; frames are the rectangles that change."""
    rgba = ball(4, step=6.0)
    rgba[:, 40:, :10] = (10, 20, 200, 255)
    path = animation(tmp_path / "a.png", rgba, blend=0, disposal=0)
    found = read_animation(open_animation(path), range(4))
    assert np.array_equal(found[..., 3], rgba[..., 3])
    assert np.array_equal(found[:, 40:, :10], rgba[:, 40:, :10])


def test_uneven_delays_keep_their_time(tmp_path: Path) -> None:
    path = animation(tmp_path / "a.png", ball(3), duration=[40, 80, 120])
    opened = open_animation(path)
    assert opened.fps == 25 and opened.places == (0, 1, 1, 2, 2, 2)


def test_a_default_picture_is_no_frame_of_the_animation(tmp_path: Path) -> None:
    rgba = ball(4)
    opened = open_animation(animation(tmp_path / "a.png", rgba, default_image=True))
    assert np.array_equal(read_animation(opened, range(3))[..., 3], rgba[1:, ..., 3])


def test_stills_are_no_animations_and_damaged_ones_say_so(tmp_path: Path) -> None:
    Image.fromarray(ball(1)[0]).save(tmp_path / "one.gif")
    pages = [Image.fromarray(frame) for frame in ball(3)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    assert not is_animation(tmp_path / "one.gif")
    assert not is_animation(tmp_path / "pages.tif")
    path = animation(tmp_path / "cut.webp", ball(6), lossless=True)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(MediaError):
        read_animation(open_animation(path), [0])


@pytest.mark.parametrize("place", [4, 8, 12, 16])
def test_a_frame_outside_its_canvas_is_refused(tmp_path: Path, place: int) -> None:
    """place: of the frame's width, height, left or top in its control chunk."""
    path = animation(tmp_path / "a.png", ball(4))
    data = bytearray(path.read_bytes())
    start = data.rindex(b"fcTL") + 4
    data[start + place : start + place + 4] = (60_000).to_bytes(4, "big")
    data[start + 26 : start + 30] = zlib.crc32(data[start - 4 : start + 26]).to_bytes(4, "big")
    path.write_bytes(data)
    with pytest.raises(MediaError, match="outside its canvas"):
        open_animation(path)


def test_animations_and_still_gifs_are_packed_as_what_they_are(tmp_path: Path) -> None:
    animation(tmp_path / "in/walk.webp", ball(8), lossless=True)
    animation(tmp_path / "in/roll.gif", np.where(ball(8) > 127, ball(8), 0), disposal=2)
    Image.fromarray(ball(1, soft=1)[0]).save(tmp_path / "in/star.gif")
    out = tmp_path / "out"
    options = PackOptions(inputs=[str(tmp_path / "in")], out=str(out), frames=8, fps=FPS)
    run_pack(options, workers=0, quiet=True)
    corpus = Corpus.open(out)
    kinds = {r["origin"]["uri"]: (r["kind"], r["num_frames"]) for r in corpus.rows()}
    assert kinds == {
        "walk.webp": ("pasted", 8),
        "roll.gif": ("pasted", 8),
        "star.gif": ("image", 1),
    }


def test_backgrounds_may_be_animations_and_films_whose_alpha_is_opaque(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (60, 80, 4), np.uint8)
    plate = np.stack([np.roll(noise, t, axis=1) for t in range(10)])
    plate[..., 3] = 255
    film(tmp_path / "in/a.mov", plate, "prores_ks", "yuva444p10le", profile="4")
    animation(tmp_path / "in/b.webp", plate, lossless=True)
    animation(tmp_path / "in/c.gif", plate[..., :3])
    film(tmp_path / "in/d.mov", ball(10), "png", "rgba")
    animation(tmp_path / "in/e.webp", ball(10), lossless=True)
    loader = Loader(SIZE, 8, FPS, 60.0)
    for source in list_backgrounds([str(tmp_path / "in")]):
        rng = np.random.default_rng(0)
        if source.name in ("d", "e"):
            with pytest.raises(MediaError, match="transparent parts"):
                loader.background(source, rng, (0.0, 0.0), 1.0)
        else:
            found = loader.background(source, rng, (0.0, 0.0), 1.0)
            assert found.frames.shape == (8, *SIZE, 3)
            assert np.abs(np.diff(found.frames.astype(int), axis=0)).mean() > 3, source.name
    loader.close()
    assert load.TRANSPARENT.startswith("has transparent parts")


def test_an_opaque_film_is_no_foreground_and_says_so(tmp_path: Path, decoder: Local) -> None:
    opaque = ball(8)
    opaque[..., 3] = 255
    path = film(tmp_path / "a.mov", opaque, "png", "rgba")
    with pytest.raises(MediaError, match="fully opaque"):
        LayeredVideoReader({"file": [path]}, decoder)
    grey = np.repeat(ball(8)[..., 3:], 3, 3)
    matte = film(tmp_path / "m.mov", np.concatenate([grey, opaque[..., 3:]], 3), "png", "rgba")
    reel = LayeredVideoReader(
        {"foreground": [path], "alpha": [matte]}, decoder
    )  # brightness is the matte
    assert np.array_equal(reel.mattes(range(8)), ball(8)[..., 3])


def test_an_alpha_channel_that_is_opaque_is_no_matte_to_mine_with(tmp_path: Path) -> None:
    from manifests.mine import MineOptions
    from pipelines.mine.job import run_mine

    opaque = ball(10)
    opaque[..., 3] = 255
    opaque[:, ::3, ::5, 2] = 200  # something to see
    film(tmp_path / "in/a.mov", opaque, "png", "rgba")
    film(tmp_path / "in/b.mov", opaque, "png", "rgba")
    grey = np.repeat(ball(10)[..., 3:], 3, 3)
    beside = np.concatenate([grey, opaque[..., 3:]], 3)
    film(tmp_path / "in/b.mask.mov", beside, "png", "rgba")
    options = MineOptions(
        inputs=[str(tmp_path / "in")],
        out=str(tmp_path / "out"),
        size=SIZE,
        frames=8,
        fps=FPS,
        matting="alpha",
        gate="off",
    )
    run_mine(options, workers=0, quiet=True)
    corpus = Corpus.open(tmp_path / "out")
    assert [row["origin"]["uri"] for row in corpus.rows(["origin"])] == ["b.mov"]
    assert np.array_equal(corpus.clip(0).alpha[0], ball(1)[0, ..., 3])
    (refused,) = corpus.rejected()
    assert refused["uri"] == "a.mov" and "opaque all over" in refused["reason"]
