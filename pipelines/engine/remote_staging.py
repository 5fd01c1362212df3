"""Staging in an object store: no rename, no lock, and one listing to see what is there.

The parts of a unit are put, then its record; whoever sees the record sees them whole. Two attempts
at one unit write equal bytes; where they do not, the sums of the record find it. Units lie in 256
folders by the first two digits of their keys, which are hashes: the driver lists a few at a time,
so that its memory holds no more of a listing.
"""

from __future__ import annotations

import json
import socket
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from layerflow.corpus.store import Store
from pipelines.engine import staging
from pipelines.engine.checksums import has_sum
from pipelines.engine.staging import (
    RECORD,
    TOKEN,
    InfrastructureError,
    Parts,
    Record,
    Staging,
    batches_in,
    held_part,
    sound_record,
    write_part,
)

READERS = 32  # requests at a time
AHEAD = 1024  # answers that wait, each some kilobytes
LISTED = 8  # folders of units that are listed at a time
GROUP = 2  # digits of a key that name the folder of its unit

T = TypeVar("T")
R = TypeVar("R")


def begin(
    folder: Path | str,
    inputs: Iterable[str],
    deferred: frozenset[str],
    small: frozenset[str] = frozenset(),
) -> Staging:
    """``Staging.begin`` of a folder, here or, by its URL, in an object store."""
    if isinstance(folder, str):
        return RemoteStaging.take(folder, inputs, deferred, small)
    return Staging.begin(folder, inputs, deferred, small)


def clear(store: Store) -> None:
    """Remove a staging folder of an object store, a few folders of units at a time."""
    names = store.folders()
    for name in names:
        if len(name) != GROUP:
            clear(store.below(name))
    for _ in _at_once(store.remove, [name for name in names if len(name) == GROUP], LISTED):
        pass
    store.remove("")


@dataclass(frozen=True)
class RemoteStaging(Staging):
    """A folder of an object store as ``Staging``; ``folder`` is not used."""

    url: str = ""

    @classmethod
    def take(
        cls, url: str, inputs: Iterable[str], deferred: frozenset[str], small: frozenset[str]
    ) -> RemoteStaging:
        """Take charge of a folder; see ``begin``."""
        token = uuid.uuid4().hex
        Store(url).put(TOKEN, json.dumps({"token": token}).encode())
        return cls(Path(), token, tuple(inputs), staging.PATIENCE, deferred, small, url)

    @cached_property
    def store(self) -> Store:
        return Store(self.url)

    def __str__(self) -> str:
        return str(self.store)

    def below(self, name: str) -> Staging:
        return RemoteStaging.take(f"{self.url}/{name}", self.inputs, frozenset(), frozenset())

    def clear(self) -> None:
        clear(self.store)

    def _trouble(self) -> str | None:
        host = socket.gethostname()
        try:
            said = json.loads(self.store.read(TOKEN))["token"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            return f"{self.store} cannot be read by the worker on {host}: {error}"
        if said != self.token:
            return f"{self.store}: another run of this job has taken over"
        return staging.missing_input(self.inputs)

    def wait_for(self, keys: Iterable[str]) -> None:
        """Nothing: what was put can be seen."""

    def missing(self, keys: Iterable[str]) -> set[str]:
        left = set(keys)
        groups = {key[:GROUP] for key in left}.intersection(self.store.folders() if left else ())
        for names in _at_once(self.store.names, sorted(groups), LISTED):
            left.difference_update(
                name.split("/")[1] for name in names if name.endswith(f"/{RECORD}")
            )
        return left

    def commit(self, key: str, parts: Parts) -> Record:
        record: Record = {}
        for name, write in parts.items():
            if name in self.small:
                record[name] = held_part(write)
                continue
            with self.store.scratch() as temporary:
                record[name] = write_part(temporary, write)
                self.store.put_file(_at(key, name), temporary)
        self.store.put(_at(key, RECORD), json.dumps({"parts": record}).encode())
        return record

    def is_done(self, key: str) -> bool:
        return self._record(key) is not None

    def fault(self, key: str) -> str | None:
        """None: objects are put whole, and are compared with their sums when they are read."""
        return None

    def discard(self, key: str) -> None:
        self.store.remove(_at(key, "").rstrip("/"))

    def location(self, key: str, name: str) -> str:
        return self.store.location(_at(key, name))

    def read(self, key: str, name: str) -> bytes:
        """The bytes of a part. Raises InfrastructureError when they are not what was committed."""
        about = self.record(key)[name]
        data = self._patiently(_at(key, name))
        if not has_sum(data, about["sum"]):
            raise InfrastructureError(f"{self.location(key, name)} holds other bytes than written")
        return data

    def read_each(self, keys: Iterable[str], name: str) -> Iterator[bytes]:
        return _at_once(lambda key: self.read(key, name), keys)

    def rows(self, key: str, name: str) -> Iterator[dict[str, Any]]:
        for batch in batches_in(self.read(key, name)):
            yield from batch.to_pylist()

    def _records(self, keys: Iterable[str]) -> Iterator[tuple[str, Record]]:
        return _at_once(lambda key: (key, self.record(key)), keys)

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

    def _record(self, key: str) -> Record | None:
        try:
            return sound_record(self._patiently(_at(key, RECORD)))
        except FileNotFoundError:
            return None


def _at(key: str, name: str) -> str:
    return f"{key[:GROUP]}/{key}/{name}"


def _at_once(ask: Callable[[T], R], of: Iterable[T], ahead: int = AHEAD) -> Iterator[R]:
    """What is said of each, in order; up to ``READERS`` are asked at a time, and ``ahead`` wait."""
    left = iter(of)
    with ThreadPoolExecutor(READERS) as pool:
        while some := list(islice(left, ahead)):
            yield from pool.map(ask, some)
