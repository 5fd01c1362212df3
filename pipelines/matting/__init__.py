"""Matting backends behind one protocol: video frames in, a soft matte and its confidence out.

A backend is an object that is called with one clip and returns a ``Matte``. ``make_matter`` builds
it by name. Nothing is downloaded: backends with a network take their weights by local path unless
``download=True`` is passed to the ones that can fetch them.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import cv2
import numpy as np

from layerflow.plugins import Plugins

BACKENDS: dict[str, str] = {
    "motion": "pipelines.matting.motion.backend:MotionMatter",
    "rembg": "pipelines.matting.rembg:RembgMatter",
    "onnx": "pipelines.matting.onnx_session:OnnxMatter",
    "transparent-background": (
        "pipelines.matting.transparent_background:TransparentBackgroundMatter"
    ),
    "alpha": "pipelines.matting.alpha:AlphaMatter",
    "chroma": "pipelines.matting.chroma:ChromaMatter",
}
MATTING = Plugins(
    "layerflow.matting", "matting backend", BACKENDS, ("name", "version", "licence", "__call__")
)
"""Classes of ``Matter``: ours, and those of installed packages."""
MATTERS: tuple[str, ...] = tuple(BACKENDS)


@dataclass(frozen=True)
class Matte:
    """The matte of one clip.

    ``alpha``: float32 [T, H, W] in [0, 1], 1 = foreground. ``confidence``: figures that the backend
    can give about its own result, by the names of ``pipelines.mine.score``; empty if it has none.
    """

    alpha: np.ndarray
    confidence: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Backdrop:
    """What a still camera sees when nothing stands in front of it.

    ``picture``: uint8 [H, W, 3]; ``known``: bool [H, W], where it can be relied upon; ``tones``:
    uint8 [T, 256, 3], what its levels are in the light of frame t of a clip.
    """

    picture: np.ndarray
    known: np.ndarray
    tones: np.ndarray

    def at(self, t: int) -> np.ndarray:
        """The backdrop in the light of frame t, uint8 [H, W, 3]."""
        return cast(np.ndarray, cv2.LUT(self.picture, self.tones[t][None]))


@runtime_checkable
class Matter(Protocol):
    """A matting backend. ``licence`` is that of the weights (or of the code if it has none)."""

    name: str
    version: str
    licence: str

    def __call__(self, frames: np.ndarray, backdrop: Backdrop | None = None) -> Matte:
        """Matte one clip: ``frames`` uint8 [T, H, W, 3] RGB -> ``Matte`` of the same T, H, W.

        ``backdrop``: what is behind the subject, if that is known. A backend that makes use of it
        has an attribute ``uses_backdrop = True``.
        """
        ...


def make_matter(
    name: str,
    *,
    weights: str | Path | None = None,
    device: str = "cpu",
    **options: Any,
) -> Matter:
    """Build the matting backend ``name``, of ``MATTING``, or ``NAME:MODEL``.

    ``MODEL`` is a model of rembg (``rembg:isnet-general-use``) or a preset of onnx (``onnx:dis``).
    ``weights`` is the local path of a network's weights (rembg and onnx: ONNX;
    transparent-background: a PyTorch state dict). ``device`` is a torch-style device string. Other
    options go to the backend; see its class. Raises ValueError for an unknown name or option,
    missing weights, or a package that is not installed.
    """
    name, _, model = name.partition(":")
    asked = options | ({"model": model} if model else {})
    asked |= {} if weights is None else {"weights": weights}
    return cast(Matter, MATTING.make(name, {"weights": weights, "device": device}, asked))


def require(package: str, backend: str) -> None:
    """Raise a ValueError that names the pip extra unless ``package`` can be imported."""
    if importlib.util.find_spec(package) is None:
        raise ValueError(
            f"matting backend {backend!r} needs the package {package!r}, which is not installed; "
            'run: pip install "layerflow-toolkit[matting]"'
        )


def check_frames(frames: np.ndarray, channels: tuple[int, ...] = (3,)) -> np.ndarray:
    """Return ``frames`` if it is uint8 [T >= 1, H, W, C] with C in ``channels``, else raise."""
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] not in channels:
        wanted = " or ".join(str(c) for c in channels)
        raise ValueError(
            f"frames must be uint8 [T, H, W, {wanted}], got {frames.dtype} {list(frames.shape)}"
        )
    if min(frames.shape) < 1:
        raise ValueError(f"frames must not be empty, got shape {list(frames.shape)}")
    return frames
