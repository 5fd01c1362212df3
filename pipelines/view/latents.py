"""What the page shows of latents: decoded by the model's autoencoder, or in false colours.

False colours need no model: the three main directions of a clip's latents, over all its layers, as
red, green and blue, one square per latent. They show what is where and what moves, not colours.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layerflow.clip import (
    ALPHA,
    BACKGROUND,
    BLENDED,
    LAYERS,
    PROMPTED,
    U8,
    LayeredClip,
    from_float,
)
from layerflow.corpus.fingerprint import folder_hash
from layerflow.corpus.latents import NO_LOGVAR, Latents
from layerflow.layer_set import matte_of
from layerflow.media.layer_stack import LayerStack, sampled_stack

SCORED = 256  # rows whose values are read for their scores
SQUARES = 96  # pixels that the height of latents is enlarged to, about
SPREAD = 2.5  # standard deviations from mid-grey to the end of the scale
COLUMNS = ("id", "source", "kind", "alpha_kind", "origin_group", "fps", "num_frames", "height",
           "width", "latent_frames", "latent_height", "latent_width")  # fmt: skip


class LatentSource:
    """The clips of a latents folder; see ``pipelines.view.source.ClipSource``.

    model: the model directory whose autoencoder decodes them; None: false colours. Raises
    ValueError when the latents are of another autoencoder.
    """

    def __init__(self, path: Path, model: Path | None = None) -> None:
        self._path, self._model = path, model
        self._latents = Latents.open(path)
        self.name = path.resolve().name
        self.note = "decoded by the autoencoder" if model else "in false colours"
        known = self._latents.fingerprint.get("vae")
        if model is not None and known != folder_hash(model / "vae"):
            raise ValueError(f"{path} was made by another autoencoder than the one of {model}")

    def __len__(self) -> int:
        return len(self._latents)

    def rows(self) -> Iterator[dict[str, Any]]:
        columns = {name: self._latents.column(name) for name in COLUMNS}
        named = self._latents.layers.prompted
        keys = [self._latents.column(f"{layer}_prompt") for layer in named]
        scored = set(np.linspace(0, len(self) - 1, min(SCORED, len(self))).astype(int).tolist())
        for index in range(len(self)):
            row = {name: values[index] for name, values in columns.items()}
            texts = [
                # without the prefix that names the layer
                self._latents.prompt_text(column[index]).partition(", ")[2] if column[index] else ""
                for column in keys
            ]
            group = row.pop("origin_group")
            shape = [row.pop(f"latent_{axis}") for axis in ("frames", "height", "width")]
            if self._model is None:
                row["num_frames"] = shape[0]
            prompts = dict(zip(named, texts, strict=True))
            own = {f"{n} prompt": t for n, t in prompts.items() if n not in PROMPTED and t}
            yield {
                **row,
                "index": index,
                "source": f"clip {row['source']} of group {group}, latents {shape[0]}x"
                f"{shape[1]}x{shape[2]}",
                "prompts": {layer: prompts[layer] for layer in PROMPTED},
                "more": own,
                "scores": self._scores(index) if index in scored else {},
                "flat": self._model is None,
            }

    def _scores(self, index: int) -> dict[str, float]:
        """Standard deviation of each layer's means; mean log-variance where there is one."""
        item = self._latents.item(index)
        mean, logvar = np.split(item["moments"], 2, axis=1)
        found = {
            f"std_{name}": float(layer.std())
            for name, layer in zip(item["layers"], mean, strict=True)
        }
        if logvar.size and float(logvar.max()) > NO_LOGVAR:
            found["logvar"] = float(logvar.mean())
        return found

    def rejected(self) -> Iterator[dict[str, Any]]:
        path = self._path / "rejected.jsonl"
        for line in path.read_text().splitlines() if path.is_file() else ():
            try:
                row = json.loads(line)
                row = row if isinstance(row, dict) else {}
            except (ValueError, RecursionError):
                row = {"reason": "the record of it is damaged"}
            about = {"uri": str(row.get("id")), "reason": str(row.get("reason")), "stage": "encode"}
            yield {**about, "kind": "", "start": None, "end": None, "quality": {}, "recipe": ""}

    def clip(self, index: int) -> LayeredClip:
        return self._shown(index).joined()

    def stack(self, index: int) -> LayerStack | None:
        stack = self._shown(index)
        return stack if len(stack.over) > 1 else None

    def _shown(self, index: int) -> LayerStack:
        item = self._latents.item(index)
        mean = item["moments"][:, : item["moments"].shape[1] // 2]
        if self._model is None:
            layers = false_colours(mean, item["layers"])
            rate = item["fps"] * mean.shape[2] / max(1, self._latents.column("num_frames")[index])
        else:
            layers, rate = self._decoded(mean, item["layers"]), item["fps"]
        return sampled_stack(dict(layers), {}, max(0.5, float(rate)))

    @cached_property
    def _vae(self) -> Any:
        if multiprocessing.parent_process() is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # a contained child has no room for CUDA
        from pipelines.encode.clip_latents import Options
        from pipelines.encode.models import Models

        return Models(Options(str(self._model))).vae

    def _decoded(self, mean: NDArray[np.float32], names: Sequence[str]) -> dict[str, U8]:
        from layerflow.model.autoencoder import decode_layers

        latents = np.ascontiguousarray(mean.transpose(0, 2, 1, 3, 4))
        made = decode_layers(self._vae, latents, names)
        shown: dict[str, U8] = {}
        for name, pixels in made.items():
            matte = matte_of(name)
            if name.startswith(ALPHA):
                shown[name] = from_float(pixels.mean(axis=3))
            elif name not in (BACKGROUND, BLENDED) and matte in made:  # it is on mid-grey
                alpha = from_float(made[matte].mean(axis=3))
                share = np.maximum(alpha[..., None].astype(np.float32) / 255, 1 / 255)
                shown[name] = from_float(np.clip(pixels / share, -1, 1))
            else:
                shown[name] = from_float(pixels)
        return shown


def false_colours(mean: NDArray[np.float32], names: Sequence[str] = LAYERS) -> dict[str, U8]:
    """float32 ``[n, C, f, h, w]`` of the layers ``names`` -> layer -> uint8 ``[f, H, W, 3]``
    (mattes without colour): the main directions of all layers together, mid-grey where the mean
    is."""
    layers, channels, frames, height, width = mean.shape
    flat = mean.transpose(0, 2, 3, 4, 1).reshape(-1, channels).astype(np.float64)
    flat = flat - flat.mean(axis=0)
    values, vectors = np.linalg.eigh(flat.T @ flat / len(flat))
    main = vectors[:, ::-1][:, :3]
    main = main * np.where(main[np.abs(main).argmax(axis=0), range(main.shape[1])] < 0, -1, 1)
    spread = np.sqrt(np.maximum(values[::-1][:3], 1e-12)) * SPREAD
    shown = np.zeros((len(flat), 3))
    shown[:, : main.shape[1]] = np.clip(flat @ main / spread, -1, 1)
    pictures = from_float(shown).reshape(layers, frames, height, width, 3)
    square = max(1, round(SQUARES / height))
    pictures = pictures.repeat(square, axis=2).repeat(square, axis=3)
    return {
        name: np.ascontiguousarray(picture[..., 0]) if name.startswith(ALPHA) else picture
        for name, picture in zip(names, pictures, strict=True)
    }
