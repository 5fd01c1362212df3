"""What thumbnails show before anything is decoded at size: black bars, fades, empty frames."""

from __future__ import annotations

import numpy as np

from layerflow.clip import U8
from layerflow.media.video import Box

BAR_LEVEL = 24  # brightest level that still counts as a black bar (limited-range black is 16)
MIN_BAR, MIN_PICTURE = 0.03, 0.3  # shares of the side
FLAT_LEVEL = 4.0  # standard deviation of luma below which a frame shows nothing


def luma(thumbs: U8) -> np.ndarray:
    """Rec. 709 luma, float32 ``[N, h, w]`` in 0..255."""
    weights = np.array([0.2126, 0.7152, 0.0722], np.float32)
    return thumbs.astype(np.float32) @ weights


def find_bars(thumbs: U8) -> Box | None:
    """The picture inside black bars as shares (top, bottom, left, right), or None without bars.

    thumbs uint8 ``[N, h, w, 3]`` of one shot. A bar is dark in every frame; both of a pair need
    not be equally wide. A shot that is all dark has no bars.
    """
    brightest = luma(thumbs).max(axis=0)
    rows = np.nonzero((brightest > BAR_LEVEL).any(axis=1))[0]
    columns = np.nonzero((brightest > BAR_LEVEL).any(axis=0))[0]
    if not len(rows):
        return None
    height, width = brightest.shape
    top, bottom = rows[0], rows[-1] + 1
    left, right = columns[0], columns[-1] + 1
    if (bottom - top) < MIN_PICTURE * height or (right - left) < MIN_PICTURE * width:
        return None
    vertical = (height - (bottom - top)) >= MIN_BAR * height
    across = (width - (right - left)) >= MIN_BAR * width
    if not (vertical or across):
        return None
    # A border thumbnail pixel mixes bar and picture: leave it out.
    return (
        (top + 1) / height if vertical and top else 0.0,
        (bottom - 1) / height if vertical and bottom < height else 1.0,
        (left + 1) / width if across and left else 0.0,
        (right - 1) / width if across and right < width else 1.0,
    )


def trim_fades(thumbs: U8, shot: tuple[int, int]) -> tuple[int, int]:
    """The shot without flat (black, white, plain) frames at its ends; itself if all are flat."""
    first, last = shot
    flat = luma(thumbs[first:last]).std(axis=(1, 2)) < FLAT_LEVEL
    shown = np.nonzero(~flat)[0]
    if not len(shown):
        return shot
    return first + int(shown[0]), first + int(shown[-1]) + 1
