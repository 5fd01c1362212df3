"""The noise process of a base: what is added to latents, what the network predicts, at which times.

One process is made from a scheduler (``Base.noise``) and serves training, validation and proof.
Times are what the network is fed: whole steps for v-prediction on a table, real numbers in
0..1000 for flow matching (1000 times the share of noise).
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


class NoiseProcess(Protocol):
    """Latents are ``[B, ...]`` float32 of any shape, ``t`` is ``[B]``: as ``timesteps`` gives it,
    or any numbers of its range (validation's timesteps are whole numbers in 0..999, int64)."""

    def timesteps(self, u: NDArray[np.float64]) -> NDArray[Any]:
        """Numbers in [0, 1), float64 ``[N]``, to times ``[N]``: int64 or float64. Monotonic, so
        that stratified numbers give stratified times; densities other than the uniform one
        (logit-normal, shifted) come from here."""

    def add_noise(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network is shown at time t."""

    def target(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What it should predict; the loss is the plain mean squared error to it."""

    def clean_of(self, noisy: Tensor, predicted: Tensor, t: Tensor) -> Tensor:
        """The clean latents that a prediction says: ``clean_of(add_noise(x, e, t), target(x, e, t),
        t)`` is x, up to rounding."""
