"""Order: pure in (seed, draw), exact shares, full epochs, stratified timesteps."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from layerflow.seeds import keyed
from trainer.order import BLOCK, Order, share


def make(**changes: object) -> Order:
    options: dict[str, object] = {
        "seed": 3,
        "stage": "base",
        "batch": 8,
        "sizes": [13, 5],
        "weights": [3.0, 1.0],
        "tasks": {"generate": 2.0, "decompose": 1.0},
        "timesteps": lambda u: (1000 * u).astype(int),
        "joint": 0.1,
        "layer": 0.05,
    }
    return Order(**(options | changes))  # type: ignore[arg-type]


def test_a_step_is_the_same_whatever_came_before() -> None:
    walked = make()
    for step in range(40):
        seen = walked.step(step)
    assert seen == make().step(39)
    assert make().step(2 * BLOCK + 7) == make().step(2 * BLOCK + 7)
    assert seen != make(seed=4).step(39)
    assert seen != make(stage="motion").step(39)


def test_a_task_may_draw_times_of_its_own_and_nothing_else_changes() -> None:
    plain, own = make(), make(of_tasks={"decompose": lambda u: (-1000 * u).astype(int)})
    for step in range(6):
        pairs = list(zip(plain.step(step), own.step(step), strict=True))
        assert {draw.task for draw, _ in pairs} == {"generate", "decompose"}
        for draw, other in pairs:
            assert replace(other, timestep=draw.timestep) == draw
            assert other.timestep == (-draw.timestep if draw.task == "decompose" else draw.timestep)


def test_every_epoch_of_a_component_shows_each_row_once() -> None:
    order = make()
    rows: dict[int, list[int]] = {0: [], 1: []}
    for step in range(60):
        for draw in order.step(step):
            rows[draw.component].append(draw.row)
    for component, size in enumerate(order.sizes):
        epochs = [rows[component][i : i + size] for i in range(0, len(rows[component]), size)]
        assert all(sorted(epoch) == list(range(size)) for epoch in epochs[:-1])
        assert len({tuple(epoch) for epoch in epochs[:-1]}) > 1


def test_counting_ahead_equals_walking_across_a_block_border() -> None:
    order = make(sizes=[1000, 1000, 1000], weights=[0.61, 0.3, 0.09])
    walked = np.zeros(3, int)
    for step in range(BLOCK + 3):
        walked += np.bincount(order._components(step), minlength=3)
    assert (order._drawn_before(BLOCK + 3) == walked).all()
    assert walked.sum() == 8 * (BLOCK + 3)


@pytest.mark.parametrize("weights", [[3.0, 1.0], [0.9, 0.1], [1.0, 1e-9]])
def test_shares_are_exact_up_to_rounding(weights: list[float]) -> None:
    order = make(weights=weights)
    total = np.zeros(2)
    for step in range(200):
        counts = np.bincount([d.component for d in order.step(step)], minlength=2)
        want = 8 * np.asarray(weights) / sum(weights)
        assert (np.abs(counts - want) < 1).all()
        total += counts
    assert total[1] / total.sum() == pytest.approx(weights[1] / sum(weights), abs=0.01)


def test_timesteps_lie_one_in_each_stratum_and_cover_the_range() -> None:
    order = make()
    seen = []
    for step in range(300):
        timesteps = sorted(d.timestep for d in order.step(step))
        assert [t // 125 for t in timesteps] == list(range(8))
        seen += timesteps
    assert min(seen) < 10 and max(seen) > 989 and max(seen) <= 999


def test_prompts_drop_as_often_as_asked_and_tasks_too() -> None:
    order = make(batch=64, joint=0.1, layer=0.05)
    draws = [d for step in range(300) for d in order.step(step)]
    joint = np.mean([all(d.drop) for d in draws])
    single = np.mean([d.drop[0] for d in draws])
    assert joint == pytest.approx(0.1 + 0.9 * 0.05**3, abs=0.01)
    assert single == pytest.approx(0.1 + 0.9 * 0.05, abs=0.01)
    assert Counter(d.task for d in draws)["generate"] / len(draws) == pytest.approx(2 / 3, abs=0.01)
    assert not any(any(d.drop) for d in make(joint=0.0, layer=0.0).step(0))


@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_ranks_share_a_step_without_overlap(world: int) -> None:
    draws = make().step(5)
    dealt = [d.number for rank in range(world) for d in share(draws, rank, world)]
    assert sorted(dealt) == list(range(40, 48))


def test_a_batch_that_does_not_divide_is_dealt_out_whole() -> None:
    draws = make().step(0)
    dealt = [share(draws, rank, 3) for rank in range(3)]
    assert sorted(d.number for part in dealt for d in part) == [d.number for d in draws]
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1
    with pytest.raises(ValueError, match="needs rows"):
        make(sizes=[4, 0])


def test_generators_depend_on_every_part_of_the_key() -> None:
    first = keyed(1, "noise", 2).random()
    assert first == keyed(1, "noise", 2).random()
    assert len({first, keyed(1, "noise", 3).random(), keyed(2, "noise", 2).random()}) == 3
