"""The corpus jobs: units that make rows, put together into a corpus.

The rows of all units are streamed, in their order, into the corpus' shards; the final bytes depend
on the rows alone, not on workers or order of arrival. How units run: ``engine.runner``.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypedDict, Unpack

import pyarrow as pa

from layerflow.corpus.stats import tallied
from layerflow.corpus.table import FORMAT_VERSION, REJECTED_SCHEMA, SCHEMA, Table, rejected_row
from layerflow.corpus.writer import write_table
from layerflow.documents import read_json
from layerflow.files import publish_file, publish_folder, remove, write_json
from layerflow.outputs import local_output
from pipelines.engine.replay import remember, roots
from pipelines.engine.runner import Place, Survey, run_units
from pipelines.engine.staging import Parts, Staging, stream_part
from pipelines.engine.workers import Pool, Unit, require_packages


@dataclass
class Outcome:
    """What a unit gave: corpus rows in time order, and rejected rows.

    ``rows`` may be a generator, so that memory holds one row; ``rejected`` is read after it.
    """

    rows: Iterable[dict[str, Any]] = field(default_factory=list)
    rejected: list[dict[str, Any]] = field(default_factory=list)


Work = Callable[[dict[str, Any]], Outcome]
Refuse = Callable[[dict[str, Any]], str | None]
Choose = Callable[[Unit], bool]


class Running(TypedDict, total=False):
    """How a job is run, whatever it does.

    workers: Ray tasks at a time, None for all CPUs, 0 for this process. quiet: no progress. only:
    whether a unit is wanted, all by default. accept_lost: any number of units may fail for one
    reason, as rejected rows.
    """

    workers: int | None
    quiet: bool
    only: Choose | None
    accept_lost: bool


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


RUNTIME_OPTIONS = frozenset({"out", "inputs", "foregrounds", "backgrounds", "workers", "deadline"})


def make_recipe(
    kind: str, options: dict[str, Any], version: int, packages: Mapping[str, str] | None = None
) -> Recipe:
    """A recipe from resolved options; run-time options and paths are left out.

    packages: of others that take part, option -> ``NAME==VERSION``.
    """
    kept = {name: value for name, value in options.items() if name not in RUNTIME_OPTIONS}
    for name in ("weights", "prompts"):
        if kept.get(name):
            kept[name] = Path(kept[name]).name
    kept |= {"packages": dict(packages)} if packages else {}
    return Recipe(kind, kept, version, options)


def unit_key(*parts: object) -> str:
    """A short, file-safe name for a unit from what identifies it."""
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:20]


@dataclass(frozen=True)
class Summary:
    """What a job did. ``reasons`` counts rejected rows by step and reason, numbers as N."""

    out: Path
    kept: int
    rejected: int
    reasons: dict[str, int]
    seconds: float
    resumed: int = 0


def run_job(
    units: Sequence[Unit],
    work: Work,
    *,
    out: Path,
    recipe: Recipe,
    schema: pa.Schema = SCHEMA,
    refuse: Refuse | None = None,
    survey: Survey | None = None,
    light: bool = False,
    gpus: float = 0.0,
    **how: Unpack[Running],
) -> Summary:
    """Run every unit that is not staged yet, then compact into the corpus ``out``.

    schema: of the corpus, ``SCHEMA`` and perhaps extra columns. refuse: sees all rows in their
    order and says why one is left out as a near-duplicate. survey: before the work. light, gpus:
    see ``Pool``. how: see ``Running``.
    Raises ValueError when ``out`` holds something else or a corpus of another recipe, OSError when
    the disk is full or the fault lies with the machines (``engine.workers``); what was done by
    then is kept, and the same call goes on from there.
    """
    started = time.monotonic()
    out = local_output(out)
    only = how.get("only")
    units = [unit for unit in units if only is None or only(unit)]
    workers, quiet = how.get("workers"), how.get("quiet", False)
    plan = unit_key([unit.key for unit in units])
    busy = f"{out}: another job is writing this corpus"
    return run_units(
        units,
        Place(out / "staging", out / ".lock", busy, roots(recipe.given)),
        partial(_parts, work, schema, recipe.options.get("packages", {})),
        Pool(workers, quiet, light, gpus, how.get("accept_lost", False)),
        settle=partial(_lost, recipe, schema),
        compact=partial(_compact, started, out, units, recipe, plan, schema, refuse),
        claim=partial(_claim, out, recipe, plan),
        survey=survey,
    )


ROWS, REJECTED = "rows.arrow", "rejected.arrow"


def _parts(
    work: Work, schema: pa.Schema, packages: Mapping[str, str], payload: dict[str, Any]
) -> Parts:
    require_packages(packages)
    return _as_parts(work(payload), schema)


def _as_parts(outcome: Outcome, schema: pa.Schema) -> Parts:
    """What a unit commits; ``outcome.rejected`` is complete once the rows have been written."""
    return {
        ROWS: stream_part(outcome.rows, schema),
        REJECTED: lambda file: stream_part(outcome.rejected, REJECTED_SCHEMA)(file),
    }


def _lost(recipe: Recipe, schema: pa.Schema, unit: Unit, reason: str) -> Parts:
    """What a unit commits that was given up: one rejected row."""
    uri = str(unit.payload.get("uri", unit.key))
    row = rejected_row(uri, "worker", reason, kind=recipe.kind, recipe=recipe.hash)
    return _as_parts(Outcome(rejected=[row]), schema)


def _claim(out: Path, recipe: Recipe, plan: str) -> Summary | None:
    """Start or continue; a Summary when the same job is already complete."""
    info_path = out / "corpus.json"
    if not info_path.is_file():
        others = [p.name for p in out.iterdir() if p.name[0] != "." and p.name != "staging"]
        if others:
            raise ValueError(
                f"{out} is not empty and holds no corpus of ours (found {sorted(others)[:3]}); "
                "choose another --out"
            )
        write_json(info_path, _info(recipe, plan, "running"))
    info = read_json(info_path)
    if info.get("recipe") != recipe.hash:
        raise ValueError(
            f"{out} already holds a corpus of another recipe; choose another --out.\n"
            + _difference(info, recipe)
        )
    _check_info(info_path, info)
    if info["state"] == "complete":
        if info["plan"] != plan:
            raise ValueError(
                f"{out} is complete, but was made from other inputs; choose another --out"
            )
        reasons = info["reasons"]
        return Summary(out, info["rows"], info["rejected"], reasons, 0.0, info["units"])
    remember(out, recipe.kind, recipe.hash, recipe.given)
    return None


INFO: dict[str, type] = {"state": str, "plan": str}
COUNTS: dict[str, type] = {"rows": int, "rejected": int, "units": int, "reasons": dict}


def _check_info(path: Path, info: Mapping[str, Any]) -> None:
    """Raises ValueError when ``corpus.json`` says something else than this job writes."""
    fields = INFO | (COUNTS if info.get("state") == "complete" else {})
    wrong = [name for name, kind in fields.items() if type(info.get(name)) is not kind]
    if wrong:
        raise ValueError(f"{path} is damaged: its {wrong[0]} is wrong; choose another --out")


def _info(recipe: Recipe, plan: str, state: str, **more: Any) -> dict[str, Any]:
    return {
        "kind": recipe.kind,
        "recipe": recipe.hash,
        "options": recipe.options,
        "version": recipe.version,
        "format_version": FORMAT_VERSION,
        "plan": plan,
        "state": state,
        **more,
    }


def _difference(info: dict[str, Any], recipe: Recipe) -> str:
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


def _compact(
    started: float,
    out: Path,
    units: Sequence[Unit],
    recipe: Recipe,
    plan: str,
    schema: pa.Schema,
    refuse: Refuse | None,
    staging: Staging,
    resumed: int,
) -> Summary:
    """Stream staged rows, in unit order, into shards, and publish them."""
    ordered = sorted(units, key=lambda unit: unit.order)
    reasons: Counter[str] = Counter()
    duplicates: list[dict[str, Any]] = []
    seen: dict[int, str] = {}  # ids as numbers and shared names: some 100 bytes a row

    def rows() -> Iterator[dict[str, Any]]:
        for unit in ordered:
            for row in staging.rows(unit.key, ROWS):
                number = int(row["id"], 16)
                if number in seen:
                    text = f"the same content as {seen[number]}"
                    duplicates.append(_duplicate(row, text, recipe))
                    continue
                reason = refuse(row) if refuse is not None else None
                if reason is not None:
                    duplicates.append(_duplicate(row, reason, recipe))
                    continue
                seen[number] = sys.intern(row["origin"]["uri"])
                yield row

    def rejected() -> Iterator[dict[str, Any]]:
        for unit in ordered:
            yield from staging.rows(unit.key, REJECTED)
        yield from duplicates

    building = out / ".building"
    remove(building)
    try:
        kept = write_table(building, rows(), schema)
        counted = tallied(rejected(), reasons)
        refused = write_table(building / "rejected", counted, REJECTED_SCHEMA)
        _publish(building, out, schema)
    finally:
        remove(building)
    counts = {"rows": kept, "rejected": refused, "reasons": dict(reasons), "units": len(units)}
    write_json(out / "corpus.json", _info(recipe, plan, "complete", **counts))
    return Summary(out, kept, refused, dict(reasons), time.monotonic() - started, resumed)


def _duplicate(row: dict[str, Any], reason: str, recipe: Recipe) -> dict[str, Any]:
    source = row["origin"]
    return rejected_row(
        source["uri"], "duplicates", reason, kind=row["kind"], recipe=recipe.hash,
        start=source["start"], end=source["end"],
    )  # fmt: skip


def _publish(building: Path, out: Path, schema: pa.Schema) -> None:
    """Move finished files into place, the one that makes them a corpus last."""
    publish_folder(building / "rejected", out / "rejected", replace=True)
    for path in sorted(building.iterdir(), key=lambda p: p.name == "state.json"):
        publish_file(path, out / path.name)
    assert Table(out).schema.equals(schema)
