"""The last step of a corpus job, by many workers: rows that are there already become shards.

Which rows go into which shard is worked out from small tables alone, so it is a function of the
rows and their order. Each shard is then a unit of work of its own: what is killed goes on with the
shards that are missing, and no media pass through the driver.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import pyarrow as pa

from layerflow.corpus.changes.overlay import Overlay
from layerflow.corpus.log import Shard
from layerflow.corpus.shards import read_shard
from layerflow.corpus.store import Store
from layerflow.corpus.writer import ROWS_PER_BATCH, SHARD_BYTES, regrouped, write_shard
from pipelines.engine.checksums import has_sum
from pipelines.engine.desk import NO_DESKS
from pipelines.engine.runner import Damaged
from pipelines.engine.staging import InfrastructureError, Parts, Staging, json_part
from pipelines.engine.workers import Make, Pool, Unit, run_staged

SHARD = "shard.json"


@dataclass(frozen=True, slots=True)
class Piece:
    """A file of rows. key: the unit or shard that it is of; folder, name: where it lies; bytes,
    sum: what it should hold (``engine.checksums``); drop: numbers of rows that are left out; new:
    corrected values of its rows, as rows of ``corpus.changes.overlay``."""

    key: str
    folder: str
    name: str
    bytes: int
    sum: str
    drop: tuple[int, ...] = ()
    new: tuple[dict[str, Any], ...] = ()

    @property
    def plain(self) -> list[Any]:
        """Its fields in their order."""
        return [getattr(self, one.name) for one in fields(self)]

    @property
    def changes(self) -> bool:
        """Whether rows of it go or are corrected."""
        return bool(self.drop or self.new)


def cut(pieces: Iterable[Piece], shard_bytes: int | None = None) -> list[list[Piece]]:
    """Pieces in order, as the groups that each become a shard: one ends when it is large enough."""
    groups: list[list[Piece]] = []
    held = limit = SHARD_BYTES if shard_bytes is None else shard_bytes
    for piece in pieces:
        if held >= limit:
            groups.append([])
            held = 0
        groups[-1].append(piece)
        held += piece.bytes
    return groups


def make_shards(
    groups: Sequence[Sequence[Piece]], out: str, schema: pa.Schema, staging: Staging, pool: Pool
) -> list[Shard]:
    """The shards of all groups, in order, in the corpus folder ``out``.

    Raises Damaged for pieces that hold something else than they should, InfrastructureError when
    a shard cannot be made.
    """
    make = partial(make_shard, out=out, schema=schema)
    found = run_cutting(groups, make, out, schema, staging.below("shards"), pool)
    return [Shard(**one) for _, one in found]


def run_cutting(
    groups: Sequence[Sequence[Piece]],
    make: Make,
    out: str,
    schema: pa.Schema,
    cutting: Staging,
    pool: Pool,
) -> list[tuple[str, dict[str, Any]]]:
    """Have each group made shards of ``out`` by ``make``: keys in ``cutting``, with what they say.

    make: gets the ``pieces_of`` a payload, and commits as ``SHARD`` what it made of them. Errors as
    of ``make_shards``.
    """
    units = []
    for order, group in enumerate(groups):
        rows = [[p.sum, p.drop, *([p.new] if p.new else [])] for p in group]
        told = json.dumps([out, rows, str(schema)])
        key = hashlib.sha256(told.encode()).hexdigest()[:20]
        units.append(
            Unit(key, order, {"uri": f"shard {order}", "pieces": [p.plain for p in group]})
        )
    # One shard of a folder here is written at once: other processes would only cost their start.
    workers = 0 if len(groups) == 1 and Store(out).local is not None else pool.workers
    own = replace(pool, workers=workers, accept_lost=False, desks=NO_DESKS)
    for reason in run_staged(units, make, cutting, own).values():
        raise InfrastructureError(f"a shard of {out} could not be written: {reason}")
    found = [(unit.key, json.loads(cutting.read(unit.key, SHARD))) for unit in units]
    if damaged := {key: how for _, one in found for key, how in one.get("damaged", {}).items()}:
        cutting.clear()
        raise Damaged(damaged)
    return found


def make_shard(payload: dict[str, Any], *, out: str, schema: pa.Schema) -> Parts:
    """Write one shard; the unit commits what the log says of it."""
    pieces, damaged = pieces_of(payload)
    if damaged:
        return damaged
    rows = (batch for piece in pieces for batch in kept_rows(piece))
    shard = write_shard(Store(out), regrouped(rows, ROWS_PER_BATCH), schema)
    return {SHARD: json_part(shard.plain())}


def pieces_of(payload: Mapping[str, Any]) -> tuple[list[Piece], Parts]:
    """The pieces of a shard; and what its unit commits instead of it if some are damaged."""
    pieces = [
        Piece(key, folder, name, size, told, tuple(drop), tuple(new))
        for key, folder, name, size, told, drop, new in payload["pieces"]
    ]
    damaged = {piece.key: how for piece in pieces if (how := _fault(piece)) is not None}
    return pieces, {SHARD: json_part({"damaged": damaged})} if damaged else {}


def _fault(piece: Piece) -> str | None:
    store = Store(piece.folder)
    try:
        here = store.local
        sound = has_sum(store.read(piece.name) if here is None else here / piece.name, piece.sum)
    except FileNotFoundError:
        return "it is gone"
    return None if sound else f"{piece.name} holds other bytes than were written"


def kept_rows(piece: Piece) -> Iterator[pa.RecordBatch]:
    """What stays of a piece, with its corrected values."""
    dropped, overlay = set(piece.drop), Overlay.of_rows(piece.new)
    first = 0
    for batch in _read(piece):
        keep = [i for i in range(batch.num_rows) if first + i not in dropped]
        first += batch.num_rows
        if len(keep) == batch.num_rows:
            yield overlay.corrected(batch)
        elif keep:
            yield overlay.corrected(batch.take(pa.array(keep)))


def _read(piece: Piece) -> Iterator[pa.RecordBatch]:
    store = Store(piece.folder)
    if store.local is not None:
        yield from read_shard(store.local / piece.name)
        return
    data = store.read(piece.name)
    with pa.ipc.open_stream(pa.py_buffer(data)) as reader:
        for batch in reader:
            batch.validate(full=True)
            yield batch
