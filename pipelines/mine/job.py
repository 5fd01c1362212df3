"""Mine: real video -> layered clips.

list videos -> time spans -> survey (shots, windows, duplicates) -> frames -> cheap filters ->
matting -> foreground colour -> clean background -> scores -> quality gate -> corpus. One unit of
work is one time span of one video; a bad input becomes a rejected row and the job goes on.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from layerflow.clip import U8, LayeredClip
from layerflow.corpus.table import EXTENDED_SCHEMA, clip_id, encode_row, origin, rejected_row
from layerflow.media.cells import MediaError, encode_color
from layerflow.media.decode import Decoder, shared_decoder
from layerflow.media.video import Box, Limits
from layerflow.outputs import local_output
from layerflow.plugins import packages_of
from manifests.mine import MineOptions
from pipelines.captions.captioner import CAPTIONERS, caption_clip, make_captioner
from pipelines.engine.cluster import require_gpus
from pipelines.engine.jobs import (
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
from pipelines.gates import judge, resolve_gate
from pipelines.inputs.listing import Source, list_sources, local_copy, matte_beside, tell
from pipelines.inputs.metadata import folders_say
from pipelines.inputs.prompts import (
    RIGHTS,
    Table,
    check_matches,
    entry_for,
    merged,
    prompts_of,
    read_prompt_table,
    sidecar,
)
from pipelines.inputs.remote import remote_sidecar
from pipelines.matting import MATTING, Backdrop, Matter, make_matter
from pipelines.matting.alpha import AlphaMatter
from pipelines.mine.backdrop import find_backdrop, is_still
from pipelines.mine.layers import Mined, make_layers
from pipelines.mine.score import neighbour_flows, score_frames
from pipelines.mine.shots import Window
from pipelines.mine.spans import WHOLE, time_spans
from pipelines.mine.survey import plan_duplicates, survey_unit
from pipelines.readers.stills import OPAQUE, grey_of
from pipelines.vision.inpaint import INPAINTERS, Inpainter, make_inpainter
from pipelines.vision.plate import clean_plate

FORMAT_VERSION = 6
GPU_SHARE = 0.25  # most of a unit's time is CPU work: four of them keep one GPU busy

Twin = tuple[str, float, float]
"""The earlier window that one resembles: uri, start in seconds, duplicate_distance."""


def run_mine(
    options: MineOptions,
    *,
    workers: int | None = None,
    quiet: bool = False,
    only: Choose | None = None,
    accept_lost: bool = False,
) -> Summary:
    """Mine all videos of ``options.inputs`` into the corpus ``options.out``.

    workers: Ray tasks at a time, None for all CPUs, 0 for this process. only: whether a unit is
    wanted, all by default. accept_lost: see ``run_job``. Raises ValueError for a request that
    cannot work (inputs, output folder, backend, weights) before any work starts.
    """
    out = local_output(options.out)
    content = options.model_dump(mode="json")
    packages = packages_of(
        matting=(MATTING, options.matting.partition(":")[0]),
        inpaint=(INPAINTERS, options.inpaint),
        captioner=(CAPTIONERS, options.captions.captioner if options.captions else None),
    )
    recipe = make_recipe("mined", content, FORMAT_VERSION, packages)
    table = read_prompt_table(Path(options.prompts)) if options.prompts else None
    resolve_gate(options.gate, options.thresholds)
    gpus = _needs_gpu(options)
    if gpus and workers != 0:
        require_gpus(workers)
    # The work runs elsewhere, and a cluster's head may have no GPU: weights are tried on the CPU.
    device = "cpu" if gpus and os.environ.get("RAY_ADDRESS") and workers != 0 else options.device
    _matter(options.matting, options.weights, device)
    make_inpainter(options.inpaint, options.inpaint_weights, device)
    if options.captions is not None:
        make_captioner(options.captions).check()
    sources = list_sources(options.inputs)
    if table is not None and options.prompts:
        unnamed = check_matches(table, {source.uri: "" for source in sources}, options.prompts)
        if unnamed:
            tell(unnamed)
    units = plan_units(sources, options, table)
    return run_job(
        units,
        partial(mine_unit, options=options, recipe=recipe),
        first_pass=FirstPass(partial(survey_unit, options=options), plan_duplicates),
        out=out,
        recipe=recipe,
        workers=workers,
        quiet=quiet,
        only=only,
        accept_lost=accept_lost,
        schema=EXTENDED_SCHEMA,
        gpus=GPU_SHARE if gpus else 0.0,
    )


def _needs_gpu(options: MineOptions) -> bool:
    devices = [options.device]
    if options.captions is not None and options.captions.url is None:
        devices.append(options.captions.device)
    return any(device.startswith("cuda") for device in devices)


def plan_units(
    sources: Sequence[Source],
    options: MineOptions,
    table: Table | None = None,
) -> list[Unit]:
    """One unit per time span of each local video, one per remote video.

    A video that cannot be probed, whose sidecar is broken, or whose licence cannot be read, is one
    unit that reports it.
    """
    units: list[Unit] = []
    local = [source.path for source in sources if not source.remote]
    lengths = iter(_durations(local, options.deadline))
    uris: Counter[str] = Counter()
    for source in sources:
        payload: dict[str, Any] = {
            "location": source.location if source.remote else os.path.abspath(source.location),
            "root": os.path.abspath(source.root),
            "uri": source.uri,
            "prompts": None,
            "problem": None,
        }
        size, spans = 0, [(0.0, WHOLE)]
        try:
            length = 0.0 if source.remote else next(lengths)
            if source.problem:
                raise ValueError(source.problem)
            payload |= _said(source, table, options)
            if isinstance(length, str):
                raise ValueError(length)
            if not source.remote:
                size = source.path.stat().st_size
                spans = time_spans(length, options.span)
        except (ValueError, OSError) as error:
            payload["problem"] = str(error)
        # Addresses that differ in what is not recorded have one uri.
        again = [uris[source.uri]] if uris[source.uri] else []
        uris[source.uri] += 1
        for start, end in spans:
            key = unit_key(source.uri, size, start, end, *again)
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


def _said(source: Source, table: Table | None, options: MineOptions) -> dict[str, Any]:
    """Prompts, licence and attribution of a source, for its units.

    Prompts: the row that named it, the table of prompts, its sidecar, the template, layer by layer.
    Rights: all that these and the JSON of its folders say; the job's own where they say nothing.
    """
    path, root = None if source.remote else source.path, Path(source.root)
    beside = remote_sidecar(source.location, source.beside) if path is None else sidecar(path, root)
    folders = [] if path is None else folders_say([path], root)
    said = merged(source.row, entry_for(source.uri, table), beside, *folders)
    held = {name: said.get(name) or getattr(options, name) for name in RIGHTS}
    return {**held, "prompts": prompts_of(said)}


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
    shots: Sequence[Sequence[float]] = ()
    _latest: tuple[int, Backdrop | None] = (-1, None)

    def backdrop(self, shot: int, window: Window) -> Backdrop | None:
        """The backdrop of a shot, found once; a camera that moves has none."""
        if self._latest[0] != shot:
            self._latest = shot, self._find_backdrop(self.shots[shot], window.box)
        return self._latest[1]

    def matter(self, window: Window) -> Matter:
        """The backend; one that takes mattes which come with the video gets the window's."""
        options = self.options
        if options.matting != AlphaMatter.name:
            return _matter(options.matting, options.weights, options.device)
        location, root = self.payload["location"], Path(self.payload["root"])
        matte = None if "://" in location else matte_beside(Path(location), root)
        if matte is None and not self.decoder.probe(self.path).has_alpha:
            raise MediaError("no alpha channel, and no film of the matte beside it (NAME.mask.*)")
        return AlphaMatter(self._given_matte(matte, window))

    def _given_matte(self, beside: Path | None, window: Window) -> U8:
        """A window's matte, from the film beside or the video's alpha; an alpha channel that is
        opaque all over is none."""
        size, path = self.options.size, beside or self.path
        found = self.decoder.fetch(path, window.times, *size, box=window.box, op="matte")
        if found.min() < OPAQUE:
            return found
        if beside is None:
            raise MediaError("its alpha channel is opaque all over: there is no matte in it")
        shown = self.decoder.fetch(beside, window.times, *size, box=window.box)
        return np.stack([grey_of(frame) for frame in shown])

    def _find_backdrop(self, times: Sequence[float], box: Box | None) -> Backdrop | None:
        try:
            return find_backdrop(self.decoder.fetch(self.path, times, *self.options.size, box=box))
        except MediaError:  # a window that needs a broken frame will say so itself
            return None

    def reject(
        self,
        stage: str,
        reason: str,
        window: Window | None = None,
        scores: Mapping[str, float] | None = None,
    ) -> None:
        start, end = (window.start, window.end) if window else (None, None)
        uri, recipe = self.payload["uri"], self.recipe.hash
        row = rejected_row(
            uri, stage, reason, kind="mined", recipe=recipe, start=start, end=end, quality=scores
        )
        self.outcome.rejected.append(row)


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
            job.path, job.shots = path, survey["shots"]
            for index, found in enumerate(survey["windows"]):
                window = Window(tuple(found["times"]), found["box"] and tuple(found["box"]))
                twin = payload.get("duplicates", {}).get(str(index))
                row = _try_window(job, window, found["shot"], survey["sha256"], twin)
                if row is not None:
                    yield row
    except (ValueError, FileNotFoundError, PermissionError) as error:
        job.reject("read", str(error))


def _try_window(
    job: _Job, window: Window, shot: int, sha256: str, twin: Twin | None
) -> dict[str, Any] | None:
    try:
        return _mine_window(job, window, shot, sha256, twin)
    except MediaError as error:
        job.reject("decode", str(error), window)
    except (ValueError, ArithmeticError, np.linalg.LinAlgError) as error:
        job.reject("layers", f"{type(error).__name__}: {error}", window)
    return None


def _mine_window(
    job: _Job, window: Window, shot: int, sha256: str, twin: Twin | None
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
        return None
    matter = job.matter(window)
    inpainter = make_inpainter(options.inpaint, options.inpaint_weights, options.device)
    usable = job.shots[shot] and is_still(frames)
    backdrop = job.backdrop(shot, window) if usable else None
    found = make_layers(frames, matter, options.fps, flows, early, inpainter, backdrop)
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
        backdrop=before.backdrop,
    )
    cell = encode_color(plate.background, options.fps, crf=options.crf)
    return {"shadow": "background", "plate": cell, "objects": None, "draw": None}
