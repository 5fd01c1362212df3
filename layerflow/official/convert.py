"""Official checkpoint -> model folder with two PEFT adapters.

The input is ``mp_rank_00_model_states.pt`` of one of the eight released configurations. It is read
tensor by tensor by ``torchfile`` (nothing in it is executed) and written tensor by tensor, so that
memory holds one tensor at a time. Strict: every key is used once, every parameter set once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from layerflow.files import new_folder
from layerflow.model import adapters
from layerflow.model.adapter_files import write_adapter
from layerflow.model.cogvideox.base import COGVIDEOX
from layerflow.model.cogvideox.from_base import CLASSES, make_scheduler
from layerflow.model.layers import OFFICIAL, OfficialTask, official_task
from layerflow.model.presets import copy_components, finish_folder, resolve_base, torch_dtype
from layerflow.official import names as official
from layerflow.official.torchfile import StoredTensor, read_torch_file
from layerflow.outputs import free_output

STATES = "mp_rank_00_model_states.pt"
WEIGHTS = "diffusion_pytorch_model.safetensors"
DTYPES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float64: "F64",
}


def convert_checkpoint(
    checkpoint: str | Path,
    out: str | Path,
    *,
    task: str | None = None,
    base: str | Path | None = None,
    dtype: str | None = None,
    latent_size: tuple[int, int] = official.LATENT_SIZE,
) -> Path:
    """Write the pipeline folder ``out`` from an official checkpoint.

    task: a key of ``layers.OFFICIAL``; None: told from the tensors, then from the folders' names.
    base: CogVideoX folder (diffusers format) whose VAE, text encoder and tokenizer are copied;
    without it the folder has none, and prompts must come as embeddings. dtype: of the weights;
    None: as stored. latent_size: height and width of the latents that it was trained on.

    ValueError naming the file or key for anything truncated, missing, unexpected or misshapen;
    then nothing is left at ``out``.
    """
    out = free_output(out)
    path = find_states(Path(checkpoint))
    source = read_source(path)
    chosen = official_task(task) if task else detect_task(source, path, latent_size)
    kind = None if dtype is None else torch_dtype(dtype)
    origin = None if base is None else resolve_base(base)
    settings = {
        "converted": {"task": chosen.name, "file": path.name},
        "sampling": {"num_inference_steps": 50, "guidance_scale": 6.0},
    }
    with new_folder(out) as folder:
        write_network(folder / "transformer", source, chosen, latent_size, kind)
        copied = copy_components(origin, folder, CLASSES)
        finish_folder(folder, copied, COGVIDEOX, make_scheduler("dpm"))
        (folder / "layerflow.json").write_text(json.dumps(settings, indent=2) + "\n")
    return out


def find_states(path: Path) -> Path:
    """The states file behind a file, a step folder, or a folder with ``latest`` in it."""
    if path.is_file():
        return path
    latest = path / "latest"
    if latest.is_file():
        step = latest.read_text().strip()
        if Path(step).name == step and (path / step / STATES).is_file():
            return path / step / STATES
    found = sorted(path.glob(STATES)) + sorted(path.glob(f"*/{STATES}"))
    if len(found) != 1:
        raise ValueError(f"{path}: expected one {STATES}, found {len(found)}")
    return found[0]


def read_source(path: Path) -> dict[str, official.Lazy]:
    """The network's tensors of a states file, still on disk, by their names without prefix."""
    content = read_torch_file(path)
    module = content.get("module", content) if isinstance(content, Mapping) else None
    if not isinstance(module, Mapping):
        raise ValueError(f"{path} holds no state dict under 'module'")
    tensors = {str(key): value for key, value in module.items()}
    try:
        source = official.strip_prefix(tensors)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    for key, value in source.items():
        if not isinstance(value, StoredTensor):
            raise ValueError(f"{path}: {key} is no tensor")
    return source


def detect_task(source: official.Source, path: Path, latent_size: tuple[int, int]) -> OfficialTask:
    """The configuration of a checkpoint. ValueError listing the candidates if it stays open."""
    fitting = official.possible_tasks(source, latent_size)
    if not fitting:
        shape = tuple(source[official.POSITIONS].shape)
        raise ValueError(f"{path}: a position table {shape} fits none of {sorted(OFFICIAL)}")
    for name in (path.parent.parent.name, path.parent.name, path.stem):
        if len(fitting) > 1:
            fitting = official.guess_from_name(name, fitting) or fitting
    if len(fitting) > 1:
        raise ValueError(f"{path} may be any of {', '.join(fitting)}; say which with --task")
    return OFFICIAL[fitting[0]]


def write_network(
    folder: Path,
    source: official.Source,
    task: OfficialTask,
    latent_size: tuple[int, int],
    dtype: torch.dtype | None,
) -> None:
    """Write ``config.json``, the weights and the adapters of one network, strictly."""
    from layerflow.model.cogvideox.transformer import LayerFlowTransformer3DModel

    config = official.network_config(source, task, latent_size)
    targets = official.base_targets(source, task)
    with torch.device("meta"):
        model = LayerFlowTransformer3DModel(**config)
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    by_name = {target.name: target for target in targets}
    for name in expected:
        if name not in by_name:
            raise ValueError(f"missing key: nothing in the checkpoint fills {name}")
    for name, target in by_name.items():
        if name not in expected:
            raise ValueError(f"unexpected key {target.sources[0]}: it would fill {name}")
    model.save_config(folder)
    write_safetensors(folder / WEIGHTS, source, targets, expected, dtype)
    for name, (rank, state) in official.adapter_tensors(source).items():
        _write_adapter(folder / "adapters" / name, name, rank, state, expected)


def _write_adapter(
    folder: Path,
    name: str,
    rank: int,
    state: Mapping[str, official.Lazy],
    expected: Mapping[str, tuple[int, ...]],
) -> None:
    """Write one adapter, leaving out blocks that were never trained (all ``lora_B`` zero)."""
    blocks: dict[str, list[str]] = {}
    for key, value in state.items():
        module, half = key.removesuffix(".weight").rsplit(".", 1)
        out_features, in_features = expected[f"{module}.weight"]
        shape = (rank, in_features) if half == "lora_A" else (out_features, rank)
        if tuple(value.shape) != shape:
            raise ValueError(f"{name}: {key} is {tuple(value.shape)}, not {shape}")
        blocks.setdefault(key.split(".")[1], []).append(key)
    kept: dict[str, Tensor] = {}
    for keys in blocks.values():
        tensors = {key: state[key].load() for key in keys}
        if any(bool(t.any()) for key, t in tensors.items() if ".lora_B." in key):
            kept |= tensors
    if kept:
        modules = sorted({key.split(".lora_")[0] for key in kept})
        config = {"r": rank, "lora_alpha": official.LORA_ALPHA, "target_modules": modules}
        write_adapter(kept, config, name, folder, gated=name == adapters.MOTION)


def write_safetensors(
    path: Path,
    source: official.Source,
    targets: Sequence[official.ModelTensor],
    shapes: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype | None,
) -> None:
    """Write a safetensors file one tensor at a time. ValueError naming a key of a wrong shape."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    kinds = {}
    for target in targets:
        kind = dtype or source[target.sources[0]].dtype
        if kind not in DTYPES:
            raise ValueError(f"{target.sources[0]} has dtype {kind}, not a floating one")
        kinds[target.name] = kind
        count = torch.Size(shapes[target.name]).numel()
        size = count * torch.empty((), dtype=kind).element_size()
        header[target.name] = {
            "dtype": DTYPES[kind],
            "shape": list(shapes[target.name]),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for target in targets:
            value = target.load(source)
            if tuple(value.shape) != shapes[target.name]:
                raise ValueError(
                    f"{', '.join(target.sources)}: {target.name} would be {tuple(value.shape)}, "
                    f"not {shapes[target.name]}"
                )
            data = value.to(kinds[target.name]).contiguous().view(torch.uint8)
            file.write(data.numpy().data)
