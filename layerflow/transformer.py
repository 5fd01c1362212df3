"""The place that model folders on record name; the code is in ``layerflow.model.cogvideox``."""

from layerflow.model.cogvideox.transformer import LayerFlowTransformer3DModel

__all__ = ["LayerFlowTransformer3DModel"]
