"""Prompts as texts.

Each layer's prompt is encoded by itself, with its index in front ("0, ", "1, ", "2, "), as the
official code does (``data_video.py``). A missing prompt is zeros, not the encoding of "".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from layerflow.clip import BLENDED, PROMPTED
from layerflow.layer_set import prompt_number, prompted_of

Prompt = Mapping[str, str] | str


def prefixed(layer: str, prompt: str | None) -> str:
    """The text that is encoded for a layer's prompt, its ``prompt_number`` in front; empty for a
    missing one.

    ValueError for a layer that has no prompts.
    """
    if not prompted_of([layer]):
        raise ValueError(f"{layer!r} has no prompt; layers with prompts are {PROMPTED}")
    text = (prompt or "").strip()
    return f"{prompt_number(layer)}, {text}" if text else ""


def prompt_texts(prompt: Prompt | None, layers: Sequence[str] = PROMPTED) -> list[str]:
    """The prefixed texts of one sample's slots; "" for a missing one.

    prompt: layer -> text; a plain string is the blended prompt. layers: those with slots.
    ValueError for a layer without prompts, and for a further foreground without a slot.
    """
    if isinstance(prompt, str):
        prompt = {BLENDED: prompt}
    prompt = dict(prompt or {})
    for layer, text in prompt.items():
        if layer not in (*PROMPTED, *layers):
            known = tuple(dict.fromkeys((*PROMPTED, *layers)))
            raise ValueError(f"{layer!r} has no prompt; layers with prompts are {known}")
        if not isinstance(text, str):
            raise ValueError(f"the prompt of {layer} must be a string, not {type(text).__name__}")
    return [prefixed(layer, prompt.get(layer)) for layer in layers]
