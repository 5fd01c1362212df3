"""Corrected values of a corpus: small tables beside its shards, laid over rows as they are read.

    CORPUS/overlay/data-*.arrow      a row a clip: its id, and what is new of it; null: as it was

A version names its overlay tables in order; of two values for one clip the later one holds. No
media are written again. ``layerflow compact`` puts corrected values into the shards themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from layerflow.clip import PROMPTED
from layerflow.corpus.columns import QUALITY, RIGHTS
from layerflow.corpus.log import OVERLAY, Shard
from layerflow.corpus.scores import QUALITY_FIELDS
from layerflow.corpus.shards import ShardReader
from layerflow.corpus.store import Store

PROMPTS = tuple(f"{layer}_prompt" for layer in PROMPTED)
ORIGIN, SCORES = "origin", "quality"
SCHEMA = pa.schema(
    [("id", pa.string()), *((name, pa.string()) for name in (*PROMPTS, *RIGHTS)), (SCORES, QUALITY)]
)
COLUMNS = frozenset((*PROMPTS, ORIGIN, SCORES))
"""The columns of a corpus that an overlay may change."""


@dataclass(frozen=True)
class Overlay:
    """New values by the id of a row: names of ``SCHEMA`` to values, scores by their own names."""

    values: Mapping[str, Mapping[str, Any]]

    @classmethod
    def read(cls, store: Store, shards: Iterable[Shard]) -> Overlay:
        """Of the corpus folder ``store``. Raises ValueError for a damaged table."""
        found: dict[str, dict[str, Any]] = {}
        for shard in shards:
            reader = ShardReader(store.below(OVERLAY), shard.file)
            if reader.schema.names != SCHEMA.names or reader.rows != shard.rows:
                where = store.location(f"{OVERLAY}/{shard.file}")
                raise ValueError(f"{where} cannot be read: other columns or rows than it should")
            for batch in reader.batches():
                for row in batch.to_pylist():
                    found.setdefault(row["id"], {}).update(_stated(row))
        return cls(found)

    @classmethod
    def of_rows(cls, rows: Iterable[Mapping[str, Any]]) -> Overlay:
        """Of rows of ``SCHEMA``, each with another id."""
        return cls({row["id"]: _stated(row) for row in rows})

    def touches(self, columns: Sequence[str] | None) -> bool:
        return bool(self.values) and (columns is None or not COLUMNS.isdisjoint(columns))

    def corrected(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """A batch of corpus rows, with their ids, with its new values."""
        if not self.values:
            return batch
        places = [
            (place, self.values[id])
            for place, id in enumerate(batch.column("id").to_pylist())
            if id in self.values
        ]
        if not places:
            return batch
        for name in COLUMNS.intersection(batch.schema.names):
            at = batch.schema.get_field_index(name)
            cells = batch.column(at).to_pylist()
            for place, new in places:
                cells[place] = _cell(name, cells[place], new)
            column = pa.array(cells, batch.schema.types[at])
            batch = batch.set_column(at, batch.schema.field(at), column)
        return batch

    def of(self, ids: Iterable[str]) -> Overlay:
        """The values of some rows."""
        return Overlay({id: self.values[id] for id in ids if id in self.values})

    def rows(self) -> list[dict[str, Any]]:
        """As rows of ``SCHEMA``."""
        return [
            {
                "id": id,
                **{name: new.get(name) for name in (*PROMPTS, *RIGHTS)},
                SCORES: {name: new.get(name) for name in QUALITY_FIELDS},
            }
            for id, new in self.values.items()
        ]


def _stated(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a row of an overlay says, flat."""
    flat = {**{name: row[name] for name in (*PROMPTS, *RIGHTS)}, **(row[SCORES] or {})}
    return {name: value for name, value in flat.items() if value is not None}


def _cell(column: str, old: Any, new: Mapping[str, Any]) -> Any:
    if column in PROMPTS:
        return new.get(column, old)
    names = RIGHTS if column == ORIGIN else tuple(old or QUALITY_FIELDS)
    return {**(old or {}), **{name: new[name] for name in names if name in new}}
