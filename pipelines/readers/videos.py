"""Layered videos: files, animations or numbered frames of several layers -> moving clips."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from layerflow.clip import (
    ALPHA,
    BACKGROUND,
    BLENDED,
    FOREGROUND,
    U8,
    LayeredClip,
    composite,
    resize_clip,
    resize_cover,
)
from layerflow.media.cells import MediaError
from layerflow.media.decode import Decoder
from layerflow.media.frame_rate import frames_needed
from layerflow.media.video import cover
from pipelines.readers.frame_reader import (
    NEAR_FRAMES,
    WHOLE_BYTES,
    FrameReader,
    Paths,
    Size,
    parts_of,
)
from pipelines.readers.ground import Ground, find_ground, flat_colour, lift, thinned, understood
from pipelines.readers.stills import NO_CUTOUT, alpha_kind, check_alpha
from pipelines.vision.colour import straight_foreground
from pipelines.vision.composite import continued
from pipelines.vision.plate import clean_plate

EXACT = 3.0  # mean levels that a blended layer may differ from its layers' composite
GREY = (122, 133)  # where a foreground was put on mid-grey
EVEN = 4  # levels by which a whole picture strays around its object when it shows no scene


@dataclass(frozen=True)
class VideoLayers:
    """All layers of some frames; background and blended are None where the video has none.

    foreground: straight colour, None where it has to be solved for from the whole picture.
    """

    foreground: U8 | None
    alpha: U8
    background: U8 | None
    blended: U8 | None


class LayeredVideoReader:
    """The layers of a video, opened and understood: what they show and how they are mixed.

    layers: role -> paths. Raises MediaError for what cannot be read or does not fit together.
    """

    def __init__(self, layers: Mapping[str, Paths], decoder: Decoder) -> None:
        opened = {role: FrameReader(paths, decoder) for role, paths in layers.items()}
        self._matte = opened.get(ALPHA)
        self._colour = opened.get(FOREGROUND)
        self._picture = opened.get(BLENDED)
        self._background = opened.get(BACKGROUND)
        if self._matte is None:
            self._colour = self._colour or opened.get("file") or self._picture
            self._picture = None if self._colour is self._picture else self._picture
        main = self._matte or self._colour
        if main is None or (self._colour is None and self._picture is None):
            raise MediaError(NO_CUTOUT)
        if self._matte is None and not main.uses_alpha:
            raise MediaError("is fully opaque: there is no alpha to cut out by")
        self.count, self.size = main.count, main.size
        self._check_sizes()
        shown = (self._colour, self._background, self._picture, main)
        self.fps = next((layer.fps for layer in shown if layer is not None and layer.fps), 0.0)
        self._ground: Ground | None = None
        self._understand()

    @property
    def short(self) -> bool:
        """Whether all frames together are of no concern for memory."""
        return self.count * self.size[0] * self.size[1] * 4 <= WHOLE_BYTES

    @property
    def shows_scene(self) -> bool:
        """Whether the video shows what is behind the object."""
        return self._background is not None or self._picture is not None

    def _check_sizes(self) -> None:
        for layer in (self._colour, self._picture, self._background):
            if layer is not None and (layer.count, layer.size) != (self.count, self.size):
                raise MediaError(
                    f"the matte has {[self.count, *self.size]} frames x height x width, "
                    f"the picture {[layer.count, *layer.size]}"
                )

    def _understand(self) -> None:
        """Which layer gives the object's colour, and whether it was put on a flat one.

        Foregrounds that were (on mid-grey, as LayerFlow's samples are; on green, as of matting
        networks) are left when the whole picture is there to take the colour from. A whole picture
        that shows nothing but one colour around its object is such a cut-out itself.
        """
        first = self._colour or self._picture
        assert first is not None
        colour, alpha = self._some(first)
        self._check_alpha(alpha)
        grey = False
        if self._colour is not None:
            self._ground = find_ground(colour, alpha)
            flat = flat_colour(colour, alpha)
            grey = flat is not None and GREY[0] <= min(flat) and max(flat) <= GREY[1]
        mixed = grey or self._ground is not None
        if self._picture is not None and self._background is None:
            shown = colour if self._colour is None else self._some(self._picture)[0]
            flat = flat_colour(shown, alpha, EVEN)
            if flat is not None and (self._colour is None or mixed):
                self._colour, self._ground = self._picture, understood(flat, shown, alpha)
            if flat is not None:
                self._picture = None
        if self._picture is not None and mixed:
            self._colour, self._ground = None, None

    def _check_alpha(self, some: U8) -> None:
        """MediaError when the matte says nothing; all of it is read only if some frames say so."""
        try:
            check_alpha(some)
        except MediaError:
            if self.count > NEAR_FRAMES:
                raise
            levels = [some.min(), some.max()]
            for part in parts_of(range(self.count), self.size):
                matte = self.mattes(part)
                levels += [matte.min(), matte.max()]
            check_alpha(np.asarray(levels, np.uint8))

    def _some(self, layer: FrameReader) -> tuple[U8, U8]:
        """Colour and alpha of some frames, every n-th pixel of large ones."""
        rgba = np.concatenate([thinned(self._stored(layer, part)) for part in layer.probes()])
        return np.ascontiguousarray(rgba[..., :3]), np.ascontiguousarray(rgba[..., 3])

    def _stored(self, layer: FrameReader, chosen: Sequence[int]) -> U8:
        frames = layer.frames(chosen)
        if self._matte is None:
            return frames
        matte = self._matte.mattes(chosen)
        return np.concatenate([frames[..., :3], matte[..., None]], axis=3)

    def cutout(self, chosen: Sequence[int], size: Size | None = None) -> U8:
        """The object in some frames: straight uint8 ``[N, h, w, 4]``, covered and cropped to size.

        Where only the whole picture is known, the object's own colour is estimated from it.
        """
        layer = self._colour or self._picture
        assert layer is not None
        mixed = self._ground is not None or self._colour is None
        parts = []
        for part in parts_of(chosen, self.size):
            stored = self._stored(layer, part)
            if size is not None and mixed:  # mixed colour stays what it is when it is averaged
                stored = resize_cover(stored, *size)
            elif size is not None:
                stored = np.stack([cover(frame, *size) for frame in stored])
            parts.append(stored)
        rgba = np.concatenate(parts)
        colour, alpha = np.ascontiguousarray(rgba[..., :3]), rgba[..., 3]
        if self._ground is not None:
            colour = lift(colour, alpha, self._ground)
        elif self._colour is None:
            colour = straight_foreground(colour, alpha)
        return np.concatenate([colour, alpha[..., None]], axis=3)

    def mattes(self, chosen: Sequence[int], size: Size | None = None) -> U8:
        """Only the mattes of some frames, uint8 ``[N, h, w]``."""
        layer = self._matte or self._colour
        assert layer is not None
        return layer.mattes(chosen, size)

    def read(self, chosen: Sequence[int], size: Size | None = None) -> VideoLayers:
        """All layers of some frames, covered and cropped to size."""
        foreground = None
        if self._colour is not None:
            rgba = self.cutout(chosen, size)
            foreground, alpha = rgba[..., :3], np.ascontiguousarray(rgba[..., 3])
        else:
            alpha = self.mattes(chosen, size)
        behind, picture = (
            None if layer is None else np.ascontiguousarray(layer.frames(chosen, size)[..., :3])
            for layer in (self._background, self._picture)
        )
        return VideoLayers(foreground, alpha, behind, picture)


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


def make_video_clip(
    video: VideoLayers,
    *,
    fps: float,
    made_up: U8 | None,
    prompts: Mapping[str, str],
    size: tuple[int, int] | None,
) -> LayeredClip:
    """One clip of a video's frames.

    What is missing is made: the foreground's colour from the whole picture, the background from
    the clip's other frames, or ``made_up`` (uint8 ``[H, W, 3]``) where the video shows no
    background at all. A blended layer that is not the composite of its layers is a real video:
    the clip is ``mined`` and keeps it; else it is ``pasted`` and exact.
    """
    alpha, blended, background = video.alpha, video.blended, video.background
    behind = None
    if background is None and blended is not None:
        plate = clean_plate(blended, alpha)
        background, behind = plate.background, plate.kind
    elif background is None:
        assert made_up is not None
        still = resize_cover(made_up[None], *alpha.shape[1:])
        background, behind = np.broadcast_to(still, (*alpha.shape, 3)).copy(), "filled"
    foreground = video.foreground
    if foreground is None:
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
        alpha_kind=alpha_kind(alpha),
        background_kind=behind or ("inpainted" if real else "real"),
    )
    return resized(clip, size, exact=not real)


def resized(clip: LayeredClip, size: tuple[int, int] | None, *, exact: bool = True) -> LayeredClip:
    """The clip at a size, if one is asked for. exact: its layers are to give ``blended``."""
    if size is None or tuple(size) == clip.size:
        return clip
    small = resize_clip(clip, *size)
    blended = small.recomposed() if exact else small.blended
    return replace(small, blended=blended, alpha_kind=alpha_kind(small.alpha))
