"""Load foregrounds and backgrounds: decoded in a child where untrusted, cached, at a fit size."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from layerflow.clip import ALPHA, BACKGROUND, BLENDED, FOREGROUND, U8, resize_cover
from layerflow.corpus.row_cells import read_cells
from layerflow.corpus.table import Corpus, file_sha256
from layerflow.media.cells import MediaError
from layerflow.media.decode import Decoder
from layerflow.seeds import choose_frames, frames_needed
from pipelines.inputs.listing import VIDEO_SUFFIXES
from pipelines.inputs.remote import Fetcher
from pipelines.inputs.sources import Background, Foreground, Source, prompt_of, record_of, rights_of
from pipelines.mine.shots import cut_windows, find_shots
from pipelines.paste.camera import film_still, measure_camera
from pipelines.paste.crops import cropped, cropped_window
from pipelines.readers.animations import SUFFIXES as ANIMATED
from pipelines.readers.animations import is_animation
from pipelines.readers.films import Reel
from pipelines.readers.footage import Footage
from pipelines.readers.stills import (
    OPAQUE,
    check_alpha,
    load_cutout,
    load_opaque,
    load_pair,
    smooth_outline,
)

TRANSPARENT = "has transparent parts: it cannot be a background"
CACHE_BYTES = 192 << 20
Generator = np.random.Generator


class UnluckyDrawError(ValueError):
    """This draw gives no clip, another one may; not the fault of a source."""


class Loader:
    """Loads sources for clips of one size, frame count and rate; remembers the latest ones.

    size: height and width; deadline: seconds for one decoding request. Not thread-safe.
    """

    def __init__(self, size: tuple[int, int], frames: int, fps: float, deadline: float) -> None:
        self._size, self._frames, self._fps = size, frames, fps
        self._decoder = Decoder(deadline=deadline)
        self._fetcher = Fetcher()
        self._cache: OrderedDict[tuple[Any, ...], tuple[int, Any]] = OrderedDict()
        self._corpora: dict[Path, Corpus] = {}

    def close(self) -> None:
        self._decoder.close()
        self.forget_files()

    def forget_files(self) -> None:
        """Delete the local copies of remote files; what was loaded of them is kept, what still
        reads from them is not."""
        self._fetcher.clear()
        for key in [key for key in self._cache if key[0] == "opened"]:
            del self._cache[key]

    def _cached(self, key: tuple[Any, ...], make: Callable[[], tuple[int, Any]]) -> Any:
        """``make`` gives (bytes, value); a MediaError is remembered too."""
        if key not in self._cache:
            try:
                self._cache[key] = make()
            except MediaError as error:
                self._cache[key] = (1024, error)
            while len(self._cache) > 1 and sum(b for b, _ in self._cache.values()) > CACHE_BYTES:
                self._cache.popitem(last=False)
        self._cache.move_to_end(key)
        value = self._cache[key][1]
        if isinstance(value, MediaError):
            raise MediaError(str(value))
        return value

    def foreground(self, source: Source, rng: Generator) -> Foreground:
        """A foreground, every frame of it; of a long film a drawn window.

        Raises MediaError for an unusable source, UnluckyDrawError for a window without an object.
        """
        kind = self._kind(source)
        if kind == "video":
            return self._film(source, rng)

        def make() -> tuple[int, Foreground]:
            load = self._still if kind == "still" else self._row
            rgba, fps, prompt, record = load(self._fetcher.local(source))
            if len(rgba) > 1:
                frames_needed(len(rgba), fps, self._frames, self._fps)
            return rgba.nbytes, cropped(rgba, fps, max(self._size), prompt, record)

        value: Foreground = self._cached((FOREGROUND, _identity(source)), make)
        return value

    def _kind(self, source: Source) -> str:
        """``source.kind`` by what its file holds: a picture may move, and a GIF may stand still."""
        if source.kind == "row" or len({role for role, _ in source.files}) < len(source.files):
            return source.kind
        first = source.files[0][1].lower()
        if not first.endswith(tuple(ANIMATED)):
            return source.kind

        def look() -> tuple[int, str]:
            path = Path(self._fetcher.local(source).files[0][1])
            return 1024, "video" if is_animation(path) else "still"

        found: str = self._cached(("kind", _identity(source)), look)
        return found

    def background(
        self,
        source: Source,
        rng: Generator,
        camera_speed: tuple[float, float],
        still_camera: float,
    ) -> Background:
        """A background as drawn: a window of a video, a camera over a still.

        Raises MediaError for an unusable source, UnluckyDrawError for a window that is none.
        """
        if self._kind(source) == "video":
            if source.files[0][1].lower().endswith(tuple(VIDEO_SUFFIXES)):
                return self._video_background(source, rng)
            return self._numbered_background(source, rng)
        frames, prompt, record, kind, fps = self._frames_behind(source)
        if len(frames) > 1:
            chosen = choose_frames(len(frames), fps, self._frames, self._fps, rng)
            picked = frames[chosen]
            key = ("camera", _identity(source), chosen[0])
            motion = self._cached(key, lambda: (1024, measure_camera(picked, self._size)))
            shown = resize_cover(picked, *self._size)
            camera, static, residual = motion
            return Background(shown, camera, static, residual, prompt, kind, record)
        speed = 0.0 if rng.random() < still_camera else rng.uniform(*camera_speed)
        film, camera = film_still(frames[0], self._size, self._frames, speed, rng)
        static = 1.0 if speed == 0 else 0.0
        return Background(film, camera, static, 0.0, prompt, kind, record)

    # Foregrounds: (rgba uint8 [T, h, w, 4], fps, prompt, record).

    def _still(self, source: Source) -> tuple[U8, float, str, dict[str, Any]]:
        own, picture, alpha = (source.path(r) for r in (FOREGROUND, BLENDED, ALPHA))
        if alpha is not None and (own or picture) is not None:
            rgba = load_pair(own, picture, alpha)
        else:
            path = source.path("file", FOREGROUND)
            if path is None:
                raise MediaError(
                    "has no picture with an alpha channel and no pair of picture and matte"
                )
            rgba = smooth_outline(load_cutout(path))
        prompt, held = _said(source, FOREGROUND)
        return rgba[None], 0.0, prompt, record_of(source, _sha256(source), rights=held)

    def _film(self, source: Source, rng: Generator) -> Foreground:
        """All of a film that is small enough, else as many frames as a clip takes from a place
        that is drawn."""
        longest = max(self._size)

        opened: tuple[Reel, str, dict[str, Any]] | None = None

        def whole() -> tuple[int, Foreground | None]:
            nonlocal opened
            opened = reel, prompt, record = self._open_film(source)
            if not reel.short:
                return 1024, None
            rgba = reel.cutout(range(reel.count))
            return rgba.nbytes, cropped(rgba, reel.fps or self._fps, longest, prompt, record)

        loaded: Foreground | None = self._cached((FOREGROUND, _identity(source)), whole)
        if loaded is not None:
            return loaded
        reel, prompt, record = self._cached(
            ("opened", _identity(source)), lambda: (1024, opened or self._open_film(source))
        )
        fps = reel.fps or self._fps
        need = frames_needed(reel.count, fps, self._frames, self._fps)
        step = max(1, need // 2)
        start = step * int(rng.integers((reel.count - need) // step + 1))
        chosen = [start + round(k * fps / self._fps) for k in range(self._frames)]
        record = record | {"start": start / fps, "end": (chosen[-1] + 1) / fps}

        def window() -> tuple[int, Foreground | None]:
            found = cropped_window(reel, chosen, self._fps, longest, prompt, record)
            return (1024 if found is None else found.rgba.nbytes), found

        found: Foreground | None = self._cached(("film", _identity(source), start), window)
        if found is None:
            raise UnluckyDrawError("nothing of the object is visible in the drawn window")
        return found

    def _open_film(self, source: Source) -> tuple[Reel, str, dict[str, Any]]:
        here = self._fetcher.local(source)
        reel = Reel(here.layers, self._decoder)
        if reel.count > 1:
            frames_needed(reel.count, reel.fps or self._fps, self._frames, self._fps)
        prompt, held = _said(here, FOREGROUND)
        return reel, prompt, record_of(here, _sha256(here), rights=held)

    def _row(self, source: Source) -> tuple[U8, float, str, dict[str, Any]]:
        row = self._read_row(source, (FOREGROUND, ALPHA, "foreground_prompt"))
        layers = read_cells(row, (FOREGROUND, ALPHA))
        alpha = layers[ALPHA]
        check_alpha(alpha)
        rgba = np.concatenate([layers[FOREGROUND], alpha[..., None]], axis=3)
        fps = row["fps"] if row["num_frames"] > 1 else 0.0
        return rgba, fps, row["foreground_prompt"], _row_record(source, row)

    # Backgrounds.

    def _frames_behind(self, source: Source) -> tuple[U8, str, dict[str, Any], str, float]:
        """Frames (still: one, a little larger than the clip), prompt, record, kind, fps."""

        def make() -> tuple[int, Any]:
            if source.kind == "row":
                columns = (BACKGROUND, "background_prompt", "background_kind")
                row = self._read_row(source, columns)
                frames = read_cells(row, (BACKGROUND,))[BACKGROUND]
                record = _row_record(source, row)
                kind, fps, prompt = row["background_kind"], row["fps"], row["background_prompt"]
            else:
                here = self._fetcher.local(source)
                frames, kind, fps = load_opaque(_file_of(here))[None], "real", self._fps
                prompt, held = _said(here, BACKGROUND)
                record = record_of(here, _sha256(here), rights=held)
            if len(frames) == 1:
                frames = self._reduced(frames)
            return frames.nbytes, (frames, prompt, record, kind, fps)

        value: tuple[U8, str, dict[str, Any], str, float]
        value = self._cached((BACKGROUND, _identity(source)), make)
        return value

    def _numbered_background(self, source: Source, rng: Generator) -> Background:
        """A window of numbered frames, or of an animated picture."""

        def look() -> tuple[int, Any]:
            here = self._fetcher.local(source)
            footage = Footage(here.layers["file"], self._decoder)
            if footage.uses_alpha:
                raise MediaError(TRANSPARENT)
            frames_needed(footage.count, footage.fps or self._fps, self._frames, self._fps)
            prompt, held = _said(here, BACKGROUND)
            record = record_of(here, _sha256(here), rights=held)
            return 1024, (footage, prompt, record)

        footage, prompt, record = self._cached(("opened", _identity(source)), look)
        fps = footage.fps or self._fps
        chosen = choose_frames(footage.count, fps, self._frames, self._fps, rng)

        def make() -> tuple[int, Any]:
            large = len(chosen) * footage.size[0] * footage.size[1] * 3 > CACHE_BYTES
            size = _tracking_size(self._size, footage.size) if large else None
            frames = footage.frames(chosen, size)
            motion = measure_camera(frames, self._size)
            shown = resize_cover(frames, *self._size)
            return shown.nbytes, (shown, motion)

        shown, motion = self._cached(("window", _identity(source), chosen[0]), make)
        camera, static, residual = motion
        return Background(shown, camera, static, residual, prompt, "real", record)

    def _reduced(self, frames: U8) -> U8:
        height, width = frames.shape[1:3]
        factor = 1.6 * max(self._size[0] / height, self._size[1] / width)
        if factor >= 0.9:
            return frames
        size = (round(width * factor), round(height * factor))
        return cv2.resize(frames[0], size, interpolation=cv2.INTER_AREA)[None]

    def _video_background(self, source: Source, rng: Generator) -> Background:
        def look() -> tuple[int, Any]:
            here = self._fetcher.local(source)
            found = self._decoder.probe(_file_of(here))
            return 1024, (found, _sha256(here), *_said(here, BACKGROUND))

        info, digest, prompt, held = self._cached(("info", _identity(source)), look)
        need, have = self._frames / self._fps, info.seconds + 1 / max(info.fps, 1e-3)
        if have + 0.5 / self._fps < need:
            raise MediaError(f"lasts {have:.2f} s; a clip needs {need:.2f} s")
        slots = int(max(0.0, have - need) / (need / 2)) + 1
        slot = int(rng.integers(slots))

        def make() -> tuple[int, Any]:
            path = _file_of(self._fetcher.local(source))
            window = self._window(path, slot * need / 2, need)
            if window is None:
                return 1024, None
            height, width = _tracking_size(self._size, (info.height, info.width))
            if info.has_alpha:
                matte = self._decoder.fetch(path, window, height, width, op="matte")
                if matte.min() < OPAQUE:
                    raise MediaError(TRANSPARENT)
            frames = self._decoder.fetch(path, window, height, width)
            motion = measure_camera(frames, self._size)
            return frames.nbytes, (resize_cover(frames, *self._size), motion, window)

        loaded = self._cached(("window", _identity(source), slot), make)
        if loaded is None:
            raise UnluckyDrawError("the background has a cut or a gap in the drawn window")
        frames, motion, window = loaded
        record = record_of(source, digest, start=window[0], end=window[-1], rights=held)
        camera, static, residual = motion
        return Background(frames, camera, static, residual, prompt, "real", record)

    def _window(self, path: Path, start: float, need: float) -> tuple[float, ...] | None:
        splices: list[float] = []
        end = start + need + 1.0 / self._fps
        times, thumbs = self._decoder.scan(path, start, end, splices=splices)
        rate = (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else self._fps
        for shot in find_shots(thumbs, rate, times.searchsorted(splices).tolist()):
            for window in cut_windows(times, shot, self._frames, self._fps):
                return window.times
        return None

    def _read_row(self, source: Source, columns: tuple[str, ...]) -> dict[str, Any]:
        path = source.path("corpus")
        assert path is not None
        if path not in self._corpora:
            self._corpora[path] = Corpus.open(path)
        known = ("id", "origin", "fps", "num_frames", "height", "width")
        return self._corpora[path].row(source.row, (*known, *columns))


def _tracking_size(size: tuple[int, int], source: tuple[int, int]) -> tuple[int, int]:
    """The clip's size, or a multiple of it that is large enough to track features in."""
    factor = 1
    while min(size) * factor < 128 and size[0] * (factor + 1) <= source[0]:
        factor += 1
    return size[0] * factor, size[1] * factor


def _identity(source: Source) -> tuple[Any, ...]:
    """What tells a source from those of other jobs of this process, whose names may be the same."""
    return source.files, source.row, source.stamp


def _file_of(source: Source) -> Path:
    path = source.path("file")
    assert path is not None
    return path


def _sha256(source: Source) -> str:
    digests = [file_sha256(Path(path)) for _, path in source.files]
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _said(source: Source, layer: str) -> tuple[str, Mapping[str, str | None]]:
    """Caption, and licence and attribution, of a file source."""
    try:
        return prompt_of(source, layer), rights_of(source)
    except ValueError as error:
        raise MediaError(str(error)) from error


def _row_record(source: Source, row: dict[str, Any]) -> dict[str, Any]:
    origin = row["origin"]
    return record_of(
        source,
        origin["sha256"],
        rights=origin,
        start=origin["start"],
        end=origin["end"],
    ) | {"key": row["id"]}
