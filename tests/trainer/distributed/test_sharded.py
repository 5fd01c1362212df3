"""FSDP2 through the same loop: the curve of one process, resumed by another number of workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from manifests.train import TrainManifest, parse
from tests.support.trainer_kit import make_manifest, same, weights
from tests.support.training_runs import spawn
from trainer import loop, metrics
from trainer.checkpoint import checkpoints
from trainer.data import Shape, check_alike, open_parts


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
    manifest = sharded(tmp_path, "x")
    parts = open_parts(manifest, manifest.stages[2])
    odd = [*parts[:1], parts[1].__class__(parts[1].source, parts[1].rows, [Shape(1, 2, 2)] * 10)]
    with pytest.raises(ValueError, match="clips of one shape"):
        check_alike(odd, "content")
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
