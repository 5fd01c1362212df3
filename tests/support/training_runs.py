"""Training runs of tests: in processes of their own, to be killed, with a validation."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from manifests.train import TrainManifest
from tests.support import ROOT
from tests.support.trainer_kit import make_manifest
from trainer import metrics

VALIDATION = {
    "latents": "video",
    "every": 3,
    "clips": 3,
    "timesteps": [100, 800],
    "samples": 2,
    "sample_steps": 2,
    "keep_best": True,
}


def with_validation(folder: Path, **changes: object) -> TrainManifest:
    return make_manifest(folder, validation=VALIDATION, **changes)


def losses(out: str | Path) -> list[float]:
    path = Path(out) / "metrics.csv"
    return [row["loss"] for row in metrics.read(path)] if path.is_file() else []


def one_stage(folder: Path, name: str, steps: int, **changes: Any) -> TrainManifest:
    """The base stage alone, with forward passes of one sample: equal sums on 1 and 2 workers."""
    kit = make_manifest(folder)
    stages = [kit.stages[0].model_copy(update={"steps": steps})]
    shared = {"stages": stages, "save_every": 10, "log_every": 1, "micro_batch": 2}
    return kit.model_copy(update=shared | changes | {"out": str(folder / name)})


def spawn(manifest: TrainManifest, workers: int, *, die_at: int | None = None) -> None:
    """Train in `workers` processes; with `die_at`, until rank 0 dies before that forward pass."""
    path = Path(manifest.model).parent / "manifest.yaml"
    path.write_text(manifest.model_dump_json())
    command = [sys.executable]
    if workers > 1:
        command += ["-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", str(workers)]
    program = ["-m", "trainer.loop", str(path)]
    if die_at is not None:
        program = [str(ROOT / "tests/support/killed_run.py"), str(path), str(die_at)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, *program], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )
    if die_at is None:
        assert done.returncode == 0, done.stderr[-2000:]
    else:  # killed, not ended by a fault of its own; torchrun says so of its worker
        assert done.returncode == -9 or "SIGKILL" in done.stderr, done.stderr[-2000:]
