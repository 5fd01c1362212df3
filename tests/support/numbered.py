"""Test films that carry their frame number in the picture, in every container, codec and GOP."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from layerflow.clip import U8

HEIGHT, WIDTH, COUNT, FPS = 48, 64, 48, 12
ROWS, COLUMNS = 2, 4  # blocks: one bit each
DARK, LIGHT = 40, 215


def numbered(number: int, height: int = HEIGHT, width: int = WIDTH) -> U8:
    """uint8 ``[H, W, 3]``: bit k of the number is the brightness of block k, under some noise."""
    bits = np.array([number >> k & 1 for k in range(ROWS * COLUMNS)]).reshape(ROWS, COLUMNS)
    blocks = np.where(bits, LIGHT, DARK).repeat(height // ROWS, 0).repeat(width // COLUMNS, 1)
    noise = np.random.default_rng(number).integers(-30, 31, blocks.shape)
    return (blocks + noise)[..., None].repeat(3, 2).astype(np.uint8)


def numbers(frames: np.ndarray) -> list[int]:
    """The numbers of pictures ``[N, H, W]`` or ``[N, H, W, C]`` of any size."""
    found = []
    for frame in frames:
        grey = frame if frame.ndim == 2 else frame[..., 0]
        h, w = grey.shape[0] // ROWS, grey.shape[1] // COLUMNS
        number = 0
        for k in range(ROWS * COLUMNS):
            y, x = k // COLUMNS * h, k % COLUMNS * w
            part = grey[y + h // 4 : y + h - h // 4, x + w // 4 : x + w - w // 4]
            number |= int(part.mean() > 127) << k
        found.append(number)
    return found


@dataclass(frozen=True)
class Kind:
    """How a film is written. stamps: the frames' times in ticks of 1/1000 s."""

    name: str
    codec: str
    options: dict[str, str] = field(default_factory=dict)
    pixels: str = "yuv420p"
    muxer: str | None = None
    mux: dict[str, str] = field(default_factory=dict)
    stamps: tuple[int, ...] | None = None
    size: tuple[int, int] = (HEIGHT, WIDTH)
    count: int = COUNT
    fps: int = FPS

    @property
    def suffix(self) -> str:
        return self.name.rsplit(".", 1)[1]


def write(path: Path, kind: Kind, first: int = 0, pictures: Sequence[U8] | None = None) -> Path:
    """A film of the numbers from ``first`` on (or of given pictures)."""
    if pictures is None:
        pictures = [numbered(first + k, *kind.size) for k in range(kind.count)]
    with av.open(str(path), "w", format=kind.muxer, options=kind.mux) as container:
        stream: Any = container.add_stream(kind.codec, rate=kind.fps, options=kind.options)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = kind.pixels
        stream.thread_count = 1
        if kind.stamps is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for k, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if kind.stamps is not None:
                frame.pts, frame.time_base = kind.stamps[k], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


X264 = {"crf": "10", "preset": "veryfast"}
B3 = {"bf": "3", "b_strategy": "0", "g": "12"}
OPEN = {**B3, "x264-params": "open-gop=1:keyint=12:min-keyint=12:scenecut=0"}
REFRESH = {"x264-params": "intra-refresh=1:keyint=16:bframes=0:scenecut=0"}
LONG = {"g": "250", "bf": "2"}
X265 = "log-level=none:keyint=12:min-keyint=12:scenecut=0:bframes=3:crf=12"
HEVC_OPEN = {"preset": "ultrafast", "x265-params": f"{X265}:open-gop=1"}
HEVC_CLOSED = {"preset": "ultrafast", "x265-params": f"{X265}:open-gop=0"}
Q2 = {"qscale": "2", "g": "12"}
Q2B = {**Q2, "bf": "2"}
VPX = {"crf": "10", "b": "2M", "g": "12", "cpu-used": "8", "deadline": "realtime"}
ALTREF = {"crf": "10", "b": "2M", "g": "24", "auto-alt-ref": "1", "lag-in-frames": "16"}
SVT = {"preset": "12", "crf": "10", "g": "12", "svtav1-params": "lp=1"}
IRREGULAR = tuple(int(v) for v in np.cumsum([0, *([40, 40, 80, 200, 40, 120] * 8)])[:COUNT])


def kinds() -> Iterator[Kind]:
    """Every container with every codec that is common in it, and every way to lay out GOPs."""
    for end in ("mp4", "mov", "mkv", "ts", "m2ts", "flv", "avi", "mpg"):
        yield Kind(f"h264-plain.{end}", "libx264", {**X264, "bf": "0", "g": "12"})
        yield Kind(f"h264-b.{end}", "libx264", {**X264, **B3})
        yield Kind(f"h264-open.{end}", "libx264", {**X264, **OPEN})
        yield Kind(f"h264-refresh.{end}", "libx264", {**X264, **REFRESH})
    for end in ("mp4", "mkv", "ts"):
        yield Kind(f"h264-long.{end}", "libx264", {**X264, **LONG})
        yield Kind(f"hevc-open.{end}", "libx265", HEVC_OPEN)
        yield Kind(f"hevc-closed.{end}", "libx265", HEVC_CLOSED)
    for end in ("avi", "mp4", "mkv", "3gp", "mov"):
        yield Kind(f"mpeg4-b.{end}", "mpeg4", Q2B)
    yield Kind("mpeg4-plain.avi", "mpeg4", Q2)
    for end in ("mpg", "ts", "mkv"):
        yield Kind(f"mpeg2-b.{end}", "mpeg2video", Q2B, fps=25)
        yield Kind(f"mpeg2-plain.{end}", "mpeg2video", Q2, fps=25)
    yield Kind("mpeg1-b.mpg", "mpeg1video", Q2B, fps=25)
    for end in ("webm", "mkv"):
        yield Kind(f"vp8.{end}", "libvpx", VPX)
        yield Kind(f"vp8-altref.{end}", "libvpx", {**ALTREF, "deadline": "good", "cpu-used": "5"})
        yield Kind(f"vp9.{end}", "libvpx-vp9", VPX)
        yield Kind(f"vp9-altref.{end}", "libvpx-vp9", {**ALTREF, "cpu-used": "5"})
    yield Kind("vp9.mp4", "libvpx-vp9", VPX)
    for end in ("mkv", "mp4", "webm"):
        yield Kind(f"av1.{end}", "libsvtav1", SVT, size=(64, 64))
    yield Kind("mjpeg.avi", "mjpeg", {"qscale": "2"}, "yuvj420p")
    yield Kind("mjpeg.mov", "mjpeg", {"qscale": "2"}, "yuvj420p")
    yield Kind("ffv1.mkv", "ffv1", {"g": "12"}, "yuv420p")
    yield Kind("ffv1.avi", "ffv1", {}, "yuv420p")
    yield Kind("prores.mov", "prores_ks", {}, "yuv422p10le")
    yield Kind("cineform.mov", "cfhd", {}, "yuv422p10le")
    yield Kind("wmv2.wmv", "wmv2", Q2, muxer="asf")
    yield Kind("h264-b.wmv", "libx264", {**X264, **B3}, muxer="asf")
    yield Kind("h264-b.mxf", "libx264", {**X264, **B3}, fps=25)
    yield Kind("mpeg2-b.mxf", "mpeg2video", Q2B, fps=25)
    yield Kind("flv1.flv", "flv", Q2)
    yield Kind("h263.3gp", "h263", Q2, size=(96, 128))
    yield Kind("qtrle.mov", "qtrle", {}, "rgb24")
    yield Kind("h264.h264", "libx264", {**X264, **B3}, muxer="h264")
    yield Kind("hevc.hevc", "libx265", HEVC_OPEN, muxer="hevc")
    yield Kind("mpeg4.m4v", "mpeg4", Q2B, muxer="m4v")
    fragments = {"movflags": "frag_keyframe+empty_moov"}
    yield Kind("fragments.mp4", "libx264", {**X264, **B3}, mux=fragments)
    yield Kind("late.ts", "libx264", {**X264, **B3}, mux={"output_ts_offset": "1000"})
    yield Kind("wrap.ts", "libx264", {**X264, **B3}, mux={"output_ts_offset": "95441"})
    yield Kind("late.mkv", "libx264", {**X264, **B3}, mux={"output_ts_offset": "7.3"})
    yield Kind("irregular.mkv", "libx264", {**X264, **B3}, stamps=IRREGULAR)
    yield Kind(
        "lapse.mkv", "libx264", {**X264, **B3}, stamps=tuple(range(0, COUNT * 12_000, 12_000))
    )
    yield Kind("irregular.mp4", "libx265", HEVC_OPEN, stamps=IRREGULAR)
    yield Kind("irregular.webm", "libvpx-vp9", VPX, stamps=IRREGULAR)
