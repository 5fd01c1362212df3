"""Whether a manifest's model, latents and batch fit together, before anything is started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from layerflow.corpus.fingerprint import fingerprint_differences, model_fingerprint
from layerflow.documents import read_json
from layerflow.model.autoencoder import autoencoder_class
from layerflow.model.base import base_of
from manifests.train import TrainManifest
from trainer.data import open_latents, open_parts
from trainer.held_out import held_out
from trainer.planning.budget import step_sizes
from trainer.planning.count import empty_model
from trainer.recipe.hooks import make_hooks
from trainer.recipe.terms import stage_terms


def check(manifest: TrainManifest) -> None:
    """ValueError for the first thing that would stop the run later: batch and workers that do not
    divide, an absent folder, latents of another model, a mixture or a validation without rows, a
    token budget that is too small, samples without an autoencoder."""
    for stage in manifest.stages:
        manifest.passes(stage, manifest.sharers)
    base_of(manifest.model)
    config = read_json(Path(manifest.model) / "transformer" / "config.json")
    parts = model_fingerprint(manifest.model)
    names = {c.latents for stage in manifest.stages for c in stage.mixture}
    if manifest.validation is not None:
        names |= {manifest.validation.latents, manifest.validation.frozen or ""} - {""}
    for name in sorted(names):
        check_latents(manifest.folder(name), config, parts)
    network = empty_model(manifest.model) if any(s.tokens for s in manifest.stages) else None
    for stage in manifest.stages:
        mixture = open_parts(manifest, stage)
        if stage.tokens is not None:
            step_sizes(stage, mixture, network)
        stage_terms(manifest, stage, torch.device("cpu"))
    held_out(manifest)
    make_hooks(manifest)
    if manifest.validation is not None and manifest.validation.samples:
        autoencoder_class(Path(manifest.model) / "vae")


def warnings(manifest: TrainManifest) -> list[str]:
    """What is allowed and seldom meant, a line each."""
    return [
        f"{stage}: does not train {', '.join(tasks)}, which a stage before it did, and may unlearn "
        "it; give the stage these tasks too (docs/train.md#the-three-stages)"
        for stage, tasks in manifest.dropped_tasks().items()
    ]


def check_latents(folder: str, config: dict[str, Any], parts: dict[str, str]) -> None:
    """ValueError unless the latents come from the model's autoencoder and text encoder, in the
    shapes that its transformer takes."""
    latents = open_latents(folder)
    known = {name: value for name, value in parts.items() if name in latents.fingerprint}
    different = fingerprint_differences(latents.fingerprint, known)
    if different:
        raise ValueError(
            f"{folder} was encoded with another model; encode the corpus again.\n  "
            + "\n  ".join(different)
        )
    base = base_of(config)
    wanted = base.text_shape(config)
    if latents.prompt_keys() and latents.text_shape != wanted:
        raise ValueError(f"{folder}: prompts of {latents.text_shape}, the model takes {wanted}")
    patch = base.patch(config)
    columns = ("latent_channels", "latent_height", "latent_width")
    for shape in sorted(set(zip(*(latents.column(name) for name in columns), strict=True))):
        channels, height, width = shape
        if channels != config["in_channels"] or height % patch or width % patch:
            raise ValueError(
                f"{folder}: latents of {channels}x{height}x{width}; the model takes "
                f"{config['in_channels']} channels and sides that are multiples of {patch}"
            )
