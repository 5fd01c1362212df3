"""JSON files that come with corpora, models and runs: untrusted, so read under limits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from layerflow.regular import read_regular

MAX_BYTES = 64 << 20
"""Enough for the shard list of the largest corpus and the inputs of the longest job."""


def read_json(path: Path, needs: Mapping[str, type] | None = None) -> dict[str, Any]:
    """A JSON file that holds one mapping. needs: keys that it must have -> the type of each.

    Raises ValueError that names the file when it is absent, larger than ``MAX_BYTES``, damaged,
    nested too deep, no mapping, or without what it ``needs``.
    """
    try:
        data = read_regular(path, MAX_BYTES)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error
    found = parse_json(data, path)
    for name, kind in (needs or {}).items():
        if type(found.get(name)) is not kind:
            text = f"its {name!r} is missing or no {kind.__name__}"
            raise ValueError(f"{path} cannot be read: {text}")
    return found


def parse_json(data: bytes, path: Path | str) -> dict[str, Any]:
    """The bytes of such a file, which ``path`` names. Raises ValueError as ``read_json`` does."""
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
