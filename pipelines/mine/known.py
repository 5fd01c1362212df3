"""What a mined clip knows of its background and foreground, and what was made up."""

from __future__ import annotations

import numpy as np

from layerflow.clip import U8
from layerflow.media.known import pack_known
from pipelines.vision.colour import nearby_colour
from pipelines.vision.plate import Plate

_CLEAR, _OPAQUE = 25, 230  # levels of alpha: next to nothing of the subject; all but the subject
_MISS = 10.0  # levels by which the layers may miss the picture
_APART = 10.0  # levels by which a soft edge's colour may differ from opaque parts nearby


def known_pixels(
    frames: U8, foreground: U8, alpha: U8, plate: Plate, leftovers: np.ndarray | None = None
) -> U8:
    """The levels of the column ``known`` (``layerflow.media.known``), uint8 [T, H, W].

    ``frames``, ``foreground``: uint8 [T, H, W, 3]; ``alpha``: uint8 [T, H, W]; ``plate``: of
    ``clean_plate`` for them; ``leftovers``: bool [T, H, W], parts of the subject that are left in
    the background.

    The background is known where the video, another frame or the backdrop shows it. The
    foreground is known where there is nothing of it, where it is all but opaque, and where it is
    soft, the layers give the picture, and something vouches for its colour: a known background
    (a F = I - (1 - a) B is as good as B), or the opaque parts nearby, which have that colour too.
    """
    background = plate.seen | ~plate.hole
    if leftovers is not None:
        background = background & ~leftovers
    sure = (alpha <= _CLEAR) | (alpha >= _OPAQUE)
    for t in np.flatnonzero(~sure.all((1, 2))):
        a = alpha[t, ..., None].astype(np.float32) / np.float32(255)
        miss = a * foreground[t] + (1 - a) * plate.background[t] - frames[t]
        vouched = background[t]
        if not (vouched | sure[t]).all():
            apart = a * (foreground[t] - nearby_colour(frames[t], alpha[t]))
            vouched = vouched | (np.abs(apart).max(-1) <= _APART)
        sure[t] |= vouched & (np.abs(miss).max(-1) <= _MISS)
    return pack_known(background, sure)
