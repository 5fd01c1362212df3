"""Files that appear whole or not at all: what a job's units leave for its last step."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from layerflow.corpus import REJECTED_SCHEMA

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})
"""Errors that another attempt on the same disk will meet again."""


class Rows(Protocol):
    """What a unit gave. ``rejected`` is complete once ``rows`` has been read to its end."""

    rows: Iterable[dict[str, Any]]
    rejected: list[dict[str, Any]]


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON through a temporary file of this process, so that a reader sees all or nothing."""
    temporary = path.with_name(f".{path.name}-{os.getpid()}.tmp")
    with temporary.open("w") as file:
        json.dump(content, file, indent=2, sort_keys=True)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read_stream(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of an Arrow stream file, one record batch in memory at a time."""
    with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as reader:
        for batch in reader:
            yield from batch.to_pylist()


def _write_stream(path: Path, rows: Iterable[dict[str, Any]], schema: pa.Schema) -> int:
    count = 0
    with path.open("wb") as file:
        with pa.ipc.new_stream(file, schema) as writer:
            for row in rows:
                writer.write_batch(pa.RecordBatch.from_pylist([row], schema=schema))
                count += 1
        file.flush()
        os.fsync(file.fileno())
    return count


def commit_unit(staging: Path, key: str, outcome: Rows, schema: pa.Schema) -> dict[str, int]:
    """A unit's folder appears whole or not at all. Returns how many rows it holds."""
    temporary = staging / f".{key}-{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        kept = _write_stream(temporary / "rows.arrow", outcome.rows, schema)
        refused = _write_stream(temporary / "rejected.arrow", outcome.rejected, REJECTED_SCHEMA)
    except OSError:  # a full disk: leave nothing behind that fills it
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    try:
        temporary.rename(staging / key)
    except OSError:  # another attempt of the same unit was first: equal content
        shutil.rmtree(temporary)
    return {"kept": kept, "rejected": refused}
