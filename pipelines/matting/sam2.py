"""Matting backend on video segmentation networks of transformers: SAM 2 and EdgeTAM, by local path.

Such a network tracks what it is shown. What that is, ``auto`` finds: its matte on one frame is the
prompt, which the network carries through the clip in both directions.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import cv2
import numpy as np

from pipelines.matting import require
from pipelines.matting.follow import FollowMatting
from pipelines.vision.numerics import single_thread

if TYPE_CHECKING:
    import torch

MODELS = {
    "sam2_video": ("Sam2VideoModel", "Sam2VideoInferenceSession"),
    "edgetam_video": ("EdgeTamVideoModel", "EdgeTamVideoInferenceSession"),
}
"""``model_type`` of a folder's ``config.json`` -> transformers' classes of network and session."""
MEAN, STD = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], np.float32)  # of ImageNet


class Tracker:
    """The network of a folder, which follows a subject through a clip."""

    def __init__(self, weights: str, device: str) -> None:
        self.device = device
        self.network, self._session = _load(Path(weights), device)

    def follow(self, frames: np.ndarray, mask: np.ndarray, key: int) -> np.ndarray:
        """Probabilities float32 [T, H, W] of what ``mask``, bool [H, W], shows on frame ``key``."""
        import torch

        height, width = frames.shape[1:3]
        side = int(self.network.config.image_size)
        session = self._session(
            video_height=height, video_width=width, inference_device=self.device,
            dtype=torch.float32,
        )  # fmt: skip
        session.processed_frames = _Frames(frames, side)
        shown = cv2.resize(mask.astype(np.float32), (side, side), interpolation=cv2.INTER_AREA)
        prompt = torch.from_numpy((shown >= 0.5).astype(np.float32))[None, None]
        session.add_mask_inputs(session.obj_id_to_idx(1), key, prompt)
        session.obj_with_new_inputs = [1]
        out = np.zeros(frames.shape[:3], np.float32)
        for backwards in (False, True):
            steps = self.network.propagate_in_video_iterator(
                session, start_frame_idx=key, reverse=backwards
            )
            with single_thread():
                for step in steps:
                    logits = step.pred_masks[0, 0].float().cpu().numpy()
                    sure = 1.0 / (1.0 + np.exp(-np.clip(logits, -30, 30)))
                    out[step.frame_idx] = cv2.resize(sure, (width, height))
        return out


class _Frames:
    """Frames as the network takes them, made when asked for: a clip of them may be gigabytes."""

    def __init__(self, frames: np.ndarray, side: int) -> None:
        self.frames, self.side = frames, side

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> torch.Tensor:
        import torch

        small = cv2.resize(self.frames[index], (self.side, self.side))
        scaled = (small.astype(np.float32) / 255 - MEAN) / STD
        return torch.from_numpy(np.ascontiguousarray(scaled.transpose(2, 0, 1)))


class Sam2Matting(FollowMatting):
    """Mattes a clip by following one subject through it; see ``FollowMatting``.

    ``weights``: a folder with ``config.json`` and ``model.safetensors``.
    """

    name = "sam2"
    licence = "Apache-2.0"
    makes = Tracker
    wants = "a video model of SAM 2 or EdgeTAM in the format of transformers"

    def check(self) -> None:
        """Raises ValueError where transformers is not installed."""
        require("transformers", self.name)
        self.version = f"transformers {version('transformers')}"


def _load(folder: Path, device: str) -> tuple[Any, Callable[..., Any]]:
    """The network, for inference, and what makes its sessions. ValueError for another folder."""
    from layerflow.compat import ensure_torchvision

    ensure_torchvision()
    import transformers

    config = folder / "config.json"
    if not config.is_file():
        raise ValueError(f"weights for matting backend 'sam2' not found: {config}")
    try:
        kind = json.loads(config.read_text())["model_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{config} does not say which model it is of: {error}") from error
    if kind not in MODELS:
        raise ValueError(f"{folder} holds a {kind!r}; 'sam2' takes one of {', '.join(MODELS)}")
    model, session = (getattr(transformers, name) for name in MODELS[kind])
    try:
        network = model.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except Exception as error:
        raise ValueError(f"{folder} does not load as {kind}: {error}") from error
    return network.eval().to(device), cast(Callable[..., Any], session)
