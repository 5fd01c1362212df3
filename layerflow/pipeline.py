"""The place that model folders on record name; the code is in ``layerflow.model.pipeline``."""

from layerflow.model.pipeline import LayerFlowPipeline

__all__ = ["LayerFlowPipeline"]
