"""``layerflow demo``: the whole way once, from source video to sampled layers, measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from layerflow.cli.demo.steps import Demo


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
    quiet: Annotated[bool, typer.Option("--quiet", help="no progress bars")] = False,
) -> None:
    """Draw videos and stills, mine, paste, pack, encode, train three stages, sample, measure.

    Goes on where an earlier run in the same folder stopped.
    """
    import manifests
    from layerflow.cli.demo import page as demo_page
    from layerflow.cli.demo import steps as demo_steps
    from layerflow.cli.model import quiet_libraries
    from manifests.common import load
    from manifests.demo import DemoManifest

    path = manifest or Path(manifests.__file__).parent / "demo.yaml"
    run = demo_steps.Demo(load(path, DemoManifest), path.parent, out, videos, workers, quiet)
    quiet_libraries()
    result = demo_steps.run_demo(run)
    page = demo_page.write_page(run, result)
    print_table(run, result)
    typer.echo(f"results: {out}/   page: {page}   samples: {out}/samples/   model: {run.export}")


def print_table(run: Demo, result: dict[str, Any]) -> None:
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
