"""CogVideoX' noise process: v-prediction on a table of 1000 steps.

Unit weight on the v error is what the official code does (``loss.py``, ``denoiser_scaling.py``: the
x0 error weighted by 1/(1-abar) is the plain v error).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from layerflow.model.noise import Density


class VPrediction:
    """``NoiseProcess`` of a scheduler of diffusers with ``alphas_cumprod``; times are int64."""

    def __init__(self, scheduler: Any) -> None:
        self.table: Tensor = scheduler.alphas_cumprod
        self.num_timesteps = int(scheduler.config.num_train_timesteps)

    def timesteps(
        self, u: NDArray[np.float64], density: Density | None = None
    ) -> NDArray[np.int64]:
        """Equal parts of [0, 1), one a step."""
        if density is not None:
            u = density.quantile(torch.from_numpy(np.asarray(u, np.float64))).numpy()
        return np.minimum((u * self.num_timesteps).astype(np.int64), self.num_timesteps - 1)

    def add_noise(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """``sqrt(abar_t) * clean + sqrt(1 - abar_t) * noise``."""
        signal, spread = self.levels(t, clean)
        return signal * clean + spread * noise

    def target(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """``v = sqrt(abar_t) * noise - sqrt(1 - abar_t) * clean``."""
        signal, spread = self.levels(t, clean)
        return signal * noise - spread * clean

    def clean_of(self, noisy: Tensor, predicted: Tensor, t: Tensor) -> Tensor:
        """``sqrt(abar_t) * noisy - sqrt(1 - abar_t) * v``."""
        signal, spread = self.levels(t, noisy)
        return signal * noisy - spread * predicted

    def levels(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """``sqrt(abar_t)`` and ``sqrt(1 - abar_t)``, float32, shaped to multiply ``like``."""
        table = self.table.to(device=like.device, dtype=torch.float32)
        abar = table[t.to(like.device)].view(-1, *(1 for _ in like.shape[1:]))
        return abar.sqrt(), (1.0 - abar).sqrt()
