"""A token budget instead of a fixed batch: how many samples a step has, by bucket.

Each step of such a stage draws as many samples of one bucket (samples of one shape and the same
layers) as fit the budget, so that steps of small, large, short and long clips cost about the same.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from layerflow.layer_set import prompted_of
from layerflow.model.base import Costs, base_of
from manifests.train_stage import Stage
from trainer.data import MixturePart, Shape, buckets
from trainer.order import BucketOrder, Order, bucket_shares, bucket_turns
from trainer.planning.costs import input_bytes


def sample_costs(
    transformer: Any, shape: Shape, trained: Collection[str], checkpointing: str = "none"
) -> Costs:
    """``Base.step_costs`` of a sample of that shape."""
    latents, prompts = of_sample(transformer, shape)
    return base_of(transformer).step_costs(transformer, latents, trained, checkpointing, prompts)


def sample_inputs(transformer: Any, shape: Shape) -> float:
    """``input_bytes`` of a sample of that shape."""
    return input_bytes(transformer, *of_sample(transformer, shape))


def of_sample(transformer: Any, shape: Shape) -> tuple[tuple[int, ...], int]:
    """Shape of its latents ``[n, f, C, h, w]``, and how many prompts it has."""
    latents = (len(shape.layers), shape.frames, transformer.config.in_channels, *shape[1:3])
    return latents, len(prompted_of(shape.layers))


def step_sizes(stage: Stage, parts: Sequence[MixturePart], transformer: Any) -> dict[Shape, int]:
    """Samples of a step of each bucket, over all workers: as many as fit the stage's budget.

    ValueError for a budget that does not hold one sample of every bucket.
    """
    found, budget = buckets(parts), stage.tokens or 0
    each = {shape: sample_costs(transformer, shape, ()).tokens for shape in found}
    shape = max(each, key=lambda shape: each[shape])
    if each[shape] > budget:
        size = "x".join(map(str, shape[:3]))
        raise ValueError(
            f"stage {stage.name!r}: tokens: {budget} is less than the {each[shape]} of one "
            f"sample of {len(shape.layers)} layers of {size} latents"
        )
    return {shape: budget // tokens for shape, tokens in each.items()}


def budget_order(
    order: Order, parts: Sequence[MixturePart], sizes: Mapping[Shape, int]
) -> BucketOrder:
    """The draws of a stage with `sizes` samples in a step of each bucket; otherwise as `order`."""
    return BucketOrder(order, bucket_rows(parts, sizes), list(sizes.values()))


def turns(
    parts: Sequence[MixturePart], weights: Sequence[float], sizes: Mapping[Shape, int]
) -> dict[Shape, float]:
    """Of each bucket the share of steps that have it, with so many samples in a step."""
    shares = bucket_shares(weights, bucket_rows(parts, sizes))
    return dict(zip(sizes, bucket_turns(shares, list(sizes.values())), strict=True))


def bucket_rows(parts: Sequence[MixturePart], found: Collection[Shape]) -> list[list[list[int]]]:
    """Of each bucket the rows of each part that are in it."""
    rows: dict[Shape, list[list[int]]] = {shape: [[] for _ in parts] for shape in found}
    for component, part in enumerate(parts):
        for row, shape in enumerate(part.shapes):
            rows[shape][component].append(row)
    return list(rows.values())
