"""Writing a table: Arrow stream shards and the sidecars by which ``datasets`` opens them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from layerflow.corpus.table import file_sha256
from layerflow.files import publish_file

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
    when it is complete. Memory holds one record batch.
    """
    folder.mkdir(parents=True, exist_ok=True)
    source = iter(rows)
    groups = iter(lambda: list(islice(source, ROWS_PER_BATCH)), [])
    batches = (pa.RecordBatch.from_pylist(group, schema=schema) for group in groups)

    def part(number: int) -> Path:
        return folder / f"part-{number:05d}"

    shards, total = write_shards(batches, schema, part, shard_bytes)
    if not shards:
        pa.ipc.new_stream(str(part(0)), schema).close()
    names = [f"data-{i:05d}-of-{max(shards, 1):05d}.arrow" for i in range(max(shards, 1))]
    digest = hashlib.sha256()
    for number, name in enumerate(names):
        digest.update(file_sha256(part(number)).encode())
        publish_file(part(number), folder / name)
    _write_sidecars(folder, schema, names, digest.hexdigest()[:16])
    return total


def write_shards(
    batches: Iterable[pa.RecordBatch],
    schema: pa.Schema,
    place: Callable[[int], Path],
    shard_bytes: int = SHARD_BYTES,
) -> tuple[int, int]:
    """Write batches as Arrow streams, a new one after every ``shard_bytes``.

    place: number of a shard -> its path. Returns the number of shards, 0 without batches, and of
    rows.
    """
    shards = rows = written = 0
    writer: pa.RecordBatchStreamWriter | None = None
    for batch in batches:
        if writer is None:
            writer, written = pa.ipc.new_stream(str(place(shards)), schema), 0
            shards += 1
        writer.write_batch(batch)
        rows, written = rows + batch.num_rows, written + batch.nbytes
        if written >= shard_bytes:
            writer.close()
            writer = None
    if writer is not None:
        writer.close()
    return shards, rows


def _write_sidecars(folder: Path, schema: pa.Schema, names: list[str], fingerprint: str) -> None:
    state: dict[str, Any] = {
        "_data_files": [{"filename": name} for name in names],
        "_fingerprint": fingerprint,
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
