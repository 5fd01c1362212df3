"""What ``layerflow init`` makes on Wan: a tiny model, and models from a base's folder."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from layerflow.layer_set import layer_set
from layerflow.model.presets import ModelPreset, tiny_text, write_tiny_pipeline
from layerflow.model.wan.base import WAN
from layerflow.model.wan.from_base import make_scheduler, mark_layers, write_from_base
from layerflow.model.wan.transformer import LayerFlowWanTransformer3DModel

TINY: dict[str, Any] = {
    "height": 32,
    "width": 32,
    "num_frames": 4,
    "layers": "rgba",
    "block_size": 8,
    "luma_bands": 15,
    "chroma_bands": 6,
    "scaling_factor": 0.6,
    "overlap": False,
    "patch_size": 1,
    "num_attention_heads": 3,
    "attention_head_dim": 32,
    "ffn_dim": 384,
    "num_layers": 4,
    "freq_dim": 96,
    "text_width": 32,
    "num_text_tokens": 16,
    "positions": "shared",
    "layer_embedding_std": 0.5,
    "gate_bias": 0.2,
    "tie_query_key": True,
    "place_bias": 1.0,
    "scheduler": "euler",
    "shift": 3.0,
    "density": "uniform",
    "seed": 0,
}
"""Options of the tiny preset and their values. height, width in pixels, num_frames of one layer;
widths in channels; num_text_tokens of one prompt. layer_embedding_std: random layer embedding on
video tokens at the start; gate_bias: gates at the start; tie_query_key: keys start as copies of
queries; place_bias: size of the bias that both have, which under rotary positions starts attention
on "same place, other layer"; shift, density: see ``noise.FlowMatching``."""

BASE: dict[str, Any] = {
    "height": 480,
    "width": 832,
    "num_frames": 17,
    "layers": None,
    "positions": "shared",
    "num_text_tokens": 512,
    "layer_embedding_std": 0.0,
    "shift": 3.0,
    "density": "logit-normal",
    "dtype": "bfloat16",
    "seed": 0,
}
"""Options of the presets that start from a base model. dtype: of the stored transformer."""

LARGE = {**BASE, "height": 704, "width": 1280, "shift": 5.0}
EXPERT = {**BASE, "expert": "high"}


def write_tiny(
    folder: Path, base: str | Path, options: Mapping[str, Any], asked: Collection[str] = ()
) -> None:
    """Write a complete folder made from nothing (``TINY`` options); ``base`` is not used."""
    scheduler = make_scheduler(options["scheduler"], options["shift"], options["density"])
    write_tiny_pipeline(folder, "tiny-wan", WAN, options, _tiny_text, tiny_transformer, scheduler)


def _tiny_text(options: Mapping[str, Any]) -> tuple[Any, Any]:
    from transformers import UMT5EncoderModel

    return tiny_text(UMT5EncoderModel, options)


def tiny_transformer(options: Mapping[str, Any], channels: int) -> LayerFlowWanTransformer3DModel:
    """A small network from nothing, initialised as it learns fastest (see ``TINY``)."""
    factor, chosen = options["block_size"], layer_set(options["layers"])
    model = LayerFlowWanTransformer3DModel(
        patch_size=(1, options["patch_size"], options["patch_size"]),
        num_attention_heads=options["num_attention_heads"],
        attention_head_dim=options["attention_head_dim"],
        in_channels=channels,
        out_channels=channels,
        text_dim=options["text_width"],
        freq_dim=options["freq_dim"],
        ffn_dim=options["ffn_dim"],
        num_layers=options["num_layers"],
        layers=chosen.name,
        num_text_tokens=options["num_text_tokens"],
        num_prompts=len(chosen.prompted),
        positions=options["positions"],
        sample_height=options["height"] // factor,
        sample_width=options["width"] // factor,
        latent_frames=options["num_frames"],
    )
    for parameter in (
        *model.proj_out.parameters(),
        *model.condition_embedder.time_proj.parameters(),
        model.scale_shift_table,
    ):
        nn.init.zeros_(parameter)
    for block in model.blocks:
        _open_gates(block.scale_shift_table, options["gate_bias"])
        attention = block.attn1
        if options["place_bias"] > 0:
            nn.init.normal_(attention.to_q.bias, std=options["place_bias"])
        if options["tie_query_key"]:
            attention.to_k.load_state_dict(attention.to_q.state_dict())
    mark_layers(model, options["layer_embedding_std"])
    return model


def _open_gates(table: nn.Parameter, gate: float) -> None:
    """Modulation that starts as the identity: no shift, no scale, gates at ``gate``."""
    nn.init.zeros_(table)
    with torch.no_grad():
        for index in (2, 5):  # (shift, scale, gate) of attention, then of the feed-forward layers
            table[:, index].fill_(gate)


TINY_PRESET = ModelPreset(
    "0.69 M parameters, Wan made from nothing, for CPUs", write_tiny, TINY, False
)
WAN_1_3B = ModelPreset("from Wan2.1-T2V-1.3B", write_from_base, BASE)
WAN_14B = ModelPreset("from Wan2.1-T2V-14B", write_from_base, BASE)
WAN_5B = ModelPreset("from Wan2.2-TI2V-5B (latents of 16x16 pixels)", write_from_base, LARGE)
WAN_A14B = ModelPreset("from one expert of Wan2.2-T2V-A14B", write_from_base, EXPERT)
