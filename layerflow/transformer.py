"""The place that model folders on record name; the code is in ``layerflow.model.transformer``."""

from layerflow.model.transformer import LayerFlowTransformer3DModel

__all__ = ["LayerFlowTransformer3DModel"]
