"""The layers and their place on the latent frame axis.

One data structure, ``Layout``, says which layers a sequence holds, how many latent frames each
has, which prompts stand in front of it and which latents are given. Every slice in the code comes
from it. Layers are some of those of a set (``layerflow.layer_set``): a sample with fewer
foregrounds has a shorter sequence, so that absent ones cost nothing and nothing sees them.
``OFFICIAL`` holds the eight released configurations as data (``golden`` tables of the
official ``sat/`` code: ``diffusion_video*.py``, ``dit_video_concat*.py`` and its YAML files).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate

from layerflow.clip import ALPHA, BACKGROUND, BLENDED, FOREGROUND, LAYERS, PROMPTED
from layerflow.layer_set import EFFECTS, MAX_FOREGROUNDS, layer_set, prompted_of

EVERY = layer_set(f"rgbax{MAX_FOREGROUNDS}+{EFFECTS}")
"""The set that has all layers of all sets."""

TASKS: dict[str, tuple[str, ...]] = {
    "generate": (),
    "decompose": (BLENDED,),
    "fg2bg": (FOREGROUND, ALPHA),
    "bg2fg": (BACKGROUND,),
}
"""The named tasks and the layers they give, where there is one foreground; of several, ``fg2bg``
gives all, with their mattes. Any other proper subset is legal too."""


def given_layers(task: str, layers: Sequence[str] = LAYERS) -> tuple[str, ...]:
    """The layers that a task gives of ``layers``, in their order. task: a name of ``TASKS``, or
    layers joined by ``+``. ValueError for anything else, also for all layers together."""
    if task in TASKS:
        return tuple(layer for layer in layers if _kind(layer) in TASKS[task])
    named = task.split("+")
    if set(named) - set(layers) or not len(set(named)) == len(named) < len(layers):
        raise ValueError(
            f"unknown task {task!r}; use one of {', '.join(TASKS)}, or some (not all) of "
            f"{', '.join(layers)} joined by '+'"
        )
    return tuple(layer for layer in layers if layer in named)


def _kind(layer: str) -> str:
    """``foreground`` of ``foreground.2``; the matte of the effects is one of the effects."""
    kind, _, place = layer.partition(".")
    return EFFECTS if place == EFFECTS else kind


@dataclass(frozen=True)
class Layout:
    """Where each layer lies on the latent frame axis.

    layers: names from the set, in its order.
    frames: latent frames of each layer.
    prompts: whose prompts stand in the text, in order.
    shared_positions: every layer counts its time from 0; otherwise time runs on over the layers.
    given_span: latents (start, stop) that are always given (official checkpoints only).
    of: the name of the set, which counts the rows of embeddings.

    Derived: key, what tables are kept by; slices, layer -> its latents; frame_slots, for each
    latent frame the index of its layer in ``layers``, and frame_layers, in the set's; positions,
    for each latent frame its time coordinate; prompt_slots, for each prompt its index in the set's
    ``prompted``.
    """

    layers: tuple[str, ...]
    frames: tuple[int, ...]
    prompts: tuple[str, ...] = PROMPTED
    shared_positions: bool = False
    given_span: tuple[int, int] | None = None
    of: str = "rgba"

    def __post_init__(self) -> None:
        every, speaking = layer_set(self.of).layers, layer_set(self.of).prompted
        if not self.layers or list(self.layers) != [n for n in every if n in self.layers]:
            raise ValueError(f"layers must be some of {every} in this order, not {self.layers}")
        if len(self.frames) != len(self.layers) or min(self.frames) < 1:
            raise ValueError(f"each of {self.layers} needs 1 or more frames, not {self.frames}")
        if [p for p in speaking if p in self.prompts] != list(self.prompts):
            raise ValueError(f"prompts must be some of {speaking} in this order: {self.prompts}")

    # No fields: what walks through the arguments of a forward pass, as FSDP does, makes a layout
    # again of its fields.

    @cached_property
    def key(self) -> tuple[object, ...]:
        return (self.of, self.layers, self.frames, self.prompts, self.shared_positions)

    @cached_property
    def slices(self) -> dict[str, slice]:
        ends = accumulate(self.frames)
        counted = zip(self.layers, self.frames, ends, strict=True)
        return {name: slice(stop - count, stop) for name, count, stop in counted}

    @cached_property
    def frame_slots(self) -> tuple[int, ...]:
        return tuple(i for i, count in enumerate(self.frames) for _ in range(count))

    @cached_property
    def frame_layers(self) -> tuple[int, ...]:
        every = layer_set(self.of).layers
        return tuple(every.index(self.layers[slot]) for slot in self.frame_slots)

    @cached_property
    def positions(self) -> tuple[int, ...]:
        times = (t for count in self.frames for t in range(count))
        return tuple(times if self.shared_positions else range(self.num_frames))

    @cached_property
    def prompt_slots(self) -> tuple[int, ...]:
        speaking = layer_set(self.of).prompted
        return tuple(speaking.index(name) for name in self.prompts)

    @property
    def num_frames(self) -> int:
        """Latent frames of the whole sequence."""
        return sum(self.frames)

    def given_frames(self, given: Iterable[str] = ()) -> tuple[bool, ...]:
        """For each latent frame whether it is clean, for a set of given layers.

        ValueError for unknown layers, or when nothing is left to generate. Official layouts
        ignore the set and answer with their own span.
        """
        if self.given_span is not None:
            start, stop = self.given_span
            return tuple(start <= i < stop for i in range(self.num_frames))
        names = set(given)
        if names - set(self.layers):
            raise ValueError(
                f"cannot give {sorted(names - set(self.layers))}; the layers are {self.layers}"
            )
        if names == set(self.layers):
            raise ValueError("all layers are given: there is nothing to generate")
        return tuple(self.layers[slot] in names for slot in self.frame_slots)


@lru_cache(maxsize=64)
def native_layout(
    num_frames: int,
    layers: tuple[str, ...] = LAYERS,
    shared_positions: bool = True,
    of: str = "rgba",
) -> Layout:
    """The native layout of ``num_frames`` latent frames of a sample with ``layers``, some of the
    set ``of``: all layers have equally many, and those in colour their prompts.

    ValueError when they do not divide evenly.
    """
    count, rest = divmod(num_frames, len(layers))
    if rest or not count:
        raise ValueError(
            f"{num_frames} latent frames do not divide among {len(layers)} layers {layers}"
        )
    return Layout(layers, (count,) * len(layers), prompted_of(layers), shared_positions, of=of)


def single_layout(num_frames: int) -> Layout:
    """One layer with one prompt: what plain CogVideoX computes."""
    return Layout((BLENDED,), (num_frames,), (BLENDED,))


@dataclass(frozen=True)
class OfficialTask:
    """One released checkpoint's configuration.

    position_frames: frames of its position table; the sequence uses the head of it.
    pixel_frames: frames of the concatenated clip that the VAE sees in one pass.
    lead: 1 if a copy of the first pixel frame is put in front before encoding.
    layer_embedding: whether the text tokens carry a layer embedding.
    learned_positions: whether the table is trained (text rows included).
    fault: what is known to be wrong with the release, kept as it is.
    """

    name: str
    layout: Layout
    given: tuple[str, ...]
    position_frames: int
    pixel_frames: int
    lead: int = 0
    layer_embedding: bool = False
    learned_positions: bool = False
    fault: str | None = None


_TWO = (FOREGROUND, BACKGROUND)


def _task(
    name: str,
    frames: tuple[int, ...],
    span: tuple[int, int] | None = None,
    given: tuple[str, ...] = (),
    prompts: tuple[str, ...] = PROMPTED,
    **options: bool,
) -> OfficialTask:
    layers = LAYERS if len(frames) == 4 else PROMPTED
    lead = int(frames[0] == 5)
    fault = None
    if name == "seg_rgb":
        fault = (
            "the release gives only the last 2 of the 4 blended latents (8 of 16 frames) and "
            "generates the first 2"
        )
    return OfficialTask(
        name,
        Layout(layers, frames, prompts, given_span=span, of="rgba" if len(frames) == 4 else "rgb"),
        given,
        position_frames=13 if len(frames) == 3 else sum(frames),
        pixel_frames=16 * len(frames) + lead,
        lead=lead,
        layer_embedding=options.get("embedded", False),
        learned_positions=options.get("learned", False),
        fault=fault,
    )


OFFICIAL: dict[str, OfficialTask] = {
    task.name: task
    for task in (
        _task("gen_rgb", (4, 4, 4)),
        _task("gen_rgba", (4, 4, 4, 4), embedded=True),
        _task("seg_rgb", (4, 4, 4), (10, 12), (BLENDED,), _TWO, learned=True),
        _task("seg_rgba", (4, 4, 4, 4), (12, 16), (BLENDED,), _TWO, learned=True),
        _task("fg2bg_rgb", (4, 4, 4), (0, 4), (FOREGROUND,), learned=True),
        _task("fg2bg_rgba", (5, 4, 4, 4), (0, 9), (FOREGROUND, ALPHA), embedded=True),
        _task("bg2fg_rgb", (4, 4, 4), (4, 8), (BACKGROUND,), learned=True),
        _task("bg2fg_rgba", (5, 4, 4, 4), (9, 13), (BACKGROUND,), embedded=True),
    )
}
"""The released configurations by name."""


def official_task(name: str | None) -> OfficialTask:
    """The released configuration of that name; ValueError that lists the names."""
    if name not in OFFICIAL:
        raise ValueError(f"unknown official configuration {name!r}; one of {sorted(OFFICIAL)}")
    return OFFICIAL[name]
