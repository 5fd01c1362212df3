"""What the study trains: the arms, and the train manifest of each.

An arm begins from nothing (`base` arms) or from an export of another run of the same seed. All
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

    model: options of `init` that differ. zeroed: parameters that are zero and stay so. tasks: the
    only task it learns, with a share of the steps. latents: of its clips. stage: what differs in
    its (last) stage.
    """

    says: str
    after: str | None = None
    model: Mapping[str, Any] = field(default_factory=dict)
    zeroed: tuple[str, ...] = ()
    task: str | None = None
    latents: str = "video"
    stills: float = 0.7
    stage: Mapping[str, Any] = field(default_factory=dict)
    gate: int = 0


VIDEO, TEXT = "layer_embedding.video", "layer_embedding.text"

ARMS: dict[str, Arm] = {
    "base": Arm("all tasks, coarse moving clips"),
    "motion": Arm("the motion LoRA, on frozen clips", after="base"),
    "method": Arm("content LoRA on stills and clips, after the motion LoRA", after="motion"),
    "no motion": Arm("the same without a motion LoRA", after="base"),
    "no stills": Arm("the content stage on moving clips alone", after="motion", stills=0.0),
    "few stills": Arm("a third of stills", after="motion", stills=0.35),
    "stills alone": Arm("no moving clip", after="motion", stills=1.0),
    "plain gate": Arm("the motion LoRA also on for moving clips", after="motion", gate=1),
    "continuous": Arm(
        "positions in time go on from layer to layer", model={"positions": "continuous"}
    ),
    "text only": Arm("layer embedding on text tokens only", zeroed=(VIDEO,)),
    "video only": Arm("layer embedding on video tokens only", zeroed=(TEXT,)),
    "none": Arm("no layer embedding", zeroed=(VIDEO, TEXT)),
    **{f"{task} alone": Arm(f"a quarter of the steps, {task} only", task=task) for task in TASKS},
    "invented": Arm("made-up backgrounds taken for true", latents="invented"),
    "invented, masked": Arm(
        "made-up backgrounds left out of the loss", latents="invented", stage={"mask": "known"}
    ),
}

GROUPS: dict[str, tuple[str, ...]] = {
    "Motion LoRA": ("base", "motion", "method", "no motion", "plain gate"),
    "Stills": ("base", "no stills", "few stills", "method", "stills alone"),
    "One model or one a task": ("base", *(f"{task} alone" for task in TASKS)),
    "Positions": ("base", "continuous"),
    "Layer embedding": ("base", "text only", "video only", "none"),
    "Known mask": ("base", "invented", "invented, masked"),
}
"""What is compared on the page: title -> arms."""


def kind_of(arm: str) -> str:
    """`base`, `motion` or `content`: the stage that an arm trains."""
    after = ARMS[arm].after
    return "base" if after is None else "motion" if arm == "motion" else "content"


def manifest(arm: str, out: Path, seed: int, study: Mapping[str, Any]) -> TrainManifest:
    """The run of an arm and a seed: ``OUT/seed-N/ARM``."""
    one, folder = ARMS[arm], out / f"seed-{seed}"
    start = folder / one.after / "export" if one.after else folder / arm / "start"
    stages = {"base": base_stages, "motion": motion_stage, "content": content_stage}
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
                "latents": str(out / "latents" / "held_out"),
                "every": 10**6,  # at the end of a stage, that is
                "clips": 24,
                "timesteps": [299, 699],
                "tasks": list(TASKS),
            },
            "stages": stages[kind_of(arm)](one, study["train"]),
        }
    )


SMALL_BATCH = 8


def base_stages(arm: Arm, steps: Mapping[str, int]) -> list[dict[str, Any]]:
    """Decomposition first, of small clips and then of whole ones, then every task; or one task,
    with a quarter of all steps."""
    groups = {name: {"rate": HELD} for name in arm.zeroed}
    common: dict[str, Any] = {"ema": 0.98, "trains": "full"}
    common |= {"groups": groups} if groups else {}
    whole = {"mixture": [{"latents": arm.latents}], **arm.stage}
    small = {"mixture": [{"latents": "small"}], "batch": SMALL_BATCH}
    first = {"warmup": 30, "decay": "power", "power": 0.35, "final": 0.7}
    task = arm.task or "decompose"
    share = 1 if arm.task is None else len(TASKS)
    begun = {"name": "small", "steps": steps["small"] // share, "lr": 2e-3, "schedule": first}
    begun |= {"tasks": {task: 1.0}, **small, **common}
    then = {"name": "base", "lr": 1e-3, "schedule": FAST, **whole, **common}
    if arm.task is not None:
        quarter = (steps["decompose"] + steps["base"]) // share
        return [begun, {**then, "steps": quarter, "tasks": {task: 1.0}}]
    middle = {"name": "decompose", "steps": steps["decompose"], "lr": 1e-3, "schedule": first}
    middle |= {"tasks": {"decompose": 1.0}, **whole, **common}
    return [begun, middle, {**then, "steps": steps["base"], "tasks": MIXED}]


def motion_stage(arm: Arm, steps: Mapping[str, int]) -> list[dict[str, Any]]:
    frozen = {"latents": arm.latents, "freeze": True, "motion_gate": 1}
    return [
        {"name": "motion", "steps": steps["motion"], "lr": 1e-2, "schedule": FAST, "ema": 0.95}
        | {"trains": {"lora": "motion", "rank": 4}, "mixture": [frozen]}
        | {"tasks": {"generate": 0.67, "decompose": 0.33}}
    ]


def content_stage(arm: Arm, steps: Mapping[str, int]) -> list[dict[str, Any]]:
    shares = {"stills": arm.stills, "video": 1 - arm.stills}
    gates = {"stills": 1, "video": arm.gate}
    mixture = [
        {"latents": name, "weight": share, "motion_gate": gates[name]}
        for name, share in shares.items()
        if share
    ]
    return [
        {"name": "content", "steps": steps["content"], "lr": 5e-3, "schedule": FAST, "ema": 0.95}
        | {"trains": {"lora": "content", "rank": 16}, "mixture": mixture, "tasks": MIXED}
    ]
