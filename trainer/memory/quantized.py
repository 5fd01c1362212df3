"""Frozen matrices in 8 or 4 bits, in plain torch: computed with in the precision of the run.

`int8`: each row is rounded to -127..127 times one fp32 scale, its greatest magnitude / 127.
`nf4`: 64 numbers after another share one fp32 scale, their greatest magnitude, and each is one of
16 levels, the quantiles of a normal distribution (Dettmers et al., QLoRA, arXiv 2305.14314,
section 3; their double quantisation of the scales is not done).

Nothing of a matrix in full is kept between forward and backward pass: both make it again.
"""

from __future__ import annotations

import statistics
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
    pairs = None
    if kind == "int8":
        scale = values.abs().amax(1).clamp_min(1e-12) / 127
        packed = (values / scale[:, None]).round().to(torch.int8)
    else:
        groups = values.reshape(-1, GROUP)
        scale = groups.abs().amax(1).clamp_min(1e-12)
        levels = values.new_tensor(nf4_levels())
        between = (levels[1:] + levels[:-1]) / 2
        nearest = torch.bucketize(groups / scale[:, None], between, out_int32=True)
        two = nearest.to(torch.uint8).view(-1, 2)
        packed = two[:, 0] * 16 + two[:, 1]
        pairs = torch.stack([levels.repeat_interleave(16), levels.repeat(16)], 1)
    layer.__class__ = QuantizedLinear
    layer.weight = nn.Parameter(packed, requires_grad=False)
    layer.register_buffer("scale", scale, persistent=False)
    layer.register_buffer("pairs", pairs, persistent=False)
    return True


def bits(layer: nn.Linear, kind: str) -> float | None:
    """Bits a number of a matrix, its scales included; None where it cannot be quantised."""
    if kind == "int8":
        return 8 + 32 / layer.in_features
    whole = layer.in_features * layer.out_features % GROUP == 0
    return 4 + 32 / GROUP if whole else None


@cache
def nf4_levels() -> tuple[float, ...]:
    """The 16 levels of nf4, from -1 to 1: quantiles of the normal distribution at evenly spaced
    probabilities, seven below 0, 0 itself and eight above, scaled to 1. As ``create_normal_map`` of
    bitsandbytes makes them (``offset`` 0.9677083)."""
    normal = statistics.NormalDist()

    def quantiles(count: int) -> list[float]:
        step = (0.9677083 - 0.5) / count
        return [normal.inv_cdf(0.9677083 - step * index) for index in range(count)]

    above, below = quantiles(8), quantiles(7)
    most = max(above)
    return tuple(sorted([-each / most for each in below] + [0.0] + [e / most for e in above]))


def full_matrix(
    packed: torch.Tensor,
    scale: torch.Tensor,
    pairs: torch.Tensor | None,
    shape: tuple[int, int],
    dtype: torch.dtype,
) -> torch.Tensor:
    """The matrix that a packed one stands for. pairs: ``[256, 2]``, of nf4 the two levels of each
    byte."""
    if pairs is None:
        return packed.to(dtype).mul_(scale.to(dtype)[:, None])
    full = pairs.to(dtype)[packed.int()]
    return full.view(-1, GROUP).mul_(scale.to(dtype)[:, None]).view(shape)


class QuantizedLinear(nn.Linear):
    """A frozen linear layer with a packed ``weight``, its ``scale`` and, of nf4, ``pairs``."""

    scale: torch.Tensor
    pairs: torch.Tensor | None

    def full(self, dtype: torch.dtype) -> torch.Tensor:
        shape = (self.out_features, self.in_features)
        return full_matrix(self.weight, self.scale, self.pairs, shape, dtype)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        kind = values.device.type
        if torch.is_autocast_enabled(kind):
            values = values.to(torch.get_autocast_dtype(kind))
        shape = (self.out_features, self.in_features)
        result: torch.Tensor = _Product.apply(
            values, self.weight, self.scale, self.pairs, self.bias, shape
        )
        return result


class _Product(torch.autograd.Function):
    """x W^T + b, with a gradient of x alone."""

    @staticmethod
    def forward(
        context: Any,
        values: torch.Tensor,
        packed: torch.Tensor,
        scale: torch.Tensor,
        pairs: torch.Tensor | None,
        bias: torch.Tensor | None,
        shape: tuple[int, int],
    ) -> torch.Tensor:
        context.save_for_backward(packed, scale, pairs)
        context.shape = shape
        full = full_matrix(packed, scale, pairs, shape, values.dtype)
        return functional.linear(values, full, None if bias is None else bias.to(values.dtype))

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> Any:
        (gradient,) = gradients
        packed, scale, pairs = context.saved_tensors
        full = full_matrix(packed, scale, pairs, context.shape, gradient.dtype)
        return gradient @ full, None, None, None, None, None
