"""Which networks take part: those of the registry whose weights lie in the weights folder."""

from __future__ import annotations

import importlib.util

from layerflow.weights import installed, known, path_of
from pipelines.inputs.listing import tell

NAME = "auto"
ALONE = "motion"  # in place of networks: none takes part, which is that backend


def which_networks(model: str | None = None) -> str:
    """The networks that take part, by name and content: ``u2netp@SHA256+...``, or ``motion``.

    ``model``: names joined by ``+``, perhaps with the sha256 that each must have, or ``motion``; by
    default all whose weights are there. Raises ValueError for weights that are unknown, missing,
    damaged or other ones, and for networks where onnxruntime is not installed.
    """
    if model is None:
        names = [entry.name for entry, _ in installed(NAME)]
    else:
        names = [] if model == ALONE else model.split("+")
    told = []
    for text in names:
        name, _, digest = text.partition("@")
        entry = known(name)
        if NAME not in entry.backends:
            raise ValueError(f"matting backend 'auto' does not use {name}")
        if digest not in ("", entry.sha256):
            raise ValueError(f"the weights {name} known here are others: {entry.sha256}")
        if path_of(entry) is None:
            raise ValueError(f"{name} is not there; take it with: layerflow weights get {name}")
        told.append(f"{name}@{entry.sha256}")
    if told and importlib.util.find_spec("onnxruntime") is None:
        if model is not None:
            raise ValueError(
                "matting backend 'auto' runs networks with the package 'onnxruntime', which is not "
                'installed; run: pip install "layerflow-toolkit[matting]"'
            )
        told = []
    return "+".join(told) or ALONE


def resolved(matting: str) -> str:
    """A backend's name with all that decides its mattes: of ``auto`` also which networks take part.

    Without any it is ``motion``, which is said. Raises ValueError as ``which_networks``.
    """
    name, _, model = matting.partition(":")
    if name != NAME:
        return matting
    found = which_networks(model or None)
    if found != ALONE:
        return f"{NAME}:{found}"
    if not model:
        tell(
            "--matting auto: no network takes part, so this is motion alone; "
            "layerflow weights list says what there is"
        )
    return ALONE
