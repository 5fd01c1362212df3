"""A package with the interface of ``matanyone2`` and no more: what our backend calls of it.

Its network takes for the subject what has the mean colour of the mask on the frame that it was last
told to begin with, times a weight that is read from the file.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

CALLS: list[str] = []
"""What was asked of the networks: ``mask``, ``first`` or ``next``."""


class OmegaConf:
    @staticmethod
    def create(data: dict[str, Any]) -> SimpleNamespace:
        return json.loads(json.dumps(data), object_hook=lambda found: SimpleNamespace(**found))


class MatAnyone2(torch.nn.Module):
    def __init__(self, cfg: SimpleNamespace, *, single_object: bool = False) -> None:
        super().__init__()
        assert single_object and cfg.model.pretrained_resnet is False
        self.cfg = cfg
        self.scale = torch.nn.Parameter(torch.zeros(()))


class InferenceCore:
    def __init__(self, network: MatAnyone2, cfg: SimpleNamespace, *, device: str) -> None:
        assert cfg is network.cfg and not network.training
        self.network, self.device = network, device
        self.colour: torch.Tensor | None = None

    def step(
        self,
        image: torch.Tensor,
        mask: torch.Tensor | None = None,
        objects: list[int] | None = None,
        *,
        first_frame_pred: bool = False,
    ) -> torch.Tensor:
        assert image.shape[0] == 3 and image.min() >= 0 and image.max() <= 1
        CALLS.append("mask" if mask is not None else "first" if first_frame_pred else "next")
        if mask is not None:
            assert objects == [1] and mask.shape == image.shape[1:] and mask.max() == 255
            self.colour = (image * mask).sum((1, 2)) / mask.sum()
        assert self.colour is not None
        alpha = 1 - self.network.scale * (image - self.colour[:, None, None]).abs().sum(0)
        return torch.stack([1 - alpha, alpha])

    def output_prob_to_mask(self, output_prob: torch.Tensor) -> torch.Tensor:
        return output_prob[1]


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the rest of a test ``import matanyone2`` and ``omegaconf`` give what is here."""
    inner = {
        "matanyone2": {},
        "matanyone2.model": {},
        "matanyone2.inference": {},
        "matanyone2.model.matanyone2": {"MatAnyone2": MatAnyone2},
        "matanyone2.inference.inference_core": {"InferenceCore": InferenceCore},
        "omegaconf": {"OmegaConf": OmegaConf},
    }
    for name, content in inner.items():
        module = ModuleType(name)
        module.__spec__ = SimpleNamespace(name=name)  # type: ignore[assignment]
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
    CALLS.clear()


def make_weights(folder: Path, **more: torch.Tensor) -> Path:
    """A folder as its publisher has it, of this network."""
    folder.mkdir(exist_ok=True)
    config = {"cfg": {"model": {"key_dim": 64}}, "single_object": True}
    (folder / "config.json").write_text(json.dumps(config))
    save_file({"scale": torch.tensor(np.float32(4)), **more}, folder / "model.safetensors")
    return folder
