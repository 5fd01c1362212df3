"""The harness of the corpus jobs: units of work on Ray Data, staged atomically, compacted once.

Every unit commits its own folder under ``OUT/staging`` by rename, so a job that is killed and
started again does only what is missing. The last step streams all units, in their order, into
the corpus' shards; the final bytes depend on the rows alone, not on workers or order of arrival.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from layerflow.corpus import (
    FORMAT_VERSION,
    REJECTED_SCHEMA,
    SCHEMA,
    Table,
    rejected_row,
    write_table,
)
from pipelines.replay import remember
from pipelines.staging import commit_unit, read_stream, write_json
from pipelines.workers import run_units


@dataclass(frozen=True)
class Unit:
    """One piece of work. ``payload`` holds plain values; ``order`` places its rows."""

    key: str
    order: int
    payload: dict[str, Any]


@dataclass
class Outcome:
    """What a unit gave: corpus rows in time order, and rejected rows.

    ``rows`` may be a generator, so that memory holds one row; ``rejected`` is read after it.
    """

    rows: Iterable[dict[str, Any]] = field(default_factory=list)
    rejected: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class FirstPass:
    """A cheap look at every unit before any of them does its work.

    look: payload -> JSON-able findings, run like the work itself. plan: sees all findings in the
    order of the units, one at a time, and returns what to add to the payloads of some units, by
    key. Every payload also gets ``look``: the path of the unit's own findings.
    """

    look: Callable[[dict[str, Any]], dict[str, Any]]
    plan: Callable[[Iterable[tuple[Unit, dict[str, Any]]]], Mapping[str, dict[str, Any]]]


Work = Callable[[dict[str, Any]], Outcome]
Refuse = Callable[[dict[str, Any]], str | None]
Choose = Callable[[Unit], bool]


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


def make_recipe(kind: str, options: dict[str, Any], version: int) -> Recipe:
    """A recipe from resolved options; run-time options and paths are left out."""
    kept = {name: value for name, value in options.items() if name not in RUNTIME_OPTIONS}
    for name in ("weights", "prompts"):
        if kept.get(name):
            kept[name] = Path(kept[name]).name
    return Recipe(kind, kept, version, options)


def unit_key(*parts: object) -> str:
    """A short, file-safe name for a unit from what identifies it."""
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:20]


@dataclass(frozen=True)
class Summary:
    """What a job did. ``reasons`` counts rejected rows by stage and reason, numbers as N."""

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
    workers: int | None = None,
    quiet: bool = False,
    schema: pa.Schema = SCHEMA,
    refuse: Refuse | None = None,
    first_pass: FirstPass | None = None,
    gpus: float = 0.0,
    only: Choose | None = None,
) -> Summary:
    """Run every unit that is not staged yet, then compact into the corpus ``out``.

    workers: Ray tasks at a time; None = all CPUs; 0 = in this process, without Ray. schema: of the
    corpus, ``SCHEMA`` and perhaps extra columns. refuse: sees all rows in their order and says why
    one is left out as a near-duplicate. first_pass: before the work. gpus: share of a GPU that
    one task of the work takes. only: whether a unit is wanted; without
    it all are.
    Raises ValueError when ``out`` holds something else or a corpus of another recipe, OSError when
    the disk is full; what was done by then is kept, and the same call goes on from there.
    """
    started = time.monotonic()
    units = [unit for unit in units if only is None or only(unit)]
    out.mkdir(parents=True, exist_ok=True)
    with _locked(out):
        plan = unit_key([unit.key for unit in units])
        done = _claim(out, recipe, plan)
        if done is not None:
            return done
        remember(out, recipe.kind, recipe.hash, recipe.given)
        staging = out / "staging"
        staging.mkdir(exist_ok=True)
        missing = [unit for unit in units if not (staging / unit.key).is_dir()]
        resumed = len(units) - len(missing)
        if first_pass is not None and missing:
            additions = _look_first(units, first_pass, staging / "looks", workers, quiet)
            missing = [replace(u, payload=u.payload | additions(u)) for u in missing]

        def do(key: str, payload: dict[str, Any]) -> dict[str, int]:
            return commit_unit(staging.resolve(), key, work(payload), schema)

        def is_done(key: str) -> bool:
            return (staging / key).is_dir()

        lost = run_units(missing, do, is_done, workers=workers, quiet=quiet, gpus=gpus)
        for unit in missing:
            if unit.key in lost:
                row = _lost(unit, lost[unit.key], recipe)
                commit_unit(staging, unit.key, Outcome(rejected=[row]), schema)
        try:
            summary = _compact(out, units, recipe, plan, schema, refuse)
        except OSError:
            shutil.rmtree(out / ".building", ignore_errors=True)
            raise
        return replace(summary, seconds=time.monotonic() - started, resumed=resumed)


def _lost(unit: Unit, reason: str, recipe: Recipe) -> dict[str, Any]:
    uri = str(unit.payload.get("uri", unit.key))
    return rejected_row(uri, "worker", reason, kind=recipe.kind, recipe=recipe.hash)


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(f"{out}: another job is writing this corpus") from error
        yield


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
        return None
    info = json.loads(info_path.read_text())
    if info.get("recipe") != recipe.hash:
        raise ValueError(
            f"{out} already holds a corpus of another recipe; choose another --out.\n"
            + _difference(info, recipe)
        )
    if info["state"] == "complete":
        if info["plan"] != plan:
            raise ValueError(
                f"{out} is complete, but was made from other inputs; choose another --out"
            )
        reasons = info["reasons"]
        return Summary(out, info["rows"], info["rejected"], reasons, 0.0, info["units"])
    return None


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
    old = {"kind": info.get("kind"), "version": info.get("version"), **info.get("options", {})}
    new = {"kind": recipe.kind, "version": recipe.version, **recipe.options}
    lines = [
        f"  {name}: {old.get(name)!r} there, {new.get(name)!r} asked"
        for name in sorted(set(old) | set(new))
        if old.get(name) != new.get(name)
    ]
    return "\n".join(lines) or "  (only the format version differs)"


def _look_first(
    units: Sequence[Unit], first_pass: FirstPass, folder: Path, workers: int | None, quiet: bool
) -> Callable[[Unit], dict[str, Any]]:
    """Take the looks that are missing; returns what each unit's payload gets."""
    folder.mkdir(exist_ok=True)
    found = {unit.key: folder.resolve() / f"{unit.key}.json" for unit in units}

    def look(key: str, payload: dict[str, Any]) -> dict[str, int]:
        write_json(found[key], first_pass.look(payload))
        return {}

    missing = [unit for unit in units if not found[unit.key].is_file()]
    lost = run_units(missing, look, lambda k: found[k].is_file(), workers=workers, quiet=quiet)
    seen = [unit for unit in units if unit.key not in lost]
    plan = first_pass.plan((unit, json.loads(found[unit.key].read_text())) for unit in seen)
    return lambda unit: {
        **plan.get(unit.key, {}),
        "look": None if unit.key in lost else str(found[unit.key]),
        "lost": lost.get(unit.key),
    }


def _compact(
    out: Path,
    units: Sequence[Unit],
    recipe: Recipe,
    plan: str,
    schema: pa.Schema,
    refuse: Refuse | None,
) -> Summary:
    """Stream staged rows, in unit order, into shards; publish them; drop the staging files."""
    staging, building = out / "staging", out / ".building"
    shutil.rmtree(building, ignore_errors=True)
    ordered = sorted(units, key=lambda unit: unit.order)
    reasons: Counter[str] = Counter()
    duplicates: list[dict[str, Any]] = []
    seen: dict[int, str] = {}  # ids as numbers and shared names: some 100 bytes a row

    def rows() -> Iterator[dict[str, Any]]:
        for unit in ordered:
            for row in read_stream(staging / unit.key / "rows.arrow"):
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
            yield from read_stream(staging / unit.key / "rejected.arrow")
        yield from duplicates

    def counted(source: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for row in source:
            reasons[f"{row['stage']}: {re.sub(r'-?[0-9][0-9.]*', 'N', row['reason'])}"] += 1
            yield row

    kept = write_table(building, rows(), schema)
    refused = write_table(building / "rejected", counted(rejected()), REJECTED_SCHEMA)
    _publish(building, out, schema)
    counts = {"rows": kept, "rejected": refused, "reasons": dict(reasons), "units": len(units)}
    write_json(out / "corpus.json", _info(recipe, plan, "complete", **counts))
    shutil.rmtree(staging)
    return Summary(out, kept, refused, dict(reasons), 0.0)


def _duplicate(row: dict[str, Any], reason: str, recipe: Recipe) -> dict[str, Any]:
    source = row["origin"]
    return rejected_row(
        source["uri"], "duplicates", reason, kind=row["kind"], recipe=recipe.hash,
        start=source["start"], end=source["end"],
    )  # fmt: skip


def _publish(building: Path, out: Path, schema: pa.Schema) -> None:
    """Move finished files into place, the one that makes them a corpus last."""
    shutil.rmtree(out / "rejected", ignore_errors=True)
    (building / "rejected").rename(out / "rejected")
    for path in sorted(building.iterdir(), key=lambda p: p.name == "state.json"):
        path.replace(out / path.name)
    building.rmdir()
    assert Table(out).schema.equals(schema)
