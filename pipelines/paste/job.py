"""Paste: matted foregrounds x other backgrounds -> pasted clips, exact by construction.

choose sources -> load foregrounds -> load background -> mirror it -> place objects on paths ->
match appearance -> cast shadow -> compose layers -> score -> check against the rules -> encode.
One unit of work is a range of draws; every draw is a function of (seed, index), so the rows do not
depend on units, workers or order.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache, partial
from typing import Any, Unpack

from layerflow.corpus.table import EXTENDED_SCHEMA, rejected_row
from layerflow.media.cells import MediaError
from layerflow.outputs import corpus_output
from layerflow.seeds import in_blocks
from manifests.paste import PasteOptions
from pipelines.engine.jobs import Outcome, Recipe, Running, Summary, make_recipe, run_job
from pipelines.engine.steps import Refused, Steps, run_steps
from pipelines.paste.draw import (
    choose_sources,
    load_background,
    load_foregrounds,
    mirror_background,
)
from pipelines.paste.load import Loader
from pipelines.paste.plan import make_plan, plan_units
from pipelines.paste.repeats import Repeats
from pipelines.paste.rows import encode
from pipelines.paste.sample import PasteContext, Sample
from pipelines.paste.scene import cast_shadow, compose_layers, match_appearance, place_objects
from pipelines.paste.scores import check, score
from pipelines.vision.numerics import single_thread

STEPS: Steps[Sample] = (
    choose_sources,
    load_foregrounds,
    load_background,
    mirror_background,
    place_objects,
    match_appearance,
    cast_shadow,
    compose_layers,
    score,
    check,
    encode,
)
DRAW = STEPS[:-1]  # all but coding
FORMAT_VERSION = 5


def run_paste(options: PasteOptions, **how: Unpack[Running]) -> Summary:
    """Make ``options.count`` pasted clips in the corpus ``options.out``.

    Raises ValueError for a request that cannot work (inputs, output folder) before any work starts.
    """
    out = corpus_output(options.out)
    recipe = recipe_of(options)
    context = PasteContext(make_plan(options), options, recipe.hash)
    return run_job(
        plan_units(context.plan, options),
        partial(paste_unit, context=context),
        out=out,
        recipe=recipe,
        schema=EXTENDED_SCHEMA,
        light=True,
        refuse=None if options.repeats else Repeats(),
        **how,
    )


def recipe_of(options: PasteOptions) -> Recipe:
    """What decides the clips."""
    return make_recipe("pasted", options.model_dump(mode="json"), FORMAT_VERSION)


@lru_cache(maxsize=1)
def _loader(size: tuple[int, int], frames: int, fps: float, deadline: float) -> Loader:
    """One loader (and decoding child) a process, not one a unit."""
    return Loader(size, frames, fps, deadline)


def paste_unit(payload: dict[str, Any], *, context: PasteContext) -> Outcome:
    """The clips of a range of draws, one after the other as they are taken."""
    outcome = Outcome()
    samples = draw_unit(payload, context, outcome.rejected, STEPS)
    outcome.rows = (sample.row for sample in samples)
    return outcome


def draw_unit(
    payload: dict[str, Any],
    context: PasteContext,
    rejected: list[dict[str, Any]],
    steps: Steps[Sample] = DRAW,
) -> Iterator[Sample]:
    """The samples of a range of draws that pass the rules, after ``steps``; the others become
    ``rejected`` rows."""
    options = context.options
    loader = _loader(options.size, options.frames, options.fps, options.deadline)
    for index in range(payload["start"], payload["stop"]):
        with single_thread():
            sample = draw_one(index, context, loader, rejected, steps)
        if sample is not None:
            yield sample
    loader.forget_files()


def draw_one(
    index: int,
    context: PasteContext,
    loader: Loader,
    rejected: list[dict[str, Any]],
    steps: Steps[Sample] = STEPS,
) -> Sample | None:
    """One clip: up to ``options.attempts`` draws until one passes the rules; None (and a rejected
    row) when none does."""
    options, sources = context.options, context.plan.foregrounds
    reason, scores = "", dict[str, float]()
    for attempt in range(options.attempts):
        sample = Sample(context, loader, index, attempt, rejected)
        try:
            return run_steps(steps, sample)
        except (MediaError, Refused) as error:
            reason, scores = str(error), sample.scores or scores
    uri = sources[in_blocks(options.seed, index, options.count, len(sources))].uri
    text = f"no draw passed in {options.attempts} attempts; the last: {reason}"
    row = rejected_row(uri, "draw", text, kind="pasted", recipe=context.recipe, quality=scores)
    rejected.append(row)
    return None
