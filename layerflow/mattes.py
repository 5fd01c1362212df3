"""Mattes that come with a video: its alpha channel, or a film of the matte beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from av.video.reformatter import VideoReformatter

from layerflow.clip import U8
from layerflow.film import kept_film
from layerflow.media import MediaError
from layerflow.upright import upright
from layerflow.video import NEAR, Box, Limits, fit, nearest, probe


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
    alpha = probe(path, limits).has_alpha
    wanted = np.asarray(times, np.float64)
    out = np.zeros((len(wanted), height, width), np.uint8)
    converter = VideoReformatter()
    with kept_film(path, limits, alpha=alpha) as film:
        places = nearest(film.packets.times, wanted)
        missing = np.abs(film.packets.times[places] - wanted) > NEAR
        due = ~missing
        for shown in film.pictures(np.unique(places[due]).tolist()):
            pixels = "rgba" if alpha else "gray"
            matte = upright(shown.frame, pixels, converter, shown.view)
            matte = matte[..., 3] if alpha else matte
            here = due & (places == shown.place)
            out[here] = fit(np.repeat(matte[..., None], 3, axis=-1), height, width, box)[..., 0]
            due &= ~here
    if lost := int((missing | due).sum()):
        raise MediaError(f"{lost} of {len(wanted)} mattes are missing")
    return out
