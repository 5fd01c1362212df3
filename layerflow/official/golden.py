"""Golden files: reading them, building their networks, noting differences."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from layerflow.model import adapters
from layerflow.model.cogvideox.official_sampler import signal_table
from layerflow.model.cogvideox.transformer import LayerFlowTransformer3DModel
from layerflow.model.layers import OfficialTask, official_task
from layerflow.official import names as official

Tensors = dict[str, Tensor]


@dataclass
class Results:
    """Largest absolute difference of each output of a golden file."""

    path: str
    kind: str
    differences: dict[str, float] = field(default_factory=dict)
    units: dict[str, float] = field(default_factory=dict)

    def compare(self, name: str, ours: Any, expected: Tensor, unit: float = 1.0) -> None:
        """Note the difference. unit: what the tolerance is multiplied by for this output."""
        ours = torch.as_tensor(ours)
        self.units[name] = unit
        if ours.shape != expected.shape:
            shapes = f"{list(ours.shape)}, expected {list(expected.shape)}"
            raise ValueError(f"{self.path}: {name} has shape {shapes}")
        gap = (ours.double() - expected.double()).abs()
        gap = torch.where(ours.double() == expected.double(), torch.zeros_like(gap), gap)
        self.differences[name] = float(gap.nan_to_num(float("inf")).max())

    def compare_all(self, outputs: Mapping[str, Any], tensors: Tensors, **units: float) -> None:
        """Note the differences of those outputs that the file holds. units: where not 1."""
        for name, ours in outputs.items():
            if name in tensors:
                self.compare(name, ours, tensors[name], units.get(name, 1.0))

    @property
    def largest(self) -> float:
        """The largest difference in units of the tolerance's own scale."""
        gaps = [gap / self.units[name] for name, gap in self.differences.items()]
        return max(gaps, default=float("inf"))

    def passes(self, tolerance: float) -> bool:
        return self.largest <= tolerance

    def lines(self, tolerance: float) -> list[str]:
        """A line per output and a verdict."""
        width = max(map(len, self.differences), default=0)
        out = [f"{self.path}: {self.kind}"]
        for name, gap in self.differences.items():
            unit = self.units[name]
            mark = "" if gap / unit <= tolerance else "   over tolerance"
            scale = "" if unit == 1 else f"   (tolerance times {unit:.4g})"
            out.append(f"  {name:<{width}}  {gap:.3e}{scale}{mark}")
        verdict = "passes" if self.passes(tolerance) else "FAILS"
        out.append(f"{verdict}: largest difference {self.largest:.3e}, tolerance {tolerance:g}")
        return out

    def check_complete(self, tensors: Tensors) -> None:
        """ValueError unless every output of the file has been compared."""
        outputs = [
            key for key in tensors if key[:2] in ("y.", "d.") and not key.endswith("token_idx")
        ]
        outputs += [key for key in tensors if key.startswith(("table.", "sampler"))]
        if left := sorted(set(outputs) - set(self.differences)):
            raise ValueError(f"{self.path}: no rule for the outputs {left}")
        if not self.differences:
            raise ValueError(f"{self.path} holds no outputs to compare")


def read_golden(path: Path) -> tuple[dict[str, str], Tensors]:
    try:
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            return file.metadata() or {}, tensors
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} is no readable safetensors file: {error}") from error


def load_network(metadata: dict[str, str], tensors: Tensors) -> LayerFlowTransformer3DModel:
    """The network of a golden file, both adapters loaded and active."""
    task = official_task(metadata.get("config"))
    sizes = json.loads(metadata.get("tiny_params", "{}"))
    size = (int(sizes["latent_height"]), int(sizes["latent_width"]))
    weights = {key.removeprefix("w."): v for key, v in tensors.items() if key.startswith("w.")}
    source = official.strip_prefix({key: official.Ready(value) for key, value in weights.items()})
    return build_network(source, task, size)


def build_network(
    source: official.Source, task: OfficialTask, latent_size: tuple[int, int]
) -> LayerFlowTransformer3DModel:
    """An official network in memory, from its original tensors; strict about every key."""
    model = LayerFlowTransformer3DModel(**official.network_config(source, task, latent_size))
    targets = official.base_targets(source, task)
    model.load_state_dict({target.name: target.load(source) for target in targets})
    for name, (rank, state) in sorted(official.adapter_tensors(source).items(), reverse=True):
        adapters.add_adapter(model, name, rank=rank, alpha=official.LORA_ALPHA)
        for key, tensor in adapters.adapter_state_dict(model, name).items():
            tensor.copy_(state[key].load())
    return model.eval()


def insert_given(task: OfficialTask, generated: Tensor, given: Tensor | None) -> Tensor:
    """The whole sequence ``[B, F, ...]`` from its generated and its given latents."""
    if given is None or task.layout.given_span is None:
        return generated
    start = task.layout.given_span[0]
    return torch.cat([generated[:, :start], given, generated[:, start:]], 1)


def generated_rows(task: OfficialTask, sequence: Tensor) -> Tensor:
    """The generated latents of a whole sequence."""
    keep = [i for i, given in enumerate(task.layout.given_frames()) if not given]
    return sequence[:, keep]


def snap(sigma: Tensor) -> Tensor:
    """Index of the table entry nearest to each sqrt(abar)."""
    table = torch.from_numpy(signal_table())
    return (sigma[:, None] - table[None]).abs().argmin(1)
