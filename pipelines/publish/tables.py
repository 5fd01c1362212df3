"""Corpus rows as Parquet: the same media bytes, typed for ``datasets`` and the Hub's viewer.

Every column of the corpus stays. A media column is ``struct<bytes, path>``, the storage of the
``Video`` and ``Image`` features, with ``decode=False`` in the schema's metadata. Row groups are
small (a reader fetches few megabytes for a row), the page index is written, and pages are cut by
content, so that an edited corpus shares most chunks with the one before.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from layerflow.corpus.columns import COLUMNS
from layerflow.corpus.table import EXTRAS, SCHEMA, Corpus
from layerflow.corpus.validate import stored_sha256
from layerflow.files import replacing
from layerflow.locations import clean_uri

SHARD_BYTES = 300 << 20
SIDE_BY_SIDE_BYTES = 32 << 20
LARGEST_BYTES = 5 << 30
GROUP_ROWS = 8
GROUP_BYTES = 32 << 20
# A page is cut by content after at least 2 MiB: bytes before that need not be hashed.
CHUNKING = {"min_chunk_size": 2 << 20, "max_chunk_size": 4 << 20, "norm_level": 0}
MEDIA = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def table_schema(corpus: Corpus) -> pa.Schema:
    """The corpus' columns that are published: all, but extra ones only where a row fills them."""
    extras = [field for field in EXTRAS if field.name in corpus.schema.names]
    filled = {
        field.name
        for batch in (corpus.batches([field.name for field in extras]) if extras else ())
        for field in extras
        if batch.column(field.name).null_count < batch.num_rows
    }
    return pa.schema([*SCHEMA, *(field for field in extras if field.name in filled)])


def media_columns(schema: pa.Schema) -> list[str]:
    """The columns of a table that hold one media file a row."""
    return [column.name for column in COLUMNS if column.media and column.name in schema.names]


def features_of(kinds: set[str], schema: pa.Schema = SCHEMA) -> Any:
    """The ``datasets.Features`` of the published table: media are ``Image`` where all clips are
    stills, else ``Video`` (a still is then a PNG cell in it)."""
    import datasets

    features = datasets.Features.from_arrow_schema(schema)
    media = datasets.Image if kinds == {"image"} else datasets.Video
    for layer in media_columns(schema):
        features[layer] = media(decode=False)
    return features


@dataclass(frozen=True)
class Shards:
    """The Arrow files of a corpus: the row that each one starts with, and its sha256."""

    firsts: list[int]
    sums: list[str]

    @classmethod
    def of(cls, corpus: Corpus) -> Shards:
        numbers = range(len(corpus.shards))
        rows = [corpus.shards[n].rows or corpus.shard(n).rows for n in numbers]
        sums = [
            shard.sha256 or stored_sha256(Path(corpus.path) / shard.file) for shard in corpus.shards
        ]
        return cls([0, *itertools.accumulate(rows)][:-1], sums)

    def holding(self, rows: np.ndarray) -> list[int]:
        """The numbers of the shards that hold some rows."""
        return np.unique(np.searchsorted(np.asarray(self.firsts), rows, side="right") - 1).tolist()

    def read(self, corpus: Corpus, rows: np.ndarray) -> Iterator[pa.RecordBatch]:
        """Some rows of the corpus (int64, ascending), in order; only batches that hold one."""
        for number in self.holding(rows):
            end = len(corpus) if number + 1 == len(self.firsts) else self.firsts[number + 1]
            inside = rows[np.searchsorted(rows, self.firsts[number]) : np.searchsorted(rows, end)]
            reader = corpus.shard(number)
            places = [reader.place(row) for row in (inside - self.firsts[number]).tolist()]
            for batch, group in itertools.groupby(places, lambda place: place[0]):
                found = corpus.overlay.corrected(reader.batch(batch))
                picked = [place for _, place in group]
                yield found if len(picked) == found.num_rows else found.take(pa.array(picked))


def published(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """A batch with its media cells as ``struct<bytes, path>``; the bytes are not copied."""
    ids, kinds = (batch.column(name).to_pylist() for name in ("id", "kind"))
    stills = [(id, kind == "image") for id, kind in zip(ids, kinds, strict=True)]
    columns = []
    suffixes = {column.name: column.media for column in COLUMNS if column.media}
    for name in schema.names:
        column = batch.column(name)
        if name in suffixes:
            moving = suffixes[name]
            names = [f"{id}.{name}.{'png' if still else moving}" for id, still in stills]
            cells = [pc.cast(column, pa.binary()), pa.array(names, pa.string())]
            empty = pc.is_null(column)
            column = pa.StructArray.from_arrays(cells, fields=list(MEDIA), mask=empty)
        elif name == "origin":
            column = _clean_origin(column)
        columns.append(column)
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _clean_origin(column: pa.Array) -> pa.Array:
    """The ``origin`` column; URLs of older corpora without credentials and signatures."""
    cells = column.to_pylist()
    cleaned = [cell and {**cell, "uri": clean_uri(cell["uri"] or "")} for cell in cells]
    for cell in filter(None, cleaned):
        cell["parents"] = cell["parents"] and [clean_uri(parent) for parent in cell["parents"]]
    return column if cleaned == cells else pa.array(cleaned, column.type)


def shard_limit(total: int, most: int = SHARD_BYTES) -> int:
    """Bytes of a shard for a corpus of ``total`` bytes: four shards where ``most`` gives fewer,
    since they are written side by side, but none below 32 MiB for that; of more than 300 GB about
    a thousand, up to 5 GiB each."""
    if total > 1000 * SHARD_BYTES:
        most = max(most, min(LARGEST_BYTES, total // 1000))
    return min(most, max(SIDE_BY_SIDE_BYTES, -(-total // 4)))


def shard_rows(sizes: np.ndarray, limit: int = SHARD_BYTES) -> list[int]:
    """How many rows go into each shard; sizes: bytes of each row. One empty shard for no rows."""
    if not len(sizes):
        return [0]
    ends = np.cumsum(sizes)
    counts: list[int] = []
    row = held = 0
    while row < len(ends):
        end = max(row + 1, int(np.searchsorted(ends, held + limit, side="right")))
        counts.append(end - row)
        row, held = end, int(ends[end - 1])
    return counts


def write_parquet(
    path: Path, schema: pa.Schema, batches: Iterator[pa.RecordBatch], media: Sequence[str]
) -> None:
    """Write one Parquet file, atomically; memory holds one row group.

    media: names of the struct columns that hold encoded media: not compressed again, without
    dictionaries and statistics.
    """
    leaves = [f"{name}.bytes" for name in media]
    every = _leaves(schema)
    plain = [leaf for leaf in every if leaf not in leaves]
    settings: dict[str, Any] = {
        "compression": {leaf: "none" if leaf in leaves else "zstd" for leaf in every},
        "use_dictionary": plain,
        "write_statistics": plain,
        "write_page_index": True,
        "write_page_checksum": True,
        "use_content_defined_chunking": CHUNKING,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, pq.ParquetWriter(temporary, schema, **settings) as writer:
        group: list[pa.RecordBatch] = []
        size = 0
        for piece in (batch.slice(i, 1) for batch in batches for i in range(batch.num_rows)):
            group.append(piece)
            size += piece.nbytes
            if len(group) >= GROUP_ROWS or size >= GROUP_BYTES:
                writer.write_table(pa.Table.from_batches(group, schema))
                group, size = [], 0
        if group:
            writer.write_table(pa.Table.from_batches(group, schema))


def _leaves(schema: pa.Schema) -> list[str]:
    """Paths of the Parquet leaf columns."""

    def walk(name: str, kind: pa.DataType) -> Iterator[str]:
        if pa.types.is_struct(kind):
            for field in kind:
                yield from walk(f"{name}.{field.name}", field.type)
        elif pa.types.is_list(kind):
            yield from walk(f"{name}.list.element", kind.value_type)
        else:
            yield name

    return [leaf for field in schema for leaf in walk(field.name, field.type)]
