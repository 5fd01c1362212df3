"""Mattes that come with a video: read by time, and mined with ``--matting alpha``."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from layerflow.corpus.table import Corpus
from layerflow.media.cells import MediaError
from layerflow.media.decode import Decoder
from manifests.mine import MineOptions
from pipelines.mine.job import run_mine
from tests.support.matting_clips import Truth, moving_disc

FPS = 30


def write(path: Path, frames: np.ndarray, codec: str, pixel_format: str, given: str) -> None:
    with av.open(str(path), "w") as container:
        options = {"libx264": {"crf": "8"}, "libvpx-vp9": {"crf": "8", "b": "0"}}.get(codec, {})
        stream = container.add_stream(codec, rate=FPS, options=options)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], pixel_format
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format=given)))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def clip() -> Truth:
    return moving_disc(count=24, size=(96, 144), speed=2.0, pan=0.0)


def levels(clip: Truth) -> np.ndarray:
    return np.rint(clip.alpha * 255).astype(np.uint8)


def with_mask(folder: Path, clip: Truth) -> Path:
    write(folder / "disc.mp4", clip.frames, "libx264", "yuv420p", "rgb24")
    write(folder / "disc.mask.mkv", levels(clip), "ffv1", "gray", "gray")
    return folder / "disc.mp4"


def with_alpha(folder: Path, clip: Truth) -> Path:
    rgba = np.concatenate([clip.frames, levels(clip)[..., None]], axis=-1)
    write(folder / "disc.webm", rgba, "libvpx-vp9", "yuva420p", "rgba")
    return folder / "disc.webm"


def options(folder: Path, out: Path, **more: object) -> MineOptions:
    content = {
        **{"inputs": [str(folder)], "out": str(out), "size": "96x144", "frames": 8, "fps": 10},
        **{"matting": "alpha", "gate": "off"},
        **more,
    }
    return MineOptions.model_validate(content)


def test_mattes_are_found_by_time(tmp_path: Path, clip: Truth) -> None:
    with_mask(tmp_path, clip)
    times = [k / FPS for k in (3, 11, 20)]
    with Decoder() as decoder:
        read = decoder.fetch(tmp_path / "disc.mask.mkv", times, 96, 144, op="matte")
        assert np.abs(read.astype(int) - levels(clip)[[3, 11, 20]]).max() <= 2
        part = decoder.fetch(
            tmp_path / "disc.mask.mkv", times, 48, 72, box=(0.0, 0.5, 0.0, 0.5), op="matte"
        )
        assert np.abs(part.astype(int) - levels(clip)[[3, 11, 20], :48, :72]).max() <= 2
        with pytest.raises(MediaError, match="1 of 2 mattes are missing"):
            decoder.fetch(tmp_path / "disc.mask.mkv", [0.1, 4.0], 96, 144, op="matte")


def test_an_alpha_channel_is_read_from_the_middle(tmp_path: Path, clip: Truth) -> None:
    path = with_alpha(tmp_path, clip)
    with Decoder() as decoder:
        times, _ = decoder.scan(path)
        read = decoder.fetch(path, times[[15, 22]], 96, 144, op="matte")
    assert np.abs(read.astype(int) - levels(clip)[[15, 22]]).mean() < 2


@pytest.mark.parametrize("kind", [with_mask, with_alpha])
def test_the_matte_that_comes_with_a_video_is_mined(tmp_path: Path, clip: Truth, kind) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    kind(folder, clip)
    summary = run_mine(options(folder, tmp_path / "c"), workers=0, quiet=True)
    assert (summary.kept, summary.rejected) == (1, 0)
    mined = Corpus.open(tmp_path / "c").clip(0)
    truth = levels(clip)[[0, 3, 6, 9, 12, 15, 18, 21]]
    assert np.abs(mined.alpha.astype(int) - truth).mean() < 2
    assert np.abs(mined.blended.astype(int) - clip.frames[0::3]).mean() < 8


def test_a_video_without_one_is_a_rejected_row(tmp_path: Path, clip: Truth) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    with_mask(folder, clip)
    (folder / "disc.mask.mkv").unlink()
    summary = run_mine(options(folder, tmp_path / "c"), workers=0, quiet=True)
    (row,) = Corpus.open(tmp_path / "c").rejected()
    assert summary.kept == 0 and row["stage"] == "decode" and "NAME.mask" in row["reason"]
