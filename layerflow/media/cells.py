"""Encoding and in-process decoding of media cells and trusted local files (PyAV).

Untrusted videos are read through ``layerflow.media.decode``, which runs these functions in a child
process. Every encoder here runs with one thread and bit-exact muxing, so that equal frames give
equal bytes, on any x86-64 CPU.
"""

from __future__ import annotations

import io
import tempfile
import threading
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from av.video.reformatter import VideoReformatter

from layerflow.clip import ALPHA, U8
from layerflow.media.opening import (
    MAX_CELL_PIXELS,
    PNG_MAGIC,
    Bounds,
    MediaError,
    cell_frames,
    check_png,
)

__all__ = ["BITEXACT", "MAX_STILL_PIXELS", "PNG_MAGIC", "Bounds", "MediaError"]

BITEXACT = {"fflags": "+bitexact"}
"""Muxer options: no encoder version, no random identifier of the file."""

MAX_STILL_PIXELS = MAX_CELL_PIXELS


def encode_color(frames: U8, fps: float, *, crf: int = 10, pix_fmt: str = "yuv444p") -> bytes:
    """uint8 ``[T, H, W, 3]`` RGB -> MP4 bytes, H.264, BT.709, limited range.

    4:4:4 keeps colour at matte edges and takes odd sizes; crf 10 is above 40 dB on real video.
    """
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4", options=BITEXACT) as container:
        _write_x264(container, frames, pix_fmt, fps, crf, bf="0")
    return buffer.getvalue()


def encode_preview(frames: U8, fps: float, *, crf: int = 22) -> bytes:
    """uint8 ``[T, H, W, 3]`` -> MP4 that browsers play: H.264 4:2:0, index in front, even size."""
    even = _even(frames)
    flags = {**BITEXACT, "movflags": "+faststart"}
    with tempfile.TemporaryDirectory() as folder:  # faststart rewrites the file: a real one
        path = Path(folder) / "preview.mp4"
        with av.open(str(path), "w", format="mp4", options=flags) as container:
            _write_x264(container, even, "yuv420p", fps, crf)
        return path.read_bytes()


def encode_alpha(alpha: U8, fps: float, *, few_levels: bool = False) -> bytes:
    """uint8 ``[T, H, W]`` -> Matroska bytes, FFV1 ``gray``: lossless, full range.

    few_levels: pictures of a handful of levels, which a range coder makes smaller.
    """
    options = {"level": "3", "slices": "4", "slicecrc": "1", "threads": "1"}
    if few_levels:
        options["coder"] = "range_tab"
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska", options=BITEXACT) as container:
        _write_stream(container, alpha, "gray", "ffv1", "gray", fps, options)
    return buffer.getvalue()


def _rate(fps: float) -> Fraction:
    return Fraction(fps).limit_denominator(1001)


def _write_x264(
    container: Any, frames: U8, pix_fmt: str, fps: float, crf: int, **more: str
) -> None:
    """Every H.264 encode goes through here: equal bytes whatever the CPU can do.

    Without ``cpu-independent`` x264 takes other code for each CPU; what it takes with AVX-512 (the
    cost propagation of mb-tree) also reads memory that nobody wrote. It costs no time.
    """
    options = {"crf": str(crf), "preset": "veryfast", "threads": "1", **more}
    options["x264-params"] = "cpu-independent=1"
    _write_stream(container, frames, "rgb24", "libx264", pix_fmt, fps, options)


def _write_stream(
    container: Any,
    frames: U8,
    source_format: str,
    codec: str,
    pix_fmt: str,
    fps: float,
    options: dict[str, str],
) -> None:
    stream = container.add_stream(codec, rate=_rate(fps), options=options)
    stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], pix_fmt
    stream.codec_context.flags |= 1 << 23  # AV_CODEC_FLAG_BITEXACT: no encoder version in the file
    stream.thread_count = 1
    yuv = pix_fmt.startswith("yuv")
    if yuv:
        stream.codec_context.colorspace = 1  # BT.709
        stream.codec_context.color_primaries = 1
        stream.codec_context.color_trc = 1
        stream.codec_context.color_range = 1  # limited
    converter = _converter(frames.shape[1:3], source_format, pix_fmt)
    for index, array in enumerate(frames):
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(array), format=source_format)
        if yuv:
            frame = converter.reformat(
                frame, format=pix_fmt, dst_colorspace=1, dst_color_range=1, threads=1
            )
        elif pix_fmt != source_format:
            frame = converter.reformat(frame, format=pix_fmt, threads=1)
        frame.pts = index
        frame.time_base = 1 / _rate(fps)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def decode_layer(
    layer: str, data: bytes, bounds: Bounds | None = None, keep: Sequence[int] | None = None
) -> U8:
    """The media cell of a layer: ``decode_alpha`` or ``decode_color``."""
    return (decode_alpha if layer == ALPHA else decode_color)(data, bounds, keep)


def decode_color(
    data: bytes, bounds: Bounds | None = None, keep: Sequence[int] | None = None
) -> U8:
    """A colour cell (MP4 or PNG) -> uint8 ``[T, H, W, 3]``.

    bounds: what the row says of its layers. keep: which frames, in that order; None: all. Only
    these are converted, which is most of the work at small sizes. Raises MediaError for a cell that
    is damaged, of another kind, or outside the bounds.
    """
    if data[:8] == PNG_MAGIC:
        return _kept(decode_png(data, bounds)[None, ..., :3], keep)
    return _decode(data, "rgb24", bounds, keep)


def decode_alpha(
    data: bytes, bounds: Bounds | None = None, keep: Sequence[int] | None = None
) -> U8:
    """An alpha cell (FFV1 or PNG) -> uint8 ``[T, H, W]``, exactly as it was encoded.

    bounds, keep and errors as of ``decode_color``.
    """
    if data[:8] == PNG_MAGIC:
        return _kept(decode_png(data, bounds)[None], keep)
    return _decode(data, "gray", bounds, keep)


def _kept(still: U8, keep: Sequence[int] | None) -> U8:
    return still if keep is None else still[list(keep)]


def _decode(
    data: bytes, pixel_format: str, bounds: Bounds | None, keep: Sequence[int] | None
) -> U8:
    wanted = None if keep is None else set(keep)
    taken: dict[int, U8] = {}
    count = 0
    for index, frame in enumerate(cell_frames(data, bounds)):
        count = index + 1
        if wanted is None or index in wanted:
            converter = _converter(frame.height, pixel_format)
            taken[index] = frame_array(frame, pixel_format, converter)
            if taken[index].shape != next(iter(taken.values())).shape:
                raise MediaError("the frame size changes inside the media cell")
    if not count:
        raise MediaError("media cell holds no frame")
    if wanted is not None and len(taken) < len(wanted):
        raise MediaError(f"a media cell has no frame {max(wanted)}")
    if keep is None and bounds is not None and bounds.height is not None and count != bounds.frames:
        raise MediaError(f"the media cell holds {count} frames, the row says {bounds.frames}")
    return np.stack([taken[index] for index in (range(count) if keep is None else keep)])


def _converter(*key: object) -> VideoReformatter:
    """One pixel format converter per kind of picture: setting one up costs milliseconds."""
    return _cached_converter(threading.get_ident(), *key)


@lru_cache(maxsize=32)
def _cached_converter(*key: object) -> VideoReformatter:
    return VideoReformatter()


def frame_array(frame: Any, pixel_format: str, converter: VideoReformatter | None = None) -> U8:
    """One decoded frame in ``pixel_format``, with the stream's own matrix and range.

    converter: one that is kept for all frames of a stream, since setting it up costs milliseconds.
    """
    if frame.format.name == pixel_format:
        return frame.to_ndarray()
    matrix = frame.colorspace
    if matrix in (2, 0) and frame.format.name != "gbrp":  # unspecified: by size, as players do
        matrix = 1 if frame.height > 576 else 5
    converted = (converter or VideoReformatter()).reformat(
        frame,
        format=pixel_format,
        src_colorspace=matrix,
        src_color_range=frame.color_range or 1,
        dst_color_range=2,
        threads=1,  # a pool of threads costs more than a frame
    )
    return np.asarray(converted.to_ndarray(), np.uint8)


def encode_png(image: U8) -> bytes:
    """uint8 ``[H, W]``, ``[H, W, 3]`` or ``[H, W, 4]`` (RGB order) -> PNG bytes."""
    if image.ndim == 3:
        code = cv2.COLOR_RGB2BGR if image.shape[2] == 3 else cv2.COLOR_RGBA2BGRA
        image = cv2.cvtColor(image, code)
    ok, data = cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 4])
    if not ok:
        raise MediaError("PNG encoding failed")
    return bytes(data)


def decode_png(data: bytes, bounds: Bounds | None = None) -> U8:
    """PNG bytes that this module wrote -> uint8 ``[H, W]``, ``[H, W, 3]`` or ``[H, W, 4]``.

    bounds and errors as of ``decode_color``.
    """
    check_png(data, bounds)
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None or image.dtype != np.uint8:
        raise MediaError("PNG cannot be decoded to 8 bits")
    if image.ndim == 2:
        return image
    code = cv2.COLOR_BGR2RGB if image.shape[2] == 3 else cv2.COLOR_BGRA2RGBA
    return cv2.cvtColor(image, code)


def write_prores4444(path: Path, rgba: U8, fps: float) -> None:
    """uint8 ``[T, H, W, 4]`` straight RGBA -> ProRes 4444 ``.mov`` with alpha, for editors."""
    options = {"profile": "4", "threads": "1", "vendor": "apl0"}
    with _new_file(path, "mov") as container:
        _write_stream(container, rgba, "rgba", "prores_ks", "yuva444p10le", fps, options)


def write_vp9_alpha(path: Path, rgba: U8, fps: float) -> None:
    """uint8 ``[T, H, W, 4]`` straight RGBA -> VP9 ``.webm`` with alpha, for browsers."""
    options = {"crf": "18", "b": "0", "threads": "1", "auto-alt-ref": "0"}
    with _new_file(path, "webm") as container:
        _write_stream(container, _even(rgba), "rgba", "libvpx-vp9", "yuva420p", fps, options)


def _even(frames: U8) -> U8:
    """Frames ``[T, H, W, C]`` with the last row and column repeated where their number is odd."""
    pad = ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0))
    return np.pad(frames, pad, mode="edge")


def _new_file(path: Path, container_format: str) -> Any:
    path.parent.mkdir(parents=True, exist_ok=True)
    return av.open(str(path), "w", format=container_format, options=BITEXACT)
