"""A Ray cluster for a job or a run, joined or started in one way, which reports nothing to anybody.

Ray is imported inside the functions only, so that nothing else needs it.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path

from layerflow.files import is_left_behind, own

KEPT = 3  # folders of ended local clusters, for their logs


def start_ray(workers: int, object_store_bytes: int) -> bool:
    """Connect to the cluster of ``RAY_ADDRESS``, else to a local one with ``workers`` CPUs or more.

    Returns whether that was done here; False where this process is connected already.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # By itself Ray puts workers 15 steps of `nice` below their parent: beside anything else that
    # computes they then get a thirtieth of a core.
    os.environ.setdefault("RAY_worker_niceness", "0")
    import ray

    if ray.is_initialized():
        return False
    options: dict[str, object] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if not os.environ.get("RAY_ADDRESS"):
        options |= {
            "address": "local",  # never somebody else's cluster that happens to run here
            "num_cpus": max(workers, os.cpu_count() or 1),
            "include_dashboard": False,
            "object_store_memory": object_store_bytes,
        }
    handler = signal.getsignal(signal.SIGTERM)
    context = ray.init(**options)
    if "address" in options:
        with suppress(OSError):
            claim_session(Path(context.address_info["session_dir"]))
    if callable(handler) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)  # Ray's own aborts the process
    return True


def claim_session(session: Path) -> None:
    """Mark the folder in which Ray keeps the logs and sockets of a local cluster as of this
    process, and remove those of its ended predecessors but for the last ``KEPT``.

    Only folders with such a mark of this machine are touched: never those of another's cluster.
    """
    own(session)
    ended = [path for path in session.parent.glob("session_*") if is_left_behind(path)]
    for path in sorted(ended, key=lambda path: path.name)[:-KEPT]:
        shutil.rmtree(path, ignore_errors=True)


def ray_runs() -> bool:
    """Whether there is a Ray already: one of this process, or a cluster to join."""
    ray = sys.modules.get("ray")
    return bool(os.environ.get("RAY_ADDRESS")) or bool(ray is not None and ray.is_initialized())


def stop_ray() -> None:
    """Shut the local Ray down, if one runs, so that its processes and memory go."""
    if "ray" in sys.modules:
        import ray

        if ray.is_initialized():
            ray.shutdown()
