"""Frozen matrices in 8 or 4 bits, in plain torch: computed with in the precision of the run.

`int8`: each row is rounded to -127..127 times one fp32 scale, its greatest magnitude / 127.
`nf4`: 64 numbers after another share one fp32 scale, their greatest magnitude, and each is one of
16 levels, the quantiles of a normal distribution (Dettmers et al., QLoRA, arXiv 2305.14314,
section 3; their double quantisation of the scales is not done).

Nothing of a matrix in full is kept between forward and backward pass: both make it again.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn import functional

GROUP = 64  # numbers of a scale of nf4


def quantize(layer: nn.Linear, kind: str) -> bool:
    """Make a frozen linear layer a quantised one, in place; False, and nothing done, where its
    numbers do not divide into groups."""
    if bits(layer, kind) is None:
        return False
    values = layer.weight.data.float()
    if kind == "int8":
        scale = values.abs().amax(1).clamp_min(1e-12) / 127
        packed = (values / scale[:, None]).round().to(torch.int8)
    else:
        groups = values.reshape(-1, GROUP)
        scale = groups.abs().amax(1).clamp_min(1e-12)
        levels = nf4_levels().to(values)
        nearest = torch.bucketize(
            groups / scale[:, None], (levels[1:] + levels[:-1]) / 2, out_int32=True
        )
        pairs = nearest.to(torch.uint8).view(-1, 2)
        packed = pairs[:, 0] * 16 + pairs[:, 1]
    layer.__class__ = QuantizedLinear
    layer.weight = nn.Parameter(packed, requires_grad=False)
    layer.register_buffer("scale", scale, persistent=False)
    return True


def bits(layer: nn.Linear, kind: str) -> float | None:
    """Bits a number of a matrix, its scales included; None where it cannot be quantised."""
    if kind == "int8":
        return 8 + 32 / layer.in_features
    whole = layer.in_features * layer.out_features % GROUP == 0
    return 4 + 32 / GROUP if whole else None


@cache
def nf4_levels() -> torch.Tensor:
    """The 16 levels of nf4, float32, from -1 to 1: quantiles of the normal distribution at evenly
    spaced probabilities, eight below 0, 0 itself and eight above less the doubled one, scaled to 1.
    As ``create_normal_map`` of bitsandbytes makes them (``offset`` 0.9677083)."""
    offset = 0.9677083

    def quantiles(count: int) -> torch.Tensor:
        spaced = torch.linspace(offset, 0.5, count, dtype=torch.float64)[:-1]
        return torch.special.ndtri(spaced)

    below, above = -quantiles(8), quantiles(9)
    levels = torch.cat([below, torch.zeros(1, dtype=torch.float64), above]).sort().values
    return (levels / levels.abs().max()).float()


def full_matrix(
    packed: torch.Tensor, scale: torch.Tensor, shape: tuple[int, int], dtype: torch.dtype
) -> torch.Tensor:
    """The matrix that a packed one stands for."""
    if packed.dtype == torch.int8:
        return packed.to(dtype).mul_(scale.to(dtype)[:, None])
    pairs = nf4_pairs().to(packed.device, dtype)[packed.int()]
    return pairs.view(-1, GROUP).mul_(scale.to(dtype)[:, None]).view(shape)


@cache
def nf4_pairs() -> torch.Tensor:
    """``[256, 2]``: the two levels of each byte."""
    levels = nf4_levels()
    return torch.stack([levels.repeat_interleave(16), levels.repeat(16)], 1)


class QuantizedLinear(nn.Linear):
    """A frozen linear layer with a packed ``weight`` and its ``scale``."""

    scale: torch.Tensor

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        kind = values.device.type
        if torch.is_autocast_enabled(kind):
            values = values.to(torch.get_autocast_dtype(kind))
        shape = (self.out_features, self.in_features)
        result: torch.Tensor = _Product.apply(values, self.weight, self.scale, self.bias, shape)
        return result


class _Product(torch.autograd.Function):
    """x W^T + b, with a gradient of x alone."""

    @staticmethod
    def forward(
        context: Any,
        values: torch.Tensor,
        packed: torch.Tensor,
        scale: torch.Tensor,
        bias: torch.Tensor | None,
        shape: tuple[int, int],
    ) -> torch.Tensor:
        context.save_for_backward(packed, scale)
        context.shape = shape
        full = full_matrix(packed, scale, shape, values.dtype)
        return functional.linear(values, full, None if bias is None else bias.to(values.dtype))

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> Any:
        (gradient,) = gradients
        packed, scale = context.saved_tensors
        full = full_matrix(packed, scale, context.shape, gradient.dtype)
        return gradient @ full, None, None, None, None
