"""The last step of encoding into an object store, by many workers: staged rows become shards.

No latents pass through the driver. It gets of each shard where its rows lie, and makes the table
of places of these.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import pyarrow as pa

from layerflow.corpus.latents import row_batches
from layerflow.corpus.log import Shard
from layerflow.corpus.remote.writer import RemoteLatentsWriter, put_shard, split
from layerflow.corpus.store import Store
from pipelines.engine.cutting import SHARD, Piece, cut, kept_rows, pieces_of, run_cutting
from pipelines.engine.staging import Parts, Staging, Write, json_part
from pipelines.engine.workers import Pool

PLACES = "places.arrow"


def write_clips(
    writer: RemoteLatentsWriter,
    keys: Sequence[str],
    name: str,
    schema: pa.Schema,
    staging: Staging,
    pool: Pool,
    drop: Mapping[str, Sequence[int]] | None = None,
) -> int:
    """The table of clips from the units' streams ``name``, in order; returns its rows.

    drop: numbers of a unit's rows that are left out. Errors as of ``make_shards``.
    """
    out = f"{writer.store.where}/clips"
    groups = cut(_pieces(keys, name, staging, drop or {}))
    cutting = staging.below("shards")
    make = partial(make_latents_shards, out=out, schema=schema)
    for key, found in run_cutting(groups, make, out, schema, cutting, pool):
        places, first = read_table(cutting.read(key, PLACES)), 0
        for shard in (Shard(**one) for one in found["shards"]):
            writer.take("clips", shard, places.slice(first, shard.rows))
            first += shard.rows or 0
    return writer.rows("clips")


def _pieces(
    keys: Sequence[str], name: str, staging: Staging, drop: Mapping[str, Sequence[int]]
) -> Iterator[Piece]:
    for key in keys:
        about, left_out = staging.record(key)[name], tuple(drop.get(key, ()))
        if about["count"] > len(left_out):
            folder = staging.location(key, "").rstrip("/")
            yield Piece(key, folder, name, about["bytes"], about["sum"], left_out)


def make_latents_shards(payload: Mapping[str, Any], *, out: str, schema: pa.Schema) -> Parts:
    """Write one shard, or as many as large rows fill; the unit commits what is said of them, and
    where their rows lie."""
    pieces, damaged = pieces_of(payload)
    if damaged:
        return damaged
    rows = (row for piece in pieces for batch in kept_rows(piece) for row in batch.to_pylist())
    made = [put_shard(Store(out), part, schema) for part in split(row_batches(rows, schema))]
    said = {"shards": [shard.plain() for shard, _ in made]}
    places = pa.concat_tables([where for _, where in made])
    return {SHARD: json_part(said), PLACES: table_part(places)}


def table_part(table: pa.Table) -> Write:
    """A table as an Arrow stream."""

    def write(file: Any) -> int:
        with pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table.combine_chunks())
        return len(table)

    return write


def read_table(data: bytes) -> pa.Table:
    with pa.ipc.open_stream(pa.py_buffer(data)) as reader:
        return reader.read_all()
