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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from layerflow.files import write_json
from layerflow.outputs import local_output
from layerflow.ray_start import start_ray, stop_ray
from manifests.train import TrainManifest, parse
from trainer import checkpoint
from trainer.claim import claim
from trainer.distributed.placement import Node, Placement, place, worker_resources
from trainer.distributed.processes import on_sigterm, uses_gpu
from trainer.planning.check import check, warnings
from trainer.sampling import SampleJob, run_job

FOLLOW_SECONDS = 1.0
SAID = "said"  # file in the run's scratch folder: what rank 0 logs
STOP = "stop"  # file in the run's scratch folder: the workers save and end when it appears
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
    local_output(manifest.out)
    for line in warnings(manifest):
        log(line)
    if manifest.workers <= 1:
        from trainer.loop import train

        log(here(manifest))
        return train(manifest, manifest.out, only=only, fresh=fresh, new_data=new_data, log=log)
    return train_on_ray(manifest, only=only, fresh=fresh, new_data=new_data, log=log)


def train_on_ray(
    manifest: TrainManifest, *, only: str | None, fresh: bool, new_data: bool = False, log: Log
) -> bool:
    """The loop on `manifest.workers` workers of a Ray cluster, or of a local one made for it."""
    out = Path(manifest.out)
    if only is not None:
        manifest.stage(only)
    check(manifest)  # both here, so that a refusal costs no start-up
    claim(out, manifest, fresh=fresh, new_data=new_data, log=log)
    wanted = manifest.stages if only is None else [manifest.stage(only)]
    if all(checkpoint.stage_steps(out, stage.name) >= stage.steps for stage in wanted):
        log("all stages are done")
        return True
    with ray_session(manifest.workers):
        from ray.train.torch import TorchConfig, TorchTrainer

        placement = place(manifest, cluster_nodes())
        log(placement.said)
        minutes = manifest.collective_minutes
        placed = manifest.model_copy(update={"gpus": placement.gpus})
        scratch = Path(tempfile.mkdtemp(prefix=".ray-", dir=out))
        try:
            trainer = TorchTrainer(
                run_worker,
                train_loop_config={
                    "manifest": placed.model_dump_json(),
                    "only": only,
                    "folder": os.getcwd(),
                    "scratch": str(scratch.resolve()),
                },
                torch_config=TorchConfig(timeout_s=60 * minutes) if minutes else None,
                scaling_config=scaling(manifest, placement),
                run_config=run_config(manifest, scratch),
            )
            # SIGTERM reaches the workers, wherever they run, through a file that all of them see.
            stop = (scratch / STOP).touch
            with following(scratch / SAID, log), on_sigterm(stop):
                trainer.fit()
            verdict = json.loads((scratch / "verdict.json").read_text())
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    if verdict["error"]:
        raise ValueError(verdict["error"])
    return bool(verdict["finished"])


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


def run_config(manifest: TrainManifest, scratch: Path) -> Any:
    """Ray's `RunConfig`: its own files in the scratch folder, and how often to start again."""
    from ray.train import FailureConfig, RunConfig

    return RunConfig(
        name="train",
        storage_path=str(scratch.resolve()),
        failure_config=FailureConfig(max_failures=manifest.max_failures),
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
    os.chdir(config["folder"])
    import ray.train

    from trainer.loop import train

    manifest = parse(json.loads(config["manifest"]))
    scratch = Path(config["scratch"])
    verdict = {"error": "", "finished": False}
    try:
        with noticing(scratch / STOP) as stop, sampling_beside(manifest, scratch) as sample:
            verdict["finished"] = train(
                manifest,
                manifest.out,
                only=config["only"],
                log=partial(say, scratch / SAID),
                report=ray.train.report,
                sample=sample,
                stop=stop,
            )
    except ValueError as error:
        verdict["error"] = str(error)
    if ray.train.get_context().get_world_rank() == 0:
        write_json(scratch / "verdict.json", verdict)


@contextmanager
def sampling_beside(
    manifest: TrainManifest, scratch: Path
) -> Iterator[Callable[[SampleJob], None]]:
    """Runs sample jobs in Ray tasks of their own, so that no rank waits; waits for them at the
    end. Without a free GPU on a GPU run, rank 0 samples itself."""
    import ray

    gpus = uses_gpu(manifest)
    if gpus and ray.cluster_resources().get("GPU", 0) <= manifest.workers:
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
def repeating(action: Callable[[], None]) -> Iterator[None]:
    """Within the block, a thread calls `action` every `FOLLOW_SECONDS`, and once at the end."""
    ended = threading.Event()

    def work() -> None:
        while not ended.wait(FOLLOW_SECONDS):
            action()
        action()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def noticing(path: Path) -> Iterator[threading.Event]:
    """An event that is set soon after the file appears."""
    seen = threading.Event()
    with repeating(lambda: seen.set() if path.exists() else None):
        yield seen


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


def say(path: Path, line: str) -> None:
    """Leave a line for `following`, which may run on another machine."""
    with path.open("a") as file:
        file.write(line + "\n")


@contextmanager
def following(path: Path, log: Log) -> Iterator[None]:
    """Log the lines that a worker says into a file, as they come."""
    shown = 0

    def follow() -> None:
        nonlocal shown
        if not path.is_file():
            return
        with path.open("rb") as file:
            file.seek(shown)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        shown += len(whole)
        for line in whole.decode(errors="replace").splitlines():
            log(line)

    with repeating(follow):
        yield
