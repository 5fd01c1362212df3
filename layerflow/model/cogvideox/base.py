"""CogVideoX, as ``layerflow.model.base.Base`` asks for it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from layerflow.model.base import Base, BaseOfParts
from layerflow.model.cogvideox import costs, parts
from layerflow.model.cogvideox.noise import VPrediction


class CogVideoX(BaseOfParts):
    """See ``Base``."""

    name = "cogvideox"
    blocks = "transformer_blocks"
    text_width = "text_embed_dim"
    schedulers: tuple[str, ...] = ("CogVideoXDDIMScheduler", "CogVideoXDPMScheduler")

    @property
    def transformer(self) -> Any:
        place = import_module("layerflow.model.cogvideox.transformer")
        return place.LayerFlowTransformer3DModel

    @property
    def pipeline(self) -> Any:
        return import_module("layerflow.model.cogvideox.pipeline").LayerFlowPipeline

    def noise(self, scheduler: Any) -> VPrediction:
        return VPrediction(scheduler)

    def share_sequence(self, transformer: Any, context: Any) -> None:
        import_module("layerflow.model.cogvideox.context").share_sequence(transformer, context)

    def patch(self, config: Mapping[str, Any]) -> int:
        return int(config["patch_size"])


COGVIDEOX: Base = CogVideoX(parts, costs)
