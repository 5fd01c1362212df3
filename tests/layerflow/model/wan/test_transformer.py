"""Wan's network for layers against diffusers' own, and what it adds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from layerflow.clip import PROMPTED
from layerflow.layer_set import layer_set
from layerflow.model import adapters
from layerflow.model.layers import Layout, native_layout, single_layout
from layerflow.model.wan.blocks import TokenSpan, modulated, prompt_places, token_span
from layerflow.model.wan.transformer import LayerFlowWanTransformer3DModel

CONFIG: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 24,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 8,
    "freq_dim": 16,
    "ffn_dim": 64,
    "num_layers": 2,
    "rope_max_seq_len": 64,
}
TOKENS = 6  # of a prompt


def networks() -> tuple[WanTransformer3DModel, LayerFlowWanTransformer3DModel]:
    """diffusers' network and ours with its weights."""
    torch.manual_seed(0)
    stock = WanTransformer3DModel(**CONFIG)
    ours = LayerFlowWanTransformer3DModel(**CONFIG, num_text_tokens=TOKENS)
    missing = ours.load_state_dict(stock.state_dict(), strict=False)
    assert set(missing.missing_keys) == {f"layer_embedding.{n}" for n in ("text", "video", "given")}
    assert not missing.unexpected_keys
    return stock, ours


def marked() -> LayerFlowWanTransformer3DModel:
    """Ours with embeddings that are not zero."""
    _, ours = networks()
    generator = torch.Generator().manual_seed(1)
    for parameter in ours.layer_embedding.parameters():
        parameter.data.normal_(generator=generator)
    return ours


def batch(frames: int, prompts: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, text and timesteps of two samples."""
    generator = torch.Generator().manual_seed(2)
    latents = torch.randn(2, frames, 4, 4, 6, generator=generator)
    text = torch.randn(2, prompts * TOKENS, 8, generator=generator)
    return latents, text, torch.tensor([300.0, 700.0])


GIVEN = torch.tensor([[False, False, False, True], [True, True, False, False]])


@torch.no_grad()
def test_one_layer_is_exactly_what_diffusers_computes() -> None:
    stock, ours = networks()
    latents, text, timestep = batch(5, prompts=1)
    expected = stock(latents.transpose(1, 2), timestep, text, return_dict=False)[0]
    found = ours(latents, text, timestep, layout=single_layout(5), return_dict=False)[0]
    assert torch.equal(found, expected.transpose(1, 2))
    assert expected.abs().mean() > 0.1


@torch.no_grad()
def test_given_layers_at_zero_are_exactly_one_timestep_a_token_of_diffusers() -> None:
    """Continuous positions and one prompt three times: then diffusers can say the same."""
    stock, ours = networks()
    latents, text, timestep = batch(8, prompts=1)
    clean = GIVEN.repeat_interleave(2, 1).repeat_interleave(6, 1)  # 2 frames of 6 tokens a layer
    per_token = torch.where(clean, 0.0, timestep[:, None])
    expected = stock(latents.transpose(1, 2), per_token, text, return_dict=False)[0]
    layout = native_layout(8, shared_positions=False)
    three = torch.cat([text] * 3, 1)
    found = ours(latents, three, timestep, GIVEN, layout, return_dict=False)[0]
    assert (found - expected.transpose(1, 2)).abs().max() < 1e-6
    told = stock(latents.transpose(1, 2), timestep, text, return_dict=False)[0]
    assert (found - told.transpose(1, 2)).abs().max() > 1e-3


@torch.no_grad()
def test_a_layer_reads_its_own_prompt_and_alpha_that_of_the_foreground() -> None:
    """Without self-attention tokens do not mix, so each prompt's reach can be seen."""
    model = marked()
    for block in model.blocks:
        block.attn1.to_out[0].weight.zero_()
    latents, text, timestep = batch(4)
    before = model(latents, text, timestep, return_dict=False)[0]
    reach = []
    for slot in range(3):
        other = text.clone()
        other[:, slot * TOKENS : (slot + 1) * TOKENS] += 1
        moved = (model(latents, other, timestep, return_dict=False)[0] - before).abs()
        reach.append([bool(moved[:, frame].max() > 1e-4) for frame in range(4)])
    assert reach == [
        [True, True, False, False],
        [False, False, True, False],
        [False, False, False, True],
    ]


def test_layers_without_a_prompt_read_that_of_the_whole_picture() -> None:
    layout = Layout(layer_set("rgba").layers, (1, 2, 1, 1), PROMPTED[1:])
    mattes = {matte: colour for colour, matte in layer_set("rgba").mattes.items()}
    assert prompt_places(layout, mattes) == (1, 1, 1, 0, 1)


@torch.no_grad()
def test_shared_positions_let_each_layer_count_its_time_from_0() -> None:
    """With zero embeddings and one prompt nothing tells layers apart: they may change places."""
    _, ours = networks()
    latents, text, timestep = batch(8, prompts=1)
    text = torch.cat([text] * 3, 1)
    turned = latents.roll(2, 1)
    found = ours(latents, text, timestep, return_dict=False)[0]
    assert torch.allclose(ours(turned, text, timestep)[0].roll(-2, 1), found, atol=1e-5)
    apart = native_layout(8, shared_positions=False)
    running = ours(latents, text, timestep, layout=apart, return_dict=False)[0]
    moved = ours(turned, text, timestep, layout=apart, return_dict=False)[0].roll(-2, 1)
    assert (moved - running).abs().max() > 1e-3


def test_a_part_of_the_tokens_is_computed_as_in_the_whole() -> None:
    """Parts that end inside a frame, as context parallelism makes them."""
    places, device = (0, 0, 1, 2), torch.device("cpu")
    x, scale, shift = torch.randn(2, 24, 8), torch.randn(2, 4, 8), torch.randn(2, 4, 8)
    whole = token_span(places, 6, 0, 24, device)
    assert whole == TokenSpan(((0, 0, 12), (1, 12, 18), (2, 18, 24)), (0, 4))
    expected = modulated(x, scale, shift, whole)
    for start, stop in ((0, 8), (8, 16), (16, 24), (12, 24)):
        span = token_span(places, 6, start, stop, device)
        rows = slice(*span.frames)
        part = modulated(x[:, start:stop], scale[:, rows], shift[:, rows], span)
        assert torch.equal(part, expected[:, start:stop])
    assert token_span(places, 6, 8, 16, device).runs == ((0, 0, 4), (1, 4, 8))


@contextmanager
def everything_in_double() -> Iterator[None]:
    """Wan computes norms and modulation in float32 whatever it is given; here in float64."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "float", Tensor.double)
        yield


def test_gradients_of_the_path_with_given_layers_equal_finite_differences() -> None:
    model = marked().double()
    latents, text, timestep = batch(4)
    inputs = (latents.double(), text.double(), timestep.double(), GIVEN)
    weights = torch.randn(latents.shape, dtype=torch.float64)
    names = [
        "condition_embedder.time_proj.weight",
        "blocks.0.scale_shift_table",
        "blocks.1.attn2.to_k.weight",
        "layer_embedding.given",
        "layer_embedding.text",
        "scale_shift_table",
        "patch_embedding.weight",
    ]
    known = dict(model.named_parameters())

    def loss() -> Tensor:
        return (model(*inputs, return_dict=False)[0] * weights).sum()

    with everything_in_double():
        gradients = torch.autograd.grad(loss(), [known[name] for name in names])
        for name, gradient in zip(names, gradients, strict=True):
            direction = torch.randn_like(known[name])
            with torch.no_grad():
                known[name] += 1e-6 * direction
                above = loss()
                known[name] -= 2e-6 * direction
                below = loss()
                known[name] += 1e-6 * direction
            slope = (above - below) / 2e-6
            assert (gradient * direction).sum().item() == pytest.approx(slope.item(), rel=1e-5), (
                name
            )


def test_checkpointing_changes_no_gradient() -> None:
    model, inputs = marked(), batch(4)
    gradients = []
    for recompute in (False, True):
        if recompute:
            model.enable_gradient_checkpointing()
        model.zero_grad()
        model(*inputs, GIVEN, return_dict=False)[0].square().mean().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])  # type: ignore[union-attr]
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@torch.no_grad()
def test_the_motion_adapter_acts_on_samples_whose_gate_is_open() -> None:
    model, inputs = marked(), batch(4)
    plain = model(*inputs, return_dict=False)[0]
    adapters.add_adapter(model, "motion", rank=2, alpha=2.0, blocks=[1])
    for name, parameter in adapters.adapter_parameters(model, "motion").items():
        assert name.startswith("blocks.1.attn")
        parameter.normal_()
    gate = torch.tensor([0.0, 1.0])
    moved = model(*inputs, motion_gate=gate, return_dict=False)[0]
    assert torch.equal(moved[0], plain[0])
    assert (moved[1] - plain[1]).abs().max() > 1e-3


def test_what_does_not_fit_is_refused_by_name() -> None:
    _, ours = networks()
    latents, text, timestep = batch(4)
    with pytest.raises(ValueError, match="do not divide among 4 layers"):
        ours(latents[:, :3], text, timestep)
    with pytest.raises(ValueError, match="17 text tokens do not divide"):
        ours(latents, text[:, :17], timestep)
    with pytest.raises(ValueError, match="multiples of 2"):
        ours(latents[..., :5], text, timestep)
    with pytest.raises(ValueError, match="rotary positions reach 64"):
        ours(
            latents.repeat(1, 17, 1, 1, 1),
            text,
            timestep,
            layout=native_layout(68, shared_positions=False),
        )
    for wrong in (
        {"image_dim": 8},
        {"mode": "official"},
        {"positions": "none"},
        {"patch_size": (2, 2, 2)},
    ):
        with pytest.raises(ValueError, match=r"not|must be"):
            LayerFlowWanTransformer3DModel(**{**CONFIG, **wrong})
