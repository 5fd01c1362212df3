"""``layerflow encode | train``: latents, and the schedule."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from layerflow import front


def register(app: typer.Typer) -> None:
    """Mount this group's commands."""
    app.command()(encode)
    app.command()(train)


def encode(
    corpora: Annotated[
        list[str],
        typer.Argument(help="corpus folders, or hf://datasets/NAMESPACE/NAME", metavar="CORPUS..."),
    ],
    model: Annotated[str, typer.Option(help="model folder, made by init")],
    out: Annotated[str, typer.Option(help="latents folder to make or bring up to date")],
    size: Annotated[
        str | None, typer.Option(help="HEIGHTxWIDTH to encode at; default: as the clips are")
    ] = None,
    frames: Annotated[
        int | None, typer.Option(help="frames to take of each clip, evenly; default: all")
    ] = None,
    flip: Annotated[bool, typer.Option("--flip", help="also each clip mirrored")] = False,
    reverse: Annotated[bool, typer.Option("--reverse", help="also each clip backwards")] = False,
    crops: Annotated[int, typer.Option(help="also this many windows of each clip")] = 0,
    freeze: Annotated[
        int, typer.Option(help="instead of moving clips: this many frames of each, as stills")
    ] = 0,
    dtype: Annotated[str, typer.Option(help="float32 or float16")] = "float32",
    workers: Annotated[
        int | None, typer.Option(help="tasks at a time; default: all CPUs; 0: no Ray, this process")
    ] = None,
    accept_lost: Annotated[
        bool,
        typer.Option("--accept-lost", help="go on if most units fail alike: reject their clips"),
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="no progress bar")] = False,
) -> None:
    """Corpus -> latents and prompt embeddings; does only what is missing."""
    summary = front.encode(**locals())
    print(
        f"{summary.out}: {summary.clips} rows, {summary.prompts} prompts; {summary.encoded} clips "
        f"encoded, {len(summary.rejected)} rejected ({summary.seconds:.1f} s)"
    )
    for id_, reason in summary.rejected[:10]:
        print(f"  rejected {id_}: {reason}")


def train(
    manifest: Annotated[Path, typer.Argument(help="a train manifest (YAML)")],
    out: Annotated[str | None, typer.Option(help="run folder; default: the manifest's")] = None,
    stage: Annotated[str | None, typer.Option(help="train this stage only")] = None,
    workers: Annotated[
        int | None, typer.Option(help="1: this process; more: through Ray Train")
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="say what would happen, and stop")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="start over; default: go on")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="no lines while training")] = False,
) -> None:
    """The schedule of a manifest. Goes on where an earlier run stopped."""
    if plan:
        from layerflow.outputs import local_output
        from manifests.train import load
        from trainer.distributed.launch import cluster_placement
        from trainer.planning.plan import lines, make_plan

        checked = load(manifest, out=out, workers=workers)
        local_output(checked.out)
        placed = cluster_placement(checked)
        print("\n".join(lines(checked, make_plan(checked, placed), placed)))
        return
    folder = front.train(manifest, out=out, stage=stage, workers=workers, fresh=fresh, quiet=quiet)
    if folder is None:
        print("stopped before the end; the same command goes on from here")
        raise typer.Exit(143)
    print(f"{folder}: done; the pipeline is in {folder}/export")
