"""A corpus as a map-style dataset of torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Dataset

from layerflow.clip import LAYERS

if TYPE_CHECKING:
    from layerflow.corpus.published import PublishedCorpus
    from layerflow.corpus.table import Corpus


class TorchClips(Dataset[dict[str, Any]]):
    """The clips of a corpus as tensors, decoded when they are asked for.

    An item holds a layer's name -> float32 in [0, 1], colours ``[T, 3, H, W]``, alpha
    ``[T, 1, H, W]``; ``prompts``, layer -> text; ``fps``. For ``torch.utils.data.DataLoader``,
    with ``batch_size=None`` unless all clips have one size.
    """

    def __init__(self, corpus: Corpus | PublishedCorpus) -> None:
        self.corpus = corpus

    def __len__(self) -> int:
        return len(self.corpus)

    def __getitem__(self, index: int) -> dict[str, Any]:
        clip = self.corpus.clip(index)
        item: dict[str, Any] = {"prompts": dict(clip.prompts), "fps": clip.fps}
        for name in LAYERS:
            frames = clip.layer(name)
            frames = frames[..., None] if frames.ndim == 3 else frames
            item[name] = torch.from_numpy(frames).permute(0, 3, 1, 2).float().div_(255)
        return item
