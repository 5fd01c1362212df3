"""Matting backends behind one protocol: video frames in, a soft matte and its confidence out.

A backend is one file with one class, and its line in ``BACKENDS``. What it is made with, its
constructor says (``weights``, ``device``, ``model``); what it is called with besides RGB frames,
its ``needs`` say. ``make_backend`` and the jobs act on these and on no name. Nothing is downloaded:
backends with a network take their weights by local path unless ``download=True`` is passed to the
ones that can fetch them.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import cv2
import numpy as np

from layerflow.plugins import Plugins

BACKENDS: dict[str, str] = {
    "motion": "pipelines.matting.motion.backend:MotionMatting",
    "auto": "pipelines.matting.auto.backend:AutoMatting",
    "rembg": "pipelines.matting.rembg:RembgMatting",
    "onnx": "pipelines.matting.onnx_session:OnnxMatting",
    "transparent-background": "pipelines.matting.transparent_background:InspyrenetMatting",
    "sam2": "pipelines.matting.sam2:Sam2Matting",
    "matanyone": "pipelines.matting.matanyone:MatAnyoneMatting",
    "alpha": "pipelines.matting.alpha:AlphaMatting",
    "chroma": "pipelines.matting.chroma:ChromaMatting",
}
MATTING = Plugins(
    "layerflow.matting",
    "matting backend",
    BACKENDS,
    ("name", "version", "licence", "needs", "__call__"),
)
"""Classes of ``MattingBackend``: ours, and those of installed packages."""

ALPHA = "alpha"  # RGBA frames: the matte that comes with the video (``with_alpha``)
BACKDROP = "backdrop"  # the backdrop of the shot, where there is one
KEY_COLOUR = "key colour"  # a subject before one even colour
EARLIER = "earlier"  # the frame before the clip's first one and its matte, where they are known
CHOSEN = "chosen"  # where the subject is, if it was chosen by hand
SEVERAL = "several"  # whether each clear subject is wanted, not one
MATTE = "matte"  # the step whose actors hold networks
NEEDS = frozenset({ALPHA, BACKDROP, KEY_COLOUR, EARLIER, CHOSEN, SEVERAL})


@dataclass(frozen=True)
class Matte:
    """The matte of one clip.

    ``alpha``: float32 [T, H, W] in [0, 1], 1 = foreground. ``confidence``: figures that the backend
    can give about its own result, by the names of ``pipelines.mine.score``; empty if it has none.
    ``others``: where each subject is wanted, the mattes of the others, the clearest first.
    """

    alpha: np.ndarray
    confidence: dict[str, float] = field(default_factory=dict)
    others: tuple[Matte, ...] = ()


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


@dataclass(frozen=True)
class Earlier:
    """The frame before a clip's first one, uint8 [H, W, 3], and its matte, uint8 [H, W]."""

    frame: np.ndarray
    alpha: np.ndarray


@dataclass(frozen=True)
class Chosen:
    """Where a clip's subject is on one of its frames, chosen by hand: nothing else is the subject.

    ``region``: bool [H, W], what it is inside of, None if only points say; ``points``: places (x,
    y) of which one at least is on it, ``away``: places that are not, in pixels of the frame.
    """

    frame: int
    region: np.ndarray | None
    points: tuple[tuple[float, float], ...] = ()
    away: tuple[tuple[float, float], ...] = ()


@runtime_checkable
class MattingBackend(Protocol):
    """A matting backend. ``licence`` is that of the weights (or of the code if it has none).

    ``needs``: what it is called with besides RGB frames, some of ``NEEDS``. ``asks``, if it is
    there and true: it computes on the CPU around networks for which it asks
    ``engine.networks.network`` itself; else one that takes a ``device`` is a network as a whole.
    """

    name: str
    version: str
    licence: str
    needs: frozenset[str]

    def __call__(self, frames: np.ndarray, backdrop: Backdrop | None = None) -> Matte:
        """Matte one clip: ``frames`` uint8 [T, H, W, 3] RGB -> ``Matte`` of the same T, H, W.

        Frames are [T, H, W, 4] for one that needs ``ALPHA``. ``backdrop``: what is behind the
        subject, if that is known, for one that needs ``BACKDROP``. One that needs ``EARLIER`` also
        takes ``earlier: Earlier | None``, by name, to stay with the same subject; one that needs
        ``CHOSEN`` ``chosen: Chosen | None``, and gives an empty matte where nothing is there; one
        that needs ``SEVERAL`` ``several: bool``.
        """
        ...


def make_backend(
    name: str,
    *,
    weights: str | Path | None = None,
    device: str = "cpu",
    **options: Any,
) -> MattingBackend:
    """Build the matting backend ``name``, of ``MATTING``, or ``NAME:MODEL``.

    ``MODEL`` is a model of rembg (``rembg:isnet-general-use``), a preset of onnx (``onnx:dis``) or
    the networks of auto (``auto:u2netp``).
    ``weights`` is the local path of a network's weights (rembg and onnx: ONNX;
    transparent-background: a PyTorch state dict). ``device`` is a torch-style device string. Other
    options go to the backend; see its class. Raises ValueError for an unknown name or option,
    missing weights, or a package that is not installed.
    """
    name, _, model = name.partition(":")
    asked = {"weights": weights, "model": model or None, **options}
    asked = {argument: value for argument, value in asked.items() if value is not None}
    return cast(MattingBackend, MATTING.make(name, {"device": device}, asked))


def network_of(name: str) -> str | None:
    """Whether the backend of that name is a network as a whole (``"whole"``), asks for networks
    around which it computes (``"asks"``), or has none. Raises ValueError for an unknown name."""
    made = MATTING.load(name.partition(":")[0])
    if "device" not in inspect.signature(made).parameters:
        return None
    return "asks" if getattr(made, "asks", False) else "whole"


def require(package: str, backend: str) -> None:
    """Raise a ValueError that names the pip extra unless ``package`` can be imported."""
    if importlib.util.find_spec(package) is None:
        raise ValueError(
            f"matting backend {backend!r} needs the package {package!r}, which is not installed; "
            'run: pip install "layerflow-toolkit[matting]"'
        )


@contextmanager
def environment(name: str, value: str) -> Iterator[None]:
    """Set an environment variable for a while: where a package looks for its models."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


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


def with_alpha(frames: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Stack a matte onto its frames: uint8 [T, H, W, 3] and [T, h, w] -> uint8 [T, H, W, 4].

    A matte of another size is scaled to the frames (area average when it shrinks); a matte of
    another length is a ValueError, because one that is a frame off is worse than none.
    """
    check_frames(frames)
    if alpha.dtype != np.uint8 or alpha.ndim != 3:
        raise ValueError(f"alpha must be uint8 [T, H, W], got {alpha.dtype} {list(alpha.shape)}")
    if len(alpha) != len(frames):
        raise ValueError(f"alpha has {len(alpha)} frames, its video {len(frames)}")
    height, width = frames.shape[1:3]
    if alpha.shape[1:] != (height, width):
        shrink = alpha.shape[1] * alpha.shape[2] > height * width
        mode = cv2.INTER_AREA if shrink else cv2.INTER_LINEAR
        alpha = np.stack([cv2.resize(a, (width, height), interpolation=mode) for a in alpha])
    return np.concatenate([frames, alpha[..., None]], axis=-1)
