"""Units of a job that draws small clips, and the bytes of what it made."""

from __future__ import annotations

from pathlib import Path

from layerflow.corpus.table import rejected_row
from pipelines.engine.jobs import Outcome, Unit, make_recipe, unit_key
from tests.support.corpus_rows import make_row

RECIPE = make_recipe("pasted", {"size": "24x32", "out": "x"}, 1)


def units(count: int) -> list[Unit]:
    return [Unit(unit_key(i), i, {"index": i, "uri": f"{i}.mp4"}) for i in range(count)]


def work(payload: dict) -> Outcome:
    index = payload["index"]
    if index % 3 == 2:
        reason = f"score 0.{index} below 0.5"
        return Outcome(
            rejected=[rejected_row(payload["uri"], "gate", reason, kind="pasted", recipe="r")]
        )
    return Outcome(rows=[make_row(2 * index), make_row(2 * index + 1)])


def files(folder: Path) -> dict[str, bytes]:
    names = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != ".lock"]
    return {str(p.relative_to(folder)): p.read_bytes() for p in names}
