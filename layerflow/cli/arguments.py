"""What the functions of ``layerflow.front`` were given, as manifests and requests hold it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

RUNTIME = ("append", "workers", "accept_lost", "quiet")
"""Arguments that say how a job is run: no manifest holds them."""
PATHS = ("corpus", "out", "model", "predictions", "clip", "aesthetic")
"""Arguments that requests hold as ``Path``."""
MANY = ("inputs", "foregrounds", "backgrounds")


def many(value: str | Path | Sequence[str | Path]) -> list[str]:
    """One place or several as a list of texts."""
    return [str(item) for item in ([value] if isinstance(value, str | Path) else value)]


def manifest(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments as keys of a manifest: no run-time ones, none that was left out."""
    content = {k: v for k, v in arguments.items() if k not in RUNTIME and v is not None}
    lists = {name: many(content[name]) for name in MANY if name in content}
    return {k: str(v) if isinstance(v, Path) else v for k, v in content.items()} | lists
