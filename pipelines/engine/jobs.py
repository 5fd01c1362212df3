"""The corpus jobs: units that make rows, put together into a corpus.

The rows of all units, in their order, become the corpus' shards; the final bytes depend on the rows
and on how they were planned, not on workers or order of arrival. How units run: ``engine.runner``;
how they become a version of a corpus: ``engine.growth``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypedDict, Unpack

import pyarrow as pa

from layerflow.corpus.table import REJECTED_SCHEMA, SCHEMA, rejected_row
from layerflow.corpus.writer import holds_media
from layerflow.outputs import corpus_output
from manifests.steps import Step
from pipelines.engine.desk import Desks
from pipelines.engine.growth import INDEX, REJECTED, ROWS, Growth, Refuse
from pipelines.engine.recipe import Recipe as Recipe
from pipelines.engine.recipe import Summary as Summary
from pipelines.engine.recipe import make_recipe as make_recipe
from pipelines.engine.recipe import unit_key as unit_key
from pipelines.engine.replay import roots
from pipelines.engine.runner import Survey, run_units
from pipelines.engine.staging import Parts, Telling, stream_part
from pipelines.engine.tally import CLIPS, REJECTED_BY, Tally
from pipelines.engine.workers import Pool, Unit, require_packages


@dataclass
class Outcome:
    """What a unit gave: corpus rows in time order, and rejected rows.

    ``rows`` may be a generator, so that memory holds one row; ``rejected`` is read after it.
    """

    rows: Iterable[dict[str, Any]] = field(default_factory=list)
    rejected: list[dict[str, Any]] = field(default_factory=list)


Work = Callable[[dict[str, Any]], Outcome]
Choose = Callable[[Unit], bool]


class Running(TypedDict, total=False):
    """How a job is run, whatever it does.

    workers: Ray tasks at a time, None for all CPUs, 0 for this process. quiet: no progress. only:
    whether a unit is wanted, all by default. accept_lost: any number of units may fail for one
    reason, as rejected rows. append: add to the corpus that is there what it does not hold yet.
    """

    workers: int | None
    quiet: bool
    only: Choose | None
    accept_lost: bool
    append: bool


def run_job(
    units: Sequence[Unit],
    work: Work,
    *,
    out: Path | str,
    recipe: Recipe,
    schema: pa.Schema = SCHEMA,
    refuse: Refuse | None = None,
    survey: Survey | None = None,
    light: bool = False,
    serve: Mapping[str, Step] | None = None,
    **how: Unpack[Running],
) -> Summary:
    """Run every unit that is not staged yet, then compact into the corpus ``out``.

    schema: of the corpus, ``SCHEMA`` and perhaps extra columns. refuse: sees all rows in their
    order and says why one is left out as a near-duplicate. survey: before the work. light: see
    ``Pool``. serve: steps whose networks actors hold (``engine.networks``). how: see ``Running``.
    Raises ValueError when ``out`` holds something else or a corpus of another recipe, OSError when
    the disk is full or the fault lies with the machines (``engine.workers``); what was done by
    then is kept, and the same call goes on from there.
    """
    only, workers = how.get("only"), how.get("workers")
    units = [unit for unit in units if only is None or only(unit)]
    growth = Growth.of(corpus_output(out), recipe, units, schema, append=how.get("append", False))
    quiet, accept_lost = how.get("quiet", False), how.get("accept_lost", False)
    counts = Tally(str(out))
    pool = Pool(workers, quiet, light, accept_lost, Desks(serve or {}, quiet), tally=counts)
    return run_units(
        growth.units,
        growth.place(roots(recipe.given)),
        partial(_parts, work, schema, recipe.options.get("packages", {})),
        pool,
        settle=partial(_lost, recipe, schema),
        compact=partial(growth.commit, refuse, pool),
        claim=growth.claim,
        survey=survey,
    )


def _parts(
    work: Work, schema: pa.Schema, packages: Mapping[str, str], payload: dict[str, Any]
) -> Parts:
    require_packages(packages)
    return _as_parts(work(payload), schema)


def _as_parts(outcome: Outcome, schema: pa.Schema) -> Parts:
    """What a unit commits: its rows, the same without media, and its rejected rows, which are
    complete once the rows have been written."""
    names = [column.name for column in schema if not holds_media(column.type)]
    small: list[dict[str, Any]] = []

    def rows() -> Iterator[dict[str, Any]]:
        for row in outcome.rows:
            small.append({name: row.get(name) for name in names})
            yield row

    index = pa.schema([schema.field(name) for name in names])
    parts: Parts = {
        ROWS: stream_part(rows(), schema),
        INDEX: lambda file: stream_part(small, index, None)(file),
        REJECTED: lambda file: stream_part(outcome.rejected, REJECTED_SCHEMA, None)(file),
    }

    def told() -> dict[str, int]:
        return {CLIPS: len(small), **Counter(REJECTED_BY + r["stage"] for r in outcome.rejected)}

    return Telling(parts, told)


def _lost(recipe: Recipe, schema: pa.Schema, unit: Unit, reason: str) -> Parts:
    """What a unit commits that was given up: one rejected row."""
    uri = str(unit.payload.get("uri", unit.key))
    row = rejected_row(uri, "worker", reason, kind=recipe.kind, recipe=recipe.hash)
    return _as_parts(Outcome(rejected=[row]), schema)
