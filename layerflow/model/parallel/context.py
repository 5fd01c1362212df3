"""Context parallelism in training: several processes compute one sequence, a part of it each.

Everything but attention works token by token. So each process has a part of the tokens, and
attention meets the keys and values of all, gathered from all processes, with its own queries: any
number of heads and any lengths, unlike an exchange of heads. Gradients of keys and values are
summed where they belong. Parameters' gradients are those of the process' own tokens: summed over
the processes they are whole.

What a base must do: ``Base.share_sequence``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


class Context:
    """The processes that share a sequence, and how it lies on them in the pass that is running.

    mesh: of one dimension, these processes.
    """

    def __init__(self, mesh: DeviceMesh) -> None:
        self.mesh, self.group = mesh, mesh.get_group()
        self.rank, self.size = mesh.get_local_rank(), mesh.size()
        self.text: list[int] = []
        self.video: list[int] = []
        """Tokens of each process."""

    def begin(self, video: int, text: int = 0) -> None:
        """A pass over so many tokens begins."""
        self.video, self.text = self.sizes(video), self.sizes(text)

    def sizes(self, tokens: int) -> list[int]:
        """How many of the tokens each process has; as ``torch.tensor_split``."""
        each, rest = divmod(tokens, self.size)
        return [each + (rank < rest) for rank in range(self.size)]

    def mine(self, x: Tensor, dim: int) -> Tensor:
        """This process' part of what all of them have whole."""
        return x.tensor_split(self.size, dim)[self.rank]

    def all_tokens(self, x: Tensor, dim: int) -> Tensor:
        """Keys or values of all processes' text and video. Their gradients are summed."""
        sizes = [video + text for video, text in zip(self.video, self.text, strict=True)]
        return _gather(x, dim, sizes, self, summed=True)

    def whole(self, x: Tensor, dim: int) -> Tensor:
        """The whole video of its parts, of which all then compute the same loss: of its gradient,
        which all have, each takes its part."""
        return _gather(x, dim, self.video, self, summed=False)

    def share(
        self,
        blocks: Iterable[Any],
        attention: Callable[[Context], Any],
        own_part: Callable[..., tuple[Any, ...]],
        last: nn.Module,
    ) -> None:
        """Set up blocks whose self-attention is ``attn1``, and make the output ``[B, tokens, ...]``
        of the layer ``last`` whole.

        attention: makes their attention processor. own_part: (context, whether it is the first
        block, block, its inputs) -> the inputs of this process.
        """
        for number, block in enumerate(blocks):
            block.register_forward_pre_hook(partial(own_part, self, number == 0))
            block.attn1.set_processor(attention(self))
        last.register_forward_hook(lambda module, inputs, output: self.whole(output, 1))


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dim: int, sizes: list[int], context: Context, summed: bool
    ) -> Tensor:
        ctx.about = dim, sizes, context, summed
        padded = _padded(x, dim, max(sizes))
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded, group=context.group)
        return torch.cat(
            [part.narrow(dim, 0, n) for part, n in zip(parts, sizes, strict=True)], dim
        )

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dim, sizes, context, summed = ctx.about
        parts = grads[0].split(sizes, dim)
        own = parts[context.rank]
        if summed:
            padded = [_padded(part, dim, max(sizes)) for part in parts]
            total = torch.empty_like(padded[0])
            dist.reduce_scatter(total, padded, group=context.group)
            own = total.narrow(dim, 0, sizes[context.rank])
        return own, None, None, None, None


def _gather(x: Tensor, dim: int, sizes: list[int], context: Context, *, summed: bool) -> Tensor:
    gathered: Tensor = _Gather.apply(x, dim, sizes, context, summed)  # type: ignore[no-untyped-call]
    return gathered


def _padded(x: Tensor, dim: int, size: int) -> Tensor:
    """``x`` with zeros behind it up to a length; contiguous."""
    if x.shape[dim] == size:
        return x.contiguous()
    shape = list(x.shape)
    shape[dim] = size - x.shape[dim]
    return torch.cat([x, x.new_zeros(shape)], dim)
