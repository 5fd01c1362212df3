"""What the study trains: the arms, and the train manifest of each.

An arm begins from nothing, or from an export of another run of the same seed. `small` teaches on
small clips what layers are, as a base model knows what video is, and most arms go on from it. All
arms of one group have equal clips, steps and noise, but for what their line says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from layerflow.model.layers import TASKS
from manifests.train import TrainManifest, parse

ADAM = {"betas": [0.9, 0.95], "weight_decay": 1.0e-4, "clip": 1.0}
FAST = {"warmup": 10, "decay": "power", "power": 0.7}
HELD = 1e-9  # times the rate: a parameter that keeps its start
MIXED = {"generate": 0.4, "decompose": 0.4, "fg2bg": 0.1, "bg2fg": 0.1}


@dataclass(frozen=True)
class Arm:
    """One run. After: the run from whose export it starts; None: from nothing.

    trains: its stages. times: how often the steps of a base. model: options of `init` that differ.
    zeroed: parameters that are zero and stay so. task: the only task it learns, with a quarter of
    the steps. latents: of its clips. stage: what differs in stages on whole clips.
    """

    says: str
    after: str | None = "small"
    trains: tuple[str, ...] = ("decompose", "base")
    times: int = 1
    model: Mapping[str, Any] = field(default_factory=dict)
    zeroed: tuple[str, ...] = ()
    task: str | None = None
    latents: str = "video"
    stills: float = 0.7
    stage: Mapping[str, Any] = field(default_factory=dict)
    gate: int = 0


VIDEO, TEXT = "layer_embedding.video", "layer_embedding.text"

ALL = ("small", "decompose", "base")

ARMS: dict[str, Arm] = {
    "small": Arm("decomposition of small clips, from nothing", None, ("small",)),
    "base": Arm("all tasks, coarse moving clips"),
    "longer": Arm("the base gone on with, four times as long", "base", ("base",), times=4),
    "motion": Arm("the motion LoRA, on frozen clips", "longer", ("motion",)),
    "method": Arm(
        "content LoRA on stills and clips, after the motion LoRA", "motion", ("content",)
    ),
    "no motion": Arm("the same without a motion LoRA", "longer", ("content",)),
    "no stills": Arm("the content stage on moving clips alone", "motion", ("content",), stills=0.0),
    "few stills": Arm("a third of stills", "motion", ("content",), stills=0.35),
    "stills alone": Arm("no moving clip", "motion", ("content",), stills=1.0),
    "plain gate": Arm("the motion LoRA also on for moving clips", "motion", ("content",), gate=1),
    "continuous": Arm(
        "positions in time go on from layer to layer", None, ALL, model={"positions": "continuous"}
    ),
    "text only": Arm("layer embedding on text tokens only", None, ALL, zeroed=(VIDEO,)),
    "video only": Arm("layer embedding on video tokens only", None, ALL, zeroed=(TEXT,)),
    "none": Arm("no layer embedding", None, ALL, zeroed=(VIDEO, TEXT)),
    **{f"{task} alone": Arm(f"a quarter of the steps, {task} only", task=task) for task in TASKS},
    "invented": Arm("made-up backgrounds taken for true", latents="invented"),
    "invented, masked": Arm(
        "made-up backgrounds left out of the loss", latents="invented", stage={"mask": "known"}
    ),
}

GROUPS: dict[str, tuple[str, ...]] = {
    "Motion LoRA": ("longer", "motion", "method", "no motion", "plain gate"),
    "Stills": ("longer", "no stills", "few stills", "method", "stills alone"),
    "Length of the base": ("small", "base", "longer"),
    "One model or one a task": ("base", *(f"{task} alone" for task in TASKS)),
    "Positions": ("base", "continuous"),
    "Layer embedding": ("base", "text only", "video only", "none"),
    "Known mask": ("base", "invented", "invented, masked"),
}
"""What is compared on the page: title -> arms."""


def lineage(arm: str) -> list[str]:
    """The arm, what it starts from, and so on."""
    after = ARMS[arm].after
    return [arm, *(lineage(after) if after else [])]


def manifest(arm: str, out: Path, seed: int, study: Mapping[str, Any]) -> TrainManifest:
    """The run of an arm and a seed: ``OUT/seed-N/ARM``."""
    one, folder = ARMS[arm], out / f"seed-{seed}"
    start = folder / one.after / "export" if one.after else folder / arm / "start"
    stages = {"small": small, "decompose": decompose, "base": base}
    stages |= {"motion": motion, "content": content}
    return parse(
        {
            "model": str(start),
            "out": str(folder / arm),
            "seed": seed,
            "batch": study["train"]["batch"],
            "threads": 1,
            "log_every": 25,
            "save_every": 50,
            "keep_last": 1,
            "tensorboard": False,
            "latents": {
                name: str(out / "latents" / name)
                for name in ("small", "video", "invented", "stills")
            },
            "optimizer": ADAM,
            "dropout": {"joint": 0.1, "layer": 0.05},
            "validation": {
                "latents": str(out / "latents" / "fresh"),
                "every": 10**6,  # at the end of a stage, that is
                "clips": 12,
                "timesteps": [299, 699],
                "tasks": list(TASKS),
            },
            "stages": [stages[name](one, study["train"]) for name in one.trains],
        }
    )


SLOW = {"warmup": 30, "decay": "power", "power": 0.35, "final": 0.7}
NOISY = {"density": "logit-normal", "mean": 1.5}
"""Where a decomposition is decided: +0.07 IoU after 600 small steps against uniform times."""


def full(arm: Arm) -> dict[str, Any]:
    """What stages share that train the whole network."""
    groups = {"groups": {name: {"rate": HELD} for name in arm.zeroed}} if arm.zeroed else {}
    return {"ema": 0.98, "trains": "full", **groups}


def small(arm: Arm, steps: Mapping[str, int]) -> dict[str, Any]:
    said = {"name": "small", "steps": steps["small"], "lr": 2e-3, "schedule": SLOW}
    said |= {"tasks": {"decompose": 1.0}, "timesteps": NOISY}
    return {**said, "mixture": [{"latents": "small"}], **full(arm)}


def decompose(arm: Arm, steps: Mapping[str, int]) -> dict[str, Any]:
    """Whole clips; the one task that the next stage is about to mix with others."""
    task = arm.task or "decompose"
    said = {"name": "decompose", "steps": share(arm, steps["decompose"]), "lr": 1e-3}
    said |= {"schedule": SLOW, "tasks": {task: 1.0}, **arm.stage}
    said |= {"timesteps": NOISY} if task == "decompose" else {}
    return {**said, "mixture": [{"latents": arm.latents}], **full(arm)}


def base(arm: Arm, steps: Mapping[str, int]) -> dict[str, Any]:
    tasks = {arm.task: 1.0} if arm.task else MIXED
    said = {"name": "base", "steps": share(arm, steps["base"]), "lr": 1e-3, "schedule": FAST}
    return {**said, "tasks": tasks, "mixture": [{"latents": arm.latents}], **arm.stage, **full(arm)}


def share(arm: Arm, steps: int) -> int:
    """An arm of one task gets its part of what the one model of all tasks gets."""
    return steps // len(TASKS) if arm.task else steps * arm.times


def motion(arm: Arm, steps: Mapping[str, int]) -> dict[str, Any]:
    frozen = {"latents": arm.latents, "freeze": True, "motion_gate": 1}
    said = {"name": "motion", "steps": steps["motion"], "lr": 1e-2, "schedule": FAST, "ema": 0.95}
    said |= {"trains": {"lora": "motion", "rank": 4}, "mixture": [frozen]}
    return {**said, "tasks": {"generate": 0.67, "decompose": 0.33}}


def content(arm: Arm, steps: Mapping[str, int]) -> dict[str, Any]:
    shares = {"stills": arm.stills, "video": 1 - arm.stills}
    gates = {"stills": 1, "video": arm.gate}
    mixture = [
        {"latents": name, "weight": share, "motion_gate": gates[name]}
        for name, share in shares.items()
        if share
    ]
    said = {"name": "content", "steps": steps["content"], "lr": 5e-3, "schedule": FAST}
    said |= {"trains": {"lora": "content", "rank": 16}, "ema": 0.95}
    return {**said, "mixture": mixture, "tasks": MIXED}
