"""The one place where a video or a media cell is opened.

What it is follows from its first bytes alone. Only the demuxer of that kind gets it, through a file
object: no name, playlist, reference or network address inside it is ever followed. Playlists
(HLS, DASH, ``ffconcat``), session descriptions, picture patterns and virtual devices are no kind.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import av

from layerflow.regular import NotRegularError, open_regular

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
HEAD_BYTES = 4096
BUFFER_BYTES = 1 << 18
BOXES = frozenset(
    {b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp", b"sidx", b"moof"}
    | {b"uuid", b"pdin", b"emsg", b"jP  "}
)
KINDS = (  # place and value of the first bytes, FFmpeg's name of the demuxer
    (0, b"\x1aE\xdf\xa3", "matroska"),
    (8, b"AVI ", "avi"),
    (8, b"AVIX", "avi"),
    (0, b"FLV\x01", "flv"),
    (0, b"OggS", "ogg"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "asf"),
    (0, b"\x06\x0e\x2b\x34\x02\x05\x01\x01", "mxf"),
    (0, b"GIF87a", "gif"),
    (0, b"GIF89a", "gif"),
    (0, b"YUV4MPEG2 ", "yuv4mpegpipe"),
    (0, b"DKIF", "ivf"),
    (0, b"nut/multimedia container\0", "nut"),
    (0, b"\x1f\x07\x00", "dv"),
    (0, b".RMF", "rm"),
    (0, b"\xb7\xd8\x00\x20\x37\x49\xda\x11\xa6\x4e\x00\x07\xe9\x5e\xad\x8d", "wtv"),
    (0, b"\x00\x00\x00\x00\x01\xbc", "gxf"),
    (0, b"\x00\x00\x01\xba", "mpeg"),
    (0, b"\x00\x00\x01\xb3", "mpegvideo"),
    (0, b"\x00\x00\x01\xb0", "m4v"),
)
RAW_STREAMS = (  # the first unit: parameters, a delimiter or a message
    (re.compile(rb"\x00?\x00\x00\x01[\x40\x42\x44\x46\x4e]\x01"), "hevc"),
    (re.compile(rb"\x00?\x00\x00\x01[\x06\x09\x27\x47\x67]"), "h264"),
)
CELL_KINDS = frozenset({"mov", "matroska"})
CELL_CODECS = frozenset({"h264", "hevc", "av1", "libdav1d", "vp9", "ffv1"})
PLAYLISTS = re.compile(
    rb"#EXTM3U|ffconcat\s+version|<MPD\b|c=IN IP|\[playlist\]|\[Reference\]|<asx\b|<smil\b"
    rb"|<SmoothStreamingMedia|RTSPtext|^SMIL",
    re.IGNORECASE,
)
PACKETS = (188, 192, 204)  # bytes of a transport stream's packet, plain, on Blu-ray, with parity

MAX_CELL_FRAMES = 10_000
MAX_CELL_PIXELS = 64_000_000
MAX_CELL_BYTES = 4 << 30


class MediaError(ValueError):
    """A video or picture that cannot be used; the message says why."""


@dataclass(frozen=True)
class Bounds:
    """What a media cell may hold. frames: at most that many; height, width: exactly these, in
    pixels, or None: any up to 64 megapixels."""

    frames: int = MAX_CELL_FRAMES
    height: int | None = None
    width: int | None = None

    @classmethod
    def of(cls, row: Any) -> Bounds:
        """The numbers that a corpus row says of its own layers. Raises MediaError for absurd ones.

        row: with int ``num_frames``, ``height`` and ``width``.
        """
        frames, height, width = (row[name] or 0 for name in ("num_frames", "height", "width"))
        if not 1 <= frames <= MAX_CELL_FRAMES:
            raise MediaError(f"the row says that it has {frames} frames")
        if height < 1 or width < 1 or height * width > MAX_CELL_PIXELS:
            raise MediaError(f"the row says that its frames are {height}x{width}")
        if frames * height * width * 3 > MAX_CELL_BYTES:
            raise MediaError(f"a layer of {frames} frames of {height}x{width} is over 4 GiB")
        return cls(frames, height, width)

    @property
    def coded_pixels(self) -> int:
        """Pixels that a coded frame may have: codecs pad to whole blocks."""
        if self.height is None or self.width is None:
            return MAX_CELL_PIXELS
        return (self.height + 128) * (self.width + 128)

    def check_size(self, height: int, width: int) -> None:
        """Raises MediaError for a picture of another size."""
        if self.height is not None and (height, width) != (self.height, self.width):
            size = f"{height}x{width}, the row says {self.height}x{self.width}"
            raise MediaError(f"the media cell is {size}")
        if height < 1 or width < 1 or height * width > MAX_CELL_PIXELS:
            raise MediaError(f"{height}x{width} is over {MAX_CELL_PIXELS} pixels")

    def check_count(self, frames: int, height: int, width: int) -> None:
        """Raises MediaError when so many frames are too many, or too many bytes."""
        if frames > self.frames:
            raise MediaError(f"the media cell holds more than {self.frames} frames")
        if frames * height * width * 3 > MAX_CELL_BYTES:
            raise MediaError("the media cell takes more than 4 GiB when it is decoded")


def check_file(path: Path, limit: int) -> os.stat_result:
    """A file's status. Raises MediaError for one that is absent, empty or over ``limit`` bytes."""
    try:
        status = path.stat()
    except OSError as error:
        raise MediaError(f"cannot be opened: {error.strerror}") from error
    if status.st_size == 0:
        raise MediaError("the file is empty (zero bytes)")
    if status.st_size > limit:
        raise MediaError(f"{status.st_size} bytes is over the limit of {limit}")
    return status


def sniff(head: bytes) -> str | None:
    """FFmpeg's name of the demuxer for a video that starts with ``head``; None: it is no video."""
    if head[4:8] in BOXES:
        return "mov"
    for place, value, kind in KINDS:
        if head[place : place + len(value)] == value and (kind != "avi" or head[:4] == b"RIFF"):
            return kind
    if head[:8] == PNG_MAGIC and b"acTL" in head:
        return "apng"
    for unit, kind in RAW_STREAMS:
        if unit.match(head):
            return kind
    if not _is_text(head[:16]) and any(_packets(head, size) for size in PACKETS):
        return "mpegts"  # a recording may start in the middle of a packet; a playlist is text
    if not _is_text(head[:16]) and b"\x00\x00\x01\xba" in head:
        return "mpeg"  # likewise
    return None


def _why_not(head: bytes) -> str:
    if PLAYLISTS.search(head):
        return "a playlist or script that names other files"
    if head and _is_text(head):
        return "it is a text file"
    return "its first bytes are of no known kind of video"


def _is_text(head: bytes) -> bool:
    return all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head)


def _packets(head: bytes, size: int) -> bool:
    """Whether packets of this size follow each other, each with its sync byte (at least four)."""
    count = max(4, len(head) // size - 1)
    return any(
        head[start : start + count * size : size] == b"G" * count
        for start in range(min(size, len(head)))
    )


def open_video(path: Path) -> Any:
    """A local video as PyAV's container; the file is closed with it.

    Nothing beside the file is read. Raises MediaError for what is no video by its first bytes,
    FFmpegError for a video that is damaged, OSError when it cannot be read.
    """
    file = _RegularFile(path)
    head = file.read(HEAD_BYTES)
    kind = sniff(head)
    if kind is None:
        raise MediaError(f"not a readable video: {_why_not(head)}")
    file.seek(0)
    return _open(file, kind, {})


def open_cell(data: bytes, bounds: Bounds | None = None) -> Any:
    """A media cell that is no PNG as PyAV's container with one video stream, ready to decode.

    Raises MediaError for anything but MP4 and Matroska with one of ``CELL_CODECS`` inside the
    bounds, FFmpegError for damaged ones.
    """
    bounds = bounds or Bounds()
    kind = sniff(bytes(data[:HEAD_BYTES]))
    if kind not in CELL_KINDS:
        raise MediaError("media cell cannot be read: it is no PNG, MP4 or Matroska")
    most = {"max_pixels": str(bounds.coded_pixels)}  # FFmpeg's own limit, before it takes memory
    container = _open(io.BytesIO(data), kind, most)
    try:
        if len(container.streams) != 1 or len(container.streams.video) != 1:
            raise MediaError("the media cell does not hold one video stream")
        context = container.streams.video[0].codec_context
        if context is None or context.name not in CELL_CODECS:
            name = context.name if context is not None else "unknown"
            raise MediaError(f"the media cell is coded as {name[:40]}, not as one of our codecs")
        bounds.check_size(context.height, context.width)
        container.streams.video[0].thread_count = 1
        context.options = most
    except BaseException:
        container.close()
        raise
    return container


def cell_frames(data: bytes, bounds: Bounds | None = None) -> Iterator[Any]:
    """PyAV's frames of a media cell, in order, each checked against the bounds.

    Raises MediaError for a cell that is damaged or outside the bounds.
    """
    bounds = bounds or Bounds()
    try:
        with open_cell(data, bounds) as container:
            for index, frame in enumerate(container.decode(video=0)):
                bounds.check_size(frame.height, frame.width)
                bounds.check_count(index + 1, frame.height, frame.width)
                yield frame
    except (av.error.FFmpegError, IndexError) as error:
        raise MediaError(f"media cell cannot be decoded: {error}") from error


def check_png(data: bytes, bounds: Bounds | None = None) -> None:
    """Raises MediaError for a PNG whose header is cut off, animated, or outside the bounds."""
    if len(data) < 33 or data[12:16] != b"IHDR":
        raise MediaError("PNG header is cut off")
    width, height = (int.from_bytes(data[i : i + 4], "big") for i in (16, 20))
    (bounds or Bounds()).check_size(height, width)
    place = 8
    while place + 8 <= len(data) and (name := bytes(data[place + 4 : place + 8])) != b"IDAT":
        if name == b"acTL":
            raise MediaError("the PNG is an animation")
        place += 12 + int.from_bytes(data[place : place + 4], "big")


def _open(file: Any, kind: str, options: dict[str, str]) -> Any:
    return av.open(
        file,
        "r",
        format=kind,
        options={**options, "protocol_whitelist": "none", "format_whitelist": _names(kind)},
        metadata_errors="replace",
        buffer_size=BUFFER_BYTES,
        io_open=_refused,
    )


def _names(kind: str) -> str:
    names = {"mov": "mov,mp4,m4a,3gp,3g2,mj2", "matroska": "matroska,webm"}
    return names.get(kind, kind)


def _refused(url: str, flags: int, options: dict[str, Any]) -> NoReturn:
    raise PermissionError("a video names another file, which is not opened")


class _RegularFile:
    """A regular file for PyAV, closed when nothing holds it any more."""

    def __init__(self, path: Path) -> None:
        self._number = -1
        self.name = path.name
        try:
            self._number = open_regular(path)
        except NotRegularError as error:
            raise MediaError(str(error)) from error

    def read(self, size: int) -> bytes:
        return os.read(self._number, size)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return os.lseek(self._number, offset, whence)

    def tell(self) -> int:
        return os.lseek(self._number, 0, os.SEEK_CUR)

    def close(self) -> None:
        if self._number >= 0:
            os.close(self._number)
            self._number = -1

    def __del__(self) -> None:
        self.close()
