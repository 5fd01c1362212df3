"""Parameters of a stage that train at a rate or a decay of their own.

`grouped` is the order in which parameters lie in memory: those with equal settings side by side, so
that each group is one tensor for the optimizer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from layerflow.model.base import base_of
from manifests.train_stage import Lora, Optimizer, Stage
from trainer.optimizer import decays


@dataclass(frozen=True)
class Setting:
    """How a parameter trains.

    rate: times the stage's learning rate. decay: instead of the optimizer's `weight_decay`; None:
    that. whole: `decay` shrinks it whatever it is; else only if weight decay would. matrix: a
    matrix of a block, which Muon trains.
    """

    rate: float = 1.0
    decay: float | None = None
    whole: bool = False
    matrix: bool = False


@dataclass(frozen=True)
class Group:
    """Parameters with one setting. shrunk: whether weight decay means them."""

    setting: Setting
    shrunk: bool
    names: tuple[str, ...]

    def decay(self, options: Optimizer) -> float:
        """The weight decay of all of them."""
        if self.setting.decay is not None and (self.shrunk or self.setting.whole):
            return self.setting.decay
        if self.shrunk or options.decay_on == "all":
            return options.weight_decay if self.setting.decay is None else self.setting.decay
        return 0.0

    def about(self, options: Optimizer) -> dict[str, Any]:
        """What an optimizer's group says of it; the loop sets `lr` to `rate` times the stage's."""
        return {
            "weight_decay": self.decay(options),
            "rate": self.setting.rate,
            "matrix": self.setting.matrix,
        }


def grouped(
    parameters: Mapping[str, Tensor], settings: Mapping[str, Setting] | None = None
) -> list[Group]:
    """Groups of equal settings; those that weight decay means come first, as far as no setting
    says otherwise. settings: of names; those left out train as the stage says."""
    said = settings or {}
    found: dict[tuple[Setting, bool], list[str]] = {}
    for shrunk in (True, False):
        for name, parameter in parameters.items():
            if decays(name, parameter) == shrunk:
                found.setdefault((said.get(name, Setting()), shrunk), []).append(name)
    return [Group(setting, shrunk, tuple(names)) for (setting, shrunk), names in found.items()]


def stage_settings(
    transformer: nn.Module, names: Sequence[str], stage: Stage, kind: str
) -> dict[str, Setting]:
    """Settings of the parameters that a stage trains, by its `groups`, its adapter's `plus` and the
    kind of its optimizer. ValueError for a group that is empty, and for a parameter in two."""
    blocks = f"{base_of(transformer).blocks}."
    plus = stage.trains.plus if isinstance(stage.trains, Lora) else 1.0
    shapes = {name: parameter.ndim for name, parameter in transformer.named_parameters()}
    of: dict[str, str] = {}
    for group in stage.groups:
        matched = [name for name in names if _matches(group, name, blocks)]
        if not matched:
            raise ValueError(f"stage {stage.name!r}: groups: it trains nothing in {group!r}")
        for name in matched:
            if name in of:
                raise ValueError(
                    f"stage {stage.name!r}: groups: {name} is in {of[name]!r} and in {group!r}"
                )
            of[name] = group
    settings = {}
    for name in names:
        said = stage.groups.get(of.get(name, ""))
        settings[name] = Setting(
            rate=(said.rate if said else 1.0) * (plus if ".lora_B." in name else 1.0),
            decay=said.decay if said else None,
            whole=said is not None and of[name] not in ("blocks", "lora"),
            matrix=kind == "muon" and shapes[name] == 2 and name.startswith(blocks),
        )
    return settings


def _matches(group: str, name: str, blocks: str) -> bool:
    lora = ".lora_" in name
    if group == "lora":
        return lora
    if group == "blocks":
        return name.startswith(blocks) and not lora
    if group == "layer_embedding":
        return name.startswith("layer_embedding.")
    plain = name.replace(".base_layer.", ".")  # as it is called where no adapter is
    return not lora and (fnmatchcase(name, group) or fnmatchcase(plain, group))
