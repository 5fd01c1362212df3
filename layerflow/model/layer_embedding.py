"""Layer embeddings: what is added to tokens to say whose they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from layerflow.model.layers import Layout


class Tables(NamedTuple):
    """What one (layout, height, width) adds.

    video: ``[F, h*w, dim]`` or None. rotary: (cos, sin), each float32 ``[F*h*w, head_dim]``, or
    None. int64 ``[F]``: frame_layers, index in the layers of the layout's set, and frame_slots, in
    the layout's own. prompt_slots: int64 ``[P]``, index in the set's prompts.
    """

    video: Tensor | None
    rotary: tuple[Tensor, Tensor] | None
    frame_layers: Tensor
    prompt_slots: Tensor
    frame_slots: Tensor


class LayerEmbedding(nn.Module):
    """Vectors that mark a token's layer, and whether its layer is given.

    text: ``[prompts, dim]`` for the tokens of each prompt (also the official layer embedding).
    video: ``[layers, dim]`` for the video tokens of each layer of the set, in its order.
    given: ``[layers, dim]`` for the video tokens of each layer that is given.

    All zero at first, so that a network starts as what it was made from.
    """

    def __init__(self, dim: int, num_prompts: int, num_layers: int) -> None:
        super().__init__()
        self.text = nn.Parameter(torch.zeros(num_prompts, dim)) if num_prompts else None
        self.video = nn.Parameter(torch.zeros(num_layers, dim)) if num_layers else None
        self.given = nn.Parameter(torch.zeros(num_layers, dim)) if num_layers else None

    def embed_text(
        self, text: Tensor, layout: Layout, tables: Tables, stored: Tensor | None
    ) -> Tensor:
        """Projected text ``[B, P*L, dim]`` with layer embedding and stored positions added.

        stored: ``[P, L, dim]`` or None.
        """
        added = stored
        if self.text is not None:
            own = self.text
            if len(own) != len(layout.prompts):
                own = own[tables.prompt_slots]
            added = own[:, None] if added is None else added + own[:, None]
        if added is None:
            return text
        return (text.unflatten(1, (len(layout.prompts), -1)) + added.to(text.dtype)).flatten(1, 2)

    def embed_video(self, video: Tensor, tables: Tables, given: Tensor | None) -> Tensor:
        """Patches ``[B, F, n, dim]`` with positions, layer embedding and given marks added.

        given: bool ``[B, n]``, the layout's layers, or None for nothing given.
        """
        added = tables.video
        if self.video is not None:
            layer = self.video[tables.frame_layers][:, None]
            added = layer if added is None else added + layer
        if added is not None:
            video = video + added.to(video.dtype)
        if given is not None and self.given is not None:
            mark = given.to(video.dtype)[:, tables.frame_slots, None]
            mark = mark * self.given[tables.frame_layers].to(video.dtype)
            video = video + mark[:, :, None]
        return video


def indices(values: Sequence[int], device: torch.device) -> Tensor:
    """Whole numbers as int64 ``[N]`` on a device."""
    return torch.tensor(values, dtype=torch.long, device=device)
