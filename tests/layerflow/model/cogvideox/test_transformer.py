"""The network: layouts, marks, starts from CogVideoX and official models, checkpointing."""

from __future__ import annotations

import pytest
import torch

from layerflow.model import adapters
from layerflow.model.cogvideox.from_base import has_plain_positions, make_scheduler, native_from
from layerflow.model.cogvideox.noise import VPrediction
from layerflow.model.cogvideox.positions import crop_region
from layerflow.model.cogvideox.transformer import LayerFlowTransformer3DModel
from layerflow.model.layers import OFFICIAL, native_layout, single_layout
from layerflow.model.objective import layer_loss
from layerflow.official.golden import build_network
from layerflow.official.names import Ready
from tests.support import official_reference as reference
from tests.support.model_kit import batch, plain_cogvideox, randomise, small_transformer

NO_CHANGE = {"num_frames": 16, "layer_embedding_std": 0.0}


def rotary_of(model, frames, height, width):
    """The rotary tables that diffusers' pipeline would pass."""
    from diffusers.pipelines.cogvideo.pipeline_cogvideox import CogVideoXPipeline

    pipe = CogVideoXPipeline.__new__(CogVideoXPipeline)
    object.__setattr__(pipe, "transformer", model)
    object.__setattr__(pipe, "vae_scale_factor_spatial", 8)
    return pipe._prepare_rotary_positional_embeddings(
        height * 8, width * 8, frames, torch.device("cpu")
    )


@pytest.mark.parametrize("rotary", [False, True])
@pytest.mark.parametrize("size", [(5, 4, 6), (3, 6, 4)])
def test_native_started_from_cogvideox_computes_the_same(rotary, size):
    base = plain_cogvideox(rotary)
    frames, height, width = size
    if size != (5, 4, 6) and not rotary:
        base.patch_embed.sample_frames = 1  # stock: any other size is computed anew
    model = native_from(base, NO_CHANGE)
    latents = torch.randn(2, frames, 4, height, width)
    text, t = torch.randn(2, 6, 8), torch.tensor([3, 900])
    tables = rotary_of(base, frames, height, width) if rotary else None
    with torch.no_grad():
        expected = base(latents, text, t, image_rotary_emb=tables, return_dict=False)[0]
        ours = model(latents, text, t, layout=single_layout(frames), return_dict=False)[0]
    assert expected.std() > 0.1
    assert (ours - expected).abs().max() < 1e-5


@pytest.mark.parametrize("rotary", [False, True])
@pytest.mark.parametrize("pixels", [(64, 96), (96, 96), (128, 64)])
def test_a_working_size_of_its_own_leaves_the_base_s_positions(rotary, pixels, tmp_path):
    """Made for another size than the base's, saved, and made once more from that."""
    base = plain_cogvideox(rotary)
    base.patch_embed.sample_frames = 1  # stock: any other size is computed anew
    height, width = (side // 8 for side in pixels)
    sized = {"height": pixels[0], "width": pixels[1], "num_frames": 8}
    native_from(base, sized).save_pretrained(tmp_path)
    saved = LayerFlowTransformer3DModel.from_pretrained(tmp_path)
    assert (saved.config.sample_height, saved.config.sample_width) == (height, width)
    again = native_from(saved, {"height": 16, "width": 32, "num_frames": 16})
    latents, t = torch.randn(2, 3, 4, height, width), torch.tensor([3, 900])
    text = torch.randn(2, 6, 8)
    tables = rotary_of(base, 3, height, width) if rotary else None
    with torch.no_grad():
        expected = base(latents, text, t, image_rotary_emb=tables, return_dict=False)[0]
        for model in (saved, again):
            ours = model(latents, text, t, layout=single_layout(3), return_dict=False)[0]
            assert (ours - expected).abs().max() < 1e-5
    assert expected.std() > 0.1 and again.config.sample_width == 4
    assert (again.config.position_grid == [2, 3]) is rotary


def test_folders_that_say_no_position_grid_keep_the_one_of_their_size():
    config = {
        name: value
        for name, value in dict(
            native_from(plain_cogvideox(True), {"num_frames": 8}).config
        ).items()
        if not name.startswith("_") and name != "position_grid"
    }
    model = LayerFlowTransformer3DModel(**{**config, "sample_height": 8, "sample_width": 12})
    assert model.position_tables.grid == (4, 6)
    for wrong in ([4], [0, 6], ["4", 6]):
        with pytest.raises(ValueError, match="position_grid must be height and width"):
            LayerFlowTransformer3DModel(**config, position_grid=wrong)


def official_network(name):
    source = {key: Ready(value) for key, value in reference.random_weights(name).items()}
    return build_network(source, OFFICIAL[name], (reference.HEIGHT, reference.WIDTH))


@pytest.mark.parametrize("name", ["gen_rgb", "gen_rgba", "seg_rgba", "fg2bg_rgba"])
def test_native_started_from_official_computes_the_same_in_its_layout(name):
    base = official_network(name)
    model = native_from(base, NO_CHANGE)
    assert adapters.adapter_names(model) == ["motion", "content"]
    layout = OFFICIAL[name].layout
    latents = torch.randn(2, layout.num_frames, 16, reference.HEIGHT, reference.WIDTH)
    text = torch.randn(2, len(layout.prompts) * 226, reference.TEXT)
    gate, t = torch.tensor([1.0, 0.0]), torch.tensor([100, 777])
    with torch.no_grad():
        expected = base(latents, text, t, motion_gate=gate, return_dict=False)[0]
        ours = model(latents, text, t, motion_gate=gate, layout=layout, return_dict=False)[0]
        other = model(latents, text, t, motion_gate=1 - gate, layout=layout, return_dict=False)[0]
    assert (ours - expected).abs().max() < 1e-5
    assert (other - expected).abs().max() > 1e-2


def test_untrained_position_tables_become_computed_ones():
    model = official_network("gen_rgb")
    assert not has_plain_positions(model)  # random here
    free = LayerFlowTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, num_layers=1, sample_height=4, sample_width=4
    )
    table = free.position_tables(single_layout(13), 2, 2, like=torch.zeros(())).video
    model.position_tables.video.copy_(table)
    model.position_tables.text.zero_()
    assert has_plain_positions(model)
    native = native_from(model, NO_CHANGE)
    assert native.config.stored_positions is None
    latents, text = torch.randn(1, 21, 16, 6, 6), torch.randn(1, 678, reference.TEXT)
    native(latents, text, torch.tensor([5]))  # any size and length


def test_stored_positions_refuse_other_sizes():
    model = native_from(official_network("gen_rgb"), NO_CHANGE)
    text = torch.randn(1, 678, reference.TEXT)
    with pytest.raises(ValueError, match="stored, not computed"):
        model(torch.randn(1, 12, 16, 8, 4), text, torch.tensor([5]))


def run(model, data, **options):
    text = data["prompt_embeds"].flatten(1, 2)
    with torch.no_grad():
        return model(
            data["latents"].flatten(1, 2), text, data["timesteps"], return_dict=False, **options
        )[0]


def test_a_batch_equals_its_samples():
    model, data = small_transformer(), batch(3)
    data["given"] = torch.tensor([[0, 0, 0, 1], [1, 1, 0, 0], [0, 0, 0, 0]], dtype=torch.bool)
    together = run(model, data, given=data["given"])
    for i in range(3):
        one = {key: value[i : i + 1] for key, value in data.items()}
        alone = run(model, one, given=one["given"])
        assert (together[i : i + 1] - alone).abs().max() < 1e-5


def test_the_given_mark_is_seen_and_starts_at_zero():
    data = batch()
    fresh = small_transformer(noisy=False)
    randomise(fresh.proj_out)
    assert not fresh.layer_embedding.given.any()
    assert torch.equal(run(fresh, data, given=data["given"]), run(fresh, data))
    model = small_transformer()
    changed = run(model, data, given=data["given"]) - run(model, data)
    assert changed[0].abs().max() > 1e-3  # sample 0 has a given layer,
    assert changed[1].abs().max() == 0  # sample 1 has none


def test_layers_are_told_apart():
    """With shared positions only the layer embedding separates the layers."""
    model, data = small_transformer(), batch()
    swapped = dict(data, latents=data["latents"][:, [1, 0, 2, 3]])
    out = run(model, data).view_as(data["latents"])
    other = run(model, swapped).view_as(data["latents"])[:, [1, 0, 2, 3]]
    assert (out - other).abs().max() > 1e-3
    model.layer_embedding.video.data.zero_()
    out = run(model, data).view_as(data["latents"])
    other = run(model, swapped).view_as(data["latents"])[:, [1, 0, 2, 3]]
    assert (out - other).abs().max() < 1e-5


@pytest.mark.parametrize("positions", ["shared", "continuous"])
def test_other_sizes_than_the_configuration(positions):
    model = small_transformer(positions=positions)
    text, t = torch.randn(1, 24, 32), torch.tensor([7])
    for frames, height, width in ((1, 2, 3), (3, 4, 2), (2, 2, 3)):
        latents = torch.randn(1, 4 * frames, 27, height, width)
        assert model(latents, text, t).sample.shape == latents.shape
    tables = model.position_tables(native_layout(12), 4, 2, text)
    assert tables.video.shape == (12, 8, 32)


def test_tables_are_made_once(monkeypatch):
    model, data = small_transformer(), batch()
    run(model, data)
    monkeypatch.setattr(type(model.position_tables), "_make", None)
    run(model, data)


def test_tables_made_in_inference_mode_serve_training():
    model, data = small_transformer(), batch()
    with torch.inference_mode():
        model(
            data["latents"].flatten(1, 2), data["prompt_embeds"].flatten(1, 2), torch.tensor([1, 2])
        )
    loss = layer_loss(model, VPrediction(make_scheduler("ddim")), **data)
    loss.sum().backward()
    assert model.proj_out.weight.grad is not None


@pytest.mark.parametrize(
    ("latents", "text", "message"),
    [
        ((2, 7, 27, 2, 3), (2, 24, 32), "do not divide among 4 layers"),
        ((2, 8, 27, 2, 3), (2, 25, 32), "do not divide among the prompts"),
        ((2, 8, 27, 2, 3), (1, 24, 32), "text must be"),
    ],
)
def test_wrong_shapes(latents, text, message):
    with pytest.raises(ValueError, match=message):
        small_transformer()(torch.zeros(latents), torch.zeros(text), torch.tensor([1, 2]))


@pytest.mark.parametrize(
    "wrong",
    [
        {"mode": "both"},
        {"mode": "official"},
        {"task": "gen_rgb"},
        {"positions": "random"},
        {"num_prompts": 2},
        {"patch_size_t": 2},
    ],
)
def test_wrong_configuration(wrong):
    with pytest.raises(ValueError):
        LayerFlowTransformer3DModel(num_layers=1, num_attention_heads=1, **wrong)


def test_round_trip_of_weights_and_config(tmp_path):
    model, data = small_transformer(), batch()
    model.save_pretrained(tmp_path)
    again = LayerFlowTransformer3DModel.from_pretrained(tmp_path)
    assert torch.equal(run(model, data, given=data["given"]), run(again, data, given=data["given"]))
    assert (
        again.config.positions == "shared"
        and again.config.use_rotary_positional_embeddings is False
    )


def test_half_precision_stays_close():
    data = batch()
    full = run(small_transformer(), data)
    half = small_transformer().to(torch.bfloat16)
    data = {key: v.bfloat16() if v.is_floating_point() else v for key, v in data.items()}
    out = run(half, data)
    assert out.dtype == torch.bfloat16
    assert (out.float() - full).abs().mean() < 0.1 * full.abs().mean()


def test_rotary_tables_stay_float32():
    model = native_from(plain_cogvideox(rotary=True), NO_CHANGE).to(torch.bfloat16)
    tables = model.position_tables(single_layout(5), 2, 3, torch.zeros((), dtype=torch.bfloat16))
    assert tables.rotary[0].dtype == torch.float32


def test_crop_region_fits_and_centres():
    assert crop_region((30, 45), (30, 45)) == ((0, 0), (30, 45))
    assert crop_region((30, 30), (30, 45)) == ((0, 8), (30, 38))
    assert crop_region((10, 45), (30, 45)) == ((10, 0), (20, 45))


def test_checkpointed_gradients_are_the_plain_ones():
    grads = {}
    for checkpointed in (False, True):
        model, data = small_transformer(), batch()
        if checkpointed:
            model.enable_gradient_checkpointing()
        model.train()
        layer_loss(model, VPrediction(make_scheduler("ddim")), **data).mean().backward()
        grads[checkpointed] = {n: p.grad for n, p in model.named_parameters()}
    assert len(grads[True]) > 40
    for name, grad in grads[False].items():
        assert torch.equal(grad, grads[True][name]), name


@pytest.mark.slow
def test_gates_and_given_sets_do_not_recompile():
    import torch._dynamo as dynamo

    dynamo.reset()
    model = small_transformer()
    for name in ("motion", "content"):
        adapters.add_adapter(model, name, rank=2, alpha=2)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    counter = dynamo.utils.counters
    data = batch()
    latents, text = data["latents"].flatten(1, 2), data["prompt_embeds"].flatten(1, 2)

    def step(gate, given):
        with adapters.motion_gate(compiled, torch.tensor(gate)):
            out = compiled(latents, text, data["timesteps"], given=given, return_dict=False)[0]
            out.square().mean().backward()

    none = torch.zeros(2, 4, dtype=torch.bool)
    step([0.0, 1.0], none)
    step([0.0, 1.0], none)
    before = counter["stats"]["unique_graphs"]
    assert before >= 1
    for gate in ([1.0, 1.0], [0.0, 0.0], [1.0, 0.0]):
        for given in (none, data["given"], ~data["given"]):
            step(gate, given)
    assert counter["stats"]["unique_graphs"] == before
