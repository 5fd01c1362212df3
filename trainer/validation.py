"""Held-out loss at fixed clips, timesteps and noise, so that figures of one or more runs compare.

Every rank takes its share of the clips and the sums are added up, so no rank waits for another
to sample, and the figure does not depend on the number of workers.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from layerflow.objective import layer_loss
from manifests.train import LAYERS, Component, TrainManifest, Validation, given_layers
from trainer.data import draw_posterior, make_part, open_latents, select_rows
from trainer.metrics import rewind
from trainer.order import generator

COLUMNS = ("step", "stage", "task", "loss")


class HeldOut:
    """The held-out clips of a manifest's `validation`. ValueError if its latents do not open."""

    def __init__(self, options: Validation, folder: str | Path) -> None:
        self.options = options
        source = open_latents(folder)
        component = Component.model_validate({"latents": options.latents, "kinds": options.kinds})
        rows = select_rows(source, component)
        chosen = generator("validation").permutation(len(rows))[: options.clips]
        longest = max(source.column("latent_frames"))
        self.part = make_part(component, source, [rows[i] for i in sorted(chosen)], longest)

    def losses(
        self,
        transformer: nn.Module,
        scheduler: object,
        *,
        device: torch.device,
        rank: int = 0,
        world: int = 1,
        reduce: Callable[[torch.Tensor], None] = lambda tensor: None,
    ) -> dict[str, float]:
        """Mean loss by task over clips and timesteps, at motion gate 0.

        reduce: adds a tensor up over all ranks, in place.
        """
        transformer.eval()
        result = {}
        with torch.no_grad():
            for task in self.options.tasks:
                total = torch.zeros(2, dtype=torch.float64)
                for index in range(rank, len(self.part.rows), world):
                    losses = self._clip(transformer, scheduler, index, task, device)
                    total += torch.tensor([losses.sum(), len(losses)], dtype=torch.float64)
                total = total.to(device)
                reduce(total)
                result[task] = float(total[0] / total[1])
        transformer.train()
        return result

    def _clip(
        self, transformer: nn.Module, scheduler: object, index: int, task: str, device: torch.device
    ) -> torch.Tensor:
        item = self.part.source.item(self.part.rows[index])
        rng = generator("validation", item["id"])
        latents = draw_posterior(item["moments"], rng)
        if latents.shape[1] != self.part.shapes[index][0]:
            latents = np.repeat(latents, self.part.shapes[index][0], axis=1)
        count = len(self.options.timesteps)
        noise = rng.standard_normal((count, *latents.shape), np.float32)
        given = torch.tensor([layer in given_layers(task) for layer in LAYERS])

        def repeat(values: torch.Tensor) -> torch.Tensor:
            return values.expand(count, *values.shape).to(device)

        return layer_loss(
            transformer,
            scheduler,
            repeat(torch.from_numpy(latents)),
            repeat(torch.from_numpy(item["prompt_embeds"])),
            repeat(given),
            torch.tensor(self.options.timesteps).to(device),
            torch.from_numpy(noise).to(device),
            torch.zeros(count, device=device),
        )


def held_out(manifest: TrainManifest) -> HeldOut | None:
    """The manifest's held-out clips; None if it asks for no validation."""
    options = manifest.validation
    return HeldOut(options, manifest.folder(options.latents)) if options else None


def write(path: Path, step: int, stage: str, losses: dict[str, float]) -> None:
    """Append one row a task to validation.csv, after dropping rows of this step and later."""
    rewind(path, COLUMNS, step - 1)
    with path.open("a") as file:
        for task, loss in losses.items():
            file.write(f"{step},{stage},{task},{loss!r}\n")
