"""Motion and content LoRA on PEFT, and the motion gate: one number per sample.

Both adapters stay active all the time. The motion adapter's output is multiplied by the motion gate
of each sample (1 static, 0 moving and at inference), so stills and video mix in one batch and the
graph never changes. Nothing here changes what is trainable but ``set_trainable``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from layerflow.model.adapter_files import check_tensors, read_adapter, write_adapter

MOTION = "motion"
TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
_ADAPTER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


class MotionGate:
    """Holds the gate of the forward pass that is running: float ``[B]``, or None for 0."""

    def __init__(self) -> None:
        self.value: Tensor | None = None

    @contextmanager
    def hold(self, value: Tensor | None) -> Iterator[None]:
        before = self.value
        self.value = value
        try:
            yield
        finally:
            self.value = before


class GateHook:
    """Forward hook of a motion ``lora_B``: its output ``[B, tokens, dim]`` times the gate."""

    def __init__(self, gate: MotionGate) -> None:
        self.gate = gate

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        value = self.gate.value
        if value is None:
            return torch.zeros_like(output)
        return output * value.to(output).view(-1, *(1 for _ in output.shape[1:]))


def unwrap(model: nn.Module) -> Any:
    """The network inside DistributedDataParallel, torch.compile and the like."""
    while True:
        inner = getattr(model, "_orig_mod", None) or getattr(model, "module", None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner


@contextmanager
def motion_gate(transformer: nn.Module, gate: Tensor) -> Iterator[None]:
    """Within the block, forward and backward passes see this motion gate: ``[B]``, 0 or 1.

    Outside any block the gate is 0. Run the backward pass inside the block.
    """
    with unwrap(transformer).motion_gate.hold(gate):
        yield


def lora_layers(transformer: nn.Module, name: str) -> dict[str, Any]:
    """Module name -> PEFT LoRA layer, for the layers that carry the adapter."""
    return {
        path: module
        for path, module in unwrap(transformer).named_modules()
        if hasattr(module, "lora_A") and name in module.lora_A
    }


def gate_motion(transformer: nn.Module) -> None:
    """Put the gate's hook on every motion ``lora_B`` that has none yet."""
    model = unwrap(transformer)
    for layer in lora_layers(model, MOTION).values():
        up = layer.lora_B[MOTION]
        if not any(isinstance(hook, GateHook) for hook in up._forward_hooks.values()):
            up.register_forward_hook(GateHook(model.motion_gate))


@contextmanager
def trainable_kept(transformer: nn.Module) -> Iterator[None]:
    """Undo any change to ``requires_grad`` on leaving; parameters made inside end up frozen."""
    before = {id(p): p.requires_grad for p in transformer.parameters()}
    try:
        yield
    finally:
        for parameter in transformer.parameters():
            parameter.requires_grad_(before.get(id(parameter), False))


def add_adapter(
    transformer: nn.Module,
    name: str,
    *,
    rank: int,
    alpha: float,
    targets: Iterable[str] = TARGETS,
    blocks: Iterable[int] | None = None,
) -> None:
    """Add a LoRA adapter: y = Wx + (alpha / rank) B A x, with A random, B zero (PEFT's names).

    targets: linear layers inside the attention of a block, or full module names.
    blocks: indices of transformer blocks; None: all.
    The adapter is active, float32, and frozen until ``set_trainable``. ValueError for a name in
    use, a rank below 1, or targets that match nothing.
    """
    from peft import LoraConfig

    model = unwrap(transformer)
    if not _ADAPTER_NAME.fullmatch(name):
        raise ValueError(f"adapter name {name!r} may hold letters, digits, - and _ only")
    if name in getattr(model, "peft_config", {}):
        raise ValueError(f"adapter {name!r} exists already")
    if rank < 1 or not alpha > 0:
        raise ValueError(f"rank must be 1 or more and alpha positive, not {rank} and {alpha}")
    modules = target_modules(model, targets, blocks)
    with seen_in_float32(model):
        model.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules=modules), name)
    for parameter in adapter_parameters(model, name).values():
        parameter.data = parameter.data.float()


@contextmanager
def seen_in_float32(model: nn.Module) -> Iterator[None]:
    """Within the block, weights of linear layers in less than float32 look like float32.

    PEFT makes an adapter in the dtype of the layer below: its random start would be rounded.
    """
    layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
    before = {m: m.weight.data for m in layers if m.weight.dtype in (torch.bfloat16, torch.half)}
    for layer, weight in before.items():
        layer.weight.data = weight.new_empty(1, dtype=torch.float32).expand(weight.shape)
    try:
        yield
    finally:
        for layer, weight in before.items():
            layer.weight.data = weight


def target_modules(
    transformer: nn.Module, targets: Iterable[str], blocks: Iterable[int] | None
) -> list[str]:
    """Names for PEFT's ``target_modules``: the targets, or full names when blocks are chosen."""
    targets = list(targets)
    linears = [
        path.removesuffix(".base_layer")
        for path, module in transformer.named_modules()
        if isinstance(module, nn.Linear) and ".lora_" not in path
    ]
    for target in targets:
        if not any(path == target or path.endswith(f".{target}") for path in linears):
            raise ValueError(f"no linear layer is called {target!r}; usual are {TARGETS}")
    if blocks is None:
        return targets
    blocks_in = transformer.block_list
    count = len(getattr(transformer, blocks_in))
    chosen = sorted(set(blocks))
    if not chosen or chosen[0] < 0 or chosen[-1] >= count:
        raise ValueError(f"blocks {chosen}: the model has blocks 0 to {count - 1}")
    prefixes = tuple(f"{blocks_in}.{i}." for i in chosen)
    endings = tuple(f".{target}" for target in targets)
    return [p for p in linears if p.startswith(prefixes) and p.endswith(endings)]


def adapter_parameters(transformer: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """Parameter name -> parameter of one adapter. ValueError if there is no such adapter."""
    found = {
        path: parameter
        for path, parameter in unwrap(transformer).named_parameters()
        if f".lora_A.{name}." in path or f".lora_B.{name}." in path
    }
    if not found:
        raise ValueError(f"no adapter {name!r}; there are {adapter_names(transformer)}")
    return found


def adapter_names(transformer: nn.Module) -> list[str]:
    """Adapters of the network, in the order of their coming."""
    return list(getattr(unwrap(transformer), "peft_config", {}))


def set_trainable(transformer: nn.Module, names: Iterable[str]) -> list[str]:
    """Train exactly these parameters (names as in ``named_parameters``), freeze all others.

    Returns the names in the network's order. ValueError for names that do not exist, or none.
    """
    model = unwrap(transformer)
    wanted = set(names)
    known = dict(model.named_parameters())
    if unknown := sorted(wanted - set(known)):
        raise ValueError(f"no such parameters: {unknown[:5]} ({len(unknown)} in all)")
    if not wanted:
        raise ValueError("nothing to train: the list of parameters is empty")
    for name, parameter in known.items():
        parameter.requires_grad_(name in wanted)
    return [name for name in known if name in wanted]


def base_state_dict(transformer: nn.Module) -> dict[str, Tensor]:
    """The network's weights without adapters, under plain (diffusers') names."""
    return {
        key.replace(".base_layer.", "."): value
        for key, value in nn.Module.state_dict(unwrap(transformer)).items()
        if ".lora_" not in key
    }


def adapter_state_dict(transformer: nn.Module, name: str) -> dict[str, Tensor]:
    """``<module>.lora_A.weight`` / ``.lora_B.weight`` of one adapter: detached, not copied."""
    return {
        path.replace(f".{name}.weight", ".weight"): parameter.detach()
        for path, parameter in adapter_parameters(transformer, name).items()
    }


def adapter_config(transformer: nn.Module, name: str) -> dict[str, Any]:
    """What a file must say about an adapter: PEFT's ``r``, ``lora_alpha``, ``target_modules``."""
    config = unwrap(transformer).peft_config[name]
    return {
        "r": config.r,
        "lora_alpha": config.lora_alpha,
        "target_modules": sorted(config.target_modules),
    }


def save_adapter(transformer: nn.Module, name: str, directory: str | Path) -> Path:
    """Write an adapter: ``pytorch_lora_weights.safetensors`` as diffusers' ``load_lora_weights``
    reads it, but ``motion`` as a gated file, which nothing loads ungated. Returns the file."""
    config = adapter_config(transformer, name)
    state = adapter_state_dict(transformer, name)
    return write_adapter(state, config, name, directory, gated=name == MOTION)


def load_adapter(transformer: nn.Module, name: str, directory: str | Path) -> None:
    """Add an adapter from a file, strictly; it is active and frozen.

    ValueError naming the key for a missing, unexpected or wrongly shaped tensor; then the network
    is as before.
    """
    model = unwrap(transformer)
    state, config = read_adapter(directory)
    check_tensors(state, config, model, str(directory))
    try:
        put_adapter(model, name, state, config)
    except ValueError as error:
        raise ValueError(f"{directory}: {error}") from error


def put_adapter(
    transformer: nn.Module, name: str, state: Mapping[str, Tensor], config: Mapping[str, Any]
) -> None:
    """Add an adapter with these tensors and this ``adapter_config``, as ``load_adapter`` does."""
    rank, alpha = int(config["r"]), float(config["lora_alpha"])
    add_adapter(transformer, name, rank=rank, alpha=alpha, targets=config["target_modules"])
    own = adapter_state_dict(transformer, name)
    if own.keys() != state.keys():
        odd = sorted(own.keys() ^ state.keys())
        unwrap(transformer).delete_adapters(name)
        raise ValueError(f"targets and tensors disagree, for example {odd[0]}")
    for key, tensor in own.items():
        tensor.copy_(state[key])
