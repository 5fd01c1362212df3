"""Unusual videos: huge, tiny, very long, short, turned, interlaced, full range, HDR, odd times."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from layerflow.corpus.table import Corpus
from layerflow.media import video
from layerflow.media.cells import MediaError
from layerflow.media.decode import Decoder
from manifests.mine import MineOptions
from pipelines.mine.job import run_mine

GREEN = (20, 200, 40)


def write(
    path: Path,
    pictures: Iterable[np.ndarray],
    *,
    codec: str = "libx264",
    stamps: Sequence[int] | None = None,
    pixel_format: str = "yuv420p",
    source: str = "rgb24",
    options: dict[str, str] | None = None,
    context: dict[str, int] | None = None,
    turn: str | None = None,
) -> Path:
    """stamps: milliseconds of the frames; default 10 frames a second."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=10, options=options or {})
        stream.codec_context.time_base = Fraction(1, 1000)
        for index, picture in enumerate(pictures):
            if index == 0:
                stream.height, stream.width = picture.shape[:2]
                stream.pix_fmt = pixel_format
                for name, value in (context or {}).items():
                    setattr(stream.codec_context, name, value)
            frame = av.VideoFrame.from_ndarray(picture, format=source)
            for name in ("colorspace", "color_range"):
                if name in (context or {}):
                    setattr(frame, name, (context or {})[name])
            frame.pts, frame.time_base = stamps[index] if stamps else 100 * index, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def balls(count: int, height: int = 96, width: int = 128) -> list[np.ndarray]:
    """A ball that crosses a green screen: the chroma backend finds it."""
    y, x = np.mgrid[0:height, 0:width]
    pictures = []
    for t in range(count):
        inside = (x - width * 0.3 - 2 * t) ** 2 + (y - height / 2) ** 2 < (height / 5) ** 2
        pictures.append(np.where(inside[..., None], (180, 40, 90), GREEN).astype(np.uint8))
    return pictures


def grey(level: int, count: int = 3) -> list[np.ndarray]:
    return [np.full((48, 64, 3), level, np.uint8)] * count


def test_each_of_them_is_a_clip_or_a_reason(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    vfr = [1000 * (k // 5) + (0, 90, 210, 300, 410)[k % 5] // (1 + k // 5 % 2) for k in range(30)]
    write(folder / "bframes.mp4", balls(12), options={"bf": "3"})
    write(folder / "offset.mkv", balls(12), stamps=[5000 + 100 * k for k in range(12)])
    write(folder / "portrait.mp4", balls(12, 160, 90))
    write(folder / "three.mp4", balls(3))
    write(folder / "variable.mkv", balls(30), stamps=vfr, options={"bf": "0"})
    write(folder / "hours.mkv", balls(2), stamps=[0, 36_000_000])
    write(folder / "pixel.mkv", [np.full((1, 1, 3), 9, np.uint8)] * 12, codec="ffv1",
          pixel_format="bgr0")  # fmt: skip
    options = MineOptions.model_validate(
        {
            "inputs": [str(folder)], "out": str(tmp_path / "c"), "size": "64x64", "frames": 8,
            "fps": 10, "matting": "chroma", "gate": "off",
        }
    )  # fmt: skip
    run_mine(options, workers=0, quiet=True)
    corpus = Corpus.open(tmp_path / "c")
    kept = {row["origin"]["uri"]: row["origin"] for row in corpus.rows(["origin"])}
    reasons = {row["uri"]: row["reason"] for row in corpus.rejected()}
    assert set(kept) == {"bframes.mp4", "offset.mkv", "portrait.mp4"}
    assert kept["offset.mkv"]["start"] == 0.0
    assert set(reasons) == {"three.mp4", "variable.mkv", "hours.mkv", "pixel.mkv"}
    assert "longest shot lasts" in reasons["three.mp4"]
    assert "distinct frames" in reasons["variable.mkv"] or "lasts" in reasons["variable.mkv"]
    assert "over the limit of 21600 s" in reasons["hours.mkv"]
    assert "too small" in reasons["pixel.mkv"]
    for index in range(len(corpus)):
        clip = corpus.clip(index)
        assert clip.foreground.shape == (8, 64, 64, 3)
        assert 0.03 < (clip.alpha > 127).mean() < 0.5


def test_an_8k_frame_is_decoded_and_a_larger_one_refused(tmp_path: Path) -> None:
    picture = np.full((4320, 7680, 3), 60, np.uint8)
    picture[:, 3840:] = 180
    fast = {"qscale": "4"}
    path = write(tmp_path / "8k.mkv", [picture], codec="mjpeg", pixel_format="yuvj420p",
                 options=fast)  # fmt: skip
    with Decoder() as decoder:
        assert decoder.probe(path).width == 7680
        times, _ = decoder.scan(path)
        frames = decoder.fetch(path, times, 48, 64)
    assert frames.shape == (1, 48, 64, 3)
    assert abs(int(frames[0, 24, 8, 0]) - 60) < 4 and abs(int(frames[0, 24, 56, 0]) - 180) < 4
    with Decoder(video.Limits(max_pixels=4096 * 2160)) as decoder, pytest.raises(MediaError) as no:
        decoder.probe(path)
    assert "HxW 4320x7680 is over the limit" in str(no.value)


def test_full_and_limited_range_show_the_same_grey(tmp_path: Path) -> None:
    for name, pixel_format, color_range in (("l", "yuv420p", 1), ("f", "yuv420p", 2)):
        for level in (0, 128, 255):
            path = write(
                tmp_path / f"{name}{level}.mp4", grey(level), pixel_format=pixel_format,
                context={"color_range": color_range, "colorspace": 5}, options={"crf": "1"},
            )  # fmt: skip
            times, _ = video.scan(path)
            for frames in (video.fetch(path, times, 48, 64), video.read_frames(path)[0]):
                assert abs(int(frames[1, 24, 32, 1]) - level) <= 3, (name, level)


def test_of_interlaced_frames_one_field_is_taken(tmp_path: Path) -> None:
    pictures = []
    for t in range(4):
        picture = np.full((96, 128, 3), 30, np.uint8)
        picture[0::2, 30 + 6 * t : 60 + 6 * t] = 220  # the second field is 12 pixels further on
        picture[1::2, 42 + 6 * t : 72 + 6 * t] = 220
        pictures.append(picture)
    path = write(
        tmp_path / "i.mkv", pictures,
        options={"flags": "+ildct+ilme", "x264-params": "interlaced=1:tff=1", "crf": "4"},
    )  # fmt: skip
    assert video.probe(path).interlaced
    times, _ = video.scan(path)
    frames = video.fetch(path, times, 96, 128)
    combing = np.abs(np.diff(frames[:, 10:-10, :, 1].astype(int), axis=1)).mean()
    assert combing < 3  # as it is in the file: above 30
    bright = frames[0, 48, :, 1] > 125
    assert 26 <= bright.sum() <= 34 and abs(int(np.flatnonzero(bright)[0]) - 30) <= 3


@pytest.mark.parametrize(
    ("name", "code", "expected"),
    [
        ("smpte2084", 0.508, 190),  # 100 of 203 cd/m2: (100 / 203) ** (1 / 2.4)
        ("smpte2084", 0.9, 255),
        ("arib-std-b67", 0.75, 247),  # HLG's own white, rolled off a little
        ("smpte2084", 0.0, 0),
    ],
)
def test_hdr_is_brought_to_the_standard_range(
    name: str, code: float, expected: int, tmp_path: Path
) -> None:
    pictures = [np.full((48, 64, 3), round(code * 65535), np.uint16)] * 3
    params = f"transfer={name}:colorprim=bt2020:colormatrix=bt2020nc"
    path = write(
        tmp_path / "h.mkv", pictures, source="rgb48le", pixel_format="yuv420p10le",
        context={"colorspace": 9, "color_range": 1}, options={"x264-params": params, "crf": "1"},
    )  # fmt: skip
    assert video.probe(path).hdr
    times, thumbs = video.scan(path)
    frames = video.fetch(path, times, 48, 64)
    assert abs(frames.astype(int) - expected).max() <= 5
    assert abs(thumbs.astype(int) - expected).max() <= 5


def test_frame_times_survive_offsets_b_frames_and_gaps(tmp_path: Path) -> None:
    stamps = [7000 + s for s in (0, 40, 80, 200, 240, 500, 540, 1000)]
    pictures = [p for k in range(8) for p in grey(20 + 25 * k, 1)]
    for bf in ("0", "3"):
        path = write(tmp_path / f"{bf}.mkv", pictures, stamps=stamps,
                     options={"bf": bf, "crf": "4"})  # fmt: skip
        times, thumbs = video.scan(path)
        assert np.allclose(times * 1000 + 7000, stamps, atol=1.5)
        picked = video.fetch(path, [times[1], times[3], times[7]], 48, 64)
        assert [round((float(f.mean()) - 20) / 25) for f in picked] == [1, 3, 7]
        assert [round((float(f.mean()) - 20) / 25) for f in thumbs] == list(range(8))
