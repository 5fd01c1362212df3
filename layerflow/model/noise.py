"""The noise process of a base: what is added to latents, what the network predicts, at which times.

One process is made from a scheduler (``Base.noise``) and serves training, validation and proof.
Times are what the network is fed: whole steps for v-prediction on a table, real numbers in
0..1000 for flow matching (1000 times the share of noise).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

DENSITIES = ("uniform", "logit-normal")
_EDGE = 1e-6  # the normal's quantiles at 0 and 1 are infinite


@dataclass(frozen=True)
class Density:
    """How training draws its times, as shares in [0, 1] of all of them from clean to noise.

    kind: ``uniform``; or ``logit-normal``, the logistic function of a normal with this mean and
    standard deviation (Esser et al. 2024, "Scaling rectified flow transformers", section 3.1).
    """

    kind: str = "uniform"
    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in DENSITIES:
            raise ValueError(f"density must be one of {DENSITIES}, not {self.kind!r}")

    def quantile(self, u: Tensor) -> Tensor:
        """Shares below which u in [0, 1] of the draws are. float64, any shape. Monotonic, so
        that stratified u give stratified draws."""
        if self.kind == "uniform":
            return u
        normal = torch.special.ndtri(u.clamp(_EDGE, 1 - _EDGE))
        return (self.mean + self.std * normal).sigmoid()

    def below(self, share: Tensor) -> Tensor:
        """The inverse: of which part of the draws a share in [0, 1] is the end."""
        if self.kind == "uniform":
            return share
        return torch.special.ndtr((share.logit() - self.mean) / self.std)


class NoiseProcess(Protocol):
    """Latents are ``[B, ...]`` float32 of any shape, ``t`` is ``[B]``: as ``timesteps`` gives it,
    or any numbers of its range (validation's timesteps are whole numbers in 0..999, int64)."""

    def timesteps(self, u: NDArray[np.float64], density: Density | None = None) -> NDArray[Any]:
        """Numbers in [0, 1), float64 ``[N]``, to times ``[N]``: int64 or float64. Monotonic, so
        that stratified numbers give stratified times. density: instead of the process' own; what
        else it has (a shift, a span) stays."""

    def add_noise(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network is shown at time t."""

    def target(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What it should predict; the loss is the plain mean squared error to it."""

    def clean_of(self, noisy: Tensor, predicted: Tensor, t: Tensor) -> Tensor:
        """The clean latents that a prediction says: ``clean_of(add_noise(x, e, t), target(x, e, t),
        t)`` is x, up to rounding."""
