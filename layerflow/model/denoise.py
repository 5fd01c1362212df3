"""The denoising loop of every base: guidance, given layers held clean, a scheduler of diffusers."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.pipelines.cogvideo.pipeline_cogvideox import retrieve_timesteps
from torch import Tensor

from layerflow.model.layers import Layout
from layerflow.model.sequence import Generators

Callback = Callable[..., dict[str, Any]]


def dynamic_guidance(scale: float, timestep: int, num_steps: int) -> float:
    """Guidance at a step: ``1 + scale * (1 - cos(pi * ((n - t) / n)^5)) / 2``.

    t is the 0..999 timestep and n the number of sampling steps (CogVideoX' formula as released, so
    the value jumps between 1 and 1 + scale). Released with scale 6.
    """
    progress = (num_steps - timestep) / num_steps
    return 1 + scale * (1 - math.cos(math.pi * progress**5.0)) / 2


@dataclass
class Denoiser:
    """One batch on its way from noise to latents.

    prompt_embeds, negative_prompt_embeds: ``[B, P*L, D]``. clean: ``[B, F, C, h, w]`` float32 with
    the given latents in place. given_frames: bool ``[B, F]``; given_layers: bool ``[B, n]``.
    The state stays float32; the network gets its own dtype.
    """

    pipe: Any
    layout: Layout
    prompt_embeds: Tensor
    negative_prompt_embeds: Tensor
    clean: Tensor
    given_frames: Tensor
    given_layers: Tensor
    guidance_scale: float
    dynamic: bool = False
    attention_kwargs: dict[str, Any] | None = None
    callback: Callback | None = None
    callback_inputs: tuple[str, ...] = field(default=("latents",))
    steps: Tensor = field(init=False)
    options: dict[str, Any] = field(init=False)

    def spread(self, num_videos: int, device: torch.device) -> None:
        """Repeat every sample and move all to the device."""
        for name in (
            "prompt_embeds",
            "negative_prompt_embeds",
            "clean",
            "given_frames",
            "given_layers",
        ):
            value = getattr(self, name).to(device).repeat_interleave(num_videos, 0)
            setattr(self, name, value)

    def hold_given(self, latents: Tensor) -> Tensor:
        """The latents with the given ones put back."""
        mask = self.given_frames[:, :, None, None, None]
        return torch.where(mask, self.clean, latents)

    def predict(self, latents: Tensor, timestep: Tensor) -> tuple[Tensor | None, Tensor]:
        """What is predicted without and with the prompt, float32; first None without guidance."""
        guided = self.guidance_scale > 1
        halves = 2 if guided else 1
        text = self.prompt_embeds
        if guided:
            text = torch.cat([self.negative_prompt_embeds, text])  # unconditional half first
        network = self.pipe.transformer
        latents = self.hold_given(latents).to(network.dtype)
        with network.cache_context("cond_uncond"):
            v = network(
                torch.cat([latents] * halves),
                text.to(network.dtype),
                timestep.expand(len(text)),
                given=torch.cat([self.given_layers] * halves),
                layout=self.layout,
                attention_kwargs=self.attention_kwargs,
                return_dict=False,
            )[0].float()
        if not guided:
            return None, v
        without, with_prompt = v.chunk(2)
        return without, with_prompt

    def run(
        self,
        latents: Tensor,
        num_steps: int,
        timesteps: list[int] | None,
        eta: float,
        generator: Generators,
    ) -> Tensor:
        """Sample with the pipeline's diffusers scheduler; latents ``[B, F, C, h, w]`` of noise."""
        scheduler = self.pipe.scheduler
        steps, num_steps = retrieve_timesteps(scheduler, num_steps, latents.device, timesteps)
        self.prepare(steps, {"generator": generator, "eta": eta})
        latents = latents * getattr(scheduler, "init_noise_sigma", 1.0)
        with self.pipe.progress_bar(total=num_steps) as progress:
            for i, t in enumerate(steps):
                if self.pipe.interrupt:
                    continue
                without, v = self.predict(self.network_input(latents, t), t)
                if without is not None:
                    v = without + self._scale(int(t), num_steps) * (v - without)
                latents = self.step(i, v, latents)
                latents = self._after_step(i, t, self.hold_given(latents.float()))
                progress.update()
        return latents

    def prepare(self, steps: Tensor, options: dict[str, Any]) -> None:
        """Before the first step: the timesteps, and options for schedulers that take them."""
        taken = inspect.signature(self.pipe.scheduler.step).parameters
        self.steps = steps
        self.options = {name: value for name, value in options.items() if name in taken}

    def network_input(self, latents: Tensor, timestep: Tensor) -> Tensor:
        """What the scheduler makes of latents before the network sees them."""
        scale = getattr(self.pipe.scheduler, "scale_model_input", None)
        return latents if scale is None else scale(latents, timestep)

    def step(self, index: int, predicted: Tensor, latents: Tensor) -> Tensor:
        """The latents after a step, by the scheduler."""
        t, scheduler = self.steps[index], self.pipe.scheduler
        after: Tensor = scheduler.step(predicted, t, latents, **self.options, return_dict=False)[0]
        return after

    def run_official(self, latents: Tensor, num_steps: int, draw: Callable[[], Tensor]) -> Tensor:
        """Sample with the released sampler. ValueError for a base without one."""
        raise ValueError("there is no official sampler for this base model: leave it out")

    def _scale(self, timestep: int, num_steps: int) -> float:
        if not self.dynamic:
            return self.guidance_scale
        return dynamic_guidance(self.guidance_scale, timestep, num_steps)

    def _after_step(self, index: int, timestep: Tensor, latents: Tensor) -> Tensor:
        if self.callback is None:
            return latents
        named = {
            "latents": latents,
            "prompt_embeds": self.prompt_embeds,
            "negative_prompt_embeds": self.negative_prompt_embeds,
        }
        inputs = {name: named[name] for name in self.callback_inputs}
        changed = self.callback(self.pipe, index, timestep, inputs) or {}
        self.prompt_embeds = changed.get("prompt_embeds", self.prompt_embeds)
        self.negative_prompt_embeds = changed.get(
            "negative_prompt_embeds", self.negative_prompt_embeds
        )
        result: Tensor = changed.get("latents", latents)
        return result
