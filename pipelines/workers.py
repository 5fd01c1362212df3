"""Units on Ray workers, or one after the other here: done once each, again where a worker died."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from pipelines.staging import FULL

ATTEMPTS = 2
Do = Callable[[str, dict[str, Any]], object]


class Task(Protocol):
    """What a unit of work has for its worker: a name and plain values."""

    @property
    def key(self) -> str: ...

    @property
    def payload(self) -> dict[str, Any]: ...


def run_units(
    units: Sequence[Task],
    do: Do,
    is_done: Callable[[str], bool],
    *,
    workers: int | None,
    quiet: bool,
    gpus: float = 0.0,
) -> dict[str, str]:
    """Call ``do(key, payload)`` for all units; returns why those that are not done were given up.

    workers: Ray tasks at a time; None = all CPUs; 0 = in this process, where an error is raised.
    gpus: share of a GPU that one task takes; ValueError where the cluster has none.
    A unit whose task raises, or whose worker dies, gets ``ATTEMPTS``. OSError when the disk is
    full: another attempt would meet it again.
    """
    if workers == 0:
        for unit in _progress(units, len(units), quiet):
            do(unit.key, unit.payload)
        return {}
    reasons: dict[str, str] = {}
    for _ in range(ATTEMPTS):
        if not units:
            break
        for row in _progress(_ray_rows(units, do, workers, gpus), len(units), quiet):
            if row["full"]:
                raise OSError(row["full"])
            if row["error"]:
                reasons[row["key"]] = f"failed {ATTEMPTS} times: {row['error']}"
        units = [unit for unit in units if not is_done(unit.key)]
    died = f"the worker died {ATTEMPTS} times on this unit"
    return {unit.key: reasons.get(unit.key, died) for unit in units}


def _ray_rows(
    units: Sequence[Task], do: Do, workers: int | None, gpus: float
) -> Iterator[dict[str, str]]:
    """Run units as a Ray Data pipeline; yields a small row as each unit ends."""
    import ray

    from pipelines.cluster import require_gpus, start_ray

    start_ray(workers)
    if gpus:
        require_gpus(workers)
    items = [{"key": unit.key, "payload": json.dumps(unit.payload)} for unit in units]

    def run(item: dict[str, str]) -> dict[str, str]:
        said = {"key": item["key"], "full": "", "error": ""}
        try:
            do(item["key"], json.loads(item["payload"]))
        except Exception as error:
            full = isinstance(error, OSError) and error.errno in FULL
            said["full" if full else "error"] = f"{type(error).__name__}: {error}"[:1000]
        return said

    options: dict[str, Any] = {"num_cpus": 1, "concurrency": workers, "max_retries": 1}
    if gpus:
        options["num_gpus"] = gpus
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # max_retries has no named parameter in this Ray
        source = ray.data.from_items(items, override_num_blocks=min(len(items), 2000))
        pipeline = source.map(run, **options)
    yield from pipeline.iter_rows()


def _progress(items: Any, total: int, quiet: bool) -> Iterator[Any]:
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    hidden = quiet or not console.is_terminal
    yield from track(
        items, total=total, description="units", disable=hidden, transient=True, console=console
    )
