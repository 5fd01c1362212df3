"""The model card of an export: what it is, how it was trained, and a snippet that runs in it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from manifests.train import Blocks, Lora, Stage, TrainManifest

TAGS = ["text-to-video", "layered-video", "alpha", "layerflow", "diffusers", "diffusers-training"]


def write_card(folder: Path, manifest: TrainManifest, stage: str, adapters: Sequence[str]) -> None:
    """Write `README.md` into an exported pipeline. stage: the last one that it holds."""
    names = [s.name for s in manifest.stages]
    done = manifest.stages[: names.index(stage) + 1]
    (folder / "README.md").write_text(card(done, manifest, adapters, sampling(folder)))


def sampling(folder: Path) -> Mapping[str, Any]:
    """Steps and guidance that the model's own settings ask for."""
    file = folder / "layerflow.json"
    said = json.loads(file.read_text()).get("sampling", {}) if file.is_file() else {}
    steps, guidance = said.get("num_inference_steps", 50), said.get("guidance_scale", 6.0)
    return {"steps": int(steps), "guidance": float(guidance)}


def card(
    stages: Sequence[Stage],
    manifest: TrainManifest,
    adapters: Sequence[str],
    settings: Mapping[str, Any],
) -> str:
    tags = [*TAGS, "lora"] if adapters else TAGS
    head = {"library_name": "diffusers", "pipeline_tag": "text-to-video", "tags": tags}
    rows = "\n".join(row(stage, manifest) for stage in stages)
    held = f"Adapters: {', '.join(sorted(adapters))}. " if adapters else ""
    return f"""---
{yaml.safe_dump(head, sort_keys=False).rstrip()}
---

# Layered video, trained with the LayerFlow toolkit

Generates a transparent foreground, its alpha, a background and the blended scene together, or
any of them from the others.

## Use

Run in this folder, or put its path (or repository) in place of `"."`.

```python
import torch
from layerflow.pipeline import LayerFlowPipeline

pipe = LayerFlowPipeline.from_pretrained(".")
layers = pipe(
    prompt={{"foreground": "a red balloon", "background": "a meadow", "blended": "a balloon"}},
    num_inference_steps={settings["steps"]},
    guidance_scale={settings["guidance"]},
    generator=torch.Generator().manual_seed(0),
)
layers.foreground[0][0].save("foreground.png")  # RGBA, frame 0 of sample 0
layers.blended[0][0].save("blended.png")
```

The command line does the same and writes videos:

    layerflow sample --model . --prompt foreground="a red balloon" --out samples
    layerflow sample --model . --given blended=clip.mp4 --out layers

{held}The motion adapter acts on training samples that stand still; at inference its gate is 0 and
it changes nothing.

## Training

Seed {manifest.seed}, {manifest.precision}; `training.json` holds the whole manifest.

| stage | trains | steps | batch | learning rate | tasks |
|---|---|---|---|---|---|
{rows}
"""


def row(stage: Stage, manifest: TrainManifest) -> str:
    trains = stage.trains
    if isinstance(trains, Lora):
        alpha = trains.rank if trains.alpha is None else trains.alpha
        what = f"LoRA `{trains.lora}`, rank {trains.rank}, alpha {alpha:g}"
    elif isinstance(trains, Blocks):
        what = f"blocks {trains.blocks}"
    else:
        what = "everything"
    tasks = ", ".join(f"{name} {weight:g}" for name, weight in stage.tasks.items())
    batch = stage.batch or manifest.batch
    return f"| {stage.name} | {what} | {stage.steps} | {batch} | {stage.lr:g} | {tasks} |"
