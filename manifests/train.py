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
      - name: motion
        steps: 200
        lr: 1.0e-2
        trains: {lora: motion, rank: 4}
        mixture: [{latents: video, freeze: true, motion_gate: 1}]
      - name: content
        steps: 150
        lr: 8.0e-3
        trains: {lora: content, rank: 16}
        mixture: [{latents: stills, motion_gate: 1, weight: 0.9}, {latents: video, weight: 0.1}]

Relative paths are relative to the folder in which the command runs, like the command's options.
Every field below is checked before anything is loaded; an unknown key is an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

LAYERS = ("foreground", "alpha", "background", "blended")
TASKS: dict[str, tuple[str, ...]] = {
    "generate": (),
    "decompose": ("blended",),
    "fg2bg": ("foreground", "alpha"),
    "bg2fg": ("background",),
}
"""Task name -> the layers that are given. Other subsets are written `foreground+blended`."""

MAX_BYTES = 1 << 20  # a manifest is untrusted input; no honest one comes near this
_NAME = r"^[a-z0-9][a-z0-9_-]{0,63}$"

Kind = Literal["mined", "pasted", "image"]


def _check_rule(value: Any) -> Any:
    if isinstance(value, str) and re.fullmatch(r"all|every [1-9][0-9]{0,3}", value):
        return value
    if isinstance(value, list) and value and all(type(index) is int for index in value):
        return value
    raise ValueError("blocks are `all`, `every N`, or a list of indices")


BlockRule = Annotated[str | list[int], BeforeValidator(_check_rule)]
"""`all`; `every N` (the last block of each N: every 6 of 30 is 5, 11, 17, 23, 29); or indices."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Blocks(_Model):
    """Trains whole transformer blocks, and the parameters whose names match `also`."""

    blocks: BlockRule
    also: list[str] = []
    """Shell patterns of further parameter names, e.g. `layer_embedding*`."""


class Lora(_Model):
    """Trains one LoRA adapter; everything else, other adapters included, is frozen."""

    lora: str = Field(pattern=_NAME)
    """`motion` (multiplied by each sample's motion gate) or `content` (always on)."""
    rank: int = Field(8, ge=1, le=4096)
    alpha: float | None = Field(None, gt=0)
    """Scale of the adapter is alpha / rank. Left out: alpha = rank, that is scale 1."""
    targets: list[str] = ["to_q", "to_k", "to_v", "to_out.0"]
    blocks: BlockRule = "all"
    also: list[str] = []


def _trains_tag(value: Any) -> str:
    if isinstance(value, (Lora, Blocks)):
        return type(value).__name__.lower()
    if isinstance(value, Mapping):
        return "lora" if "lora" in value else "blocks"
    return "full"


Trains = Annotated[
    Annotated[Literal["full"], Tag("full")]
    | Annotated[Lora, Tag("lora")]
    | Annotated[Blocks, Tag("blocks")],
    Discriminator(_trains_tag),
]


class Component(_Model):
    """One part of a stage's mixture: rows of one latents folder, drawn with one weight."""

    latents: str
    """A name of the manifest's `latents`, or a folder."""
    weight: float = Field(1.0, gt=0)
    """Share of the draws, relative to the other components of the stage."""
    kinds: list[Kind] = []
    """Only rows of these kinds; empty: all."""
    alpha_kinds: list[Literal["binary", "soft"]] = []
    """Only rows with such a matte; empty: all."""
    motion_gate: Literal[0, 1] = 0
    """1 for static clips (stills, frozen video), 0 for moving ones."""
    freeze: bool = False
    """Show one random latent frame of the clip, repeated: what the motion stage trains on. Where
    the autoencoder compresses time, encode with `--freeze` instead: a true still differs."""
    frames: int | None = Field(None, ge=1)
    """Latent frames to which a still (or a frozen frame) is repeated. Left out: a frozen clip
    keeps its length, and a still gets the most that any row of the stage's mixture has.
    1 feeds stills as one-frame clips, which is many times cheaper."""


class Schedule(_Model):
    """Learning rate over a stage: linear warm-up to `lr`, then decay to `final` * `lr`."""

    warmup: int = Field(0, ge=0)
    """Steps."""
    decay: Literal["constant", "linear", "cosine", "power"] = "constant"
    power: float = Field(1.0, gt=0)
    """Exponent of `decay: power`: (1 - progress) ** power."""
    final: float = Field(0.0, ge=0, le=1)


class Optimizer(_Model):
    """AdamW."""

    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(1e-4, ge=0)
    clip: float = Field(1.0, gt=0)
    """Greatest norm of the gradient; larger ones are scaled down to it."""

    @field_validator("betas")
    @classmethod
    def _betas(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in value):
            raise ValueError("each beta must be in [0, 1)")
        return value


class Dropout(_Model):
    """Chances that prompts are replaced by zeros, for classifier-free guidance."""

    joint: float = Field(0.1, ge=0, le=1)
    """All prompts of the sample at once."""
    layer: float = Field(0.05, ge=0, le=1)
    """Each prompt by itself."""


class Stage(_Model):
    """One stage of the schedule. `None` means: as the manifest says for all stages."""

    name: str = Field(pattern=_NAME)
    steps: int = Field(ge=1)
    lr: float = Field(gt=0)
    trains: Trains
    mixture: list[Component] = Field(min_length=1)
    tasks: dict[str, float] = {"generate": 1.0}
    """Task -> weight. Tasks: generate, decompose, fg2bg, bg2fg, or given layers joined by +."""
    schedule: Schedule = Schedule.model_validate({})
    ema: float | None = Field(None, ge=0, lt=1)
    """Decay of the moving average of the trained weights. When set, the average is what the
    stage hands on: it is exported, validated and trained further by the next stage."""
    batch: int | None = Field(None, ge=1)
    accumulate: int | None = Field(None, ge=1)
    optimizer: Optimizer | None = None
    dropout: Dropout | None = None

    @field_validator("tasks")
    @classmethod
    def _tasks(cls, value: dict[str, float]) -> dict[str, float]:
        for name, weight in value.items():
            given_layers(name)
            if weight < 0:
                raise ValueError(f"task {name!r} has a negative weight")
        if not sum(value.values()) > 0:
            raise ValueError("at least one task needs a weight above 0")
        return value


class Validation(_Model):
    """Loss on held-out clips at fixed timesteps and noise, so that runs can be compared."""

    latents: str
    every: int = Field(200, ge=1)
    """Steps between two validations; one also runs at the end of each stage."""
    clips: int = Field(32, ge=1)
    timesteps: list[int] = [99, 299, 499, 699, 899]
    tasks: list[str] = ["generate", "decompose"]
    kinds: list[Kind] = []

    @field_validator("tasks")
    @classmethod
    def _tasks(cls, value: list[str]) -> list[str]:
        for name in value:
            given_layers(name)
        return value

    @field_validator("timesteps")
    @classmethod
    def _timesteps(cls, value: list[int]) -> list[int]:
        if not value or not all(0 <= step < 1000 for step in value):
            raise ValueError("timesteps must be one or more numbers in 0..999")
        return value


class TrainManifest(_Model):
    """A whole run: model, data, stages and everything they share."""

    model: str
    """Folder of the pipeline to start from (`layerflow init`)."""
    out: str = "runs/train"
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
    gpus: bool | None = None
    """Use GPUs. Left out: when there are any."""
    threads: int | None = Field(None, ge=1)
    """CPU threads a worker. Left out: the machine's cores divided by the workers on it."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 runs the network under autocast; weights that train stay fp32."""
    checkpointing: Literal["none", "full"] = "none"
    """`full` recomputes each block in the backward pass: less memory, about a third slower."""
    compile: bool = False
    """torch.compile, block by block."""
    prefetch: int = Field(2, ge=0)
    """Batches prepared ahead in a thread; 0 prepares them in line."""
    optimizer: Optimizer = Optimizer.model_validate({})
    dropout: Dropout = Dropout.model_validate({})
    latents: dict[str, str] = {}
    """Name -> folder, for use in the mixtures."""
    stages: list[Stage] = Field(min_length=1)
    validation: Validation | None = None
    log_every: int = Field(10, ge=1)
    save_every: int = Field(500, ge=1)
    """Steps between checkpoints; one is also written at the end of each stage and on SIGTERM."""
    keep_last: int = Field(2, ge=1)
    keep_exports: bool = False
    """Keep an export after every stage (`OUT/stages/NAME/export`), not only the last one's."""
    tensorboard: bool = True
    wandb: str | None = None
    """Project name; W&B is imported only when this is set."""

    @model_validator(mode="after")
    def _whole(self) -> TrainManifest:
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ValueError(f"stages: names must differ, got {names}")
        for stage in self.stages:
            self.passes(stage, 1)
        return self

    def passes(self, stage: Stage, workers: int) -> int:
        """Forward passes of one worker in a step. ValueError when the batch does not divide."""
        batch, size = stage.batch or self.batch, self.micro_batch
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

    def stage(self, name: str) -> Stage:
        """The stage of that name; ValueError that lists the names if there is none."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise ValueError(f"no stage {name!r}; the manifest has {[s.name for s in self.stages]}")

    def folder(self, latents: str) -> str:
        """The folder behind a component's `latents` (a name of `self.latents`, or a path)."""
        return self.latents.get(latents, latents)


FREE_FIELDS = (
    "out",
    "workers",
    "gpus",
    "threads",
    "prefetch",
    "log_every",
    "save_every",
    "keep_last",
    "keep_exports",
    "tensorboard",
    "wandb",
    "validation",
    "compile",
    "checkpointing",
)
"""What may change between a run and its continuation: none of it changes the result."""


def given_layers(task: str) -> tuple[str, ...]:
    """The layers that a task gives, in layer order. ValueError if the task is unknown."""
    if task in TASKS:
        return TASKS[task]
    layers = task.split("+")
    unknown = [layer for layer in layers if layer not in LAYERS]
    if unknown or len(set(layers)) != len(layers) or len(layers) == len(LAYERS):
        raise ValueError(
            f"unknown task {task!r}; use one of {', '.join(TASKS)}, or some (not all) of "
            f"{', '.join(LAYERS)} joined by '+'"
        )
    return tuple(layer for layer in LAYERS if layer in layers)


def block_indices(rule: BlockRule, num_blocks: int) -> list[int]:
    """The blocks that a rule names. ValueError if it names none, or one that does not exist."""
    if rule == "all":
        return list(range(num_blocks))
    if isinstance(rule, str):
        every = int(rule.split()[1])
        found = list(range(every - 1, num_blocks, every))
    else:
        found = sorted(set(rule))
    if not found or found[0] < 0 or found[-1] >= num_blocks:
        raise ValueError(f"blocks {rule!r}: the model has blocks 0 to {num_blocks - 1}")
    return found


def parse(document: Any, source: str = "manifest") -> TrainManifest:
    """Check a decoded YAML document. ValueError with one line per mistake, each with its field."""
    if not isinstance(document, Mapping):
        raise ValueError(f"{source}: expected a mapping of fields, got {type(document).__name__}")
    try:
        return TrainManifest.model_validate(document)
    except ValidationError as error:
        lines = [f"  {_where(e['loc'])}: {e['msg']}" for e in error.errors()]
        raise ValueError(f"{source}: the manifest is not valid\n" + "\n".join(lines)) from None


def load(path: str | Path, **overrides: Any) -> TrainManifest:
    """Read and check a manifest file; `overrides` that are not None replace its fields."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such manifest")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path}: larger than {MAX_BYTES} bytes; this is no train manifest")
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not YAML: {error}") from None
    if isinstance(document, dict):
        document |= {name: value for name, value in overrides.items() if value is not None}
    return parse(document, str(path))


def _where(location: Sequence[str | int]) -> str:
    """A field's path as people write it, without pydantic's names of a union's members."""
    parts = [
        part
        for index, part in enumerate(location)
        if not (index and location[index - 1] == "trains" and part in ("full", "lora", "blocks"))
        and part not in ("str", "list[int]")
    ]
    path = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in parts)
    return path.lstrip(".") or "(top)"
