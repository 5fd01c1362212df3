"""The model that a run starts from, and the pipeline that it ends in."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from layerflow.files import new_folder, write_json
from layerflow.model import adapters
from layerflow.model.adapter_files import saved_adapters
from layerflow.model.base import base_of
from layerflow.model.ship import ship_code
from manifests.train import TrainManifest
from trainer.card import write_card
from trainer.checkpoint import fill, load_stage
from trainer.distributed.processes import ALONE, World
from trainer.memory.hold import full_values
from trainer.planning.count import empty_model
from trainer.stages import attach

CPU = torch.device("cpu")
LINK_BYTES = 64 << 20  # larger files of the model (text encoders) are hard-linked, not copied


def load_model(folder: str | Path, device: torch.device) -> tuple[Any, Any]:
    """Transformer (with the adapters saved beside it) and noise scheduler of a pipeline."""
    folder = Path(folder)
    base = base_of(folder)
    transformer = base.transformer.from_pretrained(
        folder / "transformer", torch_dtype=torch.float32
    )
    return transformer.to(device), base.load_scheduler(folder)


def load_network(manifest: TrainManifest, world: World) -> tuple[Any, Any]:
    """``load_model`` for a run, on the CPU. Where a stage shards the network, rank 0 alone
    reads it, and the others have it without weights (``distributed/hand_out.py``)."""
    if world.size == 1 or all(stage.parallel != "fsdp" for stage in manifest.stages):
        return load_model(manifest.model, CPU)
    folder = Path(manifest.model)
    if world.rank == 0 or saved_adapters(folder / "transformer"):
        transformer, scheduler = load_model(folder, CPU)
    else:
        transformer, scheduler = empty_model(folder), base_of(folder).load_scheduler(folder)
    transformer.first_only = True
    return transformer, scheduler


def model_after(
    manifest: TrainManifest,
    out: Path,
    stage: str,
    tensors: Mapping[str, torch.Tensor],
    world: World = ALONE,
) -> tuple[Any, Any]:
    """Transformer and scheduler within or after a stage: earlier stages as they ended, and what
    this one trained as `tensors`. As ``load_network`` has it."""
    transformer, scheduler = load_network(manifest, world)
    for each in manifest.stages:
        attach(transformer, each, manifest.seed)
        if each.name == stage:
            break
        load_stage(out, each.name, transformer)
    fill(transformer, tensors, f"stage {stage!r}")
    return transformer, scheduler


def export(
    out: Path,
    manifest: TrainManifest,
    stage: str,
    transformer: Any,
    *,
    target: Path | None = None,
    about: Mapping[str, Any] | None = None,
) -> Path:
    """Write `OUT/export`: the pipeline with the weights and adapters as they are now. Weights that
    the network holds in less than fp32 are written as they are stored.

    target: write there instead, with `best.json` that holds `about`.
    """
    source, best = Path(manifest.model), target is not None
    target = target or out / "export"
    training = {
        "stage": stage,
        "stages": [s.name for s in manifest.stages],
        "manifest": json.loads(manifest.model_dump_json()),
    }
    with new_folder(target, replace=True) as temporary:
        copy_tree(source, temporary, leave={"transformer", "README.md", "training.json"})
        stored = full_values(transformer, manifest, out, stage)
        transformer.save_pretrained(temporary / "transformer", instead=stored)
        ship_code(temporary)
        write_card(temporary, manifest, stage, adapters.adapter_names(transformer))
        write_json(temporary / "training.json", training)
        if best:
            write_json(temporary / "best.json", about or {})
    if manifest.keep_exports and not best:
        with new_folder(out / "stages" / stage / "export", replace=True) as temporary:
            copy_tree(target, temporary)
    return target


def copy_tree(source: Path, target: Path, leave: set[str] | None = None) -> None:
    """Copy a folder's files, except those below the names in `leave` at its top."""
    for file in sorted(source.rglob("*")):
        relative = file.relative_to(source)
        if relative.parts[0] in (leave or set()) or not file.is_file():
            continue
        place = target / relative
        place.parent.mkdir(parents=True, exist_ok=True)
        if file.stat().st_size >= LINK_BYTES:
            try:
                os.link(file, place)
                continue
            except OSError:
                pass  # another file system
        shutil.copyfile(file, place)
