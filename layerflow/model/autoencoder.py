"""Clips <-> latents, layer by layer; and the parameter-free stand-in autoencoder.

Every layer is encoded by itself, so latents can be kept and mixed per layer. The network sees the
foreground on mid-grey and alpha as three equal channels, all in [-1, 1]. Official checkpoints use
the joint pass instead: one VAE call over the concatenated clip, in one chunk.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from layerflow.clip import LAYERS, LayeredClip
from layerflow.documents import read_json
from layerflow.layer_stack import LayerStack, stack_of

NO_VARIANCE = -30.0
"""Log-variance of a latent that has none; diffusers clamps to this value."""

# Orthonormal colour rotation of (R, G, B): luma, red-blue, green against magenta.
_COLOUR = torch.tensor(
    [
        [1 / math.sqrt(3)] * 3,
        [1 / math.sqrt(2), 0.0, -1 / math.sqrt(2)],
        [-1 / math.sqrt(6), 2 / math.sqrt(6), -1 / math.sqrt(6)],
    ],
    dtype=torch.float64,
)


class BlockDCTAutoencoder(ModelMixin, ConfigMixin):
    """An orthonormal block DCT behind the autoencoder interface: nothing learned, nothing random.

    Colour is rotated to luma and two chromas; each block's low bands are kept, in zigzag order.
    With all bands kept (luma = chroma = block*block) it is lossless. No temporal compression: any
    number of frames is legal. ``scaling_factor`` brings the latents' standard deviation near 1.
    """

    @register_to_config
    def __init__(
        self,
        block_size: int = 8,
        luma_bands: int = 15,
        chroma_bands: int = 6,
        scaling_factor: float = 0.6,
    ) -> None:
        super().__init__()
        if block_size < 1 or not all(
            0 < bands <= block_size**2 for bands in (luma_bands, chroma_bands)
        ):
            raise ValueError(f"bands must be 1 to {block_size**2}: {luma_bands}, {chroma_bands}")
        basis = _basis(block_size, luma_bands, chroma_bands)
        self.register_buffer("basis", basis)  # kept in the file, so that loading needs no rule
        self.basis: Tensor
        self.spatial_compression_ratio = block_size
        self.temporal_compression_ratio = 1
        self.latent_channels = len(basis)

    @apply_forward_hook
    def encode(self, x: Tensor, return_dict: bool = True) -> Any:
        """``[B, 3, T, H, W]`` in [-1, 1] -> ``.latent_dist`` over ``[B, C, T, H/b, W/b]``."""
        b = self.config.block_size
        if x.ndim != 5 or x.shape[1] != 3 or x.shape[3] % b or x.shape[4] % b:
            raise ValueError(f"expected [B, 3, T, H, W], H and W multiples of {b}: {x.shape}")
        frames = x.to(self.basis.dtype).transpose(1, 2).flatten(0, 1)
        mean = functional.conv2d(frames, self.basis, stride=b)
        mean = mean.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)
        moments = torch.cat([mean, torch.full_like(mean, NO_VARIANCE)], 1)
        distribution = DiagonalGaussianDistribution(moments)
        return AutoencoderKLOutput(distribution) if return_dict else (distribution,)

    @apply_forward_hook
    def decode(self, z: Tensor, return_dict: bool = True) -> Any:
        """``[B, C, T, h, w]`` -> ``.sample`` ``[B, 3, T, h*b, w*b]``, not clamped."""
        frames = z.to(self.basis.dtype).transpose(1, 2).flatten(0, 1)
        image = functional.conv_transpose2d(frames, self.basis, stride=self.config.block_size)
        image = image.unflatten(0, (z.shape[0], z.shape[2])).transpose(1, 2)
        return DecoderOutput(image) if return_dict else (image,)

    def forward(self, sample: Tensor) -> Tensor:
        """Encode and decode."""
        return self.decode(self.encode(sample).latent_dist.mode()).sample


def autoencoder_class(folder: Path) -> Any:
    """The class of a saved autoencoder. ValueError for a folder without one, or of another kind."""
    import diffusers

    kinds = {
        "BlockDCTAutoencoder": BlockDCTAutoencoder,
        "AutoencoderKLCogVideoX": diffusers.AutoencoderKLCogVideoX,
    }
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is no autoencoder (no config.json)")
    said = read_json(folder / "config.json", {"_class_name": str})["_class_name"]
    if said not in kinds:
        raise ValueError(f"{folder}: unknown autoencoder {said!r}; not {sorted(kinds)}")
    return kinds[said]


def load_autoencoder(folder: Path) -> Any:
    """The autoencoder that a folder holds, in its own precision, for inference."""
    return autoencoder_class(folder).from_pretrained(folder).eval()


def _basis(block: int, luma: int, chroma: int) -> Tensor:
    """Orthonormal filters ``[luma + 2*chroma, 3, block, block]``, low bands first."""
    index = torch.arange(block, dtype=torch.float64)
    angles = torch.outer(index, 2 * index + 1) * (math.pi / (2 * block))
    dct = torch.cos(angles) * math.sqrt(2 / block)
    dct[0] /= math.sqrt(2)
    bands = sorted(
        ((u, v) for u in range(block) for v in range(block)),
        key=lambda b: (sum(b), b[0] if sum(b) % 2 else b[1]),
    )
    filters = [
        _COLOUR[channel][:, None, None] * torch.outer(dct[u], dct[v])
        for channel, count in enumerate((luma, chroma, chroma))
        for u, v in bands[:count]
    ]
    return torch.stack(filters).float()


def check_frames(vae: Any, num_frames: int) -> None:
    """ValueError unless the autoencoder gives as many frames back as it was given.

    The stand-in takes any number. diffusers' CogVideoX VAE, which works in chunks of 8, takes 8k
    and 8k + 1 only.
    """
    if num_frames < 1:
        raise ValueError(f"num_frames must be 1 or more, not {num_frames}")
    step = 2 * temporal_factor(vae)
    if temporal_factor(vae) > 1 and num_frames % step > 1:
        low = num_frames - num_frames % step
        allowed = ", ".join(str(n) for n in (low, low + 1, low + step) if n)
        raise ValueError(
            f"this autoencoder cannot take {num_frames} frames, only {step}k and {step}k+1 "
            f"(nearest: {allowed})"
        )


def temporal_factor(vae: Any) -> int:
    """Pixel frames of one latent frame."""
    own = getattr(vae, "temporal_compression_ratio", None)
    return int(own or vae.config.temporal_compression_ratio)


def spatial_factor(vae: Any) -> int:
    """Pixels of one latent pixel's side."""
    own = getattr(vae, "spatial_compression_ratio", None)
    return int(own or 2 ** (len(vae.config.block_out_channels) - 1))


def latent_frames(vae: Any, num_frames: int) -> int:
    """Latent frames of ``num_frames`` pixel frames; an odd number's first frame stands alone."""
    factor = temporal_factor(vae)
    if factor == 1:
        return num_frames
    return num_frames // factor if num_frames % 2 == 0 else (num_frames - 1) // factor + 1


def device_of(vae: Any) -> Any:
    """Where the autoencoder computes; under diffusers' CPU offload that is not where it lies."""
    hook = getattr(vae, "_hf_hook", None)
    return getattr(hook, "execution_device", None) or vae.device


def encode(vae: Any, pixels: Tensor, whole: bool = False) -> tuple[Tensor, Tensor]:
    """``[B, 3, T, H, W]`` in [-1, 1] -> scaled mean and log-variance, ``[B, f, C, h, w]`` float32.

    The clips are encoded one at a time unless the autoencoder is the stand-in: memory.
    whole: the caller has set up ``one_chunk``, which takes frame counts that chunks do not.
    ValueError for a frame count that it cannot take.
    """
    if not whole:
        check_frames(vae, pixels.shape[2])
    pixels = pixels.to(device=device_of(vae), dtype=vae.dtype)
    parts = [pixels] if isinstance(vae, BlockDCTAutoencoder) else list(pixels.split(1))
    with torch.no_grad():
        spread = [vae.encode(part).latent_dist for part in parts]
    scale = float(vae.config.scaling_factor)
    mean = torch.cat([d.mean for d in spread]).float() * scale
    logvar = torch.cat([d.logvar for d in spread]).float()
    logvar = torch.where(
        logvar <= NO_VARIANCE, logvar, logvar + 2 * math.log(scale)
    )  # "none" stays "none"
    return mean.transpose(1, 2), logvar.transpose(1, 2)


def decode(vae: Any, latents: Tensor) -> Tensor:
    """Scaled ``[B, f, C, h, w]`` -> pixels ``[B, 3, T, H, W]`` float32, clamped to [-1, 1]."""
    z = (latents / float(vae.config.scaling_factor)).transpose(1, 2)
    z = z.to(device=device_of(vae), dtype=vae.dtype)
    parts = [z] if isinstance(vae, BlockDCTAutoencoder) else list(z.split(1))
    with torch.no_grad():
        pixels = torch.cat([vae.decode(part).sample for part in parts])
    return pixels.float().clamp(-1, 1)


@contextmanager
def one_chunk(vae: Any, num_frames: int) -> Iterator[None]:
    """Within the block, diffusers' CogVideoX VAE passes the whole clip in one chunk.

    That is how the official code encodes and decodes the concatenated layers: GroupNorm statistics
    and causal convolutions span all of them.
    """
    names = ("num_sample_frames_batch_size", "num_latent_frames_batch_size")
    before = {name: getattr(vae, name) for name in names if hasattr(vae, name)}
    for name in before:
        setattr(vae, name, num_frames)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(vae, name, value)


def layer_pixels(clip: LayeredClip | LayerStack) -> NDArray[np.float32]:
    """What the network sees: float32 ``[n, T, H, W, 3]`` in [-1, 1], layers in order; of a clip its
    four, of a stack its ``names``."""
    return (clip if isinstance(clip, LayerStack) else stack_of(clip)).pixels()


def encode_clips(
    vae: Any, clips: Sequence[LayeredClip] | Sequence[LayerStack]
) -> NDArray[np.float32]:
    """float32 ``[N, n, 2C, f, h, w]``: mean, then log-variance (-30 where there is none).

    Both are those of the scaled latents. clips: of one size, length and number of layers.
    ValueError for a frame count that the autoencoder cannot take.
    """
    pixels = torch.from_numpy(np.concatenate([layer_pixels(clip) for clip in clips]))
    mean, logvar = encode(vae, pixels.permute(0, 4, 1, 2, 3))
    moments = torch.cat([mean, logvar], 2).transpose(1, 2)
    return moments.unflatten(0, (len(clips), -1)).cpu().numpy()


def decode_layers(
    vae: Any, latents: Any, layers: Sequence[str] = LAYERS
) -> dict[str, NDArray[np.float32]]:
    """Scaled latents ``[n, f, C, h, w]`` -> layer -> float32 ``[T, H, W, 3]`` in [-1, 1].

    layers: their names. A foreground is on mid-grey, as the network makes it.
    """
    pixels = decode(vae, torch.as_tensor(latents))
    frames = pixels.permute(0, 2, 3, 4, 1).cpu().numpy()
    return dict(zip(layers, frames, strict=True))
