"""Which layers a model has: a name such as ``rgba``, and what follows from it.

``rgb``: foreground, background, blended, as the authors' RGB checkpoints. ``rgba``: the alpha of
the foreground too. ``rgbax2`` .. ``rgbax8``: that many foregrounds, back to front, each with its
alpha and its prompt. ``+effects`` after any with alpha: what the foregrounds cast on the background
(shadow, reflection), colour and alpha, over the background and below them.

Every name starts with a kind: the kinds are ``foreground``, ``alpha``, ``background``, ``blended``
and ``effects``; the second foreground is ``foreground.2`` and its matte ``alpha.2``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from layerflow.clip import ALPHA, BACKGROUND, BLENDED, F32, FOREGROUND
from layerflow.documents import read_json

EFFECTS = "effects"
MAX_FOREGROUNDS = 8
_SET_NAME = re.compile(r"rgb(?:a(?:x([2-8]))?(\+effects)?)?")


def foreground_name(number: int) -> str:
    """The name of a foreground; 1 is the hindmost."""
    return FOREGROUND if number == 1 else f"{FOREGROUND}.{number}"


def matte_of(layer: str) -> str:
    """The name of the matte of a foreground or of the effects: ``alpha.2`` of ``foreground.2``."""
    place = EFFECTS if layer == EFFECTS else layer.partition(".")[2]
    return f"{ALPHA}.{place}" if place else ALPHA


def prompt_number(layer: str) -> int:
    """The number in front of a layer's prompt: 0, 1 and 2 as released for foreground, background
    and blended, 3 for the second foreground and so on. The same in every set."""
    released = {FOREGROUND: 0, BACKGROUND: 1, BLENDED: 2, EFFECTS: MAX_FOREGROUNDS + 2}
    return released[layer] if layer in released else int(layer.partition(".")[2]) + 1


def prompted_of(layers: Iterable[str]) -> tuple[str, ...]:
    """Those of the layers, of any set, that have a prompt."""
    return tuple(layer for layer in layers if layer in _PROMPTED)


@dataclass(frozen=True)
class LayerSet:
    """The layers of a model. ValueError for a name that is none (see above).

    Derived: foregrounds, colour layers back to front; layers, all of them in the order of sequence,
    files and embedding rows; prompted, the colour layers in that order, which are those with a
    prompt (effects have none); mattes, colour layer -> its alpha; over, the colour layers that lie
    over the background, back to front.
    """

    name: str = "rgba"
    foregrounds: tuple[str, ...] = field(init=False, repr=False, compare=False)
    layers: tuple[str, ...] = field(init=False, repr=False, compare=False)
    prompted: tuple[str, ...] = field(init=False, repr=False, compare=False)
    mattes: dict[str, str] = field(init=False, repr=False, compare=False)
    over: tuple[str, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        said = _SET_NAME.fullmatch(self.name)
        if said is None:
            raise ValueError(
                f"layers must be rgb, rgba, rgbax2 to rgbax{MAX_FOREGROUNDS}, or one of the last "
                f"ones with +effects, not {self.name!r}"
            )
        foregrounds = tuple(foreground_name(i + 1) for i in range(int(said[1] or 1)))
        effects = (EFFECTS,) if said[2] else ()
        own = (*foregrounds, *effects)
        mattes = {layer: matte_of(layer) for layer in own if self.name != "rgb"}
        layers = [name for layer in own for name in (layer, mattes.get(layer)) if name]
        derived = {
            "foregrounds": foregrounds,
            "layers": (*layers, BACKGROUND, BLENDED),
            "prompted": (*foregrounds, BACKGROUND, BLENDED),
            "mattes": mattes,
            "over": (*effects, *foregrounds),
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)  # frozen: set once, here

    def with_foregrounds(self, count: int) -> tuple[str, ...]:
        """The layers of a sample that has only the first ``count`` foregrounds, in order.

        ValueError for more than the set has, or none.
        """
        if not 1 <= count <= len(self.foregrounds):
            raise ValueError(f"{self.name} has 1 to {len(self.foregrounds)} foregrounds: {count}")
        absent = set(self.foregrounds[count:])
        absent |= {self.mattes[name] for name in absent}
        return tuple(name for name in self.layers if name not in absent)


_PROMPTED = LayerSet(f"rgbax{MAX_FOREGROUNDS}").prompted


@lru_cache(maxsize=32)
def layer_set(name: str) -> LayerSet:
    """The set of that name. ValueError for a name that is none."""
    return LayerSet(name)


def model_layers(folder: str | Path) -> LayerSet:
    """The set of layers of a model folder's network; that of ``rgba`` where it does not say.

    ValueError for a name that is none.
    """
    config = Path(folder) / "transformer" / "config.json"
    return layer_set(read_json(config).get("layers", "rgba") if config.is_file() else "rgba")


def compose(layers: dict[str, F32], over: tuple[str, ...]) -> F32:
    """Layers over the background by the over operator, back to front.

    layers: colour float32 ``[..., 3]`` (straight, any range) and mattes float32 ``[...]`` in
    [0, 1], by name. over: the colour layers to put over ``background``, back to front, such as
    ``LayerSet.over``. Returns float32 ``[..., 3]``.
    """
    out = layers[BACKGROUND].astype(np.float32)
    for name in over:
        out = matted_over(layers[name], layers[matte_of(name)], out)
    return out


def matted_over(colour: NDArray, alpha: NDArray, below: F32) -> F32:
    """One layer over what is below it: ``alpha * colour + (1 - alpha) * below``, float32.

    colour, below ``[..., 3]``, alpha ``[...]`` in [0, 1].
    """
    share = alpha[..., None].astype(np.float32)
    return share * colour + (1.0 - share) * below
