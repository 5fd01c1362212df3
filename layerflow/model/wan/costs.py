"""What a training step on Wan computes and keeps, by formulas of its width and tokens.

`tests/trainer/test_wan_costs.py` holds both against counts of what the network does on tensors
without data.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from layerflow.model.base import ActivationBytes, Costs, block_parts, trains_before_blocks

BLOCKS = "blocks."
AFTER_BLOCKS = ("norm_out.", "proj_out.", "scale_shift_table")
_TEXT = ("attn2.to_k", "attn2.to_v")  # what runs over text rows, not over video tokens
_TIMES = 2  # rows of timestep features of a sample: that of its noise, and 0


def activation_bytes(config: Mapping[str, Any]) -> ActivationBytes:
    """What the blocks keep, by their feed-forward width.

    Terms of f are counted, numbers of bytes for each tensor that autograd keeps: in bf16 the inputs
    of norms stay fp32.

    A block with a LoRA that is recomputed holds the most at the end of its forward pass: what it
    keeps, and of what it does not keep the feed-forward's wide result (2 f), its output and the
    fp32 input of the last sum. Where something asks for the gradient of its input, the first norm
    keeps that in fp32 too. What is not recomputed holds the most in one of three moments: in the
    last sum, three fp32 tensors of the width; in the feed-forward's second product, its wide input
    (2 f) beside what is kept; in the backward pass of its activation, two wide gradients (4 f).
    Rotary tables are cosines and sines of the head's width in fp32. A row of text is held embedded,
    cast for two LoRAs, and as keys, normed in fp32, and values.
    """
    f = int(config["ffn_dim"]) / channels(config)
    unsaved = max(8.3, 2.3 + 2 * f, 4 * f - 7.7)
    rotary = 2 * 4 / int(config["num_attention_heads"])
    return ActivationBytes(
        passed={
            ("fp32", "none"): 48.6 + 4 * f,
            ("bf16", "none"): 36.4 + 2 * f,
            ("fp32", "selective"): 40.4 + 4 * f,
            ("bf16", "selective"): 20.2 + 2 * f,
            ("fp32", "full"): 4.0,
            ("bf16", "full"): 2.0,
        },
        whole={"fp32": 40.2 + 4 * f, "bf16": 38.8 + 2 * f},
        lora={
            ("fp32", "none"): 4.7,
            ("bf16", "none"): 11.3,
            ("fp32", "selective"): 19.1,
            ("bf16", "selective"): 16.6,
        },
        work={"fp32": 19.2 + 5 * f, "bf16": 3.4 + 2.5 * f},
        outside=8.0 + rotary,
        forward={"fp32": 16.8 + 8.1 * f, "bf16": 9.5 + 4.4 * f},
        lora_work={
            ("bf16", "none"): (unsaved, unsaved),
            ("bf16", "selective"): (6.3 + 2 * f, 10.3 + 2 * f),
            ("bf16", "full"): (6.3 + 2 * f, 10.3 + 2 * f),
        },
        linear=8 + 2 * f,
        spared={"fp32": 4 * f, "bf16": 2 * f},
        text=16.0,
    )


def channels(config: Mapping[str, Any]) -> int:
    """Channels of a token."""
    return int(config["num_attention_heads"] * config["attention_head_dim"])


def forward_flops(config: Mapping[str, Any], video: int, text: int) -> float:
    """The blocks' forward pass, see ``block_flops``. text: tokens of all prompts."""
    parts = block_flops(config, video, text // int(config["num_prompts"]), text)
    return float(config["num_layers"] * sum(parts))


def block_flops(
    config: Mapping[str, Any], video: int, prompt: int, text: int
) -> tuple[float, float, float, float]:
    """FLOPs of one block: linear layers on video, those on text, self- and cross-attention.

    video, prompt, text: tokens of all layers, of one prompt, of all prompts. With width d and
    feed-forward width f: ``(12 d^2 + 4 d f) video`` (qkv and out, then q and out, then ffn),
    ``4 d^2 text`` (k and v of the cross-attention), ``4 d video^2`` and ``4 d video prompt``: every
    token sees all of the video, and one prompt.
    """
    d, f = channels(config), int(config["ffn_dim"])
    return (
        (12.0 * d * d + 4.0 * d * f) * video,
        4.0 * d * d * text,
        4.0 * d * video * video,
        4.0 * d * video * prompt,
    )


def step_costs(
    transformer: Any,
    shape: tuple[int, ...],
    trained: Collection[str],
    checkpointing: str = "none",
    prompts: int | None = None,
) -> Costs:
    """FLOPs of one sample's training step.

    shape: latents ``[n, f, C, h, w]`` of its n layers. prompts: how many of them have one; None: as
    many as the model has. The backward pass costs as much as the forward pass
    again for the inputs' gradients from the first trained block on (attention twice, but
    that over text once where nothing asks for the gradient of its keys and values; text itself has
    a gradient only where something before the blocks trains it), as much again for the weights' in
    blocks that train whole, and twice a LoRA's forward pass for each LoRA. Where the first trained
    block is a LoRA's, nothing asks for the gradient of its input. `full` checkpointing computes
    each of these blocks forward once more; `selective` keeps all products. To this come the
    embeddings, the timestep's modulation and the last layer.
    """
    config = transformer.config
    layers, frames, _, height, width = shape
    side = config.patch_size[1] * config.patch_size[2]
    video = layers * frames * height * width // side
    prompt, d = int(config.num_text_tokens), channels(config)
    text = prompt * (int(config.num_prompts) if prompts is None else prompts)
    on_video, on_text, within, across = block_flops(config, video, prompt, text)
    block = on_video + on_text + within + across
    parts = block_parts(transformer, trained)
    reached = [part for part in parts if part != "untouched"]
    sizes = {name: p.numel() for name, p in transformer.named_parameters() if name in trained}
    lora = {
        name: 2.0 * size * (text if any(part in name for part in _TEXT) else video)
        for name, size in sizes.items()
        if ".lora_" in name
    }
    text_trains = any(
        name.startswith(("condition_embedder.text_embedder.", "layer_embedding.text"))
        for name in trained
    )
    own = {int(n.split(".")[1]) for n in lora if any(part in n for part in _TEXT)}
    keyed = [i for i, part in enumerate(parts) if part == "whole" or i in own]
    backward = len(reached) * (on_video + 2 * within + across + on_text * text_trains)
    backward += across * (len(reached) if text_trains else len(keyed))
    backward += parts.count("whole") * (on_video + on_text) + 2 * sum(lora.values())
    if not text_trains:  # nothing asks a LoRA for the gradient of its text
        backward -= sum(lora[n] for n in lora if "lora_A" in n and any(t in n for t in _TEXT))
    if reached and reached[0] == "lora" and not trains_before_blocks(transformer, trained):
        first = f"{BLOCKS}{parts.index('lora')}.attn1.to_"
        inputs = [n for n in lora if n.startswith(first) and "lora_A" in n and ".to_out" not in n]
        backward -= 6.0 * d * d * video + sum(lora[name] for name in inputs)
    around = _around_blocks(config, text, video, side, trained, bool(reached))
    recomputed = len(reached) * block + sum(lora.values()) if checkpointing == "full" else 0.0
    return Costs(
        video,
        len(parts) * block + sum(lora.values()) + around[0],
        backward + around[1],
        recomputed,
    )


def _around_blocks(
    config: Any, text: int, video: int, size: int, trained: Collection[str], reached: bool
) -> tuple[float, float]:
    """Forward and backward FLOPs of what lies before and after the blocks."""
    d, embedder = channels(config), "condition_embedder."
    outputs = 2.0 * d * (config.out_channels or config.in_channels) * size * video
    weights = {
        f"{embedder}text_embedder.linear_1.weight": 2.0 * config.text_dim * d * text,
        f"{embedder}text_embedder.linear_2.weight": 2.0 * d * d * text,
        f"{embedder}time_embedder.linear_1.weight": 2.0 * config.freq_dim * d * _TIMES,
        f"{embedder}time_embedder.linear_2.weight": 2.0 * d * d * _TIMES,
        f"{embedder}time_proj.weight": 2.0 * 6 * d * d * _TIMES,
        "patch_embedding.weight": 2.0 * config.in_channels * size * d * video,
        "proj_out.weight": outputs,
    }
    backward = sum(flops for name, flops in weights.items() if name in trained)
    if reached or "scale_shift_table" in trained:
        backward += outputs  # the gradient of its input
    for first, second in (("time_embedder", "time_proj"), ("text_embedder", "")):
        before = f"{embedder}{first}.linear_1.weight"
        if before in trained:
            backward += weights[f"{embedder}{first}.linear_2.weight"]
        if second and any(name.startswith(f"{embedder}{first}.") for name in trained):
            backward += weights[f"{embedder}{second}.weight"]
    return sum(weights.values()), backward
