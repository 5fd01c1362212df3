"""``layerflow evaluate``: layer metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from layerflow import front
from layerflow.cli.options import with_options_of


@with_options_of(front.evaluate, count=typer.Option(min=1), batch=typer.Option(min=1))
def evaluate(out: Path, **options: Any) -> None:
    """Scores of layers against a corpus: clips.csv, metrics.json, tables.md, contact sheets."""
    summary = front.evaluate(out=out, **options)
    typer.echo((out / "tables.md").read_text().rstrip())
    if summary["skipped"]:
        typer.echo(f"{len(summary['skipped'])} clips skipped, see metrics.json")


COMMANDS = (evaluate,)
