"""Damage to staged files, and jobs on them."""

from __future__ import annotations

import base64
import json
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.engine import staging as module
from pipelines.engine import workers
from pipelines.engine.jobs import Outcome, run_job
from tests.support.job_units import RECIPE, units, work

Work = Callable[[dict[str, Any]], Outcome]


def run(out: Path, work: Work = work, count: int = 6, **options: Any) -> Any:
    given: dict[str, Any] = {"recipe": RECIPE, "workers": 0, "quiet": True} | options
    return run_job(units(count), work, out=out, **given)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    with path.open("rb+") as file:
        file.truncate(path.stat().st_size // 2)


def as_file(unit: Path) -> None:
    shutil.rmtree(unit)
    unit.write_text("in the way")


def fewer(unit: Path) -> None:
    record = json.loads((unit / "unit.json").read_text())
    del record["parts"]["rejected.arrow"]["sum"]
    (unit / "unit.json").write_text(json.dumps(record))


def held(unit: Path) -> None:
    record = json.loads((unit / "unit.json").read_text())
    part = record["parts"]["rejected.arrow"]
    part["held"] = "A" + part["held"][1:] if part["held"][0] != "A" else "B" + part["held"][1:]
    (unit / "unit.json").write_text(json.dumps(record))


def not_held(unit: Path) -> None:
    record = json.loads((unit / "unit.json").read_text())
    packed = base64.b64decode(record["parts"]["index.arrow"].pop("held"))
    (unit / "index.arrow").write_bytes(zlib.decompress(packed))
    (unit / "unit.json").write_text(json.dumps(record))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a byte of the rows flipped": lambda unit: flip(unit / "rows.arrow"),
    "the rejected rows changed": held,
    "the index in a file, as of a toolkit before": not_held,
    "the rows cut off": lambda unit: cut(unit / "rows.arrow"),
    "the rows empty": lambda unit: (unit / "rows.arrow").write_bytes(b""),
    "the rows gone": lambda unit: (unit / "rows.arrow").unlink(),
    "bytes appended": lambda unit: (unit / "rows.arrow").open("ab").write(b"more"),
    "the record gone, as of another version": lambda unit: (unit / "unit.json").unlink(),
    "the record cut off": lambda unit: cut(unit / "unit.json"),
    "the record nonsense": lambda unit: (unit / "unit.json").write_text('{"parts": [1]}'),
    "the record without a sum": fewer,
    "the unit gone": shutil.rmtree,
    "the unit empty": lambda unit: (shutil.rmtree(unit), unit.mkdir()),
    "the unit a file": as_file,
}


Row = dict[str, str]


def items(tasks: Any) -> list[Row]:
    return [{"key": task.key, "payload": json.dumps(task.payload)} for task in tasks]


def play(monkeypatch: pytest.MonkeyPatch, each: Callable[[Row, Callable[[Row], Row]], Any]) -> None:
    """Instead of Ray: ``each(item, run)`` for every unit, which returns its report or None."""

    def rows(tasks: Any, run: Callable[[Row], Row], *_: Any) -> Iterator[Row]:
        for item in items(tasks):
            said = each(item, run)
            if said is not None:
                yield said

    monkeypatch.setattr(workers, "ray_rows", rows)
    monkeypatch.setattr(module, "PATIENCE", 0.01)
