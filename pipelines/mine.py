"""Mine: real video -> layered clips.

list videos -> time spans -> shots -> windows -> matting -> foreground colour -> clean background
-> prompts -> scores -> quality gate -> corpus. One unit of work is one time span of one video; a
bad input becomes a rejected row and the job goes on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from layerflow.clip import U8, LayeredClip
from layerflow.corpus import clip_id, encode_row, file_sha256, origin, rejected_row
from layerflow.decode import Decoder
from layerflow.media import MediaError
from manifests.mine import MineOptions
from pipelines.jobs import Outcome, Recipe, Summary, Unit, make_recipe, run_job, unit_key
from pipelines.matting import Matter, make_matter
from pipelines.stages.colour import straight_foreground
from pipelines.stages.listing import Source, list_sources
from pipelines.stages.plate import clean_plate
from pipelines.stages.prompts import prompts_for, read_prompt_table
from pipelines.stages.score import judge, score_clip
from pipelines.stages.shots import Window, cut_windows, find_shots, why_no_window

FORMAT_VERSION = 1


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
    """One unit per time span of each video; a video that cannot be probed is one unit."""
    units: list[Unit] = []
    with Decoder(deadline=options.deadline) as decoder:
        for source in sources:
            prompts: dict[str, str] | None = None
            try:
                seconds = decoder.probe(source.path).seconds
                prompts = prompts_for(source.path, source.uri, table)[0]
                problem = None
            except ValueError as error:
                seconds, problem = 0.0, str(error)
            for start, end in _spans(seconds, options.span):
                size = source.path.stat().st_size
                payload = {
                    "path": str(source.path.resolve()),
                    "uri": source.uri,
                    "start": start,
                    "end": end,
                    "prompts": prompts,
                    "problem": problem,
                }
                units.append(Unit(unit_key(source.uri, size, start, end), len(units), payload))
    return units


def _spans(seconds: float, span: float) -> Iterator[tuple[float, float]]:
    """Equal time spans of at most about ``span`` seconds; the last one has no end."""
    count = max(1, math.ceil(seconds / span - 0.25))
    for index in range(count):
        end = (index + 1) * span if index + 1 < count else 1e12
        yield index * span, end


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
    decoder: Decoder
    outcome: Outcome = field(default_factory=Outcome)

    @property
    def path(self) -> Path:
        return Path(self.payload["path"])

    def reject(
        self,
        stage: str,
        reason: str,
        window: Window | None = None,
        scores: Mapping[str, float] | None = None,
    ) -> None:
        start, end = (window.start, window.end) if window else (None, None)
        self.outcome.rejected.append(
            rejected_row(
                self.payload["uri"],
                stage,
                reason,
                kind="mined",
                recipe=self.recipe.hash,
                start=start,
                end=end,
                quality=scores,
            )
        )


def mine_unit(payload: dict[str, Any], *, options: MineOptions, recipe: Recipe) -> Outcome:
    """All clips of one time span of one video."""
    with Decoder(deadline=options.deadline) as decoder:
        job = _Job(options, recipe, payload, decoder)
        if payload["problem"]:
            job.reject("read", payload["problem"])
            return job.outcome
        sha256 = file_sha256(job.path)
        for window in _windows(job):
            try:
                _mine_window(job, window, sha256)
            except MediaError as error:
                job.reject("decode", str(error), window)
            except (ValueError, ArithmeticError, np.linalg.LinAlgError) as error:
                job.reject("layers", f"{type(error).__name__}: {error}", window)
    return job.outcome


def _windows(job: _Job) -> list[Window]:
    """Shots and windows of the span; what is wrong with it goes to the rejected rows."""
    options, payload = job.options, job.payload
    try:
        times, thumbs = job.decoder.scan(job.path, payload["start"], payload["end"])
    except MediaError as error:
        job.reject("decode", str(error))
        return []
    rate = (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else options.fps
    shots = find_shots(thumbs, rate)
    windows = [
        window for shot in shots for window in cut_windows(times, shot, options.frames, options.fps)
    ]
    if not windows:
        job.reject("windows", why_no_window(times, shots, options.frames, options.fps))
    return windows


def _mine_window(job: _Job, window: Window, sha256: str) -> None:
    """Layers, scores and the gate for one window."""
    options = job.options
    frames = job.decoder.fetch(job.path, window.times, *options.size)
    clip, scores = make_layers(frames, _matter(options.matting, options.weights), options.fps)
    verdict = judge(scores, options.gate)
    if verdict is not None:
        job.reject("gate", verdict, window, scores)
        return
    row = encode_row(
        LayeredClip(**{**clip, "prompts": job.payload["prompts"]}),
        id=clip_id("mined", [sha256], [window.start, window.end], job.recipe.hash),
        origin=origin(
            job.payload["uri"],
            sha256,
            start=window.start,
            end=window.end,
            licence=options.licence,
            attribution=options.attribution,
        ),
        quality=scores,
        recipe=job.recipe.hash,
        crf=options.crf,
    )
    job.outcome.rows.append(row)


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
