"""What a training step costs: FLOPs and bytes, by formulas of the network's width and tokens.

`tests/test_costs.py` holds both against counts of what the network does on tensors without data,
and `bench/train_memory.py` counts whole steps at the paper's size in the same way.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from manifests.train import TrainManifest

Part = Literal["untouched", "passed", "lora", "whole"]
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
OUTSIDE = 7.9  # what embeddings and the last norms keep


@dataclass(frozen=True)
class Costs:
    """FLOPs of one training step on one sample, and what they rest on."""

    tokens: int
    forward: float
    backward: float

    @property
    def total(self) -> float:
        return self.forward + self.backward


def block_parts(transformer: Any, trained: Collection[str]) -> list[Part]:
    """What the backward pass does in each block when the parameters of these names train."""
    count = transformer.config.num_layers
    own: dict[int, Part] = {}
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


def step_costs(transformer: Any, shape: tuple[int, ...], trained: Collection[str]) -> Costs:
    """Model FLOPs of one sample's training step (recomputation does not count).

    shape: latents ``[layers, f, C, h, w]``. Per block, with width d and s tokens, a forward pass
    is 24 d^2 s (linear layers: qkv and out 8, feed-forward 16) + 4 s^2 d (attention, both
    products). The backward pass costs as much again for the inputs' gradients from the first
    trained block on (attention twice), as much again for the weights' in blocks that train whole,
    and 6 s for each LoRA parameter. Where the first trained block is a LoRA's, nothing asks for
    the gradient of its input: qkv's 6 d^2 s are saved. Norms, embeddings and AdaLN are left out:
    they do not grow with s times d^2.
    """
    config = transformer.config
    layers, frames, _, height, width = shape
    text = int(getattr(config, "max_text_seq_length", 0))
    size = config.patch_size**2 * (config.patch_size_t or 1)
    tokens = text + layers * frames * height * width // size
    d = _width(config)
    linear, attention = 24.0 * d * d * tokens, 4.0 * tokens * tokens * d
    parts = block_parts(transformer, trained)
    reached = [part for part in parts if part != "untouched"]
    sizes = {name: p.numel() for name, p in transformer.named_parameters() if name in trained}
    lora = sum(size for name, size in sizes.items() if _is_lora(name))
    forward = config.num_layers * (linear + attention)
    backward = len(reached) * (linear + 2 * attention) + parts.count("whole") * linear
    if reached and reached[0] == "lora" and not _before_blocks(trained):
        backward -= 6.0 * d * d * tokens
    return Costs(tokens, forward + 2.0 * tokens * lora, backward + 4.0 * tokens * lora)


def memory_bytes(
    manifest: TrainManifest,
    config: Any,
    parts: Sequence[Part],
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
    kept, most = OUTSIDE * tokens * d, 0.0
    for part in parts:
        if part == "untouched":
            continue
        whole = tokens * d * kept_bytes(precision, "none", part) + copies
        here = tokens * d * kept_bytes(precision, kind, part) + (copies if kind == "none" else 0)
        kept += here
        most = max(most, kept + max(0.0, whole - here) + tokens * d * WORK[precision])
    return float(state + most)


def kept_bytes(precision: str, checkpointing: str, part: Part) -> float:
    """Bytes that a block keeps a token and channel."""
    kept = PASSED[precision, checkpointing]
    if checkpointing == "full":
        return kept
    if part == "lora":  # selective recomputation keeps all inputs of products, in their precision
        return kept + LORA * (2 if (precision, checkpointing) == ("fp32", "selective") else 1)
    if part == "whole" and checkpointing == "none":
        return kept + WHOLE[precision]
    return kept
