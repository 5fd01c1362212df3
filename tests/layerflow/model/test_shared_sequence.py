"""Several processes that compute one sequence together, against one that computes it alone."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh

from layerflow.clip import LAYERS, PROMPTED
from layerflow.model import adapters
from layerflow.model.base import base_of
from layerflow.model.cogvideox.transformer import LayerFlowTransformer3DModel
from layerflow.model.objective import layer_loss
from layerflow.model.parallel.context import Context
from layerflow.model.wan.transformer import LayerFlowWanTransformer3DModel

NETWORKS = ("cogvideox", "cogvideox-rotary", "wan")
TOKENS = 3  # of a prompt: 9 of all, which 2 and 4 do not divide
SIZE = (2, 3, 5)  # latent frames, height, width: 30 tokens a layer; 4 does not divide 60 or 120


class Process:
    """Mixes clean latents and noise half and half."""

    def add_noise(self, latents: Any, noise: Any, timesteps: Any) -> Any:
        return (latents + noise) / 2

    def target(self, latents: Any, noise: Any, timesteps: Any) -> Any:
        return noise - latents


def network(name: str) -> Any:
    """With random embeddings, and both LoRAs."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"in_channels": 4, "out_channels": 4, "num_layers": 2}
    if name == "wan":
        shape = {"num_attention_heads": 3, "attention_head_dim": 12, "text_dim": 8, "freq_dim": 16}
        model: Any = LayerFlowWanTransformer3DModel(
            **sizes, **shape, ffn_dim=64, patch_size=(1, 1, 1), num_text_tokens=TOKENS
        )
    else:
        shape = {"num_attention_heads": 3, "attention_head_dim": 16, "text_embed_dim": 8}
        model = LayerFlowTransformer3DModel(
            **sizes,
            **shape,
            time_embed_dim=16,
            patch_size=1,
            sample_height=3,
            sample_width=5,
            temporal_compression_ratio=1,
            max_text_seq_length=3 * TOKENS,
            num_text_tokens=TOKENS,
            use_rotary_positional_embeddings=name.endswith("rotary"),
        )
    for adapter in (adapters.MOTION, "content"):
        adapters.add_adapter(model, adapter, rank=2, alpha=2.0)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if not parameter.any() or parameter.ndim == 1:  # what is zero at first hides mistakes
            parameter.data.normal_(std=0.3, generator=generator)
        parameter.requires_grad_(True)
    return model


def computed(model: Any, *, recomputed: bool) -> dict[str, torch.Tensor]:
    """Losses and gradients of two samples: other gates, prompts (one dropped), given layers; once
    of all layers and once of three."""
    if recomputed:
        model.enable_gradient_checkpointing()
    model.train()
    generator = torch.Generator().manual_seed(2)
    found = {}
    for layers in (LAYERS, tuple(layer for layer in LAYERS if layer in PROMPTED)):
        latents, noise = torch.randn(2, 2, len(layers), SIZE[0], 4, *SIZE[1:], generator=generator)
        text = torch.randn(2, 3, TOKENS, 8, generator=generator)
        text[1, 1] = 0
        given = torch.zeros(2, len(layers), dtype=torch.bool)
        given[1, -1] = True
        times, gate = torch.tensor([300, 700]), torch.tensor([0.0, 1.0])
        process: Any = Process()
        losses = layer_loss(
            model, process, latents, text, given, times, noise, motion_gate=gate, layers=layers
        )
        losses.sum().backward()
        found[f"losses of {len(layers)}"] = losses.detach()
    return found | {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def part(rank: int, world: int, port: int, folder: str) -> None:
    """One of several processes: losses and summed gradients of all networks to a file."""
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=world)
    for name in NETWORKS:
        model = network(name)
        context = Context(init_device_mesh("cpu", (world,)))
        base_of(model).share_sequence(model, context)
        found = computed(model, recomputed=name != "wan")
        for key, value in found.items():
            if not key.startswith("losses"):
                dist.all_reduce(value)
        if rank == 0:
            torch.save(found, Path(folder) / f"{name}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_several_processes_compute_what_one_computes(tmp_path: Path, world: int) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(part, (world, port, str(tmp_path)), nprocs=world)
    for name in NETWORKS:
        found = torch.load(tmp_path / f"{name}.pt", weights_only=True)
        wanted = computed(network(name), recomputed=False)
        assert found.keys() == wanted.keys()
        assert any("lora_B.motion" in key and value.any() for key, value in wanted.items())
        for key, value in wanted.items():
            scale = value.abs().max()
            assert (found[key] - value).abs().max() < 1e-4 * scale + 1e-7, (name, key)


def test_a_base_that_cannot_share_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network("wan")
    base = base_of(model)
    monkeypatch.delattr(type(base), "share_sequence")
    with pytest.raises(ValueError, match="context_parallel: the base Wan cannot"):
        base.share_sequence(model, None)  # type: ignore[arg-type]
