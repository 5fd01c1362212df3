"""What a job was given, recorded beside its corpus, so that rejected rows can be replayed.

The record holds paths of this machine: it is a hidden file that is never published.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from layerflow.corpus.derive import RECORD, recorded_jobs
from layerflow.files import write_text
from pipelines.inputs.listing import TABLE_SUFFIXES

READ = ("inputs", "foregrounds", "backgrounds")
PATHS = (*READ, "weights", "refine_weights", "inpaint_weights", "prompts")
MAX_ROOTS = 32


def remember(out: Path, kind: str, recipe: str, options: Mapping[str, Any]) -> None:
    """Record a job's options, with local paths made absolute, under its recipe."""
    known = {name: value for name, value in options.items() if name != "out"}
    known |= {name: _absolute(known[name]) for name in PATHS if known.get(name)}
    jobs = recorded_jobs(out) | {recipe: {"kind": kind, "options": known}}
    write_text(out / RECORD, json.dumps(jobs, indent=2, sort_keys=True, default=str) + "\n")


def roots(options: Mapping[str, Any]) -> list[str]:
    """The local folders and media files that a job reads, the first ``MAX_ROOTS`` of them.

    Tables are left out: what they list may lie elsewhere.
    """
    named = [part for name in READ for part in options.get(name) or ()]
    local = [Path(part) for part in map(str, named) if "://" not in part]
    found = [path for path in local if path.exists() and path.suffix.lower() not in TABLE_SUFFIXES]
    return [str(path.resolve()) for path in found[:MAX_ROOTS]]


def _absolute(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_absolute(part) for part in value]
    if isinstance(value, str) and "://" not in value and Path(value).exists():
        return str(Path(value).resolve())
    return value
