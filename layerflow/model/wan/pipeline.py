"""LayerFlowWanPipeline: the pipeline on Wan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    ModelMixin,
    UniPCMultistepScheduler,
    WanTransformer3DModel,
)
from diffusers.loaders import WanLoraLoaderMixin
from torch import Tensor
from transformers import PreTrainedTokenizerBase, UMT5EncoderModel

import layerflow.model.wan.transformer  # noqa: F401  diffusers takes our classes from what is imported
from layerflow.model.pipeline import LayeredPipeline
from layerflow.model.wan import parts


class LayerFlowWanPipeline(LayeredPipeline, WanLoraLoaderMixin):
    """``LayeredPipeline`` with Wan's parts; conventions are WanPipeline's.

    vae: ``AutoencoderKLWan`` or ``BlockDCTAutoencoder``; transformer:
    ``LayerFlowWanTransformer3DModel``.
    """

    own_modules: ClassVar = {
        "LayerFlowWanTransformer3DModel": "layerflow.model.wan.transformer",
        "BlockDCTAutoencoder": "layerflow.model.autoencoder",
    }
    autoencoders: ClassVar = parts.AUTOENCODERS
    _lora_loadable_modules: ClassVar = ["transformer"]

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None,
        text_encoder: UMT5EncoderModel | None,
        vae: ModelMixin | None,
        transformer: WanTransformer3DModel,
        scheduler: UniPCMultistepScheduler | FlowMatchEulerDiscreteScheduler,
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
