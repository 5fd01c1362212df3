"""What a model directory is and costs, read from its settings and file headers alone."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from layerflow.documents import read_json
from layerflow.layer_set import layer_set
from layerflow.model.adapter_files import read_adapter, saved_adapters
from layerflow.model.autoencoder import kind_of
from layerflow.model.base import base_of
from layerflow.model.layers import official_task
from layerflow.plugins import NETWORKS

SETTINGS = "layerflow.json"

GIB = 1 << 30


@dataclass(frozen=True)
class Cost:
    """What one sample at a size costs. FLOPs count a multiply-add as 2; bytes are estimates."""

    height: int
    width: int
    num_frames: int
    latent_frames: int
    video_tokens: int
    text_tokens: int
    forward_flops: float
    weight_bytes_bf16: int
    training_state_bytes: int
    activation_bytes: float
    checkpointed_activation_bytes: float

    @property
    def tokens(self) -> int:
        return self.video_tokens + self.text_tokens


def describe(directory: str | Path) -> dict[str, Any]:
    """Facts about a pipeline folder: ``mode``, ``task``, ``parameters`` by component,
    ``adapters``, ``transformer`` (its config) and ``cost`` at its own size (a ``Cost``).

    ValueError if the folder holds no LayerFlow model.
    """
    folder = Path(directory)
    config_file = folder / "transformer" / "config.json"
    if not config_file.is_file():
        raise ValueError(
            f"{folder} holds no model (no transformer/config.json); see layerflow init"
        )
    config = read_json(config_file)
    if config.get("_class_name") not in NETWORKS.names():
        raise ValueError(
            f"{folder} holds a {config.get('_class_name')}; make a LayerFlow model of it with "
            "layerflow init DIR --preset NAME --base FOLDER"
        )
    parameters = {
        part: count_parameters(folder / part)
        for part in ("transformer", "text_encoder", "vae")
        if (folder / part).is_dir()
    }
    vae_file = folder / "vae" / "config.json"
    vae = read_json(vae_file) if vae_file.is_file() else {}
    adapters = {}
    for name, file in saved_adapters(folder / "transformer").items():
        state, said = read_adapter(file)
        adapters[name] = {
            "rank": said["r"],
            "alpha": said["lora_alpha"],
            "parameters": sum(value.numel() for value in state.values()),
        }
    return {
        "mode": config["mode"],
        "task": config.get("task"),
        "parameters": parameters,
        "adapters": adapters,
        "transformer": config,
        "cost": cost(config, vae, parameters["transformer"]),
    }


def sampling_settings(
    model: str | Path, steps: int | None = None, guidance: float | None = None
) -> tuple[int, float]:
    """Steps and guidance scale to sample with: what is asked for, else what the model folder says
    of itself, else 50 and 6."""
    file = Path(model) / SETTINGS
    said = read_json(file).get("sampling") if file.is_file() else None
    own = said if isinstance(said, dict) else {}
    scale = own.get("guidance_scale", 6.0) if guidance is None else guidance
    return steps or int(own.get("num_inference_steps", 50)), float(scale)


def count_parameters(folder: Path) -> int:
    """Numbers in the safetensors files of one component."""
    total = 0
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, "pt") as opened:
                names = opened.keys()
                total += sum(math.prod(opened.get_slice(name).get_shape()) for name in names)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{file} is damaged: {error}") from error
    return total


def cost(config: dict[str, Any], vae: dict[str, Any], parameters: int) -> Cost:
    """Cost of one sample at the model's own size.

    FLOPs: by ``Base.forward_flops``. Activations: of its blocks. Training state: fp32 weights,
    gradients and two AdamW moments of all parameters.
    """
    base = base_of(config)
    kind = kind_of(str(vae.get("_class_name"))) if vae else next(iter(base.autoencoders.values()))
    temporal, spatial = kind.factors(vae)  # of no settings: the usual ones
    task = official_task(config["task"]) if config["mode"] == "official" else None
    height, width = config["sample_height"] * spatial, config["sample_width"] * spatial
    per_layer = config["latent_frames"]
    layers = layer_set(config.get("layers", "rgba")).layers
    frames = task.layout.num_frames if task else per_layer * len(layers)
    patch = base.patch(config) * spatial
    video = frames * (height // patch) * (width // patch)
    text = config["num_prompts"] * base.text_shape(config)[0]
    tokens = video + text
    channels = float(tokens * config["num_layers"] * base.width(config))
    kept = base.activation_bytes(config).passed
    return Cost(
        height=height,
        width=width,
        num_frames=kind.pixel_frames(per_layer, temporal),
        latent_frames=frames,
        video_tokens=video,
        text_tokens=text,
        forward_flops=base.forward_flops(config, video, text),
        weight_bytes_bf16=2 * parameters,
        training_state_bytes=16 * parameters,
        activation_bytes=channels * kept["bf16", "none"],
        checkpointed_activation_bytes=channels * kept["bf16", "full"],
    )


def as_lines(facts: dict[str, Any]) -> list[str]:
    """``describe``'s facts as text."""
    price: Cost = facts["cost"]
    kind = f"official {facts['task']}" if facts["task"] else "native, all tasks"
    lines = [f"kind         {kind}"]
    if facts["task"] and (fault := official_task(facts["task"]).fault):
        lines.append(f"known fault  {fault}")
    for part, count in facts["parameters"].items():
        lines.append(f"{part:<12} {count / 1e6:,.2f} M parameters")
    for name, said in facts["adapters"].items():
        lines.append(
            f"adapter      {name}: rank {said['rank']}, alpha {said['alpha']:g}, "
            f"{said['parameters'] / 1e6:,.2f} M parameters"
        )
    layers = layer_set(facts["transformer"].get("layers", "rgba")).layers
    if not facts["task"]:
        lines.append(f"layers       {', '.join(layers)}")
    lines += [
        f"one sample   {len(layers)} layers of {price.num_frames} frames, "
        f"{price.height}x{price.width}"
        if not facts["task"]
        else f"one sample   {price.latent_frames} latent frames, {price.height}x{price.width}",
        f"tokens       {price.tokens:,} "
        f"({price.video_tokens:,} video + {price.text_tokens:,} text)",
        f"forward      {price.forward_flops / 1e12:,.4g} TFLOP",
        f"weights      {price.weight_bytes_bf16 / GIB:,.3f} GiB in bf16; full training state "
        f"{price.training_state_bytes / GIB:,.3f} GiB (fp32 weights, gradients, AdamW)",
        f"activations  {price.activation_bytes / GIB:,.3f} GiB a sample in bf16, "
        f"{price.checkpointed_activation_bytes / GIB:,.3f} GiB with checkpointing (estimates)",
    ]
    return lines


def as_json(facts: dict[str, Any]) -> str:
    """``describe``'s facts as JSON."""
    price: Cost = facts["cost"]
    return json.dumps(facts | {"cost": asdict(price) | {"tokens": price.tokens}}, indent=2)
