"""Whose run it is: what a run is made of, and why another cannot continue it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from layerflow.corpus.fingerprint import folder_hash, model_fingerprint
from layerflow.model.adapters import TARGETS
from manifests.train import FREE_FIELDS, TrainManifest
from trainer.data import open_latents
from trainer.recipe.hooks import hook_packages

CHANGES = "data_changes"  # in a run's record: where the last stage got other data


def identity(manifest: TrainManifest) -> dict[str, Any]:
    """What a run is made of: the manifest, hashes of the model and of the latents' rows, and the
    packages of its hooks."""
    model = Path(manifest.model)
    used = {c.latents for stage in manifest.stages for c in stage.mixture}
    packages = hook_packages(manifest)
    return {
        "manifest": json.loads(manifest.model_dump_json()),
        "model": {**model_fingerprint(model), "transformer": folder_hash(model / "transformer")},
        "latents": {name: open_latents(manifest.folder(name)).identity() for name in sorted(used)},
        **({"packages": packages} if packages else {}),
    }


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], *, new_data: bool = False
) -> list[str]:
    """Why the run `new` cannot continue the run `old` (both by `identity`): a line a field.

    `FREE_FIELDS` and folder names do not count (folders are compared by content), nor do more
    steps in the last stage. new_data: nor does what the last stage alone trains on.
    """
    changed, data = _changed(old, new), data_of_last(old, new)
    return [line for name, line in changed.items() if not (new_data and data.match(name))]


def data_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Of `differences`, those in what the last stage alone trains on."""
    data = data_of_last(old, new)
    return [line for name, line in _changed(old, new).items() if data.match(name)]


def data_of_last(old: Mapping[str, Any], new: Mapping[str, Any]) -> re.Pattern[str]:
    """Names of fields that say what the last stage trains on: its mixture, and latents that no
    stage before it has."""
    before = {
        component["latents"]
        for run in (old, new)
        for stage in run["manifest"]["stages"][:-1]
        for component in stage["mixture"]
    }
    own = {*old.get("latents", {}), *new.get("latents", {})} - before
    names = "|".join(re.escape(name) for name in sorted(own))
    last = len(new["manifest"]["stages"]) - 1
    return re.compile(rf"manifest\.stages\[{last}\]\.mixture\b|latents\.(?:{names})(?:\.|$)")


def _changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
    """Field -> what changed, of those that may not."""
    kept = {name: value for name, value in _with_fields_since(old).items() if name != CHANGES}
    before, after = _flat(kept), _flat(_with_fields_since(new))
    last = f"manifest.stages[{len(new['manifest']['stages']) - 1}].steps"
    if after.get(last, 0) > before.get(last, 0) > 0:
        before[last] = after[last]
    free = re.compile(rf"manifest\.({'|'.join((*free_fields(new), 'model', 'latents'))})\b")
    return {
        name: f"{name.removeprefix('manifest.')}: {before.get(name)!r} -> {after.get(name)!r}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name) and not free.match(name)
    }


def free_fields(identity: Mapping[str, Any]) -> tuple[str, ...]:
    """Fields that may change in a run. Where a stage has `patience`, its validation decides when
    it ends: then only what is shown of it may."""
    if not any(stage.get("patience") for stage in identity["manifest"]["stages"]):
        return FREE_FIELDS
    shown = (r"validation\.samples", r"validation\.sample_steps", r"validation\.guidance")
    others = tuple(name for name in FREE_FIELDS if name != "validation")
    return (*others, *shown, r"validation\.keep_best")


def _with_fields_since(record: Mapping[str, Any]) -> dict[str, Any]:
    """A run's record with the fields that came later, or are left out, at what they mean then."""
    manifest = record["manifest"]

    def optimizer(said: Any) -> Any:
        return {"decay_on": "all", **said} if said else said

    def stage(said: Mapping[str, Any]) -> dict[str, Any]:
        mixture = [{"foregrounds": [], **component} for component in said["mixture"]]
        changed = {"optimizer": optimizer(said.get("optimizer")), "mixture": mixture}
        if isinstance(said["trains"], Mapping) and "lora" in said["trains"]:
            changed["trains"] = {"targets": list(TARGETS), **said["trains"]}
        return {"ema_warmup": False, **said, **changed}

    stages = [stage(said) for said in manifest["stages"]]
    filled = {**manifest, "stages": stages, "optimizer": optimizer(manifest.get("optimizer"))}
    return {**record, "manifest": filled}


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping):
        items = [(f"{prefix}.{key}" if prefix else str(key), v) for key, v in value.items()]
    elif isinstance(value, list) and any(isinstance(v, (Mapping, list)) for v in value):
        items = [(f"{prefix}[{index}]", v) for index, v in enumerate(value)]
    else:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for name, item in items:
        flat |= _flat(item, name)
    return flat
