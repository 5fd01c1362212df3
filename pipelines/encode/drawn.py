"""Encode clips that are drawn, not stored: ``layerflow encode --paste MANIFEST``.

    ranges of draws -> the steps of ``paste`` up to coding -> augment, resize, autoencoder
            -> staged streams -> which clips nearly repeat others -> prompts -> one latents folder

The samples that go into the autoencoder are bit for bit those that ``layerflow paste`` with the
same manifest would hand to the video coder, and they have the ids of its rows. Nothing is lost to
coding, and no media are written.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from layerflow.clip import ALPHA, BLENDED, LayeredClip
from layerflow.corpus.latent_rows import DRAWN, ORIGINS, clips_schema
from layerflow.corpus.remote.writer import RemoteLatentsWriter, latents_writer
from layerflow.corpus.row_stack import row_prompts, single_objects, stack_of_parts
from layerflow.corpus.store import Store
from layerflow.documents import parse_json
from layerflow.layer_set import layer_set, model_layers
from layerflow.media.layer_stack import LayerStack
from layerflow.outputs import corpus_output
from manifests.common import check, load
from manifests.paste import PasteOptions
from manifests.schema import BuildManifest, PasteJob
from pipelines.encode import job
from pipelines.encode.clip_latents import Augment, Encoder, Options, kept_frames, varied
from pipelines.encode.job import ROWS, EncodeSummary
from pipelines.encode.shards import write_clips
from pipelines.engine.desk import Desks
from pipelines.engine.recipe import unit_key
from pipelines.engine.replay import roots
from pipelines.engine.runner import run_units
from pipelines.engine.staging import Parts, Staging, Telling, json_part, stream_part
from pipelines.engine.tally import CLIPS, REJECTED_BY, Tally
from pipelines.engine.workers import Pool, Unit, run_staged
from pipelines.paste.job import draw_unit, recipe_of
from pipelines.paste.plan import make_plan, plan_units
from pipelines.paste.repeats import Repeats, signature
from pipelines.paste.rows import described, shadow_owner
from pipelines.paste.rows import single_objects as objects_of
from pipelines.paste.sample import PasteContext, Sample


def run_encode_of(
    corpora: Sequence[str | Path],
    paste: str | Path | None,
    changed: Mapping[str, int | None],
    **how: Any,
) -> EncodeSummary:
    """``run_encode`` of corpora, or of the paste job in the manifest ``paste`` with some options
    ``changed``. ValueError for both or none of them."""
    given = {name: value for name, value in changed.items() if value is not None}
    if paste is None:
        if not corpora or given:
            raise ValueError("encode wants corpora, or --paste with perhaps --count and --seed")
        return job.run_encode(corpora, **how)
    if corpora:
        raise ValueError(
            f"encode takes corpora or --paste, not both: {', '.join(map(str, corpora))}"
        )
    if how.pop("buckets", None):
        raise ValueError("--buckets are for corpora: the clips of a manifest have one size")
    return run_encode_drawn(paste_options(paste, given), **how)


def paste_options(manifest: str | Path, changed: Mapping[str, int] | None = None) -> PasteOptions:
    """The options of the one paste job of a corpus manifest. ValueError for none or several."""
    jobs = [j for j in load(Path(manifest), BuildManifest).jobs if isinstance(j, PasteJob)]
    if len(jobs) != 1:
        raise ValueError(f"{manifest} has {len(jobs)} paste jobs; encode --paste draws from one")
    return check({**jobs[0].model_dump(), **(changed or {})}, PasteOptions, str(manifest))


def run_encode_drawn(
    paste: PasteOptions,
    *,
    model: str | Path,
    out: str | Path,
    size: tuple[int, int] | None = None,
    frames: int | None = None,
    augment: Augment | None = None,
    layers: str | None = None,
    dtype: str = "float32",
    compute: tuple[str, bool] = ("float32", False),
    workers: int | None = None,
    quiet: bool = False,
    accept_lost: bool = False,
) -> EncodeSummary:
    """Draw the clips of a paste job and encode them into the latents folder ``out``.

    The rest as of ``run_encode``. ValueError when ``out`` holds latents of anything else.
    """
    started = time.monotonic()
    out, augment = corpus_output(out), augment or Augment()
    chosen = layer_set(layers) if layers else model_layers(model)
    options = Options(
        str(Path(model).resolve()), size, frames, dtype, augment, chosen.name, *compute
    )
    recipe = recipe_of(paste)
    context = PasteContext(make_plan(paste), paste, recipe.hash)
    fingerprint = job.make_fingerprint(options)
    draws = plan_units(context.plan, paste)
    tag = unit_key(fingerprint, asdict(augment), recipe.hash)
    units = [
        replace(u, key=unit_key(tag, u.key), payload=u.payload | {"kind": "draws"}) for u in draws
    ]
    said = {"draws": unit_key([u.key for u in units]), "seed": paste.seed, "count": paste.count}
    have = job.open_existing(out, fingerprint)
    if have is not None:
        _refuse_other(out, said)
        seconds = time.monotonic() - started
        return EncodeSummary(out, len(have), 0, len(have.prompt_keys()), [], seconds)
    Encoder(options).check()
    desks, tally = Desks(job.ON_GPU, quiet), Tally(str(out))
    pool = Pool(workers, quiet, accept_lost=accept_lost, desks=desks, tally=tally)

    def compact(staging: Staging, _: int) -> EncodeSummary:
        drawn = [json.loads(staging.read(unit.key, DRAWN)) for unit in units]
        rejected = [(uri, reason) for one in drawn for uri, reason in one["rejected"]]
        kept = list(_kept(drawn, None if paste.repeats else Repeats(), rejected))
        if not kept:
            raise ValueError(f"nothing could be drawn; the first reason: {rejected[0][1]}")
        texts = list(dict.fromkeys(text for clip in kept for text in clip["prompts"] if text))
        text_units = [job.text_unit(tag, some) for some in job.chunks(texts, job.UNIT_PROMPTS)]
        below = staging.below("prompts")
        for reason in run_staged(text_units, make, below, pool).values():
            raise ValueError(f"the text encoder of {model} cannot run: {reason}")
        ids = {clip["id"] for clip in kept}
        with latents_writer(out, fingerprint) as writer:
            if isinstance(writer, RemoteLatentsWriter):
                left_out = partial(_left_out, ids=ids, staging=staging)
                drop = dict(map(left_out, units, drawn))
                keys, schema = [unit.key for unit in units], clips_schema(options.set)
                clips = write_clips(writer, keys, ROWS, schema, staging, pool, drop)
            else:
                rows = (row for unit in units for row in staging.rows(unit.key, ROWS))
                clips = writer.clips(row for row in rows if row["source"] in ids)
            prompts = writer.prompts(row for u in text_units for row in below.rows(u.key, ROWS))
            _note(writer.folder, said, kept, rejected)
        return EncodeSummary(out, clips, len(kept), prompts, rejected, time.monotonic() - started)

    make = partial(encode_unit, options=options, context=context)
    return run_units(
        units,
        job.place_of(out, [options.model, *roots(recipe.given)]),
        make,
        pool,
        settle=partial(_settled, options),
        compact=compact,
    )


def _refuse_other(out: Path | str, said: Mapping[str, Any]) -> None:
    try:
        there = parse_json(Store(out).read(DRAWN), f"{out}/{DRAWN}")
    except FileNotFoundError:
        raise ValueError(
            f"{out} holds latents of corpora; choose another --out for drawn clips"
        ) from None
    if there.get("draws") != said["draws"]:
        raise ValueError(
            f"{out} holds {there.get('count')} clips of other draws (seed {there.get('seed')}); "
            "choose another --out: a mixture takes several"
        )


def _kept(
    drawn: Sequence[Mapping[str, Any]], repeats: Repeats | None, rejected: list[tuple[str, str]]
) -> Iterator[dict[str, Any]]:
    """The clips, in the order of their draws, that do not nearly repeat an earlier one."""
    for clip in (clip for one in drawn for clip in one["clips"]):
        reason = repeats({"id": clip["id"], "draw": json.dumps(clip)}) if repeats else None
        if reason is None:
            yield clip
        else:
            rejected.append((clip["id"], reason))


def _left_out(
    unit: Unit, drawn: Mapping[str, Any], *, ids: Collection[str], staging: Staging
) -> tuple[str, list[int]]:
    """A unit's key, and the numbers of its rows whose clips are not among ``ids``: all clips have
    as many rows."""
    clips = drawn["clips"]
    each = staging.record(unit.key)[ROWS]["count"] // max(1, len(clips))
    gone = [number for number, clip in enumerate(clips) if clip["id"] not in ids]
    return unit.key, [each * number + i for number in gone for i in range(each)]


def _note(
    folder: Path,
    said: Mapping[str, Any],
    kept: Sequence[Mapping[str, Any]],
    rejected: Sequence[tuple[str, str]],
) -> None:
    """What lies beside the latents: which draws they are, whose media they show, what is not in."""
    (folder / DRAWN).write_text(json.dumps(said) + "\n")
    tables = {
        ORIGINS: [{"id": clip["id"], "origin": clip["origin"]} for clip in kept],
        "rejected.jsonl": [{"id": id_, "reason": reason} for id_, reason in rejected],
    }
    for name, rows in tables.items():
        if rows:
            (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def _settled(options: Options, unit: Unit, reason: str) -> Parts:
    """What a unit commits that was given up."""
    said = {"clips": [], "rejected": [[unit.payload["uri"], reason]]}
    return {ROWS: stream_part([], clips_schema(options.set)), DRAWN: json_part(said)}


# ---- one unit ---------------------------------------------------------------------------------


def encode_unit(unit: dict[str, Any], *, options: Options, context: PasteContext) -> Parts:
    """What a range of draws, or of prompts, commits."""
    if unit["kind"] == "prompts":
        return job.encode_unit(unit, options=options)
    encoder = job.encoder_of(options)
    clips: list[dict[str, Any]] = []
    rejected: list[dict[str, Any]] = []
    failed: list[tuple[str, str]] = []

    def rows() -> Iterator[dict[str, Any]]:
        for sample in draw_unit(unit, context, rejected):
            try:
                row, pictures = drawn(sample, options)
                yield from encoder.rows(row, row, pictures, [None] * len(pictures))
            except ValueError as error:
                failed.append((f"draw {sample.index}", str(error)))
                continue
            names = ("id", "origin", "prompts", "signature")
            clips.append({name: row[name] for name in names})

    def said() -> dict[str, Any]:
        lost = [(row["uri"], row["reason"]) for row in rejected]
        return {"clips": clips, "rejected": [*lost, *failed]}

    def told() -> dict[str, int]:
        lost = Counter(REJECTED_BY + row["stage"] for row in rejected)
        lost[REJECTED_BY + "encode"] += len(failed)
        return {CLIPS: len(clips), **lost}

    parts = {ROWS: stream_part(rows(), clips_schema(options.set))}
    return Telling({**parts, DRAWN: json_part(said)}, told)


def drawn(sample: Sample, options: Options) -> tuple[dict[str, Any], list[LayerStack]]:
    """A sample as the corpus row that it would be, without media, and its variants as they go into
    the autoencoder. MediaError for one with too few frames."""
    from layerflow.model.text import prefixed

    clip, about = described(sample)
    objects = objects_of(sample)
    row: dict[str, Any] = {
        "id": about["id"],
        "kind": clip.kind,
        "alpha_kind": clip.alpha_kind,
        "num_frames": clip.num_frames,
        "shadow": shadow_owner(sample),
        "origin": about["origin"],
        "objects": [{"prompt": item.prompt, "colour": item.colour} for item in objects],
        "signature": signature(sample.layers[ALPHA], sample.layers[BLENDED]),
        **{f"{layer}_prompt": text for layer, text in clip.prompts.items()},
    }
    texts = row_prompts(row, options.set)
    row["prompts"] = [prefixed(layer, text) for layer, text in texts.items()]
    row["content"] = unit_key(about["recipe"], about["id"], row["prompts"])
    keep = kept_frames(row, options)
    shown = _frames(clip, keep)
    single = [_taken(item, keep) for item in objects] if single_objects(row, options.set) else []
    plate = None if sample.plate is None else sample.plate[keep]
    return row, varied(stack_of_parts(row, shown, options.set, single, plate), row["id"], options)


def _frames(clip: LayeredClip, keep: Sequence[int]) -> LayeredClip:
    return replace(clip.take([*keep]), fps=clip.fps * len(keep) / clip.num_frames)


def _taken(item: Any, keep: Sequence[int]) -> Any:
    index = [*keep]
    seen = {"visible": item.visible[index], "amodal": item.amodal[index]}
    return replace(item, **seen, colour=None if item.colour is None else item.colour[index])
