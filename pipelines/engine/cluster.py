"""Connect to a Ray cluster, or start a small local one that reports nothing to anybody."""

from __future__ import annotations

import logging
import os
import socket
import sys
from typing import Any

from pipelines.engine.staging import InfrastructureError

OBJECT_STORE_BYTES = 512 << 20


def start_ray(workers: int | None = None) -> None:
    """``ray.init`` once: the cluster of ``RAY_ADDRESS``, else a local one with ``workers`` CPUs."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    import ray

    if not ray.is_initialized():
        options: dict[str, object] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if not os.environ.get("RAY_ADDRESS"):
            options |= {
                "address": "local",  # never somebody else's cluster that happens to run here
                "num_cpus": max(workers or 0, os.cpu_count() or 1),
                "include_dashboard": False,
                "object_store_memory": OBJECT_STORE_BYTES,
            }
        ray.init(**options)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = -1  # lost units are found by their missing staging folder
    for name in ("ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)


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


def stop_ray() -> None:
    """Shut the local Ray down, if one runs, so that its processes and memory go."""
    if "ray" in sys.modules:
        import ray

        if ray.is_initialized():
            ray.shutdown()
