"""``layerflow log | compact``: the versions of a corpus."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from layerflow import front

CorpusPath = Annotated[
    str, typer.Argument(help="a corpus folder, here or in an object store", metavar="CORPUS")
]


def log(
    corpus: CorpusPath,
    json: Annotated[bool, typer.Option("--json", help="print JSON only")] = False,
) -> None:
    """The versions of a corpus: what made each, how many rows and shards came and went."""
    import json as encoder

    from layerflow.corpus.log import is_purged, lines, numbers, read
    from layerflow.corpus.store import Store
    from layerflow.corpus.table import Corpus

    store = Store(corpus)
    versions = [read(store, number) for number in numbers(store)]
    if json:
        typer.echo(encoder.dumps([version.plain() for version in versions], indent=1))
        return
    if not versions:
        opened = Corpus.open(corpus)
        text = f"{len(opened)} rows in {len(opened.shards)} shards"
        typer.echo(f"version 1  {text}; there is no log yet")
    for version, before in zip(versions, [None, *versions], strict=False):
        for line in lines(version, before, purged=is_purged(store, version)):
            typer.echo(line)


def compact(
    corpus: CorpusPath,
    forget: Annotated[
        bool, typer.Option("--forget", help="remove earlier versions and what only they hold")
    ] = False,
    drop: Annotated[
        Path | None, typer.Option(help="a text file of ids, one a line: rows to leave out")
    ] = None,
    workers: Annotated[int | None, typer.Option(help=front.WORKERS)] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="no progress bar")] = False,
) -> None:
    """A new version with small shards put together; rows keep their order and their bytes."""
    from pipelines.compact import run_compact

    ids = drop.read_text().split() if drop is not None else ()
    done = run_compact(corpus, drop=ids, forget=forget, workers=workers, quiet=quiet)
    what = f"{done.joined} shards put together" if done.joined else "nothing to put together"
    left = f", {done.dropped} rows left out" if drop is not None else ""
    typer.echo(f"{corpus}: version {done.version}, {done.shards} shards; {what}{left}")


COMMANDS = (log, compact)
