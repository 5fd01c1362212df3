"""What a run will train, compute and need, before anything is trained."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from manifests.train import Stage, TrainManifest
from trainer.check import check
from trainer.costs import Costs, block_parts, memory_bytes, step_costs
from trainer.data import buckets, buckets_text, open_parts
from trainer.metrics import PEAKS, device_peak
from trainer.stages import attach, trainable_names

# Of the peak that training reaches: on GPUs what is published for video transformers (30 to 38 %),
# on CPUs what the tiny preset reached of a large matrix product.
EFFICIENCY = {"cuda": 0.35, "cpu": 0.3}


@dataclass(frozen=True)
class StagePlan:
    """Figures of one stage."""

    name: str
    steps: int
    trained: int
    total: int
    groups: dict[str, int]
    """Module group -> parameters of it that train."""
    rows: list[int]
    buckets: dict[tuple[int, int, int], int]
    """Latent frames, height and width -> clips of that shape."""
    costs: Costs
    """Of one sample, at the mixture's largest shape."""
    flops: float
    """Of one step, over all workers."""
    seconds: float
    memory: float
    """Bytes a worker."""
    choices: dict[str, float]
    """The same for each precision and kind of recomputation."""


def make_plan(manifest: TrainManifest) -> list[StagePlan]:
    """Plan all stages. ValueError for whatever would stop the run: manifest, model or latents."""
    check(manifest)
    transformer = empty_model(manifest.model)
    device = torch.device("cuda" if use_gpu(manifest) else "cpu")
    workers = max(1, manifest.workers)
    rate = speed(device) * (workers if device.type == "cuda" else 1)
    plans = []
    for stage in manifest.stages:
        attach(transformer, stage, manifest.seed)
        plans.append(plan_stage(manifest, stage, transformer, rate))
    return plans


def use_gpu(manifest: TrainManifest) -> bool:
    return torch.cuda.is_available() if manifest.gpus is None else manifest.gpus


def empty_model(folder: str | Path) -> Any:
    """The transformer without weights: its parameters take no memory."""
    from layerflow.transformer import LayerFlowTransformer3DModel

    path = Path(folder) / "transformer"
    if not (path / "config.json").is_file():
        raise ValueError(f"{folder} is no model directory (no transformer/config.json)")
    config = LayerFlowTransformer3DModel.load_config(path)
    with torch.device("meta"):
        return LayerFlowTransformer3DModel.from_config(config)


def plan_stage(manifest: TrainManifest, stage: Stage, transformer: Any, rate: float) -> StagePlan:
    """Figures of one stage; `rate` is the FLOP/s that all workers reach together."""
    names = trainable_names(transformer, stage)
    sizes = {name: p.numel() for name, p in transformer.named_parameters()}
    parts = open_parts(manifest, stage)
    found = buckets(parts)
    batch = stage.batch or manifest.batch
    workers = max(1, manifest.workers)
    accumulate = manifest.passes(stage, workers)
    channels = transformer.config.in_channels
    by_shape = {
        (f, h, w): step_costs(transformer, (4, f, channels, h, w), set(names)) for f, h, w in found
    }
    weights = torch.tensor([component.weight for component in stage.mixture])
    means = [
        sum(by_shape[shape].total for shape in part.shapes) / len(part.shapes) for part in parts
    ]
    flops = batch * float((torch.tensor(means) * weights).sum() / weights.sum())
    largest = max(by_shape.values(), key=lambda costs: costs.tokens)
    trained = sum(sizes[name] for name in names)

    def memory(said: TrainManifest) -> float:
        return memory_bytes(
            said,
            transformer.config,
            block_parts(transformer, names),
            total=sum(sizes.values()),
            trained=trained,
            average=stage.ema is not None,
            tokens=largest.tokens * batch // (workers * accumulate),
            shards=workers if stage.parallel == "fsdp" else 1,
        )

    groups: dict[str, int] = {}
    for name in names:
        group = ".".join(name.split(".")[:2]) if name.startswith("transformer_blocks") else name
        groups[group] = groups.get(group, 0) + sizes[name]
    return StagePlan(
        name=stage.name,
        steps=stage.steps,
        trained=trained,
        total=sum(sizes.values()),
        groups=groups,
        rows=[len(part.rows) for part in parts],
        buckets=found,
        costs=largest,
        flops=flops,
        seconds=stage.steps * flops / rate,
        memory=memory(manifest),
        choices={
            f"{precision} {kind}": memory(
                manifest.model_copy(update={"precision": precision, "checkpointing": kind})
            )
            for precision in ("fp32", "bf16")
            for kind in ("none", "selective", "full")
        },
    )


def speed(device: torch.device) -> float:
    """FLOP/s to expect of training on a device: a share of its peak, measured if not known."""
    peak = device_peak(device)
    if peak is None:
        side = 512
        left, right = torch.ones(side, side, device=device), torch.ones(side, side, device=device)
        best = 1e9
        for _ in range(5):
            start = time.perf_counter()
            float((left @ right)[0, 0])  # reading it waits for the device
            best = min(best, time.perf_counter() - start)
        peak = 2 * side**3 / best
    return peak * EFFICIENCY[device.type]


def times(manifest: TrainManifest, plan: StagePlan) -> str:
    """How long a stage takes here; where that is a CPU, also on as many H100 as workers."""
    here = duration(plan.seconds)
    if use_gpu(manifest):
        return here
    workers = max(1, manifest.workers)
    there = plan.steps * plan.flops / (workers * PEAKS["H100"] * EFFICIENCY["cuda"])
    return f"{here} on this CPU, {duration(there)} on {workers} H100"


def duration(seconds: float) -> str:
    """Seconds in the unit in which people would say it."""
    for size, unit in ((86400.0, "days"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.1f} s"


def free_memory(device: torch.device) -> float:
    """Bytes that are free on the device now."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info()[0])
    return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def lines(manifest: TrainManifest, plans: list[StagePlan]) -> list[str]:
    """The plan for people."""
    out = [f"model {manifest.model}: {plans[0].total / 1e6:.2f} M parameters with adapters"]
    for plan, stage in zip(plans, manifest.stages, strict=True):
        batch = stage.batch or manifest.batch
        groups = sorted(plan.groups.items(), key=lambda item: -item[1])
        shown = ", ".join(f"{name} {count / 1e3:.1f} k" for name, count in groups[:6])
        more = f", and {len(groups) - 6} more" if len(groups) > 6 else ""
        out += [
            f"{plan.name}: {plan.steps} steps of {batch} clips",
            f"  trains {plan.trained / 1e6:.3f} M parameters: {shown}{more}",
            f"  rows {' + '.join(map(str, plan.rows))}; "
            f"latent shapes (f x h x w) {buckets_text(plan.buckets)}",
            f"  {plan.costs.tokens} tokens a clip at most; {plan.flops / 1e12:.4g} TFLOP a step",
            f"  about {plan.memory / 2**30:.2f} GiB a worker; {times(manifest, plan)} (estimates)",
            "  GiB by choice: "
            + ", ".join(f"{name} {size / 2**30:.2f}" for name, size in plan.choices.items()),
        ]
    free = free_memory(torch.device("cuda" if use_gpu(manifest) else "cpu"))
    most = max(plan.memory for plan in plans)
    out.append(f"free now: {free / 2**30:.1f} GiB a device")
    if most > free:
        out.append(
            f"this will not fit: {most / 2**30:.1f} GiB are needed; set checkpointing, "
            "accumulate more, or choose parallel: fsdp"
        )
    return out
