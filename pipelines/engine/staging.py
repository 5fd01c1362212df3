"""Staging: what the units of a job leave for its last step, each whole or not at all.

A unit commits a folder by rename. In it lie its parts and ``unit.json``, which says for every part
how many rows or entries it holds, its bytes and their sum, taken from what was written and not
from what the disk gives back, and which holds small parts itself: a million units are fewer files
so. The last step reads nothing that was not checked against it.
"""

from __future__ import annotations

import base64
import fcntl
import io
import json
import os
import socket
import time
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from layerflow.corpus.shards import read_shard
from layerflow.corpus.writer import Hashed, arrow_stream, record_batches
from layerflow.files import publish_folder, remove, write_json
from pipelines.engine.checksums import KINDS, XXH3, has_sum

RECORD = "unit.json"
TOKEN = "token"
REMOVERS, AHEAD = 8, 1024
"""Units that are removed at a time, and whose names are held for that."""
PATIENCE = 60.0
"""Seconds after which a shared file system shows what another machine wrote (NFS caches)."""

Write = Callable[[Any], int]
"""Writes one part into a binary file; returns how many rows or entries that were."""
Parts = Mapping[str, Write]
Record = dict[str, dict[str, Any]]
"""What ``unit.json`` says of each part: ``count``, ``bytes``, ``sum``, of a small one also
``HELD``, its bytes, compressed (most of a short table is its schema), in base64."""
HELD = "held"


class InfrastructureError(OSError):
    """What no other attempt at a unit would mend: the job stops and can go on later."""


def stream_part(
    rows: Iterable[Mapping[str, Any]], schema: pa.Schema, together: int | None = 1
) -> Write:
    """Rows as an Arrow stream, of which memory holds ``together``, those of a record batch; None:
    as many as suit rows without media."""

    def write(file: Any) -> int:
        count = 0
        with arrow_stream(file, schema) as writer:
            for batch in record_batches(rows, schema, together):
                writer.write_batch(batch)
                count += batch.num_rows
        return count

    return write


def json_part(content: Any) -> Write:
    """One JSON value; called when the parts before it are written if it is a function."""

    def write(file: Any) -> int:
        value = content() if callable(content) else content
        file.write(json.dumps(value).encode())
        return 1

    return write


@contextmanager
def locked(path: Path, busy: str) -> Iterator[None]:
    """Hold the lock file ``path``. Raises ValueError, which says ``busy``, when another does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(busy) from error
        yield


def clear_folder(folder: Path) -> None:
    """Remove a folder of units, and those below it, if it is there.

    A disk that hears at once of what is free takes milliseconds a folder, most of it waiting.
    """
    if folder.is_dir():
        with ThreadPoolExecutor(REMOVERS) as pool, os.scandir(folder) as entries:
            while some := [Path(entry.path) for entry in islice(entries, AHEAD)]:
                list(pool.map(_clear_one, some))
    remove(folder)


def _clear_one(path: Path) -> None:
    if (path / RECORD).exists() or not path.is_dir() or path.is_symlink():
        remove(path)
    else:
        clear_folder(path)


class Telling(dict[str, Write]):
    """Parts that say, once they are written, what is in them: counts for an ``engine.tally``."""

    def __init__(self, parts: Parts, told: Callable[[], Mapping[str, int]]) -> None:
        super().__init__(parts)
        self.told = told


def missing_input(paths: Iterable[str]) -> str | None:
    """What to say of a path that this machine does not see; None if it sees all."""
    for path in paths:
        if not Path(path).exists():
            return f"the input {path} is not there on {socket.gethostname()}; all nodes must see it"
    return None


@dataclass(frozen=True)
class Staging:
    """The folder of one job's units, as the driver and its workers see it.

    ``token`` marks the driver that is in charge; ``inputs`` are paths that every worker needs.
    ``deferred``: parts whose bytes are compared by whoever reads them, and not by ``fault``.
    ``small``: parts of some kilobytes that have no location and lie in the unit's record.
    """

    folder: Path
    token: str
    inputs: tuple[str, ...] = ()
    patience: float = PATIENCE
    deferred: frozenset[str] = frozenset()
    small: frozenset[str] = frozenset()

    @classmethod
    def begin(
        cls,
        folder: Path,
        inputs: Iterable[str] = (),
        deferred: frozenset[str] = frozenset(),
        small: frozenset[str] = frozenset(),
    ) -> Staging:
        """Take charge of a folder, new or of an earlier run, for one driver at a time.

        What killed processes left half written is removed.
        """
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(".*"):
            remove(left)
        token = uuid.uuid4().hex
        write_json(folder / TOKEN, {"token": token})
        return cls(folder.resolve(), token, tuple(inputs), PATIENCE, deferred, small)

    def __str__(self) -> str:
        return str(self.folder)

    def below(self, name: str) -> Staging:
        """Take charge of a folder in this one, for other units of the same job."""
        return Staging.begin(self.folder / name, self.inputs)

    def clear(self) -> None:
        """Remove all of it."""
        clear_folder(self.folder)

    def check_here(self) -> None:
        """Raises InfrastructureError unless this machine sees what the driver sees."""
        end = time.monotonic() + self.patience
        while (trouble := self._trouble()) is not None:
            if time.monotonic() >= end:
                raise InfrastructureError(trouble)
            time.sleep(min(0.5, self.patience))

    def _trouble(self) -> str | None:
        host = socket.gethostname()
        try:
            said = json.loads((self.folder / TOKEN).read_text())["token"]
        except (OSError, ValueError, KeyError, TypeError):
            return (
                f"{self.folder} of this job cannot be seen by the worker on {host}: the output "
                "must lie on a file system that all nodes mount at the same path"
            )
        if said != self.token:
            return f"{self.folder}: another run of this job has taken over"
        return missing_input(self.inputs)

    def wait_for(self, keys: Iterable[str]) -> None:
        """Give the file system ``patience`` seconds to show units that other machines committed."""
        end = time.monotonic() + self.patience
        keys = list(keys)
        while self.missing(keys) and time.monotonic() < end:
            time.sleep(min(0.5, self.patience))

    def missing(self, keys: Iterable[str]) -> set[str]:
        """Which units were not committed, by one listing; damage is for ``fault``."""
        with os.scandir(self.folder) as entries:
            there = {entry.name for entry in entries}
        return {key for key in keys if key not in there}

    # ---- one unit ----------------------------------------------------------------------------

    def commit(self, key: str, parts: Parts) -> Record:
        """A unit's folder appears whole or not at all. Returns what ``record`` says of it.

        Parts are written in their order. A unit that is there already stays as it is.
        """
        temporary = self.folder / f".{key}-{uuid.uuid4().hex[:12]}"
        temporary.mkdir()
        try:
            record = {
                name: held_part(write)
                if name in self.small
                else write_part(temporary / name, write)
                for name, write in parts.items()
            }
            (temporary / RECORD).write_text(json.dumps({"parts": record}))
            self._publish(temporary, key)
        finally:  # a full disk: leave nothing behind that fills it
            remove(temporary)
        return record

    def _publish(self, temporary: Path, key: str) -> None:
        # Not synced: a disk that syncs every unit takes a few a second, and what a power cut
        # damages is found by its size or its sum, and done again.
        try:
            publish_folder(temporary, self.folder / key, synced=False)
        except OSError:
            if self.is_done(key):  # another attempt of the same unit was first: equal content
                return
            if not (self.folder / key).exists():
                raise
            publish_folder(temporary, self.folder / key, replace=True, synced=False)

    def is_done(self, key: str) -> bool:
        """Whether a unit was committed and its files have the sizes that they had then."""
        parts = self._record(key)
        return parts is not None and all(
            HELD in about or _size(self.folder / key / name) == about["bytes"]
            for name, about in parts.items()
        )

    def fault(self, key: str) -> str | None:
        """What is wrong with a committed unit, by a look at every byte; None if nothing is.

        Of parts that are ``deferred`` only the size is looked at.
        """
        parts = self._record(key)
        if parts is None:
            there = (self.folder / key).exists()
            return "its record is damaged" if there else "it is gone"
        for name, about in parts.items():
            if HELD in about:
                if held_bytes(about) is None:
                    return f"{name} holds other bytes than were written"
                continue
            if name in self.small:  # a toolkit before this one wrote it
                return f"{name} is not in its record"
            path = self.folder / key / name
            if _size(path) != about["bytes"]:
                return f"{name} has {_size(path)} bytes, not {about['bytes']}"
            if name in self.deferred:
                continue
            if not has_sum(path, about["sum"]):
                return f"{name} holds other bytes than were written"
        return None

    def discard(self, key: str) -> None:
        """Remove what there is of a unit."""
        remove(self.folder / key)

    def path(self, key: str, name: str) -> Path:
        """Where a part of a committed unit lies."""
        return self.folder / key / name

    def location(self, key: str, name: str) -> str:
        """Where a part lies, for ``layerflow.corpus.store.read_location`` on any machine."""
        return str(self.path(key, name))

    def read(self, key: str, name: str) -> bytes:
        """The bytes of a part that is not small."""
        return self.path(key, name).read_bytes()

    def record(self, key: str) -> Record:
        """Of every part of a committed unit its ``count``, ``bytes`` and ``sum``."""
        parts = self._record(key)
        if parts is None:
            raise InfrastructureError(f"{self.folder / key} changed; start the job again")
        return parts

    def read_each(self, keys: Iterable[str], name: str) -> Iterator[bytes]:
        """The bytes of a small part of each unit, in order."""
        return (self.read(key, name) for key in keys)

    def batches_of(
        self, keys: Iterable[str], name: str
    ) -> Iterator[tuple[list[pa.RecordBatch], Record]]:
        """The rows of a small part of each unit, in order, with the unit's record.

        Raises InfrastructureError when they are not those that were committed.
        """
        for key, record in self._records(keys):
            about = record.get(name, {})
            data = held_bytes(about) if HELD in about else None
            if data is None:
                raise InfrastructureError(
                    f"{self.location(key, name)} changed; start the same command again"
                )
            yield list(batches_in(data)), record

    def _records(self, keys: Iterable[str]) -> Iterator[tuple[str, Record]]:
        return ((key, self.record(key)) for key in keys)

    def rows(self, key: str, name: str) -> Iterator[dict[str, Any]]:
        """The rows of a part, one record batch in memory at a time.

        Raises InfrastructureError when they are not as many as were committed.
        """
        count = 0
        path = self.path(key, name)
        try:
            for batch in read_shard(path):
                count += batch.num_rows
                yield from batch.to_pylist()
        except ValueError:
            count = -1
        parts = self._record(key)
        if parts is None or parts[name]["count"] != count:
            raise InfrastructureError(f"{path} changed while it was read; start the job again")

    def _record(self, key: str) -> Record | None:
        """Of every part its ``count``, ``bytes`` and ``sum``; None without a sound record."""
        try:
            return sound_record((self.folder / key / RECORD).read_bytes())
        except OSError:
            return None


def sound_record(data: bytes) -> Record | None:
    """What a ``unit.json`` says of its parts; None when it says something else."""
    try:
        parts: Record = json.loads(data)["parts"]
        sound = parts and all(
            Path(name).name == name
            and (type(about["count"]), type(about["bytes"]), type(about["sum"])) == (int, int, str)
            for name, about in parts.items()
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return parts if sound else None


def write_part(path: Path, write: Write) -> dict[str, Any]:
    """Write a part; returns what its record says of it."""
    with Hashed(path.open("wb"), KINDS[XXH3]) as file:
        return _about(file, write(file))


def held_part(write: Write) -> dict[str, Any]:
    """A small part as its record holds it."""
    memory = io.BytesIO()
    with Hashed(memory, KINDS[XXH3]) as file:
        about = _about(file, write(file))
        return {**about, HELD: base64.b64encode(zlib.compress(memory.getbuffer(), 1)).decode()}


def _about(file: Hashed, count: int) -> dict[str, Any]:
    return {"count": count, "bytes": file.bytes, "sum": f"{XXH3}:{file.digest.hexdigest()}"}


def held_bytes(about: Mapping[str, Any]) -> bytes | None:
    """The bytes of a small part; None when they are not what was committed."""
    try:
        packed = base64.b64decode(about[HELD], validate=True)
        data = zlib.decompressobj().decompress(packed, about["bytes"] + 1)
    except (ValueError, TypeError, zlib.error):
        return None
    return data if has_sum(data, about["sum"]) else None


def batches_in(data: bytes) -> Iterator[pa.RecordBatch]:
    """The rows of an Arrow stream."""
    with pa.ipc.open_stream(pa.py_buffer(data)) as reader:
        yield from reader


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
