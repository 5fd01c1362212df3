"""``layerflow compact``: small shards of a corpus become larger ones, as a new version.

Rows keep their order and their bytes; nothing is decoded. Shards that are large enough stay, and so
do the files of earlier versions, until ``forget`` removes them. Shards are made by many processes;
a command that was killed goes on with those that are missing.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from layerflow.corpus import log
from layerflow.corpus.log import Shard, Version
from layerflow.corpus.store import Store
from layerflow.corpus.table import REJECTED_SCHEMA, Corpus
from layerflow.corpus.writer import SHARD_BYTES, logged, settle
from layerflow.outputs import corpus_output
from pipelines.engine.cutting import Piece, make_shards
from pipelines.engine.ledger import sweep_shards
from pipelines.engine.runner import Damaged, Place, run_units
from pipelines.engine.staging import InfrastructureError, Parts, Staging
from pipelines.engine.workers import Pool, Unit


@dataclass(frozen=True)
class Compacted:
    """The version that a corpus is at; its shards, those that were put together, rows left out."""

    version: int
    shards: int
    joined: int
    dropped: int


def run_compact(
    path: str | Path,
    *,
    drop: Collection[str] = (),
    forget: bool = False,
    workers: int | None = None,
    quiet: bool = False,
) -> Compacted:
    """Put small neighbouring shards of the newest version together.

    drop: ids of rows that the new version does not have; their shards are written anew. forget:
    remove the earlier versions and the shards that only they name. Raises ValueError when there is
    no corpus, InfrastructureError when another job adds a version meanwhile.
    """
    out = corpus_output(path)
    store = Store(out)
    corpus = Corpus.open(out)
    base = corpus.version or logged(Path(out), str(corpus.info.get("kind", "")), corpus.info)
    if corpus.version is None:
        log.commit(store, base)
    groups = _groups(Corpus.open(out), set(drop))
    changed = [group for group in groups if len(group) > 1 or group[0].drop]
    pool = Pool(workers, quiet)

    def compact(staging: Staging, _: int) -> Version:
        kept = [g for g in changed if any(_left(piece, base) for piece in g)]
        try:
            made = make_shards(kept, str(out), corpus.schema, staging, pool)
        except Damaged as error:
            first = next(iter(error.units.values()))
            raise ValueError(f"{store} cannot be used: {first}; see layerflow validate") from error
        version = _version(base, groups, changed, kept, made)
        if not log.commit(store, version):
            raise InfrastructureError(f"{store}: another job has added a version; start again")
        return version

    def finish(staging: Staging, resumed: int) -> Version:
        version = compact(staging, resumed) if changed else base
        settle(store, version, corpus.schema, REJECTED_SCHEMA)
        if forget:
            forget_before(store, version.number)
        sweep_shards(store)
        return version

    here = store.local
    name = "staging-compact"
    place = Place(
        here / name if here is not None else store.location(name),
        here / ".lock" if here is not None else None,
        f"{store}: another job is writing this corpus",
    )
    version = run_units([], place, _nothing, pool, settle=_nothing_of, compact=finish)
    dropped = sum(len(piece.drop) for group in changed for piece in group)
    joined = sum(len(group) for group in changed)
    return Compacted(version.number, len(version.shards), joined, dropped)


def _groups(corpus: Corpus, drop: set[str]) -> list[list[Piece]]:
    """The shards, neighbours together that are small or become smaller."""
    groups: list[list[Piece]] = []
    held = SHARD_BYTES
    for number, shard in enumerate(corpus.shards):
        piece = Piece(
            shard.file, str(corpus.store.where), shard.file, shard.bytes or 0, str(shard.sha256),
            _dropped(corpus, number, drop),
        )  # fmt: skip
        is_small = piece.bytes < SHARD_BYTES // 2
        if not is_small or held >= SHARD_BYTES:
            groups.append([])
            held = 0
        groups[-1].append(piece)
        held += piece.bytes if is_small else SHARD_BYTES
    return groups


def _dropped(corpus: Corpus, number: int, drop: set[str]) -> tuple[int, ...]:
    if not drop:
        return ()
    ids = [id for b in corpus.shard(number).batches(["id"]) for id in b.column("id").to_pylist()]
    return tuple(place for place, id in enumerate(ids) if id in drop)


def _left(piece: Piece, base: Version) -> int:
    """Rows of a shard that stay."""
    rows = next(shard.rows for shard in base.shards if shard.file == piece.name)
    return (rows or 0) - len(piece.drop)


def _version(
    base: Version,
    groups: Sequence[Sequence[Piece]],
    changed: Sequence[Sequence[Piece]],
    kept: Sequence[Sequence[Piece]],
    made: Sequence[Shard],
) -> Version:
    old = {shard.file: shard for shard in base.shards}
    new = {id(group): shard for group, shard in zip(kept, made, strict=True)}
    gone = {id(group) for group in changed}
    shards = []
    for group in groups:
        if id(group) in new:
            shards.append(new[id(group)])
        elif id(group) not in gone:
            shards += [old[piece.name] for piece in group]
    if not shards:
        raise ValueError("nothing would be left of this corpus")
    rows = sum(shard.rows or 0 for shard in shards)
    return base.next("compact", shards=tuple(shards), info={**base.info, "rows": rows})


def forget_before(store: Store, number: int) -> None:
    """Remove the versions before ``number``, then the shards that only they name."""
    kept = log.read(store, number)
    named = {shard.file for shard in kept.shards} | {
        f"{log.REJECTED}/{shard.file}" for shard in kept.rejected
    }
    old: set[str] = set()
    for each in [n for n in log.numbers(store) if n < number]:
        version = log.read(store, each)
        old |= {shard.file for shard in version.shards}
        old |= {f"{log.REJECTED}/{shard.file}" for shard in version.rejected}
        store.remove(log.file_name(each))
    for name in sorted(old - named):
        store.remove(name)


def _nothing(payload: dict[str, object]) -> Parts:
    raise AssertionError("compaction has no units of its own")


def _nothing_of(unit: Unit, reason: str) -> Parts:
    raise AssertionError("compaction has no units of its own")
