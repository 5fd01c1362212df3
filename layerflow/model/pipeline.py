"""The pipeline of every base: prompts and any given layers in, all layers out.

::

    pipe = layerflow.LayerFlowPipeline.from_pretrained("models/tiny")
    out = pipe(prompt={"foreground": "a red ball"}, given={"blended": frames})
    out.foreground, out.alpha, out.background, out.blended
"""

from __future__ import annotations

import functools
import sys
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from layerflow.clip import LAYERS
from layerflow.lazy import lazy_names
from layerflow.model import autoencoder, frames, text
from layerflow.model.denoise import Denoiser
from layerflow.model.frames import LayerFlowPipelineOutput
from layerflow.model.layers import Layout
from layerflow.model.sequence import Generators, decode_sequence, draw_noise, encode_given

Given = Mapping[str, Any]

__getattr__ = lazy_names(
    __name__, {"LayerFlowPipeline": "layerflow.model.cogvideox.pipeline"}
)  # where it was, and is looked for


def _is_entry(value: Any) -> bool:
    """Whether this is a module and class of ``model_index.json``."""
    return isinstance(value, (list, tuple)) and len(value) == 2 and isinstance(value[1], str)


class LayeredPipeline(DiffusionPipeline):
    """All layers together, or some from the others. Conventions are those of diffusers' pipelines.

    A base's pipeline derives from this and from diffusers' LoRA loader, has an ``__init__`` of its
    own with the types of its components, and says:

    own_modules: classes of ours -> the module that model folders name for them; it has to be
    imported where the class is, and to have ``ModelMixin`` in it, where diffusers looks it up.
    autoencoders: as ``Base.autoencoders``. denoiser: the loop. factors: pixel frames and pixels of
    a latent where there is no autoencoder.
    """

    model_cpu_offload_seq = "text_encoder->transformer->vae"
    _optional_components: ClassVar = ["tokenizer", "text_encoder", "vae"]
    _callback_tensor_inputs: ClassVar = ["latents", "prompt_embeds", "negative_prompt_embeds"]

    own_modules: ClassVar[dict[str, str]] = {}
    autoencoders: ClassVar[Mapping[str, autoencoder.AutoencoderKind]] = {}
    denoiser: ClassVar[type[Denoiser]] = Denoiser
    factors: ClassVar[tuple[int, int]] = (4, 8)

    def register_modules(self, **parts: Any) -> None:
        """diffusers' ``register_modules``; shipped code knows its autoencoders from here."""
        autoencoder.KINDS.update(self.autoencoders)
        super().register_modules(**parts)

    def register_to_config(self, **entries: Any) -> None:
        """diffusers' ``register_to_config``; our classes go on record under ``own_modules``."""
        for part, entry in entries.items():
            own = self.own_modules.get(entry[1]) if _is_entry(entry) else None
            if own in sys.modules:
                entries[part] = (own, entry[1])
        super().register_to_config(**entries)

    @staticmethod
    @abstractmethod
    def encode_texts(
        tokenizer: Any, text_encoder: Any, texts: Sequence[str], num_tokens: int
    ) -> Tensor:
        """As ``Base.encode_texts``."""

    @classmethod
    def load_config(cls, *args: Any, **kwargs: Any) -> Any:
        """diffusers' ``load_config``; a folder that ships code opens with the package's own."""
        said = super().load_config(*args, **kwargs)
        config = said[0] if isinstance(said, tuple) else said
        for part, entry in config.items():
            own = cls.own_modules.get(entry[1]) if _is_entry(entry) else None
            if part != "_class_name" and own in sys.modules:
                config[part] = [own, entry[1]]
        return said

    @classmethod
    def _dict_from_json_file(cls, *args: Any, **kwargs: Any) -> Any:
        """So that diffusers takes this class, not the one that the folder ships."""
        said = super()._dict_from_json_file(*args, **kwargs)
        if _is_entry(said.get("_class_name")):
            said["_class_name"] = said["_class_name"][1]
        return said

    def encode_prompts(self, texts: Sequence[str]) -> Tensor:
        """``[N, L, D]`` float32 of prefixed texts (``text.prefixed``); zeros for an empty one."""
        tokens = int(self.transformer.config.num_text_tokens)
        return self.encode_texts(self.tokenizer, self.text_encoder, texts, tokens)

    def default_size(
        self, height: int | None = None, width: int | None = None, num_frames: int | None = None
    ) -> tuple[int, int, int]:
        """Height and width in pixels and frames of one layer, the model's own where None."""
        config, factor = self.transformer.config, self._spatial_factor
        return (
            height or config.sample_height * factor,
            width or config.sample_width * factor,
            num_frames or self._pixel_frames(config.latent_frames),
        )

    @property
    def _spatial_factor(self) -> int:
        return self.factors[1] if self.vae is None else autoencoder.spatial_factor(self.vae)

    def _pixel_frames(self, latent: int) -> int:
        if self.vae is None:
            return latent * self.factors[0]
        return autoencoder.pixel_frames(self.vae, latent)

    @property
    def guidance_scale(self) -> float:
        return self._guidance_scale

    @property
    def num_timesteps(self) -> int:
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        return self._interrupt

    @torch.no_grad()
    def __call__(
        self,
        prompt: text.Prompt | Sequence[text.Prompt] | None = None,
        negative_prompt: text.Prompt | Sequence[text.Prompt] | None = None,
        given: Given | Sequence[Given] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        num_inference_steps: int = 50,
        timesteps: list[int] | None = None,
        guidance_scale: float = 6.0,
        use_dynamic_cfg: bool = False,
        num_videos_per_prompt: int = 1,
        eta: float = 0.0,
        generator: Generators = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        attention_kwargs: dict[str, Any] | None = None,
        callback_on_step_end: Callable[..., dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        exact_given: bool = False,
        official_sampler: bool = False,
        foregrounds: int | None = None,
    ) -> LayerFlowPipelineOutput | tuple[Any, ...]:
        """Sample layers.

        prompt: layer -> text, or a list of them, one per sample; a plain string is the blended
            prompt. Missing prompts are zeros. negative_prompt: likewise; missing is zeros, as
            released.
        given: layer -> frames for all samples, or a list, one per prompt. Frames are uint8, float
            in [0, 1], PIL or torch, ``[T, H, W, C]``. An RGBA foreground gives its matte too; a
            foreground without alpha is taken to be on mid-grey.
        height, width: pixels; num_frames: of one layer. None: those of the given layers, else the
            model's own.
        guidance_scale: above 1 guides by the difference to the negative prompt;
            use_dynamic_cfg: varies it over the steps as released.
        generator: one, or one per sample (then a batch equals its samples run alone).
        latents: noise ``[B, F, C, h, w]`` to start from.
        prompt_embeds: ``[N, P, L, D]`` or ``[N, P*L, D]`` instead of prompt.
        output_type: ``pil``, ``np`` (float in [0, 1]), ``uint8``, ``pt`` or ``latent``.
        exact_given: return given layers pixel by pixel instead of through the autoencoder.
        official_sampler: the released sampler instead of the scheduler.
        foregrounds: how many of the model's foregrounds there are, the hindmost first; None: all.

        ValueError for a wrong layer, size, frame count, shape or range, saying what is allowed.
        """
        self._check_options(output_type, callback_on_step_end_tensor_inputs)
        self._guidance_scale, self._interrupt = guidance_scale, False
        device = self._execution_device
        count = self._count(prompt, prompt_embeds, given)
        layers = self._layers(foregrounds)
        pixels = self._read_given(given, count, layers)
        layout, shape = self._plan(pixels, height, width, num_frames, layers)
        denoiser = self.denoiser(
            pipe=self,
            layout=layout,
            prompt_embeds=self._embeds("prompt", prompt, prompt_embeds, count, layout),
            negative_prompt_embeds=self._embeds(
                "negative_prompt", negative_prompt, negative_prompt_embeds, count, layout
            ),
            clean=self._encode_given(pixels, layout, shape, generator),
            given_frames=torch.tensor([layout.given_frames(sample) for sample in pixels]),
            given_layers=torch.tensor([[n in sample for n in layout.layers] for sample in pixels]),
            guidance_scale=guidance_scale,
            dynamic=use_dynamic_cfg,
            attention_kwargs=attention_kwargs,
            callback=callback_on_step_end,
            callback_inputs=tuple(callback_on_step_end_tensor_inputs),
        )
        denoiser.spread(num_videos_per_prompt, device)
        noise = functools.partial(self._noise, denoiser, generator)
        latents = noise() if latents is None else self._check_latents(latents, denoiser)
        self._num_timesteps = num_inference_steps if timesteps is None else len(timesteps)
        if official_sampler:
            latents = denoiser.run_official(latents, num_inference_steps, noise)
        else:
            latents = denoiser.run(latents, num_inference_steps, timesteps, eta, generator)
        samples = [sample for sample in pixels for _ in range(num_videos_per_prompt)]
        output = self._output(latents, layout, output_type, samples if exact_given else None)
        self.maybe_free_model_hooks()
        return output if return_dict else output.to_tuple()

    def _check_options(self, output_type: str, callback_inputs: Sequence[str]) -> None:
        if output_type not in frames.OUTPUT_TYPES:
            raise ValueError(f"output_type must be one of {frames.OUTPUT_TYPES}: {output_type!r}")
        if unknown := set(callback_inputs) - set(self._callback_tensor_inputs):
            raise ValueError(
                f"callback_on_step_end_tensor_inputs {sorted(unknown)} are none of "
                f"{self._callback_tensor_inputs}"
            )

    def _count(self, prompt: Any, prompt_embeds: Tensor | None, given: Any) -> int:
        """Number of samples before ``num_videos_per_prompt``."""
        if prompt is not None and prompt_embeds is not None:
            raise ValueError("pass prompt or prompt_embeds, not both")
        counts = {
            name: len(value)
            for name, value in (("prompt", prompt), ("given", given))
            if isinstance(value, (list, tuple))
        }
        if prompt_embeds is not None:
            counts["prompt_embeds"] = len(prompt_embeds)
        if len(set(counts.values())) > 1 or 0 in counts.values():
            raise ValueError(f"lists must be equally long and not empty: {counts}")
        return next(iter(counts.values()), 1)

    def _layers(self, foregrounds: int | None) -> tuple[str, ...]:
        """The layers of a sample with so many foregrounds."""
        if foregrounds is None:
            return self.transformer.layout().layers
        return self.transformer.layer_set.with_foregrounds(foregrounds)

    def _read_given(
        self, given: Any, count: int, layers: tuple[str, ...]
    ) -> list[dict[str, frames.F32]]:
        """Per sample: given layer -> float32 in [0, 1]."""
        items = list(given) if isinstance(given, (list, tuple)) else [given] * count
        if any(item is not None and not isinstance(item, Mapping) for item in items):
            raise ValueError("given must be a dict of layer -> frames, or a list of such dicts")
        samples = [frames.read_given(item, layers) for item in items]
        task = self.transformer.official
        for sample in samples:
            if task is not None and tuple(sample) != task.given:
                raise ValueError(
                    f"{task.name} needs exactly these layers given: {task.given or 'none'}; "
                    f"got {tuple(sample) or 'none'}"
                )
        return samples

    def _plan(
        self,
        samples: list[dict[str, frames.F32]],
        height: int | None,
        width: int | None,
        num_frames: int | None,
        layers: tuple[str, ...],
    ) -> tuple[Layout, tuple[int, int, int, int]]:
        """The layout and the latent shape ``(F, C, h, w)`` of what was asked for."""
        config, task = self.transformer.config, self.transformer.official
        factor = self._spatial_factor
        sizes = {next(iter(sample.values())).shape[:3] for sample in samples if sample}
        if len(sizes) > 1:
            raise ValueError(f"given layers of different samples differ in size: {sorted(sizes)}")
        given = next(iter(sizes), (None, None, None))
        asked = (num_frames, height, width)
        for name, a, b in zip(("num_frames", "height", "width"), asked, given, strict=True):
            if a is not None and a < 1:
                raise ValueError(f"{name} must be 1 or more, not {a}")
            if a is not None and b is not None and a != b:
                raise ValueError(f"{name} is {a}, but the given layers have {b}")
        height, width, _ = self.default_size(height or given[1], width or given[2])
        step = factor * self.transformer.patch_side
        if height % step or width % step:
            raise ValueError(f"height and width must be multiples of {step}: {height}x{width}")
        size = (height // factor, width // factor)
        layout = self._layout(num_frames or given[0], layers)
        if task is not None and size != (config.sample_height, config.sample_width):
            raise ValueError(
                f"{task.name} works at {config.sample_height * factor}x"
                f"{config.sample_width * factor} pixels only, not {height}x{width}"
            )
        return layout, (layout.num_frames, config.in_channels, *size)

    def _layout(self, num_frames: int | None, layers: tuple[str, ...]) -> Layout:
        if self.transformer.official is not None:
            if num_frames not in (None, 16):
                raise ValueError(f"official models make 16 frames a layer, not {num_frames}")
            return self.transformer.layout()
        if num_frames is None:
            return self.transformer.layout(layers=layers)
        if self.vae is None:
            raise ValueError("without an autoencoder the number of frames is the model's own")
        autoencoder.check_frames(self.vae, num_frames)
        latent = autoencoder.latent_frames(self.vae, num_frames)
        return self.transformer.layout(len(layers) * latent, layers)

    def _embeds(
        self, name: str, prompt: Any, embeds: Tensor | None, count: int, layout: Layout
    ) -> Tensor:
        """``[N, P*L, D]`` from prompts or ready embeddings; zeros when there are neither."""
        network = self.transformer
        tokens, width = network.config.num_text_tokens, network.text_width
        slots = len(layout.prompts)
        if embeds is not None:
            if embeds.ndim == 4:
                embeds = embeds.flatten(1, 2)
            expected = (count, slots * tokens, width)
            if tuple(embeds.shape) != expected:
                raise ValueError(f"{name}_embeds must be {expected}, not {tuple(embeds.shape)}")
            return embeds.float()
        prompts = list(prompt) if isinstance(prompt, (list, tuple)) else [prompt] * count
        if len(prompts) != count:
            raise ValueError(f"{name}: {len(prompts)} for {count} samples")
        texts = [t for p in prompts for t in text.prompt_texts(p, layout.prompts)]
        if not any(texts):
            return torch.zeros(count, slots * tokens, width)
        return self.encode_prompts(texts).view(count, slots * tokens, width)

    def _encode_given(
        self,
        samples: list[dict[str, frames.F32]],
        layout: Layout,
        shape: tuple[int, int, int, int],
        generator: Generators,
    ) -> Tensor:
        own = generator if isinstance(generator, list) else [generator] * len(samples)
        task = self.transformer.official
        each = [
            encode_given(self.vae, frames.network_pixels(sample), layout, shape, task, source)
            for sample, source in zip(samples, own, strict=False)
        ]
        self.maybe_free_model_hooks()  # under CPU offload: it would stay beside the network
        return torch.stack(each)

    def _noise(self, denoiser: Denoiser, generator: Generators) -> Tensor:
        given = denoiser.given_frames
        official = self.transformer.official is not None
        noise = draw_noise(tuple(denoiser.clean.shape), given, generator, generated_only=official)
        return noise.to(given.device)

    def _check_latents(self, latents: Tensor, denoiser: Denoiser) -> Tensor:
        if latents.shape != denoiser.clean.shape:
            raise ValueError(
                f"latents must be {list(denoiser.clean.shape)}, not {list(latents.shape)}"
            )
        return latents.to(denoiser.clean.device, torch.float32)

    def _output(
        self,
        latents: Tensor,
        layout: Layout,
        output_type: str,
        exact: list[dict[str, frames.F32]] | None,
    ) -> LayerFlowPipelineOutput:
        if output_type == "latent":
            parts: dict[str, Any] = {n: latents[:, place] for n, place in layout.slices.items()}
        else:
            layers = decode_sequence(self.vae, latents, layout, self.transformer.official)
            done = frames.finish(layers, exact)
            parts = {name: frames.convert(value, output_type) for name, value in done.items()}
        output = LayerFlowPipelineOutput(**{name: parts.pop(name, None) for name in LAYERS})
        for name, value in parts.items():
            output[name] = value
        return output
