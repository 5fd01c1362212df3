"""Frames in and out of the pipeline: given layers, straight colour, output types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from diffusers.utils import BaseOutput
from numpy.typing import NDArray
from PIL import Image

from layerflow.clip import LAYERS
from layerflow.model.layers import EVERY

F32 = NDArray[np.float32]
OUTPUT_TYPES = ("pil", "np", "uint8", "pt", "latent")
FLOOR = 0.1
"""Alpha below which straight colour cannot be told from the grey domain and is continued."""
MATTES = frozenset(EVERY.mattes.values())


@dataclass
class LayerFlowPipelineOutput(BaseOutput):
    """The layers of each sample, in the pipeline's output type.

    foreground: RGBA with straight colour. alpha: one channel. background, blended: RGB. Models of
    layers ``rgb`` have no alpha: then alpha is None and foreground is RGB as generated.
    Further layers are entries: ``output["foreground.2"]`` is RGBA, ``output["alpha.2"]`` its matte.
    For ``output_type="latent"`` each is scaled latents ``[B, f, C, h, w]``.
    """

    foreground: Any
    alpha: Any
    background: Any
    blended: Any

    @property
    def frames(self) -> Any:
        """The blended layer, under diffusers' name for a video."""
        return self.blended

    @property
    def layers(self) -> dict[str, Any]:
        """All layers that there are by name, in the order of the set."""
        return {name: self[name] for name in EVERY.layers if name in self}

    def sample(self, index: int) -> dict[str, Any]:
        """Layer -> frames of one sample; None for the alpha of a model without one."""
        every = dict.fromkeys(LAYERS) | self.layers
        return {name: None if frames is None else frames[index] for name, frames in every.items()}


def as_frames(value: Any, layer: str) -> F32:
    """uint8, float in [0, 1], PIL or torch frames -> float32 ``[T, H, W, C]`` in [0, 1].

    PIL: one image or a list. torch: channels first or last. ValueError saying what is allowed.
    """
    if isinstance(value, Image.Image):
        value = [value]
    if isinstance(value, (list, tuple)):
        if not value:
            raise ValueError(f"given {layer}: no frames")
        if len({np.shape(frame) for frame in value}) > 1:
            raise ValueError(f"given {layer}: the frames differ in size or mode")
        value = np.stack([np.asarray(frame) for frame in value])
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        if value.ndim == 4 and value.shape[-1] > 4 and value.shape[1] in (1, 3, 4):
            value = value.movedim(1, -1)
        value = (value.float() if value.is_floating_point() else value).numpy()
    frames = np.asarray(value)
    if frames.ndim == 3:
        frames = frames[..., None]
    if frames.ndim != 4 or frames.size == 0 or frames.shape[-1] not in (1, 3, 4):
        raise ValueError(
            f"given {layer}: expected [T, H, W] or [T, H, W, 1 to 4], not {list(frames.shape)}"
        )
    if frames.dtype == np.uint8:
        return (frames.astype(np.float32) / 255.0).astype(np.float32)
    if not np.issubdtype(frames.dtype, np.floating):
        raise ValueError(f"given {layer}: frames must be uint8 or float, not {frames.dtype}")
    if not np.isfinite(frames).all() or frames.min() < 0 or frames.max() > 1:
        raise ValueError(f"given {layer}: float frames must lie in [0, 1]")
    return frames.astype(np.float32)


def read_given(given: Mapping[str, Any] | None, layers: Sequence[str] = LAYERS) -> dict[str, F32]:
    """One sample's given layers, float32 in [0, 1]: colours ``[T, H, W, 3]``, mattes ``[T, H, W]``.

    layers: the sample's. A foreground with four channels gives its matte too; where layers have
    none it is put on mid-grey. ValueError for unknown layers, all layers, differing sizes, wrong
    channels or ranges.
    """
    out: dict[str, F32] = {}
    for layer, value in (given or {}).items():
        if layer not in layers:
            raise ValueError(f"cannot give {layer!r}; the layers are {tuple(layers)}")
        if value is None:
            continue
        frames = as_frames(value, layer)
        channels, matte = frames.shape[-1], EVERY.mattes.get(layer)
        if layer in MATTES:
            out[layer] = frames.mean(-1, dtype=np.float32) if channels < 4 else frames[..., 3]
        elif channels == 4 and matte is not None:
            if given and given.get(matte) is not None:
                raise ValueError(f"given {matte} twice: as a layer and inside the RGBA {layer}")
            colour, cover = frames[..., :3], frames[..., 3]
            if matte in layers:
                out[layer], out[matte] = colour, cover
            else:
                out[layer] = 0.5 + (colour - 0.5) * cover[..., None]
        elif channels == 3:
            out[layer] = frames
        else:
            raise ValueError(f"given {layer}: expected 3 channels (RGB), not {channels}")
    shapes = {layer: frames.shape[:3] for layer, frames in out.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"given layers differ in frames, height or width: {shapes}")
    if set(out) == set(layers):
        raise ValueError("all layers are given: there is nothing to generate")
    return {layer: out[layer] for layer in layers if layer in out}


def network_pixels(given: Mapping[str, F32]) -> dict[str, F32]:
    """Given layers as the network sees them: float32 ``[T, H, W, 3]`` in [-1, 1].

    A foreground is put on mid-grey by its matte; without one it is taken to be there already.
    """
    out = {}
    for layer, frames in given.items():
        if layer in MATTES:
            frames = np.repeat(frames[..., None], 3, axis=-1)
        pixels = frames * 2 - 1
        if (cover := given.get(EVERY.mattes.get(layer, ""))) is not None:
            pixels = pixels * cover[..., None]
        out[layer] = np.ascontiguousarray(pixels, np.float32)
    return out


def straight_colour(grey: F32, alpha: F32) -> F32:
    """Undo the mid-grey ground: ``grey / alpha`` in [-1, 1]; smooth where alpha is tiny.

    grey ``[T, H, W, 3]`` in [-1, 1] is colour times alpha, alpha ``[T, H, W]`` in [0, 1]. Returns
    straight colour in [-1, 1]. Below ``FLOOR`` it runs over into the neighbourhood's colour,
    weighted by alpha.
    """
    out = np.empty_like(grey, np.float32)
    for t, (colour, cover) in enumerate(zip(grey, alpha, strict=True)):
        straight = np.clip(colour / np.maximum(cover, FLOOR)[..., None], -1, 1)
        weight = np.where(cover >= FLOOR, cover, 0).astype(np.float32)
        trust = np.clip(cover / FLOOR, 0, 1)[..., None] ** 2
        out[t] = trust * straight + (1 - trust) * _continuation(straight, weight)
    return out


def _continuation(colour: F32, weight: F32) -> F32:
    """Weighted mean colour around every pixel, from ever wider neighbourhoods (push and pull).

    0 (mid-grey) when no pixel has weight.
    """
    height, width = weight.shape
    if min(height, width) <= 1:
        total = weight.sum()
        mean = (colour * weight[..., None]).sum((0, 1)) / max(float(total), 1e-6)
        return np.broadcast_to(mean, colour.shape).astype(np.float32)
    half = ((width + 1) // 2, (height + 1) // 2)
    ink = cv2.resize(colour * weight[..., None], half, interpolation=cv2.INTER_AREA)
    mass = cv2.resize(weight, half, interpolation=cv2.INTER_AREA)
    mean = ink / np.maximum(mass, 1e-6)[..., None]
    coarse = _continuation(mean.astype(np.float32), np.minimum(mass * 4, 1).astype(np.float32))
    wide = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
    share = np.minimum(weight, 1)[..., None]
    return (share * colour + (1 - share) * wide).astype(np.float32)


def finish(layers: Mapping[str, F32], exact: Sequence[Mapping[str, F32]] | None) -> dict[str, F32]:
    """Decoded layers ``[B, T, H, W, 3]`` in [-1, 1] -> float32 in [0, 1] as users want them.

    A matte becomes one channel (the mean of three), its foreground straight RGBA; without a matte a
    foreground stays as it is. exact: per sample the given layers, to be returned pixel by pixel.
    """
    out: dict[str, F32] = {
        name: np.clip((pixels + 1) / 2, 0, 1).astype(np.float32) for name, pixels in layers.items()
    }
    for name in MATTES & out.keys():
        out[name] = out[name].mean(-1)
    matted = {name: EVERY.mattes[name] for name in out if EVERY.mattes.get(name) in out}
    for i, given in enumerate(exact or ()):
        for name in given.keys() - matted.keys():
            out[name][i] = given[name]
    for name, matte in matted.items():
        pairs = zip(layers[name], out[matte], strict=True)
        colour = (np.stack([straight_colour(grey, cover) for grey, cover in pairs]) + 1) / 2
        for i, given in enumerate(exact or ()):
            if name in given:
                colour[i] = given[name]
        out[name] = np.concatenate([colour, out[matte][..., None]], -1).astype(np.float32)
    return out


def convert(frames: F32, output_type: str) -> Any:
    """float32 ``[B, T, H, W]`` or ``[B, T, H, W, C]`` in [0, 1] -> the pipeline's output type.

    ``np``: as it is. ``uint8``: rounded. ``pt``: float32 ``[B, T, C, H, W]``. ``pil``: a list of
    frames per sample.
    """
    if output_type == "np":
        return frames
    if output_type == "pt":
        tensor = torch.from_numpy(np.ascontiguousarray(frames))
        return tensor[:, :, None] if tensor.ndim == 4 else tensor.movedim(-1, 2)
    levels = np.rint(frames * 255).astype(np.uint8)
    if output_type == "uint8":
        return levels
    return [[Image.fromarray(frame) for frame in sample] for sample in levels]
