"""The files of a publication made and sent by tasks, one file each, on all nodes.

    rows of the corpus -> Parquet, or previews -> its hashes -> the Hub's storage -> a small record

The record lies with those of other tasks in one folder that all nodes see, or in an object store: a
publication that was killed goes on with the files that have none. What the driver commits is names,
sizes and hashes; a file is nowhere but in a worker's temporary folder, and on the Hub.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from layerflow.corpus.table import Corpus
from pipelines.engine.recipe import unit_key
from pipelines.engine.staging import Parts, Staging, json_part
from pipelines.engine.workers import Pool, Unit, run_staged
from pipelines.publish.calls import hub_api
from pipelines.publish.files import PublishPlan
from pipelines.publish.large.progress import ByteProgress
from pipelines.publish.layout import Sent
from pipelines.publish.parts import Making, localised, make_data, make_previews
from pipelines.publish.repository import Repository, upload
from pipelines.publish.tables import Shards

AT_ONCE = 400
"""Files between two looks at what is done: then they are committed."""
SENT = "sent.json"


@dataclass(frozen=True)
class Job:
    """What every task of a publication knows. head: the commit from which earlier previews come;
    schemas: of the corpus' files and of previews."""

    address: str
    repo_id: str
    branch: str
    head: str
    shards: Shards
    schemas: tuple[pa.Schema, pa.Schema]


def send_parts(
    plan: PublishPlan,
    job: Job,
    known: Mapping[str, Sent],
    held: Collection[str],
    staging: Staging,
    pool: Pool,
) -> Iterator[tuple[str, Sent]]:
    """Bring all files of parts that ``known`` does not hold to the Hub's storage; yields each.

    held: names that the Hub has at ``job.head``. Raises ValueError for a file that cannot be made.
    """
    units, sizes = _units(plan, job, known, held)
    shown = replace(pool, progress=ByteProgress(sizes, pool.quiet).watch)
    for first in range(0, len(units), AT_ONCE):
        group = units[first : first + AT_ONCE]
        for reason in run_staged(group, partial(send_file, job=job), staging, shown).values():
            raise ValueError(reason)
        for unit in group:
            yield unit.payload["name"], Sent(**json.loads(staging.read(unit.key, SENT)))


def _units(
    plan: PublishPlan, job: Job, known: Mapping[str, Sent], held: Collection[str]
) -> tuple[list[Unit], dict[str, int]]:
    """A unit for each file that is missing, and the bytes of media that each reads, by its key."""
    units: list[Unit] = []
    sizes: dict[str, int] = {}
    for preview in (False, True):
        for part in plan.parts:
            name = plan.name(part, preview)
            key = plan.keys[name]
            if known.get(name, Sent(0, "")).key == key:
                continue
            payload = {"name": name, "key": key, "rows": ranges_of(part.rows), "preview": preview}
            payload["old"] = name in held
            unit = Unit(unit_key(job.repo_id, name, key), len(units), payload)
            sizes[unit.key] = part.bytes
            units.append(unit)
    return units, sizes


def ranges_of(rows: np.ndarray) -> list[list[int]]:
    """Ascending numbers as ``[first, end]`` of what follows without a gap."""
    if not len(rows):
        return []
    pieces = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)
    return [[int(piece[0]), int(piece[-1]) + 1] for piece in pieces]


def rows_of(ranges: Sequence[Sequence[int]]) -> np.ndarray:
    return np.concatenate([np.arange(first, end) for first, end in ranges])


def send_file(payload: dict[str, Any], *, job: Job) -> Parts:
    """What the task of a file commits when the Hub's storage has it."""
    name, rows = payload["name"], rows_of(payload["rows"])
    with tempfile.TemporaryDirectory(prefix="layerflow-publish-") as place:
        folder = Path(place)
        repository = Repository(hub_api(), job.repo_id, folder)
        corpus, shards = Corpus.open(job.address), job.shards
        if corpus.store.local is None:  # what decodes media reads from this disk alone
            corpus = localised(corpus, shards, rows, folder / "rows")
            shards, rows = Shards.of(corpus), np.arange(len(rows))
        making = Making(corpus, shards, folder, 1)
        if payload["preview"]:
            old = partial(repository.download, revision=job.head) if payload["old"] else None
            ((_, held),) = make_previews(making, [(name, rows)], job.schemas[1], old, True)
        else:
            ((_, held),) = make_data(making, [(name, rows)], job.schemas[0])
        operation, sent = upload(repository, job.branch, folder, name)
        if operation._upload_mode != "lfs":
            raise ValueError(f"{job.repo_id} stores {name} in git itself: see its .gitattributes")
    return {SENT: json_part(asdict(replace(sent, key=payload["key"], held=held)))}
