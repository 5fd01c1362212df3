"""Mine: real video -> layered clips.

list videos -> time spans -> survey (shots, windows, duplicates) -> frames -> cheap filters ->
matting -> foreground colour -> clean background -> scores -> quality gate -> corpus. One unit of
work is one time span of one video; a bad input becomes a rejected row and the job goes on.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from layerflow.clip import PROMPTED, U8, LayeredClip
from layerflow.corpus import EXTENDED_SCHEMA, clip_id, encode_row, origin, rejected_row
from layerflow.decode import Decoder, shared_decoder
from layerflow.media import MediaError, encode_color
from layerflow.video import Limits
from manifests.mine import MineOptions
from pipelines.jobs import (
    Choose,
    FirstPass,
    Outcome,
    Recipe,
    Summary,
    Unit,
    make_recipe,
    run_job,
    unit_key,
)
from pipelines.matting import Matter, make_matter
from pipelines.stages.caption import caption_clip, make_captioner
from pipelines.stages.colour import straight_foreground
from pipelines.stages.gates import judge, resolve_gate
from pipelines.stages.inpaint import Inpainter, make_inpainter
from pipelines.stages.listing import Source, list_sources, local_copy
from pipelines.stages.plate import Look, Plate, clean_plate
from pipelines.stages.prompts import TEMPLATE, prompts_for, read_prompt_table
from pipelines.stages.prune import without_background
from pipelines.stages.score import Flows, neighbour_flows, score_clip, score_frames
from pipelines.stages.shots import Window
from pipelines.stages.spans import WHOLE, time_spans
from pipelines.stages.traces import Traces, find_traces
from pipelines.survey import plan_duplicates, survey_unit

FORMAT_VERSION = 4
LOOKS, MAX_LOOKS = 4, 48  # frames of each window, and in all, that later windows may look at
GPU_SHARE = 0.25  # most of a unit's time is CPU work: four of them keep one GPU busy

Twin = tuple[str, float, float]
"""The earlier window that one resembles: uri, start in seconds, duplicate_distance."""


def run_mine(
    options: MineOptions,
    *,
    workers: int | None = None,
    quiet: bool = False,
    only: Choose | None = None,
) -> Summary:
    """Mine all videos of ``options.inputs`` into the corpus ``options.out``.

    workers: Ray tasks at a time, None for all CPUs, 0 for this process. only: whether a unit is
    wanted, all by default. Raises ValueError for a request that cannot work (inputs, output folder,
    backend, weights) before any work starts.
    """
    recipe = make_recipe("mined", options.model_dump(mode="json"), FORMAT_VERSION)
    table = read_prompt_table(Path(options.prompts)) if options.prompts else None
    resolve_gate(options.gate, options.thresholds)
    _matter(options.matting, options.weights, options.device)
    make_inpainter(options.inpaint, options.inpaint_weights, options.device)
    if options.captions is not None:
        make_captioner(options.captions).check()
    units = plan_units(list_sources(options.inputs), options, table)
    return run_job(
        units,
        partial(mine_unit, options=options, recipe=recipe),
        first_pass=FirstPass(partial(survey_unit, options=options), plan_duplicates),
        out=Path(options.out),
        recipe=recipe,
        workers=workers,
        quiet=quiet,
        only=only,
        schema=EXTENDED_SCHEMA,
        gpus=GPU_SHARE if options.device.startswith("cuda") else 0.0,
    )


def plan_units(
    sources: Sequence[Source],
    options: MineOptions,
    table: Mapping[str, Mapping[str, str]] | None = None,
) -> list[Unit]:
    """One unit per time span of each local video, one per remote video.

    A video that cannot be probed, or whose sidecar is broken, is one unit that reports it.
    """
    units: list[Unit] = []
    local = [source.path for source in sources if not source.remote]
    lengths = iter(_durations(local, options.deadline))
    for source in sources:
        payload: dict[str, Any] = {
            "location": source.location if source.remote else str(source.path.resolve()),
            "uri": source.uri,
            "licence": source.row.get("licence", options.licence),
            "attribution": source.row.get("attribution", options.attribution),
            "prompts": None,
            "problem": None,
        }
        size, spans = 0, [(0.0, WHOLE)]
        try:
            length = 0.0 if source.remote else next(lengths)
            payload["prompts"] = _prompts(source, table)
            if isinstance(length, str):
                raise ValueError(length)
            if not source.remote:
                size = source.path.stat().st_size
                spans = time_spans(length, options.span)
        except (ValueError, OSError) as error:
            payload["problem"] = str(error)
        for start, end in spans:
            key = unit_key(source.uri, size, start, end)
            units.append(Unit(key, len(units), {**payload, "start": start, "end": end}))
    return units


def _durations(paths: Sequence[Path], deadline: float) -> list[float | str]:
    """Seconds of each file, or what is wrong with it; a few decoders at a time."""
    count = min(8, os.cpu_count() or 1, len(paths))

    def look(own: Sequence[Path]) -> list[float | str]:
        found: list[float | str] = []
        with Decoder(deadline=deadline) as decoder:
            for path in own:
                try:
                    found.append(decoder.duration(path))
                except MediaError as error:
                    found.append(str(error))
        return found

    lengths: list[float | str] = [""] * len(paths)
    if paths:
        with ThreadPoolExecutor(count) as pool:
            shares = pool.map(look, [paths[i::count] for i in range(count)])
            for i, share in enumerate(shares):
                lengths[i::count] = share
    return lengths


def _prompts(source: Source, table: Mapping[str, Mapping[str, str]] | None) -> dict[str, str]:
    if any(layer in source.row for layer in PROMPTED):
        return {**TEMPLATE, **{k: v for k, v in source.row.items() if k in PROMPTED}}
    path = Path(source.uri).name if source.remote else source.path
    return prompts_for(Path(path), source.uri, table)[0]


@lru_cache(maxsize=1)
def _matter(name: str, weights: str | None, device: str) -> Matter:
    """One backend a process: weights are loaded once, not once a unit."""
    return make_matter(name, weights=weights, device=device)


@dataclass
class _Job:
    """What the stages of one unit share."""

    options: MineOptions
    recipe: Recipe
    payload: dict[str, Any]
    path: Path
    decoder: Decoder
    outcome: Outcome
    looks: deque[Look] = field(default_factory=lambda: deque(maxlen=MAX_LOOKS))

    def remember(self, frames: U8, hole: np.ndarray | None = None) -> None:
        """Keep a few frames: later windows may see behind their subjects in them."""
        for t in np.linspace(0, len(frames) - 1, min(LOOKS, len(frames))).round().astype(int):
            hidden = np.zeros(frames.shape[1:3], bool) if hole is None else hole[t]
            self.looks.append(Look(frames[t].copy(), hidden.copy()))

    def reject(
        self,
        stage: str,
        reason: str,
        window: Window | None = None,
        scores: Mapping[str, float] | None = None,
    ) -> None:
        start, end = (window.start, window.end) if window else (None, None)
        uri, recipe = self.payload["uri"], self.recipe.hash
        self.outcome.rejected.append(
            rejected_row(
                uri,
                stage,
                reason,
                kind="mined",
                recipe=recipe,
                start=start,
                end=end,
                quality=scores,
            )
        )


def mine_unit(payload: dict[str, Any], *, options: MineOptions, recipe: Recipe) -> Outcome:
    """All clips of one unit, by what the survey found in it (``payload["look"]``, a JSON file)."""
    outcome = Outcome()
    job = _Job(options, recipe, payload, Path(), shared_decoder(options.deadline), outcome)
    outcome.rows = _rows(job)
    return outcome


def _rows(job: _Job) -> Iterator[dict[str, Any]]:
    """Corpus rows, one in memory at a time; rejected rows go to the job's outcome."""
    payload = job.payload
    if payload["look"] is None:
        job.reject("worker", payload["lost"])
        return
    survey = json.loads(Path(payload["look"]).read_text())
    for stage, reason in survey["problems"]:
        job.reject(stage, reason)
    if not survey["windows"]:
        return
    try:
        with local_copy(payload["location"], Limits().max_bytes) as path:
            job.path = path
            for index, found in enumerate(survey["windows"]):
                window = Window(tuple(found["times"]), found["box"] and tuple(found["box"]))
                twin = payload.get("duplicates", {}).get(str(index))
                row = _try_window(job, window, survey["sha256"], twin)
                if row is not None:
                    yield row
    except (ValueError, FileNotFoundError, PermissionError) as error:
        job.reject("read", str(error))


def _try_window(job: _Job, window: Window, sha256: str, twin: Twin | None) -> dict[str, Any] | None:
    try:
        return _mine_window(job, window, sha256, twin)
    except MediaError as error:
        job.reject("decode", str(error), window)
    except (ValueError, ArithmeticError, np.linalg.LinAlgError) as error:
        job.reject("layers", f"{type(error).__name__}: {error}", window)
    return None


def _mine_window(
    job: _Job, window: Window, sha256: str, twin: Twin | None
) -> dict[str, Any] | None:
    """Cheap filters, layers, scores and the gate for one window: its row, if it passes."""
    options, payload = job.options, job.payload
    gate = resolve_gate(options.gate, options.thresholds)
    early: dict[str, float] = {}
    if twin is not None:
        early["duplicate_distance"] = twin[2]
        if judge(early, gate) is not None:
            reason = f"nearly the same as {twin[0]} at {twin[1]:.2f} s"
            job.reject("duplicates", reason, window, early)
            return None
    frames = job.decoder.fetch(job.path, window.times, *options.size, box=window.box)
    flows = neighbour_flows(frames)
    early |= score_frames(frames, flows)
    verdict = judge(early, gate)
    if verdict is not None:
        job.reject("filters", verdict, window, early)
        job.remember(frames)
        return None
    matter = _matter(options.matting, options.weights, options.device)
    inpainter = make_inpainter(options.inpaint, options.inpaint_weights, options.device)
    looks = tuple(job.looks)
    found = make_layers(frames, matter, options.fps, flows, early, inpainter, looks)
    job.remember(frames, found.plate.hole)
    layers, scores = found.layers, found.scores
    verdict = judge(scores, gate)
    if verdict is not None:
        job.reject("gate", verdict, window, scores)
        return None
    prompts, flags = caption_clip(options.captions, layers, payload["prompts"])
    scores |= flags
    row = encode_row(
        LayeredClip(**layers, prompts=prompts),
        id=clip_id("mined", [sha256], [window.start, window.end], job.recipe.hash),
        origin=origin(
            payload["uri"],
            sha256,
            start=window.start,
            end=window.end,
            licence=payload["licence"],
            attribution=payload["attribution"],
        ),
        quality=scores,
        recipe=job.recipe.hash,
        crf=options.crf,
    )
    return row | shadow_cells(found, inpainter, options)


def shadow_cells(found: Mined, inpainter: Inpainter | None, options: MineOptions) -> dict[str, Any]:
    """Who owns the subject's shadow, and the background without it (and other leftovers).

    Outside the matte the background is the video itself, so it owns them.
    """
    if not found.traces.found:
        return {"shadow": "none", "plate": None, "objects": None, "draw": None}
    layers, before = found.layers, found.plate
    plate = clean_plate(
        layers["blended"],
        np.where(found.traces.mask, np.uint8(255), layers["alpha"]),
        registration=before.registration,
        inpainter=inpainter,
        looks=before.looks,
    )
    cell = encode_color(plate.background, options.fps, crf=options.crf)
    return {"shadow": "background", "plate": cell, "objects": None, "draw": None}


@dataclass(frozen=True)
class Mined:
    """One window's layers (LayeredClip fields) and scores, and what they were made with."""

    layers: dict[str, Any]
    scores: dict[str, float]
    plate: Plate
    traces: Traces


def make_layers(
    frames: U8,
    matter: Matter,
    fps: float,
    flows: Flows,
    early: Mapping[str, float],
    inpainter: Inpainter | None = None,
    looks: Sequence[Look] = (),
) -> Mined:
    """Layers and scores of one window uint8 ``[T, H, W, 3]``.

    flows: of ``neighbour_flows``; early: scores that are known already; inpainter: by default
    OpenCV's; looks: earlier frames of the film.
    """
    matte = matter(frames)
    alpha = np.rint(np.clip(matte.alpha, 0.0, 1.0) * 255.0).astype(np.uint8)
    plate = clean_plate(frames, alpha, inpainter=inpainter, looks=looks)
    alpha, pruned = without_background(frames, alpha, plate)
    if pruned:
        plate = clean_plate(frames, alpha, inpainter=inpainter, looks=looks)
    foreground = straight_foreground(frames, alpha, plate.background)
    scores = score_clip(
        frames, foreground, alpha, plate, matte.confidence, flows=flows, frame_scores=early
    )
    traces = find_traces(frames, alpha, plate)
    scores["shadow_fraction"] = traces.shadow_fraction
    scores["leftover_fraction"] = traces.leftover_fraction
    layers = {
        "foreground": foreground,
        "alpha": alpha,
        "background": plate.background,
        "blended": frames,
        "fps": fps,
        "kind": "mined",
        "alpha_kind": "soft",
        "background_kind": plate.kind,
    }
    return Mined(layers, scores, plate, traces)
