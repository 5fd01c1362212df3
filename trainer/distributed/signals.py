"""What all workers must do at the same step: save and end, save, or give up.

SIGTERM reaches the workers at different moments, and their clocks differ. So each puts its requests
beside its gradients, and all read the sums. Reading makes a GPU wait until it has done all that it
was told; so there a step's numbers are copied away and read when the next step is on its way.
"""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

import torch

from manifests.train_stage import Stage
from trainer.distributed.processes import World
from trainer.metrics import Metrics

if TYPE_CHECKING:
    from trainer.distributed.fsdp import Sharded
    from trainer.stages import Trained


@dataclass(frozen=True)
class Heard:
    """What all workers agree on."""

    stop: bool = False
    save: bool = False
    in_a_row: int = 0
    """Steps that were skipped one after the other, up to now."""


class Signals:
    """One stage's signals, on one worker.

    terminated: set when this worker is told to stop. minutes: from one checkpoint to the next, by
    rank 0's clock; None: no saving by the clock. late: read each step's numbers one step later.
    """

    def __init__(
        self,
        world: World,
        terminated: threading.Event,
        minutes: float | None,
        *,
        late: bool | None = None,
    ) -> None:
        self.terminated = terminated
        self.interval = math.inf if minutes is None or world.rank else 60 * minutes
        self.late = world.device.type == "cuda" if late is None else late
        self.saved()

    def saved(self) -> None:
        """A checkpoint was written: the clock begins again, and no earlier request counts."""
        self.since = time.monotonic()
        self._before: tuple[torch.Tensor, torch.cuda.Event | None] | None = None

    def send(self, trained: Trained | Sharded) -> None:
        """Put this worker's requests beside its gradients, before they are summed."""
        trained.stop.fill_(float(self.terminated.is_set()))
        trained.due.fill_(float(time.monotonic() - self.since >= self.interval))

    def receive(self, trained: Trained | Sharded, in_a_row: torch.Tensor) -> Heard:
        """What all workers agree on: in this step, or in the one before where that is read late.
        All give the same answer at the same step."""
        now = self._copy(torch.cat([trained.stop, trained.due, in_a_row.view(1)]))
        if self.late:
            earlier, self._before = self._before, now
            if earlier is None:
                return Heard()
            now = earlier
        numbers, copied = now
        if copied is not None:
            copied.synchronize()  # waits for the step before; this one is queued behind it
        stop, save, skips = numbers.tolist()
        return Heard(stop > 0, save > 0, int(skips))

    def _copy(self, numbers: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event | None]:
        if numbers.device.type != "cuda":
            return numbers, None
        copy = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
        copy.copy_(numbers, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        return copy, event


def skips(count: int, done: int) -> str:
    """What is said of skipped steps at the end of a stage; empty for none."""
    return f"{count} of {done} steps were skipped: their gradients were not finite" if count else ""


def give_up(stage: Stage, metrics: Metrics, in_a_row: int, done: int) -> NoReturn:
    """End a run that learns nothing any more. On every rank; only rank 0 has figures to show."""
    row = metrics.flush() or {}
    metrics.close()
    raise ValueError(
        f"stage {stage.name!r}: {in_a_row} steps in a row, up to step {done} of {stage.steps}, "
        f"were skipped: their gradients were not finite (loss {row.get('loss', '?')}, norm "
        f"{row.get('grad_norm', '?')}). Nothing was exported, and skipped steps change no weight: "
        "the newest checkpoint is as good as ever. Look at metrics.csv for where it began; usual "
        "causes are a learning rate that is too high, or latents that are not finite"
    )
