"""Prompts and their embeddings.

Each layer's prompt is encoded by itself, with its index in front ("0, ", "1, ", "2, "), padded to
a fixed length and without an attention mask, as the official code does (``data_video.py``,
``sgm/modules/encoders/modules.py``). A missing prompt is zeros, not the encoding of "".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

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


def encode_texts(
    tokenizer: Any, text_encoder: Any, texts: Sequence[str], num_tokens: int
) -> Tensor:
    """``[N, num_tokens, D]`` float32 of prefixed texts; an empty text gives zeros.

    Longer texts are cut. ValueError without a tokenizer and a text encoder.
    """
    if tokenizer is None or text_encoder is None:
        raise ValueError("this model has no text encoder; pass prompt_embeds instead of prompts")
    width = int(text_encoder.config.d_model)
    device = text_encoder.device
    out = torch.zeros(len(texts), num_tokens, width, device=device)
    rows = [i for i, text in enumerate(texts) if text]
    if rows:
        tokens = tokenizer(
            [texts[i] for i in rows],
            padding="max_length",
            max_length=num_tokens,
            truncation=True,
            add_special_tokens=True,
            return_tensors="pt",
        ).input_ids
        with torch.no_grad():
            out[rows] = text_encoder(tokens.to(device))[0].float().to(device)
    return out
