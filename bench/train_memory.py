"""FLOPs and bytes of a training step at the paper's size, counted on tensors without data.

    python -m bench.train_memory [--bases 2b 5b 1.3b 14b] [--stages content base]
                                 [--checkpointing none selective full] [--precision bf16]
                                 [--savings] [--blocks 3] [--table]

`--savings` also counts what the options of memory save, in bf16 with full recomputation. `--blocks`
takes so many blocks of a base instead of all. `--table` counts nothing: it prints the plan's
figures as the table of docs/train.md.

Needs no GPU and little memory: the step is that of `bench/train_gpu.py`, its tensors have shapes
but no contents, and every operation's results are counted while they live. What a CPU does
otherwise than a GPU is put right: under autocast a GPU's norms take and give fp32. What a GPU
adds is not in it: fragments that the allocator keeps, work space of kernels, and fp32 sums in the
backward pass of flash attention (4 bytes a token and channel of the width, at one time).

Printed are the bytes that live at once, at most, and what `layerflow train --plan` says.
"""

from __future__ import annotations

import argparse
import gc
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from bench.train_gpu import (
    CONFIG_2B,
    MANIFEST,
    SHAPE_2B,
    noise_of,
    planned_bytes,
    random_batch,
    training_step,
)
from layerflow.model import adapters
from layerflow.model.cogvideox.transformer import LayerFlowTransformer3DModel
from layerflow.model.objective import layer_loss
from layerflow.model.wan.transformer import LayerFlowWanTransformer3DModel
from manifests.train import TrainManifest, load
from manifests.train_stage import Stage
from trainer import runtime
from trainer.data import Batch
from trainer.memory.hold import hold
from trainer.memory.swap import Swap
from trainer.planning.count import Live
from trainer.planning.plan import SAVINGS, SMALLEST
from trainer.runtime import prepare
from trainer.stages import attach, trainable_names

CPU = torch.device("cpu")
GIB = 2**30
CARDS = (16, 24, 48, 80, 141)  # GB, as they are sold
SHAPE_WAN = (1, 4, 5, 16, 60, 104)  # 17 frames of 480x832 a layer
CONFIG_WAN = {"num_layers": 30, "num_text_tokens": 512, "latent_frames": 5}
BASES: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "2b": (CONFIG_2B, SHAPE_2B),
    "5b": (
        {
            **CONFIG_2B,
            **{"num_attention_heads": 48, "num_layers": 42},
            "use_rotary_positional_embeddings": True,
        },
        SHAPE_2B,
    ),
    "1.3b": ({**CONFIG_WAN, "num_attention_heads": 12, "ffn_dim": 8960}, SHAPE_WAN),
    "14b": (
        {**CONFIG_WAN, "num_attention_heads": 40, "ffn_dim": 13824, "num_layers": 40},
        SHAPE_WAN,
    ),
}
"""The networks' settings at the sizes of the released bases, and latents of one sample."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--bases", nargs="+", default=["2b"], choices=BASES)
    parser.add_argument("--blocks", type=int)
    parser.add_argument("--savings", action="store_true")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--stages", nargs="+", default=["content", "base"])
    parser.add_argument("--checkpointing", nargs="+", default=["none", "selective", "full"])
    parser.add_argument("--precision", default="bf16", choices=["bf16", "fp32"])
    options = parser.parse_args()
    if options.table:
        print("\n".join(table(options.bases)))
        return
    ways = {
        f"{options.precision} {kind}": {"precision": options.precision, "checkpointing": kind}
        for kind in options.checkpointing
    }
    if options.savings:
        ways = {
            name: {**SMALLEST, **changes} for name, changes in {"nothing": {}, **SAVINGS}.items()
        }
    for base, name, (how, changes) in itertools.product(
        options.bases, options.stages, ways.items()
    ):
        config, shape = BASES[base]
        if options.blocks:
            config = {**config, "num_layers": options.blocks}
        manifest = paper(changes, config["num_layers"])
        stage = manifest.stage(name)
        held = count_bytes(manifest, stage, config, shape)
        planned = planned_bytes(manifest, stage, network(stage, config), shape)
        print(
            f"{base:4} {name:8} {how:20} counted {held / GIB:6.2f} GiB, "
            f"planned {planned / GIB:6.2f} ({100 * (planned / held - 1):+.1f} %)",
            flush=True,
        )


def paper(changes: dict[str, Any], blocks: int) -> TrainManifest:
    """The paper's schedule with changes; of a network of few blocks the last one trains."""
    manifest = load(MANIFEST).model_copy(update=changes)
    if blocks >= 6:
        return manifest
    few = {"blocks": [blocks - 1]}
    stages = [
        stage.model_copy(update={"trains": stage.trains.model_copy(update=few)})
        for stage in manifest.stages
        if not isinstance(stage.trains, str)
    ]
    return manifest.model_copy(update={"stages": stages})


def table(bases: Sequence[str]) -> list[str]:
    """For each base, stage and size of card: the first of the ways, from the quickest on, whose
    plan leaves a tenth of the card free, and its GiB."""
    kinds = {kind: {**SMALLEST, "checkpointing": kind} for kind in ("none", "selective", "full")}
    ways = {**kinds, **{name: {**SMALLEST, **changes} for name, changes in SAVINGS.items()}}
    out = ["| base | stage | " + " | ".join(f"{size} GB" for size in CARDS) + " |"]
    out[0] += " least |"
    out.append("|---|---|" + "---|" * (len(CARDS) + 1))
    for base, name in itertools.product(bases, ("base", "content")):
        config, shape = BASES[base]
        planned: dict[str, float] = {}
        transformer = network(paper({}, config["num_layers"]).stage(name), config)
        for way, changes in ways.items():
            manifest = paper(changes, config["num_layers"])
            stage = manifest.stage(name)
            planned[way] = planned_bytes(manifest, stage, transformer, shape) / GIB
        cells = []
        for size in CARDS:
            fits = [way for way, gib in planned.items() if gib <= 0.9 * size * 1e9 / GIB]
            cells.append(f"{fits[0]}, {planned[fits[0]]:.1f}" if fits else "-")
        least = min(planned.values())
        out.append(f"| {base} | {name} | " + " | ".join(cells) + f" | {least:.1f} |")
    return out


def network(stage: Stage, config: dict[str, Any]) -> Any:
    """A transformer with the stage's adapter, without weights; of Wan if it has its feed-forward
    width."""
    kind = LayerFlowWanTransformer3DModel if "ffn_dim" in config else LayerFlowTransformer3DModel
    with torch.device("meta"):
        transformer = kind(**config)
    attach(transformer, stage, 0)
    return transformer


def count_flops(
    stage: Stage, config: dict[str, Any], batch: Batch, checkpointing: str = "none"
) -> tuple[float, float]:
    """FLOPs of the forward and the backward pass, products and attention alone."""
    transformer = network(stage, config)
    if checkpointing == "full":
        transformer.enable_gradient_checkpointing()
    adapters.set_trainable(transformer, trainable_names(transformer, stage))
    batch = batch.to(torch.device("meta"))
    with FlopCounterMode(display=False) as counter:
        losses = layer_loss(
            transformer, noise_of(transformer), *batch.tensors(), layers=batch.layers
        )
        forward = counter.get_total_flops()
        losses.mean().backward()
        return forward, counter.get_total_flops() - forward


def count_bytes(
    manifest: TrainManifest, stage: Stage, config: dict[str, Any], shape: tuple[int, ...]
) -> int:
    """The most bytes that live at once in a step after the first one."""
    transformer = network(stage, config)
    with FakeTensorMode(), Live() as live, norms_in_fp32(manifest.precision == "bf16"), apart(live):
        fill(transformer)
        hold(transformer, manifest, manifest.stages_from(stage), CPU)
        prepare(transformer, manifest)
        step = training_step(transformer, manifest, stage, shape, CPU)
        step()
        gc.collect()
        live.most = live.now
        step()
        return live.most


def fill(transformer: Any, trained: set[str] | None = None) -> None:
    """Give the parameters memory. trained: those with gradients; None: all."""
    for path, module in transformer.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                trains = trained is None or f"{path}.{name}".lstrip(".") in trained
                full = torch.nn.Parameter(torch.empty(parameter.shape), requires_grad=trains)
                module._parameters[name] = full
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape)


def count_forward_bytes(
    manifest: TrainManifest, stage: Stage, config: dict[str, Any], shape: tuple[int, ...]
) -> int:
    """The most bytes that a forward pass without gradients holds beside the weights."""
    transformer = network(stage, config)
    names = set(trainable_names(transformer, stage))
    half = manifest.precision == "bf16"
    with FakeTensorMode(), Live() as live, norms_in_fp32(half), torch.no_grad():
        fill(transformer, names)
        batch = random_batch(transformer, shape)
        process = noise_of(transformer)
        before = live.most = live.now
        with torch.autocast("cpu", torch.bfloat16, half):
            layer_loss(transformer, process, *batch.tensors(), layers=batch.layers)
        return live.most - before


@contextmanager
def apart(live: Live) -> Iterator[None]:
    """What is put into CPU memory on purpose does not count."""

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        copy = tensor.clone()
        live.leave_out(copy)
        return copy

    def pack_block(self: Swap, tensors: Any, size: int) -> torch.Tensor:
        flat = usual[1](self, tensors, size)
        live.leave_out(flat)
        return flat

    def away(**options: Any) -> Any:
        return saved_tensors_hooks(pack, torch.Tensor.clone)

    usual: Any = (runtime.save_on_cpu, Swap.pack)
    runtime.save_on_cpu, Swap.pack = away, pack_block  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        runtime.save_on_cpu, Swap.pack = usual  # type: ignore[misc, method-assign]


@contextmanager
def norms_in_fp32(on: bool) -> Iterator[None]:
    """Norms as CUDA's autocast runs them."""
    kinds: list[Any] = [torch.nn.LayerNorm, torch.nn.RMSNorm]
    usual = [kind.forward for kind in kinds]
    if on:
        for kind, forward in zip(kinds, usual, strict=True):
            kind.forward = lambda self, values, run=forward: run(self, values.float())
    try:
        yield
    finally:
        for kind, forward in zip(kinds, usual, strict=True):
            kind.forward = forward


if __name__ == "__main__":
    main()
