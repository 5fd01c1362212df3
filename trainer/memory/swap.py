"""Frozen weights of the blocks in CPU memory; a block's come to the device when it runs.

Two places on the device take turns. While a block computes in one, the weights of the block that
runs after it (in the backward pass: before it) are copied into the other, on a stream of their own.
A place is written over when all work that was queued before has read it, so the host waits for
nothing. That asks for `checkpointing`: the backward pass runs each block forward once more, and
what it then saves of the weights is used before the place changes hands.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

PLACES = 2
ALIGNED = 64  # bytes: at which each tensor begins


@dataclass(frozen=True)
class Part:
    """One tensor of a block: where it belongs, and how it lies in CPU memory and in its place."""

    module: nn.Module
    name: str
    here: torch.Tensor
    there: torch.Tensor


class Swap:
    """blocks: all of the network, in order. frozen: for each its modules with frozen weights, all
    of whose tensors are swapped. After this they lie in (pinned) CPU memory; `attach` begins."""

    def __init__(
        self, blocks: Sequence[nn.Module], frozen: Sequence[Sequence[nn.Module]], device: Any
    ) -> None:
        self.device = torch.device(device)
        chosen = [index for index, modules in enumerate(frozen) if modules]
        self.blocks = [blocks[index] for index in chosen]
        tensors = [named_tensors(frozen[index]) for index in chosen]
        sizes = [sum(padded(t) for _, _, t in each) for each in tensors]
        self.places = torch.empty(PLACES, max(sizes, default=0), dtype=torch.uint8, device=device)
        self.flats = [self.pack(each, size) for each, size in zip(tensors, sizes, strict=True)]
        self.parts = [self.lay_out(index, each) for index, each in enumerate(tensors)]
        self.stored = {id(part.here) for parts in self.parts for part in parts}
        self.held: list[int | None] = [None] * PLACES
        self.last = -1
        gpu = self.device.type == "cuda"
        self.stream = torch.cuda.Stream(self.device) if gpu else None
        self.ready: list[Any] = [None] * PLACES
        self.hooks: list[Any] = []

    def pack(self, tensors: Sequence[Any], size: int) -> torch.Tensor:
        """All bytes of a block after one another, pinned where that makes copies quick."""
        flat = torch.empty(size, dtype=torch.uint8, pin_memory=self.device.type == "cuda")
        for view, (_, _, tensor) in zip(views(flat, tensors), tensors, strict=True):
            view.copy_(tensor.detach())
        return flat

    def lay_out(self, index: int, tensors: Sequence[Any]) -> list[Part]:
        here, there = self.flats[index], self.places[index % PLACES]
        parts = []
        for (module, name, tensor), cpu, gpu in zip(
            tensors, views(here, tensors), views(there, tensors), strict=True
        ):
            tensor.data = cpu
            if isinstance(tensor, nn.Parameter):
                gpu = nn.Parameter(gpu, requires_grad=False)
            parts.append(Part(module, name, tensor, gpu))
        return parts

    def attach(self) -> Swap:
        for index, block in enumerate(self.blocks):
            self.hooks += [
                block.register_forward_pre_hook(lambda *_, index=index: self.enter(index)),
                # recomputation ends in an exception once it has what it needs
                block.register_forward_hook(
                    lambda *_, index=index: self.leave(index), always_call=True
                ),
            ]
        return self

    def detach(self) -> None:
        for hook in self.hooks:
            hook.remove()
        self.hooks.clear()

    def enter(self, index: int) -> None:
        """Before a block: its weights are on the device, and those of the next one on the way."""
        self.bring(index)
        if self.stream is not None:
            torch.cuda.current_stream(self.device).wait_event(self.ready[index % PLACES])
        for part in self.parts[index]:
            put(part.module, part.name, part.there)
        following = index + 1 if index > self.last else index - 1
        self.last = index
        if 0 <= following < len(self.blocks):
            self.bring(following)

    def leave(self, index: int) -> None:
        for part in self.parts[index]:
            put(part.module, part.name, part.here)

    def bring(self, index: int) -> None:
        """Copy a block's weights into its place, unless they are there."""
        place = index % PLACES
        if self.held[place] == index:
            return
        self.held[place] = index
        flat = self.flats[index]
        if self.stream is not None:  # whoever read the place before has been queued there
            self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream) if self.stream is not None else nullcontext():
            self.places[place, : len(flat)].copy_(flat, non_blocking=True)
            if self.stream is not None:
                self.ready[place] = self.stream.record_event()


def named_tensors(modules: Sequence[nn.Module]) -> list[tuple[nn.Module, str, torch.Tensor]]:
    """Parameters and buffers of the modules themselves."""
    return [
        (module, name, tensor)
        for module in modules
        for own in (module._parameters, module._buffers)
        for name, tensor in own.items()
        if tensor is not None
    ]


def put(module: nn.Module, name: str, tensor: Any) -> None:
    """Make a tensor a module's, without the checks of `setattr`."""
    (module._parameters if name in module._parameters else module._buffers)[name] = tensor


def padded(tensor: torch.Tensor) -> int:
    return -(-tensor.numel() * tensor.element_size() // ALIGNED) * ALIGNED


def views(flat: torch.Tensor, tensors: Sequence[Any]) -> list[torch.Tensor]:
    """Pieces of a flat tensor of bytes, one in the shape and dtype of each of the tensors."""
    found, start = [], 0
    for _, _, tensor in tensors:
        size = tensor.numel() * tensor.element_size()
        found.append(flat[start : start + size].view(tensor.dtype).view(tensor.shape))
        start += padded(tensor)
    return found
