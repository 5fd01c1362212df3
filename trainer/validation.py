"""Held-out loss at fixed clips, timesteps and noise, so that figures of one or more runs compare.

Every rank takes its share of the clips and the sums are added up, so the figure does not depend on
the number of workers. Sampling, which takes long, is handed on: see `trainer.sampling`.
"""

from __future__ import annotations

import hashlib
import json
import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from manifests.train_stage import Lora, Stage
from trainer.export import export, model_after
from trainer.held_out import HeldOut
from trainer.metrics import Metrics, rewind
from trainer.runtime import autocast
from trainer.sampling import snapshot
from trainer.stages import Trained, gate_of

if TYPE_CHECKING:
    from trainer.distributed.fsdp import Sharded
    from trainer.runtime import Run

COLUMNS = ("step", "stage", "task", "loss", "gate")
GATE_0_TOLERANCE = 1e-4  # of a loss; on a CPU nothing differs at all


def measure(run: Run, stage: Stage, gate: int) -> dict[str, float]:
    """Held-out losses in the precision and in the batch sizes of the stage's training."""
    assert run.held_out is not None
    share = run.world.sharing(run.manifest.context_parallel)
    return run.held_out.losses(
        run.transformer,
        run.process,
        gate=gate,
        size=run.manifest.pass_size(stage, share.size),
        world=share,
        precision=partial(autocast, run.manifest, run.world.device),
    )


def measured(held_out: HeldOut, gate: int) -> str:
    """What makes two losses comparable, as text."""
    text = held_out.options.model_dump_json(include={"timesteps", "tasks"})
    source: Any = held_out.parts[gate].source
    rows = json.dumps([source.identity(), *held_out.parts[gate].rows])
    clips = hashlib.sha256(rows.encode()).hexdigest()
    return f"{text} gate {gate}, clips {clips[:32]}"


def validate(
    run: Run, stage: Stage, trained: Trained | Sharded, metrics: Metrics, step: int
) -> dict[str, float]:
    """Held-out losses of the averaged weights, to validation.csv and the trackers; the best
    pipeline kept and sampling asked for, as the manifest says. The same on every rank."""
    assert run.held_out is not None
    options, main, gate = run.held_out.options, run.world.rank == 0, gate_of(stage)
    parted = not isinstance(trained, Trained)
    with trained.averaged():
        losses = measure(run, stage, gate)
        tensors: dict[str, torch.Tensor] = {}
        if options.samples or (options.keep_best and parted):
            tensors = trained.tensors()  # on all ranks: sharded weights are gathered together
        if main and options.keep_best:
            keep_best(run, stage, step, losses, gate, tensors if parted else None)
        if main and options.samples:
            run.sample(snapshot(run.out, run.manifest, stage, tensors, step, run.world.device))
    if main:
        write(run.out / "validation.csv", step, stage.name, losses, gate)
        metrics.scalars("held_out_frozen" if gate else "held_out", step, losses)
    what = "held-out loss of frozen clips at gate 1" if gate else "held-out loss"
    run.log(f"{stage.name}: {what} " + ", ".join(f"{k} {v:.4f}" for k, v in losses.items()))
    return losses


def at_gate_0(run: Run, stage: Stage) -> dict[str, float] | None:
    """Before a stage that trains nothing but the motion adapter: the losses that must be the same
    after it, for the adapter does nothing at gate 0. None for other stages, and without clips."""
    if run.held_out is None or not judges_gate_0(stage):
        return None
    return measure(run, stage, gate=0)


def judges_gate_0(stage: Stage) -> bool:
    """Whether the network must be at gate 0, after a stage, what it was before it."""
    return bool(gate_of(stage)) and isinstance(stage.trains, Lora) and not stage.trains.also


def check_gate_0(run: Run, stage: Stage, before: dict[str, float] | None) -> None:
    """After the stage. ValueError if the losses are not what they were `before` it."""
    if before is None:
        return
    now = measure(run, stage, gate=0)
    if not all(math.isclose(now[k], v, rel_tol=GATE_0_TOLERANCE) for k, v in before.items()):
        raise ValueError(
            f"stage {stage.name!r} changed the network at motion gate 0, where inference runs: "
            f"held-out losses were {before} before it and are {now} now. It was not exported"
        )
    most = max(abs(now[task] - loss) for task, loss in before.items())
    run.log(f"{stage.name}: at gate 0 the network is as before the stage (losses differ by {most})")


def keep_best(
    run: Run,
    stage: Stage,
    step: int,
    losses: dict[str, float],
    gate: int,
    tensors: dict[str, torch.Tensor] | None = None,
) -> None:
    """Export to OUT/best/STAGE when the mean loss is lower than what is there.

    tensors: what the stage trained, whole, where the network of `run` is in parts.
    """
    assert run.held_out is not None
    folder = run.out / "best" / stage.name
    record, loss = folder / "best.json", sum(losses.values()) / len(losses)
    what = measured(run.held_out, gate)
    said = json.loads(record.read_text()) if record.is_file() else {}
    if not math.isfinite(loss) or (said.get("measured") == what and not loss < said["loss"]):
        return
    about = {"step": step, "loss": loss, "losses": losses, "measured": what}
    network = run.transformer
    if tensors is not None:
        network, _ = model_after(run.manifest, run.out, stage.name, tensors)
    export(run.out, run.manifest, stage.name, network, target=folder, about=about)
    if run.uploader:
        run.uploader.put(folder)


def write(path: Path, step: int, stage: str, losses: dict[str, float], gate: int) -> None:
    """Append one row a task to validation.csv, after dropping rows of this step and later."""
    rewind(path, COLUMNS, step - 1)
    with path.open("a") as file:
        for task, loss in losses.items():
            file.write(f"{step},{stage},{task},{loss!r},{gate}\n")
