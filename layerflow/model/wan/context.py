"""Wan's sequence of video tokens, shared by several processes in training."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from torch import Tensor, nn

from layerflow.model.parallel.context import Context


class SharedAttention(WanAttnProcessor):
    """diffusers' self-attention, with own queries and the keys and values of all processes."""

    def __init__(self, context: Context) -> None:
        super().__init__()
        self.context = context

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """``[B, S, D]`` of this process' tokens."""
        query, key = attn.norm_q(attn.to_q(hidden_states)), attn.norm_k(attn.to_k(hidden_states))
        query, key, value = (
            x.unflatten(2, (attn.heads, -1)) for x in (query, key, attn.to_v(hidden_states))
        )
        if rotary_emb is not None:
            query, key = (_rotated(x, *rotary_emb) for x in (query, key))
        key, value = (self.context.all_tokens(x, 1) for x in (key, value))
        out = dispatch_attention_fn(query, key, value, backend=self._attention_backend)
        return attn.to_out[1](attn.to_out[0](out.flatten(2, 3).type_as(query)))


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """``[B, S, heads, d]`` turned by pairs of neighbours, as ``WanAttnProcessor`` does it."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[..., 0::2], sin[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2).type_as(x)


def share_sequence(transformer: Any, context: Context) -> None:
    """Make each process compute its part of the video; outputs are whole."""
    transformer.context_mesh = context.mesh
    context.share(transformer.blocks, SharedAttention, _own_part, transformer.proj_out)


def _own_part(context: Context, first: bool, block: nn.Module, inputs: Any) -> tuple[Any, ...]:
    video, text, temb, rotary, *rest = inputs
    if first:
        context.begin(video.shape[1])
        video = context.mine(video, 1)
    return (video, text, temb, tuple(context.mine(table, 1) for table in rotary), *rest)
