"""What a step keeps, waits for and records: moments of optimizers, host syncs, profiles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from manifests.train import TrainManifest, parse
from manifests.train_stage import Optimizer
from tests.support.trainer_kit import make_manifest
from trainer import loop
from trainer.optimizer import make_optimizer, moment_bytes


@pytest.mark.parametrize("kind", ["adamw", "adamw8bit", "muon", "prodigy"])
def test_moments_take_the_bytes_that_the_plan_counts(kind: str) -> None:
    if kind == "prodigy":
        pytest.importorskip("prodigyopt")
    matrix, flat = torch.nn.Parameter(torch.randn(64, 256)), torch.nn.Parameter(torch.ones(8192))
    groups: list[dict[str, Any]] = [
        {"params": [each], "matrix": each.ndim == 2, "rate": 1.0} for each in (matrix, flat)
    ]
    if kind != "muon":
        groups = [group | {"matrix": False} for group in groups]
    optimizer = make_optimizer(groups, Optimizer.model_validate({"kind": kind}))
    for each in (matrix, flat):
        each.grad = torch.randn_like(each)
    optimizer.step()
    held = sum(
        tensor.nbytes
        for state in optimizer.state.values()
        for name, tensor in state.items()
        if isinstance(tensor, torch.Tensor) and not name.startswith("qmap")  # one of all
    )
    planned = moment_bytes(kind, matrix.numel() + flat.numel(), matrix.numel())
    assert planned == pytest.approx(held, rel=0.001)


class Waits(TorchDispatchMode):
    """Counts what makes the host wait for a device: a number, a truth or a copy read from it."""

    count = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = str(function)
        self.count += name.startswith(("aten._local_scalar_dense", "aten.is_nonzero", "aten.equal"))
        return function(*args, **(kwargs or {}))


def one_stage(folder: Path, name: str, steps: int, **changes: Any) -> TrainManifest:
    kit = make_manifest(folder).model_dump()
    stages = [kit["stages"][0] | {"steps": steps}]
    free = {"log_every": 1000, "save_every": 1000, "tensorboard": False, "validation": None}
    return parse(kit | free | {"stages": stages, "out": str(folder / name)} | changes)


@pytest.mark.parametrize("checkpointing", ["none", "full"])
def test_a_step_never_waits_for_the_device(tmp_path: Path, checkpointing: str) -> None:
    """A run of seven steps reads as few numbers as one of three; the count can fail: a hook of a
    step that reads one number is seen."""

    def waits(name: str, steps: int, **changes: Any) -> int:
        manifest = one_stage(tmp_path, name, steps, checkpointing=checkpointing, **changes)
        with Waits() as seen:
            assert loop.train(manifest, manifest.out, log=lambda line: None)
        return seen.count

    assert waits("seven", 7) == waits("three", 3)
    norms = {"hooks": {"gradient-norms": {"every": 1}}}
    assert waits("seven-norms", 7, **norms) > waits("three-norms", 3, **norms)


def test_a_profile_holds_the_steps_that_were_asked_for(tmp_path: Path) -> None:
    manifest = one_stage(tmp_path, "run", 5, profile={"steps": [2, 3]})
    lines: list[str] = []
    assert loop.train(manifest, manifest.out, log=lines.append)
    (file,) = (tmp_path / "run" / "profile").iterdir()
    assert file.name == f"{manifest.stages[0].name}-2-3.json"
    assert any("steps 2 to 3 are in" in line for line in lines)
    events = json.loads(file.read_text())["traceEvents"]
    steps = [event for event in events if str(event.get("name")).startswith("Optimizer.step")]
    assert len(steps) == 2
    plain = one_stage(tmp_path, "run", 6)  # and it may change between a run and its continuation
    assert loop.train(plain, plain.out, log=lambda line: None)


def test_a_profile_of_no_steps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="two steps from 1 on"):
        one_stage(tmp_path, "run", 5, profile={"steps": [3, 2]})
