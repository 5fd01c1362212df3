"""Writing a table: Arrow stream shards and the sidecars by which ``datasets`` opens them."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from layerflow.corpus.log import REJECTED, Shard, Version
from layerflow.corpus.shards import ShardReader, table_files
from layerflow.corpus.store import Store
from layerflow.corpus.table import file_sha256
from layerflow.files import Draining, json_text, publish_file, write_text

ROWS_PER_BATCH, SMALL_ROWS_PER_BATCH = 4, 1000
"""Rows of a record batch, with media and without."""
GATHERED = 1 << 18  # bytes of small writes that go to a file as one
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
    shards = write_shards_of(folder, rows, schema, shard_bytes=shard_bytes)
    return sum(shard.rows or 0 for shard in shards)


def write_shards_of(
    folder: Path,
    rows: Iterable[Mapping[str, Any]],
    schema: pa.Schema,
    *,
    shard_bytes: int = SHARD_BYTES,
) -> tuple[Shard, ...]:
    """``write_table``; returns its shards as a log says them."""
    return write_batches(folder, record_batches(rows, schema), schema, shard_bytes=shard_bytes)


def write_batches(
    folder: Path,
    batches: Iterable[pa.RecordBatch],
    schema: pa.Schema,
    *,
    shard_bytes: int = SHARD_BYTES,
) -> tuple[Shard, ...]:
    """``write_shards_of`` of rows that are record batches."""
    folder.mkdir(parents=True, exist_ok=True)

    def part(number: int) -> Path:
        return folder / f"part-{number:05d}"

    shards, _ = write_shards(batches, schema, part, shard_bytes)
    if not shards:
        pa.ipc.new_stream(str(part(0)), schema).close()
    names = [f"data-{i:05d}-of-{max(shards, 1):05d}.arrow" for i in range(max(shards, 1))]
    for number, name in enumerate(names):
        publish_file(part(number), folder / name)
    found = tuple(described(Store(folder), name) for name in names)
    write_sidecars(folder, schema, found)
    return found


def record_batches(
    rows: Iterable[Mapping[str, Any]], schema: pa.Schema, size: int | None = None
) -> Iterator[pa.RecordBatch]:
    """Rows as record batches of ``size``; by default as many as suit what is in them."""
    if size is None:
        media = any(holds_media(field.type) for field in schema)
        size = ROWS_PER_BATCH if media else SMALL_ROWS_PER_BATCH
    source = iter(rows)
    groups = iter(lambda: list(islice(source, size)), [])
    return (pa.RecordBatch.from_pylist(group, schema=schema) for group in groups)


def regrouped(batches: Iterable[pa.RecordBatch], size: int) -> Iterator[pa.RecordBatch]:
    """The rows of record batches of one schema in batches of ``size``, the last perhaps less."""
    held: list[pa.RecordBatch] = []
    count = 0
    for batch in batches:
        while batch.num_rows:
            part = batch.slice(0, size - count)
            held.append(part)
            count += part.num_rows
            batch = batch.slice(part.num_rows)
            if count == size:
                yield _one(held)
                held, count = [], 0
    if held:
        yield _one(held)


def _one(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    return batches[0] if len(batches) == 1 else pa.concat_batches(batches)


def holds_media(kind: pa.DataType) -> bool:
    """Whether values of a column may be large: bytes, or lists and structs that hold some."""
    if pa.types.is_struct(kind):
        return any(holds_media(part.type) for part in kind)
    if pa.types.is_list(kind):
        return holds_media(kind.value_type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


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


@contextmanager
def arrow_stream(file: Any, schema: pa.Schema) -> Iterator[pa.RecordBatchStreamWriter]:
    """An Arrow stream into a binary file in Python, which stays open.

    Arrow writes every buffer of a column by itself, some hundred a row; they are gathered.
    """
    gathered = io.BufferedWriter(file, GATHERED)
    try:
        with pa.ipc.new_stream(gathered, schema) as writer:
            yield writer
    finally:
        gathered.detach()


def write_shard(store: Store, batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> Shard:
    """A shard of a corpus folder, under the name of its bytes: equal batches give equal files."""
    rows = 0
    with store.scratch() as temporary:
        with Hashed(_file(store, temporary)) as file:
            with arrow_stream(file, schema) as writer:
                for batch in batches:
                    writer.write_batch(batch)
                    rows += batch.num_rows
            digest, size = file.digest.hexdigest(), file.bytes
        name = f"data-{digest[:16]}.arrow"
        store.put_file(name, temporary)
    return Shard(name, rows, size, digest)


def _file(store: Store, path: Path) -> BinaryIO:
    """A file that ``put_file`` syncs where the store lies on this machine."""
    return Draining(path) if store.local is not None else path.open("wb")


class Hashed(io.RawIOBase):
    """A binary file that sums up what is written to it; closing it closes the file."""

    def __init__(self, file: Any, new_digest: Callable[[], Any] = hashlib.sha256) -> None:
        self.file = file
        self.digest = new_digest()
        self.bytes = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        with memoryview(data) as view:
            self.file.write(view)
            self.digest.update(view)
            self.bytes += view.nbytes
            return view.nbytes

    def close(self) -> None:
        if not self.closed:
            self.file.close()
        super().close()


def write_sidecars(folder: Path, schema: pa.Schema, shards: Sequence[Shard]) -> None:
    """Say which shards ``datasets`` opens; whole at any moment."""
    digest = hashlib.sha256("".join(str(shard.sha256) for shard in shards).encode())
    names = [shard.file for shard in shards]
    _write_sidecars(folder, schema, names, digest.hexdigest()[:16])


def settle(store: Store, version: Version, schema: pa.Schema, rejected: pa.Schema) -> None:
    """Bring ``state.json``, ``dataset_info.json`` and ``corpus.json`` of a local folder to a
    version, so that programs that do not know the log open it. Nothing in an object store."""
    folder = store.local
    if folder is None:
        return
    if version.rejected:
        (folder / REJECTED).mkdir(exist_ok=True)
        write_sidecars(folder / REJECTED, rejected, version.rejected)
    write_sidecars(folder, schema, version.shards)
    _write_changed(folder / "corpus.json", json_text(dict(version.info)))


def logged(folder: Path, step: str, info: Mapping[str, Any]) -> Version:
    """Version 1 of a finished corpus folder that has no log, as its ``state.json`` says."""
    store = Store(folder)
    rejected = store.below(REJECTED)
    has_rejected = (folder / REJECTED / "state.json").is_file()
    return Version(
        number=1,
        step=step,
        shards=tuple(described(store, path.name) for path in table_files(folder)),
        rejected=tuple(described(rejected, path.name) for path in table_files(folder / REJECTED))
        if has_rejected
        else (),
        info=dict(info),
    )


def described(store: Store, name: str) -> Shard:
    """A shard of a folder on this disk, as a log says it."""
    path = Path(store.location(name))
    return Shard(name, ShardReader(store, name).rows, path.stat().st_size, file_sha256(path))


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
    for name, content in (("dataset_info.json", info), ("state.json", state)):
        _write_changed(folder / name, json.dumps(content, indent=2) + "\n")


def _write_changed(path: Path, text: str) -> None:
    try:
        same = path.read_bytes() == text.encode()
    except OSError:
        same = False
    if not same:
        write_text(path, text)
