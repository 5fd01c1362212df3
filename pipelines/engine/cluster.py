"""The Ray of the corpus jobs, and the GPUs that it has."""

from __future__ import annotations

import socket
import sys
from typing import Any

from layerflow import ray_start
from layerflow.ray_start import stop_ray
from pipelines.engine.staging import InfrastructureError

__all__ = ["require_gpus", "start_ray", "stop_ray", "torch_device"]

OBJECT_STORE_BYTES = 512 << 20


def start_ray(workers: int | None = None) -> None:
    """Ray for a job: a cluster, or a local one with ``workers`` CPUs; once."""
    ray_start.start_ray(workers or 0, OBJECT_STORE_BYTES)


def require_gpus(workers: int | None = None) -> None:
    """ValueError when work that asks for a GPU meets a cluster without any.

    Else its tasks would run on nodes without one, and fail there one by one, or on the CPU.
    """
    start_ray(workers)
    import ray

    found = ray.cluster_resources()
    if not found.get("GPU"):
        raise ValueError(
            f"device cuda: the cluster has no GPU ({found.get('CPU', 0):g} CPUs); start nodes with "
            "GPUs, or choose the device cpu"
        )


def torch_device() -> str:
    """`cuda` where torch sees a GPU, else `cpu`.

    InfrastructureError in a Ray task that was given a GPU which torch does not see: it would hold
    the GPU and work on the CPU.
    """
    import torch

    if torch.cuda.is_available():
        return "cuda"
    ray: Any = sys.modules.get("ray")
    held = ray.get_gpu_ids() if ray is not None and ray.is_initialized() else []
    if held:
        raise InfrastructureError(
            f"Ray gave this task GPU {held[0]}, but torch {torch.__version__} sees none on "
            f"{socket.gethostname()}: check the node's driver and that torch was built for it"
        )
    return "cpu"
