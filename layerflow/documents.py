"""JSON files that come with corpora, models and runs: untrusted, so read under limits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MAX_BYTES = 64 << 20
"""Enough for the shard list of the largest corpus and the inputs of the longest job."""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds one mapping.

    Raises ValueError that names the file when it is absent, larger than ``MAX_BYTES``, damaged,
    nested too deep, or no mapping.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error
    if len(data) > MAX_BYTES:
        raise ValueError(f"{path} cannot be read: it is larger than {MAX_BYTES} bytes")
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        text = "nested too deep" if isinstance(error, RecursionError) else str(error)[:200]
        raise ValueError(f"{path} cannot be read: it is no JSON: {text}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} cannot be read: it holds no mapping")
    return found
