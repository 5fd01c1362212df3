"""The background's camera: measured in real frames, made up over a still."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from layerflow.clip import U8, cover_box
from pipelines.vision.numerics import single_thread
from pipelines.vision.path import ease
from pipelines.vision.registration import register

F64 = NDArray[np.float64]
TRACKING_WIDTH = 400  # pixels; larger frames are tracked at this width
MAX_SLACK = 0.35  # a made-up camera crops at most this share beyond the clip's size


def measure_camera(frames: U8, size: tuple[int, int]) -> tuple[F64, float, float]:
    """Camera motion of uint8 ``[T, h, w, 3]`` frames, in pixels of the clip cut from them.

    size: height and width after ``resize_cover``. Returns homographies float64 ``[T, 3, 3]`` from
    frame 0 to frame t, the share of static frame pairs, and the residual in pixels.
    """
    height, width = frames.shape[1:3]
    factor = min(1.0, TRACKING_WIDTH / width)
    small = (round(width * factor), round(height * factor))
    with single_thread():
        grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
        if factor < 1:
            grey = [cv2.resize(g, small, interpolation=cv2.INTER_AREA) for g in grey]
        found = register(np.stack(grey))
    scaled_h, scaled_w, y, x = cover_box(height, width, *size)
    fy, fx = scaled_h / grey[0].shape[0], scaled_w / grey[0].shape[1]
    fit = np.array([[fx, 0, fx / 2 - 0.5 - x], [0, fy, fy / 2 - 0.5 - y], [0, 0, 1]])
    camera = np.stack([fit @ found.between(0, t) @ np.linalg.inv(fit) for t in range(len(frames))])
    camera /= camera[:, 2:, 2:]
    return camera, found.static, found.residual * (fx + fy) / 2


def pan_over_still(
    still: U8, size: tuple[int, int], frames: int, speed: float, rng: np.random.Generator
) -> tuple[U8, F64]:
    """A camera that pans and zooms over a still uint8 ``[h, w, 3]``.

    speed: mean shift a frame as a share of the clip's width; 0 gives equal frames. Returns uint8
    ``[frames, H, W, 3]`` and homographies ``[frames, 3, 3]`` from frame 0 to frame t.
    """
    height, width = size
    way = min(speed * (frames - 1), MAX_SLACK * 0.8) * width
    slack = min(MAX_SLACK, rng.uniform(0.02, 0.15) + way / min(size))
    if speed == 0:
        slack = rng.uniform(0.0, 0.2)
    cover = max(height / still.shape[0], width / still.shape[1])
    turn = rng.uniform(-0.4, 0.4) + (np.pi if rng.random() < 0.5 else 0.0)
    shift = way * np.array([np.cos(turn), np.sin(turn)])
    zoom = 1.0 + (rng.uniform(-0.5, 0.5) * way / width if speed else 0.0)
    s = ease(np.linspace(0, 1, frames), rng.uniform(0, 1))
    scales = cover * (1 + slack) * np.exp(np.log(zoom) * (s - 0.5))
    # The window's corner may lie anywhere in the slack that the way and the zoom leave.
    extent = np.array([still.shape[1], still.shape[0]])
    place = rng.uniform(0, 1, 2)
    room = extent * scales[:, None] - (width, height)
    middle = place * room + (s - 0.5)[:, None] * shift
    corners = np.clip(middle, 0, np.maximum(room, 0))
    matrices = np.zeros((frames, 3, 3))
    matrices[:, 0, 0] = matrices[:, 1, 1] = scales
    matrices[:, :2, 2] = scales[:, None] / 2 - 0.5 - corners
    matrices[:, 2, 2] = 1
    video = _warped(still, matrices, size, still_camera=speed == 0)
    return video, matrices @ np.linalg.inv(matrices[0])


def _warped(still: U8, matrices: F64, size: tuple[int, int], *, still_camera: bool) -> U8:
    """Warp once per frame from a still that is prefiltered to about twice the clip's scale."""
    height, width = size
    factor = min(1.0, 2.0 * float(matrices[:, 0, 0].max()))
    source = still
    if factor < 0.9:
        small = (max(2, round(still.shape[1] * factor)), max(2, round(still.shape[0] * factor)))
        source = cv2.resize(still, small, interpolation=cv2.INTER_AREA)
    fx, fy = source.shape[1] / still.shape[1], source.shape[0] / still.shape[0]
    sigma = 0.4 / float(matrices[:, 0, 0].mean() / fx)
    if sigma > 0.3:
        source = cv2.GaussianBlur(source, (0, 0), sigma)
    unfit = np.array([[1 / fx, 0, 0.5 / fx - 0.5], [0, 1 / fy, 0.5 / fy - 0.5], [0, 0, 1]])
    video = np.empty((len(matrices), height, width, 3), np.uint8)
    for t in range(1 if still_camera else len(matrices)):
        video[t] = cv2.warpAffine(
            source,
            (matrices[t] @ unfit)[:2],
            (width, height),
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )
    if still_camera:
        video[1:] = video[0]
    return video
