"""FLOPs and bytes of a training step at the paper's size, counted on tensors without data.

    python -m bench.train_memory [--stages content base] [--checkpointing none selective full]
                                 [--precision bf16]

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
from collections.abc import Iterator
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
from trainer.runtime import prepare
from trainer.stages import attach, trainable_names

CPU = torch.device("cpu")
GIB = 2**30


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--stages", nargs="+", default=["content", "base"])
    parser.add_argument("--checkpointing", nargs="+", default=["none", "selective", "full"])
    parser.add_argument("--precision", default="bf16", choices=["bf16", "fp32"])
    options = parser.parse_args()
    for name, kind in itertools.product(options.stages, options.checkpointing):
        changes = {"precision": options.precision, "checkpointing": kind}
        manifest = load(MANIFEST).model_copy(update=changes)
        stage = manifest.stage(name)
        held = count_bytes(manifest, stage, CONFIG_2B, SHAPE_2B)
        planned = planned_bytes(manifest, stage, network(stage, CONFIG_2B), SHAPE_2B)
        print(
            f"{name:8} {options.precision} {kind:9} counted {held / GIB:6.2f} GiB, "
            f"planned {planned / GIB:6.2f} ({100 * (planned / held - 1):+.1f} %)",
            flush=True,
        )


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
        runtime.save_on_cpu, Swap.pack = usual  # type: ignore[misc]


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
