"""Clips <-> latents, layer by layer, by any autoencoder; and the parameter-free stand-in.

Every layer is encoded by itself, so latents can be kept and mixed per layer. The network sees the
foreground on mid-grey and alpha as three equal channels, all in [-1, 1]. Official checkpoints use
the joint pass instead: one VAE call over the concatenated clip, in one chunk.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
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
from layerflow.media.layer_stack import LayerStack, stack_of

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

    overlap: a lapped transform instead, whose waves run half a block over each border, so that what
    is decoded has no edges of blocks: the orthonormal LOT as a filter before and after the DCT
    (Tran, Liang, Tu, "Lapped transform via time-domain pre- and post-filtering", 2003). Needs an
    even block.
    """

    @register_to_config
    def __init__(
        self,
        block_size: int = 8,
        luma_bands: int = 15,
        chroma_bands: int = 6,
        scaling_factor: float = 0.6,
        overlap: bool = False,
    ) -> None:
        super().__init__()
        if overlap and block_size % 2:
            raise ValueError(f"blocks that overlap have an even size, not {block_size}")
        if block_size < 1 or not all(
            0 < bands <= block_size**2 for bands in (luma_bands, chroma_bands)
        ):
            raise ValueError(f"bands must be 1 to {block_size**2}: {luma_bands}, {chroma_bands}")
        basis = _basis(block_size, luma_bands, chroma_bands)
        self.register_buffer("basis", basis)  # kept in the file, so that loading needs no rule
        self.basis: Tensor
        self.register_buffer("lap", _lap(block_size) if overlap else None)
        self.lap: Tensor | None
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
        if self.lap is not None:
            frames = _across_borders(frames, self.lap)
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
        if self.lap is not None:
            image = _across_borders(image, self.lap.T)
        image = image.unflatten(0, (z.shape[0], z.shape[2])).transpose(1, 2)
        return DecoderOutput(image) if return_dict else (image,)

    def forward(self, sample: Tensor) -> Tensor:
        """Encode and decode."""
        return self.decode(self.encode(sample).latent_dist.mode()).sample


def _stand_in(config: Mapping[str, Any]) -> tuple[int, int]:
    return 1, int(config.get("block_size", 8))


@dataclass(frozen=True)
class AutoencoderKind:
    """What one class of autoencoders asks of clips.

    module: where the class is. factors: its settings -> pixel frames and pixels of a latent.
    chunk, rests: it takes n frames if n modulo ``chunk`` latents' frames is one of ``rests``, and
    makes ``ceil(n / frames of a latent)`` latents of them. one_by_one: clips pass it one at a time,
    to save memory.

    Its latents are scaled by what its settings say: see ``normalisation``.
    """

    module: str
    factors: Callable[[Mapping[str, Any]], tuple[int, int]]
    chunk: int = 1
    rests: tuple[int, ...] = (0,)
    one_by_one: bool = True

    def takes(self, num_frames: int, factor: int) -> bool:
        """Whether it gives that many frames back. factor: pixel frames of a latent."""
        return num_frames > 0 and num_frames % (self.chunk * factor) in self.rests

    def check_frames(self, num_frames: int, factor: int) -> None:
        """ValueError with the nearest counts unless it ``takes`` that many."""
        if num_frames < 1:
            raise ValueError(f"num_frames must be 1 or more, not {num_frames}")
        if self.takes(num_frames, factor):
            return
        step = self.chunk * factor
        near = [n for n in range(num_frames - step, num_frames) if self.takes(n, factor)]
        above = range(num_frames, num_frames + step + 1)
        near.append(next(n for n in above if self.takes(n, factor)))
        rules = " and ".join(f"{step}k" + f"+{rest}" * bool(rest) for rest in self.rests)
        raise ValueError(
            f"this autoencoder cannot take {num_frames} frames, only {rules} "
            f"(nearest: {', '.join(map(str, near))})"
        )

    def latent_frames(self, num_frames: int, factor: int) -> int:
        """Latent frames of as many pixel frames."""
        return -(-num_frames // factor)

    def pixel_frames(self, latent_frames: int, factor: int) -> int:
        """The most pixel frames of as many latents that it takes."""
        most = latent_frames * factor
        counts = range(most, most - factor, -1)
        return next((n for n in counts if self.takes(n, factor)), most)


KINDS = {
    "BlockDCTAutoencoder": AutoencoderKind(
        "layerflow.model.autoencoder", _stand_in, one_by_one=False
    )
}
"""Class name -> kind: the stand-in, and those of the bases that have been asked for."""


def kind_of(name: str) -> AutoencoderKind:
    """The kind of a class name. ValueError for one that no base has."""
    if name not in KINDS:
        for base in import_module("layerflow.model.base").bases():
            KINDS.update(base.autoencoders)
    if name not in KINDS:
        raise ValueError(f"unknown autoencoder {name!r}; not {sorted(KINDS)}")
    return KINDS[name]


def autoencoder_class(folder: Path) -> Any:
    """The class of a saved autoencoder. ValueError for a folder without one, or of another kind."""
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is no autoencoder (no config.json)")
    said = read_json(folder / "config.json", {"_class_name": str})["_class_name"]
    try:
        kind = kind_of(said)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    return getattr(import_module(kind.module), said)


def load_autoencoder(folder: Path, dtype: torch.dtype | None = None) -> Any:
    """The autoencoder that a folder holds, for inference; in float32 unless another is said."""
    return autoencoder_class(folder).from_pretrained(folder, dtype=dtype or torch.float32).eval()


def enable_tiling(vae: Any) -> None:
    """Let it work tile by tile, with seams blended, where the frames are larger than its tiles. The
    stand-in works block by block as it is. (Clips and layers pass one at a time anyway.)"""
    if hasattr(vae, "enable_tiling"):
        vae.enable_tiling()


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


def _lap(block: int) -> Tensor:
    """The LOT's orthogonal pre-filter ``[block, block]``; transposed it is the post-filter.

    ``[[I, J], [J, -I]] [[I, 0], [0, V]] [[I, J], [J, -I]] / 2``, J reversal, ``V = J C2^T C4 J`` of
    the DCTs II and IV of half a block.
    """
    half = block // 2
    odd = 2 * torch.arange(half, dtype=torch.float64) + 1
    second = torch.cos(torch.outer(odd - 1, odd) * (math.pi / (4 * half))) * math.sqrt(2 / half)
    second[0] /= math.sqrt(2)
    fourth = torch.cos(torch.outer(odd, odd) * (math.pi / (4 * half))) * math.sqrt(2 / half)
    one = torch.eye(half, dtype=torch.float64)
    butterfly = torch.cat([torch.cat([one, one.flip(0)], 1), torch.cat([one.flip(0), -one], 1)])
    middle = torch.block_diag(one, (second.T @ fourth).flip(0, 1))
    return (butterfly @ middle @ butterfly / 2).float()


def _across_borders(image: Tensor, matrix: Tensor) -> Tensor:
    """The matrix along height and width of ``[..., H, W]``, on each block's length of pixels with a
    border between blocks in its middle; the half blocks at the picture's edges stay."""
    half = len(matrix) // 2
    for axis in (-2, -1):
        line = image.movedim(axis, -1)
        inner = line[..., half:-half].unflatten(-1, (-1, len(matrix))) @ matrix.T
        parts = (line[..., :half], inner.flatten(-2), line[..., -half:])
        image = torch.cat(parts, -1).movedim(-1, axis)
    return image


def check_frames(vae: Any, num_frames: int) -> None:
    """ValueError unless the autoencoder gives as many frames back as it was given."""
    _kind(vae).check_frames(num_frames, temporal_factor(vae))


def _kind(vae: Any) -> AutoencoderKind:
    return kind_of(type(vae).__name__)


def temporal_factor(vae: Any) -> int:
    """Pixel frames of one latent frame."""
    return _kind(vae).factors(vae.config)[0]


def spatial_factor(vae: Any) -> int:
    """Pixels of one latent pixel's side."""
    return _kind(vae).factors(vae.config)[1]


def latent_frames(vae: Any, num_frames: int) -> int:
    """Latent frames of ``num_frames`` pixel frames that it takes."""
    return _kind(vae).latent_frames(num_frames, temporal_factor(vae))


def pixel_frames(vae: Any, latent_frames: int) -> int:
    """Pixel frames of as many latent frames."""
    return _kind(vae).pixel_frames(latent_frames, temporal_factor(vae))


def normalisation(vae: Any) -> tuple[Any, Any]:
    """(shift, scale) of the affine map from an autoencoder's latents to the network's:
    ``(z - shift) * scale``. Numbers, or ``[C, 1, 1, 1]`` float32 where its settings have
    statistics of each channel (``latents_mean``, ``latents_std``).

    The map is exact for posteriors too: a normal distribution with mean m and log-variance l goes
    over into one with ``(m - shift) * scale`` and ``l + 2 log(scale)``. So cached moments are those
    of normalised latents.
    """
    config = vae.config
    if getattr(config, "latents_mean", None) is None:
        return 0.0, float(config.scaling_factor)
    shift, spread = (
        torch.tensor(getattr(config, name), dtype=torch.float64).view(-1, 1, 1, 1)
        for name in ("latents_mean", "latents_std")
    )
    return shift.float(), (1.0 / spread).float()


def device_of(vae: Any) -> Any:
    """Where the autoencoder computes; under diffusers' CPU offload that is not where it lies."""
    hook = getattr(vae, "_hf_hook", None)
    return getattr(hook, "execution_device", None) or vae.device


def encode(vae: Any, pixels: Tensor, whole: bool = False) -> tuple[Tensor, Tensor]:
    """``[B, 3, T, H, W]`` in [-1, 1] -> scaled mean and log-variance, ``[B, f, C, h, w]`` float32.

    Both are those of normalised latents, see ``normalisation``.
    whole: the caller has set up ``one_chunk``, which takes frame counts that chunks do not.
    ValueError for a frame count that it cannot take.
    """
    if not whole:
        check_frames(vae, pixels.shape[2])
    pixels = pixels.to(device=device_of(vae), dtype=vae.dtype)
    parts = list(pixels.split(1)) if _kind(vae).one_by_one else [pixels]
    with torch.no_grad():
        spread = [vae.encode(part).latent_dist for part in parts]
    shift, scale = _at(normalisation(vae), pixels.device)
    mean = (torch.cat([d.mean for d in spread]).float() - shift) * scale
    logvar = torch.cat([d.logvar for d in spread]).float()
    wider = 2 * (math.log(scale) if isinstance(scale, float) else scale.log())
    logvar = torch.where(logvar <= NO_VARIANCE, logvar, logvar + wider)  # "none" stays "none"
    return mean.transpose(1, 2), logvar.transpose(1, 2)


def decode(vae: Any, latents: Tensor) -> Tensor:
    """Scaled ``[B, f, C, h, w]`` -> pixels ``[B, 3, T, H, W]`` float32, clamped to [-1, 1]."""
    shift, scale = _at(normalisation(vae), latents.device)
    z = latents.transpose(1, 2) / scale + shift
    z = z.to(device=device_of(vae), dtype=vae.dtype)
    parts = list(z.split(1)) if _kind(vae).one_by_one else [z]
    with torch.no_grad():
        pixels = torch.cat([vae.decode(part).sample for part in parts])
    return pixels.float().clamp(-1, 1)


def _at(values: tuple[Any, Any], device: Any) -> tuple[Any, ...]:
    return tuple(v if isinstance(v, float) else v.to(device) for v in values)


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
