"""Rows of a published corpus (Parquet, as on the Hub) as rows of a local one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from layerflow.clip import LAYERS, LayeredClip
from layerflow.corpus import SCHEMA, decode_row
from layerflow.media import MediaError


def local_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as ``datasets`` gives it -> a corpus row: each media cell is its bytes.

    Raises MediaError when a media cell holds a path only (of a repository that is not ours).
    """
    out = dict(row)
    for layer in LAYERS:
        cell = out.get(layer)
        if isinstance(cell, Mapping):
            if cell.get("bytes") is None:
                raise MediaError(f"{layer} of row {row.get('id')} holds no bytes")
            out[layer] = cell["bytes"]
    return out


class PublishedCorpus:
    """The rows of local Parquet files that ``layerflow publish`` made, in order.

    Random access reads one row group of the wanted columns.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = [pq.ParquetFile(path, memory_map=True) for path in files]
        self._groups: list[tuple[pq.ParquetFile, int, int]] = []
        rows = 0
        for file in self._files:
            missing = set(SCHEMA.names) - set(file.schema_arrow.names)
            if missing:
                raise ValueError(f"not a published corpus: no column {sorted(missing)}")
            for group in range(file.num_row_groups):
                self._groups.append((file, group, rows))
                rows += file.metadata.row_group(group).num_rows
        self._rows = rows

    @classmethod
    def open(cls, folder: str | Path, split: str | None = None) -> PublishedCorpus:
        """The default configuration of a repository folder. Raises ValueError when it has none."""
        files = sorted((Path(folder) / "data").glob(f"{split or '*'}-*-of-*.parquet"))
        if not files:
            raise ValueError(f"{folder} holds no data/{split or '*'}-*.parquet")
        return cls(files)

    def __len__(self) -> int:
        return self._rows

    def rows(self, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
        """Every row, as a corpus row; ``columns`` leaves the others unread."""
        for file, group, _ in self._groups:
            table = file.read_row_group(group, columns=list(columns) if columns else None)
            yield from map(local_row, table.to_pylist())

    def row(self, index: int, columns: Sequence[str] | None = None) -> dict[str, Any]:
        """One row, as a corpus row."""
        if not 0 <= index < self._rows:
            raise IndexError(f"row {index} of {self._rows}")
        file, group, first = next(g for g in reversed(self._groups) if g[2] <= index)
        table = file.read_row_group(group, columns=list(columns) if columns else None)
        return local_row(table.slice(index - first, 1).to_pylist()[0])

    def clip(self, index: int) -> LayeredClip:
        return decode_row(self.row(index))

    def ids(self) -> list[str]:
        return [row["id"] for row in self.rows(["id"])]
