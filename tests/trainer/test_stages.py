"""Stages: what trains, at which rate, and the flat layout behind it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from layerflow.model import adapters
from layerflow.model.base import base_of
from layerflow.model.cogvideox.costs import step_costs
from manifests.train_stage import Optimizer, Stage
from tests.support.trainer_kit import make_model
from trainer.export import load_model
from trainer.optimizer import average_weight
from trainer.stages import Trained, attach, learning_rate, trainable_names

CPU = torch.device("cpu")


def stage(**changes: Any) -> Stage:
    fields = {
        "name": "s",
        "steps": 110,
        "lr": 2.0,
        "trains": "full",
        "mixture": [{"latents": "v"}],
    }
    return Stage.model_validate(fields | changes)


@pytest.fixture
def model(tmp_path: Path) -> Any:
    return load_model(make_model(tmp_path / "m", layers=3), CPU)[0]


def test_full_trains_everything_but_adapters(model: Any) -> None:
    attach(model, stage(trains={"lora": "motion", "rank": 2}), 0)
    names = trainable_names(model, stage())
    lora = set(adapters.adapter_parameters(model, "motion"))
    assert set(names) == {name for name, _ in model.named_parameters()} - lora


def test_blocks_and_also(model: Any) -> None:
    rule = {"blocks": [1], "also": ["layer_embedding*", "proj_out.*"]}
    names = trainable_names(model, stage(trains=rule))
    assert {name.split(".")[0] for name in names} == {
        "transformer_blocks",
        "layer_embedding",
        "proj_out",
    }
    assert {n.split(".")[1] for n in names if n.startswith("transformer_blocks")} == {"1"}
    with pytest.raises(ValueError, match="no parameter matches 'nothing'"):
        trainable_names(model, stage(trains={"blocks": "all", "also": ["nothing"]}))
    with pytest.raises(ValueError, match="blocks 0 to 2"):
        trainable_names(model, stage(trains={"blocks": [3]}))


def test_lora_trains_its_adapter_and_freezes_the_other(model: Any) -> None:
    attach(model, stage(trains={"lora": "motion", "rank": 2}), 0)
    content = stage(trains={"lora": "content", "rank": 4, "alpha": 1, "blocks": "every 3"})
    attach(model, content, 0)
    names = trainable_names(model, content)
    assert len(names) == 8 and all(".content." in name and "blocks.2." in name for name in names)
    assert adapters.adapter_config(model, "content")["lora_alpha"] == 1
    trained = Trained(model, names, None)
    assert [n for n, p in model.named_parameters() if p.requires_grad] == names
    assert len(trained.values) == 4 * 2 * 4 * 32


def test_a_lora_without_targets_has_its_base_s_usual_ones(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base_of(model), "lora_targets", ("to_v", "ff.net.2"))
    attach(model, stage(trains={"lora": "content", "rank": 2, "blocks": [1]}), 0)
    assert sorted(adapters.lora_layers(model, "content")) == [
        "transformer_blocks.1.attn1.to_v",
        "transformer_blocks.1.ff.net.2",
    ]


def test_an_adapter_starts_the_same_for_equal_seeds(tmp_path: Path) -> None:
    def start(seed: int) -> torch.Tensor:
        torch.rand(seed + 1)  # whatever ran before must not matter
        model = load_model(folder, CPU)[0]
        attach(model, stage(trains={"lora": "motion", "rank": 2}), seed)
        return torch.cat(
            [p.flatten() for p in adapters.adapter_parameters(model, "motion").values()]
        )

    folder = make_model(tmp_path / "m")
    assert torch.equal(start(1), start(1)) and not torch.equal(start(1), start(2))


def test_learning_rates() -> None:
    warm = {"warmup": 10, "decay": "linear", "final": 0.1}
    linear = stage(schedule=warm)
    assert learning_rate(linear, 0) == pytest.approx(0.2)
    assert learning_rate(linear, 9) == learning_rate(linear, 10) == pytest.approx(2.0)
    assert learning_rate(linear, 60) == pytest.approx(2.0 * 0.55)
    assert learning_rate(linear, 110) == pytest.approx(0.2)
    assert learning_rate(stage(), 109) == 2.0
    cosine = stage(schedule={"decay": "cosine"})
    assert learning_rate(cosine, 55) == pytest.approx(1.0)
    power = stage(schedule={"decay": "power", "power": 0.5})
    assert learning_rate(power, 82) == pytest.approx(2.0 * (28 / 110) ** 0.5)


def test_parameters_and_gradients_are_views(model: Any) -> None:
    names = trainable_names(model, stage())
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trained = Trained(model, names, 0.5, warmup=False)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    optimizer = trained.optimizer(Optimizer.model_validate({"weight_decay": 0.0}))
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    sum(p.sum() for p in trained.parameters.values()).backward()
    assert trained.grads.unique().tolist() == [1.0]
    optimizer.step()
    for name, p in trained.parameters.items():
        torch.testing.assert_close(p.data, before[name] - 0.1)
    trained.update_average(torch.tensor(0.0), torch.tensor(0.0))
    trained.update_average(torch.tensor(1.0), torch.tensor(1.0))  # a skipped step leaves it alone
    with trained.averaged():
        for name, p in trained.parameters.items():
            torch.testing.assert_close(p.data, before[name] - 0.05)
    for name, p in trained.parameters.items():
        torch.testing.assert_close(p.data, before[name] - 0.1)
    trained.hand_on()
    for name, p in trained.parameters.items():
        torch.testing.assert_close(p.data, before[name] - 0.05)
        assert p.grad is None and not p.requires_grad


def test_the_average_forgets_the_initial_weights() -> None:
    """4000 steps at 0.9999, weights 0 at first and 1 from then on."""
    left = {True: 1.0, False: 1.0}
    for warmup in left:
        for step in range(4000):
            left[warmup] *= 1.0 - float(
                average_weight(0.9999, torch.tensor(float(step)), warmup=warmup)
            )
    assert left[False] == pytest.approx(0.9999**4000, rel=1e-3) and left[False] > 0.67
    assert left[True] < 1e-20
    late = average_weight(0.99, torch.tensor(5000.0), warmup=True)
    assert float(late) == pytest.approx(0.01)  # from some step on, it is the manifest's
    assert float(average_weight(0.99, torch.tensor(0.0), warmup=True)) == pytest.approx(0.9)


@pytest.mark.parametrize(("decay_on", "kept"), [("matrices", True), ("all", False)])
def test_weight_decay_leaves_norms_biases_and_the_layer_embedding(
    model: Any, decay_on: str, kept: bool
) -> None:
    attach(model, stage(trains={"lora": "motion", "rank": 2}), 0)
    names = [name for name, _ in model.named_parameters()]
    trained = Trained(model, names, None)
    before = {name: p.detach().clone() for name, p in trained.parameters.items()}
    for parameter in before.values():
        parameter.add_(1.0)
    for parameter in trained.parameters.values():
        parameter.data.add_(1.0)
    options = {"weight_decay": 0.5, "decay_on": decay_on}
    optimizer = trained.optimizer(Optimizer.model_validate(options))
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    optimizer.step()  # without a gradient, only the decay acts
    shrunk = {n for n, p in trained.parameters.items() if not torch.equal(p, before[n])}
    for name in shrunk:
        torch.testing.assert_close(trained.parameters[name].data, before[name] * 0.95)
    spared = set(names) - shrunk
    assert {"layer_embedding.text", "layer_embedding.video", "layer_embedding.given"} <= (
        spared if kept else shrunk
    )
    assert all((("norm" in n and ".linear." not in n) or n.endswith(".bias")
                or n.startswith("layer_embedding.")) for n in spared)  # fmt: skip
    assert {n for n in names if n.endswith("proj.weight") or ".lora_" in n} <= shrunk
    assert bool(spared) == kept


def test_loading_what_does_not_fit_is_an_error(model: Any) -> None:
    trained = Trained(model, ["proj_out.weight", "proj_out.bias"], None)
    with pytest.raises(ValueError, match="differ, for example"):
        trained.load(trained.values, {"proj_out.weight": torch.zeros(1)})
    wrong = {"proj_out.weight": torch.zeros(1), "proj_out.bias": torch.zeros(4)}
    with pytest.raises(ValueError, match=r"proj_out.weight: saved \[1\]"):
        trained.load(trained.values, wrong)


def test_costs_of_cogvideox_2b_equal_the_published_formula() -> None:
    """22,278 tokens, width 1920, 30 blocks: full training 520 TFLOP a sample (3 x forward)."""
    from layerflow.model.cogvideox.transformer import LayerFlowTransformer3DModel

    with torch.device("meta"):
        model = LayerFlowTransformer3DModel(max_text_seq_length=678)
    everything = {name for name, _ in model.named_parameters()}
    full = step_costs(model, (4, 4, 16, 60, 90), everything)
    assert full.tokens == 22278
    assert full.total / 1e12 == pytest.approx(520, rel=0.01)
    blocks = [5, 11, 17, 23, 29]
    sixth = {n for n in everything for b in blocks if n.startswith(f"transformer_blocks.{b}.")}
    cost = step_costs(model, (4, 4, 16, 60, 90), sixth)
    linear, attention = 24 * 1920**2 * 22278, 4 * 22278**2 * 1920
    assert cost.forward == full.forward
    assert full.forward == pytest.approx(30 * (linear + attention), rel=1e-3)
    assert cost.backward == pytest.approx(25 * (linear + 2 * attention) + 5 * linear, rel=1e-3)
    attach(model, stage(trains={"lora": "content", "rank": 8}), 0)
    lora = set(trainable_names(model, stage(trains={"lora": "content", "rank": 8})))
    assert step_costs(model, (4, 4, 16, 60, 90), lora).total / 1e12 == pytest.approx(461, rel=0.01)
