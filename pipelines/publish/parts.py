"""The large files of a publication made: rows as Parquet, and their previews, part by part."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from layerflow.corpus import log
from layerflow.corpus.log import Version
from layerflow.corpus.store import Store
from layerflow.corpus.table import Corpus
from layerflow.corpus.writer import write_shard
from pipelines.publish.preview import OldPreviews, preview_batches
from pipelines.publish.tables import Shards, media_columns, published, write_parquet

File = tuple[str, np.ndarray]
"""The name of a file and the places of its rows in the corpus, int64, ascending."""


@dataclass(frozen=True)
class Making:
    """Of what and where files are made. workers: processes that make previews."""

    corpus: Corpus
    shards: Shards
    folder: Path
    workers: int


def localised(corpus: Corpus, shards: Shards, rows: np.ndarray, folder: Path) -> Corpus:
    """Some rows (int64, ascending) of a corpus in an object store as one in a folder here."""
    folder.mkdir(parents=True)
    store = Store(folder)
    shard = write_shard(store, shards.read(corpus, rows), corpus.schema)
    log.commit(store, Version(1, "publish", (shard,)))
    return Corpus.open(folder)


def make_data(
    making: Making, files: Sequence[File], schema: pa.Schema
) -> Iterator[tuple[str, int]]:
    """Convert rows of the corpus to Parquet; yields (name, bytes in memory) as each is complete."""

    def convert(file: File) -> int:
        name, rows = file
        if not (making.folder / name).is_file():
            corpus = Corpus.open(making.corpus.address)  # readers are of one thread
            batches = (published(batch, schema) for batch in making.shards.read(corpus, rows))
            write_parquet(making.folder / name, schema, batches, media_columns(schema))
        return memory_of(making.folder / name)

    for (name, _), held in _side_by_side(files, convert):
        yield name, held


def make_previews(
    making: Making,
    files: Sequence[File],
    schema: pa.Schema,
    old: Callable[[str], Path | None] | None,
    quiet: bool,
) -> Iterator[tuple[str, int]]:
    """Make preview files; yields (name, bytes in memory). old: the file of this name
    as it is published now; what it shows is not encoded again."""
    from rich.progress import Progress

    with Progress(disable=quiet, transient=True) as progress:
        task = progress.add_task("previews", total=sum(len(rows) for _, rows in files))
        for name, rows in files:
            path = making.folder / name
            if not path.is_file():
                earlier = old(name) if old is not None else None
                found = OldPreviews(earlier) if earlier is not None else None
                batches = preview_batches(
                    making.corpus, rows.tolist(), schema, making.workers, found
                )
                write_parquet(path, schema, _advancing(batches, progress, task), ["preview"])
            yield name, memory_of(path)


def _advancing(
    batches: Iterator[pa.RecordBatch], progress: Any, task: Any
) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        progress.advance(task)
        yield batch


def memory_of(path: Path) -> int:
    """Bytes of the rows of a Parquet file in memory."""
    about = pq.ParquetFile(path).metadata
    return sum(about.row_group(group).total_byte_size for group in range(about.num_row_groups))


def _side_by_side(jobs: Sequence[File], work: Callable[[File], int]) -> Iterator[tuple[File, int]]:
    """Jobs with their results, in order, as many at a time as there are CPUs (at most 4) and never
    further ahead, so that finished files do not pile up."""
    width = min(4, os.cpu_count() or 1)
    ahead: deque[tuple[File, Future[int]]] = deque()
    with ThreadPoolExecutor(width) as pool:
        for job in jobs:
            ahead.append((job, pool.submit(work, job)))
            if len(ahead) >= width:
                first, result = ahead.popleft()
                yield first, result.result()
        for first, result in ahead:
            yield first, result.result()
