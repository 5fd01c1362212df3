"""Staging: what the units of a job leave for its last step, each whole or not at all.

A unit commits a folder by rename. In it lie its parts and ``unit.json``, which says for every part
how many rows or entries it holds, its bytes and its sha256, taken from what was written and not
from what the disk gives back. The last step reads nothing that was not checked against it.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import socket
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from layerflow.corpus.shards import read_shard
from layerflow.files import publish_folder, remove, write_json

RECORD = "unit.json"
TOKEN = "token"
PATIENCE = 60.0
"""Seconds after which a shared file system shows what another machine wrote (NFS caches)."""

Write = Callable[[Any], int]
"""Writes one part into a binary file; returns how many rows or entries that were."""
Parts = Mapping[str, Write]


class InfrastructureError(OSError):
    """What no other attempt at a unit would mend: the job stops and can go on later."""


def stream_part(rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> Write:
    """Rows as an Arrow stream, one record batch each, so that memory holds one."""

    def write(file: Any) -> int:
        count = 0
        with pa.ipc.new_stream(file, schema) as writer:
            for row in rows:
                writer.write_batch(pa.RecordBatch.from_pylist([row], schema=schema))
                count += 1
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
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(busy) from error
        yield


@dataclass(frozen=True)
class Staging:
    """The folder of one job's units, as the driver and its workers see it.

    ``token`` marks the driver that is in charge; ``inputs`` are paths that every worker needs.
    """

    folder: Path
    token: str
    inputs: tuple[str, ...] = ()
    patience: float = PATIENCE

    @classmethod
    def begin(cls, folder: Path, inputs: Iterable[str] = ()) -> Staging:
        """Take charge of a folder, new or of an earlier run, for one driver at a time.

        What killed processes left half written is removed.
        """
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(".*"):
            remove(left)
        token = uuid.uuid4().hex
        write_json(folder / TOKEN, {"token": token})
        return cls(folder.resolve(), token, tuple(inputs), PATIENCE)

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
        for path in self.inputs:
            if not Path(path).exists():
                return f"the input {path} is not there on {host}; all nodes must see it"
        return None

    def wait_for(self, keys: Iterable[str]) -> None:
        """Give the file system ``patience`` seconds to show units that other machines committed."""
        end = time.monotonic() + self.patience
        while not all(map(self.is_done, keys)) and time.monotonic() < end:
            time.sleep(min(0.5, self.patience))

    # ---- one unit ----------------------------------------------------------------------------

    def commit(self, key: str, parts: Parts) -> dict[str, int]:
        """A unit's folder appears whole or not at all. Returns the count of every part.

        Parts are written in their order. A unit that is there already stays as it is.
        """
        temporary = self.folder / f".{key}-{uuid.uuid4().hex[:12]}"
        temporary.mkdir()
        try:
            record = {name: _write(temporary / name, write) for name, write in parts.items()}
            (temporary / RECORD).write_text(json.dumps({"parts": record}))
            self._publish(temporary, key)
        finally:  # a full disk: leave nothing behind that fills it
            remove(temporary)
        return {name: about["count"] for name, about in record.items()}

    def _publish(self, temporary: Path, key: str) -> None:
        try:
            publish_folder(temporary, self.folder / key)
        except OSError:
            if self.is_done(key):  # another attempt of the same unit was first: equal content
                return
            if not (self.folder / key).exists():
                raise
            publish_folder(temporary, self.folder / key, replace=True)

    def is_done(self, key: str) -> bool:
        """Whether a unit was committed and its files have the sizes that they had then."""
        parts = self._record(key)
        return parts is not None and all(
            _size(self.folder / key / name) == about["bytes"] for name, about in parts.items()
        )

    def fault(self, key: str) -> str | None:
        """What is wrong with a committed unit, by a look at every byte; None if nothing is."""
        parts = self._record(key)
        if parts is None:
            there = (self.folder / key).exists()
            return "its record is damaged" if there else "it is gone"
        for name, about in parts.items():
            path = self.folder / key / name
            if _size(path) != about["bytes"]:
                return f"{name} has {_size(path)} bytes, not {about['bytes']}"
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != about["sha256"]:
                    return f"{name} holds other bytes than were written"
        return None

    def discard(self, key: str) -> None:
        """Remove what there is of a unit."""
        remove(self.folder / key)

    def path(self, key: str, name: str) -> Path:
        """Where a part of a committed unit lies."""
        return self.folder / key / name

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

    def _record(self, key: str) -> dict[str, dict[str, Any]] | None:
        """Of every part its ``count``, ``bytes`` and ``sha256``; None without a sound record."""
        try:
            parts = json.loads((self.folder / key / RECORD).read_bytes())["parts"]
            sound = parts and all(
                Path(name).name == name
                and (type(about["count"]), type(about["bytes"]), type(about["sha256"]))
                == (int, int, str)
                for name, about in parts.items()
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return parts if sound else None


class _Measured(io.RawIOBase):
    """A file that hashes what is written to it."""

    def __init__(self, file: Any) -> None:
        self.file = file
        self.digest = hashlib.sha256()
        self.bytes = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        with memoryview(data) as view:
            self.file.write(view)
            self.digest.update(view)
            self.bytes += view.nbytes
            return view.nbytes


def _write(path: Path, write: Write) -> dict[str, Any]:
    with path.open("wb") as file:
        measured = _Measured(file)
        count = write(measured)
    return {"count": count, "bytes": measured.bytes, "sha256": measured.digest.hexdigest()}


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
