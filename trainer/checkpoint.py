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

import re
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from layerflow.documents import read_json
from layerflow.files import building, new_folder, replacing, write_json
from manifests.train import TrainManifest
from manifests.train_stage import Stage
from trainer.distributed.processes import ALONE, World
from trainer.stages import Trained

if TYPE_CHECKING:
    from trainer.distributed.fsdp import Sharded

OWN = ("run.json", "checkpoints", "stages", "export", "best", "samples", "tensorboard")
MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's, one number each for a parameter's number
ADAPTED = ("d", "d_max", "d_numerator", "k")  # numbers that Prodigy keeps in its groups
STATE = "state.safetensors"
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


# ---- inside a stage ---------------------------------------------------------------------------


def writing(manifest: TrainManifest) -> AbstractContextManager[Behind | None]:
    """What writes a run's checkpoints behind its steps, if the manifest wants that."""
    if not manifest.async_save:
        return nullcontext()
    return Behind(parts=any(stage.parallel == "fsdp" for stage in manifest.stages))


class Behind:
    """Writes checkpoints behind the steps, one at a time. On every worker; ends with its `with`.

    group: of all workers, for those that each write their part: what they say to each other must
    not meet the sums of the steps.
    """

    def __init__(self, *, parts: bool) -> None:
        self.group = dist.new_group(backend="gloo") if parts and dist.is_initialized() else None
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._begun: Future[None] | None = None

    def start(self, write: Callable[[], None]) -> None:
        """Do this in the background; after what was begun before."""
        self.wait()
        self._begun = self._thread.submit(write)

    def wait(self) -> None:
        """Until what was begun is on the disk. Raises what went wrong with it."""
        begun, self._begun = self._begun, None
        if begun is not None:
            begun.result()

    def __enter__(self) -> Behind:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._thread.shutdown()
        if kind is None:  # else that error is the one to hear of
            self.wait()


def save(
    out: Path,
    stage: str,
    trained: Trained | Sharded,
    optimizer: torch.optim.Optimizer,
    position: Position,
    *,
    keep: int,
    world: World = ALONE,
    behind: Behind | None = None,
    done: Callable[[Path], None] = lambda path: None,
) -> Path:
    """Write a checkpoint, drop all but the stage's `keep` newest, and call `done` with its folder.

    Call on every worker. behind: copy to CPU memory what there is to write, and return; rank 0
    publishes the folder when all have written. Errors are then those of the next call or `wait`.
    """
    path = out / "checkpoints" / f"{stage}-{position.step:08d}"
    main = world.rank == 0
    if behind is not None:
        behind.wait()
    about = {"stage": stage, **asdict(position), "updates": updates(optimizer)}
    if found := adapted(optimizer):
        about["groups"] = found
    with ExitStack() as opened:
        folder = opened.enter_context(new_folder(path, replace=True)) if main else building(path)
        write: Callable[[], object] = lambda: None  # noqa: E731
        if not isinstance(trained, Trained):
            world.wait()  # for the folder
            write = trained.saving(folder, optimizer, behind)
        elif main:
            write = partial(save_file, flat_state(trained, optimizer), folder / STATE)
        built = opened.pop_all()

    def finish() -> None:
        with built:
            write()
            if main:
                write_json(folder / "position.json", about)
        if main:
            for old in checkpoints(out, stage)[:-keep]:
                shutil.rmtree(old)
            done(path)

    if behind is not None:
        behind.start(finish)
    else:
        finish()
        world.wait()
    return path


def flat_state(trained: Trained, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Copies of weights, average and what the optimizer keeps, on the CPU."""
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
    return tensors | {  # of optimizers that keep other things than one number a parameter
        f"optimizer/{index}/{name}": value.detach().clone().cpu()
        for index, state in enumerate(states)
        for name, value in state.items()
        if isinstance(value, torch.Tensor) and name not in others
    }


def updates(optimizer: torch.optim.Optimizer) -> int:
    """How many the moments have seen."""
    return next((int(state["step"]) for state in optimizer.state.values() if "step" in state), 0)


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
    tensors = load_file(found[-1] / STATE)
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
