"""What decides the rows of a corpus job, and what is said of it when it is done."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from layerflow.corpus.table import FORMAT_VERSION


@dataclass(frozen=True)
class Recipe:
    """What decides the rows: the job, its options without run-time ones, its format version.
    ``given``: all its options, for a later replay."""

    kind: str
    options: dict[str, Any]
    version: int
    given: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def hash(self) -> str:
        text = json.dumps([self.kind, self.options, self.version, FORMAT_VERSION], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


RUNTIME_OPTIONS = frozenset(
    {"out", "inputs", "foregrounds", "backgrounds", "against", "workers", "deadline"}
    | {"refine_weights"}  # what the weights of a refiner hold is said beside its name
)


def make_recipe(
    kind: str, options: dict[str, Any], version: int, packages: Mapping[str, str] | None = None
) -> Recipe:
    """A recipe from resolved options; run-time options and paths are left out.

    packages: of others that take part, option -> ``NAME==VERSION``.
    """
    kept = {name: value for name, value in options.items() if name not in RUNTIME_OPTIONS}
    for name in ("weights", "inpaint_weights", "prompts"):
        if kept.get(name):
            kept[name] = Path(kept[name]).name
    kept |= {"packages": dict(packages)} if packages else {}
    return Recipe(kind, kept, version, options)


def unit_key(*parts: object) -> str:
    """A short, file-safe name for a unit from what identifies it."""
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:20]


@dataclass(frozen=True)
class Summary:
    """What a job did. ``reasons`` counts rejected rows by step and reason, numbers as N. added: of
    ``kept``, those that came to a corpus which was there; None for a new one."""

    out: Path | str
    kept: int
    rejected: int
    reasons: dict[str, int]
    seconds: float
    resumed: int = 0
    added: int | None = None


def difference(info: Mapping[str, Any], recipe: Recipe) -> str:
    """One line for each option in which what is recorded differs from a recipe."""
    said = info.get("options")
    old = {"kind": info.get("kind"), "version": info.get("version")}
    old |= said if isinstance(said, dict) else {}
    new = {"kind": recipe.kind, "version": recipe.version, **recipe.options}
    lines = [
        f"  {name}: {old.get(name)!r} there, {new.get(name)!r} asked"
        for name in sorted(set(old) | set(new))
        if old.get(name) != new.get(name)
    ]
    return "\n".join(lines) or "  (only the format version differs)"
