"""What differs between bases: how one is found, what its autoencoder asks of clips."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from layerflow.model import autoencoder
from layerflow.model.autoencoder import AutoencoderKind
from layerflow.model.base import base_of, bases
from layerflow.model.cogvideox.base import COGVIDEOX
from layerflow.model.cogvideox.transformer import LayerFlowTransformer3DModel
from tests.support.model_kit import small_transformer


def test_a_base_is_found_by_model_wrapper_config_and_folder(tmp_path: Path) -> None:
    model = small_transformer()
    model.save_pretrained(tmp_path / "transformer")
    sharded = type("FSDPLayerFlow", (LayerFlowTransformer3DModel,), {})  # as fully_shard makes it
    wrapper = torch.nn.Module()
    wrapper.module = model  # as DistributedDataParallel does
    config = LayerFlowTransformer3DModel.load_config(tmp_path / "transformer")
    for of in (model, wrapper, config, tmp_path, object.__new__(sharded)):
        assert base_of(of) is COGVIDEOX
    assert base_of(model).transformer is type(model)
    assert getattr(model, COGVIDEOX.blocks) is getattr(model, model.block_list)
    with pytest.raises(ValueError, match="unknown transformer 'UNet'"):
        base_of({"_class_name": "UNet"})
    with pytest.raises(ValueError, match="no model directory"):
        base_of(tmp_path / "absent")


def test_every_base_says_what_its_network_says() -> None:
    for base in bases():
        assert base.transformer.block_list == base.blocks
        assert base.transformer.__name__ in base.pipeline.own_modules
        assert base.pipeline.autoencoders == base.autoencoders


@pytest.mark.parametrize(
    ("kind", "takes", "refused"),
    [
        (AutoencoderKind("", lambda c: (4, 8), 2, (0, 1)), {1, 8, 9, 16, 17}, "8, 9, 16"),
        (AutoencoderKind("", lambda c: (4, 8), 1, (1,)), {1, 5, 9, 13, 17}, "9, 13"),
    ],
    ids=["chunks-of-8", "one-and-fours"],
)
def test_frame_counts_follow_the_rule_and_others_name_the_nearest(
    kind: AutoencoderKind, takes: set[int], refused: str
) -> None:
    assert {n for n in range(-3, 18) if kind.takes(n, 4)} == takes
    for count in takes:
        kind.check_frames(count, 4)
        latent = kind.latent_frames(count, 4)
        assert latent == (count + 3) // 4 and kind.pixel_frames(latent, 4) == count
    with pytest.raises(ValueError, match=rf"nearest: {refused}\)"):
        kind.check_frames(12, 4)


class PerChannel:
    """An autoencoder whose latents are its pixels, with a spread of their own by channel."""

    dtype, device = torch.float32, torch.device("cpu")
    config = SimpleNamespace(latents_mean=[0.5, -2.0, 1.0], latents_std=[0.25, 3.0, 1.5])

    def encode(self, x: torch.Tensor) -> SimpleNamespace:
        spread = torch.full_like(x, -1.5)
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=x, logvar=spread))

    def decode(self, z: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(sample=z)


def test_moments_are_those_of_latents_normalised_by_channel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The posterior of the normalised latents, measured on draws from the raw one."""
    kind = AutoencoderKind("", lambda config: (1, 1))
    monkeypatch.setitem(autoencoder.KINDS, "PerChannel", kind)
    vae, pixels = PerChannel(), torch.linspace(-1, 1, 2 * 3 * 4).view(2, 3, 1, 2, 2)
    mean, logvar = autoencoder.encode(vae, pixels)
    draws = np.random.default_rng(0).standard_normal((20000, 2, 3, 1, 2, 2))
    raw = pixels.numpy() + np.exp(-0.75) * draws
    shift, spread = (
        np.reshape(values, (3, 1, 1, 1)) for values in ([0.5, -2.0, 1.0], [0.25, 3.0, 1.5])
    )
    normal = ((raw - shift) / spread).swapaxes(2, 3)
    assert np.allclose(mean.numpy(), normal.mean(0), atol=0.06)
    assert np.allclose(logvar.numpy(), np.log(normal.var(0)), atol=0.06)
    assert torch.allclose(autoencoder.decode(vae, mean), pixels, atol=1e-6)
