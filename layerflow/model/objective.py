"""The loss on generated layers, for any base and its noise process.

One timestep a sample for all its layers; given layers enter clean and are left out of the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from layerflow.model import adapters
from layerflow.model.layers import Layout
from layerflow.model.noise import NoiseProcess


def sequence_loss(
    transformer: nn.Module,
    process: NoiseProcess,
    latents: Tensor,
    text: Tensor,
    given_frames: Tensor,
    timesteps: Tensor,
    noise: Tensor,
    *,
    given: Tensor | None = None,
    motion_gate: Tensor | None = None,
    layout: Layout | None = None,
    known: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Loss of each sample over its generated latents, for any layout.

    latents: clean ``[B, F, C, h, w]``; noise: like latents. text: ``[B, P*L, D]``.
    given_frames: bool ``[B, F]``, latents that are given. given: bool ``[B, n]``, the same by
    layer, for the network's marks. timesteps: ``[B]``, times of the process. motion_gate: ``[B]``.
    layout: how layers lie on the F latent frames; None: the network's own. known: bool
    ``[B, F, h, w]``, latent cells that count, in all their channels; None: all of them.

    Returns it, float32 ``[B]``, and the prediction, ``[B, F, C, h, w]``.
    """
    mask = given_frames.to(latents.device)
    spread = mask[:, :, None, None, None]
    noisy = torch.where(spread, latents, process.add_noise(latents, noise, timesteps))
    dtype = adapters.unwrap(transformer).dtype
    predicted = transformer(
        noisy.to(dtype),
        text.to(dtype),
        timesteps,
        given=given,
        layout=layout,
        motion_gate=motion_gate,
        return_dict=False,
    )[0].float()
    target = process.target(latents, noise, timesteps)
    if known is not None:
        counts = known.to(mask.device) & ~mask[:, :, None, None]
        return _known_loss(predicted, target, counts), predicted
    per_frame = (predicted - target).square().flatten(2).mean(2)  # frames are equally large
    generated = (~mask).to(per_frame)
    return (per_frame * generated).sum(1) / generated.sum(1).clamp_min(1), predicted


def _known_loss(predicted: Tensor, target: Tensor, counts: Tensor) -> Tensor:
    """Mean squared error of ``[B, F, C, h, w]`` over the cells that count, bool ``[B, F, h, w]``.

    Float32 ``[B]``; 0 for a sample without any, of which then no gradient comes.
    """
    per_cell = (predicted - target).square().mean(2).masked_fill(~counts, 0.0)
    return per_cell.flatten(1).sum(1) / counts.flatten(1).sum(1).clamp_min(1)


@dataclass(frozen=True)
class Prediction:
    """What a pass made, for terms of the loss. Names and shapes are those of ``layer_loss``;
    predicted: float32, like clean; layers: never None."""

    process: NoiseProcess
    clean: Tensor
    noise: Tensor
    predicted: Tensor
    timesteps: Tensor
    given: Tensor
    layers: Sequence[str]
    known: Tensor | None

    def cleaned(self) -> Tensor:
        """The clean latents that the prediction says, ``[B, n, f, C, h, w]``; given layers are as
        they were."""
        noisy = self.process.add_noise(self.clean, self.noise, self.timesteps)
        said = self.process.clean_of(noisy, self.predicted, self.timesteps)
        return torch.where(self.given[:, :, None, None, None, None], self.clean, said)


def layer_loss(
    transformer: nn.Module,
    process: NoiseProcess,
    latents: Tensor,
    prompt_embeds: Tensor,
    given: Tensor,
    timesteps: Tensor,
    noise: Tensor,
    motion_gate: Tensor | None = None,
    layers: Sequence[str] | None = None,
    known: Tensor | None = None,
    terms: Callable[[Tensor, Prediction], Tensor] | None = None,
) -> Tensor:
    """Loss of each sample: the mean squared error of the prediction over its generated elements.

    latents: clean ``[B, n, f, C, h, w]``; noise: like latents.
    prompt_embeds: ``[B, p, L, D]``; a dropped prompt is zeros.
    given: bool ``[B, n]``; at least one layer of each sample must be generated (a sample without
    any has loss 0).
    timesteps: ``[B]``. motion_gate: ``[B]``, 1 for static samples; None: that of the
    enclosing ``adapters.motion_gate`` block. The gate that is passed here also holds for this
    pass' recomputation under checkpointing.
    layers: names of the n layers, in the order of the network's set; those in colour have the p
    prompts. None: all of its layers. What is absent is in no sequence, attention or loss.
    known: bool ``[B, n, f, h, w]``: the loss is the mean over the generated elements of these cells
    alone; a sample without any has loss 0 and counts as one in the mean over samples, so that
    nothing of it reaches the weights. None: all are known.
    terms: makes of that loss, ``[B]``, and the prediction what is minimised; None: it is.

    Returns float32 ``[B]``. Differentiable.
    """
    count = latents.shape[2]
    layout = None
    if layers is not None:
        layout = adapters.unwrap(transformer).layout(count * len(layers), tuple(layers))
    frames = given.repeat_interleave(count, dim=1)
    loss, predicted = sequence_loss(
        transformer,
        process,
        latents.flatten(1, 2),
        prompt_embeds.flatten(1, 2),
        frames,
        timesteps,
        noise.flatten(1, 2),
        given=given,
        motion_gate=motion_gate,
        layout=layout,
        known=None if known is None else known.flatten(1, 2),
    )
    if terms is None:
        return loss
    made = predicted.unflatten(1, latents.shape[1:3])
    names = layers or adapters.unwrap(transformer).layer_set.layers
    return terms(loss, Prediction(process, latents, noise, made, timesteps, given, names, known))
