"""The train manifest: what `layerflow train MANIFEST` trains, on which latents, and how.

A manifest is one YAML file. Its smallest form::

    model: models/tiny                 # a folder made by `layerflow init`
    out: runs/tiny
    batch: 8                           # samples a step, over all workers
    latents: {video: data/video, stills: data/stills}
    stages:
      - name: base
        steps: 2000
        lr: 3.0e-3
        trains: full
        mixture: [{latents: video}]
        tasks: {generate: 0.5, decompose: 0.5}
      - name: motion
        steps: 200
        lr: 1.0e-2
        trains: {lora: motion, rank: 4}
        mixture: [{latents: video, freeze: true, motion_gate: 1}]
      - name: content
        steps: 150
        lr: 8.0e-3
        trains: {lora: content, rank: 16}
        mixture: [{latents: stills, motion_gate: 1, weight: 0.6}, {latents: video, weight: 0.4}]
        tasks: {generate: 0.5, decompose: 0.5}

Relative paths are relative to the folder in which the command runs, like the command's options.
Every field below is checked before anything is loaded; an unknown key is an error.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from layerflow.model.layers import EVERY, given_layers
from manifests import common
from manifests.common import Strict, check
from manifests.train_stage import Dropout, Kind, Lora, Optimizer, Stage

Attention = Literal["auto", "flash", "flash3", "flash4", "efficient", "cudnn", "math"]


class Validation(Strict):
    """Loss on held-out clips at fixed timesteps and noise, so that runs can be compared."""

    latents: str
    every: int = Field(200, ge=1)
    """Steps between two validations; one also runs at the end of each stage."""
    clips: int = Field(32, ge=1)
    timesteps: list[int] = Field([99, 299, 499, 699, 899])
    tasks: list[str] = Field(["generate", "decompose"])
    kinds: list[Kind] = Field([])
    frozen: str | None = None
    """Held-out clips that stand still, encoded with `--freeze`, for stages that train the motion
    adapter. Left out: those of `latents`, each with one of its latent frames repeated."""
    samples: int = Field(0, ge=0)
    """Clips to sample at each validation, of the first `clips`, for each of `tasks`: files and
    layer metrics in `OUT/samples`, pictures in TensorBoard. Under Ray in a task of its own."""
    sample_steps: int = Field(16, ge=1)
    guidance: float | None = Field(None, ge=0)
    """Guidance scale of the samples. Left out: the model's own, or 6."""
    keep_best: bool = False
    """Keep the pipeline of each stage's lowest held-out loss in `OUT/best/STAGE`."""

    @field_validator("tasks")
    @classmethod
    def _tasks(cls, value: list[str]) -> list[str]:
        for name in value:
            given_layers(name, EVERY.layers)
        return value

    @field_validator("timesteps")
    @classmethod
    def _timesteps(cls, value: list[int]) -> list[int]:
        if not value or not all(0 <= step < 1000 for step in value):
            raise ValueError("timesteps must be one or more numbers in 0..999")
        return value


class Profile(Strict):
    """torch's profiler over some steps; nothing else of the run changes."""

    steps: tuple[int, int]
    """First and last step of the run to record, from 1, both included."""

    @model_validator(mode="after")
    def _in_order(self) -> Profile:
        if not 1 <= self.steps[0] <= self.steps[1]:
            raise ValueError(f"profile.steps must be two steps from 1 on, not {self.steps}")
        return self


class TrainManifest(Strict):
    """A whole run: model, data, stages and everything they share."""

    model: str
    """Folder of the pipeline to start from (`layerflow init`), or its URL in an object store."""
    out: str = "runs/train"
    """Folder of the run, which all workers see; or a URL (`s3://bucket/run`), where everything of
    it is copied in the background and from which alone it goes on, on any machine."""
    seed: int = Field(0, ge=0, lt=2**63)
    batch: int = Field(8, ge=1)
    """Samples a step over all workers and accumulation steps."""
    accumulate: int = Field(1, ge=1)
    """Forward passes that a worker splits its share of the batch into."""
    micro_batch: int | None = Field(None, ge=1)
    """Samples of one forward pass, instead of `accumulate`: the batch is then split in the same
    way on any number of workers. With two passes a step and equal `threads`, one worker and two
    make the same sums, so their loss curves are equal to the last bit."""
    workers: int = Field(1, ge=0)
    """1 (or 0) trains in the calling process; more start that many through Ray Train."""
    min_workers: int | None = Field(None, ge=1)
    """Through Ray: when a node is lost, go on with as few workers as this, and grow back to
    `workers` when there are nodes again. The global batch stays what it is."""
    shard_over: int | None = Field(None, ge=1)
    """In stages with `parallel: fsdp`: how many workers (of neighbouring ranks, such as a node's)
    hold the network between them; each such group holds a copy (HSDP). Left out: all workers."""
    reshard_after_forward: bool = True
    """In stages with `parallel: fsdp`: drop a block's gathered weights after its forward pass, and
    gather them again for the backward pass. `false` gathers once a step, and holds them all."""
    reduce: Literal["flat", "overlapped"] = "flat"
    """When gradients are summed over the workers: in one message after the backward pass, or piece
    by piece while it runs. With more than two workers the latter's sums differ in their last bits
    from those of other numbers of workers. Stages with `parallel: fsdp` always do the latter."""
    collective_minutes: int | None = Field(None, ge=1)
    """How long a worker waits for the others before the run fails. Left out: as torch has it."""
    context_parallel: int = Field(1, ge=1)
    """Workers (of neighbouring ranks) that compute each sample together, a part of its tokens
    each: for sequences that one device cannot hold. It divides the number of workers."""
    gpus: bool | None = None
    """Train on GPUs, one a worker. Left out: when this process, or through Ray the cluster, has
    any. `true` is refused where there is none; on a cluster with too few it waits for more."""
    wait_for_nodes: bool = False
    """Through Ray: start also when no node can hold a worker yet, and wait: for clusters whose
    autoscaler makes the nodes when they are asked for. GPUs need `gpus: true` or a type then."""
    resources_per_worker: dict[str, float] = Field({})
    """Through Ray: what a worker reserves besides its GPU, as Ray names it: `CPU` (1 unless said),
    `memory` in bytes, or a resource of the cluster's own."""
    accelerator_type: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")
    """Train on GPUs; through Ray only on nodes with this one, by Ray's name: `H100`, `A100`, ..."""
    labels: dict[str, str] = Field({})
    """Through Ray: only nodes that carry these labels."""
    max_failures: int = Field(3, ge=-1)
    """Through Ray: how often the workers start again after one has died; -1: without end."""
    threads: int | None = Field(None, ge=1)
    """CPU threads a worker. Left out: the machine's cores divided by the workers on it."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 runs the network under autocast; weights that train stay fp32, frozen matrices of the
    blocks are held in bf16, to which autocast rounds them anyway."""
    quantize: Literal["int8", "nf4"] | None = Field(None, exclude_if=lambda kind: kind is None)
    """Hold the frozen matrices of the blocks in 8 or 4 bits. Exports have them as they were."""
    offload: list[Literal["activations", "weights"]] = Field([], exclude_if=lambda what: not what)
    """What lies in CPU memory until a block needs it: `activations`, what `checkpointing: full`
    keeps of each block; `weights`, frozen matrices, one block ahead. Changes no digit."""
    checkpointing: Literal["none", "selective", "full"] = "none"
    """`full` recomputes each block in the backward pass: less memory, about a third slower.
    `selective` keeps the results of matrix products and attention, and recomputes the rest."""
    attention: Attention = "auto"
    """Which of torch's attention kernels to use; `auto` leaves it to torch. `flash3` and `flash4`
    are those of the installed FlashAttention packages. One that cannot run here is not used, and
    the log says so."""
    compile: bool = False
    """torch.compile, block by block."""
    prefetch: int | None = Field(None, ge=0)
    """Batches prepared ahead in a thread; 0 prepares them in line."""
    optimizer: Optimizer = Optimizer.model_validate({})
    dropout: Dropout = Dropout.model_validate({})
    latents: dict[str, str] = Field({})
    """Name -> folder, for use in the mixtures."""
    stages: list[Stage] = Field(min_length=1)
    validation: Validation | None = None
    hooks: dict[str, dict[str, Any]] = Field({}, exclude_if=lambda hooks: not hooks)
    """Code that runs before and after each step: name of a hook -> its options; see
    `trainer/recipe/hooks.py`."""
    profile: Profile | None = Field(None, exclude_if=lambda profile: profile is None)
    log_every: int = Field(10, ge=1)
    save_every: int = Field(500, ge=1)
    """Steps between checkpoints; one is also written at the end of each stage and on SIGTERM."""
    save_minutes: float | None = Field(None, gt=0)
    """Write a checkpoint also when so many minutes have gone since the last one."""
    async_save: bool = Field(False, exclude_if=lambda wanted: not wanted)
    """Write checkpoints behind the steps, which wait only while the state is copied to CPU memory:
    as much of it as a checkpoint is large. A kill during the writing leaves the one before."""
    max_skips: int = Field(20, ge=1)
    """Steps in a row that may be skipped because their gradient is not finite; then, or when it
    was every step of a stage, the run ends with an error and without an export."""
    keep_last: int = Field(2, ge=1)
    upload: str | None = None
    """Folder or URL (`s3://bucket/run`, through fsspec) to which every checkpoint, finished stage
    and export is copied in the background, and from which a run goes on where that is further than
    `out`, for instance on another machine."""
    keep_exports: bool = False
    """Keep an export after every stage (`OUT/stages/NAME/export`), not only the last one's."""
    tensorboard: bool = True
    wandb: str | None = None
    """Project name; W&B is imported only when this is set."""
    mlflow: str | None = None
    """Experiment; MLflow is imported only when this is set, and writes to `MLFLOW_TRACKING_URI`."""

    @model_validator(mode="after")
    def _whole(self) -> TrainManifest:
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ValueError(f"stages: names must differ, got {names}")
        if self.min_workers is not None and self.min_workers > max(1, self.workers):
            raise ValueError(f"min_workers is {self.min_workers}, workers only {self.workers}")
        self._check_places()
        if self.validation is None and any(stage.patience for stage in self.stages):
            raise ValueError("patience is with the held-out loss: it needs a `validation`")
        for stage in self.stages:
            self.passes(stage, 1)
        for stage in self.stages:
            kind = (stage.optimizer or self.optimizer).kind
            if stage.parallel == "fsdp" and kind != "adamw":
                raise ValueError(f"stage {stage.name!r}: fsdp trains with adamw, not with {kind}")
            plus = isinstance(stage.trains, Lora) and stage.trains.plus != 1
            if kind == "prodigy" and (plus or any(g.rate != 1 for g in stage.groups.values())):
                raise ValueError(
                    f"stage {stage.name!r}: prodigy has one rate for everything: no `rate` of "
                    "groups, no `plus`"
                )
        self._check_memory()
        if any(stage.parallel == "fsdp" for stage in self.stages):
            if self.min_workers is not None:
                raise ValueError("min_workers: an fsdp stage needs all of its workers")
            if self.workers > 1 and self.workers % (self.shard_over or 1):
                raise ValueError(f"shard_over: {self.shard_over} does not divide the workers")
        if self.context_parallel > 1:
            self._check_context()
        return self

    def _check_context(self) -> None:
        if self.workers > 1 and self.workers % self.context_parallel:
            raise ValueError(
                f"context_parallel: {self.context_parallel} does not divide the workers"
            )
        if self.compile or self.min_workers is not None:
            raise ValueError("context_parallel goes with neither compile nor min_workers")

    def _check_memory(self) -> None:
        if "activations" in self.offload and self.checkpointing != "full":
            raise ValueError("offload: activations needs checkpointing: full")
        if "weights" in self.offload:
            if self.checkpointing == "none":
                raise ValueError("offload: weights needs checkpointing: full or selective")
            if self.compile:
                raise ValueError("offload: weights and compile do not go together")
        if any(stage.parallel == "fsdp" for stage in self.stages):
            if self.quantize is not None:
                raise ValueError("quantize: not while a stage has parallel: fsdp")
            if self.offload:
                raise ValueError("offload: not while a stage has parallel: fsdp")

    def _check_places(self) -> None:
        for name, amount in self.resources_per_worker.items():
            if name in ("GPU", "TPU"):
                raise ValueError(f"resources_per_worker: {name} is not set here; see `gpus`")
            if not amount > 0:
                raise ValueError(f"resources_per_worker.{name} must be above 0, not {amount:g}")
        if self.accelerator_type is not None and self.gpus is False:
            raise ValueError("accelerator_type asks for a GPU, and gpus is false")

    def passes(self, stage: Stage, workers: int) -> int:
        """Forward passes of one worker in a step. ValueError when the batch does not divide.

        With `min_workers`, fewer workers than `workers` make more passes of the size that all
        of them would make; then the batch need not divide. Nor need that of a stage with `tokens`.
        """
        if stage.tokens is not None:
            return self._token_passes(stage, workers)
        batch, size = stage.batch or self.batch, self.micro_batch
        if self.min_workers is not None and workers < self.workers:
            whole = batch // (self.workers * self.passes(stage, self.workers))
            return -(-batch // (workers * whole))
        if size is not None:
            count, rest = divmod(batch, workers * size)
            what = f"micro-batches of {size}"
        else:
            count, rest = stage.accumulate or self.accumulate, 0
            rest = batch % (workers * count)
            what = f"{count} accumulation steps"
        if rest or not count:
            raise ValueError(
                f"stage {stage.name!r}: a batch of {batch} does not divide among {workers} "
                f"workers x {what}; change one of them"
            )
        return count

    def _token_passes(self, stage: Stage, workers: int) -> int:
        if self.micro_batch is not None:
            raise ValueError(
                f"stage {stage.name!r}: micro_batch counts samples, which with tokens differ from "
                "step to step; use accumulate"
            )
        count = stage.accumulate or self.accumulate
        if self.min_workers is not None and workers < self.workers:
            return -(-self.workers * count // workers)
        return count

    @property
    def sharers(self) -> int:
        """How many parts the samples of a step are dealt into: workers, or groups of them that
        share sequences."""
        return max(1, max(1, self.workers) // self.context_parallel)

    @property
    def wants_gpus(self) -> bool | None:
        """Whether the run asks for GPUs; None: it takes what there is."""
        return True if self.accelerator_type is not None else self.gpus

    def pass_size(self, stage: Stage, workers: int, samples: int | None = None) -> int:
        """Samples of one worker's forward pass in a step, at most. samples: of the step; None: the
        stage's batch, or with `tokens` as few as there may be."""
        batch = samples or (1 if stage.tokens else stage.batch or self.batch)
        return -(-batch // (workers * self.passes(stage, workers)))

    def stage(self, name: str) -> Stage:
        """The stage of that name; ValueError that lists the names if there is none."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise ValueError(f"no stage {name!r}; the manifest has {[s.name for s in self.stages]}")

    def steps_before(self, stage: Stage) -> int:
        """Of all stages before that one."""
        return sum(each.steps for each in self.stages) - sum(
            each.steps for each in self.stages_from(stage)
        )

    def stages_from(self, stage: Stage) -> list[Stage]:
        """That stage and those after it."""
        return self.stages[[each.name for each in self.stages].index(stage.name) :]

    def dropped_tasks(self) -> dict[str, list[str]]:
        """Stage -> tasks that it leaves out although a stage before it trained them, so that it may
        unlearn them. Not of stages that train the motion adapter, which does nothing at gate 0."""
        learnt: set[str] = set()
        dropped = {}
        for stage in self.stages:
            tasks = {name for name, weight in stage.tasks.items() if weight > 0}
            still = isinstance(stage.trains, Lora) and stage.trains.lora == "motion"
            if not still and (lost := sorted(learnt - tasks)):
                dropped[stage.name] = lost
            learnt |= tasks
        return dropped

    def folder(self, latents: str) -> str:
        """The folder behind a component's `latents` (a name of `self.latents`, or a path)."""
        return self.latents.get(latents, latents)


FREE_FIELDS = (
    *("out", "upload", "log_every", "save_every", "save_minutes", "async_save"),
    *("keep_last", "keep_exports"),
    *("workers", "min_workers", "shard_over", "context_parallel"),
    *("reshard_after_forward", "collective_minutes", "reduce"),
    *("gpus", "wait_for_nodes", "resources_per_worker"),
    *("accelerator_type", "labels", "max_failures", "threads", "prefetch"),
    *("compile", "checkpointing", "offload", "attention", "max_skips", "profile"),
    *("tensorboard", "wandb", "mlflow", "validation"),
)
"""What may change between a run and its continuation: none of it changes the result."""


def parse(document: Any) -> TrainManifest:
    """Check a decoded YAML document. ValueError with one line per mistake, each with its field."""
    return check(document, TrainManifest, "manifest")


def load(path: str | Path, **overrides: Any) -> TrainManifest:
    """Read and check a manifest file; `overrides` that are not None replace its fields."""
    return common.load(path, TrainManifest, **overrides)
