"""The model card of an export: what it is, how it was trained, and a snippet that runs in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from layerflow.model.adapter_files import GATED_WEIGHTS, WEIGHTS
from layerflow.model.adapters import MOTION
from layerflow.model.info import sampling_settings
from manifests.train import TrainManifest
from manifests.train_stage import Blocks, Lora, Stage

TAGS = ["text-to-video", "layered-video", "alpha", "layerflow", "diffusers", "diffusers-training"]


def write_card(folder: Path, manifest: TrainManifest, stage: str, adapters: Sequence[str]) -> None:
    """Write `README.md` into an exported pipeline. stage: the last one that it holds."""
    names = [s.name for s in manifest.stages]
    done = manifest.stages[: names.index(stage) + 1]
    (folder / "README.md").write_text(card(done, manifest, adapters, *sampling_settings(folder)))


def card(
    stages: Sequence[Stage],
    manifest: TrainManifest,
    adapters: Sequence[str],
    steps: int,
    guidance: float,
) -> str:
    tags = [*TAGS, "lora"] if adapters else TAGS
    head = {"library_name": "diffusers", "pipeline_tag": "text-to-video", "tags": tags}
    rows = "\n".join(row(stage, manifest) for stage in stages)
    held = "".join(f"{about(name)}\n" for name in sorted(adapters))
    held = f"## Adapters\n\n{held}\n" if held else ""
    return f"""---
{yaml.safe_dump(head, sort_keys=False).rstrip()}
---

# Layered video, trained with the LayerFlow toolkit

Generates a transparent foreground, its alpha, a background and the blended scene together, or
any of them from the others.

## Use

Run in this folder, or put its path (or repository) in place of `"."`. Needs torch, diffusers,
transformers, peft and opencv-python. The code lies beside the weights, so the toolkit need not be
installed; with it, `layerflow.LayerFlowPipeline.from_pretrained` opens the same folder
without `trust_remote_code`.

```python
import torch
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained(".", trust_remote_code=True)
layers = pipe(
    prompt={{"foreground": "a red balloon", "background": "a meadow", "blended": "a balloon"}},
    num_inference_steps={steps},
    guidance_scale={guidance},
    generator=torch.Generator().manual_seed(0),
)
layers.foreground[0][0].save("foreground.png")  # RGBA, frame 0 of sample 0
layers.blended[0][0].save("blended.png")
```

The toolkit's command line does the same and writes videos:

    layerflow sample --model . --prompt foreground="a red balloon" --out samples
    layerflow sample --model . --given blended=clip.mp4 --out layers

{held}
## Training

Seed {manifest.seed}, {manifest.precision}; `training.json` holds the whole manifest.

| stage | trains | steps | batch | learning rate | tasks |
|---|---|---|---|---|---|
{rows}
"""


def about(name: str) -> str:
    """A line on an adapter: what its file is for, and for whom."""
    place = f"transformer/adapters/{name}"
    if name == MOTION:
        return (
            f"- `{name}` (`{place}/{GATED_WEIGHTS}`) served training only: it acted on samples "
            "that stand still, and at inference its gate is 0, so that it changes nothing. Its "
            "file is for this pipeline and for training on; other loaders, which know no gate, "
            "do not take it."
        )
    return (
        f"- `{name}` (`{place}/{WEIGHTS}`) is active in this pipeline. It belongs to the base "
        "weights of this folder, not to those of the model that they were trained from."
    )


def row(stage: Stage, manifest: TrainManifest) -> str:
    trains = stage.trains
    if isinstance(trains, Lora):
        alpha = trains.file_alpha
        what = f"LoRA `{trains.lora}`, rank {trains.rank}, alpha {alpha:g}"
    elif isinstance(trains, Blocks):
        what = f"blocks {trains.blocks}"
    else:
        what = "everything"
    tasks = ", ".join(f"{name} {weight:g}" for name, weight in stage.tasks.items())
    batch = f"{stage.tokens} tokens" if stage.tokens else stage.batch or manifest.batch
    return f"| {stage.name} | {what} | {stage.steps} | {batch} | {stage.lr:g} | {tasks} |"
