"""What the page shows of latents: decoded by the model's autoencoder, or in false colours.

False colours need no model: the three main directions of a clip's latents, over all its layers, as
red, green and blue, one square per latent. They show what is where and what moves, not colours.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layerflow.clip import ALPHA, FOREGROUND, LAYERS, PROMPTED, U8, LayeredClip, from_float
from layerflow.corpus.fingerprint import folder_hash
from layerflow.corpus.latents import NO_LOGVAR, Latents

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
        keys = [self._latents.column(f"{layer}_prompt") for layer in PROMPTED]
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
            yield {
                **row,
                "index": index,
                "source": f"clip {row['source']} of group {group}, latents {shape[0]}x"
                f"{shape[1]}x{shape[2]}",
                "prompts": dict(zip(PROMPTED, texts, strict=True)),
                "scores": self._scores(index) if index in scored else {},
                "flat": self._model is None,
            }

    def _scores(self, index: int) -> dict[str, float]:
        """Standard deviation of each layer's means; mean log-variance where there is one."""
        mean, logvar = np.split(self._latents.item(index)["moments"], 2, axis=1)
        found = {
            f"std_{name}": float(layer.std()) for name, layer in zip(LAYERS, mean, strict=True)
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
        item = self._latents.item(index)
        mean = item["moments"][:, : item["moments"].shape[1] // 2]
        if self._model is None:
            layers: dict[str, Any] = dict(false_colours(mean))
            rate = item["fps"] * mean.shape[2] / max(1, self._latents.column("num_frames")[index])
        else:
            layers, rate = dict(self._decoded(mean)), item["fps"]
        return LayeredClip(**layers, fps=max(0.5, float(rate)))

    @cached_property
    def _vae(self) -> Any:
        if multiprocessing.parent_process() is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # a contained child has no room for CUDA
        from pipelines.encode.clip_latents import Encoder, Options

        return Encoder(Options(str(self._model))).vae

    def _decoded(self, mean: NDArray[np.float32]) -> dict[str, U8]:
        from layerflow.model.autoencoder import decode_layers

        made = decode_layers(self._vae, np.ascontiguousarray(mean.transpose(0, 2, 1, 3, 4)))
        alpha = from_float(made.pop(ALPHA).mean(axis=3))
        share = np.maximum(alpha[..., None].astype(np.float32) / 255, 1 / 255)
        made[FOREGROUND] = np.clip(made[FOREGROUND] / share, -1, 1)  # it is on mid-grey
        return {ALPHA: alpha, **{name: from_float(layer) for name, layer in made.items()}}


def false_colours(mean: NDArray[np.float32]) -> dict[str, U8]:
    """float32 ``[4, C, f, h, w]``, layers in order -> layer -> uint8 ``[f, H, W, 3]`` (alpha
    without colour): the main directions of all layers together, mid-grey where the mean is."""
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
    found = dict(zip(LAYERS, pictures, strict=True))
    found[ALPHA] = np.ascontiguousarray(found[ALPHA][..., 0])
    return found
