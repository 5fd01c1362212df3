"""A corpus surveyed by tasks, a shard each: whether it is sound, and what a plan needs of it.

    shard -> its checksum, every row checked -> its small columns, and size and hash of each cell

The driver then reads these small tables, and no media: of a terabyte some gigabytes, one batch at a
time. A shard is surveyed once: its table stays in a folder that was named for the tasks.
"""

from __future__ import annotations

import hashlib
import mmap
import tempfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from layerflow.corpus.columns import MEDIA, small_columns
from layerflow.corpus.row_cells import check_stored
from layerflow.corpus.shards import ShardReader
from layerflow.corpus.stats import id_numbers
from layerflow.corpus.store import Store
from layerflow.corpus.table import Chunk, Corpus, file_sha256
from layerflow.media.cells import MediaError
from pipelines.engine.recipe import unit_key
from pipelines.engine.staging import Parts, Staging
from pipelines.engine.workers import Pool, Unit, run_staged

FORMAT_VERSION = 1
TABLE = "rows.arrow"
PIECE = 16 << 20
SUM = 16
"""Bytes of a cell's hash."""


def survey(path: str | Path, staging: Staging, pool: Pool) -> Surveyed:
    """A corpus whose small columns and cell sizes were read by tasks.

    Raises ValueError for an unsound shard or row, or for two rows of one id.
    """
    corpus = Corpus.open(path)
    units = [
        Unit(unit_key(FORMAT_VERSION, shard.sha256 or corpus.identity(), number), number,
             {"shard": number})
        for number, shard in enumerate(corpus.shards)
    ]  # fmt: skip
    work = partial(survey_shard, address=corpus.address)
    for reason in run_staged(units, work, staging, pool).values():
        raise ValueError(reason)
    _forget_others(staging, {unit.key for unit in units})
    places = tuple(staging.location(unit.key, TABLE) for unit in units)
    found = Surveyed(corpus.path, corpus.named, corpus.version, places)
    ids = id_numbers(found)
    if len(np.unique(ids)) < len(ids):
        raise ValueError(f"{path} cannot be used: two rows have the same id; see layerflow merge")
    return found


def _forget_others(staging: Staging, keys: Collection[str]) -> None:
    """Tables of shards that the corpus does not have any more go: they may say what was removed."""
    names = Store(staging.location("", "").rstrip("/")).names()
    for key in {name.partition("/")[0] for name in names if "/" in name}.difference(keys):
        staging.discard(key)


@dataclass(frozen=True)
class Surveyed(Corpus):
    """A corpus that is read from the tables of its survey. Media cells have their true length and
    are zeros with a hash of the true cell at the end, so that equal ones are known.

    places: the table of each shard, for ``ShardReader``.
    """

    places: Sequence[str] = field(default=(), repr=False)

    def chunks(self) -> Iterator[Chunk]:
        for place in self.places:
            folder, _, name = place.rpartition("/")
            reader = ShardReader(Store(folder), name)
            for number in range(reader.count):
                yield partial(self._told, reader, number)

    def _told(
        self, reader: ShardReader, number: int, columns: Sequence[str] | None
    ) -> pa.RecordBatch:
        names = self.schema.names if columns is None else list(columns)
        told = self.overlay.corrected(reader.batch(number))
        arrays = [hollow(told, name, self.schema.field(name).type) if name in MEDIA
                  else told.column(name) for name in names]  # fmt: skip
        return pa.RecordBatch.from_arrays(arrays, names=names)


def hollow(told: pa.RecordBatch, name: str, kind: pa.DataType) -> pa.Array:
    """Media cells as ``Surveyed`` has them; they take no memory but for their ends."""
    sizes, sums = (told.column(f"{name}.{part}") for part in ("bytes", "sum"))
    ends = np.concatenate([[0], np.cumsum(sizes.fill_null(0).to_numpy(False))])
    data = mmap.mmap(-1, max(1, int(ends[-1])))
    for start, end, digest in zip(ends, ends[1:], sums.to_pylist(), strict=False):
        some = (digest or b"")[: end - start]
        data[end - len(some) : end] = some
    offsets = ends.astype("<i8" if pa.types.is_large_binary(kind) else "<i4")
    valid = pa.array(sizes.is_valid().to_pylist(), pa.bool_()).buffers()[1]
    buffers = [valid, pa.py_buffer(offsets.tobytes()), pa.py_buffer(data)]
    return pa.Array.from_buffers(kind, len(sizes), buffers)


def survey_shard(payload: dict[str, Any], *, address: str) -> Parts:
    """What the task of a shard commits."""
    corpus = Corpus.open(address)
    number = int(payload["shard"])
    shard = corpus.shards[number]
    with tempfile.TemporaryDirectory(prefix="layerflow-") as place:
        path = on_disk(corpus.store, shard.file, Path(place))
        if shard.sha256 and file_sha256(path) != shard.sha256:
            text = f"the checksum of {shard.file} is not the one that the log says"
            raise ValueError(f"{corpus.store} cannot be used: {text}")
        reader = ShardReader(Store(path.parent), path.name)
        rows = list(_told_rows(reader, f"{corpus.store} cannot be used: {shard.file}"))
    schema = told_schema(corpus.schema)

    def write(file: Any) -> int:
        with pa.ipc.new_stream(file, schema) as writer:
            writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=schema))
        return len(rows)

    return {TABLE: write}


def told_schema(schema: pa.Schema) -> pa.Schema:
    """Columns of the table of a shard."""
    small = [schema.field(name) for name in small_columns(schema)]
    media = [name for name in MEDIA if name in schema.names]
    sizes = [pa.field(f"{name}.bytes", pa.int64()) for name in media]
    return pa.schema([*small, *sizes, *(pa.field(f"{name}.sum", pa.binary()) for name in media)])


def _told_rows(reader: ShardReader, where: str) -> Iterator[dict[str, Any]]:
    small = small_columns(reader.schema)
    for batch in reader.batches():
        for place in range(batch.num_rows):
            row = batch.slice(place, 1).to_pylist()[0]
            try:
                check_stored(row)
            except MediaError as error:
                raise ValueError(f"{where}, row {row['id']}: {error}") from error
            told = {name: row[name] for name in small}
            for name in (name for name in MEDIA if row.get(name) is not None):
                told[f"{name}.bytes"] = len(row[name])
                told[f"{name}.sum"] = hashlib.sha256(row[name]).digest()[:SUM]
            yield told


def on_disk(store: Store, name: str, folder: Path) -> Path:
    """A file of a store as a local one: itself, or a copy in ``folder``, fetched piece by piece."""
    if store.local is not None:
        return store.local / name
    target, size = folder / name.rpartition("/")[2], store.size(name)
    with target.open("wb") as file:
        for start in range(0, size, PIECE):
            file.write(store.read(name, start, min(size, start + PIECE)))
    return target
