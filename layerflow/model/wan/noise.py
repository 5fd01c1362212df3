"""Wan's noise process: flow matching.

``x_s = (1 - s) x0 + s e`` with target ``e - x0``, s in (0, 1); the network is told ``1000 s``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from layerflow.model.noise import Density

SETTING = "_layerflow_noise"
"""Key of a scheduler's settings that says how a training draws: ``density`` and ``span``. diffusers
keeps keys that start so, and passes them over."""


class FlowMatching:
    """``NoiseProcess`` of a flow matching scheduler; times are float64.

    steps: what s = 1 is told as. shift: moves draws towards noise, ``s' = shift s / (1 + (shift -
    1) s)`` (1: not at all). density: how s is drawn before that: ``uniform``, or ``logit-normal``,
    the logistic function of a standard normal. span: lowest and highest s' that are drawn, of the
    same density between them: an expert's part; (0, 1) for all.
    """

    def __init__(
        self,
        steps: int = 1000,
        shift: float = 1.0,
        density: str = "uniform",
        span: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        if not shift > 0:
            raise ValueError(f"shift must be positive, not {shift}")
        if not 0 <= span[0] < span[1] <= 1:
            raise ValueError(f"span must be two rising shares in [0, 1], not {span}")
        self.steps, self.shift, self.span = steps, shift, span
        self.density = Density(density)

    def timesteps(
        self, u: NDArray[np.float64], density: Density | None = None
    ) -> NDArray[np.float64]:
        """Quantiles in [0, 1) of the distribution to its times: equal steps of u are equal shares
        of the draws, whatever the density."""
        density = density or self.density
        low, high = (self._below(edge, density) for edge in self.span)
        s = density.quantile(torch.from_numpy(low + np.asarray(u, np.float64) * (high - low)))
        times: NDArray[np.float64] = self.steps * _shifted(s, self.shift).numpy()
        return times

    def add_noise(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """``(1 - s) clean + s noise``."""
        s = self.levels(t, clean)
        return (1 - s) * clean + s * noise

    def target(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """``noise - clean``."""
        return noise - clean

    def clean_of(self, noisy: Tensor, predicted: Tensor, t: Tensor) -> Tensor:
        """``noisy - s * predicted``."""
        return noisy - self.levels(t, noisy) * predicted

    def levels(self, t: Tensor, like: Tensor) -> Tensor:
        """s of times ``[B]``, float32, shaped to multiply ``like``."""
        s = t.to(like.device, torch.float32) / self.steps
        return s.view(-1, *(1 for _ in like.shape[1:]))

    def _below(self, level: float, density: Density) -> float:
        """The share of draws below a level s' in [0, 1]."""
        s = _shifted(torch.tensor(level, dtype=torch.float64), 1 / self.shift).clamp(0, 1)
        return float(density.below(s))


def flow_matching(scheduler: Any) -> FlowMatching:
    """The process that a scheduler's settings say: shift (``flow_shift`` or ``shift``) and
    ``SETTING``. ValueError for a scheduler of another process."""
    config = scheduler.config
    shift = config.get("flow_shift") if config.get("use_flow_sigmas") else config.get("shift")
    if shift is None:
        raise ValueError(f"{type(scheduler).__name__} is set up for no flow matching")
    said = config.get(SETTING) or {}
    low, high = said.get("span", (0.0, 1.0))
    density = said.get("density", "uniform")
    return FlowMatching(config.num_train_timesteps, float(shift), density, (low, high))


def _shifted(s: Tensor, shift: float) -> Tensor:
    return shift * s / (1 + (shift - 1) * s)
