"""A new version of a corpus from the newest one: some shards written anew, all others kept.

    lock -> a plan -> the shards that change, by many workers -> one file of the log -> what follows

Rows keep their order and their bytes but for what the plan says. A command that was killed goes on
with the shards that are missing; until the log has its new file the corpus is what it was before.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from layerflow.corpus import log
from layerflow.corpus.changes.overlay import SCHEMA as OVERLAY_SCHEMA
from layerflow.corpus.changes.overlay import Overlay
from layerflow.corpus.log import Shard, Version
from layerflow.corpus.store import Store
from layerflow.corpus.table import REJECTED_SCHEMA, Corpus
from layerflow.corpus.writer import logged, record_batches, settle, write_shard
from layerflow.outputs import corpus_output
from pipelines.engine.checksums import SHA256
from pipelines.engine.cutting import Piece, make_shards
from pipelines.engine.ledger import sweep_shards
from pipelines.engine.runner import Damaged, Place, run_units
from pipelines.engine.staging import InfrastructureError, Parts, Staging
from pipelines.engine.workers import Pool, Unit


@dataclass(frozen=True)
class Rewriting:
    """What the next version is. groups: pieces of all shards in order; a group of several, and one
    whose rows change, becomes one new shard. changes: other fields of the version."""

    step: str
    groups: Sequence[Sequence[Piece]]
    changes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def changed(self) -> list[Sequence[Piece]]:
        return [group for group in self.groups if len(group) > 1 or group[0].changes]


Plan = Callable[[Corpus], Rewriting | None]


def rewrite(
    path: str | Path, plan: Plan, pool: Pool, *, finish: Callable[[Store, Version], None]
) -> Version:
    """The version that a corpus is at when ``plan`` has had its way with the newest one.

    plan: None: nothing is to be done. finish: before the lock goes, whether or not there is a new
    version. Raises ValueError when there is no corpus, InfrastructureError when another job adds a
    version meanwhile.
    """
    out = corpus_output(path)
    store = Store(out)
    corpus = Corpus.open(out)
    if corpus.version is None:
        log.commit(store, logged(Path(out), str(corpus.info.get("kind", "")), corpus.info))

    def work(staging: Staging, _: int) -> Version:
        newest = Corpus.open(out)
        assert newest.version is not None
        planned = plan(newest)
        version = newest.version
        if planned is not None:
            version = _next(newest, planned, staging, pool)
            if not log.commit(store, version):
                raise InfrastructureError(f"{store}: another job has added a version; start again")
        settle(store, version, newest.schema, REJECTED_SCHEMA)
        finish(store, version)
        sweep_shards(store)
        return version

    return run_units([], _place(store), _nothing, pool, settle=_nothing_of, compact=work)


def _place(store: Store) -> Place:
    here, name = store.local, "staging-rewrite"
    return Place(
        here / name if here is not None else store.location(name),
        here / ".lock" if here is not None else None,
        f"{store}: another job is writing this corpus",
    )


def _next(corpus: Corpus, planned: Rewriting, staging: Staging, pool: Pool) -> Version:
    base = corpus.version
    assert base is not None
    old = {shard.file: shard for shard in base.shards}
    kept = [g for g in planned.changed if any(_left(piece, old) for piece in g)]
    try:
        made = make_shards(kept, str(corpus.path), corpus.schema, staging, pool)
    except Damaged as error:
        first = next(iter(error.units.values()))
        raise ValueError(
            f"{corpus.store} cannot be used: {first}; see layerflow validate"
        ) from error
    new = {id(group): shard for group, shard in zip(kept, made, strict=True)}
    gone = {id(group) for group in planned.changed}
    shards: list[Shard] = []
    for group in planned.groups:
        if id(group) in new:
            shards.append(new[id(group)])
        elif id(group) not in gone:
            shards += [old[piece.name] for piece in group]
    if not shards:
        shards = [write_shard(corpus.store, [], corpus.schema)]
    rows = sum(shard.rows or 0 for shard in shards)
    info = {**base.info, **planned.changes.get("info", {}), "rows": rows}
    return base.next(planned.step, **{**planned.changes, "shards": tuple(shards), "info": info})


def _left(piece: Piece, shards: Mapping[str, Shard]) -> int:
    """Rows of a shard that stay."""
    return (shards[piece.name].rows or 0) - len(piece.drop)


def pieces_of(
    corpus: Corpus, drop: Collection[str] = (), overlay: Overlay | None = None
) -> list[Piece]:
    """The shards in order as pieces. drop: ids of rows that go. overlay: values that are to be
    written into the shards."""
    pieces = []
    for number, shard in enumerate(corpus.shards):
        ids: list[str] = []
        if drop or overlay is not None:
            batches = corpus.shard(number).batches(["id"])
            ids = [id for batch in batches for id in batch.column("id").to_pylist()]
        new = overlay.of(ids).rows() if overlay is not None else []
        gone = tuple(place for place, id in enumerate(ids) if id in drop)
        about = shard.file, str(corpus.store.where), shard.file, shard.bytes or 0
        pieces.append(Piece(*about, f"{SHA256}:{shard.sha256}", gone, tuple(new)))
    return pieces


def write_overlay(store: Store, values: Mapping[str, Mapping[str, Any]]) -> Shard:
    """New values by the id of a row as a table of a corpus' overlay."""
    rows = Overlay(dict(sorted(values.items()))).rows()
    batches = record_batches(rows, OVERLAY_SCHEMA)
    return write_shard(store.below(log.OVERLAY), batches, OVERLAY_SCHEMA)


def _nothing(payload: dict[str, object]) -> Parts:
    raise AssertionError("rewriting has no units of its own")


def _nothing_of(unit: Unit, reason: str) -> Parts:
    raise AssertionError("rewriting has no units of its own")
