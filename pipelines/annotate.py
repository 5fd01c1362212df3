"""``layerflow annotate``: corrected prompts, scores and rights of a corpus, without new media.

What a table says of clips by their ids becomes a small table of the corpus' next version, laid over
the rows as they are read: ``layerflow.corpus.changes.overlay``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layerflow.corpus.changes.overlay import PROMPTS
from layerflow.corpus.changes.tombstones import Tombstones, licence_tokens
from layerflow.corpus.columns import RIGHTS
from layerflow.corpus.scores import QUALITY_FIELDS
from layerflow.corpus.table import Corpus
from layerflow.nearest import did_you_mean
from pipelines.engine.rewriting import Rewriting, pieces_of, rewrite, write_overlay
from pipelines.engine.workers import Pool
from pipelines.inputs.prompts import clean_text
from pipelines.inputs.rows import read_rows
from pipelines.publish.licences import licence_text

NAMES = (*PROMPTS, *QUALITY_FIELDS, *RIGHTS)


@dataclass(frozen=True)
class Annotated:
    """The version that the corpus is at; clips whose values changed, and how many by column."""

    version: int
    clips: int
    columns: dict[str, int]


def run_annotate(path: str | Path, table: Path) -> Annotated:
    """Correct the values that a table (CSV, JSONL or Parquet) has for clips, by the column ``id``.

    An empty cell leaves a value as it is; so does one that is the same. Raises ValueError for a
    column that is none, an id that is not there or comes twice, and a value that does not fit.
    """
    wanted = read_corrections(table)
    changed: dict[str, dict[str, Any]] = {}

    def plan(corpus: Corpus) -> Rewriting | None:
        assert corpus.version is not None
        changed.update(_changed(corpus, wanted, table))
        if not changed:
            return None
        tombstones = Tombstones.of(corpus.store, corpus.version)
        for id, new in changed.items():
            if met := tombstones.meets(licence_tokens(new.get("licence"))):
                raise ValueError(f"{table}: clip {id[:40]}: clips of this licence were {met}")
        values = {id: dict(new) for id, new in corpus.overlay.values.items()}
        for id, new in changed.items():
            values.setdefault(id, {}).update(new)
        shard = write_overlay(corpus.store, values)
        groups = [[piece] for piece in pieces_of(corpus)]
        return Rewriting("annotate", groups, {"overlay": (shard,)})

    version = rewrite(path, plan, Pool(0, True), finish=lambda store, version: None)
    counted = Counter(name for new in changed.values() for name in new)
    return Annotated(version.number, len(changed), dict(sorted(counted.items())))


def read_corrections(table: Path) -> dict[str, dict[str, Any]]:
    """What a table says, by id. Errors as of ``run_annotate``."""
    rows = read_rows(table, {"id", *NAMES}.__contains__)
    for column in rows.columns:
        if column not in ("id", *NAMES):
            hint = did_you_mean(column, NAMES)
            text = f"{table}: {column[:60]!r} is nothing that can be corrected; {hint}there are id"
            raise ValueError(f"{text}, {', '.join((*PROMPTS, *RIGHTS))} and the scores")
    if "id" not in rows.columns:
        raise ValueError(f"{table} has no column id")
    found: dict[str, dict[str, Any]] = {}
    for number, row in enumerate(rows.rows, 1):
        id = str(row.get("id") or "").strip()
        if not id or id in found:
            raise ValueError(f"{table}: row {number}: the id {id[:40]!r} is none, or there twice")
        try:
            found[id] = {n: _value(n, row[n]) for n in NAMES if row.get(n) not in (None, "")}
        except ValueError as error:
            raise ValueError(f"{table}: row {number}: {error}") from error
    return found


def _value(name: str, cell: Any) -> Any:
    if name in QUALITY_FIELDS:
        try:
            value = float(cell)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name} {str(cell)[:40]!r} is no number") from error
        if not math.isfinite(value):
            raise ValueError(f"{name} is not finite")
        return value
    if name == "licence":
        return licence_text(cell)
    if not isinstance(cell, str):
        raise ValueError(f"{name} {str(cell)[:40]!r} is no text")
    return clean_text(cell)


def _changed(
    corpus: Corpus, wanted: Mapping[str, Mapping[str, Any]], table: Path
) -> dict[str, dict[str, Any]]:
    """The values that differ from those of the corpus, by id."""
    found: dict[str, dict[str, Any]] = {}
    left = set(wanted)
    same = {True: _same_number, False: lambda old, new: old == new}
    for row in corpus.rows(["id", *PROMPTS, "origin", "quality"]):
        if row["id"] not in left:
            continue
        left.discard(row["id"])
        flat = {**(row["quality"] or {}), **row, **row["origin"]}
        equal: Callable[[Any, Any], bool]
        for name, new in wanted[row["id"]].items():
            equal = same[name in QUALITY_FIELDS]
            if name in QUALITY_FIELDS and name not in (row["quality"] or {}):
                raise ValueError(f"{corpus.path}: this corpus has no score {name}")
            if not equal(flat.get(name), new):
                found.setdefault(row["id"], {})[name] = new
    if left:
        raise ValueError(f"{table}: {len(left)} ids are not in the corpus, such as {min(left)!r}")
    return found


def _same_number(old: float | None, new: float) -> bool:
    """Whether a score, which is stored as float32, is there already."""
    import numpy as np

    return old is not None and np.float32(old) == np.float32(new)
