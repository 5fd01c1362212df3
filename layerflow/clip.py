"""The layered clip and the compositing equation.

Colours are uint8 RGB ``[T, H, W, 3]``, alpha is uint8 ``[T, H, W]`` (255 = opaque). The
foreground colour is straight: not premultiplied, not on black.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]

LAYERS = FOREGROUND, ALPHA, BACKGROUND, BLENDED = "foreground", "alpha", "background", "blended"
"""The layers of a clip, in the order in which files, latents and the network hold them. ``ALPHA``
is the matte of ``FOREGROUND``; every other layer is in colour and has a prompt."""
PROMPTED = (FOREGROUND, BACKGROUND, BLENDED)
"""The layers in colour, which are those with a prompt, in the same order."""
KINDS = ("mined", "pasted", "image")
ALPHA_KINDS = ("binary", "soft")
BACKGROUND_KINDS = ("real", "filled", "inpainted")


@dataclass(frozen=True)
class LayeredClip:
    """The frames of all layers of one short video, with its prompts.

    Raises ValueError on construction when shapes, dtypes or labels do not fit together.
    """

    foreground: U8
    alpha: U8
    background: U8
    blended: U8
    prompts: Mapping[str, str] = field(default_factory=dict)
    fps: float = 8.0
    kind: str = "pasted"
    alpha_kind: str = "soft"
    background_kind: str = "real"

    def __post_init__(self) -> None:
        if self.alpha.ndim != 3 or self.alpha.dtype != np.uint8 or self.alpha.size == 0:
            raise ValueError(
                f"alpha must be uint8 [T, H, W] and not empty, "
                f"not {self.alpha.dtype} {list(self.alpha.shape)}"
            )
        for name in PROMPTED:
            layer = getattr(self, name)
            if layer.dtype != np.uint8 or layer.shape != (*self.alpha.shape, 3):
                raise ValueError(
                    f"{name} must be uint8 {[*self.alpha.shape, 3]} like alpha, "
                    f"not {layer.dtype} {list(layer.shape)}"
                )
        unknown = set(self.prompts) - set(PROMPTED)
        if unknown:
            raise ValueError(f"unknown prompt layers {sorted(unknown)}; allowed: {PROMPTED}")
        for label, value, allowed in (
            ("kind", self.kind, KINDS),
            ("alpha_kind", self.alpha_kind, ALPHA_KINDS),
            ("background_kind", self.background_kind, BACKGROUND_KINDS),
        ):
            if value not in allowed:
                raise ValueError(f"{label} must be one of {allowed}, not {value!r}")
        if self.kind == "image" and len(self.alpha) != 1:
            raise ValueError(f"an image clip has exactly 1 frame, not {len(self.alpha)}")
        if not self.fps > 0:
            raise ValueError(f"fps must be positive, not {self.fps}")

    @property
    def num_frames(self) -> int:
        return len(self.alpha)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.alpha.shape[1], self.alpha.shape[2]

    def layer(self, name: str) -> U8:
        if name not in LAYERS:
            raise ValueError(f"no layer {name!r}; layers are {LAYERS}")
        frames: U8 = getattr(self, name)
        return frames

    def recomposed(self) -> U8:
        """``alpha*foreground + (1-alpha)*background`` of the stored layers."""
        return composite(self.foreground, self.alpha, self.background)

    def take(self, frames: slice | list[int]) -> LayeredClip:
        """The clip with only the chosen frames."""
        layers: dict[str, Any] = {name: self.layer(name)[frames] for name in LAYERS}
        return replace(self, **layers)


def sampled_layers(layers: Mapping[str, U8 | None]) -> dict[str, Any]:
    """Layers as the pipeline gives them, as a clip holds them: of an RGBA foreground the colour,
    and alpha 255 where the model has none (None)."""
    colour = {name: layers[name] for name in PROMPTED}
    plain = {n: np.ascontiguousarray(c[..., :3]) for n, c in colour.items() if c is not None}
    alpha = layers[ALPHA]
    if alpha is None:
        alpha = np.full(plain[FOREGROUND].shape[:3], 255, np.uint8)
    return {**plain, ALPHA: np.ascontiguousarray(alpha)}


def composite(foreground: U8, alpha: U8, background: U8) -> U8:
    """``alpha*foreground + (1-alpha)*background``, rounded to nearest; integer arithmetic.

    foreground, background uint8 ``[..., 3]``, alpha uint8 ``[...]``.
    """
    a = alpha[..., None].astype(np.uint32)
    total = a * foreground + (255 - a) * background + 127
    return (total // 255).astype(np.uint8)


def premultiply(foreground: U8, alpha: U8) -> F32:
    """Foreground times alpha, float32 in 0..255."""
    return foreground.astype(np.float32) * (alpha[..., None].astype(np.float32) / 255.0)


def to_float(frames: U8) -> F32:
    """uint8 0..255 -> float32 in [-1, 1]."""
    return (frames.astype(np.float32) / 127.5) - 1.0


def from_float(frames: NDArray[np.floating]) -> U8:
    """Float in [-1, 1] (clamped) -> uint8 0..255, rounded to nearest."""
    return np.clip(np.rint((frames + 1.0) * 127.5), 0, 255).astype(np.uint8)


def from_level(levels: NDArray[np.floating]) -> U8:
    """Float levels in 0..255 (clamped) -> uint8, rounded to nearest."""
    return np.clip(np.rint(levels), 0, 255).astype(np.uint8)


def on_grey(foreground: U8, alpha: U8) -> F32:
    """The foreground as the network sees it: ``rgb*alpha`` in the [-1, 1] domain, float32.

    Transparent is 0, that is mid-grey (official ``data_video.py``; paper section 3.1).
    """
    return to_float(foreground) * (alpha[..., None].astype(np.float32) / 255.0)


def checkerboard(height: int, width: int, cell: int = 8) -> U8:
    """A light checkerboard ``[H, W, 3]`` to show transparency on."""
    rows, columns = np.indices((height, width)) // cell
    board = np.where((rows + columns) % 2 == 0, 235, 190).astype(np.uint8)
    return np.repeat(board[..., None], 3, axis=2)


def cover_box(height: int, width: int, to_height: int, to_width: int) -> tuple[int, int, int, int]:
    """Size after scaling to cover, and the top-left corner of the centre crop: (h, w, y, x)."""
    scale = max(to_height / height, to_width / width)
    h, w = max(to_height, round(height * scale)), max(to_width, round(width * scale))
    return h, w, (h - to_height) // 2, (w - to_width) // 2


def resize_cover(frames: NDArray, height: int, width: int) -> NDArray:
    """Scale to cover ``height x width`` and crop the centre; any dtype that cv2 resizes.

    Area filter when shrinking, cubic when growing. frames ``[T, H, W]`` or ``[T, H, W, C]``.
    """
    if frames.shape[1:3] == (height, width):
        return frames
    import cv2  # here, so that the model and the training loop need no OpenCV

    h, w, y, x = cover_box(frames.shape[1], frames.shape[2], height, width)
    shrinking = h <= frames.shape[1]
    method = cv2.INTER_AREA if shrinking else cv2.INTER_CUBIC
    out = np.empty((len(frames), height, width, *frames.shape[3:]), frames.dtype)
    for t, frame in enumerate(frames):
        scaled = cv2.resize(frame, (w, h), interpolation=method)
        out[t] = scaled[y : y + height, x : x + width]
    return out


def resize_matted(colour: U8, alpha: U8, height: int, width: int) -> tuple[U8, U8]:
    """Straight colour ``[T, H, W, 3]`` and its matte resized, the colour premultiplied meanwhile.

    Where the resized alpha is nearly 0 the colour is the plainly resized one, so that a foreground
    keeps its smooth continuation.
    """
    plain = resize_cover(colour, height, width)
    ink = resize_cover(premultiply(colour, alpha), height, width)
    cover = resize_cover(alpha.astype(np.float32) / 255.0, height, width)[..., None]
    straight = from_level(ink / np.maximum(cover, 1e-3))
    return np.where(cover > 0.02, straight, plain), resize_cover(alpha, height, width)


def resize_clip(clip: LayeredClip, height: int, width: int) -> LayeredClip:
    """All layers together, the foreground by ``resize_matted``."""
    if clip.size == (height, width):
        return clip
    foreground, alpha = resize_matted(clip.foreground, clip.alpha, height, width)
    return replace(
        clip,
        foreground=foreground,
        alpha=alpha,
        background=resize_cover(clip.background, height, width),
        blended=resize_cover(clip.blended, height, width),
    )
