"""Motion and content LoRA: the per-sample gate, what is trainable, files, merging."""

from __future__ import annotations

import copy
import json
from contextlib import suppress

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from layerflow.model import adapters
from layerflow.model.adapter_files import GATED_WEIGHTS, METADATA_KEY, read_adapter, write_adapter
from layerflow.model.cogvideox.from_base import make_scheduler
from layerflow.model.cogvideox.noise import VPrediction
from layerflow.model.cogvideox.transformer import LayerFlowTransformer3DModel
from layerflow.model.objective import layer_loss
from tests.support.model_kit import batch, plain_cogvideox, small_transformer


def with_adapters(**options):
    """A network with both adapters, neither of them zero."""
    model = small_transformer(**options)
    adapters.add_adapter(model, "motion", rank=2, alpha=1)
    adapters.add_adapter(model, "content", rank=3, alpha=3, blocks=[1])
    generator = torch.Generator().manual_seed(5)
    for name in ("motion", "content"):
        for parameter in adapters.adapter_parameters(model, name).values():
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def run(model, data, gate=None):
    latents, text = data["latents"].flatten(1, 2), data["prompt_embeds"].flatten(1, 2)
    with torch.no_grad():
        if gate is None:
            return model(latents, text, data["timesteps"]).sample
        with adapters.motion_gate(model, torch.tensor(gate)):
            return model(latents, text, data["timesteps"]).sample


def test_the_gate_is_per_sample():
    model, data = with_adapters(), batch()
    off, on, mixed = (run(model, data, gate) for gate in ([0.0, 0.0], [1.0, 1.0], [0.0, 1.0]))
    assert torch.equal(mixed[0], off[0]) and torch.equal(mixed[1], on[1])
    assert (on - off).abs().amax((1, 2, 3, 4)).min() > 1e-3


def test_outside_any_block_the_gate_is_zero():
    model, data = with_adapters(), batch()
    assert torch.equal(run(model, data), run(model, data, [0.0, 0.0]))
    with pytest.raises(RuntimeError), adapters.motion_gate(model, torch.ones(2)):
        raise RuntimeError
    assert torch.equal(run(model, data), run(model, data, [0.0, 0.0]))


def test_gate_zero_is_the_network_without_motion():
    model, data = with_adapters(), batch()
    gated = run(model, data)
    model.delete_adapters("motion")
    assert torch.equal(gated, run(model, data))


def test_blocks_nest():
    model, data = with_adapters(), batch()
    with adapters.motion_gate(model, torch.ones(2)):
        run(model, data, [0.0, 0.0])
        inner = model(
            data["latents"].flatten(1, 2), data["prompt_embeds"].flatten(1, 2), data["timesteps"]
        ).sample
    assert torch.equal(inner, run(model, data, [1.0, 1.0]))


def gradients(model):
    return {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


@pytest.mark.parametrize("through", ["block", "argument"])
def test_checkpointing_sees_the_gate_of_the_forward_pass(through):
    """Recomputation uses the forward pass' gate even if it has been changed since."""
    process, data = VPrediction(make_scheduler("ddim")), batch()
    gate = torch.tensor([1.0, 0.0])
    found = {}
    for checkpointed in (False, True):
        model = with_adapters()
        adapters.set_trainable(model, adapters.adapter_parameters(model, "motion"))
        if checkpointed:
            model.enable_gradient_checkpointing()
        if through == "argument":
            loss = layer_loss(model, process, **data, motion_gate=gate)
        else:
            with adapters.motion_gate(model, gate):
                loss = layer_loss(model, process, **data)
        with adapters.motion_gate(model, 1 - gate):
            loss.mean().backward()
        found[checkpointed] = gradients(model)
    assert found[False].keys() == found[True].keys() and len(found[True]) == 16
    for name, grad in found[False].items():
        assert torch.equal(grad, found[True][name]), name
    assert max(grad.abs().max() for grad in found[True].values()) > 1e-4


def test_only_static_samples_train_motion():
    model, data = with_adapters(), batch()
    adapters.set_trainable(model, adapters.adapter_parameters(model, "motion"))
    process = VPrediction(make_scheduler("ddim"))
    for gate, trains in ([0.0, 0.0], False), ([0.0, 1.0], True):
        model.zero_grad()
        loss = layer_loss(model, process, **data, motion_gate=torch.tensor(gate))
        loss.mean().backward()
        assert any(bool(grad.any()) for grad in gradients(model).values()) is trains


def trainable(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_nothing_but_set_trainable_changes_what_is_trainable(tmp_path):
    model = small_transformer()
    before = {id(p) for p in model.parameters() if p.requires_grad}

    def same():
        assert {id(p) for p in model.parameters() if p.requires_grad} == before

    adapters.add_adapter(model, "motion", rank=2, alpha=2)
    same()
    adapters.add_adapter(model, "content", rank=2, alpha=2)
    same()
    wanted = adapters.set_trainable(model, adapters.adapter_parameters(model, "content"))
    assert trainable(model) == set(wanted) and len(wanted) == 16
    before = {id(p) for p in model.parameters() if p.requires_grad}
    model.set_adapter(["motion", "content"])
    same()
    model.set_adapters(["motion"], [0.5])
    same()
    model.set_adapters(["motion", "content"])
    same()
    adapters.save_adapter(model, "content", tmp_path / "content")
    adapters.load_adapter(model, "third", tmp_path / "content")
    same()
    model.load_lora_adapter(str(tmp_path / "content"), prefix="transformer", adapter_name="fourth")
    same()
    assert model.active_adapters() == ["motion", "content", "third", "fourth"]


def test_set_trainable_is_strict():
    model = small_transformer()
    with pytest.raises(ValueError, match="no such parameters"):
        adapters.set_trainable(model, ["proj_out.weight", "proj_out.weights"])
    with pytest.raises(ValueError, match="nothing to train"):
        adapters.set_trainable(model, [])
    names = adapters.set_trainable(model, ["proj_out.weight", "layer_embedding.given"])
    assert trainable(model) == set(names) == {"proj_out.weight", "layer_embedding.given"}


def test_blocks_and_targets():
    model = small_transformer()
    adapters.add_adapter(model, "a", rank=1, alpha=1, blocks=[1], targets=["to_q", "to_out.0"])
    assert set(adapters.lora_layers(model, "a")) == {
        "transformer_blocks.1.attn1.to_q",
        "transformer_blocks.1.attn1.to_out.0",
    }
    for wrong, message in (
        ({"blocks": [2]}, "blocks 0 to 1"),
        ({"targets": ["to_x"]}, "no linear layer"),
        ({"rank": 0}, "rank must be"),
        ({"name": "a"}, "exists already"),
        ({"name": "../a"}, "may hold letters"),
    ):
        with pytest.raises(ValueError, match=message):
            adapters.add_adapter(model, **{"name": "b", "rank": 1, "alpha": 1, **wrong})


def test_adapters_are_float32_on_a_bfloat16_network():
    model = small_transformer().to(torch.bfloat16)
    adapters.add_adapter(model, "motion", rank=2, alpha=2)
    own = adapters.adapter_parameters(model, "motion").values()
    assert all(parameter.dtype == torch.float32 for parameter in own)
    data = {k: v.bfloat16() if v.is_floating_point() else v for k, v in batch().items()}
    assert run(model, data, [1.0, 0.0]).dtype == torch.bfloat16


def test_file_says_rank_alpha_targets_and_loads_back(tmp_path):
    model, data = with_adapters(), batch()
    path = adapters.save_adapter(model, "content", tmp_path)
    with safe_open(path, "pt") as file:
        said = json.loads(file.metadata()[METADATA_KEY])
        assert all(key.startswith("transformer.transformer_blocks.1.") for key in file.keys())  # noqa: SIM118
    assert said["transformer.r"] == 3 and said["transformer.lora_alpha"] == 3
    fresh = small_transformer()
    adapters.load_adapter(fresh, "content", tmp_path)
    model.delete_adapters("motion")
    assert torch.equal(run(fresh, data), run(model, data))


def test_stock_diffusers_loads_our_file_with_the_same_effect(tmp_path):
    """Our native start of a CogVideoX network and diffusers' own change alike."""
    from diffusers import CogVideoXDDIMScheduler, CogVideoXPipeline

    from layerflow.model.cogvideox.from_base import native_from
    from layerflow.model.layers import single_layout

    base = plain_cogvideox(rotary=False)
    ours = native_from(copy.deepcopy(base), {"num_frames": 16})
    adapters.add_adapter(ours, "content", rank=2, alpha=1, blocks=[0])
    for parameter in adapters.adapter_parameters(ours, "content").values():
        parameter.data = torch.randn_like(parameter)
    adapters.save_adapter(ours, "content", tmp_path)
    pipe = CogVideoXPipeline.__new__(CogVideoXPipeline)
    pipe.register_modules(
        tokenizer=None,
        text_encoder=None,
        vae=None,
        transformer=base,
        scheduler=CogVideoXDDIMScheduler(),
    )
    latents, text, t = torch.randn(1, 5, 4, 4, 6), torch.randn(1, 6, 8), torch.tensor([300])
    with torch.no_grad():
        plain = base(latents, text, t).sample
        pipe.load_lora_weights(str(tmp_path), adapter_name="content")
        stock = base(latents, text, t).sample
        own = ours(latents, text, t, layout=single_layout(5)).sample
    assert (stock - plain).abs().max() > 1e-2
    assert (stock - own).abs().max() < 1e-5
    assert base.peft_config["content"].lora_alpha == 1


def test_motion_is_not_there_for_loaders_that_know_no_gate(tmp_path):
    """diffusers' loader, by folder or by name, takes nothing of it; ours takes it gated."""
    from layerflow.model.cogvideox.from_base import native_from
    from layerflow.model.layers import single_layout

    base = plain_cogvideox(rotary=False)
    ours = native_from(copy.deepcopy(base), {"num_frames": 16})
    adapters.add_adapter(ours, "motion", rank=2, alpha=1)
    for parameter in adapters.adapter_parameters(ours, "motion").values():
        torch.nn.init.normal_(parameter, std=0.3)
    file = adapters.save_adapter(ours, "motion", tmp_path)
    assert file.name == GATED_WEIGHTS and [file] == list(tmp_path.iterdir())
    for name in (None, GATED_WEIGHTS):
        with suppress(OSError, ValueError):  # or it says that no key is for this network
            base.load_lora_adapter(str(tmp_path), weight_name=name, adapter_name="motion")
        assert not getattr(base, "peft_config", None)
    again = native_from(plain_cogvideox(rotary=False), {"num_frames": 16})
    adapters.load_adapter(again, "motion", tmp_path)
    data = (torch.randn(1, 5, 4, 4, 6), torch.randn(1, 6, 8), torch.tensor([300]))
    how = {"layout": single_layout(5), "return_dict": False}
    with torch.no_grad():
        plain = base(*data, return_dict=False)[0]
        assert (again(*data, **how)[0] - plain).abs().max() < 1e-5
        gate = torch.ones(1)
        assert (again(*data, motion_gate=gate, **how)[0] - plain).abs().max() > 1e-2


def test_a_motion_file_of_an_older_folder_opens_and_gives_way(tmp_path):
    model, data, folder = with_adapters(), batch(), tmp_path / "adapters" / "motion"
    model.save_pretrained(tmp_path)
    (folder / GATED_WEIGHTS).unlink()
    state = adapters.adapter_state_dict(model, "motion")
    write_adapter(state, adapters.adapter_config(model, "motion"), "motion", folder)
    old = LayerFlowTransformer3DModel.from_pretrained(tmp_path)
    assert (run(old, data, [1.0, 0.0]) - run(model, data, [1.0, 0.0])).abs().max() < 1e-6
    adapters.save_adapter(old, "motion", folder)
    assert [file.name for file in folder.iterdir()] == [GATED_WEIGHTS]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("transformer.transformer_blocks.1.attn1.to_q.lora_B.weight"), "missing"),
        (lambda t: t.update({"transformer.a.lora_A.weight": torch.zeros(3, 2)}), "unexpected"),
        (lambda t: t.update({"other": torch.zeros(1)}), "unexpected tensor other"),
        (
            lambda t: t.update(
                {"transformer.transformer_blocks.1.attn1.to_q.lora_A.weight": torch.zeros(4, 32)}
            ),
            r"to_q\.lora_A\.weight is \(4, 32\), not \(3, 32\)",
        ),
    ],
)
def test_loading_is_strict(tmp_path, change, message):
    path = adapters.save_adapter(with_adapters(), "content", tmp_path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata)
    fresh = small_transformer()
    with pytest.raises(ValueError, match=message):
        adapters.load_adapter(fresh, "content", tmp_path)
    assert adapters.adapter_names(fresh) == []


def test_damaged_and_silent_files(tmp_path):
    path = adapters.save_adapter(with_adapters(), "content", tmp_path)
    save_file(load_file(path), path)
    with pytest.raises(ValueError, match="does not say its rank"):
        read_adapter(tmp_path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="no readable adapter"):
        read_adapter(tmp_path)


def test_a_saved_network_carries_its_adapters(tmp_path):
    model, data = with_adapters(), batch()
    model.save_pretrained(tmp_path)
    plain = LayerFlowTransformer3DModel.from_pretrained(tmp_path)
    assert adapters.adapter_names(plain) == ["motion", "content"]
    for gate in (None, [1.0, 0.0]):
        assert (run(plain, data, gate) - run(model, data, gate)).abs().max() < 1e-6
    assert trainable(plain) and not any("lora" in name for name in trainable(plain))


def test_a_copy_has_a_gate_of_its_own():
    model, data = with_adapters(), batch()
    twin = copy.deepcopy(model)
    with adapters.motion_gate(model, torch.ones(2)):
        assert torch.equal(run(twin, data), run(model, data, [0.0, 0.0]))
    assert torch.equal(run(twin, data, [1.0, 1.0]), run(model, data, [1.0, 1.0]))


def test_motion_loaded_through_diffusers_is_gated_too(tmp_path):
    model, data = with_adapters(), batch()
    state, config = (
        f(model, "motion") for f in (adapters.adapter_state_dict, adapters.adapter_config)
    )
    write_adapter(state, config, "motion", tmp_path)
    fresh = small_transformer()
    fresh.load_lora_adapter(str(tmp_path), prefix="transformer", adapter_name="motion")
    plain = run(small_transformer(), data)
    assert torch.equal(run(fresh, data), plain)
    assert (run(fresh, data, [1.0, 1.0]) - plain).abs().max() > 1e-3
