"""Opening a video: the container, within limits, and which of its streams is shown."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av

from layerflow.media.opening import MediaError, check_file, open_video
from layerflow.media.upright import aspect_of


@dataclass(frozen=True)
class Limits:
    """What a video may cost; checked before any frame is decoded."""

    max_bytes: int = 16 << 30
    max_pixels: int = 8192 * 4320
    max_seconds: float = 6 * 3600.0
    max_frames: int = 2_000_000


def open_container(path: Path, limits: Limits) -> Any:
    """A video, open for reading, by ``opening.open_video``. MediaError when that cannot be."""
    check_file(path, limits.max_bytes)
    try:
        return open_video(path)
    except (av.error.FFmpegError, OSError) as error:
        raise MediaError(f"not a readable video: {reason_of(error)}") from error


def reason_of(error: BaseException) -> str:
    """What FFmpeg says is wrong."""
    return str(getattr(error, "strerror", None) or error)


def best_stream(container: Any, limits: Limits) -> Any:
    """The stream that is meant to be shown; MediaError when there is none, or over ``limits``.

    Cover pictures, thumbnails and previews are left out: by their marks, with a tenth of the
    longest's duration or a single frame, with half of the largest's pixels. Of the rest the default
    one is taken, then the largest, then the longest.
    """
    not_shown = (
        av.stream.Disposition.attached_pic
        | av.stream.Disposition.timed_thumbnails
        | av.stream.Disposition.still_image
        | av.stream.Disposition.dependent
    )
    readable = [s for s in container.streams.video if s.codec_context is not None]
    streams = [s for s in readable if not s.disposition & not_shown]
    if not streams:
        raise MediaError("there is no video stream in the file")
    longest = max(_seconds(s) for s in streams)
    streams = [s for s in streams if not 0 < _seconds(s) < longest / 10] or streams
    streams = [s for s in streams if s.frames != 1] or streams
    largest = max(_pixels(s) for s in streams)
    streams = [s for s in streams if 2 * _pixels(s) > largest] or streams

    def rank(stream: Any) -> tuple[bool, int, float, int]:
        default = bool(stream.disposition & av.stream.Disposition.default)
        return default, _pixels(stream), _seconds(stream), -stream.index

    stream = max(streams, key=rank)
    _check(container, stream, limits)
    stream.thread_count = 1
    return stream


def _pixels(stream: Any) -> int:
    return int(stream.codec_context.width * stream.codec_context.height)


def _seconds(stream: Any) -> float:
    """A stream's own duration; Matroska has it in a tag. 0 if it is unknown."""
    tag = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", ""))
    if tag:
        hours, minutes, seconds = (float(part) for part in tag.groups())
        return hours * 3600 + minutes * 60 + seconds
    return float((stream.duration or 0) * (stream.time_base or 0))


def _check(container: Any, stream: Any, limits: Limits) -> None:
    height, width = stream.codec_context.height, stream.codec_context.width
    wide = width * aspect_of(stream.sample_aspect_ratio, stream.codec_context.sample_aspect_ratio)
    if height * max(wide, width) > limits.max_pixels:
        raise MediaError(f"HxW {height}x{wide:.0f} is over the limit of {limits.max_pixels} pixels")
    if height < 2 or width < 2:
        raise MediaError(f"HxW {height}x{width} pixels is too small to be a video")
    seconds = (container.duration or 0) / 1e6
    if seconds > limits.max_seconds and not may_jump(container):
        raise MediaError(f"{seconds:.0f} s is over the limit of {limits.max_seconds:.0f} s")


def may_jump(container: Any) -> bool:
    """Whether time stamps of this kind of file jump at cuts, so that a duration means nothing."""
    return bool(container.format.flags & av.format.Flags.ts_discont.value)


def has_alpha(stream: Any) -> bool:
    """Whether a stream's pixel format has an alpha channel, or its tags say so (VP8, VP9)."""
    if stream.metadata.get("alpha_mode") == "1":
        return True
    formats = ("yuva", "rgba", "argb", "abgr", "bgra", "gbrap", "ya8", "ya16")
    return (stream.codec_context.pix_fmt or "").startswith(formats)
