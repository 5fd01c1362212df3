"""A latents folder in an object store: rows by range, kept in a local cache, and read ahead."""

from __future__ import annotations

import bisect
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa

from layerflow.corpus.latent_rows import PROMPTS, clips_schema, stored_layers
from layerflow.corpus.latents import INDEX, Latents, Opened, checked
from layerflow.corpus.remote.cache import shared_cache
from layerflow.corpus.remote.places import PLACES, entries_of, places_file, read_places
from layerflow.corpus.shards import Entry, ShardReader
from layerflow.corpus.store import Store, in_object_store
from layerflow.documents import parse_json
from layerflow.layer_set import prompted_of

THREADS = 8  # ranges of one folder that are read at a time
AHEAD = 256  # batches that may be on their way or wait to be used
OPEN = 8  # batches that stay open


def open_latents(where: str | Path) -> Latents:
    """Latents of a folder here, or by ranges of one in an object store. ValueError when it holds
    none, or those of another format version."""
    return RemoteLatents(str(where)) if in_object_store(where) else Latents.open(where)


class RemoteLatents(Latents):
    """As ``Latents``, of a URL. What is read ahead is a wish: ``item`` works without it."""

    def __init__(self, url: str) -> None:
        self.store = Store(url)
        self.path = url  # type: ignore[assignment]
        self.fingerprint = self._json("fingerprint.json")
        self._check_version()
        self.layers = stored_layers(self.fingerprint)
        index = self._json(INDEX)
        self._table = _Table(self.store, "clips", index, clips_schema(self.layers))
        self._starts = [entry.first for _, entry in self._table.entries]
        self._starts.append(len(self._table.places))
        self._texts = _Prompts(_Table(self.store, "prompts", index, PROMPTS))
        self._prompts = self._texts  # type: ignore[assignment]
        self._open: OrderedDict[int, Opened] = OrderedDict()
        self._lock = threading.Lock()

    def _json(self, name: str) -> dict[str, Any]:
        try:
            data = self.store.read(name)
        except FileNotFoundError as error:
            raise ValueError(
                f"{self.store} holds no latents (no {name}); make them with encode"
            ) from error
        found = parse_json(data, f"{self.store}/{name}")
        if name == INDEX and not all(type(found.get(t)) is list for t in ("clips", "prompts")):
            raise ValueError(f"{self.store}/{name} names no shards; encode again")
        return found

    def column(self, name: str) -> list[Any]:
        return list(self._table.places.column(name).to_pylist())

    def _batch(self, number: int) -> Opened:
        with self._lock:
            if number in self._open:
                self._open.move_to_end(number)
                return self._open[number]
        batch = checked([self._table.batch(number)], self._table.schema, self.layers, self.store)[0]
        with self._lock:
            self._open[number] = Opened(batch, self.layers)
            while len(self._open) > OPEN:
                self._open.popitem(last=False)
            return self._open[number]

    def raw(self, index: int) -> dict[str, Any]:
        number, row = self._find(index)
        return dict(self._table.batch(number).slice(row, 1).to_pylist()[0])

    def read_ahead(self, rows: Iterable[int]) -> None:
        """Begin to read rows, and their prompts, that will be wanted soon, in this order."""
        columns = [f"{layer}_prompt" for layer in prompted_of(self.layers.layers)]
        for index in rows:
            number, _ = self._find(index)
            if number not in self._open:
                self._table.begin(number)
            for column in columns:
                key = self._table.places.column(column)[index].as_py()
                if key:
                    self._texts.begin(key)

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteLatents, (self.path,)


class _Table:
    """The batches of `clips/` or `prompts/`."""

    def __init__(
        self, store: Store, table: str, index: Mapping[str, Any], schema: pa.Schema
    ) -> None:
        names = [f"{table}/{str(name).rpartition('/')[2]}" for name in index[table]]
        said = index.get(PLACES) or {table: places_file(table)}  # not of what was copied there
        lies = str(said.get(table)).rpartition("/")[2] if isinstance(said, dict) else ""
        self.places, self.schema = read_places(store, lies, names, schema), schema
        self.entries = entries_of(self.places)
        if any(shard >= len(names) for shard, _ in self.entries):
            raise ValueError(f"{store}: {lies} names a shard that is not there")
        cached = _CachedStore(store, _state_of(store, self.places))
        own: list[list[Entry]] = [[] for _ in names]
        self._at = []  # of each batch: its shard, and its number there
        for shard, entry in self.entries:
            self._at.append((shard, len(own[shard])))
            own[shard].append(entry)
        self._readers = [
            ShardReader.of(cached, name, schema, entries)
            for name, entries in zip(names, own, strict=True)
        ]
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix=f"read {table}")
        self._coming: OrderedDict[int, Future[pa.RecordBatch]] = OrderedDict()
        self._lock = threading.Lock()

    def begin(self, number: int) -> None:
        with self._lock:
            if number not in self._coming:
                self._coming[number] = self._pool.submit(self._read, number)
            while len(self._coming) > AHEAD:  # wished for, and never used
                self._coming.popitem(last=False)[1].cancel()

    def batch(self, number: int) -> pa.RecordBatch:
        with self._lock:
            coming = self._coming.pop(number, None)
        return self._read(number) if coming is None else coming.result()

    def _read(self, number: int) -> pa.RecordBatch:
        shard, at = self._at[number]
        return self._readers[shard].batch(at)


class _Prompts(Mapping[str, tuple[pa.RecordBatch, int]]):
    """Prompts by key: the batch that holds each, read when it is asked for, and its row there."""

    def __init__(self, table: _Table) -> None:
        self._table = table
        keys = table.places.column("key").to_pylist()
        self._rows = {key: row for row, key in enumerate(keys)}
        self._starts = [entry.first for _, entry in table.entries]
        self._open: OrderedDict[int, pa.RecordBatch] = OrderedDict()

    def _place(self, key: str) -> tuple[int, int]:
        row = self._rows[key]
        number = bisect.bisect_right(self._starts, row) - 1
        return number, row - self._starts[number]

    def begin(self, key: str) -> None:
        if key in self._rows and (number := self._place(key)[0]) not in self._open:
            self._table.begin(number)

    def __getitem__(self, key: str) -> tuple[pa.RecordBatch, int]:
        number, row = self._place(key)
        batch = self._open.get(number)
        if batch is None:
            batch = self._open[number] = self._table.batch(number)
            while len(self._open) > 4 * OPEN:
                self._open.popitem(last=False)
        return batch, row

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, key: object) -> bool:
        return key in self._rows


class _CachedStore(Store):
    """A store whose ranges are kept on this machine. key: of what lies there now."""

    def __init__(self, store: Store, key: str) -> None:
        super().__init__(store.where)
        self._key, self._cache = key, shared_cache()
        self._cache.use(key)

    def read(self, name: str, start: int | None = None, end: int | None = None) -> bytes:
        if start is None or end is None:
            return super().read(name, start, end)
        part = f"{name}:{start}"
        data = self._cache.get(self._key, part, end - start)
        if data is None:
            data = super().read(name, start, end)
            self._cache.put(self._key, part, data)
        return data


def _state_of(store: Store, places: pa.Table) -> str:
    """A name of a folder and of what lies in it now."""
    found = hashlib.sha256(str(store.where).encode())
    for batch in places.combine_chunks().to_batches():
        found.update(batch.serialize())
    return found.hexdigest()[:16]
