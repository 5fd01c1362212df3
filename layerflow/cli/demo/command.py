"""``layerflow demo``: the whole way once, from source video to sampled layers, measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def demo(
    out: Annotated[Path, typer.Option(help="folder for everything that the demo makes")] = Path(
        "build/demo"
    ),
    videos: Annotated[
        Path | None, typer.Option(help="your videos instead of procedural ones")
    ] = None,
    manifest: Annotated[
        Path | None, typer.Option(help="demo manifest; default: the one that comes with it")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="tasks at a time; default: all CPUs")] = None,
    full: Annotated[
        bool, typer.Option("--full", help="the longer one: more clips and steps")
    ] = False,
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="of media and training; default: the manifest's"),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="no progress bars")] = False,
) -> None:
    """Draw videos and stills, mine, paste, pack, encode, train all stages, sample, measure.

    Goes on where an earlier run in the same folder stopped.
    """
    import manifests
    from layerflow.cli.demo import page as demo_page
    from layerflow.cli.demo import steps as demo_steps
    from layerflow.cli.model import quiet_libraries
    from manifests.demo import load

    path = manifest or Path(manifests.__file__).parent / "demo.yaml"
    said = load(path, full=full, seed=seed)
    run = demo_steps.Demo(said, path.parent, out, videos, workers, quiet)
    run.show = lambda result: demo_page.write_page(run, result)
    typer.echo(f"demo: {out}/report.html grows step by step")
    quiet_libraries()
    result = demo_steps.run_demo(run)
    print_table(result)
    page = out / "report.html"
    typer.echo(f"results: {out}/   page: {page}   samples: {out}/samples/   model: {run.export}")


def print_table(result: dict[str, Any]) -> None:
    """The measured figures, as the page shows them."""
    from rich.console import Console
    from rich.table import Table

    from layerflow.cli.demo.page import figures

    console = Console(width=None if Console().is_terminal else 110)
    for title, rows in figures(result):
        table = Table(title=title, box=None, title_justify="left", show_header=False)
        for name, value in rows:
            table.add_row(name, value)
        console.print(table)


COMMANDS = (demo,)
