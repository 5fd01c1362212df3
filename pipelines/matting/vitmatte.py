"""ViTMatte of transformers as a refiner, by local path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from layerflow.documents import read_json
from pipelines.matting.refine import BAND
from pipelines.vision.numerics import single_thread

_BATCH_PIXELS = 1 << 19  # a batch on the CPU holds about this many pixels, on a GPU 8 x that


class VitMatteRefiner:
    """Alpha of each frame by itself, from its picture and trimap.

    ``weights``: a folder with ``config.json``, ``preprocessor_config.json`` and
    ``model.safetensors``. ``device``: a torch device. Raises ValueError for another folder, and for
    a device that is not there.
    """

    name = "vitmatte"
    licence = (
        "as the weights folder (published as Apache-2.0, but trained on Composition-1k, whose "
        "terms allow models non-commercial use, or Distinctions-646); code MIT"
    )

    def __init__(self, weights: str | Path, device: str = "cpu") -> None:
        self.device = device
        self.network, self._processor = _load(Path(weights), device)
        self._batch = _BATCH_PIXELS * (8 if device.startswith("cuda") else 1)

    def __call__(self, frames: np.ndarray, trimap: np.ndarray) -> np.ndarray:
        """See ``Refiner``. Frames without a band are not asked: 0."""
        import torch

        count, height, width = trimap.shape
        alpha = np.zeros((count, height, width), np.float32)
        asked = np.flatnonzero((trimap == BAND).any((1, 2)))
        size = max(1, self._batch // (height * width))
        for part in (asked[first : first + size] for first in range(0, len(asked), size)):
            inputs = self._processor(
                images=list(frames[part]),
                trimaps=list(trimap[part]),
                input_data_format="channels_last",
                return_tensors="pt",
            )
            with single_thread(), torch.inference_mode():
                found = self.network(inputs["pixel_values"].to(self.device)).alphas
            alpha[part] = found[:, 0, :height, :width].float().cpu().numpy()
        return alpha


def _load(folder: Path, device: str) -> tuple[Any, Any]:
    """The network, for inference, and what makes its input. ValueError for another folder."""
    from layerflow.compat import ensure_torchvision

    ensure_torchvision()
    from transformers import VitMatteForImageMatting, VitMatteImageProcessor

    if not folder.is_dir():
        raise ValueError(f"weights of the refiner 'vitmatte' not found: {folder} is no folder")
    kind = read_json(folder / "config.json").get("model_type")
    if kind != "vitmatte":
        raise ValueError(f"{folder} holds a {kind!r}, not a 'vitmatte'")
    local = {"local_files_only": True}
    try:
        processor = VitMatteImageProcessor.from_pretrained(folder, **local)
        network, told = VitMatteForImageMatting.from_pretrained(
            folder, **local, use_safetensors=True, output_loading_info=True
        )
        if lacking := [*told["missing_keys"], *told["mismatched_keys"]]:
            raise ValueError(f"it lacks {len(lacking)} of its weights")
        return network.eval().to(device), processor
    except Exception as error:
        raise ValueError(f"{folder} does not load as vitmatte on {device}: {error}") from error
