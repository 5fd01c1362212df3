"""Held-out loss at fixed clips, timesteps and noise, so that figures of one or more runs compare.

Every rank takes its share of the clips and the sums are added up, so the figure does not depend on
the number of workers. Sampling, which takes long, is handed on: see `trainer.sampling`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from layerflow.objective import layer_loss
from manifests.train import LAYERS, Component, Stage, TrainManifest, Validation, given_layers
from trainer.data import draw_posterior, make_part, open_latents, select_rows
from trainer.export import export
from trainer.metrics import Metrics, rewind
from trainer.order import generator
from trainer.sampling import snapshot
from trainer.stages import Trained

if TYPE_CHECKING:
    from trainer.loop import Run
    from trainer.sharded import Sharded

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
                total, count = torch.zeros(2, dtype=torch.float64), len(self.part.rows)
                for turn in range(rank, count + -count % world, world):
                    # all ranks take as many turns: sharded weights are gathered together
                    losses = self._clip(transformer, scheduler, turn % count, task, device)
                    if turn < count:
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


def held_out_changed(options: Validation) -> str:
    """What makes two losses comparable, as text."""
    return options.model_dump_json(include={"clips", "timesteps", "tasks", "kinds"})


def validate(
    run: Run, stage: Stage, trained: Trained | Sharded, metrics: Metrics, step: int
) -> None:
    """Held-out losses of the averaged weights, to validation.csv and the trackers; the best
    pipeline kept and sampling asked for, as the manifest says."""
    assert run.held_out is not None
    options, main = run.held_out.options, run.world.rank == 0
    with trained.averaged():
        losses = run.held_out.losses(
            run.transformer,
            run.scheduler,
            device=run.world.device,
            rank=run.world.rank,
            world=run.world.size,
            reduce=run.world.add_up,
        )
        if main and options.keep_best:
            keep_best(run, stage, step, losses)
        if options.samples:
            tensors = trained.tensors()  # on all ranks: sharded weights are gathered together
            if main:
                run.sample(snapshot(run.out, run.manifest, stage, tensors, step, run.world.device))
    if main:
        write(run.out / "validation.csv", step, stage.name, losses)
        metrics.scalars("held_out", step, losses)
    run.log(f"{stage.name}: held-out loss " + ", ".join(f"{k} {v:.4f}" for k, v in losses.items()))


def keep_best(run: Run, stage: Stage, step: int, losses: dict[str, float]) -> None:
    """Export to OUT/best/STAGE when the mean loss is lower than what is there."""
    assert run.held_out is not None
    folder = run.out / "best" / stage.name
    record, loss = folder / "best.json", sum(losses.values()) / len(losses)
    measured = held_out_changed(run.held_out.options)
    said = json.loads(record.read_text()) if record.is_file() else {}
    if said.get("measured") == measured and not loss < said["loss"]:
        return
    about = {"step": step, "loss": loss, "losses": losses, "measured": measured}
    export(run.out, run.manifest, stage.name, run.transformer, target=folder, about=about)


def write(path: Path, step: int, stage: str, losses: dict[str, float]) -> None:
    """Append one row a task to validation.csv, after dropping rows of this step and later."""
    rewind(path, COLUMNS, step - 1)
    with path.open("a") as file:
        for task, loss in losses.items():
            file.write(f"{step},{stage},{task},{loss!r}\n")
