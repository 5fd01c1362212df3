"""Exact resume with several processes: killed by SIGKILL inside accumulation windows.

Three stages of 5, 4 and 4 steps, two forward passes a step and worker, a checkpoint every 2 steps.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from manifests.train import TrainManifest
from tests.support.trainer_kit import make_manifest, same, weights
from tests.support.training_runs import spawn
from trainer import metrics
from trainer.checkpoint import checkpoints, stage_steps

PASSES = 2  # of a worker in a step

pytestmark = pytest.mark.slow


def losses(manifest: TrainManifest) -> list[float]:
    return [row["loss"] for row in metrics.read(Path(manifest.out) / "metrics.csv")]


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_in_every_stage_inside_an_accumulation_window(tmp_path: Path, workers: int) -> None:
    batch = {"batch": PASSES * workers, "accumulate": PASSES, "save_every": 2}
    whole = make_manifest(tmp_path, **batch, out=str(tmp_path / "whole"))
    broken = make_manifest(tmp_path, **batch, out=str(tmp_path / "broken"))
    out = tmp_path / "broken"
    spawn(whole, workers)
    spawn(broken, workers, die_at=PASSES * 3 + 2)  # in step 4 of base, after one of its two passes
    assert [path.name for path in checkpoints(out, "base")] == ["base-00000002"]
    spawn(broken, workers, die_at=PASSES * (3 + 2) + 2)  # base 3 to 5, then in step 3 of motion
    assert stage_steps(out, "base") == 5
    assert [path.name for path in checkpoints(out, "motion")] == ["motion-00000002"]
    spawn(broken, workers, die_at=PASSES * (2 + 1) + 2)  # motion 3 and 4, then step 2 of content
    assert stage_steps(out, "motion") == 4 and not checkpoints(out, "content")
    spawn(broken, workers)
    assert same(weights(out / "export"), weights(tmp_path / "whole/export"))
    assert losses(broken) == losses(whole)


def test_two_workers_then_one_then_two(tmp_path: Path) -> None:
    batch = {"batch": 4, "accumulate": PASSES, "save_every": 1}
    whole = make_manifest(tmp_path, **batch, out=str(tmp_path / "whole"))
    broken = make_manifest(tmp_path, **batch, out=str(tmp_path / "broken"))
    spawn(whole, 2)
    spawn(broken, 2, die_at=PASSES * 3 + 2)  # base, steps 1 to 3
    spawn(broken, 1, die_at=PASSES * (2 + 2) + 2)  # base 4 and 5, motion 1 and 2
    spawn(broken, 2)
    assert len(losses(broken)) == 13
    assert losses(broken) == pytest.approx(losses(whole), rel=1e-5)
