"""Matting backend on MatAnyone 2, by local path, with its publisher's package: non-commercial.

The network mattes what it is shown on one frame through the clip, hair and all. Its memory from
frame to frame lives in its own code, so that is a package of the user's, and nothing of it is here.
Its steps are those of the publisher's program (github.com/pq-yang/MatAnyone2,
inference_matanyone2.py): the mask closed, then the first frame ten times more as a warm-up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from layerflow.compat import ensure_torchvision
from layerflow.documents import read_json
from pipelines.matting.follow import FollowMatting
from pipelines.vision.numerics import single_thread

_WARM_UP = 10  # times that the first frame is shown again
_CLOSING = 10  # pixels; smaller gaps of the mask are closed


class Tracker:
    """The network of a folder, which mattes a subject through a clip."""

    def __init__(self, weights: str, device: str) -> None:
        self.device = device
        self.network, self._memory = _load(Path(weights), device)

    def follow(self, frames: np.ndarray, mask: np.ndarray, key: int) -> np.ndarray:
        """Alpha float32 [T, H, W] of what ``mask``, bool [H, W], shows on frame ``key``."""
        alpha = np.zeros(frames.shape[:3], np.float32)
        ways: list[Sequence[int]] = [range(key, len(frames)), range(key, -1, -1)]
        for way in (way for way in ways if len(way) > 1 or way is ways[0]):
            self._along(frames, mask, way, alpha)
        return alpha

    def _along(
        self, frames: np.ndarray, mask: np.ndarray, way: Sequence[int], alpha: np.ndarray
    ) -> None:
        """Fill in the alpha of some frames, from the first of them on, which the mask is of."""
        import torch

        memory = self._memory(self.network, cfg=self.network.cfg, device=self.device)
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (_CLOSING, _CLOSING))
        shown = cv2.morphologyEx(mask.astype(np.float32) * 255, cv2.MORPH_CLOSE, kernel)

        def tensor(frame: np.ndarray) -> torch.Tensor:
            scaled = frame.transpose(2, 0, 1).astype(np.float32) / 255
            return torch.from_numpy(scaled).to(self.device)

        with single_thread(), torch.inference_mode():
            first = tensor(frames[way[0]])
            memory.step(first, torch.from_numpy(shown).to(self.device), objects=[1])
            for _ in range(1 + _WARM_UP):
                said = memory.step(first, first_frame_pred=True)
            for t in way:
                said = said if t == way[0] else memory.step(tensor(frames[t]))
                found = memory.output_prob_to_mask(said)
                alpha[t] = found.float().clamp(0, 1).cpu().numpy()


class MatAnyoneMatting(FollowMatting):
    """Mattes a clip by following one subject through it, from its clearest frame both ways.

    ``weights``: a folder with ``config.json`` and ``model.safetensors``, as its publisher has them
    on the Hub. Raises ValueError for another one, and where the package ``matanyone2`` is not
    installed.
    """

    name = "matanyone"
    version = "1"
    licence = "S-Lab License 1.0, code and weights: non-commercial use only"
    makes = Tracker
    wants = "the config.json and model.safetensors of MatAnyone 2"

    def check(self) -> None:
        """Raises ValueError where the publisher's package is not installed."""
        if find_spec("matanyone2") is None:
            raise ValueError(
                "matting backend 'matanyone' needs its publisher's package 'matanyone2' "
                f"(github.com/pq-yang/MatAnyone2; {self.licence}), which is not installed"
            )


def _load(folder: Path, device: str) -> tuple[Any, Callable[..., Any]]:
    """The network, for inference, and what makes its memory. ValueError for another folder."""
    config, weights = folder / "config.json", folder / "model.safetensors"
    for path in (config, weights):
        if not path.is_file():
            raise ValueError(f"weights for matting backend 'matanyone' not found: {path}")
    told = read_json(config, {"cfg": dict})
    ensure_torchvision()
    import torch

    if torch.cuda.is_available() and not device.startswith("cuda"):
        raise ValueError(
            "matting backend 'matanyone' computes on the GPU wherever torch sees one: choose the "
            "device cuda, or hide the GPU (CUDA_VISIBLE_DEVICES=)"
        )
    try:
        from matanyone2.inference.inference_core import InferenceCore
        from matanyone2.model.matanyone2 import MatAnyone2
        from omegaconf import OmegaConf
        from safetensors.torch import load_file

        options = OmegaConf.create(told["cfg"])
        options.model.pretrained_resnet = False  # or it would download these
        made = MatAnyone2(options, single_object=bool(told.get("single_object", True)))
        made.load_state_dict(load_file(weights))
        return made.eval().to(device), InferenceCore
    except Exception as error:
        raise ValueError(f"{folder} does not load as MatAnyone 2 on {device}: {error}") from error
