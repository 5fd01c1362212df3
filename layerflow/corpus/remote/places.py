"""Where the record batches of a latents folder lie: a small table beside its shards.

With it a row in an object store is one read of one range, and opening a folder reads no media. A
folder without one, of an older toolkit, is walked from head to head instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from layerflow.corpus.shards import Entry, ShardReader
from layerflow.corpus.store import Store

PLACES = (
    "places"  # in an index: table -> the file with its places, where that has a name of its own
)
ROWS = 16384  # of a batch of the table
LIES = [("shard", pa.int32()), ("head", pa.int64()), ("body", pa.int64()), ("end", pa.int64())]


def places_file(table: str) -> str:
    """Name of the table of places of ``clips`` or ``prompts``."""
    return f"{table}.places.arrow"


def small_columns(schema: pa.Schema) -> list[str]:
    """The columns without media."""
    return [field.name for field in schema if not pa.types.is_large_binary(field.type)]


def write_places(folder: Path, table: str, shards: Sequence[str], schema: pa.Schema) -> None:
    """Write the table of places of shards that are complete."""
    write_table_of(folder / places_file(table), places_of(Store(folder), shards, schema))


def write_table_of(target: Path, rows: pa.Table) -> None:
    """Write a table of places into a file."""
    with pa.OSFile(str(target), "wb") as file, pa.ipc.new_stream(file, rows.schema) as writer:
        writer.write_table(rows.combine_chunks(), max_chunksize=ROWS)


def read_places(store: Store, name: str, shards: Sequence[str], schema: pa.Schema) -> pa.Table:
    """The small columns of every row in order, with its batch's place (``LIES``).

    name: of the table's file. Raises ValueError for a damaged one, and for one of other columns.
    """
    try:
        data = store.read(name)
    except FileNotFoundError:
        return places_of(store, shards, schema)
    reader = ShardReader(_Held(store, data), name)
    if not reader.schema.equals(_schema(schema)):
        raise ValueError(f"{store}: {name} has other columns; encode again")
    return pa.Table.from_batches(reader.batches(), reader.schema)


class _Held(Store):
    """A file that was read whole."""

    def __init__(self, store: Store, data: bytes) -> None:
        super().__init__(store.where)
        self.local, self._data = None, data

    def read(self, name: str, start: int | None = None, end: int | None = None) -> bytes:
        return self._data[start:end]


def places_of(store: Store, shards: Sequence[str], schema: pa.Schema, first: int = 0) -> pa.Table:
    """``read_places`` of shards alone, walked from head to head. first: number of the first one."""
    return pa.Table.from_batches(_walked(store, shards, schema, first), _schema(schema))


def _walked(
    store: Store, shards: Sequence[str], schema: pa.Schema, first: int
) -> Iterator[pa.RecordBatch]:
    names = small_columns(schema)
    for number, name in enumerate(shards, first):
        reader = ShardReader(store, name)
        for at, entry in enumerate(reader.entries):
            small = reader.batch(at, names)
            lies = (number, entry.head, entry.body, entry.end)
            columns = [
                pa.repeat(pa.scalar(v, k), entry.rows) for v, (_, k) in zip(lies, LIES, strict=True)
            ]
            yield pa.RecordBatch.from_arrays([*small.columns, *columns], schema=_schema(schema))


def _schema(schema: pa.Schema) -> pa.Schema:
    return pa.schema([*(schema.field(name) for name in small_columns(schema)), *LIES])


def entries_of(places: pa.Table) -> list[tuple[int, Entry]]:
    """The batches of a table of places, in order: number of the shard, and the entry.

    Raises ValueError for places that no shard can have.
    """
    columns: list[list[Any]] = [places.column(name).to_pylist() for name, _ in LIES]
    found: list[tuple[int, Entry]] = []
    first, last = 0, (-1, -1)
    for row, (shard, head, body, end) in enumerate(zip(*columns, strict=True)):
        if not (shard >= 0 and 0 <= head < body <= end):
            raise ValueError(f"a table of places says {(shard, head, body, end)}")
        if (shard, head) != last:
            found.append((shard, Entry(head, body, end, 0, row)))
            first, last = row, (shard, head)
        shard, entry = found[-1]
        found[-1] = shard, Entry(entry.head, entry.body, entry.end, row - first + 1, entry.first)
    return found
