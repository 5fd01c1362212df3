"""Ending a stage when its held-out loss gets no better.

Only validations of the manifest's cadence count, not the one of a checkpoint at which the run was
told to stop: so a run that was stopped and continued ends at the step at which an unbroken one
does. What was seen so far is part of the checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from manifests.train import Validation
from manifests.train_stage import Stage
from trainer.checkpoint import Position


class Patience:
    """Of one stage. All workers have the same losses, so all end at the same step.

    best: the lowest mean loss so far; since: how many validations ago that was.
    """

    def __init__(self, stage: Stage, validation: Validation | None, position: Position) -> None:
        self.said, self.steps = stage.patience, stage.steps
        self.every = validation.every if validation else 1
        self.best, self.since = position.best, position.since

    def see(self, done: int, losses: Mapping[str, float]) -> None:
        """The held-out losses by task after step `done`."""
        if self.said is None or done % self.every:
            return
        loss = sum(losses.values()) / len(losses)
        better = self.best is None or loss < self.best * (1 - self.said.least)
        if better and math.isfinite(loss):
            self.best, self.since = loss, 0
        else:
            self.since += 1

    @property
    def over(self) -> bool:
        """Whether the stage ends here."""
        return self.said is not None and self.since >= self.said.validations

    def marked(self, position: Position) -> Position:
        """A position that remembers what was seen."""
        return replace(position, best=self.best, since=self.since)

    def words(self, done: int) -> str:
        """Why the stage ended after step `done`; empty if it is not over."""
        if not self.over:
            return ""
        lowest = "never finite" if self.best is None else f"{self.best:.4f}"
        return (
            f"ended after step {done} of {self.steps}: the held-out loss did not fall for "
            f"{self.since} validations (lowest: {lowest})"
        )
