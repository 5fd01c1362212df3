"""Context parallelism by diffusers' plan, on two processes of one machine."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from diffusers import ContextParallelConfig
from torch import Tensor

from layerflow.clip import PROMPTED
from layerflow.model.layers import native_layout
from tests.layerflow.model.wan.test_transformer import GIVEN, batch, marked


def run() -> tuple[Any, Callable[[], Tensor]]:
    """Our network and its output on three layers of one frame, so that two processes meet in the
    middle of a frame."""
    model = marked()
    latents, text, timestep = batch(3)
    layout, given = native_layout(3, PROMPTED), GIVEN[:, [0, 2, 3]]
    return model, lambda: model(latents, text, timestep, given, layout, return_dict=False)[0]


def part(rank: int, port: int, folder: str) -> None:
    """One of two processes: output and summed gradients to a file."""
    torch.set_num_threads(1)
    torch.accelerator.device_count = lambda: 1  # diffusers counts devices, and a CPU has none
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    model, forward = run()
    model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2))
    output = forward()
    output.square().mean().backward()
    for parameter in model.parameters():
        dist.all_reduce(parameter.grad)
    if rank == 0:
        gradients = {name: p.grad for name, p in model.named_parameters()}
        torch.save({"output": output.detach(), **gradients}, Path(folder) / "found.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_compute_what_one_computes(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(part, (port, str(tmp_path)), nprocs=2)
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    model, forward = run()
    output = forward()
    output.square().mean().backward()
    assert torch.allclose(found["output"], output, atol=1e-6)
    for name, parameter in model.named_parameters():
        scale = parameter.grad.abs().max()
        assert (found[name] - parameter.grad).abs().max() < 1e-4 * scale + 1e-9, name
