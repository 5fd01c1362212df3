"""Reading video files in this process: what is in them, frames by time, frames with alpha.

Files that are not trusted go through ``layerflow.decode``, which runs these functions in a child
process with a deadline and a memory limit. Times are seconds from the first frame.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from layerflow.clip import U8, resize_cover
from layerflow.hdr import is_hdr, to_sdr
from layerflow.media import MediaError, frame_array
from layerflow.opening import open_film

F64 = NDArray[np.float64]
Box = tuple[float, float, float, float]
"""Part of a frame: top, bottom, left, right as shares of the upright height and width."""

DECORD_CODECS = frozenset({"h264", "hevc", "vp8", "vp9", "mpeg4"})
ALPHA_DECODERS = {"vp9": "libvpx-vp9", "vp8": "libvpx"}
THUMB_WIDTH = 128
LEAST_BYTES_A_SECOND = 2000  # below it a header is not believed


@dataclass(frozen=True)
class Limits:
    """What a video may cost; checked before any frame is decoded."""

    max_bytes: int = 16 << 30
    max_pixels: int = 8192 * 4320
    max_seconds: float = 6 * 3600.0
    max_frames: int = 2_000_000


@dataclass(frozen=True)
class VideoInfo:
    """One video stream. Height and width are upright, in pixels; fps is the average.

    ``interlaced`` and ``hdr`` are what the first frame says of itself.
    """

    codec: str
    pixel_format: str
    height: int
    width: int
    rotation: int
    fps: float
    seconds: float
    num_frames: int
    has_alpha: bool
    interlaced: bool = False
    hdr: bool = False


def probe(path: Path, limits: Limits | None = None) -> VideoInfo:
    """What the first video stream holds, from its header and packets (nothing is decoded).

    Raises MediaError for unreadable files, files without video and anything over ``limits``.
    """
    limits = limits or Limits()
    with _open(path, limits) as container:
        stream = _video_stream(container, limits)
        context = stream.codec_context
        times = _packet_times(container, stream, limits)
        rotation, interlaced, hdr = _first_frame(path, limits)
        height, width = context.height, context.width
        if rotation % 180:
            height, width = width, height
        seconds = float(times[-1] - times[0]) if len(times) > 1 else 0.0
        fps = (len(times) - 1) / seconds if seconds > 0 else float(stream.average_rate or 0)
        return VideoInfo(
            codec=context.name,
            pixel_format=context.pix_fmt or "unknown",
            height=height,
            width=width,
            rotation=rotation,
            fps=fps,
            seconds=seconds,
            num_frames=len(times),
            has_alpha=has_alpha(stream),
            interlaced=interlaced,
            hdr=hdr,
        )


def probed(path: Path, limits: Limits) -> VideoInfo:
    """``probe``, once for all windows of a file: it reads every packet."""
    try:
        stat = path.stat()
    except OSError:
        return probe(path, limits)
    return _probe_once(path, limits, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=4)
def _probe_once(path: Path, limits: Limits, size: int, modified: int) -> VideoInfo:
    return probe(path, limits)


def duration(path: Path, limits: Limits | None = None) -> float:
    """Seconds that the first video stream lasts, by its header; MediaError as ``probe``.

    By its packets where the header is silent, or claims more than the file's size makes likely.
    """
    limits = limits or Limits()
    with _open(path, limits) as container:
        stream = _video_stream(container, limits)
        seconds = float((stream.duration or 0) * (stream.time_base or 0))
        seconds = seconds or (container.duration or 0) / 1e6
        if 0 < seconds < os.path.getsize(path) / LEAST_BYTES_A_SECOND:
            return seconds
        times = _packet_times(container, stream, limits)
        return float(times[-1] - times[0])


def _open(path: Path, limits: Limits) -> Any:
    try:
        size = os.path.getsize(path)
    except OSError as error:
        raise MediaError(f"cannot be opened: {error.strerror}") from error
    if size == 0:
        raise MediaError("the file is empty (zero bytes)")
    if size > limits.max_bytes:
        raise MediaError(f"{size} bytes is over the limit of {limits.max_bytes}")
    try:
        return open_film(path)
    except (av.error.FFmpegError, OSError) as error:
        raise MediaError(f"not a readable video: {_text(error)}") from error


def _text(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or error)


def _video_stream(container: Any, limits: Limits) -> Any:
    streams = container.streams.video
    if not streams:
        raise MediaError("there is no video stream in the file")
    stream = streams[0]
    height, width = stream.codec_context.height, stream.codec_context.width
    if height * width > limits.max_pixels:
        raise MediaError(f"{width}x{height} is over the limit of {limits.max_pixels} pixels")
    if height < 2 or width < 2:
        raise MediaError(f"{width}x{height} pixels is too small to be a video")
    seconds = (container.duration or 0) / 1e6
    if seconds > limits.max_seconds:
        raise MediaError(f"{seconds:.0f} s is over the limit of {limits.max_seconds:.0f} s")
    stream.thread_count = 1
    return stream


def _packet_times(container: Any, stream: Any, limits: Limits) -> F64:
    ticks: list[int] = []
    try:
        for packet in container.demux(stream):
            tick = packet.pts if packet.pts is not None else packet.dts
            if tick is not None and packet.size:
                ticks.append(tick)
            if len(ticks) > limits.max_frames:
                raise MediaError(f"more than {limits.max_frames} frames")
    except av.error.FFmpegError:
        pass  # a file that is cut off keeps what came before the cut
    if not ticks:
        raise MediaError("the video stream holds no frame")
    return np.sort(np.asarray(ticks, np.float64)) * float(stream.time_base)


def has_alpha(stream: Any) -> bool:
    context = stream.codec_context
    if stream.metadata.get("alpha_mode") == "1":
        return True
    formats = ("yuva", "rgba", "argb", "abgr", "bgra", "gbrap", "ya8", "ya16")
    return (context.pix_fmt or "").startswith(formats)


def _first_frame(path: Path, limits: Limits) -> tuple[int, bool, bool]:
    """Of the first decodable frame: degrees counter-clockwise to turn it upright (display matrix),
    whether it is interlaced, whether it is PQ or HLG.
    """
    with _open(path, limits) as container:
        for frame in _decoded(container, container.streams.video[0]):
            rotation = round(getattr(frame, "rotation", 0) or 0) % 360
            return rotation, bool(frame.interlaced_frame), is_hdr(frame)
    return 0, False, False


def _decoded(container: Any, stream: Any, damage: list[str] | None = None) -> Iterator[Any]:
    """Frames in presentation order; packets that do not decode are skipped (salvage).

    damage: gets a line for each of them.
    """
    damage = [] if damage is None else damage
    try:
        for packet in container.demux(stream):
            try:
                yield from packet.decode()
            except av.error.FFmpegError as error:
                damage.append(_text(error))
    except av.error.FFmpegError as error:
        damage.append(_text(error))


def upright(frame: Any, pixel_format: str, converter: VideoReformatter) -> U8:
    """A frame as an array: HDR brought to SDR, of two fields the first, turned upright."""
    if pixel_format == "rgb24" and is_hdr(frame):
        array = to_sdr(frame, converter)
    else:
        array = frame_array(frame, pixel_format, converter)
    if frame.interlaced_frame and array.shape[0] > 2:
        size = array.shape[1], array.shape[0]
        array = np.asarray(cv2.resize(array[::2], size, interpolation=cv2.INTER_CUBIC), np.uint8)
    turns = round((getattr(frame, "rotation", 0) or 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(array, turns)) if turns else array


def timed_frames(
    path: Path,
    start: float,
    end: float,
    limits: Limits,
    damage: list[str] | None = None,
    *,
    alpha: bool = False,
) -> Iterator[Any]:
    """(time, frame) of decodable frames with ``start <= time < end`` seconds; alpha: keep it."""
    with _open(path, limits) as container:
        stream = _video_stream(container, limits)
        first = None
        if start > 0:
            first = next((f.time for f in _decoded(container, stream) if f.time is not None), None)
            if first is None:
                return
            container.seek(int((start + first) / float(stream.time_base)), stream=stream)
        frames = _decoded(container, stream, damage)
        if alpha and has_alpha(stream) and stream.codec_context.name in ALPHA_DECODERS:
            frames = _decoded_by(ALPHA_DECODERS[stream.codec_context.name], container, stream)
        for frame in frames:
            if frame.time is None:
                continue
            first = frame.time if first is None else first
            time = frame.time - first
            if time >= end:
                return
            if time >= start - 1e-6:
                yield time, frame


def scan(
    path: Path,
    start: float = 0.0,
    end: float = np.inf,
    limits: Limits | None = None,
    *,
    damage: list[str] | None = None,
) -> tuple[F64, U8]:
    """Times and thumbnails of every decodable frame in a time span, for shot detection.

    Returns times float64 ``[N]`` (seconds, strictly increasing) and uint8 ``[N, h, 128, 3]``.
    damage: gets a line for every packet that could not be decoded.
    """
    times: list[float] = []
    thumbs: list[U8] = []
    converter = VideoReformatter()
    for time, frame in timed_frames(path, start, end, limits or Limits(), damage):
        if times and time <= times[-1]:
            continue
        image = upright(frame, "rgb24", converter)
        height = max(2, round(image.shape[0] * THUMB_WIDTH / image.shape[1]))
        times.append(time)
        thumbs.append(cv2.resize(image, (THUMB_WIDTH, height), interpolation=cv2.INTER_AREA))
        if thumbs[-1].shape != thumbs[0].shape:
            raise MediaError("the frame size changes inside the video")
    if not times:
        raise MediaError("no frame could be decoded")
    return np.asarray(times), np.stack(thumbs)


def fetch(
    path: Path,
    times: Sequence[float],
    height: int,
    width: int,
    limits: Limits | None = None,
    *,
    box: Box | None = None,
) -> U8:
    """The frames at the given times (from ``scan``), covered and cropped to height x width.

    decord where it decodes what PyAV decodes (8-bit 4:2:0, upright, no alpha), else PyAV.
    box: only this part of the frame. Returns uint8 ``[len(times), height, width, 3]``;
    MediaError when one cannot be decoded.
    """
    limits = limits or Limits()
    info = probed(path, limits)
    simple = info.codec in DECORD_CODECS and info.pixel_format == "yuv420p"
    simple = simple and not (info.interlaced or info.hdr)
    if simple and info.rotation == 0 and not info.has_alpha and info.height <= 576:
        frames = _fetch_decord(path, times, height, width, box)
        if frames is not None:
            return frames
    return _fetch_av(path, times, height, width, limits, box)


def fit(image: U8, height: int, width: int, box: Box | None) -> U8:
    if box is not None:
        h, w = image.shape[:2]
        image = image[round(box[0] * h) : round(box[1] * h), round(box[2] * w) : round(box[3] * w)]
    return resize_cover(image[None], height, width)[0]


def _fetch_decord(
    path: Path, times: Sequence[float], height: int, width: int, box: Box | None = None
) -> U8 | None:
    """None when decord cannot read the file or does not see the same frames."""
    import decord

    try:
        reader = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
        stamps = np.asarray(reader.get_frame_timestamp(range(len(reader))))[:, 0]
        order = np.argsort(stamps, kind="stable")
        stamps = stamps[order] - stamps.min()
        places = np.searchsorted(stamps, np.asarray(times) - 1e-3)
        if places.max() >= len(stamps) or np.abs(stamps[places] - times).max() > 2e-3:
            return None
        out = np.empty((len(times), height, width, 3), np.uint8)
        for row, place in enumerate(places):
            image = reader[int(order[place])].asnumpy()
            out[row] = fit(image, height, width, box)
    except (decord.DECORDError, RuntimeError, IndexError, ValueError):
        return None
    return out


def _fetch_av(
    path: Path,
    times: Sequence[float],
    height: int,
    width: int,
    limits: Limits,
    box: Box | None = None,
) -> U8:
    wanted = {round(time, 4): row for row, time in enumerate(times)}
    out = np.empty((len(times), height, width, 3), np.uint8)
    found = 0
    span = timed_frames(path, max(0.0, min(times) - 1e-3), max(times) + 1e-3, limits)
    converter = VideoReformatter()
    for time, frame in span:
        row = wanted.pop(round(time, 4), None)
        if row is None:
            continue
        out[row] = fit(upright(frame, "rgb24", converter), height, width, box)
        found += 1
    if found < len(times):
        raise MediaError(f"{len(times) - found} of {len(times)} frames could not be decoded")
    return out


def read_frames(
    path: Path, *, max_frames: int = 10_000, limits: Limits | None = None
) -> tuple[U8, float]:
    """All frames of a local video, upright, alpha kept: uint8 ``[T, H, W, 3 or 4]`` and fps.

    VP8/VP9 alpha is decoded with libvpx, since FFmpeg's own decoder drops it silently.
    """
    limits = limits or Limits()
    info = probe(path, limits)
    if info.num_frames > max_frames:
        raise MediaError(f"{info.num_frames} frames is over the limit of {max_frames}")
    if info.num_frames * info.height * info.width * 4 > 2 << 30:
        raise MediaError("the decoded frames would take more than 2 GiB")
    pixel_format = "rgba" if info.has_alpha else "rgb24"
    with _open(path, limits) as container:
        stream = container.streams.video[0]
        library = ALPHA_DECODERS.get(info.codec) if info.has_alpha else None
        source = _decoded_by(library, container, stream) if library else _decoded(container, stream)
        converter = VideoReformatter()
        frames = [upright(frame, pixel_format, converter) for frame in source]
    if not frames:
        raise MediaError("no frame could be decoded")
    return np.stack(frames), info.fps or 8.0


def _decoded_by(library: str, container: Any, stream: Any) -> Iterator[Any]:
    context: Any = av.CodecContext.create(library, "r")
    for packet in container.demux(stream):
        for frame in context.decode(packet if packet.size else None):
            frame.time_base = stream.time_base
            yield frame
