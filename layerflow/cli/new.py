"""``layerflow new train | corpus``: commented manifests, written from what is there."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from layerflow.files import write_text

Force = Annotated[bool, typer.Option("--force", help="replace a file that is there")]


GROUP = typer.Typer(help="Write a commented manifest to start from.", no_args_is_help=True)


@GROUP.command()
def train(
    manifest: Annotated[Path, typer.Argument(help="the file to write, such as my-train.yaml")],
    model: Annotated[str, typer.Option(help="model folder, made by init")],
    latents: Annotated[
        list[str], typer.Option(help="latents folder, made by encode; NAME=FOLDER names it")
    ],
    out: Annotated[str, typer.Option(help="run folder")] = "run",
    force: Force = False,
) -> None:
    """A schedule of three stages that fits a model and what its latents hold."""
    from layerflow.corpus.latents import Latents
    from layerflow.model.info import describe
    from manifests.starters import train_manifest

    facts = describe(model)
    folders: dict[str, tuple[str, Counter[str]]] = {}
    for item in latents:
        name, _, folder = item.rpartition("=")
        name = name or Path(folder).name
        if name in folders:
            raise ValueError(f"two latents are named {name!r}; name them: --latents NAME=FOLDER")
        folders[name] = folder, Counter(Latents.open(folder).column("kind"))
    text = train_manifest(
        model,
        out,
        folders,
        parameters=facts["parameters"]["transformer"],
        frames_per_latent=facts["cost"].num_frames // max(1, facts["cost"].latent_frames),
    )
    _write(manifest, text, force)
    print(f"{manifest}: written; see what it costs: layerflow train {manifest} --plan")


@GROUP.command()
def corpus(
    manifest: Annotated[Path, typer.Argument(help="the file to write, such as my-corpus.yaml")],
    videos: Annotated[list[str], typer.Option(help="videos to mine: files, folders")] = [],  # noqa: B006
    cutouts: Annotated[list[str], typer.Option(help="matted pictures or videos to paste")] = [],  # noqa: B006
    backgrounds: Annotated[list[str], typer.Option(help="pictures or videos to paste on")] = [],  # noqa: B006
    stills: Annotated[list[str], typer.Option(help="layered stills to pack")] = [],  # noqa: B006
    out: Annotated[str, typer.Option(help="folder for the corpora")] = "corpora",
    size: Annotated[str, typer.Option(help="HEIGHTxWIDTH, such as 480x720")] = "480x720",
    frames: Annotated[int, typer.Option(help="frames of a clip")] = 16,
    fps: Annotated[float, typer.Option(help="frames a second of a clip")] = 8.0,
    count: Annotated[int, typer.Option(help="clips to paste")] = 1000,
    force: Force = False,
) -> None:
    """The jobs for what is there: mine videos, paste cut-outs, pack stills."""
    from manifests.starters import corpus_manifest

    for path in (*videos, *cutouts, *backgrounds, *stills):
        if "://" not in path and not Path(path).exists():
            raise ValueError(f"{path}: no such file or folder")
    text = corpus_manifest(
        videos=videos,
        cutouts=cutouts,
        backgrounds=backgrounds,
        stills=stills,
        out=out,
        size=size,
        frames=frames,
        fps=fps,
        count=count,
    )
    _write(manifest, text, force)
    print(f"{manifest}: written; run it: layerflow build {manifest}")


def _write(path: Path, text: str, force: bool) -> None:
    if path.exists() and not force:
        raise ValueError(f"{path} is there already; choose another name, or pass --force")
    write_text(path, text)
