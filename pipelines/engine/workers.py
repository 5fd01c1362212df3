"""Units on Ray workers, or one after the other here: done once each, again where a worker died.

What is wrong with one unit costs that unit. What is wrong with the machines stops the job, which
goes on later from there: a full disk, a worker that does not see the job's folder or inputs, a
reason that most units share.
"""

from __future__ import annotations

import json
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from layerflow.files import FULL
from layerflow.plugins import missing_packages
from layerflow.process.heap import keep_freed_memory
from layerflow.ray_start import ray_runs
from pipelines.engine.desk import NO_DESKS, Desks
from pipelines.engine.networks import with_desks
from pipelines.engine.progress import progress
from pipelines.engine.staging import InfrastructureError, Parts, Staging, Telling
from pipelines.engine.tally import BYTES, Tally

ATTEMPTS = 2
ROUNDS = 3
"""Times that damaged units are done again before the disk is blamed."""

WORTH_RAY = 20.0
"""Seconds of work that must be left for Ray to be started for it: that takes about eight."""

AHEAD = 2
"""Tasks for each CPU: one runs, and the next is there when it ends. Those that find no CPU tell a
cluster that grows to grow."""
CPUS_EVERY = 10.0  # seconds between two looks at how large the cluster is

MOST = 0.5
"""Share of a job's units, if it has two or more, that cannot all be at fault themselves: when more
of them fail for the same reason, the job stops."""
MANY, MANY_SHARE = 20, 0.1
"""In a large job it stops for less: this many units that are at least this share of all."""


@dataclass(frozen=True, slots=True)
class Unit:
    """One piece of work. ``payload`` holds plain values; ``order`` places what it gives."""

    key: str
    order: int
    payload: dict[str, Any]


@dataclass(frozen=True)
class Pool:
    """What runs the units of a job.

    workers: Ray tasks at a time; None: all CPUs; 0: this process, where an error is raised. quiet:
    no progress. light: where there is no Ray yet and ``workers`` is None, units run here as long as
    little is left; for work that cannot take the process down. accept_lost: any number of lost
    units are taken for faults of their inputs. desks: of the networks that actors hold. progress:
    shows how far they are, in place of ``engine.progress``.
    """

    workers: int | None = None
    quiet: bool = False
    light: bool = False
    accept_lost: bool = False
    desks: Desks = NO_DESKS
    progress: Callable[..., Iterator[Any]] = progress
    tally: Tally = field(default_factory=Tally)

    def line(self) -> str:
        """What a line of progress says besides."""
        return self.tally.line() + self.desks.line()


Make = Callable[[dict[str, Any]], Parts]
Prepare = Callable[[Sequence[Unit]], Sequence[Unit]]


def run_staged(
    units: Sequence[Unit],
    make: Make,
    staging: Staging,
    pool: Pool,
    prepare: Prepare = lambda units: units,
) -> dict[str, str]:
    """Bring every unit into ``staging``, whole; returns why those that are not there were given up.

    make: payload -> what the unit commits. Units that were committed are not run again; those that
    were damaged since are. prepare: sees the units that will run, returns them complete.
    InfrastructureError when the fault lies with the machines, OSError when the disk is full.
    """
    lost: dict[str, str] = {}
    for _ in range(ROUNDS):
        there = staging.missing(unit.key for unit in units if unit.key not in lost)
        missing = [unit for unit in units if unit.key in there]
        if missing:
            lost |= _run_missing(prepare(missing), make, staging, pool)
        if not pool.accept_lost:
            _stop_if_most(lost, len(units))
        damaged = {}
        for unit in units:
            if unit.key not in lost and (said := staging.fault(unit.key)) is not None:
                damaged[unit.key] = said
                staging.discard(unit.key)
        if not damaged:
            return lost
    raise InfrastructureError(often_damaged(str(staging), damaged))


def often_damaged(folder: str, damaged: Mapping[str, str]) -> str:
    """What is said when units are damaged again and again. damaged: key -> how."""
    return (
        f"{folder}: {len(damaged)} units were damaged {ROUNDS} times after they were "
        f"written ({next(iter(damaged.values()))}); check the disk, then start the same command "
        "again"
    )


def require_packages(recorded: Mapping[str, str]) -> None:
    """Raises InfrastructureError where a package is absent that the recipe names."""
    if recorded and (missing := missing_packages(recorded)):
        raise InfrastructureError(missing)


def _stop_if_most(lost: Mapping[str, str], total: int) -> None:
    """Raises InfrastructureError when so many units failed alike that it cannot be them."""
    alike: defaultdict[str, list[str]] = defaultdict(list)
    for reason in lost.values():
        alike[re.sub(r"[0-9a-f]{8,}|\d+", "N", reason)].append(reason)
    same = max(alike.values(), key=len, default=[])
    count = len(same)
    most = count >= 2 and count > MOST * total
    if not most and not (count >= MANY and count >= MANY_SHARE * total):
        return
    raise InfrastructureError(
        f"stopped: {count} of {total} units were lost for one reason: {same[0]}. Mend it and start "
        "the same command again: what is done stays. If it is the inputs themselves, leave them "
        "out, or accept the loss with --accept-lost: each becomes a rejected row"
    )


def _run_missing(units: Sequence[Unit], make: Make, staging: Staging, pool: Pool) -> dict[str, str]:
    """One pass over units that are missing, with up to ``ATTEMPTS`` for each.

    Returns why units that are not there afterwards were given up, by key.
    """
    if pool.workers == 0:
        for unit in pool.progress(units, len(units), pool.quiet, pool.line):
            pool.tally.add(_committed(unit.key, make(unit.payload), staging))
        return {}
    ended, total = 0, len(units)
    failed: dict[str, str] = {}
    reported: set[str] = set()
    for _ in range(ATTEMPTS):
        if not units:
            break
        rows = _attempts(units, _attempt(make, staging), pool)
        for row in pool.progress(rows, len(units), pool.quiet, pool.line):
            pool.tally.add(json.loads(row["told"]))
            ended += 1
            if ray_runs():
                pool.tally.export(ended, total, pool.desks.states)
            if row["stop"]:
                raise InfrastructureError(row["stop"])
            if row["error"]:
                failed[row["key"]] = f"failed {ATTEMPTS} times: {row['error']}"
            else:
                reported.add(row["key"])
        staging.wait_for(reported)
        there = staging.missing(unit.key for unit in units)
        units = [unit for unit in units if unit.key in there]
    gone = [unit.key for unit in units if unit.key in reported]
    if gone:
        raise InfrastructureError(
            f"{len(gone)} units that workers wrote are not to be seen in "
            f"{staging}: it must be one folder for all nodes"
        )
    died = f"the worker died {ATTEMPTS} times on this unit"
    return {unit.key: failed.get(unit.key, died) for unit in units}


def _attempt(make: Make, staging: Staging) -> Callable[[dict[str, str]], dict[str, str]]:
    """What a worker does with a unit: a small row that says how it ended."""

    def run(item: dict[str, str]) -> dict[str, str]:
        keep_freed_memory()
        said = {"key": item["key"], "stop": "", "error": "", "told": "{}"}
        try:
            staging.check_here()
            if not staging.is_done(item["key"]):  # a block that is run again holds finished ones
                parts = make(json.loads(item["payload"]))
                said["told"] = json.dumps(_committed(item["key"], parts, staging))
        except Exception as error:
            stops = isinstance(error, InfrastructureError) or (
                isinstance(error, OSError) and error.errno in FULL
            )
            text = str(error) if stops else f"{type(error).__name__}: {error}"
            said["stop" if stops else "error"] = text[:1000] or type(error).__name__
        return said

    return run


def _committed(key: str, parts: Parts, staging: Staging) -> dict[str, int]:
    """Commit a unit that tells what it gave; returns that, and the bytes of it."""
    record = staging.commit(key, parts)
    if not isinstance(parts, Telling):
        return {}
    return {**parts.told(), BYTES: sum(about["bytes"] for about in record.values())}


def _attempts(
    units: Sequence[Unit], run: Callable[[dict[str, str]], dict[str, str]], pool: Pool
) -> Iterator[dict[str, str]]:
    """What ``run`` says of each unit, run here for a start if the pool is light, then on Ray."""
    light = pool.light and pool.workers is None and not ray_runs()
    started, done = time.monotonic(), 0
    while light and done < len(units):
        yield run(_item(units[done]))
        done += 1
        light = (time.monotonic() - started) / done * (len(units) - done) < WORTH_RAY
    if done < len(units):
        yield from ray_rows(units[done:], run, pool)


def _item(unit: Unit) -> dict[str, str]:
    return {"key": unit.key, "payload": json.dumps(unit.payload)}


def ray_rows(
    units: Iterable[Unit], run: Callable[[dict[str, str]], dict[str, str]], pool: Pool
) -> Iterator[dict[str, str]]:
    """Run each unit as a Ray task; yields what ``run`` says of them as they end.

    Nothing is said of a unit whose worker died twice. InfrastructureError when Ray itself ends.
    """
    import ray

    from pipelines.engine.cluster import start_ray

    start_ray(pool.workers)
    desks = pool.desks.open()
    work = ray.remote(num_cpus=1, max_retries=1, scheduling_strategy="SPREAD")(_run)
    given = [ray.put(with_desks(desks, run))]  # in a list Ray leaves it there
    left, flying = iter(units), dict[Any, str]()  # task -> key of its unit
    room, looked = 0, -CPUS_EVERY
    try:
        while True:
            if time.monotonic() - looked >= CPUS_EVERY:
                room, looked = _room(pool.workers), time.monotonic()
            for unit in islice(left, max(0, room - len(flying))):
                flying[work.remote(given, _item(unit))] = unit.key
            if not flying:
                return
            ended, _ = ray.wait(list(flying), timeout=CPUS_EVERY)
            if ended:  # all that have: a look costs by how many tasks there are
                ended, _ = ray.wait(list(flying), num_returns=len(flying), timeout=0)
            for task in ended:
                if (said := _said(task, flying.pop(task))) is not None:
                    yield said
    except ray.exceptions.RayError as error:
        text = f"Ray stopped: {type(error).__name__}: {_last_line(error)}"
        raise InfrastructureError(text) from error
    finally:
        with suppress(ray.exceptions.RayError):  # of a Ray that has ended
            for task in flying:
                ray.cancel(task)


_held: dict[Any, Callable[[dict[str, str]], dict[str, str]]] = {}
"""In a worker: what runs the units of the job that it works for."""


def _run(given: list[Any], item: dict[str, str]) -> dict[str, str]:
    """In a worker. What runs the units may know all inputs of a job, and is fetched once."""
    import ray

    (where,) = given
    if where not in _held:
        _held.clear()
        _held[where] = ray.get(where)
    return _held[where](item)


def _room(workers: int | None) -> int:
    """How many tasks Ray may hold: those of all CPUs, or as many as may run at a time."""
    import ray

    cpus = max(1, int(ray.cluster_resources().get("CPU", 0)))
    return AHEAD * cpus if workers in (None, cpus) else workers


def _last_line(error: BaseException) -> str:
    """What matters of an error that holds another one's traceback."""
    return next(iter(str(error).strip().splitlines()[-1:]), "")


def _said(task: Any, key: str) -> dict[str, str] | None:
    """What a task returned, or why it could not begin; None where its worker or node died."""
    import ray

    died = ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError
    gone = ray.exceptions.OutOfMemoryError, ray.exceptions.ObjectLostError
    try:
        said: dict[str, str] = ray.get(task)
    except (*died, *gone):
        return None
    except ray.exceptions.RayTaskError as error:
        text = _last_line(error.cause)[:1000]
        return {"key": key, "stop": "", "error": f"it could not begin: {text}", "told": "{}"}
    return said
