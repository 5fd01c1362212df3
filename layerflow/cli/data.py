"""``layerflow mine | paste | pack | build``: the corpus jobs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from layerflow import front
from layerflow.cli.arguments import RUNTIME
from layerflow.cli.misses import print_misses
from layerflow.cli.options import with_options_of

if TYPE_CHECKING:
    from pipelines.engine.jobs import Summary


@with_options_of(front.mine, str, inputs=typer.Argument())
def mine(
    explain: Annotated[
        bool, typer.Option("--explain", help="no corpus: out is a page that shows why, or why not")
    ] = False,
    **options: Any,
) -> None:
    """Real video -> mined clips: matte, straight foreground, clean background, scores."""
    if not explain:
        _finish(front.mine(**options), options["gate"])
        return
    from manifests.mine import of_command
    from pipelines.mine.explain import write_explanation

    given = {k: v for k, v in options.items() if k not in RUNTIME and v is not None}
    typer.echo(write_explanation(of_command(given)))


@with_options_of(front.paste, str, more=typer.Option("--set"))
def paste(more: list[str] | None, **options: Any) -> None:
    """Matted foregrounds over other backgrounds -> pasted clips, exact by construction."""
    _finish(front.paste(**options, more=_assignments(more or [], "--set")))


@with_options_of(front.pack, str, inputs=typer.Argument(), columns=typer.Option("--column"))
def pack(columns: list[str] | None, **options: Any) -> None:
    """Layered stills -> image clips, layered videos -> moving clips."""
    _finish(front.pack(**options, columns=_assignments(columns or [], "--column") or None))


@with_options_of(front.mine, only=RUNTIME)
def build(
    manifest: Annotated[Path, typer.Argument(help="a corpus manifest (YAML)")], **how: Any
) -> None:
    """Run the jobs that a corpus manifest lists, in order."""
    from layerflow.outputs import corpus_output
    from manifests.common import load
    from manifests.schema import BuildManifest, MineJob

    jobs = load(manifest, BuildManifest).jobs
    for job in jobs:  # all are checked first
        corpus_output(job.out)
    for job in jobs:
        gate = (job.gate, job.thresholds) if isinstance(job, MineJob) else ()
        _finish(front.run_job(job, **how), *gate)


def _assignments(items: list[str], option: str) -> dict[str, Any]:
    """``["a=1", "b=x,y", "c=[1, 2]"]`` -> ``{"a": 1, "b": ["x", "y"], "c": [1, 2]}``: values as
    YAML, in which plain commas make lists too."""
    from manifests.yaml_file import parse_yaml

    found: dict[str, Any] = {}
    for item in items:
        name, sign, text = item.partition("=")
        if not sign or not name.isidentifier():
            raise ValueError(f"{option} {item!r}: write it as NAME=VALUE")
        parts = [text] if text.lstrip().startswith(("[", "{", '"', "'")) else text.split(",")
        values = [parse_yaml(part, f"{option} {name}") for part in parts]
        found[name] = values if len(values) > 1 else values[0]
    return found


def _finish(summary: Summary, gate: str = "off", thresholds: Any = None) -> None:
    """Print what was made, and what a mine job's ``gate`` decided. Status 1 when nothing was."""
    print_summary(summary)
    print_misses(summary.out, gate, thresholds)
    if summary.kept == 0:
        raise typer.Exit(1)


def print_summary(summary: Summary) -> None:
    """One line, and a table of reasons when rows were rejected."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    new = f", {summary.added} of them new" if summary.added is not None else ""
    resumed = f", {summary.resumed} units were done already" if summary.resumed else ""
    console.print(
        f"{summary.out}: {summary.kept} clips{new}, {summary.rejected} rejected rows "
        f"({summary.seconds:.1f} s{resumed})",
        highlight=False,
        soft_wrap=True,
    )
    if summary.reasons:
        table = Table("rejected", "stage: reason", box=None)
        for reason, count in sorted(summary.reasons.items(), key=lambda item: -item[1])[:20]:
            table.add_row(str(count), reason)
        console.print(table)


COMMANDS = (mine, paste, pack, build)
