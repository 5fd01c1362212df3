"""Load foregrounds and backgrounds: decoded in a child where untrusted, cached, at a fit size."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np

from layerflow.clip import ALPHA, BACKGROUND, BLENDED, FOREGROUND, U8, resize_cover
from layerflow.corpus.columns import RIGHTS
from layerflow.corpus.row_cells import read_cells
from layerflow.corpus.table import Corpus, file_sha256
from layerflow.media.cells import MediaError
from layerflow.media.decode import Decoder
from layerflow.media.frame_rate import choose_frames, frames_needed
from pipelines.engine.steps import Refused
from pipelines.inputs.listing import VIDEO_SUFFIXES
from pipelines.inputs.remote import Fetcher
from pipelines.inputs.sources import F64, Background, Foreground, PasteSource, prompt_of, rights_of
from pipelines.mine.shots import cut_windows, find_shots
from pipelines.paste.camera import measure_camera, pan_over_still
from pipelines.paste.crops import cropped, cropped_window
from pipelines.readers.animations import SUFFIXES as ANIMATED
from pipelines.readers.animations import is_animation
from pipelines.readers.frame_reader import FrameReader
from pipelines.readers.stills import (
    NO_CUTOUT,
    OPAQUE,
    check_alpha,
    load_cutout,
    load_opaque,
    load_pair,
    smooth_outline,
)
from pipelines.readers.videos import LayeredVideoReader

TRANSPARENT = "has transparent parts: it cannot be a background"
CACHE_BYTES = 192 << 20
SMALL = 1024  # bytes that an entry without frames counts
Generator = np.random.Generator
T = TypeVar("T")


class Loader:
    """Loads sources for clips of one size, frame count and rate; remembers the latest ones.

    size: height and width; deadline: seconds for one decoding request. Not thread-safe.
    """

    def __init__(self, size: tuple[int, int], frames: int, fps: float, deadline: float) -> None:
        self._size, self._frames, self._fps = size, frames, fps
        self._decoder = Decoder(deadline=deadline)
        self._fetcher = Fetcher()
        self._cache: OrderedDict[tuple[Any, ...], tuple[int, Any]] = OrderedDict()
        self._corpora: dict[str, Corpus] = {}

    def close(self) -> None:
        """End the decoding child, delete local copies."""
        self._decoder.close()
        self.forget_files()

    def forget_files(self) -> None:
        """Delete the local copies of remote files; what was loaded of them is kept, what still
        reads from them is not."""
        self._fetcher.clear()
        for key in [key for key in self._cache if key[0] == "opened"]:
            del self._cache[key]

    def _cached(
        self, what: str, source: PasteSource, make: Callable[[], tuple[int, T]], *more: object
    ) -> T:
        """What was made of a source. make: gives (bytes, value); a MediaError is remembered too.

        more: what else tells it from other things of the same source.
        """
        # Sources of other jobs of this process may have the same names.
        key = (what, source.files, source.row, source.stamp, *more)
        if key not in self._cache:
            try:
                self._cache[key] = make()
            except MediaError as error:
                self._cache[key] = (SMALL, error)
            while len(self._cache) > 1 and sum(b for b, _ in self._cache.values()) > CACHE_BYTES:
                self._cache.popitem(last=False)
        self._cache.move_to_end(key)
        value: T | MediaError = self._cache[key][1]
        if isinstance(value, MediaError):
            raise MediaError(str(value))
        return value

    def _kind(self, source: PasteSource) -> str:
        """``source.kind`` by what its file holds: a picture may move, and a GIF may stand still."""
        if source.kind == "row" or len({role for role, _ in source.files}) < len(source.files):
            return source.kind
        if not source.files[0][1].lower().endswith(tuple(ANIMATED)):
            return source.kind

        def probe() -> tuple[int, str]:
            path = Path(self._fetcher.local(source).files[0][1])
            return SMALL, "video" if is_animation(path) else "still"

        return self._cached("kind", source, probe)

    # Foregrounds.

    def foreground(self, source: PasteSource, rng: Generator) -> Foreground:
        """A foreground, every frame of it; of a long video a drawn window.

        Raises MediaError for an unusable source, Refused for a window without an object.
        """
        kind = self._kind(source)
        if kind == "video":
            return self._video_foreground(source, rng)

        def make() -> tuple[int, Foreground]:
            load = self._still if kind == "still" else self._row
            rgba, fps, prompt, record = load(self._fetcher.local(source))
            if len(rgba) > 1:
                frames_needed(len(rgba), fps, self._frames, self._fps)
            return rgba.nbytes, cropped(rgba, fps, max(self._size), prompt, record)

        return self._cached(FOREGROUND, source, make)

    def _still(self, source: PasteSource) -> tuple[U8, float, str, dict[str, Any]]:
        """Straight uint8 ``[1, h, w, 4]``, fps, prompt, record."""
        own, picture, alpha = (source.path(r) for r in (FOREGROUND, BLENDED, ALPHA))
        if alpha is not None and (own or picture) is not None:
            rgba = load_pair(own, picture, alpha)
        else:
            path = source.path("file", FOREGROUND)
            if path is None:
                raise MediaError(NO_CUTOUT)
            rgba = smooth_outline(load_cutout(path))
        return rgba[None], 0.0, *_described(source, FOREGROUND)

    def _row(self, source: PasteSource) -> tuple[U8, float, str, dict[str, Any]]:
        """Straight uint8 ``[T, h, w, 4]``, fps, prompt, record."""
        row = self._read_row(source, (FOREGROUND, ALPHA, "foreground_prompt"))
        layers = read_cells(row, (FOREGROUND, ALPHA))
        alpha = layers[ALPHA]
        check_alpha(alpha)
        rgba = np.concatenate([layers[FOREGROUND], alpha[..., None]], axis=3)
        fps = row["fps"] if row["num_frames"] > 1 else 0.0
        return rgba, fps, row["foreground_prompt"], _row_record(source, row)

    def _video_foreground(self, source: PasteSource, rng: Generator) -> Foreground:
        """All of a video that is small enough, else as many frames as a clip takes from a place
        that is drawn."""
        longest = max(self._size)

        def opened() -> tuple[int, tuple[LayeredVideoReader, str, dict[str, Any]]]:
            here = self._fetcher.local(source)
            reader = LayeredVideoReader(here.layers, self._decoder)
            if reader.count > 1:
                frames_needed(reader.count, reader.fps or self._fps, self._frames, self._fps)
            return SMALL, (reader, *_described(here, FOREGROUND))

        def whole() -> tuple[int, Foreground | None]:
            size, (reader, prompt, record) = found = opened()
            if not reader.short:
                self._cached("opened", source, lambda: found, FOREGROUND)
                return size, None
            rgba = reader.cutout(range(reader.count))
            return rgba.nbytes, cropped(rgba, reader.fps or self._fps, longest, prompt, record)

        if (loaded := self._cached(FOREGROUND, source, whole)) is not None:
            return loaded
        reader, prompt, record = self._cached("opened", source, opened, FOREGROUND)
        fps = reader.fps or self._fps
        need = frames_needed(reader.count, fps, self._frames, self._fps)
        step = max(1, need // 2)
        start = step * int(rng.integers((reader.count - need) // step + 1))
        chosen = [start + round(k * fps / self._fps) for k in range(self._frames)]
        record = record | {"start": start / fps, "end": (chosen[-1] + 1) / fps}

        def window() -> tuple[int, Foreground | None]:
            found = cropped_window(reader, chosen, self._fps, longest, prompt, record)
            return (SMALL if found is None else found.rgba.nbytes), found

        found = self._cached("window", source, window, FOREGROUND, start)
        if found is None:
            raise Refused("draw", "nothing of the object is visible in the drawn window")
        return found

    # Backgrounds.

    def background(
        self,
        source: PasteSource,
        rng: Generator,
        camera_speed: tuple[float, float],
        still_camera: float,
    ) -> Background:
        """A background as drawn: a window of a video, a camera over a still.

        Raises MediaError for an unusable source, Refused for a window that is none.
        """
        if self._kind(source) == "video":
            if source.files[0][1].lower().endswith(tuple(VIDEO_SUFFIXES)):
                return self._video_background(source, rng)
            return self._numbered_background(source, rng)
        frames, prompt, record, kind, fps = self._frames_behind(source)
        if len(frames) > 1:
            chosen = choose_frames(len(frames), fps, self._frames, self._fps, rng)
            picked = frames[chosen]
            motion = self._cached(
                "camera", source, lambda: (SMALL, measure_camera(picked, self._size)), chosen[0]
            )
            shown = resize_cover(picked, *self._size)
            return _with_motion(shown, motion, prompt, kind, record)
        speed = 0.0 if rng.random() < still_camera else rng.uniform(*camera_speed)
        shown, camera = pan_over_still(frames[0], self._size, self._frames, speed, rng)
        return Background(shown, camera, float(speed == 0), 0.0, prompt, kind, record)

    def _frames_behind(self, source: PasteSource) -> tuple[U8, str, dict[str, Any], str, float]:
        """Frames (still: one, a little larger than the clip), prompt, record, kind, fps."""

        def make() -> tuple[int, tuple[U8, str, dict[str, Any], str, float]]:
            if source.kind == "row":
                columns = (BACKGROUND, "background_prompt", "background_kind")
                row = self._read_row(source, columns)
                frames = read_cells(row, (BACKGROUND,))[BACKGROUND]
                prompt, record = row["background_prompt"], _row_record(source, row)
                kind, fps = row["background_kind"], row["fps"]
            else:
                here = self._fetcher.local(source)
                frames, kind, fps = load_opaque(_file_of(here))[None], "real", self._fps
                prompt, record = _described(here, BACKGROUND)
            if len(frames) == 1:
                frames = self._reduced(frames)
            return frames.nbytes, (frames, prompt, record, kind, fps)

        return self._cached(BACKGROUND, source, make)

    def _reduced(self, frames: U8) -> U8:
        height, width = frames.shape[1:3]
        factor = 1.6 * max(self._size[0] / height, self._size[1] / width)
        if factor >= 0.9:
            return frames
        size = (round(width * factor), round(height * factor))
        return cv2.resize(frames[0], size, interpolation=cv2.INTER_AREA)[None]

    def _numbered_background(self, source: PasteSource, rng: Generator) -> Background:
        """A window of numbered frames, or of an animated picture."""

        def opened() -> tuple[int, Any]:
            here = self._fetcher.local(source)
            reader = FrameReader(here.layers["file"], self._decoder)
            if reader.uses_alpha:
                raise MediaError(TRANSPARENT)
            frames_needed(reader.count, reader.fps or self._fps, self._frames, self._fps)
            return SMALL, (reader, *_described(here, BACKGROUND))

        reader, prompt, record = self._cached("opened", source, opened)
        fps = reader.fps or self._fps
        chosen = choose_frames(reader.count, fps, self._frames, self._fps, rng)

        def window() -> tuple[int, Any]:
            large = len(chosen) * reader.size[0] * reader.size[1] * 3 > CACHE_BYTES
            frames = reader.frames(chosen, self._tracking_size(reader.size) if large else None)
            shown = resize_cover(frames, *self._size)
            return shown.nbytes, (shown, measure_camera(frames, self._size))

        shown, motion = self._cached("window", source, window, chosen[0])
        return _with_motion(shown, motion, prompt, "real", record)

    def _video_background(self, source: PasteSource, rng: Generator) -> Background:
        def probe() -> tuple[int, Any]:
            here = self._fetcher.local(source)
            return SMALL, (self._decoder.probe(_file_of(here)), *_described(here, BACKGROUND))

        info, prompt, record = self._cached("info", source, probe)
        need, have = self._frames / self._fps, info.seconds + 1 / max(info.fps, 1e-3)
        if have + 0.5 / self._fps < need:
            raise MediaError(f"lasts {have:.2f} s; a clip needs {need:.2f} s")
        slots = int(max(0.0, have - need) / (need / 2)) + 1
        slot = int(rng.integers(slots))

        def window() -> tuple[int, Any]:
            path = _file_of(self._fetcher.local(source))
            times = self._window(path, slot * need / 2, need)
            if times is None:
                return SMALL, None
            height, width = self._tracking_size((info.height, info.width))
            if info.has_alpha:
                matte = self._decoder.fetch(path, times, height, width, op="matte")
                if matte.min() < OPAQUE:
                    raise MediaError(TRANSPARENT)
            frames = self._decoder.fetch(path, times, height, width)
            shown = resize_cover(frames, *self._size)
            return frames.nbytes, (times, shown, measure_camera(frames, self._size))

        loaded = self._cached("window", source, window, slot)
        if loaded is None:
            raise Refused("draw", "the background has a cut or a gap in the drawn window")
        times, shown, motion = loaded
        record = record | {"start": times[0], "end": times[-1]}
        return _with_motion(shown, motion, prompt, "real", record)

    def _window(self, path: Path, start: float, need: float) -> tuple[float, ...] | None:
        splices: list[float] = []
        end = start + need + 1.0 / self._fps
        times, thumbs = self._decoder.scan(path, start, end, splices=splices)
        rate = (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else self._fps
        for shot in find_shots(thumbs, rate, times.searchsorted(splices).tolist()):
            for window in cut_windows(times, shot, self._frames, self._fps):
                return window.times
        return None

    def _tracking_size(self, source: tuple[int, int]) -> tuple[int, int]:
        """The clip's size, or a multiple of it that is large enough to track features in."""
        factor, size = 1, self._size
        while min(size) * factor < 128 and size[0] * (factor + 1) <= source[0]:
            factor += 1
        return size[0] * factor, size[1] * factor

    def _read_row(self, source: PasteSource, columns: tuple[str, ...]) -> dict[str, Any]:
        path = dict(source.files)["corpus"]
        if path not in self._corpora:
            self._corpora[path] = Corpus.open(path)
        known = ("id", "origin", "fps", "num_frames", "height", "width")
        return self._corpora[path].row(source.row, (*known, *columns))


def _with_motion(
    frames: U8, motion: tuple[F64, float, float], prompt: str, kind: str, record: dict[str, Any]
) -> Background:
    """A background whose camera was measured."""
    camera, static, residual = motion
    return Background(frames, camera, static, residual, prompt, kind, record)


def _file_of(source: PasteSource) -> Path:
    path = source.path("file")
    assert path is not None
    return path


def _sha256(source: PasteSource) -> str:
    digests = [file_sha256(Path(path)) for _, path in source.files]
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _described(source: PasteSource, layer: str) -> tuple[str, dict[str, Any]]:
    """Caption of a file source, and its record: what a row's ``origin`` needs to know of it."""
    try:
        prompt, held = prompt_of(source, layer), rights_of(source)
    except ValueError as error:
        raise MediaError(str(error)) from error
    known = {"uri": source.uri, "sha256": _sha256(source), "start": 0.0, "end": 0.0}
    return prompt, known | held


def _row_record(source: PasteSource, row: dict[str, Any]) -> dict[str, Any]:
    known = {name: row["origin"][name] for name in ("sha256", "start", "end", *RIGHTS)}
    return known | {"uri": source.uri, "key": row["id"]}
