"""The pipeline: every given set, batches, options, errors, official models."""

from __future__ import annotations

import layerflow  # noqa: F401  its torchvision guard comes before diffusers

# isort: split

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXDPMScheduler
from PIL import Image

from layerflow.clip import LAYERS, PROMPTED, to_float
from layerflow.model import autoencoder, frames
from layerflow.model.cogvideox.from_base import make_scheduler
from layerflow.model.cogvideox.pipeline import LayerFlowPipeline
from layerflow.model.layers import OFFICIAL
from layerflow.model.sample import load_pipeline
from layerflow.model.text import prefixed, prompt_texts
from layerflow.official.golden import build_network
from layerflow.official.names import Ready
from tests.support import official_reference as reference
from tests.support.model_kit import plain_cogvideox, small_directory

T, H, W = 2, 16, 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.set_num_threads(1)
    # Every band is kept, so that what goes through the autoencoder comes back.
    bands = {"luma_bands": 64, "chroma_bands": 64, "scaling_factor": 1.0}
    return small_directory(tmp_path_factory.mktemp("model") / "m", **bands)


@pytest.fixture(scope="module")
def pipe(folder):
    pipe = LayerFlowPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def layer(name, seed=0):
    rng = np.random.default_rng(seed + LAYERS.index(name))
    shape = (T, H, W) if name == "alpha" else (T, H, W, 3)
    return rng.integers(0, 256, shape, dtype=np.uint8)


def given_of(*names, seed=0):
    return {name: layer(name, seed) for name in names}


def seeded(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def call(pipe, **options):
    options = {"num_inference_steps": 2, "output_type": "np", "guidance_scale": 1.0, **options}
    return pipe(**options)


SETS = {
    "generate": (),
    "decompose": ("blended",),
    "fg2bg": ("foreground", "alpha"),
    "bg2fg": ("background",),
    "matte": ("alpha",),
    "recompose": ("foreground", "alpha", "background"),
    "matting": ("background", "blended"),
}


@pytest.mark.parametrize("name", SETS)
def test_every_task_and_unnamed_subsets(pipe, name):
    given = given_of(*SETS[name])
    out = call(pipe, prompt={"foreground": "a cat"}, given=given, generator=seeded(1))
    assert out.foreground.shape == (1, T, H, W, 4) and out.alpha.shape == (1, T, H, W)
    assert out.background.shape == out.blended.shape == (1, T, H, W, 3)
    assert out.frames is out.blended
    for key, value in given.items():
        if key == "foreground":  # its colour is known where it is not transparent
            seen = given["alpha"] > 80
            gap = np.abs(out.foreground[0][..., :3] - value / 255.0)[seen]
        else:
            gap = np.abs(out[key][0] - value / 255.0)
        assert gap.max() < 0.01, key
    assert all(np.isfinite(out[key]).all() for key in LAYERS)


def test_exact_given_is_pixel_exact(pipe):
    given = given_of("foreground", "alpha", "background")
    out = call(pipe, given=given, exact_given=True, output_type="uint8")
    assert np.array_equal(out.foreground[0][..., :3], given["foreground"])
    assert np.array_equal(out.foreground[0][..., 3], given["alpha"])
    assert np.array_equal(out.alpha[0], given["alpha"])
    assert np.array_equal(out.background[0], given["background"])


def test_a_mixed_batch_equals_its_samples(pipe):
    prompts = [{"foreground": "a cat"}, {"blended": "rain"}, {}]
    given = [given_of("blended"), given_of("foreground", "alpha", seed=9), {}]
    options = {"guidance_scale": 3.0, "output_type": "latent"}
    together = call(pipe, prompt=prompts, given=given, generator=seeded(1, 2, 3), **options)
    for i in range(3):
        alone = call(pipe, prompt=prompts[i], given=given[i], generator=seeded(i + 1), **options)
        for name in LAYERS:
            assert (together[name][i] - alone[name][0]).abs().max() < 1e-5


def test_dpm_scheduler_and_a_mixed_batch(folder):
    pipe = LayerFlowPipeline.from_pretrained(folder, scheduler=make_scheduler("dpm"))
    pipe.set_progress_bar_config(disable=True)
    assert isinstance(pipe.scheduler, CogVideoXDPMScheduler)
    given = [given_of("blended"), {}]
    options = {"output_type": "latent", "num_inference_steps": 3}
    together = call(pipe, given=given, generator=seeded(1, 2), **options)
    for i in range(2):
        alone = call(pipe, given=given[i], generator=seeded(i + 1), **options)
        assert (together.alpha[i] - alone.alpha[0]).abs().max() < 1e-5


def test_guidance_and_prompts_matter(pipe):
    options = {"output_type": "latent"}
    free = call(pipe, prompt={"foreground": "a cat"}, generator=seeded(1), **options)
    other = call(pipe, prompt={"foreground": "a dog"}, generator=seeded(1), **options)
    guided, dynamic, negative = (
        call(pipe, prompt={"foreground": "a cat"}, generator=seeded(1), **options, **extra)
        for extra in (
            {"guidance_scale": 4.0},
            {"guidance_scale": 4.0, "use_dynamic_cfg": True},
            {"guidance_scale": 4.0, "negative_prompt": {"foreground": "a dog"}},
        )
    )
    outputs = [o.blended for o in (free, other, guided, dynamic, negative)]
    for i, a in enumerate(outputs):
        for b in outputs[:i]:
            assert (a - b).abs().max() > 1e-4


def test_prompts_may_come_as_embeddings(pipe):
    prompt = {"foreground": "a cat", "blended": "a cat in the rain"}
    embeds = pipe.encode_prompts(prompt_texts(prompt)).view(1, 3, 8, 32)
    options = {"output_type": "latent", "generator": seeded(1)}
    a = call(pipe, prompt=prompt, **options | {"generator": seeded(1)})
    b = call(pipe, prompt_embeds=embeds, **options | {"generator": seeded(1)})
    c = call(pipe, prompt_embeds=embeds.flatten(1, 2), **options | {"generator": seeded(1)})
    assert torch.equal(a.blended, b.blended) and torch.equal(a.blended, c.blended)


def test_a_pipeline_without_text_encoder(folder):
    pipe = LayerFlowPipeline.from_pretrained(folder, text_encoder=None, tokenizer=None)
    pipe.set_progress_bar_config(disable=True)
    call(pipe)
    call(pipe, prompt_embeds=torch.randn(1, 3, 8, 32), guidance_scale=2.0)
    with pytest.raises(ValueError, match="pass prompt_embeds instead"):
        call(pipe, prompt={"foreground": "a cat"})


def test_encode_prompts(pipe):
    out = pipe.encode_prompts(["0, a cat", "", "0, a cat"])
    assert out.shape == (3, 8, 32) and out.dtype == torch.float32
    assert not out[1].any() and out[0].any() and torch.equal(out[0], out[2])


def test_prefixes():
    assert [prefixed(name, "x") for name in PROMPTED] == ["0, x", "1, x", "2, x"]
    assert prefixed("blended", "  ") == "" and prefixed("blended", None) == ""
    assert prompt_texts("rain") == ["", "", "2, rain"]
    with pytest.raises(ValueError, match="has no prompt"):
        prompt_texts({"alpha": "x"})
    with pytest.raises(ValueError, match="must be a string"):
        prompt_texts({"blended": 3})


def test_several_videos_per_prompt(pipe):
    prompts = [{"foreground": "a"}, {"foreground": "b"}]
    generators = [torch.Generator().manual_seed(s) for s in (1, 2, 3, 4)]
    out = call(
        pipe, prompt=prompts, num_videos_per_prompt=2, generator=generators, output_type="latent"
    )
    assert len(out.blended) == 4
    alone = call(pipe, prompt=prompts[1], generator=seeded(3), output_type="latent")
    assert (out.blended[2] - alone.blended[0]).abs().max() < 1e-5


def test_latents_can_be_given(pipe):
    noise = torch.randn(1, 4 * T, 192, H // 8, W // 8)
    a = call(pipe, latents=noise, output_type="latent")
    b = call(pipe, latents=noise, output_type="latent")
    assert torch.equal(a.alpha, b.alpha)
    with pytest.raises(ValueError, match="latents must be"):
        call(pipe, latents=noise[:, 1:])


def test_output_types(pipe):
    pil = call(pipe, output_type="pil")
    assert pil.foreground[0][0].mode == "RGBA" and pil.alpha[0][0].mode == "L"
    assert pil.blended[0][1].size == (W, H) and len(pil.blended[0]) == T
    tensors = call(pipe, output_type="pt")
    assert tensors.foreground.shape == (1, T, 4, H, W) and tensors.alpha.shape == (1, T, 1, H, W)
    assert call(pipe, output_type="uint8").blended.dtype == np.uint8
    assert len(call(pipe, return_dict=False)) == 4


def test_given_frames_in_every_form(pipe):
    blended = layer("blended")
    forms = [
        blended,
        blended.astype(np.float64) / 255.0,
        [Image.fromarray(frame) for frame in blended],
        torch.from_numpy(blended),
        torch.from_numpy(blended).movedim(-1, 1).float() / 255.0,
    ]
    outputs = [
        call(pipe, given={"blended": form}, generator=seeded(1), output_type="latent").alpha
        for form in forms
    ]
    for other in outputs[1:]:
        assert (outputs[0] - other).abs().max() < 1e-4


def test_an_rgba_foreground_gives_both_layers(pipe):
    given = given_of("foreground", "alpha")
    rgba = np.concatenate([given["foreground"], given["alpha"][..., None]], -1)
    a = call(pipe, given=given, generator=seeded(1), output_type="latent")
    b = call(pipe, given={"foreground": rgba}, generator=seeded(1), output_type="latent")
    assert torch.equal(a.blended, b.blended)
    c = call(pipe, given={"foreground": rgba[..., :3]}, generator=seeded(1), output_type="latent")
    assert (a.blended - c.blended).abs().max() > 1e-4


def test_callback_sees_and_changes_latents(pipe):
    seen = []

    def callback(owner, step, timestep, inputs):
        assert owner is pipe
        seen.append((step, int(timestep)))
        if step == 1:
            owner._interrupt = True
        return {"latents": torch.zeros_like(inputs["latents"])}

    out = call(pipe, num_inference_steps=4, callback_on_step_end=callback, output_type="latent")
    assert [step for step, _ in seen] == [0, 1] and seen[0][1] == 999
    assert not out.alpha.any()
    with pytest.raises(ValueError, match="callback_on_step_end_tensor_inputs"):
        call(pipe, callback_on_step_end_tensor_inputs=["noise"])


def test_save_and_load(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    again = LayerFlowPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    options = {"prompt": {"blended": "x"}, "output_type": "latent"}
    a, b = (call(p, generator=seeded(1), **options) for p in (pipe, again))
    assert torch.equal(a.blended, b.blended)


def test_other_sizes_and_lengths(pipe):
    out = call(pipe, height=24, width=16, num_frames=3)
    assert out.blended.shape == (1, 3, 24, 16, 3)
    blended = np.zeros((1, 8, 8, 3), np.uint8)
    assert call(pipe, given={"blended": blended}).alpha.shape == (1, 1, 8, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"height": 20}, "multiples of 8"),
        ({"num_frames": 0}, "num_frames must be 1 or more"),
        ({"output_type": "gif"}, "output_type must be one of"),
        ({"given": {"matte": layer("alpha")}}, "the layers are"),
        ({"given": {name: layer(name) for name in LAYERS}}, "nothing to generate"),
        ({"given": {"blended": layer("alpha")}}, "expected 3 channels"),
        ({"given": {"blended": layer("blended").astype(np.float32)}}, r"lie in \[0, 1\]"),
        ({"given": {"blended": layer("blended").astype(np.int32)}}, "uint8 or float"),
        ({"given": {"blended": layer("blended")}, "height": 32}, "the given layers have 16"),
        ({"given": {"blended": layer("blended"), "alpha": layer("alpha")[:1]}}, "differ in"),
        ({"given": [{}, {}], "prompt": [{}]}, "equally long"),
        ({"given": [layer("blended")]}, "dict of layer -> frames"),
        ({"given": {"blended": []}}, "no frames"),
        ({"given": {"blended": np.zeros((2, 3))}}, "expected"),
        ({"prompt": {"alpha": "x"}}, "has no prompt"),
        ({"prompt": {}, "prompt_embeds": torch.zeros(1, 24, 32)}, "not both"),
        ({"prompt_embeds": torch.zeros(1, 23, 32)}, "prompt_embeds must be"),
        ({"prompt": [{}], "negative_prompt": [{}, {}]}, "negative_prompt: 2 for 1"),
    ],
)
def test_wrong_requests(pipe, options, message):
    with pytest.raises(ValueError, match=message):
        call(pipe, **options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close(folder, pipe, dtype):
    request = {"given": given_of("blended"), "prompt": {"blended": "x"}, "guidance_scale": 2.0}
    exact = call(pipe, generator=seeded(0), **request)
    half = LayerFlowPipeline.from_pretrained(folder, dtype=dtype)
    half.set_progress_bar_config(disable=True)
    out = call(half, generator=seeded(0), **request)
    assert out.alpha.dtype == np.float32 and np.isfinite(out.foreground).all()
    assert np.abs(out.background - exact.background).mean() < 0.02


def test_cpu_offload_gives_the_same(folder, pipe):
    if not torch.cuda.is_available():
        pytest.skip("CPU offload needs a GPU")
    moved = LayerFlowPipeline.from_pretrained(folder)
    moved.set_progress_bar_config(disable=True)
    moved.enable_model_cpu_offload()
    request = {"given": given_of("blended"), "prompt": {"blended": "x"}}
    both = [call(p, generator=seeded(0), **request).background for p in (moved, pipe)]
    assert np.abs(both[0] - both[1]).max() < 1e-2
    assert next(moved.transformer.parameters()).device.type == "cpu"


def test_straight_colour_of_soft_and_empty_alpha():
    rng = np.random.default_rng(0)
    colour = np.broadcast_to(np.array([0.8, -0.5, 0.1], np.float32), (1, 32, 32, 3))
    alpha = np.zeros((1, 32, 32), np.float32)
    alpha[0, 8:24, 8:24] = rng.uniform(0.15, 1.0, (16, 16))
    straight = frames.straight_colour(colour * alpha[..., None], alpha)
    assert np.abs(straight - colour).max() < 0.02, "also where alpha is 0: the smooth continuation"
    nothing = frames.straight_colour(np.zeros((1, 5, 7, 3), np.float32), np.zeros((1, 5, 7)))
    assert np.isfinite(nothing).all() and np.abs(nothing).max() < 1e-6


def test_network_pixels_put_the_foreground_on_grey():
    given = frames.read_given(given_of("foreground", "alpha"))
    seen = frames.network_pixels(given)
    expected = to_float(layer("foreground")) * (layer("alpha")[..., None] / 255.0)
    assert np.abs(seen["foreground"] - expected).max() < 1e-5
    assert seen["alpha"].shape == (T, H, W, 3)


def small_vae():
    torch.manual_seed(0)
    return AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8),
        latent_channels=16,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
        sample_height=32,
        sample_width=32,
    ).eval()


def official_pipe(name, vae=None):
    source = {key: Ready(value) for key, value in reference.random_weights(name).items()}
    size = (reference.HEIGHT, reference.WIDTH)
    transformer = build_network(source, OFFICIAL[name], size)
    pipe = LayerFlowPipeline(None, None, vae, transformer, make_scheduler("dpm"))
    pipe.set_progress_bar_config(disable=True)
    return pipe


RUNS = [(name, name in ("gen_rgb", "fg2bg_rgba", "seg_rgb")) for name in OFFICIAL]


@pytest.mark.parametrize(("name", "official_sampler"), RUNS)
def test_official_models_run_their_task(name, official_sampler):
    pipe, task = official_pipe(name, small_vae()), OFFICIAL[name]
    rng = np.random.default_rng(0)
    given = {}
    for layer_name in task.given:
        shape = (16, 32, 32) if layer_name == "alpha" else (16, 32, 32, 3)
        given[layer_name] = rng.integers(0, 256, shape, dtype=np.uint8)
    out = call(
        pipe,
        given=given,
        official_sampler=official_sampler,
        guidance_scale=6.0,
        use_dynamic_cfg=True,
        generator=seeded(7)[0],
    )
    has_alpha = name.endswith("rgba")
    assert out.foreground.shape == (1, 16, 32, 32, 4 if has_alpha else 3)
    assert (out.alpha is not None) is has_alpha
    assert out.background.shape == out.blended.shape == (1, 16, 32, 32, 3)
    assert np.isfinite(out.blended).all()


def test_official_models_refuse_other_tasks_and_sizes():
    pipe = official_pipe("seg_rgba", small_vae())
    with pytest.raises(ValueError, match=r"exactly these layers given: \('blended',\)"):
        call(pipe)
    pipe = official_pipe("gen_rgb", small_vae())
    with pytest.raises(ValueError, match="needs exactly these layers given: none"):
        call(pipe, given={"blended": np.zeros((16, 32, 32, 3), np.uint8)})
    for wrong, message in (({"height": 64}, "32x32 pixels only"), ({"num_frames": 8}, "16 frames")):
        with pytest.raises(ValueError, match=message):
            call(pipe, **wrong)


def test_the_official_sampler_is_the_golden_one(shared):
    """The pipeline, seeded like the golden run, ends in the golden samples."""
    from layerflow.official.golden import load_network, read_golden

    metadata, run = read_golden(shared / "golden" / "sampler_gen_rgb_4step.safetensors")
    transformer = load_network(*read_golden(shared / "golden" / "gen_rgb.safetensors"))
    pipe = LayerFlowPipeline(None, None, None, transformer, make_scheduler("dpm"))
    pipe.set_progress_bar_config(disable=True)
    noises = [
        run[key] for key in ("n.0.first", "n.1.first", "n.1.second", "n.2.first", "n.2.second")
    ]
    pipe._noise = lambda *_: noises.pop(0)
    out = pipe(
        prompt_embeds=run["x.text_cond"][None],
        latents=run["x.init_noise"],
        num_inference_steps=4,
        guidance_scale=6.0,
        use_dynamic_cfg=True,
        official_sampler=True,
        output_type="latent",
    )
    latents = torch.cat([out.foreground, out.background, out.blended], 1)
    assert (latents - run["y.samples"]).abs().max() < 1e-5
    assert not noises and metadata["num_steps"] == "4"


def native_pipe(rotary):
    from layerflow.model.cogvideox.from_base import native_from

    base = plain_cogvideox(rotary)
    transformer = native_from(base, {"num_frames": 8, "height": 32, "width": 48})
    vae = AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
    )
    pipe = LayerFlowPipeline(None, None, vae.eval(), transformer, make_scheduler("ddim"))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("rotary", [False, True])
def test_native_on_the_cogvideox_autoencoder(rotary):
    pipe = native_pipe(rotary)
    rng = np.random.default_rng(0)
    given = {"blended": rng.integers(0, 256, (8, 32, 48, 3), dtype=np.uint8)}
    out = call(pipe, given=given)
    assert out.foreground.shape == (1, 8, 32, 48, 4)
    with pytest.raises(ValueError, match="8k and 8k\\+1"):
        call(pipe, num_frames=10)
    pipe.vae.enable_tiling()
    pipe.vae.enable_slicing()
    tiled = call(pipe, given=given, num_frames=8)
    assert tiled.alpha.shape == (1, 8, 32, 48)


# ---- memory -----------------------------------------------------------------------------------


def test_the_autoencoder_has_left_the_device_before_the_network_runs(folder, monkeypatch):
    """Under model offload; diffusers would send it back only for what comes next in its order."""
    pipe = LayerFlowPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    seen = []

    def watch(part, name):
        run = getattr(part, name)
        monkeypatch.setattr(part, name, lambda *a, **k: (seen.append(name), run(*a, **k))[1])

    watch(pipe.vae, "encode"), watch(pipe, "maybe_free_model_hooks"), watch(pipe.vae, "decode")
    pipe.transformer.register_forward_pre_hook(lambda *_: seen.append("network"))
    call(pipe, given=given_of("blended"))
    order = [name for i, name in enumerate(seen) if i == 0 or seen[i - 1] != name]
    free = "maybe_free_model_hooks"
    assert order == ["encode", free, "network", "decode", free]


@pytest.mark.parametrize(("gpu", "offload"), [(True, True), (True, False), (False, True)])
def test_parts_take_turns_on_a_gpu_unless_asked_otherwise(folder, monkeypatch, gpu, offload):
    calls = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    name = "enable_model_cpu_offload"
    monkeypatch.setattr(LayerFlowPipeline, name, lambda self: calls.append(name))
    monkeypatch.setattr(LayerFlowPipeline, "to", lambda self, where: calls.append(where))
    load_pipeline(folder, "float32", offload=offload)
    assert calls == ([name] if gpu and offload else ["cuda"] if gpu else [])


def test_tiling_is_asked_of_an_autoencoder_that_can(folder):
    assert load_pipeline(folder, tiling=True).vae is not None  # the stand-in has no tiles
    vae = AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2
    ).eval()
    latents = torch.randn(1, 2, 4, 8, 12)
    whole = autoencoder.decode(vae, latents)
    autoencoder.enable_tiling(vae)
    assert torch.equal(autoencoder.decode(vae, latents), whole)  # smaller than a tile
    vae.enable_tiling(tile_sample_min_height=48, tile_sample_min_width=40)
    tiled = autoencoder.decode(vae, latents)
    assert tiled.shape == whole.shape and not torch.equal(tiled, whole)
