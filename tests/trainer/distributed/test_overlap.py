"""Gradients that are summed piece by piece while the backward pass runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from tests.support.trainer_kit import make_manifest, same, weights
from tests.support.training_runs import losses, spawn
from trainer.distributed import overlap
from trainer.distributed.overlap import Overlap


@pytest.fixture
def alone() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_piece_goes_when_the_last_pass_has_filled_it_and_all_before_it(
    alone: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three layers of four numbers and one that no pass uses, in pieces of one layer."""
    network = nn.ModuleDict({name: nn.Linear(2, 2, bias=False) for name in "abcx"})
    parameters = {name: network[name].weight for name in "axbc"}
    buffer = torch.zeros(17)
    grads, rest = buffer.split([16, 1])
    for parameter, grad in zip(parameters.values(), grads.split(4), strict=True):
        parameter.grad = grad.view(2, 2)
    sent: list[int] = []

    def all_reduce(tensor: torch.Tensor, **options: Any) -> Any:
        sent.append(tensor.storage_offset() // 4)
        return usual(tensor, **options)

    usual = dist.all_reduce
    monkeypatch.setattr(overlap.dist, "all_reduce", all_reduce)
    made = Overlap(parameters, {"a": 1, "x": 1, "b": 2, "c": 3}, grads, rest, size=4)

    def backward() -> None:
        values = torch.ones(1, 2)
        for name in "abc":
            values = network[name](values)
        values.sum().backward()

    for _ in range(2):
        buffer.zero_()
        sent.clear()
        made.begin(passes=2)
        backward()
        assert sent == []
        backward()
        assert sent == [3, 2, 0]  # c, b, a: from the end of the network
        made.finish()
        assert sent == [3, 2, 0, 1, 4]  # what nothing filled, and what goes with it
    made.end()
    got = grads.clone()
    buffer.zero_()
    backward()
    torch.testing.assert_close(got, 2 * grads, rtol=0, atol=0)
    assert sent[-1] == 4  # no hook is left


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 3])
def test_overlapped_sums_give_the_run_of_one_message(tmp_path: Path, workers: int) -> None:
    """Bit by bit on two workers; to rounding on three. One is killed and goes on."""
    plain = make_manifest(tmp_path, batch=2 * workers, accumulate=2, save_every=2)
    spawn(plain, workers)
    out = tmp_path / "ours"
    ours = plain.model_copy(update={"out": str(out), "reduce": "overlapped"})
    spawn(ours, workers, die_at=7)
    spawn(ours, workers)
    if workers == 2:
        assert losses(out) == losses(plain.out)
        assert same(weights(out / "export"), weights(Path(plain.out) / "export"))
    assert losses(out) == pytest.approx(losses(plain.out), rel=1e-5)
