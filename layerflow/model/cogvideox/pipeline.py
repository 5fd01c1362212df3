"""LayerFlowPipeline: the pipeline on CogVideoX."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from diffusers import (
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogVideoXTransformer3DModel,
    ModelMixin,
)
from diffusers.loaders import CogVideoXLoraLoaderMixin
from torch import Tensor
from transformers import PreTrainedTokenizerBase, T5EncoderModel

import layerflow.model.transformer  # noqa: F401  diffusers takes our classes from what is imported
from layerflow.model.cogvideox import parts
from layerflow.model.cogvideox.denoise import CogVideoXDenoiser
from layerflow.model.pipeline import LayeredPipeline


class LayerFlowPipeline(LayeredPipeline, CogVideoXLoraLoaderMixin):
    """``LayeredPipeline`` with CogVideoX' parts; conventions are CogVideoXPipeline's.

    vae: ``AutoencoderKLCogVideoX`` or ``BlockDCTAutoencoder``; transformer:
    ``LayerFlowTransformer3DModel``.
    """

    own_modules: ClassVar = {
        "LayerFlowTransformer3DModel": "layerflow.model.transformer",
        "BlockDCTAutoencoder": "layerflow.model.autoencoder",
    }
    autoencoders: ClassVar = parts.AUTOENCODERS
    denoiser: ClassVar = CogVideoXDenoiser

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None,
        text_encoder: T5EncoderModel | None,
        vae: ModelMixin | None,
        transformer: CogVideoXTransformer3DModel,
        scheduler: CogVideoXDDIMScheduler | CogVideoXDPMScheduler,
    ) -> None:
        super().__init__()
        self.register_modules(
            tokenizer=tokenizer,
            text_encoder=text_encoder,
            vae=vae,
            transformer=transformer,
            scheduler=scheduler,
        )

    @staticmethod
    def encode_texts(
        tokenizer: Any, text_encoder: Any, texts: Sequence[str], num_tokens: int
    ) -> Tensor:
        """As ``Base.encode_texts``."""
        return parts.encode_texts(tokenizer, text_encoder, texts, num_tokens)
