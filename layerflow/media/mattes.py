"""Mattes that come with a video: its alpha channel, or a video of the matte beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from layerflow.clip import U8
from layerflow.media.reader import kept_reader
from layerflow.media.video import NEAR, Box, Limits, fit, images_at, probe


def fetch_matte(
    path: Path,
    times: Sequence[float],
    height: int,
    width: int,
    limits: Limits | None = None,
    *,
    box: Box | None = None,
) -> U8:
    """The mattes at the given times, covered and cropped like the frames of ``video.fetch``.

    The alpha channel of a video that has one, else the brightness of its picture. Returns uint8
    ``[len(times), height, width]``; MediaError when one is missing.
    """
    limits = limits or Limits()
    pixels = "rgba" if probe(path, limits).has_alpha else "gray"
    out = np.zeros((len(times), height, width), np.uint8)
    with kept_reader(path, limits, alpha=pixels == "rgba") as reader:
        for here, image in images_at(reader, pixels, times, NEAR, "mattes are missing"):
            matte = np.atleast_3d(image)[..., -1:]
            out[here] = fit(matte.repeat(3, axis=-1), height, width, box)[..., 0]
    return out
