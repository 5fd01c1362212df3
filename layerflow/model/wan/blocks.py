"""Wan's transformer block for layers: one modulation row a latent frame, one prompt a layer.

Shapes: B batch, S tokens that this process computes, R modulation rows (1, or one a latent frame),
D width, L rows of one prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_wan import (
    WanAttnProcessor,
    WanTransformerBlock,
    _get_qkv_projections,
)
from torch import Tensor

from layerflow.model.layers import Layout

PromptRun = tuple[int, int, int]


@dataclass(frozen=True)
class TokenSpan:
    """The tokens of the sequence that this process computes: all, or its part of them.

    runs: which prompt each of them attends to: place in ``Layout.prompts``, and the first and the
    last + 1 of the span's tokens.
    frames: the latent frames in which the tokens lie, first and last + 1.
    index: for each token its frame, counted from the first of ``frames``, int64 ``[S]``; None
    where the span is made of whole frames.
    """

    runs: tuple[PromptRun, ...]
    frames: tuple[int, int]
    index: Tensor | None = None


def prompt_places(layout: Layout, mattes: dict[str, str]) -> tuple[int, ...]:
    """For each latent frame the place in ``layout.prompts`` of the prompt that it attends to.

    A layer attends to its own prompt, a matte to that of its foreground, any other layer to the
    last one, which is that of the whole picture. mattes: matte -> its colour layer.
    """
    last = len(layout.prompts) - 1
    places = {}
    for layer in layout.layers:
        named = mattes.get(layer, layer)
        places[layer] = layout.prompts.index(named) if named in layout.prompts else last
    each = zip(layout.layers, layout.frames, strict=True)
    return tuple(places[layer] for layer, count in each for _ in range(count))


def token_span(
    places: tuple[int, ...], tokens: int, start: int, stop: int, device: torch.device
) -> TokenSpan:
    """The span of tokens ``start`` to ``stop`` of a sequence with ``tokens`` to a latent frame.

    places: ``prompt_places``, one a frame.
    """
    runs: list[PromptRun] = []
    for frame in range(start // tokens, -(-stop // tokens)):
        first = max(start, frame * tokens) - start
        last = min(stop, (frame + 1) * tokens) - start
        if runs and runs[-1][0] == places[frame]:
            first = runs.pop()[1]
        runs.append((places[frame], first, last))
    frames = (start // tokens, -(-stop // tokens))
    index = None
    if start % tokens or stop % tokens:
        index = torch.arange(start, stop, device=device) // tokens - frames[0]
    return TokenSpan(tuple(runs), frames, index)


class LayeredCrossAttention(WanAttnProcessor):
    """Wan's attention to the text, where each run of tokens sees the rows of one prompt alone.

    The projections run once for all; attention runs once a run, without a mask, so that every
    attention kernel can do it.
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
        runs: tuple[PromptRun, ...] = (),
        prompts: int = 1,
    ) -> Tensor:
        """``[B, S, D]``. encoder_hidden_states: ``[B, prompts * L, D]``. runs: of ``TokenSpan``."""
        query, key, value = _get_qkv_projections(attn, hidden_states, encoder_hidden_states)
        query = attn.norm_q(query).unflatten(2, (attn.heads, -1))
        key = attn.norm_k(key).unflatten(2, (attn.heads, -1)).chunk(prompts, dim=1)
        value = value.unflatten(2, (attn.heads, -1)).chunk(prompts, dim=1)
        seen = [
            dispatch_attention_fn(
                query[:, start:stop], key[place], value[place], backend=self._attention_backend
            )
            for place, start, stop in runs
        ]
        out = (seen[0] if len(seen) == 1 else torch.cat(seen, 1)).flatten(2, 3).type_as(query)
        return attn.to_out[1](attn.to_out[0](out))


class LayeredWanBlock(WanTransformerBlock):
    """Wan's block, with its weights under their names.

    What it computes is what diffusers computes from one timestep a token; here the modulation has
    one row a latent frame and meets the tokens by broadcasting, so that ``[B, S, 6, D]`` is never
    made.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.attn2.set_processor(LayeredCrossAttention())

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        rotary_emb: tuple[Tensor, Tensor],
        span: TokenSpan | None = None,
        prompts: int = 1,
    ) -> Tensor:
        """``[B, S, D]`` of tokens. encoder_hidden_states: ``[B, prompts * L, D]``. temb: ``[B, R,
        6, D]``. rotary_emb: cosines and sines of the tokens. span: of the tokens; None: all
        attend to one prompt, and R divides S."""
        x = hidden_states
        if span is None:
            span = TokenSpan(((0, 0, x.shape[1]),), (0, temb.shape[1]))
        rows = (self.scale_shift_table.unsqueeze(0) + temb.float()).unbind(2)
        shift, scale, gate, ff_shift, ff_scale, ff_gate = rows

        normed = modulated(self.norm1(x.float()), scale, shift, span).type_as(x)
        attended = self.attn1(normed, None, None, rotary_emb)
        x = (x.float() + gated(attended, gate, span)).type_as(x)

        normed = self.norm2(x.float()).type_as(x)
        x = x + self.attn2(
            normed, encoder_hidden_states, None, None, runs=span.runs, prompts=prompts
        )

        normed = modulated(self.norm3(x.float()), ff_scale, ff_shift, span).type_as(x)
        return (x.float() + gated(self.ffn(normed).float(), ff_gate, span)).type_as(x)


def modulated(x: Tensor, scale: Tensor, shift: Tensor, span: TokenSpan) -> Tensor:
    """``x * (1 + scale) + shift``; x ``[B, S, D]``, scale and shift ``[B, R, D]``."""
    if span.index is not None and scale.shape[1] > 1:
        return x * (1 + scale[:, span.index]) + shift[:, span.index]
    x = x.unflatten(1, (scale.shape[1], -1))
    return (x * (1 + scale.unsqueeze(2)) + shift.unsqueeze(2)).flatten(1, 2)


def gated(x: Tensor, gate: Tensor, span: TokenSpan) -> Tensor:
    """``x * gate``; x ``[B, S, D]``, gate ``[B, R, D]``."""
    if span.index is not None and gate.shape[1] > 1:
        return x * gate[:, span.index]
    return (x.unflatten(1, (gate.shape[1], -1)) * gate.unsqueeze(2)).flatten(1, 2)
