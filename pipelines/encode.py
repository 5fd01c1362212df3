"""Encode a corpus: latents of every clip and embeddings of every prompt, on Ray Data.

    corpora -> rows that are not up to date -> units -> decode, augment, resize, autoencoder
            -> staged streams -> one latents folder, in the corpora's order

A unit is a few consecutive rows (or prompts); it commits its own file by rename. A job that is
killed and started again does what is missing; a corpus in which one clip changed re-encodes one
row. What other weights or another size made is refused, with the difference.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from layerflow.care import refuse_unsound
from layerflow.clip import LAYERS, PROMPTED
from layerflow.corpus import Corpus
from layerflow.fingerprint import fingerprint_differences, model_fingerprint
from layerflow.latents import (
    CLIPS,
    FORMAT_VERSION,
    PROMPTS,
    Latents,
    LatentsWriter,
    prompt_key,
)
from layerflow.published import PublishedCorpus, fetched, open_corpus
from layerflow.streams import read_stream, write_stream
from pipelines.stages.latent import Augment, Encoder, Options, text_shape, variants

UNIT_ROWS = 32
UNIT_PROMPTS = 64
ATTEMPTS = 2


@dataclass(frozen=True)
class Summary:
    """What an encode job did; `rejected` are (row id, reason)."""

    out: Path
    clips: int
    encoded: int
    prompts: int
    rejected: list[tuple[str, str]]
    seconds: float


@dataclass(frozen=True)
class _Row:
    """A corpus row that is wanted: where it lies, and the rows of latents that it becomes."""

    corpus: str
    index: int
    id: str
    content: str
    outputs: tuple[str, ...]
    prompts: tuple[str, ...]


def run_encode(
    corpora: Sequence[str | Path],
    *,
    model: str | Path,
    out: str | Path,
    size: tuple[int, int] | None = None,
    frames: int | None = None,
    augment: Augment | None = None,
    dtype: str = "float32",
    workers: int | None = None,
    quiet: bool = False,
) -> Summary:
    """Encode corpora into the latents folder `out`.

    corpora: corpus folders, published folders, `hf://datasets/...` (see `layerflow.published`).
    size: height and width; None: as the clips are. frames: how many of each clip's frames to
    take, evenly spread and distinct; None: all; stills stay single. augment: variants of each
    clip. workers: Ray tasks at a time; None: all CPUs (or GPUs); 0: this process, without Ray.
    ValueError for a wrong request, and when `out` holds latents of other weights, size or rule.
    """
    started = time.monotonic()
    out, augment = Path(out), augment or Augment()
    options = Options(str(Path(model).resolve()), size, frames, dtype, augment)
    fingerprint = make_fingerprint(options)
    have = open_existing(out, fingerprint)
    rows = list(wanted_rows(corpora, augment))
    if not rows:
        raise ValueError(f"{', '.join(map(str, corpora))}: no clips to encode")
    known = dict(zip(have.column("id"), have.column("content"), strict=True)) if have else {}
    missing = [row for row in rows if any(known.get(o) != row.content for o in row.outputs)]
    texts = dict.fromkeys(text for row in rows for text in row.prompts if text)
    embedded = have.prompt_keys() if have else set()
    new_texts = [text for text in texts if prompt_key(text) not in embedded]
    if have and not missing and not new_texts and set(known) == _outputs(rows):
        return Summary(out, len(have), 0, len(embedded), [], time.monotonic() - started)

    Encoder(options).check()
    staging = out.with_name(f".{out.name}.staging")
    staging.mkdir(parents=True, exist_ok=True)
    tag = _key(fingerprint, asdict(augment))
    clip_units = [_clip_unit(tag, chunk) for chunk in _chunks(missing, UNIT_ROWS)]
    text_units = [_text_unit(tag, chunk) for chunk in _chunks(new_texts, UNIT_PROMPTS)]
    lost = run_units(text_units + clip_units, options, staging, workers, quiet)
    if any(key in lost for key in (unit["key"] for unit in text_units)):
        raise ValueError(f"the text encoder of {model} cannot run: {next(iter(lost.values()))}")

    rejected: list[tuple[str, str]] = []
    with LatentsWriter(out, fingerprint) as writer:
        clips = writer.clips(_merged(rows, have, known, clip_units, staging, lost, rejected))
        if clips == 0:
            raise ValueError(f"nothing could be encoded; the first reason: {rejected[0][1]}")
        prompts = writer.prompts(_merged_prompts(texts, have, text_units, staging))
    if rejected:
        lines = [json.dumps({"id": id_, "reason": reason}) for id_, reason in rejected]
        (out / "rejected.jsonl").write_text("\n".join(lines) + "\n")
    shutil.rmtree(staging)
    done = len(missing) - len({id_ for id_, _ in rejected})
    return Summary(out, clips, done, prompts, rejected, time.monotonic() - started)


def make_fingerprint(options: Options) -> dict[str, Any]:
    """What the latents will depend on, besides the clips themselves."""
    return {
        "format_version": FORMAT_VERSION,
        "size": list(options.size) if options.size else None,
        "frames": options.frame_rule,
        "dtype": options.dtype,
        "text_shape": list(text_shape(options.model)),
        **model_fingerprint(options.model),
    }


def open_existing(out: Path, fingerprint: Mapping[str, Any]) -> Latents | None:
    """The latents that `out` holds already. ValueError if they are foreign."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    have = Latents.open(out)
    different = fingerprint_differences(have.fingerprint, fingerprint)
    if different:
        raise ValueError(
            f"{out} holds latents made in another way; choose another --out or remove it.\n  "
            + "\n  ".join(different)
        )
    return have


def wanted_rows(corpora: Sequence[str | Path], augment: Augment) -> Iterator[_Row]:
    """All rows of the corpora with what they become. ValueError for an id that comes twice."""
    from layerflow.text import prefixed

    seen: set[str] = set()
    for path in corpora:
        folder = fetched(path)
        corpus = open_corpus(folder)
        refuse_unsound(corpus, ids=False)  # below, over all of them
        for index in range(len(corpus)):
            row = corpus.row(index)
            if row["id"] in seen:
                raise ValueError(f"{path}: clip {row['id']} is in these corpora more than once")
            seen.add(row["id"])
            texts = [row[f"{layer}_prompt"] or "" for layer in PROMPTED]
            digest = hashlib.sha256(json.dumps([texts, row["kind"], row["alpha_kind"]]).encode())
            for layer in LAYERS:
                digest.update(hashlib.sha256(row[layer] or b"").digest())
            yield _Row(
                corpus=str(folder),
                index=index,
                id=row["id"],
                content=digest.hexdigest()[:32],
                outputs=tuple(row["id"] + v.suffix for v in variants(row["kind"], augment)),
                prompts=tuple(
                    prefixed(layer, text) if text else ""
                    for layer, text in zip(PROMPTED, texts, strict=True)
                ),
            )


def _outputs(rows: Sequence[_Row]) -> set[str]:
    return {output for row in rows for output in row.outputs}


def _key(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:20]


def _chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _clip_unit(tag: str, rows: Sequence[_Row]) -> dict[str, Any]:
    contents = [(row.id, row.content) for row in rows]
    return {"key": _key(tag, contents), "kind": "clips", "rows": [asdict(row) for row in rows]}


def _text_unit(tag: str, texts: Sequence[str]) -> dict[str, Any]:
    return {"key": _key(tag, list(texts)), "kind": "prompts", "texts": list(texts)}


# ---- running the units ------------------------------------------------------------------------


def run_units(
    units: Sequence[Mapping[str, Any]],
    options: Options,
    staging: Path,
    workers: int | None,
    quiet: bool,
) -> dict[str, str]:
    """Run the units that are not staged; returns those that could not be done, with reasons."""
    from rich.progress import track

    folder = staging.resolve()
    missing = [unit for unit in units if not (staging / f"{unit['key']}.arrow").is_file()]
    for _ in range(ATTEMPTS):
        if not missing:
            break
        source = _in_process(missing, options, folder) if workers == 0 else None
        results = source or _on_ray(missing, options, folder, workers)
        for _ in track(
            results, total=len(missing), description="encode", disable=quiet, transient=True
        ):
            pass
        missing = [unit for unit in missing if not (staging / f"{unit['key']}.arrow").is_file()]
    return {str(unit["key"]): f"the worker died {ATTEMPTS} times" for unit in missing}


def _in_process(
    units: Sequence[Mapping[str, Any]], options: Options, staging: Path
) -> Iterator[None]:
    for unit in units:
        encode_unit(unit, options, staging)
        yield None


def _on_ray(
    units: Sequence[Mapping[str, Any]], options: Options, staging: Path, workers: int | None
) -> Iterator[Any]:
    import ray

    from pipelines.cluster import start_ray

    start_ray(workers)
    warnings.filterwarnings("ignore", "`ray_remote_args`")  # nothing else limits the retries
    gpus = int(ray.cluster_resources().get("GPU", 0))
    items = [{"unit": json.dumps(unit)} for unit in units]
    dataset = ray.data.from_items(items, override_num_blocks=min(len(items), 2000))
    arguments = {"options": options, "staging": staging}
    if gpus:  # actors hold the weights; a task would load them again for each unit
        yield from dataset.map(
            _UnitActor,
            fn_constructor_kwargs=arguments,
            concurrency=min(workers or gpus, gpus),
            num_gpus=1,
            max_restarts=-1,
            max_task_retries=0,
        ).iter_rows()
    else:
        yield from dataset.map(
            _unit_task, fn_kwargs=arguments, num_cpus=1, concurrency=workers, max_retries=1
        ).iter_rows()


def _unit_task(item: dict[str, Any], options: Options, staging: Path) -> dict[str, Any]:
    encode_unit(json.loads(item["unit"]), options, staging)
    return {"done": 1}


class _UnitActor:
    def __init__(self, options: Options, staging: Path) -> None:
        self.options, self.staging = options, staging

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        return _unit_task(item, self.options, self.staging)


@lru_cache(maxsize=1)
def _encoder(options: Options) -> Encoder:
    return Encoder(options)


def encode_unit(unit: Mapping[str, Any], options: Options, staging: Path) -> None:
    """Encode one unit's clips or prompts and commit the rows; bad clips become reasons."""
    encoder = _encoder(options)
    path = staging / f"{unit['key']}.arrow"
    if unit["kind"] == "prompts":
        write_stream(path, encoder.prompts(unit["texts"]), PROMPTS)
        return
    reasons: dict[str, str] = {}

    def rows() -> Iterator[dict[str, Any]]:
        for row in unit["rows"]:
            try:
                yield from encoder.clip(_open(row["corpus"]).row(row["index"]), row)
            except ValueError as error:
                reasons[row["id"]] = str(error)

    made = list(rows())
    (staging / f"{unit['key']}.json").write_text(json.dumps(reasons))
    write_stream(path, made, CLIPS)


@lru_cache(maxsize=8)
def _open(corpus: str) -> Corpus | PublishedCorpus:
    return open_corpus(corpus)


# ---- putting them together --------------------------------------------------------------------


def _merged(
    rows: Sequence[_Row],
    have: Latents | None,
    known: Mapping[str, str],
    units: Sequence[Mapping[str, Any]],
    staging: Path,
    lost: Mapping[str, str],
    rejected: list[tuple[str, str]],
) -> Iterator[dict[str, Any]]:
    """Rows of `clips/` in the corpora's order: kept ones, and new ones from the staged units."""
    unit_of = {row["id"]: unit["key"] for unit in units for row in unit["rows"]}
    places = {output: index for index, output in enumerate(known)}
    current, new, reasons = "", dict[str, dict[str, Any]](), dict[str, str]()
    for row in rows:
        key = unit_of.get(row.id)
        if key is None:
            assert have is not None
            yield from (have.raw(places[output]) for output in row.outputs)
            continue
        if key in lost:
            rejected.append((row.id, lost[key]))
            continue
        if key != current:
            current = key
            new = {r["id"]: r for r in read_stream(staging / f"{key}.arrow")}
            reasons = json.loads((staging / f"{key}.json").read_text())
        if row.id in reasons:
            rejected.append((row.id, reasons[row.id]))
        else:
            yield from (new[output] for output in row.outputs)


def _merged_prompts(
    texts: Mapping[str, None],
    have: Latents | None,
    units: Sequence[Mapping[str, Any]],
    staging: Path,
) -> Iterator[dict[str, Any]]:
    """Rows of `prompts/`: those kept that are still in use, then the new ones."""
    keys = {prompt_key(text) for text in texts}
    kept = (row for row in (have.prompt_rows() if have else ()) if row["key"] in keys)
    new = (row for unit in units for row in read_stream(staging / f"{unit['key']}.arrow"))
    return itertools.chain(kept, new)
