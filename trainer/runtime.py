"""What all stages of a run share, and how the network runs, whatever it computes: recomputation,
compilation, attention kernels."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache, partial, wraps
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.autograd.graph import save_on_cpu
from torch.nn.attention import (
    SDPBackend,
    activate_flash_attention_impl,
    restore_flash_attention_impl,
    sdpa_kernel,
)
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from layerflow.model.base import base_of
from manifests.train import TrainManifest
from trainer.distributed.processes import ALONE, World, share_sequences

if TYPE_CHECKING:
    import threading
    from pathlib import Path

    from layerflow.model.noise import NoiseProcess
    from trainer.checkpoint import Behind
    from trainer.held_out import HeldOut
    from trainer.sampling import SampleJob
    from trainer.upload import Uploader

KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "flash3": SDPBackend.FLASH_ATTENTION,
    "flash4": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
PACKAGES = {"flash3": "FA3", "flash4": "FA4"}
"""Kernels that torch takes from the FlashAttention packages of these versions."""
MOST_GRAPHS = 64
"""Of a block that is compiled: shapes of clips, tasks and passes that differ; more run eager."""
COSTLY = ("mm.default", "addmm.default", "bmm.default", "_scaled_dot_product")
"""Operations whose results `checkpointing: selective` keeps: nearly all of the FLOPs."""


@dataclass
class Run:
    """What all stages share."""

    manifest: TrainManifest
    out: Path
    world: World
    transformer: nn.Module
    process: NoiseProcess
    held_out: HeldOut | None
    terminated: threading.Event
    log: Callable[[str], None]
    report: Callable[[dict[str, Any]], None]
    sample: Callable[[SampleJob], None]
    uploader: Uploader | None
    behind: Behind | None

    def saved(self, checkpoint: Path) -> None:
        """Have a new checkpoint copied to where the run's copies are, in place of its stage's
        older ones."""
        if self.uploader is not None:
            self.uploader.put(checkpoint, replaces=checkpoint.name[:-8])

    def finished(self, stage: str) -> None:
        """Have what a finished stage left copied: what it trained, the export, sampled clips."""
        if self.uploader is not None:
            for folder in (self.out / "stages" / stage, self.out / "export"):
                self.uploader.put(folder)
            for folder in sorted(self.out.glob("samples/*")):
                self.uploader.put(folder)

    def settle(self) -> None:
        """Wait until what is written behind the steps is on the disk."""
        if self.behind is not None:
            self.behind.wait()


def prepare(transformer: Any, manifest: TrainManifest, world: World = ALONE) -> Any:
    """Set the network up for training as the manifest says; returns it."""
    transformer.train()
    share_sequences(transformer, world, manifest.context_parallel)
    if "activations" in manifest.offload:
        transformer.enable_gradient_checkpointing(run_offloaded)
    elif manifest.checkpointing == "full":
        transformer.enable_gradient_checkpointing()
    elif manifest.checkpointing == "selective":
        transformer.enable_gradient_checkpointing(run_selectively)
    if manifest.compile:
        # one graph a shape: clips of other sizes get their own, and none is general and slow
        config: Any = torch._dynamo.config
        config.recompile_limit = max(config.recompile_limit, MOST_GRAPHS)
        for block in getattr(transformer, base_of(transformer).blocks):
            block.compile(dynamic=False)
    return transformer


def run_selectively(function: Callable[..., Any], *arguments: Any) -> Any:
    """Run a block so that its backward pass recomputes all but `COSTLY` operations."""
    contexts = partial(create_selective_checkpoint_contexts, policy)
    return checkpoint(function, *arguments, use_reentrant=False, context_fn=contexts)


def run_offloaded(function: Callable[..., Any], *arguments: Any) -> Any:
    """Run a block so that of it only its inputs are kept, and those in CPU memory."""
    with save_on_cpu(pin_memory=True):
        return checkpoint(function, *arguments, use_reentrant=False)


def policy(context: Any, operation: Any, *arguments: Any, **options: Any) -> CheckpointPolicy:
    name = str(operation).removeprefix("aten.")
    keep = name.startswith(COSTLY)
    return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE


def autocast(manifest: TrainManifest, device: torch.device) -> AbstractContextManager[Any]:
    """Within the block, the network computes in the manifest's precision."""
    return torch.autocast(device.type, torch.bfloat16, manifest.precision == "bf16")


def run_as_trained(transformer: Any, manifest: TrainManifest, device: torch.device) -> Any:
    """Give the network's forward passes the precision and the attention kernel of training,
    wherever they are called from; returns it."""
    forward = transformer.forward

    @wraps(forward)
    def as_trained(*arguments: Any, **options: Any) -> Any:
        with autocast(manifest, device), attention_kernel(manifest, device):
            return forward(*arguments, **options)

    transformer.forward = as_trained
    return transformer


@contextmanager
def attention_kernel(
    manifest: TrainManifest, device: torch.device, log: Callable[[str], None] = lambda line: None
) -> Iterator[None]:
    """Within the block, attention runs on the manifest's kernel, and on no other.

    Where the device or the installation lacks it, the log says so and torch chooses.
    """
    name = manifest.attention
    if name != "auto" and (lack := lacks(name, device.type, manifest.precision)):
        log(f"attention: {name} cannot run here ({lack}): torch chooses, as with auto")
        name = "auto"
    with kernel(name):
        yield


@contextmanager
def kernel(name: str) -> Iterator[None]:
    """Within the block, torch's attention runs on the kernel of that name; `auto`: on any."""
    if name == "auto":
        yield
        return
    package = PACKAGES.get(name)
    if package:
        activate_flash_attention_impl(package)
    try:
        with sdpa_kernel(KERNELS[name]):
            yield
    finally:
        if package:
            restore_flash_attention_impl()


@cache
def lacks(name: str, device: str, precision: str) -> str:
    """Why a kernel cannot run a small attention, forward and backward; "" if it can."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    try:
        with warnings.catch_warnings(record=True) as said, kernel(name):
            warnings.simplefilter("always")  # torch warns why, and then fails in general words
            tokens = [
                torch.zeros(1, 2, 16, 64, device=device, dtype=dtype, requires_grad=True)
                for _ in range(3)
            ]
            scaled_dot_product_attention(*tokens).sum().backward()
    except (RuntimeError, ImportError) as error:
        reasons = [*(str(warning.message) for warning in said), str(error)]
        return reasons[-2 if len(reasons) > 1 else 0].partition(". ")[0].partition("\n")[0]
    return ""
