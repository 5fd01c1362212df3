"""The place that model folders on record name; the code is in ``layerflow.model.autoencoder``."""

from layerflow.model.autoencoder import BlockDCTAutoencoder

__all__ = ["BlockDCTAutoencoder"]
