"""The files of a dataset repository: planned, checked, and made one after the other."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from layerflow.corpus.splits import Assignment, assign, parse_fractions
from layerflow.corpus.stats import cell_bytes, read_batches, small_rows, stats
from layerflow.corpus.table import REJECTED_SCHEMA, Corpus
from layerflow.corpus.validate import check_rows, refuse_unsound, refuse_unsound_rows
from layerflow.files import write_bytes
from pipelines.audit import audit
from pipelines.publish.beside import described
from pipelines.publish.card import (
    PREVIEW,
    REJECTED,
    CardFacts,
    ConfigInfo,
    make_card,
)
from pipelines.publish.licences import LicenceReport, check_allowed, review
from pipelines.publish.preview import (
    PREVIEWS_PER_SHARD,
    preview_batches,
    preview_features,
    preview_schema,
)
from pipelines.publish.tables import (
    SHARD_BYTES,
    Shards,
    features_of,
    media_columns,
    published,
    shard_limit,
    shard_rows,
    table_schema,
    write_parquet,
)
from pipelines.view.page import make_sheet

FORMAT_VERSION = 3
REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
CONFIG_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,63}")
RMS_SAMPLE = 24


@dataclass(frozen=True)
class PublishOptions:
    """What to publish and where. split: one name, or ``train=0.9,test=0.1``. licence: of the whole
    repository, for its card. Raises ValueError for names that the Hub does not take."""

    repo_id: str
    private: bool = True
    config: str = "default"
    split: str = "train"
    seed: int = 0
    revision: str | None = None
    licence: str | None = None
    acknowledge_licences: bool = False
    with_rejected: bool = False

    def __post_init__(self) -> None:
        if not REPO_ID.fullmatch(self.repo_id) or ".." in self.repo_id or "--" in self.repo_id:
            raise ValueError(f"{self.repo_id!r} is no repository id; give NAMESPACE/NAME")
        if not CONFIG_NAME.fullmatch(self.config) or self.config in (PREVIEW, REJECTED, "data"):
            raise ValueError(f"{self.config!r} cannot be the name of a configuration")
        parse_fractions(self.split)

    def folders(self) -> tuple[str, str, str]:
        """Folders of the corpus, its previews and its rejected table; the configurations have the
        same names, but for ``default``."""
        if self.config == "default":
            return "data", PREVIEW, REJECTED
        return self.config, f"{self.config}-{PREVIEW}", f"{self.config}-{REJECTED}"


@dataclass(frozen=True)
class PublishPlan:
    """A checked corpus with the split of every row and its licences."""

    corpus: Corpus
    options: PublishOptions
    splits: dict[str, np.ndarray]
    assignment: Assignment
    licences: LicenceReport
    workers: int

    @property
    def key(self) -> str:
        """Names this publication: the corpus' checksum, the options, the format."""
        state = self.corpus.identity()
        parts = [state, asdict(self.options), FORMAT_VERSION, pa.__version__]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def make_plan(path: Path, options: PublishOptions, *, workers: int | None = None) -> PublishPlan:
    """Check the corpus and the licences and assign the splits; decodes no media."""
    processes = os.cpu_count() or 1 if workers is None else workers
    corpus = Corpus.open(path)
    refuse_unsound(corpus)
    refuse_unsound_rows(corpus, workers=processes)
    if not len(corpus):
        raise ValueError(f"{path} holds no clip to publish")
    rows = list(small_rows(corpus))
    licences = review(rows)
    check_allowed(licences, private=options.private, acknowledged=options.acknowledge_licences)
    fractions = parse_fractions(options.split)
    assignment = assign(rows, fractions, options.seed)
    names = np.asarray(assignment.names)
    splits = {name: np.flatnonzero(names == name) for name in fractions}
    return PublishPlan(corpus, options, splits, assignment, licences, processes)


def make_files(
    plan: PublishPlan, folder: Path, *, existing_card: str | None = None, quiet: bool = False
) -> Iterator[tuple[str, bool]]:
    """Make the repository's files in ``folder``, one after the other; yields (name, large) when one
    is complete. A large one may be taken away at once. Complete files are not made again."""
    counted = stats(plan.corpus)
    data, preview, rejected = plan.options.folders()
    features = features_of(set(counted["kinds"]), table_schema(plan.corpus))
    configs = [ConfigInfo(plan.options.config, data, features, {})]
    yield from data_files(plan, folder, configs[0])
    schema = preview_schema(list(counted["scores"]))
    configs.append(ConfigInfo(preview, preview, preview_features(schema), {}))
    yield from _previews(plan, folder, configs[1], schema, quiet)
    if plan.options.with_rejected and counted["rejected"]["rows"]:
        import datasets

        features = datasets.Features.from_arrow_schema(REJECTED_SCHEMA)
        configs.append(ConfigInfo(rejected, rejected, features, {}))
        yield from _rejected(plan, folder, configs[2])
    sheet = make_sheet(Path(plan.corpus.address), len(plan.corpus), plan.workers)
    if sheet:
        yield _put(folder, "contact_sheet.png", sheet), True
    yield _put(folder, "stats.json", json.dumps(counted, indent=2).encode()), False
    facts = CardFacts(
        plan.options.repo_id,
        configs,
        counted,
        plan.corpus.info,
        plan.licences,
        plan.options.licence,
        plan.assignment.shared_backgrounds,
        _encoded_rms(plan),
        audit(plan.corpus),
    )
    yield from (
        (_put(folder, name, data), large) for name, data, large in described(plan.corpus, facts)
    )
    yield _put(folder, "README.md", make_card(facts, existing_card).encode()), False


def _put(folder: Path, name: str, data: bytes) -> str:
    write_bytes(folder / name, data)
    return name


def data_files(plan: PublishPlan, folder: Path, config: ConfigInfo) -> Iterator[tuple[str, bool]]:
    """Convert the corpus to its Parquet shards; yields (name, True) as each is complete."""
    schema = config.features.arrow_schema
    sizes = cell_bytes(plan.corpus).sum(axis=1)
    shards = Shards.of(plan.corpus)
    jobs: list[tuple[str, str, np.ndarray]] = []
    limit = shard_limit(int(sizes.sum()), SHARD_BYTES)
    for split, indices in plan.splits.items():
        counts = shard_rows(sizes[indices], limit)
        pieces = np.split(indices, np.cumsum(counts)[:-1])
        names = _shard_names(config.folder, split, len(counts))
        jobs += [(split, name, piece) for name, piece in zip(names, pieces, strict=True)]

    def convert(job: tuple[str, str, np.ndarray]) -> int:
        _, name, piece = job
        if not (folder / name).is_file():
            batches = (published(batch, schema) for batch in shards.read(piece))
            write_parquet(folder / name, schema, batches, media_columns(schema))
        return (folder / name).stat().st_size

    for (split, name, piece), size in _side_by_side(jobs, convert):
        held = int(sizes[piece].sum())
        _count(config, split, len(piece), held, size)
        yield name, True


def _side_by_side(jobs: list[Any], work: Callable[[Any], int]) -> Iterator[tuple[Any, int]]:
    """Jobs with their results, in order, as many at a time as there are CPUs (at most 4) and never
    further ahead, so that finished files do not pile up."""
    width = min(4, os.cpu_count() or 1)
    ahead: deque[tuple[Any, Future[int]]] = deque()
    with ThreadPoolExecutor(width) as pool:
        for job in jobs:
            ahead.append((job, pool.submit(work, job)))
            if len(ahead) >= width:
                first, result = ahead.popleft()
                yield first, result.result()
        for first, result in ahead:
            yield first, result.result()


def _shard_names(folder: str, split: str, count: int) -> list[str]:
    return [f"{folder}/{split}-{i:05d}-of-{count:05d}.parquet" for i in range(count)]


def _count(config: ConfigInfo, split: str, rows: int, held: int, size: int) -> None:
    before = config.splits.get(split, (0, 0, 0))
    config.splits[split] = (before[0] + rows, before[1] + held, before[2] + size)


def _previews(
    plan: PublishPlan, folder: Path, config: ConfigInfo, schema: pa.Schema, quiet: bool
) -> Iterator[tuple[str, bool]]:
    from rich.progress import Progress

    typed = config.features.arrow_schema
    with Progress(disable=quiet, transient=True) as progress:
        task = progress.add_task("previews", total=len(plan.corpus))
        for split, indices in plan.splits.items():
            pieces = np.array_split(indices, -(-len(indices) // PREVIEWS_PER_SHARD))
            names = _shard_names(config.folder, split, len(pieces))
            for name, piece in zip(names, pieces, strict=True):
                if not (folder / name).is_file():
                    rows = [int(index) for index in piece]

                    def batches(rows: list[int] = rows) -> Iterator[pa.RecordBatch]:
                        for batch in preview_batches(plan.corpus, rows, schema, plan.workers):
                            progress.advance(task)
                            yield pa.RecordBatch.from_arrays(batch.columns, schema=typed)

                    write_parquet(folder / name, typed, batches(), ["preview"])
                size = (folder / name).stat().st_size
                held = pq.ParquetFile(folder / name).metadata
                memory = sum(held.row_group(i).total_byte_size for i in range(held.num_row_groups))
                _count(config, split, len(piece), memory, size)
                yield name, True


def _rejected(plan: PublishPlan, folder: Path, config: ConfigInfo) -> Iterator[tuple[str, bool]]:
    name = _shard_names(config.folder, "train", 1)[0]
    schema = config.features.arrow_schema
    table = plan.corpus.rejected_table()
    assert table is not None  # it has rows
    rows = held = 0

    def batches() -> Iterator[pa.RecordBatch]:
        nonlocal rows, held
        for batch in read_batches(table, REJECTED_SCHEMA.names):
            rows, held = rows + batch.num_rows, held + batch.nbytes
            yield pa.RecordBatch.from_arrays(batch.columns, schema=schema)

    write_parquet(folder / name, schema, batches(), [])
    _count(config, "train", rows, held, (folder / name).stat().st_size)
    yield name, True


def _encoded_rms(plan: PublishPlan) -> dict[str, float]:
    """Mean rms between blended and recomposition, as decoded, by kind, of an even sample."""
    rows = len(plan.corpus)
    sample = range(0, rows, max(1, rows // RMS_SAMPLE))
    found: dict[str, list[float]] = {}
    for report in check_rows(plan.corpus, workers=plan.workers, indices=sample):
        if report.encoded_rms is not None:
            found.setdefault(report.kind, []).append(report.encoded_rms)
    return {kind: sum(values) / len(values) for kind, values in sorted(found.items())}
