"""A publication planned: which rows lie in which file, what is there already, what is made."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from layerflow.corpus.splits import Assignment, assign, parse_fractions
from layerflow.corpus.stats import (
    cell_bytes,
    id_number,
    id_numbers,
    read_batches,
    small_rows,
    stats,
)
from layerflow.corpus.table import REJECTED_SCHEMA, Corpus
from layerflow.corpus.validate import (
    check_rows,
    refuse_unsound,
    refuse_unsound_rows,
    refuse_unsound_shards,
)
from layerflow.files import write_bytes
from layerflow.media.frame_rate import evenly
from pipelines.audit import audit
from pipelines.publish.beside import described
from pipelines.publish.card import (
    PREVIEW,
    REJECTED,
    CardFacts,
    ConfigInfo,
    make_card,
)
from pipelines.publish.layout import (
    Part,
    Publication,
    Sent,
    file_key,
    file_name,
    lay_out,
    record_names,
)
from pipelines.publish.licences import LicenceReport, check_allowed, review
from pipelines.publish.parts import Making, localised, make_data, make_previews
from pipelines.publish.preview import preview_features, preview_schema
from pipelines.publish.tables import (
    SHARD_BYTES,
    Shards,
    features_of,
    shard_limit,
    table_schema,
    write_parquet,
)
from pipelines.view.page import make_sheet

FORMAT_VERSION = 4
REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
CONFIG_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,63}")
TAG = re.compile(r"[A-Za-z0-9][\w.-]{0,99}")
RMS_SAMPLE = 24
SMALL = ("stats.json", "LICENSE.md", "README.md")


@dataclass(frozen=True)
class PublishOptions:
    """What to publish and where. split: one name, or ``train=0.9,test=0.1``. licence: of the whole
    repository, for its card. tag: the name of this version; None: the next ``vN``.
    Raises ValueError for names that the Hub does not take."""

    repo_id: str
    private: bool = True
    config: str = "default"
    split: str = "train"
    seed: int = 0
    revision: str | None = None
    tag: str | None = None
    licence: str | None = None
    acknowledge_licences: bool = False
    with_rejected: bool = False

    def __post_init__(self) -> None:
        if not REPO_ID.fullmatch(self.repo_id) or ".." in self.repo_id or "--" in self.repo_id:
            raise ValueError(f"{self.repo_id!r} is no repository id; give NAMESPACE/NAME")
        if not CONFIG_NAME.fullmatch(self.config) or self.config in (PREVIEW, REJECTED, "data"):
            raise ValueError(f"{self.config!r} cannot be the name of a configuration")
        if self.tag is not None and not TAG.fullmatch(self.tag):
            raise ValueError(f"{self.tag!r} cannot be the name of a tag")
        parse_fractions(self.split)

    def folders(self) -> tuple[str, str, str]:
        """Folders of the corpus, its previews and its rejected table; the configurations have the
        same names, but for ``default``."""
        if self.config == "default":
            return "data", PREVIEW, REJECTED
        return self.config, f"{self.config}-{PREVIEW}", f"{self.config}-{REJECTED}"


@dataclass(frozen=True)
class PublishPlan:
    """A corpus with the split of every row, its licences, and the parts that it is published in.

    before: what the repository holds of this configuration now. stats: of the corpus.
    """

    corpus: Corpus
    options: PublishOptions
    parts: list[Part]
    assignment: Assignment
    licences: LicenceReport
    workers: int
    before: Publication
    stats: Mapping[str, Any]

    @cached_property
    def key(self) -> str:
        """Names this publication: the corpus' checksum, the options, the format, what there was."""
        state = self.corpus.identity()
        parts = [state, asdict(self.options), FORMAT_VERSION, pa.__version__]
        before = hashlib.sha256(self.before.text()).hexdigest()
        return hashlib.sha256(json.dumps([*parts, before]).encode()).hexdigest()[:12]

    @cached_property
    def shards(self) -> Shards:
        return Shards.of(self.corpus)

    @cached_property
    def features(self) -> tuple[Any, Any]:
        """``datasets.Features`` of the corpus and of its previews."""
        data = features_of(set(self.stats["kinds"]), table_schema(self.corpus))
        return data, preview_features(preview_schema(list(self.stats["scores"])))

    def splits(self) -> dict[str, int]:
        """Rows by split, in order."""
        counts = dict.fromkeys(parse_fractions(self.options.split), 0)
        for part in self.parts:
            counts[part.split] += len(part.ids)
        return counts

    def name(self, part: Part, preview: bool = False) -> str:
        folder = self.options.folders()[1 if preview else 0]
        return file_name(folder, part.split, part.number, len(self.splits()))

    @cached_property
    def keys(self) -> dict[str, str]:
        """The key of every file of the parts, by its name."""
        values = self.corpus.overlay.values
        corrected = {id_number(id): new for id, new in values.items()}
        numbers = np.asarray(sorted(corrected), np.uint64)
        found = {}
        for preview, features in enumerate(self.features):
            schema = features.arrow_schema
            about = [FORMAT_VERSION, preview, str(schema), str(schema.metadata)]
            for part in self.parts:
                new = {str(n): corrected[n] for n in np.intersect1d(part.ids, numbers).tolist()}
                firsts, sums = self.shards.firsts, self.shards.sums
                key = file_key(part.rows, firsts, sums, new, json.dumps(about))
                found[self.name(part, bool(preview))] = key
        return found


def make_plan(
    path: Path,
    options: PublishOptions,
    *,
    workers: int | None = None,
    before: Publication | None = None,
) -> PublishPlan:
    """Check the licences and assign splits and files; decodes no media and reads few.

    before: what is published; of a corpus of which nothing is, all is checked here.
    """
    before = before or Publication()
    processes = os.cpu_count() or 1 if workers is None else workers
    corpus = Corpus.open(path)
    if not before.parts:
        refuse_unsound(corpus)
        refuse_unsound_rows(corpus, workers=processes)
    if not len(corpus):
        raise ValueError(f"{path} holds no clip to publish")
    return plan_of(corpus, options, processes, before)


def plan_of(
    corpus: Corpus, options: PublishOptions, workers: int, before: Publication
) -> PublishPlan:
    """``make_plan`` of a corpus that is sound."""
    licences = review(_origins(corpus))
    check_allowed(licences, private=options.private, acknowledged=options.acknowledge_licences)
    ids = id_numbers(corpus)
    fractions = parse_fractions(options.split)
    rows = small_rows(corpus) if len(fractions) > 1 else ({} for _ in ids)  # of one, none is read
    assignment = assign(rows, fractions, options.seed, _kept(ids, before))
    numbers = {name: number for number, name in enumerate(fractions)}
    codes = np.fromiter((numbers[name] for name in assignment.names), np.int16, len(ids))
    splits = {name: np.flatnonzero(codes == number) for name, number in numbers.items()}
    sizes = cell_bytes(corpus).sum(axis=1, dtype=np.int64)
    limit = shard_limit(int(sizes.sum()), SHARD_BYTES)
    parts = lay_out(ids, splits, sizes, limit, before)
    return PublishPlan(corpus, options, parts, assignment, licences, workers, before, stats(corpus))


def _origins(corpus: Corpus) -> Iterator[dict[str, Any]]:
    """Every row, with its origin alone."""
    for batch in read_batches(corpus, ["origin"]):
        yield from batch.to_pylist()


def _kept(ids: np.ndarray, before: Publication) -> list[str | None] | None:
    """The split in which each row is published already."""
    if len({part.split for part in before.parts}) < 2:
        return None
    held = {number: part.split for part in before.parts for number in part.ids.tolist()}
    return [held.get(number) for number in ids.tolist()]


@dataclass(frozen=True)
class Made:
    """A file that was made, in the working folder; it may be taken away when it is sent."""

    name: str
    key: str = ""
    held: int = 0


def make_parts(
    plan: PublishPlan,
    folder: Path,
    known: Mapping[str, Sent],
    *,
    old: Callable[[str], Path | None] | None = None,
    quiet: bool = False,
) -> Iterator[Made]:
    """Make the files of all parts that ``known`` does not hold with the same key, one by one.

    old: fetches a preview file by its name as it is published now. Files that are complete in
    ``folder`` are not made again. Raises ValueError for rows that cannot be published.
    """
    missing = {name for name, key in plan.keys.items() if known.get(name, Sent(0, "")).key != key}
    data = [part for part in plan.parts if plan.name(part) in missing]
    previews = [part for part in plan.parts if plan.name(part, True) in missing]
    if plan.before.parts:
        _refuse_unsound(plan, data)
    making = Making(plan.corpus, plan.shards, folder, plan.workers)
    schema, shown = (features.arrow_schema for features in plan.features)
    for name, held in make_data(making, [(plan.name(p), p.rows) for p in data], schema):
        yield Made(name, plan.keys[name], held)
    files = [(plan.name(p, True), p.rows) for p in previews]
    for name, held in make_previews(making, files, shown, old, quiet):
        yield Made(name, plan.keys[name], held)


def _refuse_unsound(plan: PublishPlan, parts: list[Part]) -> None:
    """What ``make_plan`` does for all rows, of those that are published anew."""
    if not parts:
        return
    rows = np.unique(np.concatenate([part.rows for part in parts]))
    refuse_unsound_shards(plan.corpus, plan.shards.holding(rows))
    for report in check_rows(
        plan.corpus, workers=plan.workers, indices=rows.tolist(), decode=False
    ):
        for problem in report.problems:
            raise ValueError(f"{plan.corpus.path} cannot be used: {problem}")


def make_rest(
    plan: PublishPlan, folder: Path, sent: Mapping[str, Sent], *, existing_card: str | None = None
) -> Iterator[Made]:
    """The files that are of no part, made anew each time: rejected rows, contact sheet, statistics,
    licences, card. sent: the files of all parts."""
    configs = list(_configs(plan, sent))
    rejected = plan.options.folders()[2]
    if plan.options.with_rejected and plan.stats["rejected"]["rows"]:
        made, config = _rejected(plan, folder, rejected)
        configs.append(config)
        yield made
    with looked_at(plan, RMS_SAMPLE) as seen:
        sheet = make_sheet(Path(seen.corpus.address), len(seen.corpus), plan.workers)
        rms = _encoded_rms(seen)
    if sheet:
        yield _put(folder, "contact_sheet.png", sheet)
    yield _put(folder, "stats.json", json.dumps(plan.stats, indent=2).encode())
    facts = CardFacts(
        plan.options.repo_id,
        configs,
        plan.stats,
        plan.corpus.info,
        plan.licences,
        plan.options.licence,
        plan.assignment.shared_backgrounds,
        rms,
        audit(plan.corpus),
    )
    yield from (_put(folder, name, data) for name, data in described(plan.corpus, facts))
    yield _put(folder, "README.md", make_card(facts, existing_card).encode())


def make_record(plan: PublishPlan, folder: Path, sent: Mapping[str, Sent], tag: str) -> Publication:
    """The record of this publication, which goes with it; sent: all files but those of it."""
    version = plan.corpus.version
    record = Publication(
        tuple(plan.parts), dict(sorted(sent.items())), tag, version.number if version else None
    )
    text, ids = record_names(plan.options.config)
    _put(folder, text, record.text())
    _put(folder, ids, record.id_bytes())
    return record


def _put(folder: Path, name: str, data: bytes) -> Made:
    write_bytes(folder / name, data)
    return Made(name)


def _configs(plan: PublishPlan, sent: Mapping[str, Sent]) -> Iterator[ConfigInfo]:
    names = plan.options.config, plan.options.folders()[1]
    for preview, (name, features) in enumerate(zip(names, plan.features, strict=True)):
        splits: dict[str, tuple[int, int, int]] = {}
        files: dict[str, list[str]] = {}
        for part in plan.parts:
            file = plan.name(part, bool(preview))
            rows, held, size = splits.get(part.split, (0, 0, 0))
            of = sent[file]
            splits[part.split] = rows + len(part.ids), held + of.held, size + of.size
            files.setdefault(part.split, []).append(file)
        yield ConfigInfo(name, plan.options.folders()[preview], features, splits, files)


def _rejected(plan: PublishPlan, folder: Path, below: str) -> tuple[Made, ConfigInfo]:
    import datasets

    features = datasets.Features.from_arrow_schema(REJECTED_SCHEMA)
    schema, name = features.arrow_schema, file_name(below, "train", 0)
    table = plan.corpus.rejected_table()
    assert table is not None  # it has rows
    rows = held = 0

    def batches() -> Iterator[pa.RecordBatch]:
        nonlocal rows, held
        for batch in read_batches(table, REJECTED_SCHEMA.names):
            rows, held = rows + batch.num_rows, held + batch.nbytes
            yield pa.RecordBatch.from_arrays(batch.columns, schema=schema)

    write_parquet(folder / name, schema, batches(), [])
    size = (folder / name).stat().st_size
    splits = {"train": (rows, held, size)}
    return Made(name, held=held), ConfigInfo(below, below, features, splits, {"train": [name]})


@contextmanager
def looked_at(plan: PublishPlan, most: int) -> Iterator[PublishPlan]:
    """The plan, of a corpus on this disk: of one in an object store ``most`` of its rows, evenly
    chosen."""
    if plan.corpus.store.local is not None:
        yield plan
        return
    rows = np.asarray(evenly(len(plan.corpus), most))
    with tempfile.TemporaryDirectory(prefix="layerflow-publish-") as place:
        corpus = Corpus.open(plan.corpus.address)
        yield replace(plan, corpus=localised(corpus, plan.shards, rows, Path(place) / "rows"))


def _encoded_rms(plan: PublishPlan) -> dict[str, float]:
    """Mean rms between blended and recomposition, as decoded, by kind, of an even sample."""
    rows = len(plan.corpus)
    sample = range(0, rows, max(1, rows // RMS_SAMPLE))
    found: dict[str, list[float]] = {}
    for report in check_rows(plan.corpus, workers=plan.workers, indices=sample):
        if report.encoded_rms is not None:
            found.setdefault(report.kind, []).append(report.encoded_rms)
    return {kind: sum(values) / len(values) for kind, values in sorted(found.items())}
