"""New corpora from old ones: filter by stored values, merge, split. Nothing is decoded.

The media bytes are copied as they are, a record batch at a time. A new corpus appears whole or
not at all, and the originals are never touched; the same request on a finished output does
nothing.
"""

from __future__ import annotations

import hashlib
import json
import math
import operator
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa

from layerflow.clip import KINDS
from layerflow.corpus.changes.tombstones import Tombstones, left_out
from layerflow.corpus.columns import COLUMNS, joined_schema, small_columns
from layerflow.corpus.log import REJECTED, Version, commit
from layerflow.corpus.published import PublishedCorpus, is_remote
from layerflow.corpus.row_cells import check_stored
from layerflow.corpus.scores import QUALITY_FIELDS
from layerflow.corpus.splits import Assignment, assign
from layerflow.corpus.stats import chunks, read_batches, small_rows, tallied
from layerflow.corpus.store import Store
from layerflow.corpus.table import (
    FORMAT_VERSION,
    REJECTED_SCHEMA,
    Corpus,
    rejected_row,
)
from layerflow.corpus.validate import refuse_unsound
from layerflow.corpus.writer import record_batches, write_batches, write_shards_of
from layerflow.documents import read_json
from layerflow.files import new_folder, write_json
from layerflow.media.opening import MediaError
from layerflow.nearest import did_you_mean
from layerflow.outputs import local_output

RECORD = ".inputs.json"  # beside a corpus: its jobs' options with paths, by recipe; local only
Rows = Iterator[dict[str, Any]]
AnyCorpus = Corpus | PublishedCorpus

OPERATORS = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
NUMBERS = ("num_frames", "height", "width", "fps", "seconds", *QUALITY_FIELDS)
WORDS = (*(c.name for c in COLUMNS if c.words), "licence", "uri", "id", "recipe")
CONDITION = re.compile(r"\s*([a-z_]+)\s*(<=|>=|==|!=|=|<|>)\s*('[^']*'|\"[^\"]*\"|[^\s'\"]+)\s*")


@dataclass(frozen=True)
class Condition:
    """``name operator value`` on one row; unknown when the row has no such score."""

    name: str
    operator: str
    value: float | str

    def __str__(self) -> str:
        value = self.value if isinstance(self.value, str) else f"{self.value:g}"
        return f"{self.name} {self.operator} {value}"

    def of(self, row: Mapping[str, Any]) -> float | str | None:
        """The row's value of this condition's name, or None."""
        if self.name == "seconds":
            return float(row["num_frames"] / row["fps"]) if row["kind"] != "image" else 0.0
        if self.name in ("licence", "uri"):
            return row["origin"][self.name] or ""
        found = row["quality"].get(self.name) if self.name in QUALITY_FIELDS else row.get(self.name)
        return found if found is None or isinstance(found, str) else float(found)

    def holds(self, row: Mapping[str, Any]) -> bool | None:
        value = self.of(row)
        return None if value is None else bool(OPERATORS[self.operator](value, self.value))


def parse_where(text: str) -> list[Condition]:
    """``flicker<0.02 and kind==mined`` -> conditions that must all hold.

    Names are the quality scores, num_frames, height, width, fps, seconds, and (with == and != only)
    licence, uri, id, recipe and the columns of words. Nothing is evaluated as code.
    Raises ValueError that says what may be written.
    """
    conditions = []
    for part in re.split(r"\s+and\s+|,", text.strip()):
        match = CONDITION.fullmatch(part)
        if match is None:
            raise ValueError(f"{part!r} is no condition; write it like flicker<0.02")
        name, sign, value = match[1], match[2] if match[2] != "=" else "==", match[3]
        if name in WORDS:
            if sign not in ("==", "!="):
                raise ValueError(f"{part!r}: {name} can only be compared with == and !=")
            conditions.append(Condition(name, sign, value.strip("'\"")))
        elif name in NUMBERS:
            conditions.append(Condition(name, sign, _number(part, value)))
        else:
            known = [*NUMBERS, *WORDS]
            hint = did_you_mean(name, known)
            raise ValueError(f"{name!r} is no score or column; {hint}there are {known}")
    return conditions


def _number(part: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError as error:
        raise ValueError(f"{part!r}: {text!r} is no number") from error
    if not math.isfinite(value):
        raise ValueError(f"{part!r}: {text!r} is not finite")
    return value


@dataclass(frozen=True)
class Selection:
    """Which rows are wanted: those of some kinds (none: of all) for which every condition holds.

    keep_unknown: also rows that have no such score. without: ids of rows that are not.
    """

    conditions: tuple[Condition, ...] = ()
    kinds: tuple[str, ...] = ()
    keep_unknown: bool = False
    without: frozenset[str] = frozenset()

    @classmethod
    def of(
        cls,
        where: Sequence[str] = (),
        kinds: Sequence[str] = (),
        keep_unknown: bool = False,
        without: Iterable[str] = (),
    ) -> Selection:
        """Of what a user wrote. Raises ValueError as ``parse_where``, and for an unknown kind."""
        conditions = tuple(condition for text in where for condition in parse_where(text))
        unknown = set(kinds) - set(KINDS)
        if unknown:
            raise ValueError(f"{sorted(unknown)} are no kinds; there are {KINDS}")
        return cls(conditions, tuple(sorted(kinds)), keep_unknown, frozenset(without))

    def options(self) -> dict[str, Any]:
        """As it goes on record."""
        where = [str(condition) for condition in self.conditions]
        said = {"where": where, "kinds": list(self.kinds), "keep_unknown": self.keep_unknown}
        return said | ({"without": sorted(self.without)} if self.without else {})

    def refuses(self, row: Mapping[str, Any]) -> str | None:
        """Why a row (its small columns) is not wanted; None for one that is."""
        if row["id"] in self.without:
            return "its id was left out"
        if self.kinds and row["kind"] not in self.kinds:
            return f"kind {row['kind']} is not asked for"
        for condition in self.conditions:
            holds = condition.holds(row)
            if holds is None and not self.keep_unknown:
                return f"there is no score {condition.name}"
            if holds is False:
                return f"{condition.name} {condition.of(row)} is not {condition}"[:300]
        return None


@dataclass(frozen=True)
class Derived:
    """A corpus that was made from others: where, how many rows, how many left out."""

    out: Path
    rows: int
    left_out: int
    reasons: dict[str, int]


def filter_corpus(
    corpus: AnyCorpus,
    out: Path,
    *,
    where: Sequence[str] = (),
    kinds: Sequence[str] = (),
    keep_unknown: bool = False,
    without: Iterable[str] = (),
) -> Derived:
    """The rows for which every condition holds; the others go to ``OUT/rejected`` with the reason,
    and so do rows that ``layerflow validate`` refuses without decoding them.

    Of a published corpus only row groups with a row that stays are read whole.
    kinds: also only these kinds. keep_unknown: keep rows that have no such score. without: ids of
    rows that go.
    """
    selection = Selection.of(where, kinds, keep_unknown, without)
    if not (selection.conditions or kinds or selection.without):
        raise ValueError("nothing to filter by: give --where, --kind or --without")
    refuse_unsound(corpus, ids=False)
    broken: list[dict[str, Any]] = []

    def kept() -> Rows:
        for row in selected(corpus, lambda _, row: selection.refuses(row) is None):
            try:
                check_stored(row)
            except MediaError as error:
                broken.append(_left_out(row, "validate", str(error)[:300]))
            else:
                yield row

    def left_out() -> Rows:
        yield from broken
        for row in small_rows(corpus):
            why = selection.refuses(row)
            if why is not None:
                yield _left_out(row, "filter", why)

    options = selection.options()
    return write_derived(out, "filter", options, [corpus], corpus.schema, kept(), left_out())


def merge_corpora(corpora: Sequence[AnyCorpus], out: Path) -> Derived:
    """All rows in the order given; of rows with one id the first stays. Rejected tables are joined.

    Raises ValueError when the corpora have different columns.
    """
    if not corpora:
        raise ValueError("nothing to merge")
    schema = corpora[0].schema
    for corpus in corpora[1:]:
        joined = joined_schema([schema, corpus.schema])
        if joined is None:
            raise ValueError(f"{corpus.path} and {corpora[0].path} have different columns")
        schema = joined
    for corpus in corpora:
        refuse_unsound(corpus, ids=False)
    seen: set[str] = set()
    repeated: list[dict[str, Any]] = []

    def kept() -> Rows:
        for corpus in corpora:
            for row in (row for batch in read_batches(corpus) for row in batch.to_pylist()):
                if row["id"] in seen:
                    text = f"id {row['id']} is also in an earlier row"
                    repeated.append(_left_out(row, "merge", text))
                else:
                    seen.add(row["id"])
                    yield sound(corpus, row)

    def left_out() -> Rows:
        for corpus in corpora:
            if (table := corpus.rejected_table()) is not None:
                yield from table.rows()
        yield from repeated

    return write_derived(out, "merge", {}, corpora, schema, kept(), left_out())


def split_corpus(
    corpus: AnyCorpus, out: Path, fractions: Mapping[str, float], *, seed: int = 0
) -> tuple[dict[str, Derived], Assignment]:
    """``OUT/<split>`` for every split; see ``layerflow.corpus.splits.assign``."""
    out = local_output(out)
    refuse_unsound(corpus, ids=False)
    assignment = assign(list(small_rows(corpus)), fractions, seed)
    made = {}
    for name in fractions:
        wanted = [split == name for split in assignment.names]
        options = {"split": name, "fractions": dict(fractions), "seed": seed}
        chosen = selected(corpus, lambda index, _, wanted=wanted: wanted[index])
        rows = (sound(corpus, row) for row in chosen)
        made[name] = write_derived(
            out / name, "split", options, [corpus], corpus.schema, rows, iter(())
        )
    return made, assignment


def selected(corpus: AnyCorpus, wanted: Any) -> Rows:
    """Whole rows for which ``wanted(index, row without media)``; media of others stay where they
    are: of a published corpus, in row groups that are not read."""
    index = 0
    for chunk in chunks(corpus):
        small = chunk(small_columns(corpus.schema)).to_pylist()
        places = [i for i, row in enumerate(small) if wanted(index + i, row)]
        index += len(small)
        if places:
            yield from chunk(None).take(pa.array(places)).to_pylist()


def sound(corpus: AnyCorpus, row: dict[str, Any]) -> dict[str, Any]:
    """The row. Raises ValueError when ``layerflow validate`` refuses it without decoding it."""
    try:
        check_stored(row)
    except MediaError as error:
        text = f"{corpus.path} cannot be used: row {str(row['id'])[:40]}, {error}"
        raise ValueError(f"{text}. Fix: leave this row out with `layerflow filter`") from error
    return row


def _name(corpus: AnyCorpus) -> str:
    return str(corpus.path) if is_remote(corpus.path) else Path(corpus.path).resolve().name


def _left_out(row: Mapping[str, Any], step: str, reason: str) -> dict[str, Any]:
    source = row["origin"]
    scores = {name: value for name, value in row["quality"].items() if value is not None}
    return rejected_row(
        source["uri"], step, reason, kind=row["kind"], recipe=row["recipe"],
        start=source["start"], end=source["end"], quality=scores,
    )  # fmt: skip


def recorded_jobs(path: str | Path) -> dict[str, Any]:
    """The jobs that made a corpus: recipe -> kind and options; empty when nothing is recorded."""
    record = Path(path) / RECORD
    try:
        return read_json(record)
    except ValueError:
        return {}


def write_derived(
    out: Path,
    kind: str,
    options: dict[str, Any],
    corpora: Sequence[AnyCorpus],
    schema: pa.Schema,
    rows: Rows,
    rejected: Rows,
) -> Derived:
    """A new corpus of ``rows`` and ``rejected``, which were taken from ``corpora``.

    It appears whole; the same request on a finished ``out`` does nothing. Raises ValueError when
    ``out`` holds something else.
    """
    out = local_output(out)
    tombstones = Tombstones.of_all(corpora)
    parents = [*(c.identity() for c in corpora), *(one.file for one in tombstones.entries)]
    recipe = hashlib.sha256(json.dumps([kind, options, parents]).encode()).hexdigest()[:16]
    if out.exists():
        return _finished(out, recipe)
    reasons: Counter[str] = Counter()
    with new_folder(out) as building:
        removed: list[dict[str, Any]] = []
        made = write_shards_of(building, _allowed(rows, tombstones, removed), schema)
        turned = tombstones.cleaned(record_batches(rejected, REJECTED_SCHEMA))
        every = chain(turned, record_batches(removed, REJECTED_SCHEMA))
        refused = write_batches(building / REJECTED, tallied(every, reasons), REJECTED_SCHEMA)
        kept, left_out = (sum(one.rows or 0 for one in shards) for shards in (made, refused))
        info = {
            "kind": kind,
            "recipe": recipe,
            "options": options,
            "version": 1,
            "format_version": FORMAT_VERSION,
            "state": "complete",
            "rows": kept,
            "rejected": left_out,
            "reasons": dict(reasons),
            "made_from": [{"name": _name(c), **c.info} for c in corpora],
        }
        write_json(building / "corpus.json", info)
        names = tombstones.put(Store(building))
        commit(Store(building), Version(1, kind, made, refused, info, tombstones=names))
        jobs = {k: job for c in reversed(corpora) for k, job in recorded_jobs(c.path).items()}
        if jobs:
            write_json(building / RECORD, jobs)
    return Derived(out, kept, left_out, dict(reasons))


def _allowed(rows: Rows, tombstones: Tombstones, removed: list[dict[str, Any]]) -> Rows:
    """The rows that may be there; those of removed sources become rejected rows."""
    for row in rows:
        why = tombstones.refuses(row)
        if why is None:
            yield row
        else:
            removed.append(left_out(row, why))


def _finished(out: Path, recipe: str) -> Derived:
    info = Corpus.open(out).info if (out / "state.json").is_file() else {}
    if info.get("recipe") != recipe or info.get("state") != "complete":
        raise ValueError(f"{out} exists and is not the result of this request; choose another")
    return Derived(out, info["rows"], info["rejected"], info["reasons"])
