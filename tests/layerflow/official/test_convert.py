"""Official checkpoint -> model folder: strict, safe, exact."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX
from safetensors import safe_open

from layerflow.model import adapter_files, adapters
from layerflow.model.adapter_files import read_adapter
from layerflow.model.cogvideox.pipeline import LayerFlowPipeline
from layerflow.model.layers import OFFICIAL
from layerflow.official.convert import convert_checkpoint, find_states
from layerflow.official.names import guess_from_name
from layerflow.official.torchfile import Inert, StoredTensor, read_torch_file
from tests.support import official_reference as reference
from tests.support.official_reference import PREFIX, checkpoint

SIZE = (reference.HEIGHT, reference.WIDTH)


class Danger:
    """Runs a command when a pickle of it is loaded by plain pickle."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def convert(path, out, **options):
    return convert_checkpoint(path, out, latent_size=SIZE, **options)


def run(transformer, name, seed=0):
    generator = torch.Generator().manual_seed(seed)
    prompts = len(OFFICIAL[name].layout.prompts)
    latents = torch.randn(1, OFFICIAL[name].layout.num_frames, 16, *SIZE, generator=generator)
    text = torch.randn(1, prompts * 226, reference.TEXT, generator=generator)
    idx = torch.tensor([321])
    with torch.no_grad():
        return latents, text, idx, transformer(latents, text, idx, return_dict=False)[0]


@pytest.mark.parametrize("name", ["gen_rgba", "seg_rgb"])
def test_converted_folder_computes_what_the_official_network_computes(tmp_path, name):
    out = convert(checkpoint(tmp_path / "in", name), tmp_path / "out", task=name)
    pipe = LayerFlowPipeline.from_pretrained(out)
    assert pipe.vae is None and pipe.transformer.official.name == name
    assert set(adapters.adapter_names(pipe.transformer)) == {"motion", "content"}
    latents, text, idx, ours = run(pipe.transformer, name)
    stock = reference.stock_network(name, reference.random_weights(name), motion=0.0)
    with torch.no_grad():
        theirs = stock(latents, text, idx, return_dict=False)[0]
    assert (ours - theirs).abs().max() < 1e-5


def test_adapters_say_rank_alpha_and_skip_untrained_blocks(tmp_path):
    def untrain_block_0(weights):
        for key, value in weights.items():
            if "layers.0." in key and ("matrix_B" in key or "matrix_D" in key):
                value.zero_()

    out = convert(checkpoint(tmp_path / "in", change=untrain_block_0), tmp_path / "out")
    file = out / "transformer" / "adapters" / "content" / adapter_files.WEIGHTS
    state, said = read_adapter(file)
    assert said["r"] == reference.CONTENT and said["lora_alpha"] == 1
    assert {key.split(".")[1] for key in state} == {"1"}
    model = LayerFlowPipeline.from_pretrained(out).transformer
    assert len(adapters.lora_layers(model, "content")) == 4


def test_a_base_gives_the_other_parts(tmp_path):
    base = tmp_path / "base"
    vae = AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=2
    )
    vae.save_pretrained(base / "vae")
    (base / "transformer").mkdir()
    (base / "transformer" / "config.json").write_text("{}")
    (base / "model_index.json").write_text('{"vae": ["diffusers", "AutoencoderKLCogVideoX"]}')
    out = convert(checkpoint(tmp_path / "in"), tmp_path / "out", base=base)
    pipe = LayerFlowPipeline.from_pretrained(out)
    own = pipe.vae.state_dict()
    assert all(torch.equal(own[key], value) for key, value in vae.state_dict().items())
    with pytest.raises(ValueError, match="no model in diffusers format"):
        convert(tmp_path / "in", tmp_path / "other", base=tmp_path / "in")
    assert not (tmp_path / "other").exists()


def test_dtype_option(tmp_path):
    out = convert(checkpoint(tmp_path / "in"), tmp_path / "out", dtype="bfloat16")
    with safe_open(out / "transformer" / "diffusion_pytorch_model.safetensors", "pt") as file:
        dtypes = {file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118
    assert dtypes == {"BF16"}
    with pytest.raises(ValueError, match="dtype must be one of"):
        convert(checkpoint(tmp_path / "in2"), tmp_path / "out2", dtype="int8")


def test_nothing_in_the_file_is_executed(tmp_path):
    flag = tmp_path / "flag"
    extra = {"rng": Danger(flag), "args": Inert(), "set": {1, 2}, "client": [Danger(flag)]}
    path = checkpoint(tmp_path / "in", **extra)
    convert(path, tmp_path / "out")
    assert not flag.exists()
    torch.load(path, weights_only=False)
    assert flag.exists(), "the payload works: the check above could have failed"


def test_reader_gives_the_tensors_of_torch_save(tmp_path):
    base = torch.arange(24.0)
    content = {
        "view": base[2:14].view(3, 4).t(),
        "half": torch.randn(3, dtype=torch.float16),
        "brain": torch.randn(2, 2).bfloat16(),
        "parameter": torch.nn.Parameter(torch.randn(2)),
        "empty": torch.empty(0, 4),
        "scalar": torch.tensor(3),
    }
    torch.save(content, tmp_path / "a.pt")
    read = read_torch_file(tmp_path / "a.pt")
    for key, value in content.items():
        assert isinstance(read[key], StoredTensor)
        assert torch.equal(read[key].load(), value), key


def test_a_tensor_outside_its_storage_is_refused(tmp_path):
    torch.save({"a": torch.zeros(4)}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        entries = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(tmp_path / "b.pt", "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data[:8] if name.endswith("data/0") else data)
    with pytest.raises(ValueError, match="smaller than the file says"):
        read_torch_file(tmp_path / "b.pt")


@pytest.mark.parametrize("keep", [0.3, 0.7, 0.999])
def test_truncated_file(tmp_path, keep):
    path = checkpoint(tmp_path / "in")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(ValueError, match=r"mp_rank_00_model_states\.pt is truncated"):
        convert(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_not_a_checkpoint(tmp_path):
    path = tmp_path / "x.pt"
    path.write_text("hello")
    with pytest.raises(ValueError, match=r"not a torch\.save file"):
        convert(path, tmp_path / "out")
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="no state dict"):
        convert(path, tmp_path / "out")
    torch.save({"module": {"unet.a": torch.zeros(1)}}, path)
    with pytest.raises(ValueError, match=r"unexpected key unet\.a"):
        convert(path, tmp_path / "out")


BLOCK = PREFIX + "transformer.layers.1."


def drop(key):
    return lambda weights: weights.pop(key)


def put(key, value):
    return lambda weights: weights.__setitem__(key, value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop(BLOCK + "mlp.dense_4h_to_h.bias"), r"transformer_blocks\.1\.ff\.net\.2\.bias"),
        (drop(PREFIX + "mixins.pos_embed.txt_embedder.1.bias"), r"txt_embedder\.1\.bias"),
        (drop(PREFIX + "mixins.pos_embed.pos_embedding"), r"missing key mixins\.pos_embed"),
        (drop(BLOCK + "attention.dense.matrix_D.0"), r"missing key .*dense\.matrix_D\.0"),
        (put(BLOCK + "attention.surprise", torch.zeros(1)), r"attention\.surprise"),
        (put(BLOCK + "cross.query.weight", torch.zeros(1)), r"layers\.1\.cross\.query\.weight"),
        (
            put(PREFIX + "transformer.layers.2.input_layernorm.weight", torch.zeros(32)),
            "missing key|unexpected key",
        ),
        (
            put(BLOCK + "attention.dense.matrix_A.0", torch.zeros(3, 32)),
            r"dense\.matrix_[AB]\.0 .*rank|rank 2",
        ),
        (put(BLOCK + "attention.dense.original.weight", torch.zeros(32, 31)), r"dense\.original"),
        (
            put(BLOCK + "attention.dense.weight", torch.zeros(32, 32)),
            r"to_out\.0\.weight is set twice",
        ),
    ],
)
def test_strict_about_every_key(tmp_path, change, message):
    path = checkpoint(tmp_path / "in", change=change)
    with pytest.raises(ValueError, match=message):
        convert(path, tmp_path / "out", task="gen_rgba")
    assert not (tmp_path / "out").exists()


def test_configuration_is_told_from_tensors_or_names_or_asked_for(tmp_path):
    out = convert(checkpoint(tmp_path / "any", "seg_rgba"), tmp_path / "a")
    assert (out / "transformer" / "config.json").read_text().count('"seg_rgba"') == 1
    named = tmp_path / "multi-layer-generation-rgb"
    out = convert(checkpoint(named, "gen_rgb"), tmp_path / "b")
    assert '"gen_rgb"' in (out / "transformer" / "config.json").read_text()
    with pytest.raises(ValueError, match=r"gen_rgb, fg2bg_rgb, bg2fg_rgb.*--task"):
        convert(checkpoint(tmp_path / "x", "gen_rgb"), tmp_path / "c")
    with pytest.raises(ValueError, match="needs"):
        convert(checkpoint(tmp_path / "y", "gen_rgb"), tmp_path / "d", task="gen_rgba")


def test_names_of_released_folders():
    candidates = ["gen_rgb", "fg2bg_rgb", "bg2fg_rgb"]
    assert guess_from_name("multi-layer-generation-rgb", candidates) == ["gen_rgb"]
    assert guess_from_name("fg2bg_rgba", candidates) == []
    assert guess_from_name("1000", candidates) == candidates


def test_folders_and_existing_output(tmp_path):
    path = checkpoint(tmp_path / "in")
    assert find_states(tmp_path / "in") == path
    assert find_states(path.parent) == path
    with pytest.raises(ValueError, match="expected one"):
        find_states(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "keep.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty"):
        convert(path, tmp_path / "out")
    assert (tmp_path / "out" / "keep.txt").read_text() == "mine"


def test_latest_cannot_lead_out_of_the_folder(tmp_path):
    checkpoint(tmp_path / "in")
    other = tmp_path / "other"
    other.mkdir()
    (other / "latest").write_text("../in/1000")
    with pytest.raises(ValueError, match="expected one"):
        find_states(other)


@pytest.mark.slow
def test_memory_stays_far_below_the_file(tmp_path):
    """Dropped parts (text encoder, VAE) are never read: 400 MB of them cost nothing."""
    code = (
        "import sys, resource\n"
        "from pathlib import Path\n"
        "from layerflow.official.convert import read_source\n"
        "import torch, layerflow.model.transformer\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "source = read_source(Path(sys.argv[1]))\n"
        "for value in source.values(): value.load()\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    path = checkpoint(
        tmp_path / "in", change=put("first_stage_model.big", torch.zeros(100_000_000))
    )
    grown = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    assert int(grown.stdout) < 50_000  # kilobytes
