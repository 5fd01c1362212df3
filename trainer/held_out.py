"""The held-out clips of a run: the same clips, timesteps and noise each time, and their losses."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from layerflow.layer_set import LayerSet, layer_set, model_layers
from layerflow.model.noise import NoiseProcess
from layerflow.model.objective import layer_loss
from layerflow.seeds import keyed
from manifests.train import TrainManifest, Validation
from manifests.train_stage import Component
from trainer.data import (
    Batch,
    MixturePart,
    check_tasks,
    draw_posterior,
    known_of,
    make_part,
    open_latents,
    select_rows,
)
from trainer.distributed.processes import ALONE, World
from trainer.layers import given_marks, take_layers


class HeldOut:
    """The held-out clips of a manifest's `validation`, as they move and standing still.

    frozen: folder of clips that were encoded standing still; None: frames of the others. layers:
    the model's. ValueError if the latents do not open, or do not fit the layers or the tasks.
    """

    def __init__(
        self,
        options: Validation,
        folder: str | Path,
        frozen: str | Path | None = None,
        layers: LayerSet = layer_set("rgba"),
    ) -> None:
        self.options, self.layers = options, layers
        source = open_latents(folder)
        still = open_latents(frozen) if frozen else source
        longest = max(source.column("latent_frames"))

        def chosen(source: Any, freeze: bool) -> MixturePart:
            component = Component.model_validate(
                {"latents": options.latents, "kinds": options.kinds, "freeze": freeze}
            )
            rows = select_rows(source, component)
            order = keyed("validation").permutation(len(rows))[: options.clips]
            return make_part(component, source, [rows[i] for i in sorted(order)], longest, layers)

        self.parts = (chosen(source, False), chosen(still, True))
        """By motion gate: moving clips at gate 0, those that stand still at gate 1."""
        check_tasks(self.parts, options.tasks, layers)

    def losses(
        self,
        transformer: nn.Module,
        process: NoiseProcess,
        *,
        gate: int = 0,
        size: int = 1,
        world: World = ALONE,
        precision: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> dict[str, float]:
        """Mean loss by task over clips and timesteps at a motion gate; each worker does its share.
        What a clip does not know is left out, whatever the stage's `mask`.

        size: samples of one forward pass, at most. precision: makes the context of a pass.
        """
        transformer.eval()
        result, part = {}, self.parts[gate]
        with torch.no_grad():
            for task in self.options.tasks:
                total, count = torch.zeros(2, dtype=torch.float64), len(part.rows)
                for turn in range(world.rank, count + -count % world.size, world.size):
                    # all ranks take as many turns: sharded weights are gathered together
                    batch = self._clip(part, turn % count, task, gate)
                    for few in batch.split(size):
                        few = few.to(world.device)
                        with precision():
                            losses = layer_loss(
                                transformer,
                                process,
                                *few.tensors(),
                                layers=few.layers,
                                known=few.known,
                            )
                        if turn < count:
                            total += torch.tensor([losses.sum(), len(losses)], dtype=torch.float64)
                total = total.to(world.device)
                world.add_up(total)
                result[task] = float(total[0] / total[1])
        transformer.train()
        return result

    def _clip(self, part: MixturePart, index: int, task: str, gate: int) -> Batch:
        """One clip at all timesteps."""
        layers = part.shapes[index].layers
        item = take_layers(part.source.item(part.rows[index]), layers)
        rng = keyed("validation", item["id"])
        latents = draw_posterior(item["moments"], rng)
        moment = frozen_moment(item["id"])
        latents = part.show(index, latents, moment)
        known = part.show(index, known_of(item), moment)
        count = len(self.options.timesteps)
        noise = rng.standard_normal((count, *latents.shape), np.float32)
        given = torch.tensor(given_marks(task, self.layers, layers))

        def repeat(values: torch.Tensor) -> torch.Tensor:
            return values.expand(count, *values.shape)

        return Batch(
            latents=repeat(torch.from_numpy(latents)),
            noise=torch.from_numpy(noise),
            prompt_embeds=repeat(torch.from_numpy(item["prompt_embeds"])),
            given=repeat(given),
            timesteps=torch.tensor(self.options.timesteps),
            motion_gate=torch.full((count,), float(gate)),
            layers=layers,
            known=repeat(torch.from_numpy(known)) if item.get("known") is not None else None,
        )


def held_out(manifest: TrainManifest) -> HeldOut | None:
    """The manifest's held-out clips; None if it asks for no validation."""
    options = manifest.validation
    if options is None:
        return None
    frozen = manifest.folder(options.frozen) if options.frozen else None
    layers = model_layers(manifest.model)
    return HeldOut(options, manifest.folder(options.latents), frozen, layers)


def frozen_moment(clip: str) -> float:
    """In [0, 1): which moment a clip shows that is to stand still."""
    return float(keyed("validation", clip, "frame").random())
