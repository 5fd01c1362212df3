"""Entry point of the ``layerflow`` console script: gathers the commands, shows errors."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys

import typer

from layerflow.cli import new, weights
from layerflow.cli.plugin_help import PluginCommand

GROUPS = ("data", "corpus", "versions", "model", "train", "publish", "doctor", "demo.command")
ERROR_WIDTH = 1000


def build_app() -> typer.Typer:
    """The Typer application with the ``COMMANDS`` of every group."""
    app = typer.Typer(
        name="layerflow",
        help="Layered video: build corpora, train LayerFlow, sample layers.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    for group in GROUPS:
        for command in importlib.import_module(f"layerflow.cli.{group}").COMMANDS:
            app.command(command.__name__.rstrip("_"), cls=PluginCommand)(command)
    app.add_typer(new.GROUP, name="new")
    app.add_typer(weights.GROUP, name="weights")
    return app


def main() -> None:
    """Run a command. A wrong request ends with status 2 and one clear message, no traceback."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        build_app()()
    except (ValueError, OSError) as error:
        if os.environ.get("LAYERFLOW_TRACEBACK"):
            raise
        from layerflow.locations import without_secrets
        from manifests.yaml_file import on_screen

        text = f"layerflow: {without_secrets(str(error))}"
        print(on_screen([text], ERROR_WIDTH), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("layerflow: interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
