"""Frozen matrices in 8 or 4 bits, computed with in the precision of the run.

`int8`: each row is rounded to -127..127 times one fp32 scale, its greatest magnitude / 127.
`nf4`: 64 numbers after another share one fp32 scale, their greatest magnitude, and each is one of
16 levels, the quantiles of a normal distribution (Dettmers et al., QLoRA, arXiv 2305.14314,
section 3; their double quantisation of the scales is not done). bitsandbytes packs and unpacks it.

Nothing of a matrix in full is kept between forward and backward pass: both make it again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from trainer.optimizer import library

GROUP = 64  # numbers of a scale of nf4


def quantize(layer: nn.Linear, kind: str) -> None:
    """Make a frozen linear layer a quantised one, in place. ValueError where the library of `nf4`
    is not installed."""
    values = layer.weight.data.float()
    if kind == "int8":
        scale = values.abs().amax(1).clamp_min(1e-12) / 127
        packed = (values / scale[:, None]).round().to(torch.int8)
    else:
        pack = library("quantize", kind, "bitsandbytes.functional", "quantize_4bit")
        groups = functional.pad(values.flatten(), (0, -values.numel() % GROUP)).view(-1, GROUP)
        packed, state = pack(groups, blocksize=GROUP, quant_type="nf4")
        scale = state.absmax
    layer.__class__ = QuantizedLinear
    layer.weight = nn.Parameter(packed, requires_grad=False)
    layer.register_buffer("scale", scale, persistent=False)


def packed_bytes(layer: nn.Linear, kind: str) -> int:
    """Bytes of a layer's matrix and its scales, once it is quantised."""
    count = layer.in_features * layer.out_features
    if kind == "int8":
        return count + 4 * layer.out_features
    return -(-count // GROUP) * (GROUP // 2 + 4)


class QuantizedLinear(nn.Linear):
    """A frozen linear layer with a packed ``weight`` and its ``scale``."""

    scale: torch.Tensor

    def full(self, dtype: torch.dtype) -> torch.Tensor:
        """The matrix that the packed one stands for."""
        return full_matrix(self.weight, self.scale, (self.out_features, self.in_features), dtype)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        kind = values.device.type
        if torch.is_autocast_enabled(kind):
            values = values.to(torch.get_autocast_dtype(kind))
        shape = (self.out_features, self.in_features)
        result: torch.Tensor = _Product.apply(values, self.weight, self.scale, self.bias, shape)
        return result


def full_matrix(
    packed: torch.Tensor, scale: torch.Tensor, shape: tuple[int, int], dtype: torch.dtype
) -> torch.Tensor:
    if packed.dtype == torch.int8:
        return packed.to(dtype).mul_(scale.to(dtype)[:, None])
    # a group a row: its CPU kernel begins a group with each row
    groups: torch.Tensor = torch.ops.bitsandbytes.dequantize_4bit(
        packed, scale, GROUP, "nf4", (len(scale), GROUP), dtype
    )
    return groups.flatten()[: shape[0] * shape[1]].view(shape)


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
