"""The first steps of a pasted clip: its sources, drawn and loaded.

The order of the steps is that in which ``Sample.rng`` is used. A source that cannot be loaded is
reported by the draw that uses it first, so once in the whole job, and another one steps in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

import numpy as np

from layerflow.clip import BACKGROUND, FOREGROUND
from layerflow.corpus.table import rejected_row
from layerflow.media.cells import MediaError
from layerflow.seeds import first_of_block, in_blocks, in_turns
from pipelines.inputs.sources import PasteSource
from pipelines.paste.sample import Sample

MAX_SOURCES = 12  # that are tried when some cannot be loaded
T = TypeVar("T")


def choose_sources(sample: Sample) -> None:
    """Draw the numbers of the foregrounds and of the background.

    The first attempt uses all sources equally often.
    """
    options, plan = sample.options, sample.context.plan
    rng = sample.rng = sample.generator("sources")
    number = int(rng.integers(options.objects[0], options.objects[1] + 1))
    sample.chosen = [int(which) for which in rng.integers(len(plan.foregrounds), size=number)]
    sample.behind = int(rng.integers(len(plan.backgrounds)))
    # Retries keep the foreground as long as the fault may be the draw's.
    if sample.attempt < (options.attempts + 1) // 2:
        count = len(plan.foregrounds)
        sample.chosen[0] = in_blocks(options.seed, sample.index, options.count, count)
    if sample.attempt == 0:
        sample.behind = in_turns(options.seed, sample.index, len(plan.backgrounds))


def load_foregrounds(sample: Sample) -> None:
    """Load the foregrounds; of a long video a window."""
    sources = sample.context.plan.foregrounds
    load = partial(sample.loader.foreground, rng=sample.generator("film"))
    first_use = first_of_block(sample.index, sample.options.count, len(sources))
    step = FOREGROUND if first_use and sample.attempt == 0 else None  # of the first alone
    sample.objects = tuple(
        _first_usable(sample, sources, chosen, load, None if number else step)
        for number, chosen in enumerate(sample.chosen)
    )


def load_background(sample: Sample) -> None:
    """Load the background; of a video a window, over a still a camera."""
    sources, options = sample.context.plan.backgrounds, sample.options
    load = partial(
        sample.loader.background,
        rng=sample.generator("camera"),
        camera_speed=options.camera_speed,
        still_camera=options.still_camera,
    )
    step = BACKGROUND if sample.attempt == 0 and sample.index < len(sources) else None
    sample.background = _first_usable(sample, sources, sample.behind, load, step)


def _first_usable(
    sample: Sample,
    sources: Sequence[PasteSource],
    first: int,
    load: Callable[[PasteSource], T],
    step: str | None,
) -> T:
    """The first of some drawn sources that can be loaded, ``first`` before all.

    step: what the rejected row of ``first`` records, None where another draw reports it.
    """
    others = sample.rng.integers(len(sources), size=MAX_SOURCES)
    for place, which in enumerate((first, *others)):
        try:
            return load(sources[which])
        except MediaError as problem:
            error = problem
            if place == 0 and step is not None:
                uri, recipe = sources[which].uri, sample.context.recipe
                row = rejected_row(uri, step, str(error), kind="pasted", recipe=recipe)
                sample.rejected.append(row)
    raise error


def mirror_background(sample: Sample) -> None:
    """Swap left and right of half of the backgrounds, with ``flip``."""
    sample.mirrored = bool(sample.options.flip and sample.rng.random() < 0.5)
    if sample.mirrored:
        behind = sample.background
        width = behind.frames.shape[2]
        flip = np.array([[-1.0, 0, width - 1], [0, 1, 0], [0, 0, 1]])
        frames = np.ascontiguousarray(behind.frames[:, :, ::-1])
        sample.background = replace(behind, frames=frames, camera=flip @ behind.camera @ flip)
