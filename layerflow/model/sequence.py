"""Between layers of pixels and the one latent sequence of the network, for any layout.

Native models encode and decode each layer by itself. Official ones decode the concatenated layers
in one VAE pass; their given layers lie side by side and are encoded in one pass of their own (the
released code encodes all layers together there, which needs the layers that are to be generated).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor
from numpy.typing import NDArray
from torch import Tensor

from layerflow.clip import FOREGROUND
from layerflow.model import autoencoder
from layerflow.model.layers import Layout, OfficialTask

F32 = NDArray[np.float32]
Generators: TypeAlias = "torch.Generator | list[torch.Generator] | None"


def encode_given(
    vae: Any,
    pixels: Mapping[str, F32],
    layout: Layout,
    shape: tuple[int, ...],
    task: OfficialTask | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """One sample's given layers as clean latents ``[F, C, h, w]`` float32, zeros elsewhere.

    pixels: layer -> float32 ``[T, H, W, 3]`` in [-1, 1]. shape: ``(F, C, h, w)``. Native models
    take the posterior's mean, official ones a sample of it, as released.
    """
    clean = torch.zeros(shape)
    if not pixels:
        return clean
    if vae is None:
        raise ValueError("this model has no autoencoder: layers cannot be given")
    if task is None:
        stack = np.stack(list(pixels.values()))
        mean, _ = autoencoder.encode(vae, _as_video(stack))
        for layer, latents in zip(pixels, mean, strict=True):
            clean[layout.slices[layer]] = latents.cpu()
        return clean
    parts = [pixels[layer] for layer in layout.layers if layer in pixels]
    if task.lead and FOREGROUND in pixels:
        parts.insert(0, parts[0][:1])
    clip = _as_video(np.concatenate(parts)[None])
    with autoencoder.one_chunk(vae, clip.shape[2]):
        mean, logvar = autoencoder.encode(vae, clip, whole=True)
    noise = randn_tensor(mean.shape, generator=generator, device=torch.device("cpu"))
    latents = mean.cpu() + (0.5 * logvar.cpu()).exp() * noise
    start, stop = layout.given_span or (0, 0)
    clean[start:stop] = latents[0, -(stop - start) :]  # one release gives the last half only
    return clean


def decode_sequence(
    vae: Any, latents: Tensor, layout: Layout, task: OfficialTask | None = None
) -> dict[str, F32]:
    """Latents ``[B, F, C, h, w]`` -> layer -> float32 ``[B, T, H, W, 3]`` in [-1, 1]."""
    if vae is None:
        raise ValueError('this model has no autoencoder; ask for output_type="latent"')
    if task is None:
        parts = {name: latents[:, place] for name, place in layout.slices.items()}
        return {name: _as_frames(autoencoder.decode(vae, z)) for name, z in parts.items()}
    with autoencoder.one_chunk(vae, latents.shape[1]):
        pixels = _as_frames(autoencoder.decode(vae, latents))
    pixels = pixels[:, task.lead :]
    each = pixels.shape[1] // len(layout.layers)
    return {name: pixels[:, i * each : (i + 1) * each] for i, name in enumerate(layout.layers)}


def draw_noise(
    shape: tuple[int, ...], given: Tensor, generator: Generators, *, generated_only: bool
) -> Tensor:
    """Standard normal ``[B, F, C, h, w]`` float32 on the CPU.

    given: bool ``[B, F]``. generated_only: draw numbers for the generated latents alone, as the
    official sampler does, and leave 0 at the given ones (which must be the same in all samples).
    """
    device = torch.device("cpu")
    own = generator[0] if isinstance(generator, list) and generator else generator
    if isinstance(own, torch.Generator):
        device = own.device
    if not generated_only or bool((given != given[:1]).any()):
        return randn_tensor(shape, generator=generator, device=device).cpu()
    kept = (~given[0]).nonzero().flatten().cpu()
    drawn = randn_tensor((shape[0], len(kept), *shape[2:]), generator=generator, device=device)
    return torch.zeros(shape).index_copy(1, kept, drawn.cpu())


def _as_video(frames: F32) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 4, 1, 2, 3)


def _as_frames(video: Tensor) -> F32:
    frames: F32 = video.permute(0, 2, 3, 4, 1).cpu().numpy()
    return frames
