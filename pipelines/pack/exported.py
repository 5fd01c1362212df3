"""Clips of an export: finished rows, which are checked and taken with the bytes that they have."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from layerflow.corpus.columns import RIGHTS
from layerflow.corpus.row_cells import check_stored
from layerflow.corpus.table import rejected_row
from layerflow.media.cells import MediaError
from pipelines.engine.jobs import Outcome
from pipelines.export.sample import row_of
from pipelines.inputs.exported import ExportPart, samples_of
from pipelines.pack.still import PackContext


def take_exported(part: ExportPart, context: PackContext) -> Outcome:
    """The rows of one tar shard or folder, in order; what cannot be used is a rejected row."""
    outcome = Outcome()
    outcome.rows = _rows(part, context, outcome.rejected)
    return outcome


def _rows(
    part: ExportPart, context: PackContext, rejected: list[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    def refuse(reason: str) -> None:
        row = rejected_row(part.uri, "read", reason, kind="image", recipe=context.recipe)
        rejected.append(row)

    options = context.options
    default = {"licence": options.licence, "attribution": options.attribution}
    try:
        for id, files in samples_of(part):
            try:
                row = row_of(id, files)
                check_stored(row)
            except (MediaError, ValueError) as error:
                refuse(f"{id}: {error}"[:300])
                continue
            held = {name: row["origin"][name] or default[name] for name in RIGHTS}
            yield {**row, "origin": row["origin"] | held}
    except (ValueError, OSError) as error:  # the rest of the piece
        refuse((isinstance(error, OSError) and error.strerror) or str(error)[:300])
