"""Model directories: the tiny preset, starts from a base, the commands around them."""

from __future__ import annotations

import layerflow  # noqa: F401  its torchvision guard comes before diffusers

# isort: split

import json

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler
from typer.testing import CliRunner

from layerflow.cli.main import build_app
from layerflow.media.cells import decode_alpha, decode_png, write_prores4444
from layerflow.media.decode import Decoder
from layerflow.model import adapters
from layerflow.model import info as describe
from layerflow.model.cogvideox.from_base import make_scheduler
from layerflow.model.cogvideox.noise import VPrediction
from layerflow.model.cogvideox.pipeline import LayerFlowPipeline
from layerflow.model.cogvideox.presets import BASE
from layerflow.model.layers import native_layout
from layerflow.model.objective import layer_loss
from layerflow.model.presets import init_directory
from layerflow.official.convert import convert_checkpoint
from manifests.common import parse_size
from tests.support import official_reference as reference
from tests.support.model_kit import SMALL, plain_cogvideox


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    torch.set_num_threads(1)
    return init_directory(tmp_path_factory.mktemp("tiny") / "m", "tiny")


def test_tiny_is_the_measured_recipe(tiny):
    pipe = LayerFlowPipeline.from_pretrained(tiny)
    model, config = pipe.transformer, pipe.transformer.config
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(0.94e6, rel=0.01)
    assert (config.num_attention_heads, config.attention_head_dim, config.num_layers) == (3, 32, 4)
    assert config.patch_size == 1 and config.positions == "shared" and config.latent_frames == 4
    assert pipe.vae.latent_channels == config.in_channels == 27
    assert not model.proj_out.weight.any() and not model.layer_embedding.given.any()
    assert float(model.layer_embedding.video.detach().std()) == pytest.approx(0.5, rel=0.15)
    block = model.transformer_blocks[2]
    assert torch.equal(block.attn1.to_q.weight, block.attn1.to_k.weight)
    shift, scale, gate, _, _, text_gate = block.norm1.linear.bias.chunk(6)
    assert not shift.any() and not scale.any() and not block.norm1.linear.weight.any()
    assert (gate == 0.2).all() and (text_gate == 0.2).all()
    scheduler = pipe.scheduler.config
    assert isinstance(pipe.scheduler, CogVideoXDDIMScheduler)
    assert scheduler.snr_shift_scale == 3.0 and scheduler.rescale_betas_zero_snr
    assert scheduler.prediction_type == "v_prediction" and scheduler.timestep_spacing == "trailing"
    assert pipe.encode_prompts(["0, hello"]).shape == (1, 16, 32)


def test_the_same_seed_gives_the_same_weights(tiny, tmp_path):
    again = init_directory(tmp_path / "a", "tiny")
    other = init_directory(tmp_path / "b", "tiny", seed=1)
    file = "transformer/diffusion_pytorch_model.safetensors"
    assert (tiny / file).read_bytes() == (again / file).read_bytes()
    assert (tiny / file).read_bytes() != (other / file).read_bytes()
    state = torch.random.get_rng_state()
    init_directory(tmp_path / "c", "tiny", **SMALL)
    assert torch.equal(state, torch.random.get_rng_state()), "the caller's RNG is left alone"


def test_the_tiny_network_learns(tiny):
    """A few steps on one batch bring the loss down."""
    pipe = LayerFlowPipeline.from_pretrained(tiny)
    model, generator = pipe.transformer.train(), torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, 4, 27, 4, 4, generator=generator)
    data = {
        "latents": latents,
        "noise": torch.randn(latents.shape, generator=generator),
        "prompt_embeds": torch.zeros(2, 3, 16, 32),
        "given": torch.tensor([[0, 0, 0, 1], [0, 0, 0, 0]], dtype=torch.bool),
        "timesteps": torch.tensor([300, 700]),
    }
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        loss = layer_loss(model, VPrediction(pipe.scheduler), **data).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_options_and_wrong_requests(tmp_path):
    folder = init_directory(tmp_path / "m", "tiny", **{**SMALL, "scheduler": "dpm"})
    settings = json.loads((folder / "layerflow.json").read_text())
    assert settings["options"]["height"] == 16 and settings["preset"] == "tiny"
    assert "DPM" in (folder / "model_index.json").read_text()
    for options, message in (
        ({"preset": "huge"}, "cogvideox-5b"),
        ({"heads": 3}, "num_attention_heads"),
        ({"height": 20}, "multiples of 8"),
        ({"num_text_tokens": 33}, "1 to 32"),
        ({"attention_head_dim": 5}, "multiple of 16"),
        ({"scheduler": "euler"}, "scheduler must be one of"),
        ({"base": "x"}, "takes no base"),
        ({"preset": "cogvideox-2b"}, "pass base"),
    ):
        with pytest.raises(ValueError, match=message):
            init_directory(tmp_path / "n", **{"preset": "tiny", **options})
        assert not (tmp_path / "n").exists()
    with pytest.raises(ValueError, match="not empty"):
        init_directory(folder, "tiny")


def base_folder(folder, rotary):
    """A CogVideoX folder in diffusers format, without a text encoder."""
    plain_cogvideox(rotary).save_pretrained(folder / "transformer")
    vae = AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
    )
    vae.save_pretrained(folder / "vae")
    make_scheduler("ddim").save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "CogVideoXPipeline",
        "vae": ["diffusers", "AutoencoderKLCogVideoX"],
        "scheduler": ["diffusers", "CogVideoXDDIMScheduler"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize(("preset", "rotary"), [("cogvideox-2b", False), ("cogvideox-5b", True)])
def test_native_model_from_a_cogvideox_folder(tmp_path, preset, rotary):
    base = base_folder(tmp_path / "base", rotary)
    options = {"height": 32, "width": 48, "num_frames": 8, "dtype": "float32"}
    folder = init_directory(tmp_path / "m", preset, base, **options)
    pipe = LayerFlowPipeline.from_pretrained(folder)
    config = pipe.transformer.config
    assert config.positions == BASE["positions"] == "shared"
    assert config.use_rotary_positional_embeddings is rotary
    assert (config.num_text_tokens, config.latent_frames) == (6, 2)
    assert pipe.vae is not None and pipe.text_encoder is None
    assert not pipe.transformer.layer_embedding.video.any()
    weights = plain_cogvideox(rotary).state_dict()
    own = pipe.transformer.state_dict()
    assert all(torch.equal(own[key], weights[key]) for key in weights)
    facts = describe.describe(folder)
    assert facts["cost"].video_tokens == native_layout(8).num_frames * 6
    assert facts["cost"].num_frames == 8


def test_native_model_from_a_converted_official_folder(tmp_path):
    path = reference.checkpoint(tmp_path / "in", "gen_rgba")
    size = (reference.HEIGHT, reference.WIDTH)
    official = convert_checkpoint(path, tmp_path / "official", latent_size=size)
    folder = init_directory(tmp_path / "m", "cogvideox-2b", official, dtype="float32")
    model = LayerFlowPipeline.from_pretrained(folder).transformer
    assert model.config.mode == "native" and model.official is None
    assert adapters.adapter_names(model) == ["motion", "content"]
    assert model.layer_embedding.text.any() and not model.layer_embedding.video.any()
    latents, text = torch.randn(1, 16, 16, *size), torch.randn(1, 678, reference.TEXT)
    given = torch.tensor([[False, False, True, True]])
    assert model(latents, text, torch.tensor([9]), given=given).sample.shape == latents.shape


def test_bases_that_cannot_be_used(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no model in diffusers format"):
        init_directory(tmp_path / "m", "cogvideox-2b", tmp_path / "empty")
    base = base_folder(tmp_path / "base", False)
    with pytest.raises(ValueError, match="8k or 8k"):
        init_directory(tmp_path / "m", "cogvideox-2b", base, num_frames=12)
    config = base / "transformer" / "config.json"
    config.write_text(config.read_text().replace("CogVideoXTransformer3DModel", "FluxModel"))
    with pytest.raises(ValueError, match="holds a FluxModel"):
        init_directory(tmp_path / "m", "cogvideox-2b", base)
    assert not (tmp_path / "m").exists()


def test_full_size_costs_are_the_published_ones():
    config = {
        "_class_name": "LayerFlowTransformer3DModel",
        "text_embed_dim": 4096,
        "mode": "official",
        "task": "gen_rgba",
        "sample_height": 60,
        "sample_width": 90,
        "patch_size": 2,
        "latent_frames": 4,
        "num_prompts": 3,
        "num_text_tokens": 226,
        "num_attention_heads": 30,
        "attention_head_dim": 64,
        "num_layers": 30,
    }
    price = describe.cost(config, {}, 1_693_800_000)
    assert price.tokens == 22_278
    assert price.forward_flops / 1e12 == pytest.approx(173.4, abs=0.3)
    assert price.activation_bytes / describe.GIB == pytest.approx(38.6, abs=0.3)


@pytest.fixture
def run():
    app = build_app()

    def invoke(*arguments):
        return CliRunner().invoke(app, [str(a) for a in arguments])

    return invoke


def test_init_and_info_commands(run, tmp_path):
    made = run("init", tmp_path / "m", "--preset", "tiny", "--size", "16x24", "--frames", "2")
    assert made.exit_code == 0 and "native, all tasks" in made.output
    shown = run("info", tmp_path / "m", "--json")
    facts = json.loads(shown.output)
    assert facts["cost"]["tokens"] == 8 * 6 + 48 and facts["parameters"]["transformer"] > 900_000
    again = run("init", tmp_path / "m", "--preset", "tiny")
    assert isinstance(again.exception, ValueError) and "not empty" in str(again.exception)
    nothing = run("info", tmp_path)
    assert "holds no model" in str(nothing.exception)


def test_info_names_adapters(run, tiny, tmp_path):
    pipe = LayerFlowPipeline.from_pretrained(tiny)
    adapters.add_adapter(pipe.transformer, "content", rank=4, alpha=1)
    pipe.save_pretrained(tmp_path / "m")
    assert "content: rank 4, alpha 1" in run("info", tmp_path / "m").output


def test_sample_command_writes_every_file(run, tiny, tmp_path):
    arguments = ["--model", tiny, "--out", tmp_path, "--steps", "1", "--quiet"]
    made = run("sample", *arguments, "--prompt", "foreground=a ball", "--seed", "3", "--png")
    assert made.exit_code == 0, made.exception
    folder = tmp_path / "seed-3"
    names = {file.name for file in folder.iterdir()}
    assert names >= {
        "foreground.mov",
        "foreground.webm",
        "alpha.mkv",
        "background.mp4",
        "blended.mp4",
        "contact.png",
        "sample.json",
    }
    assert (tmp_path / "contact.png").is_file()
    assert json.loads((folder / "sample.json").read_text())["prompt"] == {"foreground": "a ball"}
    alpha = decode_alpha((folder / "alpha.mkv").read_bytes())
    with Decoder() as decoder:
        for name in ("foreground.mov", "foreground.webm"):
            rgba, fps = decoder.read_frames(folder / name)
            assert rgba.shape == (4, 32, 32, 4) and fps == 8
            assert np.abs(rgba[..., 3].astype(int) - alpha).mean() < 3
    png = decode_png((folder / "frames" / "foreground" / "00000.png").read_bytes())
    assert png.shape == (32, 32, 4) and np.array_equal(png[..., 3], alpha[0])


def test_sample_command_takes_given_files(run, tiny, tmp_path):
    rng = np.random.default_rng(0)
    rgba = rng.integers(0, 256, (6, 40, 64, 4), dtype=np.uint8)
    write_prores4444(tmp_path / "fg.mov", rgba, 12.0)
    arguments = ["--model", tiny, "--out", tmp_path / "o", "--steps", "1", "--quiet", "--id", "x"]
    made = run(
        "sample", *arguments, "--given", f"foreground={tmp_path / 'fg.mov'}", "--exact-given"
    )
    assert made.exit_code == 0, made.exception
    with Decoder() as decoder:
        out, fps = decoder.read_frames(tmp_path / "o" / "x" / "foreground.mov")
    assert out.shape == (4, 32, 32, 4) and fps == 12
    for given, message in (
        ("foreground", "takes LAYER=VALUE"),
        ("matte=a.mp4", "names 'matte'"),
        ("blended=absent.mp4", "no such file"),
        (f"blended={__file__}", "cannot be used"),
    ):
        failed = run("sample", *arguments, "--given", given)
        assert failed.exit_code == 1 and message in str(failed.exception), given


def test_sample_command_refuses_paths_as_ids(run, tiny, tmp_path):
    failed = run("sample", "--model", tiny, "--out", tmp_path / "o", "--id", "../x")
    assert "may hold letters" in str(failed.exception)
    assert not (tmp_path / "x").exists() and not (tmp_path / "o").exists()


@pytest.mark.parametrize("text", ["480", "480x", "x720", "0x5", "axb", "-1x4"])
def test_sizes(text):
    with pytest.raises(ValueError, match=r"a size is HEIGHTxWIDTH|both sides of a size"):
        parse_size(text)


def test_a_base_that_stores_its_positions_refuses_a_size_of_its_own(tmp_path):
    """Passed over without a word, the model would work at another size than was asked for."""
    path = reference.checkpoint(tmp_path / "in", "gen_rgba")
    size = (reference.HEIGHT, reference.WIDTH)
    official = convert_checkpoint(path, tmp_path / "official", latent_size=size)
    height, width = (8 * side for side in size)
    made = init_directory(tmp_path / "m", "cogvideox-2b", official, height=height, width=width)
    options = json.loads((made / "layerflow.json").read_text())["options"]
    assert (options["height"], options["width"]) == (height, width)
    for base in (official, made):  # native itself, the second time
        with pytest.raises(ValueError, match=f"one size: pass --size {height}x{width}"):
            init_directory(tmp_path / "n", "cogvideox-2b", base, height=height, width=width + 16)
        with pytest.raises(ValueError, match="pass fewer --frames"):
            init_directory(tmp_path / "n", "cogvideox-2b", base, num_frames=800)
    again = init_directory(tmp_path / "again", "cogvideox-2b", made)
    assert LayerFlowPipeline.from_pretrained(again).transformer.config.stored_positions
