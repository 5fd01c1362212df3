"""One layer of a video, read in parts: a video, numbered frames, or an animated picture.

A long video is never in memory as a whole: frames are read by number, at the size that is wanted.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from layerflow.clip import U8, resize_cover
from layerflow.media.cells import MediaError
from layerflow.media.decode import Decoder
from layerflow.media.frame_rate import evenly
from pipelines.inputs.listing import VIDEO_SUFFIXES
from pipelines.readers.animations import is_animation, open_animation, read_animation
from pipelines.readers.stills import OPAQUE, grey_of, read_matte, read_still

Paths = Sequence[Path]
Size = tuple[int, int]
WHOLE_BYTES = 256 << 20  # of a video's decoded frames, up to which it is decoded once
CHUNK_BYTES = 192 << 20  # of frames that are read at once: every time a video is sought in
NEAR_FRAMES = 2000  # of a video, which is decoded in one go to look at a few of its frames
PROBES = 9  # frames that are read to see what a layer holds


class _FrameSource(ABC):
    """count, fps (0: unknown) and size (height, width) of what ``read`` gives."""

    count: int
    fps: float
    size: Size

    @abstractmethod
    def read(self, chosen: Sequence[int], size: Size | None) -> U8:
        """Frames by number, uint8 ``[N, h, w, 3 or 4]``, colour and alpha as stored."""

    def mattes(self, chosen: Sequence[int], size: Size | None) -> U8 | None:
        """The same as mattes where they are stored as such, else None."""
        return None


class FrameReader:
    """Frames of one layer by number. Raises MediaError for what cannot be read.

    paths: one video or animated picture, or the frames in order.
    """

    def __init__(self, paths: Paths, decoder: Decoder) -> None:
        reader: _FrameSource
        if len(paths) == 1 and is_animation(paths[0]):
            reader = _Animated(paths[0])
        elif paths[0].suffix.lower() in VIDEO_SUFFIXES:
            reader = _Video(paths[0], decoder)
        else:
            reader = _Numbered(paths)
        self._reader = reader
        self.count, self.fps, self.size = reader.count, reader.fps, reader.size

    def frames(self, chosen: Sequence[int], size: Size | None = None) -> U8:
        """uint8 ``[N, h, w, 3 or 4]``; four channels, colour as stored, where alpha is used.

        size: height and width to cover and crop to, for layers without alpha: how colour goes with
        alpha depends on what it was mixed with.
        """
        found = self._reader.read(chosen, size)
        return found if self.uses_alpha else np.ascontiguousarray(found[..., :3])

    def mattes(self, chosen: Sequence[int], size: Size | None = None) -> U8:
        """uint8 ``[N, h, w]``: alpha where it is used, else brightness."""
        stored = self._reader.mattes(chosen, size)
        if stored is not None:
            return stored
        found = self._reader.read(chosen, size)
        if self.uses_alpha:
            return np.ascontiguousarray(found[..., 3])
        return np.stack([grey_of(frame) for frame in found])

    def probes(self) -> Iterator[list[int]]:
        """Numbers of some frames all over the layer, in parts to be read at once."""
        some = evenly(self.count, PROBES)
        return parts_of(some, self.size, together=self.count <= NEAR_FRAMES)

    @cached_property
    def uses_alpha(self) -> bool:
        """Whether any pixel is not opaque: a file may have an alpha channel and not use it."""
        return any(_translucent(self._reader.read(part, None)) for part in self.probes())


def parts_of(chosen: Sequence[int], size: Size, *, together: bool = True) -> Iterator[list[int]]:
    """Frame numbers in parts of bounded bytes at a time; one by one if not ``together``."""
    each = max(1, CHUNK_BYTES // (size[0] * size[1] * 4)) if together else 1
    for start in range(0, len(chosen), each):
        yield list(chosen[start : start + each])


def _translucent(frames: U8) -> bool:
    return frames.shape[-1] == 4 and bool(frames[..., 3].min(initial=255) < OPAQUE)


class _Video(_FrameSource):
    """A short one is decoded once: what then is there, is all there is."""

    def __init__(self, path: Path, decoder: Decoder) -> None:
        self._path, self._decoder = path, decoder
        info = decoder.probe(path)
        self._all: U8 | None = None
        self.size = info.height, info.width
        if info.num_frames * info.height * info.width * 4 <= WHOLE_BYTES:
            self._all, self.fps = decoder.read_frames(path)
            self.count = len(self._all)
            return
        self._times = decoder.frame_times(path)
        self.count, self.fps = len(self._times), info.fps

    def read(self, chosen: Sequence[int], size: Size | None) -> U8:
        if self._all is not None:
            return _resized(self._all[list(chosen)], size)
        times = [float(self._times[index]) for index in chosen]
        return self._decoder.read_frames(self._path, times=times, size=size)[0]


class _Numbered(_FrameSource):
    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        first = read_still(paths[0])
        self.count, self.fps, self.size = len(paths), 0.0, first.shape[:2]

    def read(self, chosen: Sequence[int], size: Size | None) -> U8:
        return self._stack(read_still, chosen, size)

    def mattes(self, chosen: Sequence[int], size: Size | None) -> U8 | None:
        return self._stack(read_matte, chosen, size)

    def _stack(self, read: Callable[[Path], U8], chosen: Sequence[int], size: Size | None) -> U8:
        frames = []
        for index in chosen:
            frame = read(self._paths[index])
            if frame.shape[:2] != self.size:
                name = self._paths[index].name
                raise MediaError(f"{name}: the frame size changes inside the film")
            frames.append(_resized(frame[None], size)[0])
        return np.stack(frames)


class _Animated(_FrameSource):
    def __init__(self, path: Path) -> None:
        self._animation = open_animation(path)
        self.count, self.fps = len(self._animation.places), self._animation.fps
        self.size = self._animation.size

    def read(self, chosen: Sequence[int], size: Size | None) -> U8:
        parts = parts_of(chosen, self.size)
        return np.concatenate(
            [_resized(read_animation(self._animation, part), size) for part in parts]
        )


def _resized(frames: U8, size: Size | None) -> U8:
    return frames if size is None else resize_cover(frames, *size)
