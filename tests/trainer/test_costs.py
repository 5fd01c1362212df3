"""The formulas of FLOPs and memory against counts of what the network does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX

from bench.train_gpu import CONFIG_2B, SHAPE_2B, planned_bytes, random_batch
from bench.train_memory import count_bytes, count_flops, count_forward_bytes, network
from layerflow.layer_set import layer_set, prompted_of
from layerflow.model import autoencoder
from layerflow.model.base import block_parts
from layerflow.model.cogvideox.costs import step_costs
from layerflow.model.cogvideox.presets import TINY, tiny_transformer
from layerflow.model.info import cost
from manifests.train import TrainManifest, parse
from manifests.train_stage import Stage
from tests.support import ROOT
from trainer.data import Batch
from trainer.planning.costs import forward_bytes, peak_of
from trainer.planning.count import Live, decoder_bytes
from trainer.stages import trainable_names

SIXTH = {"blocks": [1], "also": ["layer_embedding*"]}
LORA: dict[str, Any] = {"lora": "content", "rank": 256, "blocks": [1]}


def config_2b(layers: int) -> dict[str, Any]:
    return {**CONFIG_2B, "num_layers": layers}


def of_layers(config: dict[str, Any], name: str) -> dict[str, Any]:
    """The same network with another set of layers."""
    prompts = len(layer_set(name).prompted)
    text = prompts * config["num_text_tokens"]
    return {**config, "layers": name, "num_prompts": prompts, "max_text_seq_length": text}


def manifest(trains: Any, **changes: Any) -> TrainManifest:
    stage = {"name": "a", "steps": 1, "lr": 1e-3, "trains": trains, "mixture": [{"latents": "x"}]}
    return parse({"model": "x", "stages": [stage], **changes})


def stage_of(trains: Any) -> Stage:
    return manifest(trains).stages[0]


@pytest.mark.parametrize(
    ("trains", "checkpointing"),
    [
        ("full", "none"),
        (SIXTH, "none"),
        (SIXTH, "full"),
        ({**LORA, "rank": 8}, "none"),
        ({**LORA, "rank": 8}, "full"),
        ({"lora": "motion", "rank": 8}, "none"),
        ({"blocks": [2], "also": ["proj_out*"]}, "full"),
    ],
    ids=["full", "sixth", "sixth-full", "lora", "lora-full", "lora-all", "head-full"],
)
def test_flops_equal_what_torch_counts(trains: Any, checkpointing: str) -> None:
    """Embeddings, modulation and last layer are in it: on the tiny network they are 1 %."""
    tiny = dict(tiny_transformer(TINY, channels=27).config)
    tiny = {name: value for name, value in tiny.items() if not name.startswith("_")}
    cases = [(tiny, (2, 4, 4, 27, 4, 4), 0.001), (config_2b(3), SHAPE_2B, 0.001)]
    for config, shape, tolerance in cases:
        stage = stage_of(trains)
        model = network(stage, config)
        batch = random_batch(model, shape)
        forward, backward = count_flops(stage, config, batch, checkpointing)
        names = set(trainable_names(model, stage))
        costs = step_costs(model, shape[1:], names, checkpointing)
        assert forward == pytest.approx(shape[0] * costs.forward, rel=tolerance)
        again = costs.backward + costs.recomputed
        assert backward == pytest.approx(shape[0] * again, rel=tolerance)
        assert bool(costs.recomputed) is (checkpointing == "full")


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


@pytest.mark.parametrize("layers", ["rgb", "rgbax2"])
def test_flops_of_other_layers_equal_what_torch_counts(layers: str) -> None:
    """All layers, and of two foregrounds one: then sequence and text are shorter."""
    tiny = dict(tiny_transformer({**TINY, "layers": layers}, channels=27).config)
    tiny = {name: value for name, value in tiny.items() if not name.startswith("_")}
    own, stage = layer_set(layers), stage_of(SIXTH)
    cases = [(tiny, (2, len(own.layers), 4, 27, 4, 4), 0.001)]
    cases.append((of_layers(config_2b(2), layers), (1, len(own.layers), *SHAPE_2B[2:]), 0.001))
    for config, shape, tolerance in cases:
        model = network(stage, config)
        batch = random_batch(model, shape)
        for names in {own.layers, own.with_foregrounds(1)}:
            prompts = len(prompted_of(names))
            few = Batch(
                batch.latents[:, : len(names)],
                batch.prompt_embeds[:, :prompts],
                batch.given[:, : len(names)],
                batch.timesteps,
                batch.noise[:, : len(names)],
                batch.motion_gate,
                names,
            )
            forward, backward = count_flops(stage, config, few)
            trained = set(trainable_names(model, stage))
            seen = (len(names), *shape[2:])
            costs = step_costs(model, seen, trained, prompts=prompts)
            assert forward == pytest.approx(shape[0] * costs.forward, rel=tolerance)
            assert backward == pytest.approx(shape[0] * costs.backward, rel=tolerance)


@pytest.mark.parametrize("layers", ["rgb", "rgba", "rgbax2"])
def test_info_says_what_torch_counts(layers: str) -> None:
    """Of the forward pass, within 1 %: what lies around the blocks is left out."""
    config = of_layers(config_2b(10), layers)
    stage, count = stage_of(SIXTH), len(layer_set(layers).layers)
    batch = random_batch(network(stage, config), (1, count, *SHAPE_2B[2:]))
    forward, _ = count_flops(stage, config, batch)
    said = {**network(stage, config).config, "_class_name": "LayerFlowTransformer3DModel"}
    assert cost(said, {}, 0).forward_flops == pytest.approx(forward, rel=0.01)
    assert cost(said, {}, 0).latent_frames == 4 * count


@pytest.mark.parametrize("layers", ["rgb", "rgbax2"])
@pytest.mark.parametrize(("trains", "kind"), [(SIXTH, "none"), (SIXTH, "full"), (LORA, "full")])
def test_memory_of_other_layers_is_near_what_a_step_holds(
    layers: str, trains: Any, kind: str
) -> None:
    """2B width, 3 blocks, in bf16: within 3 % of the bytes that live at once."""
    said = manifest(trains, precision="bf16", checkpointing=kind)
    stage, config = said.stages[0], of_layers(config_2b(3), layers)
    shape = (1, len(layer_set(layers).layers), *SHAPE_2B[2:])
    held = count_bytes(said, stage, config, shape)
    assert planned_bytes(said, stage, network(stage, config), shape) == pytest.approx(
        held, rel=0.03
    )


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_a_validation_pass_holds_what_the_plan_says(precision: str) -> None:
    """2B width, two samples of 6,078 tokens in a pass without gradients: within 5 %."""
    said = manifest(SIXTH, precision=precision)
    stage, config = said.stages[0], config_2b(2)
    shape = (2, 4, 1, *SHAPE_2B[3:])
    model = network(stage, config)
    trained = sum(p.numel() for n, p in model.named_parameters() if "blocks.1." in n)
    tokens = shape[0] * step_costs(model, shape[1:], ()).tokens
    planned = forward_bytes(said, model, tokens=tokens, cast=trained)
    held = count_forward_bytes(said, stage, config, shape)
    assert planned == pytest.approx(held, rel=0.05)


def test_decoding_holds_what_is_counted_without_contents(tmp_path: Path) -> None:
    vae = AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2
    ).eval()
    vae.save_pretrained(tmp_path)
    weights, planned = decoder_bytes(tmp_path, (2, 4, 6, 8))
    latents = torch.zeros(1, 2, 4, 6, 8)
    with Live() as live:
        autoencoder.decode(vae, latents)
    assert weights == 4 * sum(p.numel() for p in vae.parameters())
    assert planned == pytest.approx(live.most, rel=0.02)


def test_peaks_are_those_of_the_device_that_is_named() -> None:
    known = {
        "NVIDIA H100 80GB HBM3": 989e12,
        "NVIDIA H100 PCIe": 756e12,
        "NVIDIA H100 NVL": 835e12,
        "H100": 989e12,
        "NVIDIA H200": 989e12,
        "NVIDIA GH200 480GB": 989e12,
        "NVIDIA A100-SXM4-80GB": 312e12,
        "A100-40G": 312e12,
        "NVIDIA GeForce RTX 4090": 165e12,
    }
    assert {name: peak_of(name) for name in known} == known
    for name in (
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA H20",
        "NVIDIA L40",
        "NVIDIA B200",
        "Tesla T4",
        "",
    ):
        assert peak_of(name) is None, name


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
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(file.read_text())
    ways = [("none", "none"), ("full", "none")]
    ways += [(kept, kind) for kept in ("none", "full") for kind in ("int8", "nf4")]
    assert [(f["stage"], f["checkpointing"], f["quantize"]) for f in found] == [
        (stage, *way) for stage in ("content", "base") for way in ways
    ]
    assert all(f["seconds"] > 0 and not f["error"] for f in found)
