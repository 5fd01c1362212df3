"""Media cells: what is written comes back, equal input gives equal bytes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from layerflow.clip import U8
from layerflow.media import cells as media
from layerflow.media.video import read_frames


def smooth_video(frames: int = 6, height: int = 61, width: int = 90) -> U8:
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    planes = [
        np.stack(
            [
                127 + 100 * np.sin(x / 9 + t / 3),
                127 + 100 * np.cos(y / 11 - t / 4),
                127 + 90 * np.sin((x + y) / 15),
            ],
            axis=-1,
        )
        for t in range(frames)
    ]
    return np.stack(planes).astype(np.uint8)


def psnr(a: U8, b: U8) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2)))


def test_colour_is_above_40_db_takes_odd_sizes_and_is_deterministic() -> None:
    frames = smooth_video()
    data = media.encode_color(frames, 8)
    back = media.decode_color(data)
    assert back.shape == frames.shape
    assert psnr(frames, back) > 40
    assert abs(float(np.mean(back.astype(float) - frames))) < 0.5
    assert media.encode_color(frames, 8) == data


def test_alpha_is_exact_full_range_and_deterministic() -> None:
    alpha = np.random.default_rng(0).integers(0, 256, (5, 33, 47), dtype=np.uint8)
    data = media.encode_alpha(alpha, 8)
    assert np.array_equal(media.decode_alpha(data), alpha)
    assert media.encode_alpha(alpha, 8) == data
    assert np.array_equal(media.decode_layer("alpha", data, keep=[2, 0]), alpha[[2, 0]])


WRITERS = {
    "colour": lambda frames: media.encode_color(frames, 8),
    "colour, coarse": lambda frames: media.encode_color(frames, 8, crf=26),
    "preview": lambda frames: media.encode_preview(frames, 8),
    "alpha": lambda frames: media.encode_alpha(frames[..., 0], 8),
    "still": lambda frames: media.encode_png(frames[0]),
    "ProRes": lambda frames: written(media.write_prores4444, frames, ".mov"),
    "VP9": lambda frames: written(media.write_vp9_alpha, frames, ".webm"),
}


def written(write: Callable[[Path, U8, float], None], frames: U8, suffix: str) -> bytes:
    rgba = np.concatenate([frames, frames[..., :1]], axis=-1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"film{suffix}"
        write(path, rgba, 8)
        return path.read_bytes()


def noisy_video(height: int, width: int) -> U8:
    frames = smooth_video(5, height, width).astype(float)
    noise = np.random.default_rng(1).normal(0, 6, frames.shape)
    return (frames + noise).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("writer", WRITERS)
def test_bytes_do_not_depend_on_what_the_heap_held_before(writer: str) -> None:
    frames, random = noisy_video(96, 144), np.random.default_rng(2)
    seen = set()
    for _ in range(6):
        sizes = random.integers(100, 400_000, 40)
        scraps = [random.integers(0, 256, size, dtype=np.uint8) for size in sizes]
        del scraps[::2]
        seen.add(WRITERS[writer](frames))
    assert len(seen) == 1


@pytest.mark.parametrize("writer", ["colour", "colour, coarse", "preview"])
def test_every_h264_encode_gives_what_a_cpu_without_vector_instructions_gives(
    writer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = noisy_video(96, 144)
    here = WRITERS[writer](frames)
    write, settings = media._write_stream, []

    def without_vectors(*args: Any) -> None:
        *rest, options = args
        settings.append(options["x264-params"])
        write(*rest, {**options, "x264-params": options["x264-params"] + ":asm=0"})

    monkeypatch.setattr(media, "_write_stream", without_vectors)
    assert WRITERS[writer](frames) == here
    assert settings == ["cpu-independent=1"]


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_png_is_exact(channels: int) -> None:
    shape = (20, 30) if channels == 1 else (20, 30, channels)
    image = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    assert np.array_equal(media.decode_png(media.encode_png(image)), image)


def test_preview_is_what_browsers_play() -> None:
    data = media.encode_preview(smooth_video(height=61, width=91), 8)
    assert data.index(b"moov") < data.index(b"mdat")
    decoded = media.decode_color(data)
    assert decoded.shape[1:3] == (62, 92)


@pytest.mark.parametrize(
    ("writer", "name"), [("write_prores4444", "f.mov"), ("write_vp9_alpha", "f.webm")]
)
def test_alpha_videos_keep_alpha(writer: str, name: str, tmp_path: Path) -> None:
    colour = smooth_video(height=64, width=96)
    alpha = np.zeros(colour.shape[:3], np.uint8)
    alpha[:, 16:48, 24:72] = 255
    path = tmp_path / name
    getattr(media, writer)(path, np.concatenate([colour, alpha[..., None]], axis=-1), 8)
    back, fps = read_frames(path)
    assert fps == pytest.approx(8, rel=0.01)
    assert back.shape == (*colour.shape[:3], 4)
    assert np.mean(np.abs(back[..., 3].astype(int) - alpha)) < 2
    inside = alpha[0] > 0
    assert psnr(colour[:, inside], back[:, inside, :3]) > 30


def test_prores_is_tagged_with_alpha_pixels(tmp_path: Path) -> None:
    rgba = np.full((2, 32, 32, 4), 128, np.uint8)
    media.write_prores4444(tmp_path / "f.mov", rgba, 8)
    with av.open(str(tmp_path / "f.mov")) as container:
        assert container.streams.video[0].codec_context.pix_fmt.startswith("yuva444p")


@pytest.mark.parametrize("data", [b"", b"not a video", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_garbage_is_a_media_error(data: bytes) -> None:
    with pytest.raises(media.MediaError):
        media.decode_layer("blended", data)


def test_png_bomb_is_refused_before_decoding() -> None:
    header = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (60000).to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0"
    with pytest.raises(media.MediaError, match="pixels"):
        media.decode_png(header + b"\0" * 64)
