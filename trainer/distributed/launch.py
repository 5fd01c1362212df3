"""Where the loop runs: in this process, or on workers of Ray Train.

Ray starts the workers, joins them into a process group and starts them again when one dies; the
loop itself finds its checkpoint and goes on. All stages run in one start of the workers.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from layerflow.corpus.store import in_object_store
from layerflow.outputs import corpus_output
from layerflow.ray_start import start_ray, stop_ray
from manifests.train import TrainManifest, parse
from trainer import checkpoint
from trainer.claim import claim
from trainer.distributed.board import ask, following, make_board, noticing
from trainer.distributed.placement import Node, Placement, place, worker_resources
from trainer.distributed.processes import on_sigterm, uses_gpu
from trainer.planning.check import check, warnings
from trainer.sampling import SampleJob, run_job
from trainer.upload import open_copies
from trainer.workplace import with_model_here

SAMPLE_SECONDS = 3600.0  # to wait at the end for clips that are still being sampled
OBJECT_STORE_BYTES = 256 << 20  # of a local Ray
RESIZE_SECONDS = 30.0  # how often an elastic run looks for nodes to grow onto

Log = Callable[[str], None]


def launch(
    manifest: TrainManifest,
    *,
    only: str | None = None,
    fresh: bool = False,
    new_data: bool = False,
    log: Log = print,
) -> bool:
    """Run a manifest into its `out`; False when it was told to stop before the end.

    ValueError for a wrong request: batch and workers that do not fit, another run's folder.
    """
    corpus_output(manifest.out)
    for line in warnings(manifest):
        log(line)
    if manifest.workers <= 1:
        from trainer.loop import train

        manifest = with_model_here(manifest)
        log(here(manifest))
        return train(manifest, manifest.out, only=only, fresh=fresh, new_data=new_data, log=log)
    return train_on_ray(manifest, only=only, fresh=fresh, new_data=new_data, log=log)


def train_on_ray(
    manifest: TrainManifest, *, only: str | None, fresh: bool, new_data: bool = False, log: Log
) -> bool:
    """The loop on `manifest.workers` workers of a Ray cluster, or of a local one made for it."""
    there, manifest = manifest, with_model_here(manifest)
    if only is not None:
        manifest.stage(only)
    check(manifest)  # both here, so that a refusal costs no start-up
    afar = in_object_store(manifest.out)  # then rank 0 claims it: this machine keeps nothing of it
    if not afar and is_done(manifest, only, fresh=fresh, new_data=new_data, log=log):
        log("all stages are done")
        return True
    with ray_session(manifest.workers), storage(manifest.out) as kept:
        from ray.train.torch import TorchConfig, TorchTrainer

        board, stop = make_board(), threading.Event()
        placement = place(manifest, cluster_nodes())
        log(placement.said)
        minutes = manifest.collective_minutes
        placed = there.model_copy(update={"gpus": placement.gpus})
        trainer = TorchTrainer(
            run_worker,
            train_loop_config={
                "manifest": placed.model_dump_json(),
                "only": only,
                "claims": {"fresh": fresh, "new_data": new_data} if afar else {},
                "folder": os.getcwd(),
                "board": board,
            },
            torch_config=TorchConfig(timeout_s=60 * minutes) if minutes else None,
            scaling_config=scaling(manifest, placement),
            run_config=run_config(manifest, kept),
        )
        with following(board, log, stop), on_sigterm(stop.set):
            trainer.fit()
        error, finished = ask(board.verdict)
    if error:
        raise ValueError(error)
    return bool(finished)


def is_done(
    manifest: TrainManifest, only: str | None, *, fresh: bool, new_data: bool, log: Log
) -> bool:
    """Claim the run's folder; whether nothing is left to do in it."""
    out = Path(manifest.out)
    claim(out, manifest, fresh=fresh, new_data=new_data, log=log)
    wanted = manifest.stages if only is None else [manifest.stage(only)]
    return all(checkpoint.stage_steps(out, stage.name) >= stage.steps for stage in wanted)


@contextmanager
def storage(out: str) -> Iterator[dict[str, Any]]:
    """Where Ray Train keeps its own notes for the block, as arguments of its `RunConfig`."""
    if not in_object_store(out):
        scratch = Path(tempfile.mkdtemp(prefix=".ray-", dir=out)).resolve()
        try:
            yield {"storage_path": str(scratch)}
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    files, base = open_copies(out, Path())
    scratch_there = f"{base}/.ray-{uuid.uuid4().hex[:8]}"
    try:
        system = PyFileSystem(FSSpecHandler(files))
        yield {"storage_path": scratch_there, "storage_filesystem": system}
    finally:
        with suppress(FileNotFoundError):
            files.rm(scratch_there, recursive=True)


def cluster_placement(manifest: TrainManifest) -> Placement | None:
    """Where the cluster of RAY_ADDRESS would put the workers; None where there is no such cluster
    or the manifest does not use it. ValueError as `placement.place` says."""
    if manifest.workers <= 1 or not os.environ.get("RAY_ADDRESS"):
        return None
    with ray_session(manifest.workers):
        return place(manifest, cluster_nodes())


def scaling(manifest: TrainManifest, placement: Placement) -> Any:
    """Ray's `ScalingConfig`: how many workers, and what each takes, where."""
    from ray.train import ScalingConfig

    count: Any = manifest.workers
    return ScalingConfig(
        num_workers=(manifest.min_workers, count) if manifest.min_workers else count,
        use_gpu=placement.gpus,
        resources_per_worker=worker_resources(manifest, placement.gpus),
        accelerator_type=manifest.accelerator_type,
        label_selector=dict(manifest.labels) or None,
        elastic_resize_monitor_interval_s=RESIZE_SECONDS,
    )


def run_config(manifest: TrainManifest, kept: dict[str, Any]) -> Any:
    """Ray's `RunConfig`: where its own notes are kept, and how often to start again."""
    from ray.train import FailureConfig, RunConfig

    return RunConfig(
        name="train",
        failure_config=FailureConfig(max_failures=manifest.max_failures),
        **kept,
    )


def cluster_nodes() -> list[Node]:
    """The nodes of the cluster that this process is connected to, as they are now."""
    import ray

    return [
        Node(node["Resources"], node.get("Labels") or {}) for node in ray.nodes() if node["Alive"]
    ]


def here(manifest: TrainManifest) -> str:
    """What this process trains on, and that it leaves a cluster alone."""
    said = f"trains in this process, on {'a GPU' if uses_gpu(manifest) else 'the CPU'}"
    if os.environ.get("RAY_ADDRESS"):
        said += "; the cluster of RAY_ADDRESS is not used, since workers is 1"
    return said


def run_worker(config: dict[str, Any]) -> None:
    """What each Ray Train worker runs. A ValueError is a verdict, not a failure to try again."""
    import ray.train

    from trainer.loop import train

    manifest = with_model_here(parse(json.loads(config["manifest"])))
    board = config["board"]
    afar, claims = in_object_store(manifest.out), dict(config["claims"])
    if not afar or os.path.isdir(config["folder"]):
        os.chdir(config["folder"])
    if claims.get("fresh") and ask(board.has_begun):  # what is there now is of this very start
        claims["fresh"] = False
    first = ray.train.get_context().get_world_rank() == 0

    def report(row: dict[str, Any]) -> None:
        ray.train.report(row)
        if first and claims.get("fresh"):
            ask(board.begin)

    error, finished = "", False
    try:
        with noticing(board) as stop, sampling_beside(manifest, afar) as sample:
            finished = train(
                manifest,
                manifest.out,
                only=config["only"],
                log=partial(ask, board.say),
                report=report,
                sample=sample,
                stop=stop,
                **claims,
            )
    except ValueError as refusal:
        error = str(refusal)
    if first:
        ask(board.judge, error, finished)


@contextmanager
def sampling_beside(manifest: TrainManifest, afar: bool) -> Iterator[Callable[[SampleJob], None]]:
    """Runs sample jobs in Ray tasks of their own, so that no rank waits; waits for them at the
    end. Without a free GPU on a GPU run, or a folder that all nodes see, rank 0 samples itself."""
    import ray

    gpus = uses_gpu(manifest)
    if afar or (gpus and ray.cluster_resources().get("GPU", 0) <= manifest.workers):
        yield run_job
        return
    task = ray.remote(num_cpus=0 if not gpus else 1, num_gpus=int(gpus), max_retries=1)(sample_task)
    started: list[Any] = []
    try:
        yield lambda job: started.append(task.remote(job, os.getcwd()))
    finally:
        if started:
            ray.wait(started, num_returns=len(started), timeout=SAMPLE_SECONDS)


def sample_task(job: SampleJob, folder: str) -> None:
    os.chdir(folder)
    run_job(job)


@contextmanager
def ray_session(workers: int) -> Iterator[None]:
    """A Ray cluster: the one that runs, that of RAY_ADDRESS, or a local one for this block."""
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    started = start_ray(workers, OBJECT_STORE_BYTES)
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    try:
        yield
    finally:
        if started:
            stop_ray()
