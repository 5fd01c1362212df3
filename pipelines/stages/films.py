"""Layered films: videos or numbered frames of several layers -> the layers of moving clips."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from layerflow.clip import U8, LayeredClip, composite, resize_clip
from layerflow.decode import Decoder
from layerflow.media import MediaError
from pipelines.stages.composite import continued
from pipelines.stages.draws import frames_needed
from pipelines.stages.listing import VIDEO_SUFFIXES
from pipelines.stages.plate import clean_plate
from pipelines.stages.stills import check_alpha, read_matte, read_still

MAX_BYTES = 2 << 30  # of the decoded frames of one layer
EXACT = 3.0  # mean levels that a blended layer may differ from its layers' composite
GREY = (122, 133)  # where a foreground was put on mid-grey
Paths = Sequence[Path]


def read_layer(paths: Paths, decoder: Decoder) -> tuple[U8, float]:
    """A video file or frames in order -> uint8 ``[T, H, W, 3 or 4]`` and its rate (0: unknown)."""
    if paths[0].suffix.lower() in VIDEO_SUFFIXES:
        return decoder.read_frames(paths[0])
    first = read_still(paths[0])
    if first.nbytes * len(paths) > MAX_BYTES:
        raise MediaError("the decoded frames would take more than 2 GiB")
    frames = np.empty((len(paths), *first.shape), np.uint8)
    for place, path in enumerate(paths):
        frame = first if place == 0 else read_still(path)
        frames[place] = _same_size(frame, first, path)
    return (frames if frames[..., 3].min() < 255 else frames[..., :3]), 0.0


def read_mattes(paths: Paths, decoder: Decoder) -> U8:
    """A matte video or frames in order -> uint8 ``[T, H, W]``. MediaError if empty or full."""
    if paths[0].suffix.lower() in VIDEO_SUFFIXES:
        frames, _ = decoder.read_frames(paths[0])
        matte = np.ascontiguousarray(frames[..., 3 if frames.shape[-1] == 4 else 0])
    else:
        first = read_matte(paths[0])
        matte = np.stack([_same_size(read_matte(path), first, path) for path in paths])
    check_alpha(matte)
    return matte


def _same_size(frame: U8, first: U8, path: Path) -> U8:
    if frame.shape != first.shape:
        raise MediaError(f"{path.name}: the frame size changes inside the film")
    return frame


def cut_out(layers: Mapping[str, Paths], decoder: Decoder) -> tuple[U8, float]:
    """The foreground of a film: straight uint8 ``[T, H, W, 4]`` and its rate (0: unknown).

    From frames with alpha, or colour and matte; where the colour is the whole picture, the
    object's own is estimated. Raises MediaError.
    """
    colour, is_foreground = layers.get("foreground"), "foreground" in layers
    colour = colour or layers.get("blended")
    if colour is not None and "alpha" in layers:
        frames, fps = read_layer(colour, decoder)
        matte = read_mattes(layers["alpha"], decoder)
        frames = _matching(frames, matte)
        if not is_foreground:
            from pipelines.stages.colour import straight_foreground

            frames = straight_foreground(frames, matte)
        return np.concatenate([frames, matte[..., None]], axis=3), fps
    alone = layers.get("file") or colour
    if alone is None:
        raise MediaError("has no picture with an alpha channel and no pair of picture and matte")
    rgba, fps = read_layer(alone, decoder)
    if rgba.shape[-1] != 4:
        raise MediaError("the video has no alpha channel")
    check_alpha(rgba[..., 3])
    return rgba, fps


def _matching(frames: U8, matte: U8) -> U8:
    """The colour of frames that go with a matte."""
    if matte.shape != frames.shape[:3]:
        raise MediaError(
            f"the matte has {list(matte.shape)} frames x height x width, "
            f"the picture {list(frames.shape[:3])}"
        )
    return np.ascontiguousarray(frames[..., :3])


@dataclass(frozen=True)
class FilmLayers:
    """All layers of a film; background and blended are None where the film has none."""

    foreground: U8 | None
    alpha: U8
    background: U8 | None
    blended: U8 | None
    fps: float


def read_film(layers: Mapping[str, Paths], decoder: Decoder) -> FilmLayers:
    """Every layer that a film has, checked against the matte. Raises MediaError.

    A foreground that was put on mid-grey (as LayerFlow's samples are) is not a colour layer: it is
    dropped when the whole picture is there to take the colour from.
    """
    names: tuple[str, ...] = ("background", "blended")
    if "alpha" not in layers:
        rgba, fps = cut_out(layers, decoder)
        alpha, read = np.ascontiguousarray(rgba[..., 3]), {"foreground": rgba[..., :3]}
    else:
        alpha, read, fps = read_mattes(layers["alpha"], decoder), {}, 0.0
        names = ("foreground", "background", "blended")
    for name in names:
        if name in layers:
            frames, rate = read_layer(layers[name], decoder)
            read[name], fps = _matching(frames, alpha), fps or rate
    foreground = read.get("foreground")
    if foreground is not None and "blended" in read and _on_grey(foreground, alpha):
        foreground = None
    if foreground is None and "blended" not in read:
        raise MediaError("has a matte, but neither a foreground nor the whole picture")
    return FilmLayers(foreground, alpha, read.get("background"), read.get("blended"), fps)


def _on_grey(foreground: U8, alpha: U8) -> bool:
    clear = alpha == 0
    if clear.sum() < 100:
        return False
    outside = foreground[clear]
    return bool(((outside >= GREY[0]) & (outside <= GREY[1])).mean() > 0.9)


def windows(count: int, source_fps: float, frames: int, fps: float) -> Iterator[list[int]]:
    """Frame indices of clips one after the other, at ``fps`` (source_fps 0: frame by frame).

    Raises MediaError when not even one fits.
    """
    step = source_fps / fps if source_fps else 1.0
    needed = frames_needed(count, source_fps or fps, frames, fps)
    start = 0
    while start + needed <= count:
        yield [start + round(k * step) for k in range(frames)]
        start += max(needed, round(frames * step))


def make_film_clip(
    film: FilmLayers,
    chosen: Sequence[int],
    *,
    fps: float,
    made_up: U8,
    prompts: Mapping[str, str],
    size: tuple[int, int] | None,
) -> LayeredClip:
    """One clip of a film.

    What is missing is made: the foreground's colour from the whole picture, the background from
    the clip's other frames, or ``made_up`` (uint8 ``[H, W, 3]``) where the film shows no
    background at all. A blended layer that is not the composite of its layers is a real video:
    the clip is ``mined`` and keeps it; else it is ``pasted`` and exact.
    """
    index = list(chosen)
    alpha = film.alpha[index]
    blended = film.blended[index] if film.blended is not None else None
    background = film.background[index] if film.background is not None else None
    behind = None
    if background is None and blended is not None:
        plate = clean_plate(blended, alpha)
        background, behind = plate.background, plate.kind
    elif background is None:
        background, behind = np.broadcast_to(made_up, (*alpha.shape, 3)).copy(), "filled"
    if film.foreground is not None:
        foreground = film.foreground[index]
    else:
        from pipelines.stages.colour import straight_foreground

        assert blended is not None
        foreground = straight_foreground(blended, alpha, background)
    foreground = np.stack([continued(f, a) for f, a in zip(foreground, alpha, strict=True)])
    exact = composite(foreground, alpha, background)
    real = blended is not None and np.abs(exact.astype(np.int16) - blended).mean() > EXACT
    clip = LayeredClip(
        foreground=foreground,
        alpha=alpha,
        background=background,
        blended=blended if real and blended is not None else exact,
        prompts=dict(prompts),
        fps=fps,
        kind="mined" if real else "pasted",
        alpha_kind="binary" if np.isin(alpha, (0, 255)).all() else "soft",
        background_kind=behind or ("inpainted" if real else "real"),
    )
    if size is None or tuple(size) == clip.size:
        return clip
    small = resize_clip(clip, *size)
    if not real:
        small = LayeredClip(**{**vars(small), "blended": small.recomposed()})
    soft = not np.isin(small.alpha, (0, 255)).all()
    return LayeredClip(**{**vars(small), "alpha_kind": "soft" if soft else "binary"})
