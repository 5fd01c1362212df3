"""Which sample comes when, and with which randomness: pure functions of (seed, draw).

A stage draws `batch` samples a step (or, with a token budget, as many of one bucket as fit it:
`BucketOrder`); draw = step x batch + slot. What a draw is (row, task,
timestep, dropped prompts, noise) depends on the seed and the draw alone, never on what ran
before or on how many workers run. So a run that is stopped and continued, on any number of
workers, sees what an unbroken one sees, and nothing but the step needs saving.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
    timesteps: of a `layerflow.model.noise.NoiseProcess`; of_tasks: task -> others of its own.
    joint, layer: chances that all prompts, or each prompt, are dropped. prompts: how many a model
    has.

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
    of_tasks: Mapping[str, Callable[[NDArray[np.float64]], NDArray[Any]]] = field(
        default_factory=dict
    )

    def __post_init__(self) -> None:
        if len(self.sizes) != len(self.weights) or not self.sizes or min(self.sizes) < 1:
            raise ValueError(f"every component of the mixture needs rows, got {self.sizes}")
        object.__setattr__(self, "_before", [np.zeros(len(self.sizes), np.int64)])
        object.__setattr__(self, "_epochs", {})

    def samples(self, step: int) -> int:
        """How many draws a step has."""
        return self.batch

    def step(self, step: int) -> list[Draw]:
        """All draws of one step, slot by slot."""
        batch = self.batch
        rng = keyed(self.seed, self.stage, "step", step)
        parts = rng.permutation(self._components(step))
        tasks = rng.permutation(_systematic(list(self.tasks.values()), batch, rng.random()))
        strata = (rng.permutation(batch) + rng.random(batch)) / batch
        chance = rng.random((batch, self.prompts + 1))
        drop = (chance[:, :1] < self.joint) | (chance[:, 1:] < self.layer)
        frames = rng.random(batch)
        names = list(self.tasks)
        times = [self.of_tasks.get(name, self.timesteps)(strata).tolist() for name in names]
        rows = self._rows(step, parts)
        return [
            Draw(
                number=step * batch + slot,
                component=int(parts[slot]),
                row=rows[slot],
                task=names[tasks[slot]],
                timestep=times[tasks[slot]][slot],
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


class BucketOrder:
    """The draws of a stage in which the samples of a step are all of one bucket.

    order: the stage's draws, were there no buckets. rows: of each bucket, the rows of each
    component that are in it. sizes: samples of a step, of each bucket.

    A bucket that has the share p of all draws, and steps of n samples, gets its turn in proportion
    to p / n: every row is seen as often as the mixture says, whatever its bucket. Turns are exact
    up to rounding in each `BLOCK` of steps, and shuffled. Within a bucket all is as in `Order`,
    counted by the bucket's own steps; so here too a draw follows from the seed and its number.
    """

    def __init__(
        self, order: Order, rows: Sequence[Sequence[Sequence[int]]], sizes: Sequence[int]
    ) -> None:
        self.seed, self.stage, self._rows, self._sizes = order.seed, order.stage, rows, sizes
        shares = bucket_shares(order.weights, rows)
        self._orders = [
            replace(
                order,
                stage=f"{order.stage} bucket {number}",
                batch=size,
                sizes=[len(each) for each in rows[number] if each],
                weights=shares[number][shares[number] > 0].tolist(),
            )
            for number, size in enumerate(sizes)
        ]
        self._components = [np.flatnonzero(each).tolist() for each in shares]
        self._turns = bucket_turns(shares, sizes)
        self._before = [np.zeros(len(sizes), np.int64)]
        self._blocks: dict[int, NDArray[np.int64]] = {}

    def samples(self, step: int) -> int:
        return self._sizes[self.bucket(step)]

    def bucket(self, step: int) -> int:
        """Which bucket a step has."""
        return int(self._block(step // BLOCK)[step % BLOCK])

    def step(self, step: int) -> list[Draw]:
        """All draws of one step, slot by slot; numbers and rows are those of the stage."""
        number, most = self.bucket(step), max(self._sizes)
        draws = self._orders[number].step(self._had_before(step)[number])
        rows, components = self._rows[number], self._components[number]
        return [
            replace(
                draw,
                number=step * most + slot,
                component=components[draw.component],
                row=rows[components[draw.component]][draw.row],
            )
            for slot, draw in enumerate(draws)
        ]

    def _block(self, block: int) -> NDArray[np.int64]:
        """The buckets of a block of steps."""
        if block not in self._blocks:
            rng = keyed(self.seed, self.stage, "buckets", block)
            picks = _systematic(self._turns, BLOCK, float(rng.random()))
            self._blocks[block] = rng.permutation(picks)
        return self._blocks[block]

    def _had_before(self, step: int) -> list[int]:
        """How many steps before this one each bucket had."""
        block, within = divmod(step, BLOCK)
        while len(self._before) <= block:
            counts = self._count(self._block(len(self._before) - 1))
            self._before.append(self._before[-1] + counts)
        counts = self._before[block] + self._count(self._block(block)[:within])
        return [int(count) for count in counts]

    def _count(self, buckets: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.bincount(buckets, minlength=len(self._sizes)).astype(np.int64)


def bucket_shares(
    weights: Sequence[float], rows: Sequence[Sequence[Sequence[int]]]
) -> NDArray[np.float64]:
    """Of each bucket and component the share of all draws that a mixture of these weights gives
    its rows; `rows` as of `BucketOrder`."""
    counts = np.asarray([[len(each) for each in bucket] for bucket in rows], np.float64)
    return counts / counts.sum(0) * np.asarray(weights, np.float64) / sum(weights)


def bucket_turns(shares: NDArray[np.float64], sizes: Sequence[int]) -> list[float]:
    """Of each bucket the share of steps that have it, for the draws to be shared as `shares` say
    when a step of a bucket has so many samples."""
    turns = shares.sum(1) / np.asarray(sizes)
    return list((turns / turns.sum()).tolist())


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
