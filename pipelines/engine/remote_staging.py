"""Staging in an object store: no rename, no lock, and one listing to see what is there.

The parts of a unit are put, then its record; whoever sees the record sees them whole. Two attempts
at one unit write equal bytes; where they do not, the sums of the record find it.
"""

from __future__ import annotations

import hashlib
import json
import socket
import time
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from layerflow.corpus.store import Store
from pipelines.engine import staging
from pipelines.engine.staging import (
    RECORD,
    TOKEN,
    InfrastructureError,
    Parts,
    Staging,
    sound_record,
    write_part,
)

READERS = 16  # requests for small parts at a time
AHEAD = 256


def begin(folder: Path | str, inputs: Iterable[str], deferred: frozenset[str]) -> Staging:
    """``Staging.begin`` of a folder, here or, by its URL, in an object store."""
    if isinstance(folder, str):
        return RemoteStaging.take(folder, inputs, deferred)
    return Staging.begin(folder, inputs, deferred)


@dataclass(frozen=True)
class RemoteStaging(Staging):
    """A folder of an object store as ``Staging``; ``folder`` is not used."""

    url: str = ""

    @classmethod
    def take(cls, url: str, inputs: Iterable[str], deferred: frozenset[str]) -> RemoteStaging:
        """Take charge of a folder; see ``begin``."""
        token = uuid.uuid4().hex
        Store(url).put(TOKEN, json.dumps({"token": token}).encode())
        return cls(Path(), token, tuple(inputs), staging.PATIENCE, deferred, url)

    @cached_property
    def store(self) -> Store:
        return Store(self.url)

    def __str__(self) -> str:
        return str(self.store)

    def below(self, name: str) -> Staging:
        return RemoteStaging.take(f"{self.url}/{name}", self.inputs, frozenset())

    def clear(self) -> None:
        self.store.remove("")

    def _trouble(self) -> str | None:
        host = socket.gethostname()
        try:
            said = json.loads(self.store.read(TOKEN))["token"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            return f"{self.store} cannot be read by the worker on {host}: {error}"
        if said != self.token:
            return f"{self.store}: another run of this job has taken over"
        return self._missing_input(host)

    def wait_for(self, keys: Iterable[str]) -> None:
        """Nothing: what was put can be seen."""

    def missing(self, keys: Iterable[str]) -> set[str]:
        there = self.store.names()
        return {key for key in keys if f"{key}/{RECORD}" not in there}

    def commit(self, key: str, parts: Parts) -> dict[str, dict[str, Any]]:
        record: dict[str, dict[str, Any]] = {}
        for name, write in parts.items():
            with self.store.scratch() as temporary:
                record[name] = write_part(temporary, write)
                self.store.put_file(f"{key}/{name}", temporary)
        self.store.put(f"{key}/{RECORD}", json.dumps({"parts": record}).encode())
        return record

    def is_done(self, key: str) -> bool:
        return self._record(key) is not None

    def fault(self, key: str) -> str | None:
        """None: objects are put whole, and are compared with their sums when they are read."""
        return None

    def discard(self, key: str) -> None:
        self.store.remove(key)

    def location(self, key: str, name: str) -> str:
        return self.store.location(f"{key}/{name}")

    def read(self, key: str, name: str) -> bytes:
        """The bytes of a part. Raises InfrastructureError when they are not what was committed."""
        about = self.record(key)[name]
        data = self._patiently(f"{key}/{name}")
        if hashlib.sha256(data).hexdigest() != about["sha256"]:
            raise InfrastructureError(f"{self.location(key, name)} holds other bytes than written")
        return data

    def rows(self, key: str, name: str) -> Iterator[dict[str, Any]]:
        data = self.read(key, name)
        with pa.ipc.open_stream(pa.py_buffer(data)) as reader:
            for batch in reader:
                yield from batch.to_pylist()

    def rows_of(self, keys: Iterable[str], name: str) -> Iterator[list[dict[str, Any]]]:
        left = iter(keys)
        with ThreadPoolExecutor(READERS) as pool:
            while some := list(islice(left, AHEAD)):
                yield from pool.map(lambda key: list(self.rows(key, name)), some)

    def _patiently(self, name: str) -> bytes:
        """A file; what a network loses for a moment is asked for again."""
        for wait in (0.5, 2.0, 8.0):
            try:
                return self.store.read(name)
            except FileNotFoundError:
                raise
            except OSError:
                time.sleep(min(wait, self.patience))
        return self.store.read(name)

    def _record(self, key: str) -> dict[str, dict[str, Any]] | None:
        try:
            return sound_record(self._patiently(f"{key}/{RECORD}"))
        except FileNotFoundError:
            return None
