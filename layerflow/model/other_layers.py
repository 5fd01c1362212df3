"""The same model with other layers: its weights, and rows of embeddings for those of a new set.

Layers have rows in few tensors only (``layer_embedding`` and stored positions of text), so that the
folder is copied as it is and these rows are moved: of layers in both sets they are kept, of new
ones they are zero, of others they are left out. Adapters do not know of layers.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from layerflow.documents import read_json
from layerflow.layer_set import LayerSet, layer_set
from layerflow.model.base import base_of

SETTINGS = "layerflow.json"
OF_LAYERS = ("layer_embedding.video", "layer_embedding.given")
OF_PROMPTS = ("layer_embedding.text", "position_tables.text")
OF_A_RUN = ("README.md", "training.json", "best.json")


def moved_rows(rows: Tensor, before: Sequence[str], after: Sequence[str]) -> Tensor:
    """``[len(before), ...]`` -> ``[len(after), ...]``: each name's row, zeros for new names."""
    moved = rows.new_zeros((len(after), *rows.shape[1:]))
    for index, name in enumerate(after):
        if name in before:
            moved[index] = rows[before.index(name)]
    return moved


def with_rows_of(state: dict[str, Tensor], before: LayerSet, after: LayerSet) -> dict[str, Tensor]:
    """A native network's tensors with the rows of another set; the others are those given."""
    moved = dict(state)
    for name in state.keys() & {*OF_LAYERS, *OF_PROMPTS}:
        names = (s.layers if name in OF_LAYERS else s.prompted for s in (before, after))
        moved[name] = moved_rows(state[name], *names)
    return moved


def changes(before: LayerSet, after: LayerSet) -> dict[str, list[str]]:
    """What becomes of the layers' rows: ``kept``, ``new`` (zero) and ``left_out``."""
    return {
        "kept": [name for name in after.layers if name in before.layers],
        "new": [name for name in after.layers if name not in before.layers],
        "left_out": [name for name in before.layers if name not in after.layers],
    }


def model_of(source: str | Path) -> Path:
    """The model folder that is meant: the folder itself, or the export of a run."""
    folder = Path(source)
    for found in (folder, folder / "export"):
        if (found / "transformer" / "config.json").is_file():
            return found
    raise ValueError(
        f"{folder} is neither a model folder nor a run with an export (no transformer/config.json)"
    )


def write_with_layers(folder: Path, source: str | Path, layers: str | None) -> None:
    """Fill an empty folder with a native model and a set of layers; None: its own set.

    ``layerflow.json`` says under ``layers_from`` what was kept. ValueError for a model that is not
    native, and where a stored table of positions does not reach.
    """
    origin = model_of(source)
    config = read_json(origin / "transformer" / "config.json")
    base = base_of(config)
    if config.get("mode", "native") != "native" or config["num_prompts"] == 1:
        raise ValueError(
            f"{origin} is no native model of layers; start from it with --preset and --base"
        )
    before = layer_set(config.get("layers", "rgba"))
    after = layer_set(layers or before.name)
    changed = _config_of(config, after)
    names = {*OF_A_RUN, *(path.name for path in origin.glob("*.py"))}

    def ignored(place: str, found: list[str]) -> set[str]:
        top = Path(place) == origin
        return {n for n in found if (top and n in names) or (not top and n.endswith(".py"))}

    shutil.copytree(origin, folder, ignore=ignored, dirs_exist_ok=True)
    _write(folder / "transformer" / "config.json", changed)
    for file in sorted((folder / "transformer").glob("*.safetensors")):
        _move_rows(file, before, after)
    index = read_json(folder / "model_index.json")
    _write(folder / "model_index.json", _plain_index(index, base.pipeline.own_modules))
    settings_file = folder / SETTINGS
    settings = read_json(settings_file) if settings_file.is_file() else {}
    if isinstance(settings.get("options"), dict):
        settings["options"]["layers"] = after.name
    about = {"model": origin.name, "layers": before.name, **changes(before, after)}
    _write(settings_file, {**settings, "layers_from": about})


def _config_of(config: dict[str, Any], layers: LayerSet) -> dict[str, Any]:
    """A transformer's settings with other layers."""
    count, prompts = len(layers.layers), len(layers.prompted)
    changed = {**config, "layers": layers.name, "num_prompts": prompts}
    if "max_text_seq_length" in config:
        changed["max_text_seq_length"] = prompts * config["num_text_tokens"]
    if "sample_frames" in config:
        ratio = int(config.get("temporal_compression_ratio", 1))
        changed["sample_frames"] = (config["latent_frames"] * count - 1) * ratio + 1
    if config.get("stored_positions"):
        _, tokens, frames = config["stored_positions"]
        needed = config["latent_frames"] * (1 if config["positions"] == "shared" else count)
        if needed > frames:
            raise ValueError(
                f"the model stores positions of {frames} latent frames, and {layers.name} needs "
                f"{needed}"
            )
        changed["stored_positions"] = [prompts, tokens, frames]
    return changed


def _move_rows(file: Path, before: LayerSet, after: LayerSet) -> None:
    with safe_open(file, "pt") as opened:
        metadata, names = opened.metadata(), set(opened.keys())
    if before != after and names & {*OF_LAYERS, *OF_PROMPTS}:
        state = with_rows_of(load_file(file), before, after)
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, file, metadata)


def _plain_index(index: dict[str, Any], own_modules: dict[str, str]) -> dict[str, Any]:
    """``model_index.json`` without the code that an export ships."""
    plain = dict(index)
    for part, entry in index.items():
        if not isinstance(entry, list) or len(entry) != 2:
            continue
        if part == "_class_name":
            plain[part] = entry[1]
        elif entry[1] in own_modules:
            plain[part] = [own_modules[entry[1]], entry[1]]
    return plain


def as_lines(folder: Path) -> list[str]:
    """What ``write_with_layers`` kept, as text; none for a folder made otherwise."""
    file = folder / SETTINGS
    said = (read_json(file) if file.is_file() else {}).get("layers_from")
    if not isinstance(said, dict):
        return []
    lines = [f"kept         all weights and adapters of {said['model']}; {_listed(said['kept'])}"]
    if said["new"]:
        lines.append(f"new          {_listed(said['new'])}: rows of zeros, to be trained")
    if said["left_out"]:
        lines.append(f"left out     {_listed(said['left_out'])}")
    return lines


def _listed(names: Sequence[str]) -> str:
    return "layers " + ", ".join(names)


def _write(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2) + "\n")
