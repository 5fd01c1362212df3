"""Mine: real video -> layered clips.

The videos are listed and cut into time spans, each a unit of work (``plan``). Every span is
surveyed at thumbnail size: its shots, the windows that may become clips, near-duplicates across all
inputs (``survey``). Each window then goes through ``STEPS``: it is compared with earlier inputs,
its frames are decoded and filtered, matted against the shot's backdrop, split into clean plate and
straight foreground, scored and judged by the quality gate, captioned and encoded. What a step
refuses, and an input that cannot be used, becomes a rejected row; the job goes on.
"""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from layerflow.corpus.published import is_corpus
from layerflow.corpus.store import read_location
from layerflow.corpus.table import EXTENDED_SCHEMA, rejected_row
from layerflow.media.cells import MediaError
from layerflow.media.decode import shared_decoder
from layerflow.media.video import Limits
from layerflow.outputs import corpus_output
from layerflow.plugins import packages_of
from manifests.mine import MineOptions
from manifests.steps import Step
from pipelines.captions.captioner import CAPTION, CAPTIONERS, make_captioner
from pipelines.engine.cluster import require_gpus
from pipelines.engine.jobs import Outcome, Recipe, Running, Summary, make_recipe, run_job
from pipelines.engine.runner import Survey
from pipelines.engine.staging import InfrastructureError
from pipelines.engine.steps import Refused, Steps, run_steps
from pipelines.engine.workers import Pool
from pipelines.gates import resolve_gate
from pipelines.inputs.listing import list_sources, local_copy
from pipelines.inputs.prompts import read_prompt_table
from pipelines.matting import MATTE, MATTING, network_of
from pipelines.matting.refine import REFINE, REFINERS, make_refiner
from pipelines.mine import chosen, filters, layers, record
from pipelines.mine.chosen import check_backend, unused_choices
from pipelines.mine.held import held_units
from pipelines.mine.plan import VideoSpan, plan_units
from pipelines.mine.survey import Findings, plan_survey, survey_unit, windows_of
from pipelines.mine.window import (
    Video,
    Window,
    backend_of,
    inpainter_of,
    matting_backend,
    refiner_of,
    with_networks,
)
from pipelines.vision.inpaint import INPAINT, INPAINTERS, make_inpainter

STEPS: Steps[Window] = (
    filters.refuse_duplicate,  # rejected as "duplicates"
    filters.read_frames,
    filters.score_frames,
    filters.filter_frames,  # rejected as "filters"
    layers.read_given_matte,
    layers.take_backdrop,
    chosen.find_choice,  # rejected as "subject"
    layers.matte_frames,
    layers.doubt_backdrop,
    chosen.require_subject,  # rejected as "subject"
    layers.refine_matte,
    layers.make_plate,
    layers.solve_foreground,
    layers.score_layers,
    layers.score_traces,
    layers.score_seam,
    layers.judge_layers,  # rejected as "gate"
    record.write_prompts,
    record.encode,
)
FORMAT_VERSION = 9


def run_mine(options: MineOptions, **how: Unpack[Running]) -> Summary:
    """Mine all videos of ``options.inputs`` into the corpus ``options.out``.

    how: see ``Running``. Raises ValueError for a request that cannot work (inputs, output folder,
    backend, weights) before any work starts.
    """
    out = corpus_output(options.out)
    options = with_networks(options)
    packages = packages_of(
        matting=(MATTING, options.matting.partition(":")[0]),
        refine=(REFINERS, _named(options.refine)),
        inpaint=(INPAINTERS, _named(options.inpaint)),
        captioner=(CAPTIONERS, options.captions.captioner if options.captions else None),
    )
    recipe = make_recipe("mined", options.model_dump(mode="json"), FORMAT_VERSION, packages)
    table = read_prompt_table(Path(options.prompts)) if options.prompts else None
    serve = check_request(options, how.get("workers"))
    pool = Pool(how.get("workers"), how.get("quiet", False))
    units = plan_units(list_sources(options.inputs), options, table, pool)
    check_backend(options, [unit.payload for unit in units])
    held = held_units(options.against, str(out) if grows(out, how) else None)
    return run_job(
        units,
        partial(mine_unit, options=options, recipe=recipe),
        survey=Survey(partial(survey_unit, options=options), plan_survey, windows_of, held),
        out=out,
        recipe=recipe,
        schema=EXTENDED_SCHEMA,
        serve=serve,
        **how,
    )


def grows(out: Path | str, how: Running) -> bool:
    """Whether the job adds to a corpus that is there."""
    return how.get("append", False) and is_corpus(out)


def check_request(options: MineOptions, workers: int | None) -> dict[str, Step]:
    """The steps whose networks actors hold. Raises ValueError for what cannot work anywhere."""
    resolve_gate(options.gate, options.thresholds)
    serve = served_steps(options)
    asked = [options.device, *_devices(options).values()]
    gpus = any(device.startswith("cuda") for device in asked)
    if gpus and workers != 0 and not any(step.gpus and step.concurrency for step in serve.values()):
        require_gpus(workers)
    # The work runs elsewhere, and a cluster's head may have no GPU: weights are tried on the CPU.
    device = "cpu" if gpus and os.environ.get("RAY_ADDRESS") and workers != 0 else options.device
    check_networks(options, device)
    if options.captions is not None:
        make_captioner(options.captions).check()
    return serve


def check_networks(options: MineOptions, device: str) -> None:
    """Raises ValueError for a backend, refiner or inpainter that does not start on a device."""
    matting_backend(options.matting, options.weights, device)
    if options.refine is not None:
        make_refiner(options.refine, options.refine_weights, device)
    make_inpainter(options.inpaint, options.inpaint_weights, device)


def _named(told: str | None) -> str | None:
    """The name of a network that is perhaps told with its content."""
    return told and told.partition("@")[0]


def _devices(options: MineOptions) -> dict[str, str]:
    """Step -> the device of its network, of the steps that have one."""
    found = {}
    if network_of(options.matting):
        found[MATTE] = options.device
    for step, kind, told in (
        (REFINE, REFINERS, options.refine),
        (INPAINT, INPAINTERS, options.inpaint),
    ):
        name = _named(told)
        if name and "device" in inspect.signature(kind.load(name)).parameters:
            found[step] = options.device
    if options.captions is not None and options.captions.url is None:
        found[CAPTION] = options.captions.device
    return found


def served_steps(options: MineOptions) -> dict[str, Step]:
    """Those with a network on a GPU, and those that the manifest names. ValueError for one that
    has no network."""
    devices = _devices(options)
    for name in options.steps:
        if name not in devices:
            raise ValueError(f"steps: {name} has no network in this job")
    named: dict[str, Step] = {str(name): step for name, step in options.steps.items()}
    return {
        name: named.get(name, Step())
        for name, device in devices.items()
        if name in named or device.startswith("cuda")
    }


def mine_unit(payload: dict[str, Any], *, options: MineOptions, recipe: Recipe) -> Outcome:
    """All clips of one ``VideoSpan``: every window of its survey, through ``STEPS``."""
    span, outcome = VideoSpan(**payload), Outcome()
    _require_networks(options)

    def reject(step: str, reason: str, **more: Any) -> None:
        row = rejected_row(span.uri, step, reason, kind="mined", recipe=recipe.hash, **more)
        outcome.rejected.append(row)

    outcome.rows = _rows(span, options, recipe, reject)
    return outcome


def _require_networks(options: MineOptions) -> None:
    """Raises InfrastructureError where a network cannot be made, which it could at the start.

    So a machine that lacks the weights stops the job, and no window is rejected for it.
    """
    for what, name, make in (
        ("matting backend", options.matting, backend_of),
        ("refiner", options.refine, refiner_of),
        ("inpainter", options.inpaint, inpainter_of),
    ):
        try:
            make(options)
        except ValueError as error:
            raise InfrastructureError(
                f"{what} {_named(name)} does not work on this machine: {error}"
            ) from error


def _rows(
    span: VideoSpan, options: MineOptions, recipe: Recipe, reject: Callable[..., None]
) -> Iterator[dict[str, Any]]:
    """Corpus rows, one in memory at a time."""
    if span.look is None:
        reject("worker", span.lost)
        return
    findings = Findings.of(json.loads(read_location(span.look)))
    for step, reason in findings.problems:
        reject(step, reason)
    if not findings.windows:
        return
    try:
        with local_copy(span.location, Limits().max_bytes) as path:
            decoder = shared_decoder(options.deadline)
            video = Video(options, recipe.hash, span, findings, path, decoder)
            for reason in unused_choices(video):
                reject(chosen.STEP, reason)
            for index, place in enumerate(findings.windows):
                yield from _rows_of(Window(video, place, span.duplicates.get(str(index))), reject)
    except (ValueError, FileNotFoundError, PermissionError) as error:
        reject("read", str(error))


def _rows_of(window: Window, reject: Callable[..., None]) -> Iterator[dict[str, Any]]:
    """The row of a window, then those of its other subjects, of all that are not rejected."""
    reject = partial(reject, start=window.place.start, end=window.place.end)
    row = _row(STEPS, window, reject)
    if row is not None:
        yield row
    for sibling in window.siblings:
        row = _row(after_matting(), sibling, reject)
        if row is not None:
            yield row


def after_matting() -> Steps[Window]:
    """The steps of a window whose matte was made with that of another one."""
    return STEPS[STEPS.index(layers.matte_frames) + 1 :]


def _row(
    steps: Steps[Window], window: Window, reject: Callable[..., None]
) -> dict[str, Any] | None:
    """The row of one window; None where it is rejected."""
    try:
        return run_steps(steps, window).row
    except Refused as refused:
        reject(refused.step, str(refused), quality=window.scores)
    except MediaError as error:
        reject("decode", str(error))
    except (ValueError, ArithmeticError, np.linalg.LinAlgError) as error:
        reject("layers", f"{type(error).__name__}: {error}")
    return None
