"""The official sampler: stochastic DPM-Solver++(2M) on a rescaled subset of the schedule.

It differs from diffusers' ``CogVideoXDPMScheduler`` in three ways: the zero-terminal-SNR rescale
is applied to the n chosen steps instead of the whole table, the denoiser snaps each level to the
nearest table entry, and of two noises drawn in a step the second is used (official
``sampling.py``, ``discretizer.py``, ``denoiser.py``). It works on the generated latents alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from layerflow.model.denoise import dynamic_guidance

NUM_TRAIN_STEPS = 1000
BETAS = (0.00085, 0.012)
SHIFT = 3.0

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


@lru_cache(maxsize=1)
def shifted_alphas_cumprod() -> F64:
    """abar ``[1000]``, ascending in t, after the SNR shift and before the zero-SNR rescale."""
    start, end = BETAS
    betas = np.linspace(start**0.5, end**0.5, NUM_TRAIN_STEPS, dtype=np.float64) ** 2
    abar = np.cumprod(1 - betas)
    return abar / (SHIFT + (1 - SHIFT) * abar)


def zero_snr_signal(abar: F64) -> F32:
    """sqrt(abar), ascending in t, shifted and scaled so that its last entry is 0, its first kept.

    In float32 throughout, like the official code, whose rounding the golden tables carry.
    """
    signal = np.sqrt(abar.astype(np.float32))
    first, last = signal[0], signal[-1]
    rescaled: F32 = (signal - last) * (first / (first - last))
    return rescaled


@lru_cache(maxsize=1)
def signal_table() -> F32:
    """sqrt(abar) ``[1000]``, ascending in t: 0.9987 down to exactly 0."""
    return zero_snr_signal(shifted_alphas_cumprod())


@dataclass(frozen=True)
class SamplerSchedule:
    """The n-step schedule, noisiest step first.

    timesteps int64 ``[n]``; signal float32 ``[n + 1]``: sqrt(abar) of each step and a final 1;
    snapped int64 ``[n]``: the table entry that the denoiser uses for each step;
    multipliers float32 ``[n - 1, 5]``: of x, x0, new and old x0 in the mix, and of the noise.
    """

    timesteps: NDArray[np.int64]
    signal: F32
    snapped: NDArray[np.int64]
    multipliers: F32


@lru_cache(maxsize=16)
def official_schedule(num_steps: int) -> SamplerSchedule:
    """The sampler's tables for ``num_steps`` steps. ValueError below 2 or above 1000."""
    if not 2 <= num_steps <= NUM_TRAIN_STEPS:
        raise ValueError(f"the official sampler takes 2 to 1000 steps, not {num_steps}")
    spaced = np.linspace(NUM_TRAIN_STEPS - 1, 0, num_steps, endpoint=False)
    timesteps = spaced.astype(np.int64)
    ascending = zero_snr_signal(shifted_alphas_cumprod()[timesteps[::-1]])
    signal = np.append(ascending[::-1], np.float32(1.0))
    distance = np.abs(signal[:-1, None] - signal_table()[None])
    return SamplerSchedule(timesteps, signal, distance.argmin(1), _multipliers(signal))


def _multipliers(signal: F32) -> F32:
    """DPM-Solver++(2M) SDE coefficients for the steps before the last."""
    count = len(signal) - 2
    out = np.zeros((count, 5), np.float32)
    a = torch.from_numpy(signal)
    with np.errstate(all="ignore"):
        log_snr = (a / (1 - a**2).sqrt()).log()
    for i in range(count):
        h = log_snr[i + 1] - log_snr[i]
        keep = ((1 - a[i + 1] ** 2) / (1 - a[i] ** 2)).sqrt() * (-h).exp()
        mix = (-2 * h).expm1() * a[i + 1]
        new, old = torch.tensor(1.0), torch.tensor(0.0)
        if i:
            r = (log_snr[i] - log_snr[i - 1]) / h
            new, old = 1 + 1 / (2 * r), 1 / (2 * r)
        spread = (1 - a[i + 1] ** 2).sqrt() * (1 - (-2 * h).exp()).sqrt()
        out[i] = torch.stack([keep, mix, new, old, spread]).numpy()
    return out


Network = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(x of the generated latents, timestep) -> v without and v with the prompt."""


def denoise(v: Tensor, x: Tensor, index: int | Tensor) -> Tensor:
    """x0 = sqrt(abar) * x - sqrt(1 - abar) * v, with the table's level, or one a sample."""
    a = torch.from_numpy(signal_table()).to(x.device)[index].view(-1, 1, 1, 1, 1)
    return a * x - (1 - a**2).sqrt() * v


def sample_official(
    network: Network,
    noise: Tensor,
    num_steps: int,
    guidance_scale: float,
    draw: Callable[[], Tensor],
    on_step: Callable[[int, int, Tensor], Tensor],
    *,
    dynamic: bool = True,
) -> Tensor:
    """Sample the generated latents as the official code does.

    noise: float32 ``[B, F_generated, C, H, W]``. draw: gives the next noise of that shape; called
    once in step 0, twice in the others (the second is used), never in the last.
    on_step: called with (step, timestep, x after it), returns x.
    """
    schedule = official_schedule(num_steps)
    x, old = noise, noise
    for i, t in enumerate(schedule.timesteps.tolist()):
        scale = dynamic_guidance(guidance_scale, t, num_steps) if dynamic else guidance_scale
        without, with_prompt = network(x, torch.tensor(t, device=x.device))
        index = int(schedule.snapped[i])
        base = denoise(without.float(), x, index)
        x0 = base + scale * (denoise(with_prompt.float(), x, index) - base)
        if i == num_steps - 1:
            x = x0
        else:
            keep, mix, new, older, spread = schedule.multipliers[i].tolist()
            fresh = draw()
            if i:
                fresh = draw()
            target = x0 if i == 0 else new * x0 - older * old
            x = keep * x - mix * target + spread * fresh
        old = x0
        x = on_step(i, t, x)
    return x
