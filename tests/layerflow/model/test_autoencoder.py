"""The stand-in autoencoder, frame counts, layers in and out, diffusers' CogVideoX VAE."""

from __future__ import annotations

import layerflow  # noqa: F401  its torchvision guard comes before diffusers

# isort: split

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLCogVideoX

from layerflow.clip import LAYERS, LayeredClip, on_grey, to_float
from layerflow.model import autoencoder
from layerflow.model.autoencoder import BlockDCTAutoencoder


def clip(frames=3, height=16, width=24, seed=0):
    rng = np.random.default_rng(seed)

    def noise(*shape):
        return rng.integers(0, 256, shape, dtype=np.uint8)

    size = (frames, height, width)
    return LayeredClip(noise(*size, 3), noise(*size), noise(*size, 3), noise(*size, 3))


@pytest.fixture(scope="module")
def cogvideox():
    torch.manual_seed(0)
    return AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
        sample_height=16,
        sample_width=16,
    ).eval()


def test_lossless_with_all_bands():
    vae = BlockDCTAutoencoder(luma_bands=64, chroma_bands=64)
    x = torch.rand(2, 3, 3, 16, 24) * 2 - 1
    assert vae.latent_channels == 192
    assert (vae(x) - x).abs().max() < 1e-5


def test_basis_is_orthonormal_and_low_bands_come_first():
    basis = BlockDCTAutoencoder().basis.flatten(1)
    assert basis.shape == (27, 192)
    assert torch.allclose(basis @ basis.T, torch.eye(27), atol=1e-6)
    constant = torch.ones(192) / 192**0.5
    assert torch.allclose(basis[0] @ constant, torch.tensor(1.0))


def test_smooth_pictures_survive_the_low_bands():
    ramp = torch.linspace(-1, 1, 32)[None, None, None, None, :].expand(1, 3, 2, 32, 32)
    vae = BlockDCTAutoencoder()
    assert (vae(ramp) - ramp).abs().max() < 0.05
    noise = torch.rand(1, 3, 2, 32, 32) * 2 - 1
    assert (vae(noise) - noise).abs().mean() > 0.1, "it does compress"


def test_any_number_of_frames_and_only_whole_blocks():
    vae = BlockDCTAutoencoder()
    for frames in (1, 2, 5, 16):
        autoencoder.check_frames(vae, frames)
        assert autoencoder.latent_frames(vae, frames) == frames
    with pytest.raises(ValueError, match="1 or more"):
        autoencoder.check_frames(vae, 0)
    with pytest.raises(ValueError, match="multiples of 8"):
        vae.encode(torch.zeros(1, 3, 1, 12, 16))


def test_round_trip_through_files(tmp_path):
    vae = BlockDCTAutoencoder(luma_bands=10, scaling_factor=0.7)
    vae.save_pretrained(tmp_path)
    again = BlockDCTAutoencoder.from_pretrained(tmp_path)
    x = torch.rand(1, 3, 1, 8, 8)
    assert again.config.scaling_factor == 0.7 and torch.equal(vae(x), again(x))


def test_overlap_keeps_every_band_and_all_energy():
    vae = BlockDCTAutoencoder(4, 16, 16, overlap=True)
    x = torch.rand(2, 3, 2, 12, 20) * 2 - 1
    latents = vae.encode(x).latent_dist.mode()
    assert torch.allclose(vae.decode(latents).sample, x, atol=1e-5)
    assert torch.allclose(latents.square().sum(), x.square().sum(), rtol=1e-5)
    one = BlockDCTAutoencoder(4, 16, 16, overlap=True)
    assert torch.allclose(one(x[..., :4, :4]), x[..., :4, :4], atol=1e-5), "a single block"


def test_overlap_decodes_any_latents_without_edges_of_blocks():
    """What a small network makes: bands that do not fit from block to block."""
    latents = torch.randn(1, 27, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    latents *= torch.tensor([1.0] * 3 + [0.0] * 12 + [1.0] * 3 + [0.0] * 9)[
        None, :, None, None, None
    ]
    steps = {}
    for overlap in (False, True):
        image = BlockDCTAutoencoder(overlap=overlap).decode(latents).sample[0, :, 0]
        step = (image[..., 1:] - image[..., :-1]).square().mean((0, 1)).sqrt()
        steps[overlap] = float(step[7::8].mean() / step.mean())
    assert steps[False] > 2 and steps[True] < 1.5


def test_overlap_goes_through_files_and_needs_an_even_block(tmp_path):
    vae = BlockDCTAutoencoder(overlap=True)
    vae.save_pretrained(tmp_path)
    x = torch.rand(1, 3, 1, 16, 16)
    assert torch.equal(BlockDCTAutoencoder.from_pretrained(tmp_path)(x), vae(x))
    assert not torch.allclose(BlockDCTAutoencoder()(x), vae(x), atol=1e-3)
    with pytest.raises(ValueError, match="even"):
        BlockDCTAutoencoder(5, overlap=True)


@pytest.mark.parametrize("wrong", [{"luma_bands": 0}, {"chroma_bands": 65}, {"block_size": 0}])
def test_wrong_bands(wrong):
    with pytest.raises(ValueError, match="bands"):
        BlockDCTAutoencoder(**wrong)


def test_cogvideox_frame_counts(cogvideox):
    legal = [n for n in range(1, 34) if n % 8 < 2]
    for frames in range(1, 34):
        if frames in legal:
            autoencoder.check_frames(cogvideox, frames)
        else:
            with pytest.raises(ValueError, match="8k and 8k\\+1"):
                autoencoder.check_frames(cogvideox, frames)


@pytest.mark.parametrize("frames", [1, 8, 9])
def test_cogvideox_gives_back_as_many_frames(cogvideox, frames):
    pixels = torch.rand(1, 3, frames, 16, 16) * 2 - 1
    mean, logvar = autoencoder.encode(cogvideox, pixels)
    assert mean.shape == (1, autoencoder.latent_frames(cogvideox, frames), 4, 2, 2)
    assert logvar.shape == mean.shape
    assert autoencoder.decode(cogvideox, mean).shape == pixels.shape


def test_scaled_moments_are_those_of_scaled_latents(cogvideox):
    pixels = torch.rand(2, 3, 8, 16, 16) * 2 - 1
    mean, logvar = autoencoder.encode(cogvideox, pixels)
    with torch.no_grad():
        plain = cogvideox.encode(pixels).latent_dist
    scale = cogvideox.config.scaling_factor
    assert torch.allclose(mean.transpose(1, 2), plain.mean * scale, atol=1e-5)
    assert torch.allclose((0.5 * logvar).exp().transpose(1, 2), plain.std * scale, rtol=1e-4)


def test_one_chunk_spans_the_whole_clip(cogvideox):
    pixels = torch.rand(1, 3, 16, 16, 16) * 2 - 1
    chunked, _ = autoencoder.encode(cogvideox, pixels)
    with autoencoder.one_chunk(cogvideox, 16):
        whole, _ = autoencoder.encode(cogvideox, pixels, whole=True)
    assert whole.shape == chunked.shape and (whole - chunked).abs().max() > 1e-3
    assert torch.equal(autoencoder.encode(cogvideox, pixels)[0], chunked), "settings are restored"


def test_layers_as_the_network_sees_them():
    sample = clip()
    pixels = autoencoder.layer_pixels(sample)
    assert pixels.shape == (4, 3, 16, 24, 3) and pixels.dtype == np.float32
    assert np.array_equal(pixels[0], on_grey(sample.foreground, sample.alpha))
    assert np.array_equal(pixels[1][..., 2], to_float(sample.alpha))
    assert np.array_equal(pixels[3], to_float(sample.blended))


def test_encode_and_decode_layers():
    vae = BlockDCTAutoencoder(luma_bands=64, chroma_bands=64)
    sample = clip()
    moments = autoencoder.encode_clips(vae, [sample, sample])
    assert moments.shape == (2, 4, 384, 3, 2, 3) and moments.dtype == np.float32
    assert (moments[:, :, 192:] == -30).all(), "no variance"
    latents = moments[1, :, :192].swapaxes(1, 2)
    decoded = autoencoder.decode_layers(vae, latents)
    for index, name in enumerate(LAYERS):
        assert np.abs(decoded[name] - autoencoder.layer_pixels(sample)[index]).max() < 1e-4


def test_a_repeated_still_is_one_repeated_latent():
    vae, still = BlockDCTAutoencoder(), clip(frames=1)
    moving = still.take([0, 0, 0])
    one, three = (autoencoder.encode_clips(vae, [clip]) for clip in (still, moving))
    assert np.array_equal(np.repeat(one, 3, axis=3), three)


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="multiples of 8"):
        autoencoder.encode_clips(BlockDCTAutoencoder(), [clip(height=20)])


def test_default_scale_brings_natural_latents_near_one():
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (4, 4, 4, 3), dtype=np.uint8)
    big = small.repeat(8, 1).repeat(8, 2)
    alpha = np.zeros((4, 32, 32), np.uint8)
    alpha[:, 8:24, 8:24] = 255
    sample = LayeredClip(big, alpha, big[::-1], big)
    spread = autoencoder.encode_clips(BlockDCTAutoencoder(), [sample])[:, :, :27].std()
    assert 0.3 < spread < 2.0
