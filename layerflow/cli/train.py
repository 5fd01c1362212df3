"""``layerflow encode | train | evaluate | runs``: latents, the schedule, and layers scored."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from layerflow import front
from layerflow.cli.options import with_options_of


@with_options_of(front.encode, str, spare=("corpora",), corpora=typer.Argument(metavar="CORPUS..."))
def encode(**options: Any) -> None:
    """Corpus -> latents and prompt embeddings; does only what is missing."""
    summary = front.encode(**options)
    corrected = f", new prompts for {summary.corrected}" if summary.corrected else ""
    print(
        f"{summary.out}: {summary.clips} rows, {summary.prompts} prompts; {summary.encoded} clips "
        f"encoded{corrected}, {len(summary.rejected)} rejected ({summary.seconds:.1f} s)"
    )
    if options["buckets"]:
        print(
            "  " + ", ".join(f"{shape}: {count} rows" for shape, count in summary.shapes().items())
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
        from layerflow.outputs import corpus_output
        from manifests.train import load
        from trainer.distributed.launch import cluster_placement
        from trainer.planning.plan import lines, make_plan
        from trainer.workplace import with_model_here

        path = Path(options["manifest"])
        checked = with_model_here(load(path, out=options["out"], workers=options["workers"]))
        corpus_output(checked.out)
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


def runs(
    folder: Annotated[Path, typer.Argument(help="a run's folder, or one above several")],
    json: Annotated[bool, typer.Option("--json", help="print JSON only")] = False,
) -> None:
    """The training runs below a folder: stage, step, loss, time left, state."""
    import json as encoder

    from trainer.tracking.runs import describe, find_runs, lines

    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder")
    found, odd = [], []
    for run in find_runs(folder):
        try:
            found.append(describe(run))
        except ValueError as error:
            odd.append(str(error))
    if json:
        typer.echo(encoder.dumps([run.plain() for run in found], indent=1))
        return
    for line in lines(found, folder) if found else [f"no training runs below {folder}"]:
        typer.echo(line)
    for text in odd:
        typer.echo(f"left out: {text}", err=True)


COMMANDS = (encode, train, evaluate, runs)
