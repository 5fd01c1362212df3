"""``layerflow remove | annotate | audit``: what happens to a corpus after it was made."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from layerflow import front
from layerflow.cli.corpus import AtVersion, Json, plain_text
from layerflow.cli.versions import CorpusPath

MOST_LINES = 100


def remove(
    corpus: CorpusPath,
    source: Annotated[
        list[str] | None, typer.Option(help="address or sha256 of a source; repeatable")
    ] = None,
    licence: Annotated[list[str] | None, typer.Option(help="a licence; repeatable")] = None,
    ids: Annotated[Path | None, typer.Option(help="a text file of ids, one a line")] = None,
    like: Annotated[
        list[str] | None, typer.Option(help="a corpus: what was removed from it; repeatable")
    ] = None,
    reason: Annotated[str, typer.Option(help="goes into the log")] = "",
    latents: Annotated[
        list[Path] | None, typer.Option(help="latents made of the corpus; repeatable")
    ] = None,
    purge: Annotated[
        bool, typer.Option("--purge", help="also the bytes of it in earlier versions")
    ] = False,
    workers: Annotated[int | None, typer.Option(help=front.WORKERS)] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="no progress bar")] = False,
) -> None:
    """Rows of a source, and everything made of it, out of a corpus; they cannot come back."""
    from pipelines.remove import Wanted, run_remove

    listed = ids.read_text().split() if ids is not None else ()
    wanted = Wanted(source or (), licence or (), listed, like or ())
    asked = any((source, licence, listed, like))
    done = run_remove(
        corpus, wanted if asked else None, reason=reason, latents=latents or (), purge=purge,
        workers=workers, quiet=quiet,
    )  # fmt: skip
    typer.echo(
        f"{corpus}: version {done.version}; {done.rows} clips of {done.sources} sources gone"
    )
    for folder, rows in done.latents.items():
        typer.echo(f"{folder}: {rows} rows of latents gone")
    if purge:
        typer.echo(f"{done.purged} files of earlier versions gone")
    else:
        typer.echo("earlier versions still hold the bytes: --purge removes them")
    typer.echo("copies elsewhere stay: published repositories, merged corpora, trained models")


def annotate(
    corpus: CorpusPath,
    table: Annotated[
        Path, typer.Option(help="CSV, JSONL or Parquet: id, and what is new of prompts or scores")
    ],
) -> None:
    """Correct prompts, scores, licences and attributions; no media are written again."""
    from pipelines.annotate import run_annotate

    done = run_annotate(corpus, table)
    columns = ", ".join(f"{name} ({count})" for name, count in done.columns.items())
    said = f"{done.clips} clips corrected: {columns}" if done.clips else "nothing is new"
    typer.echo(f"{corpus}: version {done.version}; {said}")


def audit(
    corpus: Annotated[
        str, typer.Argument(help="a corpus, here, remote or published", metavar="CORPUS")
    ],
    version: AtVersion = None,
    source: Annotated[
        str | None, typer.Option(help="an address or sha256: everything made of it")
    ] = None,
    rows: Annotated[Path | None, typer.Option(help="also write a CSV file, a row a clip")] = None,
    json: Json = False,
) -> None:
    """Sources, licences, attributions and parents, with clips and hours; who forbids what."""
    import json as encoder

    from layerflow.corpus.published import open_corpus
    from layerflow.corpus.validate import refuse_unpackable
    from pipelines.audit import audit as audited
    from pipelines.audit import audit_rows, write_rows

    opened = open_corpus(corpus, version)
    refuse_unpackable(opened)
    if rows is not None:
        written = write_rows(audit_rows(opened, source), rows)
        typer.echo(f"{rows}: {written} clips", err=json)
    found: Any = list(audit_rows(opened, source)) if source is not None else audited(opened)
    if json:
        typer.echo(encoder.dumps(found, indent=1))
    elif source is not None:
        _print_clips(found, source)
    else:
        _print_shares(found)


def _print_clips(found: list[dict[str, Any]], source: str) -> None:
    hours = sum(row["seconds"] for row in found) / 3600
    typer.echo(f"{len(found)} clips, {hours:.4f} hours, are made of {source}")
    for row in found[:MOST_LINES]:
        made_of = ", ".join(row["parents"]) or row["source"]
        licence = row["licence"] or "not stated"
        typer.echo(f"  {row['id']}  {row['kind']}  {licence}  {made_of}")
    if len(found) > MOST_LINES:
        typer.echo(f"  and {len(found) - MOST_LINES} more: --rows FILE.csv has all of them")


def _print_shares(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for kind, of in (("source", "licences"), ("licence", "sources")):
        shares = found[f"{kind}s"]
        table = Table(kind, "clips", "hours", of, "attribution")
        table.add_column("forbids or asks", no_wrap=True)
        for name, share in list(shares.items())[:MOST_LINES]:
            others = share["names"] if kind == "source" else [str(len(share["names"]))]
            table.add_row(
                plain_text(name), str(share["clips"]), f"{share['hours']:.4f}",
                *(plain_text("; ".join(part)) for part in (others, share["attributions"])),
                ", ".join(share["asks"]),
            )  # fmt: skip
        console.print(table)
        if len(shares) > MOST_LINES:
            typer.echo(f"and {len(shares) - MOST_LINES} more: --json has all of them")
    for entry in found["removed"]:
        why = f": {entry['reason']}" if entry["reason"] else ""
        typer.echo(f"removed on {entry['date']} by {entry['by']}, {entry['rows']} clips{why}")


COMMANDS = (remove, annotate, audit)
