"""FSDP2 through the same loop: the curve of one process, resumed by another number of workers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from manifests.train import TrainManifest, parse
from tests.support.trainer_kit import make_latents, make_manifest, same, weights
from tests.support.training_runs import spawn
from trainer import loop, metrics
from trainer.checkpoint import checkpoints


def best(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "best/base/best.json").read_text()))


def losses(manifest: TrainManifest) -> list[float]:
    return [row["loss"] for row in metrics.read(Path(manifest.out) / "metrics.csv")]


def sharded(folder: Path, name: str, **changes: Any) -> TrainManifest:
    """The kit's stages, the first one sharded (and with frozen blocks in it)."""
    kit = make_manifest(folder)
    trains = {"blocks": [1], "also": ["proj_out.*"]}
    groups = {"proj_out.*": {"rate": 3, "decay": 0.1}}
    base = kit.stages[0].model_dump() | {"parallel": "fsdp", "trains": trains, "groups": groups}
    stages = [base, *(stage.model_dump() for stage in kit.stages[1:])]
    return parse(kit.model_dump() | {"stages": stages, "out": str(folder / name)} | changes)


def whole(manifest: TrainManifest, name: str) -> TrainManifest:
    stages = [stage.model_copy(update={"parallel": "ddp"}) for stage in manifest.stages]
    out = str(Path(manifest.out).parent / name)
    return manifest.model_copy(update={"stages": stages, "out": out})


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_one_worker_has_all_shards(tmp_path: Path, precision: str) -> None:
    """In bf16 a block holds trained weights in fp32 and frozen ones in bf16."""
    manifest = sharded(tmp_path, "sharded", precision=precision)
    assert loop.train(manifest, manifest.out, log=lambda line: None)
    plain = whole(manifest, "plain")
    assert loop.train(plain, plain.out, log=lambda line: None)
    assert losses(manifest) == pytest.approx(
        losses(plain), rel=1e-5 if precision == "fp32" else 0.01
    )
    ours, theirs = weights(tmp_path / "sharded/export"), weights(tmp_path / "plain/export")
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        rough = {} if precision == "fp32" else {"rtol": 0.1, "atol": 0.02}
        torch.testing.assert_close(tensor, theirs[name], **({"rtol": 1e-3, "atol": 1e-4} | rough))
    (last, *_) = reversed(checkpoints(tmp_path / "sharded", "base"))
    assert {path.suffix for path in last.iterdir()} == {".safetensors", ".json"}  # no pickles


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_validation_of_the_average_leaves_training_alone(tmp_path: Path, precision: str) -> None:
    """Gathered weights of the average must not be trained on; stopped and continued too."""
    changes: dict[str, Any] = {"precision": precision, "save_every": 1}
    held_out = {"latents": "video", "every": 1, "clips": 2, "timesteps": [500]}
    plain = sharded(tmp_path, "plain", **changes)
    base = plain.stages[0].model_copy(update={"trains": "full", "ema": 0.99, "lr": 1e-2})
    motion = plain.stages[1].model_copy(update={"parallel": "fsdp", "ema": 0.99, "steps": 2})
    stages = [base, motion] if precision == "fp32" else [base]
    plain = plain.model_copy(update={"stages": stages})
    checked = parse(plain.model_dump() | {"validation": held_out, "out": str(tmp_path / "checked")})
    assert loop.train(plain, plain.out, log=lambda line: None)

    def kill(row: dict[str, Any]) -> None:
        if row["step"] in (3, 6):
            raise KeyboardInterrupt

    for done in (3, 6)[: len(stages)]:
        with pytest.raises(KeyboardInterrupt):
            loop.train(checked, checked.out, log=lambda line: None, report=kill)
        assert len(losses(checked)) == done
    assert loop.train(checked, checked.out, log=lambda line: None)
    assert losses(checked) == losses(plain)
    assert same(weights(tmp_path / "checked/export"), weights(tmp_path / "plain/export"))
    by_step = [row["loss"] for row in metrics.read(tmp_path / "checked/validation.csv")]
    assert len(by_step) == 2 * len(losses(plain))
    assert len(set(by_step)) == len(by_step)  # the average, which changes with each step


def test_what_cannot_be_sharded_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs all of its workers"):
        sharded(tmp_path, "x", workers=2, min_workers=1)


@pytest.mark.slow
def test_two_workers_killed_and_continued_by_one(tmp_path: Path) -> None:
    manifest = sharded(tmp_path, "sharded", save_every=2)
    plain = whole(manifest, "plain")
    spawn(plain, 1)
    spawn(manifest, 2, die_at=4)  # in step 4 of base, which two workers hold
    assert [path.name for path in checkpoints(tmp_path / "sharded", "base")] == ["base-00000002"]
    spawn(manifest, 1, die_at=3)  # base 3 and 4 on one worker
    spawn(manifest, 2)
    assert losses(manifest) == pytest.approx(losses(plain), rel=1e-4)


def three_sizes(folder: Path, name: str, **changes: Any) -> TrainManifest:
    """A sharded stage with an average on clips of three sizes, by a fixed batch or `tokens`."""
    kit = make_manifest(folder)
    if not (folder / "sizes").exists():
        make_latents(folder / "sizes", count=9, shapes=[(2, 1, 2), (2, 2, 4), (3, 4, 2)])
    stage = kit.stages[0].model_dump() | {"parallel": "fsdp", "mixture": [{"latents": "sizes"}]}
    validation = {"latents": "sizes", "every": 2, "clips": 3, "timesteps": [500], "keep_best": True}
    document = kit.model_dump() | {
        "stages": [stage | changes.pop("stage", {})],
        "latents": {"sizes": str(folder / "sizes")},
        "validation": validation,
    }
    return parse(document | {"out": str(folder / name), "save_every": 2} | changes)


def test_a_sharded_stage_takes_several_sizes_and_keeps_the_best(tmp_path: Path) -> None:
    manifest = three_sizes(tmp_path, "sharded", shard_over=1)
    plain = whole(manifest, "plain")
    for each in (manifest, plain):
        assert loop.train(each, each.out, log=lambda line: None)
    assert losses(manifest) == pytest.approx(losses(plain), rel=1e-5)
    ours, theirs = best(tmp_path / "sharded"), best(tmp_path / "plain")
    assert ours["step"] == theirs["step"]
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
    kept, wanted = (weights(tmp_path / name / "best/base") for name in ("sharded", "plain"))
    assert kept.keys() == wanted.keys()
    for name, tensor in kept.items():
        torch.testing.assert_close(tensor, wanted[name], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [{}, {"tokens": 150}], ids=["batch", "tokens"])
def test_two_workers_share_clips_of_three_sizes(tmp_path: Path, stage: dict[str, Any]) -> None:
    """They see different numbers of shapes, or one sample between them, and do not hang."""
    manifest = three_sizes(tmp_path, "sharded", stage=stage)
    plain = whole(manifest, "plain")
    spawn(plain, 1)
    spawn(manifest, 2)
    assert losses(manifest) == pytest.approx(losses(plain), rel=1e-4)
    ours, theirs = best(tmp_path / "sharded"), best(tmp_path / "plain")
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)


@pytest.mark.slow
def test_copies_on_four_workers_killed_and_continued_on_another_mesh(tmp_path: Path) -> None:
    """Two copies of two parts each; then two copies of one; then one of four."""
    manifest = sharded(tmp_path, "copies", save_every=2, shard_over=2)
    plain = whole(manifest, "plain")
    spawn(plain, 1)
    spawn(manifest, 4, die_at=4)
    assert [path.name for path in checkpoints(tmp_path / "copies", "base")] == ["base-00000002"]
    spawn(manifest.model_copy(update={"shard_over": 1}), 2, die_at=3)
    assert checkpoints(tmp_path / "copies", "base")[-1].name == "base-00000004"
    spawn(manifest.model_copy(update={"shard_over": None}), 4)
    assert losses(manifest) == pytest.approx(losses(plain), rel=1e-4)
    ours, theirs = weights(tmp_path / "copies/export"), weights(tmp_path / "plain/export")
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-3, atol=1e-4)


def test_groups_that_the_workers_do_not_make_up_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shard_over: 2 does not divide the workers"):
        sharded(tmp_path, "x", workers=3, shard_over=2)
    alone = sharded(tmp_path, "x", shard_over=2)
    with pytest.raises(ValueError, match="shard_over: 2 does not divide 1 workers"):
        loop.train(alone, alone.out, log=lambda line: None)
