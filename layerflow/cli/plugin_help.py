"""Help that names what is installed: a text says ``{layerflow.matting}`` for that kind's names."""

from __future__ import annotations

import re
from importlib import import_module
from typing import Any

from typer.core import TyperCommand

from layerflow.plugins import Plugins

KINDS = {
    "layerflow.matting": "pipelines.matting:MATTING",
    "layerflow.captioners": "pipelines.captions.captioner:CAPTIONERS",
    "layerflow.refiners": "pipelines.matting.refine:REFINERS",
    "layerflow.inpainters": "pipelines.vision.inpaint:INPAINTERS",
    "layerflow.importers": "pipelines.inputs.importers:LAYOUTS",
    "layerflow.bases": "layerflow.plugins:BASES",
}


class PluginCommand(TyperCommand):
    """A command whose help lists plug-ins, which are looked up only when help is asked for."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        for parameter in self.params:
            text = getattr(parameter, "help", None)
            if text:
                listed = re.sub(r"\{(layerflow\.\w+)\}", _names, text)
                parameter.help = listed  # type: ignore[attr-defined]
        super().format_help(ctx, formatter)


def _names(mark: re.Match[str]) -> str:
    module, _, name = KINDS[mark[1]].partition(":")
    kind: Plugins = getattr(import_module(module), name)
    return ", ".join(kind.names())
