"""Mine: real video -> layered clips.

list videos -> time spans -> shots -> windows -> matting -> foreground colour -> clean background
-> prompts -> scores -> quality gate -> corpus. One unit of work is one time span of one video; a
bad input becomes a rejected row and the job goes on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from layerflow.clip import PROMPTED, U8, LayeredClip
from layerflow.corpus import clip_id, encode_row, file_sha256, origin, rejected_row
from layerflow.decode import Decoder
from layerflow.media import MediaError
from layerflow.video import Limits
from manifests.mine import MineOptions
from pipelines.jobs import Outcome, Recipe, Summary, Unit, make_recipe, run_job, unit_key
from pipelines.matting import Matter, make_matter
from pipelines.stages.colour import straight_foreground
from pipelines.stages.frames import find_bars, trim_fades
from pipelines.stages.gates import judge
from pipelines.stages.listing import Source, list_sources, local_copy
from pipelines.stages.plate import clean_plate
from pipelines.stages.prompts import TEMPLATE, prompts_for, read_prompt_table
from pipelines.stages.score import score_clip
from pipelines.stages.shots import Window, cut_windows, find_shots, why_no_window

FORMAT_VERSION = 2
WHOLE = 1e12  # an end that no video reaches


def run_mine(options: MineOptions, *, workers: int | None = None, quiet: bool = False) -> Summary:
    """Mine all videos of ``options.inputs`` into the corpus ``options.out``.

    workers: Ray tasks at a time, None for all CPUs, 0 for this process. Raises ValueError for a
    request that cannot work (inputs, output folder, backend, weights) before any work starts.
    """
    recipe = make_recipe("mined", options.model_dump(mode="json"), FORMAT_VERSION)
    table = read_prompt_table(Path(options.prompts)) if options.prompts else None
    _matter(options.matting, options.weights)
    units = plan_units(list_sources(options.inputs), options, table)
    work = partial(mine_unit, options=options, recipe=recipe)
    return run_job(units, work, out=Path(options.out), recipe=recipe, workers=workers, quiet=quiet)


def plan_units(
    sources: Sequence[Source],
    options: MineOptions,
    table: Mapping[str, Mapping[str, str]] | None = None,
) -> list[Unit]:
    """One unit per time span of each local video, one per remote video.

    A video that cannot be probed, or whose sidecar is broken, is one unit that reports it.
    """
    units: list[Unit] = []
    with Decoder(deadline=options.deadline) as decoder:
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
                payload["prompts"] = _prompts(source, table)
                if not source.remote:
                    size = source.path.stat().st_size
                    spans = time_spans(decoder.probe(source.path).seconds, options.span)
            except (ValueError, OSError) as error:
                payload["problem"] = str(error)
            for start, end in spans:
                key = unit_key(source.uri, size, start, end)
                units.append(Unit(key, len(units), {**payload, "start": start, "end": end}))
    return units


def _prompts(source: Source, table: Mapping[str, Mapping[str, str]] | None) -> dict[str, str]:
    if any(layer in source.row for layer in PROMPTED):
        return {**TEMPLATE, **{k: v for k, v in source.row.items() if k in PROMPTED}}
    path = Path(source.uri).name if source.remote else source.path
    return prompts_for(Path(path), source.uri, table)[0]


def time_spans(seconds: float, span: float) -> list[tuple[float, float]]:
    """Time spans of ``span`` seconds; the last one has no end and may be a quarter longer."""
    count = max(1, math.ceil(seconds / span - 0.25))
    ends = [*((index + 1) * span for index in range(count - 1)), WHOLE]
    return [(index * span, end) for index, end in enumerate(ends)]


@lru_cache(maxsize=1)
def _matter(name: str, weights: str | None) -> Matter:
    """One backend a process: weights are loaded once, not once a unit."""
    return make_matter(name, weights=weights)


@dataclass
class _Job:
    """What the stages of one unit share."""

    options: MineOptions
    recipe: Recipe
    payload: dict[str, Any]
    path: Path
    decoder: Decoder
    outcome: Outcome

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
    """All clips of one time span of one video."""
    outcome = Outcome()
    with Decoder(deadline=options.deadline) as decoder:
        job = _Job(options, recipe, payload, Path(), decoder, outcome)
        if payload["problem"]:
            job.reject("read", payload["problem"])
            return outcome
        try:
            with local_copy(payload["location"], Limits().max_bytes) as path:
                job.path = path
                _mine_file(job)
        except ValueError as error:  # the file itself: fetching, probing, hashing
            job.reject("read", str(error))
    return outcome


def _mine_file(job: _Job) -> None:
    sha256 = file_sha256(job.path)
    spans = [(job.payload["start"], job.payload["end"])]
    if "://" in job.payload["location"]:
        spans = time_spans(job.decoder.probe(job.path).seconds, job.options.span)
    for span in spans:
        for window in _windows(job, *span):
            try:
                _mine_window(job, window, sha256)
            except MediaError as error:
                job.reject("decode", str(error), window)
            except (ValueError, ArithmeticError, np.linalg.LinAlgError) as error:
                job.reject("layers", f"{type(error).__name__}: {error}", window)


def _windows(job: _Job, start: float, end: float) -> list[Window]:
    """Shots and windows of a span; what is wrong with it goes to the rejected rows."""
    options = job.options
    damage: list[str] = []
    try:
        times, thumbs = job.decoder.scan(job.path, start, end, damage=damage)
    except MediaError as error:
        job.reject("decode", str(error))
        return []
    if damage:  # what can be saved is used; what cannot is on record
        job.reject("decode", f"{len(damage)} damaged packets: {damage[0]}")
    rate = (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else options.fps
    shots = [trim_fades(thumbs, shot) for shot in find_shots(thumbs, rate)]
    windows: list[Window] = []
    for shot in shots:
        bars = find_bars(thumbs[shot[0] : shot[1]])
        windows += cut_windows(times, shot, options.frames, options.fps, bars)
    if not windows:
        job.reject("windows", why_no_window(times, shots, options.frames, options.fps))
    return windows


def _mine_window(job: _Job, window: Window, sha256: str) -> None:
    """Layers, scores and the gate for one window."""
    options, payload = job.options, job.payload
    frames = job.decoder.fetch(job.path, window.times, *options.size, box=window.box)
    layers, scores = make_layers(frames, _matter(options.matting, options.weights), options.fps)
    verdict = judge(scores, options.gate)
    if verdict is not None:
        job.reject("gate", verdict, window, scores)
        return
    job.outcome.rows.append(
        encode_row(
            LayeredClip(**layers, prompts=payload["prompts"]),
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
    )


def make_layers(frames: U8, matter: Matter, fps: float) -> tuple[dict[str, Any], dict[str, float]]:
    """Layers of one window uint8 ``[T, H, W, 3]``: LayeredClip fields, and the scores."""
    matte = matter(frames)
    alpha = np.rint(np.clip(matte.alpha, 0.0, 1.0) * 255.0).astype(np.uint8)
    plate = clean_plate(frames, alpha)
    foreground = straight_foreground(frames, alpha, plate.background)
    scores = score_clip(frames, foreground, alpha, plate, matte.confidence)
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
    return layers, scores
