"""One draw of a pasted clip on its way from the plan to a corpus row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from layerflow.clip import U8
from layerflow.seeds import generator
from manifests.paste import PasteOptions
from pipelines.inputs.sources import Background, Foreground
from pipelines.paste.appearance import AppearanceChange
from pipelines.paste.load import Loader
from pipelines.paste.plan import PastePlan
from pipelines.paste.shadow import Shadow
from pipelines.vision.composite import Sprite
from pipelines.vision.path import Path

Generator = np.random.Generator


@dataclass(frozen=True)
class PasteContext:
    """What all draws share. recipe: its hash."""

    plan: PastePlan
    options: PasteOptions
    recipe: str


@dataclass(repr=False)
class PlacedObject:
    """One foreground on its path.

    rng: of all that is drawn for it. picked: the frames of ``item.rgba`` that are shown. change:
    how it was matched to the background, clipped: the share of its pixels that this clipped.
    """

    item: Foreground
    rng: Generator
    path: Path
    picked: list[int]
    change: AppearanceChange = field(init=False)
    sprite: Sprite = field(init=False)
    clipped: float = 0.0

    @property
    def standing(self) -> bool:
        """Whether its feet are on the ground and in the picture."""
        return self.path.mode in ("ground", "source") and not self.item.cut & {"bottom"}


@dataclass(repr=False)
class Sample:
    """One attempt at one clip: what is given, then what the steps find, in their order.

    rejected: where rows of sources that cannot be loaded go. chosen: numbers of the foregrounds,
    back to front; behind: number of the background. layers: LayeredClip's fields. plate: uint8
    ``[T, H, W, 3]`` without the shadow, None without a shadow. visible, amodal: alphas uint8
    ``[T, H, W]`` of the single objects, back to front, when there are several; colours: their own
    colour uint8 ``[T, H, W, 3]``, None where it is not kept. least_visible: share of any object in
    any frame that is inside the picture and not behind others.
    """

    context: PasteContext
    loader: Loader
    index: int
    attempt: int
    rejected: list[dict[str, Any]]
    # choose_sources
    rng: Generator = field(init=False)
    chosen: list[int] = field(init=False)
    behind: int = field(init=False)
    # load_foregrounds, load_background, mirror_background
    objects: tuple[Foreground, ...] = field(init=False)
    background: Background = field(init=False)
    mirrored: bool = False
    # place_objects, match_appearance
    placed: list[PlacedObject] = field(init=False)
    # cast_shadow
    shadow: Shadow | None = None
    plate: U8 | None = None
    shaded: U8 = field(init=False)
    # compose_layers
    layers: dict[str, U8] = field(init=False)
    visible: Sequence[U8] = ()
    amodal: Sequence[U8] = ()
    colours: Sequence[U8 | None] = ()
    least_visible: float = 0.0
    # score
    scores: dict[str, float] = field(default_factory=dict)
    # encode
    row: dict[str, Any] = field(init=False)

    @property
    def options(self) -> PasteOptions:
        return self.context.options

    def generator(self, purpose: str) -> Generator:
        """The random numbers for one purpose; the same ones whenever this draw is made."""
        return generator(self.options.seed, self.index, purpose, self.attempt)
