"""Writing latents into an object store: shard by shard, and one file that makes them the folder."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from layerflow.corpus.latent_rows import PROMPTS, clips_schema, stored_layers
from layerflow.corpus.latents import INDEX, LatentsWriter, row_batches
from layerflow.corpus.log import Shard
from layerflow.corpus.remote.places import LIES, PLACES, places_of, write_table_of
from layerflow.corpus.store import Store, in_object_store
from layerflow.corpus.table import file_sha256
from layerflow.corpus.writer import SHARD_BYTES, write_shard
from layerflow.documents import parse_json

FINGERPRINT = "fingerprint.json"
TABLES = ("clips", "prompts")


def latents_writer(
    where: str | Path, fingerprint: Mapping[str, Any]
) -> LatentsWriter | RemoteLatentsWriter:
    """What writes latents into a folder here, or into one of an object store."""
    if in_object_store(where):
        return RemoteLatentsWriter(str(where), fingerprint)
    return LatentsWriter(where, fingerprint)


class RemoteLatentsWriter:
    """As ``LatentsWriter``, of a URL. A disk here holds one shard at a time, or none of those that
    workers put there (``take``).

    Shards and tables of places have the names of their bytes, so that nothing is written over;
    ``index.json`` comes last and names them. What it named before goes then: a reader that has the
    folder open must open it again. What else is written into ``folder`` is put beside them.
    """

    def __init__(self, url: str, fingerprint: Mapping[str, Any]) -> None:
        self.store = Store(url)
        self._fingerprint = dict(fingerprint)
        self._shards: dict[str, list[str]] = {table: [] for table in TABLES}
        self._places: dict[str, list[pa.Table]] = {table: [] for table in TABLES}

    def __enter__(self) -> RemoteLatentsWriter:
        self.folder = Path(tempfile.mkdtemp(prefix="layerflow-latents-"))
        self.store.put(FINGERPRINT, _json(self._fingerprint))
        return self

    def __exit__(self, kind: Any, *error: Any) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    def clips(self, rows: Iterable[Mapping[str, Any]]) -> int:
        """Write the table of clips; returns its rows."""
        return self._table("clips", rows, clips_schema(stored_layers(self._fingerprint)))

    def prompts(self, rows: Iterable[Mapping[str, Any]]) -> int:
        """Write the table of prompts; returns its rows."""
        return self._table("prompts", rows, PROMPTS)

    def _table(self, table: str, rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> int:
        for batches in split(row_batches(rows, schema)):
            self.take(table, *put_shard(self.store.below(table), batches, schema))
        if not self._places[table]:
            self._places[table].append(places_of(self.store, [], schema))
        return self.rows(table)

    def take(self, table: str, shard: Shard, places: pa.Table) -> None:
        """Add a shard that ``put_shard`` has put into the table's folder, here or elsewhere."""
        name, kind = LIES[0]
        number = pa.repeat(pa.scalar(len(self._shards[table]), kind), len(places))
        at = places.schema.get_field_index(name)
        self._places[table].append(places.set_column(at, places.schema.field(at), number))
        self._shards[table].append(f"{table}/{shard.file}")

    def rows(self, table: str) -> int:
        """How many a table has by now."""
        return sum(map(len, self._places[table]))

    def _finish(self) -> None:
        index: dict[str, Any] = {**self._shards, PLACES: {}}
        for path in [path for path in self.folder.iterdir() if path.is_file()]:
            self.store.put_file(path.name, path)
        for table in TABLES:
            path = self.folder / table
            write_table_of(path, pa.concat_tables(self._places[table]))
            name = f"{table}-{file_sha256(path)[:16]}.places.arrow"
            self.store.put_file(name, path)
            index[PLACES][table] = name
        before = self._named()
        self.store.put(INDEX, _json(index))
        for name in before - set(_names(index)):
            self.store.remove(name)

    def _named(self) -> set[str]:
        """Shards and places that are there, of this writer's names or not."""
        return {
            name
            for name in self.store.names()
            if name.endswith(".places.arrow") or name.partition("/")[0] in TABLES
        }


def put_shard(
    store: Store, batches: Iterable[pa.RecordBatch], schema: pa.Schema
) -> tuple[Shard, pa.Table]:
    """Write a shard into a folder of an object store; also where its rows lie."""
    with tempfile.TemporaryDirectory(prefix="layerflow-latents-") as folder:
        here = Store(Path(folder))
        shard = write_shard(here, batches, schema)
        places = places_of(here, [shard.file], schema)
        store.put_file(shard.file, Path(folder) / shard.file)
    return shard, places


def _names(index: Mapping[str, Any]) -> list[str]:
    return [*index["clips"], *index["prompts"], *index[PLACES].values()]


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()


def split(batches: Iterator[pa.RecordBatch]) -> Iterator[Iterator[pa.RecordBatch]]:
    """Batches in groups of a shard's bytes or little more, each to be used up before the next."""
    size = SHARD_BYTES
    waiting = next(batches, None)

    def group() -> Iterator[pa.RecordBatch]:
        nonlocal waiting
        written = 0
        while waiting is not None and written < size:
            batch, waiting = waiting, next(batches, None)
            written += batch.nbytes
            yield batch

    while waiting is not None:
        yield group()


def fingerprint_there(url: str) -> dict[str, Any] | None:
    """What latents at a URL are made of, finished or not; None for an empty place.

    Raises ValueError where something else lies.
    """
    store = Store(url)
    names = {name for name in store.names() if not name.startswith("staging/")}
    if not names:
        return None
    if FINGERPRINT not in names:
        raise ValueError(f"{store} holds no latents (no {FINGERPRINT}); choose another --out")
    return parse_json(store.read(FINGERPRINT), f"{store}/{FINGERPRINT}")
