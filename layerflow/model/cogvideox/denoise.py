"""The denoising loop on CogVideoX: its DPM scheduler's way to step, and the official sampler."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from diffusers import CogVideoXDPMScheduler
from torch import Tensor

from layerflow.model.cogvideox.official_sampler import sample_official
from layerflow.model.denoise import Denoiser


@dataclass
class CogVideoXDenoiser(Denoiser):
    """``Denoiser`` that also steps ``CogVideoXDPMScheduler``, which needs its last x0 and t."""

    last_clean: Tensor | None = field(default=None, init=False)

    def step(self, index: int, predicted: Tensor, latents: Tensor) -> Tensor:
        """See ``Denoiser``."""
        scheduler, t = self.pipe.scheduler, self.steps[index]
        if not isinstance(scheduler, CogVideoXDPMScheduler):
            return super().step(index, predicted, latents)
        back = self.steps[index - 1] if index else None
        latents, self.last_clean = scheduler.step(
            predicted, self.last_clean, t, back, latents, **self.options
        )[:2]
        return latents

    def run_official(self, latents: Tensor, num_steps: int, draw: Callable[[], Tensor]) -> Tensor:
        """Sample with the released sampler."""
        with self.pipe.progress_bar(total=num_steps) as progress:

            def network(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
                without, v = self.predict(x, t)
                return (v if without is None else without), v

            def on_step(i: int, t: int, x: Tensor) -> Tensor:
                progress.update()
                return self._after_step(i, torch.tensor(t), x)

            scale = self.guidance_scale
            latents = sample_official(
                network, latents, num_steps, scale, draw, on_step, dynamic=self.dynamic
            )
        return self.hold_given(latents)
