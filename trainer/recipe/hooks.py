"""Code of experiments that runs before and after each step of a run.

    hooks: {gradient-norms: {every: 20}}

A hook is an object with `before` and `after`, made with the options that the manifest gives it; by
name as every plug-in (`layerflow/plugins.py`), from a package's entry points of the group
`layerflow.hooks`. It runs on every worker. It may change weights, so it is part of the run: a run
with another hook is another run. To stay exact under resume, what it does must depend on the step
alone, not on what it saw before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch

from layerflow.model.base import base_of
from layerflow.plugins import Plugins
from manifests.train import TrainManifest
from manifests.train_stage import Stage

if TYPE_CHECKING:
    from trainer.distributed.fsdp import Sharded
    from trainer.metrics import Metrics
    from trainer.runtime import Run
    from trainer.stages import Trained

HOOKS = Plugins(
    "layerflow.hooks",
    "hook",
    {"gradient-norms": "trainer.recipe.hooks:GradientNorms"},
    attributes=("before", "after"),
)


@dataclass(frozen=True)
class Step:
    """What a hook sees. trained: the parameters by name, each with its gradient, which after the
    step is the clipped one, summed over all workers. number: of the step in its stage, from 0. at:
    of the step in the run, from 1, as in metrics.csv."""

    run: Run
    stage: Stage
    trained: Trained | Sharded
    metrics: Metrics
    number: int
    at: int

    def scalars(self, group: str, values: Mapping[str, float]) -> None:
        """Send figures of this step to the trackers, as `group/name`."""
        self.metrics.beside(group, self.at, values)


class Hook(Protocol):
    def before(self, step: Step) -> None:
        """Before the first forward pass."""

    def after(self, step: Step) -> None:
        """After the optimizer's step and the moving average's."""


def make_hooks(manifest: TrainManifest) -> list[Hook]:
    """The manifest's hooks, in their order. ValueError for an unknown one or a wrong option."""
    return [HOOKS.make(name, {}, options) for name, options in manifest.hooks.items()]


class Hooks:
    """The hooks of a stage, on one worker. first: steps of the run before it."""

    def __init__(
        self, run: Run, stage: Stage, trained: Trained | Sharded, metrics: Metrics, first: int
    ) -> None:
        self.hooks, self.first = make_hooks(run.manifest), first
        if run.manifest.profile is not None and run.world.rank == 0:
            self.hooks.append(Profiler(*run.manifest.profile.steps))
        self.seen = partial(Step, run, stage, trained, metrics)

    def before(self, number: int) -> None:
        for hook in self.hooks:
            hook.before(self.seen(number, self.first + number + 1))

    def after(self, number: int) -> None:
        for hook in self.hooks:
            hook.after(self.seen(number, self.first + number + 1))


class GradientNorms:
    """Sends the norm of the gradient of each block, and of what lies outside of them, to the
    trackers, every so many steps: which part of the network still learns."""

    def __init__(self, every: int = 20) -> None:
        self.every = every

    def before(self, step: Step) -> None:
        pass

    def after(self, step: Step) -> None:
        if (step.number + 1) % self.every:
            return
        blocks = f"{base_of(step.run.transformer).blocks}."
        parts: dict[str, list[torch.Tensor]] = {}
        for name, parameter in step.trained.parameters.items():
            words = name.split(".")
            part = ".".join(words[:2]) if name.startswith(blocks) else words[0]
            parts.setdefault(part, []).append(parameter.grad.float().norm())
        norms = {part: float(torch.stack(each).norm()) for part, each in parts.items()}
        step.scalars("gradient_norms", norms)


class Profiler:
    """Records steps of the run, `first` to `last` (from 1, as far as they lie in one stage), into
    `OUT/profile/STAGE-FIRST-LAST.json`, which Perfetto and chrome://tracing open. Shapes are in it;
    recorded steps are slower than others."""

    def __init__(self, first: int, last: int) -> None:
        self.first, self.last = first, last
        self.recording: torch.profiler.profile | None = None

    def before(self, step: Step) -> None:
        if self.recording is None and self.first <= step.at <= self.last:
            self.first = step.at
            self.recording = torch.profiler.profile(record_shapes=True)
            self.recording.start()

    def after(self, step: Step) -> None:
        if self.recording is None or (step.at < self.last and step.number + 1 < step.stage.steps):
            return
        if step.run.world.device.type == "cuda":
            torch.cuda.synchronize(step.run.world.device)  # what was launched belongs to it
        self.recording.stop()
        folder = step.run.out / "profile"
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{step.stage.name}-{self.first}-{step.at}.json"
        self.recording.export_chrome_trace(str(file))
        step.run.log(f"{step.stage.name}: steps {self.first} to {step.at} are in {file}")
        self.recording = None


def hook_packages(manifest: TrainManifest) -> dict[str, Any]:
    """What a run's record says of them: hook -> package and version, of those of packages."""
    found = {name: HOOKS.package(name) for name in manifest.hooks}
    return {name: package for name, package in found.items() if package}
