"""What differs between base models, behind one protocol; everything else is written once.

A base is one folder of ``layerflow/model/`` (or of an installed package: entry points of the group
``layerflow.networks``) with one object, found by the class name of its transformer: ``base_of``.

What its classes must be, beside the protocol:

- The transformer is ``network.LayeredNetwork`` before diffusers' class, see there. Its forward is
  ``(hidden_states [B, F, C, h, w], encoder_hidden_states [B, P*L, D], timestep [B], given
  [B, layers], layout, motion_gate, attention_kwargs, return_dict)`` and returns that shape; F are
  the latent frames of all layers, one after the other. What its blocks need otherwise, it permutes
  inside.
- The pipeline is a ``pipeline.LayeredPipeline`` with diffusers' LoRA loader.
- Both are shipped as single files (``ship``): no imports of ours inside functions, and nothing of
  this module in them.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from layerflow.documents import read_json
from layerflow.plugins import NETWORKS

if TYPE_CHECKING:
    from torch import Tensor

    from layerflow.model.autoencoder import AutoencoderKind
    from layerflow.model.noise import NoiseProcess
    from layerflow.model.parallel.context import Context

Backward = Literal["untouched", "passed", "lora", "whole"]
"""What the backward pass does in a block: nothing, gradients of its input only, those and a
LoRA's, or those and all of its weights'."""


@dataclass(frozen=True)
class Costs:
    """FLOPs of one training step on one sample, and what they rest on."""

    tokens: int
    """Of video and text, by which activations are counted."""
    forward: float
    backward: float
    recomputed: float = 0.0
    """More in the backward pass, where blocks are recomputed."""

    @property
    def total(self) -> float:
        """The model's FLOPs, which MFU counts: without recomputation."""
        return self.forward + self.backward

    @property
    def executed(self) -> float:
        """All that the device computes."""
        return self.total + self.recomputed


@dataclass(frozen=True)
class ActivationBytes:
    """Bytes a token and channel of the width. Keys: precision (``fp32``, ``bf16``), and for
    ``passed``, ``lora`` and ``lora_work`` also the kind of recomputation (``none``, ``selective``,
    ``full``).

    passed: what a block keeps for the backward pass. whole: more where all its weights train, and
    nothing is recomputed. lora: more where a LoRA trains (its inputs, cast once a target; but
    nothing for ``full``). work: for what is computed at the moment. spared: less of it in a block
    that trains whole. outside: what embeddings and the last norms keep. forward: the most that a
    forward pass without gradients holds. lora_work: instead of work in a block with a LoRA: in
    the first, where nothing asks for the gradient of its input, and in the others. linear: weights
    of a block's linear layers, in squares of the width (autocast keeps bf16 copies of them).
    copies_last: whether a block that trains whole, and is recomputed, still has those copies when
    it holds the most. text: a row of prompts and channel, where these are no part of the sequence.
    """

    passed: Mapping[tuple[str, str], float]
    whole: Mapping[str, float]
    lora: Mapping[tuple[str, str], float]
    work: Mapping[str, float]
    outside: float
    forward: Mapping[str, float]
    lora_work: Mapping[tuple[str, str], tuple[float, float]] = field(default_factory=dict)
    linear: float = 12.0
    spared: Mapping[str, float] = field(default_factory=dict)
    copies_last: bool = True
    text: float = 0.0


class Base(Protocol):
    """One base model. config: of its transformer, as ``config.json`` has it (or its FrozenDict).

    name: short, such as ``cogvideox``. blocks: name of the list of repeated blocks in the
    transformer. after_blocks: prefixes of the parameters behind them. lora_targets: usual targets
    of adapters. schedulers: class names of diffusers that sample it. autoencoders: class name ->
    what it asks of clips, without the stand-in, which serves every base.
    """

    name: str
    blocks: str
    after_blocks: tuple[str, ...]
    lora_targets: tuple[str, ...]
    schedulers: tuple[str, ...]

    @property
    def autoencoders(self) -> Mapping[str, AutoencoderKind]: ...

    @property
    def transformer(self) -> Any:
        """The network's class (loaded when asked for)."""

    @property
    def pipeline(self) -> Any:
        """The pipeline's class (loaded when asked for)."""

    def load_scheduler(self, folder: Path) -> Any:
        """The scheduler in a model folder; ValueError for another kind (``scheduler_of``)."""

    def noise(self, scheduler: Any) -> NoiseProcess:
        """The process that a scheduler was made for."""

    def load_text(self, folder: Path) -> tuple[Any, Any]:
        """Tokenizer and text encoder of a model folder, on the CPU."""

    def encode_texts(
        self, tokenizer: Any, text_encoder: Any, texts: Sequence[str], num_tokens: int
    ) -> Tensor:
        """``[N, num_tokens, D]`` float32 of prefixed texts; zeros for an empty one. Longer texts
        are cut. ValueError without a tokenizer and a text encoder."""

    def text_shape(self, config: Mapping[str, Any]) -> tuple[int, int]:
        """Tokens of one prompt, and width of one token."""

    def width(self, config: Mapping[str, Any]) -> int:
        """Channels of a token in the blocks."""

    def patch(self, config: Mapping[str, Any]) -> int:
        """Latent pixels of a token's side."""

    def forward_flops(self, config: Mapping[str, Any], video: int, text: int) -> float:
        """FLOPs of the blocks on one sample of so many tokens, for ``layerflow info``."""

    def activation_bytes(self, config: Mapping[str, Any]) -> ActivationBytes:
        """What the network holds beside its weights, by the shape of its blocks."""

    def step_costs(
        self,
        transformer: Any,
        shape: tuple[int, ...],
        trained: Collection[str],
        checkpointing: str = "none",
        prompts: int | None = None,
    ) -> Costs:
        """FLOPs of one sample's training step. shape: latents ``[n, f, C, h, w]`` of its n layers;
        trained: names of parameters; checkpointing: ``none``, ``selective`` or ``full``; prompts:
        how many of the layers have one (None: as many as the model has)."""

    def share_sequence(self, transformer: Any, context: Context) -> None:
        """Make each of several processes compute its part of a sequence (``parallel/context.py``).
        ValueError for a base that cannot."""


class BaseOfParts:
    """The common way to be a ``Base``: most of it are functions of two modules of its folder.

    text_width: key of the config that says how wide a token of text is. parts: ``AUTOENCODERS``,
    ``load_text``, ``encode_texts``. costs: ``AFTER_BLOCKS``, ``channels``, ``activation_bytes``,
    ``forward_flops``, ``step_costs``.
    """

    lora_targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    schedulers: tuple[str, ...]
    text_width: str

    def __init__(self, parts: Any, costs: Any) -> None:
        self.autoencoders: Mapping[str, AutoencoderKind] = parts.AUTOENCODERS
        self.after_blocks: tuple[str, ...] = costs.AFTER_BLOCKS
        self.load_text, self.encode_texts = parts.load_text, parts.encode_texts
        self.width, self.activation_bytes = costs.channels, costs.activation_bytes
        self.forward_flops, self.step_costs = costs.forward_flops, costs.step_costs

    def share_sequence(self, transformer: Any, context: Context) -> None:
        raise ValueError(f"context_parallel: the base {type(self).__name__} cannot share sequences")

    def load_scheduler(self, folder: Path) -> Any:
        return scheduler_of(folder, self.schedulers)

    def text_shape(self, config: Mapping[str, Any]) -> tuple[int, int]:
        for name in ("num_text_tokens", self.text_width):
            if type(config.get(name)) is not int:
                raise ValueError(f"the transformer's settings: {name!r} is missing or no int")
        return config["num_text_tokens"], config[self.text_width]


def base_of(of: Any) -> Base:
    """The base of a transformer (wrapped or not), of its config, or of a model folder.

    ValueError for a class that no base has, and for a folder without a transformer.
    """
    if isinstance(of, (str, Path)):
        path = Path(of) / "transformer" / "config.json"
        if not path.is_file():
            raise ValueError(f"{of} is no model directory (no transformer/config.json)")
        of = read_json(path)
    if isinstance(of, Mapping):
        names = [str(of.get("_class_name"))]
    else:
        names = [kind.__name__ for kind in type(_unwrapped(of)).__mro__]
    known = NETWORKS.names()
    name = next((name for name in names if name in known), names[0])
    base: Base = NETWORKS.checked(name, NETWORKS.load(name))
    return base


def bases() -> list[Base]:
    """All bases, those of installed packages too."""
    return [NETWORKS.load(name) for name in NETWORKS.names()]


def _unwrapped(model: Any) -> Any:
    while (inner := getattr(model, "_orig_mod", getattr(model, "module", None))) is not None:
        model = inner
    return model


def scheduler_of(folder: Path, schedulers: Sequence[str]) -> Any:
    """The scheduler in a model folder, a class of diffusers. ValueError for none of these."""
    import diffusers

    said = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    if said["_class_name"] not in schedulers:
        raise ValueError(f"{folder}/scheduler: {said['_class_name']} is none of {schedulers}")
    return getattr(diffusers, said["_class_name"]).from_pretrained(folder / "scheduler")


def block_parts(transformer: Any, trained: Collection[str]) -> list[Backward]:
    """What the backward pass does in each block when the parameters of these names train."""
    blocks = f"{base_of(transformer).blocks}."
    count = transformer.config.num_layers
    own: dict[int, Backward] = {}
    for name in trained:
        if name.startswith(blocks):
            block = int(name.removeprefix(blocks).split(".")[0])
            if ".lora_" in name:
                own.setdefault(block, "lora")
            else:
                own[block] = "whole"
    first = 0 if trains_before_blocks(transformer, trained) else min(own, default=count)
    return [own.get(i, "untouched" if i < first else "passed") for i in range(count)]


def trains_before_blocks(transformer: Any, trained: Collection[str]) -> bool:
    """Whether any of these parameters is used before the first block ends."""
    base = base_of(transformer)
    behind = (f"{base.blocks}.", *base.after_blocks)
    return any(not name.startswith(behind) for name in trained)
