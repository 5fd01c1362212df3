"""One row of figures a step, to CSV and the trackers.

Loss and gradient norm stay on the device until `flush`, so that logging never makes it wait.
"""

from __future__ import annotations

import csv
import resource
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from layerflow.files import replacing
from layerflow.model.base import Costs, base_of
from trainer.data import Batch
from trainer.planning.costs import peak_of
from trainer.tracking.trackers import Trackers

if TYPE_CHECKING:
    from trainer.distributed.fsdp import Sharded
    from trainer.runtime import Run
    from trainer.stages import Trained

COLUMNS = (
    "step",  # over the whole run
    "stage",
    "stage_step",
    "loss",
    "grad_norm",  # before clipping
    "learning_rate",
    "skipped",  # steps so far whose gradient was not finite
    "seconds",
    "data_wait",  # of `seconds`, waiting for the batch
    "samples_per_second",
    "tokens_per_second",
    "tflops",  # TFLOP/s over all workers
    "mfu",  # of the devices' bf16 peak; empty where that is not known
    "memory_gib",  # reserved on the device, or resident on a CPU
)


class Metrics:
    """Collects rows and writes them every `flush`. Rows after `resume_at` are dropped first.

    costs: FLOPs and tokens of one sample of a shape with so many prompts. world: how many workers
    train. trackers: opens what else is told. Only the process with `main` set writes; on the others
    all methods do nothing.
    """

    def __init__(
        self,
        out: Path,
        *,
        costs: Callable[[tuple[int, ...], int], Costs],
        device: torch.device,
        world: int = 1,
        resume_at: int = 0,
        trackers: Callable[[], Trackers] | None = None,
        main: bool = True,
    ) -> None:
        self.main, self.costs, self.device, self.world = main, costs, device, world
        self.peak = device_peak(device)
        self._pending: list[dict[str, Any]] = []
        self._beside: dict[int, list[tuple[str, Mapping[str, float]]]] = {}
        self.trackers: Trackers | None = None
        if not main:
            return
        self.path = out / "metrics.csv"
        rewind(self.path, COLUMNS, resume_at)
        self._file = self.path.open("a", newline="")
        self._csv = csv.DictWriter(self._file, COLUMNS)
        if trackers:
            self.trackers = trackers()

    def step(self, batches: Sequence[Batch], *, samples: int, seconds: float, **row: Any) -> None:
        """Keep the row of one step; values may be tensors on any device.

        batches: what this worker ran. samples: those of all workers, which are taken to have run
        the like.
        """
        if not self.main:
            return
        costs = [self.costs(tuple(b.latents.shape[1:]), b.prompt_embeds.shape[1]) for b in batches]
        share = samples / sum(batch.size for batch in batches)
        sizes = [batch.size * share for batch in batches]
        flops = sum(size * cost.total for size, cost in zip(sizes, costs, strict=True)) / seconds
        tokens = sum(size * cost.tokens for size, cost in zip(sizes, costs, strict=True))
        self._pending.append(
            {
                **row,
                "seconds": round(seconds, 6),
                "samples_per_second": round(samples / seconds, 3),
                "tokens_per_second": round(tokens / seconds, 1),
                "tflops": round(flops / 1e12, 6),
                "mfu": round(flops / (self.peak * self.world), 4) if self.peak else None,
                "memory_gib": round(memory_gib(self.device), 3),
            }
        )

    def flush(self) -> dict[str, Any] | None:
        """Write all kept rows; returns the last, as numbers, with means of `seconds` and
        `data_wait` over all of them."""
        rows, self._pending = self._pending, []
        if not rows:
            return None
        for name in ("loss", "grad_norm", "skipped"):
            values = torch.stack([torch.as_tensor(row[name]).float() for row in rows]).tolist()
            for row, value in zip(rows, values, strict=True):
                row[name] = int(value) if name == "skipped" else value
        for row in rows:
            self._csv.writerow({name: _text(row.get(name)) for name in COLUMNS})
            self.scalars("train", row["step"], row)
            for group, values in self._beside.pop(row["step"], ()):
                self.scalars(group, row["step"], values)
        self._file.flush()
        if self.trackers:
            self.trackers.samples()
        means = {name: sum(r[name] for r in rows) / len(rows) for name in ("seconds", "data_wait")}
        return {**rows[-1], **means}

    def beside(self, group: str, step: int, values: Mapping[str, float]) -> None:
        """Keep numbers for the trackers until the row of their step is written."""
        if self.main:
            self._beside.setdefault(step, []).append((group, values))

    def scalars(self, group: str, step: int, values: Mapping[str, Any]) -> None:
        """Send numbers to the trackers under `group/`."""
        numbers = {
            f"{group}/{name}": value
            for name, value in values.items()
            if isinstance(value, (int, float)) and name not in ("step", "stage_step")
        }
        if self.trackers:
            self.trackers.scalars(step, numbers)

    def close(self) -> None:
        self.flush()
        if self.main:
            self._file.close()
        if self.trackers:
            self.trackers.close()


def make_metrics(run: Run, trained: Trained | Sharded, resume_at: int) -> Metrics:
    step_costs = base_of(run.transformer).step_costs
    return Metrics(
        run.out,
        costs=cache(
            lambda shape, prompts: step_costs(
                run.transformer, shape, trained.parameters, prompts=prompts
            )
        ),
        device=run.world.device,
        world=run.world.size,
        resume_at=resume_at,
        trackers=lambda: Trackers(run.out, run.manifest, resume_at, run.log),
        main=run.world.rank == 0,
    )


def line(row: Mapping[str, Any], steps: int) -> str:
    """A row for people: where it stands, the loss, the speed, and when it ends."""
    left = (steps - row["stage_step"]) * row["seconds"]
    wait = 100 * row["data_wait"] / row["seconds"]
    skipped = f"{row['skipped']} skipped  " if row["skipped"] else ""
    return (
        f"{row['stage']} {row['stage_step']}/{steps}  loss {row['loss']:.4f}  "
        f"norm {row['grad_norm']:.3f}  {skipped}{row['seconds']:.3f} s/step  "
        f"{row['samples_per_second']:.1f} samples/s  data wait {wait:.1f} %  "
        f"{left / 60:.1f} min left"
    )


def _text(value: Any) -> Any:
    return repr(value) if isinstance(value, float) else value


def rewind(path: Path, columns: tuple[str, ...], step: int) -> None:
    """Leave a CSV file with its header and the rows up to `step`; a torn last row goes too."""
    rows = [row for row in read(path) if row["step"] <= step] if path.is_file() and step else []
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for row in rows:
            writer.writerow({name: _text(row.get(name)) for name in columns})


def read(path: str | Path) -> list[dict[str, Any]]:
    """The rows of metrics.csv or validation.csv, numbers as numbers; torn rows left out."""
    with Path(path).open(newline="") as file:
        rows = []
        for raw in csv.DictReader(file):
            if None in raw or None in raw.values():
                continue
            row = {name: _number(value) for name, value in raw.items()}
            if isinstance(row["step"], int):
                rows.append(row)
        return rows


def _number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text or None


def device_peak(device: torch.device) -> float | None:
    """Dense bf16 peak of a device in FLOP/s, or None where it is not known."""
    return peak_of(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def memory_gib(device: torch.device) -> float:
    """Most memory so far: reserved by torch on a GPU, resident in this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
