"""``layerflow encode | train | evaluate``: latents, the schedule, and layers scored."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from layerflow import front
from layerflow.cli.options import with_options_of


@with_options_of(front.encode, str, corpora=typer.Argument(metavar="CORPUS..."))
def encode(**options: Any) -> None:
    """Corpus -> latents and prompt embeddings; does only what is missing."""
    summary = front.encode(**options)
    corrected = f", new prompts for {summary.corrected}" if summary.corrected else ""
    print(
        f"{summary.out}: {summary.clips} rows, {summary.prompts} prompts; {summary.encoded} clips "
        f"encoded{corrected}, {len(summary.rejected)} rejected ({summary.seconds:.1f} s)"
    )
    for id_, reason in summary.rejected[:10]:
        print(f"  rejected {id_}: {reason}")


@with_options_of(front.train, str, manifest=typer.Argument())
def train(
    plan: Annotated[bool, typer.Option("--plan", help="say what would happen, and stop")] = False,
    **options: Any,
) -> None:
    """The schedule of a manifest. Goes on where an earlier run stopped."""
    if plan:
        from layerflow.outputs import local_output
        from manifests.train import load
        from trainer.distributed.launch import cluster_placement
        from trainer.planning.plan import lines, make_plan

        path = Path(options["manifest"])
        checked = load(path, out=options["out"], workers=options["workers"])
        local_output(checked.out)
        placed = cluster_placement(checked)
        print("\n".join(lines(checked, make_plan(checked, placed), placed)))
        return
    folder = front.train(**options)
    if folder is None:
        print("stopped before the end; the same command goes on from here")
        raise typer.Exit(143)
    print(f"{folder}: done; the pipeline is in {folder}/export")


@with_options_of(front.evaluate, count=typer.Option(min=1), batch=typer.Option(min=1))
def evaluate(out: Path, **options: Any) -> None:
    """Scores of layers against a corpus: clips.csv, metrics.json, tables.md, contact sheets."""
    summary = front.evaluate(out=out, **options)
    typer.echo((out / "tables.md").read_text().rstrip())
    if summary["skipped"]:
        typer.echo(f"{len(summary['skipped'])} clips skipped, see metrics.json")


COMMANDS = (encode, train, evaluate)
