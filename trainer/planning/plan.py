"""What a run will train, compute and need, before anything is trained."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from layerflow.model.base import Costs, base_of, block_parts
from manifests.train import TrainManifest
from manifests.train_stage import Stage
from trainer.data import Shape, bucket_name, buckets, buckets_text, open_parts
from trainer.distributed.placement import Placement
from trainer.held_out import held_out
from trainer.memory.hold import held_bytes
from trainer.optimizer import moment_bytes
from trainer.planning.budget import sample_costs, sample_inputs, step_sizes, turns
from trainer.planning.check import check, warnings
from trainer.planning.costs import PEAKS, forward_bytes, memory_bytes, peak_of
from trainer.planning.count import decoder_bytes, empty_model
from trainer.recipe.groups import stage_settings
from trainer.sampling import guidance_scale
from trainer.stages import attach, gate_of, trainable_names
from trainer.validation import judges_gate_0

# Of their peak, what GPUs reach in training, recomputation included: published for video
# transformers are 30 to 38 %.
EFFICIENCY = 0.35


SMALLEST: dict[str, Any] = {
    "precision": "bf16",
    "checkpointing": "full",
    "quantize": None,
    "offload": [],
}
SAVINGS: dict[str, dict[str, Any]] = {
    "offload activations": {"offload": ["activations"]},
    "quantize int8": {"quantize": "int8"},
    "quantize nf4": {"quantize": "nf4"},
    "offload weights": {"offload": ["weights"]},
    "all with nf4": {"offload": ["activations", "weights"], "quantize": "nf4"},
}
"""What saves memory beyond `SMALLEST`, by changes of the manifest."""


@dataclass(frozen=True)
class Hardware:
    """What the run would train on. name: of the GPU, as far as it is known. rate: FLOP/s that all
    workers reach together, or None. why: what is not known of it. free: bytes for a worker that
    are free now, or None where it is not this machine's. spare: whether sampling has a GPU, or
    under Ray on CPUs a process, of its own."""

    gpus: bool
    name: str | None
    rate: float | None
    why: str
    free: float | None
    spare: bool


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
    buckets: dict[Shape, int]
    """Latent frames, height, width and layers -> such clips."""
    counts: dict[Shape, int]
    """Of each bucket the samples of a step, where the stage has a token budget."""
    tokens: dict[Shape, int]
    """Of each bucket those of one sample."""
    turns: dict[Shape, float]
    """Of each bucket the share of steps that have it (where there is no budget: of draws)."""
    costs: Costs
    """Of one sample, at the mixture's largest shape."""
    flops: float
    """Of one step, over all workers, recomputation included."""
    seconds: float | None
    """None where the device's speed is not known."""
    memory: float
    """Bytes a worker while it trains."""
    choices: dict[str, float]
    """The same for each precision and kind of recomputation."""
    savings: dict[str, float]
    """The same in bf16 with full recomputation and what else saves memory; none with FSDP."""
    validation: float | None
    """Bytes a worker in a validation; None without one."""
    sampling: float | None
    """Bytes of the process that samples at a validation; None where nothing is sampled."""

    @property
    def most(self) -> float:
        return max(self.memory, self.validation or 0.0, self.sampling or 0.0)


def make_plan(manifest: TrainManifest, placement: Placement | None = None) -> list[StagePlan]:
    """Plan all stages. placement: where a cluster would put the workers; None: this machine.

    ValueError for whatever would stop the run: manifest, model or latents.
    """
    check(manifest)
    transformer = empty_model(manifest.model)
    hardware = find_hardware(manifest, placement)
    plans = []
    for stage in manifest.stages:
        attach(transformer, stage, manifest.seed)
        plans.append(plan_stage(manifest, stage, transformer, hardware))
    return plans


def find_hardware(manifest: TrainManifest, placement: Placement | None = None) -> Hardware:
    """What the run would train on, and how fast that is, where it is known.

    A plan may be made on a machine without the GPUs that it is for.
    """
    there, workers = torch.cuda.is_available(), max(1, manifest.workers)
    if placement is not None:
        gpus, name, free = placement.gpus, placement.accelerator, None
        spare = placement.spare or not gpus
    else:
        gpus = there if manifest.wants_gpus is None else manifest.wants_gpus
        name = manifest.accelerator_type
        if gpus and there and name is None:
            name = torch.cuda.get_device_name()
        spare = workers > 1 and (not gpus or torch.cuda.device_count() > workers)
        here = torch.device("cuda" if gpus else "cpu")
        free = free_memory(here) if there or not gpus else None
        if free is not None and not gpus:
            free /= workers  # they are processes of one machine
    if not gpus:
        return Hardware(
            False, None, None, "how fast a CPU trains; its first steps show it", free, spare
        )
    peak = peak_of(name) if name else None
    why = "" if peak else f"no peak is known of {name or 'GPUs whose type nothing says'}"
    if manifest.precision != "bf16":
        peak, why = None, "known peaks of GPUs are those of bf16"
    rate = peak * EFFICIENCY * workers if peak else None
    return Hardware(True, name, rate, why, free, spare)


def plan_stage(
    manifest: TrainManifest, stage: Stage, transformer: Any, hardware: Hardware
) -> StagePlan:
    """Figures of one stage."""
    names = trainable_names(transformer, stage)
    optimizer = (stage.optimizer or manifest.optimizer).kind
    settings = stage_settings(transformer, names, stage, optimizer)
    sizes = {name: p.numel() for name, p in transformer.named_parameters()}
    parts = open_parts(manifest, stage)
    found = buckets(parts)
    workers = max(1, manifest.workers)
    counts = dict.fromkeys(found, stage.batch or manifest.batch)
    if stage.tokens is not None:
        counts = step_sizes(stage, parts, transformer)

    def costs(shape: Shape) -> Costs:
        return sample_costs(transformer, shape, set(names), manifest.checkpointing)

    by_shape = {shape: costs(shape) for shape in found}
    shares = turns(parts, [component.weight for component in stage.mixture], counts)
    flops = sum(shares[s] * counts[s] * by_shape[s].executed for s in found)
    largest = max(by_shape.values(), key=lambda costs: costs.tokens)
    passing = {s: manifest.pass_size(stage, manifest.sharers, counts[s]) for s in found}
    fullest = max(found, key=lambda shape: by_shape[shape].tokens * passing[shape])
    most = -(-by_shape[fullest].tokens * passing[fullest] // manifest.context_parallel)
    trained, total = sum(sizes[name] for name in names), sum(sizes.values())
    matrices = sum(sizes[name] for name in names if settings[name].matrix)
    shards = min(workers, manifest.shard_over or workers) if stage.parallel == "fsdp" else 1
    left = manifest.stages_from(stage)

    def memory(said: TrainManifest, tokens: int) -> float:
        return memory_bytes(
            said,
            transformer,
            block_parts(transformer, names),
            weights=held_bytes(transformer, said, left),
            trained=trained,
            moments=moment_bytes(optimizer, trained, matrices),
            average=stage.ema is not None,
            tokens=tokens,
            inputs=passing[fullest] * sample_inputs(transformer, fullest) if tokens else 0.0,
            shards=shards,
        )

    groups: dict[str, int] = {}
    blocks = base_of(transformer).blocks
    for name in names:
        group = ".".join(name.split(".")[:2]) if name.startswith(f"{blocks}.") else name
        groups[group] = groups.get(group, 0) + sizes[name]
    validation, sampling = validation_bytes(
        manifest,
        stage,
        transformer,
        hardware,
        state=memory(manifest, 0),
        trained=trained,
        shards=shards,
    )
    return StagePlan(
        name=stage.name,
        steps=stage.steps,
        trained=trained,
        total=total,
        groups=groups,
        rows=[len(part.rows) for part in parts],
        buckets=found,
        counts=counts if stage.tokens is not None else {},
        tokens={shape: costs.tokens for shape, costs in by_shape.items()},
        turns=shares,
        costs=largest,
        flops=flops,
        seconds=stage.steps * flops / hardware.rate if hardware.rate else None,
        memory=memory(manifest, most),
        choices={
            f"{precision} {kind}": memory(
                manifest.model_copy(update={"precision": precision, "checkpointing": kind}),
                most,
            )
            for precision in ("fp32", "bf16")
            for kind in ("none", "selective", "full")
        },
        savings={
            name: memory(manifest.model_copy(update={**SMALLEST, **changes}), most)
            for name, changes in SAVINGS.items()
            if stage.parallel == "ddp"
        },
        validation=validation,
        sampling=sampling,
    )


def validation_bytes(
    manifest: TrainManifest,
    stage: Stage,
    transformer: Any,
    hardware: Hardware,
    *,
    state: float,
    trained: int,
    shards: int,
) -> tuple[float | None, float | None]:
    """Bytes of a worker in a validation, and of the process that samples; None where there is none.

    state: bytes of weights, gradients, moments and average.
    """
    found, config = held_out(manifest), transformer.config
    if found is None:
        return None, None
    options, part = found.options, found.parts[gate_of(stage)]
    if stage.ema is not None:  # what trains is kept while the average stands in for it
        state += 4 * trained / shards

    def tokens(shape: Shape) -> int:
        return sample_costs(transformer, shape, ()).tokens

    seen = [*part.shapes, *(found.parts[0].shapes if judges_gate_0(stage) else ())]
    count = min(manifest.pass_size(stage, manifest.sharers), len(options.timesteps))
    most = -(-count * max(tokens(shape) for shape in seen) // manifest.context_parallel)
    passing = forward_bytes(manifest, transformer, tokens=most, cast=trained)
    if not options.samples:
        return state + passing, None
    held = held_bytes(transformer, manifest, [])  # a network of its own
    largest = max(part.shapes[: options.samples], key=tokens)
    latents = (largest.frames, config.in_channels, largest.height, largest.width)
    weights, decoding = decoder_bytes(Path(manifest.model) / "vae", latents)
    most = tokens(largest) * (2 if guidance_scale(manifest) > 1 else 1)
    guided = forward_bytes(manifest, transformer, tokens=most, cast=held.singles)
    own = held.weights + weights + max(guided, decoding)
    return state + passing, own if hardware.spare else own + state


def times(manifest: TrainManifest, plan: StagePlan, hardware: Hardware) -> str:
    """How long a stage takes where that is known; for a CPU also on as many H100 as workers."""
    if plan.seconds is not None:
        return f"{duration(plan.seconds)} on {max(1, manifest.workers)} {hardware.name}"
    unknown = f"time unknown ({hardware.why})"
    if hardware.gpus:
        return unknown
    workers = max(1, manifest.workers)
    there = duration(plan.steps * plan.flops / (workers * PEAKS["H100"] * EFFICIENCY))
    return f"{unknown}; {there} on {workers} H100 in bf16"


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


def lines(
    manifest: TrainManifest, plans: list[StagePlan], placement: Placement | None = None
) -> list[str]:
    """The plan for people."""
    hardware = find_hardware(manifest, placement)
    out = [f"model {manifest.model}: {plans[0].total / 1e6:.2f} M parameters with adapters"]
    if placement is not None:
        out.append(placement.said)
    out += warnings(manifest)
    for plan, stage in zip(plans, manifest.stages, strict=True):
        many = f"{stage.tokens} tokens" if plan.counts else f"{stage.batch or manifest.batch} clips"
        groups = sorted(plan.groups.items(), key=lambda item: -item[1])
        shown = ", ".join(f"{name} {count / 1e3:.1f} k" for name, count in groups[:6])
        more = f", and {len(groups) - 6} more" if len(groups) > 6 else ""
        again = plan.costs.recomputed / plan.costs.executed
        out += [
            f"{plan.name}: {plan.steps} steps of {many}",
            f"  trains {plan.trained / 1e6:.3f} M parameters: {shown}{more}",
            f"  rows {' + '.join(map(str, plan.rows))}; "
            f"latent shapes (f x h x w) {buckets_text(plan.buckets)}",
            *budget_lines(plan, manifest.sharers),
            f"  {plan.costs.tokens} tokens a clip at most; {plan.flops / 1e12:.4g} TFLOP a step"
            + (f", {100 * again:.0f} % of it recomputation" if again else ""),
            f"  about {gib(plan.memory)} a worker; {times(manifest, plan, hardware)} (estimates)",
            "  GiB by choice: "
            + ", ".join(f"{name} {size / 2**30:.2f}" for name, size in plan.choices.items()),
        ]
        if plan.savings:
            out.append(
                "  GiB of bf16 full with: "
                + ", ".join(f"{name} {size / 2**30:.2f}" for name, size in plan.savings.items())
            )
        if plan.validation is not None:
            out.append(f"  validation: about {gib(plan.validation)} a worker")
        if plan.sampling is not None:
            where = "a process of its own" if hardware.spare else "the first worker, which waits"
            out.append(f"  sampling: about {gib(plan.sampling)} in {where}")
    most = max(plan.most for plan in plans)
    if hardware.free is None:
        out.append("free now: unknown, it is another machine's")
        return out
    out.append(f"free now: {gib(hardware.free)} a worker")
    if most > hardware.free:
        out.append(
            f"this will not fit: {gib(most)} are needed; set checkpointing, accumulate more, "
            "offload, quantize, choose parallel: fsdp, or, where it is sampling, "
            "validation.samples: 0"
        )
    return out


def budget_lines(plan: StagePlan, workers: int) -> list[str]:
    """Of a stage with a token budget: clips, tokens and share of the steps, bucket by bucket."""
    return [
        f"  {bucket_name(shape, plan.counts)}: {count} clips a step, {count * plan.tokens[shape]} "
        f"tokens, {100 * plan.turns[shape]:.1f} % of the steps"
        + (f"; {workers - count} of {workers} workers wait" if count < workers else "")
        for shape, count in plan.counts.items()
    ]


def gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"
