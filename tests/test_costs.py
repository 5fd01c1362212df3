"""The formulas of FLOPs and memory against counts of what the network does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.train_gpu import CONFIG_2B, SHAPE_2B, planned_bytes, random_batch
from bench.train_memory import count_bytes, count_flops, network
from layerflow.presets import TINY, tiny_transformer
from manifests.train import Stage, TrainManifest, parse
from trainer.costs import block_parts, step_costs
from trainer.stages import trainable_names

SIXTH = {"blocks": [1], "also": ["layer_embedding*"]}
LORA: dict[str, Any] = {"lora": "content", "rank": 256, "blocks": [1]}


def config_2b(layers: int) -> dict[str, Any]:
    return {**CONFIG_2B, "num_layers": layers}


def manifest(trains: Any, **changes: Any) -> TrainManifest:
    stage = {"name": "a", "steps": 1, "lr": 1e-3, "trains": trains, "mixture": [{"latents": "x"}]}
    return parse({"model": "x", "stages": [stage], **changes})


def stage_of(trains: Any) -> Stage:
    return manifest(trains).stages[0]


@pytest.mark.parametrize(
    "trains",
    [
        "full",
        SIXTH,
        {**LORA, "rank": 8},
        {"lora": "motion", "rank": 8},
        {"blocks": [2], "also": ["proj_out*"]},
    ],
    ids=["full", "sixth", "lora", "lora-all", "head"],
)
def test_flops_equal_what_torch_counts(trains: Any) -> None:
    """On the tiny network 1.1 % for the embeddings that the formula leaves out; else 0.3 %."""
    tiny = dict(tiny_transformer(TINY, channels=27).config)
    tiny = {name: value for name, value in tiny.items() if not name.startswith("_")}
    cases = [(tiny, (2, 4, 4, 27, 4, 4), 0.011), (config_2b(3), SHAPE_2B, 0.003)]
    for config, shape, tolerance in cases:
        stage = stage_of(trains)
        model = network(stage, config)
        batch = random_batch(model.config, shape)
        forward, backward = count_flops(stage, config, batch)
        costs = step_costs(model, shape[1:], set(trainable_names(model, stage)))
        assert forward == pytest.approx(shape[0] * costs.forward, rel=tolerance)
        assert backward == pytest.approx(shape[0] * costs.backward, rel=tolerance)


@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
@pytest.mark.parametrize("precision", ["bf16", pytest.param("fp32", marks=pytest.mark.slow)])
@pytest.mark.parametrize("trains", [SIXTH, LORA], ids=["sixth", "lora"])
def test_memory_estimate_is_near_what_a_step_holds(
    trains: Any, precision: str, checkpointing: str
) -> None:
    """2B width, 3 blocks, 22,278 tokens: within 9 % of the bytes that live at once."""
    said = manifest(trains, precision=precision, checkpointing=checkpointing)
    stage, config = said.stages[0], config_2b(3)
    held = count_bytes(said, stage, config, SHAPE_2B)
    model = network(stage, config)
    estimate = planned_bytes(said, stage, model, SHAPE_2B)
    assert estimate == pytest.approx(held, rel=0.09)


def test_what_the_backward_pass_does_in_each_block() -> None:
    model = network(stage_of(LORA), config_2b(3))
    lora = trainable_names(model, stage_of(LORA))
    assert block_parts(model, lora) == ["untouched", "lora", "passed"]
    base = trainable_names(model, stage_of(SIXTH))
    assert block_parts(model, base) == ["passed", "whole", "passed"]
    assert block_parts(model, ["proj_out.weight"]) == ["untouched"] * 3


@pytest.mark.slow
def test_gpu_bench_runs_without_ray_datasets_and_pyarrow(tmp_path: Path) -> None:
    """On a bare GPU machine torch, diffusers and peft must do; here its variants run on the CPU."""
    file = tmp_path / "figures.json"
    code = (
        "import runpy, sys\n"
        "absent = ('ray', 'datasets', 'pyarrow', 'pandas', 'tensorboard', 'wandb', 'av')\n"
        "for name in absent: sys.modules[name] = None\n"
        f"sys.argv = ['train_gpu.py', '--tiny', '--steps', '1', '--compile', 'no', '--json', "
        f"{str(file)!r}]\n"
        "runpy.run_path('bench/train_gpu.py', run_name='__main__')\n"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(file.read_text())
    assert [(f["stage"], f["checkpointing"]) for f in found] == [
        (stage, kind) for stage in ("content", "base") for kind in ("none", "full")
    ]
    assert all(f["seconds"] > 0 and not f["error"] for f in found)
