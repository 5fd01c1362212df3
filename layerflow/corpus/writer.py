"""Writing a table: Arrow stream shards and the sidecars by which ``datasets`` opens them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from layerflow.corpus.table import file_sha256

ROWS_PER_BATCH = 4
SHARD_BYTES = 160 << 20


def _feature(kind: pa.DataType) -> Any:
    if pa.types.is_struct(kind):
        return {field.name: _feature(field.type) for field in kind}
    if pa.types.is_list(kind):
        return {"feature": _feature(kind.value_type), "_type": "List"}
    names = {"float": "float32", "double": "float64"}
    return {"dtype": names.get(str(kind), str(kind)), "_type": "Value"}


def write_table(
    folder: Path,
    rows: Iterable[Mapping[str, Any]],
    schema: pa.Schema,
    *,
    shard_bytes: int = SHARD_BYTES,
) -> int:
    """Stream rows into shards that ``datasets.load_from_disk`` opens; returns the row count.

    Deterministic: equal rows give equal files. Writes into ``folder``, which the caller publishes
    by rename. Memory holds one record batch.
    """
    folder.mkdir(parents=True, exist_ok=True)
    batch: list[Mapping[str, Any]] = []
    shards, total, written = 0, 0, 0
    writer: pa.RecordBatchStreamWriter | None = None

    def flush() -> None:
        nonlocal writer, shards, written
        if writer is None:
            writer = pa.ipc.new_stream(str(folder / f"part-{shards:05d}"), schema)
            shards, written = shards + 1, 0
        if batch:
            record = pa.RecordBatch.from_pylist(list(batch), schema=schema)
            writer.write_batch(record)
            written += record.nbytes
            batch.clear()
        if written >= shard_bytes:
            writer.close()
            writer = None

    for row in rows:
        batch.append(row)
        total += 1
        if len(batch) >= ROWS_PER_BATCH:
            flush()
    if batch or shards == 0:
        flush()
    if writer is not None:
        writer.close()
    _write_sidecars(folder, schema, shards)
    return total


def _write_sidecars(folder: Path, schema: pa.Schema, shards: int) -> None:
    names = [f"data-{i:05d}-of-{shards:05d}.arrow" for i in range(shards)]
    digest = hashlib.sha256()
    for index, name in enumerate(names):
        part = folder / f"part-{index:05d}"
        digest.update(file_sha256(part).encode())
        part.rename(folder / name)
    state: dict[str, Any] = {
        "_data_files": [{"filename": name} for name in names],
        "_fingerprint": digest.hexdigest()[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    info = {
        "citation": "",
        "description": "",
        "features": {field.name: _feature(field.type) for field in schema},
        "homepage": "",
        "license": "",
    }
    (folder / "dataset_info.json").write_text(json.dumps(info, indent=2) + "\n")
    (folder / "state.json").write_text(json.dumps(state, indent=2) + "\n")
