"""LayerFlow: generate, decompose and complete video as layers (arXiv 2506.04228).

    import layerflow

    layerflow.mine("videos/", "mined", size="480x720")
    clip = layerflow.open_corpus("mined").clip(0)

Names are loaded when they are first used; importing this package loads neither torch nor ray.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from layerflow import compat
from layerflow.lazy import lazy_names

compat.install()

__version__ = "0.1.0"

if TYPE_CHECKING:
    from layerflow.clip import LayeredClip
    from layerflow.corpus.latents import Latents
    from layerflow.corpus.published import open_corpus
    from layerflow.corpus.table import Corpus
    from layerflow.corpus.torch_data import TorchClips
    from layerflow.front import encode, evaluate, init, mine, pack, paste, publish, sample, train
    from layerflow.model.cogvideox.pipeline import LayerFlowPipeline
    from layerflow.model.cogvideox.transformer import LayerFlowTransformer3DModel
    from layerflow.model.wan.pipeline import LayerFlowWanPipeline
    from layerflow.model.wan.transformer import LayerFlowWanTransformer3DModel

_HOMES = {
    "LayeredClip": "layerflow.clip",
    "Latents": "layerflow.corpus.latents",
    "open_corpus": "layerflow.corpus.published",
    "Corpus": "layerflow.corpus.table",
    "TorchClips": "layerflow.corpus.torch_data",
    "LayerFlowPipeline": "layerflow.model.cogvideox.pipeline",
    "LayerFlowTransformer3DModel": "layerflow.model.cogvideox.transformer",
    "LayerFlowWanPipeline": "layerflow.model.wan.pipeline",
    "LayerFlowWanTransformer3DModel": "layerflow.model.wan.transformer",
    **dict.fromkeys(
        ("encode", "evaluate", "init", "mine", "pack", "paste", "publish", "sample", "train"),
        "layerflow.front",
    ),
}

__all__ = [
    "Corpus",
    "Latents",
    "LayerFlowPipeline",
    "LayerFlowTransformer3DModel",
    "LayerFlowWanPipeline",
    "LayerFlowWanTransformer3DModel",
    "LayeredClip",
    "TorchClips",
    "encode",
    "evaluate",
    "init",
    "mine",
    "open_corpus",
    "pack",
    "paste",
    "publish",
    "sample",
    "train",
]


__getattr__ = lazy_names(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted({*__all__, "__version__"})
