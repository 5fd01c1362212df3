"""MuLAn: stills decomposed into a background and instances, as annotations over base images.

An annotation ``NAME.p.zl`` is a zlib-compressed pickle; the base image (of COCO or LAION, which the
user has) lies below the same folder under the same name. Each layer is ``base *
original_image_mask + inpainted_delta``; an instance has ``instance_alpha`` beside. Instances are
listed back to front. The structure is that of the set's card (mulan-dataset/v1.0).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layerflow.clip import BACKGROUND, BLENDED, FOREGROUND, U8
from layerflow.media.cells import MAX_STILL_PIXELS, MediaError
from layerflow.media.isolate import isolated
from pipelines.inputs.importers import Importer, Listing
from pipelines.inputs.layouts import Group, files_below
from pipelines.inputs.listing import STILL_SUFFIXES
from pipelines.inputs.safepickle import read_pickle
from pipelines.readers.layered_stills import StillLayers
from pipelines.readers.stills import check_alpha, read_still

SUFFIX = ".p.zl"
MAX_INSTANCES = 64
NO_BASE = "its base image is missing: put the picture of the same name below the same folder"


class Mulan(Importer):
    """MuLAn's annotations, each with its base image of the same name below the same folder."""

    name = "mulan"

    def recognises(self, root: Path) -> bool:
        return any(self._annotations(root))

    def _annotations(self, root: Path) -> Iterator[tuple[Path, PurePosixPath]]:
        found = files_below(root, {".zl"})
        return ((path, rel) for path, rel in found if path.name.lower().endswith(SUFFIX))

    def list(self, root: Path) -> Listing:
        bases: dict[str, Path] = {}
        for path, _ in files_below(root, STILL_SUFFIXES):
            bases.setdefault(path.stem, path)
        stills = []
        for path, relative in self._annotations(root):
            stem = path.name[: -len(SUFFIX)]
            base = [(BLENDED, bases[stem])] if stem in bases else []
            files = (("annotation", path), *base)
            problem = None if base else NO_BASE
            stills.append(Group(relative.as_posix(), stem, files, problem=problem))
        return Listing(stills=stills)

    def read(self, files: Mapping[str, Path]) -> StillLayers:
        """One annotated still. Raises MediaError for what is damaged, unsafe or does not fit."""
        background, instances, captions, prompts = _decomposed(files["annotation"], files[BLENDED])
        rgba = instances[0] if len(instances) == 1 else merged(instances)
        check_alpha(rgba[..., 3])
        objects = tuple(zip(captions, instances, strict=True))
        return StillLayers(rgba, background, "inpainted", objects, prompts)


MULAN = Mulan()


@isolated
def _decomposed(
    annotation: Path, base: Path
) -> tuple[U8, tuple[U8, ...], tuple[str, ...], dict[str, str]]:
    """Background uint8 ``[H, W, 3]``; instances straight uint8 ``[H, W, 4]``, back to front;
    their captions; prompts by layer."""
    try:
        content = read_pickle(annotation, ("background", "instances"))
    except ValueError as error:
        raise MediaError(str(error)) from error
    picture = read_still(base)[..., :3]
    entries = content["instances"]
    entries = list(entries.values()) if isinstance(entries, Mapping) else entries
    if not isinstance(entries, list) or not 0 < len(entries) <= MAX_INSTANCES:
        raise MediaError(f"has no instances, or over {MAX_INSTANCES}")
    alphas = [_plane(entry, "instance_alpha", picture.shape[:2]) for entry in entries]
    instances = tuple(
        np.dstack([_layer(entry, picture, "an instance"), np.rint(alpha * 255).astype(np.uint8)])
        for entry, alpha in zip(entries, alphas, strict=True)
    )
    prompts = {
        FOREGROUND: ", ".join(dict.fromkeys(filter(None, map(_caption, entries)))),
        BACKGROUND: _caption(content["background"]),
        BLENDED: _caption(content.get("image")),
    }
    background = _layer(content["background"], picture, "the background")
    return background, instances, tuple(map(_caption, entries)), prompts


def merged(instances: tuple[U8, ...]) -> U8:
    """Instances over one another, back to front: straight uint8 ``[H, W, 4]``."""
    total = np.zeros((*instances[0].shape[:2], 4), np.float64)
    for rgba in instances:
        alpha = rgba[..., 3:] / 255.0
        ink = np.concatenate([rgba[..., :3] * alpha, alpha], axis=2)
        total = ink + total * (1 - alpha)
    colour = total[..., :3] / np.maximum(total[..., 3:], 1e-6)
    return np.clip(np.rint(np.dstack([colour, total[..., 3] * 255])), 0, 255).astype(np.uint8)


def _caption(entry: Any) -> str:
    for name in ("blip2", "llava"):
        text = entry.get(name) if isinstance(entry, Mapping) else None
        if isinstance(text, str) and text.strip():
            return " ".join(text.split())[:2000]
    return ""


def _layer(entry: Any, picture: U8, what: str) -> U8:
    """``base * original_image_mask + inpainted_delta``."""
    mask = _plane(entry, "original_image_mask", picture.shape[:2])
    delta = entry.get("inpainted_delta")
    shown = picture * (mask[..., None] > 0.5)
    if delta is None:
        return shown.astype(np.uint8)
    if not isinstance(delta, np.ndarray) or delta.shape != picture.shape:
        raise MediaError(f"the inpainted part of {what} has another size than the base image")
    return np.clip(np.rint(shown + delta.astype(np.float64)), 0, 255).astype(np.uint8)


def _plane(entry: Any, name: str, size: tuple[int, ...]) -> NDArray[np.float64]:
    """A mask or alpha as float64 ``size`` in 0..1, whatever numbers it is stored as."""
    values = entry.get(name) if isinstance(entry, Mapping) else None
    if not isinstance(values, np.ndarray) or values.size > MAX_STILL_PIXELS:
        raise MediaError(f"has no {name}")
    values = values[..., 0] if values.ndim == 3 and values.shape[2] in (1, 3) else values
    if values.shape != tuple(size):
        raise MediaError(
            f"{name} is {values.shape[0]}x{values.shape[-1]}, "
            f"the base image {size[0]}x{size[1]}: is it the right one?"
        )
    plane = values.astype(np.float64)
    top = 255.0 if plane.max(initial=0) > 1 else 1.0
    found: NDArray[np.float64] = np.nan_to_num(plane / top).clip(0, 1)
    return found
