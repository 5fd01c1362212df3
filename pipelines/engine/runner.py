"""The one way in which units run: staged whole each, done again where missing, put together once.

    lock -> claim -> survey -> the units that are not staged yet -> the lost ones settled -> compact

A job that is killed and started again does only what is missing. What it claims, what its units
commit and what becomes of them all is the job's own: of ``engine.jobs`` or ``encode.job``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, TypedDict, TypeVar

from layerflow.corpus.store import Store
from pipelines.engine.desk import NO_DESKS
from pipelines.engine.remote_staging import begin, clear
from pipelines.engine.staging import (
    InfrastructureError,
    Parts,
    Staging,
    clear_folder,
    json_part,
    locked,
)
from pipelines.engine.workers import (
    ROUNDS,
    Make,
    Pool,
    Prepare,
    Unit,
    often_damaged,
    run_staged,
)

R = TypeVar("R")
FINDINGS = "look.json"


class Damaged(Exception):  # noqa: N818 (an outcome, not a fault)
    """``compact`` met units that were changed since they were written. units: key -> how."""

    def __init__(self, units: Mapping[str, str]) -> None:
        super().__init__()
        self.units = dict(units)


@dataclass(frozen=True)
class Survey:
    """A cheap look at every unit before any of them does its work.

    look: payload -> JSON-able findings, run like the work itself. plan: sees the findings of all
    units in their order, one at a time, and returns what to add to the payloads of some units, by
    key. Every payload also gets what ``Surveyed`` says. size: of findings, how much
    work they foretell: the most comes first, so that nothing long is left at the end. beside: units
    that are looked at before all others, and that do no work.
    """

    look: Callable[[dict[str, Any]], dict[str, Any]]
    plan: Callable[[Iterable[tuple[Unit, dict[str, Any]]]], Mapping[str, dict[str, Any]]]
    size: Callable[[dict[str, Any]], float] = lambda findings: 0
    beside: Sequence[Unit] = ()


class Surveyed(TypedDict):
    """What a survey adds to a payload. look: the path of the unit's own findings. lost: why there
    are none."""

    look: str | None
    lost: str | None


@dataclass(frozen=True)
class Place:
    """Where a job stages its units. lock: the file that it holds, None in an object store, where
    the log decides; busy: what is said when another job holds it. inputs: paths that every worker
    must see. deferred: parts that ``compact`` compares with their sums as it reads them. small:
    parts of some kilobytes that ``compact`` alone reads."""

    folder: Path | str
    lock: Path | None
    busy: str
    inputs: Sequence[str] = ()
    deferred: frozenset[str] = frozenset()
    small: frozenset[str] = frozenset()


def run_units(
    units: Sequence[Unit] | Callable[[Staging], Sequence[Unit]],
    place: Place,
    make: Make,
    pool: Pool,
    *,
    settle: Callable[[Unit, str], Parts],
    compact: Callable[[Staging, int], R],
    claim: Callable[[], R | None] = lambda: None,
    survey: Survey | None = None,
) -> R:
    """What ``compact`` makes of all units, or what ``claim`` gives because it is made already.

    units: they, or what finds them once the place is held, perhaps by units of its own that it
    stages below. make: payload -> what a unit commits. settle: what a unit commits that was given
    up, by the reason why. compact: gets the staged units, which go when it returns, and how many of
    them an earlier run left. ValueError when another job holds the place, and the errors of
    ``run_staged``.
    """
    lock = locked(place.lock, place.busy) if place.lock is not None else nullcontext()
    with lock, closing(pool.desks):
        done = claim()
        if done is not None:
            _clear(place.folder)  # of a job that was killed when it was all but done
            return done
        staging = begin(place.folder, place.inputs, place.deferred, place.small)
        units = units(staging) if callable(units) else units
        resumed = len(units) - len(staging.missing(unit.key for unit in units))
        prepare = _surveyed(units, survey, staging, pool) if survey else list
        for _ in range(ROUNDS):
            lost = run_staged(units, make, staging, pool, prepare)
            for unit in units:
                if unit.key in lost:
                    staging.commit(unit.key, settle(unit, lost[unit.key]))
            try:
                made = compact(staging, resumed)
            except Damaged as error:
                damaged = error
                for key in damaged.units:
                    staging.discard(key)
            else:
                staging.clear()
                return made
        raise InfrastructureError(often_damaged(str(place.folder), damaged.units))


def _clear(folder: Path | str) -> None:
    if isinstance(folder, str):
        clear(Store(folder))
    else:
        clear_folder(folder)


def _surveyed(units: Sequence[Unit], survey: Survey, staging: Staging, pool: Pool) -> Prepare:
    """What completes the payloads of units that will run: looks at all of them, once."""

    sizes: dict[str, float] = {}

    def found(looks: Staging, lost: Mapping[str, str]) -> Iterator[tuple[Unit, dict[str, Any]]]:
        for unit in survey.beside:
            if unit.key in lost:
                raise InfrastructureError(f"cannot look at {unit.payload}: {lost[unit.key]}")
        seen = [unit for unit in (*survey.beside, *units) if unit.key not in lost]
        idle = {unit.key for unit in survey.beside}
        each = looks.read_each((unit.key for unit in seen), FINDINGS)
        for unit, data in zip(seen, each, strict=True):
            findings = json.loads(data)
            if unit.key not in idle:
                sizes[unit.key] = survey.size(findings)
            yield unit, findings

    @cache
    def looked() -> tuple[Staging, Mapping[str, dict[str, Any]], dict[str, str]]:
        looks = staging.below("looks")
        lost = run_staged(
            [*survey.beside, *units],
            partial(_findings, survey.look),
            looks,
            replace(pool, desks=NO_DESKS),
        )
        return looks, survey.plan(found(looks, lost)), lost

    def prepare(missing: Sequence[Unit]) -> Sequence[Unit]:
        looks, plan, lost = looked()

        def added(key: str) -> Surveyed:
            look = None if key in lost else looks.location(key, FINDINGS)
            return {"look": look, "lost": lost.get(key)}

        return [
            replace(unit, payload={**unit.payload, **plan.get(unit.key, {}), **added(unit.key)})
            for unit in sorted(missing, key=lambda unit: -sizes.get(unit.key, 0))
        ]

    return prepare


def _findings(look: Callable[[dict[str, Any]], Any], payload: dict[str, Any]) -> Parts:
    return {FINDINGS: json_part(look(payload))}
