"""The one way in which units run: staged whole each, done again where missing, put together once.

    lock -> claim -> survey -> the units that are not staged yet -> the lost ones settled -> compact

A job that is killed and started again does only what is missing. What it claims, what its units
commit and what becomes of them all is the job's own: of ``engine.jobs`` or ``encode.job``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, TypedDict, TypeVar

from layerflow.files import remove
from pipelines.engine.staging import Parts, Staging, json_part, locked
from pipelines.engine.workers import Make, Pool, Prepare, Unit, run_staged

R = TypeVar("R")
FINDINGS = "look.json"


@dataclass(frozen=True)
class Survey:
    """A cheap look at every unit before any of them does its work.

    look: payload -> JSON-able findings, run like the work itself. plan: sees the findings of all
    units in their order, one at a time, and returns what to add to the payloads of some units, by
    key. Every payload also gets what ``Surveyed`` says.
    """

    look: Callable[[dict[str, Any]], dict[str, Any]]
    plan: Callable[[Iterable[tuple[Unit, dict[str, Any]]]], Mapping[str, dict[str, Any]]]


class Surveyed(TypedDict):
    """What a survey adds to a payload. look: the path of the unit's own findings. lost: why there
    are none."""

    look: str | None
    lost: str | None


@dataclass(frozen=True)
class Place:
    """Where a job stages its units. lock: the file that it holds; busy: what is said when another
    job holds it. inputs: paths that every worker must see."""

    folder: Path
    lock: Path
    busy: str
    inputs: Sequence[str] = ()


def run_units(
    units: Sequence[Unit],
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

    make: payload -> what a unit commits. settle: what a unit commits that was given up, by the
    reason why. compact: gets the staged units, which go when it returns, and how many of them an
    earlier run left. ValueError when another job holds the place, and the errors of ``run_staged``.
    """
    place.lock.parent.mkdir(parents=True, exist_ok=True)
    with locked(place.lock, place.busy):
        done = claim()
        if done is not None:
            remove(place.folder)  # of a job that was killed when it was all but done
            return done
        staging = Staging.begin(place.folder, place.inputs)
        resumed = sum(staging.is_done(unit.key) for unit in units)
        prepare = _surveyed(units, survey, staging, pool) if survey else list
        lost = run_staged(units, make, staging, pool, prepare)
        for unit in units:
            if unit.key in lost:
                staging.commit(unit.key, settle(unit, lost[unit.key]))
        made = compact(staging, resumed)
        remove(staging.folder)
        return made


def _surveyed(units: Sequence[Unit], survey: Survey, staging: Staging, pool: Pool) -> Prepare:
    """What completes the payloads of units that will run: looks at all of them, once."""

    @cache
    def looked() -> tuple[Staging, Mapping[str, dict[str, Any]], dict[str, str]]:
        looks = Staging.begin(staging.folder / "looks", staging.inputs)
        lost = run_staged(units, partial(_findings, survey.look), looks, replace(pool, gpus=0.0))
        seen = [unit for unit in units if unit.key not in lost]
        found = ((u, json.loads(looks.path(u.key, FINDINGS).read_text())) for u in seen)
        return looks, survey.plan(found), lost

    def prepare(missing: Sequence[Unit]) -> Sequence[Unit]:
        looks, plan, lost = looked()

        def added(key: str) -> Surveyed:
            look = None if key in lost else str(looks.path(key, FINDINGS))
            return {"look": look, "lost": lost.get(key)}

        return [
            replace(unit, payload={**unit.payload, **plan.get(unit.key, {}), **added(unit.key)})
            for unit in missing
        ]

    return prepare


def _findings(look: Callable[[dict[str, Any]], Any], payload: dict[str, Any]) -> Parts:
    return {FINDINGS: json_part(look(payload))}
