"""The optimizer: which parameters decay, its settings, and the weight of the moving average."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

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


def parameter_groups(
    shrunk: Sequence[nn.Parameter], rest: Sequence[nn.Parameter], options: Optimizer
) -> list[dict[str, Any]]:
    """What an optimizer takes: the parameters that weight decay shrinks, and the others."""
    other = options.weight_decay if options.decay_on == "all" else 0.0
    groups = [(shrunk, options.weight_decay), (rest, other)]
    return [
        {"params": list(each), "weight_decay": decay}
        for each, decay in groups
        if sum(parameter.numel() for parameter in each)
    ]


def adamw_settings(options: Optimizer) -> dict[str, Any]:
    return {
        "lr": 1e-3,  # set before each step
        "betas": options.betas,
        "eps": options.eps,
    }


def eight_bit_optimizer(
    groups: list[dict[str, Any]], settings: Mapping[str, Any]
) -> torch.optim.Optimizer:
    """bitsandbytes' AdamW8bit. It knows no `found_inf`, so a bad step waits for the device."""
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError:
        raise ValueError(
            "optimizer kind adamw8bit needs bitsandbytes: pip install bitsandbytes, or use adamw"
        ) from None

    class Skipping(AdamW8bit):  # type: ignore[misc, valid-type]
        found_inf: torch.Tensor | None = None

        def step(self, closure: Any = None) -> Any:
            if self.found_inf is None or not bool(self.found_inf):
                return super().step(closure)

    return Skipping(groups, **settings)
