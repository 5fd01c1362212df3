"""``layerflow publish``: a corpus to the Hugging Face Hub, or to a folder in the Hub's layout;
``layerflow export``: to files of other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from layerflow import front
from layerflow.cli.corpus import AtVersion, CorpusPath
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


def export(
    corpus: CorpusPath,
    out: Annotated[Path, typer.Option(help="folder to make; must not exist")],
    format: Annotated[str, typer.Option(help="webdataset (tar shards) or folder")] = "webdataset",
    version: AtVersion = None,
    where: Annotated[
        list[str] | None, typer.Option(help="only clips with 'flicker<0.02'; repeatable")
    ] = None,
    kind: Annotated[list[str] | None, typer.Option(help="only this kind; repeatable")] = None,
    keep_unknown: Annotated[
        bool, typer.Option("--keep-unknown", help="also clips that have no such score")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="no progress bar")] = False,
) -> None:
    """The clips as files, with their media as stored; `layerflow pack` takes them back as they
    were."""
    from layerflow.corpus.derive import Selection
    from layerflow.corpus.published import open_corpus
    from pipelines.export.job import run_export

    selection = Selection.of(where or (), kind or (), keep_unknown)
    done = run_export(
        open_corpus(corpus, version), out, format=format, selection=selection, quiet=quiet
    )
    size = f"{done.bytes / 1e6:.1f} MB"
    typer.echo(f"{done.out}: {done.clips} clips in {done.pieces} {format} pieces, {size}")


COMMANDS = (publish, export)
