"""What a job was given, recorded beside its corpus, so that rejected rows can be replayed.

The record holds paths of this machine: it is a hidden file that is never published.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from layerflow.derive import RECORD, recorded_jobs

PATHS = ("inputs", "foregrounds", "backgrounds", "weights", "inpaint_weights", "prompts")


def remember(out: Path, kind: str, recipe: str, options: Mapping[str, Any]) -> None:
    """Record a job's options, with local paths made absolute, under its recipe."""
    known = {name: value for name, value in options.items() if name != "out"}
    known |= {name: _absolute(known[name]) for name in PATHS if known.get(name)}
    jobs = recorded_jobs(out) | {recipe: {"kind": kind, "options": known}}
    temporary = out / f"{RECORD}.tmp"
    temporary.write_text(json.dumps(jobs, indent=2, sort_keys=True, default=str) + "\n")
    temporary.replace(out / RECORD)


def _absolute(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_absolute(part) for part in value]
    if isinstance(value, str) and "://" not in value and Path(value).exists():
        return str(Path(value).resolve())
    return value
