"""``layerflow init | info | convert | sample``: models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from layerflow import front
from layerflow.cli.options import with_options_of


@with_options_of(front.init, directory=typer.Argument(), source=typer.Option("--from"))
def init(preset: str | None = None, **options: Any) -> None:
    """A model directory to start from."""
    from layerflow.model.other_layers import as_lines

    quiet_libraries()
    folder = front.init(preset=preset, **options)
    source = options["source"]
    typer.echo(f"{folder}: made from {source if source else f'preset {preset}'}")
    for line in as_lines(folder):
        typer.echo(line)
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

    quiet_libraries()
    folder = convert_checkpoint(checkpoint, out, task=task, base=base, dtype=dtype)
    typer.echo(f"{folder}: converted")
    _print_info(folder)


@with_options_of(
    front.sample,
    count=typer.Option(min=1),
    dynamic_cfg=typer.Option(),
    official_sampler=typer.Option(),
    exact_given=typer.Option(),
    tiling=typer.Option(),
)
def sample(
    given: list[str] | None,
    prompt: list[str] | None,
    negative_prompt: list[str] | None,
    **options: Any,
) -> None:
    """Sample layers: nothing given generates all of them, anything given is completed."""
    options["given"] = pairs(given, "given")
    options["prompt"] = pairs(prompt, "prompt")
    options["negative_prompt"] = pairs(negative_prompt, "negative-prompt")
    quiet_libraries()
    for folder in front.sample(**options):
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


def quiet_libraries() -> None:
    """No progress bars and advice from the libraries that read and write model files."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for logging in (diffusers_logging, transformers_logging):
        logging.disable_progress_bar()
        logging.set_verbosity_error()


COMMANDS = (init, info, convert, sample)
