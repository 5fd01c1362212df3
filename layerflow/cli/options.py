"""Commands whose options are the parameters of a function of ``layerflow.front``.

A parameter's type and default are the option's, and the text beside its type is the help.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

Command = Callable[..., None]


def with_options_of(
    function: Callable[..., Any],
    path: type = Path,
    only: Collection[str] | None = None,
    spare: Collection[str] = (),
    **given: Any,
) -> Callable[[Command], Command]:
    """A decorator: the command takes the function's parameters, as keywords, before its own.

    path: type of what is a file or folder. only: names of the parameters, if not all. given:
    parameter -> ``typer.Argument`` for what is no option, ``typer.Option`` for what has another
    name, or bounds. spare: names of lists that may be left out although the function wants them.
    """
    results = {"Summary": Any, "EncodeSummary": Any}  # names that only type checkers import
    hints = get_type_hints(function, localns=results, include_extras=True)
    theirs = inspect.signature(function).parameters
    names = [name for name in theirs if only is None or name in only]

    def decorate(command: Command) -> Command:
        parameters = {}
        for name in names:
            kind, text = get_args(hints[name])
            flag = [f"--{name.replace('_', '-')}"] if kind is bool else []
            info = given.get(name) or typer.Option(*flag)
            info.help = text
            parameters[name] = inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=False if name == "quiet" else [] if name in spare else theirs[name].default,
                annotation=Annotated[_said(kind, path), info],
            )
        for name, own in inspect.signature(command, eval_str=True).parameters.items():
            if name not in theirs and own.kind is not inspect.Parameter.VAR_KEYWORD:
                parameters[name] = own.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        command.__signature__ = inspect.Signature([*parameters.values()])  # type: ignore[attr-defined]
        command.__annotations__ = {name: one.annotation for name, one in parameters.items()}
        return command

    return decorate


def _said(kind: Any, path: type) -> Any:
    """What the command line gives for a parameter's type: several texts for lists and mappings."""
    members = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    first = path if Path in members else members[0]
    if any(get_origin(member) in (Sequence, Mapping) for member in members):
        first = list[str]
    return first | None if NoneType in members else first
