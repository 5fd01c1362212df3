"""Adapter files: ``pytorch_lora_weights.safetensors`` as diffusers and ComfyUI load it.

Tensors are named ``<module>.lora_A.weight`` and ``<module>.lora_B.weight`` here; the files put
``transformer.`` (diffusers) or ``diffusion_model.`` (ComfyUI) in front.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

WEIGHTS = "pytorch_lora_weights.safetensors"
COMFY_WEIGHTS = "comfyui_lora_weights.safetensors"
METADATA_KEY = "lora_adapter_metadata"  # diffusers' name
_LORA_KEY = re.compile(r"(?P<module>.+)\.(?P<half>lora_[AB])\.weight")


def write_adapter(
    state: dict[str, Tensor],
    config: dict[str, Any],
    name: str,
    directory: str | Path,
    *,
    comfyui: bool = False,
) -> Path:
    """Write an adapter's tensors with ``r``, ``lora_alpha`` and ``target_modules`` (config).

    comfyui: also write ``comfyui_lora_weights.safetensors`` with ``diffusion_model.`` keys and
    an ``alpha`` beside each pair. Returns the path of the first file.
    """
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {f"transformer.{key}": value for key, value in config.items()}
    header = {
        "format": "pt",
        "layerflow_adapter": name,
        METADATA_KEY: json.dumps(metadata, sort_keys=True),
    }
    tensors = {f"transformer.{key}": value.contiguous() for key, value in state.items()}
    _save(tensors, folder / WEIGHTS, header)
    if comfyui:
        tensors = {f"diffusion_model.{key}": value.contiguous() for key, value in state.items()}
        alpha = torch.tensor(float(config["lora_alpha"]))
        for key in [k for k in tensors if k.endswith(".lora_A.weight")]:
            tensors[key.replace(".lora_A.weight", ".alpha")] = alpha.clone()
        _save(tensors, folder / COMFY_WEIGHTS, header)
    return folder / WEIGHTS


def _save(tensors: dict[str, Tensor], path: Path, header: dict[str, str]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    save_file({key: value.cpu() for key, value in tensors.items()}, temporary, metadata=header)
    temporary.rename(path)


def read_adapter(directory: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors (``<module>.lora_A.weight``) and config of a file that ``save_adapter`` wrote.

    ValueError naming the file for one that is damaged or says no rank, alpha and targets.
    """
    path = Path(directory)
    path = path / WEIGHTS if path.is_dir() else path
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        said = json.loads(header.get(METADATA_KEY, "null"))
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no readable adapter: {error}") from error
    if not isinstance(said, dict):
        raise ValueError(f"{path} does not say its rank, alpha and targets ({METADATA_KEY})")
    config = {key.removeprefix("transformer."): value for key, value in said.items()}
    for key in ("r", "lora_alpha", "target_modules"):
        if key not in config:
            raise ValueError(f"{path}: {METADATA_KEY} does not say {key!r}")
    return {key.removeprefix("transformer."): value for key, value in state.items()}, config


def check_tensors(
    state: dict[str, Tensor], config: dict[str, Any], model: nn.Module, where: str
) -> None:
    """ValueError naming the key when a tensor is missing, unknown to the model or misshapen."""
    known = {path.removesuffix(".base_layer"): module for path, module in model.named_modules()}
    for key, value in state.items():
        _check_tensor(key, value, known, int(config["r"]), where)
    modules = sorted({m["module"] for m in map(_LORA_KEY.fullmatch, state) if m})
    if not modules:
        raise ValueError(f"{where}: the adapter holds no tensors")
    for module in modules:
        for half in ("lora_A", "lora_B"):
            if f"{module}.{half}.weight" not in state:
                raise ValueError(f"{where}: {module}.{half}.weight is missing")


def _check_tensor(
    key: str, value: Tensor, known: dict[str, nn.Module], rank: int, where: str
) -> None:
    match = _LORA_KEY.fullmatch(key)
    module = known.get(match["module"]) if match else None
    module = getattr(module, "base_layer", module)
    if match is None or not isinstance(module, nn.Linear):
        raise ValueError(f"{where}: unexpected tensor {key}")
    down = match["half"] == "lora_A"
    shape = (rank, module.in_features) if down else (module.out_features, rank)
    if tuple(value.shape) != shape:
        raise ValueError(f"{where}: {key} is {tuple(value.shape)}, not {shape} (rank {rank})")
