"""Wan model folders: made, sampled, encoded, and their content adapters in diffusers' pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan, DiffusionPipeline, WanPipeline, WanTransformer3DModel
from transformers import ByT5Tokenizer, UMT5Config, UMT5EncoderModel

from layerflow.clip import LAYERS
from layerflow.model import adapters, autoencoder, info
from layerflow.model.layers import single_layout
from layerflow.model.presets import init_directory
from layerflow.model.sample import load_pipeline
from layerflow.model.wan import parts
from layerflow.model.wan.from_base import make_scheduler
from tests.layerflow.model.wan.test_transformer import CONFIG


@pytest.fixture(scope="module")
def vae() -> AutoencoderKLWan:
    """A random autoencoder with Wan's rules: 4 frames and 8 x 8 pixels to a latent."""
    torch.manual_seed(0)
    statistics = {"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [0.5, 1.0, 2.0, 1.5]}
    return AutoencoderKLWan(
        base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, **statistics
    ).eval()


@pytest.fixture(scope="module")
def text() -> tuple[Any, Any]:
    torch.manual_seed(0)
    tokenizer = ByT5Tokenizer()
    config = UMT5Config(
        vocab_size=len(tokenizer), d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2
    )
    return tokenizer, UMT5EncoderModel(config).eval()


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory, vae: Any, text: tuple[Any, Any]) -> Path:
    """A random Wan folder of diffusers with two experts."""
    torch.manual_seed(0)
    networks = [WanTransformer3DModel(**CONFIG) for _ in range(2)]
    folder = tmp_path_factory.mktemp("wan") / "base"
    WanPipeline(
        *text, vae, make_scheduler("unipc"), networks[0], networks[1], boundary_ratio=0.875
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, wan: Path) -> Path:
    folder = tmp_path_factory.mktemp("model") / "native"
    options = {"height": 32, "width": 48, "num_frames": 5, "num_text_tokens": 12}
    return init_directory(folder, "wan2.1-1.3b", wan, dtype="float32", **options)


def test_a_model_from_a_base_computes_on_one_layer_what_the_base_computes(
    wan: Path, model: Path
) -> None:
    pipe, stock = load_pipeline(model), WanTransformer3DModel.from_pretrained(wan / "transformer")
    latents, words = torch.randn(1, 2, 4, 4, 6), torch.randn(1, 12, 8)
    timestep = torch.tensor([400.0])
    with torch.no_grad():
        expected = stock(latents.transpose(1, 2), timestep, words, return_dict=False)[0]
        found = pipe.transformer(latents, words, timestep, layout=single_layout(2))[0]
    assert torch.equal(found, expected.transpose(1, 2))
    assert pipe.scheduler.config.flow_shift == 3.0
    said = info.describe(model)
    assert (said["cost"].num_frames, said["cost"].latent_frames) == (5, 8)
    assert said["cost"].video_tokens == 8 * 2 * 3 and said["cost"].text_tokens == 36


@pytest.mark.parametrize("given", [(), ("blended",), ("foreground", "alpha"), ("background",)])
def test_every_task_samples_and_keeps_what_is_given(model: Path, given: tuple[str, ...]) -> None:
    pipe = load_pipeline(model)
    pipe.set_progress_bar_config(disable=True)
    rng = np.random.default_rng(0)
    frames = {
        name: rng.integers(0, 256, (5, 32, 48) + (3,) * (name != "alpha"), np.uint8)
        for name in given
    }
    made = pipe(
        prompt={"foreground": "a dog", "background": "a street"},
        given=frames,
        num_inference_steps=3,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
    )
    shapes = {tuple(made[name].shape) for name in LAYERS}
    assert shapes == {(1, 2, 4, 4, 6)}
    for name, value in frames.items():
        if name in ("blended", "background"):
            pixels = torch.from_numpy(value / 127.5 - 1).float().permute(3, 0, 1, 2)[None]
            mean, _ = autoencoder.encode(pipe.vae, pixels)
            assert torch.allclose(made[name], mean, atol=1e-5)


def test_latents_are_normalised_by_channel_and_come_back(vae: Any) -> None:
    pixels = torch.rand(1, 3, 5, 16, 16) * 2 - 1
    with torch.no_grad():
        posterior = vae.encode(pixels).latent_dist
    mean, logvar = autoencoder.encode(vae, pixels)
    shift, spread = (torch.tensor(vae.config[f"latents_{s}"]) for s in ("mean", "std"))
    expected = (posterior.mean.movedim(1, -1) - shift) / spread
    assert torch.allclose(mean.movedim(2, -1), expected, atol=1e-5)
    wide = posterior.std.movedim(1, -1) / spread
    assert torch.allclose((0.5 * logvar).exp().movedim(2, -1), wide, rtol=1e-4)
    with torch.no_grad():
        plain = vae.decode(posterior.mean).sample.clamp(-1, 1)
    assert torch.allclose(autoencoder.decode(vae, mean), plain, atol=1e-4)


@pytest.mark.parametrize(("count", "near"), [(16, "13, 17"), (3, "1, 5"), (64, "61, 65")])
def test_frame_counts_that_wan_would_cut_are_refused(vae: Any, count: int, near: str) -> None:
    with pytest.raises(ValueError, match=rf"4k\+1 \(nearest: {near}\)"):
        autoencoder.encode(vae, torch.zeros(1, 3, count, 16, 16))
    assert [autoencoder.latent_frames(vae, n) for n in (1, 5, 17, 61)] == [1, 2, 5, 16]


def test_a_base_that_does_not_fit_is_refused(wan: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nearest: 13, 17"):
        init_directory(tmp_path / "a", "wan2.1-1.3b", wan, num_frames=16)
    with pytest.raises(ValueError, match="multiples of 16, not 40x48"):
        init_directory(tmp_path / "b", "wan2.1-1.3b", wan, height=40, width=48)
    with pytest.raises(ValueError, match="holds a UMT5"):
        init_directory(tmp_path / "c", "wan2.1-1.3b", _claiming(wan, tmp_path, "UMT5"))
    assert not any((tmp_path / name).exists() for name in "abc")


def _claiming(wan: Path, tmp_path: Path, kind: str) -> Path:
    folder = tmp_path / "odd" / "transformer"
    folder.mkdir(parents=True)
    config = json.loads((wan / "transformer" / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "_class_name": kind}))
    return folder.parent


@pytest.mark.parametrize(
    ("expert", "part", "span"),
    [("high", "transformer", (0.875, 1.0)), ("low", "transformer_2", (0.0, 0.875))],
)
def test_an_expert_trains_on_its_own_part_of_the_noise(
    wan: Path, tmp_path: Path, expert: str, part: str, span: tuple[float, float]
) -> None:
    size = {"height": 32, "width": 48, "num_frames": 5, "dtype": "float32"}
    folder = init_directory(tmp_path / "m", "wan2.2-a14b", wan, expert=expert, **size)
    pipe, stock = load_pipeline(folder), WanTransformer3DModel.from_pretrained(wan / part)
    own = dict(pipe.transformer.named_parameters())
    assert all(torch.equal(own[name], value) for name, value in stock.named_parameters())
    assert tuple(pipe.scheduler.config["_layerflow_noise"]["span"]) == span


def test_text_is_encoded_as_in_diffusers_pipeline(text: tuple[Any, Any], wan: Path) -> None:
    texts = ["0, a  red &amp; white ball", "1, sea"]
    stock = WanPipeline.from_pretrained(wan, transformer=None, transformer_2=None, vae=None)
    expected, _ = stock.encode_prompt(
        texts, do_classifier_free_guidance=False, max_sequence_length=30
    )
    found = parts.encode_texts(*text, [texts[0], "", texts[1]], 30)
    assert torch.allclose(found[[0, 2]], expected, atol=1e-6)
    assert not found[1].any() and not found[2, 7:].any()


def test_content_adapters_load_in_plain_wan_with_the_same_output(
    wan: Path, model: Path, tmp_path: Path
) -> None:
    ours = load_pipeline(model).transformer
    targets = ("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2")
    adapters.add_adapter(ours, "content", rank=3, alpha=6.0, targets=targets)
    for parameter in adapters.adapter_parameters(ours, "content").values():
        torch.nn.init.normal_(parameter, std=0.3)
    adapters.save_adapter(ours, "content", tmp_path)
    stock = WanPipeline.from_pretrained(wan, text_encoder=None, tokenizer=None, vae=None)
    latents, words = torch.randn(1, 2, 4, 4, 6), torch.randn(1, 12, 8)
    arguments = (latents.transpose(1, 2), torch.tensor([400.0]), words)
    with torch.no_grad():
        before = stock.transformer(*arguments, return_dict=False)[0]
        stock.load_lora_weights(tmp_path)
        expected = stock.transformer(*arguments, return_dict=False)[0]
        layout = single_layout(2)
        found = ours(latents, words, arguments[1], layout=layout, return_dict=False)[0]
    assert (expected - before).abs().max() > 1e-2
    assert torch.allclose(found, expected.transpose(1, 2), atol=1e-5)


def test_a_tiny_model_opens_from_the_code_that_it_ships(tmp_path: Path) -> None:
    from layerflow.model.ship import ship_code

    folder = init_directory(tmp_path / "m", "tiny-wan")
    pipe = load_pipeline(folder)
    options: dict[str, Any] = {"num_inference_steps": 2, "output_type": "latent"}
    first = pipe(prompt="sea", generator=torch.Generator().manual_seed(0), **options)
    ship_code(folder)
    again = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    shipped = again(prompt="sea", generator=torch.Generator().manual_seed(0), **options)
    assert torch.equal(first.blended, shipped.blended)


@torch.no_grad()
def test_two_foregrounds_do_with_one_what_one_does(tmp_path: Path) -> None:
    one = init_directory(tmp_path / "one", "tiny-wan", num_frames=2)
    two = init_directory(tmp_path / "two", source=one, layers="rgbax2")
    narrow, wide = (load_pipeline(folder).transformer for folder in (one, two))
    for network in (narrow, wide):  # its last layer starts at zero
        torch.manual_seed(0)
        torch.nn.init.normal_(network.proj_out.weight)
    latents, words = torch.randn(1, 8, 27, 4, 4), torch.randn(1, 48, 32)
    given, timestep = torch.tensor([[False, False, False, True]]), torch.tensor([500.0])
    expected = narrow(latents, words, timestep, given, return_dict=False)[0]
    layout = wide.layout(8, narrow.layer_set.layers)
    found = wide(latents, words, timestep, given, layout, return_dict=False)[0]
    assert torch.equal(found, expected) and expected.abs().mean() > 0.1
    more = torch.randn(1, 12, 27, 4, 4), torch.randn(1, 64, 32)
    assert wide(*more, timestep, return_dict=False)[0].shape == (1, 12, 27, 4, 4)
