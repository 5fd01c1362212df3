"""What the plan says of every option of memory, against the bytes that live in a step."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from bench.train_gpu import planned_bytes
from bench.train_memory import BASES, count_bytes, network, paper
from trainer.planning.plan import SAVINGS, SMALLEST

QUICK = {("2b", "content", "quantize nf4"), ("1.3b", "base", "offload weights")}
CASES = [*itertools.product(BASES, ("base", "content"), ("nothing", *SAVINGS))]


@pytest.mark.parametrize(
    ("base", "stage", "way"),
    [case if case in QUICK else pytest.param(*case, marks=pytest.mark.slow) for case in CASES],
)
def test_the_plan_is_within_3_percent_of_what_a_step_holds(base: str, stage: str, way: str) -> None:
    """At the width and the number of tokens of a released base, with a few of its blocks; of those
    a LoRA is in two, since the first that is recomputed takes less."""
    config, shape = BASES[base]
    quick = (base, stage, way) in QUICK
    config = {**config, "num_layers": 12 if stage == "content" and not quick else 3}
    changes: dict[str, Any] = {**SMALLEST, **SAVINGS.get(way, {})}
    manifest = paper(changes, config["num_layers"])
    chosen = manifest.stage(stage)
    held = count_bytes(manifest, chosen, config, shape)
    planned = planned_bytes(manifest, chosen, network(chosen, config), shape)
    assert planned == pytest.approx(held, rel=0.03)
