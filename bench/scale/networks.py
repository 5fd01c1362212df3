"""How busy the actors of a network are, with made kernels: a sleep on the GPU, a sleep on the CPU.

Run: ``python -m bench.scale.networks [--gpus 2] [--cpus 16] [--gpu-ms 50] [--cpu-ms 200]
[--units 64] [--clips 10]``. A unit has clips one after the other, each so long on a CPU and then in
the network, as a video has windows; Ray is told of CPUs and GPUs that are not there, which sleeping
kernels do not need. What is measured is the job itself: how the real runner, desk and actors keep
the network at work. Work begins when all workers have started. Busy is the share of the time
between an actor's first call, without its loading, and its last. Target: at least 90 %, and one
constructor an actor.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from manifests.steps import Step
from pipelines.engine.desk import Desks
from pipelines.engine.networks import network
from pipelines.engine.recipe import unit_key
from pipelines.engine.runner import Place, run_units
from pipelines.engine.staging import Parts, Staging, json_part
from pipelines.engine.workers import Pool, Unit


class Slow:
    """A network that takes its time; it notes that it was made."""

    def __init__(self, folder: str, seconds: float) -> None:
        (Path(folder) / f"made-{os.getpid()}-{time.time_ns()}").touch()
        self.seconds = seconds

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        time.sleep(self.seconds)
        return np.asarray(frames.mean(-1))


def meet(folder: str, number: int, count: int) -> None:
    """Wait until the first ``count`` units have all begun: workers are slow to start."""
    (Path(folder) / f"begun-{number}").touch()
    while len(list(Path(folder).glob("begun-*"))) < count:
        time.sleep(0.1)


def work(payload: dict[str, Any], *, folder: str, cpu: float, gpu: float, together: int) -> Parts:
    """The clips of a unit."""
    if payload["number"] < together:
        meet(folder, payload["number"], together)
    frames = np.full((16, 48, 72, 3), payload["number"] % 251, np.uint8)
    total = 0.0
    for _ in range(payload["clips"]):
        time.sleep(cpu)
        total += float(network("matte", Slow, folder, gpu)(frames).mean())
    return {"said.json": json_part(total)}


def measured(said: argparse.Namespace) -> dict[str, Any]:
    """One job, and what its desk says of its actors at the end."""
    import ray

    ray.init(
        address="local",
        num_cpus=said.cpus,
        num_gpus=said.gpus,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=256 << 20,
    )
    units = [
        Unit(unit_key(i), i, {"number": i, "clips": said.clips, "uri": f"{i}"})
        for i in range(said.units)
    ]
    with tempfile.TemporaryDirectory(prefix="networks-bench-") as root:
        folder = Path(root)
        kernels = {"cpu": said.cpu_ms / 1e3, "gpu": said.gpu_ms / 1e3}
        together = min(said.cpus, said.units)
        make = partial(work, folder=root, together=together, **kernels)
        step = Step(gpus=1, concurrency=(said.gpus, said.gpus))
        pool = Pool(quiet=True, desks=Desks({"matte": step}, True))
        found: dict[str, Any] = {}

        def settle(unit: Unit, reason: str) -> Parts:
            raise RuntimeError(f"{unit.key}: {reason}")

        def compact(staging: Staging, _: int) -> None:
            found.update(pool.desks.states()["matte"])

        begin = time.perf_counter()
        place = Place(folder / "staging", folder / "lock", "busy")
        run_units(units, place, make, pool, settle=settle, compact=compact)
        found["seconds"] = time.perf_counter() - begin
        found["made"] = len(list(folder.glob("made-*")))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpus", type=int, default=2)
    parser.add_argument("--cpus", type=int, default=16)
    parser.add_argument("--gpu-ms", type=float, default=50.0)
    parser.add_argument("--cpu-ms", type=float, default=200.0)
    parser.add_argument("--units", type=int, default=64)
    parser.add_argument("--clips", type=int, default=20)
    said = parser.parse_args()
    found = measured(said)
    clips = said.units * said.clips
    shares = ", ".join(f"{100 * share:.1f} %" for share in found["busy"])
    print(f"{clips} clips in {found['seconds']:.1f} s with the start of the workers")
    print(f"constructors called: {found['made']}, actors: {found['actors']}")
    print(f"busy: {shares}; calls {found['calls']}, deaths {found['deaths']}")


if __name__ == "__main__":
    from bench.scale import networks  # workers know what is sent to them by its module

    networks.main()
