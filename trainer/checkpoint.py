"""Training state on disk: complete or absent, and refused when it belongs to another run.

    OUT/run.json                        the manifest, the model and the latents of the run
    OUT/checkpoints/STAGE-00000500/     where a stage stands: weights, optimizer, average
    OUT/stages/STAGE/                   what a finished stage trained
    OUT/export/                         the pipeline with all of it, for use (trainer/export.py)
    OUT/best/STAGE/                     the same at the lowest held-out loss, when asked for
    OUT/samples/                        clips sampled at validations, when asked for

Tensors are safetensors, the rest is JSON; nothing is pickled. A folder is written under a
temporary name, synced, and renamed.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

from layerflow.corpus.fingerprint import folder_hash, model_fingerprint
from layerflow.documents import read_json
from layerflow.files import building, new_folder, replacing, write_json
from layerflow.model.adapters import TARGETS
from manifests.train import FREE_FIELDS, TrainManifest
from manifests.train_stage import Stage
from trainer.data import open_latents
from trainer.distributed.processes import ALONE, World
from trainer.recipe.hooks import hook_packages
from trainer.stages import Trained

if TYPE_CHECKING:
    from trainer.distributed.fsdp import Sharded

OWN = ("run.json", "checkpoints", "stages", "export", "best", "samples", "tensorboard")
MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's, one number each for a parameter's number
ADAPTED = ("d", "d_max", "d_numerator", "k")  # numbers that Prodigy keeps in its groups
CHANGES = "data_changes"  # in a run's record: where the last stage got other data
OWN_FILES = ("metrics.csv", "validation.csv", "trackers.json")


@dataclass(frozen=True)
class Position:
    """Where a stage stands: steps done, and steps skipped because they were not finite, of which
    the last `in_a_row` came one after the other. With `patience` also the lowest held-out loss,
    and how many validations ago it was."""

    step: int = 0
    skipped: int = 0
    in_a_row: int = 0
    best: float | None = None
    since: int = 0


# ---- whose run it is --------------------------------------------------------------------------


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


# ---- inside a stage ---------------------------------------------------------------------------


def save(
    out: Path,
    stage: str,
    trained: Trained | Sharded,
    optimizer: torch.optim.Optimizer,
    position: Position,
    *,
    keep: int,
    world: World = ALONE,
) -> Path:
    """Write a checkpoint and drop all but the stage's `keep` newest. Call on every worker."""
    path = out / "checkpoints" / f"{stage}-{position.step:08d}"
    main = world.rank == 0
    with new_folder(path, replace=True) if main else nullcontext(building(path)) as temporary:
        if isinstance(trained, Trained):
            updates = save_flat(trained, optimizer, temporary) if main else 0
        else:
            world.wait()
            updates = trained.save(temporary, optimizer)
            world.wait()
        if main:
            about = {"stage": stage, **asdict(position), "updates": updates}
            if found := adapted(optimizer):
                about["groups"] = found
            write_json(temporary / "position.json", about)
    if main:
        for old in checkpoints(out, stage)[:-keep]:
            shutil.rmtree(old)
    world.wait()
    return path


def save_flat(trained: Trained, optimizer: torch.optim.Optimizer, folder: Path) -> int:
    """One file of everything; returns how many updates the moments have seen."""
    # not from state_dict(): the 8-bit optimizer's hides its moments in there
    states: list[dict[str, Any]] = [
        optimizer.state.get(flat, {}) for flat in flat_parameters(optimizer)
    ]
    flats, others = {"values": trained.values}, {"step"}
    if trained.average is not None:
        flats["average"] = trained.average
    if all(name in state for state in states for name in MOMENTS):
        flats |= {n: torch.cat([state[n].cpu() for state in states]) for n in MOMENTS}
        others |= set(MOMENTS)
    tensors = {
        f"{kind}/{name}": view.detach().clone().cpu()
        for kind, flat in flats.items()
        for name, view in trained.views(flat).items()
    }
    tensors |= {  # of optimizers that keep other things than one number a parameter
        f"optimizer/{index}/{name}": value.detach().clone().cpu()
        for index, state in enumerate(states)
        for name, value in state.items()
        if isinstance(value, torch.Tensor) and name not in others
    }
    save_file(tensors, folder / "state.safetensors")
    return next((int(state["step"]) for state in states if "step" in state), 0)


def flat_parameters(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """The parts of `Trained.values` that an optimizer has, one a group, in their order."""
    return [flat for group in optimizer.param_groups for flat in group["params"]]


def adapted(optimizer: torch.optim.Optimizer) -> list[dict[str, float]]:
    """What an optimizer found out by itself about each group (Prodigy's rate); usually nothing."""
    said = [{k: g[k] for k in ADAPTED if k in g} for g in optimizer.param_groups]
    return said if any(said) else []


def checkpoints(out: Path, stage: str) -> list[Path]:
    """A stage's checkpoints, oldest first."""
    pattern = re.compile(rf"{re.escape(stage)}-\d{{8}}")
    folder = out / "checkpoints"
    found = folder.iterdir() if folder.is_dir() else []
    return sorted(path for path in found if pattern.fullmatch(path.name))


POSITION: dict[str, type] = {"step": int, "skipped": int, "updates": int}


def restore(
    out: Path, stage: str, trained: Trained | Sharded, optimizer: torch.optim.Optimizer
) -> Position | None:
    """Load the stage's newest checkpoint into place; None if there is none."""
    found = checkpoints(out, stage)
    if not found:
        return None
    about = read_json(found[-1] / "position.json", POSITION)
    later = {name: about[name] for name in ("in_a_row", "best", "since") if name in about}
    position = Position(about["step"], about["skipped"], **later)
    if not isinstance(trained, Trained):
        trained.restore(found[-1], optimizer, about["updates"])
        return position
    tensors = load_file(found[-1] / "state.safetensors")
    kinds: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        kind, name = key.split("/", 1)
        kinds.setdefault(kind, {})[name] = tensor
    trained.load(trained.values, kinds["values"])
    if trained.average is not None:
        trained.load(trained.average, kinds["average"])
    states = optimizer_states(trained, optimizer, kinds, about["updates"])
    if states:
        optimizer.load_state_dict({**optimizer.state_dict(), "state": dict(enumerate(states))})
    for group, said in zip(optimizer.param_groups, about.get("groups", []), strict=False):
        group |= said
    return position


def restored(out: Path, stage: Stage, trained: Trained | Sharded) -> str:
    """What `restore` has put back, in words."""
    path = checkpoints(out, stage.name)[-1]
    about = read_json(path / "position.json", POSITION)
    parts = ["weights", *(["average"] if trained.average is not None else [])]
    parts += [f"moments of {about['updates']} updates"] if about["updates"] else []
    skipped = f", {about['skipped']} skipped" if about["skipped"] else ""
    where = f"{stage.name}: goes on after step {about['step']} of {stage.steps}"
    return f"{where}: {', '.join(parts)} from {path.relative_to(out)}{skipped}"


def optimizer_states(
    trained: Trained,
    optimizer: torch.optim.Optimizer,
    kinds: Mapping[str, Mapping[str, torch.Tensor]],
    updates: int,
) -> list[dict[str, Any]]:
    """Of each of the optimizer's flat parameters, what a checkpoint's tensors say of it."""
    flats = flat_parameters(optimizer)
    own = kinds.get("optimizer", {})
    if own and not all("/" in key for key in own):
        raise ValueError(
            "the checkpoint's 8-bit moments are in the order of an earlier version: finish the "
            "stage with that version, or start over with --fresh"
        )
    if not own and "exp_avg" not in kinds:
        return []
    states: list[dict[str, Any]] = [
        {key.split("/")[1]: value for key, value in own.items() if key.startswith(f"{i}/")}
        for i in range(len(flats))
    ]
    for name in MOMENTS if "exp_avg" in kinds else ():
        moments = torch.zeros_like(trained.values)
        trained.load(moments, kinds[name])
        for state, part in zip(states, moments.split([len(f) for f in flats]), strict=True):
            state[name] = part
    for state in states:
        if "momentum_buffer" not in state:  # Muon counts no steps
            state["step"] = torch.tensor(float(updates)) if "exp_avg" in state else updates
    return states


# ---- after a stage ----------------------------------------------------------------------------


def save_stage(
    out: Path, stage: str, tensors: dict[str, torch.Tensor], steps: int, ended: int
) -> None:
    """Keep what a finished stage trained (its average, if it has one), and mark it as done.

    steps: of the manifest; ended: after how many of them it ended, early or not.
    """
    path = out / "stages" / stage
    path.mkdir(parents=True, exist_ok=True)
    with replacing(path / "trained.safetensors") as temporary:
        save_file(tensors, temporary)
    write_json(
        path / "stage.json", {"stage": stage, "steps": steps, "ended": ended}
    )  # last: "done"


def stage_steps(out: Path, stage: str) -> int:
    """How many steps a finished stage had; 0 if it is not finished."""
    path = out / "stages" / stage / "stage.json"
    return int(read_json(path, {"steps": int})["steps"]) if path.is_file() else 0


def load_stage(out: Path, stage: str, transformer: torch.nn.Module) -> None:
    """Put what a finished stage trained back into the model (its adapter must be attached).
    Nothing happens to a network without weights."""
    if next(transformer.parameters()).is_meta:
        return
    fill(transformer, load_file(out / "stages" / stage / "trained.safetensors"), f"stage {stage!r}")


def fill(transformer: torch.nn.Module, tensors: Mapping[str, torch.Tensor], whose: str) -> None:
    """Copy tensors into the model's parameters. ValueError for one that it does not have."""
    parameters = dict(transformer.named_parameters())
    absent = sorted(tensors.keys() - parameters.keys())
    if absent:
        raise ValueError(f"{whose} trained {absent[0]}, which the model lacks")
    with torch.no_grad():
        for name, tensor in tensors.items():
            parameters[name].copy_(tensor)
