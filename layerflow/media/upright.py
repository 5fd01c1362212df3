"""Decoded frames as they are meant to be shown: upright, unmirrored, with square pixels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from av.sidedata.sidedata import SideDataContainer, Type
from av.video.reformatter import VideoReformatter

from layerflow.clip import U8, resize_cover
from layerflow.media.cells import frame_array
from layerflow.media.hdr import is_hdr, to_sdr

QUARTER_TURNS = {1: (0, -1, 1, 0), 2: (-1, 0, 0, -1), 3: (0, 1, -1, 0)}
WIDEST_PIXEL = 10.0  # pixels more oblong than this are a mistake in the header


@dataclass(frozen=True)
class View:
    """How stored pixels become the picture that is shown.

    aspect: width of a pixel by its height. First the picture is transposed (rows become columns),
    then mirrored left to right and top to bottom.
    """

    aspect: float = 1.0
    transposed: bool = False
    left_right: bool = False
    top_bottom: bool = False

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width as shown of a picture that is stored with these."""
        width = max(1, round(width * self.aspect))
        return (width, height) if self.transposed else (height, width)

    @property
    def rotation(self) -> int:
        """Degrees counter-clockwise that turn the stored picture upright (after mirroring)."""
        if self.transposed:
            return 90 if self.top_bottom else 270
        return 180 if self.top_bottom else 0

    @property
    def mirrored(self) -> bool:
        """Whether turning alone does not do it: left and right are exchanged, too."""
        return self.transposed == (self.left_right == self.top_bottom)


def aspect_of(*ratios: Any) -> float:
    """The first sample aspect ratio that is one: not 0/1, 1/0, unknown or absurd; else 1."""
    for ratio in ratios:
        if ratio is not None and ratio.numerator > 0 and ratio.denominator > 0:
            value = float(ratio)
            if 1 / WIDEST_PIXEL <= value <= WIDEST_PIXEL:
                return value
    return 1.0


def view_of(frame: Any, aspect: float, otherwise: View | None = None) -> View:
    """A frame's view by its display matrix, to the nearest quarter turn; without one, as given."""
    matrix = _matrix(frame)
    if matrix is None:
        return replace(otherwise or View(), aspect=aspect)
    a, b, c, d = matrix
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return View(aspect, False, a < 0, d < 0)
    return View(aspect, True, c < 0, b < 0)


def _matrix(frame: Any) -> tuple[int, ...] | None:
    """A, b, c, d of a frame's display matrix; None without one. Not by ``frame.side_data``: with
    it a frame and its side data refer to each other, and are never freed."""
    try:
        stored = SideDataContainer(frame).get(Type.DISPLAYMATRIX)  # type: ignore[call-arg]
    except ValueError:  # there is data of a kind that PyAV does not know, such as a camera's EXIF
        return QUARTER_TURNS.get(round(frame.rotation / 90) % 4)
    if stored is None:
        return None
    a, b, _, c, d = (int(v) for v in np.frombuffer(stored, np.int32)[:5])
    return a, b, c, d


def upright(frame: Any, pixel_format: str, converter: VideoReformatter, view: View) -> U8:
    """A frame as an array: HDR brought to SDR, of two fields the first, as ``view`` shows it."""
    if pixel_format == "rgb24" and is_hdr(frame):
        array = to_sdr(frame, converter)
    else:
        array = frame_array(frame, pixel_format, converter)
    height, width = array.shape[:2]
    if frame.interlaced_frame and height > 2:
        array = np.asarray(
            cv2.resize(array[::2], (width, height), interpolation=cv2.INTER_CUBIC), np.uint8
        )
    wide = max(1, round(width * view.aspect))
    if wide != width:
        array = scaled(array, height, wide)
    if view.transposed:
        array = array.swapaxes(0, 1)
    array = array[:: -1 if view.top_bottom else 1, :: -1 if view.left_right else 1]
    return np.ascontiguousarray(array)


def scaled(image: U8, height: int, width: int) -> U8:
    """One frame ``[H, W]``, ``[H, W, 3 or 4]`` stretched to a size; colour goes with alpha."""
    method = cv2.INTER_AREA if width * height < image.shape[0] * image.shape[1] else cv2.INTER_CUBIC

    def stretch(part: np.ndarray) -> np.ndarray:
        return np.asarray(cv2.resize(part, (width, height), interpolation=method))

    if image.ndim == 2 or image.shape[-1] != 4:
        return np.asarray(stretch(image), np.uint8)
    return _with_alpha(image, stretch)


def cover(image: U8, height: int, width: int) -> U8:
    """One frame ``[H, W, 3 or 4]`` scaled to cover and cropped; colour goes with its alpha."""
    if image.shape[-1] != 4 or image.shape[:2] == (height, width):
        return resize_cover(image[None], height, width)[0]
    return _with_alpha(image, lambda part: resize_cover(part[None], height, width)[0])


def _with_alpha(image: U8, resize: Any) -> U8:
    """Straight RGBA resized: premultiplied meanwhile, plain where there is hardly any alpha."""
    share = image[..., 3].astype(np.float32) / 255
    ink = resize(image[..., :3] * share[..., None])
    soft = np.clip(resize(share), 0, 1)[..., None]
    plain = resize(np.ascontiguousarray(image[..., :3]))
    colour = np.where(soft > 0.02, ink / np.maximum(soft, 1e-3), plain)
    return np.clip(np.rint(np.concatenate([colour, soft * 255], -1)), 0, 255).astype(np.uint8)
