"""LayerFlowTransformer3DModel: one diffusion transformer for all layers and all tasks.

CogVideoX' blocks and weights (diffusers' names), with what layers need: the layers lie one after
the other on the latent frame axis, given layers are clean in place, and tokens carry embeddings of
their layer. Shapes: B batch, F latent frames of all layers, C channels, H W latent size, P prompts,
L tokens a prompt, D width of the text encoder.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from diffusers import CogVideoXTransformer3DModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.utils import apply_lora_scale
from torch import Tensor, nn

from layerflow.layer_set import layer_set
from layerflow.model import adapters
from layerflow.model.cogvideox.positions import ExactTimesteps, Positions
from layerflow.model.layer_embedding import LayerEmbedding, Tables
from layerflow.model.layers import Layout, official_task
from layerflow.model.network import LayeredNetwork

MODES = ("native", "official")
POSITIONS = ("shared", "continuous")


class LayerFlowTransformer3DModel(LayeredNetwork, CogVideoXTransformer3DModel):
    """The network. Configuration beyond CogVideoX':

    mode: ``native`` or ``official`` (bit-faithful to a released checkpoint).
    task: the released configuration (a key of ``layers.OFFICIAL``); official mode only.
    num_text_tokens: tokens of one prompt; the text is ``[B, P*L, D]``.
    layers: name of the set of layers (``layer_set.LayerSet``); native mode only.
    num_prompts: prompt slots; in native mode one for each layer of the set in colour.
    positions: ``shared`` (each layer counts its time from 0) or ``continuous``; native mode only.
    stored_positions: prompts, tokens and frames of a position table that the weights carry.
    position_grid: height and width in patches that rotary positions were learnt at, whatever size
        the model works at; None: those of sample_height and sample_width.
    latent_frames: usual latent frames of one layer; any number works.
    norm_out_eps: epsilon of the last norm; the official network has 1e-6, diffusers 1e-5.
    exact_timesteps: timestep features as ``positions.ExactTimesteps`` makes them.
    """

    _repeated_blocks = ("CogVideoXBlock",)
    block_list = "transformer_blocks"

    @register_to_config
    def __init__(
        self,
        num_attention_heads: int = 30,
        attention_head_dim: int = 64,
        in_channels: int = 16,
        out_channels: int | None = 16,
        flip_sin_to_cos: bool = True,
        freq_shift: int = 0,
        time_embed_dim: int = 512,
        ofs_embed_dim: int | None = None,
        text_embed_dim: int = 4096,
        num_layers: int = 30,
        dropout: float = 0.0,
        attention_bias: bool = True,
        sample_width: int = 90,
        sample_height: int = 60,
        sample_frames: int = 49,
        patch_size: int = 2,
        patch_size_t: int | None = None,
        temporal_compression_ratio: int = 4,
        max_text_seq_length: int = 226,
        activation_fn: str = "gelu-approximate",
        timestep_activation_fn: str = "silu",
        norm_elementwise_affine: bool = True,
        norm_eps: float = 1e-5,
        spatial_interpolation_scale: float = 1.875,
        temporal_interpolation_scale: float = 1.0,
        use_rotary_positional_embeddings: bool = False,
        use_learned_positional_embeddings: bool = False,
        patch_bias: bool = True,
        mode: str = "native",
        task: str | None = None,
        num_text_tokens: int = 226,
        num_prompts: int = 3,
        positions: str = "shared",
        stored_positions: tuple[int, int, int] | list[int] | None = None,
        latent_frames: int = 4,
        norm_out_eps: float = 1e-5,
        exact_timesteps: bool = False,
        position_grid: tuple[int, int] | list[int] | None = None,
        layers: str = "rgba",
    ) -> None:
        _check_config(mode, task, positions, patch_size_t, ofs_embed_dim, num_prompts, layers)
        # It makes no tables of its own: ``Positions`` makes them.
        own = {"use_rotary_positional_embeddings": True, "use_learned_positional_embeddings": False}
        taken = inspect.signature(CogVideoXTransformer3DModel.__init__).parameters
        super().__init__(**{k: v for k, v in {**self.config, **own}.items() if k in taken})
        self.register_to_config(
            use_rotary_positional_embeddings=use_rotary_positional_embeddings,
            use_learned_positional_embeddings=use_learned_positional_embeddings,
        )
        self.norm_out.norm.eps = norm_out_eps
        self.official = official_task(task) if mode == "official" else None
        dim = num_attention_heads * attention_head_dim
        if exact_timesteps:
            self.time_proj = ExactTimesteps(dim)
        kind = "rotary" if use_rotary_positional_embeddings else "sincos"
        own_grid = (sample_height // patch_size, sample_width // patch_size)
        self.position_tables = Positions(
            "stored" if stored_positions else kind,
            dim,
            attention_head_dim,
            own_grid if position_grid is None else _grid(position_grid),
            (spatial_interpolation_scale, temporal_interpolation_scale),
            tuple(stored_positions) if stored_positions else (0, 0, 0),  # type: ignore[arg-type]
        )
        embedded = num_prompts if self.official is None or self.official.layer_embedding else 0
        marked = len(self.layer_set.layers) if self.official is None else 0
        self.layer_embedding = LayerEmbedding(dim, embedded, marked)
        self.motion_gate = adapters.MotionGate()

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
        """Predict v for all latents.

        hidden_states: ``[B, F, C, H, W]``, given layers clean, the others noisy.
        encoder_hidden_states: ``[B, P*L, D]``; a missing or dropped prompt is zeros.
        timestep: ``[B]`` in 0..999, one for all layers of a sample.
        given: bool ``[B, n]``, the layout's layers; None: nothing is given. It only marks tokens:
            putting clean latents in place is the caller's work. Official networks mark nothing.
        layout: how layers lie on the frame axis; None: the model's own layout of F frames.
        motion_gate: float ``[B]``; None: that of the enclosing ``adapters.motion_gate`` block, or
            0 outside any.

        Returns the prediction ``[B, F, C, H, W]``; rows of given layers mean nothing.
        ValueError when shapes do not fit the layout.
        """
        layout = self.layout(hidden_states.shape[1]) if layout is None else layout
        self._check(hidden_states, encoder_hidden_states, layout)
        temb = self.time_embedding(self.time_proj(timestep).to(hidden_states.dtype))
        text, video, tables = self._embed(hidden_states, encoder_hidden_states, given, layout)
        gate = self.motion_gate.value if motion_gate is None else motion_gate
        checkpointed = torch.is_grad_enabled() and self.gradient_checkpointing
        for block in self.transformer_blocks:
            # The gate is an argument, so that the recomputation in the backward pass sees the
            # one of this forward pass, whatever has been set since.
            arguments = (block, video, text, temb, tables.rotary, gate, attention_kwargs)
            if checkpointed:
                video, text = self._gradient_checkpointing_func(self._run_block, *arguments)
            else:
                video, text = self._run_block(*arguments)
        video = self.proj_out(self.norm_out(self.norm_final(video), temb=temb))
        output = self._unpatchify(video, hidden_states.shape)
        return Transformer2DModelOutput(sample=output) if return_dict else (output,)

    def _check(self, latents: Tensor, text: Tensor, layout: Layout) -> None:
        p = self.config.patch_size
        if latents.ndim != 5 or latents.shape[1] != layout.num_frames:
            raise ValueError(
                f"latents must be [B, {layout.num_frames}, C, H, W], not {list(latents.shape)}"
            )
        if latents.shape[3] % p or latents.shape[4] % p:
            raise ValueError(f"latent height and width must be multiples of {p}: {latents.shape}")
        if text.ndim != 3 or text.shape[0] != latents.shape[0]:
            raise ValueError(f"text must be [{latents.shape[0]}, P*L, D], not {list(text.shape)}")
        if text.shape[1] % len(layout.prompts):
            raise ValueError(
                f"{text.shape[1]} text tokens do not divide among the prompts {layout.prompts}"
            )

    def _embed(
        self, latents: Tensor, text: Tensor, given: Tensor | None, layout: Layout
    ) -> tuple[Tensor, Tensor, Tables]:
        """Tokens of text ``[B, P*L, dim]`` and video ``[B, F*h*w, dim]`` with all embeddings."""
        text = self.patch_embed.text_proj(text)
        patches = self.patch_embed.proj(latents.flatten(0, 1))  # [B*F, dim, h, w]
        height, width = patches.shape[-2:]
        tables = self.position_tables(layout, height, width, text)
        video = patches.flatten(2).transpose(1, 2).unflatten(0, (len(latents), -1))
        video = self.layer_embedding.embed_video(video, tables, given).flatten(1, 2)
        stored = self.position_tables.text_rows(layout, tables.prompt_slots)
        text = self.layer_embedding.embed_text(text, layout, tables, stored)
        return self.embedding_dropout(text), self.embedding_dropout(video), tables

    def _run_block(
        self,
        block: nn.Module,
        video: Tensor,
        text: Tensor,
        temb: Tensor,
        rotary: tuple[Tensor, Tensor] | None,
        gate: Tensor | None,
        attention_kwargs: dict[str, Any] | None,
    ) -> tuple[Tensor, Tensor]:
        if gate is self.motion_gate.value:
            return block(video, text, temb, rotary, attention_kwargs)
        with self.motion_gate.hold(gate):
            return block(video, text, temb, rotary, attention_kwargs)

    def _unpatchify(self, video: Tensor, shape: torch.Size) -> Tensor:
        batch, frames, _, height, width = shape
        p = self.config.patch_size
        patches = video.view(batch, frames, height // p, width // p, -1, p, p)
        return patches.permute(0, 1, 4, 2, 5, 3, 6).reshape(batch, frames, -1, height, width)


def _grid(said: Any) -> tuple[int, int]:
    if len(said) != 2 or not all(isinstance(side, int) and side > 0 for side in said):
        raise ValueError(f"position_grid must be height and width in patches, not {said!r}")
    return said[0], said[1]


def _check_config(
    mode: str,
    task: str | None,
    positions: str,
    patch_size_t: int | None,
    ofs_embed_dim: int | None,
    num_prompts: int,
    layers: str,
) -> None:
    if mode not in MODES:
        raise ValueError(f"mode must be one of {MODES}, not {mode!r}")
    if (mode == "official") != (task is not None):
        raise ValueError(f"task belongs to official mode, and it needs one: {mode=} {task=}")
    if positions not in POSITIONS:
        raise ValueError(f"positions must be one of {POSITIONS}, not {positions!r}")
    if patch_size_t is not None or ofs_embed_dim is not None:
        raise ValueError("CogVideoX 1.5 (patch_size_t, ofs_embed_dim) is not supported")
    own = len(layer_set(layers).prompted)
    prompts = len(official_task(task).layout.prompts) if task else num_prompts
    if prompts != num_prompts or (mode == "native" and num_prompts not in (1, own)):
        raise ValueError(
            f"num_prompts cannot be {num_prompts} here; native models of layers {layers} have "
            f"{own} (or 1)"
        )
