"""The model that a run starts from, and the pipeline that it ends in."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from manifests.train import TrainManifest
from trainer.checkpoint import publish, staging

SCHEDULERS = ("CogVideoXDDIMScheduler", "CogVideoXDPMScheduler")
LINK_BYTES = 64 << 20  # larger files of the model (text encoders) are hard-linked, not copied


def load_model(folder: str | Path, device: torch.device) -> tuple[Any, Any]:
    """Transformer (with the adapters saved beside it) and noise scheduler of a pipeline."""
    import diffusers

    from layerflow.transformer import LayerFlowTransformer3DModel

    folder = Path(folder)
    transformer = LayerFlowTransformer3DModel.from_pretrained(
        folder / "transformer", torch_dtype=torch.float32
    )
    said = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    if said["_class_name"] not in SCHEDULERS:
        raise ValueError(f"{folder}/scheduler: {said['_class_name']} is none of {SCHEDULERS}")
    scheduler = getattr(diffusers, said["_class_name"]).from_pretrained(folder / "scheduler")
    return transformer.to(device), scheduler


def export(out: Path, manifest: TrainManifest, stage: str, transformer: Any) -> Path:
    """Write `OUT/export`: the pipeline with the weights and adapters as they are now."""
    source, target = Path(manifest.model), out / "export"
    temporary = staging(target)
    copy_tree(source, temporary, leave={"transformer"})
    transformer.save_pretrained(temporary / "transformer")
    about = {
        "stage": stage,
        "stages": [s.name for s in manifest.stages],
        "manifest": json.loads(manifest.model_dump_json()),
    }
    (temporary / "training.json").write_text(json.dumps(about, indent=2, sort_keys=True) + "\n")
    publish(temporary, target)
    if manifest.keep_exports:
        kept = out / "stages" / stage / "export"
        temporary = staging(kept)
        copy_tree(target, temporary)
        publish(temporary, kept)
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
