"""Adapter files: ``pytorch_lora_weights.safetensors`` as diffusers loads it, or a gated file.

Tensors are named ``<module>.lora_A.weight`` and ``<module>.lora_B.weight`` here; the files put
``transformer.`` (diffusers) or ``layerflow_gated.`` in front. A gated adapter is for training: at
inference its gate is 0. Loaders that know no gate would apply it at full strength, so its file has
a name and keys that they do not take. The name is also one that diffusers brings from the Hub.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from layerflow.documents import read_json
from layerflow.files import replacing, write_json

WEIGHTS = "pytorch_lora_weights.safetensors"
GATED_WEIGHTS = "model.safetensors"
METADATA_KEY = "lora_adapter_metadata"  # diffusers' name
_PREFIX, _GATED_PREFIX = "transformer.", "layerflow_gated."
_NAMES = "_adapters"  # in the transformer's config.json; diffusers passes such keys over
_LORA_KEY = re.compile(r"(?P<module>.+)\.(?P<half>lora_[AB])\.weight")


def write_adapter(
    state: dict[str, Tensor],
    config: dict[str, Any],
    name: str,
    directory: str | Path,
    *,
    gated: bool = False,
) -> Path:
    """Write an adapter's tensors with ``r``, ``lora_alpha`` and ``target_modules`` (config).

    gated: for this package alone, see above. Returns the file's path.
    """
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {f"transformer.{key}": value for key, value in config.items()}
    header = {
        "format": "pt",
        "layerflow_adapter": name,
        METADATA_KEY: json.dumps(metadata, sort_keys=True),
    }
    prefix, file = (_GATED_PREFIX, GATED_WEIGHTS) if gated else (_PREFIX, WEIGHTS)
    tensors = {f"{prefix}{key}": value.contiguous().cpu() for key, value in state.items()}
    with replacing(folder / file) as temporary:
        save_file(tensors, temporary, metadata=header)
    (folder / (WEIGHTS if gated else GATED_WEIGHTS)).unlink(missing_ok=True)
    return folder / file


def saved_adapters(transformer: str | Path) -> dict[str, Path]:
    """Name -> file of the adapters that lie in a transformer's folder, in order of their names."""
    found = {}
    for folder in sorted((Path(transformer) / "adapters").glob("*")):
        files = [folder / name for name in (WEIGHTS, GATED_WEIGHTS)]
        if here := [file for file in files if file.is_file()]:
            found[folder.name] = here[0]
    return found


def name_adapters(transformer: str | Path, names: Sequence[str]) -> None:
    """Write into a saved transformer's settings which adapters belong to it."""
    path = Path(transformer) / "config.json"
    said = json.loads(path.read_text())
    said.pop(_NAMES, None)
    if names:
        said[_NAMES] = list(names)
    write_json(path, said)


def check_adapters(transformer: str | Path, found: Mapping[str, Path]) -> None:
    """ValueError when an adapter that belongs to a saved transformer is not there: without it the
    model would compute something else and say nothing."""
    path = Path(transformer) / "config.json"
    said = read_json(path).get(_NAMES, []) if path.is_file() else []
    if missing := sorted(set(said) - set(found)):
        raise ValueError(
            f"{transformer} has lost its adapters {missing} (adapters/NAME/{GATED_WEIGHTS} or "
            f"{WEIGHTS}); copy or download the whole folder"
        )


def read_adapter(directory: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors (``<module>.lora_A.weight``) and config of a file that ``save_adapter`` wrote.

    ValueError naming the file for one that is damaged or says no rank, alpha and targets.
    """
    path = Path(directory)
    if path.is_dir():
        plain = path / WEIGHTS
        path = plain if plain.is_file() else path / GATED_WEIGHTS
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
    prefix = re.compile(f"^({re.escape(_PREFIX)}|{re.escape(_GATED_PREFIX)})")
    return {prefix.sub("", key): value for key, value in state.items()}, config


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
