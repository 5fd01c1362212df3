"""What a training step costs: FLOPs and bytes, by formulas of the network's width and tokens.

`tests/test_costs.py` holds both against counts of what the network does on tensors without data,
and `bench/train_memory.py` counts whole steps at the paper's size in the same way.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from manifests.train import TrainManifest

Backward = Literal["untouched", "passed", "lora", "whole"]
"""What the backward pass does in a block: nothing, gradients of its input only, those and a
LoRA's, or those and all of its weights'."""

BLOCKS = "transformer_blocks."
AFTER_BLOCKS = ("norm_final.", "norm_out.", "proj_out.")

# Bytes that a block keeps for the backward pass, a token and channel of its width. Under autocast
# norms compute in fp32, which is why bf16 needs more than half of fp32's.
PASSED = {
    ("fp32", "none"): 48.3,
    ("bf16", "none"): 32.3,
    ("fp32", "selective"): 44.1,
    ("bf16", "selective"): 22.1,
    ("fp32", "full"): 4.0,
    ("bf16", "full"): 2.0,
}
WHOLE = {"fp32": 44.0, "bf16": 29.5}  # more where all weights train, and nothing is recomputed
LORA = 8.0  # more where a LoRA trains: its inputs, cast once for each target
WORK = {"fp32": 30.0, "bf16": 12.0}  # for what is computed at the moment
# More where a block with a LoRA is recomputed, but in the first: there nothing asks for the gradient
# of its input.
LORA_WORK = {"fp32": 0.0, "bf16": 4.5}
OUTSIDE = 7.9  # what embeddings and the last norms keep
# The most that a forward pass without gradients holds, a token and channel.
FORWARD = {"fp32": 48.3, "bf16": 26.3}

# Dense bf16 peaks in FLOP/s, from the vendors' data sheets.
PEAKS = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H200 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "GH200": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "RTX 4090": 165e12,
}
OTHERS = {"Laptop", "Max", "MIG", "D"}  # words in the names of lesser devices, or parts of one


def peak_of(name: str) -> float | None:
    """Dense bf16 peak in FLOP/s of a device by its name (torch's or Ray's); None: not known."""
    words = re.split(r"[\s_-]+", name)
    if OTHERS & set(words):
        return None
    return next((peak for key, peak in PEAKS.items() if set(key.split()) <= set(words)), None)


@dataclass(frozen=True)
class Costs:
    """FLOPs of one training step on one sample, and what they rest on."""

    tokens: int
    forward: float
    backward: float
    recomputed: float = 0.0
    """More in the backward pass, where blocks are recomputed."""

    @property
    def total(self) -> float:
        """The model's FLOPs, which MFU counts: without recomputation."""
        return self.forward + self.backward

    @property
    def executed(self) -> float:
        """All that the device computes."""
        return self.total + self.recomputed


def block_parts(transformer: Any, trained: Collection[str]) -> list[Backward]:
    """What the backward pass does in each block when the parameters of these names train."""
    count = transformer.config.num_layers
    own: dict[int, Backward] = {}
    for name in trained:
        if name.startswith(BLOCKS):
            block = int(name.split(".")[1])
            if _is_lora(name):
                own.setdefault(block, "lora")
            else:
                own[block] = "whole"
    first = 0 if _before_blocks(trained) else min(own, default=count)
    return [own.get(i, "untouched" if i < first else "passed") for i in range(count)]


def _before_blocks(trained: Collection[str]) -> bool:
    return any(not name.startswith((BLOCKS, *AFTER_BLOCKS)) for name in trained)


def _is_lora(name: str) -> bool:
    return ".lora_" in name


def _width(config: Any) -> int:
    return int(config.num_attention_heads * config.attention_head_dim)


def step_costs(
    transformer: Any,
    shape: tuple[int, ...],
    trained: Collection[str],
    checkpointing: str = "none",
    prompts: int | None = None,
) -> Costs:
    """FLOPs of one sample's training step.

    shape: latents ``[n, f, C, h, w]`` of its n layers. prompts: how many of them have one; None:
    as many as the model has. Per block, with width d and s tokens, a forward pass
    is 24 d^2 s (linear layers: qkv and out 8, feed-forward 16) + 4 s^2 d (attention, both
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
    tokens, d = text + video, _width(config)
    linear, attention = 24.0 * d * d * tokens, 4.0 * tokens * tokens * d
    block = linear + attention + _modulation(config)
    parts = block_parts(transformer, trained)
    reached = [part for part in parts if part != "untouched"]
    sizes = {name: p.numel() for name, p in transformer.named_parameters() if name in trained}
    lora = 2.0 * tokens * sum(size for name, size in sizes.items() if _is_lora(name))
    backward = len(reached) * (linear + 2 * attention)
    backward += parts.count("whole") * (linear + _modulation(config))
    if reached and reached[0] == "lora" and not _before_blocks(trained):
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
    return 2.0 * 2 * config.time_embed_dim * 6 * _width(config)


def _around_blocks(
    config: Any, text: int, video: int, size: int, trained: Collection[str], reached: bool
) -> tuple[float, float]:
    """Forward and backward FLOPs of what lies before and after the blocks."""
    d, steps = _width(config), config.time_embed_dim
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


def forward_bytes(manifest: TrainManifest, config: Any, *, tokens: int, cast: int) -> float:
    """The most that a forward pass without gradients holds beside the weights.

    tokens: of all samples of the pass. cast: parameters of which autocast keeps bf16 copies
    meanwhile: those that ask for gradients.
    """
    copies = 2.0 * cast if manifest.precision == "bf16" else 0.0
    return tokens * _width(config) * FORWARD[manifest.precision] + copies


def memory_bytes(
    manifest: TrainManifest,
    config: Any,
    parts: Sequence[Backward],
    *,
    total: int,
    trained: int,
    average: bool,
    tokens: int,
    shards: int = 1,
) -> float:
    """The most that one worker holds: an estimate for eager mode with fused attention.

    Weights in fp32; gradient, two moments (and average) of what trains, all divided by `shards`;
    what the blocks keep for the backward pass, for `tokens` tokens of a pass; the block that is
    recomputed; and, under autocast, bf16 copies of frozen weights that are in use.
    """
    precision, kind, d = manifest.precision, manifest.checkpointing, _width(config)
    state = 4 * (total + trained * (4 if average else 3)) / shards
    copies = 24.0 * d * d if precision == "bf16" else 0.0  # of one block's linear layers
    # what lies between the two matrices of a block's LoRA, of all its targets
    loras = 0 if "whole" in parts else parts.count("lora")
    ranks = trained / (2 * d * loras) if loras else 0.0
    between = tokens * ranks * (2.0 if precision == "bf16" else 4.0)
    kept, most = OUTSIDE * tokens * d, 0.0
    reached = [part for part in parts if part != "untouched"]
    for index, part in enumerate(reached):
        whole = tokens * d * kept_bytes(precision, "none", part) + copies
        here = tokens * d * kept_bytes(precision, kind, part) + (copies if kind == "none" else 0)
        work = WORK[precision]
        if part == "lora":
            whole += between
            here += between if kind != "full" else 0.0
            work += LORA_WORK[precision] if kind != "none" and index else 0.0
        kept += here
        most = max(most, kept + max(0.0, whole - here) + tokens * d * work)
    return float(state + most)


def kept_bytes(precision: str, checkpointing: str, part: Backward) -> float:
    """Bytes that a block keeps a token and channel."""
    kept = PASSED[precision, checkpointing]
    if checkpointing == "full":
        return kept
    if part == "lora":  # selective recomputation keeps all inputs of products, in their precision
        return kept + LORA * (2 if (precision, checkpointing) == ("fp32", "selective") else 1)
    if part == "whole" and checkpointing == "none":
        return kept + WHOLE[precision]
    return kept
