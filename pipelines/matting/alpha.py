"""Matting backend for video that has a matte already: an alpha channel, or a video of it."""

from __future__ import annotations

import numpy as np

from pipelines.matting import ALPHA, Backdrop, Matte, check_frames


class AlphaMatting:
    """Takes the fourth channel of RGBA frames as the matte."""

    name = "alpha"
    version = "1"
    licence = "as the input"
    needs = frozenset({ALPHA})

    def __call__(self, frames: np.ndarray, backdrop: Backdrop | None = None) -> Matte:
        """Matte uint8 [T, H, W, 4]; ValueError without a fourth channel."""
        check_frames(frames, (4,))
        return Matte(frames[..., 3].astype(np.float32) / np.float32(255))
