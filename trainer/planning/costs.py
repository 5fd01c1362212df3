"""What a training step holds in memory, and how fast devices are; FLOPs are the base's.

`tests/test_costs.py` holds both against counts of what the network does on tensors without data,
and `bench/train_memory.py` counts whole steps at the paper's size in the same way.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import prod
from typing import Any

from layerflow.model.base import ActivationBytes, Backward, base_of
from manifests.train import TrainManifest
from trainer.memory.hold import Held

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


def forward_bytes(manifest: TrainManifest, transformer: Any, *, tokens: int, cast: int) -> float:
    """The most that a forward pass without gradients holds beside the weights.

    tokens: of all samples of the pass. cast: parameters of which autocast keeps bf16 copies
    meanwhile: those that ask for gradients.
    """
    base, precision = base_of(transformer), manifest.precision
    copies = 2.0 * cast if precision == "bf16" else 0.0
    held = base.activation_bytes(transformer.config).forward[precision]
    return tokens * base.width(transformer.config) * held + copies


def memory_bytes(
    manifest: TrainManifest,
    transformer: Any,
    parts: Sequence[Backward],
    *,
    weights: Held,
    trained: int,
    moments: float | None = None,
    average: bool,
    tokens: int,
    inputs: float = 0.0,
    shards: int = 1,
) -> float:
    """The most that one worker holds: an estimate for eager mode with fused attention.

    inputs: `input_bytes` of a pass.

    Weights as they are held; gradient, `moments` (bytes; None: AdamW's) and average of what trains,
    all divided by `shards`; what the blocks keep for the backward pass, for `tokens` tokens of a
    pass; its inputs; the block that is recomputed; the largest matrix that is unpacked; and, under
    autocast,
    bf16 copies of weights in fp32 that are in use.
    """
    base, precision, kind = base_of(transformer), manifest.precision, manifest.checkpointing
    d, held = base.width(transformer.config), base.activation_bytes(transformer.config)
    state = weights.weights + 4 * trained * (2 if average else 1)
    state = (state + (8 * trained if moments is None else moments)) / shards
    if shards > 1 and not manifest.reshard_after_forward:
        state += weights.weights * (0.5 if precision == "bf16" else 1.0)  # gathered, beside them
    away = "activations" in manifest.offload
    # what lies between the two matrices of a block's LoRA, of all its targets
    loras = 0 if "whole" in parts else parts.count("lora")
    ranks = trained / (2 * d * loras) if loras else 0.0
    between = tokens * ranks * (2.0 if precision == "bf16" else 4.0)
    kept, most = held.outside * tokens * d, 0.0
    copies_of = zip(parts, weights.copies, strict=True)
    reached = [(part, copies) for part, copies in copies_of if part != "untouched"]
    for index, (part, copies) in enumerate(reached):
        whole = tokens * d * kept_bytes(held, precision, "none", part) + copies
        here = 0.0 if away else tokens * d * kept_bytes(held, precision, kind, part)
        here += copies if kind == "none" else 0.0
        work = held.work[precision]
        if part == "lora":
            whole += between
            here += between if kind != "full" else 0.0
            work = held.lora_work.get((precision, kind), (work, work))[index > 0]
        elif part == "whole":
            work -= held.spared.get(precision, 0.0)
        if part != "whole":
            whole += weights.unpacked
        elif not held.copies_last and kind != "none":
            whole -= copies
        kept += here
        most = max(most, kept + max(0.0, whole - here) + tokens * d * work)
    return float(state + inputs + most)


def input_bytes(transformer: Any, latents: Sequence[int], prompts: int) -> float:
    """Of one sample, what is held beside what the blocks make of its tokens: its latents, noise and
    prompts in fp32, and text in a block. latents: shape ``[n, f, C, h, w]``."""
    base, config = base_of(transformer), transformer.config
    rows, width = base.text_shape(config)
    text = base.width(config) * base.activation_bytes(config).text
    return 2 * 4.0 * prod(latents) + prompts * rows * (4.0 * width + text)


def kept_bytes(held: ActivationBytes, precision: str, checkpointing: str, part: Backward) -> float:
    """Bytes that a block keeps a token and channel."""
    kept = held.passed[precision, checkpointing]
    if checkpointing == "full":
        return kept
    if part == "lora":
        return kept + held.lora[precision, checkpointing]
    if part == "whole" and checkpointing == "none":
        return kept + held.whole[precision]
    return kept
