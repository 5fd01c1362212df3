"""The stages of a train manifest: what each trains, on which mixture of latents, for how long."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, field_validator, model_validator

from layerflow.model.layers import EVERY, given_layers
from manifests.common import Strict

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


class Blocks(Strict):
    """Trains whole transformer blocks, and the parameters whose names match `also`."""

    blocks: BlockRule
    also: list[str] = Field([])
    """Shell patterns of further parameter names, e.g. `layer_embedding*`."""


class Lora(Strict):
    """Trains one LoRA adapter; everything else, other adapters included, is frozen."""

    lora: str = Field(pattern=_NAME)
    """`motion` (multiplied by each sample's motion gate) or `content` (always on)."""
    rank: int = Field(8, ge=1, le=4096)
    alpha: float | None = Field(None, gt=0)
    """Scale of the adapter is alpha / rank. Left out: alpha = rank, that is scale 1."""
    rslora: bool = Field(False, exclude_if=lambda said: not said)
    """The scale is alpha / sqrt(rank) instead (rsLoRA, Kalajdzievski 2023), so that the update does
    not shrink as the rank grows; `alpha` must be given. In the saved adapter this is an ordinary
    alpha of alpha * sqrt(rank), which every loader knows."""
    plus: float = Field(1.0, gt=0, exclude_if=lambda said: said == 1.0)
    """The matrices B, which begin at zero, learn at so many times the rate of the matrices A
    (LoRA+, Hayou et al. 2024, who take 16)."""
    targets: list[str] | None = Field(None, min_length=1, exclude_if=lambda said: said is None)
    """Linear layers that it adapts, by the ends of their names. Left out: the base's usual ones
    (`to_q`, `to_k`, `to_v`, `to_out.0`)."""
    blocks: BlockRule = "all"
    also: list[str] = Field([])

    @model_validator(mode="after")
    def _scaled(self) -> Lora:
        if self.rslora and self.alpha is None:
            raise ValueError("rslora needs alpha: the scale is alpha / sqrt(rank)")
        return self

    @property
    def file_alpha(self) -> float:
        """`alpha` as PEFT and adapter files mean it: the scale is this / rank."""
        alpha = self.alpha if self.alpha is not None else float(self.rank)
        return alpha * math.sqrt(self.rank) if self.rslora else alpha


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


class Component(Strict):
    """One part of a stage's mixture: rows of one latents folder, drawn with one weight."""

    latents: str
    """A name of the manifest's `latents`, or a folder."""
    weight: float = Field(1.0, gt=0)
    """Share of the draws, relative to the other components of the stage."""
    kinds: list[Kind] = Field([])
    """Only rows of these kinds; empty: all."""
    alpha_kinds: list[Literal["binary", "soft"]] = Field([])
    """Only rows with such a matte; empty: all."""
    foregrounds: list[int] = Field([])
    """Only rows with so many foregrounds; empty: all. A model takes at most as many as it has."""
    motion_gate: Literal[0, 1] = 0
    """1 for static clips (stills, frozen video), 0 for moving ones."""
    freeze: bool = False
    """Show one random latent frame of the clip, repeated: what the motion stage trains on. Where
    the autoencoder compresses time, encode with `--freeze` instead: a true still differs."""
    frames: int | None = Field(None, ge=1)
    """Latent frames to which a still (or a frozen frame) is repeated. Left out: a frozen clip
    keeps its length, and a still gets the most that any row of the stage's mixture has (in a
    stage of stills alone: 1).
    1 feeds stills as one-frame clips, which is many times cheaper."""


class Schedule(Strict):
    """Learning rate over a stage: linear warm-up to `lr`, then decay to `final` * `lr`."""

    warmup: int = Field(0, ge=0)
    """Steps."""
    decay: Literal["constant", "linear", "cosine", "power"] = "constant"
    power: float = Field(1.0, gt=0)
    """Exponent of `decay: power`: (1 - progress) ** power."""
    final: float = Field(0.0, ge=0, le=1)


class Group(Strict):
    """Parameters of a stage that train at a rate or a decay of their own."""

    rate: float = Field(1.0, gt=0)
    """Times the stage's learning rate, at every step."""
    decay: float | None = Field(None, ge=0)
    """Instead of the optimizer's `weight_decay`. In `blocks` and `lora` it shrinks what `decay_on`
    says; a group that names parameters themselves it shrinks whole."""


class Optimizer(Strict):
    """AdamW, or another by name."""

    kind: Literal["adamw", "adamw8bit", "muon", "prodigy"] = "adamw"
    """`adamw8bit` keeps both moments in 8 bits (bitsandbytes, which must be installed). `muon` is
    torch's Muon for the matrices in the blocks, LoRA's too, at the rate of AdamW (its
    `match_rms_adamw`), and AdamW for everything else. `prodigy` finds the rate by itself
    (prodigyopt, which must be installed): `lr: 1` then, times the stage's schedule."""
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(1e-4, ge=0)
    decay_on: Literal["matrices", "all"] = "matrices"
    """What `weight_decay` shrinks: `matrices` leaves out norms, biases and the layer embedding, as
    is usual; `all` leaves out nothing (runs begun before there was a choice did that)."""
    clip: float = Field(1.0, gt=0)
    """Greatest norm of the gradient; larger ones are scaled down to it."""

    @field_validator("betas")
    @classmethod
    def _betas(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in value):
            raise ValueError("each beta must be in [0, 1)")
        return value


class Dropout(Strict):
    """Chances that prompts are replaced by zeros, for classifier-free guidance."""

    joint: float = Field(0.1, ge=0, le=1)
    """All prompts of the sample at once."""
    layer: float = Field(0.05, ge=0, le=1)
    """Each prompt by itself."""


class Timesteps(Strict):
    """At which times a stage trains, and what an error there weighs. Times stay stratified: a step
    has one in each of `batch` equal parts of the density."""

    density: Literal["uniform", "logit-normal"] | None = None
    """How times are drawn between clean and noise; a base's shift comes on top. Left out: as the
    model says (`uniform`, or what `layerflow init --density` said)."""
    tasks: list[str] | None = Field(None, min_length=1, exclude_if=lambda names: names is None)
    """The tasks whose times are drawn so; those of others as the model says. Left out: all."""
    mean: float = 0.0
    """Of the normal behind `logit-normal`; above 0 it draws more noise."""
    std: float = Field(1.0, gt=0)
    min_snr: float | None = Field(None, gt=0)
    """Min-SNR weighting with this gamma (its authors take 5): the error in clean latents counts
    min(SNR, gamma). Times without any signal then count nothing."""


class LossTerms(Strict):
    """Terms beside the plain loss, with their weights; formulas in `trainer/recipe/terms.py`."""

    alpha_gradient: float = Field(0.0, ge=0)
    """Neighbouring cells of a generated matte must differ as the true ones do."""
    recomposition: float = Field(0.0, ge=0)
    """The blended layer must be the foreground over the background, in pixels: only with the
    stand-in autoencoder, whose decoding is linear."""


class Patience(Strict):
    """When a stage ends before its last step: it hands on what it has then."""

    validations: int = Field(ge=1)
    """It ends when so many validations in a row, of the cadence of `validation.every`, brought the
    mean held-out loss no lower than it was."""
    least: float = Field(0.0, ge=0, lt=1)
    """Lower means by this share of it."""


class Stage(Strict):
    """One stage of the schedule. `None` means: as the manifest says for all stages."""

    name: str = Field(pattern=_NAME)
    steps: int = Field(ge=1)
    lr: float = Field(gt=0)
    trains: Trains
    mixture: list[Component] = Field(min_length=1)
    tasks: dict[str, float] = Field({"generate": 1.0})
    """Task -> weight. Tasks: generate, decompose, fg2bg, bg2fg, or given layers joined by +."""
    mask: Literal["known"] | None = Field(None, exclude_if=lambda mask: mask is None)
    """`known` leaves out of the loss what a clip does not know: background that nobody saw, colour
    that is a guess. Left out: everything counts."""
    patience: Patience | None = Field(None, exclude_if=lambda said: said is None)
    timesteps: Timesteps | None = Field(None, exclude_if=lambda said: said is None)
    loss: LossTerms | None = Field(None, exclude_if=lambda said: said is None)
    schedule: Schedule = Schedule.model_validate({})
    groups: dict[str, Group] = Field({}, exclude_if=lambda groups: not groups)
    """What trains at a rate or a decay of its own: `layer_embedding`, `lora`, `blocks` (their own
    weights), or a shell pattern of parameter names. No parameter may be in two groups."""
    ema: float | None = Field(None, ge=0, lt=1)
    """Decay of the moving average of the trained weights. When set, the average is what the
    stage hands on: it is exported, validated and trained further by the next stage."""
    ema_warmup: bool = True
    """The average begins at decay 0.1, and after n updates has (1 + n) / (10 + n), until that
    reaches `ema`: else the initial weights stay in it for some 1 / (1 - `ema`) steps (runs begun
    before there was a choice did that)."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """`fsdp` shards weights, gradients and moments over the workers: for whole networks that one
    device cannot hold."""
    batch: int | None = Field(None, ge=1)
    tokens: int | None = Field(None, ge=1)
    """Instead of `batch`: a step draws as many samples of one bucket (one shape, the same layers)
    as have so many tokens together, over all workers; another step draws another bucket."""
    accumulate: int | None = Field(None, ge=1)
    optimizer: Optimizer | None = None
    dropout: Dropout | None = None

    @field_validator("tasks")
    @classmethod
    def _tasks(cls, value: dict[str, float]) -> dict[str, float]:
        for name, weight in value.items():
            given_layers(name, EVERY.layers)
            if weight < 0:
                raise ValueError(f"task {name!r} has a negative weight")
        if not sum(value.values()) > 0:
            raise ValueError("at least one task needs a weight above 0")
        return value

    @model_validator(mode="after")
    def _one_size(self) -> Stage:
        if self.batch is not None and self.tokens is not None:
            raise ValueError("a stage has a batch or tokens, not both")
        return self

    @model_validator(mode="after")
    def _times_of_its_tasks(self) -> Stage:
        named = (self.timesteps and self.timesteps.tasks) or []
        if lost := [name for name in named if name not in self.tasks]:
            raise ValueError(f"timesteps: tasks: the stage has no task {lost[0]!r}")
        if named and self.timesteps and self.timesteps.density is None:
            raise ValueError("timesteps: tasks need the density that is theirs")
        return self


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
