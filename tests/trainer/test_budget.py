"""A token budget instead of a fixed batch: three sizes, any workers, killed and resumed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from layerflow.model.base import base_of
from layerflow.model.objective import layer_loss
from manifests.train import TrainManifest, parse
from tests.support.trainer_kit import make_latents, make_manifest, same, weights
from tests.support.training_runs import losses, spawn
from trainer import loop
from trainer.data import Batches, Shape, buckets, open_parts
from trainer.export import load_model
from trainer.order import BLOCK, BucketOrder, Order
from trainer.planning.budget import budget_order, sample_costs, step_sizes
from trainer.planning.plan import lines, make_plan

SMALL, FLAT, LARGE = (2, 1, 2), (2, 2, 4), (3, 4, 2)
SIZES = {SMALL: 6, FLAT: 2, LARGE: 1}  # samples a step
BUDGET = 150


def tokens(frames: int, height: int, width: int) -> int:
    """Of a sample in the kit's model: four layers in patches of one, three prompts of two."""
    return 4 * frames * height * width + 3 * 2


def three_sizes(folder: Path, **changes: Any) -> TrainManifest:
    """One stage over a store of three sizes, with a token budget."""
    kit = make_manifest(folder)
    if not (folder / "sizes").exists():
        make_latents(folder / "sizes", count=14, shapes=[SMALL, FLAT, LARGE, SMALL])
    stage = kit.stages[0].model_dump() | {"tokens": BUDGET, "mixture": [{"latents": "sizes"}]}
    stage |= {"steps": 8}
    document = kit.model_dump() | {"stages": [stage], "latents": {"sizes": str(folder / "sizes")}}
    return parse(document | {"log_every": 1, "save_every": 3} | changes)


def make_batches(manifest: TrainManifest, model: Any, rank: int, world: int, **how: Any) -> Batches:
    stage = manifest.stages[0]
    parts = open_parts(manifest, stage)
    order = Order(
        seed=manifest.seed,
        stage=stage.name,
        batch=4,
        sizes=[len(part.rows) for part in parts],
        weights=[component.weight for component in stage.mixture],
        tasks=stage.tasks,
        timesteps=lambda u: (1000 * u).astype(int),
    )
    drawn = budget_order(order, parts, step_sizes(stage, parts, model))
    return Batches(parts, drawn, rank=rank, world=world, uneven=True, **how)


def two_components() -> BucketOrder:
    order = Order(
        seed=3,
        stage="base",
        batch=1,
        sizes=[6, 4],
        weights=[3.0, 1.0],
        tasks={"generate": 2.0, "decompose": 1.0},
        timesteps=lambda u: (1000 * u).astype(int),
    )
    rows = [[[0, 2, 4, 5], []], [[1, 3], [0, 1, 2, 3]]]  # of two buckets, of two components
    return BucketOrder(order, rows, [4, 2])


def test_a_step_of_a_bucket_is_the_same_whatever_came_before() -> None:
    walked = two_components()
    for step in range(40):
        seen = walked.step(step)
    assert seen == two_components().step(39)
    far = two_components().step(2 * BLOCK + 7)
    assert far == two_components().step(2 * BLOCK + 7) != seen


def test_every_row_is_seen_as_often_as_the_mixture_says_whatever_its_bucket() -> None:
    """The first bucket has 4 of 6 rows of three quarters of the draws: half of all draws. With
    steps of 4 and 2 samples that is a third of the steps."""
    order = two_components()
    seen: Counter[tuple[int, int]] = Counter()
    numbers, turns = [], Counter[int]()
    for step in range(BLOCK):
        draws = order.step(step)
        turns[order.bucket(step)] += 1
        assert len(draws) == order.samples(step) == (4, 2)[order.bucket(step)]
        assert {(draw.component, draw.row in (1, 3)) for draw in draws} <= (
            {(0, False)} if order.bucket(step) == 0 else {(0, True), (1, False), (1, True)}
        )
        seen.update((draw.component, draw.row) for draw in draws)
        numbers += [draw.number for draw in draws]
    assert len(set(numbers)) == len(numbers)  # the noise is keyed by it
    assert abs(turns[0] - BLOCK / 3) < 1
    total = sum(seen.values())
    for (component, _), count in seen.items():
        assert count / total == pytest.approx((0.75 / 6, 0.25 / 4)[component], rel=0.02)


def test_a_step_has_as_many_samples_of_one_bucket_as_fit(tmp_path: Path) -> None:
    manifest = three_sizes(tmp_path)
    model, _ = load_model(manifest.model, torch.device("cpu"))
    parts = open_parts(manifest, manifest.stages[0])
    found = {shape[:3]: sample_costs(model, shape, ()).tokens for shape in buckets(parts)}
    assert found == {shape: tokens(*shape) for shape in SIZES}
    assert list(found.values()) == [22, 70, 102]
    batches = make_batches(manifest, model, 0, 1)
    seen = set()
    for step in range(30):
        (batch,) = batches.step(step)
        _, _, frames, _, height, width = batch.latents.shape
        assert batch.size == SIZES[frames, height, width]
        seen.add((frames, height, width))
    assert seen == set(SIZES)


@pytest.mark.parametrize("alike", [False, True])
def test_workers_share_a_step_of_any_size(tmp_path: Path, alike: bool) -> None:
    """The sums over workers are those of one; where all must make as many passes, those that are
    made up give no loss and no gradient."""
    world, manifest = 3, three_sizes(tmp_path)
    model, scheduler = load_model(manifest.model, torch.device("cpu"))
    process = base_of(model).noise(scheduler)

    def total(ranks: int, step: int, **how: Any) -> tuple[float, torch.Tensor, list[int]]:
        model.zero_grad()
        passes, loss = [], 0.0
        for rank in range(ranks):
            made = make_batches(manifest, model, rank, ranks, **how).step(step)
            passes.append(len(made))
            for batch in made:
                each = layer_loss(model, process, *batch.tensors(), layers=batch.layers)
                each.sum().backward()
                loss += each.sum().item()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        return loss, gradient, passes

    order = make_batches(manifest, model, 0, 1).order
    for samples in SIZES.values():
        step = next(step for step in range(99) if order.samples(step) == samples)
        one, ours, _ = total(1, step)
        several, theirs, passes = total(world, step, alike=alike)
        assert several == pytest.approx(one, rel=1e-5)
        torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-5)
        assert passes == ([1] * world if alike else [int(rank < samples) for rank in range(world)])


def test_mixed_shapes_of_a_fixed_batch_make_as_many_passes_on_all_workers(tmp_path: Path) -> None:
    manifest = three_sizes(tmp_path)
    parts = open_parts(manifest, manifest.stages[0])
    order = Order(0, "base", 5, [len(parts[0].rows)], [1.0], {"generate": 1.0}, np.floor)
    for step in range(5):
        made = [
            Batches(parts, order, rank=rank, world=2, uneven=True, alike=True).step(step)
            for rank in (0, 1)
        ]
        assert len(made[0]) == len(made[1])
        samples = [batch for each in made for batch in each if not batch.given.all()]
        assert sum(batch.size for batch in samples) == 5


def test_a_killed_run_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    plain = three_sizes(tmp_path, out=str(tmp_path / "plain"))
    killed = plain.model_copy(update={"out": str(tmp_path / "killed")})
    assert loop.train(plain, plain.out, log=lambda line: None)

    def kill(row: dict[str, Any]) -> None:
        if row["step"] in (3, 6):
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            loop.train(killed, killed.out, log=lambda line: None, report=kill)
    assert loop.train(killed, killed.out, log=lambda line: None)
    assert losses(killed.out) == losses(plain.out) and len(losses(plain.out)) == 8
    assert same(weights(tmp_path / "killed/export"), weights(tmp_path / "plain/export"))


def test_the_plan_says_what_a_step_of_each_bucket_has(tmp_path: Path) -> None:
    manifest = three_sizes(tmp_path, workers=2)
    plans = make_plan(manifest)
    text = "\n".join(lines(manifest, plans))
    assert "base: 8 steps of 150 tokens" in text
    # of 14 clips 7, 4 and 3 are of these shapes: turns as 7/6, 4/2 and 3/1
    assert "  2x1x2: 6 clips a step, 132 tokens, 18.9 % of the steps" in text
    assert "  2x2x4: 2 clips a step, 140 tokens, 32.4 % of the steps" in text
    assert "  3x4x2: 1 clips a step, 102 tokens, 48.6 % of the steps; 1 of 2 workers wait" in text
    (plan,) = plans
    share = {SMALL: 7 / 6, FLAT: 2.0, LARGE: 3.0}
    model, _ = load_model(manifest.model, torch.device("cpu"))
    names = set(dict(model.named_parameters()))
    want = sum(
        turn * SIZES[shape] * sample_costs(model, Shape(*shape), names).executed
        for shape, turn in share.items()
    ) / sum(share.values())
    assert plan.flops == pytest.approx(want)


def test_wrong_budgets_are_refused_before_anything_runs(tmp_path: Path) -> None:
    manifest = three_sizes(tmp_path)
    stage = manifest.stages[0].model_dump()
    small = parse(manifest.model_dump() | {"stages": [stage | {"tokens": 101}]})
    with pytest.raises(ValueError, match=r"tokens: 101 is less than the 102 of one sample of 4"):
        loop.train(small, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="a batch or tokens, not both"):
        parse(manifest.model_dump() | {"stages": [stage | {"batch": 4}]})
    with pytest.raises(ValueError, match="micro_batch counts samples"):
        parse(manifest.model_dump() | {"micro_batch": 2})


@pytest.mark.slow
def test_two_workers_killed_and_continued_by_one_and_by_three(tmp_path: Path) -> None:
    plain = three_sizes(tmp_path, out=str(tmp_path / "plain"), save_every=2)
    moved = plain.model_copy(update={"out": str(tmp_path / "moved")})
    spawn(plain, 1)
    spawn(moved, 2, die_at=4)
    spawn(moved, 1, die_at=3)
    spawn(moved, 3)
    assert losses(moved.out) == pytest.approx(losses(plain.out), rel=1e-4)
    assert len(losses(plain.out)) == 8
