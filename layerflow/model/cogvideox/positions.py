"""CogVideoX' positions: what is added to tokens to say where they are."""

from __future__ import annotations

import math

import torch
from diffusers.models.embeddings import get_3d_rotary_pos_embed, get_3d_sincos_pos_embed
from torch import Tensor, nn

from layerflow.model.layer_embedding import Tables, indices
from layerflow.model.layers import Layout

MAX_TABLES = 16


class Positions(nn.Module):
    """Position tables for any layout and size, made once each and kept.

    kind ``sincos``: CogVideoX' absolute 3-D table, computed. ``rotary``: the angles of
    CogVideoX-5B, computed. ``stored``: a table that a checkpoint carries; buffers ``text``
    ``[prompts, tokens, dim]`` and ``video`` ``[frames, h*w, dim]``.
    grid: height and width in patches that the weights were made for; computed sin-cos tables do
    not depend on it.
    interpolation: what spatial and temporal coordinates are divided by.
    """

    text: Tensor
    video: Tensor

    def __init__(
        self,
        kind: str,
        dim: int,
        head_dim: int,
        grid: tuple[int, int],
        interpolation: tuple[float, float] = (1.875, 1.0),
        stored: tuple[int, int, int] = (0, 0, 0),
    ) -> None:
        super().__init__()
        self.kind, self.dim, self.head_dim, self.grid = kind, dim, head_dim, grid
        self.interpolation = interpolation
        self._tables: dict[tuple[object, ...], Tables] = {}
        if kind == "stored":
            prompts, tokens, frames = stored
            self.register_buffer("text", torch.zeros(prompts, tokens, dim))
            self.register_buffer("video", torch.zeros(frames, grid[0] * grid[1], dim))

    def forward(self, layout: Layout, height: int, width: int, like: Tensor) -> Tables:
        """Tables for patches of ``height x width``, on the device and in the dtype of ``like``.

        ValueError when a stored table does not cover them.
        """
        key = (*layout.key, height, width, like.device, like.dtype)
        tables = self._tables.get(key)
        if tables is None:
            with torch.inference_mode(False), torch.no_grad():
                tables = self._make(layout, height, width, like)
            if len(self._tables) >= MAX_TABLES:
                self._tables.clear()
            self._tables[key] = tables
        if self.kind != "stored":
            return tables
        return tables._replace(video=self._stored(layout, height, width, like.dtype))

    def text_rows(self, layout: Layout, slots: Tensor) -> Tensor | None:
        """Stored rows of the layout's prompts ``[prompts, tokens, dim]``, or None."""
        if self.kind != "stored":
            return None
        return self.text if len(self.text) == len(layout.prompts) else self.text[slots]

    def _stored(self, layout: Layout, height: int, width: int, dtype: torch.dtype) -> Tensor:
        frames = max(layout.positions) + 1
        if (height, width) != self.grid or frames > len(self.video):
            raise ValueError(
                f"this model's position table is stored, not computed: it covers {self.grid} "
                f"patches and {len(self.video)} latent frames, not {(height, width)} and {frames}"
            )
        if not layout.shared_positions:
            return self.video[:frames].to(dtype)
        return self.video[indices(layout.positions, self.video.device)].to(dtype)

    def _make(self, layout: Layout, height: int, width: int, like: Tensor) -> Tables:
        frames, tokens = max(layout.positions) + 1, height * width
        index = indices(layout.positions, torch.device("cpu"))
        video = rotary = None
        if self.kind == "sincos":
            spatial, temporal = self.interpolation
            table = get_3d_sincos_pos_embed(self.dim, (width, height), frames, spatial, temporal)
            video = table.float()[index].to(like)
        elif self.kind == "rotary":
            box = crop_region((height, width), self.grid)
            cos, sin = get_3d_rotary_pos_embed(self.head_dim, box, (height, width), frames)
            cos, sin = (
                t.float().view(frames, tokens, -1)[index].flatten(0, 1).to(like.device)
                for t in (cos, sin)
            )
            rotary = (cos, sin)
        places = (layout.frame_layers, layout.prompt_slots, layout.frame_slots)
        return Tables(video, rotary, *(indices(place, like.device) for place in places))


class ExactTimesteps(nn.Module):
    """Sinusoidal timestep features ``[B, dim]`` float32, cosines first, for official networks.

    The frequencies are rounded from float64: a float32 ``exp`` that is off in its last bit, as on
    some CPUs, moves the features of t = 999 by 5e-5.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, timestep: Tensor) -> Tensor:
        half = self.dim // 2
        steps = torch.arange(half, dtype=torch.float32, device=timestep.device)
        exponents = -math.log(10000.0) * steps / half
        angles = timestep[:, None].float() * exponents.double().exp().float()
        return torch.cat([angles.cos(), angles.sin()], -1)


def crop_region(
    size: tuple[int, int], base: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """The box that a grid ``size`` fills when fitted into the training grid ``base``, centred.

    CogVideoX' rotary coordinates at another size are those of this box, stretched over the grid.
    """
    if size[0] * base[1] > base[0] * size[1]:
        fitted = (base[0], round(base[0] / size[0] * size[1]))
    else:
        fitted = (round(base[1] / size[1] * size[0]), base[1])
    top, left = (round((base[i] - fitted[i]) / 2) for i in (0, 1))
    return (top, left), (top + fitted[0], left + fitted[1])
