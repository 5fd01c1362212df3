"""Stills of one stem in one folder (``x.jpg`` + ``x.png``): is one of them the other's matte?

Names do not say it, so that the pictures are looked at: a matte is grey and nearly all of it black
or white, or it is a picture of coloured labels on black.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from layerflow.media.cells import MediaError
from layerflow.media.isolate import isolated
from layerflow.media.pictures import decoding, open_still
from pipelines.readers.pixels import frames_of, read_pixels

ENDS = 12  # levels from black and white
TINT = 16  # levels between channels, which the coding of grey pictures may leave
MATTE = 0.5  # of the pixels that are black or white in a matte
LABELS = 32  # colours of a picture of labels
ALIKE = 48  # pairs of a folder that are looked at, if they all are of one kind
SIDE = 256  # pixels, about


@dataclass(frozen=True)
class StillTraits:
    """What a still looks like. ends: the share of its pixels that are black or white."""

    grey: bool
    ends: float
    labels: bool = False
    cutout: bool = False

    @property
    def matte_like(self) -> float:
        """How much like a matte, 0 to 1."""
        if self.cutout:
            return 0.0
        return 1.0 if self.labels else max(self.ends, 0.01) if self.grey else 0.0


def traits_of(path: Path) -> StillTraits | None:
    """None for what cannot be read, and for animations."""
    try:
        seen = _measured(path)
    except MediaError:
        return None
    return None if seen is None else StillTraits(*seen)


@isolated
def _measured(path: Path) -> tuple[bool, float, bool, bool] | None:
    """What a ``StillTraits`` says."""
    try:
        with decoding(path) as image:
            if frames_of(image) > 1:
                return None
            image.draft("RGB", (SIDE, SIDE))  # of a JPEG only as much as is needed
            rgba = read_pixels(image, lambda: open_still(path)).rgba
            palette = image.mode == "P"
    except Exception:  # damaged in a way that reading it will name
        return None
    step = max(1, min(rgba.shape[:2]) // SIDE)
    seen = rgba[::step, ::step]
    colour = seen[..., :3].reshape(-1, 3).astype(np.int16)
    tinted = np.ptp(colour, axis=1) > TINT
    ends = (colour.max(axis=1) <= ENDS) | (colour.min(axis=1) >= 255 - ENDS)
    black = (colour.max(axis=1) == 0).mean() > 0.02
    few = palette and black and len(np.unique(colour, axis=0)) <= LABELS
    grey, cutout = bool(tinted.mean() < 0.01), bool(seen[..., 3].min(initial=255) < 250)
    return grey, float(ends.mean()), bool(few and tinted.any()), cutout


class Twins:
    """Finds mattes among stills of one stem. read: gives the traits of a file; asked: pairs were
    asked for, so that a grey picture beside a coloured one is a matte even if it is soft all over.
    """

    def __init__(
        self, read: Callable[[Path], StillTraits | None] = traits_of, *, asked: bool = False
    ) -> None:
        self._traits_of, self._asked = read, asked
        self._seen: dict[tuple[str, ...], list[str | None]] = {}

    def matte(self, paths: Sequence[Path]) -> Path | None:
        """The one of some stills (of one stem and folder) that is the others' matte, if any is.

        Where all of the first pairs of a folder are of one kind, the others are not looked at.
        """
        suffixes = tuple(path.suffix for path in paths)
        seen = self._seen.setdefault((str(paths[0].parent), *suffixes), [])
        if len(seen) >= ALIKE and len(set(seen)) == 1:
            return next((path for path in paths if path.suffix == seen[0]), None)
        found = self._found(paths)
        seen.append(None if found is None else found.suffix)
        return found

    def _found(self, paths: Sequence[Path]) -> Path | None:
        traits = {path: found for path in paths if (found := self._traits_of(path)) is not None}
        if len(traits) < 2:
            return None
        # of two equals the lossless file is the matte
        lossy = {path: path.suffix.lower() in (".jpg", ".jpeg") for path in traits}
        ranked = sorted(traits, key=lambda path: (-traits[path].matte_like, lossy[path], path))
        best = traits[ranked[0]]
        others = [traits[path] for path in ranked[1:]]
        least = 0.0 if self._asked and not all(other.grey for other in others) else MATTE
        pictures = [other for other in others if not other.cutout]
        if best.matte_like <= least or not pictures:
            return None
        return ranked[0]
