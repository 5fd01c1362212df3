"""Where a pasted foreground is in every frame: an eased path, scale, rotation, the camera's motion.

Poses are float64 ``[T, 4]``: x, y of the foreground's middle in pixels (pixel centres at whole
numbers), scale in clip pixels per foreground pixel, angle in radians.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from layerflow.seeds import log_uniform

if TYPE_CHECKING:
    from manifests.paste import PasteOptions
    from pipelines.inputs.sources import Foreground

F64 = NDArray[np.float64]
Generator = np.random.Generator
GROUND = (0.76, 0.98)  # where feet stand, as a share of the height
OWN_MOTION_SPEED = 0.35  # a foreground that moves by itself is moved less


@dataclass(frozen=True)
class Path:
    """Poses of one foreground. way: own motion without the camera, mean pixels a frame. mode: how
    it was placed (``ground``, ``source``, ``free``)."""

    poses: F64
    way: float
    mirrored: bool
    mode: str = "free"

    def at(self, times: F64) -> F64:
        """Poses at fractional frame times, linear between frames and beyond the ends."""
        last = len(self.poses) - 1
        low = np.clip(np.floor(times), 0, last - 1).astype(int)
        part = (times - low)[:, None]
        return self.poses[low] * (1 - part) + self.poses[low + 1] * part


def ease(s: F64, strength: float) -> F64:
    """0..1 -> 0..1, from even speed (strength 0) to a smooth start and stop (strength 1)."""
    return (1 - strength) * s + strength * (3 * s**2 - 2 * s**3)


def draw_path(rng: Generator, foreground: Foreground, options: PasteOptions, camera: F64) -> Path:
    """An eased path for one foreground, in frames of the clip.

    camera: float64 ``[T, 3, 3]``, frame 0 -> frame t, which the path follows if the options say
    so. The object's visible area, its feet or its source's place decide scale and position.
    """
    height, width = options.size
    mirrored = bool(options.flip and rng.random() < 0.5)
    cut = mirrored_sides(foreground.cut) if mirrored else foreground.cut
    scale = _draw_scale(rng, foreground, options)
    extent = np.array([foreground.rgba.shape[2], foreground.rgba.shape[1]]) * scale
    mode = _mode(options.placement, foreground)
    middle = _draw_place(rng, mode, foreground, extent, (width, height), mirrored)
    path = _draw_motion(rng, foreground, options, mode, cut)
    poses = np.empty((options.frames, 4))
    poses[:, :2] = middle + path
    s = np.linspace(-0.5, 0.5, options.frames)
    poses[:, 2] = scale * np.exp(s * np.log1p(rng.uniform(-1, 1) * options.zoom))
    turn = 0.0 if cut or foreground.moving else np.deg2rad(rng.uniform(-1, 1) * options.turn)
    poses[:, 3] = turn * s
    poses = keep_cuts_outside(poses, extent / scale, cut, (width, height))
    way = float(np.hypot(*np.diff(poses[:, :2], axis=0).T).mean())
    if options.follow_camera:
        poses = follow(poses, camera, anchor=options.frames // 2)
        poses = keep_cuts_outside(poses, extent / scale, cut, (width, height))
    return Path(poses, way, mirrored, mode)


def mirrored_sides(sides: frozenset[str]) -> frozenset[str]:
    """left and right swapped."""
    other = {"left": "right", "right": "left"}
    return frozenset(other.get(side, side) for side in sides)


def _mode(placement: str, foreground: Foreground) -> str:
    if placement != "auto":
        return placement
    return "source" if foreground.moving and max(foreground.frame) > 64 else "ground"


def _draw_scale(rng: Generator, foreground: Foreground, options: PasteOptions) -> float:
    height, width = options.size
    mass = float((foreground.rgba[..., 3] / 255.0).sum(axis=(1, 2)).mean())
    area = log_uniform(rng, max(options.area[0], 1e-4), max(options.area[1], 1e-4))
    scale = float(np.sqrt(area * height * width / max(mass, 1.0)))
    tall, wide = foreground.rgba.shape[1:3]
    room = 1.0 if not foreground.cut else 1.25
    fit = min(room * height / tall, room * width / wide)
    # An object that needs more than its source's pixels would look soft: it stays smaller.
    return min(scale, fit, options.max_upscale / foreground.scale)


def _draw_place(
    rng: Generator,
    mode: str,
    foreground: Foreground,
    extent: F64,
    clip: tuple[int, int],
    mirrored: bool,
) -> F64:
    """The middle of the object at mid-clip."""
    width, height = clip
    free = np.maximum(np.array(clip) - extent, 0.1 * np.array(clip))
    middle = np.array(clip) / 2 + rng.uniform(-0.5, 0.5, 2) * free
    if mode == "ground":
        feet = height * rng.uniform(*GROUND)
        middle[1] = max(feet - extent[1] / 2, min(extent[1] / 2, height * 0.5))
    elif mode == "source":
        tall, wide = foreground.rgba.shape[1:3]
        x = (foreground.corner[1] + wide / 2) / foreground.frame[1]
        y = (foreground.corner[0] + tall / 2) / foreground.frame[0]
        x = 1 - x if mirrored else x
        middle = np.array([x * width, y * height]) + rng.normal(0, 0.04, 2) * clip
    return middle - 0.5


def _draw_motion(
    rng: Generator,
    foreground: Foreground,
    options: PasteOptions,
    mode: str,
    cut: frozenset[str],
) -> F64:
    """Offsets ``[T, 2]`` around the middle of the path: eased, a little bent, capped in speed."""
    width = options.size[1]
    speed = rng.uniform(*options.speed) * width
    if foreground.moving:
        speed *= OWN_MOTION_SPEED
    spread = np.pi if mode == "free" else 0.35
    direction = rng.uniform(-spread, spread) + (np.pi if rng.random() < 0.5 else 0.0)
    unit = np.array([np.cos(direction), np.sin(direction)])
    s = np.linspace(0, 1, options.frames)
    eased = ease(s, rng.uniform(0, 1)) - 0.5
    way = speed * (options.frames - 1)
    bend = rng.uniform(-0.2, 0.2) * way * (np.sin(np.pi * s) - 2 / np.pi)
    offsets = way * eased[:, None] * unit + bend[:, None] * unit[::-1] * (-1, 1)
    if cut & {"top", "bottom"}:
        offsets[:, 1] = 0
    if cut & {"left", "right"}:
        offsets[:, 0] = 0
    fastest = float(np.hypot(*np.diff(offsets, axis=0).T).max(initial=0))
    return offsets * min(1.0, options.max_speed * width / max(fastest, 1e-9))


def keep_cuts_outside(poses: F64, extent: F64, cut: frozenset[str], clip: tuple[int, int]) -> F64:
    """Shift a whole path so that the sides on which the object is cut off stay out of sight.

    extent: width and height of the foreground at scale 1.
    """
    if not cut:
        return poses
    poses = poses.copy()
    half = extent * poses[:, 2:3] / 2
    for axis, (low, high) in enumerate((("left", "right"), ("top", "bottom"))):
        place = poses[:, axis]
        if high in cut:
            poses[:, axis] += clip[axis] + 0.5 - (place + half[:, axis]).min()
        elif low in cut:
            poses[:, axis] += -1.5 - (place - half[:, axis]).max()
    return poses


def follow(poses: F64, camera: F64, anchor: int) -> F64:
    """Add the camera's motion: what stands still in the scene moves with the background.

    Poses are taken as seen from frame ``anchor``; position, scale and angle change by the local
    similarity of the homography from there to each frame.
    """
    home = np.linalg.inv(camera[anchor])
    moved = poses.copy()
    for t, pose in enumerate(poses):
        matrix = camera[t] @ home
        points = pose[:2] + np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        centre, right, down = cv2.perspectiveTransform(points[None], matrix)[0]
        jacobian = np.stack([right - centre, down - centre], axis=1)
        moved[t, :2] = centre
        moved[t, 2] *= np.sqrt(abs(np.linalg.det(jacobian)))
        moved[t, 3] += np.arctan2(jacobian[1, 0] - jacobian[0, 1], jacobian[0, 0] + jacobian[1, 1])
    return moved


def matrices(
    poses: F64, shape: tuple[int, int], mirrored: bool, factor: tuple[float, float]
) -> F64:
    """Affine maps ``[T, 2, 3]`` from pixels of a prefiltered foreground to clip pixels.

    shape: height and width of the foreground at full size; factor: (y, x) pixels of the
    prefiltered one per full-size pixel.
    """
    fy, fx = factor
    sign = -1.0 if mirrored else 1.0
    cos, sin = np.cos(poses[:, 3]), np.sin(poses[:, 3])
    out = np.empty((len(poses), 2, 3))
    out[:, 0, 0], out[:, 0, 1] = poses[:, 2] * cos * sign / fx, -poses[:, 2] * sin / fy
    out[:, 1, 0], out[:, 1, 1] = poses[:, 2] * sin * sign / fx, poses[:, 2] * cos / fy
    middle = np.array([(shape[1] * fx - 1) / 2, (shape[0] * fy - 1) / 2])
    out[:, :, 2] = poses[:, :2] - out[:, :, :2] @ middle
    return out


def mean_step(path: Path) -> float:
    """Mean motion of the foreground in the picture, pixels a frame, camera included."""
    return float(np.hypot(*np.diff(path.poses[:, :2], axis=0).T).mean())


def shifted(path: Path, offset: F64) -> Path:
    """The same path somewhere else: offset (x, y) in pixels."""
    poses = path.poses.copy()
    poses[:, :2] += offset
    return replace(path, poses=poses)
