"""Models of other layers: init, conversion between sets, sampling, RGB checkpoints."""

from __future__ import annotations

import layerflow  # noqa: F401  its torchvision guard comes before diffusers

# isort: split

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from layerflow.cli.main import build_app
from layerflow.clip import LAYERS, PROMPTED
from layerflow.layer_set import layer_set
from layerflow.model import adapters
from layerflow.model.cogvideox.pipeline import LayerFlowPipeline
from layerflow.model.cogvideox.transformer import LayerFlowTransformer3DModel
from layerflow.model.info import describe
from layerflow.model.layers import official_task
from layerflow.model.presets import init_directory
from layerflow.official.convert import convert_checkpoint
from tests.support import official_reference as reference
from tests.support.model_kit import SMALL, small_directory

TWO = layer_set("rgbax2")
T, H, W = 2, 16, 24


@pytest.fixture(scope="module")
def rgba(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = small_directory(tmp_path_factory.mktemp("rgba") / "m")
    model = LayerFlowTransformer3DModel.from_pretrained(folder / "transformer")
    for name in ("motion", "content"):
        adapters.add_adapter(model, name, rank=2, alpha=2.0)
    model.save_pretrained(folder / "transformer")
    return folder


@pytest.fixture(scope="module")
def two(rgba: Path) -> Path:
    return init_directory(rgba.parent / "two", source=rgba, layers="rgbax2")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{file.parent.name}/{name}": tensor
        for file in sorted((folder / "transformer").rglob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def open_pipe(folder: Path) -> Any:
    pipe = LayerFlowPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(pipe: Any, **options: Any) -> Any:
    options = {"num_inference_steps": 2, "output_type": "np", "guidance_scale": 1.0, **options}
    return pipe(generator=torch.Generator().manual_seed(0), **options)


def frames_of(layer: str, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    shape = (T, H, W) if layer.startswith("alpha") else (T, H, W, 3)
    return rng.integers(0, 256, shape, dtype=np.uint8)


def test_new_layers_have_rows_of_zeros_and_all_else_is_kept(rgba: Path, two: Path) -> None:
    before, after = weights(rgba), weights(two)
    assert before.keys() == after.keys()
    for name in before:
        if "layer_embedding" not in name:
            assert torch.equal(before[name], after[name])
    rows = after["transformer/layer_embedding.video"]
    assert rows.shape[0] == 6 and not rows[[2, 3]].any()
    assert torch.equal(rows[[0, 1, 4, 5]], before["transformer/layer_embedding.video"])
    text = after["transformer/layer_embedding.text"]
    assert not text[1].any()
    assert torch.equal(text[[0, 2, 3]], before["transformer/layer_embedding.text"])
    assert adapters.adapter_names(open_pipe(two).transformer) == ["motion", "content"]


def test_with_one_foreground_a_widened_model_computes_what_it_did(rgba: Path, two: Path) -> None:
    given = {"blended": frames_of("blended")}
    prompt = {"foreground": "a ball", "background": "a wall"}
    old = call(open_pipe(rgba), given=given, prompt=prompt)
    new = call(open_pipe(two), given=given, prompt=prompt, foregrounds=1)
    assert list(new.layers) == list(LAYERS)
    for name in LAYERS:
        assert np.array_equal(old[name], new[name])


def test_back_again_nothing_is_lost(rgba: Path, two: Path, tmp_path: Path) -> None:
    back = weights(init_directory(tmp_path / "back", source=two, layers="rgba"))
    assert all(torch.equal(tensor, back[name]) for name, tensor in weights(rgba).items())
    plain = init_directory(tmp_path / "rgb", source=two, layers="rgb")
    rows = weights(plain)["transformer/layer_embedding.given"]
    assert torch.equal(rows, weights(rgba)["transformer/layer_embedding.given"][[0, 2, 3]])


def test_the_command_says_what_is_kept_and_what_is_new(rgba: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "export").symlink_to(rgba)  # as a run has it
    command = ["init", str(tmp_path / "m"), "--from", str(run), "--layers", "rgbax3"]
    done = CliRunner().invoke(build_app(), command)
    assert done.exit_code == 0, done.output
    assert "layers foreground, alpha, background, blended" in done.output
    assert "new          layers foreground.2, alpha.2, foreground.3, alpha.3" in done.output
    assert "8 layers of 2 frames" in done.output


def test_requests_that_cannot_be_met(rgba: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a cogvideox model and stays one"):
        init_directory(tmp_path / "a", "tiny", source=rgba, layers="rgb")
    with pytest.raises(ValueError, match="only layers may change"):
        init_directory(tmp_path / "a", source=rgba, height=32)
    with pytest.raises(ValueError, match="layers must be rgb"):
        init_directory(tmp_path / "a", source=rgba, layers="rgbax9")
    with pytest.raises(ValueError, match="neither a model folder nor a run"):
        init_directory(tmp_path / "a", source=tmp_path, layers="rgb")
    with pytest.raises(ValueError, match="a preset, or a model or run"):
        init_directory(tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_all_layers_of_two_foregrounds_are_sampled_by_name(two: Path) -> None:
    pipe = open_pipe(two)
    made = call(pipe)
    assert tuple(made.layers) == TWO.layers
    assert made["foreground.2"].shape == (1, T, H, W, 4) and made["alpha.2"].shape == (1, T, H, W)
    assert np.array_equal(made["foreground.2"][..., 3], made["alpha.2"])
    assert np.array_equal(made.foreground[..., 3], made.alpha)
    assert set(made.sample(0)) == set(TWO.layers)
    latent = call(pipe, output_type="latent")
    assert latent["alpha.2"].shape == (1, 2, 27, 2, 3)


def test_any_layer_of_any_foreground_may_be_given(two: Path) -> None:
    """Also as RGBA, and pixel by pixel; and the second may not be given where there is none."""
    pipe = open_pipe(two)
    colour, matte = frames_of("foreground.2"), frames_of("alpha.2", 1)
    apart = {"foreground.2": colour, "alpha.2": matte, "background": frames_of("background", 2)}
    rgba = {**apart, "foreground.2": np.concatenate([colour, matte[..., None]], -1)}
    del rgba["alpha.2"]
    made, same = (call(pipe, given=given, exact_given=True) for given in (apart, rgba))
    assert np.array_equal(np.rint(made["alpha.2"][0] * 255), matte)
    assert np.array_equal(np.rint(made["foreground.2"][0, ..., :3] * 255), colour)
    assert np.array_equal(made.foreground, same.foreground)
    assert not np.array_equal(made.foreground, call(pipe).foreground)
    with pytest.raises(ValueError, match=r"cannot give 'foreground.2'"):
        call(pipe, given=apart, foregrounds=1)
    with pytest.raises(ValueError, match="1 to 2 foregrounds"):
        call(pipe, foregrounds=3)


def test_an_rgb_model_has_three_layers(tmp_path: Path) -> None:
    folder = init_directory(tmp_path / "m", "tiny", **{**SMALL, "layers": "rgb"})
    facts = describe(folder)
    assert facts["cost"].latent_frames == 3 * 2 and facts["cost"].text_tokens == 3 * 8
    pipe = open_pipe(folder)
    made = call(pipe, given={"background": frames_of("background")})
    assert made.alpha is None and made.foreground.shape == (1, T, H, W, 3)
    assert tuple(made.layers) == PROMPTED
    ball = np.concatenate([frames_of("foreground"), frames_of("alpha", 1)[..., None]], -1)
    grey = 0.5 + (ball[..., :3] / 255 - 0.5) * (ball[..., 3:] / 255)  # as rgb knows transparency
    as_rgba = call(pipe, given={"foreground": ball})
    as_rgb = call(pipe, given={"foreground": grey})
    assert np.allclose(as_rgba.background, as_rgb.background, atol=1e-5)


@pytest.mark.parametrize("name", ["gen_rgb", "seg_rgb"])
def test_a_released_rgb_checkpoint_becomes_a_native_rgb_model(tmp_path: Path, name: str) -> None:
    """With its positions it computes the same."""
    size = (reference.HEIGHT, reference.WIDTH)
    checkpoint = reference.checkpoint(tmp_path / "in", name)
    official = convert_checkpoint(checkpoint, tmp_path / "official", task=name, latent_size=size)
    asked = {"dtype": "float32", "positions": "continuous"}
    folder = init_directory(tmp_path / "m", "cogvideox-2b", official, **asked)
    assert json.loads((folder / "layerflow.json").read_text())["options"]["layers"] == "rgb"
    native = LayerFlowPipeline.from_pretrained(folder).transformer
    assert native.layer_set.name == "rgb" and native.official is None
    assert native.layer_embedding.video.shape[0] == 3
    assert adapters.adapter_names(native) == ["motion", "content"]
    old = LayerFlowPipeline.from_pretrained(official).transformer
    layout = official_task(name).layout
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 12, 16, *size, generator=generator)
    text = torch.randn(1, 226 * len(layout.prompts), reference.TEXT, generator=generator)
    own = native.layout(12)
    if len(layout.prompts) == 2:  # the native model has the third prompt too; here as released
        own = type(own)(own.layers, own.frames, layout.prompts, of="rgb")
    with torch.no_grad():
        seen = native(latents, text, torch.tensor([9]), layout=own).sample
        wanted = old(latents, text, torch.tensor([9])).sample
    torch.testing.assert_close(seen, wanted, rtol=1e-4, atol=1e-4)
