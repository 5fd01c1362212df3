"""``layerflow publish``: a corpus to the Hugging Face Hub, or to a folder in the Hub's layout."""

from __future__ import annotations

from typing import Any

import typer

from layerflow import front
from layerflow.cli.options import with_options_of


@with_options_of(
    front.publish,
    corpus=typer.Argument(metavar="CORPUS"),
    repo_id=typer.Argument(),
    private=typer.Option("--private/--public"),
)
def publish(**options: Any) -> None:
    """Parquet with the corpus' own media bytes, a preview that plays, and a dataset card."""
    for line in front.publish(**options):
        typer.echo(line)


COMMANDS = (publish,)
