"""The place that model folders on record name; the code is in ``layerflow.model.cogvideox``."""

from layerflow.model.cogvideox.pipeline import LayerFlowPipeline

__all__ = ["LayerFlowPipeline"]
