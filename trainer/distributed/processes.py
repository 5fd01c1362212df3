"""The processes that train together: found, joined, and told when to stop."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from layerflow.model.base import base_of
from layerflow.model.parallel.context import Context
from manifests.train import TrainManifest


@dataclass(frozen=True)
class World:
    """This process among all that train."""

    rank: int
    size: int
    device: torch.device

    def add_up(self, tensor: torch.Tensor) -> None:
        """Sum a tensor over all ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)

    def tell(self, value: Any) -> Any:
        """What rank 0 gives, on every rank."""
        said = [value]
        if self.size > 1:
            dist.broadcast_object_list(said, 0, device=self.device)
        return said[0]

    def wait(self) -> None:
        if self.size > 1:
            dist.barrier()

    def log(self, log: Callable[[str], None]) -> Callable[[str], None]:
        """``log`` in the first process; elsewhere nothing is said."""
        return log if self.rank == 0 else lambda line: None

    def sharing(self, processes: int) -> World:
        """Which part of the samples this process has, where so many (of neighbouring ranks)
        compute each sample together. Sums over it are those over all processes."""
        return World(self.rank // processes, self.size // processes, self.device)


ALONE = World(0, 1, torch.device("cpu"))


def share_sequences(transformer: Any, world: World, processes: int) -> None:
    """Let so many processes compute each sequence together. ValueError for a number that does not
    divide theirs, and for a base that cannot."""
    if processes == 1:
        return
    groups, rest = divmod(world.size, processes)
    if rest:
        raise ValueError(f"context_parallel: {processes} does not divide {world.size} workers")
    names = ("samples", "context")
    mesh = init_device_mesh(world.device.type, (groups, processes), mesh_dim_names=names)
    base_of(transformer).share_sequence(transformer, Context(mesh["context"]))


def uses_gpu(manifest: TrainManifest) -> bool:
    """Whether this process is to train on a GPU. ValueError when it is, and sees none."""
    there = torch.cuda.is_available()
    if manifest.wants_gpus and not there:
        raise ValueError(
            "the manifest asks for a GPU, but torch sees no GPU in this process: check the driver "
            f"and that torch was built for it (torch {torch.__version__}), or say `gpus: false` "
            "and no accelerator_type"
        )
    return there if manifest.wants_gpus is None else manifest.wants_gpus


@contextmanager
def join_world(manifest: TrainManifest) -> Iterator[World]:
    """The process group that is there (Ray Train's), or torchrun's, or none for one process."""
    gpus = uses_gpu(manifest)
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    sharded = any(stage.parallel == "fsdp" for stage in manifest.stages)
    started = not dist.is_initialized() and (several or sharded)
    local = int(os.environ.get("LOCAL_RANK", "0"))
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    device = (
        torch.device("cuda", local % torch.cuda.device_count()) if gpus else torch.device("cpu")
    )
    if gpus:
        torch.cuda.set_device(device)
    threads = manifest.threads
    if threads is None and beside > 1:  # two workers that both use all cores starve each other
        threads = max(1, len(os.sched_getaffinity(0)) // beside)
    if threads is not None:
        torch.set_num_threads(threads)
    if started:
        backend, minutes = "nccl" if gpus else "gloo", manifest.collective_minutes
        if several:
            patience = timedelta(minutes=minutes) if minutes else None
            dist.init_process_group(backend, timeout=patience)
        else:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        if dist.is_initialized():
            yield World(dist.get_rank(), dist.get_world_size(), device)
        else:
            yield World(0, 1, device)
    finally:
        if started:
            dist.destroy_process_group()


@contextmanager
def on_sigterm(action: Callable[[], object]) -> Iterator[None]:
    """SIGTERM calls `action` within the block. Outside the main thread Python takes no signals:
    nothing happens then."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: action())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def until_terminated(event: threading.Event | None) -> Iterator[threading.Event]:
    """An event that SIGTERM sets, so that the loop saves and ends; outside the main thread it is
    whoever passed the event that sets it."""
    event = event or threading.Event()
    with on_sigterm(event.set):
        yield event
