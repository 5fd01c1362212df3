"""``layerflow init | info | convert | sample``: models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from layerflow import front
from layerflow.cli.plugin_help import PluginCommand


def register(app: typer.Typer) -> None:
    """Mount this group's commands."""
    app.command(cls=PluginCommand)(init)
    app.command()(info)
    app.command()(convert)
    app.command()(sample)


def init(
    directory: Annotated[Path, typer.Argument(help="folder to make")],
    preset: Annotated[str, typer.Option(help="{layerflow.bases}")],
    base: Annotated[
        str | None, typer.Option(help="model folder or Hub id that the preset starts from")
    ] = None,
    size: Annotated[str | None, typer.Option(help="HEIGHTxWIDTH, such as 480x720")] = None,
    frames: Annotated[int | None, typer.Option(help="frames of one layer")] = None,
    positions: Annotated[str | None, typer.Option(help="shared or continuous")] = None,
    seed: Annotated[int | None, typer.Option(help="of everything random in it")] = None,
) -> None:
    """A model directory to start from."""
    arguments = locals()
    _quiet_libraries()
    folder = front.init(**arguments)
    typer.echo(f"{folder}: made from preset {preset}")
    _print_info(folder)


def info(
    directory: Annotated[Path, typer.Argument(help="model folder")],
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """What a model is and costs."""
    from layerflow.model import info as describe

    if as_json:
        typer.echo(describe.as_json(describe.describe(directory)))
    else:
        _print_info(directory)


def _print_info(directory: Path) -> None:
    from layerflow.model import info as describe

    for line in describe.as_lines(describe.describe(directory)):
        typer.echo(line)


def convert(
    checkpoint: Annotated[
        Path | None, typer.Argument(help="mp_rank_00_model_states.pt or its folder")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="model folder to make")] = None,
    task: Annotated[
        str | None, typer.Option(help="the released configuration, such as gen_rgba")
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="CogVideoX folder whose VAE and text encoder to copy")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16; default: as stored")
    ] = None,
    verify: Annotated[
        Path | None, typer.Option(help="golden file to check this code against instead")
    ] = None,
    tolerance: Annotated[float, typer.Option(help="greatest difference that passes")] = 1e-5,
) -> None:
    """Official weights in; or proof of this code against a golden file."""
    if verify is not None:
        from layerflow.official.verify import verify_file

        results = verify_file(verify)
        for line in results.lines(tolerance):
            typer.echo(line)
        if not results.passes(tolerance):
            raise typer.Exit(1)
        return
    if checkpoint is None or out is None:
        raise ValueError("convert needs CHECKPOINT and --out DIR, or --verify GOLDEN")
    from layerflow.official.convert import convert_checkpoint

    _quiet_libraries()
    folder = convert_checkpoint(checkpoint, out, task=task, base=base, dtype=dtype)
    typer.echo(f"{folder}: converted")
    _print_info(folder)


def sample(
    model: Annotated[Path, typer.Option(help="model folder")],
    out: Annotated[Path, typer.Option(help="folder for the results")],
    given: Annotated[
        list[str] | None,
        typer.Option(help="LAYER=FILE, a video or picture of a layer that is given; repeatable"),
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Option(help="LAYER=TEXT; layers: foreground, background, blended")
    ] = None,
    negative_prompt: Annotated[list[str] | None, typer.Option(help="LAYER=TEXT")] = None,
    seed: Annotated[int, typer.Option(help="of the first sample; then one more each")] = 0,
    count: Annotated[int, typer.Option(help="samples to make", min=1)] = 1,
    id: Annotated[str | None, typer.Option(help="name of the result; default: seed-S")] = None,
    size: Annotated[str | None, typer.Option(help="HEIGHTxWIDTH; default: the model's")] = None,
    frames: Annotated[int | None, typer.Option(help="default: the model's")] = None,
    fps: Annotated[float | None, typer.Option(help="default: the given file's, or 8")] = None,
    steps: Annotated[int | None, typer.Option(help="default: the model's, or 50")] = None,
    guidance: Annotated[float | None, typer.Option(help="default: the model's, or 6")] = None,
    dynamic_cfg: Annotated[bool, typer.Option(help="vary the guidance as released")] = False,
    official_sampler: Annotated[bool, typer.Option(help="the released sampler")] = False,
    exact_given: Annotated[
        bool, typer.Option(help="copy given layers instead of decoding their latents")
    ] = False,
    png: Annotated[bool, typer.Option("--png", help="also write every frame as PNG")] = False,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="no progress bar")] = False,
) -> None:
    """Sample layers: nothing given generates all of them, anything given is completed."""
    arguments = locals()
    arguments["given"] = pairs(given, "given")
    arguments["prompt"] = pairs(prompt, "prompt")
    arguments["negative_prompt"] = pairs(negative_prompt, "negative-prompt")
    _quiet_libraries()
    for folder in front.sample(**arguments):
        typer.echo(str(folder))


def pairs(values: Sequence[str] | None, option: str) -> dict[str, str]:
    """``LAYER=VALUE`` options as a dict. ValueError for a bad or repeated one."""
    out: dict[str, str] = {}
    for value in values or ():
        layer, equals, rest = value.partition("=")
        if not equals or not layer or not rest:
            raise ValueError(f"--{option} takes LAYER=VALUE, not {value!r}")
        if layer in out:
            raise ValueError(f"--{option} names {layer} twice")
        out[layer] = rest
    return out


def _quiet_libraries() -> Any:
    """No progress bars and advice from the libraries that read and write model files."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for logging in (diffusers_logging, transformers_logging):
        logging.disable_progress_bar()
        logging.set_verbosity_error()
