"""The denoising loop: guidance, given layers held clean, scheduler or official sampler."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import CogVideoXDPMScheduler
from diffusers.pipelines.cogvideo.pipeline_cogvideox import retrieve_timesteps
from torch import Tensor

from layerflow.model.layers import Layout
from layerflow.model.official_sampler import dynamic_guidance, sample_official
from layerflow.model.sequence import Generators

Callback = Callable[..., dict[str, Any]]


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
        """v without and with the prompt, float32. Without guidance the first is None."""
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
        options: dict[str, Any] = {"generator": generator}
        if "eta" in inspect.signature(scheduler.step).parameters:
            options["eta"] = eta
        latents = latents * scheduler.init_noise_sigma
        old: Tensor | None = None
        with self.pipe.progress_bar(total=num_steps) as progress:
            for i, t in enumerate(steps):
                if self.pipe.interrupt:
                    continue
                without, v = self.predict(scheduler.scale_model_input(latents, t), t)
                if without is not None:
                    v = without + self._scale(int(t), num_steps) * (v - without)
                if isinstance(scheduler, CogVideoXDPMScheduler):
                    back = steps[i - 1] if i else None
                    latents, old = scheduler.step(v, old, t, back, latents, **options)[:2]
                else:
                    latents = scheduler.step(v, t, latents, **options, return_dict=False)[0]
                latents = self._after_step(i, t, self.hold_given(latents.float()))
                progress.update()
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
