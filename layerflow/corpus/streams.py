"""Arrow IPC streams: written whole or not at all, read memory-mapped."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from layerflow.corpus.shards import read_shard

BATCH_BYTES = 1 << 20  # a record batch of many small rows or of one large row


def write_stream(path: Path, rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> int:
    """Write rows as one Arrow stream, complete or not at all; returns their number."""
    temporary = path.with_name(path.name + ".tmp")
    count = 0
    with temporary.open("wb") as file, pa.ipc.new_stream(file, schema) as writer:
        for batch in batched(rows, schema):
            writer.write_batch(batch)
            count += batch.num_rows
        writer.close()
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    return count


def read_stream(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of one Arrow stream. ValueError if the file is damaged."""
    for batch in open_stream(path):
        for index in range(batch.num_rows):
            yield batch.slice(index, 1).to_pylist()[0]


def open_stream(path: Path) -> list[pa.RecordBatch]:
    """The record batches of one Arrow stream, memory-mapped. ValueError if it is damaged."""
    try:
        return list(read_shard(path))
    except ValueError as error:
        raise ValueError(f"{error}; encode again") from error


def batched(rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Rows as record batches of about `BATCH_BYTES`."""
    waiting: list[Mapping[str, Any]] = []
    size = 0
    for row in rows:
        waiting.append(row)
        size += sum(len(value) for value in row.values() if isinstance(value, bytes))
        if size >= BATCH_BYTES:
            yield pa.RecordBatch.from_pylist(waiting, schema=schema)
            waiting, size = [], 0
    if waiting:
        yield pa.RecordBatch.from_pylist(waiting, schema=schema)
