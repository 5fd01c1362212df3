"""``layerflow mine | paste | pack | build``: the corpus jobs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from layerflow import front
from layerflow.cli.plugin_help import PluginCommand

if TYPE_CHECKING:
    from pipelines.engine.jobs import Summary

Inputs = Annotated[list[str], typer.Argument(help="video files and folders")]
Out = Annotated[str, typer.Option(help="corpus folder to make")]
SizeOption = Annotated[str, typer.Option("--size", help="HEIGHTxWIDTH, such as 480x720")]
Frames = Annotated[int, typer.Option(help="frames of a clip")]
Fps = Annotated[float, typer.Option(help="frames a second of a clip")]
Workers = Annotated[
    int | None, typer.Option(help="tasks at a time; default: all CPUs; 0: no Ray, this process")
]
Crf = Annotated[int | None, typer.Option(help="H.264 quality of colour layers, default 10")]
MinPsnr = Annotated[
    float | None, typer.Option("--min-psnr", help="dB below which a clip is encoded again, finer")
]
Deadline = Annotated[float | None, typer.Option(help="seconds that decoding a source may take")]
Licence = Annotated[str | None, typer.Option(help="licence of the inputs")]
Attribution = Annotated[str | None, typer.Option(help="whom to name")]
AcceptLost = Annotated[
    bool,
    typer.Option(
        "--accept-lost", help="go on if most units fail alike: each becomes a rejected row"
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="no progress bar")]


def register(app: typer.Typer) -> None:
    """Mount this group's commands."""
    app.command(cls=PluginCommand)(mine)
    app.command()(paste)
    app.command(cls=PluginCommand)(pack)
    app.command()(build)


def mine(
    inputs: Inputs,
    out: Out,
    size: SizeOption,
    frames: Frames = 16,
    fps: Fps = 8.0,
    matting: Annotated[str, typer.Option(help="backend: {layerflow.matting}")] = "motion",
    weights: Annotated[str | None, typer.Option(help="the backend's weights, a path")] = None,
    gate: Annotated[str, typer.Option(help="quality gate: off, loose, standard, strict")] = (
        "standard"
    ),
    device: Annotated[str, typer.Option(help="cpu or cuda: of backend and inpainter")] = "cpu",
    inpaint: Annotated[
        str, typer.Option(help="fills unseen background: {layerflow.inpainters}")
    ] = "opencv",
    inpaint_weights: Annotated[str | None, typer.Option(help="lama: a TorchScript file")] = None,
    prompts: Annotated[str | None, typer.Option(help="CSV, JSONL or Parquet of prompts")] = None,
    caption_model: Annotated[
        str | None, typer.Option(help="vision-language model: a folder, or its name at the url")
    ] = None,
    captioner: Annotated[
        str | None, typer.Option(help="one of {layerflow.captioners}; default: by the url")
    ] = None,
    caption_url: Annotated[
        str | None, typer.Option(help="OpenAI-compatible endpoint, http(s)://.../v1")
    ] = None,
    caption_key_env: Annotated[
        str | None, typer.Option(help="environment variable with the endpoint's key")
    ] = None,
    licence: Annotated[str | None, typer.Option(help="licence of the inputs")] = None,
    attribution: Annotated[str | None, typer.Option(help="whom to name")] = None,
    workers: Workers = None,
    accept_lost: AcceptLost = False,
    quiet: Quiet = False,
) -> None:
    """Real video -> mined clips: matte, straight foreground, clean background, scores."""
    _finish(front.mine(**locals()))


def paste(
    foregrounds: Annotated[list[str], typer.Option(help="corpus or folder; may be repeated")],
    backgrounds: Annotated[list[str], typer.Option(help="corpus or folder; may be repeated")],
    out: Out,
    count: Annotated[int, typer.Option(help="clips to make")],
    seed: Annotated[int, typer.Option(help="every draw follows from it")] = 0,
    size: SizeOption = "480x720",
    frames: Frames = 16,
    fps: Fps = 8.0,
    placement: Annotated[
        str | None, typer.Option(help="where it stands: auto, ground, source, free")
    ] = None,
    shadow: Annotated[
        str | None, typer.Option(help="who owns the contact shadow: none, background")
    ] = None,
    gate: Annotated[
        str | None, typer.Option(help="quality gate on foregrounds of mined corpora")
    ] = None,
    crf: Crf = None,
    min_psnr: MinPsnr = None,
    deadline: Deadline = None,
    licence: Licence = None,
    attribution: Attribution = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="any other key of the manifest: objects=1,2 shutter=0"),
    ] = None,
    workers: Workers = None,
    accept_lost: AcceptLost = False,
    quiet: Quiet = False,
) -> None:
    """Matted foregrounds over other backgrounds -> pasted clips, exact by construction."""
    arguments = locals()
    more = _assignments(arguments.pop("set_") or [], "--set")
    _finish(front.paste(**arguments, more=more))


def pack(
    inputs: Annotated[list[str], typer.Argument(help="folders of layered stills")],
    out: Out,
    layout: Annotated[str, typer.Option(help="{layerflow.importers}")] = "auto",
    size: Annotated[str | None, typer.Option("--size", help="HEIGHTxWIDTH; default: as is")] = None,
    seed: Annotated[int, typer.Option(help="draws of backgrounds follow from it")] = 0,
    frames: Annotated[int | None, typer.Option(help="frames of a clip of a layered film")] = None,
    fps: Annotated[float | None, typer.Option(help="rate of clips of layered films")] = None,
    fill: Annotated[
        str | None, typer.Option(help="background of a still without one: blurred, plain")
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(help="a table's column: foreground=rgba (or alpha, background, blended, ...)"),
    ] = None,
    prompts: Annotated[str | None, typer.Option(help="CSV, JSONL or Parquet of prompts")] = None,
    crf: Crf = None,
    min_psnr: MinPsnr = None,
    deadline: Deadline = None,
    licence: Licence = None,
    attribution: Attribution = None,
    workers: Workers = None,
    accept_lost: AcceptLost = False,
    quiet: Quiet = False,
) -> None:
    """Layered stills -> image clips, layered films -> moving clips."""
    arguments = locals()
    columns = _assignments(arguments.pop("column") or [], "--column")
    _finish(front.pack(**arguments, columns=columns or None))


def build(
    manifest: Annotated[Path, typer.Argument(help="a corpus manifest (YAML)")],
    workers: Workers = None,
    accept_lost: AcceptLost = False,
    quiet: Quiet = False,
) -> None:
    """Run the jobs that a corpus manifest lists, in order."""
    from manifests.mine import MineOptions
    from manifests.paste import PasteOptions
    from manifests.schema import load_build, options_of

    jobs = [options_of(job) for job in load_build(manifest).jobs]  # all are checked first

    from layerflow.outputs import local_output
    from pipelines.mine.job import run_mine
    from pipelines.pack.job import run_pack
    from pipelines.paste.job import run_paste

    for options in jobs:
        local_output(options.out)
    for options in jobs:
        if isinstance(options, MineOptions):
            summary = run_mine(options, workers=workers, quiet=quiet, accept_lost=accept_lost)
        elif isinstance(options, PasteOptions):
            summary = run_paste(options, workers=workers, quiet=quiet, accept_lost=accept_lost)
        else:
            summary = run_pack(options, workers=workers, quiet=quiet, accept_lost=accept_lost)
        _finish(summary)


def _assignments(items: list[str], option: str) -> dict[str, Any]:
    """``["a=1", "b=x,y"]`` -> ``{"a": 1, "b": ["x", "y"]}``; values as YAML, commas make lists."""
    from manifests.yaml_file import parse_yaml

    found: dict[str, Any] = {}
    for item in items:
        name, sign, text = item.partition("=")
        if not sign or not name.isidentifier():
            raise ValueError(f"{option} {item!r}: write it as NAME=VALUE")
        values = [parse_yaml(part, f"{option} {name}") for part in text.split(",")]
        found[name] = values if len(values) > 1 else values[0]
    return found


def _finish(summary: Summary) -> None:
    """Print what was made. Exit status 1 when nothing was."""
    print_summary(summary)
    if summary.kept == 0:
        raise typer.Exit(1)


def print_summary(summary: Summary) -> None:
    """One line, and a table of reasons when rows were rejected."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    resumed = f", {summary.resumed} units were done already" if summary.resumed else ""
    console.print(
        f"{summary.out}: {summary.kept} clips, {summary.rejected} rejected rows "
        f"({summary.seconds:.1f} s{resumed})",
        highlight=False,
        soft_wrap=True,
    )
    if summary.reasons:
        table = Table("rejected", "stage: reason", box=None)
        for reason, count in sorted(summary.reasons.items(), key=lambda item: -item[1])[:20]:
            table.add_row(str(count), reason)
        console.print(table)
