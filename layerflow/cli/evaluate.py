"""``layerflow evaluate``: layer metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from layerflow import front


def register(app: typer.Typer) -> None:
    """Mount this group's commands."""
    app.command()(evaluate)


def evaluate(
    corpus: Annotated[Path, typer.Option(help="corpus with the true layers")],
    out: Annotated[Path, typer.Option(help="folder for tables, figures and pictures")] = Path(
        "evaluation"
    ),
    model: Annotated[Path | None, typer.Option(help="model folder to sample from")] = None,
    predictions: Annotated[
        Path | None, typer.Option(help="instead: DIR/<id>/ as sample writes them, or a corpus")
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(help="generate, decompose, fg2bg, bg2fg or LAYER+LAYER given; repeatable"),
    ] = None,
    count: Annotated[int | None, typer.Option(help="clips at most; default: all", min=1)] = None,
    seed: Annotated[int, typer.Option(help="of the first clip; then one more each")] = 0,
    batch: Annotated[int, typer.Option(help="clips sampled at a time", min=1)] = 4,
    size: Annotated[str | None, typer.Option(help="HEIGHTxWIDTH; default: the model's")] = None,
    frames: Annotated[int | None, typer.Option(help="default: the model's")] = None,
    steps: Annotated[int | None, typer.Option(help="default: the model's, or 50")] = None,
    guidance: Annotated[float | None, typer.Option(help="default: the model's, or 6")] = None,
    clip: Annotated[
        Path | None, typer.Option(help="folder of a CLIP model: consistency and text alignment")
    ] = None,
    aesthetic: Annotated[
        Path | None, typer.Option(help="safetensors file of a linear head on --clip")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="no line for each clip")] = False,
) -> None:
    """Scores of layers against a corpus: clips.csv, metrics.json, tables.md, contact sheets."""
    summary = front.evaluate(**locals())
    typer.echo((out / "tables.md").read_text().rstrip())
    if summary["skipped"]:
        typer.echo(f"{len(summary['skipped'])} clips skipped, see metrics.json")
