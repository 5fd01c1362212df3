"""Help that names what is installed: a text says ``{layerflow.matting}`` for that kind's names."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand


class PluginCommand(TyperCommand):
    """A command whose help lists plug-ins, which are looked up only when help is asked for."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from layerflow.plugins import BASES
        from pipelines.registry import CAPTIONERS, IMPORTERS, INPAINTERS, MATTING

        for parameter in self.params:
            text = getattr(parameter, "help", None) or ""
            for kind in (MATTING, CAPTIONERS, IMPORTERS, INPAINTERS, BASES):
                mark = f"{{{kind.group}}}"
                if mark in text:
                    text = text.replace(mark, ", ".join(kind.names()))
                    parameter.help = text  # type: ignore[attr-defined]
        super().format_help(ctx, formatter)
