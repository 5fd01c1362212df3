"""Golden vectors of the official network, sampler, loss and schedule; negative controls."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from layerflow.model import adapters
from layerflow.model.layers import OFFICIAL
from layerflow.official import verify
from tests.support.official_reference import make_golden

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def golden(shared: Path) -> Path:
    torch.set_num_threads(1)
    return shared / "golden"


NAMES = (
    "gen_rgb",
    "gen_rgba",
    "seg_rgba",
    "fg2bg_rgba",
    "schedule",
    "sampler_gen_rgb_4step",
    "loss_gen_rgb",
)


@pytest.mark.parametrize("name", NAMES)
def test_golden_file_passes(golden, name):
    results = verify.verify_file(golden / f"{name}.safetensors")
    assert results.passes(TOLERANCE), "\n".join(results.lines(TOLERANCE))
    assert len(results.differences) >= 8


@pytest.fixture(scope="module")
def network(golden):
    def load(name):
        metadata, tensors = verify.read_golden(golden / f"{name}.safetensors")
        if "weights" in metadata:
            weights = metadata["weights"].split()[0]
            return verify.load_network(*verify.read_golden(golden / weights)), tensors
        return verify.load_network(metadata, tensors), tensors

    return load


def only(tensors, case="A"):
    """One case and its `infer` outputs: enough for a control, and quick."""
    other = "B" if case == "A" else "A"
    keep = {}
    for key, value in tensors.items():
        if f".{other}." in key or key.startswith("d."):
            continue
        if key.startswith("y.") and "infer" not in key:
            continue
        keep[key] = value
    return keep


def largest(model, tensors):
    return verify.verify_network(model, tensors, "control").largest


def test_control_unchanged_passes(network):
    model, tensors = network("gen_rgba")
    assert largest(model, only(tensors)) <= TOLERANCE


def test_control_lora_scale(network):
    model, tensors = network("gen_rgba")
    for layer in adapters.lora_layers(model, "content").values():
        layer.scaling["content"] = 1.0
    assert largest(model, only(tensors)) > 0.1


def test_control_adapters_swapped(network):
    model, tensors = network("gen_rgba")
    for layer in adapters.lora_layers(model, "content").values():
        for half in (layer.lora_A, layer.lora_B):
            half["motion"], half["content"] = half["content"], half["motion"]
        layer.scaling["motion"], layer.scaling["content"] = 0.25, 0.5
    adapters.gate_motion(model)
    for layer in adapters.lora_layers(model, "content").values():
        layer.lora_B["content"]._forward_hooks.clear()
    assert largest(model, only(tensors)) > 0.1


def test_control_given_in_the_wrong_place(network):
    model, tensors = network("seg_rgba")
    layout = dataclasses.replace(model.official.layout, given_span=(0, 4))
    model.official = dataclasses.replace(model.official, layout=layout)
    assert largest(model, only(tensors)) > 0.1


def test_control_prompts_not_sample_major(network):
    model, tensors = network("gen_rgba")
    changed = only(tensors)
    text = changed["x.text"]
    changed["x.text"] = text.view(3, 2, *text.shape[1:]).transpose(0, 1).reshape(text.shape)
    assert largest(model, changed) > 0.01


def test_control_no_layer_embedding(network):
    model, tensors = network("gen_rgba")
    model.layer_embedding.text.data.zero_()
    assert largest(model, only(tensors)) > 0.1


def test_control_wrong_epsilon(network):
    model, tensors = network("gen_rgb")
    model.norm_out.norm.eps = 1e-5
    assert largest(model, only(tensors)) > TOLERANCE


def test_control_timestep_off_by_one(network):
    model, tensors = network("gen_rgb")
    changed = only(tensors)
    changed["x.A.idx"] = changed["x.A.idx"] + 1
    assert largest(model, changed) > 0.1


def test_control_position_rows_from_the_tail(network):
    model, tensors = network("gen_rgb")
    model.position_tables.video.data = model.position_tables.video.roll(-1, 0)
    assert largest(model, only(tensors)) > 0.1


def test_control_motion_gate_in_the_loss(network):
    model, tensors = network("loss_gen_rgb")
    changed = dict(tensors)
    changed["x.motion_scale"] = tensors["x.motion_scale"].flip(0)
    assert verify.verify_loss(model, changed, "control").largest > 1e-3


def test_control_first_noise_instead_of_second(network):
    model, tensors = network("sampler_gen_rgb_4step")
    changed = dict(tensors)
    changed["n.1.second"], changed["n.1.first"] = tensors["n.1.first"], tensors["n.1.second"]
    assert verify.verify_sampler(model, changed, "control").largest > 0.1


@pytest.mark.parametrize("name", OFFICIAL)
def test_every_configuration_against_the_stock_model(tmp_path, name):
    """Network and loss of each configuration, written by diffusers' model with merged weights."""
    for file in make_golden(name, tmp_path):
        results = verify.verify_file(file)
        assert results.passes(TOLERANCE), "\n".join(results.lines(TOLERANCE))
        assert name in results.kind


def test_outputs_without_a_rule_are_an_error(golden, tmp_path):
    tensors = load_file(golden / "schedule.safetensors")
    tensors["table.surprise"] = torch.zeros(3)
    save_file(tensors, tmp_path / "odd.safetensors")
    with pytest.raises(ValueError, match=r"table\.surprise"):
        verify.verify_file(tmp_path / "odd.safetensors")


def test_not_a_golden_file(tmp_path):
    save_file({"a": torch.zeros(2)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="no golden file"):
        verify.verify_file(tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="no readable safetensors"):
        verify.verify_file(tmp_path / "b.safetensors")


def test_command_exit_status(golden):
    from layerflow.cli.main import build_app

    app = build_app()
    file = str(golden / "schedule.safetensors")
    passing = CliRunner().invoke(app, ["convert", "--verify", file])
    assert passing.exit_code == 0 and "passes" in passing.output
    failing = CliRunner().invoke(app, ["convert", "--verify", file, "--tolerance", "1e-12"])
    assert failing.exit_code == 1 and "FAILS" in failing.output
