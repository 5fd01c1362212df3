"""What ``layerflow init`` makes on CogVideoX: a tiny model, and native ones from a base."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from layerflow.layer_set import layer_set
from layerflow.model.cogvideox.base import COGVIDEOX
from layerflow.model.cogvideox.from_base import make_scheduler, mark_layers, write_from_base
from layerflow.model.cogvideox.transformer import LayerFlowTransformer3DModel
from layerflow.model.presets import ModelPreset, tiny_text, write_tiny_pipeline

TINY: dict[str, Any] = {
    "layers": "rgba",
    "height": 32,
    "width": 32,
    "num_frames": 4,
    "block_size": 8,
    "luma_bands": 15,
    "chroma_bands": 6,
    "scaling_factor": 0.6,
    "overlap": False,
    "patch_size": 1,
    "num_attention_heads": 3,
    "attention_head_dim": 32,
    "num_layers": 4,
    "time_embed_dim": 96,
    "text_width": 32,
    "num_text_tokens": 16,
    "spatial_interpolation_scale": 0.5,
    "positions": "shared",
    "layer_embedding_std": 0.5,
    "gate_bias": 0.2,
    "tie_query_key": True,
    "scheduler": "ddim",
    "seed": 0,
}
"""Options of the tiny preset and their values. layers: name of their set; height, width in pixels,
num_frames of one layer; widths in channels; num_text_tokens of one prompt. layer_embedding_std:
random layer embedding on video tokens at the start; gate_bias: AdaLN gates at the start;
tie_query_key: keys start as copies of queries, so attention starts on "same place, other layer"."""

BASE: dict[str, Any] = {
    "layers": None,
    "height": 480,
    "width": 720,
    "num_frames": 16,
    "positions": "shared",
    "layer_embedding_std": 0.0,
    "dtype": "bfloat16",
    "seed": 0,
}
"""Options of the presets that start from a base model. layers: name of their set; None: the base's
own, ``rgba`` where it has none. dtype: of the stored transformer."""


def write_tiny(
    folder: Path, base: str | Path, options: Mapping[str, Any], asked: Collection[str] = ()
) -> None:
    """Write a complete folder made from nothing (``TINY`` options); ``base`` is not used."""
    width = options["num_attention_heads"] * options["attention_head_dim"]
    if width % 16:
        raise ValueError(f"heads x head size must be a multiple of 16 (sin-cos table): {width}")
    scheduler = make_scheduler(options["scheduler"])
    write_tiny_pipeline(folder, "tiny", COGVIDEOX, options, _tiny_text, tiny_transformer, scheduler)


def _tiny_text(options: Mapping[str, Any]) -> tuple[Any, Any]:
    from transformers import T5EncoderModel

    return tiny_text(T5EncoderModel, options, feed_forward_proj="gated-gelu")


def tiny_transformer(options: Mapping[str, Any], channels: int) -> LayerFlowTransformer3DModel:
    """A small network from nothing, initialised as it learns fastest (see ``TINY``)."""
    factor, layers = options["block_size"], layer_set(options["layers"])
    model = LayerFlowTransformer3DModel(
        num_attention_heads=options["num_attention_heads"],
        attention_head_dim=options["attention_head_dim"],
        in_channels=channels,
        out_channels=channels,
        time_embed_dim=options["time_embed_dim"],
        text_embed_dim=options["text_width"],
        num_layers=options["num_layers"],
        sample_height=options["height"] // factor,
        sample_width=options["width"] // factor,
        sample_frames=len(layers.layers) * options["num_frames"],
        patch_size=options["patch_size"],
        temporal_compression_ratio=1,
        max_text_seq_length=len(layers.prompted) * options["num_text_tokens"],
        spatial_interpolation_scale=options["spatial_interpolation_scale"],
        num_text_tokens=options["num_text_tokens"],
        num_prompts=len(layers.prompted),
        layers=layers.name,
        positions=options["positions"],
        latent_frames=options["num_frames"],
    )
    for parameter in (model.proj_out.weight, model.proj_out.bias):
        nn.init.zeros_(parameter)
    for block in model.transformer_blocks:
        for norm in (block.norm1, block.norm2):
            _open_gates(norm.linear, options["gate_bias"])
        if options["tie_query_key"]:
            block.attn1.to_k.load_state_dict(block.attn1.to_q.state_dict())
    nn.init.zeros_(model.norm_out.linear.weight)
    nn.init.zeros_(model.norm_out.linear.bias)
    mark_layers(model, options["layer_embedding_std"])
    return model


def _open_gates(modulation: nn.Linear, gate: float) -> None:
    """Modulation that starts as the identity: no shift, no scale, gates at ``gate``."""
    nn.init.zeros_(modulation.weight)
    nn.init.zeros_(modulation.bias)
    with torch.no_grad():
        for index in (2, 5):  # (shift, scale, gate) of video tokens, then of text tokens
            modulation.bias.chunk(6)[index].fill_(gate)


TINY_PRESET = ModelPreset("0.94 M parameters, made from nothing, for CPUs", write_tiny, TINY, False)
COGVIDEOX_2B = ModelPreset("from CogVideoX-2B (sin-cos positions)", write_from_base, BASE)
COGVIDEOX_5B = ModelPreset("from CogVideoX-5B (rotary positions)", write_from_base, BASE)
