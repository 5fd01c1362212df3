"""Names and shapes of official checkpoints, and what they are in this module.

The table follows the official state dict (``sat/``, prefix ``model.diffusion_model.`` stripped).
Every source key has one rule; each rule fills one or more targets. LoRA: matrix_A/B is motion,
matrix_C/D content, alpha is 1, so the scale is 1/rank.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from layerflow.clip import BACKGROUND, FOREGROUND
from layerflow.model.layers import OFFICIAL, OfficialTask

TOKENS_PER_PROMPT = 226
LORA_ALPHA = 1
LATENT_SIZE = (60, 90)
PATCH = 2  # latents of a token, along each side
PREFIX = "model.diffusion_model."
DROPPED = ("conditioner.", "first_stage_model.", "denoiser.", "loss_fn.", "model_ema.")
POSITIONS = "mixins.pos_embed.pos_embedding"
EMBEDDER = "mixins.pos_embed.txt_embedder"
_VIDEO_TEXT = ((0, 1, 2, 6, 7, 8), (3, 4, 5, 9, 10, 11))
"""Of the 12 modulation vectors of a block: those of attention, those of the MLP (each first the
video tokens' shift, scale, gate, then the text tokens')."""


class Lazy(Protocol):
    """A tensor that may still lie in a file."""

    @property
    def shape(self) -> Any: ...
    @property
    def dtype(self) -> torch.dtype: ...
    def load(self) -> Tensor: ...


@dataclass(frozen=True)
class Ready:
    """A tensor in memory, as ``Lazy``."""

    tensor: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor.dtype

    def load(self) -> Tensor:
        return self.tensor


Source = Mapping[str, Lazy]


@dataclass(frozen=True)
class ModelTensor:
    """One tensor of ours: its name, the source keys that it is made of, and how."""

    name: str
    sources: tuple[str, ...]
    make: Callable[[Sequence[Tensor]], Tensor]

    def load(self, source: Source) -> Tensor:
        return self.make([source[key].load() for key in self.sources])


_PLAIN = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "mixins.patch_embed.proj": "patch_embed.proj",
    "mixins.patch_embed.text_proj": "patch_embed.text_proj",
    "transformer.final_layernorm": "norm_final",
    "mixins.final_layer.norm_final": "norm_out.norm",
    "mixins.final_layer.adaLN_modulation.1": "norm_out.linear",
    "mixins.final_layer.linear": "proj_out",
}
_BLOCK = {
    r"mixins\.adaln_layer\.query_layernorm_list\.(\d+)": "attn1.norm_q",
    r"mixins\.adaln_layer\.key_layernorm_list\.(\d+)": "attn1.norm_k",
    r"transformer\.layers\.(\d+)\.input_layernorm": "norm1.norm",
    r"transformer\.layers\.(\d+)\.post_attention_layernorm": "norm2.norm",
    r"transformer\.layers\.(\d+)\.attention\.dense(?:\.original)?": "attn1.to_out.0",
    r"transformer\.layers\.(\d+)\.mlp\.dense_h_to_4h": "ff.net.0.proj",
    r"transformer\.layers\.(\d+)\.mlp\.dense_4h_to_h": "ff.net.2",
}
_QKV = re.compile(r"transformer\.layers\.(\d+)\.attention\.query_key_value(?:\.original)?")
_MODULATION = re.compile(r"mixins\.adaln_layer\.adaLN_modulations\.(\d+)\.1")
_LORA = re.compile(
    r"transformer\.layers\.(\d+)\.attention\.(query_key_value|dense)\.matrix_([ABCD])\.(\d)"
)


def strip_prefix(module: Mapping[str, Any]) -> dict[str, Lazy]:
    """The network's tensors by their names without prefix; text encoder and VAE are dropped.

    ValueError naming a key that belongs nowhere, or when there is no network.
    """
    out: dict[str, Lazy] = {}
    for key, value in module.items():
        if key.startswith(PREFIX):
            out[key.removeprefix(PREFIX)] = value
        elif not key.startswith(DROPPED):
            raise ValueError(f"unexpected key {key}: no part of a LayerFlow checkpoint")
    if not out:
        raise ValueError(f"no key starts with {PREFIX}: this is no LayerFlow checkpoint")
    return out


def base_targets(source: Source, task: OfficialTask) -> list[ModelTensor]:
    """All tensors of the network without LoRA. ValueError naming a key without a rule."""
    targets: list[ModelTensor] = []
    for key in source:
        if not _LORA.fullmatch(key) and not key.startswith(EMBEDDER):
            targets += _targets_of(key, task)
    if task.layer_embedding:
        parts = [f"{EMBEDDER}.{i}.{kind}" for i in (0, 1) for kind in ("weight", "bias")]
        targets.append(ModelTensor("layer_embedding.text", tuple(parts), _fold_embedder(task)))
    consumed = {key for target in targets for key in target.sources}
    for key in source:
        if key not in consumed and not _LORA.fullmatch(key):
            raise ValueError(f"unexpected key {key}: {task.name} has no such tensor")
    for key in sorted(consumed):
        if key not in source:
            raise ValueError(f"missing key {key}")
    names = [target.name for target in targets]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{twice[0]} is set twice (keys with and without .original?)")
    return targets


def _targets_of(key: str, task: OfficialTask) -> list[ModelTensor]:
    if key == POSITIONS:
        text = ModelTensor("position_tables.text", (key,), lambda t: _text_positions(t[0], task))
        video = ModelTensor("position_tables.video", (key,), lambda t: _video_positions(t[0], task))
        return [text, video]
    stem, _, kind = key.rpartition(".")
    if kind in ("weight", "bias"):
        if stem in _PLAIN:
            return [ModelTensor(f"{_PLAIN[stem]}.{kind}", (key,), _same)]
        if match := _QKV.fullmatch(stem):
            block = f"transformer_blocks.{match[1]}.attn1"
            return [
                ModelTensor(f"{block}.{part}.{kind}", (key,), _pick(3, (i,)))
                for i, part in enumerate(("to_q", "to_k", "to_v"))
            ]
        if match := _MODULATION.fullmatch(stem):
            return [
                ModelTensor(
                    f"transformer_blocks.{match[1]}.norm{i + 1}.linear.{kind}",
                    (key,),
                    _pick(12, chosen),
                )
                for i, chosen in enumerate(_VIDEO_TEXT)
            ]
        for pattern, name in _BLOCK.items():
            if match := re.fullmatch(pattern, stem):
                return [ModelTensor(f"transformer_blocks.{match[1]}.{name}.{kind}", (key,), _same)]
    raise ValueError(f"unexpected key {key}: no part of a LayerFlow network")


def _same(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0]


def _pick(chunks: int, chosen: tuple[int, ...]) -> Callable[[Sequence[Tensor]], Tensor]:
    def make(tensors: Sequence[Tensor]) -> Tensor:
        parts = tensors[0].chunk(chunks)
        return torch.cat([parts[i] for i in chosen])

    return make


def _fold_embedder(task: OfficialTask) -> Callable[[Sequence[Tensor]], Tensor]:
    """Linear(1, D) and LayerNorm(D) of the prompt's index are one vector per prompt."""

    def make(tensors: Sequence[Tensor]) -> Tensor:
        weight, bias, scale, shift = (t.float() for t in tensors)
        index = torch.arange(len(task.layout.prompts), dtype=torch.float32)[:, None]
        vectors = functional.linear(index, weight, bias)
        folded = functional.layer_norm(vectors, vectors.shape[-1:], scale, shift, 1e-5)
        return folded.to(tensors[0].dtype)

    return make


def _text_positions(table: Tensor, task: OfficialTask) -> Tensor:
    prompts = len(task.layout.prompts)
    return table[0, : prompts * TOKENS_PER_PROMPT].unflatten(0, (prompts, TOKENS_PER_PROMPT))


def _video_positions(table: Tensor, task: OfficialTask) -> Tensor:
    text = len(task.layout.prompts) * TOKENS_PER_PROMPT
    return table[0, text:].unflatten(0, (task.position_frames, -1))


def adapter_tensors(source: Source) -> dict[str, tuple[int, dict[str, Lazy]]]:
    """Adapter name -> rank and its tensors (``<module>.lora_A.weight``), from the LoRA matrices.

    ValueError naming a key whose partner is missing or whose rank differs.
    """
    halves = {"A": ("motion", "lora_A"), "B": ("motion", "lora_B")}
    halves |= {"C": ("content", "lora_A"), "D": ("content", "lora_B")}
    out: dict[str, tuple[int, dict[str, Lazy]]] = {}
    for key in source:
        match = _LORA.fullmatch(key)
        if not match:
            continue
        block, linear, letter, part = match.groups()
        name, half = halves[letter]
        module = "to_out.0" if linear == "dense" else ("to_q", "to_k", "to_v")[int(part)]
        value = source[key]
        rank = value.shape[0] if half == "lora_A" else value.shape[1]
        known = out.setdefault(name, (rank, {}))
        if known[0] != rank:
            raise ValueError(f"{key} has rank {rank}, other {name} matrices have {known[0]}")
        partner = key.replace(f"matrix_{letter}", f"matrix_{'BADC'['ABCD'.index(letter)]}")
        if partner not in source:
            raise ValueError(f"missing key {partner}")
        known[1][f"transformer_blocks.{block}.attn1.{module}.{half}.weight"] = value
    return out


def network_config(
    source: Source, task: OfficialTask, latent_size: tuple[int, int]
) -> dict[str, Any]:
    """Arguments of ``LayerFlowTransformer3DModel``, from the tensors' shapes.

    ValueError naming the key that is missing or does not fit the configuration.
    """

    def shape(key: str) -> tuple[int, ...]:
        if key not in source:
            raise ValueError(f"missing key {key}")
        return tuple(source[key].shape)

    dim, channels, patch, _ = shape("mixins.patch_embed.proj.weight")
    head = shape("mixins.adaln_layer.query_layernorm_list.0.weight")[0]
    prompts = len(task.layout.prompts)
    height, width = latent_size
    rows = prompts * TOKENS_PER_PROMPT + task.position_frames * (height // patch) * (width // patch)
    if shape(POSITIONS) != (1, rows, dim):
        raise ValueError(
            f"{POSITIONS} is {shape(POSITIONS)}; {task.name} at latent size {latent_size} needs "
            f"{(1, rows, dim)}"
        )
    blocks = {
        int(m[1]) for m in (re.match(r"transformer\.layers\.(\d+)\.", k) for k in source) if m
    }
    return {
        "num_attention_heads": dim // head,
        "attention_head_dim": head,
        "in_channels": channels,
        "out_channels": shape("mixins.final_layer.linear.weight")[0] // patch**2,
        "time_embed_dim": shape("time_embed.0.weight")[0],
        "text_embed_dim": shape("mixins.patch_embed.text_proj.weight")[1],
        "num_layers": len(blocks),
        "sample_height": height,
        "sample_width": width,
        "sample_frames": (task.layout.num_frames - 1) * 4 + 1,
        "patch_size": patch,
        "max_text_seq_length": prompts * TOKENS_PER_PROMPT,
        "mode": "official",
        "task": task.name,
        "num_text_tokens": TOKENS_PER_PROMPT,
        "num_prompts": prompts,
        "positions": "continuous",
        "stored_positions": [prompts, TOKENS_PER_PROMPT, task.position_frames],
        "latent_frames": 4,
        "norm_out_eps": 1e-6,
        "exact_timesteps": True,
    }


def possible_tasks(source: Source, latent_size: tuple[int, int]) -> list[str]:
    """Released configurations whose position table and layer embedding look like these."""
    if POSITIONS not in source:
        raise ValueError(f"missing key {POSITIONS}")
    rows = source[POSITIONS].shape[1]
    embedded = f"{EMBEDDER}.0.weight" in source
    tokens = (latent_size[0] // PATCH) * (latent_size[1] // PATCH)

    def fits(task: OfficialTask) -> bool:
        text = len(task.layout.prompts) * TOKENS_PER_PROMPT
        return rows == text + task.position_frames * tokens and embedded == task.layer_embedding

    return [name for name, task in OFFICIAL.items() if fits(task)]


def guess_from_name(name: str, candidates: Sequence[str]) -> list[str]:
    """Candidates that a folder's name may mean, such as ``multi-layer-generation-rgb``."""
    words = re.split(r"[^a-z0-9]+", name.lower())
    meaning = {
        "gen": ("gen", "generation"),
        "seg": ("seg", "segmentation", "decomposition", "decompose"),
        "fg2bg": ("fg2bg", FOREGROUND),
        "bg2fg": ("bg2fg", BACKGROUND),
    }
    kinds = [kind for kind, said in meaning.items() if any(word in words for word in said)]
    colours = [colour for colour in ("rgb", "rgba") if colour in words]
    return [
        c
        for c in candidates
        if (not kinds or c.split("_")[0] in kinds) and (not colours or c.split("_")[1] in colours)
    ]
