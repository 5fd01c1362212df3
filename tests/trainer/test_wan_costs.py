"""The formulas of Wan's FLOPs and memory against counts of what the network does."""

from __future__ import annotations

from typing import Any

import pytest

from bench.train_gpu import planned_bytes, random_batch
from bench.train_memory import count_bytes, count_flops, count_forward_bytes, network
from layerflow.model.wan.costs import step_costs
from layerflow.model.wan.presets import TINY, tiny_transformer
from tests.trainer.test_costs import LORA, SIXTH, manifest, stage_of
from trainer.planning.costs import forward_bytes
from trainer.stages import trainable_names

SHAPE = (1, 4, 5, 16, 60, 104)
"""Four layers of 17 frames at 480x832: 31,200 tokens."""


def config(size: str, blocks: int) -> dict[str, Any]:
    """Of the width of a released Wan."""
    heads, ffn = {"1.3B": (12, 8960), "14B": (40, 13824)}[size]
    shape = {"num_layers": blocks, "num_text_tokens": 512, "latent_frames": 5}
    return {"num_attention_heads": heads, "ffn_dim": ffn, **shape}


@pytest.mark.parametrize(
    ("trains", "checkpointing"),
    [
        ("full", "none"),
        (SIXTH, "none"),
        (SIXTH, "full"),
        ({**LORA, "rank": 8}, "none"),
        ({**LORA, "rank": 8}, "full"),
        ({**LORA, "rank": 8, "targets": ["ffn.net.2", "to_q", "to_k", "to_v"]}, "none"),
        ({"lora": "motion", "rank": 8}, "none"),
        ({"blocks": [2], "also": ["proj_out*", "condition_embedder*"]}, "full"),
    ],
    ids=["full", "sixth", "sixth-full", "lora", "lora-full", "lora-ffn", "all", "head"],
)
def test_flops_equal_what_torch_counts(trains: Any, checkpointing: str) -> None:
    tiny = dict(tiny_transformer(TINY, channels=27).config)
    tiny = {name: value for name, value in tiny.items() if not name.startswith("_")}
    for each, shape in ((tiny, (2, 4, 4, 27, 4, 4)), (config("1.3B", 3), SHAPE)):
        stage = stage_of(trains)
        model = network(stage, each)
        forward, backward = count_flops(stage, each, random_batch(model, shape), checkpointing)
        costs = step_costs(model, shape[1:], trainable_names(model, stage), checkpointing)
        assert forward == pytest.approx(shape[0] * costs.forward, rel=0.001)
        assert backward == pytest.approx(shape[0] * (costs.backward + costs.recomputed), rel=0.001)
        assert bool(costs.recomputed) is (checkpointing == "full")


@pytest.mark.parametrize(
    ("trains", "precision", "checkpointing", "size"),
    [
        (SIXTH, "bf16", "none", "1.3B"),
        pytest.param(SIXTH, "bf16", "selective", "1.3B", marks=pytest.mark.slow),
        pytest.param(SIXTH, "bf16", "full", "1.3B", marks=pytest.mark.slow),
        pytest.param(SIXTH, "bf16", "none", "14B", marks=pytest.mark.slow),
        pytest.param(SIXTH, "fp32", "none", "1.3B", marks=pytest.mark.slow),
        pytest.param(SIXTH, "fp32", "full", "1.3B", marks=pytest.mark.slow),
        pytest.param(LORA, "bf16", "none", "1.3B", marks=pytest.mark.slow),
        (LORA, "bf16", "full", "1.3B"),
        pytest.param(LORA, "fp32", "selective", "1.3B", marks=pytest.mark.slow),
    ],
    ids=lambda value: value if isinstance(value, str) else str(value.get("lora", "sixth")),
)
def test_memory_estimate_is_within_3_percent_of_what_a_step_holds(
    trains: Any, precision: str, checkpointing: str, size: str
) -> None:
    """Three blocks, 31,200 tokens."""
    said = manifest(trains, precision=precision, checkpointing=checkpointing)
    stage = said.stages[0]
    held = count_bytes(said, stage, config(size, 3), SHAPE)
    estimate = planned_bytes(said, stage, network(stage, config(size, 3)), SHAPE)
    assert estimate == pytest.approx(held, rel=0.03)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_a_validation_pass_holds_what_the_plan_says(precision: str) -> None:
    """Two samples of 6,240 tokens in a pass without gradients: within 5 %."""
    said = manifest(SIXTH, precision=precision)
    stage, each, shape = said.stages[0], config("1.3B", 2), (2, 4, 1, *SHAPE[3:])
    model = network(stage, each)
    trained = sum(p.numel() for n, p in model.named_parameters() if "blocks.1." in n)
    planned = forward_bytes(said, model, tokens=2 * 6240, cast=trained)
    assert planned == pytest.approx(count_forward_bytes(said, stage, each, shape), rel=0.05)
