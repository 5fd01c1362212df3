"""Small synthetic clips with known layers, for the tests of matting and its stages."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from pipelines.matting import Backdrop


@dataclass(frozen=True)
class Truth:
    """uint8 frames and background [T, H, W, 3], float32 alpha [T, H, W]."""

    frames: np.ndarray
    alpha: np.ndarray
    background: np.ndarray


def texture(height: int, width: int, seed: int, tint: tuple[int, int, int]) -> np.ndarray:
    """A picture with structure at several scales, uint8 [height, width, 3]."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width, 3), np.float32)
    for cells, weight in ((6, 40), (18, 35), (60, 25)):
        noise = rng.uniform(-1, 1, (cells, cells, 3)).astype(np.float32)
        noise = 0.3 * noise + 0.7 * noise.mean(-1, keepdims=True)
        total += weight * cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(total + np.array(tint, np.float32), 0, 255).astype(np.uint8)


def moving_disc(
    count: int = 12,
    size: tuple[int, int] = (160, 240),
    *,
    pan: float = 3.0,
    speed: float = 5.0,
    radius: float | None = None,
    noise: float = 1.0,
) -> Truth:
    """A textured disc that crosses a textured background while the camera pans.

    ``pan`` and ``speed`` are in pixels a frame, both in the picture; ``speed`` 0 with ``pan`` 0 is
    a still scene.
    """
    height, width = size
    radius = 0.2 * height if radius is None else radius
    scenery = texture(2 * height, 3 * width, 1, (110, 120, 90))
    skin = texture(height, height, 2, (170, 110, 100))
    rng = np.random.default_rng(3)
    frames, alphas, backgrounds = [], [], []
    for t in range(count):
        shift = np.array([[1, 0, -width / 2 - pan * t], [0, 1, -height / 2.0]])
        back = cv2.warpAffine(scenery, shift, (width, height), flags=cv2.INTER_LINEAR)
        x = width / 2 + speed * (t - (count - 1) / 2)
        y = height / 2 + 0.3 * speed * (t - (count - 1) / 2)
        move = np.array([[1, 0, x - height / 2], [0, 1, y - height / 2]])
        front = cv2.warpAffine(skin, move, (width, height), borderMode=cv2.BORDER_REFLECT)
        yy, xx = np.mgrid[:height, :width]
        alpha = np.clip(radius + 0.5 - np.hypot(xx - x, yy - y), 0, 1).astype(np.float32)
        mixed = alpha[..., None] * front + (1 - alpha[..., None]) * back
        mixed += rng.normal(0, noise, mixed.shape)
        frames.append(np.clip(np.rint(mixed), 0, 255).astype(np.uint8))
        alphas.append(alpha)
        backgrounds.append(back)
    return Truth(np.stack(frames), np.stack(alphas), np.stack(backgrounds))


@dataclass(frozen=True)
class TwoMovers:
    """uint8 frames [T, 96, 160, 3] and the mattes [T, 96, 160] in {0, 1} of two discs that walk
    towards each other, one above the other: the large one to the right."""

    frames: np.ndarray
    large: np.ndarray
    small: np.ndarray


def two_movers(count: int = 8) -> TwoMovers:
    room = texture(96, 160, 5, (120, 110, 90))
    y, x = np.mgrid[:96, :160]
    frames, mattes = [], []
    for t in range(count):
        picture, own = room, []
        for left, top, radius, speed, seed in ((32, 32, 18, 1.5, 2), (128, 72, 13, -1.5, 8)):
            middle = left + speed * t
            inside = np.hypot(x - middle, y - top) < radius
            skin = np.roll(texture(96, 160, seed, (190, 60, 60)), round(middle), axis=1)
            picture = np.where(inside[..., None], skin, picture).astype(np.uint8)
            own.append(inside)
        frames.append(picture)
        mattes.append(own)
    large, small = np.stack(mattes, axis=1).astype(np.float32)
    return TwoMovers(np.stack(frames), large, small)


def star_before_a_wall(count: int = 8, *, pan: float = 0.5, speed: float = 4.0) -> Truth:
    """A thin five-pointed thing on a stalk crosses a blank wall above textured ground."""
    height, width = 144, 216
    wall = np.full((height, width + 40, 3), (168, 158, 150), np.uint8)
    wall[110:] = texture(34, width + 40, 4, (90, 80, 70))
    skin = np.tile(texture(40, 40, 6, (60, 150, 120)), (4, 6, 1))[:height, :width]
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    frames, alphas, backgrounds = [], [], []
    for t in range(count):
        back = cv2.warpAffine(wall, np.array([[1, 0, -pan * t], [0, 1, 0]]), (width, height))
        middle = 90 + speed * t
        angle, radius = np.arctan2(y - 50, x - middle), np.hypot(y - 50, x - middle)
        stalk = (np.abs(x - middle) < 3) & (y > 50) & (y < 120)
        alpha = (radius < 14 + 8 * np.cos(5 * angle)) | stalk
        frame = np.where(alpha[..., None], np.roll(skin, round(middle), 1), back)
        frames.append(np.clip(frame + rng.normal(0, 1, frame.shape), 0, 255).astype(np.uint8))
        alphas.append(alpha.astype(np.float32))
        backgrounds.append(back)
    return Truth(np.stack(frames), np.stack(alphas), np.stack(backgrounds))


def backdrop_of(picture: np.ndarray, count: int) -> Backdrop:
    """A backdrop that is known everywhere, in the light of all ``count`` frames."""
    levels = np.arange(256, dtype=np.uint8)
    tones = np.broadcast_to(levels[None, :, None], (count, 256, 3)).copy()
    return Backdrop(picture, np.ones(picture.shape[:2], bool), tones)


def mean_iou(alpha: np.ndarray, truth: np.ndarray) -> float:
    """Mean over frames of the IoU at one half of two [T, H, W] mattes."""
    a, b = alpha >= 0.5, truth >= 0.5
    both, either = (a & b).sum((1, 2)), (a | b).sum((1, 2))
    return float(np.where(either > 0, both / np.maximum(either, 1), 1).mean())
