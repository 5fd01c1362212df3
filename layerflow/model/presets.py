"""Model directories to start from.

``init_directory`` writes a complete pipeline folder that works offline: a tiny one made from
nothing, or a native model started from a base's folder. Each base has its presets; here is what
they share.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from layerflow.documents import read_json
from layerflow.files import new_folder
from layerflow.lazy import lazy_names
from layerflow.model.autoencoder import BlockDCTAutoencoder
from layerflow.model.base import Base, base_of
from layerflow.outputs import free_output
from layerflow.plugins import BASES

COMPONENTS = ("vae", "text_encoder", "tokenizer", "scheduler")
MAX_TINY_TEXT_TOKENS = 32

__getattr__ = lazy_names(
    __name__,
    dict.fromkeys(
        ("TINY", "BASE", "write_tiny", "tiny_transformer", "TINY_PRESET"),
        "layerflow.model.cogvideox.presets",
    ),
)  # where they were, and packages with presets of their own look for them

Write = Callable[[Path, str | Path, Mapping[str, Any], Collection[str]], None]
"""Fills an empty folder: (folder, base, options, names of the options that were asked for)."""


@dataclass(frozen=True)
class ModelPreset:
    """A kind of model directory: its options with their values, whether it needs a base, and what
    writes it. One that needs no base gets an empty text for it."""

    summary: str
    write: Write
    options: Mapping[str, Any] = field(default_factory=dict)
    needs_base: bool = True


def init_directory(
    directory: str | Path,
    preset: str | None = None,
    base: str | Path | None = None,
    source: str | Path | None = None,
    **overrides: Any,
) -> Path:
    """Write a pipeline folder that its base's pipeline opens.

    preset: a name of ``layerflow.plugins.BASES``. base: a model folder or a Hub id to start from,
    for the presets that need one. source: instead of a preset, a native model or a run, to have the
    same with other ``layers``. overrides: any of the preset's ``options``.
    Returns the folder. ValueError for an unknown preset or option, a folder that is not empty, or a
    base that cannot be used.
    """
    folder = Path(directory)
    if source is not None:
        return _with_layers(folder, preset, base, source, overrides)
    if preset is None:
        raise ValueError("say what to make: a preset, or a model or run to start from (--from)")
    chosen: ModelPreset = BASES.checked(preset, BASES.load(preset))
    overrides = {name: value for name, value in overrides.items() if value is not None}
    if unknown := sorted(set(overrides) - set(chosen.options)):
        raise ValueError(
            f"preset {preset} has no option {unknown[0]!r}; it has {', '.join(chosen.options)}"
        )
    if chosen.needs_base and base is None:
        raise ValueError(f"preset {preset} starts from a model: pass base (--base PATH_OR_HUB_ID)")
    if not chosen.needs_base and base is not None:
        raise ValueError(f"preset {preset} is made from nothing: it takes no base")
    options = {**chosen.options, **overrides}
    with new_folder(free_output(folder)) as writing:
        chosen.write(writing, base or "", options, overrides)
        if (package := BASES.package(preset)) is not None:
            _record(writing, {"preset": preset, "package": package})
    return folder


def _with_layers(
    folder: Path,
    preset: str | None,
    base: str | Path | None,
    source: str | Path,
    overrides: Mapping[str, Any],
) -> Path:
    from layerflow.model.other_layers import model_of, write_with_layers

    said = {name: value for name, value in overrides.items() if value is not None}
    layers = said.pop("layers", None)
    if preset is not None or base is not None:
        kind = base_of(model_of(source)).name
        raise ValueError(
            f"{source} is a {kind} model and stays one: between bases no weights can be kept, for "
            "no tensor of one fits another. Leave preset and base out, or make a new model"
        )
    if said:
        raise ValueError(f"{source} keeps its {sorted(said)[0]}: only layers may change")
    with new_folder(free_output(folder)) as writing:
        write_with_layers(writing, source, layers)
    return folder


def _record(folder: Path, made_by: Mapping[str, str]) -> None:
    """Say in ``layerflow.json`` which package's preset made a folder."""
    path = folder / "layerflow.json"
    settings = read_json(path) if path.is_file() else {}
    path.write_text(json.dumps({**settings, **made_by}, indent=2) + "\n")


def resolve_base(base: str | Path) -> Path:
    """The folder of a base model; a Hub id is downloaded, since naming it asks for that.

    ValueError when it is neither.
    """
    folder = Path(base)
    if folder.is_dir():
        if not (folder / "transformer" / "config.json").is_file():
            raise ValueError(
                f"{folder} is no model in diffusers format (no transformer/config.json)"
            )
        return folder
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.safetensors", "*.model", "*.txt"]
    try:
        return Path(snapshot_download(str(base), allow_patterns=wanted))
    except Exception as error:
        raise ValueError(
            f"base {str(base)!r} is no folder, and cannot be downloaded: {error}"
        ) from error


def torch_dtype(name: str) -> torch.dtype:
    """``float32``, ``float16`` or ``bfloat16``."""
    kinds = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    if name not in kinds:
        raise ValueError(f"dtype must be one of {sorted(kinds)}, not {name!r}")
    return kinds[name]


def copy_components(
    base: Path | None, folder: Path, classes: Mapping[str, list[str]]
) -> dict[str, Any]:
    """Copy a base's VAE, text encoder, tokenizer and scheduler; returns their index entries.

    classes: part -> library and class, for what the base's own index leaves out.
    """
    if base is None:
        return {}
    index_file = base / "model_index.json"
    index = read_json(index_file) if index_file.is_file() else {}
    copied = {}
    for part in COMPONENTS:
        if (base / part).is_dir():
            shutil.copytree(base / part, folder / part)
            copied[part] = index.get(part) or classes.get(part)
    return copied


def finish_folder(
    folder: Path, copied: Mapping[str, Any], base: Base, scheduler: Any = None
) -> None:
    """Write ``model_index.json`` of a base's folder, and a scheduler unless None."""
    import diffusers

    entries: dict[str, Any] = {part: copied.get(part, [None, None]) for part in COMPONENTS}
    if scheduler is not None:
        shutil.rmtree(folder / "scheduler", ignore_errors=True)
        scheduler.save_pretrained(folder / "scheduler")
        entries["scheduler"] = ["diffusers", type(scheduler).__name__]
    pipeline, network = base.pipeline, base.transformer.__name__
    index = {
        "_class_name": pipeline.__name__,
        "_diffusers_version": diffusers.__version__,
        "transformer": [pipeline.own_modules[network], network],
        **entries,
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def write_pipeline(
    folder: Path, pipe: Any, preset: str, options: Mapping[str, Any], sampling: Mapping[str, Any]
) -> None:
    """Write a pipeline made from nothing, and into ``layerflow.json`` how. sampling: steps and
    guidance that suit it (``num_inference_steps``, ``guidance_scale``)."""
    pipe.save_pretrained(str(folder))
    settings = {"preset": preset, "options": dict(options), "sampling": dict(sampling)}
    (folder / "layerflow.json").write_text(json.dumps(settings, indent=2) + "\n")


def check_tiny(options: Mapping[str, Any]) -> None:
    """ValueError for a size, or a number of text tokens, that no tiny model has."""
    step = options["block_size"] * options["patch_size"]
    if options["height"] % step or options["width"] % step or options["num_frames"] < 1:
        raise ValueError(
            f"height and width must be multiples of {step} and num_frames 1 or more: "
            f"{options['height']}x{options['width']}, {options['num_frames']}"
        )
    if not 1 <= options["num_text_tokens"] <= MAX_TINY_TEXT_TOKENS:
        raise ValueError(
            f"num_text_tokens must be 1 to {MAX_TINY_TEXT_TOKENS}, not {options['num_text_tokens']}"
        )


def tiny_text(encoder: Any, options: Mapping[str, Any], **more: Any) -> tuple[Any, Any]:
    """A random two-layer text encoder and the byte-level tokenizer, which needs no files.

    encoder: a class of transformers of the T5 family. more: of its configuration.
    """
    from transformers import ByT5Tokenizer

    tokenizer = ByT5Tokenizer(model_max_length=options["num_text_tokens"])
    width = options["text_width"]
    config = encoder.config_class(
        vocab_size=len(tokenizer),
        d_model=width,
        d_kv=width // 2,
        d_ff=2 * width,
        num_layers=2,
        num_heads=2,
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
        **more,
    )
    return encoder(config).eval(), tokenizer


def write_tiny_pipeline(
    folder: Path,
    preset: str,
    base: Base,
    options: Mapping[str, Any],
    text: Callable[[Mapping[str, Any]], tuple[Any, Any]],
    network: Callable[[Mapping[str, Any], int], Any],
    scheduler: Any,
) -> None:
    """Write a complete folder made from nothing, seeded by its options.

    text: options -> text encoder and tokenizer. network: options, channels of a latent ->
    transformer.
    """
    check_tiny(options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(options["seed"]))
        text_encoder, tokenizer = text(options)
        bands = (options["luma_bands"], options["chroma_bands"])
        vae = BlockDCTAutoencoder(
            options["block_size"], *bands, options["scaling_factor"], options["overlap"]
        )
        transformer = network(options, vae.latent_channels)
    pipe = base.pipeline(tokenizer, text_encoder, vae, transformer, scheduler)
    sampling = {"num_inference_steps": 16, "guidance_scale": 1.0}
    write_pipeline(folder, pipe, preset, options, sampling)
