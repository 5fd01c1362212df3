"""What a stage's loss has beside the plain error: a weight by time, and terms of the layers.

    loss of a sample = w(t) * mean squared error
                     + alpha_gradient * G + recomposition * signal(t)^2 * R

All three are functions of what the network predicts as clean latents, x' = `clean_of(noisy,
predicted, t)`; given layers are known, so there x' is x.

w: of Min-SNR (Hang et al. 2023, "Efficient diffusion training via Min-SNR weighting strategy"): the
error of x' counts min(SNR, gamma). Since x' - x = c(t) (predicted - target), the plain error counts
``min(SNR, gamma) c^2``: for v-prediction ``min(SNR, gamma) / (SNR + 1)``, for flow matching
``min(SNR, gamma) s^2``. At a time without any signal it is 0.

G: of the generated mattes, the mean squared difference between neighbours, in both directions, of
the error x' - x. Neighbours are cells of the latents, not pixels.

R: the mean over pixels of ``(r(x') - r(x))^2``, where ``r = blended - (foreground + (1 - alpha)
background)``, foregrounds on grey and from back to front. A product of layers has no meaning in
latents, so they are decoded: only the stand-in autoencoder, whose decoding is linear and costs
nothing, is taken. Where noise hides the layers, x' is a mean over what they might be, of which the
equation need not hold; hence signal(t)^2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from layerflow.clip import BACKGROUND, BLENDED
from layerflow.layer_set import LayerSet, model_layers
from layerflow.model.autoencoder import BlockDCTAutoencoder, load_autoencoder
from layerflow.model.noise import Density, NoiseProcess
from layerflow.model.objective import Prediction
from manifests.train import TrainManifest
from manifests.train_stage import Stage


@dataclass(frozen=True)
class Terms:
    """layers: the model's. min_snr: gamma, or None for weight 1. codec: for `recomposition`."""

    layers: LayerSet
    min_snr: float | None = None
    alpha_gradient: float = 0.0
    recomposition: float = 0.0
    codec: nn.Module | None = None

    def __call__(self, loss: Tensor, made: Prediction) -> Tensor:
        """The plain loss of each sample, ``[B]``, to what the stage minimises."""
        signal, gain, ratio = levels(made.process, made.timesteps, loss)
        if self.min_snr is not None:
            loss = loss * ratio.clamp(max=self.min_snr) * gain.square()
        if self.alpha_gradient:
            loss = loss + self.alpha_gradient * alpha_gradient(made, self.layers)
        if self.recomposition:
            loss = loss + self.recomposition * signal.square() * self.recomposed(made)
        return loss

    def recomposed(self, made: Prediction) -> Tensor:
        """R of each sample, ``[B]``."""
        assert self.codec is not None
        wrong = self._residual(made.cleaned(), made.layers) - self._residual(
            made.clean, made.layers
        )
        return wrong.square().flatten(1).mean(1)

    def _residual(self, latents: Tensor, layers: Sequence[str]) -> Tensor:
        """``[B, n, f, C, h, w]`` to blended minus the layers composed, ``[B, 3, f, H, W]``."""
        codec = self.codec
        assert isinstance(codec, BlockDCTAutoencoder)
        z = latents.flatten(0, 1).transpose(1, 2) / codec.config.scaling_factor
        pixels = codec.decode(z).sample.unflatten(0, latents.shape[:2])
        found = dict(zip(layers, pixels.unbind(1), strict=True))
        scene = found[BACKGROUND]
        for name in self.layers.over:
            if name in found:
                scene = found[name] + (1 - (found[self.layers.mattes[name]] + 1) / 2) * scene
        return found[BLENDED] - scene


def levels(process: NoiseProcess, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of each time, ``[B]`` float32 on the device of `like`: the share of signal, what an error of
    the prediction is in the clean latents, and the signal-to-noise ratio."""
    one, zero = torch.ones_like(like, dtype=torch.float32), torch.zeros_like(like)
    signal = process.add_noise(one, zero, timesteps)
    noise = process.add_noise(zero, one, timesteps)
    gain = process.clean_of(zero, one, timesteps)
    return signal, gain, (signal / noise).square()


def alpha_gradient(made: Prediction, layers: LayerSet) -> Tensor:
    """G of each sample, ``[B]``; 0 where no matte is generated."""
    mattes = layers.mattes.values()
    chosen = [index for index, name in enumerate(made.layers) if name in mattes]
    wrong = (made.cleaned() - made.clean)[:, chosen]
    counts = (~made.given[:, chosen])[:, :, None, None, None].expand(
        *wrong.shape[:3], *wrong.shape[4:]
    )
    if made.known is not None:
        counts = counts & made.known[:, chosen]
    parts = []
    for axis in (-2, -1):
        length = wrong.shape[axis] - 1
        both = counts.narrow(axis, 0, length) & counts.narrow(axis, 1, length)
        step = wrong.diff(dim=axis).square().mean(3).masked_fill(~both, 0.0)
        parts.append(step.flatten(1).sum(1) / both.flatten(1).sum(1).clamp_min(1))
    return parts[0] + parts[1]


def stage_terms(manifest: TrainManifest, stage: Stage, device: torch.device) -> Terms | None:
    """What a stage's manifest asks for; None for the plain loss. ValueError for terms that the
    model's layers or its autoencoder do not have."""
    said, times, layers = stage.loss, stage.timesteps, model_layers(manifest.model)
    min_snr = times.min_snr if times else None
    if said is None:
        return Terms(layers, min_snr) if min_snr is not None else None
    where = f"stage {stage.name!r}: loss"
    if not layers.mattes:
        raise ValueError(f"{where}: its terms need a matte, which {manifest.model} has none of")
    codec = None
    if said.recomposition:
        codec = load_autoencoder(Path(manifest.model) / "vae")
        if not isinstance(codec, BlockDCTAutoencoder):
            raise ValueError(
                f"{where}: recomposition needs an autoencoder whose decoding is linear "
                f"(BlockDCTAutoencoder), not {type(codec).__name__}: layers do not compose in its "
                "latents, and decoding in each step would cost more than the step"
            )
        codec = codec.requires_grad_(False).to(device)
    return Terms(layers, min_snr, said.alpha_gradient, said.recomposition, codec)


Draw = Callable[[NDArray[np.float64]], Any]


class Times(TypedDict):
    """Numbers in [0, 1) to a stage's times, as `trainer.order.Order` takes them."""

    timesteps: Draw
    of_tasks: Mapping[str, Draw]


def drawn_times(process: NoiseProcess, stage: Stage) -> Times:
    """How a stage draws its times."""
    said = stage.timesteps
    if said is None or said.density is None:
        return {"timesteps": process.timesteps, "of_tasks": {}}
    own = partial(process.timesteps, density=Density(said.density, said.mean, said.std))
    if said.tasks is None:
        return {"timesteps": own, "of_tasks": {}}
    return {"timesteps": process.timesteps, "of_tasks": dict.fromkeys(said.tasks, own)}
