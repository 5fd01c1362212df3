"""Which layers a model sees of a row of latents: those that both have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from layerflow.clip import LAYERS
from layerflow.layer_set import LayerSet, layer_set, prompted_of
from layerflow.model.layers import given_layers


def stored_set(source: Any) -> LayerSet:
    """The set of layers that a source's rows are of."""
    return layer_set(getattr(source, "fingerprint", {}).get("layers", "rgba"))


def foregrounds(source: Any) -> list[int]:
    """How many foregrounds each row of a source has."""
    if len(stored_set(source).foregrounds) == 1:
        return [1] * len(source)
    return list(source.column("foregrounds"))


def shared_layers(model: LayerSet, stored: LayerSet, count: int) -> tuple[str, ...]:
    """The layers that a model sees of a row with ``count`` foregrounds.

    ValueError where the model has mattes and the latents none, and for more foregrounds than the
    model has.
    """
    if model.mattes and not stored.mattes:
        raise ValueError(
            f"the latents have no alpha ({stored.name}) and the model has ({model.name}); encode "
            f"with --layers {model.name}, or train a model of layers rgb"
        )
    if count > (most := len(model.foregrounds)):
        raise ValueError(
            f"rows have {count} foregrounds, and the model ({model.name}) at most {most}; leave "
            f"them out with `foregrounds`, or make a model of more with layerflow init --layers"
        )
    held = stored.with_foregrounds(count)
    return tuple(layer for layer in model.layers if layer in held)


def given_marks(task: str, layers: LayerSet, present: Sequence[str]) -> list[bool]:
    """For each of a sample's layers whether the task gives it; absent ones drop out of a task."""
    given = given_layers(task, layers.layers)
    return [layer in given for layer in present]


def take_layers(item: dict[str, Any], layers: tuple[str, ...]) -> dict[str, Any]:
    """An item with `moments`, `known` and `prompt_embeds` of these of its layers alone."""
    held = tuple(item.get("layers", LAYERS))
    if held == layers:
        return item
    places = [held.index(layer) for layer in layers]
    moments, known = item["moments"][places], item.get("known")
    known = known if known is None else known[places]
    slots = [prompted_of(held).index(layer) for layer in prompted_of(layers)]
    text = item["prompt_embeds"][slots]
    own = {"layers": layers, "moments": moments, "known": known, "prompt_embeds": text}
    return {**item, **own}
