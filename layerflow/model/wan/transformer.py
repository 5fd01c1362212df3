"""LayerFlowWanTransformer3DModel: Wan 2.1 or 2.2 for all layers and all tasks.

Wan's blocks and weights (diffusers' names), with what layers need: the layers lie one after the
other on the latent frame axis, given layers are clean in place and at t = 0, each layer attends to
its own prompt, and tokens carry embeddings of their layer. Shapes: B batch, F latent frames of all
layers, C channels, H W latent size, P prompts, L tokens a prompt, D width of the text encoder.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import ModelMixin, WanTransformer3DModel
from diffusers.configuration_utils import register_to_config
from diffusers.models._modeling_parallel import ContextParallelInput, ContextParallelOutput
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.utils import apply_lora_scale
from torch import Tensor, nn

from layerflow.layer_set import layer_set
from layerflow.model import adapters
from layerflow.model.layer_embedding import LayerEmbedding, Tables, indices
from layerflow.model.layers import Layout
from layerflow.model.network import LayeredNetwork
from layerflow.model.wan.blocks import (
    LayeredWanBlock,
    TokenSpan,
    modulated,
    prompt_places,
    token_span,
)
from layerflow.model.wan.rope import LayeredRope

__all__ = ["LayerFlowWanTransformer3DModel", "ModelMixin"]  # diffusers looks ModelMixin up here

_SPLIT = ContextParallelInput(split_dim=1, expected_dims=4, split_output=True)


class LayerFlowWanTransformer3DModel(LayeredNetwork, WanTransformer3DModel):
    """The network. Configuration beyond Wan's:

    mode: ``native``; there are no released LayerFlow checkpoints on Wan.
    layers: the name of its ``layer_set.LayerSet``; embedding rows and prompts follow from it.
    num_text_tokens: tokens of one prompt; the text is ``[B, P*L, D]``.
    num_prompts: those of the set, or 1 for a network of one layer.
    positions: ``shared`` (each layer counts its time from 0) or ``continuous``.
    sample_height, sample_width: usual latent size; latent_frames: usual latent frames of one layer.
    Any others work.
    given_at_zero: given layers are told t = 0; otherwise the timestep of their sample.
    """

    _no_split_modules = ("LayeredWanBlock",)
    _repeated_blocks = ("LayeredWanBlock",)
    block_list = "blocks"
    context_mesh: Any = None  # of processes that share sequences in another way than diffusers'
    # As diffusers', without a timestep a token: rows of modulation are not split.
    _cp_plan = {  # noqa: RUF012
        "rope": {0: _SPLIT, 1: _SPLIT},
        "blocks.0": {"hidden_states": ContextParallelInput(split_dim=1, expected_dims=3)},
        "proj_out": ContextParallelOutput(gather_dim=1, expected_dims=3),
    }

    @register_to_config
    def __init__(
        self,
        patch_size: tuple[int, ...] = (1, 2, 2),
        num_attention_heads: int = 40,
        attention_head_dim: int = 128,
        in_channels: int = 16,
        out_channels: int = 16,
        text_dim: int = 4096,
        freq_dim: int = 256,
        ffn_dim: int = 13824,
        num_layers: int = 40,
        cross_attn_norm: bool = True,
        qk_norm: str | None = "rms_norm_across_heads",
        eps: float = 1e-6,
        image_dim: int | None = None,
        added_kv_proj_dim: int | None = None,
        rope_max_seq_len: int = 1024,
        pos_embed_seq_len: int | None = None,
        mode: str = "native",
        task: str | None = None,
        layers: str = "rgba",
        num_text_tokens: int = 512,
        num_prompts: int = 3,
        positions: str = "shared",
        sample_height: int = 60,
        sample_width: int = 104,
        latent_frames: int = 5,
        given_at_zero: bool = True,
    ) -> None:
        if image_dim is not None or added_kv_proj_dim is not None:
            raise ValueError("image-to-video Wan (image_dim, added_kv_proj_dim) is not supported")
        _check_config(mode, task, positions, patch_size)
        own = len(layer_set(layers).prompted)
        if num_prompts not in (1, own):
            raise ValueError(f"num_prompts must be that of layers {layers}, {own} (or 1)")
        taken = inspect.signature(WanTransformer3DModel.__init__).parameters
        few = {"num_layers": 0}  # it makes no blocks of its own
        super().__init__(**{k: v for k, v in {**self.config, **few}.items() if k in taken})
        self.register_to_config(num_layers=num_layers)
        dim = num_attention_heads * attention_head_dim
        self.rope = LayeredRope(attention_head_dim, patch_size, rope_max_seq_len)
        block = (dim, ffn_dim, num_attention_heads, qk_norm, cross_attn_norm, eps)
        self.blocks = nn.ModuleList(LayeredWanBlock(*block) for _ in range(num_layers))
        self.official = None
        self.layer_embedding = LayerEmbedding(dim, num_prompts, len(self.layer_set.layers))
        self.motion_gate = adapters.MotionGate()

    @property
    def patch_side(self) -> int:
        """Latent pixels of a token's side."""
        return int(self.config.patch_size[1])

    @property
    def text_width(self) -> int:
        """Width of one token of text, as the text encoder gives it."""
        return int(self.config.text_dim)

    @apply_lora_scale("attention_kwargs")
    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        timestep: Tensor,
        given: Tensor | None = None,
        layout: Layout | None = None,
        motion_gate: Tensor | None = None,
        attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """Predict noise minus clean latents for all latents.

        hidden_states: ``[B, F, C, H, W]``, given layers clean, the others noisy.
        encoder_hidden_states: ``[B, P*L, D]``; a missing or dropped prompt is zeros.
        timestep: ``[B]`` in 0..1000, that of the generated layers of a sample.
        given: bool ``[B, n]``, the layout's layers; None: nothing is given. It marks tokens and
            puts given layers at t = 0: putting clean latents in place is the caller's work.
        layout: how layers lie on the frame axis; None: the model's own layout of F frames.
        motion_gate: float ``[B]``; None: that of the enclosing ``adapters.motion_gate`` block, or
            0 outside any.

        Returns the prediction ``[B, F, C, H, W]``; rows of given layers mean nothing.
        ValueError when shapes do not fit the layout.
        """
        layout = self.layout(hidden_states.shape[1]) if layout is None else layout
        self._check(hidden_states, encoder_hidden_states, layout)
        latents = hidden_states.transpose(1, 2)
        rotary = self.rope(latents, layout.positions)
        tables = self._tables(layout, latents.device)
        features, temb, text = self._condition(timestep, encoder_hidden_states, given, tables)
        text = self.layer_embedding.embed_text(text, layout, tables, None)
        video = self._patches(latents, tables, given)
        span = self._span(layout, latents)
        features, temb = (rows[:, _rows_of(span, rows)] for rows in (features, temb))
        gate = self.motion_gate.value if motion_gate is None else motion_gate
        checkpointed = torch.is_grad_enabled() and self.gradient_checkpointing
        for block in self.blocks:
            # The gate is an argument, so that the recomputation in the backward pass sees the
            # one of this forward pass, whatever has been set since.
            arguments = (block, video, text, temb, rotary, span, len(layout.prompts), gate)
            if checkpointed:
                video = self._gradient_checkpointing_func(self._run_block, *arguments)
            else:
                video = self._run_block(*arguments)
        output = self._unpatchify(self._finish(video, features, span), hidden_states.shape)
        return Transformer2DModelOutput(sample=output) if return_dict else (output,)

    def _check(self, latents: Tensor, text: Tensor, layout: Layout) -> None:
        side = self.patch_side
        if latents.ndim != 5 or latents.shape[1] != layout.num_frames:
            raise ValueError(
                f"latents must be [B, {layout.num_frames}, C, H, W], not {list(latents.shape)}"
            )
        if latents.shape[3] % side or latents.shape[4] % side:
            raise ValueError(
                f"latent height and width must be multiples of {side}: {latents.shape}"
            )
        if text.ndim != 3 or text.shape[0] != latents.shape[0]:
            raise ValueError(f"text must be [{latents.shape[0]}, P*L, D], not {list(text.shape)}")
        if text.shape[1] % len(layout.prompts):
            raise ValueError(
                f"{text.shape[1]} text tokens do not divide among the prompts {layout.prompts}"
            )

    def _tables(self, layout: Layout, device: torch.device) -> Tables:
        rows = (layout.frame_layers, layout.prompt_slots, layout.frame_slots)
        return Tables(None, None, *(indices(row, device) for row in rows))

    def _condition(
        self, timestep: Tensor, text: Tensor, given: Tensor | None, tables: Tables
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Timestep features ``[B, R, dim]``, modulation ``[B, R, 6, dim]`` and text tokens.

        R is 1 when nothing is given, else F: the rows of t or of 0 for each frame. Both are
        computed once a sample, whatever the number of frames.
        """
        apart = given is not None and self.config.given_at_zero
        if apart:
            timestep = torch.stack([timestep, torch.zeros_like(timestep)], 1).flatten()
        features, temb, text, _ = self.condition_embedder(
            timestep, text, None, timestep_seq_len=2 if apart else 1
        )
        temb = temb.unflatten(2, (6, -1))
        if apart:
            assert given is not None
            clean = given.to(features.device)[:, tables.frame_slots, None]
            features = torch.where(clean, features[:, 1:], features[:, :1])
            temb = torch.where(clean[..., None], temb[:, 1:], temb[:, :1])
        return features, temb, text

    def _patches(self, latents: Tensor, tables: Tables, given: Tensor | None) -> Tensor:
        """Video tokens ``[B, F*h*w, dim]`` with all embeddings."""
        video = self.patch_embedding(latents).flatten(3).permute(0, 2, 3, 1)  # [B, F, h*w, dim]
        return self.layer_embedding.embed_video(video, tables, given).flatten(1, 2).contiguous()

    def _span(self, layout: Layout, latents: Tensor) -> TokenSpan:
        """The tokens that this process computes: under context parallelism its part of them."""
        side = self.patch_side
        tokens = (latents.shape[3] // side) * (latents.shape[4] // side)
        mattes = {matte: colour for colour, matte in self.layer_set.mattes.items()}
        places = prompt_places(layout, mattes)
        start, stop = 0, layout.num_frames * tokens
        parallel = getattr(self._parallel_config, "context_parallel_config", None)
        mesh = self.context_mesh if parallel is None else parallel._flattened_mesh
        if mesh is not None:  # as torch.tensor_split, which is how diffusers splits
            rank, world = mesh.get_local_rank(), mesh.size()
            each, rest = divmod(stop, world)
            start = rank * each + min(rank, rest)
            stop = start + each + (rank < rest)
        return token_span(places, tokens, start, stop, latents.device)

    def _run_block(
        self,
        block: nn.Module,
        video: Tensor,
        text: Tensor,
        temb: Tensor,
        rotary: tuple[Tensor, Tensor],
        span: TokenSpan,
        prompts: int,
        gate: Tensor | None,
    ) -> Tensor:
        if gate is self.motion_gate.value:
            return block(video, text, temb, rotary, span, prompts)
        with self.motion_gate.hold(gate):
            return block(video, text, temb, rotary, span, prompts)

    def _finish(self, video: Tensor, features: Tensor, span: TokenSpan) -> Tensor:
        rows = self.scale_shift_table.unsqueeze(0).to(features.device) + features.unsqueeze(2)
        shift, scale = rows.unbind(2)
        video = modulated(self.norm_out(video.float()), scale, shift, span).type_as(video)
        return self.proj_out(video)

    def _unpatchify(self, video: Tensor, shape: torch.Size) -> Tensor:
        batch, frames, _, height, width = shape
        p = self.patch_side
        patches = video.view(batch, frames, height // p, width // p, p, p, -1)
        return patches.permute(0, 1, 6, 2, 4, 3, 5).reshape(batch, frames, -1, height, width)


def _rows_of(span: TokenSpan, rows: Tensor) -> slice:
    """Those of the modulation rows that the span's frames have."""
    return slice(*span.frames) if rows.shape[1] > 1 else slice(None)


def _check_config(mode: str, task: str | None, positions: str, patch_size: Sequence[int]) -> None:
    if mode != "native" or task is not None:
        raise ValueError(f"LayerFlow on Wan is native and has no task, not {mode!r}, {task!r}")
    if positions not in ("shared", "continuous"):
        raise ValueError(f"positions must be shared or continuous, not {positions!r}")
    long, high, wide = patch_size
    if long != 1 or high != wide:
        raise ValueError(f"a patch must be square and one latent frame long: {tuple(patch_size)}")
