"""What a busy machine costs a step, with the defaults of OpenMP and Ray and with ours.

    python bench/train_threads.py [--steps 30] [--load 4] [--arms here-2 ray] [--out FILE.json]

The tiny preset (0.94 M parameters, batch 8, 4 frames of 32x32) trains some steps as the toolkit
starts its trainers: in one process with one thread and with as many as there are cores, under
torchrun, and on two Ray Train workers. Each idle and beside `load` busy loops, and each before and
after: with what OpenMP and Ray do by themselves (threads that have nothing to do spin; workers are
15 steps of `nice` below their parent) and with what the toolkit sets (they sleep, they are not).
Printed is the median step after the first five, wall seconds of rank 0.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from train_step import write_latents

from layerflow.model.presets import init_directory
from trainer import metrics

SKIPPED = 5  # first steps, which warm up
BEFORE = {"GOMP_SPINCOUNT": "300000", "RAY_worker_niceness": "15"}
"""The defaults of libgomp and of Ray, said out loud so that nothing else is set."""

ARMS: dict[str, tuple[int, int | None, list[str]]] = {
    "here-1": (1, 1, ["-m", "trainer.loop"]),
    "here-2": (1, 2, ["-m", "trainer.loop"]),
    "torchrun": (1, None, ["-m", "torch.distributed.run", "--nproc-per-node", "2"]),
    "ray": (2, 1, ["-m", "layerflow.cli.main", "train"]),
}
"""Name -> workers and threads of the manifest, and the command."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--load", type=int, default=4)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        init_directory(folder / "model", "tiny")
        write_latents(folder / "latents", 500)
        print(f"{'':12}{'idle':>10}{'idle':>10}{'loaded':>10}{'loaded':>10}   loaded / idle")
        print(f"{'':12}" + f"{'before':>10}{'after':>10}" * 2 + "   before   after")
        for arm in options.arms:
            cells = found[arm] = {}
            for load in (0, options.load):
                for when, variables in (("before", BEFORE), ("after", {})):
                    with busy(load):
                        cells[f"{'loaded' if load else 'idle'} {when}"] = seconds(
                            folder, arm, options.steps, variables
                        )
            ratios = [cells[f"loaded {w}"] / cells[f"idle {w}"] for w in ("before", "after")]
            row = "".join(f"{value:10.3f}" for value in cells.values())
            print(f"{arm:12}{row}   {ratios[0]:6.1f}{ratios[1]:8.1f}", flush=True)
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")


@contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes that compute without end, within the block."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def seconds(folder: Path, arm: str, steps: int, variables: dict[str, str]) -> float:
    """The median step of one arm, in a process of its own with these environment variables."""
    workers, threads, command = ARMS[arm]
    out = folder / "out"
    stage = {
        "name": "base",
        "steps": steps,
        "lr": 3e-3,
        "trains": "full",
        "mixture": [{"latents": str(folder / "latents")}],
        "tasks": {"generate": 0.5, "decompose": 0.5},
    }
    manifest = {
        "model": str(folder / "model"),
        "out": str(out),
        "batch": 8,
        "micro_batch": 4,
        "workers": workers,
        "threads": threads,
        "log_every": steps,
        "tensorboard": False,
        "stages": [stage],
    }
    path = folder / "train.yaml"
    path.write_text(json.dumps(manifest))  # JSON is YAML
    module = ["-m", "trainer.loop"] if arm == "torchrun" else []
    subprocess.run(
        [sys.executable, *command, *module, str(path), "--fresh"],
        env={**os.environ, **variables},
        check=True,
        capture_output=True,
    )
    rows = metrics.read(out / "metrics.csv")[SKIPPED:]
    return statistics.median(float(row["seconds"]) for row in rows)


if __name__ == "__main__":
    main()
