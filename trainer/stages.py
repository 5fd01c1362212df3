"""What a stage trains, and how its learning rate goes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from layerflow.model import adapters
from layerflow.model.base import base_of
from layerflow.seeds import torch_seed
from manifests.train_stage import Blocks, Lora, Optimizer, Stage, block_indices
from trainer.distributed.hand_out import hand_out
from trainer.distributed.overlap import Overlap
from trainer.distributed.processes import World
from trainer.optimizer import average_weight, make_optimizer
from trainer.recipe.groups import Setting, grouped, stage_settings

if TYPE_CHECKING:
    from trainer.distributed.fsdp import Sharded


def trainable_names(transformer: nn.Module, stage: Stage) -> list[str]:
    """Names of the parameters that a stage trains, in the model's order.

    The stage's adapter must be on the model already (`attach`). ValueError for blocks that do
    not exist and for patterns of `also` that match nothing.
    """
    chosen = network_names(transformer, stage)
    if stage.trains != "full":
        for pattern in stage.trains.also:
            if not matches(chosen, pattern):
                raise ValueError(f"stage {stage.name!r}: no parameter matches {pattern!r}")
    if isinstance(stage.trains, Lora):
        chosen |= set(adapters.adapter_parameters(transformer, stage.trains.lora))
    return [name for name, _ in transformer.named_parameters() if name in chosen]


def network_names(transformer: nn.Module, stage: Stage) -> set[str]:
    """Names of the network's own parameters that a stage trains, without those of its adapter."""
    names = [name for name, _ in transformer.named_parameters() if ".lora_" not in name]
    if stage.trains == "full":
        return set(names)
    chosen: set[str] = set()
    if isinstance(stage.trains, Blocks):
        blocks = block_indices(stage.trains.blocks, num_blocks(transformer))
        prefixes = tuple(f"{base_of(transformer).blocks}.{index}." for index in blocks)
        chosen |= {name for name in names if name.startswith(prefixes)}
    for pattern in stage.trains.also:
        chosen |= matches(names, pattern)
    return chosen


def matches(names: Iterable[str], pattern: str) -> set[str]:
    """The names that a shell pattern matches, also where an adapter has made them longer."""
    return {n for n in names if fnmatchcase(n, pattern) or fnmatchcase(plain_name(n), pattern)}


def plain_name(name: str) -> str:
    """A parameter's name in the network without adapters."""
    return name.replace(".base_layer.", ".")


def num_blocks(transformer: nn.Module) -> int:
    return len(getattr(adapters.unwrap(transformer), base_of(transformer).blocks))


def attach(transformer: nn.Module, stage: Stage, seed: int) -> None:
    """Put the stage's adapter on the model, unless it is there; equal seeds give equal starts."""
    trains = stage.trains
    if not isinstance(trains, Lora) or trains.lora in adapters.adapter_names(transformer):
        return
    blocks = block_indices(trains.blocks, num_blocks(transformer))
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several are the point
        torch.manual_seed(torch_seed(seed, stage.name, "adapter"))
        adapters.add_adapter(
            transformer,
            trains.lora,
            rank=trains.rank,
            alpha=trains.file_alpha,
            targets=tuple(trains.targets or base_of(transformer).lora_targets),
            blocks=blocks,
        )


def gate_of(stage: Stage) -> int:
    """The motion gate at which a stage is judged. The motion adapter does nothing at gate 0, so a
    stage that trains it is judged at gate 1, where its clips stand still."""
    return int(isinstance(stage.trains, Lora) and stage.trains.lora == adapters.MOTION)


def learning_rate(stage: Stage, step: int) -> float:
    """Learning rate of one step: linear warm-up, then the stage's decay to `final` * lr."""
    schedule = stage.schedule
    if step < schedule.warmup:
        return stage.lr * (step + 1) / schedule.warmup
    progress = (step - schedule.warmup) / max(1, stage.steps - schedule.warmup)
    left = {
        "constant": 1.0,
        "linear": 1.0 - progress,
        "cosine": 0.5 + 0.5 * math.cos(math.pi * progress),
        "power": (1.0 - progress) ** schedule.power,
    }[schedule.decay]
    if schedule.decay == "constant":
        return stage.lr
    return stage.lr * (schedule.final + (1.0 - schedule.final) * left)


class Trained:
    """The parameters that a stage trains, laid out in one tensor, with gradient and average.

    Each parameter becomes a view of `values` and its gradient a view of `grads`, so that zeroing,
    reducing, clipping, the optimizer and the average are one operation each, and the same bytes
    whatever the number of parameters.

    Parameters that train alike lie side by side, in `groups`.

    `buffer` is `grads` followed by the three numbers that travel with them between workers:
    the step's loss, whether to stop, and whether to save.
    """

    def __init__(
        self,
        transformer: nn.Module,
        names: list[str],
        ema: float | None,
        *,
        warmup: bool = True,
        settings: Mapping[str, Setting] | None = None,
    ) -> None:
        adapters.set_trainable(transformer, names)
        by_name = dict(transformer.named_parameters())
        self.groups = grouped({name: by_name[name] for name in names}, settings)
        self.parameters = {name: by_name[name] for group in self.groups for name in group.names}
        if not self.parameters:
            raise ValueError("this stage trains no parameters")
        first = next(iter(self.parameters.values()))
        total = sum(p.numel() for p in self.parameters.values())
        self.values = torch.empty(total, dtype=torch.float32, device=first.device)
        self.buffer = torch.zeros(total + 3, dtype=torch.float32, device=first.device)
        self.grads, self.loss, self.stop, self.due = self.buffer.split([total, 1, 1, 1])
        gradients = self.views(self.grads)
        for name, view in self.views(self.values).items():
            parameter = self.parameters[name]
            view.copy_(parameter.data)
            parameter.data = view
            parameter.grad = gradients[name]
        self.ema, self.warmup = ema, warmup
        self.average = self.values.clone() if ema is not None else None
        self.overlap: Overlap | None = None

    def send_early(self, transformer: nn.Module) -> None:
        """Sum gradients over the workers while the backward pass runs. Call on every worker."""
        base = base_of(transformer)

        def depth(name: str) -> int:
            if name.startswith(f"{base.blocks}."):
                return 1 + int(name.split(".")[1])
            return 1 + num_blocks(transformer) if name.startswith(base.after_blocks) else 0

        rest = self.buffer[len(self.grads) :]
        depths = {name: depth(name) for name in self.parameters}
        self.overlap = Overlap(self.parameters, depths, self.grads, rest)

    def views(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        """The pieces of a flat tensor by parameter name, each in its parameter's shape."""
        pieces = flat.split([parameter.numel() for parameter in self.parameters.values()])
        return {
            name: piece.view(parameter.shape)
            for (name, parameter), piece in zip(self.parameters.items(), pieces, strict=True)
        }

    def load(self, flat: torch.Tensor, tensors: Mapping[str, torch.Tensor]) -> None:
        """Fill a flat tensor from named ones. ValueError if the names or shapes differ."""
        views = self.views(flat)
        if views.keys() != tensors.keys():
            odd = sorted(views.keys() ^ tensors.keys())[:3]
            raise ValueError(f"saved and trained parameters differ, for example in {odd}")
        for name, view in views.items():
            if view.shape != tensors[name].shape:
                raise ValueError(f"{name}: saved {list(tensors[name].shape)}, has {view.shape}")
            view.copy_(tensors[name])

    def update_average(self, skipped: torch.Tensor, updates: torch.Tensor) -> None:
        """One step of the moving average, after `updates` others; none when the optimizer's step
        was skipped."""
        if self.average is not None and self.ema is not None:
            weight = average_weight(self.ema, updates, warmup=self.warmup)
            self.average.lerp_(self.values, weight * (1.0 - skipped))

    def zero_grad(self, passes: int = 1) -> None:
        """Start of a step of so many backward passes: gradients and what is beside them."""
        self.buffer.zero_()
        if self.overlap is not None:
            self.overlap.begin(passes)

    def reduce(self, world: World) -> None:
        """Sum gradients, loss and requests over all ranks: one message, or what is left to send."""
        if self.overlap is None:
            world.add_up(self.buffer)
        else:
            self.overlap.finish()

    def clip(self, limit: float) -> torch.Tensor:
        """Scale the gradient down to the norm `limit`; returns its norm before, on the device."""
        norm = self.grads.norm()
        self.grads.mul_((limit / (norm + 1e-6)).clamp(max=1.0))
        return norm

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the model holds the averaged weights (if there is an average)."""
        if self.average is None:
            yield
            return
        kept = self.values.clone()
        self.values.copy_(self.average)
        try:
            yield
        finally:
            self.values.copy_(kept)

    def tensors(self) -> dict[str, torch.Tensor]:
        """All trained tensors, copied to the CPU."""
        return {n: p.detach().clone().contiguous().cpu() for n, p in self.parameters.items()}

    def optimizer(self, options: Optimizer) -> torch.optim.Optimizer:
        """The manifest's optimizer, over one tensor a group; Muon's over their matrices."""
        values, grads = self.views(self.values), self.views(self.grads)
        sizes = [sum(values[name].numel() for name in group.names) for group in self.groups]
        groups = []
        for group, flat, grad in zip(
            self.groups, self.values.split(sizes), self.grads.split(sizes), strict=True
        ):
            pairs = [(flat, grad)]
            if group.setting.matrix:
                pairs = [(values[name], grads[name]) for name in group.names]
            parameters = [nn.Parameter(value) for value, _ in pairs]
            for parameter, (_, its) in zip(parameters, pairs, strict=True):
                parameter.grad = its
            groups.append({"params": parameters, **group.about(options)})
        return make_optimizer(groups, options)

    def hand_on(self) -> None:
        """End of the stage: the model keeps the average, and views, gradients and flags go."""
        if self.average is not None:
            self.values.copy_(self.average)
        if self.overlap is not None:
            self.overlap.end()
        for parameter in self.parameters.values():
            parameter.data = parameter.data.clone()
            parameter.grad = None
            parameter.requires_grad_(False)


def lay_out(
    transformer: nn.Module,
    stage: Stage,
    world: World,
    *,
    bf16: bool,
    kind: str = "adamw",
    shards: tuple[int | None, bool] = (None, True),
    early: bool = False,
) -> Trained | Sharded:
    """The stage's parameters, whole on every worker or in parts. kind: of the optimizer. shards:
    `shard_over` and `reshard_after_forward` of the manifest. early: sum gradients while the
    backward pass runs, as parts always are."""
    names = trainable_names(transformer, stage)
    settings = stage_settings(transformer, names, stage, kind)
    how: dict[str, Any] = {"warmup": stage.ema_warmup, "settings": settings}
    if stage.parallel == "ddp":
        hand_out(transformer, world)
        trained = Trained(transformer, names, stage.ema, **how)
        if early and world.size > 1:
            trained.send_early(transformer)
        return trained
    from trainer.distributed.fsdp import Sharded

    how |= {"bf16": bf16, "shard_over": shards[0], "reshard": shards[1]}
    return Sharded(transformer, names, stage.ema, world, **how)
