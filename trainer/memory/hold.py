"""How each weight is held: fp32 what trains, and frozen matrices of the blocks as they are used.

Under autocast a frozen matrix is rounded to bf16 before each product, so holding it in bf16 from
the start changes no digit of a run and halves its bytes. `quantize` holds it in 8 or 4 bits, which
does change digits; `offload: [weights]` keeps it in CPU memory until its block runs.

What any later stage of the manifest trains stays in fp32 meanwhile, so that no weight is ever
trained from a rounded value. Full values of what is held in less are on disk: in the model folder,
and in `OUT/stages` for what a stage trained. Exports take them from there.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from layerflow.model import adapters
from layerflow.model.base import base_of
from manifests.train import TrainManifest
from manifests.train_stage import Stage
from trainer.memory.quantized import packed_bytes, quantize
from trainer.memory.swap import PLACES, Swap
from trainer.stages import network_names, plain_name


def hold(
    transformer: Any, manifest: TrainManifest, stages: Sequence[Stage], device: torch.device
) -> None:
    """Put the network on the device, each weight as the manifest says.

    stages: those that may still train, the first one now; none: the network only runs. Adapters
    are never held in less than fp32. May be called again whenever fewer stages are left.
    """
    kept = trained_later(transformer, stages)
    found = frozen_matrices(transformer, kept)
    release(transformer)
    for layer in found.values():
        narrow(layer, manifest)
    stored: Collection[int] = ()
    if "weights" in manifest.offload:
        layers: list[list[nn.Module]] = [[] for _ in block_list(transformer)]
        for path, layer in found.items():
            layers[block_of(transformer, path)].append(layer)
        transformer.block_swap = Swap(block_list(transformer), layers, device).attach()
        stored = transformer.block_swap.stored
    if getattr(transformer, "first_only", False):  # `lay_out` hands it out, and moves it
        return
    for tensor in (*transformer.parameters(), *transformer.buffers()):
        if id(tensor) not in stored and tensor.device != device:
            tensor.data = tensor.data.to(device)


def release(transformer: Any) -> None:
    """End an earlier swap: its weights stay where they are, in CPU memory."""
    swap = transformer.__dict__.pop("block_swap", None)
    if swap is not None:
        swap.detach()


def narrow(layer: nn.Linear, manifest: TrainManifest) -> None:
    """Hold one frozen matrix in as little as the manifest says; one that is already is left."""
    if layer.weight.dtype == torch.float32:
        if manifest.quantize is not None:
            quantize(layer, manifest.quantize)
        elif manifest.precision == "bf16":
            layer.weight.data = layer.weight.data.bfloat16()
    if manifest.precision == "bf16" and layer.bias is not None:
        layer.bias.data = layer.bias.data.bfloat16()


def trained_later(transformer: Any, stages: Sequence[Stage]) -> set[str]:
    """Plain names of the network's own parameters that any of the stages trains."""
    return {plain_name(n) for stage in stages for n in network_names(transformer, stage)}


def block_list(transformer: Any) -> Any:
    return getattr(adapters.unwrap(transformer), base_of(transformer).blocks)


def block_of(transformer: Any, path: str) -> int:
    """Index of the block in which a module or parameter lies."""
    return int(path.removeprefix(f"{base_of(transformer).blocks}.").split(".")[0])


def frozen_matrices(transformer: Any, kept: Collection[str]) -> dict[str, nn.Linear]:
    """Path -> linear layer, for those of the blocks whose weight and bias are not `kept`."""
    prefix = f"{base_of(transformer).blocks}."
    found = {}
    for path, module in adapters.unwrap(transformer).named_modules():
        if isinstance(module, nn.Linear) and path.startswith(prefix) and ".lora_" not in path:
            own = {plain_name(f"{path}.{name}") for name, _ in module.named_parameters()}
            if not own & set(kept):
                found[path] = module
    return found


# ---- what it comes to -------------------------------------------------------------------------


@dataclass(frozen=True)
class Held:
    """Bytes of a network's weights on the device; for each block those of the copies in bf16 that
    autocast makes of its matrices (none of what is held in bf16 or packed); how many of the
    network's own numbers are in fp32; and bytes of the largest matrix that is unpacked."""

    weights: float
    copies: tuple[float, ...]
    singles: int
    unpacked: float = 0.0


def held_bytes(transformer: Any, manifest: TrainManifest, stages: Sequence[Stage] | None) -> Held:
    """Of a network of whatever tensors: what `hold` would make of it.

    stages: as of `hold`; None: every weight is kept in fp32.
    """
    network = adapters.unwrap(transformer)
    total = 4.0 * sum(p.numel() for p in network.parameters())
    singles = sum(p.numel() for n, p in network.named_parameters() if ".lora_" not in n)
    copies, frozen = [0.0] * len(block_list(network)), [0.0] * len(block_list(network))
    kept = trained_later(network, stages) if stages is not None else None
    found = {} if kept is None else frozen_matrices(network, kept)
    half, largest = manifest.precision == "bf16", 0.0
    for path, layer in frozen_matrices(network, ()).items():
        index, numbers = block_of(network, path), layer.in_features * layer.out_features
        biases = 0 if layer.bias is None else layer.out_features
        usual = 2.0 if path in found and half else 4.0
        packed = manifest.quantize if path in found else None
        if packed is not None:
            largest = max(largest, numbers * (2.0 if half else 4.0))
        size = packed_bytes(layer, packed) if packed else numbers * usual
        size += biases * usual
        total += size - 4.0 * (numbers + biases)
        if packed or size < 4.0 * (numbers + biases):
            singles -= numbers + (biases if half else 0)
        if path in found:
            frozen[index] += size
        elif half:
            copies[index] += 2.0 * (numbers + biases)
    if kept is not None and "weights" in manifest.offload:
        total += PLACES * max(frozen) - sum(frozen)
    return Held(total, tuple(copies), singles, largest)


# ---- full values ------------------------------------------------------------------------------


def full_values(
    transformer: Any, manifest: TrainManifest, out: Path, stage: str
) -> dict[str, torch.Tensor]:
    """Plain name -> full value, of the weights that are held in less, read from disk as stored.

    out: of the run; `stage` is the one that trains now, whose own weights are in fp32.
    """
    wanted = {
        plain_name(name)
        for name, p in adapters.unwrap(transformer).named_parameters()
        if p.dtype != torch.float32 and ".lora_" not in name
    }
    if not wanted:
        return {}
    places = sorted((Path(manifest.model) / "transformer").glob("*.safetensors"))
    for each in manifest.stages:
        if each.name == stage:
            break
        places.append(out / "stages" / each.name / "trained.safetensors")
    values: dict[str, torch.Tensor] = {}
    for place in places:
        values |= read_tensors(place, wanted)
    if absent := sorted(wanted - values.keys()):
        raise ValueError(f"{manifest.model}: no weights are stored of {absent[0]}")
    return values


def read_tensors(file: Path, wanted: Collection[str]) -> Mapping[str, torch.Tensor]:
    """Plain name -> tensor, for those of a file that are wanted."""
    with safe_open(file, "pt") as opened:
        return {
            plain_name(name): opened.get_tensor(name)
            for name in opened.keys()  # noqa: SIM118 - no mapping
            if plain_name(name) in wanted
        }
