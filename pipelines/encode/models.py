"""The networks of ``encode``: autoencoder and text encoder, in a worker or in an actor."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from layerflow.documents import read_json
from layerflow.media.layer_stack import LayerStack
from pipelines.engine.cluster import torch_device

if TYPE_CHECKING:
    from pipelines.encode.clip_latents import Options

ENCODE = "encode"  # the step


class Models:
    """A model's autoencoder and text encoder, each loaded when it is first needed, and of the two
    only the one that was needed last."""

    def __init__(self, options: Options) -> None:
        self.options = options

    @cached_property
    def vae(self) -> Any:
        """The autoencoder, on a GPU if there is one."""
        from layerflow.model.autoencoder import enable_tiling, load_autoencoder
        from layerflow.model.presets import torch_dtype

        self.__dict__.pop("text", None)
        kind = torch_dtype(self.options.precision)
        vae = load_autoencoder(Path(self.options.model) / "vae", kind)
        if self.options.tiling:
            enable_tiling(vae)
        return vae.to(torch_device())

    @cached_property
    def text(self) -> tuple[Any, Any]:
        """Tokenizer and text encoder, on a GPU if there is one. T5 overflows in float16, so that
        it then computes in bfloat16."""
        import torch

        self.__dict__.pop("vae", None)
        tokenizer, encoder = self.base.load_text(Path(self.options.model))
        narrow = self.options.precision != "float32"
        return tokenizer, encoder.to(torch_device(), torch.bfloat16 if narrow else torch.float32)

    @cached_property
    def base(self) -> Any:
        """What the model is built on."""
        from layerflow.model.base import base_of

        return base_of(self.options.model)

    @cached_property
    def cell(self) -> tuple[int, int]:
        """Pixel frames and pixels of a latent."""
        from layerflow.model.autoencoder import spatial_factor, temporal_factor

        return temporal_factor(self.vae), spatial_factor(self.vae)

    def embeddings(self, texts: list[str]) -> np.ndarray:
        """Of prefixed texts, ``[N, tokens, width]``."""
        tokens, _ = text_shape(self.options.model)
        found: np.ndarray = self.base.encode_texts(*self.text, texts, tokens).cpu().numpy()
        return found

    def moments(self, pictures: Sequence[LayerStack]) -> np.ndarray:
        """``encode_clips`` of clips of one size and length."""
        from layerflow.model.autoencoder import encode_clips

        return encode_clips(self.vae, pictures)


@lru_cache(maxsize=1)
def models_of(options: Options) -> Models:
    """The models of a process, of one job at a time."""
    return Models(options)


def text_shape(model: str) -> tuple[int, int]:
    """Tokens of one prompt, and width of one token, as the model's transformer wants them."""
    from layerflow.model.base import base_of

    base = base_of(model)
    return base.text_shape(read_json(Path(model) / "transformer" / "config.json"))
