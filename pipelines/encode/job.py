"""Encode a corpus: latents of every clip and embeddings of every prompt, on Ray Data.

    corpora -> rows that are not up to date -> units -> decode, augment, resize, autoencoder
            -> staged streams -> one latents folder, in the corpora's order

A unit is a few consecutive rows (or prompts), staged as those of the corpus jobs are. A job that is
killed and started again does what is missing; a corpus in which one clip changed re-encodes one
row, and one in which a prompt changed encodes that prompt. What other weights or another size made
is refused, with the difference.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from layerflow.corpus.fingerprint import fingerprint_differences, model_fingerprint
from layerflow.corpus.latent_rows import PROMPTS, RGBA, clips_schema, prompt_key
from layerflow.corpus.latents import FORMAT_VERSION, INDEX, Latents
from layerflow.corpus.log import split_address
from layerflow.corpus.published import fetched, open_corpus
from layerflow.corpus.remote.latents import open_latents
from layerflow.corpus.remote.writer import fingerprint_there, latents_writer
from layerflow.corpus.row_stack import row_cells, row_prompts
from layerflow.corpus.store import Store
from layerflow.corpus.validate import refuse_unsound
from layerflow.layer_set import LayerSet, layer_set, model_layers
from layerflow.media.known import KNOWN
from layerflow.outputs import corpus_output
from manifests.steps import Step
from pipelines.encode.buckets import parse_buckets
from pipelines.encode.clip_latents import Augment, Encoder, Options, variants
from pipelines.encode.models import ENCODE, text_shape
from pipelines.encode.texts import Stored, with_prompts
from pipelines.engine.desk import Desks
from pipelines.engine.jobs import unit_key
from pipelines.engine.runner import Place, run_units
from pipelines.engine.staging import Parts, Staging, json_part, stream_part
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


@dataclass(frozen=True)
class _Row:
    """A corpus row that is wanted: where it lies, and the rows of latents that it becomes."""

    corpus: str
    index: int
    id: str
    content: str
    outputs: tuple[str, ...]
    prompts: tuple[str, ...]
    only_prompts: bool = False


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
    rows = list(wanted_rows(corpora, augment, chosen, stored))
    if not rows:
        raise ValueError(f"{', '.join(map(str, corpora))}: no clips to encode")
    known = stored.content
    changed = [row for row in rows if not stored.has(row.outputs, row.content)]
    missing = [row for row in changed if not row.only_prompts]
    corrected = len(changed) - len(missing)
    texts = dict.fromkeys(text for row in rows for text in row.prompts if text)
    embedded = have.prompt_keys() if have else set()
    new_texts = [text for text in texts if prompt_key(text) not in embedded]
    wanted = {output for row in rows for output in row.outputs}
    if have and not changed and not new_texts and set(known) == wanted:
        return EncodeSummary(out, len(have), 0, len(embedded), [], time.monotonic() - started)

    Encoder(options).check()
    tag = unit_key(fingerprint, asdict(augment))
    text_units = [text_unit(tag, chunk) for chunk in chunks(new_texts, UNIT_PROMPTS)]
    clip_units = [_clip_unit(tag, chunk) for chunk in chunks(missing, UNIT_ROWS)]

    def compact(staging: Staging, _: int) -> EncodeSummary:
        rejected: list[tuple[str, str]] = []
        with latents_writer(out, fingerprint) as writer:
            clips = writer.clips(_merged(rows, have, known, clip_units, staging, rejected))
            if clips == 0:
                raise ValueError(f"nothing could be encoded; the first reason: {rejected[0][1]}")
            prompts = writer.prompts(_merged_prompts(texts, have, text_units, staging))
            if rejected:
                lines = [json.dumps({"id": id_, "reason": reason}) for id_, reason in rejected]
                (writer.folder / "rejected.jsonl").write_text("\n".join(lines) + "\n")
        done = len(missing) - len({id_ for id_, _ in rejected})
        seconds = time.monotonic() - started
        return EncodeSummary(out, clips, done, prompts, rejected, seconds, corrected)

    roots = dict.fromkeys([*(str(split_address(row.corpus)[0]) for row in rows), options.model])
    return run_units(
        [*text_units, *clip_units],
        place_of(out, [root for root in roots if Path(root).exists()]),
        partial(encode_unit, options=options),
        Pool(workers, quiet, accept_lost=accept_lost, desks=Desks(ON_GPU, quiet)),
        settle=partial(_settled, str(model), clips_schema(chosen)),
        compact=compact,
    )


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


def wanted_rows(
    corpora: Sequence[str | Path],
    augment: Augment,
    layers: LayerSet = RGBA,
    stored: Stored | None = None,
) -> Iterator[_Row]:
    """All rows of the corpora with what they become. ValueError for an id that comes twice.

    stored: the latents that are there already.
    """
    from layerflow.model.text import prefixed

    seen: set[str] = set()
    for path in corpora:
        folder = fetched(path)
        corpus = open_corpus(folder)
        refuse_unsound(corpus, ids=False)  # below, over all of them
        for index, row in enumerate(corpus.rows()):
            if row["id"] in seen:
                raise ValueError(f"{path}: clip {row['id']} is in these corpora more than once")
            seen.add(row["id"])
            texts = row_prompts(row, layers)
            content = _content_of(row, layers)
            made = content(list(texts.values()))
            outputs = tuple(row["id"] + v.suffix for v in variants(row["kind"], augment))
            yield _Row(
                corpus=corpus.address,
                index=index,
                id=row["id"],
                content=made,
                outputs=outputs,
                prompts=tuple(prefixed(layer, text) for layer, text in texts.items()),
                only_prompts=stored is not None
                and not stored.has(outputs, made)
                and stored.has_but_prompts(outputs, tuple(texts), content),
            )


def _content_of(row: Mapping[str, Any], layers: LayerSet) -> Callable[[list[str]], str]:
    """Prompts of a row's layers -> the hash of what its latents are made of."""
    cells = b"".join(hashlib.sha256(cell).digest() for cell in row_cells(row, layers))
    if row.get(KNOWN) is not None:
        cells += hashlib.sha256(row[KNOWN]).digest()

    def content(texts: list[str]) -> str:
        about = json.dumps([texts, row["kind"], row["alpha_kind"]]).encode()
        return hashlib.sha256(about + cells).hexdigest()[:32]

    return content


def chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _clip_unit(tag: str, rows: Sequence[_Row]) -> Unit:
    contents = [(row.id, row.content) for row in rows]
    payload = {"kind": "clips", "rows": [asdict(row) for row in rows]}
    return Unit(unit_key(tag, contents), 0, payload)


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
_open = lru_cache(maxsize=8)(open_corpus)


def encode_unit(unit: Mapping[str, Any], *, options: Options) -> Parts:
    """What a unit commits: the rows of its clips or prompts; bad clips become reasons."""
    encoder = encoder_of(options)
    if unit["kind"] == "prompts":
        return {ROWS: stream_part(encoder.prompts(unit["texts"]), PROMPTS)}
    reasons: dict[str, str] = {}

    def rows() -> Iterator[dict[str, Any]]:
        for row in unit["rows"]:
            try:
                yield from encoder.clip(_open(row["corpus"]).row(row["index"]), row)
            except ValueError as error:
                reasons[row["id"]] = str(error)

    schema = clips_schema(options.set)
    return {ROWS: stream_part(rows(), schema), REASONS: json_part(lambda: reasons)}


# ---- putting them together --------------------------------------------------------------------


def _merged(
    rows: Sequence[_Row],
    have: Latents | None,
    known: Mapping[str, str],
    units: Sequence[Unit],
    staging: Staging,
    rejected: list[tuple[str, str]],
) -> Iterator[dict[str, Any]]:
    """Rows of `clips/` in the corpora's order: kept ones, and new ones from the staged units."""
    unit_of = {row["id"]: unit.key for unit in units for row in unit.payload["rows"]}
    places = {output: index for index, output in enumerate(known)}
    current, new, reasons = "", dict[str, dict[str, Any]](), dict[str, str]()
    for row in rows:
        key = unit_of.get(row.id)
        if key is None:
            assert have is not None
            kept = (have.raw(places[output]) for output in row.outputs)
            if row.only_prompts:
                about = row.content, row.prompts, have.layers
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
