"""Which sample comes when, and with which randomness: pure functions of (seed, draw).

A stage draws `batch` samples a step; draw = step x batch + slot. What a draw is (row, task,
timestep, dropped prompts, noise) depends on the seed and the draw alone, never on what ran
before or on how many workers run. So a run that is stopped and continued, on any number of
workers, sees what an unbroken one sees, and nothing but the step needs saving.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layerflow.seeds import keyed

BLOCK = 1024  # steps whose mixture counts are made at once
PROMPTS = 3  # of a model with one foreground


@dataclass(frozen=True)
class Draw:
    """One sample of one step."""

    number: int
    """step x batch + slot"""
    component: int
    """Which part of the stage's mixture."""
    row: int
    """Which of that part's rows, 0 to its size - 1."""
    task: str
    timestep: float
    """As the base's noise process has it: whole steps stay int."""
    drop: tuple[bool, ...]
    """For each prompt of the model's layers, whether zeros replace it."""
    frame: float
    """In [0, 1): which frame a frozen clip shows."""


@dataclass(frozen=True)
class Order:
    """The draws of one stage.

    seed: of the run. stage: its name, so that stages do not share randomness. batch: samples a
    step. sizes, weights: rows and weight of each component of the mixture. tasks: task -> weight.
    timesteps: of a `layerflow.model.noise.NoiseProcess`. joint, layer: chances that all prompts,
    or each prompt, are dropped. prompts: how many a model has.

    Within each step the shares of components and tasks are exact up to rounding, and timesteps
    are stratified: those of one number in each of `batch` equal parts of [0, 1). Each component
    goes through its rows in a new seeded permutation every epoch.
    """

    seed: int
    stage: str
    batch: int
    sizes: Sequence[int]
    weights: Sequence[float]
    tasks: Mapping[str, float]
    timesteps: Callable[[NDArray[np.float64]], NDArray[Any]]
    joint: float = 0.0
    layer: float = 0.0
    prompts: int = PROMPTS

    def __post_init__(self) -> None:
        if len(self.sizes) != len(self.weights) or not self.sizes or min(self.sizes) < 1:
            raise ValueError(f"every component of the mixture needs rows, got {self.sizes}")
        object.__setattr__(self, "_before", [np.zeros(len(self.sizes), np.int64)])
        object.__setattr__(self, "_epochs", {})

    def step(self, step: int) -> list[Draw]:
        """All draws of one step, slot by slot."""
        batch = self.batch
        rng = keyed(self.seed, self.stage, "step", step)
        parts = rng.permutation(self._components(step))
        tasks = rng.permutation(_systematic(list(self.tasks.values()), batch, rng.random()))
        strata = (rng.permutation(batch) + rng.random(batch)) / batch
        timesteps = self.timesteps(strata).tolist()
        chance = rng.random((batch, self.prompts + 1))
        drop = (chance[:, :1] < self.joint) | (chance[:, 1:] < self.layer)
        frames = rng.random(batch)
        names = list(self.tasks)
        rows = self._rows(step, parts)
        return [
            Draw(
                number=step * batch + slot,
                component=int(parts[slot]),
                row=rows[slot],
                task=names[tasks[slot]],
                timestep=timesteps[slot],
                drop=tuple(bool(d) for d in drop[slot]),
                frame=float(frames[slot]),
            )
            for slot in range(batch)
        ]

    def _components(self, step: int) -> NDArray[np.int64]:
        return _systematic(self.weights, self.batch, self._offsets(step // BLOCK)[step % BLOCK])

    def _offsets(self, block: int) -> NDArray[np.float64]:
        return keyed(self.seed, self.stage, "mixture", block).random(BLOCK)

    def _rows(self, step: int, parts: NDArray[np.int64]) -> list[int]:
        """Row of each slot: how often its component was drawn before says where in which epoch."""
        ordinal = self._drawn_before(step)
        rows = []
        for part in parts:
            epoch, place = divmod(int(ordinal[part]), self.sizes[part])
            rows.append(int(self._epoch(int(part), epoch)[place]))
            ordinal[part] += 1
        return rows

    def _drawn_before(self, step: int) -> NDArray[np.int64]:
        """How many draws of each component lie before this step."""
        block, within = divmod(step, BLOCK)
        before: list[NDArray[np.int64]] = self._before  # type: ignore[attr-defined]
        while len(before) <= block:
            before.append(before[-1] + self._counts(len(before) - 1, BLOCK))
        return before[block] + self._counts(block, within)

    def _counts(self, block: int, steps: int) -> NDArray[np.int64]:
        edges = _edges(self.weights, self.batch)
        upto = np.clip(np.ceil(edges[:, None] - self._offsets(block)[:steps]), 0, self.batch)
        return np.diff(upto, axis=0, prepend=0).sum(axis=1).astype(np.int64)

    def _epoch(self, component: int, epoch: int) -> NDArray[np.int64]:
        cache: dict[int, tuple[int, NDArray[np.int64]]] = self._epochs  # type: ignore[attr-defined]
        if cache.get(component, (-1,))[0] != epoch:
            rng = keyed(self.seed, self.stage, "epoch", component, epoch)
            cache[component] = (epoch, rng.permutation(self.sizes[component]))
        return cache[component][1]


def _edges(weights: Sequence[float], batch: int) -> NDArray[np.float64]:
    total = np.cumsum(np.asarray(weights, np.float64))
    edges = total / total[-1] * batch
    edges[-1] = math.inf  # the last part takes the rest whatever rounding did to its edge
    return edges


def _systematic(weights: Sequence[float], batch: int, offset: float) -> NDArray[np.int64]:
    """`batch` picks of parts: pick i is the part in which (i + offset) falls, on a line that the
    parts share by weight. Shares are exact up to rounding in every step, and right on average."""
    places = np.arange(batch) + offset
    return np.searchsorted(_edges(weights, batch), places, side="right").astype(np.int64)


def share(draws: Sequence[Draw], rank: int, world: int) -> list[Draw]:
    """The draws of one rank: every world-th, so that shapes sorted together spread evenly."""
    return list(draws[rank::world])
