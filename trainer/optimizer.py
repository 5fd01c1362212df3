"""The optimizer: by name, which parameters decay, and the weight of the moving average."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import torch

from manifests.train_stage import Optimizer


def average_weight(ema: float, updates: torch.Tensor, *, warmup: bool) -> torch.Tensor | float:
    """How far the moving average goes towards the weights, after `updates` steps of it.

    With warm-up the decay is (1 + n) / (10 + n) until that reaches `ema`: the rule of TensorFlow's
    `ExponentialMovingAverage(num_updates=n)` and of diffusers' `EMAModel`
    (`src/diffusers/training_utils.py`, `get_decay`).
    """
    return (9.0 / (10.0 + updates)).clamp(min=1.0 - ema) if warmup else 1.0 - ema


def decays(name: str, parameter: torch.Tensor) -> bool:
    """Whether weight decay may shrink a parameter: matrices and convolutions, but no norm, no bias
    and no embedding of the layers."""
    return parameter.ndim > 1 and not name.startswith("layer_embedding.")


def adamw_settings(options: Optimizer) -> dict[str, Any]:
    return {
        "lr": 1e-3,  # set before each step
        "betas": options.betas,
        "eps": options.eps,
    }


def muon_settings(options: Optimizer) -> dict[str, Any]:
    """Of torch's Muon. Its updates are scaled to the size of AdamW's, so that one rate serves both
    (`match_rms_adamw`: Liu et al. 2025, "Muon is scalable for LLM training")."""
    return {"lr": 1e-3, "momentum": options.betas[1], "adjust_lr_fn": "match_rms_adamw"}


def make_optimizer(groups: list[dict[str, Any]], options: Optimizer) -> torch.optim.Optimizer:
    """The optimizer that a manifest names. `found_inf`, when it is not 0, makes a step do nothing.

    groups: as torch takes them, with `matrix` true where the parameters are Muon's.
    ValueError where the optimizer's library is not installed.
    """
    settings = adamw_settings(options)
    if options.kind == "adamw8bit":
        return skipping(library("optimizer kind", "adamw8bit", "bitsandbytes.optim", "AdamW8bit"))(
            groups, **settings
        )
    if options.kind == "prodigy":
        return skipping(library("optimizer kind", "prodigy", "prodigyopt", "Prodigy"))(
            groups, **settings | {"lr": 1.0}
        )
    rest = [group for group in groups if not group["matrix"]]
    plain = [torch.optim.AdamW(rest, **settings, fused=True)] if rest else []
    if len(rest) == len(groups):
        return plain[0]  # fused: it can skip a step on the device
    matrices = [group for group in groups if group["matrix"]]
    return Several(torch.optim.Muon(matrices, **muon_settings(options)), *plain)


def moment_bytes(kind: str, trained: int, matrices: int) -> float:
    """Bytes of an optimizer's state for so many parameters, `matrices` of which are Muon's.

    AdamW has two numbers of four bytes a parameter; in 8 bits two of one byte, and a scale of each
    for 256 of them; Muon one; Prodigy four (its moments, a sum, and where it began).
    """
    if kind == "adamw8bit":
        return trained * (2 + 8 / 256)
    if kind == "prodigy":
        return 16.0 * trained
    return 8.0 * trained - (4.0 * matrices if kind == "muon" else 0.0)


def library(option: str, kind: str, module: str, name: str) -> Any:
    """Something of an optional library; ValueError that names it where it is not installed.

    option, kind: what the manifest says that needs it.
    """
    try:
        return getattr(import_module(module), name)
    except ImportError:
        package = module.split(".")[0]
        raise ValueError(
            f"{option} {kind} needs {package}: pip install {package}, or choose another"
        ) from None


def skipping(optimizer: Any) -> Any:
    """An optimizer's class whose `step` knows `found_inf`; it waits for the device to read it."""

    class Skipping(optimizer):  # type: ignore[misc, valid-type]
        found_inf: torch.Tensor | None = None

        def step(self, closure: Any = None) -> Any:
            if self.found_inf is None or not bool(self.found_inf):
                return super().step(closure)

    return Skipping


class Several:
    """Optimizers of different parameters as one, with what the trainer asks of one: their groups
    and states one after the other. A bad step waits for the device, as `skipping` does."""

    def __init__(self, *optimizers: torch.optim.Optimizer) -> None:
        self.optimizers = optimizers
        self.found_inf: torch.Tensor | None = None

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for each in self.optimizers for group in each.param_groups]

    @property
    def state(self) -> dict[torch.Tensor, dict[str, Any]]:
        return {flat: state for each in self.optimizers for flat, state in each.state.items()}

    def step(self) -> None:
        if self.found_inf is None or not bool(self.found_inf):
            for each in self.optimizers:
                each.step()

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, said: Mapping[str, Any]) -> None:
        """said: `state`, by number of the parameter in the order of the groups."""
        first = 0
        for each in self.optimizers:
            count = sum(len(group["params"]) for group in each.param_groups)
            own = {i: said["state"][first + i] for i in range(count)}
            each.load_state_dict({**each.state_dict(), "state": own})
            first += count
