"""The foreground's own colour: what it would look like without the background shining through.

A picture is I = a F + (1 - a) B. Taking I itself as the foreground leaves the old background as a
rim around every soft edge. Here F is estimated per frame:

1. F' is a matte-weighted local mean of the picture, wide first, then narrow, continued smoothly
   where the matte is empty (the idea of blur fusion, Forte 2021, arXiv 2110.14036, on a push-pull
   pyramid instead of fixed boxes);
2. F is the colour nearest to F' that satisfies the compositing equation:
   F = F' + a (I - a F' - (1 - a) B) / (a^2 + k), the minimiser of
   |a F + (1 - a) B - I|^2 + k |F - F'|^2, clamped to the colour range.

B is the clean plate where there is one, else it is estimated like F' with the inverted matte.
"""

from __future__ import annotations

import numpy as np

from pipelines.vision.numerics import box, push_pull, single_thread

_REGULARISER = 2e-3  # k: pull towards the local mean, matters where the matte is thin


def straight_foreground(
    frames: np.ndarray, alpha: np.ndarray, plate: np.ndarray | None = None
) -> np.ndarray:
    """The straight (not premultiplied) foreground colour of a clip.

    ``frames``: uint8 [T, H, W, 3]; ``alpha``: float32 [T, H, W] in [0, 1] or uint8 (255 = 1);
    ``plate``: uint8 [T, H, W, 3], the background behind the subject, where known. Returns uint8
    [T, H, W, 3]: the picture itself where alpha is 1, the subject's colour where it is soft, a
    smooth continuation of it where alpha is 0. Raises ValueError for shapes that do not fit.
    """
    if frames.ndim != 4 or alpha.shape != frames.shape[:3]:
        raise ValueError(f"alpha {list(alpha.shape)} does not fit frames {list(frames.shape)}")
    if plate is not None and plate.shape != frames.shape:
        raise ValueError(f"plate {list(plate.shape)} does not fit frames {list(frames.shape)}")
    with single_thread():
        behind = [None] * len(frames) if plate is None else plate
        return np.stack([*map(estimate_foreground, frames, alpha, behind)])


def estimate_foreground(
    image: np.ndarray, alpha: np.ndarray, background: np.ndarray | None = None
) -> np.ndarray:
    """The straight foreground colour of one picture.

    ``image``: uint8 [H, W, 3]; ``alpha``: float [H, W] in [0, 1] or uint8; ``background``: uint8
    [H, W, 3] if known. Returns uint8 [H, W, 3] as ``straight_foreground``.
    """
    if image.ndim != 3 or image.dtype != np.uint8 or alpha.shape != image.shape[:2]:
        raise ValueError(
            f"need a uint8 [H, W, 3] image and an [H, W] alpha, got {image.dtype} "
            f"{list(image.shape)} and {list(alpha.shape)}"
        )
    matte = alpha.astype(np.float32) / np.float32(255) if alpha.dtype == np.uint8 else alpha
    matte = np.clip(matte, 0, 1).astype(np.float32)
    picture = image.astype(np.float32)
    a = matte[..., None]
    if background is None:
        guess_f, guess_b = _two_passes(picture, matte)
    else:
        guess_b = background.astype(np.float32)
        guess_f = _local_colour(picture, matte)
    residual = picture - a * guess_f - (1 - a) * guess_b
    colour = guess_f + a * residual / (a * a + _REGULARISER)
    result = np.clip(np.rint(colour), 0, 255).astype(np.uint8)
    return np.where(a >= 1, image, result)


def nearby_colour(image: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """The colour of what is opaque, continued smoothly over everything else.

    ``image``: uint8 [H, W, 3]; ``alpha``: uint8 [H, W]. Returns float32 [H, W, 3] in 0..255.
    """
    return _local_colour(image.astype(np.float32), alpha.astype(np.float32) / np.float32(255))


def _two_passes(picture: np.ndarray, matte: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Guesses of both layers of float32 [H, W, 3]: local means, made consistent, averaged again."""
    front = _local_colour(picture, matte)
    back = _local_colour(picture, 1 - matte)
    a = matte[..., None]
    residual = picture - a * front - (1 - a) * back
    share = a * a + (1 - a) * (1 - a)
    front = np.clip(front + a * residual / share, 0, 255)
    back = np.clip(back + (1 - a) * residual / share, 0, 255)
    radius = max(1, round(min(matte.shape) / 160))
    return _blur_weighted(front, matte, radius), _blur_weighted(back, 1 - matte, radius)


def _local_colour(picture: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The picture where ``weight`` is near 1, continued smoothly from there."""
    trusted = np.clip((weight - 0.9) / 0.1, 0, 1)
    # A subject that is soft all over has no sure core: fall back on what is most opaque.
    share = trusted + 1e-3 * weight**4
    return push_pull(picture, np.minimum(share, 1))


def _blur_weighted(values: np.ndarray, weight: np.ndarray, radius: int) -> np.ndarray:
    """Mean of ``values`` under ``weight`` over a square; the values themselves where it is 0."""
    mass = box(weight, radius)[..., None]
    mean = box(values * weight[..., None], radius)
    return np.where(mass > 1e-3, mean / np.maximum(mass, 1e-3), values)
