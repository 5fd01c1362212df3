"""Wan's rotary positions for any layout of layers."""

from __future__ import annotations

import torch
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from torch import Tensor

MAX_ROPES = 16


class LayeredRope(WanRotaryPosEmbed):
    """Cosines and sines where each latent frame has the time that its layout says.

    Tables are made once for each (times, height, width, device) and kept. Times 0, 1, 2, ... give
    what diffusers gives.
    """

    def forward(
        self, hidden_states: Tensor, times: tuple[int, ...] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Two of float ``[1, F * h * w, 1, head_dim]``; h and w in patches.

        hidden_states: ``[B, C, F, H, W]``, of which the shape counts. times: one a latent frame;
        None: 0, 1, 2, ... ValueError for a time or side that the tables do not reach.
        """
        _, _, frames, height, width = hidden_states.shape
        height, width = height // self.patch_size[1], width // self.patch_size[2]
        times = tuple(range(frames)) if times is None else times
        if max(*times, height - 1, width - 1) >= self.max_seq_len:
            raise ValueError(
                f"rotary positions reach {self.max_seq_len} frames and patches; asked are "
                f"{max(times) + 1} frames of {height}x{width}"
            )
        kept = self.__dict__.setdefault("_kept", {})
        key = (times, height, width, self.freqs_cos.device, self.freqs_cos.dtype)
        if key not in kept:
            if len(kept) >= MAX_ROPES:
                kept.pop(next(iter(kept)))
            index = torch.tensor(times, device=self.freqs_cos.device)
            made = [self._spread(t, index, height, width) for t in (self.freqs_cos, self.freqs_sin)]
            kept[key] = (made[0], made[1])
        cos, sin = kept[key]
        return cos, sin

    def _spread(self, table: Tensor, times: Tensor, height: int, width: int) -> Tensor:
        time, row, column = table.split([self.t_dim, self.h_dim, self.w_dim], dim=1)
        shape = (len(times), height, width, -1)
        parts = (
            time[times][:, None, None].expand(shape),
            row[:height][None, :, None].expand(shape),
            column[:width][None, None].expand(shape),
        )
        return torch.cat(parts, dim=-1).reshape(1, len(times) * height * width, 1, -1)
