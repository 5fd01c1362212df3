"""Bytes counted on tensors that have shapes but no contents: no GPU and little memory are needed.

What a GPU adds is not in it: fragments that its allocator keeps, and work space of kernels.
"""

from __future__ import annotations

import json
import weakref
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from layerflow.model.base import base_of


def empty_model(folder: str | Path) -> Any:
    """The transformer without weights: its parameters take no memory."""
    network = base_of(folder).transformer
    config = network.load_config(Path(folder) / "transformer")
    with torch.device("meta"):
        return network.from_config(config)


class Live(TorchDispatchMode):
    """Counts the bytes of the storages that operations make, while they live."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.now = self.most = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, torch.Tensor):
                self.add(tensor.untyped_storage())
        return result

    def add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self.sizes:
            self.sizes[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self.drop, key)

    def drop(self, key: int) -> None:
        self.now -= self.sizes.pop(key)

    def leave_out(self, tensor: torch.Tensor) -> None:
        """Do not count this tensor's storage: it lies elsewhere."""
        storage = tensor.untyped_storage()
        self.add(storage)
        self.now -= self.sizes[storage._cdata]
        self.sizes[storage._cdata] = 0


@cache
def decoder_bytes(folder: Path, shape: tuple[int, int, int, int]) -> tuple[int, int]:
    """Bytes of an autoencoder's weights in fp32, and the most that decoding one clip holds beside
    them. folder: the autoencoder's; shape: of one layer's latents, ``(f, C, h, w)``.
    ValueError for an autoencoder of an unknown kind.
    """
    from layerflow.model import autoencoder

    kind = autoencoder.autoencoder_class(folder)
    settings = json.loads((folder / "config.json").read_text())
    with FakeTensorMode(allow_non_fake_inputs=True):
        vae: Any = kind.from_config(settings).eval()
        weights = sum(p.numel() * 4 for p in [*vae.parameters(), *vae.buffers()])
        latents = torch.zeros(1, *shape)
        with Live() as live:
            autoencoder.decode(vae, latents)
    return weights, live.most
