"""Weights that one worker reads and the others receive.

Where a stage shards the network, no worker but rank 0 opens the model's files or ever holds the
network whole: the others make it without weights (on the device ``meta``), and get each tensor from
rank 0, of which they keep their part. `first_only` marks a network of which rank 0 has the weights.
"""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import distribute_tensor

from trainer.distributed.processes import World


def hand_out(transformer: Any, world: World) -> None:
    """Give all workers the weights that rank 0 has. Call on every worker; nothing happens to a
    network that they have already."""
    if not getattr(transformer, "first_only", False):
        return
    _make_room(transformer, world.device)
    transformer.to(world.device)
    for tensor in chain(transformer.parameters(), transformer.buffers()):
        dist.broadcast(tensor.data, 0)
    transformer.first_only = False


def weights_to_hand_out(transformer: Any) -> dict[str, torch.Tensor] | None:
    """Parameters as they are before they are sharded; None where all workers have them."""
    if not getattr(transformer, "first_only", False):
        return None
    return {name: parameter.data for name, parameter in transformer.named_parameters()}


def hand_out_parts(transformer: Any, source: dict[str, torch.Tensor], world: World) -> None:
    """Fill the parts of a sharded network from what rank 0 has in `source`, one whole tensor at a
    time. Call on every worker."""
    _make_room(transformer, world.device)
    for name, parameter in transformer.named_parameters():
        if world.rank == 0:
            whole = source[name].to(world.device).contiguous()
        else:
            whole = torch.empty(parameter.shape, dtype=parameter.dtype, device=world.device)
        dist.broadcast(whole, 0)
        part = distribute_tensor(
            whole, parameter.device_mesh, parameter.placements, src_data_rank=None
        )
        parameter.to_local().detach().copy_(part.to_local())
    for buffer in transformer.buffers():
        dist.broadcast(buffer, 0)
    transformer.first_only = False


def _make_room(transformer: Any, device: torch.device) -> None:
    if any(tensor.is_meta for tensor in chain(transformer.parameters(), transformer.buffers())):
        transformer.to_empty(device=device)
