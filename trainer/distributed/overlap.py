"""Gradients that are summed over the workers while the backward pass still runs.

A stage's gradients lie in one tensor. It is cut into pieces of neighbouring parameters, and a piece
is sent as soon as the step's last backward pass has filled it. Pieces go in one order on all
workers, from the network's end to its beginning, since what one worker sends must be what the
others send; a piece that no pass fills here goes after the last one.

Sums of two workers are those of one message, bit by bit; with more, the order of a sum may depend
on where a number lies in its piece.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist

PIECE = 6 << 20  # numbers: 24 MiB


class Overlap:
    """parameters: name -> parameter, in the order in which their gradients lie in `grads`. depths:
    of each the place of its use in the network, the first is 0. rest: what is sent at the end."""

    def __init__(
        self,
        parameters: Mapping[str, torch.Tensor],
        depths: Mapping[str, int],
        grads: torch.Tensor,
        rest: torch.Tensor,
        *,
        size: int = PIECE,
    ) -> None:
        pieces: list[list[str]] = [[]]
        filled = 0
        for name, parameter in parameters.items():
            if filled >= size:
                pieces.append([])
                filled = 0
            pieces[-1].append(name)
            filled += parameter.numel()
        lengths = [sum(parameters[name].numel() for name in names) for names in pieces]
        found = list(zip(pieces, grads.split(lengths), strict=True))
        found.sort(key=lambda piece: -min(depths[name] for name in piece[0]))
        self.pieces = [piece for _, piece in found]
        self.rest = rest
        self.sizes = [len(names) for names, _ in found]
        self.missing = list(self.sizes)
        self.handles: list[Any] = []
        self.hooks = [
            parameters[name].register_post_accumulate_grad_hook(self._counter(index))
            for index, (names, _) in enumerate(found)
            for name in names
        ]
        self.begin(1)

    def begin(self, passes: int) -> None:
        """Start of a step of so many backward passes on this worker."""
        self.missing = [passes * size for size in self.sizes]

    def _counter(self, index: int) -> Any:
        def filled(parameter: torch.Tensor) -> None:
            self.missing[index] -= 1
            while len(self.handles) < len(self.pieces) and not self.missing[len(self.handles)]:
                self._send()

        return filled

    def _send(self) -> None:
        piece = self.pieces[len(self.handles)]
        self.handles.append(dist.all_reduce(piece, async_op=True))

    def finish(self) -> None:
        """End of the step's passes: all that was not sent, and wait for the sums."""
        while len(self.handles) < len(self.pieces):
            self._send()
        dist.all_reduce(self.rest)
        for handle in self.handles:
            handle.wait()
        self.handles.clear()

    def end(self) -> None:
        for hook in self.hooks:
            hook.remove()
