"""Workers that compute each sample together, through the same loop as one worker."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from manifests.train import TrainManifest, parse
from tests.support.trainer_kit import make_manifest, weights
from tests.support.training_runs import losses, spawn
from tests.trainer.test_wan import wan_manifest
from trainer import loop, metrics
from trainer.checkpoint import checkpoints
from trainer.planning.plan import make_plan

HELD_OUT = {"latents": "video", "every": 2, "clips": 3, "timesteps": [500], "tasks": ["decompose"]}
KITS: dict[str, Callable[..., TrainManifest]] = {"cogvideox": make_manifest, "wan": wan_manifest}


def shared(manifest: TrainManifest, name: str, over: int, **changes: Any) -> TrainManifest:
    out = str(Path(manifest.out).parent / name)
    return manifest.model_copy(update={"out": out, "context_parallel": over, **changes})


def same_run(ours: TrainManifest, theirs: TrainManifest) -> None:
    assert losses(ours.out) == pytest.approx(losses(theirs.out), rel=1e-4)
    found, wanted = (weights(Path(manifest.out) / "export") for manifest in (ours, theirs))
    assert found.keys() == wanted.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, wanted[name], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_two_workers_share_each_sample(tmp_path: Path) -> None:
    """A stage of stills at gate 1 and clips at gate 0, validated."""
    kit = make_manifest(tmp_path, validation=HELD_OUT)
    content = kit.stages[2].model_copy(update={"steps": 3})
    plain = kit.model_copy(update={"stages": [content]})
    assert loop.train(plain, plain.out, log=lambda line: None)
    ours = shared(plain, "ours", 2)
    spawn(ours, 2)
    same_run(ours, plain)
    judged = [metrics.read(Path(m.out) / "validation.csv") for m in (ours, plain)]
    assert [row["loss"] for row in judged[0]] == pytest.approx(
        [row["loss"] for row in judged[1]], rel=1e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize("base", KITS)
def test_three_stages_killed_and_continued_with_other_sharers(tmp_path: Path, base: str) -> None:
    plain = KITS[base](tmp_path, save_every=2, checkpointing="full")
    assert loop.train(plain, plain.out, log=lambda line: None)
    out = tmp_path / "ours"
    spawn(shared(plain, "ours", 2), 4, die_at=4)  # two groups of two
    assert [path.name for path in checkpoints(out, "base")] == ["base-00000002"]
    spawn(shared(plain, "ours", 4), 4, die_at=5)  # one group of four: base to its end, motion
    spawn(shared(plain, "ours", 1), 1, die_at=2)
    spawn(shared(plain, "ours", 2), 2)
    same_run(shared(plain, "ours", 1), plain)


@pytest.mark.slow
def test_a_sharded_stage_shares_samples_too(tmp_path: Path) -> None:
    plain = make_manifest(tmp_path)
    assert loop.train(plain, plain.out, log=lambda line: None)
    stages = [plain.stages[0].model_copy(update={"parallel": "fsdp"}), *plain.stages[1:]]
    ours = shared(plain, "ours", 2, stages=stages, shard_over=2)
    spawn(ours, 4)
    same_run(ours, plain)


def test_the_plan_divides_what_a_worker_keeps_of_a_sequence(tmp_path: Path) -> None:
    one = make_manifest(tmp_path, batch=1)
    two = make_manifest(tmp_path, batch=1, workers=2, context_parallel=2)
    for alone, together in zip(make_plan(one), make_plan(two), strict=True):
        state = 4 * (alone.total + alone.trained * (4 if alone.name == "base" else 3))
        assert together.flops == alone.flops
        assert together.memory - state == pytest.approx((alone.memory - state) / 2, rel=0.02)


def test_the_plan_counts_weights_that_stay_gathered(tmp_path: Path) -> None:
    kit = make_manifest(tmp_path, workers=2)
    stages = [stage.model_copy(update={"parallel": "fsdp"}) for stage in kit.stages]
    dropped = kit.model_copy(update={"stages": stages})
    kept = dropped.model_copy(update={"reshard_after_forward": False})
    for less, more in zip(make_plan(dropped), make_plan(kept), strict=True):
        assert more.memory - less.memory == 4 * less.total


def test_sharers_that_do_not_divide_the_workers_are_refused(tmp_path: Path) -> None:
    kit = make_manifest(tmp_path)
    for changes, said in (
        ({"workers": 3}, "context_parallel: 2 does not divide the workers"),
        ({"compile": True}, "neither compile nor min_workers"),
        ({"workers": 2, "min_workers": 1}, "neither compile nor min_workers"),
    ):
        with pytest.raises(ValueError, match=said):
            parse(kit.model_dump() | {"context_parallel": 2} | changes)
    alone = shared(kit, "x", 2)
    with pytest.raises(ValueError, match="context_parallel: 2 does not divide 1 workers"):
        loop.train(alone, alone.out, log=lambda line: None)
