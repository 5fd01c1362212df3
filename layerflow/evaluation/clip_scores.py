"""The paper's scores that rest on a CLIP model: frame consistency, text alignment, aesthetics.

The model comes from a local folder in transformers' format; nothing is fetched. The paper derives
its scores from VBench without naming models; figures compare only between runs with equal models.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from layerflow.clip import U8

F32 = NDArray[np.float32]

MEAN = (0.48145466, 0.4578275, 0.40821073)  # of CLIP's pictures, from its authors
STD = (0.26862954, 0.26130258, 0.27577711)


def unit(vectors: NDArray[Any]) -> F32:
    """Rows scaled to length 1."""
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def frame_consistency(frames: F32) -> float:
    """``mean cos(e_t, e_t-1)`` of frame embeddings ``[T, D]``; NaN for one frame."""
    e = unit(frames)
    return float((e[1:] * e[:-1]).sum(1).mean()) if len(e) > 1 else float("nan")


def text_alignment(frames: F32, text: F32) -> float:
    """``mean cos(e_t, text)`` of frame embeddings ``[T, D]`` and one text embedding ``[D]``."""
    return float((unit(frames) @ unit(text[None])[0]).mean())


def aesthetic_score(frames: F32, weight: F32, bias: float) -> float:
    """``mean (weight . e_t / |e_t| + bias) / 10``: the LAION predictor's 0..10, divided by 10."""
    return float((unit(frames) @ weight + bias).mean() / 10)


class ClipScorer:
    """A CLIP model, and optionally an aesthetic head, from local files.

    model: folder with config, tokenizer and safetensors weights. aesthetic: safetensors file with
    `weight` ``[1, D]`` and `bias` ``[1]`` of a linear head on the image embedding. ValueError for
    files that do not fit.
    """

    def __init__(self, model: str | Path, aesthetic: str | Path | None = None) -> None:
        from transformers import AutoTokenizer, CLIPModel

        folder = Path(model)
        if not (folder / "config.json").is_file():
            raise ValueError(f"{folder} is no CLIP model folder (no config.json)")
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = CLIPModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True
        ).to(self.device)
        self.model.eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.head = None if aesthetic is None else self._read_head(Path(aesthetic))

    def _read_head(self, path: Path) -> tuple[F32, float]:
        from safetensors.torch import load_file

        tensors = load_file(path)
        width = self.model.config.projection_dim
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if shapes != {"weight": (1, width), "bias": (1,)}:
            raise ValueError(f"{path}: needs weight [1, {width}] and bias [1], has {shapes}")
        return tensors["weight"][0].float().numpy(), float(tensors["bias"][0])

    @torch.no_grad()
    def embed_frames(self, frames: U8) -> F32:
        """``[T, H, W, 3]`` -> ``[T, D]``."""
        side = self.model.config.vision_config.image_size
        pixels = preprocess(torch.from_numpy(np.ascontiguousarray(frames)), side)
        parts = [self.model.get_image_features(part.to(self.device)) for part in pixels.split(16)]
        return torch.cat([_tensor(part) for part in parts]).float().cpu().numpy()

    @torch.no_grad()
    def embed_text(self, text: str) -> F32:
        """A text -> ``[D]``; cut at the model's length."""
        limit = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(text, truncation=True, max_length=limit, return_tensors="pt")
        ids = {name: tokens[name].to(self.device) for name in ("input_ids", "attention_mask")}
        return _tensor(self.model.get_text_features(**ids))[0].float().cpu().numpy()

    def scores(self, frames: U8, prompt: str | None) -> dict[str, float]:
        """`consistency`, and `text` with a prompt, and `aesthetic` with a head, of one layer."""
        embedded = self.embed_frames(frames)
        out = {"consistency": frame_consistency(embedded)}
        if prompt:
            out["text"] = text_alignment(embedded, self.embed_text(prompt))
        if self.head is not None:
            out["aesthetic"] = aesthetic_score(embedded, *self.head)
        return out


def _tensor(features: Any) -> Tensor:
    """transformers gives the embedding itself, or (since version 5) an output that holds it."""
    return features if isinstance(features, Tensor) else features.pooler_output


def preprocess(frames: Tensor, side: int) -> Tensor:
    """uint8 ``[T, H, W, 3]`` -> float32 ``[T, 3, side, side]``: scaled, centre cut, normalised."""
    pixels = frames.permute(0, 3, 1, 2).float() / 255
    scale = side / min(pixels.shape[2:])
    size = [max(side, round(length * scale)) for length in pixels.shape[2:]]
    pixels = functional.interpolate(pixels, size, mode="bicubic", antialias=True).clamp(0, 1)
    top, left = ((length - side) // 2 for length in size)
    pixels = pixels[:, :, top : top + side, left : left + side]
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (pixels - mean) / std
