"""Entry point of the ``layerflow`` console script: gathers the commands, shows errors."""

from __future__ import annotations

import importlib
import importlib.util
import os
import signal
import sys

import typer

from layerflow.cli import new, weights
from layerflow.cli.plugin_help import PluginCommand
from layerflow.process.heap import keep_freed_memory
from layerflow.process.threads import wait_asleep

GROUPS = (
    "data",
    "corpus",
    "versions",
    "changes",
    "model",
    "train",
    "publish",
    "doctor",
    "demo.command",
)
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


class Stopped(BaseException):
    """SIGINT or SIGTERM. No ``KeyboardInterrupt``, whose message would be Typer's."""


def _stop(number: int, _frame: object) -> None:
    raise Stopped(number)


def main() -> None:
    """Run a command. A wrong request ends with status 2 and one clear message, no traceback."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    keep_freed_memory()
    wait_asleep()  # before any command loads torch
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
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
    except Stopped as stopped:
        code = int(stopped.args[0])
        word = "interrupted" if code == signal.SIGINT else "terminated"
        print(f"layerflow: {word}; the same command goes on from here", file=sys.stderr)
        sys.exit(128 + code)


if __name__ == "__main__":
    main()
