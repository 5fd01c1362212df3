"""Encode a corpus: latents of every clip and embeddings of every prompt, on Ray.

    corpora -> which rows are new or changed -> units -> decode, augment, resize, autoencoder
            -> staged streams -> one latents folder, in the corpora's order

A unit is a few consecutive rows (or prompts), staged as those of the corpus jobs are. A job that is
killed and started again does what is missing; a corpus in which one clip changed re-encodes one
row, and one in which a prompt changed encodes that prompt. What other weights or another size made
is refused, with the difference.
"""

from __future__ import annotations

import itertools
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from layerflow.corpus.fingerprint import fingerprint_differences, model_fingerprint
from layerflow.corpus.latent_rows import PROMPTS, RGBA, clips_schema, prompt_key
from layerflow.corpus.latents import FORMAT_VERSION, INDEX, Latents
from layerflow.corpus.log import split_address
from layerflow.corpus.remote.latents import open_latents
from layerflow.corpus.remote.writer import (
    RemoteLatentsWriter,
    fingerprint_there,
    latents_writer,
)
from layerflow.corpus.store import Store
from layerflow.layer_set import layer_set, model_layers
from layerflow.outputs import corpus_output
from manifests.steps import Step
from pipelines.encode.buckets import parse_buckets
from pipelines.encode.clip_latents import Augment, Encoder, Options
from pipelines.encode.models import ENCODE, text_shape
from pipelines.encode.shards import write_clips
from pipelines.encode.texts import Stored, with_prompts
from pipelines.encode.wanted import WantedRow, compared, content_of_row, open_kept, wanted_rows
from pipelines.engine.desk import NO_DESKS, Desks
from pipelines.engine.jobs import unit_key
from pipelines.engine.runner import Place, run_units
from pipelines.engine.staging import Parts, Staging, Telling, json_part, stream_part
from pipelines.engine.tally import CLIPS, REJECTED_BY, Tally
from pipelines.engine.workers import Pool, Unit

ON_GPU = {ENCODE: Step(gpus=1.0)}  # where the cluster has any
UNIT_ROWS = 32
UNIT_PROMPTS = 64
ROWS, REASONS = "rows.arrow", "reasons.json"


@dataclass(frozen=True)
class EncodeSummary:
    """What an encode job did; `rejected` are (row id, reason). corrected: clips of which only the
    prompts were old."""

    out: Path | str
    clips: int
    encoded: int
    prompts: int
    rejected: list[tuple[str, str]]
    seconds: float
    corrected: int = 0

    def shapes(self) -> dict[str, int]:
        """Height x width x frames of the clips in `out` -> rows of them, smallest first."""
        store = open_latents(self.out)
        columns = [store.column(name) for name in ("height", "width", "num_frames")]
        counts = Counter(zip(*columns, strict=True))
        return {"x".join(map(str, shape)): count for shape, count in sorted(counts.items())}


def run_encode(
    corpora: Sequence[str | Path],
    *,
    model: str | Path,
    out: str | Path,
    size: tuple[int, int] | None = None,
    frames: int | None = None,
    buckets: str | Sequence[str] | None = None,
    augment: Augment | None = None,
    layers: str | None = None,
    dtype: str = "float32",
    compute: tuple[str, bool] = ("float32", False),
    workers: int | None = None,
    quiet: bool = False,
    accept_lost: bool = False,
) -> EncodeSummary:
    """Encode corpora into the latents folder `out`, a path or the URL of an object store.

    corpora: corpus folders, published folders, `hf://datasets/...` (`layerflow.corpus.published`).
    size: height and width; None: as the clips are. frames: how many of each clip's frames to
    take, evenly spread and distinct; None: all; stills stay single. buckets: instead of both,
    `HxWxF,...`, of which each clip gets one (`choose_bucket`). augment: variants of each
    clip. layers: name of the set; None: the model's. compute: `precision` and `tiling` of
    `Options`. workers: Ray tasks at a time; None: all CPUs (or GPUs); 0: this process, without Ray.
    accept_lost: any number of units may fail for one reason; their clips are rejected.
    ValueError for a wrong request, and when `out` holds latents of other weights, size or rule;
    OSError when the disk is full or the fault lies with the machines (`pipelines.engine.workers`).
    """
    started = time.monotonic()
    out, augment = corpus_output(out), augment or Augment()
    chosen = layer_set(layers) if layers else model_layers(model)
    if buckets and (size or frames):
        raise ValueError("--buckets say sizes and frames: leave --size and --frames out")
    shapes = parse_buckets(buckets) if buckets else ()
    folder = str(Path(model).resolve())
    options = Options(folder, size, frames, dtype, augment, chosen.name, *compute, buckets=shapes)
    fingerprint = make_fingerprint(options)
    have = open_existing(out, fingerprint)
    stored = Stored(have)
    rows = list(wanted_rows([str(path) for path in corpora], augment, chosen))
    if not rows:
        raise ValueError(f"{', '.join(map(str, corpora))}: no clips to encode")
    if have is None:
        Encoder(options).check()  # else it was done before them
    texts = dict.fromkeys(text for row in rows for text in row.prompts if text)
    embedded = have.prompt_keys() if have else set()
    tag = unit_key(fingerprint, asdict(augment), have.identity() if have else None)
    desks, tally = Desks(ON_GPU, quiet), Tally(str(out))
    pool = Pool(workers, quiet, accept_lost=accept_lost, desks=desks, tally=tally)
    work = _Work(rows)

    def plan(staging: Staging) -> list[Unit]:
        if have is not None:
            below, readers = staging.below("hashes"), replace(pool, desks=NO_DESKS)
            work.rows = compared(rows, stored, chosen, below, readers)
        new_texts = [text for text in texts if prompt_key(text) not in embedded]
        work.text_units = [text_unit(tag, chunk) for chunk in chunks(new_texts, UNIT_PROMPTS)]
        missing = [
            row
            for row in work.rows
            if not row.only_prompts and not stored.has(row.outputs, row.content)
        ]
        work.clip_units = [_clip_unit(tag, chunk) for chunk in chunks(missing, UNIT_ROWS)]
        return work.units

    def compact(staging: Staging, _: int) -> EncodeSummary:
        corrected = sum(row.only_prompts for row in work.rows)
        wanted = {output for row in rows for output in row.outputs}
        if have and not (work.units or corrected) and set(stored.content) == wanted:
            return EncodeSummary(out, len(have), 0, len(embedded), [], time.monotonic() - started)
        rejected: list[tuple[str, str]] = []
        with latents_writer(out, fingerprint) as writer:
            if have is None and isinstance(writer, RemoteLatentsWriter):
                keys = [unit.key for unit in work.clip_units]
                clips = write_clips(writer, keys, ROWS, clips_schema(chosen), staging, pool)
                reasons = (json.loads(staging.read(key, REASONS)) for key in keys)
                rejected += [pair for found in reasons for pair in found.items()]
            else:
                clips = writer.clips(_merged(work, have, stored, staging, rejected))
            if clips == 0:
                raise ValueError(f"nothing could be encoded; the first reason: {rejected[0][1]}")
            prompts = writer.prompts(_merged_prompts(texts, have, work.text_units, staging))
            if rejected:
                lines = [json.dumps({"id": id_, "reason": reason}) for id_, reason in rejected]
                (writer.folder / "rejected.jsonl").write_text("\n".join(lines) + "\n")
        done = sum(len(unit.payload["rows"]) for unit in work.clip_units)
        done -= len({id_ for id_, _ in rejected})
        seconds = time.monotonic() - started
        return EncodeSummary(out, clips, done, prompts, rejected, seconds, corrected)

    roots = dict.fromkeys([*(str(split_address(row.corpus)[0]) for row in rows), options.model])
    return run_units(
        plan,
        place_of(out, [root for root in roots if Path(root).exists()]),
        partial(encode_unit, options=options),
        pool,
        settle=partial(_settled, str(model), clips_schema(chosen)),
        compact=compact,
    )


@dataclass
class _Work:
    """What there is to do, once the rows were compared with the latents that are there."""

    rows: Sequence[WantedRow]
    text_units: Sequence[Unit] = ()
    clip_units: Sequence[Unit] = ()

    @property
    def units(self) -> list[Unit]:
        return [*self.text_units, *self.clip_units]


def place_of(out: Path | str, inputs: Sequence[str]) -> Place:
    """Where the units of a latents folder are staged."""
    busy = f"{out}: another job is writing these latents"
    if isinstance(out, str):
        return Place(f"{out}/staging", None, busy, inputs)
    folder = out.with_name(f".{out.name}.staging")
    return Place(folder, folder / "lock", busy, inputs)


def make_fingerprint(options: Options) -> dict[str, Any]:
    """What the latents will depend on, besides the clips themselves."""
    return {
        **({} if options.set == RGBA else {"layers": options.layers}),
        **({} if options.precision == "float32" else {"precision": options.precision}),
        **({"tiling": True} if options.tiling else {}),
        "format_version": FORMAT_VERSION,
        "size": list(options.size) if options.size else None,
        "frames": f"even:{options.frames}" if options.frames else "all",
        **({"buckets": [str(each) for each in options.buckets]} if options.buckets else {}),
        "dtype": options.dtype,
        "text_shape": list(text_shape(options.model)),
        **model_fingerprint(options.model),
    }


def open_existing(out: Path | str, fingerprint: Mapping[str, Any]) -> Latents | None:
    """The latents that `out` holds already. ValueError if they are foreign."""
    if isinstance(out, str):
        there = fingerprint_there(out)
        if there is None:
            return None
        _refuse_made_otherwise(out, there, fingerprint)
        return open_latents(out) if INDEX in Store(out).names() else None
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    have = Latents.open(out)
    _refuse_made_otherwise(out, have.fingerprint, fingerprint)
    return have


def _refuse_made_otherwise(
    out: Path | str, there: Mapping[str, Any], fingerprint: Mapping[str, Any]
) -> None:
    named: dict[str, Any] = {"layers": RGBA.name, "precision": "float32", "tiling": False}
    named |= {"buckets": []}
    different = fingerprint_differences(named | dict(there), named | dict(fingerprint))
    if different:
        raise ValueError(
            f"{out} holds latents made in another way; choose another --out or remove it.\n  "
            + "\n  ".join(different)
        )


def chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _clip_unit(tag: str, rows: Sequence[WantedRow]) -> Unit:
    made_of = [(row.identity, row.index, row.id, row.texts) for row in rows]
    wanted = [
        {"corpus": row.corpus, "index": row.index, "id": row.id, "prompts": row.prompts}
        for row in rows
    ]
    return Unit(unit_key(tag, made_of), 0, {"kind": "clips", "rows": wanted})


def text_unit(tag: str, texts: Sequence[str]) -> Unit:
    return Unit(unit_key(tag, list(texts)), 0, {"kind": "prompts", "texts": list(texts)})


def _settled(model: str, schema: pa.Schema, unit: Unit, reason: str) -> Parts:
    """What a unit commits that was given up: a reason for each of its clips. ValueError for one of
    prompts, which every clip needs."""
    if unit.payload["kind"] == "prompts":
        raise ValueError(f"the text encoder of {model} cannot run: {reason}")
    reasons = {row["id"]: reason for row in unit.payload["rows"]}
    return {ROWS: stream_part([], schema), REASONS: json_part(reasons)}


# ---- one unit ---------------------------------------------------------------------------------


encoder_of = lru_cache(maxsize=1)(Encoder)


def encode_unit(unit: Mapping[str, Any], *, options: Options) -> Parts:
    """What a unit commits: the rows of its clips or prompts; bad clips become reasons."""
    encoder = encoder_of(options)
    if unit["kind"] == "prompts":
        return {ROWS: stream_part(encoder.prompts(unit["texts"]), PROMPTS)}
    reasons: dict[str, str] = {}

    def rows() -> Iterator[dict[str, Any]]:
        for wanted in unit["rows"]:
            try:
                row = open_kept(wanted["corpus"]).row(wanted["index"])
                about = {**wanted, "content": content_of_row(row, options.set)}
                yield from encoder.clip(row, about)
            except ValueError as error:
                reasons[wanted["id"]] = str(error)

    def told() -> dict[str, int]:
        return {CLIPS: len(unit["rows"]) - len(reasons), REJECTED_BY + "encode": len(reasons)}

    parts = {ROWS: stream_part(rows(), clips_schema(options.set))}
    return Telling({**parts, REASONS: json_part(lambda: reasons)}, told)


# ---- putting them together --------------------------------------------------------------------


def _merged(
    work: _Work,
    have: Latents | None,
    stored: Stored,
    staging: Staging,
    rejected: list[tuple[str, str]],
) -> Iterator[dict[str, Any]]:
    """Rows of `clips/` in the corpora's order: kept ones, and new ones from the staged units."""
    unit_of = {row["id"]: unit.key for unit in work.clip_units for row in unit.payload["rows"]}
    places = {output: index for index, output in enumerate(stored.content)}
    current, new, reasons = "", dict[str, dict[str, Any]](), dict[str, str]()
    for row in work.rows:
        key = unit_of.get(row.id)
        if key is None:
            assert have is not None
            kept = (have.raw(places[output]) for output in row.outputs)
            if row.only_prompts:
                about = str(row.content), row.prompts, have.layers
                kept = (with_prompts(raw, *about) for raw in kept)
            yield from kept
            continue
        if key != current:
            current = key
            new = {r["id"]: r for r in staging.rows(key, ROWS)}
            reasons = json.loads(staging.read(key, REASONS))
        if row.id in reasons:
            rejected.append((row.id, reasons[row.id]))
        else:
            yield from (new[output] for output in row.outputs)


def _merged_prompts(
    texts: Mapping[str, None],
    have: Latents | None,
    units: Sequence[Unit],
    staging: Staging,
) -> Iterator[dict[str, Any]]:
    """Rows of `prompts/`: those kept that are still in use, then the new ones."""
    keys = {prompt_key(text) for text in texts}
    kept = (row for row in (have.prompt_rows() if have else ()) if row["key"] in keys)
    new = (row for unit in units for row in staging.rows(unit.key, ROWS))
    return itertools.chain(kept, new)
