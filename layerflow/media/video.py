"""Reading video files in this process: what is in them, frames by time, frames with alpha.

Files that are not trusted go through ``layerflow.media.decode``, which runs these functions in a
child process with a deadline and a memory limit. Times are seconds from the first frame.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from layerflow.clip import U8, resize_cover
from layerflow.media.cells import MediaError
from layerflow.media.container import Limits, best_stream, has_alpha, may_jump, open_container
from layerflow.media.packets import F64, I64
from layerflow.media.reader import VideoReader, facts, kept_reader
from layerflow.media.upright import cover, upright

Box = tuple[float, float, float, float]
"""Part of a frame: top, bottom, left, right as shares of the upright height and width."""

THUMB_WIDTH = 128
LEAST_BYTES_A_SECOND = 2000  # below it a header is not believed
EXACT = 1e-3  # seconds by which a time may differ from the frame's that it was taken from
NEAR = 0.02  # seconds by which a frame may miss the time that is asked for: containers round


@dataclass(frozen=True)
class VideoInfo:
    """One video stream. Height and width are those of the picture as it is shown: upright, with
    square pixels; fps is the average.

    ``interlaced``, ``hdr``, ``rotation`` (degrees counter-clockwise to turn it upright) and
    ``mirrored`` (left and right are exchanged, too) are what the first frame says of itself.
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
    mirrored: bool = False


def probe(path: Path, limits: Limits | None = None) -> VideoInfo:
    """What the best video stream holds, from its header, its packets and its first frame.

    Raises MediaError for unreadable files, files without video and anything over ``limits``.
    """
    limits = limits or Limits()
    found = facts(path, limits)
    with open_container(path, limits) as container:
        stream = best_stream(container, limits)
        context = stream.codec_context
        height, width = found.view.size(context.height, context.width)
        times = found.packets.times[found.first :]
        seconds = float(times[-1] - times[0])
        fps = (len(times) - 1) / seconds if seconds > 0 else float(stream.average_rate or 0)
        return VideoInfo(
            codec=context.name,
            pixel_format=context.pix_fmt or "unknown",
            height=height,
            width=width,
            rotation=found.view.rotation,
            fps=fps,
            seconds=seconds,
            num_frames=len(times),
            has_alpha=has_alpha(stream),
            interlaced=found.interlaced,
            hdr=found.hdr,
            mirrored=found.view.mirrored,
        )


def duration(path: Path, limits: Limits | None = None) -> float:
    """Seconds that the best video stream lasts, by its header; MediaError as ``probe``.

    By its packets where the header is silent, claims more than the file's size makes likely, or
    cannot know: in broadcast containers time stamps jump at cuts.
    """
    limits = limits or Limits()
    with open_container(path, limits) as container:
        stream = best_stream(container, limits)
        seconds = float((stream.duration or 0) * (stream.time_base or 0))
        seconds = seconds or (container.duration or 0) / 1e6
        likely = 0 < seconds < os.path.getsize(path) / LEAST_BYTES_A_SECOND
        if likely and not may_jump(container):
            return seconds
    return float(facts(path, limits).packets.times[-1])


def frame_times(path: Path, limits: Limits | None = None) -> F64:
    """Seconds from the first frame at which each frame is shown, rising; float64 ``[N]``.

    Of every frame that the file announces: one that is damaged is among them.
    """
    found = facts(path, limits or Limits())
    return found.packets.times[found.first :]


def scan(
    path: Path,
    start: float = 0.0,
    end: float = np.inf,
    limits: Limits | None = None,
    *,
    damage: list[str] | None = None,
    splices: list[float] | None = None,
) -> tuple[F64, U8]:
    """Times and thumbnails of every decodable frame in a time span, for shot detection.

    Returns times float64 ``[N]`` (seconds, strictly increasing) and uint8 ``[N, h, 128, 3]``; both
    are empty for a span in which the video shows no new frame.
    damage: gets a line for everything that could not be decoded.
    splices: gets the times of frames that do not go on with what was before: recordings were
    joined, time stamps jump, or the picture's size changes.
    """
    notes: list[str] = [] if damage is None else damage
    times: list[float] = []
    thumbs: list[U8] = []
    take, size = -1, (0, 0)
    converter = VideoReformatter()
    with VideoReader(path, limits or Limits(), damage=notes) as reader:
        places = reader.between(start, end)
        for shown in reader.pictures(places):
            if times and shown.time <= times[-1]:
                notes.append("a frame has the time of the one before")
                continue
            image = upright(shown.frame, "rgb24", converter, shown.view)
            number = int(reader.packets.take[reader.packets.order[shown.place]])
            if times and splices is not None and (number, image.shape[:2]) != (take, size):
                splices.append(shown.time)
            take, size = number, image.shape[:2]
            height = max(2, round(size[0] * THUMB_WIDTH / size[1]))
            height = height if not thumbs else thumbs[0].shape[0]
            thumb = cv2.resize(image, (THUMB_WIDTH, height), interpolation=cv2.INTER_AREA)
            times.append(shown.time)
            thumbs.append(np.asarray(thumb, np.uint8))
    if not times and len(places):
        raise MediaError("no frame could be decoded")
    if not times:
        return np.zeros(0), np.zeros((0, 2, THUMB_WIDTH, 3), np.uint8)
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

    box: only this part of the frame. Returns uint8 ``[len(times), height, width, 3]``;
    MediaError when one cannot be decoded.
    """
    out = np.empty((len(times), height, width, 3), np.uint8)
    with kept_reader(path, limits or Limits()) as reader:
        for here, image in images_at(reader, "rgb24", times, EXACT, "frames could not be decoded"):
            out[here] = fit(image, height, width, box)
    return out


def images_at(
    reader: VideoReader, pixels: str, times: Sequence[float], near: float, lost: str
) -> Iterator[tuple[NDArray[np.int64], U8]]:
    """The frames of an open video nearest to some seconds, upright, each once, with the indices of
    the times that it is for.

    pixels: the format. near: seconds that a frame may be away. Raises MediaError at the end, with
    the words ``lost``, when one is not there or cannot be decoded.
    """
    wanted = np.asarray(times, np.float64)
    places = nearest(reader.packets.times, wanted)
    missing = np.ones(len(wanted), bool)
    due = np.abs(reader.packets.times[places] - wanted) <= near
    converter = VideoReformatter()
    for shown in reader.pictures(np.unique(places[due]).tolist()):
        here = np.flatnonzero(due & (places == shown.place))
        missing[here] = False
        yield here, upright(shown.frame, pixels, converter, shown.view)
    if missing.any():
        raise MediaError(f"{int(missing.sum())} of {len(wanted)} {lost}")


def nearest(times: F64, wanted: F64) -> I64:
    """The places in rising ``times`` [N] that are nearest to the ``wanted`` ones, int64."""
    right = np.clip(np.searchsorted(times, wanted), 0, len(times) - 1)
    left = np.clip(right - 1, 0, len(times) - 1)
    return np.asarray(np.where(wanted - times[left] <= times[right] - wanted, left, right))


def fit(image: U8, height: int, width: int, box: Box | None) -> U8:
    if box is not None:
        h, w = image.shape[:2]
        image = image[round(box[0] * h) : round(box[1] * h), round(box[2] * w) : round(box[3] * w)]
    return resize_cover(image[None], height, width)[0]


def read_frames(
    path: Path,
    *,
    max_frames: int = 10_000,
    limits: Limits | None = None,
    size: tuple[int, int] | None = None,
    times: Sequence[float] | None = None,
) -> tuple[U8, float]:
    """Frames of a local video, upright, alpha kept: uint8 ``[T, H, W, 3 or 4]`` and fps.

    size: height and width that the frames are covered and cropped to, one by one, so that a long
    video is never in memory at its own size; colour under alpha is premultiplied meanwhile.
    times: only the frames nearest to these seconds (see ``frame_times``), at most ``NEAR`` away;
    any order, repeats allowed. Raises MediaError when one is missing, or for more than
    ``max_frames`` frames or 2 GiB.
    VP8/VP9 alpha is decoded with libvpx, since FFmpeg's own decoder drops it silently.
    """
    limits = limits or Limits()
    info = probe(path, limits)
    count = info.num_frames if times is None else len(times)
    height, width = size or (info.height, info.width)
    if count > max_frames:
        raise MediaError(f"{count} frames is over the limit of {max_frames}")
    if count * height * width * (4 if info.has_alpha else 3) > 2 << 30:
        raise MediaError("the decoded frames would take more than 2 GiB")
    frames: dict[int, U8] = {}
    pixels = "rgba" if info.has_alpha else "rgb24"
    converter = VideoReformatter()
    with kept_reader(path, limits, alpha=info.has_alpha) as reader:
        known = reader.packets.times
        places = np.arange(reader.facts.first, len(known))
        if times is not None:
            places = nearest(known, np.asarray(times, np.float64))
            if (far := np.abs(known[places] - np.asarray(times)) > NEAR).any():
                raise MediaError(f"{int(far.sum())} of {count} frames are missing")
        for shown in reader.pictures(np.unique(places).tolist()):
            image = upright(shown.frame, pixels, converter, shown.view)
            if size is None and frames and image.shape != next(iter(frames.values())).shape:
                raise MediaError("the frame size changes inside the video")
            frames[shown.place] = image if size is None else cover(image, *size)
    if not frames:
        raise MediaError("no frame could be decoded")
    chosen = list(frames) if times is None else places.tolist()
    if lost := sum(place not in frames for place in chosen):
        raise MediaError(f"{lost} of {count} frames are missing")
    return np.stack([frames[place] for place in chosen]), info.fps or 8.0
