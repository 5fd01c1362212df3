"""Filling background that no frame showed: by OpenCV, or by a network given by path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol, cast

import cv2
import numpy as np

from layerflow.plugins import Plugins
from layerflow.weights import with_content
from pipelines.vision.numerics import single_thread

INPAINTERS = Plugins(
    "layerflow.inpainters",
    "inpainter",
    {
        "opencv": "pipelines.vision.inpaint:OpenCvInpainter",
        "lama": "pipelines.vision.inpaint:LamaInpainter",
        "wan-vace": "pipelines.vision.wan_vace:WanVaceInpainter",
    },
    ("name", "licence", "__call__"),
)
"""Classes of ``Inpainter``: ours, and those of installed packages."""

INPAINT = "inpaint"  # the step whose actors may hold one
_FILL_SIDE = 320  # OpenCV works on a window scaled to at most this size
_LAMA_SIDE = 512  # LaMa was trained at 256 and is good up to about this size
_LAMA_STEP = 8  # sides of its input are multiples of this
_BATCH = 8


@dataclass(frozen=True)
class Hole:
    """uint8 picture [H, W, 3] and where it is to be filled, bool [H, W].

    ``window``: rows and columns around the subject; all of ``where`` lies in it.
    """

    picture: np.ndarray
    where: np.ndarray
    window: tuple[slice, slice]


class Inpainter(Protocol):
    """Fills holes; what is not hole comes back bit for bit.

    ``video``, if it is there and true: it is called once a clip, with all frames in their order,
    also those without a hole.
    """

    name: str
    licence: str

    def __call__(self, holes: Sequence[Hole]) -> list[np.ndarray]:
        """The pictures with their holes filled, uint8 [H, W, 3] each."""
        ...


class OpenCvInpainter:
    """Telea's fast marching method, at a reduced size if the window is large."""

    name = "opencv"
    video = False
    licence = "Apache-2.0"

    def __call__(self, holes: Sequence[Hole]) -> list[np.ndarray]:
        """See ``Inpainter``."""
        pictures = []
        for hole in holes:
            picture = hole.picture.copy()
            picture[hole.window] = _telea(picture[hole.window], hole.where[hole.window])
            pictures.append(picture)
        return pictures


def _telea(patch: np.ndarray, hole: np.ndarray) -> np.ndarray:
    if hole.all():
        return np.full_like(patch, 128)
    height, width = hole.shape
    factor = min(1.0, _FILL_SIDE / max(height, width))
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    small_hole = cv2.resize(hole.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0
    if factor == 1.0 or small_hole.all():
        return cv2.inpaint(patch, hole.astype(np.uint8), 4, cv2.INPAINT_TELEA)
    small = cv2.resize(patch, size, interpolation=cv2.INTER_AREA)
    small = cv2.inpaint(small, small_hole.astype(np.uint8), 4, cv2.INPAINT_TELEA)
    filled = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.where(hole[..., None], filled, patch)


class LamaInpainter:
    """A LaMa network as TorchScript, on batches of crops around the holes.

    ``weights``: a TorchScript file whose forward takes a picture float32 [N, 3, h, w] in [0, 1] and
    a mask [N, 1, h, w] of 0 and 1 and returns [N, 3, h, w], as the published exports of LaMa do
    (code and weights of LaMa are Apache-2.0; what holds for a file is its giver's to say).
    TorchScript is a program: use files that you trust. ``device``: a torch device.

    A crop is the hole with half its size around it, all of a batch equally large, scaled to 512
    pixels at most. Raises ValueError for a file that does not load or answers in another shape.
    """

    name = "lama"
    video = False
    licence = "as the weights file"

    def __init__(self, weights: str | Path, device: str = "cpu") -> None:
        if not Path(weights).is_file():
            raise ValueError(f"weights of the inpainter not found: {weights}")
        import torch

        self._device = torch.device(device)
        try:
            self._model = torch.jit.load(str(weights), map_location=self._device).eval()
        except (RuntimeError, ValueError, OSError) as error:
            raise ValueError(f"{weights} is not a TorchScript file: {error}") from error

    def __call__(self, holes: Sequence[Hole]) -> list[np.ndarray]:
        """See ``Inpainter``."""
        pictures = [hole.picture.copy() for hole in holes]
        places = [i for i, hole in enumerate(holes) if hole.where.any()]
        for first in range(0, len(places), _BATCH):
            self._fill([holes[i] for i in places[first : first + _BATCH]],
                       [pictures[i] for i in places[first : first + _BATCH]])  # fmt: skip
        return pictures

    def _fill(self, holes: list[Hole], pictures: list[np.ndarray]) -> None:
        crops = _crops([hole.where for hole in holes])
        height, width = (s.stop - s.start for s in crops[0])
        scale = min(1.0, _LAMA_SIDE / max(height, width))
        size = tuple(max(_LAMA_STEP, round(side * scale)) for side in (width, height))
        inputs, masks = [], []
        for hole, crop in zip(holes, crops, strict=True):
            mask = hole.where[crop].astype(np.float32)
            inputs.append(cv2.resize(hole.picture[crop], size, interpolation=cv2.INTER_AREA))
            masks.append(cv2.resize(mask, size, interpolation=cv2.INTER_AREA) > 0)
        for hole, crop, found, picture in zip(
            holes, crops, self._run(np.stack(inputs), np.stack(masks)), pictures, strict=True
        ):
            grown = cv2.resize(found, (width, height), interpolation=cv2.INTER_CUBIC)
            where = hole.where[crop]
            picture[crop][where] = grown[where]

    def _run(self, pictures: np.ndarray, masks: np.ndarray) -> np.ndarray:
        """uint8 [N, h, w, 3] and bool [N, h, w] -> uint8 [N, h, w, 3], padded for the network."""
        import torch

        height, width = masks.shape[1:]
        pad = ((0, 0), (0, -height % _LAMA_STEP), (0, -width % _LAMA_STEP))
        images = np.pad(pictures, (*pad, (0, 0)), mode="symmetric").astype(np.float32) / 255
        holes = np.pad(masks, pad, mode="symmetric").astype(np.float32)
        with single_thread(), torch.inference_mode():
            try:
                out = self._model(
                    torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(self._device),
                    torch.from_numpy(holes[:, None]).to(self._device),
                )
                found = np.asarray(out.float().cpu())
            except (RuntimeError, AttributeError) as error:
                text = str(error).strip().splitlines()[-1]
                raise ValueError(f"the inpainter does not run: {text}") from error
        if found.shape != images.transpose(0, 3, 1, 2).shape:
            raise ValueError(
                f"the inpainter gave {list(found.shape)} for pictures of {list(images.shape)}"
            )
        levels = np.rint(np.clip(found, 0, 1) * 255).astype(np.uint8).transpose(0, 2, 3, 1)
        return np.ascontiguousarray(levels[:, :height, :width])


def _crops(masks: list[np.ndarray]) -> list[tuple[slice, slice]]:
    """Around each mask a crop of one size: the largest hole with half its size on every side."""
    height, width = masks[0].shape
    boxes = []
    for mask in masks:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        boxes.append((rows[0], rows[-1] + 1, columns[0], columns[-1] + 1))
    tall = min(height, max(32, *(2 * int(b[1] - b[0]) for b in boxes)))
    wide = min(width, max(32, *(2 * int(b[3] - b[2]) for b in boxes)))
    crops = []
    for top, bottom, left, right in boxes:
        y = min(max(0, (int(top) + int(bottom) - tall) // 2), height - tall)
        x = min(max(0, (int(left) + int(right) - wide) // 2), width - wide)
        crops.append((slice(y, y + tall), slice(x, x + wide)))
    return crops


@lru_cache(maxsize=2)
def make_inpainter(told: str, weights: str | None = None, device: str = "cpu") -> Inpainter:
    """An inpainter of ``INPAINTERS``, one a process. told: its name, perhaps with the content that
    its weights must have (``with_content``). ValueError if it cannot start."""
    name, content, _ = told.partition("@")
    asked = {} if weights is None else {"weights": weights}
    if content and weights is not None:
        with_content(told, weights)
    return cast(Inpainter, INPAINTERS.make(name, {"device": device}, asked))
