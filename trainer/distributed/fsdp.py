"""Fully sharded training (FSDP2): each worker holds its part of weights, gradients and moments.

For stages that train a whole network that one device cannot hold four times. `Sharded` answers to
the same calls as `trainer.stages.Trained`; the loop does not know which of them it has. With
`shard_over` the parts lie within groups of so many workers, and each group has a copy of the whole
(HSDP): weights are gathered inside a node, and only gradients cross the network. Checkpoints
are those of torch.distributed.checkpoint in its safetensors form: every worker writes its own part,
any number of workers reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from layerflow.model import adapters
from layerflow.model.base import base_of
from manifests.train_stage import Optimizer
from trainer.distributed.hand_out import hand_out_parts, weights_to_hand_out
from trainer.distributed.processes import World
from trainer.optimizer import average_weight, make_optimizer
from trainer.recipe.groups import Setting, grouped

if TYPE_CHECKING:
    from trainer.checkpoint import Behind


class Sharded:
    """The parameters that a stage trains, sharded over all workers by rows.

    shard_over: over groups of so many workers of neighbouring ranks; None: over all. reshard: drop
    a block's gathered weights after its forward pass. bf16: weights
    are gathered and blocks computed in bf16; shards, gradients and sums stay fp32.
    Every worker must make the same forward passes: gathering weights is something all do together.
    """

    def __init__(
        self,
        transformer: nn.Module,
        names: list[str],
        ema: float | None,
        world: World,
        *,
        warmup: bool = True,
        settings: Mapping[str, Setting] | None = None,
        bf16: bool = False,
        shard_over: int | None = None,
        reshard: bool = True,
    ) -> None:
        adapters.set_trainable(transformer, names)
        mesh, self.copies = sharding_mesh(world, shard_over)
        policy = (
            MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
            if bf16
            else MixedPrecisionPolicy()
        )
        source = weights_to_hand_out(transformer)
        blocks: Any = getattr(transformer, base_of(transformer).blocks)
        for module in (*blocks, transformer):
            sharded: Any = fully_shard(
                module,
                mesh=mesh,
                mp_policy=policy,
                reshard_after_forward=None if reshard else False,  # None: all but the root
            )
            sharded.set_gradient_divide_factor(1.0)  # the loss is divided by the global batch
            sharded.set_force_sum_reduction_for_comms(True)
        if source is not None:
            hand_out_parts(transformer, source, world)
        by_name = dict(transformer.named_parameters())
        self.parameters: dict[str, Any] = {name: by_name[name] for name in names}
        self.groups = grouped(self.parameters, settings)
        self.locals = {name: nn.Parameter(p.to_local()) for name, p in self.parameters.items()}
        self.totals = torch.zeros(3, device=world.device)
        self.loss, self.stop, self.due = self.totals.split(1)
        self.world, self.ema, self.warmup = world, ema, warmup
        self.modules = [m for m in transformer.modules() if isinstance(m, FSDPModule)]
        self.average = (
            {name: p.detach().clone() for name, p in self.locals.items()}
            if ema is not None
            else None
        )

    def zero_grad(self, passes: int = 1) -> None:
        self.totals.zero_()
        for parameter in self.parameters.values():
            parameter.grad = None

    def reduce(self, world: World) -> None:
        """Loss and requests; gradients were summed during the backward pass."""
        world.add_up(self.totals)
        for name, local in self.locals.items():
            grad = self.parameters[name].grad
            local.grad = torch.zeros_like(local) if grad is None else grad.to_local()

    def clip(self, limit: float) -> torch.Tensor:
        grads = [local.grad for local in self.locals.values() if local.grad is not None]
        square = torch.stack([grad.square().sum() for grad in grads]).sum()
        self.world.add_up(square)
        norm = (square / self.copies).sqrt()
        torch._foreach_mul_(grads, (limit / (norm + 1e-6)).clamp(max=1.0))
        return norm

    def optimizer(self, options: Optimizer) -> torch.optim.Optimizer:
        groups = [
            {"params": [self.locals[name] for name in group.names], **group.about(options)}
            for group in self.groups
        ]
        return make_optimizer(groups, options)

    def update_average(self, skipped: torch.Tensor, updates: torch.Tensor) -> None:
        if self.average is not None and self.ema is not None:
            weight = average_weight(self.ema, updates, warmup=self.warmup) * (1.0 - skipped)
            for name, average in self.average.items():
                average.lerp_(self.locals[name].detach(), weight)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        if self.average is None:
            yield
            return
        kept = {name: p.detach().clone() for name, p in self.locals.items()}
        self._fill(self.average)
        try:
            yield
        finally:
            self._fill(kept)

    @torch.no_grad()
    def _fill(self, values: Mapping[str, torch.Tensor]) -> None:
        self._forget_gathered()
        for name, local in self.locals.items():
            local.copy_(values[name])

    def _forget_gathered(self) -> None:
        """Drop what a forward pass gathered: the weights change now."""
        for module in self.modules:
            module.reshard()

    def hand_on(self) -> None:
        if self.average is not None:
            self._fill(self.average)

    def tensors(self) -> dict[str, torch.Tensor]:
        """All trained tensors in full, on the CPU of rank 0; none elsewhere. Call on every worker:
        they are gathered one by one."""
        found = {}
        for name, parameter in self.parameters.items():
            whole = parameter.full_tensor().detach()
            if self.world.rank == 0:
                found[name] = whole.cpu()
        return found

    # ---- checkpoints --------------------------------------------------------------------------

    def state(self, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
        """`KIND/NAME` -> tensor, each worker's part of it."""
        kinds: dict[str, Mapping[str, torch.Tensor]] = {"values": self.locals}
        if self.average is not None:
            kinds["average"] = self.average
        for moment in ("exp_avg", "exp_avg_sq"):
            kinds[moment] = {
                name: optimizer.state[local].get(moment, torch.zeros_like(local))
                for name, local in self.locals.items()
            }
        return {
            f"{kind}/{name}": self._spread(name, tensor)
            for kind, tensors in kinds.items()
            for name, tensor in tensors.items()
        }

    def _spread(self, name: str, local: torch.Tensor) -> torch.Tensor:
        like = self.parameters[name]
        return DTensor.from_local(
            local.detach(),
            like.device_mesh,
            like.placements,
            shape=like.shape,
            stride=like.stride(),
            run_check=False,
        )

    def saving(
        self,
        folder: Path,
        optimizer: torch.optim.Optimizer,
        behind: Behind | None = None,
    ) -> Callable[[], object]:
        """What writes this worker's part; it ends when all have written. On every worker.

        behind: the part is copied to CPU memory at once, and written by a thread.
        """
        writer = dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True)
        state = self.state(optimizer)
        if behind is None:
            return lambda: dcp.save(state, storage_writer=writer)
        begun: Any = dcp.async_save(state, storage_writer=writer, process_group=behind.group)
        result: Callable[[], object] = begun.result
        return result

    def restore(self, folder: Path, optimizer: torch.optim.Optimizer, steps: int) -> None:
        """Every worker reads its part, whoever wrote it."""
        self._forget_gathered()
        for local in self.locals.values():
            optimizer.state[local] = {
                "step": torch.tensor(float(steps), device=local.device),
                "exp_avg": torch.zeros_like(local),
                "exp_avg_sq": torch.zeros_like(local),
            }
        state = self.state(optimizer)
        dcp.load(state, storage_reader=dcp.HuggingFaceStorageReader(str(folder)))
        for key, tensor in state.items():
            kind, name = key.split("/", 1)
            local = self.locals[name]
            targets = {"values": local.data, **optimizer.state[local]}
            if self.average is not None:
                targets["average"] = self.average[name]
            loaded: Any = tensor
            targets[kind].copy_(loaded.to_local())


def sharding_mesh(world: World, shard_over: int | None) -> tuple[DeviceMesh, int]:
    """How the workers share the network, and how many copies of it they have between them.

    ValueError for groups that the workers do not make up.
    """
    over = world.size if shard_over is None else shard_over
    copies, rest = divmod(world.size, over)
    if rest:
        raise ValueError(f"shard_over: {over} does not divide {world.size} workers")
    if shard_over is None:
        return init_device_mesh(world.device.type, (over,)), 1
    names = ("copies", "shards")
    return init_device_mesh(world.device.type, (copies, over), mesh_dim_names=names), copies
