"""``layerflow compact``: small shards of a corpus become larger ones, as a new version.

Rows keep their order and their bytes; nothing is decoded. Values that ``annotate`` corrected go
into the shards. Shards that are large enough stay, and so do the files of earlier versions, until
``forget`` removes them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from layerflow.corpus import log
from layerflow.corpus.log import Version
from layerflow.corpus.store import Store
from layerflow.corpus.table import Corpus
from layerflow.corpus.writer import SHARD_BYTES
from pipelines.engine.cutting import Piece
from pipelines.engine.rewriting import Rewriting, pieces_of, rewrite
from pipelines.engine.workers import Pool


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
    wanted = set(drop)
    changed: list[Sequence[Piece]] = []

    def plan(corpus: Corpus) -> Rewriting | None:
        overlay = corpus.overlay if corpus.version and corpus.version.overlay else None
        groups = _groups(pieces_of(corpus, wanted, overlay))
        planned = Rewriting("compact", groups, {"overlay": ()})
        changed[:] = planned.changed
        if wanted and sum(len(p.drop) for group in changed for p in group) == len(corpus):
            raise ValueError("nothing would be left of this corpus")
        return planned if changed or overlay is not None else None

    def finish(store: Store, version: Version) -> None:
        if forget:
            forget_before(store, version.number)

    version = rewrite(path, plan, Pool(workers, quiet), finish=finish)
    dropped = sum(len(piece.drop) for group in changed for piece in group)
    joined = sum(len(group) for group in changed)
    return Compacted(version.number, len(version.shards), joined, dropped)


def _groups(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """The shards, neighbours together that are small or become smaller."""
    groups: list[list[Piece]] = []
    held = SHARD_BYTES
    for piece in pieces:
        is_small = piece.bytes < SHARD_BYTES // 2
        if not is_small or held >= SHARD_BYTES:
            groups.append([])
            held = 0
        groups[-1].append(piece)
        held += piece.bytes if is_small else SHARD_BYTES
    return groups


def forget_before(store: Store, number: int) -> None:
    """Remove the versions before ``number``, then the files that only they name."""
    kept = set(log.files_of(log.read(store, number)))
    old: set[str] = set()
    for each in [n for n in log.numbers(store) if n < number]:
        old |= set(log.files_of(log.read(store, each)))
        store.remove(log.file_name(each))
    for name in sorted(old - kept):
        store.remove(name)
