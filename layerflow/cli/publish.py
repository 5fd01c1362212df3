"""``layerflow publish``: a corpus to the Hugging Face Hub, or to a folder in the Hub's layout."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from layerflow import front


def register(app: typer.Typer) -> None:
    """Mount this group's commands."""
    app.command()(publish)


def publish(
    corpus: Annotated[Path, typer.Argument(help="a corpus folder", metavar="CORPUS")],
    repo_id: Annotated[str, typer.Argument(help="NAMESPACE/NAME on the Hub")],
    dry_run: Annotated[
        Path | None, typer.Option(help="write the repository into this folder, upload nothing")
    ] = None,
    private: Annotated[bool, typer.Option("--private/--public", help="who may see it")] = True,
    config: Annotated[str, typer.Option(help="name of the configuration")] = "default",
    split: Annotated[
        str, typer.Option(help="one name, or shares such as train=0.9,test=0.1")
    ] = "train",
    seed: Annotated[int, typer.Option(help="the draw of the splits follows from it")] = 0,
    revision: Annotated[str | None, typer.Option(help="branch to commit to")] = None,
    licence: Annotated[
        str | None, typer.Option(help="licence of the whole repository, for its card")
    ] = None,
    acknowledge_licences: Annotated[
        bool,
        typer.Option(
            "--acknowledge-licences",
            help="the right to keep clips whose licence forbids redistribution is there "
            "(with --private only)",
        ),
    ] = False,
    with_rejected: Annotated[
        bool, typer.Option("--with-rejected", help="also publish the rejected table")
    ] = False,
    workers: Annotated[
        int | None, typer.Option(help="processes for previews; default: all CPUs; 0: this process")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="no progress bar")] = False,
) -> None:
    """Parquet with the corpus' own media bytes, a preview that plays, and a dataset card."""
    for line in front.publish(**locals()):
        typer.echo(line)
