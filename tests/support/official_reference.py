"""An independent official network: diffusers' stock CogVideoX from official weights, written out.

It shares no code with ``layerflow``: layouts are literal numbers, LoRA is merged into the weights,
the layer embedding is added into the position table.
"""

from __future__ import annotations

import layerflow  # noqa: F401  its torchvision guard comes before diffusers

# isort: split

import json
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import CogVideoXDPMScheduler, CogVideoXTransformer3DModel
from safetensors.torch import save_file
from torch.nn import functional

DIM, HEADS, HEAD, LAYERS, TIME, TEXT = 32, 2, 16, 2, 16, 8
HEIGHT, WIDTH, PATCH, CHANNELS = 4, 4, 2, 16
TOKENS = (HEIGHT // PATCH) * (WIDTH // PATCH)
MOTION, CONTENT = 2, 4
PREFIX = "model.diffusion_model."

# name: latents, position frames, prompts, first and last given latent + 1, layer embedding
LAYOUT = {
    "gen_rgb": (12, 13, 3, 0, 0, False),
    "gen_rgba": (16, 16, 3, 0, 0, True),
    "seg_rgb": (12, 13, 2, 10, 12, False),
    "seg_rgba": (16, 16, 2, 12, 16, False),
    "fg2bg_rgb": (12, 13, 3, 0, 4, False),
    "fg2bg_rgba": (17, 17, 3, 0, 9, True),
    "bg2fg_rgb": (12, 13, 3, 4, 8, False),
    "bg2fg_rgba": (17, 17, 3, 9, 13, True),
}


def weight_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Official names without prefix and the shapes of their tensors."""
    _, frames, prompts, _, _, embedded = LAYOUT[name]
    shapes = {
        "time_embed.0.weight": (TIME, DIM),
        "time_embed.0.bias": (TIME,),
        "time_embed.2.weight": (TIME, TIME),
        "time_embed.2.bias": (TIME,),
        "mixins.patch_embed.proj.weight": (DIM, CHANNELS, PATCH, PATCH),
        "mixins.patch_embed.proj.bias": (DIM,),
        "mixins.patch_embed.text_proj.weight": (DIM, TEXT),
        "mixins.patch_embed.text_proj.bias": (DIM,),
        "mixins.pos_embed.pos_embedding": (1, prompts * 226 + frames * TOKENS, DIM),
        "mixins.final_layer.norm_final.weight": (DIM,),
        "mixins.final_layer.norm_final.bias": (DIM,),
        "mixins.final_layer.adaLN_modulation.1.weight": (2 * DIM, TIME),
        "mixins.final_layer.adaLN_modulation.1.bias": (2 * DIM,),
        "mixins.final_layer.linear.weight": (CHANNELS * PATCH**2, DIM),
        "mixins.final_layer.linear.bias": (CHANNELS * PATCH**2,),
        "transformer.final_layernorm.weight": (DIM,),
        "transformer.final_layernorm.bias": (DIM,),
    }
    if embedded:
        shapes["mixins.pos_embed.txt_embedder.0.weight"] = (DIM, 1)
        for key in ("0.bias", "1.weight", "1.bias"):
            shapes[f"mixins.pos_embed.txt_embedder.{key}"] = (DIM,)
    for i in range(LAYERS):
        shapes |= _block_shapes(i)
    return shapes


def random_weights(name: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """Official names without prefix, random values, of a tiny network."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for key, shape in weight_shapes(name).items():
        scale = 0.3 if len(shape) == 1 else 1.0 / shape[-1] ** 0.5
        if "matrix_" in key:
            scale = 0.5
        value = torch.randn(shape, generator=generator) * scale
        weights[key] = value + 1 if "norm" in key and key.endswith("weight") else value
    return weights


def _block_shapes(i: int) -> dict[str, tuple[int, ...]]:
    layer, ada = f"transformer.layers.{i}", "mixins.adaln_layer"
    shapes: dict[str, tuple[int, ...]] = {
        f"{ada}.adaLN_modulations.{i}.1.weight": (12 * DIM, TIME),
        f"{ada}.adaLN_modulations.{i}.1.bias": (12 * DIM,),
    }
    for kind in ("weight", "bias"):
        shapes[f"{ada}.query_layernorm_list.{i}.{kind}"] = (HEAD,)
        shapes[f"{ada}.key_layernorm_list.{i}.{kind}"] = (HEAD,)
        shapes[f"{layer}.input_layernorm.{kind}"] = (DIM,)
        shapes[f"{layer}.post_attention_layernorm.{kind}"] = (DIM,)
    for name, out, into in (
        ("attention.query_key_value.original", 3 * DIM, DIM),
        ("attention.dense.original", DIM, DIM),
        ("mlp.dense_h_to_4h", 4 * DIM, DIM),
        ("mlp.dense_4h_to_h", DIM, 4 * DIM),
    ):
        shapes[f"{layer}.{name}.weight"], shapes[f"{layer}.{name}.bias"] = (out, into), (out,)
    for linear, parts in (("query_key_value", 3), ("dense", 1)):
        for part in range(parts):
            for down, up, rank in (("A", "B", MOTION), ("C", "D", CONTENT)):
                shapes[f"{layer}.attention.{linear}.matrix_{down}.{part}"] = (rank, DIM)
                shapes[f"{layer}.attention.{linear}.matrix_{up}.{part}"] = (DIM, rank)
    return shapes


def stock_network(
    name: str, weights: dict[str, torch.Tensor], motion: float, content: float = 1.0
) -> CogVideoXTransformer3DModel:
    """diffusers' model with LoRA merged at the given strengths."""
    latents, _, prompts, _, _, embedded = LAYOUT[name]
    model = CogVideoXTransformer3DModel(
        num_attention_heads=HEADS,
        attention_head_dim=HEAD,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        time_embed_dim=TIME,
        text_embed_dim=TEXT,
        num_layers=LAYERS,
        sample_width=WIDTH,
        sample_height=HEIGHT,
        sample_frames=(latents - 1) * 4 + 1,
        patch_size=PATCH,
        max_text_seq_length=prompts * 226,
    )
    model.norm_out.norm.eps = 1e-6
    state = dict(model.state_dict())
    for i in range(LAYERS):
        _fill_block(state, weights, i, motion, content)
    for official, ours in (
        ("time_embed.0", "time_embedding.linear_1"),
        ("time_embed.2", "time_embedding.linear_2"),
        ("mixins.patch_embed.proj", "patch_embed.proj"),
        ("mixins.patch_embed.text_proj", "patch_embed.text_proj"),
        ("mixins.final_layer.norm_final", "norm_out.norm"),
        ("mixins.final_layer.adaLN_modulation.1", "norm_out.linear"),
        ("mixins.final_layer.linear", "proj_out"),
        ("transformer.final_layernorm", "norm_final"),
    ):
        for kind in ("weight", "bias"):
            state[f"{ours}.{kind}"] = weights[f"{official}.{kind}"]
    model.load_state_dict(state)
    table = weights["mixins.pos_embed.pos_embedding"][:, : prompts * 226 + latents * TOKENS].clone()
    if embedded:
        pre = "mixins.pos_embed.txt_embedder"
        for j in range(prompts):
            line = weights[f"{pre}.0.weight"][:, 0] * j + weights[f"{pre}.0.bias"]
            norm = functional.layer_norm(
                line, (DIM,), weights[f"{pre}.1.weight"], weights[f"{pre}.1.bias"]
            )
            table[0, j * 226 : (j + 1) * 226] += norm
    model.patch_embed.pos_embedding = table
    return model.eval()


def _fill_block(state, weights, i, motion, content):
    ours, layer, ada = f"transformer_blocks.{i}", f"transformer.layers.{i}", "mixins.adaln_layer"
    for kind in ("weight", "bias"):
        chunks = weights[f"{ada}.adaLN_modulations.{i}.1.{kind}"].chunk(12)
        state[f"{ours}.norm1.linear.{kind}"] = torch.cat([chunks[j] for j in (0, 1, 2, 6, 7, 8)])
        state[f"{ours}.norm2.linear.{kind}"] = torch.cat([chunks[j] for j in (3, 4, 5, 9, 10, 11)])
        state[f"{ours}.attn1.norm_q.{kind}"] = weights[f"{ada}.query_layernorm_list.{i}.{kind}"]
        state[f"{ours}.attn1.norm_k.{kind}"] = weights[f"{ada}.key_layernorm_list.{i}.{kind}"]
        state[f"{ours}.norm1.norm.{kind}"] = weights[f"{layer}.input_layernorm.{kind}"]
        state[f"{ours}.norm2.norm.{kind}"] = weights[f"{layer}.post_attention_layernorm.{kind}"]
        state[f"{ours}.ff.net.0.proj.{kind}"] = weights[f"{layer}.mlp.dense_h_to_4h.{kind}"]
        state[f"{ours}.ff.net.2.{kind}"] = weights[f"{layer}.mlp.dense_4h_to_h.{kind}"]
        qkv = weights[f"{layer}.attention.query_key_value.original.{kind}"].chunk(3)
        for part, value in zip(("to_q", "to_k", "to_v"), qkv, strict=True):
            state[f"{ours}.attn1.{part}.{kind}"] = value
        state[f"{ours}.attn1.to_out.0.{kind}"] = weights[f"{layer}.attention.dense.original.{kind}"]
    for linear, names in (("query_key_value", ("to_q", "to_k", "to_v")), ("dense", ("to_out.0",))):
        for part, name in enumerate(names):
            get = lambda m, n=linear, p=part: weights[f"{layer}.attention.{n}.matrix_{m}.{p}"]  # noqa: E731
            delta = motion / MOTION * get("B") @ get("A") + content / CONTENT * get("D") @ get("C")
            key = f"{ours}.attn1.{name}.weight"
            state[key] = state[key] + delta


def insert(name: str, generated: torch.Tensor, given: torch.Tensor | None) -> torch.Tensor:
    start = LAYOUT[name][3]
    if given is None:
        return generated
    return torch.cat([generated[:, :start], given, generated[:, start:]], 1)


def cut(name: str, sequence: torch.Tensor) -> torch.Tensor:
    _, _, _, start, stop, _ = LAYOUT[name]
    return torch.cat([sequence[:, :start], sequence[:, stop:]], 1)


def make_golden(name: str, folder: Path) -> list[Path]:
    """Network, sampler and loss files like the real golden ones, computed by the stock model."""
    latents, _, prompts, start, stop, _ = LAYOUT[name]
    weights = random_weights(name)
    generator = torch.Generator().manual_seed(1)

    def randn(*shape):
        return torch.randn(shape, generator=generator)

    count = latents - (stop - start)
    size = (CHANNELS, HEIGHT, WIDTH)
    noisy, text = randn(2, count, *size), randn(2 * prompts, 226, TEXT)
    given = randn(2, stop - start, *size) if stop else None
    idx = torch.tensor([43, 619])
    joined = text.view(2, prompts * 226, TEXT)
    full = _run(stock_network(name, weights, 0.0), insert(name, noisy, given), joined, idx)
    metadata = {
        "config": name,
        "tiny_params": json.dumps({"latent_height": HEIGHT, "latent_width": WIDTH}),
    }
    tensors = {f"w.model.diffusion_model.{key}": value for key, value in weights.items()}
    tensors |= {
        "x.text": text,
        "x.B.idx": idx,
        "x.B.sigma": CogVideoXDPMScheduler(snr_shift_scale=3.0, rescale_betas_zero_snr=True)
        .alphas_cumprod[idx]
        .sqrt()
        .float(),
        "x.B.noisy": noisy,
        "y.B.infer.net_out": cut(name, full),
    }
    if given is not None:
        tensors["x.cond_input"] = given
        tensors["y.B.infer.net_full"] = full
    network = folder / f"{name}.safetensors"
    save_file({k: v.contiguous() for k, v in tensors.items()}, network, metadata)
    loss = folder / f"loss_{name}.safetensors"
    clean = randn(2, count, *size)
    save_file(_loss(name, weights, clean, noisy, given, text, idx), loss, _named(metadata, name))
    return [network, loss]


def _named(metadata: dict[str, str], name: str) -> dict[str, str]:
    return {**metadata, "weights": f"{name}.safetensors (w.*)"}


@torch.no_grad()
def _run(model, sequence, text, idx):
    return model(sequence, text, idx, return_dict=False)[0]


def _loss(name, weights, clean, noise, given, text, idx):
    """Per-sample motion scale [1, 0]: two stock models, one sample each."""
    scheduler = CogVideoXDPMScheduler(snr_shift_scale=3.0, rescale_betas_zero_snr=True)
    noised = scheduler.add_noise(clean, noise, idx)
    target = scheduler.get_velocity(clean, noise, idx)
    joined = text.view(2, -1, TEXT)
    rows = []
    for i, gate in enumerate((1.0, 0.0)):
        own = None if given is None else given[i : i + 1]
        sequence = insert(name, noised[i : i + 1], own)
        model = stock_network(name, weights, gate)
        rows.append(cut(name, _run(model, sequence, joined[i : i + 1], idx[i : i + 1])))
    v = torch.cat(rows)
    loss = (v - target).square().flatten(1).mean(1)
    out = {
        "x.x0": clean,
        "x.noise": noise,
        "x.text": text,
        "x.idx": idx,
        "x.motion_scale": torch.tensor([1, 0]),
        "y.noised": noised,
        "y.net_out_v": v,
        "y.loss_per_sample": loss,
    }
    return out if given is None else {**out, "x.cond_input": given}


def checkpoint(
    folder: Path,
    name: str = "gen_rgba",
    change: Callable[[dict[str, torch.Tensor]], object] | None = None,
    **beside: object,
) -> Path:
    """A file like the released ones, in a folder like the released ones; returns its path."""
    weights = {PREFIX + key: value for key, value in random_weights(name).items()}
    weights["conditioner.embedders.0.transformer.shared.weight"] = torch.randn(3, 3)
    weights["first_stage_model.decoder.conv_in.weight"] = torch.randn(3, 3)
    if change is not None:
        change(weights)
    path = folder / "1000" / "mp_rank_00_model_states.pt"
    path.parent.mkdir(parents=True)
    (folder / "latest").write_text("1000")
    torch.save({"module": OrderedDict(weights), "iteration": 1000, **beside}, path)
    return path
