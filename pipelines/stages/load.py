"""Load foregrounds and backgrounds: decoded in a child where untrusted, cached, at a fit size."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from layerflow.cells import read_cells
from layerflow.clip import U8, resize_cover
from layerflow.corpus import Corpus, file_sha256
from layerflow.decode import Decoder
from layerflow.media import MediaError
from pipelines.stages.camera import film_still, measure_camera
from pipelines.stages.composite import shrink_straight
from pipelines.stages.draws import choose_frames, frames_needed
from pipelines.stages.films import cut_out, read_layer
from pipelines.stages.listing import VIDEO_SUFFIXES
from pipelines.stages.remote import Fetcher
from pipelines.stages.shots import cut_windows, find_shots
from pipelines.stages.sources import Background, Foreground, Source, prompt_of, record_of
from pipelines.stages.stills import (
    check_alpha,
    load_cutout,
    load_opaque,
    load_pair,
    smooth_outline,
)

CACHE_BYTES = 192 << 20
VISIBLE = 12  # alpha from which a pixel counts for the crop
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
        """Delete the local copies of remote files; what was loaded of them is kept."""
        self._fetcher.clear()

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

    def foreground(self, source: Source) -> Foreground:
        """The whole foreground, every frame. Raises MediaError."""

        def make() -> tuple[int, Foreground]:
            load = {"still": self._still, "video": self._video, "row": self._row}[source.kind]
            rgba, fps, prompt, record = load(self._fetcher.local(source))
            if len(rgba) > 1:
                frames_needed(len(rgba), fps, self._frames, self._fps)
            return rgba.nbytes, self._cropped(rgba, fps, prompt, record)

        value: Foreground = self._cached(("foreground", _identity(source)), make)
        return value

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
        if source.kind == "video" and source.files[0][1].lower().endswith(tuple(VIDEO_SUFFIXES)):
            return self._video_background(source, rng)
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
        colour, alpha = source.path("foreground", "blended"), source.path("alpha")
        if colour is not None and alpha is not None:
            own = source.path("foreground") is not None
            rgba = load_pair(colour, alpha, is_foreground=own)
        else:
            path = source.path("file", "foreground")
            if path is None:
                raise MediaError(
                    "has no picture with an alpha channel and no pair of picture and matte"
                )
            rgba = smooth_outline(load_cutout(path))
        return rgba[None], 0.0, _prompt(source, "foreground"), record_of(source, _sha256(source))

    def _video(self, source: Source) -> tuple[U8, float, str, dict[str, Any]]:
        rgba, fps = cut_out(source.layers, self._decoder)
        record = record_of(source, _sha256(source))
        return rgba, fps or self._fps, _prompt(source, "foreground"), record

    def _row(self, source: Source) -> tuple[U8, float, str, dict[str, Any]]:
        row = self._read_row(source, ("foreground", "alpha", "foreground_prompt"))
        layers = read_cells(row, ("foreground", "alpha"))
        alpha = layers["alpha"]
        check_alpha(alpha)
        rgba = np.concatenate([layers["foreground"], alpha[..., None]], axis=3)
        fps = row["fps"] if row["num_frames"] > 1 else 0.0
        return rgba, fps, row["foreground_prompt"], _row_record(source, row)

    def _cropped(self, rgba: U8, fps: float, prompt: str, record: dict[str, Any]) -> Foreground:
        height, width = rgba.shape[1:3]
        seen = rgba[..., 3].max(axis=0) >= VISIBLE
        rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
        if len(rows) < 2 or len(columns) < 2:
            raise MediaError("nothing of it is visible")
        cut = cut_sides(rgba[..., 3])
        # Room for blur all around, but not where the picture's border cuts the object off.
        room = 2 + round(0.04 * max(rows[-1] - rows[0], columns[-1] - columns[0]))
        y0, y1 = int(rows[0]) - room, int(rows[-1]) + 1 + room
        x0, x1 = int(columns[0]) - room, int(columns[-1]) + 1 + room
        y0, y1 = (0 if "top" in cut else y0), (height if "bottom" in cut else y1)
        x0, x1 = (0 if "left" in cut else x0), (width if "right" in cut else x1)
        crop = _window_of(rgba, y0, y1, x0, x1)
        # Nothing is ever drawn larger than the clip: keep twice its size, no more.
        factor = min(1.0, 2.4 * max(self._size) / max(crop.shape[1:3]))
        if factor < 0.8:
            crop = np.stack([shrink_straight(frame, factor) for frame in crop])
        else:
            factor = 1.0
        return Foreground(
            rgba=crop,
            frame=(height * factor, width * factor),
            corner=(y0 * factor, x0 * factor),
            scale=factor,
            cut=cut,
            fps=fps,
            prompt=prompt,
            record=record,
            alpha_kind="binary" if np.isin(crop[..., 3], (0, 255)).all() else "soft",
        )

    # Backgrounds.

    def _frames_behind(self, source: Source) -> tuple[U8, str, dict[str, Any], str, float]:
        """Frames (still: one, a little larger than the clip), prompt, record, kind, fps."""

        def make() -> tuple[int, Any]:
            if source.kind == "row":
                columns = ("background", "background_prompt", "background_kind")
                row = self._read_row(source, columns)
                frames = read_cells(row, ("background",))["background"]
                record = _row_record(source, row)
                kind, fps, prompt = row["background_kind"], row["fps"], row["background_prompt"]
            else:
                here = self._fetcher.local(source)
                frames, kind, fps = self._pictures(here), "real", self._fps
                record, prompt = record_of(here, _sha256(here)), _prompt(here, "background")
            if len(frames) == 1:
                frames = self._reduced(frames)
            return frames.nbytes, (frames, prompt, record, kind, fps)

        value: tuple[U8, str, dict[str, Any], str, float]
        value = self._cached(("background", _identity(source)), make)
        return value

    def _pictures(self, source: Source) -> U8:
        """A still, or numbered frames."""
        paths = source.layers["file"]
        if len(paths) == 1:
            return load_opaque(paths[0])[None]
        frames, _ = read_layer(paths, self._decoder)
        if frames.shape[-1] == 4:
            raise MediaError("has transparent parts: it cannot be a background")
        frames_needed(len(frames), self._fps, self._frames, self._fps)
        return frames

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
            return 1024, (found, _sha256(here), _prompt(here, "background"))

        info, digest, prompt = self._cached(("info", _identity(source)), look)
        need, have = self._frames / self._fps, info.seconds + 1 / max(info.fps, 1e-3)
        if info.has_alpha:
            raise MediaError("has an alpha channel: it cannot be a background")
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
            frames = self._decoder.fetch(path, window, height, width)
            motion = measure_camera(frames, self._size)
            return frames.nbytes, (resize_cover(frames, *self._size), motion, window)

        loaded = self._cached(("window", _identity(source), slot), make)
        if loaded is None:
            raise UnluckyDrawError("the background has a cut or a gap in the drawn window")
        frames, motion, window = loaded
        record = record_of(source, digest, start=window[0], end=window[-1])
        camera, static, residual = motion
        return Background(frames, camera, static, residual, prompt, "real", record)

    def _window(self, path: Path, start: float, need: float) -> tuple[float, ...] | None:
        times, thumbs = self._decoder.scan(path, start, start + need + 1.0 / self._fps)
        rate = (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else self._fps
        for shot in find_shots(thumbs, rate):
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


def _window_of(rgba: U8, y0: int, y1: int, x0: int, x1: int) -> U8:
    """A crop that may reach over the border, where it is transparent."""
    height, width = rgba.shape[1:3]
    inner = rgba[:, max(0, y0) : min(height, y1), max(0, x0) : min(width, x1)]
    margins = ((max(0, -y0), max(0, y1 - height)), (max(0, -x0), max(0, x1 - width)))
    return np.ascontiguousarray(np.pad(inner, ((0, 0), *margins, (0, 0))))


def cut_sides(alpha: U8, share: float = 0.15) -> frozenset[str]:
    """Sides of uint8 ``[T, H, W]`` frames at which the picture's border cuts the object off.

    A side counts when opaque pixels touch it along ``share`` of the object's length there; two
    opposite sides cancel out: such an object fills its picture by nature.
    """
    solid = alpha >= 128
    wide = max(1, int(solid.any(axis=(0, 1)).sum()))
    tall = max(1, int(solid.any(axis=(0, 2)).sum()))
    contact = {
        "top": solid[:, 0].sum(1).mean() / wide,
        "bottom": solid[:, -1].sum(1).mean() / wide,
        "left": solid[:, :, 0].sum(1).mean() / tall,
        "right": solid[:, :, -1].sum(1).mean() / tall,
    }
    cut = {side for side, value in contact.items() if value >= share}
    for pair in ({"top", "bottom"}, {"left", "right"}):
        if pair <= cut:
            cut -= pair
    return frozenset(cut)


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


def _prompt(source: Source, layer: str) -> str:
    try:
        return prompt_of(source, layer)
    except ValueError as error:
        raise MediaError(str(error)) from error


def _row_record(source: Source, row: dict[str, Any]) -> dict[str, Any]:
    origin = row["origin"]
    return record_of(
        source,
        origin["sha256"],
        licence=origin["licence"],
        attribution=origin["attribution"],
        start=origin["start"],
        end=origin["end"],
    ) | {"key": row["id"]}
