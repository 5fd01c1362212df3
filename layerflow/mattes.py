"""Mattes that come with a video: its alpha channel, or a film of the matte beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from av.video.reformatter import VideoReformatter

from layerflow.clip import U8
from layerflow.media import MediaError
from layerflow.video import Box, Limits, fit, probed, timed_frames, upright

LATE = 0.02  # seconds by which a matte's frame may miss its picture's: containers round


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
    alpha = probed(path, limits).has_alpha
    wanted = np.asarray(times, np.float64)
    missed = np.full(len(wanted), np.inf)
    out = np.zeros((len(wanted), height, width), np.uint8)
    converter = VideoReformatter()
    span = max(0.0, wanted.min() - LATE), wanted.max() + LATE
    for time, frame in timed_frames(path, *span, limits, alpha=alpha):
        closer = np.flatnonzero(np.abs(wanted - time) < np.minimum(missed, LATE))
        if len(closer) == 0:
            continue
        if alpha:
            matte = upright(frame, "rgba", converter)[..., 3]
        else:
            matte = upright(frame, "gray", converter)
        out[closer] = fit(np.repeat(matte[..., None], 3, axis=-1), height, width, box)[..., 0]
        missed[closer] = np.abs(wanted[closer] - time)
    if not np.isfinite(missed).all():
        raise MediaError(f"{int((~np.isfinite(missed)).sum())} of {len(wanted)} mattes are missing")
    return out
