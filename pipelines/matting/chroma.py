"""Matting backend for a subject before a keyed (evenly coloured) background."""

from __future__ import annotations

import cv2
import numpy as np

from pipelines.matting import KEY_COLOUR, Backdrop, Matte, check_frames


def parse_colour(colour: str | tuple[int, int, int]) -> tuple[int, int, int]:
    """``"#00ff00"`` or ``(0, 255, 0)`` -> an RGB triple; ValueError otherwise."""
    if isinstance(colour, str):
        digits = colour.removeprefix("#")
        try:
            if len(digits) != 6:
                raise ValueError
            values = tuple(bytes.fromhex(digits))
        except ValueError as error:
            raise ValueError(
                f"key colour must be six hex digits such as #00ff00, got {colour!r}"
            ) from error
    else:
        values = tuple(int(v) for v in colour)
    if len(values) != 3 or min(values) < 0 or max(values) > 255:
        raise ValueError(f"key colour must be three numbers of 0..255, got {colour!r}")
    return values[0], values[1], values[2]


class ChromaMatting:
    """Keys out one background colour by chromaticity distance in CIE Lab.

    ``key``: the background's colour; by default the median colour of the frame's left, right and
    top border over the whole clip. ``low``/``high``: (a, b) distances at which the matte is 0 and 1
    (8-bit Lab units). A grey key is matched on lightness as well, since it has no chroma.
    """

    name = "chroma"
    version = "1"
    licence = "Apache-2.0"
    needs = frozenset({KEY_COLOUR})

    def __init__(
        self,
        key: str | tuple[int, int, int] | None = None,
        low: float = 10.0,
        high: float = 28.0,
    ) -> None:
        if not 0 <= low < high:
            raise ValueError(f"chroma needs 0 <= low < high, got low={low}, high={high}")
        self.key = None if key is None else parse_colour(key)
        self.low = low
        self.high = high

    def __call__(self, frames: np.ndarray, backdrop: Backdrop | None = None) -> Matte:
        """Matte uint8 [T, H, W, 3]. ``matte_confidence`` is how even the border's colour is."""
        check_frames(frames)
        border = _border_pixels(frames)
        key = np.median(border, axis=0) if self.key is None else np.array(self.key)
        key_lab = _lab(key.reshape(1, 1, 3).astype(np.uint8))[0, 0]
        chroma = float(np.hypot(key_lab[1] - 128, key_lab[2] - 128))
        weights = np.array([0.0 if chroma > 20 else 1.0, 1.0, 1.0], np.float32)
        alpha = np.stack([self._ramp(_lab(frame) - key_lab, weights) for frame in frames])
        keyed = self._ramp(_lab(border[None]) - key_lab, weights) < 0.5
        return Matte(alpha, {"matte_confidence": float(keyed.mean())})

    def _ramp(self, difference: np.ndarray, weights: np.ndarray) -> np.ndarray:
        distance = np.sqrt((difference**2 * weights).sum(-1))
        ramp = np.clip((distance - self.low) / (self.high - self.low), 0, 1)
        return (ramp * ramp * (3 - 2 * ramp)).astype(np.float32)


def _lab(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(image, cv2.COLOR_RGB2LAB).astype(np.float32)


def _border_pixels(frames: np.ndarray) -> np.ndarray:
    """The pixels of a thin frame at the left, right and top of all frames, uint8 [N, 3]."""
    height, width = frames.shape[1:3]
    depth = max(1, min(height, width) // 40)
    parts = (frames[:, :, :depth], frames[:, :, -depth:], frames[:, :depth])
    return np.concatenate([p.reshape(-1, 3) for p in parts])[:: max(1, len(frames))]
