"""Wan 2.1 and 2.2, as ``layerflow.model.base.Base`` asks for it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from layerflow.model.base import Base, BaseOfParts
from layerflow.model.wan import costs, parts
from layerflow.model.wan.noise import FlowMatching, flow_matching


class Wan(BaseOfParts):
    """See ``Base``."""

    name = "wan"
    blocks = "blocks"
    text_width = "text_dim"
    schedulers: tuple[str, ...] = ("UniPCMultistepScheduler", "FlowMatchEulerDiscreteScheduler")

    @property
    def transformer(self) -> Any:
        place = import_module("layerflow.model.wan.transformer")
        return place.LayerFlowWanTransformer3DModel

    @property
    def pipeline(self) -> Any:
        return import_module("layerflow.model.wan.pipeline").LayerFlowWanPipeline

    def noise(self, scheduler: Any) -> FlowMatching:
        return flow_matching(scheduler)

    def share_sequence(self, transformer: Any, context: Any) -> None:
        import_module("layerflow.model.wan.context").share_sequence(transformer, context)

    def patch(self, config: Mapping[str, Any]) -> int:
        return int(config["patch_size"][1])


WAN: Base = Wan(parts, costs)
