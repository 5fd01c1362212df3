"""CogVideoX' sequence, text and video, shared by several processes in training."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_processor import CogVideoXAttnProcessor2_0
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor, nn
from torch.nn import functional

from layerflow.model.parallel.context import Context


class SharedAttention(CogVideoXAttnProcessor2_0):
    """diffusers' attention, with own queries and the keys and values of all processes."""

    def __init__(self, context: Context) -> None:
        super().__init__()
        self.context = context

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Video and text ``[B, S, D]`` of this process' tokens."""
        text = encoder_hidden_states.shape[1]
        tokens = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        query, key, value = (
            layer(tokens).unflatten(2, (attn.heads, -1)).transpose(1, 2)
            for layer in (attn.to_q, attn.to_k, attn.to_v)
        )
        query = query if attn.norm_q is None else attn.norm_q(query)
        key = key if attn.norm_k is None else attn.norm_k(key)
        if image_rotary_emb is not None:
            query, key = (
                torch.cat([x[:, :, :text], apply_rotary_emb(x[:, :, text:], image_rotary_emb)], 2)
                for x in (query, key)
            )
        key, value = (self.context.all_tokens(x, 2) for x in (key, value))
        out = functional.scaled_dot_product_attention(query, key, value)
        out = attn.to_out[1](attn.to_out[0](out.transpose(1, 2).flatten(2)))
        return out[:, text:], out[:, :text]


def share_sequence(transformer: Any, context: Context) -> None:
    """Make each process compute its part of text and video; outputs are whole."""
    context.share(transformer.transformer_blocks, SharedAttention, _own_part, transformer.proj_out)


def _own_part(context: Context, first: bool, block: nn.Module, inputs: Any) -> tuple[Any, ...]:
    video, text, temb, rotary, *rest = inputs
    if first:
        context.begin(video.shape[1], text.shape[1])
        video, text = context.mine(video, 1), context.mine(text, 1)
    if rotary is not None:
        rotary = tuple(context.mine(table, 0) for table in rotary)
    return (video, text, temb, rotary, *rest)
