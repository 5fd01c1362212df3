"""Native models from a base: CogVideoX folders and converted official LayerFlow folders."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from layerflow.documents import read_json
from layerflow.layer_set import LayerSet, layer_set
from layerflow.model import adapters
from layerflow.model.cogvideox.base import COGVIDEOX
from layerflow.model.cogvideox.positions import Positions
from layerflow.model.cogvideox.transformer import LayerFlowTransformer3DModel
from layerflow.model.layers import single_layout
from layerflow.model.other_layers import moved_rows, with_rows_of
from layerflow.model.presets import copy_components, finish_folder, resolve_base, torch_dtype

CLASSES = {
    "vae": ["diffusers", "AutoencoderKLCogVideoX"],
    "text_encoder": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "T5Tokenizer"],
}


def write_from_base(
    folder: Path, base: str | Path, options: Mapping[str, Any], asked: Collection[str] = ()
) -> None:
    """Write a native model folder started from a base (``presets.BASE`` options).

    asked: names of the options that were asked for; the others may give way to the base's.
    """
    origin = resolve_base(base)
    dtype = torch_dtype(options["dtype"])
    torch.manual_seed(int(options["seed"]))
    network = load_base(origin / "transformer", dtype)
    if stores_positions(network):
        options = {k: v for k, v in options.items() if k not in ("height", "width") or k in asked}
    model = native_from(network, options)
    model.save_pretrained(folder / "transformer")
    copied = copy_components(origin, folder, CLASSES)
    finish_folder(
        folder, copied, COGVIDEOX, None if "scheduler" in copied else make_scheduler("dpm")
    )
    size = {side: 8 * model.config[f"sample_{side}"] for side in ("height", "width")}
    said = {**options, **size, "layers": model.layer_set.name}
    settings = {"base": Path(base).name, "options": said}
    (folder / "layerflow.json").write_text(json.dumps(settings, indent=2) + "\n")


def load_base(folder: Path, dtype: torch.dtype) -> Any:
    """The transformer of a base: ours or diffusers', by what its config says."""
    from diffusers import CogVideoXTransformer3DModel

    kind = read_json(folder / "config.json").get("_class_name")
    classes: dict[str, Any] = {
        "CogVideoXTransformer3DModel": CogVideoXTransformer3DModel,
        "LayerFlowTransformer3DModel": LayerFlowTransformer3DModel,
    }
    if kind not in classes:
        raise ValueError(f"{folder} holds a {kind}; a base is one of {sorted(classes)}")
    return classes[kind].from_pretrained(folder, dtype=dtype)


def native_from(base: Any, options: Mapping[str, Any]) -> LayerFlowTransformer3DModel:
    """A native network that computes what ``base`` computes, at initialisation and at any size.

    base: diffusers' CogVideoX transformer, or an official one of ours (its position table and its
    text layer embedding come along, its adapters too). Weights are shared, not copied.
    options: ``layers`` (name of a set), ``height``, ``width`` (pixels), ``num_frames``,
    ``positions``, ``layer_embedding_std``; missing ones keep the base's.
    """
    official, layers = getattr(base, "official", None), _layers(base, options.get("layers"))
    config = {key: value for key, value in dict(base.config).items() if not key.startswith("_")}
    own = {
        "mode": "native",
        "task": None,
        "layers": layers.name,
        "num_prompts": len(layers.prompted),
        "positions": options.get("positions", "shared"),
        "num_text_tokens": config.get("num_text_tokens") or config["max_text_seq_length"],
        "latent_frames": _latent_frames(options.get("num_frames", 16), config),
        "norm_out_eps": base.norm_out.norm.eps,
    }
    own["max_text_seq_length"] = own["num_text_tokens"] * len(layers.prompted)
    own["sample_frames"] = (own["latent_frames"] * len(layers.layers) - 1) * int(
        config["temporal_compression_ratio"]
    ) + 1
    if config.get("use_rotary_positional_embeddings") and not config.get("position_grid"):
        own["position_grid"] = [
            config[f"sample_{axis}"] // config["patch_size"] for axis in ("height", "width")
        ]
    stored = stores_positions(base)
    for axis in ("height", "width"):
        if axis in options:
            own[f"sample_{axis}"] = options[axis] // 8
    if stored:
        _check_stored(config, own, layers)
    if config.get("use_learned_positional_embeddings"):
        raise ValueError("image-to-video CogVideoX (learned positions) is no base for LayerFlow")
    if official is not None or stored:
        _, tokens, frames = config["stored_positions"]
        own["stored_positions"] = [len(layers.prompted), tokens, frames] if stored else None
    with torch.device("meta"):
        model = LayerFlowTransformer3DModel(**{**config, **own})
    state = adapters.base_state_dict(base)
    if not {**config, **own}.get("stored_positions"):
        state = {key: t for key, t in state.items() if not key.startswith("position_tables.")}
    _add_missing(state, model, base)
    model.load_state_dict(state, assign=True)
    mark_layers(model, options.get("layer_embedding_std", 0.0))
    _carry_adapters(base, model)
    return model.eval()


def _layers(base: Any, name: str | None) -> LayerSet:
    """The set of that name; None: that of the base, ``rgba`` where it has none."""
    own = getattr(base, "layer_set", None) or layer_set("rgba")
    return own if name is None else layer_set(name)


def _check_stored(config: Mapping[str, Any], own: Mapping[str, Any], layers: LayerSet) -> None:
    """ValueError for a size or length that a stored table of positions does not cover."""
    sides = ("sample_height", "sample_width")
    if any(own.get(side, config[side]) != config[side] for side in sides):
        size = "x".join(str(8 * config[side]) for side in sides)
        raise ValueError(f"this base stores its positions for one size: pass --size {size}")
    needed = own["latent_frames"] * (1 if own["positions"] == "shared" else len(layers.layers))
    if needed > (there := config["stored_positions"][2]):
        raise ValueError(
            f"this base stores positions of {there} latent frames, and {needed} are needed: pass "
            "fewer --frames, or --positions shared"
        )


def stores_positions(base: Any) -> bool:
    """Whether a base has a position table that is not computed: it fits its own size only."""
    if not getattr(base.config, "stored_positions", None):
        return False
    return getattr(base, "official", None) is None or not has_plain_positions(base)


def has_plain_positions(base: LayerFlowTransformer3DModel) -> bool:
    """Whether an official network's stored table is the computed one, with zero text rows.

    Then a native network computes it, and takes any size and number of frames.
    """
    stored, config = base.position_tables, base.config
    frames, tokens, dim = stored.video.shape
    grid = (config.sample_height // config.patch_size, config.sample_width // config.patch_size)
    plain = Positions("sincos", dim, 0, grid, stored.interpolation)
    table = plain(single_layout(frames), *grid, like=torch.zeros(()).float()).video
    assert table is not None and tokens == grid[0] * grid[1]
    rounding = max(1e-6, torch.finfo(stored.video.dtype).eps)  # by storage of numbers in [-1, 1]
    close = torch.allclose(stored.video.float(), table, rtol=0, atol=rounding)
    return close and not bool(stored.text.any())


def _latent_frames(num_frames: int, config: Mapping[str, Any]) -> int:
    factor = int(config["temporal_compression_ratio"])
    if num_frames % (2 * factor) > 1:
        raise ValueError(f"num_frames must be {2 * factor}k or {2 * factor}k+1, not {num_frames}")
    return num_frames // factor if num_frames % 2 == 0 else (num_frames - 1) // factor + 1


def _add_missing(state: dict[str, Tensor], model: LayerFlowTransformer3DModel, base: Any) -> None:
    """What a native network has and its base has not: zeros; rows move to where their layers are.

    A base that is native itself, with the same layers, has all of it.
    """
    like = state["proj_out.weight"]
    official, native = getattr(base, "official", None), getattr(base, "layer_set", None)
    if official is None and native is not None:
        state.update(with_rows_of(state, native, model.layer_set))
    for name, target in model.state_dict().items():
        if not name.startswith(("layer_embedding.", "position_tables.text")):
            continue
        if name not in state:
            state[name] = torch.zeros(target.shape, dtype=like.dtype)
        elif official is not None:
            rows = state[name].to(like.dtype)
            state[name] = moved_rows(rows, official.layout.prompts, model.layer_set.prompted)


def _carry_adapters(base: Any, model: LayerFlowTransformer3DModel) -> None:
    for name in adapters.adapter_names(base):
        state = adapters.adapter_state_dict(base, name)
        adapters.put_adapter(model, name, state, adapters.adapter_config(base, name))


def mark_layers(model: LayerFlowTransformer3DModel, std: float) -> None:
    """Random layer embedding on the video tokens; 0 leaves it zero."""
    if std > 0 and model.layer_embedding.video is not None:
        nn.init.normal_(model.layer_embedding.video, std=std)


def make_scheduler(kind: str) -> Any:
    """LayerFlow's schedule for diffusers: SNR shift 3, zero terminal SNR, v, trailing steps.

    kind: ``ddim`` or ``dpm``.
    """
    from diffusers import CogVideoXDDIMScheduler, CogVideoXDPMScheduler

    kinds = {"ddim": CogVideoXDDIMScheduler, "dpm": CogVideoXDPMScheduler}
    if kind not in kinds:
        raise ValueError(f"scheduler must be one of {sorted(kinds)}, not {kind!r}")
    return kinds[kind](
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        snr_shift_scale=3.0,
        rescale_betas_zero_snr=True,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
    )
