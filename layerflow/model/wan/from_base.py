"""Models from a Wan folder of diffusers, and the schedules that go with them."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from layerflow.documents import read_json
from layerflow.layer_set import layer_set
from layerflow.model import adapters
from layerflow.model.other_layers import with_rows_of
from layerflow.model.presets import copy_components, finish_folder, resolve_base, torch_dtype
from layerflow.model.wan import parts
from layerflow.model.wan.base import WAN
from layerflow.model.wan.noise import SETTING, FlowMatching
from layerflow.model.wan.rope import LayeredRope
from layerflow.model.wan.transformer import LayerFlowWanTransformer3DModel

CLASSES = {
    "vae": ["diffusers", "AutoencoderKLWan"],
    "text_encoder": ["transformers", "UMT5EncoderModel"],
    "tokenizer": ["transformers", "T5TokenizerFast"],
}
EXPERTS = {"high": "transformer", "low": "transformer_2"}
"""The experts of Wan 2.2 A14B: which of its folders holds the one for noisy and the one for nearly
clean latents."""


def write_from_base(
    folder: Path, base: str | Path, options: Mapping[str, Any], asked: Collection[str] = ()
) -> None:
    """Write a model folder started from a Wan folder (``presets.BASE`` options)."""
    origin = resolve_base(base)
    source, span = "transformer", (0.0, 1.0)
    if expert := options.get("expert"):
        source, span = expert_of(origin, expert)
    torch.manual_seed(int(options["seed"]))
    network = load_base(origin / source, torch_dtype(options["dtype"]))
    settings_file = origin / "vae" / "config.json"
    vae = read_json(settings_file) if settings_file.is_file() else {}
    model = native_from(network, options, vae)
    model.save_pretrained(folder / "transformer")
    copied = copy_components(origin, folder, CLASSES)
    scheduler = make_scheduler("unipc", options["shift"], options["density"], span)
    finish_folder(folder, copied, WAN, scheduler)
    settings = {
        "base": Path(base).name,
        "options": {**options, "layers": model.layer_set.name},
        "sampling": {"num_inference_steps": 50, "guidance_scale": 5.0},
    }
    (folder / "layerflow.json").write_text(json.dumps(settings, indent=2) + "\n")


def expert_of(origin: Path, expert: str) -> tuple[str, tuple[float, float]]:
    """Folder of an expert in a Wan 2.2 A14B folder, and its share of the noise levels.

    ValueError for another name, and for a folder without two experts.
    """
    if expert not in EXPERTS:
        raise ValueError(f"expert must be one of {', '.join(EXPERTS)}, not {expert!r}")
    index = (
        read_json(origin / "model_index.json") if (origin / "model_index.json").is_file() else {}
    )
    border = index.get("boundary_ratio")
    if not isinstance(border, float) or not (origin / EXPERTS["low"] / "config.json").is_file():
        raise ValueError(
            f"{origin} has no two experts (transformer_2 and boundary_ratio in model_index.json): "
            "this preset starts from Wan 2.2 A14B"
        )
    return EXPERTS[expert], ((border, 1.0) if expert == "high" else (0.0, border))


def load_base(folder: Path, dtype: torch.dtype) -> Any:
    """The transformer of a base: ours or diffusers', by what its config says."""
    from diffusers import WanTransformer3DModel

    kind = read_json(folder / "config.json").get("_class_name")
    classes: dict[str, Any] = {
        "WanTransformer3DModel": WanTransformer3DModel,
        "LayerFlowWanTransformer3DModel": LayerFlowWanTransformer3DModel,
    }
    if kind not in classes:
        raise ValueError(f"{folder} holds a {kind}; a base is one of {sorted(classes)}")
    return classes[kind].from_pretrained(folder, dtype=dtype)


def native_from(
    base: Any, options: Mapping[str, Any], vae: Mapping[str, Any]
) -> LayerFlowWanTransformer3DModel:
    """A network that computes on one layer what ``base`` computes, and starts with zero embeddings.

    base: diffusers' Wan transformer, or one of ours (adapters come along). Weights are shared, not
    copied. options: ``height``, ``width`` (pixels), ``num_frames``, ``positions``, ``layers``,
    ``num_text_tokens``. vae: settings of its autoencoder.
    ValueError for image-to-video Wan, and for a size or count that the autoencoder cannot take.
    """
    config = {key: value for key, value in dict(base.config).items() if not key.startswith("_")}
    before = getattr(base, "layer_set", None) or layer_set("rgba")
    name = options.get("layers")
    chosen = before if name is None else layer_set(name)
    temporal, spatial = parts.factors(vae)
    kind = parts.AUTOENCODERS["AutoencoderKLWan"]
    kind.check_frames(options["num_frames"], temporal)
    step = spatial * config["patch_size"][1]
    if options["height"] % step or options["width"] % step:
        size = f"{options['height']}x{options['width']}"
        raise ValueError(f"height and width must be multiples of {step}, not {size}")
    own = {
        "layers": chosen.name,
        "num_prompts": len(chosen.prompted),
        "num_text_tokens": options.get("num_text_tokens", 512),
        "positions": options.get("positions", "shared"),
        "latent_frames": kind.latent_frames(options["num_frames"], temporal),
        "sample_height": options["height"] // spatial,
        "sample_width": options["width"] // spatial,
    }
    with torch.device("meta"):
        model = LayerFlowWanTransformer3DModel(**{**config, **own})
    model.rope = LayeredRope(  # its tables are no weights: they are computed
        config["attention_head_dim"], tuple(config["patch_size"]), config["rope_max_seq_len"]
    )
    state = with_rows_of(adapters.base_state_dict(base), before, chosen)
    like = state["proj_out.weight"]
    for name, target in model.state_dict().items():
        if name.startswith("layer_embedding.") and name not in state:
            state[name] = torch.zeros(target.shape, dtype=like.dtype)
    model.load_state_dict(state, assign=True)
    mark_layers(model, options.get("layer_embedding_std", 0.0))
    for name in adapters.adapter_names(base):
        tensors = adapters.adapter_state_dict(base, name)
        adapters.put_adapter(model, name, tensors, adapters.adapter_config(base, name))
    return model.eval()


def mark_layers(model: LayerFlowWanTransformer3DModel, std: float) -> None:
    """Random layer embedding on the video tokens; 0 leaves it zero."""
    if std > 0 and model.layer_embedding.video is not None:
        nn.init.normal_(model.layer_embedding.video, std=std)


def make_scheduler(
    kind: str,
    shift: float = 3.0,
    density: str = "logit-normal",
    span: tuple[float, float] = (0.0, 1.0),
) -> Any:
    """A flow matching scheduler that says how a training draws its times.

    kind: ``unipc`` or ``euler``. ValueError for another, and for what ``FlowMatching`` refuses.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

    FlowMatching(1000, shift, density, span)
    if kind == "unipc":
        made: Any = UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=float(shift)
        )
    elif kind == "euler":
        made = FlowMatchEulerDiscreteScheduler(shift=float(shift))
    else:
        raise ValueError(f"scheduler must be unipc or euler, not {kind!r}")
    made.register_to_config(**{SETTING: {"density": density, "span": list(span)}})
    return made
