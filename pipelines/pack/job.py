"""Pack: layered stills -> image clips of one frame, layered videos -> moving clips.

check that all files are there -> unpack a table's row -> tell videos from stills -> open the layers
-> choose a background (own, drawn, or filled) -> write prompts -> trace the origin; then for each
clip, of a video one a window: make exact layers -> score -> encode. One unit of work is a range of
stills or of a table's rows, or one video. A piece of an export holds finished clips: they are
checked and taken as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, Unpack

from layerflow.corpus.table import EXTENDED_SCHEMA, rejected_row
from layerflow.media.decode import Decoder
from layerflow.outputs import corpus_output
from layerflow.plugins import packages_of
from manifests.pack import PackOptions
from pipelines.engine.jobs import Outcome, Running, Summary, make_recipe, run_job
from pipelines.engine.steps import Refused, Steps, run_steps
from pipelines.inputs.importers import LAYOUTS
from pipelines.pack.describe import trace_origin, write_prompts
from pipelines.pack.exported import take_exported
from pipelines.pack.plan import make_plan, plan_units
from pipelines.pack.read import (
    check_complete,
    choose_background,
    open_layers,
    tell_videos,
    unpack_row,
)
from pipelines.pack.rows import encode, make_layers, score
from pipelines.pack.still import PackContext, Still, stills_of
from pipelines.readers.videos import windows
from pipelines.vision.numerics import single_thread

STEPS: Steps[Still] = (
    check_complete,
    unpack_row,
    tell_videos,
    open_layers,
    choose_background,
    write_prompts,
    trace_origin,
)
CLIP_STEPS: Steps[Still] = (make_layers, score, encode)
FORMAT_VERSION = 3


def run_pack(options: PackOptions, **how: Unpack[Running]) -> Summary:
    """Pack the layered stills and videos of ``options.inputs`` into the corpus ``options.out``.

    Raises ValueError for a request that cannot work (inputs, layout, output folder) before any work
    starts.
    """
    out = corpus_output(options.out)
    packages = packages_of(layout=(LAYOUTS, options.layout))
    recipe = make_recipe("image", options.model_dump(mode="json"), FORMAT_VERSION, packages)
    context = PackContext(make_plan(options), options, recipe.hash)
    return run_job(
        plan_units(context.plan),
        partial(pack_unit, context=context),
        out=out,
        recipe=recipe,
        schema=EXTENDED_SCHEMA,
        light=True,
        **how,
    )


def pack_unit(payload: dict[str, Any], *, context: PackContext) -> Outcome:
    """The clips of a range of stills or table rows, of one video or of a piece of an export; what
    cannot be used is a rejected row."""
    if "exported" in payload:
        return take_exported(context.plan.exported[payload["exported"]], context)
    rows: list[dict[str, Any]] = []
    outcome = Outcome(rows)
    with single_thread(), Decoder(deadline=context.options.deadline) as decoder:
        for still in stills_of(payload, context, decoder):
            uri = still.entry.uri
            try:
                rows += pack_one(still)
            except (Refused, ValueError, OSError) as error:
                reason = (isinstance(error, OSError) and error.strerror) or str(error)
                row = rejected_row(uri, "read", reason, kind="image", recipe=context.recipe)
                outcome.rejected.append(row)
    return outcome


def pack_one(still: Still) -> list[dict[str, Any]]:
    """The rows of one still or video. Raises Refused, MediaError, ValueError or OSError."""
    run_steps(STEPS, still)
    rows = []
    for chosen in _clips(still):
        still.chosen = chosen
        rows.append(run_steps(CLIP_STEPS, still).row)
    return rows


def _clips(still: Still) -> Iterable[Sequence[int]]:
    """The frames of each clip."""
    if still.video is None:
        return [[0]]
    options = still.options
    return windows(still.video.count, still.video.fps, options.frames, options.fps)
