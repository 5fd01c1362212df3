"""Groups of parameters with rates and decays of their own, and optimizers by name."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from layerflow.model import adapters
from manifests.train_stage import Optimizer, Stage
from tests.support.trainer_kit import make_manifest, make_model, same, weights, whole_and_killed
from trainer import checkpoint, metrics
from trainer.checkpoint import Position
from trainer.distributed.processes import ALONE
from trainer.export import load_model
from trainer.stages import Trained, attach, lay_out

CPU = torch.device("cpu")


def stage(**changes: Any) -> Stage:
    fields = {"name": "s", "steps": 9, "lr": 1.0, "trains": "full", "mixture": [{"latents": "v"}]}
    return Stage.model_validate(fields | changes)


@pytest.fixture
def model(tmp_path: Path) -> Any:
    return load_model(make_model(tmp_path / "m", layers=2), CPU)[0]


def one_step(model: Any, of: Stage, options: Optimizer, rate: float, grad: float) -> Trained:
    """A step from weights of 2 with this gradient everywhere."""
    trained: Any = lay_out(model, of, ALONE, bf16=False, kind=options.kind)
    optimizer = trained.optimizer(options)
    trained.values.fill_(2.0)
    trained.grads.fill_(grad)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate"]
    optimizer.step()
    return trained


def test_rates_and_decays_of_groups_are_those_of_the_manifest(model: Any) -> None:
    """AdamW's first step moves each number by its rate; before that decay takes rate x decay of
    it (Loshchilov and Hutter)."""
    attach(model, stage(trains={"lora": "motion", "rank": 2}), 0)
    groups = {
        "layer_embedding": {"rate": 10, "decay": 0.2},
        "blocks": {"decay": 0.3},
        "proj_out.*": {"rate": 0.5},
    }
    options = Optimizer.model_validate({"weight_decay": 0.1, "eps": 1e-30})
    trained = one_step(model, stage(groups=groups), options, 0.01, -1.0)
    for name, value in trained.parameters.items():
        rate, decay = 0.01, 0.1 if value.ndim > 1 else 0.0
        if name.startswith("layer_embedding."):
            rate, decay = 0.1, 0.2  # it names them, so it shrinks all of them
        elif name.startswith("transformer_blocks."):
            decay = 0.3 if value.ndim > 1 else 0.0
        elif name.startswith("proj_out."):
            rate = 0.005
        expected = torch.full_like(value, 2.0 * (1 - rate * decay) + rate)
        torch.testing.assert_close(value.detach(), expected, rtol=1e-6, atol=0)


def test_lora_plus_speeds_up_the_second_matrices(model: Any) -> None:
    of = stage(trains={"lora": "content", "rank": 2, "plus": 16}, groups={"lora": {"rate": 0.5}})
    attach(model, of, 0)
    options = Optimizer.model_validate({"weight_decay": 0.0, "eps": 1e-30})
    trained = one_step(model, of, options, 0.01, 1.0)
    for name, value in trained.parameters.items():
        rate = 0.01 * 0.5 * (16 if ".lora_B." in name else 1)
        torch.testing.assert_close(value.detach(), torch.full_like(value, 2.0 - rate))


def test_rslora_is_the_scale_that_peft_gives_it(model: Any) -> None:
    of = stage(trains={"lora": "content", "rank": 4, "alpha": 3, "rslora": True})
    attach(model, of, 0)
    (layer, *_) = adapters.lora_layers(model, "content").values()
    assert layer.scaling["content"] == pytest.approx(3 / math.sqrt(4), rel=1e-15)
    from peft import LoraConfig
    from peft.tuners.lora import Linear

    config = LoraConfig(r=4, lora_alpha=3, use_rslora=True)
    peft = Linear(torch.nn.Linear(4, 4), "x", config=config, r=4, lora_alpha=3)
    assert layer.scaling["content"] == pytest.approx(peft.scaling["x"], rel=1e-15)


def test_groups_that_are_empty_or_overlap_are_refused(model: Any) -> None:
    with pytest.raises(ValueError, match="groups: it trains nothing in 'lora'"):
        lay_out(model, stage(groups={"lora": {"rate": 2}}), ALONE, bf16=False)
    twice = {"layer_embedding": {"rate": 2}, "layer_*": {"decay": 0}}
    with pytest.raises(ValueError, match=r"layer_embedding\.\w+ is in 'layer_embedding' and in"):
        lay_out(model, stage(groups=twice), ALONE, bf16=False)


# ---- optimizers by name -----------------------------------------------------------------------


def test_muon_takes_the_matrices_of_blocks_and_adamw_the_rest(model: Any) -> None:
    """Of a gradient whose singular values are equal its step has the directions, at a size of
    0.2 sqrt(longer side) of the rate (within the band to which five iterations bring it)."""
    options = Optimizer.model_validate({"kind": "muon", "weight_decay": 0.0})
    trained: Any = lay_out(model, stage(), ALONE, bf16=False, kind="muon")
    before = {name: p.detach().clone() for name, p in trained.parameters.items()}
    optimizer = trained.optimizer(options)
    draw = torch.Generator().manual_seed(0)
    trained.grads.fill_(3.0)
    given = {}
    for name, grad in trained.views(trained.grads).items():
        if grad.ndim == 2:
            given[name] = torch.nn.init.orthogonal_(torch.empty(grad.shape), generator=draw)
            grad.copy_(5 * given[name])
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    optimizer.step()
    seen = 0
    for name, value in trained.parameters.items():
        moved = value.detach() - before[name]
        if value.ndim == 2 and name.startswith("transformer_blocks."):
            size = 0.2 * math.sqrt(max(value.shape)) * 0.01
            scale = -(moved * given[name]).sum() / min(value.shape) / size
            assert 0.6 < scale < 1.3
            torch.testing.assert_close(moved, -scale * size * given[name], rtol=0, atol=size / 20)
            seen += 1
        else:
            assert moved.abs().max() == pytest.approx(0.01, rel=1e-4)
    assert seen > 10


@pytest.mark.parametrize("kind", ["adamw", "muon", "prodigy", "adamw8bit"])
def test_every_optimizer_resumes_exactly_and_skips_a_bad_step(kind: str, tmp_path: Path) -> None:
    if kind in ("prodigy", "adamw8bit"):
        pytest.importorskip({"prodigy": "prodigyopt", "adamw8bit": "bitsandbytes"}[kind])
    options = Optimizer.model_validate({"kind": kind})
    of = stage(groups={"layer_embedding": {"decay": 0.5}}, ema=0.9)
    folder = make_model(tmp_path / "m")

    def start() -> Any:
        return lay_out(load_model(folder, CPU)[0], of, ALONE, bf16=False, kind=kind)

    def steps(optimizer: Any, trained: Trained, numbers: range) -> None:
        for number in numbers:
            draw = torch.Generator().manual_seed(number)
            trained.grads.copy_(torch.randn(trained.grads.shape, generator=draw))
            optimizer.found_inf = torch.tensor(float(number == 2))
            for group in optimizer.param_groups:
                group["lr"] = (1.0 if kind == "prodigy" else 0.01) * group["rate"]
            before = trained.values.clone()
            optimizer.step()
            assert torch.equal(trained.values, before) == (number == 2)

    trained = start()
    optimizer = trained.optimizer(options)
    steps(optimizer, trained, range(4))
    path = checkpoint.save(tmp_path, "s", trained, optimizer, Position(4), keep=1)
    assert json.loads((path / "position.json").read_text())["updates"] == 3
    steps(optimizer, trained, range(4, 7))
    again = start()
    other = again.optimizer(options)
    assert checkpoint.restore(tmp_path, "s", again, other) == Position(4)
    steps(other, again, range(4, 7))
    assert torch.equal(again.values, trained.values)


@pytest.mark.parametrize("kind", ["muon", "prodigy"])
def test_a_run_with_another_optimizer_is_killed_and_equals_an_unbroken_one(
    kind: str, tmp_path: Path
) -> None:
    if kind == "prodigy":
        pytest.importorskip("prodigyopt")
    manifest = make_manifest(tmp_path, optimizer={"kind": kind}, save_every=2)
    stages = [s.model_copy(update={"lr": 1.0 if kind == "prodigy" else s.lr}) for s in
              (manifest.stages[0], manifest.stages[2])]  # fmt: skip
    manifest = manifest.model_copy(update={"stages": stages})

    whole, killed = whole_and_killed(manifest, tmp_path, 2, 7)
    assert same(weights(killed / "export"), weights(whole / "export"))
    rows = [metrics.read(folder / "metrics.csv") for folder in (killed, whole)]
    assert [r["loss"] for r in rows[0]] == [r["loss"] for r in rows[1]] and len(rows[0]) == 9


def test_an_optimizer_whose_library_is_absent_is_named(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "prodigyopt", None)
    trained: Any = lay_out(model, stage(), ALONE, bf16=False)
    with pytest.raises(ValueError, match="prodigy needs prodigyopt: pip install prodigyopt"):
        trained.optimizer(Optimizer.model_validate({"kind": "prodigy"}))
