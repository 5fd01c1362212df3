"""Whether an option of the recipe helps the tiny net.

    python bench/toy/recipes.py [--seeds 0 1] [--arms plain muon ...] [--out build/recipes]

The tiny preset (0.94 M parameters, 4 frames of 32x32) learns to generate and to decompose the
moving clips of `bench/toy/blobs.py`, for equal steps from equal starts, clips and noise, once with
the plain recipe and once with each option. Arms that begin with `lora` then learn the other look
from stills of one frame, with a LoRA on the plain arm's result. Measured on held-out clips of the
seed: the plain loss at fixed times and noise (whatever the arm minimised), and for the others the
IoU of the mattes of decomposed clips. Arms go in the order given, each on all seeds; what was
interrupted goes on where it was. Figures go to OUT/recipes.json.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from blobs import MOVING, STILL, draw_clip
from schedule import write_latents

from layerflow.clip import BLENDED
from layerflow.evaluation.metrics import alpha_iou
from layerflow.evaluation.predictions import complete
from layerflow.files import write_json
from layerflow.model.presets import init_directory
from layerflow.model.sample import load_pipeline
from manifests.train import TrainManifest, parse
from trainer import metrics
from trainer.distributed.launch import launch

LORA = {"lora": "content", "rank": 16}
ARMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "muon": {"optimizer": {"kind": "muon"}},
    "adamw8bit": {"optimizer": {"kind": "adamw8bit"}},
    "logit-normal": {"timesteps": {"density": "logit-normal"}},
    "min-snr": {"timesteps": {"min_snr": 5}},
    "embedding-rate-5": {"groups": {"layer_embedding": {"rate": 5}}},
    "blocks-decay-0.1": {"groups": {"blocks": {"decay": 0.1}}},
    "uniform": {"timesteps": {"density": "uniform"}},
    "alpha-gradient": {"loss": {"alpha_gradient": 0.3}},
    "alpha-gradient-0.03": {"loss": {"alpha_gradient": 0.03}},
    "recomposition": {"loss": {"recomposition": 0.3}},
    "prodigy": {"optimizer": {"kind": "prodigy"}, "lr": 1.0},
    "lora": {"trains": LORA},
    "lora-plus-4": {"trains": {**LORA, "plus": 4}},
    "lora-plus-16": {"trains": {**LORA, "plus": 16}},
    "lora-rslora": {"trains": {**LORA, "alpha": 16, "rslora": True}},
    "lora-group-decay-0.1": {"trains": LORA, "groups": {"lora": {"decay": 0.1}}},
}
"""Arm -> what it changes in the stage."""

TASKS = ["generate", "decompose"]
HELD_OUT = 32  # clips
STEPS, LORA_STEPS = 400, 150


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--out", type=Path, default=Path("build/recipes"))
    parser.add_argument("--clips", type=int, default=3200)
    parser.add_argument("--shorten", type=int, default=1, help="divide all step counts: to try it")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for arm in options.arms:
        for seed in options.seeds:
            folder = options.out / f"seed-{seed}"
            prepare(folder, seed, options.clips)
            if not (folder / arm / "result.json").is_file():
                run_arm(folder, seed, arm, options.shorten)
        summarise(options.out)


def prepare(folder: Path, seed: int, clips: int) -> None:
    """The start and the clips that all arms of a seed share."""
    if not (folder / "model").is_dir():
        init_directory(folder / "model", "tiny", seed=seed)
    for name, family, count in (
        ("video", MOVING, clips),
        ("stills", STILL, clips // 4),
        ("held-video", MOVING, HELD_OUT),  # names of other lengths are drawn otherwise
        ("held-still", STILL, HELD_OUT),
    ):
        if not (folder / "latents" / name).is_dir():
            rng = np.random.default_rng([seed, len(name)])
            write_latents(folder, name, (draw_clip(family, rng) for _ in range(count)), seed)


def arm_manifest(folder: Path, seed: int, arm: str, shorten: int) -> TrainManifest:
    lora = arm.startswith("lora")
    steps = max(1, (LORA_STEPS if lora else STEPS) // shorten)
    stage = {
        "name": "base",
        "steps": steps,
        "lr": 8e-3 if lora else 3e-3,
        "schedule": {"warmup": 30 // shorten, "decay": "power", "power": 0.7},
        "ema": 0.95 if lora else 0.98,
        "trains": "full",
        "mixture": [{"latents": "stills" if lora else "video"}],
        "tasks": dict.fromkeys(TASKS, 0.5),
        **ARMS[arm],
    }
    names = ("video", "stills", "held-video", "held-still")
    return parse(
        {
            "model": str(folder / ("plain/export" if lora else "model")),
            "out": str(folder / arm),
            "seed": seed,
            "batch": 8,
            "threads": 1,
            "log_every": 50,
            "save_every": 100,
            "keep_last": 1,
            "tensorboard": False,
            "latents": {name: str(folder / "latents" / name) for name in names},
            "dropout": {"joint": 0.0, "layer": 0.0},
            "validation": {
                "latents": "held-still" if lora else "held-video",
                "every": steps,
                "clips": HELD_OUT,
                "tasks": TASKS,
            },
            "stages": [stage],
        }
    )


def run_arm(folder: Path, seed: int, arm: str, shorten: int) -> None:
    """Train an arm and measure it."""
    manifest, began = arm_manifest(folder, seed, arm, shorten), time.process_time()
    if not launch(manifest, log=lambda text: print(f"seed {seed} {arm}: {text}", flush=True)):
        raise SystemExit(143)
    seconds = time.process_time() - began
    rows = metrics.read(folder / arm / "validation.csv")
    result: dict[str, Any] = {row["task"]: row["loss"] for row in rows}
    trained = metrics.read(folder / arm / "metrics.csv")
    result |= {"skipped": trained[-1]["skipped"], "cpu_seconds": seconds}
    if not arm.startswith("lora"):
        result["iou"] = decomposed(folder / arm / "export", seed)
    write_json(folder / arm / "result.json", result)


def decomposed(model: Path, seed: int) -> float:
    """Mean IoU of the mattes of held-out clips, in two steps of the sampler."""
    pipe = load_pipeline(model)
    pipe.set_progress_bar_config(disable=True)
    rng = np.random.default_rng([seed, 77])
    clips = [draw_clip(MOVING, rng) for _ in range(HELD_OUT)]
    made = complete(pipe, clips, (BLENDED,), steps=2, guidance=1.0, seeds=list(range(HELD_OUT)))
    scores = [alpha_iou(m.alpha, c.alpha) for m, c in zip(made, clips, strict=True)]  # type: ignore[union-attr]
    return float(np.mean(scores))


def summarise(out: Path) -> None:
    """Figures of all arms and seeds that are done: recipes.json, and a table."""
    found: dict[str, dict[str, Any]] = {}
    for arm in ARMS:
        for path in sorted(out.glob(f"seed-*/{arm}/result.json")):
            found.setdefault(arm, {})[path.parts[-3]] = json.loads(path.read_text())
    write_json(out / "recipes.json", found)
    for arm, seeds in found.items():
        cells = [
            f"{name} " + " ".join(f"{seed[name]:.4f}" for seed in seeds.values())
            for name in (*TASKS, "iou", "cpu_seconds")
            if all(name in seed for seed in seeds.values())
        ]
        print(f"{arm:18}" + "   ".join(cells), flush=True)


if __name__ == "__main__":
    main()
