"""Matting backend for input that already has its matte: an alpha channel or a given mask."""

from __future__ import annotations

import numpy as np

from pipelines.matting import Backdrop, Matte, check_frames


def with_mask(frames: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Stack a mask onto its frames: uint8 [T, H, W, 3] and [T, H, W] -> uint8 [T, H, W, 4].

    A mask of another size is scaled to the frames (area average when it shrinks); a mask of
    another length is a ValueError, because a matte that is one frame off is worse than none.
    """
    import cv2

    check_frames(frames)
    mask = mask[..., 0] if mask.ndim == 4 else mask
    if mask.dtype != np.uint8 or mask.ndim != 3:
        raise ValueError(f"mask must be uint8 [T, H, W], got {mask.dtype} {list(mask.shape)}")
    if len(mask) != len(frames):
        raise ValueError(f"mask has {len(mask)} frames, its video {len(frames)}")
    height, width = frames.shape[1:3]
    if mask.shape[1:] != (height, width):
        shrink = mask.shape[1] * mask.shape[2] > height * width
        mode = cv2.INTER_AREA if shrink else cv2.INTER_LINEAR
        mask = np.stack([cv2.resize(m, (width, height), interpolation=mode) for m in mask])
    return np.concatenate([frames, mask[..., None]], axis=-1)


class AlphaMatter:
    """Takes the fourth channel of RGBA frames as the matte, or the ``mask`` given beforehand.

    ``mask``: uint8 [T, H, W], 255 = foreground; used for RGB frames of the same length.
    """

    name = "alpha"
    version = "1"
    licence = "as the input"

    def __init__(self, mask: np.ndarray | None = None) -> None:
        self.mask = mask

    def __call__(self, frames: np.ndarray, backdrop: Backdrop | None = None) -> Matte:
        """Matte uint8 [T, H, W, 4], or [T, H, W, 3] with a mask. ValueError if there is neither."""
        check_frames(frames, (3, 4))
        if frames.shape[-1] == 3:
            if self.mask is None:
                raise ValueError(
                    "matting backend 'alpha' needs an alpha channel or a mask file beside the "
                    "video; this input has neither"
                )
            frames = with_mask(frames, self.mask)
        return Matte(frames[..., 3].astype(np.float32) / np.float32(255))
