"""What the functions of ``layerflow.front`` were given, as manifests and requests hold it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

Size = str | tuple[int, int]
"""Height and width in pixels: ``(480, 720)`` or ``"480x720"``."""
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


def size_of(size: Size | None) -> tuple[int, int] | None:
    """A size as numbers."""
    if size is None or not isinstance(size, str):
        return size
    from manifests.common import parse_size

    return parse_size(size)


def request_of(kind: Any, arguments: dict[str, Any], **values: Any) -> Any:
    """A dataclass of the arguments that it has fields for, the size as ``height`` and ``width``."""
    height, width = size_of(arguments.get("size")) or (None, None)
    known = {**arguments, "height": height, "width": width, **values}
    known |= {name: Path(known[name]) for name in PATHS if known.get(name) is not None}
    return kind(**{field.name: known[field.name] for field in fields(kind)})
