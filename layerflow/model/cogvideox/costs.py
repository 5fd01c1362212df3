"""What a training step on CogVideoX computes and keeps, by formulas of its width and tokens.

`tests/trainer/test_costs.py` holds both against counts of what the network does on tensors without
data, and `bench/train_memory.py` counts whole steps at the paper's size in the same way.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from layerflow.model.base import ActivationBytes, Costs, block_parts, trains_before_blocks

BLOCKS = "transformer_blocks."
AFTER_BLOCKS = ("norm_final.", "norm_out.", "proj_out.")

# Under autocast norms compute in fp32, which is why bf16 needs more than half of fp32's.
ACTIVATION_BYTES = ActivationBytes(
    passed={
        ("fp32", "none"): 48.3,
        ("bf16", "none"): 32.3,
        ("fp32", "selective"): 44.1,
        ("bf16", "selective"): 22.1,
        ("fp32", "full"): 4.0,
        ("bf16", "full"): 2.0,
    },
    whole={"fp32": 44.0, "bf16": 29.5},
    lora={
        ("fp32", "none"): 8.0,
        ("bf16", "none"): 8.0,
        ("fp32", "selective"): 16.0,  # all inputs of products, in their precision
        ("bf16", "selective"): 8.0,
    },
    work={"fp32": 30.0, "bf16": 12.0},
    outside=7.9,
    forward={"fp32": 48.3, "bf16": 26.3},
    lora_work={("bf16", "selective"): (12.0, 16.5), ("bf16", "full"): (12.0, 16.5)},
    copies_last=False,
)


def channels(config: Mapping[str, Any]) -> int:
    """Channels of a token."""
    return int(config["num_attention_heads"] * config["attention_head_dim"])


def activation_bytes(config: Mapping[str, Any]) -> ActivationBytes:
    """What the network holds beside its weights: the same of every size."""
    return ACTIVATION_BYTES


def forward_flops(config: Mapping[str, Any], video: int, text: int) -> float:
    """``24 d^2 L s`` for the linear layers of L blocks of width d on s tokens, and ``4 s^2 d L``
    for attention."""
    d, blocks, tokens = channels(config), config["num_layers"], video + text
    return 24.0 * d**2 * blocks * tokens + 4.0 * tokens**2 * d * blocks


def step_costs(
    transformer: Any,
    shape: tuple[int, ...],
    trained: Collection[str],
    checkpointing: str = "none",
    prompts: int | None = None,
) -> Costs:
    """FLOPs of one sample's training step.

    shape: latents ``[n, f, C, h, w]`` of its n layers. prompts: how many of them have one; None:
    as many as the model has. Per block, with width d and s tokens, a forward pass is 24 d^2 s
    (linear layers: qkv and out 8, feed-forward 16) + 4 s^2 d (attention, both
    products). The backward pass costs as much again for the inputs' gradients from the first
    trained block on (attention twice), as much again for the weights' in blocks that train whole,
    and 6 s for each LoRA parameter. Where the first trained block is a LoRA's, nothing asks for
    the gradient of its input: qkv's 6 d^2 s and their LoRA's are saved. `full` checkpointing
    computes each of these blocks forward once more; `selective` keeps all products. To this come
    the embeddings, the modulation and the last layer; norms and activations are left out, as they
    are no products.
    """
    config = transformer.config
    layers, frames, _, height, width = shape
    text = int(getattr(config, "max_text_seq_length", 0))
    if prompts is not None:
        text = prompts * config.num_text_tokens
    size = config.patch_size**2 * (config.patch_size_t or 1)
    video = layers * frames * height * width // size
    tokens, d = text + video, channels(config)
    linear, attention = 24.0 * d * d * tokens, 4.0 * tokens * tokens * d
    block = linear + attention + _modulation(config)
    parts = block_parts(transformer, trained)
    before = trains_before_blocks(transformer, trained)
    reached = [part for part in parts if part != "untouched"]
    sizes = {name: p.numel() for name, p in transformer.named_parameters() if name in trained}
    lora = 2.0 * tokens * sum(size for name, size in sizes.items() if ".lora_" in name)
    backward = len(reached) * (linear + 2 * attention)
    backward += parts.count("whole") * (linear + _modulation(config))
    if reached and reached[0] == "lora" and not before:
        first = f"{BLOCKS}{parts.index('lora')}."
        inputs = [n for n in sizes if n.startswith(first) and "lora_A" in n and ".to_out" not in n]
        backward -= 6.0 * d * d * tokens + 2.0 * tokens * sum(sizes[name] for name in inputs)
    if any(name.startswith("time_embedding.") for name in trained):
        backward += len(parts) * _modulation(config)
    around = _around_blocks(config, text, video, size, trained, bool(reached))
    recomputed = len(reached) * block + lora if checkpointing == "full" else 0.0
    return Costs(
        tokens,
        len(parts) * block + lora + around[0],
        backward + 2.0 * lora + around[1],
        recomputed,
    )


def _modulation(config: Any) -> float:
    """AdaLN of one block: two layers from the timestep's features to six vectors each."""
    return 2.0 * 2 * config.time_embed_dim * 6 * channels(config)


def _around_blocks(
    config: Any, text: int, video: int, size: int, trained: Collection[str], reached: bool
) -> tuple[float, float]:
    """Forward and backward FLOPs of what lies before and after the blocks."""
    d, steps = channels(config), config.time_embed_dim
    outputs = 2.0 * d * (config.out_channels or config.in_channels) * size * video
    modulation = 2.0 * steps * 2 * d
    weights = {
        "patch_embed.text_proj.weight": 2.0 * config.text_embed_dim * d * text,
        "patch_embed.proj.weight": 2.0 * config.in_channels * size * d * video,
        "time_embedding.linear_1.weight": 2.0 * d * steps,
        "time_embedding.linear_2.weight": 2.0 * steps * steps,
        "norm_out.linear.weight": modulation,
        "proj_out.weight": outputs,
    }
    backward = sum(flops for name, flops in weights.items() if name in trained)
    if reached or any(name.startswith(("norm_final.", "norm_out.")) for name in trained):
        backward += outputs  # the gradient of its input
    if any(name.startswith("time_embedding.") for name in trained):
        backward += modulation
    if "time_embedding.linear_1.weight" in trained:
        backward += weights["time_embedding.linear_2.weight"]
    return sum(weights.values()), backward
