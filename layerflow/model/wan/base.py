"""Wan 2.1 and 2.2, as ``layerflow.model.base.Base`` asks for it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor

from layerflow.model.autoencoder import AutoencoderKind
from layerflow.model.base import ActivationBytes, Base, Costs, scheduler_of
from layerflow.model.wan import costs, parts
from layerflow.model.wan.noise import FlowMatching, flow_matching


class Wan:
    """See ``Base``."""

    name = "wan"
    blocks = "blocks"
    after_blocks: tuple[str, ...] = costs.AFTER_BLOCKS
    lora_targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    schedulers: tuple[str, ...] = ("UniPCMultistepScheduler", "FlowMatchEulerDiscreteScheduler")
    autoencoders: Mapping[str, AutoencoderKind] = parts.AUTOENCODERS

    @property
    def transformer(self) -> Any:
        place = import_module("layerflow.model.wan.transformer")
        return place.LayerFlowWanTransformer3DModel

    @property
    def pipeline(self) -> Any:
        return import_module("layerflow.model.wan.pipeline").LayerFlowWanPipeline

    def load_scheduler(self, folder: Path) -> Any:
        return scheduler_of(folder, self.schedulers)

    def noise(self, scheduler: Any) -> FlowMatching:
        return flow_matching(scheduler)

    def load_text(self, folder: Path) -> tuple[Any, Any]:
        return parts.load_text(folder)

    def encode_texts(
        self, tokenizer: Any, text_encoder: Any, texts: Sequence[str], num_tokens: int
    ) -> Tensor:
        return parts.encode_texts(tokenizer, text_encoder, texts, num_tokens)

    def text_shape(self, config: Mapping[str, Any]) -> tuple[int, int]:
        for name in ("num_text_tokens", "text_dim"):
            if type(config.get(name)) is not int:
                raise ValueError(f"the transformer's settings: {name!r} is missing or no int")
        return config["num_text_tokens"], config["text_dim"]

    def width(self, config: Mapping[str, Any]) -> int:
        return costs.channels(config)

    def patch(self, config: Mapping[str, Any]) -> int:
        return int(config["patch_size"][1])

    def forward_flops(self, config: Mapping[str, Any], video: int, text: int) -> float:
        return costs.forward_flops(config, video, text)

    def activation_bytes(self, config: Mapping[str, Any]) -> ActivationBytes:
        return costs.activation_bytes(config)

    def step_costs(
        self,
        transformer: Any,
        shape: tuple[int, ...],
        trained: Collection[str],
        checkpointing: str = "none",
        prompts: int | None = None,
    ) -> Costs:
        return costs.step_costs(transformer, shape, trained, checkpointing, prompts)


WAN: Base = Wan()
